"""Which run is worked on is known whoever started it and whichever is shown, and nothing is begun beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.message import Message

from chimera.domain.finding import Evidence, Finding, Remedy
from chimera.domain.run import Progress, Run
from chimera.store.journal import Journal
from chimera.tui import commands
from chimera.tui.commands import Said
from chimera.tui.feeds import JournalFeed
from chimera.tui.messages import RunChanged, Told, Worked
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.doctor import Doctor
from chimera.tui.screens.presets import Presets
from chimera.tui.screens.tune import Tune
from tests.store.samples import new_run
from tests.widgets import data
from tests.widgets.screens import screen_text

from .quiet import QuietApp, notes, until, update
from .test_tune import DONE, PLAN, Line, comparison

OTHER: Run = replace(data.RUN, id="zz99", state="running")
MEASURING: Progress = replace(data.progress(), stage="measuring")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHIMERA_DB", raising=False)
    with Journal.open() as opened:
        yield opened


class Watching:
    """A feed in a thread, and what it has told."""

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.feed = JournalFeed(self.posted.append)
        self._thread = threading.Thread(target=self.feed.run)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.leave()
        self._thread.join(5)

    def wait(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not reached():
            assert time.monotonic() < deadline, self.posted
            time.sleep(0.02)

    def shows(self, run: Run) -> bool:
        shown = [one.update.run.id for one in self.posted if isinstance(one, RunChanged)]
        return bool(shown) and shown[-1] == run.id

    def worked(self) -> list[str | None]:
        return [one.run.id if one.run else None for one in self.posted if isinstance(one, Worked)]


def test_a_ui_that_shows_nothing_shows_a_run_that_is_started_elsewhere_and_says_so(journal: Journal) -> None:
    with Watching() as seen:
        seen.wait(lambda: seen.worked() == [None])
        run = new_run(journal, "run")
        with journal.worker_lock(run.id):
            seen.wait(lambda: seen.shows(run))
            assert seen.worked() == [None, run.id]
            assert any(isinstance(one, Told) and run.id in one.text for one in seen.posted)
            other = new_run(journal, "run")
            journal.set_state(other.id, "running")
            with journal.worker_lock(other.id):
                seen.wait(lambda: seen.worked()[-1] == other.id)
                time.sleep(0.5)
                assert seen.shows(run), "what goes on is not taken from the screen"
                journal.set_state(run.id, "done")
                seen.wait(lambda: seen.shows(other))


def test_a_run_that_ends_does_not_bring_an_old_crashed_one_to_the_screen(journal: Journal) -> None:
    crashed, run = new_run(journal, "run"), new_run(journal, "run")
    journal.set_state(crashed.id, "running")
    with journal.worker_lock(run.id), Watching() as seen:
        journal.set_state(run.id, "running")
        seen.wait(lambda: seen.shows(run))
        journal.set_state(run.id, "done")
        seen.wait(lambda: seen.worked()[-1] is None)
        journal.rename(run.id, "later")
        time.sleep(0.6)
        assert seen.shows(run)


def test_a_crashed_run_is_offered_at_the_start(journal: Journal) -> None:
    run = new_run(journal, "run")
    journal.set_state(run.id, "running")
    with Watching() as seen:
        seen.wait(lambda: seen.shows(run))


def test_a_run_that_is_worked_on_comes_before_one_that_waits_for_it(journal: Journal) -> None:
    run, waiting = new_run(journal, "run"), new_run(journal, "run")
    with journal.worker_lock(run.id), journal.worker_lock(waiting.id):
        journal.set_state(run.id, "running")
        with Watching() as seen:
            seen.wait(lambda: seen.shows(run))


async def test_keys_and_farewell_know_of_a_run_that_is_not_shown() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(update("done", first=True)))
        await pilot.pause()
        assert not app.check_action("stop", ())
        assert not app.state.watched.quiet
        app.post_message(Worked(OTHER, MEASURING))
        await until(pilot, lambda: app.check_action("stop", ()))
        assert app.state.watched.quiet, "process lists wait while its request is timed"
        await pilot.press("x")
        await until(pilot, lambda: "Stop run zz99?" in screen_text(app))
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: "Run zz99 goes on" in screen_text(app))
        await pilot.press("c")
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        await pilot.press("q")
    assert "chimera attach zz99" in app.farewell


async def test_an_old_word_of_the_run_that_has_ended_holds_nothing_up() -> None:
    app = QuietApp()
    async with app.run_test() as pilot:
        shown = update("done", first=True)
        app.post_message(Worked(replace(shown.run, state="running"), MEASURING))
        app.post_message(RunChanged(shown))
        await pilot.pause()
        assert app.state.at_work is None
        assert not app.state.timing


async def test_no_comparison_starts_and_nothing_is_applied_beside_a_run_that_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line((0, PLAN, ""))
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(comparison("done", **DONE)))
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))
        for key in ("a", "o"):
            await pilot.press(key)
            await until(pilot, lambda: "zz99 has ended" in notes(app))
            assert not app.screen.has_class("-typing")
            app.clear_notifications()
        await pilot.press("n", "down", "space", "p")
        await until(pilot, lambda: app.state.draft.drawn is not None)
        await pilot.press("s")
        await until(pilot, lambda: "zz99 has ended" in notes(app))
        assert len(line.asked) == 1


async def test_no_remedy_and_no_heat_check_beside_a_run_that_is_not_shown() -> None:
    found = Finding(
        "cpu-offload", "warn", "On the CPU", (Evidence("layers", 3.0),), remedies=(Remedy("All.", {"num_gpu": 35}),)
    )
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(replace(update("done", first=True), findings=(found,))))
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        for key in ("f", "h"):
            await pilot.press(key)
            await until(pilot, lambda: "zz99 has ended" in notes(app))
            assert isinstance(app.screen, Doctor)
            app.clear_notifications()


async def test_no_preset_is_compared_beside_a_run_that_is_not_shown() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("p")
        await until(pilot, lambda: isinstance(app.screen, Presets) and "Maximum Throughput (" in screen_text(app))
        await pilot.press("v")
        await until(pilot, lambda: "zz99 has ended" in notes(app))


def test_an_answer_that_is_no_document_says_what_went_wrong() -> None:
    assert Said(2, "", "looking …\nNothing answers there.\n").problem == "Nothing answers there."
