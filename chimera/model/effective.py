"""What really runs when a configuration is asked for, by documented rules and before anything loads.

Reading back from the server after a load is better where it can be done; this is for plans, for presets, for merging
candidates that differ only in what was asked, and for what a server does not tell.
Rules: llama.cpp's context and batch handling as it logs it, Ollama's scheduler (vision floor, trained context).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from chimera.domain.options import (
    FLASH_ATTENTION,
    KV_CACHE_TYPES,
    LOAD_OPTIONS,
    OPTION_NAMES,
    Options,
    OptionValue,
)
from chimera.domain.readings import Source
from chimera.domain.server import Effective, ServerKind
from chimera.errors import ConfigError

from .memory import CELL_STEP, DEFAULT_BATCH, padded, refuse_quantised_without_flash

VISION_FLOOR = 2048
"""Ollama's smallest context for a model with vision."""
OLLAMA_MINIMUM = 4
"""Ollama's smallest context for any model."""

_ENGINE_DEFAULTS: dict[ServerKind, Options] = {
    "ollama": Options(num_gpu=-1),
    "llama_server": Options(num_gpu=-1, flash_attention="auto", kv_cache_type="f16"),
    "openai": Options(),
    "embedded": Options(num_gpu=-1, flash_attention="auto", kv_cache_type="f16", num_parallel=1),
}
_TAKEN: dict[ServerKind, frozenset[str]] = {
    "ollama": frozenset({"num_gpu", "num_ctx", "num_batch", "num_thread"}),
    "llama_server": LOAD_OPTIONS,
    "openai": frozenset(),
    "embedded": LOAD_OPTIONS,
}
_NOT_TAKEN: dict[ServerKind, str] = {
    "ollama": "Ollama takes it from its environment when it starts, not from a request",
    "openai": "this server takes no load options from clients",
}


