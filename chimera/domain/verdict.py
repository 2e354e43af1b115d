"""What the data say of a candidate against another."""

from __future__ import annotations

from dataclasses import dataclass
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
