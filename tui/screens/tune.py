"""Tune: pick what is compared, see the plan before it starts, then the comparison as it goes on.

SciPy and Optuna never run in this process: plans and starts are the command line's own, in processes of their own, and
verdicts are read from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from chimera.domain.options import OPTION_NAMES, Options
from chimera.domain.run import ENDED, Run, Target, Trial
from chimera.domain.text import plain
from chimera.domain.verdict import Metric, Verdict, of_itself
from chimera.runner.follow import Compared, Update
from chimera.store.blame import aim_words, power_view
from chimera.widgets import format
from chimera.widgets.arms import ArmsPanel
from chimera.widgets.keys import KeyBar
from chimera.widgets.progress import STAGES
from chimera.widgets.progress import STATES as RUN_STATES
from chimera.widgets.trials import IntervalPlot, TrialState, TrialTable, TrialView

from .ask import Answer, Ask
from .base import AppScreen
from .outputs import Outputs

if TYPE_CHECKING:
    from ..app import ChimeraApp
    from ..commands import Said
    from ..state import Asked, LiveState

OBJECTIVES: dict[str, tuple[Metric, str]] = {
    "rate": ("decode_tok_s", "tok/s"),
    "ttft": ("ttft_s", "TTFT"),
    "completion": ("completion_s", "completion"),
    "vram": ("vram_bytes", "VRAM"),
    "energy": ("energy_j_per_token", "J/token"),
}
"""What the command line calls each objective, what the journal calls it, and the heading of its column."""
HEADINGS: dict[Metric, str] = {metric: name for metric, name in OBJECTIVES.values()} | {"aggregate_tok_s": "tok/s"}
LOOKING = "looking at the server and drawing the plan …"
UNPLANNED = "p shows the plan of this."
ANSWERS = "reading of two answers"
"""Name of the command that does it."""
HINT = (
    "Space takes a parameter with values that fit the model, enter types them (like 0,9,18,all).\n"
    "Then p shows the plan: what really differs, what will not fit, how long it takes and what can be seen."
)


class Tune(AppScreen):
    """A form and its plan; during a comparison the table of its candidates."""

    CSS_PATH = "tune.tcss"
    PANELS = ("#axes", "#plan", "#table", "#plot", "#arms")
    HELP: ClassVar[str | None] = """\
## Tune

Each candidate is measured in turns with the server's defaults, in a random order in every round, so that a machine that
warms up or slows down favours none. A verdict comes with the interval in which the true effect lies. Where none is
better, the default stays: differences that are noise are not recommended. `o` shows what the row under the cursor and
the baseline answer to one prompt, and shows it again until another prompt is asked there.

