"""Ollama, by its native API.

It reloads a model whenever a request asks for other load options than it runs with, so every request carries the whole
configuration. What the API does not tell of the running engine is read from its child's arguments, on the same host.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from chimera.domain.options import SAMPLING_OPTIONS, Options
from chimera.domain.readings import Missing, Source
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.text import plain
from chimera.errors import BackendError, BackendRefused, BadAnswer, ChimeraError, ConfigError, OutOfMemory, StreamBroken
from chimera.model.effective import OLLAMA_MINIMUM, VISION_FLOOR, derive

from .address import is_local
from .base import Activity, Done, Event, GenerateRequest, Headers, Tokens
from .bounds import Bounds, drain
from .llama_dialect import Tokenized, checked, slots_of
from .ollama_child import Child, children
from .wire import Lines, Opened, Wire, refusal

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape

KEEP_ALIVE = "10m"
"""How long a model that we load stays, so that it does not leave between two sessions."""
LOAD_TIMEOUT_S = 330.0
"""A little over Ollama's own limit for a load, 5 minutes."""
UNLOAD_TIMEOUT_S = 60.0

_FOREVER_S = 10 * 365 * 86400.0
_VARIABLES = {
    "flash_attention": "OLLAMA_FLASH_ATTENTION",
    "kv_cache_type": "OLLAMA_KV_CACHE_TYPE",
    "num_parallel": "OLLAMA_NUM_PARALLEL",
}
_CRASHES = ("unexpected eof", "unexpectedly stopped", "process has terminated", "connection reset")


class _Details(BaseModel):
    family: str | None = None
    quantization_level: str | None = None


class _Running(BaseModel):
    name: str | None = None
    digest: str | None = None
    size: int | None = None
    size_vram: int | None = None
    context_length: int | None = None
    expires_at: str | None = None


class _Ps(BaseModel):
    models: list[_Running] | None = None


class _Installed(BaseModel):
    name: str | None = None
    digest: str | None = None
    size: int | None = None
    details: _Details | None = None
    capabilities: list[str] | None = None
    remote_host: str | None = None


class _Tags(BaseModel):
    models: list[_Installed] | None = None


class _Show(BaseModel):
    modelfile: str | None = None
    details: _Details | None = None
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None


class _Version(BaseModel):
    version: str | None = None


class _Line(BaseModel):
    """One line of the stream; durations are nanoseconds, and a key whose value is 0 is left out."""

    response: str | None = None
    thinking: str | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: Any = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


M = TypeVar("M", bound=BaseModel)


def _shaped(shape: type[M], data: object, where: str) -> M:
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadAnswer(f"{where} answered with {plain(place) or 'a body'} of an unexpected type.") from error


