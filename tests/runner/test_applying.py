"""From a recommendation to a model, a command line or a preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Run, Session, Target, Trial
from chimera.domain.server import Effective, ModelInfo
from chimera.domain.workload import Workload
from chimera.errors import BackendRefused, BadAnswer, ConfigError
from chimera.presets.loader import all_presets
from chimera.runner import applying
from chimera.runner.planning import create_validation
from chimera.runner.study import outcomes
from chimera.store.journal import Journal
from chimera.tuning.plan import Plan
from chimera.tuning.verdicts import verdicts
from tests.backends.scripted import Exchange, FakeModel, ScriptedOllama, in_thread


class CreatingOllama(ScriptedOllama):
    """An Ollama that makes derived models and keeps what it was asked for."""

    def __init__(self, *, says: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.created: list[dict[str, Any]] = []
        self.says = says
        self.route("POST", "/api/create", self._create)

    async def _create(self, exchange: Exchange) -> None:
        body = exchange.request.json()
        self.created.append(body)
        if self.says is not None:
            await exchange.reply(200, self.says)
            return
        base = next(model for model in self.models if model.name == body["from"])
        others = tuple(model for model in self.models if model.name != body["model"])
        self.models = (*others, replace(base, name=body["model"]))
        await exchange.reply(200, {"status": "success"})


def _sweep(
    journal: Journal,
    target: Target,
    settings: Sequence[Options],
    gains: Sequence[float],
    *,
    effective: dict[str, Options] | None = None,
) -> Run:
    """A finished sweep: c0 asks for nothing, c1, c2, ... for the settings, faster by the gains."""
    trials = tuple(
        Trial(f"c{place}", "candidate" if place else "baseline", options)
        for place, options in enumerate([Options(), *settings])
    )
    plan = Plan(trials, 3, preflight=0, confirm=False, screen_rounds=6)
    workload = Workload(requests=2, output_tokens=16, prompt_tokens=8)
    run = journal.create_run(
        "sweep", target, workload, seed=3, trials=trials, plan={"rules": plan.as_dict(), "settings": {}, "lenient": []}
    )
    journal.identify(run.id, model=ModelInfo(target.model or "m", block_count=18, trained_ctx=32768))
    random = Random(1)
    seq = 0
    for number in range(1, 7):
        for trial, gain in zip(trials, [0.0, *gains], strict=True):
            seq += 1
            journal.begin_session(run.id, Session(seq, trial.candidate, number, "screen"))
            rate = 100 * exp(gain + random.gauss(0, 0.003))
            one = Measurement("measure", 1.0e9, 1.0, ttft_s=0.1, decode_tok_s=rate, completion_tokens=16)
            journal.add_measurements(run.id, seq, [one, one])
            journal.end_session(run.id, seq, "done")
    for name, options in (effective or {}).items():
        journal.set_effective(run.id, name, Effective(options, dict.fromkeys(options.as_dict(), "measured")))
    fresh = journal.run(run.id)
    journal.set_verdicts(run.id, verdicts(plan, outcomes(journal, fresh, plan)))
    journal.set_state(run.id, "done")
    return journal.run(run.id)


def chimera(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ),
    )


def test_the_winner_is_written_with_what_really_runs(journal: Journal) -> None:
    target = Target("ollama", "http://127.0.0.1:1", "gemma3:4b")
    run = _sweep(
        journal,
        target,
        [Options(num_gpu=80, num_ctx=512, temperature=0.2, kv_cache_type="q8_0")],
        [0.1],
        effective={"c1": Options(num_gpu=19, num_ctx=2048, num_batch=512)},
    )
    choice = applying.choose(journal, run)
    assert not choice.keep_default
    drawn = applying.draw(run, choice)
    assert drawn.name == "gemma3-chimera:4b"
    assert drawn.text == "FROM gemma3:4b\nPARAMETER num_gpu 19\nPARAMETER num_ctx 2048\nPARAMETER temperature 0.2\n"
    assert any("num_gpu 80 was asked for and 19 runs" in note for note in drawn.notes)
    assert any("OLLAMA_KV_CACHE_TYPE=q8_0" in note for note in drawn.notes)


def test_automatic_layers_stay_automatic(journal: Journal) -> None:
    target = Target("ollama", "http://127.0.0.1:1", "m")
    run = _sweep(
        journal,
        target,
        [Options(num_gpu=-1, num_batch=256)],
        [0.1],
        effective={"c1": Options(num_gpu=19, num_batch=256)},
    )
    drawn = applying.draw(run, applying.choose(journal, run))
    assert drawn.parameters == {"num_batch": 256}
    assert drawn.name == "m-chimera:latest"


def test_where_nothing_is_better_the_default_is_kept_and_nothing_is_made(journal: Journal) -> None:
    with in_thread(CreatingOllama()) as server:
        run = _sweep(journal, Target("ollama", server.url, server.models[0].name), [Options(num_batch=256)], [0.0])
        done = chimera("apply", run.id, "--json")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["keep_default"] is True
        assert facts["applied"] is None
        assert "no practical difference" in done.stderr
        assert server.created == []


def test_a_dry_run_shows_the_modelfile_and_asks_the_server_nothing(journal: Journal) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:1", "gemma3:4b"), [Options(num_batch=256)], [0.1])
    done = chimera("apply", run.id, "--dry-run", "--as", "fast")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "FROM gemma3:4b\nPARAMETER num_batch 256\n"


def test_a_derived_model_is_made_and_never_replaces_one_without_a_yes(journal: Journal) -> None:
    with in_thread(CreatingOllama()) as server:
        base = server.models[0].name
        run = _sweep(journal, Target("ollama", server.url, base), [Options(num_batch=256)], [0.1])
        first = chimera("apply", run.id, "--as", "fast", "--no-proof", "--json")
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["applied"]["made"] == "fast:latest"
        assert server.created == [
            {"model": "fast:latest", "from": base, "parameters": {"num_batch": 256}, "stream": False}
        ]
        choice = applying.choose(journal, run)
        drawn = applying.draw(run, choice, name="fast")
        with pytest.raises(ConfigError, match="--yes"):
            applying.apply(run, choice, drawn)
        assert len(server.created) == 1
        applying.apply(run, choice, drawn, yes=True)
        assert len(server.created) == 2
        with pytest.raises(ConfigError, match="the model itself"):
            applying.apply(run, choice, applying.draw(run, choice, name=base), yes=True)


def test_a_base_that_is_not_installed_is_never_asked_for(journal: Journal) -> None:
    with in_thread(CreatingOllama()) as server:
        run = _sweep(journal, Target("ollama", server.url, "absent:1b"), [Options(num_batch=256)], [0.1])
        choice = applying.choose(journal, run)
        with pytest.raises(BackendRefused, match="no model absent:1b"):
            applying.apply(run, choice, applying.draw(run, choice))
        assert server.created == [], "the server would look for it in a registry"


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        ({"error": "invalid \x1b[31mparameter"}, BackendRefused, "invalid parameter"),
        ({"status": "success"}, BadAnswer, "is not there"),
        ({"status": ["odd"]}, BadAnswer, "did not answer as Ollama"),
    ],
)
def test_a_server_that_does_not_make_it_is_believed(
    journal: Journal, says: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with in_thread(CreatingOllama(says=says)) as server:
        run = _sweep(journal, Target("ollama", server.url, server.models[0].name), [Options(num_batch=256)], [0.1])
        choice = applying.choose(journal, run)
        with pytest.raises(kind, match=words):
            applying.apply(run, choice, applying.draw(run, choice))


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "a:b:c", "x" * 200, "naïve", "a/../b", "a\nPARAMETER b 1"])
def test_a_name_that_is_none_is_refused(journal: Journal, name: str) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:1", "m"), [Options(num_batch=256)], [0.1])
    choice = applying.choose(journal, run)
    if not name:
        assert applying.draw(run, choice, name=name).name == "m-chimera:latest"
        return
    with pytest.raises(ConfigError, match="is no model name"):
        applying.draw(run, choice, name=name)


def test_a_candidate_may_be_named_and_the_baseline_is_the_default(journal: Journal) -> None:
    run = _sweep(
        journal,
        Target("ollama", "http://127.0.0.1:1", "m"),
        [Options(num_batch=256), Options(num_batch=1024)],
        [0.1, 0.0],
    )
    assert applying.choose(journal, run).candidate == "c1"
    assert applying.choose(journal, run, "c2").options == Options(num_batch=1024)
    assert applying.choose(journal, run, "c0").keep_default
    with pytest.raises(ConfigError, match="no candidate 'c9'"):
        applying.choose(journal, run, "c9")


@pytest.mark.parametrize("command", ["apply", "validate", "outputs"])
def test_nothing_is_made_of_a_run_that_goes_on(journal: Journal, command: str) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:9", "m"), [Options(num_ctx=512)], [0.2])
    with journal.worker_lock(run.id):
        journal.set_state(run.id, "running")
        done = chimera(command, run.id, "--candidate", "c1")
    assert done.returncode == 2
    assert f"run {run.id} goes on" in done.stderr
    assert f"chimera stop {run.id}" in done.stderr
    assert [one.id for one in journal.runs()] == [run.id]


def test_a_candidate_that_another_one_stands_for_is_validated_by_its_own_name(journal: Journal) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:9", "m"), [Options(num_gpu=19)], [0.2])
    journal.add_trials(
        run.id,
        [
            Trial("c0", "baseline", Options(), merged=("c3",)),
            Trial("c1", "candidate", Options(num_gpu=19), merged=("c2",)),
        ],
    )
    made = create_validation(journal, run, candidate="c2", rounds=2)
    assert [trial.candidate for trial in journal.trials(made.id)] == ["c0", "c1"]
    with pytest.raises(ConfigError, match="baseline itself"):
        create_validation(journal, run, candidate="c3")
    with pytest.raises(ConfigError, match=r"no candidate 'c9'; it has c0, c3, c1, c2\."):
        create_validation(journal, run, candidate="c9")


def test_a_run_that_compared_nothing_recommends_nothing(journal: Journal) -> None:
    run = journal.create_run(
        "run", Target("embedded"), Workload(), seed=1, trials=[Trial("c0", "candidate", Options(num_gpu=1))]
    )
    with pytest.raises(ConfigError, match="recommends nothing"):
        applying.choose(journal, run)


def test_the_embedded_one_gets_a_preset_on_the_next_free_key(journal: Journal) -> None:
    run = _sweep(journal, Target("embedded"), [Options(num_thread=1, kv_cache_type="q8_0")], [0.1])
    choice = applying.choose(journal, run)
    for digit in range(6, 10):
        drawn = applying.draw(run, choice, name=f"mine-{digit}")
        assert drawn.digit == digit
        applying.apply(run, choice, drawn)
    full = applying.draw(run, choice, name="fifth")
    assert full.digit is None
    assert "taken" in " ".join(full.notes)
    applying.apply(run, choice, full)
    with pytest.raises(ConfigError, match="mine-6"):
        applying.apply(run, choice, replace(full, name="mine-6"))
    again = applying.draw(run, choice, name="mine-6")
    assert (again.digit, again.notes) == (6, ()), "it keeps its key"
    applying.apply(run, choice, again, yes=True)
    assert applying.draw(run, choice, name="fifth").digit is None
    book = all_presets()
    assert book.problems == ()
    mine = book.find("6")
    assert (mine.name, mine.options) == ("mine-6", Options(num_thread=1, kv_cache_type="q8_0"))


@pytest.mark.parametrize("name", ["../x", "a b", "quality-focused"])
def test_a_presets_name_that_cannot_be_is_refused_before_anything_is_written(journal: Journal, name: str) -> None:
    run = _sweep(journal, Target("embedded"), [Options(num_thread=1)], [0.1])
    dry = chimera("apply", run.id, "--as", name, "--dry-run")
    assert dry.returncode == 2
    assert "Traceback" not in dry.stderr
    assert name in dry.stderr


def _program(path: Path, help_text: str) -> Path:
    path.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo 'version: 4242 (abc)';; *) cat <<'END'\n{help_text}\nEND\n;; esac\n"
    )
    path.chmod(0o755)
    return path


_HELP = "-m, --model F\n-ngl, --gpu-layers N\n-c N\n-np N\n-b N\n-ub N\n-t N\n-tb N\n-ctk T\n-ctv T\n--temp N\n"


@pytest.mark.parametrize(
    ("flash", "expected"),
    [("-fa, --flash-attn [on|off|auto]  flash", "-fa on"), ("-fa, --flash-attn   enable it", "-fa")],
)
def test_the_command_line_is_one_that_this_build_accepts(
    journal: Journal, tmp_path: Path, flash: str, expected: str
) -> None:
    program = _program(tmp_path / "llama server", f"{_HELP}{flash}")
    target = Target("llama_server", command=(str(program), "-m", "my model.gguf", "-ngl", "5"))
    run = _sweep(
        journal,
        target,
        [Options(num_gpu=9, num_ctx=1024, num_parallel=2, flash_attention="on", temperature=0.3)],
        [0.1],
    )
    drawn = applying.draw(run, applying.choose(journal, run))
    assert drawn.text == f"'{program}' -m 'my model.gguf' -c 2048 -np 2 -ngl 9 {expected} --temp 0.3\n"
    assert not any("does not know" in note for note in drawn.notes)


def test_a_flag_that_the_build_does_not_name_is_said(journal: Journal, tmp_path: Path) -> None:
    program = _program(tmp_path / "llama-server", "-m F\n-ngl N\n")
    target = Target("llama_server", command=(str(program), "-m", "m.gguf"))
    run = _sweep(journal, target, [Options(num_batch=256)], [0.1])
    drawn = applying.draw(run, applying.choose(journal, run))
    assert [note for note in drawn.notes if "does not know" in note] == [
        "This build does not know -b: leave it out.",
        "This build does not know -ub: leave it out.",
    ]


def test_an_imported_set_is_applied_by_its_verdicts_and_proved_by_none(journal: Journal, tmp_path: Path) -> None:
    from chimera.runner.importing import Knowledge, import_file

    random = Random(2)
    lines = ["num_batch,role,decode_tok_s"]
    for _ in range(8):
        lines += [f"{batch},measure,{rate * exp(random.gauss(0, 0.003))}" for batch, rate in ((512, 100), (256, 120))]
    path = tmp_path / "set.csv"
    path.write_text("\n".join(lines))
    run = import_file(journal, path).run
    choice = applying.choose(journal, run)
    assert (choice.candidate, choice.options) == ("c1", Options(num_batch=256))
    assert isinstance(applying.create_proof(journal, run, choice), str)
    with pytest.raises(ConfigError, match="--model"):
        applying.draw(run, choice)
    info = Knowledge(info=ModelInfo("gemma3", block_count=34, trained_ctx=131072), kind="ollama")
    described = import_file(journal, path, known=info).run
    with pytest.raises(ConfigError, match="--model"):
        applying.draw(described, applying.choose(journal, described))
    drawn = applying.draw(run, choice, target=replace(run.target, model="m"))
    with pytest.raises(ConfigError, match="--server"):
        applying.apply(run, choice, drawn)


def test_the_proof_is_a_run_of_fresh_rounds_against_the_baseline(journal: Journal) -> None:
    run = _sweep(journal, Target("ollama", "http://127.0.0.1:1", "m"), [Options(num_batch=256)], [0.1])
    proof = applying.create_proof(journal, run, applying.choose(journal, run), yes=True)
    assert isinstance(proof, Run)
    assert proof.kind == "validate"
    assert proof.target.assume_yes
    assert [trial.candidate for trial in journal.trials(proof.id)] == ["c0", "c1"]
    assert proof.plan["rules"]["confirm_rounds"] == applying.PROOF_ROUNDS


def test_apply_proves_what_it_applied_on_the_server(journal: Journal) -> None:
    model = FakeModel()
    with in_thread(CreatingOllama(models=(model,), decode_s=0.001)) as server:
        run = _sweep(journal, Target("ollama", server.url, model.name), [Options(num_batch=256)], [0.1])
        done = chimera("apply", run.id, "--yes", "--json")
        assert done.returncode in (0, 1), done.stderr
        facts = json.loads(done.stdout)
        assert len(server.created) == 1
        assert facts["proof"]["state"] == "done", done.stderr
        words = {row["metric"]: row["verdict"] for row in facts["proof"]["verdicts"]}
        assert words["decode_tok_s"] != "better", "the scripted server is as fast with any batch"
        assert journal.run(facts["proof"]["run"]).kind == "validate"
