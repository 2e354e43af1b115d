"""stdout is data, stderr is narration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from chimera.domain.text import plain


def emit_json(document: object) -> None:
    """One JSON document on stdout; NaN and infinity are a defect, not data."""
    json.dump(document, sys.stdout, indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")


def emit(text: str = "") -> None:
    """A line of data for a person."""
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """A line of narration."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def ticker(text: str) -> None:
    """A line that the next one replaces; only where a person watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[: _width()]}")
        sys.stderr.flush()


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
