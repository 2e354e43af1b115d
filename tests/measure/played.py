"""A backend that plays given events, at given seconds after the request was sent."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from chimera.backends.base import Activity, Done, Event, GenerateRequest, Headers, Tokens
from chimera.domain.options import SAMPLING_OPTIONS, Options
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind

Play = Callable[[float], Sequence[Event | Exception]]
"""From the time of sending to the events, whose stamps may lie in the future: nobody waits for them."""


class PlayedBackend:
    """Speaks the backend protocol without any server, so that stamps can be exact."""

    kind: ServerKind = "llama_server"
    owned = True
    url: str | None = "http://127.0.0.1:0"
    load_options: frozenset[str] = frozenset({"num_ctx"})
    sampling_options = SAMPLING_OPTIONS

    def __init__(self, play: Play, *, headers_mark_slot: bool = True, activities: Sequence[Activity] = ()) -> None:
        self._play = play
        self._activities = list(activities)
        self.headers_mark_slot = headers_mark_slot
        self.sent: list[GenerateRequest] = []
        self.loads: list[Options] = []
        self.closed_early = 0

    async def connect(self) -> ServerInfo:
        return ServerInfo(self.kind, self.url or "")

    async def models(self) -> tuple[ModelInfo, ...]:
        return (await self.model(),)

    async def model(self) -> ModelInfo:
        return ModelInfo("played")

    async def shape(self) -> None:
        return None

    async def would_reload(self, options: Options) -> str | None:
        return None

    async def load(self, options: Options) -> Effective:
        self.loads.append(options)
        return Effective(options)

    async def effective(self) -> Effective:
        return Effective()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.sent.append(request)
        finished = False
        try:
            for event in self._play(time.perf_counter()):
                if isinstance(event, Exception):
                    raise event
                yield event
            finished = True
        finally:
            self.closed_early += not finished

    async def count_tokens(self, text: str) -> int | None:
        return len(text.split()) + 1

    async def activity(self) -> Activity:
        return self._activities.pop(0) if self._activities else Activity(busy=0.0, waiting=0.0, tasks=frozenset())

    async def remember(self) -> dict[str, Any]:
        return {}

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        return None


def answer(
    *,
    queue: float = 0.004,
    prefill: float = 0.1,
    gap: float = 0.02,
    tokens: int = 16,
    rest: float = 0.003,
    **done: Any,
) -> Play:
    """An answer with these parts: headers after `queue`, first token after `prefill`, `gap` between tokens."""

    def play(sent: float) -> list[Event | Exception]:
        first = sent + queue + prefill
        stamps = [first + number * gap for number in range(tokens)]
        fields: dict[str, Any] = {
            "prefill_s": prefill,
            "decode_s": (tokens - 1) * gap,
            "prompt_tokens": 65,
            "cached_tokens": 0,
            "completion_tokens": tokens,
            "finish_reason": "limit",
            **done,
        }
        return [
            Headers(sent + queue),
            *(Tokens(stamp, f" t{number}") for number, stamp in enumerate(stamps)),
            Done(stamps[-1] + rest, **fields),
        ]

    return play
