"""Our own command line, in processes of its own: for long work, and for what this process never loads.

What is begun so belongs to the app: neither the end of a screen ends it nor that of the UI.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual.message import Message


@dataclass(frozen=True, slots=True)
class Said:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What it printed with `--json`."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def problem(self) -> str:
        """The last sentence of its narration."""
        lines = [line for line in self.err.strip().splitlines() if line.strip()]
        return lines[-1] if lines else "The command line gave no answer."


@dataclass
class Answered(Message):
    """A command has ended."""

    name: str
    said: Said
    then: Callable[[Said], object]


def ask_chimera(*arguments: str) -> Said:
    """Run a command to its end; for a thread. The terminal's end does not reach it: it is a session of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "chimera", *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Said(2, "", f"The command line could not be started: {error}")
    return Said(done.returncode, done.stdout, done.stderr)
