"""What the UI asks for: presets, and things to do with the journal on its own thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chimera.domain.preset import Preset
from chimera.domain.run import Target

if TYPE_CHECKING:
    from chimera.store.journal import Journal

    from .feeds import JournalFeed


def presets() -> tuple[Preset, ...]:
    """The guide's and the user's."""
    from chimera.presets.loader import all_presets

    return all_presets().presets


def preset_on(digit: int) -> Preset | None:
    """The preset on a key."""
    return next((one for one in presets() if one.digit == digit), None)


def preset_folder() -> Path:
    """Where the user's own presets lie."""
    from chimera.presets.loader import user_folder

    return user_folder()


def agreed(target: Target, yes: bool) -> Target:
    """The target with the user's answer to the question whether it may be reloaded."""
    return replace(target, assume_yes=target.assume_yes or yes)


def send(journal: Journal, run_id: str, command: Literal["pause", "resume", "stop"]) -> None:
    """Ask the worker of a run."""
    journal.send(run_id, command)


def start(
    journal: Journal, feed: JournalFeed, target: Target, preset: Preset, after: str | None, *, show: bool = True
) -> None:
    """Create the run of a preset and start its worker; with `show` it is what the screen shows from now on.

    It waits for `after` where that is given, and else for a run at work on the same server or processors, which this
    screen need not be following: two at a time would spoil each other.
    """
    from chimera.backends.address import same_server
    from chimera.runner.launch import create_run, start_worker

    # The newest one that is not done yet, so that queued runs wait for each other and never run side by side.
    waiting = (
        one.id
        for one in journal.held()
        if one.kind != "import" and (after is not None or same_server(one.target.url, target.url))
    )
    run = create_run(journal, target, preset.options, preset.workload, preset=preset, after=next(waiting, None))
    if show:
        feed.follow(run.id, begun=True)
    start_worker(journal, run.id)


def resume(journal: Journal, feed: JournalFeed, run_id: str) -> None:
    """Go on with a run that was stopped, failed or crashed, and show it."""
    from chimera.runner.launch import start_worker

    start_worker(journal, run_id)  # first: whoever follows it would take its old end for the new one
    feed.follow(run_id, begun=True)


def put_back(journal: Journal, run_id: str, server_url: str, tell: Callable[[str], object]) -> None:
    """Put a server's settings back that a killed run has left changed."""
    from chimera.runner.putback import put_back as restore

    for words in restore(journal, run_id, server_url):
        tell(words)


def forget_changes(journal: Journal, run_id: str, server_url: str) -> None:
    """Leave a server as a killed run has left it, and ask no more."""
    journal.restored(run_id, server_url)
