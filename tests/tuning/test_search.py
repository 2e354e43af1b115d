from __future__ import annotations

from math import log

import pytest

from chimera.domain.options import Options
from chimera.tuning.search import Axes, grid, propose, size

AXES: Axes = {
    "num_gpu": (0, 9, 18, 27, 35),
    "num_ctx": (2048, 4096, 8192, 16384),
    "num_batch": (128, 256, 512),
    "kv_cache_type": ("q4_0", "q8_0", "f16"),
}


def cost(options: Options) -> float:
    """A made-up machine: more layers and a larger batch are faster, nothing else matters."""
    return -log(10 + (options.num_gpu or 0)) - 0.1 * log(options.num_batch or 1)


def test_a_grid_holds_every_combination_once() -> None:
    points = grid({"num_thread": (1, 2), "kv_cache_type": ("f16", "q4_0")})
    assert len(points) == len(set(points)) == size({"num_thread": (1, 2), "kv_cache_type": ("f16", "q4_0")}) == 4
    assert points[0] == Options(num_thread=1, kv_cache_type="f16")


def test_the_first_cohort_begins_with_the_presets_and_the_current_configuration() -> None:
    preset = Options(num_gpu=35, num_ctx=2048, num_batch=512, kv_cache_type="f16")
    elsewhere = Options(num_gpu=80, num_ctx=2048, num_batch=512, kv_cache_type="f16")
    cohort = propose(AXES, {}, seed=7, cohort=1, first=[preset, elsewhere])
    assert cohort[0] == preset
    assert elsewhere not in cohort
    assert len(cohort) == len(set(cohort)) == 8
    assert set(cohort) <= set(grid(AXES))


def test_the_same_finished_trials_give_the_same_cohort_in_whatever_order_they_come() -> None:
    first = propose(AXES, {}, seed=7, cohort=1)
    finished: dict[Options, float | None] = {options: cost(options) for options in first}
    finished[first[2]] = None
    second = propose(AXES, finished, seed=7, cohort=2)
    assert second == propose(AXES, dict(reversed(finished.items())), seed=7, cohort=2)
    assert second != propose(AXES, finished, seed=8, cohort=2)
    assert not set(second) & set(first)


def test_later_cohorts_are_better_than_chance() -> None:
    chance = sum(map(cost, grid(AXES))) / size(AXES)
    finished: dict[Options, float | None] = {}
    means = []
    for seed in range(3):
        finished.clear()
        for cohort in range(1, 5):
            found = propose(AXES, finished, seed=seed, cohort=cohort)
            finished |= {options: cost(options) for options in found}
        means.append(sum(map(cost, found)) / len(found))
    assert sum(means) / len(means) < chance - 0.2


def test_what_is_not_allowed_is_never_proposed() -> None:
    cohort = propose(AXES, {}, seed=1, cohort=1, allowed=lambda options: (options.num_gpu or 0) < 10)
    assert len(cohort) == 8
    assert {options.num_gpu for options in cohort} <= {0, 9}


@pytest.mark.parametrize("left", [0, 1, 3])
def test_an_almost_used_up_space_gives_what_it_still_has(left: int) -> None:
    axes: Axes = {"num_thread": (1, 2, 3, 4, 5), "num_batch": (128, 256)}
    points = grid(axes)
    finished: dict[Options, float | None] = dict.fromkeys(points[left:], 0.0)
    assert set(propose(axes, finished, seed=3, cohort=2)) == set(points[:left])
