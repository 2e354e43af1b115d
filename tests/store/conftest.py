from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chimera.store.journal import Journal

from .samples import Clock


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own; its folder does not exist yet."""
    folder = tmp_path / "state" / "chimera"
    monkeypatch.setenv("CHIMERA_HOME", str(folder))
    monkeypatch.delenv("CHIMERA_DB", raising=False)
    return folder


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal without runs; copying it is faster than making it anew for each test."""
    path = tmp_path_factory.mktemp("fresh") / "chimera.db"
    Journal.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(place: Path, fresh: Path, clock: Clock) -> Iterator[Journal]:
    place.mkdir(parents=True)
    shutil.copy(fresh, place)
    with Journal.open(clock=clock) as opened:
        yield opened
