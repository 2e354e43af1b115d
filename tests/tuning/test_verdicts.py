from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimera.domain.options import Options
from chimera.domain.run import Session, SessionPhase, Trial
from chimera.domain.verdict import Verdict
from chimera.tuning.plan import Outcome, Plan
from chimera.tuning.protocol import standing
from chimera.tuning.verdicts import imported_verdicts, verdicts

from .scripted import Source, plan, play, trials


def row(rows: list[Verdict], candidate: str, metric: str = "decode_tok_s") -> Verdict:
    [found] = [one for one in rows if (one.candidate, one.metric) == (candidate, metric)]
    return found


def test_each_candidate_gets_one_verdict_on_each_metric_that_was_measured() -> None:
    rules = plan(6, metrics=("decode_tok_s", "ttft_s", "vram_bytes"))
    rows = verdicts(rules, play(rules, Source())[0])
    assert sorted((one.metric, one.candidate) for one in rows) == sorted(
        (metric, candidate) for metric in ("decode_tok_s", "ttft_s") for candidate in rules.candidates
    )
    assert {one.against for one in rows} == {"c0"}


def test_the_better_one_is_called_better_by_its_confirmation_rounds() -> None:
    rules = plan(6)
    outcomes, _ = play(rules, Source({"c4": 0.08}))
    now = standing(rules, outcomes)
    said = row(verdicts(rules, outcomes), "c4")
    assert said.verdict == "better"
    assert said.level == pytest.approx(1 - 0.05 / 2)
    assert said.n == now.confirm_rounds
    assert said.ci is not None
    assert said.ci[0] < 1.0833 < said.ci[1]


def test_a_winner_of_the_screening_by_luck_is_not_better() -> None:
    class Lucky(Source):
        def finish(self, session: Session, before: object) -> Outcome:
            one = super().finish(session, before)  # type: ignore[arg-type]  # passed on as it came
            luck = 0.2 if session.phase == "screen" and session.candidate == "c2" else 0.0
            return replace(one, costs={metric: cost - luck for metric, cost in one.costs.items()})

    rules = plan(6)
    outcomes, _ = play(rules, Lucky(noise=0.004))
    assert "c2" in standing(rules, outcomes).finalists
    said = row(verdicts(rules, outcomes), "c2")
    assert said.verdict == "same"
    assert said.effect == pytest.approx(1.0, abs=0.01)


def test_one_left_behind_can_be_worse_but_never_better_or_same() -> None:
    rules = plan(6)
    gains = {"c1": 0.20, "c2": 0.20, "c3": 0.08, "c4": 0.08, "c5": -1.0}
    outcomes, _ = play(rules, Source(gains, noise=0.002))
    rows = verdicts(rules, outcomes)
    assert row(rows, "c5").verdict == "worse"
    assert (row(rows, "c5").reason or "").startswith("Dropped after screening round 3")
    for name in ("c3", "c4", "c6"):
        assert row(rows, name).verdict == "undecided"
        assert "do not prove" in (row(rows, name).reason or "")
    assert (row(rows, "c3").effect or 0) > 1.05


def test_no_word_is_given_before_the_planned_rounds_are_there() -> None:
    rules = plan(2, confirm_rounds=12)
    outcomes, _ = play(rules, Source({"c1": 0.5}, noise=0.001))
    early = [one for one in outcomes if one.session.phase != "confirm" or one.session.round <= 9]
    said = row(verdicts(rules, early), "c1")
    assert (said.verdict, said.n) == ("undecided", 9)
    assert said.reason == "9 of 12 rounds so far; the verdict comes with the last."
    assert said.ci is not None
    assert row(verdicts(rules, outcomes), "c1").verdict == "better"


def test_while_screening_nothing_is_claimed() -> None:
    rules = plan(8)
    outcomes, _ = play(rules, Source({"c1": 0.5}, noise=0.001))
    early = [one for one in outcomes if one.session.phase == "preflight" or one.session.round <= 3]
    early = [one for one in early if one.session.phase != "confirm"]
    said = row(verdicts(rules, early), "c1")
    assert said.verdict == "undecided"
    assert "choose what is confirmed" in (said.reason or "")
    assert {one.verdict for one in verdicts(rules, [])} == {"insufficient"}


def test_without_confirmation_all_candidates_are_judged_together() -> None:
    rules = plan(4, confirm=False, screen_rounds=6)
    outcomes, _ = play(rules, Source({"c1": 0.2}, noise=0.003))
    rows = verdicts(rules, outcomes)
    assert {one.level for one in rows} == {1 - 0.05 / 4}
    assert {one.n for one in rows} == {6}
    assert row(rows, "c1").verdict == "better"
    assert row(rows, "c2").verdict == "same"


