"""The arithmetic of decisions, on natural logarithms of costs.

Every session has one value a metric: the logarithm of a cost, so that less is better and a difference of two values is
the logarithm of a ratio. An effect is baseline cost over candidate cost: above 1 the candidate is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, expm1, fsum, inf, isfinite, log, log1p, sqrt
from statistics import median

from chimera.domain.measurement import Measurement
from chimera.domain.verdict import RATES, Metric, VerdictWord

from .plan import CONFIRM_MAX, CONFIRM_MIN, CONFIRM_UNPLANNED

CONFIDENCE = 0.95
MIN_ROUNDS = 3
"""Fewer complete rounds than this carry no verdict."""
DRIFT_LIMIT = 0.03
"""Change of the control over a run that is worth a finding."""
NOISE_LIMIT = 0.03
"""Smallest detectable effect above which a person is told to wait or to measure for longer."""
_CAUTION = 0.8
"""The preflight's noise is planned with at its upper bound of this one-sided confidence: six sessions know little.
With less, the promises of `confirmation_rounds` do not hold on average; `benchmarks/studies.py` has the figures."""
_MANY = 200
"""Rounds that nobody will run: beyond this a difference counts as too close to the band's edge to be decided."""


# One session


def session_costs(
    measurements: Iterable[Measurement],
    *,
    output_tokens: int,
    vram_bytes: float | None = None,
    energy_j_per_token: float | None = None,
) -> dict[Metric, float]:
    """The session's value in each metric that is known: the median over its valid requests, as a log cost.

    Args:
        measurements: All requests of the session; warm-up and void ones are left out here.
        output_tokens: Length of an answer of the workload, for its completion time.
        vram_bytes: Peak of the session.
        energy_j_per_token: Joules a token over the session.
    """
    valid = [one for one in measurements if one.valid]
    if not valid:
        return {}
    rates = [one.rate for one in valid if one.rate]
    firsts = [one.ttft_s for one in valid if one.ttft_s]
    found: dict[Metric, float | None] = {
        "decode_tok_s": median(-log(rate) for rate in rates) if rates else None,
        "ttft_s": median(log(first) for first in firsts) if firsts else None,
        "completion_s": _completion(valid, output_tokens),
        "vram_bytes": log(vram_bytes) if vram_bytes else None,
        "energy_j_per_token": log(energy_j_per_token) if energy_j_per_token else None,
    }
    return {metric: value for metric, value in found.items() if value is not None}


def _completion(valid: Sequence[Measurement], output_tokens: int) -> float | None:
    """Log seconds until the last agent has its whole answer: TTFT, queue included, and n - 1 further tokens."""
    times: dict[tuple[int, int], list[float]] = {}
    for one in valid:
        if one.ttft_s is not None and one.rate:
            seconds = one.ttft_s + (output_tokens - 1) / one.rate
            times.setdefault((one.instance, one.agent), []).append(seconds)
    slowest = max((median(agent) for agent in times.values()), default=0.0)
    return log(slowest) if slowest > 0 else None


def natural(metric: Metric, cost: float) -> float:
    """A log cost in the metric's own unit: tokens a second, seconds, bytes or joules a token."""
    return exp(-cost) if metric in RATES else exp(cost)


# Differences


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences of one arm to another, paired by round."""

    n: int
    mean: float
    """Of log ratios; above 0 = the first is better."""
    sd: float
    """Of the log ratios; 0 with fewer than two."""


def paired(rounds: Mapping[int, Mapping[str, float]], better: str, than: str) -> Paired:
    """Log ratios of `than`'s cost to `better`'s over the rounds that have both."""
    differences = [values[than] - values[better] for values in rounds.values() if better in values and than in values]
    return describe(differences)


def describe(differences: Sequence[float]) -> Paired:
    """Count, mean and standard deviation, the same whatever order they come in."""
    n = len(differences)
    if n == 0:
        return Paired(0, 0.0, 0.0)
    mean = fsum(differences) / n
    spread = fsum((value - mean) ** 2 for value in differences)
    return Paired(n, mean, sqrt(spread / (n - 1)) if n > 1 else 0.0)


def interval(pairs: Paired, level: float) -> tuple[float, float]:
    """Two-sided paired t interval of the mean log ratio; unbounded with fewer than two pairs."""
    if pairs.n < 2:
        return (-inf, inf)
    half = t_quantile(1 - (1 - level) / 2, pairs.n - 1) * pairs.sd / sqrt(pairs.n)
    return (pairs.mean - half, pairs.mean + half)


def level_for(together: int) -> float:
    """Confidence of each interval so that all of those judged together hold at 95 % (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, together)


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def behind(pairs: Paired) -> float:
    """One-sided p value of the second arm being no worse than the first (paired t)."""
    if pairs.n < 2:
        return 1.0
    if pairs.sd == 0:
        return 0.0 if pairs.mean > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(pairs.n - 1, -pairs.mean * sqrt(pairs.n) / pairs.sd))


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> set[str]:
    """Names whose hypothesis is rejected by Holm's step-down procedure (Holm 1979)."""
    rejected: set[str] = set()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        if p >= alpha / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected


