"""Settings that do not do what they say: clamped, rounded, ignored; prompts longer than the window."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.options import LOAD_OPTIONS, Options

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Request
from .remedies import window
from .views import focus, layers_in_all, plain, seen

CONTEXT = ("exceed_context", "longer than the context", "exceeds the available context", "context length")
"""How servers say that a prompt is longer than the window."""


def clamped_settings(evidence: EvidenceSet) -> Iterator[Finding]:
    """What runs differs from what was asked for; settings with the same effect are one."""
    asked = evidence.requested or Options()
    runs = evidence.effective.options if evidence.effective is not None else Options()
    sources = evidence.effective.sources if evidence.effective is not None else {}
    causes: list[Cause] = []
    shown: list[Evidence] = []
    small = True
    for name, wanted in asked.as_dict().items():
        got = runs.as_dict().get(name)
        if name not in LOAD_OPTIONS or got is None or got == wanted or wanted in (-1, "auto"):
            continue
        one = seen(
            name,
            got if isinstance(got, str) else float(got),
            threshold=wanted,
            via="read back",
            source=sources.get(name, "derived"),
        )
        which = _why(evidence, name, wanted, got)
        small = small and which == "clamped-settings/round-up"
        shown.append(one)
        causes.append(cause(which, one))
    if asked.num_gpu is not None and evidence.effective is None:
        every = layers_in_all(evidence)
        if every is not None and asked.num_gpu > every:
            one = seen("num_gpu", float(every), threshold=asked.num_gpu, source="derived", via="model")
            shown.append(one)
            causes.append(cause("clamped-settings/num-gpu", one))
            small = False
    for found in _from_log(evidence):
        causes.append(found)
        shown.extend(found.speaks_for)
        small = False
    if (
        asked.num_gpu == -1
        and runs.num_gpu is not None
        and (every := layers_in_all(evidence))
        and runs.num_gpu < every
        and any(each.args.get("-ngl") for each in evidence.engine_starts[-1:])
    ):
        one = seen("num_gpu", float(runs.num_gpu), threshold=-1, via="process arguments")
        shown.append(one)
        causes.append(cause("clamped-settings/auto-keeps-last", one))
        small = False
    batches = {each.args["-b"] for each in evidence.engine_starts if "-b" in each.args}
    windows = {each.args["-c"] for each in evidence.engine_starts if "-c" in each.args}
    if len(batches) > 1 and len(windows) > 1 and asked.num_batch is None:
        one = seen(
            "batch of the engine",
            " / ".join(sorted(plain(each, 12) for each in batches)),
            threshold="one value",
            via="process arguments",
        )
        shown.append(one)
        causes.append(cause("clamped-settings/batch-follows-window", one))
        small = False
    if not causes:
        return
    order = ranked(causes)
    refused = any(each.id == "clamped-settings/kv-needs-flash-attention" for each in order)
    severity: Severity = "error" if refused else "info" if small else "notice"
    first = shown[0]
    names = ", ".join(dict.fromkeys(each.what for each in shown))
    if len(shown) == 1 and first.threshold is not None and first.value is not None:
        got_value = f"{first.value:g}" if isinstance(first.value, float) else str(first.value)
        title = f"{first.what} {first.threshold} runs as {got_value}"
    else:
        title = f"Settings run otherwise than asked for: {names}"
    yield Finding(
        "clamped-settings",
        severity,
        title,
        tuple(shown),
        cause=first_supported(order),
        causes=order,
        remedies=tuple(_settings_remedies(evidence, order)),
    )


def _why(evidence: EvidenceSet, name: str, wanted: int | float | str, got: int | float | str) -> str:
    if name == "num_gpu":
        every = layers_in_all(evidence)
        return "clamped-settings/num-gpu" if every is None or got == every else "clamped-settings/other"
    if name == "num_ctx" and isinstance(wanted, int) and isinstance(got, int):
        model = evidence.model
        if model is not None and model.vision and wanted < 2048 <= got:
            return "clamped-settings/vision-floor"
        if model is not None and model.trained_ctx is not None and wanted > model.trained_ctx >= got:
            return "clamped-settings/trained-context"
        if got == 256 * math.ceil(wanted / 256):
            return "clamped-settings/round-up"
    return "clamped-settings/other"


def _from_log(evidence: EvidenceSet) -> Iterator[Cause]:
    ignored = [each for each in evidence.log if "invalid option provided" in each.text]
    if ignored:
        yield cause("clamped-settings/ignored-option", seen("the server's log", ignored[-1].text, via="server log"))
    if (
        evidence.effective is not None
        and evidence.effective.unread
        and evidence.server is not None
        and evidence.server.kind == "openai"
        and evidence.requested is not None
        and any(name in LOAD_OPTIONS for name in evidence.effective.unread)
    ):
        yield cause(
            "clamped-settings/ignored-option",
            seen(
                "options that /v1 does not take",
                ", ".join(evidence.effective.unread),
                source="derived",
                via="server kind",
            ),
        )
    words = [each.text for each in evidence.log] + [each.text for each in evidence.failures]
    needs = [each for each in words if "requires flash_attn" in each or "requires flash attention" in each.lower()]
    if needs:
        yield cause("clamped-settings/kv-needs-flash-attention", seen("the server said", needs[-1], via="server log"))


def _settings_remedies(evidence: EvidenceSet, causes: tuple[Cause, ...]) -> Iterator[Remedy]:
    every = layers_in_all(evidence)
    for each in causes:
        match each.id:
            case "clamped-settings/num-gpu" if every is not None:
                yield Remedy(f"Every num_gpu from {every} up is the same on this model; sweep 0 to {every} only.")
            case "clamped-settings/vision-floor":
                yield Remedy("Values of num_ctx below 2048 are one setting on this model.")
            case "clamped-settings/trained-context":
                yield Remedy("A window above the trained context is cut; take the trained one or less.")
            case "clamped-settings/batch-follows-window":
                yield Remedy("Set num_batch, so that a sweep of num_ctx changes num_ctx only.", {"num_batch": 512})
            case "clamped-settings/auto-keeps-last":
                yield Remedy("Unload the model, then load it with num_gpu -1.")
            case "clamped-settings/ignored-option":
                yield Remedy("Check the option's name; for /v1 make a derived model with the option as PARAMETER.")
            case "clamped-settings/kv-needs-flash-attention":
                yield Remedy("Switch flash attention on.", {"flash_attention": "on"})
            case _:
                pass


def context_truncation(evidence: EvidenceSet) -> Iterator[Finding]:
    """The prompt, or prompt and answer, did not fit into the window: refused, or cut with status 200."""
    name = focus(evidence)
    counted = [each for each in evidence.requests if each.candidate == name]
    now = window(evidence)
    cut = [each for each in counted if _was_cut(each, now)]
    void = [each for each in counted if each.measurement.void_reason == "truncated" and each not in cut]
    refused = [each for each in evidence.failures if any(word in each.text for word in CONTEXT)]
    told = [
        each
        for each in counted
        if each.measurement.error is not None and any(word in each.measurement.error for word in CONTEXT)
    ]
    lines = [each for each in evidence.log if "truncating input prompt" in each.text]
    if not cut and not void and not refused and not told and not lines:
        return
    shown: list[Evidence] = []
    causes: list[Cause] = []
    needed = 0
    if cut:
        worst = max(cut, key=lambda each: each.tokens_sent or 0)
        needed = (worst.tokens_sent or 0) + (worst.output_tokens or 0)
        evaluated = seen(
            "prompt tokens that the server evaluated",
            float(worst.measurement.prompt_tokens or 0),
            threshold=float(worst.tokens_sent or 0),
            via="server",
        )
        shown.append(evaluated)
        causes.append(cause("context-truncation/silent-cut", evaluated, share=0.9))
    if lines:
        line = seen("the server's log", lines[-1].text, via="server log")
        shown.append(line)
        if not cut:
            causes.append(cause("context-truncation/silent-cut", line, share=0.8))
    if refused or told:
        text = refused[-1].text if refused else told[-1].measurement.error or ""
        asked, limit_ = _told(text)
        # A prompt that is refused needs its own length and the answer's.
        output = max((each.output_tokens or 0 for each in counted), default=0)
        needed = max(needed, asked + output if asked else 0)
        answer = seen("the server said", text, via="server's answer", threshold=f"{limit_} tokens" if limit_ else None)
        shown.append(answer)
        causes.append(cause("context-truncation/refused", answer, share=0.95))
    if void:
        worst = void[-1]
        needed = max(
            needed,
            (worst.tokens_sent or worst.measurement.prompt_tokens or 0)
            + max(worst.output_tokens or 0, worst.measurement.completion_tokens or 0),
        )
        short = seen("answers cut by the window", float(len(void)), threshold=0.0, via="server")
        shown.append(short)
        causes.append(cause("context-truncation/output-cut", short, share=0.7))
    if now is not None:
        shown.append(
            seen("window", float(now), threshold=float(needed) if needed else None, unit="tokens", via="read back")
        )
    order = ranked(causes)
    first = first_supported(order)
    titles = {
        "context-truncation/silent-cut": "The server cut the prompt to its window and answered as if nothing were",
        "context-truncation/refused": "The prompt is longer than the window, and the server refused it",
        "context-truncation/output-cut": "The window ended before the answer did",
    }
    yield Finding(
        "context-truncation",
        "warn",
        titles[first or "context-truncation/output-cut"],
        tuple(shown),
        cause=first,
        causes=order,
        remedies=tuple(_window_remedies(evidence, needed, now)),
    )


def _was_cut(request: Request, now: int | None) -> bool:
    """Clearly fewer tokens were evaluated than sent, and no more than the window holds.

    A template adds tokens and a tokenizer may join some, so a tenth is left for that. Ollama keeps about half a
    window of an over-long prompt.
    """
    sent, evaluated = request.tokens_sent, request.measurement.prompt_tokens
    if not sent or evaluated is None or request.measurement.error is not None:
        return False
    return sent > 32 and evaluated < 0.9 * sent and (now is None or evaluated <= now < 1.1 * sent)


def _told(text: str) -> tuple[int, int]:
    """(prompt tokens, window) that a refusal names; zeros where it does not. Ollama wraps JSON in a string twice."""
    body: object = text
    for _ in range(4):
        if isinstance(body, str):
            start = body.find("{")
            try:
                body = json.loads(body[start:]) if start >= 0 else None
            except (ValueError, RecursionError):
                return 0, 0
        if not isinstance(body, dict):
            return 0, 0
        tokens, size = body.get("n_prompt_tokens"), body.get("n_ctx")
        if isinstance(tokens, int) and isinstance(size, int) and 0 < tokens < 10**9 and 0 < size < 10**9:
            return tokens, size
        body = body.get("error")
    return 0, 0


def _window_remedies(evidence: EvidenceSet, needed: int, now: int | None) -> Iterator[Remedy]:
    trained = evidence.model.trained_ctx if evidence.model is not None else None
    wanted = 256 * math.ceil(needed / 256) if needed else 2 * now if now else 0
    if wanted and trained is not None and wanted > trained:
        if now is not None and now < trained:
            yield Remedy(f"The largest window of this model is {trained} tokens.", {"num_ctx": trained})
        yield Remedy(f"Shorten the prompt: this model was trained for {trained} tokens.")
    elif wanted and (now is None or wanted > now):
        yield Remedy(f"A window of {wanted} tokens holds prompt and answer.", {"num_ctx": wanted})
    if evidence.server is not None and evidence.server.kind == "ollama":
        yield Remedy("`truncate: false` in the request makes Ollama say so instead of cutting.")
    yield Remedy("A shorter prompt or history.")


RULES = (clamped_settings, context_truncation)
