"""What lowered a GPU's clocks, told by time counters where there are any and by the bits of samples where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from chimera.domain.readings import Missing, Reading
from chimera.domain.telemetry import Throttle

from .reasons import REASONS, severity_order

_WHICH_HEAT = ((0x40, "hw-thermal"), (0x20, "sw-thermal"))


class Throttling:
    """Follows one GPU from sample to sample."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[float, float]] = {}
        self._shares: dict[str, Throttle] = {}
        self._bits: int | None = None
        self._at: float | None = None

    def see(
        self, at: float, held: Mapping[str, Reading], mask: Reading, read_at: Mapping[str, float]
    ) -> tuple[Throttle, ...]:
        """Take a sample; gives the reasons since the last one, most severe first.

        Args:
            at: When it was taken, monotonic seconds.
            held: Seconds that each reason has held, monotonic counters.
            mask: Bits of the reasons that hold now.
            read_at: When a counter was read, for those that are not read with each sample: their last share stands.
        """
        window = 0.0 if self._at is None else at - self._at
        self._at = at
        bits = None if isinstance(mask, Missing) else int(mask)
        found, counted = self._by_counters(at, held, read_at, window)
        if "thermal" in counted:
            counted |= {"sw-thermal", "hw-thermal"}
            if (heat := found.pop("thermal", None)) is not None:
                # The counter tells for how long, the bit which of the two.
                name = next((name for bit, name in _WHICH_HEAT if bits is not None and bits & bit), "thermal")
                found[name] = replace(heat, reason=name)
        # A bit in one sample may be a blip; hardware slowdown is known for them when the P-state changes.
        both = 0 if bits is None or self._bits is None else bits & self._bits
        self._bits = bits
        for reason in REASONS:
            if reason.bit & both and reason.id not in counted and reason.id != "gpu-idle":
                found[reason.id] = Throttle(reason.id, 1.0, "bits")
        if found.keys() & {"hw-thermal", "power-brake"}:
            found.pop("hw-slowdown", None)  # its cause is known: the general bit says nothing new
        return tuple(sorted(found.values(), key=lambda one: (severity_order(one.reason), -one.share)))

    def _by_counters(
        self, at: float, held: Mapping[str, Reading], read_at: Mapping[str, float], window: float
    ) -> tuple[dict[str, Throttle], set[str]]:
        found: dict[str, Throttle] = {}
        counted: set[str] = set()
        for reason, seconds in held.items():
            if isinstance(seconds, Missing):
                self._held.pop(reason, None)
                self._shares.pop(reason, None)
                continue
            counted.add(reason)
            last = self._held.get(reason)
            when = read_at.get(reason, at)
            if last is None or when > last[1]:
                self._held[reason] = (seconds, when)
                self._shares.pop(reason, None)
            if last is not None and when > last[1] and seconds > last[0]:
                share = min(1.0, (seconds - last[0]) / (when - last[1]))
                self._shares[reason] = Throttle(reason, share, "counter", seconds - last[0])
            if (throttle := self._shares.get(reason)) is not None:
                now = reason not in read_at
                found[reason] = throttle if now else replace(throttle, seconds=throttle.share * window)
        return found, counted
