"""What a run with several agents has shown: figures, each arm against one agent alone and against the server as it is.

Everything is computed from the journal's measurements; nothing here is kept.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from chimera.domain.run import Run, Session
from chimera.domain.verdict import Metric, Verdict
from chimera.tuning.concurrency import AgentFigures, Figures, Load, efficiency, figures, knee, pays, speedup
from chimera.tuning.plan import by_round
from chimera.tuning.statistics import judge, paired, t_quantile
from chimera.tuning.verdicts import CHOOSING

from .crews import METRICS, arm_of
from .study import outcomes, plan_of

if TYPE_CHECKING:
    from chimera.store.journal import Journal

GUIDE_WORDS = (
    "The guide's formula divides the agents' own times, taken while they compete, by the wall time: agents that all "
    "become slower still score near 100 %."
)
SOLO = "c0"
AS_IS = "c1"
"""The arm with all agents on the server as it is, where a run compares ways to serve them."""
Rounds = dict[int, tuple[Session, Figures]]


def report(journal: Journal, run: Run) -> dict[str, Any] | None:
    """The figures of a run with agents, JSON-able; None where no session of it is done."""
    arms = run.plan.get("arms", {})
    sessions = _sessions(journal, run)
    if not sessions or (not arms and run.workload.agents < 2):
        return None
    solo = sessions.get(SOLO, {}) if arms else {}
    saturates = bool(run.plan.get("saturation"))
    loads = _loads(sessions, run) if saturates else []
    rows = _verdicts(journal, run)
    return {
        "arms": [_arm(run, candidate, by_round, solo) for candidate, by_round in sorted(sessions.items())],
        "verdicts": [asdict(row) for row in rows],
        "digest": _digest(run, rows, sessions),
        "saturation": [_point(one) for one in loads],
        "knee": knee(loads),
        "knee_shown": _knee_shown(loads),
        "guide_formula": GUIDE_WORDS,
    }


def digest(journal: Journal, run: Run) -> list[str]:
    """A sentence for each arm: what it changes for each goal, by the verdicts."""
    return _digest(run, _verdicts(journal, run), _sessions(journal, run))


def _sessions(journal: Journal, run: Run) -> dict[str, Rounds]:
    """Figures of the finished sessions by candidate and round."""
    rows: dict[int, list[Any]] = {}
    for row in journal.measurements(run.id):
        rows.setdefault(row.session, []).append(row.measurement)
    sessions: dict[str, Rounds] = {}
    for session in journal.sessions(run.id):
        instances = session.facts.get("instances", ())
        slots = {number: one.get("num_parallel") for number, one in enumerate(instances)}
        found = figures(rows.get(session.seq, []), slots)
        if session.state == "done" and found is not None:
            sessions.setdefault(session.candidate, {})[session.round] = (session, found)
    return sessions


def _arm(run: Run, candidate: str, by_round: Rounds, solo: Rounds) -> dict[str, Any]:
    arm = arm_of(run, candidate)
    pairs = [(mine, solo[number][1]) for number, (_, mine) in by_round.items() if number in solo]
    seen = [mine for _, mine in by_round.values()]
    facts = [session.facts for session, _ in by_round.values()]
    decode = [
        mine.decode_tok_s / alone.decode_tok_s for mine, alone in pairs if mine.decode_tok_s and alone.decode_tok_s
    ]
    failures = sum((Counter(one.failures) for one in seen), Counter())
    return {
        "candidate": candidate,
        "label": arm.label or f"{arm.agents} agents",
        "agents": arm.agents,
        "instances": arm.instances,
        "requests": arm.requests,
        "sessions": len(seen),
        "aggregate_tok_s": _mean(one.aggregate_tok_s for one in seen),
        "speedup": _mean(speedup(mine, alone) for mine, alone in pairs),
        "efficiency": _mean(efficiency(mine, alone) for mine, alone in pairs),
        "fairness": _mean(one.fairness for one in seen),
        "decode_tok_s": _mean(one.decode_tok_s for one in seen),
        "decode_share_of_solo": _mean(decode),
        "completion_s": _mean(one.completion_s for one in seen),
        "ttft_p50_s": _mean(one.ttft_p50_s for one in seen),
        "ttft_p95_s": _mean(one.ttft_p95_s for one in seen),
        "ttft_worst_s": _mean(one.ttft_worst_s for one in seen),
        "queue_p95_s": _mean(one.queue_p95_s for one in seen),
        "queue_worst_s": _mean(one.queue_worst_s for one in seen),
        "queue_share": _mean(one.queue_share for one in seen),
        "deferred": sum(one.deferred for one in seen),
        "rejected": sum(one.rejected for one in seen),
        "failures": dict(sorted(failures.items())),
        "vram_bytes": _mean(one.get("vram_bytes") for one in facts),
        "energy_j_per_token": _mean(one.get("energy_j_per_token") for one in facts),
        "guide_speedup": _mean(one.guide_speedup for one in seen),
        "guide_efficiency": _mean(one.guide_efficiency for one in seen),
        "per_agent": _per_agent(seen),
    }


_COUNTS = ("requests", "failed", "tokens")


def _per_agent(seen: Sequence[Figures]) -> list[dict[str, Any]]:
    """Each agent over all sessions: counts added up, the worst of all, the mean of the rest."""
    mine: dict[int, list[AgentFigures]] = {}
    for one in seen:
        for agent in one.agents:
            mine.setdefault(agent.agent, []).append(agent)
    rows = []
    for number, each in sorted(mine.items()):
        row: dict[str, Any] = {"agent": number, "instance": each[0].instance}
        for name in (field.name for field in fields(AgentFigures) if field.name not in row):
            values = [value for one in each if (value := getattr(one, name)) is not None]
            merge = sum if name in _COUNTS else max if "_worst_" in name else statistics.fmean
            row[name] = merge(values) if values else None
        rows.append(row)
    return rows


# -- verdicts ----------------------------------------------------------------------------------------------------------


def _verdicts(journal: Journal, run: Run) -> list[Verdict]:
    """Each arm against one agent alone, as the run's own verdicts have it, and against the server as it is.

    The second is what decides between slots and instances; its level is for those compared so.
    """
    if not run.plan.get("arms"):
        return []
    rows = list(journal.verdicts(run.id))
    plan = plan_of(journal, run)
    others = [name for name in plan.candidates if name != AS_IS]
    if run.plan.get("saturation") or AS_IS not in plan.candidates or not others:
        return rows
    done = outcomes(journal, run, plan)
    for metric in METRICS:
        rounds = by_round(done, metric, CHOOSING)
        if not rounds:
            continue
        for name in others:
            said = judge(paired(rounds, name, AS_IS), together=len(others), band=plan.band)
            rows.append(Verdict(name, AS_IS, metric, said.word, said.effect, said.ci, said.level, said.n, said.reason))
    return rows


_GOALS: Mapping[Metric, str] = {
    "aggregate_tok_s": "throughput",
    "worst_ttft_s": "worst TTFT",
    "completion_s": "completion time",
    "vram_bytes": "VRAM",
    "energy_j_per_token": "energy per token",
}


def _digest(run: Run, rows: Sequence[Verdict], sessions: Mapping[str, Rounds]) -> list[str]:
    saturates = bool(run.plan.get("saturation"))
    lines = []
    for candidate in run.plan.get("arms", {}):
        if candidate == SOLO:
            continue
        against = SOLO if saturates or candidate == AS_IS else AS_IS
        mine = {row.metric: row for row in rows if (row.candidate, row.against) == (candidate, against)}
        if not mine:
            continue
        than = "one agent" if against == SOLO else "the server as it is"
        said = [f"{words} {_said(mine.get(metric))}" for metric, words in _GOALS.items() if _worth(metric, mine)]
        failed = sum(found.failed for _, found in sessions.get(candidate, {}).values())
        if failed:
            said.append(f"{failed} requests do not count")
        lines.append(f"{arm_of(run, candidate).label} against {than}: {', '.join(said)}.")
    if saturates:
        found = knee(loads := _loads(sessions, run))
        if found is not None:
            lines.append(f"The knee is at {found} agent{'s' if found > 1 else ''}: {_beyond(loads, found)}")
        elif len(loads) > 1:
            lines.append(f"No knee up to {loads[-1].agents} agents: the rate still rises.")
    return lines


def _beyond(loads: Sequence[Load], found: int) -> str:
    """What more agents than at the knee add, as far as these rounds can tell."""
    after = next(other for one, other in pairwise(loads) if one.agents == found)
    if _knee_shown(loads):
        return "more add less than a tenth a doubling."
    spread = ""
    if after.gain is not None:
        spread = " ({:+.3g} % to {:+.3g} %)".format(*((factor - 1) * 100 for factor in after.gain))
    return f"whether {after.agents} add a tenth a doubling is left open{spread}: more rounds would tell."


def _worth(metric: Metric, mine: Mapping[Metric, Verdict]) -> bool:
    """The four goals are always told of, energy where it was measured."""
    return metric in mine or metric != "energy_j_per_token"


def _said(row: Verdict | None) -> str:
    """A verdict as a change of the figure itself: more tokens a second, fewer seconds."""
    if row is None:
        return "unknown"
    if row.effect is None or row.verdict == "insufficient":
        return f"without a verdict ({row.reason.rstrip('.')})" if row.reason else "without a verdict"
    seen = row.itself
    if row.verdict == "same":
        return f"the same ({_change(seen.effect)})"
    spread = f", {_change(seen.ci[0])} to {_change(seen.ci[1])}" if seen.ci is not None else ""
    return f"{row.verdict} ({_change(seen.effect)}{spread})"


def _change(ratio: float | None) -> str:
    return f"{((ratio or 1.0) - 1) * 100:+.3g} %"


# -- saturation --------------------------------------------------------------------------------------------------------


def _loads(sessions: Mapping[str, Rounds], run: Run) -> list[Load]:
    """Rate and latency at each number of agents, in rising order."""
    loads = []
    agents = {candidate: arm_of(run, candidate).agents for candidate in sessions}
    for candidate, rounds in sessions.items():
        rates = [mine.aggregate_tok_s for _, mine in rounds.values()]
        low, high = _interval(rates)
        tails = _mean(mine.ttft_p95_s for _, mine in rounds.values())
        before = max((one for one in sessions if agents[one] < agents[candidate]), key=agents.__getitem__, default=None)
        pairs: list[float] = []
        if before is not None:
            pairs = [
                mine.aggregate_tok_s / sessions[before][number][1].aggregate_tok_s
                for number, (_, mine) in rounds.items()
                if number in sessions[before]
            ]
        gain = _interval(pairs) if len(pairs) > 1 else None
        loads.append(Load(agents[candidate], statistics.geometric_mean(rates), low, high, tails, gain))
    return sorted(loads, key=lambda load: load.agents)


def _point(load: Load) -> dict[str, Any]:
    """A load for JSON, which has no infinity."""
    gain = None if load.gain is None else [load.gain[0], _finite(load.gain[1])]
    return {**asdict(load), "high": _finite(load.high), "gain": gain}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _knee_shown(loads: Sequence[Load]) -> bool:
    """That more agents than at the knee do not pay is shown; else it is only where gains are no longer seen."""
    found = knee(loads)
    return any(pays(one, other) is False for one, other in pairwise(loads) if one.agents == found)


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the geometric mean, by t on the logarithm; the widest there is for a single value."""
    if len(ratios) < 2:
        return 0.0, math.inf
    logs = [math.log(one) for one in ratios]
    half = t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.fmean(logs)
    return math.exp(middle - half), math.exp(middle + half) if middle + half < _MOST else math.inf


_MOST = 700.0
"""Larger exponents overflow."""


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
