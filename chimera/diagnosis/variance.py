"""What the scatter of a set of measurements comes from: the variance of log values, shared out among causes.

Each cause that can be seen becomes a regressor: the exact effect of load and queue on a time to first token, the cached
part of the prompt, output and prompt length, the share of the CPU that others took, clocks. Those enter that are
significant and pull in the direction that they can. A cause's share is the variance of its fitted effect (freed of what
chance alone would give it) in the sum of those of all and of the rest. The rest goes first to a straight drift, then to
plain scatter as far as it looks like it; what remains is called unexplained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

VarianceCause = Literal[
    "reloads", "cache-hits", "output-length", "prompt-length", "queueing", "foreign-load", "clocks", "drift", "noise",
    "unexplained",
]  # fmt: skip
_MEASURED: tuple[VarianceCause, ...] = (
    "reloads", "queueing", "cache-hits", "prompt-length", "output-length", "clocks", "foreign-load",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement as the attribution needs it; None where nothing is known."""

    value: float
    """Tokens a second, or seconds to the first token; above 0."""
    at: float
    """When, in seconds; only differences count."""
    group: str = ""
    """Configuration: values are compared within one only."""
    load_s: float | None = None
    cold: bool = False
    queue_s: float | None = None
    cached_share: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    foreign_share: float | None = None
    """Of all cores, 0 to 1, during it."""
    clock: float | None = None
    """SM clock in MHz, or as a part of its maximum."""
    throttle_share: float | None = None
    """Part of its time in which clocks were held down, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the variance that one cause explains."""

    cause: VarianceCause
    share: float
    """0 to 1."""
    effect: float | None = None
    """Ratio of values between the cause's largest and smallest presence, above 0; None for what has no size."""


@dataclass(frozen=True, slots=True)
class Modes:
    """Two groups of values instead of one."""

    low: float
    high: float
    low_share: float
    """Part of the measurements in the lower group."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where the scatter of a set comes from."""

    metric: Literal["rate", "ttft"]
    n: int
    cv: float
    """Standard deviation of the log values: the coefficient of variation for small scatter."""
    shares: tuple[Share, ...]
    """Largest first; they sum to 1."""
    modes: Modes | None = None

    def of(self, cause: VarianceCause) -> float:
        """Share of one cause, 0 where it has none."""
        return next((each.share for each in self.shares if each.cause == cause), 0.0)


def attribute(points: Sequence[Point], metric: Literal["rate", "ttft"]) -> Attribution | None:
    """Share out the variance of log values; None with fewer than 5 usable points."""
    usable = sorted((each for each in points if 0 < each.value < math.inf), key=lambda each: each.at)
    if len(usable) < 5:
        return None
    y = _centred([math.log(each.value) for each in usable], [each.group for each in usable])
    total = _dot(y, y)
    n = len(y)
    spread = math.sqrt(total / (n - 1))
    modes = _modes(y, fmean(math.log(each.value) for each in usable))
    if spread < 1e-4:
        return Attribution(metric, n, spread, (Share("noise", 1.0),))
    groups = [each.group for each in usable]
    columns = {
        name: _centred(column, groups) for name in _MEASURED if (column := _column(name, usable, metric)) is not None
    }
    signs = {"reloads": 1, "queueing": 1, "cache-hits": 1, "clocks": 1, "foreign-load": -1, "prompt-length": 0}
    chosen = _forward(y, columns, {**signs, "output-length": 0}, 1 if metric == "rate" else -1)
    shares: list[Share] = []
    explained = 0.0
    residual = y
    if chosen:
        picked = [columns[name] for name in chosen]
        weights = _fit(y, picked)
        residual = _residual(y, picked, weights)
        rest = _dot(residual, residual) / max(1, n - len(chosen) - 1)
        own = [max(0.0, w * w * _dot(x, x) - rest) for w, x in zip(weights, picked, strict=True)]
        whole = sum(own) + rest * (n - 1)
        for name, weight, part in zip(chosen, weights, own, strict=True):
            column = columns[name]
            shares.append(Share(name, part / whole, math.exp(abs(weight) * (max(column) - min(column)))))
        explained = sum(each.share for each in shares)
    left = 1.0 - explained
    drift, residual = _drift(residual, [each.at for each in usable])
    if drift is not None:
        share = left * drift[0]
        shares.append(Share("drift", share, math.exp(abs(drift[1]))))
        left -= share
    noise = left * _plain_part(residual)
    shares.append(Share("noise", noise))
    shares.append(Share("unexplained", max(0.0, left - noise)))
    kept = sorted((each for each in shares if each.share > 0.005), key=lambda each: -each.share)
    kept_whole = sum(each.share for each in kept) or 1.0
    return Attribution(
        metric, n, spread, tuple(Share(each.cause, each.share / kept_whole, each.effect) for each in kept), modes
    )


