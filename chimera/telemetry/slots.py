"""What all clients of a llama.cpp server get, worked out from the counts that its slots show.

Pure logic: the caller brings the answers of `/slots` with the moment at which each was read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.telemetry import SlotState

WINDOW_S = 5.0
"""Longest stretch of decoding that a rate is taken over."""
ENOUGH_S = 1.0
ENOUGH_TOKENS = 50
"""A rate is taken over the newest stretch of at least so long and so many: counts are whole tokens."""
FRESH_S = 2.0
"""Decoding that ended longer ago is no longer the present."""

_OVER = -1  # in place of a count: the slot's last request has ended


def slot_state(value: object) -> SlotState | None:
    """One entry of `/slots`, in the shapes of older and newer builds; None where it is no slot.

    `n_decoded` stands in `next_token`, which is an array or an object, or on the top level.
    """
    if not isinstance(value, Mapping):
        return None
    number = _whole(value.get("id"))
    if number is None:
        return None
    processing = value.get("is_processing")
    busy = processing if isinstance(processing, bool) else bool(_whole(value.get("state")))
    task = _whole(value.get("id_task"))
    if task is None:
        task = _whole(value.get("task_id"))
    following = value.get("next_token")
    if isinstance(following, Sequence) and not isinstance(following, str) and following:
        following = following[0]
    inner = following if isinstance(following, Mapping) else {}

    def count(name: str) -> int | None:
        found = _whole(inner.get(name))
        return found if found is not None else _whole(value.get(name))

    remaining = count("n_remain")
    return SlotState(
        id=number,
        busy=busy,
        task=None if task is None or task < 0 else task,
        prompt_tokens=_whole(value.get("n_prompt_tokens")),
        cached_tokens=_whole(value.get("n_prompt_tokens_cache")),
        decoded=count("n_decoded"),
        remaining=remaining if remaining is not None and remaining >= 0 else None,
    )


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return int(value)


@dataclass(slots=True)
class _Seen:
    """A request in a slot, as last seen."""

    task: int | None
    decoded: int
    at: float
    began: float | None
    """When it appeared, as well as polling can tell; None where it was there at the first look."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Between two looks at one request that decodes."""

    end: float
    seconds: float
    tokens: int


class SlotMeter:
    """Rate and time to first token of everybody's requests.

    The rate is that of decoding: the increase of `n_decoded` within one request after its first token, over the time
    that it took, which is what the server's own timings give as `(n - 1) / predicted_ms`. Reading prompts and pauses
    between requests are left out of it.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._stretches: dict[tuple[int, int], deque[_Stretch]] = {}
        self._looked: dict[int, float] = {}
        self._busy_at: float | None = None
        self.ttft_s: Reading = PENDING
        self.tokens = 0.0
        """Tokens that were seen being decoded; those between the last look at a request and its end are missing."""
        self.requests = 0
        """Requests that were seen to begin."""

    def see(self, at: float, slots: Sequence[SlotState], server: int = 0) -> None:
        """Take one answer of `/slots`.

        Args:
            at: When it was read, monotonic seconds.
            slots: All slots of one server.
            server: Tells several servers apart, e.g. by port.
        """
        before = self._looked.get(server)
        self._looked[server] = at
        for slot in slots:
            key = (server, slot.id)
            known = self._seen.get(key)
            if not slot.busy:
                self._seen[key] = _Seen(slot.task, _OVER, at, None)
                continue
            self._busy_at = at
            decoded = slot.decoded or 0
            if known is None or known.decoded == _OVER or known.task != slot.task or decoded < known.decoded:
                began = None if known is None or before is None else (before + at) / 2
                self.requests += 1
                self.tokens += decoded
                self._seen[key] = _Seen(slot.task, decoded, at, began)
                if decoded and began is not None:
                    self._first_token(key, began, at, decoded)
                continue
            new = decoded - known.decoded
            self.tokens += new
            if known.decoded > 0 and at > known.at:
                self._stretches.setdefault(key, deque()).append(_Stretch(at, at - known.at, new))
            elif new and known.began is not None:
                self._first_token(key, known.began, at, decoded, not_before=known.at)
            self._seen[key] = _Seen(slot.task, decoded, at, known.began)
        self._forget(at)

    def gone(self, server: int) -> None:
        """A server has ended: its requests are over."""
        self._looked.pop(server, None)
        for key in [key for key in self._seen if key[0] == server]:
            del self._seen[key]
            self._stretches.pop(key, None)

    def rate(self, now: float) -> tuple[Reading, float]:
        """Tokens a second over all slots and the longest time that it was taken over.

        0 only where nobody is served; Missing while a request has not yet shown two counts.
        """
        total, window, found = 0.0, 0.0, False
        for stretches in self._stretches.values():
            if not stretches or now - stretches[-1].end > FRESH_S:
                continue
            seconds, tokens = 0.0, 0
            for stretch in reversed(stretches):
                if now - stretch.end > WINDOW_S or (seconds >= ENOUGH_S and tokens >= ENOUGH_TOKENS):
                    break
                seconds += stretch.seconds
                tokens += stretch.tokens
            total += tokens / seconds
            window = max(window, seconds)
            found = True
        if found and window >= ENOUGH_S / 2:
            return total, window
        if self._busy_at is not None and now - self._busy_at <= FRESH_S:
            why = "reading a prompt" if self.prefilling else "the request has only begun"
            return Missing("pending", why), 0.0
        return (0.0, 0.0) if self._looked else (PENDING, 0.0)

    @property
    def prefilling(self) -> bool:
        """A request is in work that has no token yet."""
        return any(seen.decoded == 0 for seen in self._seen.values())

    def _first_token(
        self, key: tuple[int, int], began: float, at: float, decoded: int, *, not_before: float | None = None
    ) -> None:
        """The first token came some tokens before this look; the slot's last rate tells how long before."""
        stretches = self._stretches.get(key)
        pace = stretches[-1].seconds / stretches[-1].tokens if stretches and stretches[-1].tokens else 0.0
        first = at - (decoded - 1) * pace
        self.ttft_s = max(0.0, max(first, not_before if not_before is not None else began) - began)

    def _forget(self, at: float) -> None:
        for stretches in self._stretches.values():
            while stretches and at - stretches[0].end > 2 * WINDOW_S:
                stretches.popleft()