class Ollama:
    """One model of an Ollama server that Chimera did not start."""

    kind: ServerKind = "ollama"
    owned = False
    load_options = frozenset({"num_gpu", "num_ctx", "num_batch", "num_thread"})
    sampling_options = SAMPLING_OPTIONS
    headers_mark_slot = False

    def __init__(self, url: str, model: str | None = None, *, wire: Wire | None = None) -> None:
        self._wire = wire or Wire(url)
        self._asked_model = model
        self._name: str | None = None
        self._shows: dict[str, _Show] = {}
        self._bodies: dict[str, dict[str, Any]] = {}
        """The whole `/api/show` a model, for its shape."""
        self._thinking: dict[str, bool] = {}
        self._loaded_with: Options | None = None
        """Load options of our last load, while nothing tells that another client has changed them."""
        self._keep_alive: str | int = KEEP_ALIVE
        self._touched: bool | None = None
        """Whether we changed what `remember` saw; None where another process remembered it."""
        self._child: Child | None = None
        self._child_wire: Wire | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return self._wire.url

    # ---- what is there -----------------------------------------------------------------------------------------------

    async def connect(self) -> ServerInfo:
        """Reach the server and say what it is. Raises `BadAnswer` where it is no Ollama."""
        answer = await self._get(_Version, "/api/version")
        if answer.version is None:
            raise BadAnswer(f"{self._wire.url} answers, but /api/version has no version: this is no Ollama.")
        return ServerInfo("ollama", self._wire.url, version=plain(answer.version)[:40])

    async def shape(self) -> ModelShape | None:
        """The model's layers and sizes, from `/api/show`; None where that tells too little."""
        from chimera.model.shape import from_show

        name = await self._model_name()
        await self._show(name)
        try:
            return from_show(self._bodies[name])
        except ChimeraError:
            return None

    async def models(self) -> tuple[ModelInfo, ...]:
        """The installed models, loaded ones first."""
        tags, running = await asyncio.gather(self._tags(), self._running())
        loaded = [each.name for each in running]
        known = [_from_tags(each) for each in tags if each.name]
        return tuple(sorted(known, key=lambda model: model.name not in loaded))

    async def model(self) -> ModelInfo:
        """The model with what `/api/show` tells: layers, trained window, capabilities.

        Raises `BackendRefused` where it is not installed.
        """
        name = await self._model_name()
        listed = next((each for each in await self._tags() if each.name == name), _Installed(name=name))
        show = await self._show(name)
        base, info = _from_tags(listed), show.model_info or {}
        kind = info.get("general.architecture")
        return ModelInfo(
            name=base.name,
            digest=base.digest,
            quantization=base.quantization or (show.details and show.details.quantization_level) or None,
            architecture=kind if isinstance(kind, str) else base.architecture,
            block_count=_count(info.get(f"{kind}.block_count")),
            trained_ctx=_count(info.get(f"{kind}.context_length")),
            size_bytes=base.size_bytes,
            parameters=_count(info.get("general.parameter_count")),
            vision="vision" in (show.capabilities or []),
            path=self._readable(_blob(show)),
        )

    async def _tags(self) -> list[_Installed]:
        return (await self._get(_Tags, "/api/tags")).models or []

    async def _running(self) -> list[_Running]:
        # it can block on the scheduler's locks for up to about 10 s
        return (await self._get(_Ps, "/api/ps", timeout_s=15.0)).models or []

    async def _ours(self) -> _Running | None:
        name = await self._model_name()
        return next((each for each in await self._running() if each.name == name), None)

    async def _model_name(self) -> str:
        """The model as the server names it, settled once: the one asked for, else a loaded one, else the first."""
        if self._name is None:
            tags, running = await asyncio.gather(self._tags(), self._running())
            names = [each.name for each in tags if each.name]
            if self._asked_model is not None:
                for name in (self._asked_model, f"{self._asked_model}:latest"):
                    if name in names:
                        self._name = name
                        return name
                have = ", ".join(plain(name) for name in names[:8]) or "none"
                raise BackendRefused(
                    f"{self._wire.url} has no model {plain(self._asked_model)!r}. Installed: {have}.", status=404
                )
            local = [each.name for each in tags if each.name and not each.remote_host and _completes(each)]
            loaded = [each.name for each in running if each.name in local]
            if not (loaded or local):
                raise BackendRefused(
                    f"{self._wire.url} has no model that could generate text: install one with `ollama pull NAME`."
                )
            self._name = (loaded or local)[0]
        assert self._name is not None
        return self._name

    async def _show(self, name: str) -> _Show:
        digest = next((each.digest for each in await self._tags() if each.name == name), None) or name
        if digest not in self._shows:
            data = await self._wire.json("POST", "/api/show", {"model": name}, timeout_s=30.0)
            self._shows[digest] = _shaped(_Show, data, f"{self._wire.url}/api/show")
            self._bodies[name] = data
        return self._shows[digest]

    async def _can_think(self, name: str) -> bool:
        """Asked once a model: another question right before each request would be time that is not the request's."""
        if name not in self._thinking:
            self._thinking[name] = "thinking" in ((await self._show(name)).capabilities or [])
        return self._thinking[name]

    def _readable(self, path: str | None) -> str | None:
        if path is None or not is_local(self._wire.url) or not Path(path).is_absolute():
            return None
        return path if os.access(path, os.R_OK) else None

    async def _get(self, shape: type[M], path: str, *, timeout_s: float = 10.0) -> M:
        data = await self._wire.json("GET", path, timeout_s=timeout_s)
        return _shaped(shape, data, f"{self._wire.url}{path}")

    # ---- loading -----------------------------------------------------------------------------------------------------

    async def would_reload(self, options: Options) -> str | None:
        """A sentence where loading these options would unload or reload something; None where it would not."""
        name, running = await self._model_name(), await self._running()
        ours = next((each for each in running if each.name == name), None)
        where = f"Ollama at {self._wire.url}"
        if ours is None:
            others = ", ".join(plain(each.name) for each in running if each.name)
            return f"{where} has {others} loaded and may unload it to make room for {name}." if others else None
        if _automatic(options.num_gpu):
            return (
                f"{where} would unload {name} and load it again: automatic num_gpu takes effect only at a fresh load."
            )
        asked = options.only(self.load_options)
        window = None if asked.num_ctx is None else _window(asked.num_ctx, await self.model())
        if asked == self._loaded_with and window in (None, ours.context_length):
            return None
        child = await self._find_child()
        if child is None:
            return f"{where} would probably load {name} again with {asked}: what it runs with cannot be read from here."
        changes = [
            f"{option} {_shown(now)} -> {_shown(then)}"
            for option, now, then in await self._differences(asked, ours, child)
        ]
        return f"{where} would load {name} again: {', '.join(changes)}." if changes else None

    async def _differences(self, asked: Options, ours: _Running, child: Child) -> list[tuple[str, object, object]]:
        """Option, what runs and what is asked for, wherever Ollama would see a change and reload."""
        runs, model = child.options, await self.model()
        window = _window(asked.num_ctx, model) if asked.num_ctx is not None else ours.context_length
        batch = asked.num_batch if asked.num_batch is not None else automatic_batch(window)
        pairs = (
            ("num_gpu", runs.num_gpu, asked.num_gpu),
            ("num_ctx", ours.context_length, window),
            ("num_batch", runs.num_batch, batch),
            ("num_thread", runs.num_thread, asked.num_thread),
        )
        return [pair for pair in pairs if pair[1] != pair[2]]

    async def load(self, options: Options) -> Effective:
        """Make the load options effective and read back what runs.

        Raises `ConfigError` for options that only the server's environment can set, `OutOfMemory` where it does not
        fit. A server with automatic layers is made to unload first: it would else keep the layers that it has.
        """
        self._refuse_environment(options)
        name = await self._model_name()
        asked = options.only(self.load_options)
        if _automatic(asked.num_gpu):
            await self._unload(name)
        self._loaded_with = None
        self._touched = True
        await self._preload(name, asked, self._keep_alive)
        self._loaded_with = asked
        return await self.effective()

    def _refuse_environment(self, options: Options) -> None:
        for option in sorted(options.load.as_dict().keys() - self.load_options):
            raise ConfigError(
                f"Ollama takes no {option} with a request: set {_VARIABLES[option]} in the environment of "
                "`ollama serve` and start it again."
            )

    async def _preload(self, name: str, asked: Options, keep_alive: str | int) -> None:
        body = {"model": name, "keep_alive": keep_alive, "stream": False, "options": _sent(asked)}
        try:
            data = await self._wire.json("POST", "/api/generate", body, timeout_s=LOAD_TIMEOUT_S)
        except OutOfMemory as error:
            raise OutOfMemory(f"{name} does not fit with {asked}: {error}", status=error.status) from error
        line = _shaped(_Line, data, f"{self._wire.url}/api/generate")
        if line.error is not None:
            raise refusal(None, {"error": line.error}, where=f"{self._wire.url}/api/generate")
        if not line.done:
            raise BadAnswer(f"{self._wire.url} did not say that {name} is loaded.")

    async def _unload(self, name: str) -> bool:
        """Unload one model and wait until it has gone; False where it was not loaded.

        Raises `BackendRefused` where it stays, because another client keeps it busy.
        """
        if all(each.name != name for each in await self._running()):
            return False
        self._loaded_with = None
        await self._wire.json(
            "POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False}, timeout_s=UNLOAD_TIMEOUT_S
        )
        deadline = self._wire.clock() + UNLOAD_TIMEOUT_S
        pause = 0.01
        while any(each.name == name for each in await self._running()):
            if self._wire.clock() > deadline:
                raise BackendRefused(
                    f"{self._wire.url} did not unload {name} within {UNLOAD_TIMEOUT_S:g} s: another client uses it."
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)
        return True

    async def effective(self) -> Effective:
        """What runs now: `/api/ps`, and on the same host the arguments of the engine's process."""
        ours = await self._ours()
        name = await self._model_name()
        asked = self._loaded_with or Options()
        if ours is None:
            self._loaded_with = None
            return Effective(notes=(f"{name} is not loaded.",), unread=tuple(asked.as_dict()))
        model, child = await self.model(), await self._find_child(fresh=True)
        return _read_back(asked, ours, model, child)

    # ---- the engine's process ----------------------------------------------------------------------------------------

    async def _find_child(self, *, fresh: bool = False) -> Child | None:
        """The process that runs the model, where it can be seen from here."""
        if not is_local(self._wire.url):
            return None
        if self._child is None or fresh:
            name = await self._model_name()
            blob = _blob(await self._show(name))
            found = await asyncio.to_thread(children, urlsplit(self._wire.url).port or 80)
            file = Path(blob).name if blob else None
            matching = [child for child in found if file is None or Path(child.blob).name == file]
            child = matching[0] if len(matching) == 1 else None
            if child != self._child and self._child_wire is not None:
                await self._child_wire.close()
                self._child_wire = None
            self._child = child
        return self._child

    async def _ask_child(self, method: str, path: str, body: object = None) -> Any:
        """JSON of the engine itself, None where it cannot be seen from here or does not answer."""
        known = self._child is not None
        for again in (False, True):
            child = await self._find_child(fresh=again)
            if child is None:
                return None
            if self._child_wire is None:
                self._child_wire = Wire(child.url, connect_timeout_s=1.0, environ={})
            try:
                return await self._child_wire.json(method, path, body, timeout_s=2.0)
            except BackendError:
                if not known:  # found just now: looking once more finds nothing better
                    return None
        return None

    async def count_tokens(self, text: str) -> int | None:
        """Ollama offers no tokenizer; its engine does, on the same host while the model is loaded."""
        data = await self._ask_child("POST", "/tokenize", {"content": text, "add_special": True, "parse_special": True})
        if data is None:
            return None
        return len(checked(Tokenized, data, where="The engine's /tokenize").tokens)

    async def activity(self) -> Activity:
        """The engine's slots, on the same host; Ollama itself shows neither requests nor its queue."""
        hidden = Missing("unsupported", "Ollama does not show its queue")
        data = await self._ask_child("GET", "/slots")
        if data is None:
            why = "the engine's slots can be seen on the server's own host only, while a model is loaded"
            away = Missing("unreachable", why)
            return Activity(busy=away, waiting=hidden, tasks=away)
        slots = slots_of(data, where="The engine's /slots")
        tasks = frozenset(slot.task for slot in slots if slot.task is not None)
        return Activity(busy=float(sum(slot.busy for slot in slots)), waiting=hidden, tasks=tasks)

    # ---- generating --------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Send one raw prompt and yield what comes; see `Backend.generate`."""
        name = await self._model_name()
        self._touched = True
        body: dict[str, Any] = {
            "model": name,
            "prompt": request.prompt,
            "raw": True,  # no template: the prompt is what was measured, and no turn can end it early
            "stream": True,
            "keep_alive": self._keep_alive,
            "options": {
                **_sent(request.options.only(self.load_options | self.sampling_options)),
                "num_predict": request.output_tokens,
                "seed": request.seed,
                "stop": [],
            },
        }
        if await self._can_think(name):
            body["think"] = False
        where = f"{self._wire.url}/api/generate"
        lines, bounds, retries, last = Lines(), None, 0, 0.0
        async with aclosing(self._wire.stream("/api/generate", body, timeout_s=request.timeout_s)) as items:
            async for item in items:
                if isinstance(item, Opened):
                    if item.status < 400:
                        bounds, retries = Bounds(request, where=where, since=item.at), item.retries
                        yield Headers(item.at)
                    continue
                records = _records(lines, item.data, where)
                if bounds is not None:
                    bounds.heard(item.at, len(records))
                last = item.at
                for record in records:
                    for event in _events(record, last, retries, where):
                        if isinstance(event, Done):
                            await drain(items)
                            yield event
                            return
                        yield event
        if rest := lines.rest().strip():  # a last line without its end
            for event in _events(rest, last, retries, where):
                yield event
                if isinstance(event, Done):
                    return
        raise StreamBroken(f"{where}: the answer ended without its last line. Ollama's log says why.")

    # ---- leaving it as it was ----------------------------------------------------------------------------------------

    async def remember(self) -> dict[str, Any]:
        """Our model's name, and how each loaded model was loaded as far as that can be read."""
        name = await self._model_name()
        loaded: list[dict[str, Any]] = []
        for each in await self._running():
            entry: dict[str, Any] = {
                "name": each.name,
                "num_ctx": each.context_length,
                "keep_alive": _keep_alive(each.expires_at),
            }
            if each.name == name:
                child = await self._find_child(fresh=True)
                entry["options"] = None if child is None else child.options.only(self.load_options).as_dict()
                if entry["keep_alive"] == -1:
                    self._keep_alive = -1  # what was to stay for ever must not leave because of us
            loaded.append(entry)
        self._touched = False
        return {"model": name, "loaded": loaded}

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        """Load the model as it was, or unload it where it was not loaded; other models are only named."""
        name = remembered.get("model")
        if not isinstance(name, str) or self._touched is False:
            return ()
        before = {entry["name"]: entry for entry in remembered.get("loaded", [])}
        now = {each.name: each for each in await self._running()}
        said = [
            f"{plain(other)} was loaded before and is not now: Ollama loads it at its next request."
            for other in before
            if other != name and other not in now
        ]
        was = before.get(name)
        if was is None:
            if await self._unload(name):
                said.append(f"Unloaded {plain(name)}: it was not loaded before.")
            return tuple(said)
        options, unread = _remembered_options(was)
        if name in now and await self._runs_as(name, was):
            return tuple(said)
        if _automatic(options.num_gpu):
            await self._unload(name)
        self._loaded_with = None
        await self._preload(name, options, was.get("keep_alive") or KEEP_ALIVE)
        said.append(f"Loaded {plain(name)} again with {options}.")
        if unread:
            said.append(f"How {plain(name)} was loaded could not be read as to {', '.join(unread)}: left to Ollama.")
        return tuple(said)

    async def _runs_as(self, name: str, was: dict[str, Any]) -> bool:
        """Whether our model runs now as it was remembered, as far as that can be read."""
        ours, child = await self._ours(), await self._find_child(fresh=True)
        if ours is None or child is None or ours.name != name:
            return False
        same: bool = child.options.only(self.load_options).as_dict() == was.get("options")
        return same and ours.context_length == was.get("num_ctx")

    async def close(self) -> None:
        """Close connections; the server and its models stay as they are."""
        await self._wire.close()
        if self._child_wire is not None:
            await self._child_wire.close()


