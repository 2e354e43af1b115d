from __future__ import annotations

from dataclasses import replace
from math import exp, expm1, log, log1p, sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from chimera.domain.measurement import Measurement
from chimera.tuning.statistics import (
    Noise,
    Paired,
    behind,
    centred,
    confirmation_rounds,
    describe,
    drift,
    holm,
    interval,
    judge,
    level_for,
    natural,
    noise,
    paired,
    power,
    rounds_in_order,
    rounds_to_decide,
    session_costs,
    word_for,
)


def request(rate: float = 100.0, ttft: float = 0.2, **more: object) -> Measurement:
    base = Measurement("measure", 0.0, 1.0, ttft_s=ttft, decode_tok_s=rate)
    return replace(base, **more)  # type: ignore[arg-type]  # any field of it


# One session


def test_a_session_is_worth_the_median_of_its_valid_requests() -> None:
    requests = [
        request(1000.0, role="warmup"),
        request(90.0),
        request(100.0),
        request(400.0),
        request(5000.0, void_reason="cache-hit"),
    ]
    costs = session_costs(requests, output_tokens=64)
    assert natural("decode_tok_s", costs["decode_tok_s"]) == pytest.approx(100.0)


def test_a_session_without_a_valid_request_has_no_value() -> None:
    assert session_costs([request(role="warmup"), request(void_reason="error")], output_tokens=64) == {}


def test_unknown_metrics_are_left_out_rather_than_zero() -> None:
    costs = session_costs([request(ttft=0.0, decode_tok_s=None)], output_tokens=64, vram_bytes=2e9)
    assert set(costs) == {"vram_bytes"}
    assert natural("vram_bytes", costs["vram_bytes"]) == pytest.approx(2e9)


def test_completion_time_is_that_of_the_slowest_agent() -> None:
    requests = [request(100.0, 0.5, agent=0), request(50.0, 2.0, agent=1), request(60.0, 1.0, agent=0)]
    costs = session_costs(requests, output_tokens=101)
    assert natural("completion_s", costs["completion_s"]) == pytest.approx(2.0 + 100 / 50)


# Differences


def test_a_faster_candidate_has_an_effect_above_one() -> None:
    rounds = {number: {"c0": -log(100.0), "c1": -log(110.0)} for number in range(1, 6)}
    said = judge(paired(rounds, "c1", "c0"))
    assert said.effect == pytest.approx(1.10)
    assert said.word == "better"


def test_only_rounds_with_both_are_paired() -> None:
    rounds = {1: {"c0": 1.0, "c1": 0.0}, 2: {"c0": 9.0}, 3: {"c1": 9.0}}
    assert paired(rounds, "c1", "c0") == Paired(1, 1.0, 0.0)


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=30).filter(lambda values: max(values) - min(values) > 1e-6),
    st.integers(1, 8),
)
def test_the_interval_is_that_of_the_paired_t_test(differences: list[float], together: int) -> None:
    level = level_for(together)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(level)
    assert interval(describe(differences), level) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_differences_changes_nothing_at_all(differences: list[float], random: Random) -> None:
    mixed = differences.copy()
    random.shuffle(mixed)
    assert describe(mixed) == describe(differences)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.0201, 1.10, "better"),
        (1.0199, 1.10, "undecided"),
        (0.90, 0.9799, "worse"),
        (0.90, 0.9801, "undecided"),
        (0.9801, 1.0199, "same"),
        (0.9801, 1.0201, "undecided"),
        (0.9799, 1.0199, "undecided"),
        (0.90, 1.10, "undecided"),
    ],
)
def test_words_change_exactly_at_the_edges_of_the_band(low: float, high: float, word: str) -> None:
    assert word_for(log(low), log(high), 0.02) == word


def test_a_gain_of_exactly_the_band_is_not_better() -> None:
    assert judge(Paired(10, log1p(0.02), 0.0)).word == "undecided"


def test_two_rounds_are_not_enough_however_clear_they_look() -> None:
    said = judge(Paired(2, 0.5, 0.001))
    assert (said.word, said.ci, said.n) == ("insufficient", None, 2)
    assert said.reason == "2 complete rounds; a verdict needs at least 3."
    assert judge(Paired(3, 0.5, 0.001)).word == "better"


def test_no_common_round_is_insufficient_and_claims_no_effect() -> None:
    said = judge(Paired(0, 0.0, 0.0))
    assert (said.word, said.effect, said.ci, said.n) == ("insufficient", None, None, 0)


