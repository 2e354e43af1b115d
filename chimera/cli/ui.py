"""What opens the UI: `chimera` with none but these options. Parsed without Typer, whose import the UI does without."""

from __future__ import annotations

from dataclasses import dataclass

from chimera.errors import ConfigError


@dataclass(frozen=True, slots=True)
class UiOptions:
    """What the UI is opened with."""

    server: str | None = None
    model: str | None = None
    embedded: bool = False
    read_only: bool = False
    """Watch only: no run can be started, stopped or changed from this UI."""
    attach: str | None = None
    """The run to show first."""


_VALUES = {"--server": "server", "--model": "model"}
_FLAGS = {"--embedded": "embedded", "--read-only": "read_only"}


def parse_ui(arguments: list[str]) -> UiOptions | None:
    """The options, or None where the arguments are for the command line. Raises `ConfigError` for a missing value."""
    found: dict[str, str | bool] = {}
    rest = list(arguments)
    while rest:
        name, _, value = rest.pop(0).partition("=")
        if name in _VALUES:
            if not value:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"{name} wants a value, like {name} {'http://127.0.0.1:11434'!r}.")
                value = rest.pop(0)
            found[_VALUES[name]] = value
        elif name in _FLAGS and not value:
            found[_FLAGS[name]] = True
        else:
            return None
    return UiOptions(**found)  # type: ignore[arg-type]  # the two tables hold which field has which type
