"""The Doctor: what is wrong, worst first, with its evidence, what helps, and a key that tries it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Markdown, OptionList, Static
from textual.widgets.option_list import Option

from chimera.domain.finding import SEVERITIES, Evidence, Finding
from chimera.domain.run import ENDED, Run, Target
from chimera.domain.telemetry import Snapshot
from chimera.domain.text import plain
from chimera.errors import ChimeraError
from chimera.telemetry.serverlog import ServiceLog
from chimera.widgets import format
from chimera.widgets.chart import Guide, TimeChart
from chimera.widgets.findings import WORDS, evidence_text
from chimera.widgets.keys import KeyBar
from chimera.widgets.log import SIGNS

from .. import feeds
from ..feeds import Post
from ..messages import Told
from .ask import Answer, Ask
from .base import AppScreen

if TYPE_CHECKING:
    from chimera.diagnosis.evidence import EngineStart, EvidenceSet, PastRun
    from chimera.domain.server import ModelInfo
    from chimera.runner.cure import Cure
    from chimera.telemetry.loaded import Loaded

    from ..state import LiveState

LOG_S = 600.0
"""The last part of the server's log that a look takes in."""
LOOK_S = 5.0
"""Between two looks at this moment, where no run tells what it found."""
INSTALLED_S = 60.0
"""Between two questions to the server what it could load."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#+!|~])")


@dataclass
class Examined(Message):
    """This moment was judged, without a run that is followed."""

    findings: tuple[Finding, ...]
    last: Run | None = None
    """The newest run on this server that ended within a day, where none is followed."""
    of_last: tuple[Finding, ...] = ()
    unread: str = ""
    """Why the journal could not be asked for earlier runs."""


@dataclass
class LookEnded(Message):
    """The thread that looked has ended, well or not."""


class Known:
    """What a look takes besides readings, asked anew where it may have changed: a thread's own."""

    def __init__(self) -> None:
        self.installed: tuple[ModelInfo, ...] = ()
        """What the server could load."""
        self.history: tuple[PastRun, ...] = ()
        """Earlier runs of its model."""
        self.unread = ""
        """Why the journal could not be asked for them."""
        self._asked: tuple[Target | None, float] = (None, 0.0)
        self._read: object = None

    def ask(self, target: Target, loaded: Loaded) -> None:
        """Ask the server at most once a minute, and the journal, if it can be read, where a run has come or gone."""
        import asyncio

        from chimera.runner.doctor import installed_on, past_of
        from chimera.store.journal import Journal

        of, at = self._asked
        if of != target or time.monotonic() - at >= INSTALLED_S:
            self.installed = asyncio.run(installed_on(target))
            self._asked = (target, time.monotonic())
        self.unread = ""
        try:
            with Journal.open() as journal:
                newest = [(run.id, run.state) for run in journal.runs(limit=1)]
                if (newest, loaded.model) != self._read:
                    self.history = past_of(journal, loaded)
                    self._read = (newest, loaded.model)
        except ChimeraError as error:
            self.unread = str(error)


