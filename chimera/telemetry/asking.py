"""Asks the driver one thing at a time, and remembers what it does not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from chimera.domain.readings import Missing, Reading

T = TypeVar("T")

RETRY_S = 60.0
"""A metric that is not supported is asked for again after this long: drivers change under a running program."""

NOT_AVAILABLE = frozenset({2**32 - 1, 2**64 - 1})
"""What NVML puts into a field when it has no value."""

# nvmlReturn_t, by what follows from it.
UNINITIALIZED = 1
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
TIMEOUT = 10
_FUNCTION_NOT_FOUND = 13
UNKNOWN = 999
_UNSUPPORTED = frozenset({2, 3, 13, 25, 26})
_DENIED = frozenset({4})
_LOST = frozenset({15, 16})


class DeviceLost(Exception):
    """The driver says that this GPU is gone (`GPU is lost`) or must be reset."""


class DriverGone(Exception):
    """The driver connection no longer works and must be opened anew."""


def available(value: float) -> bool:
    """False for the two values by which NVML says that there is none."""
    return value not in NOT_AVAILABLE


def within(value: float | Missing, low: float, high: float, unit: str) -> Reading:
    """The value, or why not where it lies outside what its unit allows; NVML is known to return such."""
    if isinstance(value, Missing):
        return value
    if not available(value):
        return Missing("unsupported", "NVML: no value")
    if not low <= value <= high:
        return Missing("unsupported", f"NVML gave {value:.4g} {unit}, which cannot be")
    return float(value)


class Asker:
    """The questions put to one GPU."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._dropped: dict[str, tuple[float, Missing]] = {}
        self._good: dict[str, float] = {}
        self._failing: dict[str, float] = {}
        self.answered = 0
        """Questions that got a value since `begin`."""
        self.unknown = 0
        """Questions that got `Unknown Error` since `begin`."""
        self.lasting = 0
        """Calls since `begin` for questions that will be put again the next time."""

    def begin(self) -> None:
        """Start counting answers anew."""
        self.answered = self.unknown = self.lasting = 0

    def dropped(self, name: str, now: float) -> Missing | None:
        """Why this is not asked for now, or None if it may be."""
        entry = self._dropped.get(name)
        return entry[1] if entry and now < entry[0] else None

    def refuse(self, name: str, code: int, words: str, now: float) -> Missing:
        """Note that the driver refused an answer, and say what stands in its place.

        Raises `DeviceLost` or `DriverGone` where the refusal concerns more than this one question.
        """
        if code in _LOST:
            raise DeviceLost(words)
        if code == UNINITIALIZED:
            raise DriverGone(words)
        if code in _UNSUPPORTED or code in _DENIED:
            missing = Missing("denied" if code in _DENIED else "unsupported", f"NVML: {words}")
            self._dropped[name] = (now + RETRY_S, missing)
            return missing
        if code == UNKNOWN:
            self.unknown += 1
        first = self._failing.setdefault(name, self._good.get(name, now))
        return Missing("stale", f"NVML: {words}", first)

    def accept(self, name: str, now: float) -> None:
        """Note that there was an answer."""
        self.answered += 1
        self._good[name] = now
        self._failing.pop(name, None)
        self._dropped.pop(name, None)

    def ask(self, name: str, now: float, question: Callable[[], T], calls: int = 1) -> T | Missing:
        """Put one question. Only `DeviceLost` and `DriverGone` get out; `calls` is what it costs the driver."""
        if missing := self.dropped(name, now):
            return missing
        try:
            answer = question()
        except Exception as error:  # noqa: BLE001 - a binding may raise anything; each metric stands alone
            if code_of(error) != _FUNCTION_NOT_FOUND:  # that one never reached the driver
                self._count(calls)
            missing = self.refuse(name, code_of(error), words_of(error), now)
            self.lasting += 0 if name in self._dropped else calls
            return missing
        self._count(calls)
        self.lasting += calls
        self.accept(name, now)
        return answer


def code_of(error: BaseException) -> int:
    """NVML's return code; a binding that does not fit its library counts as a function that is not there."""
    value: Any = getattr(error, "value", None)
    if isinstance(value, int):
        return value
    return 13 if type(error).__name__ == "NVMLLibraryMismatchError" else -1


def words_of(error: BaseException) -> str:
    """NVML's words for an error; for anything else the kind of error."""
    if isinstance(getattr(error, "value", None), int):
        return str(error).rstrip(".")
    return type(error).__name__
