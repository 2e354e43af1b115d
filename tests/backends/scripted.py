"""Model servers that play a script on 127.0.0.1: recorded exchanges, faults, and two servers with a state of their own.

`ScriptedServer` is a small HTTP/1.1 server with one answer a route. It stamps its own writes with the clock that the
client stamps its reads with. `ScriptedOllama` and `ScriptedOpenAI` speak a server's protocol and can be told how fast,
how large and how unreliable they are. All run in the loop of the test (`async with`), in a thread (`in_thread`), or,
for what looks at processes, as a process of their own (`ollama_process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from chimera.domain.options import Options

SAMPLES = Path(__file__).parent.parent / "samples"
JSON_TYPE = "application/json; charset=utf-8"


# ---- the server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    at: float
    """`time.perf_counter` when its last byte was read."""

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, server: ScriptedServer, request: Request, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.request = request
        self.keep = request.headers.get("connection", "").lower() != "close"
        self._writer = writer
        self._pending = b""
        self._chunked = False

    async def raw(self, data: bytes, payload: bytes | None = None) -> None:
        """These bytes as they are. Raises `ConnectionError` where the client has gone."""
        if self._writer.is_closing():
            raise ConnectionResetError("the client has gone")
        data, self._pending = self._pending + data, b""
        self.server.writes.append((time.perf_counter(), data if payload is None else payload))
        self._writer.write(data)
        await self._writer.drain()

    async def head(
        self, status: int = 200, headers: Mapping[str, str] | None = None, *, chunked: bool = True, flush: bool = True
    ) -> None:
        """Status line and headers; with `flush` off they leave together with the first bytes of the body."""
        fields = {"Date": "Mon, 23 Nov 2026 07:20:58 GMT", **(headers or {})}
        if chunked:
            fields = {name: value for name, value in fields.items() if name.lower() != "content-length"}
            fields["Transfer-Encoding"] = "chunked"
        self._chunked = chunked
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self._pending = "\r\n".join(lines).encode("latin-1")
        if flush:
            await self.raw(b"", self._pending)

    async def send(self, data: bytes) -> None:
        """A piece of the body, in an HTTP chunk of its own, so that the client reads it as one piece."""
        if data:
            await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data, data)

    async def end(self) -> None:
        """The body is complete."""
        await self.raw(b"0\r\n\r\n" if self._chunked else b"", b"")

    async def reply(self, status: int, body: str | bytes | object, content_type: str | None = None) -> None:
        """A whole answer; anything but text is sent as JSON."""
        if isinstance(body, str | bytes):
            data, kind = body.encode() if isinstance(body, str) else body, content_type or "text/plain; charset=utf-8"
        else:
            data, kind = json.dumps(body).encode(), content_type or JSON_TYPE
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), **self.server.headers}
        await self.head(status, headers, chunked=False, flush=False)
        await self.raw(data, data)

    def drop(self, *, reset: bool = False) -> None:
        """Close the connection here and now; with `reset` without the courtesy of a FIN."""
        self.keep = False
        if reset:
            self._writer.transport.abort()
        else:
            self._writer.close()

    def gone(self) -> bool:
        """The client has closed its end."""
        return self._writer.is_closing() or self.server.reader_of(self._writer).at_eof()


Answer = Callable[[Exchange], Awaitable[None]]


class ScriptedServer:
    """Plays one answer a route. Use as `async with ScriptedServer() as server` and ask `server.url`."""

    headers: Mapping[str, str] = {}
    """Sent with every whole answer, e.g. `Server`."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.requests: list[Request] = []
        self.writes: list[tuple[float, bytes]] = []
        """`time.perf_counter` just before each write, and what was written, without the framing of HTTP chunks."""
        self.connections = 0
        self.given_up = 0
        """Answers that the client did not wait for."""
        self.failures: list[BaseException] = []
        """What went wrong in an answer of ours; raised when the server closes."""
        self._routes: dict[tuple[str, str], list[Answer]] = {}
        self._turn: Counter[tuple[str, str]] = Counter()
        self._readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, method: str, path: str, *answers: Answer) -> Self:
        """The first request there gets the first answer, and so on; the last one stays. `path` `*` is any other."""
        self._routes[method, path] = list(answers)
        self._turn[method, path] = 0
        return self

    def count(self, method: str, path: str) -> int:
        """Requests to a route so far."""
        return sum(request.method == method and request.path == path for request in self.requests)

    def wrote(self, part: bytes) -> float:
        """When the first write with `part` in it left. Raises `StopIteration` where there was none."""
        return next(at for at, data in self.writes if part in data)

    async def default(self, exchange: Exchange) -> None:
        """The answer where no route is set."""
        await exchange.reply(404, "404 page not found")

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Close everything and raise what went wrong in an answer."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failures:
            raise self.failures[0]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def reader_of(self, writer: asyncio.StreamWriter) -> asyncio.StreamReader:
        """The other half of a connection."""
        return self._readers[writer]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._readers[writer] = reader
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            return  # ours: `stop` cancels, and nobody waits for more
        finally:
            self._tasks.discard(task)
            self._readers.pop(writer, None)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        request = Request(method, path, query, headers, body, time.perf_counter())
        self.requests.append(request)
        exchange = Exchange(self, request, writer)
        try:
            await self._answer(exchange)
        except ConnectionError:
            self.given_up += 1
            return False
        except Exception as error:
            self.failures.append(error)
            exchange.drop()
            return False
        return exchange.keep and not writer.is_closing()

    async def _answer(self, exchange: Exchange) -> None:
        for key in ((exchange.request.method, exchange.request.path), (exchange.request.method, "*")):
            if answers := self._routes.get(key):
                turn = self._turn[key]
                self._turn[key] += 1
                await answers[min(turn, len(answers) - 1)](exchange)
                return
        await self.default(exchange)


