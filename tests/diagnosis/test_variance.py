"""Injected causes of scatter come back with their shares, within 10 points."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from chimera.diagnosis.variance import Attribution, Point, VarianceCause, attribute

N = 60


def variance(values: list[float]) -> float:
    middle = fmean(values)
    return sum((each - middle) ** 2 for each in values)


def shares_of(parts: dict[VarianceCause, list[float]]) -> dict[VarianceCause, float]:
    """The true shares: each part's own variance in the sum of all."""
    whole = sum(variance(each) for each in parts.values())
    return {name: variance(each) / whole for name, each in parts.items()}


def close(found: Attribution | None, truth: dict[VarianceCause, float]) -> None:
    assert found is not None
    assert sum(each.share for each in found.shares) == pytest.approx(1.0)
    for name, share in truth.items():
        assert found.of(name) == pytest.approx(share, abs=0.10), (name, truth, found.shares)
    for each in found.shares:
        if each.cause not in truth:
            assert each.share <= 0.10, (each, truth)


def apart(values: list[float], others: list[list[float]]) -> list[float]:
    """The values without what they share with the others by chance: only then has each part a share of its own."""
    columns: list[list[float]] = []
    for each in [[1.0] * len(values), *others]:
        column = list(each)
        for done in columns:
            along = sum(a * b for a, b in zip(column, done, strict=True))
            column = [a - along * b for a, b in zip(column, done, strict=True)]
        size = math.sqrt(sum(a * a for a in column))
        columns.append([a / size for a in column])
    for done in columns:
        along = sum(a * b for a, b in zip(values, done, strict=True))
        values = [a - along * b for a, b in zip(values, done, strict=True)]
    return values


def rate_set(
    draw: random.Random, *, noise: float = 0.01, foreign: float = 0.0, clocks: float = 0.0, drift: float = 0.0,
    length: float = 0.0, cold: float = 0.0, n: int = N,
) -> tuple[list[Point], dict[VarianceCause, float]]:  # fmt: skip
    """Rates whose logs are a sum of parts; each argument is the size of one."""
    parts: dict[VarianceCause, list[float]] = {"noise": [draw.gauss(0, noise) for _ in range(n)]}
    others = [draw.random() * 0.6 for _ in range(n)]
    clock = [1900 * (1 - 0.25 * draw.random()) for _ in range(n)]
    tokens = [draw.choice((32, 64, 128, 256)) for _ in range(n)]
    first = [draw.random() < 0.15 for _ in range(n)]
    if foreign:
        parts["foreign-load"] = [-foreign * each for each in others]
    if clocks:
        parts["clocks"] = [clocks * math.log(each) for each in clock]
    if drift:
        parts["drift"] = [-drift * i / n for i in range(n)]
    if length:
        parts["output-length"] = [-length * math.log(each) for each in tokens]
    if cold:
        parts["reloads"] = [-cold * each for each in first]
    parts["noise"] = apart(parts["noise"], [each for name, each in parts.items() if name != "noise"])
    points = [
        Point(
            50 * math.exp(sum(each[i] for each in parts.values())), 1000.0 + 2 * i,
            load_s=3.0 if cold and first[i] else 0.002, cold=bool(cold and first[i]), queue_s=0.001, cached_share=0.0,
            prompt_tokens=64, output_tokens=tokens[i] if length else 64, foreign_share=others[i] if foreign else 0.01,
            clock=clock[i] if clocks else 1900.0,
        )
        for i in range(n)
    ]  # fmt: skip
    return points, shares_of(parts)


CASES: dict[str, dict[str, Any]] = {
    "foreign load alone": {"foreign": 0.8, "noise": 0.02},
    "clocks alone": {"clocks": 0.9, "noise": 0.02},
    "drift alone": {"drift": 0.25, "noise": 0.02},
    "output length alone": {"length": 0.1, "noise": 0.02},
    "reloads alone": {"cold": 0.5, "noise": 0.02},
    "noise alone": {"noise": 0.05},
    "half noise, half foreign load": {"foreign": 0.3, "noise": 0.05},
    "foreign load and clocks": {"foreign": 0.5, "clocks": 1.0, "noise": 0.02},
    "drift and length": {"drift": 0.3, "length": 0.1, "noise": 0.02},
    "four at once": {"foreign": 0.5, "clocks": 0.8, "length": 0.08, "cold": 0.2, "noise": 0.03},
}


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("case", CASES)
def test_causes_injected_into_rates_come_back_within_ten_points(case: str, seed: int) -> None:
    points, truth = rate_set(random.Random(seed), **CASES[case])
    close(attribute(points, "rate"), truth)


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_a_mixture_comes_back_from_twenty_values_too(seed: int) -> None:
    points, truth = rate_set(random.Random(seed), n=24, foreign=0.8, cold=0.4, noise=0.02)
    close(attribute(points, "rate"), truth)


