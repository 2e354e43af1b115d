"""Whatever a server does wrong ends as an error of the right kind, in words, in time, and leaves the backend usable.

And however its bytes are cut on their way, they say the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimera.backends.base import Backend, Done, Event, GenerateRequest, Headers, Tokens
from chimera.backends.llama_server import LlamaServer
from chimera.backends.ollama import Ollama
from chimera.backends.openai import OpenAICompatible
from chimera.backends.wire import Chunk, Opened, Wire
from chimera.domain.server import ServerInfo
from chimera.errors import BackendError, BackendRefused, BackendUnavailable, BadAnswer, StreamBroken

from .contract import collect, done_of, tokens_of, unique_prompt
from .scripted import (
    Answer,
    Exchange,
    Recording,
    ScriptedOllama,
    ScriptedOpenAI,
    ScriptedServer,
    absent_url,
    body,
    broken_off,
    closed_before_any_byte,
    cut_chunk,
    endless_line,
    endless_stream,
    ends_early,
    html,
    no_http,
    recorded,
    silence,
    wrong_length,
)
from .scripted_llama import ScriptedLlama

SILENCE_S = 0.3


@dataclass(frozen=True)
class Dialect:
    """One backend class with its scripted server and a token in its own words."""

    open: Callable[[str], Backend]
    server: Callable[[], ScriptedServer]
    path: str
    token: bytes
    end: bytes
    content_type: str

    async def retype(self, exchange: Exchange, answer: Answer) -> None:
        """The answer under the content type that this dialect's streams have."""
        head = exchange.head

        async def typed(status: int = 200, headers: Any = None, *, chunked: bool = True, flush: bool = True) -> None:
            if (headers or {}).get("Content-Type", "").startswith("application/"):
                headers = {**headers, "Content-Type": self.content_type}
            await head(status, headers, chunked=chunked, flush=flush)

        exchange.head = typed  # type: ignore[method-assign]  # wraps the real one
        await answer(exchange)

    def typed(self, answer: Answer) -> Answer:
        return lambda exchange: self.retype(exchange, answer)


DIALECTS = {
    "ollama": Dialect(
        open=Ollama,
        server=ScriptedOllama,
        path="/api/generate",
        token=b'{"response":"a","done":false}\n',
        end=b'{"response":"","done":true,"done_reason":"length"}\n',
        content_type="application/x-ndjson",
    ),
    "openai": Dialect(
        open=OpenAICompatible,
        server=ScriptedOpenAI,
        path="/v1/completions",
        token=b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n',
        end=b"data: [DONE]\n\n",
        content_type="text/event-stream",
    ),
    "llama_server": Dialect(
        open=LlamaServer,
        server=ScriptedLlama,
        path="/completion",
        token=b'data: {"index":0,"content":"a","tokens":[7],"stop":false}\n\n',
        end=b'data: {"index":0,"content":"","tokens":[],"stop":true,"stop_type":"limit"}\n\n',
        content_type="text/event-stream",
    ),
}

Fault = Callable[[Dialect], Answer]

GENERATING: dict[str, tuple[Fault, tuple[type[BackendError], ...]]] = {
    "500": (lambda d: body(500, {"error": "boom"}), (BackendRefused,)),
    "503": (lambda d: body(503, "Service Unavailable"), (BackendRefused,)),
    "html": (lambda d: html(), (BadAnswer,)),
    "html under the right type": (
        lambda d: body(200, b"<html>\n<h1>hi", d.content_type), (BadAnswer, StreamBroken),
    ),
    "empty": (lambda d: body(200, b"", d.content_type), (BadAnswer, StreamBroken)),
    "one json": (lambda d: body(200, {"all": "at once"}), (BadAnswer,)),
    "endless stream of something": (lambda d: endless_stream(), (BadAnswer, StreamBroken)),
    "endless stream of tokens": (lambda d: endless_stream(d.token), (BadAnswer,)),
    "endless stream of comments": (lambda d: endless_stream(b": ping\n\n", every_s=0.02), (BadAnswer, StreamBroken)),
    "endless stream of empty lines": (lambda d: endless_stream(b"\n\n", every_s=0.02), (StreamBroken,)),
    "endless line": (lambda d: endless_line(), (BadAnswer, StreamBroken)),
    "slow endless line": (lambda d: endless_stream(b'data: {"x', every_s=0.02), (BadAnswer, StreamBroken)),
    "half a json line, ended": (lambda d: ends_early(d.token + d.token[:15]), (BadAnswer, StreamBroken)),
    "half a json line, closed": (lambda d: broken_off(d.token + d.token[:15]), (StreamBroken,)),
    "ended in mid-stream": (lambda d: ends_early(d.token), (StreamBroken,)),
    "closed in mid-stream": (lambda d: broken_off(d.token * 3), (StreamBroken,)),
    "reset in mid-stream": (lambda d: broken_off(d.token * 3, reset=True), (StreamBroken,)),
    "closed before any byte": (lambda d: closed_before_any_byte(), (BackendUnavailable,)),
    "reset before any byte": (lambda d: closed_before_any_byte(reset=True), (BackendUnavailable,)),
    "silence": (lambda d: silence(), (BackendUnavailable,)),
    "silence in mid-stream": (lambda d: silence(d.token), (StreamBroken,)),
    "short of its length": (lambda d: wrong_length(d.token, 4000), (StreamBroken,)),
    "cut chunk": (lambda d: cut_chunk(d.token), (StreamBroken,)),
    "no http": (lambda d: no_http(), (BackendUnavailable, BadAnswer)),
    "a number where an object should be": (lambda d: body(200, b"data: 7\n\n", d.content_type), (BadAnswer,)),
    "fields of other types": (
        lambda d: body(200, d.token.replace(b'"a"', b"[1]").replace(b'"index":0', b'"index":[]'), d.content_type),
        (BadAnswer,),
    ),
}  # fmt: skip


