"""Commands that start runs and steer them: run, attach, pause, resume, stop, worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimera.domain.options import FLASH_ATTENTION, KV_CACHE_TYPES, OPTION_RANGES, Options
from chimera.domain.run import ENDED, RESUMABLE, Run
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

from . import narrate, summary
from .output import emit_json, say
from .targets import find_target

if TYPE_CHECKING:
    from chimera.store.journal import Journal

Server = Annotated[str | None, typer.Option("--server", help="Address of the server; else OLLAMA_HOST, then the usual "
                                            "ports on this machine.", metavar="URL")]  # fmt: skip
Model = Annotated[str | None, typer.Option("--model", help="Model on the server; else the loaded or the first one.")]
Embedded = Annotated[bool, typer.Option("--embedded", help="The built-in llama.cpp with Gemma 3 270M; no server.")]
Start = Annotated[str | None, typer.Option("--start", help='A llama-server to start, like "llama-server -m m.gguf".',
                                           metavar="COMMAND")]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree that a server that is not ours reloads its model.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RunRef = Annotated[str, typer.Argument(help="Id of a run, the beginning of one, or `last`.")]


WORKLOAD_LIMITS = {"requests": 10_000, "prompt_tokens": 10_000_000, "output_tokens": 1_000_000}
"""The most that a run may be asked for, as for presets."""
LONGEST_TIMEOUT_S = 86_400.0
LARGEST_SEED = 2**31 - 1


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("run")(run)
    app.command("attach")(attach)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("stop")(stop)
    app.command("worker", hidden=True)(worker)


def options_from(values: dict[str, int | float | str | None]) -> Options:
    """Options as typed. Raises `ConfigError` naming the option, what it was and what it may be."""
    for name, value in values.items():
        if value is None:
            continue
        typed = f"--{name.replace('_', '-')} {value}"
        if name == "flash_attention" and value not in FLASH_ATTENTION:
            raise ConfigError(f"{typed}: takes {', '.join(FLASH_ATTENTION)}.")
        if name == "kv_cache_type" and value not in KV_CACHE_TYPES:
            raise ConfigError(f"{typed}: takes {', '.join(KV_CACHE_TYPES)}.")
        low, high = OPTION_RANGES.get(name, (None, None))
        if low is not None and high is not None and not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{typed}: takes {low:g} to {high:g}.")
    return Options.of(values)


def run(
    preset: Annotated[str | None, typer.Argument(help="Name or digit of a preset; see `chimera presets list`.")] = None,
    num_gpu: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 automatic, 0 none.")] = None,
    num_ctx: Annotated[int | None, typer.Option(help="Context per slot, tokens.")] = None,
    num_batch: Annotated[int | None, typer.Option(help="Batch and micro-batch, tokens.")] = None,
    num_thread: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    num_parallel: Annotated[int | None, typer.Option(help="Slots.")] = None,
    flash_attention: Annotated[str | None, typer.Option(help="on, off or auto.")] = None,
    kv_cache_type: Annotated[str | None, typer.Option(help="f16, q8_0 or q4_0.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    repeat_penalty: Annotated[float | None, typer.Option()] = None,
    requests: Annotated[int | None, typer.Option(help="Measured requests; one more is discarded first.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Length of the prompts.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Length of the answers.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Your own prompt; its text is never stored.")] = None,
    fixed_prompt: Annotated[
        bool,
        typer.Option("--fixed-prompt", help="The same prompt each time: a cache may answer, and no TTFT is claimed."),
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="Longest silence of the server, seconds; 120.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Of prompts and sampling; else a fresh one, which is recorded."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the run.")] = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; `chimera attach` shows it.")] = False,
    measurements: Annotated[bool, typer.Option("--measurements", help="Put every request into the JSON.")] = False,
    json: Json = False,
) -> None:
    """Measure one configuration: one load, one discarded request, then the measured ones."""
    from chimera.presets.loader import find
    from chimera.runner.launch import create_run
    from chimera.store.journal import Journal

    chosen = find(preset) if preset else None
    typed = options_from(
        {
            "num_gpu": num_gpu, "num_ctx": num_ctx, "num_batch": num_batch, "num_thread": num_thread,
            "num_parallel": num_parallel, "flash_attention": flash_attention, "kv_cache_type": kv_cache_type,
            "temperature": temperature, "top_p": top_p, "top_k": top_k, "repeat_penalty": repeat_penalty,
        }
    )  # fmt: skip
    workload = workload_from(
        chosen.workload if chosen else Workload(),
        {
            "requests": requests, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens,
            "prompt_file": str(prompt_file.absolute()) if prompt_file else None, "timeout_s": timeout,
        },
        fixed_prompt,
    )  # fmt: skip
    target = find_target(server, model, embedded=embedded, start=start, yes=yes)
    with_journal = Journal.open()
    try:
        created = create_run(
            with_journal,
            target,
            typed.over(chosen.options) if chosen else typed,
            workload,
            preset=chosen,
            seed=seed,
            name=name,
        )
        follow(with_journal, created, detach=detach, json=json, measurements=measurements)
    finally:
        with_journal.close()


def follow(journal: Journal, created: Run, *, detach: bool, json: bool, measurements: bool = False) -> None:
    """Start the worker of a run and follow it to its end, or leave it alone; ends the command with its exit code."""
    from chimera.runner.launch import start_worker

    try:
        child = start_worker(journal, created.id)
    except KeyboardInterrupt:
        say(f"\ndetached: run {created.id} may go on; `chimera attach {created.id}` shows it.")
        raise typer.Exit(4) from None
    if detach:
        say(f"run {created.id} started; `chimera attach {created.id}` follows it.")
        if json:
            emit_json({"schema_version": 1, "run": {"id": created.id, "state": "running"}})
        return
    ended, code = narrate.follow_to_end(journal, created.id, child)
    show_run(journal, ended, json, measurements)
    raise typer.Exit(code)


def workload_from(base: Workload, values: dict[str, int | float | str | None], fixed: bool) -> Workload:
    """The workload as typed, over a preset's. Raises `ConfigError` for sizes that make no sense."""
    from dataclasses import replace

    from chimera.measure.session import read_prompt_file

    given = {name: value for name, value in values.items() if value is not None}
    for name, most in WORKLOAD_LIMITS.items():
        if name in given and not 1 <= int(given[name]) <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {given[name]}: takes 1 to {most:,}.")
    if not 0 < float(given.get("timeout_s", 1)) <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"--timeout {given['timeout_s']}: takes more than 0 and up to {LONGEST_TIMEOUT_S:,.0f} s.")
    workload = replace(base, **given, fixed_prompt=fixed or base.fixed_prompt)  # type: ignore[arg-type]  # checked above, by name
    if workload.prompt_file:
        read_prompt_file(workload.prompt_file)
    return workload


