"""A scripted llama-server, and a `llama-server` program around the real engine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .scripted import Exchange, ScriptedServer, Work, words

NAME = "some-model"


def event(record: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(record).encode() + b"\n\n"


def token(number: int, text: str = " x", **more: Any) -> dict[str, Any]:
    """A chunk of `/completion` with the `number`th token."""
    return {"index": 0, "content": text, "tokens": [7], "stop": False, "tokens_predicted": number, **more}


def final(tokens: int, *, prompt: int = 10, cached: int = 0, decode_ms: float = 100.0, **more: Any) -> dict[str, Any]:
    """The last object of `/completion`."""
    timings = {
        "cache_n": cached, "prompt_n": prompt - cached, "prompt_ms": 50.0,
        "predicted_n": tokens, "predicted_ms": decode_ms,
    }  # fmt: skip
    return {
        "index": 0, "content": "", "tokens": [], "stop": True, "tokens_predicted": tokens, "tokens_evaluated": prompt,
        "truncated": False, "stop_type": "limit", "timings": timings, **more,
    }  # fmt: skip


class ScriptedLlama(ScriptedServer):
    """Speaks llama-server's protocol, with slots, a prompt cache and an end for those who hang up."""

    headers: Mapping[str, str] = {"Server": "llama.cpp"}

    def __init__(
        self,
        *,
        slots: int = 1,
        n_ctx: int = 1024,
        prefill_s: float = 0.0,
        decode_s: float = 0.0,
        metrics: bool = True,
        slots_page: bool = True,
        late_headers: bool = False,
        tokens_per_event: int = 1,
    ) -> None:
        super().__init__()
        self.n_ctx = n_ctx
        self.slots = slots
        self.prefill_s = prefill_s
        self.decode_s = decode_s
        self.metrics = metrics
        self.slots_page = slots_page
        self.late_headers = late_headers
        self.tokens_per_event = tokens_per_event
        self.sleeping = False
        self.work: list[Work] = []
        self.waiting = 0
        self.last_task = -1
        self._free = asyncio.Semaphore(slots)
        self._cache: list[str] = []

    async def default(self, exchange: Exchange) -> None:
        request = exchange.request
        match request.method, request.path:
            case "GET", "/props":
                await exchange.reply(200, self._props())
            case "GET", "/health":
                await exchange.reply(200, {"status": "ok"})
            case "GET", "/v1/models":
                meta = {"n_ctx_train": 32768, "n_params": 268098176, "size": 246587904, "ftype": "Q4_K - Medium"}
                data = [{"id": NAME, "aliases": [NAME], "object": "model", "meta": meta}]
                await exchange.reply(200, {"object": "list", "data": data})
            case "GET", "/slots" if self.slots_page:
                await exchange.reply(200, self._slots())
            case "GET", "/metrics" if self.metrics:
                await exchange.reply(200, self._metrics())
            case "GET", "/slots" | "/metrics":
                error = {"code": 501, "message": "not enabled", "type": "not_supported_error"}
                await exchange.reply(501, {"error": error})
            case "POST", "/tokenize":
                asked = request.json()
                found = words(asked["content"])
                tokens = list(range(len(found) if asked.get("add_special") else len(found) - 1))
                await exchange.reply(200, {"tokens": tokens})
            case "POST", "/completion":
                await self._complete(exchange)
            case _:
                error = {"code": 404, "message": "File Not Found", "type": "not_found_error"}
                await exchange.reply(404, {"error": error})

    def _props(self) -> dict[str, Any]:
        return {
            "default_generation_settings": {"params": {}, "n_ctx": self.n_ctx}, "total_slots": self.slots,
            "model_path": "models/some-model.gguf", "endpoint_slots": self.slots_page, "endpoint_metrics": self.metrics,
            "modalities": {"vision": False}, "build_info": "b7777-abcdef", "is_sleeping": self.sleeping,
        }  # fmt: skip

    def _slots(self) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for number in range(self.slots):
            slot: dict[str, Any] = {"id": number, "n_ctx": self.n_ctx, "is_processing": number < len(self.work)}
            if number < len(self.work):
                slot["id_task"] = self.work[number].task
                slot["next_token"] = [{"n_decoded": self.work[number].decoded}]
            elif self.last_task >= 0 and number == 0:
                slot["id_task"] = self.last_task
            shown.append(slot)
        return shown

    def _metrics(self) -> str:
        return (
            f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {len(self.work)}\n"
            f"# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred {self.waiting}\n"
        )

    async def _complete(self, exchange: Exchange) -> None:
        asked = exchange.request.json()
        prompt = words(asked["prompt"])
        if len(prompt) > self.n_ctx:
            error = {
                "code": 400, "message": f"request ({len(prompt)} tokens) exceeds the available context size",
                "type": "exceed_context_size_error", "n_prompt_tokens": len(prompt), "n_ctx": self.n_ctx,
            }  # fmt: skip
            await exchange.reply(400, {"error": error})
            return
        self.waiting += 1
        async with self._free:
            self.waiting -= 1
            self.last_task += 1
            work = Work(self.last_task, len(prompt), asked["n_predict"])
            self.work.append(work)
            try:
                await self._stream(exchange, asked, prompt, work)
            finally:
                self.work.remove(work)

    async def _stream(self, exchange: Exchange, asked: dict[str, Any], prompt: list[str], work: Work) -> None:
        cached = 0
        if asked["cache_prompt"]:
            while cached < min(len(prompt) - 1, len(self._cache)) and prompt[cached] == self._cache[cached]:
                cached += 1
        self._cache = prompt
        headers = {"Content-Type": "text/event-stream", **self.headers}
        began = time.perf_counter()
        await exchange.head(200, headers, flush=not self.late_headers)
        if asked.get("return_progress") and not self.late_headers:
            progress = {"total": len(prompt), "cache": cached, "processed": cached, "time_ms": 0}
            await exchange.send(event({**token(0, ""), "tokens": [0], "prompt_progress": progress}))
        await asyncio.sleep(self.prefill_s * (len(prompt) - cached))
        prefilled = time.perf_counter()
        room = self.n_ctx - len(prompt)
        planned = min(work.planned, room)
        for number in range(0, planned, self.tokens_per_event):
            if number:
                await asyncio.sleep(self.decode_s * self.tokens_per_event)
            if exchange.gone():
                raise ConnectionResetError
            work.decoded = min(number + self.tokens_per_event, planned)
            await exchange.send(event(token(work.decoded, f" t{number}")))
        record = final(planned, prompt=len(prompt), cached=cached, truncated=work.planned > room)
        record["timings"]["prompt_ms"] = (prefilled - began) * 1000
        record["timings"]["predicted_ms"] = (time.perf_counter() - prefilled) * 1000
        await exchange.send(event(record))
        await exchange.end()
        exchange.drop()  # as the real one does, although it advertises keep-alive


