"""Sets of measurements from files, treated as runs of our own as far as what they tell allows.

What counts is decided here by the rules that hold for every measurement: the first request of a load is discarded,
cold, cached, cut, short and failed ones are void with their reason, settings with one effect are one candidate, and
where the order of the rows cannot tell a drift from an effect there is no verdict.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import fsum
from pathlib import Path
from statistics import median
from time import time
from typing import TYPE_CHECKING, Any

from chimera.backends.wire import refusal
from chimera.domain.finding import Evidence, Finding, Remedy
from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, SessionPhase, SessionState, Target, Trial
from chimera.domain.server import Effective, ModelInfo, ServerKind
from chimera.domain.text import plain
from chimera.domain.verdict import Metric, Verdict
from chimera.domain.workload import Workload
from chimera.errors import ConfigError, OutOfMemory
from chimera.measure.request import CACHED_TOKENS_ALLOWED, COLD_LOAD_S, COLD_RATIO
from chimera.model.effective import Limits, merge
from chimera.model.shape import from_show
from chimera.tuning.plan import Outcome, Plan
from chimera.tuning.protocol import HOT_REPEATS
from chimera.tuning.statistics import drift, rounds_in_order
from chimera.tuning.verdicts import imported_verdicts

from .foreign import ForeignRow, Format, OwnRun, Sheet, parse_options, read_sheet, server_kind, text_of
from .sampler import void_as_shared
from .study import final_verdicts, outcomes, stage_plans

if TYPE_CHECKING:
    from chimera.store.journal import Journal

SHORT_SHARE = 0.9
"""An answer under this share of the commonest length is short; other rates are of other lengths."""
_RATE_TOLERANCE = 0.0005
_DRIFT_POINTS = 2000
"""Of so many sessions of the baseline a drift is told at most."""
_MERGED = "Derived: its settings have the same effect as the baseline's, so its rows are counted with it."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_NUMBERED = re.compile(r"c\d{1,9}")
_FULL_LENGTH = frozenset({"length", "limit", "max_tokens"})
_METRICS: tuple[Metric, ...] = ("decode_tok_s", "ttft_s", "vram_bytes", "energy_j_per_token")


@dataclass(frozen=True, slots=True)
class Imported:
    """A run that came from a file."""

    run: Run
    notes: tuple[str, ...]
    """What was done with the rows, one sentence each."""
    baseline: str
    """Which candidate everything is compared with, and why; empty where nothing is compared."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the user says of the model that was measured."""

    limits: Limits | None = None
    info: ModelInfo | None = None
    kind: ServerKind | None = None
    """Whose rules hold for the settings; None = what the file tells, else Ollama's."""


def import_file(
    journal: Journal,
    path: Path,
    *,
    format_: Format | None = None,
    known: Knowledge | None = None,
    baseline: str | None = None,
    output_tokens: int | None = None,
    name: str | None = None,
) -> Imported:
    """A run of kind `import` with what a file holds, its verdicts and findings.

    Args:
        journal: Where it is kept.
        path: The file.
        format_: What it is; told by the file where it is None.
        known: The model that was measured, so that settings with one effect are merged.
        baseline: `num_gpu=35 num_ctx=2048`: the configuration to compare with.
        output_tokens: Length of the answers, where the file does not tell.
        name: For the run; else the file's.

    Raises:
        ConfigError: the file cannot be read, or holds nothing; the sentence names line and column.
    """
    sheet = read_sheet(path, format_, output_tokens=output_tokens)
    known = known or Knowledge()
    title = plain(name) if name else plain(path.name)
    if sheet.own is not None:
        return _import_own(journal, sheet, sheet.own, title, path)
    return _import_rows(journal, sheet, known, baseline, title, path)


def model_of(path: Path) -> ModelInfo:
    """The model that a file with the body of Ollama's `/api/show` describes.

    Raises:
        ConfigError: the file cannot be read or is no such body.
    """
    try:
        body = json.loads(text_of(path))
    except ConfigError as error:
        raise ConfigError(f"--model-info {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"--model-info {plain(str(path))}: is not JSON that can be read ({plain(str(error))})."
        ) from error
    if not isinstance(body, dict):
        raise ConfigError(f"--model-info {plain(str(path))}: is not the body of /api/show.")
    try:
        return from_show(body).info()
    except ConfigError as error:
        raise ConfigError(f"--model-info {plain(str(path))}: {error}") from error


