"""The evidence bundle: what a bug report needs, as Markdown and JSON, free of prompts, keys and names of people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from chimera.domain.finding import Evidence, Finding
from chimera.domain.readings import Missing, number

from .evidence import EvidenceSet, sane
from .thermal import held
from .views import gpu_numbers, plain

WINDOW_S = 600.0
"""The last ten minutes of samples go into the bundle."""

_HIDDEN = "[removed]"
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Names of people in addresses and paths come first, so that what is left of a path stays readable.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(/(?:home|Users|export/home|var/home))/[^/\s:\"']+"), "~"),
    (re.compile(r"(?i)\b[a-z]:\\+users\\+[^\\\s\"']+"), "~"),
    (re.compile(r"/root\b"), "~"),
    (re.compile(r"(?i)\b(bearer|basic|token)\s+[a-z0-9._~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (
        re.compile(
            r"(?i)([\"']?[a-z0-9_-]*(?:api[_-]?key|apikey|secret|password|passwd|token|authorization|credential)"
            r"[a-z0-9_-]*[\"']?\s*[=:]\s*)([\"']?)(?!\s*\[removed\])[^\s\"'&,;]{4,}"
        ),
        rf"\1\2{_HIDDEN}",
    ),
    (re.compile(r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{8,}"), _HIDDEN),
    (re.compile(r"\b(?:hf|ghp|gho|ghs|ghu|glpat|xox[abpr]|nvapi|gsk|AKIA|ASIA|AIza)[-_]?[A-Za-z0-9_-]{10,}"), _HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]+)?"), _HIDDEN),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), _HIDDEN),
    # Whatever else is long and looks random; digests of models are marked as such and stay.
    (
        re.compile(r"(?<!sha256:)(?<!sha256-)\b(?=[A-Za-z0-9_+-]*\d)(?=[A-Za-z0-9_+-]*[A-Za-z])[A-Za-z0-9_+-]{40,}\b"),
        _HIDDEN,
    ),
)  # fmt: skip
_TEXT_OF_PEOPLE = frozenset({
    "prompt", "prompts", "messages", "message", "content", "response", "thinking", "system", "template", "images",
    "input", "output", "suffix", "context", "prompt_file", "headers", "env", "environ", "command", "cmdline",
})  # fmt: skip
"""Fields of other people's data that may hold what somebody wrote; left out whole."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The two forms of one evidence bundle."""

    markdown: str
    json: str


