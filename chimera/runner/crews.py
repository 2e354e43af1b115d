"""Runs with several agents: which arms are compared, who takes part in each, and what they show.

Arms are trials: `c0` is one agent alone doing all the work, measured in the same rounds as the others. The arms of a
run are in its plan, so that a resumed worker and every reader see the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chimera.backends.base import Backend
from chimera.backends.detect import open_backend
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.measure.agents import Crew
from chimera.measure.live import LiveRequest
from chimera.model.memory import forecast
from chimera.tuning.concurrency import Figures, Load, efficiency, figures, knee, speedup
from chimera.tuning.plan import Plan
from chimera.tuning.statistics import t_quantile

from .launch import fresh_seed
from .planning import Survey

if TYPE_CHECKING:
    from chimera.store.journal import Journal

METRICS: tuple[Metric, ...] = ("aggregate_tok_s", "worst_ttft_s", "completion_s", "vram_bytes")
GUIDE_WORDS = (
    "The guide's formula divides the agents' own times, taken while they compete, by the wall time: agents that all "
    "become slower still score near 100 %."
)


@dataclass(frozen=True, slots=True)
class Arm:
    """Who takes part in the sessions of a trial."""

    agents: int
    requests: int
    """Each agent's, so that every arm does the same work in all."""
    instances: int = 1
    urls: tuple[str, ...] = ()
    """Addresses of the instances; empty: the run's own target, or further engines of our own."""
    label: str = ""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Arm:
        """From the plan of a run."""
        return cls(**{**facts, "urls": tuple(facts.get("urls", ()))})


def arm_of(run: Run, candidate: str) -> Arm:
    """Who takes part in a candidate's sessions; of a run without arms, the agents of its workload."""
    facts = run.plan.get("arms", {}).get(candidate)
    if facts is not None:
        return Arm.of(facts)
    return Arm(run.workload.agents, run.workload.requests, run.workload.instances)


def create_agents_run(
    journal: Journal,
    target: Target,
    known: Survey,
    workload: Workload,
    *,
    counts: Sequence[int],
    urls: Sequence[str] = (),
    base: Options | None = None,
    can_parallel: bool,
    owned: bool,
    rounds: int = 6,
    seed: int | None = None,
    name: str | None = None,
) -> Run:
    """A run that compares agents in interleaved rounds.

    One count compares the ways to serve that many agents: as the server is, with as many slots, with as many instances.
    Several counts measure saturation: the same work by 1, 2, 4 ... agents.

    Raises `ConfigError` for counts that make no sense.
    """
    if any(count < 1 for count in counts) or max(counts, default=0) < 2:
        raise ConfigError("--agents wants 2 or more, or several counts like 1,2,4,8.")
    base = base or Options()
    most = max(counts)
    total = workload.requests * most
    trials, arms, ruled_out = _arms(known, counts, urls, base, total, can_parallel=can_parallel, owned=owned)
    if len(trials) < 2:
        raise ConfigError(f"Nothing is left to compare: {'; '.join(ruled_out.values())}")
    plan = Plan(
        trials=tuple(trials),
        seed=fresh_seed() if seed is None else seed,
        objective="aggregate_tok_s",
        metrics=METRICS,
        preflight=0,
        screen_rounds=rounds,
        confirm=False,
        confirmed=len(trials) - 1,
    )
    return journal.create_run(
        "agents",
        target,
        replace(workload, agents=most, instances=max(arm.instances for arm in arms.values())),
        seed=plan.seed,
        trials=trials,
        plan={
            "rules": plan.as_dict(),
            "settings": {},
            "arms": {candidate: asdict(arm) for candidate, arm in arms.items()},
            "ruled_out": ruled_out,
            "saturation": len(counts) > 1,
            "lenient": [],
        },
        name=name,
    )


