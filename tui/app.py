"""The app: a table of contents. Threads feed the state, screens paint it, actions ask the journal."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Input
from textual.worker import Worker, WorkerState

from chimera.cli.ui import UiOptions
from chimera.domain.options import LOAD_OPTIONS
from chimera.domain.preset import Preset
from chimera.domain.run import Run, Target
from chimera.domain.server import ServerInfo
from chimera.domain.text import plain
from chimera.errors import ConfigError
from chimera.telemetry.loaded import changed_models
from chimera.widgets import format

from . import commands, feeds, requests, screens
from .commands import Answered, Said
from .messages import (
    Inspected,
    LeftChanged,
    ModelsListed,
    RunChanged,
    ServerSeen,
    ServersFound,
    SnapshotTaken,
    TerminalLost,
    Told,
    Worked,
)
from .screens.dashboard import Dashboard
from .state import OVER, Ended, LiveState, Work

if TYPE_CHECKING:
    from .screens.ask import Ask


def open_ui(options: UiOptions) -> int:
    """Run the UI until the user leaves; says on the way out what goes on without it. Returns the exit code."""
    if "TEXTUAL_DRIVER" not in os.environ:  # which shows it elsewhere, in a browser say
        for descriptor, name in ((0, "stdin"), (2, "stderr")):
            if not os.isatty(descriptor):
                raise ConfigError(f"The UI needs a terminal, and {name} is none. `chimera status --watch` prints text.")
    app = ChimeraApp(options)
    app.run()
    if app.journal_thread is not None:
        app.journal_thread.join(feeds.LEAVE_S if app.journal.busy else feeds.CLOSE_S)
    gc.freeze()  # the search for cycles at the interpreter's end takes most of a second
    if app.farewell:
        sys.stdout.write(f"{app.farewell}\n")
    return app.return_code or 0


IDLE_PAINT_S = 0.95
FIGURES = "computation of figures"
SETTLED_S = 4.0
"""What the threads import is there by then."""
NOTES: dict[str, Literal["information", "warning", "error"]] = {
    "notice": "information",
    "warn": "warning",
    "error": "error",
}
PALETTE = {
    "presets": "Presets",
    "tune": "Tune: compare settings",
    "doctor": "Doctor: what is wrong",
    "runs": "Runs: history, export, resume",
    "alerts": "Alerts",
    "server": "Pick server and model",
    "pause": "Pause or resume the run",
    "stop": "Stop the run",
    "help": "Help: keys and words",
}
"""Bindings that are commands of the palette as well, by their ids."""


class ChimeraApp(App[None]):
    """Watches and steers; measures nothing itself."""

    TITLE = "Chimera"
    # A screen's own file has Textual parse all styles a second time, which here the first paint would wait for.
    CSS_PATH = Path(__file__).with_name("screens") / "dashboard.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(digit), f"preset({digit})", "Preset", show=False, tooltip="Run the preset on this key")
            for digit in range(1, 10)
        ),
        Binding(
            "p",
            "presets",
            "Presets",
            key_display="1-9,p",
            id="presets",
            tooltip="What each preset asks, and what is true of it here",
        ),
        Binding("space", "pause", "Pause", id="pause", tooltip="Pause or resume the run"),
        Binding("x", "stop", "Stop", id="stop", tooltip="Stop the run; what was measured is kept"),
        Binding("t", "tune", "Tune", id="tune", tooltip="Compare settings, and see what is really better"),
        Binding("d", "doctor", "Doctor", id="doctor", tooltip="What is wrong, why, and what helps"),
        Binding("r", "runs", "Runs", id="runs", tooltip="What was measured before; export, follow, resume"),
        Binding("m", "server", "Model", id="server", tooltip="Pick server and model"),
        # The log says that there are any, and the key; the footer of a narrow terminal is full.
        Binding("l", "alerts", "Alerts", id="alerts", show=False, tooltip="What went wrong while nobody looked"),
        Binding("question_mark", "help", "Help", key_display="?", id="help", tooltip="Keys, and what the words mean"),
        Binding("q", "quit", "Leave", id="leave", tooltip="A run goes on"),
    ]

    def __init__(self, options: UiOptions) -> None:
        super().__init__()
        self.options = options
        self.state = LiveState()
        self.farewell = ""
        over_ssh = bool(os.environ.get("SSH_CONNECTION"))
        self.paint_s = 1.0 if over_ssh else 0.5
        self._painted = 0.0
        self.telemetry = feeds.TelemetryFeed(self.post, 1.0)
        self.journal = feeds.JournalFeed(self.post)
        self.journal_thread: Thread | None = None
        self._left: list[LeftChanged] = []
        """What was left behind and was not asked about yet."""
        self.journal.follow(options.attach)
        if options.embedded:
            self.state.target = Target("embedded", assume_yes=True)

    def get_default_screen(self) -> Dashboard:
        """What stands under all other screens."""
        return Dashboard()

    def get_driver_class(self) -> type[Driver]:
        """Textual's own; on Unix one that sees when the terminal has gone."""
        chosen = super().get_driver_class()
        if chosen.__name__ != "LinuxDriver":
            return chosen
        from .terminal import Terminal

        return Terminal

    def on_mount(self) -> None:
        """Start the threads; the first paint does not wait for them."""
        self.set_interval(self.paint_s, self._tick)
        self.call_after_refresh(self.start_feeds)

    def start_feeds(self) -> None:
        """Everything that needs heavy imports begins here, after the first paint."""
        feeds.begin("telemetry", self.post, self.telemetry.run)
        feeds.begin("screens", self.post, screens.load)
        self.journal_thread = feeds.begin("journal", self.post, self.journal.run)
        if self.state.target is None:
            self.look_for_servers(self.options.server)
        else:
            self._inspect(self.state.target)
        # What is there by then stays: looked through for cycles now and again, it held up a key by 60 to 90 ms.
        self.set_timer(SETTLED_S, gc.freeze)

    def on_unmount(self) -> None:
        """The threads may end."""
        self.telemetry.leave()
        self.journal.leave()

    # Threads -----------------------------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """From a thread, which may outlive the app by a moment."""
        with suppress(RuntimeError):
            self.post_message(message)

    def look_for_servers(self, url: str | None) -> None:
        """Ask around which servers answer."""
        feeds.begin("detection", self.post, lambda: feeds.find_servers(self.post, url))

    def ask_models(self, server: ServerInfo) -> None:
        """Ask a server for its models."""
        feeds.begin("list of models", self.post, lambda: feeds.list_models(self.post, server))

    def command(
        self, name: str, *arguments: str, then: Callable[[Said], object], goes_on: str = "", engine: bool = True
    ) -> bool:
        """Ask our own command line, in a process which no screen's end ends.

        Args:
            name: What it is for; one of a name at a time.
            arguments: As they are typed.
            then: Gets what it said, in the app; the screen that asked may have gone by then.
            goes_on: What to say of it to somebody who leaves meanwhile.
            engine: It loads an engine or begins a run.

        Returns:
            Whether it was begun: another one of this name may be at work, which is then said.
        """
        if name in self.state.working:
            self.notify(f"The {plain(name)} is still at work.", markup=False)
            return False

        def ask() -> None:
            said = Said(2, "", f"The {name} has ended by a defect.")
            try:
                said = commands.ask_chimera(*arguments)
            finally:  # whatever it was: what waits for its end must not wait for ever
                self.post(Answered(name, said, then))

        feeds.begin(name, self.post, ask)
        self.state.working[name] = Work(goes_on, engine)
        return True

    def _inspect(self, target: Target) -> None:
        feeds.begin("inspection", self.post, lambda: feeds.inspect(self.post, target))

    @on(Worker.StateChanged)
    def worker_changed(self, event: Worker.StateChanged) -> None:
        """Tell a defect in what the app has begun, or one of its screens: this message goes no way up by itself."""
        if event.state == WorkerState.ERROR:
            self.tell(f"{event.worker.group} has ended by a defect: {event.worker.error!r}", "error")

    # What the threads say ----------------------------------------------------------------------------------------

    @on(SnapshotTaken)
    def _snapshot(self, message: SnapshotTaken) -> None:
        state = self.state
        state.parts, state.roof = message.parts, message.roof
        state.see(message.snapshot)
        if state.engaged is None:  # else they are those of work of ours
            state.starts += message.starts
        state.book.own_pids = frozenset(state.watched.engine_pids)
        for alert in state.book.see(message.snapshot):
            self.log_line(alert.title, "error" if alert.severity == "error" else "warn")

    @on(ServerSeen)
    def _server_seen(self, message: ServerSeen) -> None:
        before, self.state.seen = self.state.seen, message.sample
        target = self.state.target
        if target is not None and self.state.at_work is None and changed_models(before, message.sample):
            self._inspect(target)  # what is loaded is another, so what runs is as well

    @on(RunChanged)
    def _run_changed(self, message: RunChanged) -> None:
        before = self.state.update.run.state if self.state.update else None
        was_working = self.state.at_work is not None
        stage = self.state.progress.stage if self.state.progress else None
        other = self.state.take(message.update)
        run, progress, now = message.update.run, self.state.progress, time.monotonic()
        for event in message.update.events:
            if self.board is not None:
                self.board.log_line(event.text, at=event.at, level=event.level)
        if other:
            self.state.book.mark(now, "preset" if run.preset else "run", run.preset or run.kind)
            if not self.state.knows(run.target):
                self._inspect(run.target)
        if progress is not None and progress.stage == "loading" and stage != "loading" and run.target.url is None:
            self.state.book.mark(now, "load", "the engine of this run")
        if run.state == "crashed" and before != "crashed" and run.resumable:
            self.tell(f"run {run.id}: its worker is gone. `chimera resume {run.id}` goes on where it was.", "warn")
        if before in feeds.ACTIVE and run.state not in feeds.ACTIVE and self.state.target is not None:
            self._inspect(self.state.target)  # settings were put back
        self._watch()
        if other or run.state != before:
            self.paint()
        if (self.state.at_work is not None) is not was_working:
            self.refresh_bindings()

    @on(Worked)
    def _worked(self, message: Worked) -> None:
        was_working = self.state.at_work is not None
        self.state.hear(message.run, message.progress, message.used)
        self._watch()
        if (self.state.at_work is not None) is not was_working:
            self.refresh_bindings()

    def _watch(self) -> None:
        """Telemetry looks at what the state says."""
        watched = self.state.watched
        if not (watched.loaded.running or self.state.running):
            self.state.seen = None
        self.telemetry.watch(watched)

    @on(ServersFound)
    def _servers_found(self, message: ServersFound) -> None:
        self.state.servers, self.state.explanation = message.found, message.explanation
        if message.found and self.state.target is None:
            first = message.found[0]
            self.choose(Target(first.kind, url=first.url, model=self.options.model))
        elif not message.found and self.state.target is None:
            self.tell(message.explanation, "warn")
        if len(self.screen_stack) > 1 and isinstance(self.screen, screens.PickServer):
            self.screen.show_servers(message)

    @on(ModelsListed)
    def _models_listed(self, message: ModelsListed) -> None:
        if len(self.screen_stack) > 1 and isinstance(self.screen, screens.PickServer):
            self.screen.show_models(message)

    @on(Inspected)
    def _inspected(self, message: Inspected) -> None:
        self.state.inspect(message.target, message.loaded)
        if message.loaded.problem and message.target == self.state.target:
            self.tell(message.loaded.problem, "error")
        self._watch()

    @on(LeftChanged)
    def _left_changed(self, message: LeftChanged) -> None:
        if not self.options.read_only:
            self._left.append(message)
            self._ask_of_left()

    def _ask_of_left(self) -> None:
        """Ask about what was left behind, when it can be put back and the keys of the question are not typed."""
        run = self.state.at_work
        if run is not None:  # one that goes on puts back itself what it has changed
            self._left = [one for one in self._left if one.run_id != run.id]
        if not self._left or self.engaged is not None:
            return
        if not isinstance(self.screen, ModalScreen) and not isinstance(self.focused, Input):
            self._put_back(self._left.pop(0))

    @work(exit_on_error=False, group="left")
    async def _put_back(self, message: LeftChanged) -> None:
        answer = await self.push_screen_wait(
            screens.Ask(
                f"Run {message.run_id} was killed and could not put back the settings of {message.server_url}.",
                (
                    screens.Answer("y", "yes", "put them back now"),
                    screens.Answer("l", "later", "ask again at the next start"),
                    screens.Answer("n", "never", "leave the server as it is"),
                ),
                title="Settings left behind",
            )
        )
        if answer == "yes" and self.must_wait("they can be put back"):
            self._left.append(message)
        elif answer == "yes":
            self.journal.do(
                lambda journal: requests.put_back(journal, message.run_id, message.server_url, self._say_later)
            )
        elif answer == "never":
            self.journal.do(lambda journal: requests.forget_changes(journal, message.run_id, message.server_url))

    def _say_later(self, words: str) -> None:
        """From a thread."""
        self.post_message(Told(words, "notice"))

    @on(Answered)
    def _answered(self, message: Answered) -> None:
        if self.state.working.pop(message.name).engine:
            self.state.used = None  # it was the command's own: nothing is begun beside another
        try:
            message.then(message.said)
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # it is not the document it should be
            self.tell(f"{message.name}: the command line's answer cannot be read: {error!r}", "error")
        self.paint()

    def begun(self, said: Said) -> str | None:
        """Follow the run that a command has started, and give its id; None, with the reason told, where it has not."""
        try:
            run_id = str(said.document["run"]["id"])
        except (ValueError, LookupError, TypeError):
            self.tell(said.problem, "error")
            return None
        self.state.draft.left = None
        self.journal.follow(run_id, begun=True)
        return run_id

    def follow(self, run_id: str) -> None:
        """Show this run from now on, also after its end, and whatever was turned away from before."""
        self.state.draft.left = None
        self.journal.follow(run_id, stay=True)

    def figures_of(self, run: Run) -> Mapping[str, Any] | None:
        """What each agent got in a run that has ended; None until that is computed, which waits for a quiet moment.

        It takes SciPy, so it is done by a process of its own, and never beside a measurement.
        """
        if run.state not in OVER:
            return None
        end = (run.id, run.state, run.ended_at)
        if end not in self.state.figures and self.state.at_work is None and FIGURES not in self.state.working:
            then = partial(self._figured, end)
            self.command(FIGURES, "runs", "show", run.id, "--json", then=then, engine=False)
        return self.state.figures.get(end)

    def _figured(self, end: Ended, said: Said) -> None:
        self.state.figures[end] = {}
        if said.code:
            self.tell(said.problem, "error")
        else:
            self.state.figures[end] = said.document.get("agents") or {}

    @on(TerminalLost)
    def _terminal_lost(self) -> None:
        """Leave, as if the terminal had hung up; a run goes on."""
        self.exit(return_code=4)

    @on(Driver.SignalResume)
    def _resumed(self) -> None:
        """Paint everything: the shell has written over it."""
        self.refresh(layout=True)

    @on(Told)
    def _told(self, message: Told) -> None:
        self.tell(message.text, message.level)

    # Painting ----------------------------------------------------------------------------------------------------

    @property
    def board(self) -> Dashboard | None:
        """The dashboard, once it is there."""
        for screen in self.screen_stack:
            if isinstance(screen, Dashboard) and screen.has_panels:
                return screen
        return None

    def _tick(self) -> None:
        """Paint: during a run at each tick, for its tokens; else once a second, as readings come."""
        self._ask_of_left()
        if self.state.running or time.monotonic() - self._painted >= IDLE_PAINT_S:
            self.paint()

    def paint(self) -> None:
        """Show the newest of everything."""
        now = self._painted = time.monotonic()
        for screen in self.screen_stack:
            paint = getattr(screen, "paint", None)
            if paint is not None and screen.is_mounted and getattr(screen, "has_panels", True):
                paint(self.state, now)

    def log_line(self, text: str, level: str) -> None:
        """A line in the log, now."""
        if self.board is not None:
            self.board.log_line(text, at=time.time(), level=level)

    def tell(self, text: str, level: str = "info") -> None:
        """A line in the log; problems also as a note that is seen from every screen, news where the log is not."""
        text = format.homely(text)
        self.log_line(text, level)
        if level in NOTES and (level != "notice" or not isinstance(self.screen, Dashboard)):
            self.notify(plain(text), severity=NOTES[level], markup=False, timeout=8)

    # Actions -----------------------------------------------------------------------------------------------------

    def choose(self, target: Target) -> None:
        """The next run goes there."""
        self.state.target = target
        self.state.starts.clear()
        self._inspect(target)
        server = self.state.server
        if server is not None:
            self.tell(f"server: {server.title} {server.url}".rstrip())
        self._watch()

    def action_preset(self, digit: int) -> None:
        """Run the preset on this digit."""
        if self.may_not("start a run"):
            return
        preset = requests.preset_on(digit)
        if preset is None:
            folder = format.homely(str(requests.preset_folder()))
            self.notify(f"No preset on {digit}: put one into {folder}.", markup=False)
        else:
            self.run_preset(preset)

    def run_preset(self, preset: Preset) -> bool:
        """Run it where the next run goes; False where that cannot be, which is said."""
        if self.may_not("start a run"):
            return False
        if self.state.target is None:
            self.notify(f"{plain(self.state.explanation)} Press m to pick one.", severity="warning", markup=False)
            return False
        if self.state.at_work is None and self.must_wait("a preset can run"):
            return False
        self._start(preset)
        return True

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def _start(self, preset: Preset) -> None:
        """Ask what has to be asked, then hand the run to a worker."""
        target = self.state.target
        assert target is not None
        chosen: str | None = None
        current = self.state.at_work
        if current is not None:
            chosen = await self.push_screen_wait(
                screens.Ask(
                    f"Run {current.id} goes on. What about “{preset.title}”?",
                    (
                        screens.Answer("n", "queue", "run it next, after this one"),
                        screens.Answer("r", "replace", "stop this run (it can be resumed) and run it now"),
                        screens.Answer("c", "cancel", "leave things as they are"),
                    ),
                    title="A run goes on",
                )
            )
            if chosen not in {"queue", "replace"}:
                return
        loads = preset.options.as_dict().keys() & LOAD_OPTIONS
        if target.kind == "ollama" and loads and not self.state.reload_agreed:
            names = ", ".join(sorted(loads))
            yes = await self.push_screen_wait(
                screens.Ask(
                    f"“{preset.title}” sets {names}. {self.state.server.title if self.state.server else 'The server'} "
                    "may have to reload its model for it; other clients wait meanwhile. Its present settings are put "
                    "back at the end of the run.",
                    (
                        screens.Answer("y", "yes", "go on; do not ask again until I leave"),
                        screens.Answer("n", "no", "leave the server as it is"),
                    ),
                    title="This server is not Chimera's",
                )
            )
            if yes != "yes":
                return
            self.state.reload_agreed = True
        # It waits for a run that was asked about; beside what has begun since, or is no run, it is not started.
        if (current is None or self.state.at_work is None) and self.must_wait("a preset can run"):
            return
        if current is not None and chosen == "replace":
            self.journal.do(partial(requests.send, run_id=current.id, command="stop"))
        after = current.id if current is not None else None
        target = requests.agreed(target, self.state.reload_agreed)
        show = chosen != "queue"
        self.tell(f"starting “{preset.title}” …" if show else f"“{preset.title}” comes next")
        self.journal.do(lambda journal: requests.start(journal, self.journal, target, preset, after, show=show))

    def action_pause(self) -> None:
        """Pause or resume the run that is worked on."""
        run = self.state.at_work
        if self.may_not("pause a run") or run is None:
            return
        # The request in flight is finished first: until then this run looks as it did, and the key means the opposite.
        command: Literal["pause", "resume"] = "resume" if self.state.paused(run) else "pause"
        self.state.steered = (run.id, run.state, command)
        if not self.state.running:
            self.tell(f"{command} of run {run.id}, which is not the one on the screen", "notice")
        self.journal.do(partial(requests.send, run_id=run.id, command=command))

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_stop(self) -> None:
        """Stop the run that is worked on, after one question."""
        run = self.state.at_work
        if self.may_not("stop a run") or run is None:
            return
        answer = await self.push_screen_wait(
            screens.Ask(
                f"Stop run {run.id}? What was measured is kept, and `chimera resume {run.id}` goes on.",
                (screens.Answer("y", "stop", "stop it"), screens.Answer("n", "no", "let it run")),
                title="Stop",
            )
        )
        if answer == "stop":
            self.journal.do(partial(requests.send, run_id=run.id, command="stop"))

    @work(exit_on_error=False, group="ask", exclusive=True)
    async def action_server(self) -> None:
        """Pick server and model."""
        if self.may_not("change the server"):
            return
        if not self.state.servers:
            self.look_for_servers(None)
        target = await self.push_screen_wait(screens.PickServer(self.state.servers, self.state.explanation))
        if target is not None:
            self.choose(target)

    def action_tune(self) -> None:
        """Compare settings."""
        self._go(screens.Tune(self.state))

    def action_doctor(self) -> None:
        """What is wrong, why, and what helps."""
        self._go(screens.Doctor(self.state))

    def action_presets(self) -> None:
        """What each preset asks, and what is true of it here."""
        self._go(screens.Presets(self.state))

    def action_runs(self) -> None:
        """What was measured before."""
        self._go(screens.Runs(self.state))

    def _go(self, screen: Screen[None]) -> None:
        """Open a screen over the dashboard, in place of the one that is there: one key leads back."""
        if isinstance(self.screen, Dashboard | ModalScreen):
            self.push_screen(screen)
        else:
            self.switch_screen(screen)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that steer a run are there while one goes on; a question is answered before anything else."""
        if action == "command_palette":
            return not isinstance(self.screen, ModalScreen)
        return self.state.at_work is not None if action in {"pause", "stop"} else True

    def action_alerts(self) -> None:
        """What went wrong."""
        self.push_screen(screens.Alerts(self.state))

    def action_help(self) -> None:
        """Keys, words, and the help of the focused panel."""
        inside = [] if self.focused is None else self.focused.ancestors_with_self
        about = next((one.HELP for one in (*inside, self.screen) if isinstance(one, Widget) and one.HELP), None)
        self.push_screen(screens.Help(about))

    async def action_quit(self) -> None:
        """Leave; a run goes on."""
        run = self.state.at_work
        if run is not None:
            self.farewell = f"run {run.id} goes on: `chimera attach {run.id}` or `chimera` comes back to it."
            with suppress(OSError):
                from chimera.runner.launch import ends_with_login

                if ends_with_login():
                    self.farewell += "\nThis system ends your processes at logout: the run ends with your login."
        goes_on = [f"{one.goes_on}." for one in self.state.working.values() if one.goes_on]
        self.farewell = "\n".join([*self.farewell.splitlines(), *goes_on])
        self.exit()

    def may_not(self, what: str) -> bool:
        """This UI may only look, which is then said."""
        if self.options.read_only:
            self.notify(f"--read-only: this UI cannot {what}.", severity="warning")
        return self.options.read_only

    @property
    def engaged(self) -> tuple[str, str] | None:
        """What is at work on an engine here, as the state has it, or what the journal's thread has not begun yet."""
        if self.state.engaged is None and self.journal.busy:  # a run is created or resumed, or a server is put back
            return "What you asked for before is being done", "that"
        return self.state.engaged

    def must_wait(self, what: str) -> bool:
        """Something is at work on an engine here and would be disturbed, which is then said."""
        engaged = self.engaged
        if engaged is not None:
            self.notify(f"{engaged[0]}: {what} when {engaged[1]} has ended.", markup=False)
        return engaged is not None

    async def ask_to_begin(self, what: str, question: Ask) -> str | None:
        """Ask before something is begun that needs an engine to itself.

        Args:
            what: Can be done only when nothing else is at work: neither as it is asked nor as it is answered.
            question: Its answer `no` is one.

        Returns:
            The answer; None for a no, and for what has to wait.
        """
        if self.must_wait(what):
            return None
        answer = await self.push_screen_wait(question)
        return None if answer in {None, "no"} or self.must_wait(what) else answer

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: Textual's own, and ours."""
        yield from super().get_system_commands(screen)
        for preset in requests.presets():
            key = f" (key {preset.digit})" if preset.digit else ""
            title, about = (
                plain(text).replace("[", "\\[")  # the palette takes them as markup
                for text in (f"Run {preset.title}{key}", str(preset.options))
            )
            yield SystemCommand(title, about, lambda one=preset: self.run_preset(one))
        for _, one in self._bindings:
            if one.id in PALETTE and self.check_action(one.action, ()):
                about = f"{one.tooltip} (key {one.key if one.key.isalpha() else self.get_key_display(one)})"
                yield SystemCommand(PALETTE[one.id], about, getattr(self, f"action_{one.action}"))
