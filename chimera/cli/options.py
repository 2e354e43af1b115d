"""What several commands take, and how what was typed is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from chimera.domain.options import FLASH_ATTENTION, KV_CACHE_TYPES, OPTION_RANGES, Options
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

WORKLOAD_LIMITS = {"requests": 10_000, "prompt_tokens": 10_000_000, "output_tokens": 1_000_000}
"""The most that a run may be asked for, as for presets."""
LONGEST_TIMEOUT_S = 86_400.0
LARGEST_SEED = 2**31 - 1
MOST_ROUNDS = 1000
MOST_AGENTS = 256
"""As for presets."""

Server = Annotated[str | None, typer.Option("--server", help="Address of the server; else OLLAMA_HOST, then the usual "
                                            "ports on this machine.", metavar="URL")]  # fmt: skip
Model = Annotated[str | None, typer.Option("--model", help="Model on the server; else the loaded or the first one.")]
Embedded = Annotated[bool, typer.Option("--embedded", help="The built-in llama.cpp with Gemma 3 270M; no server.")]
Start = Annotated[str | None, typer.Option("--start", help='A llama-server to start, like "llama-server -m m.gguf".',
                                           metavar="COMMAND")]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree that a server that is not ours reloads its model.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RunRef = Annotated[str, typer.Argument(help="Id of a run, the beginning of one, or `last`.")]

NumGpu = Annotated[int | None, typer.Option(help="Layers on the GPU; -1 automatic, 0 none.")]
NumCtx = Annotated[int | None, typer.Option(help="Context per slot, tokens.")]
NumThread = Annotated[int | None, typer.Option(help="CPU threads.")]
NumParallel = Annotated[int | None, typer.Option(help="Slots.")]
PromptTokens = Annotated[int | None, typer.Option(help="Length of the prompts.")]
OutputTokens = Annotated[int | None, typer.Option(help="Length of the answers.")]
PromptFile = Annotated[Path | None, typer.Option(help="Your own prompt; its text is never stored.")]
Timeout = Annotated[float | None, typer.Option(help="Longest silence of the server, seconds; 120.")]
Seed = Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of prompts, orders and sampling; else a fresh "
                                          "one, which is recorded.")]  # fmt: skip
Name = Annotated[str | None, typer.Option(help="A name for the run.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start it and return; `chimera attach` shows it.")]
Measurements = Annotated[bool, typer.Option("--measurements", help="Put every request into the JSON.")]


def span(name: str) -> str:
    """What a sampling option may be, for its help."""
    low, high = OPTION_RANGES[name]
    return f"Sampling: {low:,} to {high:,}."


def options_from(values: dict[str, int | float | str | None]) -> Options:
    """Options as typed. Raises `ConfigError` naming the option, what it was and what it may be."""
    for name, value in values.items():
        if value is None:
            continue
        typed = f"--{name.replace('_', '-')} {value}"
        if name == "flash_attention" and value not in FLASH_ATTENTION:
            raise ConfigError(f"{typed}: takes {', '.join(FLASH_ATTENTION)}.")
        if name == "kv_cache_type" and value not in KV_CACHE_TYPES:
            raise ConfigError(f"{typed}: takes {', '.join(KV_CACHE_TYPES)}.")
        low, high = OPTION_RANGES.get(name, (None, None))
        if low is not None and high is not None and not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{typed}: takes {low:g} to {high:g}.")
    return Options.of(values)


def workload_from(base: Workload, values: dict[str, int | float | str | None], fixed: bool) -> Workload:
    """The workload as typed, over a preset's. Raises `ConfigError` for sizes that make no sense."""
    from chimera.measure.session import read_prompt_file

    given = {name: value for name, value in values.items() if value is not None}
    for name, most in WORKLOAD_LIMITS.items():
        if name in given and not 1 <= int(given[name]) <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {given[name]}: takes 1 to {most:,}.")
    if not 0 < float(given.get("timeout_s", 1)) <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"--timeout {given['timeout_s']}: takes more than 0 and up to {LONGEST_TIMEOUT_S:,.0f} s.")
    workload = replace(base, **given, fixed_prompt=fixed or base.fixed_prompt)  # type: ignore[arg-type]  # checked above, by name
    if workload.prompt_file:
        read_prompt_file(workload.prompt_file)
    return workload
