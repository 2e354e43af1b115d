"""A look at this moment, without a run: what the doctor sees between its readings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chimera.diagnosis.evidence import EvidenceSet, Failure, Request
from chimera.domain.measurement import Measurement
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import GpuState, HostSample, ServerSample, Snapshot
from chimera.runner import doctor, sampler
from chimera.runner.doctor import Examination, LiveLook, bundle
from chimera.runner.evidence import machine_facts, woke
from chimera.telemetry import serverlog
from chimera.telemetry.loaded import Loaded
from chimera.telemetry.serverlog import ServiceLog, service_lines

OLLAMA = Loaded(ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0"))


class Watched:
    """A collector that shows one engine after the other."""

    def __init__(self, pids: Iterator[int]) -> None:
        self.pids = pids

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        return Snapshot(now, GpuState(now), HostSample(now), ServerSample(now, engine_pids=(next(self.pids),)))

    def close(self) -> None:
        """Nothing is open."""


def look(monkeypatch: pytest.MonkeyPatch, *pids: int, log: tuple[str, ...] = ()) -> LiveLook:
    monkeypatch.setattr(doctor, "Collector", lambda server: Watched(iter(pids)))
    monkeypatch.setattr(serverlog, "service_lines", lambda kind, url, since: list(log))
    return LiveLook(OLLAMA)


def test_engines_that_come_and_go_between_readings_are_thrash(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {pid: {"-c": "4096" if pid % 2 else "8192"} for pid in (1, 2, 3)}
    monkeypatch.setattr(sampler, "engine_flags", flags.__getitem__)
    watched = look(monkeypatch, 1, 1, 2, 3)
    for _ in range(2):
        watched.tick()
    assert watched.examine().findings == ()
    for _ in range(2):
        watched.tick()
    examined = watched.examine()
    assert [one.code for one in examined.findings] == ["reload-thrash"]
    assert [one.pid for one in examined.evidence.engine_starts] == [1, 2, 3]
    assert examined.sick


def test_the_servers_log_speaks_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "engine_flags", lambda pid: {})
    watched = look(monkeypatch, 1, log=('msg="truncating input prompt" limit=256 prompt=902',))
    watched.tick()
    [finding] = watched.examine().findings
    assert finding.cause == "context-truncation/silent-cut"


def test_only_ollamas_own_port_on_this_host_has_a_log_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverlog, "ollama_log", lambda since: [f"since {since:g}"])
    assert service_lines("ollama", "http://127.0.0.1:11434", 5.0) == ["since 5"]
    assert service_lines("ollama", "http://127.0.0.1:11435", 5.0) == []
    assert service_lines("ollama", "http://192.0.2.7:11434", 5.0) == []
    assert service_lines("llama_server", "http://127.0.0.1:11434", 5.0) == []
    assert service_lines("ollama", None, 5.0) == []


def test_the_log_is_read_anew_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def read(since: float) -> list[str]:
        asked.append(since)
        return [str(len(asked))]

    monkeypatch.setattr(serverlog, "ollama_log", read)
    log = ServiceLog(600.0)
    assert log.lines(None, 1000.0) == []
    assert [log.lines(OLLAMA.server, now) for now in (1000.0, 1029.0, 1031.0)] == [["1"], ["1"], ["2"]]
    assert asked == [400.0, 431.0]


def test_a_wall_clock_that_ran_ahead_tells_when_the_machine_woke() -> None:
    assert woke([(10.0, 1000.0), (11.0, 1000.1), (12.0, 4600.0)]) == 4612.0
    assert woke([(10.0, 1000.0), (11.0, 1020.0)]) is None, "a clock that was set"
    assert woke([(10.0, 1000.0), (2.0, 4600.0)]) is None, "the machine was started anew"


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock here goes on while the machine sleeps")
@pytest.mark.parametrize(("ahead", "slept"), [(7200.0, 7200.0), (0.4, 0.0)])
def test_a_machine_that_slept_since_its_start_says_so(
    monkeypatch: pytest.MonkeyPatch, ahead: float, slept: float
) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 50.0 + ahead * (clock == time.CLOCK_BOOTTIME))
    assert machine_facts()["slept_s"] == slept


def test_a_bundle_names_neither_home_nor_user_nor_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/alice-b"))
    monkeypatch.setattr("getpass.getuser", lambda: "alice-b")
    monkeypatch.setenv("CHIMERA_API_KEY", "quiet-key")
    text = "cannot open /data/people/alice-b/models/x.gguf with quiet-key, user alice-b"
    broken: dict[str, Any] = {"total_s": 1.0, "void_reason": "error", "error": text}
    request = Request(Measurement("measure", time.time(), **broken))
    made = bundle([Examination(EvidenceSet(requests=(request,), failures=(Failure(text, time.time()),)), ())], {})
    for form in (made.markdown, made.json):
        assert "models/x.gguf" in form
        assert "alice" not in form
        assert "/data/people" not in form
        assert "quiet-key" not in form
