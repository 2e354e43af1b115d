"""Runs with several agents: which arms are compared, who takes part in each, and which servers they need.

Arms are trials: `c0` is one agent alone doing all the work, measured in the same rounds as the others. The arms of a
run are in its plan, so that a resumed worker and every reader see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chimera.backends.address import is_local, normalise_url, same_server
from chimera.backends.base import Backend
from chimera.backends.detect import open_backend
from chimera.backends.ollama_start import StartedOllama, command, store_of
from chimera.domain.options import Options
from chimera.domain.run import Run, Target, Trial
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.errors import BackendUnavailable, ConfigError
from chimera.measure.agents import Crew
from chimera.measure.live import LiveRequest
from chimera.model.memory import forecast
from chimera.telemetry.settling import settle
from chimera.tuning.plan import Plan

from .launch import fresh_seed
from .planning import Survey

if TYPE_CHECKING:
    from chimera.store.journal import Journal

METRICS: tuple[Metric, ...] = (
    "aggregate_tok_s", "worst_ttft_s", "completion_s", "vram_bytes", "energy_j_per_token"
)  # fmt: skip
_SLOTS = {"ollama": "start it with OLLAMA_NUM_PARALLEL={}", "llama_server": "start it with --parallel {}"}
"""How a server that is not ours gets so many slots, by its kind."""


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
    each: tuple[dict[str, Any], ...] = ()
    """What agents ask for beside the trial's options, in turn; empty: nothing."""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Arm:
        """From the plan of a run."""
        return cls(**{**facts, "urls": tuple(facts.get("urls", ())), "each": tuple(facts.get("each", ()))})

    def options(self, base: Options) -> tuple[Options, ...]:
        """What the agents ask for, in turn."""
        return tuple(Options.of(one).over(base) for one in self.each) or (base,)


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
    starts: Sequence[str] = (),
    base: Options | None = None,
    each: Sequence[Options] = (),
    can_parallel: bool,
    owned: bool,
    held_bytes: float = 0.0,
    rounds: int = 6,
    seed: int | None = None,
    name: str | None = None,
) -> Run:
    """A run that compares agents in interleaved rounds.

    One count compares the ways to serve that many agents: as the server is, with as many slots, with as many instances.
    Several counts measure saturation: the same work by 1, 2, 4 ... agents.

    Args:
        journal: Where it is kept.
        target: The first server.
        known: Of it.
        workload: `requests` are each agent's at the highest count.
        counts: Numbers of agents.
        urls: Addresses of the instances, the first server's among them.
        starts: Those of them that the worker starts itself.
        base: Options of every arm.
        each: What agents ask for beside them, in turn; empty: nothing.
        can_parallel: The number of slots can be set.
        owned: The server is an engine of ours, of which there can be more.
        held_bytes: GPU memory that the first server holds now: it is free for its own next load.
        rounds: Each arm once in every round.
        seed: Of orders and prompts.
        name: For the user.

    Raises `ConfigError` for counts that make no sense.
    """
    if any(count < 1 for count in counts) or max(counts, default=0) < 2:
        raise ConfigError("--agents wants 2 or more, or several counts like 1,2,4,8.")
    most = max(counts)
    if len(each) > most:
        raise ConfigError(f"Options for {len(each)} agents were given, but there are {most} at most.")
    if len(counts) > 1 and urls:
        raise ConfigError("Saturation (several counts) is measured on one server: leave --instances out.")
    draft = _Draft(known, base or Options(), tuple(each), can_parallel=can_parallel, owned=owned, held=held_bytes)
    draft.total = workload.requests * most
    if len(counts) > 1:
        draft.saturation(counts)
    else:
        draft.ways(counts[0], urls)
    if len(draft.trials) < 2:
        raise ConfigError(f"Nothing is left to compare: {'; '.join(draft.ruled_out.values())}")
    plan = Plan(
        trials=tuple(draft.trials),
        seed=fresh_seed() if seed is None else seed,
        objective="aggregate_tok_s",
        metrics=METRICS,
        preflight=0,
        screen_rounds=rounds,
        confirm=False,
        by_options=False,
        confirmed=len(draft.trials) - 1,
    )
    return journal.create_run(
        "agents",
        target,
        replace(workload, agents=most, instances=max(arm.instances for arm in draft.arms.values())),
        seed=plan.seed,
        trials=draft.trials,
        plan={
            "rules": plan.as_dict(),
            "settings": {},
            "arms": {candidate: asdict(arm) for candidate, arm in draft.arms.items()},
            "ruled_out": draft.ruled_out,
            "starts": list(starts),
            "saturation": len(counts) > 1,
            "lenient": [],
        },
        name=name,
    )


