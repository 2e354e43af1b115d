"""The doctor on real runs by real workers: on the embedded engine, a scripted Ollama, and a scripted driver."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from chimera.diagnosis.thermalcheck import assess
from chimera.domain.finding import SEVERITIES
from chimera.domain.options import Options
from chimera.domain.run import Target
from chimera.domain.workload import Workload
from chimera.runner.launch import create_run, start_worker
from chimera.runner.thermal import points_of
from chimera.store.journal import Journal
from tests.backends.scripted import ScriptedOllama, in_thread
from tests.telemetry.standin import no_driver_env, nvml_env

pytestmark = pytest.mark.slow  # real engines and service times: minutes, and a calm machine

LOUD = SEVERITIES.index("notice")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)


def chimera(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    environment["CHIMERA_HOME"] = os.environ["CHIMERA_HOME"]
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def findings(*arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What a run's document says was found, by code."""
    done = chimera("run", *arguments, "--json", env=env)
    assert done.stdout, done.stderr
    return {one["code"]: one for one in json.loads(done.stdout)["findings"]}


def seen(finding: dict[str, Any], what: str) -> Any:
    """A figure of a finding's evidence."""
    return next(one["value"] for one in finding["evidence"] if one["what"] == what)


# -- the embedded engine ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """A busy loop for each core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.embedded
def test_a_busy_loop_on_all_cores_is_foreign_load_with_its_share_while_the_run_goes_on() -> None:
    with Journal.open() as journal:
        shape = Workload(prompt_tokens=8, output_tokens=8, requests=500)
        run = create_run(journal, Target("embedded", assume_yes=True), Options(), shape)
        with busy_cores():
            child = start_worker(journal, run.id)
            try:
                deadline = time.monotonic() + 140
                while not (live := [one for one in journal.findings(run.id) if one.code == "foreign-load"]):
                    assert time.monotonic() < deadline, "nothing was found while the run went on"
                    assert journal.run(run.id).state in {"queued", "running"}
                    time.sleep(0.2)
            finally:
                journal.send(run.id, "stop")
                child.wait(60)
        assert journal.run(run.id).state == "stopped"
        [found] = [one for one in journal.findings(run.id) if one.code == "foreign-load"]
    assert found.severity == "warn"
    assert found.cause == "foreign-load/cpu"
    assert found.since == live[0].since
    # The engine's own threads compete for the same cores, so the loops get about half of them, or more.
    share = next(one.value for one in found.evidence if one.what == "CPU used by other programs")
    assert isinstance(share, float)
    assert 30 <= share <= 100


@pytest.mark.embedded
@pytest.mark.parametrize(("prompt", "output", "cause"), [("400", "8", "refused"), ("230", "40", "output-cut")])
def test_a_window_that_is_too_small_is_context_truncation_refused_or_cut(prompt: str, output: str, cause: str) -> None:
    shape = ("--requests", "2", "--num-ctx", "256", "--prompt-tokens", prompt, "--output-tokens", output)
    found = findings("--embedded", *shape)
    assert found["context-truncation"]["cause"] == f"context-truncation/{cause}"
    assert {"num_ctx": 512} in [one["options"] for one in found["context-truncation"]["remedies"]]


