"""The app's threads: telemetry, journal, and questions to servers.

Each is a thread worker that waits on its own cancelled event, so that quitting never waits for a sleep. Heavy modules
(SQLAlchemy, pydantic, httpx, psutil) are imported in here, after the first paint.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chimera.domain.run import ENDED, Run, Target
from chimera.domain.server import ServerInfo
from chimera.errors import ChimeraError

from .messages import Inspected, LeftChanged, ModelsListed, RunChanged, ServersFound, SnapshotTaken, Told

if TYPE_CHECKING:
    from textual.message import Message
    from textual.worker import Worker

    from chimera.runner.follow import Follower
    from chimera.store.journal import Journal

Post = Callable[["Message"], object]
JOURNAL_S = 0.2


class TelemetryFeed:
    """Reads GPUs, host and server about once a second."""

    def __init__(self, post: Post, interval_s: float) -> None:
        self._post = post
        self.interval_s = interval_s
        self._server: ServerInfo | None = None
        self._engine_pids: tuple[int, ...] = ()

    def watch(self, server: ServerInfo | None, engine_pids: tuple[int, ...] = ()) -> None:
        """From now on this server is watched, and these are the engine's processes."""
        self._server, self._engine_pids = server, engine_pids

    def run(self, worker: Worker[None]) -> None:
        """Until the app ends."""
        from chimera.telemetry.collector import Collector
        from chimera.telemetry.serverwatch import ServerWatch

        collector = Collector()
        watched: ServerInfo | None = None
        try:
            while True:
                began = time.monotonic()
                if self._server != watched:
                    watched = self._server
                    if collector.server is not None:
                        collector.server.close()
                    collector.server = ServerWatch(watched.kind, watched.url) if watched is not None else None
                collector.engine_pids = self._engine_pids
                self._post(SnapshotTaken(collector.snapshot()))
                if worker.cancelled_event.wait(max(0.05, self.interval_s - (time.monotonic() - began))):
                    return
        finally:
            collector.close()


class JournalFeed:
    """Follows one run, and does in order what the app asks of the journal."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._asked: queue.SimpleQueue[Callable[[Journal], None]] = queue.SimpleQueue()
        self._follow: str | None = None
        self._follower: Follower | None = None

    def do(self, work: Callable[[Journal], None]) -> None:
        """Do something with the journal, soon, off the UI's thread; what it raises is told."""
        self._asked.put(work)

    def follow(self, run_id: str | None) -> None:
        """Show this run from now on."""
        self._follow = run_id

    def run(self, worker: Worker[None]) -> None:
        """Until the app ends."""
        try:
            from chimera.store.journal import Journal

            journal = Journal.open()
        except ChimeraError as error:
            self._post(Told(str(error), "error"))
            return
        try:
            self._follow = self._follow or _active(journal)
            for left in journal.unrestored():
                self._post(LeftChanged(left.run, left.server_url))
            while True:
                self._serve(journal)
                if worker.cancelled_event.wait(JOURNAL_S):
                    return
        finally:
            journal.close()

    def _serve(self, journal: Journal) -> None:
        try:
            while not self._asked.empty():
                self._asked.get()(journal)
            if self._follow != (self._follower.run_id if self._follower else None):
                from chimera.runner.follow import Follower

                self._follower = Follower(journal, self._follow) if self._follow else None
            if self._follower is not None:
                update = self._follower.look()
                if update is not None:
                    self._post(RunChanged(update))
                    if update.run.state in ENDED:
                        self._follow = _active(journal) or self._follow
        except ChimeraError as error:
            self._post(Told(str(error), "error"))


def _active(journal: Journal) -> str | None:
    """The newest run that is being worked on, or crashed and waits to be resumed."""
    newest: list[Run] = journal.runs(limit=20)
    for states in ({"running", "paused", "queued"}, {"crashed"}):
        for run in newest:
            if run.state in states:
                return run.id
    return None


def find_servers(post: Post, url: str | None) -> None:
    """Ask around which servers answer."""
    import asyncio

    from chimera.backends.detect import detect, explain

    try:
        detection = asyncio.run(detect(url))
        post(ServersFound(detection.found, explain(detection)))
    except ChimeraError as error:
        post(ServersFound((), str(error)))


def list_models(post: Post, server: ServerInfo) -> None:
    """Ask a server what it could serve."""
    import asyncio

    from chimera.backends.detect import open_backend

    async def ask() -> None:
        backend = open_backend(Target(server.kind, url=server.url or None))
        try:
            await backend.connect()
            post(ModelsListed(server, await backend.models()))
        except ChimeraError as error:
            post(ModelsListed(server, (), str(error)))
        finally:
            await backend.close()

    asyncio.run(ask())


def inspect(post: Post, target: Target) -> None:
    """Ask a server, or the embedded engine's file, what it is and what runs."""
    import asyncio

    from chimera.backends.detect import open_backend

    async def ask() -> Inspected:
        backend = open_backend(target)
        try:
            server = await backend.connect()
            model = await backend.model()
            shape = await backend.shape()
            effective = None if backend.owned else await backend.effective()
            return Inspected(target, server, model, shape, effective)
        except ChimeraError as error:
            return Inspected(target, problem=str(error))
        finally:
            await backend.close()

    post(asyncio.run(ask()))
