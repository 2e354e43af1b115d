"""The watch of servers against scripted ones: what is seen, what is said to be hidden, and what is never asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chimera.domain.readings import Missing
from chimera.domain.server import KEY_VARIABLE, ServerKind
from chimera.domain.telemetry import ServerSample
from chimera.telemetry.serverwatch import ServerWatch
from chimera.telemetry.watching import AWAY_S, BUSY_S, IDLE_S

from .scripted import Scripted, serve

SAMPLES = Path(__file__).parents[1] / "samples" / "llama-server"
PROPS = json.loads((SAMPLES / "props.json").read_text())
IDLE = json.loads((SAMPLES / "slots-idle.json").read_text())


def busy_slot(decoded: int, task: int = 5, number: int = 0) -> dict[str, Any]:
    return {
        "id": number, "n_ctx": 1024, "is_processing": True, "id_task": task, "n_prompt_tokens": 30 + decoded,
        "n_prompt_tokens_processed": 30, "n_prompt_tokens_cache": 0,
        "next_token": [{"has_next_token": True, "n_remain": 64 - decoded, "n_decoded": decoded}],
    }  # fmt: skip


def metrics(**values: float) -> str:
    page = (SAMPLES / "metrics.txt").read_text()
    lines = [line for line in page.splitlines() if line.split(" ")[0].removeprefix("llamacpp:") not in values]
    return "\n".join([*lines, *(f"llamacpp:{name} {value}" for name, value in values.items())])


@pytest.fixture
def llama() -> Iterator[Scripted]:
    with serve(Scripted({"/props": PROPS, "/slots": IDLE, "/metrics": metrics(), "/health": {"status": "ok"}})) as one:
        yield one


@pytest.fixture
def watched() -> Iterator[Callable[[ServerKind, str], ServerWatch]]:
    watches: list[ServerWatch] = []

    def watch(kind: ServerKind, url: str) -> ServerWatch:
        watches.append(ServerWatch(kind, url))
        return watches[-1]

    yield watch
    for one in watches:
        one.close()


Watch = Callable[[ServerKind, str], ServerWatch]


def reason(reading: object) -> str | None:
    return reading.reason if isinstance(reading, Missing) else None


# -- llama-server --------------------------------------------------------------------------------------------------


def test_an_idle_server_is_seen_idle(llama: Scripted, watched: Watch) -> None:
    watch = watched("llama_server", llama.url)
    sample = watch.read(0.0)
    assert (sample.rate, sample.busy, sample.waiting) == (0.0, 0.0, 0.0)
    assert len(sample.slots) == 2
    assert not isinstance(sample.models, Missing)
    assert sample.models[0].name.endswith(".gguf")
    assert sample.models[0].context == 1024
    assert (sample.via, sample.reachable, sample.note) == ("/slots", True, "")
    assert watch.interval() == IDLE_S


def test_averages_that_others_may_watch_are_left_alone_while_a_slot_is_free(llama: Scripted, watched: Watch) -> None:
    llama.routes["/slots"] = [busy_slot(3), IDLE[0] | {"id": 1}]
    watch = watched("llama_server", llama.url)
    for look in range(8):
        watch.read(look * 0.5)
    assert "GET /metrics" not in llama.asked
    assert watch.latest.waiting == 0.0


def test_the_queue_is_read_when_all_slots_are_busy(llama: Scripted, watched: Watch) -> None:
    llama.routes["/slots"] = [busy_slot(3), busy_slot(9, number=1)]
    llama.routes["/metrics"] = metrics(requests_deferred=3)
    watch = watched("llama_server", llama.url)
    for look in range(9):
        watch.read(look * 0.25)
    assert watch.latest.waiting == 3
    assert llama.asked.count("GET /metrics") <= 3


def test_the_rate_of_all_clients_comes_from_their_counts(llama: Scripted, watched: Watch) -> None:
    watch = watched("llama_server", llama.url)
    for look in range(12):
        llama.routes["/slots"] = [busy_slot(1 + 5 * look), busy_slot(1 + 10 * look, 6, 1)]
        watch.read(look * 0.25)
    sample = watch.latest
    assert isinstance(sample.rate, float)
    assert sample.rate == pytest.approx(60, rel=0.05)
    assert sample.rate_window_s >= 1
    assert sample.busy == 2
    assert watch.interval() == BUSY_S


def test_requests_shorter_than_the_time_between_two_looks_are_counted_by_the_server(
    llama: Scripted, watched: Watch
) -> None:
    watch = watched("embedded", llama.url)
    for look in range(12):
        # One request of 8 tokens each half second, of which 0.07 s were decoding: 7 tokens in 0.07 s.
        llama.routes["/slots"] = [busy_slot(4, task=look), IDLE[0] | {"id": 1}]
        done = look
        llama.routes["/metrics"] = metrics(
            tokens_predicted_total=64 + 8 * done, tokens_predicted_seconds_total=1 + 0.07 * done
        )
        watch.read(look * 0.5)
    assert isinstance(watch.latest.rate, float)
    assert watch.latest.rate == pytest.approx(100, rel=0.05)
    assert watch.latest.tokens_total == 80  # as counted half a second ago


def test_without_slots_finished_requests_are_counted_and_the_note_says_so(llama: Scripted, watched: Watch) -> None:
    llama.routes["/props"] = PROPS | {"endpoint_slots": False}
    del llama.routes["/slots"]
    watch = watched("llama_server", llama.url)
    watch.read(0.0)
    assert watch.latest.rate == 0.0
    llama.routes["/metrics"] = metrics(requests_processing=1)
    watch.read(1.0)
    assert reason(watch.latest.rate) == "pending"
    llama.routes["/metrics"] = metrics(
        tokens_predicted_total=164, tokens_predicted_seconds_total=3.00085, requests_deferred=2
    )
    watch.read(2.0)
    sample = watch.latest
    assert sample.rate == pytest.approx(50)
    assert (sample.waiting, sample.via, sample.tokens_total) == (2, "/metrics", 100)
    assert reason(sample.ttft_s) == "unsupported"
    assert "--no-slots" in sample.note


def test_a_server_that_shows_nothing_says_so(llama: Scripted, watched: Watch) -> None:
    llama.routes = {"/props": PROPS | {"endpoint_slots": False, "endpoint_metrics": False}}
    sample = watched("llama_server", llama.url).read(0.0)
    assert reason(sample.rate) == reason(sample.busy) == "unsupported"
    assert "neither slots nor metrics" in sample.note


def test_a_sleeping_server_is_not_woken(llama: Scripted, watched: Watch) -> None:
    llama.routes["/props"] = PROPS | {"is_sleeping": True}
    watch = watched("llama_server", llama.url)
    for look in range(4):
        watch.read(look * 2.0)
    assert watch.latest.sleeping
    assert set(llama.asked) == {"GET /props"}
    assert watch.interval() == AWAY_S
    llama.routes["/props"] = PROPS
    assert not watch.read(8.0).sleeping
    assert "GET /slots" in llama.asked


def test_a_server_that_loads_says_so(llama: Scripted, watched: Watch) -> None:
    for path in ("/props", "/slots", "/health"):
        llama.routes[path] = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        llama.status[path] = 503
    watch = watched("llama_server", llama.url)
    sample = watch.read(0.0)
    assert sample.loading
    assert sample.reachable
    assert watch.interval() == BUSY_S


def test_silence_between_batches_is_a_prompt_in_work_and_not_down(llama: Scripted, watched: Watch) -> None:
    watch = watched("llama_server", llama.url)
    watch.read(0.0)
    llama.delay_s["/slots"] = 1.5
    begun = time.monotonic()
    sample = watch.read(1.0)
    assert time.monotonic() - begun < 2.0
    assert sample.reachable
    assert sample.prefilling
    assert sample.busy == 1
    assert reason(sample.rate) == "pending"
    assert "prompt" in sample.note


def test_a_server_that_is_gone_is_unreachable_since_its_first_silence(watched: Watch) -> None:
    with serve(Scripted({"/props": PROPS, "/slots": IDLE})) as script:
        watch = watched("llama_server", script.url)
        watch.read(0.0)
    gone = [watch.read(now) for now in (1.0, 2.0, 3.0)]
    for sample in gone:
        assert not sample.reachable
        assert isinstance(sample.rate, Missing)
        assert (sample.rate.reason, sample.rate.since) == ("unreachable", 1.0)
        assert sample.tokens_total != 0
    assert watch.interval() == AWAY_S


def test_a_server_that_comes_back_is_seen_at_once(llama: Scripted, watched: Watch) -> None:
    watch = watched("llama_server", llama.url)
    llama.delay_s = {"/props": 1.2, "/slots": 1.2, "/health": 1.2}
    assert not watch.read(0.0).reachable
    llama.delay_s = {}
    assert watch.read(2.0).reachable


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"slots": 1}', b"[1, null, {}]", b"\xff\xfe", b"[" * 10_000])
def test_whatever_a_server_answers_no_error_gets_out(llama: Scripted, watched: Watch, body: bytes) -> None:
    llama.routes |= {"/slots": body, "/props": body, "/metrics": body}
    for kind in ("llama_server", "embedded", "openai"):
        sample = watched(kind, llama.url).read(0.0)
        assert isinstance(sample, ServerSample)
        assert sample.rate == 0.0 or isinstance(sample.rate, Missing)


def test_a_key_is_sent_from_the_environment_and_asked_for_where_it_lacks(
    llama: Scripted, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.status = {"/slots": 401, "/props": 401}
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    sample = watched("llama_server", llama.url).read(0.0)
    assert reason(sample.rate) == "denied"
    assert KEY_VARIABLE in sample.note
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    watched("llama_server", llama.url).read(0.0)
    assert llama.headers[-1]["Authorization"] == "Bearer s3cret"


def test_a_second_thread_gets_the_last_sample_instead_of_waiting(llama: Scripted, watched: Watch) -> None:
    watch = watched("llama_server", llama.url)
    first = watch.read(0.0)
    llama.delay_s["/slots"] = 0.6
    other = threading.Thread(target=watch.read, args=(1.0,))
    other.start()
    time.sleep(0.1)
    begun = time.monotonic()
    assert watch.read(1.05) is first
    assert time.monotonic() - begun < 0.2
    other.join()


def test_names_from_a_server_cannot_reach_the_terminal_as_commands(llama: Scripted, watched: Watch) -> None:
    llama.routes["/props"] = PROPS | {"model_alias": "evil\x1b]0;owned\x07\x1b[2Jname"}
    models = watched("llama_server", llama.url).read(0.0).models
    assert not isinstance(models, Missing)
    assert models[0].name == "evilname"


# -- vLLM and others -----------------------------------------------------------------------------------------------


def vllm(tokens: float, answered: float = 0, ttft_sum: float = 0, running: float = 1, waiting: float = 0) -> str:
    label = '{engine="0",model_name="meta/llama {x}"}'
    return "\n".join(
        [
            "# TYPE vllm:generation_tokens_total counter",
            f"vllm:generation_tokens_total{label} {tokens / 2}",
            f"vllm:generation_tokens_total{label.replace('0', '1')} {tokens / 2}",
            f"vllm:num_requests_running{label} {running}",
            f"vllm:num_requests_waiting{label} {waiting}",
            'vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="a"} 3',
            f"vllm:time_to_first_token_seconds_count{label} {answered}",
            f"vllm:time_to_first_token_seconds_sum{label} {ttft_sum}",
        ]
    )


def test_vllm_counts_the_tokens_of_all_its_clients(watched: Watch) -> None:
    with serve(Scripted()) as script:
        watch = watched("openai", script.url)
        for look in range(20):
            at = look * 0.25
            late = at > 3
            script.routes["/metrics"] = vllm(1000 + 80 * at, answered=2 + late, ttft_sum=1 + 0.4 * late, waiting=2)
            watch.read(at)
        sample = watch.latest
        assert sample.rate == pytest.approx(80, rel=0.05)
        assert sample.ttft_s == pytest.approx(0.4)
        assert (sample.busy, sample.waiting) == (1, 2)
        assert sample.tokens_total == pytest.approx(80 * 4.75)
        assert reason(sample.models) == "unsupported"
        script.routes["/metrics"] = vllm(10)
        assert isinstance(watch.read(5.0).rate, Missing)
        assert watch.latest.tokens_total == pytest.approx(80 * 4.75, abs=11)


def test_a_server_without_counters_says_that_nothing_can_be_seen(watched: Watch) -> None:
    with serve(Scripted({"/v1/models": {"data": []}})) as script:
        sample = watched("openai", script.url).read(0.0)
        assert reason(sample.rate) == reason(sample.busy) == "unsupported"
        assert "tells nobody" in sample.note
        assert sample.reachable


# -- Ollama --------------------------------------------------------------------------------------------------------

PS = {
    "models": [
        {
            "name": "gemma3:270m", "model": "gemma3:270m", "size": 287781682, "size_vram": 0, "context_length": 4096,
            "expires_at": "2026-11-23T07:25:13.551098493Z",
        },
        {"name": "kept:1b", "size": 5, "size_vram": 5, "expires_at": "2318-11-23T07:25:13.551098493+02:00"},
    ]
}  # fmt: skip

PARENT = """
import json, subprocess, sys, http.server
sys.path.insert(0, {root!r})
child = subprocess.Popen([{child!r}, "-c", {code!r}, "--port", sys.argv[1]])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = json.dumps({ps!r}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], child.pid, flush=True)
try:
    import threading; threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
