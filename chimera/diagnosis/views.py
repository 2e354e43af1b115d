"""What several rules read out of the evidence: the judged requests, samples under load, placement, the baseline."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from urllib.parse import urlsplit

from chimera.domain.finding import Evidence
from chimera.domain.options import Options
from chimera.domain.readings import Reading, Source, number
from chimera.domain.server import ModelInfo
from chimera.domain.telemetry import GpuInfo, GpuProcess, GpuSample, HostSample, LoadedModel, ServerSample

from .evidence import EvidenceSet, Request
from .thresholds import THRESHOLDS, limit

_JOIN_S = 2.0
"""Pauses between requests up to this long count as load: samples are taken once a second."""


def plain(text: str, length: int = 200) -> str:
    """Text from outside on one line, without control characters, cut to a length."""
    line = "".join(each if each.isprintable() else " " for each in text[: length * 4])
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def seen(
    what: str,
    value: float | str | None,
    *,
    over: str | None = None,
    threshold: float | str | None = None,
    window_s: float | None = None,
    source: Source = "measured",
    unit: str = "",
    via: str = "",
    series: Sequence[tuple[float, float]] = (),
) -> Evidence:
    """A piece of evidence; `over` names the threshold of the table that it was compared with."""
    if over is not None and threshold is None:
        threshold = THRESHOLDS[over].value
    return Evidence(
        what=what,
        value=plain(value) if isinstance(value, str) else value,
        threshold=threshold,
        window_s=window_s,
        source="unknown" if value is None else source,
        unit=unit or (THRESHOLDS[over].unit if over is not None else ""),
        via=via,
        series=tuple(thinned(series)),
    )


def thinned(series: Sequence[tuple[float, float]], points: int = 120) -> list[tuple[float, float]]:
    """At most so many points of a series, its last one kept, times counted from its first."""
    if not series:
        return []
    start = series[0][0]
    step = max(1, math.ceil(len(series) / points))
    kept = list(series[::step])
    if kept[-1] != series[-1]:
        kept.append(series[-1])
    return [(at - start, value) for at, value in kept]


def cv(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    middle = fmean(values)
    if len(values) < 2 or middle <= 0:
        return 0.0
    return pstdev(values) * math.sqrt(len(values) / (len(values) - 1)) / middle


def gib(count: float) -> str:
    """Bytes for a sentence."""
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def seconds(value: float) -> str:
    """A duration for a sentence."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"


def percent(share: float) -> str:
    """A share for a sentence."""
    return f"{share * 100:.1f} %" if share < 0.1 else f"{share * 100:.0f} %"


# -- the server ------------------------------------------------------------------------------------------------------


def local(evidence: EvidenceSet) -> bool:
    """The server runs on this host, so that this host's GPU and cores are the ones it uses."""
    if evidence.local is not None:
        return evidence.local
    if evidence.server is None or evidence.server.kind == "embedded" or not evidence.server.url:
        return True
    try:
        host = urlsplit(evidence.server.url).hostname or ""
    except ValueError:
        return False
    return host in {"localhost", "::1", ""} or host.startswith("127.")


def same_model(name: str, other: str) -> bool:
    """Two names mean one model: Ollama's `:latest` may be left out."""
    return name.removesuffix(":latest") == other.removesuffix(":latest")


def options_in_force(evidence: EvidenceSet) -> Options:
    """What runs, as far as it is known, else what was asked for."""
    requested = evidence.requested or Options()
    return evidence.effective.options.over(requested) if evidence.effective is not None else requested


def loaded(evidence: EvidenceSet) -> LoadedModel | None:
    """The judged model as the server last showed it in memory."""
    for sample in reversed(evidence.server_samples):
        if not isinstance(sample.models, tuple) or not sample.models:
            continue
        if evidence.model is None:
            return sample.models[0] if len(sample.models) == 1 else None
        for each in sample.models:
            if same_model(each.name, evidence.model.name):
                return each
    return None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model's weights lie."""

    on_gpu: float
    """Part in GPU memory, 0 to 1."""
    source: Source
    via: str
    size_bytes: float | None = None
    vram_bytes: float | None = None
    layers: int | None = None
    layers_in_all: int | None = None

    @property
    def whole(self) -> bool:
        """Everything is on the GPU; the token table and buffers that llama.cpp keeps on the host are no offload."""
        # Layers count as placed also where their experts are kept on the host, which is more than a table.
        tables = self.layers is not None and self.layers == self.layers_in_all
        return self.on_gpu >= limit("token-table" if tables else "offload")

    @property
    def evidence(self) -> Evidence:
        """As a piece of evidence."""
        if self.layers is not None and self.layers_in_all is not None:
            value: float | str = f"{self.layers} of {self.layers_in_all} layers"
        else:
            value = self.on_gpu
        return seen("model in GPU memory", value, over="offload", source=self.source, via=self.via)