# ---- reading answers -------------------------------------------------------------------------------------------------


def _records(lines: Lines, data: bytes, where: str) -> list[bytes]:
    try:
        return [line for line in lines.feed(data) if line.strip()]
    except BadAnswer as error:
        raise BadAnswer(f"{where}: {error}") from error


def _events(record: bytes, at: float, retries: int, where: str) -> list[Event]:
    """What one line of the stream says."""
    try:
        line = _Line.model_validate_json(record)
    except ValidationError as error:
        shown = plain(record[:80].decode("utf-8", "replace"))
        raise BadAnswer(f"{where} sent a line that is not of Ollama's protocol: {shown}") from error
    if line.error is not None:
        raise _midstream(line.error, where)
    if line.response is None and line.thinking is None and line.done is None:
        shown = plain(record[:80].decode("utf-8", "replace"))
        raise BadAnswer(f"{where} sent a line that is not of Ollama's protocol: {shown}")
    events: list[Event] = []
    if text := (line.thinking or "") + (line.response or ""):
        events.append(Tokens(at, text, thinking=not line.response))
    if line.done:
        events.append(_done(line, at, retries))
    return events


def _midstream(error: object, where: str) -> BackendError:
    """The kind of error that a line in the middle of a stream stands for."""
    refused = refusal(None, {"error": error if isinstance(error, str | dict) else str(error)}, where=where)
    words = str(refused).lower()
    if type(refused) is BackendRefused and any(sign in words for sign in _CRASHES):
        return StreamBroken(f"{refused}. The engine of the model has died: Ollama's log says why.")
    return refused


