"""All that is known of a run, as one document, and as the files that it is exported to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chimera.domain.run import Run
from chimera.domain.text import json_text, plain
from chimera.errors import ConfigError
from chimera.store.document import document, export_benchstat, export_csv
from chimera.store.files import write_whole
from chimera.store.journal import Journal


def facts_of(journal: Journal, run: Run, *, measurements: bool) -> dict[str, Any]:
    """The document of a run; that of several agents with what each of them got."""
    facts = document(journal, run, measurements=measurements)
    if run.several:
        from .agents_report import report

        facts["agents"] = report(journal, run)
    return facts


def exported(journal: Journal, run: Run, form: str) -> str:
    """The run as text: `json` with everything that is known, `csv` a line a request, `benchstat` for its readers."""
    if form == "json":
        return json_text(facts_of(journal, run, measurements=True))
    return {"csv": export_csv, "benchstat": export_benchstat}[form](journal, run)


def write_export(journal: Journal, run: Run, form: str, path: Path) -> None:
    """Write the run to a file, whole and then renamed.

    Raises:
        ConfigError: it cannot be written.
    """
    text = exported(journal, run, form)
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"{plain(str(path))} cannot be written: {error.strerror or error}.") from error
