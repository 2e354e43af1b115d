from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimera.domain.measurement import VoidReason
from chimera.domain.options import Options
from chimera.domain.run import Session, Trial
from chimera.domain.server import Effective
from chimera.tuning.objectives import recommend
from chimera.tuning.plan import Failure, Outcome, Plan, by_round, confirmed_together, same_configuration, share_one_load
from chimera.tuning.protocol import Done, NeedCohort, Round, next_sessions, standing, started_hot
from chimera.tuning.statistics import level_for
from chimera.tuning.verdicts import verdicts

from .scripted import Source, plan, play, trials, visits

# The course of a run


def test_a_full_run_goes_from_preflight_through_halving_to_confirmation() -> None:
    rules = plan(8)
    gains = {"c3": 0.09, "c5": 0.08, "c4": 0.06, "c6": 0.06}
    outcomes, step = play(rules, Source(gains, noise=0.02))
    now = standing(rules, outcomes)
    assert step == Done("Every round that was planned is there.")
    assert visits(outcomes, "preflight") == {number: ["c0"] for number in range(1, 7)}
    screen = visits(outcomes, "screen")
    assert [len(round_) for round_ in screen.values()] == [9, 9, 9, 5, 5, 5]
    assert now.finalists == ("c3", "c5")
    confirm = visits(outcomes, "confirm")
    assert len(confirm) == now.confirm_rounds
    assert all(sorted(round_) == ["c0", "c3", "c5"] for round_ in confirm.values())


def test_the_slower_half_goes_after_round_three_and_says_so() -> None:
    rules = plan(8)
    gains = {"c1": -0.1, "c2": -0.1, "c3": -0.1, "c4": -0.1}
    outcomes, _ = play(rules, Source(gains, noise=0.001))
    first = [one for one in standing(rules, outcomes).dropped if one.after == 3]
    assert {one.candidate for one in first} == {"c1", "c2", "c3", "c4"}
    assert {one.why for one in first} == {"slower-half"}


@pytest.mark.parametrize(("candidates", "kept"), [(7, 4), (5, 3), (4, 2), (3, 2)])
def test_half_of_an_odd_number_is_rounded_up_and_never_below_the_confirmed(candidates: int, kept: int) -> None:
    rules = plan(candidates, preflight=0)
    after = [one for one in play(rules, Source(noise=0.05))[0] if one.session.phase == "screen"]
    after = [one for one in after if one.session.round <= 3]
    assert len(standing(rules, after).open) == kept


def test_one_clearly_behind_the_leader_goes_after_round_five() -> None:
    rules = plan(8, confirmed=2)
    gains = {"c1": 0.05, "c2": 0.05, "c3": 0.0501, "c4": -0.2, "c5": -0.5, "c6": -0.5, "c7": -0.5, "c8": -0.5}
    outcomes, _ = play(rules, Source(gains, noise=0.01))
    after = {one.candidate: (one.after, one.why) for one in standing(rules, outcomes).dropped}
    assert after["c4"] == (5, "behind-leader")
    assert len(visits(outcomes, "screen")[6]) == 4


def test_a_few_candidates_skip_the_screening() -> None:
    rules = plan(4, confirmed=confirmed_together(4))
    outcomes, _ = play(rules, Source())
    assert visits(outcomes, "screen") == {}
    assert standing(rules, outcomes).finalists == ("c1", "c2", "c3", "c4")
    assert confirmed_together(5) == 2


def test_without_confirmation_every_candidate_gets_every_round() -> None:
    rules = plan(5, confirm=False, screen_rounds=6, preflight=0)
    outcomes, step = play(rules, Source({"c1": -2.0}))
    assert isinstance(step, Done)
    assert all(sorted(round_) == ["c0", "c1", "c2", "c3", "c4", "c5"] for round_ in visits(outcomes, "screen").values())
    assert len(visits(outcomes, "screen")) == 6
    assert {one.session.phase for one in outcomes} == {"screen"}


