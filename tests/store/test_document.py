from __future__ import annotations

import csv
import io
import json
import math
import statistics
from dataclasses import fields
from typing import Any

import pytest

from chimera.domain.finding import Evidence, Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.verdict import Verdict
from chimera.store.document import CSV_COLUMNS, document, export_benchstat, export_csv
from chimera.store.journal import Journal

from .samples import FULL, new_run, request, whole_session


@pytest.fixture
def run(journal: Journal) -> Run:
    """A sweep of two candidates, three whole sessions each, one interrupted and one void."""
    run = new_run(journal, preset="fast")
    journal.identify(
        run.id,
        server=ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0"),
        model=ModelInfo("gemma3:4b", block_count=34),
        gpus=[{"uuid": "GPU-1"}],
    )
    journal.set_state(run.id, "running")
    journal.set_effective(run.id, "c1", Effective(Options(num_gpu=35), {"num_gpu": "derived"}, ("runs as 35",)))
    for number in range(3):
        whole_session(journal, run, 2 * number + 1, "c0", [100.0 + number, 102.0 + number, 98.0])
        whole_session(journal, run, 2 * number + 2, "c1", [110.0, 111.0, 112.0])
    journal.begin_session(run.id, Session(7, "c1", round=4))
    journal.add_measurement(run.id, 7, request(1.0))
    journal.interrupt(run.id)
    journal.begin_session(run.id, Session(8, "c1", round=4))
    journal.add_measurement(run.id, 8, request(None, void_reason="short-output", error="\x1b[31m=1\nred"))
    journal.end_session(run.id, 8, "void", void_reason="short-output")
    journal.set_verdicts(run.id, [Verdict("c1", "c0", "decode_tok_s", "better", 1.1, (1.05, math.inf), n=3)])
    journal.set_findings(
        run.id,
        [
            Finding(
                "clamped-settings",
                "notice",
                "80 runs as 35",
                (Evidence("num_gpu", 35, 80, source="derived"),),
            )
        ],
    )
    journal.set_state(run.id, "done")
    return journal.run(run.id)


