"""Domain words to and from what a JSON column holds.

Reading leaves out keys that this version does not know, so that a field added later does no harm.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def clean(value: Any) -> Any:
    """The value with tuples and sets as lists and with None for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [clean(item) for item in sorted(value)]
    return value


def dumps(value: Any) -> str:
    """JSON on one line, never with NaN in it."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(clean(value), allow_nan=False, separators=(",", ":"))


def decode(cls: type[T], data: Mapping[str, Any]) -> T:
    """The domain word that `dataclasses.asdict` and JSON made this of; tuples and words inside it as it declares."""
    hints: dict[str, Any] = _hints(cast("Hashable", cls))
    return cls(**{name: _read(hints[name], value) for name, value in data.items() if name in hints})


def decode_known(cls: type[T], data: Mapping[str, Any] | None) -> T | None:
    """Like `decode`, and None for what is not known."""
    return None if data is None else decode(cls, data)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _read(hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        if get_origin(hint) is dict:
            return {key: _read(get_args(hint)[1], item) for key, item in value.items()}
        words = [arm for arm in (hint, *get_args(hint)) if is_dataclass(arm)]
        return decode(cast("type[Any]", words[0]), value) if words else value
    if isinstance(value, list):
        for arm in (hint, *get_args(hint)):
            if get_origin(arm) is tuple:
                items = get_args(arm)
                each = itertools.repeat(items[0]) if items[-1] is Ellipsis else items
                return tuple(_read(item, inner) for item, inner in zip(each, value, strict=False))
    return value
