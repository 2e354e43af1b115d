"""Measurements from files of other programs, and from our own exports: parsed, never judged.

Each reader gives the rows as they stand in the file. What they mean (warm-up, void, rounds, verdicts) is decided in
`importing`, the same for all. Everything that is wrong with a file is a `ConfigError` with file, line and column.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.options import KV_CACHE_TYPES, OPTION_NAMES, OPTION_RANGES, FlashAttention, KvCacheType, Options
from chimera.domain.readings import Source
from chimera.domain.run import Session, SessionPhase, Trial
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.text import plain
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.store.document import SESSION_COLUMNS
from chimera.store.files import Unreadable, read_plain
from chimera.tuning.plan import Failure

Format = Literal["csv", "llama-bench", "ollama-bench", "json"]

_LARGEST_FILE = 512 * 1024 * 1024
_MOST_ROWS = 1_000_000
_SHOWN = 60

VOID_REASONS: frozenset[str] = frozenset(get_args(VoidReason))
_PHASES: tuple[SessionPhase, ...] = get_args(SessionPhase)
_WARM_WORDS = frozenset({"warmup", "warm-up", "warm_up", "discard", "discarded"})
_BASE_WORDS = frozenset({"baseline", "control", "reference", "default", "defaults"})
_PLAIN_WORDS = frozenset({"", "measure", "measured", "candidate", "test", "treatment", "variant"})


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One request of a file, or a session without any (`measurement` is None)."""

    line: int
    options: Options
    measurement: Measurement | None
    label: str | None = None
    """What the file calls this configuration; None where only its options tell."""
    extra: str | None = None
    """What else sets it apart, in words: a model, a flag that is none of our options."""
    role_told: bool = False
    """The file says whether the request was a discarded one."""
    cold_told: bool = False
    """The file says whether the request included a load."""
    baseline: bool = False
    """The file says that this is the baseline."""
    session: int | None = None
    round: int | None = None
    phase: SessionPhase = "measure"
    phase_said: str = ""
    """The file's own word for it."""
    order: int | None = None
    timed: bool = False
    """`started_at` is the file's."""
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Of the session that it belongs to."""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """A document of ours, as it was exported."""

    trials: tuple[Trial, ...]
    effective: Mapping[str, Effective]
    """What was read back, by candidate."""
    sessions: tuple[Session, ...]
    measurements: tuple[tuple[int, Measurement], ...]
    """With the `seq` of their session, in the order in which they came."""
    plan: dict[str, Any]
    seed: int
    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """The content of a file."""

    format: Format
    rows: tuple[ForeignRow, ...] = ()
    notes: tuple[str, ...] = ()
    columns: frozenset[str] = frozenset()
    """What the file tells of each request, by our names."""
    server: ServerInfo | None = None
    model: ModelInfo | None = None
    workload: Workload | None = None
    host: dict[str, Any] = field(default_factory=dict)
    gpus: tuple[dict[str, Any], ...] = ()
    own: OwnRun | None = None


def read_sheet(path: Path, format_: Format | None = None, *, output_tokens: int | None = None) -> Sheet:
    """The content of a file; the format is told by it where none is named.

    Args:
        path: The file.
        format_: What it is.
        output_tokens: Length of the answers, for formats that do not tell it.

    Raises:
        ConfigError: it cannot be read as that; the sentence names file, line and column.
    """
    text = text_of(path)
    chosen = format_ or _detected(text)
    if chosen == "csv":
        return _read_csv(path, text)
    if chosen == "llama-bench":
        return _read_llama_bench(path, text)
    if chosen == "ollama-bench":
        return _read_ollama_bench(path, text, output_tokens)
    return _read_own(path, text)


def text_of(path: Path) -> str:
    """The text of a file. Raises `ConfigError` naming it: not there, no plain file, too large, empty or no text."""
    try:
        raw = read_plain(path, _LARGEST_FILE)
    except Unreadable as error:
        raise ConfigError(f"{_name(path)}: {error}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{_name(path)}:{line}: is not UTF-8 text. Save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{_name(path)}:{line}: holds a zero byte: this is no text.")
    if not text.strip():
        raise ConfigError(f"{_name(path)}: is empty.")
    return text


def _detected(text: str) -> Format:
    head = text.lstrip()[:4096]
    if head.startswith(("[", "{")):
        return "json" if '"schema_version"' in head else "llama-bench" if '"build_' in head else "json"
    if "BenchmarkModel/" in text[:1_000_000] or _OLLAMA_HEAD.search(text[:1_000_000]):
        return "ollama-bench"
    return "csv"


def _name(path: Path) -> str:
    return plain(str(path))


def _shown(value: object) -> str:
    text = plain(str(value))
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _moment(value: object) -> object:
    """A time as seconds since the epoch; without a zone it is taken as UTC."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        pass
    try:
        told = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("must be seconds since 1970, or a time like 2026-11-23T10:00:00Z") from None
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()


