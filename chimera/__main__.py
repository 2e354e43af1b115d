"""The `chimera` command. The one place that opens the UI, and only when the UI is wanted."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Open the UI, or hand over to the command line."""
    from chimera.cli.output import OutputLost, open_streams, say
    from chimera.errors import ChimeraError

    open_streams()
    try:
        code = _command()
    except ChimeraError as error:
        if str(error):
            say(str(error))
        code = error.exit_code
    try:
        sys.stdout.flush()
    except OutputLost as lost:
        if str(lost):
            say(str(lost))
        code = lost.exit_code or code
    sys.exit(code)


def _command() -> int:
    from chimera.cli.ui import parse_ui
    from chimera.errors import ConfigError

    for argument in sys.argv[1:]:
        if any("\udc80" <= char <= "\udcff" for char in argument):
            raise ConfigError(f"{argument!r} holds a byte that is not text here: neither journal nor JSON can keep it.")
    # A shell that completes a command line asks with no arguments at all, like one that wants the UI.
    wanted = None if "_CHIMERA_COMPLETE" in os.environ else parse_ui(sys.argv[1:])
    if wanted is not None:
        from chimera.tui.app import open_ui

        return open_ui(wanted)
    from chimera.cli.app import app

    try:
        app()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    main()
