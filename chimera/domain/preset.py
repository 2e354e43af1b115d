"""A named configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from .options import Options
from .workload import Workload


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the preset's author expects, as ranges; None where nothing is said. Shown beside what was measured."""

    decode_tok_s: tuple[float | None, float | None] | None = None
    ttft_s: tuple[float | None, float | None] | None = None
    vram_gb: tuple[float | None, float | None] | None = None
    efficiency: float | None = None
    """Of N agents against one, 1.0 = N times the work; by the guide's own formula."""
    measured_on: str = ""
    """Model and card for which the figures were given."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A named configuration with its story."""

    name: str
    """Stable and kebab-case; what is typed on the command line."""
    title: str
    options: Options
    digit: int | None = None
    """The key that runs it: 1-5 for the guide's, 6-9 for the user's."""
    workload: Workload = field(default_factory=Workload)
    strategy: str = ""
    """The guide's strategy that it belongs to."""
    use_case: str = ""
    requirements: tuple[str, ...] = ()
    expects: Expectation = field(default_factory=Expectation)
    note: str = ""
    """What is known of it, from measurement and source."""
    origin: str = ""
    """`guide`, or the file that it came from."""
