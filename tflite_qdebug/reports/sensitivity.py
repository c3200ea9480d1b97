"""Sensitivity, accumulated error and sensitivity analysis as tables for the terminal and as CSV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.findings import Curve, Sensitivity, Steps
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.reports.glossary import heading
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import kilobytes, number, shortened

__all__ = [
    "CURVE_METRICS",
    "curve_metric",
    "curve_table",
    "running_mean",
    "sensitivity_table",
    "steps_table",
    "write_curves_csv",
    "write_sensitivity_csv",
    "write_steps_csv",
]

#: The columns of a run that a table of curves can show.
CURVE_METRICS = ("sqnr_db", "cosine", "mse", "mre", "rmse", "max_abs_error")
# What the errors at a model's outputs are called by is understood here too.
_SAME = {"chebyshev": "max_abs_error"}
_AVERAGED = ("sqnr_db", "cosine", "mse", "mre")


def _shown(errors: OutputErrors, metric: str) -> list[str]:
    """Returns the metrics that a table for the terminal has room for, the one that ranks first."""
    wanted = [metric, "sqnr_db", "cosine", "kl", "flips", *errors.task_metrics]
    return list(dict.fromkeys(name for name in wanted if name in errors.names()))


def sensitivity_table(found: Sensitivity, count: int = 10) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the most sensitive nodes; of several outputs each value is the worst one's."""
    shown = _shown(found.errors, found.metric)
    header = ["#", "operator", "node", *map(heading, shown), "90 %", "rank, 90 %"]
    values = {name: found.errors.worst(name, found.large_is_bad) for name in shown}
    low, high = found.errors.worst_interval(found.metric, found.large_is_bad)
    ranks = found.errors.ranks(found.metric, large_is_bad=found.large_is_bad)
    total = len(found.nodes) + 1
    rows = []
    for place, position in enumerate(found.order()[:count], 1):
        # Where the best comes first, ranks count from the other end.
        _, least, greatest = ranks[position] if found.mode != "float" else total + 1 - ranks[position][[0, 2, 1]]
        rows.append(
            [
                str(place),
                found.op_names[position],
                shortened(found.nodes[position], 48),
                *(number(values[name][position]) for name in shown),
                f"{number(low[position], 3)} … {number(high[position], 3)}",
                f"{least}-{greatest}" if least != greatest else str(least),
            ]
        )
    if found.mode == "float" and len(found.errors.variants) > len(found.nodes):
        rows.append(["", "", "all quantized", *(number(values[name][-1]) for name in shown), "", ""])
    return header, rows


def write_sensitivity_csv(
    found: Sensitivity, path: str | os.PathLike[str], more: Mapping[str, Sequence[object]] | None = None
) -> None:
    """Writes all metrics at all outputs, with their 90 % intervals, sorted as the table.

    Args:
        found: What was measured.
        path: Of the file.
        more: Further columns, in the table's order.

    Raises:
        OutputError: Where it cannot be written.
    """
    order = found.order()
    ranks = found.errors.ranks(found.metric, large_is_bad=found.large_is_bad)[order]
    columns: dict[str, Sequence[object]] = {
        "node": [found.nodes[position] for position in order],
        "op_name": [found.op_names[position] for position in order],
        "operator": [found.operators[position] for position in order],
        "rank": list(range(1, len(order) + 1)),
        "rank_low": ranks[:, 1].tolist(),
        "rank_high": ranks[:, 2].tolist(),
    }
    if found.thresholds:
        columns["threshold"] = [found.thresholds[position] for position in order]
        columns["bits"] = [found.bits[position] for position in order]
    columns.update(_metric_columns(found.errors, order))
    write_columns({**columns, **(more or {})}, path)


def _metric_columns(errors: OutputErrors, order: Sequence[int]) -> dict[str, Sequence[object]]:
    columns: dict[str, Sequence[object]] = {}
    for name in errors.names():
        values, (low, high) = errors.metric(name), errors.interval(name)
        task = name in errors.task_metrics
        for output, title in enumerate(errors.outputs[:1] if task else errors.outputs):
            column = name if task or len(errors.outputs) == 1 else f"{name} {title}"
            columns[column] = values[order, output].tolist()
            columns[f"{column} low"] = low[order, output].tolist()
            columns[f"{column} high"] = high[order, output].tolist()
    return columns


