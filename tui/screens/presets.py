"""Presets: what each asks, what of it is effective on the model in use, and what became of its author's promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.widgets import Static

from chimera.domain.options import Options
from chimera.domain.preset import Preset
from chimera.domain.run import ENDED, Target
from chimera.domain.text import plain
from chimera.errors import ChimeraError
from chimera.presets.loader import all_presets, user_folder
from chimera.widgets import format
from chimera.widgets.keys import KeyBar
from chimera.widgets.listing import Listing, Page
from chimera.widgets.presets import preset_line, preset_page
from chimera.widgets.rows import Line, Row

from .. import feeds
from .ask import Answer, Ask
from .base import AppScreen
from .tune import flag, nothing_in, plan_text, server_flags

if TYPE_CHECKING:
    from chimera.runner.honesty import PresetRow

    from ..app import ChimeraApp
    from ..commands import Said
    from ..state import LiveState

PLAN, START = "plan of a preset", "start of a preset's comparison"
WAITS = {PLAN: "drawing the plan …", START: "starting …"}
"""Commands of this screen, with what it says while they last."""


LOOKING = "looking at the server …"


@dataclass
class Judged(Message):
    """What is true of the presets on a server; why nothing is known where it could not be asked."""

    target: Target
    where: str
    rows: Mapping[str, PresetRow] = field(default_factory=dict)
    settable: frozenset[str] | None = None


@dataclass
class Read(Message):
    """The presets and what is wrong with the files that could not be read."""

    presets: tuple[Preset, ...]
    problems: tuple[str, ...]


class Presets(AppScreen):
    """A list, and the preset under its cursor."""

    CSS_PATH = "presets.tcss"
    PANELS = ("#list", "#page", "#files")
    AUTO_FOCUS = "#list"
    HELP: ClassVar[str | None] = """\
## Presets

