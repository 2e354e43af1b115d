from __future__ import annotations

import pytest

from chimera.widgets.chart import CAPACITY, Guide, Plot, TimeChart, zoom
from chimera.widgets.rows import row_cells, text_of

from .screens import Alone, screen_text


def picture(plot: Plot, width: int = 60, height: int = 12) -> str:
    return "\n".join(text_of(row) for row in plot.rows(width, height))


def filled(values: list[float | None], *, window_s: float = 60, start: float = 1000.0) -> Plot:
    plot = Plot(window_s=window_s)
    for index, value in enumerate(values):
        plot.append(start + index, value)
    return plot


def test_a_gap_stays_a_gap() -> None:
    values: list[float | None] = [50.0] * 60
    whole = picture(filled(values))
    values[20:40] = [None] * 20
    broken = picture(filled(values))
    drawn = next(line for line in broken.splitlines() if "⠉" in line or "⣀" in line or "⠒" in line)
    assert "⠀" not in broken
    left, right = drawn.index("│") + 1, len(drawn)
    middle = drawn[left + (right - left) * 2 // 5 : left + (right - left) * 3 // 5]
    assert not middle.strip()
    assert whole != broken


def test_only_gaps_draw_nothing_and_are_not_zero() -> None:
    text = picture(filled([None] * 30))
    assert not any("⠀" < char <= "⣿" for char in text)


def test_the_window_stands_still_until_the_pen_is_at_its_edge_and_then_moves_by_a_quarter() -> None:
    plot = filled([50.0] * 61)
    before = picture(plot).splitlines()[-1]
    plot.append(1061.0, 50.0)
    after = picture(plot).splitlines()[-1]
    assert before.split()[0] == "0"
    assert after.split()[0] == "15"
    assert picture(plot, 60, 12).count("┤") >= 3


def test_every_row_fits_and_the_smallest_chart_still_draws() -> None:
    plot = filled([float(index % 40) for index in range(60)])
    plot.guides = (Guide("baseline", 30.0), Guide("roof", 44.0))
    plot.mark(1010.0, "a")
    for width, height in ((18, 3), (30, 6), (58, 12), (118, 20), (7, 3), (40, 1)):
        rows = plot.rows(width, height)
        assert len(rows) <= height
        assert all(row_cells(row) <= width for row in rows)
    assert any("⠀" < char <= "⣿" for char in picture(plot, 18, 3))


def test_axes_have_round_numbers_and_times() -> None:
    lines = picture(filled([97.0] * 60, window_s=120)).splitlines()
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == ["100", "75", "50", "25", "0"]
    assert lines[-1].split() == ["0", "s", "30", "s", "1:00", "1:30"]


def test_the_time_of_day_stands_below_where_the_wall_clock_is_known() -> None:
    plot = Plot(window_s=120, epoch=1_764_338_400.0 - 1000.0)
    for index in range(30):
        plot.append(1000.0 + index, 1.0)
    assert picture(plot, 80).splitlines()[-1].split()[0] == "14:00:00"


def test_guides_are_named_and_one_far_above_does_not_press_the_data_flat() -> None:
    plot = filled([50.0] * 30)
    plot.guides = (Guide("baseline", 48.0), Guide("roof", 900.0))
    text = picture(plot, 70)
    assert "baseline 48.0" in text
    assert "↑ roof 900.0" in text
    assert "╌" in text
    assert text.splitlines()[0].split("┤")[0].strip() == "60"


def test_a_mark_puts_its_letter_on_the_axis_where_it_happened() -> None:
    plot = filled([50.0] * 60)
    plot.mark(1030.0, "b")
    axis = picture(plot).splitlines()[-2]
    begin = axis.index("└") + 1
    assert abs((axis.index("b") - begin) / (len(axis) - begin) - 0.5) < 0.03


def test_a_frozen_chart_stands_still_and_catches_up() -> None:
    plot = filled([50.0] * 30)
    plot.freeze(True)
    before = picture(plot)
    for index in range(30, 90):
        plot.append(1000.0 + index, 80.0)
    assert picture(plot) == before
    plot.freeze(False)
    assert picture(plot) != before


def test_memory_is_bounded_over_a_day() -> None:
    plot = Plot(window_s=120)
    for second in range(24 * 3600):
        plot.append(float(second), 50.0)
        plot.mark(float(second), "x")
    assert len(plot._points) == CAPACITY
    assert len(plot._marks) < 1000
    assert plot.rows(80, 12)


def test_a_wider_window_shows_what_was_there_before() -> None:
    plot = filled([float(index) for index in range(200)], window_s=30)
    assert min(plot.values()) > 100
    plot.show_window(300)
    assert min(plot.values()) == 0.0


def test_a_clock_that_goes_back_starts_the_series_anew() -> None:
    plot = filled([50.0] * 30)
    plot.append(10.0, 3.0)
    assert plot.values() == [3.0]


def test_zooming_walks_through_the_windows_and_stops_at_the_ends() -> None:
    assert zoom(120, 1) == 300
    assert zoom(120, -1) == 60
    assert zoom(30, -1) == 30
    assert zoom(3600, 5) == 3600


@pytest.mark.parametrize("size", [(20, 5), (40, 10)])
async def test_a_chart_works_from_twenty_by_five(size: tuple[int, int]) -> None:
    chart = TimeChart("Rate [x]", "tok/s", window_s=60)
    app = Alone(chart)
    async with app.run_test(size=size) as pilot:
        chart.extend([(float(second), 40.0 + second % 7) for second in range(50)])
        await pilot.pause()
        text = screen_text(app)
    assert "Rate [x]" in text
    assert any("⠀" < char <= "⣿" for char in text)


def test_marks_of_one_moment_stand_beside_each_other_and_no_label_is_written_over_them() -> None:
    plot = filled([50.0] * 60)
    for letter in "PLA":
        plot.mark(1030.0, letter)
    assert "PLA" in picture(plot, 60, 12).splitlines()[-2]
    small = picture(plot, 60, 6).splitlines()[-1]
    assert "PLA" in small
    assert "30 s" not in small
    assert "15 s" in small


def test_without_a_point_there_is_no_time_of_day() -> None:
    assert ":" not in picture(Plot(epoch=1_764_338_400.0))
