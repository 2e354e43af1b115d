from __future__ import annotations

import itertools
import math
import threading
from dataclasses import fields, replace
from typing import Any

import pytest

from chimera.domain.finding import Cause, Evidence, Finding, Remedy
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Progress, Session, Target, Trial
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.verdict import Verdict
from chimera.domain.workload import Workload
from chimera.errors import ConfigError, JournalError
from chimera.store import journal as journal_module
from chimera.store import schema
from chimera.store.journal import Journal, Remembered, Tally, new_id

from .samples import BASELINE, FULL, HIGH, TARGET, Clock, new_run, request, whole_session


def test_the_full_measurement_of_the_tests_leaves_no_field_at_its_default() -> None:
    plain = Measurement("warmup", 0.0, 0.0)
    assert [item.name for item in fields(Measurement) if getattr(FULL, item.name) == getattr(plain, item.name)] == []


def test_measurement_columns_are_the_fields_of_a_measurement() -> None:
    assert [column.name for column in schema.measurement.c][3:] == [item.name for item in fields(Measurement)]


def test_a_run_comes_back_as_it_was_made(journal: Journal) -> None:
    target = Target("llama_server", None, "m.gguf", command=("llama-server", "-m", "m.gguf"), assume_yes=True)
    workload = Workload(128, 32, 3, agents=2, instances=2, prompt_file="p.txt", fixed_prompt=True, timeout_s=5.0)
    made = journal.create_run(
        "tune",
        target,
        workload,
        seed=2**62,
        trials=[BASELINE],
        preset="fast",
        plan={"axes": {"num_gpu": (0, 1)}},
        name="n",
    )
    assert journal.run(made.id) == made
    assert made.plan == {"axes": {"num_gpu": [0, 1]}}


def test_a_page_of_runs_is_counted_at_once(journal: Journal) -> None:
    full, empty = new_run(journal), new_run(journal)
    whole_session(journal, full, 1, "c0", [90.0, 91.0])
    journal.add_measurements(full.id, 1, [request(None, void_reason="cache-hit"), request(None, role="warmup")])
    assert journal.tallies([full, empty]) == {full.id: Tally(2, 1), empty.id: Tally()}
    assert journal.tallies([]) == {}


def test_what_a_run_met_comes_back(journal: Journal) -> None:
    run = new_run(journal)
    server = ServerInfo("openai", "http://127.0.0.1:8000", "0.9", "vLLM")
    model = ModelInfo("m", "sha256:0", "Q4_K_M", "gemma3", 34, 131072, 10**10, 4 * 10**9, True, "/m.gguf")
    journal.identify(run.id, server=server, model=model, host={"cpu": "x", "cores": 2}, gpus=[{"uuid": "GPU-1"}])
    journal.identify(run.id)
    found = journal.run(run.id)
    assert (found.server, found.model) == (server, model)
    assert found.host == {"cpu": "x", "cores": 2}
    assert found.gpus == ({"uuid": "GPU-1"},)
    assert [each.id for each in journal.runs(model="m")] == [run.id]


def test_trials_and_effective_settings_come_back(journal: Journal) -> None:
    run = new_run(journal)
    assert journal.trials(run.id) == [BASELINE, HIGH]
    assert journal.effective(run.id, "c1") is None
    effective = Effective(
        Options(num_gpu=35, kv_cache_type="q8_0"),
        {"num_gpu": "measured", "kv_cache_type": "derived"},
        ("num_gpu 80 runs as 35",),
        ("num_batch",),
        5 * 10**9,
        4 * 10**9,
        4711,
    )
    journal.set_effective(run.id, "c1", effective)
    assert journal.effective(run.id, "c1") == effective
    assert journal.trials(run.id) == [BASELINE, replace(HIGH, effective=effective.options)]
    with pytest.raises(ConfigError, match="no candidate 'c9'"):
        journal.set_effective(run.id, "c9", effective)


def test_trials_added_later_follow_and_keep_what_was_read_back(journal: Journal) -> None:
    run = new_run(journal, trials=[BASELINE])
    journal.set_effective(run.id, "c0", Effective(Options(num_ctx=4096)))
    derived = Trial("c3", "current", Options(num_ctx=300), effective=Options(num_ctx=512))
    journal.add_trials(run.id, [derived, replace(BASELINE, notes=("again",))])
    assert journal.trials(run.id) == [replace(BASELINE, notes=("again",), effective=Options(num_ctx=4096)), derived]
    stored = journal.effective(run.id, "c3")
    assert stored is not None
    assert stored.sources == {"num_ctx": "derived"}


