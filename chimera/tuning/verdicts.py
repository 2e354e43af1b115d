"""The table at the end, and the one on the screen until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chimera.domain.run import SessionPhase
from chimera.domain.verdict import Metric, Verdict, VerdictWord

from .plan import Outcome, Plan, by_round
from .protocol import FAILURE_WORDS, Done, Dropped, Standing, stand_for, standing
from .statistics import MIN_ROUNDS, Judgement, judge, level_for, paired

CHOOSING: tuple[SessionPhase, ...] = ("screen", "measure")
"""Phases whose sessions are judged where nothing was confirmed."""


def verdicts(plan: Plan, outcomes: Sequence[Outcome]) -> list[Verdict]:
    """A verdict for every candidate on every metric that was measured.

    A confirmed candidate is judged by confirmation rounds alone, at the level for those confirmed together. Without
    confirmation all the rounds count, at the level for all candidates. One that the screening left behind was chosen
    by its own data: these can show that it is worse, nothing else. Levels hold for each metric by itself. Until the
    planned number of rounds is there, a word could be due to when one looks, so it is `undecided`.
    """
    return table(plan, standing(plan, outcomes))


def table(plan: Plan, now: Standing) -> list[Verdict]:
    """`verdicts` of a standing that is already known."""
    everything, plan = plan, plan.without(now.same)
    complete = isinstance(now.step, Done) and now.step.complete
    seen = {metric for one in now.counted for metric in one.costs}
    rows: list[Verdict] = []
    for metric in dict.fromkeys((plan.objective, *plan.metrics)):
        if metric != plan.objective and metric not in seen:
            continue
        rows += [_derived(plan, candidate, metric) for candidate in _like_baseline(plan)]
        own = {name: _verdict(plan, now, name, metric, complete) for name in plan.candidates}
        rows += [own.get(name) or _twin(plan, now, name, own, metric) for name in everything.candidates]
    return rows


def imported_verdicts(plan: Plan, outcomes: Sequence[Outcome], *, in_rounds: bool = True) -> list[Verdict]:
    """The same table for sessions that came from a file, whatever rules they were measured by.

    Nothing is played again: confirmation rounds decide where there are any, else all rounds.

    Args:
        plan: Trials, band and metrics; its rounds and phases are not looked at.
        outcomes: Sessions with the rounds of the file; sessions of rounds that were set aside left out.
        in_rounds: False where the file tells no rounds, nor has an order in which candidates alternate: any drift
            would then look like an effect.
    """
    same = stand_for(plan, outcomes)
    final = {one.session.candidate for one in outcomes if one.session.phase == "confirm"} - {plan.baseline, *same}
    now = Standing(
        step=Done("Imported."),
        open=plan.candidates,
        counted=tuple(
            one
            for one in outcomes
            if one.counts(plan.objective) and one.session.phase != "preflight" and one.session.candidate not in same
        ),
        set_aside=frozenset(),
        hot_rounds=(),
        lacking=(),
        dropped=tuple(Dropped(name, 0, "not-finalist") for name in plan.candidates if final and name not in final),
        failed={one.session.candidate: one.failure for one in outcomes if one.failure and not _worked(outcomes, one)},
        same=same,
        finalists=tuple(name for name in plan.candidates if name in final),
    )
    rows = table(replace(plan, confirm=bool(final)), now)
    if in_rounds:
        return rows
    reason = "The rows were not interleaved: a drift between them would look like an effect."
    return [row if _is_derived(plan, row) else _insufficient(row, reason) for row in rows]


def _verdict(plan: Plan, now: Standing, candidate: str, metric: Metric, complete: bool) -> Verdict:
    dropped = next((one for one in now.dropped if one.candidate == candidate), None)
    confirmed = candidate in now.finalists
    together = len(now.finalists) if confirmed else len(plan.candidates)
    rounds = by_round(now.counted, metric, ("confirm",) if confirmed else CHOOSING)
    said = judge(paired(rounds, candidate, plan.baseline), together=together, band=plan.band)
    row = _row(plan, candidate, metric, said)
    if candidate in now.failed:
        return _insufficient(row, f"It {FAILURE_WORDS[now.failed[candidate]]}.")
    if candidate in now.unlaunched:
        failed = now.unlaunched[candidate]
        words = FAILURE_WORDS[now.failed[failed]]
        return _insufficient(row, f"Not launched: {failed} {words}, and this needs at least as much memory.")
    if dropped:
        return _left_behind(row, dropped)
    if complete:
        return row
    word: VerdictWord = "insufficient" if said.n < MIN_ROUNDS else "undecided"
    return replace(row, verdict=word, reason=_so_far(plan, now, said, confirmed))


def _row(plan: Plan, candidate: str, metric: Metric, said: Judgement) -> Verdict:
    return Verdict(
        candidate=candidate,
        against=plan.baseline,
        metric=metric,
        verdict=said.word,
        effect=said.effect,
        ci=said.ci,
        level=said.level,
        n=said.n,
        reason=said.reason,
    )


def _left_behind(row: Verdict, dropped: Dropped) -> Verdict:
    why = {
        "slower-half": f"Dropped after screening round {dropped.after}: not in the better half.",
        "behind-leader": f"Dropped after screening round {dropped.after}: clearly behind the leader.",
        "not-finalist": "Not among the best that were confirmed.",
    }[dropped.why]
    if row.verdict in ("worse", "insufficient"):
        return replace(row, reason=f"{why} {row.reason}" if row.reason else why)
    return replace(row, verdict="undecided", reason=f"{why} Rounds that choose do not prove.")


def _so_far(plan: Plan, now: Standing, said: Judgement, confirmed: bool) -> str:
    if isinstance(now.step, Done):
        return now.step.reason
    if plan.confirm and not confirmed:
        return f"{said.n} screening rounds so far; they choose what is confirmed and decide nothing else."
    planned = now.confirm_rounds if confirmed else plan.screen_rounds
    return f"{said.n} of {planned} rounds so far; the verdict comes with the last."


def _insufficient(row: Verdict, reason: str) -> Verdict:
    return replace(row, verdict="insufficient", ci=None, reason=reason)


def _like_baseline(plan: Plan) -> tuple[str, ...]:
    return next(trial.merged for trial in plan.trials if trial.candidate == plan.baseline)


def _is_derived(plan: Plan, row: Verdict) -> bool:
    return row.candidate in _like_baseline(plan)


def _twin(plan: Plan, now: Standing, candidate: str, own: Mapping[str, Verdict], metric: Metric) -> Verdict:
    """The row of a candidate that turned out, once loaded, to be another one."""
    stays = now.same[candidate]
    reason = f"Read back: it runs what {stays} runs, so it was not measured again and {stays} stands for both."
    if stays == plan.baseline:
        return Verdict(candidate, plan.baseline, metric, "same", effect=1.0, level=level_for(1), reason=reason)
    row = own[stays]
    return replace(row, candidate=candidate, reason=f"{reason} {row.reason}" if row.reason else reason)


def _derived(plan: Plan, candidate: str, metric: Metric) -> Verdict:
    reason = "Derived: its settings have the same effect as the baseline's, so it was not run."
    return Verdict(candidate, plan.baseline, metric, "same", effect=1.0, level=level_for(1), reason=reason)


def _worked(outcomes: Sequence[Outcome], one: Outcome) -> bool:
    return any(other.session.candidate == one.session.candidate and other.session.state == "done" for other in outcomes)