def _done(line: _Line, at: float, retries: int) -> Done:
    if line.total_duration is None:  # no figures at all, as with a load or an unload
        return Done(at, finish_reason=line.done_reason, retries=retries)
    load, prefill, decode = line.load_duration or 0, line.prompt_eval_duration or 0, line.eval_duration or 0
    return Done(
        at=at,
        load_s=load / 1e9,
        # no field names the wait for a slot: it is what the others leave of the total
        queue_s=max(0, line.total_duration - load - prefill - decode) / 1e9,
        prefill_s=prefill / 1e9,
        decode_s=decode / 1e9,
        prompt_tokens=line.prompt_eval_count or 0,
        completion_tokens=line.eval_count or 0,
        finish_reason=line.done_reason,
        retries=retries,
    )


def _from_tags(listed: _Installed) -> ModelInfo:
    details = listed.details or _Details()
    return ModelInfo(
        name=listed.name or "",
        digest=f"sha256:{listed.digest}" if listed.digest and re.fullmatch(r"[0-9a-f]{64}", listed.digest) else None,
        quantization=details.quantization_level or None,
        architecture=details.family or None,
        size_bytes=listed.size or None,
        vision="vision" in (listed.capabilities or []),
    )


def _completes(listed: _Installed) -> bool:
    return not listed.capabilities or "completion" in listed.capabilities


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _blob(show: _Show) -> str | None:
    """The model's file, from the first FROM of its Modelfile that is a path."""
    match = re.search(r"^FROM\s+(\S.*?)\s*$", show.modelfile or "", re.MULTILINE)
    return match.group(1).strip('"') if match and ("/" in match.group(1) or "\\" in match.group(1)) else None


