"""chimera status: one screen of text about server, GPU, host and runs."""

from __future__ import annotations

import asyncio
import json as jsonlib
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chimera.domain.readings import Missing, Reading
from chimera.domain.run import Run
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import Snapshot

from .output import emit, emit_json
from .work import Json, Server

if TYPE_CHECKING:
    from chimera.backends.detect import Detection
    from chimera.store.journal import Journal

SETTLE_S = 1.0
"""Rates and shares need two readings so far apart."""
_ACTIVE = ("running", "paused", "queued", "crashed")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status")(status)


def status(
    server: Server = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every second; with --json one line each.")
    ] = False,
    json: Json = False,
) -> None:
    """What the server, the GPUs and this machine do now, and which runs go on."""
    from chimera.backends.detect import detect
    from chimera.store.journal import Journal
    from chimera.telemetry.collector import Collector
    from chimera.telemetry.serverwatch import ServerWatch

    detection = asyncio.run(detect(server))
    journal = Journal.open()
    found = detection.found[0] if detection.found else _of_a_run(journal)
    collector = Collector(ServerWatch(found.kind, found.url) if found else None)
    try:
        collector.snapshot()
        while True:
            time.sleep(SETTLE_S)
            snapshot = collector.snapshot()
            runs = [run for run in journal.runs(limit=20) if run.state in _ACTIVE]
            if json:
                facts = _facts(found, snapshot, runs)
                if watch:
                    sys.stdout.write(jsonlib.dumps(facts, allow_nan=False) + "\n")
                    sys.stdout.flush()
                else:
                    emit_json(facts)
            else:
                if watch and sys.stdout.isatty():
                    sys.stdout.write("\x1b[H\x1b[J")
                _emit(found, detection, snapshot, runs)
                sys.stdout.flush()
            if not watch:
                return
    except KeyboardInterrupt:
        return
    finally:
        collector.close()
        journal.close()


def _of_a_run(journal: Journal) -> ServerInfo | None:
    """The server that the worker of a run has started: nobody finds it by its port."""
    for run in journal.runs(limit=20):
        progress = journal.progress(run.id) if run.state in {"running", "paused"} else None
        if progress is not None and progress.url:
            return ServerInfo(run.target.kind, progress.url, run.server.version if run.server else None)
    return None


def _facts(server: ServerInfo | None, snapshot: Snapshot, runs: list[Run]) -> dict[str, Any]:
    from chimera.runner.sampler import encode
    from chimera.store.document import run_document

    seen = encode(snapshot)
    now = seen.pop("server", None)
    return {
        "schema_version": 1,
        "at": datetime.now(UTC).isoformat(),
        **seen,
        "server": {"kind": server.kind, "url": server.url, "version": server.version, "now": now} if server else None,
        "runs": [run_document(run) for run in runs],
    }


def _emit(server: ServerInfo | None, detection: Detection, snapshot: Snapshot, runs: list[Run]) -> None:
    from chimera.backends.detect import explain

    if server is None:
        emit(explain(detection))
    else:
        emit(f"server  {server.title}  {server.url}")
    sample = snapshot.server
    if sample is not None:
        models = () if isinstance(sample.models, Missing) else sample.models
        for model in models:
            size, on_gpus = _show(model.size_bytes, _gib), _show(model.vram_bytes, _gib)
            emit(f"        {model.name}  {size} in memory, {on_gpus} on GPUs")
        emit(f"        {_show(sample.rate, '{:.1f} tok/s'.format)} for all clients, busy {_show(sample.busy)}, "
             f"waiting {_show(sample.waiting)}{f'  ({sample.via})' if sample.via else ''}")  # fmt: skip
        if sample.note:
            emit(f"        {sample.note}")
    state = snapshot.gpus
    if state.missing is not None:
        emit(f"gpu     none: {state.missing}")
    for info, gpu in zip(state.infos, state.samples, strict=False):
        used = f"{_show(gpu.vram_used_bytes, _gib)} of {_show(gpu.vram_total_bytes, _gib)}"
        emit(f"gpu {info.index}   {info.name}  {_show(gpu.utilization, '{:.0f} %'.format)} busy, VRAM {used}")
        emit(f"        {_show(gpu.temperature_c, '{:.0f} C'.format)}, {_show(gpu.margin_c, '{:.0f} C left'.format)}, "
             f"{_show(gpu.power_w, '{:.0f}'.format)} of {_show(gpu.power_limit_w, '{:.0f} W'.format)}, "
             f"SM {_show(gpu.sm_mhz, '{:.0f}'.format)} of {_show(info.max_sm_mhz, '{:.0f} MHz'.format)}")  # fmt: skip
        for throttle in gpu.throttles:
            emit(f"        slowed by {throttle.reason} for {throttle.share:.0%} of the last second")
    host = snapshot.host
    emit(f"host    CPU {_show(host.cpu_percent, '{:.0f} %'.format)}, load {_show(host.load_1m, '{:.2f}'.format)}, "
         f"memory {_show(host.memory_used_bytes, _gib)} of {_show(host.memory_total_bytes, _gib)}")  # fmt: skip
    for run in runs:
        emit(f"run     {run.id}  {run.preset or run.kind}  {run.state}")
    if not runs:
        emit("run     none goes on")


def _show(reading: Reading, how: Any = "{:.0f}".format) -> str:
    return f"n/a ({reading})" if isinstance(reading, Missing) else str(how(reading))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
