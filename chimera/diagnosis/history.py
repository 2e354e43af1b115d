"""Against earlier runs: a baseline that fell after version, driver, model file or settings changed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from chimera.domain.finding import Evidence, Finding, Remedy
from chimera.domain.options import Options

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, PastRun
from .load import on_cpu
from .thermal import thermal_throttling
from .thresholds import limit
from .views import (
    duration,
    foreign_share,
    measured,
    options_in_force,
    percent,
    plain,
    same_model,
    seen,
    steady_rates,
)


def _past(evidence: EvidenceSet) -> list[PastRun]:
    """Earlier runs of a model of this name, with a rate, and prompts of about this length."""
    name = evidence.model.name if evidence.model is not None else None
    if name is None:
        return []
    tokens = [each.measurement.prompt_tokens for each in measured(evidence) if each.measurement.prompt_tokens]
    return [
        each
        for each in evidence.history
        if each.model is not None
        and same_model(each.model, name)
        and each.decode_tok_s
        and (not tokens or not each.prompt_tokens or 0.5 <= median(tokens) / each.prompt_tokens <= 2)
    ]


def changes_since(evidence: EvidenceSet) -> list[tuple[str, str, str]]:
    """(what, before, now) of everything that differs from the newest earlier run; only what is known of both."""
    past = _past(evidence)
    return _changes(evidence, past[-1]) if past else []


def _changes(evidence: EvidenceSet, last: PastRun) -> list[tuple[str, str, str]]:
    now = {
        "version": evidence.server.version if evidence.server is not None else None,
        "driver": evidence.driver,
        "model": evidence.model.digest if evidence.model is not None else None,
    }
    before = {"version": last.version, "driver": last.driver, "model": last.digest}
    found = [
        (what, plain(old, 40), plain(new, 40))
        for what in now
        if (old := before[what]) is not None and (new := now[what]) is not None and old != new
    ]
    if last.options is not None and (evidence.effective is not None or evidence.requested is not None):
        ours = options_in_force(evidence)
        known = {name for name in last.options.as_dict() if name in ours.as_dict()}
        old_options, new_options = last.options.only(frozenset(known)), ours.only(frozenset(known))
        if old_options.load != new_options.load:
            names = {n for n, v in old_options.load.as_dict().items() if new_options.as_dict().get(n) != v}
            found.append(
                (
                    "settings",
                    str(Options.of(old_options.as_dict()).only(frozenset(names))),
                    str(new_options.only(frozenset(names))),
                )
            )
    return found


def _rivals(evidence: EvidenceSet) -> list[Evidence]:
    """What slows the present down by itself, so that a fall proves little against what changed."""
    found = [each.evidence[0] for each in thermal_throttling(evidence) if each.severity in {"warn", "error"}]
    others = foreign_share(evidence) if on_cpu(evidence) else []
    if others and (share := fmean(value for _, value in others)) >= limit("foreign-cpu-heavy"):
        found.append(
            seen(
                "CPU used by other programs",
                share,
                over="foreign-cpu-heavy",
                unit="% of all cores",
                via="processes of this host",
                series=others,
            )
        )
    return found


def server_regression(evidence: EvidenceSet) -> Iterator[Finding]:
    """The baseline is 15 % and more below earlier runs, and something changed since the last good one."""
    pairs = steady_rates(evidence)
    if len(pairs) < limit("history-n"):
        return
    now = median(rate for _, rate in pairs)
    good = [
        each
        for each in _past(evidence)
        if each.decode_tok_s is not None
        and now < (1 - max(limit("rate-drop"), 3 * min(each.cv or 0.0, 0.2))) * each.decode_tok_s
    ]
    past = _past(evidence)
    if not good or not past:
        return
    # One lucky run long ago is no baseline: the typical earlier run must have been better, and the last good one is
    # what the present is compared with.
    typical = median(each.decode_tok_s or 0.0 for each in past[-10:])
    last = good[-1]
    reference = last.decode_tok_s or typical
    recent_slow = [each for each in past if each.at > last.at]
    if now >= (1 - limit("rate-drop")) * typical and not recent_slow:
        return
    changed = _changes(evidence, last)
    if not changed:
        return
    shown = seen(
        "decode rate",
        now,
        threshold=(1 - limit("rate-drop")) * reference,
        unit="tok/s",
        via=f"journal, run {plain(last.run, 20)}",
        window_s=duration([each for each, _ in pairs]),
        series=[(each.at, each.decode_tok_s) for each in past if each.decode_tok_s],
    )
    rivals = _rivals(evidence)
    calm = "Something else slows it down now (see the other findings): measure again when that is over."
    several = "Several things changed: put them back one at a time and measure."
    names = {"version": "server version", "driver": "GPU driver", "model": "model file", "settings": "settings"}
    causes = ranked(
        cause(
            f"server-regression/{what}",
            seen(f"{names[what]} now", new, threshold=old, via="journal"),
            against=rivals,
            share={"settings": 0.9, "model": 0.8, "version": 0.7, "driver": 0.6}[what] / len(changed),
            check=calm if rivals else several if len(changed) > 1 else "",
        )
        for what, old, new in changed
    )
    first = first_supported(causes)
    cures = {
        "version": "Go back to the version before, or report it with the evidence bundle.",
        "driver": "Go back to the driver before, and measure again.",
        "model": "The file behind the name changed: compare quantisation and size, or load the former one.",
        "settings": "Take the settings of the earlier run and measure again.",
    }
    remedies = []
    for what, _, _ in changed:
        force = None
        if what == "settings" and last.options is not None:
            ours = options_in_force(evidence).as_dict()
            force = {n: v for n, v in last.options.load.as_dict().items() if n in ours and ours[n] != v} or None
        remedies.append(Remedy(cures[what], force))
    yield Finding(
        "server-regression",
        "notice" if rivals else "warn",
        f"The rate fell by {percent(1 - now / reference)} after the {' and the '.join(names[w] for w, _, _ in changed)}"
        f" changed{', and something else slows it down now' if rivals else ''}",
        (shown, *(each for one in causes for each in one.speaks_for)),
        cause=first,
        causes=causes,
        remedies=tuple(remedies),
        since=last.at,
    )


RULES = (server_regression,)
