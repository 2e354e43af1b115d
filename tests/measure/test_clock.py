"""Our clock against the truth: a scripted server that stamps its writes, and the real engine with its slot taken."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator

import pytest

from chimera.backends.base import Done, GenerateRequest, Headers
from chimera.backends.embedded import Embedded
from chimera.backends.ollama import Ollama
from chimera.domain.options import Options
from chimera.measure.prompts import Prompt
from chimera.measure.request import measure
from tests.backends.scripted import ScriptedOllama, in_thread

PROMPT = Prompt("nonce one two three four five six seven", 8, None)


@pytest.fixture
def _quick_switches() -> Iterator[None]:
    """The server runs in a thread of this process: its stamps must not wait 5 ms for their turn of the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_quick_switches")
async def test_ttft_is_within_a_millisecond_and_a_percent_of_when_the_server_wrote() -> None:
    errors: list[float] = []
    with in_thread(ScriptedOllama(prefill_s=0.01, decode_s=0.004)) as server:
        backend = Ollama(server.url)
        await backend.connect()
        await backend.load(Options())
        for number in range(12):
            request = GenerateRequest(f"{number} {PROMPT.text}", 8, timeout_s=10)
            server.writes.clear()
            timed = await measure(backend, request, PROMPT, alone=False)
            asked = next(one for one in reversed(server.requests) if one.path == "/api/generate")
            first = next(at for at, data in server.writes if b'"response"' in data and at > asked.at)
            assert timed.measurement.ttft_s is not None
            true = first - asked.at
            errors.append(abs(timed.measurement.ttft_s - true) - 0.01 * true)
        await backend.close()
    assert statistics.median(errors) < 0.001


@pytest.mark.embedded
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
