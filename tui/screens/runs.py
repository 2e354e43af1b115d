"""Runs: what was measured here, the newest first; one of them in full, exported, followed or resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from chimera.domain.run import Run
from chimera.domain.text import plain
from chimera.widgets import format
from chimera.widgets.history import run_head, run_page, run_row
from chimera.widgets.keys import KeyBar
from chimera.widgets.listing import Listing, Page
from chimera.widgets.rows import EMPTY, Line, Row

from .. import requests
from ..state import OVER
from .ask import Answer, Ask
from .base import AppScreen

if TYPE_CHECKING:
    from chimera.store.journal import Journal

    from ..app import ChimeraApp
    from ..commands import Said
    from ..feeds import Post
    from ..state import LiveState

LIST = "runs"
"""What is read for the list: one at a time, so that a page more and a new look never mix."""
PAGE = 100
"""Runs that are read at a time."""
LOOK_S = 2.0
"""Between two looks for what other processes have written."""


@dataclass
class Listed(Message):
    """Runs that the journal gave."""

    text: str
    """What was looked for: an answer to an older question is of no use."""
    runs: tuple[Run, ...]
    count: int
    """How many there are in all."""
    token: int
    """Of the journal as it was read; another one says that something was written since."""
    more: bool = False
    """They come after those that are there."""


@dataclass
class Counted(Message):
    """Requests of the runs on the screen: valid, void."""

    counts: Mapping[str, tuple[int, int]]


@dataclass
class Shown(Message):
    """A run's document."""

    run: Run
    document: Mapping[str, Any]


@dataclass
class ReadEnded(Message):
    """A thread that has read has ended, well or not."""

    what: str


