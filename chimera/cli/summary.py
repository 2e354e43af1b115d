"""A run in plain text, made from the same document that `--json` prints."""

from __future__ import annotations

from typing import Any

from .output import emit, emit_table


def emit_run(facts: dict[str, Any], *, requests: bool = False) -> None:
    """Print what a person wants to know first: what ran, its figures, what did not count and why."""
    run, counts = facts["run"], facts["counts"]
    head = [f"run {run['id']}", run["kind"], run["preset"], run["state"]]
    emit(" · ".join(str(part) for part in head if part))
    server, model = run.get("server") or {}, run.get("model") or {}
    if server:
        emit(f"server   {server.get('title') or server.get('kind')}  {server.get('url') or ''}".rstrip())
    if model:
        details = [model.get("quantization"), f"{model['block_count']} layers" if model.get("block_count") else None]
        emit(f"model    {model['name']}  {' '.join(str(part) for part in details if part)}".rstrip())
    for trial in facts["trials"]:
        emit(f"asked    {_options(trial['requested'])}")
        if trial.get("effective"):
            emit(f"runs     {_options(trial['effective'])}")
        for key, label, unit in (
            ("decode_tok_s", "decode", "tok/s, server's clock"),
            ("client_decode_tok_s", "decode", "tok/s, client's clock"),
            ("prefill_tok_s", "prefill", "tok/s"),
            ("ttft_s", "TTFT", "s"),
            ("other_s", "rest", "s (HTTP, first sample: in no other part)"),
        ):
            figure = trial.get(key)
            if figure and figure.get("median") is not None:
                spread = f", CV {figure['cv']:.1%}" if figure.get("cv") is not None else ""
                emit(f"{label:8} {_number(figure['median'])} {unit} (median of {figure['n']}{spread})")
    voids = ", ".join(f"{count} {reason}" for reason, count in sorted(facts.get("void_reasons", {}).items()))
    why = f" ({voids})" if voids else ""
    emit(f"counted  {counts['valid']} valid, {counts['void']} void{why}, {counts['cold']} cold")
    if run.get("error"):
        emit(f"ended    {run['error']}")
    for one in facts.get("thermal", []):
        emit(f"heat     {one['gpu'] + ': ' if one['gpu'] else ''}{one['verdict']}")
    _emit_verdicts(facts)
    if facts.get("agents"):
        _emit_agents(facts["agents"])
    for finding in facts.get("findings", []):
        emit(f"finding  {finding['severity']}: {finding['title']}")
    if requests and facts.get("measurements"):
        emit()
        emit_table(
            ["#", "role", "tok/s", "client", "TTFT s", "queue", "load", "prefill", "decode", "rest", "total s", "void"],
            [
                (
                    number,
                    one["role"],
                    *(_number(one.get(key)) for key in (
                        "decode_tok_s", "client_decode_tok_s", "ttft_s", "queue_s", "load_s", "prefill_s", "decode_s",
                        "other_s", "total_s",
                    )),
                    one["void_reason"] or "",
                )
                for number, one in enumerate(facts["measurements"], 1)
            ],
        )  # fmt: skip


def _emit_verdicts(facts: dict[str, Any]) -> None:
    """What the comparison says of each candidate, with its interval and the reason where nothing can be said."""
    rows = facts.get("verdicts", [])
    if not rows:
        return
    asked = {trial["candidate"]: _options(trial["requested"]) for trial in facts["trials"]}
    emit()
    emit_table(
        ["", "against", "metric", "verdict", "effect", "interval", "n", "asked"],
        [
            (
                row["candidate"],
                row["against"],
                row["metric"],
                row["verdict"],
                f"{row['effect'] - 1:+.1%}" if row["effect"] is not None else None,
                f"{row['ci'][0] - 1:+.1%} to {row['ci'][1] - 1:+.1%}" if row["ci"] else None,
                row["n"],
                asked.get(row["candidate"], f"as {row['against']}"),
            )
            for row in rows
        ],
    )
    for reason in dict.fromkeys(row["reason"] for row in rows if row["reason"]):
        emit(f"  {', '.join(dict.fromkeys(row['candidate'] for row in rows if row['reason'] == reason))}: {reason}")


def _options(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "server defaults"


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _emit_agents(report: dict[str, Any]) -> None:
    """The figures of a run with agents, for a person."""
    emit()
    emit_table(
        [
            "",
            "arm",
            "tok/s",
            "speed-up",
            "efficiency",
            "fairness",
            "TTFT p95",
            "worst",
            "queue p95",
            "waited",
            "failed",
        ],
        [
            (
                arm["candidate"],
                arm["label"],
                _two(arm["aggregate_tok_s"], 1),
                _two(arm["speedup"]),
                _share(arm["efficiency"]),
                _two(arm["fairness"]),
                _two(arm["ttft_p95_s"]),
                _two(arm["ttft_worst_s"]),
                _two(arm["queue_p95_s"]),
                arm["deferred"],
                sum(arm["failures"].values()),
            )
            for arm in report["arms"]
        ],
    )
    for arm in report["arms"]:
        if arm["agents"] > 1:
            emit(f"  {arm['candidate']}: {_share(arm['guide_efficiency'])} efficiency by the guide's formula")
    if any(arm["agents"] > 1 for arm in report["arms"]):
        emit(f"  {report['guide_formula']}")
    if report["saturation"]:
        knee = report["knee"]
        emit(
            f"  knee: {knee} agents; more add little" if knee else "  no knee: the rate still rises at the most agents"
        )


def _two(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
