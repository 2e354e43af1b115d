"""stdout is data, stderr is narration."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from chimera.domain.text import json_text, plain
from chimera.errors import ChimeraError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class OutputLost(ChimeraError):
    """stdout cannot be written. Without words where its reader has gone: that is the reader's right, no failure."""

    def __init__(self, problem: OSError) -> None:
        gone = isinstance(problem, BrokenPipeError)
        words = (
            "stdout is closed: there is nowhere to write to."
            if problem.errno == errno.EBADF
            else f"stdout cannot be written ({problem.strerror}): what stands there is not complete."
        )
        super().__init__("" if gone else words)
        self.exit_code = 0 if gone else 2


class _Stdout(io.FileIO):
    """stdout, whose loss is told apart from every other file's; what is written after it goes nowhere."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as problem:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise OutputLost(problem) from problem


def open_streams() -> None:
    """Make the three streams usable, whatever the shell left of them; before anything else opens a file.

    A closed descriptor would be given to the next file, and what we print would go into that one, the journal say. In
    its place stands one that is empty or, for stdout, refuses to be written. What the terminal's encoding has no
    character for is written escaped.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest one that is free: this one
    encoding = getattr(sys.stdout, "encoding", "utf-8")
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=os.isatty(1),
    )
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a stream has no path
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - a stream has no path


def emit_json(document: object, *, one_line: bool = False) -> None:
    """One JSON document on stdout, or with `one_line` the next one of many, which its reader gets at once."""
    sys.stdout.write(json_text(document, one_line=one_line))
    if one_line:
        sys.stdout.flush()


def emit(text: str = "") -> None:
    """A line of data for a person."""
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """A line of narration; where nobody can read it the command does its work all the same."""
    with _unheard():
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def ticker(text: str) -> None:
    """A line that the next one replaces; only where a person watches."""
    with _unheard():
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text[: _width()]}")
            sys.stderr.flush()


@contextmanager
def _unheard() -> Iterator[None]:
    """Narration that nobody can read any more is dropped."""
    try:
        yield
    except OSError:
        drop_stderr()


def drop_stderr() -> None:
    """Nobody reads stderr any more: what is still buffered goes nowhere, or Python would end with 120 over it."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _width() -> int:
    import shutil

    return max(20, shutil.get_terminal_size().columns - 1)


def emit_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [[plain("—" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
    for row in [list(head), *cells]:
        line = [
            cell.rjust(width) if _numeric(cell) else cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ]
        emit("  ".join(line).rstrip())


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "-+" and cell[1:2].isdigit())
