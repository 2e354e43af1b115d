"""Derived models of an Ollama server: an installed model with other defaults, under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chimera.domain.options import Options, OptionValue
from chimera.domain.text import plain
from chimera.errors import BackendRefused, BadAnswer, ConfigError

from .wire import Wire

CREATE_TIMEOUT_S = 120.0
"""Weights are shared with the base, so it takes well under a second; the list of models may be locked for longer."""
PARAMETERS = frozenset(
    {"num_gpu", "num_ctx", "num_batch", "num_thread", "temperature", "top_p", "top_k", "repeat_penalty"}
)
"""Options that a model can carry; the rest belongs to the server's environment."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}(/[A-Za-z0-9][\w.-]{0,79}){0,3}(:[A-Za-z0-9][\w.-]{0,79})?", re.ASCII)


class _Installed(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str | None = None


class _Tags(BaseModel):
    model_config = ConfigDict(extra="ignore")

    models: list[_Installed] | None = None


class _Status(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: str | None = None
    error: str | None = None


def checked_name(name: str) -> str:
    """A name that Ollama takes, with its tag.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--as {plain(name)[:80]!r} is no model name: letters, digits, . _ - and one :TAG.")
    return tagged(name)


def tagged(name: str) -> str:
    """The name as the server lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def derived_name(base: str) -> str:
    """`gemma3:4b` as `gemma3-chimera:4b`."""
    name, _, tag = tagged(base).rpartition(":")
    return f"{name}-chimera:{tag}"


def parameters_of(options: Options) -> dict[str, OptionValue]:
    """What of a configuration a model can carry; automatic layers are what Ollama does without any."""
    found = {name: value for name, value in options.as_dict().items() if name in PARAMETERS}
    if isinstance(layers := found.get("num_gpu"), int) and layers < 0:
        del found["num_gpu"]
    return found


def modelfile(base: str, parameters: Mapping[str, OptionValue]) -> str:
    """The same as a Modelfile, for `ollama create NAME -f Modelfile`."""
    lines = [f"FROM {plain(base)}", *(f"PARAMETER {name} {value}" for name, value in parameters.items())]
    return "\n".join(lines) + "\n"


async def installed(wire: Wire) -> tuple[str, ...]:
    """Names of the models that the server has."""
    where = f"{wire.url}/api/tags"
    try:
        tags = _Tags.model_validate(await wire.json("GET", "/api/tags"))
    except ValidationError as error:
        raise BadAnswer(f"{where} did not answer as Ollama does.") from error
    return tuple(each.name for each in tags.models or () if each.name)


async def create_model(
    wire: Wire, name: str, base: str, parameters: Mapping[str, OptionValue], *, overwrite: bool = False
) -> None:
    """Make `name` of an installed `base` with these defaults, and see that it is there.

    Raises:
        ConfigError: `name` is the base itself, or exists and `overwrite` is off.
        BackendRefused: the base is not installed (the server would else look for it elsewhere), or it says no.
    """
    name, base = tagged(name), tagged(base)
    if name == base:
        raise ConfigError(f"{plain(name)} is the model itself: give the derived one another name with --as.")
    have = await installed(wire)
    if base not in have:
        raise BackendRefused(f"{wire.url} has no model {plain(base)}: nothing can be derived from it.", status=404)
    if name in have and not overwrite:
        raise ConfigError(
            f"{wire.url} has a model {plain(name)} already: say --yes to replace it, or choose --as NAME."
        )
    body: dict[str, Any] = {"model": name, "from": base, "parameters": dict(parameters), "stream": False}
    where = f"{wire.url}/api/create"
    try:
        said = _Status.model_validate(await wire.json("POST", "/api/create", body, timeout_s=CREATE_TIMEOUT_S))
    except ValidationError as error:
        raise BadAnswer(f"{where} did not answer as Ollama does.") from error
    if said.error is not None:
        raise BackendRefused(f"{where} refused: {plain(said.error)[:400]}")
    if said.status != "success" or name not in await installed(wire):
        raise BadAnswer(f"{where} answered {plain(said.status or '')[:80]!r}, and {plain(name)} is not there.")
