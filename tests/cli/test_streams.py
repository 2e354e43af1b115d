"""The three streams as a shell may leave them: a closed pipe, a full disk, a closed descriptor, bytes of no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, /dev/full and closed descriptors are of Unix")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `chimera` is the command."""
    script = f'set -o pipefail; chimera() {{ "{sys.executable}" -m chimera "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("command", ["presets list", "presets list --json", "--help"])
def test_a_reader_that_has_enough_ends_the_command_quietly(command: str) -> None:
    done = shell(f"chimera {command} | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["presets list", "presets list --json", "--help"])
def test_a_full_disk_is_a_sentence_and_no_success(command: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    done = shell(f"chimera {command} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("stdout cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1


def test_a_closed_stdout_is_a_sentence_and_never_another_file() -> None:
    done = shell("chimera runs list --json <&- >&-")
    assert done.returncode == 2
    assert done.stderr == "stdout is closed: there is nowhere to write to.\n"
    assert json.loads(shell("chimera runs list --json").stdout)["runs"] == [], "the journal is whole"


def test_a_closed_stdin_is_empty_and_no_terminal() -> None:
    read = "print(sys.stdin.isatty(), sys.stdin.read())"
    code = f"from chimera.cli.output import open_streams; import sys; open_streams(); {read}"
    done = shell(f'"{sys.executable}" -c "{code}" <&-')
    assert (done.stdout, done.stderr) == ("False \n", "")


@pytest.mark.parametrize("stderr", ["2>&-", "2> >(true)"])
def test_narration_that_nobody_can_read_takes_no_data_away(stderr: str) -> None:
    done = shell(f"chimera runs list --json {stderr}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema_version"] == 1
    assert shell(f"chimera runs show nonesuch {stderr}").returncode == 2


def test_what_the_terminal_has_no_character_for_is_escaped() -> None:
    done = shell("chimera presets check höhe.toml", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "h\\xf6he.toml: cannot be read" in done.stdout


@pytest.mark.parametrize("command", ["run --embedded --name", "--server", "presets check"])
def test_a_byte_that_is_no_text_is_named(command: str) -> None:
    done = shell(f"chimera {command} $'a\\xff'")
    assert done.returncode == 2
    assert "'a\\udcff' holds a byte that is not text" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_that_its_reader_did_not_wait_for_keeps_its_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    # Buffered, as it is for a user: what could not be written would fail once more when Python ends.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "chimera", "runs", "show", "nonesuch"]
    try:
        done = subprocess.run(command, stderr=writer, stdout=subprocess.PIPE, timeout=60, check=False, env=env)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")
