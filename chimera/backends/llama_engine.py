"""A llama.cpp server that Chimera starts itself: a process for each load, its settings read back from what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from chimera.domain.options import LOAD_OPTIONS, SAMPLING_OPTIONS, KvCacheType, Options, OptionValue
from chimera.domain.readings import Source
from chimera.domain.server import Effective, ModelInfo
from chimera.errors import BackendUnavailable, ConfigError, StreamBroken
from chimera.model.memory import CELL_STEP, padded, refuse_quantised_without_flash

from .base import Activity, Event, GenerateRequest
from .llama_dialect import LlamaEndpoint, Props
from .llama_log import EngineFacts
from .llama_process import EngineProcess
from .model_file import file_shape

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape

THREADS_A_PROCESSOR = 4
"""Most threads for each processor that an engine of ours is started with."""
_DYING_S = 1.0
"""Time for a process to be gone after its connection was lost."""


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that is ready."""

    process: EngineProcess
    endpoint: LlamaEndpoint
    pid: int | None
    """Of the engine itself."""
    gpu: bool | None
    """This build can use a GPU of this machine; None = not known."""


def refuse_too_many_threads(num_thread: int | None) -> None:
    """Refuse threads that would stall this machine: they spin, each waiting for others that have no processor.

    Raises `ConfigError` with the most that makes any sense here.
    """
    processors = os.cpu_count() or 1
    if num_thread is not None and num_thread > THREADS_A_PROCESSOR * processors:
        raise ConfigError(
            f"num_thread {num_thread}: this machine has {processors} processors, and so many spinning threads would "
            f"stall it. Give {THREADS_A_PROCESSOR * processors} or fewer."
        )