def imported_table(journal: Journal, run: Run) -> list[Verdict]:
    """The verdicts of an imported run that follows no plan of ours, anew from its sessions; none without a plan."""
    about = run.plan.get("import", {})
    if "rules" not in about:
        return []
    plan = Plan.of([replace(one, effective=None) for one in journal.trials(run.id)], run.seed, about["rules"])
    if not plan.candidates and not plan.trials[0].merged:
        return []
    counted = _pooled(_without_hot(outcomes(journal, run, plan)))
    rows = imported_verdicts(plan, counted, in_rounds=bool(about.get("in_rounds", True)))
    like = {name for trial in plan.trials for name in trial.merged}
    return [replace(row, reason=_MERGED) if row.candidate in like else row for row in rows]


# ---- rows of other programs ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Config:
    """A configuration as the file spells it."""

    options: Options
    extra: str | None
    label: str | None
    baseline: bool = False
    effective: Effective | None = None
    name: str = ""
    rank: str = ""
    """Name of the candidate that it is one of."""


@dataclass(slots=True)
class _Load:
    """A session of the file: one load of one configuration, as far as that can be told."""

    config: _Config
    rows: list[ForeignRow]
    number: int | None
    phase: SessionPhase
    round: int | None
    requests: list[Measurement] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    shared: bool = False
    """Another program computed on the GPU, so that it does not count."""

    @property
    def state(self) -> SessionState:
        return "done" if any(one.valid for one in self.requests) and not self.shared else "void"

    @property
    def void_reason(self) -> VoidReason | None:
        if self.state == "done":
            return None
        if self.shared and any(one.valid for one in self.requests):
            return "shared-gpu"
        if "same_as" in self.facts:
            return "same-settings"
        reasons = Counter(one.void_reason for one in self.requests if one.void_reason)
        return reasons.most_common(1)[0][0] if reasons else "error"

    @property
    def started(self) -> float | None:
        return next((row.measurement.started_at for row in self.rows if row.timed and row.measurement), None)


