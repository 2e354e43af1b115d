"""Presets told honestly: what is effective on this model, what was measured of it here, and what was promised.

`preset_rows` is pure and gives frozen rows for any view; `measured_here` reads the journal and `look` asks a server, so
both belong into a thread of a view.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from chimera.domain.options import Options
from chimera.domain.preset import Expectation, Preset
from chimera.domain.run import Run, Session, Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.text import plain
from chimera.domain.verdict import Verdict
from chimera.errors import ChimeraError, ConfigError
from chimera.model.effective import Limits, canonical, derive, merge

if TYPE_CHECKING:
    from chimera.store.journal import Journal

_Part = Callable[[Options], Options]
"""What of a configuration is compared."""
ExpectationWord = Literal["met", "missed", "not comparable here"]

RUNS_READ = 300
"""Newest runs of a model that are looked at."""
_GB = 1e9
_SAME_SIZE = 0.15
"""Share by which two figures for the memory of one card may differ: 12 GB, 11.6 GiB."""
_BRAND = frozenset({"nvidia", "geforce", "laptop", "gpu", "amd", "radeon"})


@dataclass(frozen=True, slots=True)
class Here:
    """The server and model that presets are judged for."""

    kind: ServerKind
    model: ModelInfo
    limits: Limits | None = None
    """None: the model's own (`model`)."""
    defaults: Options = field(default_factory=Options)
    """What the server runs where nothing is asked, as far as known."""
    server: ServerInfo | None = None
    gpus: int | None = None
    """How many the engine can use, where that is known."""
    settable: frozenset[str] | None = None
    """Options that can be made effective on this server; None: all that its kind takes."""

    def asked(self, options: Options) -> Options:
        """What of a configuration reaches this server."""
        return options if self.settable is None else options.only(self.settable)

    @property
    def bounds(self) -> Limits:
        """Layers, context and vision of the model."""
        return self.limits or self.model


@dataclass(frozen=True, slots=True)
class Measured:
    """A configuration that was measured on this model."""

    run: str
    at: float
    options: Options
    """As requested."""
    effective: Options | None = None
    preset: str | None = None
    decode_tok_s: float | None = None
    ttft_s: float | None = None
    vram_gb: float | None = None
    efficiency: float | None = None
    """By the guide's own formula, of a run with several agents."""
    verdict: Verdict | None = None
    """On the decode rate, against a baseline that asked for nothing."""
    model: str = ""
    cards: tuple[str, ...] = ()
    """Names of the GPUs of that run."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One figure that a preset's author gave, and what became of it here."""

    what: Literal["decode_tok_s", "ttft_s", "vram_gb", "efficiency"]
    low: float | None
    high: float | None
    word: ExpectationWord
    value: float | None = None
    """What was measured here, whether it can be compared or not."""
    reason: str = ""
    run: str | None = None

    @property
    def promised(self) -> str:
        """What the author gave, in a few words."""
        return spread((self.low, self.high)) if self.what != "efficiency" else f"{self.low:.2%}"

    @property
    def became(self) -> str:
        """What became of it here: the word, what was measured, and why it cannot be compared."""
        value = "" if self.value is None else f", {self.value:.3g} measured"
        return f"{self.word}{value}" + (f" ({self.reason})" if self.reason else "")


def spread(ends: tuple[float | None, float | None]) -> str:
    """A range in words: `98-103`, `under 0.5`, `over 99`."""
    low, high = ends
    if low is None:
        return f"under {high:g}"
    if high is None:
        return f"over {low:g}"
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


