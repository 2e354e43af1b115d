"""Every scenario of the driver's stand-in through the installed UI in a terminal: what the captured screen says.

The sessions run a few at a time while the tests wait for theirs, so the file takes about a minute.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .telemetry.standin import SCENARIOS, library, no_driver_env, nvml_env
from .terminal import CHIMERA, Terminal

AT_ONCE = 4
WAIT_S = 40.0
"""For a screen, with others starting at the same time on a small machine."""
LEAVE_S = 2.0
CROWDED_S = 6.0
"""The same while other sessions start on the same two cores."""


@dataclass(frozen=True)
class Play:
    """A scenario, and what must and must not be on the screen in the end."""

    shows: tuple[str, ...]
    """Patterns, all of them."""
    never: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    scenario: str = ""
    """Where it is not the name of the play."""
    size: tuple[int, int] = (120, 40)


HEALTHY = (
    r"util +87 %",
    r"VRAM +43 %",
    r"10\.0 of 24\.0 GiB",
    r"temp +61 °C  34 °C left",
    r"power +280 W  limit 350 W",
)
CALM = (r"slowed +no",)
LOST = r"! GPU lost: NVML"
PLAYS: dict[str, Play] = {
    "one_gpu": Play((*HEALTHY, *CALM, r"SM 1950 of 2100 MHz", r"PCIe +gen 4  x16 +in 900 MB/s  out 40 MB/s")),
    "two_gpus": Play((r"GPU 0  NVIDIA GeForce RTX 3090", r"GPU 1  NVIDIA", r"util +87 %", r"util +0 %")),
    "eight_gpus": Play(tuple(rf"{index} +87 % +\d+ % +{50 + index}°" for index in range(8))),
    "eight_gpus_small": Play((r"7 +87 %|more GPUs do not fit",), scenario="eight_gpus", size=(80, 24)),
    "not_supported": Play(
        (r"util +n/a: unsupported", r"power +n/a: unsupported", r"VRAM +43 %"), (r"util +0 %", r"power +0 W", r"fan")
    ),
    "lost": Play((LOST, r"util +87 %", r"! GPU 1 is lost"), (r"util +0 %",), {"at": 1}),
    "unified": Play((r"NVIDIA GB10", r"limit n/a: unsupported"), (r"PCIe", r"VRAM +0 %", r"memory 0 of")),
    "mig": Play((r"0 +n/a +26 %", r"MIG +n/a +40 %", r"MIG +n/a +5 %", r"MIG +n/a +2 %"), (r" 0 %  ",)),
    "mig_full": Play((r"0 +n/a +26 %", *(rf"MIG +n/a +{share} %" for share in (2, 4, 6, 8, 10, 12, 14))), (r" 0 %  ",)),
    "mig_without_privilege": Play((r"0 +n/a +n/a", r"MIG +n/a +40 %"), (r" 0 %  ",)),
    "wsl": Play((r"used by \? n/a: unsupported", r"VRAM +43 %"), (r"others 0", r"\? 0 ")),
    "mismatch": Play((r"No GPU readings", r"version mismatch", r"Reboot"), (r"util",)),
    "no_permission": Play((r"No GPU readings", r"may not open"), (r"util",)),
    "no_module": Play((r"No GPU readings", r"modprobe nvidia"), (r"util",)),
    "no_gpu": Play((r"No GPU readings", r"--gpus all"), (r"util",)),
    "no_driver": Play((r"No GPU readings", r"No NVIDIA driver"), (r"util",)),
    "container_lost": Play((LOST, r"Unknown Error"), (r"util +0 %",), {"at": 1}),
    "uninitialized": Play((*HEALTHY, r"! GPU is lost", r"1 alert: l"), params={"at": 1, "back": 3}),
    "short_throttle": Play((r"▲ GPU: slowed to keep", r"1 alert: l", *CALM), params={"at": 2.2}),
    "sw_thermal": Play((r"slowed +▲ heat (3\d|4\d) %", r"1 alert: l")),
    "hw_thermal": Play((r"slowed +! overheating (6\d|7\d) %", r"temp +! 94 °C  1 °C left", r"2 alerts: l")),
    "power_cap": Play((r"slowed +power limit (9\d|100) %",), (r"alert",)),
    "power_brake": Play((r"slowed +! power supply brake [45]\d %", r"1 alert: l")),
    "bits_only": Play((r"slowed +! hardware slowdown 100 %",)),
    "older_counters": Play((r"slowed +▲ heat \d\d %",)),
    "garbage": Play(
        (r"util +n/a: unsupported", r"VRAM +n/a", r"temp +n/a", r"power +n/a", r"SM n/a"),
        (r"429496", r"184467", r"util +991", r"util +0", r"temp +0", r"power +0"),
    ),
    "xid_79": Play((LOST, r"Xid 79: the GPU has fallen off the bus", r"2 alerts: l"), params={"at": 1}),
    "heating": Play((r"temp +[45]\d °C",)),
    "hot_unthrottled": Play((r"temp +▲ 89 °C  6 °C left", *CALM), (r"alert",)),
    "busy_half_full": Play((r"util +92 %", *CALM), (r"alert",)),
    "idle_clocks": Play((r"util +0 %", r"SM 210 of 2100 MHz +P8", *CALM), (r"alert",)),
    "idle_laptop": Play((r"util +0 %|left alone so that it can go to sleep",), (r"alert",)),
    "stuck_pstate": Play((r"SM 405 of 2100 MHz +P8", *CALM), (r"alert",)),
    "nearly_full": Play((r"VRAM +▲ 97 %",)),
    "ada": Play((r"RTX 4090", r"temp +61 °C  28 °C left")),
    "old_driver": Play((*HEALTHY[:2], *HEALTHY[3:], r"used by"), scenario="one_gpu", params={"old": True}),
    "slow_calls": Play((*HEALTHY, *CALM), scenario="one_gpu", params={"delay_ms": 20}),
}
NOWHERE = (r"Traceback", r"NVMLError", r"\bNone\b", r"\bnan\b", r"Missing\(", r"has ended by a defect")


@dataclass(frozen=True)
class Shown:
    """What a session came to."""

    screen: str
    missing: tuple[str, ...]
    """Patterns that never came."""
    moved: bool
    """The host's readings went on."""
    answered_s: float
    """Until a key showed its effect."""
    left_s: float
    """Until the process was gone after `q`."""


