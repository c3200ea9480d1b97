"""The report on post-training quantization: one HTML file with the forms side by side, and predictions to be looked at."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tflite_qdebug.drawn import Drawing
from tflite_qdebug.files import write_atomically
from tflite_qdebug.ptq_record import SHARES, Answer, Prediction, PtqComparison, PtqModel
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.reports.templating import rendered
from tflite_qdebug.wording import number, shortened

__all__ = ["notebook_html", "render_ptq_report", "write_forms_csv", "write_ptq_report"]

_PANEL, _ROW = 220, 28
# Pixels of a drawing on the page, and of its frame for curves.
_SHOWN, _CURVE_HEIGHT = 112, 56
# Predictions that a notebook shows.
_IN_NOTEBOOK = 6
_COSTS = {
    "size vs float": "size of the file, in parts of the float model's",
    "int ops, hybrid ops, float ops": "operators on integers, on float activations with integer weights, and on floats",
    "ms": "median of one run on this machine; it tells little of another one, least of a board",
}
_SCORES = {
    "± s.e.": "standard error of the mean: how far it would be off by the choice of the samples",
    "difference, ± s.e. paired": "from the float model on the same samples; what is hard for both cancels, so that it is known "
    "better than either mean",
    "lost, won": "samples on which only the float model is right, and only this form (of other metrics: is better)",
    "p": "how probable so uneven a split is by chance alone, by McNemar's exact test (of other metrics: the sign test)",
    "same answer": "share of samples on which the first output is greatest where the float model's is",
    "SQNR dB": "signal-to-noise ratio of the worst output against the float model's: what quantization does before anything is "
    "decided; 30 dB and more is usual of int8",
}


class _Picture(NamedTuple):
    """A drawing as the page has it."""

    drawing: Drawing
    source: str
    width: int
    lines: list[str]


class _Given(NamedTuple):
    """An answer, and the forms that gave it."""

    words: str
    right: bool | None
    forms: str
    values: str
    picture: _Picture | None = None


class _Card(NamedTuple):
    """A prediction as the page has it."""

    prediction: Prediction
    label: str | None
    pictures: list[_Picture]
    given: list[_Given]


def write_ptq_report(comparison: PtqComparison, path: str | os.PathLike[str], commands: Sequence[tuple[str, str]] = ()) -> Path:
    """Writes the report and returns its path.

    Args:
        comparison: What `quantize_post_training` returned, or one that was loaded.
        path: Of the file; one that exists is replaced once the new one is whole.
        commands: What to do next: words, and the command.

    Raises:
        MissingPackageError: Where jinja2 or Pillow is not installed.
        OutputError: Where it cannot be written.
    """
    write_atomically(path, render_ptq_report(comparison, commands).encode())
    return Path(path)


def render_ptq_report(comparison: PtqComparison, commands: Sequence[tuple[str, str]] = ()) -> str:
    """Returns the report as HTML, as `write_ptq_report`."""
    return rendered(
        "ptq.html",
        comparison=comparison,
        origin=_origin(comparison),
        panels=_panels(comparison),
        made=[model.form for model in comparison.models if model.is_made],
        sizes=(_PANEL, _ROW),
        tables={"sizes": comparison.size_table(), "scores": comparison.score_table(), "ports": comparison.port_table()},
        floating=_float_groups(comparison),
        legends=(_legend(comparison.size_table()[0], _COSTS), _legend(comparison.score_table()[0], _SCORES)),
        first=_cards(comparison, comparison.first),
        differing=_cards(comparison, comparison.differing),
        commands=commands,
        curve=(_SHOWN, _CURVE_HEIGHT),
    )


def notebook_html(comparison: PtqComparison) -> str:
    """Returns what a notebook shows of a comparison: verdict, forms, and some predictions."""
    shown = comparison.differing or comparison.first
    return rendered(
        "ptq_notebook.html",
        comparison=comparison,
        tables=(comparison.size_table(), comparison.score_table()),
        cards=_cards(comparison, shown[:_IN_NOTEBOOK]),
        curve=(_SHOWN, _CURVE_HEIGHT),
    )


def write_forms_csv(comparison: PtqComparison, path: str | os.PathLike[str]) -> None:
    """Writes a row for each form; what was not measured is NaN.

    Units: sizes in bytes, times in milliseconds, the rest in the metric's own.

    Raises:
        OutputError: Where it cannot be written.
    """
    models, nan = comparison.models, float("nan")
    columns: dict[str, list[Any]] = {
        "form": [model.form for model in models],
        "bytes": [model.size for model in models],
        "inputs": [" ".join(port.dtype for port in model.inputs) for model in models],
        "outputs": [" ".join(port.dtype for port in model.outputs) for model in models],
    }
    for kind in ("integer", "hybrid", "floating", "converting"):
        columns[f"{kind}_operators"] = [getattr(model.operators, kind) for model in models]
    for name in comparison.metrics:
        columns[name] = [model.metrics.get(name, nan) for model in models]
        columns[f"{name}_standard_error"] = [model.standard_error.get(name, nan) for model in models]
        for part in ("value", "standard_error", "higher", "lower", "p_value"):
            found = [model.differences.get(name) for model in models]
            columns[f"{name}_difference_{part}"] = [nan if each is None else getattr(each, part) for each in found]
    columns["same_answer"] = [model.agreement for model in models]
    columns["sqnr_db"] = [model.sqnr_db for model in models]
    columns["median_ms"] = [nan if model.time is None else model.time.median for model in models]
    columns["percentile_90_ms"] = [nan if model.time is None else model.time.percentile_90 for model in models]
    columns["kernels"] = [model.kernels for model in models]
    columns["failure"] = [model.failure for model in models]
    write_columns(columns, path)


def _legend(header: Sequence[str], terms: dict[str, str]) -> dict[str, str]:
    """Returns what the columns mean that there are."""
    return {name: words for name, words in terms.items() if name.partition(",")[0] in header}


def _float_groups(comparison: PtqComparison) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
    """Returns for each form that has any the operators that stayed float: ``(operator, reason, names)``."""
    found: dict[str, list[tuple[str, str, list[str]]]] = {}
    for form, op_name, reason, names in comparison.float_groups():
        found.setdefault(form, []).append((op_name, reason, [shortened(name, 80) for name in names]))
    return list(found.items())


def _origin(comparison: PtqComparison) -> str:
    origin = str(comparison.provenance.get("origin", "the model"))
    return Path(origin).name or origin


# The chart. It is drawn here: its few lines are not worth a package for charts.


class _Bar(NamedTuple):
    """What one form has in a panel, in pixels from the panel's left: a bar's or an interval's ends, and a dot; None of none."""

    low: float | None
    high: float | None
    dot: float | None
    worse: bool
    words: str


