"""Bytes, records and failures, before any server's dialect."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.backends.wire import (
    MAX_LINE,
    Chunk,
    EventStream,
    Lines,
    Opened,
    Wire,
    error_text,
    parse_json,
    refusal,
)
from chimera.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    BadAnswer,
    ContextExceeded,
    OutOfMemory,
    StreamBroken,
)

from .scripted import (
    Answer,
    Recording,
    ScriptedServer,
    absent_url,
    body,
    broken_off,
    closed_before_any_byte,
    cut_chunk,
    endless_line,
    html,
    no_http,
    recorded,
    silence,
    wrong_length,
)


def cuts(data: bytes, at: list[int]) -> list[bytes]:
    """`data` cut at these places, wherever they fall inside it."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(edges)]


async def read(
    wire: Wire, path: str = "/stream", *, timeout_s: float = 5.0, close: bool = False
) -> tuple[Opened | None, bytes, list[Chunk]]:
    """Opening, whole body and pieces of one streamed answer."""
    opened, chunks = None, []
    async for item in wire.stream(path, {"x": 1}, timeout_s=timeout_s, close=close):
        if isinstance(item, Opened):
            opened = item
        else:
            chunks.append(item)
    return opened, b"".join(chunk.data for chunk in chunks), chunks


# ---- records ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))), st.data())
def test_lines_are_the_same_wherever_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    reader = Lines()
    found = [line for piece in cuts(whole, data.draw(st.lists(st.integers(0, 500)))) for line in reader.feed(piece)]
    assert found == lines
    assert reader.rest() == b""


@given(st.lists(st.sampled_from(["data: a", "data:b", ": ping", "event: x", "id: 3", "data", "", "\tq"])), st.data())
def test_events_are_the_same_wherever_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    whole = "".join(line + "\n" for line in lines).encode()
    at_once, in_pieces = EventStream(), EventStream()
    expected = at_once.feed(whole)
    found = [each for piece in cuts(whole, data.draw(st.lists(st.integers(0, 500)))) for each in in_pieces.feed(piece)]
    assert found == expected
    assert in_pieces.rest() == at_once.rest()


def test_a_character_cut_in_two_stays_whole() -> None:
    reader, line = Lines(), "ein Löwe 🦁 und eine Ziege".encode()
    found = [each for index in range(len(line)) for each in reader.feed(line[index : index + 1])]
    assert found == []
    assert reader.feed(b"\n") == [line]


def test_two_events_in_one_read_and_comments_between_them() -> None:
    stream = EventStream()
    assert stream.feed(b"data: a\n\n: ping\n\ndata:b\ndata: c\n\ndata: d") == [b"a", b"b\nc"]
    assert stream.rest() == b"d"


def test_a_line_without_end_is_given_up_at_its_limit() -> None:
    reader = Lines()
    assert reader.feed(b"x" * MAX_LINE) == []
    with pytest.raises(BadAnswer, match="not a stream of tokens"):
        reader.feed(b"x")


# ---- the words of an error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": "plain"}, "plain"),
        ({"error": {"message": "inside", "type": "bad"}}, "bad: inside"),
        ({"error": '{"error":{"message":"twice","type":"overflow"}}'}, "overflow: twice"),
        ({"error": "{not json"}, "{not json"),
        ({"detail": "fastapi"}, "fastapi"),
        ({"message": "old"}, "old"),
        ({"other": 1}, None),
        ([1], None),
        (None, None),
    ],
)  # fmt: skip
def test_an_error_is_found_in_every_dialect(answer: object, words: str | None) -> None:
    assert error_text(answer) == words


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory", OutOfMemory),
        ("model requires more system memory (9 GiB) than is available (4 GiB)", OutOfMemory),
        ("memory layout cannot be allocated with num_gpu = 99", OutOfMemory),
        ("vk::Device::allocateMemory: ErrorOutOfDeviceMemory", OutOfMemory),
        ("the prompt is longer than the context length currently available", ContextExceeded),
        ('{"error":{"code":400,"message":"request (902 tokens)","type":"exceed_context_size_error"}}', ContextExceeded),
        ("server busy, please try again.  maximum pending requests exceeded", BackendRefused),
    ],
)
def test_a_refusal_is_of_its_kind(text: str, kind: type[BackendRefused]) -> None:
    refused = refusal(500, {"error": text}, where="POST http://x/y")
    assert type(refused) is kind
    assert refused.status == 500
    assert "http://x/y" in str(refused)


def test_a_refusal_shows_no_control_characters_and_not_too_much() -> None:
    refused = refusal(500, b"\x1b[2J\x1b]0;title\x07boom" + b"!" * 10_000, where="POST http://x")
    assert "\x1b" not in str(refused)
    assert "\x07" not in str(refused)
    assert len(str(refused)) < 600


def test_no_json_is_shown_from_its_beginning() -> None:
    with pytest.raises(BadAnswer, match=r"http://x answered no JSON but: <html>"):
        parse_json(b"<html>\x1b[1m", where="http://x")
    with pytest.raises(BadAnswer):
        parse_json("[" * 100_000, where="http://x")


# ---- the connection --------------------------------------------------------------------------------------------------


async def test_a_stream_opens_with_its_status_and_arrives_whole() -> None:
    recording = Recording.of("ollama/generate-stream-cold.jsonl")
    async with ScriptedServer() as server:
        server.route("POST", "/stream", recorded(recording), recorded(recording, cut=1))
        wire = Wire(server.url)
        opened, whole, _ = await read(wire)
        _, in_bytes, chunks = await read(wire)
        await wire.close()
    assert opened is not None
    assert (opened.status, opened.retries, opened.headers["content-type"]) == (200, 0, "application/x-ndjson")
    assert whole == in_bytes == recording.body
    assert {len(chunk.data) for chunk in chunks} == {1}
    assert server.connections == 1


