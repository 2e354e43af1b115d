"""Readings of the host from trees that stand in for /proc and /sys, and of this host where it is real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from chimera.domain.readings import Missing
from chimera.domain.telemetry import HostSample
from chimera.telemetry.host import HostCollector


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def read(tmp_path: Path, proc: dict[str, str] | None = None, sys_: dict[str, str] | None = None) -> HostSample:
    return HostCollector(proc=tree(tmp_path / "proc", proc or {}), sys=tree(tmp_path / "sys", sys_ or {})).read(0.0)


def reason(reading: object) -> str | None:
    return reading.reason if isinstance(reading, Missing) else None


# -- what only Linux tells -----------------------------------------------------------------------------------------


def test_pressure_is_the_some_line_over_ten_seconds(tmp_path: Path) -> None:
    text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=77\nfull avg10=5.00 avg60=0.00 avg300=0.00 total=3\n"
    sample = read(tmp_path, {"pressure/memory": text, "pressure/cpu": text.replace("12.34", "0.50")})
    assert (sample.pressure_memory, sample.pressure_cpu) == (12.34, 0.5)
    assert reason(sample.pressure_io) == "unsupported"


def test_a_system_without_proc_and_sys_has_reasons_instead_of_values(tmp_path: Path) -> None:
    sample = read(tmp_path)
    for name in ("pressure_cpu", "pressure_memory", "pressure_io", "cpu_limit_cores", "memory_limit_bytes"):
        assert reason(getattr(sample, name)) == "unsupported", name
    assert (sample.governor, sample.on_battery, sample.power_profile) == (None, None, None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Charging"}, False),
        ({"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, True),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging"}, True),
        ({"BAT0/type": "Battery", "BAT0/status": "Full"}, None),
        ({"AC/type": "Mains", "AC/online": "1"}, None),
        ({"mouse/type": "Battery", "mouse/status": "Discharging", "mouse/scope": "Device"}, None),
    ],
    ids=["charging", "discharging", "no mains", "full", "desktop", "mouse"],
)
def test_battery_or_mains(tmp_path: Path, files: dict[str, str], expected: bool | None) -> None:
    sample = read(tmp_path, sys_={f"class/power_supply/{name}": text for name, text in files.items()})
    assert sample.on_battery is expected


def test_governor_profile_and_mean_clock(tmp_path: Path) -> None:
    sample = read(
        tmp_path,
        sys_={
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "800000\n",
            "devices/system/cpu/cpufreq/policy1/scaling_cur_freq": "2400000\n",
            "firmware/acpi/platform_profile": "low-power\n",
        },
    )
    assert (sample.governor, sample.power_profile, sample.cpu_mhz) == ("powersave", "low-power", 1600)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a limit below one core cannot be told from none")
def test_limits_of_control_groups_version_2_are_the_tightest_above(tmp_path: Path) -> None:
    sample = read(
        tmp_path,
        {"self/cgroup": "0::/user.slice/app.scope\n"},
        {
            "fs/cgroup/user.slice/cpu.max": "150000 100000\n",
            "fs/cgroup/user.slice/memory.max": "8589934592\n",
            "fs/cgroup/user.slice/app.scope/cpu.max": "max 100000\n",
            "fs/cgroup/user.slice/app.scope/memory.max": "max\n",
        },
    )
    assert (sample.cpu_limit_cores, sample.memory_limit_bytes) == (1.5, 8 * 2**30)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a limit below one core cannot be told from none")
def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    sample = read(
        tmp_path,
        {"self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n3:cpuset:/docker/abc\n0::/\n"},
        {
            "fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "fs/cgroup/memory/memory.limit_in_bytes": "4294967296\n",
            "fs/cgroup/cpuset/cpuset.effective_cpus": "0-1\n",
        },
    )
    # In a container the path is the host's; the limits lie at the root that is mounted.
    assert (sample.cpu_limit_cores, sample.memory_limit_bytes) == (0.5, 4 * 2**30)


def test_no_limit_is_a_reason_and_no_huge_number(tmp_path: Path) -> None:
    sample = read(
        tmp_path,
        {"self/cgroup": "4:memory:/\n0::/\n"},
        {"fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "fs/cgroup/cpu.max": "max 100000\n"},
    )
    assert reason(sample.cpu_limit_cores) == reason(sample.memory_limit_bytes) == "unsupported"


# -- this host -----------------------------------------------------------------------------------------------------


def test_the_first_reading_has_no_rates_and_the_second_has() -> None:
    collector = HostCollector()
    first = collector.read(0.0)
    assert reason(first.cpu_percent) == reason(first.own_cpu_percent) == "pending"
    assert first.per_core_percent == ()
    time.sleep(0.15)
    second = collector.read(1.0)
    assert isinstance(second.cpu_percent, float)
    assert 0 <= second.cpu_percent <= 100
    assert len(second.per_core_percent) == psutil.cpu_count()
    assert second.memory_total_bytes == psutil.virtual_memory().total
    assert isinstance(second.memory_used_bytes, float)
    assert 0 < second.memory_used_bytes < second.memory_total_bytes
    assert reason(second.engine_cpu_percent) == "unreachable"


def test_a_reading_that_comes_too_early_gives_the_last_one() -> None:
    collector = HostCollector()
    first = collector.read(0.0)
    assert collector.read(0.3) is first
    assert collector.read(1.0) is not first


BURN = "import time\nprint('go', flush=True)\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass\n"


def test_the_engines_processor_time_is_its_own() -> None:
    engine = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        collector = HostCollector()
        collector.watch(engine=[engine.pid])
        started = time.monotonic()
        before = psutil.Process(engine.pid).cpu_times()
        collector.read(0.0)
        time.sleep(0.6)
        span = time.monotonic() - started
        sample = collector.read(span + 1)  # the clock is the caller's
        after = psutil.Process(engine.pid).cpu_times()
        used = after.user + after.system - before.user - before.system
        assert isinstance(sample.engine_cpu_percent, float)
        assert sample.engine_cpu_percent == pytest.approx(100 * used / (span + 1), abs=5)
        assert sample.engine_cpu_percent > 2
    finally:
        engine.kill()
        engine.wait()
        assert engine.stdout is not None
        engine.stdout.close()
    gone = collector.read(span + 5)
    assert reason(gone.engine_cpu_percent) == "lost"


def test_an_engine_that_is_new_is_no_other_program() -> None:
    """The first look at it has no share to take from the whole, which was then told as other programs'."""
    engine = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        collector = HostCollector()
        collector.read(0.0)
        collector.watch(engine=[engine.pid])
        time.sleep(0.15)
        sample = collector.read(1.0)
        assert isinstance(sample.cpu_percent, float)
        assert reason(sample.engine_cpu_percent) == reason(sample.foreign_cpu_percent) == "pending"
        time.sleep(0.15)
        sample = collector.read(2.0)
        assert isinstance(sample.engine_cpu_percent, float)
        assert isinstance(sample.foreign_cpu_percent, float)
    finally:
        engine.kill()
        engine.wait()
        assert engine.stdout is not None
        engine.stdout.close()


