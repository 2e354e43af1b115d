"""HTTP to a model server: one persistent client, stamps at socket read, errors in our own words.

Nothing here knows a server's dialect. `Wire` moves bytes and maps failures; `Lines` and `EventStream` cut a stream
into records whatever pieces it arrives in.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from chimera.domain.server import KEY_VARIABLE
from chimera.domain.text import plain
from chimera.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    BadAnswer,
    ContextExceeded,
    OutOfMemory,
    StreamBroken,
)

MAX_LINE = 4 * 1024 * 1024
"""Longest record of a stream, in bytes; a longer one is no answer of a model server."""
MAX_BODY = 64 * 1024 * 1024
_MAX_ERROR_BODY = 64 * 1024

_OUT_OF_MEMORY = (
    "out of memory", "out of device memory", "cudamalloc", "hipmalloc failed", "failed to allocate",
    "allocation failed", "not enough memory", "insufficient memory", "vk_error_out_of_device_memory",
    "erroroutofdevicememory", "requires more system memory", "memory layout cannot be allocated",
)  # fmt: skip
_CONTEXT = ("exceed_context", "longer than the context", "exceeds the available context", "context length exceeded")


@dataclass(frozen=True, slots=True)
class Opened:
    """Status and headers of a streamed answer have arrived."""

    at: float
    status: int
    headers: Mapping[str, str]
    retries: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One read from the socket."""

    at: float
    data: bytes


class Wire:
    """One persistent HTTP client for one server."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.perf_counter,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.clock = clock
        key = (os.environ if environ is None else environ).get(KEY_VARIABLE)
        self._connect_timeout_s = connect_timeout_s
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,  # a proxy from the environment must not stand between us and a local server
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _timeout(self, silence_s: float) -> httpx.Timeout:
        return httpx.Timeout(silence_s, connect=min(self._connect_timeout_s, silence_s))

    async def get(self, path: str, *, timeout_s: float = 10.0) -> tuple[int, Mapping[str, str], str]:
        """Status, headers (lower case) and text of a GET, whatever the status is. Raises `BackendUnavailable`."""
        status, headers, body = await self._whole("GET", path, None, timeout_s)
        return status, headers, body.decode("utf-8", "replace")

    async def json(self, method: str, path: str, body: object = None, *, timeout_s: float = 10.0) -> Any:
        """The JSON of an answer with a good status.

        Raises `BackendUnavailable`, `BackendRefused` kinds for a status of 400 and above, and `BadAnswer` where the
        answer is no JSON.
        """
        status, _, data = await self._whole(method, path, body, timeout_s)
        if status >= 400:
            raise refusal(status, data, where=f"{method} {self.url}{path}")
        return parse_json(data, where=f"{method} {self.url}{path}")

    async def _whole(
        self, method: str, path: str, body: object, timeout_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._client.stream(method, path, json=body, timeout=self._timeout(timeout_s)) as response:
                data = bytearray()
                deadline = self.clock() + timeout_s
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > MAX_BODY or self.clock() > deadline:
                        raise BadAnswer(
                            f"{self.url}{path} did not come to an end within {timeout_s:g} s and {MAX_BODY >> 20} MiB: "
                            "this is not the answer of a model server."
                        )
                return response.status_code, _lower(response.headers), bytes(data)
        except httpx.HTTPError as error:
            raise self._failure(error, path, timeout_s) from error

    async def stream(
        self, path: str, body: object, *, timeout_s: float, close: bool = False
    ) -> AsyncGenerator[Opened | Chunk, None]:
        """POST `body` and yield `Opened`, then every read from the socket with its time.

        `timeout_s` is the longest silence. With `close` the connection is not kept (llama-server closes it after a
        streamed answer although it says otherwise). A connection that is lost before any byte of the answer is
        tried once more, and counted in `Opened.retries`. Raises `BackendRefused` kinds for a status of 400 and
        above, `BackendUnavailable` before the answer began, `StreamBroken` after.
        """
        headers = {"Accept-Encoding": "identity"}
        if close:
            headers["Connection"] = "close"
        for retries in (0, 1):
            opened = False
            try:
                async with self._client.stream(
                    "POST", path, json=body, headers=headers, timeout=self._timeout(timeout_s)
                ) as response:
                    opened = True
                    yield Opened(self.clock(), response.status_code, _lower(response.headers), retries)
                    if response.status_code >= 400:
                        data = bytearray()
                        async for piece in response.aiter_raw():
                            data += piece
                            if len(data) > _MAX_ERROR_BODY:
                                break
                        raise refusal(response.status_code, bytes(data), where=f"POST {self.url}{path}")
                    async for piece in response.aiter_raw():
                        yield Chunk(self.clock(), piece)
                    return
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if opened:
                    raise StreamBroken(
                        f"{self.url}{path}: the connection was lost in the middle of the answer. "
                        "The server may have crashed: its log says why."
                    ) from error
                if retries:
                    raise self._failure(error, path, timeout_s) from error
            except httpx.TimeoutException as error:
                if opened:
                    raise StreamBroken(
                        f"{self.url}{path}: no byte came for {timeout_s:g} s in the middle of the answer."
                    ) from error
                raise self._failure(error, path, timeout_s) from error
            except httpx.HTTPError as error:
                raise self._failure(error, path, timeout_s) from error

    def _failure(self, error: httpx.HTTPError, path: str, timeout_s: float) -> BackendError:
        where = f"{self.url}{path}"
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            return BackendUnavailable(
                f"Nobody answers at {self.url}. Start the server, or give its address (--server)."
            )
        if isinstance(error, httpx.TimeoutException):
            return BackendUnavailable(f"{where} did not answer within {timeout_s:g} s.")
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
            return BackendUnavailable(f"{where} closed the connection without an answer, twice if it was a request.")
        return BadAnswer(f"{where} answered something that is not HTTP as we know it: {plain(str(error))}")


def _lower(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def parse_json(data: bytes | str, *, where: str) -> Any:
    """JSON, or `BadAnswer` with the beginning of what came instead."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        raise BadAnswer(f"{where} answered no JSON but: {plain(text[:80]) or '(nothing)'}") from error