def test_rounds_have_fresh_orders_that_follow_from_the_seed() -> None:
    rules = plan(6, confirm=False, screen_rounds=12)
    orders = list(visits(play(rules, Source())[0], "screen").values())
    assert len({tuple(order) for order in orders}) > 8
    again = list(visits(play(rules, Source(seed=99))[0], "screen").values())
    assert orders == again
    other = list(visits(play(replace(rules, seed=8), Source())[0], "screen").values())
    assert orders != other
    assert len({order.index("c0") for order in orders}) > 3


def test_rounds_of_the_confirmation_follow_from_the_preflight_alone() -> None:
    calm, loud = plan(2), plan(2)
    first = [Source(noise=0.001).finish(one, []) for one in planned_preflight(calm)]
    outcomes, _ = play(calm, Source(noise=0.05), first)
    assert standing(calm, outcomes).confirm_rounds == 8
    first = [Source(noise=0.05).finish(one, []) for one in planned_preflight(loud)]
    outcomes, _ = play(loud, Source(noise=0.001), first)
    assert standing(loud, outcomes).confirm_rounds == 32


def planned_preflight(rules: Plan) -> list[Session]:
    return [Session(number, rules.baseline, number, "preflight") for number in range(1, rules.preflight + 1)]


def test_a_comparison_without_candidates_runs_nothing() -> None:
    step = next_sessions(plan(0), [])
    assert isinstance(step, Done)
    assert "nothing to compare" in step.reason


def test_a_cohort_is_asked_for_when_the_last_one_is_screened() -> None:
    rules = plan(8, cohorts=(tuple(f"c{n}" for n in range(1, 9)),), cohorts_planned=2)
    gains = {"c2": 0.05, "c4": 0.04, "c12": 0.20}
    outcomes, step = play(rules, Source(gains))
    assert step == NeedCohort(2)
    more = trials(16)
    grown = replace(rules, trials=more, cohorts=(*rules.cohorts, tuple(f"c{n}" for n in range(9, 17))))
    outcomes, step = play(grown, Source(gains), outcomes)
    assert isinstance(step, Done)
    assert standing(grown, outcomes).finalists == ("c2", "c12")
    assert all("c0" in round_ for round_ in visits(outcomes, "screen").values())


def test_a_search_begins_with_the_preflight_and_then_asks_for_its_first_cohort() -> None:
    rules = plan(0, cohorts_planned=2)
    outcomes, step = play(rules, Source())
    assert step == NeedCohort(1)
    assert len(outcomes) == rules.preflight
    grown = replace(rules, trials=trials(1), cohorts=(("c1",),))
    outcomes, step = play(grown, Source(), outcomes)
    assert step == NeedCohort(2)
    assert len(visits(outcomes, "screen")) == 3
    outcomes, step = play(replace(grown, cohorts_planned=1), Source(), outcomes)
    assert isinstance(step, Done)
    assert step.complete


def test_cohorts_are_compared_through_the_baseline_when_the_machine_slowed_down_between_them() -> None:
    class Slowing(Source):
        def finish(self, session: Session, before: object) -> Outcome:
            one = super().finish(session, before)  # type: ignore[arg-type]  # passed on as it came
            slow = 0.3 if session.phase == "screen" and session.round > 6 else 0.0
            return replace(one, costs={metric: cost + slow for metric, cost in one.costs.items()})

    groups = (("c1", "c2", "c3", "c4"), ("c5", "c6", "c7", "c8"))
    rules = plan(8, cohorts=groups, cohorts_planned=2)
    outcomes, _ = play(rules, Slowing({"c1": 0.03, "c6": 0.08, "c7": 0.06}, noise=0.002))
    assert standing(rules, outcomes).finalists == ("c6", "c7")


# Void sessions