def _import_rows(
    journal: Journal, sheet: Sheet, known: Knowledge, wanted: str | None, title: str, path: Path
) -> Imported:
    kind = server_kind(sheet, known.kind)
    notes = list(sheet.notes)
    rows = list(sheet.rows)
    if all(row.order is not None for row in rows):
        rows.sort(key=lambda row: row.order or 0)
    configs, of_row = _configs(path, rows)
    base, why = _baseline(configs, wanted, known, kind)
    reasons = _resolve(configs, base, known, kind)
    loads = _loads(path, rows, of_row, sheet)
    named = {config.label: config.rank for config in configs if config.label is not None}
    for load in loads:
        if (stays := load.facts.pop("same_as", None)) in named:
            load.facts["same_as"] = named[stays]
    clients: dict[str, int] = {}
    for load in loads:
        seen_in = {(one.instance, one.agent) for row in load.rows if (one := row.measurement)}
        clients[load.config.rank] = max(clients.get(load.config.rank, 0), len(seen_in))
    compared = len(clients) > 1
    # Of one candidate the most, as a client may have failed before it left a row.
    crews = len({most for most in clients.values() if most}) > 1
    for load in loads:
        load.shared = void_as_shared(load.facts, compared=compared, crews=crews)
    _judge_rows(loads, sheet, notes)
    in_rounds = _rounds(loads, sheet, notes)
    trials = _trials(configs, base, reasons)
    # Every figure of a verdict is computed from the sessions as they are kept, the same way for each later look.
    seen: set[Metric] = {"decode_tok_s", "ttft_s"}
    for metric, fact in (("vram_bytes", "vram_peak_bytes"), ("energy_j_per_token", "energy_j_per_token")):
        if any(fact in load.facts for load in loads):
            seen.add(metric)  # type: ignore[arg-type]  # one of the words above
    plan = Plan(trials, 0, metrics=tuple(one for one in _METRICS if one in seen), preflight=0, confirm=False)
    about = {
        "file": plain(path.name),
        "format": sheet.format,
        "in_rounds": in_rounds,
        "baseline": why,
        "rules": plan.as_dict(),
    }
    model = known.info or sheet.model
    numbers = [load.number for load in loads]
    keep = all(number is not None and number > 0 for number in numbers) and len(set(numbers)) == len(numbers)
    sessions = [_session(load, load.number if keep and load.number else place) for place, load in enumerate(loads, 1)]
    run = journal.create_run(
        "import",
        # What a file of weights or its description calls the model is no name on a server.
        Target(kind, None, sheet.model.name if sheet.model and sheet.format == "ollama-bench" else None),
        _workload(sheet, loads),
        seed=0,
        trials=trials,
        plan={"import": about},
        name=title,
    )
    with _Kept(journal, run, sheet, model, plain(path.name)):
        for config in configs:
            if config.effective is not None and config.name == config.rank:
                journal.set_effective(run.id, config.name, config.effective)
        now = time()
        ended: list[tuple[Session, Sequence[Measurement]]] = []
        for load, session in zip(loads, sessions, strict=True):
            timed = [row.timed for row in load.rows if row.measurement is not None]
            kept = [
                one if told else replace(one, started_at=now) for told, one in zip(timed, load.requests, strict=True)
            ]
            ended.append((session, kept))
        journal.add_sessions(run.id, ended)
        fresh = journal.run(run.id)
        journal.set_verdicts(run.id, imported_table(journal, fresh))
        journal.set_findings(run.id, _findings(journal, fresh, plan, loads, reasons, in_rounds))
        for note in (*notes, *((f"Compared with {base.name}: {why}",) if len(configs) > 1 else ())):
            journal.log(run.id, note, "notice")
    return Imported(journal.run(run.id), tuple(notes), why if len(configs) > 1 else "")


class _Kept:
    """Keeps an import whole: it is there with all that belongs to it, or not at all."""

    def __init__(self, journal: Journal, run: Run, sheet: Sheet, model: ModelInfo | None, file: str) -> None:
        self._journal, self._run, self._sheet, self._model, self._file = journal, run, sheet, model, file
        self._lock = journal.worker_lock(run.id)

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._journal.set_state(self._run.id, "running")
        self._journal.identify(
            self._run.id, server=self._sheet.server, model=self._model, host=self._sheet.host, gpus=self._sheet.gpus
        )
        self._journal.log(self._run.id, f"imported from {self._file}")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._journal.set_state(self._run.id, "done")
        self._lock.__exit__(None, None, None)
        if kind is not None:
            self._journal.delete(self._run.id)


# Which configurations there are, and which of them is the baseline


def _configs(path: Path, rows: Sequence[ForeignRow]) -> tuple[list[_Config], list[_Config]]:
    """The configurations in the order in which they first come, and that of each row."""
    found: dict[tuple[str | None, Options, str | None], _Config] = {}
    labels: dict[str, tuple[Options, int]] = {}
    of_row = []
    for row in rows:
        if row.label is not None:
            options, line = labels.setdefault(row.label, (row.options, row.line))
            if options != row.options:
                raise ConfigError(
                    f"{plain(str(path))}:{row.line}: candidate {row.label} has {row.options} here and {options} on "
                    f"line {line}. Give each configuration a name of its own."
                )
        config = found.setdefault(
            (row.label, row.options, row.extra), _Config(row.options, row.extra, row.label, name="")
        )
        config.baseline = config.baseline or row.baseline
        of_row.append(config)
    return list(found.values()), of_row


