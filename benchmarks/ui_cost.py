"""What the real dashboard costs: start, processor, bytes to the terminal, and how soon a key shows its effect.

    python benchmarks/ui_cost.py [--starts 7] [--seconds 20] [--keys 30] [--json]

The installed `chimera` runs in a pseudo terminal of 120x40 with a library that stands in for the NVIDIA driver, once
alone and once before a busy llama-server, and is compared with a Textual app of one label that ticks once a second.
Keys are also timed while each driver call takes 500 ms and while a server hangs. Linux only; needs gcc.
"""

from __future__ import annotations

import argparse
import contextlib
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
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.draw_cost import LABEL_APP, cpu_s  # noqa: E402 - found by the line above
from tests.backends.scripted import in_thread  # noqa: E402 - found by the line above
from tests.backends.scripted_llama import ScriptedLlama  # noqa: E402 - found by the line above
from tests.telemetry.scripted import Scripted, serve  # noqa: E402 - found by the line above
from tests.telemetry.standin import nvml_env  # noqa: E402 - found by the line above

CHIMERA = str(Path(sys.executable).with_name("chimera"))
EMPTY_APP = """
from textual.app import App
from textual.widgets import Label
class Hello(App):
    def compose(self):
        yield Label("painted")
Hello().run()
"""
HEAVY = ("sqlalchemy", "alembic", "optuna", "numpy", "scipy", "pydantic", "httpx", "typer")
BUDGET = {"start": 1.5, "cpu": 5.0, "bytes_s": 4000, "key_ms": 30, "screen_ms": 80}
SETTLE_S = 6.0


