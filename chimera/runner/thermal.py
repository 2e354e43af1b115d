"""The thermal check: a sustained load of given minutes, and what temperature, clocks and rate did under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chimera.diagnosis.thermalcheck import ThermalPoint, assess
from chimera.domain.options import Options
from chimera.domain.readings import Missing, number
from chimera.domain.run import Run, Target, Trial
from chimera.domain.telemetry import GpuInfo, GpuSample
from chimera.domain.workload import Workload
from chimera.errors import ConfigError

from .evidence import Sample, read_samples
from .launch import fresh_seed

if TYPE_CHECKING:
    from chimera.store.journal import Journal

MINUTES = 10.0
"""A desktop card's cooler settles within five to ten."""
LONGEST_MIN = 240.0
_HEAT = ("sw-thermal", "hw-thermal")


def create_thermal(
    journal: Journal,
    target: Target,
    minutes: float = MINUTES,
    options: Options | None = None,
    *,
    seed: int | None = None,
) -> Run:
    """A run that loads the target without a pause for so long, ready for a worker.

    Raises:
        ConfigError: a time that makes no sense.
    """
    if not 0 < minutes <= LONGEST_MIN:
        raise ConfigError(f"--minutes {minutes:g}: takes more than 0, up to {LONGEST_MIN:g}.")
    return journal.create_run(
        "thermal",
        target,
        Workload(prompt_tokens=64, output_tokens=128, requests=1),
        seed=fresh_seed() if seed is None else seed,
        trials=[Trial("c0", "candidate", requested=options or Options())],
        plan={"minutes": minutes, "lenient": []},
    )


def seconds_of(run: Run) -> float | None:
    """How long the run loads its target; None for a run of another kind."""
    return 60.0 * float(run.plan["minutes"]) if run.kind == "thermal" else None


def points_of(samples: Sequence[Sample], began: float, uuid: str | None = None) -> list[ThermalPoint]:
    """The series of one GPU since the load began (wall clock), one point a sample; None = only the rate."""
    points = []
    for sample in samples:
        if sample.at < began:
            continue
        gpu = next((one for one in sample.snapshot.gpus.samples if one.uuid == uuid), None)
        points.append(
            ThermalPoint(
                sample.at - began,
                temperature_c=number(gpu.temperature_c) if gpu is not None else None,
                sm_mhz=number(gpu.sm_mhz) if gpu is not None else None,
                power_w=number(gpu.power_w) if gpu is not None else None,
                throttle_share=_share(gpu) if gpu is not None else None,
                tok_s=sample.tok_s,
            )
        )
    return points


def _share(gpu: GpuSample) -> float | None:
    """Part of the time since the sample before in which heat held clocks down; None where the driver does not tell."""
    if gpu.window_s <= 0 or (isinstance(gpu.reasons, Missing) and not gpu.throttle_s):
        return None
    return max((one.share for one in gpu.throttles if one.reason in _HEAT), default=0.0)


def judge(journal: Journal, run: Run, began: float) -> list[dict[str, Any]]:
    """What the check found, one entry a GPU: `ThermalResult`, with `uuid`, `gpu` and `slowdown_c`; JSON-able.

    Without any GPU there is one entry, which says how the rate held.
    """
    samples = read_samples(journal, run.id, after=began)
    rows = [one.measurement for one in journal.measurements(run.id)]
    rates = [rate for one in rows if one.valid and not one.cold and (rate := one.rate) is not None]
    infos: dict[str, GpuInfo] = {info.uuid: info for one in samples for info in one.snapshot.gpus.infos}
    found = []
    for uuid, info in infos.items():
        slowdown = _slowdown(info, samples)
        result = assess(points_of(samples, began, uuid), slowdown, rates)
        found.append({"uuid": uuid, "gpu": info.name, "slowdown_c": slowdown, **asdict(result)})
    return found or [
        {"uuid": None, "gpu": None, "slowdown_c": None, **asdict(assess(points_of(samples, began), None, rates))}
    ]


def _slowdown(info: GpuInfo, samples: Sequence[Sample]) -> float | None:
    told = number(info.slowdown_c)
    if told is not None:
        return told
    # Later cards tell how far they are from it instead.
    for sample in reversed(samples):
        for gpu in sample.snapshot.gpus.samples:
            heat, margin = number(gpu.temperature_c), number(gpu.margin_c)
            if gpu.uuid == info.uuid and heat is not None and margin is not None:
                return heat + margin
    return None


def results_of(journal: Journal, run: Run) -> list[dict[str, Any]]:
    """What a finished check found; empty where it was not finished."""
    for session in reversed(journal.sessions(run.id)):
        if "thermal" in session.facts:
            return list(session.facts["thermal"])
    return []
