"""Which server and model are watched, and with which settings they really run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chimera.domain.options import OPTION_NAMES
from chimera.domain.readings import Missing, number
from chimera.domain.server import Effective, ModelInfo, ServerInfo

from . import format
from .panel import Panel
from .rows import Line, Row, cells, clean, wrap

if TYPE_CHECKING:
    from chimera.domain.telemetry import LoadedModel, ServerSample

NARROW = 28
LABEL = 10


class ServerPanel(Panel):
    """The server by its own answers: what it is, what it has loaded, how busy it is."""

    TITLE = "Server"
    HELP: ClassVar[str | None] = """\
## Server

What the server says of itself. **runs** are the settings that really hold, not those that were asked for; `~` marks one
that was derived by a documented rule and not read back. **busy** counts requests of all clients, not only ours.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._server: ServerInfo | None = None
        self._model: ModelInfo | None = None
        self._effective: Effective | None = None
        self._sample: ServerSample | None = None
        self._problem = ""

    def update(
        self,
        server: ServerInfo | None,
        model: ModelInfo | None = None,
        *,
        effective: Effective | None = None,
        sample: ServerSample | None = None,
        problem: str = "",
    ) -> None:
        """Show a server; `problem` says in words why it does not answer."""
        self._server, self._model, self._effective = server, model, effective
        self._sample, self._problem = sample, problem
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """What it is first, then model and settings, then what happens on it."""
        rows: list[Row] = []
        if self._server is not None:
            line = Line(width).add(self._server.title, "strong")
            url = clean(self._server.url)
            if line.left > cells(url) + 2:
                rows.append(line.end(url, "muted").row())
            else:
                rows.append(line.row())
                if url and height >= 6:
                    rows.append(Line(width).add(url, "muted").row())
        elif not self._problem:
            rows.append(Line(width).add("Looking for a server …", "muted").row())
        if self._problem:
            rows += [Line(width).add(part, "error").row() for part in wrap(f"! {self._problem}", width, 6)]
        if self._model is not None:
            rows += self._model_rows(self._model, width)
        if self._effective is not None:
            rows += self._settings(self._effective, width)
        if self._sample is not None:
            rows += self._activity(self._sample, width)
        if self._effective is not None:
            for note in self._effective.notes:
                rows += _labelled("note", note, width)
        return rows

    def _model_rows(self, model: ModelInfo, width: int) -> list[Row]:
        line = Line(width).add("model", "muted", LABEL).add(model.name, "text")
        facts = []
        if model.quantization:
            facts.append(clean(model.quantization))
        if model.parameters:
            facts.append(format.parameters(model.parameters))
        if model.size_bytes:
            facts.append(format.size(model.size_bytes))
        if model.block_count is not None:
            facts.append(f"{model.block_count} layers")
        if model.trained_ctx:
            facts.append(f"trained for {model.trained_ctx} tokens")
        text = " · ".join(facts)
        if line.left > cells(text) + 3:
            return [line.gap(3).add(text, "muted").row()]
        return [line.row(), *([Line(width).add("", "muted", LABEL).add(text, "muted").row()] if text else [])]

    def _settings(self, effective: Effective, width: int) -> list[Row]:
        values = effective.options.as_dict()
        if not values:
            return []
        texts = [
            f"{name}={values[name]}{'~' if effective.sources.get(name) == 'derived' else ''}"
            for name in OPTION_NAMES
            if name in values
        ]
        rows = _labelled("runs", "  ".join(texts), width, limit=3)
        if effective.size_bytes:
            text = format.size(effective.size_bytes)
            if effective.vram_bytes is not None:
                text += f", {format.share(effective.vram_bytes / effective.size_bytes)} on GPU"
            rows.append(Line(width).add("memory", "muted", LABEL).add(text).row())
        return rows

    def _activity(self, sample: ServerSample, width: int) -> list[Row]:
        line = Line(width).add("busy", "muted", LABEL)
        if sample.loading:
            line.add("loading a model", "notice").gap(3)
        elif sample.sleeping:
            line.add("asleep, no model in memory", "muted").gap(3)
        busy, waiting = number(sample.busy), number(sample.waiting)
        if busy is not None:
            line.add(f"{busy:.0f}" + (f" of {len(sample.slots)} slots" if sample.slots else " requests"))
            if sample.slots and line.left > len(sample.slots) + 14:
                line.gap(2).add("".join("■" if slot.busy else "□" for slot in sample.slots[:32]), "bar")
        elif isinstance(sample.busy, Missing):
            line.add(format.missing(sample.busy, now=sample.at), "muted")
        if waiting:
            line.gap(2).add(f"▲ {waiting:.0f} waiting", "warn")
        rows = [line.end(f"by {sample.via}" if sample.via else "", "muted").row()]
        if isinstance(sample.models, tuple):
            rows += [self._loaded(model, width) for model in sample.models]
            if not sample.models:
                rows.append(Line(width).add("loaded", "muted", LABEL).add("no model", "muted").row())
        if sample.note:
            rows += _labelled("unseen", sample.note, width)
        return rows

    @staticmethod
    def _loaded(model: LoadedModel, width: int) -> Row:
        line = Line(width).add("loaded", "muted", LABEL).add(model.name)
        facts = []
        size, vram = number(model.size_bytes), number(model.vram_bytes)
        if size is not None:
            on_gpu = f", {format.share(vram / size)} on GPU" if vram is not None and size else ""
            facts.append(format.size(size) + on_gpu)
        if (context := number(model.context)) is not None:
            facts.append(f"context {context:.0f}")
        if model.expires_at is not None:
            facts.append(f"until {format.clock(model.expires_at, with_seconds=False)}")
        for fact in facts:
            if line.left > len(fact) + 3:
                line.add(" · ", "muted").add(fact, "muted")
        return line.row()


def _labelled(name: str, text: str, width: int, limit: int = 4) -> list[Row]:
    """A text with its name before the first line; where a column for names would leave too little, without one."""
    if width < NARROW:
        first, *others = wrap(f"{name} {text}", width, limit)
        head = Line(width).add(name, "muted").add(first.removeprefix(name)).row()
        return [head, *(Line(width).add(part).row() for part in others)]
    parts = wrap(text, max(width - LABEL, 1), limit)
    return [Line(width).add("" if index else name, "muted", LABEL).add(part).row() for index, part in enumerate(parts)]
