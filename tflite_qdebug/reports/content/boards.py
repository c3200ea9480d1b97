"""What boards measured, and what operators take on the host, as sections of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tflite_qdebug.board_record import HOST, Board, BoardModel
from tflite_qdebug.latency_record import Latency
from tflite_qdebug.reports.boards import island_lines
from tflite_qdebug.reports.content.parts import Section, Table, Tile
from tflite_qdebug.reports.content.view import View, figure_of, missing
from tflite_qdebug.reports.glossary import GLOSSARY, Figure, Term, figure, task_term
from tflite_qdebug.wording import number

__all__ = ["board_tiles", "boards_section", "latency_section"]

_SHOWN = 20
_LAYERS = 10
_MEDIAN = Term("median", "ms per run", "Half of the runs took less, feeding the inputs not counted.", "", digits=3, suffix="ms")
_P90 = Term("90 %", "ms per run", "Nine of ten runs took less.", "Far above the median other work disturbs.", suffix="ms")
_FIRST = Term("first run", "ms", "The first run, when caches are cold and parameters are loaded.", "", suffix="ms")
_STEPS = Term(
    "largest difference",
    "steps",
    "Of an output from the same on the host with the reference kernels, in quantization steps.",
    "Other kernels round otherwise; far more than the host's own default kernels are off by is a fault of the device.",
)
_OVER = Term("over a step", "share", "Share of the output values that differ by more than a step.", "The same.", "share")
_HERE = Term("error on the host", "steps of 8 bits", "What the layer adds on the host.", "")
_THERE = Term("error there", "steps of 8 bits", "What the layer adds on the board.", "")
_DIFFERENCE = Term(
    "difference",
    "steps of 8 bits",
    "The error on the board less that on the host: what its kernels, not quantization, change.",
    "Above half a step the kernels there compute something else.",
    "signed",
    above=0.5,
)
_SHARE = Term("share", "of all operators", "Of the times of all operators added up, each by itself.", "", "share")


def _text(name: str) -> Term:
    return Term(name, "", "", "")


def board_tiles(boards: tuple[Board, ...]) -> Iterator[Tile]:
    """Yields for each board what a run takes there: the float model, and what is to run in its place."""
    for board in boards:
        fast = next((found for name in ("compiled", "quantized") if (found := _timed(board, name))), None)
        if fast is None:
            continue
        slow = _timed(board, "float")
        words = f"median, one sample; 90 % within {number(fast.percentile_90, 3)} ms"
        scores = [_task(name, fast.metrics[name]) for name in board.metrics[:1] if name in fast.metrics]
        words += "".join(f"; {score.name} {score.shown}" for score in scores)
        before = None if slow is None else figure_of(_MEDIAN, "milliseconds", slow.median)
        yield Tile(
            f"Time on {board.name}", before, figure_of(_MEDIAN, "milliseconds", fast.median), words, labels=("float", fast.name)
        )


def _timed(board: Board, name: str) -> BoardModel | None:
    model = board.model(name)
    return model if model is not None and math.isfinite(model.median) else None


def boards_section(view: View) -> Section:
    """Returns what boards measured: accuracy beside latency, and the layers that are computed otherwise there."""
    words = (
        "The models as they ran on boards, on the samples of a bundle, beside the outputs of this machine: how good they are "
        "there, and how long they take."
    )
    boards = view.findings.boards
    if not boards:
        return Section("boards", "On boards", words, missing=missing("boards", "No board has run this."))
    tables = (_models(boards), *(table for board in boards for table in _layers(view, board)))
    notes = dict.fromkeys(f"{board.name}: {note}" for board in boards for note in _notes(board))
    return Section("boards", "On boards", words, (), tables, tuple(notes))


def _notes(board: Board) -> Iterator[str]:
    about = ", ".join(f"{key} {value}" for key, value in board.about.items() if key != "name")
    yield f"{about}; bundle {board.bundle[:12]}"
    yield from board.notes
    for model in board.models:
        yield from (f"{model.name}: {note}" for note in (*model.notes, *([model.failure] if model.failure else [])))


def _models(boards: tuple[Board, ...]) -> Table:
    """Returns all models on all boards, those of this machine last and once."""
    metrics = tuple(dict.fromkeys(name for board in boards for name in board.metrics))
    terms = [GLOSSARY[task_term(name)] if task_term(name) in GLOSSARY else _text(name) for name in metrics]
    header = (
        _text("where"), _text("model"), *terms, _MEDIAN, _P90, _FIRST, GLOSSARY["sqnr_db"], _STEPS, _OVER, GLOSSARY["size"],
        GLOSSARY["samples"], _text("ran on"),
    )  # fmt: skip
    models = [model for board in boards for model in board.models]
    here = {(model.name, model.kernels, model.samples): model for model in models if model.where == HOST}
    rows = tuple(_row(metrics, model) for model in [*(m for m in models if m.where != HOST), *here.values()])
    return Table(header, rows, "How good, how fast")


def _layers(view: View, board: Board) -> Iterator[Table]:
    positions, there, here = board.differing()
    if positions and board.layers is not None:
        layers = tuple(
            (
                view.link(board.layers.layers[place].node, board.layers.layers[place].op_name),
                board.layers.layers[place].op_name,
                figure_of(_HERE, "severity", float(here[place])),
                figure_of(_THERE, "severity", float(there[place])),
                figure_of(_DIFFERENCE, "severity", float(there[place] - here[place])),
            )
            for place in positions[:_LAYERS]
        )
        caption = f"{board.name}: the layers whose error differs most from that on the host"
        yield Table((_text("node"), _text("operator"), _HERE, _THERE, _DIFFERENCE), layers, caption)


def _row(metrics: tuple[str, ...], model: BoardModel) -> tuple[Any, ...]:
    ran = " ".join(part for part in (model.runtime, model.kernels) if part)
    return (
        "this machine" if model.where == HOST else model.where,
        model.name,
        *(_task(name, model.metrics.get(name, math.nan)) for name in metrics),
        figure_of(_MEDIAN, "milliseconds", model.median),
        figure_of(_P90, "milliseconds", model.percentile_90),
        figure_of(_FIRST, "milliseconds", model.first),
        figure("sqnr_db", model.sqnr_db),
        figure_of(_STEPS, "steps", model.largest),
        figure_of(_OVER, "steps", model.over_one),
        figure("size", model.size),
        figure("samples", model.samples),
        ran if not model.failure else f"{ran} (failed)",
    )


def _task(name: str, value: float) -> Figure:
    term = task_term(name)
    return figure(term, value, "" if term == name else name)


def latency_section(view: View) -> Section:
    """Returns what each operator takes on this machine, and what float islands cost."""
    words = "What the models and each of their operators take on this machine's processor, and the price of nodes left float."
    found = view.findings.latency
    if found is None:
        return Section("latency", "Latency", words, missing=missing("latency", "It was not measured."))
    lines = tuple(_said(found))
    notes = (*lines, *found.notes, found.how)
    return Section("latency", "Latency", words, (), (_operators(view, found),), notes)


def _said(found: Latency) -> Iterator[str]:
    kernels = f"{found.runtime}, {found.kernels} kernels, {found.threads} thread{'s' if found.threads > 1 else ''}"
    yield f"{kernels}; {found.machine}"
    for model in found.whole_models:
        if model.failure:
            yield f"The {model.name} model was not measured: {model.failure}"
        else:
            median, most = number(model.median, 3), number(model.percentile_90, 3)
            yield f"The {model.name} model takes {median} ms in the median, {most} ms for 90 % of {model.runs} runs."
    yield f"All operators, each by itself, take {number(found.total, 3)} ms together."
    yield from (line[0].upper() + line[1:] for line in island_lines(found))


def _operators(view: View, found: Latency) -> Table:
    computes = {"converts": "conversion", "float": "float", "integer": "integer"}
    rows = []
    for position in found.slowest(_SHOWN):
        entry = found.timed[position]
        island = f", island {entry.island + 1}" if entry.island >= 0 else ""
        rows.append(
            (
                view.link(entry.node, entry.op_name),
                entry.op_name,
                computes[entry.computes] + island,
                figure_of(_MEDIAN, "milliseconds", entry.median),
                figure_of(_P90, "milliseconds", entry.percentile_90),
                figure_of(_SHARE, "share", found.share(entry)),
            )
        )
    some = f" (the first {len(rows)} of {len(found.timed)})" if len(rows) < len(found.timed) else ""
    header = (_text("node"), _text("operator"), _text("computes on"), _MEDIAN, _P90, _SHARE)
    return Table(header, tuple(rows), f"The slowest operators of the quantized model{some}")
