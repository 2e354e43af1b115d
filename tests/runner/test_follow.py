"""What a view of a run shows while it goes on: the verdict's own figures, each session looked at once."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Any

import pytest

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.verdict import Metric
from chimera.domain.workload import Workload
from chimera.runner import follow
from chimera.runner.follow import Follower
from chimera.runner.study import outcomes, plan_of
from chimera.store.journal import Journal
from chimera.tuning.plan import Plan

from .test_worker import journal

__all__ = ["journal"]


def begun(journal: Journal, objective: Metric = "decode_tok_s", agents: int = 1) -> Run:
    """A comparison of two candidates that has measured nothing yet."""
    trials = (Trial("c0", "baseline", Options()), Trial("c1", "candidate", Options(num_ctx=512)))
    rules = Plan(trials, 3, objective=objective, metrics=(objective,), preflight=0, confirm=False).as_dict()
    workload = Workload(requests=2, output_tokens=16, prompt_tokens=8, agents=agents)
    target = Target("ollama", "http://127.0.0.1:9", "m")
    return journal.create_run(
        "agents" if agents > 1 else "sweep", target, workload, seed=3, trials=trials,
        plan={"rules": rules, "settings": {}, "lenient": []},
    )  # fmt: skip


def requests(rate: float, agents: int = 1) -> list[Measurement]:
    """Two a client, one after the other; a later client waits longer for its first token."""
    return [
        Measurement(
            "measure", 1.0e9 + 3.0 * place + agent, 2.0, ttft_s=0.5 + agent, decode_tok_s=rate, completion_tokens=16,
            agent=agent,
        )
        for place in range(2) for agent in range(agents)
    ]  # fmt: skip


def measured(journal: Journal, run: Run, seq: int, candidate: str, rate: float, agents: int = 1) -> None:
    journal.begin_session(run.id, Session(seq, candidate, seq, "screen"))
    journal.add_measurements(run.id, seq, requests(rate, agents))
    journal.end_session(run.id, seq, "done", facts={"agents": agents} if agents > 1 else {})


@pytest.mark.parametrize("objective", ["completion_s", "aggregate_tok_s", "worst_ttft_s", "ttft_s", "decode_tok_s"])
def test_the_live_figure_of_several_agents_is_the_one_that_the_verdict_is_made_of(
    journal: Journal, objective: Metric
) -> None:
    run = begun(journal, objective, agents=2)
    measured(journal, run, 1, "c0", 50.0, agents=2)
    update = Follower(journal, run.id).look()
    assert update is not None
    assert update.compared is not None
    cost = outcomes(journal, run, plan_of(journal, run))[0].costs[objective]
    expected = exp(-cost) if objective in {"aggregate_tok_s", "decode_tok_s"} else exp(cost)
    assert update.compared.figures["c0"].median == pytest.approx(expected)
    if objective == "completion_s":
        assert expected == pytest.approx(5.0), "of all that an agent was asked, not of one request"
    if objective == "worst_ttft_s":
        assert expected == pytest.approx(1.5)


def test_a_session_counts_when_it_has_ended_and_is_looked_at_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []

    def words(found: Mapping[str, Any]) -> str:
        looked.append(found["rate_tok_s"])
        return "a line"

    monkeypatch.setattr(follow, "blame_words", words)
    run = begun(journal)
    view = Follower(journal, run.id)
    journal.begin_session(run.id, Session(1, "c0", 1, "screen"))
    journal.add_measurements(run.id, 1, requests(10.0))
    update = view.look()
    assert update is not None
    assert update.compared is not None
    assert (dict(update.compared.sessions), update.compared.figures) == ({}, {})
    journal.end_session(run.id, 1, "done")
    for seq, rate in enumerate((20.0, 30.0), 2):
        update = view.look()
        assert update is not None
        assert update.compared is not None
        assert update.compared.sessions == {"c0": seq - 1}, "the end of a session alone is news"
        measured(journal, run, seq, "c0", rate)
    journal.begin_session(run.id, Session(4, "c1", 1, "screen"))
    journal.end_session(run.id, 4, "void", void_reason="error")
    update = view.look()
    assert update is not None
    assert update.compared is not None
    assert (update.compared.sessions, update.compared.void) == ({"c0": 3}, {"c1": 1})
    assert update.compared.figures["c0"].median == pytest.approx(20.0)
    assert update.compared.figures["c0"].n == 3
    assert looked == [10.0, 20.0, 30.0]
    late = Follower(journal, run.id).look()
    assert late is not None
    assert late.compared == update.compared
    assert looked == [10.0, 20.0, 30.0, 30.0], "of sessions that ended long ago only the newest is told of"
