"""What to recommend, and what else could be preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from chimera.domain.verdict import Metric, Verdict

from .plan import Outcome, Plan, by_round
from .protocol import Done, Standing, standing
from .statistics import judge, natural, paired
from .verdicts import CHOOSING, table

METRIC_WORDS: Mapping[Metric, str] = {
    "decode_tok_s": "decode rate",
    "ttft_s": "time to first token",
    "completion_s": "completion time",
    "vram_bytes": "VRAM",
    "energy_j_per_token": "energy per token",
    "aggregate_tok_s": "rate of all agents together",
    "worst_ttft_s": "worst time to first token",
}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The configuration to use, as far as the data carry it."""

    candidate: str
    """The baseline's name means: keep the default."""
    keep_default: bool
    words: str
    """One or two sentences with the figures that it rests on."""
    equals: tuple[str, ...] = ()
    """Others that are no practical difference from it on the objective; the baseline may be among them."""


def recommend(plan: Plan, outcomes: Sequence[Outcome]) -> Recommendation:
    """The winner, or the default where nothing is shown to be better.

    Only a verdict `better` wins. Of several, the one with the largest effect leads; those that are the same as it in
    their own comparison are its equals, of which the least VRAM wins. Where none is better, one that is the same as the
    default and needs less VRAM, by a verdict of its own, is the choice among equals.
    """
    return chosen(plan, standing(plan, outcomes))


def chosen(plan: Plan, now: Standing) -> Recommendation:
    """`recommend` for a standing that is already known."""
    rows = table(plan, now)
    plan = plan.without(now.same)
    on = {(row.candidate, row.metric): row for row in rows}
    deciding = [row for row in rows if row.metric == plan.objective and row.candidate in plan.candidates]
    winners = sorted((row for row in deciding if row.verdict == "better"), key=lambda row: -(row.effect or 0.0))
    same = [row for row in deciding if row.verdict == "same"]
    if winners:
        return _winner(plan, now, winners, rows)
    lighter = sorted(
        (
            row
            for row in same
            if (vram := on.get((row.candidate, "vram_bytes"))) is not None and vram.verdict == "better"
        ),
        key=lambda row: -(on[row.candidate, "vram_bytes"].effect or 0.0),
    )
    if lighter:
        best, vram = lighter[0], on[lighter[0].candidate, "vram_bytes"]
        words = (
            f"{best.candidate} is no practical difference from the default in {METRIC_WORDS[plan.objective]} "
            f"({_effect(best)}) and needs less VRAM ({_effect(vram)})."
        )
        equals = (plan.baseline, *(row.candidate for row in same if row != best))
        return Recommendation(best.candidate, False, words, equals)
    return Recommendation(plan.baseline, True, _keep(plan, now, deciding), tuple(row.candidate for row in same))


def _winner(plan: Plan, now: Standing, winners: Sequence[Verdict], rows: Sequence[Verdict]) -> Recommendation:
    rounds = by_round(now.counted, plan.objective, ("confirm",) if now.finalists else CHOOSING)
    leader = winners[0]
    equals = [leader]
    for row in winners[1:]:
        between = judge(paired(rounds, row.candidate, leader.candidate), together=len(winners) - 1, band=plan.band)
        if between.word == "same":
            equals.append(row)
    vram = {name: figure for name in plan.candidates if (figure := typical(now, name, "vram_bytes")) is not None}
    # Less VRAM has to be more than the band, else the faster one stays.
    best = leader
    for row in equals[1:]:
        if (
            row.candidate in vram
            and best.candidate in vram
            and vram[row.candidate] < vram[best.candidate] * (1 - plan.band)
        ):
            best = row
    words = f"{best.candidate} is better than the default in {METRIC_WORDS[plan.objective]}: {_effect(best)}."
    others = tuple(row.candidate for row in equals if row is not best)
    if best is not leader:
        words += f" {leader.candidate} is no practical difference from it and needs more VRAM."
    price = [METRIC_WORDS[row.metric] for row in rows if row.candidate == best.candidate and row.verdict == "worse"]
    if price:
        words += f" It is worse in {' and '.join(price)}."
    return Recommendation(best.candidate, False, words, others)


def _keep(plan: Plan, now: Standing, deciding: Sequence[Verdict]) -> str:
    if not isinstance(now.step, Done):
        return "Keep the default so far: the rounds that decide are not all there."
    if not now.step.complete:
        return f"Keep the default: {now.step.reason}"
    words = {row.verdict for row in deciding}
    if not deciding or words == {"same"}:
        return "Keep the default: there is no practical difference."
    if words <= {"same", "worse"}:
        return "Keep the default: nothing that was tried is better."
    if "undecided" in words:
        return "Keep the default: nothing is shown to be better, though not everything is decided."
    return "Keep the default: the data carry no verdict."


def _effect(row: Verdict) -> str:
    """An effect with its interval, as percentages."""
    seen = row.itself
    if seen.effect is None or seen.ci is None:
        return "effect unknown"
    low, high = (f"{value - 1:+.1%}" for value in seen.ci)
    return f"{seen.effect - 1:+.1%}, {row.level:.1%} interval {low} to {high}, {row.n} rounds"


def typical(now: Standing, candidate: str, metric: Metric) -> float | None:
    """Median over a candidate's sessions that count, in the metric's own unit."""
    costs = [
        one.costs[metric]
        for one in now.counted
        if one.session.candidate == candidate and one.session.phase != "preflight" and metric in one.costs
    ]
    return natural(metric, median(costs)) if costs else None


@dataclass(frozen=True, slots=True)
class Point:
    """What a configuration gives on each aim, in the unit of the aim."""

    candidate: str
    values: Mapping[str, float]
    """By metric, and `num_ctx`; an aim that is unknown is left out."""


def points(plan: Plan, now: Standing) -> list[Point]:
    """Every configuration that was measured, with the median of each metric and its context."""
    found = []
    for trial in plan.trials:
        values: dict[str, float] = {
            metric: value for metric in METRIC_WORDS if (value := typical(now, trial.candidate, metric)) is not None
        }
        if values and (context := plan.settings[trial.candidate].num_ctx) is not None:
            values["num_ctx"] = float(context)
        if values:
            found.append(Point(trial.candidate, values))
    return found


def pareto_front(candidates: Sequence[Point], aims: Sequence[str]) -> list[Point]:
    """Those that no other beats: as good on every aim and better on one.

    More is better for `decode_tok_s` and `num_ctx`, less for all else. A point that lacks an aim is compared on the
    others. These are medians: neighbours on the front may differ by noise alone, which only a verdict can tell.
    """
    return [one for one in candidates if not any(_beats(other, one, aims) for other in candidates if other is not one)]


def _beats(one: Point, other: Point, aims: Sequence[str]) -> bool:
    gains = [
        one.values[aim] - other.values[aim] if aim in _MORE else other.values[aim] - one.values[aim]
        for aim in aims
        if aim in one.values and aim in other.values
    ]
    lacks = any(aim in other.values and aim not in one.values for aim in aims)
    return bool(gains) and not lacks and min(gains) >= 0 and max(gains) > 0


_MORE = frozenset({"decode_tok_s", "num_ctx"})