def centred(rounds: Mapping[int, Mapping[str, float]], arms: Sequence[str]) -> dict[str, float]:
    """Mean over rounds of each arm's log cost less the round's mean over these arms; infinite without any value.

    Where a round lacks an arm, its mean would be of other arms: the least-squares fit of arm and round effects is
    used, which is the same thing where nothing lacks.
    """
    table = [{arm: values[arm] for arm in arms if arm in values} for values in rounds.values()]
    table = [values for values in table if values]
    seen = [arm for arm in arms if any(arm in values for values in table)]
    if all(len(values) == len(seen) for values in table):
        middles = [fsum(values.values()) / len(values) for values in table]
        means = {
            arm: fsum(values[arm] - middle for values, middle in zip(table, middles, strict=True)) / len(table)
            for arm in seen
        }
    else:
        means = _fitted(table, seen)
    return {arm: means.get(arm, inf) for arm in arms}


def _fitted(table: Sequence[Mapping[str, float]], arms: Sequence[str]) -> dict[str, float]:
    import numpy as np

    cells = [(row, arm, value) for row, values in enumerate(table) for arm, value in values.items()]
    design = np.zeros((len(cells), len(arms) + len(table)))
    for cell, (row, arm, _) in enumerate(cells):
        design[cell, arms.index(arm)] = design[cell, len(arms) + row] = 1.0
    fit = np.linalg.lstsq(design, np.array([value for _, _, value in cells]), rcond=None)[0][: len(arms)]
    return {arm: float(value) for arm, value in zip(arms, fit - fit.mean(), strict=True)}


