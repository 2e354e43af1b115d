"""What many clients at the same time really get, from their measurements.

Speed-up compares the aggregate rate of N agents with that of one agent *measured alone in the same run*. The guide's
own formula divides times that were taken while the agents compete: two agents at half speed each then score 100 %. It
is computed beside, under its name, so that old reports can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.verdict import Metric

DEFERRED_S = 0.05
"""A request that waited longer than this for a slot was deferred."""


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """One agent's share of a session."""

    agent: int
    instance: int
    requests: int
    """Valid ones."""
    failed: int
    tokens: int
    decode_tok_s: float | None
    """Median over its requests."""
    effective_tok_s: float | None
    """Its tokens over its own time from first sending to last answer."""
    ttft_s: float | None
    """Median over its requests, like `queue_s`."""
    ttft_p95_s: float | None
    ttft_worst_s: float | None
    queue_s: float | None
    queue_p95_s: float | None
    queue_worst_s: float | None
    completion_s: float
    """From its first sending to its last answer."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One session of concurrent agents."""

    agents: tuple[AgentFigures, ...]
    wall_s: float
    """From the first sending to the last answer of all."""
    tokens: int
    aggregate_tok_s: float
    """All agents' tokens over `wall_s`."""
    fairness: float | None
    """Jain's index over the agents' effective rates: 1 = equal, 1/N = one has everything (Jain, Chiu, Hawe 1984)."""
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_worst_s: float | None
    queue_p95_s: float | None
    queue_worst_s: float | None
    queue_share: float | None
    """Part of all time to first token that was spent waiting for a slot."""
    decode_tok_s: float | None
    """Mean of the agents' decode rates: what one of them gets while it is served."""
    completion_s: float
    """Of the agent that was done last."""
    deferred: int
    """Requests that waited for a slot; with a slot for each agent a wait is for the batch in work, and none is."""
    rejected: int
    """Requests that the server refused."""
    guide_speedup: float
    """The guide's: sum of the agents' own times, taken while they compete, over the wall time."""
    guide_efficiency: float
    failures: Mapping[VoidReason, int] = field(default_factory=dict)
    """Void requests by reason."""

    @property
    def failed(self) -> int:
        """Requests that do not count."""
        return sum(self.failures.values())


def figures(measurements: Sequence[Measurement], slots: Mapping[int, int | None] | None = None) -> Figures | None:
    """The figures of one session; None where no request of it was answered.

    Discarded and void requests give no rate; a failed one's time still belongs to its agent, which had to wait it out.

    Args:
        measurements: Of the session.
        slots: Of each instance, where known.
    """
    counted = [one for one in measurements if one.role == "measure"]
    valid = [one for one in counted if one.valid]
    if not valid:
        return None
    begin, end = min(one.started_at for one in counted), max(one.started_at + one.total_s for one in valid)
    wall = end - begin
    each: dict[tuple[int, int], list[Measurement]] = {}
    for one in counted:
        each.setdefault((one.instance, one.agent), []).append(one)
    agents = tuple(_agent(agent, instance, mine) for (instance, agent), mine in sorted(each.items()))
    tokens = sum(agent.tokens for agent in agents)
    firsts = sorted(one.ttft_s for one in valid if one.ttft_s is not None)
    queues = sorted(one.queue_s for one in valid if one.queue_s is not None)
    users = Counter(instance for instance, _ in each)
    scarce = {one for one, agents in users.items() if agents > ((slots or {}).get(one) or 0)}
    waited = [(one.queue_s, one.ttft_s) for one in valid if one.queue_s is not None and one.ttft_s]
    rates = [agent.decode_tok_s for agent in agents if agent.decode_tok_s is not None]
    # Time in which an agent waited for an answer that never came is no work, by no formula.
    busy = sum(min(agent.completion_s, wall) for agent in agents if agent.requests)
    return Figures(
        agents=agents,
        wall_s=wall,
        tokens=tokens,
        aggregate_tok_s=tokens / wall if wall > 0 else math.inf,
        fairness=jain([agent.effective_tok_s or 0.0 for agent in agents]),
        ttft_p50_s=percentile(firsts, 0.5),
        ttft_p95_s=percentile(firsts, 0.95),
        ttft_worst_s=firsts[-1] if firsts else None,
        queue_p95_s=percentile(queues, 0.95),
        queue_worst_s=queues[-1] if queues else None,
        queue_share=sum(wait for wait, _ in waited) / sum(first for _, first in waited) if waited else None,
        decode_tok_s=fmean(rates) if rates else None,
        completion_s=max(agent.completion_s for agent in agents),
        deferred=sum((one.queue_s or 0.0) > DEFERRED_S for one in valid if one.instance in scarce),
        rejected=sum(one.void_reason == "refused" for one in counted),
        guide_speedup=busy / wall if wall > 0 else math.inf,
        guide_efficiency=busy / wall / len(agents) if wall > 0 else math.inf,
        failures=Counter(one.void_reason for one in counted if one.void_reason),
    )


