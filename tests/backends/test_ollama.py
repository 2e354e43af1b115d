"""Ollama: the contract on a scripted server and a real one, reload rules, figures, the engine's process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from chimera.backends.base import Backend, Done, GenerateRequest, Headers, Tokens
from chimera.backends.ollama import Ollama
from chimera.backends.ollama_child import Child
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import ServerKind
from chimera.errors import BackendRefused, BadAnswer, ConfigError, ContextExceeded, OutOfMemory, StreamBroken

from .contract import BackendContract, collect, done_of, tokens_of, unique_prompt
from .scripted import (
    SAMPLES,
    FakeModel,
    Recording,
    ScriptedOllama,
    ScriptedServer,
    absent_url,
    body,
    linear_memory,
    ollama_process,
    recorded,
)

SECOND = FakeModel(name="second:1b", digest="0" * 64, blob="sha256-" + "0" * 64, block_count=26)
SEEING = FakeModel(name="seeing:4b", digest="1" * 64, block_count=34, capabilities=("completion", "vision"))
THINKING = FakeModel(name="thinking:1b", digest="2" * 64, capabilities=("completion", "thinking"))

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a script names its process only on Linux")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOllama]:
    async with ScriptedOllama(models=(FakeModel(), SECOND, SEEING, THINKING)) as scripted:
        yield scripted


@pytest.fixture
async def ollama(server: ScriptedOllama) -> AsyncIterator[Ollama]:
    backend = Ollama(server.url, "gemma3:270m")
    yield backend
    await backend.close()


def request(output_tokens: int = 6, **options: object) -> GenerateRequest:
    return GenerateRequest(unique_prompt(), output_tokens, Options.of(options), timeout_s=10)


def bodies(server: ScriptedServer) -> list[dict[str, object]]:
    """What was sent to `/api/generate`."""
    return [each.json() for each in server.requests if each.path == "/api/generate"]


async def ask(backend: Backend, sent: GenerateRequest | None = None) -> Done:
    return done_of(await collect(backend.generate(sent or request())))


# ---- the contract ----------------------------------------------------------------------------------------------------


class TestContract(BackendContract):
    kind: ClassVar[ServerKind] = "ollama"
    load_request: ClassVar[Options] = Options(num_gpu=9, num_ctx=512, num_batch=128)
    textless_tokens: ClassVar[int] = 1
    timeout_s: ClassVar[float] = 10.0

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with ScriptedOllama(prefill_s=0.0001, decode_s=0.001, load_s=0.002) as server:
            backend = Ollama(server.url)
            yield backend
            await backend.close()

    @pytest.fixture
    def absent(self) -> Backend | None:
        return Ollama(absent_url())


@pytest.fixture(scope="module")
def process_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ollama_process(tmp_path_factory.mktemp("ollama"), prefill_s=0.0001, decode_s=0.001) as url:
        yield url


@on_linux
class TestContractOnTheSameHost(TestContract):
    """With the engine's process in sight."""

    @pytest.fixture
    async def backend(self, process_url: str) -> AsyncIterator[Backend]:
        backend = Ollama(process_url)
        yield backend
        await backend.close()


@pytest.mark.skipif("CHIMERA_TEST_OLLAMA" not in os.environ, reason="set CHIMERA_TEST_OLLAMA=URL to run it")
class TestContractOnARealServer(BackendContract):
    kind: ClassVar[ServerKind] = "ollama"
    load_request: ClassVar[Options] = Options(num_gpu=0, num_ctx=512, num_batch=128)
    lengths: ClassVar[tuple[int, ...]] = ()  # a real model may end by itself
    textless_tokens: ClassVar[int] = 1

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        backend = Ollama(os.environ["CHIMERA_TEST_OLLAMA"])
        kept = await backend.remember()
        yield backend
        again = Ollama(os.environ["CHIMERA_TEST_OLLAMA"])
        await again.restore(kept)
        await again.close()
        await backend.close()


# ---- which model -----------------------------------------------------------------------------------------------------


