"""Commands that compare configurations: sweep, validate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from chimera.domain.run import Target
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

from .options import (
    MOST_AGENTS,
    MOST_ROUNDS,
    Detach,
    Embedded,
    Json,
    Model,
    Name,
    OutputTokens,
    PromptTokens,
    RunRef,
    Seed,
    Server,
    Start,
    Timeout,
    Yes,
    span,
    workload_from,
)
from .output import emit, emit_json, say
from .targets import find_target
from .work import follow

if TYPE_CHECKING:
    from chimera.runner.planning import Sketch, Survey

METRICS: dict[str, Metric] = {
    "rate": "decode_tok_s",
    "ttft": "ttft_s",
    "completion": "completion_s",
    "vram": "vram_bytes",
    "energy": "energy_j_per_token",
}
SessionRequests = Annotated[int | None, typer.Option(help="Measured requests a session; 3 by default.")]
LONGEST_BUDGET_S = 30 * 86_400.0
_AXIS = "Values separated by commas, or `auto` for a grid that fits the model."


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("sweep")(sweep)
    app.command("tune")(tune)
    app.command("validate")(validate)


def sweep(
    num_gpu: Annotated[str | None, typer.Option(help=f"Layers on the GPU; also `all`. {_AXIS}")] = None,
    num_ctx: Annotated[str | None, typer.Option(help="Context per slot.")] = None,
    num_batch: Annotated[str | None, typer.Option(help="Batch.")] = None,
    num_thread: Annotated[str | None, typer.Option(help="CPU threads.")] = None,
    num_parallel: Annotated[str | None, typer.Option(help="Slots.")] = None,
    flash_attention: Annotated[str | None, typer.Option(help="on, off, auto.")] = None,
    kv_cache_type: Annotated[str | None, typer.Option(help="f16, q8_0, q4_0.")] = None,
    temperature: Annotated[str | None, typer.Option(help=span("temperature"))] = None,
    top_p: Annotated[str | None, typer.Option(help=span("top_p"))] = None,
    top_k: Annotated[str | None, typer.Option(help=span("top_k"))] = None,
    repeat_penalty: Annotated[str | None, typer.Option(help=span("repeat_penalty"))] = None,
    objective: Annotated[str, typer.Option(help="rate, ttft, completion, vram or energy.")] = "rate",
    rounds: Annotated[
        int | None, typer.Option(min=2, max=MOST_ROUNDS, help="Screening rounds; with --no-confirm all.")
    ] = None,
    confirm: Annotated[bool, typer.Option("--confirm/--no-confirm", help="Judge by fresh rounds.")] = True,
    preflight: Annotated[int | None, typer.Option(min=0, max=MOST_ROUNDS, help="Sessions for the noise.")] = None,
    band: Annotated[float, typer.Option(help="Differences within this share are no practical difference.")] = 0.02,
    budget: Annotated[str | None, typer.Option(help="Longest time, like 15m or 2h.")] = None,
    requests: SessionRequests = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    agents: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_AGENTS, help="Clients at the same time; completion is that of all of them."),
    ] = None,
    timeout: Timeout = None,
    seed: Seed = None,
    name: Name = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Compare settings in interleaved rounds, and say what is better, the same, or not decided."""
    from chimera.runner.planning import create_study, option_axes, sketch, typed_values
    from chimera.store.journal import Journal

    given = {
        "num_gpu": num_gpu, "num_ctx": num_ctx, "num_batch": num_batch, "num_thread": num_thread,
        "num_parallel": num_parallel, "flash_attention": flash_attention, "kv_cache_type": kv_cache_type,
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "repeat_penalty": repeat_penalty,
    }  # fmt: skip
    if objective not in METRICS:
        raise ConfigError(f"--objective {objective}: takes {', '.join(METRICS)}.")
    if not any(given.values()):
        given["num_gpu"] = "auto"
    workload = workload_from(
        Workload(requests=3),
        {
            "requests": requests,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "agents": agents,
            "timeout_s": timeout,
        },
        fixed=False,
    )
    budget_s = None if budget is None else seconds_of(budget)
    for option, text in given.items():
        if text is not None:
            typed_values(option, text)
    target = find_target(server, model, embedded=embedded, start=start, yes=yes)
    say("looking at the server …")
    known = look_at(target, workload)
    drawn = sketch(
        "sweep",
        known,
        option_axes(given, known),
        workload,
        seed=seed,
        objective=METRICS[objective],
        rounds=rounds,
        confirm=confirm,
        preflight=preflight,
        band=band,
        budget_s=budget_s,
    )
    if budget_s is not None and (words := _beyond(drawn, budget_s)):
        say(f"--budget {budget}: {words}")
    if dry_run and json:
        emit_json(drawn.as_dict())
        return
    emit_plan(drawn, to_stdout=dry_run)
    if dry_run:
        return
    journal = Journal.open()
    try:
        follow(journal, create_study(journal, target, drawn, name=name), detach=detach, json=json)
    finally:
        journal.close()