# Verdicts


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the differences say."""

    word: VerdictWord
    effect: float | None
    ci: tuple[float, float] | None
    level: float
    n: int
    reason: str | None


def judge(pairs: Paired, *, together: int = 1, band: float = 0.02) -> Judgement:
    """The verdict of the paired t interval against the equivalence band, for one of `together` candidates."""
    level = level_for(together)
    if pairs.n == 0:
        return Judgement("insufficient", None, None, level, 0, "No round has both this and the baseline.")
    if pairs.n < MIN_ROUNDS:
        few = "1 complete round" if pairs.n == 1 else f"{pairs.n} complete rounds"
        needs = f"{few}; a verdict needs at least {MIN_ROUNDS}."
        return Judgement("insufficient", _ratio(pairs.mean), None, level, pairs.n, needs)
    low, high = interval(pairs, level)
    word = word_for(low, high, band)
    reason = _needs_more(pairs, together, band) if word == "undecided" else None
    return Judgement(word, _ratio(pairs.mean), (_ratio(low), _ratio(high)), level, pairs.n, reason)


def _ratio(logarithm: float) -> float:
    """Its exponential, kept finite so that every figure fits into JSON."""
    return exp(max(-700.0, min(700.0, logarithm)))


def word_for(low: float, high: float, band: float) -> VerdictWord:
    """Where an interval of log ratios lies against the band of +-`band` around no difference."""
    if low > log1p(band):
        return "better"
    if high < log1p(-band):
        return "worse"
    if low > log1p(-band) and high < log1p(band):
        return "same"
    return "undecided"


def rounds_to_decide(pairs: Paired, *, together: int, band: float) -> int | None:
    """Rounds in all after which the interval would leave the band's edge if mean and spread stayed as they are.

    None where even very many would not do: the difference lies on the edge itself.
    """
    level = level_for(together)
    for n in range(pairs.n + 1, _MANY + 1):
        low, high = interval(Paired(n, pairs.mean, pairs.sd), level)
        if word_for(low, high, band) != "undecided":
            return n
    return None


def _needs_more(pairs: Paired, together: int, band: float) -> str:
    needed = rounds_to_decide(pairs, together=together, band=band)
    if needed is None:
        return f"Too close to the edge of the ±{band:.0%} band for any sensible number of rounds at this noise."
    more = needed - pairs.n
    return f"Needs about {more} more round{'' if more == 1 else 's'} at this noise."


# Noise, and what can be seen through it


@dataclass(frozen=True, slots=True)
class Noise:
    """How much sessions of one unchanged configuration differ."""

    n: int
    """Sessions that it rests on."""
    cv: float
    """Robust coefficient of variation: 1.4826 times the median deviation of the log values."""
    sd: float
    """Standard deviation of the log values, a trend included."""
    steady_sd: float
    """The same around a straight line through the sessions: pairs within a round do not feel a slow trend."""
    lag1: float | None
    """Autocorrelation of neighbours; near 1 the sessions are not independent. None where they do not vary."""

    @property
    def paired_sd(self) -> float:
        """Expected standard deviation of a difference within a round."""
        return sqrt(2) * self.steady_sd

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `steady_sd`: two went into the line."""
        return self.n - 2

    def mde(self, rounds: int, *, together: int = 1) -> float:
        """Smallest effect that as many rounds detect in 80 % of cases, as a share."""
        return smallest_effect(self.paired_sd, rounds, together=together)

    def smallest_better(self, rounds: int, band: float, *, together: int = 1) -> float:
        """Smallest gain that is likely to be called better: the MDE and the band, as a share."""
        return self.mde(rounds, together=together) + band

    def words(self, rounds: int, band: float, *, together: int = 1) -> str:
        """What can be seen now, in one or two sentences."""
        smallest = self.smallest_better(rounds, band, together=together)
        seen = f"Sessions vary by {self.sd:.1%}: in {rounds} rounds gains above {smallest:.1%} can be seen."
        if self.mde(rounds, together=together) > NOISE_LIMIT:
            return f"{seen} That is coarse: close other programs, wait until the machine is calm, or use more rounds."
        return seen


def noise(values: Sequence[float]) -> Noise | None:
    """Noise of log costs of one configuration in the order they were measured; None for fewer than three."""
    n = len(values)
    if n < 3:
        return None
    spread = describe(values)
    middle = median(values)
    deviations = [value - spread.mean for value in values]
    total = fsum(value * value for value in deviations)
    steps = [index - (n - 1) / 2 for index in range(n)]
    slope = fsum(step * value for step, value in zip(steps, deviations, strict=True)) / fsum(s * s for s in steps)
    rest = max(0.0, total - slope * slope * fsum(step * step for step in steps))
    lagged = fsum(one * other for one, other in pairwise(deviations))
    return Noise(
        n=n,
        cv=1.4826 * median(abs(value - middle) for value in values),
        sd=spread.sd,
        steady_sd=sqrt(rest / (n - 2)),
        lag1=lagged / total if total > 0 else None,
    )


def smallest_effect(paired_sd: float, rounds: int, *, together: int = 1) -> float:
    """Minimal detectable effect of a paired t test with 80 % power: (t.975 + t.8) s_d / sqrt(n), as a share.

    For several judged together the first quantile is that of their level. Infinite with fewer than two rounds.
    """
    if rounds < 2:
        return inf
    quantile = t_quantile(1 - (1 - level_for(together)) / 2, rounds - 1) + t_quantile(0.8, rounds - 1)
    return expm1(min(quantile * paired_sd / sqrt(rounds), 50.0))


