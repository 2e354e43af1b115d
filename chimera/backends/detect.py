"""Which servers answer, by what they answer and not by their port; and the backend for each.

The order of preference: the address that the user gave, `OLLAMA_HOST`, then the ports that Ollama, llama-server, vLLM
and LM Studio have by default.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from chimera.domain.run import Target
from chimera.domain.server import KEY_VARIABLE, ServerInfo
from chimera.domain.text import plain
from chimera.errors import BackendError, BackendUnavailable, BadAnswer, ConfigError

from .address import is_local, normalise_url, ollama_host
from .base import Backend
from .ollama_child import children
from .wire import Wire, parse_json

PROBE_S = 1.5
"""Longest wait for one answer of a server at a default port; one that the user named gets twice as long."""

DEFAULT_PORTS: tuple[tuple[int, str], ...] = (
    (11434, "Ollama's port"),
    (8080, "llama-server's port"),
    (8000, "vLLM's port"),
    (1234, "LM Studio's port"),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An address that was tried."""

    url: str
    why: str
    """Where the address came from: `--server`, `OLLAMA_HOST`, whose default port it is."""
    outcome: str
    """What came back, as a clause."""
    info: ServerInfo | None = None
    """The server, where one was found."""


@dataclass(frozen=True, slots=True)
class Detection:
    """What answers, and what was tried for it, both in the order of preference."""

    found: tuple[ServerInfo, ...]
    tried: tuple[Attempt, ...]


# ---- who is it -------------------------------------------------------------------------------------------------------


M = TypeVar("M", bound=BaseModel)


class _Version(BaseModel):
    version: str | None = None


class _Props(BaseModel):
    build_info: str | None = None


class _Listed(BaseModel):
    id: str | None = None
    key: str | None = None
    state: str | None = None
    max_context_length: int | None = None


class _List(BaseModel):
    data: list[_Listed] | None = None
    models: list[_Listed] | None = None


async def identify(wire: Wire, *, timeout_s: float = PROBE_S) -> ServerInfo:
    """Who answers there. Raises `BackendUnavailable` where nobody does and `BadAnswer` where no model server does."""
    _, headers, text = await wire.get("/", timeout_s=timeout_s)
    if "Ollama is running" in text[:200]:
        return ServerInfo("ollama", wire.url, version=await _version(wire, "/api/version", timeout_s))
    props, metrics, lm_studio, models = await asyncio.gather(
        _ask(wire, "/props", timeout_s),
        _ask(wire, "/metrics", timeout_s),
        _ask(wire, "/api/v0/models", timeout_s),
        _ask(wire, "/v1/models", timeout_s),
    )
    build = _parsed(_Props, props).build_info
    if headers.get("server", "").lower().startswith("llama.cpp") or build:
        return ServerInfo("llama_server", wire.url, version=build_version(build))
    if metrics[0] == 200 and re.search(r"^(# \w+ )?vllm:", metrics[1], re.MULTILINE):
        version = await _version(wire, "/version", timeout_s)
        return ServerInfo("openai", wire.url, version=version, product="vLLM")
    if await _is_lm_studio(wire, lm_studio, timeout_s):
        return ServerInfo("openai", wire.url, product="LM Studio")
    status, listed = models
    if status in (401, 403):
        raise BadAnswer(f"{wire.url} wants a key: set {KEY_VARIABLE} in the environment.")
    if _parsed(_List, models).data is not None:
        return ServerInfo("openai", wire.url)
    said = plain(text[:60]) or "nothing"
    raise BadAnswer(
        f"{wire.url} answers, but not as a model server does: / gave {said!r}, /v1/models gave "
        f"{f'status {status}' if status else plain(listed[:200])}."
    )


def build_version(build_info: str | None) -> str | None:
    """llama.cpp's build from `build_info` (`b11549-6ca1f2b`); None where the build does not know it (`b0-unknown`)."""
    name = (build_info or "").partition("-")[0]
    return name if re.fullmatch(r"b[1-9]\d*", name) else None


async def _ask(wire: Wire, path: str, timeout_s: float) -> tuple[int, str]:
    """Status and text, or 0 and the reason; a path that is not there proves nothing."""
    try:
        status, _, text = await wire.get(path, timeout_s=timeout_s)
    except BackendError as error:
        return 0, str(error)
    return status, text


def _parsed(shape: type[M], answer: tuple[int, str]) -> M:
    """The answer in a shape, or an empty one."""
    status, text = answer
    if status == 200:
        try:
            return shape.model_validate(parse_json(text, where=""))
        except (ValidationError, BadAnswer):
            pass
    return shape()