class Doctor(AppScreen):
    """Findings of the followed run, or of this moment where none goes on."""

    CSS_PATH = "doctor.tcss"
    PANELS = ("#about", "#findings", "#text")
    HELP: ClassVar[str | None] = """\
## Doctor

Findings rest on evidence: each figure names where it was read and the limit it was compared with. Causes are ranked by
what speaks for and against them. `f` tries a remedy that is a setting: before and after are measured in turn, and the
verdict says whether it helped. Nothing here means that nothing was seen.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Explain", key_display="enter", tooltip="Evidence, causes, and what it means"),
        Binding("f", "fix", "Try remedy", tooltip="Apply a remedy and measure before and after"),
        Binding("h", "heat", "Heat check", tooltip="A sustained load, judged by temperature and rate"),
        Binding("b", "bundle", "Bundle", tooltip="Write the evidence for a bug report"),
        Binding("escape,d", "leave", "Back"),
    ]

    def __init__(self, state: LiveState) -> None:
        super().__init__(state)
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
        self._log = ServiceLog(LOG_S)
        self._known = Known()
        self._now: tuple[Finding, ...] | None = None
        self._last: Run | None = None
        self._of_last: tuple[Finding, ...] = ()
        self._unread = ""
        self._asked_at = 0.0
        self._asking = False
        self._shown: tuple[Finding, ...] | None = None
        self._opened: Finding | None = None

    def compose(self) -> ComposeResult:
        """What is looked at, the findings, and one of them in full."""
        yield Static(id="about", markup=False)
        findings = OptionList(id="findings", markup=False)
        findings.border_title = "Doctor"
        yield findings
        with Vertical(id="detail"):
            yield TimeChart("evidence", id="curve", gap_s=1e9)
            with VerticalScroll(id="page"):
                yield Markdown(id="text", open_links=False)
        yield KeyBar()

    def on_mount(self) -> None:
        """Show what is known."""
        self.query_one("#findings").focus()
        self.paint(self._state, time.monotonic())

    # What there is ---------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run | None:
        """The run whose findings are shown: the one that goes on, else the last one that was followed or ended."""
        return self._state.update.run if self._state.update is not None else self._last

    @property
    def of_run(self) -> tuple[Finding, ...] | None:
        """What was found of that run; None where nobody has looked yet."""
        return self._state.update.findings if self._state.update is not None else self._of_last or None

    def findings(self) -> tuple[Finding, ...] | None:
        """Worst first; None where nobody has looked yet. What is seen now is not told twice of the last run."""
        of_run = self.of_run
        if self._state.running:
            return of_run
        now = self._now or ()
        told = {(one.code, one.subject) for one in now}
        rest = [one for one in of_run or () if (one.code, one.subject) not in told]
        if self._now is None and of_run is None:
            return None
        return tuple(sorted((*now, *rest), key=lambda one: -SEVERITIES.index(one.severity)))

    def paint(self, state: LiveState, now: float) -> None:
        """Show the newest of everything; nothing is redrawn where nothing changed."""
        self._state = state
        if state.at_work is None and not self._asking and now - self._asked_at >= LOOK_S and (recent := state.calm):
            self._asked_at, self._asking = now, True
            loaded, offset = state.watched.loaded, state.epoch
            # Where no run is followed, the last one of this server is told of, as `chimera doctor` does.
            target = state.target if state.update is None else None
            before, post = self._now or (), self.poster()
            known, of, starts = self._known, state.target, tuple(state.starts)

            def look() -> None:
                try:
                    if of is not None:
                        known.ask(of, loaded)
                    examine(post, recent, loaded, offset, target, before, self._log, known, starts)
                finally:  # a defect in there is told, and ends no more than this look
                    post(LookEnded())

            feeds.begin("examination", post, look)
        found = self.findings()
        about = self._about(found)
        line = self.query_one("#about", Static)
        if about != getattr(self, "_line", None):
            self._line = about
            line.update(about)
        if found != self._shown:
            self._list(found or ())
            self._shown = found

    @on(Examined)
    def _examined(self, message: Examined) -> None:
        self._now = message.findings
        self._last, self._of_last = message.last, message.of_last
        if message.unread and message.unread != self._unread:
            self.chimera.tell(message.unread, "warn")
        self._unread = message.unread
        self.paint(self._state, time.monotonic())

    @on(LookEnded)
    def _look_ended(self) -> None:
        self._asking = False

    def _about(self, found: Sequence[Finding] | None) -> str:
        run = self.run
        of = f"run {run.id}, {run.preset or run.kind}, {run.state}" if run is not None else ""
        # Nothing is looked at beside a run that is worked on and is not the one on the screen.
        other = None if self._state.running else self._state.at_work
        moment, more = "this moment", ""
        if self._state.running or (self._now is None and found is not None):
            where = of
            if not self._state.running:
                more = f"; {moment}: not checked {'yet' if other is None else f'beside run {other.id}'}"
        else:
            if self._now is not None and other is not None:
                moment = f"the moment before run {other.id}"
            if self._unread:
                moment += " (without earlier runs: the journal cannot be read)"
            where = f"{moment} and {of}" if of else moment
        if found is None:
            return f"{where}: not checked yet"
        if not found:
            return f"{where}: nothing was found{more}"
        return f"{where}: {len(found)} finding{'s' if len(found) > 1 else ''}{more}"

    def _list(self, found: Sequence[Finding]) -> None:
        picker = self.query_one("#findings", OptionList)
        keys = [_key(one) for one in self._shown or ()]
        at = keys[picker.highlighted] if picker.highlighted is not None and picker.highlighted < len(keys) else None
        picker.clear_options()
        picker.add_options(Option(_row(one)) for one in found)
        if found:
            places = [_key(one) for one in found]
            picker.highlighted = places.index(at) if at in places else 0
        opened = next((one for one in found if self._opened is not None and _key(one) == _key(self._opened)), None)
        if self._opened is not None and opened is None:
            self._close()

    @property
    def chosen(self) -> Finding | None:
        """The finding under the cursor."""
        place = self.query_one("#findings", OptionList).highlighted
        found = self._shown or ()
        return found[place] if place is not None and place < len(found) else None

    # One finding -----------------------------------------------------------------------------------------------------

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        self.action_open()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        if self._opened is not None and self.chosen is not None and _key(self.chosen) != _key(self._opened):
            self.action_open()

    def action_open(self) -> None:
        """Show the finding under the cursor in full."""
        finding = self.chosen
        if finding is None:
            return
        self._opened = finding
        self.add_class("-open")
        self.query_one("#text", Markdown).update(page(finding))
        self.query_one("#page", VerticalScroll).scroll_home(animate=False)
        piece = next((one for one in finding.evidence if len(one.series) > 1), None)
        self.set_class(piece is not None, "-curve")
        if piece is not None:
            self._draw(piece)

    def _draw(self, piece: Evidence) -> None:
        chart = self.query_one("#curve", TimeChart)
        chart.border_title = plain(f"{piece.what}, {piece.unit}" if piece.unit else piece.what).replace("[", "\\[")
        chart.clear()
        chart.window_s = max(1.0, piece.series[-1][0] * 1.02)
        limit = piece.threshold
        chart.set_guides(*([Guide("limit", float(limit))] if isinstance(limit, int | float) else []))
        chart.extend(piece.series)

    def _close(self) -> None:
        self._opened = None
        self.remove_class("-open", "-curve")

    def action_leave(self) -> None:
        """From one finding to all, from all to where one came from."""
        if self._opened is not None:
            self._close()
            self.query_one("#findings").focus()
        else:
            self.dismiss()

    # What can be done ------------------------------------------------------------------------------------------------

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_fix(self) -> None:
        """Try a remedy of the finding under the cursor, after one question."""
        from chimera.runner.cure import cures

        finding, run = self.chosen, self.run
        if self.chimera.may_not("start a run"):
            return
        if finding is None:
            self.notify("Nothing was found, so there is no remedy to try.", markup=False)
            return
        every: Sequence[Cure] = cures(self.of_run or ())
        mine = [one for one in every if one.finding == finding]
        if run is None or not mine:
            self.notify("No remedy of this finding is a setting that a run could try.", markup=False)
            return
        if run.state not in ENDED:
            self.notify(f"Run {run.id} goes on: a remedy is tried when it has ended.", markup=False)
            return
        asks = run.target.kind not in {"embedded"} and run.target.url is not None and not self._state.reload_agreed
        warning = " The server reloads its model for it; its settings are put back at the end." if asks else ""
        answer = await self.chimera.ask_to_begin(
            "a remedy is tried",
            Ask(
                f"{finding.title}. Measure before and after, in turn?{warning}",
                (
                    *(Answer(str(place), str(one.number), f"{one.options}: {one.remedy.text}")
                      for place, one in enumerate(mine[:8], 1)),
                    Answer("n", "no", "leave things as they are"),
                ),
                title="Try a remedy",
            ),
        )  # fmt: skip
        if answer is None:
            return
        self._state.reload_agreed = self._state.reload_agreed or asks
        begun = self.chimera.command(
            "remedy", "doctor", run.id, "--apply", answer, "--detach", "--json", "--yes",
            then=self.chimera.begun, goes_on="A remedy is being started",
        )  # fmt: skip
        if begun:
            self.chimera.tell(f"trying remedy {answer} of run {run.id} …")
            self.dismiss()

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_heat(self) -> None:
        """The thermal check, after one question."""
        target = self._state.target
        if self.chimera.may_not("start a run"):
            return
        if target is None:
            self.notify("No heat check now. No server: press m to pick one.", markup=False)
            return
        answer = await self.chimera.ask_to_begin(
            "a heat check can start",
            Ask(
                "Load the server without a pause, and watch temperature, clocks, power and rate. For how long?",
                (
                    Answer("1", "5", "5 minutes"),
                    Answer("2", "10", "10 minutes: a desktop card settles by then"),
                    Answer("3", "20", "20 minutes: for a laptop or a full case"),
                    Answer("n", "no", "not now"),
                ),
                title="Heat check",
            ),
        )
        if answer is None:
            return
        begun = self.chimera.command(
            "heat check", "doctor", "--thermal", "--minutes", answer, "--detach", "--json", *_place(target),
            then=self.chimera.begun, goes_on="A heat check is being started",
        )  # fmt: skip
        if begun:
            self.chimera.tell(f"heat check of {answer} minutes …")
            self.dismiss()

    def action_bundle(self) -> None:
        """Write the evidence for a bug report into the current folder."""
        run, folder = self.run, self.folder()
        if folder is None:
            return
        path = folder / f"chimera-evidence-{time.strftime('%Y%m%d-%H%M%S')}.md"
        recent, loaded, offset = tuple(self._state.recent), self._state.watched.loaded, self._state.epoch
        run_id, post = run.id if run is not None else None, self.poster()
        known, starts = self._known, tuple(self._state.starts)
        feeds.begin("bundle", post, lambda: write(post, path, run_id, recent, loaded, offset, known, starts))


def _place(target: Target) -> list[str]:
    if target.kind == "embedded":
        return ["--embedded"]
    return ["--server", target.url or "", "--yes", *(["--model", target.model] if target.model else [])]


def _key(finding: Finding) -> tuple[str, str, int | None]:
    return (finding.code, finding.subject, finding.session)


def _row(finding: Finding) -> str:
    sign, _ = SIGNS[finding.severity]
    since = "" if finding.since is None else f"  since\u00a0{format.clock(finding.since, with_seconds=False)}"
    return f"{sign} {WORDS[finding.severity]:8} {plain(finding.title)}{since}"


# -- in threads --------------------------------------------------------------------------------------------------------


def examine(
    post: Post,
    recent: Sequence[Snapshot],
    loaded: Loaded,
    offset: float,
    target: Target | None = None,
    before: Sequence[Finding] = (),
    log: ServiceLog | None = None,
    known: Known | None = None,
    starts: Sequence[EngineStart] = (),
) -> None:
    """Ask the rules about this moment, and the journal what was found of a target's last run.

    What was among the findings `before` keeps the time at which it was first seen.
    """
    from chimera.diagnosis.rules import diagnose, since_first_seen

    known = known or Known()
    lines = log.lines(loaded.server, time.time()) if log is not None else ()
    evidence = this_moment(recent, loaded, offset, known, starts, lines)
    found = since_first_seen(list(before), diagnose(evidence), time.time())
    last: Run | None = None
    of_last: tuple[Finding, ...] = ()
    if target is not None and not known.unread:
        try:
            last, of_last = last_of(target)
        except ChimeraError as error:
            known.unread = str(error)
    post(Examined(tuple(found), last, of_last, known.unread))


def this_moment(
    recent: Sequence[Snapshot],
    loaded: Loaded,
    offset: float,
    known: Known,
    starts: Sequence[EngineStart],
    log: Sequence[str] = (),
) -> EvidenceSet:
    """What can be seen without a run, as `chimera doctor` sees it."""
    from chimera.runner.evidence import evidence_now, machine_facts

    return evidence_now(
        recent,
        loaded,
        clock_offset_s=offset,
        history=known.history,
        installed=known.installed,
        host=machine_facts(),
        own_pids=(os.getpid(),),
        engine_starts=starts,
        log=log,
    )


def last_of(target: Target) -> tuple[Run | None, tuple[Finding, ...]]:
    """The newest run on a target that ended within a day, with what was found of it."""
    from chimera.runner.doctor import last_run
    from chimera.store.journal import Journal

    with Journal.open() as journal:
        run = last_run(journal, target)
        return run, tuple(journal.findings(run.id)) if run is not None else ()


def write(
    post: Post,
    path: Path,
    run_id: str | None,
    recent: Sequence[Snapshot],
    loaded: Loaded,
    offset: float,
    known: Known | None = None,
    starts: Sequence[EngineStart] = (),
) -> None:
    """Write the bundle: the followed run's evidence, and the last ten minutes of this screen's readings."""
    from chimera.diagnosis.rules import diagnose
    from chimera.runner.doctor import Examination, bundle, examine_run, write_bundle
    from chimera.runner.worker import host_facts
    from chimera.store.journal import Journal

    try:
        live = this_moment(recent, loaded, offset, known or Known(), starts)
        examined = [Examination(live, tuple(diagnose(live)))]
        if run_id is not None:
            with Journal.open() as journal:
                examined.append(examine_run(journal, journal.run(run_id)))
        text, data = write_bundle(path, bundle(examined, host_facts()))
        post(Told(f"evidence written to {text} and {data.name}", "notice"))
    except ChimeraError as error:
        post(Told(str(error), "error"))


# -- the page of a finding ---------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Text from anywhere as plain words in Markdown."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def page(finding: Finding) -> str:
    """A finding as Markdown: evidence, causes, remedies, and what the guidance says of it."""
    from chimera.diagnosis.guidance import guidance

    lines = [f"## {escaped(finding.title)}", ""]
    lines += [f"- {escaped(_figure(one))}" for one in finding.evidence]
    if finding.causes:
        lines += ["", "### Causes, the likeliest first", ""]
        for cause in finding.causes:
            share = "" if cause.share is None else f", {cause.share:.0%} of it"
            lines.append(f"- **{escaped(cause.title)}**{share if cause.speaks_for else ''}")
            lines += [f"    - for: {escaped(_figure(one))}" for one in cause.speaks_for]
            lines += [f"    - against: {escaped(_figure(one))}" for one in cause.speaks_against]
            if cause.check:
                lines.append(f"    - to tell: {escaped(cause.check)}")
    if finding.remedies:
        lines += ["", "### What helps", ""]
        for remedy in finding.remedies:
            settings = " ".join(f"{name}={value}" for name, value in (remedy.options or {}).items())
            lines.append(f"- {escaped(remedy.text)}" + (f" (`f` tries {escaped(settings)})" if settings else ""))
    try:
        text = guidance(finding.code)
    except KeyError:
        return "\n".join(lines)
    return "\n".join([*lines, "", "---", "", text.text])


def _figure(piece: Evidence) -> str:
    window = "" if piece.window_s is None else f" over {piece.window_s:.0f} s"
    source = f"{piece.source} by {piece.via}" if piece.via else piece.source
    return f"{evidence_text(piece)}{window}, {source}"
