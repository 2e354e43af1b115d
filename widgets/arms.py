"""What several agents have got: the arms of a run side by side, and throughput and latency against concurrency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from . import format
from .panel import Panel
from .rows import Line, Row, Span, Tone, wrap

Facts = Mapping[str, Any]
"""`agents` in the document of a run, as `chimera runs show --json` prints it."""

_NAME, _LONG_NAME = 23, 30
"""Cells for an arm's name, at least and at most."""
_COLUMNS: tuple[tuple[str, int], ...] = (
    ("tok/s", 6), ("speed-up", 9), ("effic.", 7), ("Jain", 5), ("worst TTFT", 11), ("failed", 7), ("done in", 9),
    ("queue p95", 10), ("VRAM", 9), ("J/token", 8), ("guide's", 8),
)  # fmt: skip
"""The most telling ones first: those that do not fit are left out from the end, but for the guide's."""


class ArmsPanel(Panel):
    """The figures of a run with several agents, once they are all there."""

    TITLE = "Agents compared"
    HELP: ClassVar[str | None] = """\
## Agents compared

* **speed-up**: all agents' tokens a second over those of one agent alone, measured in the same rounds.
* **effic.**: speed-up for each agent; 100 % = N agents do N times the work.
* **Jain**: fairness of the agents' shares; 1 = equal.
* **guide's**: efficiency by the guide's own formula, to compare old reports; it is near 100 % whenever agents overlap.

Saturation: a bar reaches to the mean rate, `·` to the end of its 95 % interval. From the **knee** on more agents add
less than a tenth for each doubling; **knee?**: from there on gains are no longer seen, and not ruled out.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._facts: Facts | None = None

    def update(self, facts: Facts) -> None:
        """Show these figures."""
        if facts != self._facts:
            self._facts = facts
            self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The arms, saturation, what it comes to, and a word on the guide's formula, as far as there is room."""
        if self._facts is None:
            return [Line(width).add("No figures yet", "muted").row()]
        rows = _arms(self._facts["arms"], width)
        if self._facts["saturation"]:
            rows += [(), *_saturation(self._facts, width)]
        guide = [Line(width).add(line, "muted").row() for line in wrap(self._facts["guide_formula"], width)]
        said = list(self._facts["digest"])
        if self._facts["saturation"] and said:
            said = [said[-1], *said[:-1]]  # the knee first
        sentences = [[Line(width).add(line).row() for line in wrap(one, width)] for one in said]
        # Where little room is left the blank lines go first, then whole sentences from the end.
        if len(rows) + 2 + sum(len(one) for one in sentences) + len(guide) <= height:
            return [*rows, (), *(row for one in sentences for row in one), (), *guide]
        rows = [row for row in rows if row]
        for one in sentences:
            if len(rows) + len(one) + len(guide) > height:
                break
            rows += one
        return rows[: max(height - len(guide), 0)] + guide


def _arms(arms: list[Facts], width: int) -> list[Row]:
    known = [
        (name, cells)
        for name, cells in _COLUMNS
        if name not in ("VRAM", "J/token") or any(_value(arm, name) for arm in arms)
    ]
    while len(known) > 2 and _NAME + sum(cells for _, cells in known) > width:
        del known[-2]  # the last one is the guide's
    long = min(max(width - sum(cells for _, cells in known), _NAME), _LONG_NAME)
    head = Line(width).add("", "muted", long)
    for name, cells in known:
        head.add(name, "muted", cells, "right")
    rows = [head.row()]
    for arm in arms:
        line = Line(width).add(f"{arm['candidate']} {arm['label']}", "strong", long)
        for name, cells in known:
            tone: Tone = "warn" if name == "failed" and arm["failures"] else "muted" if name == "guide's" else "text"
            line.add(_value(arm, name), tone, cells, "right")
        rows.append(line.row())
    return rows


def _value(arm: Facts, name: str) -> str:
    if name == "failed":
        return str(sum(arm["failures"].values()))
    key, show = {
        "tok/s": ("aggregate_tok_s", format.rate),
        "speed-up": ("speedup", "{:.2f}x".format),
        "effic.": ("efficiency", "{:.0%}".format),
        "Jain": ("fairness", "{:.2f}".format),
        "worst TTFT": ("ttft_worst_s", format.seconds),
        "done in": ("completion_s", format.seconds),
        "queue p95": ("queue_p95_s", format.seconds),
        "VRAM": ("vram_bytes", format.size),
        "J/token": ("energy_j_per_token", "{:.3f}".format),
        "guide's": ("guide_efficiency", "{:.0%}".format),
    }[name]
    if arm[key] is None or (name == "guide's" and arm["agents"] < 2):
        return ""
    return show(arm[key])


def _saturation(facts: Facts, width: int) -> list[Row]:
    """Rate and latency at each number of agents, a bar each."""
    loads = facts["saturation"]
    most = max(load["high"] or load["aggregate_tok_s"] for load in loads)
    slowest = max(load["ttft_p95_s"] or 0.0 for load in loads)
    bar = max((width - 45) * 3 // 5, 4)
    late = max(width - 45 - bar, 3)
    mark = " knee" if facts["knee_shown"] else " knee?"
    head = Line(width).add("agents", "muted", 8).add("tok/s", "muted", 6, "right").gap(2)
    head.add("95 % interval", "muted", 16).add("throughput", "muted", bar).gap(2)
    rows = [head.add("TTFT p95", "muted", 8, "right").gap(2).row()]
    for load in loads:
        knee = load["agents"] == facts["knee"]
        line = Line(width).add(f"{load['agents']}{mark if knee else ''}", "accent" if knee else "strong", 8)
        line.add(format.rate(load["aggregate_tok_s"]), "text", 6, "right").gap(2)
        high = "unknown" if load["high"] is None else format.rate(load["high"])
        line.add(f"{format.rate(load['low'])} to {high}", "muted", 16)
        line.spans(_bar(load["aggregate_tok_s"], load["high"], most, bar)).gap(2)
        tail = load["ttft_p95_s"]
        line.add("" if tail is None else format.seconds(tail), "text", 8, "right").gap(2)
        rows.append(line.spans(_bar(tail or 0.0, None, slowest, late)).row())
    return rows


def _bar(value: float, high: float | None, most: float, width: int) -> list[Span]:
    share = value / most if most > 0 else 0.0
    full = round(share * width)
    reach = max(full, min(width, round((high or value) / most * width))) if most > 0 else 0
    return [Span("━" * full, "bar"), Span("·" * (reach - full), "muted"), Span(" " * (width - reach), "text")]