async def test_without_a_name_the_loaded_model_is_taken_else_the_first_installed(server: ScriptedOllama) -> None:
    nothing_loaded = Ollama(server.url)
    assert (await nothing_loaded.model()).name == "gemma3:270m"
    second = Ollama(server.url, "second:1b")
    await second.load(Options())
    late = Ollama(server.url)
    assert (await late.model()).name == "second:1b"
    assert (await late.models())[0].name == "second:1b"
    for backend in (nothing_loaded, second, late):
        await backend.close()


async def test_a_name_without_a_tag_means_the_latest(server: ScriptedOllama) -> None:
    server.models = (FakeModel(name="mine:latest"),)
    backend = Ollama(server.url, "mine")
    assert (await backend.model()).name == "mine:latest"
    await backend.close()


async def test_a_model_that_is_not_there_is_refused_with_those_that_are(server: ScriptedOllama) -> None:
    backend = Ollama(server.url, "nope:1b")
    with pytest.raises(BackendRefused, match=r"no model 'nope:1b'. Installed: gemma3:270m, second:1b") as refused:
        await backend.model()
    assert refused.value.status == 404
    await backend.close()


async def test_a_server_without_models_says_how_to_get_one(server: ScriptedOllama) -> None:
    server.models = ()
    backend = Ollama(server.url)
    with pytest.raises(BackendRefused, match="ollama pull"):
        await backend.model()
    await backend.close()


async def test_embedding_and_cloud_models_are_never_the_default() -> None:
    tags = {
        "models": [
            {"name": "embed:1b", "capabilities": ["embedding"]},
            {"name": "far:cloud", "remote_host": "https://example.invalid", "capabilities": ["completion"]},
            {"name": "near:1b", "capabilities": ["completion"]},
        ]
    }
    async with ScriptedServer() as server:
        server.route("GET", "/api/tags", body(200, tags)).route("GET", "/api/ps", body(200, {"models": []}))
        server.route("POST", "/api/show", body(200, {}))
        backend = Ollama(server.url)
        assert (await backend.model()).name == "near:1b"
        await backend.close()


async def test_the_model_tells_what_the_recorded_show_and_tags_tell() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/api/tags", body(200, json.loads((SAMPLES / "ollama/tags.json").read_text())))
        server.route("GET", "/api/ps", body(200, {"models": []}))
        server.route("POST", "/api/show", body(200, json.loads((SAMPLES / "ollama/show.json").read_text())))
        backend = Ollama(server.url)
        model = await backend.model()
        await backend.model()
        await backend.close()
        assert server.count("POST", "/api/show") == 1
    assert model.block_count == 18
    assert model.trained_ctx == 32768
    assert model.parameters == 268_098_176
    assert (model.architecture, model.quantization, model.size_bytes) == ("gemma3", "Q4_K_M", 253_113_222)
    assert model.digest == "sha256:9b6c7afe3ef38dbccfbb5d318525feffa3024f35f73648fe2910b698f0ece774"
    assert not model.vision
    assert model.path is None


# ---- one request -----------------------------------------------------------------------------------------------------


async def test_a_request_carries_the_whole_configuration_and_nothing_that_reloads(
    ollama: Ollama, server: ScriptedOllama
) -> None:
    asked = {"num_gpu": 12, "num_ctx": 1024, "num_batch": 256, "num_thread": 2, "temperature": 0.5, "top_k": 7}
    await ollama.load(Options.of(asked))
    await ask(ollama, request(9, **asked))
    assert len(server.loads) == 1
    sent = bodies(server)[-1]
    assert sent["options"] == {**asked, "num_predict": 9, "seed": 1, "stop": []}
    assert sent["raw"] is True
    assert sent["keep_alive"] == "10m"
    assert not {"shift", "truncate", "think", "system", "template"} & sent.keys()


async def test_a_model_that_can_think_is_told_not_to(server: ScriptedOllama) -> None:
    server.thinking_tokens = 3
    backend = Ollama(server.url, "thinking:1b")
    events = await collect(backend.generate(request()))
    assert bodies(server)[-1]["think"] is False
    assert not any(event.thinking for event in tokens_of(events))
    await backend.close()


