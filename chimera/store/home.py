"""Where Chimera keeps its state."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of the journal and the locks: `$CHIMERA_HOME`, or the platform's local state folder."""
    chosen = os.environ.get("CHIMERA_HOME")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_state_path("chimera", appauthor=False)


def private_folder(folder: Path) -> Path:
    """Make a folder that only its user may enter, with what is missing above it. One that exists stays as it is."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder
