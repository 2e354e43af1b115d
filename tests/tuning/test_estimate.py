from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimera.domain.workload import Workload
from chimera.tuning.estimate import Pace, estimate, within
from chimera.tuning.plan import Plan
from chimera.tuning.protocol import Done
from chimera.tuning.statistics import Noise

from .scripted import Source, plan, play

LOAD = Workload(requests=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.booleans(), st.integers(0, 8))
def test_an_undisturbed_run_stays_within_its_estimate(k: int, confirmed: int, confirm: bool, preflight: int) -> None:
    rules = plan(k, confirmed=confirmed, confirm=confirm, preflight=preflight, confirm_rounds=8)
    outcomes, step = play(rules, Source(noise=0.05))
    expected = estimate(rules, LOAD)
    assert isinstance(step, Done)
    assert expected.sessions - k <= len(outcomes) <= expected.sessions
    if not confirm or k <= confirmed:
        assert len(outcomes) == expected.sessions


def test_the_budget_of_the_design_holds() -> None:
    cost = estimate(plan(8, confirm_rounds=8), LOAD, pace=Pace(load_s=3, request_s=2.5))
    assert cost.sessions == 6 + 3 * 9 + 3 * 5 + 8 * 3
    assert cost.requests == cost.sessions * 4
    assert cost.seconds == pytest.approx(cost.sessions * 13)


def test_an_unknown_noise_gives_a_range_and_a_known_one_a_number() -> None:
    vague = estimate(plan(2), LOAD, pace=Pace(1, 1))
    assert (vague.sessions_least, vague.sessions) == (6 + 8 * 3, 6 + 32 * 3)
    assert vague.smallest_better is None
    assert "preflight" in vague.words
    sharp = estimate(plan(2), LOAD, noise=Noise(6, 0.01, 0.01, 0.01, 0.0))
    assert sharp.sessions == sharp.sessions_least
    assert sharp.smallest_better is not None
    assert 0.02 < sharp.smallest_better < 0.04
    assert sharp.half_width is not None


def test_the_expected_width_is_that_of_the_verdicts() -> None:
    from statistics import mean

    from chimera.tuning.verdicts import verdicts

    rules = plan(4, confirm=False, screen_rounds=8, metrics=("decode_tok_s",))
    expected = estimate(rules, LOAD, noise=Noise(6, 0.02, 0.02, 0.02, 0.0)).half_width
    halves = []
    for seed in range(30):
        for row in verdicts(rules, play(rules, Source(noise=0.02, seed=seed))[0]):
            assert row.ci is not None
            halves.append((row.ci[1] - row.ci[0]) / 2)
    assert mean(halves) == pytest.approx(expected, rel=0.1)


def test_agents_and_blocks_are_counted() -> None:
    rules = plan(2, confirm=False, screen_rounds=8, preflight=0)
    assert estimate(rules, Workload(requests=3, agents=2)).requests == 24 * 4 * 2
    blocks = plan(2, confirm=False, screen_rounds=8, preflight=0, one_load=True)
    cost = estimate(blocks, LOAD, pace=Pace(load_s=10, request_s=1))
    assert cost.requests == 24 * 3 + 1
    assert cost.seconds == pytest.approx(10 + 73)


def test_nothing_to_compare_costs_nothing() -> None:
    cost = estimate(plan(0), LOAD)
    assert cost.sessions == 0
    assert cost.words == "No session: every candidate has the baseline's effect: there is nothing to run."


def test_a_budget_shortens_the_confirmation_before_it_drops_cohorts() -> None:
    pace = Pace(load_s=3, request_s=2.5)
    rules = plan(8, cohorts=(tuple(f"c{n}" for n in range(1, 9)),), cohorts_planned=3)
    whole = estimate(rules, LOAD, pace=pace).seconds
    assert whole is not None
    assert within(rules, LOAD, pace, whole) == rules
    assert within(rules, LOAD, pace, whole - 1) == shorter(rules, confirm_max=31)
    tight = within(rules, LOAD, pace, 20 * 60)
    assert tight.cohorts_planned < 3
    assert (estimate(tight, LOAD, pace=pace).seconds or 0) <= 20 * 60


def test_a_search_is_estimated_before_its_first_cohort() -> None:
    pace = Pace(load_s=3, request_s=2.5)
    assert estimate(plan(0, cohorts_planned=2, confirm_rounds=8), LOAD).sessions == 6 + 2 * 42 + 8 * 3
    assert within(plan(0, cohorts_planned=3), LOAD, pace, 1.0).cohorts_planned == 1


def test_a_budget_that_nothing_fits_gives_the_shortest_plan() -> None:
    tight = within(plan(8), LOAD, Pace(3, 2.5), 1.0)
    assert (tight.confirm_max, tight.cohorts_planned) == (8, 0)


def shorter(rules: Plan, confirm_max: int) -> Plan:
    from dataclasses import replace

    return replace(rules, confirm_max=confirm_max)