class _Panel(NamedTuple):
    """One quantity of all forms; ticks are ``(pixel, text)``."""

    title: str
    bars: list[_Bar]
    ticks: list[tuple[float, str]]


def _panels(comparison: PtqComparison) -> list[_Panel]:
    """Returns size, main metric with its 95 % interval, and time of each form that was made."""
    made = [model for model in comparison.models if model.is_made]
    metric = comparison.main_metric
    panels = [_bars("size, kB", [model.size / 1000.0 for model in made])]
    if metric is None:
        title = "same answer as float, share" if comparison.classifies else "SQNR against float, dB"
        values = [model.agreement if comparison.classifies else model.sqnr_db for model in made]
        intervals = [(value, value, value) for value in values]
    else:
        title = f"{metric}, with 95 % interval"
        intervals = [_interval(metric, model) for model in made]
    panels.append(_dots(title, intervals, [comparison.is_worse(model) for model in made]))
    if any(model.time is not None for model in made):
        panels.append(_bars("ms for one run", [math.nan if each.time is None else each.time.median for each in made]))
    return panels


def _interval(metric: str, model: PtqModel) -> tuple[float, float, float]:
    """Returns the ends of the 95 % interval and the value between; NaN where it was not measured."""
    value, error = model.metrics.get(metric, math.nan), model.standard_error.get(metric, math.nan)
    half = 0.0 if math.isnan(error) else 1.96 * error
    low, high = value - half, value + half
    return (max(low, 0.0), min(high, 1.0), value) if metric in SHARES else (low, high, value)


