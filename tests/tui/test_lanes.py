"""Runs with several agents on the dashboard."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from chimera.domain.run import Lane
from chimera.domain.workload import Workload
from chimera.tui.messages import RunChanged
from tests.widgets.screens import screen_text

from .quiet import QuietApp, until, update


async def painted(app: QuietApp, pilot: Pilot[None], wanted: str) -> str:
    """The screen once it says so."""

    def says() -> bool:
        app.paint()
        return wanted in screen_text(app)

    await until(pilot, says)
    return screen_text(app)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_a_run_with_agents_shows_a_lane_each_and_their_rate_together(size: tuple[int, int]) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        told = update(first=True, rows=8)
        assert told.progress is not None
        lanes = (Lane(0, "decoding", 20, 33.0, 0.4), Lane(1, "queued"))
        progress = replace(told.progress, stage="measuring", rate=33.0, lanes=lanes)
        run = replace(told.run, workload=Workload(agents=2))
        app.post_message(RunChanged(replace(told, run=run, progress=progress)))
        shown = await painted(app, pilot, "2 agents together")
        assert "Agents" in shown
        assert "decoding" in shown
        assert "queued" in shown
        assert "2 agents together" in shown
        assert not re.search(r"tok/s +[▲▼=]", shown), "the rate of all together is not compared with that of a request"
        app.post_message(RunChanged(replace(told, run=replace(run, state="done"), progress=None)))
        assert "decoding" not in await painted(app, pilot, "last request"), "the last requests stand there again"


async def test_rates_of_single_agents_are_no_baseline_also_between_two_sessions() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        told = update(first=True, rows=8)
        assert told.progress is not None
        run, loading = replace(told.run, workload=Workload(agents=2)), replace(told.progress, stage="loading", lanes=())
        app.post_message(RunChanged(replace(told, run=run, progress=loading)))
        await until(pilot, lambda: len(app.state.measurements) == 8)
        assert app.state.rates() == []
        app.post_message(RunChanged(replace(told, run=replace(run, state="done"), progress=None)))
        await pilot.pause()
        assert app.state.rates() == []
