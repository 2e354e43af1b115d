"""Commands that start runs and steer them: run, attach, pause, resume, stop, worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from chimera.domain.run import ENDED, Run
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

from . import narrate, summary
from .options import (
    Detach,
    Embedded,
    Json,
    Measurements,
    Model,
    Name,
    NumCtx,
    NumGpu,
    NumParallel,
    NumThread,
    OutputTokens,
    PromptFile,
    PromptTokens,
    RunRef,
    Seed,
    Server,
    Start,
    Timeout,
    Yes,
    options_from,
    span,
    workload_from,
)
from .output import emit_json, say
from .targets import find_target

if TYPE_CHECKING:
    from chimera.store.journal import Journal


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("run")(run)
    app.command("attach")(attach)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("stop")(stop)
    app.command("worker", hidden=True)(worker)


def run(
    preset: Annotated[str | None, typer.Argument(help="Name or digit of a preset; see `chimera presets list`.")] = None,
    num_gpu: NumGpu = None,
    num_ctx: NumCtx = None,
    num_batch: Annotated[int | None, typer.Option(help="Batch and micro-batch, tokens.")] = None,
    num_thread: NumThread = None,
    num_parallel: NumParallel = None,
    flash_attention: Annotated[str | None, typer.Option(help="on, off or auto.")] = None,
    kv_cache_type: Annotated[str | None, typer.Option(help="f16, q8_0 or q4_0.")] = None,
    temperature: Annotated[float | None, typer.Option(help=span("temperature"))] = None,
    top_p: Annotated[float | None, typer.Option(help=span("top_p"))] = None,
    top_k: Annotated[int | None, typer.Option(help=span("top_k"))] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help=span("repeat_penalty"))] = None,
    requests: Annotated[int | None, typer.Option(help="Measured requests; one more is discarded first.")] = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    prompt_file: PromptFile = None,
    fixed_prompt: Annotated[
        bool,
        typer.Option("--fixed-prompt", help="The same prompt each time: a cache may answer, and no TTFT is claimed."),
    ] = False,
    timeout: Timeout = None,
    seed: Seed = None,
    name: Name = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    detach: Detach = False,
    measurements: Measurements = False,
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
    from chimera.runner.launch import disturbance, disturbed_by, start_worker

    try:
        if detach and (other := disturbed_by(journal, created)):
            say(disturbance(other))  # whoever follows the run reads it in its log
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
    measurements: Measurements = False,
) -> None:
    """Follow a run from here: the newest one, or the one that is named."""
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        ended, code = narrate.follow_to_end(journal, found.id)
        show_run(journal, ended, json, measurements)
        if ended.state == "crashed" and ended.resumable:
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
    """Go on with a run that is paused, was stopped, failed or crashed; nothing that is finished is repeated.

    A paused one still has its worker, which is told and not followed; the others get a new one.
    """
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        if found.state in {"paused", "running"}:
            journal.send(found.id, "resume")
            say(f"resume sent to run {found.id}.")
            if json:
                emit_json({"schema_version": 1, "run": {"id": found.id, "state": "running"}})
            return
        if found.kind == "import":
            raise ConfigError(
                f"run {found.id} is an import: what was cut off is begun anew with `chimera runs import`."
            )
        if not found.resumable:
            raise ConfigError(f"run {found.id} is {found.state}: there is nothing left to do in it.")
        follow(journal, found, detach=detach, json=json)
    finally:
        journal.close()


def worker(ref: Annotated[str, typer.Argument()]) -> None:
    """Work on a run in this process; `run` and the UI start it so."""
    from chimera.runner.worker import main

    raise typer.Exit(main(ref))