async def test_thinking_text_is_tokens_of_their_own_sort() -> None:
    lines = (
        b'{"response":"","thinking":"hm","done":false}\n{"response":"so","done":false}\n'
        b'{"response":"","done":true,"done_reason":"length","total_duration":9,"eval_count":2}\n'
    )
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", body(200, lines))
        backend = Ollama(server.url)
        tokens = tokens_of(await collect(backend.generate(request())))
        await backend.close()
    assert [(event.text, event.thinking) for event in tokens] == [("hm", True), ("so", False)]


@pytest.mark.parametrize(
    ("name", "load", "queue", "prefill", "decode", "prompt", "completion"),
    [
        ("generate-stream-cold", 2.422339310, 0.003886270, 0.486657, 2.341736, 15, 24),
        ("generate-stream-queued", 0.0017, 9.69, 0.47, 1.83, None, None),
        ("generate-stream-one-token", None, None, None, 0.000001, None, 1),
    ],
)
async def test_recorded_figures_are_read_in_seconds(
    name: str,
    load: float | None,
    queue: float | None,
    prefill: float | None,
    decode: float,
    prompt: int | None,
    completion: int | None,
) -> None:
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", recorded(f"ollama/{name}.jsonl"))
        backend = Ollama(server.url)
        done = await ask(backend)
        await backend.close()
    assert done.decode_s == pytest.approx(decode, rel=0.01)
    for value, expected in ((done.load_s, load), (done.queue_s, queue), (done.prefill_s, prefill)):
        assert expected is None or value == pytest.approx(expected, rel=0.03)
    assert prompt is None or done.prompt_tokens == prompt
    assert completion is None or done.completion_tokens == completion
    assert done.cached_tokens is None
    assert done.finish_reason == "length"


async def test_a_key_that_is_left_out_is_nought_beside_others_and_unknown_alone() -> None:
    some = b'{"response":"a","done":false}\n{"done":true,"done_reason":"stop","total_duration":5,"eval_count":1}\n'
    none = b'{"response":"a","done":false}\n{"done":true,"done_reason":"stop"}\n'
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", body(200, some), body(200, none))
        backend = Ollama(server.url)
        told, untold = await ask(backend), await ask(backend)
        await backend.close()
    assert (told.load_s, told.prefill_s, told.decode_s, told.prompt_tokens) == (0.0, 0.0, 0.0, 0)
    assert (untold.load_s, untold.queue_s, untold.prefill_s, untold.completion_tokens) == (None, None, None, None)


async def test_the_wait_for_the_only_slot_is_the_queue() -> None:
    async with ScriptedOllama(decode_s=0.01) as server:
        backend = Ollama(server.url)
        await backend.load(Options())
        first = asyncio.create_task(ask(backend, request(20)))
        while server.generated == 0:
            await asyncio.sleep(0.001)
        waited = asyncio.create_task(ask(backend, request(2)))
        await first
        second = await waited
        freed = next(at for at, data in server.writes if b'"eval_count": 20' in data)
        true_wait = freed - server.requests[-1].at
        await backend.close()
    assert true_wait > 0.1
    assert second.queue_s == pytest.approx(true_wait, abs=0.010 + 0.01 * true_wait)