def test_a_measurement_comes_back_with_its_place(journal: Journal) -> None:
    run = new_run(journal)
    journal.begin_session(run.id, Session(4, "c1", round=2, phase="confirm"))
    journal.add_measurement(run.id, 4, FULL)
    journal.add_measurement(run.id, 4, request())
    first, second = journal.measurements(run.id)
    assert (first.session, first.candidate, first.round, first.phase) == (4, "c1", 2, "confirm")
    assert (first.measurement, second.measurement) == (FULL, request())
    assert journal.measurements(run.id, after=first.id) == [second]
    assert journal.measurements(run.id, session=5) == []


def test_a_figure_that_is_no_number_comes_back_as_unknown(journal: Journal) -> None:
    run = new_run(journal)
    journal.begin_session(run.id, Session(1, "c0", facts={"clock": math.nan, "peaks": (1, math.inf)}))
    journal.add_measurement(run.id, 1, request(math.nan))
    assert journal.measurements(run.id)[0].measurement.decode_tok_s is None
    assert journal.sessions(run.id)[0].facts == {"clock": None, "peaks": [1, None]}


def test_a_measurement_without_a_session_is_refused(journal: Journal) -> None:
    run = new_run(journal)
    with pytest.raises(JournalError, match="session 1 was never begun"):
        journal.add_measurement(run.id, 1, FULL)


def test_sessions_come_back_and_their_numbers_are_used_once(journal: Journal, clock: Clock) -> None:
    run = new_run(journal)
    journal.begin_session(run.id, Session(1, "c0", phase="preflight"))
    clock.now += 5
    journal.end_session(run.id, 1, "void", void_reason="foreign-client", facts={"load_s": 1.5})
    assert journal.sessions(run.id) == [
        Session(1, "c0", 1, "preflight", "void", "foreign-client", clock.now - 5, clock.now, {"load_s": 1.5})
    ]
    with pytest.raises(JournalError, match="has one with this number"):
        journal.begin_session(run.id, Session(1, "c1"))
    with pytest.raises(ConfigError, match="no session 2"):
        journal.end_session(run.id, 2, "done")


def test_interrupting_voids_only_what_was_open(journal: Journal) -> None:
    run = new_run(journal)
    other = new_run(journal)
    for seq in (1, 2):
        journal.begin_session(run.id, Session(seq, "c0"))
        journal.add_measurements(run.id, seq, [request(), request(void_reason="short-output")])
    journal.begin_session(other.id, Session(1, "c0"))
    journal.end_session(run.id, 1, "done")
    assert journal.interrupt(run.id) == 1
    assert [session.state for session in journal.sessions(run.id)] == ["done", "void"]
    assert [row.measurement.void_reason for row in journal.measurements(run.id)] == [
        None, "short-output", "interrupted", "short-output",
    ]  # fmt: skip
    assert journal.sessions(run.id)[1].void_reason == "interrupted"
    assert journal.sessions(other.id)[0].state == "running"
    assert journal.interrupt(run.id) == 0


def test_states_stamp_the_start_once_and_the_end_each_time(journal: Journal, clock: Clock) -> None:
    run = new_run(journal)
    clock.now += 1
    journal.set_state(run.id, "running")
    clock.now += 1
    journal.set_state(run.id, "failed", "the server went away")
    failed = journal.run(run.id)
    assert (failed.state, failed.error) == ("failed", "the server went away")
    assert (failed.started_at, failed.ended_at) == (clock.now - 1, clock.now)
    clock.now += 1
    with journal.worker_lock(run.id):
        journal.set_state(run.id, "running")
        again = journal.run(run.id)
    assert (again.state, again.error, again.ended_at) == ("running", None, None)
    assert again.started_at == failed.started_at


def test_crashed_is_never_stored(journal: Journal) -> None:
    run = new_run(journal)
    with pytest.raises(ValueError, match="never stored"):
        journal.set_state(run.id, "crashed")


def test_plan_and_name_can_be_replaced_and_a_deleted_run_is_gone(journal: Journal) -> None:
    run = new_run(journal, plan={"rounds": 3})
    journal.set_plan(run.id, {"rounds": 8})
    journal.rename(run.id, "mine")
    assert journal.run(run.id) == replace(run, plan={"rounds": 8}, name="mine")
    journal.begin_session(run.id, Session(1, "c0"))
    journal.add_measurement(run.id, 1, FULL)
    journal.add_samples(run.id, [(1.0, {})])
    journal.log(run.id, "text")
    kept = new_run(journal)
    journal.delete(run.id)
    assert [each.id for each in journal.runs()] == [kept.id]
    with journal._reading() as connection:
        for table in schema.metadata.sorted_tables:
            if table.name not in ("run", "trial"):
                assert connection.execute(table.select()).all() == []
    with pytest.raises(ConfigError):
        journal.set_state(run.id, "running")


