"""What llama.cpp's server says over HTTP: its native `/completion` stream, `/props`, `/slots`, `/metrics`.

Shared by every engine that is a llama-server inside: attached, started by Chimera, embedded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from chimera.domain.readings import Missing
from chimera.domain.text import plain
from chimera.errors import BackendRefused, BadAnswer, StreamBroken

from .base import Activity, Done, Event, GenerateRequest, Headers, PromptProgress, Tokens
from .wire import EventStream, Opened, Wire, parse_json, refusal

Model = TypeVar("Model", bound=BaseModel)

LATE_HEADERS = 0.5
"""Headers that come later than this share of the prefill before the first token did not mark the slot's start."""

_TELLING_PREFILL_S = 0.02
"""A shorter prefill tells nothing about the headers."""

_SLACK_TOKENS = 16
"""Tokens over the length asked for that are still taken for an answer."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class GenerationDefaults(_Answer):
    """`default_generation_settings` of `/props`."""

    n_ctx: int | None = None
    """Context of one slot, in tokens."""


class Modalities(_Answer):
    """What goes in beside text."""

    vision: bool = False


class Props(_Answer):
    """`GET /props`."""

    default_generation_settings: GenerationDefaults = GenerationDefaults()
    total_slots: int | None = None
    model_path: str | None = None
    model_alias: str | None = None
    model_ftype: str | None = None
    modalities: Modalities = Modalities()
    build_info: str | None = None
    endpoint_slots: bool = True
    endpoint_metrics: bool | None = None
    """None = an older build, which does not tell."""
    is_sleeping: bool = False
    role: str | None = None
    """`router` for a server without a model of its own."""


class ModelMeta(_Answer):
    """`meta` of an entry of `/v1/models`."""

    n_ctx_train: int | None = None
    n_params: int | None = None
    size: int | None = None
    ftype: str | None = None


class ModelStatus(_Answer):
    """`status` of an entry of a router's list."""

    value: str | None = None


class ModelEntry(_Answer):
    """One model of `/v1/models`."""

    id: str
    aliases: tuple[str, ...] = ()
    meta: ModelMeta | None = None
    status: ModelStatus | None = None


class ModelList(_Answer):
    """`GET /v1/models`."""

    data: tuple[ModelEntry, ...]


class Slot(_Answer):
    """One entry of `/slots`, in the shapes of older and newer builds; a slot never used has hardly any field."""

    id: int | None = None
    is_processing: bool | None = None
    state: int | None = None
    """Older builds: 0 = idle."""
    id_task: int | None = None
    task_id: int | None = None

    @property
    def busy(self) -> bool:
        """It works on a request."""
        return self.is_processing if self.is_processing is not None else bool(self.state)

    @property
    def task(self) -> int | None:
        """The request in work, or the last one."""
        task = self.id_task if self.id_task is not None else self.task_id
        return None if task is None or task < 0 else task


class Timings(_Answer):
    """`timings` of the final object; milliseconds. Rates are computed from these, never taken over."""

    cache_n: int | None = None
    """Prompt tokens that were reused."""
    prompt_n: int | None = None
    """Prompt tokens that were computed."""
    prompt_ms: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None


class Progress(_Answer):
    """`prompt_progress` of a chunk."""

    total: int
    processed: int
    cache: int = 0


class CompletionChunk(_Answer):
    """One event of a `/completion` stream; the last one has `stop`."""

    content: str = ""
    tokens: tuple[int, ...] = ()
    stop: bool = False
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    prompt_progress: Progress | None = None
    error: Any = None
    truncated: bool = False
    stop_type: str | None = None
    timings: Timings | None = None


class Tokenized(_Answer):
    """`POST /tokenize`."""

    tokens: tuple[Any, ...]


SLOTS: TypeAdapter[tuple[Slot, ...]] = TypeAdapter(tuple[Slot, ...])


def checked(model: type[Model], value: object, *, where: str) -> Model:
    """`value` as an answer of that shape, or `BadAnswer` naming the field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise BadAnswer(f"{where} did not answer as a llama-server does: {_wrong(error)}") from error


def slots_of(value: object, *, where: str) -> tuple[Slot, ...]:
    """The slots of a `/slots` answer. Raises `BadAnswer`."""
    try:
        return SLOTS.validate_python(value)
    except ValidationError as error:
        raise BadAnswer(f"{where} answered no list of slots: {_wrong(error)}") from error


def _wrong(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return plain(f"{field}: {first['msg']}" if field else first["msg"])


def metrics_of(text: str) -> dict[str, float]:
    """The samples of a `/metrics` page, without the `llamacpp:` prefix; lines that are none are left out."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" ")
        if name.startswith("llamacpp:") and rest:
            try:
                values[name.removeprefix("llamacpp:").partition("{")[0]] = float(rest.split()[0])
            except ValueError:
                continue
    return values