def _baseline(
    configs: Sequence[_Config], wanted: str | None, known: Knowledge, kind: ServerKind
) -> tuple[_Config, str]:
    """What everything is compared with, and the sentence that says why."""
    if wanted is not None:
        asked = parse_options(wanted, "--baseline")
        same = [one for one in configs if one.options == asked]
        if not same and known.limits is not None:
            same = [one for one in configs if len(merge([("a", one.options), ("b", asked)], known.limits, kind)) == 1]
        if not same:
            there = "; ".join(str(one.options) for one in configs[:8])
            raise ConfigError(f"--baseline {asked}: no row has these settings. There are: {there}.")
        return same[0], f"{_spelled(same[0])}, as asked for with --baseline."
    named = [one for one in configs if one.label == "c0"]
    if named:
        return named[0], f"{_spelled(named[0])}, which the file names c0."
    marked = [one for one in configs if one.baseline]
    if len(marked) == 1:
        return marked[0], f"{_spelled(marked[0])}, which the file marks as the baseline."
    if marked:
        effects = merge([(str(place), one.options) for place, one in enumerate(marked)], known.limits, kind)
        if known.limits is None or len(effects) > 1:
            there = "; ".join(str(one.options) for one in marked[:8])
            raise ConfigError(
                f"The file marks several configurations as the baseline ({there}): name it with --baseline."
            )
        return marked[0], f"{_spelled(marked[0])}, which the file marks as the baseline."
    silent = [one for one in configs if one.options in (Options(), Options(num_gpu=-1))]
    if len(silent) == 1 and len(configs) > 1:
        return silent[0], f"{_spelled(silent[0])}: the rows that ask for nothing."
    return configs[0], f"{_spelled(configs[0])}: the first in the file, as none is marked. --baseline names another."


def _spelled(config: _Config) -> str:
    return " ".join(part for part in (str(config.options), f"({config.extra})" if config.extra else "") if part)


def _resolve(
    configs: Sequence[_Config], base: _Config, known: Knowledge, kind: ServerKind
) -> dict[str, tuple[str, ...]]:
    """Give names, and find which configurations are one; returns sentences by candidate."""
    labels = [config.label for config in configs]
    ours = all(label is not None and _NAME.fullmatch(label) for label in labels)
    place = 1
    for config in configs:
        if ours and config.label is not None:
            config.name = config.label
        elif config is base:
            config.name = "c0"
        else:
            config.name, place = f"c{place}", place + 1
        config.rank = config.name
    reasons: dict[str, tuple[str, ...]] = {}
    if known.limits is None:
        return reasons
    first = [base, *(config for config in configs if config is not base)]
    by_name = {config.name: config for config in configs}
    for extra in dict.fromkeys(config.extra for config in first):
        alike = [(config.name, config.options) for config in first if config.extra == extra]
        for group in merge(alike, known.limits, kind):
            rank = group.candidates[0]
            for name in group.candidates:
                by_name[name].rank = rank
                by_name[name].effective = None if group.refused else group.effective
            said = (*group.reasons, *((f"The server would refuse this: {group.refused}",) if group.refused else ()))
            if said:
                reasons[rank] = said
    return reasons


def _trials(configs: Sequence[_Config], base: _Config, reasons: Mapping[str, tuple[str, ...]]) -> tuple[Trial, ...]:
    trials = []
    others = [one for one in configs if one is not base]
    if all(_NUMBERED.fullmatch(one.name) for one in others):  # rounds are in random order, candidates are not
        others.sort(key=lambda one: int(one.name[1:]))
    for config in [base, *others]:
        if config.rank != config.name:
            continue
        notes = (*((config.extra,) if config.extra else ()), *reasons.get(config.name, ()))
        trials.append(
            Trial(
                config.name,
                "baseline" if config is base else "candidate",
                config.options,
                merged=tuple(one.name for one in configs if one.rank == config.name and one is not config),
                notes=notes,
            )
        )
    return tuple(trials)


# Sessions and rounds