S = TypeVar("S", bound=ScriptedServer)


@contextlib.contextmanager
def in_thread(server: S) -> Iterator[S]:
    """Run a server in a loop and thread of its own, for tests that have no loop or must not share theirs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield server
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def absent_url() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


# ---- recorded exchanges ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """One exchange with a real server, as it was recorded."""

    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    t_headers: float
    reads: tuple[tuple[float, bytes], ...]
    """Seconds after the request was sent, and the bytes of one read."""

    @classmethod
    def of(cls, name: str) -> Recording:
        """From `tests/samples/`, e.g. `ollama/generate-stream-cold.jsonl`."""
        head, *reads = [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]
        return cls(
            request=head["request"],
            status=head["status"],
            headers=head["headers"],
            t_headers=head["t_headers"],
            reads=tuple((read["t"], read["raw"].encode()) for read in reads),
        )

    @property
    def body(self) -> bytes:
        """All that was read."""
        return b"".join(data for _, data in self.reads)

    def cut(self, size: int) -> Recording:
        """The same bytes in pieces of `size`, all at the time of the first."""
        body = self.body
        at = self.reads[0][0] if self.reads else self.t_headers
        return replace(self, reads=tuple((at, body[start : start + size]) for start in range(0, len(body), size)))


def recorded(recording: Recording | str, *, scale: float = 0.0, cut: int | None = None) -> Answer:
    """Play a recording: `scale` 1 in its own time, 0 at once; `cut` into pieces of so many bytes."""
    played = Recording.of(recording) if isinstance(recording, str) else recording
    if cut is not None:
        played = played.cut(cut)

    async def answer(exchange: Exchange) -> None:
        start = exchange.request.at
        await _until(start + played.t_headers * scale)
        chunked = any(name.lower() == "transfer-encoding" for name in played.headers)
        await exchange.head(played.status, played.headers, chunked=chunked, flush=chunked)
        for t, data in played.reads:
            if scale:
                await _until(start + t * scale)
            await exchange.send(data)
        await exchange.end()

    return answer


def plain_sample(name: str) -> Answer:
    """A body and headers that were recorded as `name` and its `.headers.txt`."""
    path = SAMPLES / name
    lines = path.with_suffix(".headers.txt").read_text(encoding="utf-8").splitlines()
    status = int(lines[0].split()[1])
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    data = path.read_bytes()
    headers["Content-Length"] = str(len(data))

    async def answer(exchange: Exchange) -> None:
        await exchange.head(status, headers, chunked=False, flush=False)
        await exchange.send(data)

    return answer


async def _until(at: float) -> None:
    delay = at - time.perf_counter()
    if delay > 0:
        await asyncio.sleep(delay)


# ---- answers and faults ----------------------------------------------------------------------------------------------


def body(status: int, content: object, content_type: str | None = None) -> Answer:
    """A whole answer: text as it is, anything else as JSON."""

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(status, content, content_type)

    return answer


def html(status: int = 200) -> Answer:
    """What a router, a login page or a web server says."""
    return body(status, "<!doctype html><html><title>It works!</title><h1>\x1b[31mIt works!</h1></html>", "text/html")


def endless_stream(piece: bytes = b'{"status":"still here"}\n', *, every_s: float = 0.0) -> Answer:
    """Records without end, until the client hangs up."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/x-ndjson"})
        while True:
            await exchange.send(piece * (1 if every_s else 64))
            await asyncio.sleep(every_s)

    return answer


def endless_line() -> Answer:
    """One line without end, until the client hangs up."""
    return endless_stream(b"x" * 4096)


def broken_off(data: bytes, *, reset: bool = False) -> Answer:
    """A good beginning of an answer, then the connection is closed without the last HTTP chunk."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/x-ndjson"})
        await exchange.send(data)
        exchange.drop(reset=reset)

    return answer


def ends_early(data: bytes) -> Answer:
    """A good beginning, then the answer ends as if it were complete."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/x-ndjson"})
        await exchange.send(data)
        await exchange.end()

    return answer


def closed_before_any_byte(*, reset: bool = False) -> Answer:
    """The connection is closed where the answer should begin."""

    async def answer(exchange: Exchange) -> None:
        exchange.drop(reset=reset)

    return answer


def silence(after: bytes = b"") -> Answer:
    """Not a byte (more), until the client hangs up."""

    async def answer(exchange: Exchange) -> None:
        if after:
            await exchange.head(200, {"Content-Type": "application/x-ndjson"})
            await exchange.send(after)
        while not exchange.gone():
            await asyncio.sleep(0.01)
        raise ConnectionResetError

    return answer


