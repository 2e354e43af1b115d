"""A library that stands in for `libnvidia-ml.so.1` and plays scenarios; the ordinary dynamic loader finds it.

`nvml_env("two_gpus")` gives the environment for a child process. The product is not told: it loads what the loader
gives it. A scenario is a function of this module that returns the lines which `nvml_standin/nvml.c` reads.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "nvml_standin" / "nvml.c"
GIB = 2**30
NO_PROCESS = 4_194_303
"""A pid that this host has not given away: the largest there can be."""
NONE_32 = 2**32 - 1
_numbers = itertools.count()

Scenario = Callable[..., str]


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="chimera-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def library(*, old: bool = False) -> Path:
    """The folder with the compiled library, once a session; `old` lacks what drivers before R510 lack."""
    return _compiled("old" if old else "new")


@functools.cache
def _compiled(variant: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError(
            "The NVML tests compile a small C library: install gcc (Debian: `apt install gcc libc6-dev`)."
        )
    folder = _folder() / variant
    folder.mkdir()
    command = [compiler, "-O1", "-Wall", "-Wno-format-truncation", "-fPIC", "-shared"]
    command += ["-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE), "-lm", "-lpthread"]
    done = subprocess.run(
        [*command, *(["-DOLD_DRIVER"] if variant == "old" else [])], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise RuntimeError(f"The NVML stand-in did not compile:\n{done.stderr}")
    return folder


def nvml_env(scenario: str, *, old: bool = False, extra: str = "", **params: Any) -> dict[str, str]:
    """The environment for a child process whose NVML plays a scenario.

    Args:
        scenario: Name of a scenario of this module.
        old: With the functions of an old driver only.
        extra: Further lines, of the last GPU.
        params: For the scenario; `scale` makes its time run faster, `delay_ms` makes each call take that long.
    """
    lines = [f"{name} {params.pop(name)}" for name in ("scale", "delay_ms") if name in params]
    lines += [SCENARIOS[scenario](**params), extra]
    path = _folder() / f"{scenario}-{next(_numbers)}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    older = os.environ.get("LD_LIBRARY_PATH")
    places = str(library(old=old)) + (f":{older}" if older else "")
    return {**os.environ, "LD_LIBRARY_PATH": places, "NVML_STANDIN_SCENARIO": str(path)}


def no_driver_env() -> dict[str, str]:
    """The environment of a host whose loader finds no NVML, whatever this host has."""
    empty = _folder() / "broken"
    if not empty.exists():
        empty.mkdir()
        (empty / "libnvidia-ml.so.1").write_bytes(b"")  # hides a real one; a library that cannot be loaded is none
    return {**os.environ, "LD_LIBRARY_PATH": str(empty)}


def play(scenario: str, *, ticks: int = 2, plan: dict[str, Any] | None = None, **params: Any) -> list[dict[str, Any]]:
    """Let a collector in a child process read a scenario, and give what it read at each tick.

    Args:
        scenario: Name of a scenario.
        ticks: Readings, one a second of scenario time.
        plan: More for the child, see `child.py`.
        params: For `nvml_env`.
    """
    return play_in(nvml_env(scenario, **params), {"ticks": ticks, **(plan or {})})


def play_in(env: dict[str, str], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Let a collector in a child process read in this environment, and give what it read at each tick."""
    return _run(["-m", "tests.telemetry.child", json.dumps(plan)], env)


def run_json(code: str, env: dict[str, str]) -> list[dict[str, Any]]:
    """Run Python code in a child process and give the JSON objects that it prints, one a line."""
    return _run(["-c", code], env)


def _run(arguments: list[str], env: dict[str, str]) -> list[dict[str, Any]]:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- GPUs ----------------------------------------------------------------------------------------------------------


def gpu(
    index: int = 0,
    *,
    name: str = "NVIDIA GeForce RTX 3090",
    arch: int = 7,
    total_gib: float = 24,
    used_gib: float = 10,
    bus_width: int | None = 384,
    mem_clock: int = 9751,
    sm_clock: int = 2100,
    processes: str | None = None,
    **more: float | None,
) -> str:
    """The lines of one healthy GPU under load; further keywords set or, with None, take away properties."""
    values: dict[str, float | None] = {
        "arch": arch, "util": 87, "mem_util": 55, "total": total_gib * GIB, "used": used_gib * GIB,
        "reserved": 0.4 * GIB, "temp": 61, "slowdown": 95, "sm_clock": sm_clock - 150, "mem_clock": mem_clock,
        "max_sm_clock": sm_clock, "max_mem_clock": mem_clock, "pstate": 2, "power": 280_000, "limit": 350_000,
        "default_limit": 350_000, "min_limit": 100_000, "max_limit": 366_000, "fan": 55, "gen": 4, "width": 16,
        "max_gen": 4, "max_width": 16, "bus_width": bus_width, "persistence": 1, "reasons": 0, "mig_mode": None,
        "field.74": 0, "field.75": 0, "field.76": 0, "field.77": 0, "field.79": 0, "field.269": 0, "field.270": 0,
        "field.271": 0, "field.197": 0, "field.198": 0, "rate.197": 40e6, "rate.198": 900e6, "ecc": None,
        "remapped": None,
    }  # fmt: skip
    values.update({key.replace("__", "."): value for key, value in more.items()})
    lines = [f"gpu {index}", f"name {name}", f"uuid GPU-{index:08x}-0000-4000-8000-{index:012x}"]
    lines += [f"{key} {value!r}" for key, value in values.items() if value is not None]
    lines.append(processes if processes is not None else process(os.getpid(), used_gib - 0.5, 85))
    return "\n".join(lines)


