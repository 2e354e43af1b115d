"""A known curve gives its equilibrium, also when it ends early."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from chimera.diagnosis.thermalcheck import ThermalPoint, assess


def series(
    minutes: float, curve: Callable[[float], float], *, step: float = 1.0, rate: Callable[[float], float] | None = None,
    throttle: Callable[[float], float] | None = None, rounded: bool = True, noise: float = 0.0,
) -> list[ThermalPoint]:  # fmt: skip
    draw = random.Random(1)
    points = []
    for i in range(int(minutes * 60 / step) + 1):
        at = i * step
        value = curve(at) + draw.gauss(0, noise)
        points.append(
            ThermalPoint(
                at, round(value) if rounded else value, 1900.0 - (300.0 if throttle and throttle(at) else 0.0), 150.0,
                throttle(at) if throttle else 0.0, rate(at) if rate else 60.0,
            )
        )  # fmt: skip
    return points


def heating(start: float, end: float, tau: float) -> Callable[[float], float]:
    return lambda at: end - (end - start) * math.exp(-at / tau)


@pytest.mark.parametrize("minutes", [3, 5, 10])
@pytest.mark.parametrize(("end", "tau"), [(74.0, 60.0), (83.0, 100.0), (61.0, 90.0)])
def test_the_equilibrium_comes_out_within_a_degree(minutes: float, end: float, tau: float) -> None:
    result = assess(series(minutes, heating(38.0, end, tau), noise=0.3))
    assert result.equilibrium_c == pytest.approx(end, abs=1.0)


@pytest.mark.parametrize("tau", [80.0, 120.0])
def test_the_equilibrium_is_known_before_it_is_reached(tau: float) -> None:
    """The series ends after 1.5 time constants, 22 % of the way short."""
    result = assess(series(1.5 * tau / 60, heating(40.0, 80.0, tau)))
    assert result.end_c is not None
    assert result.end_c < 72
    assert not result.reached
    assert result.equilibrium_c == pytest.approx(80.0, abs=1.0)
    assert "would settle" in result.verdict


def test_a_series_that_is_too_short_says_so_and_gives_no_equilibrium() -> None:
    result = assess(series(0.25, heating(40.0, 85.0, 200.0)))
    assert result.equilibrium_c is None
    assert result.level == "unknown"
    assert "too short" in result.verdict
    assert result.end_c is not None
    assert f"It ended at {result.end_c:.0f} °C" in result.verdict, "a card that cools again has reached more"


def test_a_card_that_regulates_itself_settles_on_its_plateau() -> None:
    result = assess(series(8, lambda at: min(83.0, heating(40.0, 97.0, 90.0)(at))), slowdown_c=83.0)
    assert result.equilibrium_c == pytest.approx(83.0, abs=1.0)
    assert result.reached


def test_the_time_to_throttle_and_the_rate_that_is_lost() -> None:
    hot = assess(
        series(10, lambda at: min(84.0, heating(40.0, 95.0, 120.0)(at)), throttle=lambda at: 0.6 if at > 200 else 0.0,
               rate=lambda at: 100.0 if at <= 200 else 70.0),
        slowdown_c=84.0,
    )  # fmt: skip
    assert hot.level == "throttled"
    assert hot.throttle_at_s == pytest.approx(200, abs=2)
    assert hot.throttle_share == pytest.approx(0.4, abs=0.01)
    assert hot.tok_s_lost == pytest.approx(30.0)
    assert "100 to 70 tok/s" in hot.verdict


def test_a_cool_card_holds_its_rate() -> None:
    result = assess(series(6, heating(35.0, 66.0, 60.0)), slowdown_c=93.0)
    assert result.level == "steady"
    assert result.throttle_at_s is None
    assert result.tok_s_lost == pytest.approx(0.0)
    assert "The rate held" in result.verdict
    assert "27 °C to slowdown" in result.verdict


def test_the_first_cold_request_is_no_cool_rate_and_a_rise_is_not_called_held() -> None:
    """As seen on a busy machine: 16 tok/s in the discarded request, 65 in those that count."""
    points = series(2, lambda _: 55.0, rate=lambda at: 16.0 if at < 30 else 65.0)
    warm = assess(points, rates=[65.0] * 8)
    assert (warm.tok_s_before, warm.tok_s_after) == (65.0, 65.0)
    assert "The rate held" in warm.verdict
    risen = assess(points, rates=[40.0] * 4 + [65.0] * 4)
    assert "The rate rose from 40 to 65 tok/s" in risen.verdict
    assert "held" not in risen.verdict.replace("held clocks down", "")
    assert assess(points, rates=[65.0] * 3).tok_s_before is None


def test_a_curve_that_will_meet_slowdown_says_when() -> None:
    result = assess(series(3, heating(40.0, 90.0, 120.0)), slowdown_c=84.0)
    assert result.level == "close"
    assert result.slowdown_at_s == pytest.approx(120.0 * math.log(50 / 6), rel=0.1)


def test_a_level_temperature_is_an_equilibrium() -> None:
    result = assess(series(2, lambda _: 55.0))
    assert result.equilibrium_c == pytest.approx(55.0)
    assert result.reached


def test_gaps_and_absurd_values_are_borne() -> None:
    points = series(5, heating(40.0, 75.0, 60.0))
    holed = [
        ThermalPoint(each.at_s, None if i % 3 else each.temperature_c, None, None, None, math.nan if i % 5 else None)
        for i, each in enumerate(points)
    ]
    holed.append(ThermalPoint(math.inf, 9e9))
    holed.append(ThermalPoint(3.0, math.nan))
    result = assess(holed)
    assert result.equilibrium_c == pytest.approx(75.0, abs=1.0)
    assert result.tok_s_lost is None
    assert "does not tell" in result.verdict


def test_no_readings_are_no_verdict() -> None:
    assert assess([]).level == "unknown"
    assert assess([ThermalPoint(float(i)) for i in range(60)]).equilibrium_c is None
