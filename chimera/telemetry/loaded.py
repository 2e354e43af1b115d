"""Which model a server runs, and with what: asked of the server and its model's file, nothing is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.run import Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.errors import ChimeraError

if TYPE_CHECKING:
    from chimera.domain.telemetry import LoadedModel, ServerSample
    from chimera.model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Loaded:
    """A server and its model, as far as they have told of themselves."""

    server: ServerInfo | None = None
    model: ModelInfo | None = None
    shape: ModelShape | None = None
    effective: Effective | None = None
    """What runs; None where no engine of ours runs yet."""
    problem: str = ""
    """Why nothing is known, in a sentence."""

    @property
    def remote(self) -> bool:
        """It runs on another host, so that what is measured here says nothing of it."""
        from chimera.backends.address import is_local

        return self.server is not None and bool(self.server.url) and not is_local(self.server.url)

    @property
    def running(self) -> bool:
        """There is a process of it: the embedded engine has no address before it runs."""
        return self.server is not None and bool(self.server.url)

    @property
    def options(self) -> Options:
        """What runs, as far as it is known."""
        return self.effective.options if self.effective is not None else Options()

    def among(self, sample: ServerSample | None) -> LoadedModel | None:
        """The model's entry in the server's own list of loaded ones."""
        if sample is None or isinstance(sample.models, Missing) or self.model is None:
            return None
        if self.server is not None and self.server.kind in {"llama_server", "embedded"} and len(sample.models) == 1:
            return sample.models[0]  # it serves one model, and calls it by its file
        wanted = self.model.name.removesuffix(":latest")
        return next((one for one in sample.models if one.name.removesuffix(":latest") == wanted), None)


async def look_up(target: Target) -> Loaded:
    """Ask a server, or the embedded engine's file; never raises for a server that does not answer."""
    from chimera.backends.detect import open_backend

    backend = open_backend(target)
    try:
        server = await backend.connect()
        model = await backend.model()
        shape = await backend.shape()
        effective = None if backend.owned else await backend.effective()
        return Loaded(server, model, shape, effective)
    except ChimeraError as error:
        return Loaded(problem=str(error))
    finally:
        await backend.close()


def changed_models(before: ServerSample | None, now: ServerSample) -> bool:
    """The server has loaded or left a model, or holds one in another way."""
    if before is None or isinstance(before.models, Missing) or isinstance(now.models, Missing):
        return False
    old, new = before.models, now.models
    return {(one.name, one.context, one.vram_bytes) for one in old} != {
        (one.name, one.context, one.vram_bytes) for one in new
    }