def ttft_set(
    draw: random.Random, which: Callable[[int], str], noise: float = 0.04
) -> tuple[list[Point], dict[VarianceCause, float]]:
    """Times to first token of 0.4 s to which load, queue or cache add or take their part."""
    parts: dict[VarianceCause, list[float]] = {"noise": [], "reloads": [], "queueing": [], "cache-hits": []}
    points = []
    for i in range(N):
        kind = which(i)
        scatter = draw.gauss(0, noise)
        prefill = 0.4 * math.exp(scatter)
        cached = 0.0
        load = queue = 0.0
        if kind == "load":
            load = 2.0 + draw.random()
        elif kind == "queue":
            queue = 0.5 + draw.random()
        elif kind == "cache":
            cached = 0.9
        computed = prefill * (1 - cached)
        total = computed + load + queue
        parts["noise"].append(scatter)
        parts["cache-hits"].append(math.log(1 - cached))
        parts["reloads"].append(math.log((computed + load) / computed))
        parts["queueing"].append(math.log((computed + queue) / computed))
        points.append(Point(total, 1000.0 + 3 * i, load_s=load, queue_s=queue, cached_share=cached, prompt_tokens=64,
                            output_tokens=64, foreign_share=0.01, clock=1900.0))  # fmt: skip
    return points, shares_of({name: each for name, each in parts.items() if variance(each) > 0})


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "kinds",
    [("load", "plain"), ("queue", "plain"), ("cache", "plain"), ("load", "queue", "plain", "plain"),
     ("plain",) * 7 + ("load",), ("queue", "cache", "plain")],
    ids=str,
)  # fmt: skip
def test_causes_injected_into_times_to_first_token_come_back_within_ten_points(
    kinds: tuple[str, ...], seed: int
) -> None:
    points, truth = ttft_set(random.Random(seed), lambda i: kinds[(i * 7) % len(kinds)])
    found = attribute(points, "ttft")
    assert found is not None
    for name, share in truth.items():
        if name != "noise":
            assert found.of(name) == pytest.approx(share, abs=0.10), (name, truth, found.shares)
    assert found.of("noise") + found.of("unexplained") == pytest.approx(truth["noise"], abs=0.10)


def test_a_drift_of_heat_is_named_by_the_clock_and_not_by_the_time() -> None:
    draw = random.Random(7)
    points = [
        Point(60 * (1 - 0.2 * i / N) * math.exp(draw.gauss(0, 0.005)), i, clock=1900 * (1 - 0.2 * i / N), load_s=0.0,
              foreign_share=0.0)
        for i in range(N)
    ]  # fmt: skip
    found = attribute(points, "rate")
    assert found is not None
    assert found.of("clocks") > 0.9
    blind = attribute([replace(each, clock=None) for each in points], "rate")
    assert blind is not None
    assert blind.of("drift") > 0.9


def test_outliers_that_nothing_explains_are_called_unexplained() -> None:
    draw = random.Random(3)
    points = [Point(50 * math.exp(draw.gauss(0, 0.01) - (0.4 if i % 20 == 7 else 0)), i) for i in range(N)]
    found = attribute(points, "rate")
    assert found is not None
    assert found.of("unexplained") > 0.8


def test_two_groups_are_called_so_with_their_middles() -> None:
    draw = random.Random(4)
    points = [Point((80 if draw.random() < 0.7 else 50) * math.exp(draw.gauss(0, 0.01)), i) for i in range(40)]
    found = attribute(points, "rate")
    assert found is not None
    assert found.modes is not None
    assert found.modes.low == pytest.approx(50, rel=0.03)
    assert found.modes.high == pytest.approx(80, rel=0.03)
    assert found.of("unexplained") > 0.8


def test_one_group_is_hardly_ever_called_two() -> None:
    draw = random.Random(5)
    wrong = 0
    for _ in range(400):
        n = draw.choice((8, 12, 20, 40))
        found = attribute([Point(50 * math.exp(draw.gauss(0, 0.1)), i) for i in range(n)], "rate")
        wrong += found is not None and found.modes is not None
    assert wrong <= 4


def test_nothing_is_read_into_noise() -> None:
    draw = random.Random(6)
    wrong = 0
    for _ in range(200):
        points = [
            Point(50 * math.exp(draw.gauss(0, 0.08)), i, load_s=0.001, queue_s=0.01 * draw.random(), output_tokens=64,
                  foreign_share=0.5 * draw.random(), clock=1900 * math.exp(draw.gauss(0, 0.03)))
            for i in range(20)
        ]  # fmt: skip
        found = attribute(points, "rate")
        wrong += found is not None and any(
            each.share > 0.25 and each.cause not in ("noise", "unexplained") for each in found.shares
        )
    assert wrong <= 6


def test_a_cause_that_pulls_the_wrong_way_is_none() -> None:
    """Rates that rise with the work of others are not slowed by it."""
    points = [Point(40 + 30 * i / N, 1000 - i, foreign_share=0.6 * i / N) for i in range(N)]
    found = attribute(points, "rate")
    assert found is not None
    assert found.of("foreign-load") == 0


def test_configurations_are_compared_within_themselves_only() -> None:
    draw = random.Random(8)
    points = [Point((20 if i % 2 else 80) * math.exp(draw.gauss(0, 0.01)), i, group=f"c{i % 2}") for i in range(40)]
    found = attribute(points, "rate")
    assert found is not None
    assert found.cv < 0.02
    assert found.modes is None


def test_too_few_values_are_not_shared_out() -> None:
    assert attribute([Point(50.0, i) for i in range(4)], "rate") is None


def test_equal_values_are_noise_of_nothing() -> None:
    found = attribute([Point(50.0, i) for i in range(9)], "rate")
    assert found is not None
    assert found.shares[0].cause == "noise"
