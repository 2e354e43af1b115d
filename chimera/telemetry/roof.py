"""How fast the model that runs could decode here, by the memory bandwidth of the GPU that holds it."""

from __future__ import annotations

from collections.abc import Mapping

from chimera.domain.readings import Missing, Reading, number
from chimera.domain.telemetry import GpuState, ServerSample, VramParts
from chimera.errors import ConfigError
from chimera.model.roofline import roof_tok_s

from .loaded import Loaded

DEPTH_STEP = 256
"""Tokens; the roof moves with the context in steps, so that a chart's line stands still."""


def decode_roof(
    state: GpuState, loaded: Loaded, server: ServerSample | None = None, parts: Mapping[str, VramParts] | None = None
) -> Reading:
    """Most tokens a second that the bandwidth allows for the sequences in work, or why that is unknown.

    Several GPUs work one after another on a token, so the fastest of those that hold the model gives a ceiling for
    all of them. The rate over this is the model bandwidth utilisation (`chimera.model.roofline.mbu`).
    """
    if loaded.remote:
        return Missing("unreachable", "the server runs on another host")
    if state.missing is not None or not state.infos:
        return Missing("unsupported", "no GPU")
    if not loaded.running:
        return Missing("pending", "no model is loaded")
    if loaded.shape is None:
        return Missing("unsupported", "the model's layers are not known")
    holds = {uuid: number(one.engine_bytes) for uuid, one in (parts or {}).items()}
    infos = [info for info in state.infos if holds.get(info.uuid) != 0]
    if not infos or loaded.options.num_gpu == 0:
        return Missing("unsupported", "the model is not on a GPU")
    known = [value for info in infos if (value := number(info.bandwidth_gb_s))]
    if not known:
        why = infos[0].bandwidth_gb_s
        return why if isinstance(why, Missing) else Missing("unsupported", "the GPU's bandwidth is not known")
    depth, batch = _work(server)
    try:
        roof = roof_tok_s(
            loaded.shape,
            max(known),
            depth=depth,
            kv_type=loaded.options.kv_cache_type or "f16",
            num_gpu=loaded.options.num_gpu,
            batch=batch,
        )
    except ConfigError as error:
        return Missing("unsupported", str(error))
    return roof if roof is not None else Missing("unsupported", "a part of the model is not on the GPU")


def _work(server: ServerSample | None) -> tuple[int, int]:
    """Tokens in the context and sequences in work, where slots show them; a lower bound keeps the roof a ceiling."""
    busy = [slot for slot in server.slots if slot.busy] if server is not None else []
    depth = min(((slot.prompt_tokens or 0) + (slot.decoded or 0) for slot in busy), default=0)
    return depth // DEPTH_STEP * DEPTH_STEP, max(len(busy), 1)
