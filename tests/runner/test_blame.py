"""The blame line of a session, from what was read of the GPUs, and the rule for a GPU that others used."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import Any, cast

import pytest

from chimera.domain.readings import Missing
from chimera.domain.telemetry import (
    INACTIVE,
    GpuCounters,
    GpuProcess,
    GpuSample,
    GpuState,
    HostSample,
    ServerSample,
    Snapshot,
)
from chimera.runner.follow import Follower
from chimera.runner.sampler import Sampler, session_facts, shared, void_as_shared
from chimera.runner.worker import Worker
from chimera.store.journal import Journal
from tests.backends.scripted import ScriptedOllama, in_thread
from tests.diagnosis.builders import measurement

from .test_study import sweep
from .test_worker import chimera, facts_of, journal

__all__ = ["journal"]

ENGINE = GpuProcess(10, "llama-server", sm_percent=90.0)


def snapshot(at: float, *processes: GpuProcess, pids: tuple[int, ...] = (10,), **sample: Any) -> Snapshot:
    gpu = GpuSample(
        "GPU-1", at, temperature_c=60.0, energy_j=100.0 * at, power_limit_w=300.0, sm_mhz=1800.0 - at,
        vram_used_bytes=1e9, processes=(ENGINE, *processes),
        throttle_s={"power-cap": 0.5 * at, "sw-thermal": 0.0, "hw-thermal": Missing("unsupported", "old driver")},
    )  # fmt: skip
    server = ServerSample(at, engine_pids=pids)
    return Snapshot(at, GpuState(at, samples=(replace(gpu, **sample),)), HostSample(at), server)


def test_shares_are_of_the_wall_time_by_the_drivers_counters() -> None:
    facts = session_facts([snapshot(0.0), snapshot(4.0), snapshot(10.0)], tokens=500)
    assert facts["throttle_shares"] == {"power-cap": 0.5, "sw-thermal": 0.0}, "unknown is never 0"
    assert facts["power_capped_share"] == 0.5
    assert facts["throttled_share"] == 0.0
    assert facts["energy_j_per_token"] == pytest.approx(2.0)
    assert facts["power_limit_w"] == 300.0
    assert (facts["sm_mhz_mean"], facts["sm_mhz_min"]) == (pytest.approx(1800 - 14 / 3), 1790.0)
    assert facts["foreign_gpu_percent"] == 0.0
    assert not shared(facts)


def test_another_program_on_the_gpu_is_told_from_the_engine() -> None:
    game = GpuProcess(77, "game", sm_percent=30.0)
    facts = session_facts([snapshot(0.0), snapshot(1.0, game)], tokens=10)
    assert facts["foreign_gpu_percent"] == 15.0
    assert shared(facts)
    mine = session_facts([snapshot(0.0), snapshot(1.0, game)], tokens=10, ours=frozenset({game.pid}))
    assert mine["foreign_gpu_percent"] == 0, "the engine of an earlier session is no stranger"
    untied = session_facts([snapshot(0.0, replace(game, name="?"))], tokens=10)
    assert untied["foreign_gpu_percent"] == 0.0, "it may be the engine itself, seen from a container"
    assert "foreign_gpu_percent" not in session_facts([snapshot(0.0, game, pids=())], tokens=10)
    assert not shared({})


def test_an_engine_that_no_list_names_has_no_strangers_beside_it() -> None:
    """It runs on the CPU, or its pid is that of the forwarder in front of its container."""
    container = GpuProcess(99, "llama-server", sm_percent=95.0)
    seen = [snapshot(at, processes=(container,)) for at in (0.0, 1.0)]
    assert "foreign_gpu_percent" not in session_facts(seen, tokens=10)


UNTOLD = replace(ENGINE, sm_percent=Missing("unsupported", "told for the whole GPU only, not for a MIG instance"))
IDLE = replace(ENGINE, sm_percent=INACTIVE)
GAME = GpuProcess(77, "game", sm_percent=20.0)


@pytest.mark.parametrize(
    ("programs", "percent"),
    [
        pytest.param((UNTOLD, replace(GAME, sm_percent=UNTOLD.sm_percent)), None, id="MIG"),
        pytest.param((GpuProcess(8, "?", sm_percent=50.0),), None, id="no process can be tied to one seen from here"),
        pytest.param((IDLE, replace(GAME, sm_percent=INACTIVE)), 0.0, id="nobody was active"),
        pytest.param((IDLE, GAME), 20.0, id="a game"),
        pytest.param((), 0.0, id="nobody is on this GPU"),
    ],
)
def test_a_share_that_the_driver_does_not_tell_is_not_0(
    programs: tuple[GpuProcess, ...], percent: float | None
) -> None:
    def facts(second: tuple[GpuProcess, ...]) -> dict[str, Any]:
        return session_facts([snapshot(0.0, processes=programs), snapshot(1.0, processes=second)], tokens=10)

    assert facts(programs).get("foreign_gpu_percent") == percent
    assert facts((UNTOLD,)).get("foreign_gpu_percent") == percent, "a list without shares lowers no mean"


def test_a_driver_that_names_nobody_on_a_busy_gpu_cannot_tell_who_is_there() -> None:
    silent = [snapshot(at, processes=(), utilization=95.0) for at in (0.0, 1.0)]
    assert "foreign_gpu_percent" not in session_facts(silent, tokens=10)
    idle = [snapshot(at, processes=(), utilization=0.0) for at in (0.0, 1.0)]
    assert session_facts(idle, tokens=10)["foreign_gpu_percent"] == 0.0, "the engine runs on the CPU"
    loading = [snapshot(0.0, processes=(), utilization=0.0), snapshot(1.0, GAME, utilization=95.0)]
    assert session_facts(loading, tokens=10)["foreign_gpu_percent"] == 10.0, "it tells, as its other list shows"
    two = replace(idle[0].gpus.samples[0], uuid="GPU-2")
    both = [replace(one, gpus=replace(one.gpus, samples=(*one.gpus.samples, two))) for one in silent]
    assert session_facts(both, tokens=10)["foreign_gpu_percent"] == 0.0, "of the GPU that is known"


@pytest.mark.parametrize(
    ("there", "percent"),
    [
        pytest.param((), 0.0, id="the engine is on the first GPU only"),
        pytest.param((IDLE,), 0.0, id="it has opened the second one, as llama.cpp does, and computes nothing there"),
        pytest.param((ENGINE,), 20.0, id="its layers are on both"),
    ],
)
def test_a_program_on_a_gpu_that_the_engine_does_not_use_takes_nothing_of_it(
    there: tuple[GpuProcess, ...], percent: float
) -> None:
    seen = [snapshot(at) for at in (0.0, 1.0)]
    second = replace(seen[0].gpus.samples[0], uuid="GPU-2", processes=(*there, GAME))
    both = [replace(one, gpus=replace(one.gpus, samples=(*one.gpus.samples, second))) for one in seen]
    assert session_facts(both, tokens=10)["foreign_gpu_percent"] == percent


def test_the_engine_of_a_session_that_had_no_end_is_no_stranger_in_the_next_one() -> None:
    def facts(first: tuple[int, ...], started: int | None) -> dict[str, Any]:
        watch = Sampler(cast("Any", None), "r1")
        watch.begin_session()
        watch.watch(None, started)
        watch._session.append(snapshot(0.0, pids=first))
        watch.begin_session()  # what was loaded was found equal to another candidate, or it failed
        watch.watch(None, ENGINE.pid)
        watch._session += [snapshot(1.0, GAME), snapshot(2.0, GAME)]
        return watch.end_session([measurement()])

    assert facts((), None)["foreign_gpu_percent"] == 20.0
    assert facts((), GAME.pid)["foreign_gpu_percent"] == 0.0, "an engine of ours"
    assert facts((GAME.pid,), None)["foreign_gpu_percent"] == 0.0, "one of the server's"


def test_of_several_instances_nobody_is_called_a_stranger() -> None:
    def facts(*instances: int, of_run: int = 1) -> dict[str, Any]:
        watch = Sampler(cast("Any", None), "r1", instances=of_run)
        watch._session += [snapshot(0.0, second), snapshot(1.0, second)]
        return watch.end_session([measurement(instance=place) for place in instances])

    second = GpuProcess(77, "ollama", sm_percent=45.0)
    assert facts(0, 0)["foreign_gpu_percent"] == 45.0
    assert "foreign_gpu_percent" not in facts(0, 1), "it is the engine of the second instance"
    assert "foreign_gpu_percent" not in facts(0, 0, of_run=2), "which may still be there where one works alone"


def test_a_list_of_processes_from_outside_the_session_accuses_nobody() -> None:
    game = GpuProcess(77, "game", sm_percent=30.0)
    old = [snapshot(at, game, processes_at=6.0) for at in (10.0, 11.0, 12.0)]
    assert "foreign_gpu_percent" not in session_facts(old, tokens=10), "unknown, and no verdict rests on it"
    at_its_start = [snapshot(10.0, game, processes_at=9.5)]
    idle = replace(game, sm_percent=INACTIVE)
    within = [snapshot(at, idle, processes_at=11.0) for at in (11.0, 12.0, 13.0, 14.0)]
    before = (GpuCounters("GPU-1", 9.5, processes=(ENGINE, game)),)
    assert session_facts([*at_its_start, *within], 10, before)["foreign_gpu_percent"] == 0.0
    after = (GpuCounters("GPU-1", 15.0, processes=(ENGINE, game)),)
    facts = session_facts([*at_its_start, *within], 10, before, after)
    assert facts["foreign_gpu_percent"] == 15.0, "each list counts once, however many samples repeat it"
    unread = (GpuCounters("GPU-1", 15.0),)
    assert session_facts([*at_its_start, *within], 10, before, unread)["foreign_gpu_percent"] == 0.0


def test_a_program_that_ended_in_a_session_computed_on_until_then() -> None:
    # Seen on an H100: requests at a fifth of their rate, and the list at the end named nobody but the engine.
    game = GpuProcess(77, "game", sm_percent=99.0)
    seen = [snapshot(at, game, processes_at=9.5) for at in (9.6, 11.0, 13.0)]
    begun = (GpuCounters("GPU-1", 9.5, processes=(ENGINE, game)),)
    over = (GpuCounters("GPU-1", 15.0, processes=(ENGINE,)),)
    facts = session_facts(seen, 10, begun, over)
    assert facts["foreign_gpu_percent"] == 99.0
    assert void_as_shared(facts, compared=True, crews=False)
    stays = (GpuCounters("GPU-1", 15.0, processes=(ENGINE, replace(game, sm_percent=INACTIVE))),)
    assert session_facts(seen, 10, begun, stays)["foreign_gpu_percent"] == 0.0, "the driver tells of it: it was idle"
    ours = session_facts(seen, 10, begun, over, ours=frozenset({game.pid}))
    assert ours["foreign_gpu_percent"] == 0.0, "the engine before"
    middle = [snapshot(9.6), snapshot(11.0, game, processes_at=11.0), snapshot(13.0, game, processes_at=11.0)]
    alone = (GpuCounters("GPU-1", 9.5, processes=(ENGINE,)),)
    assert session_facts(middle, 10, alone, over)["foreign_gpu_percent"] == 66.0, "in two of three lists"


def test_the_rule_for_a_shared_gpu_is_for_sessions_that_are_compared_on_one_server() -> None:
    facts = {"foreign_gpu_percent": 30.0}
    assert void_as_shared(facts, compared=True, crews=False)
    assert not void_as_shared(facts, compared=False, crews=False)
    assert not void_as_shared(facts, compared=True, crews=True)
    assert not void_as_shared({"foreign_gpu_percent": 1.0}, compared=True, crews=False)


def test_a_session_that_shared_the_gpu_is_void_and_repeated(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    own = Sampler.end_session

    def ended(self: Sampler, measurements: Any) -> dict[str, Any]:
        now = journal.sessions(self._run_id)[-1]
        tries = [one for one in journal.sessions(self._run_id) if (one.candidate, one.round) == ("c1", 2)]
        busy = (now.candidate, now.round, len(tries)) == ("c1", 2, 1)
        return own(self, measurements) | {"foreign_gpu_percent": 40.0 if busy else 1.0}

    monkeypatch.setattr(Sampler, "end_session", ended)
    with in_thread(ScriptedOllama(decode_s=0.001, real_time=False)) as server:
        run = sweep(journal, server, {"num_thread": (1, 2)}, rounds=3, confirm=False, preflight=0)
        with journal.worker_lock(run.id):
            assert asyncio.run(Worker(journal, run).work()) == 0
    void = [one for one in journal.sessions(run.id) if one.state == "void"]
    assert [(one.candidate, one.round, one.void_reason) for one in void] == [("c1", 2, "shared-gpu")]
    rows = {row.candidate: row.n for row in journal.verdicts(run.id) if row.metric == "decode_tok_s"}
    assert rows == {"c1": 3, "c2": 3}, "it was repeated"
    assert any("other programs computed on 40 % of the GPU" in one.text for one in journal.events(run.id))
    shown = chimera("runs", "show", run.id).stdout
    assert "void, shared-gpu" in shown
    assert "others " in shown
    look = Follower(journal, run.id).look()
    assert look is not None
    assert look.compared is not None
    line = look.compared.blame["c1"]
    assert line.startswith("1000.0 tok/s; VRAM ")
    assert line.endswith("1 % of the GPU")
    file = tmp_path / "run.csv"
    assert chimera("runs", "export", run.id, "--format", "csv", "-o", str(file)).returncode == 0
    again = facts_of(chimera("runs", "import", str(file), "--json"))
    assert {row["candidate"]: row["n"] for row in again["verdicts"] if row["metric"] == "decode_tok_s"} == rows
