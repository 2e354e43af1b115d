"""The log of an Ollama server on this host: the few lines that tell what its API does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from chimera.backends.address import is_local
from chimera.domain.server import ServerInfo
from chimera.domain.text import plain

TELLING = (
    "forcing full prompt re-processing", "truncating input prompt", "evicting", "reducing automatic context",
    "invalid option provided", "requires flash_attn", "inference compute", "offloaded ", "out of memory",
)  # fmt: skip
"""Words of the lines that rules look for; no line of those holds what somebody wrote to a model."""
_KEPT = 20
_EVERY_S = 30.0
_SERVICE_PORT = 11434
_TAIL_BYTES = 512 * 1024
_JOURNAL_S = 3.0
_STAMP = re.compile(r"\btime=(\S+)")
_ALWAYS = "inference compute"
"""Told once, when the server starts: which devices it found."""


def telling(lines: Iterable[str]) -> list[str]:
    """The newest lines that rules look for, each once, neutralised."""
    found = [plain(line)[:300] for line in lines if any(words in line for words in TELLING)]
    return list(dict.fromkeys(found))[-_KEPT:]


def service_lines(kind: str, url: str | None, since: float) -> list[str]:
    """Of a server's log by its address: of Ollama's own port on this host, since only that one's log is known."""
    ours = kind == "ollama" and url is not None and is_local(url) and urlsplit(url).port == _SERVICE_PORT
    return ollama_log(since) if ours else []


class ServiceLog:
    """What a server's log says of the last minutes, for looks in quick succession: read anew every half minute."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._due = 0.0
        self._lines: list[str] = []

    def lines(self, server: ServerInfo | None, now: float) -> list[str]:
        """The lines that rules look for; `now` is the wall clock."""
        if server is not None and now >= self._due:
            self._due = now + _EVERY_S
            self._lines = service_lines(server.kind, server.url, now - self._window_s)
        return self._lines


def ollama_log(since: float) -> list[str]:
    """Lines of Ollama's log that rules look for, written since a moment of the wall clock; empty where none is read.

    Those of the devices that it found are kept whatever their age, as of its last start. Never raises.
    """
    text = _file() or _journal()
    return telling(_since(text.splitlines(), since))


def _since(lines: Iterable[str], since: float) -> list[str]:
    """Lines without a time of their own belong to the last one that had one."""
    kept: list[str] = []
    devices: list[str] = []
    at = 0.0
    listing = False
    for line in lines:
        if stamp := _STAMP.search(line):
            try:
                at = datetime.fromisoformat(stamp[1]).timestamp()
            except ValueError:
                at = 0.0
        if _ALWAYS in line:
            if not listing:
                devices.clear()  # the server was started anew
            devices.append(line)
        elif at >= since:
            kept.append(line)
        listing = _ALWAYS in line
    return [*devices, *kept]


def _file() -> str:
    """The end of the log that the desktop builds keep."""
    try:
        if sys.platform == "win32":
            path = Path(os.environ.get("LOCALAPPDATA", "")) / "Ollama" / "server.log"
        else:
            path = Path.home() / ".ollama" / "logs" / "server.log"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except (OSError, RuntimeError):  # a user may have no home
        return ""


def _journal() -> str:
    """The service's lines in the system's journal, where there is one and it may be read."""
    if sys.platform != "linux":
        return ""
    command = ["journalctl", "--unit", "ollama", "--lines", "4000", "--output", "cat", "--no-pager", "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=_JOURNAL_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")[-_TAIL_BYTES:]