@dataclass(frozen=True, slots=True)
class PresetRow:
    """A preset as it stands on this model."""

    preset: Preset
    effective: Effective | None
    """None where the server would refuse it; `refused` says why."""
    refused: str | None = None
    same_as: tuple[str, ...] = ()
    """Other presets with the same effect in everything."""
    same_load_as: tuple[str, ...] = ()
    """Those that differ in sampling only: the same layers, context and batch run."""
    like_default: bool = False
    """Its load options have the effect of asking for nothing."""
    verdict: Verdict | None = None
    """Against the server's defaults, where it was measured here."""
    verdict_run: str | None = None
    verdict_scope: str = ""
    """What of the preset the verdict is about: `the whole preset`, or `its load options` alone."""
    measured: Measured | None = None
    """The newest figures of it."""
    expectations: tuple[Expected, ...] = ()

    @property
    def words(self) -> str:
        """What is to be said of its effect, in one line."""
        if self.refused:
            return f"the server would refuse it: {self.refused}"
        parts = []
        if self.same_as:
            parts.append(f"the same setting as {', '.join(self.same_as)}")
        if self.same_load_as:
            parts.append(f"but for the sampling the same as {', '.join(self.same_load_as)}")
        if self.like_default:
            parts.append("but for the sampling the server's default")
        if self.verdict is not None:
            effect = f" ({seen - 1:+.1%})" if (seen := self.verdict.itself.effect) is not None else ""
            parts.append(f"{self.verdict.verdict}{effect} against the default in run {self.verdict_run}")
        return "; ".join(parts)

    @property
    def against_default(self) -> str | None:
        """The verdict with its effect, interval and run; None where there is none."""
        if self.verdict is None:
            return None
        seen = self.verdict.itself
        effect = f" {seen.effect - 1:+.1%}" if seen.effect is not None else ""
        interval = f", {seen.ci[0] - 1:+.1%} to {seen.ci[1] - 1:+.1%}" if seen.ci is not None else ""
        about = "" if self.verdict_scope == "the whole preset" else f", {self.verdict_scope}"
        return f"{self.verdict.verdict}{effect}{interval} (run {self.verdict_run}{about})"


def preset_rows(presets: Sequence[Preset], here: Here, measured: Iterable[Measured] = ()) -> tuple[PresetRow, ...]:
    """Each preset with its effect on this model, its verdict and its author's expectations.

    Args:
        presets: All that are shown together; equal ones are named as equal.
        here: The server and model.
        measured: What was measured on it, from `measured_here`.
    """
    seen = sorted(measured, key=lambda one: -one.at)
    if any(one.options.num_gpu != 0 and one.effective and one.effective.num_gpu == 0 for one in seen):
        here = replace(here, gpus=0)  # read back from a load: this engine has no GPU that it can use
    whole = _partners(presets, here, lambda options: options)
    load = _partners(presets, here, lambda options: options.load)
    nothing = _key(Options(), here)
    rows = []
    for preset in presets:
        try:
            effective = _effective(preset.options, here)
        except ConfigError as error:
            rows.append(
                PresetRow(
                    preset,
                    None,
                    refused=str(error),
                    expectations=_expectations(preset.expects, None, "it cannot run here"),
                )
            )
            continue
        same = whole[preset.name]
        judged, scope = _verdict(preset, here, seen)
        figures = _figures(preset, here, seen)
        if figures is not None and figures.effective is not None:
            effective = _read_back(effective, figures.effective)
        rows.append(
            PresetRow(
                preset,
                effective,
                same_as=same,
                same_load_as=tuple(name for name in load[preset.name] if name not in same),
                like_default=nothing is not None and _key(preset.options.load, here) == nothing,
                verdict=judged.verdict if judged else None,
                verdict_run=judged.run if judged else None,
                verdict_scope=scope,
                measured=figures,
                expectations=_expectations(preset.expects, figures, "it was not measured here yet"),
            )
        )
    return tuple(rows)


def _effective(options: Options, here: Here) -> Effective:
    asked = here.asked(options)
    effective = derive(asked, here.bounds, here.kind, defaults=here.defaults, gpus=here.gpus)
    left = [name for name in options.as_dict() if name not in asked.as_dict()]
    if not left:
        return effective
    note = f"{', '.join(left)} cannot be set on this server: its start decides"
    return replace(effective, notes=(*effective.notes, note), unread=(*effective.unread, *left))


def _read_back(derived: Effective, measured: Options) -> Effective:
    """What was read back after a load, and the rule's word for the rest."""
    sources = derived.sources | dict.fromkeys(measured.as_dict(), "measured")
    return replace(derived, options=measured.over(derived.options), sources=sources)


def _partners(presets: Sequence[Preset], here: Here, part: _Part) -> dict[str, tuple[str, ...]]:
    groups = merge(
        [(preset.name, here.asked(part(preset.options))) for preset in presets],
        here.bounds,
        here.kind,
        defaults=here.defaults,
        gpus=here.gpus,
    )
    return {
        name: tuple(other for other in group.candidates if other != name)
        for group in groups
        for name in group.candidates
    }


