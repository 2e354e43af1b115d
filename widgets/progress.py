"""The run: where it stands, what it asked for and what really runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from chimera.domain.options import OPTION_NAMES
from chimera.domain.run import Progress, Run, RunState
from chimera.domain.server import Effective

from . import format
from .panel import Panel
from .rows import Line, Row, Tone, meter, wrap

LABEL = 9
STAGES: dict[str, str] = {
    "starting": "starting the worker",
    "loading": "loading the model",
    "warmup": "warm-up request, discarded",
    "measuring": "measuring",
    "cooling": "letting the GPU cool down",
    "paused": "paused",
    "finishing": "finishing",
}
STATES: dict[RunState, tuple[str, Tone]] = {
    "queued": ("queued", "notice"),
    "running": ("running", "accent"),
    "paused": ("‖ paused", "warn"),
    "done": ("done", "good"),
    "stopped": ("■ stopped", "warn"),
    "failed": ("! failed", "error"),
    "crashed": ("! crashed, can be resumed", "error"),
}


def fraction(progress: Progress) -> float | None:
    """How much of the run is done, by sessions, requests and tokens, 0 to 1; None where the plan is unknown."""
    if progress.sessions <= 0:
        return None
    requests = progress.requests + 1  # the discarded one counts as work
    inside = float(progress.request)
    if progress.tokens_planned:
        inside += min(progress.tokens / progress.tokens_planned, 1.0)
    done = max(progress.session - 1, 0) + min(inside / requests, 1.0) * (progress.session > 0)
    return min(done / progress.sessions, 1.0)


class RunPanel(Panel):
    """The run in progress, or the last one."""

    TITLE = "Run"
    HELP: ClassVar[str | None] = """\
## Run

What was **asked** and what really **runs** are two things: servers clamp and raise settings. What differs is named.

**void** requests count for nothing, by rules that were fixed beforehand; their reasons are listed. **cold** ones are
valid but stand apart. The run belongs to its own process: leaving Chimera does not stop it.
"""

    def __init__(
        self,
        *,
        hint: str = "",
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.hint = hint
        """Said while there is no run: which key starts one."""
        self._run: Run | None = None
        self._progress: Progress | None = None
        self._effective: Effective | None = None
        self._valid = 0
        self._cold = 0
        self._voids: Mapping[str, int] = {}

    def update(
        self,
        run: Run | None,
        progress: Progress | None = None,
        *,
        effective: Effective | None = None,
        valid: int = 0,
        cold: int = 0,
        voids: Mapping[str, int] | None = None,
    ) -> None:
        """Show a run.

        Args:
            run: The run, or None where there is none.
            progress: Where it stands, as its worker wrote.
            effective: What the server really runs for the configuration in work.
            valid: Valid measurements so far.
            cold: Of these, cold ones.
            voids: Void measurements by reason.
        """
        self._run, self._progress, self._effective = run, progress, effective
        self._valid, self._cold, self._voids = valid, cold, dict(voids or {})
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """State and bar first, then settings, then counts."""
        run, progress = self._run, self._progress
        if run is None:
            rows = [Line(width).add("No run in progress", "muted").row()]
            return rows + [Line(width).add(part, "muted").row() for part in wrap(self.hint, width, max(height - 1, 0))]
        rows = [self._headline(run, width)]
        if run.error:
            rows += [Line(width).add(part, "error").row() for part in wrap(f"! {run.error}", width, 3)]
        if progress is not None and run.state in ("queued", "running", "paused", "crashed"):
            if height >= 4:
                rows.append(self._stage(progress, width))
            rows.append(self._bar(progress, width))
        room = height - len(rows) - 1
        settings = self._settings(width)
        while len(settings) > max(room, 0):
            settings.remove(min(settings, key=lambda each: each[0]))
        return [*rows, *(row for _, row in settings), self._counts(width)]

    def _headline(self, run: Run, width: int) -> Row:
        word, tone = STATES[run.state]
        line = Line(width).add(run.id, "strong").gap(2).add(run.preset or run.name or run.kind, "text")
        if (run.preset or run.name) and run.kind != "run":
            line.add(f" ({run.kind})", "muted")
        return line.end(word, tone).row() if line.left > len(word) + 2 else line.gap(2).add(word, tone).row()

    def _stage(self, progress: Progress, width: int) -> Row:
        line = Line(width).add(STAGES[progress.stage])
        places = []
        if progress.session:
            of = f" of {progress.sessions}" if progress.sessions else ""
            places.append(f"session {progress.session}{of}")
        if progress.request and progress.requests:
            places.append(f"request {progress.request} of {progress.requests}")
        if progress.candidate:
            places.append(progress.candidate)
        for place in places:
            if line.left > len(place) + 3:
                line.add(" · ", "muted").add(place, "muted")
        if progress.text and line.left > len(progress.text) + 3:
            line.add(" · ", "muted").add(progress.text, "muted")
        return line.row()

    def _bar(self, progress: Progress, width: int) -> Row:
        done = fraction(progress)
        eta = "" if progress.eta_s is None else f"{format.duration(progress.eta_s)} left"
        if done is None:
            return Line(width).add("plan not known yet", "muted").end(eta, "text").row()
        line = Line(width).spans(meter(done, max(min(width - 24, 72), 6))).gap(2)
        return line.add(f"{done * 100:.0f} %", "text", 5, "right").gap(2).add(eta, "text").row()

    def _settings(self, width: int) -> list[tuple[int, Row]]:
        """Rows in their order, each with how much it says: what differs most, what was asked least."""
        if self._progress is None:
            return []
        asked = self._progress.options
        rows = [(1, _options("asked", asked, width))]
        if self._effective is None:
            return rows
        runs = self._effective.options.as_dict()
        rows.append((2, _options("runs", {name: runs[name] for name in OPTION_NAMES if name in runs}, width)))
        changed = [
            f"{name} {asked[name]} → {runs[name]}"
            for name in OPTION_NAMES
            if name in asked and name in runs and asked[name] != runs[name] and asked[name] != -1
        ]
        if changed:
            line = Line(width).add("differs", "muted", LABEL).add("▲ ", "warn").add(" · ".join(changed))
            rows.append((3, line.row()))
        if unread := [name for name in self._effective.unread if name in asked]:
            line = Line(width).add("unknown", "muted", LABEL).add(", ".join(unread))
            rows.append((0, line.add(": cannot be read back", "muted").row()))
        return rows

    def _counts(self, width: int) -> Row:
        line = Line(width).add("requests", "muted", LABEL).add(f"{self._valid} valid")
        if self._cold:
            line.add(f" · {self._cold} cold", "notice")
        void = sum(self._voids.values())
        if void:
            reasons = ", ".join(
                f"{reason} {count}" for reason, count in sorted(self._voids.items(), key=lambda item: -item[1])
            )
            line.add(f" · ▲ {void} void ({reasons})", "warn")
        return line.row()


def _options(name: str, values: Mapping[str, Any], width: int) -> Row:
    line = Line(width).add(name, "muted", LABEL)
    if not values:
        return line.add("server defaults").row()
    for key, value in values.items():
        text = f"{key}={value}"
        if line.left < len(text) + 2:
            line.add("…", "muted")
            break
        line.add(text).gap(2)
    return line.row()
