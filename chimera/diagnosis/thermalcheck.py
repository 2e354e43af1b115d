"""A sustained load, judged: where the temperature settles, when clocks are held down, what that costs.

The temperature of a heated body follows T(t) = T_eq - (T_eq - T_0) exp(-t / tau) (first order); the equilibrium can be
told from the curve before it is reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from .thresholds import limit

_FLAT_C = 1.0
"""What may be left to the fitted equilibrium for the plateau itself to count: sensors report whole degrees."""
_SURE_C = 3.0
"""Largest standard error at which a fitted equilibrium is told."""


@dataclass(frozen=True, slots=True)
class ThermalPoint:
    """One moment of the check; None where a reading is missing."""

    at_s: float
    """Seconds since the load began."""
    temperature_c: float | None = None
    sm_mhz: float | None = None
    power_w: float | None = None
    throttle_share: float | None = None
    """Part of the time since the last point in which heat held clocks down, 0 to 1."""
    tok_s: float | None = None


Level = Literal["steady", "throttled", "close", "unknown"]


@dataclass(frozen=True, slots=True)
class ThermalResult:
    """What the check found."""

    level: Level
    """`throttled`: heat held clocks down; `close`: it settles within 5 degrees of slowdown, or above it."""
    duration_s: float
    start_c: float | None = None
    end_c: float | None = None
    equilibrium_c: float | None = None
    """Where the temperature settles under this load."""
    equilibrium_error_c: float | None = None
    """Standard error of it; 0 to 1 where it was reached."""
    reached: bool = False
    """The series ended on the plateau."""
    time_constant_s: float | None = None
    """Time in which 63 % of the way is done."""
    throttle_at_s: float | None = None
    """Seconds until heat first held clocks down."""
    throttle_share: float | None = None
    """Part of the whole time in which it did."""
    slowdown_at_s: float | None = None
    """Seconds until the curve meets the slowdown temperature, where it would."""
    tok_s_before: float | None = None
    tok_s_after: float | None = None
    tok_s_lost: float | None = None
    """Rate when cool minus rate at the end, tokens a second; below 0 where it got faster."""
    clock_ratio: float | None = None
    """SM clock at the end against the beginning."""
    verdict: str = ""
    """In words."""


def assess(
    points: Sequence[ThermalPoint], slowdown_c: float | None = None, rates: Sequence[float] | None = None
) -> ThermalResult:
    """Judge a series under sustained load.

    Args:
        points: The series.
        slowdown_c: Temperature at which the hardware slows down.
        rates: Decode rates of the warm requests in their order, where there are requests: the points' own ones hold
            the first, cold one as well.
    """
    track = sorted((each for each in points if math.isfinite(each.at_s) and each.at_s >= 0), key=lambda p: p.at_s)
    if len(track) < 2:
        return ThermalResult("unknown", 0.0, verdict="Too few readings to say anything.")
    length = track[-1].at_s - track[0].at_s
    heat = [
        (each.at_s, each.temperature_c)
        for each in track
        if each.temperature_c is not None and math.isfinite(each.temperature_c) and -50 < each.temperature_c < 200
    ]
    fit = _settle(heat)
    throttle_at, share = _throttling(track)
    before, after = _rates([each.tok_s for each in track] if rates is None else rates)
    clocks = [each.sm_mhz for each in track if each.sm_mhz is not None and 0 < each.sm_mhz < 1e5]
    clock = _late_against_early(clocks)
    equilibrium = fit.equilibrium if fit is not None and fit.error <= _SURE_C else None
    meets = None
    if fit is not None and equilibrium is not None and slowdown_c is not None:
        meets = _meets(fit, slowdown_c)
    level: Level = "steady"
    if throttle_at is not None:
        level = "throttled"
    elif equilibrium is None:
        level = "unknown"
    elif slowdown_c is not None and equilibrium > slowdown_c - 5:
        level = "close"
    result = ThermalResult(
        level=level,
        duration_s=length,
        start_c=heat[0][1] if heat else None,
        end_c=heat[-1][1] if heat else None,
        equilibrium_c=equilibrium,
        equilibrium_error_c=fit.error if fit is not None and equilibrium is not None else None,
        reached=fit is not None and fit.reached,
        time_constant_s=fit.tau if fit is not None and equilibrium is not None else None,
        throttle_at_s=throttle_at,
        throttle_share=share,
        slowdown_at_s=meets,
        tok_s_before=before,
        tok_s_after=after,
        tok_s_lost=None if before is None or after is None else before - after,
        clock_ratio=clock,
    )
    return _with_words(result, slowdown_c)


@dataclass(frozen=True, slots=True)
class _Fit:
    equilibrium: float
    start: float
    tau: float
    error: float
    reached: bool


def _settle(heat: Sequence[tuple[float, float]]) -> _Fit | None:
    """Equilibrium of a first-order curve through the readings, by least squares over its time constant."""
    if len(heat) < 5 or heat[-1][0] - heat[0][0] <= 0:
        return None
    zero = heat[0][0]
    times = [at - zero for at, _ in heat]
    values = [value for _, value in heat]
    length = times[-1]
    if max(values) - min(values) < 1.5:
        level = fmean(values[-max(3, len(values) // 3) :])
        return _Fit(level, values[0], 0.0, 0.5, True)

    def at(log_tau: float) -> tuple[float, float, float]:
        return _least_squares(times, values, math.exp(log_tau))

    low, high = math.log(length / 200), math.log(length * 5)
    grid = [low + (high - low) * i / 60 for i in range(61)]
    best = min(range(61), key=lambda i: at(grid[i])[0])
    left, right = grid[max(0, best - 1)], grid[min(60, best + 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = right - golden * (right - left), left + golden * (right - left)
        if at(a)[0] <= at(b)[0]:
            right = b
        else:
            left = a
    log_tau = (left + right) / 2
    squares, equilibrium, rise = at(log_tau)
    tau = math.exp(log_tau)
    error = _error(times, values, equilibrium, rise, tau, squares)
    tail = values[-max(3, len(values) // 4) :]
    tail_times = times[-len(tail) :]
    remaining = abs(equilibrium - fmean(values[-3:]))
    slope = _slope(tail_times, tail)
    # A card that regulates itself at a limit leaves the curve; its plateau is then what there is to see.
    if remaining <= _FLAT_C and abs(slope) * (tail_times[-1] - tail_times[0]) <= _FLAT_C:
        return _Fit(fmean(tail), values[0], tau, min(1.0, error + 0.3), True)
    if abs(slope) * (tail_times[-1] - tail_times[0]) <= 0.3 and length > 3 * tau:
        return _Fit(fmean(tail), values[0], tau, 0.5, True)
    return _Fit(equilibrium, values[0], tau, error, False)


def _least_squares(times: Sequence[float], values: Sequence[float], tau: float) -> tuple[float, float, float]:
    """(sum of squares, equilibrium, rise) of the best curve with this time constant."""
    falls = [math.exp(-each / tau) for each in times]
    n = len(values)
    mean_x, mean_y = fmean(falls), fmean(values)
    xx = math.fsum((x - mean_x) ** 2 for x in falls)
    if xx <= 1e-12 * n:
        return math.fsum((y - mean_y) ** 2 for y in values), mean_y, 0.0
    weight = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(falls, values, strict=True)) / xx
    equilibrium = mean_y - weight * mean_x
    squares = math.fsum((y - equilibrium - weight * x) ** 2 for x, y in zip(falls, values, strict=True))
    return squares, equilibrium, -weight


def _error(
    times: Sequence[float], values: Sequence[float], equilibrium: float, rise: float, tau: float, squares: float
) -> float:
    """Standard error of the equilibrium, from the curvature of the fit in all three of its parameters."""
    n = len(values)
    # A sensor of whole degrees hides up to half of one: its rounding is part of the noise.
    variance = max(squares / max(1, n - 3), 1 / 12)
    columns = [
        [1.0] * n,
        [-math.exp(-each / tau) for each in times],
        [-rise * math.exp(-each / tau) * each / tau for each in times],
    ]
    gram = [[math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in columns] for x in columns]
    a, b, c = gram
    determinant = (
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    if determinant <= 0:
        return math.inf
    inverse = (b[1] * c[2] - b[2] * c[1]) / determinant
    return math.sqrt(max(0.0, variance * inverse))


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    mean_x, mean_y = fmean(times), fmean(values)
    size = math.fsum((x - mean_x) ** 2 for x in times)
    if size <= 0:
        return 0.0
    return math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(times, values, strict=True)) / size


def _meets(fit: _Fit, slowdown_c: float) -> float | None:
    if fit.start >= slowdown_c:
        return 0.0
    if fit.equilibrium <= slowdown_c or fit.tau <= 0:
        return None
    return fit.tau * math.log((fit.equilibrium - fit.start) / (fit.equilibrium - slowdown_c))


def _throttling(track: Sequence[ThermalPoint]) -> tuple[float | None, float | None]:
    """(when it began, its part of the time), where it is known at all."""
    took = known = 0.0
    began: float | None = None
    for before, each in pairwise(track):
        if each.throttle_share is None or not math.isfinite(each.throttle_share):
            continue
        step = each.at_s - before.at_s
        part = min(1.0, max(0.0, each.throttle_share))
        known += step
        took += part * step
        if part > limit("thermal-share") and began is None:
            began = before.at_s
    if known <= 0:
        return None, None
    share = took / known
    return (began if share > limit("thermal-share") / 10 else None), share


def _rates(read: Sequence[float | None]) -> tuple[float | None, float | None]:
    rates = [each for each in read if each is not None and 0 < each < 1e7]
    if len(rates) < 6:
        return None, None
    part = max(3, len(rates) // 5)
    return median(rates[:part]), median(rates[-part:])


def _late_against_early(values: Sequence[float]) -> float | None:
    if len(values) < 6:
        return None
    part = max(3, len(values) // 5)
    return median(values[-part:]) / median(values[:part])


def _with_words(result: ThermalResult, slowdown_c: float | None) -> ThermalResult:
    words: list[str] = []
    minutes = result.duration_s / 60
    if result.equilibrium_c is not None and result.reached:
        words.append(f"It settles at {result.equilibrium_c:.0f} °C.")
    elif result.equilibrium_c is not None:
        error = result.equilibrium_error_c or 0.0
        words.append(
            f"It was still warming at {result.end_c:.0f} °C and would settle at {result.equilibrium_c:.0f} °C"
            + (f" (give or take {2 * error:.0f})." if error >= 0.5 else ".")
        )
    elif result.end_c is not None:
        words.append(f"It ended at {result.end_c:.0f} °C; {minutes:.1f} min were too short to tell where it settles.")
    else:
        words.append("No temperature can be read.")
    if slowdown_c is not None and result.equilibrium_c is not None:
        left = slowdown_c - result.equilibrium_c
        if left > 0:
            words.append(f"That leaves {left:.0f} °C to slowdown.")
        elif result.slowdown_at_s is not None:
            words.append(
                f"That is above slowdown at {slowdown_c:.0f} °C, met after {result.slowdown_at_s / 60:.1f} min."
            )
    if result.throttle_at_s is not None:
        words.append(
            f"Heat held clocks down from {result.throttle_at_s / 60:.1f} min on, for {result.throttle_share or 0:.0%} "
            "of the time."
        )
    elif result.throttle_share is not None:
        words.append(f"Heat did not hold clocks down in {minutes:.1f} min.")
    else:
        words.append("The driver does not tell whether heat held clocks down.")
    if result.tok_s_before and result.tok_s_after is not None and result.tok_s_lost is not None:
        part = result.tok_s_lost / result.tok_s_before
        if part > 0.02:
            words.append(
                f"The rate fell from {result.tok_s_before:.3g} to {result.tok_s_after:.3g} tok/s ({part:.0%} lost)."
            )
        elif part < -0.02:
            words.append(
                f"The rate rose from {result.tok_s_before:.3g} to {result.tok_s_after:.3g} tok/s: heat did not slow it."
            )
        else:
            words.append(f"The rate held: {result.tok_s_before:.3g} tok/s cool, {result.tok_s_after:.3g} at the end.")
    return replace(result, verdict=" ".join(words))