def _key(options: Options, here: Here) -> Options | None:
    """One spelling for each effect; None for what the server would refuse."""
    try:
        return canonical(here.asked(options), here.bounds, here.kind, defaults=here.defaults, gpus=here.gpus)
    except ConfigError:
        return None


def _verdict(preset: Preset, here: Here, seen: Sequence[Measured]) -> tuple[Measured | None, str]:
    """The newest verdict on the preset as a whole, else on its load options."""
    for scope, part in _SCOPES:
        wanted = _key(part(preset.options), here)
        for one in seen:
            if one.verdict is not None and wanted is not None and _key(part(one.options), here) == wanted:
                # A sweep over load options says nothing of sampling that it did not set, and the rate hardly feels it.
                if scope == "its load options" and not preset.options.load.as_dict():
                    continue
                return one, scope
    return None, ""


def _figures(preset: Preset, here: Here, seen: Sequence[Measured]) -> Measured | None:
    """The newest figures: of a run of this preset, else of the same settings."""
    wanted = _key(preset.options, here)
    ran = (one for one in seen if one.preset == preset.name and _key(one.options, here) == wanted)
    same = (one for one in seen if wanted is not None and _key(one.options, here) == wanted)
    return next(ran, None) or next(same, None)


def _expectations(expects: Expectation, found: Measured | None, why_none: str) -> tuple[Expected, ...]:
    rows = []
    for what in ("decode_tok_s", "ttft_s", "vram_gb"):
        ends: tuple[float | None, float | None] | None = getattr(expects, what)
        if ends is not None:
            value: float | None = getattr(found, what) if found else None
            rows.append(_expected(what, ends, value, expects, found, why_none))
    if expects.efficiency is not None:
        value = found.efficiency if found else None
        none = "it was not measured with several agents here" if found else why_none
        rows.append(_expected("efficiency", (expects.efficiency, None), value, expects, found, none))
    return tuple(rows)


def _expected(
    what: Literal["decode_tok_s", "ttft_s", "vram_gb", "efficiency"],
    ends: tuple[float | None, float | None],
    value: float | None,
    expects: Expectation,
    found: Measured | None,
    why_none: str,
) -> Expected:
    low, high = ends
    run = found.run if found else None
    if value is None:
        reason = why_none if found is None or what == "efficiency" else "this was not measured"
        return Expected(what, low, high, "not comparable here", None, reason, run)
    differs = _differs(expects.measured_on, found)
    if differs:
        return Expected(what, low, high, "not comparable here", value, differs, run)
    # Better than the author's range is met as well: a higher rate, a shorter wait, less memory.
    more = what in ("decode_tok_s", "efficiency")
    bound = (low if low is not None else high) if more else (high if high is not None else low)
    met = bound is None or (value >= bound if more else value <= bound)
    return Expected(what, low, high, "met" if met else "missed", value, "", run)


def _differs(measured_on: str, found: Measured | None) -> str:
    """Why a figure that was given for `MODEL on CARD` cannot be held against one of here; empty where it can."""
    model, _, card = measured_on.partition(" on ")
    if not model or not card:
        return "its author does not say for which model and card the figure is"
    if found is None or _model_name(found.model) != _model_name(model):
        return f"the figure is for {model}, and this is {found.model if found and found.model else 'another model'}"
    if not found.cards:
        return f"the figure is for {card}, and the card of this run is not known"
    if len(found.cards) > 1 or not _same_card(found.cards[0], card):
        return f"the figure is for {card}, and this is {', '.join(found.cards)}"
    return ""


def _model_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _same_card(name: str, wanted: str) -> bool:
    """The same product: `NVIDIA GeForce RTX 4080 Laptop GPU` is `RTX 4080 12 GB`, a `SUPER` is not."""
    sizes = [_memory(text) for text in (name, wanted)]
    words = [set(re.sub(r"\(?\b\d+(\.\d+)?\s*Gi?B\b\)?", "", text).lower().split()) - _BRAND for text in (name, wanted)]
    if words[0] != words[1]:
        return False
    if sizes[0] is None or sizes[1] is None:
        return True
    return abs(sizes[0] - sizes[1]) <= _SAME_SIZE * sizes[1]


