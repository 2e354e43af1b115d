"""Runs an NVML collector in a process of its own, whose loader finds the stand-in; prints one JSON object a tick.

`python -m tests.telemetry.child '{"ticks": 3, "scale": 20}'`. The collector's clock runs `scale` times as fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import sys
import time
from typing import Any

from chimera.domain.readings import Missing
from chimera.telemetry.nvml import NvmlCollector

with contextlib.suppress(ImportError):
    import psutil  # noqa: F401 - so that their import takes no scenario time
    import pynvml  # noqa: F401


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


def main() -> None:
    """Play what the only argument says."""
    plan: dict[str, Any] = {
        "ticks": 2,
        "scale": 1.0,
        "every": 1.0,
        "quiet_from": None,
        "fork_at": None,
        "reinit_at": None,
    }
    plan |= json.loads(sys.argv[1])
    scale = float(plan["scale"])

    def clock() -> float:
        return time.monotonic() * scale

    started = clock()
    collector = NvmlCollector(clock=clock)
    for tick in range(plan["ticks"]):
        due = started + tick * plan["every"]
        while clock() < due:
            time.sleep(max(0.0, (due - clock()) / scale))
        if plan["quiet_from"] is not None:
            collector.quiet = tick >= plan["quiet_from"]
        if tick == plan["reinit_at"]:
            collector.reinit()
        if tick == plan["fork_at"]:
            sys.stdout.flush()
            if pid := os.fork():
                _, status = os.waitpid(pid, 0)
                sys.exit(os.waitstatus_to_exitcode(status))
        now = clock()
        begun = time.monotonic()
        state = collector.read(now)
        line = {"tick": tick, "t": now - started, "started": started, "took": time.monotonic() - begun}
        line |= {"state": plain(state), "calls": collector.calls, "pid": os.getpid()}
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            counted = [library.standin_calls(gpu) for gpu in range(-1, len(state.infos))]
        except (OSError, AttributeError):
            counted = []
        print(json.dumps(line | {"counted": counted}), flush=True)
    counters = [plain(one) for one in collector.counters(clock())]
    collector.close()
    print(json.dumps({"counters": counters, "state": plain(collector.read(clock()))}))


if __name__ == "__main__":
    main()
