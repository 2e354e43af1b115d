from __future__ import annotations

from dataclasses import replace

from chimera.telemetry.alerts import Alert
from chimera.widgets.alerts import AlertsPanel
from chimera.widgets.rows import row_cells, text_of

from . import data
from .screens import Alone, screen_text

HEAT = Alert(
    "throttle sw-thermal GPU-0", "throttle", "GPU: heat", "warning", 100.0, 190.0, 42.0, 61.0, "% of the time", 3, False
)
LOST = Alert("gpu-lost GPU-1", "gpu-lost", "GPU 1 is lost", "error", 150.0, 200.0, 50.0, None, "", 1, True)


def text(*alerts: Alert, width: int = 90, height: int = 12) -> str:
    panel = AlertsPanel()
    panel.update(alerts, data.WALL)
    rows = panel.build(width, height)
    assert all(row_cells(row) <= width for row in rows)
    return "\n".join(text_of(row) for row in rows)


def test_each_alert_tells_when_how_long_how_bad_and_how_often() -> None:
    shown = text(LOST, HEAT)
    first, last = shown.index("14:01:40"), shown.index("14:03:10")
    assert first < last
    for said in ("! GPU 1 is lost", "holds now", "▲ GPU: heat", "over", "42 s in all", "worst 61 %", "3 times"):
        assert said in shown
    assert "worst" not in text(LOST)
    assert "noted" in text(replace(LOST, acknowledged=True))


def test_short_times_are_not_rounded_to_nothing() -> None:
    assert "240 ms in all" in text(replace(HEAT, total_s=0.24))
    assert "in all" not in text(replace(HEAT, total_s=0.0))


def test_without_alerts_it_says_so() -> None:
    assert "Nothing has gone wrong" in text()


async def test_the_cursor_moves_stays_on_its_alert_and_is_always_in_sight() -> None:
    panel = AlertsPanel()
    app = Alone(panel)
    many = [replace(HEAT, key=f"k{index}", title=f"trouble {index}") for index in range(9)]
    async with app.run_test(size=(70, 12)) as pilot:
        panel.update(many, data.WALL)
        panel.focus()
        await pilot.press(*["down"] * 6)
        assert panel.chosen == "k6"
        await pilot.pause()
        assert "› ▲ trouble 6" in screen_text(app)
        panel.update(many[::-1], data.WALL)
        assert panel.chosen == "k6"
        panel.update([one for one in many if one.key != "k6"], data.WALL)
        assert panel.chosen == "k0"
        await pilot.press("up")
        assert panel.chosen == "k0"
        panel.update([], data.WALL)
        assert panel.chosen is None
