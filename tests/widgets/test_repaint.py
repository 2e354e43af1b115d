"""What an update costs: nothing where nothing changed, little where little did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from rich.color import ColorSystem
from textual.screen import ModalScreen, Screen

from chimera.widgets import EventLog, GpuPanel, HostPanel, TimeChart, TrialTable
from chimera.widgets.rows import text_of

from . import data
from .board import Board
from .screens import Alone, Counting, recorded, screen_text


class CountedBoard(Board, Counting):
    pass


def test_panels_load_nothing_heavy() -> None:
    heavy = ["pydantic", "httpx", "sqlalchemy", "numpy", "scipy", "optuna", "psutil", "typer", "pynvml"]
    code = f"import sys, chimera.widgets; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


async def test_the_same_data_again_write_nothing() -> None:
    app = CountedBoard()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        app.written = 0
        for _ in range(5):
            app.tick()
            await pilot.pause(0.05)
        assert app.written == 0


async def test_a_tick_of_all_panels_stays_within_four_kilobytes() -> None:
    app = CountedBoard()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        app.written = 0
        for _ in range(20):
            app.step()
            await pilot.pause(0.05)
        assert 0 < app.written / 20 < 4000


async def test_one_changed_number_repaints_one_row() -> None:
    panel = GpuPanel()
    app = Alone(panel)
    async with app.run_test(size=(60, 16)) as pilot:
        panel.update(data.gpus())
        await pilot.pause()
        rendered = recorded(panel, "render_line")
        sample = data.gpus().samples[0]
        panel.update(replace(data.gpus(), samples=(replace(sample, fan_percent=46.0),)))
        await pilot.pause(0.05)
        assert rendered == [(4,)]
        assert app.last_write.count("\x1b[6;1H") == 1
        assert "fan 46" in app.last_write
        assert "util" not in app.last_write


async def test_a_steady_chart_writes_a_few_cells_a_point() -> None:
    chart = TimeChart("Rate", "tok/s", window_s=120)
    app = Alone(chart)
    async with app.run_test(size=(120, 20)) as pilot:
        chart.extend([(float(second), 50.0) for second in range(60)])
        await pilot.pause()
        app.written = 0
        for second in range(60, 80):
            chart.update(float(second), 50.0)
            await pilot.pause(0.02)
        assert 0 < app.written / 20 < 500


async def test_a_covered_panel_builds_nothing_and_is_right_when_it_is_seen_again() -> None:
    panel = GpuPanel()
    app = Alone(panel)
    async with app.run_test(size=(60, 16)) as pilot:
        panel.update(data.gpus())
        await pilot.pause()
        cover: Screen[None] = Screen()
        await app.push_screen(cover)
        built = recorded(panel, "build")
        sample = data.gpus().samples[0]
        for utilization in (11.0, 12.0, 13.0):
            panel.update(replace(data.gpus(), samples=(replace(sample, utilization=utilization),)))
            await pilot.pause(0.05)
        assert built == []
        await app.pop_screen()
        await pilot.pause(0.1)
        assert "13 %" in screen_text(app)


async def test_a_panel_behind_a_translucent_dialog_goes_on() -> None:
    panel = GpuPanel()
    app = Alone(panel)
    async with app.run_test(size=(60, 16)) as pilot:
        panel.update(data.gpus())
        dialog: ModalScreen[None] = ModalScreen()
        await app.push_screen(dialog)
        await pilot.pause()
        sample = data.gpus().samples[0]
        panel.update(replace(data.gpus(), samples=(replace(sample, utilization=13.0),)))
        await pilot.pause(0.1)
        assert "13 %" in "\n".join(text_of(row) for row in panel._rows)


async def test_a_resize_shows_the_same_data_in_the_new_room() -> None:
    app = CountedBoard()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.resize_terminal(200, 50)
        await pilot.pause()
        wide = screen_text(app)
    again = CountedBoard()
    async with again.run_test(size=(200, 50)) as pilot:
        await pilot.pause()
        assert screen_text(again) == wide


async def test_an_update_never_lays_out() -> None:
    app = CountedBoard()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        laid_out = recorded(app.screen, "_refresh_layout")
        for _ in range(3):
            app.step()
            await pilot.pause(0.05)
        assert laid_out == []


async def test_a_new_theme_repaints_in_its_colours() -> None:
    panel = HostPanel()
    app = Alone(panel)
    async with app.run_test(size=(60, 12)) as pilot:
        panel.update(data.host())
        await pilot.pause()
        before = panel.tone_style("text")
        app.theme = "textual-light"
        await pilot.pause()
        assert panel.tone_style("text") != before


@pytest.mark.parametrize("theme", ["ansi-dark", "textual-dark", "textual-light", "nord"])
async def test_every_theme_shows_the_same_words(theme: str) -> None:
    app = Board()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        before = screen_text(app)
        app.theme = theme
        await pilot.pause()
        assert screen_text(app) == before


async def test_without_colour_no_colour_is_written_and_alerts_keep_their_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Board()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        colours = {
            segment.style.color.triplet
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style and segment.style.color and segment.style.color.triplet
        }
        assert colours
        assert all(len(set(colour)) == 1 for colour in colours)  # greys only
        text = screen_text(app)
    assert "! GPU 0 slows down" in text
    assert "▲ The power limit" in text


async def test_where_there_are_sixteen_colours_trouble_is_red_and_a_warning_yellow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "standard")
    app = Board()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        written = [
            (segment.text, segment.style.render(segment.text, color_system=ColorSystem.STANDARD))
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style
        ]
    errors = [code for text, code in written if "! GPU 0 slows down" in text]
    assert errors
    assert all("91" in code.partition("m")[0].split(";") for code in errors)
    warnings = [code for text, code in written if text.startswith("▲ ")]
    assert warnings
    assert all("93" in code.partition("m")[0].split(";") for code in warnings)


async def test_updates_before_a_panel_is_on_a_screen_are_kept() -> None:
    panel = HostPanel()
    panel.update(data.host())
    log = EventLog()
    log.write("early", at=data.WALL)
    app = Alone(panel)
    async with app.run_test(size=(60, 12)) as pilot:
        await pilot.pause()
        assert "memory" in screen_text(app)
        await app.mount(log)
        await pilot.pause()
        assert "early" in screen_text(app)


async def test_moving_the_cursor_repaints_two_rows() -> None:
    table = TrialTable()
    app = Alone(table)
    async with app.run_test(size=(110, 14)) as pilot:
        table.update(data.TRIALS)
        table.focus()
        await pilot.pause()
        rendered = recorded(table, "render_line")
        await pilot.press("down")
        await pilot.pause(0.05)
        assert sorted(rendered) == [(1,), (2,)]


async def test_a_panel_whose_height_is_left_to_itself_takes_its_rows() -> None:
    panel = HostPanel()
    panel.update(data.host())
    panel.styles.height = "auto"
    app = Alone(panel)
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.pause()
        assert panel.size.height == len(panel.build(56, 60)) == 7
