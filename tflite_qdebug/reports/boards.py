"""What boards measured, and what operators take on the host, as tables for the terminal and as CSV."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tflite_qdebug.board_record import HOST, Board
from tflite_qdebug.latency_record import Latency
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import number, percent, shortened

__all__ = ["board_table", "island_lines", "layers_table", "operator_table", "write_latency_csv"]


def board_table(board: Board) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the models, as text: how good they are there, and what they take."""
    header = [
        "where",
        "model",
        *board.metrics,
        "SQNR dB",
        "max steps",
        "over 1 step",
        "median ms",
        "90 % ms",
        "samples",
        "ran on",
    ]
    rows = []
    for model in board.models:
        ran = " ".join(part for part in (model.runtime, model.kernels) if part)
        rows.append(
            [
                model.where,
                model.name,
                *(number(model.metrics.get(name, float("nan"))) for name in board.metrics),
                number(model.sqnr_db, 3),
                number(model.largest, 3),
                "–" if np.isnan(model.over_one) else percent(model.over_one),
                number(model.median, 3),
                number(model.percentile_90, 3),
                f"{model.samples}/{model.wanted}" if model.samples < model.wanted else str(model.samples),
                ran,
            ]
        )
    return header, rows


def layers_table(board: Board, count: int, name_width: int = 48) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the layers whose error on the board is least like the one on the host."""
    positions, there, here = board.differing()
    header = ["#", "operator", "node", f"error {HOST}", "error there", "difference"]
    rows = []
    for place in positions[:count]:
        assert board.layers is not None
        layer = board.layers.layers[place]
        figures = (here[place], there[place], there[place] - here[place])
        rows.append([str(place), layer.op_name, shortened(layer.node, name_width), *(number(value, 3) for value in figures)])
    return header, rows


def operator_table(found: Latency, positions: Sequence[int], name_width: int = 48) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of operators, as text."""
    header = ["#", "operator", "node", "computes on", "median ms", "90 % ms", "share", "island"]
    computes = {"converts": "conversion", "float": "float", "integer": "integer"}
    rows = []
    for position in positions:
        entry = found.timed[position]
        share = found.share(entry)
        rows.append(
            [
                str(entry.operator),
                entry.op_name,
                shortened(entry.node, name_width),
                computes[entry.computes],
                number(entry.median, 3),
                number(entry.percentile_90, 3),
                "–" if np.isnan(share) else percent(share),
                "" if entry.island < 0 else str(entry.island + 1),
            ]
        )
    return header, rows


def island_lines(found: Latency) -> list[str]:
    """Returns one line for each float island, the dearest first: what it takes, and what of that is conversion."""
    lines = []
    for island in found.islands():
        number_of = found.timed[island.operators[0]].island + 1
        whole = island.computing + island.converting
        share = percent(whole / found.total) if found.total > 0 else "–"
        many = f"{len(island.nodes)} float operator{'s' if len(island.nodes) > 1 else ''}"
        lines.append(
            f"float island {number_of}: {number(whole, 3)} ms, {share} of all operators: {many} "
            f"{number(island.computing, 3)} ms, conversion to and from integers {number(island.converting, 3)} ms; "
            f"from {shortened(island.nodes[0], 60)}"
        )
    return lines


def write_latency_csv(found: Latency, path: str | os.PathLike[str]) -> None:
    """Writes the operators as CSV, in execution order.

    Raises:
        OutputError: Where it cannot be written.
    """
    names = ("operator", "op_name", "node", "computes", "island", "median", "percentile_90", "runs", "note")
    columns = {name: [getattr(entry, name) for entry in found.timed] for name in names}
    columns["median_ms"], columns["percentile_90_ms"] = columns.pop("median"), columns.pop("percentile_90")
    columns["share"] = [found.share(entry) for entry in found.timed]
    write_columns(columns, path)
