"""What drawing costs: all panels on one screen against an app with one label, both ticking at 1 Hz in a terminal.

    python benchmarks/draw_cost.py [--rounds 2] [--seconds 6] [--json]

Both run in a pseudo terminal of 120x40, one after the other and again. Counted are the bytes that they write and the
CPU time of the whole process, after start-up. Linux only: it reads CPU time in nanoseconds from /proc.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LABEL_APP = """
from textual.app import App
from textual.widgets import Label
class Hello(App):
    ticks = 0
    def compose(self):
        yield Label("0")
    def on_mount(self):
        self.set_interval(1.0, self.tick)
    def tick(self):
        self.ticks += 1
        self.query_one(Label).update(str(self.ticks))
Hello().run()
"""
BOARD_APP = "from tests.widgets.board import Board; Board(interval=1.0).run()"
STILL_APP = "from tests.widgets.board import Board; Board(interval=1.0, still=True).run()"
PROGRAMS = {"label": LABEL_APP, "board": BOARD_APP, "still": STILL_APP}
"""`still` gets the same data at every tick: nothing should be written."""
WARM_UP_S = 2.5


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def measure(program: str, seconds: float, size: tuple[int, int] = (120, 40)) -> tuple[float, float]:
    """Bytes a second and CPU seconds a second of a program in a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    environment = {
        **os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
        "TEXTUAL_ANIMATIONS": "none",
    }  # fmt: skip
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        _read_for(master, WARM_UP_S)
        started, cpu = time.monotonic(), cpu_s(child.pid)
        count = _read_for(master, seconds)
        elapsed = time.monotonic() - started
        used = cpu_s(child.pid) - cpu
        if child.poll() is not None:
            raise SystemExit(f"The program ended by itself with status {child.returncode}.")
        return count / elapsed, used / elapsed
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(master)


def _read_for(master: int, seconds: float) -> int:
    end, count = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            count += len(os.read(master, 1 << 16))
    return count


def main() -> None:
    """Run both in turn and print what they cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(arguments.rounds):
        for name, program in PROGRAMS.items():
            found[name].append(measure(program, arguments.seconds))
    table = {
        name: {
            "bytes_s": round(statistics.median(each[0] for each in values)),
            "cpu_percent": round(100 * statistics.median(each[1] for each in values), 3),
        }
        for name, values in found.items()
    }
    ratio = table["board"]["cpu_percent"] / table["label"]["cpu_percent"]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "programs": table, "cpu_ratio": round(ratio, 2)}))
        return
    for name, row in table.items():
        print(f"{name:<6} {row['bytes_s']:>6} bytes/s  {row['cpu_percent']:>7.3f} % of a core")
    print(f"CPU of the board against one label: {ratio:.2f}x (budget 3x); budget for bytes: 4000/s, still: 0")


if __name__ == "__main__":
    main()
