"""Panels and charts, each usable alone: fed with plain data of `chimera.domain`, they paint only what changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alerts import AlertsPanel
    from .arms import ArmsPanel
    from .chart import Guide, TimeChart, zoom
    from .findings import FindingsPanel
    from .gpu import GpuPanel
    from .host import HostPanel
    from .keys import KeyBar
    from .lanes import LanesPanel
    from .listing import Listing, Page
    from .log import EventLog
    from .panel import Panel
    from .progress import RunPanel
    from .server import ServerPanel
    from .throughput import ThroughputPanel
    from .trends import TrendChart
    from .trials import IntervalPlot, TrialTable, TrialView
    from .ttft import TtftPanel

__all__ = [
    "AlertsPanel",
    "ArmsPanel",
    "EventLog",
    "FindingsPanel",
    "GpuPanel",
    "Guide",
    "HostPanel",
    "IntervalPlot",
    "KeyBar",
    "LanesPanel",
    "Listing",
    "Page",
    "Panel",
    "RunPanel",
    "ServerPanel",
    "ThroughputPanel",
    "TimeChart",
    "TrendChart",
    "TrialTable",
    "TrialView",
    "TtftPanel",
    "zoom",
]

_WHERE = {
    "AlertsPanel": "alerts",
    "ArmsPanel": "arms",
    "EventLog": "log",
    "FindingsPanel": "findings",
    "GpuPanel": "gpu",
    "Guide": "chart",
    "HostPanel": "host",
    "IntervalPlot": "trials",
    "KeyBar": "keys",
    "LanesPanel": "lanes",
    "Listing": "listing",
    "Page": "listing",
    "Panel": "panel",
    "RunPanel": "progress",
    "ServerPanel": "server",
    "ThroughputPanel": "throughput",
    "TimeChart": "chart",
    "TrendChart": "trends",
    "TrialTable": "trials",
    "TrialView": "trials",
    "TtftPanel": "ttft",
    "zoom": "chart",
}
"""Each is loaded when it is first asked for: the dashboard need not wait for the panels of other screens."""


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(name)
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
