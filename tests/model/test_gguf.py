from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chimera.errors import ConfigError
from chimera.model.gguf import TENSOR_TYPES, GgufError, SkippedArray, part_paths, read_header, tensor_bytes

from . import files


def test_metadata_and_tensors_come_back_as_written(tmp_path: Path) -> None:
    path = files.write(
        tmp_path / "m.gguf",
        {**files.llama(), "a.float": 0.5, "a.bool": True, "a.list": [1, -2, 3], "a.flags": [True, False]},
        files.llama_tensors(),
    )
    header = read_header(path)
    assert header.version == 3
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["a.float"] == 0.5
    assert header.metadata["a.bool"] is True
    assert header.metadata["a.list"] == (1, -2, 3)
    assert header.metadata["a.flags"] == (True, False)
    assert header.tensors[0].shape == (256, 1000)
    assert header.tensors[0].bytes == 1000 * 8 * 34
    assert header.data_offset % 32 == 0


def test_version_2_is_read(tmp_path: Path) -> None:
    assert read_header(files.write(tmp_path / "m.gguf", files.llama(), version=2)).version == 2


def test_vocabularies_and_long_number_arrays_are_stepped_over_and_short_ones_kept(tmp_path: Path) -> None:
    path = files.write(
        tmp_path / "m.gguf",
        {"words": ["a", "", "ccc"] * 500, "scores": [7] * 1025, "kept": [7] * 1024, "behind": "still found"},
    )
    metadata = read_header(path).metadata
    assert metadata["words"] == SkippedArray("string", 1500)
    assert metadata["scores"] == SkippedArray("i32", 1025)
    assert metadata["kept"] == (7,) * 1024
    assert metadata["behind"] == "still found"


def test_an_unknown_tensor_type_has_an_unknown_size(tmp_path: Path) -> None:
    tensor = read_header(files.write(tmp_path / "m.gguf", {}, [("x", 999, (64,))])).tensors[0]
    assert tensor.type == "type 999"
    assert tensor.bytes is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors are claimed"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "keys are claimed"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + bytes(40), "end of the file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("k") + struct.pack("<IIQ", 9, 8, 2**61), "more than can"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("k") + struct.pack("<IIQ", 9, 4, 2**61),
            "end of the file",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("k") + struct.pack("<IIQ", 9, 9, 5), "unknown type 9"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("k") + struct.pack("<I", 77) + bytes(8),
            "unknown type 77",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + files.text("t") + struct.pack("<I", 9) + bytes(80), "9 dimensions"),
    ],
)
def test_a_hostile_or_foreign_file_ends_as_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=says) as caught:
        read_header(path)
    assert isinstance(caught.value, ConfigError)
    assert "bad.gguf" in str(caught.value)


def test_a_file_cut_anywhere_in_its_header_ends_as_a_sentence(tmp_path: Path) -> None:
    head, _ = files.header_bytes({**files.llama(), "words": ["a", "b"]}, files.llama_tensors())
    path = tmp_path / "cut.gguf"
    for length in range(len(head)):
        path.write_bytes(head[:length])
        with pytest.raises(GgufError):
            read_header(path)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_header_with_damaged_bytes_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    head, _ = files.header_bytes({**files.llama(), "words": ["a"] * 5, "list": [1, 2]}, files.llama_tensors())
    broken = bytearray(head)
    for place in data.draw(st.lists(st.integers(4, len(head) - 1), min_size=1, max_size=4)):
        broken[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(broken) + bytes(100_000))
    with contextlib.suppress(GgufError):
        read_header(path)


def test_a_download_that_broke_off_behind_its_header_is_told(tmp_path: Path) -> None:
    path = files.write(tmp_path / "m.gguf", files.llama(), files.llama_tensors())
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(GgufError, match="is cut off"):
        read_header(path)


def test_escape_sequences_of_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("\x1b]0;owned\x07k") + struct.pack("<I", 99))
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert "\x1b" not in str(caught.value)


def test_a_pipe_a_folder_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(GgufError):
            read_header(path)


def test_an_array_of_a_billion_claimed_texts_in_a_sparse_file_is_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("k") + struct.pack("<IIQ", 9, 8, 2**30))
        file.truncate(2**34)
    started = time.process_time()
    with pytest.raises(GgufError, match="more than can be there"):
        read_header(path)
    assert time.process_time() - started < 1


def test_the_parts_of_a_split_model_are_named(tmp_path: Path) -> None:
    first = files.write(tmp_path / "big-00001-of-00003.gguf", {**files.llama(), "split.count": 3, "split.no": 0})
    assert [path.name for path in part_paths(read_header(first))] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    odd = files.write(tmp_path / "renamed.gguf", {**files.llama(), "split.count": 3, "split.no": 0})
    with pytest.raises(GgufError, match="part 1 of 3"):
        part_paths(read_header(odd))


def test_rows_count_in_whole_blocks() -> None:
    assert tensor_bytes("q4_0", (64, 10)) == 10 * 2 * 18
    assert tensor_bytes("F32", (5, 2, 3)) == 120
    assert tensor_bytes("nonsense", (5,)) is None


@pytest.mark.embedded
def test_block_sizes_are_those_of_the_engine_itself() -> None:
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra `embedded`")
    import xllamacpp

    library = ctypes.CDLL(glob.glob(str(Path(spec.origin).parent / "*.so"))[0])
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    count = int(xllamacpp.ggml_type.GGML_TYPE_COUNT)
    sizes = {n: (library.ggml_blck_size(n), library.ggml_type_size(n)) for n in range(count)}
    ours = {n: (elements, size) for n, (_, elements, size) in TENSOR_TYPES.items()}
    assert ours == {n: pair for n, pair in sizes.items() if pair[0]}


@pytest.mark.embedded
def test_the_header_of_a_real_model_costs_little_time_and_memory(gemma_path: Path) -> None:
    script = (
        "import resource, sys, time\n"
        "from chimera.model.gguf import read_header\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, started = peak(), time.process_time()\n"
        "header = read_header(sys.argv[1])\n"
        "print(time.process_time() - started, (peak() - before) / 1024, len(header.tensors))\n"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script, str(gemma_path)], capture_output=True, text=True, timeout=60, check=True
        )
        runs.append([float(value) for value in done.stdout.split()])
    assert min(run[0] for run in runs) < 0.1
    assert max(run[1] for run in runs) < 50
    assert {run[2] for run in runs} == {236}
