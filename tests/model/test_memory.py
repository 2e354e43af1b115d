from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from chimera.domain.options import KvCacheType
from chimera.errors import ConfigError
from chimera.model.memory import MIB, Learned, fits, forecast, kv_cache, parse_buffers, placement
from chimera.model.shape import ModelShape, from_gguf, from_show

from . import files

LOG = Path(__file__).parents[1] / "samples" / "ollama" / "server-log-excerpt.txt"


@pytest.fixture(scope="module")
def gemma() -> ModelShape:
    return from_show(
        json.loads((Path(__file__).parents[1] / "samples" / "ollama" / "show.json").read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize(
    ("num_ctx", "slots", "kind", "global_mib", "local_mib", "cells"),
    [
        (4096, 1, "f16", 12.00, 15.00, (4096, 1024)),
        (4096, 2, "q8_0", 12.75, 15.94, (4096, 1024)),
        (4096, 1, "q8_0", 6.38, 7.97, (4096, 1024)),
        (1024, 2, "f16", 6.00, 30.00, (1024, 1024)),
        (300, 2, "f16", 3.00, 15.00, (512, 512)),
    ],
)
def test_the_cache_is_what_llama_cpp_logged(
    gemma: ModelShape,
    num_ctx: int,
    slots: int,
    kind: KvCacheType,
    global_mib: float,
    local_mib: float,
    cells: tuple[int, int],
) -> None:
    kv = kv_cache(gemma, num_ctx, num_parallel=slots, kv_type=kind)
    assert kv.global_bytes / MIB == pytest.approx(global_mib, abs=0.01)
    assert kv.local_bytes / MIB == pytest.approx(local_mib, abs=0.01)
    assert (kv.cells_global, kv.cells_local) == cells
    assert kv.source == "derived"


def test_the_cache_grows_with_the_context_and_never_more_than_linearly(gemma: ModelShape) -> None:
    sizes = [kv_cache(gemma, num_ctx).total for num_ctx in (1024, 2048, 4096, 8192, 16384)]
    assert sizes == sorted(set(sizes))
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(sizes))


def test_a_unified_cache_has_one_stream_and_swa_full_no_windows(gemma: ModelShape) -> None:
    unified = kv_cache(gemma, 4096, num_parallel=2, unified=True)
    assert (unified.cells_global, unified.cells_local, unified.streams) == (8192, 1536, 1)
    assert kv_cache(gemma, 4096, swa_full=True).cells_local == 4096


def test_layers_that_share_a_cache_and_layers_without_one_take_nothing(tmp_path: Path) -> None:
    metadata = files.llama(3) | {"llama.attention.head_count_kv": [2, 0, 2], "llama.attention.shared_kv_layers": 1}
    shape = from_gguf(files.write(tmp_path / "m.gguf", metadata))
    assert kv_cache(shape, 256).per_layer == (256 * 2 * 128 * 2, 0, 0)


def test_a_cache_type_whose_blocks_do_not_divide_the_heads_is_refused(tmp_path: Path) -> None:
    shape = from_gguf(
        files.write(tmp_path / "m.gguf", files.llama(attention__key_length=72, attention__value_length=72))
    )
    assert kv_cache(shape, 256).total > 0
    odd = from_gguf(
        files.write(
            tmp_path / "odd.gguf",
            files.llama(attention__key_length=20, attention__value_length=20) | {"llama.attention.head_count_kv": 1},
        )
    )
    with pytest.raises(ConfigError, match="q8_0"):
        kv_cache(odd, 256, kv_type="q8_0")


def test_offloaded_layers_start_with_the_output_and_a_tied_head_is_held_twice(gemma: ModelShape) -> None:
    assert gemma.weight_bytes is not None
    nothing, head, almost, whole = (placement(gemma, n) for n in (0, 1, 18, 19))
    assert nothing is not None
    assert head is not None
    assert almost is not None
    assert whole is not None
    assert (nothing.gpu, nothing.cpu) == (0, gemma.weight_bytes)
    assert head.gpu == 178_257_920 + 2560
    assert almost.gpu == whole.gpu - gemma.block_bytes[0]
    assert (whole.gpu, whole.cpu) == (gemma.weight_bytes, 178_257_920)
    assert placement(gemma, 120) == placement(gemma, -1) == placement(gemma, None) == whole


def test_the_caches_of_offloaded_layers_go_with_them(gemma: ModelShape) -> None:
    kv = kv_cache(gemma, 4096)
    assert forecast(gemma, 4096, num_gpu=0).kv_gpu.bytes == 0
    assert forecast(gemma, 4096, num_gpu=1).kv_gpu.bytes == 0
    assert forecast(gemma, 4096, num_gpu=2).kv_gpu.bytes == kv.per_layer[17]
    assert forecast(gemma, 4096, num_gpu=120).kv_gpu.bytes == kv.total


def test_what_was_not_learned_is_unknown_and_the_sum_says_at_least(gemma: ModelShape) -> None:
    told = forecast(gemma, 4096)
    assert told.compute_gpu.bytes is None
    assert told.gpu.source == "estimated"
    assert told.gpu.why.startswith("at least")
    assert told.weights_gpu.source == "derived"


def test_a_quantised_cache_without_flash_attention_is_refused(gemma: ModelShape) -> None:
    with pytest.raises(ConfigError, match="flash_attention"):
        forecast(gemma, 4096, kv_type="q8_0", flash_attention="off")
    assert forecast(gemma, 4096, kv_type="f16", flash_attention="off")


def test_both_caches_of_a_sliding_window_model_are_read_from_a_log() -> None:
    buffers = parse_buffers(LOG.read_text(encoding="utf-8"))
    assert buffers.total("KV") == 27 * MIB
    assert buffers.total("compute") == round(23.28 * MIB)
    assert buffers.total("output") == MIB
    assert buffers.total("model", on_gpu=True) == 0
    assert buffers.total("RS") is None


def test_the_last_pass_counts_and_device_names_tell_gpu_from_host() -> None:
    buffers = parse_buffers(
        "load_tensors:        CUDA0 model buffer size =     0.00 MiB\n"
        "load_tensors:   CPU_Mapped model buffer size =     0.00 MiB\n"
        "load_tensors:        CUDA0 model buffer size =  2000.50 MiB\n"
        "load_tensors:   CPU_Mapped model buffer size =   300.00 MiB\n"
        "load_tensors: MTL0_Mapped model buffer size =   100.00 MiB\n"
        "sched_reserve:  CUDA_Host compute buffer size =    10.00 MiB\n"
        "sched_reserve:       BLAS compute buffer size =     1.00 MiB\n"
    )
    assert buffers.total("model", on_gpu=True) == round(2100.5 * MIB)
    assert buffers.total("model", on_gpu=False) == 300 * MIB
    assert buffers.total("compute", on_gpu=True) == 0
    assert buffers.total("compute") == 11 * MIB


def test_learned_buffers_are_measured_for_the_same_configuration_and_estimated_for_another(gemma: ModelShape) -> None:
    log = (
        "llama_context:  CUDA_Host  output buffer size =     1.00 MiB\n"
        "sched_reserve:      CUDA0 compute buffer size =    24.00 MiB\n"
        "sched_reserve:  CUDA_Host compute buffer size =     6.00 MiB\n"
    )
    learned = Learned(parse_buffers(log), num_ctx=4096)
    same = forecast(gemma, 4096, learned=learned)
    assert (same.compute_gpu.bytes, same.compute_gpu.source) == (24 * MIB, "measured")
    assert (same.compute_cpu.bytes, same.output.bytes) == (6 * MIB, MIB)
    other = forecast(gemma, 4096, num_parallel=2, num_batch=1024, learned=learned)
    assert (other.compute_gpu.bytes, other.compute_gpu.source) == (48 * MIB, "estimated")
    assert other.output.bytes == 2 * MIB
    smaller = forecast(gemma, 4096, num_batch=64, learned=learned)
    assert smaller.compute_gpu.bytes == 24 * MIB


def test_fit_is_a_matter_of_what_is_free(gemma: ModelShape) -> None:
    log = "sched_reserve: CUDA0 compute buffer size = 24.00 MiB\nllama_context: CPU output buffer size = 1.00 MiB\n"
    known = forecast(gemma, 4096, learned=Learned(parse_buffers(log), num_ctx=4096))
    card = 12 * 1024 * MIB
    assert known.gpu.bytes is not None
    assert fits(known, card, card).answer == "fits"
    assert fits(known, known.gpu.bytes + 1024 * MIB - 1, card).answer == "tight"
    assert fits(known, known.gpu.bytes - 1, card).answer == "does-not-fit"
    assert "never" in fits(known, MIB, MIB).sentence
    assert fits(forecast(gemma, 4096), card, card).answer == "tight"
    assert fits(forecast(gemma, 4096, num_gpu=0), 0, card).answer == "fits"


CHILD = """
import json, os, sys
import xllamacpp as x
cfg = json.loads(sys.argv[1])
p = x.CommonParams()
p.model.path = cfg["model"]
p.hostnames, p.port = ["127.0.0.1"], 0
p.n_ctx, p.n_parallel = cfg["num_ctx"] * cfg["num_parallel"], cfg["num_parallel"]
p.n_batch = p.n_ubatch = cfg["num_batch"]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + cfg["kv_type"].upper())
p.cache_ram_mib = 0
p.verbosity = 4          # from here on the engine tells its buffers
server = x.Server(p)
print("ready", flush=True)
os._exit(0)              # an orderly end right after the start hangs now and then
"""


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("num_ctx", "slots", "batch", "kind"),
    [(4096, 1, 512, "f16"), (4096, 2, 512, "q8_0"), (300, 2, 512, "f16"), (4096, 1, 64, "q4_0")],
)
def test_the_forecast_is_within_a_tenth_of_a_mebibyte_of_what_the_engine_allocates(
    gemma_path: Path, num_ctx: int, slots: int, batch: int, kind: str
) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra `embedded`")
    config = {
        "model": str(gemma_path), "num_ctx": num_ctx, "num_parallel": slots, "num_batch": batch, "kv_type": kind,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "ready" in done.stdout
    logged = parse_buffers(done.stderr)
    parts = {entry.part: entry.bytes / MIB for entry in logged.entries if entry.kind == "KV"}
    shape = from_gguf(gemma_path)
    kv = kv_cache(shape, num_ctx, num_parallel=slots, kv_type=_kind(kind), num_batch=batch)
    assert parts["non-SWA"] == pytest.approx(kv.global_bytes / MIB, abs=0.1)
    assert parts["SWA"] == pytest.approx(kv.local_bytes / MIB, abs=0.1)
    cells = [int(n) for n in re.findall(r"KV cache, size = (\d+) cells", done.stderr)]
    assert cells[-2:] == [kv.cells_global, kv.cells_local]
    # Weights are mapped from the file; what is repacked for this processor comes on top of them.
    mapped = [entry.bytes for entry in logged.entries if entry.kind == "model" and entry.device == "CPU_Mapped"]
    assert shape.weight_bytes is not None
    assert mapped[0] / MIB == pytest.approx(shape.weight_bytes / MIB, abs=0.1)


def _kind(text: str) -> KvCacheType:
    assert text in get_args(KvCacheType)
    return text  # type: ignore[return-value]  # the assertion has shown it