def curve_metric(name: str) -> str:
    """Returns the one of `CURVE_METRICS` that is meant: ``chebyshev`` is ``max_abs_error``.

    Raises:
        OptionError: For any other.
    """
    metric = _SAME.get(name, name)
    if metric not in CURVE_METRICS:
        known = [*CURVE_METRICS, *_SAME]
        raise OptionError(
            f"got metric {name!r} for curves of accumulated error, expected one of {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    return metric


def curve_table(curves: Sequence[Curve], metric: str = "sqnr_db", count: int = 12) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: some nodes along the way, and each curve's value there.

    Args:
        curves: At least one.
        metric: As for `curve_metric`.
        count: How many nodes.

    Raises:
        OptionError: For an unknown metric, or one that a curve did not measure.
    """
    column_name = curve_metric(metric)
    header = ["operator", "node", *(curve.name for curve in curves)]
    columns = [curve.run.numbers(column_name, "metric") for curve in curves]
    layers = curves[0].run.layers
    chosen = sorted({int(place) for place in np.linspace(0, len(layers) - 1, min(count, len(layers)))})
    rows = [
        [
            layers[position].op_name,
            shortened(layers[position].node, 48),
            *(number(column[position]) if position < len(column) else "-" for column in columns),
        ]
        for position in chosen
    ]
    return header, rows


def write_curves_csv(curves: Sequence[Curve], path: str | os.PathLike[str], *, average: bool = False) -> None:
    """Writes every curve, one row for each node, with all of `CURVE_METRICS`; ``average``: also the running mean of most.

    Raises:
        OutputError: Where it cannot be written.
    """
    names: list[str] = []
    columns: dict[str, list[object]] = {}
    for curve in curves:
        own = curve.run.columns()
        names += [curve.name] * len(curve.run.layers)
        values = {name: own[name] for name in ("node", "op_name", *CURVE_METRICS)}
        if average:
            values.update({f"{name} mean": running_mean(values[name]) for name in _AVERAGED})
        for name, column in values.items():
            columns.setdefault(name, []).extend(column.tolist())
    write_columns({"curve": names, **columns}, path)


def running_mean(values: np.ndarray, width: int | None = None) -> np.ndarray:
    """Returns the mean of each value and those before it, NaN and infinity left out; float64, same shape.

    Args:
        values: In their order, ``(values,)``.
        width: Over how many values, the last of them the value itself; None: over all before it.
    """
    finite = np.isfinite(values)
    sums, counts = np.cumsum(np.where(finite, values, 0.0)), np.cumsum(finite)
    if width is not None:
        sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts)


def steps_table(steps: Steps) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows, one for each step."""
    shown = _shown(steps.errors, steps.metric)
    header = ["float nodes", "operator", "node", *map(heading, shown), "size kB"]
    values = {name: steps.errors.worst(name) for name in shown}
    rows = []
    for step in range(len(steps.nodes) + 1):
        operator, node = ("", "all quantized") if not step else (steps.op_names[step - 1], shortened(steps.nodes[step - 1], 48))
        size = kilobytes(steps.sizes[step]) if steps.sizes else "-"
        mark = " *" if step == steps.met else ""
        rows.append([f"{step}{mark}", operator, node, *(number(values[name][step]) for name in shown), size])
    if steps.float_metrics:
        rows.append(["", "", "float model", *(number(steps.float_metrics.get(name, float("nan"))) for name in shown), ""])
    return header, rows


def write_steps_csv(steps: Steps, path: str | os.PathLike[str], more: Mapping[str, Sequence[object]] | None = None) -> None:
    """Writes every step with all metrics.

    Args:
        steps: What was measured.
        path: Of the file.
        more: Further columns, one row for each step.

    Raises:
        OutputError: Where it cannot be written.
    """
    count = len(steps.nodes) + 1
    columns: dict[str, Sequence[object]] = {
        "float_nodes": list(range(count)),
        "node": ["", *steps.nodes],
        "op_name": ["", *steps.op_names],
        "bytes": list(steps.sizes) if steps.sizes else [""] * count,
    }
    columns.update(_metric_columns(steps.errors, range(count)))
    write_columns({**columns, **(more or {})}, path)
