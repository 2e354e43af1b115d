"""Several agents for real: on scripted servers whose service times are known, and by workers from the command line.

A server with k slots and a fixed service time gives every figure of N closed-loop agents by arithmetic; `played` does
it. Two servers, one of which drops, refuses and stalls, show what is left of the others' figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import pytest

from chimera.backends.base import Backend
from chimera.backends.llama_dialect import metrics_of
from chimera.backends.ollama import Ollama
from chimera.backends.openai import OpenAICompatible
from chimera.cli.agents import _addresses
from chimera.cli.agents_text import emit_agents
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.run import Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.workload import Workload
from chimera.errors import ConfigError, OutOfMemory
from chimera.measure.agents import Crew, run_crew
from chimera.measure.live import LiveRequest
from chimera.measure.request import Timed
from chimera.measure.session import PromptSource, SessionOutcome, SessionStage
from chimera.model.shape import from_show
from chimera.runner.agents_report import _beyond, report
from chimera.runner.applying import choose
from chimera.runner.crews import create_agents_run
from chimera.runner.launch import start_worker
from chimera.runner.planning import Survey
from chimera.store.journal import Journal
from chimera.telemetry.settling import settle
from chimera.tuning.concurrency import Figures, Load, efficiency, figures, knee, speedup
from tests.backends.scripted import (
    Answer,
    Exchange,
    FakeModel,
    ScriptedOllama,
    ScriptedOpenAI,
    absent_url,
    body,
    broken_off,
    in_thread,
    silence,
)
from tests.tuning.test_concurrency import played

from .test_worker import chimera, facts_of, journal, wait_until

__all__ = ["journal"]

SEED = 4000
TOKENS, STEP_S = 9, 0.1
SERVICE_S = (TOKENS - 1) * STEP_S
"""0.8 s: 2 % of it are 16 ms, more than a request costs beside its service on a busy machine."""


class Silent:
    """Observes a session and keeps the stages it went through."""

    def __init__(self) -> None:
        self.stages: list[SessionStage] = []
        self.told: list[Measurement] = []

    async def stage(self, stage: SessionStage, request: int) -> None:
        self.stages.append(stage)

    async def loaded(self, effective: Effective) -> None:
        pass

    async def measured(self, timed: Timed) -> None:
        self.told.append(timed.measurement)

    async def checkpoint(self) -> None:
        pass


async def session(
    *backends: Backend, agents: int, workload: Workload, options: tuple[Options, ...] = (Options(),)
) -> SessionOutcome:
    """One session of so many agents."""
    for backend in backends:
        await backend.connect()
    watcher = Silent()
    crew = Crew(backends, options, tuple(LiveRequest() for _ in range(agents)))
    prompts = [PromptSource(one, workload, SEED) for one in backends]
    try:
        outcome = await run_crew(crew, workload, prompts, watcher, seed=SEED, round_=agents)
    finally:
        for backend in backends:
            await backend.close()
    assert watcher.stages == ["loading", "warmup", "measuring"]
    assert tuple(watcher.told) == outcome.measurements, "everything was told, in the order in which it ended"
    assert sum(one.role == "warmup" for one in outcome.measurements) == agents, "one of each agent is discarded"
    return outcome


def of(outcome: SessionOutcome) -> Figures:
    """Its figures."""
    found = figures(outcome.measurements)
    assert found is not None
    return found


# ---- against arithmetic ----------------------------------------------------------------------------------------------


def work(requests: int) -> Workload:
    return Workload(prompt_tokens=6, output_tokens=TOKENS, requests=requests, timeout_s=20)


TRIES = 3
"""A hiccup of a busy machine makes a session late, now and then; an error of ours would be in each of them."""


async def test_slots_and_agents_give_the_analytic_speedup_efficiency_queue_and_fairness() -> None:
    total, cases = 8, ((4, 2), (4, 4), (2, 4))

    async def served(agents: int, slots: int) -> Figures:
        with in_thread(ScriptedOllama(slots=slots, decode_s=STEP_S)) as server:
            found = of(await session(Ollama(server.url), agents=agents, workload=work(total // agents)))
            assert server.peak == min(agents, slots)
        return found

    for left in reversed(range(TRIES)):
        # Servers that do nothing but wait do not disturb each other: all of them at once.
        solo, *together = await asyncio.gather(served(1, 1), *(served(*case) for case in cases))
        try:
            for found, case in zip(together, cases, strict=True):
                as_computed(found, solo, *case, total)
            break
        except AssertionError:
            if not left:
                raise


def as_computed(together: Figures, solo: Figures, agents: int, slots: int, total: int) -> None:
    """Everything within 2 % of what arithmetic says of agents on slots."""
    alone, expected = (figures(played(n, k, total // n, SERVICE_S)) for n, k in ((1, 1), (agents, slots)))
    assert alone is not None
    assert expected is not None
    assert speedup(together, solo) == pytest.approx(min(agents, slots), rel=0.02)
    assert efficiency(together, solo) == pytest.approx(efficiency(expected, alone), rel=0.02)
    assert together.fairness == pytest.approx(expected.fairness, rel=0.02)
    # A wait of nothing is a few milliseconds in truth.
    assert together.queue_worst_s == pytest.approx(expected.queue_worst_s, rel=0.02, abs=0.016)
    assert together.queue_p95_s == pytest.approx(expected.queue_p95_s, rel=0.02, abs=0.016)
    assert together.deferred == expected.deferred
    assert [one.requests for one in together.agents] == [total // agents] * agents
    if agents > slots:
        waits = [one.queue_worst_s for one in together.agents if one.queue_worst_s is not None]
        assert median(waits) == pytest.approx(SERVICE_S, rel=0.02)
        assert together.ttft_worst_s == pytest.approx(SERVICE_S, rel=0.02, abs=0.016)


async def test_think_time_is_the_agents_and_no_service() -> None:
    thinking = replace(work(3), output_tokens=5, think_s=0.3)
    with in_thread(ScriptedOpenAI(slots=2, decode_s=0.05)) as server:
        found = of(await session(OpenAICompatible(server.url), agents=2, workload=thinking))
    for one in found.agents:
        assert one.completion_s == pytest.approx(3 * 4 * 0.05 + 2 * 0.3, rel=0.1)
        assert one.queue_s is None, "such a server does not tell a queue: unknown, not 0"
    assert found.queue_share is None


async def test_two_instances_serve_an_agent_each_without_a_queue() -> None:
    with in_thread(ScriptedOllama(decode_s=0.03)) as first, in_thread(ScriptedOllama(decode_s=0.06)) as second:
        outcome = await session(Ollama(first.url), Ollama(second.url), agents=2, workload=work(2))
        assert (first.generated, second.generated) == (3, 3)
    found = of(outcome)
    assert [one.instance for one in found.agents] == [0, 1]
    assert found.deferred == 0
    assert found.fairness == pytest.approx((1 + 2) ** 2 / (2 * (1 + 4)), rel=0.02), "one server is twice as fast"
    assert [one["url"] for one in outcome.facts["instances"]] == [first.url, second.url]
    assert outcome.facts["vram_bytes"] == sum(one["vram_bytes"] for one in outcome.facts["instances"])


async def test_a_further_instance_is_not_loaded_where_the_first_one_left_too_little_memory() -> None:
    async def run(first: ScriptedOllama, second: ScriptedOllama, free: float) -> None:
        backends = (Ollama(first.url), Ollama(second.url))
        for backend in backends:
            await backend.connect()
        crew = Crew(backends, (Options(),), (LiveRequest(), LiveRequest()), free=lambda: free)
        prompts = [PromptSource(one, work(1), SEED) for one in backends]
        try:
            await run_crew(crew, work(1), prompts, Silent(), seed=SEED, round_=1)
        finally:
            for backend in backends:
                await backend.close()

    with in_thread(ScriptedOllama()) as first, in_thread(ScriptedOllama()) as second:
        _, took = second.memory(MODEL, Options(num_ctx=4096, num_gpu=MODEL.block_count + 1))
        with pytest.raises(OutOfMemory, match=r"the first instance took 0\.5 GiB"):
            await run(first, second, 1.05 * took)
        assert not second.loads, "it was left alone"
        await run(first, second, 1.15 * took)
        assert len(second.loads) == 1
        await run(first, second, 0.15 * took)
        assert second.generated == 4, "what it holds already is its own again"


async def test_agents_may_ask_for_different_options() -> None:
    asked = (Options(temperature=0.2), Options(temperature=0.9, top_k=7))
    with in_thread(ScriptedOllama(slots=2)) as server:
        await session(Ollama(server.url), agents=2, workload=work(1), options=asked)
        sent = [
            (one["options"]["seed"], one["options"].get("temperature"), one["options"].get("top_k"))
            for request in server.requests
            if request.path == "/api/generate" and (one := request.json()).get("prompt")
        ]
    assert set(sent) == {(SEED, 0.2, None), (SEED + 1, 0.9, 7)}


# ---- what goes wrong with one does not touch the others --------------------------------------------------------------


def by_agent(server: ScriptedOllama, faults: dict[int, Answer]) -> Answer:
    """The server's own answers, but a fault for the requests of some agents; their seeds tell them apart."""

    async def answer(exchange: Exchange) -> None:
        asked = exchange.request.json()
        agent = asked.get("options", {}).get("seed", SEED) - SEED
        fault = faults.get(agent) if asked.get("prompt") else None
        await (fault(exchange) if fault else server._generate(exchange))

    return answer


