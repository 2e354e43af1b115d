"""Presets as they stand on a model: effects, verdicts, and what became of the promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.preset import Expectation, Preset
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.server import Effective, ModelInfo
from chimera.domain.verdict import Verdict
from chimera.domain.workload import Workload
from chimera.presets.loader import guide_presets
from chimera.runner.honesty import Here, Measured, PresetRow, measured_here, preset_rows
from chimera.store.journal import Journal
from tests.backends.scripted import ScriptedOllama, in_thread

GEMMA = ModelInfo("gemma3:latest", block_count=34, trained_ctx=131072, vision=True)
HERE = Here("ollama", GEMMA)
CARD = ("NVIDIA GeForce RTX 4080 Laptop GPU",)


def _rows(*measured: Measured, here: Here = HERE) -> dict[str, PresetRow]:
    return {row.preset.name: row for row in preset_rows(guide_presets(), here, measured)}


def _measured(name: str, **more: object) -> Measured:
    preset = next(preset for preset in guide_presets() if preset.name == name)
    base = Measured("abcd", 1.0, preset.options, preset=name, model="gemma3:latest", cards=CARD)
    return replace(base, **more)  # type: ignore[arg-type]  # any field of it


def _words(row: PresetRow) -> dict[str, str]:
    return {one.what: one.word for one in row.expectations}


def test_the_guides_presets_are_nearly_one_setting_on_the_guides_own_model() -> None:
    rows = _rows()
    runs = {name: row.effective.options for name, row in rows.items() if row.effective}
    assert {options.num_gpu for options in runs.values()} == {35}
    assert {options.num_ctx for options in runs.values()} == {2048}
    assert rows["maximum-throughput"].same_as == ("memory-efficient",)
    assert set(rows["maximum-throughput"].same_load_as) == {
        "quality-focused", "multi-agent-python", "multi-agent-rust"
    }  # fmt: skip
    assert rows["multi-agent-python"].same_as == ("multi-agent-rust",)


def test_before_anything_was_measured_nothing_is_met_or_missed() -> None:
    for row in _rows().values():
        assert row.expectations
        assert set(_words(row).values()) == {"not comparable here"}
        assert row.verdict is None


def test_expectations_are_met_or_missed_on_the_same_model_and_card() -> None:
    row = _rows(_measured("maximum-throughput", decode_tok_s=110.0, ttft_s=0.7, vram_gb=5.1))["maximum-throughput"]
    assert _words(row) == {"decode_tok_s": "met", "ttft_s": "missed", "vram_gb": "met"}
    assert [one.value for one in row.expectations] == [110.0, 0.7, 5.1]
    assert {one.run for one in row.expectations} == {"abcd"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "gemma3:270m"}, "the figure is for gemma3:latest"),
        ({"cards": ("NVIDIA GeForce RTX 4080 SUPER",)}, "the figure is for RTX 4080 12 GB"),
        ({"cards": ("NVIDIA GeForce RTX 4080 16 GB",)}, "the figure is for RTX 4080 12 GB"),
        ({"cards": ("NVIDIA H200", "NVIDIA H200")}, "NVIDIA H200"),
        ({"cards": ()}, "is not known"),
    ],
)
def test_a_figure_of_another_model_or_card_is_shown_and_not_compared(change: dict[str, object], reason: str) -> None:
    row = _rows(_measured("maximum-throughput", decode_tok_s=110.0, **change))["maximum-throughput"]
    first = row.expectations[0]
    assert (first.word, first.value) == ("not comparable here", 110.0)
    assert reason in first.reason


def test_an_author_who_names_no_card_promises_nothing_that_can_be_held_against_anyone() -> None:
    preset = Preset("mine", "Mine", Options(num_gpu=1), expects=Expectation(decode_tok_s=(10.0, None)))
    seen = Measured("abcd", 1.0, preset.options, decode_tok_s=20.0, model="gemma3:latest", cards=CARD)
    (row,) = preset_rows([preset], HERE, [seen])
    assert _words(row) == {"decode_tok_s": "not comparable here"}


def test_the_guides_efficiency_is_compared_with_its_own_formula_only_where_agents_ran() -> None:
    alone = _rows(_measured("multi-agent-python", decode_tok_s=100.0))["multi-agent-python"]
    assert _words(alone)["efficiency"] == "not comparable here"
    together = _rows(_measured("multi-agent-python", efficiency=0.95))["multi-agent-python"]
    assert _words(together)["efficiency"] == "missed"


def test_a_verdict_counts_for_every_spelling_of_the_same_effect() -> None:
    verdict = Verdict("c1", "c0", "decode_tok_s", "same", 1.003, (0.99, 1.01), n=8)
    spelled = Options(num_gpu=35, num_ctx=2048, temperature=0.8, top_p=0.9, top_k=40, repeat_penalty=1.1)
    rows = _rows(Measured("wxyz", 2.0, spelled, verdict=verdict))
    for name in ("maximum-throughput", "memory-efficient"):
        assert rows[name].verdict == verdict
        assert rows[name].verdict_scope == "the whole preset"
    assert rows["quality-focused"].verdict_scope == "its load options", "its temperature was not measured"


def test_the_newest_verdict_holds_and_one_on_other_layers_does_not() -> None:
    old = Verdict("c1", "c0", "decode_tok_s", "better", 1.2)
    new = Verdict("c1", "c0", "decode_tok_s", "same", 1.0)
    load = Options(num_gpu=80, num_ctx=512)
    rows = _rows(
        Measured("oldd", 1.0, load, verdict=old),
        Measured("neww", 2.0, load, verdict=new),
        Measured("othr", 3.0, Options(num_gpu=10, num_ctx=512), verdict=old),
    )
    assert rows["maximum-throughput"].verdict_run == "neww"


def test_what_was_read_back_is_shown_instead_of_the_rule() -> None:
    row = _rows(_measured("maximum-throughput", effective=Options(num_gpu=0, num_ctx=2048)))["maximum-throughput"]
    assert row.effective is not None
    assert row.effective.options.num_gpu == 0
    assert row.effective.sources["num_gpu"] == "measured"


def test_a_preset_that_the_server_would_refuse_says_so() -> None:
    preset = Preset("odd", "Odd", Options(kv_cache_type="q4_0", flash_attention="off"))
    (row,) = preset_rows([preset], Here("embedded", GEMMA))
    assert row.effective is None
    assert row.refused
    assert "refuse" in row.words


def test_options_that_cannot_be_set_on_a_server_are_not_claimed() -> None:
    here = Here("llama_server", GEMMA, defaults=Options(num_gpu=35, num_ctx=4096), settable=frozenset({"temperature"}))
    rows = _rows(here=here)
    first = rows["maximum-throughput"]
    assert first.effective is not None
    assert first.effective.options.num_ctx == 4096
    assert "num_gpu, num_ctx" in " ".join(first.effective.notes)
    assert first.like_default


def _run(journal: Journal, *, base: Options = Options(), state: str = "done", digest: str | None = None) -> Run:  # noqa: B008 - frozen, so it may be shared
    preset = guide_presets()[0]
    trials = [Trial("c0", "baseline", base), Trial("c1", "candidate", preset.options)]
    run = journal.create_run(
        "sweep", Target("ollama", "http://127.0.0.1:1", GEMMA.name), Workload(), seed=1, trials=trials
    )
    journal.identify(run.id, model=replace(GEMMA, digest=digest), gpus=({"name": CARD[0], "uuid": "GPU-1"},))
    for seq, name in ((1, "c0"), (2, "c1")):
        journal.begin_session(run.id, Session(seq, name, facts={"vram_peak_bytes": 7e9}))
        one = Measurement("measure", 1.0, 1.0, ttft_s=0.2, decode_tok_s=99.0)
        journal.add_measurements(run.id, seq, [one, replace(one, decode_tok_s=101.0), replace(one, role="warmup")])
        journal.end_session(run.id, seq, "done", facts={"vram_peak_bytes": 7e9})
    journal.set_effective(run.id, "c1", Effective(Options(num_gpu=35, num_ctx=2048)))
    journal.set_verdicts(run.id, [Verdict("c1", "c0", "decode_tok_s", "same", 1.001, (0.99, 1.01), n=8)])
    journal.set_state(run.id, state)  # type: ignore[arg-type]  # one of the words
    return journal.run(run.id)


def test_the_journal_tells_what_was_measured_on_this_model(journal: Journal) -> None:
    run = _run(journal)
    row = _rows(*measured_here(journal, HERE))["maximum-throughput"]
    assert row.verdict_run == run.id
    assert row.measured is not None
    assert (row.measured.decode_tok_s, row.measured.ttft_s, row.measured.vram_gb) == (100.0, 0.2, 7.0)
    assert _words(row) == {"decode_tok_s": "met", "ttft_s": "met", "vram_gb": "met"}


def test_a_verdict_against_something_else_than_the_default_is_not_shown(journal: Journal) -> None:
    _run(journal, base=Options(num_gpu=10))
    row = _rows(*measured_here(journal, HERE))["maximum-throughput"]
    assert row.verdict is None
    assert row.measured is not None


def test_another_model_of_the_same_name_is_another_model(journal: Journal) -> None:
    _run(journal, digest="sha256:aa")
    assert measured_here(journal, replace(HERE, model=replace(GEMMA, digest="sha256:bb"))) == ()
    assert measured_here(journal, replace(HERE, kind="embedded")) == ()
    assert measured_here(journal, HERE) != ()


def test_the_command_line_shows_what_is_effective_on_a_server(journal: Journal) -> None:
    def chimera(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "chimera", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ),
        )

    with in_thread(ScriptedOllama()) as server:
        listed = chimera("presets", "list", "--server", server.url, "--json")
        assert listed.returncode == 0, listed.stderr
        facts = json.loads(listed.stdout)
        first = facts["presets"][0]
        assert facts["model"]["block_count"] == 18
        assert first["effective"]["num_gpu"] == 19
        assert first["same_as"] == ["memory-efficient"]
        assert {one["word"] for one in first["expectations"]} == {"not comparable here"}
        shown = chimera("presets", "show", "1", "--server", server.url)
        assert shown.returncode == 0, shown.stderr
        assert "num_gpu 80 runs as 19" in shown.stdout
        assert "not measured against the default here" in shown.stdout
        assert server.loads == [], "looking loads nothing"
    plain = json.loads(chimera("presets", "list", "--json").stdout)
    assert "effective" not in plain["presets"][0]
