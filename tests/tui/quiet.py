"""The app without its threads: tests put the state in place themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from textual.pilot import Pilot

from chimera.cli.ui import UiOptions
from chimera.domain.options import Options
from chimera.domain.run import Progress, Run, RunState, Target, Trial
from chimera.domain.telemetry import Snapshot
from chimera.runner.follow import Update
from chimera.store.journal import Journal
from chimera.store.records import Event, Row
from chimera.tui.app import ChimeraApp
from chimera.tui.feeds import JournalFeed, TelemetryFeed, Watched
from tests.widgets import data


class Unasked(JournalFeed):
    """Keeps what would be done with the journal."""

    def __init__(self, asked: list[object]) -> None:
        super().__init__(asked.append)
        self._kept = asked

    def do(self, work: Callable[[Journal], None]) -> None:
        """Only kept."""
        self._kept.append(work)

    def read(self, name: str, work: Callable[[Journal], None], then: Callable[[], object] = lambda: None) -> None:
        """Nothing to read before a test has given a journal."""
        if self._opened.is_set():
            super().read(name, work, then)


class Unwatched(TelemetryFeed):
    """Looks at nothing."""

    def watch(self, watched: Watched) -> None:
        """Nothing to look at."""


class QuietApp(ChimeraApp):
    """Nothing is read, asked or written; what would be done with the journal is kept in `asked`."""

    def __init__(self, options: UiOptions | None = None) -> None:
        super().__init__(options or UiOptions(embedded=True))
        self.asked: list[object] = []
        self.journal = Unasked(self.asked)
        self.telemetry = Unwatched(self.asked.append, 1.0)

    def start_feeds(self) -> None:
        """No threads."""

    def _inspect(self, target: Target) -> None:
        """Nobody to ask."""

    def look_for_servers(self, url: str | None) -> None:
        """Nobody to ask."""
        self.asked.append(("look", url))


def snapshot(gpus: int = 1) -> Snapshot:
    """One reading of everything."""
    return Snapshot(at=time.monotonic(), gpus=data.gpus(gpus) if gpus else data.NO_GPU, host=data.host())


def update(
    state: RunState = "running",
    *,
    run_id: str = "k7f2",
    progress: Progress | None = None,
    rows: int = 0,
    first: bool = False,
    texts: tuple[str, ...] = (),
) -> Update:
    """A run as its journal would tell it."""
    run: Run = replace(data.RUN, id=run_id, state=state, target=Target("embedded", assume_yes=True))
    return Update(
        run,
        progress or data.progress(),
        (Trial("c0", "candidate", Options(num_gpu=80)),),
        data.EFFECTIVE,
        tuple(Row(number, 1, "c0", 1, "measure", data.measurement(number)) for number in range(rows)),
        tuple(Event(number, data.WALL, text) for number, text in enumerate(texts)),
        first,
    )


async def until(pilot: Pilot[None], reached: Callable[[], object]) -> None:
    """Wait until the app has come to something; the machine may be slow."""
    for _ in range(200):
        await pilot.pause()
        if reached():
            return
        await pilot.pause(0.02)
    raise AssertionError("the app did not come to that")


def notes(app: ChimeraApp) -> str:
    """What the app has said in notes, whole."""
    return " ".join(one.message for one in app._notifications)
