"""The bundle holds what a bug report needs, and nothing that must stay private."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from chimera.diagnosis.bundle import build_bundle, redact
from chimera.diagnosis.evidence import EvidenceSet, Failure, LogLine, PastRun
from chimera.diagnosis.rules import diagnose
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import Effective, ServerInfo
from chimera.domain.workload import Workload

from .builders import MODEL, OFFSET, WALL, gpu, gpus, healthy, past, requests

SECRETS = {
    "sk-abcdef0123456789abcdef": "sk-abcdef0123456789abcdef",
    "Authorization: Bearer abc.def-ghi123": "abc.def-ghi123",
    "OPENAI_API_KEY=very-private-1": "very-private-1",
    '{"api_key": "quiet1234"}': "quiet1234",
    "hf_AbCdEfGhIjKlMnOp": "hf_AbCdEfGhIjKlMnOp",
    "ghp_0123456789abcdefABCDEF": "ghp_0123456789abcdefABCDEF",
    "http://maria:pa55@host:11434/api": "maria",
    "http://host/x?token=tttt1111&a=b": "tttt1111",
    "open /home/maria/models/x.gguf: no such file": "maria",
    "C:\\Users\\Maria\\models": "Maria",
    "/Users/maria/x": "maria",
    "write to maria.k@example.org": "maria.k@example.org",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def": "eyJhbGciOiJIUzI1NiJ9",
    "blob 0123456789abcdef0123456789abcdef0123456789abcdef01": "0123456789abcdef0123456789abcdef0123456789abcdef01",
}


@pytest.mark.parametrize(
    ("text", "secret"), [(text, part if part != "key" else text) for text, part in SECRETS.items()]
)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    ["sha256:9b6c7afe3ef38dbccfbb5d318525feffa3024f35f73648fe2910b698f0ece774", "http://127.0.0.1:11434",
     "NVIDIA GeForce RTX 4080 Laptop GPU", "token rate 40.5 tok/s", "gemma3:4b-it-q4_K_M", "GPU-1",
     "cudaMalloc failed: out of memory", "requests that failed, timed out or came back empty"],
)  # fmt: skip
def test_what_a_report_needs_stays(text: str) -> None:
    assert redact(text) == text


def test_names_of_people_and_hosts_that_are_given_go() -> None:
    assert "annika" not in redact("annika@box: ANNIKA's Box", ["annika", "box"]).lower()
    assert redact("boxing", ["box"]) == "boxing"


def evidence_with_secrets() -> EvidenceSet:
    throttled = tuple(gpu(i, throttle_s={"sw-thermal": 3.0 + 0.4 * i, "power-cap": 7.0}) for i in range(12))
    return healthy(
        gpu_samples=throttled,
        requests=requests(decode_tok_s=40.0),
        failures=(Failure("open /home/maria/m.gguf failed, key sk-abcdef0123456789abcdef", WALL, 500),),
        log=(LogLine("POST /api/chat Authorization: Bearer abcdef123456"),),
        server=ServerInfo("ollama", "http://maria:pa55@127.0.0.1:11434", "0.33.0"),
        model=replace(MODEL, path="/home/maria/models/gemma.gguf"),
        workload=Workload(prompt_file="/home/maria/letter-to-lawyer.txt"),
        requested=Options(num_gpu=80),
        history=(past(options=Options(num_gpu=35, num_ctx=4096)),),
        effective=Effective(Options(num_gpu=35, num_ctx=4096), notes=("num_gpu 80 runs as 35",)),
    )


def test_the_bundle_is_free_of_people_keys_and_prompts() -> None:
    evidence = evidence_with_secrets()
    bundle = build_bundle(
        evidence, diagnose(evidence), now=WALL + 12, chimera_version="0.1.0",
        system={"os": "Linux 6.8", "host": "workstation9"}, names=["workstation9"],
    )  # fmt: skip
    for text in (bundle.markdown, bundle.json):
        for secret in ("maria", "pa55", "sk-abc", "abcdef123456", "letter", "workstation9"):
            assert secret not in text


def test_the_bundle_names_versions_settings_findings_and_counters() -> None:
    evidence = evidence_with_secrets()
    bundle = build_bundle(evidence, diagnose(evidence), now=WALL + 12, chimera_version="0.1.0")
    document = json.loads(bundle.json)
    assert document["schema_version"] == 1
    assert document["server"]["version"] == "0.33.0"
    assert document["driver"] == "575.1"
    assert document["model"]["digest"] == "sha256:aa"
    assert document["requested"] == {"num_gpu": 80}
    assert document["effective"]["options"] == {"num_gpu": 35, "num_ctx": 4096}
    assert document["throttle"]["GPU-1"]["sw-thermal"]["share"] == pytest.approx(0.4, abs=0.01)
    assert {each["code"] for each in document["findings"]} >= {"low-throughput", "thermal-throttling"}
    for words in ("Ollama 0.33.0", "575.1", "thermal-throttling", "| num_gpu | 80 | 35 |", "sw-thermal 7.4 s"):
        assert words in bundle.markdown


def test_only_the_last_ten_minutes_are_in_it() -> None:
    evidence = healthy(gpu_samples=gpus(2000))
    document = json.loads(build_bundle(evidence, [], now=OFFSET + 2999.0, chimera_version="0.1.0").json)
    ages = [2999.0 - each["at"] for each in document["samples"]["gpu"]]
    assert max(ages) <= 600
    assert len(ages) == 601


def test_values_that_json_cannot_hold_become_missing() -> None:
    evidence = healthy(
        gpu_samples=(gpu(0, temperature_c=math.nan), gpu(1, power_w=Missing("unsupported", "NS"))),
        history=(PastRun("r", WALL, math.inf),),
    )
    document = json.loads(build_bundle(evidence, [], now=WALL, chimera_version="0.1.0").json)
    assert document["samples"]["gpu"][1]["power_w"] == {"missing": "unsupported", "detail": "NS"}


def test_a_finding_cannot_break_the_table() -> None:
    evidence = healthy(failures=(Failure("out of memory | <img src=x> `code` \x1b[31m", WALL, 500, True),))
    text = build_bundle(evidence, diagnose(evidence), now=WALL, chimera_version="0.1.0").markdown
    assert "\x1b" not in text
    assert "<img" not in text
