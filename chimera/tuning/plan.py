"""What is to be compared, by which rules, and what one finished session gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from chimera.domain.options import Options
from chimera.domain.run import Session, SessionPhase, Trial
from chimera.domain.server import Effective
from chimera.domain.verdict import Metric
from chimera.errors import ConfigError

FULL_GRID = 24
"""Most effective candidates that are all visited; a larger space is searched in cohorts."""
COHORT = 8
"""Candidates that are proposed and screened together in a larger space."""
CONFIRM_MIN, CONFIRM_MAX = 8, 32
"""Fewest and most rounds that a confirmation is given."""
CONFIRM_UNPLANNED = 20
"""Rounds of a confirmation whose noise nobody measured: a true +5 % at 2 % noise is found in 0.98 of studies."""
HALVE_AFTER = (3, 6)
"""Screening rounds after which the better half stays."""
DROP_FROM = 5
"""First screening round after which a candidate that is clearly behind the leader may be dropped."""
CONFIRM_TOGETHER = 4
"""A sweep of no more candidates than this confirms all of them: screening them would cost as much."""

Failure = Literal["out-of-memory", "load-failed", "crash", "timeout", "refused"]
"""How a configuration can fail as a whole; a result, not an accident."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison of candidates with a baseline, fixed before it starts."""

    trials: tuple[Trial, ...]
    """The baseline and the candidates, already merged where the effect is the same."""
    seed: int
    """Every order of every round follows from it."""
    objective: Metric = "decode_tok_s"
    """Decides which candidates stay, and for how many rounds."""
    metrics: tuple[Metric, ...] = ("decode_tok_s", "ttft_s")
    """Get a verdict each; the objective always does."""
    band: float = 0.02
    """Differences within this share of the baseline are no practical difference."""
    preflight: int = 6
    """Sessions of the baseline before everything else, for the noise; 0 = none."""
    screen_rounds: int = 6
    """Rounds that choose; without confirmation, the rounds that everything rests on."""
    confirm: bool = True
    """Judge by fresh rounds of the best ones, none of which took part in the choice."""
    confirmed: int = 2
    """Candidates that are confirmed together; as many or fewer skip the screening."""
    confirm_rounds: int | None = None
    """None: from the preflight's noise."""
    confirm_max: int = CONFIRM_MAX
    """Most rounds that the preflight may ask for; a time budget lowers it."""
    target: float = 0.05
    """A true gain of this size is to be found in 95 % of studies, as far as the rounds reach."""
    one_load: bool = False
    """Candidates differ in sampling options only: sessions are blocks of requests inside one load."""
    by_options: bool = True
    """Candidates differ in their options only, so that one that fails rules out those that need as much memory."""
    cohorts: tuple[tuple[str, ...], ...] = ()
    """Candidates in the groups in which they were proposed; empty: all of them are one group."""
    cohorts_planned: int = 0
    """Groups that will be proposed in all; 0 = the candidates are all there. A space that is used up lowers it."""

    def __post_init__(self) -> None:
        names = [trial.candidate for trial in self.trials]
        if len(set(names)) != len(names):
            raise ConfigError(f"A plan names a candidate twice: {', '.join(names)}. Give each one name.")
        if sum(trial.role == "baseline" for trial in self.trials) != 1:
            raise ConfigError("A plan needs exactly one baseline to compare with.")
        if not 0 < self.band < 0.5:
            raise ConfigError(f"The band is {self.band:g}; give a share between 0 and 0.5, such as 0.02.")
        if self.target <= self.band:
            raise ConfigError(
                f"The band is {self.band:.1%}, and a gain of {self.target:.1%} is to be found: give a smaller band."
            )
        for name in ("screen_rounds", "confirmed", "confirm_max"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more.")
        if self.preflight < 0 or (self.confirm_rounds is not None and self.confirm_rounds < 1):
            raise ConfigError("Rounds and sessions are counted from 1; the preflight alone may be 0.")
        grouped = [name for group in self.cohorts for name in group]
        if self.cohorts and sorted(grouped) != sorted(self.candidates):
            raise ConfigError("The cohorts of a plan must hold each of its candidates once, and nothing else.")

    @property
    def baseline(self) -> str:
        """The control: in every round, never dropped."""
        return next(trial.candidate for trial in self.trials if trial.role == "baseline")

    @property
    def candidates(self) -> tuple[str, ...]:
        """Everything that is compared with the baseline, in the plan's order."""
        return tuple(trial.candidate for trial in self.trials if trial.role != "baseline")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Candidates by cohort; one group where the plan has none."""
        return self.cohorts or ((self.candidates,) if self.candidates else ())

    @property
    def screens(self) -> bool:
        """Some rounds choose, or everything rests on them; a few candidates are confirmed at once instead."""
        return not self.confirm or self.cohorts_planned > 0 or len(self.candidates) > self.confirmed

    @property
    def settings(self) -> dict[str, Options]:
        """What each one runs with: its effective options where they were known at planning, else the requested."""
        return {trial.candidate: trial.effective or trial.requested for trial in self.trials}

    def without(self, names: Collection[str]) -> Plan:
        """The plan as it is without these candidates."""
        if not names:
            return self
        return replace(
            self,
            trials=tuple(trial for trial in self.trials if trial.candidate not in names),
            cohorts=tuple(tuple(name for name in group if name not in names) for group in self.cohorts),
        )

    def as_dict(self) -> dict[str, Any]:
        """The rules without trials and seed, for the journal; `Plan.of` is the inverse."""
        return {
            item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name not in ("trials", "seed")
        }

    @classmethod
    def of(cls, trials: Sequence[Trial], seed: int, rules: Mapping[str, Any]) -> Plan:
        """A plan from its trials, its seed and what `as_dict` gave; keys that are no rule are left out."""
        known = {item.name: rules[item.name] for item in fields(cls) if item.name in rules}
        known.pop("trials", None)
        known.pop("seed", None)
        if "metrics" in known:
            known["metrics"] = tuple(known["metrics"])
        if "cohorts" in known:
            known["cohorts"] = tuple(tuple(group) for group in known["cohorts"])
        return cls(trials=tuple(trials), seed=seed, **known)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished session, as far as decisions need it."""

    session: Session
    """`done` or `void`."""
    costs: Mapping[Metric, float] = field(default_factory=dict)
    """Natural logarithm of the cost in each metric that is known; less is better, the decode rate by its inverse."""
    failure: Failure | None = None
    """The configuration failed as a whole; the session is then void."""
    hot: bool = False
    """It throttled, or started too warm: see `protocol.started_hot`."""
    same_as: str | None = None
    """A candidate that was measured before and runs the same settings, by what was read back after both loads."""

    @property
    def interrupted(self) -> bool:
        """The worker was stopped or killed inside it; it says nothing about the candidate."""
        return self.session.state == "void" and self.session.void_reason == "interrupted"

    def counts(self, metric: Metric) -> bool:
        """It was valid and has a value in this metric."""
        return self.session.state == "done" and self.failure is None and metric in self.costs


def confirmed_together(candidates: int) -> int:
    """How many candidates a sweep confirms: all of a few, so that each gets a full verdict, else the best two."""
    return candidates if 0 < candidates <= CONFIRM_TOGETHER else 2


def share_one_load(trials: Sequence[Trial]) -> bool:
    """Whether they differ in sampling options only, so that a server need not reload between them."""
    return len({(trial.effective or trial.requested).load for trial in trials}) <= 1


def same_configuration(requested: Options, runs: Effective, other_requested: Options, other: Effective) -> bool:
    """Whether two configurations turned out to be one, by what was read back when each was loaded.

    All that is known to run must be equal, and where they asked for different things both must be known. A guess
    (`estimated`) proves nothing, and sampling options, which no load makes effective, are compared as asked for.
    """
    if requested.sampling != other_requested.sampling or runs.options.load != other.options.load:
        return False
    asked, others, known = requested.load.as_dict(), other_requested.load.as_dict(), runs.options.as_dict()
    return all(
        asked.get(name) == others.get(name)
        or (name in known and {runs.sources.get(name), other.sources.get(name)} <= _KNOWN)
        for name in asked.keys() | others.keys()
    )


_KNOWN = frozenset({"measured", "derived"})


def by_round(
    outcomes: Sequence[Outcome], metric: Metric, phases: tuple[SessionPhase, ...]
) -> dict[int, dict[str, float]]:
    """Log costs of valid sessions by round and candidate, in rising order whatever order they arrived in."""
    table: dict[int, dict[str, float]] = {}
    chosen = [one for one in outcomes if one.session.phase in phases and one.counts(metric)]
    for one in sorted(chosen, key=lambda one: (one.session.round, one.session.candidate, one.session.seq)):
        table.setdefault(one.session.round, {})[one.session.candidate] = one.costs[metric]
    return table


def _plain(value: object) -> object:
    """Tuples as lists, as JSON gives them back."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
