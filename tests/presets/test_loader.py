from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.options import Options
from chimera.domain.preset import Expectation, Preset
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.presets import (
    all_presets,
    check_file,
    find,
    guide_presets,
    load_preset,
    user_folder,
    write_preset,
)
from chimera.presets.loader import GUIDE_FOLDER, line_of

GOOD = """\
name = "mine"
title = "Mine"
digit = 6

[options]
num_ctx = 4096
temperature = 0.7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of presets, for this test alone."""
    monkeypatch.setenv("CHIMERA_CONFIG", str(tmp_path / "config"))
    place = user_folder()
    place.mkdir(parents=True)
    return place


def put(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- the guide's five


def test_the_guides_five_set_what_the_guide_says() -> None:
    common = {"top_p": 0.9, "top_k": 40, "repeat_penalty": 1.1}
    assert [(preset.digit, preset.name, preset.options.as_dict()) for preset in guide_presets()] == [
        (1, "maximum-throughput", {"num_gpu": 80, "num_ctx": 512, "temperature": 0.8, **common}),
        (2, "quality-focused", {"num_gpu": 80, "num_ctx": 1024, "temperature": 0.6, **common}),
        (3, "multi-agent-python", {"num_gpu": 80, "num_ctx": 2048, "temperature": 1.0, **common}),
        (4, "multi-agent-rust", {"num_gpu": 80, "num_ctx": 512, "temperature": 1.0, **common}),
        (5, "memory-efficient", {"num_gpu": 60, "num_ctx": 512, "temperature": 0.8, **common}),
    ]


def test_each_of_the_five_tells_its_whole_story() -> None:
    for preset in guide_presets():
        assert preset.title
        assert preset.strategy.startswith("Strategy ")
        assert preset.use_case
        assert preset.requirements
        assert len(preset.note) > 100
        assert "\n" not in preset.note
        assert preset.expects.decode_tok_s is not None
        assert preset.expects.vram_gb is not None
        assert preset.expects.measured_on == "gemma3:latest on RTX 4080 12 GB"
        assert preset.origin == "guide"


def test_the_expectations_are_the_guides() -> None:
    first, _, python, rust, last = (preset.expects for preset in guide_presets())
    assert (first.decode_tok_s, first.ttft_s, first.vram_gb) == ((98, 103), (None, 0.5), (6, 8))
    assert (python.efficiency, python.vram_gb) == (0.9925, (10, 12))
    assert (rust.efficiency, rust.vram_gb) == (0.957, (8, 10))
    assert (last.decode_tok_s, last.ttft_s, last.vram_gb) == ((95, 98), (None, 0.6), (5, 6))


def test_the_multi_agent_presets_run_with_two_agents_and_say_so() -> None:
    for preset in guide_presets()[2:4]:
        assert preset.workload.agents == 2
        assert "two agents" in preset.note
        assert any("11435" in text for text in preset.requirements)


def test_the_guides_files_pass_the_full_check() -> None:
    files = sorted(GUIDE_FOLDER.glob("[1-5]-*.toml"))
    assert len(files) == 5
    for file, preset in zip(files, guide_presets(), strict=True):
        assert check_file(file) == []
        assert load_preset(file) == preset
        assert file.name == f"{preset.digit}-{preset.name}.toml"


def test_importing_the_presets_and_reading_the_five_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from chimera.presets import all_presets\n"
        "assert len(all_presets().presets) == 5\n"
        "heavy = {'pydantic', 'tomli_w', 'httpx', 'sqlalchemy', 'numpy', 'textual', 'rich', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- the user's


def test_a_good_file_of_the_users_joins_the_five(folder: Path) -> None:
    path = put(folder, GOOD)
    book = all_presets()
    assert book.problems == ()
    assert [preset.digit for preset in book.presets] == [1, 2, 3, 4, 5, 6]
    mine = book.presets[-1]
    assert mine.options == Options(num_ctx=4096, temperature=0.7)
    assert mine.workload == Workload()
    assert mine.origin == str(path)
    assert check_file(path) == []


def test_no_folder_is_no_problem(tmp_path: Path) -> None:
    assert all_presets(tmp_path / "nowhere").problems == ()


def test_a_broken_file_hides_no_other(folder: Path) -> None:
    put(folder, "[options\n", "a.toml")
    put(folder, GOOD, "b.toml")
    put(folder, GOOD.replace("0.7", '"hot"').replace('"mine"', '"other"').replace("6", "7"), "c.toml")
    (folder / "d.toml").mkdir()
    (folder / "e.toml").write_bytes(b'name = "\xff"\n')
    (folder / "f.toml").symlink_to(folder / "gone")
    book = all_presets()
    assert [preset.name for preset in book.presets][-1] == "mine"
    assert len(book.presets) == 6
    assert [problem.file.name for problem in book.problems] == ["a.toml", "c.toml", "d.toml", "e.toml", "f.toml"]
    assert all(str(problem).endswith(".") or problem.field for problem in book.problems)


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("num_ctx = 4096", "num_cxt = 4096", 6, "options.num_cxt", "Did you mean num_ctx?"),
        ("num_ctx = 4096", "num-ctx = 4096", 6, "options.num-ctx", "Did you mean num_ctx?"),
        ("num_ctx = 4096", 'num_ctx = "4096"', 6, "options.num_ctx", "must be a whole number, not '4096'"),
        ("num_ctx = 4096", "num_ctx = 40.5", 6, "options.num_ctx", "must be a whole number"),
        ("num_ctx = 4096", "num_ctx = true", 6, "options.num_ctx", "must be a whole number"),
        ("num_ctx = 4096", "num_ctx = 0", 6, "options.num_ctx", "must be from 1 to 100,000,000, not 0"),
        ("temperature = 0.7", "temperature = 5.1", 7, "options.temperature", "must be from 0 to 5, not 5.1"),
        ("temperature = 0.7", "temperature = nan", 7, "options.temperature", "must be a finite number"),
        ("temperature = 0.7", 'kv_cache_type = "q5"', 7, "options.kv_cache_type", "must be 'f16', 'q8_0' or 'q4_0'"),
        ("digit = 6", "digit = 5", 3, "digit", "must be from 6 to 9, not 5"),
        ("digit = 6", "digit = 10", 3, "digit", "must be from 6 to 9"),
        ("digit = 6", "temperature = 0.3", 3, "temperature", "It belongs under [options]"),
        ('title = "Mine"', "title = 3", 2, "title", "must be text in quotes, not 3"),
        ('title = "Mine"', 'title = ""', 2, "title", "must not be empty"),
        ('name = "mine"', 'name = "../mine"', 1, "name", "must be small letters"),
        ('name = "mine"', 'name = "con"', 1, "name", "no safe file name"),
        ('name = "mine"', 'name = "quality-focused"', 1, "name", "taken by the guide"),
        ('name = "mine"', "name = 6", 1, "name", "must be text in quotes"),
        ("[options]", "[options]\nnum_ctx.deep = 1\n[workload]", 6, "options.num_ctx", "must be a whole number"),
        ("temperature = 0.7", "[workload]\nagents = 0", 8, "workload.agents", "must be at least 1, not 0"),
        ("temperature = 0.7", "[expects]\nttft_s = { min = 2, max = 1 }", 8, "expects.ttft_s", "min 2 is over max 1"),
        ("temperature = 0.7", "[expects]\nttft_s = { mx = 1 }", 8, "expects.ttft_s.mx", "Did you mean max?"),
        (
            "temperature = 0.7",
            'kv_cache_type = "q8_0"\nflash_attention = "off"',
            5,
            "options",
            "Set flash_attention to on or auto",
        ),
    ],
)
def test_a_problem_names_file_line_field_and_what_to_do(
    folder: Path, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in GOOD
    path = put(folder, GOOD.replace(old, new, 1))
    found = [problem for problem in check_file(path) if problem.field == field]
    assert len(found) == 1, check_file(path)
    assert found[0].file == path
    assert found[0].line == line
    assert says in found[0].message
    assert str(found[0]).startswith(f"{path}:{line}: {field} ")
    assert path not in [Path(preset.origin) for preset in all_presets().presets]


def test_missing_fields_are_named(folder: Path) -> None:
    problems = check_file(put(folder, "digit = 7\n"))
    assert sorted(problem.field for problem in problems) == ["name", "options", "title"]
    assert all("is missing" in problem.message for problem in problems)


def test_an_empty_options_table_sets_nothing_and_is_refused(folder: Path) -> None:
    (problem,) = check_file(put(folder, 'name = "mine"\ntitle = "Mine"\n[options]\n'))
    assert (problem.field, problem.line) == ("options", 3)
    assert "sets nothing" in problem.message


@pytest.mark.parametrize(
    ("text", "line"),
    [(GOOD + "= 5\n", 8), (GOOD.replace("digit = 6", "digit = "), 3), ('name = "a', 1), ("a = 1\na = 2\n", 2)],
)
def test_a_syntax_error_names_its_line(folder: Path, text: str, line: int) -> None:
    (problem,) = check_file(put(folder, text))
    assert problem.line == line
    assert "is not TOML" in problem.message


def test_two_files_with_one_name_or_digit_are_told_and_the_first_stays(folder: Path) -> None:
    put(folder, GOOD, "a.toml")
    second = put(folder, GOOD.replace('"mine"', '"other"'), "b.toml")
    third = put(folder, GOOD.replace("digit = 6\n", ""), "c.toml")
    book = all_presets()
    assert [preset.name for preset in book.presets][5:] == ["mine"]
    assert [(problem.file, problem.field) for problem in book.problems] == [(second, "digit"), (third, "name")]
    assert [problem.field for problem in check_file(second)] == ["digit"]
    assert "a.toml" in check_file(second)[0].message


def test_a_file_that_is_no_preset_at_all_is_refused_without_reading_it_whole(folder: Path) -> None:
    path = folder / "huge.toml"
    with path.open("wb") as file:
        file.truncate(2**33)
    (problem,) = check_file(path)
    assert "is no preset" in problem.message
    (deep,) = check_file(put(folder, "a = " + "[" * 5000 + "]" * 5000, "deep.toml"))
    assert "preset" in deep.message or "TOML" in deep.message
    (missing,) = check_file(folder / "none.toml")
    assert "cannot be read" in missing.message


def test_escape_sequences_in_a_file_reach_neither_preset_nor_message(folder: Path) -> None:
    text = GOOD.replace('title = "Mine"', 'title = "\\u001b]0;owned\\u0007Mine"\nnote = "a\\u001b[2Jb"')
    preset = load_preset(put(folder, text))
    assert preset.title == "Mine"
    assert preset.note == "ab"
    (problem,) = check_file(put(folder, GOOD.replace("temperature", '"\\u001b[2Jx"')))
    assert "\x1b" not in str(problem)


def test_load_preset_raises_all_problems_at_once(folder: Path) -> None:
    path = put(folder, GOOD.replace("4096", "0").replace("0.7", "9.0"))
    with pytest.raises(ConfigError) as caught:
        load_preset(path)
    assert str(caught.value).count("\n") == 1


# ---- finding and writing


def test_a_preset_is_found_by_name_or_digit(folder: Path) -> None:
    put(folder, GOOD)
    put(folder, GOOD.replace("digit = 6\n", "").replace('"mine"', '"no-digit"'), "n.toml")
    assert find("quality-focused").digit == 2
    assert find("2") == find(2) == find("quality-focused")
    assert find("mine") == find(6)
    assert all_presets().on_digit(6) == find("mine")
    assert all_presets().on_digit(9) is None
    with pytest.raises(ConfigError, match="Did you mean quality-focused"):
        find("quality-focussed")
    for unknown in ("", "none", "None", "0", "99"):
        with pytest.raises(ConfigError, match="No preset"):
            find(unknown)


FULL = Preset(
    name="mine-too",
    title='Mine "too"',
    options=Options(num_gpu=10, kv_cache_type="q8_0", temperature=0.5),
    digit=7,
    workload=Workload(prompt_tokens=128, requests=3),
    strategy="mine",
    use_case="tests",
    requirements=("a", "b"),
    expects=Expectation(decode_tok_s=(10.0, None), ttft_s=(None, 0.5), efficiency=0.9, measured_on="here"),
    note="one\ntwo",
)


def test_what_is_written_is_read_back_equal(folder: Path) -> None:
    path = write_preset(FULL)
    assert path == folder / "mine-too.toml"
    assert load_preset(path) == dataclasses.replace(FULL, origin=str(path))
    assert [file.name for file in folder.iterdir()] == ["mine-too.toml"]


def test_a_file_is_replaced_only_when_told(folder: Path) -> None:
    write_preset(FULL)
    changed = dataclasses.replace(FULL, title="New")
    with pytest.raises(ConfigError, match=r"(exists already|is taken)"):
        write_preset(changed)
    assert load_preset(write_preset(changed, replace=True)).title == "New"


@pytest.mark.parametrize(
    "preset",
    [
        dataclasses.replace(FULL, name="../evil"),
        dataclasses.replace(FULL, name="a/b"),
        dataclasses.replace(FULL, name=""),
        dataclasses.replace(FULL, name="nul"),
        dataclasses.replace(FULL, name="maximum-throughput"),
        dataclasses.replace(FULL, digit=1),
        dataclasses.replace(FULL, options=Options(temperature=9.0)),
        dataclasses.replace(FULL, options=Options()),
    ],
)
def test_what_could_not_be_read_back_is_not_written(folder: Path, preset: Preset) -> None:
    with pytest.raises(ConfigError):
        write_preset(preset)
    assert list(folder.parent.rglob("*.toml")) == []


def test_a_digit_that_another_preset_has_is_not_given_twice(folder: Path) -> None:
    put(folder, GOOD)
    with pytest.raises(ConfigError, match="taken by mine"):
        write_preset(dataclasses.replace(FULL, digit=6))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        write_preset(FULL, blocked / "presets")


def test_lines_are_found_in_tables_dotted_keys_and_behind_long_texts() -> None:
    text = 'note = """\nnum_ctx = 1\n[options]\n"""\noptions.num_ctx = 2\n[expects]\n"ttft_s" = { max = 1 }\n'
    assert line_of(text, ("options", "num_ctx")) == 5
    assert line_of(text, ("expects", "ttft_s", "max")) == 7
    assert line_of(text, ("expects", "other")) == 6
    assert line_of(text, ("title",)) is None


@given(text=st.text(max_size=200))
def test_no_text_makes_the_check_fail(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert check_file(path, among=())
