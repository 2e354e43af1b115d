"""The Presets screen: what each asks, what of it is effective, what it was measured to be, and what its keys start."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot
from textual.screen import ModalScreen

from chimera.cli.ui import UiOptions
from chimera.domain.run import Target
from chimera.domain.server import ModelInfo
from chimera.domain.verdict import Verdict
from chimera.errors import BackendUnavailable
from chimera.presets.loader import guide_presets
from chimera.runner.honesty import Here, Measured, preset_rows
from chimera.tui import commands, feeds
from chimera.tui.commands import Said
from chimera.tui.messages import RunChanged, ServersFound, Told
from chimera.tui.screens import presets
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.presets import Judged, Presets, Read, comparison, judge, read
from chimera.tui.screens.tune import Tune
from tests.widgets.screens import ScreenText, screen_text

from .quiet import QuietApp, notes, until, update
from .test_tune import ALIKE, PLAN, Line

GEMMA = ModelInfo("gemma3:latest", block_count=34, trained_ctx=131072, vision=True)
CARD = ("NVIDIA GeForce RTX 4080 Laptop GPU",)
TARGET = Target("embedded", assume_yes=True)
SIZES = [(80, 24), (120, 40), (200, 50)]


def judged(*measured: Measured, target: Target = TARGET) -> Judged:
    rows = preset_rows(guide_presets(), Here("ollama", GEMMA), measured)
    return Judged(target, "On gemma3:latest, Ollama 0.33.0", {row.preset.name: row for row in rows})


def measured_first() -> Measured:
    first = guide_presets()[0]
    verdict = Verdict("c1", "c0", "decode_tok_s", "same", 1.003, (0.994, 1.012), 0.95, 8)
    return Measured(
        "abcd", 1.0, first.options, preset=first.name, model="gemma3:latest", cards=CARD, verdict=verdict,
        decode_tok_s=110.0, ttft_s=0.7,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Callable[[], None]]]:
    """Threads that would have been started, by name; an empty folder of presets and no journal."""
    monkeypatch.setenv("CHIMERA_CONFIG", "config")
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHIMERA_DB", raising=False)
    monkeypatch.chdir(tmp_path)
    kept: list[tuple[str, Callable[[], None]]] = []
    real = feeds.begin

    def begin(name: str, post: feeds.Post, work: Callable[[], None]) -> None:
        if name in presets.WAITS:
            real(name, post, work)
        else:
            kept.append((name, work))

    monkeypatch.setattr(feeds, "begin", begin)
    return kept


async def opened(app: QuietApp, pilot: Pilot[None], message: Judged | None = None) -> Presets:
    await pilot.press("p")
    await until(pilot, lambda: isinstance(app.screen, Presets))
    assert isinstance(app.screen, Presets)
    read(app.screen.post_message)
    if message is not None:
        app.screen.post_message(message)
    await until(pilot, lambda: "Maximum Throughput (" in screen_text(app))
    return app.screen


def words(app: QuietApp) -> str:
    """What is on the screen, as one line without frames."""
    return " ".join(screen_text(app).replace("│", " ").split())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_screen(size: tuple[int, int], snapshot: SnapshotAssertion) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot, judged(measured_first()))
        await until(pilot, lambda: "Ollama 0.33.0" in screen_text(app))
        assert screen_text(app) == snapshot.use_extension(ScreenText)


async def test_what_is_asked_runs_and_was_promised_stand_side_by_side() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 50)) as pilot:
        await opened(app, pilot, judged(measured_first()))
        await until(pilot, lambda: "Ollama 0.33.0" in screen_text(app))
        text = words(app)
        for said in (
            "num_gpu=80", "num_gpu=35", "num_gpu 80 runs as 35", "one setting on this model", "memory-efficient",
            "same +0.3%, -0.6% to +1.2% (run abcd)", "Strategy 1", "High-throughput batch", "6-8 GB of VRAM by",
            "98-103 tok/s ✓ met, 110 measured", "under 0.5 s TTFT ✗ missed, 0.7 measured",
            "6-8 GB VRAM · not comparable here", "this was not measured", "never been reproduced",
        ):  # fmt: skip
            assert said in text, said
        await pilot.press("down", "down")
        await until(pilot, lambda: "Multi-Agent (Python) (" in screen_text(app))
        assert "2 agents at once" in words(app)
        assert "(run abcd, its load options)" in words(app)


async def test_a_small_screen_scrolls_to_the_promises() -> None:
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot, judged(measured_first()))
        await until(pilot, lambda: "more lines: PgDn" in screen_text(app))
        assert "missed" not in screen_text(app)
        for _ in range(4):
            await pilot.press("pagedown")
            await pilot.pause()
            if "missed" in screen_text(app):
                break
        assert "✗ missed, 0.7 measured" in screen_text(app)


async def test_a_broken_file_is_named_with_line_and_field() -> None:
    folder = Path("config/presets")
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('name = "mine"\ntitle = "Mine"\ndigit = 6\n\n[options]\nnum_gpu = 3\n')
    (folder / "broken.toml").write_text('name = "broken"\ntitle = "B"\n\n[options]\nnum_gpu = "many"\n')
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot)
        await until(pilot, lambda: "broken.toml" in screen_text(app))
        assert "6 Mine" in screen_text(app)
        assert "broken.toml:5" in words(app)
        assert "options.num_gpu" in words(app)


async def test_folders_and_files_are_told_from_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        assert "TOML files in ~/config/presets;" in words(app)
        await pilot.press("8")
        await until(pilot, lambda: "put one into ~/config/presets." in notes(app))
    folder = tmp_path / "config" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('name = "mine"\ntitle = "Mine"\ndigit = 6\n\n[options]\nnum_gpu = 3\n')
    (folder / "broken.toml").write_text('name = "broken"\ntitle = "B"\n\n[options]\nnum_gpu = "many"\n')
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("end")
        await until(pilot, lambda: "~/config/presets/mine.toml" in words(app))
        assert "▲ ~/config/presets/broken.toml:5" in words(app)
        assert str(tmp_path) not in words(app)


async def test_a_title_is_no_markup_in_the_palette() -> None:
    folder = Path("config/presets")
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('name = "mine"\ntitle = "[red]Mine[/] [/b]"\n\n[options]\nnum_gpu = 3\n')
    app = QuietApp()
    async with app.run_test(size=(120, 50)) as pilot:
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, ModalScreen))
        await pilot.press(*"mine")
        await until(pilot, lambda: "Run [red]Mine[/] [/b]" in screen_text(app))


async def test_why_there_is_no_server_is_told_anew_when_it_is_known() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await until(pilot, lambda: "looking for a server" in words(app))
        app.post_message(ServersFound((), "Nothing answers at 11434."))
        await pilot.pause()
        app.paint()
        await until(pilot, lambda: "Nothing answers at 11434." in words(app))


async def test_what_was_true_on_one_model_is_not_said_of_another(begun: list[tuple[str, Callable[[], None]]]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        message = judged(measured_first())
        screen = await opened(app, pilot, replace(message, settable=frozenset({"num_ctx"})))
        await until(pilot, lambda: "Ollama 0.33.0" in screen_text(app))
        first = guide_presets()[0]
        assert screen._asked(first).as_dict().keys() <= {"num_ctx"}
        app.state.target = other = Target("ollama", "http://127.0.0.1:11434", "another:4b")
        app.paint()
        await until(pilot, lambda: "looking at the server" in words(app))
        assert not screen.judged
        assert screen._asked(first) == first.options
        app.screen.post_message(message)  # a late word of the one before
        await pilot.pause()
        assert not screen.judged
        app.screen.post_message(replace(message, target=other))
        await until(pilot, lambda: screen.judged)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The plan that the command line draws is there once this is set."""
    drawn = threading.Event()

    def slow(*arguments: str) -> Said:
        drawn.wait(10)
        return Said(0, json.dumps(PLAN), "")

    monkeypatch.setattr(commands, "ask_chimera", slow)
    return drawn


