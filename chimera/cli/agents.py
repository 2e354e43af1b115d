"""chimera agents: many clients at the same time, and what each of them really gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from chimera.domain.options import OPTION_NAMES, Options
from chimera.domain.run import Target
from chimera.domain.workload import Workload
from chimera.errors import BackendUnavailable, ConfigError

from .options import (
    MOST_AGENTS,
    MOST_ROUNDS,
    Detach,
    Embedded,
    Json,
    Model,
    Name,
    NumCtx,
    NumGpu,
    NumParallel,
    NumThread,
    OutputTokens,
    PromptFile,
    PromptTokens,
    Seed,
    Server,
    Start,
    Timeout,
    Yes,
    options_from,
    workload_from,
)
from .output import say
from .targets import find_target
from .work import follow

if TYPE_CHECKING:
    from chimera.runner.planning import Survey


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("agents")(agents)


def agents(
    count: Annotated[str, typer.Option("--agents", help="How many; several like 1,2,4,8 measure saturation.")] = "2",
    instances: Annotated[
        str | None, typer.Option(help="Addresses of several servers with the same model, separated by commas.")
    ] = None,
    start_second: Annotated[
        bool, typer.Option("--start-second", help="Start a further Ollama on this host for the time of the run.")
    ] = False,
    agent_options: Annotated[
        list[str] | None,
        typer.Option(
            help='Options of one agent, like "temperature=0.2 top_k=20"; once for each, else they take turns.',
            metavar="OPTIONS",
        ),
    ] = None,
    think: Annotated[
        float, typer.Option(min=0, max=3600, help="Pause of an agent before its next request, seconds.")
    ] = 0.0,
    num_parallel: NumParallel = None,
    num_ctx: NumCtx = None,
    num_gpu: NumGpu = None,
    num_thread: NumThread = None,
    rounds: Annotated[int, typer.Option(min=2, max=MOST_ROUNDS, help="Each arm once in every round.")] = 6,
    requests: Annotated[int | None, typer.Option(help="Requests of each agent; 3 by default.")] = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    prompt_file: PromptFile = None,
    timeout: Timeout = None,
    seed: Seed = None,
    name: Name = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    detach: Detach = False,
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
            "prompt_file": str(prompt_file.absolute()) if prompt_file else None, "think_s": think,
        },
        fixed=False,
    )  # fmt: skip
    base = options_from(
        {"num_parallel": num_parallel, "num_ctx": num_ctx, "num_gpu": num_gpu, "num_thread": num_thread}
    )
    each = [_options_of(text) for text in agent_options or ()]
    target = find_target(server or (urls[0] if urls else None), model, embedded=embedded, start=start, yes=yes)
    urls = _addresses(target, urls)
    say("looking at the server …")
    seen = asyncio.run(_survey(target, workload, (base, *each), urls))
    starts: list[str] = []
    if start_second:
        urls, starts = _further(target, urls, seen, yes=yes)
        target = replace(target, assume_yes=True)
    journal = Journal.open()
    try:
        created = create_agents_run(
            journal, target, seen.known, workload, counts=counts, urls=urls, starts=starts, base=base, each=each,
            can_parallel=seen.can_parallel, owned=seen.owned, held_bytes=seen.held_bytes, rounds=rounds, seed=seed,
            name=name,
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
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--agents {text}: takes a number like 2, or several like 1,2,4,8.") from error
    if not all(1 <= count <= MOST_AGENTS for count in counts):
        raise ConfigError(f"--agents {text}: takes 1 to {MOST_AGENTS}.")
    return counts


def _options_of(text: str) -> Options:
    """What one agent asks for. Raises `ConfigError` naming what was typed."""
    values: dict[str, int | float | str | None] = {}
    for part in text.replace(",", " ").split():
        option, _, value = part.partition("=")
        if option not in OPTION_NAMES or not value:
            raise ConfigError(f"--agent-options {text}: wants NAME=VALUE, with one of {', '.join(OPTION_NAMES)}.")
        try:
            number = float(value)
            values[option] = int(number) if number.is_integer() and option not in _FRACTIONS else number
        except ValueError:
            values[option] = value
    try:
        return options_from(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--agent-options {text}: {error}") from error


_FRACTIONS = frozenset({"temperature", "top_p", "repeat_penalty"})


def _addresses(target: Target, urls: list[str]) -> list[str]:
    """The instances' addresses in one form. Raises `ConfigError` where they do not go with the server."""
    from chimera.backends.address import normalise_url, same_server

    if not urls:
        return []
    if target.url is None:
        raise ConfigError("--instances names servers that run; an engine of ours is started as often as needed.")
    found: list[str] = []
    for url in map(normalise_url, urls):
        if not any(same_server(url, one) for one in found):
            found.append(url)
    if len(found) < 2:
        raise ConfigError(
            "--instances wants two addresses or more, like http://127.0.0.1:11434,http://127.0.0.1:11435."
        )
    if not any(same_server(url, target.url) for url in found):
        raise ConfigError(f"--server {target.url} is none of --instances: leave it out, or name it there as well.")
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of the first server before the run."""

    known: Survey
    can_parallel: bool
    owned: bool
    held_bytes: float
    """GPU memory that it holds now."""
    path: str | None
    """Its model's file, where it can be read."""


def _further(target: Target, urls: list[str], seen: _Seen, *, yes: bool) -> tuple[list[str], list[str]]:
    """The instances and those of them that the run starts itself, after a yes.

    Raises `ConfigError` where none can be started, or nobody is there to agree: with the command to type instead.
    """
    import sys

    from chimera.backends.address import is_local
    from chimera.backends.ollama_start import command, free_address, store_of

    if target.kind != "ollama" or target.url is None or not is_local(target.url):
        raise ConfigError("--start-second starts a further Ollama beside one on this host; name one with --server.")
    if urls:
        raise ConfigError("--start-second and --instances exclude each other: name the addresses, or let it start one.")
    url = free_address(target.url)
    line = command(url, store_of(seen.path))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"--start-second needs a yes: add --yes, or start it yourself with: {line}")
        say(f"This starts, and ends with the run: {line}")
        if not typer.confirm("Start it, and let the servers reload their model?", err=True):
            raise ConfigError("Nothing was started.")
    return [target.url, url], [url]


async def _survey(target: Target, workload: Workload, asked: Sequence[Options], urls: Sequence[str]) -> _Seen:
    """What the planning must know, and that every instance answers.

    Raises `ConfigError` for options that the server does not take, and `BackendUnavailable` with the command that
    starts a missing instance.
    """
    from chimera.backends.detect import open_backend
    from chimera.backends.ollama_start import command, store_of
    from chimera.runner.planning import survey

    backend = open_backend(target)
    try:
        possible = backend.load_options | backend.sampling_options
        wrong = [name for options in asked for name in options.as_dict() if name not in possible]
        if wrong:
            named = ", ".join(dict.fromkeys(wrong))
            raise ConfigError(f"{named} cannot be set on this server ({backend.kind}): its start decides.")
        known = await survey(backend, workload)
        path = (await backend.model()).path
        for url in urls:
            other = open_backend(replace(target, url=url))
            try:
                await other.connect()
            except BackendUnavailable as error:
                hint = f" To start it: {command(url, store_of(path))}" if target.kind == "ollama" else ""
                raise BackendUnavailable(f"{error}{hint}") from error
            finally:
                await other.close()
        held = (await backend.effective()).vram_bytes or 0
        return _Seen(known, "num_parallel" in backend.load_options, backend.owned, held, path)
    finally:
        await backend.close()
