"""chimera apply: put what a run recommends to use, and prove it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chimera.domain.run import Run, Target
from chimera.domain.text import plain

from .options import Json, Model, RunRef, Server
from .output import emit, emit_json, say
from .targets import find_target

if TYPE_CHECKING:
    from chimera.runner.applying import Application, Choice
    from chimera.store.journal import Journal


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("apply")(apply)


def apply(
    ref: RunRef = "last",
    name: Annotated[str | None, typer.Option("--as", help="Name of the derived model or of the preset.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Instead of what the run recommends.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Replace what has that name; the proof may reload the server.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made, and make nothing.")] = False,
    no_proof: Annotated[bool, typer.Option("--no-proof", help="No short run against the baseline afterwards.")] = False,
    server: Server = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Put a run's winner to use: a derived model, a command line or a preset; then prove it."""
    from chimera.runner import applying
    from chimera.runner.launch import must_have_ended
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        run = journal.run(ref)
        must_have_ended(run)
        choice = applying.choose(journal, run, candidate)
        facts: dict[str, Any] = {
            "schema_version": 1,
            "run": run.id,
            "candidate": choice.candidate,
            "keep_default": choice.keep_default,
            "words": choice.words,
            "options": choice.options.as_dict(),
            "applied": None,
            "proof": None,
        }
        say(choice.words)
        if choice.keep_default:
            _out(facts, json)
            return
        target = _target(run, server, model)
        drawn = applying.draw(run, choice, name=name, target=target)
        for note in drawn.notes:
            say(f"  {note}")
        made = None if dry_run else applying.apply(run, choice, drawn, yes=yes, target=target)
        facts["applied"] = {**asdict(drawn), "made": made, "dry_run": dry_run}
        if made is not None:
            _said(drawn, made)
        if dry_run or no_proof:
            _out(facts, json)
            return
        code = _prove(journal, run, choice, facts, yes=yes)
        _out(facts, json)
    finally:
        journal.close()
    raise typer.Exit(code)


def _target(run: Run, server: str | None, model: str | None) -> Target:
    from dataclasses import replace

    target = find_target(server, model, embedded=False) if server else run.target
    named = run.target.model if target.kind == run.target.kind else None
    return replace(target, model=model or target.model or named)


def _said(drawn: Application, made: str) -> None:
    if drawn.form == "model":
        say(f"model {plain(made)} is there: `ollama run {plain(made)}`")
    elif drawn.form == "preset":
        key = f", key {drawn.digit}" if drawn.digit else ""
        say(f"preset {drawn.name}{key} written to {plain(made)}")


def _prove(journal: Journal, run: Run, choice: Choice, facts: dict[str, Any], *, yes: bool) -> int:
    """Run the proof; returns the exit code: 1 where it does not show the gain again."""
    from chimera.runner.applying import create_proof
    from chimera.runner.launch import start_worker

    from . import narrate

    proof = create_proof(journal, run, choice, yes=yes)
    if isinstance(proof, str):
        say(f"no proof: {proof}")
        return 0
    say(f"proof: run {proof.id} compares it with the baseline in fresh rounds")
    child = start_worker(journal, proof.id)
    ended, code = narrate.follow_to_end(journal, proof.id, child)
    rows = [row for row in journal.verdicts(ended.id) if row.candidate == choice.candidate]
    facts["proof"] = {"run": ended.id, "state": ended.state, "verdicts": [asdict(row) for row in rows]}
    for row in rows:
        effect = f" {seen - 1:+.1%}" if (seen := row.itself.effect) is not None else ""
        say(f"  {row.metric}: {row.verdict}{effect}")
    return code or (1 if rows and rows[0].verdict == "worse" else 0)


def _out(facts: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(facts)
        return
    if facts["keep_default"]:
        emit("keep the default")
    elif facts["applied"]:
        emit(facts["applied"]["text"].rstrip("\n"))
