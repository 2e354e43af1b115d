"""Puts a recommended configuration to use: as a model, a command line or a preset, whatever the server takes."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from chimera.backends import ollama_create
from chimera.backends.llama_server import FLAGS, StartedLlamaServer, flags_for, listener_of, read_flags, without_flags
from chimera.backends.wire import Wire
from chimera.domain.options import Options
from chimera.domain.preset import Preset
from chimera.domain.run import Run, Target, Trial
from chimera.domain.text import plain
from chimera.errors import ConfigError
from chimera.presets.loader import all_presets, check_preset, write_preset
from chimera.presets.schema import USER_DIGITS

from .study import recommendation

if TYPE_CHECKING:
    from chimera.store.journal import Journal

Form = Literal["model", "command", "preset"]

PROOF_ROUNDS = 8
"""Rounds of the proof: the fewest of any confirmation."""

_ENVIRONMENT = {
    "flash_attention": "OLLAMA_FLASH_ATTENTION",
    "kv_cache_type": "OLLAMA_KV_CACHE_TYPE",
    "num_parallel": "OLLAMA_NUM_PARALLEL",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run recommends."""

    candidate: str
    keep_default: bool
    words: str
    options: Options = field(default_factory=Options)
    """What it asks for, with the values that really ran."""
    changed: tuple[str, ...] = ()
    """Where these differ from what was asked, one sentence each."""


@dataclass(frozen=True, slots=True)
class Application:
    """How a choice is put to use, before anything is done."""

    form: Form
    name: str
    """Of the model or preset; empty for a command line."""
    text: str
    """The Modelfile, the command line, or the preset's settings."""
    parameters: dict[str, Any]
    """What is written into it."""
    notes: tuple[str, ...] = ()
    base: str = ""
    """The model that a derived one is made of."""
    digit: int | None = None


def choose(journal: Journal, run: Run, candidate: str | None = None) -> Choice:
    """What a run recommends, or the candidate that is named instead.

    Raises:
        ConfigError: the run compares nothing, or has no such candidate.
    """
    trials = {trial.candidate: trial for trial in journal.trials(run.id)}
    of = {name: trial for trial in trials.values() for name in (trial.candidate, *trial.merged)}
    if candidate is not None:
        if candidate not in of:
            raise ConfigError(f"run {run.id} has no candidate {plain(candidate)!r}; it has {', '.join(of)}.")
        trial = of[candidate]
        if trial.role == "baseline":
            words = f"{candidate} is the baseline: keep the default."
            return Choice(trial.candidate, True, words)
        return _chosen(journal, run, trial, f"{candidate} as named, whatever the run recommends.")
    if "rules" in run.plan or "stages" in run.plan:
        said = recommendation(journal, run)
        if said.keep_default:
            return Choice(said.candidate, True, said.words)
        best = trials[said.candidate]
        if run.kind == "agents" and any(best.requested == one.requested for one in trials.values() if one is not best):
            label = ", ".join(best.notes)
            return Choice(
                said.candidate, True, f"{label}: better, but by agents or servers and no setting: nothing to apply."
            )
        return _chosen(journal, run, best, said.words)
    return _by_verdicts(journal, run, trials)


def _by_verdicts(journal: Journal, run: Run, trials: Mapping[str, Trial]) -> Choice:
    """For a run that follows no plan of ours: the largest gain that is shown, if any is."""
    rows = [row for row in journal.verdicts(run.id) if row.metric == "decode_tok_s" and row.candidate in trials]
    if not rows:
        raise ConfigError(
            f"run {run.id} ({run.kind}) has no verdicts: it recommends nothing. Apply a sweep, tune or validate."
        )
    better = sorted((row for row in rows if row.verdict == "better"), key=lambda row: -(row.effect or 0.0))
    if not better:
        return Choice(rows[0].against, True, "Keep the default: nothing is shown to be better.")
    best = better[0]
    words = f"{best.candidate} is better than {best.against} in decode rate: {(best.effect or 1.0) - 1:+.1%}."
    return _chosen(journal, run, trials[best.candidate], words)


