"""Runs and figures for the tests of the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, RunKind, Session, Target, Trial
from chimera.domain.server import ModelInfo
from chimera.domain.workload import Workload
from chimera.store.journal import Journal

TARGET = Target("ollama", "http://127.0.0.1:11434", "gemma3:4b")
BASELINE = Trial("c0", "baseline", Options())
HIGH = Trial(
    "c1", "candidate", Options(num_gpu=80, temperature=0.2), merged=("c2",), notes=("80 and 120 are the same",)
)

FULL = Measurement(
    role="measure",
    started_at=1_700_000_000.25,
    total_s=0.93,
    ttft_s=0.21,
    queue_s=0.01,
    load_s=0.02,
    prefill_s=0.15,
    decode_s=0.7,
    other_s=0.05,
    timing_source="server",
    prompt_tokens=64,
    cached_tokens=3,
    completion_tokens=65,
    tokens_estimated=True,
    client_decode_tok_s=91.25,
    decode_tok_s=91.5,
    prefill_tok_s=406.7,
    effective_tok_s=69.9,
    itl_p50_s=0.0109,
    itl_p95_s=0.0131,
    itl_max_s=0.04,
    finish_reason="length",
    cold=True,
    void_reason="cache-hit",
    error="3 of 64 tokens were cached",
    retries=1,
    agent=1,
    instance=2,
)
"""Every field differs from its default."""


class Clock:
    """Wall clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def new_run(
    journal: Journal,
    kind: RunKind = "sweep",
    *,
    trials: Sequence[Trial] = (BASELINE, HIGH),
    model: str | None = None,
    **more: Any,
) -> Run:
    """A queued run; `model` is what its worker would have found."""
    run = journal.create_run(kind, TARGET, Workload(), seed=7, trials=trials, **more)
    if model is not None:
        journal.identify(run.id, model=ModelInfo(model))
    return run


def request(rate: float | None = 100.0, **changes: Any) -> Measurement:
    """A plain request that counts."""
    return replace(Measurement("measure", 1_700_000_000.0, 1.0, ttft_s=0.2, decode_tok_s=rate), **changes)


def whole_session(journal: Journal, run: Run, seq: int, candidate: str, rates: Sequence[float]) -> None:
    """A session with a discarded request and one request a rate, done."""
    journal.begin_session(run.id, Session(seq, candidate, round=seq))
    journal.add_measurement(run.id, seq, request(1.0, role="warmup", cold=True))
    journal.add_measurements(run.id, seq, [request(rate) for rate in rates])
    journal.end_session(run.id, seq, "done")
