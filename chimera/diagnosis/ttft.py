"""Time to first token: split into its parts, judged by the largest; loads and caches beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import median

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.options import Options
from chimera.domain.readings import number

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Request
from .load import on_cpu
from .thresholds import REFERENCES, limit
from .views import (
    by_time,
    cached_share,
    crowds,
    duration,
    focus,
    foreign_share,
    is_cached,
    local,
    own_baseline,
    plain,
    same_model,
    seconds,
    seen,
    steady_ttfts,
)


def _loads(evidence: EvidenceSet) -> list[Request]:
    """Measured requests in the order of sending, void ones too: loads happen inside those."""
    return [each for each in evidence.requests if each.measurement.role == "measure"]


def _recent(evidence: EvidenceSet) -> list[Request]:
    """The last five requests; where a run compares numbers of agents, those of the several that loaded most."""
    rows = _loads(evidence)
    crowd = {name: [each for each in rows if each.candidate == name] for name in crowds(evidence)}
    if crowd:
        rows = max(crowd.values(), key=lambda mine: sum(_is_load(each, limit("reload-load")) for each in mine))
    return rows[-int(limit("reload-window")) :]


def _is_load(request: Request, least: float) -> bool:
    return (request.measurement.load_s or 0.0) > least


def _part(request: Request, name: str) -> float:
    value = getattr(request.measurement, name)
    return float(value) if isinstance(value, int | float) else 0.0


def high_ttft(evidence: EvidenceSet) -> Iterator[Finding]:
    """Long against the own baseline, or longer than a person waits; the largest part names the cause."""
    if evidence.workload is not None and evidence.workload.fixed_prompt:
        return
    warm = steady_ttfts(evidence)
    recurring = reload_counts(evidence)
    if recurring is not None:
        # Loads that come again and again are the user's everyday wait, so they count here although they are cold.
        pairs = [
            (each, each.measurement.ttft_s)
            for each in _loads(evidence)[-int(limit("reload-window")) :]
            if each.measurement.ttft_s is not None and each.measurement.error is None
        ]
        warm = [(each, ttft) for each, ttft in pairs if ttft is not None]
    if not warm:
        return
    now = median(ttft for _, ttft in warm)
    requests = [each for each, _ in warm]
    base = own_baseline(evidence, "ttft_s")
    reference = _reference(evidence)
    shown: list[Evidence] = []
    severity: Severity = "warn"
    if base is not None and now > limit("ttft-rise") * base.value and now - base.value > 0.1:
        title = f"The first token takes {seconds(now)}; it took {seconds(base.value)}"
        shown.append(
            seen(
                "time to first token",
                now,
                threshold=limit("ttft-rise") * base.value,
                unit="s",
                via=base.via,
                window_s=duration(requests),
                series=by_time(warm),
            )
        )
    elif recurring is not None:
        title = f"The first token takes {seconds(now)}, most of it loading the model"
        shown.append(
            seen(
                "time to first token",
                now,
                over="ttft-part-seconds",
                unit="s",
                via="own timings",
                window_s=duration(requests),
                series=by_time(warm),
            )
        )
    elif now > limit("ttft-patience"):
        title, severity = f"The first token takes {seconds(now)}", "notice"
        shown.append(
            seen(
                "time to first token",
                now,
                over="ttft-patience",
                via="own timings",
                window_s=duration(requests),
                series=by_time(warm),
            )
        )
    elif reference is not None and now > reference[0]:
        title, severity = f"The first token takes {seconds(now)}; a report for this card has less", "notice"
        shown.append(
            seen(
                "time to first token",
                now,
                threshold=reference[0],
                unit="s",
                via=reference[1],
                window_s=duration(requests),
                series=by_time(warm),
            )
        )
    else:
        return
    causes = ranked(_ttft_causes(evidence, warm, now, recurring))
    first = first_supported(causes)
    yield Finding(
        "high-ttft",
        severity,
        title,
        tuple(shown) + _split(requests, now),
        cause=first,
        causes=causes,
        remedies=tuple(_ttft_remedies(evidence, first)),
    )


def _split(requests: Sequence[Request], now: float) -> tuple[Evidence, ...]:
    names = (("load", "load_s"), ("queue", "queue_s"), ("prefill", "prefill_s"))
    found = []
    for title, field in names:
        values = [value for each in requests if (value := getattr(each.measurement, field)) is not None]
        if values:
            found.append(
                seen(
                    f"{title} inside it",
                    median(values),
                    threshold=limit("ttft-part") * now,
                    unit="s",
                    via="own timings",
                )
            )
    return tuple(found)


def _reference(evidence: EvidenceSet) -> tuple[float, str] | None:
    if evidence.model is None or not local(evidence):
        return None
    for info in evidence.gpu_infos:
        total = next((number(each.vram_total_bytes) for each in evidence.gpu_samples if each.uuid == info.uuid), None)
        for each in REFERENCES:
            if each.max_ttft_s is not None and each.matches(evidence.model.name, info.name, total):
                return each.max_ttft_s, each.source
    return None


def _ttft_causes(
    evidence: EvidenceSet, warm: list[tuple[Request, float]], now: float, recurring: tuple[int, int] | None
) -> Iterator[Cause | None]:
    total = sum(ttft for _, ttft in warm)
    load = sum(min(ttft, _part(each, "load_s")) for each, ttft in warm) / total
    queue = sum(min(ttft, _part(each, "queue_s")) for each, ttft in warm) / total
    prefill = sum(min(ttft, _part(each, "prefill_s")) for each, ttft in warm) / total
    if load > 0.2:
        name = "high-ttft/reload-thrash" if recurring is not None else "high-ttft/cold-load"
        yield cause(name, seen("load's part of it", load, over="ttft-part", via="own timings"), share=load)
    if queue > 0.2:
        yield cause(
            "high-ttft/queueing", seen("queue's part of it", queue, over="ttft-part", via="own timings"), share=queue
        )
    blocks = [each for each, ttft in warm if _one_piece(each, ttft)]
    if len(blocks) > len(warm) / 2:
        yield cause(
            "high-ttft/not-streaming",
            seen("answers that came in one piece", float(len(blocks)), threshold=len(warm) / 2, via="own timings"),
            share=0.95,
        )
        return
    if prefill > 0.2:
        part = seen("prefill's part of it", prefill, over="ttft-part", via="own timings")
        yield from _prefill_causes(evidence, warm, prefill, part)
    thinking = [(each.answer_s, ttft) for each, ttft in warm if each.answer_s is not None and each.answer_s > 2 * ttft]
    if len(thinking) > len(warm) / 2:
        yield cause(
            "high-ttft/thinking",
            seen(
                "first word of the answer", median(a for a, _ in thinking), threshold=now, unit="s", via="own timings"
            ),
            share=0.3,
        )
    known = [each for each, _ in warm if each.measurement.prefill_s is not None]
    rest = 1 - load - queue - prefill
    if rest > limit("ttft-part") and len(known) == len(warm):
        yield cause(
            "high-ttft/overhead",
            seen("part that nothing accounts for", rest, over="ttft-part", source="derived", via="own timings"),
            share=rest,
            check="A request from the server's own host, without a proxy, tells whether the network takes it.",
        )
    elif not known:
        yield cause(
            "high-ttft/queueing", check="This server does not tell queue and prefill apart; its own metrics may."
        )


def _prefill_causes(
    evidence: EvidenceSet, warm: list[tuple[Request, float]], share: float, part: Evidence
) -> Iterator[Cause | None]:
    tokens = [each.measurement.prompt_tokens for each, _ in warm if each.measurement.prompt_tokens]
    past = [each.prompt_tokens for each in evidence.history if each.prompt_tokens]
    rates = [each.measurement.prefill_tok_s for each, _ in warm if each.measurement.prefill_tok_s]
    shown = seen("computed prompt tokens", float(median(tokens)), via="server") if tokens else None
    speed = seen("prefill rate", median(rates), unit="tok/s", via="server") if rates else None
    reused = [cached_share(each) for each, _ in warm]
    growing = _grows([float(each.measurement.prompt_tokens or 0) for each, _ in warm])
    lost = any("forcing full prompt re-processing" in each.text for each in evidence.log)
    if lost or (growing and reused and all(each == 0 for each in reused)):
        yield cause(
            "high-ttft/no-prefix-reuse",
            part,
            seen("cached part of growing prompts", 0.0, over="cached-share", via="server"),
            seen("the server's log", "forcing full prompt re-processing", via="server log") if lost else None,
            share=share,
        )
    usual = median(past) if past else 0
    if tokens and (median(tokens) >= 1024 or (usual and median(tokens) > 1.5 * usual)):
        yield cause("high-ttft/long-prompt", part, shown, speed, share=0.9 * share)
    foreign = foreign_share(evidence)
    busy = [value for _, value in foreign]
    if busy and median(busy) >= limit("foreign-cpu") and on_cpu(evidence):
        yield cause(
            "high-ttft/slow-prefill",
            part,
            speed,
            seen("CPU used by other programs", median(busy), over="foreign-cpu", via="processes of this host"),
            share=0.8 * share,
        )
    elif evidence.gpu_infos and on_cpu(evidence) and local(evidence):
        yield cause("high-ttft/slow-prefill", part, speed, share=0.7 * share)
    elif not (tokens and median(tokens) >= 1024):
        yield cause("high-ttft/long-prompt", part, shown, speed, share=0.6 * share)


def _grows(lengths: list[float]) -> bool:
    """Prompts that get longer turn by turn: a conversation."""
    return len(lengths) >= 3 and all(a < b for a, b in itertools.pairwise(lengths))


def _one_piece(request: Request, ttft: float) -> bool:
    """All tokens came at once: after the first there was no time to decode the others."""
    each = request.measurement
    if (each.completion_tokens or 0) < 8:
        return False
    tail = each.total_s - ttft
    if each.decode_s is not None and each.timing_source == "server":
        return tail < limit("stream-tail") * each.decode_s
    return tail <= 0.01 * each.total_s and ttft > 0.5


def _ttft_remedies(evidence: EvidenceSet, first: str | None) -> Iterator[Remedy]:
    """By the largest part. Sampling settings are never among them: a first token comes out of the prompt pass."""
    match first:
        case "high-ttft/reload-thrash":
            yield from _one_set_of_options()
        case "high-ttft/cold-load":
            yield _kept_loaded(evidence)
        case "high-ttft/queueing":
            yield Remedy(
                "As many slots as clients.",
                {"num_parallel": max(2, evidence.workload.agents)}
                if evidence.workload is not None and evidence.workload.agents > 1
                else None,
            )
            yield Remedy("Fewer clients at once, or a second server.")
        case "high-ttft/not-streaming":
            yield Remedy("Ask for a stream (`stream: true`): without it the first token comes with the last.")
        case "high-ttft/no-prefix-reuse":
            yield Remedy("Keep the prompt's beginning the same each turn: no time of day in the system prompt.")
            yield Remedy("As many slots as clients, so that each keeps its own cache.")
        case "high-ttft/thinking":
            yield Remedy("Switch thinking off (`think: false`) where it is not needed.")
        case "high-ttft/slow-prefill":
            yield Remedy("Bring the model onto the GPU, or free the cores; see the findings on those.")
        case "high-ttft/long-prompt":
            yield Remedy("A shorter prompt; only tokens that are computed take time, whatever the window is.")
            yield Remedy("A larger batch computes more of the prompt at once.", {"num_batch": 1024})
            yield Remedy("Flash attention speeds long prompts up.", {"flash_attention": "on"})
        case _:
            yield Remedy("Measure a request from the server's own host, and with a prompt of a few words.")


def _one_set_of_options() -> Iterator[Remedy]:
    yield Remedy("One set of load options (num_ctx, num_gpu, num_batch, num_thread) for all clients.")
    yield Remedy("A derived model with the options as PARAMETER, for clients that cannot send any (/v1).")


# -- loads -----------------------------------------------------------------------------------------------------------


def reload_counts(evidence: EvidenceSet) -> tuple[int, int] | None:
    """(loads, requests) of the last five, where the model was loaded in at least two without a long pause before."""
    last = _recent(evidence)
    ended: float | None = None
    count = 0
    for each in last:
        pause = each.measurement.started_at - ended if ended is not None else 0.0
        if _is_load(each, limit("reload-load")) and pause < limit("idle-gap"):
            count += 1
        ended = each.measurement.started_at + each.measurement.total_s
    return (count, len(last)) if count >= limit("reload-count") else None


def reload_thrash(evidence: EvidenceSet) -> Iterator[Finding]:
    """Loads of more than a second in at least two of the last five requests, without a pause that explains them."""
    counts = reload_counts(evidence)
    windows = _windows(evidence)
    starts = _alternating_starts(evidence)
    if counts is None and starts is None:
        return
    last = _recent(evidence)
    loads = [(each, each.measurement.load_s or 0.0) for each in last]
    shown: list[Evidence] = []
    if counts is not None:
        shown.append(
            seen(
                "requests that loaded the model",
                float(counts[0]),
                over="reload-count",
                via="own timings",
                window_s=duration(last),
            )
        )
        shown.append(
            seen(
                "load time",
                median(load for _, load in loads if load > limit("reload-load")),
                over="reload-load",
                via="server",
                series=by_time(loads),
            )
        )
    if starts is not None:
        shown.append(starts)
    own = _own_options(last)
    crashed = [each for each in evidence.failures if is_crash(each.text)]
    several = {
        each.name for sample in evidence.server_samples if isinstance(sample.models, tuple) for each in sample.models
    }
    evicted = [each for each in evidence.log if "evicting" in each.text]
    void = [each for each in last if each.measurement.void_reason == "foreign-client"]
    foreign = (
        seen("requests with another client beside them", float(len(void)), threshold=0.0, via="/slots")
        if void
        else None
    )
    causes = ranked(
        [
            cause("reload-thrash/own-options", own, share=0.9) if own is not None else None,
            cause("reload-thrash/other-options", windows, starts, foreign, share=0.8)
            if (windows is not None or starts is not None) and own is None
            else None,
            cause(
                "reload-thrash/eviction",
                seen(
                    "models seen in memory in turn",
                    ", ".join(sorted(plain(each, 60) for each in several)[:3]),
                    via="/api/ps",
                ),
                seen("the server's log", evicted[-1].text, via="server log") if evicted else None,
                share=0.7,
            )
            if len(several) > 1 or evicted
            else None,
            cause("reload-thrash/crash", seen("the server said", crashed[-1].text, via="server's answer"), share=0.85)
            if crashed
            else None,
            cause(
                "reload-thrash/other-options",
                check="The flags of the server's engine (its process's arguments) before and after a load tell which "
                "option alternates; a client on /v1 sends none, and the defaults then hold.",
            )
            if windows is None and starts is None and own is None
            else None,
        ]
    )
    remedies = [*_one_set_of_options()]
    force = _most_used(last)
    if own is not None and force is not None:
        remedies.insert(0, Remedy("Send the same load options with every request.", force))
    first = first_supported(causes)
    if first == "reload-thrash/eviction":
        remedies.insert(0, Remedy("Smaller windows or fewer models, so that all of them stay loaded."))
    elif first == "reload-thrash/crash":
        remedies.insert(0, Remedy("Read the server's log for the crash; memory is the usual reason."))
    if counts is not None:
        title = f"The model was loaded again in {counts[0]} of the last {counts[1]} requests"
    else:
        title = "The server loads the model again and again with other settings"
    yield Finding("reload-thrash", "warn", title, tuple(shown), cause=first, causes=causes, remedies=tuple(remedies))


def is_crash(text: str) -> bool:
    """The server's words say that its engine died."""
    low = text.lower()
    return any(each in low for each in ("unexpected eof", "unexpectedly stopped", "process has terminated")) or (
        "terminated" in low and "llama-server" in low
    )