A run of `chimera agents` is shown here as well: its arms while it goes on, what each of them gave at its end.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "plan", "Plan", tooltip="What would be measured, and what it could show"),
        Binding("s", "start", "Start", tooltip="Start the comparison; it outlives this screen"),
        Binding("space", "space", "Take/Pause", tooltip="Take a parameter; pause or resume a comparison"),
        Binding("a", "apply", "Apply", tooltip="Put the recommendation to use, and prove it"),
        Binding("o", "outputs", "Read", tooltip="Read what the candidate and the baseline answer to one prompt"),
        Binding("n", "new", "New", tooltip="Plan another comparison"),
        Binding("escape,t", "leave", "Back"),
    ]

    def __init__(self, state: LiveState) -> None:
        super().__init__(state)
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
        self._draft = state.draft
        self._typing: str | None = None
        """The option whose values are typed, or `apply`, or `outputs`."""
        self._for: Asked | None = None
        """The run, and its candidate, that these two are typed for: by the end another run may be on the screen."""
        self._about = ""
        self._paper = ""
        """What stands in the place of the plan."""
        self._figures: Mapping[str, Any] | None = None
        """What is drawn of a run with agents."""

    def compose(self) -> ComposeResult:
        """The form above its plan; the table above its plot."""
        with Vertical(id="form"):
            axes = OptionList(id="axes", markup=False)
            axes.border_title = "Compare"
            yield axes
            yield Input(id="values")
            with VerticalScroll(id="paper"):
                yield Static(HINT, id="plan", markup=False)
        with Vertical(id="live"):
            yield Static(id="about", markup=False)
            yield TrialTable(id="table")
            yield IntervalPlot(id="plot")
            yield ArmsPanel(id="arms")
        yield KeyBar()

    def on_mount(self) -> None:
        """Show what is known."""
        self.query_one("#paper", VerticalScroll).border_title = "Plan"
        self._list()
        self.paint(self._state, 0.0)
        self.query_one("#table" if self.has_class("-live") else "#axes").focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the form are not offered beside the table, nor the other way round: the footer has room for one."""
        if action in {"plan", "start"}:
            return not self.has_class("-live")
        if action == "outputs" and self._state.unread is not None:
            return True
        if action in {"apply", "outputs", "new"}:
            return self.has_class("-live")
        return super().check_action(action, parameters)

    # The comparison that goes on -------------------------------------------------------------------------------------

    @property
    def compared(self) -> Update | None:
        """The followed run where it is a comparison that the user has not turned away from."""
        update = self._state.update
        if update is None or update.compared is None or update.run.id == self._draft.left:
            return None
        return update

    def paint(self, state: LiveState, now: float) -> None:
        """Show the newest of everything; what did not change is not drawn again."""
        self._state = state
        update = self.compared
        live = update is not None
        if live != self.has_class("-live"):
            self.set_class(live, "-live")
            self.refresh_bindings()
            if self._typing is None:
                self.query_one("#table" if live else "#axes").focus()
        if self._draft.of != (of := wanted(state)):
            self._draft.say(UNPLANNED if self._draft.values else HINT, of)
        if self._paper != (said := format.homely(self._draft.said or HINT)):
            self._paper = said
            self.query_one("#plan", Static).update(plain(said, one_line=False))
        figures = self.chimera.figures_of(update.run) if update is not None and update.run.kind == "agents" else None
        self.set_class(bool(figures), "-arms")
        if update is None or update.compared is None:
            return
        if figures and figures is not self._figures:
            self._figures = figures
            self.query_one("#arms", ArmsPanel).update(figures)
        said = about(update, self.query_one("#table", TrialTable).candidate)
        if said != self._about:
            self._about = said
            self.query_one("#about", Static).update(plain(said, one_line=False))
        heading = HEADINGS[update.compared.metric]
        self.query_one("#table", TrialTable).update(views(update, update.compared), metric=heading)
        rules = _rules(update.run)
        labels = {trial.candidate: arm_label(update.run, trial) or str(trial.requested) for trial in update.trials}
        self.query_one("#plot", IntervalPlot).update(
            update.compared.verdicts, band=float(rules.get("band", 0.02)), labels=labels
        )

    # The form --------------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        picker = self.query_one("#axes", OptionList)
        at = picker.highlighted or 0
        picker.clear_options()
        picker.add_option(Option(f" {'objective':16} {self._draft.objective}", id="objective"))
        for name in OPTION_NAMES:
            picker.add_option(Option(f" {name:16} {plain(self._draft.values.get(name, '–'))}", id=name))
        picker.highlighted = at

    @property
    def _chosen(self) -> str:
        picker = self.query_one("#axes", OptionList)
        option = picker.get_option_at_index(picker.highlighted or 0)
        return option.id or ""

    def action_space(self) -> None:
        """Take a parameter or leave it; during a comparison pause it or go on."""
        if self.has_class("-live"):
            self.chimera.action_pause()
            return
        name, draft = self._chosen, self._draft
        if name == "objective":
            names = list(OBJECTIVES)
            draft.objective = names[(names.index(draft.objective) + 1) % len(names)]
        elif name in draft.values:
            del draft.values[name]
        else:
            draft.values[name] = "auto"
        self._changed()

    @on(OptionList.OptionSelected, "#axes")
    def _picked(self, event: OptionList.OptionSelected) -> None:
        name = event.option_id or ""
        if name == "objective":
            self.action_space()
            return
        self._ask(name, self._draft.values.get(name, ""), f"values of {name}, separated by commas; empty leaves it out")

    def _ask(self, what: str, value: str, placeholder: str, of: Asked | None = None) -> None:
        self._typing, self._for = what, of
        line = self.query_one("#values", Input)
        line.placeholder, line.value = placeholder, value
        self.add_class("-typing")
        line.focus()

    @on(Input.Submitted, "#values")
    def _typed(self, event: Input.Submitted) -> None:
        what, of, text = self._typing, self._for, event.value.strip()
        self._stop_typing()
        if of is not None:
            if self.compared is None or self.compared.run.id != of[0]:
                self.notify(f"Run {of[0]} is not the one on the screen any more: nothing was begun.", markup=False)
            elif what == "outputs":
                self._outputs(self.compared.run, of, text)
            elif text:
                self._apply(self.compared.run, text)
        elif what is not None:
            self._draft.values.pop(what, None)
            if text:
                self._draft.values[what] = text
            self._changed()

    def _stop_typing(self) -> None:
        self._typing = self._for = None
        self.remove_class("-typing")
        self.query_one("#table" if self.has_class("-live") else "#axes").focus()

    def _changed(self) -> None:
        self._list()
        self._say(HINT if not self._draft.values else UNPLANNED)

    def _say(self, text: str) -> None:
        self._draft.say(text, wanted(self._state))
        self.paint(self._state, 0.0)

    # Plan, start, apply ----------------------------------------------------------------------------------------------

    def _ready(self) -> bool:
        if self._state.target is None:
            self._say(f"{self._state.explanation} Press m to pick a server.")
        elif not self._draft.values:
            self._say(HINT)
        else:
            return True
        return False

    def action_plan(self) -> None:
        """Draw the plan, in a process of its own."""
        if self.has_class("-live") or not self._ready() or self.chimera.must_wait("a plan can be drawn"):
            return
        asked = wanted(self._state)
        then = partial(planned, self.chimera, asked)
        if self.chimera.command("plan", *asked, "--dry-run", "--json", then=then):
            self._say(LOOKING)

    def action_start(self) -> None:
        """Start what was planned."""
        if self.has_class("-live") or not self._ready() or self.chimera.may_not("start a comparison"):
            return
        draft, target = self._draft, self._state.target
        if draft.drawn is None or target is None or draft.of != wanted(self._state):
            self._say("p first: a comparison starts from a plan that was seen.")
        elif nothing_in(draft.drawn):
            self.notify(plain(str(draft.drawn["words"])), markup=False)
        else:
            self._start(target, draft.of, int(draft.drawn["seed"]))

    @work(exit_on_error=False, group="start", exclusive=True)
    async def _start(self, target: Target, asked: tuple[str, ...], seed: int) -> None:
        agreed = await self._agreed(target, "A comparison makes", "a comparison can start")
        if agreed is None:
            return
        started = self.chimera.command(
            "start of a comparison", *asked, "--seed", str(seed), *agreed, "--detach", "--json",
            then=partial(begun, self.chimera, asked, self._draft.said), goes_on="A comparison is being started",
        )  # fmt: skip
        if started:
            self._say("starting …")

    async def _agreed(self, target: Target, begins: str, what: str) -> list[str] | None:
        """The flag that says that a server which is not ours may reload; None for a no, and for what has to wait."""
        if target.kind == "ollama" and not self._state.reload_agreed:
            yes = await self.chimera.ask_to_begin(
                what,
                Ask(
                    f"{begins} the server load its model again and again; other clients wait meanwhile. Its present "
                    "settings are put back at the end.",
                    (
                        Answer("y", "yes", "go on; do not ask again until I leave"),
                        Answer("n", "no", "leave the server as it is"),
                    ),
                    title="This server is not Chimera's",
                ),
            )
            if yes is None:
                return None
            self._state.reload_agreed = True
        elif self.chimera.must_wait(what):
            return None
        return ["--yes"] if self._state.reload_agreed else []

    def action_outputs(self) -> None:
        """Show what two settings have answered; where they have not, ask for a prompt that they are to answer."""
        asked = self._state.unread or self._under_cursor
        if asked in self._state.answers:
            self.show_answers(asked)
        else:
            self._ask_prompt()

    @property
    def _under_cursor(self) -> Asked | None:
        """Whose answers are meant beside the baseline's."""
        update = self.compared
        if update is None:
            return None
        picked = self.query_one("#table", TrialTable).candidate
        baseline = next((one.candidate for one in update.trials if one.role == "baseline"), None)
        return update.run.id, picked if picked and picked != baseline else ""

    def has_room_for(self, asked: Asked) -> bool:
        """Their run is what is looked at here, and nothing is typed or asked."""
        return self._typing is None and self.compared is not None and self.compared.run.id == asked[0]

    @work(exit_on_error=False, group="answers", exclusive=True)
    async def show_answers(self, asked: Asked) -> None:
        """Show two answers; from there a key leads to another prompt for the row under the cursor."""
        self._state.unread = None
        self.refresh_bindings()
        if await self.app.push_screen_wait(Outputs(self._state.answers[asked])):
            self._ask_prompt()

    def _ask_prompt(self) -> None:
        update, asked = self.compared, self._under_cursor
        if update is None or asked is None:
            self.notify("No comparison is on the screen: r, then f shows one.", markup=False)
        elif self.chimera.may_not("load settings"):
            return
        elif update.run.state not in ENDED:
            self.notify("The comparison goes on: answers can be read when its server is free.", markup=False)
        elif not self.chimera.must_wait("answers can be read"):
            self._ask("outputs", "", "a prompt for both; empty: a question of Chimera's", asked)

    @work(exit_on_error=False, group="outputs", exclusive=True)
    async def _outputs(self, run: Run, asked: Asked, prompt: str) -> None:
        agreed = await self._agreed(run.target, "Reading two answers makes", "answers can be read")
        if agreed is None:
            return
        named = ["--candidate", asked[1]] if asked[1] else []
        typed = [f"--prompt={prompt}"] if prompt else []
        begun = self.chimera.command(
            ANSWERS, "outputs", run.id, *named, *typed, *agreed, "--json",
            then=partial(answered, self.chimera, asked), goes_on="Two settings answer a prompt",
        )  # fmt: skip
        if begun:
            self._begun(f"{asked[1] or 'what is recommended'} and the baseline answer the same prompt …")

    def action_apply(self) -> None:
        """Ask for a name, then put the recommendation to use."""
        update = self.compared
        if update is None or self.chimera.may_not("apply settings"):
            return
        best: dict[str, Any] = (update.run.plan.get("result") or {}).get("recommendation") or {}
        if update.run.state != "done":
            self.notify("The comparison goes on: what is best is known at its end.", markup=False)
        elif not best or best.get("keep_default"):
            self.notify(plain(str(best.get("words", "Nothing is recommended."))), markup=False)
        elif not self.chimera.must_wait("it can be applied"):
            placeholder = "a name for it: of the derived model, or of a preset of yours"
            self._ask("apply", "", placeholder, (update.run.id, ""))

    def _apply(self, run: Run, name: str) -> None:
        if self.chimera.must_wait("it can be applied"):
            return
        begun = self.chimera.command(
            f"application of run {run.id}", "apply", run.id, "--as", name, "--json",
            then=partial(applied, self.chimera), goes_on=f"What run {run.id} recommends is being applied",
        )  # fmt: skip
        if begun:
            self._begun(f"applying what run {run.id} recommends as {plain(name)} …")

    def _begun(self, text: str) -> None:
        """Say what takes its time now, here and in the log."""
        self.chimera.tell(text)
        self.notify(plain(text), markup=False)

    def action_new(self) -> None:
        """Turn away from the run on the screen; it goes on."""
        if self.compared is not None:
            self._draft.left = self.compared.run.id
            self.paint(self._state, 0.0)

    def action_leave(self) -> None:
        """Out of the line being typed, else back."""
        if self._typing is not None:
            self._stop_typing()
        else:
            self.dismiss()