def wrong_length(data: bytes, claimed: int) -> Answer:
    """A body that is shorter than its Content-Length, then the connection is closed."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": JSON_TYPE, "Content-Length": str(claimed)}, chunked=False)
        await exchange.raw(data)
        exchange.drop()

    return answer


def cut_chunk(data: bytes) -> Answer:
    """An HTTP chunk that is shorter than it says, then the connection is closed."""

    async def answer(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/x-ndjson"})
        await exchange.raw(b"%x\r\n%b" % (len(data) + 10, data), data)
        exchange.drop()

    return answer


def no_http() -> Answer:
    """An answer that is no HTTP."""

    async def answer(exchange: Exchange) -> None:
        await exchange.raw(b"220 mail.example ESMTP ready\r\n")
        exchange.drop()

    return answer


# ---- a server with slots, speed and noise ----------------------------------------------------------------------------

Speed = float | Callable[[Options], float]
"""Seconds a token, fixed or by the effective options."""
Noise = Callable[[Options, int], float]
"""Factor on the times of a request, by the effective options and the number of the request, from 1."""


def words(text: str) -> list[str]:
    """The scripted servers' tokens: words and marks, after a beginning-of-text."""
    return ["<bos>", *re.findall(r"\w+|[^\w\s]", text)]


@dataclass
class Pace:
    """How long a scripted server takes."""

    prefill_s: Speed = 0.0
    decode_s: Speed = 0.0
    noise: Noise = lambda options, request: 1.0
    real_time: bool = True
    """Off: nothing waits and the server reports the modelled times; good for many fast sessions."""

    def of(self, options: Options, request: int) -> tuple[float, float]:
        """Seconds a prompt token and seconds an output token of one request."""
        factor = self.noise(options, request)
        prefill = self.prefill_s(options) if callable(self.prefill_s) else self.prefill_s
        decode = self.decode_s(options) if callable(self.decode_s) else self.decode_s
        return prefill * factor, decode * factor


@dataclass
class Work:
    """A request in a slot, as `/slots` would show it."""

    task: int
    prompt_tokens: int
    planned: int
    decoded: int = 0


# ---- Ollama ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeModel:
    """A model in the scripted Ollama's store; by default the one of the recordings."""

    name: str = "gemma3:270m"
    digest: str = "9b6c7afe3ef38dbccfbb5d318525feffa3024f35f73648fe2910b698f0ece774"
    blob: str = "sha256-a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    size: int = 253_113_222
    architecture: str = "gemma3"
    block_count: int = 18
    trained_ctx: int = 32_768
    parameters: int = 268_098_176
    quantization: str = "Q4_K_M"
    capabilities: tuple[str, ...] = ("completion",)


@dataclass
class Runner:
    """A model that the scripted Ollama holds loaded."""

    model: FakeModel
    key: dict[str, object]
    """What a request's load options are compared with."""
    options: Options
    """Effective: layers clamped, window clamped, batch chosen."""
    argv: tuple[str, ...]
    size: int
    vram: int
    slots: asyncio.Semaphore
    expires_at: float = 0.0
    in_work: list[Work] = field(default_factory=list)
    waiting: int = 0
    users: int = 0
    """Requests that hold or wait for it: it is not unloaded under them."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    cache: list[str] = field(default_factory=list)
    child: subprocess.Popen[bytes] | None = None
    server: ScriptedServer | None = None


class Unwilling(Exception):
    """A refusal with its status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def linear_memory(model: FakeModel, options: Options) -> tuple[int, int]:
    """Bytes in all and on the GPU: weights and a window of 64 KiB a token a layer, split by layers."""
    total = model.size + (options.num_ctx or 4096) * (options.num_parallel or 1) * 64 * 1024
    layers = options.num_gpu or 0
    return total, total * layers // (model.block_count + 1)


RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
_INTEGERS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_predict", "seed")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ScriptedOllama(ScriptedServer):
    """An Ollama of given speed and size, with its reload rules, queue, memory limit and silent truncation."""

    def __init__(
        self,
        *,
        models: tuple[FakeModel, ...] = (FakeModel(),),
        version: str = "0.33.0",
        slots: int = 1,
        prefill_s: Speed = 0.0,
        decode_s: Speed = 0.0,
        load_s: float | Callable[[Options], float] = 0.0,
        memory: Callable[[FakeModel, Options], tuple[int, int]] = linear_memory,
        capacity_bytes: int | None = None,
        noise: Noise = lambda options, request: 1.0,
        real_time: bool = True,
        default_ctx: int = 4096,
        auto_layers: int | None = None,
        max_loaded: int = 3,
        max_queue: int = 512,
        max_ctx_shift: bool = True,
        thinking_tokens: int = 0,
        stops_after: Callable[[Options, int], int | None] = lambda options, request: None,
        dies_after: Callable[[Options, int], int | None] = lambda options, request: None,
        child_folder: Path | None = None,
    ) -> None:
        """Set the scene.

        Args:
            models: What is installed.
            version: What `/api/version` says.
            slots: OLLAMA_NUM_PARALLEL.
            prefill_s: Seconds a computed prompt token.
            decode_s: Seconds an output token.
            load_s: Seconds a load.
            memory: Bytes in all and on the GPU for a model under effective options.
            capacity_bytes: GPU memory; a load over it is an out-of-memory, after other models were evicted.
            noise: Factor on prefill and decode times.
            real_time: Off: nothing waits, and the reported times are the modelled ones.
            default_ctx: Window where none is asked for.
            auto_layers: Layers on the GPU where none are asked for; None = all.
            max_loaded: Models held at once.
            max_queue: Requests that may wait for a load; more are a 503.
            max_ctx_shift: Generating past the window goes on; off: it ends there.
            thinking_tokens: Of the output of a model that can think, unless it is told not to.
            stops_after: Output tokens after which the model stops by itself.
            dies_after: Output tokens after which the child dies, by effective options and number of the request.
            child_folder: Start a process named `llama-server` with the child's arguments for each load, from here.
        """
        super().__init__()
        self.models = models
        self.version = version
        self.slots = slots
        self.pace = Pace(prefill_s, decode_s, noise, real_time)
        self.load_s = load_s
        self.memory = memory
        self.capacity_bytes = capacity_bytes
        self.default_ctx = default_ctx
        self.auto_layers = auto_layers
        self.max_loaded = max_loaded
        self.max_queue = max_queue
        self.max_ctx_shift = max_ctx_shift
        self.thinking_tokens = thinking_tokens
        self.stops_after = stops_after
        self.dies_after = dies_after
        self.child_folder = child_folder
        self.loads: list[tuple[str, Options]] = []
        """Every load so far, with the effective options."""
        self.unloads: list[str] = []
        """Every unload so far, evictions included."""
        self.refused_loads = 0
        self.generated = 0
        """Requests with a prompt so far."""
        self.peak = 0
        """Most requests in work at once."""
        self._loaded: dict[str, Runner] = {}
        self._loading = asyncio.Lock()
        self._queued = 0
        self._tasks_seen = 0

    @property
    def loaded(self) -> dict[str, Runner]:
        """Loaded models by name, those whose time is over left out."""
        now = time.time()
        for name, runner in list(self._loaded.items()):
            if runner.expires_at <= now and not runner.users:
                self._unload(name)
        return self._loaded

    async def stop(self) -> None:
        for name in list(self._loaded):
            self._unload(name)
        await super().stop()

    # -- routes

    async def default(self, exchange: Exchange) -> None:
        routes: dict[tuple[str, str], Answer] = {
            ("GET", "/"): body(200, "Ollama is running"),
            ("GET", "/api/version"): body(200, {"version": self.version}),
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._ps,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/generate"): self._generate,
            ("GET", "/v1/models"): self._v1_models,
        }
        answer = routes.get((exchange.request.method, exchange.request.path))
        if answer is None:
            await exchange.reply(404, "404 page not found")
            return
        try:
            await answer(exchange)
        except Unwilling as refusal:
            await exchange.reply(refusal.status, {"error": str(refusal)})

    def _details(self, model: FakeModel) -> dict[str, object]:
        return {
            "parent_model": "", "format": "gguf", "family": model.architecture, "families": [model.architecture],
            "parameter_size": f"{model.parameters / 1e6:.2f}M", "quantization_level": model.quantization,
        }  # fmt: skip

    async def _tags(self, exchange: Exchange) -> None:
        models = [
            {
                "name": model.name, "model": model.name, "size": model.size, "digest": model.digest,
                "details": self._details(model), "capabilities": list(model.capabilities),
            }
            for model in self.models
        ]  # fmt: skip
        await exchange.reply(200, {"models": models})

    async def _v1_models(self, exchange: Exchange) -> None:
        data = [{"id": model.name, "object": "model", "owned_by": "library"} for model in self.models]
        await exchange.reply(200, {"object": "list", "data": data})

    async def _ps(self, exchange: Exchange) -> None:
        models = [
            {
                "name": name, "model": name, "size": runner.size, "digest": runner.model.digest,
                "details": self._details(runner.model), "size_vram": runner.vram,
                "expires_at": datetime.fromtimestamp(min(runner.expires_at, 9e9), UTC).isoformat(),
                "context_length": runner.options.num_ctx,
            }
            for name, runner in self.loaded.items()
        ]  # fmt: skip
        await exchange.reply(200, {"models": models})

    async def _show(self, exchange: Exchange) -> None:
        model = self._find(exchange.request.json().get("model"))
        kind = model.architecture
        info = {
            "general.architecture": kind, "general.parameter_count": model.parameters,
            f"{kind}.block_count": model.block_count, f"{kind}.context_length": model.trained_ctx,
        }  # fmt: skip
        answer = {
            "modelfile": f"FROM models/blobs/{model.blob}\n", "template": "{{ .Prompt }}",
            "details": self._details(model), "model_info": info, "capabilities": list(model.capabilities),
        }  # fmt: skip
        await exchange.reply(200, answer)

    def _find(self, name: object) -> FakeModel:
        for model in self.models:
            if model.name in (name, f"{name}:latest"):
                return model
        raise Unwilling(404, f"model '{name}' not found")

    # -- loading

    def _asked(self, model: FakeModel, request: dict[str, Any]) -> tuple[dict[str, object], Options, dict[str, Any]]:
        options: dict[str, Any] = dict(request.get("options") or {})
        for name in _INTEGERS:
            if name in options:
                if isinstance(options[name], bool) or not isinstance(options[name], int | float):
                    raise Unwilling(500, f'option "{name}" must be of type integer')
                options[name] = int(options[name])
        asked_ctx = int(options.get("num_ctx", self.default_ctx))
        floor = 2048 if "vision" in model.capabilities else 4
        num_ctx = min(max(asked_ctx, floor), model.trained_ctx)
        key: dict[str, object] = {name: options.get(name) for name in RELOADING}
        key["num_ctx"] = num_ctx
        key["shift"] = request.get("shift", True)
        if key["num_gpu"] == -1:
            key["num_gpu"] = None
        if key["num_thread"] == 0:
            key["num_thread"] = None
        layers = key["num_gpu"]
        every = model.block_count + 1
        auto = every if self.auto_layers is None else self.auto_layers
        effective = Options(
            num_gpu=min(layers, every) if isinstance(layers, int) else auto,
            num_ctx=num_ctx,
            num_batch=options.get("num_batch") or (2048 if num_ctx > 32768 else 1024 if num_ctx > 4096 else 512),
            num_thread=options.get("num_thread") or None,
            flash_attention="auto",
            num_parallel=self.slots,
            temperature=options.get("temperature"),
            top_p=options.get("top_p"),
            top_k=options.get("top_k"),
            repeat_penalty=options.get("repeat_penalty"),
        )
        return key, effective, options

    def _needs_reload(self, runner: Runner, key: dict[str, object]) -> bool:
        return any(
            runner.key[name] != value for name, value in key.items() if not (name == "num_gpu" and value is None)
        )

    async def _runner(self, model: FakeModel, key: dict[str, object], effective: Options) -> Runner:
        runner = self.loaded.get(model.name)
        if runner is None or self._needs_reload(runner, key):
            if self._queued >= self.max_queue:
                raise Unwilling(503, "server busy, please try again.  maximum pending requests exceeded")
            self._queued += 1
            try:
                async with self._loading:
                    runner = self.loaded.get(model.name)
                    if runner is not None and self._needs_reload(runner, key):
                        await self._wait_idle(runner)
                        self._unload(model.name)
                        runner = None
                    if runner is None:
                        runner = await self._load(model, key, effective)
                    runner.users += 1
            finally:
                self._queued -= 1
        else:
            runner.users += 1
        runner.idle.clear()
        return runner

    async def _wait_idle(self, runner: Runner) -> None:
        while runner.users:
            await runner.idle.wait()

    async def _load(self, model: FakeModel, key: dict[str, object], effective: Options) -> Runner:
        effective = effective.load
        size, vram = self.memory(model, effective)
        while self._loaded and (
            len(self._loaded) >= self.max_loaded
            or (self.capacity_bytes is not None and self._vram() + vram > self.capacity_bytes)
        ):
            oldest = next(iter(self._loaded))
            await self._wait_idle(self._loaded[oldest])
            self._unload(oldest)
        seconds = self.load_s(effective) if callable(self.load_s) else self.load_s
        if self.pace.real_time:
            await asyncio.sleep(seconds)
        if self.capacity_bytes is not None and vram > self.capacity_bytes:
            self.refused_loads += 1
            raise Unwilling(
                500,
                "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\n"
                f"alloc_tensor_range: failed to allocate CUDA0 buffer of size {vram}\n"
                "error loading model: unable to allocate CUDA0 buffer",
            )
        runner = Runner(
            model=model, key=key, options=effective, argv=(), size=size, vram=vram,
            slots=asyncio.Semaphore(self.slots), expires_at=time.time() + 300,
        )  # fmt: skip
        runner.idle.set()
        await self._start_child(runner)
        self._loaded[model.name] = runner
        self.loads.append((model.name, effective))
        return runner

    def _vram(self) -> int:
        return sum(runner.vram for runner in self._loaded.values())

    def _unload(self, name: str) -> None:
        runner = self._loaded.pop(name)
        self.unloads.append(name)
        if runner.child is not None:
            runner.child.kill()
            runner.child.wait(10)
        if runner.server is not None:
            task = asyncio.ensure_future(runner.server.stop())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _start_child(self, runner: Runner) -> None:
        options = runner.options
        server = ScriptedServer()
        argv = [
            "--model", f"models/blobs/{runner.model.blob}", "--port", "0", "--host", "127.0.0.1", "--no-webui",
            "--offline", "-c", str((options.num_ctx or 0) * self.slots), "-np", str(self.slots),
            "--load-mode", "none", "--flash-attn", "auto", "-b", str(options.num_batch), "-ub", str(options.num_batch),
        ]  # fmt: skip
        if runner.key["num_gpu"] is not None:
            argv += ["-ngl", str(runner.key["num_gpu"])]
        if runner.key["num_thread"] is not None:
            argv += ["-t", str(runner.key["num_thread"])]
        if self.child_folder is not None:
            await server.start()
            server.headers = {"Server": "llama.cpp"}
            runner.server = server
            argv[3] = str(server.port)
            server.route("GET", "/slots", lambda exchange: exchange.reply(200, self.slots_of(runner)))
            server.route("GET", "/health", body(200, {"status": "ok"}))
            server.route("POST", "/tokenize", _tokenize)
            script = self.child_folder / "llama-server"
            if not script.exists():
                # the name of the process is the name of the script; it ends with its parent, when stdin does
                script.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\n")
                script.chmod(0o755)
            runner.child = subprocess.Popen([str(script), *argv], stdin=subprocess.PIPE)
        runner.argv = tuple(argv)

    def slots_of(self, runner: Runner) -> list[dict[str, Any]]:
        """What the child's `/slots` shows."""
        shown: list[dict[str, Any]] = [
            {
                "id": index, "n_ctx": runner.options.num_ctx, "is_processing": True, "id_task": work.task,
                "n_prompt_tokens": work.prompt_tokens + work.decoded, "n_prompt_tokens_processed": work.prompt_tokens,
                "n_prompt_tokens_cache": 0,
                "next_token": [{"n_decoded": work.decoded, "n_remain": work.planned - work.decoded}],
            }
            for index, work in enumerate(runner.in_work)
        ]  # fmt: skip
        return shown + [
            {"id": index, "n_ctx": runner.options.num_ctx, "is_processing": False}
            for index in range(len(shown), self.slots)
        ]

    # -- generating

    async def _generate(self, exchange: Exchange) -> None:
        began = time.perf_counter()
        if not exchange.request.body:
            raise Unwilling(400, "missing request body")
        try:
            request: dict[str, Any] = exchange.request.json()
        except ValueError as error:
            raise Unwilling(400, str(error)) from error
        model = self._find(request.get("model"))
        keep = _keep_alive(request.get("keep_alive"))
        prompt = request.get("prompt") or ""
        if not prompt and keep == 0:
            if runner := self._loaded.get(model.name):
                await self._wait_idle(runner)
                if self._loaded.get(model.name) is runner:
                    self._unload(model.name)
            await exchange.reply(200, _line(model, "", done=True, done_reason="unload"))
            return
        can_think = "thinking" in model.capabilities
        if request.get("think") and not can_think:
            raise Unwilling(400, f'"{model.name}" does not support thinking')
        key, effective, options = self._asked(model, request)
        before = len(self.loads)
        runner = await self._runner(model, key, effective)
        load = time.perf_counter() - began
        if not self.pace.real_time:
            seconds = self.load_s(effective) if callable(self.load_s) else self.load_s
            load = seconds if len(self.loads) > before else 0.001
        try:
            if prompt:
                await self._serve(exchange, request, runner, effective.sampling, options, began, load)
            else:
                await exchange.reply(200, _line(model, "", done=True, done_reason="load"))
        finally:
            runner.users -= 1
            runner.expires_at = time.time() + (300 if keep is None else keep)
            if not runner.users:
                runner.idle.set()
            if keep == 0 and not runner.users and self._loaded.get(model.name) is runner:
                self._unload(model.name)

    async def _serve(
        self, exchange: Exchange, request: dict[str, Any], runner: Runner, sampling: Options,
        options: dict[str, Any], began: float, load: float,
    ) -> None:  # fmt: skip
        model = runner.model
        num_ctx = runner.options.num_ctx or 0
        tokens = words(request["prompt"])
        if len(tokens) > num_ctx:
            if request.get("shift") is False:
                raise Unwilling(400, "the prompt is longer than the context length currently available to the model")
            if request.get("truncate") is False:
                inner = {
                    "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": len(tokens), "n_ctx": num_ctx,
                    "message": f"request ({len(tokens)} tokens) exceeds the available context size ({num_ctx} tokens)",
                }  # fmt: skip
                raise Unwilling(400, json.dumps({"error": inner}))
            keep = 5
            tokens = tokens[:keep] + tokens[-(num_ctx - keep - (num_ctx - keep) // 2) :]
        self.generated += 1
        number = self.generated
        effective = sampling.over(runner.options)
        prefill_s, decode_s = self.pace.of(effective, number)
        can_think = "thinking" in model.capabilities and request.get("think") is not False
        planned = int(options.get("num_predict", -1))
        if planned < 0:
            planned = 32
        ends = self.stops_after(effective, number)
        reason = "length"
        if ends is not None and ends < planned:
            planned, reason = ends, "stop"
        if not self.max_ctx_shift:
            planned = min(planned, max(1, num_ctx - len(tokens)))
        dies = self.dies_after(effective, number)
        runner.waiting += 1
        async with runner.slots:
            runner.waiting -= 1
            self._tasks_seen += 1
            work = Work(self._tasks_seen, len(tokens), planned)
            runner.in_work.append(work)
            self.peak = max(self.peak, len(runner.in_work))
            try:
                cached = _common(tokens, runner.cache)
                runner.cache = tokens
                granted = time.perf_counter()
                computed = max(1, len(tokens) - cached)
                first = granted + computed * prefill_s
                stamps: list[float] = []
                if request.get("stream", True):
                    await exchange.head(200, {"Content-Type": "application/x-ndjson"}, flush=False)
                text = []
                for index in range(planned):
                    if self.pace.real_time:
                        await _until(first + index * decode_s)
                    if exchange.gone():
                        raise ConnectionResetError
                    work.decoded = index + 1
                    stamps.append(time.perf_counter())
                    if dies is not None and index >= dies:
                        error = "an error was encountered while running the model: unexpected EOF"
                        await exchange.send(json.dumps({"error": error}).encode() + b"\n")
                        await exchange.end()
                        return
                    if reason == "stop" and index == planned - 1:
                        break  # a stop token counts but has no text
                    word = f" t{index}"
                    text.append(word)
                    if request.get("stream", True):
                        thought = can_think and index < self.thinking_tokens
                        line = _line(model, "" if thought else word, thinking=word if thought else None, done=False)
                        await exchange.send(json.dumps(line).encode() + b"\n")
                ended = time.perf_counter()
                if self.pace.real_time:
                    prompt_took, decode_took = stamps[0] - granted if stamps else 0.0, ended - stamps[0]
                    total = ended - began
                else:
                    prompt_took, decode_took = computed * prefill_s, (planned - 1) * decode_s
                    total = load + prompt_took + decode_took
                last = _line(model, "", done=True, done_reason=reason)
                if not request.get("raw"):
                    last["context"] = list(range(len(tokens)))
                if not request.get("stream", True):
                    last["response"] = "".join(text)
                last |= _without_zeros(
                    total_duration=_ns(total), load_duration=_ns(load), prompt_eval_count=len(tokens),
                    prompt_eval_duration=_ns(prompt_took), eval_count=planned,
                    eval_duration=_ns(decode_took) if planned > 1 else 1000,
                )  # fmt: skip
            finally:
                runner.in_work.remove(work)
        if request.get("stream", True):
            await exchange.send(json.dumps(last).encode() + b"\n")
            await exchange.end()
        else:
            await exchange.reply(200, last)


async def _tokenize(exchange: Exchange) -> None:
    request = exchange.request.json()
    tokens = words(request["content"])[0 if request.get("add_special") else 1 :]
    await exchange.reply(200, {"tokens": list(range(len(tokens)))})


def _line(model: FakeModel, text: str, *, done: bool, thinking: str | None = None, **more: object) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": model.name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"), "response": text,
    }  # fmt: skip
    if thinking is not None:
        line["thinking"] = thinking
    return {**line, "done": done, **more}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _without_zeros(**fields: int) -> dict[str, int]:
    return {name: value for name, value in fields.items() if value}


