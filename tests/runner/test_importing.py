"""Files of other programs and our own exports, as runs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import exp
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.server import ModelInfo
from chimera.domain.verdict import Metric, Verdict
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.runner import importing
from chimera.runner.importing import Imported, Knowledge, import_file, model_of
from chimera.runner.study import final_verdicts, outcomes, plan_of
from chimera.store.document import document, export_csv
from chimera.store.journal import Journal
from chimera.tuning.plan import Failure, Outcome, Plan
from chimera.tuning.protocol import Round, next_sessions
from chimera.tuning.statistics import drift
from chimera.tuning.verdicts import verdicts

SAMPLES = Path(__file__).parent.parent / "samples"
GEMMA = Knowledge(
    ModelInfo("gemma3:latest", block_count=34, trained_ctx=131072, vision=True),
    ModelInfo("gemma3:latest", block_count=34, trained_ctx=131072, vision=True),
)


# ---- a sweep of our own, exported and imported again -------------------------------------------------------------


def _sweep(
    journal: Journal,
    *,
    gains: dict[str, float],
    fails: Callable[[Session], Failure | None] = lambda session: None,
    hot: Callable[[Session], bool] = lambda session: False,
    voids: Callable[[Session, int], bool] = lambda session, tried: False,
    **rules: Any,
) -> Run:
    """A sweep played through the protocol, every session of it in the journal as a worker would leave it."""
    names = ["c0", *gains]
    trials = tuple(
        Trial(name, "candidate" if place else "baseline", Options(num_ctx=1024 * place or None))
        for place, name in enumerate(names)
    )
    plan = Plan(trials, 11, metrics=("decode_tok_s", "ttft_s", "vram_bytes"), **rules)
    workload = Workload(requests=3, output_tokens=32)
    settings = {trial.candidate: trial.requested.as_dict() for trial in trials}
    run = journal.create_run(
        "sweep",
        Target("ollama", "http://127.0.0.1:11434", "m"),
        workload,
        seed=11,
        trials=trials,
        plan={"rules": plan.as_dict(), "settings": settings},
    )
    run = journal.run(run.id)
    found: list[Outcome] = []
    at = 1_700_000_000.0
    while isinstance(step := next_sessions(plan, found), Round):
        session = step.sessions[0]
        at += 10.0
        cell = (session.phase, session.round, session.candidate)
        tried = sum((one.session.phase, one.session.round, one.session.candidate) == cell for one in found)
        journal.begin_session(run.id, replace(session, started_at=at))
        facts: dict[str, object] = {"vram_peak_bytes": 2_000_000_000.0, "throttled_share": 0.2 if hot(session) else 0.0}
        failure = fails(session)
        if failure:
            facts |= {"failure": failure, "error": "CUDA error: out of memory"}
            journal.end_session(run.id, session.seq, "void", void_reason="refused", facts=facts, ended_at=at)
        else:
            spoilt = voids(session, tried)
            journal.add_measurements(
                run.id, session.seq, _requests(session, gains.get(session.candidate, 0.0), at, spoilt)
            )
            journal.end_session(
                run.id,
                session.seq,
                "void" if spoilt else "done",
                void_reason="foreign-client" if spoilt else None,
                facts=facts,
                ended_at=at + 5,
            )
        found = outcomes(journal, run, plan)
        assert len(found) < 2000
    journal.set_verdicts(run.id, verdicts(plan, found))
    journal.set_state(run.id, "done")
    return journal.run(run.id)


def _requests(session: Session, gain: float, at: float, spoilt: bool) -> list[Measurement]:
    random = Random(f"{session.phase} {session.round} {session.candidate}")
    made = []
    for number in range(4):
        rate = 100.0 * exp(gain + random.gauss(0, 0.008))
        made.append(
            Measurement(
                role="measure" if number else "warmup",
                started_at=at + number,
                total_s=0.2 + 31 / rate,
                ttft_s=0.2 * exp(random.gauss(0, 0.01)),
                load_s=0.02,
                prefill_s=0.15,
                decode_s=31 / rate,
                timing_source="server",
                prompt_tokens=64,
                completion_tokens=32,
                client_decode_tok_s=rate * 0.999,
                decode_tok_s=rate,
                finish_reason="length",
                void_reason="foreign-client" if spoilt and number else None,
            )
        )
    return made


def _again(journal: Journal, run: Run, tmp_path: Path, form: str) -> Imported:
    path = tmp_path / f"export.{form}"
    path.write_text(
        json.dumps(document(journal, run, measurements=True)) if form == "json" else export_csv(journal, run),
        encoding="utf-8",
    )
    return import_file(journal, path)


def _close(one: Verdict, other: Verdict) -> bool:
    def near(a: float | None, b: float | None) -> bool:
        return a == b or (a is not None and b is not None and abs(a - b) < 1e-9)

    same = (one.candidate, one.against, one.metric, one.verdict, one.n) == (
        other.candidate, other.against, other.metric, other.verdict, other.n,
    )  # fmt: skip
    intervals = zip(one.ci or (None, None), other.ci or (None, None), strict=True)
    return (
        same
        and near(one.effect, other.effect)
        and near(one.level, other.level)
        and all(near(a, b) for a, b in intervals)
    )


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize(
    "rules",
    [
        {"preflight": 0, "confirm": False, "screen_rounds": 6},
        {"preflight": 6, "confirmed": 2, "confirm_rounds": 8},
    ],
    ids=["one phase", "confirmed"],
)
def test_an_exported_sweep_imported_again_has_the_same_verdicts(
    journal: Journal, tmp_path: Path, form: str, rules: dict[str, Any]
) -> None:
    run = _sweep(journal, gains={"c1": 0.0, "c2": 0.08, "c3": -0.1, "c4": 0.01, "c5": 0.0}, **rules)
    before = journal.verdicts(run.id)
    assert {row.verdict for row in before} >= {"better"}
    after = journal.verdicts(_again(journal, run, tmp_path, form).run.id)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert _close(one, other), (one, other)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_void_hot_and_failed_sessions_come_back_as_what_they_were(journal: Journal, tmp_path: Path, form: str) -> None:
    run = _sweep(
        journal,
        gains={"c1": 0.0, "c2": 0.06, "c3": 0.0},
        fails=lambda session: "out-of-memory" if session.candidate == "c3" else None,
        hot=lambda session: session.phase == "screen" and session.round == 3,
        voids=lambda session, tried: session.round == 2 and session.candidate == "c1" and tried == 0,
        preflight=0,
        confirm=False,
        screen_rounds=6,
    )
    before = {(row.candidate, row.metric): row for row in journal.verdicts(run.id)}
    imported = _again(journal, run, tmp_path, form)
    after = {(row.candidate, row.metric): row for row in journal.verdicts(imported.run.id)}
    assert before.keys() == after.keys()
    assert after["c3", "decode_tok_s"].verdict == "insufficient"
    assert after["c3", "decode_tok_s"].reason == "It ran out of memory."
    for key, row in before.items():
        assert _close(row, after[key]), (row, after[key])
    assert len(journal.sessions(imported.run.id)) == len(journal.sessions(run.id))


def test_an_imported_document_is_a_run_of_kind_import_with_everything_in_it(journal: Journal, tmp_path: Path) -> None:
    run = _sweep(journal, gains={"c1": 0.05}, preflight=0, confirm=False, screen_rounds=4)
    imported = _again(journal, run, tmp_path, "json").run
    assert (imported.kind, imported.state) == ("import", "done")
    assert journal.sessions(imported.id) == journal.sessions(run.id)
    kept = [row.measurement for row in journal.measurements(imported.id)]
    assert kept == [row.measurement for row in journal.measurements(run.id)]
    assert final_verdicts(journal, imported) == journal.verdicts(run.id)
    assert plan_of(journal, imported) == plan_of(journal, run)


def test_an_import_exported_and_imported_again_keeps_its_verdicts(journal: Journal, tmp_path: Path) -> None:
    first = import_file(journal, _csv(tmp_path, _rounds({10: 50.0, 60: 100.0, 80: 100.0})), known=GEMMA).run
    path = tmp_path / "again.json"
    path.write_text(json.dumps(document(journal, first, measurements=True)), encoding="utf-8")
    second = import_file(journal, path).run
    assert journal.verdicts(second.id) == journal.verdicts(first.id)
    assert journal.verdicts(first.id)


# ---- CSV -------------------------------------------------------------------------------------------------------------


Row = dict[str, object]


def _csv(tmp_path: Path, rows: Sequence[Row], name: str = "set.csv") -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / name
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def _request(num_gpu: int, rate: float, **more: object) -> Row:
    return {
        "num_gpu": num_gpu,
        "ttft_s": 0.2,
        "load_s": 0.05,
        "decode_s": round(63 / rate, 6),
        "total_s": round(0.2 + 63 / rate, 6),
        "prompt_tokens": 64,
        "completion_tokens": 64,
        "finish_reason": "length",
        **more,
    }


def _rounds(
    rates: dict[int, float], rounds: int = 6, requests: int = 3, drift: float = 0.0, seed: int = 1
) -> list[Row]:
    random = Random(seed)
    rows = []
    steps = rounds * len(rates)
    for number in range(rounds):
        for place, (num_gpu, rate) in enumerate(rates.items()):
            slower = 1 - drift * (number * len(rates) + place) / steps
            rows += [_request(num_gpu, rate * slower * exp(random.gauss(0, 0.004))) for _ in range(requests)]
    return rows


def _blocks(rates: dict[int, float], requests: int = 18, drift: float = 0.0) -> list[Row]:
    random = Random(3)
    steps = requests * len(rates)
    return [
        _request(num_gpu, rate * (1 - drift * (block * requests + place) / steps) * exp(random.gauss(0, 0.004)))
        for block, (num_gpu, rate) in enumerate(rates.items())
        for place in range(requests)
    ]


def _words(journal: Journal, imported: Imported, metric: str = "decode_tok_s") -> dict[str, str]:
    return {row.candidate: row.verdict for row in journal.verdicts(imported.run.id) if row.metric == metric}


def test_a_shared_gpu_voids_imported_sessions_by_the_rule_of_our_own(journal: Journal, tmp_path: Path) -> None:
    def states(rows: list[Row]) -> set[tuple[str, str | None]]:
        imported = import_file(journal, _csv(tmp_path, [{**row, "foreign_gpu_percent": 40.0} for row in rows]))
        return {(one.state, one.void_reason) for one in journal.sessions(imported.run.id)}

    compared = _rounds({35: 100.0, 10: 60.0}, rounds=3)
    assert states(compared) == {("void", "shared-gpu")}
    assert states([row for row in compared if row["num_gpu"] == 35]) == {("done", None)}, "nothing is compared"
    crews = [{**row, "agent": place % 2 if row["num_gpu"] == 10 else 0} for place, row in enumerate(compared)]
    assert states(crews) == {("done", None)}, "another instance's engine would look like a stranger"
    pairs = [{**row, "agent": place % 2 if place > 2 else 0} for place, row in enumerate(compared)]
    assert states(pairs) == {("void", "shared-gpu")}, "two agents each, though one load lacks a row"


def test_settings_with_one_effect_are_one_candidate_where_the_model_is_named(journal: Journal, tmp_path: Path) -> None:
    path = _csv(tmp_path, _rounds({60: 100.0, 80: 100.0, 120: 100.0, 10: 60.0}))
    imported = import_file(journal, path, known=GEMMA)
    trials = {trial.candidate: trial for trial in journal.trials(imported.run.id)}
    assert trials["c0"].merged == ("c1", "c2")
    assert trials["c0"].effective == Options(num_gpu=35)
    assert _words(journal, imported) == {"c1": "same", "c2": "same", "c3": "worse"}
    rows = {row.candidate: row for row in journal.verdicts(imported.run.id) if row.metric == "decode_tok_s"}
    assert rows["c3"].n == 6, "three spellings of the baseline in a round are one value of that round"
    assert "60, 80 and 120 are one setting" in " ".join(f.title for f in journal.findings(imported.run.id))
    unnamed = import_file(journal, path)
    assert len(journal.trials(unnamed.run.id)) == 4
    assert set(_words(journal, unnamed)) == {"c1", "c2", "c3"}


def test_rows_in_blocks_carry_no_verdict_however_large_the_difference(journal: Journal, tmp_path: Path) -> None:
    rows = [dict(row, session=place // 3 + 1) for place, row in enumerate(_blocks({10: 100.0, 20: 70.0}, drift=0.15))]
    imported = import_file(journal, _csv(tmp_path, rows))
    assert _words(journal, imported) == {"c1": "insufficient"}
    reasons = [row.reason for row in journal.verdicts(imported.run.id)]
    assert all(reason and "drift" in reason for reason in reasons)


def test_a_round_column_that_only_counts_repetitions_is_found_out(journal: Journal, tmp_path: Path) -> None:
    rows = [
        dict(row, session=place // 3 + 1, round=place // 3 % 6 + 1)
        for place, row in enumerate(_blocks({10: 100.0, 20: 70.0}))
    ]
    imported = import_file(journal, _csv(tmp_path, rows))
    assert _words(journal, imported) == {"c1": "insufficient"}
    assert any("repetitions" in note for note in imported.notes)


def test_a_drift_of_the_control_is_told_from_an_effect(journal: Journal, tmp_path: Path) -> None:
    imported = import_file(journal, _csv(tmp_path, _rounds({10: 100.0, 20: 100.0, 30: 100.0}, rounds=12, drift=0.15)))
    assert "better" not in _words(journal, imported).values()
    found = [finding for finding in journal.findings(imported.run.id) if finding.cause]
    assert [finding.cause for finding in found] == ["inconsistent-performance/drift"]
    assert isinstance(found[0].evidence[0].value, float)
    assert found[0].evidence[0].value == pytest.approx(-0.14, abs=0.03)


def test_an_effect_in_rounds_is_found_in_spite_of_a_drift(journal: Journal, tmp_path: Path) -> None:
    imported = import_file(journal, _csv(tmp_path, _rounds({10: 100.0, 20: 110.0}, rounds=12, drift=0.15)))
    assert _words(journal, imported) == {"c1": "better"}


def test_the_first_request_of_a_load_is_set_aside_where_no_role_is_told(journal: Journal, tmp_path: Path) -> None:
    rows = _rounds({10: 100.0, 20: 100.0}, requests=4)
    for place in range(0, len(rows), 4):
        rows[place] = _request(rows[place]["num_gpu"], 20.0, load_s=3.0)  # type: ignore[arg-type]  # a row holds objects
    imported = import_file(journal, _csv(tmp_path, rows))
    kept = [row.measurement for row in journal.measurements(imported.run.id)]
    assert sum(one.role == "warmup" for one in kept) == 12
    assert all(one.cold for one in kept if one.role == "warmup")
    assert min(one.decode_tok_s or 0 for one in kept if one.valid) > 90


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"completion_tokens": 20, "finish_reason": "stop"}, "short-output"),
        ({"completion_tokens": 63, "finish_reason": "stop"}, "short-output"),
        ({"error": "connection reset by peer"}, "error"),
        ({"error": "timed out after 60 s"}, "timeout"),
        ({"completion_tokens": 0}, "error"),
        ({"decode_s": 0}, "error"),
        ({"cached_tokens": 60}, "cache-hit"),
        ({"load_s": 2.5}, "reload-inside"),
        ({"finish_reason": "truncated"}, "truncated"),
        ({"void_reason": "foreign-client"}, "foreign-client"),
        ({"void_reason": "my own rule"}, "error"),
    ],
)
def test_a_row_that_does_not_count_says_why(journal: Journal, tmp_path: Path, spoilt: Row, reason: str) -> None:
    rows = [dict(row, role="measure") for row in _rounds({10: 100.0, 20: 100.0}, rounds=4)]
    rows[4] |= spoilt
    imported = import_file(journal, _csv(tmp_path, rows))
    void = [row.measurement for row in journal.measurements(imported.run.id) if row.measurement.void_reason]
    assert [one.void_reason for one in void] == [reason]


def test_a_prompt_that_was_cut_to_the_context_does_not_count(journal: Journal, tmp_path: Path) -> None:
    rows = [
        dict(row, role="measure", prompt_tokens=902, num_ctx=256 if row["num_gpu"] == 20 else 4096)
        for row in _rounds({10: 100.0, 20: 100.0}, rounds=4)
    ]
    for row in rows:
        if row["num_ctx"] == 256:
            row["prompt_tokens"] = 131
    for row in rows[:30:6]:
        row["prompt_tokens"] = 902
    imported = import_file(journal, _csv(tmp_path, rows))
    void = {
        row.candidate for row in journal.measurements(imported.run.id) if row.measurement.void_reason == "truncated"
    }
    assert void == {"c1"}


def test_a_rate_of_n_tokens_over_the_time_is_put_right(journal: Journal, tmp_path: Path) -> None:
    rows = [dict(row, role="measure", decode_tok_s=64 / float(str(row["decode_s"]))) for row in _rounds({10: 100.0})]
    imported = import_file(journal, _csv(tmp_path, rows))
    one = journal.measurements(imported.run.id)[0].measurement
    assert one.decode_tok_s == pytest.approx(63 / (one.decode_s or 0))
    assert any("(n-1)" in note for note in imported.notes)


def test_a_rate_that_no_server_told_is_marked_as_the_clients(journal: Journal, tmp_path: Path) -> None:
    rows: list[Row] = [
        {"num_gpu": g, "role": "measure", "ttft_s": 0.2, "total_s": 0.83, "completion_tokens": 64}
        for _ in range(4)
        for g in (1, 2)
    ]
    imported = import_file(journal, _csv(tmp_path, rows))
    one = journal.measurements(imported.run.id)[0].measurement
    assert one.decode_tok_s is None
    assert one.client_decode_tok_s == pytest.approx(100.0)
    assert _words(journal, imported) == {"c1": "same"}


@pytest.mark.parametrize(
    ("mark", "wanted", "base", "why"),
    [
        ({}, None, 10, "the first in the file"),
        ({"role": "baseline"}, None, 20, "marks as the baseline"),
        ({"phase": "Control"}, None, 20, "marks as the baseline"),
        ({}, "num_gpu=20", 20, "--baseline"),
        ({"role": "baseline"}, "num_gpu=10", 10, "--baseline"),
    ],
)
def test_the_baseline_is_chosen_and_said(
    journal: Journal, tmp_path: Path, mark: Row, wanted: str | None, base: int, why: str
) -> None:
    rows = [dict(row, **mark) if row["num_gpu"] == 20 else row for row in _rounds({10: 100.0, 20: 90.0})]
    imported = import_file(journal, _csv(tmp_path, rows), baseline=wanted)
    first = journal.trials(imported.run.id)[0]
    assert (first.candidate, first.role, first.requested) == ("c0", "baseline", Options(num_gpu=base))
    assert why in imported.baseline


def test_rows_that_ask_for_nothing_are_the_baseline(journal: Journal, tmp_path: Path) -> None:
    rows = [dict(row, num_gpu="" if row["num_gpu"] == 20 else row["num_gpu"]) for row in _rounds({10: 99.0, 20: 90.0})]
    imported = import_file(journal, _csv(tmp_path, rows))
    assert journal.trials(imported.run.id)[0].requested == Options()
    assert "ask for nothing" in imported.baseline


def test_the_baseline_may_be_named_by_another_spelling_of_its_effect(journal: Journal, tmp_path: Path) -> None:
    path = _csv(tmp_path, _rounds({10: 60.0, 80: 100.0}))
    imported = import_file(journal, path, known=GEMMA, baseline="num_gpu=35")
    assert journal.trials(imported.run.id)[0].requested == Options(num_gpu=80)
    with pytest.raises(ConfigError, match="no row has these settings"):
        import_file(journal, path, baseline="num_gpu=35")


def test_too_few_rounds_are_insufficient_with_their_number(journal: Journal, tmp_path: Path) -> None:
    imported = import_file(journal, _csv(tmp_path, _rounds({10: 100.0, 20: 50.0}, rounds=2)))
    row = journal.verdicts(imported.run.id)[0]
    assert (row.verdict, row.n) == ("insufficient", 2)


def test_times_of_a_file_are_kept(journal: Journal, tmp_path: Path) -> None:
    rows = [
        dict(row, role="measure", started_at=f"2026-01-02T03:04:{place:02d}+01:00")
        for place, row in enumerate(_rounds({1: 100.0, 2: 100.0}))
    ]
    imported = import_file(journal, _csv(tmp_path, rows))
    at = journal.measurements(imported.run.id)[1].measurement.started_at
    assert at == 1767319441.0


def test_control_characters_of_a_file_reach_no_terminal(journal: Journal, tmp_path: Path) -> None:
    rows = [dict(row, error="\x1b]0;owned\x07boom", finish_reason="\x1b[31mstop") for row in _rounds({1: 9.0})]
    imported = import_file(journal, _csv(tmp_path, rows))
    text = json.dumps([row.measurement.error for row in journal.measurements(imported.run.id)])
    assert "owned" not in text
    assert "u001b" not in text
    assert {row.measurement.void_reason for row in journal.measurements(imported.run.id)} == {"error"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("num_gpu,decode_tok_s\n", "no row below"),
        ("num_gpu,weather\n1,2\n", ":1: no column measures"),
        ("a,b\n1,2\n", "none of its columns"),
        ("num_gpus,decode_tok_s\n1,2\n", "Did you mean num_gpu"),
        ("num_gpu,num_gpu,decode_tok_s\n1,1,2\n", "is there twice"),
        ("num_gpu,decode_tok_s\n1,2\n1\n", ":3: has 1 cells"),
        ("num_gpu,decode_tok_s\n1,2\nmany,2\n", ":3: column num_gpu must be a whole number, not 'many'"),
        ("num_gpu,decode_tok_s\n1,nan\n", ":2: column decode_tok_s"),
        ("num_gpu,decode_tok_s\n1,inf\n", ":2: column decode_tok_s"),
        ("num_gpu;decode_tok_s\n1;3,5\n", ":2: column decode_tok_s must be a number with a decimal point, not '3,5'"),
        ("sep=;\n", "none of its columns"),
        ("sep=;\nnum_gpu;decode_tok_s\n1;x\n", ":3: column decode_tok_s must be a number, not 'x'"),
        ("num_gpu,decode_tok_s\n1,-3\n", ":2: column decode_tok_s must be at least 0"),
        ("num_gpu,decode_tok_s\n-7,3\n", ":2: column num_gpu must be from -1"),
        ("num_gpu,decode_tok_s\n" + "9" * 5000 + ",3\n", ":2: column num_gpu"),
        ("kv_cache_type,decode_tok_s\nq5,3\n", ":2: column kv_cache_type must be 'f16'"),
        ("role,decode_tok_s\nchief,3\n", ":2: column role must be warmup"),
        ("started_at,decode_tok_s\nyesterday,3\n", ":2: column started_at must be seconds"),
        ("session,decode_tok_s\n1,3\n,3\n", ":3: column session is empty here"),
        ('num_gpu,decode_tok_s\n"1,3\n', "is no CSV"),
        ("num_gpu,decode_tok_s\n1,\x00\n", "zero byte"),
        ("candidate,num_gpu,decode_tok_s\nc1,1,3\nc1,2,3\n", ":3: candidate c1 has num_gpu=2 here"),
        ("session,round,decode_tok_s\n1,1,3\n1,2,3\n", ":3: session 1 is of round 1"),
        ("num_gpu,decode_tok_s\n" + "x" * 200_000 + ",3\n", "is no CSV"),
    ],
)
def test_a_broken_csv_is_named_with_line_and_column_and_leaves_no_run(
    journal: Journal, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        import_file(journal, path)
    assert "broken.csv" in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert journal.runs() == []


def test_a_file_that_is_no_text_is_refused(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "binary.csv"
    path.write_bytes(b"num_gpu,decode_tok_s\n1,2\n\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"binary\.csv:3: is not UTF-8"):
        import_file(journal, path)
    with pytest.raises(ConfigError, match="no such file"):
        import_file(journal, tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="not a plain file"):
        import_file(journal, tmp_path)


@pytest.mark.parametrize("before", ["", "sep=;\r\n"])
def test_semicolons_a_byte_order_mark_and_unknown_columns_do_no_harm(
    journal: Journal, tmp_path: Path, before: str
) -> None:
    path = tmp_path / "sheet.csv"
    head = f"\ufeff{before}num_gpu;weather;role;decode_tok_s;"
    lines = [head, *(f"{g};sunny;measure;100;" for _ in range(4) for g in (1, 2))]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    imported = import_file(journal, path)
    assert _words(journal, imported) == {"c1": "same"}
    assert any("'weather', one without a name" in note for note in imported.notes)


def test_a_large_file_is_kept_in_few_transactions(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    writing = journal._writing

    @contextmanager
    def counted() -> Iterator[Any]:
        written.append(1)
        with writing() as connection:
            yield connection

    monkeypatch.setattr(journal, "_writing", counted)
    path = tmp_path / "large.csv"
    path.write_text("num_gpu,decode_tok_s\n" + "".join(f"{1 + n % 2},{100 + n % 7}\n" for n in range(2000)))
    imported = import_file(journal, path)
    assert len(journal.sessions(imported.run.id)) == 2000
    assert len(journal.measurements(imported.run.id)) == 2000
    assert len(written) < 20


def test_a_drift_over_very_many_sessions_is_told_without_looking_at_every_pair_of_them(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(metric: Metric, control: Sequence[tuple[float, float]]) -> Any:
        sizes.append(len(control))
        return drift(metric, control)

    monkeypatch.setattr(importing, "drift", counted)
    path = tmp_path / "large.csv"
    rows = (f"{1 + n % 2},{100 + n % 7 - 30 * n / 9000}\n" for n in range(9000))
    path.write_text("num_gpu,decode_tok_s\n" + "".join(rows))
    run = import_file(journal, path).run
    assert sizes == [1500], "of 4500 sessions of the baseline each third"
    [found] = [one for one in journal.findings(run.id) if one.code == "inconsistent-performance"]
    change = found.evidence[0].value
    assert isinstance(change, float)
    assert change == pytest.approx(-30 / 103, abs=0.01)


def test_an_import_that_was_cut_off_is_not_resumed(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("num_gpu,decode_tok_s\n1,100\n2,100\n")
    run = import_file(journal, path).run
    journal.set_state(run.id, "running")
    assert journal.run(run.id).state == "crashed"
    done = _chimera("resume", run.id)
    assert done.returncode == 2
    assert "begun anew with `chimera runs import`" in done.stderr


# ---- llama-bench -----------------------------------------------------------------------------------------------------


def _test(ngl: int, ns: Sequence[float], *, gen: int = 64, prompt: int = 0, **more: object) -> Row:
    return {
        "build_commit": "abc", "build_number": 11434, "cpu_info": "CPU", "gpu_info": "NVIDIA GeForce RTX 4080",
        "backends": "CUDA", "model_filename": "models/g.gguf", "model_type": "gemma3 4B Q4_K - Medium",
        "model_size": 3_300_000_000, "model_n_params": 4_300_000_000, "n_batch": 2048, "n_ubatch": 512, "n_threads": 8,
        "type_k": "f16", "type_v": "f16", "n_gpu_layers": ngl, "flash_attn": False, "use_mmap": True,
        "n_prompt": prompt, "n_gen": gen, "n_depth": 0, "test_time": "2026-11-23T10:00:00Z",
        "avg_ns": sum(ns) / len(ns), "stddev_ns": 1, "samples_ns": list(ns), **more,
    }  # fmt: skip


def test_llama_bench_rates_are_kept_as_it_counts_them_and_blocks_carry_no_verdict(
    journal: Journal, tmp_path: Path
) -> None:
    tests = [
        test
        for ngl, ns in ((35, 640_000_000.0), (10, 1_280_000_000.0))
        for test in (_test(ngl, [5e7] * 5, gen=0, prompt=512), _test(ngl, [ns] * 5))
    ]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(tests), encoding="utf-8")
    imported = import_file(journal, path)
    rows = journal.measurements(imported.run.id)
    rates = {row.candidate: row.measurement.decode_tok_s for row in rows if row.measurement.decode_tok_s}
    assert rates == {"c0": pytest.approx(100.0), "c1": pytest.approx(50.0)}
    assert len(journal.sessions(imported.run.id)) == 2, "prompt and generation tests of one load are one session"
    assert _words(journal, imported) == {"c1": "insufficient"}
    assert journal.trials(imported.run.id)[0].requested == Options(
        num_gpu=35, num_batch=512, num_thread=8, flash_attention="off", kv_cache_type="f16"
    )
    run = imported.run
    assert run.model is not None
    assert (run.model.name, run.server.version if run.server else None) == ("g.gguf", "b11434")
    assert run.gpus == ({"name": "NVIDIA GeForce RTX 4080"},)


def test_llama_bench_started_again_and_again_in_turns_makes_rounds(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    random = Random(5)
    lines = [
        json.dumps(_test(ngl, [ns * exp(random.gauss(0, 0.003)) for _ in range(2)]))
        for _ in range(6)
        for ngl, ns in ((35, 6.4e8), (10, 1.28e9))
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    imported = import_file(journal, path, format_="llama-bench")
    assert _words(journal, imported) == {"c1": "worse"}
    assert journal.verdicts(imported.run.id)[0].n == 6


def test_llama_bench_tests_that_differ_in_what_is_no_option_stay_apart(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([_test(35, [6e8]), _test(35, [7e8], use_mmap=False), _test(35, [1e9], gen=128)]))
    imported = import_file(journal, path, known=GEMMA)
    trials = journal.trials(imported.run.id)
    assert [trial.merged for trial in trials] == [(), ()]
    assert any("use_mmap=false" in note.lower() for trial in trials for note in trial.notes)
    assert any("tg128" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is not JSON"),
        ("[1]", "writes objects"),
        ('[{"n_prompt": 0}]', "n_gen"),
        ('[{"n_prompt": 512, "n_gen": 0, "samples_ns": [1e7]}]', "generates alone"),
        ('[{"n_prompt": 0, "n_gen": 64, "samples_ns": [0]}]', "samples_ns"),
        ('[{"n_prompt": 0, "n_gen": 64, "samples_ns": [1e999]}]', "finite"),
        ('[{"n_prompt": 0, "n_gen": 64, "samples_ns": [NaN]}]', "NaN"),
        ('[{"n_prompt": 0, "n_gen": ' + "9" * 6000 + "}]", "larger"),
        ('[{"n_prompt": 0, "n_gen": 64, "n_gpu_layers": 99999999, "samples_ns": [1e9]}]', "num_gpu"),
        ("[" * 100_000, "nested"),
    ],
)
def test_a_broken_llama_bench_file_is_named_with_its_line(
    journal: Journal, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bench\.json") as caught:
        import_file(journal, path, format_="llama-bench")
    assert words in str(caught.value)
    assert journal.runs() == []


# ---- Ollama's bench --------------------------------------------------------------------------------------------------


def test_ollamas_bench_as_csv_is_corrected_to_n_minus_1(journal: Journal, tmp_path: Path) -> None:
    epoch = "m,prefill,50,1000000,1000\nm,generate,16,10000000,100\nm,ttft,1,60000000,0\nm,load,1,9000000,0\n"
    path = tmp_path / "ollama.csv"
    path.write_text("NAME,STEP,COUNT,NS_PER_COUNT,TOKEN_PER_SEC\n" + (epoch + "m,total,1,230000000,0\n") * 3)
    imported = import_file(journal, path)
    rows = [row.measurement for row in journal.measurements(imported.run.id)]
    assert len(rows) == 3
    assert rows[0].decode_tok_s == pytest.approx(15 / 0.16)
    assert rows[0].ttft_s == pytest.approx(0.06)
    assert rows[0].prefill_tok_s is None, "its prefill counts cached tokens"
    assert imported.run.workload.output_tokens == 16


def test_ollamas_bench_as_benchstat_says_what_it_cannot_correct(journal: Journal, tmp_path: Path) -> None:
    def epoch(name: str, ns: float) -> str:
        return (
            f"BenchmarkModel/name={name}/step=prefill 1 1000.00 ns/token 1000000.00 token/sec\n"
            f"BenchmarkModel/name={name}/step=generate 1 {ns:.2f} ns/token {1e9 / ns:.2f} token/sec\n"
            f"BenchmarkModel/name={name}/step=ttft 1 60000000 ns/op\n"
            f"BenchmarkModel/name={name}/step=load 1 9000000 ns/op\n"
            f"BenchmarkModel/name={name}/step=total 1 230000000 ns/op\n"
        )

    text = "# Model: a | Params: 4B | Quant: Q4_K_M | Family: gemma3 | Size: 33 | VRAM: 44\n"
    text += "".join(epoch("a", 1e7) + epoch("b", 2e7) for _ in range(4)) + "kenModel/nam 12 ns/tok\n"
    path = tmp_path / "bench.txt"
    path.write_text(text)
    imported = import_file(journal, path)
    assert any("n/(n-1)" in note and "--output-tokens" in note for note in imported.notes)
    assert any("1 lines are not of the benchmark" in note for note in imported.notes)
    assert _words(journal, imported) == {"c1": "worse"}
    corrected = import_file(journal, path, output_tokens=200)
    rate = journal.measurements(corrected.run.id)[0].measurement.decode_tok_s
    assert rate == pytest.approx(199 / (200 * 0.01))


def test_a_file_without_any_line_of_the_benchmark_is_refused(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "bench.txt"
    path.write_text("goos: linux\nBenchmarkOther 1 3 ns/op\n")
    with pytest.raises(ConfigError, match="no line of Ollama's bench"):
        import_file(journal, path, format_="ollama-bench")


# ---- our own JSON, broken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema_version=2), "schema_version"),
        (lambda d: d.pop("measurements"), "holds no measurements"),
        (lambda d: d["trials"].append(d["trials"][0]), "candidate is there twice"),
        (lambda d: d["sessions"].append(d["sessions"][0]), "a number is there twice"),
        (lambda d: d["sessions"][0].update(candidate="cx"), "trials do not name"),
        (lambda d: d["measurements"][0].update(session=999), "there is no session 999"),
        (lambda d: d["measurements"][0].update(total_s="long"), "total_s"),
        (lambda d: d["measurements"][0].update(void_reason="bored"), "void_reason"),
        (lambda d: d["trials"][0]["requested"].update(num_gpu="many"), "num_gpu"),
        (lambda d: d["run"]["plan"].update(rules={"band": "wide"}), "run.plan"),
        (lambda d: d["run"]["plan"].update(rules=[1]), "run.plan"),
        (lambda d: d["run"].update(workload={"agents": "two"}), "agents"),
    ],
)
def test_a_changed_document_is_refused_and_leaves_no_run(
    journal: Journal, tmp_path: Path, change: Callable[[dict[str, object]], object], words: str
) -> None:
    run = _sweep(journal, gains={"c1": 0.05}, preflight=0, confirm=False, screen_rounds=3)
    told = document(journal, run, measurements=True)
    change(told)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"changed\.json") as caught:
        import_file(journal, path)
    assert words in str(caught.value)
    assert [one.id for one in journal.runs()] == [run.id]


def test_a_document_of_before_sessions_were_exported_still_has_its_verdicts(journal: Journal, tmp_path: Path) -> None:
    run = _sweep(journal, gains={"c1": 0.05, "c2": 0.0}, preflight=0, confirm=False, screen_rounds=6)
    told = document(journal, run, measurements=True)
    del told["sessions"]
    path = tmp_path / "older.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    after = {(row.candidate, row.metric): row.verdict for row in journal.verdicts(import_file(journal, path).run.id)}
    for row in journal.verdicts(run.id):
        if row.metric != "vram_bytes":
            assert after[row.candidate, row.metric] == row.verdict


def test_the_body_of_show_tells_the_model(tmp_path: Path) -> None:
    info = model_of(SAMPLES / "ollama" / "show.json")
    assert (info.block_count, info.trained_ctx) == (18, 32768)
    broken = tmp_path / "show.json"
    for text in ("[]", "{", '{"model_info": {}}'):
        broken.write_text(text)
        with pytest.raises(ConfigError, match=r"show\.json"):
            model_of(broken)


# ---- the command -----------------------------------------------------------------------------------------------------


def _chimera(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ),
    )


def test_the_command_prints_the_document_of_the_run_it_made(journal: Journal, tmp_path: Path) -> None:
    path = _csv(tmp_path, _rounds({60: 100.0, 80: 100.0, 10: 60.0}))
    show = ["--blocks", "34", "--vision", "--trained-ctx", "131072"]
    done = _chimera("runs", "import", str(path), *show, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["run"]["kind"] == "import"
    assert [trial["merged"] for trial in facts["trials"]] == [["c1"], []]
    assert facts["trials"][0]["effective"] == {"num_gpu": 35}
    assert "num_gpu 60 and 80 are one setting" in done.stdout
    assert "compared with num_gpu=60" in done.stderr
    shown = json.loads(_chimera("runs", "show", facts["run"]["id"], "--json").stdout)
    assert shown["verdicts"] == facts["verdicts"]
    assert shown["trials"] == facts["trials"]


def test_a_file_of_void_rows_is_exit_code_5_and_a_broken_one_2(journal: Journal, tmp_path: Path) -> None:
    rows = [dict(row, error="refused") for row in _rounds({1: 9.0, 2: 9.0})]
    void = _chimera("runs", "import", str(_csv(tmp_path, rows)), "--json")
    assert void.returncode == 5, void.stderr
    assert json.loads(void.stdout)["counts"]["valid"] == 0
    broken = _chimera("runs", "import", str(_csv(tmp_path, [{"num_gpu": "x", "decode_tok_s": 1}])))
    assert broken.returncode == 2
    assert "column num_gpu" in broken.stderr
    assert "Traceback" not in broken.stderr
    both = _chimera("runs", "import", str(tmp_path / "set.csv"), "--model-info", "x.json", "--blocks", "3")
    assert both.returncode == 2
    assert "--model-info" in both.stderr
