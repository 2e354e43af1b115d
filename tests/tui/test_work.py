"""Which run is worked on is known whoever started it and whichever is shown, and nothing is begun beside it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.message import Message

from chimera.cli.ui import UiOptions
from chimera.domain.finding import Evidence, Finding, Remedy
from chimera.domain.run import Progress, Run, Target, Trial
from chimera.errors import JournalError
from chimera.presets.loader import guide_presets
from chimera.runner.follow import Update
from chimera.store.journal import Journal
from chimera.tui import commands, feeds
from chimera.tui.commands import Said
from chimera.tui.feeds import JournalFeed
from chimera.tui.messages import LeftChanged, RunChanged, ServersFound, Told, Worked
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.doctor import Doctor, Examined
from chimera.tui.screens.presets import Presets
from chimera.tui.screens.runs import Runs
from chimera.tui.screens.tune import Tune
from chimera.tui.state import Work
from tests.store.samples import new_run, whole_session
from tests.widgets import data
from tests.widgets.screens import screen_text

from .quiet import QuietApp, notes, snapshot, until, update
from .test_app import OLLAMA
from .test_tune import ANSWERS, DONE, PLAN, Held, Line, comparison, shows

OTHER: Run = replace(data.RUN, id="zz99", state="running")
MEASURING: Progress = replace(data.progress(), stage="measuring")


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
        await until(pilot, lambda: "a plan can be drawn when zz99 has ended" in notes(app))
        assert line.asked == [], "it would look at the server, and try an engine of our own"
        app.clear_notifications()
        app.post_message(Worked(None, None))
        await pilot.press("p")
        await until(pilot, lambda: app.state.draft.drawn is not None)
        app.post_message(Worked(OTHER, MEASURING))
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


async def test_a_moment_that_is_not_looked_at_beside_a_run_that_is_not_shown_is_an_old_one() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(replace(update("done", first=True), findings=())))
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("d")
        said = "run k7f2, single-agent, done: nothing was found; this moment: not checked beside run zz99"
        await until(pilot, lambda: said in screen_text(app))
        app.screen.post_message(Examined(()))
        said = "the moment before run zz99 and run k7f2, single-agent, done: nothing was found"
        await until(pilot, lambda: said in screen_text(app))


async def test_no_preset_is_compared_beside_a_run_that_is_not_shown() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("p")
        await until(pilot, lambda: isinstance(app.screen, Presets) and "Maximum Throughput (" in screen_text(app))
        await pilot.press("v")
        await until(pilot, lambda: "zz99 has ended" in notes(app))


FOUND = Finding(
    "cpu-offload", "warn", "On the CPU", (Evidence("layers", 3.0),), remedies=(Remedy("All.", {"num_gpu": 35}),)
)


async def test_nothing_is_begun_beside_a_command_of_ours_that_loads_an_engine(
    monkeypatch: pytest.MonkeyPatch, journal: Journal
) -> None:
    stopped = new_run(journal, "run")
    journal.set_state(stopped.id, "stopped")
    held = Held((0, ANSWERS, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    waits = "The reading of two answers is still at work"
    async with app.run_test(size=(120, 40)) as pilot:
        app.journal.ready(journal)
        app.post_message(RunChanged(replace(comparison("done", **DONE), findings=(FOUND,))))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))
        await pilot.press("o", "enter")
        await until(pilot, lambda: held.asked)
        for keys in (("o",), ("a",), ("n", "down", "space", "p"), ("1",), ("d", "f"), ("h",), ("p", "v")):
            app.clear_notifications()
            await pilot.press(*keys[:-1])
            await until(pilot, lambda: getattr(app.screen, "has_panels", False))
            await until(pilot, lambda: not isinstance(app.screen, Presets) or app.screen.chosen is not None)
            await pilot.press(keys[-1])
            await until(pilot, lambda: waits in notes(app))
            assert not isinstance(app.screen, Ask), keys
            assert not app.screen.has_class("-typing"), keys
        assert app.run_preset(guide_presets()[1]) is False
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.chosen is not None)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert waits in " ".join(screen_text(app).split())
        assert "go on with it" not in screen_text(app)
        await pilot.press("n")
        held.free.set()
        await until(pilot, lambda: not app.state.working)
        assert len(held.asked) == 1
        assert app.asked == []


async def test_what_the_journal_has_not_begun_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        monkeypatch.setattr(JournalFeed, "busy", property(lambda feed: True))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("h")
        await until(pilot, lambda: "a heat check can start when that has ended" in notes(app))
        assert not isinstance(app.screen, Ask)


def on_ollama() -> Update:
    """A finished comparison on a server of somebody else's, with a finding."""
    done = replace(comparison("done", **DONE), findings=(FOUND,))
    return replace(done, run=replace(done.run, target=Target("ollama", url=OLLAMA.url)))


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        (("1",), "y"),
        (("t", "o", "enter"), "y"),
        (("t", "n", "down", "space", "p", "s"), "y"),
        (("d", "f"), "1"),
        (("d", "h"), "1"),
        (("p", "v"), "y"),
        (("r", "f"), "y"),
    ],
    ids=lambda keys: "-".join(keys),
)
async def test_a_run_that_begins_while_one_is_asked_is_not_disturbed_by_the_answer(
    keys: tuple[str, ...], answer: str, monkeypatch: pytest.MonkeyPatch, journal: Journal
) -> None:
    stopped = new_run(journal, "run")
    journal.set_state(stopped.id, "stopped")
    line = Line((0, PLAN, ""))
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.journal.ready(journal)
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(RunChanged(on_ollama()))
        await pilot.pause()
        for key in keys:
            await until(pilot, lambda: not app.state.working)
            await until(pilot, lambda: getattr(app.screen, "has_panels", False))
            await until(pilot, lambda: not isinstance(app.screen, Presets | Runs) or app.screen.chosen is not None)
            await pilot.press(key)
            await pilot.pause()
        await until(pilot, lambda: isinstance(app.screen, Ask))
        planned = list(line.asked)
        assert all("--dry-run" in one for one in planned)
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.pause()
        await pilot.press(answer)
        await until(pilot, lambda: "zz99 has ended" in notes(app))
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        assert line.asked == planned
        assert app.asked == []
        assert not app.state.reload_agreed or keys == ("1",)