def completion_body(request: GenerateRequest, sampling: frozenset[str]) -> dict[str, Any]:
    """The body of `POST /completion` for a request of fixed length."""
    return {
        "prompt": request.prompt,
        "n_predict": request.output_tokens,
        "ignore_eos": True,
        "cache_prompt": request.cache_prompt,
        "seed": request.seed,
        "stream": True,
        "return_progress": True,
        "timings_per_token": False,
        **request.options.only(sampling).as_dict(),
    }


class CompletionReader:
    """Turns the bytes of one `/completion` stream into events, whatever pieces they arrive in."""

    def __init__(self, *, where: str, output_tokens: int) -> None:
        self._where = where
        self._limit = output_tokens + _SLACK_TOKENS
        self._events = EventStream()
        self._counted = 0
        self._processed = -1

    def feed(self, at: float, data: bytes) -> list[Event]:
        """The events that these bytes, read at `at`, complete. After a `Done` nothing more is read.

        Raises `BadAnswer` for something that is no such stream, and `BackendRefused` kinds for an error in it.
        """
        events: list[Event] = []
        try:
            records = self._events.feed(data)
        except BadAnswer as error:
            raise BadAnswer(f"{self._where}: {error}") from error
        for record in records:
            events += self._read(at, record)
            if events and isinstance(events[-1], Done):
                break
        return events

    def end(self, at: float) -> list[Event]:
        """The stream has ended: what its last, unfinished record holds, or `StreamBroken` where the end is missing."""
        rest = self._events.rest()
        events: list[Event] = []
        if rest:
            try:
                events = self._read(at, rest)
            except BadAnswer as error:
                raise self._broken("in the middle of a line") from error
        if not events or not isinstance(events[-1], Done):
            raise self._broken(f"after {self._counted} tokens, without the final figures")
        return events

    def _broken(self, how: str) -> StreamBroken:
        return StreamBroken(f"{self._where}: the answer ended {how}. The server may have crashed: its log says why.")

    def _read(self, at: float, record: bytes) -> list[Event]:
        if record == b"[DONE]":
            return []
        value = parse_json(record, where=self._where)
        chunk = checked(CompletionChunk, value, where=self._where)
        if chunk.error is not None:
            raise refusal(None, {"error": chunk.error}, where=self._where)
        events: list[Event] = []
        if chunk.prompt_progress is not None and not self._counted:
            progress = chunk.prompt_progress
            if progress.processed > self._processed:  # one that stands still is no sign of life
                self._processed = progress.processed
                events.append(PromptProgress(at, progress.processed, progress.total, progress.cache))
        new = self._new_tokens(chunk)
        if new or chunk.content:
            self._counted += new
            events.append(Tokens(at, chunk.content, max(new, 1), counted=chunk.tokens_predicted is not None))
        if self._counted > self._limit:
            raise BadAnswer(f"{self._where} sent more tokens than were asked for, without an end.")
        if chunk.stop:
            events.append(_done(at, chunk))
        return events

    def _new_tokens(self, chunk: CompletionChunk) -> int:
        if chunk.stop and not chunk.content:
            return 0  # the final figures are no token of their own
        if chunk.tokens_predicted is not None:
            return max(0, chunk.tokens_predicted - self._counted)
        if chunk.prompt_progress is not None:
            return 0
        return len(chunk.tokens) or (1 if chunk.content else 0)


def _done(at: float, chunk: CompletionChunk) -> Done:
    timings = chunk.timings or Timings()
    prompt = chunk.tokens_evaluated
    if timings.prompt_n is not None and timings.cache_n is not None:
        prompt = timings.prompt_n + timings.cache_n
    return Done(
        at,
        load_s=0.0,
        prefill_s=None if timings.prompt_ms is None else timings.prompt_ms / 1000,
        # One token is sampled from the prompt's own pass: its "decode" of a microsecond is no time at all.
        decode_s=None if timings.predicted_ms is None else timings.predicted_ms / 1000,
        prompt_tokens=prompt,
        cached_tokens=timings.cache_n,
        completion_tokens=timings.predicted_n if timings.predicted_n is not None else chunk.tokens_predicted,
        finish_reason=chunk.stop_type,
        truncated=chunk.truncated,
    )


