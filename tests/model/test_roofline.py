from __future__ import annotations

import json
from pathlib import Path

import pytest

from chimera.model.roofline import bytes_per_token, mbu, read_kv, read_weights, roof_tok_s
from chimera.model.shape import ModelShape, from_gguf, from_show

from . import files


@pytest.fixture(scope="module")
def gemma() -> ModelShape:
    return from_show(
        json.loads((Path(__file__).parents[1] / "samples" / "ollama" / "show.json").read_text(encoding="utf-8"))
    )


def test_a_tied_model_reads_all_its_tensors(gemma: ModelShape) -> None:
    read = read_weights(gemma)
    assert read is not None
    assert read.total == gemma.weight_bytes


def test_a_model_with_a_head_of_its_own_reads_one_row_of_its_embedding(tmp_path: Path) -> None:
    shape = from_gguf(files.write(tmp_path / "m.gguf", files.llama(), files.llama_tensors()))
    read = read_weights(shape)
    assert read is not None
    assert shape.weight_bytes is not None
    assert shape.token_embd_bytes is not None
    assert read.total == shape.weight_bytes - shape.token_embd_bytes


def test_of_the_experts_only_the_chosen_are_read(tmp_path: Path) -> None:
    metadata = files.llama(1, expert_count=8, expert_used_count=2)
    rows = [
        *files.llama_tensors(1),
        ("blk.0.ffn_up_exps.weight", "Q8_0", (32, 10, 8)),
        ("blk.0.ffn_up_shexp.weight", "Q8_0", (32, 10)),
    ]
    shape = from_gguf(files.write(tmp_path / "m.gguf", metadata, rows))
    assert shape.expert_bytes == (2720,)
    read = read_weights(shape)
    assert read is not None
    assert shape.weight_bytes is not None
    assert shape.token_embd_bytes is not None
    assert read.total == shape.weight_bytes - shape.token_embd_bytes - 2720 + 2720 // 4


def test_vision_is_not_read_while_decoding(tmp_path: Path) -> None:
    plain = from_gguf(files.write(tmp_path / "a.gguf", files.llama(), files.llama_tensors()))
    rows = [*files.llama_tensors(), ("v.blk.0.attn_q.weight", "F16", (64, 64))]
    seeing = from_gguf(files.write(tmp_path / "b.gguf", files.llama(), rows))
    assert read_weights(plain) == read_weights(seeing)


def test_a_partial_offload_reads_on_both_sides_and_the_times_add(gemma: ModelShape) -> None:
    half = read_weights(gemma, 10)
    assert half is not None
    assert half.gpu == 178_257_920 + 2560 + sum(gemma.block_bytes[9:])
    assert half.total == gemma.weight_bytes
    roof = roof_tok_s(gemma, 700, cpu_bandwidth_gb_s=50, num_gpu=10)
    assert roof == pytest.approx(1 / (half.gpu / 700e9 + half.cpu / 50e9))
    assert roof_tok_s(gemma, 700, num_gpu=10) is None


def test_all_on_the_host_is_read_at_the_hosts_bandwidth(gemma: ModelShape) -> None:
    assert gemma.weight_bytes is not None
    assert roof_tok_s(gemma, 20, num_gpu=0) == pytest.approx(20e9 / gemma.weight_bytes)
    assert roof_tok_s(gemma, 700, cpu_bandwidth_gb_s=20, num_gpu=0) == pytest.approx(20e9 / gemma.weight_bytes)


def test_the_cache_is_read_as_deep_as_it_is_filled_and_windows_cap_it(gemma: ModelShape) -> None:
    token = 2 * 256 * 2
    assert read_kv(gemma, 100).total == 18 * 100 * token
    assert read_kv(gemma, 4096).total == (3 * 4096 + 15 * 512) * token
    assert read_kv(gemma, 4096, kv_type="q8_0").total == (3 * 4096 + 15 * 512) * 2 * 272
    assert read_kv(gemma, 4096, num_gpu=2).gpu == 4096 * token


def test_depth_lowers_the_roof_and_a_batch_lifts_it_by_less_than_its_size(gemma: ModelShape) -> None:
    empty, deep = roof_tok_s(gemma, 500), roof_tok_s(gemma, 500, depth=16000)
    both = roof_tok_s(gemma, 500, depth=16000, batch=2)
    assert empty is not None
    assert deep is not None
    assert both is not None
    assert deep < empty
    assert deep < both < 2 * deep


def test_utilisation_is_one_at_the_roof(gemma: ModelShape) -> None:
    roof, read = roof_tok_s(gemma, 500, depth=1000), bytes_per_token(gemma, depth=1000)
    assert roof is not None
    assert read is not None
    assert mbu(roof, read.total, 500) == pytest.approx(1)
    assert mbu(roof / 4, read.total, 500) == pytest.approx(0.25)


def test_unknown_sizes_give_no_roof(tmp_path: Path) -> None:
    shape = from_gguf(files.write(tmp_path / "m.gguf", files.llama(), [("blk.0.x", 999, (64,))]))
    assert read_weights(shape) is None
    assert roof_tok_s(shape, 500) is None
    assert bytes_per_token(shape) is None
