"""The agents' lanes: what each of them does, as text."""

from __future__ import annotations

from chimera.domain.run import Lane
from chimera.widgets import LanesPanel

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
    rows = await shown(tuple(Lane(number, "queued") for number in range(8)), (40, 6))
    assert rows == ["1 queued", "2 queued", "3 queued", "and 5 more"]


async def test_a_narrow_panel_still_shows_the_states() -> None:
    rows = await shown(LANES, (18, 6))
    assert [row.split()[1] for row in rows] == ["decoding", "queued", "prefill", "done"]


async def test_without_agents_it_says_so() -> None:
    assert (await shown((), (40, 5)))[0] == "No agents at work"