def test_a_void_session_is_repeated_once_at_the_end_of_its_round() -> None:
    def once(session: Session, attempt: int) -> VoidReason | None:
        return "foreign-client" if session.candidate == "c1" and session.round == 2 and attempt == 0 else None

    rules = plan(2, preflight=0, confirm_rounds=8)
    outcomes, _ = play(rules, Source(voids=once))
    second = visits(outcomes, "confirm")[2]
    assert Counter(second) == {"c0": 1, "c1": 2, "c2": 1}
    assert second[-1] == "c1"
    assert standing(rules, outcomes).lacking == ()
    assert {row.n for row in verdicts(rules, outcomes)} == {8}


def test_a_session_void_twice_leaves_the_round_without_that_pair() -> None:
    def always(session: Session, attempt: int) -> VoidReason | None:
        return "cache-hit" if session.candidate == "c1" and session.round == 2 else None

    rules = plan(2, preflight=0, confirm_rounds=8)
    outcomes, step = play(rules, Source(voids=always))
    assert isinstance(step, Done)
    assert visits(outcomes, "confirm")[2].count("c1") == 2
    assert standing(rules, outcomes).lacking == (("confirm", 2, "c1"),)
    assert {row.candidate: row.n for row in verdicts(rules, outcomes) if row.metric == "decode_tok_s"} == {
        "c1": 7,
        "c2": 8,
    }


def test_a_round_without_its_baseline_pairs_nobody() -> None:
    def always(session: Session, attempt: int) -> VoidReason | None:
        return "foreign-client" if session.candidate == "c0" and session.round == 3 else None

    rules = plan(2, preflight=0, confirm_rounds=8)
    outcomes, _ = play(rules, Source(voids=always))
    assert {row.n for row in verdicts(rules, outcomes)} == {7}


def test_a_session_that_is_done_but_has_no_value_counts_as_void() -> None:
    rules = plan(1, preflight=0, confirm_rounds=8)
    step = next_sessions(rules, [])
    assert isinstance(step, Round)
    empty = Outcome(replace(step.sessions[0], state="done"), {"ttft_s": 0.1})
    after = next_sessions(rules, [empty])
    assert isinstance(after, Round)
    assert [one.candidate for one in after.sessions] == [step.sessions[1].candidate, step.sessions[0].candidate]


def test_sequence_numbers_are_never_used_twice() -> None:
    def some(session: Session, attempt: int) -> VoidReason | None:
        return "error" if attempt == 0 and session.round % 3 == 0 else None

    outcomes, _ = play(plan(5), Source(voids=some))
    numbers = [one.session.seq for one in outcomes]
    assert numbers == list(range(1, len(numbers) + 1))


# Heat


def test_a_hot_round_is_repeated_whole_after_a_cool_down() -> None:
    rules = plan(2, preflight=0, confirm_rounds=8)
    source = Source(hot=lambda session: session.round == 2 and session.candidate == "c1")
    found: list[Outcome] = []
    cooled = []
    while isinstance(step := next_sessions(rules, found), Round):
        if step.cool_down:
            cooled.append(step.number)
        found.append(source.finish(step.sessions[0], found))
    now = standing(rules, found)
    assert cooled == [3]
    assert len(visits(found, "confirm")) == 9
    assert now.set_aside == {one.session.seq for one in found if one.session.round == 2}
    assert {one.session.round for one in now.counted} == {1, 3, 4, 5, 6, 7, 8, 9}
    assert now.hot_rounds == ()


def test_a_round_is_repeated_for_heat_at_most_twice_and_then_counts() -> None:
    rules = plan(1, preflight=0, confirm_rounds=8)
    outcomes, _ = play(rules, Source(hot=lambda session: True))
    now = standing(rules, outcomes)
    assert len(visits(outcomes, "confirm")) == 24
    assert [number for _, number in now.hot_rounds] == list(range(3, 25, 3))
    assert {row.n for row in verdicts(rules, outcomes)} == {8}


