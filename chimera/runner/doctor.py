"""An examination: evidence of a run, or of this moment, and what the rules find in it."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chimera import __version__
from chimera.backends.address import same_server
from chimera.diagnosis.bundle import WINDOW_S, Bundle, build_bundle
from chimera.diagnosis.evidence import EngineStart, EvidenceSet, PastRun
from chimera.diagnosis.rules import diagnose, since_first_seen
from chimera.domain.finding import SEVERITIES, Finding
from chimera.domain.run import ENDED, Run, Target
from chimera.domain.server import KEY_VARIABLE, ModelInfo, ServerInfo
from chimera.domain.telemetry import ServerSample, Snapshot
from chimera.errors import ChimeraError, ConfigError
from chimera.store.files import write_whole
from chimera.telemetry.collector import Collector
from chimera.telemetry.loaded import Loaded
from chimera.telemetry.serverlog import ServiceLog
from chimera.telemetry.serverwatch import ServerWatch

from .evidence import evidence_now, evidence_of, history, woke
from .sampler import Engines

if TYPE_CHECKING:
    from chimera.store.journal import Journal

_STARTS = 20
RECENT_S = 86400.0
"""A run that ended longer ago says nothing of today."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was looked at, and what was found."""

    evidence: EvidenceSet
    findings: tuple[Finding, ...]
    """Worst first."""
    run: Run | None = None
    """None: this moment, without a run."""

    @property
    def sick(self) -> bool:
        """There is a finding of severity warn or worse."""
        return any(SEVERITIES.index(one.severity) >= SEVERITIES.index("warn") for one in self.findings)


def examine_run(journal: Journal, run: Run, *, window_s: float | None = None) -> Examination:
    """The rules asked about a run; those of its findings that were seen before keep their time."""
    evidence = evidence_of(journal, run, window_s=window_s)
    at = run.ended_at or time.time()
    return Examination(evidence, tuple(since_first_seen(journal.findings(run.id), diagnose(evidence), at)), run)


def last_run(journal: Journal, target: Target | None = None, *, now: float | None = None) -> Run | None:
    """The run that goes on, else the newest one that ended within a day; on this server, where one is given."""
    now = time.time() if now is None else now
    newest = [run for run in journal.runs(limit=20) if run.kind != "import" and (target is None or _of(run, target))]
    for run in newest:
        if run.state in {"running", "paused"}:
            return run
    for run in newest:
        if run.state in ENDED | {"crashed"} and (run.ended_at or run.created_at) > now - RECENT_S:
            return run
    return None


def _of(run: Run, target: Target) -> bool:
    return run.target.kind == target.kind and same_server(run.target.url, target.url)


