"""Sweeps by real workers on a scripted Ollama: killed, out of memory, crashing, void, paused, put back.

Where tables are compared for equality the server's times depend on (candidate, phase, round, request) alone: nothing
waits, and each request's factor is drawn from where the journal says that the run stands. The time to the first token
is the client's own stamp, of which no two runs are alike, so that metric is compared in its counts only.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest

from chimera.domain.options import Options
from chimera.domain.run import Run, Target
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.domain.workload import Workload
from chimera.model.shape import ModelShape
from chimera.runner import planning, study, worker
from chimera.runner.follow import Follower
from chimera.runner.launch import start_worker
from chimera.runner.planning import Survey, create_study, create_validation, sketch
from chimera.runner.putback import put_back
from chimera.runner.tune import create_tune
from chimera.store.document import document
from chimera.store.journal import Journal
from chimera.tuning.estimate import Pace
from tests.backends.scripted import Answer, Exchange, FakeModel, ScriptedOllama, in_thread

from .test_worker import chimera, facts_of, journal, wait_until

__all__ = ["journal"]

SMALL = Workload(prompt_tokens=6, output_tokens=8, requests=1)
MODEL = FakeModel()


def known_of(server: ScriptedOllama, model: FakeModel = MODEL) -> Survey:
    """What a survey of the scripted server tells, without asking it."""
    info = ModelInfo(model.name, block_count=model.block_count, trained_ctx=model.trained_ctx)
    here = ServerInfo("ollama", server.url, server.version)
    return Survey(here, info, None, Options(num_ctx=4096), None, None, None)


def sweep(journal: Journal, server: ScriptedOllama, axes: dict[str, tuple[Any, ...]], **rules: Any) -> Run:
    """A sweep in the journal, ready for a worker."""
    workload = rules.pop("workload", SMALL)
    drawn = sketch("sweep", known_of(server), axes, workload, seed=rules.pop("seed", 7), **rules)
    return create_study(journal, Target("ollama", url=server.url, assume_yes=True), drawn)


def finish(journal: Journal, run: Run, timeout_s: float = 60) -> Run:
    """Let a worker bring it to its end."""
    child = start_worker(journal, run.id)
    try:
        child.wait(timeout_s)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(10)
    return journal.run(run.id)


def done_sessions(journal: Journal, run: Run) -> list[tuple[str, int, str]]:
    """Where each session that counts belongs, in rising order."""
    return sorted((one.phase, one.round, one.candidate) for one in journal.sessions(run.id) if one.state == "done")


class Stage:
    """Factors on a scripted server's times that depend on where the followed run stands, and on nothing else."""

    def __init__(self, journal: Journal, gains: dict[int, float], sd: float = 0.003, wait_s: float = 0.0) -> None:
        self.journal = journal
        self.gains = gains
        self.sd = sd
        self.wait_s = wait_s
        self.run_id = ""

    def __call__(self, options: Options, request: int) -> float:
        time.sleep(self.wait_s)
        running = [one for one in self.journal.sessions(self.run_id) if one.state == "running"]
        if not running:
            return 1.0
        now = running[-1]
        place = len(self.journal.measurements(self.run_id, session=now.seq))
        noise = Random(f"{now.candidate} {now.phase} {now.round} {place}").gauss(0, self.sd)
        return (1 + noise) / self.gains.get(options.num_thread or 0, 1.0)


def table(journal: Journal, run: Run) -> dict[str, Any]:
    """What must not depend on how often the worker was killed."""
    facts = document(journal, journal.run(run.id))
    return {
        "state": facts["run"]["state"],
        "verdicts": [row for row in facts["verdicts"] if row["metric"] != "ttft_s"],
        "ttft": [(row["candidate"], row["n"]) for row in facts["verdicts"] if row["metric"] == "ttft_s"],
        "trials": [
            (one["candidate"], one["effective"], one["sessions"], one["decode_tok_s"], one["ttft_s"]["n"])
            for one in facts["trials"]
        ],
        "recommendation": facts["recommendation"],
        "noise": facts["standing"]["noise"],
        "sessions": done_sessions(journal, run),
    }


