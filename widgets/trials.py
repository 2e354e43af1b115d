"""Candidates side by side: what was tried, how sure it is, and by how much it differs from the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual.binding import Binding, BindingType

from chimera.domain.options import OPTION_NAMES
from chimera.domain.run import Statistic, Trial
from chimera.domain.verdict import Verdict, VerdictWord

from . import braille, format
from .listing import Picker
from .panel import Panel
from .rows import Line, Row, Tone, cells, clean

TrialState = Literal["waiting", "running", "done", "same", "dropped", "failed", "ruled-out"]

VERDICTS: dict[VerdictWord, tuple[str, Tone]] = {
    "better": ("▲ better", "good"),
    "same": ("= same", "text"),
    "worse": ("▼ worse", "warn"),
    "undecided": ("? undecided", "muted"),
    "insufficient": ("· too few", "muted"),
}
"""Sign, word and tone of each verdict."""
STATES: dict[TrialState, tuple[str, Tone]] = {
    "waiting": ("waiting", "muted"),
    "running": ("› running", "accent"),
    "done": ("", "text"),
    "same": ("= one", "muted"),
    "dropped": ("dropped", "muted"),
    "failed": ("! failed", "error"),
    "ruled-out": ("won't fit", "muted"),
}


NOTE = 24
"""Most columns kept for notes."""


@dataclass(frozen=True, slots=True)
class TrialView:
    """A candidate with what is known of it by now."""

    trial: Trial
    sessions: int = 0
    """Valid ones."""
    void: int = 0
    statistic: Statistic | None = None
    """Of the metric that the table shows, over its sessions."""
    verdict: Verdict | None = None
    """Against the baseline, on that metric."""
    state: TrialState = "waiting"
    note: str = ""
    """Why it failed or was dropped, in a few words."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    width: int


