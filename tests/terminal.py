"""The installed command in a real terminal: a tmux server of a test's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

CHIMERA = str(Path(sys.executable).with_name("chimera"))


class Terminal:
    """A tmux server of its own."""

    def __init__(self, home: Path) -> None:
        self._socket = f"chimera-{uuid.uuid4().hex[:8]}"
        self._env = {**os.environ, "CHIMERA_HOME": str(home), "TEXTUAL_ANIMATIONS": "none"}
        for name in ("TMUX", "COLUMNS", "LINES"):  # the pane has a size of its own
            self._env.pop(name, None)

    def tmux(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, "-f", "/dev/null", *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=check,
            env=self._env,
        )
        return done.stdout

    def open(
        self, name: str, command: str, width: int = 120, height: int = 40, env: Mapping[str, str] | None = None
    ) -> None:
        """A session that runs a command, with this in its environment besides; the screen stays when it has ended."""
        given = " ".join(f"{key}={shlex.quote(value)}" for key, value in (env or {}).items())
        if given:
            command = f"env {given} {command}"
        self.tmux("new-session", "-d", "-s", name, "-x", str(width), "-y", str(height), command)
        self.tmux("set-option", "-t", name, "remain-on-exit", "on")

    def press(self, name: str, *keys: str) -> None:
        self.tmux("send-keys", "-t", name, *keys)

    def screen(self, name: str) -> str:
        return self.tmux("capture-pane", "-p", "-t", name)

    def raw(self, name: str) -> str:
        return self.tmux("capture-pane", "-p", "-e", "-t", name)

    def wait(self, name: str, reached: Callable[[str], object], timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.screen(name)
            if reached(text):
                return text
            assert time.monotonic() < deadline, f"the screen did not come to that:\n{text}"
            time.sleep(0.1)

    def chimera(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CHIMERA, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self._env,
        )
