"""A run as a document for other programs, and its exports.

Times are ISO 8601 in UTC, unknown figures are None and never 0 or NaN. A figure of a trial is the median over its
sessions, a session's value being the median of its valid requests; `unit` says so (`session`), or that the trial has
one session and the figure is over that one's requests (`request`).
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, cast

from chimera.domain.finding import Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import OPTION_NAMES
from chimera.domain.readings import Source
from chimera.domain.run import Run, Session, Trial
from chimera.domain.server import Effective
from chimera.domain.text import plain
from chimera.domain.verdict import Verdict

from .blame import VRAM_FACT, blame, power_view
from .codec import clean
from .journal import Journal
from .records import Row

SCHEMA_VERSION = 1

CSV_COLUMNS = (
    "order", "session", "round", "phase", "role", "started_at", "ttft_s", "queue_s", "load_s", "prefill_s", "decode_s",
    "other_s", "total_s", "prompt_tokens", "cached_tokens", "completion_tokens", "decode_tok_s", "client_decode_tok_s",
    "finish_reason", "cold", "void_reason", "error", "agent", "instance", "candidate",
)  # fmt: skip
"""After the option columns; the import reads the same names."""
SESSION_COLUMNS = (
    VRAM_FACT,
    "energy_j_per_token",
    "throttled_share",
    "start_c",
    "failure",
    "same_as",
    "foreign_gpu_percent",
)
"""What verdicts need of a session beside its requests, as in its facts; a column is there where any session has it."""

WATCHING_FACTS = ("own_cpu_percent", "nvml_calls_s")
"""What the watching itself took of a session, as in its facts: percent of a core, and calls of the driver a second."""

_RESULT: dict[str, Any] = {"recommendation": None, "pareto": [], "drift": None, "validation": []}
"""What a comparing run has shown beside its verdicts, as its worker last wrote it."""

Figure = Callable[[Measurement], float | None]
_FIGURES: dict[str, Figure] = {
    "decode_tok_s": lambda one: one.decode_tok_s,
    "client_decode_tok_s": lambda one: one.client_decode_tok_s,
    "prefill_tok_s": lambda one: one.prefill_tok_s,
    "effective_tok_s": lambda one: one.effective_tok_s,
    "ttft_s": lambda one: one.ttft_s,
    "total_s": lambda one: one.total_s,
    "queue_s": lambda one: one.queue_s,
    "load_s": lambda one: one.load_s,
    "prefill_s": lambda one: one.prefill_s,
    "decode_s": lambda one: one.decode_s,
    "other_s": lambda one: one.other_s,
}


def document(journal: Journal, run: Run, *, measurements: bool = False) -> dict[str, Any]:
    """The run with its counts, trials, verdicts and findings, and with every request where asked for; JSON-able.

    `counts`: `valid` requests count; `void` ones do not, `void_reasons` says why, `interrupted` of them by the end of
    a worker; `warmup` ones were discarded by plan; `cold` ones included a load, whatever else they are.
    """
    rows = journal.measurements(run.id)
    sessions = journal.sessions(run.id)
    all_of_them = [row.measurement for row in rows]
    reasons = Counter(one.void_reason for one in all_of_them if one.void_reason is not None)
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": run_document(run),
        "counts": {
            "valid": sum(one.valid for one in all_of_them),
            "void": reasons.total(),
            "cold": sum(one.cold for one in all_of_them),
            "interrupted": reasons["interrupted"],
            "warmup": sum(one.role == "warmup" for one in all_of_them),
        },
        "void_reasons": dict(sorted(reasons.items())),
        "trials": [
            _trial(
                trial,
                journal.effective(run.id, trial.candidate),
                [session for session in sessions if session.candidate == trial.candidate],
                [row for row in rows if row.candidate == trial.candidate],
            )
            for trial in journal.trials(run.id)
        ],
        "verdicts": [_verdict(verdict) for verdict in journal.verdicts(run.id)],
        "findings": [_finding(finding) for finding in journal.findings(run.id)],
    }
    found |= {"standing": run.plan.get("standing"), **_RESULT, **run.plan.get("result", {})}
    for one in found["trials"]:
        one["same_as"] = ((run.plan.get("standing") or {}).get("same") or {}).get(one["candidate"])
    heat = [one.facts["thermal"] for one in sessions if "thermal" in one.facts]
    if heat:
        found["thermal"] = heat[-1]
    if watching := {
        name: max(known)
        for name in WATCHING_FACTS
        if (known := [one.facts[name] for one in sessions if one.facts.get(name) is not None])
    }:
        found["watching"] = watching
    found["power"] = power_view(run)
    if measurements:
        found["sessions"] = [_session(one, [row for row in rows if row.session == one.seq]) for one in sessions]
        found["measurements"] = [_measurement(row) for row in rows]
    return cast("dict[str, Any]", clean(found))


def run_document(run: Run) -> dict[str, Any]:
    """What is known of a run without its measurements; JSON-able."""
    found: dict[str, Any] = {
        "id": run.id,
        "kind": run.kind,
        "preset": run.preset,
        "name": run.name,
        "state": run.state,
        "seed": run.seed,
        "created_at": iso(run.created_at),
        "started_at": iso(run.started_at),
        "ended_at": iso(run.ended_at),
        "error": run.error,
        "target": asdict(run.target),
        "server": None if run.server is None else {**asdict(run.server), "title": run.server.title},
        "model": None if run.model is None else asdict(run.model),
        "workload": run.workload.as_dict(),
        "plan": run.plan,
        "host": run.host,
        "gpus": run.gpus,
    }
    return cast("dict[str, Any]", clean(found))


def iso(at: float | None) -> str | None:
    """A wall clock as ISO 8601 in UTC, to the microsecond."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _trial(trial: Trial, effective: Effective | None, sessions: list[Session], rows: list[Row]) -> dict[str, Any]:
    # While the first session is still running its requests are shown; after that only whole sessions count.
    counted = [session for session in sessions if session.state == "done"]
    shown = counted or [session for session in sessions if session.state == "running"]
    groups = [
        [row.measurement for row in rows if row.session == session.seq and row.measurement.valid] for session in shown
    ]
    return {
        "candidate": trial.candidate,
        "role": trial.role,
        "requested": trial.requested.as_dict(),
        "effective": None if effective is None else effective.options.as_dict(),
        "sources": {} if effective is None else effective.sources,
        "unread": () if effective is None else effective.unread,
        "merged": trial.merged,
        "notes": tuple(dict.fromkeys((*trial.notes, *(() if effective is None else effective.notes)))),
        "sessions": len(counted),
        "void_sessions": sum(session.state == "void" for session in sessions),
        **{name: _figure(groups, figure) for name, figure in _FIGURES.items()},
        "other_s": _figure(groups, _FIGURES["other_s"]) | {"cv": None},  # a rest about 0: its mean says nothing
        "vram_bytes": _vram(shown, effective),
        "energy_j_per_token": statistic(
            [float(one) for session in shown if (one := session.facts.get("energy_j_per_token"))], "session"
        ),
    }


