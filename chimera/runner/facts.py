"""All that is known of a run, as one document."""

from __future__ import annotations

from typing import Any

from chimera.domain.run import Run
from chimera.store.document import document
from chimera.store.journal import Journal


def facts_of(journal: Journal, run: Run, *, measurements: bool) -> dict[str, Any]:
    """The document of a run; that of several agents with what each of them got."""
    facts = document(journal, run, measurements=measurements)
    if run.kind == "agents" or run.workload.agents > 1:
        from .agents_report import report

        facts["agents"] = report(journal, run)
    return facts