# ---- configurations --------------------------------------------------------------------------------------------------


def _automatic(num_gpu: int | None) -> bool:
    return num_gpu is None or num_gpu < 0


def _sent(options: Options) -> dict[str, Any]:
    """Options as a request carries them; an automatic num_gpu is one that is left out."""
    values: dict[str, Any] = options.as_dict()
    if _automatic(options.num_gpu):
        values.pop("num_gpu", None)
    return values


def _shown(value: object) -> str:
    return "automatic" if value is None else str(value)


def _window(num_ctx: int, model: ModelInfo) -> int:
    """The window that Ollama tells its engine for a requested one (server/sched.go)."""
    window = max(num_ctx, VISION_FLOOR if model.vision else OLLAMA_MINIMUM)
    return min(window, model.trained_ctx) if model.trained_ctx else window


def automatic_batch(num_ctx: int | None) -> int | None:
    """The batch that Ollama takes by itself for a window, where memory allows (llm/llama_server.go)."""
    if num_ctx is None:
        return None
    return 2048 if num_ctx > 32768 else 1024 if num_ctx > 4096 else 512


def _read_back(asked: Options, ours: _Running, model: ModelInfo, child: Child | None) -> Effective:
    """What runs, from what `/api/ps` and the engine's arguments tell, by the rules of `chimera.model.effective`."""
    told = child.options if child is not None else Options(num_gpu=asked.num_gpu)
    told = Options(num_ctx=ours.context_length).over(told)
    if child is not None:
        told = told.over(Options(kv_cache_type="f16"))  # the engine's default: Ollama passes a type only if one is set
    no_gpu = 0 if ours.size and ours.size_vram == 0 else None
    runs = derive(Options(), model, "ollama", defaults=told, gpus=no_gpu).options.load.as_dict()
    measured = (child.options if child is not None else Options()).over(Options(num_ctx=ours.context_length)).as_dict()
    sources: dict[str, Source] = {
        option: "measured" if measured.get(option) == value else "derived" for option, value in runs.items()
    }
    notes = list(derive(asked, model, "ollama", defaults=told, gpus=no_gpu).notes)
    if "num_gpu" not in runs and (guess := _layers_by_memory(ours, model)) is not None:
        runs["num_gpu"], sources["num_gpu"], note = guess
        notes.append(note)
    if asked.num_ctx is not None and ours.context_length not in (None, _window(asked.num_ctx, model)):
        notes.append(f"num_ctx {asked.num_ctx} was asked for and the server runs {ours.context_length}.")
    if asked.num_batch is None and asked.num_ctx is not None and "num_batch" in measured:
        notes.append(f"num_batch was not asked for and runs as {runs['num_batch']}: Ollama chooses it by the window.")
    for option in ("num_batch", "num_thread"):
        wanted = asked.as_dict().get(option)
        if wanted is not None and option in measured and measured[option] != wanted:
            notes.append(f"{option} {wanted} was asked for and the server runs {measured[option]}.")
    return Effective(
        options=Options.of(runs),
        sources=sources,
        notes=tuple(notes),
        unread=tuple(option for option in asked.as_dict() if option not in runs),
        size_bytes=ours.size,
        vram_bytes=ours.size_vram,
        pid=None if child is None else child.pid,
    )


