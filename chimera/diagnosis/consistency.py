"""Scatter: where it comes from, and when it is only scatter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Literal

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import number

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Request
from .remedies import threads
from .thresholds import limit
from .ttft import is_crash
from .variance import Attribution, Point, VarianceCause, attribute
from .views import (
    by_time,
    cached_share,
    cv,
    duration,
    focus,
    foreign_share,
    info_of,
    local,
    percent,
    seen,
    steady_rates,
)

STRUCTURED: frozenset[VarianceCause] = frozenset(
    {"reloads", "cache-hits", "output-length", "prompt-length", "queueing", "clocks", "drift"}
)
"""Causes of scatter that can be removed, besides the load by others, which is a finding of its own."""
_NEAR_S = 1.5
"""A request shorter than the sampling interval takes the nearest sample within this time."""


def points(evidence: EvidenceSet, requests: Sequence[Request], metric: Literal["rate", "ttft"]) -> list[Point]:
    """Measurements with what was seen while they ran, for the attribution of their variance."""
    offset = evidence.clock_offset_s if local(evidence) else None
    foreign = [
        (each.at, value) for each in evidence.host_samples if (value := number(each.foreign_cpu_percent)) is not None
    ]
    clocks: list[tuple[float, float]] = []
    slowed: list[tuple[float, float]] = []
    for each in evidence.gpu_samples:
        clock, info = number(each.sm_mhz), info_of(evidence, each.uuid)
        highest = number(info.max_sm_mhz) if info is not None else None
        if clock:
            clocks.append((each.at, clock / highest if highest else clock))
        if each.throttles:
            slowed.append((each.at, min(1.0, sum(one.share for one in each.throttles if one.reason != "power-cap"))))
    found = []
    for request in requests:
        measurement = request.measurement
        value = measurement.rate if metric == "rate" else measurement.ttft_s
        if value is None or value <= 0:
            continue
        start = None if offset is None else measurement.started_at - offset
        others = _mean(foreign, start, measurement.total_s)
        found.append(
            Point(
                value,
                measurement.started_at,
                request.candidate,
                measurement.load_s,
                measurement.cold,
                measurement.queue_s,
                cached_share(request),
                float(measurement.prompt_tokens) if measurement.prompt_tokens else None,
                float(measurement.completion_tokens) if measurement.completion_tokens else None,
                None if others is None else others / 100,
                _mean(clocks, start, measurement.total_s),
                _mean(slowed, start, measurement.total_s),
            )
        )
    return found


def _mean(series: Sequence[tuple[float, float]], start: float | None, length: float) -> float | None:
    """Mean of the samples inside a request, else the nearest one."""
    if start is None or not series:
        return None
    held = [value for at, value in series if start <= at <= start + length]
    if held:
        return fmean(held)
    at, value = min(series, key=lambda pair: abs(pair[0] - start - length / 2))
    return value if abs(at - start - length / 2) <= _NEAR_S + length / 2 else None


def scatter(evidence: EvidenceSet, metric: Literal["rate", "ttft"]) -> Attribution | None:
    """Where the scatter of the judged candidate's values comes from; cold ones are among them here, as a cause."""
    name = focus(evidence)
    fixed = evidence.workload is not None and evidence.workload.fixed_prompt
    usable = [
        each
        for each in evidence.requests
        if each.candidate == name
        and each.measurement.role == "measure"
        and each.measurement.error is None
        and each.measurement.void_reason in (None, "cache-hit", "reload-inside", "foreign-client")
        and not (metric == "ttft" and fixed)
    ]
    return attribute(points(evidence, usable, metric), metric)