def _beyond(drawn: Sketch, budget_s: float) -> str | None:
    """Why a budget does not hold; None where it does."""
    longest = drawn.estimate.seconds
    if longest is None:
        return "how long a request takes here is not known before a first run, so the plan could not be cut to it."
    if longest > budget_s:
        return f"the shortest form of this plan takes up to {_time(longest)}: compare fewer values."
    return None


def look_at(target: Target, workload: Workload) -> Survey:
    """Ask the target's server and the journal what is known, and let go of the server again."""
    from chimera.backends.detect import open_backend
    from chimera.runner.planning import survey, with_history
    from chimera.store.journal import Journal

    async def ask() -> Survey:
        backend = open_backend(target)
        try:
            return await survey(backend, workload)
        finally:
            await backend.close()

    known = asyncio.run(ask())
    with Journal.open() as journal:
        return with_history(known, journal, workload)


def seconds_of(text: str) -> float:
    """`90`, `15m`, `2h` as seconds. Raises `ConfigError`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    amount, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(amount) * units[unit]
    except ValueError as error:
        raise ConfigError(f"--budget {text}: takes a time like 90s, 15m or 2h.") from error
    if not 0 < seconds <= LONGEST_BUDGET_S:
        raise ConfigError(f"--budget {text}: takes more than no time, and up to {LONGEST_BUDGET_S / 3600:g}h.")
    return seconds


def emit_plan(drawn: Sketch, *, to_stdout: bool) -> None:
    """The plan before the start, for a person."""
    from chimera.tuning.estimate import NOTHING

    line = emit if to_stdout else say
    plan, cost = drawn.plan, drawn.estimate
    line(f"{drawn.survey.server.title}, {drawn.survey.model.name}, seed {plan.seed}")
    for trial in plan.trials:
        runs = f"  runs {trial.effective}" if trial.effective and trial.effective != trial.requested else ""
        line(f"  {trial.candidate:4} {trial.role:9} {trial.requested}{runs}")
        if trial.merged:
            line(f"       the same: {', '.join(trial.merged)}")
        for note in trial.notes:
            line(f"       {note}")
    for candidate, reason in drawn.ruled_out.items():
        line(f"  {candidate:4} not run: {reason}")
    if plan.cohorts_planned:
        line(f"  a large space: {plan.cohorts_planned} cohorts of 8 are proposed and screened")
    if not cost.sessions:
        line(f"  {NOTHING}")
        return
    phases = [f"{plan.preflight} sessions for the noise"] if plan.preflight else []
    if plan.confirm:
        phases.append(f"confirmation of {cost.rounds} rounds at most")
    else:
        phases.append(f"{plan.screen_rounds} rounds, no confirmation")
    line(f"  {', '.join(phases)}; at most {cost.sessions} sessions, {cost.requests} requests")
    if cost.seconds is not None:
        line(f"  about {_time(cost.seconds_least)} to {_time(cost.seconds)}. {cost.words}")
    else:
        line(f"  {cost.words}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def tune(
    budget: Annotated[str | None, typer.Option(help="Longest time, like 15m.")] = None,
    requests: SessionRequests = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    seed: Seed = None,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    start: Start = None,
    yes: Yes = False,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """The guide's five steps in one run: baseline, GPU layers, context, sampling, validation."""
    from chimera.runner.launch import fresh_seed
    from chimera.runner.tune import create_tune
    from chimera.store.journal import Journal

    workload = workload_from(
        Workload(requests=3),
        {"requests": requests, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens},
        fixed=False,
    )
    budget_s = None if budget is None else seconds_of(budget)
    target = find_target(server, model, embedded=embedded, start=start, yes=yes)
    say("looking at the server …")
    known = look_at(target, workload)
    journal = Journal.open()
    try:
        created = create_tune(
            journal,
            target,
            known,
            workload,
            seed=fresh_seed() if seed is None else seed,
            budget_s=budget_s,
        )
        follow(journal, created, detach=detach, json=json)
    finally:
        journal.close()


def validate(
    ref: RunRef = "last",
    candidate: Annotated[str | None, typer.Option(help="Instead of the run's winner.")] = None,
    rounds: Annotated[int | None, typer.Option(min=2, max=MOST_ROUNDS, help="Else planned from the noise.")] = None,
    seed: Seed = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Fresh rounds of a run's winner against its baseline."""
    from chimera.runner.planning import create_validation
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        created = create_validation(journal, journal.run(ref), candidate=candidate, rounds=rounds, seed=seed)
        follow(journal, created, detach=detach, json=json)
    finally:
        journal.close()
