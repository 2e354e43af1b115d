"""Any server with the OpenAI dialect: vLLM, LM Studio, gateways.

It tells little: what is not told stays None, never 0. Load options belong to the server's own start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from chimera.domain.options import Options
from chimera.domain.readings import Missing, Reading
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.text import plain
from chimera.errors import (
    BackendError,
    BackendRefused,
    BadAnswer,
    ConfigError,
    ContextExceeded,
    OutOfMemory,
    StreamBroken,
)

from .base import Activity, Done, Event, GenerateRequest, Headers, Tokens
from .bounds import Bounds, drain
from .detect import identify
from .wire import EventStream, Opened, Wire, refusal

_COMMON = frozenset({"temperature", "top_p"})
_NAMES: dict[str, dict[str, str]] = {
    "vLLM": {"top_k": "top_k", "repeat_penalty": "repetition_penalty"},
    "LM Studio": {"top_k": "top_k", "repeat_penalty": "repeat_penalty"},
}
"""Sampling options beyond OpenAI's own, and what each product calls them."""
_NO_SUCH_ROUTE = frozenset({404, 405, 501})
_UNKNOWN_FIELD = frozenset({400, 422})


class _Listed(BaseModel):
    id: str | None = None
    max_model_len: int | None = None
    """vLLM: the window that it runs with."""
    type: str | None = None
    state: str | None = None
    arch: str | None = None
    quantization: str | None = None
    max_context_length: int | None = None
    """LM Studio: the most that the model can."""


class _List(BaseModel):
    data: list[_Listed] | None = None


