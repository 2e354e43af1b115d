"""`chimera doctor --watch`: what is printed of one look after the other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chimera.cli.doctor import _Watch
from chimera.diagnosis.evidence import EvidenceSet
from chimera.domain.finding import Evidence, Finding
from chimera.domain.run import Run, Target
from chimera.domain.workload import Workload
from chimera.runner.doctor import Examination

HOT = Finding("foreign-load", "notice", "Other programs used 20 % of the CPU", (Evidence("CPU", 20.0, 15.0, 9.0),),
              cause="foreign-load/cpu")  # fmt: skip
FULL = Finding("vram-exhaustion", "warn", "GPU memory is full", (Evidence("GPU memory", 0.99, 0.95, 9.0),))


def look(*findings: Finding) -> list[Examination]:
    return [Examination(EvidenceSet(), findings)]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_a_watch_prints_findings_only_when_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    watch = _Watch()
    watch(look(), json=False)
    assert "Nothing was found." in printed(capsys)
    watch(look(), json=False)
    assert printed(capsys) == ""
    watch(look(HOT), json=False)
    assert "notice: Other programs used 20 %" in printed(capsys)
    moved = replace(HOT, title="Other programs used 21 % of the CPU")
    watch(look(moved), json=False)
    assert printed(capsys) == "", "figures that move are no change"
    watch(look(moved, FULL), json=False)
    text = printed(capsys)
    assert "warning: GPU memory is full" in text
    assert "Other programs" not in text
    watch(look(replace(moved, severity="warn"), FULL), json=False)
    text = printed(capsys)
    assert "warning: Other programs used 21 %" in text
    assert "GPU memory" not in text
    watch(look(FULL), json=False)
    text = printed(capsys)
    assert "no longer: Other programs used 21 % of the CPU" in text
    assert "GPU memory" not in text
    watch(look(HOT, FULL), json=False)
    assert "notice: Other programs used 20 %" in printed(capsys), "what comes back is told again"


def test_a_run_that_failed_says_why_also_where_no_rule_found_anything(capsys: pytest.CaptureFixture[str]) -> None:
    said = "The worker ended at once: \x1b[1m!"
    run = Run("k7f2", "run", "failed", 0.0, Target("embedded"), Workload(), 1, error=said)
    _Watch()([Examination(EvidenceSet(), (), run)], json=False)
    text = printed(capsys)
    assert "The worker ended at once" in text
    assert "\x1b" not in text
    assert "Nothing was found." not in text


def test_a_terminal_is_painted_anew_only_when_something_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = _Watch()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    watch(look(HOT), json=False)
    assert printed(capsys).startswith("\x1b[H\x1b[J")
    watch(look(HOT), json=False)
    assert printed(capsys) == ""
    watch(look(replace(HOT, title="Other programs used 21 % of the CPU")), json=False)
    assert "21 %" in printed(capsys)


def test_each_look_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    watch = _Watch()
    for _ in range(2):
        watch(look(HOT), json=True)
    lines = printed(capsys).splitlines()
    assert [[one["code"] for one in json.loads(line)["findings"]] for line in lines] == [["foreign-load"]] * 2