def _agent(agent: int, instance: int, mine: Sequence[Measurement]) -> AgentFigures:
    valid = [one for one in mine if one.valid]
    begin, end = min(one.started_at for one in mine), max(one.started_at + one.total_s for one in mine)
    tokens = sum(one.completion_tokens or 0 for one in valid)
    rates = [one.rate for one in valid if one.rate is not None]
    firsts = sorted(one.ttft_s for one in valid if one.ttft_s is not None)
    queues = sorted(one.queue_s for one in valid if one.queue_s is not None)
    return AgentFigures(
        agent=agent,
        instance=instance,
        requests=len(valid),
        failed=len(mine) - len(valid),
        tokens=tokens,
        decode_tok_s=median(rates) if rates else None,
        effective_tok_s=tokens / (end - begin) if end > begin else None,
        ttft_s=median(firsts) if firsts else None,
        ttft_p95_s=percentile(firsts, 0.95),
        ttft_worst_s=max(firsts, default=None),
        queue_s=median(queues) if queues else None,
        queue_p95_s=percentile(queues, 0.95),
        queue_worst_s=max(queues, default=None),
        completion_s=end - begin,
    )


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index, (sum x)^2 / (n sum x^2); None where nobody got anything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else None


def speedup(together: Figures, solo: Figures) -> float:
    """Aggregate rate of the agents over that of one agent alone, measured in the same round."""
    return together.aggregate_tok_s / solo.aggregate_tok_s


def efficiency(together: Figures, solo: Figures) -> float:
    """Speed-up for each agent: 1 = N agents do N times the work."""
    return speedup(together, solo) / len(together.agents)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile of values in rising order."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


UNANSWERED: frozenset[VoidReason] = frozenset({"refused", "error", "timeout"})


def costs(found: Figures | None) -> dict[Metric, float]:
    """A session's value in the goals of several agents, as natural logarithm of a cost: less is better.

    Work that was not done must not make a server look quick: where a request got no answer there is no worst TTFT, and
    where one does not count for any reason there is no completion time.
    """
    if found is None or not math.isfinite(found.aggregate_tok_s) or found.aggregate_tok_s <= 0:
        return {}
    values: dict[Metric, float] = {"aggregate_tok_s": -math.log(found.aggregate_tok_s)}
    if found.ttft_worst_s and not UNANSWERED & found.failures.keys():
        values["worst_ttft_s"] = math.log(found.ttft_worst_s)
    if found.completion_s > 0 and not found.failures:
        values["completion_s"] = math.log(found.completion_s)
    return values


@dataclass(frozen=True, slots=True)
class Load:
    """How a server did at one number of agents."""

    agents: int
    aggregate_tok_s: float
    """Mean over the rounds."""
    low: float
    high: float
    """Its 95 % interval over the rounds, by t on the logarithm; the widest there is for a single round."""
    ttft_p95_s: float | None
    gain: tuple[float, float] | None = None
    """95 % interval of its rate over that of the next smaller load, from the rounds that both have; None where fewer
    than two do, or it is the smallest."""


GAIN = 0.1
"""More agents pay where they add at least this part for each doubling."""


def pays(load: Load, after: Load) -> bool | None:
    """More agents than `load` are shown to pay, or not to; None where these rounds leave it open."""
    wanted = (1 + GAIN) ** math.log2(after.agents / load.agents)
    low, high = after.gain or (after.low / load.aggregate_tok_s, after.high / load.aggregate_tok_s)
    return True if low > wanted else False if high <= wanted else None


def knee(loads: Sequence[Load]) -> int | None:
    """Number of agents from which more add less than `GAIN` for each doubling, the intervals taken into account.

    The first load whose successor is not shown to pay; None where the rate still rises at the end, or fewer than two
    loads are known.
    """
    ordered = sorted(loads, key=lambda load: load.agents)
    for load, after in pairwise(ordered):
        if not pays(load, after):
            return load.agents
    return None
