"""Files read and written whole."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Unreadable(Exception):
    """Why a file was not read, as a clause to put after its name."""


def read_plain(path: Path, most: int) -> bytes:
    """The bytes of a plain file of at most so many; a pipe may never say anything, and a device need not have an end.

    Raises `Unreadable`.
    """
    try:
        # Opened without blocking, so that a named pipe is refused instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("is not a plain file")
            if status.st_size > most:
                raise Unreadable(f"is over {most >> 20} MiB")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(most + 1)
        finally:
            os.close(descriptor)  # a file object would not close that of a folder
    except FileNotFoundError as error:
        raise Unreadable("cannot be read: there is no such file") from error
    except IsADirectoryError as error:
        raise Unreadable("is not a plain file") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


@contextmanager
def whole(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A file to write that takes its place at `path` when the block ends well, and is gone where it does not."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file so that it is there whole, also after a power cut, or as it was before. Raises `OSError`."""
    with whole(path, mode) as part, part.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    # The name is in the folder, which has to reach the disk as well; where a folder cannot be synced the file is there.
    with suppress(OSError):
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
