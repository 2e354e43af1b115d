"""Rows of a panel as plain data: a few spans of text, each with a tone, cut and padded to cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap as wrap_words
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size

from chimera.domain.text import plain

Tone = Literal[
    "text", "muted", "strong", "accent", "good", "notice", "warn", "error",
    "chart", "guide", "bar", "track", "part1", "part2", "part3", "part4", "cursor",
]  # fmt: skip
"""What a piece of text is, not how it looks: each tone is a component class, `panel--TONE`."""
TONES: tuple[Tone, ...] = Tone.__args__  # type: ignore[attr-defined]  # a Literal has its words

Align = Literal["left", "right"]


class Span(NamedTuple):
    """A run of text in one tone."""

    text: str
    tone: Tone


Row = tuple[Span, ...]
"""One line of a panel."""

EMPTY: Row = ()


def clean(text: str) -> str:
    """One line of text that only moves the cursor to the right: safe to hand to a terminal."""
    if text.isprintable():
        return text
    return "".join(char for char in plain(text) if char.isprintable())


def cells(text: str) -> int:
    """Columns that the text takes."""
    return len(text) if text.isascii() else cell_len(text)


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns; `…` where something was left out."""
    text = clean(text)
    if cells(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"[:width]


def fit(text: str, width: int, align: Align = "left") -> str:
    """The text in exactly `width` columns."""
    text = cut(text, width)
    blank = " " * (width - cells(text))
    return blank + text if align == "right" else text + blank


def wrap(text: str, width: int, limit: int = 20) -> list[str]:
    """The text broken between words into at most `limit` lines of `width` columns."""
    lines = wrap_words(clean(text), max(width, 1), break_on_hyphens=False)
    if len(lines) > limit:
        lines = [*lines[: limit - 1], " ".join(lines[limit - 1 :])]
    return [cut(line, width) for line in lines]


class Line:
    """Builds one row from the left; what does not fit any more is cut."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.used = 0
        self._spans: list[Span] = []

    @property
    def left(self) -> int:
        """Columns that are still free."""
        return self.width - self.used

    def add(self, text: str, tone: Tone = "text", width: int | None = None, align: Align = "left") -> Line:
        """Append text, in exactly `width` columns where that is given."""
        left = self.width - self.used
        if width is not None:
            text = fit(text, min(width, left), align)
        elif not text.isprintable() or cells(text) > left:
            text = cut(text, left)
        if text:
            self.used += cells(text)
            last = self._spans[-1] if self._spans else None
            if last is not None and (last.tone == tone or text.isspace()):
                self._spans[-1] = Span(last.text + text, last.tone)
            elif last is not None and last.text.isspace():
                self._spans[-1] = Span(last.text + text, tone)
            else:
                self._spans.append(Span(text, tone))
        return self

    def spans(self, spans: Iterable[Span]) -> Line:
        """Append ready-made spans."""
        for span in spans:
            self.add(span.text, span.tone)
        return self

    def gap(self, width: int = 2) -> Line:
        """Append blanks, in the tone of what stands before them: a blank has no colour of its own."""
        return self.add(" " * min(width, self.left), self._spans[-1].tone if self._spans else "text")

    def to(self, column: int) -> Line:
        """Append blanks up to a column."""
        return self.gap(column - self.used) if column > self.used else self

    def end(self, text: str, tone: Tone = "text") -> Line:
        """Put text at the right edge, or leave it out where it would touch what is there."""
        width = cells(clean(text))
        if width and width + 1 < self.left:
            self.to(self.width - width).add(text, tone)
        return self

    def row(self) -> Row:
        """The row as data."""
        return tuple(self._spans)


def text_of(row: Row) -> str:
    """The row without its tones."""
    return "".join(span.text for span in row)


def row_cells(row: Row) -> int:
    """Columns of the row."""
    return sum(cells(span.text) for span in row)


def margins(row: Row, width: int) -> Row:
    """The row in exactly `width` columns, with one blank before it and at least one behind."""
    if not row:
        return EMPTY
    after = width - 1 - row_cells(row)
    if after < 1:
        return Line(width).gap(1).spans(row).row()
    (text, tone), *others = row
    if not others:
        return (Span(f" {text}{' ' * after}", tone),)
    last = others.pop()
    return (Span(" " + text, tone), *others, Span(last.text + " " * after, last.tone))


def changed_columns(old: Row, new: Row) -> tuple[int, int] | None:
    """First and one past the last column in which two rows look different, or None where they look the same."""
    if old == new:
        return None
    start = 0
    for before, after in zip(old, new, strict=False):
        if before == after:
            start += cells(after.text)
            continue
        if before.tone == after.tone:
            same = 0
            for a, b in zip(before.text, after.text, strict=False):
                if a != b:
                    break
                same += 1
            start += cells(after.text[:same])
        break
    end_old, end_new = row_cells(old), row_cells(new)
    end = max(end_old, end_new)
    if end_old == end_new:
        for before, after in zip(reversed(old), reversed(new), strict=False):
            if before == after:
                end -= cells(after.text)
                continue
            if before.tone == after.tone:
                same = 0
                for a, b in zip(reversed(before.text), reversed(after.text), strict=False):
                    if a != b:
                        break
                    same += 1
                if same:
                    end -= cells(after.text[-same:])
            break
    return min(start, max(end - 1, 0)), max(end, start + 1)


def meter(fraction: float | None, width: int, tone: Tone = "bar") -> tuple[Span, ...]:
    """A thin bar of `width` columns, heavy as far as it is filled; blank where the value is unknown."""
    if width <= 0:
        return ()
    if fraction is None:
        return (Span(" " * width, "track"),)
    halves = round(min(max(fraction, 0.0), 1.0) * width * 2)
    filled = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return tuple(span for span in (Span(filled, tone), Span("─" * (width - len(filled)), "track")) if span.text)


def stacked(parts: Sequence[tuple[float, str, Tone]], width: int) -> tuple[Span, ...]:
    """A bar of `width` columns from (share, glyph, tone) parts; a part that is there gets at least one column.

    Shares are of the whole bar and add up to at most 1; what is left over stays blank.
    """
    if width <= 0:
        return ()
    exact = [max(share, 0.0) * width for share, _, _ in parts]
    sizes = [max(int(size), 1) if size > 0 else 0 for size in exact]
    order = sorted(range(len(parts)), key=lambda index: exact[index] - sizes[index], reverse=True)
    missing = min(round(sum(exact)), width) - sum(sizes)
    for index in order:
        if missing > 0 and exact[index] > sizes[index]:
            sizes[index] += 1
            missing -= 1
    while sum(sizes) > width and any(size > 1 for size in sizes):
        sizes[sizes.index(max(sizes))] -= 1
    line = Line(width)
    for (_, glyph, tone), size in zip(parts, sizes, strict=True):
        line.add(glyph * size, tone)
    return line.to(width).row()
