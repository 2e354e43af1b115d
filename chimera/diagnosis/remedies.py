"""Cures that several rules name, computed for this model, this machine and these settings."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chimera.domain.finding import Remedy
from chimera.domain.readings import number
from chimera.domain.server import ModelInfo

from .evidence import EvidenceSet
from .thresholds import limit
from .views import gib, gpu_load, layers_in_all, loaded, options_in_force, placement, plain, same_model


def free_vram(evidence: EvidenceSet) -> float | None:
    """Free memory of the GPU that has most of it, by the newest samples."""
    newest = {each.uuid: each for each in evidence.gpu_samples}
    free = [value for each in newest.values() if (value := number(each.vram_free_bytes)) is not None]
    return max(free) if free else None


def missing_bytes(evidence: EvidenceSet) -> float | None:
    """GPU memory that the whole model lacks: by the server's sums, else forecast against what is free."""
    lies = placement(evidence)
    free = free_vram(evidence)
    if lies is not None and lies.size_bytes is not None and lies.vram_bytes is not None and not lies.whole:
        return max(0.0, lies.size_bytes - lies.vram_bytes - max(0.0, (free or 0.0) - limit("vram-margin")))
    if evidence.forecast_bytes is not None and free is not None:
        held = lies.vram_bytes if lies is not None and lies.vram_bytes is not None else 0.0
        return max(0.0, evidence.forecast_bytes - free - held + limit("vram-margin"))
    return None


def window(evidence: EvidenceSet) -> int | None:
    """Tokens of context per slot that run."""
    asked = options_in_force(evidence).num_ctx
    if asked is not None:
        return asked
    held = loaded(evidence)
    shown = number(held.context) if held is not None else None
    return int(shown) if shown is not None else None


def smaller_window(evidence: EvidenceSet) -> Iterator[Remedy]:
    """A window that frees what is missing; silent where it would not, or would cut the prompts in use."""
    now, each_token, lacking = window(evidence), evidence.kv_bytes_per_token, missing_bytes(evidence)
    if now is None or each_token is None or each_token <= 0 or not lacking:
        return
    floor = 2048 if evidence.model is not None and evidence.model.vision else 256
    used = [
        (each.measurement.prompt_tokens or 0) + (each.measurement.completion_tokens or 0) for each in evidence.requests
    ]
    floor = max(floor, 256 * math.ceil(max(used, default=0) / 256))
    wanted = 256 * math.floor((now - lacking / each_token) / 256)
    if floor <= wanted < now:
        yield Remedy(
            f"A window of {wanted} tokens instead of {now} frees {gib((now - wanted) * each_token)}, enough for the "
            "layers that are missing.",
            {"num_ctx": wanted},
        )
    elif floor < now and (now - floor) * each_token >= 0.25 * lacking:
        yield Remedy(
            f"A window of {floor} tokens frees {gib((now - floor) * each_token)} of the {gib(lacking)} that are "
            "missing.",
            {"num_ctx": floor},
        )


def fewer_slots(evidence: EvidenceSet) -> Iterator[Remedy]:
    """One slot instead of several, where the work does not need more."""
    slots = options_in_force(evidence).num_parallel
    agents = evidence.workload.agents if evidence.workload is not None else 1
    if slots is not None and slots > max(1, agents):
        yield Remedy(
            f"{slots} slots each hold a window of their own; {agents} would do.", {"num_parallel": max(1, agents)}
        )


def smaller_cache(evidence: EvidenceSet) -> Iterator[Remedy]:
    """A quantised KV cache with flash attention, where it is not in use and the model runs on a GPU."""
    if not evidence.gpu_infos or options_in_force(evidence).kv_cache_type not in (None, "f16"):
        return
    yield Remedy(
        "A KV cache of type q8_0 takes about half the memory; it needs flash attention.",
        {"kv_cache_type": "q8_0", "flash_attention": "on"},
    )


def automatic_layers(evidence: EvidenceSet) -> Remedy:
    """The server places as many layers as fit, in the words of that server."""
    kind = evidence.server.kind if evidence.server is not None else None
    words = {
        "embedded": "num_gpu -1 lets llama.cpp place as many layers as fit.",
        "llama_server": "Started with `-ngl -1` (num_gpu -1), llama-server places as many layers as fit.",
    }.get(
        kind or "",
        "num_gpu -1 lets the server place as many layers as fit; unload the model first, since -1 alone keeps what the "
        "last value loaded.",
    )
    return Remedy(words, {"num_gpu": -1})


