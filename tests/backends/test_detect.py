"""Who answers, by the answers; addresses as people type them."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from chimera.backends import detect as module
from chimera.backends.address import normalise_url, ollama_host, same_server
from chimera.backends.detect import detect, explain, identify, open_backend
from chimera.backends.ollama_child import children
from chimera.backends.wire import Wire
from chimera.domain.options import Options
from chimera.domain.run import Target
from chimera.domain.server import ServerInfo
from chimera.errors import BackendUnavailable, BadAnswer, ConfigError

from .scripted import (
    SAMPLES,
    ScriptedOllama,
    ScriptedOpenAI,
    ScriptedServer,
    absent_url,
    body,
    endless_line,
    endless_stream,
    html,
    no_http,
    ollama_process,
    plain_sample,
    silence,
)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.4)
    monkeypatch.setattr(module, "DEFAULT_PORTS", ())


async def who(url: str) -> ServerInfo:
    wire = Wire(url, environ={})
    try:
        return await identify(wire, timeout_s=0.5)
    finally:
        await wire.close()


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
        ("http://box:8000/v1/", "http://box:8000"),
        ("https://box.example/llm/v1", "https://box.example/llm"),
        ("box:8080", "http://box:8080"),
        ("box", "http://box"),
        (":8080", "http://127.0.0.1:8080"),
        ("8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]"),
        ("http://[fe80::1%25eth0]:80", "http://[fe80::1%25eth0]:80"),
        (' "HTTP://Box:80" ', "http://box:80"),
    ],
)
def test_an_address_is_taken_as_people_type_it(typed: str, means: str) -> None:
    assert normalise_url(typed) == means
    assert normalise_url(means) == means


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "empty"),
        ("ftp://box", r"scheme ftp:// is not known"),
        ("unix:///run/x.sock", r"scheme unix:// is not known"),
        ("http://", "names no host"),
        ("http://:8080", "names no host"),
        ("http://user:secret@box:80", "CHIMERA_API_KEY"),
        ("secret@box:80", "CHIMERA_API_KEY"),
        ("http://box:eighty", "port must be a number"),
        ("http://box:70000", "port must be a number"),
        ("http://box:0", "port must be a number"),
        ("http://[::1", "is no address"),
        ("http://bo x", "no host name"),
        ("http://box/?key=1", "leave out"),
        ("http://box\x1b[31m", "no host name|no address"),
    ],
)
def test_what_is_no_address_is_refused_in_words(typed: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        normalise_url(typed)
    assert "secret" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("", None),
        ("  ", None),
        ("box", "http://box:11434"),
        ("box:1234", "http://box:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("http://box", "http://box"),
        ("https://box", "https://box"),
        ("https://box:1234/", "https://box:1234"),
        ("http://box/ollama/", "http://box/ollama"),
        ("[::]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("'10.0.0.7'", "http://10.0.0.7:11434"),
    ],
)
def test_ollama_host_is_read_in_all_its_forms(value: str, means: str | None) -> None:
    assert ollama_host(value) == means


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (None, None, True),
        ("http://127.0.0.1:11434", None, False),
        ("http://127.0.0.1:11434", "http://localhost:11434/", True),
        ("http://[::1]:11434", "http://127.0.0.1:11434/v1", True),
        ("0.0.0.0:11434", "HTTP://LOCALHOST:11434", True),
        ("http://box", "http://box:80/", True),
        ("https://box", "https://box:443", True),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11435", False),
        ("http://box:11434", "http://127.0.0.1:11434", False),
        ("http://box/a", "http://box/b", False),
        ("ftp://[evil", "http://127.0.0.1:11434", False),
        ("ftp://[evil", "ftp://[evil", True),
    ],
)
def test_one_server_is_known_by_any_of_its_addresses(one: str | None, other: str | None, same: bool) -> None:
    assert same_server(one, other) is same
    assert same_server(other, one) is same


# ---- who is it -------------------------------------------------------------------------------------------------------


async def test_servers_are_told_by_their_answers_not_by_their_ports() -> None:
    async with ScriptedOllama(version="0.33.0") as ollama:
        assert await who(ollama.url) == ServerInfo("ollama", ollama.url, "0.33.0")
    async with ScriptedOpenAI(product="vLLM") as vllm:
        assert await who(vllm.url) == ServerInfo("openai", vllm.url, "0.11.0", "vLLM")
    async with ScriptedOpenAI(product="LM Studio") as studio:
        assert await who(studio.url) == ServerInfo("openai", studio.url, None, "LM Studio")
    async with ScriptedOpenAI() as generic:
        assert await who(generic.url) == ServerInfo("openai", generic.url)


async def test_a_newer_lm_studio_is_told_by_its_own_list() -> None:
    async with ScriptedOpenAI() as server:
        listed = {"models": [{"type": "llm", "key": "some/model", "display_name": "Some"}]}
        server.route("GET", "/api/v1/models", body(200, listed))
        assert (await who(server.url)).product == "LM Studio"


async def test_a_llama_server_is_told_by_its_header_or_behind_a_proxy_by_its_props() -> None:
    async with ScriptedServer() as server:
        server.headers = {"Server": "llama.cpp"}
        assert await who(server.url) == ServerInfo("llama_server", server.url)
    async with ScriptedServer() as hidden:
        hidden.route("GET", "/props", body(200, {"build_info": "b11549-6ca1f2b"}))
        assert await who(hidden.url) == ServerInfo("llama_server", hidden.url, "b11549")


async def test_a_build_that_does_not_know_itself_has_no_version() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/props", body(200, {"build_info": "b0-unknown"}))
        assert (await who(server.url)).version is None


async def test_a_loading_llama_server_is_one_already() -> None:
    error = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    async with ScriptedServer() as server:
        server.headers = {"Server": "llama.cpp"}
        server.route("GET", "*", body(503, error))
        assert (await who(server.url)).kind == "llama_server"


async def test_a_fork_that_answers_ollamas_tags_is_no_ollama() -> None:
    async with ScriptedServer() as server:
        server.headers = {"Server": "llama.cpp"}
        server.route("GET", "/api/tags", body(200, {"models": []}))
        assert (await who(server.url)).kind == "llama_server"


async def test_recorded_answers_of_an_ollama_are_known() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "/", body(200, "Ollama is running"))
        server.route("GET", "/api/version", body(200, {"version": "0.0.0"}))
        server.route("GET", "/v1/models", plain_sample("ollama/v1-models.json"))
        assert await who(server.url) == ServerInfo("ollama", server.url, "0.0.0")


async def test_what_is_no_model_server_says_what_it_answered() -> None:
    async with ScriptedServer() as server:
        server.route("GET", "*", html())
        with pytest.raises(BadAnswer, match=r"not as a model server does.*It works!") as failed:
            await who(server.url)
        assert "\x1b" not in str(failed.value)
    with pytest.raises(BackendUnavailable):
        await who(absent_url())


async def test_a_server_that_wants_a_key_says_where_to_put_it() -> None:
    async with ScriptedOpenAI(key="k") as server:
        with pytest.raises(BadAnswer, match="CHIMERA_API_KEY"):
            await who(server.url)
        found = await detect(server.url, environ={"CHIMERA_API_KEY": "k"})
        assert found.found == (ServerInfo("openai", server.url),)


# ---- what is there ---------------------------------------------------------------------------------------------------


async def test_the_order_of_preference_holds_whoever_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedOllama() as slow, ScriptedOpenAI() as quick, ScriptedOllama() as named:

        async def late(exchange: object) -> None:
            await asyncio.sleep(0.15)
            await body(200, "Ollama is running")(exchange)  # type: ignore[arg-type]  # an Exchange

        slow.route("GET", "/", late)
        named.route("GET", "/", late)
        monkeypatch.setattr(module, "DEFAULT_PORTS", ((slow.port, "Ollama's port"), (quick.port, "vLLM's port")))
        found = await detect(environ={"OLLAMA_HOST": f"0.0.0.0:{named.port}"})
    assert [info.url for info in found.found] == [named.url, slow.url, quick.url]
    assert [attempt.why for attempt in found.tried] == ["OLLAMA_HOST", "Ollama's port", "vLLM's port"]


async def test_an_address_is_tried_once_under_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedOllama() as server:
        monkeypatch.setattr(module, "DEFAULT_PORTS", ((server.port, "Ollama's port"),))
        found = await detect(environ={"OLLAMA_HOST": f"http://localhost:{server.port}"})
    assert len(found.tried) == 1
    assert found.tried[0].why == "OLLAMA_HOST"


async def test_an_address_that_the_user_gave_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedOllama() as other:
        monkeypatch.setattr(module, "DEFAULT_PORTS", ((other.port, "Ollama's port"),))
        found = await detect(absent_url(), environ={"OLLAMA_HOST": other.url})
        assert found.found == ()
        assert len(found.tried) == 1
        assert not other.requests


async def test_a_bad_address_is_an_error_where_typed_and_an_attempt_where_inherited() -> None:
    with pytest.raises(ConfigError):
        await detect("ftp://box", environ={})
    found = await detect(environ={"OLLAMA_HOST": "ftp://box"})
    assert "scheme ftp://" in found.tried[0].outcome
    assert "ftp://box" in explain(found)


async def test_whatever_sits_at_the_ports_detection_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.2)
    servers = []
    for answer in (silence(), endless_stream(every_s=0.05), endless_line(), no_http(), html(500), body(503, "x" * 500)):
        server = ScriptedServer().route("GET", "*", answer)
        await server.start()
        servers.append(server)
    monkeypatch.setattr(module, "DEFAULT_PORTS", tuple((server.port, "some port") for server in servers))
    before = time.perf_counter()
    found = await detect(environ={})
    took = time.perf_counter() - before
    for server in servers:
        await server.stop()
    assert found.found == ()
    assert took < 3
    assert all(attempt.outcome for attempt in found.tried)


async def test_the_explanation_names_what_was_tried_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(absent_url().rpartition(":")[2])
    monkeypatch.setattr(module, "DEFAULT_PORTS", ((port, "Ollama's port"),))
    text = explain(await detect(environ={}))
    assert f"http://127.0.0.1:{port}  (Ollama's port): nobody answers" in text
    assert "ollama serve" in text
    assert "chimera --embedded" in text
    async with ScriptedOllama() as server:
        text = explain(await detect(server.url, environ={}))
    assert "Ollama 0.33.0 answers" in text
    assert "--embedded" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="a script names its process only on Linux")
async def test_an_engine_of_ollama_is_no_server_of_its_own(tmp_path: Path) -> None:
    with ollama_process(tmp_path) as url:
        backend = open_backend(Target("ollama", url))
        await backend.load(Options())
        port = int(url.rpartition(":")[2])
        (child,) = children(port)
        assert children(1) == ()
        found = await detect(child.url, environ={})
        assert found.found == ()
        assert "an engine that Ollama started" in found.tried[0].outcome
        await backend.close()


# ---- opening ---------------------------------------------------------------------------------------------------------


async def test_each_target_opens_its_own_backend() -> None:
    for target, name in (
        (Target("ollama", "127.0.0.1:1"), "Ollama"),
        (Target("openai", "127.0.0.1:1"), "OpenAICompatible"),
        (Target("llama_server", "127.0.0.1:1"), "LlamaServer"),
        (Target("llama_server", command=("llama-server", "-m", "x.gguf")), "StartedLlamaServer"),
        (Target("embedded"), "Embedded"),
    ):
        backend = open_backend(target)
        assert type(backend).__name__ == name
        assert backend.kind == target.kind
        await backend.close()


def test_a_target_without_an_address_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--server"):
        open_backend(Target("ollama"))


def test_samples_are_in_the_project() -> None:
    assert (SAMPLES / "ollama/v1-models.json").exists()
