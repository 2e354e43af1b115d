"""One request: its parts, its two rates, and the rules that void it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from chimera.backends.base import Activity, Done, Event, GenerateRequest, Headers, Tokens
from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.readings import Missing
from chimera.errors import BackendUnavailable, BadAnswer, ContextExceeded, StreamBroken
from chimera.measure.live import LiveRequest
from chimera.measure.prompts import Prompt
from chimera.measure.request import measure

from .played import Play, PlayedBackend, answer

PROMPT = Prompt("nonce " + "word " * 63, 64, 65)
REQUEST = GenerateRequest(PROMPT.text, 16, timeout_s=5.0)


async def figures(play: Play, *, backend: PlayedBackend | None = None, **how: Any) -> Measurement:
    how.setdefault("prompt", PROMPT)
    return (await measure(backend or PlayedBackend(play), REQUEST, **how)).measurement


async def test_the_parts_and_the_rest_add_up_to_the_total() -> None:
    result = await figures(answer(queue=0.5, prefill=0.1, gap=0.02, rest=0.003))
    parts = [result.queue_s, result.load_s or 0.0, result.prefill_s, result.decode_s, result.other_s]
    assert sum(part for part in parts if part is not None) == pytest.approx(result.total_s)
    assert result.queue_s == pytest.approx(0.5, abs=0.005)
    assert result.ttft_s == pytest.approx(0.6, abs=0.005)
    assert result.other_s == pytest.approx(0.003, abs=0.001)


async def test_both_rates_are_n_minus_one_over_time_and_stay_apart() -> None:
    result = await figures(answer(gap=0.02, tokens=16, decode_s=15 * 0.025))
    assert result.client_decode_tok_s == pytest.approx(50.0)
    assert result.decode_tok_s == pytest.approx(40.0)
    assert result.rate == result.decode_tok_s


async def test_a_stop_token_without_text_does_not_raise_the_clients_rate() -> None:
    result = await figures(answer(tokens=16, completion_tokens=17, decode_s=16 * 0.02, finish_reason="stop"))
    assert result.client_decode_tok_s == pytest.approx(50.0)


@pytest.mark.parametrize(("thought", "answer_s"), [(0, 0.1), (5, 0.6), (8, None)])
async def test_the_first_word_of_the_answer_is_the_first_that_is_no_thought(
    thought: int, answer_s: float | None
) -> None:
    def play(sent: float) -> list[Event | Exception]:
        words = [Tokens(sent + 0.1 * (i + 1), "x", thinking=i < thought) for i in range(8)]
        return [Headers(sent), *words, Done(sent + 0.9, completion_tokens=8, finish_reason="length")]

    timed = await measure(PlayedBackend(play), REQUEST, PROMPT)
    assert timed.measurement.ttft_s == pytest.approx(0.1, abs=0.005)
    assert timed.answer_s == (None if answer_s is None else pytest.approx(answer_s, abs=0.005))


@pytest.mark.parametrize("held", [(0,), (7,), (15,), (0, 1, 15), (14, 15)])
async def test_tokens_that_end_inside_a_character_leave_the_clients_rate_alone(held: tuple[int, ...]) -> None:
    """llama.cpp holds their text back: it comes with the next token, or never."""

    def play(sent: float) -> list[Event | Exception]:
        events: list[Event | Exception] = []
        waiting = 1
        for number in range(16):
            if number in held:
                waiting += 1
            else:
                events.append(Tokens(sent + 0.1 + number * 0.02, "x", waiting, counted=True))
                waiting = 1
        return [*events, Done(sent + 0.41, prefill_s=0.1, decode_s=0.3, completion_tokens=16, prompt_tokens=65)]

    result = await figures(play)
    assert result.client_decode_tok_s == pytest.approx(50.0)
    assert result.decode_tok_s == pytest.approx(50.0)
    assert result.void_reason is None


async def test_a_chunk_with_two_tokens_of_an_answer_that_ran_to_its_limit_counts_as_two() -> None:
    def play(sent: float) -> list[Event | Exception]:
        stamps = [sent + 0.1 + number * 0.02 for number in range(16) if number != 7]
        events = [Tokens(stamp, "x") for stamp in stamps]
        done = Done(stamps[-1], prefill_s=0.1, decode_s=0.3, completion_tokens=16, finish_reason="length")
        return [*events, replace(done, prompt_tokens=65)]

    assert (await figures(play)).client_decode_tok_s == pytest.approx(50.0)


async def test_coalesced_chunks_are_counted_by_the_server() -> None:
    def play(sent: float) -> list[Event | Exception]:
        stamps = [sent + 0.1 + number * 0.04 for number in range(8)]
        events = [Tokens(stamp, "two words") for stamp in stamps]
        return [*events, Done(stamps[-1], prefill_s=0.1, decode_s=0.28, completion_tokens=16, prompt_tokens=65)]

    result = await figures(play)
    assert result.completion_tokens == 16
    assert result.client_decode_tok_s == pytest.approx(15 / 0.28)


async def test_one_token_has_no_rate() -> None:
    """Ollama reports 1000 ns for a single token, which must not become a million tokens a second."""
    backend = PlayedBackend(answer(tokens=1, decode_s=1e-6))
    result = (await measure(backend, replace(REQUEST, output_tokens=1), PROMPT)).measurement
    assert result.decode_tok_s is None
    assert result.client_decode_tok_s is None
    assert result.rate is None


async def test_a_server_that_tells_nothing_leaves_unknown_unknown() -> None:
    silent = answer(prefill_s=None, decode_s=None, cached_tokens=None, queue=0.2)
    result = await figures(silent, backend=PlayedBackend(silent, headers_mark_slot=False))
    assert result.queue_s is None
    assert result.load_s is None
    assert result.decode_tok_s is None
    assert result.prefill_tok_s is None
    assert result.timing_source == "client"
    assert result.prefill_s == result.ttft_s
    assert result.client_decode_tok_s == pytest.approx(50.0)


async def test_headers_that_come_with_the_first_token_say_nothing_of_the_queue() -> None:
    def play(sent: float) -> list[Event | Exception]:
        events = list(answer(queue=0.0, prefill=0.4)(sent))
        return [Headers(sent + 0.39), *events[1:]]

    assert (await figures(play)).queue_s is None


async def test_cached_prompt_tokens_leave_no_prefill_rate_and_void() -> None:
    result = await figures(answer(cached_tokens=60))
    assert result.void_reason == "cache-hit"
    assert result.prefill_tok_s is None


async def test_a_prompt_repeated_on_purpose_is_valid_but_claims_no_ttft() -> None:
    result = await figures(answer(cached_tokens=60), cache_allowed=True)
    assert result.void_reason is None
    assert result.ttft_s is None
    assert result.prefill_tok_s is None


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (answer(tokens=12), "short-output"),
        (answer(tokens=12, truncated=True), "truncated"),
        (answer(prompt_tokens=33), "truncated"),
        (answer(load_s=2.4), "reload-inside"),
        (answer(cached_tokens=2), "cache-hit"),
        (answer(queue=0.4), "foreign-client"),
    ],
)
async def test_rules_that_void(play: Play, reason: VoidReason) -> None:
    assert (await figures(play)).void_reason == reason


@pytest.mark.parametrize(
    "play",
    [
        answer(),
        answer(prompt_tokens=64),  # two honest counts may differ by the token that begins a text
        answer(cached_tokens=1),  # which may also always be cached
        answer(load_s=0.4),
        answer(queue=0.2),
        answer(gap=2.0),  # however slow it was: no rule looks at the value
        answer(gap=1e-6, decode_s=15e-6),
    ],
)
async def test_near_misses_count(play: Play) -> None:
    assert (await figures(play)).void_reason is None


async def test_a_cold_first_request_is_named_and_not_void() -> None:
    result = await figures(answer(load_s=2.4), role="warmup")
    assert result.cold
    assert result.void_reason is None


async def test_a_slow_load_among_slow_loads_is_not_cold() -> None:
    result = await figures(answer(load_s=0.9), warm_loads_s=[0.8, 0.8])
    assert not result.cold


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Activity(busy=1.0, tasks=frozenset({7})), Activity(busy=0.0, tasks=frozenset({8}))),
        (Activity(busy=0.0, tasks=frozenset({7})), Activity(busy=1.0, tasks=frozenset({8}))),
        (Activity(busy=0.0, tasks=frozenset({7})), Activity(busy=0.0, tasks=frozenset({8, 9}))),
    ],
)
async def test_another_client_voids(before: Activity, after: Activity) -> None:
    result = await figures(answer(), backend=PlayedBackend(answer(), activities=[before, after]))
    assert result.void_reason == "foreign-client"


async def test_a_server_that_hides_its_clients_does_not_void() -> None:
    hidden = Activity(busy=Missing("unreachable"), tasks=Missing("unreachable"))
    result = await figures(answer(), backend=PlayedBackend(answer(), activities=[hidden, hidden]))
    assert result.void_reason is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ContextExceeded("the prompt has 400 tokens, the context 256", status=400), "refused"),
        (BackendUnavailable("nobody answers"), "error"),
        (BackendUnavailable("http://x did not answer within 5 s."), "timeout"),
        (BadAnswer("HTML"), "error"),
        (StreamBroken("lost"), "error"),
    ],
)
async def test_what_the_server_does_wrong_is_a_void_measurement_with_its_words(
    error: Exception, reason: VoidReason
) -> None:
    result = await figures(lambda _: [error])
    assert result.void_reason == reason
    assert result.error == str(error)
    assert result.rate is None
    assert result.ttft_s is None


async def test_a_stream_that_breaks_keeps_what_was_seen_but_no_server_rate() -> None:
    def play(sent: float) -> list[Event | Exception]:
        return [*answer()(sent)[:9], StreamBroken("lost")]

    result = await figures(play)
    assert result.void_reason == "error"
    assert result.ttft_s is not None
    assert result.decode_tok_s is None
    assert result.completion_tokens is None


async def test_an_answer_without_its_end_is_no_answer() -> None:
    result = await figures(lambda sent: answer()(sent)[:-1])
    assert result.void_reason == "error"
    assert "final message" in (result.error or "")


async def test_a_server_that_does_not_stop_is_cut_off() -> None:
    def play(sent: float) -> list[Event | Exception]:
        return [Tokens(sent + number * 0.01, "x") for number in range(10_000)]

    backend = PlayedBackend(play)
    result = await figures(play, backend=backend)
    assert result.void_reason == "error"
    assert backend.closed_early == 1


async def test_silence_ends_at_the_time_limit() -> None:
    class Silent(PlayedBackend):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            yield Headers(time.perf_counter())
            await asyncio.sleep(60)

    began = time.perf_counter()
    result = (await measure(Silent(answer()), replace(REQUEST, timeout_s=0.1), PROMPT)).measurement
    assert result.void_reason == "timeout"
    assert time.perf_counter() - began < 2


async def test_a_live_view_shows_the_rate_of_about_the_last_second() -> None:
    live = LiveRequest()
    await measure(PlayedBackend(answer(gap=0.05, tokens=16)), REQUEST, PROMPT, live=live)
    assert live.tokens == 16
    assert live.rate == pytest.approx(20.0)
    live.begin()
    assert live.rate is None
