from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.options import Options
from chimera.domain.run import Trial
from chimera.domain.verdict import Metric
from chimera.tuning.objectives import Point, Recommendation, pareto_front, points, recommend
from chimera.tuning.plan import Outcome, Plan
from chimera.tuning.protocol import standing

from .scripted import Source, play

METRICS: tuple[Metric, ...] = ("decode_tok_s", "ttft_s", "vram_bytes")


def contexts(*windows: int) -> tuple[Trial, ...]:
    found = [Trial("c0", "baseline", Options(num_ctx=4096))]
    found += [Trial(f"c{place}", "candidate", Options(num_ctx=window)) for place, window in enumerate(windows, start=1)]
    return tuple(found)


def with_vram(outcomes: list[Outcome], gigabytes: dict[str, float]) -> list[Outcome]:
    return [
        replace(one, costs={**one.costs, "vram_bytes": log(gigabytes[one.session.candidate] * 1e9)}) for one in outcomes
    ]


def advice(gains: dict[str, float], gigabytes: dict[str, float]) -> Recommendation:
    rules = Plan(contexts(2048, 8192), 7, metrics=METRICS, confirm_rounds=12)
    outcomes, _ = play(rules, Source(gains, noise=0.003))
    return recommend(rules, with_vram(outcomes, gigabytes))


EVEN = {"c0": 4.0, "c1": 4.0, "c2": 4.0}


def test_without_a_difference_the_default_is_kept() -> None:
    said = advice({}, EVEN)
    assert (said.candidate, said.keep_default) == ("c0", True)
    assert said.words == "Keep the default: there is no practical difference."
    assert said.equals == ("c1", "c2")


def test_the_largest_proven_gain_wins_and_its_figures_are_told() -> None:
    said = advice({"c1": 0.10, "c2": 0.20}, EVEN)
    assert (said.candidate, said.keep_default) == ("c2", False)
    assert "interval" in said.words
    assert "12 rounds" in said.words
    assert said.equals == ()


def test_among_two_equal_winners_the_one_with_less_vram_is_taken() -> None:
    said = advice({"c1": 0.100, "c2": 0.104}, {"c0": 4.0, "c1": 3.0, "c2": 6.0})
    assert said.candidate == "c1"
    assert said.equals == ("c2",)
    assert "needs more VRAM" in said.words


def test_a_hair_less_vram_does_not_displace_the_faster_one() -> None:
    said = advice({"c1": 0.100, "c2": 0.104}, {"c0": 4.0, "c1": 5.95, "c2": 6.0})
    assert said.candidate == "c2"


def test_as_fast_as_the_default_with_less_vram_is_recommended() -> None:
    said = advice({}, {"c0": 4.0, "c1": 3.0, "c2": 2.0})
    assert (said.candidate, said.keep_default) == ("c2", False)
    assert "no practical difference" in said.words
    assert "c0" in said.equals


def test_less_vram_at_a_lower_speed_is_no_equal() -> None:
    said = advice({"c1": -0.2, "c2": -0.2}, {"c0": 4.0, "c1": 3.0, "c2": 2.0})
    assert said.keep_default
    assert said.words == "Keep the default: nothing that was tried is better."


def test_what_a_winner_costs_elsewhere_is_said() -> None:
    said = advice({"c1": 0.2}, {"c0": 4.0, "c1": 6.0, "c2": 4.0})
    assert said.candidate == "c1"
    assert said.words.endswith("It is worse in VRAM.")


def test_nothing_is_recommended_before_the_rounds_are_there() -> None:
    rules = Plan(contexts(2048), 7, confirm_rounds=12)
    outcomes, _ = play(rules, Source({"c1": 0.5}))
    said = recommend(rules, outcomes[:-1])
    assert said.keep_default
    assert "so far" in said.words
    assert not recommend(rules, outcomes).keep_default


def test_points_hold_the_medians_in_their_own_units() -> None:
    rules = Plan(contexts(2048), 7, metrics=METRICS, confirm_rounds=8)
    outcomes, _ = play(rules, Source({"c1": 0.1}, noise=0.001))
    now = standing(rules, with_vram(outcomes, {"c0": 4.0, "c1": 3.0}))
    [base, other] = points(rules, now)
    assert base.values["decode_tok_s"] == pytest.approx(99.5, abs=1)
    assert other.values["vram_bytes"] == pytest.approx(3e9)
    assert other.values["num_ctx"] == 2048


def test_the_front_keeps_every_trade_and_drops_what_is_beaten() -> None:
    fast = Point("fast", {"decode_tok_s": 100.0, "vram_bytes": 8.0, "num_ctx": 2048.0})
    small = Point("small", {"decode_tok_s": 50.0, "vram_bytes": 4.0, "num_ctx": 2048.0})
    long = Point("long", {"decode_tok_s": 90.0, "vram_bytes": 8.0, "num_ctx": 8192.0})
    beaten = Point("beaten", {"decode_tok_s": 90.0, "vram_bytes": 8.0, "num_ctx": 2048.0})
    aims = ("decode_tok_s", "vram_bytes", "num_ctx")
    assert [one.candidate for one in pareto_front([fast, small, long, beaten], aims)] == ["fast", "small", "long"]
    assert [one.candidate for one in pareto_front([fast, small, long, beaten], aims[:1])] == ["fast"]


def test_an_unknown_figure_beats_nothing() -> None:
    known = Point("known", {"decode_tok_s": 90.0, "vram_bytes": 8.0})
    unknown = Point("unknown", {"decode_tok_s": 100.0})
    assert len(pareto_front([known, unknown], ("decode_tok_s", "vram_bytes"))) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10))
def test_a_front_is_never_empty_and_everything_off_it_is_beaten_by_it(pairs: list[tuple[int, int]]) -> None:
    every = [
        Point(str(place), {"decode_tok_s": float(rate), "ttft_s": float(first)})
        for place, (rate, first) in enumerate(pairs)
    ]
    front = pareto_front(every, ("decode_tok_s", "ttft_s"))
    assert front
    for one in every:
        beaten = any(
            other.values["decode_tok_s"] >= one.values["decode_tok_s"]
            and other.values["ttft_s"] <= one.values["ttft_s"]
            and other.values != one.values
            for other in front
        )
        assert beaten is (one not in front)