The guide's are on `1`-`5`, yours on `6`-`9` or on no key. What a preset **asks** and what it **runs as** differ where
the server clamps; presets with the same effect on this model are named. Its author's figures are *met*, *missed*, or
*not comparable here*, with the reason. `v` measures it in turns with the server's defaults and gives a verdict.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "run", "Run", key_display="enter", tooltip="Run it on the server in use"),
        Binding("v", "compare", "Compare", tooltip="Measure it in turns with the server's defaults"),
        Binding("pageup", "scroll(-1)", "Page up", show=False, priority=True),
        Binding("pagedown", "scroll(1)", "Page down", show=False, priority=True),
        Binding("escape,p", "leave", "Back"),
    ]

    def __init__(self, state: LiveState) -> None:
        super().__init__(state)
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self._presets: dict[str, Preset] = {}
        self._rows: Mapping[str, PresetRow] = {}
        self._where = LOOKING
        self._settable: frozenset[str] | None = None
        self._judged: tuple[Target | None, str | None] | None = None

    def compose(self) -> ComposeResult:
        """The list beside the page, or above it; broken files below."""
        with Container(id="both"):
            presets = Listing(id="list", empty="reading the files …")
            presets.border_title = "Presets"
            yield presets
            yield Page(id="page", hint="PgDn")
        yield Static(id="files", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        """Read the files, and ask what is true of them."""
        post = self.poster()
        feeds.begin("presets", post, lambda: read(post))
        self.paint(self._state, 0.0)

    def paint(self, state: LiveState, now: float) -> None:
        """Judge anew where the next run goes to another server, or a run has ended."""
        self._state = state
        self._waits()
        ended = state.update.run.id if state.update is not None and state.update.run.state in ENDED else None
        judged = (state.target, state.explanation if state.target is None else ended)
        if self._judged == judged:
            return
        if self._judged is not None and self._judged[0] != state.target:
            self._rows, self._settable = {}, None  # those of another server or model
        self._judged = judged
        if state.target is None:
            self._where = f"{plain(state.explanation)} m picks a server."
            self._show()
        else:
            target, post = state.target, self.poster()
            if not self.judged:
                self._where = LOOKING
                self._show()
            feeds.begin("presets", post, lambda: judge(post, target))

    @on(Read)
    def _read(self, message: Read) -> None:
        self._presets = {one.name: one for one in message.presets}
        lines = [f"▲ {format.homely(problem)}" for problem in message.problems]
        if all(one.origin == "guide" for one in message.presets) and not lines:
            folder = plain(format.homely(str(user_folder())))
            lines = [f"Your own are TOML files in {folder}; `chimera presets check` checks one."]
        self.query_one("#files", Static).update("\n".join(lines))
        self.set_class(bool(message.problems), "-broken")
        self._show()

    @on(Judged)
    def _judged_now(self, message: Judged) -> None:
        if message.target == self._state.target:
            self._where, self._rows, self._settable = message.where, message.rows, message.settable
            self._show()

    @property
    def judged(self) -> bool:
        """The server has told what is true of them."""
        return bool(self._rows)

    # What is shown ---------------------------------------------------------------------------------------------------

    def _row(self, key: str, width: int) -> Row:
        preset = self._presets.get(key)
        return preset_line(preset, self._rows.get(key), width) if preset else Line(width).row()

    def _show(self) -> None:
        if self._presets:
            self.query_one("#list", Listing).update(tuple(self._presets), self._row)
        self._turn()

    @on(Listing.Moved)
    def _turn(self) -> None:
        preset = self.chosen
        if preset is not None:
            row, where = self._rows.get(preset.name), self._where
            page = self.query_one("#page", Page)
            page.caption(title=f"{preset.title} ({preset.name})")
            page.update(preset.name, lambda width: preset_page(preset, row, where, width))

    @property
    def chosen(self) -> Preset | None:
        """The preset under the cursor."""
        return self._presets.get(self.query_one("#list", Listing).chosen or "")

    # What can be done ------------------------------------------------------------------------------------------------

    @on(Listing.Chosen)
    def _picked(self) -> None:
        self.action_run()

    def action_run(self) -> None:
        """Run the preset under the cursor, and go to where it is seen."""
        if self.chosen is not None and self.chimera.run_preset(self.chosen):
            self.dismiss()

    def action_scroll(self, pages: int) -> None:
        """Scroll the page while the list keeps the keys."""
        self.query_one("#page", Page).action_page(pages)

    def action_leave(self) -> None:
        """Where one came from."""
        self.dismiss()

    def action_compare(self) -> None:
        """Measure the preset under the cursor against the server's defaults: the plan first."""
        preset, target = self.chosen, self._state.target
        if preset is None or self.chimera.may_not("start a comparison"):
            return
        if target is None:
            self.notify("No server: press m to pick one.", markup=False)
        elif self.chimera.must_wait("a comparison can start"):
            return
        elif not self._asked(preset).as_dict():
            self.notify("Nothing that this preset sets can be set on this server.", markup=False)
        else:
            self._compare(preset, target)

    def _asked(self, preset: Preset) -> Options:
        return preset.options if self._settable is None else preset.options.only(self._settable)

    def _waits(self) -> None:
        """Say what is waited for."""
        words = next((words for name, words in WAITS.items() if name in self._state.working), "")
        self.query_one("#list", Listing).caption(subtitle=words)

    def _compare(self, preset: Preset, target: Target) -> None:
        asked = ("sweep", *comparison(preset, self._asked(preset)), *server_flags(target))
        then = partial(self._planned, self.chimera, preset, target, asked)
        self.chimera.command(PLAN, *asked, "--dry-run", "--json", then=then)
        self._waits()

    def _planned(self, app: ChimeraApp, preset: Preset, target: Target, asked: Sequence[str], said: Said) -> None:
        """Ask whether what was planned is to be started, unless somebody has gone on to something else."""
        # A screen that shines through a dialog is "current", too: its question would take the dialog's next key.
        if said.code:
            app.tell(said.problem, "error")
        elif nothing_in(said.document):
            app.tell(f"{preset.title} against the default: {said.document['words']}", "notice")
        elif self.is_attached and app.screen is self and target == self._state.target:
            self._start(preset, target, asked, said.document)
        else:
            app.tell(f"The plan of {preset.name} is dropped: you went on to something else.", "notice")

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def _start(self, preset: Preset, target: Target, asked: Sequence[str], drawn: Mapping[str, Any]) -> None:
        answer = await self.chimera.ask_to_begin(
            "a comparison can start",
            Ask(question(preset, drawn, target.kind == "ollama"), (
                Answer("y", "yes", "start it: it goes on when you leave"),
                Answer("n", "no", "leave things as they are"),
            ), title="Against the default"),
        )  # fmt: skip
        if answer is None:
            return
        self._state.reload_agreed |= target.kind == "ollama"  # of which alone the question spoke
        self.chimera.command(
            START, *asked, "--seed", str(drawn["seed"]), "--yes", "--detach", "--json",
            then=partial(self._started, self.chimera), goes_on="A comparison is being started",
        )  # fmt: skip
        self._waits()

    def _started(self, app: ChimeraApp, said: Said) -> None:
        """Follow it, and show it to somebody who is still here."""
        run_id = app.begun(said)
        if run_id is not None:
            app.tell(f"comparison: run {run_id}")
            if self.is_attached and app.screen is self:
                app.action_tune()


def comparison(preset: Preset, asked: Options) -> list[str]:
    """A preset against the defaults, as the command line takes it: one value an option, its own sizes of requests."""
    typed = [part for name, value in asked.as_dict().items() for part in (flag(name), str(value))]
    sizes = [("--prompt-tokens", preset.workload.prompt_tokens), ("--output-tokens", preset.workload.output_tokens)]
    return [
        *typed,
        *(part for name, size in sizes for part in (name, str(size))),
        "--name",
        f"{preset.name} or default",
    ]


def question(preset: Preset, drawn: Mapping[str, Any], reloads: bool) -> str:
    """The plan, and what it means for others."""
    lines = [f"Measure “{preset.title}” in turns with the server's defaults?", ""]
    lines += plan_text(drawn).splitlines()
    if preset.workload.agents > 1:
        lines += ["", "With one agent at a time: `chimera agents` compares several."]
    if reloads:
        lines += ["", "The server reloads its model again and again for it; its settings are put back at the end."]
    return "\n".join(lines)


# -- in threads --------------------------------------------------------------------------------------------------------


def read(post: feeds.Post) -> None:
    """Read the files of presets; checking the user's loads pydantic."""
    book = all_presets()
    post(Read(book.presets, tuple(plain(str(problem)) for problem in book.problems)))


def judge(post: feeds.Post, target: Target) -> None:
    """Ask the server for its model, and the journal for what was measured of it."""
    import asyncio

    from chimera.runner.honesty import look, measured_here, preset_rows
    from chimera.store.journal import Journal

    try:
        here = asyncio.run(look(target))
        with Journal.open() as journal:
            rows = preset_rows(all_presets().presets, here, measured_here(journal, here))
    except ChimeraError as error:
        post(Judged(target, f"Nothing is known of this server: {error}"))
        return
    where = f"On {plain(here.model.name)}, {plain(here.server.title if here.server else here.kind)}"
    post(Judged(target, where, {row.preset.name: row for row in rows}, here.settable))
