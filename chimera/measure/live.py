"""What is known of a request while it runs; read by the progress writer, never awaited."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 1.0


class LiveRequest:
    """Counters of the request in flight.

    Written by the event loop, read by another thread: each field is replaced whole, so a reader sees old or new.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.ttft_s: float | None = None
        self.rate: float | None = None
        """Tokens a second over about the last second of token events."""
        self._recent: deque[tuple[float, int]] = deque(maxlen=512)

    def begin(self) -> None:
        """A new request is sent."""
        self.tokens = 0
        self.ttft_s = None
        self.rate = None
        self._recent.clear()

    def token(self, at: float, count: int, ttft_s: float) -> None:
        """Tokens have arrived."""
        self.ttft_s = ttft_s
        self.tokens += count
        recent = self._recent
        recent.append((at, self.tokens))
        while len(recent) > 2 and at - recent[1][0] >= _WINDOW_S:
            recent.popleft()
        if len(recent) > 1 and at > recent[0][0]:
            self.rate = (self.tokens - recent[0][1]) / (at - recent[0][0])
