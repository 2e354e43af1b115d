"""The Runs screen: the newest first, what is typed filters, one run in full, exported, followed, resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.message import Message
from textual.pilot import Pilot
from textual.widgets import Input

from chimera.cli.ui import UiOptions
from chimera.domain.finding import Evidence, Finding
from chimera.domain.options import Options
from chimera.domain.run import Run, RunState, Session, Target, Trial
from chimera.domain.server import ModelInfo
from chimera.domain.verdict import Verdict
from chimera.domain.workload import Workload
from chimera.runner.facts import facts_of
from chimera.store.journal import Journal, Tally
from chimera.tui import commands
from chimera.tui.commands import Said
from chimera.tui.feeds import JournalFeed
from chimera.tui.messages import RunChanged, Told, Worked
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.runs import PAGE, Counted, Listed, Runs, Shown
from chimera.widgets.history import run_page
from chimera.widgets.listing import Listing, Page
from chimera.widgets.rows import text_of
from tests.store.samples import new_run, request, whole_session
from tests.widgets import data
from tests.widgets.screens import ScreenText, screen_text
from tests.widgets.test_arms import FACTS

from .quiet import QuietApp, notes, until, update


@pytest.fixture(autouse=True)
def _exported_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compared(journal: Journal) -> Run:
    """A sweep with a verdict, a void request and a finding."""
    run = new_run(journal, name="night shift", model="gemma3:4b")
    whole_session(journal, run, 1, "c0", [90.0, 91.0])
    whole_session(journal, run, 2, "c1", [99.0, 100.0])
    journal.begin_session(run.id, Session(3, "c1", round=2))
    journal.add_measurement(run.id, 3, request(None, void_reason="cache-hit"))
    journal.end_session(run.id, 3, "void")
    journal.set_verdicts(run.id, [Verdict("c1", "c0", "decode_tok_s", "better", 1.1, (1.05, 1.15), 0.975, 8)])
    found = Finding("measurement-noise", "notice", "Rates [scatter]", (Evidence("scatter", 0.08),))
    journal.set_findings(run.id, [found])
    journal.set_state(run.id, "done")
    return run


async def opened(app: QuietApp, pilot: Pilot[None], journal: Journal) -> Runs:
    app.journal.ready(journal)
    await pilot.press("r")
    await until(pilot, lambda: isinstance(app.screen, Runs) and "run" in screen_text(app))
    assert isinstance(app.screen, Runs)
    return app.screen


async def painted(app: QuietApp, pilot: Pilot[None], text: str) -> None:
    """Until it is on the screen, which looks for it by itself."""
    for _ in range(200):
        await pilot.pause(0.05)
        app.paint()
        if text in screen_text(app):
            return
    raise AssertionError(f"{text!r} did not come:\n{screen_text(app)}")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_newest_comes_first_and_opens_to_its_figures(size: tuple[int, int], journal: Journal) -> None:
    run, later = compared(journal), new_run(journal, "run", preset="quality-focused")
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: "4+1" in screen_text(app))
        text = screen_text(app)
        assert text.index(later.id) < text.index(run.id)
        for said in ("night shift", "gemma3:4b", "quality-focused", "queued", "2 runs"):
            assert said in text
        await pilot.press("down", "enter")
        await until(pilot, lambda: "4 valid, 1 void (1 cache-hit)" in screen_text(app))
        await pilot.press("tab", "end")
        await until(pilot, lambda: "Rates [scatter]" in screen_text(app))
        text = screen_text(app)
        for said in ("▲ better", "+10.0 %", "97.5 %", "+5.0 %", "8 rounds"):
            assert said in text
        await pilot.press("escape")
        await until(pilot, lambda: "Rates [scatter]" not in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Runs))


async def test_typing_filters_and_escape_shows_all_again(journal: Journal) -> None:
    run, other = compared(journal), new_run(journal, "run", preset="quality-focused")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: other.id in screen_text(app))
        await pilot.press("slash", *"night")
        await until(pilot, lambda: other.id not in screen_text(app))
        assert run.id in screen_text(app)
        assert "1 run with “night”" in screen_text(app)
        await pilot.press("enter", "enter")
        await until(pilot, lambda: "better" in screen_text(app))
        await pilot.press("escape", "escape")
        await until(pilot, lambda: other.id in screen_text(app))
        await pilot.press("slash", *"no such thing")
        await until(pilot, lambda: "No such run" in screen_text(app))


async def test_an_import_that_was_cut_off_is_shown_and_never_resumed(journal: Journal) -> None:
    run = new_run(journal, "import")
    journal.set_state(run.id, "running")
    assert journal.run(run.id).state == "crashed"
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: not isinstance(app.screen, Runs))
        assert not isinstance(app.screen, Ask)
        assert app.journal._follow == run.id


async def test_a_long_history_is_read_page_by_page_and_counted_only_where_it_is_seen(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    tallies = journal.tallies

    def watched(runs: Sequence[Run]) -> dict[str, Tally]:
        counted.append(len(runs))
        return tallies(runs)

    monkeypatch.setattr(journal, "tallies", watched)
    runs = [new_run(journal, "run") for _ in range(PAGE + 20)]
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: f"{PAGE + 20} runs" in screen_text(app))
        assert runs[0].id not in screen_text(app)
        for _ in range(2):
            await pilot.press("end")
            await pilot.pause(0.2)
        await until(pilot, lambda: len(app.screen.query_one(Listing)._keys) == PAGE + 20)
        await pilot.press("end")
        await until(pilot, lambda: runs[0].id in screen_text(app))
        assert counted
        assert max(counted) <= 24


async def test_what_another_process_writes_shows_without_a_key(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chimera.tui.screens import runs

    monkeypatch.setattr(runs, "LOOK_S", 0.1)
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: "No run yet" in screen_text(app))
        with Journal.open() as other:
            run = new_run(other, "run")
            await painted(app, pilot, run.id)
            await pilot.press("enter")
            await until(pilot, lambda: "run " + run.id in screen_text(app))
            other.set_state(run.id, "running")
            other.set_state(run.id, "failed", "the server went away")
        await painted(app, pilot, "the server went away")


async def test_the_export_tells_its_file_and_writes_over_none(journal: Journal) -> None:
    run = compared(journal)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        for number in (1, 2):
            await pilot.press("e")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("j")
            name = f"chimera-{run.id}{'' if number == 1 else '-2'}.json"
            await until(pilot, Path(name).exists)
            await until(pilot, lambda: isinstance(app.screen, Runs))
            assert len(json.loads(Path(name).read_text())["measurements"]) == 7
        await until(pilot, lambda: f"chimera-{run.id}-2.json" in notes(app))
        await pilot.press("e", "c")
        await until(pilot, Path(f"chimera-{run.id}.csv").exists)


def with_agents(journal: Journal) -> Run:
    """A finished run of two agents at once, whose figures have intervals."""
    trials = [Trial("c0", "baseline", Options(), notes=("1 agent",)), Trial("c1", "candidate", Options())]
    target, plan = Target("embedded"), {"saturation": True}
    run = journal.create_run("agents", target, Workload(agents=2), seed=1, trials=trials, plan=plan)
    for number in range(6):
        journal.begin_session(run.id, Session(number + 1, f"c{number % 2}", round=number // 2))
        told = [replace(request(40.0), completion_tokens=40 + number + agent, agent=agent) for agent in (0, 1)]
        journal.add_measurements(run.id, number + 1, told)
        journal.end_session(run.id, number + 1, "done")
    journal.set_state(run.id, "done")
    return run


async def test_what_each_agent_got_is_computed_by_another_process_and_not_beside_a_run(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_agents(journal)
    asked: list[tuple[str, ...]] = []

    def answer(*arguments: str) -> Said:
        asked.append(arguments)
        arms = [{**one, "ttft_p95_s": 0.2} for one in FACTS["arms"]]
        return Said(0, json.dumps({"agents": {**FACTS, "arms": arms}}), "")

    monkeypatch.setattr(commands, "ask_chimera", answer)
    app = QuietApp()
    async with app.run_test(size=(120, 60)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        app.post_message(Worked(replace(data.RUN, id="zz99", state="running"), None))
        await pilot.press("enter")
        await until(pilot, lambda: "computed when run zz99 has ended" in screen_text(app))
        app.paint()
        assert asked == []
        app.post_message(Worked(None, None))
        await painted(app, pilot, "fairness")
        assert asked == [("runs", "show", run.id, "--json")]
        assert "being computed" not in screen_text(app)
        app.paint()
        assert len(asked) == 1


def test_show_and_export_bring_neither_scipy_nor_numpy_into_the_process(journal: Journal, tmp_path: Path) -> None:
    run = with_agents(journal)
    code = f"""