def redact(text: str, names: Iterable[str] = ()) -> str:
    """A text without keys, tokens, mail addresses, home folders and user names in addresses.

    `names` are further words that must not appear: the login name, the host's name, values of key variables.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    for name in sorted({each for each in names if len(each) >= 3}, key=len, reverse=True):
        text = re.sub(rf"(?i)(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", _HIDDEN, text)
    return text


def build_bundle(
    evidence: EvidenceSet,
    findings: Iterable[Finding],
    *,
    now: float,
    chimera_version: str,
    system: Mapping[str, str | int | float | None] | None = None,
    names: Iterable[str] = (),
) -> Bundle:
    """Everything of the last ten minutes that a maintainer can use.

    Args:
        evidence: What the rules saw.
        findings: What they found.
        now: Wall clock.
        chimera_version: For the heading.
        system: Facts of the host, e.g. `{"os": "Linux 6.8", "cpu": "...", "cores": 8}`.
        names: Words to take out besides what looks like a secret: login name, host name.
    """
    known = sane(evidence)
    hidden = tuple(names)
    found = list(findings)
    start = None if known.clock_offset_s is None else now - known.clock_offset_s - WINDOW_S
    document: dict[str, Any] = {
        "schema_version": 1,
        "kind": "chimera-evidence",
        "chimera": chimera_version,
        "made_at": _time(now),
        "window_s": WINDOW_S,
        "system": dict(system or {}),
        "server": _bare(known.server),
        "driver": known.driver,
        "gpus": [_bare(each) for each in known.gpu_infos],
        "no_gpu": _bare(known.gpu_missing),
        "model": _model(known),
        "requested": known.requested.as_dict() if known.requested is not None else None,
        "effective": _effective(known),
        "workload": _bare(known.workload),
        "findings": [_bare(each) for each in found],
        "throttle": {
            uuid: {reason: {"share": each.share, "seconds": each.seconds, "window_s": each.window_s, "via": each.via}
                   for reason, each in reasons.items()}
            for uuid, reasons in held(known).items()
        },
        "samples": {
            "gpu": [_bare(each) for each in _recent(known.gpu_samples, start)],
            "host": [_bare(each) for each in _recent(known.host_samples, start)],
            "server": [_bare(each) for each in _recent(known.server_samples, start)],
        },
        "requests": [_bare(each) for each in known.requests
                     if each.measurement.started_at + each.measurement.total_s >= now - WINDOW_S],
        "failures": [_bare(each) for each in known.failures[-20:]],
        "log": [plain(each.text, 300) for each in known.log[-100:]],
        "earlier_runs": [_bare(each) for each in known.history[-10:]],
    }  # fmt: skip
    cleaned = _redacted(document, hidden)
    text = json.dumps(cleaned, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=False)
    return Bundle(redact(_markdown(known, found, cleaned), hidden), text + "\n")


def _time(at: float) -> str | None:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return None


def _recent(samples: Iterable[Any], start: float | None) -> list[Any]:
    every = list(samples)
    if start is None and every:
        start = every[-1].at - WINDOW_S
    return [each for each in every if start is None or each.at >= start]


def _model(evidence: EvidenceSet) -> dict[str, Any] | None:
    shown = _bare(evidence.model)
    if isinstance(shown, dict):
        shown.pop("path", None)
        return shown
    return None


def _effective(evidence: EvidenceSet) -> dict[str, Any] | None:
    if evidence.effective is None:
        return None
    return {
        "options": evidence.effective.options.as_dict(),
        "sources": dict(evidence.effective.sources),
        "notes": list(evidence.effective.notes),
        "size_bytes": evidence.effective.size_bytes,
        "vram_bytes": evidence.effective.vram_bytes,
    }


def _bare(value: Any) -> Any:
    """Plain data of anything in the evidence; a missing reading becomes its reason, free text of people nothing."""
    if isinstance(value, Missing):
        return {"missing": value.reason, "detail": value.detail}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: bare
            for each in fields(value)
            if each.name not in _TEXT_OF_PEOPLE
            and (bare := _bare(getattr(value, each.name))) not in (None, [], {}, "")
            and not (isinstance(bare, dict) and bare.get("missing") == "pending")
        }
    if isinstance(value, Mapping):
        return {str(key): _bare(each) for key, each in value.items() if str(key) not in _TEXT_OF_PEOPLE}
    if isinstance(value, tuple | list):
        return [_bare(each) for each in value]
    if isinstance(value, frozenset | set):
        return sorted(_bare(each) for each in value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def _redacted(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(plain(value, 500), names)
    if isinstance(value, dict):
        return {redact(str(key), names): _redacted(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, names) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# -- Markdown --------------------------------------------------------------------------------------------------------


def _markdown(evidence: EvidenceSet, findings: list[Finding], document: dict[str, Any]) -> str:
    lines = ["# Evidence from Chimera", "", f"Chimera {document['chimera']}, {document['made_at']}", ""]
    lines += _facts(evidence, document)
    lines += ["## Findings", ""]
    if not findings:
        lines += ["None.", ""]
    for each in findings:
        lines.append(f"### {each.severity}: {_cell(each.title)} (`{each.code}`)")
        lines.append("")
        if each.cause is not None:
            lines += [f"First cause: `{each.cause}`", ""]
        lines += ["| evidence | value | threshold | window | known | from |", "|---|---|---|---|---|---|"]
        lines += [_row(one) for one in each.evidence]
        lines.append("")
        for other in each.causes:
            against = f", {len(other.speaks_against)} against" if other.speaks_against else ""
            check = f" Check: {_cell(other.check)}" if other.check else ""
            lines.append(f"- `{other.id}`: {_cell(other.title)} ({len(other.speaks_for)} for{against}).{check}")
        if each.causes:
            lines.append("")
    lines += _settings(document)
    lines += _gpus(evidence, document)
    failures = document["failures"]
    if failures:
        lines += ["## Failures", ""]
        lines += [f"- {_cell(str(each.get('status', '')))} {_cell(str(each.get('text', '')))}" for each in failures]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return plain(text, 300).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _figure(value: float | str | None, unit: str = "") -> str:
    if value is None:
        return "unknown"
    shown = f"{value:.6g}" if isinstance(value, int | float) else _cell(value)
    return f"{shown} {unit}".strip()


def _row(each: Evidence) -> str:
    window = "" if each.window_s is None else f"{each.window_s:.0f} s"
    threshold = "" if each.threshold is None else _figure(each.threshold)
    return (
        f"| {_cell(each.what)} | {_figure(each.value, each.unit)} | {threshold} | {window} | {each.source} "
        f"| {_cell(each.via)} |"
    )


def _facts(evidence: EvidenceSet, document: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    if evidence.server is not None:
        rows.append(("server", evidence.server.title))
        rows.append(("address", evidence.server.url or "none"))
    if evidence.model is not None:
        model = evidence.model
        rows.append(("model", f"{model.name} {model.quantization or ''}".strip()))
        rows.append(("digest", model.digest or "unknown"))
    rows.append(("driver", evidence.driver or "unknown"))
    rows += [(f"GPU {each.index}", each.name) for each in evidence.gpu_infos]
    if evidence.gpu_missing is not None:
        rows.append(("GPU", str(evidence.gpu_missing)))
    rows += [(str(name), str(value)) for name, value in document["system"].items() if value is not None]
    return ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows), ""]


def _settings(document: dict[str, Any]) -> list[str]:
    requested = document["requested"] or {}
    effective = (document["effective"] or {}).get("options", {})
    names = list(dict.fromkeys([*requested, *effective]))
    if not names:
        return []
    lines = ["## Settings", "", "| option | asked for | runs as |", "|---|---|---|"]
    for name in names:
        asked = _figure(requested[name]) if name in requested else "default"
        runs = _figure(effective[name]) if name in effective else "unknown"
        lines.append(f"| {_cell(name)} | {asked} | {runs} |")
    return [*lines, ""]


def _gpus(evidence: EvidenceSet, document: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    picks = (
        ("utilisation", "%", lambda s: s.utilization), ("temperature", "°C", lambda s: s.temperature_c),
        ("SM clock", "MHz", lambda s: s.sm_mhz), ("memory clock", "MHz", lambda s: s.mem_mhz),
        ("power", "W", lambda s: s.power_w), ("memory in use", "bytes", lambda s: s.vram_used_bytes),
    )  # fmt: skip
    kept = {each.get("at") for each in document["samples"]["gpu"]}
    for info in evidence.gpu_infos:
        samples = [each for each in evidence.gpu_samples if each.uuid == info.uuid and each.at in kept]
        if not samples:
            continue
        lines += [f"## GPU {info.index}, last ten minutes", "", "| | lowest | highest | last |", "|---|---|---|---|"]
        for name, unit, pick in picks:
            values = [value for _, value in gpu_numbers(samples, pick)]
            if values:
                lines.append(f"| {name} ({unit}) | {min(values):.6g} | {max(values):.6g} | {values[-1]:.6g} |")
        counters = {reason: number(value) for reason, value in samples[-1].throttle_s.items()}
        known = ", ".join(f"{_cell(reason)} {value:.1f} s" for reason, value in counters.items() if value is not None)
        lines += ["", f"Throttle counters since the driver was loaded: {known or 'not told'}.", ""]
    shares = document["throttle"]
    if shares:
        lines += ["Held down under load:", ""]
        for reasons in shares.values():
            lines += [
                f"- {_cell(reason)}: {each['share']:.1%} ({_cell(each['via'])})" for reason, each in reasons.items()
            ]
        lines.append("")
    return lines