def process(pid: int, gib: float | None, sm: float) -> str:
    """A compute process; memory None is what NVML calls not available, a negative `sm` was not active."""
    return f"process {pid} {-1 if gib is None else gib * GIB!r} {sm}"


# -- scenarios -----------------------------------------------------------------------------------------------------


def one_gpu(**more: Any) -> str:
    """A healthy GPU under load."""
    return gpu(**more)


def two_gpus(**more: Any) -> str:
    """Two healthy GPUs, the second one idle."""
    idle = gpu(1, used_gib=0.6, util=0, mem_util=0, temp=35, power=25_000, pstate=8, sm_clock=2100, reasons=1)
    return gpu(0, **more) + "\n" + idle


def eight_gpus(**more: Any) -> str:
    """A server with eight data-centre GPUs."""
    return "\n".join(
        gpu(
            index, name="NVIDIA A100-SXM4-80GB", total_gib=80, used_gib=40 + index, bus_width=5120, mem_clock=1593,
            sm_clock=1410, fan=None, ecc=0, remapped=0, temp=50 + index, field__82=60 + index, mig_mode=0, **more,
        )
        for index in range(8)
    )  # fmt: skip


def not_supported() -> str:
    """Utilisation, fan, power and reasons are not supported, as on some laptops and virtual GPUs."""
    return gpu(util=None, fan=None, power=None, limit=None, reasons=None, no_energy=1)


def lost(at: float = 8) -> str:
    """GPU 1 of 2 is lost after a time."""
    return f"{two_gpus()}\nat {at} code.* 15"


def unified() -> str:
    """GB10: the GPU shares the host's memory, and NVML tells none of it."""
    return gpu(
        name="NVIDIA GB10", arch=10, total=None, used=None, reserved=None, bus_width=None, mem_clock=0, fan=None,
        max_mem_clock=None, limit=None, gen=None, width=None, processes=process(os.getpid(), 9.5, 85),
    ).replace("mem_clock 0", "")  # fmt: skip


def mig() -> str:
    """MIG is on: the whole GPU tells no utilisation, and its memory needs privilege."""
    whole = gpu(
        name="NVIDIA A100-SXM4-40GB", total_gib=40, bus_width=5120, mem_clock=1215, sm_clock=1410, fan=None, util=None,
        mig_mode=1, ecc=0, remapped=0,
    )  # fmt: skip
    return f"{whole}\nmig 3 20096 8000\nmig 2 9984 512\nmig 1 4864 100"


def mig_full() -> str:
    """MIG is on and seven instances, the most that there can be, are made."""
    whole = mig().partition("\nmig ")[0]
    return whole + "\nmig_slots 7\nmig_step 1" + "".join(f"\nmig 1 4864 {100 * part}" for part in range(1, 8))


def mig_without_privilege() -> str:
    """MIG is on, and this user may ask the whole GPU neither for its memory nor for its processes."""
    denied = ("MemoryInfo", "MemoryInfo_v2", "ComputeRunningProcesses_v2", "ComputeRunningProcesses_v3")
    return "\n".join([mig(), *(f"code.nvmlDeviceGet{name} 4" for name in denied)])


def wsl() -> str:
    """WSL or a container: memory of processes is not available and their pids are of another namespace."""
    return gpu(processes=process(NO_PROCESS, None, -1))


def mismatch() -> str:
    """The driver was updated under a running kernel module."""
    return f"code.nvmlInit 18\n{gpu()}"


def no_permission() -> str:
    """The devices may not be opened."""
    return f"code.nvmlInit 4\n{gpu()}"


def no_module() -> str:
    """The library is there, the kernel module is not."""
    return f"code.nvmlInit 9\n{gpu()}"


def no_gpu() -> str:
    """A driver without a GPU: a container that was given none."""
    return "driver 575.57.08"


def container_lost(at: float = 3, back: float = 1e9) -> str:
    """Everything answers Unknown Error from some moment on, as in a container that lost its devices."""
    return f"at {at} code.* 999\nat {back} code.* 0\n{gpu()}"