async def test_the_first_token_is_stamped_when_it_was_written() -> None:
    errors = []
    async with ScriptedOllama(prefill_s=0.002, decode_s=0.003) as server:
        backend = Ollama(server.url)
        await backend.load(Options())
        for _ in range(9):
            start = len(server.writes)
            events = await collect(backend.generate(request(8)))
            token, headers = tokens_of(events)[0], next(e for e in events if isinstance(e, Headers))
            written = next(at for at, data in server.writes[start:] if b"t0" in data)
            sent = server.requests[-1].at
            errors.append(abs((token.at - sent) - (written - sent)) - 0.01 * (written - sent))
            assert headers.at <= token.at
        await backend.close()
    assert sorted(errors)[len(errors) // 2] < 0.001


async def test_the_rate_from_our_stamps_is_the_servers_own() -> None:
    ratios = []
    async with ScriptedOllama(decode_s=0.004) as server:
        backend = Ollama(server.url)
        await backend.load(Options())
        for _ in range(5):
            events = await collect(backend.generate(request(40)))
            tokens, done = tokens_of(events), done_of(events)
            assert done.decode_s is not None
            ratios.append((tokens[-1].at - tokens[0].at) / done.decode_s)
        await backend.close()
    assert sorted(ratios)[2] == pytest.approx(1, abs=0.005)


async def test_all_requests_go_over_one_connection(ollama: Ollama, server: ScriptedOllama) -> None:
    await ollama.load(Options())
    for _ in range(5):
        await ask(ollama)
    assert server.connections <= 2  # tags and ps are asked for at the same time


async def test_giving_up_ends_the_request_on_the_server() -> None:
    async with ScriptedOllama(decode_s=0.01) as server:
        backend = Ollama(server.url)
        await backend.load(Options())
        events = backend.generate(request(500))
        async for event in events:
            if isinstance(event, Tokens):
                break
        await events.aclose()
        for _ in range(100):
            if server.given_up:
                break
            await asyncio.sleep(0.01)
        assert server.given_up == 1
        await backend.close()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "kind", "words"),
    [
        ("error-500-oom-at-load", OutOfMemory, "cudaMalloc failed: out of memory"),
        ("error-400-context-shift-false", ContextExceeded, "longer than the context length"),
        ("error-400-context-truncate-false", ContextExceeded, "902 tokens"),
        ("error-503-queue-full", BackendRefused, "server busy"),
        ("error-500-option-type", BackendRefused, "must be of type integer"),
        ("error-404-model", BackendRefused, "not found"),
        ("error-400-bad-keep-alive", BackendRefused, "invalid duration"),
        ("error-405-method", BackendRefused, "405"),
        ("error-404-route", BackendRefused, "404"),
        ("error-midstream-child-killed", StreamBroken, "unexpected EOF"),
    ],
)
async def test_a_recorded_refusal_is_of_its_kind(sample: str, kind: type[Exception], words: str) -> None:
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", recorded(f"ollama/{sample}.jsonl"))
        backend = Ollama(server.url)
        with pytest.raises(kind, match=words) as refused:
            await ask(backend)
        assert type(refused.value) is kind
        await backend.close()


async def test_out_of_memory_in_the_middle_is_out_of_memory() -> None:
    lines = (
        b'{"response":"a","done":false}\n{"error":"llama-server process has terminated: CUDA error: out of memory"}\n'
    )
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", body(200, lines))
        backend = Ollama(server.url)
        with pytest.raises(OutOfMemory):
            await ask(backend)
        await backend.close()


async def test_an_escape_sequence_in_an_error_does_not_reach_the_terminal() -> None:
    async with ScriptedOllama() as server:
        server.route("POST", "/api/generate", body(400, {"error": "\x1b]0;owned\x07no"}))
        backend = Ollama(server.url)
        with pytest.raises(BackendRefused) as refused:
            await ask(backend)
        assert "\x1b" not in str(refused.value)
        await backend.close()


async def test_a_load_that_does_not_fit_names_the_configuration(server: ScriptedOllama) -> None:
    server.capacity_bytes = linear_memory(FakeModel(), Options(num_gpu=19, num_ctx=8192))[1]
    backend = Ollama(server.url, "gemma3:270m")
    await backend.load(Options(num_gpu=19, num_ctx=8192))
    with pytest.raises(OutOfMemory, match="num_gpu=19 num_ctx=8193"):
        await backend.load(Options(num_gpu=19, num_ctx=8193))
    assert server.refused_loads == 1
    await backend.load(Options(num_gpu=18, num_ctx=8193))
    await backend.close()


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ({"flash_attention": "on"}, "OLLAMA_FLASH_ATTENTION"),
        ({"kv_cache_type": "q8_0"}, "OLLAMA_KV_CACHE_TYPE"),
        ({"num_parallel": 2}, "OLLAMA_NUM_PARALLEL"),
    ],
)
async def test_what_belongs_to_the_environment_names_its_variable(
    ollama: Ollama, server: ScriptedOllama, option: dict[str, object], variable: str
) -> None:
    with pytest.raises(ConfigError, match=variable):
        await ollama.load(Options.of(option))
    assert not server.loads


