"""Weights alone in another type: float16, dynamic range, and back to float32."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.edit.flatbuffer import (
    Writer,
    drop_unused_buffers,
    drop_unused_codes,
    pack,
    replace_input,
    require_single_subgraph,
    unpack,
)
from tflite_qdebug.model import Model, Operator

__all__ = ["cast_weights_to_float16", "fold_float16", "quantize_weights"]

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


def cast_weights_to_float16(model: Model) -> bytes:
    """Returns the model with its float constants stored as float16, each behind a DEQUANTIZE, as TensorFlow does.

    Values beyond float16's range (65504) are clipped to it, as TensorFlow does.
    """
    require_single_subgraph(model, "float16")
    unpacked = unpack(model)
    writer = Writer(unpacked)
    read = {index for operator in model.main.operators for index in operator.inputs}
    inserted, replaced = [], {}
    for tensor in model.main.tensors:
        if not (tensor.is_constant and tensor.is_float and tensor.index in read):
            continue
        values = np.clip(model.constant(tensor), -_FLOAT16_MAXIMUM, _FLOAT16_MAXIMUM).astype(np.float16)
        table = writer.main.tensors[tensor.index]
        table.type, table.buffer = writer.schema.TensorType.FLOAT16, writer.add_values(values)
        operator, target = writer.dequantize(tensor.index, tensor.name + "_dequantize", 3)
        inserted.append(operator)
        replaced[tensor.index] = target
    for operator in writer.main.operators:
        operator.inputs = np.array([replaced.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
    writer.main.operators = inserted + writer.main.operators
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def fold_float16(model: Model) -> bytes:
    """Returns the model with its float16 constants as float32, and without the DEQUANTIZE behind each.

    Every float16 is a float32 as well, so the outputs stay the same. TensorFlow's quantizers refuse the float16 form, or
    die of it.
    """
    unpacked = unpack(model)
    writer = Writer(unpacked)
    main = model.main
    halves = {
        operator.outputs[0]: operator
        for operator in main.operators
        if operator.name == "DEQUANTIZE"
        and main.tensors[operator.inputs[0]].is_constant
        and main.tensors[operator.inputs[0]].dtype == np.float16
    }
    for target, operator in halves.items():
        values = model.constant(main.tensors[operator.inputs[0]]).astype(np.float32)
        writer.main.tensors[target].buffer = writer.add_values(values)
    removed = {operator.index for operator in halves.values()}
    writer.main.operators = [table for index, table in enumerate(writer.main.operators) if index not in removed]
    read = {int(index) for table in writer.main.operators for index in table.inputs}
    for operator in halves.values():
        if operator.inputs[0] not in read:
            writer.main.tensors[operator.inputs[0]].buffer = 0
    drop_unused_buffers(unpacked)
    drop_unused_codes(unpacked)
    return pack(unpacked)


def quantize_weights(model: Model, per_channel: bool = True, per_channel_dense: bool = True) -> bytes:
    """Returns the dynamic-range model: weights as int8, activations quantized on the fly by the hybrid kernels.

    As TensorFlow does: symmetric, narrow range (-127..127), per channel where the kernel can, weights of at least 1024
    elements only. A table that GATHER reads becomes int8 too, and what is gathered is dequantized. Weights that several
    operators read are quantized for each kind of reader; who cannot take int8 keeps the float ones. Recurrent operators
    other than UNIDIRECTIONAL_SEQUENCE_LSTM keep float weights.
    """
    require_single_subgraph(model, "dynamic_range")
    unpacked = unpack(model)
    writer = Writer(unpacked)
    uses: dict[int, dict[int | None, list[tuple[int, int]]]] = {}
    behind: dict[int, Any] = {}
    for operator in model.main.operators:
        weights = _quantizable_weights(model, operator)
        if not weights:
            continue
        wanted = per_channel and (per_channel_dense or operator.name != "FULLY_CONNECTED")
        axis = _HYBRID[operator.name].axis if wanted else None
        for position in weights:
            uses.setdefault(operator.inputs[position], {}).setdefault(axis, []).append((operator.index, position))
        _make_hybrid(writer, operator, axis is not None)
    readers = Counter(index for operator in model.main.operators for index in operator.inputs)
    readers.update(model.main.outputs)
    for index, by_axis in uses.items():
        for axis, places in by_axis.items():
            target, readers[index] = index, readers[index] - len(places)
            if readers[index]:  # who comes later, or cannot take integers, reads the float values
                target = writer.add_tensor(
                    model.main.tensors[index].name, writer.main.tensors[index], writer.schema.TensorType.INT8
                )
            _quantize_constant(writer, target, model.constant(model.main.tensors[index]), axis)
            for operator_index, position in places:
                replace_input(writer.main.operators[operator_index], position, target)
    for operator in model.main.operators:
        if operator.name == "GATHER" and _quantizable_weights(model, operator):
            behind[operator.index] = _gather_integers(writer, model, operator)
    writer.main.operators = [
        table
        for index, operator in enumerate(writer.main.operators)
        for table in ([operator, behind[index]] if index in behind else [operator])
    ]
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def _quantizable_weights(model: Model, operator: Operator) -> list[int]:
    """Returns the positions of the inputs that become int8: all weights of a hybrid operator, or none."""
    hybrid = _HYBRID.get(operator.name)
    if hybrid is None:
        return []
    positions = [position for position in hybrid.weights if operator.inputs[position : position + 1] not in ((), (-1,))]
    tensors = [model.main.tensors[operator.inputs[position]] for position in positions]
    fit = all(t.is_constant and t.is_float and int(np.prod(t.shape)) >= _MINIMUM_WEIGHTS for t in tensors)
    return positions if fit else []


def _quantize_constant(writer: Writer, index: int, values: np.ndarray, axis: int | None) -> None:
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    largest = np.maximum(np.abs(values).max(axis=others, keepdims=True), _SMALLEST_MAGNITUDE)
    scale = (largest.astype(np.float32) / np.float32(127)).astype(np.float32)
    integers = np.clip(_round_half_away(values / scale), -127, 127).astype(np.int8)
    table = writer.main.tensors[index]
    table.type, table.buffer = writer.schema.TensorType.INT8, writer.add_values(integers)
    parameters = writer.schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = scale.reshape(-1), np.zeros(scale.size, dtype=np.int64)
    parameters.quantizedDimension = axis or 0
    table.quantization = parameters


def _gather_integers(writer: Writer, model: Model, operator: Operator) -> Any:
    """Makes a GATHER write integers, and returns the DEQUANTIZE to be put behind it."""
    table, output = writer.main.operators[operator.index], operator.outputs[0]
    reader, integers = writer.dequantize(output, model.main.tensors[output].name + "_int8", 2)
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
