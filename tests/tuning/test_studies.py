"""The simulated studies of the benchmark, short: bounds are wide enough for 200 runs, seeds are fixed."""

from __future__ import annotations

import pytest

from benchmarks.studies import STUDIES, page, run, simulate

RUNS = 200
LOOSE = 0.04
"""Three standard deviations of a share of 95 % or 5 % in 200 runs are 0.046; these seeds stay within this."""
NAMES = [study.name for study in STUDIES]
SHORT = [
    "8 without effect, heat takes 15 %",
    "one of 8 truly +2 %, heat takes 15 %",
    "one of 8 truly +5 %, 2 % noise",
    "8 without effect, 1 % noise",
    "one at +3 %, 8 rounds, 2 % noise",
    "8 without effect, heat takes 15 %, 6 rounds, no confirmation",
]


@pytest.mark.parametrize("name", SHORT)
def test_the_promises_hold_in_a_short_simulation(name: str) -> None:
    row = simulate(NAMES.index(name), RUNS)
    study = row.study
    assert study.least - LOOSE <= row.share <= min(1.0, study.most + LOOSE)
    if row.wrong is not None and "heat" in name:
        assert row.wrong > 0.6, "block order should be fooled by this machine, else it proves nothing"


def test_every_promise_of_the_design_is_in_the_table() -> None:
    counted = {study.count for study in STUDIES}
    assert counted == {
        "false *better*",
        "false *worse*",
        "found",
        "both end *same*",
        "each ends *same*",
        "interval covers",
    }
    assert all(name in NAMES for name in SHORT)


def test_a_study_is_the_same_every_time() -> None:
    assert run(STUDIES[0], 3) == run(STUDIES[0], 3)
    assert run(STUDIES[0], 3) != run(STUDIES[0], 4)


def test_a_missed_promise_is_marked_in_the_table() -> None:
    row = simulate(NAMES.index("one at +3 %, 8 rounds, 2 % noise"), 3)
    from dataclasses import replace

    assert "**missed**" in page([replace(row, share=0.5)])
    assert "**missed**" not in page([replace(row, share=0.95)])
