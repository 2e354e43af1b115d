"""chimera agents: many clients at the same time, and what each of them really gets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimera.domain.options import Options
from chimera.domain.run import Target
from chimera.domain.workload import Workload
from chimera.errors import BackendUnavailable, ConfigError

from .output import say
from .targets import find_target
from .work import Embedded, Json, Model, Server, Start, Yes, follow, options_from, workload_from

if TYPE_CHECKING:
    from chimera.runner.planning import Survey


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("agents")(agents)


def agents(
    count: Annotated[str, typer.Option("--agents", help="How many; several like 1,2,4,8 measure saturation.")] = "2",
    instances: Annotated[str | None, typer.Option(help="Addresses of several servers, separated by commas.")] = None,
    num_parallel: Annotated[int | None, typer.Option(help="Slots, for every arm.")] = None,
    num_ctx: Annotated[int | None, typer.Option(help="Context per slot, for every arm.")] = None,
    num_gpu: Annotated[int | None, typer.Option(help="Layers on the GPU, for every arm.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Each arm once in every round.")] = 6,
    requests: Annotated[int | None, typer.Option(help="Requests of each agent; 3 by default.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option()] = None,
    output_tokens: Annotated[int | None, typer.Option()] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Your own prompt; its text is never stored.")] = None,
    timeout: Annotated[float, typer.Option(help="Longest silence of the server, seconds.")] = 120.0,
    seed: Annotated[int | None, typer.Option(help="Of orders and prompts.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for the run.")] = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return.")] = False,
    json: Json = False,
) -> None:
    """Compare one agent with several: on one server, with more slots, with several instances."""
    from chimera.runner.crews import create_agents_run
    from chimera.store.journal import Journal

    urls = [part.strip() for part in (instances or "").split(",") if part.strip()]
    counts = _counts(count)
    workload = workload_from(
        Workload(requests=3),
        {
            "requests": requests, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "timeout_s": timeout,
            "prompt_file": str(prompt_file.absolute()) if prompt_file else None,
        },
        fixed=False,
    )  # fmt: skip
    base = options_from({"num_parallel": num_parallel, "num_ctx": num_ctx, "num_gpu": num_gpu})
    target = find_target(server or (urls[0] if urls else None), model, embedded=embedded, start=start, yes=yes)
    say("looking at the server …")
    known, can_parallel, owned = asyncio.run(_survey(target, workload, base, urls))
    journal = Journal.open()
    try:
        created = create_agents_run(
            journal, target, known, workload, counts=counts, urls=urls, base=base, can_parallel=can_parallel,
            owned=owned, rounds=rounds, seed=seed, name=name,
        )  # fmt: skip
        for arm in created.plan["arms"].values():
            say(f"  {arm['label']}: {arm['requests']} requests each")
        for reason in created.plan["ruled_out"].values():
            say(f"  not run: {reason}")
        follow(journal, created, detach=detach, json=json)
    finally:
        journal.close()


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--agents {text}: takes a number like 2, or several like 1,2,4,8.") from error


async def _survey(target: Target, workload: Workload, base: Options, urls: list[str]) -> tuple[Survey, bool, bool]:
    """What the planning must know, and that every instance answers."""
    from dataclasses import replace

    from chimera.backends.detect import open_backend
    from chimera.runner.crews import second_instance
    from chimera.runner.planning import survey

    backend = open_backend(target)
    try:
        wrong = [name for name in base.as_dict() if name not in backend.load_options | backend.sampling_options]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)} cannot be set on this server ({backend.kind}): its start decides.")
        known = await survey(backend, workload)
        for url in urls:
            other = open_backend(replace(target, url=url))
            try:
                await other.connect()
            except BackendUnavailable as error:
                hint = f" To start it: {second_instance(url)}" if target.kind == "ollama" else ""
                raise BackendUnavailable(f"{error}{hint}") from error
            finally:
                await other.close()
        return known, "num_parallel" in backend.load_options, backend.owned
    finally:
        await backend.close()
