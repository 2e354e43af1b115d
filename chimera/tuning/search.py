"""Which candidates to try: all of a small space, cohorts of a large one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from random import Random
from typing import TYPE_CHECKING

from chimera.domain.options import OPTION_NAMES, Options, OptionValue

from .plan import COHORT

if TYPE_CHECKING:
    import optuna

_PATIENCE = 12
"""Proposals for each wanted candidate before the rest is drawn at random from what is left."""
_DRAWS = 10_000
"""Largest space whose rest is listed whole; of a larger one points are drawn."""

Axes = Mapping[str, Sequence[OptionValue]]
"""Values of each option that is varied, in their natural order."""


def size(axes: Axes) -> int:
    """Points of the space, before any are merged."""
    return prod(len(values) for values in axes.values())


def grid(axes: Axes) -> list[Options]:
    """Every combination, the last axis fastest."""
    return [Options.of(dict(zip(axes, point, strict=True))) for point in product(*axes.values())]


def propose(
    axes: Axes,
    finished: Mapping[Options, float | None],
    *,
    seed: int,
    cohort: int,
    wanted: int = COHORT,
    first: Sequence[Options] = (),
    allowed: Callable[[Options], bool] = lambda options: True,
) -> list[Options]:
    """The candidates of the next cohort, fewer where the space has no more.

    Optuna proposes and decides nothing. Its study lives in memory and is rebuilt from the finished trials, so the same
    arguments give the same cohort in any process.

    Args:
        axes: The space.
        finished: Every candidate so far as a point of the space; its log cost less the baseline's, or None where it
            failed or has no value.
        seed: Of the run.
        cohort: From 1.
        wanted: How many.
        first: Presets and the current configuration, which are tried before anything else; those that are no point
            of the space are left out.
        allowed: False for points that are known not to fit or to have the effect of another; they are passed over.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = sorted(axes, key=OPTION_NAMES.index)
    steps: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(0, len(axes[name]) - 1) for name in names
    }
    sampler = optuna.samplers.TPESampler(seed=_mixed(seed, cohort), n_startup_trials=wanted)
    study = optuna.create_study(sampler=sampler)
    known = sorted(finished.items(), key=lambda item: repr(item[0]))
    for options, value in known:
        if (point := _point(options, axes, names)) is not None:
            state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
            study.add_trial(optuna.trial.create_trial(params=point, distributions=steps, value=value, state=state))
    for options in first:
        if (point := _point(options, axes, names)) is not None:
            study.enqueue_trial(point, skip_if_exists=True)

    seen = set(finished)
    chosen: list[Options] = []
    for _ in range(_PATIENCE * wanted):
        if len(chosen) == wanted:
            return chosen
        trial = study.ask(steps)
        options = _options(trial.params, axes)
        if options in seen or not allowed(options):
            _refuse(study, trial)
        else:
            chosen.append(options)
        seen.add(options)
    rest = _rest(axes, names, seen, allowed, wanted - len(chosen), Random(_mixed(seed, cohort)))  # noqa: S311 - repeatable by its seed, no secret
    return chosen + rest


def _point(options: Options, axes: Axes, names: Sequence[str]) -> dict[str, int] | None:
    """Its place on each axis: neighbours are then near each other for the sampler, whatever the unit."""
    values = options.as_dict()
    if set(values) != set(names) or any(values[name] not in axes[name] for name in names):
        return None
    return {name: list(axes[name]).index(values[name]) for name in names}


def _options(point: Mapping[str, int], axes: Axes) -> Options:
    return Options.of({name: axes[name][place] for name, place in point.items()})


def _refuse(study: optuna.Study, trial: optuna.Trial) -> None:
    import optuna

    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _rest(
    axes: Axes,
    names: Sequence[str],
    seen: set[Options],
    allowed: Callable[[Options], bool],
    wanted: int,
    random: Random,
) -> list[Options]:
    """Points that the sampler never came to, in random order."""
    if size(axes) <= _DRAWS:
        points = [_options(dict(zip(names, place, strict=True)), axes) for place in _places(axes, names)]
        random.shuffle(points)
    else:
        points = [_options({name: random.randrange(len(axes[name])) for name in names}, axes) for _ in range(_DRAWS)]
    found = [options for options in dict.fromkeys(points) if options not in seen and allowed(options)]
    return found[:wanted]


def _places(axes: Axes, names: Sequence[str]) -> product[tuple[int, ...]]:
    return product(*(range(len(axes[name])) for name in names))


def _mixed(seed: int, cohort: int) -> int:
    """A seed of its own for each cohort, the same in every process."""
    return Random(f"{seed} cohort {cohort}").randrange(2**32)  # noqa: S311 - a seed, no secret
