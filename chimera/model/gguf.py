"""Headers of GGUF files, versions 2 and 3: metadata and the table of tensors, never the weights.

The file is mapped, not read; string arrays (a vocabulary has hundreds of thousands of entries) are stepped over by
their length prefixes. Nothing in the file is trusted: every length is checked against what is left before it is used.
Layout: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chimera.domain.text import plain
from chimera.errors import ConfigError

KEPT_ARRAY = 1024
"""Longest numeric array that is kept; per-layer arrays are far shorter, token scores far longer."""
_MAX_TEXT = 1 << 20
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_STEPS = 1 << 22
_MAX_NAME = 1 << 10
_MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, tuple[str, struct.Struct]] = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<?")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""Tensor types by number: name, elements a block, bytes a block. Gaps are numbers that ggml has withdrawn."""
BLOCKS: dict[str, tuple[int, int]] = {name: (elements, size) for name, elements, size in TENSOR_TYPES.values()}
"""Elements and bytes a block by the type's name."""


class GgufError(ConfigError):
    """A file that is no GGUF file, or a broken one; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array or an overlong text that was stepped over."""

    type: str
    count: int


Scalar = int | float | bool | str
Value = Scalar | tuple[int | float | bool, ...] | SkippedArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the table of tensors."""

    name: str
    type: str
    """As ggml names it, in capitals; `type 99` where it is not known here."""
    shape: tuple[int, ...]
    """Fastest-varying dimension first."""
    offset: int = 0
    """Bytes from the start of the data."""

    @property
    def bytes(self) -> int | None:
        """Size of its data, or None where the type is not known."""
        return tensor_bytes(self.type, self.shape)


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor: rows x blocks a row x bytes a block; None where the type is not known here.

    Rows are padded to whole blocks, though ggml itself refuses rows that are not whole.
    """
    block = BLOCKS.get(type_name.upper())
    if block is None:
        return None
    elements, size = block
    total = -(-shape[0] // elements) * size if shape else size
    for dimension in shape[1:]:
        total *= dimension
    return total


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int
    """Where the tensors' data begin in the file."""
    file_bytes: int
    split_count: int = 1
    """Files that the model is split over."""
    split_number: int = 0
    """Which of them this is, from 0."""


def read_header(path: Path | str) -> Header:
    """The header of one file.

    Raises:
        GgufError: it is not there, no GGUF file, of a version or byte order that is not read, broken or cut off.
    """
    path = Path(path)
    shown = plain(str(path))
    try:
        # Opened without blocking, so that a named pipe is refused instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise GgufError(f"{shown}: cannot be read ({error.strerror}).") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GgufError(f"{shown}: is not a file. Name a model file that ends in .gguf.")
        if status.st_size < 24:
            raise GgufError(f"{shown}: is too short for a GGUF file ({status.st_size} bytes). Get it again.")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path, shown).header()
    except OSError as error:
        raise GgufError(f"{shown}: cannot be read ({error.strerror}).") from error
    finally:
        os.close(descriptor)


