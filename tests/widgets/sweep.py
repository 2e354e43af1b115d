"""The panels of a sweep on one screen."""

from __future__ import annotations

from textual.app import App, ComposeResult

from chimera.widgets import IntervalPlot, TrialTable

from . import data


class Sweep(App[None]):
    """Table and plot, without any logic."""

    CSS = "#plot { height: 10; }"

    def compose(self) -> ComposeResult:
        yield TrialTable(id="table")
        yield IntervalPlot(id="plot")

    def on_mount(self) -> None:
        self.query_one(TrialTable).update(data.TRIALS)
        self.query_one(IntervalPlot).update(data.VERDICTS[:2] + data.VERDICTS[3:], labels={"c2": "q8_0"})