def test_set_aside_values_never_reach_a_verdict() -> None:
    class Poisoned(Source):
        def finish(self, session: Session, before: object) -> Outcome:
            one = super().finish(session, before)  # type: ignore[arg-type]  # passed on as it came
            poison = 5.0 if one.hot and session.candidate == "c1" else 0.0
            return replace(one, costs={metric: cost + poison for metric, cost in one.costs.items()})

    rules = plan(1, preflight=0, confirm_rounds=8)
    outcomes, _ = play(rules, Poisoned(hot=lambda session: session.round in (2, 5)))
    [effect, _] = [row.effect for row in verdicts(rules, outcomes)]
    assert effect == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("throttled", "start", "usual", "hot"),
    [
        (0.0101, 60.0, 60.0, True),
        (0.01, 60.0, 60.0, False),
        (0.0, 68.1, 60.0, True),
        (0.0, 68.0, 60.0, False),
        (None, None, None, False),
        (None, 90.0, None, False),
        (None, 90.0, 60.0, True),
    ],
)
def test_heat_is_more_than_one_percent_of_throttling_or_eight_degrees(
    throttled: float | None, start: float | None, usual: float | None, hot: bool
) -> None:
    assert started_hot(throttled=throttled, start_c=start, preflight_start_c=usual) is hot


# Failures


def grid_plan(**rules: object) -> Plan:
    points = list(product((0, 9, 18, 27), (2048, 4096, 8192)))
    candidates = [
        Trial(f"c{place}", "candidate", Options(num_gpu=layers, num_ctx=context))
        for place, (layers, context) in enumerate(points, start=1)
    ]
    return Plan((Trial("c0", "baseline", Options(num_ctx=2048)), *candidates), **rules)  # type: ignore[arg-type]  # any field of a plan


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("failure", ["out-of-memory", "crash"])
def test_memory_runs_out_once_a_line_and_nothing_beyond_is_launched(seed: int, failure: Failure) -> None:
    rules = grid_plan(seed=seed, confirm=False, screen_rounds=4)
    options = rules.settings

    def needs(candidate: str) -> int:
        return (options[candidate].num_gpu or 0) * 300 + (options[candidate].num_ctx or 0)

    def fails(session: Session, attempt: int) -> Failure | None:
        return failure if session.candidate != "c0" and needs(session.candidate) > 9000 else None

    outcomes, step = play(rules, Source(fails=fails))
    now = standing(rules, outcomes)
    assert isinstance(step, Done)
    assert step.complete
    launched = Counter(one.session.candidate for one in outcomes if one.failure)
    assert set(launched.values()) == {1}
    assert len({options[name].num_gpu for name in launched}) == len(launched)
    assert len({options[name].num_ctx for name in launched}) == len(launched)
    too_large = {name for name in rules.candidates if needs(name) > 9000}
    assert set(now.failed) | set(now.unlaunched) == too_large
    assert set(now.failed) == set(launched)
    reasons = {row.candidate: row.reason for row in verdicts(rules, outcomes) if row.candidate in too_large}
    assert all("memory" in (reason or "") or "crashed" in (reason or "") for reason in reasons.values())


def test_a_candidate_that_worked_before_gets_a_second_try_after_a_crash() -> None:
    def fails(session: Session, attempt: int) -> Failure | None:
        return "crash" if session.candidate == "c1" and session.round == 4 and attempt == 0 else None

    rules = plan(2, preflight=0, confirm_rounds=8)
    outcomes, _ = play(rules, Source(fails=fails))
    now = standing(rules, outcomes)
    assert now.failed == {}
    assert {row.n for row in verdicts(rules, outcomes)} == {8}


def test_a_candidate_that_crashes_twice_in_a_round_is_out_and_the_rest_goes_on() -> None:
    def fails(session: Session, attempt: int) -> Failure | None:
        return "crash" if session.candidate == "c1" and session.round == 4 else None

    rules = plan(2, preflight=0, confirm_rounds=8)
    outcomes, step = play(rules, Source(fails=fails))
    assert isinstance(step, Done)
    assert standing(rules, outcomes).failed == {"c1": "crash"}
    words = {row.candidate: row for row in verdicts(rules, outcomes) if row.metric == "decode_tok_s"}
    assert words["c1"].verdict == "insufficient"
    assert words["c1"].reason == "It crashed the engine."
    assert words["c2"].n == 8


