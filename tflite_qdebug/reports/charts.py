"""The charts of a report: parts of a `Findings` in, Altair charts out; and the same charts as PNG and SVG files.

Altair (Vega-Lite) is used because one description of a chart serves the browser and the files, and files need no browser.
The colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart; lines
differ in their dashes as well, so that a black-and-white print can be read.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.errors import MissingPackageError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Channels, Curve, Findings, Profile, Samples, Sensitivity, Steps
from tflite_qdebug.output_error import BADNESS
from tflite_qdebug.record import Run
from tflite_qdebug.reports.glossary import GLOSSARY
from tflite_qdebug.reports.tables import number
from tflite_qdebug.statistics import Histogram

__all__ = [
    "CONFIG",
    "FORMATS",
    "accumulated_error",
    "activation_histogram",
    "all_charts",
    "channel_boxes",
    "error_histogram",
    "known_curves",
    "layer_errors",
    "notable_nodes",
    "output_histogram",
    "render",
    "save_charts",
    "sensitivity_bars",
    "sensitivity_steps",
    "short_labels",
    "specification",
    "weight_histogram",
    "worst_samples",
]

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
# Yellow lines cannot be seen on white, so it is not among them.
_LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4), (4, 2), (1, 3))
_GREY = "#767676"
#: As files.
FORMATS = ("png", "svg")
#: Looks, the same for every chart; handed to the renderer instead of being written into each chart.
CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, Liberation Sans, DejaVu Sans, Noto Sans CJK SC, sans-serif",
    "background": "#ffffff",
    "view": {"stroke": None},
    "title": {
        "anchor": "start", "fontSize": 14, "fontWeight": 600, "color": "#1b1f24", "subtitleColor": "#57606a",
        "subtitleFontSize": 12, "offset": 10, "frame": "bounds",
    },
    "axis": {
        "labelColor": "#32383f", "titleColor": "#32383f", "titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11,
        "gridColor": "#e6e8eb", "domainColor": "#8c959f", "tickColor": "#8c959f", "titlePadding": 8,
    },
    "legend": {"orient": "top", "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260, "symbolSize": 120, "offset": 4},
}  # fmt: skip
_WIDTH, _HEIGHT = 720, 260
# Names stand above each other, their title above them: beside them it would lie across the longest.
_NAME_AXIS = {"labelLimit": 330, "grid": False, "titleAngle": 0, "titleAlign": "right", "titleX": -6, "titleY": -6}
# A wider chart says no more; in finer bins the grid of the integers shows as a comb.
_BINS = 96
# What is far below rounding is of no interest, and would squeeze the rest.
_LEAST_STEPS = 0.05
_ALL_CHANNELS, _EXTREME_CHANNELS = 128, 64


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise MissingPackageError(
            "charts need altair, which is not installed; pip install 'tflite-qdebug[host]' (altair, vl-convert-python)"
        ) from error
    return altair


def converter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError(
            "charts as files and in a report need vl-convert-python, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    return vl_convert


def vega_lite_version() -> str | None:
    """Returns the version of Vega-Lite that Altair writes for, as vl-convert calls it; None for its newest."""
    wanted = ".".join(_altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return wanted if wanted in converter().get_vegalite_versions() else None


# Small help for all charts.


def _plain(value: Any) -> float | None:
    """Returns a number with five digits, as many as a chart can show; None where JSON has no word for it."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _data(rows: Sequence[dict[str, Any]]) -> Any:
    # As one text: Altair copies a list of rows, value by value, each time that a chart is put together.
    altair = _altair()
    return altair.Data(values=json.dumps(list(rows), allow_nan=False), format=altair.JsonDataFormat(type="json"))


