"""llama-server: its stream in any pieces, its faults, attached and started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimera.backends import llama_server
from chimera.backends.base import Backend, Done, Event, GenerateRequest, PromptProgress, Tokens
from chimera.backends.llama_dialect import CompletionReader, metrics_of, slots_of
from chimera.backends.llama_log import EngineFacts, cause_of
from chimera.backends.llama_process import python_program
from chimera.backends.llama_server import (
    LlamaServer,
    StartedLlamaServer,
    configured,
    flags_for,
    read_flags,
    without_flags,
)
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    BadAnswer,
    ConfigError,
    ContextExceeded,
    OutOfMemory,
    StreamBroken,
)
from tests.processes import gone

from .contract import BackendContract, collect, done_of, tokens_of, unique_prompt
from .scripted import (
    SAMPLES,
    Answer,
    Exchange,
    Recording,
    ScriptedServer,
    absent_url,
    body,
    closed_before_any_byte,
    html,
    no_http,
    plain_sample,
    recorded,
    silence,
)
from .scripted_llama import NAME, ScriptedLlama, event, final, llama_program, token

STREAMS = ("completion-stream", "completion-stream-return-progress", "completion-stream-timings-per-token")


def read(data: bytes, sizes: Iterator[int] | None = None, *, output_tokens: int = 64) -> list[Event]:
    """The events of a whole stream, fed in pieces of these sizes."""
    reader = CompletionReader(where="test", output_tokens=output_tokens)
    events: list[Event] = []
    place = 0
    for size in sizes or iter([len(data)]):
        events += reader.feed(float(place), data[place : place + size])
        place += size
        if place >= len(data) or (events and isinstance(events[-1], Done)):
            break
    else:
        events += reader.feed(float(place), data[place:])
    if not events or not isinstance(events[-1], Done):
        events += reader.end(float(len(data)))
    return events


def gist(events: list[Event]) -> list[tuple[object, ...]]:
    """Events without their times."""
    kept: list[tuple[object, ...]] = []
    for one in events:
        match one:
            case Tokens():
                kept.append(("tokens", one.text, one.count))
            case PromptProgress():
                kept.append(("progress", one.processed, one.total, one.cached))
            case Done():
                kept.append(("done", one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.decode_s))
    return kept


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1_000_000])
def test_a_recorded_stream_reads_the_same_in_pieces_of_any_size(name: str, size: int) -> None:
    data = Recording.of(f"llama-server/{name}.jsonl").body
    assert gist(read(data, iter([size] * (len(data) // size + 1)))) == gist(read(data))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_a_recorded_stream_reads_the_same_in_pieces_of_mixed_sizes(sizes: list[int]) -> None:
    data = Recording.of("llama-server/completion-stream.jsonl").body
    assert gist(read(data, iter(sizes))) == gist(read(data))


def test_the_final_figures_are_taken_from_milliseconds_and_counts() -> None:
    done = done_of(read(Recording.of("llama-server/completion-stream.jsonl").body))
    assert (done.prompt_tokens, done.cached_tokens, done.completion_tokens) == (15, 1, 24)
    assert done.prefill_s == pytest.approx(1.102003)
    assert done.decode_s == pytest.approx(1.446722)
    assert (done.load_s, done.queue_s) == (0.0, None)
    assert (done.finish_reason, done.truncated) == ("limit", False)


def test_progress_comes_before_the_first_token_and_only_when_it_moves() -> None:
    events = read(Recording.of("llama-server/completion-stream-return-progress.jsonl").body)
    kinds = [type(one) for one in events]
    assert PromptProgress in kinds
    assert PromptProgress not in kinds[kinds.index(Tokens) :]
    steps = [one.processed for one in events if isinstance(one, PromptProgress)]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert sum(one.count for one in tokens_of(events)) == 8


def test_a_token_is_stamped_with_the_read_that_completed_it() -> None:
    reader = CompletionReader(where="test", output_tokens=4)
    first, second = event(token(1)), event(token(2))
    assert reader.feed(1.0, first[:10]) == []
    got = reader.feed(2.0, first[10:] + second[:5])
    assert [one.at for one in got] == [2.0]
    assert [one.at for one in reader.feed(3.0, second[5:])] == [3.0]


def test_an_event_with_several_tokens_counts_them_all() -> None:
    data = event(token(1)) + event(token(4, " a b c")) + event(final(4))
    events = read(data)
    assert [one.count for one in tokens_of(events)] == [1, 3]
    assert done_of(events).completion_tokens == 4


def test_a_token_without_text_is_still_a_token() -> None:
    events = read(event(token(1, "")) + event(token(2)) + event(final(2)))
    assert [(one.text, one.count) for one in tokens_of(events)] == [("", 1), (" x", 1)]


def test_an_older_server_without_a_running_count_gives_one_token_an_event() -> None:
    chunk = {"content": " x", "stop": False}
    events = read(event(chunk) * 3 + event({"content": "", "stop": True, "tokens_predicted": 3, "timings": {}}))
    assert [one.count for one in tokens_of(events)] == [1, 1, 1]
    done = done_of(events)
    assert (done.completion_tokens, done.prefill_s, done.decode_s, done.cached_tokens) == (3, None, None, None)


def test_an_output_that_was_cut_at_the_context_says_so() -> None:
    record = json.loads(Recording.of("llama-server/completion-nonstream-context-full.jsonl").body)
    assert done_of(read(event(record), output_tokens=2000)).truncated


def test_text_with_escape_sequences_is_passed_on_as_data() -> None:
    events = read(event(token(1, "\x1b[31m[bold]")) + event(final(1)))
    assert tokens_of(events)[0].text == "\x1b[31m[bold]"


def test_a_stream_without_its_last_empty_line_is_complete() -> None:
    done_of(read((event(token(1)) + event(final(1))).rstrip()))


@pytest.mark.parametrize("cut", [1, 5, 40, 90])
def test_a_stream_that_ends_early_is_broken(cut: int) -> None:
    data = event(token(1)) + event(token(2)) + event(final(2))
    with pytest.raises(StreamBroken):
        read(data[: -len(event(final(2))) - cut + 1])
    with pytest.raises(StreamBroken):
        read(data[: -cut - 2])


def test_what_is_no_json_or_of_another_shape_is_a_bad_answer() -> None:
    for data in (
        b"data: {half\n\n",
        b"data: [1, 2]\n\n",
        b'data: {"content": {"a": 1}}\n\n',
        b'data: {"stop": "maybe"}\n\n',
    ):
        with pytest.raises(BadAnswer):
            read(data + event(final(1)))


def test_more_tokens_than_were_asked_for_end_as_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match="more tokens"):
        read(b"".join(event(token(number)) for number in range(1, 200)), output_tokens=8)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 500, "message": "ggml backend: out of memory", "type": "server_error"}, OutOfMemory),
        ({"code": 500, "message": "Compute error.", "type": "server_error"}, BackendRefused),
        ("the context length exceeded", ContextExceeded),
    ],
)
def test_an_error_inside_the_stream_is_a_refusal_of_its_kind(error: object, kind: type[BackendError]) -> None:
    with pytest.raises(kind):
        read(event(token(1)) + event({"error": error}))


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_slots_of_all_shapes_are_read() -> None:
    new = json.loads((SAMPLES / "llama-server/slots-idle.json").read_text())
    assert [slot.busy for slot in slots_of(new, where="t")] == [False, False]
    assert [slot.task for slot in slots_of(new, where="t")] == [None, 0]
    old = [{"id": 0, "state": 1, "task_id": 12}, {"id": 1, "state": 0, "id_task": -1}]
    assert [(slot.busy, slot.task) for slot in slots_of(old, where="t")] == [(True, 12), (False, None)]
    with pytest.raises(BadAnswer):
        slots_of({"error": "x"}, where="t")


def test_metrics_are_read_and_nonsense_is_left_out() -> None:
    values = metrics_of((SAMPLES / "llama-server/metrics.txt").read_text())
    assert values["requests_deferred"] == 0
    assert values["tokens_predicted_total"] == 64
    assert metrics_of('llamacpp:a x\nllamacpp:b\nother 1\nllamacpp:c{l="x y"} 2\nllamacpp:d 1e3 99\n')["d"] == 1000


# ---- attached --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[ScriptedLlama]:
    async with ScriptedLlama() as running:
        yield running


@pytest.fixture
async def attached(server: ScriptedLlama) -> AsyncIterator[LlamaServer]:
    backend = LlamaServer(server.url)
    yield backend
    await backend.close()


def ask(prompt: str = "tell of the chimera", output_tokens: int = 8, **more: float) -> GenerateRequest:
    return GenerateRequest(prompt, output_tokens, timeout_s=more.get("timeout_s", 10.0))


class TestAttached(BackendContract):
    kind = "llama_server"

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with ScriptedLlama(slots=3, decode_s=0.001) as server:
            backend = LlamaServer(server.url)
            yield backend
            await backend.close()

    @pytest.fixture
    def absent(self) -> Backend | None:
        return LlamaServer(absent_url())


@pytest.fixture(scope="class")
def real_url(gemma_path: Path) -> Iterator[str]:
    """A real server of three slots that nobody's `load` restarts."""
    config = json.dumps({"model": str(gemma_path), "num_ctx": 768, "num_parallel": 3, "num_thread": 1})
    command = [*python_program("embedded_child"), config]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.stdin.close()


