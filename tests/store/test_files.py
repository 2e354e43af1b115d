"""Files that are read whole or refused, and written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chimera.store.files import Unreadable, read_plain, whole, write_whole


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "höhe\n", 0o600)
    assert path.read_bytes() == "höhe\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    with pytest.raises(KeyboardInterrupt):
        _cut_short(path)
    assert path.read_bytes() == "höhe\n".encode()
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_file_and_folder_are_on_the_disk_before_it_is_called_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    synced: list[tuple[bool, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        if synced[-1][0]:
            raise OSError(22, "Invalid argument")  # some file systems sync no folder: the file is there all the same

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, "x")
    assert synced == [(False, False), (True, True)]
    assert path.read_text() == "x"


def _cut_short(path: Path) -> None:
    with whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt


def test_two_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole(path) as first, whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_plain_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(Unreadable, match="over 0 MiB"):
        read_plain(path, 4)
    with pytest.raises(Unreadable, match="not a plain file"):
        read_plain(tmp_path, 5)
    with pytest.raises(Unreadable, match="no such file"):
        read_plain(tmp_path / "absent", 5)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_plain(Path("a\0b"), 5)


def test_nothing_that_is_refused_stays_open(tmp_path: Path) -> None:
    def next_descriptor() -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free
        os.close(descriptor)
        return descriptor

    large = tmp_path / "large"
    large.write_bytes(b"123456")
    before = next_descriptor()
    for path in (tmp_path, large, tmp_path / "absent"):
        with pytest.raises(Unreadable):
            read_plain(path, 5)
    assert next_descriptor() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="not a plain file"):
        read_plain(tmp_path / "pipe", 5)
