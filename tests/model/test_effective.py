from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimera.domain.options import OPTION_RANGES, Options
from chimera.domain.server import ModelInfo, ServerKind
from chimera.errors import ConfigError
from chimera.model.effective import canonical, default_axis, derive, merge

GEMMA3 = ModelInfo("gemma3:latest", block_count=34, trained_ctx=131072, vision=True)
SMALL = ModelInfo("gemma3:270m", block_count=18, trained_ctx=32768)
KINDS: tuple[ServerKind, ...] = ("ollama", "llama_server", "openai", "embedded")


def named(*options: Options) -> list[tuple[str, Options]]:
    return [(f"c{number}", option) for number, option in enumerate(options)]


def test_60_80_and_120_layers_are_one_setting_on_a_model_of_34() -> None:
    groups = merge(named(*(Options(num_gpu=n) for n in (60, 80, 120, 20, 35))), GEMMA3, "ollama")
    assert [group.candidates for group in groups] == [("c0", "c1", "c2", "c4"), ("c3",)]
    assert groups[0].reasons == ("num_gpu 35, 60, 80 and 120 are one setting on a model of 34 layers",)
    assert groups[0].effective.options.num_gpu == 35
    assert groups[0].requested == Options(num_gpu=60)


def test_layers_above_the_model_are_clamped_and_said() -> None:
    effective = derive(Options(num_gpu=80), SMALL, "embedded")
    assert effective.options.num_gpu == 19
    assert effective.sources["num_gpu"] == "derived"
    assert effective.notes == ("num_gpu 80 runs as 19: the model has 18 layers + output",)


def test_layers_of_an_unknown_model_are_unread_and_not_merged() -> None:
    effective = derive(Options(num_gpu=80), None, "ollama")
    assert effective.options.num_gpu is None
    assert effective.unread == ("num_gpu",)
    assert len(merge(named(Options(num_gpu=60), Options(num_gpu=80)), None, "ollama")) == 2


def test_without_a_gpu_all_layers_run_on_the_cpu_and_only_when_that_is_known() -> None:
    effective = derive(Options(num_gpu=80), SMALL, "embedded", gpus=0)
    assert effective.options.num_gpu == 0
    assert "no GPU" in effective.notes[0]
    groups = merge(named(Options(), *(Options(num_gpu=n) for n in (-1, 0, 80))), SMALL, "embedded", gpus=0)
    assert len(groups) == 1
    assert len(merge(named(Options(num_gpu=0), Options(num_gpu=80)), SMALL, "embedded")) == 2


def test_automatic_layers_are_the_default_and_nothing_else() -> None:
    groups = merge(named(Options(), Options(num_gpu=-1), Options(num_gpu=35)), GEMMA3, "ollama")
    assert [group.candidates for group in groups] == [("c0", "c1"), ("c2",)]
    assert groups[0].reasons == ("num_gpu -1 and the server's default are one setting",)
    assert groups[0].effective.options.num_gpu is None


def test_a_context_of_300_runs_as_512() -> None:
    for kind in ("embedded", "llama_server", "ollama"):
        effective = derive(Options(num_ctx=300, num_batch=128), SMALL, kind)
        assert effective.options.num_ctx == 512
        assert "num_ctx 300 runs as 512: llama.cpp rounds a slot's context up to a multiple of 256" in effective.notes


def test_vision_lifts_small_contexts_at_ollama_only() -> None:
    groups = merge(named(*(Options(num_ctx=n) for n in (256, 512, 1024, 2048))), GEMMA3, "ollama")
    assert len(groups) == 1
    assert "at least 2048" in groups[0].reasons[0]
    assert derive(Options(num_ctx=512), GEMMA3, "embedded").options.num_ctx == 512
    assert derive(Options(num_ctx=512), SMALL, "ollama").options.num_ctx == 512


def test_ollama_cuts_to_the_trained_context_and_llama_cpp_warns() -> None:
    assert derive(Options(num_ctx=40000), SMALL, "ollama").options.num_ctx == 32768
    own = derive(Options(num_ctx=40000), SMALL, "embedded")
    assert own.options.num_ctx == 40192
    assert any("trained" in note for note in own.notes)
    groups = merge(named(Options(num_ctx=32768), Options(num_ctx=40000)), SMALL, "ollama")
    assert len(groups) == 1


def test_ollamas_smallest_context_is_four() -> None:
    assert derive(Options(num_ctx=1), SMALL, "ollama").options.num_ctx == 256


def test_a_batch_is_cut_to_the_whole_context_as_it_was_asked_for() -> None:
    effective = derive(Options(num_ctx=300, num_batch=512), SMALL, "embedded")
    assert effective.options.num_batch == 300
    assert "num_batch 512 runs as 300: a batch is cut to the whole context of 300" in effective.notes
    assert derive(Options(num_ctx=300, num_parallel=2, num_batch=512), SMALL, "embedded").options.num_batch == 512
    assert derive(Options(num_batch=512), SMALL, "embedded").options.num_batch == 512
    # 300 and 512 are one context, but their batches differ: two settings until the batch is pinned.
    assert len(merge(named(Options(num_ctx=300), Options(num_ctx=512)), SMALL, "embedded")) == 2
    pinned = named(Options(num_ctx=300, num_batch=64), Options(num_ctx=512, num_batch=64))
    assert len(merge(pinned, SMALL, "embedded")) == 1