# ---- loading ---------------------------------------------------------------------------------------------------------


async def test_automatic_layers_are_measured_after_an_unload(ollama: Ollama, server: ScriptedOllama) -> None:
    await ollama.load(Options(num_gpu=3))
    await ollama.load(Options(num_gpu=-1))
    assert server.unloads == ["gemma3:270m"]
    assert [options.num_gpu for _, options in server.loads] == [3, 19]
    await ollama.load(Options())
    assert len(server.loads) == 3
    assert all("num_gpu" not in sent["options"] for sent in bodies(server)[1:] if "options" in sent)  # type: ignore[operator]  # JSON


async def test_named_layers_are_loaded_without_an_unload(ollama: Ollama, server: ScriptedOllama) -> None:
    for layers in (3, 3, 9):
        await ollama.load(Options(num_gpu=layers))
    assert [options.num_gpu for _, options in server.loads] == [3, 9]
    assert sum(sent.get("keep_alive") == 0 for sent in bodies(server)) == 0


async def test_layers_over_the_models_own_run_as_all_of_them(ollama: Ollama) -> None:
    effective = await ollama.load(Options(num_gpu=80, num_ctx=2048))
    assert effective.options.num_gpu == 19
    assert effective.sources["num_gpu"] == "derived"
    assert "num_gpu 80 runs as 19: the model has 18 layers + output" in effective.notes
    assert effective.options.num_ctx == 2048
    assert effective.sources["num_ctx"] == "measured"


async def test_a_window_over_the_trained_one_is_read_back_cut(ollama: Ollama) -> None:
    effective = await ollama.load(Options(num_gpu=1, num_ctx=40000))
    assert effective.options.num_ctx == 32768
    assert any("num_ctx 40000 runs as 32768" in note and "trained" in note for note in effective.notes)


async def test_a_model_that_sees_has_a_window_of_at_least_2048(server: ScriptedOllama) -> None:
    backend = Ollama(server.url, "seeing:4b")
    effective = await backend.load(Options(num_gpu=1, num_ctx=512))
    assert (await backend.model()).vision
    assert effective.options.num_ctx == 2048
    assert any("vision" in note for note in effective.notes)
    await backend.close()


async def test_without_a_gpu_every_number_of_layers_runs_as_none(server: ScriptedOllama) -> None:
    server.memory = lambda model, options: (model.size, 0)
    backend = Ollama(server.url, "gemma3:270m")
    effective = await backend.load(Options(num_gpu=12))
    assert effective.options.num_gpu == 0
    assert any("num_gpu 12 runs as 0" in note for note in effective.notes)
    assert (effective.size_bytes, effective.vram_bytes) == (FakeModel().size, 0)
    await backend.close()


async def test_automatic_layers_are_estimated_from_the_memorys_division(server: ScriptedOllama) -> None:
    server.memory = lambda model, options: (1000, 526)
    backend = Ollama(server.url, "gemma3:270m")
    effective = await backend.load(Options())
    assert (effective.options.num_gpu, effective.sources["num_gpu"]) == (10, "estimated")
    server.memory = lambda model, options: (1000, 1000)
    effective = await backend.load(Options())
    assert (effective.options.num_gpu, effective.sources["num_gpu"]) == (19, "derived")
    await backend.close()


async def test_from_afar_what_cannot_be_read_back_is_named(ollama: Ollama) -> None:
    effective = await ollama.load(Options(num_gpu=5, num_ctx=1024, num_batch=256, num_thread=2))
    assert effective.options.num_batch is None
    assert set(effective.unread) == {"num_batch", "num_thread"}
    assert effective.pid is None


async def test_nothing_loaded_is_said_and_not_made_up(ollama: Ollama) -> None:
    effective = await ollama.effective()
    assert effective.options == Options()
    assert effective.notes == ("gemma3:270m is not loaded.",)


# ---- asking first ----------------------------------------------------------------------------------------------------