def _loads(path: Path, rows: Sequence[ForeignRow], of_row: Sequence[_Config], sheet: Sheet) -> list[_Load]:
    """The rows by session: as the file numbers them, else by round, else each stretch of one configuration."""
    for column in ("session", "round"):
        if column in sheet.columns and sheet.format == "csv":
            told = [row for row in rows if getattr(row, column) is not None]
            lacking = next((row for row in rows if getattr(row, column) is None), None)
            if told and lacking is not None:
                raise ConfigError(
                    f"{plain(str(path))}:{lacking.line}: column {column} is empty here and not elsewhere."
                )
    loads: dict[tuple[object, ...], _Load] = {}
    stretch = 0
    before: tuple[object, ...] | None = None
    for row, config in zip(rows, of_row, strict=True):
        here = (id(config), row.phase_said)
        if row.session is not None:
            key: tuple[object, ...] = (row.session, id(config), row.phase)
        elif row.round is not None:
            key = (row.phase_said, row.round, id(config))
        else:
            stretch += here != before
            key = (stretch,)
        before = here
        load = loads.setdefault(key, _Load(config, [], row.session, row.phase, row.round))
        if load.round != row.round:
            raise ConfigError(
                f"{plain(str(path))}:{row.line}: session {row.session} is of round {load.round} before, and of "
                f"{row.round} here."
            )
        load.rows.append(row)
        load.facts |= row.facts
    return list(loads.values())


def _rounds(loads: list[_Load], sheet: Sheet, notes: list[str]) -> bool:
    """Number the rounds; False where the order of the file cannot tell a drift from an effect."""
    for load in loads:
        if load.config.options is not None and load.config.rank != load.config.name:
            load.facts.setdefault("requested", load.config.options.as_dict())
    compared = [load for load in loads if load.phase != "preflight"]
    if all(load.round is not None for load in loads):
        in_time = compared
        if all(load.started is not None for load in compared):
            in_time = sorted(compared, key=lambda load: load.started or 0.0)
        for phase in dict.fromkeys(load.phase for load in compared):
            order = [load.round or 0 for load in in_time if load.phase == phase]
            several = len({load.config.rank for load in compared if load.phase == phase}) > 1
            if several and any(later < earlier for earlier, later in pairwise(order)):
                notes.append(
                    "The column `round` counts repetitions: its rounds were not run one after the other, so a drift "
                    "between them would look like an effect."
                )
                return False
        return True
    done = [load for load in compared if load.state == "done"]
    if len({load.config.rank for load in done}) < 2:
        _number(compared, None)
        return True
    found = rounds_in_order([str(id(load.config)) for load in done])
    _number(compared, dict(zip(map(id, done), found, strict=True)) if found else None)
    for place, load in enumerate((load for load in loads if load.phase == "preflight"), 1):
        load.round = place
    if found is None:
        notes.append(
            "Configurations were measured one after the other, not in turns: a drift between them would look like an "
            "effect, so no verdict is given."
        )
        return False
    notes.append(f"No column `round`: by the order of the rows they make {max(found)} rounds.")
    return True


def _number(loads: Iterable[_Load], known: Mapping[int, int] | None) -> None:
    times: Counter[int] = Counter()
    last = 1
    for load in loads:
        times[id(load.config)] += 1
        last = load.round = times[id(load.config)] if known is None else known.get(id(load), last)


def _session(load: _Load, seq: int) -> Session:
    ended = [row.measurement.started_at + row.measurement.total_s for row in load.rows if row.timed and row.measurement]
    return Session(
        seq,
        load.config.rank,
        round=max(1, load.round or 1),
        phase=load.phase,
        state=load.state,
        void_reason=load.void_reason,
        started_at=load.started if load.started is not None else time(),
        ended_at=max(ended, default=None),
        facts=load.facts,
    )


def _workload(sheet: Sheet, loads: Sequence[_Load]) -> Workload:
    requests = [one for load in loads for one in load.requests if one.role == "measure"]
    base = sheet.workload or Workload()
    prompt = _commonest([one.prompt_tokens for one in requests])
    output = _commonest([one.completion_tokens for one in requests])
    per_load = _commonest([sum(one.role == "measure" for one in load.requests) for load in loads])
    return replace(
        base,
        prompt_tokens=prompt or base.prompt_tokens,
        output_tokens=output or base.output_tokens,
        requests=per_load or base.requests,
        agents=max((len({one.agent for one in load.requests}) for load in loads), default=1) or 1,
        instances=max((len({one.instance for one in load.requests}) for load in loads), default=1) or 1,
    )


