"""The app's threads: telemetry, journal, and questions to servers.

They are daemons and end by themselves when the process does: a driver or a server that hangs never keeps the user from
leaving. Heavy modules (SQLAlchemy, pydantic, httpx, psutil) are imported in here, after the first paint.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chimera.domain.run import Run, RunState, Target
from chimera.domain.server import ServerInfo
from chimera.errors import ChimeraError
from chimera.telemetry.loaded import Loaded
from chimera.telemetry.polling import ServerPoll

from .messages import (
    Inspected,
    LeftChanged,
    ModelsListed,
    RunChanged,
    ServerSeen,
    ServersFound,
    SnapshotTaken,
    Told,
    Worked,
)

if TYPE_CHECKING:
    from textual.message import Message

    from chimera.domain.telemetry import ServerSample
    from chimera.runner.follow import Follower
    from chimera.store.journal import Journal

Post = Callable[["Message"], object]
JOURNAL_S = 0.2
SEEN_S = 0.45
WORK_S = 1.0
"""Between two looks at which run is being worked on."""
ACTIVE: frozenset[RunState] = frozenset({"running", "paused", "queued"})
"""States of a run that is being worked on."""
LEAVE_S, CLOSE_S = 2.0, 0.3
"""Longest wait at the end for what the journal was asked to do, and for it to close where it was asked nothing."""
TOLD_S = 60.0
"""Between two words of one and the same failure that stays."""


def begin(name: str, post: Post, work: Callable[[], None]) -> threading.Thread:
    """Do something in a thread of its own; a defect in it is told and ends nothing else."""

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the edge of a thread: it reports
            post(Told(f"{name} has ended by a defect: {error!r}", "error"))

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched, and how."""

    loaded: Loaded = field(default_factory=Loaded)
    engine_pids: tuple[int, ...] = ()
    """The engine's processes where the server's own sample does not name them."""
    own_pids: tuple[int, ...] = ()
    """Chimera's processes besides this one."""
    quiet: bool = False
    """A request of ours is timed: what costs much waits."""


class TelemetryFeed:
    """Reads GPUs and host about once a second, and the server at its own rate beside them."""

    def __init__(self, post: Post, interval_s: float) -> None:
        self._post = post
        self.interval_s = interval_s
        self._watched = Watched()
        self._poll = ServerPoll(self._seen)
        self._told = float("-inf")
        self._left = threading.Event()

    def watch(self, watched: Watched) -> None:
        """Watch this from now on."""
        self._watched = watched
        self._poll.slow = watched.quiet
        self._poll.watch(watched.loaded.server)

    def _seen(self, sample: ServerSample) -> None:
        """Tell what the server does, not oftener than it is painted: most looks only make the rate exact."""
        if sample.at - self._told >= SEEN_S:
            self._told = sample.at
            self._post(ServerSeen(sample))

    def leave(self) -> None:
        """End soon; nothing waits for it."""
        self._left.set()
        self._poll.close()

    def run(self) -> None:
        """Until the app ends."""
        from chimera.diagnosis.evidence import EngineStart
        from chimera.runner.sampler import Engines
        from chimera.telemetry.collector import Collector
        from chimera.telemetry.roof import decode_roof
        from chimera.telemetry.vram import vram_parts

        collector, engines = Collector(), Engines()
        try:
            while True:
                began = time.monotonic()
                watched, seen = self._watched, self._poll.latest
                collector.server = self._poll if seen is not None else None
                collector.engine_pids, collector.own_pids = watched.engine_pids, watched.own_pids
                collector.quiet = watched.quiet
                snapshot = collector.snapshot()
                parts = vram_parts(snapshot.gpus, watched.loaded, snapshot.server, watched.engine_pids)
                roof = decode_roof(snapshot.gpus, watched.loaded, snapshot.server, parts)
                fresh = engines.fresh(snapshot.server)
                starts = tuple(EngineStart(time.time(), pid, flags) for pid, flags in fresh)
                self._post(SnapshotTaken(snapshot, parts, roof, starts))
                if self._left.wait(max(0.05, self.interval_s - (time.monotonic() - began))):
                    return
        finally:
            collector.close()


