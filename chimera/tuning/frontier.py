"""What a failure says about configurations that were not tried yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chimera.domain.options import OPTION_NAMES, Options

from .plan import Failure

_AMOUNTS = ("num_gpu", "num_ctx", "num_batch", "num_parallel")
_KINDS: Mapping[str, tuple[str, ...]] = {"kv_cache_type": ("q4_0", "q8_0", "f16"), "flash_attention": ("on", "off")}
"""Values from the least to the most memory; `auto` is the server's choice, so it compares with nothing."""
MEMORY_AXES = (*_AMOUNTS, *_KINDS)
_OTHERS = frozenset(OPTION_NAMES) - frozenset(MEMORY_AXES)

_EQUAL: Mapping[Failure, frozenset[str]] = {
    "out-of-memory": frozenset(),
    "load-failed": frozenset(_KINDS),
    "crash": frozenset(_KINDS),
    "timeout": frozenset({*_KINDS, "num_gpu"}),
    "refused": frozenset(MEMORY_AXES),
}
"""Axes that must be equal for a failure to reach further: a kind of cache may be unsupported rather than too large, and
more layers on the GPU make a slow configuration faster; what is refused for a short window has room in a larger one."""


def needs_as_much(options: Options, other: Options, *, equal: frozenset[str] = frozenset()) -> bool:
    """Whether `options` need at least as much memory as `other` on every memory axis.

    Monotone reasoning only: an axis that one of them leaves to the server compares with nothing but itself. Threads
    and sampling options need no memory. On the axes in `equal` nothing but the same value will do.
    """
    return all(_at_least(name, getattr(options, name), getattr(other, name), name in equal) for name in MEMORY_AXES)


def ruled_out(
    settings: Mapping[str, Options], failures: Sequence[tuple[str, Failure]], candidates: Sequence[str]
) -> dict[str, str]:
    """Those of `candidates` that need not be launched, each with the failed candidate that says so."""
    out: dict[str, str] = {}
    for candidate in candidates:
        for failed, failure in failures:
            one, other = settings[candidate], settings[failed]
            # What needs no memory may still be what crashed or was too slow.
            alike = failure == "out-of-memory" or one.only(_OTHERS) == other.only(_OTHERS)
            if candidate != failed and alike and needs_as_much(one, other, equal=_EQUAL[failure]):
                out[candidate] = failed
                break
    return out


def smallest_first(order: Sequence[str], settings: Mapping[str, Options], untried: frozenset[str]) -> list[str]:
    """The order with untried candidates moved behind those that need less, and otherwise as it was.

    Each failure then happens at the boundary, once a line, and nothing beyond it is launched.
    """
    left, result = list(order), []
    while left:
        following = next(
            (
                name
                for name in left
                if name not in untried
                or not any(other in untried and _needs_more(settings[name], settings[other]) for other in left)
            ),
            left[0],
        )
        left.remove(following)
        result.append(following)
    return result


def _needs_more(options: Options, other: Options) -> bool:
    return needs_as_much(options, other) and not needs_as_much(other, options)


def _at_least(name: str, value: int | str | None, bound: int | str | None, equal: bool) -> bool:
    if value == bound:
        return True
    if equal or value is None or bound is None:
        return False
    if isinstance(value, str) or isinstance(bound, str):
        kinds = _KINDS[name]
        return value in kinds and bound in kinds and kinds.index(str(value)) >= kinds.index(str(bound))
    # -1 lets the server fit the layers itself, so it is neither more nor less than a number.
    return value >= bound >= 0