class TrialTable(Picker):
    """The live table of a sweep, a row a candidate, with a cursor."""

    TITLE = "Candidates"
    HELP: ClassVar[str | None] = """\
## Candidates

A row for each configuration that really differs. `80→35` was asked as 80 and runs as 35. Settings with the same effect
are one candidate; the note names those that were merged.

* **n**: valid sessions, each one load of the model, with void ones behind a `+`.
* **effect**: against the baseline of the same rounds; **interval**: where the true effect lies.
* `▲` better · `▼` worse · `=` no practical difference · `?` not decided by these data.
"""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "Details", show=False)]
    UNFOCUSED = None

    class Chosen(Picker.Chosen):
        """A candidate was picked with the enter key or a click on the cursor."""

        @property
        def candidate(self) -> str:
            """Its name."""
            return self.key

    def __init__(
        self,
        *,
        metric: str = "tok/s",
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(empty="No candidate yet", name=name, id=id, classes=classes)
        self._metric = metric
        self._views: dict[str, TrialView] = {}
        self._columns: tuple[int, list[_Column], list[_Column]] | None = None
        """For so many columns of the screen: those of options, and those behind them."""

    def update(self, views: Sequence[TrialView], *, metric: str | None = None) -> None:
        """Show these candidates in this order; the cursor stays on its candidate.

        Args:
            views: The candidates.
            metric: Heading of the median's column with its unit, e.g. `tok/s` or `TTFT`. Values of a metric in seconds
                (`TTFT`, `completion`) and in bytes (`VRAM`) are shown so.
        """
        self._views, self._columns = {view.trial.candidate: view for view in views}, None
        if metric is not None:
            self._metric = metric
        self._set(tuple(self._views), self._line, self._heading)

    @property
    def candidate(self) -> str | None:
        """The candidate under the cursor."""
        return self.chosen

    def _layout(self, width: int) -> tuple[list[_Column], list[_Column]]:
        if self._columns is None or self._columns[0] != width:
            options = self._option_columns()
            self._columns = width, options, self._tail_columns(width - 5 - sum(column.width for column in options))
        return self._columns[1:]

    def _heading(self, width: int) -> Row:
        options, tail = self._layout(width)
        head = Line(width).add("", "muted", 5)
        for column in options:
            head.add(column.name, "muted", column.width)
        for column in tail:
            head.add(column.name, "muted", column.width, "left" if column.name in ("verdict", "interval") else "right")
            head.gap(2 if column.name in ("effect", "interval", self._metric) else 0)
        return head.row()

    def _option_columns(self) -> list[_Column]:
        """The options in which candidates differ; all that are set, where there is one candidate."""
        columns = []
        for name in OPTION_NAMES:
            texts = [_option_text(view.trial, name) for view in self._views.values()]
            if len(set(texts)) > 1 or (len(texts) == 1 and texts[0] != "–"):
                columns.append(_Column(name, max(len(name), *(cells(text) for text in texts)) + 2))
        return columns

    def _tail_columns(self, room: int) -> list[_Column]:
        """Columns after the options; the least telling ones are left out where there is no room."""
        notes = min(max(cells(clean(_note(view))) for view in self._views.values()) + 1, NOTE)
        columns = [
            _Column("n", 6), _Column(self._metric, 9), _Column("cv", 7), _Column("effect", 9), _Column("interval", 18),
            _Column("verdict", 12),
        ]  # fmt: skip
        for name in ("cv", "interval", "effect", "n"):
            if sum(column.width for column in columns) + 6 + notes > room:
                columns = [column for column in columns if column.name != name]
        return columns

    def _line(self, candidate: str, width: int) -> Row:
        options, tail = self._layout(width)
        view = self._views[candidate]
        trial, verdict = view.trial, view.verdict
        dim: Tone = "muted" if view.state in ("dropped", "ruled-out", "same", "waiting") else "text"
        line = Line(width).add(trial.candidate, "strong" if trial.role == "baseline" else dim, 5)
        for column in options:
            line.add(_option_text(trial, column.name), dim, column.width)
        for column in tail:
            if column.name == "n":
                text = f"{view.sessions}+{view.void}" if view.void else str(view.sessions)
                line.add(text, dim, column.width, "right")
            elif column.name == self._metric:
                text = "–" if view.statistic is None else self._value(view.statistic.median)
                line.add(text, dim, column.width, "right").gap(2)
            elif column.name == "cv":
                cv = view.statistic.cv if view.statistic else None
                line.add("" if cv is None else f"{cv * 100:.1f} %", "muted", column.width, "right")
            elif column.name == "effect":
                effect = verdict.itself.effect if verdict else None
                text = format.effect(effect) if effect is not None else ""
                line.add(text, dim, column.width, "right").gap(2)
            elif column.name == "interval":
                line.add(_interval_text(verdict), "muted", column.width).gap(2)
            else:
                word, tone = self._word(view)
                line.add(word, tone, max(column.width, cells(word) + 1))
        return line.gap(1).add(_note(view), "muted").row()

    def _word(self, view: TrialView) -> tuple[str, Tone]:
        if view.trial.role == "baseline":
            return ("› baseline", "accent") if view.state == "running" else ("baseline", "strong")
        if view.verdict is not None and view.state in ("done", "dropped"):
            return VERDICTS[view.verdict.verdict]
        return STATES[view.state]

    def _value(self, value: float) -> str:
        if self._metric in ("TTFT", "completion"):
            return format.seconds(value)
        if self._metric == "VRAM":
            return format.size(value)
        return format.rate(value)


def _option_text(trial: Trial, name: str) -> str:
    """`80→35` where what was asked runs as something else."""
    asked = getattr(trial.requested, name)
    runs = getattr(trial.effective, name) if trial.effective else None
    if asked is None:
        return "–" if runs is None else f"({runs})"
    return clean(f"{asked}→{runs}" if runs is not None and runs != asked else f"{asked}")


def _note(view: TrialView) -> str:
    if view.note or view.state == "dropped":
        return view.note or "dropped"
    return f"same as {', '.join(view.trial.merged)}" if view.trial.merged else ""


def _interval_text(verdict: Verdict | None) -> str:
    if verdict is None or verdict.ci is None:
        return ""
    low, high = ((bound - 1) * 100 for bound in verdict.itself.ci or verdict.ci)
    return f"{low:+.1f} .. {high:+.1f} %"


class IntervalPlot(Panel):
    """Each candidate's effect with its interval, against the band inside which differences do not matter."""

    TITLE = "Effect against the baseline"
    HELP: ClassVar[str | None] = """\
## Effect against the baseline

`●` is the measured effect, the line its confidence interval: the true effect lies inside, at the level that the verdict
names. Between the dotted lines a difference does not matter in practice. An interval wholly to the right of the band is
*better*, wholly inside it *same*; one that crosses an edge needs more sessions.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._verdicts: tuple[Verdict, ...] = ()
        self._band = 0.02
        self._labels: Mapping[str, str] = {}
        self._reach = 0.0

    def update(
        self, verdicts: Sequence[Verdict], *, band: float = 0.02, labels: Mapping[str, str] | None = None
    ) -> None:
        """Show these verdicts in this order.

        Args:
            verdicts: Those of one metric against the baseline.
            band: Half width of the band in which a difference does not matter: 0.02 for 2 %.
            labels: Words for candidates, by their names.
        """
        self._verdicts, self._band, self._labels = tuple(one.itself for one in verdicts), band, dict(labels or {})
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """A row a candidate and the axis below."""
        shown = [verdict for verdict in self._verdicts if verdict.effect is not None and verdict.ci is not None]
        if not shown:
            return [Line(width).add("No interval yet: it takes two complete rounds", "muted").row()]
        names = {verdict.candidate: self._name_of(verdict) for verdict in shown}
        label = min(max(cells(name) for name in names.values()) + 1, max(width // 3, 4))
        plot = width - label
        if plot < 16 or height < 2:
            return []
        self._scale(shown)
        middle = (plot - 1) // 2
        per_column = self._reach / middle
        rows = []
        room = height - 2 if height >= 4 else height - 1
        for verdict in shown[:room]:
            text, tone = self._interval(verdict, plot, middle, per_column)
            line = Line(width).add(names[verdict.candidate], "muted", label)
            begin, end = _extent(text)
            line.add(text[:begin], "track").add(text[begin:end], tone).add(text[end:], "track")
            rows.append(line.row())
        return rows + self._axis(width, label, plot, middle, per_column, with_ruler=height >= 4)

    def _name_of(self, verdict: Verdict) -> str:
        words = self._labels.get(verdict.candidate, "")
        return clean(f"{verdict.candidate} {words}".strip())

    def _scale(self, shown: Sequence[Verdict]) -> None:
        """A symmetric reach that holds the intervals, at most half of the baseline to either side."""
        ends = [abs(bound - 1) for verdict in shown for bound in (verdict.ci or ()) if math.isfinite(bound)]
        wanted = min(braille.nice_top(max([*ends, self._band * 1.5])), 0.5)
        if wanted > self._reach or wanted <= self._reach * 0.5:
            self._reach = wanted

    def _interval(self, verdict: Verdict, plot: int, middle: int, per_column: float) -> tuple[str, Tone]:
        """The row as text: dotted edges of the band, the baseline, and the interval over them."""
        chars = [" "] * plot
        for edge in (-self._band, self._band):
            column = middle + round(edge / per_column)
            if 0 <= column < plot:
                chars[column] = "┊"
        chars[middle] = "│"
        low, high = verdict.ci or (1.0, 1.0)
        first, last = middle + round((low - 1) / per_column), middle + round((high - 1) / per_column)
        for column in range(max(first, 0), min(last, plot - 1) + 1):
            chars[column] = "─"
        for column, end, beyond in ((first, "├", "‹"), (last, "┤", "›")):
            if 0 <= column < plot:
                chars[column] = end
            elif (column < 0) == (end == "├"):
                chars[0 if column < 0 else plot - 1] = beyond
        dot = middle + round(((verdict.effect or 1.0) - 1) / per_column)
        chars[min(max(dot, 0), plot - 1)] = "●" if 0 <= dot < plot else ("‹" if dot < 0 else "›")
        tone = VERDICTS[verdict.verdict][1]
        return "".join(chars), tone

    def _axis(
        self, width: int, label: int, plot: int, middle: int, per_column: float, *, with_ruler: bool
    ) -> list[Row]:
        ruler, numbers = ["─"] * plot, [" "] * plot
        count = max(min(plot // 10, 8), 2)
        step = braille.nice_step(2 * self._reach, count)
        index = -math.floor(self._reach / step + 1e-9)
        free = 0
        while index * step <= self._reach * (1 + 1e-9):
            column = middle + round(index * step / per_column)
            text = f"{braille.tick_text(index * step * 100, step * 100)} %" if index else "0"
            text = f"+{text}" if index > 0 else text.replace("-", "−")
            begin = min(max(column - len(text) // 2, 0), plot - len(text))
            if 0 <= column < plot:
                ruler[column] = "┬"
                if begin >= free:
                    numbers[begin : begin + len(text)] = text
                    free = begin + len(text) + 1
            index += 1
        rows = [Line(width).add("", "muted", label).add("".join(numbers), "muted").row()]
        if with_ruler:
            rows.insert(0, Line(width).add("", "muted", label).add("".join(ruler), "muted").row())
        return rows


def _extent(text: str) -> tuple[int, int]:
    """Where the interval itself begins and ends in its row."""
    inside = [index for index, char in enumerate(text) if char in "├─┤●‹›"]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
