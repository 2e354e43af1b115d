"""Comparing runs (sweep, tune, validate): what the journal holds, as the tuning part wants it.

Nothing is remembered here: plan and outcomes are read from the journal each time, so that a resumed worker stands
where the killed one stood.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chimera.backends.wire import refusal
from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.options import Options
from chimera.domain.run import Run, Session
from chimera.domain.server import Effective
from chimera.domain.verdict import Verdict
from chimera.domain.workload import Workload
from chimera.errors import BackendError, BackendUnavailable, ConfigError, OutOfMemory, StreamBroken
from chimera.tuning.estimate import estimate
from chimera.tuning.objectives import Recommendation, chosen, pareto_front, points
from chimera.tuning.plan import Failure, Outcome, Plan, by_round, same_configuration
from chimera.tuning.protocol import Done, NeedCohort, Round, Standing, standing, started_hot
from chimera.tuning.statistics import drift, paired
from chimera.tuning.verdicts import table

from .costs import costs_of

if TYPE_CHECKING:
    from chimera.store.journal import Journal


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
        raise ConfigError(f"run {run.id} ({run.kind}) compares nothing here, so there is no plan in it.")
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
        costs=costs_of(session, measurements, output_tokens),
        failure=facts.get("failure"),
        hot=started_hot(throttled=facts.get("throttled_share"), start_c=facts.get("start_c"), preflight_start_c=start),
        same_as=facts.get("same_as"),
    )


def _preflight_temperature(sessions: Sequence[Session]) -> float | None:
    seen = [one.facts["start_c"] for one in sessions if one.phase == "preflight" and one.facts.get("start_c")]
    return statistics.median(seen) if seen else None


def advance(journal: Journal, run: Run) -> Next | Done:
    """What to do next in a comparing run; keeps in the journal where it stands and the verdicts as they now are."""
    while True:
        run = journal.run(run.id)
        played = play(journal, run)
        if not played:
            if _draw_next(journal, run):
                continue
            return Done("No step was run: each says why it was skipped.")
        plan, now = played[-1]
        if isinstance(now.step, NeedCohort):
            propose_cohort(journal, run, plan, now, now.step.number)
            continue
        _keep(journal, run, played)
        if isinstance(now.step, Done):
            if _draw_next(journal, run):
                continue
            return now.step
        return _next(journal, run, plan, now, now.step)


def play(journal: Journal, run: Run) -> list[tuple[Plan, Standing]]:
    """Each stage's plan and where it stands, by the raw data."""
    return [(plan, standing(plan, outcomes(journal, run, plan))) for _, plan in stage_plans(journal, run)]


def _keep(journal: Journal, run: Run, played: Sequence[tuple[Plan, Standing]]) -> None:
    """Verdicts, standing and recommendation as they now are; says what the preflight has fixed."""
    kept = {"standing": standing_facts(played, run.workload), "result": result_facts(*played[-1])}
    before = run.plan.get("standing") or {}
    now = kept["standing"]
    if now["noise"] is not None and before.get("noise") != now["noise"]:
        journal.log(run.id, now["words"], "notice")
    if now["confirm_rounds"] and (before.get("confirm_rounds"), before.get("finalists")) != (
        now["confirm_rounds"], now["finalists"],
    ):  # fmt: skip
        who = ", ".join(now["finalists"])
        journal.log(
            run.id, f"confirmation of {who} against the baseline: {now['confirm_rounds']} fresh rounds", "notice"
        )
    for candidate, stays in now["same"].items():
        if candidate not in before.get("same", {}):
            asked = {trial.candidate: str(trial.requested) for plan, _ in played for trial in plan.trials}
            journal.log(
                run.id,
                f"{candidate} ({asked[candidate]}) runs what {stays} ({asked[stays]}) runs, by what was read back: it "
                f"is not measured again, and {stays} stands for both",
                "notice",
            )
    for candidate, words in now["dropped"].items():
        if candidate not in before.get("dropped", {}):
            journal.log(run.id, f"{candidate}: {words}")
    journal.set_verdicts(run.id, [row for plan, at in played for row in table(plan, at)])
    if any(run.plan.get(name) != facts for name, facts in kept.items()):
        journal.set_plan(run.id, {**run.plan, **kept})


