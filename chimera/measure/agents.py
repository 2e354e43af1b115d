"""Many clients at the same time: N agents in a closed loop, on one server or spread over several.

The session is the unit here as well: every instance is loaded, each agent's first full-length request is discarded,
then all agents begin together and each sends its requests one after the other. Between two requests of an agent there
is nothing but its think time: prompts are made before, and what came is written down by others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chimera.backends.address import is_local
from chimera.backends.base import Backend, GenerateRequest
from chimera.domain.measurement import Measurement, Role
from chimera.domain.options import Options
from chimera.domain.server import Effective
from chimera.domain.workload import Workload
from chimera.errors import OutOfMemory

from .live import LiveRequest
from .prompts import Prompt
from .request import Timed, measure
from .session import FAILURES_IN_A_ROW, HOPELESS, Observer, PromptSource, SessionOutcome, void_of

FITS = 1.1
"""A further instance needs so many times what the first one took: a load takes more for a moment."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who takes part in a session."""

    instances: tuple[Backend, ...]
    """Servers, the agents spread over them in turn."""
    options: tuple[Options, ...]
    """One for all agents, or one for each; where there are fewer they take turns."""
    lanes: tuple[LiveRequest, ...]
    """Where each agent shows how far it has got; as many as there are agents."""
    settle: Callable[[], Awaitable[float]] | None = None
    """Waits between two loads until GPU memory stands still; returns the seconds that it took."""
    free: Callable[[], float | None] | None = None
    """Free bytes of GPU memory on this host; None where nobody can tell."""

    def instance_of(self, agent: int) -> int:
        """The server that an agent uses."""
        return agent % len(self.instances)

    def options_of(self, agent: int) -> Options:
        """The configuration that an agent asks for; the first agent of an instance is the one it is loaded for."""
        return self.options[agent % len(self.options)]


async def run_crew(
    crew: Crew, workload: Workload, prompts: Sequence[PromptSource], observer: Observer, *, seed: int, round_: int | str
) -> SessionOutcome:
    """Load every instance one after the other, discard one request an agent, then measure all agents together.

    What the servers do wrong with a request of one agent is a void measurement of that agent; the others go on.
    Raises `BackendError` kinds where an instance cannot be loaded, and whatever `observer` raises.

    Args:
        crew: Servers, options and agents.
        workload: `requests` are each agent's.
        prompts: One source an instance.
        observer: Told of each ended request; asked for a checkpoint before the session only, as a pause inside it would
            be measured.
        seed: Of sampling.
        round_: Names the prompts; each agent has its own.
    """
    agents = range(len(crew.lanes))
    await observer.checkpoint()
    await observer.stage("loading", 0)
    facts = await _load(crew, observer)
    results: list[Measurement] = []
    facts["tokens_sent"] = sent = []
    facts["answer_s"] = answers = []
    told: list[asyncio.Task[None]] = []
    telling = asyncio.Lock()

    async def tell(timed: Timed) -> None:
        async with telling:  # in the order in which they ended
            await observer.measured(timed)

    async def send(agent: int, prompt: Prompt, role: Role) -> Measurement:
        where = crew.instance_of(agent)
        request = GenerateRequest(
            prompt=prompt.text,
            output_tokens=workload.output_tokens,
            options=crew.options_of(agent),
            seed=seed + agent,
            cache_prompt=workload.fixed_prompt,
            timeout_s=workload.timeout_s,
        )
        timed = await measure(
            crew.instances[where],
            request,
            prompt,
            role=role,
            live=crew.lanes[agent],
            alone=False,
            cache_allowed=workload.fixed_prompt,
        )
        timed = replace(timed, measurement=replace(timed.measurement, agent=agent, instance=where))
        prompts[where].learn(prompt, timed.measurement)
        results.append(timed.measurement)
        sent.append(prompt.tokens or prompt.words)
        answers.append(timed.answer_s)
        told.append(asyncio.create_task(tell(timed)))
        return timed.measurement

    async def loop(agent: int, mine: Sequence[Prompt]) -> None:
        failures = 0
        for number, prompt in enumerate(mine):
            if number and workload.think_s:
                crew.lanes[agent].state = "waiting"
                await asyncio.sleep(workload.think_s)
            result = await send(agent, prompt, "measure")
            failures = failures + 1 if result.void_reason in HOPELESS else 0
            if failures >= FAILURES_IN_A_ROW:
                return

    async def make(numbers: Iterable[int]) -> list[list[Prompt]]:
        wanted = list(numbers)
        return [[await prompts[crew.instance_of(one)].make(f"{round_}/{one}", n) for n in wanted] for one in agents]

    try:
        first = await make([0])
        await observer.stage("warmup", 0)
        await _together(send(agent, first[agent][0], "warmup") for agent in agents)
        ready = await make(range(1, workload.requests + 1))
        await asyncio.gather(*told)
        await observer.stage("measuring", 1)
        await _together(loop(agent, ready[agent]) for agent in agents)
    finally:
        await asyncio.gather(*told)
    return SessionOutcome(tuple(results), void_of(results), facts)


async def _load(crew: Crew, observer: Observer) -> dict[str, Any]:
    """Load the instances; what is known of it."""
    for lane in crew.lanes:
        lane.state = "loading"
    began = time.perf_counter()
    settled = 0.0
    loaded: list[Effective] = []
    for number, backend in enumerate(crew.instances):
        if number and crew.settle is not None:
            settled += await crew.settle()
        if number:
            await _must_fit(crew, number, loaded[0])
        # One after the other: two loads at once race for the same memory, and both can lose.
        effective = await backend.load(crew.options_of(number))
        loaded.append(effective)
        if number == 0:
            await observer.loaded(effective)
    for lane in crew.lanes:
        lane.state = "waiting"
    facts: dict[str, Any] = {
        "agents": len(crew.lanes),
        "load_s": time.perf_counter() - began - settled,
        "settled_s": settled,
        "instances": [
            {"url": backend.url, "num_gpu": one.options.num_gpu, "num_parallel": one.options.num_parallel,
             "vram_bytes": one.vram_bytes}
            for backend, one in zip(crew.instances, loaded, strict=True)
        ],
    }  # fmt: skip
    held = [one.vram_bytes for one in loaded]
    if None not in held:
        facts["vram_bytes"] = sum(value or 0 for value in held)
    return facts


async def _must_fit(crew: Crew, number: int, first: Effective) -> None:
    """Refuse to load a further instance where it would not find the memory that the first one took.

    A server that picks its layers itself would put what does not fit on the CPU without a word, and the figures would
    be those of another configuration. An engine of our own has fixed layers, and says itself that it failed.
    """
    backend, took = crew.instances[number], first.vram_bytes
    if crew.free is None or not took or backend.owned or not is_local(backend.url or ""):
        return
    if crew.options_of(number).load != crew.options_of(0).load:
        return
    free = await asyncio.to_thread(crew.free)
    if free is None:
        return
    free += (await backend.effective()).vram_bytes or 0  # what it holds now is free for its own next load
    if free < FITS * took:
        raise OutOfMemory(
            f"{backend.url} is not loaded: {free / 2**30:.1f} GiB of GPU memory are free for it, and the first "
            f"instance took {took / 2**30:.1f} GiB. Use fewer layers, a smaller context, or slots instead."
        )


async def _together(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do all of it at once; what one raises ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
