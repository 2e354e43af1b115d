"""Runs by real workers: processes of their own, on the real embedded engine and on a scripted Ollama."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from chimera.domain.options import Options
from chimera.domain.run import Progress, Target, Trial
from chimera.domain.workload import Workload
from chimera.errors import ChimeraError
from chimera.measure.live import LiveRequest
from chimera.runner import launch
from chimera.runner.launch import create_run, start_worker
from chimera.runner.recorder import ProgressWriter
from chimera.store.journal import Journal
from tests.backends.scripted import ScriptedOllama, in_thread
from tests.backends.scripted_llama import llama_program

EMBEDDED = Target("embedded", assume_yes=True)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal of its own, and no worker left behind."""
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    journal = Journal.open()
    started: list[str] = []
    try:
        yield journal
    finally:
        for run in journal.runs(limit=50):
            started.append(run.id)
            if journal.is_held(run.id):
                journal.send(run.id, "stop")
        for run_id in started:
            wait_until(lambda run_id=run_id: not journal.is_held(run_id), 30)  # type: ignore[misc]  # a default binds the loop variable
        journal.close()


def wait_until(reached: Callable[[], object], timeout_s: float) -> None:
    """Look often; fail after a while."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def chimera(
    *arguments: str, timeout: float = 150, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


def facts_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one document on stdout."""
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.embedded
@pytest.mark.alone
def test_a_run_on_the_embedded_model_accounts_for_every_number(journal: Journal) -> None:
    done = chimera("run", "--embedded", "--requests", "3", "--output-tokens", "32", "--json", "--measurements")
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)
    assert facts["run"]["state"] == "done"
    assert facts["counts"]["valid"] + facts["counts"]["void"] == 3
    measured = [one for one in facts["measurements"] if one["role"] == "measure"]
    rates = sorted(abs(one["client_decode_tok_s"] / one["decode_tok_s"] - 1) for one in measured)
    assert 0 < rates[1] < 0.005, "the client's own rate is close to the server's, and no copy of it"
    for one in measured:
        parts = [one[part] or 0.0 for part in ("queue_s", "load_s", "prefill_s", "decode_s", "other_s")]
        assert sum(parts) == pytest.approx(one["total_s"])
        assert one["prompt_tokens"] == 64
        assert one["completion_tokens"] == 32
    effective = facts["trials"][0]["effective"]
    assert effective["num_ctx"] == 4096
    assert journal.samples(facts["run"]["id"]), "telemetry was kept beside the run"


@pytest.mark.embedded
@pytest.mark.alone
def test_a_context_that_is_too_small_gives_void_measurements_and_no_rate(journal: Journal) -> None:
    refused = chimera("run", "--embedded", "--num-ctx", "256", "--prompt-tokens", "400", "--requests", "2", "--json",
                      "--output-tokens", "8")  # fmt: skip
    assert refused.returncode == 5, refused.stderr
    facts = facts_of(refused)
    assert facts["void_reasons"] == {"refused": 3} or facts["void_reasons"] == {"refused": 2}
    assert facts["counts"]["valid"] == 0
    assert facts["trials"][0]["decode_tok_s"]["median"] is None
    cut = chimera("run", "--embedded", "--num-ctx", "256", "--prompt-tokens", "200", "--output-tokens", "64",
                  "--requests", "1", "--json", "--measurements")  # fmt: skip
    assert cut.returncode == 5, cut.stderr
    last = facts_of(cut)["measurements"][-1]
    assert last["void_reason"] == "truncated"
    assert last["completion_tokens"] == 56


@pytest.mark.embedded
@pytest.mark.alone
def test_a_killed_worker_shows_as_crashed_and_is_resumed_without_loss(journal: Journal) -> None:
    run = create_run(journal, EMBEDDED, Options(num_ctx=300), Workload(requests=3, output_tokens=48))
    child = start_worker(journal, run.id)
    wait_until(lambda: len(journal.measurements(run.id)) >= 2, 60)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    assert journal.run(run.id).state == "crashed"
    before = len(journal.measurements(run.id))
    resumed = chimera("resume", run.id, "--json")
    assert resumed.returncode == 0, resumed.stderr
    rows = journal.measurements(run.id)
    assert [row.measurement.void_reason for row in rows[:before]] == ["interrupted"] * before
    assert (
        sum(row.measurement.valid for row in rows)
        + sum(row.measurement.void_reason == "foreign-client" for row in rows)
        == 3
    )
    assert [session.state for session in journal.sessions(run.id)] == ["void", "done"]
    effective = journal.effective(run.id, "c0")
    assert effective is not None
    assert effective.options.num_ctx == 512, "300 was asked for; llama.cpp rounds up"
    assert chimera("resume", run.id).returncode == 2