finally:
    child.kill(); child.wait()
"""

CHILD = """
import json, sys, time, http.server
begun = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        n = 1 + int((time.monotonic() - begun) * 40)
        slot = {"id": 0, "is_processing": True, "id_task": 3, "next_token": [{"n_decoded": n, "n_remain": 9}]}
        data = json.dumps([slot]).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""

DEAF = "import time; time.sleep(60)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Callable[[str], tuple[str, int]]]:
    """Processes with the names of Ollama's: a server and its engine, which runs the given code."""
    for name in ("ollama", "llama-server"):
        (tmp_path / name).symlink_to(os.path.realpath(sys.executable))
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> tuple[str, int]:
        source = PARENT.format(root=os.getcwd(), child=str(tmp_path / "llama-server"), code=code, ps=PS)
        process = subprocess.Popen(
            [str(tmp_path / "ollama"), "-c", source, str(free_port())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        port, child = process.stdout.readline().split()
        return f"http://127.0.0.1:{port}", int(child)

    yield start
    for process in started:
        process.communicate("", timeout=10)


def until(watch: ServerWatch, happened: Callable[[ServerSample], bool], seconds: float = 10.0) -> ServerSample:
    """Read four times a second until something happened."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sample = watch.read(time.monotonic())
        if happened(sample):
            return sample
        time.sleep(0.13)
    raise AssertionError(f"it did not happen: {watch.latest}")


def test_ollamas_engine_on_this_host_shows_the_rate_of_all_clients(
    ollama: Callable[[str], tuple[str, int]], watched: Watch
) -> None:
    url, child = ollama(CHILD)
    watch = watched("ollama", url)
    sample = until(watch, lambda one: isinstance(one.rate, float) and one.rate_window_s > 1)
    assert sample.rate == pytest.approx(40, rel=0.05)
    assert sample.via == "child /slots"
    assert child in sample.engine_pids
    assert len(sample.engine_pids) == 2
    assert (sample.busy, sample.note, sample.loading) == (1, "", False)
    assert reason(sample.waiting) == "unsupported"
    assert not isinstance(sample.models, Missing)
    first, second = sample.models
    assert (first.name, first.size_bytes, first.vram_bytes, first.context) == ("gemma3:270m", 287781682, 0, 4096)
    assert first.expires_at == pytest.approx(1795418713.551098)
    assert second.expires_at is None
    assert reason(second.context) == "unsupported"


def test_the_models_of_a_router_are_processes_of_it_that_come_and_go(
    tmp_path: Path, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They compute, not the router: each would look like another program on the GPU."""
    monkeypatch.setattr("chimera.telemetry.watching.LANE_EVERY_S", 0.1)
    program = tmp_path / "llama-server"
    program.symlink_to(os.path.realpath(sys.executable))
    code = "import subprocess, sys\nfor line in sys.stdin:\n  print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with serve(Scripted({"/props": {**PROPS, "role": "router"}, "/slots": [], "/health": {"status": "ok"}})) as script:
        port = script.url.rpartition(":")[2]
        command = [str(program), "-c", code, "--port", port]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as router:
            models: list[int] = []
            try:
                assert router.stdin is not None
                assert router.stdout is not None
                watch = watched("llama_server", script.url)
                until(watch, lambda one: router.pid in one.engine_pids)
                for _ in range(2):
                    router.stdin.write("load\n")
                    router.stdin.flush()
                    models.append(int(router.stdout.readline()))
                    until(watch, lambda one: {router.pid, *models} == {*one.engine_pids})
            finally:
                for pid in models:
                    os.kill(pid, signal.SIGKILL)
                router.kill()


def test_an_engine_that_does_not_listen_yet_is_loading(
    ollama: Callable[[str], tuple[str, int]], watched: Watch
) -> None:
    url, _ = ollama(DEAF)
    sample = until(watched("ollama", url), lambda one: one.loading)
    assert sample.reachable
    assert sample.busy == 0


def test_a_remote_ollama_says_what_cannot_be_seen_and_why(watched: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chimera.telemetry.ollama_watch.is_local", lambda url: False)
    with serve(Scripted({"/api/ps": PS})) as script:
        watch = watched("ollama", script.url)
        sample = until(watch, lambda one: not isinstance(one.models, Missing))
        assert reason(sample.rate) == reason(sample.busy) == "unreachable"
        assert "another host" in sample.note
        assert set(script.asked) == {"GET /api/ps"}


def test_an_ollama_in_a_container_says_that_its_engine_is_out_of_reach(watched: Watch) -> None:
    with serve(Scripted({"/api/ps": PS})) as script:
        sample = until(watched("ollama", script.url), lambda one: bool(one.note))
        assert reason(sample.rate) == "unreachable"
        assert "container" in sample.note


def test_an_ollama_without_models_is_idle(watched: Watch) -> None:
    with serve(Scripted({"/api/ps": {"models": []}})) as script:
        sample = until(watched("ollama", script.url), lambda one: one.models == ())
        assert (sample.rate, sample.busy, sample.note) == (0.0, 0.0, "")


def test_a_list_of_models_that_blocks_delays_nothing(watched: Watch) -> None:
    with serve(Scripted({"/api/ps": PS}, delay_s={"/api/ps": 1.5})) as script:
        watch = watched("ollama", script.url)
        begun = time.monotonic()
        for look in range(5):
            watch.read(float(look))
        assert time.monotonic() - begun < 0.5
        assert reason(watch.latest.models) == "pending"
        begun = time.monotonic()
        watch.close()
        assert time.monotonic() - begun < 0.5


def test_an_ollama_that_is_not_there_is_unreachable(watched: Watch) -> None:
    watch = watched("ollama", f"http://127.0.0.1:{free_port()}")
    sample = until(watch, lambda one: not one.reachable)
    assert "does not answer" in sample.note
    assert reason(sample.models) == "unreachable"


# -- what is never done --------------------------------------------------------------------------------------------


def test_only_harmless_questions_are_ever_asked(watched: Watch) -> None:
    harmless = {"/props", "/slots", "/metrics", "/health", "/api/ps", "/v1/models"}
    with serve(Scripted({"/props": PROPS, "/slots": [busy_slot(4)], "/metrics": metrics(), "/api/ps": PS})) as script:
        for kind in ("llama_server", "embedded", "openai", "ollama"):
            watch = watched(kind, script.url)
            for look in range(8):
                watch.read(look * 0.5)
        time.sleep(0.1)
        assert {asked.split(" ")[0] for asked in script.asked} == {"GET"}
        assert {asked.split(" ")[1] for asked in script.asked} <= harmless