def test_two_rounds_end_insufficient_with_a_reason() -> None:
    rules = plan(2, confirm=False, screen_rounds=2)
    rows = verdicts(rules, play(rules, Source({"c1": 1.0}))[0])
    assert {one.verdict for one in rows} == {"insufficient"}
    assert "needs at least 3" in (rows[0].reason or "")


def test_a_candidate_with_the_baseline_s_effect_is_the_same_without_being_run() -> None:
    known = (Trial("c0", "baseline", Options(), merged=("c2", "c3")), Trial("c1", "candidate", Options(num_thread=1)))
    rules = Plan(known, 7, confirm_rounds=8)
    outcomes, _ = play(rules, Source())
    said = row(verdicts(rules, outcomes), "c3")
    assert (said.verdict, said.effect, said.ci, said.n) == ("same", 1.0, None, 0)
    assert (said.reason or "").startswith("Derived")
    assert {one.session.candidate for one in outcomes} == {"c0", "c1"}


def test_a_vram_figure_that_never_varies_is_still_judged() -> None:
    rules = plan(1, metrics=("decode_tok_s", "vram_bytes"), confirm_rounds=8)
    outcomes, _ = play(rules, Source())
    heavy = [
        replace(one, costs={**one.costs, "vram_bytes": 22.0 if one.session.candidate == "c0" else 21.5})
        for one in outcomes
    ]
    said = row(verdicts(rules, heavy), "c1", "vram_bytes")
    assert said.verdict == "better"
    assert said.ci == pytest.approx((1.6487, 1.6487), abs=1e-3)


# From a file


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7), st.booleans())
def test_the_sessions_of_a_run_give_the_same_verdicts_when_they_come_from_a_file(
    seed: int, k: int, confirm: bool
) -> None:
    rules = plan(k, seed=seed, confirm=confirm)
    outcomes, _ = play(rules, Source({"c1": 0.07, "c2": -0.3}, seed=seed))
    ours = verdicts(rules, outcomes)
    theirs = imported_verdicts(Plan(trials(k), 0), outcomes)
    assert [replace(one, reason=None) for one in theirs] == [replace(one, reason=None) for one in ours]


def measured(candidate: str, round_: int, cost: float, phase: SessionPhase = "measure") -> Outcome:
    return Outcome(Session(round_ * 10 + int(candidate[1]), candidate, round_, phase, "done"), {"decode_tok_s": cost})


def test_a_file_whose_rows_were_not_interleaved_carries_no_verdict() -> None:
    outcomes = [measured(name, number, -1.0 - 0.5 * (name == "c1")) for name in ("c0", "c1") for number in range(1, 9)]
    rules = plan(1)
    assert [one.verdict for one in imported_verdicts(rules, outcomes)] == ["better"]
    [said] = imported_verdicts(rules, outcomes, in_rounds=False)
    assert said.verdict == "insufficient"
    assert "drift" in (said.reason or "")
    assert said.ci is None


def test_a_file_with_one_row_each_is_insufficient() -> None:
    [said] = imported_verdicts(plan(1), [measured("c0", 1, -1.0), measured("c1", 1, -2.0)])
    assert (said.verdict, said.n) == ("insufficient", 1)


def test_a_candidate_that_failed_in_the_file_says_so() -> None:
    failed = Outcome(Session(5, "c1", 1, "measure", "void", "error"), failure="out-of-memory")
    [said] = imported_verdicts(plan(1), [measured("c0", 1, -1.0), failed])
    assert (said.verdict, said.reason) == ("insufficient", "It ran out of memory.")


def test_people_read_an_effect_as_the_change_of_the_figure_itself() -> None:
    # A TTFT of a fiftieth of the speed is fifty times as long, not 98 % shorter; half the memory is -50 %.
    slow = Verdict("c1", "c0", "ttft_s", "worse", 0.02, (0.01, 0.04), 0.95, 8).itself
    assert slow.effect == pytest.approx(50.0)
    assert slow.ci == pytest.approx((25.0, 100.0))
    small = Verdict("c1", "c0", "vram_bytes", "better", 2.0, (2.0, 2.0), 0.95, 8).itself
    assert (small.effect, small.ci) == (0.5, (0.5, 0.5))
    fast = Verdict("c1", "c0", "decode_tok_s", "better", 1.1, (1.05, 1.15), 0.95, 8)
    assert fast.itself == fast
    none = Verdict("c1", "c0", "ttft_s", "insufficient")
    assert none.itself == none
