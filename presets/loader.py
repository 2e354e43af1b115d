"""Reading, checking and writing preset files.

The guide's own files are read without a check (a test checks them), so that importing this module and showing the
five costs no pydantic; the user's files are checked in full.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from chimera.domain.options import OPTION_NAMES, Options
from chimera.domain.preset import Expectation, Preset
from chimera.domain.text import plain
from chimera.domain.workload import Workload
from chimera.errors import ConfigError
from chimera.store.files import write_whole

GUIDE_FOLDER = Path(__file__).parent
_GUIDE_FILE = re.compile(r"[1-5]-[a-z-]+\.toml")
_LARGEST_FILE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, where, and what to do."""

    file: Path
    message: str
    field: str = ""
    """Dotted: `options.num_gpu`; empty for the file as a whole."""
    line: int | None = None

    def __str__(self) -> str:
        where = plain(str(self.file)) + (f":{self.line}" if self.line else "")
        return f"{where}: {plain(self.field)} {self.message}" if self.field else f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class PresetBook:
    """All presets that could be read, and what is wrong with the others."""

    presets: tuple[Preset, ...]
    problems: tuple[Problem, ...] = ()

    def find(self, key: str | int) -> Preset:
        """The preset with this name or on this digit.

        Raises:
            ConfigError: there is none.
        """
        wanted = str(key).strip().lower()
        for preset in self.presets:
            if _answers(preset, wanted):
                return preset
        names = [preset.name for preset in self.presets]
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names)}."
        broken = "".join(f"\n{problem}" for problem in self.problems)
        told = f" These files of yours hold none that can be used:{broken}" if broken else ""
        raise ConfigError(f"No preset {plain(wanted)[:80]}. {hint}{told}")

    def on_digit(self, digit: int) -> Preset | None:
        """The preset on a key, if there is one."""
        return next((preset for preset in self.presets if preset.digit == digit), None)


@cache
def guide_presets() -> tuple[Preset, ...]:
    """The guide's five, in the order of their digits."""
    files = sorted(file for file in GUIDE_FOLDER.iterdir() if _GUIDE_FILE.fullmatch(file.name))
    return tuple(_preset(tomllib.loads(file.read_text(encoding="utf-8")), origin="guide") for file in files)


def user_folder() -> Path:
    """Where the user's presets lie: `presets` in $CHIMERA_CONFIG, or in the platform's folder for settings."""
    chosen = os.environ.get("CHIMERA_CONFIG")
    if chosen:
        return Path(chosen).expanduser() / "presets"
    import platformdirs

    return Path(platformdirs.user_config_dir("chimera")) / "presets"


def all_presets(folder: Path | None = None) -> PresetBook:
    """The guide's presets and the user's, by digit, then by name; a broken file is a problem and hides no other."""
    presets = list(guide_presets())
    problems: list[Problem] = []
    folder = user_folder() if folder is None else folder
    try:
        files = sorted(file for file in folder.iterdir() if file.name.endswith(".toml") and file.name[0] != ".")
    except FileNotFoundError:
        files = []
    except OSError as error:
        files = []
        problems.append(Problem(folder, f"the folder cannot be read ({error.strerror})."))
    for file in files:
        found = _read(file)
        if isinstance(found, _Text):
            wrong = [*found.problems(), *found.clashes(presets)]
            problems += wrong
            if not wrong:
                presets.append(_preset(found.data, origin=str(file)))
        else:
            problems.append(found)
    presets.sort(key=lambda preset: (preset.digit if preset.digit is not None else 10, preset.name))
    return PresetBook(tuple(presets), tuple(problems))


def find(key: str | int, folder: Path | None = None) -> Preset:
    """The preset with this name or on this digit, the user's included.

    Raises:
        ConfigError: there is none.
    """
    wanted = str(key).strip().lower()
    for preset in guide_presets():
        if _answers(preset, wanted):
            return preset
    return all_presets(folder).find(key)


