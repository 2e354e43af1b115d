"""What the keys do, and what the figures mean."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Markdown

_KEYS = """\
# Keys

| key | does |
|---|---|
| `1`-`5` | run one of the guide's presets |
| `6`-`9` | run one of your own |
| `space` | pause or resume the run |
| `x` | stop the run (asks once) |
| `p` | Presets: what each asks, what is true of it on this model |
| `t` | Tune: compare settings, see what is really better, apply it |
| `d` | the Doctor: what is wrong, why, what helps |
| `r` | Runs: history, one in full, export, follow, resume |
| `m` | pick server and model |
| `l` | alerts: what went wrong, also while nobody looked |
| `ctrl+p` | all commands, themes too |
| `?` | this page |
| `q` | leave; a run goes on |

On the dashboard:

| key | does |
|---|---|
| `c` | another reading in the second chart |
| `f` | freeze the charts |
| `+` `-` | longer or shorter charts |
| `tab` `z` | move between panels; maximise the focused one |

The other screens show their own keys at the bottom; `esc` leads back.

A run belongs to its worker process, not to this screen: leave, lose the connection, come back, and it is still here.

# Words

* **tok/s** is the decode rate, (n-1) tokens over the time from the first to the last.
* **TTFT** is the time to the first token: **queue** (waiting for a slot), **load** (the model being loaded),
  **prefill** (reading the prompt), and an honest **rest**.
* **roof** is what the GPU's memory bandwidth allows for this model; **MBU** is the part of it that is used.
* **void** marks a request that does not count, by rules fixed beforehand: its figures are kept and never shown as a
  result.
* **asked / runs**: what was requested, and what the server really runs.

"""


class Help(ModalScreen[None]):
    """Keys, words, and the help of the panel that had the focus."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 84; max-width: 96%; height: 90%; border: round $accent; background: $surface; padding: 0 1;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "leave", "Back"),
    ]

    def __init__(self, about: str | None) -> None:
        super().__init__()
        self._about = about

    def compose(self) -> ComposeResult:
        """One page."""
        with VerticalScroll() as page:
            page.border_title = "Help"
            page.border_subtitle = "esc leaves"
            yield Markdown((self._about or "") + "\n\n" + _KEYS if self._about else _KEYS)

    def action_leave(self) -> None:
        """Close it."""
        self.dismiss()
