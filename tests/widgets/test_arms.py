"""Figures of a run with several agents, as a panel."""

from __future__ import annotations

from typing import Any

import pytest

from chimera.widgets import ArmsPanel

from .screens import Alone, screen_text


def arm(number: int, agents: int, rate: float, **more: Any) -> dict[str, Any]:
    """What the document of a run says of an arm."""
    return {
        "candidate": f"c{number}", "label": f"{agents} agents", "agents": agents, "aggregate_tok_s": rate,
        "speedup": rate / 40, "efficiency": rate / 40 / agents, "fairness": 0.98, "ttft_worst_s": 0.2 * agents,
        "completion_s": 3.0, "failures": {}, "queue_p95_s": 0.1 * agents, "vram_bytes": None,
        "energy_j_per_token": None, "guide_efficiency": 0.99, **more,
    }  # fmt: skip


def load(agents: int, rate: float, high: float | None) -> dict[str, Any]:
    """A point of a saturation curve."""
    return {"agents": agents, "aggregate_tok_s": rate, "low": rate - 2, "high": high, "ttft_p95_s": 0.1 * agents}


FACTS: dict[str, Any] = {
    "arms": [arm(0, 1, 40.0), arm(1, 2, 72.0), arm(2, 4, 80.0, failures={"timeout": 2, "refused": 1}), arm(3, 8, 81.0)],
    "saturation": [load(1, 40.0, 42.0), load(2, 72.0, 74.0), load(4, 80.0, 82.0), load(8, 81.0, None)],
    "knee": 4,
    "knee_shown": True,
    "digest": ["4 agents against one agent: throughput better (+100 %).", "The knee is at 4 agents: enough."],
    "guide_formula": "The guide's formula divides the agents' own times.",
}


async def shown(facts: dict[str, Any] | None, size: tuple[int, int]) -> list[str]:
    """The rows of the panel without its border."""
    panel = ArmsPanel()
    app = Alone(panel)
    async with app.run_test(size=size) as pilot:
        if facts is not None:
            panel.update(facts)
        await pilot.pause()
        return [line[1:-1].strip() for line in screen_text(app).splitlines()[1:-1]]


@pytest.mark.parametrize("size", [(80, 20), (120, 36), (200, 46)])
async def test_arms_saturation_verdicts_and_the_guides_formula_stand_there(size: tuple[int, int]) -> None:
    rows = await shown(FACTS, size)
    assert rows[0].split()[:2] == ["tok/s", "speed-up"]
    assert rows[0].endswith("guide's"), "the guide's own figure has its name"
    assert rows[1].startswith("c0 1 agents")
    assert "99%" not in rows[1], "of one agent it says nothing"
    assert rows[2].split()[:7] == ["c1", "2", "agents", "72.0", "1.80x", "90%", "0.98"]
    assert rows[2].endswith("99%")
    assert "3" in rows[3].split(), "failures are counted"
    text = "\n".join(rows)
    knee = next(row for row in rows if row.startswith("4 knee"))
    assert "78.0 to 82.0" in knee
    assert "400 ms" in knee
    assert knee.count("━") > next(row for row in rows if row.startswith("1  ")).count("━")
    assert "79.0 to unknown" in text
    assert "The knee is at 4 agents: enough." in text
    assert "The guide's formula divides the agents' own times." in text


async def test_a_knee_that_is_not_shown_has_a_question_mark() -> None:
    assert any(row.startswith("4 knee?") for row in await shown({**FACTS, "knee_shown": False}, (80, 20)))


async def test_where_room_is_short_the_knee_stands_and_no_sentence_is_cut() -> None:
    verdicts = [f"{number} agents against one agent: throughput {'better, ' * 12}and the end." for number in (2, 4, 8)]
    rows = await shown({**FACTS, "digest": [*verdicts, "The knee is at 4 agents: enough."]}, (80, 18))
    text = " ".join(rows)
    assert "The knee is at 4 agents: enough." in text
    assert "The guide's formula divides" in text
    assert 1 <= text.count("agents against one agent") == text.count("and the end.") < 3


async def test_what_was_not_measured_has_no_column() -> None:
    assert "VRAM" not in (await shown(FACTS, (200, 40)))[0]
    held = {**FACTS, "arms": [arm(0, 1, 40.0, vram_bytes=3 * 2**30)]}
    head, first, *_ = await shown(held, (200, 40))
    assert "VRAM" in head
    assert "3.0 GiB" in first


async def test_before_there_are_figures_it_says_so() -> None:
    assert (await shown(None, (60, 6)))[0] == "No figures yet"