def _own_options(requests: Sequence[Request]) -> Evidence | None:
    asked = [str(each.requested.load) for each in requests if each.requested is not None]
    changes = sum(a != b for a, b in itertools.pairwise(asked))
    if changes < 2 or len(set(asked)) < 2:
        return None
    return seen(
        "load options of our requests", " / ".join(list(dict.fromkeys(asked))[:3]), via="requests", threshold="one set"
    )


def _most_used(requests: Sequence[Request]) -> dict[str, int | float | str] | None:
    asked = [
        each.requested.load for each in requests if each.requested is not None and each.requested.load != Options()
    ]
    if not asked:
        return None
    return max(asked, key=lambda each: (asked.count(each), str(each))).as_dict()


def _windows(evidence: EvidenceSet) -> Evidence | None:
    """The loaded model's window goes back and forth."""
    track: list[tuple[float, float]] = []
    for sample in evidence.server_samples:
        if not isinstance(sample.models, tuple):
            continue
        for each in sample.models:
            context = number(each.context)
            mine = evidence.model is None or same_model(each.name, evidence.model.name)
            if context is not None and mine and (not track or track[-1][1] != context):
                track.append((sample.at, context))
    if len(track) < 3 or len({value for _, value in track}) == len(track):
        return None
    values = " → ".join(f"{value:.0f}" for _, value in track[-5:])
    return seen(
        "window of the loaded model",
        values,
        threshold="one value",
        via="/api/ps",
        window_s=track[-1][0] - track[0][0],
        series=track,
    )


