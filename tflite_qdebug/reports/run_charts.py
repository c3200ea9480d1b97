"""The charts of a run: accumulated error, the error of each layer, sensitivity, nodes left float, and the worst samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Curve, Samples, Sensitivity, Steps
from tflite_qdebug.output_error import BADNESS
from tflite_qdebug.record import Run
from tflite_qdebug.reports.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    SKY,
    VERMILION,
    load_altair,
    plain,
    reference_line,
    rows_chart,
    series_encodings,
    sized,
    titled,
    tooltips,
    unchecked,
)
from tflite_qdebug.reports.glossary import GLOSSARY, MODES, label
from tflite_qdebug.reports.sensitivity import running_mean
from tflite_qdebug.wording import byte_size, number, short_labels

__all__ = ["accumulated_error", "layer_errors", "sensitivity_bars", "sensitivity_steps", "worst_samples"]

# Eight bits give 50 dB at best. Where values hardly change from sample to sample, as behind a gate, SQNR may be three times
# that, and squeeze the rest into a strip. Where more than this share of the values is beyond, they are the shape and no peaks.
_PEAK_DB, _RARE = 80.0, 0.1
# What is far below rounding is of no interest, and would squeeze the rest.
_LEAST_STEPS = 0.05
# More points than these hide the line; they are there to be pointed at.
_SEEN_POINTS = 150
# Names stand above each other, their title above them: beside them it would lie across the longest.
_NAME_AXIS = {"labelLimit": 330, "grid": False, "titleAngle": 0, "titleAlign": "right", "titleX": -6, "titleY": -6}


def _positions(title: str) -> Any:
    """Returns the axis on which nodes stand in execution order."""
    altair = load_altair()
    return altair.X("position:Q", title=title, scale=altair.Scale(nice=False), axis=altair.Axis(tickMinStep=1))


def _name(metric: str) -> str:
    return GLOSSARY[metric].name if metric in GLOSSARY else metric


# The error of layers.


@unchecked
def accumulated_error(
    curves: Sequence[Curve],
    metric: str = "sqnr_db",
    mean_over: int = 0,
    marked: Iterable[str] = (),
    order: Sequence[str] = (),
) -> Any:
    """Returns the accumulated error of every node in execution order, one line per curve.

    Where SQNR has a few peaks above 80 dB, they are drawn at the upper edge; what one reads who points at them is true.

    Args:
        curves: At least one.
        metric: A numeric column of a run: ``sqnr_db`` in dB, ``cosine``, ``mse``, ``mre``...
        mean_over: Show the mean over so many nodes, a node and those before it; 0 or 1: none.
        marked: Names of nodes to ring on the first curve.
        order: Names of a run's layers, so that a node stands where the run's table has it; the curves may have fewer.

    Raises:
        OptionError: Without a curve, or for a metric that a run does not have.
    """
    altair = load_altair()
    if not curves:
        raise OptionError("got no curve of accumulated error, expected at least one")
    places = _joint_order([order, *([layer.node for layer in curve.run.layers] for curve in curves)])
    names = list(dict.fromkeys(curve.name for curve in curves))
    rows = [row for curve in curves for row in _curve_rows(curve, metric, mean_over, places)]
    chosen = set(marked)
    for row in rows:
        row["marked"] = row["curve"] == names[0] and row["node"] in chosen
    peaks = _rare_peaks(rows) if metric == "sqnr_db" else 0
    cap = {"domainMax": _PEAK_DB, "clamp": True} if peaks else {}
    colour, dash = series_encodings("curve", names, "quantized")
    base = rows_chart(rows).encode(
        x=_positions("node, in execution order"),
        y=altair.Y("value:Q", title=label(metric), scale=altair.Scale(zero=False, nice=True, **cap)),
        color=colour,
        tooltip=tooltips(
            ("position", "quantitative", "position"),
            ("node", "nominal", "node"),
            ("op", "nominal", "operator"),
            ("value", "quantitative", label(metric)),
            ("curve", "nominal", "quantized"),
        ),
    )
    layers = [
        base.mark_line(strokeWidth=2).encode(strokeDash=dash),
        base.mark_point(filled=True, size=40, opacity=1.0 if len(places) <= _SEEN_POINTS else 0.01),
    ]
    if any(row["marked"] for row in rows):
        ring = base.mark_point(filled=False, size=160, strokeWidth=2.5, shape="circle")
        layers.append(ring.encode(color=altair.ColorValue(VERMILION)).transform_filter(altair.datum.marked))
    words = [
        "against the float model, up to each node",
        f"running mean over {mean_over} nodes" if mean_over > 1 else "",
        "rings: layers that matter" if chosen else "",
        f"{peaks} values above {_PEAK_DB:.0f} dB at the upper edge" if peaks else "",
    ]
    title = titled(f"Accumulated error: {_name(metric)} at each node's output", "; ".join(filter(None, words)))
    return sized(altair.layer(*layers), title)


def _rare_peaks(rows: Sequence[dict[str, Any]]) -> int:
    """Returns how many values are so far above the others that the axis ends below them; 0 where it holds all."""
    peaks = sum(row["value"] > _PEAK_DB for row in rows)
    return peaks if peaks <= _RARE * len(rows) else 0


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


def _curve_rows(curve: Curve, metric: str, mean_over: int, places: dict[str, int]) -> Iterator[dict[str, Any]]:
    values = curve.run.numbers(metric, "metric")
    if mean_over > 1:
        values = running_mean(values, mean_over)
    for layer, value in zip(curve.run.layers, values, strict=True):
        shown = plain(value)
        if shown is not None:  # without an error SQNR is infinite: no point, and no line down to one
            yield {"position": places[layer.node], "node": layer.node, "op": layer.op_name, "value": shown, "curve": curve.name}


@unchecked
def layer_errors(run: Run, marked: Iterable[str] = ()) -> Any:
    """Returns the error that each layer adds, in steps, over the nodes in execution order, with pure rounding as a line.

    Args:
        run: Its layers.
        marked: Names of nodes that stand out.
    """
    altair = load_altair()
    criterion, chosen = run.default_criterion, set(marked)
    values, words = run.columns()[criterion], label(criterion)
    rows: list[dict[str, Any]] = [
        {
            "position": position,
            "node": layer.node,
            "op": layer.op_name,
            "value": plain(value),
            "kind": "matters" if layer.node in chosen else "other",
        }
        for position, (layer, value) in enumerate(zip(run.layers, values.tolist(), strict=True))
        if value > 0 and math.isfinite(value)
    ]
    highest = max([row["value"] for row in rows], default=1.0)
    scale = altair.Scale(type="log", domain=[_LEAST_STEPS, max(1.3 * highest, 1.0)], clamp=True, nice=False)
    kinds = altair.Scale(domain=["matters", "other"], range=[VERMILION, BLUE])
    shapes = altair.Scale(domain=["matters", "other"], range=["triangle-up", "circle"])
    legend = altair.Legend(title="layer") if chosen else None
    points = rows_chart(rows).mark_point(filled=True, size=70, opacity=0.85)
    points = points.encode(
        x=_positions("layer, in execution order"),
        y=altair.Y("value:Q", title=words.replace(")", ", log scale)"), scale=scale),
        color=altair.Color("kind:N", scale=kinds, legend=legend),
        shape=altair.Shape("kind:N", scale=shapes, legend=legend),
        tooltip=tooltips(
            ("position", "quantitative", "position"),
            ("node", "nominal", "node"),
            ("op", "nominal", "operator"),
            ("value", "quantitative", words),
        ),
    )
    floor = reference_line(1 / math.sqrt(12), "y", GREY, (4, 4), 1.0)
    small = sum(row["value"] < _LEAST_STEPS for row in rows)
    below = f"; {small} with less than {_LEAST_STEPS} at the lower edge" if small else ""
    title = titled(
        f"Error of each layer by itself: {GLOSSARY[criterion].name}", f"dashed line: pure rounding, 0.29 steps{below}"
    )
    return sized(altair.layer(floor, points), title)


# The error at the outputs.


@unchecked
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
    altair = load_altair()
    metric = metric or sensitivity.metric
    errors = sensitivity.errors
    values = errors.worst(metric, sensitivity.large_is_bad)
    low, high = errors.worst_interval(metric, sensitivity.large_is_bad)
    words = label(metric, metric in errors.task_metrics)
    if metric == "cosine":
        values, low, high = 1.0 - values, 1.0 - high, 1.0 - low
        words = "1 − cosine (0 to 2)"
    rows = _sensitivity_rows(sensitivity, sensitivity.order(metric)[:count], values, low, high)
    base = rows_chart(rows).encode(
        y=altair.Y("label:N", title="node, most sensitive first", sort=None, axis=altair.Axis(**_NAME_AXIS)),
        tooltip=tooltips(
            ("rank", "quantitative", "rank"),
            ("node", "nominal", "node"),
            ("op", "nominal", "operator"),
            ("value", "quantitative", words),
            ("low", "quantitative", "90 % from"),
            ("high", "quantitative", "to"),
        ),
    )
    with_bars = metric == "cosine" or BADNESS.get(metric, -1.0) > 0
    marks = base.mark_bar(color=SKY, height={"band": 0.7}) if with_bars else base.mark_point(filled=True, size=90, color=BLUE)
    layers = [
        marks.encode(x=altair.X("value:Q", title=words, scale=altair.Scale(zero=with_bars, nice=True))),
        base.mark_rule(color=BLACK, strokeWidth=1.5).encode(x=altair.X("low:Q", title=words), x2=altair.X2("high:Q")),
    ]
    tick = base.mark_tick(color=BLACK, size=7, thickness=1.5)
    layers += [tick.encode(x=altair.X(f"{end}:Q", title=words)) for end in ("low", "high")]
    whole = _all_quantized(sensitivity, values)
    if whole is not None:
        layers.append(reference_line(whole, "x", VERMILION, (6, 3)))
    title = titled(
        f"Sensitivity: {MODES[sensitivity.mode]}",
        "at the model's outputs; whiskers: 90 % of choices of samples",
        "" if whole is None else f"dashed line: all nodes quantized ({number(whole)})",
    )
    return sized(altair.layer(*layers), title, 22 * len(rows) + 10)


def _sensitivity_rows(
    sensitivity: Sensitivity, order: Sequence[int], values: np.ndarray, low: np.ndarray, high: np.ndarray
) -> list[dict[str, Any]]:
    labels = short_labels([sensitivity.nodes[position] for position in order])
    return [
        {
            "label": f"{labels[sensitivity.nodes[position]]}  {rank}",
            "node": sensitivity.nodes[position],
            "op": sensitivity.op_names[position],
            "rank": rank,
            "value": plain(values[position]),
            "low": plain(low[position]),
            "high": plain(high[position]),
        }
        for rank, position in enumerate(order, 1)
    ]


def _all_quantized(sensitivity: Sensitivity, values: np.ndarray) -> float | None:
    """Returns the value with all nodes quantized, which the mode ``float`` has."""
    return plain(values[len(sensitivity.nodes)]) if len(values) > len(sensitivity.nodes) else None


@unchecked
def sensitivity_steps(steps: Steps, metric: str | None = None) -> Any:
    """Returns a metric at the outputs against the number of nodes left float, with the threshold as a line.

    Args:
        steps: The analysis.
        metric: None: the one that has the threshold; else any that the errors have, a task metric too.

    Raises:
        OptionError: For a metric that there is not.
    """
    altair = load_altair()
    metric = metric or steps.metric
    words = label(metric, metric in steps.errors.task_metrics)
    base = rows_chart(_step_rows(steps, metric)).encode(
        x=altair.X(
            "step:Q",
            title="nodes left float, most sensitive first",
            axis=altair.Axis(tickMinStep=1),
            scale=altair.Scale(nice=False, padding=8),
        ),
        tooltip=tooltips(
            ("step", "quantitative", "nodes left float"),
            ("node", "nominal", "the last of them"),
            ("value", "quantitative", words),
            ("low", "quantitative", "90 % from"),
            ("high", "quantitative", "to"),
            ("size", "nominal", "weights and constants"),
        ),
    )
    y = altair.Y("value:Q", title=words, scale=altair.Scale(zero=False))
    layers = [
        base.mark_area(color=SKY, opacity=0.35).encode(y=altair.Y("low:Q", title=words), y2=altair.Y2("high:Q")),
        base.mark_line(color=BLUE, strokeWidth=2).encode(y=y),
        base.mark_point(color=BLUE, filled=True, size=60, opacity=1).encode(y=y),
    ]
    subtitle = ["band: 90 % of random choices of samples"]
    if metric == steps.metric:
        layers.append(reference_line(plain(steps.threshold), "y", VERMILION, (6, 3)))
        met = "no step meets it" if steps.met is None else f"met with {steps.met} left float (ring)"
        subtitle.insert(0, f"dashed line: threshold {number(steps.threshold)}, {met}")
        if steps.met is not None:
            ring = base.mark_point(color=GREEN, filled=False, size=260, strokeWidth=3).encode(y=y)
            layers.append(ring.transform_filter(altair.datum.met))
    if metric in steps.float_metrics:
        layers.append(reference_line(plain(steps.float_metrics[metric]), "y", GREEN, (2, 2)))
        subtitle.insert(0, f"dotted line: the float model, {number(steps.float_metrics[metric])}")
    return sized(altair.layer(*layers), titled(f"{_name(metric)} as sensitive nodes are left float", "; ".join(subtitle)))


def _step_rows(steps: Steps, metric: str) -> list[dict[str, Any]]:
    values, (low, high) = steps.errors.worst(metric), steps.errors.worst_interval(metric)
    names = ["none: all quantized", *steps.nodes]
    return [
        {
            "step": step,
            "value": plain(values[step]),
            "low": plain(low[step]),
            "high": plain(high[step]),
            "node": names[step],
            "size": byte_size(steps.sizes[step]) if steps.sizes else None,
            "met": step == steps.met,
        }
        for step in range(len(values))
    ]


@unchecked
def worst_samples(samples: Samples, count: int = 30) -> Any:
    """Returns the SQNR at the outputs of the samples on which the quantized model differs most.

    Args:
        samples: The analysis.
        count: How many of them at most.
    """
    altair = load_altair()
    rows = [
        {
            "sample": str(sample.index),
            "label": "" if sample.label is None else str(sample.label),
            "value": plain(sample.sqnr_db),
            "classes": f"{sample.float_class} → {sample.quantized_class}",
            "kind": "flipped" if sample.flipped else "same prediction",
        }
        for sample in samples.worst[:count]
    ]
    kinds = altair.Scale(domain=["flipped", "same prediction"], range=[VERMILION, SKY])
    x = altair.X(
        "sample:N",
        title="sample (position in the dataset), worst first",
        sort=None,
        axis=altair.Axis(labelOverlap="greedy", labelAngle=0),
    )
    bars = rows_chart(rows).mark_bar(width={"band": 0.75})
    bars = bars.encode(
        x=x,
        y=altair.Y("value:Q", title="SQNR at the outputs (dB)"),
        color=altair.Color("kind:N", scale=kinds, legend=altair.Legend(title="prediction")),
        tooltip=tooltips(
            ("sample", "nominal", "sample"),
            ("label", "nominal", "label"),
            ("value", "quantitative", "SQNR (dB)"),
            ("classes", "nominal", "class, float → quantized"),
        ),
    )
    return sized(bars, titled("Samples on which the quantized model differs most", "low is bad"), 220)
