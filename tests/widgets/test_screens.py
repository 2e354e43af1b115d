"""Whole screens as text. A changed snapshot is a changed look: read it before it is accepted."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion

from chimera.domain.readings import Missing
from chimera.domain.telemetry import HostSample
from chimera.widgets import FindingsPanel, GpuPanel, HostPanel, RunPanel, ServerPanel, TtftPanel

from . import data
from .board import Board
from .screens import screen_text
from .sweep import Sweep

SIZES = {"80x24": (80, 24), "120x40": (120, 40), "200x50": (200, 50)}


@pytest.mark.parametrize("size", SIZES)
async def test_board(size: str, screen: SnapshotAssertion) -> None:
    app = Board()
    async with app.run_test(size=SIZES[size]) as pilot:
        await pilot.pause()
        assert screen_text(app) == screen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [2, 8])
async def test_board_with_several_gpus(count: int, size: str, screen: SnapshotAssertion) -> None:
    app = Board(count)
    async with app.run_test(size=SIZES[size]) as pilot:
        await pilot.pause()
        assert screen_text(app) == screen


@pytest.mark.parametrize("size", SIZES)
async def test_board_where_nothing_is_known(size: str, screen: SnapshotAssertion) -> None:
    """No GPU, no server, no run, and a host that tells nothing."""
    app = Board()
    async with app.run_test(size=SIZES[size]) as pilot:
        app.query_one(GpuPanel).update(data.NO_GPU)
        app.query_one(HostPanel).update(
            HostSample(at=100.0, cpu_percent=Missing("denied"), memory_used_bytes=Missing("unsupported"))
        )
        app.query_one(RunPanel).update(None)
        app.query_one(ServerPanel).update(
            None,
            problem="Nothing answers at http://127.0.0.1:11434, :8080 or :8000. Start a server, or use --embedded.",
        )
        app.query_one(TtftPanel).update(())
        app.query_one(FindingsPanel).update(())
        await pilot.pause()
        assert screen_text(app) == screen


@pytest.mark.parametrize("size", SIZES)
async def test_sweep(size: str, screen: SnapshotAssertion) -> None:
    app = Sweep()
    async with app.run_test(size=SIZES[size]) as pilot:
        await pilot.pause()
        assert screen_text(app) == screen
