from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chimera.errors import ConfigError
from chimera.model.gguf import GgufError
from chimera.model.shape import from_gguf, from_show

from . import files

SHOW = Path(__file__).parents[1] / "samples" / "ollama" / "show.json"


def show() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(SHOW.read_text(encoding="utf-8"))
    return body


def test_an_ollama_answer_gives_the_whole_shape() -> None:
    shape = from_show(show())
    assert (shape.architecture, shape.block_count, shape.units) == ("gemma3", 18, 19)
    assert shape.head_count_kv == (1,) * 18
    assert (shape.key_length, shape.value_length) == (256, 256)
    assert (shape.trained_ctx, shape.sliding_window, shape.sliding_period) == (32768, 512, 6)
    assert [layer for layer in range(18) if not shape.is_local(layer)] == [5, 11, 17]
    assert shape.tied
    assert shape.weight_bytes == 246_587_904  # 235.16 MiB, as llama.cpp logs
    assert shape.token_embd_bytes == 178_257_920
    assert sum(shape.block_bytes) + 178_257_920 + (shape.output_bytes or 0) == shape.weight_bytes
    assert not shape.vision
    assert shape.quantization == "Q4_K_M"


@pytest.mark.embedded
def test_the_file_and_the_server_tell_the_same(gemma_path: Path) -> None:
    of_file, of_server = from_gguf(gemma_path), from_show(show())
    different = [name for name in of_file.__slots__ if getattr(of_file, name) != getattr(of_server, name)]
    assert different == ["name"]


def test_vision_is_told_by_capabilities_keys_or_tensors(tmp_path: Path) -> None:
    assert from_show({**show(), "capabilities": ["completion", "vision"]}).vision
    body = show()
    body["model_info"]["gemma3.vision.block_count"] = 27
    assert from_show(body).vision
    path = files.write(
        tmp_path / "m.gguf", files.llama(), [*files.llama_tensors(), ("v.blk.0.attn_q.weight", "F16", (64, 64))]
    )
    shape = from_gguf(path)
    assert shape.vision
    assert shape.vision_bytes == 8192


def test_heads_a_layer_come_from_the_key_projections_where_the_answer_has_null() -> None:
    body = show()
    body["model_info"]["gemma3.attention.head_count_kv"] = None
    assert from_show(body).head_count_kv == (1,) * 18


def test_heads_a_layer_may_differ(tmp_path: Path) -> None:
    metadata = files.llama(3) | {"llama.attention.head_count_kv": [2, 0, 4]}
    assert from_gguf(files.write(tmp_path / "m.gguf", metadata)).head_count_kv == (2, 0, 4)


def test_head_length_falls_back_to_the_embedding_over_the_heads(tmp_path: Path) -> None:
    shape = from_gguf(files.write(tmp_path / "m.gguf", files.llama()))
    assert (shape.key_length, shape.value_length) == (64, 64)


@pytest.mark.parametrize(
    ("architecture", "pattern", "expected"),
    [
        ("gemma2", None, [True, False] * 4),
        ("cohere2", None, [True, True, True, False] * 2),
        ("smallthinker", None, [False, True, True, True] * 2),
        ("cohere2", 2, [True, False] * 4),
        ("future", [True, False, False, True, True, True, True, True], [True, False, False] + [True] * 5),
        ("future", None, []),
    ],
)
def test_which_layers_slide_is_told_by_the_file_or_by_the_architecture(
    tmp_path: Path, architecture: str, pattern: object, expected: list[bool]
) -> None:
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": 8,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.head_count": 1,
        f"{architecture}.attention.sliding_window": 128,
    }
    if pattern is not None:
        metadata[f"{architecture}.attention.sliding_window_pattern"] = pattern
    assert list(from_gguf(files.write(tmp_path / "m.gguf", metadata)).sliding_layers) == expected


def test_a_split_model_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    rows = files.llama_tensors()
    whole = from_gguf(files.write(tmp_path / "whole.gguf", files.llama(), rows))
    names = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    files.write(names[0], {**files.llama(), "split.count": 2, "split.no": 0}, rows[:3])
    files.write(names[1], {"split.count": 2, "split.no": 1}, rows[3:])
    assert from_gguf(names[0]).weight_bytes == whole.weight_bytes
    assert from_gguf(names[1]).block_bytes == whole.block_bytes
    names[1].unlink()
    with pytest.raises(GgufError, match=r"m-00002-of-00002\.gguf: is missing"):
        from_gguf(names[0])


def test_an_unknown_tensor_type_leaves_the_weights_unknown(tmp_path: Path) -> None:
    shape = from_gguf(files.write(tmp_path / "m.gguf", files.llama(), [*files.llama_tensors(), ("x", 999, (64,))]))
    assert shape.weight_bytes is None
    assert shape.block_bytes == ()
    assert shape.block_count == 2


@pytest.mark.parametrize("missing", ["general.architecture", "llama.block_count", "llama.embedding_length"])
def test_a_figure_that_every_model_has_is_named_when_missing(tmp_path: Path, missing: str) -> None:
    metadata = files.llama()
    del metadata[missing]
    with pytest.raises(GgufError, match=missing):
        from_gguf(files.write(tmp_path / "m.gguf", metadata))


def test_a_billion_claimed_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="no sensible number"):
        from_gguf(files.write(tmp_path / "m.gguf", files.llama(2**30)))


@pytest.mark.parametrize(
    "body", [{}, {"model_info": None}, {"model_info": {}}, {"model_info": {"general.architecture": 3}}]
)
def test_a_foreign_answer_is_a_sentence(body: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="/api/show"):
        from_show(body)


def test_odd_rows_of_an_answer_are_left_out() -> None:
    body = show()
    body["tensors"] += [None, {"name": 3}, {"name": "x", "type": "F32", "shape": ["a"]}]
    assert from_show(body).weight_bytes == 246_587_904