@pytest.mark.embedded
class TestAttachedToARealOne(BackendContract):
    kind = "llama_server"
    load_request: ClassVar[Options] = Options()

    @pytest.fixture
    async def backend(self, real_url: str) -> AsyncIterator[Backend]:
        backend = LlamaServer(real_url)
        yield backend
        await backend.close()


@pytest.mark.slow
@pytest.mark.embedded
class TestStarted(BackendContract):
    kind = "llama_server"
    load_request: ClassVar[Options] = Options(num_ctx=300, num_parallel=2, num_thread=1)

    @pytest.fixture
    async def backend(self, tmp_path: Path, gemma_path: Path) -> AsyncIterator[Backend]:
        backend = StartedLlamaServer([llama_program(tmp_path)[0], "-m", str(gemma_path)])
        yield backend
        await backend.close()


async def test_it_says_what_the_server_and_its_model_are(attached: LlamaServer) -> None:
    info = await attached.connect()
    assert (info.kind, info.version) == ("llama_server", "b7777")
    model = await attached.model()
    assert (model.name, model.quantization, model.trained_ctx) == (NAME, "Q4_K_M", 32768)
    assert (model.parameters, model.size_bytes) == (268098176, 246587904)


async def test_the_request_asks_for_a_fixed_length_and_no_cache(server: ScriptedLlama, attached: LlamaServer) -> None:
    options = Options(temperature=0.5, top_k=7, num_ctx=512)
    await collect(attached.generate(GenerateRequest("hello", 5, options=options, seed=9)))
    sent = server.requests[-1]
    assert sent.headers["connection"] == "close"
    assert sent.json() == {
        "prompt": "hello", "n_predict": 5, "ignore_eos": True, "cache_prompt": False, "seed": 9, "stream": True,
        "return_progress": True, "timings_per_token": False, "temperature": 0.5, "top_k": 7,
    }  # fmt: skip


