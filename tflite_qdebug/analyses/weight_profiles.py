"""How the weights of each operator are distributed, in float and quantized; nothing has to run for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tflite_qdebug.edit.pairs import DEQUANTIZED, FLOAT_MODEL
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.findings import Channels, Profile
from tflite_qdebug.kernels import scan_values
from tflite_qdebug.match import Graph, Match
from tflite_qdebug.model import Operator, Tensor
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.value_statistics import NEGATIVE, OUTLYING, Spread, as_channels, channel_rows, empty_rows

__all__ = ["SHOWN_BINS", "checked_axis", "weight_profiles"]

#: Bins on either side of zero that a profile has at most.
SHOWN_BINS = 256
# The axis of the weights along which the operator's own channels run; the last of all others.
_AXES = {
    "CONV_2D": 0,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
    "DEPTHWISE_CONV_2D": 3,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 0,
    "BIDIRECTIONAL_SEQUENCE_LSTM": 0,
    "UNIDIRECTIONAL_SEQUENCE_RNN": 0,
    "SVDF": 0,
}


def checked_axis(axis: int, shape: tuple[int, ...], what: str) -> int:
    """Returns the axis, counted from the first.

    Raises:
        OptionError: Where the tensor has no such axis, or one of any size.
    """
    rank = len(shape)
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -rank <= axis < rank:
        raise OptionError(
            f"got axis {axis!r}, but {what} has shape {shape}: expected {-rank} to {rank - 1}"
            "; choose the tensors that have it with nodes and roles"
            if rank
            else f"got axis {axis!r}, but {what} is one number, without an axis; leave it out with nodes and roles"
        )
    if shape[axis] < 0:
        raise OptionError(
            f"got axis {axis}, but {what} has shape {shape}, of any size there: expected an axis of a fixed size, as that of "
            "channels is"
        )
    return int(axis) % rank


@dataclasses.dataclass(frozen=True)
class _Weights:
    """One constant of an operator, in float and in the quantized model."""

    node: str
    operator: Operator
    tensor: Tensor
    floating: np.ndarray
    stored: np.ndarray
    reference: str

    @property
    def quantization(self) -> QuantizationParameters | None:
        return self.tensor.quantization if self.tensor.is_quantized else None


def weight_profiles(
    floating: Graph | None, quantized: Graph, match: Match | None, names: Mapping[int, str], axis: int | None = None
) -> Iterator[Profile]:
    """Yields the profile of each operator's weights: its constants of real numbers but biases, the greatest first.

    An operator whose constants all have one dimension at most, as ADD of a vector, gives the greatest.

    Args:
        floating: The float model; None: the dequantized weights stand for the float ones.
        quantized: The quantized model.
        match: What belongs to what; None without a float model.
        names: ``{operator of the quantized model: node}`` of those to look at.
        axis: That of the channels; None: the one proper to the operator: 3 for DEPTHWISE_CONV_2D, 0 for CONV_2D,
            FULLY_CONNECTED and TRANSPOSE_CONV, for others that of per-channel scales, else the last.

    Raises:
        ModelError: For NaN or infinity among the weights.
        OptionError: For an axis that a constant has not.
    """
    pairs = {pair.quantized_operator: pair.float_operator for pair in match.operators} if match else {}
    for operator in quantized.operators:
        if operator.index not in names:
            continue
        counterpart = None
        if floating is not None and operator.index in pairs:
            counterpart = floating.subgraph.operators[pairs[operator.index]]
        for position, tensor in _constants(quantized, operator):
            theirs = _counterpart(floating, counterpart, operator, position, tensor) if floating and counterpart else None
            stored = quantized.model.constant(tensor)
            real = quantized.real_values(tensor) if theirs is None else theirs
            reference = DEQUANTIZED if theirs is None else FLOAT_MODEL
            yield _profile(_Weights(names[operator.index], operator, tensor, real, stored, reference), axis)


def _constants(graph: Graph, operator: Operator) -> list[tuple[int, Tensor]]:
    found = []
    for position, index in enumerate(operator.inputs):
        if index < 0 or not graph.is_constant(index):
            continue
        tensor = graph.tensor(graph.root(index))
        if (tensor.is_float or tensor.is_quantized or tensor.dtype == np.float16) and np.prod(tensor.shape) > 1:
            found.append((position, tensor))
    found.sort(key=lambda entry: -int(np.prod(entry[1].shape)))
    # Beside a matrix a vector is a bias, or what belongs to one.
    matrices = [entry for entry in found if len(entry[1].shape) > 1]
    return matrices or found[:1]


def _counterpart(floating: Graph, mine: Operator, other: Operator, position: int, tensor: Tensor) -> np.ndarray | None:
    """Returns the float constant, in the shape of the quantized one; None where there is none of that size."""
    found: Tensor | None = None
    if mine.name == other.name and position < len(mine.inputs) and mine.inputs[position] >= 0:
        index = mine.inputs[position]
        found = floating.tensor(floating.root(index)) if floating.is_constant(index) else None
    elif mine.name != other.name:
        found = floating.weights(mine)
    if found is None or not (found.is_float or found.dtype == np.float16):
        return None
    ours, theirs = ([size for size in each.shape if size != 1] for each in (found, tensor))
    return floating.real_values(found).reshape(tensor.shape) if ours == theirs else None


def _profile(weights: _Weights, axis: int | None) -> Profile:
    parameters, what = weights.quantization, f"the weights of {weights.node!r}"
    values = np.ascontiguousarray(weights.floating, dtype=np.float32)
    real = _as_float(weights, parameters)
    _check_finite(values, f"{what} ({weights.reference})")
    _check_finite(real, f"{what} (quantized model)")
    own_axis = _proper_axis(weights, parameters) if axis is None else checked_axis(axis, values.shape, what)
    row = empty_rows(1)[0]
    scan_values()(values.reshape(-1), -np.inf, np.inf, 0.0, row)
    spread, limits = Spread.of(row), np.iinfo(weights.stored.dtype) if parameters else None
    is_float = weights.tensor.is_float
    low = high = scale = np.nan
    if parameters and limits and not parameters.is_per_channel:
        scale, point = float(parameters.scale[0]), int(parameters.zero_point[0])
        low, high = (limits.min - point) * scale, (limits.max - point) * scale
    below, above, near = _beyond(values, parameters, weights.stored.dtype)
    return Profile(
        node=weights.node,
        op_name=weights.operator.name,
        operator=weights.operator.index,
        role="weights",
        tensor=weights.tensor.name,
        values=_histogram(values),
        quantized=None if is_float else _histogram(real),
        error=None if is_float else _histogram(real - values),
        low=low,
        high=high,
        scale=scale,
        clipped_low=below,
        clipped_high=above,
        integers_used=len(np.unique(weights.stored)) if limits else 0,
        integers=int(limits.max) - int(limits.min) + 1 if limits else 0,
        mean=spread.mean,
        deviation=spread.deviation,
        kurtosis=spread.kurtosis,
        outliers=float(np.mean(np.abs(values - spread.mean) > OUTLYING * spread.deviation)) if spread.deviation else 0.0,
        negative=float(row[NEGATIVE]) / values.size,
        near_zero=near,
        channels=_channels(values, own_axis, parameters),
        quantized_channels=None if is_float else _channels(real, own_axis, parameters),
        reference=weights.reference,
    )


def _as_float(weights: _Weights, parameters: QuantizationParameters | None) -> np.ndarray:
    if parameters is None:
        return np.ascontiguousarray(weights.stored, dtype=np.float32)
    return parameters.dequantize(weights.stored)


def _check_finite(values: np.ndarray, what: str) -> None:
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise ModelError(
            f"{what}: {broken} of {values.size} values are NaN or infinite, expected finite ones; mend the model, or leave the "
            "node out with nodes"
        )


def _proper_axis(weights: _Weights, parameters: QuantizationParameters | None) -> int:
    name, rank = weights.operator.name, weights.stored.ndim
    if parameters and parameters.is_per_channel:
        return parameters.axis
    return _AXES[name] if 0 <= _AXES.get(name, -1) < rank else rank - 1


def _beyond(values: np.ndarray, parameters: QuantizationParameters | None, dtype: Any) -> tuple[float, float, float]:
    """Returns the shares of values below and above the range, each channel having its own, and of those near zero."""
    if parameters is None:
        return 0.0, 0.0, float("nan")
    shape = [1] * values.ndim
    if parameters.is_per_channel:
        shape[parameters.axis] = -1
    limits = np.iinfo(dtype)
    scale, point = parameters.scale.astype(np.float64).reshape(shape), parameters.zero_point.reshape(shape)
    below = np.mean(values < (limits.min - 0.5 - point) * scale)
    above = np.mean(values > (limits.max + 0.5 - point) * scale)
    return float(below), float(above), float(np.mean(np.abs(values) < 0.5 * scale))


def _histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram.coarsened(SHOWN_BINS)


def _channels(values: np.ndarray, axis: int, parameters: QuantizationParameters | None) -> Channels:
    """Returns the channels; their quartiles are exact, since all values are at hand."""
    by_channel = as_channels(values, axis)
    rows = channel_rows(by_channel)
    lower, median, upper = np.quantile(by_channel, (0.25, 0.5, 0.75), axis=(0, 2))
    scale = np.full(1, np.nan)
    if parameters and (not parameters.is_per_channel or parameters.axis == axis):
        scale = parameters.scale.astype(np.float64)
    deviation = np.sqrt(rows[:, 4] / np.maximum(rows[:, 0], 1.0))
    return Channels(axis, rows[:, 1], lower, median, upper, rows[:, 2], rows[:, 3], deviation, scale)