def test_judging_several_together_widens_each_interval() -> None:
    pairs = Paired(8, 0.04, 0.022)
    alone, both = judge(pairs, together=1), judge(pairs, together=2)
    assert alone.ci is not None
    assert both.ci is not None
    assert both.ci[0] < alone.ci[0] < alone.ci[1] < both.ci[1]
    assert (alone.level, both.level) == (0.95, 0.975)
    assert (alone.word, both.word) == ("better", "undecided")


def test_undecided_tells_how_many_more_rounds_would_decide() -> None:
    pairs = Paired(8, 0.05, 0.05)
    said = judge(pairs)
    assert said.word == "undecided"
    needed = rounds_to_decide(pairs, together=1, band=0.02)
    assert needed is not None
    assert said.reason == f"Needs about {needed - 8} more rounds at this noise."
    assert judge(Paired(needed, 0.05, 0.05)).word == "better"
    assert judge(Paired(needed - 1, 0.05, 0.05)).word == "undecided"


def test_a_difference_on_the_edge_of_the_band_promises_no_number_of_rounds() -> None:
    said = judge(Paired(8, log1p(0.02), 0.05))
    assert said.reason is not None
    assert "Too close to the edge" in said.reason


def test_absurd_values_from_a_file_still_give_finite_figures() -> None:
    said = judge(describe([-600.0, 0.0, 600.0]), together=8)
    assert said.ci is not None
    assert all(0 < value < float("inf") for value in said.ci)


# Choosing


def test_holm_stops_at_the_first_that_is_not_clear() -> None:
    assert holm({"a": 0.01, "b": 0.024, "c": 0.20}) == {"a", "b"}
    assert holm({"a": 0.01, "b": 0.025, "c": 0.03}) == {"a"}
    assert holm({"a": 0.017, "b": 0.001, "c": 0.02}) == {"a", "b", "c"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}) == set()


def test_being_behind_is_tested_on_one_side_only() -> None:
    rounds = {n: {"lead": 0.0 + 0.001 * n, "late": 0.05 + 0.003 * (n % 3)} for n in range(1, 6)}
    late = behind(paired(rounds, "lead", "late"))
    differences = [values["late"] - values["lead"] for values in rounds.values()]
    assert late == pytest.approx(stats.ttest_1samp(differences, 0, alternative="greater").pvalue)
    assert behind(paired(rounds, "late", "lead")) == pytest.approx(1 - late)


def test_centred_values_are_free_of_what_a_round_shares() -> None:
    rounds = {n: {"a": 1.0 + drifted, "b": 1.1 + drifted} for n, drifted in enumerate([0.0, 0.5, 2.0], start=1)}
    means = centred(rounds, ["a", "b"])
    assert means["b"] - means["a"] == pytest.approx(0.1)
    assert means["a"] + means["b"] == pytest.approx(0.0)


def test_an_arm_that_missed_the_slow_round_does_not_look_good_by_it() -> None:
    rounds = {
        1: {"a": 1.00, "b": 1.02, "c": 1.04},
        2: {"a": 1.00, "b": 1.02, "c": 1.04},
        3: {"a": 1.50, "c": 1.54},
    }
    means = centred(rounds, ["a", "b", "c"])
    assert means["b"] - means["a"] == pytest.approx(0.02)
    assert sorted(means, key=lambda arm: means[arm]) == ["a", "b", "c"]


def test_an_arm_without_a_value_ranks_last() -> None:
    assert centred({1: {"a": 1.0, "b": 2.0}}, ["a", "b", "c"])["c"] == float("inf")


# Noise


def test_a_slow_trend_is_noise_of_the_sessions_but_not_of_the_pairs() -> None:
    found = noise([0.02 * step for step in range(6)])
    assert found is not None
    assert found.sd > 0.03
    assert found.steady_sd == pytest.approx(0.0, abs=1e-9)
    assert found.lag1 is not None
    assert found.lag1 > 0.4


def test_robust_cv_is_not_moved_by_one_outlier() -> None:
    calm = noise([0.00, 0.01, -0.01, 0.005, -0.005, 0.0])
    shaken = noise([0.00, 0.01, -0.01, 0.005, -0.005, 2.0])
    assert calm is not None
    assert shaken is not None
    assert shaken.sd > 100 * calm.sd
    assert shaken.cv < 3 * calm.cv


