"""A further Ollama on this host, on the store of models that the first one has; ended by whoever started it."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from chimera.errors import BackendError, BackendUnavailable, ConfigError

from .llama_process import EngineProcess, python_program
from .ollama import Ollama

READY_S = 30.0
_LEASH_S = 10.0
_ASK_S = 0.1
_PORTS = 20


def variables(url: str, store: Path | None) -> dict[str, str]:
    """What the environment of a further `ollama serve` must say.

    `OLLAMA_NOPRUNE` keeps its start from removing files that the first one is still fetching.
    """
    found = {"OLLAMA_HOST": urlsplit(url).netloc, "OLLAMA_NOPRUNE": "1"}
    return found if store is None else {**found, "OLLAMA_MODELS": str(store)}


def command(url: str, store: Path | None = None) -> str:
    """The line that a person types to start a further Ollama at this address."""
    words = [f"{name}={shlex.quote(value)}" for name, value in variables(url, store).items()]
    return " ".join([*words, "ollama", "serve"])


def store_of(path: str | None) -> Path | None:
    """The store that a model's file lies in; None where the file is not known here."""
    blob = Path(path) if path else None
    return blob.parent.parent if blob is not None and blob.parent.name == "blobs" else None


def free_address(beside: str) -> str:
    """An address for a further Ollama: the first port above that one's at which nobody listens.

    Raises `ConfigError` where the next ports are all taken.
    """
    first = (urlsplit(beside).port or 11434) + 1
    for port in range(first, first + _PORTS):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return f"http://127.0.0.1:{port}"
    raise ConfigError(f"The ports {first} to {first + _PORTS - 1} are all taken: name an address with --instances.")


class StartedOllama:
    """An `ollama serve` of our own. It ends with us, however we end."""

    def __init__(self, url: str, store: Path | None) -> None:
        self._url = url
        self._store = store
        self._process: EngineProcess | None = None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `BackendUnavailable` with its own last words where it does not."""
        program = shutil.which("ollama")
        if program is None:
            raise BackendUnavailable(
                "There is no program `ollama` here. Where it is, start the further server with: "
                f"{command(self._url, self._store)}"
            )
        process = EngineProcess([*python_program("leash"), program, "serve"], env=variables(self._url, self._store))
        self._process = process
        await process.start(_LEASH_S)
        server = Ollama(self._url)
        deadline = time.monotonic() + READY_S
        try:
            while True:
                try:
                    await server.connect()
                except BackendError as error:
                    if await process.ended(_ASK_S):
                        raise BackendUnavailable(
                            f"`ollama serve` at {self._url} {process.end()}: {process.last_words()}"
                        ) from error
                    if time.monotonic() >= deadline:
                        raise BackendUnavailable(
                            f"`ollama serve` did not answer at {self._url} within {READY_S:g} s: {process.last_words()}"
                        ) from error
                    continue
                if await process.ended(_ASK_S):  # somebody else answers there
                    raise BackendUnavailable(f"`ollama serve` at {self._url} {process.end()}: {process.last_words()}")
                return
        except BaseException:
            await asyncio.shield(self.close())
            raise
        finally:
            await server.close()

    async def close(self) -> None:
        """End it and nothing else."""
        if self._process is not None:
            await self._process.stop()
            self._process = None
