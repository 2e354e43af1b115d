"""Reasons out of counters and bits, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chimera.domain.readings import Missing, Reading
from chimera.domain.telemetry import Throttle
from chimera.telemetry.throttling import Throttling

NONE = Missing("unsupported")


def see(
    book: Throttling, at: float, bits: Reading = 0.0, read_at: Mapping[str, float] | None = None, **held: Reading
) -> dict[str, Throttle]:
    times = {name.replace("_", "-"): value for name, value in held.items()}
    return {one.reason: one for one in book.see(at, times, bits, read_at or {})}


def test_a_first_sample_tells_nothing_however_long_a_reason_has_held() -> None:
    assert see(Throttling(), 0.0, 0x20, sw_thermal=5000.0) == {}


def test_the_share_is_the_growth_over_the_time() -> None:
    book = Throttling()
    see(book, 0.0, sw_thermal=10.0)
    found = see(book, 2.0, sw_thermal=10.5)
    assert found == {"sw-thermal": Throttle("sw-thermal", 0.25, "counter", 0.5)}
    assert see(book, 3.0, sw_thermal=10.5) == {}


def test_a_share_is_never_more_than_all_of_the_time() -> None:
    book = Throttling()
    see(book, 0.0, power_cap=0.0)
    assert see(book, 1.0, power_cap=1.2)["power-cap"].share == 1.0


def test_a_counter_that_starts_anew_is_no_throttling() -> None:
    book = Throttling()
    see(book, 0.0, hw_thermal=100.0)
    assert see(book, 1.0, hw_thermal=0.2) == {}
    assert see(book, 2.0, hw_thermal=0.3)["hw-thermal"].share == pytest.approx(0.1)


def test_a_counter_that_stands_is_believed_against_its_bit() -> None:
    book = Throttling()
    see(book, 0.0, 0x4, power_cap=3.0)
    assert see(book, 1.0, 0x4, power_cap=3.0) == {}


def test_without_a_counter_a_bit_must_be_there_twice() -> None:
    book = Throttling()
    assert see(book, 0.0, 0x80, power_brake=NONE) == {}
    assert see(book, 1.0, 0x80, power_brake=NONE) == {"power-brake": Throttle("power-brake", 1.0, "bits")}
    assert see(book, 2.0, 0x0, power_brake=NONE) == {}
    assert see(book, 3.0, NONE, power_brake=NONE) == {}
    assert see(book, 4.0, 0x80, power_brake=NONE) == {}


def test_the_general_bit_is_left_out_where_its_cause_is_known() -> None:
    book = Throttling()
    see(book, 0.0, 0x48, hw_thermal=0.0)
    assert list(see(book, 1.0, 0x48, hw_thermal=0.5)) == ["hw-thermal"]
    assert list(see(book, 2.0, 0x48, hw_thermal=0.5)) == ["hw-slowdown"]


@pytest.mark.parametrize(("bits", "name"), [(0x20, "sw-thermal"), (0x60, "hw-thermal"), (0x0, "thermal")])
def test_older_counters_of_heat_are_told_apart_by_the_bit(bits: int, name: str) -> None:
    book = Throttling()
    see(book, 0.0, bits, thermal=1.0)
    assert see(book, 1.0, bits, thermal=1.5) == {name: Throttle(name, 0.5, "counter", 0.5)}


def test_a_counter_that_is_read_seldom_keeps_its_share_and_counts_each_second_once() -> None:
    book = Throttling()
    seconds = 0.0
    for at in range(16):
        read = at // 5 * 5.0
        found = see(book, float(at), 0x20, {"thermal": read}, thermal=0.4 * read)
        if at > 5:
            assert found["sw-thermal"].share == pytest.approx(0.4)
        seconds += found["sw-thermal"].seconds or 0.0 if found else 0.0
    # From the second reading, at 5 s, on: eleven seconds at 40 %.
    assert seconds == pytest.approx(0.4 * 11)


def test_the_most_severe_reason_comes_first() -> None:
    book = Throttling()
    see(book, 0.0, power_cap=0.0, sw_thermal=0.0, hw_thermal=0.0)
    found = see(book, 1.0, power_cap=0.9, sw_thermal=0.1, hw_thermal=0.01)
    assert list(found) == ["hw-thermal", "sw-thermal", "power-cap"]
