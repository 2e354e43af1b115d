"""One session: load a configuration, discard a full-length request, then measure.

The session is the unit of replication: requests inside one load are not independent of each other.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from chimera.backends.base import Backend, GenerateRequest
from chimera.domain.measurement import Measurement, Role, VoidReason
from chimera.domain.options import Options
from chimera.domain.server import Effective
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.store.files import Unreadable, read_plain

from .live import LiveRequest
from .prompts import Prompt, PromptMaker
from .request import Timed, measure

FAILURES_IN_A_ROW = 2
"""After so many requests in a row without any answer the rest of a session is not tried."""
HOPELESS: frozenset[VoidReason] = frozenset({"error", "timeout"})

SessionStage = Literal["loading", "warmup", "measuring"]


class Observer(Protocol):
    """Who wants to know how a session goes on."""

    async def stage(self, stage: SessionStage, request: int) -> None:
        """A new stage begins; `request` is 1-based among the measured ones, 0 for the discarded one."""

    async def loaded(self, effective: Effective) -> None:
        """The configuration is loaded and was read back."""

    async def measured(self, timed: Timed) -> None:
        """A request has ended."""

    async def checkpoint(self) -> None:
        """Between requests: returns when work may go on; raises to stop."""


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """What a session gave."""

    measurements: tuple[Measurement, ...]
    void_reason: VoidReason | None
    """Set where no request of it counts: the commonest reason."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`load_s`; for each request `tokens_sent`, its prompt's length as it was known before, a lower bound, and
    `answer_s`, the time to its first text that is not thinking, None where none came."""


LARGEST_PROMPT_FILE = 64 << 20
"""Bytes; more than the longest prompt that can be asked for."""


def read_prompt_file(path: str) -> str:
    """The user's own prompt. Raises `ConfigError` naming the file."""
    try:
        text = read_plain(Path(path), LARGEST_PROMPT_FILE).decode("utf-8")
    except Unreadable as error:  # another process reads it as well, later: a pipe would be empty then
        raise ConfigError(f"--prompt-file {path} {error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file {path} cannot be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise ConfigError(f"--prompt-file {path} is empty: there is nothing to measure.")
    return text


class PromptSource:
    """The prompts of a workload: generated ones, or the user's own with or without a nonce in front."""

    def __init__(self, backend: Backend, workload: Workload, seed: int) -> None:
        self._backend = backend
        self._fixed = workload.fixed_prompt
        self._own = read_prompt_file(workload.prompt_file) if workload.prompt_file else None
        self._maker = PromptMaker(seed, workload.prompt_tokens, backend.count_tokens)
        self._nonces = PromptMaker(seed, 1, self._no_count)

    async def make(self, round_: int | str, request: int) -> Prompt:
        """The prompt of one request of one round."""
        if self._fixed:
            round_, request = 0, 0
        if self._own is None:
            return await self._maker.make(round_, request)
        text = self._own
        if not self._fixed:
            text = f"{(await self._nonces.make(round_, request)).text}\n{text}"
        return Prompt(text, len(text.split()), await self._backend.count_tokens(text))

    def learn(self, prompt: Prompt, measurement: Measurement) -> None:
        """Correct the length of later prompts, where the server offers no tokenizer."""
        if measurement.prompt_tokens is not None:
            self._maker.learn(prompt, measurement.prompt_tokens)

    @staticmethod
    async def _no_count(_: str) -> None:
        return None


async def run_session(
    backend: Backend,
    options: Options,
    workload: Workload,
    prompts: PromptSource,
    observer: Observer,
    *,
    seed: int,
    round_: int | str = 1,
    live: LiveRequest | None = None,
    loaded: bool = False,
    seconds: float | None = None,
) -> SessionOutcome:
    """Load `options`, discard one full-length request, measure `workload.requests`, or for `seconds` without a pause.

    With `loaded` the load part of `options` already runs and has answered before: nothing is loaded or discarded, so
    that sampling options can be compared inside one load.

    What the server does wrong with a request ends as a void measurement. Raises `BackendError` kinds where the
    configuration cannot be loaded, and whatever `observer.checkpoint` raises.
    """
    await observer.checkpoint()
    facts: dict[str, Any] = {}
    if not loaded:
        await observer.stage("loading", 0)
        before = time.perf_counter()
        effective = await backend.load(options)
        facts["load_s"] = time.perf_counter() - before
        await observer.loaded(effective)
    results: list[Measurement] = []
    sent: list[int] = []
    answers: list[float | None] = []
    facts |= {"tokens_sent": sent, "answer_s": answers}
    warm_loads_s: list[float] = []
    failures = 0
    ends = None if seconds is None else time.perf_counter() + seconds
    for number in itertools.count(1 if loaded else 0):
        if number > workload.requests if ends is None else time.perf_counter() >= ends and number > 1:
            break
        role: Role = "measure" if number else "warmup"
        await observer.checkpoint()
        await observer.stage("measuring" if number else "warmup", number)
        prompt = await prompts.make(round_, number)
        request = GenerateRequest(
            prompt=prompt.text,
            output_tokens=workload.output_tokens,
            options=options,
            seed=seed,
            cache_prompt=workload.fixed_prompt,
            timeout_s=workload.timeout_s,
        )
        timed = await measure(
            backend,
            request,
            prompt,
            role=role,
            warm_loads_s=warm_loads_s,
            live=live,
            cache_allowed=workload.fixed_prompt,
        )
        prompts.learn(prompt, timed.measurement)
        results.append(timed.measurement)
        sent.append(prompt.tokens or prompt.words)
        answers.append(timed.answer_s)
        await observer.measured(timed)
        if timed.measurement.void_reason is None and timed.measurement.load_s is not None:
            warm_loads_s.append(timed.measurement.load_s)
        failures = failures + 1 if timed.measurement.void_reason in HOPELESS else 0
        if failures >= FAILURES_IN_A_ROW:
            break
    return SessionOutcome(tuple(results), void_of(results), facts)


def void_of(results: Sequence[Measurement]) -> VoidReason | None:
    """Why a session has nothing that counts: the commonest reason; None where something does."""
    measured = [result for result in results if result.role == "measure"] or results
    if any(result.valid for result in measured):
        return None
    reasons = Counter(result.void_reason for result in measured if result.void_reason)
    return reasons.most_common(1)[0][0]
