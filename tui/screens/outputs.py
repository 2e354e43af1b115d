"""Two settings' answers to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from chimera.domain.options import Options
from chimera.domain.text import plain


class Outputs(ModalScreen[bool]):
    """Shows the document of `chimera outputs`; true where another prompt is wanted."""

    DEFAULT_CSS = """
    Outputs { align: center middle; }
    Outputs > Vertical {
        width: 96%; height: 90%; border: round $accent; padding: 0 1; background: $surface;
    }
    Outputs Container { layout: horizontal; height: 1fr; }
    Outputs VerticalScroll { width: 1fr; height: 1fr; border: round $panel; padding: 0 1; }
    Outputs VerticalScroll:focus { border: round $accent; }
    Outputs.-narrow Container { layout: vertical; }
    Outputs Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,o,q", "leave(False)", "Back"),
        Binding("n", "leave(True)", "Another prompt"),
    ]

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self._document = document

    def compose(self) -> ComposeResult:
        """One text beside the other, below each other where it is narrow, and what they are not."""
        with Vertical() as box:
            box.border_title = f"Answers of run {self._document['run']}"
            box.border_subtitle = "n: another prompt · escape: back"
            with Container():
                for one in self._document["outputs"]:
                    with VerticalScroll() as column:
                        column.border_title = plain(f"{one['candidate']} {Options.of(one['requested'])}")
                        said = one["text"].strip() or f"No answer: {one['error']}"
                        yield Static(plain(said, one_line=False), markup=False)
            same = "Both texts are the same. " if self._document["same_text"] else ""
            yield Static(plain(f"{same}{self._document['words']}"), markup=False)

    def action_leave(self, again: bool) -> None:
        """Back to the table."""
        self.dismiss(again)
