"""Comparing runs (sweep, tune, validate): what the journal holds, as the tuning part wants it.

Nothing is remembered here: plan and outcomes are read from the journal each time, so that a resumed worker stands
where the killed one stood.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Trial
from chimera.domain.verdict import Verdict
from chimera.errors import BackendError, BackendUnavailable, ConfigError, OutOfMemory, StreamBroken
from chimera.tuning.estimate import estimate
from chimera.tuning.objectives import Recommendation, chosen
from chimera.tuning.plan import Failure, Outcome, Plan
from chimera.tuning.protocol import Done, NeedCohort, Round, Standing, standing, started_hot
from chimera.tuning.statistics import session_costs
from chimera.tuning.verdicts import table

if TYPE_CHECKING:
    from chimera.store.journal import Journal

COMPARING = frozenset({"sweep", "tune", "validate"})
"""Kinds of runs that follow a plan of rounds."""


@dataclass(frozen=True, slots=True)
class Next:
    """The session to run now."""

    session: Session
    sessions: int
    """Planned in all, as far as known."""
    cool_down: bool
    words: str
    """Where the study stands, in one line."""


def stage_plans(journal: Journal, run: Run) -> list[tuple[dict[str, Any], Plan]]:
    """The stages of a run that were drawn so far, each with its plan; a run other than `tune` is one stage.

    Trials carry the settings that were derived when they were planned: what was read back later is in the journal as
    well, but orders that follow from settings must not change with it.
    """
    stages = run.plan.get("stages", [run.plan] if "rules" in run.plan else [])
    trials = journal.trials(run.id)
    found = []
    for number, stage in enumerate(stages, 1):
        if "rules" not in stage:
            continue
        members = stage.get("candidates")
        settings: dict[str, dict[str, Any]] = stage.get("settings", {})
        mine = [
            replace(trial, effective=Options.of(settings[trial.candidate]) if trial.candidate in settings else None)
            for trial in trials
            if members is None or trial.candidate in members
        ]
        seed = run.seed if members is None else run.seed + number
        found.append((stage, Plan.of(mine, seed, stage["rules"])))
    return found


def plan_of(journal: Journal, run: Run) -> Plan:
    """The rules of a comparing run, of the last stage where it has several.

    Raises `ConfigError` for a run that compares nothing.
    """
    found = stage_plans(journal, run)
    if not found:
        raise ConfigError(f"run {run.id} is a {run.kind}: it compares nothing, so there is no plan in it.")
    return found[-1][1]


def outcomes(journal: Journal, run: Run, plan: Plan) -> list[Outcome]:
    """Every finished session of a plan's trials, void ones included."""
    names = {trial.candidate for trial in plan.trials}
    by_session: dict[int, list[Measurement]] = {}
    for row in journal.measurements(run.id):
        by_session.setdefault(row.session, []).append(row.measurement)
    sessions = [one for one in journal.sessions(run.id) if one.state in {"done", "void"} and one.candidate in names]
    start = _preflight_temperature(sessions)
    return [_outcome(one, by_session.get(one.seq, []), run.workload.output_tokens, start) for one in sessions]


def _outcome(session: Session, measurements: Sequence[Measurement], output_tokens: int, start: float | None) -> Outcome:
    facts = session.facts
    return Outcome(
        session=session,
        costs=session_costs(
            measurements,
            output_tokens=output_tokens,
            vram_bytes=facts.get("vram_peak_bytes"),
            energy_j_per_token=facts.get("energy_j_per_token"),
        )
        if session.state == "done"
        else {},
        failure=facts.get("failure"),
        hot=started_hot(throttled=facts.get("throttled_share"), start_c=facts.get("start_c"), preflight_start_c=start),
    )


def _preflight_temperature(sessions: Sequence[Session]) -> float | None:
    seen = [one.facts["start_c"] for one in sessions if one.phase == "preflight" and one.facts.get("start_c")]
    return statistics.median(seen) if seen else None


