"""From what the user typed to the server and model that a run is for."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

from chimera.domain.run import Target
from chimera.errors import BackendUnavailable, ConfigError


def _folder() -> str | None:
    """The current folder; None where it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def find_target(
    server: str | None, model: str | None, *, embedded: bool, start: str | None = None, yes: bool = False
) -> Target:
    """The target that these options name.

    Raises `ConfigError` for options that exclude each other, and `BackendUnavailable` saying what was tried where
    nothing answers.
    """
    if sum((server is not None, embedded, start is not None)) > 1:
        raise ConfigError("--server, --embedded and --start exclude each other: name one server.")
    if embedded:
        if model:
            raise ConfigError("--embedded brings its own model, Gemma 3 270M: leave --model out.")
        return Target("embedded", model=None, assume_yes=True)
    if start is not None:
        try:
            command = tuple(shlex.split(start))
        except ValueError as error:
            raise ConfigError(f"--start {start}: {error}. Give it as one would type it in a shell.") from error
        if not command:
            raise ConfigError('--start is empty: give the command, like --start "llama-server -m model.gguf".')
        return Target("llama_server", command=command, folder=_folder(), assume_yes=True)
    from chimera.backends.detect import detect, explain

    detection = asyncio.run(detect(server))
    if not detection.found:
        raise BackendUnavailable(explain(detection))
    found = detection.found[0]
    return Target(found.kind, url=found.url, model=model, assume_yes=yes)