def _commonest(values: Iterable[int | None]) -> int | None:
    found = Counter(value for value in values if value)
    return found.most_common(1)[0][0] if found else None


# What counts


def _judge_rows(loads: Sequence[_Load], sheet: Sheet, notes: list[str]) -> None:
    """Decide for every row what it is; nothing is void because of how fast it was."""
    every = [row.measurement for load in loads for row in load.rows if row.measurement is not None]
    warm = _warm_limit([one.load_s for one in every if one.load_s is not None])
    length = _length([one.completion_tokens for one in every if one.void_reason is None and not one.error])
    prompt = _length([one.prompt_tokens for one in every])
    count: Counter[str] = Counter()
    for load in loads:
        said = [row for row in load.rows if row.measurement is not None]
        of_agent = Counter((row.measurement.instance, row.measurement.agent) for row in said if row.measurement)
        begun: set[tuple[int, int]] = set()
        for row in said:
            assert row.measurement is not None
            one, corrected = _rated(row.measurement) if sheet.format == "csv" else (row.measurement, "kept")
            count[corrected] += 1
            agent = (one.instance, one.agent)
            if not row.role_told and agent not in begun and of_agent[agent] > 1:
                one = replace(one, role="warmup")
                count["first"] += 1
            begun.add(agent)
            if not row.cold_told and one.load_s is not None and one.load_s > warm:
                one = replace(one, cold=True)
            window = (load.config.effective.options if load.config.effective else load.config.options).num_ctx
            reason, why = _void(one, length, prompt, window, "void_reason" in sheet.columns)
            if reason is not None and one.void_reason is None:
                count[f"void {reason}"] += 1
                one = replace(one, void_reason=reason, error=one.error or why)
            load.requests.append(one)
        if not load.requests:
            load.facts.setdefault("error", next((row.error for row in load.rows if row.error), None))
        words = [one.error for one in load.requests if one.error]
        if load.state == "void" and "failure" not in load.facts and words and len(words) == len(load.requests):
            said_no = refusal(None, {"error": words[0]}, where="the file")
            if isinstance(said_no, OutOfMemory):
                load.facts["failure"] = "out-of-memory"
    if count["first"]:
        notes.append(
            f"No column `role`: the first request of each of {count['first']} loads was taken for the discarded one."
        )
    voids = {name.removeprefix("void "): n for name, n in count.items() if name.startswith("void ")}
    if voids:
        told = ", ".join(f"{n} {name}" for name, n in sorted(voids.items()))
        notes.append(f"Rows that do not count: {told}.")
    if count["corrected"]:
        notes.append(
            f"The rate of {count['corrected']} rows was tokens / decode time; (n-1) / time is kept, as of all runs."
        )
    if count["computed"]:
        notes.append(f"The rate of {count['computed']} rows was computed as (n-1) / decode time.")
    if count["client"]:
        notes.append(f"The rate of {count['client']} rows is the client's: (n-1) / (total - TTFT).")
    untimed = sum(not row.timed for load in loads for row in load.rows)
    if untimed:
        notes.append("The file does not tell when its requests were sent: their order is kept, and the time of import.")


def _warm_limit(loads_s: Sequence[float]) -> float:
    """Seconds over which a load is a cold one: 5x the warm median, at least 0.5 s."""
    if not loads_s:
        return COLD_LOAD_S
    first = max(COLD_LOAD_S, COLD_RATIO * min(loads_s))
    return max(COLD_LOAD_S, COLD_RATIO * median(one for one in loads_s if one <= first))


def _length(counts: Sequence[int | None]) -> int | None:
    """The commonest number of tokens, where one comes more than once."""
    found = Counter(count for count in counts if count)
    if not found:
        return None
    length, times = max(found.items(), key=lambda item: (item[1], item[0]))
    return length if times > 1 else None