@pytest.mark.parametrize(("key", "seen"), [("t", "Tune"), ("question_mark", "Help")])
async def test_a_plan_that_comes_when_one_has_gone_on_asks_nothing(
    answer: threading.Event, key: str, seen: str
) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("v", key)
        await until(pilot, partial(shows, app, seen))
        answer.set()
        await until(pilot, lambda: not app.state.working)
        await until(pilot, lambda: "is dropped" in notes(app))
        assert shows(app, seen), "also where the screen shines through: a question would take the next key"


async def test_a_start_in_work_goes_on_when_the_screen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    asked: list[tuple[str, ...]] = []

    def slow(*arguments: str) -> Said:
        asked.append(arguments)
        if "--dry-run" in arguments:
            return Said(0, json.dumps(PLAN), "")
        answer.wait(10)
        return Said(0, '{"run": {"id": "abcd"}}', "")

    monkeypatch.setattr(commands, "ask_chimera", slow)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: len(asked) == 2)
        await until(pilot, lambda: "starting …" in screen_text(app))
        await pilot.press("r")
        await until(pilot, partial(shows, app, "Runs"))
        answer.set()
        await until(pilot, lambda: app.journal._follow == "abcd")
        assert shows(app, "Runs"), "nobody is taken away from where they are"


async def test_a_thread_that_ends_after_its_screen_tells_the_app_and_raises_nothing() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(app, pilot)
        post = screen.poster()
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Presets))
        failed: list[Exception] = []

        def late() -> None:
            try:
                read(post)
                post(Told("told late", "warn"))
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=late)
        thread.start()
        await until(pilot, lambda: not thread.is_alive())
        await until(pilot, lambda: "told late" in notes(app))
        assert failed == []