async def test_a_cached_prompt_is_told(attached: LlamaServer) -> None:
    request = GenerateRequest("one two three four", 2, cache_prompt=True)
    first = done_of(await collect(attached.generate(request)))
    second = done_of(await collect(attached.generate(request)))
    assert (first.cached_tokens, first.prompt_tokens) == (0, 5)
    assert (second.cached_tokens, second.prompt_tokens) == (4, 5)


async def test_tokens_are_counted_as_a_prompt_of_a_request_has_them(attached: LlamaServer) -> None:
    text = "one two three"
    told = done_of(await collect(attached.generate(ask(text)))).prompt_tokens
    assert await attached.count_tokens(text) == told == 4


async def test_headers_mark_the_time_when_the_slot_was_free() -> None:
    async with ScriptedLlama(decode_s=0.02) as server:
        backend = LlamaServer(server.url)
        sent = time.perf_counter()
        first, second = await asyncio.gather(collect(backend.generate(ask())), collect(backend.generate(ask())))
        early, late = sorted((first, second), key=lambda events: events[0].at)
        wait = late[0].at - sent
        assert abs(wait - (done_of(early).at - sent)) < 0.01 + 0.01 * wait
        assert backend.headers_mark_slot
        await backend.close()


async def test_headers_that_come_with_the_first_token_are_not_taken_for_the_slot() -> None:
    async with ScriptedLlama(prefill_s=0.02, late_headers=True) as server:
        backend = LlamaServer(server.url)
        assert backend.headers_mark_slot
        await collect(backend.generate(ask("one two three")))
        assert not backend.headers_mark_slot
        await backend.close()


