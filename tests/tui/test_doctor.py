"""The Doctor screen: silent when healthy, worst first, from a finding to its evidence and to a run that cures it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from textual.app import App
from textual.binding import BindingType
from textual.message import Message

from chimera.cli.ui import UiOptions
from chimera.diagnosis.evidence import EngineStart, EvidenceSet
from chimera.domain.finding import Cause, Evidence, Finding, Remedy
from chimera.domain.options import Options
from chimera.domain.run import RunState, Target, Trial
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.domain.workload import Workload
from chimera.runner.follow import Update
from chimera.store.journal import Journal
from chimera.telemetry import serverlog
from chimera.telemetry.loaded import Loaded
from chimera.tui import commands, feeds
from chimera.tui.commands import Said
from chimera.tui.messages import RunChanged, SnapshotTaken, Told
from chimera.tui.screens import doctor
from chimera.tui.screens.ask import Answer, Ask
from chimera.tui.screens.doctor import Doctor, Examined
from tests.store.samples import TARGET, new_run, whole_session
from tests.widgets.screens import screen_text

from .quiet import QuietApp, notes, snapshot, until, update

RATE = Evidence(
    "decode rate", 40.0, threshold=85.0, window_s=60.0, unit="tok/s", via="own timings",
    series=tuple((float(second), 40.0 + second % 3) for second in range(60)),
)  # fmt: skip
OFFLOAD = Finding(
    "cpu-offload", "warn", "A part of the model [lies] on the CPU", (RATE,), cause="cpu-offload/layers-asked",
    causes=(Cause("cpu-offload/layers-asked", "fewer layers were asked for", speaks_for=(RATE,), share=0.9),),
    remedies=(Remedy("All layers on the GPU.", {"num_gpu": 35}), Remedy("A smaller model.")),
)  # fmt: skip
NOISE = Finding("measurement-noise", "notice", "Rates scatter", (Evidence("scatter", 0.08, threshold=0.05),))


def judged(*findings: Finding, state: RunState = "done") -> Update:
    return replace(update(state, first=True), findings=findings)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Callable[[], None]]]:
    """Threads that would have been started, by name."""
    kept: list[tuple[str, Callable[[], None]]] = []
    monkeypatch.setattr(feeds, "begin", lambda name, post, work: kept.append((name, work)))
    return kept


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_findings_are_shown_worst_first_and_open_to_their_evidence(
    size: tuple[int, int], begun: list[object]
) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(RunChanged(judged(NOISE, OFFLOAD)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        text = screen_text(app)
        assert text.index("A part of the model [lies]") < text.index("Rates scatter")
        await pilot.press("enter")
        await until(pilot, lambda: "fewer layers were asked for" in screen_text(app) or size[1] < 30)
        await until(pilot, lambda: "decode rate" in screen_text(app))
        assert any("\u2801" <= char <= "\u28ff" for char in screen_text(app)), "the curve behind the figure is drawn"
        await pilot.press("escape")
        await until(pilot, lambda: "Rates scatter" in screen_text(app))
        assert isinstance(app.screen, Doctor)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Doctor))


async def test_a_healthy_run_is_silent(begun: list[object]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(state="running")))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        assert "Findings" not in screen_text(app), "the dashboard has no panel for nothing"
        await pilot.press("d")
        await until(pilot, lambda: "nothing was found" in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: "no remedy to try" in notes(app))


async def test_a_finding_shows_on_the_dashboard_too(begun: list[object]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD, state="running")))
        await pilot.pause()
        app.paint()
        await until(pilot, lambda: "A part of the model" in screen_text(app))


async def test_without_a_run_this_moment_is_judged(begun: list[tuple[str, Callable[[], None]]]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        await pilot.pause()
        await pilot.press("d")
        await until(pilot, lambda: [name for name, _ in begun] == ["examination"])
        assert "not checked yet" in screen_text(app)
        await asyncio.to_thread(begun[0][1])
        await until(pilot, lambda: "this moment: " in screen_text(app) and "not checked" not in screen_text(app))


async def test_a_remedy_is_tried_after_one_question(begun: list[tuple[str, Callable[[], None]]]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD, NOISE)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert "num_gpu=35" in screen_text(app)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        assert begun == []
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: [name for name, _ in begun] == ["remedy"])


async def test_the_run_that_tries_a_remedy_is_followed_although_the_screen_has_gone(
    begun: list[tuple[str, Callable[[], None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = QuietApp()
    monkeypatch.setattr(commands, "ask_chimera", lambda *arguments: Said(0, '{"run": {"id": "zhes"}}', ""))
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: [name for name, _ in begun] == ["remedy"])
        await until(pilot, lambda: not isinstance(app.screen, Doctor | Ask))
        thread = threading.Thread(target=begun[0][1])
        thread.start()
        await asyncio.to_thread(thread.join)
        await until(pilot, lambda: app.journal._follow == "zhes")


async def test_the_key_of_an_answer_means_nothing_below_the_question() -> None:
    """A preset ran beside the remedy, since both were on 1."""

    class Asking(App[None]):
        BINDINGS: ClassVar[list[BindingType]] = [("1", "preset", "Preset 1")]
        presets = 0

        def action_preset(self) -> None:
            self.presets += 1

    app = Asking()
    answers: list[str | None] = []
    async with app.run_test() as pilot:
        await pilot.press("1")
        assert app.presets == 1
        app.push_screen(Ask("Which?", (Answer("1", "one", "the first"),)), answers.append)
        await pilot.pause()
        await pilot.press("1")
        await until(pilot, lambda: answers == ["one"])
        await pilot.pause()
    assert app.presets == 1


async def test_where_no_run_is_followed_the_last_one_is_told_of_and_its_remedy_tried(
    begun: list[tuple[str, Callable[[], None]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    target = Target("ollama", "http://127.0.0.1:11434")
    with Journal.open() as journal:
        trial = Trial("c0", "candidate", requested=Options())
        run = journal.create_run("run", target, Workload(), seed=1, trials=[trial])
        journal.set_findings(run.id, [OFFLOAD])
        journal.set_state(run.id, "done")
    assert doctor.last_of(Target("embedded")) == (None, ())
    last, found = doctor.last_of(replace(target, url="http://localhost:11434/"))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        app.screen.post_message(Examined((), last, found))
        await until(pilot, lambda: f"this moment and run {run.id}, run, done: 1 finding" in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("1")
        await until(pilot, lambda: "remedy" in [name for name, _ in begun])


async def test_nothing_is_tried_where_there_is_no_setting_or_the_run_goes_on(begun: list[object]) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(NOISE)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("f")
        await pilot.pause()
        assert isinstance(app.screen, Doctor)
        app.post_message(RunChanged(judged(OFFLOAD, state="running")))
        await pilot.pause()
        app.paint()
        await pilot.press("f")
        await pilot.pause()
        assert isinstance(app.screen, Doctor)
        assert begun == []


async def test_a_ui_that_may_only_read_tries_nothing(begun: list[object]) -> None:
    app = QuietApp(UiOptions(embedded=True, read_only=True))
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        for key in ("f", "h"):
            await pilot.press(key)
            await pilot.pause()
            assert isinstance(app.screen, Doctor)
        assert begun == []


def test_the_examination_of_a_moment_is_made_of_its_readings() -> None:
    posted: list[Message] = []
    doctor.examine(posted.append, (snapshot(), snapshot()), Loaded(), 0.0)
    [message] = posted
    assert isinstance(message, Examined)


def test_what_the_server_could_load_and_earlier_runs_are_asked_once_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHIMERA_DB", raising=False)
    asked: list[Target] = []

    async def installed_on(target: Target) -> tuple[ModelInfo, ...]:
        asked.append(target)
        return (ModelInfo("small:1b"),)

    monkeypatch.setattr("chimera.runner.doctor.installed_on", installed_on)
    loaded, target = Loaded(ServerInfo(TARGET.kind, TARGET.url or ""), ModelInfo("gemma3:4b")), TARGET
    known = doctor.Known()
    known.ask(target, loaded)
    assert known.installed == (ModelInfo("small:1b"),)
    assert not known.history
    with Journal.open() as journal:
        run = new_run(journal, "run", model="gemma3:4b")
        whole_session(journal, run, 1, "c0", [90.0, 91.0, 92.0, 90.5])
        journal.set_state(run.id, "done")
    known.ask(target, loaded)
    assert [one.run for one in known.history] == [run.id]
    assert asked == [target], "once a minute"
    known.ask(replace(target, url="http://127.0.0.1:11435"), loaded)
    assert len(asked) == 2


def test_installed_models_earlier_runs_and_engine_starts_are_evidence_of_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[EvidenceSet] = []

    def diagnose(evidence: EvidenceSet) -> list[Finding]:
        seen.append(evidence)
        return []

    monkeypatch.setattr("chimera.diagnosis.rules.diagnose", diagnose)
    known = doctor.Known()
    known.installed = (ModelInfo("small:1b"),)
    starts = (EngineStart(1.0, 7, {"-c": "4096"}),)
    posted: list[Message] = []
    doctor.examine(posted.append, (snapshot(),), Loaded(), 0.0, known=known, starts=starts)
    assert seen[0].installed == known.installed
    assert seen[0].engine_starts == starts


async def test_engines_that_are_started_for_others_are_kept_for_the_doctor() -> None:
    app = QuietApp()
    start = EngineStart(1.0, 7, {"-c": "4096"})
    async with app.run_test() as pilot:
        app.post_message(SnapshotTaken(snapshot(), starts=(start,)))
        await until(pilot, lambda: list(app.state.starts) == [start])
        app.post_message(RunChanged(update(first=True)))
        app.post_message(SnapshotTaken(snapshot(), starts=(start,)))
        await pilot.pause()
        assert len(app.state.starts) == 1, "that is an engine of our own run"
        app.choose(Target("ollama", "http://127.0.0.1:11434"))
        assert not app.state.starts


async def test_engines_that_a_command_of_ours_makes_the_server_start_are_not_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(commands, "ask_chimera", lambda *arguments: Said(0, str(answers.wait(10)), ""))
    app = QuietApp()
    start = EngineStart(1.0, 7, {"-c": "4096"})
    async with app.run_test() as pilot:
        assert app.command("answers", "outputs", then=lambda said: None, goes_on="Two settings answer a prompt")
        app.post_message(SnapshotTaken(snapshot(), starts=(start,)))
        await pilot.pause()
        assert not app.state.starts
        answers.set()
        await until(pilot, lambda: not app.state.working)
        app.post_message(SnapshotTaken(snapshot(), starts=(start,)))
        await until(pilot, lambda: list(app.state.starts) == [start])


async def test_without_a_journal_this_moment_is_examined_all_the_same_and_what_is_missing_is_said_once(
    begun: list[tuple[str, Callable[[], None]]], no_home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOOK_S", 0.0)
    said = "this moment (without earlier runs: the journal cannot be read): "
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        await pilot.pause()
        await pilot.press("d")
        await until(pilot, lambda: begun)
        await asyncio.to_thread(begun[0][1])
        await until(pilot, lambda: said in screen_text(app))
        await pilot.pause()
        app.paint()
        await until(pilot, lambda: len(begun) == 2)
        await asyncio.to_thread(begun[1][1])
        await pilot.pause()
        assert said in screen_text(app)
        assert "not checked" not in screen_text(app)
        assert notes(app).count("The journal") == 1


@pytest.mark.parametrize("key", ["f", "h"])
async def test_a_defect_behind_a_key_of_a_screen_is_told(
    key: str, begun: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a screen begins tells that screen of its end, and nobody else."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("something is wrong")

    monkeypatch.setattr(doctor, "Ask", fails)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press(key)
        await until(pilot, lambda: "ended by a defect: RuntimeError('something is wrong')" in notes(app))


async def test_a_bundle_in_a_folder_that_is_gone_is_refused_in_words(
    begun: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(judged(OFFLOAD)))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        (tmp_path / "gone").rmdir()
        await pilot.press("b")
        await until(pilot, lambda: "is gone" in notes(app))
        assert begun == []


async def test_a_look_that_fails_is_not_the_last_one(
    begun: list[tuple[str, Callable[[], None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(doctor, "examine", fails)
    monkeypatch.setattr(doctor.Known, "ask", lambda *_: None)
    monkeypatch.setattr(doctor, "LOOK_S", 0.0)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(SnapshotTaken(snapshot()))
        await pilot.pause()
        await pilot.press("d")
        await until(pilot, lambda: len(begun) == 1)
        with pytest.raises(RuntimeError, match="defect"):
            begun[0][1]()
        await pilot.pause()
        app.paint()
        await until(pilot, lambda: len(begun) == 2)


def test_the_servers_log_speaks_on_the_screen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverlog, "ollama_log", lambda since: ['msg="invalid option provided" option=num_ctxx'])
    loaded = Loaded(ServerInfo("ollama", "http://127.0.0.1:11434"))
    posted: list[Message] = []
    doctor.examine(posted.append, (snapshot(),), loaded, 0.0, log=serverlog.ServiceLog(600.0))
    [message] = posted
    assert isinstance(message, Examined)
    assert [one.cause for one in message.findings] == ["clamped-settings/ignored-option"]


def test_what_is_found_at_two_moments_keeps_the_time_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chimera.diagnosis.rules.diagnose", lambda evidence: [replace(NOISE, since=None)])
    posted: list[Examined] = []
    for before in ((), (replace(NOISE, since=5.0),)):
        doctor.examine(posted.append, (snapshot(),), Loaded(), 0.0, None, before)  # type: ignore[arg-type]  # only those
    assert [one.findings[0].since == 5.0 for one in posted] == [False, True]
    assert posted[0].findings[0].since is not None


def test_the_bundle_key_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    posted: list[Message] = []
    file = tmp_path / "evidence.md"
    doctor.write(posted.append, file, None, (snapshot(),), Loaded(), 0.0)
    assert [type(one) for one in posted] == [Told]
    assert file.read_text(encoding="utf-8").startswith("# Evidence from Chimera")
    assert json.loads(file.with_name("evidence.md.json").read_text(encoding="utf-8"))["kind"] == "chimera-evidence"
    doctor.write(posted.append, tmp_path / "no" / "such" / "place.md", None, (snapshot(),), Loaded(), 0.0)
    assert isinstance(posted[-1], Told)
    assert posted[-1].level == "error"


async def test_a_command_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    said = commands.ask_chimera("doctor", "--apply", "1", "--detach", "--json")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        assert app.begun(said) is None
        await until(pilot, lambda: "There is no run" in notes(app))
    assert app.journal._follow is None


def test_text_from_servers_is_no_markdown_on_the_page() -> None:
    nasty = replace(OFFLOAD, title="[click](http://x) **now** `rm`")
    assert "[click](http" not in doctor.page(nasty)
    assert "\\[click\\]" in doctor.page(nasty)
    assert "## What it means" in doctor.page(nasty)