def resumed_again_and_again(journal: Journal, kills: int, seed: int, candidates: int = 5, rounds: int = 3) -> None:
    """Compare an uninterrupted sweep with one whose worker is killed at random points."""
    rules: dict[str, Any] = {"rounds": rounds}
    axes = {"num_thread": tuple(range(1, candidates + 1))}
    gains = {2: 1.04, 4: 1.10}
    whole, broken = Stage(journal, gains), Stage(journal, gains, wait_s=0.01)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=whole)) as server:
        first = sweep(journal, server, axes, **rules)
        whole.run_id = first.id
        assert finish(journal, first).state == "done"
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=broken)) as server:
        second = sweep(journal, server, axes, **rules)
        broken.run_id = second.id
        chance = Random(seed)
        needed = len(done_sessions(journal, first))
        killed = 0
        while killed < kills:
            child = start_worker(journal, second.id)
            before = len(done_sessions(journal, second))
            # Each life gets its share of what is left, so that the kills are spread over the whole run.
            target = min(before + (needed - before) // (kills - killed + 1), needed - 1)
            wait_until(lambda target=target: len(done_sessions(journal, second)) >= target, 60)  # type: ignore[misc]  # a default binds the loop variable
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
            killed += 1
            assert journal.run(second.id).state == "crashed"
        assert finish(journal, second).state == "done"
    assert killed == kills
    assert table(journal, first) == table(journal, second)
    counted = done_sessions(journal, second)
    assert len(counted) == len(set(counted)), "a session was counted twice"
    rows = journal.measurements(second.id)
    for one in journal.sessions(second.id):
        mine = [row.measurement for row in rows if row.session == one.seq]
        if one.state == "done":
            assert len(mine) == SMALL.requests + 1
        else:
            assert one.void_reason == "interrupted"
            assert all(row.void_reason == "interrupted" for row in mine)


def test_a_sweep_whose_worker_is_killed_ends_with_the_table_of_an_uninterrupted_one(journal: Journal) -> None:
    resumed_again_and_again(journal, kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_change_nothing_in_the_table(journal: Journal) -> None:
    resumed_again_and_again(journal, kills=50, seed=2, candidates=12, rounds=6)


@pytest.mark.parametrize("killed_after", [None, 6])
def test_candidates_that_turn_out_to_be_one_after_loading_are_measured_once(
    journal: Journal, killed_after: int | None, tmp_path: Path
) -> None:
    """How many layers are automatic is known only when they are loaded: here all 19."""
    axes = {"num_gpu": (-1, 10, 19), "num_ctx": (4096, 8192)}
    stage = Stage(journal, {}, wait_s=0.01)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        run = sweep(journal, server, axes, rounds=3, confirm=False, preflight=3)
        trials = {one.candidate: one for one in journal.trials(run.id)}
        names = {(one.requested.num_gpu, one.requested.num_ctx): one.candidate for one in trials.values()}
        assert trials["c0"].merged == (names.pop((-1, 4096), "c1"),), "what is plain before is merged before"
        assert len(trials) == 6
        stage.run_id = run.id
        if killed_after is not None:
            child = start_worker(journal, run.id)
            wait_until(lambda: len(journal.sessions(run.id)) > killed_after, 30)
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
        run = finish(journal, run)
    assert run.state == "done", run.error
    late, automatic, all_of_them = names[19, 4096], names[-1, 8192], names[19, 8192]
    same = run.plan["standing"]["same"]
    twin = automatic if automatic in same else all_of_them
    stays = all_of_them if twin == automatic else automatic
    assert same == {late: "c0", twin: stays}
    counted = Counter(candidate for phase, _, candidate in done_sessions(journal, run) if phase == "screen")
    assert counted == dict.fromkeys({*trials} - {late, twin}, 3), "nothing that is known was measured again"
    void = [one for one in journal.sessions(run.id) if one.void_reason == "same-settings"]
    assert {(one.candidate, one.facts["same_as"]) for one in void} == set(same.items())
    assert len(void) == 2
    assert all(not journal.measurements(run.id, session=one.seq) for one in void)
    rows = {row.candidate: row for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert set(rows) == {*trials, *trials["c0"].merged} - {"c0"}, "one verdict for each"
    assert (rows[late].verdict, rows[late].effect, rows[late].n) == ("same", 1.0, 0)
    assert (rows[twin].verdict, rows[twin].ci, rows[twin].n) == (rows[stays].verdict, rows[stays].ci, 3)
    said = [one.text for one in journal.events(run.id) if "by what was read back" in one.text]
    assert len(said) == 2
    assert any(
        f"{twin} ({trials[twin].requested}) runs what {stays} ({trials[stays].requested})" in one for one in said
    )
    shown = chimera("runs", "show", run.id).stdout
    assert f"{late} runs what c0 runs, by what was read back" in shown
    facts = {one["candidate"]: one for one in document(journal, run)["trials"]}
    assert (facts[late]["same_as"], facts[late]["requested"]["num_gpu"]) == ("c0", 19)
    for form in ("csv", "json"):
        file = tmp_path / f"run.{form}"
        assert chimera("runs", "export", run.id, "--format", form, "-o", str(file)).returncode == 0
        again = {
            row["candidate"]: (row["verdict"], row["n"], row["level"])
            for row in facts_of(chimera("runs", "import", str(file), "--json"))["verdicts"]
            if row["metric"] == "decode_tok_s"
        }
        expected = {name: (row.verdict, row.n, row.level) for name, row in rows.items()}
        if form == "csv":  # what was merged before it ran is in no row
            expected = {name: row for name, row in expected.items() if name in trials}
        assert again == expected


def test_the_completion_time_of_several_agents_is_an_objective_of_a_sweep(journal: Journal) -> None:
    workload = Workload(prompt_tokens=6, output_tokens=8, requests=2, agents=2)
    stage = Stage(journal, {2: 1.5}, sd=0.0)
    with in_thread(ScriptedOllama(decode_s=0.01, noise=stage, slots=2)) as server:
        drawn = sketch(
            "sweep", known_of(server), {"num_thread": (1, 2)}, workload,
            seed=5, objective="completion_s", rounds=4, confirm=False,
        )  # fmt: skip
        assert drawn.estimate.requests == 12 * 3 * 2, "each agent sends its own, the discarded one too"
        run = create_study(journal, Target("ollama", url=server.url, assume_yes=True), drawn)
        stage.run_id = run.id
        run = finish(journal, run)
    assert run.state == "done", run.error
    assert {one.agent for one in (row.measurement for row in journal.measurements(run.id))} == {0, 1}
    rows = {row.candidate: row for row in journal.verdicts(run.id) if row.metric == "completion_s"}
    assert (rows["c2"].n, rows["c1"].n) == (4, 4)
    assert rows["c2"].verdict == "better", "half as much again in the same time"
    sampling = sketch("sweep", known_of(server), {"temperature": (0.2, 0.8)}, workload, seed=5, confirm=False)
    assert not sampling.plan.one_load


def test_memory_runs_out_once_a_line_and_nothing_beyond_is_launched(journal: Journal) -> None:
    axes = {"num_gpu": (5, 10, 19), "num_ctx": (2048, 8192, 16384)}
    # 4 layers a line fit; what the larger windows need more of is out of reach.
    server = ScriptedOllama(decode_s=0.001, real_time=False, capacity_bytes=500_000_000, auto_layers=5)
    with in_thread(server):
        run = finish(journal, sweep(journal, server, axes, rounds=2, confirm=False, seed=3), 100)
        launched = [(options.num_gpu, options.num_ctx) for _, options in server.loads]
    assert run.state == "done", run.error
    failed = run.plan["standing"]["failed"]
    unlaunched = run.plan["standing"]["unlaunched"]
    assert failed, "the memory was too small for some"
    assert set(failed.values()) == {"out-of-memory"}
    requested = {trial.candidate: trial.requested for trial in journal.trials(run.id)}
    for window in axes["num_ctx"]:
        assert sum(requested[name].num_ctx == window for name in failed) <= 1, "one failure a line"
    assert server.refused_loads == len(failed)
    for name, because in unlaunched.items():
        assert (requested[name].num_gpu, requested[name].num_ctx) not in launched
        beyond, edge = requested[name], requested[because]
        assert (beyond.num_gpu or 0) >= (edge.num_gpu or 0)
        assert (beyond.num_ctx or 0) >= (edge.num_ctx or 0)
    words = {row.candidate: row.reason or "" for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert all("ran out of memory" in words[name] for name in failed)
    assert all("Not launched" in words[name] for name in unlaunched)
    others = set(requested) - set(failed) - set(unlaunched) - {"c0"}
    assert others
    assert all("memory" not in words[name] for name in others)


def test_a_configuration_that_crashes_the_engine_is_out_and_the_others_are_compared(journal: Journal) -> None:
    def dies(options: Options, request: int) -> int | None:
        return 2 if options.num_thread == 2 else None

    server = ScriptedOllama(decode_s=0.001, real_time=False, dies_after=dies)
    with in_thread(server):
        run = finish(journal, sweep(journal, server, {"num_thread": (1, 2, 3)}, rounds=3, confirm=False))
    assert run.state == "done", run.error
    assert run.plan["standing"]["failed"] == {"c2": "crash"}
    rows = {row.candidate: row for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert rows["c2"].verdict == "insufficient"
    assert "crashed" in (rows["c2"].reason or "")
    assert (rows["c1"].n, rows["c3"].n) == (3, 3)
    assert sum(one.candidate == "c2" for one in journal.sessions(run.id)) == 1


def test_a_window_that_is_too_short_for_the_prompts_is_refused_and_larger_ones_still_run(journal: Journal) -> None:
    workload = Workload(prompt_tokens=40, output_tokens=8, requests=1)
    server = ScriptedOllama(decode_s=0.001, real_time=False)
    server.route("POST", "/api/generate", refuses_in_short_windows(server))
    with in_thread(server):
        axes = {"num_ctx": (256, 1024)}
        run = finish(journal, sweep(journal, server, axes, rounds=3, confirm=False, workload=workload))
    assert run.state == "done", run.error
    assert run.plan["standing"]["failed"] == {"c1": "refused"}
    assert run.plan["standing"]["unlaunched"] == {}
    rows = {row.candidate: row.n for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert rows["c2"] == 3


def refuses_in_short_windows(server: ScriptedOllama) -> Answer:
    """Prompts that are sent with a window of 256 are refused, as a server without truncation does."""

    async def answer(exchange: Exchange) -> None:
        asked = exchange.request.json()
        if asked.get("prompt") and (asked.get("options") or {}).get("num_ctx") == 256:
            await exchange.reply(400, {"error": "the prompt is longer than the context length"})
        else:
            await server.default(exchange)

    return answer


class Reborn(ScriptedOllama):
    """Comes back where another one was."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{self.port}"


def test_a_server_that_goes_away_and_comes_back_does_not_end_the_run(journal: Journal, tmp_path: Path) -> None:
    server = ScriptedOllama(decode_s=0.002)
    with in_thread(server):
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=3, confirm=False)
        child = start_worker(journal, run.id)
        wait_until(lambda: len(done_sessions(journal, run)) >= 4, 30)
    port = server.port
    wait_until(lambda: any("waiting for the server" in one.text for one in journal.events(run.id)), 30)
    again = Reborn(decode_s=0.002)
    again.port = port
    with in_thread(again):
        child.wait(60)
    ended = journal.run(run.id)
    assert ended.state == "done", ended.error
    rows = {row.candidate: row.n for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert rows == {"c1": 3, "c2": 3}


def test_a_void_session_is_repeated_once_at_the_end_of_its_round(journal: Journal) -> None:
    stage = Stage(journal, {})

    def stops(options: Options, request: int) -> int | None:
        """In the second round c1 is void once, in the third one c2 twice."""
        running = [one for one in journal.sessions(stage.run_id) if one.state == "running"]
        if not running:
            return None
        now = running[-1]
        tries = sum((one.candidate, one.round) == (now.candidate, now.round) for one in journal.sessions(stage.run_id))
        once = (now.candidate, now.round) == ("c1", 2) and tries == 1
        always = (now.candidate, now.round) == ("c2", 3)
        return 3 if once or always else None

    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage, stops_after=stops)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=4, confirm=False)
        stage.run_id = run.id
        run = finish(journal, run)
    assert run.state == "done", run.error
    sessions = journal.sessions(run.id)
    second = [one for one in sessions if one.round == 2]
    assert len(second) == 4
    assert (second[-1].candidate, second[-1].state) == ("c1", "done")
    void = [one for one in second if one.state == "void"]
    assert [(one.candidate, one.void_reason) for one in void] == [("c1", "short-output")]
    third = [one for one in sessions if one.round == 3 and one.candidate == "c2"]
    assert [one.state for one in third] == ["void", "void"]
    assert run.plan["standing"]["lacking"] == [["screen", 3, "c2"]]
    rows = {row.candidate: row.n for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert rows == {"c1": 4, "c2": 3}


def test_a_sweep_is_paused_stopped_resumed_and_attached_to_at_any_point(journal: Journal) -> None:
    stage = Stage(journal, {}, wait_s=0.02)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=5, confirm=False)
        stage.run_id = run.id
        child = start_worker(journal, run.id)
        wait_until(lambda: len(done_sessions(journal, run)) >= 2, 30)
        assert chimera("pause", run.id).returncode == 0
        wait_until(lambda: journal.run(run.id).state == "paused", 10)
        held = len(journal.measurements(run.id))
        time.sleep(0.5)
        assert len(journal.measurements(run.id)) == held
        journal.send(run.id, "resume")
        wait_until(lambda: len(done_sessions(journal, run)) >= 5, 30)
        journal.send(run.id, "stop")
        assert child.wait(15) == 4
        stopped = journal.run(run.id)
        assert stopped.state == "stopped"
        assert {row.verdict for row in journal.verdicts(run.id)} <= {"undecided", "insufficient"}, "it is not complete"
        assert server.loaded == {}, "nothing was loaded before, so nothing is now"
        detached = chimera("resume", run.id, "--detach")
        assert detached.returncode == 0, detached.stderr
        attached = chimera("attach", run.id, "--json")
    assert attached.returncode == 0, attached.stderr
    facts = facts_of(attached)
    assert facts["run"]["state"] == "done"
    assert [(one["candidate"], one["sessions"]) for one in facts["trials"]] == [("c0", 5), ("c1", 5), ("c2", 5)]
    assert len({*done_sessions(journal, run)}) == len(done_sessions(journal, run)) == 15


def loaded_as(server: ScriptedOllama) -> dict[str, Options]:
    """What is loaded, with its options."""
    return {name: runner.options for name, runner in server.loaded.items()}


def test_a_symptom_that_cannot_be_looked_for_takes_no_verdict_away(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []

    def broken(journal: Journal, run: Run) -> str | None:
        kept.append(journal.run(run.id).plan.get("result"))
        raise ValueError("a rule stumbled")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker, "aftermath", broken)
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=3, confirm=False, preflight=0)
        with journal.worker_lock(run.id):
            assert asyncio.run(worker.Worker(journal, run).work()) == 0
    assert journal.run(run.id).state == "done"
    assert kept[0] is not None, "the verdict was there before"
    assert any("could not be told: ValueError" in one.text for one in journal.events(run.id))


def test_a_stop_that_comes_when_all_is_measured_takes_no_verdict_away(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(journal: Journal, run: Run) -> list[str]:
        journal.send(run.id, "stop")
        wait_until(lambda: at_work and at_work[0]._stop_reason, 10)
        time.sleep(0.2)
        return study.conclude(journal, run)

    at_work: list[worker.Worker] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker, "conclude", stopped)
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 1024}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=3, confirm=False, preflight=0)
        with journal.worker_lock(run.id):
            at_work.append(worker.Worker(journal, run))
            assert asyncio.run(at_work[0].work()) == 0
        assert loaded_as(server) == before
    ended = journal.run(run.id)
    assert (ended.state, ended.error) == ("done", None)
    assert ended.plan["result"]["recommendation"]["words"] in [one.text for one in journal.events(run.id)]
    assert any("all was measured and is kept" in one.text for one in journal.events(run.id))


_KILLED = """
import os, signal, sys
from chimera.runner import worker
conclude = worker.conclude
def and_die(journal, run):
    if sys.argv[2] == "after":
        conclude(journal, run)
    os.kill(os.getpid(), signal.SIGKILL)
worker.conclude = and_die
worker.main(sys.argv[1])
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_that_is_killed_at_its_conclusion_measures_nothing_again(journal: Journal, when: str) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=3, confirm=False, preflight=0)
        killed = subprocess.run([sys.executable, "-c", _KILLED, run.id, when], check=False, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert journal.run(run.id).state == "crashed"
        left = table(journal, run) | {"state": "done"}
        asked = len(server.requests)
        assert finish(journal, run).state == "done"
        assert not [one for one in server.requests[asked:] if one.path == "/api/generate" and one.json().get("prompt")]
    assert len(left["sessions"]) == 9
    assert table(journal, run) == left
    assert journal.run(run.id).plan["result"]["recommendation"]["words"]


def test_what_was_loaded_before_a_sweep_is_loaded_after_it(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 1024}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = finish(journal, sweep(journal, server, {"num_ctx": (2048, 4096)}, rounds=2, confirm=False))
        assert run.state == "done", run.error
        assert loaded_as(server) == before
        assert len(server.loads) > 4


def test_what_a_killed_sweep_left_changed_is_put_back_by_the_next_start(journal: Journal) -> None:
    stage = Stage(journal, {}, wait_s=0.02)
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False, noise=stage)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 1024}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = sweep(journal, server, {"num_ctx": (2048, 8192)}, rounds=4, confirm=False)
        stage.run_id = run.id
        child = start_worker(journal, run.id)
        wait_until(lambda: len(done_sessions(journal, run)) >= 2, 30)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert loaded_as(server) != before
        left = journal.unrestored()
        assert [one.run for one in left] == [run.id]
        assert put_back(journal, run.id, "http://127.0.0.1:9") == [], "another server is another question"
        words = put_back(journal, run.id, left[0].server_url)
        assert any("Loaded" in line for line in words)
        assert loaded_as(server) == before
        assert journal.unrestored() == []


def test_a_resumed_sweep_that_is_stopped_at_once_still_puts_the_first_state_back(journal: Journal) -> None:
    stage = Stage(journal, {}, wait_s=0.02)
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False, noise=stage)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 1024}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = sweep(journal, server, {"num_ctx": (2048, 8192)}, rounds=4, confirm=False)
        stage.run_id = run.id
        child = start_worker(journal, run.id)
        wait_until(lambda: len(done_sessions(journal, run)) >= 2, 30)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        again = start_worker(journal, run.id)
        wait_until(lambda: journal.run(run.id).state == "running", 20)
        journal.send(run.id, "stop")
        again.wait(20)
        assert loaded_as(server) == before
        assert journal.unrestored() == []


def ask(url: str, body: dict[str, object]) -> None:
    """Another client loads a model."""
    with urlopen(HttpRequest(f"{url}/api/generate", json.dumps(body).encode()), timeout=10) as answer:
        assert answer.status == 200


def test_a_second_view_sees_each_session_within_a_second_of_the_worker(journal: Journal) -> None:
    stage = Stage(journal, {}, wait_s=0.02)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=4, confirm=False)
        stage.run_id = run.id
        with Journal.open() as elsewhere:
            views = [Follower(journal, run.id), Follower(elsewhere, run.id)]
            child = start_worker(journal, run.id)
            late: list[float] = []
            rows = 0
            while child.poll() is None:
                for view in views:
                    update = view.look()
                    if update is not None and not update.first:
                        now = time.time()
                        late += [now - (row.measurement.started_at + row.measurement.total_s) for row in update.new]
                        rows += len(update.new)
                time.sleep(0.2)
            last = [view.look() for view in views]
        assert rows >= 40
        assert max(late) < 1.0
        assert all(update is None or update.run.state == "done" for update in last)


def test_a_validation_repeats_the_winner_against_the_default_on_fresh_rounds(journal: Journal) -> None:
    stage = Stage(journal, {2: 1.10}, sd=0.003)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=4, confirm=False)
        stage.run_id = run.id
        assert finish(journal, run).state == "done"
        result = journal.run(run.id).plan["result"]
        assert result["recommendation"]["candidate"] == "c2"
        again = create_validation(journal, journal.run(run.id), rounds=8)
        stage.run_id = again.id
        assert finish(journal, again).state == "done"
    (row,) = [one for one in journal.verdicts(again.id) if one.metric == "decode_tok_s"]
    assert (row.candidate, row.verdict, row.n) == ("c2", "better", 8)
    assert row.effect == pytest.approx(1.10, abs=0.01)
    summary = chimera("attach", again.id)
    assert summary.returncode == 0
    assert "better than the default" in summary.stdout
    assert {one.seq for one in journal.sessions(again.id)} == set(range(1, 17))