async def _complete(
    wire: Wire, path: str, body: dict[str, Any], request: GenerateRequest
) -> AsyncGenerator[Event, None]:
    """POST a completion and yield its events; each is stamped with the read that completed it.

    Raises `BackendError` kinds: also `StreamBroken` where bytes keep coming but nothing of an answer does for the
    request's timeout (comments, a stream that stands still).
    """
    where = f"POST {wire.url}{path}"
    reader = CompletionReader(where=where, output_tokens=request.output_tokens)
    retries = 0
    alive = wire.clock()
    async with aclosing(wire.stream(path, body, timeout_s=request.timeout_s, close=True)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Opened):
                retries, alive = piece.retries, piece.at
                sort = piece.headers.get("content-type", "")
                if piece.status < 400 and not sort.startswith("text/event-stream"):
                    raise BadAnswer(
                        f"{where} answered with status {piece.status} and `{plain(sort) or 'no type'}` instead of a "
                        "stream of tokens: this is not a llama-server's /completion."
                    )
                if piece.status < 400:
                    yield Headers(piece.at)
                continue
            events = reader.feed(piece.at, piece.data)
            if events:
                alive = piece.at
            elif piece.at - alive > request.timeout_s:
                raise StreamBroken(f"{where}: bytes came, but nothing of an answer for {request.timeout_s:g} s.")
            for event in events:
                if isinstance(event, Done):
                    yield _counted(event, retries)
                    return
                yield event
    for event in reader.end(wire.clock()):
        yield _counted(event, retries) if isinstance(event, Done) else event


class LlamaEndpoint:
    """One llama-server at one address."""

    def __init__(self, url: str) -> None:
        self.wire = Wire(url)
        self.url = self.wire.url
        self.headers_mark_slot = True
        """False once an answer showed that this build sends its headers late."""
        self._model: str | None = None

    def ask_for(self, model: str) -> None:
        """Name this model in every request: the server is a router with several."""
        self._model = model

    def _path(self, path: str) -> str:
        return f"{path}?{urlencode({'model': self._model})}" if self._model else path

    async def props(self) -> Props:
        """What it runs with."""
        path = self._path("/props")
        return checked(Props, await self.wire.json("GET", path), where=f"GET {self.url}{path}")

    async def models(self) -> ModelList:
        """What it serves."""
        return checked(ModelList, await self.wire.json("GET", "/v1/models"), where=f"GET {self.url}/v1/models")

    async def generate(self, request: GenerateRequest, sampling: frozenset[str]) -> AsyncGenerator[Event, None]:
        """One request of fixed length; see `Backend.generate`."""
        body = completion_body(request, sampling)
        if self._model:
            body["model"] = self._model
        headers_at = first_at = None
        async with aclosing(_complete(self.wire, "/completion", body, request)) as events:
            async for event in events:
                if isinstance(event, Headers):
                    headers_at = event.at
                elif isinstance(event, Tokens) and first_at is None:
                    first_at = event.at
                elif isinstance(event, Done) and headers_at is not None and first_at is not None:
                    prefill = event.prefill_s or 0.0
                    if prefill > _TELLING_PREFILL_S and first_at - headers_at < LATE_HEADERS * prefill:
                        self.headers_mark_slot = False
                yield event

    async def count_tokens(self, text: str) -> int | None:
        """Tokens that a prompt of this text has in a request, the beginning-of-sequence token counted."""
        body: dict[str, Any] = {"content": text, "add_special": True, "parse_special": True}
        if self._model:
            body["model"] = self._model
        try:
            answer = await self.wire.json("POST", "/tokenize", body)
        except BackendRefused as error:
            if error.status in (404, 501):
                return None
            raise
        return len(checked(Tokenized, answer, where=f"POST {self.url}/tokenize").tokens)

    async def activity(self) -> Activity:
        """Who uses it now, from `/slots`, and from `/metrics` where that is switched on."""
        props = await self.props()
        if props.is_sleeping:  # asking for its slots would wake it
            return Activity(0.0, 0.0, frozenset())
        off = Missing("unsupported", "this llama-server runs without --metrics")
        metrics = await self._metrics() if props.endpoint_metrics is not False else None
        waiting = off if metrics is None else metrics.get("requests_deferred", off)
        slots = await self._slots() if props.endpoint_slots else None
        if slots is not None:
            tasks = frozenset(slot.task for slot in slots if slot.task is not None)
            return Activity(float(sum(slot.busy for slot in slots)), waiting, tasks)
        blind = Missing("unsupported", "this llama-server runs with --no-slots")
        busy = blind if metrics is None else metrics.get("requests_processing", blind)
        return Activity(busy, waiting, blind)

    async def _slots(self) -> tuple[Slot, ...] | None:
        path = self._path("/slots")
        try:
            return slots_of(await self.wire.json("GET", path), where=f"GET {self.url}{path}")
        except BackendRefused as error:
            if error.status in (403, 404, 501):
                return None
            raise

    async def _metrics(self) -> dict[str, float] | None:
        status, _, text = await self.wire.get(self._path("/metrics"))
        return metrics_of(text) if status == 200 else None

    async def close(self) -> None:
        """Close its connections; it goes on running."""
        await self.wire.close()


def _counted(done: Done, retries: int) -> Done:
    return replace(done, retries=retries) if retries else done


def short_name(alias: str) -> str:
    """A model's name for a person: a path to a GGUF file is cut to the file's stem."""
    if alias.lower().endswith(".gguf"):
        alias = alias.replace("\\", "/").rsplit("/", 1)[-1][:-5]
    return plain(alias)
