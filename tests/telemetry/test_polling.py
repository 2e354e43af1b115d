"""A server watched in a thread of its own, against servers that are slow or change."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from chimera.domain.readings import Missing
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import ServerSample
from chimera.telemetry.polling import ServerPoll

from .scripted import Scripted, serve


def slot(decoded: int, *, busy: bool = True) -> list[dict[str, object]]:
    return [
        {
            "id": 0, "id_task": 1, "is_processing": busy, "n_ctx": 512, "n_prompt_tokens": 8,
            "n_prompt_tokens_processed": 8, "next_token": [{"n_decoded": decoded, "n_remain": 500}],
        }
    ]  # fmt: skip


def until(reached: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def llama(script: Scripted) -> ServerInfo:
    return ServerInfo("llama_server", script.url)


def test_a_server_at_work_is_looked_at_about_four_times_a_second_and_gives_its_rate() -> None:
    began = time.monotonic()
    script = Scripted(routes={"/slots": lambda: slot(int((time.monotonic() - began) * 100))})
    samples: list[ServerSample] = []
    with serve(script):
        poll = ServerPoll(samples.append)
        poll.watch(llama(script))
        until(lambda: len(samples) >= 9)
        poll.close()
    steps = [b.at - a.at for a, b in itertools.pairwise(samples)]
    assert sorted(steps)[len(steps) // 2] == pytest.approx(0.25, abs=0.1)
    assert samples[-1].rate == pytest.approx(100, rel=0.1)


def test_while_a_request_of_ours_is_timed_it_is_looked_at_once_a_second() -> None:
    script = Scripted(routes={"/slots": lambda: slot(5), "/props": {"model_path": "m.gguf"}})
    samples: list[ServerSample] = []
    with serve(script):
        poll = ServerPoll(samples.append)
        poll.slow = True
        poll.watch(llama(script))
        until(lambda: len(samples) >= 3)
        poll.close()
    assert min(b.at - a.at for a, b in itertools.pairwise(samples)) >= 0.9


def test_a_server_that_hangs_delays_neither_reading_nor_changing_over_nor_closing() -> None:
    hung = Scripted(routes={"/slots": []}, delay_s={"/slots": 3.0, "/health": 3.0, "/props": 3.0})
    with serve(hung), serve(Scripted(routes={"/slots": slot(1, busy=False)})) as quick:
        poll = ServerPoll()
        poll.watch(llama(hung))
        until(lambda: hung.asked)
        began = time.monotonic()
        assert isinstance(poll.read(began).rate, Missing)
        assert poll.latest is None
        poll.watch(llama(quick))
        assert time.monotonic() - began < 0.1
        until(lambda: poll.latest is not None and poll.latest.slots)
        began = time.monotonic()
        poll.close()
        assert time.monotonic() - began < 0.1


def test_a_sample_of_the_server_before_is_never_given_for_the_next_one() -> None:
    with serve(Scripted(routes={"/slots": slot(1)})) as one:
        poll = ServerPoll()
        poll.watch(llama(one))
        until(lambda: poll.latest is not None)
        poll.watch(ServerInfo("llama_server", "http://127.0.0.1:9"))
        assert poll.latest is None
        until(lambda: poll.latest is not None and not poll.latest.reachable)
        poll.watch(None)
        assert poll.latest is None
        poll.watch(ServerInfo("embedded", ""))
        assert poll.latest is None
        poll.close()
