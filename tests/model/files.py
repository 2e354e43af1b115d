"""GGUF files made for tests: real headers over sparse data."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chimera.model.gguf import TENSOR_TYPES, tensor_bytes

NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
KINDS = {"u32": (4, "<I"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i32": (5, "<i")}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: Any) -> bytes:
    return text(key) + typed(value)


def typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
    kind, form = KINDS["bool" if value and isinstance(value[0], bool) else "i32"]
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(struct.pack(form, item) for item in value)


def header_bytes(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, str | int, tuple[int, ...]]] = (), *, version: int = 3
) -> tuple[bytes, int]:
    """A header, and the size of the data that belong behind it."""
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    out += [entry(key, value) for key, value in metadata.items()]
    offset = 0
    for name, kind, shape in tensors:
        number = kind if isinstance(kind, int) else NUMBERS[kind]
        out.append(text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in shape))
        out.append(struct.pack("<IQ", number, offset))
        size = tensor_bytes(kind, shape) if isinstance(kind, str) else 0
        offset += -(-(size or 0) // 32) * 32
    return b"".join(out), offset


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, str | int, tuple[int, ...]]] = (),
    *,
    version: int = 3,
) -> Path:
    head, data = header_bytes(metadata, tensors, version=version)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + data)
    return path


def llama(blocks: int = 2, **extra: Any) -> dict[str, Any]:
    """Metadata of a small dense model; keyword names take `__` for dots, under the architecture's prefix."""
    return {
        "general.architecture": "llama",
        "llama.block_count": blocks,
        "llama.embedding_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 8192,
        **{f"llama.{key.replace('__', '.')}": value for key, value in extra.items()},
    }


def llama_tensors(blocks: int = 2, *, tied: bool = False) -> list[tuple[str, str | int, tuple[int, ...]]]:
    rows: list[tuple[str, str | int, tuple[int, ...]]] = [
        ("token_embd.weight", "Q8_0", (256, 1000)),
        ("output_norm.weight", "F32", (256,)),
    ]
    if not tied:
        rows.append(("output.weight", "Q6_K", (256, 1000)))
    for block in range(blocks):
        rows.append((f"blk.{block}.attn_k.weight", "Q4_K", (256, 128)))
        rows.append((f"blk.{block}.ffn_up.weight", "Q4_K", (256, 512)))
    return rows
