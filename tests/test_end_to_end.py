"""The installed command in a real terminal (tmux), on the real embedded model, as a user would go about it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .terminal import CHIMERA, Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path / "home")
    try:
        yield terminal
    finally:
        terminal.tmux("kill-server", check=False)
        for _ in range(100):
            active = json.loads(terminal.chimera("runs", "list", "--json").stdout)["runs"]
            if all(run["state"] in {"done", "stopped", "failed", "crashed"} for run in active):
                break
            terminal.chimera("stop", "last")
            time.sleep(0.2)


@pytest.mark.embedded
@pytest.mark.alone
def test_a_preset_by_keystroke_a_lost_terminal_and_the_way_back(terminal: Terminal) -> None:
    terminal.open("one", f"{CHIMERA} --embedded")
    terminal.wait("one", lambda text: "Presets" in text and "CPU" in text, 30)
    terminal.press("one", "1")
    terminal.wait("one", lambda text: "request 1: " in text, 90)
    text = terminal.wait("one", lambda text: "request 2: " in text and re.search(r"median +[\d.]+ of 2", text), 60)
    document = json.loads(terminal.chimera("runs", "export", "last").stdout)
    assert document["run"]["state"] == "running"
    rates = [one["decode_tok_s"] for one in document["measurements"] if one["role"] == "measure"][:2]
    shown = float(re.findall(r"median +([\d.]+) of 2", text)[0])
    assert shown == pytest.approx(sum(rates) / 2, rel=0.05), "the captured screen against the journal"

    terminal.tmux("kill-session", "-t", "one")  # the terminal is closed, not the app left
    run_id = document["run"]["id"]
    terminal.open("two", f"{CHIMERA} attach {run_id}")
    terminal.wait("two", lambda text: "request 3: " in text, 60)
    terminal.wait("two", lambda text: "counted" in text, 90)
    shown_again = terminal.chimera("runs", "show", run_id, "--json", "--measurements")
    assert shown_again.returncode == 0
    after = json.loads(shown_again.stdout)
    assert after["run"]["state"] == "done"
    assert len(after["measurements"]) == 6, "the discarded request and all five measured ones"
    assert after["measurements"][1]["total_s"] == document["measurements"][1]["total_s"]


def test_q_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.open("one", f"sh -c 'echo before; {CHIMERA} --embedded; echo after $?; sleep 60'", 80, 24)
    terminal.wait("one", lambda text: "Leave" in text and "CPU" in text, 30)
    began = time.monotonic()
    terminal.press("one", "q")
    text = terminal.wait("one", lambda text: "after" in text, 10)
    assert time.monotonic() - began < 5
    assert "before" in text
    assert "after 0" in text
    assert "Throughput" not in text
    raw = terminal.raw("one")
    assert "\x1b[4" not in raw, "no background colour is left behind"


def test_the_ui_works_without_colour_and_on_a_small_terminal(terminal: Terminal) -> None:
    terminal.open("one", f"env NO_COLOR=1 TERM=screen {CHIMERA} --embedded", 80, 24)
    text = terminal.wait("one", lambda text: "No NVIDIA" in text or ("GPU" in text and "CPU" in text), 30)
    assert "Throughput" in text
    assert len(text.rstrip("\n").splitlines()) == 24
    assert "Leave" in text.rstrip().splitlines()[-1]
