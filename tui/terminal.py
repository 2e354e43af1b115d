"""The terminal that the UI is shown on, and what becomes of the UI when it has gone."""

from __future__ import annotations

import os
import select
import sys
from codecs import getincrementaldecoder
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from chimera.cli.output import drop_stderr

from .messages import TerminalLost

if TYPE_CHECKING:
    from textual.app import App


class Terminal(LinuxDriver):
    """Textual's driver, which also sees that the terminal has gone.

    Textual's own reads nothing from it for ever, as fast as it can, and the thread that writes ends, for which the app
    waits. SIGHUP ends a process only where the terminal is its controlling one and nobody has told it to ignore that.
    """

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file = _Picture(sys.stderr, self._lost)  # type: ignore[assignment]  # all that Textual asks of a file

    def run_input_thread(self) -> None:
        """Pass on what is typed, until there is nobody left who could type."""
        parser = XTermParser(self._debug)
        # A key of a terminal with another encoding is no reason to end.
        decode = getincrementaldecoder("utf-8")("replace").decode
        while not self.exit_event.is_set():
            if select.select([self.fileno], [], [], 0.1)[0]:
                typed = b""
                with suppress(OSError):  # some systems say so, others answer with nothing
                    typed = os.read(self.fileno, 4096)
                if not typed:
                    self._lost()
                    return
                text = decode(typed)
                if text:  # else a character is not whole yet, and the parser would take nothing for the end
                    for event in parser.feed(text):
                        self.process_message(event)
            for event in parser.tick():
                self.process_message(event)

    def _lost(self) -> None:
        with suppress(RuntimeError):  # the app has ended meanwhile
            self._app.post_message(TerminalLost())


class _Picture:
    """stderr, where Textual draws; its loss is told, and what is drawn after it goes nowhere."""

    def __init__(self, file: TextIO, lost: Callable[[], None]) -> None:
        self._file = file
        self._told = lost

    def write(self, text: str) -> None:
        """Draw."""
        try:
            self._file.write(text)
        except OSError:
            self._lost()

    def flush(self) -> None:
        """Draw what is still kept back."""
        try:
            self._file.flush()
        except OSError:
            self._lost()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def _lost(self) -> None:
        drop_stderr()
        self._told()
