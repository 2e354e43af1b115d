"""chimera status: one screen of text about server, GPU, host and runs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chimera.domain.readings import Missing, Reading, number
from chimera.domain.run import Progress, Run, Target
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import GpuInfo, GpuSample, ServerSample, Snapshot, VramParts
from chimera.domain.text import plain

from .options import Json, Server
from .output import emit, emit_json

if TYPE_CHECKING:
    from chimera.store.journal import Journal
    from chimera.telemetry.loaded import Loaded

SETTLE_S = 1.0
"""Rates and shares need two readings so far apart."""
_ACTIVE = ("running", "paused", "queued", "crashed")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status")(status)


@dataclass(frozen=True, slots=True)
class Now:
    """Everything that is shown at one moment."""

    loaded: Loaded
    snapshot: Snapshot
    parts: Mapping[str, VramParts]
    roof: Reading
    runs: list[Run]

    @property
    def mbu(self) -> float | None:
        """The rate of all clients over the roof."""
        server = self.snapshot.server
        rate, roof = number(server.rate if server is not None else None), number(self.roof)
        return rate / roof if rate and roof else None


def status(
    server: Server = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every second; with --json one line each.")
    ] = False,
    json: Json = False,
) -> None:
    """What the server, the GPUs and this machine do now, and which runs go on."""
    from chimera.backends.detect import detect, explain
    from chimera.store.journal import Journal
    from chimera.telemetry.collector import Collector
    from chimera.telemetry.loaded import Loaded, changed_models
    from chimera.telemetry.polling import ServerPoll
    from chimera.telemetry.roof import decode_roof
    from chimera.telemetry.vram import vram_parts

    detection = asyncio.run(detect(server))
    journal = Journal.open()
    poll, collector = ServerPoll(), Collector()
    found = detection.found[0] if detection.found else None
    seen: ServerSample | None = None
    loaded = Loaded()
    pids: tuple[int, ...] = ()
    asked: object = None
    try:
        collector.snapshot()
        while True:
            run, progress = (None, None) if found is not None or server else _working(journal)
            of = found or (run and run.id, progress and (progress.url, progress.candidate))
            after = poll.latest
            if of != asked or (seen is not None and after is not None and changed_models(seen, after)):
                loaded, asked = _look_up(found, run, progress, journal), of
                pids = (progress.pid,) if progress is not None and progress.pid else ()
            seen = after
            poll.watch(loaded.server)
            time.sleep(SETTLE_S)
            collector.server = poll if loaded.running else None
            collector.engine_pids = pids
            snapshot = collector.snapshot()
            parts = vram_parts(snapshot.gpus, loaded, snapshot.server, pids)
            roof = decode_roof(snapshot.gpus, loaded, snapshot.server, parts)
            runs = [one for one in journal.runs(limit=20) if one.state in _ACTIVE]
            now = Now(loaded, snapshot, parts, roof, runs)
            problem = loaded.problem or ("" if loaded.running else explain(detection))
            if json:
                emit_json(_facts(now) | {"problem": problem or None}, one_line=watch)
            else:
                if watch and sys.stdout.isatty():
                    sys.stdout.write("\x1b[H\x1b[J")
                if problem:
                    emit(problem)
                _emit(now)
            sys.stdout.flush()
            if not watch:
                # Whoever names a server asks for that one; else this machine is told of, with or without one.
                if server and found is None:
                    raise typer.Exit(3)
                return
    except KeyboardInterrupt:
        return
    finally:
        collector.close()
        poll.close()
        journal.close()


def _working(journal: Journal) -> tuple[Run | None, Progress | None]:
    """The run whose worker has started a server of its own: nobody finds it by its port."""
    for run in journal.runs(limit=20):
        progress = journal.progress(run.id) if run.state in {"running", "paused"} else None
        if progress is not None and progress.url:
            return run, progress
    return None, None


def _look_up(found: ServerInfo | None, run: Run | None, progress: Progress | None, journal: Journal) -> Loaded:
    from chimera.telemetry.loaded import Loaded, look_up

    if found is not None:
        loaded = asyncio.run(look_up(Target(found.kind, url=found.url)))
        return loaded if loaded.server is not None else replace(loaded, server=found)
    if run is None or progress is None:
        return Loaded()
    loaded = asyncio.run(look_up(run.target))
    server = replace(run.server or ServerInfo(run.target.kind, ""), url=progress.url or "")
    effective = journal.effective(run.id, progress.candidate) if progress.candidate else None
    return replace(loaded, server=server, effective=effective)


def _facts(now: Now) -> dict[str, Any]:
    from chimera.runner.sampler import encode
    from chimera.store.document import run_document

    seen = encode(now.snapshot)
    server, model = now.loaded.server, now.loaded.model
    return {
        "schema_version": 1,
        **seen,
        "at": datetime.now(UTC).isoformat(),
        "server": {"kind": server.kind, "url": server.url, "version": server.version, "now": seen.get("server")}
        if server is not None and server.url
        else None,
        "model": {
            "name": model.name,
            "effective": now.loaded.options.as_dict(),
            "roof_tok_s": _value(now.roof),
            "mbu": now.mbu,
        }
        if model is not None
        else None,
        "vram": {
            uuid: {name: _value(value) if name.endswith("_bytes") else value for name, value in _fields(parts).items()}
            for uuid, parts in now.parts.items()
        },
        "runs": [run_document(run) for run in now.runs],
    }


def _fields(parts: VramParts) -> dict[str, Any]:
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def _value(reading: Reading) -> float | dict[str, Any]:
    """A number, or why there is none, as the journal writes it."""
    if not isinstance(reading, Missing):
        return reading
    return {key: value for key, value in asdict(reading).items() if value is not None}


def _emit(now: Now) -> None:
    server, model = now.loaded.server, now.loaded.model
    if server is not None and server.url:
        emit(f"server  {plain(server.title)}  {plain(server.url)}")
        _emit_server(now)
    if model is not None:
        emit(f"model   {plain(model.name)}  {now.loaded.options}")
        mbu = f", {now.mbu:.0%} of it used (MBU)" if now.mbu is not None else ""
        emit(f"        roof by memory bandwidth {_show(now.roof, '{:.1f} tok/s'.format)}{mbu}")
    state = now.snapshot.gpus
    if state.missing is not None:
        emit(f"gpu     none: {state.missing}")
    for info, gpu in zip(state.infos, state.samples, strict=False):
        _emit_gpu(info, gpu, now.parts.get(info.uuid))
    host = now.snapshot.host
    emit(
        f"host    CPU {_show(host.cpu_percent, '{:.0f} %'.format)}, load {_show(host.load_1m, '{:.2f}'.format)}, "
        f"memory {_show(host.memory_used_bytes, _gib)} of {_show(host.memory_total_bytes, _gib)}"
    )
    words = [f"{plain(each.name)} {each.cpu_percent / 100:.1f} cores" for each in host.foreign]
    words += ["on battery"] if host.on_battery else []
    for name, limit in (
        ("cores allowed", _show(host.cpu_limit_cores, "{:.1f}".format)),
        ("of memory allowed", _show(host.memory_limit_bytes, _gib)),
    ):
        words += [] if limit.startswith("n/a") else [f"{limit} {name}"]
    if words:
        emit(f"        {', '.join(words)}")
    for run in now.runs:
        what = " ".join(plain(word) for word in (run.preset or run.kind, run.name) if word)
        emit(f"run     {run.id}  {what}  {run.state}")
    if not now.runs:
        emit("run     none goes on")


def _emit_server(now: Now) -> None:
    sample = now.snapshot.server
    if sample is None:
        return
    for model in () if isinstance(sample.models, Missing) else sample.models:
        size, on_gpus = _show(model.size_bytes, _gib), _show(model.vram_bytes, _gib)
        emit(f"        {model.name}  {size} in memory, {on_gpus} on GPUs")
    emit(
        f"        {_show(sample.rate, '{:.1f} tok/s'.format)} for all clients, busy {_show(sample.busy)}, "
        f"waiting {_show(sample.waiting)}{f'  ({sample.via})' if sample.via else ''}"
    )
    if number(sample.ttft_s) is not None:
        emit(f"        newest time to first token {_show(sample.ttft_s, '{:.2f} s'.format)}")
    if sample.note:
        emit(f"        {plain(sample.note)}")


def _emit_gpu(info: GpuInfo, gpu: GpuSample, parts: VramParts | None) -> None:
    from chimera.telemetry.reasons import BY_ID

    emit(f"gpu {info.index}   {plain(info.name)}{'  (MIG)' if info.mig else ''}")
    if gpu.lost is not None:
        emit(f"        {gpu.lost}")
        return
    emit(
        f"        {_show(gpu.utilization, '{:.0f} %'.format)} busy, "
        f"VRAM {_show(gpu.vram_used_bytes, _gib)} of {_show(gpu.vram_total_bytes, _gib)}"
    )
    emit(
        f"        {_show(gpu.temperature_c, '{:.0f} C'.format)}, {_show(gpu.margin_c, '{:.0f} C left'.format)}, "
        f"{_show(gpu.power_w, '{:.0f} W'.format)} of {_show(gpu.power_limit_w, '{:.0f} W'.format)}, "
        f"SM {_show(gpu.sm_mhz, '{:.0f}'.format)} of {_show(info.max_sm_mhz, '{:.0f} MHz'.format)}"
    )
    if parts is not None:
        emit(f"        VRAM by part: {_parts(parts)}")
    for throttle in gpu.throttles:
        known = BY_ID.get(throttle.reason)
        emit(f"        {known.words if known else throttle.reason}: {throttle.share:.0%} of the last second")


def _parts(parts: VramParts) -> str:
    """`~` marks what was derived, as on the screens."""
    model = (("weights", parts.weights_bytes), ("KV", parts.kv_bytes), ("compute", parts.compute_bytes))
    held = "" if parts.held_source == "measured" else "~"
    words = [f"{name} ~{_gib(value)}" for name, reading in model if (value := number(reading))]
    if number(parts.weights_bytes) is None:
        words = [f"model {_show(parts.engine_bytes, lambda value: held + _gib(value))}", f"({parts.weights_bytes})"]
    words.append(f"others {_show(parts.foreign_bytes, lambda value: held + _gib(value))}")
    return ", ".join(words)


def _show(reading: Reading, how: Any = "{:.0f}".format) -> str:
    return f"n/a ({reading})" if isinstance(reading, Missing) else str(how(reading))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
