from __future__ import annotations

import pytest

from chimera.domain.readings import PENDING, Missing
from chimera.widgets import format as fmt

GIB = 1024**3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 ms"), (0.00042, "0.42 ms"), (0.005, "5.0 ms"), (0.0099, "10 ms"), (0.2124, "212 ms"),
        (0.9996, "1.00 s"), (1.236, "1.24 s"), (12.44, "12.4 s"), (124.4, "124 s"),
    ],
)  # fmt: skip
def test_short_times_have_about_three_digits(value: float, text: str) -> None:
    assert fmt.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(45.2, "45 s"), (59.7, "1 min 00 s"), (260, "4 min 20 s"), (4320, "1 h 12 min"), (273_600, "3 d 4 h")],
)
def test_durations_use_two_units(value: float, text: str) -> None:
    assert fmt.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(5.4, "5.40"), (9.999, "10.0"), (98.12, "98.1"), (1234.5, "1234")])
def test_rates_keep_their_width(value: float, text: str) -> None:
    assert fmt.rate(value) == text


def test_sizes_are_binary_and_traffic_is_decimal() -> None:
    assert fmt.size(9.83 * GIB) == "9.8 GiB"
    assert fmt.size(410 * 1024**2) == "410 MiB"
    assert fmt.traffic(24e6) == "24 MB/s"
    assert fmt.traffic(2.5e9) == "2.5 GB/s"


def test_a_missing_reading_gives_its_reason_and_never_a_number() -> None:
    assert fmt.reading(Missing("unsupported", "NVML: Not Supported"), fmt.percent) == "n/a: unsupported"
    assert fmt.reading(Missing("stale", since=88.0), fmt.percent, now=100.0) == "n/a: stale 12 s"
    assert fmt.reading(PENDING, fmt.percent) == "…"
    assert fmt.reading(None, fmt.percent) == "n/a"
    assert fmt.reading(0.0, fmt.percent) == "0 %"


def test_effects_always_have_a_sign() -> None:
    assert fmt.effect(1.012) == "+1.2 %"
    assert fmt.effect(0.41) == "-59.0 %"
    assert fmt.effect(1.0) == "+0.0 %"


def test_parameters_of_small_and_large_models() -> None:
    assert fmt.parameters(268_098_176) == "268 M"
    assert fmt.parameters(4_299_915_632) == "4.3 B"


def test_the_home_folder_is_a_tilde_and_a_neighbour_of_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert fmt.homely("/home/ann/.config/x.toml") == "~/.config/x.toml"
    assert fmt.homely("run ab12 written to /home/ann/a.csv") == "run ab12 written to ~/a.csv"
    assert fmt.homely("in /home/ann: nothing") == "in ~: nothing"
    for other in ("/home/anna/x", "/mnt/home/ann/x", "/home/ann.old/x"):
        assert fmt.homely(other) == other
    monkeypatch.setenv("HOME", "/")
    assert fmt.homely("/etc/x") == "/etc/x"