def _switch(value: object) -> object:
    words = {"1": "on", "true": "on", "yes": "on", "0": "off", "false": "off", "no": "off", "-1": "auto"}
    return words.get(value.strip().lower(), value.strip().lower()) if isinstance(value, str) else value


def _layers(value: object) -> object:
    return "-1" if isinstance(value, str) and value.strip().lower() == "auto" else value


Seconds = Annotated[float, Field(ge=0, le=1e7)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Place = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rate = Annotated[float, Field(ge=0, le=1e9)]
When = Annotated[float, BeforeValidator(_moment), Field(ge=0, le=1e11)]


class _Cells(BaseModel):
    """One line: the columns that `chimera runs export --format csv` writes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)

    candidate: Annotated[str, Field(max_length=64)] | None = None
    num_gpu: Annotated[int, BeforeValidator(_layers)] | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    flash_attention: Annotated[FlashAttention, BeforeValidator(_switch)] | None = None
    kv_cache_type: KvCacheType | None = None
    num_parallel: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None
    order: Place | None = None
    session: Place | None = None
    round: Place | None = None
    phase: str | None = None
    role: str | None = None
    started_at: When | None = None
    ttft_s: Seconds | None = None
    queue_s: Seconds | None = None
    load_s: Seconds | None = None
    prefill_s: Seconds | None = None
    decode_s: Seconds | None = None
    other_s: Annotated[float, Field(ge=-1e7, le=1e7)] | None = None
    total_s: Seconds | None = None
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    completion_tokens: Count | None = None
    decode_tok_s: Rate | None = None
    client_decode_tok_s: Rate | None = None
    finish_reason: str | None = None
    cold: bool | None = None
    void_reason: str | None = None
    error: str | None = None
    agent: Annotated[int, Field(ge=0, le=4096)] | None = None
    instance: Annotated[int, Field(ge=0, le=4096)] | None = None
    vram_peak_bytes: Annotated[float, Field(gt=0, le=1e15)] | None = None
    energy_j_per_token: Annotated[float, Field(gt=0, le=1e9)] | None = None
    throttled_share: Annotated[float, Field(ge=0, le=1)] | None = None
    start_c: Annotated[float, Field(ge=-50, le=200)] | None = None
    failure: Failure | None = None
    same_as: Annotated[str, Field(max_length=64)] | None = None
    foreign_gpu_percent: Annotated[float, Field(ge=0, le=100)] | None = None

    @field_validator(*OPTION_RANGES)
    @classmethod
    def in_range(cls, value: float | None, info: Any) -> float | None:
        """Hold the ranges of `OPTION_RANGES`."""
        low, high = OPTION_RANGES[info.field_name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"must be from {low:,.10g} to {high:,.10g}")
        return value

    @field_validator("role")
    @classmethod
    def known_role(cls, value: str | None) -> str | None:
        """A request was discarded, or it counts."""
        if value is not None and value.lower() not in _WARM_WORDS | _BASE_WORDS | _PLAIN_WORDS:
            raise ValueError("must be warmup, measure, baseline or candidate")
        return None if value is None else value.lower()


def parse_options(text: str, flag: str) -> Options:
    """Options as `num_gpu=35 num_ctx=2048`, commas allowed; `default` stands for none.

    Raises:
        ConfigError: an option is unknown or its value makes no sense; `flag` is named as the place.
    """
    values: dict[str, str] = {}
    for part in re.split(r"[\s,]+", text.strip()):
        if part in ("", "default"):
            continue
        name, equals, value = part.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in OPTION_NAMES:
            raise ConfigError(f"{flag}: {_shown(part)} is not OPTION=VALUE. Options: {', '.join(OPTION_NAMES)}.")
        values[name] = value
    try:
        return Options.of(_Cells.model_validate(values).model_dump(include=set(OPTION_NAMES)))
    except ValidationError as error:
        raise ConfigError(f"{flag}: {_fault(error)}.") from error


_COLUMNS: tuple[str, ...] = tuple(_Cells.model_fields)
_FACTS = (
    "vram_peak_bytes",
    "energy_j_per_token",
    "throttled_share",
    "start_c",
    "failure",
    "same_as",
    "foreign_gpu_percent",
)
_MEASURES = frozenset({"ttft_s", "decode_s", "total_s", "decode_tok_s", "client_decode_tok_s", "prefill_s"})


def _read_csv(path: Path, text: str) -> Sheet:
    head, lines = _table(path, text)
    columns, notes = _columns(path, head)
    if not _MEASURES & set(columns.values()):
        raise ConfigError(
            f"{_name(path)}:1: no column measures anything. Known are {', '.join(sorted(_MEASURES))}, beside the "
            f"options ({', '.join(OPTION_NAMES)})."
        )
    rows = []
    for line, cells in lines:
        values = {name: cells[place].strip() for place, name in columns.items() if cells[place].strip()}
        try:
            parsed = _Cells.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{_name(path)}:{line}: column {_fault(error)}.") from error
        rows.append(_csv_row(line, parsed))
        if len(rows) > _MOST_ROWS:
            raise ConfigError(f"{_name(path)}:{line}: more than {_MOST_ROWS} rows. Split the file.")
    if not rows:
        raise ConfigError(f"{_name(path)}: has a head and no row below it.")
    return Sheet("csv", tuple(rows), tuple(notes), frozenset(columns.values()))


_SEPARATOR = re.compile(r"sep=([,;\t])", re.IGNORECASE)
"""The first line of what some spreadsheets write: what stands between the cells."""


def _table(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    first = text.lstrip().splitlines()[0]
    told = _SEPARATOR.fullmatch(first.strip(" "))
    delimiter = told[1] if told else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def lines() -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ConfigError(f"{_name(path)}:{reader.line_num}: is no CSV: {plain(str(error))}.") from error
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells

    every = lines()
    if told:
        next(every)
    _, head = next(every, (0, []))

    def checked() -> Iterator[tuple[int, list[str]]]:
        for line, cells in every:
            if len(cells) != len(head):
                raise ConfigError(
                    f"{_name(path)}:{line}: has {len(cells)} cells, and the head names {len(head)} columns."
                )
            yield line, cells

    return head, checked()


def _columns(path: Path, head: Sequence[str]) -> tuple[dict[int, str], list[str]]:
    """Our name for each column by its place, and what is said of the others."""
    found: dict[int, str] = {}
    ignored: list[str] = []
    for place, cell in enumerate(head):
        name = cell.strip().lower()
        if name in _COLUMNS:
            if name in found.values():
                raise ConfigError(f"{_name(path)}:1: column {name} is there twice.")
            found[place] = name
            continue
        near = difflib.get_close_matches(name.replace("-", "_").replace(" ", "_"), _COLUMNS, n=1, cutoff=0.85)
        if near:
            raise ConfigError(f"{_name(path)}:1: column {_shown(cell)} is unknown. Did you mean {near[0]}?")
        ignored.append(_shown(cell) if name else "one without a name")
    if not found:
        raise ConfigError(
            f"{_name(path)}:1: none of its columns is known. The first line must name them: {', '.join(_COLUMNS)}."
        )
    notes = [f"Columns that mean nothing here were left out: {', '.join(ignored[:12])}."] if ignored else []
    return found, notes


def _fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in fault["loc"])
    given, context = fault["input"], fault.get("ctx", {})
    kinds = {
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "int_parsing_size": "must be a whole number of sensible size",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "bool_parsing": "must be true or false",
        "literal_error": f"must be {context.get('expected')}",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "value_error": str(context.get("error", fault["msg"])),
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be over {context.get('gt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
    }
    point = " with a decimal point" if fault["type"] == "float_parsing" and "," in str(given) else ""
    return f"{column} {kinds.get(fault['type'], fault['msg'])}{point}, not {_shown(given)}"


def _csv_row(line: int, cells: _Cells) -> ForeignRow:
    phase_said = plain(cells.phase or "")
    word = phase_said.lower()
    role = cells.role or ""
    warm = role in _WARM_WORDS or word in _WARM_WORDS
    void, error = _void(cells.void_reason, cells.error)
    row = ForeignRow(
        line=line,
        options=Options.of(cells.model_dump(include=set(OPTION_NAMES))),
        measurement=None,
        label=plain(cells.candidate) if cells.candidate else None,
        role_told=warm or role in {"measure", "measured"},
        cold_told=cells.cold is not None,
        baseline=role in _BASE_WORDS or word in _BASE_WORDS or word == "preflight",
        session=cells.session,
        round=cells.round,
        phase=next((phase for phase in _PHASES if phase == word), "measure"),
        phase_said=phase_said,
        order=cells.order,
        timed=cells.started_at is not None,
        error=error,
        facts={name: value for name in SESSION_COLUMNS if (value := getattr(cells, name)) is not None},
    )
    # A session whose load failed, or was that of another candidate, has no request: one line stands for it.
    if (cells.failure or cells.same_as) and cells.total_s is None and cells.completion_tokens is None:
        return row
    measured = Measurement(
        role="warmup" if warm else "measure",
        started_at=cells.started_at or 0.0,
        total_s=_total(cells),
        ttft_s=cells.ttft_s,
        queue_s=cells.queue_s,
        load_s=cells.load_s,
        prefill_s=cells.prefill_s,
        decode_s=cells.decode_s,
        other_s=cells.other_s,
        timing_source="server" if cells.decode_tok_s is not None or cells.prefill_s is not None else "client",
        prompt_tokens=cells.prompt_tokens,
        cached_tokens=cells.cached_tokens,
        completion_tokens=cells.completion_tokens,
        client_decode_tok_s=cells.client_decode_tok_s,
        decode_tok_s=cells.decode_tok_s,
        finish_reason=plain(cells.finish_reason) if cells.finish_reason else None,
        cold=bool(cells.cold),
        void_reason=void,
        error=error,
        agent=cells.agent or 0,
        instance=cells.instance or 0,
    )
    return replace(row, measurement=measured)


def _total(cells: _Cells) -> float:
    """The whole request; where it is not told, the sum of the parts that are: at least as long it was."""
    if cells.total_s is not None:
        return cells.total_s
    if cells.ttft_s is not None:
        return cells.ttft_s + (cells.decode_s or 0.0)
    return sum(part or 0.0 for part in (cells.queue_s, cells.load_s, cells.prefill_s, cells.decode_s))


def _void(reason: str | None, error: str | None) -> tuple[VoidReason | None, str | None]:
    """A reason of ours, and the sentence beside it; words of another program become the sentence of an `error`."""
    said = plain(error)[:400] if error else None
    if reason is None or reason.lower() in {"none", "false", "no"}:
        if said is None:
            return None, None
        return ("timeout" if "timed out" in said.lower() or "timeout" in said.lower() else "error"), said
    if reason in VOID_REASONS:
        return reason, said  # type: ignore[return-value]  # one of the words of VoidReason
    return "error", said or plain(reason)[:400]


# ---- JSON in general -------------------------------------------------------------------------------------------------


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"{text[:20]}... is larger than any count")
    return int(text)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _json_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Every JSON value of a text, one behind the other, with the line that it begins on."""
    decoder = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_no_constant)
    place = 0
    while True:
        match = _BETWEEN.match(text, place)
        place = match.end() if match else place
        if place >= len(text):
            return
        line = text.count("\n", 0, place) + 1
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{_name(path)}:{error.lineno}: is not JSON at column {error.colno}: {plain(error.msg)}."
            ) from error
        except (ValueError, RecursionError) as error:
            words = "it is nested too deeply" if isinstance(error, RecursionError) else plain(str(error))
            raise ConfigError(f"{_name(path)}:{line}: is not JSON that can be read: {words}.") from error
        yield line, value