def show_run(journal: Journal, ended: Run, json: bool, measurements: bool) -> None:
    """A run's figures on stdout."""
    from chimera.runner.facts import facts_of

    facts = facts_of(journal, ended, measurements=measurements)
    if json:
        emit_json(facts)
    else:
        summary.emit_run(facts)


def attach(
    ref: RunRef = "last",
    json: Json = False,
    measurements: Annotated[bool, typer.Option("--measurements", help="Put every request into the JSON.")] = False,
) -> None:
    """Follow a run from here: the newest one, or the one that is named."""
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        ended, code = narrate.follow_to_end(journal, found.id)
        show_run(journal, ended, json, measurements)
        if ended.state == "crashed":
            say(f"run {ended.id}: its worker is gone; `chimera resume {ended.id}` goes on where it was.")
    finally:
        journal.close()
    raise typer.Exit(code)


def pause(ref: RunRef = "last") -> None:
    """Pause a run after the request in flight."""
    _send(ref, "pause")


def stop(ref: RunRef = "last") -> None:
    """Stop a run now; what was measured is kept, and it can be resumed."""
    _send(ref, "stop")


def _send(ref: str, command: str) -> None:
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        if found.state in ENDED or found.state == "crashed":
            raise ConfigError(f"run {found.id} is {found.state}: there is nothing to {command}.")
        journal.send(found.id, command)  # type: ignore[arg-type]  # one of the journal's own words
        say(f"{command} sent to run {found.id}.")
    finally:
        journal.close()


def resume(ref: RunRef = "last", detach: Annotated[bool, typer.Option("--detach", help="Do not follow it.")] = False,
           json: Json = False) -> None:  # fmt: skip
    """Go on with a run that is paused, was stopped, failed or crashed; nothing that is finished is repeated."""
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        if found.state in {"paused", "running"}:
            journal.send(found.id, "resume")
            say(f"resume sent to run {found.id}.")
            return
        if found.state not in RESUMABLE:
            raise ConfigError(f"run {found.id} is {found.state}: there is nothing left to do in it.")
        follow(journal, found, detach=detach, json=json)
    finally:
        journal.close()


def worker(ref: Annotated[str, typer.Argument()]) -> None:
    """Work on a run in this process; `run` and the UI start it so."""
    from chimera.runner.worker import main

    raise typer.Exit(main(ref))
