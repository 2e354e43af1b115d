"""A llama.cpp server looked at: its slots, and its counters where those do not show enough."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from chimera.backends.address import is_local
from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.telemetry import LoadedModel, ServerSample, SlotState
from chimera.domain.text import plain

from .peek import Answer, NoAnswer, Peek
from .slots import FRESH_S, SlotMeter, slot_state
from .watching import BUSY_S, SHORT_S, Counters, Lane, hidden, wants_key

READING = Missing("pending", "reading a prompt")

_ALIVE_S = 0.5
_ABOUT_EVERY_S = 10.0
_METRICS_EVERY_S = 1.0
_METRICS_SPAN_S = 5.0
_SLEEPY_AFTER_S = 5.0
_UNTOLD = Missing("unsupported", "llama-server does not tell")


def slots_of(answer: Answer) -> tuple[SlotState, ...]:
    """The slots in an answer of `/slots`; raises `NoAnswer` where it is no list."""
    value = answer.json()
    if not isinstance(value, list):
        raise NoAnswer("its /slots are no list")
    return tuple(slot for slot in map(slot_state, value) if slot is not None)


class LlamaWatch:
    """Looks at one llama-server.

    Args:
        url: Its address.
        ours: Chimera started it, so nobody else watches its averages.
    """

    def __init__(self, url: str, *, ours: bool) -> None:
        self._url = url
        self._ours = ours
        self._peek = Peek(url)
        self._meter = SlotMeter()
        self._counters = Counters("llamacpp:", "tokens_predicted_total", _METRICS_SPAN_S)
        self._slots_off = self._metrics_off = False
        self._metrics_at = self._about_at = self._busy_at = float("-inf")
        self._waiting: Reading = PENDING
        self._asleep = False
        self._about: LoadedModel | None = None
        self._slots: tuple[SlotState, ...] = ()
        self._cpu_s = 0.0
        self._pids: tuple[int, ...] = ()
        self._may_sleep = False
        self._router = False
        self._lane = Lane(self._find_process)

    def look(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        """One sample; raises `NoAnswer`."""
        if is_local(self._url) and not self._ours:
            self._lane.start()
        self._learn(now)
        if self._asleep:
            return replace(self._idle(now), sleeping=True, note="asleep: asking for its slots would wake it")
        if self._may_sleep and now - self._busy_at > _SLEEPY_AFTER_S and not self._works():
            # Each look at the slots would put its sleep off; its processor time tells when it works again.
            return replace(self._idle(now), note="about to sleep: its slots are left alone until it works")
        slots: tuple[SlotState, ...] | None = None
        if not self._slots_off:
            try:
                answer = self._peek.get("/slots", SHORT_S)
            except NoAnswer as error:
                if error.timeout and self._alive():
                    return self._reading(now)
                raise
            if answer.status == 503 and b"oading" in answer.body:
                return replace(self._idle(now), loading=True, note="loading a model")
            if why := wants_key(answer):
                return replace(hidden(now, why), engine_pids=self._pids)
            self._slots_off = not answer.ok
            if answer.ok:
                self._slots = slots = slots_of(answer)
                self._meter.see(stamp(), slots)
        busy = sum(slot.busy for slot in slots or ())
        if busy:
            self._busy_at = now
        full = slots is None or busy == len(slots)
        if full or self._ours:
            self._count(now, stamp)
        else:
            self._waiting = 0.0  # nobody waits while a slot is free
        return self._from_counters(now) if slots is None else self._from_slots(now, slots, busy)

    def close(self) -> None:
        """Let go of connections and threads."""
        self._lane.close()
        self._peek.close()

    # -- samples ---------------------------------------------------------------------------------------------------

    def _from_slots(self, now: float, slots: tuple[SlotState, ...], busy: int) -> ServerSample:
        rate, window = self._meter.rate(now)
        if isinstance(rate, Missing) and (finished := self._finished(now)):
            rate, window = finished  # requests shorter than the time between two looks
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=self._meter.ttft_s,
            busy=float(busy),
            waiting=self._waiting,
            slots=slots,
            models=self._models,
            via="/slots",
            prefilling=self._meter.prefilling,
            rate_window_s=window,
            tokens_total=self._tokens,
            engine_pids=self._pids,
        )

    def _from_counters(self, now: float) -> ServerSample:
        """No slots to be seen: only what is finished can be counted."""
        busy = self._counters.get("requests_processing")
        if busy is None:
            why = Missing("unsupported", "this server shows neither slots nor metrics (--no-slots, no --metrics)")
            return replace(hidden(now, why), models=self._models, engine_pids=self._pids)
        if busy:
            self._busy_at = now
        rate, window = self._finished(now) or (Missing("pending", "no request has ended yet") if busy else 0.0, 0.0)
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=Missing("unsupported", "only slots show it"),
            busy=busy,
            waiting=self._waiting,
            models=self._models,
            via="/metrics",
            note="this server shows no slots (--no-slots): tokens are counted when a request ends",
            rate_window_s=window,
            tokens_total=self._tokens,
            engine_pids=self._pids,
        )

    def _idle(self, now: float) -> ServerSample:
        """It answers, and serves nobody."""
        return ServerSample(
            at=now,
            rate=0.0,
            ttft_s=self._meter.ttft_s,
            busy=0.0,
            waiting=0.0,
            models=self._models,
            via="/props",
            tokens_total=self._tokens,
            engine_pids=self._pids,
        )

    def _reading(self, now: float) -> ServerSample:
        """It is alive but tells of its slots only between batches: it reads a prompt."""
        self._busy_at = now
        return ServerSample(
            at=now,
            rate=READING,
            ttft_s=self._meter.ttft_s,
            busy=float(max(1, sum(slot.busy for slot in self._slots))),
            waiting=Missing("stale", "told between batches only", self._metrics_at),
            slots=self._slots,
            models=self._models,
            via="/slots",
            prefilling=True,
            tokens_total=self._tokens,
            engine_pids=self._pids,
            note="reading a prompt: this build answers only between batches",
        )

    @property
    def _models(self) -> tuple[LoadedModel, ...] | Missing:
        return (self._about,) if self._about else PENDING

    @property
    def _tokens(self) -> float:
        """Exact where the server counts; else at least what was seen."""
        return max(self._counters.tokens or 0.0, self._meter.tokens)

    def _finished(self, now: float) -> tuple[float, float] | None:
        """Decode rate of the requests that ended lately: tokens by the seconds that the server counted for them.

        The server counts the first token of a request, which comes out of its prompt, but no time for it.
        """
        first = self._counters.grown("requests_seen")
        tokens = self._counters.grown("tokens_predicted_total") - first
        seconds = self._counters.grown("tokens_predicted_seconds_total")
        if now - self._counters.grew_at > FRESH_S or tokens <= 0 or seconds <= 0:
            return None
        return tokens / seconds, self._counters.span

    # -- asking ----------------------------------------------------------------------------------------------------

    def _learn(self, now: float) -> None:
        """Its model, and whether it sleeps: `/props` does not wake it, so it comes before the slots of an idle one."""
        drowsy = self._asleep or (self._may_sleep and now - self._busy_at > _SLEEPY_AFTER_S)
        if not drowsy and now - self._about_at < _ABOUT_EVERY_S:
            return
        try:
            answer = self._peek.get("/props", SHORT_S)
        except NoAnswer as error:
            if error.timeout:
                return  # at work on a batch; asked again at the next look
            raise
        self._about_at = now
        props = answer.json() if answer.ok else None
        if not isinstance(props, Mapping):
            self._asleep = False
            return
        self._asleep = props.get("is_sleeping") is True
        self._router = props.get("role") == "router"
        self._slots_off = props.get("endpoint_slots") is False
        self._metrics_off = props.get("endpoint_metrics") is False
        path = props.get("model_alias") or props.get("model_path")
        defaults = props.get("default_generation_settings")
        context = defaults.get("n_ctx") if isinstance(defaults, Mapping) else None
        self._about = LoadedModel(
            name=plain(re.split(r"[\\/]", str(path))[-1]) if path else "?",
            size_bytes=_UNTOLD,
            vram_bytes=_UNTOLD,
            context=float(context) if isinstance(context, int | float) else _UNTOLD,
        )

    def _count(self, now: float, stamp: Callable[[], float]) -> None:
        """Read the counters of finished requests, and the queue.

        Each reading starts the server's own averages anew, which others may watch. So a server that is not ours is
        asked only while all its slots are busy or not to be seen: only then can anybody wait.
        """
        if self._metrics_off:
            self._waiting = Missing("unsupported", "this llama-server runs without --metrics")
            return
        if now - self._metrics_at < _METRICS_EVERY_S - BUSY_S / 2:
            return
        try:
            answer = self._peek.get("/metrics", SHORT_S)
        except NoAnswer as error:
            if error.timeout:
                return
            raise
        self._metrics_at = now
        seen = float(self._meter.requests)
        self._metrics_off = not (answer.ok and self._counters.take(answer.text(), stamp(), requests_seen=seen))
        deferred = self._counters.get("requests_deferred")
        if not self._metrics_off and deferred is not None:
            self._waiting = deferred

    def _alive(self) -> bool:
        peek = Peek(self._url)
        try:
            return peek.get("/health", _ALIVE_S).ok
        except NoAnswer:
            return False
        finally:
            peek.close()

    # -- its process -----------------------------------------------------------------------------------------------

    def _works(self) -> bool:
        """Whether its process has used the processor since the last look."""
        import psutil

        used = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.Error, OSError):
                times = psutil.Process(pid).cpu_times()
                used += float(times.user + times.system)
        before, self._cpu_s = self._cpu_s, used
        return used - before > 0.1

    def _find_process(self) -> None:
        """By the port in its arguments; takes milliseconds, so it runs in the slow lane."""
        import psutil

        from chimera.backends.ollama_child import argument

        # A router's models are processes of their own, which come and go.
        if self._pids and not self._router and all(psutil.pid_exists(pid) for pid in self._pids):
            return
        port = str(urlsplit(self._url).port or 80)
        for process in psutil.process_iter(["name"]):
            if not (process.info["name"] or "").startswith("llama-server"):
                continue
            with contextlib.suppress(psutil.Error):
                argv = process.cmdline()
                if (argument(argv, "--port") or "8080") == port:
                    idle = argument(argv, "--sleep-idle-seconds") or "-1"
                    self._may_sleep = not idle.startswith("-")
                    models = process.children(recursive=True) if self._router else []
                    self._pids = (process.pid, *(one.pid for one in models))
                    return
        self._pids = ()
