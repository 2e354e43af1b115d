"""Which session comes next: preflight, screening rounds, confirmation.

Nothing is remembered between calls. `standing` plays the whole plan from its start with the sessions that are finished,
so a run that was killed goes on exactly where an uninterrupted one would be. Nothing depends on clocks, nor on the
order in which the sessions of a round arrived.

The rules:

* Preflight: sessions of the baseline alone, for the noise.
* Screening: each round visits every open candidate and the baseline once, in an order that follows from the seed. The
  better half stays after rounds 3 and 6; from round 5 a candidate clearly behind the leader (one-sided paired t, Holm)
  is dropped. Never the baseline, and never below the number that is confirmed.
* Confirmation: fresh rounds of the best and the baseline, their number fixed before the first of them.
* Without confirmation nothing is dropped: every candidate gets the same fixed number of rounds.
* A void session is repeated once at the end of its round, else the round lacks it. A round with a hot session is set
  aside and repeated under a new number after a cool-down, at most twice; then it counts.
* A candidate that fails before it ever worked is out, with all that need at least as much. One that worked before gets
  the second try of a void session. An interrupted session is run again and otherwise forgotten.
* A candidate that, once loaded, turns out to run what another one runs is out from then on: the other stands for both.
  Of two the baseline stays, else the one that was measured first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Literal

from chimera.domain.run import Session, SessionPhase

from .frontier import ruled_out, smallest_first
from .plan import DROP_FROM, HALVE_AFTER, Failure, Outcome, Plan, by_round
from .statistics import Noise, behind, centred, confirmation_rounds, holm, noise, paired

HOT_REPEATS = 2
"""Times that one round is set aside for heat; after that it counts, with a finding."""
HOT_SHARE = 0.01
HOT_START_C = 8.0

FAILURE_WORDS: dict[Failure, str] = {
    "out-of-memory": "ran out of memory",
    "load-failed": "could not be loaded",
    "crash": "crashed the engine",
    "timeout": "gave no answer in time",
    "refused": "refused the workload's requests",
}


@dataclass(frozen=True, slots=True)
class Round:
    """A round in work."""

    phase: SessionPhase
    number: int
    """As its sessions are numbered; a repeated round has a new one."""
    of: int
    """Rounds of this phase that are to count, as far as known; early ends shorten it."""
    counted: int
    """Rounds of this phase that count already."""
    sessions: tuple[Session, ...]
    """What is left of it, in order: run the first and ask again. The others are an outlook, a void one comes back."""
    cool_down: bool = False
    """It repeats a hot round: let the GPU cool before its first session."""


@dataclass(frozen=True, slots=True)
class NeedCohort:
    """The candidates of the next cohort are to be proposed and added to the plan."""

    number: int
    """From 1."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to run."""

    reason: str
    """A sentence."""
    complete: bool = True
    """Whether the plan was carried out; False where it could not be."""


Step = Round | NeedCohort | Done


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that the screening left behind."""

    candidate: str
    after: int
    """Screening rounds that counted by then."""
    why: Literal["slower-half", "behind-leader", "not-finalist"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands."""

    step: Step
    open: tuple[str, ...]
    """Candidates still in it, in the plan's order; the baseline is always there and not named."""
    counted: tuple[Outcome, ...]
    """Valid sessions of rounds that count, by phase and round."""
    set_aside: frozenset[int]
    """`seq` of the sessions of hot rounds that were repeated; kept, shown, in no verdict."""
    hot_rounds: tuple[tuple[SessionPhase, int], ...]
    """Rounds that count although they were hot."""
    lacking: tuple[tuple[SessionPhase, int, str], ...]
    """Candidates that a complete round lacks because both tries were void."""
    dropped: tuple[Dropped, ...]
    failed: dict[str, Failure] = field(default_factory=dict)
    """Candidates that are out because they failed."""
    unlaunched: dict[str, str] = field(default_factory=dict)
    """Candidates that need at least as much as one that failed, which is named."""
    same: dict[str, str] = field(default_factory=dict)
    """Candidates that run, by what was read back, what another one runs, which is named and stands for both."""
    noise: Noise | None = None
    """Of the preflight."""
    finalists: tuple[str, ...] = ()
    """Candidates in confirmation; empty before it and where there is none."""
    confirm_rounds: int | None = None
    """Rounds of the confirmation, once they are fixed."""