async def test_an_idle_server_is_not_reloaded_by_a_load(ollama: Ollama) -> None:
    assert await ollama.would_reload(Options(num_gpu=3)) is None


async def test_what_we_loaded_ourselves_is_not_reloaded_by_the_same(ollama: Ollama) -> None:
    await ollama.load(Options(num_gpu=3, num_ctx=512))
    assert await ollama.would_reload(Options(num_gpu=3, num_ctx=512, temperature=0.3)) is None


async def test_what_another_client_loaded_since_is_asked_for(ollama: Ollama, server: ScriptedOllama) -> None:
    await ollama.load(Options(num_gpu=3, num_ctx=512))
    other = Ollama(server.url, "gemma3:270m")
    await other.load(Options(num_gpu=3, num_ctx=1024))
    assert "load gemma3:270m again" in (await ollama.would_reload(Options(num_gpu=3, num_ctx=512)) or "")
    await other.close()


async def test_another_configuration_a_fresh_load_or_another_model_is_asked_for(
    ollama: Ollama, server: ScriptedOllama
) -> None:
    await ollama.load(Options(num_gpu=3))
    assert "load gemma3:270m again" in (await ollama.would_reload(Options(num_gpu=4)) or "")
    assert "automatic" in (await ollama.would_reload(Options()) or "")
    other = Ollama(server.url, "second:1b")
    assert "has gemma3:270m loaded" in (await other.would_reload(Options()) or "")
    await other.close()


# ---- leaving it as it was --------------------------------------------------------------------------------------------


async def test_a_model_that_was_not_loaded_is_unloaded_again(ollama: Ollama, server: ScriptedOllama) -> None:
    kept = await ollama.remember()
    await ollama.load(Options(num_gpu=3))
    assert await ollama.restore(kept) == ("Unloaded gemma3:270m: it was not loaded before.",)
    assert not server.loaded


async def test_a_model_that_was_loaded_comes_back_with_its_window_and_a_word_on_the_rest(
    ollama: Ollama, server: ScriptedOllama
) -> None:
    other = Ollama(server.url, "gemma3:270m")
    await other.load(Options(num_gpu=7, num_ctx=1024))
    kept = await ollama.remember()
    await ollama.load(Options(num_gpu=3, num_ctx=512))
    said = await ollama.restore(kept)
    assert server.loads[-1][1].num_ctx == 1024
    assert any("num_batch, num_gpu, num_thread" in sentence for sentence in said)
    await other.close()


async def test_only_our_model_is_touched(ollama: Ollama, server: ScriptedOllama) -> None:
    server.max_loaded = 1
    other = Ollama(server.url, "second:1b")
    await other.load(Options(num_gpu=7))
    kept = await ollama.remember()
    await ollama.load(Options(num_gpu=3))
    said = await ollama.restore(kept)
    assert any("second:1b was loaded before and is not now" in sentence for sentence in said)
    assert [name for name, _ in server.loads] == ["second:1b", "gemma3:270m"]
    await other.close()


async def test_after_a_crash_another_process_puts_it_back(server: ScriptedOllama) -> None:
    first = Ollama(server.url, "gemma3:270m")
    kept = await first.remember()
    await first.load(Options(num_gpu=3))
    await first.close()
    second = Ollama(server.url)
    assert await second.restore(json.loads(json.dumps(kept))) == ("Unloaded gemma3:270m: it was not loaded before.",)
    await second.close()


async def test_what_we_did_not_touch_stays_as_it_is(ollama: Ollama, server: ScriptedOllama) -> None:
    kept = await ollama.remember()
    other = Ollama(server.url, "gemma3:270m")
    await other.load(Options(num_gpu=7))
    assert await ollama.restore(kept) == ()
    assert set(server.loaded) == {"gemma3:270m"}
    await other.close()


async def test_a_model_that_stays_for_ever_still_does_after_us(ollama: Ollama, server: ScriptedOllama) -> None:
    await ollama._wire.json("POST", "/api/generate", {"model": "gemma3:270m", "keep_alive": -1, "stream": False})
    kept = await ollama.remember()
    await ollama.load(Options(num_gpu=3))
    await ask(ollama, request(num_gpu=3))
    assert {sent["keep_alive"] for sent in bodies(server)} == {-1}
    await ollama.restore(kept)
    assert server.loaded["gemma3:270m"].expires_at > time.time() + 1e9