_SEEN_S = 3.0
"""Samples are a second apart or two: so late may an engine be seen first."""
_LOAD_FLAGS = ("-c", "-ngl", "-b", "-ub", "-t", "-np", "--flash-attn", "--cache-type-k", "--main-gpu")


def _alternating_starts(evidence: EvidenceSet) -> Evidence | None:
    """Engine starts whose flags go back to what they were before, in quick succession; not those of our sessions."""
    last = [each for each in evidence.engine_starts if not _by_session(evidence, each.at)][-5:]
    sets = [tuple((flag, each.args.get(flag)) for flag in _LOAD_FLAGS) for each in last]
    back = any(a == c and a != b for a, b, c in zip(sets, sets[1:], sets[2:], strict=False))
    if len(last) < 3 or not back or last[-1].at - last[0].at > 600:
        return None
    varied = [flag for i, flag in enumerate(_LOAD_FLAGS) if len({each[i] for each in sets}) > 1]
    values = "; ".join(
        f"{flag} " + " → ".join(plain(each.args.get(flag, "unset"), 20) for each in last) for flag in varied[:2]
    )
    return seen(
        "engine started with", values, threshold="one set", via="process arguments", window_s=last[-1].at - last[0].at
    )


def _by_session(evidence: EvidenceSet, at: float) -> bool:
    """An engine was first seen while one of our sessions began: a sweep loads its candidates in turn."""
    return any(
        -1.0 <= at - each.started_at <= (each.load_s or 0.0) + _SEEN_S
        for each in evidence.sessions
        if each.started_at is not None
    )


