"""What every number in a report is: name, unit, meaning, and when it is bad; in one place, so that all reports agree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tflite_qdebug.wording import byte_size, number, percent, points, probability, signed

__all__ = ["GLOSSARY", "MODES", "WHOLE", "Figure", "Term", "figure", "heading", "label", "task_term"]


@dataclasses.dataclass(frozen=True)
class Term:
    """A number that a report shows.

    Attributes:
        name: As a reader sees it.
        unit: In words, short; never empty: a number without a unit says between which values it lies.
        what: What it is, one sentence.
        when_bad: When it is bad, one sentence.
        kind: How it is written: ``number``; ``share`` (0..1, shown in %); ``change`` (a share with its sign); ``signed``;
            ``points`` (signed, percentage points); ``probability``; ``bytes``; ``count``; ``index``.
        below: Bad below it; None where no bound holds for all models.
        above: Bad above it; the same.
        digits: Significant digits.
        suffix: The unit behind the number; None: the ``unit``.
        heading: Name and unit over a column in a terminal, where there is little room; empty: the name.
    """

    name: str
    unit: str
    what: str
    when_bad: str
    kind: str = "number"
    below: float | None = None
    above: float | None = None
    digits: int = 3
    suffix: str | None = None
    heading: str = ""

    def is_bad(self, value: float) -> bool:
        """Returns whether a value is beyond the bounds that hold for all models; NaN is not."""
        return (self.below is not None and value < self.below) or (self.above is not None and value > self.above)

    def text(self, value: float) -> str:
        """Returns the value as it is written, without its unit where the kind has none of its own."""
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if self.kind == "share":
            return percent(value, self.digits)
        if self.kind == "change":
            return f"{signed(100.0 * value, self.digits)} %".replace("-", "−")
        if self.kind == "points":
            return points(value).replace("-", "−")
        if self.kind == "probability":
            return probability(value)
        if self.kind == "signed":
            return signed(value, self.digits).replace("-", "−")
        if self.kind == "bytes":
            return byte_size(value)
        if self.kind in ("count", "index"):
            return f"{int(value):,}".replace(",", " ") if self.kind == "count" else str(int(value))
        return number(value, self.digits).replace("-", "−")

    def with_unit(self, value: float) -> str:
        """Returns the value and its unit."""
        text = self.text(value)
        unit = self.unit if self.suffix is None else self.suffix
        return text if not unit or text == "–" or self.kind in ("share", "change", "bytes") else f"{text} {unit}"

    def hover(self, value: float) -> str:
        """Returns what a reader sees who points at the value."""
        return f"{self.name}: {self.with_unit(value)} ({self.unit}). {self.what} {self.when_bad}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number ready to be shown.

    Attributes:
        term: Its key in `GLOSSARY`.
        name: As a reader sees it.
        text: Without unit.
        shown: With unit.
        hover: What it is and when it is bad.
        bad: Whether it is.
        value: To sort by; None where there is none.
        listed: Whether its name, unit and words are those of the glossary.
    """

    term: str
    name: str
    text: str
    shown: str
    hover: str
    bad: bool
    value: float | None
    listed: bool = True


def figure(term: str, value: Any, name: str = "") -> Figure:
    """Returns a number ready to be shown.

    Args:
        term: A key of `GLOSSARY`.
        value: The number.
        name: Instead of the term's.
    """
    entry, given = GLOSSARY[term], float(value)
    shown = dataclasses.replace(entry, name=name) if name else entry
    return Figure(
        term,
        shown.name,
        entry.text(given),
        entry.with_unit(given),
        shown.hover(given),
        entry.is_bad(given),
        None if math.isnan(given) else given,
        not name,
    )


def heading(metric: str) -> str:
    """Returns what stands over a column of a metric in a terminal; over a metric of the user's its own name."""
    term = GLOSSARY.get(metric)
    return metric if term is None else term.heading or term.name


def label(metric: str, task: bool = False) -> str:
    """Returns a metric's name and unit for an axis or a title; ``task``: it is the user's, whatever it is called."""
    if task or metric not in GLOSSARY:
        return f"{metric} (mean over samples)"
    return f"{GLOSSARY[metric].name} ({GLOSSARY[metric].unit})"


def task_term(metric: str) -> str:
    """Returns the key of the term of a task metric: its own where the glossary has it."""
    return metric if metric in GLOSSARY else "task"