async def test_several_tokens_an_event_are_counted() -> None:
    async with ScriptedLlama(tokens_per_event=3) as server:
        backend = LlamaServer(server.url)
        events = await collect(backend.generate(ask(output_tokens=8)))
        assert [one.count for one in tokens_of(events)] == [3, 3, 2]
        await backend.close()


async def test_a_prompt_over_the_context_is_refused_as_that(attached: LlamaServer) -> None:
    with pytest.raises(ContextExceeded) as refused:
        await collect(attached.generate(ask("word " * 2000)))
    assert refused.value.status == 400


async def test_an_output_over_the_context_is_truncated() -> None:
    async with ScriptedLlama(n_ctx=16) as server:
        backend = LlamaServer(server.url)
        done = done_of(await collect(backend.generate(ask("a b c", 64))))
        assert done.truncated
        assert done.completion_tokens == 12
        await backend.close()


async def test_activity_shows_who_works_and_who_waits() -> None:
    async with ScriptedLlama(decode_s=0.02) as server:
        backend = LlamaServer(server.url)
        work = asyncio.gather(*(collect(backend.generate(ask())) for _ in range(3)))
        while server.waiting < 2:
            await asyncio.sleep(0.001)
        during = await backend.activity()
        assert (during.busy, during.waiting, during.tasks) == (1.0, 2.0, frozenset({0}))
        await work
        after = await backend.activity()
        assert (after.busy, after.waiting, after.tasks) == (0.0, 0.0, frozenset({2}))
        await backend.close()


async def test_activity_without_its_pages_is_missing_with_the_reason() -> None:
    async with ScriptedLlama(metrics=False, slots_page=False) as server:
        backend = LlamaServer(server.url)
        activity = await backend.activity()
        assert isinstance(activity.busy, Missing)
        assert isinstance(activity.waiting, Missing)
        assert "--metrics" in str(activity.waiting)
        assert isinstance(activity.tasks, Missing)
        server.metrics = True
        assert (await backend.activity()).busy == 0.0
        await backend.close()


async def test_a_sleeping_server_is_not_woken_to_see_who_uses_it(server: ScriptedLlama, attached: LlamaServer) -> None:
    server.sleeping = True
    assert (await attached.activity()).busy == 0.0
    assert server.count("GET", "/slots") == 0


async def test_what_runs_already_passes_and_what_differs_is_refused_with_its_flag(attached: LlamaServer) -> None:
    effective = await attached.load(Options(num_ctx=1000, num_parallel=1, temperature=0.3))
    assert (effective.options.num_ctx, effective.sources["num_ctx"]) == (1024, "measured")
    with pytest.raises(ConfigError) as refused:
        await attached.load(Options(num_ctx=4096, num_thread=4))
    assert "num_ctx 4096" in str(refused.value)
    assert "-c 4096" in str(refused.value)
    assert "num_thread 4" in str(refused.value)
    assert "-t 4" in str(refused.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [("-m x.gguf", True), ("--cache-ram 0", False), ("-cram 0", False), ("-cram 512", True), ("--cache-ram=-1", True)],
)
async def test_a_wait_that_may_be_the_saving_of_a_prompt_is_told(
    attached: LlamaServer, monkeypatch: pytest.MonkeyPatch, line: str, told: bool
) -> None:
    there = llama_server.Listener(7, read_flags(line.split()), readable=True)
    monkeypatch.setattr(llama_server, "listener_of", lambda url: there)
    effective = await attached.load(Options())
    assert any("--cache-ram 0" in note and "queue" in note for note in effective.notes) is told