def standing_facts(played: Sequence[tuple[Plan, Standing]], workload: Workload) -> dict[str, Any]:
    """Where a run stands, for views and documents; JSON-able. Noise and rounds are those of the last stage's plan."""
    plan, now = played[-1]
    step = now.step
    noise = next((at.noise for _, at in reversed(played) if at.noise is not None), None)
    plan = plan.without(now.same)
    together = len(now.finalists) or (
        min(plan.confirmed, len(plan.candidates)) if plan.confirm else len(plan.candidates)
    )
    fixed = replace(plan, confirm_rounds=now.confirm_rounds) if now.confirm_rounds else plan
    cost = estimate(fixed, workload, noise=noise)
    return {
        "phase": step.phase if isinstance(step, Round) else "done" if isinstance(step, Done) else "screen",
        "round": step.counted + 1 if isinstance(step, Round) else None,
        "rounds": step.of if isinstance(step, Round) else None,
        "open": list(now.open),
        "dropped": {one.candidate: DROPPED_WORDS[one.why] for _, at in played for one in at.dropped},
        "failed": {name: kind for _, at in played for name, kind in at.failed.items()},
        "unlaunched": {name: failed for _, at in played for name, failed in at.unlaunched.items()},
        "same": {name: stays for _, at in played for name, stays in at.same.items()},
        "finalists": list(now.finalists),
        "confirm_rounds": now.confirm_rounds,
        "set_aside": sorted(seq for _, at in played for seq in at.set_aside),
        "hot_rounds": [list(one) for _, at in played for one in at.hot_rounds],
        "lacking": [list(one) for _, at in played for one in at.lacking],
        "noise": asdict(noise) if noise else None,
        "sessions": cost.sessions,
        "decided_in": cost.rounds,
        "smallest_better": cost.smallest_better,
        "half_width": cost.half_width,
        "words": noise.words(cost.rounds, plan.band, together=together) if noise else cost.words,
    }


DROPPED_WORDS = {
    "slower-half": "not in the better half",
    "behind-leader": "clearly behind the leader",
    "not-finalist": "not among the best that are confirmed",
}
AIMS = ("decode_tok_s", "ttft_s", "vram_bytes", "energy_j_per_token", "num_ctx")
"""What the Pareto front weighs against each other."""


def result_facts(plan: Plan, now: Standing) -> dict[str, Any]:
    """Recommendation, Pareto front and drift of the control as far as the data carry them; JSON-able."""
    best = chosen(plan, now)
    requested = next(trial.requested for trial in plan.trials if trial.candidate == best.candidate)
    moved = drift(plan.objective, _control(plan, now))
    return {
        "recommendation": {**asdict(best), "requested": requested.as_dict(), "equals": list(best.equals)},
        "pareto": [
            {"candidate": one.candidate, "values": dict(one.values)} for one in pareto_front(points(plan, now), AIMS)
        ],
        "drift": {**asdict(moved), "flagged": moved.flagged} if moved else None,
    }


def _control(plan: Plan, now: Standing) -> list[tuple[float, float]]:
    """The baseline's sessions over time."""
    return [
        (one.session.started_at, one.costs[plan.objective])
        for one in now.counted
        if one.session.candidate == plan.baseline and one.session.started_at is not None
    ]


def conclude(journal: Journal, run: Run) -> list[str]:
    """Keep what the whole run has shown, and say it."""
    run = journal.run(run.id)
    played = play(journal, run)
    if not played:
        return []
    plan, now = played[-1]
    result = result_facts(plan, now)
    if run.kind == "agents":
        from .agents_report import digest

        result["recommendation"]["words"] = " ".join(digest(journal, run))
    said = [result["recommendation"]["words"]]
    if (moved := result["drift"]) and moved["flagged"]:
        said.append(
            f"The baseline itself moved by {moved['change']:+.1%} over the run: comparisons within rounds hold, "
            "absolute figures do not."
        )
    if now.hot_rounds:
        said.append(f"{len(now.hot_rounds)} rounds count although they were too warm after two repeats.")
    if run.kind == "tune":
        from .tune import validation_report

        result["validation"] = validation_report(journal, run)
        for check in result["validation"]:
            value = "unknown" if check["value"] is None else f"{check['value']:.3g} (limit {check['limit']:g})"
            said.append(f"step 5, {check['check']}: {check['result']}, {value}; {check['words']}")
        said.append(f"Quality is not scored: `chimera outputs {run.id}` shows what two settings answer, side by side.")
    journal.set_verdicts(run.id, [row for one, at in played for row in table(one, at)])
    journal.set_plan(run.id, {**run.plan, "standing": standing_facts(played, run.workload), "result": result})
    return said


def _draw_next(journal: Journal, run: Run) -> bool:
    from .tune import next_stage

    return run.kind == "tune" and next_stage(journal, run)


