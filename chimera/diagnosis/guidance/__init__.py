"""What each finding and cause means, as Markdown files beside this module; one file a finding code.

A file has the sections `What it means`, `How it was seen`, `What helps`, `Not to be confused with`, where the guide
that Chimera started from gave advice also `What the guide says`, and `Causes` with one paragraph a cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Guidance:
    """The text for a finding code or for one cause."""

    id: str
    title: str
    text: str
    """Markdown, without the title."""
    sections: dict[str, str] = field(default_factory=dict)
    """Of a finding's text, by heading, causes left out; empty for a cause."""


@lru_cache(maxsize=64)
def _page(code: str) -> tuple[Guidance, dict[str, Guidance]]:
    source = files(__package__).joinpath(f"{code}.md").read_text(encoding="utf-8")
    title, sections = "", {}
    heading: str | None = None
    lines: list[str] = []

    def close() -> None:
        if heading is not None:
            sections[heading] = "\n".join(lines).strip()

    for line in source.splitlines():
        if line.startswith("# ") and not title:
            title = line[2:].strip()
        elif line.startswith("## "):
            close()
            heading, lines = line[3:].strip(), []
        else:
            lines.append(line)
    close()
    causes: dict[str, Guidance] = {}
    for part in ("\n" + sections.pop("Causes", "")).split("\n### ")[1:]:
        name, _, text = part.partition("\n")
        key = f"{code}/{name.strip()}"
        causes[key] = Guidance(key, name.strip().replace("-", " "), text.strip())
    text = "\n\n".join(f"## {heading}\n\n{body}" for heading, body in sections.items())
    return Guidance(code, title, text, sections), causes


def guidance(code_or_cause: str) -> Guidance:
    """The text for a finding code (`high-ttft`) or a cause (`high-ttft/cold-load`).

    Raises:
        KeyError: There is no such code or cause.
    """
    code, slash, _ = code_or_cause.partition("/")
    if not code.replace("-", "").isalnum() or not code.isascii():
        raise KeyError(code_or_cause)
    try:
        page, causes = _page(code)
    except FileNotFoundError as error:
        raise KeyError(code_or_cause) from error
    return causes[code_or_cause] if slash else page