def request() -> GenerateRequest:
    return GenerateRequest(unique_prompt(), 8, timeout_s=SILENCE_S)


@pytest.mark.parametrize("fault", GENERATING)
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_fault_while_generating_is_an_error_in_words_and_in_time(name: str, fault: str) -> None:
    dialect = DIALECTS[name]
    make, kinds = GENERATING[fault]
    async with dialect.server() as server:
        backend = dialect.open(server.url)
        await backend.connect()
        await collect(backend.generate(request()))
        answer = make(dialect)
        server.route("POST", dialect.path, answer if "html" in fault or fault == "one json" else dialect.typed(answer))
        before = time.perf_counter()
        with pytest.raises(kinds) as failed:
            await collect(backend.generate(request()))
        assert time.perf_counter() - before < 2 * SILENCE_S + 2
        assert "127.0.0.1" in str(failed.value)
        assert str(failed.value).isprintable()
        server._routes.clear()
        assert len(tokens_of(await collect(backend.generate(request())))) == 8
        await backend.close()


CONNECTING: dict[str, Answer] = {
    "500": body(500, {"error": "boom"}),
    "503": body(503, "Service Unavailable"),
    "html": html(),
    "html 404": html(404),
    "endless stream": endless_stream(b'{"status":"still here"}\n' * 1000),
    "endless line": endless_line(),
    "half a json line": body(200, b'{"version": "0.'),
    "short of its length": wrong_length(b'{"version": "0.1"}', 500),
    "closed before any byte": closed_before_any_byte(),
    "no http": no_http(),
    "a list": body(200, [1, 2, 3]),
    "null": body(200, b"null"),
    "nothing": body(200, b""),
}


@pytest.mark.parametrize("fault", CONNECTING)
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_fault_while_connecting_is_an_error_in_words(name: str, fault: str) -> None:
    async with ScriptedServer() as server:
        for method in ("GET", "POST"):
            server.route(method, "*", CONNECTING[fault])
        backend = DIALECTS[name].open(server.url)
        with pytest.raises(BackendError) as failed:
            await asyncio.wait_for(backend.connect(), 15)
        assert "127.0.0.1" in str(failed.value)
        assert str(failed.value).isprintable()
        await backend.close()


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_server_that_is_absent_is_unavailable_to_every_call(name: str) -> None:
    backend = DIALECTS[name].open(absent_url())
    for call in (backend.connect, backend.models, backend.model, backend.effective):
        with pytest.raises(BackendUnavailable, match=r"Nobody answers at http://127.0.0.1:\d+"):
            await call()
    with pytest.raises(BackendUnavailable):
        await collect(backend.generate(request()))
    await backend.close()


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_connection_lost_before_any_byte_is_one_counted_retry(name: str) -> None:
    dialect = DIALECTS[name]
    async with dialect.server() as server:
        backend = dialect.open(server.url)
        await backend.connect()
        server.route("POST", dialect.path, closed_before_any_byte(), server.default)
        events = await collect(backend.generate(request()))
        assert done_of(events).retries == 1
        assert len(tokens_of(events)) == 8
        await backend.close()


@pytest.mark.parametrize("name", DIALECTS)
async def test_escape_sequences_in_a_model_pass_as_data(name: str) -> None:
    """They are neutralised where they are shown, not where they are measured."""
    dialect = DIALECTS[name]
    evil = dialect.token.replace(b'"a"', rb'"\u001b]0;owned\u0007[red]"')
    async with dialect.server() as server:
        backend = dialect.open(server.url)
        await backend.connect()
        server.route("POST", dialect.path, dialect.typed(ends_early(evil + dialect.end)))
        events = backend.generate(request())
        texts = [event.text async for event in events if isinstance(event, Tokens)]
        assert texts == ["\x1b]0;owned\x07[red]"]
        await backend.close()


# ---- however it is cut -----------------------------------------------------------------------------------------------


