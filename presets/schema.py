"""The form of a preset file. Imported only to check a file: pydantic is too heavy for the start of the UI."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chimera.domain.options import OPTION_NAMES, OPTION_RANGES, FlashAttention, KvCacheType
from chimera.domain.text import plain
from chimera.errors import ConfigError
from chimera.model.memory import refuse_quantised_without_flash

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
NAME_RULE = "small letters and digits in words joined by hyphens, beginning with a letter, at most 60 characters"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
GUIDE_DIGITS = range(1, 6)
USER_DIGITS = range(6, 10)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OptionsTable(_Table):
    """`[options]`: what the preset asks of the server."""

    num_gpu: int | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    flash_attention: FlashAttention | None = None
    kv_cache_type: KvCacheType | None = None
    num_parallel: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None

    @field_validator(*OPTION_RANGES)
    @classmethod
    def in_range(cls, value: float | None, info: Any) -> float | None:
        """Hold the ranges of `OPTION_RANGES`."""
        low, high = OPTION_RANGES[info.field_name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"must be from {low:,.10g} to {high:,.10g}, not {value:,.10g}")
        return value

    @model_validator(mode="after")
    def possible(self) -> Self:
        """Refuse nothing asked, and what llama.cpp refuses."""
        if all(getattr(self, name) is None for name in OPTION_NAMES):
            raise ValueError(f"sets nothing: name at least one of {', '.join(OPTION_NAMES)}")
        try:
            refuse_quantised_without_flash(self.kv_cache_type, self.flash_attention)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class WorkloadTable(_Table):
    """`[workload]`: the shape of the requests; what is not named has its default."""

    prompt_tokens: int = Field(64, ge=1, le=10_000_000)
    output_tokens: int = Field(64, ge=2, le=1_000_000)
    requests: int = Field(5, ge=1, le=10_000)
    agents: int = Field(1, ge=1, le=256)
    instances: int = Field(1, ge=1, le=64)
    prompt_file: str | None = Field(None, min_length=1)
    fixed_prompt: bool = False
    timeout_s: float = Field(120.0, gt=0, le=86_400)


class RangeTable(_Table):
    """`{ min = 98, max = 103 }`, either of them alone as well."""

    min: float | None = Field(None, ge=0)
    max: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def ordered(self) -> Self:
        """A range has an end, and its ends are in order."""
        if self.min is None and self.max is None:
            raise ValueError("needs min, max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is over max {self.max:g}")
        return self


class ExpectsTable(_Table):
    """`[expects]`: what the author expects."""

    decode_tok_s: RangeTable | None = None
    ttft_s: RangeTable | None = None
    vram_gb: RangeTable | None = None
    efficiency: float | None = Field(None, gt=0, le=10)
    measured_on: str = ""


class PresetFile(_Table):
    """A whole file."""

    name: str
    title: Annotated[str, Field(min_length=1, max_length=200)]
    digit: int | None = None
    strategy: str = ""
    use_case: str = ""
    requirements: list[str] = Field(default_factory=list)
    note: str = ""
    options: OptionsTable
    workload: WorkloadTable = Field(default_factory=lambda: WorkloadTable.model_validate({}))
    expects: ExpectsTable = Field(default_factory=ExpectsTable)

    @field_validator("name")
    @classmethod
    def safe(cls, name: str) -> str:
        """A name is typed on command lines and becomes a file's name."""
        if len(name) > 60 or not NAME.fullmatch(name):
            raise ValueError(f"must be {NAME_RULE}, not {_shown(name)}")
        if name in _RESERVED:
            raise ValueError(f"{name} is no safe file name on every system: choose another")
        return name


def faults(data: Mapping[str, Any], digits: range) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with a file's content: for each fault the path to its field and what to do."""
    try:
        parsed = PresetFile.model_validate(dict(data))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            path = tuple(str(step) for step in fault["loc"])
            yield path, _sentence(fault["type"], path, fault["input"], fault.get("ctx", {}), fault["msg"])
        digit = data.get("digit")
    else:
        digit = parsed.digit
    if isinstance(digit, int) and not isinstance(digit, bool) and digit not in digits:
        yield ("digit",), f"must be from {digits[0]} to {digits[-1]}, not {digit}: the other keys are taken"


def _sentence(kind: str, path: tuple[str, ...], given: object, context: Mapping[str, Any], message: str) -> str:
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("over", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("under", "lt"),
    }
    types = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text in quotes",
        "bool_type": "true or false",
        "list_type": "a list",
        "model_type": "a table",
        "dict_type": "a table",
    }
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        return "is missing: every preset needs it"
    if kind == "value_error":
        return str(context.get("error", message))
    if kind == "literal_error":
        return f"must be {context.get('expected')}, not {_shown(given)}"
    if kind in bounds:
        word, key = bounds[kind]
        return f"must be {word} {context.get(key)}, not {_shown(given)}"
    if kind in types:
        return f"must be {types[kind]}, not {_shown(given)}"
    if kind == "string_too_short":
        return "must not be empty"
    return f"{message[:1].lower()}{message[1:]}; got {_shown(given)}"


def _unknown(path: tuple[str, ...]) -> str:
    tables: dict[tuple[str, ...], type[BaseModel]] = {
        (): PresetFile,
        ("options",): OptionsTable,
        ("workload",): WorkloadTable,
        ("expects",): ExpectsTable,
    }
    *within, key = path
    own = list(tables.get(tuple(within), RangeTable).model_fields)
    near = difflib.get_close_matches(key.lower().replace("-", "_"), own, n=1, cutoff=0.6)
    if near:
        return f"is an unknown key. Did you mean {near[0]}?"
    for place, table in tables.items():
        if key in table.model_fields:
            return f"is an unknown key here. It belongs {f'under [{place[0]}]' if place else 'at the top of the file'}."
    return f"is an unknown key. Known here: {', '.join(own)}."


def _shown(value: object) -> str:
    """A value of the file, short and harmless."""
    text = plain(repr(value) if isinstance(value, str) else f"{value}")
    return text if len(text) <= 60 else f"{text[:57]}..."
