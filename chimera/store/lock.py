"""The lock that a worker holds for as long as it lives; the kernel frees it however the worker ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from chimera.errors import ConfigError

from .home import private_folder

if TYPE_CHECKING:
    from filelock import FileLock

_PATIENCE_S = 1.0
"""How long a starting worker tries: a probe holds the lock for microseconds, a worker for its life."""


class WorkerLock:
    """Held from `with` to the end of the block, or from `acquire` to `release`, by one worker a run."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        self._lock: FileLock | None = None

    def acquire(self) -> WorkerLock:
        """Take it.

        Raises:
            ConfigError: another worker has it.
        """
        from filelock import FileLock, Timeout

        private_folder(self.path.parent)
        # Not per thread: a worker may well end in another thread than the one that it started in.
        lock = FileLock(self.path, mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=_PATIENCE_S, poll_interval=0.02)
        except Timeout as error:
            raise ConfigError(
                f"Run {self.run_id} has a worker already. Follow it with `chimera attach {self.run_id}`."
            ) from error
        self._lock = lock
        return self

    def release(self) -> None:
        """Let go; does nothing when it is not held."""
        if self._lock is not None:
            # While it is held: whoever waits for it sees that its file is gone, and begins anew with a new one.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> WorkerLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


if sys.platform == "win32":

    def is_held(path: Path) -> bool:
        """Whether a worker holds the lock at `path`; a worker that starts meanwhile just tries again."""
        from filelock import FileLock, Timeout

        if not path.exists():
            return False
        try:
            with FileLock(path, thread_local=False).acquire(timeout=0):
                return False
        except Timeout:
            return True

else:
    import fcntl

    def is_held(path: Path) -> bool:
        """Whether a worker holds the lock at `path`; a worker that starts meanwhile just tries again."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that any number of watchers may ask at the same moment without seeing each other.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
