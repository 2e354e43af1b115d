"""The processes behind an Ollama server on this host: one `llama-server` child a loaded model.

Their arguments tell what the API does not: layers, slots, batch, threads; their `/slots` shows every client's tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from chimera.domain.options import FLASH_ATTENTION, KV_CACHE_TYPES, Options

_CHILD = frozenset({"llama-server", "llama-server.exe"})
_PARENT = frozenset({"ollama", "ollama.exe", "ollama app.exe"})


@dataclass(frozen=True, slots=True)
class Child:
    """A `llama-server` that an Ollama server started."""

    pid: int
    port: int
    argv: tuple[str, ...]

    @property
    def url(self) -> str:
        """Its own address, on this host only."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def blob(self) -> str:
        """The file of its model, as it was passed."""
        return argument(self.argv, "--model", "-m") or ""

    @property
    def options(self) -> Options:
        """The load options that its arguments give; None where it was left to decide by itself."""
        slots = _integer(self.argv, "-np", "--parallel") or 1
        context = _integer(self.argv, "-c", "--ctx-size")
        flash = argument(self.argv, "--flash-attn", "-fa")
        cache = argument(self.argv, "--cache-type-k", "-ctk")
        return Options(
            num_gpu=_integer(self.argv, "-ngl", "--gpu-layers", "--n-gpu-layers"),
            num_ctx=context // slots if context else None,
            num_batch=_integer(self.argv, "-b", "--batch-size"),
            num_thread=_integer(self.argv, "-t", "--threads"),
            flash_attention=next((word for word in FLASH_ATTENTION if word == flash), None),
            kv_cache_type=next((word for word in KV_CACHE_TYPES if word == cache), None),
            num_parallel=slots,
        )


def argument(argv: Sequence[str], *names: str) -> str | None:
    """The value after the first of these flags, or after its `=`."""
    for index, word in enumerate(argv):
        if word in names and index + 1 < len(argv):
            return argv[index + 1]
        flag, equals, value = word.partition("=")
        if equals and flag in names:
            return value
    return None


def _integer(argv: Sequence[str], *names: str) -> int | None:
    with contextlib.suppress(ValueError, TypeError):
        return int(argument(argv, *names) or "")
    return None


def children(server_port: int | None = None) -> tuple[Child, ...]:
    """The children of Ollama servers on this host that may be seen; takes some 10 ms, so call it in a thread.

    With `server_port` the children of a server that listens elsewhere are left out, where its sockets can be read.
    """
    found: list[Child] = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in _CHILD:
            continue
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is None or parent.name().lower() not in _PARENT:
                continue
            if server_port is not None and _listens(parent, server_port) is False:
                continue
            argv = tuple(process.cmdline())
            port = _integer(argv, "--port")
            if port is not None:
                found.append(Child(process.pid, port, argv))
    return tuple(found)


def _listens(process: psutil.Process, port: int) -> bool | None:
    """Whether a process listens on a port; None where its sockets may not be read."""
    try:
        sockets = process.net_connections(kind="tcp")
    except psutil.Error:
        return None
    ports = {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}
    return port in ports if ports else None
