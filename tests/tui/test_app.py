"""Keys and what they lead to, without a worker: the app's own logic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.css.stylesheet import Stylesheet

from chimera.cli.ui import UiOptions, parse_ui
from chimera.domain.run import Target
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.errors import ConfigError
from chimera.tui.messages import ModelsListed, RunChanged, ServersFound, SnapshotTaken, Told
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.help import Help
from chimera.tui.screens.servers import PickServer
from tests.widgets import data
from tests.widgets.screens import screen_text

from .quiet import QuietApp, snapshot, until, update

OLLAMA = ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0")
SIZES = [(80, 24), (120, 40), (200, 50)]


def started(app: QuietApp) -> int:
    """How much was asked of the journal."""
    return len([one for one in app.asked if callable(one)])


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_shows_what_matters(size: tuple[int, int]) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        app.post_message(RunChanged(update(rows=3, first=True, texts=("request 1: 98.1 tok/s",))))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        text = screen_text(app)
        for wanted in ("tok/s", "Time to first", "GPU", "Host", "Server", "k7f2", "Log", "Pause", "Leave"):
            assert wanted in text, f"{wanted} is not on the screen at {size}"


async def test_the_start_parses_no_style_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed_again: list[Stylesheet] = []
    monkeypatch.setattr(Stylesheet, "reparse", parsed_again.append)
    async with QuietApp().run_test(size=(120, 40)):
        assert parsed_again == []


async def test_without_a_gpu_the_panel_says_why() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(SnapshotTaken(snapshot(gpus=0)))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        assert data.NO_GPU.missing is not None
        assert "NVIDIA" in screen_text(app) or "driver" in screen_text(app)
        assert " 0 %" not in screen_text(app).split("GPU")[1].split("Host")[0]


async def test_a_digit_starts_its_preset() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("1")
        await until(pilot, lambda: started(app) == 1)
        assert "Maximum Throughput" in screen_text(app)


async def test_a_digit_during_a_run_offers_queue_replace_and_cancel() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        for word in ("next", "stop this run", "leave things"):
            assert word in screen_text(app)
        await pilot.press("c")
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        assert app.asked == []
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("r")
        await until(pilot, lambda: started(app) == 2)  # the run is stopped, and the next one is started


async def test_another_persons_server_is_not_reloaded_before_a_yes() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test() as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        await pilot.pause()
        await pilot.press("1")
        await until(pilot, lambda: "reload" in screen_text(app))
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        assert started(app) == 0
        await pilot.press("1")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: started(app) == 1)
        await pilot.press("1")
        await until(pilot, lambda: started(app) == 2)  # it asks once a session


async def test_stop_asks_once_and_pause_does_not() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        await pilot.press("x", "space")
        assert app.asked == [], "there is nothing to stop or pause"
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("space")
        assert len(app.asked) == 1
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: started(app) == 2)


async def test_read_only_changes_nothing() -> None:
    app = QuietApp(UiOptions(embedded=True, read_only=True))
    async with app.run_test() as pilot:
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("1", "x", "space", "m")
        await pilot.pause()
        assert app.asked == []
        assert not isinstance(app.screen, Ask | PickServer)


async def test_the_server_is_picked_and_then_its_model() -> None:
    app = QuietApp(UiOptions())
    asked: list[ServerInfo] = []
    app.ask_models = asked.append  # type: ignore[method-assign, assignment]  # the test listens
    async with app.run_test() as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        await pilot.pause()
        await pilot.press("m")
        await pilot.pause()
        assert "embedded" in screen_text(app).lower()
        await pilot.press("enter")
        await pilot.pause()
        assert asked == [OLLAMA]
        models = (ModelInfo("gemma3:4b", quantization="Q4_K_M"), ModelInfo("[red]evil[/]\x1b[31m"))
        app.post_message(ModelsListed(OLLAMA, models))
        await pilot.pause()
        assert "[red]evil[/]" in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.state.target == Target("ollama", url=OLLAMA.url, model="gemma3:4b")


async def test_help_tells_keys_and_the_focused_panel() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 50)) as pilot:
        await pilot.press("tab", "question_mark")
        await pilot.pause()
        assert isinstance(app.screen, Help)
        text = screen_text(app)
        assert "Throughput" in text
        assert "pause or resume" in text
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, Help)


async def test_leaving_during_a_run_says_how_to_come_back() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("q")
    assert "chimera attach k7f2" in app.farewell


async def test_hostile_text_reaches_no_terminal() -> None:
    app = QuietApp()
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202eabc\r\n\x9b31m"
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(update(first=True, texts=(evil,))))
        app.post_message(Told(evil, "error"))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        text = screen_text(app)
        assert "[bold red]x[/]" in text
        assert not set(text) & {"\x1b", "\x9b", "\x07", "\u202e", "\r"}


async def test_a_server_is_the_same_by_whatever_name_it_is_called() -> None:
    """The run's own engine was not watched, and its server not shown, where the UI had found it as `localhost`."""
    app = QuietApp(UiOptions())
    async with app.run_test():
        target = Target("ollama", url="http://localhost:11434/")
        run = replace(data.RUN, state="done", target=Target("ollama", url="http://127.0.0.1:11434"), server=OLLAMA)
        app.state.target = target
        app.state.servers = (OLLAMA,)
        assert app.state.server == OLLAMA
        app.state.servers = ()
        app.state.take(replace(update("done", first=True), run=run))
        assert app.state.server == OLLAMA
        elsewhere = replace(run, target=Target("ollama", url="ftp://[evil"))
        app.state.take(replace(update("done", first=True), run=elsewhere))
        assert app.state.server != OLLAMA


async def test_charts_freeze_and_change_their_span() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        board = app.board
        assert board is not None
        panel = board.query_one("#throughput")
        before = panel.window_s  # type: ignore[attr-defined]  # a chart panel
        await pilot.press("plus")
        assert panel.window_s > before  # type: ignore[attr-defined]  # a chart panel
        await pilot.press("minus", "minus")
        assert panel.window_s < before  # type: ignore[attr-defined]  # a chart panel
        await pilot.press("f")
        assert panel.frozen  # type: ignore[attr-defined]  # a chart panel


async def test_the_rate_on_the_screen_is_the_workers_own() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(
            RunChanged(update(first=True, progress=replace(data.progress(), stage="measuring", rate=87.3)))
        )
        await pilot.pause()
        assert app.state.rate() == (87.3, f"request {data.progress().request}, client's clock")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], UiOptions()),
        (["--embedded"], UiOptions(embedded=True)),
        (["--server", "http://x:1", "--model=m", "--read-only"], UiOptions("http://x:1", "m", False, True)),
        (["run"], None),
        (["--help"], None),
        (["--embedded=yes"], None),
    ],
)
def test_what_opens_the_ui(arguments: list[str], wanted: UiOptions | None) -> None:
    assert parse_ui(arguments) == wanted


def test_an_option_without_its_value_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="--server wants a value"):
        parse_ui(["--server"])
