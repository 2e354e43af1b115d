"""Many clients at the same time: N agents in a closed loop, on one server or spread over several.

The session is the unit here as well: every instance is loaded, each agent's first full-length request is discarded,
then all agents begin together and each sends its requests one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chimera.backends.base import Backend, GenerateRequest
from chimera.domain.measurement import Measurement, Role
from chimera.domain.options import Options
from chimera.domain.workload import Workload

from .live import LiveRequest
from .request import measure
from .session import FAILURES_IN_A_ROW, HOPELESS, Observer, PromptSource, SessionOutcome, void_of


@dataclass(frozen=True, slots=True)
class Crew:
    """Who takes part in a session."""

    instances: tuple[Backend, ...]
    """Servers, the agents spread over them in turn."""
    options: tuple[Options, ...]
    """One for all agents, or one for each."""
    lanes: tuple[LiveRequest, ...]
    """Where each agent shows how far it has got; as many as there are agents."""
    think_s: float = 0.0
    """Pause of an agent between an answer and its next request."""

    def instance_of(self, agent: int) -> int:
        """The server that an agent uses."""
        return agent % len(self.instances)

    def options_of(self, agent: int) -> Options:
        """The configuration that an agent asks for."""
        return self.options[agent % len(self.options)]


async def run_crew(
    crew: Crew, workload: Workload, prompts: Sequence[PromptSource], observer: Observer, *, seed: int, round_: int | str
) -> SessionOutcome:
    """Load every instance one after the other, discard one request an agent, then measure all agents together.

    What the servers do wrong with a request of one agent is a void measurement of that agent; the others go on.
    Raises `BackendError` kinds where an instance cannot be loaded, and whatever `observer.checkpoint` raises.

    Args:
        crew: Servers, options and agents.
        workload: `requests` are each agent's.
        prompts: One source an instance.
        observer: Told of each ended request; asked for a checkpoint before the session only, as a pause inside it would
            be measured.
        seed: Of sampling.
        round_: Names the prompts; each agent has its own.
    """
    await observer.checkpoint()
    await observer.stage("loading", 0)
    facts: dict[str, Any] = {"agents": len(crew.lanes), "instances": len(crew.instances)}
    began = time.perf_counter()
    for number, backend in enumerate(crew.instances):
        # One after the other: two loads at once race for the same memory, and both can lose.
        effective = await backend.load(crew.options_of(number))
        if number == 0:
            await observer.loaded(effective)
    facts["load_s"] = time.perf_counter() - began
    results: list[Measurement] = []

    async def send(agent: int, number: int) -> Measurement:
        role: Role = "measure" if number else "warmup"
        where = crew.instance_of(agent)
        backend, options = crew.instances[where], crew.options_of(agent)
        prompt = await prompts[where].make(f"{round_}/{agent}", number)
        request = GenerateRequest(
            prompt=prompt.text,
            output_tokens=workload.output_tokens,
            options=options,
            seed=seed + agent,
            cache_prompt=workload.fixed_prompt,
            timeout_s=workload.timeout_s,
        )
        timed = await measure(
            backend,
            request,
            prompt,
            role=role,
            live=crew.lanes[agent],
            alone=False,
            cache_allowed=workload.fixed_prompt,
        )
        prompts[where].learn(prompt, timed.measurement)
        timed = replace(timed, measurement=replace(timed.measurement, agent=agent, instance=where))
        results.append(timed.measurement)
        await observer.measured(timed)
        return timed.measurement

    async def loop(agent: int) -> None:
        failures = 0
        for number in range(1, workload.requests + 1):
            result = await send(agent, number)
            failures = failures + 1 if result.void_reason in HOPELESS else 0
            if failures >= FAILURES_IN_A_ROW:
                return
            if crew.think_s and number < workload.requests:
                await asyncio.sleep(crew.think_s)

    await observer.stage("warmup", 0)
    async with asyncio.TaskGroup() as group:
        for agent in range(len(crew.lanes)):
            group.create_task(send(agent, 0))
    await observer.stage("measuring", 1)
    async with asyncio.TaskGroup() as group:
        for agent in range(len(crew.lanes)):
            group.create_task(loop(agent))
    return SessionOutcome(tuple(results), void_of(results), facts)