class Terminal:
    """A program in a pseudo terminal of its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        given = {
            **env, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", "TEXTUAL_ANIMATIONS": "none",
        }  # fmt: skip
        for name in ("NO_COLOR", "SSH_CONNECTION"):
            given.pop(name, None)
        self.began = time.monotonic()
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=given, cwd=ROOT, start_new_session=True
        )
        os.close(slave)

    def until(self, text: bytes, wait_s: float = 30.0) -> float:
        """Seconds until the program has written this text."""
        began, seen = time.monotonic(), b""
        while text not in seen:
            left = wait_s - (time.monotonic() - began)
            if left <= 0 or self.child.poll() is not None:
                raise SystemExit(f"{text!r} never came; the end of the output was {seen[-300:]!r}")
            if select.select([self.master], [], [], left)[0]:
                seen = seen[-4096:] + os.read(self.master, 1 << 16)
        return time.monotonic() - began

    def read_for(self, seconds: float) -> int:
        """Bytes written within this time."""
        end, count = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                count += len(os.read(self.master, 1 << 16))
        return count

    def press(self, key: str) -> None:
        """Type."""
        os.write(self.master, key.encode())

    def close(self) -> None:
        """End the program."""
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        os.close(self.master)


@contextlib.contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal(command, {**(env or os.environ), "CHIMERA_HOME": home})
        try:
            yield terminal
        finally:
            terminal.close()


@contextlib.contextmanager
def busy_server() -> Iterator[str]:
    """A llama-server at work for somebody else."""
    ended = threading.Event()

    def client(url: str) -> None:
        body = json.dumps({"prompt": "a b c", "n_predict": 400, "stream": True, "cache_prompt": False}).encode()
        while not ended.is_set():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/completion", body, timeout=30) as answer:
                for _ in answer:
                    if ended.is_set():
                        return

    with in_thread(ScriptedLlama(decode_s=0.02)) as server:
        thread = threading.Thread(target=client, args=(server.url,), daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            ended.set()
            thread.join(timeout=5)


def first_paint(command: Sequence[str], text: bytes) -> float:
    with running(command, nvml_env("one_gpu")) as terminal:
        terminal.until(text)
        return time.monotonic() - terminal.began


def cost(command: Sequence[str], env: Mapping[str, str] | None, seconds: float) -> tuple[float, float]:
    """Processor seconds a second and bytes a second, after the start."""
    with running(command, env) as terminal:
        terminal.read_for(SETTLE_S)
        began, used = time.monotonic(), cpu_s(terminal.child.pid)
        count = terminal.read_for(seconds)
        elapsed = time.monotonic() - began
        return (cpu_s(terminal.child.pid) - used) / elapsed, count / elapsed


def key_times(command: Sequence[str], env: Mapping[str, str], count: int) -> dict[str, float]:
    """95th percentiles in ms: of a key that changes the screen, and of one that opens another."""
    with running(command, env) as terminal:
        terminal.read_for(SETTLE_S)
        keys, screens = [], []
        for turn in range(count):
            terminal.read_for(0.11 + 0.013 * (turn % 30))  # spread over the time between two paints
            terminal.press("f")
            keys.append(terminal.until(b"frozen", 10))
            terminal.press("f")
            terminal.read_for(0.1)
            terminal.press("l")
            screens.append(terminal.until(b"noted", 10))
            terminal.press("\x1b")
            terminal.until(b"Throughput", 10)
    return {"key_ms": 1000 * _p95(keys), "screen_ms": 1000 * _p95(screens)}


def _p95(values: list[float]) -> float:
    return sorted(values)[max(round(0.95 * len(values)) - 1, 0)]


def imported() -> dict[str, object]:
    """Modules there before the first paint, beside those of an app of one label."""

    def count(code: str) -> list[str]:
        code += "\nimport sys; print(*sorted(sys.modules))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    ours, empty = (
        count("import chimera.__main__, chimera.cli.ui, chimera.tui.app"),
        count(EMPTY_APP.replace("Hello().run()", "")),
    )
    return {
        "ui": len(ours),
        "empty_app": len(empty),
        "heavy": sorted({name.split(".")[0] for name in ours} & set(HEAVY)),
    }


def main() -> None:
    """Measure everything and print it beside its budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--keys", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    label, empty = [sys.executable, "-c", LABEL_APP], [sys.executable, "-c", EMPTY_APP]
    alone, gpu = [CHIMERA, "--embedded", "--read-only"], nvml_env("one_gpu")

    starts: dict[str, list[float]] = {"ui": [], "empty": []}
    for _ in range(arguments.starts):
        starts["empty"].append(first_paint(empty, b"painted"))
        starts["ui"].append(first_paint(alone, b"Leave"))
    ui, nothing = statistics.median(starts["ui"]), statistics.median(starts["empty"])

    label_cpu, label_bytes = cost(label, None, arguments.seconds)
    alone_cpu, alone_bytes = cost(alone, gpu, arguments.seconds)
    with busy_server() as url:
        busy_cpu, busy_bytes = cost([CHIMERA, "--server", url, "--read-only"], gpu, arguments.seconds)

    keys = {"calm": key_times(alone, gpu, arguments.keys)}
    keys["driver calls of 500 ms"] = key_times(alone, nvml_env("one_gpu", delay_ms=500), arguments.keys)
    hung = {"/slots": 20.0, "/health": 20.0, "/props": 0.0}
    with serve(Scripted(routes={"/props": {"model_path": "m.gguf"}}, delay_s=hung)) as server:
        keys["a server that hangs"] = key_times([CHIMERA, "--server", server.url, "--read-only"], gpu, arguments.keys)

    found = {
        "first_paint_s": {"ui": ui, "empty_app": nothing, "ratio": ui / nothing},
        "cpu_percent": {"label": 100 * label_cpu, "alone": 100 * alone_cpu, "busy_server": 100 * busy_cpu},
        "cpu_ratio": {"alone": alone_cpu / label_cpu, "busy_server": busy_cpu / label_cpu},
        "bytes_s": {"label": label_bytes, "alone": alone_bytes, "busy_server": busy_bytes},
        "p95": keys,
        "modules": imported(),
        "budget": BUDGET,
    }
    if arguments.json:
        print(json.dumps({"schema_version": 1, **found}))
        return
    print(f"first paint   {ui:.3f} s, an empty app {nothing:.3f} s: {ui / nothing:.2f}x (budget {BUDGET['start']}x)")
    for name, used, sent in (("alone", alone_cpu, alone_bytes), ("busy server", busy_cpu, busy_bytes)):
        print(
            f"{name:<13} {100 * used:.2f} % of a core, {used / label_cpu:.1f}x one label (budget {BUDGET['cpu']}x), "
            f"{sent:.0f} bytes/s (budget {BUDGET['bytes_s']})"
        )
    for name, times in keys.items():
        print(
            f"{name}: key to paint p95 {times['key_ms']:.0f} ms (budget {BUDGET['key_ms']}), "
            f"another screen {times['screen_ms']:.0f} ms (budget {BUDGET['screen_ms']})"
        )
    print(f"modules before the first paint: {found['modules']}")


if __name__ == "__main__":
    main()