# -- what commands gave, whatever screen is shown by then --------------------------------------------------------------


def wanted(state: LiveState) -> tuple[str, ...]:
    """The comparison of the draft as the command line takes it; nothing where there is no server to compare on."""
    draft, target = state.draft, state.target
    if target is None:
        return ()
    typed = [part for name in OPTION_NAMES if name in draft.values for part in (flag(name), draft.values[name])]
    return ("sweep", *typed, "--objective", draft.objective, *server_flags(target))


def planned(app: ChimeraApp, of: tuple[str, ...], said: Said) -> None:
    """Show a plan, unless something else is wanted by now."""
    draft = app.state.draft
    if wanted(app.state) != of:
        return
    if said.code:
        draft.say(said.problem, of)
        draft.drawn = None
        return
    drawn = said.document
    draft.say(plan_text(drawn) + ("" if nothing_in(drawn) else "\n\ns starts it."), of)
    draft.drawn = drawn


def begun(app: ChimeraApp, of: tuple[str, ...], plan: str, said: Said) -> None:
    """Follow the comparison that was started; else keep its plan, and say why there is none."""
    run_id = app.begun(said)
    if wanted(app.state) == of:
        app.state.draft.say(plan if run_id is not None else said.problem, of)
    if run_id is not None:
        app.tell(f"comparison: run {run_id}")