def _bars(title: str, values: Sequence[float]) -> _Panel:
    ticks, place = _axis([0.0, *values])
    bars = [_Bar(place(0.0), place(value), None, False, number(value, 3)) for value in values]
    return _Panel(title, bars, ticks)


def _dots(title: str, intervals: Sequence[tuple[float, float, float]], worse: Sequence[bool]) -> _Panel:
    ticks, place = _axis([end for interval in intervals for end in interval])
    bars = [
        _Bar(place(low), place(high), place(value), is_worse, number(value))
        for (low, high, value), is_worse in zip(intervals, worse, strict=True)
    ]
    return _Panel(title, bars, ticks)


def _axis(values: Sequence[float]) -> tuple[list[tuple[float, str]], Callable[[float], float | None]]:
    """Returns the ticks of an axis that holds all finite values, and what gives a value's place on it."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 3.0))
    step = next(unit * factor for factor in (1.0, 2.0, 5.0, 10.0) if span / (unit * factor) <= 4.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)

    def place(value: float) -> float | None:
        return round(_PANEL * (value / step - first) / (last - first), 1) if math.isfinite(value) else None

    return [(_PANEL * (tick - first) / (last - first), f"{tick * step:.6g}") for tick in range(first, last + 1)], place


# The predictions.


def _cards(comparison: PtqComparison, predictions: Sequence[Prediction]) -> list[_Card]:
    return [
        _Card(
            prediction,
            None if prediction.label is None else comparison.class_name(prediction.label),
            [_picture(drawing) for drawing in prediction.drawings],
            _given(comparison, prediction),
        )
        for prediction in predictions
    ]


def _given(comparison: PtqComparison, prediction: Prediction) -> list[_Given]:
    """Returns the answers, each once, with the forms that gave it; the float model's first."""
    groups: dict[Any, list[tuple[str, Answer]]] = {}
    for form, answer in prediction.answers.items():
        key = answer.position if comparison.classifies else form
        groups.setdefault(key, []).append((form, answer))
    found = []
    for group in groups.values():
        values = [answer.value for _, answer in group]
        span = " to ".join(dict.fromkeys(_short(value) for value in (min(values), max(values))))
        words = comparison.answer_words(group[0][1]).removesuffix(" ✗")
        forms = ", ".join(form for form, _ in group)
        drawing = group[0][1].drawing
        picture = None if drawing is None else _picture(drawing)
        found.append(_Given(words, group[0][1].right, forms, span if comparison.classifies else "", picture))
    return found


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else number(value, 3)


def _picture(drawing: Drawing) -> _Picture:
    if drawing.pixels is None:
        return _Picture(drawing, "", _SHOWN, _lines(drawing))
    height, width = drawing.pixels.shape[:2]
    source = "data:image/png;base64," + base64.b64encode(drawing.png()).decode()
    # The longer side has always the same length.
    return _Picture(drawing, source, max(1, round(_SHOWN * min(1.0, width / height))), [])


def _lines(drawing: Drawing) -> list[str]:
    """Returns the curves as points of the page's own coordinates, all on one scale."""
    values = [value for curve in drawing.curves for value in curve]
    if not values:
        return []
    low, span = min(values), (max(values) - min(values)) or 1.0
    lines = []
    for curve in drawing.curves:
        step = _SHOWN / max(1, len(curve) - 1)
        points = ((step * place, _CURVE_HEIGHT * (1.0 - (value - low) / span)) for place, value in enumerate(curve))
        lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    return lines
