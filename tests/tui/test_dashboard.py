"""What the dashboard makes of telemetry: roof, parts of memory, other clients, alerts, marks and charts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from chimera.cli.ui import UiOptions
from chimera.domain.readings import Missing
from chimera.domain.run import Target
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import LoadedModel, ServerSample, Throttle, VramParts
from chimera.telemetry.loaded import Loaded
from chimera.tui.messages import Inspected, RunChanged, ServerSeen, ServersFound, SnapshotTaken
from chimera.tui.screens.alerts import Alerts
from chimera.widgets.throughput import ThroughputPanel
from chimera.widgets.trends import TRENDS, TrendChart
from tests.widgets import data
from tests.widgets.screens import screen_text

from .quiet import QuietApp, snapshot, until, update

GIB = 1024**3
OLLAMA = ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0")


def seen(rate: float = 42.0, **more: object) -> ServerSample:
    return replace(data.server_sample(), rate=rate, at=time.monotonic(), **more)  # type: ignore[arg-type]  # any field of a sample


def hot() -> SnapshotTaken:
    whole = snapshot()
    sample = replace(whole.gpus.samples[0], throttles=(Throttle("sw-thermal", 0.4, "counter", 0.4),))
    return SnapshotTaken(replace(whole, gpus=replace(whole.gpus, samples=(sample,))))


async def painted(app: QuietApp, pilot: object) -> str:
    await pilot.pause()  # type: ignore[attr-defined]  # a Pilot
    app.paint()
    await pilot.pause()  # type: ignore[attr-defined]  # a Pilot
    return screen_text(app)


async def test_the_rate_of_all_clients_stands_with_its_source_roof_and_mbu() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(SnapshotTaken(snapshot(), {}, 84.0))
        app.post_message(ServerSeen(seen(42.0, ttft_s=0.212)))
        text = await painted(app, pilot)
        for said in ("all clients, by child /slots", "MBU 50 %", "roof", "84.0", "212 ms  other clients"):
            assert said in text


async def test_a_rate_that_cannot_be_seen_says_why() -> None:
    app = QuietApp(UiOptions())
    why = Missing("unreachable", "this Ollama is on another host")
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(ServerSeen(replace(seen(), rate=why)))
        text = await painted(app, pilot)
        assert "all clients, n/a: unreachable" in text
        assert "this Ollama is on another host" in text


async def test_an_unknown_roof_says_why_and_no_mbu_is_shown() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(SnapshotTaken(snapshot(0), {}, Missing("unsupported", "no GPU")))
        app.post_message(ServerSeen(seen()))
        text = await painted(app, pilot)
        assert "unknown: no GPU" in text
        assert "MBU" not in text


async def test_during_a_run_its_own_rate_is_shown_and_other_clients_ttft_is_not() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(update(first=True, rows=2)))
        app.post_message(ServerSeen(seen(ttft_s=0.212)))
        text = await painted(app, pilot)
        assert "client's clock" in text
        assert "other clients" not in text


async def test_the_engine_of_a_run_is_watched_while_it_runs_and_quietly_while_it_is_timed() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        progress = replace(data.progress(), url="http://127.0.0.1:5555", pid=77)
        app.post_message(RunChanged(update(first=True, progress=progress)))
        await pilot.pause()
        watched = app.state.watched
        assert (watched.loaded.server or OLLAMA).url == "http://127.0.0.1:5555"
        assert (watched.engine_pids, watched.quiet) == ((77,), True)
        app.post_message(RunChanged(update(progress=replace(progress, stage="loading"))))
        await pilot.pause()
        assert not app.state.watched.quiet
        app.post_message(RunChanged(update("done", progress=progress)))
        await pilot.pause()
        assert not app.state.watched.loaded.running
        assert app.state.watched.engine_pids == ()


async def test_the_parts_of_memory_reach_the_panel() -> None:
    app = QuietApp()
    async with app.run_test(size=(200, 50)) as pilot:
        parts = {"GPU-0": VramParts(5.9 * GIB, 2.1 * GIB, 0.7 * GIB, 0.4 * GIB, 8.7 * GIB)}
        app.post_message(SnapshotTaken(snapshot(), parts))
        text = await painted(app, pilot)
        assert "weights ~5.9" in text
        assert "others 0.4" in text


async def test_another_loaded_model_makes_the_server_be_asked_again() -> None:
    app = QuietApp(UiOptions())
    asked: list[Target] = []
    app._inspect = asked.append  # type: ignore[method-assign, assignment]  # the test listens
    async with app.run_test() as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(ServerSeen(seen()))
        await pilot.pause()
        assert len(asked) == 1
        app.post_message(ServerSeen(seen(models=(LoadedModel("other", 1.0, 1.0, 4096.0),))))
        await pilot.pause()
        assert len(asked) == 2


async def test_an_alert_stays_listed_until_it_is_noted() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(hot())
        text = await painted(app, pilot)
        assert "1 alert: l" in text
        assert "slowed to keep the GPU" in text, "it is in the log as well"
        later = replace(snapshot(), at=time.monotonic() + 60)
        app.post_message(SnapshotTaken(later))
        app.post_message(SnapshotTaken(replace(later, at=later.at + 60)))
        assert "1 alert: l" in await painted(app, pilot)
        await pilot.press("l")
        await pilot.pause()
        assert isinstance(app.screen, Alerts)
        assert "over" in screen_text(app)
        assert "worst 40 % of the time" in screen_text(app)
        await pilot.press("n")
        await pilot.pause()
        assert "Nothing has gone wrong" in screen_text(app)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Alerts))
        assert "alert:" not in await painted(app, pilot)


async def test_alerts_preset_switches_and_model_loads_are_marked_on_both_charts() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(200, 50)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(SnapshotTaken(snapshot()))
        app.post_message(RunChanged(update(first=True)))
        await painted(app, pilot)
        app.post_message(SnapshotTaken(replace(snapshot(), server=seen())))
        app.post_message(SnapshotTaken(replace(snapshot(), server=seen(models=(LoadedModel("new"),)))))
        app.post_message(hot())
        await painted(app, pilot)
        assert app.board is not None
        for plot in app.board.query_one(ThroughputPanel).plot, app.board.query_one(TrendChart).plot:
            assert [mark.letter for mark in plot._marks] == ["P", "L", "U", "A"]


async def test_c_shows_other_readings_and_comes_back_to_requests() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        assert "Time to first token" in await painted(app, pilot)
        titles = []
        for _ in TRENDS:
            await pilot.press("c")
            titles.append(str(app.board.query_one(TrendChart).border_title))  # type: ignore[union-attr]  # the board is there
            assert titles[-1] in await painted(app, pilot)
        assert len(set(titles)) == len(TRENDS)
        await pilot.press("c")
        assert "No request of ours" in await painted(app, pilot)


async def test_a_broad_terminal_has_room_for_both() -> None:
    app = QuietApp()
    async with app.run_test(size=(200, 50)) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        text = await painted(app, pilot)
        assert "GPU utilisation" in text
        assert "Time to first token" in text


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_any_number_of_gpus_fits(gpus: int, size: tuple[int, int]) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(SnapshotTaken(snapshot(gpus)))
        text = await painted(app, pilot)
        if gpus == 0:
            assert "No GPU readings" in text
        else:
            assert text.count(" °C") + text.count("° ") >= gpus or "more GPUs do not fit" in text


async def test_all_charts_freeze_and_zoom_together_and_z_fills_the_screen() -> None:
    app = QuietApp()
    async with app.run_test(size=(200, 50)) as pilot:
        board = app.board
        assert board is not None
        first, second = board.query_one(ThroughputPanel), board.query_one(TrendChart)
        await pilot.press("f", "plus")
        assert first.frozen
        assert second.frozen
        assert first.window_s == second.window_s > 120
        await pilot.press("z")
        assert board.maximized is first
        await pilot.press("z")
        assert board.maximized is None


async def test_a_server_that_does_not_answer_is_told_once_and_forgotten_when_it_does() -> None:
    app = QuietApp(UiOptions())
    target = Target("ollama", url=OLLAMA.url)
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(Inspected(target, Loaded(problem="http://127.0.0.1:11434 does not answer.")))
        assert "does not answer" in await painted(app, pilot)
        app.post_message(Inspected(target, Loaded(OLLAMA, data.MODEL)))
        text = await painted(app, pilot)
        assert "gemma3:latest" in text
