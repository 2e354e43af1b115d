"""What the watches of the different servers have in common."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from chimera.domain.readings import Missing
from chimera.domain.server import KEY_VARIABLE
from chimera.domain.telemetry import ServerSample

from .peek import Answer
from .prometheus import samples

BUSY_S = 0.25
IDLE_S = 1.0
AWAY_S = 2.0
"""Recommended waits between two looks: at a server at work, an idle one, and one that does not answer or sleeps."""

SHORT_S = 1.0
"""Longest wait for an answer that is normally there at once."""

LANE_EVERY_S = 2.0


class Look(Protocol):
    """One kind of server, looked at."""

    def look(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        """One sample; raises `NoAnswer` where nobody answers.

        Args:
            now: Time of the look, monotonic seconds.
            stamp: The same clock at the moment of the call.
        """

    def close(self) -> None:
        """Let go of connections and threads."""


def hidden(now: float, why: Missing) -> ServerSample:
    """A sample of a server of whose work nothing can be seen."""
    return ServerSample(
        at=now, rate=why, ttft_s=why, busy=why, waiting=why, models=why, tokens_total=why, note=why.detail
    )


def wants_key(answer: Answer) -> Missing | None:
    """Why nothing can be seen where the server wants a key; None for other answers."""
    if answer.status in {401, 403} and b"disabled" not in answer.body:
        return Missing("denied", f"the server wants a key: set {KEY_VARIABLE}")
    return None


@dataclass(frozen=True, slots=True)
class Page:
    """Counters of one `/metrics` page."""

    at: float
    values: Mapping[str, float]


class Counters:
    """The pages of the last seconds, and what grew between them.

    Args:
        prefix: Of the names that count, left out of them.
        total: Name of the counter of all tokens.
        span_s: How long a stretch is kept.
    """

    def __init__(self, prefix: str, total: str, span_s: float) -> None:
        self._prefix = prefix
        self._total = total
        self._span_s = span_s
        self._pages: deque[Page] = deque()
        self._base = 0.0
        self.grew_at = float("-inf")
        """When the counter of tokens was last seen to have grown."""

    def take(self, text: str, at: float, **more: float) -> bool:
        """Keep a page, with counters of our own; False where it does not have the counter of tokens."""
        values = samples(text, self._prefix) | more
        if self._total not in values:
            return False
        if self._pages and values[self._total] < self._pages[-1].values[self._total]:
            self._base += self._pages[-1].values[self._total]  # the server was started anew
            self._pages.clear()
        elif not self._pages:
            self._base -= values[self._total]
        elif values[self._total] > self._pages[-1].values[self._total]:
            self.grew_at = at
        self._pages.append(Page(at, values))
        while len(self._pages) > 2 and at - self._pages[1].at >= self._span_s:
            self._pages.popleft()
        return True

    def get(self, name: str) -> float | None:
        """A value of the last page."""
        return self._pages[-1].values.get(name) if self._pages else None

    def grown(self, name: str) -> float:
        """By how much a counter grew over the stretch that is kept."""
        if len(self._pages) < 2:
            return 0.0
        return self._pages[-1].values.get(name, 0.0) - self._pages[0].values.get(name, 0.0)

    @property
    def span(self) -> float:
        """Seconds between the first and the last page that are kept."""
        return self._pages[-1].at - self._pages[0].at if self._pages else 0.0

    @property
    def at(self) -> float:
        """When the last page was read."""
        return self._pages[-1].at if self._pages else float("-inf")

    @property
    def tokens(self) -> float | None:
        """Tokens since the first page; None before it."""
        return self._base + self._pages[-1].values[self._total] if self._pages else None


class Lane:
    """Repeats in a thread of its own what may take seconds, so that it delays nothing else."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-watch", daemon=True)
        self.trouble = ""
        """Kind of the last error that a step did not expect."""

    def start(self) -> None:
        """Begin, unless it has begun."""
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - what could not be read stays as it was; the next step tries again
                self.trouble = type(error).__name__
            self._stop.wait(LANE_EVERY_S)

    def close(self) -> None:
        """End after the step in work, without waiting for one that takes long; it is a daemon."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.2)