import asyncio, sys
from pathlib import Path
from chimera.tui.app import ChimeraApp
from chimera.cli.ui import UiOptions
from chimera.tui import screens
from tests.widgets.screens import screen_text

async def main():
    app = ChimeraApp(UiOptions(embedded=True))
    async with app.run_test(size=(120, 60)) as pilot:
        async def wait(reached):
            for _ in range(600):
                await pilot.pause(0.05)
                if reached():
                    return
            raise SystemExit("not reached:\\n" + screen_text(app))
        await pilot.press("r")
        await wait(lambda: isinstance(app.screen, screens.Runs) and "{run.id}" in screen_text(app))
        await pilot.press("enter")
        await wait(lambda: app.state.figures)
        await pilot.press("e")
        await wait(lambda: isinstance(app.screen, screens.Ask))
        await pilot.press("j")
        await wait(Path("chimera-{run.id}.json").exists)
        await wait(lambda: not app.state.working)

asyncio.run(main())
print([name for name in ("numpy", "scipy", "optuna") if name in sys.modules])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert json.loads((tmp_path / f"chimera-{run.id}.json").read_text())["agents"]["arms"]


async def test_the_list_is_read_again_after_a_read_that_failed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chimera.tui.screens import runs

    monkeypatch.setattr(runs, "LOOK_S", 0.1)
    run = new_run(journal, "run")
    failing = True
    read = journal.runs

    def sometimes(**wanted: Any) -> list[Run]:
        if failing:
            raise RuntimeError("defect")
        return read(**wanted)

    monkeypatch.setattr(journal, "runs", sometimes)
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        app.journal.ready(journal)
        await pilot.press("r")
        await until(pilot, lambda: any(isinstance(one, Told) and "defect" in one.text for one in app.asked))
        failing = False
        await painted(app, pilot, run.id)


