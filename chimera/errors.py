"""What can go wrong, in words for a person.

* ChimeraError
  - ConfigError             exit 2: the person can mend the command, the preset or the file
  - BackendError            exit 3: the server cannot be reached, refused, or answered badly
    + BackendUnavailable    nobody answers there, or not in time
    + BackendRefused        it answered, and said no
      * OutOfMemory         the configuration does not fit
      * ContextExceeded     the prompt is longer than the context
    + BadAnswer             it answered something that is not of its protocol
    + StreamBroken          the answer broke off after it had begun
  - JournalError            exit 2: the journal cannot be opened, or is of a newer version
  - NothingMeasurable       exit 5: every measurement was void

Every message names what, where and what to do.
"""

from __future__ import annotations


class ChimeraError(Exception):
    """Anything that Chimera can explain. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(ChimeraError):
    """A command, preset, CSV or setting that the person can mend."""

    exit_code = 2


class JournalError(ChimeraError):
    """The journal cannot be used: unreadable, locked, or written by a newer Chimera."""

    exit_code = 2


class BackendError(ChimeraError):
    """A server failed us."""

    exit_code = 3


class BackendUnavailable(BackendError):
    """Nobody answers at the address, or not in time."""


class BackendRefused(BackendError):
    """The server answered and said no."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class OutOfMemory(BackendRefused):
    """The configuration does not fit into memory."""


class ContextExceeded(BackendRefused):
    """The prompt is longer than the context that the server runs with."""


class BadAnswer(BackendError):
    """The server answered something that is not of its protocol."""


class StreamBroken(BackendError):
    """The answer broke off after it had begun."""


class NothingMeasurable(ChimeraError):
    """Every measurement was void, so there is no rate to report."""

    exit_code = 5