def cold_load(evidence: EvidenceSet) -> Iterator[Finding]:
    """A measured request had to load the model first; one is a remark, several after pauses a habit to change."""
    if reload_counts(evidence) is not None:
        return
    name = focus(evidence)
    counted = [each for each in _loads(evidence) if each.candidate == name]
    # Servers that do not tell load times mark their slow first answers as cold.
    cold = [each for each in counted if each.measurement.cold or _is_load(each, limit("ttft-part-seconds"))]
    if not cold:
        return
    loads = [load for each in cold if (load := each.measurement.load_s) is not None and load > 0]
    pauses = _pauses(counted, cold)
    typical = median(loads) if loads else None
    shown: list[Evidence] = [
        seen("cold requests", float(len(cold)), threshold=0.0, via="own timings", window_s=duration(counted))
    ]
    if typical is not None:
        shown.append(
            seen(
                "load time",
                typical,
                over="ttft-part-seconds",
                via="server",
                unit="s",
                series=by_time((each, each.measurement.load_s or 0.0) for each in cold),
            )
        )
    idle = seen("pause before", max(pauses), over="idle-gap", via="own timings", unit="s") if pauses else None
    spread = max(loads) / min(loads) if len(loads) >= 2 else 1.0
    gone = _unloaded_before(evidence, cold)
    paused = idle is not None and max(pauses) >= limit("idle-gap")
    causes = ranked(
        [
            cause("cold-load/keep-alive", gone, idle if paused else None, share=0.8)
            if paused or gone is not None
            else None,
            cause("cold-load/first-load", seen("it was the first request", "yes", via="own timings"), share=0.6)
            if counted and cold[0] is counted[0]
            else None,
            cause(
                "cold-load/disk", seen("slowest load against fastest", spread, threshold=2.0, via="server"), share=0.4
            )
            if spread >= 2
            else None,
            cause(
                "cold-load/keep-alive",
                check="The server's list of loaded models before the request tells whether it had been unloaded.",
            )
            if not paused and gone is None
            else None,
        ]
    )
    habit = len(cold) >= 2
    yield Finding(
        "cold-load",
        "notice" if habit else "info",
        f"{len(cold)} request{'s' if habit else ''} had to load the model first"
        + (f" ({seconds(typical)})" if typical is not None else "")
        + "; kept apart from the steady figures",
        tuple(shown),
        cause=first_supported(causes),
        causes=causes,
        since=cold[0].measurement.started_at,
        remedies=(_kept_loaded(evidence),),
    )