async def _version(wire: Wire, path: str, timeout_s: float) -> str | None:
    version = _parsed(_Version, await _ask(wire, path, timeout_s)).version
    return plain(version)[:40] if version else None


async def _is_lm_studio(wire: Wire, answer: tuple[int, str], timeout_s: float) -> bool:
    listed = _parsed(_List, answer).data
    if listed is not None:
        return any(each.state is not None or each.max_context_length is not None for each in listed)
    newer = _parsed(_List, await _ask(wire, "/api/v1/models", timeout_s)).models
    return newer is not None and any(each.key is not None for each in newer)


# ---- what is there ---------------------------------------------------------------------------------------------------


async def detect(url: str | None = None, *, environ: Mapping[str, str] = os.environ) -> Detection:
    """What answers, in the order of preference; where the user gave an address, nothing but that is tried.

    Raises `ConfigError` for an address that is none. Takes a few seconds at most, whatever sits at the ports.
    """
    if url is not None:
        places = [(normalise_url(url), "--server")]
        tried = [await _attempt(*places[0], environ, 2 * PROBE_S)]
    else:
        places, bad = _places(environ)
        tried = [*bad, *await asyncio.gather(*(_attempt(where, why, environ, PROBE_S) for where, why in places))]
    return Detection(tuple(attempt.info for attempt in tried if attempt.info is not None), tuple(tried))


def _places(environ: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[Attempt]]:
    places: dict[str, str] = {}
    bad: list[Attempt] = []
    try:
        host = ollama_host(environ.get("OLLAMA_HOST", ""))
    except ConfigError as error:
        bad.append(Attempt(plain(environ["OLLAMA_HOST"]), "OLLAMA_HOST", str(error)))
    else:
        if host is not None:
            places[host.replace("//localhost:", "//127.0.0.1:")] = "OLLAMA_HOST"
    for port, whose in DEFAULT_PORTS:
        places.setdefault(f"http://127.0.0.1:{port}", whose)
    return list(places.items()), bad


async def _attempt(url: str, why: str, environ: Mapping[str, str], timeout_s: float) -> Attempt:
    wire = Wire(url, connect_timeout_s=timeout_s, environ=environ)
    try:
        async with asyncio.timeout(3 * timeout_s):  # a server that trickles must not hold up the others
            info = await identify(wire, timeout_s=timeout_s)
    except BackendUnavailable as error:
        nobody = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
        return Attempt(url, why, "nobody answers" if nobody else str(error))
    except BackendError as error:
        return Attempt(url, why, str(error))
    except TimeoutError:
        return Attempt(url, why, f"no complete answer within {3 * timeout_s:g} s")
    finally:
        await wire.close()
    if info.kind == "llama_server" and is_local(url):
        port = urlsplit(url).port
        if any(child.port == port for child in await asyncio.to_thread(children)):
            return Attempt(url, why, "an engine that Ollama started: give Ollama's own address instead")
    return Attempt(url, why, f"{info.title} answers", info)


def explain(detection: Detection) -> str:
    """What was tried with what came back, and what to do; several lines for a person."""
    lines = ["No model server was found." if not detection.found else "Model servers that answer:"]
    width = max((len(attempt.url) for attempt in detection.tried), default=0)
    lines += [f"  {attempt.url:<{width}}  ({attempt.why}): {attempt.outcome}" for attempt in detection.tried]
    if not detection.found:
        lines += [
            "Start one (for Ollama: `ollama serve`), give an address with --server URL, or set OLLAMA_HOST.",
            "Or use the embedded model, which needs no server: `chimera --embedded`.",
        ]
    return "\n".join(lines)


def open_backend(target: Target) -> Backend:
    """The backend for a target; not connected yet. Raises `ConfigError` where the target lacks an address."""
    if target.kind == "embedded":
        from .embedded import Embedded

        return Embedded()
    if target.kind == "llama_server" and target.command:
        from .llama_server import StartedLlamaServer

        return StartedLlamaServer(target.command, target.folder)
    if target.url is None:
        raise ConfigError(f"No address for the {target.kind} server: give one with --server URL.")
    url = normalise_url(target.url)
    if target.kind == "ollama":
        from .ollama import Ollama

        return Ollama(url, target.model)
    if target.kind == "llama_server":
        from .llama_server import LlamaServer

        return LlamaServer(url, target.model)
    from .openai import OpenAICompatible

    return OpenAICompatible(url, target.model)