_BETWEEN = re.compile(r"[\s,]*")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=True)[0]
    field_ = ".".join(str(part) for part in fault["loc"])
    return f"{plain(field_)}: {plain(fault['msg'][:1].lower() + fault['msg'][1:])}, not {_shown(fault['input'])}"


# ---- llama-bench -----------------------------------------------------------------------------------------------------


class _Bench(BaseModel):
    """One test of `llama-bench -o json` or `-o jsonl`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    build_number: int | None = None
    cpu_info: str | None = None
    gpu_info: str | None = None
    model_filename: str | None = None
    model_type: str | None = None
    model_size: Annotated[int, Field(ge=0)] | None = None
    model_n_params: Annotated[int, Field(ge=0)] | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_threads: int | None = None
    type_k: str | None = None
    type_v: str | None = None
    n_gpu_layers: int | None = None
    flash_attn: bool | int | str | None = None
    n_prompt: Count
    n_gen: Count
    n_depth: Count = 0
    test_time: When | None = None
    avg_ns: Annotated[float, Field(gt=0)] | None = None
    samples_ns: list[Annotated[float, Field(gt=0, le=1e16)]] = Field(default_factory=list)


_BENCH_EXTRAS = (
    "n_batch", "type_k", "type_v", "split_mode", "main_gpu", "no_kv_offload", "tensor_split", "use_mmap", "load_mode",
    "cpu_mask", "cpu_strict", "poll", "devices", "n_cpu_moe", "tensor_buft_overrides", "use_direct_io", "no_op_offload",
    "no_host", "repack", "backends", "model_filename",
)  # fmt: skip
"""What makes two tests different beside our options; told where it varies inside a file."""


def _read_llama_bench(path: Path, text: str) -> Sheet:
    tests: list[tuple[int, _Bench, dict[str, Any]]] = []
    for line, value in _json_values(path, text):
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                raise ConfigError(f"{_name(path)}:{line}: llama-bench writes objects, not {_shown(entry)}.")
            try:
                tests.append((line, _Bench.model_validate(entry), entry))
            except ValidationError as error:
                raise ConfigError(
                    f"{_name(path)}:{line}: test {len(tests) + 1} is not llama-bench's: {_first_fault(error)}."
                ) from error
    notes: list[str] = []
    generating = [bench for _, bench, _ in tests if bench.n_gen and not bench.n_prompt]
    if not generating:
        raise ConfigError(
            f"{_name(path)}: holds no test that generates alone (tg): there is no decode rate in it. "
            "Run llama-bench with -n 64."
        )
    shapes = Counter((bench.n_gen, bench.n_depth) for bench in generating)
    (n_gen, depth), _ = shapes.most_common(1)[0]
    if len(shapes) > 1:
        others = ", ".join(f"tg{n}@d{d}" for n, d in shapes if (n, d) != (n_gen, depth))
        notes.append(f"Only the tests tg{n_gen}@d{depth} are compared; {others} were left out: other lengths differ.")
    if any(bench.n_gen and bench.n_prompt for _, bench, _ in tests):
        notes.append("Combined tests (pg) were left out: they do not part prompt and answer.")
    varying = {
        name
        for name in _BENCH_EXTRAS
        if len({json.dumps(entry.get(name), sort_keys=True) for _, _, entry in tests}) > 1
    }
    rows: list[ForeignRow] = []
    session = 0
    before: tuple[Options, str | None] | None = None
    without_samples = 0
    for line, bench, entry in tests:
        prompt_only = bench.n_prompt > 0 and bench.n_gen == 0
        if not prompt_only and (bench.n_prompt or (bench.n_gen, bench.n_depth) != (n_gen, depth)):
            continue
        options, label = _bench_options(path, line, bench), _bench_label(entry, varying)
        same = before == (options, label)
        began_again = same and rows and _same_test(rows[-1], bench)
        if not same or began_again:
            session += 1
        before = (options, label)
        samples = bench.samples_ns or ([bench.avg_ns] if bench.avg_ns else [])
        without_samples += not bench.samples_ns
        rows += [
            ForeignRow(
                line=line,
                options=options,
                measurement=_bench_measurement(bench, ns / 1e9),
                extra=label,
                role_told=True,
                session=session,
                timed=bench.test_time is not None,
            )
            for ns in samples
        ]
    if without_samples:
        notes.append(f"{without_samples} tests have no samples: their mean stands for them.")
    notes.append("llama-bench counts n steps for n tokens, so n / time is right for it; it measures no TTFT.")
    first = generating[0]
    model = ModelInfo(
        name=plain(Path(first.model_filename or "model").name)[:200],
        quantization=plain(first.model_type) if first.model_type else None,
        size_bytes=first.model_size or None,
        parameters=first.model_n_params or None,
    )
    build = f"b{first.build_number}" if first.build_number else None
    return Sheet(
        "llama-bench",
        tuple(rows),
        tuple(notes),
        frozenset({"decode_s", "decode_tok_s", "completion_tokens", "role", "session"}),
        server=ServerInfo("llama_server", "", version=build, product="llama-bench"),
        model=model,
        workload=Workload(prompt_tokens=max(1, depth), output_tokens=n_gen),
        host={"cpu": plain(first.cpu_info)} if first.cpu_info else {},
        gpus=tuple({"name": plain(name.strip())} for name in (first.gpu_info or "").split(",") if name.strip()),
    )


def _same_test(row: ForeignRow, bench: _Bench) -> bool:
    """The same kind of test comes again: another load."""
    measured = row.measurement
    return measured is not None and (measured.completion_tokens is None) == (bench.n_gen == 0)


def _bench_options(path: Path, line: int, bench: _Bench) -> Options:
    flash = {"true": "on", "1": "on", "on": "on", "false": "off", "0": "off", "off": "off"}.get(
        str(bench.flash_attn).lower(), "auto" if bench.flash_attn is not None else None
    )
    cache = bench.type_k if bench.type_k == bench.type_v and bench.type_k in KV_CACHE_TYPES else None
    values = {
        "num_gpu": None if bench.n_gpu_layers is None else max(-1, bench.n_gpu_layers),
        "num_batch": bench.n_ubatch if bench.n_ubatch is not None else bench.n_batch,
        "num_thread": bench.n_threads,
        "flash_attention": flash,
        "kv_cache_type": cache,
    }
    for name, value in values.items():
        low, high = OPTION_RANGES.get(name, (None, None))
        if low is not None and high is not None and isinstance(value, int) and not low <= value <= high:
            raise ConfigError(f"{_name(path)}:{line}: {name} {value} is not between {low:g} and {high:g}.")
    return Options.of(values)


def _bench_label(entry: Mapping[str, Any], varying: set[str]) -> str | None:
    """What else sets this test apart from the others of the file."""
    told = [f"{name}={entry[name]}" for name in _BENCH_EXTRAS if name in varying and entry.get(name) is not None]
    return plain(" ".join(told))[:200] or None


def _bench_measurement(bench: _Bench, seconds: float) -> Measurement:
    at = bench.test_time or 0.0
    if bench.n_gen == 0:
        return Measurement(
            role="measure",
            started_at=at,
            total_s=seconds,
            prefill_s=seconds,
            timing_source="server",
            prompt_tokens=bench.n_prompt,
            cached_tokens=0,
            prefill_tok_s=bench.n_prompt / seconds,
        )
    return Measurement(
        role="measure",
        started_at=at,
        total_s=seconds,
        decode_s=seconds,
        timing_source="server",
        completion_tokens=bench.n_gen,
        decode_tok_s=bench.n_gen / seconds,
        finish_reason="length",
    )


# ---- Ollama's bench --------------------------------------------------------------------------------------------------

_OLLAMA_HEAD = re.compile(r"^NAME,STEP,COUNT,NS_PER_COUNT,TOKEN_PER_SEC\s*$", re.MULTILINE)
_BENCH_LINE = re.compile(
    r"BenchmarkModel/name=(?P<name>\S+?)/step=(?P<step>prefill|generate|ttft|load|total)\s+(?P<count>\d{1,9})\s+"
    r"(?P<ns>[0-9.eE+]{1,24})\s+ns/(?P<unit>token|op)\b"
)
_MODEL_LINE = re.compile(r"#\s*Model:\s*(?P<name>[^|]+?)\s*(?:\|(?P<rest>.*))?$")
_STEPS = ("prefill", "generate", "ttft", "load", "total")


@dataclass(slots=True)
class _Epoch:
    line: int
    name: str
    ns: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By step: count and nanoseconds for each of them."""


