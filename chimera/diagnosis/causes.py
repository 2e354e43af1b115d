"""The causes that rules may name: stable ids under their family's code, with their titles."""

from __future__ import annotations

from collections.abc import Iterable

from chimera.domain.finding import Cause, Evidence

CAUSES: dict[str, str] = {
    # low throughput
    "low-throughput/cpu-offload": "layers run on the CPU and the GPU waits for them",
    "low-throughput/foreign-load": "something else uses the same cores or GPU",
    "low-throughput/throttling": "the GPU lowers its clocks because of heat or power",
    "low-throughput/low-clocks": "the GPU does not clock up under load",
    "low-throughput/long-context": "attention reads more used context with every token",
    "low-throughput/threads": "too many CPU threads for the cores that there are",
    "low-throughput/kv-quantised": "a quantised KV cache costs speed on a CPU or an old card",
    "low-throughput/pcie": "the model is split over a narrow link",
    "low-throughput/server-regression": "the server, the driver or the model changed since",
    "low-throughput/memory-pressure": "the machine runs out of memory and swaps",
    "low-throughput/power-saving": "the machine saves power",
    "low-throughput/background-class": "Windows runs the server as a background process",
    # time to first token
    "high-ttft/reload-thrash": "the model is loaded again and again",
    "high-ttft/cold-load": "the model had to be loaded first",
    "high-ttft/queueing": "the request waited for a free slot",
    "high-ttft/long-prompt": "a long prompt takes its time",
    "high-ttft/no-prefix-reuse": "the conversation's beginning is computed anew each turn",
    "high-ttft/thinking": "the model thinks before it answers",
    "high-ttft/not-streaming": "the answer comes in one piece",
    "high-ttft/slow-prefill": "the prompt is read slowly: the GPU is not used, or the cores are shared",
    "high-ttft/overhead": "time that no part accounts for: connection, proxy, template",
    # memory
    "vram-exhaustion/explicit-layers": "an explicit num_gpu switches automatic fitting off",
    "vram-exhaustion/window": "the KV cache of the window, over all slots, is too large",
    "vram-exhaustion/weights": "the weights alone are too large",
    "vram-exhaustion/other-processes": "other programs hold GPU memory",
    "vram-exhaustion/two-servers": "two servers share a GPU and do not know of each other",
    "vram-exhaustion/estimate": "the estimate was lower than the real buffers",
    "vram-exhaustion/system-memory": "the driver spills GPU memory into system memory",
    "vram-exhaustion/context-collapse": "decode collapses as the context grows: the KV cache spills",
    "vram-exhaustion/made-room": "the scheduler threw out a model or shrank the window to make room",
    "vram-exhaustion/accounting": "the server and the driver count different things",
    "cpu-offload/not-enough-memory": "the model did not fit whole",
    "cpu-offload/layers-asked": "fewer layers were asked for than the model has",
    "cpu-offload/layers-are-not-gpus": "num_gpu counts layers, not GPUs",
    # loads
    "cold-load/keep-alive": "the server unloads the model after a pause",
    "cold-load/first-load": "the first request after a start loads the model",
    "cold-load/disk": "loading depends on whether the file is cached in memory",
    "reload-thrash/other-options": "clients ask for different load options in turn",
    "reload-thrash/own-options": "our own requests ask for different load options in turn",
    "reload-thrash/eviction": "models throw each other out of memory",
    "reload-thrash/crash": "the engine crashes and is started again",
    # queue and cache
    "queueing/slots": "more clients than slots",
    "queueing/server-busy": "the server's queue is full",
    "queueing/foreign-client": "another client's request was served first",
    "queueing/unfair": "agents that ask for the same get unequal shares",
    "prompt-cache-hit/fixed-prompt": "the same prompt is sent each time, on purpose",
    "prompt-cache-hit/shared-prefix": "prompts share their beginning",
    # settings
    "context-truncation/silent-cut": "the server cut the prompt without saying so",
    "context-truncation/refused": "the prompt is longer than the window",
    "context-truncation/output-cut": "prompt and answer together are longer than the window",
    "clamped-settings/num-gpu": "num_gpu counts layers and is clamped to all of them",
    "clamped-settings/vision-floor": "models that see run with at least 2048 tokens of window",
    "clamped-settings/trained-context": "the window is cut to what the model was trained for",
    "clamped-settings/round-up": "the window is rounded up",
    "clamped-settings/batch-follows-window": "the batch follows the window when it is not set",
    "clamped-settings/auto-keeps-last": "num_gpu -1 keeps what the last explicit value loaded",
    "clamped-settings/ignored-option": "the server ignores an option",
    "clamped-settings/kv-needs-flash-attention": "a quantised V cache needs flash attention",
    "clamped-settings/other": "the server runs another value than was asked for",
    # consistency
    "inconsistent-performance/reloads": "cold calls and reloads among warm ones",
    "inconsistent-performance/cache-hits": "some prompts were answered from the prompt cache",
    "inconsistent-performance/output-length": "answers differ in length",
    "inconsistent-performance/prompt-length": "prompts differ in length",
    "inconsistent-performance/queueing": "some requests waited for others",
    "inconsistent-performance/foreign-load": "something else used the machine now and then",
    "inconsistent-performance/clocks": "clocks moved, with heat or power",
    "inconsistent-performance/drift": "it drifts over the series",
    "inconsistent-performance/noise": "plain scatter without a pattern",
    "inconsistent-performance/unexplained": "a part that no evidence explains",
    "inconsistent-performance/bimodal": "two groups of values, not one",
    "inconsistent-performance/failures": "requests failed, timed out or came back empty",
    "inconsistent-performance/crash": "the engine crashed in between",
    "measurement-noise/short-output": "answers are too short to give a rate",
    "measurement-noise/length": "answers are not of the length that was asked for",
    "measurement-noise/scatter": "rates scatter without a pattern",
    "measurement-noise/busy-machine": "the machine does other work meanwhile",
    # GPU
    "thermal-throttling/software": "the driver lowers clocks to keep below the highest temperature",
    "thermal-throttling/hardware": "the hardware halves clocks because of heat",
    "thermal-throttling/memory-heat": "the GPU's memory is hot while its core is cool",
    "thermal-throttling/falling-clock": "hot, and clocks fall; the driver gives no reason",
    "power-throttling/cap": "the card runs at its power limit",
    "power-throttling/power-brake": "the power supply asks the card to slow down",
    "power-throttling/hardware-slowdown": "the hardware cut clocks in a hurry",
    "low-clocks/stuck": "the GPU is stuck in a low performance state",
    "low-clocks/locked": "someone locked the clocks",
    "low-clocks/vgpu-licence": "a virtual GPU without a licence is slowed down",
    "low-clocks/held-by-others": "the GPU is held to the clocks of a group or a display",
    "gpu-lost/fallen-off-bus": "the GPU has fallen off the bus",
    "gpu-lost/reset-required": "the GPU must be reset",
    "gpu-lost/application-fault": "a program's fault on the GPU",
    "gpu-lost/memory-errors": "the GPU's memory has errors",
    "gpu-lost/suspend": "the GPU's memory module was lost in suspend",
    "gpu-lost/container": "the container lost its GPU",
    "gpu-lost/unknown": "the GPU went away; the driver gives no reason",
    "gpu-unused/not-found": "the server does not find the GPU",
    "gpu-unused/container": "the container was started without the GPU",
    "gpu-unused/suspend": "the machine slept, and its GPU's memory module may be lost since",
    "gpu-unused/cpu-build": "this engine was built for the CPU",
    "driver-mismatch/updated-under-kernel": "the driver was updated under a running kernel module",
    "pcie-bottleneck/needless-split": "the model is spread over GPUs although one would hold it",
    "pcie-bottleneck/narrow-link": "the link runs narrower than it could, and it is used",
    "pcie-bottleneck/spill-traffic": "weights or KV cache cross the link with every token",
    # load by others
    "foreign-load/cpu": "other programs use the CPU",
    "foreign-load/gpu": "other programs compute on the GPU",
    "foreign-load/client": "another client uses the server",
    "foreign-load/shared-batch": "another client's long prompt shares the batch and stops the stream",
    "foreign-load/steal": "the hypervisor gives the CPU to another guest",
    "foreign-load/memory": "the machine is short of memory",
    "foreign-load/threads": "threads wait for one that other work keeps from running",
    # history
    "server-regression/version": "the server's version changed",
    "server-regression/driver": "the GPU's driver changed",
    "server-regression/model": "the model's file changed under its name",
    "server-regression/settings": "effective settings changed",
}


def cause(
    cause_id: str,
    *speaks_for: Evidence | None,
    against: Iterable[Evidence | None] = (),
    share: float | None = None,
    check: str = "",
) -> Cause:
    """A cause of the table with its evidence; evidence that is None was not to be had and is left out."""
    return Cause(
        id=cause_id,
        title=CAUSES[cause_id],
        speaks_for=tuple(each for each in speaks_for if each is not None),
        speaks_against=tuple(each for each in against if each is not None),
        share=None if share is None else min(1.0, max(0.0, share)),
        check=check,
    )


def ranked(causes: Iterable[Cause | None]) -> tuple[Cause, ...]:
    """The best supported first: with evidence before without, then by share, then by what speaks for it."""
    known = [each for each in causes if each is not None]
    return tuple(
        sorted(
            known,
            key=lambda each: (
                not each.speaks_for,
                -(each.share if each.share is not None else 0.25),
                len(each.speaks_against) - len(each.speaks_for),
            ),
        )
    )


def first_supported(causes: tuple[Cause, ...]) -> str | None:
    """Id of the first cause that something speaks for."""
    return next((each.id for each in causes if each.speaks_for), None)