def _chosen(journal: Journal, run: Run, trial: Trial, words: str) -> Choice:
    effective = journal.effective(run.id, trial.candidate)
    runs = effective.options.as_dict() if effective else {}
    asked = trial.requested.as_dict()
    # Automatic layers stay automatic: the number that came of it holds for this machine's memory of that hour.
    kept = {
        name: value if name == "num_gpu" and isinstance(value, int) and value < 0 else runs.get(name, value)
        for name, value in asked.items()
    }
    changed = tuple(
        f"{name} {asked[name]} was asked for and {kept[name]} runs: {kept[name]} is written."
        for name in asked
        if kept[name] != asked[name]
    )
    return Choice(trial.candidate, False, words, Options.of(kept), changed)


def draw(run: Run, choice: Choice, *, name: str | None = None, target: Target | None = None) -> Application:
    """How the choice is put to use on the run's server (or `target`); changes nothing.

    Raises:
        ConfigError: this kind of server cannot be told, or the name is none.
        BackendError: the server must be asked and does not answer.
    """
    target = target or run.target
    if choice.keep_default:
        raise ConfigError(choice.words)
    if target.kind == "ollama":
        return _model(run, choice, name, target)
    if target.kind == "llama_server":
        return _command(run, choice, name, target)
    if target.kind == "embedded":
        return _preset(run, choice, name)
    raise ConfigError(
        "An OpenAI-compatible server takes no load options from clients: start it with "
        f"{choice.options}, in its own words."
    )


def _model(run: Run, choice: Choice, name: str | None, target: Target) -> Application:
    # What another kind of server, or a file, calls the model is no name there.
    known = run.model.name if run.model and run.kind != "import" and run.target.kind == "ollama" else None
    base = target.model or known
    if base is None:
        raise ConfigError(f"run {run.id} names no model: give it with --model.")
    parameters = ollama_create.parameters_of(choice.options)
    others = {key: value for key, value in choice.options.as_dict().items() if key in _ENVIRONMENT}
    notes = [*choice.changed]
    notes += [
        f"{key} {value} belongs to the server: start `ollama serve` with {_ENVIRONMENT[key]}={_word(key, value)}."
        for key, value in others.items()
    ]
    if not parameters:
        said = f" {' '.join(notes)}" if notes else ""
        raise ConfigError(f"Nothing of {choice.options} can be written into a model.{said}")
    chosen = ollama_create.checked_name(name) if name else ollama_create.derived_name(base)
    return Application(
        "model", chosen, ollama_create.modelfile(base, parameters), dict(parameters), tuple(notes), base=base
    )


def _word(key: str, value: object) -> object:
    return {"on": 1, "off": 0}.get(str(value), value) if key == "flash_attention" else value


def _command(run: Run, choice: Choice, name: str | None, target: Target) -> Application:
    if name:
        raise ConfigError("--as names a model or a preset; for llama-server the command line is printed.")
    notes = [*choice.changed]
    sampling = choice.options.sampling.as_dict()
    if sampling:
        notes.append(f"{choice.options.sampling} go with each request; llama-server takes them as its defaults too.")
    if target.command:
        server = StartedLlamaServer(target.command, target.folder)
        asyncio.run(server.connect())
        fixed = read_flags(target.command[1:])
        wanted = flags_for(choice.options.load, fixed)
        line = [target.command[0], *without_flags(target.command[1:], frozenset(wanted))]
    else:
        listener = listener_of(target.url) if target.url else None
        path = run.model.path if run.model else None
        fixed = dict(listener.flags) if listener else {}
        wanted = flags_for(choice.options.load, fixed)
        model = fixed.get("model") or path
        line = ["llama-server", "-m", model or "MODEL.gguf"]
        keep = {key: value for key, value in fixed.items() if key not in wanted and key not in ("model",)}
        for key, value in keep.items():
            line += [FLAGS[key][0], value]
        notes.append(
            "The server runs already and is not ours: end it and start it with this."
            if model
            else "Its model file is not known from here: put its path in the place of MODEL.gguf."
        )
    for key, value in wanted.items():
        line += [FLAGS[key][0], value]
    for key, setting in sampling.items():
        line += [_SAMPLING_FLAGS[key], str(setting)]
    if target.command:
        line = _accepted(server.help_text, line, notes)
    return Application("command", "", shlex.join(line) + "\n", {**choice.options.as_dict()}, tuple(notes))