def layers_in_all(evidence: EvidenceSet) -> int | None:
    """Layers that can be placed: the blocks and the output layer."""
    blocks = evidence.model.block_count if evidence.model is not None else None
    return blocks + 1 if blocks is not None and 0 < blocks < 100_000 else None


def placement(evidence: EvidenceSet) -> Placement | None:
    """Where the model lies: by the server's sums, else by its log, else by its layers; None where nobody tells."""
    every = layers_in_all(evidence)
    from_log = _offloaded(evidence)
    held = loaded(evidence)
    size = number(held.size_bytes) if held is not None else None
    vram = number(held.vram_bytes) if held is not None else None
    via = "/api/ps"
    if (size is None or vram is None) and evidence.effective is not None:
        size, vram, via = evidence.effective.size_bytes, evidence.effective.vram_bytes, "read back after loading"
    if size and vram is not None:
        # The newest line may be of another model that was loaded since.
        mine = from_log is not None and every in {None, from_log[1]}
        layers, count = from_log if from_log is not None and mine else (None, every)
        return Placement(min(1.0, vram / size), "measured", via, size, vram, layers, count)
    if from_log is not None and from_log[1] > 0:
        return Placement(from_log[0] / from_log[1], "measured", "server log", None, None, *from_log)
    asked = evidence.effective.options.num_gpu if evidence.effective is not None else None
    if asked is not None and asked >= 0 and every is not None:
        layers = min(asked, every)
        return Placement(layers / every, "estimated", "layers in force", None, None, layers, every)
    return None


def _offloaded(evidence: EvidenceSet) -> tuple[int, int] | None:
    for line in reversed(evidence.log):
        _, found, rest = line.text.partition("offloaded ")
        if not found:
            continue
        done, slash, every = rest.split(" ", 1)[0].partition("/")
        digits = done.isascii() and done.isdigit() and every.isascii() and every.isdigit() and len(every) < 7
        if slash and digits and 0 < int(every) >= int(done):
            return int(done), int(every)
    return None


# -- requests --------------------------------------------------------------------------------------------------------


def focus(evidence: EvidenceSet) -> str:
    """The candidate that is judged."""
    if evidence.focus is not None:
        return evidence.focus
    names = {each.candidate for each in evidence.requests}
    if "c0" in names:
        return "c0"
    return evidence.requests[-1].candidate if evidence.requests else ""


def crowds(evidence: EvidenceSet) -> dict[str, int]:
    """Candidates that several agents of ours used at once, each with how many; in the order of their first requests."""
    agents: dict[str, set[int]] = {}
    for each in evidence.requests:
        agents.setdefault(each.candidate, set()).add(each.measurement.agent)
    return {name: len(who) for name, who in agents.items() if len(who) > 1}


def measured(evidence: EvidenceSet) -> list[Request]:
    """Requests of the judged candidate that count: warm, valid, not the discarded one."""
    name = focus(evidence)
    return [
        each
        for each in evidence.requests
        if each.candidate == name and each.measurement.valid and not each.measurement.cold
    ]


def cached_share(request: Request) -> float | None:
    """Part of the prompt that the server had cached."""
    cached, tokens = request.measurement.cached_tokens, request.measurement.prompt_tokens
    return None if cached is None or not tokens else min(1.0, cached / tokens)


def is_cached(request: Request) -> bool:
    """The prompt, or more than its first token and a tenth of it, came out of the cache."""
    share = cached_share(request)
    if request.measurement.void_reason == "cache-hit":
        return True
    return share is not None and share > limit("cached-share") and (request.measurement.cached_tokens or 0) > 1


def steady_rates(evidence: EvidenceSet) -> list[tuple[Request, float]]:
    """Warm decode rates of the judged candidate; cold and void ones never enter."""
    pairs = ((each, each.measurement.rate) for each in measured(evidence))
    return [(each, rate) for each, rate in pairs if rate is not None and rate > 0]


