"""What Chimera asks of a server: the protocol that each backend fulfils.

A backend talks to one server about one model. It stamps nothing by itself but passes on, with each event, the moment
at which its bytes were read from the socket; `chimera.measure` turns events into a measurement.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chimera.domain.options import Options
from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request, in terms that every server understands."""

    prompt: str
    output_tokens: int
    options: Options = field(default_factory=Options)
    """The whole requested configuration; the backend sends the part that belongs into a request."""
    seed: int = 1
    cache_prompt: bool = False
    """Let the server reuse a cached prefix; off where the server lets us choose."""
    timeout_s: float = 120.0
    """Longest silence of the server, and its time to connect."""


@dataclass(frozen=True, slots=True)
class Headers:
    """The response's status line and headers have arrived."""

    at: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly generated text has arrived; normally one token.

    A token that ends inside a character has no text yet: it comes with the next one, or, the last of all, never.
    """

    at: float
    text: str
    count: int = 1
    """Tokens that were generated since the event before."""
    counted: bool = False
    """`count` is the server's own; else 1 is assumed, which a server that joins tokens makes too few."""
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """The server tells how far it has got with the prompt."""

    at: float
    processed: int
    total: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete. None = this server does not tell."""

    at: float
    load_s: float | None = None
    queue_s: float | None = None
    """Only where the server's own fields give it; else `Headers` may (see `Backend.headers_mark_slot`)."""
    prefill_s: float | None = None
    decode_s: float | None = None
    prompt_tokens: int | None = None
    """Of the whole prompt, cached ones included."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    """`length`, `stop`, `limit`, ... in the server's word."""
    truncated: bool = False
    """The server says that prompt or output was cut to the context."""
    retries: int = 0
    """1 where the connection was lost before any byte of the answer and the request was sent once more."""


Event = Headers | PromptProgress | Tokens | Done


@dataclass(frozen=True, slots=True)
class Activity:
    """Who uses the server now."""

    busy: Reading = PENDING
    """Requests in work."""
    waiting: Reading = PENDING
    """Requests in the queue."""
    tasks: frozenset[int] | Missing = PENDING
    """Ids of the tasks in work or last worked, where slots show them: a new id that is not ours is another client."""


class Backend(Protocol):
    """A server with one model. All methods raise `chimera.errors.BackendError` kinds, never a library's own."""

    @property
    def kind(self) -> ServerKind:
        """What speaks at the other end."""

    @property
    def owned(self) -> bool:
        """Chimera started this engine: it may be reloaded, and is ended by `close`."""

    @property
    def load_options(self) -> frozenset[str]:
        """Load options that this backend can make effective."""

    @property
    def sampling_options(self) -> frozenset[str]:
        """Options that it can send with a request."""

    @property
    def headers_mark_slot(self) -> bool:
        """Response headers arrive when the request gets its slot, so that send-to-headers is the queue's time."""

    @property
    def url(self) -> str | None:
        """The server's address; None while an engine of our own does not run."""

    async def connect(self) -> ServerInfo:
        """Reach the server (or make ready to start it) and say what it is. Loads nothing."""

    async def models(self) -> tuple[ModelInfo, ...]:
        """What it could serve, the loaded ones first."""

    async def model(self) -> ModelInfo:
        """The model that this backend is for, with all that the server or file tells of it."""

    async def shape(self) -> ModelShape | None:
        """The model's layers and sizes, for forecasts and the roof; None where neither file nor server tells."""

    async def would_reload(self, options: Options) -> str | None:
        """A sentence saying what making these options effective would do to a server that is not ours, or None."""

    async def load(self, options: Options) -> Effective:
        """Make the load part of `options` effective, load the model, and read back what runs.

        A fresh load each time for an engine of our own: that is what a session means. Options that this backend
        cannot make effective raise `ConfigError`. Raises `OutOfMemory` where it does not fit.
        """

    async def effective(self) -> Effective:
        """Read back what runs now, without changing anything."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Send one request and yield its events; ends with `Done`, or raises.

        Closing the iterator early ends the request on the server as well.
        """

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of a text by the model's own tokenizer, or None where the server does not offer that."""

    async def activity(self) -> Activity:
        """Who uses the server now; readings are `Missing` where it cannot be seen."""

    async def remember(self) -> dict[str, Any]:
        """What is needed to put the server back as it is now; JSON-able. Empty where nothing can be put back."""

    async def restore(self, remembered: dict[str, Any]) -> tuple[str, ...]:
        """Put it back; returns a sentence for each thing that was put back or could not be."""

    async def close(self) -> None:
        """End what we started, close connections; never raises, may be called twice."""
