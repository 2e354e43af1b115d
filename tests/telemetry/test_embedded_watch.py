"""The watch against the real llama.cpp server, under the load of a client that is not Chimera's."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import pytest

from chimera.domain.readings import Missing
from chimera.domain.server import ServerKind
from chimera.domain.telemetry import ServerSample
from chimera.telemetry.serverwatch import ServerWatch

pytestmark = [pytest.mark.embedded, pytest.mark.alone]

Timings = dict[str, float]


@pytest.fixture(scope="module")
def engine(gemma_path: Path) -> Iterator[str]:
    """The address of a llama.cpp server with two slots, in a process that this test ends."""
    config = {"model": str(gemma_path), "num_ctx": 512, "num_thread": 1, "num_parallel": 2}
    child = subprocess.Popen(
        [sys.executable, "-m", "chimera.backends.embedded_child", json.dumps(config)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, "the engine did not start"
    yield json.loads(line)["url"]
    child.communicate("", timeout=30)


def client(url: str, requests: int, tokens: int, timings: list[Timings]) -> None:
    """A plain client: one request after another, each on a connection of its own."""
    address = urlsplit(url)
    for number in range(requests):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        body: dict[str, Any] = {
            "prompt": f"{time.time()} {number} " + "word " * 20, "n_predict": tokens, "ignore_eos": True,
            "cache_prompt": False,
        }  # fmt: skip
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        timings.append(json.loads(connection.getresponse().read())["timings"])
        connection.close()


Seen = tuple[list[ServerSample], list[Timings]]


def watch_load(kind: ServerKind, url: str, clients: int, requests: int, tokens: int) -> Seen:
    """What the watch saw while clients were served, and what the server told them."""
    watch = ServerWatch(kind, url)
    timings: list[Timings] = []
    threads = [threading.Thread(target=client, args=(url, requests, tokens, timings)) for _ in range(clients)]
    seen = [watch.read(time.monotonic())]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        begun = time.monotonic()
        seen.append(watch.read(begun))
        time.sleep(max(0.0, 0.25 - (time.monotonic() - begun)))
    time.sleep(1.1)  # counters of finished requests are read once a second
    seen.append(watch.read(time.monotonic()))
    watch.close()
    return seen, timings


def decode_rate(timings: list[Timings]) -> float:
    """Over all requests: tokens after the first by the time that they took."""
    return sum(one["predicted_n"] - 1 for one in timings) / sum(one["predicted_ms"] for one in timings) * 1000


@pytest.mark.parametrize("kind", ["embedded", "llama_server"])
def test_the_rate_of_another_client_is_within_five_percent_of_the_servers_timings(
    engine: str, kind: ServerKind
) -> None:
    seen, timings = watch_load(kind, engine, 1, 5, 64)
    rates = [one.rate for one in seen if not isinstance(one.rate, Missing) and one.rate_window_s > 0 and one.busy]
    assert len(rates) >= 5
    assert mean(rates) == pytest.approx(decode_rate(timings), rel=0.05)
    assert seen[0].rate == 0.0
    assert seen[-1].busy == 0


def test_the_rates_of_two_slots_add_up(engine: str) -> None:
    seen, timings = watch_load("embedded", engine, 2, 2, 64)
    both = [one.rate for one in seen if one.busy == 2 and not isinstance(one.rate, Missing) and one.rate_window_s > 1]
    assert both
    assert mean(both) == pytest.approx(2 * decode_rate(timings), rel=0.15)
    assert seen[-1].tokens_total == 2 * 2 * 64


def test_time_to_first_token_of_another_client_is_seen_at_polling_resolution(engine: str) -> None:
    seen, timings = watch_load("embedded", engine, 1, 3, 48)
    last = seen[-1].ttft_s
    assert not isinstance(last, Missing)
    assert last == pytest.approx(timings[-1]["prompt_ms"] / 1000, abs=0.3)


def test_watching_generates_nothing(engine: str) -> None:
    def idle() -> ServerSample:
        watch = ServerWatch("embedded", engine)
        before = watch.read(time.monotonic())
        for _ in range(10):
            time.sleep(0.13)
            after = watch.read(time.monotonic())
        watch.close()
        assert before.tokens_total == after.tokens_total == 0
        return after

    after = idle()
    assert (after.rate, after.busy, after.waiting) == (0.0, 0.0, 0.0)