def _rated(one: Measurement) -> tuple[Measurement, str]:
    """The request with its decode rate as (n-1) / time where its parts tell it, and what was done."""
    n = one.completion_tokens or 0
    if one.decode_tok_s is not None:
        if n < 2 or not one.decode_s:
            return one, "kept"
        right, high = (n - 1) / one.decode_s, n / one.decode_s
        if _near(one.decode_tok_s, high) and not _near(one.decode_tok_s, right):
            return replace(one, decode_tok_s=right), "corrected"
        return one, "kept"
    if one.client_decode_tok_s is not None or n < 2:
        return one, "kept"
    if one.decode_s:
        return replace(one, decode_tok_s=(n - 1) / one.decode_s, timing_source="server"), "computed"
    if one.ttft_s is not None and one.total_s > one.ttft_s:
        return replace(one, client_decode_tok_s=(n - 1) / (one.total_s - one.ttft_s)), "client"
    return one, "kept"


def _near(value: float, other: float) -> bool:
    return abs(value - other) <= _RATE_TOLERANCE * other


def _void(
    one: Measurement, length: int | None, prompt: int | None, window: int | None, judged: bool
) -> tuple[VoidReason | None, str | None]:
    """The first rule that makes a row void, with a sentence where the reason alone says too little."""
    tokens = one.completion_tokens
    if one.error:
        return "error", None
    if tokens == 0:
        return "error", "No token came."
    if one.decode_tok_s == 0 or (one.decode_s == 0 and (tokens or 0) > 1):
        return "error", "No decode time: this is no measurement."
    if (one.finish_reason or "").lower() == "truncated":
        return "truncated", None
    if (
        one.prompt_tokens is not None
        and prompt is not None
        and window is not None
        and prompt + (length or 0) > window
        and one.prompt_tokens < SHORT_SHARE * prompt
    ):
        return "truncated", f"{one.prompt_tokens} of {prompt} prompt tokens were evaluated in a context of {window}."
    if one.role == "measure" and one.cold:
        return "reload-inside", None
    if tokens is not None and length is not None and tokens < length:
        ended = one.finish_reason is not None and one.finish_reason.lower() not in _FULL_LENGTH
        if ended or tokens < SHORT_SHARE * length:
            return "short-output", f"{tokens} tokens where {length} are the commonest length."
    # With a fixed prompt the cache answers on purpose; then nobody claims a TTFT.
    if (one.cached_tokens or 0) > CACHED_TOKENS_ALLOWED and not (judged and one.ttft_s is None):
        return "cache-hit", None
    return None, None


# Verdicts and findings


def _without_hot(seen: Sequence[Outcome]) -> list[Outcome]:
    """Without the rounds that the protocol repeated for heat: at most two in a row, the next then counts."""
    hot = {(one.session.phase, one.session.round) for one in seen if one.hot and one.session.state == "done"}
    aside: set[tuple[SessionPhase, int]] = set()
    for phase in dict.fromkeys(one.session.phase for one in seen):
        repeats = 0
        for number in sorted({one.session.round for one in seen if one.session.phase == phase}):
            if phase != "preflight" and (phase, number) in hot and repeats < HOT_REPEATS:
                aside.add((phase, number))
                repeats += 1
            else:
                repeats = 0
    return [one for one in seen if (one.session.phase, one.session.round) not in aside]


def _pooled(seen: Sequence[Outcome]) -> list[Outcome]:
    """Sessions of one candidate in one round as one: spellings of the same setting that were all measured."""
    cells: dict[tuple[SessionPhase, int, str], list[Outcome]] = {}
    rest = []
    for one in seen:
        if one.session.state == "done" and one.costs:
            cells.setdefault((one.session.phase, one.session.round, one.session.candidate), []).append(one)
        else:
            rest.append(one)
    pooled = []
    for several in cells.values():
        metrics = dict.fromkeys(metric for one in several for metric in one.costs)
        costs = {
            metric: fsum(values) / len(values)
            for metric in metrics
            if (values := [one.costs[metric] for one in several if metric in one.costs])
        }
        pooled.append(replace(several[-1], costs=costs))
    return [*pooled, *rest]


