"""Waits until GPU memory stands still: an engine gives it back, and another takes it, later than either says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

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