def _with_rows(value: Any) -> Any:
    """Returns a specification with rows for the texts that `_data` made of them."""
    if isinstance(value, list):
        return [_with_rows(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == {"type": "json"} and isinstance(value.get("values"), str):
        return {"values": json.loads(value["values"])}
    return {key: _with_rows(entry) for key, entry in value.items()}


def short_labels(names: Sequence[str], width: int = 40) -> dict[str, str]:
    """Returns a label for each name: without the folder that most share, or what was joined to it, and cut in its middle."""
    folders = collections.Counter(name.partition("/")[0] for name in set(names) if "/" in name.partition(";")[0])
    folder, count = folders.most_common(1)[0] if folders else ("", 0)
    shared = f"{folder}/" if 2 * count > len(set(names)) > 1 else ""
    return {name: _cut(name.removeprefix(shared), width) for name in names}


def _cut(name: str, width: int) -> str:
    first, joined, _ = name.partition(";")
    first = first or name
    if len(first) > width - len(joined):
        half = (width - 1 - len(joined)) // 2
        first = f"{first[:half]}…{first[-half:]}"
    return first + ("…" if joined else "")


def _titled(text: str, subtitle: str | Sequence[str] = "") -> Any:
    lines = [subtitle] if isinstance(subtitle, str) else list(subtitle)
    kept = [line for line in lines if line]
    title = _altair().TitleParams(text)
    if kept:
        title.subtitle = kept
    return title


def _sized(chart: Any, title: Any, height: int = _HEIGHT) -> Any:
    return chart.properties(title=title, width=_WIDTH, height=height)


def _label(metric: str, task: bool = False) -> str:
    """Returns a metric's name and unit, for an axis."""
    if task or metric not in GLOSSARY:
        return f"{metric} (mean over samples)"
    term = GLOSSARY[metric]
    return f"{term.name} ({term.unit})"


def _tooltips(*fields: tuple[str, str, str]) -> list[Any]:
    """Returns tooltips of ``(field, type, title)``."""
    altair = _altair()
    return [altair.Tooltip(field, type=kind, title=title) for field, kind, title in fields]


# The error of layers and of models.


def known_curves(findings: Findings) -> tuple[Curve, ...]:
    """Returns the accumulated-error curves that there are: the analysis's, else the one that the run itself holds, if any."""
    run = findings.run
    if findings.curves:
        return findings.curves
    if run.verify == "whole_model":
        return (Curve("all", (), (), run),)
    if "accumulated" in run.parts:
        return (Curve("all", (), (), Run("whole_model", run.layers, run.parts["accumulated"])),)
    return ()


def _joint_order(sequences: Iterable[Sequence[str]]) -> dict[str, int]:
    """Returns the place of every name in one order that keeps that of each sequence, as far as they agree."""
    order: list[str] = []
    for names in sorted(sequences, key=len, reverse=True):
        known = set(order)
        place = 0
        for name in names:
            if name in known:
                place = order.index(name) + 1
            else:
                order.insert(place, name)
                place += 1
    return {name: place for place, name in enumerate(order)}


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of each value and up to ``width - 1`` before it; what is not finite is left out."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts)


def accumulated_error(
    curves: Sequence[Curve],
    metric: str = "sqnr_db",
    running_mean: int = 0,
    marked: Iterable[str] = (),
    title: str = "",
    order: Sequence[str] = (),
) -> Any:
    """Returns the accumulated error of every node in execution order, one line per curve.

    Args:
        curves: At least one.
        metric: A numeric column of a run: ``sqnr_db`` in dB, ``cosine``, ``mse``, ``mre``...
        running_mean: Show the mean over so many nodes, a node and those before it; 0 or 1: none.
        marked: Names of nodes to ring on the first curve.
        title: Instead of the chart's own.
        order: Names of a run's layers, so that a node stands where the run's table has it; the curves may have fewer.

    Raises:
        OptionError: Without a curve, or for a metric that a run does not have.
    """
    altair = _altair()
    if not curves:
        raise OptionError("got no curve of accumulated error, expected at least one")
    places = _joint_order([order, *([layer.node for layer in curve.run.layers] for curve in curves)])
    names = list(dict.fromkeys(curve.name for curve in curves))
    rows = [row for curve in curves for row in _curve_rows(curve, metric, running_mean, places)]
    chosen = set(marked)
    for row in rows:
        row["marked"] = row["curve"] == names[0] and row["node"] in chosen
    shown = GLOSSARY[metric].name if metric in GLOSSARY else metric
    colours = altair.Scale(domain=names, range=[_LINES[i % len(_LINES)] for i in range(len(names))])
    dashes = altair.Scale(domain=names, range=[list(_DASHES[i % len(_DASHES)]) for i in range(len(names))])
    legend = (
        altair.Legend(title="quantized", symbolType="stroke", symbolSize=500, symbolStrokeWidth=2.5) if len(names) > 1 else None
    )
    base = altair.Chart(_data(rows)).encode(
        x=altair.X(
            "position:Q", title="node, in execution order", scale=altair.Scale(nice=False), axis=altair.Axis(tickMinStep=1)
        ),
        y=altair.Y("value:Q", title=_label(metric), scale=altair.Scale(zero=False, nice=True)),
        color=altair.Color("curve:N", scale=colours, legend=legend, sort=names),
        tooltip=_tooltips(
            ("position", "quantitative", "position"),
            ("node", "nominal", "node"),
            ("op", "nominal", "operator"),
            ("value", "quantitative", _label(metric)),
            ("curve", "nominal", "quantized"),
        ),
    )
    line = base.mark_line(strokeWidth=2).encode(
        strokeDash=altair.StrokeDash("curve:N", scale=dashes, legend=legend if len(names) > 1 else None, sort=names)
    )
    # A point is what one hovers over; many of them hide the line.
    points = base.mark_point(filled=True, size=40, opacity=1.0 if len(places) <= 150 else 0.01)
    layers = [line, points]
    if any(row["marked"] for row in rows):
        ring = base.mark_point(filled=False, size=160, strokeWidth=2.5, color=VERMILION, shape="circle")
        layers.append(ring.encode(color=altair.value(VERMILION)).transform_filter(altair.datum.marked))
    mean = f"running mean over {running_mean} nodes" if running_mean > 1 else ""
    bad = "" if not chosen else "rings: layers that matter"
    subtitle = "; ".join(part for part in ("against the float model, up to each node", mean, bad) if part)
    return _sized(altair.layer(*layers), _titled(title or f"Accumulated error: {shown} at each node's output", subtitle))


def _curve_rows(curve: Curve, metric: str, running_mean: int, places: dict[str, int]) -> Iterator[dict[str, Any]]:
    values = curve.run.numbers(metric, "metric")
    if running_mean > 1:
        values = _smoothed(values, running_mean)
    for layer, value in zip(curve.run.layers, values, strict=True):
        plain = _plain(value)
        if plain is not None:  # without an error SQNR is infinite: no point, and no line down to one
            yield {"position": places[layer.node], "node": layer.node, "op": layer.op_name, "value": plain, "curve": curve.name}


def layer_errors(run: Run, marked: Iterable[str] = ()) -> Any:
    """Returns the error that each layer adds, in steps, over the nodes in execution order, with pure rounding as a line.

    Args:
        run: Its layers.
        marked: Names of nodes that stand out.
    """
    altair = _altair()
    columns, criterion, chosen = run.columns(), run.default_criterion, set(marked)
    term = GLOSSARY[criterion]
    rows: list[dict[str, Any]] = [
        {
            "position": position,
            "node": layer.node,
            "op": layer.op_name,
            "value": _plain(columns[criterion][position]),
            "kind": "matters" if layer.node in chosen else "other",
        }
        for position, layer in enumerate(run.layers)
        if columns[criterion][position] > 0 and math.isfinite(columns[criterion][position])
    ]
    highest = max([row["value"] for row in rows], default=1.0)
    scale = altair.Scale(type="log", domain=[_LEAST_STEPS, max(1.3 * highest, 1.0)], clamp=True, nice=False)
    small = sum(row["value"] < _LEAST_STEPS for row in rows)
    kinds = altair.Scale(domain=["matters", "other"], range=[VERMILION, BLUE])
    shapes = altair.Scale(domain=["matters", "other"], range=["triangle-up", "circle"])
    legend = altair.Legend(title="layer") if chosen else None
    points = (
        altair.Chart(_data(rows))
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=altair.X(
                "position:Q", title="layer, in execution order", scale=altair.Scale(nice=False), axis=altair.Axis(tickMinStep=1)
            ),
            y=altair.Y("value:Q", title=f"{term.name} ({term.unit}, log scale)", scale=scale),
            color=altair.Color("kind:N", scale=kinds, legend=legend),
            shape=altair.Shape("kind:N", scale=shapes, legend=legend),
            tooltip=_tooltips(
                ("position", "quantitative", "position"),
                ("node", "nominal", "node"),
                ("op", "nominal", "operator"),
                ("value", "quantitative", f"{term.name} ({term.unit})"),
            ),
        )
    )
    floor = altair.Chart(_data([{"y": 1 / math.sqrt(12)}])).mark_rule(strokeDash=[4, 4], color=_GREY).encode(y="y:Q")
    words = "dashed line: pure rounding, 0.29 steps" + (
        f"; {small} with less than {_LEAST_STEPS} at the lower edge" if small else ""
    )
    title = _titled(f"Error of each layer by itself: {term.name}", words)
    return _sized(altair.layer(floor, points), title)


def worst_output(errors: Any, metric: str, large_is_bad: bool | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the metric of each variant at its worst output, and the ends of its 90 % interval, each ``(variants,)``."""
    values = errors.metric(metric)
    sign = BADNESS.get(metric, 1.0 if large_is_bad else -1.0)
    worst = np.where(np.isnan(values), -np.inf, sign * values).argmax(axis=-1)
    rows = np.arange(len(values))
    low, high = errors.interval(metric)
    return values[rows, worst], low[rows, worst], high[rows, worst]


def sensitivity_bars(sensitivity: Sensitivity, count: int = 20, metric: str | None = None) -> Any:
    """Returns the most sensitive nodes with the range of 90 % of random choices of samples as whiskers.

    Metrics with a natural zero are bars, of cosine similarity what it lacks of 1; others are dots.

    Args:
        sensitivity: Of one mode.
        count: How many nodes, the most sensitive.
        metric: None: the one that ranks.

    Raises:
        OptionError: For a metric that there is not.
    """
    altair = _altair()
    metric = metric or sensitivity.metric
    values, low, high = worst_output(sensitivity.errors, metric, sensitivity.large_is_bad)
    if metric == "cosine":
        values, low, high = 1.0 - values, 1.0 - high, 1.0 - low
    with_bars = metric == "cosine" or BADNESS.get(metric, -1.0) > 0
    order = sensitivity.order(metric)[:count]
    labels = short_labels([sensitivity.nodes[position] for position in order], 40)
    rows = []
    for rank, position in enumerate(order, 1):
        node, op = sensitivity.nodes[position], sensitivity.op_names[position]
        row = {"label": f"{labels[node]}  {rank}", "node": node, "op": op, "rank": rank}
        row.update(value=_plain(values[position]), low=_plain(low[position]), high=_plain(high[position]))
        rows.append({**row, "zero": 0.0})
    label = "1 − cosine (0 to 2)" if metric == "cosine" else _label(metric, metric in sensitivity.errors.task_metrics)
    base = altair.Chart(_data(rows)).encode(
        y=altair.Y("label:N", title="node, most sensitive first", sort=None, axis=altair.Axis(**_NAME_AXIS)),
        tooltip=_tooltips(
            ("rank", "quantitative", "rank"),
            ("node", "nominal", "node"),
            ("op", "nominal", "operator"),
            ("value", "quantitative", label),
            ("low", "quantitative", "90 % from"),
            ("high", "quantitative", "to"),
        ),
    )
    scale = altair.Scale(zero=with_bars, nice=True)
    if with_bars:
        marks = base.mark_bar(color=SKY, height={"band": 0.7}).encode(x=altair.X("value:Q", title=label, scale=scale))
    else:
        marks = base.mark_point(filled=True, size=90, color=BLUE).encode(x=altair.X("value:Q", title=label, scale=scale))
    whiskers = base.mark_rule(color=BLACK, strokeWidth=1.5).encode(x=altair.X("low:Q", title=label), x2="high:Q")
    ends = [
        base.mark_tick(color=BLACK, size=7, thickness=1.5).encode(x=altair.X(f"{end}:Q", title=label))
        for end in ("low", "high")
    ]
    layers = [marks, whiskers, *ends]
    whole = _all_quantized(sensitivity, values)
    if whole is not None:
        layers.append(
            altair.Chart(_data([{"x": whole}])).mark_rule(color=VERMILION, strokeDash=[6, 3], strokeWidth=2).encode(x="x:Q")
        )
    modes = {
        "node": "one node alone quantized",
        "weights": "one node's weights alone quantized",
        "activation": "one node's input alone quantized",
        "float": "one node alone left float",
    }
    subtitle = ["at the model's outputs; whiskers: 90 % of choices of samples"]
    if whole is not None:
        subtitle.append(f"dashed line: all nodes quantized ({number(whole, 4)})")
    return _sized(altair.layer(*layers), _titled(f"Sensitivity: {modes[sensitivity.mode]}", subtitle), 22 * len(rows) + 10)


def _all_quantized(sensitivity: Sensitivity, values: np.ndarray) -> float | None:
    """Returns the value with all nodes quantized, which the mode ``float`` has."""
    return _plain(values[len(sensitivity.nodes)]) if len(values) > len(sensitivity.nodes) else None


def sensitivity_steps(steps: Steps, metric: str | None = None) -> Any:
    """Returns a metric at the outputs against the number of nodes left float, with the threshold as a line.

    Args:
        steps: The analysis.
        metric: None: the one that has the threshold; else any that the errors have, a task metric too.

    Raises:
        OptionError: For a metric that there is not.
    """
    altair = _altair()
    metric = metric or steps.metric
    values, low, high = worst_output(steps.errors, metric, None)
    sizes: list[int | None] = list(steps.sizes) or [None] * len(values)
    names = ["", *steps.nodes]
    rows = [
        {
            "step": step,
            "value": _plain(values[step]),
            "low": _plain(low[step]),
            "high": _plain(high[step]),
            "node": names[step] or "none: all quantized",
            "size": f"{size / 1e3:,.0f} kB" if (size := sizes[step]) is not None else None,
            "met": step == steps.met,
        }
        for step in range(len(values))
    ]
    label = _label(metric, metric in steps.errors.task_metrics)
    x = altair.X(
        "step:Q",
        title="nodes left float, most sensitive first",
        axis=altair.Axis(tickMinStep=1),
        scale=altair.Scale(nice=False, padding=8),
    )
    y = altair.Y("value:Q", title=label, scale=altair.Scale(zero=False))
    base = altair.Chart(_data(rows)).encode(
        x=x,
        tooltip=_tooltips(
            ("step", "quantitative", "nodes left float"),
            ("node", "nominal", "the last of them"),
            ("value", "quantitative", label),
            ("low", "quantitative", "90 % from"),
            ("high", "quantitative", "to"),
            ("size", "nominal", "weights and constants"),
        ),
    )
    layers = [
        base.mark_area(color=SKY, opacity=0.35).encode(y=altair.Y("low:Q", title=label), y2="high:Q"),
        base.mark_line(color=BLUE, strokeWidth=2).encode(y=y),
        base.mark_point(color=BLUE, filled=True, size=60, opacity=1).encode(y=y),
    ]
    subtitle = "band: 90 % of random choices of samples"
    if metric == steps.metric:
        threshold = altair.Chart(_data([{"y": _plain(steps.threshold)}]))
        layers.append(threshold.mark_rule(color=VERMILION, strokeDash=[6, 3], strokeWidth=2).encode(y="y:Q"))
        met = "no step meets it" if steps.met is None else f"met with {steps.met} left float (ring)"
        subtitle = f"dashed line: threshold {number(steps.threshold, 4)}, {met}; {subtitle}"
        if steps.met is not None:
            ring = base.mark_point(color=GREEN, filled=False, size=260, strokeWidth=3).encode(y=y)
            layers.append(ring.transform_filter(altair.datum.met))
    if metric in steps.float_metrics:
        goal = altair.Chart(_data([{"y": _plain(steps.float_metrics[metric])}]))
        layers.append(goal.mark_rule(color=GREEN, strokeDash=[2, 2], strokeWidth=2).encode(y="y:Q"))
        subtitle = f"dotted line: the float model, {number(steps.float_metrics[metric], 4)}; {subtitle}"
    shown = GLOSSARY[metric].name if metric in GLOSSARY else metric
    return _sized(altair.layer(*layers), _titled(f"{shown} as sensitive nodes are left float", subtitle))


# Values of tensors.


class _Binned(NamedTuple):
    """Counts in bins of one width.

    Attributes:
        width: Of a bin.
        first: Position of the first bin, which starts at ``first * width``.
        counts: One per bin.
    """

    width: float
    first: int
    counts: np.ndarray


def _bin_width(histograms: Sequence[Histogram]) -> float:
    """Returns a power of two in which all the values need at most `_BINS` bins, and that is no finer than any histogram."""
    known = [histogram for histogram in histograms if histogram.exponent is not None]
    if not known:
        return 1.0
    low = min(0.0 if histogram.zeros else math.inf for histogram in known)
    low = min(low, *(histogram.edges()[0] for histogram in known))
    high = max(histogram.edges()[-1] for histogram in known)
    least = max(2.0 ** (histogram.exponent or 0) for histogram in known)
    return float(max(least, 2.0 ** math.ceil(math.log2((high - low) / _BINS))))


def _binned(histogram: Histogram, width: float) -> _Binned:
    """Brings a histogram to wider bins; zeros go into the bin that starts at zero."""
    counted = np.flatnonzero(histogram.counts)
    places = np.floor(histogram.edges()[:-1][counted] / width).astype(np.int64)
    if histogram.zeros:
        places = np.append(places, 0)
    weights = np.append(histogram.counts[counted], histogram.zeros) if histogram.zeros else histogram.counts[counted]
    if not len(places):
        return _Binned(width, 0, np.zeros(1, dtype=np.int64))
    first = int(places.min())
    return _Binned(width, first, np.bincount(places - first, weights=weights).astype(np.int64))


# Where bars of a logarithmic count start: an empty bin lies on the axis, a single value is seen.
_LOG_FLOOR = 0.5


def _histogram(series: Sequence[tuple[str, Histogram]], title: Any, axis: str, log: bool, extra: Sequence[Any] = ()) -> Any:
    """Returns the first series as an area of bars, the second as the outline of steps."""
    altair = _altair()
    width = _bin_width([histogram for _, histogram in series])
    floor = _LOG_FLOOR if log else 0.0
    binned = [(name, _binned(histogram, width)) for name, histogram in series]
    top = max(int(counts.counts.max()) for _, counts in binned)
    names = [name for name, _ in binned]
    colours = altair.Scale(domain=names, range=[SKY, VERMILION][: len(names)])
    legend = altair.Legend(title=None, symbolType="square") if len(names) > 1 else None
    ticks = [10**power for power in range(math.ceil(math.log10(max(top, 2))) + 1)]
    y_axis = altair.Axis(values=ticks, format="~s") if log else altair.Axis(format="~s")
    scale = altair.Scale(type="log", domain=[floor, max(top * 1.5, 2)], nice=False) if log else altair.Scale(zero=True)
    y = altair.Y("count:Q", title="values (count, log scale)" if log else "values (count)", scale=scale, axis=y_axis)
    x = altair.X("left:Q", title=axis, scale=altair.Scale(zero=False, nice=False))
    colour = altair.Color("series:N", scale=colours, legend=legend, sort=names)
    tips = _tooltips(
        ("series", "nominal", "values"),
        ("left", "quantitative", "from"),
        ("right", "quantitative", "to"),
        ("count", "quantitative", "count"),
    )
    bars = altair.Chart(_data(_bar_rows(names[0], binned[0][1], floor))).mark_rect(stroke=None)
    layers = [bars.encode(x=x, x2="right:Q", y=y, y2="floor:Q", color=colour, tooltip=tips)]
    for name, counts in binned[1:]:
        outline = altair.Chart(_data(_step_rows(name, counts, floor))).mark_line(interpolate="step-after", strokeWidth=1.5)
        layers.append(outline.encode(x=x, y=y, color=colour, tooltip=tips))
    return _sized(altair.layer(*layers, *extra), title, 220)


def _bar_rows(name: str, binned: _Binned, floor: float) -> list[dict[str, Any]]:
    return [
        {
            "series": name,
            "left": _plain((binned.first + place) * binned.width),
            "right": _plain((binned.first + place + 1) * binned.width),
            "count": int(count),
            "floor": floor,
        }
        for place, count in enumerate(binned.counts)
        if count
    ]


def _step_rows(name: str, binned: _Binned, floor: float) -> list[dict[str, Any]]:
    """Returns the corners of the outline, which starts and ends on the axis."""
    counts = [0, *binned.counts.tolist(), 0]
    rows = []
    for place, count in enumerate(counts):
        left = (binned.first + place - 1) * binned.width
        # In a stretch of empty bins its corners do.
        if 0 < place < len(counts) - 1 and count == 0 and counts[place - 1] == 0:
            continue
        rows.append({"series": name, "left": _plain(left), "right": _plain(left + binned.width), "count": max(count, floor)})
    rows[0]["left"] = rows[1]["left"]
    return rows


def _range_marks(profile: Profile) -> list[Any]:
    """Returns dashed lines at the ends of the calibrated range, and triangles at the largest absolute value."""
    altair = _altair()
    marks = []
    ends = [
        {"left": _plain(end), "what": what}
        for end, what in ((profile.low, "least"), (profile.high, "greatest"))
        if math.isfinite(end)
    ]
    if ends:
        rule = altair.Chart(_data(ends)).mark_rule(color=VERMILION, strokeDash=[6, 3], strokeWidth=2)
        tips = _tooltips(("what", "nominal", "the integers can hold"), ("left", "quantitative", "real units"))
        marks.append(rule.encode(x="left:Q", tooltip=tips))
    extreme = max((profile.values.minimum, profile.values.maximum), key=abs)
    if math.isfinite(extreme):
        point = altair.Chart(_data([{"left": _plain(extreme)}])).mark_point(
            shape="triangle-down", filled=True, size=130, color=BLUE, opacity=1
        )
        tips = _tooltips(("left", "quantitative", "largest by size (real units)"))
        marks.append(point.encode(x="left:Q", y=altair.value(8), tooltip=tips))
    return marks


def _range_words(profile: Profile) -> str:
    words = f"triangle: largest value {number(max((profile.values.minimum, profile.values.maximum), key=abs), 3)}"
    if math.isfinite(profile.low):
        clipped = number(100 * (profile.clipped_low + profile.clipped_high), 2)
        words = f"dashed: calibrated range {number(profile.low, 3)} to {number(profile.high, 3)}, clipped {clipped} %; {words}"
    return words


def weight_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns a weight before quantization (bars) and after (outline).

    Args:
        profile: With role ``weights``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    series = [("float", profile.values)]
    if profile.quantized is not None:
        series.append(("quantized", profile.quantized))
    title = _titled(
        f"Weights of {_cut(profile.node, 52)}", "before and after quantization" if len(series) > 1 else "not quantized"
    )
    return _histogram(series, title, "weight (real units)", log)


def activation_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns an activation's float values with its calibrated range and its largest absolute value.

    Args:
        profile: With role ``output`` or ``input``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    title = _titled(f"Float {profile.role} of {_cut(profile.node, 52)}", _range_words(profile))
    return _histogram([("float", profile.values)], title, "value (real units)", log, _range_marks(profile))


def output_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns an operator's float and quantized output, with its calibrated range.

    Args:
        profile: With role ``output`` or ``input``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    series = [("float", profile.values)]
    if profile.quantized is not None:
        series.append(("quantized", profile.quantized))
    title = _titled(f"{profile.role.capitalize()} of {_cut(profile.node, 52)}", _range_words(profile))
    return _histogram(series, title, "value (real units)", log, _range_marks(profile))


def error_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns the error of a tensor, quantized less float.

    Raises:
        OptionError: Where the tensor is not quantized.
    """
    if profile.error is None:
        raise OptionError(f"{profile.tensor!r} is not quantized: it has no error to show")
    words = f"one step is {number(profile.scale, 3)}" if math.isfinite(profile.scale) else ""
    title = _titled(f"Error of {profile.role} of {_cut(profile.node, 48)}", words)
    return _histogram([("error", profile.error)], title, "quantized less float (real units)", log)


def channel_boxes(profile: Profile, quantized: bool = False) -> Any:
    """Returns a box for each channel: least to greatest, the quartiles, the median in red and the mean in blue.

    Of more than 128 channels the 64 that are largest by absolute value are shown, and the chart says so.

    Args:
        profile: Whose ``channels`` are shown.
        quantized: Show those of the quantized values.

    Raises:
        OptionError: Where the tensor has no axis of channels.
    """
    altair = _altair()
    channels = profile.quantized_channels if quantized else profile.channels
    if channels is None:
        raise OptionError(f"{profile.tensor!r} has no axis of channels")
    rows, note = _channel_rows(channels)
    role = "weights" if profile.role == "weights" else profile.role
    named = [row["channel"] for row in rows[:: math.ceil(len(rows) / 24)]]
    axis = altair.Axis(values=named, labelOverlap="greedy", labelAngle=0, grid=False)
    label = "value (real units)"
    base = altair.Chart(_data(rows)).encode(
        x=altair.X("channel:O", title=f"channel (dimension {channels.axis})", axis=axis, sort=None),
        tooltip=_tooltips(
            ("channel", "ordinal", "channel"),
            ("minimum", "quantitative", "least"),
            ("lower", "quantitative", "first quartile"),
            ("median", "quantitative", "median"),
            ("mean", "quantitative", "mean"),
            ("upper", "quantitative", "third quartile"),
            ("maximum", "quantitative", "greatest"),
            ("kind", "nominal", "kind"),
        ),
    )
    size = max(2.0, 0.6 * _WIDTH / len(rows))
    kinds = altair.Scale(domain=["even", "dominating", "dead"], range=[SKY, ORANGE, _GREY])
    present = sorted({row["kind"] for row in rows})
    legend = altair.Legend(title="channel", values=present) if present != ["even"] else None
    colour = altair.Color("kind:N", scale=kinds, legend=legend)

    def y(field: str) -> Any:
        return altair.Y(f"{field}:Q", title=label, scale=altair.Scale(nice=True))

    layers = [
        base.mark_rule(color="#57606a").encode(y=y("minimum"), y2="maximum:Q"),
        base.mark_bar(width={"band": 0.7}, stroke="#57606a", strokeWidth=0.5).encode(y=y("lower"), y2="upper:Q", color=colour),
        base.mark_tick(color=VERMILION, thickness=2, orient="horizontal", width={"band": 0.7}).encode(y=y("median")),
        base.mark_point(shape="diamond", color=BLUE, filled=True, opacity=1, size=min(40.0, 5 * size)).encode(y=y("mean")),
    ]
    kind = "quantized " if quantized else ""
    words = f"box: quartiles; line: least to greatest; red: median; blue: mean; spread {number(channels.spread, 3)} times"
    return _sized(altair.layer(*layers), _titled(f"Channels of {kind}{role} of {_cut(profile.node, 44)}", [words, note]), 240)


def _channel_rows(channels: Channels) -> tuple[list[dict[str, Any]], str]:
    count, shown, note = len(channels.minimum), np.arange(len(channels.minimum)), ""
    if count > _ALL_CHANNELS:
        shown = np.sort(np.argsort(-channels.largest, kind="stable")[:_EXTREME_CHANNELS])
        note = f"the {_EXTREME_CHANNELS} largest of {count} channels, by largest absolute value"
    dead, dominating = set(channels.dead.tolist()), set(channels.dominating.tolist())
    fields = ("minimum", "lower", "median", "upper", "maximum", "mean")
    rows = [
        {
            "channel": int(channel),
            **{field: _plain(getattr(channels, field)[channel]) for field in fields},
            "kind": "dominating" if channel in dominating else "dead" if channel in dead else "even",
        }
        for channel in shown.tolist()
    ]
    return rows, note


def worst_samples(samples: Samples, count: int = 30) -> Any:
    """Returns the SQNR at the outputs of the samples on which the quantized model differs most.

    Args:
        samples: The analysis.
        count: How many of them at most.
    """
    altair = _altair()
    rows = [
        {
            "sample": str(sample.index),
            "label": "" if sample.label is None else str(sample.label),
            "value": _plain(sample.sqnr_db),
            "classes": f"{sample.float_class} → {sample.quantized_class}",
            "kind": "flipped" if sample.flipped else "same prediction",
        }
        for sample in samples.worst[:count]
    ]
    kinds = altair.Scale(domain=["flipped", "same prediction"], range=[VERMILION, SKY])
    bars = (
        altair.Chart(_data(rows))
        .mark_bar(width={"band": 0.75})
        .encode(
            x=altair.X(
                "sample:N",
                title="sample (position in the dataset), worst first",
                sort=None,
                axis=altair.Axis(labelOverlap="greedy", labelAngle=0),
            ),
            y=altair.Y("value:Q", title="SQNR at the outputs (dB)"),
            color=altair.Color("kind:N", scale=kinds, legend=altair.Legend(title="prediction")),
            tooltip=_tooltips(
                ("sample", "nominal", "sample"),
                ("label", "nominal", "label"),
                ("value", "quantitative", "SQNR (dB)"),
                ("classes", "nominal", "class, float → quantized"),
            ),
        )
    )
    return _sized(bars, _titled("Samples on which the quantized model differs most", "low is bad"), 220)


# As files.


def specification(chart: Any) -> dict[str, Any]:
    """Returns a chart as Vega-Lite, without what is the same for all of them (`CONFIG`)."""
    with _altair().data_transformers.enable(consolidate_datasets=False, max_rows=None):
        # The charts are made above and known to be valid; checking each value again takes most of the time.
        found: dict[str, Any] = chart.to_dict(validate=False)
    found.pop("config", None)
    return dict(_with_rows(found))


def render(chart: Any, kind: str) -> bytes:
    """Returns a chart as the content of a file.

    Args:
        chart: Any of the above.
        kind: ``png`` (twice the resolution of a screen) or ``svg``.

    Raises:
        OptionError: For another kind.
    """
    if kind not in FORMATS:
        raise OptionError(f"got format {kind!r}, expected one of {', '.join(FORMATS)}.{did_you_mean(kind, FORMATS)}")
    convert, text = converter(), json.dumps(specification(chart))
    if kind == "png":
        return bytes(convert.vegalite_to_png(text, config=CONFIG, scale=2.0, vl_version=vega_lite_version()))
    svg: str = convert.vegalite_to_svg(text, config=CONFIG, vl_version=vega_lite_version())
    return svg.encode()


def notable_nodes(findings: Findings, count: int = 20) -> list[str]:
    """Returns the names of the layers that deserve a page: suspects first, then the most sensitive five, then the worst layers.

    Args:
        findings: Of a run.
        count: How many layers that are no suspects.
    """
    layers = {layer.node for layer in findings.run.layers}
    suspects = [suspect.node for suspect in findings.diagnosis.suspects] if findings.diagnosis else []
    others = []
    for mode in ("node", "weights", "activation"):
        if mode in findings.sensitivity:
            found = findings.sensitivity[mode]
            others += [found.nodes[position] for position in found.order()[:5]]
    others += [findings.run.layers[position].node for position in findings.run.worst(count=count + len(suspects))]
    chosen = list(dict.fromkeys(node for node in suspects if node in layers))
    more = [node for node in dict.fromkeys(others) if node in layers and node not in chosen]
    return chosen + more[:count]


def profile_charts(profile: Profile) -> Iterator[tuple[str, str, Any]]:
    """Yields ``(folder, what, chart)`` of all charts of one tensor."""
    role = profile.role
    if role == "weights":
        yield "data_distribution", "weights", weight_histogram(profile)
    else:
        yield "data_distribution", role, output_histogram(profile)
    if profile.error is not None and role != "weights":
        yield "data_distribution", f"{role}_error", error_histogram(profile)
    if profile.channels is not None:
        yield "channelwise_distribution", role, channel_boxes(profile)


def _safe(name: str, width: int = 60) -> str:
    """Returns a name that any file system takes: ASCII letters, digits, single dots, dashes and underscores.

    Of the names that the converter joined with semicolons it is the first; of a long one the end, which tells layers apart.
    """
    kept = re.sub(r"[^A-Za-z0-9.-]+|\.{2,}", "_", name.partition(";")[0])
    return re.sub("_+", "_", kept)[-width:].strip("._-") or "node"


def all_charts(findings: Findings, nodes: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields ``(path without suffix, chart)`` of every chart that the findings allow, in Horizon's tree of folders.

    Args:
        findings: Of a run.
        nodes: Whose tensors to show; None: `notable_nodes`.

    Raises:
        OptionError: For a node that the run does not have.
    """
    known = {layer.node: position for position, layer in enumerate(findings.run.layers)}
    known.update({profile.node: known.get(profile.node, len(known)) for profile in findings.profiles})
    for node in nodes or ():
        if node not in known:
            raise OptionError(f"the run has no node {node!r}.{did_you_mean(node, known)}")
    chosen = notable_nodes(findings) if nodes is None else list(nodes)
    suspects = [suspect.node for suspect in findings.diagnosis.suspects] if findings.diagnosis else []
    if findings.run.layers:
        yield "layer_error", layer_errors(findings.run, suspects)
    for mode, sensitivity in findings.sensitivity.items():
        yield f"node_sensitivity/{mode}", sensitivity_bars(sensitivity)
    curves = known_curves(findings)
    if curves:
        order = [layer.node for layer in findings.run.layers]
        yield "accumulate_error/curves", accumulated_error(curves, marked=suspects, order=order)
    if findings.steps is not None:
        for metric in dict.fromkeys((findings.steps.metric, *findings.steps.errors.task_metrics)):
            yield f"sensitivity_analysis/{_safe(metric)}", sensitivity_steps(findings.steps, metric)
    if findings.samples is not None and findings.samples.worst:
        yield "worst_samples", worst_samples(findings.samples)
    for profile in findings.profiles:
        if profile.node in chosen or (nodes is None and profile.role == "input"):
            name = f"{known[profile.node]:04d}_{_safe(profile.node)}"
            for folder, what, chart in profile_charts(profile):
                yield f"{folder}/{name}_{what}", chart


def save_charts(
    findings: Findings, folder: str | os.PathLike[str], formats: Sequence[str] = FORMATS, nodes: Sequence[str] | None = None
) -> list[Path]:
    """Writes every chart that the findings allow as files, in Horizon's tree of folders, and returns their paths.

    Args:
        findings: Of a run.
        folder: Is made where it is missing.
        formats: Of ``png`` and ``svg``.
        nodes: Whose tensors to show; None: `notable_nodes`.

    Raises:
        OptionError: For a format or a node that there is not.
        OutputError: Where a file cannot be written.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise OptionError(f"got format {kind!r}, expected one of {', '.join(FORMATS)}.{did_you_mean(kind, FORMATS)}")
    paths: dict[Path, None] = {}
    for name, chart in all_charts(findings, nodes):
        for kind in formats:
            path = _unused(Path(folder) / f"{name}.{kind}", paths)
            write_atomically(path, render(chart, kind))
            paths[path] = None
    return list(paths)


def _unused(path: Path, used: dict[Path, None]) -> Path:
    """Returns a path that none of this run's files has; an operator may have several weights."""
    candidates = (path if not number else path.with_name(f"{path.stem}_{number + 1}{path.suffix}") for number in range(10_000))
    return next(candidate for candidate in candidates if candidate not in used)