def test_a_baseline_that_cannot_be_loaded_ends_the_run_with_a_reason() -> None:
    outcomes, step = play(plan(2), Source(fails=lambda session, attempt: "load-failed"))
    assert step == Done("The baseline could not be loaded twice in a row.", complete=False)
    assert len(outcomes) == 2


def test_when_every_candidate_fails_the_run_ends_and_says_what_happened() -> None:
    rules = plan(3)
    outcomes, step = play(
        rules, Source(fails=lambda session, attempt: "out-of-memory" if session.candidate != "c0" else None)
    )
    assert isinstance(step, Done)
    assert not step.complete
    assert {row.verdict for row in verdicts(rules, outcomes)} == {"insufficient"}


# Killed and resumed, in any order


def disturbed(seed: int) -> Source:
    """A server on which everything goes wrong now and then, by (candidate, phase, round, attempt) alone."""

    def draw(what: str, session: Session, attempt: int) -> float:
        return Random(f"{what} {seed} {session.phase} {session.round} {session.candidate} {attempt}").random()

    def voids(session: Session, attempt: int) -> VoidReason | None:
        return "foreign-client" if draw("void", session, attempt) < 0.1 else None

    def fails(session: Session, attempt: int) -> Failure | None:
        return "crash" if session.candidate != "c0" and draw("fail", session, attempt) < 0.01 else None

    return Source(
        {"c1": 0.06, "c2": 0.05, "c4": -0.03},
        noise=0.01,
        seed=seed,
        voids=voids,
        fails=fails,
        hot=lambda session: draw("hot", session, 0) < 0.03,
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans(), st.data())
def test_a_run_killed_anywhere_goes_on_to_the_same_table(seed: int, k: int, confirm: bool, data: st.DataObject) -> None:
    rules = plan(k, seed=seed, confirm=confirm)
    source = disturbed(seed)
    whole, end = play(rules, source)
    kills = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4))
    found: list[Outcome] = []
    for kill in sorted(kills):
        while isinstance(step := next_sessions(rules, found), Round) and len(found) < kill:
            found.append(source.finish(step.sessions[0], found))
        if isinstance(step, Round):
            found.append(Outcome(replace(step.sessions[0], state="void", void_reason="interrupted")))
    found, again = play(rules, source, found)
    kept = [one for one in found if not one.interrupted]
    assert again == end
    assert [(one.session.phase, one.session.round, one.session.candidate) for one in kept] == [
        (one.session.phase, one.session.round, one.session.candidate) for one in whole
    ]
    assert verdicts(rules, found) == verdicts(rules, whole)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_neither_the_table_nor_what_comes_next(
    seed: int, k: int, confirm: bool, random: Random
) -> None:
    rules = plan(k, seed=seed, confirm=confirm)
    outcomes, _ = play(rules, disturbed(seed))
    outcomes = outcomes[: random.randint(0, len(outcomes))]
    mixed = outcomes.copy()
    random.shuffle(mixed)
    assert standing(rules, mixed) == standing(rules, outcomes)
    # The same cells finished in another order within their rounds: only their numbers differ.
    first_tries: dict[tuple[str, int], list[Outcome]] = {}
    for one in outcomes:
        first_tries.setdefault((one.session.phase, one.session.round), []).append(one)
    if any(len({one.session.candidate for one in cells}) != len(cells) for cells in first_tries.values()):
        return
    renumbered = []
    for cells in first_tries.values():
        numbers = [one.session.seq for one in cells]
        random.shuffle(numbers)
        renumbered += [
            replace(one, session=replace(one.session, seq=number)) for one, number in zip(cells, numbers, strict=True)
        ]
    assert verdicts(rules, renumbered) == verdicts(rules, outcomes)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans(), st.integers(1, 4))
