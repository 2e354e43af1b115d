"""Recorded traffic of real servers, turned into evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chimera.diagnosis.evidence import EngineStart, EvidenceSet, Failure, Request
from chimera.diagnosis.rules import diagnose
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import LoadedModel, ServerSample, SlotState
from chimera.domain.workload import Workload

from .builders import WALL, must

SAMPLES = Path(__file__).parents[1] / "samples"
OLLAMA = ServerInfo("ollama", "http://127.0.0.1:11434", "0.0.0")
GEMMA = ModelInfo("gemma3:270m", block_count=18, trained_ctx=32768, size_bytes=253_113_024)


def final(name: str) -> dict[str, Any]:
    """The last object of a recorded stream."""
    lines = (SAMPLES / "ollama" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    text = "".join(json.loads(line)["raw"] for line in lines[1:])
    return dict(json.loads(text.strip().splitlines()[-1]))


def status(name: str) -> int:
    return int(json.loads((SAMPLES / "ollama" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0])["status"])


def request(name: str, at: float, **changes: Any) -> Request:
    """A recorded Ollama answer, with times split as Ollama's fields allow."""
    last = final(name)
    total, load = last["total_duration"] / 1e9, last["load_duration"] / 1e9
    prefill, decode = last["prompt_eval_duration"] / 1e9, last["eval_duration"] / 1e9
    queue = total - load - prefill - decode
    return Request(
        Measurement(
            "measure", WALL + at, total, ttft_s=total - decode, queue_s=queue, load_s=load, prefill_s=prefill,
            decode_s=decode, timing_source="server", prompt_tokens=last["prompt_eval_count"],
            completion_tokens=last["eval_count"], decode_tok_s=(last["eval_count"] - 1) / decode,
            finish_reason=last["done_reason"], cold=load > 0.5,
        ),
        **changes,
    )  # fmt: skip


def test_a_silently_truncated_prompt_is_found() -> None:
    cut = request("generate-prompt-truncated-silently", 0, tokens_sent=902, output_tokens=4)
    evidence = EvidenceSet(requests=(cut,), server=OLLAMA, model=GEMMA, effective=Effective(Options(num_ctx=256)))
    finding = must(evidence, "context-truncation")
    assert finding.evidence[0].value == 131
    assert any(each.options == {"num_ctx": 1024} for each in finding.remedies)


def test_a_refused_prompt_is_found_with_the_window_it_needs() -> None:
    name = "error-400-context-truncate-false"
    refused = Failure(final(name)["error"], WALL, status(name))
    evidence = EvidenceSet(failures=(refused,), server=OLLAMA, model=GEMMA, effective=Effective(Options(num_ctx=256)))
    assert {"num_ctx": 1024} in [each.options for each in must(evidence, "context-truncation").remedies]


def test_the_queue_that_no_field_names_is_found() -> None:
    waits = tuple(request("generate-stream-queued", 13.0 * i) for i in range(2))
    finding = must(EvidenceSet(requests=waits, server=OLLAMA), "queueing")
    assert 9.6 < float(finding.evidence[0].value or 0) < 9.8


def test_a_cold_call_is_only_a_remark_and_its_times_are_kept_apart() -> None:
    cold = request("generate-stream-cold", 0)
    findings = diagnose(EvidenceSet(requests=(cold,), server=OLLAMA))
    assert [(each.code, each.severity) for each in findings] == [("cold-load", "info")]


def test_a_cached_prefix_that_ollama_does_not_tell_is_found_by_its_rate() -> None:
    cold = request("generate-stream-cold", 0)
    warm = tuple(request("generate-stream-warm-prefix-cached", 10.0 * i) for i in (1, 2, 3))
    finding = must(EvidenceSet(requests=(cold, *warm), workload=Workload(prompt_file="p.txt")), "prompt-cache-hit")
    assert float(finding.evidence[0].value or 0) > 9


def test_out_of_memory_and_a_full_queue_are_told_apart() -> None:
    oom = Failure(final("error-500-oom-at-load")["error"], WALL, 500, True, Options(num_gpu=80, num_ctx=8192))
    assert must(EvidenceSet(failures=(oom,), model=GEMMA), "vram-exhaustion").cause == "vram-exhaustion/explicit-layers"
    name = "error-503-queue-full"
    busy = Failure(final(name)["error"], WALL, status(name))
    assert [each.code for each in diagnose(EvidenceSet(failures=(busy,)))] == ["queueing"]


def matrix() -> list[dict[str, Any]]:
    return list(json.loads((SAMPLES / "ollama" / "reload-matrix.json").read_text(encoding="utf-8")))


def starts(rows: list[dict[str, Any]]) -> tuple[EngineStart, ...]:
    return tuple(
        EngineStart(WALL + 8 * i, 100 + i, {name: str(value) for name, value in row["args"].items()})
        for i, row in enumerate(rows)
        if row["reloaded"] and row.get("args")
    )


def test_the_recorded_reloads_show_that_the_batch_follows_the_window() -> None:
    finding = must(EvidenceSet(engine_starts=starts(matrix()), server=OLLAMA), "clamped-settings")
    assert finding.cause == "clamped-settings/batch-follows-window"


def test_two_recorded_windows_in_turn_are_thrash() -> None:
    rows = {row["args"]["-c"]: row for row in matrix() if row["reloaded"] and row.get("args")}
    one, two = list(rows.values())[:2]
    finding = must(EvidenceSet(engine_starts=starts([one, two, one, two]), server=OLLAMA), "reload-thrash")
    assert finding.cause == "reload-thrash/other-options"


def polls() -> tuple[ServerSample, ...]:
    found = []
    for line in (SAMPLES / "llama-server" / "poll-slots-metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        slots = tuple(
            SlotState(each["id"], each["is_processing"], each.get("id_task"), each.get("n_prompt_tokens"),
                      each.get("n_prompt_tokens_cache"), each.get("n_decoded"))
            for each in row["slots"]
        )  # fmt: skip
        found.append(ServerSample(
            row["t"], busy=row["metrics"]["requests_processing"], waiting=row["metrics"]["requests_deferred"],
            slots=slots, models=(LoadedModel("gemma"),), via="/slots",
        ))  # fmt: skip
    return tuple(found)


def test_a_server_with_more_clients_than_slots_is_seen_from_outside() -> None:
    """Three clients on two slots: the third waited for 24 s."""
    assert must(EvidenceSet(server_samples=polls()), "queueing").cause == "queueing/slots"


def test_the_quiet_part_of_the_recording_gives_nothing() -> None:
    quiet = tuple(each for each in polls() if each.waiting == 0)
    assert len(quiet) > 20
    assert diagnose(EvidenceSet(server_samples=quiet)) == []
