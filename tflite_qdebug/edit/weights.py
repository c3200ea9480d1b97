"""Weights alone in another type: float16, dynamic range, and back to float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.edit.flatbuffer import (
    Writer,
    drop_unused_buffers,
    drop_unused_codes,
    pack,
    replace_input,
    unpack,
)
from tflite_qdebug.model import Model, Operator, Subgraph, Tensor, refuses_broken_models
from tflite_qdebug.operators import WEIGHTED

__all__ = ["cast_weights_to_float16", "fold_float16", "quantize_weights", "store_weights_as_int8"]

_FLOAT16_MAXIMUM = float(np.finfo(np.float16).max)
# TensorFlow leaves weights of fewer elements in float when it quantizes weights alone.
_MINIMUM_WEIGHTS = 1024
# ... and takes no smaller greatest magnitude than this, so that a channel of zeros has a scale.
_SMALLEST_MAGNITUDE = np.float32(5e-7)


class _Hybrid(NamedTuple):
    """How TensorFlow's dynamic-range quantizer treats the weights of one type of operator.

    Attributes:
        weights: Positions of the weights among the inputs; all of them become int8, or none.
        axis: The axis of the channels; None: one scale for all.
        per_tensor: Version of the hybrid kernel with one scale.
        per_channel: Version of the hybrid kernel with a scale for each channel.
        asymmetric: Whether it has the option ``asymmetric_quantize_inputs``, which TensorFlow sets.
    """

    weights: tuple[int, ...]
    axis: int | None
    per_tensor: int
    per_channel: int
    asymmetric: bool = False


_HYBRID = {
    "CONV_2D": _Hybrid((1,), 0, 2, 5),
    "DEPTHWISE_CONV_2D": _Hybrid((1,), 3, 4, 6),
    "FULLY_CONNECTED": _Hybrid((1,), 0, 9, 12, asymmetric=True),
    "TRANSPOSE_CONV": _Hybrid((1,), 0, 2, 2),
    "BATCH_MATMUL": _Hybrid((1,), None, 4, 4, asymmetric=True),
    "EMBEDDING_LOOKUP": _Hybrid((1,), 0, 3, 4),
    "GATHER": _Hybrid((0,), None, 2, 2),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Hybrid((1, 2, 3, 4, 5, 6, 7, 8, 16), None, 3, 3, asymmetric=True),
}


@refuses_broken_models
def cast_weights_to_float16(model: Model) -> bytes:
    """Returns the model with its float constants stored as float16, each behind a DEQUANTIZE, as TensorFlow does.

    That is done in all subgraphs: signatures, bodies of control flow, values of variables. Values beyond float16's range
    (65504) are clipped to it, as TensorFlow does.
    """
    unpacked = unpack(model)
    halves: dict[int, int] = {}
    for subgraph in model.subgraphs:
        writer = Writer(unpacked, subgraph.index)
        read = {index for operator in subgraph.operators for index in operator.inputs}
        inserted, replaced = [], {}
        for tensor in subgraph.tensors:
            if not (tensor.is_constant and tensor.is_float and tensor.index in read):
                continue
            if tensor.buffer not in halves:
                values = np.clip(model.constant(tensor), -_FLOAT16_MAXIMUM, _FLOAT16_MAXIMUM)
                halves[tensor.buffer] = writer.add_values(values.astype(np.float16))
            table = writer.main.tensors[tensor.index]
            table.type, table.buffer = writer.schema.TensorType.FLOAT16, halves[tensor.buffer]
            operator, target = writer.dequantize(tensor.index, tensor.name + "_dequantize", 3)
            inserted.append(operator)
            replaced[tensor.index] = target
        for operator in writer.main.operators:
            operator.inputs = np.array([replaced.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
        writer.main.operators = inserted + writer.main.operators
    drop_unused_buffers(unpacked)
    return pack(unpacked)


@refuses_broken_models
def store_weights_as_int8(model: Model) -> bytes:
    """Returns the model with the weights of float operators kept as int8, each behind a DEQUANTIZE.

    The operators compute in float as before; their weights are rounded per output channel (symmetric, -127..127), as they are
    in a quantized model. So an operator that is left float takes no more room in the file than a quantized one. The interpreter
    dequantizes them once, when the model is first invoked. Weights of fewer than 1024 elements stay, as in
    TensorFlow's dynamic-range models: there is little to win, and as much to lose as elsewhere.
    """
    unpacked = unpack(model)
    integers: _Integers = {}
    for subgraph in model.subgraphs:
        writer, inserted = Writer(unpacked, subgraph.index), []
        for index, axis in _storable(subgraph).items():
            tensor = subgraph.tensors[index]
            _quantize_constant(model, writer, index, tensor, axis, integers)
            reader, target = writer.dequantize(index, tensor.name + "_dequantized", 5)
            inserted.append(reader)
            for operator in subgraph.operators:
                if index in operator.inputs:
                    replace_input(writer.main.operators[operator.index], 1, target)
        writer.main.operators = inserted + writer.main.operators
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def _storable(subgraph: Subgraph) -> dict[int, int | None]:
    """Returns ``{tensor: axis of its channels}`` of the float weights that only operators which can take them read."""
    readers: dict[int, set[tuple[str, int]]] = {}
    for operator in subgraph.operators:
        for position, index in enumerate(operator.inputs):
            readers.setdefault(index, set()).add((operator.name, position))
    found = {}
    for index, places in readers.items():
        tensor = subgraph.tensors[index]
        axes = {_HYBRID[name].axis if name in WEIGHTED and position == 1 else -1 for name, position in places}
        enough = tensor.is_constant and tensor.is_float and int(np.prod(tensor.shape)) >= _MINIMUM_WEIGHTS
        if index >= 0 and enough and len(axes) == 1 and -1 not in axes:
            found[index] = axes.pop()
    return found


@refuses_broken_models
def fold_float16(model: Model) -> bytes:
    """Returns the model with its float16 constants as float32, and without the DEQUANTIZE behind each, in all subgraphs.

    Every float16 is a float32 as well, so the outputs stay the same. TensorFlow's quantizers refuse the float16 form, or
    die of it.
    """
    unpacked = unpack(model)
    floats: dict[int, int] = {}
    for subgraph in model.subgraphs:
        _fold_subgraph(model, subgraph, Writer(unpacked, subgraph.index), floats)
    drop_unused_buffers(unpacked)
    drop_unused_codes(unpacked)
    return pack(unpacked)


def _fold_subgraph(model: Model, subgraph: Subgraph, writer: Writer, floats: dict[int, int]) -> None:
    """Folds one subgraph; ``floats`` tells where the float32 form of a buffer is, since subgraphs share them."""
    halves = {}
    for operator in subgraph.operators:
        if operator.name == "DEQUANTIZE":
            source = subgraph.tensors[operator.inputs[0]]
            if source.is_constant and source.dtype == np.float16:
                halves[operator.outputs[0]] = operator, source
    for target, (_, source) in halves.items():
        if source.buffer not in floats:
            floats[source.buffer] = writer.add_values(model.constant(source).astype(np.float32))
        writer.main.tensors[target].buffer = floats[source.buffer]
    removed = {operator.index for operator, _ in halves.values()}
    writer.main.operators = [table for index, table in enumerate(writer.main.operators or []) if index not in removed]
    read = {int(index) for table in writer.main.operators for index in table.inputs}
    for _, source in halves.values():
        if source.index not in read:
            writer.main.tensors[source.index].buffer = 0


# (buffer, axis of the channels, shape) -> the buffer with its integers, and their scales.
_Integers = dict[tuple[int, int | None, tuple[int, ...]], tuple[int, np.ndarray]]


@refuses_broken_models
def quantize_weights(model: Model, per_channel: bool = True, per_channel_dense: bool = True) -> bytes:
    """Returns the dynamic-range model: weights as int8, activations quantized on the fly by the hybrid kernels.

    As TensorFlow does: in all subgraphs, symmetric, narrow range (-127..127), per channel where the kernel can, weights of at
    least 1024 elements only. A table that GATHER reads becomes int8 too, and what is gathered is dequantized. Weights that
    several operators read are quantized for each kind of reader; who cannot take int8 keeps the float ones. Recurrent operators
    other than UNIDIRECTIONAL_SEQUENCE_LSTM keep float weights.
    """
    unpacked = unpack(model)
    integers: _Integers = {}

    def axis(operator: Operator) -> int | None:
        wanted = per_channel and (per_channel_dense or operator.name != "FULLY_CONNECTED")
        return _HYBRID[operator.name].axis if wanted else None

    for subgraph in model.subgraphs:
        _quantize_subgraph(model, subgraph, Writer(unpacked, subgraph.index), axis, integers)
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def _quantize_subgraph(
    model: Model, subgraph: Subgraph, writer: Writer, axis_of: Callable[[Operator], int | None], integers: _Integers
) -> None:
    uses: dict[int, dict[int | None, list[tuple[int, int]]]] = {}
    hybrid = [(operator, positions) for operator in subgraph.operators if (positions := _weights(subgraph, operator))]
    for operator, positions in hybrid:
        axis = axis_of(operator)
        for position in positions:
            uses.setdefault(operator.inputs[position], {}).setdefault(axis, []).append((operator.index, position))
        _make_hybrid(writer, operator, axis is not None)
    readers = Counter(index for operator in subgraph.operators for index in operator.inputs)
    readers.update(subgraph.outputs)
    for index, by_axis in uses.items():
        tensor = subgraph.tensors[index]
        for axis, places in by_axis.items():
            target, readers[index] = index, readers[index] - len(places)
            if readers[index]:  # who comes later, or cannot take integers, reads the float values
                target = writer.add_tensor(tensor.name, writer.main.tensors[index], writer.schema.TensorType.INT8)
            _quantize_constant(model, writer, target, tensor, axis, integers)
            for operator_index, position in places:
                replace_input(writer.main.operators[operator_index], position, target)
    behind = {op.index: _gather_integers(writer, subgraph, op) for op, _ in hybrid if op.name == "GATHER"}
    writer.main.operators = [
        table
        for index, operator in enumerate(writer.main.operators or [])
        for table in ([operator, behind[index]] if index in behind else [operator])
    ]


def _weights(subgraph: Subgraph, operator: Operator) -> list[int]:
    """Returns the positions of the inputs that become int8: all weights of a hybrid operator, or none."""
    hybrid = _HYBRID.get(operator.name)
    if hybrid is None:
        return []
    positions = [position for position in hybrid.weights if operator.inputs[position : position + 1] not in ((), (-1,))]
    tensors = [subgraph.tensors[operator.inputs[position]] for position in positions]
    fit = all(t.is_constant and t.is_float and int(np.prod(t.shape)) >= _MINIMUM_WEIGHTS for t in tensors)
    return positions if fit else []


def _quantize_constant(model: Model, writer: Writer, index: int, tensor: Tensor, axis: int | None, integers: _Integers) -> None:
    """Makes a tensor hold the integers of a float constant; those of shared values are shared."""
    key = (tensor.buffer, axis, tensor.shape)
    if key not in integers:
        values = model.constant(tensor)
        others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
        largest = np.maximum(np.abs(values).max(axis=others, keepdims=True), _SMALLEST_MAGNITUDE)
        scale = (largest.astype(np.float32) / np.float32(127)).astype(np.float32)
        rounded = np.clip(_round_half_away(values / scale), -127, 127).astype(np.int8)
        integers[key] = writer.add_values(rounded), scale.reshape(-1)
    table = writer.main.tensors[index]
    table.type, (table.buffer, scales) = writer.schema.TensorType.INT8, integers[key]
    parameters = writer.schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = scales, np.zeros(scales.size, dtype=np.int64)
    parameters.quantizedDimension = axis or 0
    table.quantization = parameters


def _gather_integers(writer: Writer, subgraph: Subgraph, operator: Operator) -> Any:
    """Makes a GATHER write integers, and returns the DEQUANTIZE to be put behind it."""
    table, output = writer.main.operators[operator.index], operator.outputs[0]
    reader, integers = writer.dequantize(output, subgraph.tensors[output].name + "_int8", 2)
    written = writer.main.tensors[integers]
    written.type = writer.schema.TensorType.INT8
    written.quantization = writer.main.tensors[int(table.inputs[0])].quantization
    table.outputs = np.array([integers], dtype=np.int32)
    reader.inputs, reader.outputs = np.array([integers], dtype=np.int32), np.array([output], dtype=np.int32)
    return reader


def _round_half_away(values: np.ndarray) -> np.ndarray:
    return np.trunc(values + np.copysign(np.float32(0.5), values))


def _make_hybrid(writer: Writer, operator: Operator, per_channel: bool) -> None:
    hybrid = _HYBRID[operator.name]
    table = writer.main.operators[operator.index]
    version = hybrid.per_channel if per_channel else hybrid.per_tensor
    table.opcodeIndex = writer.add_code(operator.name, max(version, operator.version))
    if hybrid.asymmetric and table.builtinOptions is not None:
        table.builtinOptions.asymmetricQuantizeInputs = True