async def test_a_dropped_a_refused_and_a_stalled_agent_leave_the_others_figures_alone() -> None:
    busy = {"error": "server busy, please try again.  maximum pending requests exceeded"}
    line = b'{"model":"gemma3:270m","response":" t0","done":false}\n'
    with in_thread(ScriptedOllama(slots=5, decode_s=STEP_S)) as server:
        faults = {1: broken_off(line), 2: body(503, busy), 3: silence(line)}
        server.route("POST", "/api/generate", by_agent(server, faults))
        async with asyncio.timeout(30):
            outcome = await session(Ollama(server.url), agents=5, workload=replace(work(4), timeout_s=1.0))
    found = of(outcome)
    assert outcome.void_reason is None
    assert found.failures == {"error": 2, "refused": 4, "timeout": 2}, "hopeless ones end after two in a row"
    assert found.rejected == 4
    assert [one.requests for one in found.agents] == [4, 0, 0, 0, 4]
    assert [one.failed for one in found.agents] == [0, 2, 4, 2, 0]
    assert all(one.error for one in outcome.measurements if one.void_reason), "each says why"
    for agent in (found.agents[0], found.agents[4]):
        assert agent.decode_tok_s == pytest.approx(1 / STEP_S, rel=0.02)
        assert agent.completion_s == pytest.approx(4 * SERVICE_S, rel=0.03)
        assert agent.ttft_worst_s is not None
        assert agent.ttft_worst_s < 0.1
    assert found.aggregate_tok_s == pytest.approx(2 * TOKENS / SERVICE_S, rel=0.03)
    assert found.fairness == pytest.approx(2 / 5, rel=0.01)


