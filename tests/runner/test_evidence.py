"""From what the journal keeps to what the rules see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chimera.diagnosis.evidence import EvidenceSet
from chimera.diagnosis.rules import diagnose
from chimera.domain.finding import Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import (
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuState,
    HostSample,
    LoadedModel,
    ServerSample,
    SlotState,
    Snapshot,
    Throttle,
)
from chimera.domain.workload import Workload
from chimera.model.shape import from_gguf
from chimera.runner.evidence import evidence_of, history_of, needs, read_samples
from chimera.runner.sampler import encode
from chimera.store.journal import Journal

WALL = 1_790_000_000.0
OFFSET = WALL - 500.0
MODEL = ModelInfo("gemma3:270m", digest="sha256:aa", block_count=18, trained_ctx=32768)
GONE = Missing("unsupported", "NVML: Not Supported")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path}/chimera.db") as journal:
        yield journal


def snapshot(at: float) -> Snapshot:
    gpu = GpuSample(
        "GPU-1", at, utilization=91.0, temperature_c=GONE, reasons=32.0,
        throttle_s={"sw-thermal": 3.5, "hw-thermal": GONE}, throttles=(Throttle("sw-thermal", 0.4, "counter", 0.4),),
        window_s=1.0, processes=(GpuProcess(7, "engine", 2e9, 80.0),), xids=(79,),
    )  # fmt: skip
    return Snapshot(
        at,
        GpuState(at, (GpuInfo("GPU-1", 0, "A card", driver="575.1", bandwidth_gb_s=936.0),), (gpu,), driver="575.1"),
        HostSample(at + 0.01, cpu_percent=12.5, steal_percent=GONE, per_core_percent=(10.0, 15.0)),
        ServerSample(
            at + 0.02, rate=40.0, busy=1.0, slots=(SlotState(0, True, decoded=5),),
            models=(LoadedModel(MODEL.name, 4e9, GONE, 4096.0),), engine_pids=(7,),
        ),
    )  # fmt: skip


def measurement(at: float, rate: float = 50.0, **changes: Any) -> Measurement:
    plain = Measurement(
        "measure", WALL + at, total_s=1.0, ttft_s=0.2, prefill_s=0.18, decode_s=0.8, timing_source="server",
        prompt_tokens=64, cached_tokens=0, completion_tokens=32, decode_tok_s=rate, client_decode_tok_s=rate,
    )  # fmt: skip
    return replace(plain, **changes)


def record(
    journal: Journal,
    rates: tuple[float, ...] = (50.0, 50.2, 49.9, 50.1),
    *,
    version: str = "0.33.0",
    options: Options | None = None,
    facts: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Run:
    """A finished run of one session."""
    options = options or Options()
    run = journal.create_run(
        "run", Target("ollama", "http://127.0.0.1:11434"), Workload(), seed=1,
        trials=[Trial("c0", "candidate", requested=options)],
    )  # fmt: skip
    server = ServerInfo("ollama", "http://127.0.0.1:11434", version)
    journal.identify(
        run.id, server=server, model=MODEL, gpus=[{"uuid": "GPU-1", "index": 0, "name": "A card", "driver": "575.1"}]
    )
    journal.set_effective(run.id, "c0", Effective(options.over(Options(num_ctx=4096)), pid=77))
    journal.begin_session(run.id, Session(1, "c0"))
    rows = [measurement(1.2 * place, rate, **(changes or {})) for place, rate in enumerate(rates)]
    journal.add_measurements(run.id, 1, rows)
    journal.end_session(run.id, 1, "done", facts=facts or {})
    journal.set_state(run.id, "done")
    return journal.run(run.id)


def found(evidence: EvidenceSet, code: str) -> Finding | None:
    return next((one for one in diagnose(evidence) if one.code == code), None)


def test_a_snapshot_comes_back_out_of_the_journal_as_it_was(journal: Journal) -> None:
    written = snapshot(500.0)
    journal.add_samples(None, [(WALL, {**encode(written), "tok_s": 41.5, "of another version": 1})])
    [read] = read_samples(journal, None)
    assert read.snapshot == written
    assert (read.tok_s, read.offset) == (41.5, OFFSET)


def test_samples_of_before_a_sleep_are_moved_onto_the_clock_of_after_it(journal: Journal) -> None:
    run = record(journal)
    slept = 3600.0
    journal.add_samples(
        run.id,
        [
            (WALL, encode(snapshot(500.0))),
            (WALL + 1, encode(snapshot(501.0))),
            (WALL + slept + 2, encode(snapshot(502.0))),
        ],
    )
    evidence = evidence_of(journal, run)
    assert evidence.clock_offset_s == OFFSET + slept
    assert [one.at - 500.0 for one in evidence.gpu_samples] == [-slept, 1 - slept, 2.0]
    assert evidence.resumed_at == WALL + slept + 2
    assert evidence.host_samples[0].at == pytest.approx(500.01 - slept)


def test_evidence_holds_what_the_run_met_and_where_its_samples_lie(journal: Journal) -> None:
    facts = {"tokens_sent": [64] * 4, "answer_s": [0.2, None, 9.0, 0.2], "throttle_shares": {"sw-thermal": 0.2}}
    run = record(journal, facts=facts)
    journal.add_samples(run.id, [(WALL + at, encode(snapshot(500.0 + at))) for at in range(5)])
    evidence = evidence_of(journal, run)
    assert [one.tokens_sent for one in evidence.requests] == [64] * 4
    assert [one.answer_s for one in evidence.requests] == [0.2, None, 9.0, 0.2]
    assert evidence.sessions[0].throttle_shares == {"sw-thermal": 0.2}
    assert evidence.engine_pids == {7, 77}
    assert evidence.driver == "575.1"
    assert evidence.effective is not None
    assert evidence.effective.options.num_ctx == 4096
    first = evidence.requests[0].measurement
    assert evidence.clock_offset_s is not None
    assert first.started_at - evidence.clock_offset_s == evidence.gpu_samples[0].at
    assert len(evidence_of(journal, run, window_s=2.0).gpu_samples) < 5


def test_a_prompt_that_the_server_cut_in_silence_is_seen_by_what_was_sent(journal: Journal) -> None:
    cut = {"prompt_tokens": 2053, "void_reason": "truncated"}
    run = record(journal, facts={"tokens_sent": [6000] * 4}, changes=cut)
    finding = found(evidence_of(journal, run), "context-truncation")
    assert finding is not None
    assert finding.cause == "context-truncation/silent-cut"
    whole = record(journal, facts={"tokens_sent": [64] * 4})
    assert found(evidence_of(journal, whole), "context-truncation") is None


def test_failures_keep_the_servers_words_and_its_status(journal: Journal) -> None:
    refused = "POST http://127.0.0.1:11434/api/generate refused with status 503: server busy, please try again."
    run = record(journal, changes={"void_reason": "refused", "error": refused})
    evidence = evidence_of(journal, run)
    assert [one.status for one in evidence.failures] == [503] * 4
    assert not evidence.failures[0].at_load
    assert found(evidence, "queueing") is not None


def test_a_rate_that_fell_after_the_server_changed_is_called_so(journal: Journal) -> None:
    for _ in range(3):
        record(journal, version="0.32.0")
    slow = record(journal, rates=(30.0, 30.1, 29.9, 30.0), version="0.33.0")
    history = history_of(journal, slow)
    assert [(one.version, one.driver, one.digest, one.n) for one in history] == [
        ("0.32.0", "575.1", "sha256:aa", 4)
    ] * 3
    finding = found(evidence_of(journal, slow), "server-regression")
    assert finding is not None
    assert finding.cause == "server-regression/version"
    alike = record(journal, rates=(50.0, 50.1, 49.9, 50.0), version="0.33.0")
    assert found(evidence_of(journal, alike), "server-regression") is None


def test_only_runs_before_it_with_warm_valid_measurements_are_a_runs_history(journal: Journal) -> None:
    record(journal, changes={"void_reason": "foreign-client"})
    record(journal, changes={"cold": True})
    record(journal, rates=(50.0, 50.0))
    good = record(journal, rates=(50.0, 51.0, 52.0), options=Options(num_gpu=9))
    last = record(journal)
    record(journal)
    [past] = history_of(journal, last)
    assert past.run == good.id
    assert (past.decode_tok_s, past.options) == (51.0, Options(num_ctx=4096, num_gpu=9))


@pytest.mark.embedded
def test_what_a_configuration_needs_follows_from_the_models_file(gemma_path: Path) -> None:
    shape = from_gguf(gemma_path)
    card = GpuInfo("GPU-1", 0, "A card", bandwidth_gb_s=936.0)
    small = needs(shape, Options(num_ctx=4096), (card,))
    large = needs(shape, Options(num_ctx=8192), (card,))
    each = small["kv_bytes_per_token"]
    assert each > 0
    assert large["forecast_bytes"] - small["forecast_bytes"] == pytest.approx(4096 * each)
    assert shape.weight_bytes is not None
    assert small["roof_tok_s"] >= 936e9 / shape.weight_bytes
    assert "roof_tok_s" not in needs(shape, Options(num_ctx=4096), ())
    assert needs(None, Options(), (card,)) == {}
