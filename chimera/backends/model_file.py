"""What a model's file tells, where it lies on this host."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chimera.errors import ChimeraError

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape


async def file_shape(path: str | None) -> ModelShape | None:
    """Layers and sizes from a GGUF header; None where there is no such file here, or it cannot be read as one."""
    from chimera.model.shape import from_gguf

    if path is None:
        return None
    try:
        return await asyncio.to_thread(from_gguf, path)
    except (ChimeraError, OSError):
        return None