def answered(app: ChimeraApp, asked: Asked, said: Said) -> None:
    """Keep two answers, and show them to somebody who waits for them; else tell where they are."""
    document = said.document if said.out else None
    if said.code not in {0, 1} or not document:
        app.tell(said.problem, "error")
    if not document:
        return
    app.state.answers[asked], app.state.unread = document, asked
    if isinstance(app.screen, Tune) and app.screen.has_room_for(asked):
        app.screen.show_answers(asked)
        return
    app.tell(f"Two settings of run {asked[0]} have answered: o on the Tune screen (t) shows it.", "notice")
    app.refresh_bindings()


def applied(app: ChimeraApp, said: Said) -> None:
    """Tell what was applied, and what its proof has shown."""
    if said.code not in {0, 1}:
        app.tell(said.problem, "error")
        return
    told = said.document
    made = (told.get("applied") or {}).get("made") or ""
    app.tell(f"{told['words']} Applied: {made}".strip(), "notice")
    words, held = proved(told)
    app.tell(words, "notice" if held else "warn")


def proved(applied: Mapping[str, Any]) -> tuple[str, bool]:
    """What the proof of an application has shown, from the document of `apply`, and whether it shows the gain again."""
    proof = applied.get("proof")
    if proof is None:
        return "No proof was run.", False
    shown = []
    for row in proof["verdicts"]:
        change, _ = of_itself(row["metric"], row["effect"], None)
        shown.append(f"{row['metric']} {row['verdict']}" + (f" {change - 1:+.1%}" if change is not None else ""))
    held = proof["state"] == "done" and any(row["verdict"] == "better" for row in proof["verdicts"][:1])
    state = "" if proof["state"] == "done" else f" ({proof['state']})"
    again = "" if held else " It does not show the gain again."
    return f"Proof {proof['run']}{state}: {', '.join(shown) or 'no verdict'}.{again}", held


