"""Resolve the dependencies anew and write the pins to constraints.txt and pyproject.toml.

A lock file of uv names a package registry on every line and would tie the project to it,
so the pins are kept as plain constraints, which both uv and pip read.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints.txt"
PROJECT = ROOT / "pyproject.toml"
COMPILE = (
    "uv", "pip", "compile", "--upgrade", "pyproject.toml", "--group", "dev", "--all-extras", "--universal",
    "--no-annotate", "--no-emit-index-url", "--no-header", "--quiet", "-o", str(PINS),
)  # fmt: skip


def main() -> None:
    """Write both files."""
    text = PROJECT.read_text(encoding="utf-8")
    without = re.sub(r"constraint-dependencies = \[[^]]*\]", "constraint-dependencies = []", text)
    PROJECT.write_text(without, encoding="utf-8")  # else the old pins would bind the new ones
    subprocess.run(COMPILE, cwd=ROOT, check=True)
    pins = PINS.read_text(encoding="utf-8").splitlines()
    listed = "".join(f'    "{pin}",\n' for pin in pins)
    PROJECT.write_text(
        without.replace("constraint-dependencies = []", f"constraint-dependencies = [\n{listed}]"),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