def inconsistent_performance(evidence: EvidenceSet) -> Iterator[Finding]:
    """Warm decode scatters by more than 5 % for a reason that can be removed, or requests fail among good ones."""
    name = focus(evidence)
    pairs = steady_rates(evidence)
    rates = [rate for _, rate in pairs]
    wide = len(rates) >= limit("cv-n") and cv(rates) > limit("cv")
    attribution = scatter(evidence, "rate") if wide else None
    foreign = _busy_machine(evidence)
    kept = _structured(attribution, foreign)
    modes = attribution.modes if attribution is not None and not foreign else None
    counted = [each for each in evidence.requests if each.candidate == name and each.measurement.role == "measure"]
    bad = [
        each
        for each in counted
        if each.measurement.void_reason in ("error", "timeout")
        or (each.measurement.void_reason is None and each.measurement.completion_tokens == 0)
    ]
    late = _late(evidence)
    if not kept and modes is None and not bad and late is None:
        return
    shown: list[Evidence] = []
    if wide and (kept or modes is not None):
        shown.append(
            seen(
                "scatter of the warm decode rate",
                cv(rates),
                over="cv",
                source="derived",
                via="own timings",
                window_s=duration([each for each, _ in pairs]),
                series=by_time(pairs),
            )
        )
    if modes is not None:
        shown.append(
            seen(
                "two groups of rates",
                f"{modes.low:.3g} and {modes.high:.3g} tok/s",
                source="derived",
                via="own timings",
            )
        )
    if late is not None:
        shown.append(
            seen("scatter of the time to first token", late.cv, over="ttft-cv", source="derived", via="own timings")
        )
    if bad:
        shown.append(
            seen(
                "requests that failed, timed out or came back empty",
                float(len(bad)),
                threshold=0.0,
                via="own timings",
                window_s=duration(counted),
            )
        )
    crashed = [each.measurement.error for each in bad if each.measurement.error and is_crash(each.measurement.error)]
    crashed += [each.text for each in evidence.failures if is_crash(each.text) and not each.at_load]
    causes: list[Cause | None] = []
    if attribution is not None and (kept or modes is not None):
        causes += share_causes(attribution)
    if late is not None and not kept:
        causes += share_causes(late)
    if modes is not None:
        causes.append(
            cause(
                "inconsistent-performance/bimodal",
                shown[1] if len(shown) > 1 else None,
                share=0.2,
                check="What differs between the two groups: the child's pid, the slot, the GPU, the cores?",
            )
        )
    if bad:
        causes.append(cause("inconsistent-performance/failures", shown[-1], share=len(bad) / max(1, len(counted))))
    if crashed:
        causes.append(
            cause(
                "inconsistent-performance/crash", seen("the server said", crashed[-1], via="server's answer"), share=1.0
            )
        )
    order = ranked(causes)
    first = first_supported(order)
    if bad and not kept and modes is None and late is None:
        title = f"{len(bad)} of {len(counted)} requests failed, timed out or came back empty"
    elif modes is not None and not kept:
        title = f"Rates come in two groups, about {modes.low:.3g} and {modes.high:.3g} tok/s"
    elif kept:
        share = attribution.of(kept[0]) if attribution is not None else 0.0
        title = f"Rates scatter by {percent(cv(rates))}; {percent(share)} of that comes from {_WORDS[kept[0]]}"
        if modes is not None:
            title += ", in two groups"
    else:
        assert late is not None
        origin = _WORDS[late.shares[0].cause]
        title = f"Times to first token scatter by {percent(late.cv)}; most of that comes from {origin}"
    severity: Severity = "warn" if bad or kept or modes is not None else "notice"
    yield Finding(
        "inconsistent-performance",
        severity,
        title,
        tuple(shown),
        cause=first,
        causes=order,
        remedies=tuple(_cures(evidence, order, bool(crashed))),
    )


_WORDS: dict[VarianceCause, str] = {
    "reloads": "cold calls and reloads",
    "cache-hits": "the prompt cache",
    "output-length": "the length of answers",
    "prompt-length": "the length of prompts",
    "queueing": "waiting for others",
    "foreign-load": "other programs",
    "clocks": "clocks that move",
    "drift": "a drift over the series",
    "noise": "plain noise",
    "unexplained": "something unexplained",
}


def share_causes(attribution: Attribution) -> list[Cause | None]:
    """One cause for each share of the variance; the rest is called unexplained."""
    found: list[Cause | None] = []
    for each in attribution.shares:
        value = seen(
            f"part of the variance that comes from {_WORDS[each.cause]}",
            each.share,
            source="derived",
            via=f"{attribution.n} measurements",
            threshold=limit("structured-share"),
        )
        size = (
            seen("from its least to its most", each.effect, unit="times", source="derived", via="own timings")
            if each.effect is not None
            else None
        )
        found.append(cause(f"inconsistent-performance/{each.cause}", value, size, share=each.share))
    return found


def _structured(attribution: Attribution | None, foreign: bool) -> list[VarianceCause]:
    """Causes that explain enough to name; where others use the machine, a drift is theirs as likely as not."""
    if attribution is None:
        return []
    return [
        each.cause
        for each in attribution.shares
        if each.cause in STRUCTURED
        and each.share >= limit("structured-share")
        and not (foreign and each.cause == "drift")
    ]


def _busy_machine(evidence: EvidenceSet) -> bool:
    values = [value for _, value in foreign_share(evidence)]
    return bool(values) and max(fmean(values), median(values)) >= limit("foreign-cpu")


def _late(evidence: EvidenceSet) -> Attribution | None:
    """Times to first token that scatter for a reason that can be removed."""
    attribution = scatter(evidence, "ttft")
    if attribution is None or attribution.cv <= limit("ttft-cv"):
        return None
    first = attribution.shares[0] if attribution.shares else None
    if first is None or first.share < 0.5 or first.cause not in {"reloads", "queueing", "cache-hits"}:
        return None
    name = focus(evidence)
    cold = [
        each
        for each in evidence.requests
        if each.candidate == name
        and each.measurement.role == "measure"
        and (each.measurement.cold or (each.measurement.load_s or 0.0) > limit("ttft-part-seconds"))
    ]
    if first.cause == "reloads" and len(cold) < 2:
        # One slow call after a load is what a load looks like.
        return None
    return attribution