def test_a_quantised_cache_switches_automatic_flash_attention_on_and_refuses_it_off() -> None:
    effective = derive(Options(kv_cache_type="q8_0", flash_attention="auto"), SMALL, "embedded")
    assert effective.options.flash_attention == "on"
    assert effective.notes == ("flash_attention auto runs as on: a quantised KV cache needs it",)
    with pytest.raises(ConfigError, match="flash"):
        derive(Options(kv_cache_type="q4_0", flash_attention="off"), SMALL, "embedded")
    groups = merge(
        named(
            Options(kv_cache_type="q8_0"),
            Options(kv_cache_type="q8_0", flash_attention="on"),
            Options(kv_cache_type="q4_0", flash_attention="off"),
            Options(flash_attention="off"),
        ),
        SMALL,
        "embedded",
    )
    assert [group.candidates for group in groups] == [("c0", "c1"), ("c2",), ("c3",)]
    assert groups[1].refused is not None
    assert [group.refused for group in (groups[0], groups[2])] == [None, None]


def test_ollama_takes_no_cache_type_from_a_request_and_says_so() -> None:
    effective = derive(Options(kv_cache_type="q8_0", num_parallel=2), SMALL, "ollama")
    assert effective.options.kv_cache_type is None
    assert set(effective.unread) == {"kv_cache_type", "num_parallel"}
    assert "environment" in effective.notes[0]
    groups = merge(named(Options(kv_cache_type="q8_0"), Options(kv_cache_type="f16")), SMALL, "ollama")
    assert len(groups) == 1
    assert "environment" in groups[0].reasons[0]


def test_a_server_that_takes_nothing_makes_all_load_options_one() -> None:
    groups = merge(named(Options(), Options(num_gpu=3, num_ctx=512)), SMALL, "openai")
    assert len(groups) == 1
    assert all("no load options" in reason for reason in groups[0].reasons)
    assert derive(Options(temperature=0.5), SMALL, "openai").options == Options(temperature=0.5)


def test_what_the_server_runs_with_anyway_is_the_baseline() -> None:
    groups = merge(
        named(Options(), Options(num_ctx=4096), Options(temperature=0.8), Options(temperature=0.9)),
        SMALL,
        "ollama",
        defaults=Options(num_ctx=4096, temperature=0.8),
    )
    assert [group.candidates for group in groups] == [("c0", "c1", "c2"), ("c3",)]


def test_equal_requests_are_told_as_such() -> None:
    groups = merge(named(Options(top_k=4), Options(top_k=4)), SMALL, "ollama")
    assert groups[0].reasons == ("c0 and c1 ask for the same",)


requests = st.builds(
    Options,
    num_gpu=st.none() | st.integers(-1, 200),
    num_ctx=st.none() | st.integers(1, 200_000),
    num_batch=st.none() | st.integers(1, 4096),
    num_parallel=st.none() | st.integers(1, 4),
    kv_cache_type=st.sampled_from([None, "f16", "q8_0"]),
    flash_attention=st.sampled_from([None, "on", "auto"]),
    temperature=st.none() | st.sampled_from([0.6, 1.0]),
)


@given(requested=requests, kind=st.sampled_from(KINDS), gpus=st.sampled_from([None, 0, 1]))
def test_effective_settings_never_exceed_the_model_and_each_note_names_an_option(
    requested: Options, kind: ServerKind, gpus: int | None
) -> None:
    effective = derive(requested, GEMMA3, kind, gpus=gpus)
    options = effective.options
    assert set(effective.sources) == set(options.as_dict())
    assert options.num_gpu is None or 0 <= options.num_gpu <= 35
    assert options.num_ctx is None or options.num_ctx % 256 == 0
    assert kind != "ollama" or options.num_ctx is None or 2048 <= options.num_ctx <= 131072
    assert all(note.split()[0] in OPTION_RANGES or note.startswith(("kv_", "flash_")) for note in effective.notes)


@given(candidates=st.lists(requests, max_size=8), kind=st.sampled_from(KINDS))
def test_merging_loses_and_invents_no_candidate(candidates: list[Options], kind: ServerKind) -> None:
    groups = merge(named(*candidates), SMALL, kind)
    names = list(itertools.chain.from_iterable(group.candidates for group in groups))
    assert sorted(names) == sorted(name for name, _ in named(*candidates))
    assert len({group.canonical for group in groups}) == len(groups)
    for group in groups:
        assert bool(group.reasons) == (len(group.candidates) > 1)
        assert canonical(group.requested, SMALL, kind) == group.canonical


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("num_gpu", GEMMA3, (0, 9, 18, 26, 35)),
        ("num_gpu", SMALL, (0, 5, 10, 14, 19)),
        ("num_gpu", ModelInfo("x", block_count=1), (0, 1, 2)),
        ("num_ctx", SMALL, (256, 512, 1024, 2048)),
        ("num_ctx", ModelInfo("x", trained_ctx=700), (256, 512, 700)),
        ("temperature", None, (0.6, 0.8, 1.0)),
        ("top_p", None, (0.8, 0.9, 0.95)),
        ("kv_cache_type", None, ("f16", "q8_0", "q4_0")),
        ("flash_attention", None, ("on", "off")),
    ],
)
def test_axes_follow_the_model_and_the_guide(name: str, model: ModelInfo | None, expected: tuple[Any, ...]) -> None:
    assert default_axis(name, model) == expected


def test_an_axis_that_cannot_be_told_asks_for_values() -> None:
    assert default_axis("num_thread", None, cores=8) == (1, 4, 8)
    assert default_axis("num_thread", None, cores=1) == (1,)
    for name in ("num_gpu", "num_thread", "nonsense"):
        with pytest.raises(ConfigError, match=name):
            default_axis(name, None)
