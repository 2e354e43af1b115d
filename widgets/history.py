"""Runs of the past: a line each, and one of them in full."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from chimera.domain.finding import SEVERITIES
from chimera.domain.run import Run
from chimera.domain.text import plain
from chimera.domain.verdict import Metric, VerdictWord, of_itself

from . import format
from .listing import facts
from .log import SIGNS
from .progress import STATES
from .rows import EMPTY, Line, Row, Tone, wrap
from .trials import VERDICTS

DAY_S = 86_400
_FIXED = 6 + 13 + 9 + 10
_COUNTS = 9
METRICS: dict[Metric, str] = {
    "decode_tok_s": "tok/s",
    "ttft_s": "TTFT",
    "completion_s": "completion",
    "vram_bytes": "VRAM",
    "energy_j_per_token": "J/token",
    "aggregate_tok_s": "tok/s together",
    "worst_ttft_s": "worst TTFT",
}
_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("decode_tok_s", "decode", "tok/s, server's clock"),
    ("client_decode_tok_s", "decode", "tok/s, client's clock"),
    ("prefill_tok_s", "prefill", "tok/s"),
    ("ttft_s", "TTFT", ""),
    ("other_s", "rest", "HTTP and first sample, in no other part"),
    ("total_s", "request", "from its sending to its end"),
)


def when(at: float, now: float) -> str:
    """A moment in the past: the time of today, else the day with it, else the date."""
    today, then = time.localtime(now), time.localtime(at)
    if (today.tm_year, today.tm_yday) == (then.tm_year, then.tm_yday):
        return time.strftime("%H:%M:%S", then)
    return time.strftime("%d %b %H:%M" if today.tm_year == then.tm_year else "%Y-%m-%d", then)


def run_head(width: int) -> Row:
    """The heading of the list."""
    line = Line(width)
    for text, columns in (("run", 6), ("started", 13), ("kind", 9), ("state", 10)):
        line.add(text, "muted", columns)
    for text, columns in zip(("preset, name", "model"), _rest(width), strict=True):
        line.add(text, "muted", columns).gap(1)
    return line.add("ok+void", "muted", _COUNTS - 2, "right").row()


def run_row(run: Run, counts: tuple[int, int] | None, now: float, width: int) -> Row:
    """A run in one line; its counts are None until they were asked for."""
    words, tone = STATES[run.state]
    line = Line(width).add(run.id, "strong", 6).add(when(run.created_at, now), "muted", 13).add(run.kind, "text", 9)
    line.add(words.split(",")[0], tone, 10)
    model = run.model.name if run.model else run.target.model or run.target.kind
    about, name = _rest(width)
    line.add(run.name or run.preset or "", "text", about).gap(1).add(model, "muted", name).gap(1)
    if counts is None:
        return line.add("…", "muted", _COUNTS - 2, "right").row()
    valid, void = counts
    text = f"{valid}+{void}" if void else f"{valid}"
    return line.add(text, "warn" if void and not valid else "text", _COUNTS - 2, "right").row()


def _rest(width: int) -> tuple[int, int]:
    left = max(width - _FIXED - _COUNTS, 10)
    about = left * 5 // 8
    return about, left - about


def run_page(told: Mapping[str, Any], width: int) -> list[Row]:
    """A run in full, from its document: figures, verdicts, counts, findings."""
    run, counts = told["run"], told["counts"]
    words, tone = STATES[run["state"]]
    head = Line(width).add(f"{run['kind']} {run['id']}", "strong").gap(2).add(words, tone)
    rows = [head.row(), *facts(_about(run), width)]
    rows += _void(told, counts, width)
    several = len(told["trials"]) > 1
    against: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in told["verdicts"]:
        against.setdefault(verdict["candidate"], []).append(verdict)
    for trial in told["trials"]:
        rows += [EMPTY, *_trial(trial, against.get(trial["candidate"], ()), width, several=several)]
    for candidate, reason in (run["plan"].get("ruled_out") or {}).items():
        rows += facts([(candidate, f"was not run: {reason}")], width)
    conclusion = _conclusion(told)
    if conclusion:
        rows += [EMPTY, *facts(conclusion, width)]
    if told.get("agents"):
        rows += [EMPTY, *_agents(told["agents"], width)]
    found = sorted(told["findings"], key=lambda one: -SEVERITIES.index(one["severity"]))
    if found:
        rows.append(EMPTY)
    for one in found:
        sign, tone = SIGNS[one["severity"]]
        lines = wrap(one["title"], width - 2, 4)
        rows += [Line(width).add(f"{sign} " if not n else "  ", tone).add(text).row() for n, text in enumerate(lines)]
    return rows


def _about(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    server, model, work = run.get("server") or {}, run.get("model") or {}, run["workload"]
    details = [model.get("quantization"), f"{model['block_count']} layers" if model.get("block_count") else None]
    size = f"{work['prompt_tokens']} tokens in, {work['output_tokens']} out, {work['requests']} requests a session"
    agents = f", {work['agents']} agents" if work["agents"] > 1 else ""
    gpus = ", ".join(str(one.get("name")) for one in run["gpus"] if one.get("name"))
    return [
        ("name", run["name"] or ""),
        ("preset", run["preset"] or ""),
        ("started", _span(run)),
        ("server", f"{server.get('title') or run['target']['kind']} {server.get('url') or ''}".strip()),
        ("model", " ".join(str(part) for part in (model.get("name") or run["target"]["model"], *details) if part)),
        ("GPU", gpus),
        ("asked for", size + agents),
        ("ended", run["error"] or ""),
    ]


def _span(run: Mapping[str, Any]) -> str:
    begun, ended = (_local(run[name]) for name in ("started_at", "ended_at"))
    if begun is None:
        return "not yet"
    took = f", took {format.duration(ended - begun)}" if ended is not None else ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun)) + took


def _local(at: str | None) -> float | None:
    from datetime import datetime

    return None if at is None else datetime.fromisoformat(at).timestamp()


def _void(told: Mapping[str, Any], counts: Mapping[str, int], width: int) -> list[Row]:
    voids = ", ".join(f"{count} {reason}" for reason, count in told["void_reasons"].items())
    text = f"{counts['valid']} valid, {counts['void']} void{f' ({voids})' if voids else ''}, {counts['cold']} cold"
    return facts([("requests", text)], width)


def _trial(trial: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]], width: int, *, several: bool) -> list[Row]:
    asked = _options(trial["requested"]) or "server defaults"
    runs = trial["effective"]
    pairs = [("asked", asked), ("runs", _options(runs) if runs else "")]
    rows = []
    if several:
        void = f" + {trial['void_sessions']} void" if trial["void_sessions"] else ""
        plural = "s" if trial["sessions"] != 1 or void else ""
        head = f"{trial['candidate']} {trial['role']}, {trial['sessions']}{void} session{plural}"
        rows = [Line(width).add(head, "strong" if trial["role"] == "baseline" else "accent").row()]
        differs = {
            name: value for name, value in (runs or {}).items() if trial["requested"].get(name) not in {None, value}
        }
        pairs = [("asked", asked), ("runs", _options(differs))]
    if trial["merged"]:
        pairs.append(("stands for", ", ".join(trial["merged"])))
    pairs += [("", note) for note in trial["notes"]]
    told = [(label, _figure(name, trial[name], words)) for name, label, words in _figures(trial, several=several)]
    pairs += told
    rows += facts(pairs, width)
    for one in verdicts:
        rows += _verdict(one, width)
    return rows


def _figures(trial: Mapping[str, Any], *, several: bool) -> list[tuple[str, str, str]]:
    known = [one for one in (*_FIGURES, ("vram_bytes", "VRAM", "")) if trial[one[0]]["median"] is not None]
    if not several:
        return known
    rate = "decode_tok_s" if trial["decode_tok_s"]["median"] is not None else "client_decode_tok_s"
    return [one for one in known if one[0] in {rate, "ttft_s", "vram_bytes"}]


def _figure(name: str, figure: Mapping[str, Any], words: str) -> str:
    value = figure["median"]
    if name.endswith("tok_s"):
        text = format.rate(value)
    else:
        text = format.size(value) if name.endswith("bytes") else format.seconds(value)
    # Of the rest the mean may lie about zero, and a scatter relative to it says nothing.
    scatter = f", CV {figure['cv']:.1%}" if figure["cv"] is not None and name != "other_s" else ""
    each = f"{figure['unit']}{'s' if figure['n'] != 1 else ''}"
    return f"{text}{' ' + words if words else ''} (median of {figure['n']} {each}{scatter})"


def _verdict(one: Mapping[str, Any], width: int) -> list[Row]:
    word: VerdictWord = one["verdict"] if one["verdict"] in get_args(VerdictWord) else "insufficient"
    sign, tone = VERDICTS[word]
    metric: Metric = one["metric"]
    parts = [f"on {METRICS.get(metric, metric)} against {one['against']}"]
    effect, ci = of_itself(metric, one["effect"], one["ci"])
    if effect is not None:
        parts.append(format.effect(effect))
    if ci is not None:
        low, high = ci
        parts.append(f"{one['level'] * 100:.4g} % interval {format.effect(low)} to {format.effect(high)}")
    if one["n"]:
        parts.append(f"{one['n']} rounds")
    if one["reason"]:
        parts.append(str(one["reason"]))
    lines = wrap("; ".join(parts), max(width - 14, 10), 4)
    return [
        Line(width).add("" if number else sign, tone, 14).add(text).row() for number, text in enumerate(lines)
    ]  # fmt: skip


def _conclusion(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for check in told.get("validation") or []:
        value = "unknown" if check["value"] is None else f"{check['value']:.3g}"
        pairs.append(("check", f"{check['check']}: {check['result']}, {value} (limit {check['limit']:g})"))
    front = [one["candidate"] for one in told.get("pareto") or []]
    if len(front) > 1:
        pairs.append(("front", f"{', '.join(front)}: none of them is beaten on every aim"))
    standing = told.get("standing") or {}
    if standing.get("noise"):
        pairs.append(("noise", str(standing["words"])))
    if told.get("recommendation"):
        pairs.append(("advice", str(told["recommendation"]["words"])))
    heat = told.get("thermal")
    pairs += [("heat", f"{one['gpu'] + ': ' if one['gpu'] else ''}{one['verdict']}") for one in heat or []]
    return [(label, plain(text)) for label, text in pairs]


def _agents(report: Mapping[str, Any], width: int) -> list[Row]:
    pairs: list[tuple[str, str]] = []
    for arm in report["arms"]:
        each: Tone | str = f"{arm['aggregate_tok_s']:.1f} tok/s together" if arm["aggregate_tok_s"] else "nothing valid"
        more = [f"{arm['speedup']:.2f}x one agent" if arm["speedup"] is not None else "",
                f"fairness {arm['fairness']:.2f}" if arm["fairness"] is not None else "",
                f"TTFT p95 {format.seconds(arm['ttft_p95_s'])}" if arm["ttft_p95_s"] is not None else ""]  # fmt: skip
        pairs.append((arm["candidate"], "; ".join(part for part in (arm["label"], each, *more) if part)))
    return facts([*pairs, *(("", line) for line in report["digest"])], width)


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)