class Runs(AppScreen):
    """A list that is filtered by typing, and the run under its cursor in full."""

    CSS_PATH = "runs.tcss"
    PANELS = ("#list", "#page")
    AUTO_FOCUS = "#list"
    HELP: ClassVar[str | None] = """\
## Runs

Everything that was measured here, the newest first, whoever started it. `/` filters by a part of an id, name, preset,
kind, model or error. `enter` shows the run under the cursor: its figures, verdicts, findings, and what did not count.
`f` shows it on the dashboard, and goes on with one that was stopped, failed or crashed: nothing that is finished is
repeated. `e` writes every request into a file.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Show", key_display="enter", tooltip="Figures, verdicts, findings, counts"),
        Binding("slash", "filter", "Filter", key_display="/", tooltip="By id, name, preset, kind, model or error"),
        Binding("f", "follow", "Follow", tooltip="Show it on the dashboard; go on with one that has not ended"),
        Binding("e", "export", "Export", tooltip="Write every request into a file"),
        Binding("escape,r", "leave", "Back"),
    ]

    def __init__(self, state: LiveState) -> None:
        super().__init__(state)
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
        self._text = ""
        self._runs: dict[str, Run] = {}
        self._count = 0
        self._counts: dict[str, tuple[int, int]] = {}
        self._token: int | None = None
        self._looked = 0.0
        self._reading: set[str] = set()
        self._next: dict[str, Callable[[], None]] = {}
        """What is to be asked when what is read now is there."""
        self._opened: str | None = None
        self._told: Shown | None = None
        self._waits = False
        """Something of the run that is shown is computed."""

    def compose(self) -> ComposeResult:
        """A line to type in, the list, and one run in full."""
        yield Input(
            id="filter", placeholder="part of an id, name, preset, kind, model or error; enter keeps, esc clears"
        )
        runs = Listing(id="list", empty="reading the journal …")
        runs.border_title = "Runs"
        yield runs
        yield Page(id="page", hint="tab, then ↓")
        yield KeyBar()

    def on_mount(self) -> None:
        """Ask for the newest."""
        self._ask()

    # The list --------------------------------------------------------------------------------------------------------

    def paint(self, state: LiveState, now: float) -> None:
        """Look for what was written since, now and then."""
        self._state = state
        if LIST not in self._reading and now - self._looked >= LOOK_S:
            self._look_again()
        if self._waits:
            self._turn()

    def _read(self, what: str, again: Callable[[], None], work: Callable[[Post, Journal], None]) -> None:
        """Read in a thread, one at a time of a kind: where one is at work, `again` is called when it has ended.

        It asks what is wanted by then; so what was wanted between is never read, and only the last `again` counts.
        """
        if what in self._reading:
            self._next[what] = again
            return
        self._reading.add(what)
        post = self.poster()
        self.chimera.journal.read(what, lambda journal: work(post, journal), then=lambda: post(ReadEnded(what)))

    @on(ReadEnded)
    def _read_ended(self, message: ReadEnded) -> None:
        self._reading.discard(message.what)
        if message.what == LIST and self._token is None and self.chimera.journal.problem:
            self.query_one("#list", Listing).update(
                (), self._row, empty="The journal cannot be read: the log says why."
            )
        again = self._next.pop(message.what, None)
        if again is not None:
            again()

    def _ask(self) -> None:
        """Read what the filter lets through."""
        text = self._text
        self._looked = time.monotonic()
        self._read(LIST, self._ask, lambda post, journal: look(post, journal, text, PAGE, None))

    def _look_again(self) -> None:
        """Read as much as is there once more, where something was written."""
        text, limit = self._text, max(PAGE, len(self._runs))
        # A worker that died writes nothing: a run that goes on is looked at again in any case.
        active = any(run.state not in OVER for run in self._runs.values())
        token = self._token if not active else None
        self._looked = time.monotonic()
        self._read(LIST, self._look_again, lambda post, journal: look(post, journal, text, limit, token))

    @on(Listed)
    def _listed(self, message: Listed) -> None:
        if message.text != self._text:
            return
        if not message.more:  # what stood there before was not read again
            self._token = message.token
        if message.count < 0:
            return  # as it was
        runs = {run.id: run for run in message.runs}
        shown = self._runs.get(self._opened or "")
        self._runs = {**self._runs, **runs} if message.more else runs
        self._count = message.count
        empty = "No run yet: 1-5 run the guide's presets, t compares settings." if not self._text else "No such run."
        self.query_one("#list", Listing).update(tuple(self._runs), self._row, head=run_head, empty=empty)
        self._subtitle()
        self._count_visible(fresh=not message.more)
        if self._opened in self._runs and (
            self._runs[self._opened].state not in OVER or self._runs[self._opened] != shown
        ):
            self._show(self._opened)

    @on(Listing.Ended)
    def _more(self) -> None:
        if len(self._runs) >= self._count or LIST in self._next:
            return
        last = next(reversed(self._runs.values())).seq
        text, count = self._text, self._count
        self._read(LIST, self._more, lambda post, journal: grow(post, journal, text, last, count))

    def _row(self, key: str, width: int) -> Row:
        run = self._runs.get(key)
        return run_row(run, self._counts.get(key), time.time(), width) if run else Line(width).row()

    def _subtitle(self) -> None:
        shown = f"{self._count:,} run{'s' if self._count != 1 else ''}"
        of = f"{shown} with “{plain(self._text)}”" if self._text else shown
        self.query_one("#list", Listing).caption(subtitle=of)

    def _count_visible(self, *, fresh: bool = False) -> None:
        """Ask for the counts that the screen lacks; of runs that go on again each time."""
        keys = self.query_one("#list", Listing).on_screen
        wanted = [
            self._runs[key]
            for key in keys
            if key in self._runs and (key not in self._counts or (fresh and self._runs[key].state not in OVER))
        ]
        if wanted:
            self._read("counts", self._count_visible, lambda post, journal: count(post, journal, wanted))

    @on(Counted)
    def _counted(self, message: Counted) -> None:
        self._counts.update(message.counts)
        self.query_one("#list", Listing).redraw()

    # Filter ----------------------------------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Type what is looked for."""
        self.add_class("-filtering")
        self.query_one("#filter", Input).focus()

    @on(Input.Changed, "#filter")
    def _typed(self, event: Input.Changed) -> None:
        if event.value.strip() != self._text:
            self._text = event.value.strip()
            self._ask()

    @on(Input.Submitted, "#filter")
    def _kept(self) -> None:
        self.set_class(bool(self._text), "-filtering")
        self.query_one("#list").focus()

    # One run ---------------------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> Run | None:
        """The run under the cursor."""
        return self._runs.get(self.query_one("#list", Listing).chosen or "")

    @on(Listing.Chosen)
    def _chosen(self) -> None:
        self.action_open()

    @on(Listing.Moved)
    def _moved(self, event: Listing.Moved) -> None:
        self._count_visible()
        if self._opened is not None and event.key is not None:
            self._show(event.key)

    def action_open(self) -> None:
        """Show the run under the cursor in full."""
        if self.chosen is not None:
            self.add_class("-open")
            self._show(self.chosen.id)

    def _show(self, run_id: str) -> None:
        self._opened = run_id
        self._read_opened()

    def _read_opened(self) -> None:
        run_id = self._opened
        if run_id is not None:
            self._read("run", self._read_opened, lambda post, journal: show(post, journal, run_id))

    @on(Shown)
    def _shown(self, message: Shown) -> None:
        if message.run.id != self._opened:
            return  # the cursor has gone on
        self._told = message
        self.query_one("#page", Page).caption(title=f"Run {message.run.id}")
        self._turn()

    def _turn(self) -> None:
        """Draw the page of the run that is shown, with what each agent got where there are several."""
        told = self._told
        if told is None or told.run.id != self._opened:
            return
        run, document = told.run, told.document
        figures = self.chimera.figures_of(run) if run.several else None
        waits = run.several and run.state in OVER and figures is None
        other = self._state.at_work
        when = f"computed when run {other.id} has ended" if other is not None else "being computed …"

        def rows(width: int) -> list[Row]:
            page = run_page({**document, "agents": figures} if figures else document, width)
            if waits:
                page += [EMPTY, Line(width).add(f"what each agent got: {when}", "muted").row()]
            return page

        self._waits = waits
        self.query_one("#page", Page).update(run.id, rows)

    def action_leave(self) -> None:
        """From the line that is typed, or the run that is shown, to the list; from the list to where one came from."""
        line = self.query_one("#filter", Input)
        if self.focused is line or (self._text and self._opened is None):
            line.value = ""
            self.remove_class("-filtering")
            self.query_one("#list").focus()
        elif self._opened is not None:
            self._opened = None
            self.remove_class("-open")
            self.query_one("#list").focus()
        else:
            self.dismiss()

    # What can be done ------------------------------------------------------------------------------------------------

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_follow(self) -> None:
        """Show the run on the dashboard; go on with it where there is something left to do, after one question."""
        run = self.chosen
        if run is None:
            return
        if run.resumable and not self.chimera.options.read_only:
            other, engaged = self._state.at_work, self.chimera.engaged
            waits_for = f"Run {other.id} goes on" if other is not None else engaged[0] if engaged is not None else ""
            answers = [Answer("y", "yes", "go on with it: nothing that is finished is repeated")]
            if waits_for:
                answers = []  # two at once would measure each other
            answer = await self.app.push_screen_wait(
                Ask(
                    f"Run {run.id} is {run.state}."
                    + (f" {waits_for}: this one can be resumed when that has ended." if waits_for else ""),
                    (*answers, Answer("s", "show", "only show it on the dashboard"), Answer("n", "no", "neither")),
                    title="Resume",
                )
            )
            if answer not in {"yes", "show"}:
                return
            if answer == "yes":
                if self.chimera.must_wait("it can be resumed"):  # something may have begun meanwhile
                    return
                feed = self.chimera.journal
                self._state.draft.left = None
                self.chimera.tell(f"resuming run {run.id} …")
                feed.do(lambda journal: requests.resume(journal, feed, run.id))
                self.dismiss()
                return
        self.chimera.follow(run.id)
        self.dismiss()

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_export(self) -> None:
        """Write every request of the run under the cursor into the current folder, after one question."""
        run, folder = self.chosen, self.folder()
        if run is None or folder is None:
            return
        form = await self.app.push_screen_wait(
            Ask(
                f"Write every request of run {run.id} into a file in {format.homely(str(folder))}. As what?",
                (
                    Answer("j", "json", "JSON: everything, to be imported again"),
                    Answer("c", "csv", "CSV: a line a request"),
                    Answer("n", "no", "not now"),
                ),
                title="Export",
            )
        )
        if form in {"json", "csv"}:
            path = free(folder / f"chimera-{run.id}.{form}")
            self.chimera.command(
                f"export to {path.name}", "runs", "export", run.id, "--format", form, "--output", str(path),
                then=partial(exported, self.chimera, run.id, path), goes_on=f"Run {run.id} is being written to a file",
                engine=False,
            )  # fmt: skip


