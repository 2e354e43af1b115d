"""Keeps a program from outliving its parent: `python leash.py PROGRAM [ARGUMENT ...]`. It imports nothing of Chimera.

It starts the program, prints one line of JSON with its process id, and ends it when standard input closes: when it is
told to, or when the parent died. On SIGTERM it ends the program at once. Its exit status is the program's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

PATIENCE_S = 4.0
"""Time for the program to end by itself, once it was asked to, before it is killed."""


def main() -> int:
    """Run the program until it ends or standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us in order
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except OSError as error:
        answer.write(json.dumps({"error": error.strerror or str(error)}) + "\n")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: program.kill())
    answer.write(json.dumps({"pid": program.pid}) + "\n")
    answer.close()

    def watch() -> None:
        while sys.stdin.buffer.read(65536):
            pass
        program.terminate()
        try:
            program.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    sys.stdout.flush()
    # A thread that still waits for standard input holds its lock: a normal exit would stumble over that.
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    sys.exit(main())