def load_preset(path: Path) -> Preset:
    """One file as a preset.

    Raises:
        ConfigError: it is broken; the message has one line a problem.
    """
    found = _read(path)
    if isinstance(found, Problem):
        raise ConfigError(str(found))
    if wrong := found.problems():
        raise ConfigError("\n".join(str(problem) for problem in wrong))
    return _preset(found.data, origin="guide" if found.of_guide else str(path))


def check_file(path: Path, *, among: Sequence[Preset] | None = None) -> list[Problem]:
    """All that is wrong with a file; empty when it is good.

    Its name and digit are compared with those of `among`, by default the guide's and the user's other presets.
    """
    found = _read(path)
    if isinstance(found, Problem):
        return [found]
    others = among if among is not None else all_presets().presets
    return [*found.problems(), *found.clashes(others)]


def write_preset(preset: Preset, folder: Path | None = None, *, replace: bool = False) -> Path:
    """Write a preset of the user's as `NAME.toml`, whole and then renamed; returns the file.

    Raises:
        ConfigError: the name is not safe as a file's name, the name or digit is taken, a value is out of range, the
            file exists and `replace` is off, or it cannot be written.
    """
    folder = user_folder() if folder is None else folder
    target, text = check_preset(preset, folder)
    if target.exists() and not replace:
        raise ConfigError(f"{plain(str(target))}: exists already. Choose another name, or say that it may be replaced.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(target, text, 0o600)
    except OSError as error:
        raise ConfigError(f"{plain(str(target))}: cannot be written ({error.strerror}).") from error
    return target


def check_preset(preset: Preset, folder: Path | None = None) -> tuple[Path, str]:
    """The file that a preset of the user's would be, and its text; writes nothing.

    Raises:
        ConfigError: the name is not safe as a file's name, the name or digit is taken by another file, or a value is
            out of range.
    """
    import tomli_w

    from .schema import USER_DIGITS, faults

    folder = user_folder() if folder is None else folder
    data = _table(preset)
    # The name is checked before it is used as a part of a path.
    for path, message in faults(data, USER_DIGITS):
        raise ConfigError(f"The preset {plain(preset.name)[:80]} cannot be written: {'.'.join(path)} {message}")
    target = folder / f"{preset.name}.toml"
    text = tomli_w.dumps(data, multiline_strings=True)
    others = [other for other in all_presets(folder).presets if other.origin != str(target)]
    for problem in _Text(target, text, data).clashes(others):
        raise ConfigError(str(problem))
    return target, text


def _answers(preset: Preset, wanted: str) -> bool:
    return wanted == preset.name or (preset.digit is not None and wanted == str(preset.digit))


# ---- reading one file


@dataclass(frozen=True, slots=True)
class _Text:
    """A file that is TOML, its text kept to find lines in."""

    file: Path
    text: str
    data: Mapping[str, Any]

    @property
    def of_guide(self) -> bool:
        return self.file.absolute().parent == GUIDE_FOLDER and _GUIDE_FILE.fullmatch(self.file.name) is not None

    def problems(self) -> list[Problem]:
        from .schema import GUIDE_DIGITS, USER_DIGITS, faults

        digits = GUIDE_DIGITS if self.of_guide else USER_DIGITS
        return [self.problem(path, message) for path, message in faults(self.data, digits)]

    def problem(self, path: tuple[str, ...], message: str) -> Problem:
        return Problem(self.file, message, ".".join(path), line_of(self.text, path))

    def clashes(self, others: Iterable[Preset]) -> Iterator[Problem]:
        """Names and digits that another preset has."""
        for other in others:
            if other.origin == "guide":
                if self.of_guide:
                    continue
            elif Path(other.origin).absolute() == self.file.absolute():
                continue
            where = "the guide" if other.origin == "guide" else plain(Path(other.origin).name)
            if self.data.get("name") == other.name:
                yield self.problem(("name",), f"{other.name} is taken by {where}: choose another")
            digit = self.data.get("digit")
            if digit is not None and digit == other.digit and other.origin != "guide":
                yield self.problem(("digit",), f"{other.digit} is taken by {other.name} in {where}: choose another")


def _read(path: Path) -> _Text | Problem:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Problem(path, "is not a file. Name a preset file that ends in .toml.")
        if status.st_size > _LARGEST_FILE:
            return Problem(path, f"has {status.st_size} bytes, over {_LARGEST_FILE}: it is no preset.")
        raw = path.read_bytes()
    except OSError as error:
        return Problem(path, f"cannot be read ({error.strerror}).")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return Problem(path, "is not UTF-8 text. Save it as UTF-8.", line=line)
    try:
        return _Text(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(match[1]) if match else text.count("\n") + 1
        what = re.sub(r"\s*\(at .*\)$", "", str(error))
        return Problem(path, f"is not TOML: {plain(what)}. Mend this line.", line=line)
    except RecursionError:
        return Problem(path, "is nested too deeply: it is no preset.")


_HEADER = re.compile(r"\s*\[\[?\s*(?P<path>[^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*(?P<path>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_STEP = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line, from 1, on which a field or the nearest table around it is written; None where none of it is."""
    table: tuple[str, ...] = ()
    quotes = ""
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if quotes:
            if quotes in line:
                quotes = ""
            continue
        written: tuple[str, ...] = ()
        if match := _HEADER.fullmatch(line):
            table = written = _steps(match["path"])
        elif match := _KEY.match(line):
            written = (*table, *_steps(match["path"]))
            quotes = next((q for q in ('"""', "'''") if line.count(q) == 1), "")
        common = min(len(written), len(path))
        depth = common if written[:common] == path[:common] else 0
        if depth and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _steps(path: str) -> tuple[str, ...]:
    return tuple(step.strip("\"'") for step in _STEP.findall(path))


# ---- between a file's tables and the domain's types


def _preset(data: Mapping[str, Any], *, origin: str) -> Preset:
    """A preset from tables that were checked."""
    expects = data.get("expects", {})
    return Preset(
        name=data["name"],
        title=plain(data["title"]),
        options=Options.of(data["options"]),
        digit=data.get("digit"),
        workload=Workload(**data.get("workload", {})),
        strategy=plain(data.get("strategy", "")),
        use_case=plain(data.get("use_case", "")),
        requirements=tuple(plain(text) for text in data.get("requirements", ())),
        expects=Expectation(
            decode_tok_s=_ends(expects.get("decode_tok_s")),
            ttft_s=_ends(expects.get("ttft_s")),
            vram_gb=_ends(expects.get("vram_gb")),
            efficiency=expects.get("efficiency"),
            measured_on=plain(expects.get("measured_on", "")),
        ),
        note=plain(data.get("note", ""), one_line=False).strip(),
        origin=origin,
    )


def _ends(table: Mapping[str, float] | None) -> tuple[float | None, float | None] | None:
    return None if table is None else (table.get("min"), table.get("max"))


def _table(preset: Preset) -> dict[str, Any]:
    """The tables of a preset's file; what has its default is left out."""
    data: dict[str, Any] = {"name": preset.name, "title": preset.title}
    for name in ("digit", "strategy", "use_case", "note"):
        if value := getattr(preset, name):
            data[name] = value
    if preset.requirements:
        data["requirements"] = list(preset.requirements)
    options = preset.options.as_dict()
    data["options"] = {name: options[name] for name in OPTION_NAMES if name in options}
    default = Workload().as_dict()
    workload = {name: value for name, value in preset.workload.as_dict().items() if value != default[name]}
    if workload:
        data["workload"] = workload
    expects: dict[str, Any] = {}
    for name in ("decode_tok_s", "ttft_s", "vram_gb"):
        ends = getattr(preset.expects, name)
        if ends is not None:
            expects[name] = {key: value for key, value in zip(("min", "max"), ends, strict=True) if value is not None}
    if preset.expects.efficiency is not None:
        expects["efficiency"] = preset.expects.efficiency
    if preset.expects.measured_on:
        expects["measured_on"] = preset.expects.measured_on
    if expects:
        data["expects"] = expects
    return data
