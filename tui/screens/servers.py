"""Pick the server and the model."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from chimera.domain.run import Target
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.domain.text import plain
from chimera.widgets import format

from ..messages import ModelsListed, ServersFound

EMBEDDED = ServerInfo("embedded", "")


class PickServer(ModalScreen[Target | None]):
    """Servers that answered, the embedded engine, and an address to type; then the server's models."""

    DEFAULT_CSS = """
    PickServer { align: center middle; }
    PickServer > Vertical {
        width: 84; max-width: 96%; height: auto; max-height: 90%;
        border: round $accent; padding: 0 1; background: $surface;
    }
    PickServer Static { height: auto; max-height: 10; color: $text-muted; }
    PickServer OptionList {
        height: auto; max-height: 14; padding: 0; background: $surface;
        &, &:focus { border: none; }
    }
    PickServer Input {
        height: 1; padding: 0; margin-top: 1;
        &, &:focus { border: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("f5", "again", "Look again"),
    ]

    def __init__(self, found: tuple[ServerInfo, ...], explanation: str) -> None:
        super().__init__()
        self._found = found
        self._explanation = explanation
        self._server: ServerInfo | None = None
        self._models: tuple[ModelInfo, ...] = ()

    def compose(self) -> ComposeResult:
        """A list, what was tried, and a line for an address."""
        with Vertical() as box:
            box.border_title = "Server and model"
            box.border_subtitle = "enter picks · F5 looks again · esc leaves"
            yield OptionList(markup=False)
            yield Static(markup=False)
            yield Input(placeholder="another address, like http://192.168.1.20:11434")

    def on_mount(self) -> None:
        """Show what is known."""
        self._list_servers()

    def _list_servers(self) -> None:
        self._server = None
        servers = [*self._found, EMBEDDED]
        picker = self.query_one(OptionList)
        picker.clear_options()
        picker.add_options(
            Option(
                f" {one.title}  {one.url}" if one.url else " Embedded: llama.cpp with Gemma 3 270M, no server needed"
            )
            for one in servers
        )
        picker.highlighted = 0
        self.query_one(Static).update("" if self._found else plain(self._explanation, one_line=False))
        self.query_one(Input).display = True
        picker.focus()

    def show_servers(self, message: ServersFound) -> None:
        """Detection has ended."""
        self._found, self._explanation = message.found, message.explanation
        if self._server is None:
            self._list_servers()

    def show_models(self, message: ModelsListed) -> None:
        """A server has told its models."""
        if message.server != self._server:
            return
        self._models = message.models
        note = self.query_one(Static)
        if message.problem or not message.models:
            note.update(plain(message.problem or "This server has no model: pull or load one first."))
            return
        note.update("")
        picker = self.query_one(OptionList)
        picker.clear_options()
        picker.add_options(Option(_row(model)) for model in message.models)
        picker.highlighted = 0

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        if self._server is not None:
            if self._models:
                name = self._models[event.option_index].name
                self.dismiss(Target(self._server.kind, url=self._server.url, model=name))
            return
        server = [*self._found, EMBEDDED][event.option_index]
        if server.kind == "embedded":
            self.dismiss(Target("embedded", assume_yes=True))
            return
        self._server, self._models = server, ()
        self.query_one(Input).display = False
        self.query_one(OptionList).clear_options()
        self.query_one(Static).update(f"asking {plain(server.title)} for its models …")
        self.app.ask_models(server)  # type: ignore[attr-defined]  # the app is ChimeraApp

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        address = event.value.strip()
        if address:
            self.query_one(Static).update(f"trying {plain(address)} …")
            self.app.look_for_servers(address)  # type: ignore[attr-defined]  # the app is ChimeraApp

    def action_again(self) -> None:
        """Ask around once more."""
        self.query_one(Static).update("looking …")
        self.app.look_for_servers(None)  # type: ignore[attr-defined]  # the app is ChimeraApp

    def action_back(self) -> None:
        """From models to servers, from servers out."""
        if self._server is not None:
            self._list_servers()
        else:
            self.dismiss(None)


def _row(model: ModelInfo) -> str:
    details = [model.quantization, format.size(model.size_bytes) if model.size_bytes else None]
    return f" {plain(model.name)}  {'  '.join(plain(part) for part in details if part)}".rstrip()
