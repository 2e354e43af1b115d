"""Named configurations: the guide's five on the digits 1 to 5, the user's own from the config folder on 6 to 9."""

from __future__ import annotations

from .loader import (
    PresetBook,
    Problem,
    all_presets,
    check_file,
    find,
    guide_presets,
    load_preset,
    user_folder,
    write_preset,
)

__all__ = [
    "PresetBook",
    "Problem",
    "all_presets",
    "check_file",
    "find",
    "guide_presets",
    "load_preset",
    "user_folder",
    "write_preset",
]
