"""The layout: what is listed, what the arrows allow, what stays light."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import typer

from chimera.cli.app import app
from chimera.domain.measurement import VoidReason

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = (
    "backends",
    "cli",
    "diagnosis",
    "domain",
    "measure",
    "model",
    "presets",
    "runner",
    "store",
    "telemetry",
    "tuning",
)
HEAVY = ("sqlalchemy", "alembic", "optuna", "numpy", "scipy", "pydantic", "httpx", "typer")


def test_pyproject_lists_every_package() -> None:
    config = PROJECT["tool"]["setuptools"]
    moved = {folder: name for name, folder in config["package-dir"].items()}
    found: set[str] = set()
    for top in ("chimera", *moved):
        for init in (ROOT / top).rglob("__init__.py"):  # rglob does not follow the links
            first, *rest = init.parent.relative_to(ROOT).parts
            found.add(".".join([moved.get(first, first), *rest]))
    assert found == set(config["packages"])


def test_the_pins_for_uv_and_for_pip_are_the_same_and_name_no_address() -> None:
    for_pip = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == for_pip
    assert not [line for line in for_pip if "://" in line]


def test_the_core_loads_without_a_screen() -> None:
    """Every core module is imported in a fresh interpreter; Textual must not come along.

    (httpx loads Rich for a command line of its own where it is installed; that no module of ours does is
    import-linter's to hold.)
    """
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in CORE
        for path in (ROOT / ("chimera" if folder != "presets" else ".") / folder).rglob("*.py")
        if "versions" not in path.parts and path.name not in {"env.py", "embedded_child.py"}
    )
    modules = [name if name.startswith("chimera") else f"chimera.{name}" for name in modules]
    assert len(modules) > 30
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'textual'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["runs", "--help"], ["presets", "list"]])
def test_the_command_line_loads_no_screen(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['chimera', *{arguments!r}]\n"
        "from chimera.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules} & {'textual', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^LOADED(.*)$", done.stdout, re.M) == [""]


def test_docs_name_every_void_reason_and_every_command() -> None:
    measuring = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    assert [one for one in get_args(VoidReason) if f"| `{one}` |" not in measuring] == []
    told = measuring + (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [one for one in typer.main.get_group(app).commands if one != "worker"]
    assert [one for one in commands if not re.search(rf"chimera [a-z |]*\b{one}\b", told)] == []


def test_what_the_ui_imports_before_its_first_paint_is_light() -> None:
    code = (
        "import sys, chimera.tui.app, chimera.presets.loader\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_what_is_read_and_followed_is_imported_after_the_first_paint() -> None:
    code = "import sys, chimera.tui.app; print(*sorted(name for name in sys.modules if name.startswith('chimera.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"chimera.domain.telemetry", "chimera.runner.follow", "chimera.store.journal"} & {*done.stdout.split()}
