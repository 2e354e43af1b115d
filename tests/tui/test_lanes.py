"""Runs with several agents on the dashboard."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chimera.domain.run import Lane
from chimera.domain.workload import Workload
from chimera.tui.messages import RunChanged
from tests.widgets.screens import screen_text

from .quiet import QuietApp, update


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_a_run_with_agents_shows_a_lane_each_and_their_rate_together(size: tuple[int, int]) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        told = update(first=True, rows=2)
        assert told.progress is not None
        lanes = (Lane(0, "decoding", 20, 33.0, 0.4), Lane(1, "queued"))
        progress = replace(told.progress, stage="measuring", rate=33.0, lanes=lanes)
        run = replace(told.run, workload=Workload(agents=2))
        app.post_message(RunChanged(replace(told, run=run, progress=progress)))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        shown = screen_text(app)
        assert "Agents" in shown
        assert "decoding" in shown
        assert "queued" in shown
        assert "2 agents together" in shown
        app.post_message(RunChanged(replace(told, run=replace(run, state="done"), progress=None)))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        assert "decoding" not in screen_text(app), "afterwards the last requests stand there again"