def steady_ttfts(evidence: EvidenceSet) -> list[tuple[Request, float]]:
    """Warm times to first token whose prompts were really computed."""
    if evidence.workload is not None and evidence.workload.fixed_prompt:
        return []
    pairs = ((each, each.measurement.ttft_s) for each in measured(evidence) if not is_cached(each))
    return [(each, ttft) for each, ttft in pairs if ttft is not None and ttft > 0]


def duration(requests: Sequence[Request]) -> float | None:
    """Seconds from the first request's start to the last one's end."""
    if not requests:
        return None
    first = min(each.measurement.started_at for each in requests)
    last = max(each.measurement.started_at + each.measurement.total_s for each in requests)
    return max(0.0, last - first)


def by_time(pairs: Iterable[tuple[Request, float]]) -> list[tuple[float, float]]:
    """A series for a chart out of requests with values."""
    return sorted((each.measurement.started_at, value) for each, value in pairs)


# -- the own baseline ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Baseline:
    """What this configuration did before."""

    value: float
    source: Source
    via: str


def _comparable(evidence: EvidenceSet, past_prompt: int | None) -> bool:
    now = [each.measurement.prompt_tokens for each in measured(evidence)]
    known = [each for each in now if each]
    if past_prompt is None or not known:
        return True
    ratio = median(known) / max(1, past_prompt)
    return 0.5 <= ratio <= 2.0


def own_baseline(evidence: EvidenceSet, metric: str) -> Baseline | None:
    """The rate (`decode_tok_s`) or time (`ttft_s`) that this model had here before with these settings."""
    given = evidence.baseline_tok_s if metric == "decode_tok_s" else evidence.baseline_ttft_s
    if given is not None and given > 0:
        return Baseline(given, "measured", "the own baseline")
    now = options_in_force(evidence).load
    values = []
    for past in evidence.history:
        value = past.decode_tok_s if metric == "decode_tok_s" else past.ttft_s
        if value is None or value <= 0 or not _same_file(evidence.model, past.model, past.digest):
            continue
        if (past.options or Options()).load != now or not _comparable(evidence, past.prompt_tokens):
            continue
        values.append(value)
    if not values:
        return None
    return Baseline(median(values), "measured", f"journal, {len(values)} earlier run{'s' if len(values) > 1 else ''}")


def _same_file(model: ModelInfo | None, name: str | None, digest: str | None) -> bool:
    if model is None:
        return False
    if model.digest is not None and digest is not None:
        return model.digest == digest
    return name is not None and same_model(model.name, name)


# -- time ------------------------------------------------------------------------------------------------------------


def load_windows(evidence: EvidenceSet) -> list[tuple[float, float]]:
    """Monotonic times in which requests ran, ours or (by the server's slots) anyone's; joined over short pauses."""
    raw: list[tuple[float, float]] = []
    offset = evidence.clock_offset_s
    if offset is not None:
        for each in evidence.requests:
            start = each.measurement.started_at - offset
            raw.append((start, start + each.measurement.total_s))
    samples = evidence.server_samples
    for a, b in itertools.pairwise(samples):
        if (number(a.busy) or 0) > 0 and (number(b.busy) or 0) > 0 and b.at - a.at <= 2 * _JOIN_S:
            raw.append((a.at, b.at))
    raw.sort()
    joined: list[tuple[float, float]] = []
    for start, end in raw:
        if joined and start - joined[-1][1] <= _JOIN_S:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def inside(at: float, windows: Sequence[tuple[float, float]]) -> bool:
    """A moment lies in one of the windows."""
    return any(start <= at <= end for start, end in windows)


def engine_gpus(lists: Mapping[str, Sequence[Sequence[GpuProcess]]], engines: frozenset[int]) -> Sequence[str]:
    """The GPUs that the engine is on, by the lists of their processes: whoever computes on another one is no matter.

    Those on which it computed, as an engine opens every GPU that it is shown; where none shows that, those that name
    it; where none does, all.
    """
    mine = {
        uuid: [each.sm_percent for processes in looks for each in processes if each.pid in engines]
        for uuid, looks in lists.items()
    }
    works = [uuid for uuid, shares in mine.items() if any((number(share) or 0.0) > 0 for share in shares)]
    return works or [uuid for uuid, shares in mine.items() if shares] or list(lists)


