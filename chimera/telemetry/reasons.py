"""Why a GPU's clocks are lowered and what its driver's critical errors mean, in plain words.

Bits and counters are NVML's (nvml.h, clock event reasons and performance policy fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weight = Literal["info", "notice", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Reason:
    """One cause of lowered clocks."""

    id: str
    """As in `Throttle.reason`."""
    bit: int
    """In the mask of clock event reasons; 0 where no bit stands for it."""
    field: int | None
    """NVML field whose value is the time that it has held, in ns since the driver was loaded."""
    policy: int | None
    """The same time for older drivers: `nvmlDeviceGetViolationStatus` policy."""
    words: str
    """What it means, as half a sentence."""
    severity: Weight
    advice: str
    """What to do about it."""


REASONS: tuple[Reason, ...] = (
    Reason(
        "gpu-idle",
        0x001,
        None,
        None,
        "idle: nothing runs, so the clocks drop",
        "info",
        "Nothing, between requests. During one, the GPU is waiting: look for layers on the CPU or slow input.",
    ),
    Reason(
        "app-clocks",
        0x002,
        None,
        None,
        "clocks locked by a setting",
        "info",
        "Someone ran `nvidia-smi -ac` or `-lgc`; `nvidia-smi -rac -rgc` resets it.",
    ),
    Reason(
        "power-cap",
        0x004,
        74,
        0,
        "held to the power limit",
        "notice",
        "Normal at full load. Raise the limit only if tok/s fell with it; decoding needs memory clock, not power.",
    ),
    Reason(
        "hw-slowdown",
        0x008,
        None,
        None,
        "hardware cut the clocks to half or less (heat, power brake or a power spike)",
        "error",
        "If it lasts, check cooling, the power supply and its cables.",
    ),
    Reason(
        "sync-boost",
        0x010,
        76,
        2,
        "held to the slowest GPU of its group",
        "info",
        "Look at the reasons of the other GPUs.",
    ),
    Reason(
        "sw-thermal",
        0x020,
        269,
        None,
        "slowed to keep the GPU or its memory cool",
        "warning",
        "Improve cooling or lower the power limit. A cool core can still have hot memory (GDDR6X).",
    ),
    Reason(
        "hw-thermal",
        0x040,
        270,
        None,
        "hardware cut the clocks to half or less because it is too hot",
        "error",
        "Stop the load; clean fans and check the airflow.",
    ),
    Reason(
        "power-brake",
        0x080,
        271,
        None,
        "the power supply signalled a brake",
        "error",
        "Check the power supply, its cables and adapters.",
    ),
    Reason(
        "display-clocks",
        0x100,
        None,
        None,
        "clocks limited by the display's setting",
        "info",
        "A monitor or compositor setting holds the clocks.",
    ),
    Reason(
        "board-limit",
        0x200,
        77,
        3,
        "held to the board's current limit",
        "notice",
        "The board's design limit; nothing to set.",
    ),
    Reason(
        "reliability",
        0x400,
        79,
        5,
        "held to the voltage that is reliable",
        "info",
        "Usual at the top of the boost range.",
    ),
    Reason(
        "thermal",
        0,
        75,
        1,
        "slowed because of heat",
        "warning",
        "Improve cooling or lower the power limit. This driver does not tell software from hardware slowdown.",
    ),
)
"""Every reason. `thermal` is what drivers before R575 count for `sw-thermal` and `hw-thermal` together."""

BY_ID: dict[str, Reason] = {reason.id: reason for reason in REASONS}

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "notice": 2, "info": 3}


def severity_order(reason_id: str) -> int:
    """Sort key: the most severe reason first; unknown ids last."""
    reason = BY_ID.get(reason_id)
    return _ORDER[reason.severity] if reason else len(_ORDER)


def decode(mask: int) -> tuple[Reason, ...]:
    """The reasons whose bits are set, most severe first; unknown bits are left out."""
    found = [reason for reason in REASONS if reason.bit and mask & reason.bit]
    return tuple(sorted(found, key=lambda reason: _ORDER[reason.severity]))


def describe(reason_id: str) -> str:
    """What a reason means in plain words; the id itself where it is not known."""
    reason = BY_ID.get(reason_id)
    return reason.words if reason else reason_id


XIDS: dict[int, str] = {
    13: "a kernel of the application failed",
    31: "a memory access of the application failed",
    43: "the application's channel was reset",
    45: "clean-up after an earlier error or a killed process",
    48: "double-bit memory error",
    61: "internal micro-controller halted",
    62: "internal micro-controller halted",
    63: "a memory row was remapped",
    64: "remapping a memory row failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus: power, riser or heat",
    92: "many single-bit memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "context switch timed out",
    119: "the GPU's system processor timed out",
    120: "the GPU's system processor failed",
    154: "the GPU must be reset",
}
"""NVIDIA's critical error numbers that people meet, as half sentences."""


def describe_xid(number: int) -> str:
    """`Xid 79: the GPU has fallen off the bus: ...`, or only the number where its meaning is not listed here."""
    words = XIDS.get(number)
    return f"Xid {number}: {words}" if words else f"Xid {number}"