def _kept_loaded(evidence: EvidenceSet) -> Remedy:
    """What spares a request the load, in the words of the server."""
    if evidence.server is not None and evidence.server.kind in {"llama_server", "embedded"}:
        return Remedy(
            "A short request before it is needed: llama.cpp loads at its start, or after --sleep-idle-seconds."
        )
    return Remedy("A longer keep_alive (-1 = for ever), or loading the model before it is needed.")


def _unloaded_before(evidence: EvidenceSet, cold: Sequence[Request]) -> Evidence | None:
    """The server's list did not have the model just before a cold request, and had had it before that."""
    offset = evidence.clock_offset_s
    if offset is None or evidence.model is None:
        return None
    name = evidence.model.name
    held = [
        (sample.at + offset, any(same_model(each.name, name) for each in sample.models))
        for sample in evidence.server_samples
        if isinstance(sample.models, tuple)
    ]
    for each in cold:
        start = each.measurement.started_at
        before = [(at, there) for at, there in held if at <= start]
        if before and not before[-1][1] and start - before[-1][0] < limit("idle-gap") and any(t for _, t in before):
            return seen("model in the server's list just before", "no", threshold="yes", via="/api/ps")
    return None


def _pauses(counted: Sequence[Request], cold: Sequence[Request]) -> list[float]:
    found = []
    for before, after in itertools.pairwise(counted):
        if any(after is each for each in cold):
            found.append(
                max(0.0, after.measurement.started_at - before.measurement.started_at - before.measurement.total_s)
            )
    return found


