"""The command line: what goes to stdout, what to stderr, and what the exit codes say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chimera.cli import summary
from chimera.cli.narrate import progress_line
from chimera.cli.options import options_from
from chimera.domain.options import Options
from chimera.domain.run import Progress
from chimera.errors import ConfigError
from tests.backends.scripted import ScriptedOllama, absent_url, html, in_thread


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)


@pytest.fixture
def ollama() -> Iterator[ScriptedOllama]:
    with in_thread(ScriptedOllama(decode_s=0.002)) as server:
        yield server


def chimera(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--kv-cache-type", "q5", "--embedded"], "--kv-cache-type q5"),
        (["run", "--num-ctx", "0", "--embedded"], "--num-ctx 0"),
        (["run", "--requests", "0", "--embedded"], "--requests 0"),
        (["run", "nonesuch", "--embedded"], "nonesuch"),
        (["run", "--embedded", "--server", "http://127.0.0.1:1"], "exclude each other"),
        (["run", "--embedded", "--prompt-file", "absent.txt"], "absent.txt"),
        (["run", "--embedded", "--prompt-file", "/dev/zero"], "not a plain file"),
        (["run", "--embedded", "--prompt-file", "/"], "not a plain file"),
        (["run", "--start", 'llama-server "a'], '--start llama-server "a: No closing quotation'),
        (["run", "--start", ""], "--start is empty"),
        (["sweep", "--embedded", "--seed", "-1"], "--seed"),
        (["sweep", "--server", "http://127.0.0.1:9", "--num-ctx", "2048,x"], "--num-ctx 2048,x: 'x' is no number"),
        (["sweep", "--server", "http://127.0.0.1:9", "--kv-cache-type", "q5"], "--kv-cache-type q5: 'q5' is none of"),
        (["sweep", "--embedded", "--budget", "inf"], "--budget inf"),
        (["sweep", "--embedded", "--rounds", "100000"], "--rounds"),
        (["sweep", "--embedded", "--preflight", "100000"], "--preflight"),
        (["agents", "--embedded", "--agents", "1000000"], "--agents 1000000: takes 1 to 256"),
        (["agents", "--embedded", "--agents", "0"], "--agents 0"),
        (["agents", "--embedded", "--think", "inf"], "--think"),
        (["runs", "import", "/dev/zero"], "/dev/zero"),
        (["runs", "import", __file__, "--model-info", "/dev/zero"], "--model-info /dev/zero: is not a plain file"),
        (["runs", "list", "--kind", "bogus"], "--kind bogus: takes run, sweep"),
        (["runs", "show", "zzzz"], "zzzz"),
        (["stop"], "run"),
        (["presets", "show", "0"], "0"),
        (["attach", "zzzz"], "zzzz"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_with_exit_code_2(arguments: list[str], words: str) -> None:
    done = chimera(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_prompt_file_of_any_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    done = chimera("run", "--embedded", "--prompt-file", str(huge))
    assert done.returncode == 2
    assert "over 64 MiB" in done.stderr


def test_the_name_of_a_run_is_in_its_text(ollama: ScriptedOllama) -> None:
    done = chimera(
        "run", "--server", ollama.url, "--requests", "1", "--output-tokens", "8", "--yes", "--name", "night 1"
    )
    assert done.returncode == 0, done.stderr
    assert "run night 1; Ctrl-C detaches" in done.stderr
    assert "· night 1 · done" in done.stdout.splitlines()[0]
    assert "night 1" in chimera("runs", "list").stdout
    assert "night 1" in chimera("runs", "show").stdout.splitlines()[0]


def test_a_sweep_of_one_setting_says_so_in_its_plan_and_ends_well(ollama: ScriptedOllama) -> None:
    alike = ("sweep", "--server", ollama.url, "--flash-attention", "on,off")
    plan = chimera(*alike, "--dry-run")
    assert "every candidate has the baseline's effect: there is nothing to run" in plan.stdout
    assert "rounds" not in plan.stdout
    told = json.loads(chimera(*alike, "--dry-run", "--json").stdout)
    assert (told["estimate"]["sessions"], {*told["rounds"].values()}) == (0, {0})
    run = chimera(*alike, "--json")
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert [(row["candidate"], row["verdict"]) for row in facts["verdicts"]] == [("c1", "same"), ("c2", "same")]


def test_a_budget_that_does_not_hold_is_told_before_the_run(ollama: ScriptedOllama) -> None:
    plan = ("sweep", "--server", ollama.url, "--num-thread", "1,2", "--output-tokens", "8", "--prompt-tokens", "8")
    unknown = chimera(*plan, "--budget", "5m", "--dry-run")
    assert unknown.returncode == 0, unknown.stderr
    assert "--budget 5m: how long a request takes here is not known" in unknown.stderr
    once = chimera("run", *plan[1:3], *plan[5:], "--requests", "1", "--yes")
    assert once.returncode == 0, once.stderr
    short = chimera(*plan, "--budget", "0.001s", "--dry-run")
    assert "--budget 0.001s: the shortest form of this plan takes up to" in short.stderr
    assert "--budget" not in chimera(*plan, "--budget", "24h", "--dry-run").stderr


def test_there_is_one_document_of_a_run_with_agents(ollama: ScriptedOllama) -> None:
    done = chimera("run", "3", "--server", ollama.url, "--requests", "1", "--output-tokens", "8", "--yes", "--json",
                   "--measurements")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [arm["agents"] for arm in told["agents"]["arms"]] == [2]
    assert json.loads(chimera("runs", "export").stdout) == told
    assert json.loads(chimera("runs", "show", "--json", "--measurements").stdout) == told
    assert json.loads(chimera("attach", "--json", "--measurements").stdout) == told


def test_the_rest_has_no_coefficient_of_variation(ollama: ScriptedOllama) -> None:
    done = chimera("run", "--server", ollama.url, "--requests", "3", "--output-tokens", "8", "--yes", "--json")
    (trial,) = json.loads(done.stdout)["trials"]
    assert trial["other_s"]["n"] == trial["ttft_s"]["n"] == 3
    assert trial["ttft_s"]["cv"] is not None
    assert trial["other_s"]["cv"] is None
    (rest,) = [line for line in chimera("runs", "show").stdout.splitlines() if line.startswith("rest")]
    assert "CV" not in rest


def test_an_absent_server_is_exit_code_3_and_says_what_was_tried() -> None:
    done = chimera("run", "--server", absent_url())
    assert done.returncode == 3
    assert "nobody answers" in done.stderr
    assert "--embedded" in done.stderr


def test_a_web_server_is_no_model_server() -> None:
    from tests.backends.scripted import ScriptedServer

    server = ScriptedServer()
    server.route("GET", "/", html())
    with in_thread(server):
        done = chimera("run", "--server", server.url)
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


def test_run_json_is_one_document_and_narration_goes_to_stderr() -> None:
    with in_thread(ScriptedOllama(decode_s=0.002)) as server:
        done = chimera("run", "--server", server.url, "--requests", "2", "--output-tokens", "16", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["schema_version"] == 1
        assert facts["counts"]["valid"] == 2
        assert "request 1" in done.stderr
        listed = json.loads(chimera("runs", "list", "--json").stdout)
        assert [run["id"] for run in listed["runs"]] == [facts["run"]["id"]]
        shown = json.loads(chimera("runs", "show", "last", "--json").stdout)
        assert shown["trials"] == facts["trials"]
        csv = chimera("runs", "export", "--format", "csv").stdout.splitlines()
        assert len(csv) == 4, "a head, the discarded request and two measured ones"
        lines = chimera("runs", "export", "--format", "benchstat").stdout
        assert lines.count("Benchmark") >= 2
        status = json.loads(chimera("status", "--server", server.url, "--json").stdout)
        assert status["server"]["kind"] == "ollama"
        assert status["host"]["cpu_percent"] is not None


def test_a_preset_on_a_server_that_cannot_set_everything_says_what_it_left() -> None:
    from tests.backends.scripted import ScriptedOpenAI

    with in_thread(ScriptedOpenAI(decode_s=0.002)) as server:
        done = chimera("run", "1", "--server", server.url, "--requests", "1", "--output-tokens", "16", "--json")
        assert done.returncode == 0, done.stderr
        assert "not settable on this server" in done.stderr
        typed = chimera("run", "--num-gpu", "4", "--server", server.url, "--requests", "1")
        assert typed.returncode == 2
        assert "num_gpu cannot be set" in typed.stderr


def test_a_run_to_a_file_is_written_whole(tmp_path: Path) -> None:
    with in_thread(ScriptedOllama()) as server:
        chimera("run", "--server", server.url, "--requests", "1", "--output-tokens", "16", "--yes")
        out = tmp_path / "run.json"
        assert chimera("runs", "export", "-o", str(out)).returncode == 0
        assert json.loads(out.read_text())["counts"]["valid"] == 1
        assert chimera("runs", "export", "-o", str(tmp_path / "no" / "such.json")).returncode == 2


def test_presets_are_listed_shown_and_checked(tmp_path: Path) -> None:
    listed = json.loads(chimera("presets", "list", "--json").stdout)
    assert [preset["digit"] for preset in listed["presets"]][:5] == [1, 2, 3, 4, 5]
    assert "tok/s" in chimera("presets", "show", "1").stdout
    broken = tmp_path / "mine.toml"
    broken.write_text('title = "Mine"\n[options]\nnum_cxt = 4\n')
    checked = chimera("presets", "check", str(broken))
    assert checked.returncode == 2
    assert "mine.toml:3" in checked.stdout
    assert "num_ctx" in checked.stdout


def test_a_broken_preset_that_is_asked_for_is_told_with_file_line_and_field(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('title = "Mine"\n[options]\nnum_cxt = 4\n')
    (folder / "other.toml").write_text('title = "Two\n')
    done = chimera("run", "mine", "--embedded")
    assert done.returncode == 2
    assert "mine.toml:3: options.num_cxt" in done.stderr
    assert "other.toml:1: is not TOML" in done.stderr


@pytest.mark.parametrize(("typed", "words"), [("chimera ru", "runs"), ("chimera run --kv", "--kv-cache-type")])
def test_a_shell_completes_commands_and_options_and_opens_no_ui(typed: str, words: str) -> None:
    command = Path(sys.executable).with_name("chimera")
    done = subprocess.run(
        [command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "_CHIMERA_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(typed.count(" ")),
        },
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout.split()
    assert "\x1b" not in done.stdout


def test_the_version_and_help_are_there() -> None:
    assert chimera("--version").stdout.startswith("chimera ")
    assert "attach" in chimera("--help").stdout


def test_options_are_checked_by_name_and_range() -> None:
    assert options_from({"num_ctx": 512, "top_p": None}) == Options(num_ctx=512)
    with pytest.raises(ConfigError, match=r"--top-p 2\.0: takes 0 to 1"):
        options_from({"top_p": 2.0})


def test_progress_is_one_line() -> None:
    line = progress_line(Progress("measuring", 0.0, session=1, sessions=1, request=2, requests=5, tokens=10,
                                  tokens_planned=64, rate=71.24, eta_s=12.2))  # fmt: skip
    assert line == "request 2/5 · 10/64 tokens · 71.2 tok/s · about 12 s left"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((0.96, 1.03), "intervals of ±3.6% came out where ±0.7% was planned"),
        ((0.99, 1.01), None),
        ((0.96, None), None),
    ],
    ids=["noisier", "as planned", "unbounded"],
)
def test_rounds_that_were_noisier_than_the_preflight_are_told(
    ends: tuple[float, float | None], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = {"candidate": "c1", "metric": "decode_tok_s", "ci": list(ends)}
    others = [verdict | {"metric": "ttft_s", "ci": [0.5, 2.0]}, verdict | {"ci": None}]
    summary._emit_conclusion({
        "run": {"kind": "sweep", "plan": {"rules": {"objective": "decode_tok_s"}}},
        "standing": {"noise": {"sd": 0.006}, "words": "Sessions vary by 0.6%.", "half_width": 0.007},
        "verdicts": [verdict, *others],
    })  # fmt: skip
    out = capsys.readouterr().out
    assert "noise    Sessions vary by 0.6%." in out
    assert said in out if said else "came out" not in out
