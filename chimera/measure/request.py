"""One request, timed by the client and judged by rules that were fixed beforehand.

The parts come from whoever knows them: the server for load, prefill and decode where it tells, the client for queue
(send to response headers, where headers mark the slot), TTFT and total. What is left over is `other_s`, stored and
shown, never folded into another part.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from chimera.backends.base import Activity, Backend, Done, GenerateRequest, Headers, Tokens
from chimera.domain.measurement import Measurement, Role, VoidReason
from chimera.domain.readings import Missing
from chimera.errors import BackendError, BackendRefused, BadAnswer

from .live import LiveRequest
from .prompts import Prompt

COLD_LOAD_S = 0.5
"""A load longer than this and than 5x the warm median makes a call cold (seed guide's sheet, section 5)."""
COLD_RATIO = 5.0
CACHED_TOKENS_ALLOWED = 1
"""The token that begins every text may always come from the cache."""
QUEUE_OF_ANOTHER_S = 0.25
"""Waiting longer than this for a slot, with no request of our own before it, means that another client has it."""
_COUNT_SLACK = 2
"""Tokens by which two honest counts of one prompt may differ: the ones that begin a text, a blank at its end."""
_EXTRA_TOKENS = 64
"""So many more than asked for, and the answer is not one to our request."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A measurement and the text that came, which is shown but not stored unless asked."""

    measurement: Measurement
    text: str
    answer_s: float | None = None
    """Send to the first text that is not thinking; None where none came."""


@dataclass(slots=True)
class _Seen:
    """What has come of one answer."""

    headers_at: float | None = None
    stamps: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    counted: bool = True
    """The counts are the server's own, for each event so far."""
    text: list[str] = field(default_factory=list)
    answer_at: float | None = None
    done: Done | None = None


async def measure(
    backend: Backend,
    request: GenerateRequest,
    prompt: Prompt,
    *,
    role: Role = "measure",
    warm_loads_s: Sequence[float] = (),
    live: LiveRequest | None = None,
    alone: bool = True,
    cache_allowed: bool = False,
) -> Timed:
    """Send one request and time it. Never raises for what the server does: that ends as a void measurement.

    Args:
        backend: Connected, with the configuration loaded.
        request: What to send; `request.timeout_s` is the longest time without any event.
        prompt: Its prompt, with what is known of its length.
        role: `warmup` for the discarded one.
        warm_loads_s: Load times of earlier calls of this session, to tell a cold call by.
        live: Where to show how far it has got.
        alone: No other request of ours is on the server, so that any other is a foreign client's.
        cache_allowed: The prompt is the same on purpose; a cache hit is then no reason to void, but TTFT and prefill
            are not claimed.
    """
    live = live or LiveRequest()
    live.begin()
    before = await _activity(backend) if alone else None
    seen = _Seen()
    wall = time.time()
    sent = time.perf_counter()
    void: VoidReason | None = None
    error: str | None = None
    try:
        await _receive(backend, request, seen, sent, live)
    except BackendRefused as refused:
        void, error = "refused", str(refused)
    except TimeoutError:
        void, error = "timeout", f"{backend.kind}: nothing came for {request.timeout_s:g} s."
    except BackendError as broken:
        timed_out = isinstance(broken.__cause__, TimeoutError) or "did not answer within" in str(broken)
        void, error = ("timeout" if timed_out else "error"), str(broken)
    live.ended()
    ended = seen.done.at if seen.done else time.perf_counter()
    after = await _activity(backend) if alone and void is None else None
    result = _figures(backend, seen, sent, ended)
    result = replace(result, role=role, started_at=wall, void_reason=void, error=error)
    load = result.load_s or 0.0
    warm = statistics.median(warm_loads_s) if warm_loads_s else 0.0
    result = replace(result, cold=load > max(COLD_LOAD_S, COLD_RATIO * warm))
    if void is None:
        reason = _judge(result, seen, request, prompt, alone, before, after, cache_allowed)
        result = replace(result, void_reason=reason)
    if (result.cached_tokens or 0) > CACHED_TOKENS_ALLOWED:
        result = replace(result, prefill_tok_s=None)
    if cache_allowed:
        result = replace(result, ttft_s=None, prefill_tok_s=None)
    answer_s = None if seen.answer_at is None else seen.answer_at - sent
    return Timed(result, "".join(seen.text), answer_s)


async def _receive(backend: Backend, request: GenerateRequest, seen: _Seen, sent: float, live: LiveRequest) -> None:
    """Take in the whole answer; a silence over the time limit raises TimeoutError."""
    total = 0
    async with aclosing(backend.generate(request)) as events:
        while True:
            async with asyncio.timeout(request.timeout_s):
                event = await anext(events, None)
            if event is None:
                break
            if isinstance(event, Tokens):
                seen.stamps.append(event.at)
                seen.counts.append(event.count)
                seen.counted = seen.counted and event.counted
                seen.text.append(event.text)
                if seen.answer_at is None and not event.thinking:
                    seen.answer_at = event.at
                total += event.count
                live.token(event.at, event.count, seen.stamps[0] - sent)
                # Pieces of text are counted as well: a server whose own count stands still must not stream for ever.
                sent_back = max(total, len(seen.stamps))
                if sent_back > request.output_tokens + _EXTRA_TOKENS:
                    raise BadAnswer(
                        f"The server sent over {sent_back} tokens where {request.output_tokens} were asked for: it "
                        "does not keep to the length limit, so its figures cannot be compared."
                    )
            elif isinstance(event, Headers):
                seen.headers_at = event.at
                live.opened()
            elif isinstance(event, Done):
                seen.done = event
    if seen.done is None:
        raise BadAnswer("The answer ended without its final message, so nothing in it can be trusted.")


def _figures(backend: Backend, seen: _Seen, sent: float, ended: float) -> Measurement:
    done = seen.done or Done(at=ended)
    total_s = ended - sent
    ttft_s = seen.stamps[0] - sent if seen.stamps else None
    events = sum(seen.counts)
    tokens = done.completion_tokens if done.completion_tokens is not None else events
    span_s = seen.stamps[-1] - seen.stamps[0] if seen.stamps else 0.0
    between = _between(seen, tokens, done.finish_reason)
    client_rate = between / span_s if between > 0 and span_s > 0 else None
    server_rate = (tokens - 1) / done.decode_s if tokens > 1 and done.decode_s else None
    if server_rate is not None and tokens == done.completion_tokens == 1:
        server_rate = None
    by_server = done.prefill_s is not None and done.decode_s is not None
    prefill_s = done.prefill_s if by_server else ttft_s
    decode_s = done.decode_s if by_server else (span_s if seen.stamps else None)
    queue_s = done.queue_s
    if queue_s is None and backend.headers_mark_slot and seen.headers_at is not None:
        queue_s = seen.headers_at - sent
        if ttft_s is not None and prefill_s is not None and ttft_s - queue_s < 0.5 * prefill_s:
            queue_s = None  # this version sends its headers late: they say nothing of the queue
    other_s = None
    if seen.done and prefill_s is not None and decode_s is not None:
        other_s = total_s - prefill_s - decode_s - (queue_s or 0.0) - (done.load_s or 0.0)
    computed = None
    if done.prompt_tokens is not None and done.cached_tokens is not None:
        computed = done.prompt_tokens - done.cached_tokens
    gaps = [later - earlier for earlier, later in zip(seen.stamps, seen.stamps[1:], strict=False)]
    return Measurement(
        role="measure",
        started_at=0.0,
        total_s=total_s,
        ttft_s=ttft_s,
        queue_s=queue_s,
        load_s=done.load_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        other_s=other_s,
        timing_source="server" if by_server else "client",
        prompt_tokens=done.prompt_tokens,
        cached_tokens=done.cached_tokens,
        completion_tokens=tokens if seen.done else None,
        tokens_estimated=done.completion_tokens is None,
        client_decode_tok_s=client_rate,
        decode_tok_s=server_rate if by_server else None,
        prefill_tok_s=computed / prefill_s if by_server and computed and prefill_s else None,
        effective_tok_s=tokens / total_s if seen.done and total_s > 0 else None,
        itl_p50_s=_percentile(gaps, 0.50),
        itl_p95_s=_percentile(gaps, 0.95),
        itl_max_s=max(gaps, default=None),
        finish_reason=done.finish_reason,
        retries=done.retries,
    )


def _between(seen: _Seen, tokens: int, finish_reason: str | None) -> int:
    """Tokens that were generated from the first to the last stamp; the first event's own are not among them.

    Where the server counts as it streams, its counts say so even if the first or the last token came without a text
    of its own. Elsewhere the total is all there is: less the token that ended the answer, which has no text.
    """
    if seen.counted:
        return sum(seen.counts) - seen.counts[0] if seen.counts else 0
    return tokens - 1 - (finish_reason == "stop" and tokens > len(seen.stamps))


def _judge(
    result: Measurement,
    seen: _Seen,
    request: GenerateRequest,
    prompt: Prompt,
    alone: bool,
    before: Activity | None,
    after: Activity | None,
    cache_allowed: bool,
) -> VoidReason | None:
    """The first rule that makes this measurement void, or None. No rule looks at how fast it was."""
    assert seen.done is not None
    tokens = result.completion_tokens or 0
    expected = prompt.tokens or prompt.words
    if result.prompt_tokens is not None and result.prompt_tokens < expected - _COUNT_SLACK:
        return "truncated"
    if seen.done.truncated:
        return "truncated"
    if result.role == "measure" and result.cold:
        return "reload-inside"
    if tokens < request.output_tokens:
        return "short-output"
    if not cache_allowed and (result.cached_tokens or 0) > CACHED_TOKENS_ALLOWED:
        return "cache-hit"
    if alone and _foreign(result, before, after):
        return "foreign-client"
    return None


def _foreign(result: Measurement, before: Activity | None, after: Activity | None) -> bool:
    """Another client used the server while our request was on it."""
    if (result.queue_s or 0.0) > QUEUE_OF_ANOTHER_S:
        return True
    for activity in (before, after):
        if activity is not None and not isinstance(activity.busy, Missing) and activity.busy > 0:
            return True
    if before is None or after is None or isinstance(before.tasks, Missing) or isinstance(after.tasks, Missing):
        return False
    return len(after.tasks - before.tasks) > 1  # one of them is ours


async def _activity(backend: Backend) -> Activity | None:
    try:
        async with asyncio.timeout(1.0):
            return await backend.activity()
    except (BackendError, TimeoutError):
        return None


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
