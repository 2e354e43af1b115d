"""The few lines of Ollama's own log that rules look for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chimera.telemetry.serverlog import ollama_log, telling

LOG = """\
time=2026-11-20T08:00:00.000Z level=INFO msg="inference compute" id=old library=CUDA
time=2026-11-20T08:00:05.000Z level=INFO msg="evicting"
time=2026-11-26T08:00:00.000Z level=INFO msg="inference compute" id=GPU-1 library=CUDA
time=2026-11-26T08:00:00.001Z level=INFO msg="inference compute" id=GPU-2 library=CUDA
time=2026-11-26T09:00:00.000Z level=WARN msg="truncating input prompt" limit=256 prompt=902 new=256
[GIN] 2026/11/26 - 09:00:01 | 200 | 5.26s | 127.0.0.1 | POST "/api/generate"
time=2026-11-26T10:00:00.000+00:00 level=WARN msg="invalid option provided" option=num_ctxx
load_tensors: offloaded 22/35 layers to GPU
time=not-a-time level=WARN msg="evicting"
"""
TEN = 1795687200.0  # 2026-11-26T10:00:00Z


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    folder = tmp_path / ("Ollama" if sys.platform == "win32" else ".ollama/logs")
    folder.mkdir(parents=True)
    return folder


def test_lines_since_a_moment_and_the_devices_of_the_last_start_are_read(home: Path) -> None:
    (home / "server.log").write_text(LOG, encoding="utf-8")
    told = ollama_log(TEN)
    assert [line.partition("msg=")[2] or line for line in told] == [
        '"inference compute" id=GPU-1 library=CUDA', '"inference compute" id=GPU-2 library=CUDA',
        '"invalid option provided" option=num_ctxx', "load_tensors: offloaded 22/35 layers to GPU",
    ]  # fmt: skip
    assert any("truncating input prompt" in line for line in ollama_log(TEN - 3600))
    assert not any("GIN" in line for line in ollama_log(0))


def test_without_a_file_the_systems_journal_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **rest: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, LOG.encode(), b"")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(subprocess, "run", run)
    assert any("invalid option provided" in line for line in ollama_log(TEN))
    assert asked[0][:3] == ["journalctl", "--unit", "ollama"]


@pytest.mark.parametrize("failure", [OSError("no such program"), subprocess.TimeoutExpired("journalctl", 3.0)])
def test_a_journal_that_cannot_be_asked_is_no_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", run)
    assert ollama_log(0) == []


def test_a_user_without_a_home_has_no_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ollama_log(0) == []


def test_lines_are_neutralised_told_once_and_few() -> None:
    assert telling(["evicting \x1b[31mred", "evicting \x1b[31mred", "hello"]) == ["evicting red"]
    assert len(telling(f"evicting {i}" for i in range(100))) == 20
