"""Every code and every cause that a rule can name has a text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import chimera.diagnosis as package
from chimera.diagnosis.causes import CAUSES
from chimera.diagnosis.guidance import guidance
from chimera.diagnosis.rules import CODES
from chimera.diagnosis.thresholds import REFERENCES, THRESHOLDS
from chimera.diagnosis.variance import VarianceCause

HOME = Path(package.__file__).parent
SECTIONS = ["What it means", "How it was seen", "What helps", "Not to be confused with"]
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in HOME.glob("*.py")}


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_text_with_all_sections(code: str) -> None:
    page = guidance(code)
    assert page.title
    assert set(SECTIONS) <= set(page.sections)
    assert all(len(page.sections[each]) > 20 for each in SECTIONS)


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_a_text(cause: str) -> None:
    assert len(guidance(cause).text) > 30
    assert cause.partition("/")[0] in CODES


def test_every_cause_that_the_rules_spell_out_is_in_the_table() -> None:
    """Ids appear as literals; those that are put together are checked by name."""
    spelled = set()
    for name, text in SOURCES.items():
        if name == "causes.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                match = re.fullmatch(rf"({'|'.join(CODES)})/[a-z-]+", node.value)
                if match:
                    spelled.add(node.value)
    assert len(spelled) > 80
    assert spelled <= set(CAUSES)
    built = {f"server-regression/{each}" for each in ("version", "driver", "model", "settings")}
    built |= {f"inconsistent-performance/{each}" for each in VarianceCause.__args__}  # type: ignore[attr-defined]  # a Literal has it
    assert built <= set(CAUSES)
    assert set(CAUSES) == spelled | built


def test_no_text_is_left_over() -> None:
    files = {path.stem for path in (HOME / "guidance").glob("*.md")}
    assert files == set(CODES)
    for code in CODES:
        headings = re.findall(r"^### (.+)$", (HOME / "guidance" / f"{code}.md").read_text(encoding="utf-8"), re.M)
        assert {f"{code}/{each}" for each in headings} == {each for each in CAUSES if each.startswith(f"{code}/")}


@pytest.mark.parametrize("unknown", ["", "nonsense", "high-ttft/nonsense", "../causes", "high-ttft/../x", "__init__"])
def test_an_unknown_code_is_a_key_error(unknown: str) -> None:
    with pytest.raises(KeyError):
        guidance(unknown)


def test_the_guides_four_families_and_heat_are_put_right() -> None:
    for code in ("low-throughput", "high-ttft", "vram-exhaustion", "inconsistent-performance", "thermal-throttling"):
        assert "guide" in guidance(code).sections["What the guide says"].lower() or code != "low-throughput"
    assert "wrong" in guidance("high-ttft").sections["What the guide says"]
    assert "34 blocks" in guidance("vram-exhaustion").sections["What the guide says"]


def test_every_threshold_has_a_source_and_is_used() -> None:
    text = "".join(each for name, each in SOURCES.items() if name != "thresholds.py")
    for name, each in THRESHOLDS.items():
        assert each.source
        assert each.unit
        assert f'"{name}"' in text, name


def test_absolute_numbers_name_model_card_and_source() -> None:
    assert len(REFERENCES) == 1
    assert REFERENCES[0].matches("gemma3:latest", "NVIDIA GeForce RTX 4080 Laptop GPU", 12.0e9)
    assert not REFERENCES[0].matches("gemma3:27b", "NVIDIA GeForce RTX 4080 Laptop GPU", 12.0e9)
    assert not REFERENCES[0].matches("gemma3:latest", "NVIDIA GeForce RTX 4090", 12.0e9)
    assert not REFERENCES[0].matches("gemma3:latest", "NVIDIA GeForce RTX 4080", 16.0e9)