def _read_ollama_bench(path: Path, text: str, output_tokens: int | None) -> Sheet:
    """Ollama's own benchmark, as benchstat lines or as CSV.

    Its output file is not cut when a shorter result replaces a longer one, so lines that are none of it are left out.
    """
    epochs: list[_Epoch] = []
    heads: dict[str, str] = {}
    left_out = 0
    for line, raw in enumerate(text.splitlines(), 1):
        said = raw.strip()
        if not said or _OLLAMA_HEAD.fullmatch(said):
            continue
        if head := _MODEL_LINE.fullmatch(said):
            heads[plain(head["name"])] = head["rest"] or ""
            continue
        step = _bench_step(said)
        if step is None:
            left_out += not said.startswith("#")
            continue
        name, word, count, ns = step
        if not epochs or epochs[-1].name != name or word in epochs[-1].ns:
            epochs.append(_Epoch(line, name))
        epochs[-1].ns[word] = (count, ns)
    if not epochs:
        raise ConfigError(f"{_name(path)}: holds no line of Ollama's bench (BenchmarkModel/..., or its CSV).")
    notes: list[str] = []
    if left_out:
        notes.append(f"{left_out} lines are not of the benchmark (the tail of an older file?) and were left out.")
    rows: list[ForeignRow] = []
    uncorrected = session = 0
    for place, epoch in enumerate(epochs):
        if place == 0 or epochs[place - 1].name != epoch.name:
            session += 1
        measured, corrected = _epoch_measurement(epoch, output_tokens)
        uncorrected += not corrected
        rows.append(ForeignRow(epoch.line, Options(), measured, extra=epoch.name, role_told=True, session=session))
    if uncorrected:
        notes.append(
            f"The rate of {uncorrected} answers is tokens / time as the benchmark gives it, too high by n/(n-1): this "
            "form does not tell n. Name the length with --output-tokens (its default is 200), or import its CSV."
        )
    else:
        notes.append("Rates were computed anew as (n-1)/time; the benchmark's own are too high by n/(n-1).")
    known = [row.measurement.completion_tokens for row in rows if row.measurement and row.measurement.completion_tokens]
    names = list(dict.fromkeys(epoch.name for epoch in epochs))
    return Sheet(
        "ollama-bench",
        tuple(rows),
        tuple(notes),
        frozenset({"ttft_s", "load_s", "prefill_s", "decode_s", "total_s", "decode_tok_s", "role", "session"}),
        server=ServerInfo("ollama", ""),
        model=_bench_model(names[0], heads.get(names[0], "")) if len(names) == 1 else ModelInfo(", ".join(names)[:200]),
        workload=Workload(output_tokens=Counter(known).most_common(1)[0][0]) if known else None,
    )