def fewer_layers(evidence: EvidenceSet) -> Iterator[Remedy]:
    """Fewer layers on the GPU than the model has, by what fits; never a number that is clamped to all of them."""
    every, needed, free = layers_in_all(evidence), evidence.forecast_bytes, free_vram(evidence)
    explicit = options_in_force(evidence).num_gpu
    if explicit is not None and explicit >= 0:
        yield automatic_layers(evidence)
    if every is None or needed is None or needed <= 0 or free is None:
        return
    fitting = math.floor(every * max(0.0, free - limit("vram-margin")) / needed)
    if 0 < fitting < every and (explicit is None or fitting < explicit):
        yield Remedy(
            f"About {fitting} of {every} layers fit into {gib(free)}; every value from {every} up is the same as all "
            "of them.",
            {"num_gpu": fitting},
        )


def smaller_models(evidence: EvidenceSet) -> Iterator[Remedy]:
    """Smaller quants of the same model, then smaller models, that are installed."""
    now = evidence.model
    if now is None or now.size_bytes is None:
        return
    size = now.size_bytes
    others = [
        each
        for each in evidence.installed
        if each.size_bytes is not None and each.size_bytes < 0.9 * size and not same_model(each.name, now.name)
    ]
    family = now.name.partition(":")[0]
    alike = [each for each in others if each.parameters is not None and each.parameters == now.parameters]
    related = [each for each in others if each not in alike and each.name.partition(":")[0] == family]
    rest = [each for each in others if each not in alike and each not in related]
    for each in (_largest(alike) or _largest(related) or _largest(rest))[:2]:
        kind = "The same model in a smaller quant" if each in alike else "A smaller model"
        quant = f", {plain(each.quantization, 20)}" if each.quantization else ""
        yield Remedy(f"{kind} is installed: {plain(each.name, 80)} ({gib(each.size_bytes or 0)}{quant}).")
    if not evidence.installed:
        yield Remedy("A smaller quant or a smaller model needs less; which are installed was not asked.")
    elif not others:
        yield Remedy("A smaller quant or a smaller model needs less; none is installed.")


def _largest(models: list[ModelInfo]) -> list[ModelInfo]:
    return sorted(models, key=lambda each: (-(each.size_bytes or 0), each.name))


def make_room(evidence: EvidenceSet) -> Iterator[Remedy]:
    """Everything that lets more of the model into GPU memory, the cheapest first."""
    yield from other_programs(evidence)
    yield from smaller_window(evidence)
    yield from fewer_slots(evidence)
    yield from smaller_cache(evidence)
    yield from smaller_models(evidence)


def other_programs(evidence: EvidenceSet) -> Iterator[Remedy]:
    """Programs that hold GPU memory and are not the server's."""
    held = foreign_vram(evidence)
    if held:
        names = ", ".join(f"{plain(name, 40)} ({gib(size)})" for name, size in held[:3])
        yield Remedy(f"Close other programs that hold GPU memory: {names}.")


def foreign_vram(evidence: EvidenceSet) -> list[tuple[str, float]]:
    """(name, bytes) of processes that hold GPU memory and are neither the server's nor ours; largest first.

    Empty where the server's own processes are not known: then nobody can tell theirs from others'.
    """
    return programs_on_gpu(evidence, evidence.engine_pids | evidence.own_pids) if evidence.engine_pids else []


def programs_on_gpu(evidence: EvidenceSet, but: frozenset[int]) -> list[tuple[str, float]]:
    """(name, bytes) of processes that hold GPU memory, without those of these pids; largest first."""
    newest = {each.uuid: each for each in evidence.gpu_samples}
    found = [
        (each.name if each.name not in ("", "?") else f"pid {each.pid}", size)
        for sample in newest.values()
        if isinstance(sample.processes, tuple)
        for each in sample.processes
        if each.pid not in but and (size := number(each.vram_bytes)) is not None and size >= 64 * 1024**2
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def threads(evidence: EvidenceSet, foreign_percent: float | None = None) -> Iterator[Remedy]:
    """Threads that the cores can run at once; one fewer where other work keeps a core."""
    cores = evidence.physical_cores
    newest = evidence.host_samples[-1] if evidence.host_samples else None
    allowed = number(newest.cpu_limit_cores) if newest is not None else None
    if cores is not None and allowed is not None:
        cores = max(1, min(cores, math.floor(allowed)))
    if cores is None or cores < 1:
        return
    busy = round(cores * (foreign_percent or 0.0) / 100)
    wanted = max(1, cores - max(busy, 1 if foreign_percent else 0))
    if options_in_force(evidence).num_thread != wanted:
        why = "leaves room for the other work" if foreign_percent else "is one for each physical core"
        yield Remedy(f"num_thread {wanted} {why}.", {"num_thread": wanted})


def cooling(evidence: EvidenceSet) -> Iterator[Remedy]:
    """What helps against heat."""
    hot = any(samples for samples in gpu_load(evidence).values())
    yield Remedy("Better cooling: clean fans and filters, let air in, raise the fan curve.")
    if hot:
        yield Remedy(
            "A lower power limit (`nvidia-smi -pl`): decode needs memory clock more than core clock, and often loses "
            "little."
        )
    yield Remedy("Longer pauses between trials, so that each starts equally cool.")