def numbers(text: str) -> Any:
    """Parse JSON, refusing what is none."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_document_counts_each_request_once(journal: Journal, run: Run) -> None:
    found = document(journal, run)
    assert found["schema_version"] == 1
    assert found["counts"] == {"valid": 18, "void": 2, "cold": 6, "interrupted": 1, "warmup": 6}
    assert found["void_reasons"] == {"interrupted": 1, "short-output": 1}
    assert "measurements" not in found
    assert (found["run"]["id"], found["run"]["state"], found["run"]["preset"]) == (run.id, "done", "fast")
    assert found["run"]["started_at"] == "2023-11-14T22:13:20Z"
    assert found["run"]["server"]["title"] == "Ollama 0.33.0"
    assert found["run"]["model"]["block_count"] == 34
    assert found["run"]["gpus"] == [{"uuid": "GPU-1"}]


def test_a_trials_figure_is_the_median_of_its_sessions_medians(journal: Journal, run: Run) -> None:
    baseline, candidate = document(journal, run)["trials"]
    rate = baseline["decode_tok_s"]
    assert (rate["median"], rate["n"], rate["unit"], rate["source"]) == (101.0, 3, "session", "measured")
    assert rate["cv"] == pytest.approx(statistics.stdev([100.0, 101.0, 102.0]) / 101.0)
    assert candidate["decode_tok_s"]["median"] == 111.0
    assert (candidate["sessions"], candidate["void_sessions"]) == (3, 2)
    assert candidate["requested"] == {"num_gpu": 80, "temperature": 0.2}
    assert (candidate["effective"], candidate["sources"]) == ({"num_gpu": 35}, {"num_gpu": "derived"})
    assert candidate["merged"] == ["c2"]
    assert candidate["notes"] == ["80 and 120 are the same", "runs as 35"]
    assert baseline["effective"] is None


def test_an_unknown_figure_is_none_and_never_a_number(journal: Journal, run: Run) -> None:
    baseline = document(journal, run)["trials"][0]
    unknown = {"median": None, "cv": None, "n": 0, "source": "unknown", "unit": "session"}
    assert baseline["client_decode_tok_s"] == baseline["vram_bytes"] == baseline["other_s"] == unknown


def test_with_one_session_the_figure_is_over_its_requests_and_says_so(journal: Journal) -> None:
    run = new_run(journal, "run")
    whole_session(journal, run, 1, "c0", [90.0, 100.0, 104.0, 99.0])
    rate = document(journal, run)["trials"][0]["decode_tok_s"]
    assert (rate["median"], rate["n"], rate["unit"]) == (99.5, 4, "request")


def test_while_the_only_session_runs_its_requests_are_shown(journal: Journal) -> None:
    run = new_run(journal, "run")
    journal.begin_session(run.id, Session(1, "c0"))
    journal.add_measurement(run.id, 1, request(50.0))
    trial = document(journal, run)["trials"][0]
    assert (trial["decode_tok_s"]["median"], trial["decode_tok_s"]["cv"], trial["sessions"]) == (50.0, None, 0)


def test_vram_is_the_sessions_peak_or_what_the_server_allocated(journal: Journal) -> None:
    run = new_run(journal)
    for seq, peak in enumerate((4e9, 6e9, 5e9), 1):
        journal.begin_session(run.id, Session(seq, "c0"))
        journal.end_session(run.id, seq, "done", facts={"vram_peak_bytes": peak})
    journal.set_effective(run.id, "c1", Effective(vram_bytes=3 * 10**9))
    baseline, candidate = document(journal, run)["trials"]
    assert (baseline["vram_bytes"]["median"], baseline["vram_bytes"]["n"]) == (5e9, 3)
    assert candidate["vram_bytes"]["median"] == 3e9


def test_the_json_export_holds_every_field_of_every_request(journal: Journal, run: Run) -> None:
    journal.begin_session(run.id, Session(9, "c1", round=4, phase="confirm"))
    journal.add_measurement(run.id, 9, FULL)
    found = numbers(json.dumps(document(journal, run, measurements=True)))
    assert len(found["measurements"]) == 27
    last = found["measurements"][-1]
    assert (last["trial"], last["session"], last["round"], last["phase"]) == ("c1", 9, 4, "confirm")
    for item in fields(Measurement):
        if item.name != "started_at":
            assert last[item.name] == getattr(FULL, item.name), item.name
    assert last["started_at"] == "2023-11-14T22:13:20.250000Z"
    assert found["verdicts"][0]["ci"] == [1.05, None]
    assert found["findings"][0]["evidence"][0] | {"series": []} == {
        "what": "num_gpu", "value": 35, "threshold": 80, "window_s": None, "source": "derived", "unit": "", "via": "",
        "series": [],
    }  # fmt: skip


def test_each_figure_of_the_document_can_be_computed_from_the_export(journal: Journal, run: Run) -> None:
    found = numbers(json.dumps(document(journal, run, measurements=True)))
    for trial in found["trials"]:
        sessions: dict[int, list[float]] = {}
        for one in found["measurements"]:
            if one["trial"] == trial["candidate"] and one["role"] == "measure" and one["void_reason"] is None:
                sessions.setdefault(one["session"], []).append(one["decode_tok_s"])
        medians = [statistics.median(rates) for rates in sessions.values()]
        assert trial["decode_tok_s"]["median"] == statistics.median(medians)


def test_the_csv_export_parses_back(journal: Journal, run: Run) -> None:
    text = export_csv(journal, run)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["num_gpu", "temperature", *CSV_COLUMNS]
    assert len(rows) == 26
    assert [int(row["order"]) for row in rows] == list(range(1, 27))
    assert (rows[0]["num_gpu"], rows[0]["role"], rows[0]["cold"]) == ("", "warmup", "true")
    assert (rows[5]["num_gpu"], rows[5]["temperature"], float(rows[5]["decode_tok_s"])) == ("80", "0.2", 110.0)
    assert (rows[5]["other_s"], rows[5]["cold"], rows[5]["void_reason"]) == ("", "false", "")
    assert rows[-1]["void_reason"] == "short-output"
    assert "\x1b" not in text
    assert "red" in rows[-1]["error"]


def test_the_benchstat_export_holds_the_valid_requests_only(journal: Journal, run: Run) -> None:
    lines = export_benchstat(journal, run).splitlines()
    results = [line.split() for line in lines if line.startswith("Benchmark")]
    assert len(results) == 18
    assert {words[0] for words in results} == {
        "BenchmarkRequest/candidate=c0",
        "BenchmarkRequest/candidate=c1/num_gpu=80/temperature=0.2",
    }
    for words in results:
        figures = {unit: float(value) for value, unit in zip(words[2::2], words[3::2], strict=True)}
        assert words[1] == "1"
        assert set(figures) == {"ns/op", "ttft-ns/op", "decode-tok/s"}
        assert figures["ns/op"] == 1e9
    assert "Unit decode-tok/s better=higher" in lines


def test_a_run_without_anything_measured_still_has_a_document(journal: Journal) -> None:
    run = new_run(journal, trials=[])
    found = numbers(json.dumps(document(journal, run, measurements=True)))
    assert found["counts"] == {"valid": 0, "void": 0, "cold": 0, "interrupted": 0, "warmup": 0}
    assert (found["trials"], found["run"]["server"], found["run"]["started_at"]) == ([], None, None)
    assert len(export_csv(journal, run).splitlines()) == 1
    assert export_benchstat(journal, run).startswith("chimera-run: ")


def test_what_watching_took_stands_beside_the_result(journal: Journal, run: Run) -> None:
    assert "watching" not in document(journal, run), "nothing is known of it"
    for seq, facts in ((9, {"own_cpu_percent": 1.5, "nvml_calls_s": 8.0}), (10, {"own_cpu_percent": 0.5})):
        journal.begin_session(run.id, Session(seq, "c0", round=5))
        journal.end_session(run.id, seq, "done", facts=facts)
    assert document(journal, run)["watching"] == {"own_cpu_percent": 1.5, "nvml_calls_s": 8.0}