class JournalFeed:
    """Follows one run, knows which one is worked on, and does in order what the app asks of the journal."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._asked: queue.SimpleQueue[Callable[[Journal], None]] = queue.SimpleQueue()
        self._doing = False
        self._left = False
        self._woken = threading.Event()
        self._opened = threading.Event()
        self._journal: Journal | None = None
        self.problem = ""
        """Why there is no journal."""
        self._following = threading.Lock()
        """Held where what is followed is chosen: the app's word must not be lost between a look and its outcome."""
        self._follow: str | None = None
        self._stay = False
        self._follower: Follower | None = None
        self._state: RunState | None = None
        """Of the followed run, as it was last told."""
        self._unseen = False
        """What is followed was begun just now, and was not looked at yet."""
        self._worked: Worked | None = None
        self._worked_at = float("-inf")
        self._ended_held: frozenset[str] = frozenset()
        """Runs that had ended and were held all the same, at the last look."""
        self._changes: int | None = None
        self._failed: dict[str, float] = {}
        """Why looks failed, and when that was told."""

    def do(self, work: Callable[[Journal], None]) -> None:
        """Do something with the journal, soon, off the UI's thread; what it raises is told."""
        self._asked.put(work)
        self._woken.set()
        if self.problem:
            self._post(Told(self.problem, "error"))

    def read(self, name: str, work: Callable[[Journal], None], then: Callable[[], object] = lambda: None) -> None:
        """Read for a screen, in a thread of its own: nothing that is done or followed waits for it, nor it for that.

        `then` is called at its end, however that came.
        """

        def guarded() -> None:
            try:
                self._opened.wait()
                if self._journal is not None and not self._left:  # why there is none was told
                    work(self._journal)
            except ChimeraError as error:
                self._post(Told(str(error), "error"))
            finally:
                then()

        begin(name, self._post, guarded)

    def ready(self, journal: Journal | None, problem: str = "") -> None:
        """Screens can read from this journal; None: there is none to read from, and why."""
        self._journal, self.problem = journal, problem
        self._opened.set()

    @property
    def busy(self) -> bool:
        """Something that was asked for is not done yet, and will be."""
        return not self.problem and (self._doing or self._unseen or not self._asked.empty())

    def follow(self, run_id: str | None, *, stay: bool = False, begun: bool = False) -> None:
        """Show this run from now on; with `stay` also after its end, while another one goes on.

        One that was `begun` just now is at work, which nobody knows before it was looked at: until then this is busy.
        """
        with self._following:
            self._follow, self._stay, self._unseen = run_id, stay, begun
        self._woken.set()

    def _pick_up(self, run_id: str | None, shown: str | None) -> bool:
        """Show a run that nobody asked for; False where the app has asked for another one than was shown by then."""
        with self._following:
            if self._follow != shown or self._stay:
                return False
            self._follow = run_id
            return True

    def leave(self) -> None:
        """End, after what was asked for."""
        self._left = True
        self._woken.set()

    def run(self) -> None:
        """Until the app ends."""
        try:
            from chimera.store.journal import Journal

            journal = Journal.open()
        except Exception as error:  # noqa: BLE001 - whatever it is, screens must not wait for a journal
            problem = _words(error)
            self._post(Told(problem, "error"))
            self.ready(None, problem)
            return
        self.ready(journal)
        try:
            begun = False
            while not self._left:
                self._woken.clear()
                begun = begun or self._look(self._begin, journal)
                self._serve(journal)
                self._woken.wait(JOURNAL_S)
            self._serve(journal)  # what was asked for with the last key
        finally:
            journal.close()

    def _begin(self, journal: Journal) -> None:
        """What is done once: find out what to show, and what was left behind."""
        if self._follow is None:
            self._pick_up(_first(journal), None)
        for left in journal.unrestored():
            self._post(LeftChanged(left.run, left.server_url))

    def _serve(self, journal: Journal) -> None:
        while not self._asked.empty():
            self._doing = True  # before it is taken out, so that `busy` never misses it
            work = self._asked.get()
            try:
                work(journal)
            except Exception as error:  # noqa: BLE001 - the edge of the thread: what comes after it is done all the same
                self._post(Told(_words(error), "error"))
        self._doing = False
        self._look(self._see_run, journal)
        self._look(self._see_work, journal)

    def _look(self, look: Callable[[Journal], None], journal: Journal) -> bool:
        """Look at something; False where that failed, which is told now and then while it stays so."""
        try:
            look(journal)
        except Exception as error:  # noqa: BLE001 - the edge of the thread: the next look may succeed
            words, now = _words(error), time.monotonic()
            self._failed = {told: at for told, at in self._failed.items() if now - at < TOLD_S}
            if words not in self._failed:
                self._failed[words] = now
                self._post(Told(words, "error"))
            return False
        return True

    def _see_run(self, journal: Journal) -> None:
        """Tell what is new of the followed run."""
        wanted = self._follow
        if wanted is None:
            return
        try:
            self._tell_run(journal, wanted)
        finally:  # also where it cannot be told, which must not hold up everything else
            with self._following:
                self._unseen = self._unseen and self._follow != wanted

    def _tell_run(self, journal: Journal, wanted: str) -> None:
        from chimera.runner.follow import Follower

        if self._follower is None or self._follower.run_id != wanted:
            self._follower, self._state = Follower(journal, wanted), None
        try:
            update = self._follower.look()
        except Exception:
            self._follower = Follower(journal, wanted)  # that one may have passed over what it could not tell
            raise
        if update is not None:
            self._post(RunChanged(update))
            ended = self._state in ACTIVE and update.run.state not in ACTIVE
            self._state = update.run.state
            if ended:
                self._worked_at = float("-inf")  # what is worked on now is another one

    def _see_work(self, journal: Journal) -> None:
        """Tell which run is worked on, whoever started it; show it where nothing that goes on is shown.

        A run that has ended and is held is one whose answers are read, or that is put back. Its worker lets go a moment
        after its end, and takes it a moment before it goes on with it: only what is so at two looks is told.
        """
        now, before = time.monotonic(), self._worked
        if now - self._worked_at < WORK_S:
            return
        shown = self._follower.run_id if self._follower is not None else None
        self._worked_at, changes = now, journal.changes()
        held = journal.held()
        ended = [one for one in held if one.state not in ACTIVE and one.kind != "import"]
        used = next((one for one in ended if one.id in self._ended_held), None)
        self._ended_held = frozenset(one.id for one in ended)
        # A worker that dies writes nothing, nor does somebody who takes a lock: both are looked at in any case.
        if before is not None and before.run is None and before.used == used and not held and changes == self._changes:
            return
        run = _worked_on(journal, held)
        progress = journal.progress(run.id) if run is not None and run.state == "running" else None
        self._changes = changes
        worked = Worked(run, progress, used)
        if worked != before:
            self._worked = worked
            self._post(worked)
        if run is not None and run.id != shown and self._state not in ACTIVE and self._pick_up(run.id, shown):
            self._post(Told(f"run {run.id} is worked on: it is shown from now on"))


