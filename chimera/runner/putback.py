"""Put back the settings of servers that a run changed and could not put back itself, because it was killed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chimera.backends.detect import open_backend
from chimera.errors import BackendError

if TYPE_CHECKING:
    from chimera.store.journal import Journal


def put_back(journal: Journal, run_id: str) -> list[str]:
    """Restore what the run had remembered; a sentence for each thing that was put back or could not be."""

    async def work() -> list[str]:
        words: list[str] = []
        backend = open_backend(journal.run(run_id).target)
        try:
            await backend.connect()
            for kept in journal.remembered(run_id):
                words += await backend.restore(kept.data)
        finally:
            await backend.close()
        return words

    try:
        words = asyncio.run(work())
    except BackendError as error:
        return [f"could not be put back: {error}"]
    journal.restored(run_id)
    for line in words:
        journal.log(run_id, line, "notice")
    return words
