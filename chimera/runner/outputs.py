"""What two settings answer to one prompt, to be read side by side: quality is not scored, a person judges it.

Both answers are generated anew, with one prompt and one seed. Neither prompt nor answer is kept anywhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chimera.backends.base import Backend, GenerateRequest
from chimera.backends.detect import open_backend
from chimera.domain.options import Options
from chimera.domain.readings import number
from chimera.domain.run import Run, Trial
from chimera.domain.text import plain
from chimera.errors import BackendError, BackendRefused, ConfigError
from chimera.measure.prompts import Prompt
from chimera.measure.request import measure

from .launch import disturbance, disturbed_by, must_have_ended
from .putback import restore_all, to_its_end
from .study import plan_of, recommendation

if TYPE_CHECKING:
    from chimera.store.journal import Journal

PROMPT = "Explain to a curious child, in plain sentences, why the sky is blue at noon and red in the evening.\n\n"
"""Where the user gives none."""
OUTPUT_TOKENS = 200
NOT_SCORED = (
    "Quality is not scored: read and judge. The prompt is continued as it is, without a chat template and up to the "
    "full length, like every measured request. One seed does not make texts equal where the arithmetic differs."
)


@dataclass(frozen=True, slots=True)
class Output:
    """What one configuration answered."""

    candidate: str
    requested: Options
    effective: Options
    """As read back; empty where it could not be loaded."""
    text: str
    """Made harmless for a terminal, its lines kept."""
    tokens: int | None = None
    error: str | None = None


def pair(journal: Journal, run: Run, candidate: str | None = None, against: str | None = None) -> tuple[Trial, Trial]:
    """The two configurations of a run that are read: its baseline and what it recommends, unless others are named.

    Raises `ConfigError` where the run has no such two, or goes on.
    """
    must_have_ended(run)
    plan = plan_of(journal, run)
    trials = {trial.candidate: trial for trial in journal.trials(run.id)}
    of = {name: trial for trial in trials.values() for name in (trial.candidate, *trial.merged)}
    first = against or plan.baseline
    if candidate is None:
        best = recommendation(journal, run)
        if best.keep_default:
            others = ", ".join(name for name in trials if name != first)
            raise ConfigError(f"run {run.id} recommends its baseline: name another with --candidate ({others}).")
        candidate = best.candidate
    for name in (first, candidate):
        if name not in of:
            raise ConfigError(f"run {run.id} has no candidate {plain(name)!r}; it has {', '.join(of)}.")
    if of[first] is of[candidate]:
        raise ConfigError(
            f"{first} and {candidate} of run {run.id} are one configuration: there is nothing to compare."
        )
    return of[first], of[candidate]


async def read_both(
    journal: Journal, run: Run, trials: tuple[Trial, Trial], *, prompt: str, output_tokens: int, seed: int, yes: bool
) -> tuple[list[Output], list[str]]:
    """Load each configuration and let it answer; what was changed on a server that is not ours is put back.

    Returns the answers, and a sentence for each server that could not be put back: that costs nobody the answers.

    Raises:
        ConfigError: the server would reload and nobody agreed to it, or a run is at work on it.
        BackendError: it cannot be reached, or another client is using it; or without answers it cannot be put back.
    """
    # Held like a worker's: nobody resumes, deletes or puts back the run meanwhile, and the UI's next run waits.
    with journal.worker_lock(run.id):
        if other := disturbed_by(journal, run):
            raise ConfigError(disturbance(other))
        return await _read_both(journal, run, trials, prompt, output_tokens, seed, yes)


async def _read_both(
    journal: Journal, run: Run, trials: tuple[Trial, Trial], prompt: str, output_tokens: int, seed: int, yes: bool
) -> tuple[list[Output], list[str]]:
    backend = open_backend(run.target)
    touched = bool(journal.remembered(run.id))
    found: list[Output] = []
    left: list[str] = []
    try:
        server = await backend.connect()
        if not backend.owned:
            await _ask_first(backend, trials, yes)
            if not touched and (kept := await backend.remember()):
                journal.remember(run.id, server.url, kept)
                touched = True
        found += [await _one(backend, trial, prompt, output_tokens, seed) for trial in trials]
    finally:
        try:
            await to_its_end(_leave(journal, run, backend, touched, left))
        except asyncio.CancelledError:
            found = []  # whoever asks for the end does not wait for them
            raise
        finally:
            if left and not found:
                raise BackendError(" ".join(left))
    return found, left


async def _leave(journal: Journal, run: Run, backend: Backend, touched: bool, left: list[str]) -> None:
    """Put back what was changed; what stays changed is added to `left`."""
    try:
        if touched:
            _, failed = await restore_all(journal, run.id, lambda url: backend if url == backend.url else None)
            left += failed
    finally:
        await backend.close()


async def _ask_first(backend: Backend, trials: tuple[Trial, Trial], yes: bool) -> None:
    if number((await backend.activity()).busy):
        raise BackendRefused("Another client is using the server: try again when it is idle.")
    for trial in trials:
        words = None if yes else await backend.would_reload(trial.requested)
        if words:
            raise ConfigError(f"{words} Say yes with --yes.")


async def _one(backend: Backend, trial: Trial, prompt: str, output_tokens: int, seed: int) -> Output:
    options = trial.requested.only(backend.load_options | backend.sampling_options)
    try:
        runs = (await backend.load(options)).options
        known = Prompt(prompt, len(prompt.split()), await backend.count_tokens(prompt))
    except BackendError as error:
        return Output(trial.candidate, trial.requested, Options(), "", error=str(error))
    timed = await measure(backend, GenerateRequest(prompt, output_tokens, options, seed), known)
    text = plain(timed.text, one_line=False)
    answered = timed.measurement
    return Output(trial.candidate, trial.requested, runs, text, answered.completion_tokens, answered.error)
