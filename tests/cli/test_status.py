"""chimera status: the values of the screens, for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.scripted import Exchange, ScriptedOllama, absent_url, in_thread
from tests.telemetry.standin import no_driver_env, nvml_env

GIB = 2**30


SHOW = json.loads((Path(__file__).parents[1] / "samples" / "ollama" / "show.json").read_text(encoding="utf-8"))


class TellingOllama(ScriptedOllama):
    """Shows its model as a real one did, tensors and all."""

    async def _show(self, exchange: Exchange) -> None:
        await exchange.reply(200, SHOW)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)


@pytest.fixture
def ollama() -> Iterator[ScriptedOllama]:
    """With its model loaded by somebody else."""
    with in_thread(TellingOllama()) as server:
        body = json.dumps({"model": server.models[0].name, "options": {"num_ctx": 2048}}).encode()
        urllib.request.urlopen(f"{server.url}/api/generate", body, timeout=10).read()
        yield server


def chimera(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**env, "CHIMERA_HOME": os.environ["CHIMERA_HOME"]},
    )


def test_memory_by_part_and_the_roof_stand_in_text_and_json(ollama: ScriptedOllama) -> None:
    env = nvml_env("wsl")  # the driver does not tell processes apart: the server's figure stands in
    facts = json.loads(chimera("status", "--server", ollama.url, "--json", env=env).stdout)
    (parts,) = facts["vram"].values()
    held = facts["server"]["now"]["models"][0]["vram_bytes"]
    assert parts["engine_bytes"] == held
    assert parts["foreign_bytes"] == 10 * GIB - held
    assert (parts["source"], parts["held_source"]) == ("estimated", "derived")
    assert facts["model"]["roof_tok_s"] > 0
    assert facts["model"]["mbu"] is None, "nobody generates"
    text = chimera("status", "--server", ollama.url, env=env).stdout
    assert "VRAM by part: weights ~" in text
    assert "others ~" in text
    assert f"roof by memory bandwidth {facts['model']['roof_tok_s']:.1f} tok/s" in text


def test_watch_gives_a_json_document_a_line(ollama: ScriptedOllama) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "chimera", "status", "--watch", "--json", "--server", ollama.url],
        env=nvml_env("sw_thermal"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    finally:
        process.terminate()
        process.wait(timeout=10)
    assert [line["schema_version"] for line in lines] == [1, 1, 1]
    assert lines[0]["at"] < lines[1]["at"] < lines[2]["at"]
    (throttle,) = lines[-1]["gpus"]["samples"][0]["throttles"]
    assert throttle["reason"] == "sw-thermal"
    assert throttle["share"] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("not_supported", "n/a (unsupported"),
        ("mismatch", "gpu     none:"),
        ("hw_thermal", "% of the last second"),
        ("eight_gpus", "gpu 7"),
    ],
)
def test_what_is_missing_gives_its_reason(scenario: str, words: str) -> None:
    done = chimera("status", "--server", absent_url(), env=nvml_env(scenario))
    assert done.returncode == 3, done.stderr
    assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_without_a_driver_or_a_server_it_says_both_and_still_tells_the_host() -> None:
    done = chimera("status", "--server", absent_url(), env=no_driver_env())
    assert done.returncode == 3, "the server that was asked for is not there"
    assert "No model server was found" in done.stdout
    assert "No NVIDIA driver" in done.stdout
    assert "host    CPU" in done.stdout
    assert "run     none goes on" in done.stdout