PROGRAM = '''#!{python}
"""llama-server's flags and pages around the real engine."""
import json, os, signal, sys
if "--version" in sys.argv:
    print("version: 11549 (0badcafe)\\nbuilt with a compiler", file=sys.stderr); sys.exit(0)
if "--help" in sys.argv:
    print("-m, --model FNAME  model\\n-c, --ctx-size N  size\\n--metrics  enable\\n--slots, --no-slots  expose\\n"
          "-cram, --cache-ram N  set\\n-lv, --verbosity, --log-verbosity N  - 3: info - 4: trace (more info)")
    sys.exit(0)
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
{before}
import xllamacpp as x
p = x.CommonParams()
p.n_parallel = 1
arguments = iter(sys.argv[1:])
for flag in arguments:
    if flag == "--metrics": p.endpoint_metrics = True
    elif flag == "--slots": p.endpoint_slots = True
    else:
        value = next(arguments)
        if flag == "-m": p.model.path = value
        elif flag == "-c": p.n_ctx = int(value)
        elif flag == "-np": p.n_parallel = int(value)
        elif flag == "-ngl": p.n_gpu_layers = int(value)
        elif flag == "-b": p.n_batch = int(value)
        elif flag == "-ub": p.n_ubatch = int(value)
        elif flag == "-t": p.cpuparams.n_threads = int(value)
        elif flag == "-tb": p.cpuparams_batch.n_threads = int(value)
        elif flag == "-fa": p.flash_attn_type = getattr(
            x.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + dict(on="ENABLED", off="DISABLED", auto="AUTO")[value])
        elif flag == "-ctk": p.cache_type_k = getattr(x.ggml_type, "GGML_TYPE_" + value.upper())
        elif flag == "-ctv": p.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + value.upper())
        elif flag == "--cache-ram": p.cache_ram_mib = int(value)
        elif flag == "--host": p.hostnames = [value]
        elif flag == "--port": p.port = int(value)
        elif flag == "-lv": p.verbosity = int(value)
        else: sys.exit("error: invalid argument: " + flag)
server = x.Server(p)
signal.pause()
'''


def llama_program(folder: Path, *, before: str = "") -> tuple[str, Path]:
    """A program with llama-server's flags around the real engine, and the file where it notes its arguments.

    `before` is Python that runs when a server is to be started, before the engine.
    """
    record = folder / "arguments.jsonl"
    program = folder / "llama-server"
    program.write_text(PROGRAM.format(python=sys.executable, record=str(record), before=before))
    program.chmod(0o755)
    return str(program), record