def test_what_our_own_processes_have_started_is_no_other_program() -> None:
    """An engine's pid is known only while it serves: its loading was told as another program's use."""
    collector = HostCollector()
    collector.read(time.monotonic())
    before = os.times()
    engine = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        time.sleep(1.0)
        sample = collector.read(time.monotonic())
        burnt = sum(psutil.Process(engine.pid).cpu_times()[:2])
        assert burnt > 0.1
        _without(sample, burnt)
        time.sleep(1.0)
    finally:
        engine.kill()
        engine.wait()
    sample = collector.read(time.monotonic())
    _without(sample, sum(os.times()[2:4]) - sum(before[2:4]) - burnt)


def _without(sample: HostSample, seconds: float) -> None:
    """Others have used what is used in all, without these seconds of about one."""
    assert isinstance(sample.cpu_percent, float)
    assert isinstance(sample.foreign_cpu_percent, float)
    ours = 100 * seconds / len(sample.per_core_percent)
    assert sample.cpu_percent > 0.6 * ours
    assert sample.foreign_cpu_percent < max(0.0, sample.cpu_percent - 0.6 * ours) + 2


def test_a_foreign_user_of_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    burner = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        assert burner.stdout is not None
        burner.stdout.readline()
        monkeypatch.setattr("chimera.telemetry.host._NAMED_FROM_PERCENT", 0.0)
        collector = HostCollector()
        collector.read(0.0)
        time.sleep(0.15)
        collector.read(5.0)
        time.sleep(0.4)
        sample = collector.read(10.0)
        assert burner.pid in {share.pid for share in sample.foreign}
        assert os.getpid() not in {share.pid for share in sample.foreign}
        collector.watch(engine=[burner.pid])
        time.sleep(0.1)
        collector.read(15.0)
        time.sleep(0.1)
        assert burner.pid not in {share.pid for share in collector.read(20.0).foreign}
    finally:
        burner.kill()
        burner.wait()
        assert burner.stdout is not None
        burner.stdout.close()


def test_one_failing_reading_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("psutil.swap_memory", broken)
    monkeypatch.setattr("psutil.disk_io_counters", broken)
    monkeypatch.setattr("psutil.cpu_times", broken)
    sample = HostCollector().read(0.0)
    assert reason(sample.swap_used_bytes) == reason(sample.disk_read_bytes_s) == "denied"
    assert reason(sample.cpu_percent) == reason(sample.foreign_cpu_percent) == "denied"
    assert isinstance(sample.memory_used_bytes, float)
