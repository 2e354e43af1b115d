"""Put back the settings of servers that a run changed and could not put back itself, because it was killed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from chimera.backends.detect import open_backend
from chimera.domain.run import Target
from chimera.errors import BackendError

if TYPE_CHECKING:
    from chimera.store.journal import Journal
    from chimera.store.records import Remembered


async def restore(target: Target, kept: Remembered) -> tuple[str, ...]:
    """Put one server back as it was remembered. Raises `BackendError` kinds."""
    backend = open_backend(replace(target, url=kept.server_url))
    try:
        await backend.connect()
        return await backend.restore(kept.data)
    finally:
        await backend.close()


def put_back(journal: Journal, run_id: str) -> list[str]:
    """Restore what the run had remembered; a sentence for each thing that was put back or could not be."""

    async def work() -> list[str]:
        target = journal.run(run_id).target
        return [words for kept in journal.remembered(run_id) for words in await restore(target, kept)]

    try:
        words = asyncio.run(work())
    except BackendError as error:
        return [f"could not be put back: {error}"]
    journal.restored(run_id)
    for line in words:
        journal.log(run_id, line, "notice")
    return words
