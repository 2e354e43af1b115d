"""A run in plain text, made from the same document that `--json` prints."""

from __future__ import annotations

from typing import Any

from chimera.domain.run import COMPARING
from chimera.domain.text import plain
from chimera.domain.verdict import of_itself
from chimera.store.blame import aim_words, blame_words

from .agents_text import emit_agents
from .output import emit, emit_table


def emit_run(facts: dict[str, Any], *, requests: bool = False) -> None:
    """Print what a person wants to know first: what ran, its figures, what did not count and why."""
    run, counts = facts["run"], facts["counts"]
    head = [f"run {run['id']}", run["kind"], run["preset"], plain(run["name"] or ""), run["state"]]
    emit(" · ".join(str(part) for part in head if part))
    server, model = run.get("server") or {}, run.get("model") or {}
    if server:
        emit(f"server   {server.get('title') or server.get('kind')}  {server.get('url') or ''}".rstrip())
    if model:
        details = [model.get("quantization"), f"{model['block_count']} layers" if model.get("block_count") else None]
        emit(f"model    {plain(model['name'])}  {' '.join(str(part) for part in details if part)}".rstrip())
    if run["kind"] in COMPARING or len(facts["trials"]) > 1:
        _emit_trials(facts)
    else:
        for trial in facts["trials"]:
            _emit_trial(trial)
    voids = ", ".join(f"{count} {reason}" for reason, count in sorted(facts.get("void_reasons", {}).items()))
    why = f" ({voids})" if voids else ""
    emit(f"counted  {counts['valid']} valid, {counts['void']} void{why}, {counts['cold']} cold")
    if watching := facts.get("watching"):
        named = (("own_cpu_percent", "{:.1f} % of a core"), ("nvml_calls_s", "{:.1f} NVML calls a second"))
        words = [how.format(watching[name]) for name, how in named if watching.get(name)]
        if words:
            emit(f"watching took at most {', '.join(words)} in a session")
    if run.get("error"):
        emit(f"ended    {run['error']}")
    for one in facts.get("thermal", []):
        emit(f"heat     {one['gpu'] + ': ' if one['gpu'] else ''}{one['verdict']}")
    _emit_verdicts(facts)
    if facts.get("recommendation"):
        _emit_conclusion(facts)
    if requests and facts.get("sessions"):
        _emit_blame(facts["sessions"])
    if facts.get("agents"):
        emit_agents(facts["agents"])
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


def _emit_trial(trial: dict[str, Any]) -> None:
    """One configuration, a line a figure."""
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


def _emit_trials(facts: dict[str, Any]) -> None:
    """Several configurations, a line each; what ran is told where it is not what was asked."""
    emit()
    vram = any(trial["vram_bytes"]["median"] for trial in facts["trials"])
    energy = any(trial["energy_j_per_token"]["median"] for trial in facts["trials"])
    emit_table(
        [
            "",
            "role",
            "asked",
            "runs",
            "sessions",
            "tok/s",
            "CV",
            "TTFT s",
            *(["VRAM GiB"] if vram else []),
            *(["tok/s per W"] if energy else []),
        ],
        [
            (
                trial["candidate"],
                trial["role"],
                _options(trial["requested"]),
                _differing(trial),
                f"{trial['sessions']}+{trial['void_sessions']} void" if trial["void_sessions"] else trial["sessions"],
                _number(_rate(trial)["median"]),
                f"{_rate(trial)['cv']:.1%}" if _rate(trial)["cv"] is not None else None,
                _number(trial["ttft_s"]["median"]),
                *([_gib(trial["vram_bytes"]["median"])] if vram else []),
                *([_inverse(trial["energy_j_per_token"]["median"])] if energy else []),
            )
            for trial in facts["trials"]
        ],
    )
    for trial in facts["trials"]:
        if trial["merged"]:
            emit(f"  {trial['candidate']} stands for {', '.join(trial['merged'])} as well: {'; '.join(trial['notes'])}")
        if trial.get("same_as"):
            emit(f"  {trial['candidate']} runs what {trial['same_as']} runs, by what was read back: measured once")
    for candidate, reason in (facts["run"]["plan"].get("ruled_out") or {}).items():
        asked = _options((facts["run"]["plan"].get("asked") or {}).get(candidate, {}))
        emit(f"  {candidate} ({asked}) was not run: {reason}")
    if facts["run"]["kind"] == "tune":
        emit("  step 1: the server's defaults: measured before everything for the noise, and again in every round")
    for stage in facts["run"]["plan"].get("stages", []):
        members = ", ".join(stage.get("candidates", []))
        emit(f"  {stage['title']}: {'skipped, ' + stage['skipped'] if 'skipped' in stage else members}")
    emit()