def _memory(text: str) -> float | None:
    found = re.search(r"(\d+(?:\.\d+)?)\s*Gi?B\b", text)
    return float(found[1]) if found else None


_SCOPES: tuple[tuple[str, _Part], ...] = (
    ("the whole preset", lambda options: options),
    ("its load options", lambda options: options.load),
)


# ---- from the journal, and from a server -----------------------------------------------------------------------------


def measured_here(journal: Journal, here: Here, *, limit: int = RUNS_READ) -> tuple[Measured, ...]:
    """What the newest runs of this model on this kind of server have measured, one entry a configuration."""
    found: list[Measured] = []
    for run in journal.runs(model=here.model.name, limit=limit):
        if run.state == "queued" or run.target.kind != here.kind or _another(run.model, here.model):
            continue
        found += _of_run(journal, run, here)
    return tuple(found)


def _another(one: ModelInfo | None, here: ModelInfo) -> bool:
    """The same name and another content."""
    return one is not None and one.digest is not None and here.digest is not None and one.digest != here.digest


def _of_run(journal: Journal, run: Run, here: Here) -> list[Measured]:
    trials = journal.trials(run.id)
    sessions = [one for one in journal.sessions(run.id) if one.state == "done"]
    if not sessions:
        return []
    against_default = {
        trial.candidate
        for trial in trials
        if trial.role == "baseline" and _key(trial.requested, here) == _key(Options(), here)
    }
    verdicts = {
        row.candidate: row
        for row in journal.verdicts(run.id)
        if row.metric == "decode_tok_s" and row.against in against_default
    }
    rows = journal.measurements(run.id)
    efficiency = _guide_efficiency(journal, run)
    cards = tuple(plain(str(gpu["name"])) for gpu in run.gpus if isinstance(gpu, dict) and gpu.get("name"))
    found = []
    for trial in trials:
        mine = [one for one in sessions if one.candidate == trial.candidate]
        verdict = verdicts.get(trial.candidate)
        if not mine and verdict is None:
            continue
        valid = [row.measurement for row in rows if row.candidate == trial.candidate and row.measurement.valid]
        effective = journal.effective(run.id, trial.candidate)
        found.append(
            Measured(
                run=run.id,
                at=run.created_at,
                options=trial.requested,
                effective=effective.options if effective else None,
                preset=run.preset,
                decode_tok_s=_median(one.rate for one in valid),
                ttft_s=_median(one.ttft_s for one in valid),
                vram_gb=_vram_gb(mine, effective),
                efficiency=efficiency.get(trial.candidate),
                verdict=verdict,
                model=run.model.name if run.model else here.model.name,
                cards=cards,
            )
        )
    return found


def _guide_efficiency(journal: Journal, run: Run) -> dict[str, float]:
    if run.kind != "agents" and run.workload.agents < 2:
        return {}
    from .agents_report import report

    told = report(journal, run) or {}
    arms = told.get("arms", [])
    return {
        arm["candidate"]: arm["guide_efficiency"]
        for arm in arms
        if arm.get("agents", 1) > 1 and arm.get("guide_efficiency") is not None
    }


def _vram_gb(sessions: Sequence[Session], effective: Effective | None) -> float | None:
    peaks = [value for one in sessions if isinstance(value := one.facts.get("vram_peak_bytes"), int | float)]
    if peaks:
        return median(peaks) / _GB
    if effective is not None and effective.vram_bytes:
        return effective.vram_bytes / _GB
    return None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


async def look(target: Target) -> Here:
    """Ask a server for its model and what it runs by itself; loads nothing.

    Raises:
        BackendError: it cannot be reached, or refuses.
    """
    from chimera.backends.detect import open_backend

    backend = open_backend(target)
    try:
        server = await backend.connect()
        model = await backend.model()
        shape = await backend.shape()
        # What Ollama has loaded was asked for by someone; what another server runs was decided at its start.
        defaults = Options()
        if not backend.owned and target.kind != "ollama":
            with suppress(ChimeraError):
                defaults = (await backend.effective()).options.load
        settable = backend.load_options | backend.sampling_options
        return Here(target.kind, model, shape or model, defaults, server, settable=settable)
    finally:
        await backend.close()