async def test_closing_leaves_server_and_model_alone(ollama: Ollama, server: ScriptedOllama) -> None:
    await ollama.load(Options(num_gpu=3))
    await ollama.close()
    assert set(server.loaded) == {"gemma3:270m"}


# ---- the engine's process --------------------------------------------------------------------------------------------


@on_linux
async def test_on_the_same_host_the_engines_arguments_are_read_back(tmp_path: Path) -> None:
    with ollama_process(tmp_path, slots=2) as url:
        backend = Ollama(url)
        effective = await backend.load(Options(num_gpu=80, num_ctx=8192, num_thread=2))
        assert effective.options.as_dict() == {
            "num_gpu": 19, "num_ctx": 8192, "num_batch": 1024, "num_thread": 2, "flash_attention": "auto",
            "kv_cache_type": "f16", "num_parallel": 2,
        }  # fmt: skip
        derived = {name for name, source in effective.sources.items() if source == "derived"}
        assert derived == {"num_gpu", "kv_cache_type"}
        assert any("num_batch was not asked for and runs as 1024" in note for note in effective.notes)
        assert effective.unread == ()
        assert effective.pid is not None
        assert "llama-server" in Path(f"/proc/{effective.pid}/cmdline").read_text()
        await backend.close()


@on_linux
async def test_on_the_same_host_the_engines_slots_show_who_uses_it(tmp_path: Path) -> None:
    with ollama_process(tmp_path, decode_s=0.02) as url:
        backend = Ollama(url)
        before = await backend.activity()
        assert isinstance(before.busy, Missing)
        assert before.busy.reason == "unreachable"
        await backend.load(Options(num_gpu=2))
        assert (await backend.activity()).busy == 0
        assert await backend.count_tokens("one two three") == 4
        events = backend.generate(request(50, num_gpu=2))
        async for event in events:
            if isinstance(event, Tokens):
                break
        during = await backend.activity()
        assert during.busy == 1
        assert during.tasks == frozenset({1})
        await events.aclose()
        await backend.load(Options(num_gpu=3))  # another process, another port
        assert (await backend.activity()).busy == 0
        await backend.close()


@on_linux
async def test_on_the_same_host_a_configuration_comes_back_whole(tmp_path: Path) -> None:
    with ollama_process(tmp_path) as url:
        theirs, backend = Ollama(url), Ollama(url)
        before = await theirs.load(Options(num_gpu=7, num_ctx=1024, num_thread=1))
        kept = await backend.remember()
        await backend.load(Options(num_gpu=2, num_ctx=512))
        said = await backend.restore(kept)
        assert said == ("Loaded gemma3:270m again with num_gpu=7 num_ctx=1024 num_thread=1.",)
        assert (await theirs.effective()).options == before.options
        await backend.load(Options(num_gpu=7, num_ctx=1024, num_thread=1))
        assert await backend.restore(kept) == ()  # it runs so already
        for each in (theirs, backend):
            await each.close()


@on_linux
async def test_on_the_same_host_a_reload_is_told_by_what_changes(tmp_path: Path) -> None:
    with ollama_process(tmp_path) as url:
        theirs, backend = Ollama(url), Ollama(url)
        await theirs.load(Options(num_gpu=7, num_ctx=1024))
        words = await backend.would_reload(Options(num_gpu=80, num_ctx=8192))
        assert words is not None
        assert "num_gpu 7 -> 80, num_ctx 1024 -> 8192, num_batch 512 -> 1024" in words
        assert await backend.would_reload(Options(num_gpu=7, num_ctx=1024)) is None
        for each in (theirs, backend):
            await each.close()


