"""Rates out of slots: shapes of answers, and what a steady or a jumping count gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.readings import Missing
from chimera.domain.telemetry import SlotState
from chimera.telemetry.slots import SlotMeter, slot_state

RECORDED = Path(__file__).parents[1] / "samples" / "llama-server" / "poll-slots-metrics.jsonl"


def slot(decoded: int, task: int = 1, *, busy: bool = True, number: int = 0) -> SlotState:
    return SlotState(number, busy, task, decoded=decoded)


BASE = {"id": 0, "is_processing": True, "id_task": 7, "n_prompt_tokens": 78, "n_prompt_tokens_cache": 1}


@pytest.mark.parametrize(
    "shape",
    [
        {"next_token": [{"has_next_token": True, "n_remain": 24, "n_decoded": 40}]},
        {"next_token": {"has_next_token": True, "n_remain": 24, "n_decoded": 40}},
        {"n_decoded": 40, "n_remain": 24},
    ],
    ids=["array", "object", "top level"],
)
def test_all_shapes_of_the_decoded_count_are_read(shape: dict[str, object]) -> None:
    assert slot_state(BASE | shape) == SlotState(0, True, 7, 78, 1, 40, 24)


def test_a_slot_that_was_never_used_has_hardly_any_field() -> None:
    state = slot_state({"id": 3, "n_ctx": 1024, "speculative": False, "is_processing": False})
    assert state == SlotState(3, False)


def test_older_builds_tell_busy_as_a_state() -> None:
    assert slot_state({"id": 0, "state": 1, "task_id": 4, "next_token": {"n_decoded": 3}}) == SlotState(
        0, True, 4, decoded=3
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "n_decoded", "x"]), inner),
    max_leaves=8,
)


names = st.sampled_from(["id", "state", "id_task", "next_token", "n_decoded", "is_processing"])


@given(st.dictionaries(names, json_values))
def test_whatever_a_slot_holds_nothing_is_raised(value: dict[str, object]) -> None:
    state = slot_state(value)
    assert state is None or isinstance(state.busy, bool)


def test_an_idle_server_has_a_rate_of_zero_and_an_unseen_one_none() -> None:
    meter = SlotMeter()
    assert isinstance(meter.rate(0.0)[0], Missing)
    meter.see(0.0, [slot(0, busy=False)])
    assert meter.rate(0.0)[0] == 0.0


@given(st.floats(3.0, 300.0), st.floats(0.1, 0.5), st.integers(0, 50))
def test_a_steady_rate_is_found_within_its_whole_tokens(rate: float, every: float, start: int) -> None:
    meter = SlotMeter()
    at = 0.0
    for look in range(60):
        at = look * every
        meter.see(at, [slot(start + 1 + int(rate * at))])
    found, window = meter.rate(at)
    assert not isinstance(found, Missing)
    assert found == pytest.approx(rate, abs=1.01 / window)


def test_time_before_the_first_token_and_between_requests_does_not_count() -> None:
    meter = SlotMeter()
    at = 0.0
    for task in range(5):
        for decoded in (0, 0, 0, 0, 1, 11, 21, 31):
            meter.see(at, [slot(decoded, task)])
            at += 0.25
        meter.see(at, [slot(0, task, busy=False)])
        at += 0.25
    assert meter.rate(at)[0] == pytest.approx(40.0)


def test_slots_add_up_and_servers_do_not_mix() -> None:
    meter = SlotMeter()
    for look in range(9):
        at = look * 0.25
        meter.see(at, [slot(1 + look * 5, 1, number=0), slot(1 + look * 10, 2, number=1)], server=1)
        meter.see(at, [slot(1 + look * 20, 1, number=0)], server=2)
    assert meter.rate(2.0)[0] == pytest.approx(20 + 40 + 80)
    meter.gone(2)
    assert meter.rate(2.0)[0] == pytest.approx(60)


def test_a_prompt_in_work_is_no_rate_of_zero() -> None:
    meter = SlotMeter()
    meter.see(0.0, [slot(0, busy=False)])
    for look in range(1, 20):
        meter.see(look * 0.25, [slot(0, 5)])
    rate, _ = meter.rate(4.75)
    assert isinstance(rate, Missing)
    assert rate.detail == "reading a prompt"
    assert meter.prefilling


def test_a_rate_ends_soon_after_the_last_request() -> None:
    meter = SlotMeter()
    for look in range(10):
        meter.see(look * 0.25, [slot(1 + look * 10)])
    meter.see(2.5, [slot(0, busy=False)])
    assert meter.rate(2.5)[0] == pytest.approx(40)
    meter.see(6.0, [slot(0, busy=False)])
    assert meter.rate(6.0)[0] == 0.0


def test_time_to_first_token_is_from_appearance_to_the_first_count() -> None:
    meter = SlotMeter()
    meter.see(0.0, [slot(0, 1, busy=False)])
    for at, decoded in ((0.25, 0), (0.5, 0), (0.75, 0), (1.0, 2), (1.25, 12)):
        meter.see(at, [slot(decoded, 2)])
    assert meter.ttft_s == pytest.approx(0.875, abs=0.13)


def test_a_request_that_was_there_at_the_first_look_has_no_known_first_token() -> None:
    meter = SlotMeter()
    meter.see(0.0, [slot(0, 1)])
    meter.see(0.25, [slot(3, 1)])
    assert isinstance(meter.ttft_s, Missing)


def test_a_count_that_falls_within_a_task_is_a_new_request() -> None:
    meter = SlotMeter()
    for at, decoded in ((0.0, 40), (0.5, 60), (1.0, 2), (1.5, 22)):
        meter.see(at, [slot(decoded, 1)])
    assert meter.rate(1.5)[0] == pytest.approx(40)
    assert meter.tokens == 82


def test_recorded_polls_give_the_rate_that_the_servers_timings_gave() -> None:
    """Client A's request is task 512: 90 tokens in 21.633 s by the server's own timings, 4.114 tok/s."""
    meter = SlotMeter()
    rates = []
    for line in RECORDED.read_text().splitlines():
        poll = json.loads(line)
        slots = [slot_state(one) for one in poll["slots"]]
        mine = [one for one in slots if one is not None and one.task == 512]
        meter.see(poll["t"], mine)
        rate, window = meter.rate(poll["t"])
        if mine and mine[0].busy and not isinstance(rate, Missing) and window:
            rates.append(rate)
    assert len(rates) > 50
    assert sum(rates) / len(rates) == pytest.approx(4.114, rel=0.05)
