"""A remedy that is a setting, tried: before and after are measured in turn, and the verdict says if it helps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chimera.domain.finding import Finding, FindingCode, Remedy
from chimera.domain.measurement import VoidReason
from chimera.domain.options import OPTION_NAMES, Options
from chimera.domain.run import Run, Target
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

if TYPE_CHECKING:
    from chimera.store.journal import Journal

    from .planning import Sketch, Survey

ROUNDS = 8
"""Each runs what is and what is proposed once: a true +5 % at 2 % noise needs about so many."""
BLIND_ROUNDS = 2
"""Where the settings before the remedy cannot give one request that counts, no number of rounds gives a verdict."""
_OBJECTIVES: dict[FindingCode, Metric] = {
    "high-ttft": "ttft_s", "queueing": "ttft_s", "reload-thrash": "ttft_s", "vram-exhaustion": "vram_bytes",
}  # fmt: skip
"""What decides; for every other finding the decode rate."""


@dataclass(frozen=True, slots=True)
class Cure:
    """A remedy that can be tried, with its finding."""

    number: int
    """From 1, over all findings of a run, as `chimera doctor RUN` shows it."""
    finding: Finding
    remedy: Remedy

    @property
    def options(self) -> Options:
        """The settings that it proposes."""
        return Options.of(self.remedy.options or {})


def cures(findings: Sequence[Finding]) -> list[Cure]:
    """The remedies that are settings, numbered in the order of the findings."""
    settings = [
        (finding, remedy)
        for finding in findings
        for remedy in finding.remedies
        if remedy.options and set(remedy.options) <= set(OPTION_NAMES)
    ]
    return [Cure(number, finding, remedy) for number, (finding, remedy) in enumerate(settings, 1)]


def draw(run: Run, base: Options, cure: Cure, known: Survey, *, rounds: int) -> Sketch:
    """The plan: the run's own settings as the baseline, with the remedy's as the only candidate.

    Raises:
        ConfigError: the remedy has the effect of what runs already, or cannot run here.
    """
    from .planning import sketch

    proposed = cure.options.over(base)
    workload: Workload = replace(run.workload, requests=3)
    drawn = sketch(
        "sweep",
        known,
        {name: (value,) for name, value in cure.options.as_dict().items()},
        workload,
        base=base,
        objective=_OBJECTIVES.get(cure.finding.code, "decode_tok_s"),
        rounds=rounds,
        confirm=False,
        preflight=0,
    )
    if not drawn.plan.candidates:
        why = next(iter(drawn.ruled_out.values()), f"{proposed} has the same effect here as what runs now.")
        raise ConfigError(f"This remedy cannot be tried: {why}")
    return drawn


def create_cure(journal: Journal, run: Run, cure: Cure, *, yes: bool = False, rounds: int | None = None) -> Run:
    """The comparing run of a remedy, ready for a worker. Asks the run's server for what a plan needs.

    Args:
        journal: Where the run lies.
        run: Whose finding it is: its server, model, settings and workload are used again.
        cure: From `cures`.
        yes: A server that is not ours may be made to reload.
        rounds: Of before and after; None: as many as a verdict needs, or few where there can be none.

    Raises:
        ConfigError: there is nothing to compare.
        BackendError: the server does not answer.
    """
    from .planning import create_study

    trials = journal.trials(run.id)
    base = next(
        (one.requested for one in trials if one.candidate == "c0"), trials[0].requested if trials else Options()
    )
    target = replace(run.target, assume_yes=run.target.assume_yes or yes)
    known = asyncio.run(_survey(target, run.workload))
    if rounds is None:
        rounds = BLIND_ROUNDS if _cannot_count(journal, run, base) else ROUNDS
    drawn = draw(run, base, cure, known, rounds=rounds)
    of = {"cure": {"of": run.id, "code": cure.finding.code}}
    return create_study(journal, target, drawn, name=f"remedy for {cure.finding.code} of {run.id}", more=of)


def _cannot_count(journal: Journal, run: Run, base: Options) -> bool:
    """Whether all that was asked with these settings was cut or refused, as it will be again: the prompts are alike."""
    mine = {trial.candidate for trial in journal.trials(run.id) if trial.requested == base}
    sent = [row.measurement for row in journal.measurements(run.id) if row.candidate in mine]
    asked = [one for one in sent if one.role == "measure"] or sent  # a refused first request ends its session
    return bool(asked) and all(one.void_reason in _BY_SETTINGS for one in asked)


_BY_SETTINGS: frozenset[VoidReason | None] = frozenset({"truncated", "refused"})


def aftermath(journal: Journal, run: Run) -> str | None:
    """Whether the symptom that a run tried to cure is still seen with the remedy, in a sentence.

    A verdict compares figures; where the symptom is that none count, this is what there is to say. None for a run that
    tried no remedy, or has measured nothing with it.
    """
    from chimera.diagnosis.rules import diagnose

    from .evidence import evidence_of

    code = run.plan.get("cure", {}).get("code")
    if code is None:
        return None
    said = []
    for candidate, when in (("c0", "before"), ("c1", "after")):
        evidence = evidence_of(journal, run, focus=candidate)
        sent = [one for one in evidence.requests if one.measurement.role == "measure"]
        if not sent:
            return None
        seen = any(one.code == code for one in diagnose(evidence))
        counted = sum(one.measurement.valid for one in sent)
        said.append(f"{when} it {'is seen' if seen else 'is not seen'} and {counted} of {len(sent)} requests count")
    return f"{code}: {'; '.join(said)}"


async def _survey(target: Target, workload: Workload) -> Survey:
    from chimera.backends.detect import open_backend

    from .planning import survey

    backend = open_backend(target)
    try:
        return await survey(backend, workload)
    finally:
        await backend.close()