def gpu_load(evidence: EvidenceSet) -> dict[str, list[GpuSample]]:
    """Samples of each GPU while requests ran; where nothing tells when, those at half utilisation or more."""
    windows = load_windows(evidence) if local(evidence) else []
    if not local(evidence):
        return {}
    found: dict[str, list[GpuSample]] = {}
    for each in evidence.gpu_samples:
        if windows:
            busy = inside(each.at, windows)
        elif evidence.requests or evidence.server_samples:
            busy = not evidence.server_samples and _utilized(each)
        else:
            busy = _utilized(each)
        if busy:
            found.setdefault(each.uuid, []).append(each)
    return found


def _utilized(sample: GpuSample) -> bool:
    return (number(sample.utilization) or 0.0) >= limit("busy-utilization")


def host_load(evidence: EvidenceSet) -> list[HostSample]:
    """Samples of this host while requests ran."""
    if not local(evidence):
        return []
    windows = load_windows(evidence)
    if not windows:
        return []
    return [each for each in evidence.host_samples if inside(each.at, windows)]


def server_load(evidence: EvidenceSet) -> list[ServerSample]:
    """Samples of the server while requests ran."""
    windows = load_windows(evidence)
    return [each for each in evidence.server_samples if inside(each.at, windows)]


def span(samples: Sequence[GpuSample] | Sequence[HostSample] | Sequence[ServerSample]) -> float:
    """Seconds from the first sample to the last."""
    return samples[-1].at - samples[0].at if samples else 0.0


def numbers(samples: Sequence[HostSample], pick: Callable[[HostSample], Reading]) -> list[tuple[float, float]]:
    """(time, value) of a host reading wherever there is one."""
    pairs = ((each.at, number(pick(each))) for each in samples)
    return [(at, value) for at, value in pairs if value is not None]


def gpu_numbers(samples: Sequence[GpuSample], pick: Callable[[GpuSample], Reading]) -> list[tuple[float, float]]:
    """(time, value) of a GPU reading wherever there is one."""
    pairs = ((each.at, number(pick(each))) for each in samples)
    return [(at, value) for at, value in pairs if value is not None]


def info_of(evidence: EvidenceSet, uuid: str) -> GpuInfo | None:
    """The GPU with that UUID."""
    return next((each for each in evidence.gpu_infos if each.uuid == uuid), None)


_SHARE_OF_A_GPU = re.compile(r"^GRID |-\d+[ABCQ]$")


def is_virtual(info: GpuInfo) -> bool:
    """It is a share of a GPU that a hypervisor hands out: such profiles are called `GRID T4-8Q`, `NVIDIA L40S-24Q`."""
    return _SHARE_OF_A_GPU.search(info.name) is not None


def gpu_name(evidence: EvidenceSet, uuid: str) -> str:
    """A GPU for a sentence: its index where there are several."""
    info = info_of(evidence, uuid)
    if info is None:
        return "the GPU"
    return f"GPU {info.index}" if len(evidence.gpu_infos) > 1 else "the GPU"


def wall(evidence: EvidenceSet, at: float | None) -> float | None:
    """A monotonic moment on the wall clock, where the two can be related."""
    return None if at is None or evidence.clock_offset_s is None else at + evidence.clock_offset_s


def foreign_share(evidence: EvidenceSet) -> list[tuple[float, float]]:
    """CPU of others while requests ran, in percent of all cores."""
    return numbers(host_load(evidence), lambda each: each.foreign_cpu_percent)


def rate_fell(evidence: EvidenceSet) -> tuple[bool | None, Evidence | None]:
    """Whether the decode rate fell, against the own baseline or else from the run's beginning to its end."""
    pairs = steady_rates(evidence)
    rates = [rate for _, rate in pairs]
    if not rates:
        return None, None
    base = own_baseline(evidence, "decode_tok_s")
    if base is not None:
        ratio = median(rates) / base.value
        shown = seen(
            "decode rate against before",
            ratio,
            threshold=1 - limit("rate-drop"),
            unit="of the own baseline",
            source="derived",
            via=base.via,
            window_s=duration([each for each, _ in pairs]),
        )
        return ratio < 1 - limit("rate-drop"), shown
    if len(rates) < 6:
        return None, None
    third = len(rates) // 3
    ratio = median(rates[-third:]) / median(rates[:third])
    shown = seen(
        "decode rate at the end against the beginning",
        ratio,
        over="rate-held",
        source="derived",
        via="own timings",
        window_s=duration([each for each, _ in pairs]),
        series=by_time(pairs),
    )
    return ratio < limit("rate-held"), shown