_SAMPLING_FLAGS = {
    "temperature": "--temp",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "repeat_penalty": "--repeat-penalty",
}


def _accepted(help_text: str, line: list[str], notes: list[str]) -> list[str]:
    """The line in the words of this build; what its help does not name is said."""
    flash = next((said for said in help_text.splitlines() if "--flash-attn" in said), "")
    bare = bool(flash) and "on|off" not in flash
    kept: list[str] = []
    rest = iter(line)
    for word in rest:
        kept.append(word)
        if bare and word in FLAGS["flash"]:
            if next(rest, "on") != "on":
                kept.pop()
            notes.append("This build takes flash attention as a switch without a value.")
    known = set(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", help_text))
    unknown = [word for word in kept[1:] if re.fullmatch(r"--?[a-z][a-z0-9-]*", word) and word not in known]
    notes += [f"This build does not know {word}: leave it out." for word in unknown if known]
    return kept


def _preset(run: Run, choice: Choice, name: str | None) -> Application:
    book = all_presets()
    name = name or f"tuned-{run.id}"
    notes = [*choice.changed]
    # One that is replaced keeps its key, or goes on without one.
    if (known := next((one for one in book.presets if one.name == name), None)) is not None:
        digit = known.digit
    elif (digit := next((digit for digit in USER_DIGITS if book.on_digit(digit) is None), None)) is None:
        notes.append("The keys 6 to 9 are taken: the preset has none, and is run by its name.")
    settings = "\n".join(f"{key} = {value}" for key, value in choice.options.as_dict().items()) + "\n"
    drawn = Application("preset", name, settings, dict(choice.options.as_dict()), tuple(notes), digit=digit)
    check_preset(_preset_of(run, choice, drawn))
    return drawn


def _preset_of(run: Run, choice: Choice, drawn: Application) -> Preset:
    return Preset(
        name=drawn.name,
        title=f"Tuned by run {run.id}",
        options=choice.options,
        digit=drawn.digit,
        workload=replace(run.workload, prompt_file=None),
        note=plain(choice.words),
    )


def apply(run: Run, choice: Choice, drawn: Application, *, yes: bool = False, target: Target | None = None) -> str:
    """Do what was drawn; returns what was made: a model's name, a file's path, or the command line.

    Args:
        run: The run that recommends it.
        choice: What it recommends.
        drawn: From `draw`.
        yes: A model or preset of that name may be replaced.
        target: The server instead of the run's.

    Raises:
        ConfigError: something of that name exists and `yes` is off.
        BackendError: the server cannot be reached, or refuses.
    """
    target = target or run.target
    if drawn.form == "model":
        if target.url is None:
            raise ConfigError(f"run {run.id} names no server: give one with --server URL, or use --dry-run.")
        asyncio.run(_create(target.url, drawn, yes))
        return drawn.name
    if drawn.form == "preset":
        return str(write_preset(_preset_of(run, choice, drawn), replace=yes))
    return drawn.text


async def _create(url: str, drawn: Application, yes: bool) -> None:
    wire = Wire(url)
    try:
        await ollama_create.create_model(wire, drawn.name, drawn.base, drawn.parameters, overwrite=yes)
    finally:
        await wire.close()


def create_proof(journal: Journal, run: Run, choice: Choice, *, yes: bool = False) -> Run | str:
    """A short run of what was applied against the baseline, ready for a worker; or the sentence why there is none."""
    from .planning import create_validation

    if run.kind == "import":
        return "An imported set has no server to prove it on: `chimera sweep` with these settings does."
    if yes:
        run = replace(run, target=replace(run.target, assume_yes=True))
    try:
        return create_validation(journal, run, candidate=choice.candidate, rounds=PROOF_ROUNDS)
    except ConfigError as error:
        return str(error)
