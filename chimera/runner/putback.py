"""Put servers back as they were before a run changed them: at its end, or later where it was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from chimera.backends.base import Backend
from chimera.backends.detect import open_backend
from chimera.domain.run import Target
from chimera.errors import BackendError

if TYPE_CHECKING:
    from chimera.store.journal import Journal
    from chimera.store.records import Remembered

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await it, however often its caller is told to end meanwhile; that is passed on afterwards."""
    task = asyncio.ensure_future(work)
    told: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            told = error
    result = task.result()
    if told is not None:
        raise told
    return result


async def restore_all(
    journal: Journal, run_id: str, at: Callable[[str], Backend | None] = lambda url: None, only: str | None = None
) -> tuple[list[str], list[str]]:
    """Put back every server that the run has remembered, each noted as it is done; what failed stays remembered.

    Args:
        journal: Where it is remembered.
        run_id: Of the run.
        at: The connected server at an address, where the caller has one.
        only: The one server that is put back; None: all.

    Returns sentences, which are in the run's log already: what was put back, and what could not be.
    """
    target = journal.run(run_id).target
    said: list[str] = []
    failed: list[str] = []
    for kept in journal.remembered(run_id):
        if only not in {None, kept.server_url}:
            continue
        there = at(kept.server_url)
        try:
            words = await (there.restore(kept.data) if there is not None else _restore(target, kept))
        except BackendError as error:
            failed.append(f"the settings of {kept.server_url} could not be put back: {error}")
            journal.log(run_id, failed[-1], "warn")
            continue
        journal.restored(run_id, kept.server_url)
        for line in words:
            journal.log(run_id, line, "notice")
        said += words
    return said, failed


async def _restore(target: Target, kept: Remembered) -> tuple[str, ...]:
    backend = open_backend(replace(target, url=kept.server_url))
    try:
        await backend.connect()
        return await backend.restore(kept.data)
    finally:
        await backend.close()


def put_back(journal: Journal, run_id: str, server_url: str) -> list[str]:
    """Restore what a killed run had remembered of a server; a sentence for each thing that was or could not be.

    Raises `ConfigError` where somebody works on the run again, who then puts it back.
    """
    with journal.worker_lock(run_id):
        said, failed = asyncio.run(restore_all(journal, run_id, only=server_url))
    return [*said, *failed]