def _bench_step(said: str) -> tuple[str, str, int, float] | None:
    if match := _BENCH_LINE.match(said):
        name, word, count, ns = match["name"], match["step"], int(match["count"]), match["ns"]
        count = 0 if match["unit"] == "token" else count  # the benchmark's own count of runs, not of tokens
    else:
        cells = said.split(",")
        if len(cells) != 5 or cells[1] not in _STEPS or not cells[2].isdigit() or len(cells[2]) > 9:
            return None
        name, word, count, ns = cells[0], cells[1], int(cells[2]), cells[3]
    try:
        value = float(ns)
    except ValueError:
        return None
    return (plain(name)[:200], word, count, value) if math.isfinite(value) and 0 <= value <= 1e16 else None


def _epoch_measurement(epoch: _Epoch, output_tokens: int | None) -> tuple[Measurement, bool]:
    def whole(step: str) -> float | None:
        told = epoch.ns.get(step)
        return None if told is None else told[1] * max(1, told[0]) / 1e9

    count, each = epoch.ns.get("generate", (0, 0.0))
    n = count or output_tokens or 0
    decode_s = each * n / 1e9 if n and each else None
    rate = (n - 1) / decode_s if decode_s and n > 1 else 1e9 / each if each else None
    prompt, prompt_each = epoch.ns.get("prefill", (0, 0.0))
    total = whole("total")
    measured = Measurement(
        role="measure",
        started_at=0.0,
        total_s=total if total is not None else (whole("ttft") or 0.0) + (decode_s or 0.0),
        ttft_s=whole("ttft"),
        load_s=whole("load"),
        prefill_s=prompt * prompt_each / 1e9 if prompt else None,
        decode_s=decode_s,
        timing_source="server",
        prompt_tokens=prompt or None,
        completion_tokens=n or None,
        decode_tok_s=rate,
    )
    return measured, bool(n) or not each


