"""The `chimera` command. The one place that opens the UI, and only when the UI is wanted."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Open the UI, or hand over to the command line."""
    from chimera.errors import ChimeraError

    try:
        from chimera.cli.ui import parse_ui

        wanted = parse_ui(sys.argv[1:])
        if wanted is not None:
            from chimera.tui.app import open_ui

            sys.exit(open_ui(wanted))
        from chimera.cli.app import app

        app()
    except ChimeraError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output is gone, which is its right; Python must not complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