async def test_steps_with_an_open_page_are_read_one_at_a_time_and_the_last_one_is_shown(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chimera.tui.screens import runs

    every = [new_run(journal, "run") for _ in range(8)]
    free = threading.Event()
    at_once, most, read = 0, 0, []
    show = runs.show

    def slow(post: Any, opened: Journal, run_id: str) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        read.append(run_id)
        free.wait(5)
        show(post, opened, run_id)
        at_once -= 1

    monkeypatch.setattr(runs, "show", slow)
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: every[0].id in screen_text(app))
        await pilot.press("enter", *["down"] * 6)
        free.set()
        wanted = every[1].id
        await until(pilot, lambda: f"run {wanted}" in screen_text(app))
        assert most == 1
        assert read == [every[-1].id, wanted]


async def test_a_new_look_takes_nothing_from_a_page_more(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page was lost where a look was asked while it was read."""
    from chimera.tui.screens import runs

    every = [new_run(journal, "run") for _ in range(PAGE + 20)]
    monkeypatch.setattr(runs, "LOOK_S", 0.05)
    grow = runs.grow

    def slow(*arguments: Any) -> None:
        time.sleep(0.3)
        grow(*arguments)

    monkeypatch.setattr(runs, "grow", slow)
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(app, pilot, journal)
        await until(pilot, lambda: every[-1].id in screen_text(app))
        await pilot.press("end")
        for number in range(10):
            journal.rename(every[-1].id, f"name {number}")
            app.paint()
            await pilot.pause(0.05)
        await until(pilot, lambda: len(screen._runs) == PAGE + 20)


async def test_a_run_that_has_ended_is_shown_on_the_dashboard(journal: Journal) -> None:
    run = compared(journal)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: not isinstance(app.screen, Runs))
        assert app.journal._follow == run.id


async def test_a_stopped_run_goes_on_after_a_yes_and_not_beside_another(journal: Journal) -> None:
    run = new_run(journal, "run")
    journal.set_state(run.id, "stopped")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        app.post_message(RunChanged(update(first=True)))
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert "k7f2 goes on" in screen_text(app)
        assert "go on with it" not in screen_text(app)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, Runs))
        app.post_message(RunChanged(update("done")))
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert app.asked == []
        await pilot.press("y")
        await until(pilot, lambda: not isinstance(app.screen, Runs | Ask))
        assert len(app.asked) == 1  # the worker is started by the journal's thread


async def test_a_ui_that_may_only_read_shows_a_stopped_run_and_resumes_none(journal: Journal) -> None:
    run = new_run(journal, "run")
    journal.set_state(run.id, "stopped")
    app = QuietApp(UiOptions(embedded=True, read_only=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: not isinstance(app.screen, Runs | Ask))
        assert app.journal._follow == run.id
        assert app.asked == []


async def test_text_of_a_run_is_data(journal: Journal) -> None:
    evil = "\x1b[2J[bold]x[/] \u202eabc\r\n\x9b31m"
    run = new_run(journal, "run", name=evil, model=evil)
    journal.set_state(run.id, "failed", evil)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(app, pilot, journal)
        await until(pilot, lambda: "[bold]x[/]" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "ended" in screen_text(app))
        await pilot.press("slash")
        screen.query_one("#filter", Input).value = "[bold]x[/]"
        await until(pilot, lambda: "1 run with" in screen_text(app))
        assert not set(screen_text(app)) & {"\x1b", "\x9b", "\x07", "\u202e", "\r"}


def test_the_page_of_a_run_says_what_did_not_count_at_any_width(journal: Journal) -> None:
    told = facts_of(journal, journal.run(compared(journal).id), measurements=False)
    for width in (40, 76, 200):
        rows = [text_of(row) for row in run_page(told, width)]
        assert max(len(row) for row in rows) <= width
        assert "cache-hit" in " ".join(" ".join(rows).split())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_screen(
    size: tuple[int, int], snapshot: SnapshotAssertion, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    told = facts_of(journal, journal.run(compared(journal).id), measurements=False)
    told["run"] |= {"id": "k7f2", "started_at": "2025-11-28T14:00:00Z", "ended_at": "2025-11-28T14:08:20Z"}
    states: tuple[RunState, ...] = ("done", "done", "stopped", "failed", "crashed", "done")
    runs = tuple(
        replace(data.RUN, id=f"r{number}xy", state=state, seq=9 - number, created_at=data.WALL - 9000 * number,
                model=ModelInfo("a-model-with-a-long-name:27b-instruct-q4_K_M") if number == 3 else data.MODEL)
        for number, state in enumerate(states)
    )  # fmt: skip
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, Runs))
        screen = app.screen
        assert isinstance(screen, Runs)
        screen.post_message(Listed("", runs, 6, 1))
        screen.post_message(Counted({run.id: (12, number) for number, run in enumerate(runs)}))
        await pilot.press("enter")
        screen.post_message(Shown(runs[0], told))
        await pilot.pause()
        assert screen_text(app) == snapshot.use_extension(ScreenText)


def test_a_run_that_is_looked_at_stays_while_another_goes_on(journal: Journal) -> None:
    """And the followed one gives way to the next one that is worked on when it ends."""
    done, active = compared(journal), new_run(journal, "run")
    posted: list[Message] = []
    feed = JournalFeed(posted.append)
    feed.follow(done.id, stay=True)
    thread = threading.Thread(target=feed.run)
    thread.start()

    def seen(run: Run) -> bool:
        return any(isinstance(one, RunChanged) and one.update.run.id == run.id for one in posted)

    def wait(reached: object) -> None:
        deadline = time.monotonic() + 10
        while not reached() and time.monotonic() < deadline:  # type: ignore[operator]  # a function
            time.sleep(0.02)

    try:
        wait(lambda: seen(done))
        time.sleep(0.6)
        assert seen(done)
        assert not seen(active)
        feed.follow(done.id)
        feed.do(lambda journal: journal.rename(done.id, "again"))
        journal.rename(active.id, "x")
        wait(lambda: seen(active))
        assert seen(active)
    finally:
        feed.leave()
        thread.join(5)


def test_a_journal_that_cannot_be_opened_is_told_once_and_screens_read_nothing(no_home: None) -> None:
    posted: list[Message] = []
    feed = JournalFeed(posted.append)
    read: list[Journal] = []
    feed.read("runs", read.append)
    feed.run()
    time.sleep(0.1)
    assert [type(one) for one in posted] == [Told]
    assert read == []


def test_what_is_asked_of_a_journal_that_cannot_be_opened_is_refused_in_words_and_nobody_waits_for_it(
    no_home: None,
) -> None:
    posted: list[Message] = []
    feed = JournalFeed(posted.append)
    feed.do(lambda journal: None)
    assert feed.busy
    feed.run()
    assert not feed.busy
    feed.do(lambda journal: None)
    assert not feed.busy
    [first, second] = [one.text for one in posted if isinstance(one, Told)]
    assert "The journal" in first
    assert first == second


async def test_a_list_without_a_journal_does_not_look_as_if_it_were_being_read() -> None:
    app = QuietApp()
    app.journal.ready(None, "The journal is damaged.")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("r")
        await until(pilot, lambda: "The journal cannot be read" in screen_text(app))
        assert "reading the journal" not in screen_text(app)


async def test_a_list_that_a_filter_makes_shorter_grows_from_its_end_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor stood on the last row of the first page, and a key that cannot move it asked for no more."""
    from chimera.tui.screens import runs

    monkeypatch.setattr(runs, "PAGE", 30)
    for number in range(70):
        new_run(journal, "run", name=f"night {number}" if number % 10 else "day")
    app = QuietApp()
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(app, pilot, journal)
        listing = screen.query_one(Listing)
        await until(pilot, lambda: len(listing._keys) == 30)
        await pilot.press("end")
        await until(pilot, lambda: len(listing._keys) == 60)
        await pilot.press("end")
        await until(pilot, lambda: len(listing._keys) == 70)
        await pilot.press("end", "slash")
        screen.query_one("#filter", Input).value = "night"
        await pilot.press("enter")
        for _ in range(3):
            await until(pilot, lambda: not screen._reading and not screen._next)
            await pilot.press("end")
        await until(pilot, lambda: len(listing._keys) == 63)


async def test_a_page_that_is_read_again_and_is_the_same_paints_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compared(journal)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "4 valid, 1 void" in screen_text(app))
        await until(pilot, lambda: not screen._reading)
        painted: list[object] = []
        page = screen.query_one("#page", Page)
        monkeypatch.setattr(page, "refresh", lambda *regions, **_: painted.append(regions))
        assert screen._told is not None
        screen.post_message(screen._told)
        await pilot.pause()
        assert painted == []


async def test_an_export_from_a_folder_that_is_gone_says_so(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compared(journal)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(app, pilot, journal)
        await until(pilot, lambda: run.id in screen_text(app))
        (tmp_path / "gone").rmdir()
        await pilot.press("e")
        await until(pilot, lambda: "is gone" in notes(app))
        assert isinstance(app.screen, Runs)
