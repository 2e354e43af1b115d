"""What is known of a request while it runs; read by the progress writer, never awaited."""

from __future__ import annotations

from collections import deque
from typing import Literal

_WINDOW_S = 1.0


class LiveRequest:
    """Counters of the request in flight.

    Written by the event loop, read by another thread: each field is replaced whole, so a reader sees old or new.
    """

    def __init__(self) -> None:
        self.state: Literal["waiting", "loading", "queued", "prefill", "decoding", "done"] = "waiting"
        """`waiting` for its turn to send, or for a load, `queued` at the server, then in work, then `done`."""
        self.tokens = 0
        self.ttft_s: float | None = None
        self.rate: float | None = None
        """Tokens a second over about the last second of token events."""
        self._recent: deque[tuple[float, int]] = deque(maxlen=512)

    def begin(self) -> None:
        """A new request is sent."""
        self.state = "queued"
        self.tokens = 0
        self.ttft_s = None
        self.rate = None
        self._recent.clear()

    def opened(self) -> None:
        """The server has begun to work on it."""
        self.state = "prefill"

    def ended(self) -> None:
        """Its answer is complete, or it failed."""
        self.state = "done"

    def token(self, at: float, count: int, ttft_s: float) -> None:
        """Tokens have arrived."""
        self.state = "decoding"
        self.ttft_s = ttft_s
        self.tokens += count
        recent = self._recent
        recent.append((at, self.tokens))
        while len(recent) > 2 and at - recent[1][0] >= _WINDOW_S:
            recent.popleft()
        if len(recent) > 1 and at > recent[0][0]:
            self.rate = (self.tokens - recent[0][1]) / (at - recent[0][0])