def _figure(groups: Sequence[Sequence[Measurement]], figure: Figure) -> dict[str, Any]:
    values = [[value for one in group if (value := figure(one)) is not None] for group in groups]
    if len(groups) == 1:
        return statistic(values[0], "request")
    return statistic([statistics.median(group) for group in values if group], "session")


def _vram(sessions: Iterable[Session], effective: Effective | None) -> dict[str, Any]:
    seen = [session.facts.get(VRAM_FACT) for session in sessions]
    peaks = [float(value) for value in seen if isinstance(value, int | float)]
    if not peaks and effective is not None and effective.vram_bytes is not None:
        peaks = [float(effective.vram_bytes)]
    return statistic(peaks, "session")


def statistic(values: Sequence[float], unit: str, source: Source = "measured") -> dict[str, Any]:
    """Median and coefficient of variation (sample standard deviation / mean; None for fewer than two values)."""
    if not values:
        return {"median": None, "cv": None, "n": 0, "source": "unknown", "unit": unit}
    mean = statistics.fmean(values)
    cv = statistics.stdev(values) / mean if len(values) > 1 and mean > 0 else None
    return {"median": statistics.median(values), "cv": cv, "n": len(values), "source": source, "unit": unit}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)


def _finding(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "since": iso(finding.since)}