def test_every_round_is_complete_once_each_and_has_the_baseline(
    seed: int, k: int, confirm: bool, confirmed: int
) -> None:
    rules = plan(k, seed=seed, confirm=confirm, confirmed=confirmed)
    outcomes, step = play(rules, disturbed(seed))
    now = standing(rules, outcomes)
    assert isinstance(step, Done)
    cells = Counter((one.session.phase, one.session.round, one.session.candidate) for one in now.counted)
    assert set(cells.values()) == {1}
    tries = Counter((one.session.phase, one.session.round, one.session.candidate) for one in outcomes)
    assert max(tries.values()) <= 2
    for phase in ("screen", "confirm"):
        for number, names in visits(outcomes, phase).items():
            assert rules.baseline in names
            valid = by_round(now.counted, rules.objective, (phase,)).get(number)
            if valid is not None and step.complete:
                lacking = {name for where, round_, name in now.lacking if (where, round_) == (phase, number)}
                assert set(names) == set(valid) | lacking | (now.failed.keys() & set(names))
    assert rules.baseline not in {one.candidate for one in now.dropped} | now.failed.keys() | now.unlaunched.keys()


def test_the_outlook_is_what_is_then_run_when_all_goes_well() -> None:
    rules = plan(5)
    found: list[Outcome] = []
    expected: list[str] = []
    while isinstance(step := next_sessions(rules, found), Round):
        if not expected:
            expected = [one.candidate for one in step.sessions]
        assert step.sessions[0].candidate == expected.pop(0)
        assert [one.candidate for one in step.sessions[1:]] == expected
        found.append(Source().finish(step.sessions[0], found))