def test_pause_takes_effect_between_requests_and_stop_at_once(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        target = Target("ollama", url=server.url, assume_yes=True)
        run = create_run(journal, target, Options(), Workload(requests=40, output_tokens=10, prompt_tokens=8))
        child = start_worker(journal, run.id)
        wait_until(lambda: len(journal.measurements(run.id)) >= 2, 30)
        assert chimera("pause", run.id).returncode == 0
        wait_until(lambda: journal.run(run.id).state == "paused", 10)
        held = len(journal.measurements(run.id))
        time.sleep(0.6)
        assert len(journal.measurements(run.id)) == held
        assert chimera("resume", run.id).returncode == 0
        wait_until(lambda: len(journal.measurements(run.id)) > held, 10)
        assert chimera("stop", run.id).returncode == 0
        assert child.wait(15) == 4
        assert journal.run(run.id).state == "stopped"
        kept = [row.measurement for row in journal.measurements(run.id)]
        assert len(kept) > held


def test_a_worker_that_is_told_to_end_puts_its_run_in_order(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        target = Target("ollama", url=server.url, assume_yes=True)
        run = create_run(journal, target, Options(), Workload(requests=40, output_tokens=10, prompt_tokens=8))
        child = start_worker(journal, run.id)
        wait_until(lambda: journal.measurements(run.id), 30)
        child.terminate()
        assert child.wait(15) == 4
        ended = journal.run(run.id)
        assert (ended.state, ended.error) == ("stopped", "the worker was ended by SIGTERM")


def test_a_queued_run_waits_for_the_one_before_it(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        target = Target("ollama", url=server.url, assume_yes=True)
        small = Workload(requests=4, output_tokens=10, prompt_tokens=8)
        first = create_run(journal, target, Options(), replace(small, requests=60))
        start_worker(journal, first.id)
        second = create_run(journal, target, Options(), small, after=first.id)
        start_worker(journal, second.id)
        assert journal.run(second.id).state == "queued"
        journal.send(first.id, "stop")
        wait_until(lambda: journal.run(second.id).state == "done", 60)
        ended, began = journal.run(first.id).ended_at, journal.run(second.id).started_at
        assert ended is not None
        assert began is not None
        assert ended <= began


def test_what_is_asked_of_a_worker_that_still_starts_is_done(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = subprocess.Popen

    def asked_at_once(*arguments: Any, **how: Any) -> subprocess.Popen[bytes]:
        child = spawn(*arguments, **how)
        journal.send(run.id, "pause")
        return child

    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        target = Target("ollama", url=server.url, assume_yes=True)
        run = create_run(journal, target, Options(), Workload(requests=40, output_tokens=10, prompt_tokens=8))
        journal.send(run.id, "stop")  # of an earlier worker: it is not meant for this one
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", asked_at_once)
            start_worker(journal, run.id)
        wait_until(lambda: journal.run(run.id).state == "paused", 20)
        resumed = chimera("resume", run.id, "--json")
        assert facts_of(resumed) == {"schema_version": 1, "run": {"id": run.id, "state": "running"}}
        wait_until(lambda: journal.run(run.id).state == "running", 10)
        journal.send(run.id, "stop")


def test_a_worker_that_dies_before_it_takes_up_its_run_leaves_it_failed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(journal, EMBEDDED, Options(), Workload())
    monkeypatch.setattr(launch, "_scope", lambda: ["sh", "-c", "kill -9 $$"])
    with pytest.raises(ChimeraError, match="ended at once"):
        start_worker(journal, run.id)
    left = journal.run(run.id)
    assert left.state == "failed", "not queued: nobody will come"
    assert left.error is not None
    assert "ended at once" in left.error


def test_runs_that_disturb_each_other_are_told_so(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server, in_thread(ScriptedOllama(decode_s=0.02)) as apart:
        small = Workload(requests=2000, output_tokens=10, prompt_tokens=8)
        runs = []
        for url in (server.url, apart.url):
            runs.append(create_run(journal, Target("ollama", url=url, assume_yes=True), Options(), small))
            start_worker(journal, runs[-1].id)
            wait_until(lambda: journal.run(runs[-1].id).state == "running", 20)
        words = [[event.text for event in journal.events(run.id) if event.level == "warn"] for run in runs]
        assert words == [[], []], "each has a server of its own"
        third = chimera("run", "--server", server.url, "--requests", "1", "--output-tokens", "8", "--detach")
        assert f"run {runs[0].id} measures the same server at the same time" in third.stderr
        assert f"chimera stop {runs[0].id}" in third.stderr
        newest = journal.run("last").id
        wait_until(lambda: any(newest in event.text for event in journal.events(runs[0].id)), 20)
        assert not any(newest in event.text for event in journal.events(runs[1].id))
        assert any(runs[0].id in event.text for event in journal.events(newest))


def test_a_server_of_the_users_is_not_reloaded_without_a_yes(journal: Journal) -> None:
    with in_thread(ScriptedOllama()) as server:
        request = Request(f"{server.url}/api/generate", b'{"model": "gemma3:270m", "keep_alive": -1}')
        assert urlopen(request, timeout=10).status == 200
        done = chimera("run", "--server", server.url, "--num-ctx", "1024", "--requests", "1", "--output-tokens", "8")
        assert done.returncode == 2
        assert "--yes" in done.stderr
        assert journal.run("last").state == "failed"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "ftp://x", "http://user:secret@127.0.0.1:1"])
def test_a_bad_address_is_a_sentence_and_no_traceback(journal: Journal, address: str) -> None:
    done = chimera("run", "--server", address)
    assert done.returncode in {2, 3}
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_server_is_started_by_paths_that_are_seen_from_where_its_command_was_typed(
    journal: Journal, tmp_path: Path, gemma_path: Path
) -> None:
    llama_program(tmp_path)
    (tmp_path / "m.gguf").symlink_to(gemma_path)
    done = chimera(
        "run", "--start", "./llama-server -m m.gguf -t 1", "--requests", "1", "--output-tokens", "8", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert facts_of(done)["run"]["model"]["block_count"] == 18
    assert journal.run("last").target.folder == str(tmp_path)


def test_the_worker_of_a_run_names_itself_beside_its_progress(journal: Journal) -> None:
    run = journal.create_run(
        "run", Target("embedded"), Workload(), seed=1, trials=[Trial("c0", "candidate", Options(num_gpu=0))]
    )
    writer = ProgressWriter(journal, run.id, LiveRequest())
    writer.start()
    writer.show(Progress("loading", time.time(), pid=7))
    writer.stop()
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.stage, progress.pid, progress.worker) == ("loading", 7, os.getpid())