def _bench_model(name: str, rest: str) -> ModelInfo:
    told = {
        key.strip().lower(): value.strip()
        for key, _, value in (part.partition(":") for part in rest.split("|"))
        if value.strip()
    }
    size = told.get("size", "")
    return ModelInfo(
        name=name,
        quantization=plain(told["quant"]) if "quant" in told else None,
        architecture=plain(told["family"]) if "family" in told else None,
        size_bytes=int(size) if size.isdigit() and len(size) < 19 else None,
    )


# ---- our own document ------------------------------------------------------------------------------------------------


class _OwnTrial(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    candidate: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(plain)]
    role: Literal["baseline", "candidate", "current"]
    requested: dict[str, Any]
    effective: dict[str, Any] | None = None
    sources: dict[str, Source] = Field(default_factory=dict)
    unread: list[str] = Field(default_factory=list)
    merged: list[Annotated[str, AfterValidator(plain)]] = Field(default_factory=list)
    notes: list[Annotated[str, AfterValidator(plain)]] = Field(default_factory=list)


class _OwnPlace(BaseModel):
    model_config = ConfigDict(extra="ignore")

    trial: Annotated[str, AfterValidator(plain)]
    session: Place
    round: Place = 1
    phase: SessionPhase = "measure"


class _OwnHead(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    id: Annotated[str, AfterValidator(plain)] = ""
    kind: Annotated[str, AfterValidator(plain)] = "run"
    seed: Annotated[int, Field(ge=-(2**62), le=2**62)] = 0
    plan: dict[str, Any] = Field(default_factory=dict)
    workload: Workload = Field(default_factory=Workload)
    host: dict[str, Any] = Field(default_factory=dict)
    gpus: list[dict[str, Any]] = Field(default_factory=list)
    server: dict[str, Any] | None = None
    model: dict[str, Any] | None = None


class _OwnDocument(BaseModel):
    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1]
    run: _OwnHead
    trials: list[_OwnTrial]
    sessions: list[dict[str, Any]] | None = None
    measurements: list[dict[str, Any]] | None = None


