"""What panels say, also of what is unknown, broken or hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.geometry import Size

from chimera.domain.finding import Evidence, Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.readings import PENDING, Missing
from chimera.domain.run import RunState
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import (
    GpuProcess,
    GpuSample,
    HostSample,
    LoadedModel,
    ProcessShare,
    ServerSample,
    Throttle,
    VramParts,
)
from chimera.domain.verdict import Verdict
from chimera.widgets import (
    EventLog,
    FindingsPanel,
    GpuPanel,
    HostPanel,
    IntervalPlot,
    Panel,
    RunPanel,
    ServerPanel,
    ThroughputPanel,
    TrialTable,
    TtftPanel,
)
from chimera.widgets.host import core_bars
from chimera.widgets.listing import Listing, Page
from chimera.widgets.progress import fraction
from chimera.widgets.rows import Line, Row, row_cells, text_of
from chimera.widgets.throughput import large
from chimera.widgets.ttft import split

from . import data
from .screens import Alone, screen_text
from .test_rows import HOSTILE

UNSUPPORTED = Missing("unsupported", "NVML: Not Supported")


def rows(panel: Panel, width: int = 56, height: int = 16) -> list[Row]:
    return panel.build(width, height)[:height]


def text(panel: Panel, width: int = 56, height: int = 16) -> str:
    return "\n".join(text_of(row) for row in rows(panel, width, height))


def tones(panel: Panel, words: str) -> set[str]:
    """The tones of the spans in which the words stand."""
    return {span.tone for row in rows(panel) for span in row if words in span.text}


def gpu(**changes: object) -> GpuPanel:
    panel = GpuPanel()
    state = data.gpus()
    panel.update(replace(state, samples=(replace(state.samples[0], **changes),)))  # type: ignore[arg-type]  # any field of a sample
    return panel


def every_panel() -> list[Panel]:
    """Each panel with data, as full as they get."""
    throughput = ThroughputPanel()
    for second in range(90):
        throughput.update(
            float(second), data.wave(second, 90, 99), label="all clients, from /slots", rates=[97.0, 98.0],
            baseline=96.0, roof=150.0,
        )  # fmt: skip
    gpus = []
    for count in (1, 2, 3, 8):
        panel = GpuPanel()
        panel.update(data.gpus(count), data.PARTS)
        gpus.append(panel)
    none = GpuPanel()
    none.update(data.NO_GPU)
    host, ttft, run, log = HostPanel(), TtftPanel(), RunPanel(hint="1-5 start a preset"), EventLog()
    host.update(data.host())
    ttft.update(data.MEASUREMENTS)
    voids = {"cache-hit": 1, "timeout": 2}
    run.update(data.RUN, data.progress(), effective=data.EFFECTIVE, valid=7, cold=1, voids=voids)
    for index in range(40):
        log.write(f"event {index} with some words to wrap around", at=data.WALL + index, severity="warn")
    findings, server, table, plot = FindingsPanel(), ServerPanel(), TrialTable(), IntervalPlot()
    findings.update(data.FINDINGS)
    server.update(data.SERVER, data.MODEL, effective=data.EFFECTIVE, sample=data.server_sample())
    table.update(data.TRIALS)
    plot.update(data.VERDICTS)
    return [throughput, *gpus, none, host, ttft, run, log, findings, server, table, plot]


PANELS = every_panel()


@given(st.integers(1, 210), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_every_panel_fits_into_any_room(width: int, height: int) -> None:
    for panel in PANELS:
        for row in panel.build(width, height)[:height]:
            assert row_cells(row) <= width, (panel, text_of(row))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: type(panel).__name__)
def test_every_panel_explains_itself_and_has_a_title(panel: Panel) -> None:
    assert panel.TITLE
    assert panel.HELP
    assert panel.HELP.startswith("## ")


# what is hostile stays harmless

HOSTILE_PANELS: dict[str, Callable[[], Panel]] = {}


def hostile(build: Callable[[], Panel]) -> Callable[[], Panel]:
    HOSTILE_PANELS[build.__name__] = build
    return build


@hostile
def a_gpu() -> Panel:
    panel = GpuPanel()
    state = data.gpus()
    info = replace(state.infos[0], name=HOSTILE, driver=HOSTILE)
    sample = replace(
        state.samples[0], processes=(GpuProcess(1, HOSTILE, 5e9),), throttles=(Throttle(HOSTILE, 0.5, "counter"),)
    )
    panel.update(replace(state, infos=(info,), samples=(sample,)))
    return panel


@hostile
def a_missing_reason() -> Panel:
    panel = GpuPanel()
    panel.update(replace(data.NO_GPU, missing=Missing("unsupported", HOSTILE)))
    return panel


@hostile
def a_server() -> Panel:
    panel = ServerPanel()
    panel.update(
        ServerInfo("openai", HOSTILE, HOSTILE, HOSTILE),
        ModelInfo(HOSTILE, quantization=HOSTILE),
        effective=Effective(Options(num_ctx=512), notes=(HOSTILE,)),
        sample=ServerSample(at=1.0, models=(LoadedModel(HOSTILE),), via=HOSTILE, note=HOSTILE),
        problem=HOSTILE,
    )
    return panel


@hostile
def a_run() -> Panel:
    panel = RunPanel(hint=HOSTILE)
    panel.update(
        replace(data.RUN, preset=HOSTILE, error=HOSTILE),
        replace(data.progress(), candidate=HOSTILE, text=HOSTILE, options={HOSTILE: HOSTILE}),
        effective=data.EFFECTIVE,
        voids={HOSTILE: 3},
    )
    return panel


@hostile
def a_log() -> Panel:
    panel = EventLog()
    panel.write(HOSTILE, at=data.WALL)
    return panel


@hostile
def findings() -> Panel:
    panel = FindingsPanel()
    panel.update([Finding("gpu-lost", "error", HOSTILE, (Evidence(HOSTILE, HOSTILE, HOSTILE, unit=HOSTILE),))])
    return panel


@hostile
def throughput() -> Panel:
    panel = ThroughputPanel()
    panel.update(1.0, 50.0, label=HOSTILE)
    return panel


@hostile
def trials() -> Panel:
    panel = TrialTable()
    view = data.TRIALS[0]
    trial = replace(view.trial, candidate=HOSTILE, requested=Options(kv_cache_type=HOSTILE))  # type: ignore[arg-type]  # as a server may say it
    panel.update([replace(view, trial=trial, note=HOSTILE), data.TRIALS[1]])
    return panel


@pytest.mark.parametrize("build", HOSTILE_PANELS.values(), ids=HOSTILE_PANELS.keys())
async def test_hostile_text_reaches_the_screen_as_harmless_text(build: Callable[[], Panel]) -> None:
    panel = build()
    app = Alone(panel)
    async with app.run_test(size=(120, 20)) as pilot:
        await pilot.pause()
        shown = screen_text(app)
        strips = app.screen._compositor.render_strips()
    assert "[bold]" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert {strip.cell_length for strip in strips} == {120}


# GPU


def test_no_gpu_says_why() -> None:
    panel = GpuPanel()
    panel.update(data.NO_GPU)
    assert "no NVIDIA driver is loaded" in " ".join(text(panel).split())


def test_every_missing_reading_gives_its_reason_and_no_zero() -> None:
    readings = [each.name for each in fields(GpuSample) if each.type in ("Reading", "tuple[GpuProcess, ...] | Missing")]
    panel = GpuPanel()
    sample = GpuSample(uuid="GPU-0", at=100.0, **dict.fromkeys(readings, UNSUPPORTED))  # type: ignore[arg-type]  # names of its readings
    panel.update(replace(data.gpus(), samples=(sample,)))
    for height in (16, 5, 2):
        shown = text(panel, 56, height)
        assert "n/a" in shown
        assert " 0" not in shown.replace("4080", "").replace("GPU 0", "").replace("\n0 ", "\n")
    assert "util    n/a: unsupported (NVML: Not Supported)" in text(panel)


def test_a_stale_reading_says_for_how_long() -> None:
    assert "power   n/a: stale 12 s" in text(gpu(power_w=Missing("stale", since=88.0), at=100.0))


def test_a_lost_gpu_is_an_error_and_the_other_one_goes_on() -> None:
    state = data.gpus(2)
    lost = replace(state.samples[1], lost=Missing("lost", "fallen off the bus"))
    panel = GpuPanel()
    panel.update(replace(state, samples=(state.samples[0], lost)))
    for height in (20, 9, 3):
        shown = text(panel, 56, height)
        assert "! GPU lost: fallen off the bus" in shown
        assert "88 %" in shown


def test_a_sleeping_gpu_is_no_error() -> None:
    shown = text(gpu(lost=Missing("pending", "asleep: its power is off until something uses it")))
    assert "asleep: its power is off" in shown
    assert "!" not in shown


@pytest.mark.parametrize(("margin", "sign"), [(20.0, "   71 °C"), (5.0, "▲ 71 °C"), (1.0, "! 71 °C")])
def test_heat_stands_out_by_a_sign_before_the_slowdown(margin: float, sign: str) -> None:
    assert sign in text(gpu(temperature_c=71.0, margin_c=margin))


def test_reasons_for_lowered_clocks_are_words_worst_first() -> None:
    shares = {"power-cap": 0.6, "gpu-idle": 0.9, "hw-thermal": 0.02}
    shown = text(gpu(throttles=tuple(Throttle(reason, share, "counter") for reason, share in shares.items())))
    assert "slowed  ! overheating 2 %, power limit 60 %" in shown
    assert "slowed  no" in text(gpu(throttles=()))


def test_the_memory_bar_names_its_parts_and_what_is_left() -> None:
    panel = GpuPanel()
    gib = 1024**3
    panel.update(data.gpus(), {"GPU-0": VramParts(weights_bytes=6 * gib, kv_bytes=2 * gib, compute_bytes=UNSUPPORTED)})
    shown = text(panel, 80)
    assert "█ weights ~6.0  ▓ KV ~2.0  · free 1.9  ░ rest 2.0" in shown
    assert "compute" not in shown


def test_a_model_whose_parts_are_unknown_is_shown_whole_and_as_it_is_known() -> None:
    panel = GpuPanel()
    gib = 1024**3
    parts = VramParts(UNSUPPORTED, UNSUPPORTED, UNSUPPORTED, 1 * gib, 7 * gib)
    panel.update(data.gpus(), {"GPU-0": parts})
    assert "█ model 7.0  ░ others 1.0  · free 1.9  ░ rest 2.0" in text(panel, 80)
    panel.update(data.gpus(), {"GPU-0": replace(parts, held_source="derived")})
    assert "█ model ~7.0  ░ others ~1.0  · free 1.9  ░ rest 2.0" in text(panel, 80)


def test_a_narrow_column_still_tells_how_hot_and_how_slowed_one_gpu_is() -> None:
    shown = text(gpu(temperature_c=84.0, margin_c=2.0, throttles=(Throttle("sw-thermal", 0.4, "counter"),)), 28, 5)
    for said in ("util", "VRAM", "! 84 °C", "slowed  ▲ heat 40 %"):
        assert said in shown
    assert "n/a: unsupported" in text(gpu(utilization=UNSUPPORTED), 28, 5)


def test_what_is_at_its_best_is_not_said_twice_where_both_ways_of_the_bus_do_not_fit() -> None:
    link = gpu(pcie_gen=4.0, pcie_width=16.0, pcie_rx_bytes_s=18e6, pcie_tx_bytes_s=132e6)
    assert "PCIe    gen 4  x16   in 18 MB/s  out 132 MB/s" in text(link, 53)
    assert "gen 4 of 4  x16 of 16   in 18 MB/s  out 132 MB/s" in text(link, 60)


def test_full_memory_stands_out() -> None:
    assert "▲ 99 %" in text(gpu(vram_used_bytes=11.6 * 1024**3))


@pytest.mark.parametrize(
    ("count", "height", "said", "unsaid"),
    [
        (1, 16, "PCIe", "GPU 0"),
        (2, 16, "clocks", "slowed by"),
        (2, 9, "util   88 %", "clocks"),
        (8, 9, "slowed by", "H100"),
    ],
)
def test_the_room_decides_how_much_is_said_of_each_gpu(count: int, height: int, said: str, unsaid: str) -> None:
    panel = GpuPanel()
    panel.update(data.gpus(count))
    assert len(panel.build(56, height)) <= height
    assert said in text(panel, 56, height)
    assert unsaid not in text(panel, 56, height)


def test_gpus_that_do_not_fit_are_counted() -> None:
    panel = GpuPanel()
    panel.update(data.gpus(8))
    assert "4 more GPUs do not fit here" in text(panel, 56, 5)


@pytest.mark.parametrize(
    "trouble",
    [
        {"margin_c": 1.0},
        {"lost": Missing("lost", "NVML: GPU is lost", 1.0)},
        {"xids": (79,)},
        {"throttles": (Throttle("hw-thermal", 0.5, "counter"),)},
        {"vram_used_bytes": 79.9 * 1024**3, "vram_total_bytes": 80.0 * 1024**3},
    ],
)
def test_where_not_all_gpus_fit_the_one_in_trouble_is_shown(trouble: dict[str, Any]) -> None:
    state = data.gpus(8)
    samples = [replace(one, throttles=(), xids=(), margin_c=30.0, lost=None) for one in state.samples]
    samples[6] = replace(samples[6], **trouble)
    panel = GpuPanel()
    panel.update(replace(state, samples=tuple(samples)))
    shown = [text_of(row).split()[0] for row in rows(panel, 32, 5)]
    assert shown[:4] == ["0", "1", "2", "6"]
    assert "4 more GPUs do not fit here" in text(panel, 32, 5)


def test_two_gpus_stand_side_by_side_where_it_is_wide() -> None:
    panel = GpuPanel()
    panel.update(data.gpus(2))
    first = text_of(rows(panel, 118, 9)[0])
    assert "GPU 0" in first
    assert "GPU 1" in first


# host


def test_cores_are_a_block_each_or_the_mean_of_neighbours() -> None:
    assert core_bars((0.0, 50.0, 100.0), 10) == "▁▅█"
    assert core_bars((0.0, 100.0) * 64, 64) == "▅" * 64
    assert core_bars((), 10) == ""


def test_what_slows_a_host_is_named() -> None:
    panel = HostPanel()
    panel.update(replace(data.host(), on_battery=True, power_profile="power-saver", steal_percent=4.0))
    assert "▲ on battery · power profile power-saver" in text(panel, 80)
    panel.update(replace(data.host(), governor="performance"))
    assert "power " not in text(panel)


def test_who_else_uses_the_processor_is_named_with_their_cores() -> None:
    panel = HostPanel()
    others = (ProcessShare(7, "cc1plus\x1b[31m", 310.0), ProcessShare(8, "node", 40.0), ProcessShare(9, "x" * 60, 30.0))
    panel.update(replace(data.host(), foreign=others, memory_limit_bytes=8 * 1024**3))
    said = text(panel, 60)
    assert "others   cc1plus 3.1  node 0.4 cores" in said
    assert "limit    8.0 GiB of memory allowed" in said
    assert "\x1b" not in said
    panel.update(data.host())
    assert not any(line.startswith(("others", "limit")) for line in text(panel, 60).splitlines())


def test_processes_of_a_gpu_stand_with_their_memory_and_share() -> None:
    panel = GpuPanel()
    state = data.gpus(1)
    rows_of = (GpuProcess(5, "ollama", 9.5 * 1024**3, 85.0), GpuProcess(6, "?", Missing("unsupported"), PENDING))
    panel.update(replace(state, samples=(replace(state.samples[0], processes=rows_of),)))
    assert "ollama 9.5 GiB 85 %   ? n/a" in text(panel, 90)


@pytest.mark.parametrize("width", [20, 30, 32, 40, 60])
def test_pressure_is_whole_numbers_or_left_out_and_the_worst_comes_first(width: int) -> None:
    panel = HostPanel()
    panel.update(replace(data.host(), pressure_cpu=1.0, pressure_memory=0.0, pressure_io=66.4, disk_read_bytes_s=9e8))
    (row,) = [line for line in text(panel, width).splitlines() if line.startswith("pressure")]
    assert "disk ▲ 66 %" in row if width >= 24 else row.strip() == "pressure"
    assert "…" not in row


def test_a_host_that_tells_nothing_says_so() -> None:
    panel = HostPanel()
    panel.update(HostSample(at=1.0, cpu_percent=Missing("denied")))
    assert "CPU     n/a: denied" in text(panel)
    assert "0 %" not in text(panel)


# throughput


def test_large_digits_stand_in_three_rows_of_equal_width() -> None:
    shapes = large("1234567890.-")
    assert len({len(shape) for shape in shapes}) == 1


def test_the_rate_says_what_it_is_and_the_median_of_what() -> None:
    panel = ThroughputPanel()
    panel.update(1.0, 97.5, label="this request, server's clock", rates=[97.0, 98.0, 99.0], baseline=96.0)
    shown = text(panel)
    assert "this request, server's clock" in shown
    assert "98.0 of 3 requests" in shown
    assert "96.0 (+2.1 %)" in shown


def test_no_rate_is_a_dash_with_its_reason_and_a_gap() -> None:
    panel = ThroughputPanel()
    panel.update(1.0, Missing("unreachable", "the server is remote"), label="all clients")
    assert "all clients, n/a: unreachable" in text(panel)
    assert "why       the server is remote" in text(panel)
    assert panel.plot.last is None


# TTFT


def test_the_parts_of_a_ttft_add_up_to_it() -> None:
    for measurement in data.MEASUREMENTS:
        parts = split(measurement)
        assert [part.name for part in parts] == ["queue", "load", "prefill", "other"]
        assert sum(part.seconds or 0.0 for part in parts) == pytest.approx(measurement.ttft_s)


def test_what_a_server_does_not_tell_is_unknown_and_not_prefill() -> None:
    blind = Measurement("measure", 1.0, 3.0, ttft_s=0.4, prefill_s=0.4, decode_s=2.6, client_decode_tok_s=24.0)
    assert [(part.name, part.seconds) for part in split(blind)][-1] == ("unknown", 0.4)
    panel = TtftPanel()
    panel.update([blind])
    assert "not told by this server: queue, load, prefill" in text(panel)
    assert "0 %" not in text(panel).replace("100 %", "")


def test_void_and_cold_requests_are_named_and_left_out_of_the_median() -> None:
    panel = TtftPanel()
    panel.update(data.MEASUREMENTS)
    shown = text(panel, 100)
    assert "void: cache-hit" in shown
    assert "warm-up" in shown
    assert "of 7" in shown
    assert shown.splitlines()[-1].split()[0] == "1"


# run


def test_no_run_gives_the_hint() -> None:
    assert text(RunPanel(hint="1-5 start a preset")).splitlines() == ["No run in progress", "1-5 start a preset"]


def test_what_runs_otherwise_than_asked_is_named_even_where_it_is_tight() -> None:
    panel = RunPanel()
    panel.update(data.RUN, data.progress(), effective=data.EFFECTIVE)
    for height in (10, 5):
        assert "differs  ▲ num_gpu 80 → 35 · num_ctx 512 → 2048" in text(panel, 56, height)


@pytest.mark.parametrize("state", ["queued", "running", "paused", "done", "stopped", "failed", "crashed"])
def test_every_state_is_a_word(state: RunState) -> None:
    panel = RunPanel()
    panel.update(replace(data.RUN, state=state))
    assert state in text(panel)


def test_progress_counts_sessions_requests_and_tokens() -> None:
    progress = replace(data.progress(), session=1, sessions=2, request=0, requests=3, tokens=0, tokens_planned=64)
    assert fraction(progress) == 0.0
    assert fraction(replace(progress, tokens=64)) == pytest.approx(1 / 8)
    assert fraction(replace(progress, session=2, request=3, tokens=64)) == 1.0
    assert fraction(replace(progress, sessions=0)) is None


def test_void_requests_are_counted_by_reason() -> None:
    panel = RunPanel()
    panel.update(data.RUN, valid=7, cold=1, voids={"cache-hit": 1, "timeout": 2})
    assert "requests 7 valid · 1 cold · ▲ 3 void (timeout 2, cache-hit 1)" in text(panel, 80)


# server, findings, log


def test_derived_settings_are_marked_and_notes_are_shown() -> None:
    panel = ServerPanel()
    panel.update(data.SERVER, data.MODEL, effective=data.EFFECTIVE, sample=data.server_sample())
    shown = text(panel, 100, 20)
    assert "num_gpu=35~  num_ctx=2048 " in shown
    assert "num_gpu 80 runs as 35" in shown
    assert "1 of 2 slots" in shown
    assert "until 14:04" in shown


def test_an_unreachable_server_says_why_in_whole_sentences() -> None:
    panel = ServerPanel()
    panel.update(None, problem="Nothing answers at http://127.0.0.1:11434. Start Ollama, or use --embedded.")
    assert "Start Ollama, or use --embedded." in " ".join(text(panel, 40).split())


def test_findings_come_worst_first_and_none_says_so() -> None:
    panel = FindingsPanel()
    assert text(panel) == "Not checked yet"
    panel.update(data.FINDINGS)
    assert [line[0] for line in text(panel).splitlines()] == ["!", "▲", "•"]
    assert "and 2 more" in text(panel, 56, 2)
    panel.update(())
    assert text(panel) == "No findings"


def test_the_log_is_bounded_and_counts_what_repeats() -> None:
    log = EventLog()
    for index in range(2000):
        log.write(f"event {index}", at=data.WALL + index)
    log.write("again", at=data.WALL)
    log.write("again", at=data.WALL + 5)
    assert len(log._entries) == 500
    assert text(log).splitlines()[-1] == "14:00:05   again ×2"


async def test_the_log_scrolls_back_stays_there_and_follows_again() -> None:
    log = EventLog()
    app = Alone(log)
    async with app.run_test(size=(60, 12)) as pilot:
        for index in range(40):
            log.write(f"event {index}.", at=data.WALL + index)
        log.focus()
        await pilot.press("pageup")
        await pilot.pause()
        before = screen_text(app)
        assert "event 39." not in before
        log.write("event 40.", at=data.WALL + 40)
        await pilot.pause()
        assert screen_text(app).splitlines()[1:-3] == before.splitlines()[1:-3]
        await pilot.press("end")
        await pilot.pause()
        assert "event 40." in screen_text(app)
        await pilot.press("home")
        await pilot.pause()
        assert "event 0." in screen_text(app)


# trials


def test_a_table_shows_only_options_that_differ_and_what_they_run_as() -> None:
    table = TrialTable()
    table.update(data.TRIALS)
    lines = text(table, 110).splitlines()
    assert "num_gpu" in lines[0]
    assert "num_ctx" not in lines[0]
    assert "80→35" in lines[2]
    assert "= same" in lines[2]
    assert "same as c5, c6" in lines[2]
    assert "! failed" in lines[6]
    assert "out of memory" in lines[6]


async def test_the_cursor_stays_on_its_candidate_when_rows_move() -> None:
    table = TrialTable()
    app = Alone(table)
    async with app.run_test(size=(110, 5)) as pilot:
        table.update(data.TRIALS)
        table.focus()
        await pilot.press("down", "down", "down", "down")
        assert table.candidate == "c4"
        assert "c4" in screen_text(app)
        table.update(tuple(reversed(data.TRIALS)))
        await pilot.pause()
        assert table.candidate == "c4"
        await pilot.press("end")
        assert table.candidate == "c0"


async def test_enter_picks_the_candidate() -> None:
    picked: list[str] = []

    class Picking(Alone):
        def on_trial_table_chosen(self, event: TrialTable.Chosen) -> None:
            picked.append(event.candidate)

    table = TrialTable()
    async with Picking(table).run_test(size=(110, 12)) as pilot:
        table.update(data.TRIALS)
        table.focus()
        await pilot.press("down", "enter")
        await pilot.pause()
    assert picked == ["c1"]


def test_intervals_stand_where_their_numbers_are() -> None:
    plot = IntervalPlot()
    plot.update([Verdict("c1", "c0", "decode_tok_s", "same", 1.0, (0.99, 1.01), n=8)], band=0.02)
    line = text(plot, 103, 8).splitlines()[0]
    middle = line.index("●")
    assert line.index("┤") - middle == middle - line.index("├")
    assert line.index("┊") < line.index("├")
    assert line.rindex("┊") > line.index("┤")


def test_an_interval_beyond_the_scale_ends_in_an_arrow() -> None:
    plot = IntervalPlot()
    plot.update([Verdict("c1", "c0", "decode_tok_s", "worse", 0.2, (0.1, 0.4), n=8)])
    assert "‹" in text(plot, 80, 8).splitlines()[0]


def test_no_interval_says_what_it_takes() -> None:
    plot = IntervalPlot()
    plot.update([Verdict("c1", "c0", "decode_tok_s", "insufficient", n=1)])
    assert "two complete rounds" in text(plot)


# listing


async def test_measuring_a_list_does_not_scroll_it() -> None:
    listing = Listing()
    app = Alone(listing)
    async with app.run_test(size=(40, 8)) as pilot:
        listing.update([f"k{number}" for number in range(30)], lambda key, width: Line(width).add(key).row())
        listing.focus()
        await pilot.press("end")
        before = listing.on_screen
        assert before[-1] == "k29"
        size = Size(40, 8)
        listing.get_content_height(size, size, 38)
        assert listing.on_screen == before
        await pilot.press("up")
        assert listing.on_screen == before, "the cursor moves, the rows stand still"


async def test_measuring_a_page_does_not_scroll_it() -> None:
    page = Page()
    app = Alone(page)
    async with app.run_test(size=(40, 8)) as pilot:
        page.update("one", lambda width: [Line(width).add(f"row {number}.").row() for number in range(30)])
        page.focus()
        await pilot.press("end")
        await pilot.pause()
        assert "row 29." in screen_text(app)
        size = Size(40, 8)
        page.get_content_height(size, size, 38)
        page.refresh()
        await pilot.press("up", "up")
        await pilot.pause()
        shown = screen_text(app)
        assert "row 22." in shown
        assert "▼ 3 more lines" in shown