def _session(session: Session, rows: list[Row]) -> dict[str, Any]:
    times = {"started_at": iso(session.started_at), "ended_at": iso(session.ended_at)}
    return {**asdict(session), **times, "blame": blame(session, [row.measurement for row in rows])}


def _measurement(row: Row) -> dict[str, Any]:
    place = {"trial": row.candidate, "session": row.session, "round": row.round, "phase": row.phase}
    return {**place, **asdict(row.measurement), "started_at": iso(row.measurement.started_at)}


def export_csv(journal: Journal, run: Run) -> str:
    """One line a request, in the columns that `chimera runs import` reads; empty = unknown, or not asked for.

    A void session without any request (its load failed, or was that of another candidate) has a line of its own.
    """
    requested = {trial.candidate: trial.requested.as_dict() for trial in journal.trials(run.id)}
    asked = [name for name in OPTION_NAMES if any(name in options for options in requested.values())]
    sessions = {session.seq: session for session in journal.sessions(run.id)}
    told = [name for name in SESSION_COLUMNS if any(one.facts.get(name) is not None for one in sessions.values())]
    rows = journal.measurements(run.id)
    lines = [(row.session, row.candidate, _measurement(row)) for row in rows]
    seen = {row.session for row in rows}
    lines += [(one.seq, one.candidate, _empty(one)) for one in sessions.values() if _is_empty(one, seen)]
    lines.sort(key=lambda line: line[0])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*asked, *CSV_COLUMNS, *told])
    for order, (seq, candidate, found) in enumerate(lines, 1):
        values = {"order": order, "candidate": candidate, **found}
        options, facts = requested.get(candidate, {}), sessions[seq].facts
        writer.writerow(
            [_cell(options.get(name)) for name in asked]
            + [_cell(values.get(name)) for name in CSV_COLUMNS]
            + [_cell(facts.get(name)) for name in told]
        )
    return out.getvalue()


def _is_empty(session: Session, seen: set[int]) -> bool:
    return (
        session.state == "void"
        and session.seq not in seen
        and any(session.facts.get(name) is not None for name in ("failure", "same_as"))
    )


def _empty(session: Session) -> dict[str, Any]:
    place = {"session": session.seq, "round": session.round, "phase": session.phase}
    return {
        **place,
        "started_at": iso(session.started_at),
        "void_reason": session.void_reason,
        "error": session.facts.get("error"),
    }


def _cell(value: object) -> object:
    value = clean(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return plain(value)
    return "" if value is None else value


def export_benchstat(journal: Journal, run: Run) -> str:
    """Go's benchmark format, one line a valid request; `benchstat -col /candidate` then compares candidates."""
    requested = {trial.candidate: trial.requested.as_dict() for trial in journal.trials(run.id)}
    lines = [f"chimera-run: {run.id}"]
    if run.server is not None:
        lines.append(f"server: {_word(run.server.title, spaces=True)}")
    if run.model is not None:
        lines.append(f"model: {_word(run.model.name, spaces=True)}")
    lines += [f"Unit {unit} better=higher" for unit in ("decode-tok/s", "client-decode-tok/s", "prefill-tok/s")]
    for row in journal.measurements(run.id):
        one = row.measurement
        if not one.valid:
            continue
        options = requested.get(row.candidate, {})
        name = "/".join(
            ["BenchmarkRequest", f"candidate={_word(row.candidate)}"]
            + [f"{key}={_word(str(value))}" for key, value in options.items()]
        )
        figures = (
            (one.total_s * 1e9, "ns/op"),
            (None if one.ttft_s is None else one.ttft_s * 1e9, "ttft-ns/op"),
            (one.decode_tok_s, "decode-tok/s"),
            (one.client_decode_tok_s, "client-decode-tok/s"),
            (one.prefill_tok_s, "prefill-tok/s"),
        )
        told = [f"{value:.10g} {unit}" for value, unit in figures if value is not None]
        lines.append(" ".join([name, "1", *told]))
    return "\n".join(lines) + "\n"


def _word(text: str, *, spaces: bool = False) -> str:
    """Text as it may stand in a benchmark's name, or (with spaces) behind a key."""
    return plain(text) if spaces else re.sub(r"[\s/]", "_", plain(text))