def _common(tokens: list[str], cache: list[str]) -> int:
    same = 0
    for one, other in zip(tokens, cache, strict=False):
        if one != other:
            break
        same += 1
    return same


def _keep_alive(value: object) -> float | None:
    """Seconds, None where it is not given, or `Unwilling`."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if value >= 0 else 1e12
    parts = re.findall(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)", str(value))
    if not parts or "".join(number + unit for number, unit in parts) != str(value):
        raise Unwilling(400, f'time: invalid duration "{value}"')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return seconds if seconds >= 0 else 1e12


@contextlib.contextmanager
def ollama_process(folder: Path, **parameters: object) -> Iterator[str]:
    """A scripted Ollama as a process named `ollama`, whose loads are processes named `llama-server`; its address.

    `parameters` are those of `ScriptedOllama` that are JSON. Linux only: a script's name is its process's name there.
    """
    script = folder / "ollama"
    script.write_text(f"#!{sys.executable}\nfrom tests.backends.scripted import main\nmain()\n")
    script.chmod(0o755)
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [str(script), json.dumps({**parameters, "child_folder": str(folder)})],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def main() -> None:
    """Serve a scripted Ollama until stdin ends, with the parameters in the first argument."""
    parameters = json.loads(sys.argv[1])
    parameters["child_folder"] = Path(parameters["child_folder"])

    async def serve() -> None:
        async with ScriptedOllama(**parameters) as server:
            print(server.url, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(serve())


# ---- anything with /v1 -----------------------------------------------------------------------------------------------

Usage = Literal["last", "on finish", "zeros", "none", "refused"]
"""Where token counts ride: in an event with empty choices, on the finish event, as zeros in every event with the true
ones at the end, nowhere, or nowhere with a 400 for whoever asks for them."""


class ScriptedOpenAI(ScriptedServer):
    """A server with the OpenAI dialect, of given speed and habits."""

    def __init__(
        self,
        *,
        models: tuple[str, ...] = ("some-model",),
        product: Literal["", "vLLM", "LM Studio"] = "",
        slots: int = 1,
        prefill_s: Speed = 0.0,
        decode_s: Speed = 0.0,
        noise: Noise = lambda options, request: 1.0,
        usage: Usage = "last",
        reasoning: tuple[str, int] | None = None,
        completions: bool = True,
        tokens_per_event: int = 1,
        events_per_write: int = 1,
        comments: bool = False,
        space: bool = True,
        says_done: bool = True,
        stops_after: Callable[[int], int | None] = lambda request: None,
        fails_after: Callable[[int], int | None] = lambda request: None,
        key: str | None = None,
    ) -> None:
        """Set the scene.

        Args:
            models: What `/v1/models` lists.
            product: Whose marks it bears.
            slots: Requests in work at once; more wait.
            prefill_s: Seconds a prompt token.
            decode_s: Seconds an output token.
            noise: Factor on both; it gets empty options.
            usage: Where token counts ride.
            reasoning: Name of the delta's field and how many of the first tokens ride there (chat only).
            completions: Off: `/v1/completions` is a 404 and only chat is served.
            tokens_per_event: Output tokens in one event.
            events_per_write: Events in one HTTP chunk.
            comments: Send `: ping` lines between events.
            space: Send `data: ` with the blank.
            says_done: End with `[DONE]`.
            stops_after: Output tokens after which the model stops by itself, by number of the request.
            fails_after: Output tokens after which an error object comes in the stream.
            key: The key it wants; else it answers 401.
        """
        super().__init__()
        self.models = models
        self.product = product
        self.pace = Pace(prefill_s, decode_s, noise)
        self.usage = usage
        self.reasoning = reasoning
        self.completions = completions
        self.tokens_per_event = tokens_per_event
        self.events_per_write = events_per_write
        self.comments = comments
        self.prefix = b"data: " if space else b"data:"
        self.says_done = says_done
        self.stops_after = stops_after
        self.fails_after = fails_after
        self.key = key
        self.generated = 0
        self.running = 0
        self.waiting = 0
        self._slots = asyncio.Semaphore(slots)

    async def default(self, exchange: Exchange) -> None:
        request = exchange.request
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.reply(401, {"error": {"message": "Invalid API key", "type": "authentication_error"}})
        elif request.path == "/v1/models":
            listed = [{"id": name, "object": "model"} for name in self.models]
            await exchange.reply(200, {"object": "list", "data": listed})
        elif request.path == "/metrics" and self.product == "vLLM":
            await exchange.reply(200, self._metrics())
        elif request.path == "/version" and self.product == "vLLM":
            await exchange.reply(200, {"version": "0.11.0"})
        elif request.path == "/api/v0/models" and self.product == "LM Studio":
            data = [
                {"id": name, "object": "model", "type": "llm", "state": "loaded", "max_context_length": 8192,
                 "quantization": "Q4_K_M", "arch": "llama"}
                for name in self.models
            ]  # fmt: skip
            await exchange.reply(200, {"object": "list", "data": data})
        elif request.path == "/v1/completions" and self.completions:
            await self._complete(exchange, chat=False)
        elif request.path == "/v1/chat/completions":
            await self._complete(exchange, chat=True)
        else:
            await exchange.reply(404, {"detail": "Not Found"})

    def _metrics(self) -> str:
        label = f'{{model_name="{self.models[0]}",engine="0"}}'
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{label} {float(self.running)}\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{label} {float(self.waiting)}\n"
            "# TYPE vllm:generation_tokens_total counter\n"
            f"vllm:generation_tokens_total{label} 0.0\n"
        )

    async def _complete(self, exchange: Exchange, *, chat: bool) -> None:
        request = exchange.request.json()
        wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        if "stream_options" in request and self.usage == "refused":
            await exchange.reply(400, {"error": {"message": "Unrecognized request argument: stream_options"}})
            return
        if request.get("model") not in self.models:
            error = {"message": f"The model `{request.get('model')}` does not exist.", "type": "NotFoundError"}
            await exchange.reply(404, {"error": error})
            return
        self.generated += 1
        number = self.generated
        text = request["messages"][-1]["content"] if chat else request["prompt"]
        prompt_tokens = len(words(text))
        prefill_s, decode_s = self.pace.of(Options(), number)
        planned = int(request.get("max_tokens") or request.get("max_completion_tokens") or 16)
        ends, fails = self.stops_after(number), self.fails_after(number)
        reason = "length"
        if ends is not None and ends < planned and not request.get("ignore_eos"):
            planned, reason = ends, "stop"
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": planned, "total_tokens": prompt_tokens + planned}
        zeros = dict.fromkeys(counts, 0)

        def event(choice: dict[str, Any] | None, usage: dict[str, int] | None = None) -> bytes:
            record: dict[str, Any] = {
                "id": f"cmpl-{number}", "model": request["model"], "choices": [choice] if choice else [],
            }  # fmt: skip
            if usage is not None:
                record["usage"] = usage
            elif self.usage == "zeros":
                record["usage"] = zeros
            return self.prefix + json.dumps(record).encode() + b"\n\n"

        def choice(word: str | None, finish: str | None = None, *, thought: bool = False) -> dict[str, Any]:
            base: dict[str, Any] = {"index": 0, "finish_reason": finish}
            if not chat:
                return {**base, "text": word or ""}
            if thought and self.reasoning:
                return {**base, "delta": {self.reasoning[0]: word, "content": None}}
            return {**base, "delta": {"content": word} if word else {}}

        held: list[bytes] = []

        async def say(data: bytes) -> None:
            held.append(data)
            if len(held) >= self.events_per_write:
                await exchange.send(b"".join(held))
                held.clear()

        self.waiting += 1
        async with self._slots:
            self.waiting -= 1
            self.running += 1
            try:
                start = time.perf_counter()
                await exchange.head(200, {"Content-Type": "text/event-stream"})
                if self.comments:
                    await exchange.send(b": ping\n\n")
                first = start + prompt_tokens * prefill_s
                if chat:
                    opening = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
                    await say(event(opening))
                thinking = self.reasoning[1] if chat and self.reasoning else 0
                for index in range(0, planned, self.tokens_per_event):
                    await _until(first + index * decode_s)
                    if exchange.gone():
                        raise ConnectionResetError
                    if fails is not None and index >= fails:
                        await exchange.send(self.prefix + b'{"error":{"message":"engine died","code":500}}\n\n')
                        await exchange.end()
                        return
                    several = range(index, min(index + self.tokens_per_event, planned))
                    word = "".join(f" t{one}" for one in several)
                    await say(event(choice(word, thought=index < thinking)))
                    if self.comments:
                        await say(b": still here\r\n\r\n")
                on_finish = counts if self.usage == "on finish" and wants_usage else None
                await say(event(choice(None, reason), on_finish))
                if self.usage in ("last", "zeros") and wants_usage:
                    await say(event(None, counts))
                if self.says_done:
                    await say(self.prefix + b"[DONE]\n\n")
                await exchange.send(b"".join(held))
                await exchange.end()
            finally:
                self.running -= 1