_OPTIONS: TypeAdapter[Options] = TypeAdapter(Options)
_MEASUREMENT: TypeAdapter[Measurement] = TypeAdapter(Measurement)
_SESSION: TypeAdapter[Session] = TypeAdapter(Session)
_SERVER: TypeAdapter[ServerInfo] = TypeAdapter(ServerInfo)
_MODEL: TypeAdapter[ModelInfo] = TypeAdapter(ModelInfo)
_NOT_OURS = {"trial", "session", "round", "phase"}


def _read_own(path: Path, text: str) -> Sheet:
    values = list(_json_values(path, text))
    if len(values) != 1 or not isinstance(values[0][1], dict):
        raise ConfigError(f"{_name(path)}: is not one document of Chimera's. Export it with --format json.")
    try:
        found = _OwnDocument.model_validate(values[0][1])
        if found.measurements is None:
            raise ConfigError(
                f"{_name(path)}: holds no measurements. Export the run with `chimera runs export --format json`."
            )
        trials = tuple(_own_trial(trial) for trial in found.trials)
        places = [_OwnPlace.model_validate(one) for one in found.measurements]
        measured = [_own_measurement(one) for one in found.measurements]
        sessions = _own_sessions(found, places, measured)
        server = None if found.run.server is None else _SERVER.validate_python(_known(found.run.server, ServerInfo))
        model = None if found.run.model is None else _MODEL.validate_python(_known(found.run.model, ModelInfo))
    except ValidationError as error:
        raise ConfigError(f"{_name(path)}: {_first_fault(error)}.") from error
    _check_own(path, trials, sessions, places)
    own = OwnRun(
        trials,
        {
            trial.candidate: Effective(_own_options(trial.effective), trial.sources, unread=tuple(trial.unread))
            for trial in found.trials
            if trial.effective is not None
        },
        sessions,
        tuple((place.session, one) for place, one in zip(places, measured, strict=True)),
        found.run.plan,
        found.run.seed,
        found.run.kind,
        found.run.id,
    )
    return Sheet(
        "json",
        server=server,
        model=model,
        workload=found.run.workload,
        host=found.run.host,
        gpus=tuple(found.run.gpus),
        own=own,
    )