async def test_no_name_that_was_typed_is_applied_beside_a_run_that_has_begun_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line()
    monkeypatch.setattr(commands, "ask_chimera", line)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison("done", **DONE))
        await pilot.press("a", *"fast")
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("enter")
        await until(pilot, lambda: "it can be applied when zz99 has ended" in notes(app))
        assert line.asked == []


async def test_settings_are_not_put_back_beside_a_run_that_has_begun_meanwhile() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(LeftChanged("abcd", OLLAMA.url))
        await until(pilot, lambda: isinstance(app.screen, Ask))
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("y")
        await until(pilot, lambda: "zz99 has ended" in notes(app))
        assert app.asked == []


async def test_a_run_is_not_stopped_for_one_that_is_then_not_wanted() -> None:
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("r")
        await until(pilot, lambda: "not Chimera's" in screen_text(app))
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(app.screen, Ask))
        assert app.asked == []


async def test_what_is_asked_for_twice_is_told_and_not_told_as_begun(
    monkeypatch: pytest.MonkeyPatch, journal: Journal, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = new_run(journal, "run")
    journal.set_state(run.id, "done")
    held = Held((0, {}, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    log: list[str] = []
    monkeypatch.setattr(app, "log_line", lambda text, level: log.append(text))
    async with app.run_test(size=(120, 40)) as pilot:
        app.journal.ready(journal)
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.chosen is not None)
        for _ in range(2):
            await pilot.press("e")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("j")
            await until(pilot, lambda: isinstance(app.screen, Runs))
        await until(pilot, lambda: f"The export to chimera-{run.id}.json is still at work." in notes(app))
        assert len(held.asked) == 1
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        app.state.working["heat check"] = Work(engine=False)  # so that no guard comes before the command's own
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: "The heat check is still at work." in notes(app))
        assert isinstance(app.screen, Doctor)
        assert not any("heat check" in line for line in log)
        held.free.set()


def test_an_answer_that_is_no_document_says_what_went_wrong() -> None:
    assert Said(2, "", "looking …\nNothing answers there.\n").problem == "Nothing answers there."


# ---- the journal's thread ------------------------------------------------------------------------------------------


def test_what_fails_by_a_full_disk_is_told_and_the_thread_goes_on(journal: Journal) -> None:
    run, done = new_run(journal, "run"), threading.Event()
    journal.set_state(run.id, "done")

    def full(_: Journal) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "worker.log")

    with Watching() as seen:
        seen.feed.do(full)
        seen.feed.do(lambda _: done.set())
        assert done.wait(10)
        seen.feed.follow(run.id)
        seen.wait(lambda: seen.shows(run))
        assert [one.text for one in seen.posted if isinstance(one, Told)] == [
            "That was not done: [Errno 28] No space left on device: 'worker.log'"
        ]
        assert not seen.feed.busy


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), JournalError("It is locked.")])
def test_a_look_that_fails_again_and_again_is_told_once_and_what_it_missed_is_shown_later(
    error: Exception, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looked, fails = new_run(journal, "run"), 0, False
    trials = Journal.trials

    def sometimes(self: Journal, run_id: str) -> list[Trial]:
        nonlocal looked
        looked += fails
        if fails:
            raise error
        return trials(self, run_id)

    monkeypatch.setattr(Journal, "trials", sometimes)
    with journal.worker_lock(run.id), Watching() as seen:
        seen.wait(lambda: seen.shows(run))
        fails = True
        whole_session(journal, run, 1, "c0", [90.0, 91.0])
        journal.set_state(run.id, "done")
        seen.wait(lambda: looked > 2)
        fails = False
        seen.wait(lambda: any(isinstance(one, RunChanged) and one.update.run.state == "done" for one in seen.posted))
        [last] = [one.update for one in seen.posted if isinstance(one, RunChanged) and one.update.run.state == "done"]
        assert len(last.new) == 3
        assert len([one for one in seen.posted if isinstance(one, Told)]) == 1


def test_a_run_that_is_asked_for_during_a_look_is_the_one_that_is_shown(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, wanted, active = (new_run(journal, "run") for _ in range(3))
    for run in (old, wanted):
        journal.set_state(run.id, "done")
    watching = Watching()

    def asked_meanwhile(message: Message) -> None:
        watching.posted.append(message)
        if isinstance(message, Told):  # of the run that is worked on
            watching.feed.follow(wanted.id, stay=True)

    monkeypatch.setattr(watching.feed, "_post", asked_meanwhile)
    watching.feed.follow(old.id)
    with journal.worker_lock(active.id), watching as seen:
        seen.wait(lambda: any(isinstance(one, Told) for one in seen.posted))
        seen.wait(lambda: seen.shows(wanted))
        time.sleep(0.5)
        assert seen.shows(wanted)


def test_a_run_that_is_asked_for_before_the_first_look_has_ended_is_shown(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, crashed = new_run(journal, "run"), new_run(journal, "run")
    journal.set_state(wanted.id, "done")
    journal.set_state(crashed.id, "running")
    watching, first = Watching(), feeds._first

    def asked_meanwhile(opened: Journal) -> str | None:
        watching.feed.follow(wanted.id)
        return first(opened)

    monkeypatch.setattr(feeds, "_first", asked_meanwhile)
    with watching as seen:
        seen.wait(lambda: any(isinstance(one, RunChanged) for one in seen.posted))
        assert seen.shows(wanted)


# ---- keys ----------------------------------------------------------------------------------------------------------


def done_with(app: QuietApp, journal: Journal) -> None:
    """Do what was asked of the journal."""
    for work in [one for one in app.asked if callable(one)]:
        work(journal)
    app.asked.clear()


async def test_a_run_that_replaces_another_is_shown_whatever_was_looked_at(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chimera.runner.launch.start_worker", lambda *_: None)
    active = new_run(journal, "run")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.journal.follow("k7f2", stay=True)
        app.post_message(RunChanged(update("done", first=True)))
        app.post_message(Worked(active, None))
        with journal.worker_lock(active.id):
            await pilot.press("1")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("n")
            await until(pilot, lambda: app.asked)
            done_with(app, journal)
            assert app.journal._follow == "k7f2", "it comes next, and is not what is looked at"
            await pilot.press("1")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("r")
            await until(pilot, lambda: len(app.asked) == 2)
            done_with(app, journal)
        newest = journal.runs(limit=1)[0]
        assert app.journal._follow == newest.id
        assert newest.preset == "maximum-throughput"
        assert journal.take_commands(active.id) == ["stop"]


async def test_the_key_that_pauses_takes_it_back_before_it_has_shown(journal: Journal) -> None:
    """The request in flight is finished first, which may take minutes: `pause` was sent again and again."""
    run = new_run(journal, "run")
    app = QuietApp()
    async with app.run_test() as pilot:
        app.post_message(RunChanged(update(run_id=run.id, first=True)))
        await pilot.press("space", "space", "space")
        done_with(app, journal)
        assert journal.take_commands(run.id) == ["pause", "resume", "pause"]
        app.post_message(RunChanged(update("paused", run_id=run.id)))
        await pilot.press("space")
        app.post_message(RunChanged(update(run_id=run.id)))
        await pilot.pause()
        await pilot.press("space")
        done_with(app, journal)
        assert journal.take_commands(run.id) == ["resume", "pause"]
        app.post_message(RunChanged(update("paused", run_id=run.id)))
        app.post_message(RunChanged(update(run_id=run.id)))  # somebody else has resumed it
        await pilot.press("space")
        done_with(app, journal)
        assert journal.take_commands(run.id) == ["pause"]


# ---- what has no word yet, or is told of by a lock alone ------------------------------------------------------------


async def test_a_run_that_a_command_has_started_is_waited_for_before_its_first_word(
    monkeypatch: pytest.MonkeyPatch, journal: Journal
) -> None:
    run = new_run(journal, "run")
    monkeypatch.setattr(commands, "ask_chimera", Line((0, {"run": {"id": run.id}}, "")))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: app.journal._follow == run.id)
        await pilot.press("1")
        assert "a preset can run when that has ended" in notes(app)
        assert app.asked == []


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_was_begun_is_waited_for_until_it_was_looked_at_also_in_vain(
    journal: Journal, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(journal, "run")
    journal.set_state(run.id, "done")
    with Watching() as seen:
        seen.wait(lambda: seen.worked())
        monkeypatch.setattr(seen.feed, "_woken", threading.Event())  # it looks when its pause is over
        seen.feed.follow(run.id if known else "zzzz", begun=True)
        assert seen.feed.busy
        seen.wait(lambda: not seen.feed.busy)
        assert seen.shows(run) is known


def test_answers_that_are_read_elsewhere_are_told_of_and_an_end_that_is_just_written_is_not(journal: Journal) -> None:
    run = new_run(journal, "run")
    with Watching() as seen:

        def used() -> list[str | None]:
            return [one.used.id if one.used else None for one in seen.posted if isinstance(one, Worked)]

        with journal.worker_lock(run.id):
            seen.wait(lambda: seen.worked()[-1:] == [run.id])
            journal.set_state(run.id, "done")
            seen.wait(lambda: seen.worked()[-1] is None)
        assert used() == [None] * len(used())
        with journal.worker_lock(run.id):
            seen.wait(lambda: used()[-1] == run.id)
        seen.wait(lambda: used()[-1] is None)


async def test_nothing_is_begun_beside_answers_that_are_read_elsewhere() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(Worked(None, None, OTHER))
        await pilot.press("1")
        await until(pilot, lambda: "Another program of ours uses run zz99: a preset can run when that" in notes(app))
        assert app.asked == []
        assert not app.check_action("stop", ()), "no key of ours ends it"
        app.post_message(Worked(None, None))
        await pilot.press("1")
        await until(pilot, lambda: app.asked)


def test_an_import_is_no_work_on_an_engine(journal: Journal) -> None:
    run = new_run(journal, "import")
    with journal.worker_lock(run.id):
        journal.set_state(run.id, "running")
        with Watching() as seen:
            seen.wait(lambda: seen.worked())
            time.sleep(1.2)
            assert seen.worked() == [None]
            assert not any(isinstance(one, RunChanged) for one in seen.posted)


def test_a_run_that_goes_on_is_known_however_many_came_after_it(journal: Journal) -> None:
    run = new_run(journal, "run")
    with journal.worker_lock(run.id):
        journal.set_state(run.id, "running")
        for _ in range(21):
            journal.set_state(new_run(journal, "import").id, "done")
        with Watching() as seen:
            seen.wait(lambda: seen.worked() == [run.id])


async def test_a_command_that_ends_by_a_defect_has_ended_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: str) -> Said:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(commands, "ask_chimera", broken)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "The plan has ended by a defect." in app.state.draft.said)
        await until(pilot, lambda: "can't start new thread" in notes(app))
        assert not app.state.working


async def test_settings_left_behind_are_asked_about_when_they_can_be_put_back_and_nothing_is_typed() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(Worked(OTHER, MEASURING))
        app.post_message(LeftChanged("abcd", OLLAMA.url))
        app.post_message(LeftChanged(OTHER.id, OLLAMA.url))
        await pilot.press("t", "down", "enter")
        assert isinstance(app.screen, Tune)
        app.post_message(Worked(None, None))
        await pilot.pause(app.paint_s * 2)
        assert isinstance(app.screen, Tune), "the next letter would be an answer"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        app.post_message(Worked(OTHER, MEASURING))
        await pilot.press("y")
        await until(pilot, lambda: "they can be put back when zz99 has ended" in notes(app))
        assert app.asked == []
        app.post_message(Worked(None, None))
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: app.asked)
        await pilot.pause(app.paint_s * 2)
        assert not isinstance(app.screen, Ask), "a run that went on has put back itself what it had changed"


async def test_readings_beside_work_of_ours_are_not_this_machines_own_state() -> None:
    app = QuietApp()
    state = app.state
    one, beside, after, calm = (replace(snapshot(0), at=at) for at in (1.0, 2.0, 3.0, 4.0))
    state.see(one)
    assert list(state.calm) == [one]
    state.hear(OTHER, replace(MEASURING, worker=4711), None)
    assert 4711 in state.watched.own_pids
    state.see(beside)
    state.hear(None, None, None)
    assert state.watched.own_pids == ()
    assert list(state.calm) == []
    state.see(after)
    assert list(state.calm) == [], "half of it is of the time before the end"
    state.see(calm)
    assert list(state.calm) == [calm]
    assert len(state.recent) == 4