#: What is quantized, or left float, in each mode of sensitivity.
MODES = {
    "node": "one node alone quantized",
    "weights": "one node's weights alone quantized",
    "activation": "one node's input alone quantized",
    "float": "one node alone left float, all others quantized",
}
#: What is quantized in each of the whole models that a run may compare.
WHOLE = {"quantized": "all of it", "weights": "weights alone", "activations": "activations alone"}


_REAL = "real units"
_NO_UNIT = "no unit"

GLOSSARY: dict[str, Term] = {
    # Layers.
    "position": Term(
        "#", "position", "The layer's place in execution order, from 0.", "Never bad by itself.", "index", suffix=""
    ),
    "severity": Term(
        "severity",
        "8-bit steps",
        "The error that the layer itself adds: RMSE, or a sixth of the greatest error where that is more, in steps of 8 bits.",
        "0.29 is pure rounding; above 1 the layer does more harm than rounding explains.",
        above=1.0,
        suffix="steps",
    ),
    "rmse_over_scale": Term(
        "RMSE / scale",
        "steps",
        "The layer's root mean square error in steps of its own integers.",
        "0.29 is pure rounding, the floor; above 1 it is bad.",
        above=1.0,
        heading="RMSE/scale",
    ),
    "sqnr_db": Term(
        "SQNR",
        "dB",
        "Signal to quantization noise ratio: 10 log10 of the float values' energy over the error's.",
        "High is good; below 20 dB the error is more than a tenth of the signal.",
        below=20.0,
        heading="SQNR dB",
    ),
    "cosine": Term(
        "cosine",
        "−1 to 1",
        "Cosine similarity of the float and the quantized values; 1 is the same direction.",
        "Below 0.99 is bad.",
        below=0.99,
        digits=4,
        suffix="",
    ),
    "max_abs_error": Term(
        "max error",
        _REAL,
        "The greatest difference of one value, in the units of the tensor.",
        "Bad where it is many times the scale.",
    ),
    "saturation": Term(
        "saturated",
        "% of values",
        "Share of the values at the least or the greatest integer.",
        "Much is normal at the lower end behind RELU; otherwise more than 1 % says that the range is too narrow.",
        "share",
    ),
    "saturated_low": Term(
        "saturated low",
        "% of values",
        "Share of the values at the least integer.",
        "Normal behind RELU, where it stands for zero; else above 1 % the range is too narrow.",
        "share",
    ),
    "saturated_high": Term(
        "saturated high",
        "% of values",
        "Share of the values at the greatest integer.",
        "Above 1 % the range is too narrow, unless the operator itself cuts there (RELU6).",
        "share",
    ),
    "range_used": Term(
        "range used",
        "% of integers",
        "Share of the integer range between the least and the greatest value seen.",
        "Below 25 % the range is four times wider than needed: two bits are lost.",
        "share",
        below=0.25,
    ),
    "bias": Term(
        "bias", _REAL, "The mean error, with its sign.", "Bad where its size comes near the RMSE: a shift, not noise."
    ),
    "rmse": Term(
        "RMSE", _REAL, "Root mean square error, in the units of the tensor.", "Compare with the scale: see RMSE / scale."
    ),
    "scale": Term(
        "scale",
        "real units per step",
        "What one integer step stands for.",
        "Bad where it is large against the values.",
        suffix="per step",
    ),
    "zero_point": Term("zero point", "integer", "The integer that stands for 0.0.", "Never bad by itself.", "index", suffix=""),
    "range": Term("range", _REAL, "Width of what the integers can hold.", "Bad where it is far wider than the values."),
    "worst_sample": Term(
        "worst sample",
        "index",
        "The sample with the greatest error in this layer.",
        "Look at it where its error stands out.",
        "index",
        suffix="",
    ),
    "worst_rmse": Term(
        "RMSE of it", _REAL, "The layer's error on its worst sample.", "Bad where it is many times the RMSE over all."
    ),
    "num_elements": Term(
        "values compared",
        "values",
        "How many values were compared, all samples together.",
        "Few make the other figures uncertain.",
        "count",
        suffix="",
    ),
    "weights_rmse": Term(
        "RMSE by weights",
        _REAL,
        "The part of the error that comes of rounding the weights.",
        "Bad where it is the largest of the parts.",
    ),
    "output_rmse": Term(
        "RMSE by output",
        _REAL,
        "The part that comes of rounding and clipping the output, and of the kernel.",
        "Bad where it is the largest of the parts.",
    ),
    "input_rmse": Term(
        "RMSE by input", _REAL, "The part that the layer was handed by the layers before it.", "Large: look before this layer."
    ),
    "accumulated_rmse": Term(
        "RMSE accumulated",
        _REAL,
        "The error of the whole quantized model up to here.",
        "Bad where it comes near the values themselves.",
    ),
    "own_rmse": Term("RMSE of its own", _REAL, "What the layer adds where all before it is sound.", "Compare with the scale."),
    "sensitivity": Term(
        "sensitivity",
        "see metric",
        "The error at the model's outputs when this layer alone is quantized.",
        "Bad where it is much of what the whole quantized model loses.",
        digits=4,
        suffix="",
    ),
    # Values of a tensor.
    "clipped_low": Term(
        "clipped below",
        "% of values",
        "Share of the float values below the range.",
        "Above 0.1 % the range is too narrow at its low end.",
        "share",
        above=0.001,
    ),
    "clipped_high": Term(
        "clipped above",
        "% of values",
        "Share of the float values above the range.",
        "Above 0.1 % the range is too narrow at its high end.",
        "share",
        above=0.001,
    ),
    "integers_used": Term(
        "integers used",
        "integers",
        "How many different integers occurred, of those that the type has.",
        "Few of 256 say that the range is too wide.",
        "count",
        suffix="",
    ),
    "kurtosis": Term(
        "kurtosis",
        _NO_UNIT,
        "How heavy the tails are: 3 for a normal distribution, 1.8 for an even one.",
        "Above 30 a few rare values stretch the range.",
        above=30.0,
        suffix="",
    ),
    "outliers": Term(
        "outliers",
        "% of values",
        "Share of values more than 6 standard deviations from the mean.",
        "Any share above 0 stretches the range for all others.",
        "share",
    ),
    "mean": Term("mean", _REAL, "Mean of the float values.", "Never bad by itself."),
    "deviation": Term("deviation", _REAL, "Standard deviation of the float values.", "Bad where it is less than a few steps."),
    "negative": Term(
        "negative",
        "% of values",
        "Share of the float values below zero.",
        "Never bad by itself; a thin negative tail (swish) costs steps.",
        "share",
    ),
    "near_zero": Term(
        "lost in zero",
        "% of values",
        "Share of values smaller than half a step: they become zero.",
        "Above 50 % most of the detail is gone, unless RELU made the zeros.",
        "share",
    ),
    "tensor_range": Term(
        "calibrated range",
        _REAL,
        "What the integers can hold, in the units of the tensor.",
        "Bad where the values need far less, or more.",
    ),
    "dead_channels": Term(
        "dead channels",
        "channels",
        "Channels that have one value throughout.",
        "They cost time and size and carry nothing.",
        "count",
        suffix="",
        above=0.0,
    ),
    "dominating_channels": Term(
        "dominating channels",
        "channels",
        "Channels more than 4 times as large as 95 % of the channels.",
        "Above 0 they stretch the range for all others.",
        "count",
        suffix="",
        above=0.0,
    ),
    "channel_spread": Term(
        "spread of channels",
        "times",
        "The largest channel over the median one, by largest absolute value; 1 is even.",
        "Above 16 the median channel has less than 16 of 256 steps where one scale serves all.",
        above=16.0,
    ),
    # Remedies.
    "interval_end": Term(
        "interval",
        "as the metric",
        "Between the two ends the metric lies for 90 % of random choices of as many samples.",
        "A wide interval says that the samples are too few to tell candidates apart.",
        suffix="",
    ),
    "against_float": Term(
        "less float",
        "as the metric, accuracies in points",
        "The metric less that of the float model, on the same samples.",
        "Bad where the remedy loses more than was allowed.",
        "signed",
        suffix="",
    ),
    "p_value": Term(
        "p",
        "probability, 0 to 1",
        "How probable a difference from float as large as this is by chance alone, by a paired test.",
        "At most 0.05 says that the difference is real; more says that these samples cannot tell.",
        "probability",
        suffix="",
    ),
    "size_change": Term(
        "size vs int8",
        "% of plain int8",
        "Size of the file against the plain int8 model's.",
        "What the remedy costs; 0 costs nothing.",
        "change",
    ),
    "float_operators": Term(
        "float operators",
        "operators",
        "Operators that compute in float.",
        "Each is slower than in int8, and none runs on an integer accelerator.",
        "count",
        suffix="",
    ),
    "islands": Term(
        "islands",
        "groups",
        "Groups of float operators that hang together.",
        "Each costs a way out of integers and back.",
        "count",
        suffix="",
    ),
    "edgetpu_share": Term(
        "on Edge TPU",
        "% of operators",
        "Share of the operators that map to the Edge TPU, predicted.",
        "What does not map runs on the CPU, with all that comes behind it.",
        "share",
    ),
    "candidates": Term(
        "candidates",
        "models",
        "How many models the search made and measured.",
        "Many of them make the best figure on the debug samples flatter.",
        "count",
        suffix="",
    ),
    "gain": Term(
        "expected gain",
        "as stated",
        "What a remedy is expected to bring, by a quick estimate or a measurement.",
        "Gains of several remedies do not add up; an estimate is no measurement.",
        "signed",
        digits=2,
        suffix="",
    ),
    # The graph.
    "macs": Term(
        "multiplications",
        "per sample",
        "Multiply-adds for one sample.",
        "What a layer left float costs in time.",
        "count",
        suffix="",
    ),
    "weight_bytes": Term(
        "weights",
        "bytes",
        "Size of the constants in the quantized model.",
        "What a layer left float costs in size: four times as much.",
        "bytes",
    ),
    # The whole model.
    "task": Term(
        "task metric",
        "mean over samples",
        "The user's own measure of the model.",
        "Bad where the quantized model is much below the float one.",
        digits=4,
        suffix="",
    ),
    "top_1": Term(
        "top-1 accuracy",
        "% of samples",
        "Share of the samples whose class was found.",
        "A loss of more than one point is bad.",
        "share",
    ),
    "top_5": Term(
        "top-5 accuracy",
        "% of samples",
        "Share of the samples whose class is among the first five.",
        "A loss of more than one point is bad.",
        "share",
    ),
    "agreement": Term(
        "agreement",
        "% of rows",
        "Share of rows whose greatest value stayed where the float model has it; it needs no labels.",
        "Below 99 % is bad.",
        "share",
    ),
    "points": Term("loss", "percentage points", "Float less quantized.", "Above 1 point is bad.", above=1.0, suffix="points"),
    "size": Term("size", "bytes", "Bytes of the model's file.", "An int8 model should be a quarter of the float one.", "bytes"),
    "milliseconds": Term(
        "time",
        "ms per sample",
        "Median time of one inference on this machine.",
        "Times on another device differ.",
        digits=2,
        suffix="ms",
    ),
    "samples": Term(
        "samples",
        "samples",
        "How many samples were measured.",
        "Below 100 the figures may be different on other samples.",
        "count",
        suffix="",
    ),
    "layers": Term(
        "layers",
        "layers",
        "How many quantized tensors were held against the float model.",
        "Never bad by itself.",
        "count",
        suffix="",
    ),
    "flip_count": Term(
        "flipped predictions",
        "samples",
        "Samples whose greatest output is another one in the quantized model.",
        "Above 1 % of the samples is bad.",
        "count",
        suffix="",
    ),
    "flips": Term("flips", "% of rows", "Share of rows whose greatest value moved.", "Above 1 % is bad.", "share", above=0.01),
    "mse": Term("MSE", "real units squared", "Mean squared error.", "Low is good; compare with the values' own square."),
    "mre": Term(
        "MRE",
        "ratio",
        "Mean of |error| / |float value|, over the float values other than 0.",
        "Above 0.1 is bad.",
        above=0.1,
        suffix="",
    ),
    "chebyshev": Term(
        "max error", _REAL, "The greatest difference of one value of an output.", "Bad where it can change an answer."
    ),
    "kl": Term(
        "KL divergence",
        "nats",
        "How far the quantized probabilities are from the float ones.",
        "Above 0.1 is bad.",
        above=0.1,
        heading="KL nats",
    ),
    "steps_float": Term(
        "left float",
        "nodes",
        "How many of the most sensitive nodes are left float.",
        "Each costs size and time.",
        "count",
        suffix="",
    ),
    "threshold": Term("threshold", "as the metric", "What was asked for.", "Bad where no step meets it.", digits=4, suffix=""),
    "weight": Term(
        "weight", "share or severity", "How much the layer matters, for the order of the list.", "Large comes first.", suffix=""
    ),
    "sample_index": Term("sample", "index", "Position in the dataset, from 0.", "Never bad by itself.", "index", suffix=""),
    "class": Term(
        "class",
        "index",
        "Position of the greatest value of the first output.",
        "Bad where float and quantized differ.",
        "index",
        suffix="",
    ),
    "rank": Term(
        "rank",
        "1 is the worst",
        "Place among all nodes.",
        "A wide interval says that other samples would give another order.",
        "index",
        suffix="",
    ),
}
