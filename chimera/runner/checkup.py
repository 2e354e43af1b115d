"""The rules asked about a run: between its requests while it goes on, and at its end. Findings go into the journal."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from chimera.diagnosis.evidence import PastRun
from chimera.domain.finding import Finding

if TYPE_CHECKING:
    from chimera.store.journal import Journal

EVERY_S = 5.0
WINDOW_S = 600.0
"""Samples that a look sees while the run goes on."""
_SHARE = 20.0
"""A look waits so many times what the last one took: it never costs more than a twentieth of the run."""
_log = logging.getLogger(__name__)


class Checkup:
    """Looks at one run again and again."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self._journal = journal
        self._run_id = run_id
        self._due = time.monotonic() + EVERY_S
        self._history: tuple[PastRun, ...] | None = None
        self._found: list[Finding] | None = None

    async def between(self) -> None:
        """Look, where it is time; called when no request is in flight, since the rules take processor time."""
        if time.monotonic() < self._due:
            return
        began = time.monotonic()
        await asyncio.to_thread(self.look, WINDOW_S)
        ended = time.monotonic()
        self._due = ended + max(EVERY_S, _SHARE * (ended - began))

    def look(self, window_s: float | None = None) -> None:
        """Ask the rules about the last seconds of samples (None: all of them) and keep what they find. Never raises."""
        try:
            self._look(window_s)
        except Exception:  # noqa: BLE001 - a run must not end because nobody could judge it
            _log.exception("the findings of run %s could not be made", self._run_id)

    def _look(self, window_s: float | None) -> None:
        # NumPy-free, but the rules are many: they are imported when they are first asked.
        from chimera.diagnosis.rules import diagnose, since_first_seen

        from .evidence import evidence_of, history_of

        journal = self._journal
        run = journal.run(self._run_id)
        if self._history is None and run.model is not None:
            self._history = history_of(journal, run)
        if self._found is None:
            self._found = journal.findings(run.id)
        evidence = evidence_of(journal, run, window_s=window_s, history=self._history)
        found = since_first_seen(self._found, diagnose(evidence), time.time())
        if found != self._found:
            self._found = found
            journal.set_findings(run.id, found)
