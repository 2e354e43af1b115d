"""chimera status: one screen of text about server, GPU, host and runs."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