def _layers_by_memory(ours: _Running, model: ModelInfo) -> tuple[int, Source, str] | None:
    """Layers on the GPU where they were left to the engine: the API tells only how its memory is divided."""
    if not (ours.size and ours.size_vram is not None and model.block_count):
        return None
    every, share = model.block_count + 1, ours.size_vram / ours.size
    if share >= 1:
        return every, "derived", f"Automatic num_gpu runs as {every}: all of the model is on the GPU."
    layers = round(share * every)
    return layers, "estimated", f"Automatic num_gpu runs as about {layers}: {share:.0%} of the memory is on the GPU."


def _remembered_options(was: dict[str, Any]) -> tuple[Options, list[str]]:
    """The options to load with, and those that could not be read."""
    window = was.get("num_ctx")
    if was.get("options") is None:
        unread = sorted(Ollama.load_options - {"num_ctx"})
        return Options(num_ctx=window), unread if window else [*unread, "num_ctx"]
    options = Options.of({**was["options"], "num_ctx": window})
    if options.num_batch == automatic_batch(window):  # it was most likely left to Ollama
        options = Options.of({**options.as_dict(), "num_batch": None})
    return options, []


def _keep_alive(expires_at: str | None) -> int | None:
    """Seconds until a model would have left, -1 for never, None where that cannot be read."""
    try:
        # nanoseconds are more than fromisoformat takes
        left = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", expires_at or "")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return -1 if left > _FOREVER_S else max(1, round(left))
