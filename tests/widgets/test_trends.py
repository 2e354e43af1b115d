from __future__ import annotations

from dataclasses import replace

import pytest

from chimera.domain.readings import Missing
from chimera.domain.telemetry import Snapshot
from chimera.widgets.rows import text_of
from chimera.widgets.trends import TRENDS, TrendChart, readings

from . import data

UNTOLD = Missing("unsupported")


def snapshot(gpus: int = 1) -> Snapshot:
    return Snapshot(100.0, data.gpus(gpus) if gpus else data.NO_GPU, data.host())


def text(chart: TrendChart, width: int = 60, height: int = 10) -> str:
    return "\n".join(text_of(row) for row in chart.build(width, height))


def test_without_a_gpu_its_curves_have_gaps_and_no_zeros() -> None:
    values = readings(snapshot(0))
    assert [values[key] for key in ("util", "vram", "temp", "power")] == [None] * 4
    assert values["cpu"] is not None


def test_several_gpus_are_one_curve_and_a_sum_without_one_of_them_is_a_gap() -> None:
    whole = snapshot(2)
    first, second = whole.gpus.samples
    values = readings(whole)
    assert values["temp"] == max(first.temperature_c, second.temperature_c)  # type: ignore[type-var]  # numbers here
    assert values["power"] == first.power_w + second.power_w  # type: ignore[operator]  # numbers here
    lost = replace(second, power_w=UNTOLD, utilization=UNTOLD, temperature_c=UNTOLD)
    half = readings(replace(whole, gpus=replace(whole.gpus, samples=(first, lost))))
    assert half["power"] is None
    assert (half["util"], half["temp"]) == (first.utilization, first.temperature_c)
    assert half["vram"] is not None


def test_an_instance_of_a_gpu_is_not_counted_beside_it() -> None:
    whole = snapshot(2)
    infos = (whole.gpus.infos[0], replace(whole.gpus.infos[1], parent=whole.gpus.infos[0].uuid))
    assert readings(replace(whole, gpus=replace(whole.gpus, infos=infos))) == readings(snapshot(1)) | {
        "cpu": readings(whole)["cpu"]
    }


def test_all_are_kept_while_one_is_shown_and_freezing_and_windows_are_for_all() -> None:
    chart = TrendChart()
    for second in range(30):
        chart.feed(100.0 + second, {"util": 50.0, "temp": 60.0 + second, "power": None}, gpus=8)
    assert "50 %" in text(chart)
    assert "mean of 8 GPUs" in text(chart)
    chart.frozen, chart.window_s = True, 300
    chart.show(next(index for index, one in enumerate(TRENDS) if one.key == "temp"))
    assert chart.border_title == "GPU temperature, °C"
    assert "89 °C   highest in sight 89 °C" in text(chart)
    assert (chart.frozen, chart.window_s) == (True, 300)
    chart.show(next(index for index, one in enumerate(TRENDS) if one.key == "power"))
    assert "n/a" in text(chart)
    assert "0 W" not in text(chart)


@pytest.mark.parametrize("key", [one.key for one in TRENDS])
def test_every_trend_names_its_value_with_a_unit(key: str) -> None:
    chart = TrendChart()
    chart.show(next(index for index, one in enumerate(TRENDS) if one.key == key))
    chart.feed(1.0, {key: 42.0}, gpus=1)
    assert text(chart).split("\n")[0].split()[:2] in (
        [f"42{point}", unit] for point in ("", ".0") for unit in ("%", "°C", "W", "GiB", "ms")
    )
