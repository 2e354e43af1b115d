"""Text from a model, a server or a file is data: it is made harmless before it reaches a terminal."""

from __future__ import annotations

import json
import re
import unicodedata

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # operating system commands: titles, clipboard, links
    r"|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # device control and application strings
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # control sequences and short escapes
)
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF])


def plain(text: str, *, one_line: bool = True) -> str:
    """Text without escape sequences, control characters and direction overrides.

    Tabs become blanks; ends of line become `⏎` or, with `one_line` off, stay.
    """
    text = _ESCAPES.sub("", text).translate(_BIDI).replace("\r\n", "\n").replace("\t", " ")
    if one_line:
        text = text.strip().replace("\n", " ⏎ ")
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in {"Cc", "Cs", "Co", "Cn"} else "\ufffd"
        for char in text
    )


def json_text(document: object, *, one_line: bool = False) -> str:
    """A document as JSON, or as one line of many; NaN and infinity are a defect, not data.

    Characters beyond ASCII are escaped: a terminal may show it, in whatever encoding.
    """
    return json.dumps(document, indent=None if one_line else 2, allow_nan=False) + "\n"
