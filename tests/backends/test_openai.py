"""Servers with the OpenAI dialect: the contract, and the habits that differ from server to server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from chimera.backends.base import Backend, Done, GenerateRequest, Headers
from chimera.backends.openai import OpenAICompatible
from chimera.backends.wire import Wire
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import ServerKind
from chimera.errors import BackendRefused, BadAnswer, ConfigError, ContextExceeded, StreamBroken

from .contract import BackendContract, collect, done_of, tokens_of, unique_prompt
from .scripted import ScriptedOllama, ScriptedOpenAI, ScriptedServer, Usage, absent_url, body, recorded


def request(output_tokens: int = 8, **options: object) -> GenerateRequest:
    return GenerateRequest(unique_prompt(), output_tokens, Options.of(options), timeout_s=10)


async def ask(backend: Backend, sent: GenerateRequest | None = None) -> Done:
    return done_of(await collect(backend.generate(sent or request())))


async def asked(server: ScriptedOpenAI, sent: GenerateRequest | None = None) -> tuple[list[tuple[str, bool]], Done]:
    """Text and sort of the tokens, and the end, of one request to a server."""
    backend = OpenAICompatible(server.url)
    try:
        await backend.connect()
        events = await collect(backend.generate(sent or request()))
        return [(event.text, event.thinking) for event in tokens_of(events)], done_of(events)
    finally:
        await backend.close()


EIGHT = [(f" t{index}", False) for index in range(8)]


class TestContract(BackendContract):
    kind: ClassVar[ServerKind] = "openai"
    timeout_s: ClassVar[float] = 10.0

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with ScriptedOpenAI(prefill_s=0.0001, decode_s=0.001) as server:
            backend = OpenAICompatible(server.url)
            await backend.connect()
            yield backend
            await backend.close()

    @pytest.fixture
    def absent(self) -> Backend | None:
        return OpenAICompatible(absent_url())


class TestContractOfVllm(TestContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with ScriptedOpenAI(product="vLLM", slots=4, decode_s=0.001, stops_after=lambda request: 3) as server:
            backend = OpenAICompatible(server.url)
            await backend.connect()
            yield backend
            await backend.close()


class TestContractOfAServerWithChatOnly(TestContract):
    told: ClassVar[frozenset[str]] = frozenset({"finish_reason"})

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with ScriptedOpenAI(completions=False, usage="refused", comments=True, space=False) as server:
            backend = OpenAICompatible(server.url)
            yield backend
            await backend.close()


@pytest.mark.parametrize("usage", ["last", "on finish", "zeros"])
@pytest.mark.parametrize("completions", [True, False])
async def test_counts_are_found_wherever_they_ride(usage: Usage, completions: bool) -> None:
    async with ScriptedOpenAI(usage=usage, completions=completions) as server:
        tokens, done = await asked(server)
    assert tokens == EIGHT
    assert done.completion_tokens == 8
    assert done.prompt_tokens is not None
    assert done.prompt_tokens > 8
    assert done.finish_reason == "length"


async def test_the_last_true_counts_win_over_zeros_that_follow() -> None:
    stream = (
        b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\n'
        b'data: {"choices":[{"text":"b","finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\ndata: [DONE]\n\n'
    )
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(200, stream, "text/event-stream"))
        _, done = await asked(server)
    assert (done.prompt_tokens, done.completion_tokens) == (9, 2)


async def test_without_counts_they_are_unknown_and_so_are_all_times() -> None:
    async with ScriptedOpenAI(usage="none") as server:
        tokens, done = await asked(server)
    assert tokens == EIGHT
    assert (done.prompt_tokens, done.completion_tokens, done.cached_tokens) == (None, None, None)
    assert (done.load_s, done.queue_s, done.prefill_s, done.decode_s) == (None, None, None, None)


async def test_a_server_that_does_not_know_stream_options_is_asked_once_more_and_then_no_more() -> None:
    async with ScriptedOpenAI(usage="refused") as server:
        backend = OpenAICompatible(server.url)
        for _ in range(3):
            events = await collect(backend.generate(request()))
            assert len([event for event in events if isinstance(event, Headers)]) == 1
        await backend.close()
        assert server.count("POST", "/v1/completions") == 4
        assert "stream_options" not in server.requests[-1].json()


async def test_where_completions_are_not_there_chat_is_used_from_then_on() -> None:
    async with ScriptedOpenAI(completions=False) as server:
        backend = OpenAICompatible(server.url)
        for _ in range(3):
            await ask(backend)
        await backend.close()
        assert server.count("POST", "/v1/completions") == 1
        assert server.count("POST", "/v1/chat/completions") == 3


async def test_a_model_that_is_gone_does_not_turn_completions_off() -> None:
    async with ScriptedOpenAI() as server:
        backend = OpenAICompatible(server.url)
        await ask(backend)
        server.models = ("other",)
        with pytest.raises(BackendRefused, match="does not exist"):
            await ask(backend)
        server.models = ("some-model",)
        await ask(backend)
        await backend.close()
        assert server.requests[-1].path == "/v1/completions"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_thinking(field: str) -> None:
    async with ScriptedOpenAI(completions=False, reasoning=(field, 3)) as server:
        tokens, _ = await asked(server)
    assert tokens == [(text, index < 3) for index, (text, _) in enumerate(EIGHT)]


@pytest.mark.parametrize(
    "habits",
    [
        {"comments": True},
        {"space": False},
        {"says_done": False},
        {"events_per_write": 3},
        {"events_per_write": 100, "comments": True, "space": False, "says_done": False},
    ],
)
async def test_habits_of_framing_change_nothing(habits: dict[str, bool | int]) -> None:
    async with ScriptedOpenAI(**habits) as server:  # type: ignore[arg-type]  # each habit has its own type
        tokens, done = await asked(server)
    assert tokens == EIGHT
    assert done.completion_tokens == 8


async def test_several_tokens_in_one_event_are_counted_by_the_server() -> None:
    async with ScriptedOpenAI(tokens_per_event=3) as server:
        tokens, done = await asked(server)
    assert [text for text, _ in tokens] == [" t0 t1 t2", " t3 t4 t5", " t6 t7"]
    assert done.completion_tokens == 8


@pytest.mark.parametrize(
    ("sample", "texts", "prompt", "completion", "reason"),
    [
        ("v1-completions-stream-usage", 8, 15, 8, "length"),
        ("v1-chat-stream-usage", 12, 37, 12, "length"),
        ("v1-chat-stream", 6, None, None, "stop"),
    ],
)
async def test_recorded_streams_are_read(
    sample: str, texts: int, prompt: int | None, completion: int | None, reason: str
) -> None:
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", recorded(f"ollama/{sample}.jsonl"))
        tokens, done = await asked(server)
    assert len(tokens) == texts
    assert (done.prompt_tokens, done.completion_tokens, done.finish_reason) == (prompt, completion, reason)


async def test_cached_tokens_are_taken_where_they_are_told() -> None:
    stream = (
        b'data: {"choices":[{"text":"a","finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":1,'
        b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n'
    )
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(200, stream, "text/event-stream"))
        _, done = await asked(server)
    assert done.cached_tokens == 4


async def test_an_error_in_the_stream_is_a_refusal_of_its_kind() -> None:
    async with ScriptedOpenAI(fails_after=lambda number: 2) as server:
        with pytest.raises(BackendRefused, match="engine died"):
            await asked(server)
        too_long = b'data: {"object":"error","message":"context length exceeded: 9 > 8","code":400}\n\n'
        server.route("POST", "/v1/completions", body(200, too_long, "text/event-stream"))
        with pytest.raises(ContextExceeded):
            await asked(server)


async def test_a_prompt_over_the_context_is_not_tried_again_without_stream_options() -> None:
    error = {"error": {"message": "This model's maximum context length exceeded: context length exceeded"}}
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(400, error))
        with pytest.raises(ContextExceeded):
            await asked(server)
        assert server.count("POST", "/v1/completions") == 1


async def test_a_stream_that_ends_without_an_end_is_broken() -> None:
    stream = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(200, stream, "text/event-stream"))
        with pytest.raises(StreamBroken):
            await asked(server)


async def test_a_last_event_without_its_empty_line_counts() -> None:
    stream = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n'
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(200, stream, "text/event-stream"))
        tokens, done = await asked(server)
    assert tokens == [("a", False)]
    assert done.finish_reason == "stop"


async def test_an_answer_that_is_no_stream_is_shown() -> None:
    async with ScriptedOpenAI() as server:
        server.route("POST", "/v1/completions", body(200, {"choices": [{"text": "all at once"}]}))
        with pytest.raises(BadAnswer, match=r"no event stream but: .*all at once"):
            await asked(server)


# ---- products --------------------------------------------------------------------------------------------------------


async def test_only_vllm_is_held_to_the_length() -> None:
    async with ScriptedOpenAI(product="vLLM", stops_after=lambda number: 3) as server:
        tokens, done = await asked(server, request(8, top_k=5, repeat_penalty=1.2, temperature=0.1))
        sent = server.requests[-1].json()
    assert len(tokens) == done.completion_tokens == 8
    assert sent["ignore_eos"] is True
    assert sent["min_tokens"] == 8
    assert (sent["top_k"], sent["repetition_penalty"], sent["temperature"]) == (5, 1.2, 0.1)
    async with ScriptedOpenAI(stops_after=lambda number: 3) as server:
        tokens, done = await asked(server, request(8, top_k=5, temperature=0.1))
        sent = server.requests[-1].json()
    assert len(tokens) == done.completion_tokens == 3
    assert done.finish_reason == "stop"
    assert not {"ignore_eos", "min_tokens", "top_k", "cache_prompt", "raw"} & sent.keys()


async def test_vllm_tells_who_uses_it_and_others_do_not() -> None:
    async with ScriptedOpenAI(product="vLLM") as server:
        backend = OpenAICompatible(server.url)
        server.running, server.waiting = 2, 3
        activity = await backend.activity()
        assert (activity.busy, activity.waiting) == (2.0, 3.0)
        assert isinstance(activity.tasks, Missing)
        await backend.close()
    async with ScriptedOpenAI() as server:
        backend = OpenAICompatible(server.url)
        activity = await backend.activity()
        assert isinstance(activity.busy, Missing)
        assert activity.busy.reason == "unsupported"
        await backend.close()


async def test_products_are_named_by_their_answers() -> None:
    for server, title in (
        (ScriptedOpenAI(product="vLLM"), "vLLM 0.11.0"),
        (ScriptedOpenAI(product="LM Studio"), "LM Studio"),
        (ScriptedOpenAI(), "OpenAI-compatible server"),
        (ScriptedOllama(), "Ollama 0.33.0"),
    ):
        async with server:
            backend = OpenAICompatible(server.url)
            info = await backend.connect()
            assert (info.kind, info.title) == ("openai", title)
            await backend.close()


async def test_lm_studio_tells_more_of_its_models() -> None:
    async with ScriptedOpenAI(product="LM Studio") as server:
        backend = OpenAICompatible(server.url)
        model = await backend.model()
        assert (model.quantization, model.trained_ctx, model.architecture) == ("Q4_K_M", 8192, "llama")
        assert backend.sampling_options == {"temperature", "top_p", "top_k", "repeat_penalty"}
        await backend.close()


async def test_vllms_window_is_read_back() -> None:
    listed = {"data": [{"id": "some-model", "max_model_len": 4096}]}
    async with ScriptedOpenAI() as server:
        server.route("GET", "/v1/models", body(200, listed))
        backend = OpenAICompatible(server.url)
        effective = await backend.effective()
        assert effective.options == Options(num_ctx=4096)
        assert effective.sources == {"num_ctx": "measured"}
        await backend.close()


async def test_all_load_options_asked_for_are_named_in_the_refusal() -> None:
    async with ScriptedOpenAI(product="vLLM") as server:
        backend = OpenAICompatible(server.url)
        with pytest.raises(ConfigError, match=r"num_gpu, num_ctx cannot be set on vLLM 0.11.0"):
            await backend.load(Options(num_gpu=1, num_ctx=512))
        await backend.close()


async def test_the_key_comes_from_the_environment_and_its_lack_is_a_refusal() -> None:
    async with ScriptedOpenAI(key="s3cret") as server:
        backend = OpenAICompatible(server.url, wire=Wire(server.url, environ={}))
        with pytest.raises(BackendRefused) as refused:
            await backend.connect()
        assert refused.value.status == 401
        await backend.close()
        backend = OpenAICompatible(server.url, wire=Wire(server.url, environ={"CHIMERA_API_KEY": "s3cret"}))
        await backend.connect()
        await ask(backend)
        await backend.close()


async def test_an_unknown_model_is_refused_with_those_that_are_there() -> None:
    async with ScriptedOpenAI(models=("a", "b")) as server:
        backend = OpenAICompatible(server.url, "c")
        with pytest.raises(BackendRefused, match=r"no model 'c'. Available: a, b"):
            await backend.model()
        await backend.close()


async def test_a_list_of_another_shape_is_a_bad_answer() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/v1/models", body(200, {"data": "none"}), body(200, ["x"]), body(200, {}))
        backend = OpenAICompatible(server.url)
        for _ in range(3):
            with pytest.raises(BadAnswer, match="lists no models"):
                await backend.connect()
        await backend.close()
