"""A quantized model as a float model: what its integers mean, computed without rounding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.debug_model import BRIDGES
from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_buffers, drop_unused_codes, pack, replace_input, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator, Subgraph, Tensor
from tflite_qdebug.operators import OPERANDS

__all__ = ["dequantize_model", "implied_activations", "refuse_compiled"]

# They read the integers as such, and would compute something else on real values.
_LITERAL = ("CAST", "BITCAST", "BITWISE_XOR", "RIGHT_SHIFT")
# They can have an activation function fused, and compute values that it would change.
_ACTIVATED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "TRANSPOSE_CONV")
_EDGE_TPU_OPERATOR = "edgetpu-custom-op"


def refuse_compiled(model: Model) -> None:
    """Refuses a model that was compiled for the Edge TPU.

    Raises:
        ModelError: For such a model.
    """
    if any(operator.name == _EDGE_TPU_OPERATOR for subgraph in model.subgraphs for operator in subgraph.operators):
        raise ModelError(
            "got a model compiled for the Edge TPU, whose operators are one opaque program; expected the model that was "
            "given to the compiler"
        )


def implied_activations(model: Model) -> dict[int, int]:
    """Returns the activation functions that the ranges of a model's outputs stand for.

    Tools that train with quantization leave a fused RELU or RELU6 out where the range of the output does the same: integers
    cannot go below 0 when the zero point is their least one, nor above 6 when that is the end of the range.

    Args:
        model: The quantized model.

    Returns:
        ``{operator index: ActivationFunctionType}`` of the main subgraph, for operators that have none fused.
    """
    functions = tf_private.schema().ActivationFunctionType
    fused = Graph(model).activation_functions
    found = {}
    for operator in model.main.operators:
        if operator.name not in _ACTIVATED or fused[operator.index]:
            continue
        tensor = model.main.tensors[operator.outputs[0]]
        if not tensor.is_quantized or tensor.quantization is None or tensor.dtype == np.int16:
            continue
        limits, scale = np.iinfo(tensor.dtype), float(tensor.quantization.scale[0])
        if int(tensor.quantization.zero_point[0]) == limits.min:
            sixth = abs((limits.max - limits.min) * scale - 6.0) <= scale
            found[operator.index] = functions.RELU6 if sixth else functions.RELU
    return found


def dequantize_model(model: Model, activations: Mapping[int, int] | None = None) -> bytes:
    """Returns the float model that a quantized model stands for, with every tensor at its place.

    Constants become their dequantized values (a bias with the scale that the kernels give it: input times weights), all other
    quantized tensors float32, and who read the output of a QUANTIZE or DEQUANTIZE reads its input instead. Nothing is rounded
    and nothing clipped but what was so in the constants, and what ``activations`` clip.

    Args:
        model: The quantized model.
        activations: ``{operator index: ActivationFunctionType}`` to be fused into operators of the main subgraph; None: the
            `implied_activations`.

    Raises:
        ModelError: For a model compiled for the Edge TPU, and for one whose operators read quantized integers as plain
            numbers.
    """
    refuse_compiled(model)
    unpacked = unpack(model)
    for index, function in (implied_activations(model) if activations is None else activations).items():
        table = unpacked.subgraphs[0].operators[index]
        table.builtinOptions = copy.copy(table.builtinOptions)
        table.builtinOptions.fusedActivationFunction = function
    for subgraph, table in zip(model.subgraphs, unpacked.subgraphs, strict=True):
        _Dequantizer(model, subgraph, Writer(unpacked, subgraph.index), table).run()
    unpacked.signatureDefs = []
    drop_unused_buffers(unpacked)
    drop_unused_codes(unpacked)
    return pack(unpacked)


class _Dequantizer:
    def __init__(self, model: Model, subgraph: Subgraph, writer: Writer, table: Any) -> None:
        self.model, self.subgraph, self.writer, self.table = model, subgraph, writer, table
        self.schema = writer.schema
        self.biases: dict[tuple[int, bytes], int] = {}

    def run(self) -> None:
        for operator in self.subgraph.operators:
            self._check(operator)
        for operator in self.subgraph.operators:
            if operator.name in OPERANDS:
                self._dequantize_bias(operator)
        for tensor in self.subgraph.tensors:
            self._make_float(tensor)
        self._remove_bridges()

    def _check(self, operator: Operator) -> None:
        read = [self.subgraph.tensors[index] for index in operator.inputs if index >= 0]
        if operator.name in _LITERAL and any(tensor.is_quantized for tensor in read):
            raise ModelError(
                f"operator {operator.index} ({operator.name}) reads the integers of quantized tensor {read[0].name!r} as plain "
                "numbers, so it has no float counterpart; give the float model too"
            )

    def _dequantize_bias(self, operator: Operator) -> None:
        """Gives an operator its bias in float; several operators may read one, each with its own scale."""
        places = OPERANDS[operator.name]
        if len(operator.inputs) <= places[2] or operator.inputs[places[2]] < 0:
            return
        source, weights, bias = (self.subgraph.tensors[operator.inputs[place]] for place in places)
        if not (bias.is_constant and bias.dtype in (np.int32, np.int64) and source.quantization and weights.quantization):
            return
        scale = (source.quantization.scale[0].astype(np.float64) * weights.quantization.scale).astype(np.float32)
        values = self.model.constant(bias).astype(np.float64)
        key = (bias.index, scale.tobytes())
        if key not in self.biases:
            with np.errstate(invalid="ignore", over="ignore"):
                self.biases[key] = self._add_constant(bias, (values * scale).astype(np.float32))
        replace_input(self.table.operators[operator.index], places[2], self.biases[key])

    def _add_constant(self, like: Tensor, values: np.ndarray) -> int:
        tensor = copy.copy(self.table.tensors[like.index])
        tensor.type, tensor.quantization = self.schema.TensorType.FLOAT32, None
        tensor.buffer = self.writer.add_values(values)
        self.table.tensors.append(tensor)
        return len(self.table.tensors) - 1

    def _make_float(self, tensor: Tensor) -> None:
        table = self.table.tensors[tensor.index]
        integers = tensor.dtype in (np.int32, np.int64) and tensor.quantization is not None and self._is_gate_bias(tensor)
        if tensor.is_quantized or integers:
            assert tensor.quantization is not None
            if tensor.is_constant:
                with np.errstate(invalid="ignore", over="ignore"):
                    table.buffer = self.writer.add_values(tensor.quantization.dequantize(self.model.constant(tensor)))
        elif tensor.dtype == np.float16:
            if tensor.is_constant:
                table.buffer = self.writer.add_values(self.model.constant(tensor).astype(np.float32))
        else:
            return
        table.type, table.quantization = self.schema.TensorType.FLOAT32, None

    def _is_gate_bias(self, tensor: Tensor) -> bool:
        """True for the bias of a recurrent operator, which its own scale describes."""
        return tensor.is_constant and any(
            tensor.index in operator.inputs and operator.name.endswith(("LSTM", "RNN", "SVDF"))
            for operator in self.subgraph.operators
        )

    def _remove_bridges(self) -> None:
        roots: dict[int, int] = {}
        kept = []
        for operator, table in zip(self.subgraph.operators, self.table.operators, strict=True):
            if operator.name in BRIDGES:
                roots[operator.outputs[0]] = roots.get(operator.inputs[0], operator.inputs[0])
                continue
            table.inputs = np.array([roots.get(int(index), int(index)) for index in table.inputs], dtype=np.int32)
            table.intermediates = []  # scales between the gates of an integer LSTM, which a float one takes for an error
            kept.append(table)
        self.table.operators = kept
        self.table.outputs = np.array([roots.get(int(index), int(index)) for index in self.table.outputs], dtype=np.int32)
