"""Panels and charts, each usable alone: fed with plain data of `chimera.domain`, they paint only what changed."""

from .alerts import AlertsPanel
from .chart import Guide, TimeChart, zoom
from .findings import FindingsPanel
from .gpu import GpuPanel
from .host import HostPanel
from .lanes import LanesPanel
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
    "EventLog",
    "FindingsPanel",
    "GpuPanel",
    "Guide",
    "HostPanel",
    "IntervalPlot",
    "LanesPanel",
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