def exported(app: ChimeraApp, run_id: str, path: Path, said: Said) -> None:
    """Tell where the file is, or why there is none."""
    if said.code:
        app.tell(said.problem, "error")
    else:
        app.tell(f"run {run_id} written to {path}", "notice")


# -- in threads --------------------------------------------------------------------------------------------------------


def look(post: Post, journal: Journal, text: str, limit: int, token: int | None) -> None:
    """The newest runs that the filter lets through; nothing where the journal is as it was at `token`."""
    now = journal.changes()
    if token is not None and now == token:
        post(Listed(text, (), -1, now))
        return
    found = tuple(journal.runs(text=text or None, limit=limit))
    # A page that is not full holds them all.
    total = len(found) if len(found) < limit else journal.count_runs(text=text or None)
    post(Listed(text, found, total, now))
    import_module("chimera.store.document")  # so that the first run that is shown finds it ready


def grow(post: Post, journal: Journal, text: str, before: int, total: int) -> None:
    """The runs after those that are there."""
    token = journal.changes()
    post(Listed(text, tuple(journal.runs(text=text or None, limit=PAGE, before=before)), total, token, more=True))


def count(post: Post, journal: Journal, runs: list[Run]) -> None:
    """Requests of the runs on the screen."""
    post(Counted({name: (one.valid, one.void) for name, one in journal.tallies(runs).items()}))


def show(post: Post, journal: Journal, run_id: str) -> None:
    """One run in full, but for what each of several agents got: that takes SciPy, which never comes in here."""
    from chimera.store.document import document

    run = journal.run(run_id)
    post(Shown(run, document(journal, run, measurements=False)))


def free(path: Path) -> Path:
    """The path, or one with a number where that is taken: nothing of the user's is written over."""
    number, chosen = 2, path
    while chosen.exists():
        chosen = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return chosen
