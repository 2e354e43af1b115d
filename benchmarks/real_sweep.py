"""The whole protocol on the real engine: num_thread 1,2 x kv_cache_type f16,q4_0, confirmed and imported again.

    uv run python benchmarks/real_sweep.py [--output-tokens 32] [--budget 60m]

Prints the plan, the table of candidates, verdicts with their intervals, how wide the plan had said they would be, and
whether the exported data give the same verdicts. About 20 minutes on a calm machine; a busy one is told by its noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def chimera(home: Path, *arguments: str) -> str:
    """The command line with a journal of its own; what it narrates goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "chimera", *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
        env={**os.environ, "CHIMERA_HOME": str(home)},
    )
    return done.stdout


def main() -> int:
    """Measure, print, and return 0 where every promise held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--budget", default="60m", help="longest time; shortens the confirmation")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        began = time.monotonic()
        typed = ("--num-thread", "1,2", "--kv-cache-type", "f16,q4_0", "--output-tokens", str(given.output_tokens))
        more = ("--seed", str(given.seed), "--budget", given.budget)
        chimera(home, "sweep", "--embedded", *typed, *more, "--json")
        print(chimera(home, "attach", "last"))
        facts: dict[str, Any] = json.loads(chimera(home, "attach", "last", "--json"))
        file = home / "exported.csv"
        file.write_text(chimera(home, "runs", "export", "last", "--format", "csv"), encoding="utf-8")
        again: dict[str, Any] = json.loads(chimera(home, "runs", "import", str(file), "--json"))
        minutes = (time.monotonic() - began) / 60
    standing = facts["standing"]
    decided = [row for row in facts["verdicts"] if row["metric"] == "decode_tok_s" and row["n"]]
    print(f"{minutes:.1f} min; planned half width {_share(standing['half_width'])}, smallest gain that is seen "
          f"{_share(standing['smallest_better'])}")  # fmt: skip
    for row in decided:
        half = (row["ci"][1] / row["ci"][0]) ** 0.5 - 1 if row["ci"] else None
        print(f"  {row['candidate']}: {row['verdict']}, {row['n']} rounds, half width {_share(half)}")
    enough = all(row["n"] >= 8 for row in decided)
    words = {row["candidate"]: row["verdict"] for row in decided}
    imported = {row["candidate"]: row["verdict"] for row in again["verdicts"] if row["metric"] == "decode_tok_s"}
    same = all(imported.get(name) == word for name, word in words.items())
    found = any(word in {"better", "worse"} for word in words.values())
    print(f"at least 8 rounds each: {enough}; imported again, the same verdicts: {same}; a difference found: {found}")
    return 0 if enough and same else 1


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    raise SystemExit(main())