async def test_another_model_than_it_serves_is_refused_by_name(server: ScriptedLlama) -> None:
    backend = LlamaServer(server.url, model="llama-7b")
    with pytest.raises(ConfigError, match=f"serves {NAME}, not llama-7b"):
        await backend.model()
    await backend.close()


async def test_a_router_is_asked_for_the_model_by_name(server: ScriptedLlama) -> None:
    entries = [
        {"id": "cold", "status": {"value": "unloaded"}},
        {"id": "warm", "status": {"value": "loaded"}},
        {"id": "other", "status": {"value": "unloaded"}},
    ]
    server.route("GET", "/v1/models", body(200, {"data": entries}))
    backend = LlamaServer(server.url, model="other")
    assert [model.name for model in await backend.models()] == ["warm", "cold", "other"]
    await collect(backend.generate(ask()))
    assert server.requests[-1].json()["model"] == "other"
    await backend.activity()
    assert {request.query for request in server.requests if request.path == "/slots"} == {"model=other"}
    await backend.close()


async def test_the_recorded_pages_of_a_real_server_are_read() -> None:
    async with ScriptedServer() as server:
        for path, name in (("/props", "props.json"), ("/v1/models", "v1-models.json"), ("/slots", "slots-idle.json"),
                           ("/metrics", "metrics.txt"), ("/tokenize", "tokenize.json")):  # fmt: skip
            server.route("POST" if path == "/tokenize" else "GET", path, plain_sample(f"llama-server/{name}"))
        server.route("POST", "/completion", recorded("llama-server/completion-stream.jsonl"))
        backend = LlamaServer(server.url)
        assert (await backend.connect()).version is None
        assert (await backend.model()).name == "gemma-3-270m-q4_k_m"
        effective = await backend.effective()
        assert (effective.options.num_ctx, effective.options.num_parallel) == (1024, 2)
        assert await backend.count_tokens("Hello world, this is Chimera") == 8
        activity = await backend.activity()
        assert (activity.busy, activity.waiting, activity.tasks) == (0.0, 0.0, frozenset({0}))
        assert done_of(await collect(backend.generate(ask(output_tokens=24)))).completion_tokens == 24
        await backend.close()


# ---- faults ----------------------------------------------------------------------------------------------------------