def _next(journal: Journal, run: Run, plan: Plan, now: Standing, step: Round) -> Next:
    used = max((one.seq for one in journal.sessions(run.id)), default=0)
    session = replace(step.sessions[0], seq=used + 1)
    plan = plan.without(now.same)
    known = replace(plan, confirm_rounds=now.confirm_rounds) if now.confirm_rounds else plan
    total = estimate(known, run.workload, noise=now.noise).sessions
    words = f"{_PHASES.get(step.phase, step.phase)} round {step.counted + 1}"
    if step.of:
        words += f" of {step.of}" if step.phase != "screen" or not plan.confirm else f" of at most {step.of}"
    return Next(session, max(total, used + len(step.sessions)), step.cool_down, words)


_PHASES = {"preflight": "preflight (noise)", "screen": "screening", "confirm": "confirmation", "measure": "measuring"}


def propose_cohort(journal: Journal, run: Run, plan: Plan, now: Standing, number: int) -> None:
    """Add the next cohort of a space that is too large to visit whole; proposed by Optuna from what is known.

    Proposals that have the effect of one that was there before, or that cannot run here, are passed over.
    """
    from chimera.tuning.search import propose

    from .planning import Survey, trials_of

    known = Survey.of(run.plan["survey"])
    axes = {name: tuple(values) for name, values in run.plan["axes"].items()}
    base = next(trial.requested for trial in plan.trials if trial.role == "baseline")
    rounds = by_round(now.counted, plan.objective, ("screen",))
    finished: dict[Options, float | None] = {}
    for trial in plan.trials:
        if trial.role != "baseline":
            stays = now.same.get(trial.candidate, trial.candidate)
            if stays == plan.baseline:
                finished[trial.requested.only(frozenset(axes))] = 0.0
                continue
            pairs = paired(rounds, stays, plan.baseline)
            out = stays in now.failed or not pairs.n
            finished[trial.requested.only(frozenset(axes))] = None if out else -pairs.mean
    seen = {group.canonical for group in known.groups([("", trial.requested) for trial in plan.trials])}

    def new(options: Options) -> bool:
        group = known.groups([("", options.over(base))])[0]
        if group.canonical in seen or known.ruled_out(group):
            return False
        seen.add(group.canonical)
        return True

    proposed = propose(axes, finished, seed=run.seed, cohort=number, allowed=new)
    rules = dict(run.plan["rules"])
    if not proposed:
        rules["cohorts_planned"] = len(plan.cohorts)
        journal.set_plan(run.id, {**run.plan, "rules": rules})
        return
    taken = len(plan.trials)
    named = [(f"c{taken + index}", options.over(base)) for index, options in enumerate(proposed)]
    fresh = trials_of(known.groups(named), baseline=None)
    rules["cohorts"] = [*(list(group) for group in plan.cohorts), [trial.candidate for trial in fresh]]
    settings = {trial.candidate: trial.effective.as_dict() for trial in fresh if trial.effective is not None}
    journal.add_cohort(
        run.id, fresh, {**run.plan, "rules": rules, "settings": {**run.plan.get("settings", {}), **settings}}
    )
    journal.log(run.id, f"cohort {number}: {len(fresh)} candidates proposed")


def measured_before(journal: Journal, run_id: str, candidate: str, runs: Effective) -> tuple[str, bool] | None:
    """A candidate of the same plan that was measured and runs the same settings, by what was read back of both.

    Told at a candidate's first load only: what it was measured as then, it stays. With it comes whether `candidate` is
    the baseline, which is measured nonetheless: it takes the other one's place.
    """
    run = journal.run(run_id)
    plan = next((plan for _, plan in stage_plans(journal, run) if candidate in plan.settings), None)
    if plan is None or plan.one_load or not plan.by_options:
        return None
    measured = {one.candidate for one in journal.sessions(run.id) if one.state == "done"}
    if candidate in measured:
        return None
    requested = {trial.candidate: trial.requested for trial in plan.trials}
    for name in (plan.baseline, *plan.candidates):
        other = journal.effective(run.id, name) if name in measured else None
        if other is not None and same_configuration(requested[candidate], runs, requested[name], other):
            return name, candidate == plan.baseline
    return None


def failure_of(error: BackendError) -> Failure:
    """How a configuration failed, by what the server did."""
    if isinstance(error, OutOfMemory):
        return "out-of-memory"
    if isinstance(error, StreamBroken):
        return "crash"
    if isinstance(error, BackendUnavailable):
        return "timeout" if "did not" in str(error) else "crash"
    return "load-failed"


def failure_within(measurements: Sequence[Measurement], void_reason: VoidReason | None) -> Failure | None:
    """How a configuration failed whose load went well and none of whose requests did; None where it did not fail."""
    if void_reason == "timeout":
        return "timeout"
    if void_reason == "error":
        return "crash"
    if void_reason == "refused":
        said = next((one.error for one in measurements if one.void_reason == "refused" and one.error), "")
        return "out-of-memory" if isinstance(refusal(None, said, where="it"), OutOfMemory) else "refused"
    return None


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