def server_flags(target: Target) -> list[str]:
    """A target as the command line names it."""
    if target.kind == "embedded":
        return ["--embedded"]
    if target.command:
        import shlex

        return ["--start", shlex.join(target.command)]
    return ["--server", target.url or "", *(["--model", target.model] if target.model else [])]


def flag(name: str) -> str:
    """An option as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def _rules(run: Run) -> Mapping[str, Any]:
    """The rules of the stage in work, or of the last one."""
    stages: list[dict[str, Any]] = run.plan.get("stages", [run.plan])
    found: Mapping[str, Any] = next((one["rules"] for one in reversed(stages) if "rules" in one), {})
    return found


def plan_text(drawn: Mapping[str, Any]) -> str:
    """A plan for a person, from the document of `sweep --dry-run --json`."""
    lines = []
    asked = {one["candidate"]: one["requested"] for one in drawn["merged"]}
    for one in drawn["candidates"]:
        lines.append(f"{one['candidate']:4} {one['role']:9} {_options(one['requested'])}")
        lines += [f"     the same: {name} {_options(asked.get(name, {}))}" for name in one["merged"]]
        lines += [f"     {note}" for note in one["notes"]]
    lines += [f"{one['candidate']:4} not run: {one['reason']}" for one in drawn["ruled_out"]]
    if drawn["cohorts"]:
        lines.append(f"A large space: {drawn['cohorts']} cohorts of 8 are proposed and screened.")
    if nothing_in(drawn):
        return "\n".join([*lines, "", str(drawn["words"])])
    rounds, cost = drawn["rounds"], drawn["estimate"]
    parts = [f"{rounds['preflight']} sessions for the noise"] if rounds["preflight"] else []
    parts += [f"{rounds['screening']} rounds that choose"] if rounds["screening"] else []
    parts += [f"at most {rounds['confirmation']} rounds that decide"] if rounds["confirmation"] else []
    lines += ["", f"{', '.join(parts)}; at most {cost['sessions']} sessions, {cost['requests']} requests."]
    if cost["seconds"] is not None:
        lines.append(f"About {format.duration(cost['seconds_least'])} to {format.duration(cost['seconds'])}.")
    lines.append(str(drawn["words"]))
    return "\n".join(lines)


def nothing_in(drawn: Mapping[str, Any]) -> bool:
    """A plan has nothing to run: its words say why."""
    return not drawn["estimate"]["sessions"]


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "server defaults"


def about(update: Update, picked: str | None = None) -> str:
    """Where a comparison stands, and what held the newest session of the candidate under the cursor back."""
    run, progress = update.run, update.progress
    standing: Mapping[str, Any] = run.plan.get("standing") or {}
    first = [f"{run.kind} {run.id}", RUN_STATES[run.state][0]]
    if run.state in {"running", "paused"} and progress is not None:
        first.append(f"session {progress.session} of {progress.sessions}" if progress.sessions else "")
        first.append(f"{progress.candidate} {STAGES[progress.stage]}".strip())
        first.append(f"{format.duration(progress.eta_s)} left" if progress.eta_s is not None else "")
        first.append(progress.text)
    stages = [one["title"] for one in run.plan.get("stages", []) if "rules" in one]
    lines = [" · ".join(part for part in (*first, stages[-1] if stages else "") if part)]
    if standing.get("noise"):
        lines.append(str(standing["words"]))
    best = (run.plan.get("result") or {}).get("recommendation")
    if best and run.state == "done" and run.kind != "agents":  # the arms' figures stand below
        lines.append(f"{best['words']}{'' if best['keep_default'] else ' a applies it.'}")
    blamed = update.compared.blame.get(picked) if update.compared is not None and picked else None
    if blamed:
        lines.append(f"{picked}: {blamed}")
    front = (run.plan.get("result") or {}).get("pareto") or []
    if len(front) > 1:
        shown = "; ".join(
            f"{one['candidate']} {', '.join(aim_words(*value) for value in one['values'].items())}" for one in front
        )
        lines.append(f"not beaten on every aim: {shown}")
    if run.state in ENDED and _rules(run).get("objective") == "energy_j_per_token":
        lines += [one["words"] for one in power_view(run)]
    return "\n".join(lines)


def views(update: Update, compared: Compared) -> list[TrialView]:
    """The candidates as the table shows them."""
    standing: Mapping[str, Any] = update.run.plan.get("standing") or {}
    rows: dict[str, Verdict] = {row.candidate: row for row in compared.verdicts}
    active = update.progress.candidate if update.progress is not None and update.run.state == "running" else None
    shown = []
    for trial in update.trials:
        name = trial.candidate
        state, note = _state(trial, standing, active, compared.sessions.get(name, 0), rows.get(name))
        note = note or arm_label(update.run, trial)
        shown.append(
            TrialView(
                trial=trial,
                sessions=compared.sessions.get(name, 0),
                void=compared.void.get(name, 0),
                statistic=compared.figures.get(name),
                verdict=rows.get(name),
                state=state,
                note=note,
            )
        )
    for name, reason in (update.run.plan.get("ruled_out") or {}).items():
        shown.append(TrialView(Trial(name, "candidate", _asked(update.run, name)), state="ruled-out", note=reason))
    return shown


def arm_label(run: Run, trial: Trial) -> str:
    """How many agents on what, of a run that compares that."""
    return trial.notes[0] if run.kind == "agents" and trial.notes else ""


def _asked(run: Run, name: str) -> Options:
    return Options.of(run.plan.get("asked", {}).get(name, {}))


def _state(
    trial: Trial, standing: Mapping[str, Any], active: str | None, sessions: int, row: Verdict | None
) -> tuple[TrialState, str]:
    name = trial.candidate
    if name in standing.get("failed", {}):
        return "failed", str(standing["failed"][name])
    if name in standing.get("unlaunched", {}):
        return "ruled-out", f"needs as much as {standing['unlaunched'][name]}"
    if name in standing.get("same", {}):
        return "same", f"runs what {standing['same'][name]} runs"
    if name in standing.get("dropped", {}):
        return "dropped", str(standing["dropped"][name])
    if name == active:
        return "running", ""
    return ("done", "") if sessions and row is not None else ("done" if sessions else "waiting", "")