def sse(*pieces: bytes, drop: bool = False, every_s: float | None = None) -> Answer:
    """A server-sent stream of these pieces; `every_s` repeats the last one without end."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for piece in pieces:
            await exchange.send(piece)
        while every_s is not None:
            await asyncio.sleep(every_s)
            await exchange.send(pieces[-1])
        if drop:
            exchange.drop()
        else:
            await exchange.end()

    return answer


def endless_tokens() -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        number = 0
        while True:
            number += 1
            await exchange.send(event(token(number)))

    return answer


FAULTS: dict[str, tuple[Answer, type[BackendError]]] = {
    "status 500": (body(500, {"error": {"code": 500, "message": "boom", "type": "server_error"}}), BackendRefused),
    "status 503": (body(503, {"error": {"message": "Loading model", "type": "unavailable_error"}}), BackendRefused),
    "recorded context error": (recorded("llama-server/error-400-context.jsonl"), ContextExceeded),
    "HTML": (html(), BadAnswer),
    "HTML with a bad status": (html(502), BackendRefused),
    "JSON instead of a stream": (body(200, final(4)), BadAnswer),
    "no HTTP": (no_http(), BackendError),
    "half a JSON line": (sse(b'data: {"content": "x", "tok'), StreamBroken),
    "half a JSON line, dropped": (sse(event(token(1)), b'data: {"con', drop=True), StreamBroken),
    "broken JSON": (sse(b"data: {nope}\n\n"), BadAnswer),
    "an end without figures": (sse(event(token(1)), event(token(2))), StreamBroken),
    "an empty stream": (sse(b": ping\n\n"), StreamBroken),
    "a lost connection": (sse(event(token(1)), drop=True), StreamBroken),
    "never an answer": (closed_before_any_byte(), BackendUnavailable),
    "silence": (silence(), BackendUnavailable),
    "silence in the middle": (sse(event(token(1)), every_s=30.0), StreamBroken),
    "pings without end": (sse(event(token(1)), b": ping\n\n", every_s=0.05), StreamBroken),
    "a line without end": (sse(b"data: " + b"x" * 65536, b"x" * 65536, every_s=0.0), BadAnswer),
    "tokens without end": (endless_tokens(), BadAnswer),
    "the same progress without end": (
        sse(event({**token(0, ""), "prompt_progress": {"total": 9, "processed": 0}}), every_s=0.05), StreamBroken,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_an_error_in_words_and_in_time(fault: str) -> None:
    answer, kind = FAULTS[fault]
    async with ScriptedLlama() as server:
        server.route("POST", "/completion", answer)
        backend = LlamaServer(server.url)
        before = time.perf_counter()
        with pytest.raises(kind) as failed:
            await collect(backend.generate(ask(timeout_s=0.4)))
        assert time.perf_counter() - before < 3.0
        assert "127.0.0.1" in str(failed.value)
        assert "\x1b" not in str(failed.value)
        await backend.close()


@pytest.mark.parametrize("page", [html(), body(200, {"name": "something else"}), body(200, "[]"), body(404, "no")])
async def test_something_else_than_a_llama_server_is_recognised(page: Answer) -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/props", page)
        backend = LlamaServer(server.url)
        with pytest.raises(BadAnswer):
            await backend.connect()
        await backend.close()


async def test_a_server_that_still_loads_is_not_there_yet(server: ScriptedLlama, attached: LlamaServer) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    server.route("GET", "/props", body(503, loading))
    with pytest.raises(BackendUnavailable, match="still loading"):
        await attached.connect()


async def test_a_connection_that_is_lost_before_the_answer_is_tried_once_more_and_counted() -> None:
    async with ScriptedLlama() as server:
        server.route("POST", "/completion", closed_before_any_byte(), server._complete)
        backend = LlamaServer(server.url)
        assert done_of(await collect(backend.generate(ask()))).retries == 1
        assert done_of(await collect(backend.generate(ask()))).retries == 0
        await backend.close()


async def test_giving_up_early_ends_the_request_on_the_server() -> None:
    async with ScriptedLlama(decode_s=0.01) as server:
        backend = LlamaServer(server.url)
        async with aclosing(backend.generate(ask(output_tokens=500))) as events:
            async for one in events:
                if isinstance(one, Tokens):
                    break
        deadline = time.perf_counter() + 2
        while server.work and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        assert not server.work
        await backend.close()


# ---- flags and log ---------------------------------------------------------------------------------------------------


def test_flags_are_read_in_all_their_spellings() -> None:
    line = "-m x.gguf --n-gpu-layers -1 -t 4 --batch-size=512 -ub 256 -fa -ctk q8_0 --cache-type-v q8_0 -t 6 --jinja"
    flags = read_flags(line.split(), {"LLAMA_ARG_THREADS": "2", "LLAMA_ARG_UBATCH": "64"})
    assert flags == {
        "model": "x.gguf", "layers": "-1", "threads": "6", "batch": "512", "ubatch": "256", "flash": "on",
        "kv_k": "q8_0", "kv_v": "q8_0",
    }  # fmt: skip
    assert configured(flags) == Options(
        num_gpu=-1, num_batch=256, num_thread=6, flash_attention="on", kv_cache_type="q8_0"
    )


def test_flags_that_options_replace_are_taken_out_with_their_values() -> None:
    line = ["-m", "x.gguf", "-ngl", "-1", "--ctx-size=99", "-c", "1", "--jinja", "-fa", "--mlock", "-fa", "on", "-np"]
    assert without_flags(line, frozenset({"layers", "context", "flash", "slots"})) == [
        "-m", "x.gguf", "--jinja", "--mlock",
    ]  # fmt: skip


def test_a_context_is_for_one_slot_and_comes_with_its_slots() -> None:
    assert flags_for(Options(num_ctx=512, num_parallel=3), {}) == {"context": "1536", "slots": "3"}
    assert flags_for(Options(num_ctx=512), {"slots": "2"}) == {"context": "1024", "slots": "2"}
    assert flags_for(Options(num_ctx=512), {}) == {"context": "512", "slots": "1"}
    assert flags_for(Options(num_batch=64), {}) == {"batch": "64", "ubatch": "64"}


GPU_LOG = """\
0.00.000.212 I cmn  common_param: common_params_print_info:   - CUDA0   : NVIDIA Some Card (24105 MiB, 23000 MiB free)
0.00.000.213 I cmn  common_param: common_params_print_info:   - CPU     : Some CPU (64000 MiB, 50000 MiB free)
system_info: n_threads = 8 (n_threads_batch = 16) / 16 | CPU : AVX2 = 1 |
load_tensors: offloading 18 repeating layers to GPU
load_tensors: offloaded 19/19 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   100.00 MiB
load_tensors:        CUDA0 model buffer size =   200.50 MiB
llama_context: n_batch               = 2048
llama_context: n_ubatch              = 512
llama_context: flash_attn            = auto
llama_context:  CUDA_Host  output buffer size =     1.00 MiB
llama_kv_cache_unified:      CUDA0 KV buffer size =    64.00 MiB
llama_kv_cache_unified: size = 64.00 MiB (  4096 cells,  32 layers,  1/1 seqs), K (q8_0): 32.00 MiB, V (f16): 32.00 MiB
llama_context:      CUDA0 compute buffer size =    10.00 MiB
llama_context: Flash Attention was auto, set to enabled
srv    load_model: initializing, n_slots = 2, n_ctx_slot = 2048, kv_unified = 'false'
"""


def test_the_log_of_a_load_tells_what_runs() -> None:
    facts = EngineFacts()
    for line in GPU_LOG.splitlines():
        facts.read(line)
    assert (facts.gpu_layers, facts.layers, facts.gpu) == (19, 19, True)
    assert (facts.batch, facts.ubatch, facts.threads, facts.threads_batch) == (2048, 512, 8, 16)
    assert (facts.slots, facts.ctx_slot, facts.flash) == (2, 2048, True)
    assert (facts.kv_k, facts.kv_v) == ("q8_0", "f16")
    assert facts.vram_bytes == round(274.5 * 1024 * 1024)
    assert facts.size_bytes == round(375.5 * 1024 * 1024)


def test_the_cause_of_a_failed_load_is_the_line_before_those_that_pass_it_on() -> None:
    lines = [
        "0.00.1.1 I srv  load_model: loading",
        "0.00.571.212 E llama_init_from_model: quantized V cache requires flash_attn to be enabled",
        "0.01.155.474 E cmn  common_init_: failed to create context with model 'x'",
        "0.01.155.998 E srv          init: exiting due to model loading error",
    ]
    assert cause_of(lines) == "llama_init_from_model: quantized V cache requires flash_attn to be enabled"
    assert cause_of(["ggml_backend_cuda_buffer_type_alloc_buffer: allocating 99 MiB: cudaMalloc failed: out of memory",
                     "main: exiting due to model loading error"]) is not None  # fmt: skip
    assert cause_of(["I all is well"]) is None


# ---- started ---------------------------------------------------------------------------------------------------------


@pytest.mark.embedded
async def test_a_started_server_runs_with_the_flags_of_the_options_and_ends_with_us(
    tmp_path: Path, gemma_path: Path
) -> None:
    program, record = llama_program(tmp_path)
    backend = StartedLlamaServer([program, "-m", str(gemma_path), "-t", "2", "-c", "9999"])
    info = await backend.connect()
    assert (info.kind, info.version, info.url) == ("llama_server", "b11549", "")
    assert (await backend.model()).block_count == 18
    options = Options(num_ctx=300, num_parallel=2, num_thread=1, num_batch=128, kv_cache_type="q8_0", num_gpu=7)
    effective = await backend.load(options)
    given = json.loads(record.read_text())
    assert given == [
        "-m", str(gemma_path), "-c", "600", "-np", "2", "-ngl", "7", "-b", "128", "-ub", "128", "-t", "1", "-tb", "1",
        "-ctk", "q8_0", "-ctv", "q8_0", "--host", "127.0.0.1", "--port", given[given.index("--port") + 1],
        "--metrics", "--slots", "--cache-ram", "0", "-lv", "4",
    ]  # fmt: skip
    assert effective.options == Options(
        num_gpu=0, num_ctx=512, num_batch=128, num_thread=1, flash_attention="on", kv_cache_type="q8_0", num_parallel=2
    )
    assert effective.size_bytes is not None
    assert effective.size_bytes > 200_000_000
    assert effective.vram_bytes == 0
    assert any(note.startswith("num_ctx 300 runs as 512") for note in effective.notes)
    assert effective.pid is not None
    assert "llama-server" in " ".join(psutil.Process(effective.pid).cmdline())
    done = done_of(await collect(backend.generate(GenerateRequest(unique_prompt(), 4))))
    assert done.completion_tokens == 4

    assert backend.url is not None
    attached = LlamaServer(backend.url)
    seen = await attached.load(Options(num_ctx=300, num_thread=1, num_batch=128, kv_cache_type="q8_0", num_gpu=7))
    assert seen.pid == effective.pid
    assert (seen.options.num_thread, seen.sources["num_thread"]) == (1, "derived")
    with pytest.raises(ConfigError, match="num_thread 2"):
        await attached.load(Options(num_thread=2))
    await attached.close()

    await backend.close()
    await backend.close()
    assert gone(effective.pid)


async def test_a_started_servers_paths_are_seen_from_the_folder_where_its_command_was_given(
    tmp_path: Path, gemma_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is at home, so a relative path would be looked for there."""
    given, gone_folder = tmp_path / "given", tmp_path / "gone"
    given.mkdir()
    gone_folder.mkdir()
    llama_program(given)
    (given / "m.gguf").symlink_to(gemma_path)
    monkeypatch.chdir(gone_folder)
    gone_folder.rmdir()
    backend = StartedLlamaServer(["./llama-server", "-m", "m.gguf"], str(given))
    await backend.connect()
    assert (await backend.model()).block_count == 18
    assert (await backend.load(Options(num_ctx=512))).options.num_ctx == 512
    await backend.close()


