"""Random gaps and absurd values give findings or silence, never an exception."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chimera.diagnosis.bundle import build_bundle
from chimera.diagnosis.consistency import points
from chimera.diagnosis.evidence import EvidenceSet, sane
from chimera.diagnosis.rules import CODES, diagnose
from chimera.diagnosis.thermalcheck import ThermalPoint, assess
from chimera.diagnosis.variance import Point, attribute
from chimera.domain.readings import Missing

ABSURD = st.sampled_from(
    [
        0.0,
        -1.0,
        -1e9,
        1e-300,
        1e9,
        1e18,
        9.2e18,
        1e300,
        1.8e19,
        math.nan,
        math.inf,
        -math.inf,
        1.0,
        5.0,
        60.0,
        100.0,
        2048.0,
    ]
)
NUMBER = ABSURD | st.floats(0, 2000)
WHOLE = st.sampled_from([0, 1, 2, 8, 34, 64, 512, 4096, -1, -5, 10**6, 10**15, 2**64, 10**400])
MISSING = st.sampled_from([Missing("pending"), Missing("unsupported"), Missing("lost", "gone", 3.0), Missing("stale")])
TEXT = st.sampled_from(
    [
        "", "c0", "c1", "q8_0", "on", "4096", "\x1b[2J", "evicting", "server busy", "unexpected EOF",
        "cudaMalloc failed: out of memory", "offloaded 3/35 layers", "offloaded ²/1", "inference compute library=cpu",
        '{"error":', 'exceed_context {"n_ctx": [', "truncating input prompt",
    ]
)  # fmt: skip


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Anything of the declared type, sane or not."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is float:
        return NUMBER
    if kind is int:
        return WHOLE
    if kind is bool:
        return st.booleans()
    if kind is str:
        return TEXT
    if kind is type(None):
        return st.none()
    if kind is Missing:
        return MISSING
    if kind is Any:
        return NUMBER
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values(inner[0]), max_size=8).map(tuple)
    if origin is frozenset:
        return st.frozensets(st.integers(0, 100), max_size=3)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        keys = st.sampled_from(["power-cap", "sw-thermal", "hw-thermal", "num_gpu", "-c", "-b", "-ngl"])
        return st.dictionaries(keys, values(inner[1]), max_size=4)
    if inner:
        return st.one_of([values(each) for each in inner])
    if dataclasses.is_dataclass(kind):
        return built(typing.cast(type[Any], kind))
    raise AssertionError(kind)


def built(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.deferred(
        lambda: st.fixed_dictionaries(
            {each.name: values(hints[each.name]) for each in dataclasses.fields(kind)
             if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING},
            optional={each.name: values(hints[each.name]) for each in dataclasses.fields(kind)
                      if not (each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING)},
        ).map(lambda chosen: kind(**chosen))
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(built(EvidenceSet))
def test_whatever_the_evidence_there_are_findings_or_silence(evidence: EvidenceSet) -> None:
    findings = diagnose(evidence)
    assert findings == diagnose(evidence)
    for each in findings:
        assert each.code in CODES
        assert each.evidence
        assert each.cause is None or each.cause in {one.id for one in each.causes}
        for cause in each.causes:
            assert cause.share is None or 0 <= cause.share <= 1


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(built(EvidenceSet))
def test_whatever_the_evidence_the_bundle_is_valid_json(evidence: EvidenceSet) -> None:
    bundle = build_bundle(evidence, diagnose(evidence), now=1.79e9, chimera_version="0")
    assert json.loads(bundle.json)["schema_version"] == 1


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(built(EvidenceSet))
def test_what_is_left_after_cleaning_is_finite(evidence: EvidenceSet) -> None:
    def check(value: Any) -> None:
        if isinstance(value, float):
            assert math.isfinite(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, Missing):
            for each in dataclasses.fields(value):
                check(getattr(value, each.name))
        elif isinstance(value, tuple):
            for each in value:
                check(each)
        elif isinstance(value, Mapping):
            for each in value.values():
                check(each)

    cleaned = sane(evidence)
    check(cleaned)
    assert sane(cleaned) == cleaned
    points(cleaned, cleaned.requests, "rate")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(built(Point), max_size=20), st.sampled_from(["rate", "ttft"]))
def test_any_set_is_shared_out_or_not(chosen: list[Point], metric: typing.Literal["rate", "ttft"]) -> None:
    clean = [
        each for each in chosen
        if all(value is None or not isinstance(value, int | float) or (math.isfinite(value) and 0 <= value < 1e12)
               for value in (getattr(each, field.name) for field in dataclasses.fields(each) if field.name != "group"))
    ]  # fmt: skip
    found = attribute(clean, metric)
    if found is not None:
        assert sum(each.share for each in found.shares) == 1 or abs(sum(each.share for each in found.shares) - 1) < 1e-6


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(built(ThermalPoint), max_size=30), st.none() | NUMBER)
def test_any_series_is_judged_or_not(track: list[ThermalPoint], slowdown: float | None) -> None:
    assert assess(track, slowdown if slowdown is None or math.isfinite(slowdown) else None).verdict