async def test_every_read_is_stamped_when_it_was_written() -> None:
    recording = Recording.of("ollama/generate-stream-cold.jsonl")
    async with ScriptedServer() as server:
        server.route("POST", "/stream", recorded(recording, scale=0.1))
        wire = Wire(server.url)
        _, _, chunks = await read(wire)
        await wire.close()
        sent = server.requests[0].at
        written = [at for at, data in server.writes if data.startswith(b"{")]
    late = sorted(chunk.at - at - 0.01 * (at - sent) for chunk, at in zip(chunks, written, strict=True))
    assert late[0] > -0.01 * (written[-1] - sent)
    assert late[len(late) // 2] < 0.001


async def test_a_connection_lost_before_any_byte_is_tried_once_more_and_counted() -> None:
    for answer in (closed_before_any_byte(), closed_before_any_byte(reset=True)):
        async with ScriptedServer() as server:
            server.route("POST", "/stream", answer, body(200, "ok\n"))
            wire = Wire(server.url)
            opened, whole, _ = await read(wire)
            await wire.close()
            assert opened is not None
            assert (opened.retries, whole) == (1, b"ok\n")
            assert len(server.requests) == 2


async def test_a_connection_that_is_always_lost_is_given_up_after_two() -> None:
    async with ScriptedServer() as server:
        server.route("POST", "/stream", closed_before_any_byte())
        wire = Wire(server.url)
        with pytest.raises(BackendUnavailable, match="closed the connection without an answer"):
            await read(wire)
        await wire.close()
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (broken_off(b"some"), StreamBroken, "lost in the middle"),
        (broken_off(b"some", reset=True), StreamBroken, "lost in the middle"),
        (wrong_length(b"some", 400), StreamBroken, "lost in the middle"),
        (cut_chunk(b"some"), StreamBroken, "lost in the middle"),
        (silence(b"some"), StreamBroken, "no byte came for 0.2 s"),
        (silence(), BackendUnavailable, "did not answer within 0.2 s"),
        (no_http(), BackendUnavailable, "without an answer"),
        (body(500, {"error": "boom"}), BackendRefused, "status 500: boom"),
        (html(502), BackendRefused, "status 502"),
    ],
)
async def test_a_stream_that_fails_says_how(answer: Answer, kind: type[BackendError], words: str) -> None:
    async with ScriptedServer() as server:
        server.route("POST", "/stream", answer)
        wire = Wire(server.url)
        before = time.perf_counter()
        with pytest.raises(kind, match=words) as failed:
            await read(wire, timeout_s=0.2)
        assert time.perf_counter() - before < 1.5
        assert server.url in str(failed.value)
        assert "\x1b" not in str(failed.value)
        server.route("POST", "/stream", body(200, "fine"))
        assert (await read(wire))[1] == b"fine"
        await wire.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (html(), BadAnswer),
        (html(500), BackendRefused),
        (body(503, {"error": {"message": "Loading model"}}), BackendRefused),
        (body(200, b'{"version": "0.'), BadAnswer),
        (wrong_length(b'{"a": 1}', 400), BackendError),
        (endless_line(), BadAnswer),
        (silence(), BackendUnavailable),
        (silence(b'{"a": 1}'), BackendUnavailable),
        (closed_before_any_byte(), BackendUnavailable),
        (no_http(), BackendError),
    ],
)
async def test_an_answer_that_fails_is_of_its_kind_within_its_time(answer: Answer, kind: type[BackendError]) -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/api", answer)
        wire = Wire(server.url)
        before = time.perf_counter()
        with pytest.raises(kind) as failed:
            await wire.json("GET", "/api", timeout_s=0.3)
        assert time.perf_counter() - before < 2.0
        assert "\x1b" not in str(failed.value)
        await wire.close()


async def test_nobody_there_is_said_at_once() -> None:
    wire = Wire(absent_url())
    with pytest.raises(BackendUnavailable, match=r"Nobody answers at http://127.0.0.1:"):
        await wire.get("/")
    with pytest.raises(BackendUnavailable, match="Nobody answers"):
        await read(wire)
    await wire.close()


async def test_the_key_of_the_environment_is_sent_and_never_shown() -> None:
    async with ScriptedServer() as server:
        wire = Wire(server.url, environ={"CHIMERA_API_KEY": "s3cret"})
        with pytest.raises(BackendRefused) as refused:
            await wire.json("GET", "/nowhere")
        assert server.requests[0].headers["authorization"] == "Bearer s3cret"
        assert "s3cret" not in str(refused.value)
        await wire.close()
        wire = Wire(server.url, environ={})
        await wire.get("/nowhere")
        assert "authorization" not in server.requests[1].headers
        await wire.close()


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", absent_url())
    monkeypatch.setenv("ALL_PROXY", absent_url())
    async with ScriptedServer() as server:
        wire = Wire(server.url)
        assert (await wire.get("/"))[0] == 404
        await wire.close()


async def test_a_connection_is_kept_unless_it_is_to_be_closed() -> None:
    async with ScriptedServer() as server:
        server.route("POST", "/stream", body(200, "fine"))
        wire = Wire(server.url)
        for _ in range(3):
            await read(wire)
        assert server.connections == 1
        for _ in range(3):
            await read(wire, close=True)
        assert server.requests[-1].headers["connection"] == "close"
        assert server.connections >= 3
        await wire.close()