def part_paths(header: Header) -> tuple[Path, ...]:
    """All files of a split model, in order, by the naming rule `NAME-00001-of-00003.gguf`.

    Raises:
        GgufError: the file's name does not follow the rule, so the others cannot be found.
    """
    if header.split_count <= 1:
        return (header.path,)
    match = re.fullmatch(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf", header.path.name)
    if match is None or int(match["count"]) != header.split_count:
        raise GgufError(
            f"{plain(str(header.path))}: is part {header.split_number + 1} of {header.split_count} of a split model, "
            f"but is not named NAME-{header.split_number + 1:05d}-of-{header.split_count:05d}.gguf, "
            "so the other parts cannot be found. Give the parts their original names."
        )
    return tuple(
        header.path.with_name(f"{match['stem']}-{number:05d}-of-{header.split_count:05d}.gguf")
        for number in range(1, header.split_count + 1)
    )


class _Reader:
    """A position in a mapped file, and the checks before each step."""

    def __init__(self, data: mmap.mmap, path: Path, shown: str) -> None:
        self.data = data
        self.size = len(data)
        self.path = path
        self.shown = shown
        self.at = 0
        self.steps = 0

    def broken(self, what: str) -> GgufError:
        return GgufError(f"{self.shown}: {what} at byte {self.at}. The file is broken or cut off: get it again.")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise self.broken(f"{what} reaches over the end of the file")

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.at)
        self.at += 8
        return int(value)

    def text(self, what: str, limit: int) -> str:
        length = self.u64(what)
        self.need(length, what)
        if length > limit:
            raise self.broken(f"{what} has {length} bytes, over {limit}")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", "replace")

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise GgufError(f"{self.shown}: is not a GGUF file. Name a model file that ends in .gguf.")
        self.at = 4
        version = self.u32("the version")
        if version not in (2, 3):
            if version and version & 0xFFFF == 0:
                raise GgufError(f"{self.shown}: is big-endian, which is not read here. Convert it to little-endian.")
            raise GgufError(f"{self.shown}: is GGUF version {version}; versions 2 and 3 are read. Convert it again.")
        tensor_count = self.u64("the number of tensors")
        key_count = self.u64("the number of keys")
        # A key takes at least 13 bytes and a tensor 28, so a count that cannot fit is seen before any loop.
        if key_count > min(_MAX_KEYS, (self.size - self.at) // 13):
            raise self.broken(f"{key_count} keys are claimed, more than can be there")
        if tensor_count > min(_MAX_TENSORS, (self.size - self.at) // 28):
            raise self.broken(f"{tensor_count} tensors are claimed, more than can be there")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self.text("a key", 1 << 16)
            metadata[key] = self.value(key)
        tensors = tuple(self.tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment > 1 << 20:
            raise self.broken("general.alignment is no sensible number")
        data_offset = -(-self.at // alignment) * alignment
        split_count = _count(metadata.get("split.count"), 1)
        self.check_data(tensors, data_offset)
        return Header(
            path=self.path,
            version=version,
            metadata=metadata,
            tensors=tensors,
            data_offset=data_offset,
            file_bytes=self.size,
            split_count=max(1, split_count),
            split_number=_count(metadata.get("split.no"), 0),
        )

    def value(self, key: str) -> Value:
        what = f"the value of {plain(key)[:80]}"
        kind = self.u32(what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        return self.scalar(kind, what)

    def string(self, what: str) -> str | SkippedArray:
        self.need(8, what)
        (length,) = _U64.unpack_from(self.data, self.at)
        if length <= _MAX_TEXT:
            return self.text(what, _MAX_TEXT)
        self.at += 8
        self.need(length, what)
        self.at += length
        return SkippedArray("text", length)

    def scalar(self, kind: int, what: str) -> int | float | bool:
        known = _SCALARS.get(kind)
        if known is None:
            raise self.broken(f"{what} has the unknown type {kind}")
        self.need(known[1].size, what)
        value: int | float | bool = known[1].unpack_from(self.data, self.at)[0]
        self.at += known[1].size
        return value

    def array(self, what: str) -> Value:
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            self.skip_strings(count, what)
            return SkippedArray("string", count)
        known = _SCALARS.get(kind)
        if known is None:
            raise self.broken(f"{what} is an array of the unknown type {kind}")
        name, packer = known
        length = count * packer.size
        self.need(length, what)
        if count > KEPT_ARRAY:
            self.at += length
            return SkippedArray(name, count)
        values = struct.unpack_from(f"<{count}{packer.format[-1]}", self.data, self.at)
        self.at += length
        return values

    def skip_strings(self, count: int, what: str) -> None:
        self.steps += count
        if count > (self.size - self.at) // 8 or self.steps > _MAX_STEPS:
            raise self.broken(f"{what} claims {count} texts, more than can be there")
        at, end, data, unpack = self.at, self.size - 8, self.data, _U64.unpack_from
        for _ in range(count):
            if at > end:
                break
            at += 8 + unpack(data, at)[0]
        else:
            if at <= self.size:
                self.at = at
                return
        raise self.broken(f"{what} reaches over the end of the file")

    def tensor(self) -> Tensor:
        name = self.text("a tensor's name", _MAX_NAME)
        what = f"the tensor {plain(name)[:80]}"
        dimensions = self.u32(what)
        if dimensions > _MAX_DIMENSIONS:
            raise self.broken(f"{what} claims {dimensions} dimensions, over {_MAX_DIMENSIONS}")
        shape = tuple(self.u64(what) for _ in range(dimensions))
        number = self.u32(what)
        known = TENSOR_TYPES.get(number)
        return Tensor(name, known[0] if known else f"type {number}", shape, self.u64(what))

    def check_data(self, tensors: tuple[Tensor, ...], data_offset: int) -> None:
        """A download that broke off has a whole header and too little behind it."""
        for tensor in tensors:
            end = data_offset + tensor.offset + (tensor.bytes or 0)
            if end > self.size:
                raise GgufError(
                    f"{self.shown}: is cut off: the tensor {plain(tensor.name)[:80]} ends at byte {end}, "
                    f"the file at {self.size}. Get it again."
                )


def _count(value: Value | None, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