@pytest.mark.embedded
def test_a_fixed_prompt_is_a_cache_hit_and_no_time_to_first_token_is_claimed(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Tell a story about a lighthouse and the people who kept its light. " * 4, encoding="utf-8")
    done = chimera("run", "--embedded", "--prompt-file", str(prompt), "--fixed-prompt", "--requests", "3",
                   "--output-tokens", "16", "--json")  # fmt: skip
    facts = json.loads(done.stdout)
    found = {one["code"]: one for one in facts["findings"]}
    assert found["prompt-cache-hit"]["cause"] == "prompt-cache-hit/fixed-prompt"
    assert seen(found["prompt-cache-hit"], "cached part of the prompt") > 0.9
    assert "high-ttft" not in found
    assert facts["trials"][0]["ttft_s"]["median"] is None
    assert "lighthouse" not in done.stdout


@pytest.mark.embedded
def test_a_healthy_run_gives_at_most_foreign_load_and_noise() -> None:
    found = findings("--embedded", "--requests", "5", "--output-tokens", "24", env=no_driver_env())
    loud = {code for code, one in found.items() if SEVERITIES.index(one["severity"]) >= LOUD}
    assert loud <= {"foreign-load", "measurement-noise", "inconsistent-performance"}
    if "inconsistent-performance" in loud:
        assert "foreign-load" in loud, "what scatters on this machine is explained by what else runs on it"


# -- a scripted Ollama -------------------------------------------------------------------------------------------------


def test_two_clients_that_alternate_windows_are_reload_thrash() -> None:
    with in_thread(ScriptedOllama(decode_s=0.005, load_s=1.15)) as server:
        left = threading.Event()

        def other() -> None:
            body = {"model": "gemma3:270m", "prompt": "hello", "stream": False, "options": {"num_ctx": 2048}}
            while not left.wait(0.05):
                request = Request(f"{server.url}/api/generate", json.dumps(body).encode())
                with contextlib.suppress(OSError), urlopen(request, timeout=20):
                    pass

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        try:
            found = findings("--server", server.url, "--yes", "--num-ctx", "1024", "--requests", "5",
                             "--output-tokens", "8", "--prompt-tokens", "8")  # fmt: skip
        finally:
            left.set()
            thread.join(30)
    thrash = found["reload-thrash"]
    assert thrash["severity"] == "warn"
    assert seen(thrash, "requests that loaded the model") >= 2
    assert thrash["cause"] in {None, "reload-thrash/other-options"}


def on_card(scenario: str, requests: int = 5, **params: Any) -> dict[str, dict[str, Any]]:
    """A run on a scripted Ollama beside a scripted driver, some seconds long."""
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        return findings("--server", server.url, "--yes", "--requests", str(requests), "--output-tokens", "56",
                        "--prompt-tokens", "8", env=nvml_env(scenario, **params))  # fmt: skip


def test_heat_that_holds_clocks_down_is_found_with_its_share_of_the_time() -> None:
    found = on_card("sw_thermal", share=0.4)["thermal-throttling"]
    share = next(one for one in found["evidence"] if one["source"] == "measured")
    assert share["value"] == pytest.approx(0.4, abs=0.05)


def test_heat_between_two_samples_is_found_by_the_counters() -> None:
    # The driver's clock runs from the worker's start: a busy machine may take seconds to its first request.
    found = on_card("short_throttle", 9, at=6.0, seconds=0.3)["thermal-throttling"]
    share = next(one for one in found["evidence"] if one["source"] == "measured")
    assert share["value"] * share["window_s"] == pytest.approx(0.3, abs=0.05)


def test_the_power_limit_is_found_with_its_share_of_the_time() -> None:
    found = on_card("power_cap", share=0.95)["power-throttling"]
    share = next(one for one in found["evidence"] if one["source"] == "measured")
    assert share["value"] == pytest.approx(0.95, abs=0.05)


@pytest.mark.slow
def test_clocks_that_stay_low_under_load_without_a_reason_are_a_stuck_p_state() -> None:
    found = on_card("stuck_pstate", 12)["low-clocks"]
    assert found["severity"] == "warn"
    assert found["cause"] == "low-clocks/stuck"


@pytest.mark.parametrize("scenario", ["hot_unthrottled", "busy_half_full"])
def test_a_card_that_is_hot_or_busy_and_does_its_work_gives_no_finding_of_its_own(scenario: str) -> None:
    found = on_card(scenario, 4)
    loud = {code for code, one in found.items() if SEVERITIES.index(one["severity"]) >= LOUD}
    assert loud <= {"foreign-load", "measurement-noise", "inconsistent-performance"}
    assert not loud & {"thermal-throttling", "power-throttling", "low-clocks", "vram-exhaustion"}


def test_a_card_that_clocks_down_because_it_idles_gives_nothing() -> None:
    with in_thread(ScriptedOllama()) as server:
        done = chimera("doctor", "--server", server.url, "--seconds", "3", "--json", env=nvml_env("idle_clocks"))
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["findings"] == []


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_warning_is_exit_code_1_and_its_evidence_makes_a_bundle(tmp_path: Path) -> None:
    with in_thread(ScriptedOllama(decode_s=0.02)) as server:
        done = chimera("run", "--server", server.url, "--yes", "--requests", "2", "--output-tokens", "8",
                       "--num-ctx", "256", "--prompt-tokens", "600")  # fmt: skip
        assert done.returncode == 5, done.stderr
        assert "context-truncation" in chimera("runs", "show", "last", "--json").stdout
        file = tmp_path / "evidence.md"
        told = chimera("doctor", "last", "--bundle", str(file), env={"CHIMERA_API_KEY": "quiet-key-1234"})
    assert told.returncode == 1
    assert "The server cut the prompt" in told.stdout
    assert "--apply 1" in told.stdout
    data = json.loads(file.with_name("evidence.md.json").read_text(encoding="utf-8"))
    assert data["requested"] == {"num_ctx": 256}
    assert data["samples"]["host"]
    assert [one["code"] for one in data["findings"]] == ["context-truncation"]
    assert "quiet-key-1234" not in file.read_text(encoding="utf-8") + json.dumps(data)
    assert "context-truncation" in file.read_text(encoding="utf-8")


def test_nothing_wrong_is_exit_code_0_and_a_bad_command_2(tmp_path: Path) -> None:
    with in_thread(ScriptedOllama()) as server:
        quiet = chimera("doctor", "--server", server.url, "--seconds", "1", env=no_driver_env())
    assert quiet.returncode == 0, quiet.stdout
    assert "Nothing was found." in quiet.stdout
    assert chimera("doctor", "--thermal", "--watch").returncode == 2
    assert chimera("doctor", "nope").returncode == 2
    assert chimera("doctor", "--apply", "1").returncode == 2


def test_a_remedy_is_measured_before_and_after_and_gets_a_verdict() -> None:
    def prefill(options: Options) -> float:
        return 0.001 if options.num_batch == 1024 or fast else 0.006

    # A GPU that does its work: else whatever runs on this machine's cores would be a cause as well.
    card = nvml_env("one_gpu")
    fast = True
    with in_thread(ScriptedOllama(prefill_s=prefill, decode_s=0.002)) as server:
        shape = ("--server", server.url, "--yes", "--requests", "4", "--output-tokens", "8")
        assert chimera("run", *shape, env=card).returncode == 0
        fast = False  # the server reads prompts slowly from now on, unless it is given a larger batch
        found = findings(*shape, env=card)
        assert found["high-ttft"]["cause"] == "high-ttft/long-prompt"
        told = chimera("doctor", "last", "--json", env=card)
        remedies = [one for row in json.loads(told.stdout)["findings"] for one in row["remedies"]]
        number = next(one["apply"] for one in remedies if one["options"] == {"num_batch": 1024})
        done = chimera("doctor", "last", "--apply", str(number), "--rounds", "4", "--yes", "--json", env=card)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [(one["role"], one["requested"]) for one in facts["trials"]] == [
        ("baseline", {}),
        ("candidate", {"num_batch": 1024}),
    ]
    [verdict] = [one for one in facts["verdicts"] if one["metric"] == "ttft_s"]
    assert (verdict["candidate"], verdict["against"], verdict["verdict"]) == ("c1", "c0", "better")
    assert verdict["effect"] > 1.5


def test_the_thermal_check_tells_where_a_known_curve_settles() -> None:
    with in_thread(ScriptedOllama(decode_s=0.01)) as server:
        done = chimera("doctor", "--thermal", "--minutes", "0.2", "--server", server.url, "--yes", "--json",
                       env=nvml_env("heating", t0=40, t_end=78, tau=45, scale=18))  # fmt: skip
    facts = json.loads(done.stdout)
    [result] = facts["thermal"]
    assert result["equilibrium_c"] == pytest.approx(78, abs=1.0)
    assert result["level"] == "steady"
    assert result["throttle_share"] == 0
    assert result["tok_s_before"] == pytest.approx(100, rel=0.1)
    assert "settle" in result["verdict"]
    assert facts["run"]["kind"] == "thermal"
    with Journal.open() as journal:
        run = journal.run("last")
        assert run.plan["minutes"] == 0.2
        assert journal.findings(run.id) == [] or done.returncode in {0, 1}


def test_the_thermal_checks_points_are_gaps_where_nothing_was_read() -> None:
    assert points_of([], 0.0, "GPU-1") == []
    assert replace(assess([]), verdict="").level == "unknown"


def test_a_watch_prints_one_line_a_look_until_it_is_interrupted() -> None:
    with in_thread(ScriptedOllama()) as server:
        environment = {**no_driver_env(), "CHIMERA_HOME": os.environ["CHIMERA_HOME"]}
        watch = subprocess.Popen(
            [sys.executable, "-m", "chimera", "doctor", "--server", server.url, "--watch", "--json", "--seconds", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        try:
            assert watch.stdout is not None
            lines = [json.loads(watch.stdout.readline()) for _ in range(2)]
        finally:
            watch.send_signal(2)
            code = watch.wait(10)
    assert code == 0
    assert [line["findings"] for line in lines] == [[], []]
    assert lines[0]["at"] < lines[1]["at"]
    assert time.strptime(lines[0]["at"][:19], "%Y-%m-%dT%H:%M:%S")
