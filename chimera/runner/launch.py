"""Start a worker so that it outlives the terminal, and create the runs that workers work on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from chimera.backends.address import same_server
from chimera.domain.options import Options
from chimera.domain.preset import Preset
from chimera.domain.run import ENDED, Run, Target, Trial
from chimera.domain.workload import Workload
from chimera.errors import ChimeraError, ConfigError
from chimera.store.home import home, private_folder

if TYPE_CHECKING:
    from chimera.store.journal import Journal

_START_S = 20.0
"""A worker that has not taken up its run after this long will not."""
_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Workers that this process started: polled so that none stays behind as a zombie."""


def create_run(
    journal: Journal,
    target: Target,
    options: Options,
    workload: Workload,
    *,
    preset: Preset | None = None,
    seed: int | None = None,
    name: str | None = None,
    after: str | None = None,
) -> Run:
    """A run of one configuration in the journal, ready for a worker.

    Options that come from the preset and that this server cannot make effective are left to the server, and the run
    says so; options that the user typed beside it are refused instead (by the worker, when it knows the server).
    """
    from_preset = preset.options.as_dict() if preset else {}
    lenient = [name for name, value in from_preset.items() if options.as_dict().get(name) == value]
    return journal.create_run(
        "run",
        target,
        workload,
        seed=fresh_seed() if seed is None else seed,
        trials=[Trial("c0", "candidate", requested=options)],
        preset=preset.name if preset else None,
        plan={"lenient": lenient, "after": after},
        name=name,
    )


def fresh_seed() -> int:
    """A seed that fits into every server's field and differs from the last one."""
    return int.from_bytes(os.urandom(3), "big")


def log_path(run_id: str) -> Path:
    """Where a worker's own words go: what it cannot say in the journal."""
    return home() / "logs" / f"{run_id}.log"


def start_worker(journal: Journal, run_id: str) -> subprocess.Popen[bytes]:
    """Start the worker of a run in a session of its own, off the terminal, and wait until it has taken up the run.

    Raises `ChimeraError` with the end of its log where it ends at once.
    """
    before = journal.run(run_id)
    if not journal.is_held(run_id):
        journal.take_commands(run_id)  # what was asked of an earlier worker is not meant for this one
    log = log_path(run_id)
    private_folder(log.parent)
    command = [*_scope(), sys.executable, "-m", "chimera", "worker", run_id]
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=_home_folder(),
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
    _CHILDREN[:] = [one for one in _CHILDREN if one.poll() is None]
    _CHILDREN.append(child)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        run = journal.run(run_id)
        if before.state in ENDED:  # whoever follows a resumed run must not take its old end for the new one
            taken = (run.state, run.ended_at) != (before.state, before.ended_at)
        else:
            taken = journal.is_held(run_id) or run.state not in {"queued", "crashed"}
        if taken:
            return child
        if ended:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            said = f"The worker of run {run_id} ended at once: {' / '.join(words) or 'no word'} (see {log})"
            if run.state == "queued":
                journal.set_state(run_id, "failed", said)  # nobody else can know that no worker will come
            raise ChimeraError(said)
        time.sleep(0.05)
    raise ChimeraError(f"The worker of run {run_id} did not begin within {_START_S:g} s (see {log}).")


def _home_folder() -> Path | None:
    """The user's own folder, which no unmount takes from under a worker; None where there is none."""
    try:
        folder = Path.home()
    except RuntimeError:  # no HOME, and no entry for this user, as in a container
        return None
    return folder if folder.is_dir() else None


def must_have_ended(run: Run) -> None:
    """Raises `ConfigError` where the run goes on: what it shows is known at its end, and its server is busy."""
    if run.state not in {*ENDED, "crashed"}:
        raise ConfigError(
            f"run {run.id} goes on: what it shows is known at its end, and its server is not free for anything else "
            f"before. Wait for it (`chimera attach {run.id}`), or stop it (`chimera stop {run.id}`)."
        )


def disturbed_by(journal: Journal, run: Run) -> Run | None:
    """Another run that is at work on the same processors or on the same server, or whose answers are read there.

    One that is paused is: it goes on with what it has loaded. One that waits for its turn is where that has come.
    """
    held = journal.held()
    ids = {one.id for one in held}
    for other in held:
        if other.id == run.id or other.kind == "import" or (other.state == "queued" and other.plan.get("after") in ids):
            continue
        if same_server(other.target.url, run.target.url):
            return other
    return None


def disturbance(other: Run) -> str:
    """What a run that goes on at the same time does to another, and what to do."""
    what = "the same server" if other.target.url else "an engine on the same processors"
    slower = "they slow each other down (two engines on one machine's cores 10 to 15 times)"
    if other.state in ENDED:
        return (
            f"another program of ours uses {what} at the same time, with the settings of run {other.id} (`chimera "
            f"outputs`, say): {slower}. Let it end first."
        )
    measures = {"paused": "is paused on", "queued": "begins to measure"}.get(other.state, "measures")
    return (
        f"run {other.id} {measures} {what} at the same time: {slower}, so neither shows what it would alone. Let one "
        f"end first (`chimera attach {other.id}`) or stop it (`chimera stop {other.id}`)."
    )


def ends_with_login() -> bool:
    """The login manager ends a user's processes at logout, and nothing is here to prevent that."""
    return _kills_user_processes() and not _scope()


def _scope() -> list[str]:
    """What to put before the command so that the worker survives the logout; empty where nothing is needed."""
    if not _kills_user_processes() or not shutil.which("systemd-run") or not os.environ.get("XDG_RUNTIME_DIR"):
        return []
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect"]


def _kills_user_processes(root: Path = Path("/")) -> bool:
    """`KillUserProcesses=yes` in logind's configuration (logind.conf(5): later files win)."""
    files = [root / "etc/systemd/logind.conf"]
    for folder in ("usr/lib", "run", "etc"):
        files += sorted((root / folder / "systemd/logind.conf.d").glob("*.conf"))
    answer = False
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for found in re.findall(r"(?mi)^\s*KillUserProcesses\s*=\s*(\S+)", text):
            answer = found.lower() in {"yes", "true", "1", "on"}
    return answer
