"""What fills a GPU's memory, as people think of it: weights, KV cache, buffers, other processes.

The driver tells what each process holds, the server sometimes what its model holds, and the model's shape what weights
and KV cache must take. What the engine holds beyond these two are its buffers and its driver context.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chimera.domain.readings import Missing, Reading, Source, number
from chimera.domain.telemetry import GpuSample, GpuState, ServerSample, VramParts
from chimera.errors import ConfigError
from chimera.model.memory import forecast

from .loaded import Loaded

TOLERANCE = 0.02
"""By how much a forecast may exceed what the engine holds: its figures come from a table, not from the driver."""

_NO_SHAPE = Missing("unsupported", "neither the server nor its file tells the model's layers")
_NO_CONTEXT = Missing("unsupported", "the context in force is not known")
_NOT_ALL = Missing("unsupported", "not all of the model is on the GPU, and how much is not known")
_ANOTHER = Missing("unsupported", "other models are loaded as well")
_NO_ENGINE = Missing("unreachable", "the engine's process is not known here")
_NAMELESS = Missing("unsupported", "processes cannot be told apart from in here")
_WHERE = Missing("unsupported", "how the model is divided over the GPUs is not known")


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes on one GPU by whose they are."""

    engine: Reading
    foreign: Reading
    source: Source = "measured"


def vram_parts(
    state: GpuState, loaded: Loaded, server: ServerSample | None = None, engine_pids: Iterable[int] = ()
) -> dict[str, VramParts]:
    """The parts of each GPU's memory by UUID; nothing where the server runs on another host.

    Args:
        state: A reading of the GPUs.
        loaded: What is known of the server's model.
        server: The newest sample of the server.
        engine_pids: Processes of the engine beside those that the server's sample names.
    """
    if loaded.remote:
        return {}
    pids = {*engine_pids, *(server.engine_pids if server is not None else ())}
    if loaded.effective is not None and loaded.effective.pid is not None:
        pids.add(loaded.effective.pid)
    whole = {info.parent for info in state.infos}  # GPUs that are divided: their instances tell
    seen = {
        info.uuid: sample
        for info, sample in zip(state.infos, state.samples, strict=False)
        if sample.lost is None and info.uuid not in whole
    }
    held = {uuid: _held(sample, frozenset(pids), running=loaded.running) for uuid, sample in seen.items()}
    if len(held) == 1:
        ((uuid, only),) = held.items()
        held[uuid] = _by_the_server(only, seen[uuid], _server_says(loaded, server))
    weights, kv, source = _split(loaded, server)
    amounts = [number(each.engine) for each in held.values()]
    total = sum(amount for amount in amounts if amount is not None) if None not in amounts else None
    return {uuid: _parts(each, total, len(held), weights, kv, source) for uuid, each in held.items()}


def _held(sample: GpuSample, pids: frozenset[int], *, running: bool) -> _Held:
    """By the driver's list of processes."""
    if isinstance(sample.processes, Missing):
        return _Held(sample.processes, sample.processes)
    if running and not pids:
        return _Held(_NO_ENGINE, _NO_ENGINE)
    mine = [process for process in sample.processes if process.pid in pids]
    others = [process for process in sample.processes if process.pid not in pids]
    nameless = any(process.name == "?" for process in others)
    engine = _NAMELESS if nameless and running and not mine else _sum([process.vram_bytes for process in mine])
    return _Held(engine, _NAMELESS if nameless and running else _sum([process.vram_bytes for process in others]))


def _sum(readings: list[Reading]) -> Reading:
    missing = next((one for one in readings if isinstance(one, Missing)), None)
    return missing if missing is not None else float(sum(number(one) or 0.0 for one in readings))


def _server_says(loaded: Loaded, server: ServerSample | None) -> float | None:
    """Bytes that the server says its models hold on GPUs."""
    if server is not None and not isinstance(server.models, Missing):
        known = [number(model.vram_bytes) for model in server.models]
        if known and None not in known:
            return sum(value for value in known if value is not None)
    figure = loaded.effective.vram_bytes if loaded.effective is not None else None
    return None if figure is None else float(figure)


def _by_the_server(held: _Held, sample: GpuSample, says: float | None) -> _Held:
    """Where the driver does not tell processes apart (WSL, containers), the server's own figure stands in."""
    if number(held.engine) is not None or says is None:
        return held
    used = number(sample.vram_used_bytes)
    rest = held.foreign if used is None else max(used - says, 0.0)
    return _Held(says, rest, "derived")


def _split(loaded: Loaded, server: ServerSample | None) -> tuple[Reading, Reading, Source]:
    """Weights and KV cache on all GPUs together, by the model's shape and what runs, and how well that is known."""
    listed = loaded.among(server)
    if not loaded.running:
        return 0.0, 0.0, "derived"
    if server is not None and not isinstance(server.models, Missing) and listed is None and loaded.model is not None:
        return (_ANOTHER, _ANOTHER, "derived") if server.models else (0.0, 0.0, "derived")
    if loaded.shape is None:
        return _NO_SHAPE, _NO_SHAPE, "derived"
    options = loaded.options
    context = options.num_ctx or number(listed.context if listed is not None else None)
    try:
        plan = forecast(
            loaded.shape,
            int(context or 1),
            num_parallel=options.num_parallel or 1,
            num_gpu=options.num_gpu,
            kv_type=options.kv_cache_type or "f16",
            num_batch=options.num_batch,
        )
    except ConfigError as error:
        why = Missing("unsupported", str(error))
        return why, why, "derived"
    guessed = options.num_parallel is None or options.kv_cache_type is None or "estimated" in (
        plan.kv.source, loaded.effective.sources.get("num_gpu") if loaded.effective is not None else None
    )  # fmt: skip
    weights: Reading = _NO_SHAPE if plan.weights_gpu.bytes is None else float(plan.weights_gpu.bytes)
    kv: Reading = _NO_CONTEXT if context is None else float(plan.kv_gpu.bytes or 0)
    return weights, kv, "estimated" if guessed else "derived"


def _parts(held: _Held, total: float | None, gpus: int, weights: Reading, kv: Reading, source: Source) -> VramParts:
    """One GPU's share of the model: by what the engine holds there of all that it holds."""
    engine = number(held.engine)
    known = (number(weights) or 0.0) + (number(kv) or 0.0)
    compute: Reading
    if total is None and gpus > 1:
        weights = kv = compute = _WHERE
    elif total is None or engine is None:
        compute = held.engine if isinstance(held.engine, Missing) else _WHERE
    elif known > total * (1 + TOLERANCE) and total:
        weights = kv = compute = _NOT_ALL
    else:
        share = engine / total if total else 0.0
        weights, kv = _times(weights, share), _times(kv, share)
        unknown = next((one for one in (weights, kv) if isinstance(one, Missing)), None)
        compute = unknown if unknown is not None else max(engine - known * share, 0.0)
        if gpus > 1 and 0 < share < 1:
            source = "estimated"
    return VramParts(weights, kv, compute, held.foreign, held.engine, source, held.source)


def _times(reading: Reading, share: float) -> Reading:
    return reading if isinstance(reading, Missing) else reading * share
