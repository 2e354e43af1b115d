"""Where a streamed answer ends, also one that never falls silent and never ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from chimera.errors import BackendError, BadAnswer, StreamBroken

from .base import GenerateRequest
from .wire import Chunk, Opened

_DRAIN_S = 0.25


class Bounds:
    """Watches the records of one stream: a server that only keeps the line warm is not answering."""

    def __init__(self, request: GenerateRequest, *, where: str, since: float) -> None:
        self._silence_s = request.timeout_s
        self._records_left = 8 * request.output_tokens + 4096  # progress, pings and usage ride along with the tokens
        self._where = where
        self._last = since

    def heard(self, at: float, records: int) -> None:
        """This many complete records came with the read at `at`.

        Raises `StreamBroken` where none was complete for the longest silence, and `BadAnswer` where far more came
        than the request can have.
        """
        if records:
            self._last = at
            self._records_left -= records
            if self._records_left < 0:
                raise BadAnswer(f"{self._where} sent far more than it was asked for and did not end: given up.")
        elif at - self._last > self._silence_s:
            raise StreamBroken(f"{self._where} sent bytes but nothing complete for {self._silence_s:g} s.")


async def drain(items: AsyncIterator[Opened | Chunk]) -> None:
    """Read what is left behind the last record, so that the connection can serve the next request as well."""
    with contextlib.suppress(TimeoutError, BackendError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in items:
                pass