def _arms(
    known: Survey,
    counts: Sequence[int],
    urls: Sequence[str],
    base: Options,
    total: int,
    *,
    can_parallel: bool,
    owned: bool,
) -> tuple[list[Trial], dict[str, Arm], dict[str, str]]:
    trials: list[Trial] = []
    arms: dict[str, Arm] = {}
    ruled_out: dict[str, str] = {}

    def add(label: str, agents: int, options: Options, instances: int = 1, where: Sequence[str] = ()) -> None:
        candidate = f"c{len(arms) + len(ruled_out)}"
        reason = _does_not_fit(known, options, instances) if instances > 1 and not where else None
        if reason:
            ruled_out[candidate] = f"{label}: {reason}"
            return
        role = "candidate" if trials else "baseline"
        trials.append(Trial(candidate, role, requested=options, notes=(label,)))  # type: ignore[arg-type]
        arms[candidate] = Arm(agents, max(1, total // agents), instances, tuple(where), label)

    if len(counts) > 1:
        slots = base if base.num_parallel or not (owned and can_parallel) else replace(base, num_parallel=max(counts))
        for count in sorted({1, *counts}):
            add(f"{count} agent{'s' if count > 1 else ''}", count, slots)
        return trials, arms, ruled_out
    count = counts[0]
    add("1 agent", 1, base)
    add(f"{count} agents, server as it is", count, base)
    if can_parallel and base.num_parallel is None:
        add(f"{count} agents, {count} slots", count, replace(base, num_parallel=count))
    if urls:
        add(f"{count} agents, {len(urls)} instances", count, base, len(urls), urls)
    elif owned:
        add(f"{count} agents, {count} instances", count, base, count)
    return trials, arms, ruled_out


def _does_not_fit(known: Survey, options: Options, instances: int) -> str | None:
    """Why so many instances will not fit, by the forecast; None where they do or nobody can tell."""
    if known.shape is None or known.gpu_free_bytes is None or known.gpus == 0:
        return None
    context = options.num_ctx or known.defaults.num_ctx or 4096
    wanted = forecast(known.shape, context, num_gpu=options.num_gpu, kv_type=options.kv_cache_type or "f16").gpu.bytes
    if wanted is None or wanted * instances <= known.gpu_free_bytes:
        return None
    return (
        f"{instances} instances need {wanted * instances / 2**30:.1f} GiB of GPU memory by the forecast, "
        f"{known.gpu_free_bytes / 2**30:.1f} GiB are free. Use fewer layers, a smaller context, or slots instead."
    )


class Crews:
    """Opens the servers that arms need beside the run's own, and closes them at the end."""

    def __init__(self, run: Run, backend: Backend) -> None:
        self._run = run
        self._backend = backend
        self._stack = AsyncExitStack()
        self._more: list[Backend] = []
        self._by_url: dict[str, Backend] = {}

    async def crew(self, arm: Arm, options: Options, lanes: Sequence[LiveRequest]) -> Crew:
        """The crew of an arm's session.

        Raises `ConfigError` where instances do not serve the same model, and `BackendError` kinds where one cannot be
        reached.
        """
        if arm.urls:
            servers = tuple([await self._at(url) for url in arm.urls])
        else:
            while len(self._more) < arm.instances - 1:
                self._more.append(await self._open(self._run.target))
            for idle in self._more[arm.instances - 1 :]:
                await idle.close()  # an engine that takes no part must not take memory either
            servers = (self._backend, *self._more[: arm.instances - 1])
        return Crew(servers, (options,), tuple(lanes[: arm.agents]))

    async def _at(self, url: str) -> Backend:
        if url not in self._by_url:
            self._by_url[url] = await self._open(replace(self._run.target, url=url))
            mine, other = await self._backend.model(), await self._by_url[url].model()
            if mine.digest != other.digest or mine.name != other.name:
                raise ConfigError(
                    f"{url} serves {other.name} ({other.digest}), not {mine.name} ({mine.digest}): instances can "
                    "only be compared on the same model. Pull or load the same one there."
                )
        return self._by_url[url]

    async def _open(self, target: Target) -> Backend:
        backend = open_backend(target)
        self._stack.push_async_callback(backend.close)
        await backend.connect()
        return backend

    async def close(self) -> None:
        """End and let go of everything that was opened here."""
        await self._stack.aclose()


def second_instance(url: str) -> str:
    """The command that starts a further Ollama at this address on the same store of models.

    `OLLAMA_NOPRUNE` keeps its start from removing blobs that the first one needs.
    """
    host = url.split("://", 1)[-1].rstrip("/")
    return f"OLLAMA_HOST={host} OLLAMA_NOPRUNE=1 ollama serve"


def report(journal: Journal, run: Run) -> dict[str, Any] | None:
    """The figures of a run with agents: each arm over its sessions, against the solo arm of the same rounds."""
    arms = run.plan.get("arms", {})
    sessions: dict[str, dict[int, tuple[Session, Figures]]] = {}
    rows = journal.measurements(run.id)
    for session in journal.sessions(run.id):
        found = figures([row.measurement for row in rows if row.session == session.seq])
        if session.state == "done" and found is not None:
            sessions.setdefault(session.candidate, {})[session.round] = (session, found)
    if not sessions or (not arms and run.workload.agents < 2):
        return None
    solo = sessions.get("c0", {}) if arms else {}
    found_arms = []
    for candidate, by_round in sorted(sessions.items()):
        arm = arm_of(run, candidate)
        pairs = [(mine, solo[number][1]) for number, (_, mine) in by_round.items() if number in solo]
        seen = [mine for _, mine in by_round.values()]
        found_arms.append(
            {
                "candidate": candidate,
                "label": arm.label or f"{arm.agents} agents",
                "agents": arm.agents,
                "instances": arm.instances,
                "sessions": len(seen),
                "aggregate_tok_s": _mean([one.aggregate_tok_s for one in seen]),
                "speedup": _mean([speedup(mine, alone) for mine, alone in pairs]),
                "efficiency": _mean([efficiency(mine, alone) for mine, alone in pairs]),
                "fairness": _mean([one.fairness for one in seen]),
                "ttft_p50_s": _mean([one.ttft_p50_s for one in seen]),
                "ttft_p95_s": _mean([one.ttft_p95_s for one in seen]),
                "ttft_worst_s": _mean([one.ttft_worst_s for one in seen]),
                "queue_p95_s": _mean([one.queue_p95_s for one in seen]),
                "deferred": sum(one.deferred for one in seen),
                "rejected": sum(one.rejected for one in seen),
                "failures": _added([one.failures for one in seen]),
                "guide_speedup": _mean([one.guide_speedup for one in seen]),
                "guide_efficiency": _mean([one.guide_efficiency for one in seen]),
                "per_agent": [asdict(agent) for agent in seen[-1].agents],
            }
        )
    loads = _loads(sessions, run) if run.plan.get("saturation") else []
    return {
        "arms": found_arms,
        "saturation": [asdict(load) for load in loads],
        "knee": knee(loads) if loads else None,
        "guide_formula": GUIDE_WORDS,
    }


def _loads(sessions: dict[str, dict[int, tuple[Session, Figures]]], run: Run) -> list[Load]:
    loads = []
    for candidate, by_round in sessions.items():
        logs = [math.log(mine.aggregate_tok_s) for _, mine in by_round.values()]
        middle = statistics.fmean(logs)
        half = (
            t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
            if len(logs) > 1
            else math.inf
        )
        tails = [mine.ttft_p95_s for _, mine in by_round.values() if mine.ttft_p95_s is not None]
        loads.append(
            Load(
                arm_of(run, candidate).agents,
                math.exp(middle),
                math.exp(middle - half),
                math.exp(min(700.0, middle + half)),
                statistics.fmean(tails) if tails else None,
            )
        )
    return sorted(loads, key=lambda load: load.agents)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _added(counts: Sequence[Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total