# -- what can be seen of each cause ----------------------------------------------------------------------------------


def _column(name: VarianceCause, points: Sequence[Point], metric: str) -> list[float] | None:
    """The cause's presence in each point, scaled so that its effect on the log value is about linear.

    None where it is not known for all points, or too small or constant to matter.
    """
    values: list[float | None]
    material = 0.0
    if name == "reloads" or name == "queueing":
        known = [each.load_s if name == "reloads" else each.queue_s for each in points]
        if name == "reloads" and all(each is None for each in known):
            values = [1.0 if each.cold else 0.0 for each in points]
            material = 0.5
        elif metric == "ttft":
            # The exact effect of a part on the log of the sum; the smallest rest keeps a division sane.
            values = [
                None if part is None else -math.log(max(0.02, 1 - part / each.value))
                for part, each in zip(known, points, strict=True)
            ]
            material = 0.05
        else:
            values = [None if part is None else part for part in known]
            material = 0.25
    elif name == "cache-hits":
        values = [None if each.cached_share is None else math.log(max(0.02, 1 - each.cached_share)) for each in points]
        values = [None if each is None else -each for each in values]
        material = 0.1
    elif name == "prompt-length" or name == "output-length":
        lengths = [each.prompt_tokens if name == "prompt-length" else each.output_tokens for each in points]
        values = [None if not each or each <= 0 else math.log(each) for each in lengths]
        material = 0.1
    elif name == "foreign-load":
        values = [each.foreign_share for each in points]
        material = 0.05
    else:
        clocks = [each.clock for each in points]
        values = [None if not each or each <= 0 else math.log(each) for each in clocks]
        material = 0.02
        if any(each is None for each in values) or _range(values) < material:
            values = [None if each.throttle_share is None else 1 - each.throttle_share for each in points]
    column = [each for each in values if each is not None]
    if len(column) < len(points) or max(column) - min(column) < material:
        return None
    return column


def _range(values: Sequence[float | None]) -> float:
    known = [each for each in values if each is not None]
    return max(known) - min(known) if known else 0.0


