"""Several quantized models of one float model, layer by layer in one table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tflite_qdebug.record import Run
from tflite_qdebug.reports.glossary import heading
from tflite_qdebug.reports.tables import part_shares, write_columns
from tflite_qdebug.wording import number, shortened

__all__ = ["side_by_side", "side_by_side_table", "write_side_by_side"]

_COLUMNS = {"rmse_over_scale": heading("rmse_over_scale"), "output_over_scale": "output/scale", "sqnr_db": heading("sqnr_db")}


def side_by_side(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Returns one row per layer: its node and operator, and each model's errors, None where a model lacks the layer.

    Layers are the same where they stand for the same operator of the float model; without one, where they are called alike.

    Args:
        runs: Runs by the models' names. The layers are in the order of the first; what only others have stands behind.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, run in runs.items():
        columns, shares, seen = run.columns(), part_shares(run), dict[str, int]()
        for position, layer in enumerate(run.layers):
            seen[layer.node] = seen.get(layer.node, 0) + 1
            row = rows.setdefault((layer.node, seen[layer.node]), {"node": layer.node, "op_name": layer.op_name})
            found = {column: float(columns[column][position]) for column in ("rmse_over_scale", "sqnr_db", "rmse", "scale")}
            if "output" in run.parts:
                # What quantization adds to the weights that this model has, whoever changed them.
                found["output_over_scale"] = float(run.parts["output"].rmse[position]) / found["scale"]
                found["weights_share"] = float(shares["weights"][position])
            row[name] = found
    for row in rows.values():
        for name in runs:
            row.setdefault(name, None)
    return list(rows.values())


def side_by_side_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows as text."""
    columns = [column for column in _COLUMNS if any(row[name] and column in row[name] for row in rows for name in names)]
    header = ["operator", "node", *(f"{name} {_COLUMNS[column]}" for column in columns for name in names)]
    body = [
        [
            row["op_name"],
            shortened(row["node"], 48),
            *("-" if row[name] is None else number(row[name][column], 3) for column in columns for name in names),
        ]
        for row in rows
    ]
    return header, body


def write_side_by_side(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Writes all of it as CSV.

    Raises:
        OutputError: Where it cannot be written.
    """
    columns = list(dict.fromkeys(column for row in rows for name in names if row[name] for column in row[name]))
    found: dict[str, list[Any]] = {title: [row[title] for row in rows] for title in ("node", "op_name")}
    for name in names:
        for column in columns:
            found[f"{name} {column}"] = ["" if row[name] is None else row[name].get(column, "") for row in rows]
    write_columns(found, path)
