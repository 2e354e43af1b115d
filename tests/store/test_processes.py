"""The journal between real processes: what is written, who lives, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chimera.errors import ConfigError
from chimera.store.journal import Journal

from .samples import new_run

WRITER = """
import sys
from chimera.domain.measurement import Measurement
from chimera.domain.run import Session
from chimera.store.journal import Journal

run_id, sessions, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Journal.open() as journal, journal.worker_lock(run_id):
    journal.set_state(run_id, "running")
    print("ready", flush=True)
    first = len(journal.sessions(run_id)) + 1
    for seq in range(first, first + sessions):
        journal.begin_session(run_id, Session(seq, "c0", round=seq))
        for number in range(requests):
            journal.add_measurement(run_id, seq, Measurement("measure", 1.0, 1.0, decode_tok_s=number + 1.0))
        journal.end_session(run_id, seq, "done")
    journal.set_state(run_id, "done")
"""

HOLDER = """
import sys, time
from chimera.store.journal import Journal

with Journal.open() as journal, journal.worker_lock(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(120)
"""

OPENER = """
import sys
from chimera.domain.run import Target
from chimera.domain.workload import Workload
from chimera.store.journal import Journal

print("ready", flush=True)
sys.stdin.readline()
with Journal.open() as journal:
    journal.create_run("run", Target("embedded"), Workload(), seed=1, trials=[])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python process on the test's journal; what still runs at the end is killed."""
    with ExitStack() as stack:

        def started(code: str, *arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


def wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()[1]


def test_processes_that_open_a_fresh_journal_together_all_succeed(place: Path, start: Start) -> None:
    openers = [start(OPENER) for _ in range(4)]
    for process in openers:
        wait_ready(process)
    for process in openers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in openers:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
    with Journal.open() as journal:
        assert journal.count_runs() == 4


def test_two_processes_write_while_a_third_reads(journal: Journal, start: Start) -> None:
    runs = [new_run(journal) for _ in range(2)]
    writers = [start(WRITER, run.id, "10", "20") for run in runs]
    token, seen, moved = journal.changes(), [0, 0], 0
    while any(process.poll() is None for process in writers):
        if (now := journal.changes()) != token:
            token, moved = now, moved + 1
        for place, run in enumerate(runs):
            count = len(journal.measurements(run.id))
            assert count >= seen[place]
            seen[place] = count
        time.sleep(0.01)
    for process in writers:
        assert process.returncode == 0, process.communicate()[1]
    assert moved > 1
    for run in runs:
        assert journal.run(run.id).state == "done"
        rates = [row.measurement.decode_tok_s for row in journal.measurements(run.id)]
        assert rates == [float(number) for number in range(1, 21)] * 10


def test_a_killed_writer_leaves_a_sound_journal_with_at_most_its_open_session_lost(
    journal: Journal, place: Path, start: Start
) -> None:
    run = new_run(journal)
    for moment in (0.02, 0.07, 0.12):
        process = start(WRITER, run.id, "10000", "10")
        wait_ready(process)
        time.sleep(moment)
        assert journal.run(run.id).state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert journal.run(run.id).state == "crashed"
        assert sqlite3.connect(place / "chimera.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
        left_open = [session.seq for session in journal.sessions(run.id) if session.state == "running"]
        assert len(left_open) <= 1
        assert journal.interrupt(run.id) == len(left_open)
        for session in journal.sessions(run.id):
            measured = [row.measurement for row in journal.measurements(run.id, session=session.seq)]
            if session.state == "done":
                assert [one.decode_tok_s for one in measured if one.valid] == [float(n) for n in range(1, 11)]
            else:
                assert (session.state, session.void_reason) == ("void", "interrupted")
                assert {one.void_reason for one in measured} <= {"interrupted"}
    numbers = [session.seq for session in journal.sessions(run.id)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_a_worker_is_seen_alive_until_it_is_killed(journal: Journal, start: Start) -> None:
    run = new_run(journal)
    assert not journal.is_held(run.id)
    journal.set_state(run.id, "running")
    process = start(HOLDER, run.id)
    wait_ready(process)
    assert journal.is_held(run.id)
    assert journal.run(run.id).state == "running"
    with pytest.raises(ConfigError, match=f"Run {run.id} has a worker already.*attach"), journal.worker_lock(run.id):
        pass
    with pytest.raises(ConfigError, match="chimera stop"):
        journal.delete(run.id)
    process.kill()
    process.wait(10)
    assert not journal.is_held(run.id)
    assert journal.run(run.id).state == "crashed"
    with journal.worker_lock(run.id):
        assert journal.run(run.id).state == "running"


def test_watchers_never_keep_a_worker_from_starting(journal: Journal, start: Start) -> None:
    watcher = (
        "import sys; from chimera.store.journal import Journal; journal = Journal.open(); print('ready', flush=True)\n"
        "while True: journal.is_held(sys.argv[1])"
    )
    run = new_run(journal)
    with journal.worker_lock(run.id):
        process = start(watcher, run.id)
        wait_ready(process)
    for _ in range(20):
        with journal.worker_lock(run.id):
            assert journal.is_held(run.id)
    process.kill()


def test_a_worker_may_end_in_another_thread_than_it_began(journal: Journal) -> None:
    run = new_run(journal)
    lock = journal.worker_lock(run.id).acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join(10)
    assert not journal.is_held(run.id)
    assert not lock.path.exists()


def test_a_child_of_a_worker_does_not_hold_its_lock(journal: Journal) -> None:
    run = new_run(journal)
    with journal.worker_lock(run.id):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not journal.is_held(run.id)
    finally:
        child.kill()
        child.communicate()
