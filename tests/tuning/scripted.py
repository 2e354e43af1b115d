"""Sessions whose values follow from candidate, phase and round alone, played through the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from chimera.domain.measurement import VoidReason
from chimera.domain.options import Options
from chimera.domain.run import Session, Trial
from chimera.domain.verdict import Metric
from chimera.tuning.plan import Failure, Outcome, Plan
from chimera.tuning.protocol import Round, Step, next_sessions


def trials(candidates: int) -> tuple[Trial, ...]:
    """A baseline c0 and c1, c2, ..., which differ in threads."""
    found = [Trial("c0", "baseline", Options())]
    found += [Trial(f"c{place}", "candidate", Options(num_thread=place)) for place in range(1, candidates + 1)]
    return tuple(found)


def plan(candidates: int = 4, seed: int = 7, **rules: Any) -> Plan:
    """A plan over `trials`."""
    return Plan(trials(candidates), seed, **rules)


@dataclass
class Source:
    """A scripted server."""

    gains: Mapping[str, float] = field(default_factory=dict)
    """True log gain by candidate."""
    noise: float = 0.01
    seed: int = 1
    voids: Callable[[Session, int], VoidReason | None] = lambda session, attempt: None
    """By session and how often its cell was tried before."""
    fails: Callable[[Session, int], Failure | None] = lambda session, attempt: None
    hot: Callable[[Session], bool] = lambda session: False
    same: Mapping[str, str] = field(default_factory=dict)
    """Candidates that run what another one runs, as loading shows: either way round."""

    def finish(self, session: Session, before: Sequence[Outcome]) -> Outcome:
        """What became of a session."""
        cell = (session.phase, session.round, session.candidate)
        tries = [
            one
            for one in before
            if (one.session.phase, one.session.round, one.session.candidate) == cell and not one.interrupted
        ]
        if failure := self.fails(session, len(tries)):
            return Outcome(replace(session, state="void", void_reason="error"), failure=failure)
        if reason := self.voids(session, len(tries)):
            return Outcome(replace(session, state="void", void_reason=reason))
        twin = self._measured_before(session.candidate, before)
        if twin is not None and session.candidate != "c0":
            return Outcome(replace(session, state="void", void_reason="same-settings"), same_as=twin)
        random = Random(f"{self.seed} {cell}")
        cost = -4.6 - self.gains.get(session.candidate, 0.0) + random.gauss(0, self.noise)
        first = -1.2 + random.gauss(0, self.noise)
        costs: dict[Metric, float] = {"decode_tok_s": cost, "ttft_s": first}
        return Outcome(replace(session, state="done"), costs, hot=self.hot(session), same_as=twin)

    def _measured_before(self, candidate: str, before: Sequence[Outcome]) -> str | None:
        """Another candidate with the same settings that was measured, at the first load."""
        measured = {one.session.candidate for one in before if one.session.state == "done"}
        kind = self.same.get(candidate, candidate)
        alike = [name for name in sorted(measured) if self.same.get(name, name) == kind]
        return alike[0] if alike and candidate not in measured else None


def play(rules: Plan, source: Source, outcomes: Sequence[Outcome] = ()) -> tuple[list[Outcome], Step]:
    """Run sessions one by one until nothing is left or something else is needed."""
    found = list(outcomes)
    while isinstance(step := next_sessions(rules, found), Round):
        found.append(source.finish(step.sessions[0], found))
        assert len(found) < 5000
    return found, step


def visits(outcomes: Sequence[Outcome], phase: str) -> dict[int, list[str]]:
    """Candidates of each round of a phase, in the order they were run."""
    found: dict[int, list[str]] = {}
    for one in sorted(outcomes, key=lambda one: one.session.seq):
        if one.session.phase == phase:
            found.setdefault(one.session.round, []).append(one.session.candidate)
    return found
