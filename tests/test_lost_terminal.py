"""The installed UI, and what becomes of it when its terminal goes without a word, is none, or comes back."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from .terminal import CHIMERA, Terminal


@dataclass
class Opened:
    """A UI on a pseudo terminal that is not its controlling one: nobody sends it SIGHUP."""

    child: subprocess.Popen[bytes]
    master: int

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "CHIMERA_HOME": str(tmp_path / "home"), "TERM": "xterm-256color"}


@pytest.fixture
def opened(home: dict[str, str], tmp_path: Path) -> Iterator[Opened]:
    master, slave = pty.openpty()
    with (tmp_path / "stdout").open("wb") as stdout:
        child = subprocess.Popen(
            [CHIMERA, "--embedded"], stdin=slave, stdout=stdout, stderr=slave, env=home, start_new_session=True
        )
    os.close(slave)
    ui = Opened(child, master)
    try:
        seen, deadline = b"", time.monotonic() + 30
        while b"Leave" not in seen:
            assert child.poll() is None, seen
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 1.0)[0]:
                seen += os.read(master, 1 << 16)
        yield ui
    finally:
        child.kill()
        child.wait()
        if ui.master >= 0:
            os.close(ui.master)


def test_a_ui_whose_terminal_went_without_a_signal_leaves(opened: Opened, tmp_path: Path) -> None:
    process = psutil.Process(opened.child.pid)
    for _ in range(20):  # what it does after its first paint is done, and read
        if select.select([opened.master], [], [], 0.1)[0]:
            os.read(opened.master, 1 << 16)
    before = sum(process.cpu_times()[:2])
    opened.hang_up()
    ended, status, used = _ended(opened.child.pid, 5.0)
    assert ended, f"it goes on, and has taken {sum(process.cpu_times()[:2]) - before:.1f} s of a core meanwhile"
    opened.child.returncode = os.waitstatus_to_exitcode(status)
    assert opened.child.returncode == 4
    assert used - before < 1.0, "seconds of a core between the loss and the end"
    assert (tmp_path / "stdout").read_text() == ""


def _ended(pid: int, within_s: float) -> tuple[bool, int, float]:
    """Whether a child ends in this time, how, and the processor time it has used in all."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return True, status, usage.ru_utime + usage.ru_stime
        time.sleep(0.02)
    return False, 0, 0.0


def test_a_key_of_another_encoding_and_half_a_character_are_no_end(opened: Opened) -> None:
    os.write(opened.master, b"\xe9")  # é in Latin-1
    os.write(opened.master, b"\xc3")  # the first half of one in UTF-8
    time.sleep(0.5)
    os.write(opened.master, b"\xa9q")
    seen, deadline = b"", time.monotonic() + 10
    while opened.child.poll() is None:
        assert time.monotonic() < deadline, seen
        if select.select([opened.master], [], [], 0.1)[0]:
            try:
                seen += os.read(opened.master, 1 << 16)
            except OSError:  # its side is closed
                break
    assert opened.child.wait(5) == 0, seen
    assert b"Traceback" not in seen


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_without_a_terminal_the_ui_is_not_opened(stream: str, home: dict[str, str]) -> None:
    master, slave = pty.openpty()
    try:
        streams = {"stdin": slave, "stderr": slave, stream: subprocess.PIPE}
        done = subprocess.Popen([CHIMERA, "--embedded"], stdout=subprocess.PIPE, env=home, **streams)  # type: ignore[call-overload]  # three of them by name
        out, err = done.communicate(timeout=20)
        said = err if stream == "stderr" else os.read(master, 1 << 16)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 2
    assert f"The UI needs a terminal, and {stream} is none.".encode() in said
    assert out == b""


def test_the_ui_can_be_put_to_sleep_and_comes_back(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home")
    try:
        terminal.open("one", "bash --norc --noprofile -i")
        terminal.press("one", f"{CHIMERA} --embedded", "Enter")
        terminal.wait("one", lambda text: "Leave" in text and "CPU" in text, 30)
        shell = psutil.Process(int(terminal.tmux("list-panes", "-t", "one", "-F", "#{pane_pid}")))
        (ui,) = shell.children()
        ui.send_signal(signal.SIGTSTP)
        terminal.wait("one", lambda text: "Stopped" in text and "Leave" not in text, 10)
        terminal.press("one", "fg", "Enter")
        terminal.wait("one", lambda text: "Leave" in text and "CPU" in text, 10)
        terminal.press("one", "?")
        terminal.wait("one", lambda text: "run one of your own" in text, 10)
        terminal.press("one", "Escape")
        terminal.wait("one", lambda text: "run one of your own" not in text, 10)
        terminal.press("one", "q")
        terminal.wait("one", lambda text: "Throughput" not in text, 10)
        terminal.press("one", "echo code=$?", "Enter")
        terminal.wait("one", lambda text: "code=0" in text, 10)
    finally:
        terminal.tmux("kill-server", check=False)
