"""A remedy that was tried: whether the symptom is still seen with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chimera.domain.finding import Finding, Remedy
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.domain.workload import Workload
from chimera.runner import cure
from chimera.runner.cure import aftermath
from chimera.runner.planning import Survey
from chimera.store.journal import Journal

GOOD = Measurement(
    "measure", 0.0, total_s=1.0, ttft_s=0.2, prefill_s=0.18, decode_s=0.8, timing_source="server", prompt_tokens=230,
    cached_tokens=0, completion_tokens=40, decode_tok_s=50.0, client_decode_tok_s=50.0,
)  # fmt: skip
CUT = replace(GOOD, completion_tokens=26, void_reason="truncated")
REFUSED = replace(GOOD, error="exceed_context_size_error: request (400 tokens) exceeds the available context size (256 "
                  "tokens)", void_reason="refused", completion_tokens=None, decode_tok_s=None)  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path}/chimera.db") as journal:
        yield journal


def tried(journal: Journal, *sessions: tuple[str, Measurement], plan: dict[str, Any] | None = None) -> Run:
    """A run whose sessions sent three such requests each."""
    run = journal.create_run(
        "sweep", Target("embedded"), Workload(prompt_tokens=230, output_tokens=40), seed=1,
        trials=[Trial("c0", "baseline", requested=Options(num_ctx=256)),
                Trial("c1", "candidate", requested=Options(num_ctx=512))],
        plan={"cure": {"of": "etvz", "code": "context-truncation"}} if plan is None else plan,
    )  # fmt: skip
    for seq, (candidate, one) in enumerate(sessions, 1):
        journal.begin_session(run.id, Session(seq, candidate))
        rows = [replace(one, started_at=1_790_000_000.0 + 10 * seq + 2 * i) for i in range(3)]
        journal.add_measurements(run.id, seq, rows)
        journal.end_session(run.id, seq, "done" if one.valid else "void", facts={"tokens_sent": [230] * 3})
    return journal.run(run.id)


@pytest.mark.parametrize("broken", [CUT, REFUSED])
def test_a_window_that_holds_the_prompt_ends_the_truncation(journal: Journal, broken: Measurement) -> None:
    run = tried(journal, ("c0", broken), ("c1", GOOD))
    assert aftermath(journal, run) == (
        "context-truncation: before it is seen and 0 of 3 requests count; "
        "after it is not seen and 3 of 3 requests count"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "rounds"),
    [
        ([CUT], 2),
        ([REFUSED], 2),
        ([replace(REFUSED, role="warmup")], 2),
        ([CUT, GOOD], 8),
        ([replace(CUT, void_reason="foreign-client")], 8),
        ([], 8),
    ],
)
def test_rounds_that_cannot_count_are_few(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, before: list[Measurement], rounds: int
) -> None:
    async def known(target: Target, workload: Workload) -> Survey:
        info = ModelInfo("m", block_count=18, trained_ctx=32768)
        return Survey(ServerInfo("embedded", "", "1"), info, None, Options(num_ctx=4096), None, None, None)

    monkeypatch.setattr(cure, "_survey", known)
    run = tried(journal, *(("c0", one) for one in before), ("c1", GOOD), plan={})
    remedy = Remedy("a larger window", {"num_ctx": 512})
    [found] = cure.cures([Finding("context-truncation", "warn", "The prompt was cut.", (), remedies=(remedy,))])
    assert cure.create_cure(journal, run, found, yes=True).plan["rules"]["screen_rounds"] == rounds
    assert cure.create_cure(journal, run, found, yes=True, rounds=5).plan["rules"]["screen_rounds"] == 5


def test_a_remedy_that_does_not_help_is_not_praised(journal: Journal) -> None:
    said = aftermath(journal, tried(journal, ("c0", CUT), ("c1", CUT)))
    assert said is not None
    assert said.endswith("after it is seen and 0 of 3 requests count")


def test_other_runs_and_those_that_measured_nothing_with_it_say_nothing(journal: Journal) -> None:
    assert aftermath(journal, tried(journal, ("c0", CUT), ("c1", GOOD), plan={})) is None
    assert aftermath(journal, tried(journal, ("c0", CUT))) is None
