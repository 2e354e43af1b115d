"""Follow a run in a terminal: lines on stderr, Ctrl-C detaches, a second one stops."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from chimera.domain.run import COMPARING, ENDED, Progress, Run
from chimera.domain.text import plain
from chimera.runner.follow import Follower, Update

from .output import say, ticker

if TYPE_CHECKING:
    from chimera.store.journal import Journal

POLL_S = 0.2
SECOND_S = 2.0
"""After the first Ctrl-C there is so long for the second."""


def follow_to_end(journal: Journal, run_id: str, worker: subprocess.Popen[bytes] | None = None) -> tuple[Run, int]:
    """Narrate until the run ends. Returns the run and the exit code that its end stands for."""
    follower = Follower(journal, run_id)
    run = journal.run(run_id)
    try:
        while True:
            update = follower.look()
            if update is not None:
                run = update.run
                _narrate(update)
                if run.state in ENDED or run.state == "crashed":
                    return run, _exit_code(journal, run, worker)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return _detach(journal, run)


def _detach(journal: Journal, run: Run) -> tuple[Run, int]:
    from chimera.runner.launch import ends_with_login

    say(f"\ndetached: run {run.id} goes on; `chimera attach {run.id}` comes back. Ctrl-C again stops it.")
    if ends_with_login():
        say("This system ends your processes at logout (KillUserProcesses=yes): the run ends with your login.")
    try:
        time.sleep(SECOND_S)
    except KeyboardInterrupt:
        journal.send(run.id, "stop")
        say(f"stopping run {run.id}: what was measured is kept.")
    return run, 4


def _narrate(update: Update) -> None:
    if update.first:
        say(f"run {update.run.id}: {_what(update.run)}; Ctrl-C detaches, the run goes on")
    for event in update.events:
        say(f"  {plain(event.text)}")
    if update.progress and update.run.state in {"running", "paused"}:
        ticker(f"  {progress_line(update.progress)}")


def _what(run: Run) -> str:
    what = f"preset {run.preset}" if run.preset else run.kind
    return f"{what} {plain(run.name)}" if run.name else what


def progress_line(progress: Progress) -> str:
    """Where a run stands, in one line."""
    parts: list[str] = [progress.stage]
    if progress.stage == "measuring":
        parts = [f"request {progress.request}/{progress.requests}"]
    elif progress.stage == "warmup":
        parts = ["first request (discarded)"]
    if progress.sessions > 1:
        parts.insert(0, f"session {progress.session}/{progress.sessions}")
    if progress.tokens:
        parts.append(f"{progress.tokens}/{progress.tokens_planned} tokens")
    if progress.rate is not None and progress.stage in {"measuring", "warmup"}:
        parts.append(f"{progress.rate:.1f} tok/s")
    if progress.eta_s is not None:
        parts.append(f"about {progress.eta_s:.0f} s left")
    if progress.text:
        parts.append(progress.text)
    return " · ".join(parts)


def _exit_code(journal: Journal, run: Run, worker: subprocess.Popen[bytes] | None) -> int:
    if run.state == "done":
        if not (rows := journal.measurements(run.id)) and run.kind in COMPARING:
            return 0  # every candidate has the baseline's effect, which is a result and needs no request
        return 0 if any(row.measurement.valid for row in rows) else 5
    if run.state == "failed":
        code = 3
        if worker is not None:
            with suppress(subprocess.TimeoutExpired):
                code = worker.wait(timeout=5)
        return code if code in {2, 3, 5} else 3
    return 4
