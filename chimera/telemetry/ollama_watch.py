"""An Ollama server looked at: its list of models, and the slots of the llama-server behind each of them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chimera.backends.address import is_local
from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.telemetry import LoadedModel, ServerSample, SlotState
from chimera.domain.text import plain

from .llama_watch import READING, slots_of
from .peek import NoAnswer, Peek
from .slots import SlotMeter
from .watching import SHORT_S, Lane

if TYPE_CHECKING:
    from chimera.backends.ollama_child import Child

_LIST_S = 6.0  # the list of models can block that long on Ollama's own locks
_STARTING_S = 120.0
_FAR_FUTURE_S = 10 * 365 * 86400.0
_NO_QUEUE = Missing("unsupported", "Ollama queues before its engine and tells nobody")

_REMOTE = (
    "this Ollama is on another host: its engines answer only there, so the token rate of its clients cannot be seen "
    "from here"
)
_NO_ENGINE = (
    "no engine of this Ollama can be reached from here (a container, a version before 0.30, or MLX), so the token rate "
    "of its clients cannot be seen"
)


class OllamaWatch:
    """Looks at one Ollama server.

    Args:
        url: Its address.
        wall: Seconds since the epoch.
    """

    def __init__(self, url: str, *, wall: Callable[[], float] = time.time) -> None:
        self._url = url
        self._wall = wall
        self._local = is_local(url)
        self._meter = SlotMeter()
        self._peeks: dict[int, Peek] = {}
        self._list = Peek(url)
        self._lane = Lane(self._step)
        # Written by the slow lane, each as one whole object.
        self._models: tuple[LoadedModel, ...] | Missing = PENDING
        self._children: tuple[Child, ...] = ()
        self._searched = not self._local
        self._pids: tuple[int, ...] = ()
        self._began: dict[int, float] = {}

    def look(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        """One sample; raises `NoAnswer` where Ollama itself does not answer."""
        self._lane.start()
        models, children = self._models, self._children
        if isinstance(models, Missing) and models.reason == "unreachable":
            raise NoAnswer(models.detail)
        slots: list[SlotState] = []
        seen = loading = silent = False
        for child in children:
            peek = self._peeks.setdefault(child.port, Peek(child.url))
            try:
                answer = peek.get("/slots", SHORT_S)
                if answer.status == 503:
                    loading = True
                elif answer.ok:
                    its = slots_of(answer)
                    self._meter.see(stamp(), its, child.port)
                    slots += its
                    seen = True
            except NoAnswer as error:
                # A child that has just begun does not listen yet; one that listens and is silent reads a prompt.
                silent = silent or error.timeout
                young = self._wall() - self._began.get(child.pid, 0.0) < _STARTING_S
                loading = loading or (not error.timeout and young)
        self._drop({child.port for child in children})
        return self._sample(now, models, tuple(slots), seen=seen, loading=loading, silent=silent)

    def _sample(
        self,
        now: float,
        models: tuple[LoadedModel, ...] | Missing,
        slots: tuple[SlotState, ...],
        *,
        seen: bool,
        loading: bool,
        silent: bool,
    ) -> ServerSample:
        note = ""
        rate, window = self._meter.rate(now)
        busy: Reading = float(sum(slot.busy for slot in slots))
        ttft, tokens = self._meter.ttft_s, self._meter.tokens
        total: Reading = tokens
        if not seen and silent:
            rate, window, busy = READING, 0.0, 1.0
        elif not seen and models and not loading:
            # Models are loaded (or may be), and no engine shows what it does for them.
            note = ("" if not self._searched else _NO_ENGINE) if self._local else _REMOTE
            why = Missing("unreachable", note) if note else PENDING
            rate, window, busy, ttft, total = why, 0.0, why, why, why
        elif not seen:
            rate, window = 0.0, 0.0
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=ttft,
            busy=busy,
            waiting=_NO_QUEUE,
            slots=slots,
            models=models,
            loading=loading,
            via="child /slots" if seen or silent else "/api/ps",
            note=note,
            prefilling=(silent and not seen) or self._meter.prefilling,
            rate_window_s=window,
            tokens_total=total,
            engine_pids=self._pids,
        )

    def _drop(self, ports: set[int]) -> None:
        for port in self._peeks.keys() - ports:
            self._peeks.pop(port).close()
            self._meter.gone(port)

    def close(self) -> None:
        """Let go of connections and threads."""
        self._lane.close()
        for peek in self._peeks.values():
            peek.close()

    # -- the slow lane ---------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._list_models()
        if self._local:
            self._find_children()

    def _list_models(self) -> None:
        try:
            answer = self._list.get("/api/ps", _LIST_S)
        except NoAnswer as error:
            if error.timeout and not isinstance(self._models, Missing):
                return  # blocked on a lock: the last list stands
            self._models = Missing("unreachable", str(error))
            return
        value = answer.json()
        rows = value.get("models") if isinstance(value, Mapping) else None
        if not isinstance(rows, list):
            self._models = Missing("unreachable", f"/api/ps answered with status {answer.status}")
            return
        self._models = tuple(self._loaded(row) for row in rows if isinstance(row, Mapping))

    def _loaded(self, row: Mapping[str, object]) -> LoadedModel:
        def figure(name: str) -> Reading:
            value = row.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            return Missing("unsupported", f"this Ollama does not give {name}")

        return LoadedModel(
            name=plain(str(row.get("name") or row.get("model") or "?")),
            size_bytes=figure("size"),
            vram_bytes=figure("size_vram"),
            context=figure("context_length"),
            expires_at=self._expiry(row.get("expires_at")),
        )

    def _expiry(self, value: object) -> float | None:
        """Seconds since the epoch; a model that is kept for ever has a date centuries away."""
        if not isinstance(value, str):
            return None
        try:
            # Go writes nanoseconds.
            at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value)).timestamp()
        except (ValueError, OverflowError):
            return None
        return at if at - self._wall() < _FAR_FUTURE_S else None

    def _find_children(self) -> None:
        import psutil

        from chimera.backends.ollama_child import children

        found = children(urlsplit(self._url).port)
        pids = {child.pid for child in found}
        began: dict[int, float] = {}
        for child in found:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(child.pid)
                began[child.pid] = process.create_time()
                pids.add(process.ppid())
        self._began = began
        self._children = found
        self._pids = tuple(sorted(pids))
        self._searched = True
