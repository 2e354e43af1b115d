"""Waits until GPU memory stands still: an engine gives it back, and another takes it, later than either says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from chimera.domain.readings import number

from .nvml import NvmlCollector

MOST_S = 5.0
STEP_S = 0.25
STILL_BYTES = 16 * 2**20
"""Smaller changes from one look to the next are no load going on."""
LOOKS = 2
"""So many looks in a row without a change mean that it has settled."""


async def settle(
    free: Callable[[], float | None],
    *,
    most_s: float = MOST_S,
    step_s: float = STEP_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> float:
    """Wait until free GPU memory stands still, or for `most_s`; returns the seconds that it took.

    Args:
        free: Free bytes of all GPUs; None where nobody can tell, and then nothing is waited for. Called in a thread.
        most_s: Longest wait.
        step_s: Between two looks.
        clock: Seconds.
        sleep: Waits.
    """
    began = clock()
    before = await asyncio.to_thread(free)
    still = 0
    while before is not None and still < LOOKS and clock() - began < most_s:
        await sleep(step_s)
        now = await asyncio.to_thread(free)
        still = still + 1 if now is not None and abs(now - before) <= STILL_BYTES else 0
        before = now
    return clock() - began


class FreeMemory:
    """Free memory of this host's GPUs, read anew at each call."""

    def __init__(self) -> None:
        self._collector: NvmlCollector | None = None

    def __call__(self) -> float | None:
        """Bytes over all GPUs; None where one does not tell, or there is none."""
        if self._collector is None:
            self._collector = NvmlCollector()
        values = [number(sample.vram_free_bytes) for sample in self._collector.read(time.monotonic()).samples]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    def close(self) -> None:
        """Let go of the driver."""
        if self._collector is not None:
            self._collector.close()
