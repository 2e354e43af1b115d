"""The agents' lanes: what each of them does, as text."""

from __future__ import annotations

import re
from typing import Literal

import pytest

from chimera.domain.run import Lane
from chimera.widgets import LanesPanel
from chimera.widgets.lanes import STATES

from .screens import Alone, screen_text

LANES = (
    Lane(0, "decoding", 32, 61.4, 0.212),
    Lane(1, "queued"),
    Lane(2, "prefill"),
    Lane(3, "done", 64, 58.0, 1.31),
)


async def shown(lanes: tuple[Lane, ...], size: tuple[int, int], planned: int = 64) -> list[str]:
    """The rows of the panel without its border."""
    panel = LanesPanel()
    app = Alone(panel)
    async with app.run_test(size=size) as pilot:
        panel.update(lanes, planned)
        await pilot.pause()
        return [line[1:-1].strip() for line in screen_text(app).splitlines()[1:-1]]


async def test_each_agent_has_a_lane_with_state_rate_and_first_token() -> None:
    head, *rows = await shown(LANES, (60, 9))
    assert head.split() == ["#", "state", "tok/s", "TTFT"]
    assert rows[0].split()[:4] == ["1", "decoding", "61.4", "212"]
    assert rows[1].split()[:2] == ["2", "queued"]
    assert "61.4" not in rows[1]
    assert "58" not in rows[3], "an answer that is complete has no live rate"
    assert rows[3].split()[1] == "done"
    assert "━" in rows[0]
    assert "━" not in rows[1]


async def test_lanes_that_do_not_fit_are_counted() -> None:
    rows = await shown(tuple(Lane(number, "queued") for number in range(8)), (24, 6))
    assert rows == ["1 queued", "2 queued", "3 queued", "and 5 more"]


@pytest.mark.parametrize("count", [1, 2, 8, 16])
async def test_every_agent_has_its_lane_on_the_smallest_dashboard(count: int) -> None:
    states: tuple[Literal["decoding", "queued", "prefill", "done"], ...] = ("decoding", "queued", "prefill", "done")
    lanes = tuple(Lane(number, states[number % 4], 10, 60.0 + number, 0.2) for number in range(count))
    text = " ".join(await shown(lanes, (40, 8)))
    for lane in lanes:
        said = f"{60.0 + lane.agent:.1f}" if lane.state == "decoding" else STATES[lane.state][0]
        assert re.search(rf"\b{lane.agent + 1}( decoding)? +{said}", text), f"{lane.agent + 1} is missing in {text}"
    assert "more" not in text


async def test_of_very_many_agents_the_last_ones_are_counted() -> None:
    rows = await shown(tuple(Lane(number, "queued") for number in range(40)), (40, 8))
    assert rows[-1].endswith("+23 more")
    assert sum(row.count("queued") for row in rows) == 17


async def test_a_narrow_panel_still_shows_the_states() -> None:
    rows = await shown(LANES, (18, 6))
    assert [row.split()[1] for row in rows] == ["decoding", "queued", "prefill", "done"]


async def test_without_agents_it_says_so() -> None:
    assert (await shown((), (40, 5)))[0] == "No agents at work"