def test_layers_beyond_the_model_are_one_candidate_and_the_plan_says_so_before_it_starts(journal: Journal) -> None:
    large = FakeModel(name="gemma3:4b", block_count=34, trained_ctx=131_072)
    with in_thread(ScriptedOllama(models=(large,))) as server:
        done = chimera(
            "sweep", "--server", server.url, "--num-gpu", "60,80,120", "--seed", "9", "--dry-run", "--json"
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert server.loads == [], "a plan loads nothing on a server that is not ours"
    plan = facts_of(done)
    assert plan["schema_version"] == 1
    assert plan["seed"] == 9
    assert [one["candidate"] for one in plan["candidates"]] == ["c0", "c1"]
    (only,) = [one for one in plan["candidates"] if one["role"] == "candidate"]
    assert only["requested"] == {"num_gpu": 60}
    assert only["effective"]["num_gpu"] == 35
    assert only["merged"] == ["c2", "c3"]
    assert "num_gpu 60, 80 and 120 are one setting on a model of 34 layers" in only["notes"]
    assert [(one["requested"], one["into"]) for one in plan["merged"]] == [
        ({"num_gpu": 80}, "c1"),
        ({"num_gpu": 120}, "c1"),
    ]
    assert plan["rounds"] == {"preflight": 6, "screening": 0, "confirmation": 32}
    assert plan["estimate"]["sessions"] == 6 + 2 * 32
    assert plan["estimate"]["sessions_least"] == 6 + 2 * 8
    assert plan["smallest_effect"] is None
    assert "after the preflight" in plan["words"]
    assert journal.runs() == [], "nothing was started"


def test_a_later_plan_knows_time_and_noise_from_an_earlier_run(journal: Journal) -> None:
    stage = Stage(journal, {}, sd=0.01)
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=2, confirm=False, preflight=6)
        stage.run_id = run.id
        assert finish(journal, run).state == "done"
        typed = ("--num-thread", "1,2", "--prompt-tokens", "6", "--output-tokens", "8", "--dry-run", "--json")
        plan = facts_of(chimera("sweep", "--server", server.url, *typed))
        other = facts_of(chimera("sweep", "--server", server.url, *typed, "--output-tokens", "64"))
    assert plan["noise"] == journal.run(run.id).plan["standing"]["noise"]
    assert plan["estimate"]["seconds"] > 0
    assert 0.02 < plan["smallest_effect"] < 0.2
    assert 8 <= plan["rounds"]["confirmation"] <= 32
    assert other["noise"] is None, "an answer of another length is another workload"