def _known(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    names = cls.__dataclass_fields__  # type: ignore[attr-defined]  # every caller gives a dataclass
    return {name: plain(value) if isinstance(value, str) else value for name, value in values.items() if name in names}


def _own_options(values: Mapping[str, Any]) -> Options:
    checked = _Cells.model_validate({name: value for name, value in values.items() if name in OPTION_NAMES})
    return _OPTIONS.validate_python(checked.model_dump(include=set(OPTION_NAMES)))


def _own_trial(trial: _OwnTrial) -> Trial:
    return Trial(
        trial.candidate,
        trial.role,
        _own_options(trial.requested),
        None if trial.effective is None else _own_options(trial.effective),
        tuple(trial.merged),
        tuple(trial.notes),
    )


def _own_measurement(values: Mapping[str, Any]) -> Measurement:
    data = {name: value for name, value in values.items() if name not in _NOT_OURS}
    return _MEASUREMENT.validate_python({**_known(data, Measurement), "started_at": _time_of(data.get("started_at"))})


def _time_of(value: object) -> object:
    try:
        return _moment(value)
    except ValueError:
        return value  # the field's own check then names it


def _own_sessions(
    found: _OwnDocument, places: Sequence[_OwnPlace], measured: Sequence[Measurement]
) -> tuple[Session, ...]:
    if found.sessions is not None:
        return tuple(
            _SESSION.validate_python(
                {
                    **_known(one, Session),
                    "started_at": _time_of(one.get("started_at")),
                    "ended_at": _time_of(one.get("ended_at")),
                }
            )
            for one in found.sessions
        )
    # Exports of before sessions were written: what counts of them can be told from their requests.
    sessions: dict[int, Session] = {}
    for place, one in zip(places, measured, strict=True):
        before = sessions.get(place.session)
        valid = one.valid or (before is not None and before.state == "done")
        reason = one.void_reason if one.role == "measure" else None
        sessions[place.session] = Session(
            place.session,
            place.trial,
            place.round,
            place.phase,
            "done" if valid else "void",
            None if valid else (before.void_reason if before and before.void_reason else reason or "error"),
        )
    return tuple(sessions[seq] for seq in sorted(sessions))


def _check_own(path: Path, trials: Sequence[Trial], sessions: Sequence[Session], places: Sequence[_OwnPlace]) -> None:
    names = [trial.candidate for trial in trials]
    if len(set(names)) != len(names):
        raise ConfigError(f"{_name(path)}: trials: a candidate is there twice.")
    numbers = [session.seq for session in sessions]
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{_name(path)}: sessions: a number is there twice.")
    for session in sessions:
        if session.candidate not in names:
            raise ConfigError(f"{_name(path)}: sessions: {session.seq} is of a candidate that trials do not name.")
    known = set(numbers)
    for index, place in enumerate(places):
        if place.session not in known:
            raise ConfigError(f"{_name(path)}: measurements.{index}: there is no session {place.session}.")


def server_kind(sheet: Sheet, wanted: ServerKind | None) -> ServerKind:
    """Whose rules hold for the settings of a file; Ollama's where nothing tells."""
    return wanted or (sheet.server.kind if sheet.server else "ollama")