def test_writing_to_a_run_that_another_process_deleted_says_so(journal: Journal) -> None:
    run = new_run(journal)
    with Journal.open() as other:
        other.delete(run.id)
    with pytest.raises(JournalError, match="was deleted"):
        journal.set_progress(run.id, Progress("loading", 0.0))


def test_a_run_is_found_by_id_prefix_or_as_the_last(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["abcd", "abef", "xyz2"])
    monkeypatch.setattr(journal_module, "new_id", lambda length: next(ids))
    for _ in range(3):
        new_run(journal)
    assert journal.run("abcd").id == "abcd"
    assert journal.run(" ABE ").id == "abef"
    assert journal.run("last").id == "xyz2"
    with pytest.raises(ConfigError, match="Several runs start with 'ab': abef, abcd"):
        journal.run("ab")
    with pytest.raises(ConfigError, match="Near it: abcd"):
        journal.run("abdc")
    for wrong in ("", "%", "q"):
        with pytest.raises(ConfigError, match="There is no run"):
            journal.run(wrong)


def test_without_runs_there_is_no_last_one(journal: Journal) -> None:
    with pytest.raises(ConfigError, match="the journal is empty"):
        journal.run("last")


def test_ids_are_easy_to_type_and_grow_when_they_collide(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(set(new_id(4)) <= set("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(200))
    assert all(new_id(4)[0].isalpha() for _ in range(200))
    monkeypatch.setattr(journal_module, "new_id", lambda length: "a" * length)
    assert [new_run(journal).id for _ in range(3)] == ["aaaa", "aaaaa", "aaaaaa"]
    assert journal.run("aaaa").id == "aaaa"


def test_runs_are_paged_from_the_newest(journal: Journal) -> None:
    made = [new_run(journal).id for _ in range(7)]
    page, seen = journal.runs(limit=3), []
    while page:
        seen += [run.id for run in page]
        page = journal.runs(limit=3, before=page[-1].seq)
    assert seen == made[::-1]


def test_runs_are_filtered(journal: Journal) -> None:
    first = new_run(journal, "run", model="qwen:7b", preset="fast")
    second = new_run(journal, "sweep", model="gemma3:4b", name="100% night")
    third = new_run(journal, "sweep", model="qwen:7b")
    journal.set_state(first.id, "done")
    journal.set_state(second.id, "failed", "Out of memory")

    def ids(**filters: Any) -> list[str]:
        found = [run.id for run in journal.runs(**filters)]
        assert journal.count_runs(**filters) == len(found)
        return found

    assert ids(kind="sweep") == [third.id, second.id]
    assert ids(model="qwen:7b") == [third.id, first.id]
    assert ids(state="done") == [first.id]
    assert ids(text="out of") == [second.id]
    assert ids(text="0%") == [second.id]
    assert ids(text="FAST") == [first.id]
    assert ids(kind="sweep", model="qwen:7b", state="queued") == [third.id]
    assert ids(text="%%") == []


def test_a_run_without_a_worker_shows_as_crashed(journal: Journal, clock: Clock) -> None:
    queued, running, held, done = (new_run(journal).id for _ in range(4))
    journal.set_state(running, "running")
    journal.set_state(held, "paused")
    journal.set_state(done, "done")
    with journal.worker_lock(held):
        assert [journal.run(each).state for each in (queued, running, held, done)] == [
            "queued", "crashed", "paused", "done",
        ]  # fmt: skip
        clock.now += 31
        assert journal.run(queued).state == "crashed"
        assert {run.id for run in journal.runs(state="crashed")} == {queued, running}
        assert [run.id for run in journal.runs(state="paused")] == [held]
        assert journal.runs(state="queued") == []
        assert journal.count_runs(state="crashed") == 2
        journal.set_state(queued, "queued")
        assert journal.run(queued).state == "queued"
    assert journal.run(held).state == "crashed"


def test_a_worker_that_ends_between_two_looks_has_not_crashed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(journal)
    journal.set_state(run.id, "running")

    def ends_now(run_id: str) -> bool:
        journal.set_state(run_id, "done")
        return False

    monkeypatch.setattr(journal, "is_held", ends_now)
    assert journal.run(run.id).state != "crashed"


def test_progress_is_the_newest_one(journal: Journal) -> None:
    run = new_run(journal)
    assert journal.progress(run.id) is None
    full = Progress(
        "measuring", 1.5, 2, 8, 3, 5, "c1", {"num_gpu": 80}, 17, 64, 98.5, 0.21, 60.0, "http://127.0.0.1:1", 42, "text"
    )
    journal.set_progress(run.id, Progress("loading", 1.0))
    journal.set_progress(run.id, full)
    assert journal.progress(run.id) == full


def test_commands_are_taken_once_and_in_order(journal: Journal) -> None:
    run, other = new_run(journal), new_run(journal)
    journal.send(run.id, "pause")
    journal.send(other.id, "stop")
    journal.send(run.id, "resume")
    assert journal.take_commands(run.id) == ["pause", "resume"]
    assert journal.take_commands(run.id) == []
    assert journal.take_commands(other.id) == ["stop"]


def test_commands_are_taken_once_by_threads_that_ask_together(journal: Journal) -> None:
    run = new_run(journal)
    taken: list[str] = []
    for _ in range(40):
        journal.send(run.id, "pause")

    def take() -> None:
        for _ in range(10):
            taken.extend(journal.take_commands(run.id))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 40


def test_many_threads_write_at_once(journal: Journal) -> None:
    run = new_run(journal)
    journal.begin_session(run.id, Session(1, "c0"))
    failures: list[BaseException] = []

    def work(agent: int) -> None:
        try:
            for _ in range(25):
                journal.add_measurement(run.id, 1, request(agent=agent))
                journal.set_progress(run.id, Progress("measuring", 1.0))
                journal.measurements(run.id, after=0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(agent,)) for agent in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(journal.measurements(run.id)) == 150


def test_the_log_gives_the_newest_lines_oldest_first(journal: Journal, clock: Clock) -> None:
    run = new_run(journal)
    for number in range(5):
        journal.log(run.id, f"line {number}", "warn" if number == 4 else "info")
    journal.log(None, "of no run")
    newest = journal.events(run.id, limit=2)
    assert [(event.text, event.level, event.run, event.at) for event in newest] == [
        ("line 3", "info", run.id, clock.now),
        ("line 4", "warn", run.id, clock.now),
    ]
    assert [event.text for event in journal.events(run.id, after=newest[0].id)] == ["line 4"]
    assert [event.text for event in journal.events(None)] == ["of no run"]


def test_the_log_is_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "EVENTS_KEPT", 20)
    run = new_run(journal)
    journal.log(None, "kept")
    for number in range(50):
        journal.log(run.id, str(number))
    assert [event.text for event in journal.events(run.id)] == [str(number) for number in range(30, 50)]
    assert [event.text for event in journal.events(None)] == ["kept"]


def test_samples_are_kept_apart_and_cut_by_time(journal: Journal) -> None:
    run = new_run(journal)
    journal.add_samples(run.id, [(2.0, {"gpu": [1, None]}), (1.0, {"gpu": []})])
    journal.add_samples(None, [(1.5, {"cpu": 3.5})])
    assert journal.samples(run.id) == [(1.0, {"gpu": []}), (2.0, {"gpu": [1, None]})]
    assert journal.samples(run.id, after=1.0) == [(2.0, {"gpu": [1, None]})]
    assert journal.samples(run.id, until=1.0) == [(1.0, {"gpu": []})]
    assert journal.samples(None) == [(1.5, {"cpu": 3.5})]


@pytest.mark.parametrize("of_a_run", [True, False])
def test_old_samples_get_thinner_and_new_ones_stay(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, of_a_run: bool
) -> None:
    monkeypatch.setattr(journal_module, "SAMPLES_KEPT", 100)
    run = new_run(journal).id if of_a_run else None
    for start in range(1, 3001, 5):
        journal.add_samples(run, [(float(at), {}) for at in range(start, start + 5)])
        assert len(journal.samples(run)) <= 105
    times = [at for at, _ in journal.samples(run)]
    assert times[-50:] == [float(at) for at in range(2951, 3001)]
    assert times[0] == 1.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 600  # 25 spans of about 120 are left of the older half


def test_samples_of_one_moment_do_not_pile_up(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SAMPLES_KEPT", 40)
    journal.add_samples(None, [(1.0, {}), (1.0, {})])
    for at in range(100):
        journal.add_samples(None, [(5.0 + at // 90, {})])
    assert len(journal.samples(None)) <= 110


def test_verdicts_and_findings_come_back_and_are_replaced(journal: Journal) -> None:
    run = new_run(journal)
    verdicts = [
        Verdict("c1", "c0", "decode_tok_s", "same", 1.002, (0.997, 1.007), 0.975, 8, None),
        Verdict("c2", "c0", "vram_bytes", "insufficient", reason="one round"),
    ]
    finding = Finding(
        "high-ttft",
        "warn",
        "The first token takes long",
        (Evidence("ttft_s", 4.2, 1.0, 60.0, "measured", "s"), Evidence("server", "Ollama", None, None, "derived")),
        cause="high-ttft/cold-load",
        causes=(Cause("high-ttft/cold-load", "A load", (Evidence("load_s", 3.9),), (Evidence("cold", None),), 0.93),),
        remedies=(Remedy("Keep the model loaded"), Remedy("Less context", {"num_ctx": 4096})),
        since=1_700_000_000.5,
        session=3,
    )
    journal.set_verdicts(run.id, [Verdict("c9", "c0", "ttft_s", "worse")])
    journal.set_verdicts(run.id, verdicts)
    journal.set_findings(run.id, [finding])
    assert journal.verdicts(run.id) == verdicts
    assert journal.findings(run.id) == [finding]
    journal.set_findings(run.id, [])
    assert journal.findings(run.id) == []


def test_settings_are_remembered_until_they_are_put_back(journal: Journal, clock: Clock) -> None:
    run = new_run(journal)
    journal.remember(run.id, "http://127.0.0.1:1", {"num_ctx": 4096})
    journal.remember(run.id, "http://127.0.0.1:1", {"num_ctx": 512})
    kept = [Remembered(run.id, "http://127.0.0.1:1", {"num_ctx": 4096}, clock.now)]
    assert journal.remembered(run.id) == journal.unrestored() == kept
    with journal.worker_lock(run.id):
        assert journal.unrestored() == []
        assert journal.remembered(run.id) == kept
    journal.remember(run.id, "http://127.0.0.1:2", {"num_ctx": 1024})
    journal.restored(run.id, "http://127.0.0.1:2")
    assert journal.remembered(run.id) == kept, "another server's settings stay remembered"
    journal.restored(run.id, "http://127.0.0.1:1")
    assert journal.remembered(run.id) == journal.unrestored() == []
    journal.remember(run.id, "http://127.0.0.1:1", {"num_ctx": 8192})
    assert [item.data for item in journal.unrestored()] == [{"num_ctx": 8192}]


def test_the_change_token_moves_with_each_write_and_only_then(journal: Journal) -> None:
    run = new_run(journal)
    first = journal.changes()
    journal.measurements(run.id)
    journal.take_commands(run.id)
    assert journal.changes() == first
    journal.log(run.id, "own")
    second = journal.changes()
    assert second != first
    with Journal.open() as other:
        other.log(run.id, "another's")
    assert journal.changes() != second


@pytest.mark.parametrize(
    "read",
    ["trials", "sessions", "measurements", "progress", "verdicts", "findings", "samples", "events", "take_commands"],
)
def test_every_question_about_an_unknown_run_is_a_sentence(journal: Journal, read: str) -> None:
    new_run(journal)
    with pytest.raises(ConfigError, match="There is no run 'none'"):
        getattr(journal, read)("none")


def test_reading_names_the_fields_of_a_newer_version_without_harm(journal: Journal) -> None:
    run = new_run(journal)
    with journal._writing() as connection:
        connection.execute(
            schema.run.update().values(server={"kind": "ollama", "url": "u", "version": "1", "of_tomorrow": 1})
        )
    assert journal.run(run.id).server == ServerInfo("ollama", "u", "1")
    assert journal.run(run.id).target == TARGET


def test_lists_of_runs_and_measurements_use_indexes(journal: Journal) -> None:
    def plan(query: str) -> str:
        with journal._reading() as connection:
            return " ".join(str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))

    assert "ix_run_model_seq (model=?)" in plan("SELECT * FROM run WHERE model = 'm' ORDER BY seq DESC LIMIT 50")
    assert "ix_run_state_seq (state=?)" in plan("SELECT * FROM run WHERE state IN ('queued', 'running')")
    paging = plan("SELECT * FROM run WHERE seq < 100 ORDER BY seq DESC LIMIT 50")
    assert "USING INTEGER PRIMARY KEY" in paging
    assert "TEMP B-TREE" not in paging
    rows = plan("SELECT * FROM measurement WHERE run = 1 AND id > 5 ORDER BY id")
    assert "ix_measurement_run_id (run=? AND id>?)" in rows
    assert "TEMP B-TREE" not in rows
    assert "ix_sample_run_at" in plan("SELECT * FROM sample WHERE run IS NULL AND at > 1 ORDER BY at")
    assert "ix_event_run_id" in plan("SELECT * FROM event WHERE run IS 3 AND id > 1 ORDER BY id DESC LIMIT 5")
