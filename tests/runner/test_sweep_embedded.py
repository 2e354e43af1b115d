"""Sweeps on the real engine, in the short form; the whole protocol runs in `benchmarks/real_sweep.py`."""

from __future__ import annotations

from math import log, sqrt
from statistics import fmean, median, stdev
from typing import Any

import pytest

from chimera.store.journal import Journal
from chimera.tuning.statistics import level_for, t_quantile

from .test_worker import chimera, facts_of, journal

__all__ = ["journal"]

pytestmark = [pytest.mark.embedded, pytest.mark.alone]


def session_values(facts: dict[str, Any], phase: str) -> dict[int, dict[str, float]]:
    """Log rates by round and candidate, from the raw requests of the document alone."""
    requests: dict[tuple[int, str, int], list[float]] = {}
    for one in facts["measurements"]:
        if one["role"] == "measure" and one["void_reason"] is None and one["phase"] == phase:
            requests.setdefault((one["round"], one["trial"], one["session"]), []).append(log(one["decode_tok_s"]))
    table: dict[int, dict[str, float]] = {}
    for (round_, candidate, _), values in requests.items():
        table.setdefault(round_, {})[candidate] = median(values)
    return table


@pytest.mark.timeout(300)
def test_a_short_sweep_ends_with_a_verdict_for_each_candidate_that_its_raw_data_give_again(journal: Journal) -> None:
    done = chimera(
        "sweep", "--embedded", "--num-thread", "1,2", "--kv-cache-type", "f16,q4_0", "--rounds", "6", "--no-confirm",
        "--preflight", "4", "--requests", "1", "--output-tokens", "20", "--prompt-tokens", "16", "--seed", "11",
        "--json", timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_id = facts_of(done)["run"]["id"]
    facts = facts_of(chimera("attach", run_id, "--json", "--measurements"))
    assert facts["run"]["state"] == "done"
    trials = {one["candidate"]: one for one in facts["trials"]}
    verdicts = {one["candidate"]: one for one in facts["verdicts"] if one["metric"] == "decode_tok_s"}
    merged = {name for one in facts["trials"] for name in one["merged"]}
    assert set(verdicts) == {"c1", "c2", "c3", "c4"}, "one verdict for each candidate, merged ones among them"
    rounds = session_values(facts, "screen")
    together = len(trials) - 1
    for name, row in verdicts.items():
        if name in merged and name not in trials:
            assert (row["verdict"], row["n"]) == ("same", 0)
            continue
        pairs = [values[name] - values["c0"] for values in rounds.values() if name in values and "c0" in values]
        assert row["n"] == len(pairs) <= 6
        assert row["level"] == level_for(together)
        half = t_quantile(1 - (1 - row["level"]) / 2, len(pairs) - 1) * stdev(pairs) / sqrt(len(pairs))
        assert log(row["effect"]) == pytest.approx(fmean(pairs))
        assert log(row["ci"][1] / row["ci"][0]) / 2 == pytest.approx(half)
    standing = facts["standing"]
    assert standing["noise"]["n"] == 4
    assert standing["smallest_better"] > facts["run"]["plan"]["rules"]["band"]
    found = [row for row in verdicts.values() if row["verdict"] in {"better", "worse"}]
    largest = max(abs(row["effect"] - 1) for row in verdicts.values())
    # Either a difference was found, or the plan had said that one of this size cannot be seen at this noise, or the
    # noise grew: the intervals themselves are then wider than what the plan had promised.
    grew = max(row["ci"][1] / row["effect"] - 1 for row in verdicts.values() if row["ci"]) > standing["half_width"]
    assert found or largest < standing["smallest_better"] or grew
    assert facts["recommendation"]["words"]


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_temperatures_are_compared_inside_one_load(journal: Journal) -> None:
    done = chimera(
        "sweep", "--embedded", "--temperature", "0.2,0.8,1.2", "--rounds", "24", "--no-confirm", "--preflight", "3",
        "--output-tokens", "64", "--prompt-tokens", "16", "--seed", "5", "--json", timeout=640,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)
    assert facts["run"]["plan"]["rules"]["one_load"] is True
    run_id = facts["run"]["id"]
    sessions = journal.sessions(run_id)
    assert [one.facts.get("load_s") is not None for one in sessions] == [True] + [False] * (len(sessions) - 1)
    warmups = [row for row in journal.measurements(run_id) if row.measurement.role == "warmup"]
    assert len(warmups) == 1, "one load, one discarded request"
    verdicts = [one for one in facts["verdicts"] if one["metric"] == "decode_tok_s" and one["n"]]
    assert verdicts
    for row in verdicts:
        assert row["n"] >= 8
        assert row["verdict"] in {"better", "same", "worse", "undecided"}
        assert 0.9 < row["ci"][0] <= row["ci"][1] < 1.1