def environment(name: str, play: Play) -> dict[str, str]:
    env = no_driver_env() if name == "no_driver" else nvml_env(play.scenario or name, **play.params)
    return {key: env[key] for key in ("LD_LIBRARY_PATH", "NVML_STANDIN_SCENARIO") if key in env}


def timed(terminal: Terminal, name: str, key: str, pattern: str, wait_s: float = WAIT_S) -> float:
    """Seconds from a key to its effect."""
    began = time.monotonic()
    terminal.press(name, key)
    while time.monotonic() - began < wait_s and not re.search(pattern, terminal.screen(name)):
        time.sleep(0.02)
    return time.monotonic() - began


def act(terminal: Terminal, home: Path, name: str, play: Play) -> Shown:
    """Open the UI, wait for what it must show, see that it lives, and leave."""
    env = {**environment(name, play), "CHIMERA_HOME": str(home / name)}
    terminal.open(name, f"sh -c '{CHIMERA} --embedded --read-only; echo LEFT $?; sleep 60'", *play.size, env=env)
    deadline = time.monotonic() + WAIT_S
    while True:
        screen = terminal.screen(name)
        missing = tuple(pattern for pattern in play.shows if not re.search(pattern, screen))
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    deadline = time.monotonic() + 10
    while not (moved := host(terminal.screen(name)) != host(screen)) and time.monotonic() < deadline:
        time.sleep(0.1)
    answered_s = timed(terminal, name, "f", "frozen", 10)
    left_s = timed(terminal, name, "q", r"LEFT 0", 10)
    terminal.tmux("kill-session", "-t", name, check=False)
    return Shown(screen, missing, moved, answered_s, left_s)


def host(screen: str) -> str:
    """The panel of this machine's readings, which never stand still for long."""
    lines = screen.splitlines()
    top = next((index for index, line in enumerate(lines) if "╭─ Host" in line), None)
    if top is None:
        return ""
    left, right = lines[top].index("╭─ Host"), lines[top].index("╭─ Server")
    return "\n".join(line[left:right] for line in lines[top + 1 : top + 8])


@pytest.fixture(scope="module")
def plays(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Shown]]]:
    """The chosen scenarios, each in a session of its own, a few at a time."""
    wanted = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "plays" in item.fixturenames
    ]
    home = tmp_path_factory.mktemp("home")
    library(), library(old=True)  # compiled once, before several ask for it
    terminal = Terminal(home)
    terminal.open("keeps-the-server", "sleep 600")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(act, terminal, home, name, PLAYS[name]) for name in wanted}
        pool.shutdown(wait=True, cancel_futures=True)
    terminal.tmux("kill-server", check=False)


def test_every_scenario_is_played() -> None:
    assert SCENARIOS.keys() <= {play.scenario or name for name, play in PLAYS.items()}


@pytest.mark.embedded
@pytest.mark.parametrize("name", PLAYS)
def test_the_screen_tells_the_reading_or_its_reason(name: str, plays: dict[str, Future[Shown]]) -> None:
    shown = plays[name].result()
    assert not shown.missing, f"never on the screen: {shown.missing}\n{shown.screen}"
    for pattern in (*NOWHERE, *PLAYS[name].never):
        assert not re.search(pattern, shown.screen), f"{pattern} is on the screen:\n{shown.screen}"
    assert shown.moved, f"the readings stood still:\n{shown.screen}"
    assert shown.answered_s < CROWDED_S
    assert shown.left_s < CROWDED_S


@pytest.mark.embedded
@pytest.mark.parametrize("delay_ms", [20, 500, 3000])
def test_slow_driver_calls_delay_neither_keys_nor_leaving(delay_ms: int, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    env = environment("one_gpu", Play((), scenario="one_gpu", params={"delay_ms": delay_ms}))
    try:
        terminal.open("one", f"sh -c '{CHIMERA} --embedded --read-only; echo LEFT $?; sleep 60'", env=env)
        terminal.wait("one", lambda text: "Throughput" in text and "gemma" in text, WAIT_S)
        time.sleep(1.0)  # the rest of the start
        assert timed(terminal, "one", "f", "frozen", 10) < 0.5
        assert timed(terminal, "one", "l", "Nothing has gone wrong", 10) < 0.5
        terminal.press("one", "Escape")
        time.sleep(0.3)
        assert timed(terminal, "one", "q", "LEFT 0", 10) < LEAVE_S
    finally:
        terminal.tmux("kill-server", check=False)
