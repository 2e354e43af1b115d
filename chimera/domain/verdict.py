"""What the data say of a candidate against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

VerdictWord = Literal["better", "same", "worse", "undecided", "insufficient"]
Metric = Literal[
    "decode_tok_s", "ttft_s", "completion_s", "vram_bytes", "energy_j_per_token", "aggregate_tok_s", "worst_ttft_s"
]  # fmt: skip
RATES: frozenset[Metric] = frozenset({"decode_tok_s", "aggregate_tok_s"})
"""Metrics of which more is better; of all others less is."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A candidate against another on one metric."""

    candidate: str
    against: str
    metric: Metric
    verdict: VerdictWord
    effect: float | None = None
    """Ratio, above 1 = the candidate is better, whatever the metric's direction."""
    ci: tuple[float, float] | None = None
    """Confidence interval of the effect at `level`."""
    level: float = 0.95
    n: int = 0
    """Complete rounds that it rests on."""
    reason: str | None = None
    """Why it is insufficient, undecided or derived, in words."""

    @property
    def itself(self) -> Verdict:
        """The same with effect and interval as ratios of the metric itself, as people read it: 1.1 = 10 % more."""
        effect, ci = of_itself(self.metric, self.effect, self.ci)
        return replace(self, effect=effect, ci=ci)


def of_itself(
    metric: Metric, effect: float | None, ci: Sequence[float] | None
) -> tuple[float | None, tuple[float, float] | None]:
    """An effect and its interval, in which above 1 is better, as ratios of the metric, of which less may be better."""
    low_high = None if ci is None else (ci[0], ci[1])
    if metric in RATES:
        return effect, low_high
    turned = None if low_high is None else (1 / low_high[1], 1 / low_high[0])
    return None if effect is None else 1 / effect, turned