class LiveLook:
    """This machine and a server, looked at about once a second, without a run.

    Args:
        loaded: The server and its model, as they have told of themselves.
        history: Earlier runs of the model.
        installed: What the server could load.
        neighbours: Other servers of this host.
        host: Facts of this machine.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        history: tuple[PastRun, ...] = (),
        installed: tuple[ModelInfo, ...] = (),
        neighbours: Sequence[ServerInfo] = (),
        host: dict[str, object] | None = None,
    ) -> None:
        self._loaded = loaded
        self._history = history
        self._installed = installed
        self._host = host or {}
        server = loaded.server
        self._collector = Collector(ServerWatch(server.kind, server.url) if server is not None and server.url else None)
        self._neighbours = [(one, ServerWatch(one.kind, one.url)) for one in neighbours]
        self._snapshots: deque[Snapshot] = deque(maxlen=int(WINDOW_S))
        self._clocks: deque[tuple[float, float]] = deque(maxlen=int(WINDOW_S))
        self._engines = Engines()
        self._starts: deque[EngineStart] = deque(maxlen=_STARTS)
        self._log = ServiceLog(WINDOW_S)
        self._found: list[Finding] = []

    def tick(self) -> Snapshot:
        """Take a reading."""
        snapshot = self._collector.snapshot()
        self._snapshots.append(snapshot)
        now = time.time()
        self._clocks.append((snapshot.at, now - time.monotonic()))
        self._starts += [EngineStart(now, pid, flags) for pid, flags in self._engines.fresh(snapshot.server)]
        return snapshot

    def examine(self) -> Examination:
        """Ask the rules about the last ten minutes of readings."""
        now = time.monotonic()
        beside: list[tuple[ServerInfo, ServerSample]] = [(info, watch.read(now)) for info, watch in self._neighbours]
        evidence = evidence_now(
            tuple(self._snapshots),
            self._loaded,
            clock_offset_s=time.time() - now,
            history=self._history,
            installed=self._installed,
            neighbours=beside,
            host=self._host,
            own_pids=(os.getpid(),),
            engine_starts=self._starts,
            resumed_at=woke(self._clocks),
            log=self._log.lines(self._loaded.server, time.time()),
        )
        self._found = since_first_seen(self._found, diagnose(evidence), time.time())
        return Examination(evidence, tuple(self._found))

    def close(self) -> None:
        """Let go of driver and servers."""
        self._collector.close()
        for _, watch in self._neighbours:
            watch.close()


async def installed_on(target: Target) -> tuple[ModelInfo, ...]:
    """What a server could load; nothing where it does not say."""
    from chimera.backends.detect import open_backend

    backend = open_backend(target)
    try:
        await backend.connect()
        return await backend.models()
    except ChimeraError:
        return ()
    finally:
        await backend.close()


def past_of(journal: Journal, loaded: Loaded) -> tuple[PastRun, ...]:
    """Earlier runs of the model that a server has."""
    if loaded.server is None or loaded.model is None:
        return ()
    return history(journal, loaded.server.kind, loaded.model.name)


# -- the bundle --------------------------------------------------------------------------------------------------------


def bundle(examinations: Sequence[Examination], host: dict[str, object]) -> Bundle:
    """One bundle of several examinations: the last one's evidence, with the others' readings and all findings.

    A run that ended a while ago is shown with the last ten minutes of its own time.
    """
    main = examinations[-1]
    evidence = main.evidence
    for other in examinations[:-1]:
        seen = other.evidence
        evidence = replace(
            evidence,
            gpu_infos=evidence.gpu_infos or seen.gpu_infos,
            gpu_samples=evidence.gpu_samples + seen.gpu_samples,
            host_samples=evidence.host_samples + seen.host_samples,
            server_samples=evidence.server_samples + seen.server_samples,
            gpu_missing=evidence.gpu_missing or seen.gpu_missing,
            clock_offset_s=evidence.clock_offset_s if evidence.clock_offset_s is not None else seen.clock_offset_s,
            driver=evidence.driver or seen.driver,
            server=evidence.server or seen.server,
            model=evidence.model or seen.model,
            effective=evidence.effective or seen.effective,
        )
    now = time.time()
    if len(examinations) == 1 and main.run is not None and main.run.ended_at is not None:
        now = main.run.ended_at
    system = {"os": f"{platform.system()} {platform.release()}", **{name: host.get(name) for name in _SYSTEM}}
    shown = {name: value for name, value in system.items() if isinstance(value, str | int | float) or value is None}
    findings = [finding for one in examinations for finding in one.findings]
    return build_bundle(evidence, findings, now=now, chimera_version=__version__, system=shown, names=_names())


_SYSTEM = ("machine", "cpu", "cores", "threads", "memory_bytes", "python", "platform", "container")


def _names() -> list[str]:
    """Words that nobody outside needs: who is logged in and where that one's home is, the machine's name, keys."""
    names = [socket.gethostname(), os.environ.get(KEY_VARIABLE, "")]
    with suppress(RuntimeError):  # no HOME, and no entry for this user, as in a container
        home = str(Path.home())
        names.append(home if home.count("/") > 1 else "")
    with suppress(OSError, KeyError):
        names.append(getpass.getuser())
    return [name for name in names if name not in {"", "root", "localhost"}]


def write_bundle(path: Path, made: Bundle) -> tuple[Path, Path]:
    """Write the Markdown to `path` and the JSON beside it, each whole or not at all. Returns both paths.

    Raises:
        ConfigError: the place cannot be written to.
    """
    beside = path.with_name(f"{path.name}.json")
    try:
        for place, text in ((path, made.markdown), (beside, made.json)):
            write_whole(place, text)
    except OSError as error:
        raise ConfigError(f"The bundle cannot be written to {path}: {error.strerror or error}.") from error
    return path, beside
