"""A llama.cpp server as a child process: its log kept, its end certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from chimera.errors import BackendError, BackendUnavailable

from .llama_log import EngineFacts, cause_of, message_of
from .wire import refusal

KEEP_LINES = 400
"""Lines of the engine's log that are kept."""
STOP_S = 5.0
"""Patience with an orderly end before the process is killed."""
_LAST_LINES = 12
_SIGNAL_S = 2.0
"""Patience with a signal."""
_MAX_LINE = 2000


def python_program(name: str) -> list[str]:
    """The command for one of the programs beside this file, started so that the current folder shadows no module."""
    return [sys.executable, "-P", str(Path(__file__).with_name(f"{name}.py"))]


class EngineProcess:
    """One child process that ends when its standard input closes, so that it never outlives us."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, folder: str | None = None
    ) -> None:
        """The command, what its environment has beside ours, and the folder that it runs in where it is not ours."""
        self._command = tuple(command)
        self._env = {**os.environ, **env} if env else None
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loading = True
        self.log: deque[str] = deque(maxlen=KEEP_LINES)
        """The last lines of its standard error."""
        self.facts = EngineFacts()
        """What the log told of the load."""

    async def start(self, ready_s: float) -> bytes:
        """Start it and wait for the first line of its standard output; empty where it ended before.

        Raises `BackendUnavailable` where it cannot be started or says nothing for `ready_s`. A call that is
        cancelled leaves no process behind.
        """
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                cwd=self._folder,
            )
        except OSError as error:
            raise BackendUnavailable(f"{self._command[0]} could not be started: {error.strerror or error}.") from error
        assert process.stdout is not None
        assert process.stderr is not None
        self._reader = asyncio.create_task(self._read_log(process.stderr), name=f"log of engine {process.pid}")
        try:
            async with asyncio.timeout(ready_s):
                line = await process.stdout.readline()
        except TimeoutError:
            words = self.last_words()
            await self.stop(patience_s=0.0)
            raise BackendUnavailable(
                f"The engine was not ready within {ready_s:g} s and was ended. Its last words: {words}"
            ) from None
        except BaseException:
            await self.stop(patience_s=0.0)
            raise
        if not line:
            await self.ended(STOP_S)
        return line

    def loaded(self) -> None:
        """The load is over: what the log says from now on is about requests."""
        self._loading = False

    @property
    def pid(self) -> int | None:
        """Its process id, once started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def ended(self, within_s: float) -> bool:
        """Wait until it has ended and its log is read to the end; False where it still runs after that time."""
        if self._process is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._process.wait()
                if self._reader is not None:
                    await asyncio.shield(self._reader)
        return self._process.returncode is not None

    def last_words(self) -> str:
        """The line of the log that tells most about an end."""
        # After the load an error further back was about a request that was refused, not about the end.
        lines = list(self.log) if self._loading else list(self.log)[-_LAST_LINES:]
        return (
            cause_of(lines)
            or next((text for line in reversed(self.log) if (text := message_of(line))), None)
            or "(its log is empty)"
        )

    def end(self) -> str:
        """How it ended, for a sentence: `ended with exit status 1`."""
        code = self._process.returncode if self._process else None
        if code is None:
            return "stopped answering"
        number = -code if code < 0 else code - 128  # above 128: a leash passes on what ended its program
        if number == 9:
            return "was killed by signal 9, as the system does when memory runs out"
        return f"was killed by signal {number}" if number > 0 else f"ended with exit status {code}"

    def load_failure(self, asked: str) -> BackendError:
        """The error for an engine that ended before it was ready, of the kind that llama.cpp's own words tell."""
        words = self.last_words()
        kind = type(refusal(None, {"error": words}, where=""))
        return kind(f"The engine {self.end()} while it loaded the model with {asked}. llama.cpp says: {words}")

    async def stop(self, patience_s: float = STOP_S) -> None:
        """End it: close its standard input, wait, terminate, kill. Returns when it is gone; may be called twice."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            if patience_s > 0:
                await self.ended(patience_s)
        finally:
            # Shielded: a caller that is cancelled here must not leave the process behind.
            await asyncio.shield(self._finish(process))

    async def _finish(self, process: asyncio.subprocess.Process) -> None:
        for signal in (process.terminate, process.kill):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    signal()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _SIGNAL_S)
        if self._reader is not None:
            # Whoever else holds the pipe may hold it for longer than the process lives.
            await asyncio.wait({self._reader}, timeout=_SIGNAL_S)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while data := await stream.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[:_MAX_LINE]
            for line in lines:
                self._keep(line)
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = line[:_MAX_LINE].decode("utf-8", "replace").rstrip("\r")
        self.log.append(text)
        if self._loading:
            self.facts.read(text)
