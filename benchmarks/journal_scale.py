"""How long the Runs page takes on a journal of 10,000 runs with 1,000,000 measurements.

`python benchmarks/journal_scale.py` fills a journal in a temporary folder, opens it in a fresh process and prints one
line a question: the first answer after opening, the median and the worst of 20. Then the same with the screen itself:
from the key to the rows on it. Budget of the design: 100 ms each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

BUDGET_MS = 100.0
MODELS = ("gemma3:270m", "gemma3:4b", "qwen3:8b", "llama3.1:8b", "mistral:7b")
SESSIONS = 10
REPEATS = 20


def fill(folder: Path, runs: int, measurements: int) -> None:
    """Write the journal: sweeps of two candidates, ten sessions each."""
    from sqlalchemy import insert

    from chimera.domain.measurement import Measurement
    from chimera.domain.options import Options
    from chimera.domain.run import Target
    from chimera.domain.server import ModelInfo, ServerInfo
    from chimera.domain.workload import Workload
    from chimera.store import schema
    from chimera.store.journal import Journal, new_id

    chance = random.Random(1)
    ids: set[str] = set()
    while len(ids) < runs:
        ids.add(new_id(4, chance.choice))
    each = max(1, measurements // runs // SESSIONS)
    plan = {"axes": {"num_gpu": [0, 9, 18], "num_ctx": [2048, 4096]}, "rounds": 8, "band": 0.02, "order_seed": 7}
    host = {"cpu": "Some Processor 9000", "cores": 16, "memory_bytes": 68719476736, "os": "Linux 6.12"}
    with Journal.open(f"sqlite:///{folder}/chimera.db") as journal, journal._writing() as connection:
        for seq, run_id in enumerate(sorted(ids, key=lambda _: chance.random()), 1):
            model = MODELS[0] if seq % 1000 == 0 else chance.choice(MODELS[1:])
            at = 1_700_000_000.0 + 600.0 * seq
            connection.execute(
                insert(schema.run).values(
                    seq=seq, id=run_id, kind="sweep", state="done", state_at=at, created_at=at, started_at=at,
                    ended_at=at + 500, name=f"night {seq}" if seq % 50 == 0 else None, model=model, seed=7,
                    target=asdict(Target("ollama", "http://127.0.0.1:11434", model)), workload=asdict(Workload()),
                    plan=plan, server=asdict(ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0")),
                    model_info=asdict(ModelInfo(model, "sha256:0", "Q4_K_M", "gemma3", 34, 131072)), host=host,
                    gpus=[{"uuid": "GPU-0", "name": "Some Card", "vram_bytes": 25769803776}],
                )
            )  # fmt: skip
            connection.execute(
                insert(schema.trial),
                [
                    {
                        "run": seq, "candidate": f"c{number}", "place": number, "role": "candidate", "merged": [],
                        "requested": Options(num_gpu=18 * number).as_dict(), "notes": [], "effective": None,
                    }
                    for number in range(2)
                ],
            )  # fmt: skip
            connection.execute(
                insert(schema.session),
                [
                    {
                        "run": seq, "seq": number, "candidate": f"c{number % 2}", "round": number // 2 + 1,
                        "phase": "measure", "state": "done", "void_reason": None, "started_at": at, "ended_at": at,
                        "facts": {"load_s": 1.2, "energy_j": 512.5, "vram_peak_bytes": 4 * 10**9},
                    }
                    for number in range(1, SESSIONS + 1)
                ],
            )  # fmt: skip
            connection.execute(
                insert(schema.measurement),
                [
                    {"run": seq, "session": session}
                    | asdict(
                        Measurement(
                            "measure", at, 0.9, 0.2, 0.0, 0.0, 0.2, 0.7, 0.0, "server", 64, 0, 64,
                            decode_tok_s=chance.gauss(100, 2), client_decode_tok_s=chance.gauss(100, 2),
                            itl_p50_s=0.01, itl_p95_s=0.012, itl_max_s=0.03, finish_reason="length",
                        )
                    )
                    for session in range(1, SESSIONS + 1)
                    for _ in range(each)
                ],
            )  # fmt: skip


def ask(folder: Path) -> None:
    """Answer each question of the Runs page and print the times as JSON."""
    from chimera.store.document import document
    from chimera.store.journal import Journal

    url = f"sqlite:///{folder}/chimera.db"
    started = time.perf_counter()
    journal = Journal.open(url)
    print(json.dumps({"question": "open the journal", "first": (time.perf_counter() - started) * 1000}))
    middle = journal.runs(limit=1)[0].seq // 2
    chosen = journal.runs(limit=1, before=middle)[0]
    page = journal.runs(limit=50, before=middle)
    questions: dict[str, Callable[[], object]] = {
        "newest page of 50": lambda: journal.runs(limit=50),
        "a page from the middle": lambda: journal.runs(limit=50, before=middle),
        "page of a common model": lambda: journal.runs(model=MODELS[1], limit=50),
        "page of a rare model": lambda: journal.runs(model=MODELS[0], limit=50),
        "page by text": lambda: journal.runs(text="night 50", limit=50),
        "page by text that nothing has": lambda: journal.runs(text="nothing has this", limit=50),
        "page of crashed ones": lambda: journal.runs(state="crashed", limit=50),
        "counts of a page": lambda: journal.tallies(page),
        "count all": journal.count_runs,
        "count a common model": lambda: journal.count_runs(model=MODELS[1]),
        "show one run": lambda: document(journal, journal.run(chosen.id[:4]), measurements=True),
        "change token": journal.changes,
    }
    for question, answer in questions.items():
        times = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            answer()
            times.append((time.perf_counter() - started) * 1000)
        print(
            json.dumps(
                {
                    "question": question,
                    "first": times[0],
                    "median": statistics.median(times[1:]),
                    "worst": max(times[1:]),
                }
            )
        )


async def look(folder: Path) -> None:
    """Use the screen: time from what a key does until its rows are there."""
    os.environ["CHIMERA_HOME"] = str(folder)
    from textual.widgets import Input

    from chimera.cli.ui import UiOptions
    from chimera.tui.app import ChimeraApp
    from chimera.tui.screens.runs import Runs
    from chimera.widgets.listing import Listing, Page

    app = ChimeraApp(UiOptions(server="http://127.0.0.1:9"))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause(5.0)  # imports in the background

        async def timed(act: Callable[[], object], shown: Callable[[str], bool]) -> float:
            started = time.perf_counter()
            act()
            # Nobody tells when rows are on the screen: it is looked at.
            while not (isinstance(app.screen, Runs) and shown(_text(app.screen))):  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.002)
            return (time.perf_counter() - started) * 1000

        def _text(screen: Runs) -> str:
            panels = (*screen.query(Listing), *screen.query(Page))
            return "\n".join("".join(span.text for span in row) for panel in panels for row in panel._rows)

        def find(text: str) -> None:
            app.screen.query_one("#filter", Input).value = text

        times: dict[str, list[float]] = {"Runs: open": [], "Runs: filter": [], "Runs: show one": []}
        for _ in range(REPEATS + 1):
            times["Runs: open"].append(await timed(app.action_runs, lambda text: "sweep" in text and " 100" in text))
            times["Runs: filter"].append(
                await timed(lambda: find("night 50"), lambda text: "night 10000" not in text and "night 50" in text)
            )
            times["Runs: show one"].append(
                await timed(app.screen.action_open, lambda text: "median of" in text)  # type: ignore[attr-defined]  # it is Runs
            )
            app.screen.dismiss()
            await pilot.pause()
        for question, found in times.items():
            print(
                json.dumps(
                    {"question": question, "first": found[0], "median": statistics.median(found[1:]),
                     "worst": max(found[1:])}
                )
            )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--measurements", type=int, default=1_000_000)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask)
        asyncio.run(look(options.ask))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        fill(folder, options.runs, options.measurements)
        size = (folder / "chimera.db").stat().st_size / 1e6
        print(
            f"{options.runs} runs, {options.measurements} measurements: "
            f"filled in {time.perf_counter() - started:.0f} s, {size:.0f} MB"
        )
        done = subprocess.run([sys.executable, __file__, "--ask", name], capture_output=True, text=True, check=True)
    over = 0
    print(f"{'question':32}{'first ms':>10}{'median ms':>11}{'worst ms':>10}")
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        over += answer["first"] > BUDGET_MS
        rest = "".join(f"{answer[key]:>{width}.2f}" for key, width in (("median", 11), ("worst", 10)) if key in answer)
        print(f"{answer['question']:32}{answer['first']:>10.2f}{rest}")
    print(f"{'over' if over else 'within'} the budget of {BUDGET_MS:.0f} ms")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