def test_the_vram_forecast_rules_out_what_cannot_fit() -> None:
    blocks = 34
    shape = ModelShape(
        architecture="llama", block_count=blocks, embedding_length=2560, head_count=8, head_count_kv=(4,) * blocks,
        key_length=256, value_length=256, key_length_swa=256, value_length_swa=256, trained_ctx=131_072,
        weight_bytes=3_000_000_000, token_embd_bytes=280_000_000, lookup_bytes=280_000_000,
        output_bytes=280_000_000, block_bytes=(80_000_000,) * blocks,
    )  # fmt: skip
    known = Survey(
        ServerInfo("llama_server", "http://127.0.0.1:1"), ModelInfo("m", block_count=blocks), shape,
        Options(num_ctx=4096, num_gpu=0), 1, 4e9, 4e9,
    )  # fmt: skip
    drawn = sketch("sweep", known, {"num_gpu": (0, 35), "num_ctx": (4096, 131_072)}, SMALL, seed=1)
    said = drawn.as_dict()
    out = {one["candidate"]: one["reason"] for one in said["ruled_out"]}
    assert list(out) == ["c4"]
    assert "are needed on the GPU" in out["c4"]
    assert "c4" not in [one["candidate"] for one in said["candidates"]]


def test_a_space_of_over_24_settings_is_searched_in_cohorts_of_different_effects(journal: Journal) -> None:
    stage = Stage(journal, {1: 1.0, 2: 1.05, 3: 1.10}, sd=0.003)
    axes: dict[str, tuple[Any, ...]] = {
        "num_gpu": (5, 10, 15, 19, 60),
        "num_ctx": (512, 1024, 2048),
        "num_thread": (1, 2, 3),
    }
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False, noise=stage)) as server:
        drawn = sketch("sweep", known_of(server), axes, SMALL, seed=4, preflight=3, rounds=3)
        assert drawn.plan.cohorts_planned == 4
        drawn = replace(drawn, plan=replace(drawn.plan, cohorts_planned=2, confirm_rounds=3))
        run = create_study(journal, Target("ollama", url=server.url, assume_yes=True), drawn)
        stage.run_id = run.id
        run = finish(journal, run, 100)
    assert run.state == "done", run.error
    trials = [one for one in journal.trials(run.id) if one.role == "candidate"]
    assert len(trials) == 16
    effects = {(min(one.requested.num_gpu or 0, 19), one.requested.num_ctx, one.requested.num_thread) for one in trials}
    assert len(effects) == 16, "60 layers and 19 are one setting on a model of 18 layers"
    assert run.plan["result"]["recommendation"]["requested"]["num_thread"] == 3