class _CachedTokens(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None


class _Delta(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Record(BaseModel):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None


@dataclass(slots=True)
class _Answer:
    """What one streamed answer has told so far."""

    path: str
    where: str
    opened: Opened | None = None
    bounds: Bounds | None = None
    stream: EventStream = field(default_factory=EventStream)
    beginning: bytes = b""
    at: float = 0.0
    records: int = 0
    usage: _Usage | None = None
    finish_reason: str | None = None
    ended: bool = False

    def read(self, data: bytes, at: float) -> list[Tokens]:
        """The tokens in one read."""
        if len(self.beginning) < 80:
            self.beginning += data[:80]
        try:
            events = self.stream.feed(data)
        except BadAnswer as error:
            raise BadAnswer(f"{self.where}: {error}") from error
        if self.bounds is not None:
            self.bounds.heard(at, len(events))
        return self._tokens(events, at)

    def rest(self) -> list[Tokens]:
        """The tokens in a last event whose empty line is missing."""
        last = self.stream.rest()
        return self._tokens([last], self.at) if last.strip() else []

    def _tokens(self, events: list[bytes], at: float) -> list[Tokens]:
        found: list[Tokens] = []
        for data in events:
            self.at = at
            if data.strip() == b"[DONE]":
                self.ended = True
                break
            found += self._record(data, at)
        return found

    def _record(self, data: bytes, at: float) -> list[Tokens]:
        shown = plain(data[:80].decode("utf-8", "replace"))
        try:
            record = _Record.model_validate_json(data)
        except ValidationError as error:
            raise BadAnswer(f"{self.where} sent an event that is not of OpenAI's protocol: {shown}") from error
        if record.error is not None:
            words = record.error if isinstance(record.error, str | dict) else str(record.error)
            raise refusal(None, {"error": words}, where=self.where)
        if record.choices is None and record.usage is None:
            if record.object == "error" and record.message:
                raise refusal(None, {"error": record.message}, where=self.where)
            raise BadAnswer(f"{self.where} sent an event that is not of OpenAI's protocol: {shown}")
        self.records += 1
        if record.usage is not None and (record.usage.prompt_tokens or record.usage.completion_tokens):
            self.usage = record.usage  # zeros ride in every event of some servers: the last true one counts
        tokens: list[Tokens] = []
        for choice in (record.choices or [])[:1]:
            self.finish_reason = choice.finish_reason or self.finish_reason
            delta = choice.delta or _Delta()
            thought = delta.reasoning_content or delta.reasoning or ""
            if text := thought + (choice.text or delta.content or ""):
                tokens.append(Tokens(at, text, thinking=text == thought))
        return tokens

    def done(self) -> Done:
        """The end. Raises `StreamBroken` where it broke off, `BadAnswer` where it was no event stream."""
        if not self.records:
            shown = plain(self.beginning[:80].decode("utf-8", "replace")) or "(nothing)"
            raise BadAnswer(f"{self.where} answered no event stream but: {shown}")
        if not (self.ended or self.finish_reason or self.usage):
            raise StreamBroken(f"{self.where}: the answer ended without its end. The server's log may say why.")
        usage = self.usage or _Usage()
        details = usage.prompt_tokens_details or _CachedTokens()
        return Done(
            at=self.at,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=details.cached_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=self.finish_reason,
            retries=self.opened.retries if self.opened else 0,
        )


class OpenAICompatible:
    """One model of a server with `/v1`."""

    kind: ServerKind = "openai"
    owned = False
    load_options: frozenset[str] = frozenset()
    headers_mark_slot = False

    def __init__(self, url: str, model: str | None = None, *, wire: Wire | None = None) -> None:
        self._wire = wire or Wire(url)
        self._asked_model = model
        self._name: str | None = None
        self._info: ServerInfo | None = None
        self._chat = False
        """`/v1/completions` is not there."""
        self._ask_usage = True
        self.sampling_options = _COMMON

    @property
    def url(self) -> str:
        """The server's address."""
        return self._wire.url

    # ---- what is there -----------------------------------------------------------------------------------------------

    async def connect(self) -> ServerInfo:
        """Reach the server and tell which product it is, where its answers show that."""
        await self._list()
        return await self._who()

    async def _who(self) -> ServerInfo:
        """Which product it is; asked once."""
        if self._info is None:
            product, version = "", None
            with contextlib.suppress(BackendError):
                found = await identify(self._wire)
                product, version = found.product, found.version
                if found.kind != "openai":  # Ollama and llama-server have this dialect as well
                    product = ServerInfo(found.kind, "").title
            self._info = ServerInfo("openai", self._wire.url, version=version, product=product)
            self.sampling_options = _COMMON | _NAMES.get(product, {}).keys()
        return self._info

    async def _list(self) -> list[_Listed]:
        data = await self._wire.json("GET", "/v1/models")
        try:
            listed = _List.model_validate(data).data
        except ValidationError:
            listed = None
        if listed is None:
            raise BadAnswer(f"{self._wire.url}/v1/models lists no models: this is no server with OpenAI's dialect.")
        return listed

    async def _listed(self) -> list[_Listed]:
        """The models, the loaded ones first where the product tells."""
        listed = await self._list()
        if (await self._who()).product == "LM Studio":
            with contextlib.suppress(BackendError, ValidationError):
                data = await self._wire.json("GET", "/api/v0/models")
                more = {each.id: each for each in _List.model_validate(data).data or []}
                listed = [more.get(each.id, each) for each in listed]
        usable = [each for each in listed if each.id and each.type != "embeddings"]
        return sorted(usable, key=lambda each: each.state not in (None, "loaded"))

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that it lists."""
        return tuple(
            ModelInfo(
                name=each.id or "",
                quantization=each.quantization,
                architecture=each.arch,
                trained_ctx=each.max_context_length,
            )
            for each in await self._listed()
        )

    async def shape(self) -> None:
        """None: this dialect does not tell."""
        return None

    async def model(self) -> ModelInfo:
        """The model asked for, else the first. Raises `BackendRefused` where it is not there."""
        models = await self.models()
        wanted = self._name or self._asked_model
        for model in models:
            if wanted is None or model.name == wanted:
                self._name = model.name
                return model
        have = ", ".join(plain(model.name) for model in models[:8]) or "none"
        what = f"no model {plain(wanted)!r}" if wanted else "no model"
        raise BackendRefused(f"{self._wire.url} has {what}. Available: {have}.", status=404)

    # ---- configurations ----------------------------------------------------------------------------------------------

    async def would_reload(self, options: Options) -> str | None:
        """Never: nothing here can make it reload."""
        return None

    async def load(self, options: Options) -> Effective:
        """What runs. Raises `ConfigError` for any load option: they belong to the server's start."""
        if asked := options.load.as_dict():
            title = (await self._who()).title
            raise ConfigError(
                f"{', '.join(asked)} cannot be set on {title} at {self._wire.url}: it takes such settings only when "
                "it is started. Only sampling options and the output's length can be tried here."
            )
        return await self.effective()

    async def effective(self) -> Effective:
        """The window, where the server tells it; it keeps the rest to itself."""
        name = (await self.model()).name
        window = next((each.max_model_len for each in await self._list() if each.id == name), None)
        if window is None:
            return Effective()
        return Effective(options=Options(num_ctx=window), sources={"num_ctx": "measured"})

    async def count_tokens(self, text: str) -> int | None:
        """Not offered in this dialect."""
        return None

    async def activity(self) -> Activity:
        """The gauges of vLLM; other products do not tell."""
        info = await self._who()
        hidden = Missing("unsupported", f"{info.title} does not tell who uses it")
        if info.product != "vLLM":
            return Activity(busy=hidden, waiting=hidden, tasks=hidden)
        try:
            status, _, text = await self._wire.get("/metrics", timeout_s=3.0)
        except BackendError as error:
            status, text = 0, str(error)
        if status != 200:
            away = Missing("unreachable", f"/metrics: {plain(text[:80])}")
            return Activity(busy=away, waiting=away, tasks=hidden)
        return Activity(
            busy=_gauge(text, "vllm:num_requests_running"),
            waiting=_gauge(text, "vllm:num_requests_waiting"),
            tasks=hidden,
        )

    # ---- generating --------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Send one prompt and yield what comes; see `Backend.generate`.

        Where `/v1/completions` is not there the prompt goes as a user's message to `/v1/chat/completions`, and where
        `stream_options` is not known it is left out: both are found out once.
        """
        if self._name is None:
            await self.model()
        product = (await self._who()).product
        while True:
            chat, usage = self._chat, self._ask_usage
            path = "/v1/chat/completions" if chat else "/v1/completions"
            answer = _Answer(path, f"{self._wire.url}{path}")
            try:
                async with aclosing(
                    self._ask(self._body(request, product, chat=chat, usage=usage), request, answer)
                ) as events:
                    async for event in events:
                        yield event
            except (OutOfMemory, ContextExceeded):
                raise
            except BackendRefused as error:
                if answer.opened is not None:  # the answer had begun: what it says is about this request
                    raise
                if error.status in _NO_SUCH_ROUTE and not chat:
                    self._chat = True
                elif error.status in _UNKNOWN_FIELD and usage:
                    self._ask_usage = False
                else:
                    if error.status in _NO_SUCH_ROUTE:
                        self._chat = False  # neither route: it was about the model after all
                    raise
            else:
                return

    async def _ask(
        self, body: dict[str, Any], request: GenerateRequest, answer: _Answer
    ) -> AsyncGenerator[Event, None]:
        async with aclosing(self._wire.stream(answer.path, body, timeout_s=request.timeout_s)) as items:
            async for item in items:
                if isinstance(item, Opened):
                    if item.status < 400:
                        answer.opened = item
                        answer.bounds = Bounds(request, where=answer.where, since=item.at)
                        yield Headers(item.at)
                    continue
                for tokens in answer.read(item.data, item.at):
                    yield tokens
                if answer.ended:
                    await drain(items)
                    break
        for tokens in answer.rest():
            yield tokens
        yield answer.done()

    def _body(self, request: GenerateRequest, product: str, *, chat: bool, usage: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._name,
            "max_tokens": request.output_tokens,
            "stream": True,
            "seed": request.seed,
        }
        if chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        if usage:
            body["stream_options"] = {"include_usage": True}
        names = _NAMES.get(product, {})
        for option, value in request.options.only(self.sampling_options).as_dict().items():
            body[names.get(option, option)] = value
        if product == "vLLM":
            body |= {"ignore_eos": True, "min_tokens": request.output_tokens}
        return body

    # ---- leaving it as it was ----------------------------------------------------------------------------------------

    async def remember(self) -> dict[str, Any]:
        """Nothing: nothing can be changed here."""
        return {}

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        """Nothing to put back."""
        return ()

    async def close(self) -> None:
        """Close connections."""
        await self._wire.close()


def _gauge(text: str, name: str) -> Reading:
    """A gauge summed over its labels, from a page in Prometheus' text format."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})?[ \t]+(\S+)", text, re.MULTILINE)
    try:
        return sum(float(value) for value in values) if values else Missing("unsupported", f"no {name} in /metrics")
    except ValueError:
        return Missing("unsupported", f"{name} in /metrics is no number")