# ---- by a worker -----------------------------------------------------------------------------------------------------


MODEL = FakeModel()


def known_of(server: ScriptedOllama, **more: Any) -> Survey:
    """What a survey of the scripted server tells."""
    info = ModelInfo(MODEL.name, block_count=MODEL.block_count, trained_ctx=MODEL.trained_ctx)
    here = ServerInfo("ollama", server.url, server.version)
    return replace(Survey(here, info, None, Options(num_ctx=4096), None, None, None), **more)


def test_saturation_finds_the_knee_at_the_number_of_slots(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(ScriptedOllama(slots=2, decode_s=0.02)) as server:
        target = Target("ollama", url=server.url, assume_yes=True)
        workload = replace(work(1), output_tokens=9)
        run = create_agents_run(
            journal, target, known_of(server), workload, counts=[1, 2, 4], can_parallel=False, owned=False, rounds=3,
            seed=5,
        )  # fmt: skip
        child = start_worker(journal, run.id)
        lanes = 0
        while child.poll() is None:
            progress = journal.progress(run.id)
            lanes = max(lanes, len(progress.lanes) if progress is not None else 0)
            time.sleep(0.05)
    ended = journal.run(run.id)
    assert (ended.state, ended.error) == ("done", None)
    assert lanes == 4, "the progress shows a lane for each agent"
    found = report(journal, ended)
    assert found is not None
    assert [arm["agents"] for arm in found["arms"]] == [1, 2, 4]
    assert [arm["requests"] for arm in found["arms"]] == [4, 2, 1], "each arm does the same work"
    assert [arm["sessions"] for arm in found["arms"]] == [3, 3, 3]
    assert [arm["speedup"] for arm in found["arms"]] == [pytest.approx(n, rel=0.1) for n in (1, 2, 2)]
    assert found["knee"] == 2
    for load in found["saturation"]:
        assert load["low"] <= load["aggregate_tok_s"] <= load["high"]
    verdicts = {(row["candidate"], row["metric"]): row["verdict"] for row in found["verdicts"]}
    assert verdicts["c1", "aggregate_tok_s"] == "better"
    assert verdicts["c1", "completion_s"] == "better"
    assert verdicts["c2", "worst_ttft_s"] == "worse"
    assert found["digest"][-1] == "The knee is at 2 agents: more add less than a tenth a doubling."
    assert "throughput better (+" in found["digest"][0]
    assert "worst TTFT worse (+" in found["digest"][1]
    best = choose(journal, ended)
    assert best.keep_default
    assert "nothing to apply" in best.words, "a number of agents is no setting"
    json.dumps(found, allow_nan=False)
    emit_agents(found)
    shown = capsys.readouterr().out
    assert "2 <- knee" in shown
    assert "█" in shown


def test_a_knee_that_the_noise_hides_is_not_called_one() -> None:
    one = Load(1, 40.0, 39.0, 41.0, None)
    assert _beyond([one, Load(2, 41.0, 40.0, 42.0, None, (0.99, 1.05))], 1) == "more add less than a tenth a doubling."
    # The rates' own intervals lie apart, and the rounds that both have still tell nothing.
    unsure = [one, Load(2, 35.0, 34.0, 36.0, None, (0.23, 2.75))]
    assert knee(unsure) == 1, "it is where gains are no longer shown"
    assert _beyond(unsure, 1).startswith("whether 2 add a tenth a doubling is left open (-77 % to +175 %)")
    assert knee([one, Load(2, 42.0, 30.0, 60.0, None, (1.2, 1.4))]) is None, "paired rounds show it all the same"
    assert "left open:" in _beyond([one, Load(2, 50.0, 0.0, math.inf, None)], 1)


@pytest.fixture
def two() -> Iterator[tuple[ScriptedOllama, ScriptedOllama]]:
    """Two servers with the same model, one slot each."""
    with in_thread(ScriptedOllama(decode_s=0.01)) as first, in_thread(ScriptedOllama(decode_s=0.01)) as second:
        yield first, second


SHORT = ("--rounds", "2", "--requests", "1", "--output-tokens", "6", "--prompt-tokens", "6")


def test_two_instances_are_compared_with_one_and_left_as_they_were(
    journal: Journal, two: tuple[ScriptedOllama, ScriptedOllama]
) -> None:
    first, second = two
    done = chimera("agents", "--instances", f"{first.url},{second.url}", *SHORT, "--yes", "--json",
                   "--agent-options", "temperature=0.2", "--agent-options", "temperature=0.7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)["agents"]
    assert [arm["instances"] for arm in facts["arms"]] == [1, 1, 2]
    assert [one["instance"] for one in facts["arms"][2]["per_agent"]] == [0, 1]
    assert second.generated == 2 * 2, "a discarded one and a measured one in each round"
    assert len(second.loads) == 2
    assert not first.loaded, "it was not loaded before"
    assert not second.loaded
    assert second.unloads, "and takes no memory while it has no part"
    run = journal.run("last")
    assert run.workload.instances == 2
    assert journal.remembered(run.id) == []
    exported = json.loads(chimera("runs", "export", run.id, "--format", "json").stdout)
    assert exported["agents"] == facts, "an export carries the agents' figures as well"
    assert "OLLAMA_NUM_PARALLEL=2" in run.plan["ruled_out"]["c3"], "how it gets slots is said, as it cannot be told"
    facts_of_last = [one.facts for one in journal.sessions(run.id) if one.candidate == "c2"]
    assert all(len(one["instances"]) == 2 for one in facts_of_last)


def test_one_server_under_two_names_is_one_instance() -> None:
    target = Target("ollama", "http://localhost:11434", "m")
    with pytest.raises(ConfigError, match="two addresses or more"):
        _addresses(target, ["http://localhost:11434", "http://127.0.0.1:11434/"])
    two = ["http://127.0.0.1:11434", "http://127.0.0.1:11435"]
    assert _addresses(target, two) == two, "the server itself is one of them"


def test_instances_with_another_model_or_none_at_all_are_named(
    journal: Journal, two: tuple[ScriptedOllama, ScriptedOllama]
) -> None:
    first, second = two
    second.models = (replace(MODEL, digest="0" * 64),)
    other = chimera("agents", "--instances", f"{first.url},{second.url}", *SHORT, "--yes")
    assert other.returncode == 2
    assert "same model" in other.stderr
    assert not first.loads
    away = absent_url()
    nobody = chimera("agents", "--instances", f"{first.url},{away}", *SHORT, "--yes")
    assert nobody.returncode == 3
    assert f"OLLAMA_HOST={away.removeprefix('http://')} OLLAMA_NOPRUNE=1" in nobody.stderr
    assert "ollama serve" in nobody.stderr


def test_the_second_server_is_not_reloaded_without_a_yes(
    journal: Journal, two: tuple[ScriptedOllama, ScriptedOllama]
) -> None:
    first, second = two
    request = json.dumps({"model": MODEL.name, "keep_alive": -1}).encode()
    assert urlopen(f"{second.url}/api/generate", request, timeout=10).status == 200
    refused = chimera("agents", "--instances", f"{first.url},{second.url}", *SHORT)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert second.url in refused.stderr
    assert MODEL.name in second.loaded


OLLAMA = """#!{python}
import asyncio, os, sys
from tests.backends.scripted import ScriptedOllama

async def serve():
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")
    server = ScriptedOllama(decode_s=0.01)
    server._server = await asyncio.start_server(server._connected, host, int(port))
    with open({record!r}, "w") as file:
        print(os.getpid(), sys.argv[1:], os.environ["OLLAMA_HOST"], os.environ["OLLAMA_NOPRUNE"], file=file)
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def test_a_further_ollama_is_started_after_a_yes_and_ended_with_the_run(journal: Journal, tmp_path: Path) -> None:
    program, record = tmp_path / "ollama", tmp_path / "record"
    program.write_text(OLLAMA.format(python=sys.executable, record=str(record)))
    program.chmod(0o755)
    root = Path(__file__).parent.parent.parent
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root)}
    with in_thread(ScriptedOllama(decode_s=0.01)) as first:
        asked = chimera("agents", "--server", first.url, "--start-second", *SHORT, env=env)
        assert asked.returncode == 2
        assert "OLLAMA_NOPRUNE=1 ollama serve" in asked.stderr, "nobody is there to say yes"
        assert not record.exists()
        done = chimera("agents", "--server", first.url, "--start-second", *SHORT, "--yes", "--json", env=env)
        assert done.returncode == 0, done.stderr
        assert urlopen(first.url, timeout=10).status == 200, "the user's own server goes on"
    pid, words = record.read_text().split(" ", 1)
    address = facts_of(done)["run"]["plan"]["starts"][0].removeprefix("http://")
    assert words.split() == ["['serve']", address, "1"]
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
    assert [arm["instances"] for arm in facts_of(done)["agents"]["arms"]] == [1, 1, 2]


# ---- what stands between agents is found -----------------------------------------------------------------------------


def codes(journal: Journal, run_id: str) -> dict[str, str | None]:
    """Findings of a run with their causes."""
    return {one.code: one.cause for one in journal.findings(run_id)}


def finished(journal: Journal, server: ScriptedOllama, **plan: Any) -> str:
    """A comparison of two agents, brought to its end; its id."""
    target = Target("ollama", url=server.url, assume_yes=True)
    rules: dict[str, Any] = {"counts": [2], "can_parallel": False, "owned": False, "rounds": 1, "seed": 3, **plan}
    workload = rules.pop("workload", replace(work(2), output_tokens=5))
    run = create_agents_run(journal, target, known_of(server), workload, **rules)
    assert start_worker(journal, run.id).wait(90) == 0
    return run.id


def test_agents_that_wait_for_each_other_are_a_finding(journal: Journal) -> None:
    with in_thread(ScriptedOllama(slots=1, decode_s=0.15)) as server:
        found = codes(journal, finished(journal, server))
    assert found["queueing"] == "queueing/slots"


def test_agents_that_reload_each_others_model_are_a_finding_and_no_figure(journal: Journal) -> None:
    each = (Options(num_ctx=2048), Options(num_ctx=3072))
    with in_thread(ScriptedOllama(slots=2, load_s=1.1)) as server:
        run = finished(journal, server, each=each, workload=replace(work(1), output_tokens=3))
    assert codes(journal, run)["reload-thrash"] == "reload-thrash/own-options"
    thrashed = [row.measurement.void_reason for row in journal.measurements(run) if row.candidate == "c1"]
    assert thrashed.count("reload-inside") >= 3


def test_a_further_instance_that_finds_no_memory_is_told_of_with_the_first_one(
    journal: Journal, two: tuple[ScriptedOllama, ScriptedOllama]
) -> None:
    first, second = two
    second.capacity_bytes = 1
    run = finished(journal, first, urls=[first.url, second.url])
    finding = next(one for one in journal.findings(run) if one.code == "vram-exhaustion")
    assert "vram-exhaustion/two-servers" in [one.id for one in finding.causes]
    facts = report(journal, journal.run(run))
    assert facts is not None
    assert [arm["candidate"] for arm in facts["arms"]] == ["c0", "c1"], "the others' figures stand"
    assert not second.loaded


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_instances_that_will_not_fit_are_refused_with_the_forecast(journal: Journal) -> None:
    show = json.loads((Path(__file__).parent.parent / "samples" / "ollama" / "show.json").read_text(encoding="utf-8"))
    gib = 2.0**30
    with in_thread(ScriptedOllama()) as server:
        known = known_of(server, shape=from_show(show), gpu_free_bytes=0.5 * gib, gpu_total_bytes=8 * gib)
        make: dict[str, Any] = {"counts": [2], "can_parallel": False, "owned": False}
        urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
        target = Target("ollama", url=urls[0])
        tight = create_agents_run(journal, target, known, work(1), urls=urls, **make)
        assert list(tight.plan["arms"]) == ["c0", "c1"]
        assert "2 instances need" in tight.plan["ruled_out"]["c2"]
        assert "0.5 GiB are free" in tight.plan["ruled_out"]["c2"]
        roomy = create_agents_run(journal, target, known, work(1), urls=urls, held_bytes=4 * gib, **make)
        assert list(roomy.plan["arms"]) == ["c0", "c1", "c2"], "what the first one holds now is its own again"
        away = ["http://10.0.0.1:1", "http://10.0.0.2:1"]
        assert "c2" in create_agents_run(journal, target, known, work(1), urls=away, **make).plan["arms"]


def test_an_engine_of_our_own_cannot_have_two_loads_at_once(journal: Journal) -> None:
    with in_thread(ScriptedOllama()) as server:
        each = (Options(num_ctx=512), Options(num_ctx=1024))
        run = create_agents_run(
            journal, Target("embedded"), known_of(server), work(1), counts=[2], each=each, can_parallel=True, owned=True
        )
    assert list(run.plan["arms"]) == ["c0", "c3"], "instances of their own can"
    assert "different load options" in run.plan["ruled_out"]["c1"]
    assert run.plan["arms"]["c3"]["each"] == [{"num_ctx": 512}, {"num_ctx": 1024}]


@pytest.mark.parametrize("counts", [[], [1], [0, 2]])
def test_counts_that_make_no_sense_are_refused(journal: Journal, counts: list[int]) -> None:
    with in_thread(ScriptedOllama()) as server, pytest.raises(ConfigError, match="--agents"):
        create_agents_run(
            journal, Target("embedded"), known_of(server), work(1), counts=counts, can_parallel=True, owned=True
        )


async def test_memory_settles_before_the_next_load() -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def waited(values: list[float | None]) -> float:
        rows = iter([*values, *[values[-1]] * 100])
        return await settle(lambda: next(rows), clock=lambda: now, sleep=sleep)

    gib = 2.0**30
    assert await waited([None]) == 0.0, "where nobody can tell nothing is waited for"
    assert await waited([8 * gib]) == 0.5
    assert await waited([8 * gib, 7 * gib, 5 * gib, 5 * gib]) == 1.0
    restless = [float(number % 2) * gib for number in range(100)]
    assert await waited(list(restless)) == 5.0


# ---- on the embedded engine ------------------------------------------------------------------------------------------


TINY = Workload(prompt_tokens=12, output_tokens=8, requests=2, timeout_s=110)


def predicted(url: str | None) -> int:
    """Tokens that the engine counts itself, since its start."""
    assert url is not None
    return int(metrics_of(urlopen(f"{url}/metrics", timeout=60).read().decode())["tokens_predicted_total"])


@pytest.mark.embedded
@pytest.mark.parametrize(("slots", "instances"), [(1, 1), (2, 1), (1, 2)])
async def test_the_agents_tokens_are_those_that_the_engines_count(slots: int, instances: int) -> None:
    from chimera.backends.embedded import Embedded

    engines = tuple(Embedded() for _ in range(instances))
    crew = Crew(engines, (Options(num_parallel=slots, num_ctx=256, num_thread=1),), (LiveRequest(), LiveRequest()))
    try:
        for engine in engines:
            await engine.connect()
        prompts = [PromptSource(engine, TINY, SEED) for engine in engines]
        outcome = await run_crew(crew, TINY, prompts, Silent(), seed=SEED, round_=1)
        for number, engine in enumerate(engines):
            mine = [one.completion_tokens or 0 for one in outcome.measurements if one.instance == number]
            assert len(mine) == 6 // instances
            assert sum(mine) == predicted(engine.url), "the discarded ones included"
    finally:
        for engine in engines:
            await engine.close()
    found = of(outcome)
    assert found.tokens == 4 * TINY.output_tokens
    assert found.failed == 0
    if slots < 2 and instances < 2:
        assert found.deferred >= 1, "one slot: somebody waits"
    else:
        assert found.queue_worst_s is not None
        assert found.queue_worst_s < min(one.total_s for one in outcome.measurements)


@pytest.mark.slow  # 12 engines, one after the other: a minute
@pytest.mark.embedded
def test_one_and_two_agents_on_one_and_two_slots_end_in_verdicts(journal: Journal) -> None:
    done = chimera("agents", "--embedded", "--agents", "2", "--rounds", "3", "--requests", "1", "--output-tokens", "6",
                   "--prompt-tokens", "12", "--num-ctx", "256", "--num-thread", "1", "--json", timeout=170)  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)
    assert facts["counts"]["void"] == 0
    arms = {arm["label"]: arm for arm in facts["agents"]["arms"]}
    assert set(arms) >= {"1 agent", "2 agents, server as it is", "2 agents, 2 slots", "2 agents, 2 instances"}
    assert arms["2 agents, server as it is"]["deferred"] >= 3
    assert arms["2 agents, 2 slots"]["speedup"] > 0
    assert {row["metric"] for row in facts["agents"]["verdicts"]} >= {"aggregate_tok_s", "worst_ttft_s", "completion_s"}
    assert {row["against"] for row in facts["agents"]["verdicts"]} == {"c0", "c1"}
    assert all(row["n"] == 3 for row in facts["agents"]["verdicts"])
    assert len(facts["agents"]["digest"]) == 3


@pytest.mark.embedded
@pytest.mark.parametrize("preset", ["3", "4"])
def test_the_guides_multi_agent_presets_run_with_their_agents(journal: Journal, preset: str) -> None:
    # One thread: two of an engine that share two cores with anything else wait for each other most of the time.
    done = chimera("run", preset, "--embedded", "--requests", "1", "--output-tokens", "6", "--num-thread", "1",
                   "--json", "--measurements", timeout=170)  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = facts_of(done)
    assert facts["run"]["workload"]["agents"] == 2
    assert {one["agent"] for one in facts["measurements"]} == {0, 1}
    (arm,) = facts["agents"]["arms"]
    assert arm["agents"] == 2
    assert arm["speedup"] is None, "nothing was measured alone: no claim"