def test_a_plan_of_a_space_that_is_too_large_to_list_is_told_without_listing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listed(axes: Any) -> Any:
        raise AssertionError("a million settings")

    monkeypatch.setattr(planning, "grid", listed)
    axes: dict[str, tuple[Any, ...]] = {
        "num_ctx": tuple(range(256, 25856, 256)), "num_batch": tuple(range(1, 101)), "num_thread": tuple(range(1, 101)),
    }  # fmt: skip
    drawn = sketch("sweep", known_of(ScriptedOllama()), axes, SMALL).as_dict()
    assert drawn["cohorts"] == 4
    assert drawn["merged"] == []


def test_tune_walks_the_five_steps_over_a_killed_worker_and_says_what_passed(journal: Journal) -> None:
    stage = Stage(journal, {}, sd=0.003)

    def decode_s(options: Options) -> float:
        """More layers on the GPU are faster, and nothing else matters."""
        return 0.02 / (1 + (options.num_gpu or 0) / 19)

    server = ScriptedOllama(decode_s=decode_s, real_time=False, noise=stage, auto_layers=9, default_ctx=2048)
    with in_thread(server):
        run = create_tune(journal, Target("ollama", url=server.url, assume_yes=True), tuned(server), SMALL, seed=2)
        stage.run_id = run.id
        child = start_worker(journal, run.id)
        wait_until(lambda: len(done_sessions(journal, run)) >= 20, 60)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        done = chimera("resume", run.id, "--json")
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)
    stages = facts["run"]["plan"]["stages"]
    assert [one["step"] for one in stages] == ["layers", "context", "sampling", "validation"]
    assert all("skipped" in one or one["rules"] for one in stages)
    assert facts["recommendation"]["requested"]["num_gpu"] == 19
    assert "better than the default" in facts["recommendation"]["words"]
    checks = {one["check"]: one["result"] for one in facts["validation"]}
    assert checks == {"consistency": "pass", "vram": "unknown", "ttft": "pass"}
    log = [one.text for one in journal.events(run.id)]
    assert sum("step 5, consistency: pass" in line for line in log) == 1
    assert any("Quality is not scored" in line for line in log)
    shown = chimera("runs", "show", run.id).stdout
    assert all(f"step {number}: " in shown for number in range(1, 6)), "each of the guide's five steps is named"
    assert "check    consistency: pass" in shown
    counted = done_sessions(journal, journal.run(run.id))
    assert len(counted) == len(set(counted))


def tuned(server: ScriptedOllama) -> Survey:
    """The survey of a server whose automatic layers are half of them."""
    return replace(known_of(server), defaults=Options(num_ctx=2048, num_gpu=9))


def test_tune_skips_what_cannot_matter_and_what_the_budget_does_not_hold(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.01, real_time=False)) as server:
        small = FakeModel(block_count=18, trained_ctx=256)
        known = replace(known_of(server, small), defaults=Options(num_ctx=256), gpus=0, cores=1)
        known = replace(known, pace=Pace(1.0, 1.0))
        run = create_tune(
            journal, Target("ollama", url=server.url, assume_yes=True), known, SMALL, seed=2, budget_s=10.0
        )
        run = finish(journal, run)
    assert run.state == "done", run.error
    why = {one["step"]: one.get("skipped", "") for one in run.plan["stages"]}
    assert "of the budget are left" in why["sampling"]
    assert "one setting here" in why["context"]
    assert "defaults were kept" in why["validation"]
    assert any(one.text.startswith("step 3: context window: skipped") for one in journal.events(run.id))
