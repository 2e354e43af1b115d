"""`tune`: the guide's five steps as one guided run, each a comparison of its own.

The run's plan holds the stages begun so far; each is drawn when the one before it has ended, from what that one chose,
and kept in one transaction with its trials. So a resumed run stands where the killed one stood.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chimera.domain.options import Options, OptionValue
from chimera.domain.run import Run, Target
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.model.effective import default_axis
from chimera.store.blame import VRAM_FACT
from chimera.tuning.estimate import estimate
from chimera.tuning.objectives import chosen
from chimera.tuning.plan import CONFIRM_MIN, Plan
from chimera.tuning.protocol import standing
from chimera.tuning.statistics import MIN_ROUNDS, Noise, confirmation_rounds, natural

from .planning import Survey, pace_of, trials_of
from .study import outcomes, stage_plans

if TYPE_CHECKING:
    from chimera.store.journal import Journal

CONSISTENT_CV = 0.05
"""Largest coefficient of variation that step 5 lets pass (the guide's sheet, section 6)."""
FULL_VRAM = 0.95
SLOW_TTFT_S = 1.0
"""The guide's own limit for the time to the first token."""
STEPS = ("layers", "context", "sampling", "validation")
"""Steps 2 to 5; step 1, the baseline, is the preflight and the control of every round."""
TITLES = {
    "layers": "step 2: GPU layers",
    "threads": "step 2: CPU threads, as no GPU is used",
    "context": "step 3: context window",
    "sampling": "step 4: sampling",
    "validation": "step 5: validation against the server's defaults",
}
MOST_ROUNDS = 20
"""Longest confirmation of a step: four steps of 32 rounds would take an evening."""


def create_tune(
    journal: Journal, target: Target, known: Survey, workload: Workload, *, seed: int, budget_s: float | None = None
) -> Run:
    """A tuning run with its first stage still to be drawn."""
    return journal.create_run(
        "tune",
        target,
        workload,
        seed=seed,
        trials=[],
        plan={
            "survey": known.as_dict(),
            "budget_s": budget_s,
            "stages": [],
            "lenient": [],
        },
    )


def next_stage(journal: Journal, run: Run) -> bool:
    """Draw the next stage after those that have ended; False where all five steps are done."""
    stages: list[dict[str, Any]] = list(run.plan["stages"])
    base, noise = _chosen_so_far(journal, run)
    for step in STEPS[len(stages) :]:
        drawn, skipped = _draw(journal, run, step, base, len(stages) + 1, noise)
        if drawn is None:
            stages.append({"step": step, "title": TITLES[step], "skipped": skipped})
            journal.log(run.id, f"{TITLES[step]}: skipped, {skipped}", "notice")
            continue
        name, plan = drawn
        stages.append(
            {
                "step": step,
                "title": TITLES[name],
                "candidates": [trial.candidate for trial in plan.trials],
                "rules": plan.as_dict(),
                "settings": {
                    trial.candidate: trial.effective.as_dict() for trial in plan.trials if trial.effective is not None
                },
            }
        )
        journal.add_cohort(run.id, plan.trials, {**run.plan, "stages": stages})
        cost = estimate(plan, run.workload)
        rests = "" if plan.confirm else ", without confirmation: there is no time for it in the budget"
        journal.log(
            run.id,
            f"{TITLES[name]}: {len(plan.trials) - 1} to compare, at most {cost.sessions} sessions{rests}",
            "notice",
        )
        return True
    if stages != run.plan["stages"]:
        journal.set_plan(run.id, {**run.plan, "stages": stages})
    return False


def _chosen_so_far(journal: Journal, run: Run) -> tuple[Options, Noise | None]:
    """What the stages so far have settled on, and the noise that the first one has found."""
    base = Options()
    noise: Noise | None = None
    for stage, plan in stage_plans(journal, run):
        now = standing(plan, outcomes(journal, run, plan))
        noise = now.noise or noise
        if stage["step"] == "validation":
            continue
        best = chosen(plan, now)
        if not best.keep_default:
            base = next(trial.requested for trial in plan.trials if trial.candidate == best.candidate)
    return base, noise


def _draw(
    journal: Journal, run: Run, step: str, base: Options, number: int, noise: Noise | None
) -> tuple[tuple[str, Plan] | None, str]:
    """The plan of a step, or why it cannot matter here."""
    known = Survey.of(run.plan["survey"])
    prefix = f"s{number}"
    name, points = step, []
    if step == "layers" and known.gpus == 0:
        name = "threads"
    if step == "validation":
        if not base.as_dict():
            return None, "the defaults were kept, so there is nothing to compare them with."
        points = [base]
        base = Options()
    else:
        try:
            axis, values = _axis(name, known)
        except ConfigError as error:
            return None, str(error)
        points = [Options.of({axis: value}).over(base) for value in values]
    groups = known.groups([(f"{prefix}c0", base), *((f"{prefix}c{index}", one) for index, one in enumerate(points, 1))])
    ruled_out = {group.candidates[0]: why for group in groups if (why := known.ruled_out(group))}
    trials = trials_of([group for group in groups if group.candidates[0] not in ruled_out], baseline=f"{prefix}c0")
    if len(trials) < 2:
        whys = "; ".join(dict.fromkeys(reason for group in groups for reason in group.reasons))
        return None, f"everything in it is one setting here ({whys or 'equal effect'})."
    sampling = name == "sampling"
    together = min(2, len(trials) - 1)
    plan = Plan(
        trials=trials,
        seed=run.seed + number,
        metrics=("decode_tok_s", "ttft_s") if sampling else ("decode_tok_s", "ttft_s", "vram_bytes"),
        preflight=0 if noise else 6,
        confirmed=together,
        confirm_max=MOST_ROUNDS,
        one_load=sampling,
    )
    if noise:
        plan = replace(plan, confirm_rounds=confirmation_rounds(noise, together=together, most=MOST_ROUNDS))
    fitted = _fitted(journal, run, plan, left=len(STEPS) - number + 1)
    return (None, fitted) if isinstance(fitted, str) else ((name, fitted), "")


def _fitted(journal: Journal, run: Run, plan: Plan, left: int) -> Plan | str:
    """The plan cut to this step's share of what is left of the budget, or why even the shortest does not fit.

    Fewer rounds of confirmation first, down to 8; then none, and fewer rounds, down to 3. The shortest form may take
    more than its share: the earlier steps matter most. The time that counts is that of the sessions, so that a pause or
    a crash takes nothing from it.
    """
    budget = run.plan.get("budget_s")
    if not budget:
        return plan
    known = Survey.of(run.plan["survey"])
    pace = pace_of(journal, run) or known.pace
    if pace is None:
        return plan
    used = sum((one.ended_at or 0) - (one.started_at or 0) for one in journal.sessions(run.id) if one.ended_at)
    rest = max(0.0, budget - used)
    longest = plan.confirm_rounds or plan.confirm_max
    tries = [
        replace(plan, confirm_max=most, confirm_rounds=most if plan.confirm_rounds else None)
        for most in range(longest, min(CONFIRM_MIN, longest) - 1, -1)
    ]
    tries += [
        replace(plan, confirm=False, preflight=0, screen_rounds=rounds, confirm_rounds=None)
        for rounds in range(plan.screen_rounds, MIN_ROUNDS - 1, -1)
    ]
    costs = [estimate(one, run.workload, pace=pace).seconds or 0.0 for one in tries]
    fitting = (one for one, seconds in zip(tries, costs, strict=True) if seconds <= rest / left)
    chosen_form = next(fitting, None) or (tries[-1] if costs[-1] <= rest else None)
    return chosen_form or f"its shortest form takes about {costs[-1]:.0f} s, and {rest:.0f} s of the budget are left."


def _axis(name: str, known: Survey) -> tuple[str, Sequence[OptionValue]]:
    option = {"layers": "num_gpu", "threads": "num_thread", "context": "num_ctx"}.get(name, "temperature")
    return option, default_axis(option, known.shape or known.model, cores=known.cores)


def validation_report(journal: Journal, run: Run) -> list[dict[str, Any]]:
    """Step 5's checks of the configuration that was settled on: consistency, VRAM, TTFT; each pass, fail or unknown.

    Consistency and TTFT are those of the last step's sessions; the VRAM is the peak of all sessions with its settings.
    """
    found = stage_plans(journal, run)
    if not found:
        return []
    stage, plan = found[-1]
    seen = outcomes(journal, run, plan)
    final = chosen(plan, standing(plan, seen)).candidate if stage["step"] != "validation" else plan.candidates[0]
    settled = next(trial.requested for trial in plan.trials if trial.candidate == final)
    costs = [one.costs for one in seen if one.session.candidate == final and one.session.phase != "preflight"]
    rates = [natural("decode_tok_s", cost["decode_tok_s"]) for cost in costs if "decode_tok_s" in cost]
    ttfts = [natural("ttft_s", cost["ttft_s"]) for cost in costs if "ttft_s" in cost]
    same = {trial.candidate for trial in journal.trials(run.id) if trial.requested.load == settled.load}
    peaks = [one.facts.get(VRAM_FACT) for one in journal.sessions(run.id) if one.candidate in same]
    vram = [float(peak) for peak in peaks if peak is not None]
    total = run.plan["survey"].get("gpu_total_bytes")
    cv = statistics.stdev(rates) / statistics.mean(rates) if len(rates) > 1 else None
    ttft = statistics.median(ttfts) if ttfts else None
    share = max(vram) / total if vram and total else None
    return [
        _check("consistency", cv, CONSISTENT_CV, f"CV of the session's rate over {len(rates)} sessions"),
        _check("vram", share, FULL_VRAM, "share of the GPUs' memory at its peak"),
        _check("ttft", ttft, SLOW_TTFT_S, "median, seconds; the guide's limit"),
    ]


def _check(what: str, value: float | None, limit: float, words: str) -> dict[str, Any]:
    result = "unknown" if value is None else "pass" if value <= limit else "fail"
    return {"check": what, "result": result, "value": value, "limit": limit, "words": words}
