"""llama.cpp's `llama-server`: attached by its address, or started by Chimera with given flags."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import urlsplit

import psutil

from chimera.domain.options import (
    LOAD_OPTIONS,
    SAMPLING_OPTIONS,
    FlashAttention,
    KvCacheType,
    Options,
    OptionValue,
)
from chimera.domain.readings import Source
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.text import plain
from chimera.errors import BackendRefused, BackendUnavailable, BadAnswer, ChimeraError, ConfigError
from chimera.model.effective import derive

from .base import Activity, Event, GenerateRequest
from .llama_dialect import LlamaEndpoint, ModelEntry, Props, short_name
from .llama_engine import OwnedEngine, Started
from .llama_process import EngineProcess, python_program
from .model_file import file_shape

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape

READY_S: Final = 600.0
"""Longest time for a started server to load its model: large ones take minutes."""
_PROBE_S: Final = 20.0


# ---- flags -----------------------------------------------------------------------------------------------------------

FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "context": ("-c", "--ctx-size"),
    "slots": ("-np", "--parallel"),
    "layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "batch": ("-b", "--batch-size"),
    "ubatch": ("-ub", "--ubatch-size"),
    "threads": ("-t", "--threads"),
    "threads_batch": ("-tb", "--threads-batch"),
    "flash": ("-fa", "--flash-attn"),
    "kv_k": ("-ctk", "--cache-type-k"),
    "kv_v": ("-ctv", "--cache-type-v"),
    "cache_ram": ("-cram", "--cache-ram"),
    "model": ("-m", "--model"),
    "host": ("--host",),
    "port": ("--port",),
}
"""llama-server's flags for what Chimera sets or reads, each in all its spellings; the first one is written."""

_VARIABLES: Final[dict[str, str]] = {
    "layers": "LLAMA_ARG_N_GPU_LAYERS",
    "batch": "LLAMA_ARG_BATCH",
    "ubatch": "LLAMA_ARG_UBATCH",
    "threads": "LLAMA_ARG_THREADS",
    "flash": "LLAMA_ARG_FLASH_ATTN",
    "kv_k": "LLAMA_ARG_CACHE_TYPE_K",
    "kv_v": "LLAMA_ARG_CACHE_TYPE_V",
    "cache_ram": "LLAMA_ARG_CACHE_RAM",
}
"""The environment's way to give the same; a flag wins."""

_FLAG_OF: Final[dict[str, str]] = {
    "num_gpu": "-ngl {}",
    "num_ctx": "-c {} (times the slots)",
    "num_batch": "-b {0} -ub {0}",
    "num_thread": "-t {}",
    "flash_attention": "-fa {}",
    "kv_cache_type": "-ctk {0} -ctv {0}",
    "num_parallel": "-np {}",
}


_SAVES_PROMPTS: Final = (
    "Unless --cache-ram is 0, the prompt before is saved when a new one comes: that stands as queue."
)
"""It does so when a request has its slot and before it answers with headers, also for a request without a cache."""


