"""chimera outputs: what two settings answer to one prompt, side by side."""

from __future__ import annotations

import asyncio
import shutil
import signal
import textwrap
import unicodedata
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from chimera.errors import BackendError, ConfigError

from .options import LARGEST_SEED, WORKLOAD_LIMITS, Json, RunRef, Yes
from .output import emit, emit_json, say

if TYPE_CHECKING:
    from chimera.runner.outputs import Output

T = TypeVar("T")
NARROW = 80
"""Columns under which two texts are shown one below the other."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("outputs")(outputs)


def outputs(
    ref: RunRef = "last",
    candidate: Annotated[str | None, typer.Option(help="Instead of what the run recommends.")] = None,
    against: Annotated[str | None, typer.Option(help="Instead of the run's baseline.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What both answer; else a question of Chimera's.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="The same from a file.")] = None,
    output_tokens: Annotated[
        int | None, typer.Option(min=1, max=WORKLOAD_LIMITS["output_tokens"], help="Length of the answers; 200.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of both answers.")] = 1,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Read what two settings of a run answer to the same prompt with the same seed; nothing of it is stored."""
    from chimera.measure.session import read_prompt_file
    from chimera.runner.outputs import NOT_SCORED, OUTPUT_TOKENS, PROMPT, pair, read_both
    from chimera.store.journal import Journal

    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file: give one of them.")
    asked = read_prompt_file(str(prompt_file)) if prompt_file else prompt
    if asked is not None and not asked.strip():
        raise ConfigError("--prompt is empty: there is nothing to answer.")
    with Journal.open() as journal:
        run = journal.run(ref)
        trials = pair(journal, run, candidate, against)
        say(f"{' and '.join(f'{one.candidate} ({one.requested})' for one in trials)} answer the same prompt …")
        reading = read_both(
            journal,
            run,
            trials,
            prompt=asked or PROMPT,
            output_tokens=output_tokens or OUTPUT_TOKENS,
            seed=seed,
            yes=yes,
        )
        try:
            found, left = asyncio.run(_orderly(reading))
        except asyncio.CancelledError:
            say("ended; what was changed on the server is put back.")
            raise typer.Exit(4) from None
    if json:
        emit_json(
            {
                "schema_version": 1,
                "run": run.id,
                "seed": seed,
                "outputs": [
                    {**asdict(one), "requested": one.requested.as_dict(), "effective": one.effective.as_dict()}
                    for one in found
                ],
                "same_text": len({one.text for one in found}) == 1 and not any(one.error for one in found),
                "not_put_back": left,
                "words": NOT_SCORED,
            }
        )
    else:
        _show(found)
        emit(NOT_SCORED)
    if left:
        raise BackendError(
            f"{' '.join(left)} They stay kept: `chimera` offers at its next start to put them back, and so does "
            f"`chimera outputs {run.id}` at its end."
        )
    if any(one.error for one in found):
        raise typer.Exit(1)


async def _orderly(work: Coroutine[Any, Any, T]) -> T:
    """The same, but told to end it still puts back what it has changed."""
    task = asyncio.current_task()
    assert task is not None
    for name in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    return await work


def _show(found: list[Output]) -> None:
    """Two columns where the terminal is wide enough for them, else one text below the other."""
    heads = [f"{one.candidate}: {one.requested}" for one in found]
    bodies = [one.text.strip() or f"no answer: {one.error}" for one in found]
    columns = shutil.get_terminal_size().columns
    wide = any(unicodedata.east_asian_width(char) in "WF" for body in bodies for char in body)
    if columns < NARROW or wide:
        for head, body in zip(heads, bodies, strict=True):
            emit(f"{head}\n\n{body}\n")
        return
    width = (columns - 3) // 2
    texts = [[*_lines(head, width), "", *_lines(body, width)] for head, body in zip(heads, bodies, strict=True)]
    for left, right in zip_longest(*texts, fillvalue=""):
        emit(f"{left.ljust(width)} │ {right}".rstrip())
    emit()


def _lines(text: str, width: int) -> list[str]:
    return [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
