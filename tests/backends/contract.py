"""What every backend does, whichever server is behind it: inherit `BackendContract` and give it a `backend` fixture."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from typing import ClassVar

import pytest

from chimera.backends.base import Backend, Done, Event, GenerateRequest, Headers, PromptProgress, Tokens
from chimera.domain.options import LOAD_OPTIONS, OPTION_NAMES, Options
from chimera.domain.readings import Missing
from chimera.domain.server import ServerKind
from chimera.errors import BackendError, BackendUnavailable, ConfigError

_nonce = count()

UNSUPPORTED: dict[str, object] = {
    "num_gpu": 1,
    "num_ctx": 512,
    "num_batch": 64,
    "num_thread": 1,
    "flash_attention": "on",
    "kv_cache_type": "q8_0",
    "num_parallel": 2,
}
"""A value for each load option, for asking a backend for one that it cannot make effective."""


def unique_prompt(words: int = 12) -> str:
    """A prompt whose start no earlier one has, so that no prefix cache answers."""
    return f"[{next(_nonce)}-{time.time_ns() % 1_000_000}] " + "tell of the chimera " * max(1, words // 4)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    """Every event of one request."""
    return [event async for event in events]


def tokens_of(events: list[Event]) -> list[Tokens]:
    """The events with text."""
    return [event for event in events if isinstance(event, Tokens)]


def done_of(events: list[Event]) -> Done:
    """The last event, which must be the `Done`."""
    assert events, "the request yielded nothing"
    last = events[-1]
    assert isinstance(last, Done), f"the last event is {last!r}"
    return last


class BackendContract:
    """Inherit, override the fixture `backend` and what knobs differ."""

    kind: ClassVar[ServerKind]
    load_request: ClassVar[Options] = Options()
    """Options that `load` must make effective here."""
    output_tokens: ClassVar[int] = 8
    lengths: ClassVar[tuple[int, ...]] = (1, 4, 16)
    """Output lengths that must come out exactly; empty where the server cannot be held to a length."""
    told: ClassVar[frozenset[str]] = frozenset({"prompt_tokens", "completion_tokens", "finish_reason"})
    """Fields of `Done` that this server fills."""
    textless_tokens: ClassVar[int] = 0
    """Counted tokens that may come without an event of their own (Ollama's stop token, joined UTF-8)."""
    timeout_s: ClassVar[float] = 60.0

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        """A connected backend, closed afterwards; may be shared by the tests of a class."""
        raise NotImplementedError
        yield  # noqa: PT022 - makes it a generator, as its heirs are

    @pytest.fixture
    async def own_backend(self, backend: Backend) -> Backend:
        """A backend that a test may close; override it where `backend` is shared."""
        return backend

    @pytest.fixture
    def absent(self) -> Backend | None:
        """A backend whose server does not exist; None where that makes no sense."""
        return None

    def request(self, output_tokens: int | None = None, *, prompt: str | None = None) -> GenerateRequest:
        """A request under the options that the contract loads."""
        return GenerateRequest(
            prompt=prompt or unique_prompt(),
            output_tokens=output_tokens or self.output_tokens,
            options=self.load_request.load.over(Options(temperature=0.0)),
            timeout_s=self.timeout_s,
        )

    async def test_connect_says_what_the_server_is_and_may_be_repeated(self, backend: Backend) -> None:
        first = await backend.connect()
        second = await backend.connect()
        assert first.kind == backend.kind == self.kind
        assert first.title
        assert not first.url.endswith("/")
        assert (first.kind, first.url) == (second.kind, second.url)

    async def test_its_option_sets_are_options_of_their_sort(self, backend: Backend) -> None:
        assert backend.load_options <= LOAD_OPTIONS
        assert backend.sampling_options <= frozenset(OPTION_NAMES) - LOAD_OPTIONS
        assert self.load_request.load.as_dict().keys() <= backend.load_options

    async def test_its_model_is_among_its_models(self, backend: Backend) -> None:
        models = await backend.models()
        model = await backend.model()
        assert model.name
        assert model.name in {other.name for other in models}
        assert all(value is None or value > 0 for value in (model.block_count, model.trained_ctx, model.size_bytes))

    async def test_loading_makes_options_effective_and_they_can_be_read_back(self, backend: Backend) -> None:
        loaded = await backend.load(self.load_request)
        again = await backend.effective()
        asked = self.load_request.load.as_dict().keys()
        assert asked <= loaded.options.as_dict().keys() | set(loaded.unread)
        assert loaded.sources.keys() == loaded.options.as_dict().keys()
        assert set(loaded.sources.values()) <= {"measured", "derived", "estimated"}
        assert not set(loaded.unread) & loaded.options.as_dict().keys()
        measured = {name for name, source in loaded.sources.items() if source == "measured"}
        assert again.options.only(frozenset(measured)) == loaded.options.only(frozenset(measured))

    async def test_a_load_option_that_it_cannot_make_effective_is_refused_in_words(self, backend: Backend) -> None:
        for name in LOAD_OPTIONS - backend.load_options:
            with pytest.raises(ConfigError) as refused:
                await backend.load(Options.of({name: UNSUPPORTED[name]}))
            assert name in str(refused.value)

    async def test_asking_whether_it_would_reload_changes_nothing(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        before = await backend.effective()
        answer = await backend.would_reload(self.load_request)
        assert answer is None or answer.strip()
        assert (await backend.effective()).options == before.options

    async def test_a_request_yields_its_events_in_order(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        before = time.perf_counter()
        events = await collect(backend.generate(self.request()))
        after = time.perf_counter()
        kinds = [type(event) for event in events]
        assert kinds[0] is Headers
        assert kinds.count(Headers) == kinds.count(Done) == 1
        done_of(events)
        first_token = kinds.index(Tokens)
        assert PromptProgress not in kinds[first_token:]
        stamps = [event.at for event in events]
        assert stamps == sorted(stamps)
        assert before <= stamps[0]
        assert stamps[-1] <= after

    async def test_its_counts_and_times_agree_with_its_events(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        before = time.perf_counter()
        events = await collect(backend.generate(self.request()))
        total = time.perf_counter() - before
        done = done_of(events)
        for name in self.told:
            assert getattr(done, name) is not None, name
        if done.completion_tokens is not None:
            counted = sum(event.count for event in tokens_of(events))
            assert 0 <= done.completion_tokens - counted <= self.textless_tokens
        if done.prompt_tokens is not None:
            assert done.prompt_tokens > 0
            assert (done.cached_tokens or 0) <= done.prompt_tokens
        parts = [done.load_s, done.queue_s, done.prefill_s, done.decode_s]
        assert all(part is None or part >= 0 for part in parts)
        assert sum(part or 0 for part in parts) <= total + 0.01
        assert not done.truncated
        assert done.retries in (0, 1)

    async def test_the_output_has_the_length_that_was_asked_for(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        for length in self.lengths:
            events = await collect(backend.generate(self.request(length)))
            done = done_of(events)
            counted = sum(event.count for event in tokens_of(events))
            assert (done.completion_tokens if done.completion_tokens is not None else counted) == length

    async def test_it_serves_one_request_after_another_and_two_at_once(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        for _ in range(2):
            assert tokens_of(await collect(backend.generate(self.request())))
        both = await asyncio.gather(*(collect(backend.generate(self.request())) for _ in range(2)))
        for events in both:
            done_of(events)
            assert tokens_of(events)

    async def test_a_request_that_is_given_up_leaves_it_usable(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        async with aclosing(backend.generate(self.request(64))) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    break
        done = done_of(await collect(backend.generate(self.request())))
        assert done.completion_tokens is None or done.completion_tokens > 0

    async def test_a_request_that_is_cancelled_leaves_it_usable(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        started = asyncio.Event()

        async def ask() -> None:
            async for event in backend.generate(self.request(64)):
                if isinstance(event, Tokens):
                    started.set()

        task = asyncio.create_task(ask())
        await asyncio.wait_for(started.wait(), self.timeout_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        done_of(await collect(backend.generate(self.request())))

    async def test_it_counts_tokens_or_says_that_it_cannot(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        short, long = await backend.count_tokens("one"), await backend.count_tokens("one two three four five six")
        if short is None:
            assert long is None
        else:
            assert long is not None
            assert 0 < short < long

    async def test_its_activity_is_numbers_or_reasons(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        activity = await backend.activity()
        for reading in (activity.busy, activity.waiting):
            assert reading.reason != "pending" if isinstance(reading, Missing) else reading >= 0
        assert isinstance(activity.tasks, Missing | frozenset)

    async def test_what_it_remembers_is_json_and_can_be_restored(self, backend: Backend) -> None:
        await backend.load(self.load_request)
        remembered = await backend.remember()
        assert json.loads(json.dumps(remembered)) == remembered
        said = await backend.restore(json.loads(json.dumps(remembered)))
        assert all(isinstance(sentence, str) and sentence.strip() for sentence in said)
        done_of(await collect(backend.generate(self.request())))

    async def test_restoring_nothing_is_quiet(self, backend: Backend) -> None:
        assert all(sentence.strip() for sentence in await backend.restore({}))

    async def test_it_may_be_closed_twice(self, own_backend: Backend) -> None:
        await own_backend.close()
        await own_backend.close()

    async def test_a_server_that_is_not_there_is_unavailable_in_words(self, absent: Backend | None) -> None:
        if absent is None:
            pytest.skip("this backend brings its server along")
        try:
            with pytest.raises(BackendUnavailable) as failed:
                await absent.connect()
            assert "127.0.0.1" in str(failed.value)
            with pytest.raises(BackendError):
                await collect(absent.generate(self.request()))
        finally:
            await absent.close()