OUT_OF_MEMORY = """
print("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000 MiB on device 0: cudaMalloc failed: out of memory",
      file=sys.stderr)
print("llama_model_load: error loading model: unable to allocate CUDA0 buffer", file=sys.stderr)
print("main: exiting due to model loading error", file=sys.stderr)
sys.exit(1)
"""


async def test_a_started_server_that_does_not_fit_is_out_of_memory_with_the_cause(tmp_path: Path) -> None:
    program, _ = llama_program(tmp_path, before=OUT_OF_MEMORY)
    backend = StartedLlamaServer([program, "-m", "big.gguf"])
    with pytest.raises(OutOfMemory, match=r"exit status 1.*num_ctx=512.*cudaMalloc failed"):
        await backend.load(Options(num_ctx=512))
    assert backend.pid is None
    await backend.close()


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    backend = StartedLlamaServer([str(tmp_path / "nowhere" / "llama-server"), "-m", "x"])
    with pytest.raises(ConfigError, match="nowhere"):
        await backend.connect()
    with pytest.raises(ConfigError):
        StartedLlamaServer([])


async def test_a_cancelled_start_leaves_no_server_behind(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    stubborn = (
        f"import time; open({str(note)!r}, 'w').write(str(os.getpid())); "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60); sys.exit(0)"
    )
    program, _ = llama_program(tmp_path, before=stubborn)
    backend = StartedLlamaServer([program, "-m", "x.gguf"])
    loading = asyncio.create_task(backend.load(Options()))
    while not note.exists() or not note.read_text():
        await asyncio.sleep(0.02)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    assert gone(int(note.read_text()))
    await backend.close()


def test_a_leashed_program_ends_when_its_parent_is_killed() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    code = (
        "import subprocess, sys, time\n"
        "from chimera.backends.llama_process import python_program\n"
        "p = subprocess.Popen([*python_program('leash'), *sys.argv[1:]],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(p.stdout.readline().decode(), flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *sleeper], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = json.loads(parent.stdout.readline())["pid"]
    assert psutil.pid_exists(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_a_leash_passes_on_how_its_program_ended() -> None:
    for code, status in (("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        command = [*python_program("leash"), sys.executable, "-c", code]
        ended = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, timeout=20, check=False)
        # Standard input is closed at once here, so the program may as well have been ended by the leash.
        assert ended.returncode in (status, 128 + signal.SIGTERM)