def confirmation_rounds(
    measured: Noise | None, *, together: int, band: float = 0.02, target: float = 0.05, most: int = CONFIRM_MAX
) -> int:
    """Rounds to confirm with, fixed before the first: 8 to `most`.

    The fewest in which a true gain of `target` would be called better in 95 % of studies, and all of those confirmed
    would be called same in 90 % where none has an effect, at the upper bound of the preflight's noise; `most` where no
    number of them can. 20 where the noise is unknown.
    """
    if measured is None:
        return max(1, min(CONFIRM_UNPLANNED, most))
    from scipy.special import gammaincinv

    # The chi-square's lower quantile gives the standard deviation's upper bound.
    share = 2 * float(gammaincinv(measured.freedom / 2, 1 - _CAUTION)) / measured.freedom
    upper = measured.paired_sd / sqrt(share)
    least = min(CONFIRM_MIN, most)
    for n in range(least, most):
        if upper <= _largest_noise(n, together, band, target):
            return n
    return most


@lru_cache(maxsize=512)
def _largest_noise(n: int, together: int, band: float, target: float) -> float:
    """Largest standard deviation of paired differences with which n rounds keep both promises."""
    low, high = 0.0, log1p(target) * sqrt(n)
    for _ in range(40):
        middle = (low + high) / 2
        found, same = power(middle, n, together=together, band=band, effect=target)
        low, high = (middle, high) if found >= 0.95 and same >= 1 - 0.10 / max(1, together) else (low, middle)
    return low


def power(paired_sd: float, n: int, *, together: int, band: float, effect: float) -> tuple[float, float]:
    """Chance that a true `effect` is called better, and that none is called same, in n rounds of normal noise.

    The interval's half width is random too: averaged over 256 equally likely values of the sample's spread.
    """
    import numpy as np
    from scipy.special import gammaincinv, ndtr

    df = n - 1
    half = t_quantile(1 - (1 - level_for(together)) / 2, df) / sqrt(n) * paired_sd
    halves = half * np.sqrt(2 * gammaincinv(df / 2, (np.arange(256) + 0.5) / 256) / df)
    error = max(paired_sd / sqrt(n), 1e-300)
    better = ndtr((log1p(effect) - log1p(band) - halves) / error)
    same = ndtr((log1p(band) - halves) / error) - ndtr((log1p(-band) + halves) / error)
    return float(better.mean()), float(np.maximum(0.0, same).mean())


# Drift of the control


@dataclass(frozen=True, slots=True)
class Drift:
    """How the unchanged baseline moved over a run. Comparisons within rounds stay valid; absolute figures suffer."""

    n: int
    change: float
    """Of the metric's own value from the first session to the last, as a share: -0.15 = it lost 15 %."""
    tau: float
    """Kendall's rank correlation with time."""
    p: float
    """Chance of such a rank correlation without any trend."""

    @property
    def flagged(self) -> bool:
        """It moved by more than 3 %, and steadily enough that chance is no explanation."""
        return abs(self.change) > DRIFT_LIMIT and self.p < 0.05


def drift(metric: Metric, control: Sequence[tuple[float, float]]) -> Drift | None:
    """Theil-Sen slope and Kendall's tau of (time, log cost) of the baseline's sessions; None for fewer than five."""
    points = sorted(point for point in control if isfinite(point[1]))
    if len(points) < 5 or points[0][0] == points[-1][0]:
        return None
    from scipy.stats import kendalltau, theilslopes

    times, values = [time for time, _ in points], [value for _, value in points]
    over = float(theilslopes(values, times)[0]) * (times[-1] - times[0])
    tau, p = kendalltau(times, values)
    sign = -1.0 if metric == "decode_tok_s" else 1.0
    steady = isfinite(float(tau))
    return Drift(len(points), expm1(sign * over), sign * float(tau) if steady else 0.0, float(p) if steady else 1.0)


# Rounds of data that names none


def rounds_in_order(loads: Sequence[str]) -> list[int] | None:
    """The round of each load of an unlabelled sequence of candidates, or None where they were not interleaved.

    A round is a stretch in which no candidate comes twice; all rounds but the last must visit the same candidates.
    A A B B is no round at all: any drift between them would look like an effect.
    """
    rounds: list[int] = []
    visits: list[set[str]] = [set()]
    for candidate in loads:
        if candidate in visits[-1]:
            visits.append(set())
        visits[-1].add(candidate)
        rounds.append(len(visits))
    complete = visits[:-1] if visits[-1] < visits[0] else visits
    return rounds if len(visits[0]) > 1 and all(visit == visits[0] for visit in complete) else None