def error_text(body: object) -> str | None:
    """The words of an error in any dialect: `{"error": "..."}`, `{"error": {"message": ...}}`, JSON inside a string."""
    if isinstance(body, dict):
        inner = body.get("error", body.get("message", body.get("detail")))
        if isinstance(inner, dict):
            words = [str(inner[key]) for key in ("type", "message") if inner.get(key)]
            return ": ".join(words) or None
        if isinstance(inner, str):
            try:  # Ollama passes its child's JSON on as a string
                nested = error_text(json.loads(inner))
            except (ValueError, RecursionError):
                nested = None
            return nested or inner
    return None


def refusal(status: int | None, body: bytes | str | dict[str, Any], *, where: str) -> BackendRefused:
    """The right kind of refusal for a status and a body, with the server's own words neutralised."""
    if isinstance(body, dict):
        words = error_text(body)
    else:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        try:
            words = error_text(json.loads(text))
        except (ValueError, RecursionError):
            words = None
        words = words or text[:200]
    said = plain(words or "")[:400] or "nothing more"
    known = (words or "").lower()
    message = f"{where} refused{f' with status {status}' if status else ''}: {said}"
    if any(sign in known for sign in _OUT_OF_MEMORY):
        return OutOfMemory(message, status=status)
    if any(sign in known for sign in _CONTEXT):
        return ContextExceeded(message, status=status)
    return BackendRefused(message, status=status)


class Lines:
    """Cuts bytes into lines at LF or CR LF, whatever pieces they arrive in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends. Raises `BadAnswer` for an endless line."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > MAX_LINE:
                raise BadAnswer(f"The server sent a line of over {MAX_LINE >> 20} MiB: not a stream of tokens.")
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [line.removesuffix(b"\r") for line in lines]

    def rest(self) -> bytes:
        """What came after the last end of line."""
        return bytes(self._rest)


class EventStream:
    """Cuts a server-sent event stream into the data of its events (WHATWG HTML, section 9.2)."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are complete now; comments and other fields are left out."""
        events: list[bytes] = []
        for line in self._lines.feed(data):
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events

    def rest(self) -> bytes:
        """Data of an event that was never ended; some servers leave out the last empty line."""
        line = self._lines.rest()
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        data, self._data = b"\n".join(self._data), []
        return data
