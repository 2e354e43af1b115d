from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.widgets.braille import Point, curve, nice_step, nice_top, tick_text, ticks


def draw(points: list[Point], width: int = 4, height: int = 2, gap: float = math.inf) -> list[str]:
    return curve(points, width=width, height=height, x_range=(0, 8), y_range=(0, 7), gap=gap)


def test_single_points_are_single_dots() -> None:
    assert draw([(0, 0)]) == ["    ", "⡀   "]
    assert draw([(7.9, 7)]) == ["   ⠈", "    "]


def test_neighbours_are_joined() -> None:
    assert draw([(0, 0), (7, 0)]) == ["    ", "⣀⣀⣀⣀"]
    assert draw([(0, 0), (1, 7)]) == ["⢸   ", "⡸   "]


def test_none_leaves_a_gap() -> None:
    assert draw([(0, 0), (1, 0), (2, None), (6, 0), (7, 0)]) == ["    ", "⣀  ⣀"]


def test_a_long_silence_leaves_a_gap() -> None:
    assert draw([(0, 0), (1, 0), (6, 0), (7, 0)], gap=2) == ["    ", "⣀  ⣀"]


def test_a_point_that_is_no_number_is_a_gap() -> None:
    assert draw([(0, 0), (3, math.nan), (7, 0)]) == ["    ", "⡀  ⢀"]


def test_points_of_one_column_keep_their_extremes() -> None:
    assert draw([(0.0, 0), (0.3, 7), (0.6, 0)]) == ["⡇   ", "⡇   "]


def test_values_outside_the_scale_stand_at_its_edge() -> None:
    assert draw([(0, 99), (7, 99)])[0] == "⠉⠉⠉⠉"


@given(st.lists(st.tuples(st.floats(-2, 12), st.none() | st.floats(allow_nan=True)), max_size=30), st.integers(0, 9))
def test_every_row_has_its_width(points: list[Point], width: int) -> None:
    rows = draw(sorted(points, key=lambda point: point[0]), width)
    assert [len(row) for row in rows] == [width, width]


@pytest.mark.parametrize(("span", "count", "step"), [(100, 4, 25), (131, 4, 50), (0.3, 3, 0.1), (7, 2, 5)])
def test_steps_are_round(span: float, count: int, step: float) -> None:
    assert nice_step(span, count) == pytest.approx(step)


@given(st.floats(1e-6, 1e9))
def test_the_top_holds_the_value_without_wasting_half_of_the_scale(value: float) -> None:
    assert value <= nice_top(value) <= 2.5 * value


def test_nothing_to_show_still_has_a_scale() -> None:
    assert nice_top(0) == nice_top(-3) == nice_top(math.inf) == 1.0


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert ticks(0, 150, 4) == [0, 50, 100, 150]
    assert ticks(13, 47, 4) == [20, 30, 40]


@pytest.mark.parametrize(
    ("value", "step", "text"), [(100, 50, "100"), (2.5, 2.5, "2.5"), (0.75, 0.25, "0.75"), (0.2, 0.1, "0.2")]
)
def test_axis_numbers_have_the_decimals_of_their_step(value: float, step: float, text: str) -> None:
    assert tick_text(value, step) == text
