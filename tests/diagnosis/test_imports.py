"""The rules are cheap to import: the screen uses them."""

from __future__ import annotations

import subprocess
import sys


def test_the_rules_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import chimera.diagnosis.rules, chimera.diagnosis.bundle, chimera.diagnosis.guidance\n"
        "import chimera.diagnosis.thermalcheck, chimera.diagnosis.variance\n"
        "heavy = {'numpy', 'scipy', 'pydantic', 'optuna', 'sqlalchemy', 'httpx', 'typer', 'textual', 'rich'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