def test_planning_needs_neither_numpy_nor_scipy_nor_optuna() -> None:
    code = (
        "import sys, chimera.tuning.protocol, chimera.tuning.verdicts, chimera.tuning.objectives, "
        "chimera.tuning.estimate, chimera.tuning.search; "
        "found = {'numpy', 'scipy', 'optuna', 'pydantic', 'sqlalchemy', 'textual', 'rich'} & set(sys.modules); "
        "sys.exit(' '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# The plan itself


def test_a_plan_survives_the_journal() -> None:
    import json

    rules = plan(3, band=0.03, confirm_rounds=12, metrics=("decode_tok_s", "vram_bytes"), cohorts=(("c1", "c2", "c3"),))
    stored = json.loads(json.dumps(rules.as_dict()))
    assert Plan.of(rules.trials, rules.seed, {**stored, "axes": {"num_gpu": [1]}}) == rules


@pytest.mark.parametrize(
    "rules",
    [{"band": 0.0}, {"band": 0.06}, {"screen_rounds": 0}, {"confirm_rounds": 0}, {"cohorts": (("c1",),)}],
)
def test_a_plan_that_cannot_work_says_so(rules: dict[str, Any]) -> None:
    from chimera.errors import ConfigError

    with pytest.raises(ConfigError):
        plan(2, **rules)


def test_a_plan_needs_exactly_one_baseline() -> None:
    from chimera.errors import ConfigError

    with pytest.raises(ConfigError, match="exactly one baseline"):
        Plan((Trial("c1", "candidate", Options()),), 1)


def test_only_sampling_differences_share_one_load() -> None:
    warm = [
        Trial(f"c{place}", "candidate", Options(num_gpu=9, temperature=heat)) for place, heat in enumerate((0.2, 1.2))
    ]
    assert share_one_load(warm)
    assert not share_one_load([*warm, Trial("c9", "candidate", Options(num_gpu=9, num_ctx=2048))])


# Candidates that turn out to be one


def test_a_candidate_that_loads_as_another_one_is_not_measured_and_has_its_verdict() -> None:
    rules = plan(4, confirmed=4)
    outcomes, step = play(rules, Source({"c3": 0.09}, same={"c2": "c0", "c4": "c3"}))
    assert step == Done("Every round that was planned is there.")
    seen = Counter(one.session.candidate for one in outcomes)
    now = standing(rules, outcomes)
    assert seen["c2"] == 1, "it was loaded once, and void"
    (twin,) = {"c3", "c4"} & now.same.keys()
    (stays,) = {"c3", "c4"} - {twin}
    assert now.same == {"c2": "c0", twin: stays}
    assert seen[twin] == 1
    assert now.finalists == tuple(name for name in ("c1", "c3", "c4") if name != twin)
    assert now.confirm_rounds == standing(rules, outcomes[:6]).confirm_rounds, "fixed before the first of them"
    assert now.lacking == ()
    rows = {row.candidate: row for row in verdicts(rules, outcomes) if row.metric == "decode_tok_s"}
    assert list(rows) == ["c1", "c2", "c3", "c4"], "one verdict each"
    assert (rows["c2"].verdict, rows["c2"].effect, rows["c2"].n) == ("same", 1.0, 0)
    assert (rows[twin].effect, rows[twin].ci, rows[twin].n) == (rows[stays].effect, rows[stays].ci, rows[stays].n)
    assert f"runs what {stays} runs" in (rows[twin].reason or "")
    assert rows["c1"].level == level_for(2), "two are judged together, not four"


def test_where_everything_loads_as_the_baseline_nothing_is_measured_any_more() -> None:
    rules = plan(2)
    outcomes, step = play(rules, Source(same={"c1": "c0", "c2": "c0"}))
    assert isinstance(step, Done)
    assert step.complete
    assert "nothing differs" in step.reason
    assert {one.session.candidate for one in outcomes if one.session.state == "done"} == {"c0"}
    assert outcomes[-1].session.void_reason == "same-settings", "it ends with the load that showed it"
    assert {row.verdict for row in verdicts(rules, outcomes)} == {"same"}
    assert recommend(rules, outcomes).keep_default


@pytest.mark.parametrize("seed", range(6))
def test_a_baseline_that_loads_as_a_candidate_measured_before_takes_its_place(seed: int) -> None:
    rules = plan(2, seed=seed, preflight=0, confirm=False, screen_rounds=4)
    outcomes, step = play(rules, Source(same={"c1": "c0"}))
    assert isinstance(step, Done)
    now = standing(rules, outcomes)
    assert now.same == {"c1": "c0"}
    assert Counter(one.session.candidate for one in now.counted) == {"c0": 4, "c2": 4}
    assert {one.session.round for one in outcomes if one.session.candidate == "c1"} == {1}
    rows = {row.candidate: row for row in verdicts(rules, outcomes) if row.metric == "decode_tok_s"}
    assert (rows["c1"].verdict, rows["c2"].n) == ("same", 4)


def test_what_turned_out_to_be_one_is_known_again_after_a_crash_at_any_point() -> None:
    rules = plan(6, confirmed=2)
    source = Source({"c3": 0.05}, same={"c2": "c0", "c5": "c3", "c6": "c3"}, noise=0.02)
    whole, step = play(rules, source)
    assert set(standing(rules, whole).same) >= {"c2"}
    for cut in range(len(whole)):
        assert play(rules, source, whole[:cut]) == (whole, step)


READ = {"num_ctx": 2048, "num_thread": 2, "flash_attention": "on"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"flash_attention": "auto"}, {"flash_attention": "on"}, True),
        ({}, {"num_thread": 2}, True),
        ({"temperature": 0.2}, {"temperature": 0.8}, False),
        ({"num_batch": 512}, {}, False),
    ],
)
def test_only_what_was_read_back_makes_two_configurations_one(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    runs = Effective(Options.of(READ), dict.fromkeys(READ, "measured"))
    assert same_configuration(Options.of(one), runs, Options.of(other), runs) is same
    guess = Effective(Options.of(READ), {**dict.fromkeys(READ, "measured"), "flash_attention": "estimated"})
    if "flash_attention" in {*one, *other}:
        assert not same_configuration(Options.of(one), runs, Options.of(other), guess), "a guess proves nothing"
    differs = Effective(Options.of({**READ, "num_ctx": 4096}), runs.sources)
    assert not same_configuration(Options.of(one), runs, Options.of(other), differs)