def uninitialized(at: float = 3, back: float = 5) -> str:
    """The driver forgets the connection for a while."""
    return f"at {at} code.* 1\nat {back} code.* 0\nat {at} code.nvmlInit 999\nat {back} code.nvmlInit 0\n{gpu()}"


def short_throttle(at: float = 2.2, seconds: float = 0.3) -> str:
    """Thermal slowdown between two samples: only the counter shows it, no sample sees the bit."""
    return f"{gpu(temp=82)}\nat {at} rate.269 1\nat {at + seconds} rate.269 0"


def sw_thermal(share: float = 0.4) -> str:
    """Software thermal slowdown for a part of the time, the bit on."""
    return gpu(temp=84, reasons=0x20, rate__269=share)


def hw_thermal(share: float = 0.7) -> str:
    """Hardware thermal slowdown, with the general slowdown bit."""
    return gpu(temp=94, reasons=0x48, rate__270=share, sm_clock=2100)


def power_cap(share: float = 0.95) -> str:
    """At the power limit nearly all the time."""
    return gpu(power=349_500, reasons=0x4, rate__74=share)


def power_brake(share: float = 0.5) -> str:
    """The power supply asks for a brake."""
    return gpu(reasons=0x88, rate__271=share)


def bits_only(reasons: int = 0x8, until: float = 1e9) -> str:
    """A driver without any time counters: only the bits tell."""
    return f"{gpu(reasons=reasons, no_time_fields=1)}\nat {until} reasons 0"


def older_counters(share: float = 0.5) -> str:
    """The time of slowdown as violation status only, thermal and power not as fields."""
    return gpu(reasons=0x20, no_time_fields=1, policies=1, rate__75=share)


def garbage() -> str:
    """All the values by which NVML says that it has none, and a utilisation of 991 %."""
    lines = gpu(
        util=991, mem_util=NONE_32, power=NONE_32, limit=NONE_32, fan=NONE_32, temp=NONE_32, total=-1, used=-1,
        reserved=-1, free=-1, reasons=-1, field__82=NONE_32, field__197=-1, field__198=-1, field__185=NONE_32,
        field__186=NONE_32, no_energy=1, gen=NONE_32, width=NONE_32, pstate=32, field__269=-1, sm_clock=2100,
        processes=process(os.getpid(), None, 250),
    )  # fmt: skip
    return (
        lines.replace("rate.197", "was.197").replace("rate.198", "was.198")
        + f"\nsm_clock {NONE_32}\nmem_clock {NONE_32}"
    )


def xid_79(at: float = 3) -> str:
    """The GPU falls off the bus: first the event, then it is lost."""
    return f"{gpu()}\nat {at} xid 79\nat {at + 2} code.* 15"


def heating(t0: float = 40, t_end: float = 83, tau: float = 45) -> str:
    """Temperature on its way to a known equilibrium: `t_end - (t_end - t0) * exp(-t / tau)`."""
    return gpu(temp=None, curve__from=t0, curve__to=t_end, curve__tau=tau)


def hot_unthrottled() -> str:
    """89 degrees and not slowed at all."""
    return gpu(temp=89)


def busy_half_full() -> str:
    """92 % utilisation and 45 % of memory: nothing is wrong."""
    return gpu(util=92, used_gib=24 * 0.45)


def idle_clocks(**more: Any) -> str:
    """Nothing runs: clocks dropped, idle bit set."""
    idle = gpu(util=0, mem_util=0, temp=34, power=22_000, pstate=8, reasons=1, gen=1, used_gib=0.8, **more)
    return f"{idle}\nsm_clock 210\nmem_clock 405"


def idle_laptop() -> str:
    """A laptop's GPU that nothing uses."""
    return idle_clocks(processes="")


def stuck_pstate() -> str:
    """Full load at the clocks of P8, and no reason given."""
    return gpu(util=98, temp=42, power=60_000, pstate=8, reasons=0) + "\nsm_clock 405\nmem_clock 405"


def nearly_full() -> str:
    """97 % of the memory in use."""
    return gpu(used_gib=24 * 0.97 - 0.4)


def ada() -> str:
    """A GPU of the generation that tells a distance to slowdown instead of a temperature."""
    return gpu(
        name="NVIDIA GeForce RTX 4090", arch=8, bus_width=384, mem_clock=10501, sm_clock=3105, slowdown=None, temp=61,
        margin=23, field__194=-5,
    )  # fmt: skip


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        one_gpu, two_gpus, eight_gpus, not_supported, lost, unified, mig, mig_full, mig_without_privilege, wsl,
        mismatch, no_permission, no_module, no_gpu, container_lost, uninitialized, short_throttle, sw_thermal,
        hw_thermal, power_cap, power_brake, bits_only, older_counters, garbage, xid_79, heating, hot_unthrottled,
        busy_half_full, idle_clocks, idle_laptop, stuck_pstate, nearly_full, ada,
    )
}  # fmt: skip