class Limits(Protocol):
    """What must be known of a model; `ModelShape` and `ModelInfo` both tell it."""

    @property
    def block_count(self) -> int | None:
        """Blocks, the output layer not counted."""

    @property
    def trained_ctx(self) -> int | None:
        """Context that the model was trained for."""

    @property
    def vision(self) -> bool:
        """Takes pictures as well."""


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates with one effect."""

    candidates: tuple[str, ...]
    """Their names, in the order given; the first stands for all."""
    requested: Options
    """What the first one asks for."""
    canonical: Options
    """One spelling for this effect: equal for equal effects."""
    effective: Effective
    reasons: tuple[str, ...] = ()
    """Why they are the same, one sentence an option."""
    refused: str | None = None
    """Why this configuration cannot run at all, where that is known beforehand."""


@dataclass(slots=True)
class _Resolved:
    canonical: dict[str, OptionValue] = field(default_factory=dict)
    options: dict[str, OptionValue] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    whys: dict[str, str] = field(default_factory=dict)
    """Clause for each option that runs as something else."""

    def runs(self, name: str, value: OptionValue) -> None:
        """The option is known to run as this."""
        self.canonical[name] = self.options[name] = value

    def changed(self, name: str, asked: OptionValue, value: OptionValue, why: str) -> None:
        """It runs as something other than what was asked for."""
        self.whys[name] = why
        self.notes.append(f"{name} {asked} runs as {value}: {why}")

    def effective(self) -> Effective:
        sources: dict[str, Source] = dict.fromkeys(self.options, "derived")
        return Effective(Options.of(self.options), sources, tuple(self.notes), tuple(self.unread))


def derive(
    requested: Options,
    model: Limits | None,
    kind: ServerKind,
    *,
    defaults: Options | None = None,
    gpus: int | None = None,
) -> Effective:
    """What a configuration runs as, by rule.

    Args:
        requested: what was asked for.
        model: its limits, or None where nothing is known of it.
        kind: the server that is to run it.
        defaults: what this server runs with where nothing is asked, as far as known (its context, say).
        gpus: how many GPUs the engine can use, where that is known; with 0 every layer runs on the CPU.

    Raises:
        ConfigError: the server would refuse it.
    """
    return _resolve(requested, model, kind, defaults, gpus).effective()


def canonical(
    requested: Options,
    model: Limits | None,
    kind: ServerKind,
    *,
    defaults: Options | None = None,
    gpus: int | None = None,
) -> Options:
    """One spelling for each effect: two configurations are the same setting when this is equal for both.

    Raises:
        ConfigError: the server would refuse it.
    """
    return Options.of(_resolve(requested, model, kind, defaults, gpus).canonical)


def merge(
    candidates: Sequence[tuple[str, Options]],
    model: Limits | None,
    kind: ServerKind,
    *,
    defaults: Options | None = None,
    gpus: int | None = None,
) -> list[Group]:
    """Group candidates by effect, in the order of their first members, and say why they are the same.

    A configuration that the server would refuse is a group of its own with `refused` set.
    """
    groups: list[Group] = []
    members: dict[Options, list[tuple[str, Options, _Resolved]]] = {}
    order: list[Options | Group] = []
    for name, requested in candidates:
        try:
            resolved = _resolve(requested, model, kind, defaults, gpus)
        except ConfigError as error:
            order.append(Group((name,), requested, requested, Effective(), refused=str(error)))
            continue
        key = Options.of(resolved.canonical)
        if key not in members:
            members[key] = []
            order.append(key)
        members[key].append((name, requested, resolved))
    for place in order:
        if isinstance(place, Group):
            groups.append(place)
            continue
        same = members[place]
        groups.append(
            Group(
                candidates=tuple(name for name, _, _ in same),
                requested=same[0][1],
                canonical=place,
                effective=same[0][2].effective(),
                reasons=_reasons(same),
            )
        )
    return groups


def _resolve(
    requested: Options, model: Limits | None, kind: ServerKind, defaults: Options | None, gpus: int | None
) -> _Resolved:
    given = (defaults or Options()).over(_ENGINE_DEFAULTS[kind])
    taken = _TAKEN[kind]
    resolved = _Resolved()
    for name, value in requested.load.as_dict().items():
        if name not in taken:
            why = _NOT_TAKEN.get(kind, "this server does not take it")
            resolved.whys[name] = why
            resolved.notes.append(f"{name} {value} has no effect: {why}")
            resolved.unread.append(name)
    asked = requested.only(taken | requested.sampling.as_dict().keys()).over(given)
    _layers(resolved, requested, asked, model, gpus)
    context = _context(resolved, requested, asked, model, kind)
    _batch(resolved, requested, asked, context, kind)
    _cache(resolved, requested, asked, taken)
    for name in ("num_thread", "num_parallel", *sorted(requested.sampling.as_dict().keys() | given.sampling.as_dict())):
        value = getattr(asked, name)
        if value is not None:
            resolved.runs(name, value)
    return resolved


def _layers(resolved: _Resolved, requested: Options, asked: Options, model: Limits | None, gpus: int | None) -> None:
    layers = asked.num_gpu
    if layers is None:
        return
    if gpus == 0:
        resolved.runs("num_gpu", 0)
        if layers != 0:
            resolved.whys["num_gpu"] = "there is no GPU that this engine can use"
        if layers > 0 and requested.num_gpu is not None:
            resolved.changed("num_gpu", layers, 0, "there is no GPU that this engine can use")
        return
    if layers < 0:
        resolved.canonical["num_gpu"] = -1
        if requested.num_gpu is not None:
            resolved.notes.append(f"num_gpu {layers}: the engine chooses the layers when it loads")
        return
    blocks = model.block_count if model else None
    if layers == 0:
        resolved.runs("num_gpu", 0)
    elif blocks is None:
        resolved.canonical["num_gpu"] = layers
        resolved.unread.append("num_gpu")
    else:
        resolved.runs("num_gpu", min(layers, blocks + 1))
        if layers > blocks + 1:
            resolved.changed("num_gpu", layers, blocks + 1, f"the model has {blocks} layers + output")


def _context(
    resolved: _Resolved, requested: Options, asked: Options, model: Limits | None, kind: ServerKind
) -> int | None:
    """Resolve the context; returns what the engine is told, before it rounds."""
    if asked.num_ctx is None or kind == "openai":
        return None
    told = asked.num_ctx
    whys: list[str] = []
    trained = model.trained_ctx if model else None
    if kind == "ollama":
        if told < OLLAMA_MINIMUM:
            told = OLLAMA_MINIMUM
            whys.append(f"Ollama's smallest context is {OLLAMA_MINIMUM}")
        if model and model.vision and told < VISION_FLOOR:
            told = VISION_FLOOR
            whys.append(f"Ollama gives a model with vision at least {VISION_FLOOR}")
        if trained and told > trained:
            told = trained
            whys.append(f"Ollama cuts the context to the {trained} tokens that the model was trained for")
    runs = padded(told)
    if runs != told:
        whys.append(f"llama.cpp rounds a slot's context up to a multiple of {CELL_STEP}")
    resolved.runs("num_ctx", runs)
    if whys:
        resolved.whys["num_ctx"] = "; ".join(whys)
    if requested.num_ctx is None:
        return told
    if whys:
        resolved.changed("num_ctx", requested.num_ctx, runs, "; ".join(whys))
        if kind == "ollama" and runs != told:
            resolved.notes.append(f"num_ctx {requested.num_ctx}: Ollama still cuts longer prompts to fit {told} tokens")
    if kind != "ollama" and trained and runs > trained:
        resolved.notes.append(
            f"num_ctx {requested.num_ctx} is over the {trained} tokens that the model was trained for: "
            "it runs, but what it writes behind them may be worthless"
        )
    return told


def _batch(resolved: _Resolved, requested: Options, asked: Options, context: int | None, kind: ServerKind) -> None:
    """llama.cpp cuts batches to the whole context as it was told, before it rounds that."""
    parallel = asked.num_parallel or (1 if kind == "ollama" else None)
    whole = context * parallel if context is not None and parallel is not None else None
    batch = asked.num_batch
    if batch is None:
        if whole is not None and whole <= DEFAULT_BATCH:
            resolved.runs("num_batch", whole)
            resolved.whys["num_batch"] = f"a batch is cut to the whole context of {whole}"
        return
    if whole is not None and batch > whole:
        resolved.runs("num_batch", whole)
        why = f"a batch is cut to the whole context of {whole}"
        resolved.whys["num_batch"] = why
        if requested.num_batch is not None:
            resolved.changed("num_batch", batch, whole, why)
        return
    resolved.runs("num_batch", batch)


def _cache(resolved: _Resolved, requested: Options, asked: Options, taken: frozenset[str]) -> None:
    cache, flash = asked.kv_cache_type, asked.flash_attention
    if cache is not None:
        resolved.runs("kv_cache_type", cache)
    if "flash_attention" not in taken:
        if flash is not None:
            resolved.runs("flash_attention", flash)
        return
    refuse_quantised_without_flash(cache, flash)
    if flash in ("on", "off"):
        resolved.runs("flash_attention", flash)
    elif cache is not None and cache != "f16":
        resolved.runs("flash_attention", "on")
        why = "a quantised KV cache needs it"
        resolved.whys["flash_attention"] = why
        if requested.flash_attention is not None:
            resolved.changed("flash_attention", "auto", "on", why)
    elif flash is not None:
        # Whether automatic means on depends on the device, which only a load tells.
        resolved.canonical["flash_attention"] = flash


def _reasons(same: Sequence[tuple[str, Options, _Resolved]]) -> tuple[str, ...]:
    if len(same) < 2:
        return ()
    sentences: list[str] = []
    for name in OPTION_NAMES:
        values = list(dict.fromkeys(getattr(requested, name) for _, requested, _ in same))
        if len(values) < 2:
            continue
        numbers = sorted((v for v in values if isinstance(v, int | float)), key=float)
        words = [str(value) for value in numbers] + [v for v in values if isinstance(v, str)]
        if None in values:
            words.append("the server's default")
        whys = list(dict.fromkeys(resolved.whys[name] for _, _, resolved in same if name in resolved.whys))
        sentences.append(f"{name} {_listed(words)} are one setting{_because(name, whys)}")
    if not sentences:
        sentences.append(f"{_listed([name for name, _, _ in same])} ask for the same")
    return tuple(sentences)


def _because(name: str, whys: Sequence[str]) -> str:
    if name == "num_gpu" and len(whys) == 1 and whys[0].startswith("the model has "):
        return f" on a model of {whys[0].removeprefix('the model has ').removesuffix(' + output')}"
    return ": " + "; ".join(whys) if whys else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_AXES: dict[str, tuple[OptionValue, ...]] = {
    "num_ctx": (256, 512, 1024, 2048),
    "num_batch": (128, 512, 2048),
    "flash_attention": tuple(value for value in FLASH_ATTENTION if value != "auto"),
    "kv_cache_type": KV_CACHE_TYPES,
    "num_parallel": (1, 2, 4),
    "temperature": (0.6, 0.8, 1.0),
    "top_p": (0.8, 0.9, 0.95),
    "top_k": (20, 40, 50),
    "repeat_penalty": (1.0, 1.1, 1.2),
}
"""Contexts and sampling: the guide's ranges with its recommended values between them."""


def default_axis(name: str, model: Limits | None, *, cores: int | None = None) -> tuple[OptionValue, ...]:
    """Values to try for an option where the user names none.

    `num_gpu`: none, a quarter, half, three quarters and all of the model's layers with its output; `num_thread`: one,
    half and all of `cores`; contexts end at what the model was trained for.

    Raises:
        ConfigError: there is no such option, or what its values depend on is not known.
    """
    if name == "num_gpu":
        blocks = model.block_count if model else None
        if blocks is None:
            raise ConfigError("num_gpu: this model's number of layers is not known. Name the values to try.")
        units = blocks + 1
        return tuple(dict.fromkeys((units * quarter + 2) // 4 for quarter in range(5)))
    if name == "num_thread":
        if not cores:
            raise ConfigError("num_thread: the number of cores is not known. Name the values to try.")
        return tuple(dict.fromkeys((1, max(1, cores // 2), cores)))
    values = _AXES.get(name)
    if values is None:
        raise ConfigError(f"{name}: is not an option. Options: {', '.join(OPTION_NAMES)}.")
    trained = model.trained_ctx if model else None
    if name == "num_ctx" and trained:
        return tuple(dict.fromkeys(min(int(value), trained) for value in values))
    return values