def _words(error: Exception) -> str:
    """What went wrong, as a sentence."""
    if isinstance(error, ChimeraError):
        return str(error)
    if isinstance(error, OSError):
        return f"That was not done: {error}"
    return f"The journal's thread met a defect and goes on: {error!r}"


def _worked_on(journal: Journal, held: Sequence[Run]) -> Run | None:
    """The newest run that a worker has begun, else the newest that waits for its turn or for its worker.

    An import asks no engine for anything, and no key stops it.
    """
    begun = next((run for run in held if run.state in {"running", "paused"} and run.kind != "import"), None)
    if begun is not None:
        return begun
    # One that no worker has taken yet is among the newest; one that nobody will take is told as crashed.
    waiting = (*held, *journal.runs(limit=20))
    return next((run for run in waiting if run.state == "queued" and run.kind != "import"), None)


def _first(journal: Journal) -> str | None:
    """What to show at the start: the run that is worked on, else the newest that crashed and waits to be resumed."""
    crashed = (one for one in journal.runs(limit=20) if one.state == "crashed" and one.resumable)
    run = _worked_on(journal, journal.held()) or next(crashed, None)
    return run.id if run is not None else None


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

    from chimera.telemetry.loaded import look_up

    post(Inspected(target, asyncio.run(look_up(target))))
