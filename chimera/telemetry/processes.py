"""Names for the pids that a driver gives."""

from __future__ import annotations

from pathlib import Path

from chimera.domain.text import plain


class Processes:
    """Names of processes by pid; `?` where a pid cannot be tied to one seen from here."""

    _KNOWN_S = 60.0

    def __init__(self, proc: Path) -> None:
        self._names: dict[int, tuple[float, str]] = {}
        self._foreign = _other_pids(proc)

    def name(self, pid: int, now: float) -> str:
        """The name of a process of this host."""
        if self._foreign:
            # The driver gives the pids of the outermost namespace; the same number here is somebody else.
            return "?"
        known = self._names.get(pid)
        if known and now - known[0] < self._KNOWN_S:
            return known[1]
        import psutil

        try:
            name = plain(psutil.Process(pid).name()) or "?"
        except (psutil.Error, OSError, ValueError):
            name = "?"
        if len(self._names) > 1000:
            self._names.clear()
        self._names[pid] = (now, name)
        return name


def _other_pids(proc: Path) -> bool:
    """Whether the driver's pids are of another namespace: a container of its own, or WSL."""
    try:
        if "microsoft" in (proc / "version").read_text(encoding="utf-8", errors="replace").lower():
            return True
        # The kernel gives its first pid namespace this fixed inode (PROC_PID_INIT_INO).
        return (proc / "self/ns/pid").readlink().name != "pid:[4026531836]"
    except OSError:
        return False
