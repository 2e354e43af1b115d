"""What fills a GPU's memory and how fast a model could run there: samples and shapes put together by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chimera.domain.options import Options
from chimera.domain.readings import Missing, Reading, number
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import (
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuState,
    LoadedModel,
    ServerSample,
    SlotState,
    VramParts,
)
from chimera.model.memory import kv_cache, placement
from chimera.model.roofline import bytes_per_token, mbu, roof_tok_s
from chimera.model.shape import ModelShape, from_gguf
from chimera.telemetry.loaded import Loaded
from chimera.telemetry.roof import decode_roof
from chimera.telemetry.vram import vram_parts
from tests.model.files import llama, llama_tensors, write

MIB = 1024**2
ENGINE, STRANGER = 4711, 1042
OLLAMA = ServerInfo("ollama", "http://127.0.0.1:11434")
UNTOLD = Missing("unsupported", "not told")


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return from_gguf(write(tmp_path_factory.mktemp("model") / "m.gguf", llama(8), llama_tensors(8)))


def loaded(shape: ModelShape | None, **options: object) -> Loaded:
    asked = Options.of({"num_ctx": 2048, "num_gpu": 9, "num_parallel": 1, "kv_cache_type": "f16", **options})
    return Loaded(OLLAMA, ModelInfo("m:latest"), shape, Effective(options=asked))


def listed(vram: Reading = 40.0 * MIB, name: str = "m:latest", pids: tuple[int, ...] = (ENGINE,)) -> ServerSample:
    return ServerSample(at=1.0, models=(LoadedModel(name, vram, vram, 2048.0),), engine_pids=pids)


def state(*processes: tuple[GpuProcess, ...] | Missing, used: Reading = 100.0 * MIB) -> GpuState:
    return GpuState(
        at=1.0,
        infos=tuple(GpuInfo(f"GPU-{i}", i, "a GPU", bandwidth_gb_s=400.0) for i in range(len(processes))),
        samples=tuple(
            GpuSample(f"GPU-{i}", 1.0, vram_used_bytes=used, processes=each) for i, each in enumerate(processes)
        ),
    )


def engine(mib: float) -> GpuProcess:
    return GpuProcess(ENGINE, "llama-server", mib * MIB)


def stranger(mib: float) -> GpuProcess:
    return GpuProcess(STRANGER, "python", mib * MIB)


def known(reading: Reading) -> float:
    value = number(reading)
    assert value is not None, reading
    return value


def weights_of(shape: ModelShape, num_gpu: int | None = None) -> int:
    placed = placement(shape, num_gpu)
    assert placed is not None
    return placed.gpu


def test_the_parts_add_up_to_what_the_driver_says_that_the_engine_holds(shape: ModelShape) -> None:
    parts = vram_parts(state((engine(50), stranger(7))), loaded(shape), listed())["GPU-0"]
    assert known(parts.weights_bytes) == weights_of(shape)
    assert known(parts.kv_bytes) == kv_cache(shape, 2048).total
    assert sum(map(known, (parts.weights_bytes, parts.kv_bytes, parts.compute_bytes))) == pytest.approx(50 * MIB)
    assert (parts.engine_bytes, parts.foreign_bytes, parts.held_source) == (50 * MIB, 7 * MIB, "measured")
    assert parts.source == "derived"


def test_a_larger_context_and_a_smaller_cache_type_move_only_the_cache(shape: ModelShape) -> None:
    small = vram_parts(state((engine(90),)), loaded(shape), listed())["GPU-0"]
    large = vram_parts(state((engine(90),)), loaded(shape, num_ctx=8192), listed())["GPU-0"]
    packed = vram_parts(state((engine(90),)), loaded(shape, kv_cache_type="q8_0"), listed())["GPU-0"]
    assert known(large.kv_bytes) == 4 * known(small.kv_bytes)
    assert known(packed.kv_bytes) == pytest.approx(known(small.kv_bytes) * 34 / 64)
    assert large.weights_bytes == small.weights_bytes == packed.weights_bytes


def test_offloaded_in_part_only_that_part_is_on_the_gpu(shape: ModelShape) -> None:
    parts = vram_parts(state((engine(50),)), loaded(shape, num_gpu=4), listed())["GPU-0"]
    assert known(parts.weights_bytes) == weights_of(shape, 4) < weights_of(shape)


def test_more_than_the_engine_holds_is_not_claimed(shape: ModelShape) -> None:
    parts = vram_parts(state((engine(1),)), loaded(shape), listed())["GPU-0"]
    for reading in (parts.weights_bytes, parts.kv_bytes, parts.compute_bytes):
        assert isinstance(reading, Missing)
        assert "not all of the model" in reading.detail
    assert parts.engine_bytes == 1 * MIB


def test_without_a_context_weights_are_known_and_cache_and_buffers_are_not(shape: ModelShape) -> None:
    model = replace(loaded(shape), effective=Effective(options=Options(num_gpu=9)))
    sample = replace(listed(), models=(LoadedModel("m", 1.0, 1.0, UNTOLD),))
    parts = vram_parts(state((engine(50),)), model, sample)["GPU-0"]
    assert known(parts.weights_bytes) == weights_of(shape)
    assert isinstance(parts.kv_bytes, Missing)
    assert isinstance(parts.compute_bytes, Missing)
    assert parts.source == "estimated"


def test_without_a_shape_the_engine_is_one_part() -> None:
    parts = vram_parts(state((engine(50), stranger(7))), loaded(None), listed())["GPU-0"]
    assert isinstance(parts.weights_bytes, Missing)
    assert (parts.engine_bytes, parts.foreign_bytes) == (50 * MIB, 7 * MIB)


def test_where_the_driver_does_not_tell_processes_apart_the_servers_figure_stands_in(shape: ModelShape) -> None:
    nameless = GpuProcess(STRANGER, "?", UNTOLD)
    for told in ((nameless,), Missing("denied", "not allowed")):
        parts = vram_parts(state(told), loaded(shape), listed())["GPU-0"]
        assert (parts.engine_bytes, parts.foreign_bytes) == (40 * MIB, 60 * MIB)
        assert parts.held_source == "derived"
        assert known(parts.weights_bytes) == weights_of(shape)


def test_where_nobody_tells_nothing_is_claimed(shape: ModelShape) -> None:
    parts = vram_parts(state((GpuProcess(STRANGER, "?", UNTOLD),)), loaded(shape), listed(UNTOLD))["GPU-0"]
    assert isinstance(parts.foreign_bytes, Missing)
    assert isinstance(parts.engine_bytes, Missing)
    assert isinstance(parts.compute_bytes, Missing)


def test_before_an_engine_of_ours_runs_everything_is_foreign(shape: ModelShape) -> None:
    ready = Loaded(ServerInfo("embedded", ""), ModelInfo("m"), shape)
    parts = vram_parts(state((stranger(7),)), ready)["GPU-0"]
    assert parts == VramParts(0.0, 0.0, 0.0, 7 * MIB, 0.0)


def test_a_server_that_holds_no_model_holds_no_weights(shape: ModelShape) -> None:
    idle = ServerSample(at=1.0, models=(), engine_pids=(ENGINE,))
    parts = vram_parts(state((engine(0.5), stranger(7))), loaded(shape), idle)["GPU-0"]
    assert (parts.weights_bytes, parts.kv_bytes, parts.compute_bytes) == (0.0, 0.0, 0.5 * MIB)


def test_another_loaded_model_is_not_taken_for_this_one(shape: ModelShape) -> None:
    parts = vram_parts(state((engine(50),)), loaded(shape), listed(name="other"))["GPU-0"]
    assert isinstance(parts.weights_bytes, Missing)
    assert parts.engine_bytes == 50 * MIB


def test_a_server_of_one_model_may_call_it_by_its_file(shape: ModelShape) -> None:
    model = replace(loaded(shape), server=ServerInfo("llama_server", "http://127.0.0.1:8080"))
    parts = vram_parts(state((engine(50),)), model, listed(UNTOLD, name="m-q4_k.gguf"))["GPU-0"]
    assert known(parts.weights_bytes) == weights_of(shape)


def test_several_gpus_share_the_model_by_what_the_engine_holds_on_each(shape: ModelShape) -> None:
    parts = vram_parts(state((engine(60),), (engine(20), stranger(7)), ()), loaded(shape), listed())
    assert known(parts["GPU-0"].weights_bytes) == pytest.approx(0.75 * weights_of(shape))
    assert known(parts["GPU-1"].weights_bytes) == pytest.approx(0.25 * weights_of(shape))
    assert parts["GPU-2"].weights_bytes == 0.0
    assert (parts["GPU-1"].source, parts["GPU-1"].foreign_bytes) == ("estimated", 7 * MIB)
    untold = vram_parts(state((engine(60),), UNTOLD), loaded(shape), listed())
    assert isinstance(untold["GPU-0"].weights_bytes, Missing), "the other GPU may hold any part"


def test_a_lost_gpu_has_no_parts_and_a_server_elsewhere_none_here(shape: ModelShape) -> None:
    both = state((engine(50),), (engine(5),))
    gone = replace(both.samples[1], lost=Missing("lost", "fallen off the bus"))
    assert vram_parts(replace(both, samples=(both.samples[0], gone)), loaded(shape), listed()).keys() == {"GPU-0"}
    away = replace(loaded(shape), server=ServerInfo("ollama", "http://192.168.1.20:11434"))
    assert vram_parts(both, away, listed()) == {}


# -- the roof ------------------------------------------------------------------------------------------------------


def roof(shape: ModelShape | None, sample: ServerSample | None = None, gpus: GpuState | None = None) -> Reading:
    model, gpus = loaded(shape), gpus or state((engine(50),))
    return decode_roof(gpus, model, sample, vram_parts(gpus, model, sample or listed()))


def test_the_roof_is_the_bandwidth_over_what_a_token_reads_and_the_rate_over_it_is_mbu(shape: ModelShape) -> None:
    read = bytes_per_token(shape, num_gpu=9)
    assert read is not None
    limit = known(roof(shape))
    assert limit == pytest.approx(400e9 / read.gpu)
    assert 0.6 * limit / limit == pytest.approx(mbu(0.6 * limit, read.gpu, 400))


def test_depth_lowers_the_roof_in_steps_and_sequences_together_have_a_higher_one(shape: ModelShape) -> None:
    def at(*depths: int) -> float:
        slots = tuple(SlotState(i, True, i, depth, 0, 10) for i, depth in enumerate(depths))
        return known(roof(shape, replace(listed(), slots=slots)))

    assert at(0) == at(200) == known(roof(shape))
    assert at(2000) == roof_tok_s(shape, 400, depth=1792, num_gpu=9)
    assert at(2000) < at(0)
    assert at(0) < at(0, 0) <= 2 * at(0)
    assert at(0, 4000) == at(0, 0), "the shallowest counts, so that it stays a ceiling"


def test_without_bandwidth_shape_or_gpu_the_roof_is_unknown_and_says_why(shape: ModelShape) -> None:
    bare = state((engine(50),))
    untold = replace(bare, infos=(replace(bare.infos[0], bandwidth_gb_s=UNTOLD),))
    none = GpuState(1.0, missing=Missing("unsupported", "no driver"))
    elsewhere = state((stranger(7),))
    for found, why in (
        (roof(shape, gpus=untold), "not told"),
        (roof(None), "layers are not known"),
        (roof(shape, gpus=none), "no GPU"),
        (roof(shape, gpus=elsewhere), "not on a GPU"),
        (decode_roof(bare, loaded(shape, num_gpu=4), None, {}), "a part of the model"),
        (decode_roof(bare, loaded(shape, num_gpu=0), None, {}), "not on a GPU"),
        (decode_roof(bare, Loaded(ServerInfo("embedded", ""), None, shape)), "no model is loaded"),
        (decode_roof(bare, replace(loaded(shape), server=ServerInfo("ollama", "http://10.0.0.2:1"))), "another host"),
    ):
        assert isinstance(found, Missing)
        assert why in found.detail


def test_only_gpus_that_hold_the_model_set_the_roof(shape: ModelShape) -> None:
    two = state((engine(50),), (stranger(7),))
    fast = replace(two, infos=(two.infos[0], replace(two.infos[1], bandwidth_gb_s=4000.0)))
    assert roof(shape, gpus=fast) == roof(shape)
