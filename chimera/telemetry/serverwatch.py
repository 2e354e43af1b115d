"""What a server does for all its clients, seen from outside: no proxy, and never a request that generates.

A llama.cpp server shows its slots, Ollama's engines are such servers, vLLM counts tokens in `/metrics`. What takes
long (Ollama's `/api/ps` can block for seconds, finding processes takes milliseconds) runs in a thread of its own.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.server import ServerKind
from chimera.domain.telemetry import LoadedModel, ServerSample, SlotState
from chimera.domain.text import plain

from .peek import KEY_VARIABLE, Answer, NoAnswer, Peek
from .prometheus import samples
from .slots import SlotMeter, slot_state

if TYPE_CHECKING:
    from chimera.backends.ollama_child import Child

BUSY_S = 0.25
IDLE_S = 1.0
AWAY_S = 2.0
"""Recommended waits between two looks: at a server at work, an idle one, and one that does not answer or sleeps."""

_SHORT_S = 1.0
_ALIVE_S = 0.5
_LIST_S = 6.0  # Ollama's list of models can block that long on its own locks
_LOOK_EVERY_S = 2.0
_ABOUT_EVERY_S = 10.0
_METRICS_EVERY_S = 1.0
_METRICS_WINDOW_S = 5.0
_SLEEP_AFTER_S = 5.0
_STARTING_S = 120.0

_PREFILL = Missing("pending", "reading a prompt")
_NO_QUEUE = Missing("unsupported", "Ollama queues before its engine and tells nobody")
_FAR_FUTURE_S = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class _Totals:
    """Counters of one `/metrics` page."""

    at: float
    values: Mapping[str, float]


class ServerWatch:
    """Watches one server. `read` is for one thread at a time: a second one gets the last sample.

    Args:
        kind: What the server is.
        url: Its address without a trailing slash.
        clock: Monotonic seconds.
        wall: Seconds since the epoch.
    """

    def __init__(
        self,
        kind: ServerKind,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.kind: ServerKind = kind
        self.url = url.rstrip("/")
        self.latest = ServerSample(at=float("-inf"))
        """The last sample."""
        self._clock = clock
        self._wall = wall
        self._reading = threading.Lock()
        self._meter = SlotMeter()
        self._peeks: dict[int, Peek] = {}
        self._main = Peek(self.url)
        self._totals: deque[_Totals] = deque()
        self._slots_off = self._metrics_off = False
        self._metrics_at = self._about_at = self._busy_at = float("-inf")
        self._waiting: Reading = PENDING
        self._asleep = False
        self._about: LoadedModel | None = None
        self._engine_cpu = 0.0
        self._stop = threading.Event()
        self._lane: threading.Thread | None = None
        # Written by the slow lane, each as one whole object.
        self._models: tuple[LoadedModel, ...] | Missing = PENDING
        self._children: tuple[Child, ...] = ()
        self._searched = False
        self._pids: tuple[int, ...] = ()
        self._may_sleep = False
        self._first_seen: dict[int, float] = {}

    # -- for the caller --------------------------------------------------------------------------------------------

    def read(self, now: float) -> ServerSample:
        """What the server does now. Never raises; waits a second at most.

        Args:
            now: Monotonic seconds.
        """
        if not self._reading.acquire(blocking=False):
            return self.latest
        try:
            if 0 <= now - self.latest.at < BUSY_S / 2 or self._stop.is_set():
                return self.latest
            self._start_lane()
            started = self._clock()
            try:
                sample = self._look(now, lambda: now + self._clock() - started)
            except NoAnswer as error:
                sample = self._silent(now, str(error))
            except Exception as error:  # noqa: BLE001 - a server may answer anything; the watch goes on
                sample = self._silent(now, f"its answer could not be read ({type(error).__name__})")
            self.latest = sample
            return sample
        finally:
            self._reading.release()

    def interval(self) -> float:
        """Seconds to wait before the next look: four looks a second while it works, one while it is idle."""
        if not self.latest.reachable or self.latest.sleeping:
            return AWAY_S
        busy = self.latest.busy
        at_work = self.latest.loading or self.latest.prefilling or (not isinstance(busy, Missing) and busy > 0)
        return BUSY_S if at_work else IDLE_S

    def close(self) -> None:
        """Let go of all connections; may be called twice."""
        self._stop.set()
        if self._lane is not None and self._lane is not threading.current_thread():
            # It may be inside a question of some seconds; it is a daemon and sends nothing more.
            self._lane.join(timeout=0.2)
        with self._reading:
            self._main.close()
            for peek in self._peeks.values():
                peek.close()

    # -- looking ---------------------------------------------------------------------------------------------------

    def _look(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        if self.kind == "ollama":
            return self._look_at_ollama(now, stamp)
        if self.kind == "openai":
            return self._look_at_vllm(now, stamp)
        return self._look_at_llama(now, stamp)

    def _silent(self, now: float, words: str) -> ServerSample:
        why = Missing("unreachable", words, self._since(now))
        return ServerSample(
            at=now,
            rate=why,
            ttft_s=why,
            busy=why,
            waiting=why,
            models=why,
            reachable=False,
            tokens_total=why,
            note=f"{self.url} does not answer: {words}",
            engine_pids=self._pids,
        )

    def _since(self, now: float) -> float:
        last = self.latest.busy
        known = last.since if isinstance(last, Missing) and last.reason == "unreachable" else None
        return known if known is not None else now

    # -- llama-server ----------------------------------------------------------------------------------------------

    def _look_at_llama(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        self._learn_about(now)
        if self._asleep:
            return replace(self._quiet(now), sleeping=True, note="asleep: asking for its slots would wake it")
        if self._may_sleep and now - self._busy_at > _SLEEP_AFTER_S and not self._engine_works():
            # Each look at the slots would put its sleep off; its processor time tells when it works again.
            return replace(self._quiet(now), note="about to sleep: its slots are left alone")
        slots: tuple[SlotState, ...] | None = None
        if not self._slots_off:
            try:
                answer = self._main.get("/slots", _SHORT_S)
            except NoAnswer as error:
                if error.timeout and self._alive():
                    return self._prefilling(now)
                raise
            refused = self._refusal(answer, now)
            if refused is not None:
                return refused
            if answer.ok:
                slots = self._take_slots(answer, stamp(), 0)
            else:
                self._slots_off = True
        busy = None if slots is None else sum(slot.busy for slot in slots)
        if busy:
            self._busy_at = now
        full = slots is None or busy == len(slots)
        self._read_metrics(now, stamp, wanted=full or self.kind == "embedded")
        if slots is None:
            return self._from_totals(now)
        if not full and self.kind != "embedded":
            self._waiting = 0.0  # nobody waits while a slot is free
        rate, window = self._rate(now)
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=self._meter.ttft_s,
            busy=float(busy or 0),
            waiting=self._waiting,
            slots=slots,
            models=(self._about,) if self._about else PENDING,
            via="/slots",
            prefilling=self._meter.prefilling,
            rate_window_s=window,
            tokens_total=self._tokens(),
            engine_pids=self._pids,
        )

    def _refusal(self, answer: Answer, now: float) -> ServerSample | None:
        """A sample for answers that are no data but tell a state; None for others."""
        if answer.status == 503 and b"oading" in answer.body:
            return replace(self._quiet(now), loading=True, note="loading a model")
        if answer.status in {401, 403} and b"disabled" not in answer.body:
            why = Missing("denied", f"the server wants a key: set {KEY_VARIABLE}")
            return replace(
                self._quiet(now), rate=why, busy=why, waiting=why, ttft_s=why, tokens_total=why, note=why.detail
            )
        return None

    def _quiet(self, now: float) -> ServerSample:
        """A server that answers and serves nobody."""
        return ServerSample(
            at=now,
            rate=0.0,
            ttft_s=self._meter.ttft_s,
            busy=0.0,
            waiting=0.0,
            models=(self._about,) if self._about else PENDING,
            via="/props",
            tokens_total=self._tokens(),
            engine_pids=self._pids,
        )

    def _prefilling(self, now: float) -> ServerSample:
        """It is alive but answers about slots only between batches: it reads a prompt."""
        self._busy_at = now
        busy = self.latest.busy
        return replace(
            self.latest,
            at=now,
            rate=_PREFILL,
            busy=busy if not isinstance(busy, Missing) and busy > 0 else 1.0,
            prefilling=True,
            reachable=True,
            loading=False,
            sleeping=False,
            via="/slots",
            rate_window_s=0.0,
            note="reading a prompt: this build answers only between batches",
        )

    def _alive(self) -> bool:
        with contextlib.suppress(NoAnswer):
            return Peek(self.url).get("/health", _ALIVE_S).ok
        return False

    def _learn_about(self, now: float) -> None:
        """Its model, and whether it sleeps. `/props` does not wake it, so it is asked before the slots of an idle one."""
        idle = now - self._busy_at > _SLEEP_AFTER_S
        if now - self._about_at < (0.0 if self._asleep or (idle and self._may_sleep) else _ABOUT_EVERY_S):
            return
        try:
            answer = self._main.get("/props", _SHORT_S)
        except NoAnswer as error:
            if error.timeout:
                return  # busy with a batch; asked again at the next look
            raise
        props = answer.json() if answer.ok else None
        if not isinstance(props, Mapping):
            self._asleep = False
            return
        self._about_at = now
        self._asleep = props.get("is_sleeping") is True
        if props.get("endpoint_slots") is True:
            self._slots_off = False
        self._metrics_off = props.get("endpoint_metrics") is False
        path = props.get("model_alias") or props.get("model_path")
        defaults = props.get("default_generation_settings")
        context = defaults.get("n_ctx") if isinstance(defaults, Mapping) else None
        untold = Missing("unsupported", "llama-server does not tell")
        self._about = LoadedModel(
            name=plain(re.split(r"[\\/]", str(path))[-1]) if path else "?",
            size_bytes=untold,
            vram_bytes=untold,
            context=float(context) if isinstance(context, int | float) else untold,
        )

    def _take_slots(self, answer: Answer, at: float, server: int) -> tuple[SlotState, ...]:
        value = answer.json()
        if not isinstance(value, list):
            raise NoAnswer("its /slots are no list")
        slots = tuple(slot for slot in map(slot_state, value) if slot is not None)
        self._meter.see(at, slots, server)
        return slots

    def _read_metrics(self, now: float, stamp: Callable[[], float], *, wanted: bool) -> None:
        """Counters of finished requests, and the queue.

        Each reading starts the server's own averages anew, which others may watch. So a server that is not ours is
        asked only while all its slots are busy or not to be seen: only then can anybody wait.
        """
        if not wanted or self._metrics_off or now - self._metrics_at < _METRICS_EVERY_S - BUSY_S / 2:
            return
        self._metrics_at = now
        try:
            answer = self._main.get("/metrics", _SHORT_S)
        except NoAnswer as error:
            if error.timeout:
                return
            raise
        if not answer.ok:
            self._metrics_off = True
            self._waiting = Missing("unsupported", "this llama-server runs without --metrics")
            return
        values = samples(answer.text(), "llamacpp:")
        self._totals.append(_Totals(stamp(), values))
        while len(self._totals) > 2 and now - self._totals[1].at > _METRICS_WINDOW_S:
            self._totals.popleft()
        if "requests_deferred" in values:
            self._waiting = values["requests_deferred"]

    def _rate(self, now: float) -> tuple[Reading, float]:
        """From the slots; for requests shorter than the time between two looks, from the counters of finished ones."""
        rate, window = self._meter.rate(now)
        if isinstance(rate, Missing) and not self._meter.prefilling:
            finished = self._finished_rate()
            if finished is not None:
                return finished
        return rate, window

    def _finished_rate(self) -> tuple[float, float] | None:
        """Decode rate of the requests that ended lately: tokens by the seconds that the server counted for them."""
        if len(self._totals) < 2 or self._clock() - self._totals[-1].at > _METRICS_WINDOW_S:
            return None
        first, last = self._totals[0], self._totals[-1]
        tokens = _grown(first, last, "tokens_predicted_total")
        seconds = _grown(first, last, "tokens_predicted_seconds_total")
        return (tokens / seconds, last.at - first.at) if tokens > 0 and seconds > 0 else None

    def _tokens(self) -> Reading:
        """Exact where the server counts, at least what was seen where not."""
        if self._totals and "tokens_predicted_total" in self._totals[-1].values:
            if self._total_at_start is None:
                self._total_at_start = self._totals[0].values["tokens_predicted_total"]
            finished = self._totals[-1].values["tokens_predicted_total"] - self._total_at_start
            return max(finished, self._meter.tokens)
        return self._meter.tokens

    _total_at_start: float | None = None

    def _from_totals(self, now: float) -> ServerSample:
        """No slots to be seen: only what is finished can be counted."""
        note = "this server shows no slots (--no-slots): tokens are counted when a request ends"
        if not self._totals:
            why = Missing("unsupported", "this server shows neither slots nor metrics")
            return replace(
                self._quiet(now), rate=why, ttft_s=why, busy=why, waiting=why, tokens_total=why, via="", note=why.detail
            )
        values = self._totals[-1].values
        busy = values.get("requests_processing", 0.0)
        if busy:
            self._busy_at = now
        finished = self._finished_rate()
        rate: Reading = 0.0
        if finished is not None:
            rate = finished[0]
        elif busy:
            rate = Missing("pending", "no request has ended yet")
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=Missing("unsupported", "only slots show it"),
            busy=busy,
            waiting=self._waiting,
            models=(self._about,) if self._about else PENDING,
            via="/metrics",
            note=note,
            rate_window_s=finished[1] if finished else 0.0,
            tokens_total=self._tokens(),
            engine_pids=self._pids,
        )

    def _engine_works(self) -> bool:
        """Whether the engine's process has used the processor since the last look."""
        import psutil

        used = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.Error, OSError):
                times = psutil.Process(pid).cpu_times()
                used += float(times.user + times.system)
        before, self._engine_cpu = self._engine_cpu, used
        return used - before > 0.1

    # -- Ollama ----------------------------------------------------------------------------------------------------

    def _look_at_ollama(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        models, children = self._models, self._children
        if isinstance(models, Missing) and models.reason == "unreachable":
            return self._silent(now, models.detail)
        slots: list[SlotState] = []
        seen = loading = stuck = False
        for child in children:
            peek = self._peeks.setdefault(child.port, Peek(child.url))
            try:
                answer = peek.get("/slots", _SHORT_S)
            except NoAnswer as error:
                # A child that has only just begun does not listen yet; one that listens and is silent reads a prompt.
                stuck = stuck or error.timeout
                loading = loading or (not error.timeout and now - self._first_seen.get(child.pid, now) < _STARTING_S)
                continue
            if answer.status == 503:
                loading = True
            elif answer.ok:
                seen = True
                slots += self._take_slots(answer, stamp(), child.port)
        for port in [port for port in self._peeks if port not in {child.port for child in children}]:
            self._peeks.pop(port).close()
            self._meter.gone(port)
        note = self._what_ollama_hides(seen=seen or stuck or loading)
        busy: Reading = float(sum(slot.busy for slot in slots))
        rate, window = self._meter.rate(now)
        ttft = self._meter.ttft_s
        if stuck and not seen:
            rate, window, busy = _PREFILL, 0.0, 1.0
        elif not seen and not loading and models:
            hidden = PENDING if not self._searched else Missing("unreachable", note)
            rate, busy, ttft = hidden, hidden, hidden
        elif not seen:
            rate, window, busy = 0.0, 0.0, 0.0
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=ttft,
            busy=busy,
            waiting=_NO_QUEUE,
            slots=tuple(slots),
            models=models,
            loading=loading,
            via="child /slots" if seen or stuck else "/api/ps",
            note=note,
            prefilling=(stuck and not seen) or self._meter.prefilling,
            rate_window_s=window,
            tokens_total=self._meter.tokens if seen else Missing("unreachable", note) if note else self._meter.tokens,
            engine_pids=self._pids,
        )

    def _what_ollama_hides(self, *, seen: bool) -> str:
        if seen:
            return ""
        if not self._local:
            return (
                "this Ollama is on another host: its engines answer there only, so the token rate of its clients "
                "cannot be seen from here"
            )
        if self._models and not isinstance(self._models, Missing) and self._searched:
            return (
                "no engine of this Ollama can be reached from here (a container, a version before 0.30, or MLX): "
                "the token rate of its clients cannot be seen"
            )
        return ""

    @property
    def _local(self) -> bool:
        host = (urlsplit(self.url).hostname or "").lower()
        return host in {"localhost", "::1"} or host.startswith("127.")

    # -- vLLM and others -------------------------------------------------------------------------------------------

    def _look_at_vllm(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        if not self._metrics_off:
            answer = self._main.get("/metrics", _SHORT_S)
            values = samples(answer.text(), "vllm:") if answer.ok else {}
            if "generation_tokens_total" in values:
                return self._from_vllm(now, _Totals(stamp(), values))
            if answer.status in {401, 403}:
                refused = self._refusal(answer, now)
                if refused is not None:
                    return refused
            self._metrics_off = True
        # Ask for nothing but a sign of life.
        self._main.get("/v1/models", _SHORT_S)
        why = Missing("unsupported", "this server tells nobody what it does for its clients")
        return ServerSample(
            at=now, rate=why, ttft_s=why, busy=why, waiting=why, models=why, tokens_total=why, note=why.detail
        )

    def _from_vllm(self, now: float, totals: _Totals) -> ServerSample:
        if self._totals and _grown(self._totals[-1], totals, "generation_tokens_total") < 0:
            self._totals.clear()  # it was started anew
        self._totals.append(totals)
        while len(self._totals) > 2 and totals.at - self._totals[1].at >= ENOUGH_FOR_COUNTERS_S:
            self._totals.popleft()
        first = self._totals[0]
        span = totals.at - first.at
        running = totals.values.get("num_requests_running")
        rate: Reading = PENDING
        if span >= ENOUGH_FOR_COUNTERS_S / 2:
            rate = _grown(first, totals, "generation_tokens_total") / span
        answered = _grown(first, totals, "time_to_first_token_seconds_count")
        ttft = self.latest.ttft_s if self.latest.via == "/metrics" else PENDING
        if answered > 0:
            ttft = _grown(first, totals, "time_to_first_token_seconds_sum") / answered
        if self._total_at_start is None:
            self._total_at_start = first.values["generation_tokens_total"]
        untold = Missing("unsupported", "vLLM does not tell")
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=ttft,
            busy=untold if running is None else running,
            waiting=totals.values.get("num_requests_waiting", untold),
            models=untold,
            via="/metrics",
            rate_window_s=span,
            tokens_total=totals.values["generation_tokens_total"] - self._total_at_start,
        )

    # -- the slow lane ---------------------------------------------------------------------------------------------

    def _start_lane(self) -> None:
        if self._lane is None and (self.kind == "ollama" or (self.kind == "llama_server" and self._local)):
            self._lane = threading.Thread(target=self._run_lane, name="server-watch", daemon=True)
            self._lane.start()

    def _run_lane(self) -> None:
        peek = Peek(self.url)
        while not self._stop.is_set():
            try:
                if self.kind == "ollama":
                    self._list_models(peek)
                if self._local:
                    self._find_processes()
            except Exception as error:  # noqa: BLE001 - the lane goes on; what it could not read stays as it was
                self._lane_error = type(error).__name__
            self._stop.wait(_LOOK_EVERY_S)
        peek.close()

    _lane_error = ""

    def _list_models(self, peek: Peek) -> None:
        try:
            answer = peek.get("/api/ps", _LIST_S)
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
            at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value)).timestamp()
        except (ValueError, OverflowError):
            return None
        return at if at - self._wall() < _FAR_FUTURE_S else None

    def _find_processes(self) -> None:
        import psutil

        from chimera.backends.ollama_child import argument, children

        port = urlsplit(self.url).port
        if self.kind == "ollama":
            found = children(port)
            now = self._clock()
            self._first_seen = {child.pid: self._first_seen.get(child.pid, now) for child in found}
            pids = {child.pid for child in found}
            for child in found:
                with contextlib.suppress(psutil.Error):
                    pids.add(psutil.Process(child.pid).ppid())
            self._children = found
            self._pids = tuple(sorted(pids))
            self._searched = True
            return
        if self._pids and all(psutil.pid_exists(pid) for pid in self._pids):
            return
        for process in psutil.process_iter(["name"]):
            if not (process.info["name"] or "").startswith("llama-server"):
                continue
            with contextlib.suppress(psutil.Error):
                argv = process.cmdline()
                if (argument(argv, "--port") or "8080") == str(port):
                    self._pids = (process.pid,)
                    sleeps = argument(argv, "--sleep-idle-seconds") or "-1"
                    self._may_sleep = not sleeps.startswith("-")
                    return
        self._pids = ()


ENOUGH_FOR_COUNTERS_S = 2.0
"""Rates of counters that move every step are taken over about so long."""


def _grown(first: _Totals, last: _Totals, name: str) -> float:
    return last.values.get(name, 0.0) - first.values.get(name, 0.0)
