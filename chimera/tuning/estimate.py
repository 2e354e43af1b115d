"""What a plan costs and what it can show, before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chimera.domain.workload import Workload

from .plan import COHORT, CONFIRM_MIN, HALVE_AFTER, Plan
from .statistics import Noise, confirmation_rounds, level_for, t_quantile

NOTHING = "every candidate has the baseline's effect: there is nothing to run"
BLOCK = 3
"""Requests of a block where candidates share one load."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take on this server."""

    load_s: float
    """One load of the model."""
    request_s: float
    """One request of the workload, from send to end."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost and reach of a plan; a run with void sessions, hot rounds or early drops differs."""

    sessions: int
    """At most, the preflight's among them."""
    sessions_least: int
    """With the shortest confirmation; the same where its length is fixed."""
    requests: int
    """At most, discarded ones among them."""
    seconds: float | None
    """At most; None without a pace."""
    seconds_least: float | None
    rounds: int
    """Of the phase that decides."""
    smallest_better: float | None
    """Smallest gain that is likely to be called better at this noise, as a share; None where the noise is unknown."""
    half_width: float | None
    """Expected half width of a verdict's interval at this noise, as a share."""

    @property
    def words(self) -> str:
        """One sentence on what can be seen."""
        if not self.sessions:
            return f"No session: {NOTHING}."
        if self.smallest_better is None:
            return "The smallest gain that can be seen is known after the preflight."
        return f"Gains above {self.smallest_better:.1%} can be seen in {self.rounds} rounds at this noise."


def estimate(plan: Plan, workload: Workload, *, pace: Pace | None = None, noise: Noise | None = None) -> Estimate:
    """What a plan will cost, and what it can show.

    Args:
        plan: As it stands before the run.
        workload: Its `requests` are the measured ones a session.
        pace: From an earlier run or a first request; None = unknown.
        noise: Of an earlier preflight; None = unknown, the confirmation is then taken at its longest.
    """
    screen, screened = _screening(plan)
    together = min(plan.confirmed, screened) if plan.confirm else screened
    least, most = plan.screen_rounds, plan.screen_rounds
    if plan.confirm:
        if plan.confirm_rounds:
            least = most = plan.confirm_rounds
        elif noise or not plan.preflight:
            least = most = confirmation_rounds(
                noise, together=together, band=plan.band, target=plan.target, most=plan.confirm_max
            )
        else:
            least, most = min(CONFIRM_MIN, plan.confirm_max), plan.confirm_max
    before = plan.preflight + screen
    each = together + 1 if plan.confirm else 0
    if not screened:
        before = each = 0
    sessions, fewest = before + most * each, before + least * each
    reach = width = None
    if noise:
        reach = noise.smallest_better(most, plan.band, together=together)
        if most > 1:
            quantile = t_quantile(1 - (1 - level_for(together)) / 2, most - 1)
            width = quantile * noise.paired_sd / most**0.5
    return Estimate(
        sessions=sessions,
        sessions_least=fewest,
        requests=_requests(plan, workload, sessions),
        seconds=_seconds(plan, workload, sessions, pace),
        seconds_least=_seconds(plan, workload, fewest, pace),
        rounds=most,
        smallest_better=reach,
        half_width=width,
    )


def within(plan: Plan, workload: Workload, pace: Pace, seconds: float) -> Plan:
    """The plan with as long a confirmation, then as many cohorts, as fit the time; the shortest one where none does."""
    for cohorts in range(plan.cohorts_planned, min(plan.cohorts_planned, max(1, len(plan.cohorts))) - 1, -1):
        trial = replace(plan, cohorts_planned=cohorts)
        for most in range(plan.confirm_max, min(CONFIRM_MIN, plan.confirm_max) - 1, -1):
            trial = replace(trial, confirm_max=most)
            cost = estimate(trial, workload, pace=pace).seconds
            if cost is not None and cost <= seconds:
                return trial
    return trial


def _screening(plan: Plan) -> tuple[int, int]:
    """Sessions of the screening at most, and candidates that enter it; cohorts to come are taken as full."""
    sizes = [len(group) for group in plan.groups]
    sizes += [COHORT] * (plan.cohorts_planned - len(sizes))
    total = 0
    for size in sizes:
        open_ = size
        for slot in range(1, plan.screen_rounds + 1):
            if plan.confirm and open_ <= plan.confirmed and (len(sizes) == 1 or slot > HALVE_AFTER[0]):
                break
            total += open_ + 1
            if plan.confirm and slot in HALVE_AFTER:
                open_ = max(min(plan.confirmed, open_), (open_ + 1) // 2)
    return total, sum(sizes)


def _requests(plan: Plan, workload: Workload, sessions: int) -> int:
    if plan.one_load:
        return (sessions * BLOCK + 1) * workload.agents
    return sessions * (workload.requests + 1) * workload.agents


def _seconds(plan: Plan, workload: Workload, sessions: int, pace: Pace | None) -> float | None:
    if pace is None:
        return None
    # Agents send at the same time, so `request_s` is a request among them.
    if plan.one_load:
        return pace.load_s + (sessions * BLOCK + 1) * pace.request_s
    return sessions * (pace.load_s + (workload.requests + 1) * pace.request_s)