def _rate(trial: dict[str, Any]) -> dict[str, Any]:
    """The server's rate where it tells one, else the client's."""
    figure: dict[str, Any] = trial["decode_tok_s"]
    return figure if figure["median"] is not None else trial["client_decode_tok_s"]


def _differing(trial: dict[str, Any]) -> str:
    """What runs as something other than what was asked for."""
    runs = trial["effective"] or {}
    asked = trial["requested"]
    return (
        " ".join(f"{name}={runs[name]}" for name in asked if name in runs and runs[name] != asked[name]) or "as asked"
    )


def _inverse(value: float | None) -> str | None:
    return None if not value else _number(1 / value)


def _gib(value: float | None) -> str | None:
    return None if value is None else f"{value / 2**30:.2f}"


def _emit_conclusion(facts: dict[str, Any]) -> None:
    """The recommendation, the front, and the checks of `tune`."""
    emit()
    for check in facts.get("validation") or []:
        value = "unknown" if check["value"] is None else f"{check['value']:.3g}"
        emit(f"check    {check['check']}: {check['result']}, {value} (limit {check['limit']:g}; {check['words']})")
    front = facts.get("pareto") or []
    if len(front) > 1:
        emit("front    none of these is beaten on every aim; by medians, which noise may order:")
        for one in front:
            emit(f"         {one['candidate']}: {', '.join(aim_words(*value) for value in one['values'].items())}")
    standing = facts.get("standing") or {}
    if standing.get("noise"):
        emit(f"noise    {standing['words']}")
        if (words := _wider(facts)) is not None:
            emit(f"         {words}")
    if facts.get("recommendation") and facts["run"]["kind"] != "agents":  # theirs stands beside their figures
        emit(f"advice   {facts['recommendation']['words']}")
    for one in facts.get("power") or []:
        emit(f"power    {plain(one['words'])}")


def _wider(facts: dict[str, Any]) -> str | None:
    """That the rounds were noisier than the preflight, where an interval is over twice as wide as was planned."""
    planned = facts["standing"].get("half_width")
    objective = facts["run"]["plan"].get("rules", {}).get("objective")
    found = [
        (one["ci"][1] / one["ci"][0]) ** 0.5 - 1
        for one in facts["verdicts"]
        if one["metric"] == objective and all(one["ci"] or (None,))  # an end may be unbounded
    ]
    if not planned or not found or max(found) <= 2 * planned:
        return None
    return f"The rounds were noisier: intervals of ±{max(found):.1%} came out where ±{planned:.1%} was planned."


def _emit_blame(sessions: list[dict[str, Any]]) -> None:
    """What held each session back, and why it does not count where it does not."""
    lines = []
    for one in sessions:
        words = blame_words(one["blame"])
        void = f"void, {one['void_reason']}" if one["state"] == "void" else ""
        if words or void:
            place = f"  {one['seq']:>3} {one['candidate']} {one['phase']} {one['round']}"
            lines.append(f"{place}: {'; '.join(part for part in (void, words) if part)}")
    if lines:
        emit()
        emit("sessions, and what held each of them back")
        for line in lines:
            emit(line)


def _emit_verdicts(facts: dict[str, Any]) -> None:
    """What the comparison says of each candidate, with its interval and the reason where nothing can be said."""
    rows = facts.get("verdicts", [])
    if not rows:
        return
    emit()
    emit_table(
        ["", "against", "metric", "verdict", "effect", "interval", "n"],
        [
            (
                row["candidate"],
                row["against"],
                row["metric"],
                row["verdict"],
                f"{change - 1:+.1%}" if change is not None else None,
                f"{ci[0] - 1:+.1%} to {ci[1] - 1:+.1%}" if ci else None,
                row["n"],
            )
            for row in rows
            for change, ci in [of_itself(row["metric"], row["effect"], row["ci"])]
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
