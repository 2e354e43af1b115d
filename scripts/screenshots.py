"""Pictures of the real app on the real embedded model: screenshots/*.svg and *.png.

Everything runs in a home of its own; nothing of the user's journal is shown or touched.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "screenshots"
SIZES = {"dashboard-80x24": (80, 24), "dashboard-run": (120, 40), "dashboard-200x50": (200, 50)}
WAIT_S = 180.0

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from chimera.tui.app import ChimeraApp


def write(app: ChimeraApp, name: str) -> None:
    """One picture in both formats. The font's address is taken out: pictures must not ask the network."""
    import resvg_py

    svg = app.export_screenshot(title="chimera")
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    (OUT / f"{name}.svg").write_text(svg, encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, zoom=1)
    (OUT / f"{name}.png").write_bytes(bytes(png))
    sys.stderr.write(f"screenshots/{name}.png\n")


async def until(pilot: Pilot[None], reached: Callable[[], bool]) -> None:
    """Wait for something that a worker process brings about."""
    deadline = time.monotonic() + WAIT_S
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("the app did not come to that in time")
        await pilot.pause(0.2)


async def main() -> None:
    """Take them all in one run of the app."""
    from chimera.cli.ui import UiOptions
    from chimera.tui import screens
    from chimera.tui.app import ChimeraApp

    OUT.mkdir(exist_ok=True)
    app = ChimeraApp(UiOptions(embedded=True))
    async with app.run_test(size=SIZES["dashboard-run"]) as pilot:
        await until(pilot, lambda: app.state.snapshot is not None)
        await pilot.press("1")
        await until(pilot, lambda: sum(one.valid for one in app.state.measurements) >= 3 and app.state.running)
        for name, (width, height) in SIZES.items():
            await pilot.resize_terminal(width, height)
            await pilot.pause(1.0)
            write(app, name)
        await pilot.resize_terminal(*SIZES["dashboard-run"])
        await pilot.press("m")
        await pilot.pause(1.0)
        write(app, "server")
        await pilot.press("escape", "question_mark")
        await pilot.pause(1.0)
        write(app, "help")
        await pilot.press("escape")
        await until(pilot, lambda: not app.state.running)
        await pilot.pause(1.0)
        write(app, "dashboard-done")
        await pilot.press("p")
        await until(pilot, lambda: isinstance(app.screen, screens.Presets) and app.screen.judged)
        await pilot.pause(1.0)
        write(app, "presets")
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, screens.Runs))
        await pilot.pause(1.0)
        await pilot.press("enter")
        await pilot.pause(1.0)
        write(app, "runs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # The model need not be unpacked once more.
        os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        for name in ("CHIMERA_CONFIG", "XDG_CONFIG_HOME"):
            os.environ.pop(name, None)
        os.environ["CHIMERA_HOME"] = os.environ["HOME"] = folder
        os.environ["TEXTUAL_ANIMATIONS"] = "none"
        asyncio.run(main())