def test_a_childs_arguments_are_options() -> None:
    argv = (
        "lib/ollama/llama-server", "--model", "models/blobs/sha256-a5", "--port", "46447", "--host", "127.0.0.1",
        "-c", "8192", "-np", "2", "--flash-attn", "on", "-b", "1024", "-ub", "1024", "-ngl", "80", "-t", "6",
        "--cache-type-k", "q8_0", "--cache-type-v=q8_0",
    )  # fmt: skip
    child = Child(1, 46447, argv)
    assert child.options.as_dict() == {
        "num_gpu": 80, "num_ctx": 4096, "num_batch": 1024, "num_thread": 6, "flash_attention": "on",
        "kv_cache_type": "q8_0", "num_parallel": 2,
    }  # fmt: skip
    assert child.blob == "models/blobs/sha256-a5"


def test_every_argument_list_of_the_recorded_reload_matrix_is_read() -> None:
    for entry in json.loads((SAMPLES / "ollama/reload-matrix.json").read_text()):
        args = {name: value for name, value in entry["args"].items() if name != "shift"}
        argv = tuple(word for pair in args.items() for word in pair)
        options = Child(1, 1, argv).options
        assert options.num_ctx == entry["ps"][0][3]
        assert options.num_batch == int(args["-b"])
        assert options.num_gpu == (int(args["-ngl"]) if "-ngl" in args else None)


# ---- the scripted server keeps the recorded rules --------------------------------------------------------------------


async def test_the_scripted_ollama_reloads_where_the_recorded_one_did() -> None:
    matrix = json.loads((SAMPLES / "ollama/reload-matrix.json").read_text())
    changes: dict[str, dict[str, object]] = {
        "default": {}, "same again": {}, "num_ctx 512": {"num_ctx": 512}, "num_ctx 512 again": {"num_ctx": 512},
        "temperature/top_p/top_k/repeat_penalty/seed/num_predict": {"temperature": 0.1, "top_k": 3, "seed": 5},
        "num_keep/stop": {"num_keep": 2}, "num_ctx unset -> auto": {}, "num_ctx 2 (min 4)": {"num_ctx": 2},
        "num_ctx 40000 (train 32768)": {"num_ctx": 40000}, "num_ctx 32768": {"num_ctx": 32768},
        "num_gpu 0": {"num_gpu": 0}, "num_gpu 0 again": {"num_gpu": 0}, "num_gpu -1": {"num_gpu": -1},
        "num_gpu 10": {"num_gpu": 10}, "num_gpu 80": {"num_gpu": 80}, "num_gpu 120": {"num_gpu": 120},
        "num_gpu unset": {}, "num_thread 1": {"num_thread": 1}, "num_thread unset": {},
        "num_batch 64": {"num_batch": 64}, "num_batch unset": {},
        "use_mmap true": {"use_mmap": True}, "use_mmap unset": {}, "main_gpu 0": {"main_gpu": 0},
        "shift false": {"main_gpu": 0}, "shift unset": {"main_gpu": 0}, "keep_alive 10m": {"main_gpu": 0},
        "numbers as float num_ctx 512.7": {"num_ctx": 512.7},
    }  # fmt: skip
    async with ScriptedOllama() as server:
        backend = Ollama(server.url)
        for entry in matrix:
            before = len(server.loads)
            sent: dict[str, object] = {"model": "gemma3:270m", "stream": False, "options": changes[entry["label"]]}
            if entry["label"] == "shift false":
                sent["shift"] = False
            await backend._wire.json("POST", "/api/generate", sent)
            reloaded = len(server.loads) > before
            assert reloaded == entry["reloaded"], entry["label"]
            assert server.loaded["gemma3:270m"].options.num_ctx == entry["ps"][0][3]
            assert server.loaded["gemma3:270m"].options.num_batch == int(entry["args"]["-b"])
        await backend.close()


async def test_an_answer_of_another_shape_is_a_bad_answer() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/api/version", body(200, {"version": 7}), body(200, [1, 2]), body(200, {"other": 1}))
        backend = Ollama(server.url)
        for _ in range(3):
            with pytest.raises(BadAnswer):
                await backend.connect()
        await backend.close()


def test_recordings_are_whole() -> None:
    assert len(Recording.of("ollama/generate-stream-cold.jsonl").reads) > 20
