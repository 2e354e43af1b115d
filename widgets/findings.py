"""What is wrong, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from chimera.domain.finding import SEVERITIES, Evidence, Finding, Severity

from . import format
from .log import SIGNS
from .panel import Panel
from .rows import Line, Row, cells, clean

WORDS: dict[Severity, str] = {"info": "info", "notice": "notice", "warn": "warning", "error": "error"}


def evidence_text(evidence: Evidence) -> str:
    """One figure in words: `num_gpu 35 (limit 80)`."""
    unit = f" {evidence.unit}" if evidence.unit else ""
    text = f"{evidence.what} {_value(evidence.value)}{unit}"
    if evidence.threshold is not None:
        text += f" (threshold {_value(evidence.threshold)}{unit})"
    return text


def _value(value: float | str | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return clean(value)
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


class FindingsPanel(Panel):
    """One line a finding: how bad, what, and since when."""

    TITLE = "Findings"
    HELP: ClassVar[str | None] = """\
## Findings

What the readings and measurements show, worst first: `!` error, `▲` warning, `•` notice. Each rests on evidence, which
the Doctor screen shows with causes and remedies. No finding means that nothing was seen, not that nothing is slow.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._findings: tuple[Finding, ...] = ()
        self._checked = False

    def update(self, findings: Sequence[Finding]) -> None:
        """Show these findings, whatever their order."""
        worst_first = tuple(sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity)))
        if worst_first != self._findings or not self._checked:
            self._findings, self._checked = worst_first, True
            self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """As many findings as fit; the last line counts the others."""
        if not self._findings:
            text = "No findings" if self._checked else "Not checked yet"
            return [Line(width).add(text, "good" if self._checked else "muted").row()]
        shown = self._findings if len(self._findings) <= height else self._findings[: max(height - 1, 1)]
        rows = [self._row(finding, width) for finding in shown]
        if len(shown) < len(self._findings) and height > 1:
            rows.append(Line(width).add(f"  and {len(self._findings) - len(shown)} more", "muted").row())
        return rows

    @staticmethod
    def _row(finding: Finding, width: int) -> Row:
        sign, tone = SIGNS[finding.severity]
        line = Line(width).add(f"{sign} ", tone)
        if width >= 60:
            line.add(WORDS[finding.severity], tone, 9)
        since = "" if finding.since is None else f"since {format.clock(finding.since, with_seconds=False)}"
        line.add(finding.title, "error" if tone == "error" else "text")
        if finding.evidence:
            text = evidence_text(finding.evidence[0])
            if line.left > cells(text) + len(since) + 6:
                line.gap(3).add(text, "muted")
        return line.end(since, "muted").row()