class _Draft:
    """Arms as they are put together."""

    def __init__(
        self, known: Survey, base: Options, each: tuple[Options, ...], *, can_parallel: bool, owned: bool, held: float
    ) -> None:
        self.known, self.base, self.each = known, base, each
        self.can_parallel, self.owned, self.held = can_parallel, owned, held
        self.total = 0
        self.trials: list[Trial] = []
        self.arms: dict[str, Arm] = {}
        self.ruled_out: dict[str, str] = {}

    def saturation(self, counts: Sequence[int]) -> None:
        """The same server, the same work, by more and more agents."""
        base, most = self.base, max(counts)
        slots = (
            base if base.num_parallel or not (self.owned and self.can_parallel) else replace(base, num_parallel=most)
        )
        for count in sorted({1, *counts}):
            self._add("1 agent" if count == 1 else f"{count} agents", count, slots)

    def ways(self, count: int, urls: Sequence[str]) -> None:
        """The ways to serve so many agents."""
        base = self.base
        self._add("1 agent" + (", the first one's options" if self.each else ""), 1, base)
        self._add(f"{count} agents, server as it is", count, base)
        if self.can_parallel and base.num_parallel is None and self.known.defaults.num_parallel != count:
            self._add(f"{count} agents, {count} slots", count, replace(base, num_parallel=count))
        if urls:
            self._add(f"{count} agents, {len(urls)} instances", count, base, len(urls), urls)
        elif self.owned:
            self._add(f"{count} agents, {count} instances", count, base, count)
        slots = base.num_parallel or self.known.defaults.num_parallel
        if not self.can_parallel and (slots is None or slots < count):
            how = _SLOTS.get(self.known.server.kind, "see its manual").format(count)
            self._rule_out(f"{count} agents, {count} slots", f"this server's slots are those of its start: {how}.")

    def _add(self, label: str, agents: int, options: Options, instances: int = 1, where: Sequence[str] = ()) -> None:
        each = self.each[:1] if agents == 1 else self.each
        loads = {one.load for one in each}
        reason = None
        if self.owned and len(loads) > 1 and instances < agents:
            reason = "its agents ask for different load options, and an engine of our own has those of its start."
        elif not where or all(is_local(url) for url in where):
            reason = self._does_not_fit(options, instances)
        if reason:
            self._rule_out(label, reason)
            return
        candidate = self._next()
        self.trials.append(
            Trial(candidate, "candidate" if self.trials else "baseline", requested=options, notes=(label,))
        )
        self.arms[candidate] = Arm(
            agents, max(1, self.total // agents), instances, tuple(where), label, tuple(one.as_dict() for one in each)
        )

    def _next(self) -> str:
        return f"c{len(self.arms) + len(self.ruled_out)}"

    def _rule_out(self, label: str, reason: str) -> None:
        self.ruled_out[self._next()] = f"{label}: {reason}"

    def _does_not_fit(self, options: Options, instances: int) -> str | None:
        """Why so many instances will not fit, by the forecast; None where they do or nobody can tell."""
        known = self.known
        if instances < 2 or known.shape is None or known.gpu_free_bytes is None or known.gpus == 0:
            return None
        wanted = 0
        for number in range(instances):
            asked = (self.each[number % len(self.each)] if self.each else Options()).over(options)
            needs = forecast(
                known.shape,
                asked.num_ctx or known.defaults.num_ctx or 4096,
                num_parallel=asked.num_parallel or 1,
                num_gpu=asked.num_gpu,
                kv_type=asked.kv_cache_type or "f16",
                num_batch=asked.num_batch,
                flash_attention=asked.flash_attention,
            ).gpu.bytes
            if needs is None:
                return None
            wanted += needs
        free = known.gpu_free_bytes + self.held
        if wanted <= free:
            return None
        return (
            f"{instances} instances need {wanted / 2**30:.1f} GiB of GPU memory by the forecast, and "
            f"{free / 2**30:.1f} GiB are free for them. Use fewer layers, a smaller context, or slots instead."
        )


class Crews:
    """Opens the servers that arms need beside the run's own, and closes them at the end.

    Args:
        run: Whose arms.
        backend: The run's own server.
        journal: Where it is noted.
        free: Free bytes of all GPUs now, None where nobody can tell.
    """

    def __init__(self, run: Run, backend: Backend, journal: Journal, free: Callable[[], float | None]) -> None:
        self._run = run
        self._backend = backend
        self._journal = journal
        self._stack = AsyncExitStack()
        self._more: list[Backend] = []
        self._by_url: dict[str, Backend] = {}
        self._remembered: dict[str, dict[str, Any]] = {}
        """What servers that are not ours were like, by address."""
        self._used: set[str] = set()
        """Addresses whose server has a model of ours loaded."""
        self._free = free

    async def prepare(self, arms: Iterable[Arm], options: Mapping[str, Options]) -> bool:
        """Reach every server that arms name, start those that are to be started; whether something is to be put back.

        Args:
            arms: Of the run.
            options: Of its trials.

        Raises `ConfigError` where one serves another model or would have to reload without a yes, and `BackendError`
        kinds where one cannot be reached, with the command that starts it.
        """
        touched = False
        starts = {normalise_url(url) for url in self._run.plan.get("starts", ())}
        urls = dict.fromkeys(normalise_url(url) for arm in arms for url in arm.urls)
        model = await self._backend.model() if urls else None
        for url in urls:
            if same_server(url, self._run.target.url):
                self._by_url[url] = self._backend
                continue
            assert model is not None
            store = store_of(model.path)
            if url in starts:
                await self._start(url, StartedOllama(url, store))
            try:
                other = await self._open(replace(self._run.target, url=url, model=model.name))
            except BackendUnavailable as error:
                hint = f" To start it: {command(url, store)}" if self._run.target.kind == "ollama" else ""
                raise BackendUnavailable(f"{error}{hint}") from error
            theirs = await other.model()
            if theirs.digest != model.digest or theirs.name != model.name:
                raise ConfigError(
                    f"{url} serves {theirs.name} ({theirs.digest}), not {model.name} ({model.digest}): instances can "
                    "only be compared on the same model. Pull or load the same one there."
                )
            if url not in starts:
                if not self._run.target.assume_yes:
                    for asked in options.values():
                        if words := await other.would_reload(asked):
                            raise ConfigError(f"{words} Say yes with --yes, or in the UI when it asks.")
                if remembered := await other.remember():
                    self._journal.remember(self._run.id, url, remembered)
                    self._remembered[url] = remembered
                    touched = True
            else:
                self._remembered[url] = await other.remember()
            self._by_url[url] = other
        return touched

    async def _start(self, url: str, server: StartedOllama) -> None:
        self._stack.push_async_callback(server.close)
        await server.start()
        self._journal.log(self._run.id, f"started a further Ollama at {url}; it ends with this run", "notice")

    async def crew(self, arm: Arm, options: Options, lanes: Sequence[LiveRequest]) -> Crew:
        """The crew of an arm's session; servers that take no part are left as they were before the run."""
        if arm.urls:
            where = [normalise_url(url) for url in arm.urls]
            servers = [self._by_url[url] for url in where]
        else:
            where, servers = [], [self._backend]
            if self._backend.owned:
                while len(self._more) < arm.instances - 1:
                    self._more.append(await self._open(self._run.target))
                servers += self._more[: arm.instances - 1]
        # One that takes no part must not take memory either.
        for idle in self._more[len(servers) - 1 :]:
            await idle.close()
        for url in sorted(self._used - set(where)):
            await self._by_url[url].restore(self._remembered.get(url, {}))
        self._used = {url for url in where if self._by_url[url] is not self._backend}
        return Crew(tuple(servers), arm.options(options), tuple(lanes[: arm.agents]), self._settle, self._free)

    async def _settle(self) -> float:
        return await settle(self._free)

    async def _open(self, target: Target) -> Backend:
        backend = open_backend(target)
        self._stack.push_async_callback(backend.close)
        await backend.connect()
        return backend

    def at(self, url: str) -> Backend | None:
        """The server at an address, where this run uses one there."""
        return self._by_url.get(url)

    async def close(self) -> None:
        """End and let go of everything that was opened here."""
        await self._stack.aclose()