def standing(plan: Plan, outcomes: Sequence[Outcome]) -> Standing:
    """Where a run stands after these finished sessions, and what comes next.

    Args:
        plan: The rules.
        outcomes: Every finished session so far, void and interrupted ones included, in any order.
    """
    return _Play(plan, outcomes).standing()


def next_sessions(plan: Plan, outcomes: Sequence[Outcome]) -> Step:
    """What comes next after these finished sessions; see `standing`."""
    return standing(plan, outcomes).step


def started_hot(*, throttled: float | None, start_c: float | None, preflight_start_c: float | None) -> bool:
    """Whether a session's heat repeats its round.

    Args:
        throttled: Share of the session under thermal or power-brake throttling, the power cap not counted; None =
            unknown, which is no reason to repeat.
        start_c: Temperature when it began.
        preflight_start_c: Median of the same over the preflight.
    """
    if throttled is not None and throttled > HOT_SHARE:
        return True
    return start_c is not None and preflight_start_c is not None and start_c - preflight_start_c > HOT_START_C


def stand_for(plan: Plan, outcomes: Sequence[Outcome], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Which candidates turned out, once loaded, to run what another one runs: each with the one that stands for it.

    Of two the baseline stays, else the one that was measured first.
    """
    same = dict(known or {})
    names = {trial.candidate for trial in plan.trials}
    for one in sorted(outcomes, key=lambda one: one.session.seq):
        mine, stays = one.session.candidate, one.same_as
        if stays is None or stays not in names or mine in same:
            continue
        stays = same.get(stays, stays)
        if mine == plan.baseline:
            mine, stays = stays, mine
        if mine != stays:
            same = {name: stays if other == mine else other for name, other in same.items()} | {mine: stays}
    return same


@lru_cache(maxsize=4096)
def _permutation(seed: int, phase: SessionPhase, number: int, names: tuple[str, ...]) -> tuple[str, ...]:
    order = list(names)
    Random(f"{seed} {phase} {number}").shuffle(order)  # noqa: S311 - an order, not a secret
    return tuple(order)


class _Play:
    """One pass over a plan."""

    def __init__(self, plan: Plan, outcomes: Sequence[Outcome]) -> None:
        self.plan = plan
        self.baseline = plan.baseline
        self.candidates = plan.candidates
        self.seq = max((one.session.seq for one in outcomes), default=0)
        self.tries: dict[tuple[SessionPhase, int], dict[str, list[Outcome]]] = {}
        for one in sorted(outcomes, key=lambda one: one.session.seq):
            if not one.interrupted:
                held = self.tries.setdefault((one.session.phase, one.session.round), {})
                held.setdefault(one.session.candidate, []).append(one)
        self.proven: set[str] = set()
        self.failures: list[tuple[str, Failure]] = []
        self.unlaunched: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.counted: list[Outcome] = []
        self.set_aside: set[int] = set()
        self.hot_rounds: list[tuple[SessionPhase, int]] = []
        self.lacking: list[tuple[SessionPhase, int, str]] = []
        self.dropped: list[Dropped] = []
        self.numbers: dict[SessionPhase, int] = {}
        self.slots: dict[SessionPhase, int] = {}
        self.noise: Noise | None = None
        self.finalists: tuple[str, ...] = ()
        self.confirm_rounds: int | None = None

    def standing(self) -> Standing:
        step = self._preflight() or self._screen() or self._confirm()
        gone = {one.candidate for one in self.dropped}
        return Standing(
            step=step,
            open=tuple(name for name in self._alive(self.candidates) if name not in gone),
            counted=tuple(one for one in self.counted if one.session.candidate not in self.same),
            set_aside=frozenset(self.set_aside),
            hot_rounds=tuple(self.hot_rounds),
            lacking=tuple(self.lacking),
            dropped=tuple(self.dropped),
            failed=dict(self.failures),
            unlaunched=dict(self.unlaunched),
            same=dict(self.same),
            noise=self.noise,
            finalists=tuple(name for name in self.finalists if name not in self.same),
            confirm_rounds=self.confirm_rounds,
        )

    # Phases: each returns a step while it has one

    def _preflight(self) -> Step | None:
        if not self.candidates and not self.plan.cohorts_planned:
            return Done("Every candidate has the baseline's effect: there is nothing to compare.")
        for _ in range(self.plan.preflight):
            if step := self._slot("preflight", (), self.plan.preflight):
                return step
        table = by_round(self.counted, self.plan.objective, ("preflight",))
        self.noise = noise([values[self.baseline] for values in table.values()])
        return None

    def _screen(self) -> Step | None:
        plan = self.plan
        groups = max(len(plan.groups), plan.cohorts_planned)
        survivors: list[str] = []
        for group in plan.groups:
            open_ = self._alive(group)
            first = len(self.counted)
            for slot in range(1, plan.screen_rounds + 1):
                # A cohort is compared with the others, so even a small one needs values.
                few = plan.confirm and len(open_) <= plan.confirmed and (groups == 1 or slot > HALVE_AFTER[0])
                if few or not open_:
                    break
                if step := self._slot("screen", open_, plan.screen_rounds * groups):
                    return step
                open_ = self._alive(open_)
                if plan.confirm:
                    open_ = self._narrow(open_, slot, self.counted[first:])
            survivors += open_
        if len(plan.cohorts) < plan.cohorts_planned:
            return NeedCohort(len(plan.cohorts) + 1)
        if not survivors:
            if done := self._all_the_same(self.candidates):
                return done
            return Done("No candidate could be run, so there is nothing to compare with the baseline.", complete=False)
        if not plan.confirm:
            return Done("Every round that was planned is there.")
        best = self._ranked(survivors, self.counted)[: plan.confirmed]
        self._drop([name for name in survivors if name not in best], "not-finalist")
        self.finalists = tuple(name for name in self.candidates if name in best)
        return None

    def _confirm(self) -> Step:
        plan = self.plan
        self.confirm_rounds = plan.confirm_rounds or confirmation_rounds(
            self.noise, together=len(self.finalists), band=plan.band, target=plan.target, most=plan.confirm_max
        )
        for _ in range(self.confirm_rounds):
            open_ = self._alive(self.finalists)
            if not open_:
                if done := self._all_the_same(self.finalists):
                    return done
                return Done("None of the candidates in confirmation could be run any more.", complete=False)
            if step := self._slot("confirm", open_, self.confirm_rounds):
                return step
        return Done("Every round that was planned is there.")

    def _all_the_same(self, names: Sequence[str]) -> Done | None:
        if all(name in self.same for name in names):
            return Done("Every candidate runs the baseline's settings, by what was read back: nothing differs.")
        return None

    # Choosing

    def _narrow(self, open_: tuple[str, ...], slot: int, counted: Sequence[Outcome]) -> tuple[str, ...]:
        """Those of a cohort that stay open after its round `slot`."""
        keep = self.plan.confirmed
        if slot >= DROP_FROM and len(open_) > keep:
            rounds = by_round(counted, self.plan.objective, ("screen",))
            means = centred(rounds, (*open_, self.baseline))
            leader = min(means, key=lambda name: means[name])
            lost = holm({name: behind(paired(rounds, leader, name)) for name in open_ if name != leader})
            ranked = self._ranked(open_, counted)
            out = [name for name in ranked[keep:] if name in lost]
            self._drop(out, "behind-leader")
            open_ = tuple(name for name in open_ if name not in out)
        if slot in HALVE_AFTER and len(open_) > keep:
            ranked = self._ranked(open_, counted)
            out = ranked[max(keep, (len(open_) + 1) // 2) :]
            self._drop(out, "slower-half")
            open_ = tuple(name for name in open_ if name not in out)
        return open_

    def _ranked(self, names: Sequence[str], counted: Sequence[Outcome]) -> list[str]:
        """Best first, by round-centred values of the screening; ties in the plan's order."""
        if len(names) <= 1:
            return list(names)
        means = centred(by_round(counted, self.plan.objective, ("screen",)), (*names, self.baseline))
        return sorted(names, key=lambda name: (means[name], self.candidates.index(name)))

    def _drop(self, names: Sequence[str], why: Literal["slower-half", "behind-leader", "not-finalist"]) -> None:
        self.dropped += [Dropped(name, self.slots.get("screen", 0), why) for name in names]

    def _alive(self, names: Sequence[str]) -> tuple[str, ...]:
        if not self.failures and not self.same:
            return tuple(names)
        out = {name for name, _ in self.failures} | self.unlaunched.keys() | self.same.keys()
        return tuple(name for name in names if name not in out)

    def _ruled_out(self, names: Sequence[str]) -> dict[str, str]:
        """What need not be launched, each with the failed candidate that says so."""
        return ruled_out(self.plan.settings, self.failures, names) if self.plan.by_options else {}

    # Rounds

    def _slot(self, phase: SessionPhase, open_: tuple[str, ...], of: int) -> Step | None:
        """Play rounds until one counts; what is left of the current one where it is not complete."""
        for repeat in range(HOT_REPEATS + 1):
            number = self.numbers.get(phase, 0) + 1
            step, used = self._round(phase, number, open_, of, cool_down=repeat > 0)
            if step:
                return step
            self.numbers[phase] = number
            hot = phase != "preflight" and any(one.hot for one in used)
            if hot and repeat < HOT_REPEATS:
                tried = self.tries.get((phase, number), {})
                self.set_aside.update(one.session.seq for tries in tried.values() for one in tries)
                open_ = self._alive(open_)
                continue
            self.slots[phase] = self.slots.get(phase, 0) + 1
            self.counted += used
            if hot:
                self.hot_rounds.append((phase, number))
            present = {one.session.candidate for one in used}
            alive = self._alive(open_)
            if alive or phase == "preflight":
                self.lacking += [(phase, number, name) for name in (self.baseline, *alive) if name not in present]
            break
        return None

    def _round(
        self, phase: SessionPhase, number: int, open_: tuple[str, ...], of: int, *, cool_down: bool
    ) -> tuple[Step | None, list[Outcome]]:
        """The sessions that a round still needs, or, where it needs none, its valid ones."""
        plan, tried = self.plan, self.tries.get((phase, number), {})
        self.same = stand_for(plan, [one for tries in tried.values() for one in tries], self.same)
        order: Sequence[str] = _permutation(plan.seed, phase, number, (self.baseline, *open_))
        if self.same:
            order = [name for name in order if name not in self.same]
            open_ = tuple(name for name in open_ if name not in self.same)
            if phase != "preflight" and not open_:
                return None, []  # the baseline alone would be compared with nothing
        untried = frozenset(name for name in open_ if name not in self.proven)
        finished = [one[0] for name in order if (one := tried.get(name)) and one[0].counts(plan.objective)]
        if len(finished) == len(order):
            self.proven.update(order)
            return None, finished
        if untried:
            order = smallest_first(order, plan.settings, untried)

        again: list[str] = []
        used: list[Outcome] = []
        missing: list[str] = []
        for name in order:
            tries = tried.get(name, [])
            valid = next((one for one in tries if one.counts(plan.objective)), None)
            failure = next((one.failure for one in reversed(tries) if one.failure), None)
            if valid:
                used.append(valid)
            elif name == self.baseline:
                if len(tries) > 1 and failure:
                    return Done(f"The baseline {FAILURE_WORDS[failure]} twice in a row.", complete=False), []
            elif failure and (name in untried or len(tries) > 1):
                self.failures.append((name, failure))
                continue
            if not valid and not tries:
                missing.append(name)
            elif not valid and len(tries) == 1:
                again.append(name)

        beyond = self._ruled_out([name for name in missing if name in untried])
        left = [name for name in missing if name not in beyond] + again
        # A failure reaches all that were never launched, those of later cohorts too.
        waiting = [
            name
            for name in self.candidates
            if name not in self.proven and name not in self.unlaunched and name not in tried
        ]
        self.unlaunched |= self._ruled_out(self._alive(waiting))
        if left:
            sessions = tuple(
                Session(seq=self.seq + place, candidate=name, round=number, phase=phase)
                for place, name in enumerate(left, start=1)
            )
            counted = self.slots.get(phase, 0)
            return Round(phase, number, of, counted, sessions, cool_down and not tried), []
        self.proven.update(one.session.candidate for one in used)
        return None, used
