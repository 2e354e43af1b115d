"""chimera doctor: what is wrong, the numbers that show it, and what helps."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chimera.domain.finding import SEVERITIES, Evidence, Finding, Severity
from chimera.domain.run import Run, Target
from chimera.domain.server import ServerInfo
from chimera.domain.text import plain
from chimera.errors import BackendUnavailable, ConfigError

from . import narrate
from .options import Embedded, Json, Model, Server, Yes
from .output import emit, emit_json, emit_table, say
from .targets import find_target
from .work import follow, show_run

if TYPE_CHECKING:
    from chimera.backends.detect import Detection
    from chimera.runner.cure import Cure
    from chimera.runner.doctor import Examination, LiveLook
    from chimera.store.journal import Journal

TICK_S = 1.0
EVERY = 2
"""Readings between two looks of `--watch`."""
_SHOWN = 12
"""Rows of the thermal check's table."""
_ACTIVE = ("running", "paused", "queued")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor(
    ref: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run, instead of this moment and the last run.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look on, and tell what changes; with --json one line a look.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="How long to look before judging.")] = 5.0,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the evidence for a bug report: FILE and FILE.json.")
    ] = None,
    apply: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Try remedy N of the run: before and after, with a verdict.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Of --apply: each measures before and after once; 8 where they can count.")
    ] = None,
    thermal: Annotated[
        bool, typer.Option("--thermal", help="Load the server for some minutes and judge heat.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="Length of the thermal check.")] = 10.0,
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    yes: Yes = False,
    detach: Annotated[bool, typer.Option("--detach", help="With --apply or --thermal: start it and return.")] = False,
    json: Json = False,
) -> None:
    """What is wrong, with the evidence and what helps; exit code 1 where it is a warning or worse."""
    from chimera.store.journal import Journal

    if thermal and (apply is not None or ref is not None or watch):
        raise ConfigError("--thermal is a run of its own: leave RUN, --apply and --watch out.")
    if apply is not None and watch:
        raise ConfigError("--apply starts a run; `chimera attach` watches it.")
    journal = Journal.open()
    try:
        if thermal:
            target = find_target(server, model, embedded=embedded, yes=yes)
            _thermal(journal, target, minutes, detach=detach, json=json)
        elif apply is not None:
            _apply(journal, journal.run(ref or "last"), apply, rounds, yes=yes, detach=detach, json=json)
        elif ref is not None:
            code = _of_run(journal, journal.run(ref), watch=watch, bundle=bundle, json=json)
            raise typer.Exit(code)
        else:
            place = _target(server, model, embedded)
            raise typer.Exit(_now(journal, place, seconds, watch=watch, bundle=bundle, json=json))
    finally:
        journal.close()


# -- a run -------------------------------------------------------------------------------------------------------------


def _of_run(journal: Journal, run: Run, *, watch: bool, bundle: Path | None, json: bool) -> int:
    from chimera.runner.checkup import WINDOW_S
    from chimera.runner.doctor import examine_run

    sick = False
    show = _Watch() if watch else _Show()
    try:
        while True:
            run = journal.run(run.id)
            goes_on = watch and run.state in _ACTIVE
            found = examine_run(journal, run, window_s=WINDOW_S if goes_on else None)
            sick = found.sick
            if bundle is not None:
                _bundle([found], bundle)
            show([found], json=json)
            if not goes_on:
                return int(sick)
            time.sleep(EVERY * TICK_S)
    except KeyboardInterrupt:
        return int(sick)


def _apply(journal: Journal, run: Run, number: int, rounds: int | None, *, yes: bool, detach: bool, json: bool) -> None:
    from chimera.runner.cure import create_cure, cures
    from chimera.runner.doctor import examine_run

    every = cures(examine_run(journal, run).findings)
    cure = next((one for one in every if one.number == number), None)
    if cure is None:
        have = f"it has {len(every)}" if every else "it has none that is a setting"
        raise ConfigError(f"--apply {number}: run {run.id} has no such remedy; {have}. See `chimera doctor {run.id}`.")
    say(f"{plain(cure.finding.title)}")
    say(f"trying {cure.options}: {plain(cure.remedy.text)}")
    follow(journal, create_cure(journal, run, cure, yes=yes, rounds=rounds), detach=detach, json=json)


def _thermal(journal: Journal, target: Target, minutes: float, *, detach: bool, json: bool) -> None:
    from chimera.runner.doctor import examine_run
    from chimera.runner.evidence import read_samples
    from chimera.runner.launch import start_worker
    from chimera.runner.thermal import create_thermal, points_of

    created = create_thermal(journal, target, minutes)
    if detach:
        follow(journal, created, detach=True, json=json)
        return
    ended, code = narrate.follow_to_end(journal, created.id, start_worker(journal, created.id))
    show_run(journal, ended, json, measurements=False)
    rows = journal.measurements(ended.id)
    if rows and not json:
        began = rows[0].measurement.started_at
        samples = read_samples(journal, ended.id, after=began)
        # Without a GPU the rate is what there is to show.
        infos = samples[-1].snapshot.gpus.infos if samples else ()
        uuids: list[str | None] = [info.uuid for info in infos] or [None]
        for uuid in uuids if samples else []:
            points = points_of(samples, began, uuid)
            emit()
            emit_table(
                ["s", "°C", "SM MHz", "W", "held by heat", "tok/s"],
                [
                    (
                        f"{one.at_s:.0f}",
                        _number(one.temperature_c),
                        _number(one.sm_mhz),
                        _number(one.power_w),
                        None if one.throttle_share is None else f"{one.throttle_share:.0%}",
                        _number(one.tok_s),
                    )
                    for one in points[:: max(1, len(points) // _SHOWN)]
                ],
            )
    raise typer.Exit(code or int(examine_run(journal, ended).sick))


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


# -- now ---------------------------------------------------------------------------------------------------------------


def _target(server: str | None, model: str | None, embedded: bool) -> tuple[Target | None, tuple[ServerInfo, ...]]:
    """What to look at, and the other servers of this host; None where nothing answers: GPU and host can be judged."""
    from chimera.backends.detect import detect, explain

    if embedded:
        return find_target(server, model, embedded=True), ()
    detection: Detection = asyncio.run(detect(server))
    if not detection.found:
        if server is not None:
            raise BackendUnavailable(explain(detection))
        say(explain(detection))
        return None, ()
    first, *others = detection.found
    return Target(first.kind, url=first.url, model=model), tuple(others)


def _now(
    journal: Journal,
    place: tuple[Target | None, tuple[ServerInfo, ...]],
    seconds: float,
    *,
    watch: bool,
    bundle: Path | None,
    json: bool,
) -> int:
    from chimera.runner.checkup import WINDOW_S
    from chimera.runner.doctor import examine_run, last_run

    target, others = place
    look = _look(journal, target, others)
    sick = False
    show = _Watch() if watch else _Show()
    try:
        look.tick()
        count = max(1, round(seconds / TICK_S))
        while True:
            for _ in range(count):
                time.sleep(TICK_S)
                look.tick()
            count = EVERY
            found = [look.examine()]
            run = last_run(journal, target)
            if run is not None:
                found.append(examine_run(journal, run, window_s=WINDOW_S if run.state in _ACTIVE else None))
            sick = any(one.sick for one in found)
            if bundle is not None:
                _bundle(found, bundle)
            show(found, json=json)
            if not watch:
                return int(sick)
    except KeyboardInterrupt:
        return int(sick)
    finally:
        look.close()


def _look(journal: Journal, target: Target | None, others: tuple[ServerInfo, ...]) -> LiveLook:
    from chimera.runner.doctor import LiveLook, installed_on, past_of
    from chimera.runner.worker import host_facts
    from chimera.telemetry.loaded import Loaded, look_up

    loaded = asyncio.run(look_up(target)) if target is not None else Loaded()
    return LiveLook(
        loaded,
        history=past_of(journal, loaded),
        installed=asyncio.run(installed_on(target)) if target is not None else (),
        neighbours=others,
        host=host_facts(),
    )


def _bundle(found: list[Examination], path: Path) -> None:
    from chimera.runner.doctor import bundle, write_bundle
    from chimera.runner.worker import host_facts

    text, data = write_bundle(path, bundle(found, host_facts()))
    say(f"evidence written to {text} and {data}")


# -- showing -----------------------------------------------------------------------------------------------------------


class _Show:
    """Shows one look."""

    def __call__(self, found: list[Examination], *, json: bool) -> None:
        """Print it."""
        if json:
            emit_json(_facts(found))
        else:
            _emit(found)


class _Watch(_Show):
    """Shows one look after the other: a terminal is painted anew, elsewhere only what changed is added.

    With `--json` each look is a line, changed or not, so that a reader can tell quiet from dead.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[Finding, Run | None]] | None = None

    def __call__(self, found: list[Examination], *, json: bool) -> None:
        """Print what is new of it."""
        if json:
            emit_json(_facts(found), one_line=True)
            return
        rows, before = _worst_first(found), self._rows
        self._rows = rows
        if sys.stdout.isatty():
            if rows != before:
                sys.stdout.write("\x1b[H\x1b[J")
                _emit(found)
        elif before is None:
            _emit(found)
        else:
            self._changes(found, rows, before)
        sys.stdout.flush()

    def _changes(
        self,
        found: list[Examination],
        rows: list[tuple[Finding, Run | None]],
        before: list[tuple[Finding, Run | None]],
    ) -> None:
        """Findings that came, or are judged otherwise, in full; those that went, by their titles."""
        was, now = ({_key(*row): row for row in each} for each in (before, rows))
        fresh = [row for key, row in now.items() if key not in was or _judged(row[0]) != _judged(was[key][0])]
        gone = [row for key, row in was.items() if key not in now]
        if fresh or gone:
            emit(f"\n{datetime.now().astimezone():%H:%M:%S}")
        for finding, run in fresh:
            _emit_finding(finding, run, _numbers(found, run))
        for finding, _ in gone:
            emit(f"\nno longer: {plain(finding.title)}  ({finding.code})")


def _key(finding: Finding, run: Run | None) -> tuple[object, ...]:
    return (run.id if run is not None else None, finding.code, finding.subject, finding.session)


def _judged(finding: Finding) -> tuple[object, ...]:
    """What a finding says, without figures that move from look to look."""
    return (finding.severity, finding.cause)


def _numbers(found: list[Examination], run: Run | None) -> dict[int, Cure]:
    """The remedies of a run that can be tried, by their identity."""
    from chimera.runner.cure import cures

    return {} if run is None else {id(one.remedy): one for one in cures(_findings_of(found, run))}


def _facts(found: list[Examination]) -> dict[str, Any]:
    """The document of `--json`: what was looked at, and the findings worst first, each with the run it is of."""
    from chimera.store.codec import clean
    from chimera.store.document import iso, run_document

    last = found[-1]
    server = next((one.evidence.server for one in found if one.evidence.server is not None), None)
    infos = next((one.evidence.gpu_infos for one in found if one.evidence.gpu_infos), ())
    missing = found[0].evidence.gpu_missing
    rows = []
    for finding, run in _worst_first(found):
        numbers = _numbers(found, run)
        remedies = [
            {**asdict(one), "apply": cure.number if (cure := numbers.get(id(one))) else None}
            for one in finding.remedies
        ]
        rows.append(
            {
                **asdict(finding),
                "since": iso(finding.since),
                "run": run.id if run is not None else None,
                "remedies": remedies,
            }
        )
    document: dict[str, Any] = clean(
        {
            "schema_version": 1,
            "at": datetime.now(UTC).isoformat(),
            "server": None if server is None else {**asdict(server), "title": server.title},
            "gpus": [{"uuid": one.uuid, "name": one.name, "driver": one.driver} for one in infos],
            "no_gpu": None if missing is None else str(missing),
            "run": run_document(last.run) if last.run is not None else None,
            "findings": rows,
        }
    )
    return document


def _worst_first(found: list[Examination]) -> list[tuple[Finding, Run | None]]:
    """All findings; one that is seen now is not told a second time of the last run."""
    rows: list[tuple[Finding, Run | None]] = []
    told: set[tuple[str, str]] = set()
    for one in found:
        rows += [(finding, one.run) for finding in one.findings if (finding.code, finding.subject) not in told]
        told |= {(finding.code, finding.subject) for finding in one.findings}
    return sorted(rows, key=lambda row: -SEVERITIES.index(row[0].severity))


def _findings_of(found: list[Examination], run: Run) -> tuple[Finding, ...]:
    return next((one.findings for one in found if one.run is not None and one.run.id == run.id), ())


_WORDS: dict[Severity, str] = {"info": "info", "notice": "notice", "warn": "warning", "error": "error"}


def _emit(found: list[Examination]) -> None:
    server = next((one.evidence.server for one in found if one.evidence.server is not None), None)
    if server is not None:
        emit(f"server  {plain(server.title)}  {plain(server.url)}".rstrip())
    evidence = next((one.evidence for one in found if one.evidence.gpu_infos), found[0].evidence)
    for info in evidence.gpu_infos:
        emit(f"gpu {info.index}   {plain(info.name)}, driver {plain(info.driver) or 'unknown'}")
    if not evidence.gpu_infos:
        emit(f"gpu     none: {evidence.gpu_missing or 'not looked at'}")
    for one in found:
        if one.run is not None:
            emit(f"run     {one.run.id}  {one.run.preset or one.run.kind}  {one.run.state}")
            if one.run.error:
                emit(f"        {plain(one.run.error)}")
    rows = _worst_first(found)
    if not rows and not any(one.run is not None and one.run.state == "failed" for one in found):
        emit("\nNothing was found.")
    for finding, run in rows:
        _emit_finding(finding, run, _numbers(found, run))


def _emit_finding(finding: Finding, run: Run | None, numbers: dict[int, Cure]) -> None:
    since = "" if finding.since is None else f", since {datetime.fromtimestamp(finding.since).astimezone():%H:%M:%S}"
    of = f", run {run.id}" if run is not None else ""
    emit(f"\n{_WORDS[finding.severity]}: {plain(finding.title)}  ({finding.code}{of}{since})")
    for piece in finding.evidence:
        emit(f"    {_piece(piece)}")
    for cause in finding.causes:
        if cause.speaks_for:
            share = "" if cause.share is None else f" ({cause.share:.0%})"
            emit(f"  because {plain(cause.title)}{share}")
        for piece in cause.speaks_against:
            emit(f"    against it: {_piece(piece)}")
        if cause.check:
            emit(f"  to tell whether {plain(cause.title)}: {plain(cause.check)}")
    for remedy in finding.remedies:
        cure = numbers.get(id(remedy))
        number = f" {cure.number}" if cure is not None else ""
        emit(f"  remedy{number}: {plain(remedy.text)}")
        if cure is not None and run is not None:
            emit(f"    {cure.options}: `chimera doctor {run.id} --apply {cure.number}` measures before and after")


def _piece(piece: Evidence) -> str:
    unit = f" {piece.unit}" if piece.unit else ""
    text = f"{plain(piece.what)}: {_value(piece.value)}{unit}"
    if piece.threshold is not None:
        text += f" (limit {_value(piece.threshold)})"
    if piece.window_s is not None:
        text += f" over {piece.window_s:.0f} s"
    return text + f", {piece.source}" + (f" by {plain(piece.via)}" if piece.via else "")


def _value(value: float | str | None) -> str:
    if value is None:
        return "unknown"
    return plain(value) if isinstance(value, str) else f"{value:.4g}"