# -- least squares on a few centred columns --------------------------------------------------------------------------


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _centred(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    means = {
        name: fmean(value for value, group in zip(values, groups, strict=True) if group == name) for name in set(groups)
    }
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gaussian elimination with pivoting; None where columns depend on each other."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    scale = max((abs(rows[i][i]) for i in range(n)), default=0.0)
    for i in range(n):
        pivot = max(range(i, n), key=lambda row: abs(rows[row][i]))
        if abs(rows[pivot][i]) <= 1e-10 * scale or scale == 0:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for row in range(i + 1, n):
            factor = rows[row][i] / rows[i][i]
            for column in range(i, n + 1):
                rows[row][column] -= factor * rows[i][column]
    solution = [0.0] * n
    for i in reversed(range(n)):
        rest = sum(rows[i][column] * solution[column] for column in range(i + 1, n))
        solution[i] = (rows[i][n] - rest) / rows[i][i]
    return solution


def _unit(column: Sequence[float]) -> list[float]:
    size = math.sqrt(_dot(column, column)) or 1.0
    return [value / size for value in column]


def _fit(y: Sequence[float], columns: Sequence[Sequence[float]]) -> list[float]:
    """Coefficients of the columns; zeros where they depend on each other."""
    sizes = [math.sqrt(_dot(each, each)) or 1.0 for each in columns]
    units = [_unit(each) for each in columns]
    solved = _solve([[_dot(a, b) for b in units] for a in units], [_dot(a, y) for a in units])
    return [0.0] * len(columns) if solved is None else [w / size for w, size in zip(solved, sizes, strict=True)]


def _residual(y: Sequence[float], columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    return [
        value - sum(weight * column[i] for weight, column in zip(weights, columns, strict=True))
        for i, value in enumerate(y)
    ]


def _explained(y: Sequence[float], columns: Sequence[Sequence[float]]) -> float:
    if not columns:
        return 0.0
    units = [_unit(each) for each in columns]
    right = [_dot(each, y) for each in units]
    solved = _solve([[_dot(a, b) for b in units] for a in units], right)
    return 0.0 if solved is None else max(0.0, _dot(solved, right))


def _critical_t(df: int) -> float:
    """Two-sided 0.5 % point of Student's t (Cornish-Fisher about the normal point 2.807; exact where it is poor)."""
    exact = {1: 127.3, 2: 14.09, 3: 7.453, 4: 5.598}
    if df in exact:
        return exact[df]
    z = 2.807
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df * df)


def _forward(
    y: Sequence[float], columns: dict[VarianceCause, list[float]], signs: dict[str, int], direction: int
) -> list[VarianceCause]:
    """Causes that enter one after the other while the next is significant and pulls in the direction that it can."""
    chosen: list[VarianceCause] = []
    total = _dot(y, y)
    held = 0.0
    while True:
        best: tuple[float, VarianceCause] | None = None
        df = len(y) - len(chosen) - 2
        if df < 2:
            return chosen
        for name, column in columns.items():
            if name in chosen:
                continue
            picked = [columns[each] for each in chosen] + [column]
            weight = _fit(y, picked)[-1]
            # Load, queue: more makes a time longer and a rate lower. Cache: a time shorter. Clocks: a rate higher.
            expected = signs[name] * (direction if name in {"clocks", "foreign-load"} else -direction)
            if name == "cache-hits":
                expected = -1 if direction < 0 else 0
            if expected and weight * expected <= 0:
                continue
            gained = _explained(y, picked) - held
            rest = max(1e-300, total - held - gained)
            if gained > 0 and math.sqrt(gained * df / rest) > _critical_t(df) and (best is None or gained > best[0]):
                best = (gained, name)
        if best is None:
            return chosen
        chosen.append(best[1])
        held += best[0]


# -- what is left ----------------------------------------------------------------------------------------------------


def _drift(residual: Sequence[float], at: Sequence[float]) -> tuple[tuple[float, float] | None, list[float]]:
    """(share of the residual's variance, whole drift in log units) of a straight trend, where it is significant."""
    n = len(residual)
    if n < 8:
        return None, list(residual)
    middle = fmean(at)
    time = [each - middle for each in at]
    size, total = _dot(time, time), _dot(residual, residual)
    if size <= 0 or total <= 0:
        return None, list(residual)
    slope = _dot(time, residual) / size
    gained = slope * slope * size
    df = n - 2
    rest = max(1e-300, total - gained)
    if math.sqrt(gained * df / rest) <= _critical_t(df):
        return None, list(residual)
    honest = max(0.0, 1 - (rest / total) * (n - 1) / df)
    return (honest, slope * (max(at) - min(at))), [r - slope * t for r, t in zip(residual, time, strict=True)]


def _plain_part(residual: Sequence[float]) -> float:
    """Part of the residual's variance that looks like plain scatter: no outliers, no wandering, one mode."""
    n = len(residual)
    total = _dot(residual, residual)
    if n < 8 or total <= 0:
        return 1.0
    split = _split(residual)
    if split is not None:
        return min(1.0, split.within / total)
    middle = median(residual)
    core = 1.4826 * median(abs(each - middle) for each in residual)
    near = [each for each in residual if core <= 0 or abs(each - middle) <= 4.5 * core]
    part = 1.0
    if len(near) < n and len(near) >= n / 2:
        centre = fmean(near)
        part = (sum((each - centre) ** 2 for each in near) / max(1, len(near) - 1)) / (total / (n - 1))
    lagged = sum(a * b for a, b in pairwise(residual)) / total
    if lagged > 3 / math.sqrt(n):
        steps = sum((b - a) ** 2 for a, b in pairwise(residual)) / (2 * (n - 1))
        part = min(part, steps / (total / (n - 1)))
    return min(1.0, max(0.0, part))


@dataclass(frozen=True, slots=True)
class _Split:
    low: float
    high: float
    count: int
    within: float


def _split(values: Sequence[float]) -> _Split | None:
    """The best cut into two groups, if they stand further apart than one bell curve's halves ever do.

    The gap between the groups must be wide against what each holds: a single normal set cut at its middle has
    Ashman's D of 2.7, and no empty stretch. Both limits widen for few values; they were set by simulation to call
    fewer than 1 % of normal sets of 8 to 60 values bimodal.
    """
    ordered = sorted(values)
    n = len(ordered)
    if n < 8:
        return None
    best: _Split | None = None
    smallest = max(2, math.ceil(0.15 * n))
    for cut in range(smallest, n - smallest + 1):
        low, high = ordered[:cut], ordered[cut:]
        a, b = fmean(low), fmean(high)
        within = sum((each - a) ** 2 for each in low) + sum((each - b) ** 2 for each in high)
        if best is None or within < best.within:
            best = _Split(a, b, cut, within)
    if best is None:
        return None
    spread = math.sqrt(best.within / (n - 2))
    gap = ordered[best.count] - ordered[best.count - 1]
    apart = best.high - best.low
    if apart < 0.03 or apart < (5.0 + 30.0 / n) * spread or gap < (2.0 + 16.0 / n) * spread:
        return None
    return best


def _modes(y: Sequence[float], middle: float) -> Modes | None:
    split = _split(y)
    if split is None:
        return None
    return Modes(math.exp(split.low + middle), math.exp(split.high + middle), split.count / len(y))