def test_alternating_sessions_have_a_negative_autocorrelation_and_constant_ones_none() -> None:
    found = noise([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert found is not None
    assert found.lag1 == pytest.approx(-5 / 6)
    constant = noise([1.0, 1.0, 1.0])
    assert constant is not None
    assert constant.lag1 is None


def test_two_sessions_tell_no_noise() -> None:
    assert noise([0.0, 0.1]) is None


def of(sd: float, n: int = 6) -> Noise:
    return Noise(n, sd, sd, sd, 0.0)


def test_the_smallest_visible_gain_is_the_mde_and_the_band() -> None:
    found = of(0.02)
    expected = (stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7)) * sqrt(2) * 0.02 / sqrt(8)
    assert found.mde(8) == pytest.approx(expm1(expected))
    assert found.smallest_better(8, 0.02) == pytest.approx(expm1(expected) + 0.02)
    assert "coarse" in found.words(8, 0.02)
    assert "coarse" not in of(0.005).words(8, 0.02)


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("sd", [0.015, 0.03])
def test_power_agrees_with_the_noncentral_t_distribution(n: int, sd: float) -> None:
    found, _ = power(sd, n, together=2, band=0.02, effect=0.05)
    shift = (log1p(0.05) - log1p(0.02)) / (sd / sqrt(n))
    assert found == pytest.approx(stats.nct.sf(stats.t.ppf(1 - 0.05 / 4, n - 1), n - 1, shift), abs=0.003)


def test_the_chance_of_same_agrees_with_simulation() -> None:
    random = Random(3)
    _, expected = power(0.02, 12, together=2, band=0.02, effect=0.05)
    words = [judge(describe([random.gauss(0, 0.02) for _ in range(12)]), together=2).word for _ in range(2000)]
    assert words.count("same") / 2000 == pytest.approx(expected, abs=0.03)


@settings(deadline=None)  # the first plan of each size fills a table
@given(st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.integers(1, 8), st.integers(1, 40))
def test_more_noise_never_plans_fewer_rounds_and_bounds_hold(one: float, other: float, k: int, most: int) -> None:
    low, high = sorted([one, other])
    calm = confirmation_rounds(of(low), together=k, most=most)
    loud = confirmation_rounds(of(high), together=k, most=most)
    assert min(8, most) <= calm <= loud <= most


def test_calm_machines_get_the_fewest_rounds_and_loud_ones_the_most() -> None:
    assert confirmation_rounds(of(0.001), together=2) == 8
    assert 8 < confirmation_rounds(of(0.01), together=2) < 32
    assert confirmation_rounds(of(0.05), together=2) == 32


def test_unknown_noise_plans_twenty_rounds() -> None:
    assert confirmation_rounds(None, together=2) == 20
    assert confirmation_rounds(None, together=2, most=12) == 12


# Drift


def control(change: float, wobble: float, n: int = 20, seed: int = 5) -> list[tuple[float, float]]:
    random = Random(seed)
    return [(60.0 * step, -log(100 * (1 + change * step / (n - 1))) + random.gauss(0, wobble)) for step in range(n)]


def test_a_control_that_loses_fifteen_percent_is_flagged_with_its_sign() -> None:
    found = drift("decode_tok_s", control(-0.15, 0.01))
    assert found is not None
    assert found.flagged
    assert found.change == pytest.approx(-0.15, abs=0.03)
    assert found.tau < -0.8


def test_a_rising_time_to_first_token_has_a_positive_change() -> None:
    found = drift("ttft_s", [(float(step), log(0.2) + 0.01 * step) for step in range(10)])
    assert found is not None
    assert found.flagged
    assert found.change == pytest.approx(exp(0.09) - 1)


@pytest.mark.parametrize(("change", "wobble"), [(-0.02, 0.001), (0.0, 0.002), (0.0, 0.0)])
def test_a_control_that_moves_less_than_three_percent_is_not_flagged(change: float, wobble: float) -> None:
    found = drift("decode_tok_s", control(change, wobble))
    assert found is not None
    assert not found.flagged


def test_noise_without_a_trend_is_seldom_called_drift() -> None:
    flagged = [found.flagged for seed in range(200) if (found := drift("decode_tok_s", control(0, 0.05, 12, seed)))]
    assert len(flagged) == 200
    assert sum(flagged) <= 20


def test_four_points_carry_no_drift() -> None:
    assert drift("decode_tok_s", control(-0.15, 0.0)[:4]) is None


# Rounds from order


@pytest.mark.parametrize(
    ("loads", "rounds"),
    [
        ("abcabc", [1, 1, 1, 2, 2, 2]),
        ("abccab", [1, 1, 1, 2, 2, 2]),
        ("abcbcab", [1, 1, 1, 2, 2, 2, 3]),
        ("abab", [1, 1, 2, 2]),
        ("aabb", None),
        ("aaabbb", None),
        ("abacab", None),
        ("ababc", None),
        ("aaa", None),
    ],
)
def test_rounds_are_read_only_off_an_order_that_alternates(loads: str, rounds: list[int] | None) -> None:
    assert rounds_in_order(list(loads)) == rounds
