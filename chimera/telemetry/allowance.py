"""How often the driver of one GPU may be asked: its calls are serialised, and the watched work waits for them too."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10
MOST = 112
"""Calls in any ten seconds. The contract is 120; the rest is for opening the driver the first time, for metrics that
were refused and are tried again, and for the ends of sessions."""
MOST_AT_ENDS = 116
"""And so many for the counters at the ends of sessions, which nothing else tells."""

_SLACK_S = 0.1  # a caller's tick is never exact


class Allowance:
    """The calls about one GPU and its MIG instances in the last ten seconds."""

    def __init__(self) -> None:
        self.spent = 0
        """Calls so far."""
        self.regular = 0
        """Calls that each later tick, one a second, makes anyhow."""
        self.ends = 0
        """Calls a second that are kept free for the ends of sessions, where there were some of late."""
        self._now = float("-inf")
        self._recent: deque[tuple[float, int]] = deque()

    def begin(self, now: float) -> None:
        """A tick begins."""
        self._now = now

    def spend(self, calls: int) -> None:
        """Note calls that are made in this tick."""
        self.spent += calls
        self._recent.append((self._now, calls))
        while self._recent[0][0] < self._now - WINDOW_S - _SLACK_S:
            self._recent.popleft()

    def room(self, *, at_end: bool = False, late: bool = False) -> int:
        """Calls that may be made now so that no ten seconds around see too many.

        Args:
            at_end: At an end of a session.
            late: For what has waited too long: what is kept free for an end within this very tick is not kept from it.
        """
        most = MOST_AT_ENDS if at_end else MOST
        ends = 0 if at_end else self.ends
        return min(
            most
            - self.regular * ahead
            - ends * (ahead if late else ahead + 1)
            - sum(calls for at, calls in self._recent if at > self._now - WINDOW_S + ahead)
            for ahead in range(WINDOW_S)
        )
