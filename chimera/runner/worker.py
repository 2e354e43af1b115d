"""The worker process: plan -> sessions -> journal. One process a run; it outlives every screen.

`kill -9` loses at most the session in flight: what is finished is in the journal, and a resumed run repeats nothing
of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chimera.backends.base import Backend
from chimera.domain.measurement import VoidReason
from chimera.domain.options import Options
from chimera.domain.run import COMPARING, Run, RunState, Session, SessionState, Trial
from chimera.domain.server import ModelInfo
from chimera.errors import BackendError, BackendRefused, BackendUnavailable, ChimeraError, ConfigError
from chimera.measure.agents import run_crew
from chimera.measure.live import LiveRequest
from chimera.measure.session import PromptSource, SessionOutcome, run_session
from chimera.model.shape import ModelShape
from chimera.store.blame import VRAM_FACT
from chimera.tuning.estimate import BLOCK
from chimera.tuning.plan import Failure
from chimera.tuning.protocol import FAILURE_WORDS, Done

from .checkup import Checkup
from .crews import Arm, Crews, arm_of
from .cure import aftermath
from .evidence import installed_facts, log_lines, machine_facts, needs
from .launch import disturbance, disturbed_by
from .putback import restore_all, to_its_end
from .recorder import Gate, ProgressWriter, Recorder, SameSettings
from .sampler import Sampler, void_as_shared
from .study import advance, conclude, failure_of, failure_within, shares_load
from .thermal import judge, seconds_of

if TYPE_CHECKING:
    from chimera.store.journal import Journal

CONTROL_S = 0.2
COOL_S = 60.0
"""Pause before a round that was too warm is repeated."""
SERVER_BACK_S = 120.0
"""So long a comparing run waits for a server that is not ours to come back."""
SERVER_ASK_S = 2.0
UNSURE: frozenset[VoidReason | None] = frozenset({"error", "timeout", "reload-inside"})
"""After a session that ended so, what is loaded is not known."""
_log = logging.getLogger(__name__)


def main(run_id: str) -> int:
    """Work on a run until it is done, stopped or failed. Returns the exit code of `chimera worker`."""
    from chimera.store.journal import Journal

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    journal = Journal.open()
    try:
        run = journal.run(run_id)
        with journal.worker_lock(run.id):
            return asyncio.run(Worker(journal, run).work())
    except ChimeraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        journal.close()


class Worker:
    """Works on one run."""

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run
        self._gate = Gate()
        self._live = LiveRequest()
        self._progress = ProgressWriter(journal, run.id, self._live)
        self._sampler = Sampler(journal, run.id, self._live, run.workload.instances)
        self._checkup = Checkup(journal, run.id)
        self._shape: ModelShape | None = None
        self._stop_reason: str | None = None
        self._crews: Crews | None = None
        self._loaded: Options | None = None
        """Load options that ran in the last session, where it ended well."""
        self._work: asyncio.Task[None] | None = None
        self._complete = False
        """All is measured, so that a stop has nothing left to stop."""

    async def work(self) -> int:
        """Run it to its end, whichever that is."""
        journal, run = self._journal, self._run
        journal.interrupt(run.id)
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGINT"):
            with suppress(NotImplementedError):
                loop.add_signal_handler(getattr(signal, name), self._stop, f"the worker was ended by {name}")
        with suppress(AttributeError, ValueError):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._work = asyncio.create_task(self._measure())
        control = asyncio.create_task(self._control())
        state: RunState = "done"
        error, code = None, 0
        try:
            await self._work
        except asyncio.CancelledError:
            if self._complete:
                journal.log(run.id, f"{self._stop_reason}: too late, all was measured and is kept", "notice")
            else:
                state, error, code = "stopped", self._stop_reason, 4
        except ChimeraError as problem:
            state, error, code = "failed", str(problem), problem.exit_code
        except Exception as problem:  # noqa: BLE001 - the edge of the process: whatever it is, the journal must say it
            _log.exception("the worker failed")
            state, error, code = "failed", f"{type(problem).__name__}: {problem} (a defect: see the worker's log)", 1
        finally:
            control.cancel()
            journal.interrupt(run.id)
            self._sampler.stop()
            self._progress.stop()
            self._checkup.look()
        journal.log(
            run.id,
            {"done": "done", "stopped": "stopped"}.get(state, error or state),
            "error" if state == "failed" else "info",
        )
        journal.set_state(run.id, state, error)
        return code

    def _stop(self, reason: str) -> None:
        self._stop_reason = reason
        self._gate.resume()
        if self._work is not None:
            self._work.cancel()

    async def _control(self) -> None:
        """Do what is asked through the journal."""
        while True:
            for command in await asyncio.to_thread(self._journal.take_commands, self._run.id):
                if command == "stop":
                    self._stop("stopped by the user")
                elif command == "pause" and not self._gate.paused:
                    self._gate.pause()
                    self._journal.log(self._run.id, "pause asked for: the request in flight is finished first")
                elif command == "resume" and self._gate.paused:
                    self._gate.resume()
                    self._journal.log(self._run.id, "resumed")
            await asyncio.sleep(CONTROL_S)

    async def _measure(self) -> None:
        from chimera.backends.detect import open_backend

        run, journal = self._run, self._journal
        await self._wait_for(run.plan.get("after"))
        journal.set_state(run.id, "running")
        journal.log(run.id, f"worker {os.getpid()} began")
        if other := disturbed_by(journal, run):
            journal.log(run.id, disturbance(other), "warn")
            journal.log(other.id, disturbance(journal.run(run.id)), "warn")  # as it is now: at work
        self._progress.start()
        backend = open_backend(run.target)
        touched = bool(journal.remembered(run.id))
        try:
            self._progress.show(replace(self._progress.base, text="reaching the server"))
            server = await backend.connect()
            model = await backend.model()
            self._shape = await backend.shape()
            host = host_facts() | {"installed": installed_facts(await _models(backend))}
            journal.identify(run.id, server=server, model=model, host=host)
            self._run = run = journal.run(run.id)
            await self._ask_before_reload(backend)
            # What a killed worker of this run had kept stays: its changes are still on the server.
            if not (backend.owned or touched) and (remembered := await backend.remember()):
                journal.remember(run.id, server.url, remembered)
                touched = True
            if await self._prepare_crews(backend):
                touched = True
            recorder = Recorder(journal, run, backend, self._progress, self._gate, self._sampler, self._checkup)
            self._sampler.start()
            prompts = PromptSource(backend, run.workload, run.seed)
            async for session, total in self._sessions():
                trial = next(one for one in journal.trials(run.id) if one.candidate == session.candidate)
                await self._one(backend, session, trial, total, recorder, prompts)
            self._complete = True
            if run.kind in COMPARING:
                await to_its_end(self._conclude())
        finally:
            self._progress.show(replace(self._progress.base, stage="finishing", eta_s=None, text="putting things back"))
            # A stop must not cut this short: what we changed on the user's server is put back first.
            await to_its_end(self._leave(backend, touched))

    async def _prepare_crews(self, backend: Backend) -> bool:
        """Reach or start the servers that the run needs beside its own; whether something there is to be put back."""
        run = self._run
        self._crews = Crews(run, backend, self._journal, self._sampler.free_bytes)
        trials = self._journal.trials(run.id)
        return await self._crews.prepare(
            [arm_of(run, trial.candidate) for trial in trials], {one.candidate: one.requested for one in trials}
        )

    def _say_failed(self, trial: Trial, failure: Failure, error: str | None) -> None:
        words = f"{trial.candidate} ({trial.requested}): {FAILURE_WORDS[failure]}" + (f" — {error}" if error else "")
        self._journal.log(self._run.id, words, "warn")

    async def _still_there(self, backend: Backend) -> bool:
        """Whether a session can begin: our engine starts anew, a server that is not ours is waited for."""
        if backend.owned:
            return True
        deadline = time.monotonic() + SERVER_BACK_S
        said = False
        while True:
            try:
                await backend.connect()
            except BackendUnavailable as error:
                if not said:
                    said = True
                    self._journal.log(self._run.id, f"waiting for the server to come back: {error}", "warn")
                    self._progress.show(replace(self._progress.base, text="waiting for the server to come back"))
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(SERVER_ASK_S)
            else:
                return True

    async def _cool_down(self) -> None:
        """Let the GPU cool before a round is repeated."""
        self._journal.log(self._run.id, f"the round was too warm: it is repeated after {COOL_S:g} s", "notice")
        self._progress.show(replace(self._progress.base, stage="cooling", text="letting the GPU cool"))
        await asyncio.sleep(COOL_S)

    async def _wait_for(self, before: str | None) -> None:
        """Stay queued until another run has ended, however it did."""
        while before is not None and await asyncio.to_thread(self._journal.is_held, before):  # noqa: ASYNC110 - a lock
            await asyncio.sleep(CONTROL_S)

    async def _conclude(self) -> None:
        """Say what the whole run has shown: the verdict first, which no look at symptoms may delay or take down."""
        for words in await asyncio.to_thread(conclude, self._journal, self._run):
            self._journal.log(self._run.id, words, "notice")
        try:
            cured = await asyncio.to_thread(aftermath, self._journal, self._run)
        except Exception as error:  # noqa: BLE001 - whatever a rule stumbles over, the run is measured and judged
            _log.exception("the symptom could not be looked for again")
            cured = f"whether the symptom is still seen could not be told: {type(error).__name__} (see its log)"
        if cured:
            self._journal.log(self._run.id, cured, "notice")

    async def _leave(self, backend: Backend, touched: bool) -> None:
        def at(url: str) -> Backend | None:
            there = self._crews.at(url) if self._crews is not None else None
            return backend if there is None and url == backend.url else there

        if touched:
            await restore_all(self._journal, self._run.id, at)
        if self._crews is not None:
            await self._crews.close()
        await backend.close()

    async def _ask_before_reload(self, backend: Backend) -> None:
        """Rule: a server that is not ours is not made to reload without a yes."""
        if backend.owned or self._run.target.assume_yes:
            return
        trials = self._journal.trials(self._run.id)
        # A run that draws its candidates as it goes begins with the server's defaults.
        for options in [self._options(backend, trial) for trial in trials] or [Options()]:
            words = await backend.would_reload(options)
            if words:
                raise ConfigError(f"{words} Say yes with --yes, or in the UI when it asks.")

    def _options(self, backend: Backend, trial: Trial) -> Options:
        """What of the requested options goes to this server."""
        possible = backend.load_options | backend.sampling_options
        left = [name for name in trial.requested.as_dict() if name not in possible]
        if not left:
            return trial.requested
        strict = [name for name in left if name not in self._run.plan.get("lenient", ())]
        if strict:
            raise ConfigError(
                f"{', '.join(strict)} cannot be set on this server ({backend.kind}): its start decides. "
                "Leave the option out, or restart the server with it."
            )
        return trial.requested.only(possible)

    async def _sessions(self) -> AsyncIterator[tuple[Session, int]]:
        """The sessions that are still to be done, in order, each with how many are planned in all."""
        journal, run = self._journal, self._run
        if run.kind not in COMPARING:
            done = [one for one in journal.sessions(run.id) if one.state == "done"]
            used = max((one.seq for one in journal.sessions(run.id)), default=0)
            if not done:
                yield Session(used + 1, "c0"), 1
            return
        said = ""
        while True:
            step = await asyncio.to_thread(advance, journal, run)
            self._run = journal.run(run.id)  # a step may have added candidates and rules
            if isinstance(step, Done):
                journal.log(run.id, step.reason)
                return
            if step.words != said:
                said = step.words
                journal.log(run.id, said)
            if step.cool_down:
                await self._cool_down()
            yield step.session, step.sessions

    async def _together(
        self, backend: Backend, options: Options, arm: Arm, session: Session, recorder: Recorder
    ) -> SessionOutcome:
        """A session of several agents."""
        run = self._run
        assert self._crews is not None
        lanes = tuple(LiveRequest() for _ in range(arm.agents))
        self._progress.lanes = lanes
        crew = await self._crews.crew(arm, options, lanes)
        workload = replace(run.workload, requests=arm.requests)
        prompts = [PromptSource(one, workload, run.seed) for one in crew.instances]
        try:
            key = prompt_key(session, fresh=True)
            outcome = await run_crew(crew, workload, prompts, recorder, seed=run.seed, round_=key)
            if held := outcome.facts.get("vram_bytes"):
                outcome.facts[VRAM_FACT] = held  # of all instances; the effective settings are the first one's
            return outcome
        finally:
            self._progress.lanes = ()

    async def _one(
        self,
        backend: Backend,
        session: Session,
        trial: Trial,
        total: int,
        recorder: Recorder,
        prompts: PromptSource,
    ) -> None:
        run = self._run
        options = self._options(backend, trial)
        if options != trial.requested:
            left = sorted(set(trial.requested.as_dict()) - set(options.as_dict()))
            self._journal.log(run.id, f"{', '.join(left)}: not settable on this server, measured as it runs", "notice")
        began = time.time()
        await recorder.begin(session, total, dict(trial.requested.as_dict()))
        await asyncio.to_thread(self._sampler.begin_session)
        comparing = run.kind in COMPARING
        if comparing and not await self._still_there(backend):
            raise BackendUnavailable(
                f"{run.target.url} has not come back within {SERVER_BACK_S:g} s. Start the server, then "
                f"`chimera resume {run.id}` goes on where it was."
            )
        one_load = comparing and shares_load(run, session.candidate)
        workload = replace(run.workload, requests=BLOCK) if one_load else run.workload
        try:
            arm = arm_of(run, session.candidate)
            if run.kind == "agents" or arm.agents > 1:
                outcome = await self._together(backend, options, arm, session, recorder)
            else:
                outcome = await run_session(
                    backend,
                    options,
                    workload,
                    prompts,
                    recorder,
                    seed=run.seed,
                    round_=prompt_key(session, fresh=one_load or not backend.owned),
                    live=self._live,
                    loaded=one_load and self._loaded == options.load,
                    seconds=seconds_of(run),
                )
        except SameSettings:
            self._loaded = options.load
            facts: dict[str, Any] = {"same_as": recorder.same_as}
            await recorder.end(replace(session, state="void", void_reason="same-settings", facts=facts))
            return
        except BackendError as error:
            self._loaded = None
            reason: VoidReason = "refused" if isinstance(error, BackendRefused) else "error"
            facts = {
                "error": str(error),
                "failure": failure_of(error),
                "needs": self._needs(session.candidate),
                "log": await asyncio.to_thread(log_lines, backend, began),
            }
            await recorder.end(replace(session, state="void", void_reason=reason, facts=facts))
            if not comparing:
                raise
            self._say_failed(trial, failure_of(error), str(error))
            return
        self._loaded = None if outcome.void_reason in UNSURE else options.load
        outcome.facts.update(await asyncio.to_thread(self._sampler.end_session, outcome.measurements))
        crews = run.kind == "agents"
        if outcome.void_reason is None and void_as_shared(outcome.facts, compared=comparing, crews=crews):
            outcome = replace(outcome, void_reason="shared-gpu")
            percent = f"{outcome.facts['foreign_gpu_percent']:.0f} %"
            self._journal.log(run.id, f"session void: other programs computed on {percent} of the GPU", "warn")
        if comparing and (failure := failure_within(outcome.measurements, outcome.void_reason)):
            outcome.facts["failure"] = failure
            self._say_failed(trial, failure, next((one.error for one in outcome.measurements if one.error), None))
        effective = self._journal.effective(run.id, session.candidate)
        if effective is not None and effective.vram_bytes and not one_load:
            outcome.facts.setdefault(VRAM_FACT, effective.vram_bytes)
        outcome.facts["needs"] = self._needs(session.candidate)
        if recorder.same_as is not None:
            outcome.facts["same_as"] = recorder.same_as
        outcome.facts["log"] = await asyncio.to_thread(log_lines, backend, began)
        if run.kind == "thermal":
            await self._judge_heat(outcome)
        state: SessionState = "void" if outcome.void_reason else "done"
        await recorder.end(
            replace(session, state=state, void_reason=outcome.void_reason, ended_at=time.time(), facts=outcome.facts)
        )

    def _needs(self, candidate: str) -> dict[str, float]:
        """What the configuration takes of GPU memory and bandwidth, for the rules."""
        trial = next(one for one in self._journal.trials(self._run.id) if one.candidate == candidate)
        options = trial.effective.over(trial.requested) if trial.effective is not None else trial.requested
        return needs(self._shape, options, self._sampler.gpus, self._run.workload.prompt_tokens)

    async def _judge_heat(self, outcome: SessionOutcome) -> None:
        """The thermal check's verdict, kept with its session and told."""
        if not outcome.measurements:
            return
        began = outcome.measurements[0].started_at
        outcome.facts["thermal"] = await asyncio.to_thread(judge, self._journal, self._run, began)
        for one in outcome.facts["thermal"]:
            name = f"{one['gpu']}: " if one["gpu"] else ""
            self._journal.log(self._run.id, f"{name}{one['verdict']}", "notice")


async def _models(backend: Backend) -> tuple[ModelInfo, ...]:
    """What the server could load; nothing where it does not say."""
    try:
        return await backend.models()
    except BackendError:
        return ()


def prompt_key(session: Session, *, fresh: bool) -> str:
    """Which prompts a session answers.

    All candidates of a round answer the same ones where each has a load of its own. Where a load may outlive a session
    (`fresh`) a cache would remember them, so each session gets its own.
    """
    key = f"{session.phase}/{session.round}"
    return f"{key}/{session.seq}" if fresh else key


def host_facts() -> dict[str, object]:
    """What a reader of the results must know of this machine. No names of people or hosts."""
    import platform

    import psutil

    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu": _cpu_name(),
        **machine_facts(),
    }


def _cpu_name() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a kernel file, not a path of ours
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    except OSError:
        import platform

        return platform.processor() or None
