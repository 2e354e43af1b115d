"""The Tune screen: the form, the plan that a process of its own draws, the live table, and what its keys ask for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from chimera.cli.ui import UiOptions
from chimera.domain.options import Options
from chimera.domain.run import RunState, Statistic, Target, Trial
from chimera.domain.verdict import Verdict
from chimera.runner.follow import Compared, Update
from chimera.tui import commands
from chimera.tui.commands import Said
from chimera.tui.messages import RunChanged, ServersFound, Worked
from chimera.tui.screens import tune
from chimera.tui.screens.ask import Ask
from chimera.tui.screens.dashboard import Dashboard
from chimera.tui.screens.doctor import Doctor
from chimera.tui.screens.outputs import Outputs
from chimera.tui.screens.runs import Listed, Runs
from chimera.tui.screens.tune import Tune
from tests.widgets import data
from tests.widgets.screens import screen_text
from tests.widgets.test_arms import FACTS

from .quiet import QuietApp, notes, until, update
from .test_app import OLLAMA

PLAN: dict[str, Any] = {
    "seed": 77,
    "candidates": [
        {"candidate": "c0", "role": "baseline", "requested": {}, "merged": [], "notes": []},
        {
            "candidate": "c1", "role": "candidate", "requested": {"num_gpu": 60}, "merged": ["c2"],
            "notes": ["num_gpu 60 and 80 are one setting on a model of 34 layers"],
        },
    ],
    "merged": [{"candidate": "c2", "requested": {"num_gpu": 80}, "into": "c1"}],
    "ruled_out": [{"candidate": "c3", "reason": "at least 20,269 MiB are needed"}],
    "cohorts": 0,
    "rounds": {"preflight": 6, "screening": 0, "confirmation": 32},
    "estimate": {"sessions": 70, "requests": 280, "seconds": 900.0, "seconds_least": 300.0},
    "words": "Gains above 4.1% can be seen in 32 rounds at this noise.",
}  # fmt: skip


class Line:
    """Stands in for the command line: keeps what was asked and answers from a script."""

    def __init__(self, *answers: tuple[int, object, str]) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._answers = list(answers)

    def __call__(self, *arguments: str) -> Said:
        self.asked.append(arguments)
        code, document, err = self._answers.pop(0)
        return Said(code, json.dumps(document), err)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Line]:
    """Install a scripted command line."""

    def install(*answers: tuple[int, object, str]) -> Line:
        made = Line(*answers)
        monkeypatch.setattr(commands, "ask_chimera", made)
        return made

    return install


def comparison(state: RunState = "running", **plan: Any) -> Update:
    """A sweep as its journal would tell it."""
    trials = (
        Trial("c0", "baseline", Options()),
        Trial("c1", "candidate", Options(num_gpu=60), Options(num_gpu=35), ("c2",)),
        Trial("c4", "candidate", Options(num_gpu=20)),
        Trial("c5", "candidate", Options(num_gpu=30)),
    )
    verdicts = (
        Verdict("c1", "c0", "decode_tok_s", "better", 1.09, (1.05, 1.13), 0.975, 8),
        Verdict("c4", "c0", "decode_tok_s", "insufficient", reason="It ran out of memory."),
    )
    facts: dict[str, Any] = {
        "rules": {"band": 0.02, "objective": "decode_tok_s"},
        "standing": {
            "failed": {"c4": "out-of-memory"}, "unlaunched": {"c5": "c4"}, "dropped": {}, "noise": {"n": 6},
            "words": "Sessions vary by 1.0%: in 8 rounds gains above 4.0% can be seen.",
        },
        "ruled_out": {"c3": "never fits"},
        "asked": {"c3": {"num_gpu": 90}},
        **plan,
    }  # fmt: skip
    base = update(state, progress=replace(data.progress(), candidate="c1"), first=True)
    run = replace(base.run, kind="sweep", preset=None, plan=facts)
    figures = {"c0": Statistic(90.0, 0.01, 8), "c1": Statistic(98.1, 0.012, 8)}
    compared = Compared("decode_tok_s", verdicts, figures, {"c0": 8, "c1": 8}, {"c1": 1, "c4": 1})
    return replace(base, run=run, trials=trials, compared=compared)


async def shows(app: QuietApp, pilot: Pilot[None], news: Update) -> None:
    """The Tune screen has the table of a comparison."""
    app.post_message(RunChanged(news))
    await pilot.press("t")
    await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))


DONE = {
    "result": {
        "recommendation": {"candidate": "c1", "keep_default": False, "words": "c1 is better.", "requested": {}},
    }
}


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_plan_is_seen_before_it_starts_and_starts_with_its_own_seed(
    size: tuple[int, int], line: Callable[..., Line]
) -> None:
    asked = line((0, PLAN, ""), (0, {"run": {"id": "k7f2"}}, ""))
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        await pilot.press("s")
        assert asked.asked == [], "nothing is chosen yet"
        await pilot.press("down", "enter")
        await pilot.press(*"60,80,90")
        await pilot.press("enter", "s")
        await until(pilot, lambda: "p first" in screen_text(app))
        assert asked.asked == []
        await pilot.press("p")
        await until(pilot, lambda: "s starts it" in shown(app))
        assert asked.asked[0] == (
            "sweep", "--num-gpu", "60,80,90", "--objective", "rate", "--embedded", "--dry-run", "--json",
        )  # fmt: skip
        for wanted in ("the same: c2 num_gpu=80", "one setting on a model of 34 layers", "c3   not run", "70 sessions"):
            assert wanted in shown(app)
        assert "Gains above 4.1%" in shown(app)
        await pilot.press("s")
        await until(pilot, lambda: len(asked.asked) == 2)
        assert asked.asked[1][-4:] == ("--seed", "77", "--detach", "--json")
        await until(pilot, lambda: app.journal._follow == "k7f2")


def shown(app: QuietApp) -> str:
    """The whole text of the plan, what is scrolled away among it."""
    return str(app.screen.query_one("#plan").render())


ALIKE: dict[str, Any] = {
    **PLAN, "candidates": PLAN["candidates"][:1], "rounds": {"preflight": 0, "screening": 0, "confirmation": 0},
    "estimate": {"sessions": 0, "requests": 0, "seconds": None, "seconds_least": None},
    "words": "No session: every candidate has the baseline's effect: there is nothing to run.",
}  # fmt: skip


async def test_a_plan_with_nothing_to_compare_says_so_and_cannot_be_started(line: Callable[..., Line]) -> None:
    asked = line((0, ALIKE, ""))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "there is nothing to run" in shown(app))
        assert "s starts it" not in shown(app)
        assert "0 sessions" not in shown(app)
        await pilot.press("s")
        await until(pilot, lambda: "there is nothing to run" in notes(app))
        assert len(asked.asked) == 1


async def test_space_takes_a_parameter_with_values_that_fit_and_a_change_asks_for_a_new_plan(
    line: Callable[..., Line],
) -> None:
    asked = line((0, PLAN, ""), (2, None, "--num-gpu: what went wrong\n"))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "space", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        assert asked.asked[0][1:5] == ("--num-gpu", "auto", "--objective", "ttft")
        await pilot.press("down", "space", "s")
        await pilot.pause()
        assert len(asked.asked) == 1, "the plan on the screen is not of these parameters"
        await pilot.press("p")
        await until(pilot, lambda: "what went wrong" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Tune))


async def test_another_persons_server_is_not_reloaded_by_a_comparison_before_a_yes(line: Callable[..., Line]) -> None:
    asked = line((0, PLAN, ""), (0, {"run": {"id": "k7f2"}}, ""))
    app = QuietApp(UiOptions())
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(ServersFound((OLLAMA,), ""))
        await pilot.pause()
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        assert len(asked.asked) == 1
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: len(asked.asked) == 2)
        assert "--yes" in asked.asked[1]
        assert ("--server", OLLAMA.url) == asked.asked[1][5:7]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_the_table_shows_sessions_verdicts_and_what_did_not_fit(size: tuple[int, int]) -> None:
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(RunChanged(comparison()))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        app.paint()
        await pilot.pause()
        text = screen_text(app)
        for wanted in ("60→35", "98.1", "running", "failed", "won't fit", "baseline", "gains above 4.0%"):
            assert wanted in text, f"{wanted} is not on the screen at {size}"
        app.post_message(RunChanged(comparison("done", **DONE)))
        await pilot.pause()
        app.paint()
        await pilot.pause()
        text = screen_text(app)
        assert "better" in text
        assert "a applies it" in text


async def test_keys_pause_stop_and_apply_the_comparison(line: Callable[..., Line]) -> None:
    asked = line((0, {"words": "c1 is better.", "applied": {"made": "model fast"}}, ""))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison())
        await pilot.press("space")
        assert len(app.asked) == 1
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press("y")
        await until(pilot, lambda: len([one for one in app.asked if callable(one)]) == 2)
        await until(pilot, lambda: isinstance(app.screen, Tune))
        await pilot.press("a")
        await pilot.pause()
        assert asked.asked == [], "it goes on: nothing is best yet"
        app.post_message(RunChanged(comparison("done", **DONE)))
        await pilot.pause()
        await pilot.press("a")
        await pilot.press(*"fast")
        await pilot.press("enter")
        await until(pilot, lambda: bool(asked.asked))
        assert asked.asked == [("apply", "k7f2", "--as", "fast", "--json")]
        await pilot.press("n")
        await until(pilot, lambda: not app.screen.has_class("-live"))


def several(state: RunState, **plan: Any) -> Update:
    """A run with agents as its journal would tell it."""
    labels = ("1 agent", "2 agents, server as it is", "2 agents, 2 slots")
    trials = tuple(
        Trial(f"c{number}", "candidate" if number else "baseline", Options(), notes=(label,))
        for number, label in enumerate(labels)
    )
    base = comparison(state, **plan)
    verdicts = (Verdict("c2", "c0", "aggregate_tok_s", "better", 1.6, (1.5, 1.7), 0.975, 6),)
    figures = {"c0": Statistic(40.0, 0.01, 6), "c2": Statistic(64.0, 0.01, 6)}
    compared = Compared("aggregate_tok_s", verdicts, figures, {"c0": 6, "c2": 6}, {})
    return replace(base, run=replace(base.run, kind="agents"), trials=trials, compared=compared)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_a_run_with_agents_shows_its_arms_and_at_its_end_their_figures(
    line: Callable[..., Line], size: tuple[int, int]
) -> None:
    asked = line((0, {"agents": FACTS}, ""))
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(RunChanged(several("running")))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        app.paint()
        await pilot.pause()
        text = screen_text(app)
        for wanted in ("2 agents, 2 slots", "64.0", "better", "agents k7f2"):
            assert wanted in text, f"{wanted} is not on the screen at {size}"
        assert asked.asked == [], "no figures are computed beside a measurement"
        app.post_message(RunChanged(several("done", **DONE)))
        await until(pilot, lambda: app.screen.has_class("-arms"))
        await pilot.pause()
        text = screen_text(app)
        assert asked.asked == [("runs", "show", "k7f2", "--json")]
        for wanted in ("speed-up", "4 knee", "78.0 to 82.0", "The knee is at 4 agents", "guide's formula"):
            assert wanted in text, f"{wanted} is not on the screen at {size}"


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_what_held_a_session_back_and_what_nothing_beats_are_on_the_screen(size: tuple[int, int]) -> None:
    front = [
        {"candidate": "c0", "values": {"decode_tok_s": 90.0, "vram_bytes": 2.0 * 2**30}},
        {"candidate": "c1", "values": {"decode_tok_s": 98.1, "vram_bytes": 3.0 * 2**30}},
    ]
    done = comparison("done", rules={"band": 0.02, "objective": "energy_j_per_token"},
                      result={**DONE["result"], "pareto": front})  # fmt: skip
    gpus = ({"name": "Card", "index": 0, "power_min_w": 100.0, "power_max_w": 300.0, "power_default_w": 300.0},)
    assert done.compared is not None
    compared = replace(done.compared, metric="energy_j_per_token", blame={"c1": "98.1 tok/s; power cap 12%"})
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        app.post_message(RunChanged(replace(done, run=replace(done.run, gpus=gpus), compared=compared)))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))
        app.paint()
        await pilot.pause()
        assert "power cap 12%" not in screen_text(app), "the cursor is on the baseline, of which nothing is known"
        await pilot.press("down")
        app.paint()
        await pilot.pause()
        said = str(app.screen.query_one("#about").render())
        text = " ".join(screen_text(app).split())
        assert "c1: 98.1 tok/s; power cap 12%" in text
        assert "c0 90.0 tok/s, VRAM 2.00 GiB; c1 98.1 tok/s, VRAM 3.00 GiB" in said
        assert "not beaten on every aim" in text
        assert "nvidia-smi -i 0 -pl 270" in said


async def test_a_candidate_that_turned_out_to_be_another_one_says_so() -> None:
    update_ = comparison("done", standing={"same": {"c5": "c1"}})
    assert update_.compared is not None
    rows = {view.trial.candidate: view for view in tune.views(update_, update_.compared)}
    assert (rows["c5"].state, rows["c5"].note) == ("same", "runs what c1 runs")
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(update_))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))
        app.paint()
        await pilot.pause()
        assert "runs what c1 runs" in screen_text(app)


ANSWERS = {
    "run": "k7f2",
    "same_text": False,
    "words": "Quality is not scored: read and judge.",
    "outputs": [
        {"candidate": "c0", "requested": {}, "text": "Light is scattered.\nBlue most.", "error": None},
        {"candidate": "c4", "requested": {"num_gpu": 20}, "text": "[bold]Because\x1b[31m.", "error": None},
    ],
}


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_two_answers_are_read_side_by_side(size: tuple[int, int], line: Callable[..., Line]) -> None:
    asked = line((0, ANSWERS, ""), (2, None, "run k7f2 recommends its baseline: name another.\n"))
    app = QuietApp()
    async with app.run_test(size=size) as pilot:
        await shows(app, pilot, comparison())
        await pilot.press("o")
        await pilot.pause()
        assert not app.screen.has_class("-typing"), "it goes on: its server is not free"
        app.post_message(RunChanged(comparison("done", **DONE)))
        await pilot.pause()
        footer = screen_text(app).splitlines()[-1]
        assert "o Read" in footer
        assert "p Plan" not in footer
        assert size[0] == 80 or "q Leave" in footer
        await pilot.press("down", "down", "o", *"why", "enter")
        await until(pilot, lambda: isinstance(app.screen, Outputs))
        assert asked.asked == [("outputs", "k7f2", "--candidate", "c4", "--prompt=why", "--json")]
        await pilot.pause()
        text = screen_text(app)
        for wanted in ("c0 server defaults", "c4 num_gpu=20", "Light is scattered.", "[bold]Because.", "not scored"):
            assert wanted in text, f"{wanted} is not on the screen at {size}"
        beside = any("Light is scattered." in row and "Because" in row for row in text.splitlines())
        assert beside == (size[0] >= 100)
        await pilot.press("escape", "up", "up", "o", "enter")
        await until(pilot, lambda: len(asked.asked) == 2)
        assert asked.asked[1] == ("outputs", "k7f2", "--json"), "on the baseline the recommendation is read"
        await until(pilot, lambda: isinstance(app.screen, Tune))


async def test_answers_are_shown_also_where_the_server_could_not_be_put_back(line: Callable[..., Line]) -> None:
    line((3, ANSWERS, "the settings of http://127.0.0.1:9 could not be put back: nobody answers.\n"))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison("done", **DONE))
        await pilot.press("o", "enter")
        await until(pilot, lambda: isinstance(app.screen, Outputs))
        assert "Light is scattered." in screen_text(app)
        assert "could not be put back" in notes(app)


async def reads(app: QuietApp, pilot: Pilot[None], *keys: str) -> None:
    """A finished comparison is on the Tune screen, and two of its settings answer."""
    await shows(app, pilot, comparison("done", **DONE))
    await pilot.press(*keys)


@pytest.mark.parametrize(
    ("keys", "there"),
    [
        (("x",), lambda app: isinstance(app.screen, Ask)),
        (("n", "down", "enter", *"60"), lambda app: app.screen.has_class("-typing")),
        (("escape",), lambda app: isinstance(app.screen, Dashboard)),
        (("r",), lambda app: isinstance(app.screen, Runs)),
        (("n",), lambda app: isinstance(app.screen, Tune) and not app.screen.has_class("-live")),
    ],
    ids=["question", "typing", "dashboard", "runs", "form"],
)
async def test_answers_cover_nothing_and_wait_for_their_key(
    monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], there: Callable[[QuietApp], bool]
) -> None:
    held = Held((0, ANSWERS, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    log: list[str] = []
    monkeypatch.setattr(app, "log_line", lambda text, level: log.append(text))
    async with app.run_test(size=(120, 40)) as pilot:
        await reads(app, pilot, "down", "down", "o", "enter")
        await until(pilot, lambda: held.asked)
        if keys == ("x",):
            app.post_message(Worked(replace(data.RUN, id="zz99", state="running"), None))
            await pilot.pause()
        await pilot.press(*keys)
        await until(pilot, lambda: there(app))
        if "enter" in keys:
            app.follow("k7f2")  # also where their run is what is looked at by then
        held.free.set()
        await until(pilot, lambda: not app.state.working)
        await until(pilot, lambda: any("o on the Tune screen" in line for line in log))
        assert there(app), "what one is at stays on the screen"
        assert "o on the Tune screen" in notes(app) or isinstance(app.screen, Dashboard)
        if keys == ("x",):
            await pilot.press("n")
        elif "enter" in keys:
            assert app.screen.query_one("#values", Input).value == "60"
            await pilot.press("enter")
        elif keys != ("n",):
            await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_panels)
        await until(pilot, lambda: "o Read" in screen_text(app).splitlines()[-1])
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Outputs))
        await until(pilot, lambda: "Light is scattered." in screen_text(app))


async def test_answers_that_were_closed_can_be_read_again_and_another_prompt_be_asked(
    line: Callable[..., Line],
) -> None:
    again = {**ANSWERS, "words": "The second time."}
    asked = line((0, ANSWERS, ""), (0, again, ""))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await reads(app, pilot, "down", "down", "o", "enter")
        for _ in range(2):
            await until(pilot, lambda: isinstance(app.screen, Outputs) and "not scored" in screen_text(app))
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, Tune))
            await pilot.press("o")
        assert len(asked.asked) == 1
        await until(pilot, lambda: isinstance(app.screen, Outputs))
        await pilot.press("n")
        await until(pilot, lambda: app.screen.has_class("-typing"))
        await pilot.press(*"why", "enter")
        await until(pilot, lambda: isinstance(app.screen, Outputs) and "second time" in screen_text(app))
        assert asked.asked[1] == ("outputs", "k7f2", "--candidate", "c4", "--prompt=why", "--json")


@pytest.mark.parametrize(("key", "other"), [("a", "compared"), ("o", "compared"), ("a", "run")])
async def test_a_line_that_is_typed_for_a_run_keeps_the_focus_and_acts_on_no_other(
    line: Callable[..., Line], key: str, other: str
) -> None:
    asked = line()
    app = QuietApp()
    new = comparison("done", **DONE) if other == "compared" else update("done", first=True)
    async with app.run_test(size=(120, 40)) as pilot:
        await reads(app, pilot, key, *"fa")
        app.post_message(RunChanged(replace(new, run=replace(new.run, id="zz99"))))
        await until(pilot, lambda: app.state.update is not None and app.state.update.run.id == "zz99")
        app.paint()
        await pilot.press(*"st")
        assert app.screen.query_one("#values", Input).value == "fast"
        await pilot.press("enter")
        await until(pilot, lambda: "Run k7f2 is not the one on the screen any more" in notes(app))
        await pilot.pause()
        assert asked.asked == []
        assert not app.screen.has_class("-typing")


async def test_values_that_are_typed_while_a_run_is_picked_up_keep_the_focus() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "enter", *"60,")
        app.post_message(RunChanged(comparison()))
        await until(pilot, lambda: app.screen.has_class("-live"))
        await pilot.press(*"80", "enter")
        await until(pilot, lambda: app.state.draft.values == {"num_gpu": "60,80"})
        assert app.focused is app.screen.query_one("#table")


async def test_a_plan_goes_with_the_server_that_it_was_asked_of(line: Callable[..., Line]) -> None:
    asked = line((0, PLAN, ""), (3, None, "Nothing answers there."))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        app.choose(Target("ollama", url=OLLAMA.url))
        app.paint()
        assert shown(app) == tune.UNPLANNED
        assert app.state.draft.drawn is None
        await pilot.press("s")
        await until(pilot, lambda: "p first" in shown(app))
        await pilot.press("p")
        await until(pilot, lambda: "Nothing answers there" in shown(app))
        app.choose(Target("ollama", url=OLLAMA.url, model="another"))
        app.paint()
        assert shown(app) == tune.UNPLANNED, "nor does what went wrong there concern this one"
        assert len(asked.asked) == 2


async def test_why_a_comparison_did_not_start_is_not_told_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        monkeypatch.setattr(commands, "ask_chimera", Line((0, PLAN, "")))
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        held = Held((3, None, "It would not start there."))
        monkeypatch.setattr(commands, "ask_chimera", held)
        await pilot.press("s")
        await until(pilot, lambda: held.asked)
        app.choose(Target("ollama", url=OLLAMA.url))
        held.free.set()
        await until(pilot, lambda: "would not start" in notes(app))
        assert shown(app) == tune.UNPLANNED


async def test_a_second_plan_while_one_is_drawn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held((0, PLAN, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p", "p")
        await until(pilot, lambda: "The plan is still at work" in notes(app))
        held.free.set()
        await until(pilot, lambda: "s starts it" in shown(app))
        assert len(held.asked) == 1


async def test_a_run_that_was_turned_away_from_is_shown_again_where_it_is_followed() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison("stopped"))
        for keys in (("s",), ("y",)):  # shown from the list of runs, and resumed from there
            await pilot.press("n")
            await until(pilot, lambda: not app.screen.has_class("-live"))
            await pilot.press("r")
            await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.has_panels)
            assert app.state.update is not None
            app.screen.post_message(Listed("", (app.state.update.run,), 1, 1))
            await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.chosen is not None)
            await pilot.press("f")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press(*keys)
            await until(pilot, lambda: isinstance(app.screen, Dashboard))
            await pilot.press("t")
            await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-live"))
        await pilot.press("n")
        app.post_message(RunChanged(update(run_id="zz99", first=True)))
        app.post_message(RunChanged(comparison()))
        await until(pilot, lambda: app.screen.has_class("-live"))


async def test_a_run_that_was_turned_away_from_does_not_come_back_when_it_is_read_anew() -> None:
    """As after a look that failed: who plans another comparison would find the keys of a table."""
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison())
        await pilot.press("n")
        await until(pilot, lambda: not app.screen.has_class("-live"))
        app.post_message(RunChanged(comparison()))  # `first`, like all of these
        await pilot.pause(app.paint_s)
        assert not app.screen.has_class("-live")


async def test_read_only_plans_and_starts_nothing(line: Callable[..., Line]) -> None:
    asked = line((0, PLAN, ""))
    app = QuietApp(UiOptions(embedded=True, read_only=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        await pilot.press("s")
        await pilot.pause()
        assert len(asked.asked) == 1


async def test_a_form_and_its_plan_are_there_when_one_comes_back(line: Callable[..., Line]) -> None:
    asked = line((0, PLAN, ""), (0, {"run": {"id": "k7f2"}}, ""))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "space", "down", "enter", *"60,80", "enter", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        text = screen_text(app)
        for wanted in ("60,80", "ttft", "70 sessions"):
            assert wanted in text
        await pilot.press("s")
        await until(pilot, lambda: app.journal._follow == "k7f2")
        assert len(asked.asked) == 2, "it was planned already"


async def test_a_plan_of_what_is_no_longer_wanted_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held((0, PLAN, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: held.asked)
        assert "looking at the server" in shown(app)
        app.choose(Target("ollama", url=OLLAMA.url))
        held.free.set()
        await until(pilot, lambda: "p shows the plan of this" in shown(app))
        assert app.state.draft.drawn is None


async def test_a_run_that_was_turned_away_from_stays_so_when_one_comes_back() -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison())
        await pilot.press("n", "escape", "t")
        await until(pilot, lambda: isinstance(app.screen, Tune))
        assert not app.screen.has_class("-live")


class Held(Line):
    """Answers when it is told to."""

    def __init__(self, *answers: tuple[int, object, str]) -> None:
        super().__init__(*answers)
        self.free = threading.Event()

    def __call__(self, *arguments: str) -> Said:
        said = super().__call__(*arguments)
        self.free.wait(60)
        return said


async def test_what_is_applied_goes_on_when_the_screen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held((0, {"words": "c1 is better.", "applied": {"made": "model fast"}}, ""))
    monkeypatch.setattr(commands, "ask_chimera", held)
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(app, pilot, comparison("done", **DONE))
        await pilot.press("a", *"fast", "enter")
        await until(pilot, lambda: held.asked)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        held.free.set()
        await until(pilot, lambda: "Applied: model fast" in notes(app))
        assert "No proof was run" in notes(app)


async def test_a_start_in_work_is_followed_from_another_screen_and_named_to_who_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        monkeypatch.setattr(commands, "ask_chimera", Line((0, PLAN, "")))
        await pilot.press("t", "down", "space", "p")
        await until(pilot, lambda: "s starts it" in shown(app))
        held = Held((0, {"run": {"id": "k7f2"}}, ""))
        monkeypatch.setattr(commands, "ask_chimera", held)
        await pilot.press("s", "s")
        await until(pilot, lambda: held.asked)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Doctor))
        monkeypatch.setattr(app, "exit", lambda: None)
        await app.action_quit()
        assert app.farewell == "A comparison is being started."
        held.free.set()
        await until(pilot, lambda: app.journal._follow == "k7f2")
        assert len(held.asked) == 1, "the second key started nothing"


def test_a_command_goes_on_when_the_terminal_ends() -> None:
    code = "import os; print(os.getsid(0) == os.getpid())"
    done: list[list[str]] = []
    run = subprocess.run

    def spy(command: list[str], **options: Any) -> object:
        done.append(command)
        return run([sys.executable, "-c", code], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", spy)
        said = commands.ask_chimera("apply", "k7f2")
    assert said.out.strip() == "True"
    assert done[0][1:] == ["-m", "chimera", "apply", "k7f2"]


async def test_figures_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(line: Callable[..., Line]) -> None:
    asked = line((0, {"agents": FACTS}, ""), (0, {"agents": FACTS}, ""))
    app = QuietApp()
    async with app.run_test(size=(120, 40)) as pilot:
        app.post_message(RunChanged(several("stopped")))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, Tune) and app.screen.has_class("-arms"))
        app.post_message(RunChanged(several("running")))
        await pilot.pause()
        app.paint()
        assert not app.screen.has_class("-arms")
        app.post_message(RunChanged(several("done", **DONE)))
        await until(pilot, lambda: app.screen.has_class("-arms"))
        assert len(asked.asked) == 2


def test_a_proof_that_does_not_show_the_gain_again_says_so() -> None:
    row = {"metric": "decode_tok_s", "verdict": "better", "effect": 1.09}
    assert tune.proved({"proof": {"run": "p", "state": "done", "verdicts": [row]}}) == (
        "Proof p: decode_tok_s better +9.0%.", True,
    )  # fmt: skip
    words, held = tune.proved({"proof": {"run": "p", "state": "done", "verdicts": [{**row, "verdict": "undecided"}]}})
    assert (words, held) == ("Proof p: decode_tok_s undecided +9.0%. It does not show the gain again.", False)
    assert tune.proved({"proof": {"run": "p", "state": "crashed", "verdicts": []}})[0].startswith("Proof p (crashed)")
    assert tune.proved({"proof": None}) == ("No proof was run.", False)


def test_every_kind_of_server_is_named_as_the_command_line_takes_it() -> None:
    assert tune.server_flags(Target("embedded")) == ["--embedded"]
    own = Target("llama_server", command=("llama-server", "-m", "a b.gguf"))
    assert tune.server_flags(own) == ["--start", "llama-server -m 'a b.gguf'"]
    assert tune.server_flags(Target("ollama", url="http://x:1", model="m")) == [
        "--server",
        "http://x:1",
        "--model",
        "m",
    ]


def test_the_screen_needs_no_numpy_scipy_or_optuna() -> None:
    code = (
        "import sys, chimera.tui.screens.tune, chimera.runner.follow\n"
        "print([name for name in ('numpy', 'scipy', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