def prompt_cache_hit(evidence: EvidenceSet) -> Iterator[Finding]:
    """Prompts came out of the server's cache: their time to first token and prefill rate say nothing."""
    name = focus(evidence)
    counted = [each for each in _loads(evidence) if each.candidate == name and each.measurement.error is None]
    fixed = evidence.workload is not None and evidence.workload.fixed_prompt
    hits = [each for each in counted if is_cached(each)]
    absurd = _absurd_prefill(evidence, counted)
    if not hits and absurd is None and not (fixed and len(counted) >= 2):
        return
    shares = [(each, share) for each in counted if (share := cached_share(each)) is not None]
    shown: list[Evidence] = []
    if shares:
        shown.append(
            seen(
                "cached part of the prompt",
                median(share for _, share in shares),
                over="cached-share",
                via="server",
                window_s=duration(counted),
                series=by_time(shares),
            )
        )
    if absurd is not None:
        shown.append(absurd)
    if hits:
        shown.append(seen("requests with a cached prompt", float(len(hits)), threshold=0.0, via="server"))
    asked = seen("fixed prompt", "asked for", via="workload", source="derived") if fixed else None
    if asked is not None:
        shown.append(asked)
    causes = ranked(
        [
            cause("prompt-cache-hit/fixed-prompt", asked, share=1.0) if fixed else None,
            cause("prompt-cache-hit/shared-prefix", *shown[:1], share=0.5) if not fixed else None,
        ]
    )
    yield Finding(
        "prompt-cache-hit",
        "notice",
        (
            "The same prompt is sent each time, so the cache answers"
            if fixed
            else f"{len(hits) or 'Some'} of {len(counted)} prompts came out of the server's cache"
        )
        + "; no time to first token is claimed",
        tuple(shown),
        cause=first_supported(causes),
        causes=causes,
        remedies=(Remedy("Prompts that differ from their first word on (the default), or no `--fixed-prompt`."),),
    )


def _absurd_prefill(evidence: EvidenceSet, counted: Sequence[Request]) -> Evidence | None:
    """A prefill several times faster than that of the first, equally long prompt, where the server counts no cache.

    Prompts that Chimera made differ from their first word on, so it does not look there.
    """
    if evidence.workload is not None and evidence.workload.prompt_file is None and not evidence.workload.fixed_prompt:
        return None
    speeds = [
        (each, tokens / took)
        for each in counted
        if (tokens := each.measurement.prompt_tokens)
        and tokens >= 8
        and (took := each.measurement.prefill_s)
        and took > 1e-6
        and each.measurement.cached_tokens is None
    ]
    if len(speeds) < 3:
        return None
    rates = sorted(rate for _, rate in speeds)
    usual = rates[0]
    first = speeds[0][1]
    fast = [rate for _, rate in speeds[1:] if rate > limit("cached-speedup") * first]
    same = {each.measurement.prompt_tokens for each, _ in speeds}
    if len(fast) < len(speeds) - 1 or len(same) > 1 or first > usual * 1.5:
        return None
    return seen(
        "prefill rate against the first prompt's",
        median(fast) / first,
        over="cached-speedup",
        source="derived",
        via="server",
        series=by_time(speeds),
    )


RULES = (reload_thrash, high_ttft, cold_load, prompt_cache_hit)