class Replay(Wire):
    """Hands out a stream in given pieces, without a socket; the n-th piece is read at second n."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("http://replayed", environ={})
        self.pieces: list[bytes] = []
        self.answers = answers

    async def json(self, method: str, path: str, body: object = None, *, timeout_s: float = 10.0) -> Any:
        return self.answers[path]

    async def stream(
        self, path: str, body: object, *, timeout_s: float, close: bool = False
    ) -> Any:  # an async generator, like the one that it stands for
        yield Opened(0.0, 200, {"content-type": "text/event-stream"}, 0)
        for index, piece in enumerate(self.pieces):
            yield Chunk(float(index), piece)


def replayed(name: str) -> tuple[Replay, Backend]:
    if name.startswith("ollama/v1-"):
        wire = Replay({"/v1/models": {"data": [{"id": "m"}]}})
        openai = OpenAICompatible("http://replayed", wire=wire)
        openai._name, openai._info = "m", ServerInfo("openai", "http://replayed")
        return wire, openai
    wire = Replay({"/api/tags": {"models": [{"name": "m"}]}, "/api/ps": {"models": []}, "/api/show": {}})
    return wire, Ollama("http://replayed", "m", wire=wire)


async def outcome(wire: Replay, backend: Backend, pieces: list[bytes]) -> tuple[list[Event], str]:
    """The events, and the error that ended them."""
    wire.pieces = pieces
    events: list[Event] = []
    try:
        async for event in backend.generate(replace(request(), timeout_s=1e9)):
            events.append(event)  # noqa: PERF401 - what came before an error counts as well
    except BackendError as error:
        return events, f"{type(error).__name__}: {error}"
    return events, ""


def timeless(events: list[Event]) -> list[Event]:
    return [replace(event, at=0.0) for event in events]


STREAMS = (
    "ollama/generate-stream-cold.jsonl",
    "ollama/generate-stream-warm-prefix-cached.jsonl",
    "ollama/generate-stream-one-token.jsonl",
    "ollama/generate-stream-queued.jsonl",
    "ollama/generate-stream-logprobs.jsonl",
    "ollama/generate-stream-unknown-option-ignored.jsonl",
    "ollama/generate-prompt-truncated-silently.jsonl",
    "ollama/error-midstream-child-killed.jsonl",
    "ollama/v1-completions-stream-usage.jsonl",
    "ollama/v1-chat-stream-usage.jsonl",
    "ollama/v1-chat-stream.jsonl",
)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_recorded_stream_cut_in_two_at_any_byte_says_the_same(name: str) -> None:
    data = Recording.of(name).body
    wire, backend = replayed(name)
    whole, error = await outcome(wire, backend, [data])
    assert tokens_of(whole)
    assert isinstance(whole[-1], Done) or error.startswith("StreamBroken")
    for place in range(1, len(data)):
        events, failed = await outcome(wire, backend, [data[:place], data[place:]])
        assert (timeless(events), failed) == (timeless(whole), error), place


@pytest.mark.parametrize("name", STREAMS)
async def test_a_recorded_stream_in_single_bytes_says_the_same_and_is_stamped_at_the_last_of_them(name: str) -> None:
    data = Recording.of(name).body
    wire, backend = replayed(name)
    whole, error = await outcome(wire, backend, [data])
    events, failed = await outcome(wire, backend, [data[index : index + 1] for index in range(len(data))])
    assert (timeless(events), failed) == (timeless(whole), error)
    end = b"\n\n" if name.startswith("ollama/v1-") else b"\n"
    ends = {index + len(end) - 1 for index in range(len(data)) if data[index:].startswith(end)} | {len(data) - 1}
    assert {event.at for event in tokens_of(events)} <= ends


@pytest.mark.parametrize("name", STREAMS[:2] + STREAMS[8:9])
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_recorded_stream_in_pieces_of_any_sizes_says_the_same(name: str, sizes: list[int]) -> None:
    data = Recording.of(name).body
    pieces: list[bytes] = []
    start = 0
    while start < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[start : start + size])
        start += size

    async def both() -> None:
        wire, backend = replayed(name)
        whole, error = await outcome(wire, backend, [data])
        events, failed = await outcome(wire, backend, pieces)
        assert (timeless(events), failed) == (timeless(whole), error)

    asyncio.run(both())


@pytest.mark.parametrize("name", ["ollama/generate-stream-cold.jsonl", "ollama/v1-completions-stream-usage.jsonl"])
async def test_the_same_holds_over_a_socket(name: str) -> None:
    dialect = DIALECTS["openai" if "/v1-" in name else "ollama"]

    async def over(answer: Answer) -> AsyncIterator[Event]:
        async with dialect.server() as server:
            server.route("POST", dialect.path, answer)
            backend = dialect.open(server.url)
            async for event in backend.generate(replace(request(), timeout_s=10)):
                yield event
            await backend.close()

    at_once = [event async for event in over(recorded(name, cut=1_000_000))]
    in_bytes = [event async for event in over(recorded(name, cut=1))]
    assert timeless(at_once) == timeless(in_bytes)
    assert isinstance(at_once[0], Headers)
    assert isinstance(at_once[-1], Done)