def _cures(evidence: EvidenceSet, causes: tuple[Cause, ...], crashed: bool) -> Iterator[Remedy]:
    if crashed:
        yield Remedy("Read the server's log around the failure; memory is the usual reason.")
    names = [each.id.partition("/")[2] for each in causes if (each.share or 0) >= limit("structured-share")]
    for each in names:
        match each:
            case "reloads":
                yield Remedy("Keep the model loaded, and show cold calls apart.")
            case "cache-hits":
                yield Remedy("Prompts that differ from their first word on.")
            case "output-length":
                yield Remedy("A fixed length of answers, at least 16 tokens.")
            case "prompt-length":
                yield Remedy("Prompts of one length, or figures for each length apart.")
            case "queueing":
                yield Remedy("As many slots as clients, or fewer clients.")
            case "foreign-load":
                yield Remedy("Measure with nothing else running.")
                yield from threads(evidence, fmean([v for _, v in foreign_share(evidence)] or [0.0]))
            case "clocks":
                yield Remedy("Better cooling or a lower power limit, so that clocks stay level.")
            case "drift":
                yield Remedy("Interleave what is compared with a control, as `chimera sweep` does; look at heat first.")
            case "bimodal":
                yield Remedy("Compare one measurement of each group: slot, child, GPU, cores.")
            case _:
                pass


def measurement_noise(evidence: EvidenceSet) -> Iterator[Finding]:
    """Too short, too uneven or too scattered for small differences, without a cause that could be removed."""
    pairs = steady_rates(evidence)
    rates = [rate for _, rate in pairs]
    shown: list[Evidence] = []
    causes: list[Cause | None] = []
    remedies: list[Remedy] = []
    window = duration([each for each, _ in pairs])
    lengths = [
        (each, float(each.measurement.completion_tokens))
        for each, _ in pairs
        if each.measurement.completion_tokens is not None
    ]
    short = [length for _, length in lengths if length < limit("short-output")]
    if len(lengths) >= 2 and len(short) > len(lengths) / 2:
        one = seen(
            "tokens of an answer",
            median(short),
            over="short-output",
            via="server",
            window_s=window,
            series=by_time(lengths),
        )
        shown.append(one)
        causes.append(cause("measurement-noise/short-output", one, share=0.6))
        remedies.append(Remedy("Answers of 64 tokens and more give a steady rate."))
    off = [
        each
        for each, length in lengths
        if each.output_tokens and abs(length - each.output_tokens) > limit("length-off") * each.output_tokens
    ]
    if len(off) >= 2 and len(off) > 0.2 * len(lengths):
        one = seen(
            "answers not of the length that was asked for",
            float(len(off)),
            threshold=0.2 * len(lengths),
            via="server",
            window_s=window,
        )
        shown.append(one)
        causes.append(cause("measurement-noise/length", one, share=0.5))
        remedies.append(Remedy("A fixed length: end-of-text ignored where the server can, else a prompt that goes on."))
    if len(rates) >= limit("cv-n") and cv(rates) > limit("cv"):
        attribution = scatter(evidence, "rate")
        foreign = _busy_machine(evidence)
        if not _structured(attribution, foreign) and (attribution is None or attribution.modes is None or foreign):
            spread = cv(rates)
            one = seen(
                "scatter of the warm decode rate",
                spread,
                over="cv",
                source="derived",
                via="own timings",
                window_s=window,
                series=by_time(pairs),
            )
            shown.append(one)
            # (t.975 + t.8) s sqrt(2/n): what a comparison of two such sets could show.
            visible = 2.9 * spread * (2 / len(rates)) ** 0.5
            shown.append(
                seen(
                    "smallest difference that two such sets could show",
                    visible,
                    source="estimated",
                    via="scatter and count",
                )
            )
            share = attribution.of("foreign-load") if attribution is not None else 0.0
            two = (
                seen(
                    "part of the variance that comes from other programs",
                    share,
                    source="derived",
                    via="own timings, processes of this host",
                )
                if share > 0
                else None
            )
            if foreign:
                causes.append(cause("measurement-noise/busy-machine", one, two, share=max(0.5, share)))
                remedies.append(Remedy("Measure with nothing else running."))
            else:
                causes.append(cause("measurement-noise/scatter", one, share=0.5))
                remedies.append(Remedy("More rounds narrow the interval; they remove no cause."))
    if not shown:
        return
    order = ranked(causes)
    first = first_supported(order)
    titles = {
        "measurement-noise/short-output": "Answers are too short to give a steady rate",
        "measurement-noise/length": "Answers are not of the length that was asked for",
        "measurement-noise/scatter": "Rates scatter without a pattern",
        "measurement-noise/busy-machine": "Rates scatter because the machine is busy",
    }
    spread_words = f" ({percent(cv(rates))})" if first and ("scatter" in first or "busy" in first) else ""
    yield Finding(
        "measurement-noise",
        "notice",
        titles[first or "measurement-noise/scatter"] + spread_words,
        tuple(shown),
        cause=first,
        causes=order,
        remedies=tuple(remedies),
    )


RULES = (inconsistent_performance, measurement_noise)
