from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.options import Options
from chimera.tuning.frontier import needs_as_much, ruled_out, smallest_first
from chimera.tuning.plan import Failure

BASE = Options(num_gpu=18, num_ctx=4096, num_batch=512, kv_cache_type="q8_0", flash_attention="on")


@pytest.mark.parametrize(
    "more",
    [
        Options(),
        Options(num_gpu=19),
        Options(num_ctx=8192),
        Options(num_batch=1024),
        Options(kv_cache_type="f16"),
        Options(flash_attention="off"),
        Options(num_thread=1),
        Options(temperature=0.2),
    ],
)
def test_more_on_any_memory_axis_is_beyond_a_failure(more: Options) -> None:
    assert needs_as_much(more.over(BASE), BASE)


@pytest.mark.parametrize(
    "other",
    [
        Options(num_gpu=17),
        Options(num_gpu=17, num_ctx=131072),
        Options(num_gpu=-1),
        Options(num_gpu=0),
        Options(kv_cache_type="q4_0"),
        Options(flash_attention="auto"),
        Options(num_parallel=2),
    ],
)
def test_less_on_one_axis_or_the_server_s_own_choice_may_fit(other: Options) -> None:
    assert not needs_as_much(other.over(BASE), BASE)


def test_nothing_is_more_than_an_automatic_choice_but_itself() -> None:
    automatic = Options(num_gpu=-1).over(BASE)
    assert not needs_as_much(BASE, automatic)
    assert needs_as_much(automatic, automatic)


@pytest.mark.parametrize(
    ("failure", "beyond"),
    [
        ("out-of-memory", {"layers", "context", "cache"}),
        ("load-failed", {"layers", "context"}),
        ("crash", {"layers", "context"}),
        ("timeout", {"context"}),
        ("refused", set()),
    ],
)
def test_each_kind_of_failure_reaches_as_far_as_its_cause_can(failure: Failure, beyond: set[str]) -> None:
    settings = {
        "failed": BASE,
        "layers": Options(num_gpu=35).over(BASE),
        "context": Options(num_ctx=8192).over(BASE),
        "cache": Options(kv_cache_type="f16").over(BASE),
        "less": Options(num_ctx=2048).over(BASE),
    }
    out = ruled_out(settings, [("failed", failure)], list(settings))
    assert set(out) == beyond
    assert set(out.values()) <= {"failed"}


@pytest.mark.parametrize("failure", ["load-failed", "crash", "timeout"])
def test_a_failure_that_is_not_of_memory_says_nothing_of_other_threads_or_sampling(failure: Failure) -> None:
    settings = {
        "failed": Options(num_thread=1).over(BASE),
        "threads": Options(num_thread=4).over(BASE),
        "sampling": Options(num_thread=1, temperature=0.2).over(BASE),
    }
    assert ruled_out(settings, [("failed", failure)], list(settings)) == {}
    assert set(ruled_out(settings, [("failed", "out-of-memory")], list(settings))) == {"threads", "sampling"}


ANY = st.builds(
    Options,
    num_gpu=st.sampled_from([-1, 0, 9, 18, None]),
    num_ctx=st.sampled_from([2048, 4096, None]),
    kv_cache_type=st.sampled_from(["f16", "q4_0", None]),
    flash_attention=st.sampled_from(["on", "off", "auto"]),
)


@given(ANY, ANY, ANY)
def test_needing_as_much_is_a_partial_order(one: Options, two: Options, three: Options) -> None:
    assert needs_as_much(one, one)
    if needs_as_much(one, two) and needs_as_much(two, three):
        assert needs_as_much(one, three)


@given(st.lists(ANY, min_size=1, max_size=9), st.data())
def test_the_smallest_first_order_is_a_permutation_that_never_tries_more_before_less(
    many: list[Options], data: st.DataObject
) -> None:
    settings = {f"c{place}": options for place, options in enumerate(many)}
    order = data.draw(st.permutations(list(settings)))
    untried = frozenset(data.draw(st.sets(st.sampled_from(order))))
    result = smallest_first(order, settings, untried)
    assert sorted(result) == sorted(order)
    for place, name in enumerate(result):
        for later in result[place + 1 :]:
            if {name, later} <= untried and needs_as_much(settings[name], settings[later]):
                assert needs_as_much(settings[later], settings[name])


def test_an_order_of_proven_candidates_stays_as_it_was() -> None:
    settings = {f"c{place}": Options(num_gpu=place) for place in range(5)}
    assert smallest_first(["c4", "c1", "c3"], settings, frozenset()) == ["c4", "c1", "c3"]


def test_a_grid_tried_smallest_first_fails_once_a_line_and_launches_nothing_beyond() -> None:
    points = list(product((0, 9, 18, 27, 35), (2048, 4096, 8192, 16384)))
    settings = {f"{layers}/{context}": Options(num_gpu=layers, num_ctx=context) for layers, context in points}
    failures: list[tuple[str, Failure]] = []
    for name in smallest_first(list(reversed(settings)), settings, frozenset(settings)):
        if name in ruled_out(settings, failures, [name]):
            continue
        layers, context = settings[name].num_gpu or 0, settings[name].num_ctx or 0
        if layers * 400 + context > 14_000:
            failures.append((name, "out-of-memory"))
    failed = [settings[name] for name, _ in failures]
    assert failed
    assert len({one.num_gpu for one in failed}) == len({one.num_ctx for one in failed}) == len(failed)