def advance(journal: Journal, run: Run) -> Next | Done:
    """What to do next in a comparing run; keeps the verdicts in the journal as they now stand."""
    while True:
        run = journal.run(run.id)
        stages = stage_plans(journal, run)
        if not stages:
            if _draw_next(journal, run):
                continue
            return Done("No step can matter here: every setting has the effect of the defaults.")
        rows: list[Verdict] = []
        for _, plan in stages:
            now = standing(plan, outcomes(journal, run, plan))
            rows += table(plan, now)
        if isinstance(now.step, NeedCohort):
            propose_cohort(journal, run, plan, now, now.step.number)
            continue
        journal.set_verdicts(run.id, rows)
        if isinstance(now.step, Done):
            if run.kind == "tune" and _draw_next(journal, run):
                continue
            return now.step
        return _next(journal, run, plan, now, now.step)


def _draw_next(journal: Journal, run: Run) -> bool:
    from .tune import next_stage

    return run.kind == "tune" and next_stage(journal, run)


def _next(journal: Journal, run: Run, plan: Plan, now: Standing, step: Round) -> Next:
    used = max((one.seq for one in journal.sessions(run.id)), default=0)
    session = replace(step.sessions[0], seq=used + 1)
    known = replace(plan, confirm_rounds=now.confirm_rounds) if now.confirm_rounds else plan
    total = estimate(known, run.workload, noise=now.noise).sessions
    words = f"{_PHASES.get(step.phase, step.phase)} round {step.counted + 1}"
    if step.of:
        words += f" of {step.of}" if step.phase != "screen" or not plan.confirm else f" of at most {step.of}"
    return Next(session, max(total, used + len(step.sessions)), step.cool_down, words)


_PHASES = {"preflight": "preflight (noise)", "screen": "screening", "confirm": "confirmation", "measure": "measuring"}


def propose_cohort(journal: Journal, run: Run, plan: Plan, now: Standing, number: int) -> None:
    """Add the next cohort of a space that is too large to visit whole; proposed by Optuna from what is known."""
    from chimera.tuning.objectives import typical
    from chimera.tuning.search import propose

    axes: dict[str, list[Any]] = run.plan["axes"]
    names = {
        trial.candidate: trial.requested.only(frozenset(axes)) for trial in plan.trials if trial.role != "baseline"
    }
    finished = {
        options: None if candidate in now.failed else typical(now, candidate, plan.objective)
        for candidate, options in names.items()
    }
    proposed = propose({name: tuple(values) for name, values in axes.items()}, finished, seed=run.seed, cohort=number)
    rules = dict(run.plan["rules"])
    if not proposed:
        rules["cohorts_planned"] = len(plan.cohorts)
        journal.set_plan(run.id, {**run.plan, "rules": rules})
        return
    taken = len(plan.trials)
    fresh = [Trial(f"c{taken + index}", "candidate", requested=options) for index, options in enumerate(proposed)]
    rules["cohorts"] = [*(list(group) for group in plan.cohorts), [trial.candidate for trial in fresh]]
    journal.add_cohort(run.id, fresh, {**run.plan, "rules": rules})


def failure_of(error: BackendError) -> Failure:
    """How a configuration failed, by what the server did."""
    if isinstance(error, OutOfMemory):
        return "out-of-memory"
    if isinstance(error, StreamBroken):
        return "crash"
    if isinstance(error, BackendUnavailable):
        return "timeout" if "did not" in str(error) else "crash"
    return "load-failed"


def recommendation(journal: Journal, run: Run) -> Recommendation:
    """What a comparing run recommends, as far as its data carry it; of a tuning run what its last step says."""
    plan = plan_of(journal, run)
    return chosen(plan, standing(plan, outcomes(journal, run, plan)))


def final_verdicts(journal: Journal, run: Run) -> list[Verdict]:
    """The table computed anew from the raw data."""
    return [
        row
        for _, plan in stage_plans(journal, run)
        for row in table(plan, standing(plan, outcomes(journal, run, plan)))
    ]


def shares_load(run: Run, candidate: str) -> bool:
    """Whether a candidate is compared inside one load: sampling options only differ."""
    for stage in run.plan.get("stages", [run.plan]):
        if candidate in stage.get("candidates", (candidate,)) and "rules" in stage:
            return bool(stage["rules"].get("one_load"))
    return False