async def test_enter_runs_it_and_goes_to_where_it_is_seen() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("down", "enter")
        await until(pilot, lambda: [one for one in app.asked if callable(one)])
        assert not isinstance(app.screen, Presets)
        assert "Quality Focused" in screen_text(app)


async def test_a_ui_that_may_only_read_starts_nothing_by_key_or_palette() -> None:
    app = QuietApp(UiOptions(embedded=True, read_only=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("enter", "v")
        await pilot.pause()
        for command in app.get_system_commands(app.screen):
            if command.title.startswith("Run "):
                command.callback()
        await pilot.pause()
        assert app.asked == []
        assert isinstance(app.screen, Presets)


async def test_the_palette_has_every_screen_and_runs_nothing_without_a_server() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        commands = {command.title: command for command in app.get_system_commands(app.screen)}
        for title in ("Presets", "Tune", "Doctor", "Runs", "Alerts", "Pick server", "Help"):
            assert [one for one in commands if one.startswith(title)], title
        assert "Stop the run" not in commands, "no run goes on"
        commands["Run Quality Focused (key 2)"].callback()
        await until(pilot, lambda: "Press m" in notes(app))
        app.post_message(RunChanged(update(first=True)))
        await pilot.pause()
        assert "Stop the run" in {command.title for command in app.get_system_commands(app.screen)}


def shows(app: QuietApp, name: str) -> bool:
    return type(app.screen).__name__ == name


async def test_one_key_leads_back_however_many_screens_were_seen() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        for key, screen in (("r", "Runs"), ("d", "Doctor"), ("r", "Runs"), ("p", "Presets")):
            await pilot.press(key)
            await until(pilot, partial(shows, app, screen))
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_the_comparison_shows_its_plan_and_starts_after_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line((0, PLAN, ""), (0, {"run": {"id": "abcd"}}, ""))
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(app, pilot)
        screen.post_message(Judged(TARGET, "here", {}, frozenset({"num_gpu", "temperature"})))
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert "Gains above 4.1%" in words(app)
        [planned] = line.asked
        assert planned[:5] == ("sweep", "--num-gpu", "80", "--temperature", "0.8"), "only what can be set here"
        assert planned[-2:] == ("--dry-run", "--json")
        await pilot.press("y")
        await until(pilot, lambda: len(line.asked) == 2)
        assert line.asked[1][-5:] == ("--seed", "77", "--yes", "--detach", "--json")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        assert app.journal._follow == "abcd"
        assert not app.state.reload_agreed, "who was not asked, as for an engine of our own, has not agreed"


async def test_a_preset_that_is_the_default_here_is_not_measured_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line((0, ALIKE, ""))
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("v")
        await until(pilot, lambda: "against the default: No session" in notes(app))
        assert not isinstance(app.screen, Ask)


async def test_what_is_waited_for_is_on_the_screen(answer: threading.Event) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("v")
        await until(pilot, lambda: "drawing the plan" in screen_text(app))
        answer.set()
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, Presets) and "drawing" not in screen_text(app))


async def test_a_no_starts_nothing_and_a_failed_plan_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line((0, PLAN, ""), (3, None, "looking …\nNothing answers there."))
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot)
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, Presets))
        await pilot.press("v")
        await until(pilot, lambda: "Nothing answers there." in notes(app))
        assert len(line.asked) == 2


async def test_no_comparison_beside_a_run_or_without_a_server() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((), "Nothing answers at 11434."))
        await opened(app, pilot)
        await pilot.press("v")
        await until(pilot, lambda: "press m" in notes(app))
        assert "Nothing answers at 11434." in screen_text(app)
        app.state.target = TARGET
        app.post_message(RunChanged(update(first=True)))
        await pilot.pause()
        await pilot.press("v")
        await until(pilot, lambda: "A run goes on" in notes(app))


def test_the_comparison_is_one_that_the_command_line_takes() -> None:
    from typer.testing import CliRunner

    from chimera.cli.app import app

    preset = guide_presets()[1]
    typed = ["sweep", *comparison(preset, preset.options), "--server", "http://127.0.0.1:9", "--dry-run", "--json"]
    done = CliRunner().invoke(app, typed)
    assert isinstance(done.exception, BackendUnavailable), done.output


def test_a_server_that_does_not_answer_leaves_the_presets_and_says_why() -> None:
    posted: list[Any] = []
    judge(posted.append, Target("ollama", url="http://127.0.0.1:9"))
    [message] = posted
    assert message.rows == {}
    assert "127.0.0.1:9" in message.where


def test_reading_gives_the_guides_five() -> None:
    posted: list[Any] = []
    read(posted.append)
    [message] = posted
    assert isinstance(message, Read)
    assert [one.digit for one in message.presets] == [1, 2, 3, 4, 5]
    assert message.problems == ()
