"""How fast tokens come: the current rate, large, what it is the rate of, and its course."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import ClassVar

from chimera.domain.readings import Missing, Reading, number

from . import format
from .chart import Guide, Plot, PlotPanel
from .rows import Line, Row

FALLEN, FEWEST = 0.1, 3
"""A rate so far below the median of at least so many requests stands out."""
_GLYPHS = {
    "0": ("┏━┓", "┃ ┃", "┗━┛"),
    "1": ("╺┓ ", " ┃ ", "╺┻╸"),
    "2": ("╺━┓", "┏━┛", "┗━╸"),
    "3": ("╺━┓", " ━┫", "╺━┛"),
    "4": ("╻ ╻", "┗━┫", "  ╹"),
    "5": ("┏━╸", "┗━┓", "╺━┛"),
    "6": ("┏━╸", "┣━┓", "┗━┛"),
    "7": ("╺━┓", "  ┃", "  ╹"),
    "8": ("┏━┓", "┣━┫", "┗━┛"),
    "9": ("┏━┓", "┗━┫", "╺━┛"),
    ".": (" ", " ", "▪"),
    "-": ("   ", "╺━╸", "   "),
}


def large(text: str) -> tuple[str, str, str]:
    """Digits three rows high; characters without a large form are left out."""
    shapes = [_GLYPHS[char] for char in text if char in _GLYPHS]
    return (
        " ".join(shape[0] for shape in shapes),
        " ".join(shape[1] for shape in shapes),
        " ".join(shape[2] for shape in shapes),
    )


class ThroughputPanel(PlotPanel):
    """Tokens a second: now, over the run, against its baseline and the bandwidth roof."""

    TITLE = "Throughput"
    FROZEN = "chart frozen"
    HELP: ClassVar[str | None] = """\
## Throughput

Decode rate in tokens a second. The words beside the number say **what it is the rate of and whose clock timed it**:
a request of ours in flight, the last one, or all clients of the server together.

* **median**: over the valid measurements of this run.
* **baseline**: the server's defaults, measured in the same run.
* **roof**: what the GPU's memory bandwidth allows for this model at its present context. Derived, not measured.
* **MBU**: the present rate over that roof, the model bandwidth utilisation. `▼` marks a rate well below the median.
* Letters on the time axis: `P` a preset began, `R` another run, `L` a model was loaded, `A` an alert.
"""

    def __init__(
        self,
        *,
        window_s: float = 120,
        epoch: float | None = None,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.plot = Plot(window_s=window_s, epoch=epoch)
        self._rate: Reading | None = None
        self._label = ""
        self._rates: tuple[float, ...] = ()
        self._baseline: float | None = None
        self._roof: Reading | None = None

    def update(
        self,
        at: float,
        rate: Reading | None,
        *,
        label: str,
        rates: Sequence[float] = (),
        baseline: float | None = None,
        roof: Reading | None = None,
    ) -> None:
        """Show the rate at `at` (monotonic seconds).

        Args:
            at: When it was read.
            rate: Tokens a second; a reason, or None when nothing is being generated: a gap in the chart.
            label: What it is the rate of, and whose clock: `this request, server's clock`.
            rates: Rates of the run's valid measurements, for the median.
            baseline: Median rate of the run's baseline.
            roof: What memory bandwidth allows, tokens a second.
        """
        self._rate, self._label = rate, label
        self._rates, self._baseline, self._roof = tuple(rates), baseline, roof
        guides = [] if baseline is None else [Guide("baseline", baseline)]
        if (ceiling := number(roof)) is not None:
            guides.append(Guide("roof", ceiling))
        self.plot.guides = tuple(guides)
        self.plot.append(at, number(rate))
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """Number and facts above, the chart below."""
        head = self._tall(width) if height >= 11 and width >= 44 else self._flat(width, 2 if height >= 6 else 1)
        room = height - len(head)
        return head + (self.plot.rows(width, min(room, 24)) if room >= 3 else [])

    def _tall(self, width: int) -> list[Row]:
        value = number(self._rate)
        digits = large(format.rate(value) if value is not None else "--")
        column = max(len(digits[0]), 15) + 3
        facts = [*self._facts(), ("", "")][:2]
        rows = []
        for index, shape in enumerate(digits):
            line = Line(width).add(shape, "accent" if value is not None else "muted").to(column)
            if index == 0:
                self._remarks(line.add("tok/s", "muted")).gap(2).add(self._what(), "text")
            else:
                name, text = facts[index - 1]
                line.add(f"{name:<10}" if name else "", "muted").add(text)
                if index == 2 and len(facts) < len(self._facts()):
                    name, text = self._facts()[2]
                    if line.left > len(name) + len(text) + 4:
                        line.gap(3).add(f"{name}  ", "muted").add(text)
            rows.append(line.row())
        return rows

    def _flat(self, width: int, count: int) -> list[Row]:
        value = number(self._rate)
        first = Line(width).add(format.rate(value) if value is not None else "--", "accent", 6, "right")
        self._remarks(first.add(" tok/s", "muted"))
        what, others = self._what(), self._facts()
        second = Line(width)
        if count == 1 or first.left >= len(what) + 2:
            first.gap(2).add(what)
        else:
            second.add(what).gap(3)
        for line in (first, second):
            # A fact that does not fit whole is left out, and those after it with it.
            while others and line.left >= sum(map(len, others[0])) + 4 and (line is second or second.used):
                name, text = others.pop(0)
                line.gap(3 if line.used else 0).add(f"{name} ", "muted").add(text)
        return [first.row(), second.row()][:count]

    def _remarks(self, line: Line) -> Line:
        """How the rate stands: against the median, where it fell, and against the roof."""
        value, ceiling = number(self._rate), number(self._roof)
        usual = median(self._rates) if len(self._rates) >= FEWEST else None
        if value is not None and usual and value < usual * (1 - FALLEN):
            line.gap(2).add(f"▼ {format.effect(value / usual)}", "warn")
        if value is not None and ceiling:
            line.gap(2).add("MBU ", "muted").add(format.share(value / ceiling))
        return line

    def _what(self) -> str:
        if isinstance(self._rate, Missing):
            return f"{self._label}, {format.missing(self._rate)}" if self._label else format.missing(self._rate)
        return self._label

    def _facts(self) -> list[tuple[str, str]]:
        facts = []
        if isinstance(self._rate, Missing) and self._rate.detail:
            facts.append(("why", self._rate.detail))
        if self._rates:
            count = len(self._rates)
            facts.append(("median", f"{format.rate(median(self._rates))} of {count} request{'s' if count > 1 else ''}"))
        else:
            facts.append(("median", "no valid request yet"))
        if self._baseline is not None:
            text = format.rate(self._baseline)
            if self._rates:
                text += f" ({format.effect(median(self._rates) / self._baseline)})" if self._baseline else ""
            facts.append(("baseline", text))
        if isinstance(self._roof, Missing):
            facts.append(("roof", f"unknown: {self._roof.detail}" if self._roof.detail else "unknown"))
        elif self._roof is not None:
            facts.append(("roof", format.rate(self._roof)))
        return facts
