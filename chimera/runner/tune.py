"""`tune`: the guide's five steps as one guided run, each a comparison of its own.

The run's plan holds the stages begun so far; each is drawn when the one before it has ended, from what that one chose,
and kept in one transaction with its trials. So a resumed run stands where the killed one stood.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chimera.domain.options import Options, OptionValue
from chimera.domain.run import Run, Target, Trial
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.model.effective import default_axis, merge
from chimera.tuning.estimate import estimate
from chimera.tuning.objectives import chosen
from chimera.tuning.plan import Plan
from chimera.tuning.protocol import standing
from chimera.tuning.statistics import confirmation_rounds, natural

from .planning import Survey
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
            "survey": {
                "defaults": known.defaults.as_dict(),
                "gpus": known.gpus,
                "gpu_total_bytes": known.gpu_total_bytes,
                "cores": _cores(),
                "limits": _limits(known),
                "kind": known.server.kind,
                "pace": asdict(known.pace) if known.pace else None,
            },
            "budget_s": budget_s,
            "stages": [],
            "lenient": [],
        },
    )


def _cores() -> int | None:
    import psutil

    return psutil.cpu_count(logical=False)


def _limits(known: Survey) -> dict[str, Any]:
    source = known.shape or known.model
    return {"block_count": source.block_count, "trained_ctx": source.trained_ctx, "vision": source.vision}


class _Limits:
    """What rules must know of the model, from the journal."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.block_count: int | None = facts["block_count"]
        self.trained_ctx: int | None = facts["trained_ctx"]
        self.vision: bool = facts["vision"]


def next_stage(journal: Journal, run: Run) -> bool:
    """Draw the next stage after those that have ended; False where all five steps are done."""
    stages: list[dict[str, Any]] = list(run.plan["stages"])
    base, noise_rounds = _chosen_so_far(journal, run)
    for step in STEPS[len(stages) :]:
        drawn, skipped = _draw(run, step, base, len(stages) + 1, first=noise_rounds is None, rounds=noise_rounds)
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
        journal.log(run.id, f"{TITLES[name]}: {len(plan.trials) - 1} to compare, at most {cost.sessions} sessions")
        return True
    journal.set_plan(run.id, {**run.plan, "stages": stages})
    return False


def _chosen_so_far(journal: Journal, run: Run) -> tuple[Options, int | None]:
    """What the stages so far have settled on, and the rounds that the first one's noise asks for."""
    base = Options()
    rounds: int | None = None
    for stage, plan in stage_plans(journal, run):
        now = standing(plan, outcomes(journal, run, plan))
        if now.noise is not None:
            rounds = confirmation_rounds(now.noise, together=2, band=plan.band, target=plan.target)
        if stage["step"] == "validation":
            continue
        best = chosen(plan, now)
        if not best.keep_default:
            base = next(trial.requested for trial in plan.trials if trial.candidate == best.candidate)
    return base, rounds


def _draw(
    run: Run, step: str, base: Options, number: int, *, first: bool, rounds: int | None
) -> tuple[tuple[str, Plan] | None, str]:
    """The plan of a step, or why it cannot matter here."""
    facts = run.plan["survey"]
    limits, defaults = _Limits(facts["limits"]), Options.of(facts["defaults"])
    prefix = f"s{number}"
    name, points = step, []
    if step == "layers" and facts["gpus"] == 0:
        name = "threads"
    if step == "validation":
        if not base.as_dict():
            return None, "the defaults were kept, so there is nothing to compare them with."
        points = [base]
        base = Options()
    else:
        try:
            axis, values = _axis(name, limits, facts)
        except ConfigError as error:
            return None, str(error)
        points = [Options.of({axis: value}).over(base) for value in values]
    named = [(f"{prefix}c0", base), *((f"{prefix}c{index}", one) for index, one in enumerate(points, 1))]
    groups = merge(named, limits, facts["kind"], defaults=defaults, gpus=facts["gpus"])
    trials = tuple(
        Trial(
            group.candidates[0],
            "baseline" if group.candidates[0] == f"{prefix}c0" else "candidate",
            requested=group.requested,
            effective=group.effective.options,
            merged=group.candidates[1:],
            notes=(*group.reasons, *group.effective.notes),
        )
        for group in groups
        if not group.refused
    )
    if len(trials) < 2:
        whys = "; ".join(dict.fromkeys(reason for group in groups for reason in group.reasons))
        return None, f"everything in it is one setting here ({whys or 'equal effect'})."
    sampling = name == "sampling"
    return (
        name,
        Plan(
            trials=trials,
            seed=run.seed + number,
            metrics=("decode_tok_s", "ttft_s") if sampling else ("decode_tok_s", "ttft_s", "vram_bytes"),
            preflight=6 if first else 0,
            confirmed=min(2, len(trials) - 1),
            confirm_rounds=rounds,
            confirm_max=_most(run),
            one_load=sampling,
        ),
    ), ""


def _most(run: Run) -> int:
    """Longest confirmation that a budget leaves each of the four steps."""
    budget, pace = run.plan.get("budget_s"), run.plan["survey"].get("pace")
    if not budget or not pace:
        return 20
    session = pace["load_s"] + (run.workload.requests + 1) * pace["request_s"]
    return int(max(8, min(32, budget / len(STEPS) / session / 3)))


def _axis(name: str, limits: _Limits, facts: dict[str, Any]) -> tuple[str, Sequence[OptionValue]]:
    if name == "layers":
        return "num_gpu", default_axis("num_gpu", limits)
    if name == "threads":
        return "num_thread", default_axis("num_thread", limits, cores=facts["cores"])
    if name == "context":
        return "num_ctx", default_axis("num_ctx", limits)
    return "temperature", default_axis("temperature", limits)


def validation_report(journal: Journal, run: Run) -> list[dict[str, Any]]:
    """Step 5's checks of the configuration that was settled on: consistency, VRAM, TTFT; each pass, fail or unknown."""
    found = stage_plans(journal, run)
    if not found:
        return []
    stage, plan = found[-1]
    seen = outcomes(journal, run, plan)
    best = chosen(plan, standing(plan, seen))
    final = best.candidate if stage["step"] != "validation" else plan.candidates[0]
    costs = [one.costs for one in seen if one.session.candidate == final and one.session.phase != "preflight"]
    rates = [natural("decode_tok_s", cost["decode_tok_s"]) for cost in costs if "decode_tok_s" in cost]
    ttfts = [natural("ttft_s", cost["ttft_s"]) for cost in costs if "ttft_s" in cost]
    vram = [natural("vram_bytes", cost["vram_bytes"]) for cost in costs if "vram_bytes" in cost]
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
