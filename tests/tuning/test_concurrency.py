"""Figures of concurrent agents against what can be computed by hand: k slots, N agents, known service times."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.measurement import Measurement
from chimera.tuning.concurrency import Load, costs, efficiency, figures, jain, knee, percentile, speedup

PREFILL, DECODE, TOKENS = 0.2, 0.9, 19


def played(agents: int, slots: int, requests: int, service: float = PREFILL + DECODE) -> list[Measurement]:
    """Closed-loop agents on a server that serves `slots` at once, first come first served."""
    free = [0.0] * slots
    heapq.heapify(free)
    waiting = [(0.0, agent, 0) for agent in range(agents)]
    heapq.heapify(waiting)
    found = []
    while waiting:
        asked, agent, done = heapq.heappop(waiting)
        start = max(asked, heapq.heappop(free))
        end = start + service
        heapq.heappush(free, end)
        found.append(
            Measurement(
                role="measure", started_at=asked, total_s=end - asked, ttft_s=start - asked + PREFILL,
                queue_s=start - asked, prefill_s=PREFILL, decode_s=DECODE, completion_tokens=TOKENS,
                decode_tok_s=(TOKENS - 1) / DECODE, agent=agent,
            )
        )  # fmt: skip
        if done + 1 < requests:
            heapq.heappush(waiting, (end, agent, done + 1))
    return found


@pytest.mark.parametrize(("agents", "slots"), [(2, 1), (4, 2), (2, 2), (4, 4), (2, 4), (8, 3)])
def test_speedup_efficiency_queue_and_fairness_are_the_analytic_ones(agents: int, slots: int) -> None:
    requests = 12
    together, solo = figures(played(agents, slots, requests)), figures(played(1, slots, requests))
    assert together is not None
    assert solo is not None
    work = -(-agents * requests // slots) * (PREFILL + DECODE)  # every slot busy to the end
    expected = agents * requests * (PREFILL + DECODE) / max(work, requests * (PREFILL + DECODE))
    assert speedup(together, solo) == pytest.approx(expected, rel=0.02)
    assert efficiency(together, solo) == pytest.approx(expected / agents, rel=0.02)
    assert together.tokens == agents * requests * TOKENS
    if agents <= slots:
        assert together.queue_worst_s == 0.0
        assert together.deferred == 0
        assert together.fairness == pytest.approx(1.0)
    elif agents % slots == 0:
        wait = (agents // slots - 1) * (PREFILL + DECODE)
        assert together.queue_worst_s == pytest.approx(wait, rel=0.02)
        assert together.ttft_worst_s == pytest.approx(wait + PREFILL, rel=0.02)


def test_the_guides_formula_calls_two_agents_at_half_speed_perfect() -> None:
    alone = figures(played(1, 1, 10))
    shared = figures(played(2, 2, 10, service=2 * (PREFILL + DECODE)))  # both at half speed
    assert alone is not None
    assert shared is not None
    assert speedup(shared, alone) == pytest.approx(1.0)
    assert efficiency(shared, alone) == pytest.approx(0.5)
    assert shared.guide_efficiency == pytest.approx(1.0)
    assert shared.guide_speedup == pytest.approx(2.0)


def test_one_agents_failures_are_counted_and_the_others_figures_stand() -> None:
    rows = played(3, 3, 4)
    broken = [
        replace(row, void_reason="error", completion_tokens=None, decode_tok_s=None) if row.agent == 1 else row
        for row in rows
    ]
    found = figures([replace(row, void_reason="refused", total_s=99.0) if row.agent == 2 else row for row in broken])
    assert found is not None
    assert found.failures == {"error": 4, "refused": 4}
    assert found.rejected == 4
    assert [agent.requests for agent in found.agents] == [4, 0, 0]
    assert found.agents[0].decode_tok_s == pytest.approx((TOKENS - 1) / DECODE)
    assert found.fairness == pytest.approx(1 / 3)
    assert found.guide_speedup == pytest.approx(1.0), "waiting in vain is no work, not by the guide's formula either"


def test_a_wait_with_a_slot_for_each_agent_is_not_for_a_slot() -> None:
    rows = [replace(row, queue_s=0.2) for row in played(4, 4, 3)]
    deferred = {slots: found.deferred for slots in (None, 2, 4, 8) if (found := figures(rows, {0: slots}))}
    assert deferred == {None: 12, 2: 12, 4: 0, 8: 0}


def test_a_session_without_an_answer_has_no_figures() -> None:
    rows = [replace(row, void_reason="error") for row in played(2, 2, 2)]
    assert figures(rows) is None
    assert costs(None) == {}


def test_discarded_requests_are_in_no_figure() -> None:
    rows = played(2, 2, 3)
    warm = [replace(row, role="warmup", started_at=row.started_at - 100) for row in rows[:2]]
    assert figures([*warm, *rows]) == figures(rows)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_fairness_lies_between_one_share_and_equality(values: list[float]) -> None:
    index = jain(values)
    if index is not None:
        assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert percentile([], 0.5) is None


def test_the_knee_is_where_more_agents_stop_to_pay() -> None:
    def load(agents: int, rate: float, spread: float = 0.5) -> Load:
        return Load(agents, rate, rate - spread, rate + spread, None)

    assert knee([load(1, 10), load(2, 19), load(4, 36), load(8, 37)]) == 4
    assert knee([load(1, 10), load(2, 19), load(4, 36)]) is None
    assert knee([load(1, 10), load(2, 12, spread=3.0)]) == 1
    assert knee([load(1, 10)]) is None
