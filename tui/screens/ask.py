"""A question with a few answers, each on a key of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from chimera.domain.text import plain


@dataclass(frozen=True, slots=True)
class Answer:
    """One possible answer."""

    key: str
    """A letter that gives it at once."""
    value: str
    text: str


class Ask(ModalScreen[str | None]):
    """Asks; the result is the chosen answer's value, or None where the question was left by escape."""

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 80; max-width: 96%; height: auto; max-height: 90%;
        border: round $accent; padding: 0 1; background: $surface;
    }
    Ask Static { width: 1fr; height: auto; margin-bottom: 1; }
    Ask OptionList {
        height: auto; max-height: 12; padding: 0; background: $surface;
        &, &:focus { border: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back")]

    def __init__(self, question: str, answers: tuple[Answer, ...], *, title: str = "") -> None:
        super().__init__()
        self._question = question
        self._answers = answers
        self._title = title

    def compose(self) -> ComposeResult:
        """The question above its answers."""
        with Vertical() as box:
            box.border_title = self._title
            yield Static(plain(self._question, one_line=False), markup=False)
            yield OptionList(*(Option(self._row(one), id=one.value) for one in self._answers), markup=False)

    @staticmethod
    def _row(answer: Answer) -> str:
        return f" {answer.key}  {plain(answer.text)}"

    def on_key(self, event: events.Key) -> None:
        """A letter answers at once, and means nothing else: below the question it may be bound to something."""
        for answer in self._answers:
            if event.key == answer.key:
                event.stop()
                self.dismiss(answer.value)
                return

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_leave(self) -> None:
        """No answer."""
        self.dismiss(None)
