"""Plans before they start: which candidates really differ, what will not fit, how long it takes, what can be seen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from chimera.backends.base import Backend, GenerateRequest
from chimera.domain.options import OPTION_NAMES, OPTION_RANGES, SAMPLING_OPTIONS, Options, OptionValue
from chimera.domain.readings import number
from chimera.domain.run import Run, RunKind, Target, Trial
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.domain.text import plain
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.measure.prompts import PromptMaker
from chimera.measure.request import measure
from chimera.model.effective import Group, default_axis, merge
from chimera.model.memory import fits as memory_fits
from chimera.model.memory import forecast
from chimera.model.shape import ModelShape
from chimera.store.codec import decode
from chimera.tuning.estimate import Estimate, Pace, estimate, within
from chimera.tuning.plan import COHORT, FULL_GRID, Plan, confirmed_together, share_one_load
from chimera.tuning.search import grid, size
from chimera.tuning.statistics import Noise

from .launch import fresh_seed, must_have_ended

if TYPE_CHECKING:
    from chimera.store.journal import Journal

Axes = dict[str, tuple[OptionValue, ...]]
MOST_LISTED = 4096
"""Points of a space that are listed and merged; of a larger one points are drawn."""
MOST_COHORTS = 4
"""Cohorts of 8 that a space over 24 candidates gets unless a budget says otherwise."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What must be known of a server before anything is planned for it; a run's plan keeps it for later stages."""

    server: ServerInfo
    model: ModelInfo
    shape: ModelShape | None
    defaults: Options
    """What runs where nothing is asked for, as far as it can be read back."""
    gpus: int | None
    """How many GPUs the engine can use, where that is known."""
    gpu_free_bytes: float | None
    gpu_total_bytes: float | None
    cores: int | None = None
    """Physical ones of this host."""
    pace: Pace | None = None
    """How long loads and requests take here: tried where nobody had to be asked, else from earlier runs."""
    noise: Noise | None = None
    """Of an earlier run's preflight on the same server, model and workload."""

    def as_dict(self) -> dict[str, Any]:
        """For the journal; `of` is the inverse."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Survey:
        """From what `as_dict` gave."""
        return decode(cls, data)

    def groups(self, named: Sequence[tuple[str, Options]]) -> tuple[Group, ...]:
        """Configurations by effect on this server and model, in the order of their first members."""
        return tuple(
            merge(named, self.shape or self.model, self.server.kind, defaults=self.defaults or None, gpus=self.gpus)
        )

    def ruled_out(self, group: Group) -> str | None:
        """Why a configuration is not launched: the server would refuse it, or the forecast says it will not fit."""
        if group.refused:
            return group.refused
        if self.shape is None or not self.gpu_total_bytes or self.gpu_free_bytes is None or self.gpus == 0:
            return None
        if (group.requested.num_gpu if group.requested.num_gpu is not None else -1) < 0:
            return None  # the engine fits the layers itself
        options = group.effective.options
        wanted = forecast(
            self.shape,
            options.num_ctx or self.defaults.num_ctx or 4096,
            num_parallel=options.num_parallel or 1,
            num_gpu=options.num_gpu,
            kv_type=options.kv_cache_type or "f16",
            num_batch=options.num_batch,
            flash_attention=options.flash_attention,
        )
        fit = memory_fits(wanted, int(self.gpu_free_bytes), int(self.gpu_total_bytes))
        return fit.sentence if fit.answer == "does-not-fit" else None


def trials_of(groups: Sequence[Group], *, baseline: str | None) -> tuple[Trial, ...]:
    """A trial for each effect; `baseline` is the candidate that the others are compared with."""
    return tuple(
        Trial(
            group.candidates[0],
            "baseline" if group.candidates[0] == baseline else "candidate",
            requested=group.requested,
            effective=group.effective.options,
            merged=group.candidates[1:],
            notes=(*group.reasons, *group.effective.notes),
        )
        for group in groups
    )


async def survey(backend: Backend, workload: Workload) -> Survey:
    """Ask a server, and try an engine of our own with one load and one request."""
    server = await backend.connect()
    model = await backend.model()
    shape = await backend.shape()
    pace: Pace | None = None
    gpus: int | None = None
    if backend.owned:
        began = time.perf_counter()
        defaults = (await backend.load(Options())).options
        load_s = time.perf_counter() - began
        prompts = PromptMaker(fresh_seed(), workload.prompt_tokens, backend.count_tokens)
        took = []
        for number in range(2):  # the first one after a load is slower than those that count
            prompt = await prompts.make(0, number)
            timed = await measure(backend, GenerateRequest(prompt.text, workload.output_tokens), prompt, role="warmup")
            took.append(timed.measurement.total_s)
        pace = Pace(load_s, took[-1] * workload.agents)  # at most: as if they were served one after another
        gpus = 0 if defaults.num_gpu == 0 else None
    else:
        defaults = (await backend.effective()).options
    free, total = _gpu_memory()
    return Survey(server, model, shape, defaults, gpus, free, total, psutil.cpu_count(logical=False), pace)


def with_history(known: Survey, journal: Journal, workload: Workload) -> Survey:
    """The survey with the pace and the noise of the newest run of the same server, model and lengths."""
    pace, noise = known.pace, known.noise
    for run in journal.runs(model=known.model.name, limit=_LOOK_BACK):
        if pace is not None and noise is not None:
            break
        if run.server is None or (run.server.kind, run.server.url) != (known.server.kind, known.server.url):
            continue
        if _lengths(run.workload) != _lengths(workload):
            continue
        if noise is None and (said := (run.plan.get("standing") or {}).get("noise")):
            noise = decode(Noise, said)
        pace = pace or pace_of(journal, run)
    return replace(known, pace=pace, noise=noise)


_LOOK_BACK = 20
"""Runs that are looked at for an earlier pace."""


def _lengths(workload: Workload) -> tuple[object, ...]:
    return workload.prompt_tokens, workload.output_tokens, workload.agents, workload.prompt_file


def pace_of(journal: Journal, run: Run) -> Pace | None:
    """How long loads and requests of a run have taken, by their medians."""
    loads = [one.facts["load_s"] for one in journal.sessions(run.id) if one.facts.get("load_s") is not None]
    times = [row.measurement.total_s for row in journal.measurements(run.id) if row.measurement.valid]
    return Pace(statistics.median(loads), statistics.median(times)) if loads and times else None


def _gpu_memory() -> tuple[float | None, float | None]:
    """Free and total bytes of all GPUs of this host."""
    from chimera.telemetry.nvml import NvmlCollector

    collector = NvmlCollector()
    try:
        samples = collector.read(time.monotonic()).samples
    finally:
        collector.close()
    free = [number(sample.vram_free_bytes) for sample in samples]
    total = [number(sample.vram_total_bytes) for sample in samples]
    if not samples or None in free or None in total:
        return None, None
    return sum(value for value in free if value), sum(value for value in total if value)


@dataclass(frozen=True, slots=True)
class Sketch:
    """A comparing run that has not started."""

    kind: RunKind
    survey: Survey
    plan: Plan
    axes: Axes
    groups: tuple[Group, ...]
    ruled_out: dict[str, str]
    """Candidates that are not launched, each with the sentence why."""
    estimate: Estimate
    workload: Workload
    base: Options = field(default_factory=Options)

    def as_dict(self) -> dict[str, Any]:
        """For `--dry-run --json` and the Tune screen."""
        runs = self.estimate.sessions > 0  # none where every candidate has the baseline's effect
        return {
            "schema_version": 1,
            "kind": self.kind,
            "seed": self.plan.seed,
            "server": {"kind": self.survey.server.kind, "version": self.survey.server.version},
            "model": asdict(self.survey.model),
            "workload": self.workload.as_dict(),
            "objective": self.plan.objective,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "candidates": [
                {
                    "candidate": trial.candidate,
                    "role": trial.role,
                    "requested": trial.requested.as_dict(),
                    "effective": trial.effective.as_dict() if trial.effective else None,
                    "merged": list(trial.merged),
                    "notes": list(trial.notes),
                }
                for trial in self.plan.trials
            ],
            "merged": [
                {"candidate": name, "requested": requested.as_dict(), "into": group.candidates[0]}
                for group in self.groups
                for name, requested in self._asked(group)
            ],
            "ruled_out": [{"candidate": name, "reason": reason} for name, reason in self.ruled_out.items()],
            "cohorts": self.plan.cohorts_planned,
            "rounds": {
                "preflight": self.plan.preflight if runs else 0,
                "screening": self.plan.screen_rounds if runs and self.plan.screens else 0,
                "confirmation": self.estimate.rounds if runs and self.plan.confirm else 0,
            },
            "one_load": self.plan.one_load,
            "band": self.plan.band,
            "estimate": asdict(self.estimate),
            "smallest_effect": self.estimate.smallest_better,
            "noise": asdict(self.survey.noise) if self.survey.noise else None,
            "words": self.estimate.words,
        }

    def _asked(self, group: Group) -> list[tuple[str, Options]]:
        """What the merged members of a group had asked for."""
        if len(group.candidates) == 1:
            return []  # of a space that is too large to be listed none is merged
        points = [point.over(self.base) for point in grid(self.axes)]
        return [(name, points[int(name[1:]) - 1]) for name in group.candidates[1:]]


def parse_axis(
    name: str, text: str, shape: ModelShape | None, model: ModelInfo, *, cores: int | None = None
) -> tuple[OptionValue, ...]:
    """The values of one axis as typed: `0,9,18,all`, `f16,q4_0`, or `auto` for a grid that fits the model.

    Raises `ConfigError` naming the option and the value.
    """
    typed = typed_values(name, text)
    if typed is None:
        return tuple(default_axis(name, shape or model, cores=cores))
    if _ALL in typed:
        blocks = shape.block_count if shape else model.block_count
        if blocks is None:
            raise ConfigError("--num-gpu all: the model's number of layers is not known; give a number.")
        typed = [blocks + 1 if value == _ALL else value for value in typed]
    return tuple(dict.fromkeys(typed))


_ALL = "all"


def typed_values(name: str, text: str) -> list[OptionValue] | None:
    """The values of one axis as they are typed, `all` layers as that word; None for `auto`.

    What is wrong in itself is so told before a server is asked: raises `ConfigError`.
    """
    if text.strip() == "auto":
        return None
    option = f"--{name.replace('_', '-')} {text}"
    parts = [piece.strip() for piece in text.split(",")]
    return [_ALL if name == "num_gpu" and part == _ALL else _value(name, part, option) for part in parts]


def _value(name: str, part: str, typed: str) -> OptionValue:
    from chimera.domain.options import FLASH_ATTENTION, KV_CACHE_TYPES

    words: dict[str, Sequence[str]] = {"flash_attention": FLASH_ATTENTION, "kv_cache_type": KV_CACHE_TYPES}
    if name in words:
        if part not in words[name]:
            raise ConfigError(f"{typed}: {part!r} is none of {', '.join(words[name])}.")
        return part
    kind = float if name in {"temperature", "top_p", "repeat_penalty"} else int
    try:
        value = kind(part)
    except ValueError as error:
        raise ConfigError(f"{typed}: {part!r} is no number. Values are separated by commas, like 1,2,4.") from error
    low, high = OPTION_RANGES[name]
    if not low <= value <= high:
        raise ConfigError(f"{typed}: {part} is not between {low:g} and {high:g}.")
    return value


def sketch(
    kind: RunKind,
    known: Survey,
    axes: Axes,
    workload: Workload,
    *,
    base: Options | None = None,
    seed: int | None = None,
    objective: Metric = "decode_tok_s",
    rounds: int | None = None,
    confirm: bool = True,
    preflight: int | None = None,
    band: float = 0.02,
    budget_s: float | None = None,
) -> Sketch:
    """A plan over the grid of `axes`, on top of `base`, with the server's defaults as its baseline.

    Args:
        kind: `sweep` or `tune`.
        known: From `survey`.
        axes: Values by option; an empty mapping compares nothing and is refused.
        workload: Its `requests` are the measured ones a session.
        base: Settings that all candidates share, and that the baseline has too; None = the server's defaults.
        seed: Of orders and prompts; None = a fresh one.
        objective: Decides which candidates stay.
        rounds: Rounds that everything rests on without confirmation, else the most of the screening.
        confirm: Judge by fresh rounds.
        preflight: Sessions for the noise; None = 6, or none without confirmation.
        band: Differences within this share are none.
        budget_s: Longest time; shortens confirmation and search.

    Raises:
        ConfigError: nothing to compare, options that this server cannot set, or sizes that make no sense.
    """
    if not axes:
        raise ConfigError("Nothing to compare: give at least one option with several values, like --num-ctx 2048,8192.")
    seed = fresh_seed() if seed is None else seed
    base = base or Options()
    points = [point.over(base) for point in grid(axes)] if size(axes) <= MOST_LISTED else []
    groups = known.groups([("c0", base), *((f"c{index}", options) for index, options in enumerate(points, 1))])
    cohorts = 0
    if not points or len(groups) - 1 > FULL_GRID:
        cohorts = MOST_COHORTS
        groups = known.groups([("c0", base)])
    ruled_out = {group.candidates[0]: why for group in groups if (why := known.ruled_out(group))}
    trials = trials_of([group for group in groups if group.candidates[0] not in ruled_out], baseline="c0")
    if not any(trial.role == "baseline" for trial in trials):
        raise ConfigError(f"The baseline itself cannot run here: {ruled_out.get('c0', 'it is refused')}")
    count = len(trials) - 1
    one_load = set(axes) <= SAMPLING_OPTIONS if cohorts else count > 0 and share_one_load(trials)
    one_load = one_load and workload.agents == 1  # several agents take a load of their own each time
    plan = Plan(
        trials=trials,
        seed=seed,
        objective=objective,
        metrics=("decode_tok_s", "ttft_s", "vram_bytes") if not one_load else ("decode_tok_s", "ttft_s"),
        band=band,
        preflight=(6 if confirm else 0) if preflight is None else preflight,
        screen_rounds=rounds or 6,
        confirm=confirm,
        confirmed=confirmed_together(count if not cohorts else COHORT),
        confirm_rounds=None,
        one_load=one_load,
        cohorts_planned=cohorts,
    )
    if budget_s is not None and known.pace is not None:
        plan = within(plan, workload, known.pace, budget_s)
    cost = estimate(plan, workload, pace=known.pace, noise=known.noise)
    return Sketch(kind, known, plan, axes, groups, ruled_out, cost, workload, base)


def create_study(
    journal: Journal,
    target: Target,
    drawn: Sketch,
    *,
    name: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Run:
    """The run of a sketch in the journal, ready for a worker; `more` goes into its plan as it is."""
    return journal.create_run(
        drawn.kind,
        target,
        drawn.workload,
        seed=drawn.plan.seed,
        trials=list(drawn.plan.trials),
        plan={
            "rules": drawn.plan.as_dict(),
            "axes": {name: list(values) for name, values in drawn.axes.items()},
            "settings": {
                trial.candidate: trial.effective.as_dict() for trial in drawn.plan.trials if trial.effective is not None
            },
            "ruled_out": drawn.ruled_out,
            "asked": {
                group.candidates[0]: group.requested.as_dict()
                for group in drawn.groups
                if group.candidates[0] in drawn.ruled_out
            },
            "survey": drawn.survey.as_dict(),
            "lenient": [],
            **(more or {}),
        },
        name=name,
    )


def create_validation(
    journal: Journal,
    run: Run,
    *,
    candidate: str | None = None,
    rounds: int | None = None,
    seed: int | None = None,
) -> Run:
    """Fresh rounds of a run's winner, or of the named candidate, against its baseline.

    Raises `ConfigError` where the run goes on, or has no winner and none was named.
    """
    from .study import plan_of, recommendation

    must_have_ended(run)
    plan = plan_of(journal, run)
    names = {name: trial for trial in plan.trials for name in (trial.candidate, *trial.merged)}
    if candidate is None:
        chosen = recommendation(journal, run)
        if chosen.keep_default:
            raise ConfigError(f"run {run.id} has no winner to validate ({chosen.words}) Name one with --candidate.")
        candidate = chosen.candidate
    if candidate not in names:
        raise ConfigError(f"run {run.id} has no candidate {plain(candidate)!r}; it has {', '.join(names)}.")
    if names[candidate].role == "baseline":
        raise ConfigError(f"{plain(candidate)} of run {run.id} is the baseline itself: there is nothing to validate.")
    trials = (names[plan.baseline], replace(names[candidate], merged=()))
    trials = (replace(trials[0], merged=()), trials[1])
    rules = replace(
        plan,
        trials=trials,
        seed=fresh_seed() if seed is None else seed,
        preflight=0 if rounds else 6,
        confirm=True,
        confirmed=1,
        confirm_rounds=rounds,
        cohorts=(),
        cohorts_planned=0,
    )
    return journal.create_run(
        "validate",
        run.target,
        run.workload,
        seed=rules.seed,
        trials=list(trials),
        plan={
            "rules": rules.as_dict(),
            "settings": {trial.candidate: trial.effective.as_dict() for trial in trials if trial.effective is not None},
            "of": run.id,
            "lenient": [],
        },
        name=f"validation of {run.id}",
    )


def option_axes(given: Mapping[str, str | None], known: Survey) -> Axes:
    """The axes that were typed, in the options' fixed order."""
    return {
        name: parse_axis(name, text, known.shape, known.model, cores=known.cores)
        for name in OPTION_NAMES
        if (text := given.get(name)) is not None
    }
