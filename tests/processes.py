"""Processes that a test waits for."""

from __future__ import annotations

import time

import psutil


def gone(pid: int, within_s: float = 8.0) -> bool:
    """Whether the process has ended, or does so in this time."""
    deadline = time.perf_counter() + within_s
    while time.perf_counter() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:  # also between finding it and asking it
            return True
        time.sleep(0.02)
    return False
