from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from chimera.widgets.rows import (
    TONES,
    Line,
    Row,
    Span,
    cells,
    changed_columns,
    clean,
    cut,
    fit,
    meter,
    row_cells,
    stacked,
    text_of,
    wrap,
)

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07[bold]x[/]\r\n\u202etxt\u2066\x00\x9b2J\u200b\ud800"
TEXTS = st.text(max_size=30)
SPANS = st.lists(st.tuples(st.text(alphabet="ab █世", max_size=6), st.sampled_from(TONES[:3])), max_size=5)


@given(TEXTS)
def test_cleaned_text_is_printable(text: str) -> None:
    assert clean(text).isprintable()


def test_escape_sequences_and_direction_overrides_are_gone_and_markup_stays_as_it_is() -> None:
    assert clean(HOSTILE).startswith("red [bold]x[/]")
    assert not set(clean(HOSTILE)) & set("\x1b\x07\x00\x9b\u202e\u2066\u200b")


@given(TEXTS, st.integers(0, 20), st.sampled_from(["left", "right"]))
def test_fitted_text_has_exactly_the_columns_asked_for(text: str, width: int, align: str) -> None:
    assert cell_len(fit(text, width, "right" if align == "right" else "left")) == width


def test_text_that_is_cut_says_so() -> None:
    assert cut("gemma3:latest", 8) == "gemma3:…"
    assert cut("世界世界", 5) == "世界…"


def test_a_line_never_outgrows_its_width() -> None:
    line = Line(10).add("twelve chars").add("more").gap(4)
    assert row_cells(line.row()) == 10


def test_neighbours_of_one_tone_and_blanks_are_one_span() -> None:
    row = Line(40).add("a", "muted").gap(3).add("b", "muted").add("c", "text").row()
    assert row == (Span("a   b", "muted"), Span("c", "text"))


def test_the_end_of_a_line_is_left_out_where_it_would_touch() -> None:
    assert text_of(Line(12).add("abcdefgh").end("xyz").row()) == "abcdefgh"
    assert text_of(Line(14).add("abcdefgh").end("xyz").row()) == "abcdefgh   xyz"


def test_wrapped_text_keeps_words_and_counts_lines() -> None:
    assert wrap("one-two three four", 9, 2) == ["one-two", "three fo…"]


def _as_columns(row: Row, width: int) -> list[tuple[str, str]]:
    columns = [(char, tone) for text, tone in row for char in text for _ in range(max(cell_len(char), 1))]
    return columns + [(" ", "")] * (width - len(columns))


@given(SPANS, SPANS)
def test_changed_columns_cover_every_difference(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> None:
    before: Row = tuple(Span(text, tone) for text, tone in old)  # type: ignore[arg-type]  # any word stands for a tone
    after: Row = tuple(Span(text, tone) for text, tone in new)  # type: ignore[arg-type]  # any word stands for a tone
    found = changed_columns(before, after)
    width = max(row_cells(before), row_cells(after))
    pairs = zip(_as_columns(before, width), _as_columns(after, width), strict=True)
    different = [index for index, (a, b) in enumerate(pairs) if a != b]
    if before == after:
        assert found is None
    elif different:
        assert found is not None
        assert found[0] <= different[0]
        assert different[-1] < found[1]


def test_one_changed_digit_is_one_changed_column() -> None:
    old = Line(30).add("util", "muted", 8).add("87 %").gap(3).add("steady", "muted").row()
    new = Line(30).add("util", "muted", 8).add("88 %").gap(3).add("steady", "muted").row()
    assert changed_columns(old, new) == (9, 10)


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_meter_fills_its_width(fraction: float, width: int) -> None:
    assert sum(cells(span.text) for span in meter(fraction, width)) == width


def test_an_unknown_meter_is_blank_and_not_empty() -> None:
    assert text_of(meter(None, 5)) == "     "
    assert text_of(meter(0.0, 5)) == "─────"
    assert text_of(meter(0.5, 5)) == "━━╸──"


SHARES = st.just(0.0) | st.floats(1e-6, 1)


@given(st.lists(SHARES, min_size=1, max_size=5), st.integers(5, 60))
def test_a_stacked_bar_fills_its_width_and_shows_every_part(shares: list[float], width: int) -> None:
    whole = max(sum(shares), 1.0)
    parts = [(share / whole, "abcde"[index], TONES[index]) for index, share in enumerate(shares)]
    text = text_of(stacked(parts, width))
    assert len(text) == width
    assert all("abcde"[index] in text for index, share in enumerate(shares) if share > 0)


@pytest.mark.parametrize("width", [0, 1])
def test_bars_without_room_are_no_error(width: int) -> None:
    assert len(text_of(meter(0.5, width))) == width
    assert len(text_of(stacked([(0.5, "a", "bar")], width))) == width
