"""Two settings' answers to one prompt: the same question, nothing kept, the server as it was before."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chimera.backends.detect import open_backend
from chimera.domain.options import Options
from chimera.domain.run import Run, Target
from chimera.runner.launch import disturbance, disturbed_by
from chimera.runner.outputs import PROMPT
from chimera.runner.putback import to_its_end
from chimera.store.journal import Journal
from tests.backends import scripted
from tests.backends.scripted import FakeModel, ScriptedOllama, in_thread
from tests.store.samples import new_run

from .test_applying import _sweep, chimera
from .test_study import ask, loaded_as
from .test_worker import wait_until

MODEL = FakeModel()
SECRET = "a prompt that nobody else may read"


def compared(journal: Journal, server: ScriptedOllama, gain: float = 0.2) -> Run:
    """A finished sweep of two windows."""
    target = Target("ollama", server.url, MODEL.name)
    return _sweep(journal, target, [Options(num_ctx=1024, temperature=0.2), Options(num_ctx=512)], [gain, -0.1])


def asked(server: ScriptedOllama) -> list[dict[str, object]]:
    """What was generated from a prompt."""
    bodies = [one.json() for one in server.requests if one.path == "/api/generate"]
    return [one for one in bodies if one.get("prompt")]


def test_both_answer_one_prompt_with_one_seed_and_the_server_is_put_back(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = scripted._line
    monkeypatch.setattr(
        scripted, "_line", lambda model, text, **more: line(model, text and f"{text}\x1b[31m\x07[bold]\n", **more)
    )
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 2048}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = compared(journal, server)
        done = chimera(
            "outputs", run.id, f"--prompt={SECRET}", "--seed", "9", "--output-tokens", "6", "--yes", "--json"
        )
        assert done.returncode == 0, done.stderr
        assert loaded_as(server) == before
        sent = asked(server)
    assert journal.unrestored() == []
    assert [one["prompt"] for one in sent] == [SECRET, SECRET]
    options = [one["options"] for one in sent]
    assert [(one["seed"], one["num_predict"], one.get("temperature")) for one in options] == [(9, 6, None), (9, 6, 0.2)]  # type: ignore[attr-defined, index]  # JSON
    facts = json.loads(done.stdout)
    assert facts["not_put_back"] == []
    assert [(one["candidate"], one["effective"]["num_ctx"]) for one in facts["outputs"]] == [("c0", 4096), ("c1", 1024)]
    assert [one["tokens"] for one in facts["outputs"]] == [6, 6]
    for one in facts["outputs"]:
        assert one["text"].startswith(" t0")
        assert one["text"].count("\n") == 6, "the lines of a text stay"
        assert not {"\x1b", "\x07"} & {*one["text"]}
    assert facts["same_text"] is True
    assert "not scored" in facts["words"]
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert SECRET.encode() not in kept, "a prompt is not stored unless that was asked for"
    assert b" t0" not in kept


@pytest.mark.parametrize("asks", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT)])
def test_an_end_from_outside_still_puts_the_server_back(journal: Journal, asks: tuple[signal.Signals, ...]) -> None:
    with in_thread(ScriptedOllama(decode_s=0.05, load_s=1.0)) as server:  # so that a second ask comes before the end
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 2048}, "keep_alive": "30m"})
        before = loaded_as(server)
        run = compared(journal, server)
        command = [sys.executable, "-m", "chimera", "outputs", run.id, "--yes", "--output-tokens", "5000"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: len(asked(server)) == 1, 30)
            time.sleep(0.5)
            assert loaded_as(server) != before
            for ask_to_end in asks:
                child.send_signal(ask_to_end)
                time.sleep(0.05)
            said = child.communicate(timeout=30)[1]
        assert child.returncode == 4
        assert "Traceback" not in said
        assert loaded_as(server) == before
    assert journal.unrestored() == []


def test_a_server_that_is_not_ours_is_not_reloaded_without_a_yes(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        ask(server.url, {"model": MODEL.name, "options": {"num_ctx": 2048}, "keep_alive": "30m"})
        run = compared(journal, server)
        done = chimera("outputs", run.id)
        assert done.returncode == 2
        assert "--yes" in done.stderr
        assert asked(server) == []
        assert len(server.loads) == 1


def test_texts_stand_side_by_side_where_there_is_room(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = compared(journal, server, gain=0.0)
        kept = chimera("outputs", run.id, "--yes")
        assert kept.returncode == 2, "nothing is recommended, so the other one must be named"
        assert "c1, c2" in kept.stderr
        named = ("outputs", run.id, "--candidate", "c2", "--output-tokens", "40", "--yes")
        monkeypatch.setenv("COLUMNS", "100")
        beside = chimera(*named).stdout
        monkeypatch.setenv("COLUMNS", "60")
        below = chimera(*named).stdout
        assert all(one["prompt"] == PROMPT for one in asked(server))
    left, right = beside.splitlines()[0].split(" │ ")
    assert (left.strip(), right.strip()) == ("c0: server defaults", "c2: num_ctx=512")
    assert any(line.startswith("t0 t1") and " │ t0 t1" in line for line in beside.splitlines())
    assert "│" not in below
    assert below.index("c0: ") < below.index("c2: num_ctx=512")


def test_a_setting_that_cannot_be_loaded_leaves_the_other_answer(journal: Journal) -> None:
    server = ScriptedOllama(decode_s=0.001, real_time=False, capacity_bytes=500_000_000, auto_layers=5)
    with in_thread(server):
        run = _sweep(journal, Target("ollama", server.url, MODEL.name), [Options(num_gpu=19)], [0.2])
        done = chimera("outputs", run.id, "--yes", "--json")
    assert done.returncode == 1
    first, second = json.loads(done.stdout)["outputs"]
    assert first["error"] is None
    assert first["text"]
    assert "memory" in second["error"]
    assert second["text"] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--candidate", "c9"), "no candidate 'c9'"),
        (("--candidate", "c0"), "one configuration"),
        (("--prompt", " "), "--prompt is empty"),
        (("--prompt", "x", "--prompt-file", "y"), "give one of them"),
        (("--prompt-file", "/nowhere"), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(journal: Journal, arguments: tuple[str, ...], said: str) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:9", MODEL.name), [Options(num_ctx=512)], [0.2])
    done = chimera("outputs", run.id, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_every_server_that_a_killed_run_has_changed_is_put_back_or_stays_remembered(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = compared(journal, server)
        with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as other:
            ask(other.url, {"model": MODEL.name, "options": {"num_ctx": 2048}, "keep_alive": "30m"})
            before = loaded_as(other)
            journal.remember(run.id, other.url, asyncio.run(remembered(other.url)))
            ask(other.url, {"model": MODEL.name, "options": {"num_ctx": 512}, "keep_alive": "30m"})
            assert loaded_as(other) != before
            done = chimera("outputs", run.id, "--yes", "--output-tokens", "3")
            assert done.returncode == 0, done.stderr
            assert loaded_as(other) == before
            assert journal.unrestored() == []
            journal.remember(run.id, other.url, asyncio.run(remembered(other.url)))
        gone = chimera("outputs", run.id, "--yes", "--output-tokens", "3")
        assert gone.returncode == 3
        assert f"{other.url} could not be put back" in gone.stderr
        assert "`chimera` offers at its next start to put them back" in gone.stderr
        assert [one.server_url for one in journal.unrestored()] == [other.url]
        assert gone.stdout.count("t0 t1") == 2, "both answers are there nonetheless"
        told = chimera("outputs", run.id, "--yes", "--output-tokens", "3", "--json")
        assert told.returncode == 3
        facts = json.loads(told.stdout)
        assert [one["tokens"] for one in facts["outputs"]] == [3, 3]
        assert [other.url in words for words in facts["not_put_back"]] == [True]


async def remembered(url: str) -> dict[str, Any]:
    """What a run keeps of a server before it changes it."""
    backend = open_backend(Target("ollama", url, MODEL.name))
    try:
        await backend.connect()
        return await backend.remember()
    finally:
        await backend.close()


def test_a_server_that_another_run_measures_is_left_to_it(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = compared(journal, server)
        spelled = Target("ollama", server.url.replace("127.0.0.1", "localhost") + "/", MODEL.name)
        other = _sweep(journal, spelled, [Options(num_ctx=512)], [0.2])
        with journal.worker_lock(other.id):
            journal.set_state(other.id, "running")
            done = chimera("outputs", run.id, "--yes")
        assert done.returncode == 2
        assert f"run {other.id} measures the same server" in done.stderr
        assert asked(server) == []


def test_a_run_that_is_paused_or_begins_next_is_disturbed_as_well(journal: Journal) -> None:
    run, other, first = (new_run(journal, "run") for _ in range(3))
    journal.set_state(run.id, "done")
    with journal.worker_lock(other.id):
        assert disturbed_by(journal, run) == journal.run(other.id), "nobody stands before it"
        assert "begins to measure" in disturbance(journal.run(other.id))
        journal.set_plan(other.id, {"after": first.id})
        with journal.worker_lock(first.id):
            journal.set_state(first.id, "paused")
            assert disturbed_by(journal, run) == journal.run(first.id), "the other one waits for it"
            assert "is paused on" in disturbance(journal.run(first.id))
        found = disturbed_by(journal, run)
        assert found is not None
        assert found.id == other.id


def test_a_run_whose_answers_are_read_has_its_lock_held(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        run = compared(journal, server)
        command = [sys.executable, "-m", "chimera", "outputs", run.id, "--yes", "--output-tokens", "5000"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
            wait_until(lambda: len(asked(server)) == 1, 30)
            assert journal.is_held(run.id)
            assert [one.id for one in journal.held()] == [run.id]
            assert journal.unrestored() == [], "nobody else puts the server back meanwhile"
            beside = chimera("run", "--server", server.url, "--requests", "1", "--output-tokens", "8", "--yes")
            assert "another program of ours uses the same server at the same time" in beside.stderr
            assert f"run {run.id}" in beside.stderr
            newest = journal.run("last").id
            assert newest != run.id
            assert any(f"run {newest} measures" in one.text for one in journal.events(run.id))
            child.send_signal(signal.SIGINT)
            child.wait(30)
    assert not journal.is_held(run.id)
    assert journal.held() == []


def test_a_server_that_stays_changed_is_told_also_where_nothing_was_answered(journal: Journal) -> None:
    with in_thread(ScriptedOllama(decode_s=0.05, load_s=1.0)) as server:
        run = compared(journal, server)
        journal.remember(run.id, "http://127.0.0.1:9", {"model": MODEL.name})
        command = [sys.executable, "-m", "chimera", "outputs", run.id, "--yes", "--output-tokens", "5000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: len(asked(server)) == 1, 30)
            child.send_signal(signal.SIGINT)
            out, said = child.communicate(timeout=30)
    assert child.returncode == 3
    assert out == ""
    assert "the settings of http://127.0.0.1:9 could not be put back" in said
    assert "is put back." not in said


async def test_what_must_be_done_is_done_however_often_an_end_is_asked_for() -> None:
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(1)

    task = asyncio.create_task(to_its_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


def test_a_run_that_goes_on_keeps_its_server(journal: Journal) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:9", MODEL.name), [Options(num_ctx=512)], [0.2])
    with journal.worker_lock(run.id):
        journal.set_state(run.id, "running")
        done = chimera("outputs", run.id)
    assert done.returncode == 2
    assert "goes on" in done.stderr
