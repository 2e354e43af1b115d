"""The screens. All but the dashboard are loaded after the first paint: what they are made of takes a quarter of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alerts import Alerts as Alerts
    from .ask import Answer as Answer
    from .ask import Ask as Ask
    from .doctor import Doctor as Doctor
    from .help import Help as Help
    from .presets import Presets as Presets
    from .runs import Runs as Runs
    from .servers import PickServer as PickServer
    from .tune import Tune as Tune

_WHERE = {
    "Alerts": "alerts",
    "Answer": "ask",
    "Ask": "ask",
    "Doctor": "doctor",
    "Help": "help",
    "PickServer": "servers",
    "Presets": "presets",
    "Runs": "runs",
    "Tune": "tune",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(name)
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def load() -> None:
    """Load all of them, in a thread, so that the first key that opens one finds it ready."""
    for module in sorted(set(_WHERE.values())):
        import_module(f".{module}", __name__)