def read_flags(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The values of the flags in `FLAGS` in a command line; a flag without a value is `on`, the last one wins."""
    names = {spelling: name for name, spellings in FLAGS.items() for spelling in spellings}
    values = {name: value for name, key in _VARIABLES.items() if (value := (environ or {}).get(key))}
    for place, argument in enumerate(arguments):
        flag, equals, given = argument.partition("=")
        name = names.get(flag)
        if name is None:
            continue
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        values[name] = given if equals else following if following and not following.startswith("-") else "on"
        if name == "layers" and re.fullmatch(r"-\d+", following):
            values[name] = following
    return values


def without_flags(arguments: Sequence[str], names: frozenset[str]) -> list[str]:
    """A command line without the flags of these names and their values."""
    drop = {spelling for name in names for spelling in FLAGS[name]}
    kept: list[str] = []
    skip = False
    for place, argument in enumerate(arguments):
        if skip:
            skip = False
            continue
        flag, equals, _ = argument.partition("=")
        if flag not in drop:
            kept.append(argument)
            continue
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        skip = not equals and (not following.startswith("-") or bool(re.fullmatch(r"-\d+", following)))
    return kept


def flags_for(options: Options, fixed: Mapping[str, str]) -> dict[str, str]:
    """The flags, by their names in `FLAGS`, that make load options effective beside the fixed ones.

    The context is for one slot and llama-server's is for all of them, so a context always comes with its slots.
    """
    flags: dict[str, str] = {}
    slots = options.num_parallel
    if options.num_ctx is not None:
        if slots is None:
            slots = int(fixed["slots"]) if fixed.get("slots", "").isdigit() else 1
        flags["context"] = str(options.num_ctx * slots)
    if slots is not None:
        flags["slots"] = str(slots)
    if options.num_gpu is not None:
        flags["layers"] = str(options.num_gpu)
    if options.num_batch is not None:
        flags["batch"] = flags["ubatch"] = str(options.num_batch)
    if options.num_thread is not None:
        flags["threads"] = flags["threads_batch"] = str(options.num_thread)
    if options.flash_attention is not None:
        flags["flash"] = options.flash_attention
    if options.kv_cache_type is not None:
        flags["kv_k"] = flags["kv_v"] = options.kv_cache_type
    return flags


def configured(flags: Mapping[str, str]) -> Options:
    """What a command line asks for, as far as it is written there; the context and slots are the server's to tell."""
    values: dict[str, OptionValue] = {}
    layers = flags.get("layers", "")
    if layers == "all":
        values["num_gpu"] = 100_000
    elif layers == "auto":
        values["num_gpu"] = -1
    elif re.fullmatch(r"-?\d+", layers):
        values["num_gpu"] = max(-1, int(layers))
    if flags.get("ubatch", "").isdigit():
        values["num_batch"] = int(flags["ubatch"])
    if flags.get("threads", "").isdigit():
        values["num_thread"] = int(flags["threads"])
    flash = {"1": "on", "true": "on", "enabled": "on", "0": "off", "false": "off", "disabled": "off"}
    word = flash.get(flags.get("flash", ""), flags.get("flash", ""))
    if word in get_args(FlashAttention):
        values["flash_attention"] = word
    if (kv := flags.get("kv_k", "f16")) == flags.get("kv_v", "f16") and "kv_k" in flags and kv in get_args(KvCacheType):
        values["kv_cache_type"] = kv
    return Options.of(values)


# ---- attached --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """The process that serves an address of this host."""

    pid: int
    flags: Mapping[str, str] = field(default_factory=dict)
    readable: bool = False
    """Its command line could be read."""


def listener_of(url: str) -> Listener | None:
    """The process behind an address, where it is on this host and may be looked at."""
    parts = urlsplit(url)
    if not parts.port or not _is_here(parts.hostname or ""):
        return None
    try:
        pids = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == parts.port
        }
    except (psutil.Error, OSError):
        return None
    if len(pids) != 1 or (pid := pids.pop()) is None:
        return None
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline()[1:]
    except (psutil.Error, OSError):
        return Listener(pid)
    environ: Mapping[str, str] = {}
    with contextlib.suppress(psutil.Error, OSError):
        environ = process.environ()
    return Listener(pid, read_flags(arguments, environ), readable=True)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname()
    if address.is_loopback:
        return True
    mine = {entry.address.split("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    return str(address) in mine


class LlamaServer:
    """A llama-server that runs already. It is not ours: its load settings are read, never changed."""

    kind: ServerKind = "llama_server"
    owned = False
    load_options: frozenset[str] = frozenset()
    sampling_options = SAMPLING_OPTIONS

    def __init__(self, url: str, model: str | None = None) -> None:
        self._wanted = model
        self._endpoint = LlamaEndpoint(url)
        self._info: ModelInfo | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return self._endpoint.url

    @property
    def headers_mark_slot(self) -> bool:
        """Response headers arrive when the request gets its slot, unless an answer has shown otherwise."""
        return self._endpoint.headers_mark_slot

    async def connect(self) -> ServerInfo:
        """Ask it what it is. Raises `BackendUnavailable`, `BackendRefused` while it loads, `BadAnswer` for another."""
        props = await self._props()
        build = plain(props.build_info or "")
        return ServerInfo(
            kind=self.kind,
            url=self.url,
            version=None if build in ("", "b0-unknown") else build.split("-")[0],
        )

    async def _props(self) -> Props:
        where = f"GET {self.url}/props"
        try:
            props = await self._endpoint.props()
        except BackendRefused as error:
            if error.status == 503:
                raise BackendUnavailable(
                    f"{self.url} is still loading its model. Try again when it is ready."
                ) from error
            if error.status == 404:
                raise BadAnswer(f"{where}: there is no such page, so this is no llama-server.") from error
            raise
        if props.total_slots is None and props.default_generation_settings.n_ctx is None and props.role is None:
            raise BadAnswer(f"{where} names neither slots nor context, so this is no llama-server.")
        return props

    async def models(self) -> tuple[ModelInfo, ...]:
        """What it serves: one model, or those of a router, the loaded ones first."""
        listed = (await self._endpoint.models()).data
        loaded = [entry for entry in listed if entry.status is None or entry.status.value == "loaded"]
        ordered = [*loaded, *(entry for entry in listed if entry not in loaded)]
        infos = tuple(_entry_info(entry) for entry in ordered)
        with contextlib.suppress(ConfigError):  # it does not serve ours, but what it serves can be listed
            mine = await self.model()
            infos = tuple(mine if info.name == mine.name else info for info in infos)
        return infos

    async def shape(self) -> ModelShape | None:
        """The model's layers and sizes, from its file."""
        return await file_shape((await self.model()).path)

    async def model(self) -> ModelInfo:
        """The model that it serves, with what its file tells where that lies on this host.

        Raises `ConfigError` where it serves another one than was asked for.
        """
        if self._info is None:
            listed = (await self._endpoint.models()).data
            if not listed:
                raise BackendRefused(f"{self.url} serves no model.")
            entry = self._pick(listed)
            router = any(other.status is not None for other in listed)
            if router:
                self._endpoint.ask_for(entry.id)
            props = await self._props()
            info = _entry_info(entry)
            if info.quantization is None:
                info = replace(info, quantization=_quantization(props.model_ftype))
            info = replace(info, vision=props.modalities.vision)
            if _is_here(urlsplit(self.url).hostname or "") and props.model_path:
                info = await asyncio.to_thread(_with_file, info, Path(props.model_path))
            self._info = info
        return self._info

    def _pick(self, listed: tuple[ModelEntry, ...]) -> ModelEntry:
        if self._wanted is None:
            loaded = (entry for entry in listed if entry.status is not None and entry.status.value == "loaded")
            return next(loaded, listed[0])
        for entry in listed:
            if self._wanted in (entry.id, *entry.aliases, short_name(entry.id)):
                return entry
        raise ConfigError(
            f"{self.url} serves {', '.join(short_name(entry.id) for entry in listed[:8])}, not "
            f"{plain(self._wanted)}. Leave the model out, or start a llama-server with that one."
        )

    async def would_reload(self, options: Options) -> str | None:
        """None: it is never made to reload; see `load`."""
        return None

    async def load(self, options: Options) -> Effective:
        """Check that what is asked for is what runs; a server that is not ours is not reloaded.

        Raises `ConfigError` naming each option that differs or cannot be read, with the flag to start it with.
        """
        runs, listener = await self._running()
        asked = options.load
        wanted = derive(asked, await self.model(), self.kind).options.as_dict()
        written = configured(listener.flags).as_dict() if listener else {}
        wrong: list[str] = []
        for name, value in asked.as_dict().items():
            real = runs.options.as_dict().get(name)
            if (real is not None and real in (value, wanted.get(name))) or written.get(name) == value:
                continue
            wrong.append(
                f"{name} {value} ({f'it runs with {real}' if real is not None else 'it does not say what it runs'}; "
                f"flag {_FLAG_OF[name].format(value)})"
            )
        if wrong:
            raise ConfigError(
                f"The llama-server at {self.url} was not started by Chimera, so it is not reloaded for: "
                f"{', '.join(wrong)}. Restart it with these flags, let Chimera start one, or leave the options out."
            )
        unread = tuple(name for name in asked.as_dict() if name not in runs.options.as_dict())
        return replace(runs, unread=unread)

    async def effective(self) -> Effective:
        """What it runs with: `/props`, and on this host the flags that it was started with."""
        return (await self._running())[0]

    async def _running(self) -> tuple[Effective, Listener | None]:
        model = await self.model()
        props = await self._props()
        listener = await asyncio.to_thread(listener_of, self.url)
        values: dict[str, OptionValue] = {}
        sources: dict[str, Source] = {}
        if listener is not None:
            rules = derive(configured(listener.flags), model, self.kind)
            # What nobody wrote on its command line is a default of that build, which is not known here.
            values |= rules.options.only(frozenset(configured(listener.flags).as_dict())).as_dict()
            sources |= dict.fromkeys(values, "derived")
        for name, told in (
            ("num_ctx", props.default_generation_settings.n_ctx),
            ("num_parallel", props.total_slots),
        ):
            if told is not None:
                values[name] = told
                sources[name] = "measured"
        notes = () if listener is not None and listener.flags.get("cache_ram") == "0" else (_SAVES_PROMPTS,)
        effective = Effective(Options.of(values), sources, notes=notes, pid=listener.pid if listener else None)
        return effective, listener

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Send one request; see `Backend.generate`."""
        await self.model()  # asked once: a router must be told the model's name
        async with contextlib.aclosing(self._endpoint.generate(request, self.sampling_options)) as events:
            async for event in events:
                yield event

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of a prompt of this text, the beginning-of-sequence token counted."""
        return await self._endpoint.count_tokens(text)

    async def activity(self) -> Activity:
        """Who uses the server now."""
        return await self._endpoint.activity()

    async def remember(self) -> dict[str, Any]:
        """Nothing: nothing of it is ever changed."""
        return {}

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        """Nothing to put back."""
        return ()

    async def close(self) -> None:
        """Close our connections; it goes on running."""
        with contextlib.suppress(Exception):
            await self._endpoint.close()


def _entry_info(entry: ModelEntry) -> ModelInfo:
    meta = entry.meta
    return ModelInfo(
        name=short_name(entry.id),
        quantization=_quantization(meta.ftype) if meta else None,
        trained_ctx=(meta.n_ctx_train or None) if meta else None,
        size_bytes=(meta.size or None) if meta else None,
        parameters=(meta.n_params or None) if meta else None,
    )


def _quantization(ftype: str | None) -> str | None:
    """llama.cpp's words for a file type as everyone writes it: `Q4_K - Medium` is `Q4_K_M`."""
    if not ftype:
        return None
    return plain(re.sub(r" - (S|M|L)(?:mall|edium|arge)$", r"_\1", ftype))


def _with_file(info: ModelInfo, path: Path) -> ModelInfo:
    """`info` with what the GGUF file says, where it can be read here."""
    from chimera.model.shape import from_gguf

    if not path.is_absolute():  # relative to a folder of the server's that we do not know
        return info
    try:
        shape = from_gguf(path)
        size = path.stat().st_size
    except (ChimeraError, OSError):
        return info
    return replace(
        info,
        path=str(path),
        size_bytes=size,
        architecture=shape.architecture,
        block_count=shape.block_count,
        trained_ctx=shape.trained_ctx or info.trained_ctx,
        quantization=shape.quantization or info.quantization,
        parameters=shape.parameters or info.parameters,
    )


# ---- started ---------------------------------------------------------------------------------------------------------


class StartedLlamaServer(OwnedEngine):
    """A llama-server that Chimera starts, once for each load, with fixed flags and those of the options."""

    kind: ServerKind = "llama_server"

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        if not command:
            raise ConfigError("No command for llama-server. Give the program and its flags, at least -m MODEL.")
        self._command = tuple(command)
        self._fixed = read_flags(self._command[1:])
        self._known: frozenset[str] | None = None
        self._help = ""
        self._version: str | None = None

    async def connect(self) -> ServerInfo:
        """Ask the program for its version and flags; starts no server.

        Raises `ConfigError` where the program cannot be run.
        """
        await self._probe()
        return ServerInfo(kind=self.kind, url=self.url or "", version=self._version)

    @property
    def help_text(self) -> str:
        """What the program prints for `--help`; empty before `connect`."""
        return self._help

    async def models(self) -> tuple[ModelInfo, ...]:
        """The one model that its flags name."""
        return (await self.model(),)

    async def model(self) -> ModelInfo:
        """The model that its flags name, with what its file or the running server says of it."""
        path = self._fixed.get("model")
        if path:
            return await asyncio.to_thread(_with_file, ModelInfo(name=short_name(path)), Path.cwd() / path)
        if self._started is None:
            return ModelInfo(name="llama-server's model")
        listed = (await self._started.endpoint.models()).data
        if not listed:
            raise BackendRefused(f"{self.url} serves no model.")
        return _entry_info(listed[0])

    async def _probe(self) -> None:
        if self._known is None:
            version, self._help = await asyncio.gather(self._say("--version"), self._say("--help"))
            self._known = frozenset(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", self._help))
            found = re.search(r"version:\s*(\d+)", version)
            self._version = f"b{found[1]}" if found and found[1] != "0" else None

    async def _say(self, flag: str) -> str:
        """What the program prints for `--version` or `--help`, on either stream."""
        try:
            process = await asyncio.create_subprocess_exec(
                self._command[0],
                flag,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise ConfigError(
                f"{self._command[0]} cannot be run: {error.strerror or error}. Give the path of llama-server."
            ) from error
        try:
            async with asyncio.timeout(_PROBE_S):
                said, _ = await process.communicate()
        except TimeoutError:
            raise ConfigError(
                f"{self._command[0]} {flag} did not end within {_PROBE_S:g} s: this is no llama-server."
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return said.decode("utf-8", "replace")

    def arguments(self, options: Options, port: int) -> list[str]:
        """The whole command line for these load options."""
        wanted = flags_for(options, self._fixed) | {"host": "127.0.0.1", "port": str(port)}
        command = [self._command[0], *without_flags(self._command[1:], frozenset(wanted))]
        for name, value in wanted.items():
            command += [FLAGS[name][0], value]
        given = {argument.partition("=")[0] for argument in self._command}
        known = self._known or frozenset()
        if "--metrics" in known and "--metrics" not in given:
            command += ["--metrics"]
        if "--slots" in known and not given & {"--slots", "--no-slots"}:
            command += ["--slots"]
        if "--cache-ram" in known and not given & {"--cache-ram", "-cram"}:
            command += ["--cache-ram", "0"]  # a prompt that was seen before must not come back from a cache
        # Newer builds say what they really run one level above their default, "trace"; in older ones 4 is debugging.
        if "4: trace" in self._help and not given & {"-lv", "--verbosity", "--log-verbosity", "-v", "--verbose"}:
            command += ["-lv", "4"]
        return command

    async def _start(self, options: Options) -> Started:
        await self._probe()
        port = _free_port()
        process = EngineProcess([*python_program("leash"), *self.arguments(options, port)])
        line = await process.start(_PROBE_S)
        endpoint = LlamaEndpoint(f"http://127.0.0.1:{port}")
        try:
            pid = _pid_of(line, self._command[0])
            await self._ready(process, endpoint, str(options))
            process.loaded()
            return Started(process, endpoint, pid, process.facts.gpu)
        except BaseException:
            await process.stop(patience_s=0.0)
            await endpoint.close()
            raise

    async def _ready(self, process: EngineProcess, endpoint: LlamaEndpoint, asked: str) -> None:
        """Wait until the server has loaded its model."""
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    if await process.ended(0.1):
                        raise process.load_failure(asked)
                    with contextlib.suppress(BackendUnavailable):
                        status, _, _ = await endpoint.wire.get("/health")
                        if status == 200:
                            return
        except TimeoutError:
            raise BackendUnavailable(
                f"{self._command[0]} was not ready within {READY_S:g} s and was ended. "
                f"Its last words: {process.last_words()}"
            ) from None


def _pid_of(line: bytes, program: str) -> int:
    try:
        said = json.loads(line)
    except ValueError:
        said = {}
    if not isinstance(said, dict) or not isinstance(said.get("pid"), int):
        why = plain(str(said.get("error", ""))) if isinstance(said, dict) else ""
        raise ConfigError(f"{program} cannot be run{f': {why}' if why else ''}. Give the path of llama-server.")
    return int(said["pid"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


assert frozenset(_FLAG_OF) == LOAD_OPTIONS
