"""Runs an NVML collector in a process of its own, whose loader finds the stand-in; prints one JSON object a tick.

`python -m tests.telemetry.child '{"ticks": 3}'`. Time is the plan's, for the collector and for the stand-in, so that
nothing waits and nothing depends on how busy the machine is; with `real` it is the system's clock.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
from typing import Any

from chimera.domain.readings import Missing
from chimera.telemetry.nvml import NvmlCollector

BEGIN = 1000.0


def plain(value: Any) -> Any:
    """Dataclasses as dicts; a missing reading as `{"missing": reason, ...}`."""
    if isinstance(value, Missing):
        return {"missing": value.reason, "detail": value.detail, "since": value.since}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


class Library:
    """The stand-in, where the loader finds one."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
            self._library.standin_set_time.argtypes = [ctypes.c_double]
        except (OSError, AttributeError):
            self._library = None

    def set_time(self, seconds: float) -> None:
        """What time it is for the scenario."""
        if self._library is not None:
            self._library.standin_set_time(seconds)

    def calls(self, gpu: int) -> int:
        """Calls so far that concern a GPU, or with -1 all."""
        return int(self._library.standin_calls(gpu)) if self._library is not None else 0


def main() -> None:
    """Play what the only argument says."""
    plan: dict[str, Any] = {"ticks": 2, "every": 1.0, "real": False}
    plan |= {"quiet_from": None, "fork_at": None, "reinit_at": None, "looks": 0, "look_every": 1}
    plan |= json.loads(sys.argv[1])
    library = Library()
    clock = Clock(library, real=plan["real"])
    started = clock.now()
    collector = NvmlCollector(clock=clock.now)
    for tick in range(plan["ticks"]):
        clock.wait_until(started + tick * plan["every"])
        if plan["quiet_from"] is not None:
            collector.quiet = tick >= plan["quiet_from"]
        if tick == plan["reinit_at"]:
            collector.reinit()
        if tick == plan["fork_at"]:
            sys.stdout.flush()
            if pid := os.fork():
                _, status = os.waitpid(pid, 0)
                sys.exit(os.waitstatus_to_exitcode(status))
        now = clock.now()
        begun = time.monotonic()
        state = collector.read(now)
        many = plan["looks"] if tick % plan["look_every"] == 0 else 0
        looks = [plain(one) for _ in range(many) for one in collector.counters(now)]
        line = {"looks": looks, "tick": tick, "t": now - started, "started": started, "took": time.monotonic() - begun}
        line |= {"state": plain(state), "calls": collector.calls, "pid": os.getpid(), "counted": library.calls(-1)}
        print(json.dumps(line), flush=True)
    counters = [plain(one) for one in collector.counters(clock.now())]
    collector.close()
    print(json.dumps({"counters": counters, "state": plain(collector.read(clock.now()))}))


class Clock:
    """The plan's time, or the system's."""

    def __init__(self, library: Library, *, real: bool) -> None:
        self._library = library
        self._real = real
        self._now = BEGIN
        if not real:
            library.set_time(BEGIN)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic() if self._real else self._now

    def wait_until(self, due: float) -> None:
        """Let time pass."""
        if not self._real:
            self._now = due
            self._library.set_time(due)
        while self.now() < due:
            time.sleep(due - self.now())


if __name__ == "__main__":
    main()
