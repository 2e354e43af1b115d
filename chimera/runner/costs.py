"""What a session gave in each metric: the same figure for the verdict and for whoever watches the run."""

from __future__ import annotations

from collections.abc import Sequence

from chimera.domain.measurement import Measurement
from chimera.domain.run import Session
from chimera.domain.verdict import Metric
from chimera.store.blame import VRAM_FACT
from chimera.tuning.concurrency import costs, figures
from chimera.tuning.statistics import session_costs


def costs_of(session: Session, measurements: Sequence[Measurement], output_tokens: int) -> dict[Metric, float]:
    """Log costs of a session that counts, empty for any other; `natural` gives them in the metric's own unit.

    Where several agents could take part, they are in the goals of their users.
    """
    if session.state != "done":
        return {}
    facts = session.facts
    found = session_costs(
        measurements,
        output_tokens=output_tokens,
        vram_bytes=facts.get(VRAM_FACT),
        energy_j_per_token=facts.get("energy_j_per_token"),
    )
    if "agents" in facts:
        found.pop("completion_s", None)  # theirs is that of all their requests, not of a typical one
        found |= costs(figures(measurements))
    return found
