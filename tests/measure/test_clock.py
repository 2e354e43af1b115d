"""Our clock against the truth: the real engine with its slot taken."""

from __future__ import annotations

import asyncio
import time

import pytest

from chimera.backends.base import Done, GenerateRequest, Headers
from chimera.backends.embedded import Embedded
from chimera.domain.options import Options
from chimera.measure.prompts import Prompt
from chimera.measure.request import measure

PROMPT = Prompt("nonce one two three four five six seven", 8, None)


@pytest.mark.embedded
@pytest.mark.alone
async def test_the_wait_for_the_only_slot_is_the_queue() -> None:
    backend = Embedded()
    await backend.connect()
    await backend.load(Options(num_ctx=512))
    try:
        began, ended = asyncio.Event(), 0.0

        async def occupy() -> None:
            nonlocal ended
            async for event in backend.generate(GenerateRequest("other client " * 10, 64)):
                if isinstance(event, Headers):
                    began.set()
                elif isinstance(event, Done):
                    ended = time.perf_counter()

        other = asyncio.create_task(occupy())
        await began.wait()
        count = await backend.count_tokens(PROMPT.text)
        sent = time.perf_counter()
        timed = await measure(backend, GenerateRequest(PROMPT.text, 8), Prompt(PROMPT.text, 8, count), alone=False)
        await other
        true = ended - sent
        assert true > 0.3, "the slot was really taken"
        assert timed.measurement.queue_s == pytest.approx(true, abs=0.010 + 0.01 * true)
        assert timed.measurement.other_s is not None
        assert abs(timed.measurement.other_s) <= max(0.02 * timed.measurement.total_s, 0.010)
    finally:
        await backend.close()
