"""Absorption of high biases: what a channel never falls below moves into the biases of the layers that read it.

After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.3. There the
amount comes from the statistics of batch normalization; here from what was measured, so that on those samples nothing changes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_qdebug import edit, tf_private
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit.patched import Patch, with_own_constants
from tflite_qdebug.errors import ConversionError, DatasetError, OptionError, did_you_mean
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.progress import track
from tflite_qdebug.remedies.channels import OFFSETS, Channels, WeightedLayer, options_of
from tflite_qdebug.remedies.equalization import require_plain_float

__all__ = ["Absorbed", "absorb_high_biases", "channel_minima"]


@dataclasses.dataclass(frozen=True)
class Absorbed:
    """A float model after absorption of high biases.

    Attributes:
        data: The ``.tflite``; the very bytes that were given where nothing applied.
        layers: ``{node: (channels of which something was taken, greatest amount)}``.
        left_out: ``(node, reason)`` of layers of which some channel stays above zero and could not be lowered.
    """

    data: bytes
    layers: Mapping[str, tuple[int, float]]
    left_out: tuple[tuple[str, str], ...]


@refuses_broken_models
def channel_minima(
    float_model: Model | bytes | str | os.PathLike[str],
    dataset: Any,
    *,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> dict[str, np.ndarray]:
    """Returns the least value of each channel that convolutions and dense layers write, in one pass over a dataset.

    Args:
        float_model: The float ``.tflite``.
        dataset: Anything that `open_dataset` takes.
        limit: Take the first so many samples.
        backend: Which code runs the model; the builtin kernels by default.
        progress: As in `progress.track`.

    Returns:
        ``{node: (channels,) float32}``; nodes that share their name with another are left out.

    Raises:
        DatasetError: For a wrong sample or an empty dataset.
        ConversionError: Where the model gives NaN.
        InterpreterError: Where it does not run.
    """
    model = float_model if isinstance(float_model, Model) else Model(float_model)
    require_plain_float(model)
    layers = [layer for layer in Channels(model, OFFSETS).layers if len(model.main.nodes[_node(model, layer)]) == 1]
    if not layers:
        return {}
    samples = open_dataset(dataset, model.input_specs(), "representative dataset", limit)
    backend = backend or Backend(kernels="builtin")
    outputs = [layer.operator.outputs[0] for layer in layers]
    exposed = edit.expose(model, outputs)

    def measure(interpreter: Interpreter, sample: Any) -> list[np.ndarray]:
        interpreter.reset_variables()
        interpreter.invoke(sample.inputs)
        views = (interpreter.view(index) for index in outputs)
        return [values.reshape(-1, values.shape[-1]).min(axis=0) for values in views]

    what = "measuring channels"
    workers = backend.pool(lambda: backend.open(exposed), what)
    least: list[np.ndarray] = []
    for found in map_samples(measure, workers, track(samples, what, samples.length, progress)):
        least = [np.minimum(one, other) for one, other in zip(least, found, strict=True)] if least else list(found)
    if not least:
        raise DatasetError("the representative dataset yielded no samples")
    for layer, values in zip(layers, least, strict=True):
        if np.isnan(values).any():
            raise ConversionError(f"the float model itself gives NaN, in tensor {_node(model, layer)!r}")
    return {_node(model, layer): values for layer, values in zip(layers, least, strict=True)}


@refuses_broken_models
def absorb_high_biases(
    float_model: Model | bytes | str | os.PathLike[str],
    minima: Mapping[str, np.ndarray],
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Absorbed:
    """Lowers channels that never come near zero, so that their tensor needs a narrower range.

    Where all values of a channel are at least ``c > 0``, its bias is lowered by ``c``, and ``W c`` is added to the biases of
    the layers that read it. A RELU between them does not notice, as long as no value falls below ``c``.

    Left out are channels that a padded convolution reads, since its padding stays zero, or a layer without a bias.

    Args:
        float_model: The float ``.tflite``, equalized where that is to be done; ranges that it carries are no longer true
            afterwards: calibrate it then.
        minima: ``{node: least value of each channel}``, as `channel_minima` gives them for this very model.
        ranges: ``{tensor: (least, greatest value)}``, from calibration: a RELU6 does not notice either where 6 is not reached.

    Raises:
        OptionError: For minima or ranges of nodes that the model has not, or minima of another number of channels or with NaN.
        ModelError: Where the model is broken or quantized.
    """
    model = float_model if isinstance(float_model, Model) else Model(float_model)
    require_plain_float(model)
    greatest = {name: ends[1] for name, ends in (ranges or {}).items()}
    channels = Channels(
        model,
        OFFSETS,
        lambda operator: _is_unlimited(model, operator, greatest),
        lambda operator: _cannot_take(model, operator),
    )
    _check_names(model, channels, minima, greatest)
    found = np.full(channels.count, np.inf)
    read = np.zeros(channels.count, dtype=bool)
    for layer in channels.layers:
        known = minima.get(_node(model, layer)) if layer.bias is not None else None
        np.minimum.at(found, layer.writes, 0.0 if known is None else np.asarray(known, np.float64))
        read[layer.reads] = True
    high = np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0)
    amounts = np.where(channels.free() & read, high, 0.0)
    lowered = [layer for layer in channels.layers if amounts[layer.writes].any()]
    data = _written(model, channels.layers, amounts) if lowered else model.data
    layers = {
        _node(model, layer): (int(np.sum(amounts[layer.writes] > 0)), float(amounts[layer.writes].max())) for layer in lowered
    }
    stuck = {_node(model, layer) for layer in channels.layers if (high[layer.writes] > amounts[layer.writes]).any()}
    return Absorbed(data, layers, tuple((node, reason) for node, reason in channels.left_out() if node in stuck))


def _node(model: Model, layer: WeightedLayer) -> str:
    return model.main.tensors[layer.operator.outputs[0]].name


def _is_unlimited(model: Model, operator: Operator, greatest: Mapping[str, float]) -> bool:
    """True for an operator whose RELU6 is a RELU on all samples."""
    if operator.name != "RELU6" and not (
        operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D", "MAX_POOL_2D")
        and options_of(model, operator).FusedActivationFunction() == _relu6()
    ):
        return False
    return greatest.get(model.main.tensors[operator.outputs[0]].name, np.inf) < 6.0


def _relu6() -> int:
    return int(tf_private.schema().ActivationFunctionType.RELU6)


def _cannot_take(model: Model, operator: Operator) -> str:
    """Returns why a layer cannot take up an offset of what it reads; empty where it can."""
    tensors = model.main.tensors
    shown = f"{operator.name} {tensors[operator.outputs[0]].name!r}"
    if operator.name == "TRANSPOSE_CONV":
        return f"{shown} reads fewer values at its edges"
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return f"{shown} has no bias"
    if operator.name == "FULLY_CONNECTED":
        return ""
    height, width = tensors[operator.inputs[1]].shape[1:3]
    padded = options_of(model, operator).Padding() == tf_private.schema().Padding.SAME
    return f"{shown} pads with zeros" if padded and (height, width) != (1, 1) else ""


def _check_names(model: Model, channels: Channels, minima: Mapping[str, np.ndarray], greatest: Mapping[str, float]) -> None:
    tensors = [tensor.name for tensor in model.main.tensors]
    for name in greatest:
        if name not in tensors:
            raise OptionError(f"got a range of tensor {name!r}, which the model has not.{did_you_mean(name, tensors)}")
    sizes = {_node(model, layer): len(layer.writes) for layer in channels.layers}
    for name, values in minima.items():
        if name not in sizes:
            raise OptionError(
                f"got minima of node {name!r}, expected a convolution or dense layer of the model.{did_you_mean(name, sizes)}"
            )
        if np.shape(values) != (sizes[name],):
            raise OptionError(f"got minima of shape {np.shape(values)} for node {name!r}, expected ({sizes[name]},)")
        if np.isnan(values).any():
            raise OptionError(f"got NaN in the minima of node {name!r}, expected numbers")


def _written(model: Model, layers: list[WeightedLayer], amounts: np.ndarray) -> bytes:
    """Returns the model with the biases of all layers that write or read a lowered channel."""
    changed = [layer for layer in layers if amounts[layer.writes].any() or amounts[layer.reads].any()]
    own = Model(with_own_constants(model, {layer.bias for layer in changed if layer.bias is not None}))
    patch = Patch(own)
    for layer in changed:
        place = own.main.operators[layer.operator.index].inputs[layer.places[1]]
        bias = own.constant(own.main.tensors[place]).astype(np.float64)
        gained = layer.weights * layer.on_read(amounts[layer.reads])
        axes = (0, 1, 2) if layer.is_depthwise else tuple(range(1, gained.ndim))
        patch.constant(place, (bias - amounts[layer.writes] + gained.sum(axis=axes)).astype(np.float32))
    return patch.data()