def _findings(
    journal: Journal,
    run: Run,
    plan: Plan,
    loads: Sequence[_Load],
    reasons: Mapping[str, tuple[str, ...]],
    in_rounds: bool,
) -> list[Finding]:
    found: list[Finding] = []
    control = [
        one
        for one in _without_hot(outcomes(journal, run, plan))
        if one.session.candidate == plan.baseline and one.counts(plan.objective)
    ]
    points = [(float(place), one.costs[plan.objective]) for place, one in enumerate(control)]
    # The slope looks at every pair: of very many sessions some, evenly spread over the file, tell the same.
    points = points[:: 1 + len(points) // _DRIFT_POINTS]
    moved = drift(plan.objective, points)
    if moved is not None and moved.flagged:
        after = "Comparisons within rounds stay valid." if in_rounds else "Nothing can be compared across it."
        found.append(
            Finding(
                "inconsistent-performance",
                "notice" if in_rounds else "warn",
                f"The unchanged baseline moved by {moved.change:+.1%} over the file. {after}",
                (
                    Evidence("change of the baseline", moved.change, 0.03, source="measured", via="Theil-Sen slope"),
                    Evidence("chance of such a trend", moved.p, 0.05, source="derived", via="Kendall's tau"),
                ),
                cause="inconsistent-performance/drift",
            )
        )
    found += [
        Finding(
            "clamped-settings",
            "notice",
            sentence,
            (Evidence("candidate", name, source="derived", via="rules of the server and the model"),),
        )
        for name, sentences in reasons.items()
        for sentence in sentences
    ]
    cold = sum(one.cold and one.role == "measure" for load in loads for one in load.requests)
    if cold:
        found.append(
            Finding(
                "cold-load",
                "notice",
                f"{cold} rows include a load of the model and do not count.",
                (Evidence("cold rows", float(cold), source="measured", via="load_s"),),
                remedies=(Remedy("Discard the first request after each load, or keep the model loaded."),),
            )
        )
    return found


# ---- our own document ------------------------------------------------------------------------------------------------


def _import_own(journal: Journal, sheet: Sheet, own: OwnRun, title: str, path: Path) -> Imported:
    """A run of ours again: its sessions as they were, its verdicts computed anew from them."""
    kind = server_kind(sheet, None)
    about = {
        "rules": None,
        **{name: value for name, value in own.plan.get("import", {}).items() if name in ("rules", "in_rounds")},
        "file": plain(path.name),
        "format": "json",
        "of": own.id,
        "of_kind": own.kind,
        "baseline": "",
    }
    if about["rules"] is None:
        del about["rules"]
    plan = {**own.plan, "import": about}
    try:
        if not isinstance(own.plan.get("rules", {}), dict):
            raise ValueError("rules: is no object")
        run = journal.create_run(
            "import",
            Target(kind, None, sheet.model.name if sheet.model else None),
            sheet.workload or Workload(),
            seed=own.seed,
            trials=own.trials,
            plan=plan,
            name=title,
        )
        with _Kept(journal, run, sheet, sheet.model, plain(path.name)):
            for name, effective in own.effective.items():
                journal.set_effective(run.id, name, effective)
            of_session: dict[int, list[Measurement]] = {}
            for seq, one in own.measurements:
                of_session.setdefault(seq, []).append(one)
            ended: list[tuple[Session, Sequence[Measurement]]] = []
            for session in sorted(own.sessions, key=lambda session: session.seq):
                if session.state in ("planned", "running"):
                    session = replace(session, state="void", void_reason="interrupted")
                session = replace(session, started_at=session.started_at or run.created_at)
                ended.append((session, of_session.get(session.seq, [])))
            journal.add_sessions(run.id, ended)
            fresh = journal.run(run.id)
            planned = stage_plans(journal, fresh)
            journal.set_verdicts(run.id, final_verdicts(journal, fresh) if planned else imported_table(journal, fresh))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # The plan inside a document is free in its form; one that was changed by hand can be wrong in any way.
        raise ConfigError(f"{plain(str(path))}: run.plan is not as Chimera writes it ({plain(str(error))}).") from error
    base = next((trial for trial in own.trials if trial.role == "baseline"), None)
    notes = (f"Run {own.id or 'of another journal'} ({own.kind}) again; its verdicts were computed anew.",)
    return Imported(journal.run(run.id), notes, f"{base.candidate}: {base.requested}" if base else "")