class OwnedEngine(ABC):
    """What the embedded engine and a started llama-server have in common."""

    owned = True
    load_options = LOAD_OPTIONS
    sampling_options = SAMPLING_OPTIONS

    def __init__(self) -> None:
        self._started: Started | None = None
        self._asked = Options()
        self._one_load = asyncio.Lock()

    @abstractmethod
    async def _start(self, options: Options) -> Started:
        """Start an engine with these load options and wait until it is ready; leave nothing behind on a failure."""

    @property
    def headers_mark_slot(self) -> bool:
        """Response headers arrive when the request gets its slot, unless an answer has shown otherwise."""
        return self._started.endpoint.headers_mark_slot if self._started else True

    @property
    def url(self) -> str | None:
        """Address of the engine that runs now."""
        return self._started.endpoint.url if self._started else None

    @property
    def pid(self) -> int | None:
        """Process id of the engine that runs now."""
        return self._started.pid if self._started else None

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of the running engine's log."""
        return tuple(self._started.process.log) if self._started else ()

    @abstractmethod
    async def model(self) -> ModelInfo:
        """The model that it is started with."""

    async def shape(self) -> ModelShape | None:
        """The model's layers and sizes, from its file."""
        return await file_shape((await self.model()).path)

    async def would_reload(self, options: Options) -> str | None:
        """None: the engine is ours."""
        return None

    async def load(self, options: Options) -> Effective:
        """End the engine that runs, start one with these options, and say what it really runs with.

        Raises `ConfigError` for options that llama.cpp cannot join, `OutOfMemory` or another `BackendRefused` with
        llama.cpp's own cause where it could not load, and `BackendUnavailable` where it was not ready in time.
        """
        asked = options.load
        refuse_quantised_without_flash(asked.kv_cache_type, asked.flash_attention)
        refuse_too_many_threads(asked.num_thread)
        async with self._one_load:
            await self._end()
            self._asked = asked
            self._started = await self._start(asked)
            return await self.effective()

    async def effective(self) -> Effective:
        """What the running engine says that it runs with; nothing where none runs."""
        if self._started is None:
            return Effective()
        async with self._watched("when it was asked for its settings") as started:
            props = await started.endpoint.props()
        return effective_of(self._asked, props, started.process.facts, gpu=started.gpu, pid=started.pid)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Send one request; see `Backend.generate`. An engine that dies meanwhile is `StreamBroken` with its cause."""
        async with (
            self._watched("in the middle of a request") as started,
            aclosing(started.endpoint.generate(request, self.sampling_options)) as events,
        ):
            async for event in events:
                yield event

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of a prompt of this text, the beginning-of-sequence token counted."""
        async with self._watched("when it was asked to count tokens") as started:
            return await started.endpoint.count_tokens(text)

    async def activity(self) -> Activity:
        """Who uses the engine now."""
        async with self._watched("when it was asked who uses it") as started:
            return await started.endpoint.activity()

    async def remember(self) -> dict[str, Any]:
        """Nothing: the engine ends with us."""
        return {}

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        """Nothing to put back."""
        return ()

    async def close(self) -> None:
        """End the engine."""
        with contextlib.suppress(Exception):
            await self._end()

    @contextlib.asynccontextmanager
    async def _watched(self, when: str) -> AsyncGenerator[Started, None]:
        """The engine that runs; where it turns out to have died, the error says so and why."""
        started = self._started
        if started is None:
            raise BackendUnavailable("No model is loaded: the engine is started by a load.")
        try:
            yield started
        except (BackendUnavailable, StreamBroken) as error:
            if await started.process.ended(_DYING_S):
                process = started.process
                raise StreamBroken(
                    f"The engine {process.end()} {when}. llama.cpp's last words: {process.last_words()}"
                ) from error
            raise

    async def _end(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            # The process first: a connection that cannot be closed must not keep it alive.
            try:
                await started.process.stop()
            finally:
                await started.endpoint.close()


def effective_of(asked: Options, props: Props, facts: EngineFacts, *, gpu: bool | None, pid: int | None) -> Effective:
    """What llama.cpp runs with, from `/props` and the log of the load, against what was asked for."""
    told: dict[str, OptionValue | None] = {
        "num_gpu": facts.gpu_layers,
        "num_ctx": props.default_generation_settings.n_ctx or facts.ctx_slot,
        "num_batch": facts.ubatch,
        "num_thread": facts.threads,
        "flash_attention": None if facts.flash is None else "on" if facts.flash else "off",
        "kv_cache_type": facts.kv_k if facts.kv_k == facts.kv_v and facts.kv_k in get_args(KvCacheType) else None,
        "num_parallel": props.total_slots or facts.slots,
    }
    sources: dict[str, Source] = {name: "measured" for name, value in told.items() if value is not None}
    if told["num_gpu"] is None and gpu is False:
        told["num_gpu"] = 0
        sources["num_gpu"] = "derived"  # nothing can be offloaded where there is no GPU
    runs = Options.of(told)
    notes = [
        note
        for name, wanted in asked.as_dict().items()
        if (real := runs.as_dict().get(name)) is not None and real != wanted
        for note in (f"{name} {wanted} runs as {real}: {_why(name, wanted, real, facts, gpu)}",)
    ]
    if facts.batch is not None and facts.ubatch is not None and facts.batch != facts.ubatch:
        sources["num_batch"] = "estimated"  # one number for two that differ: it equals no other configuration's
        notes.append(f"num_batch is the micro-batch, {facts.ubatch}; the batch is {facts.batch}")
    if facts.kv_k != facts.kv_v:
        notes.append(f"the KV cache holds keys as {facts.kv_k} and values as {facts.kv_v}")
    return Effective(
        options=runs,
        sources=sources,
        notes=tuple(notes),
        unread=tuple(name for name in asked.as_dict() if name not in runs.as_dict()),
        size_bytes=facts.size_bytes,
        vram_bytes=facts.vram_bytes,
        pid=pid,
    )


def _why(name: str, wanted: OptionValue, real: OptionValue, facts: EngineFacts, gpu: bool | None) -> str:
    """Why llama.cpp runs another value, as far as that is known."""
    if name == "num_ctx" and isinstance(wanted, int) and real == padded(wanted):
        return f"llama.cpp rounds a slot's context up to a multiple of {CELL_STEP}"
    if name == "num_gpu":
        if gpu is False:
            return "this build of llama.cpp has no GPU to use"
        if wanted == -1:
            return "llama.cpp chose by the free memory"
        if facts.layers is not None and real == facts.layers:
            return f"the model has {facts.layers - 1} layers + output"
    if name == "num_batch" and facts.ctx_slot is not None and facts.batch == real:
        return "a batch is never longer than the context"
    if wanted == "auto":
        return "llama.cpp decided"
    return "llama.cpp changed it"
