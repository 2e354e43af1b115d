"""The program of the embedded engine's process: one llama.cpp server with one configuration.

`python embedded_child.py CONFIG` with CONFIG as JSON. It prints one line of JSON when it is ready, logs to its standard
error, and ends when its standard input closes: when it is told to, or when its parent died. It imports nothing of
Chimera, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def parameters(config: dict[str, Any]) -> Any:
    """llama.cpp's parameters for a configuration; what it does not name keeps the server's default."""
    import xllamacpp as x

    p = x.CommonParams()
    p.model.path = config["model"]
    p.hostnames = ["127.0.0.1"]
    p.port = 0  # a free one
    p.endpoint_metrics = p.endpoint_slots = True
    p.cache_ram_mib = 0  # a prompt that was seen before must not come back from a cache
    p.verbosity = 4  # the level at which llama.cpp says what it really runs
    p.ui = False
    p.n_parallel = config.get("num_parallel", 1)
    p.n_ctx = config["num_ctx"] * p.n_parallel  # llama.cpp splits the context over its slots
    if "num_gpu" in config:
        p.n_gpu_layers = config["num_gpu"]
    if "num_batch" in config:
        p.n_batch = p.n_ubatch = config["num_batch"]
    if "num_thread" in config:
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = config["num_thread"]
    if "flash_attention" in config:
        word = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[config["flash_attention"]]
        p.flash_attn_type = getattr(x.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{word}")
    if "kv_cache_type" in config:
        p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, f"GGML_TYPE_{config['kv_cache_type'].upper()}")
    return p


def gpus() -> list[dict[str, Any]]:
    """The GPUs that this build of llama.cpp can use."""
    import xllamacpp as x

    kind = x.ggml_backend_dev_type
    kinds = {kind.GGML_BACKEND_DEVICE_TYPE_GPU, kind.GGML_BACKEND_DEVICE_TYPE_IGPU}
    return [
        {"name": device["name"], "description": device["description"]}
        for device in x.get_device_info()
        if device["type"] in kinds
    ]


def available_bytes() -> int | None:
    """Main memory that could be had now, where Linux tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - no pathlib here: a fast start
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def main() -> int:
    """Run the server until standard input closes; returns only where it could not start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us in order
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints must not mix with our one line
    import xllamacpp as x

    config = json.loads(sys.argv[1])
    needed, free = config.get("host_bytes"), available_bytes()
    if needed and free and needed > free and not gpus():
        # Without this the system would kill this process, or another one, in the middle of the load.
        print(f"E not enough memory: {needed >> 20} MiB are needed, {free >> 20} MiB are free", file=sys.stderr)
        return 1
    try:
        server = x.Server(parameters(config))  # returns when the model is loaded
    except RuntimeError as error:
        print(f"E {error}", file=sys.stderr)
        return 1
    answer.write(json.dumps({"url": server.listening_address, "gpus": gpus()}) + "\n")
    answer.close()
    while os.read(0, 65536):
        pass
    # Not through the server's own end: where that comes right after its start, it waits for ever for a loop that has
    # not begun (8 of 24 starts on a busy machine).
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
