"""Errors planted on purpose into one operator of a quantized model, through the objects of the schema.

The operator gets copies of the constants that are broken, so that nobody else reads them.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator

#: Positions of weights and bias, and the axis of the weights along which the output's channels run.
_PLACES = {
    "CONV_2D": (1, 2, 0),
    "DEPTHWISE_CONV_2D": (1, 2, 3),
    "FULLY_CONNECTED": (1, 2, 0),
    "TRANSPOSE_CONV": (1, 3, 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (3, 14, 0),  # input to cell, cell bias
}
#: Operators that take any scale of their input; others want that of their output.
_RESCALING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "ADD", "MUL", "SUB", "MEAN",
              "SOFTMAX", "DEQUANTIZE", "LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6", "PRELU", "ABS"}  # fmt: skip
KINDS = ("weight_scale", "swapped_channels", "saturated_bias", "clipping_scale")


@dataclasses.dataclass(frozen=True)
class Planted:
    """A broken model.

    Attributes:
        data: The ``.tflite``.
        operator: The broken operator.
        output: The tensor that it computes, by its index in the quantized model.
        what: Which of `KINDS`.
    """

    data: bytes
    operator: int
    output: int
    what: str


class CannotPlantError(Exception):
    """An error of that kind has no place in that operator."""


def plantable(model: Model) -> list[Operator]:
    """Returns the operators whose constant weights are quantized, or halved to float16, in execution order."""
    graph, found = Graph(model), []
    for operator in graph.operators:
        position = _PLACES.get(operator.name, (len(operator.inputs), 0, 0))[0]
        if position < len(operator.inputs) and operator.inputs[position] >= 0:
            weights = graph.tensor(graph.root(operator.inputs[position]))
            if weights.is_constant and (weights.is_quantized or weights.dtype == np.float16):
                found.append(operator)
    return found


def plant(model: Model, what: str, operator: Operator, seed: int = 0) -> Planted:
    """Breaks one operator.

    ``weight_scale``: weights twice as large (float16: their values), and a quantized bias with them, as its scale is theirs
    times the input's. ``swapped_channels``: two channels' weights change places, their biases do not. ``saturated_bias``: the
    bias of one channel at the far end of its type (int32, int64 and float16), as far as the kernels can add to it.
    ``clipping_scale``: the scale of the output a quarter, so that what is large is clipped; readers see the same scale.

    Raises:
        CannotPlantError: Where the operator has no such thing, with the reason.
    """
    return _Planter(model, operator, seed).plant(what)


def rescaled(model: Model, operator: Operator, factor: float) -> bytes:
    """Returns the model with another scale of an operator's output, and with the biases of its readers made for it.

    Raises:
        CannotPlantError: Where the operator or a reader takes no other scale.
    """
    planter = _Planter(model, operator, 0)
    planter.rescale(factor)
    return pack(planter.unpacked)


class _Planter:
    def __init__(self, model: Model, operator: Operator, seed: int) -> None:
        self.model, self.operator, self.graph = model, operator, Graph(model)
        self.unpacked = unpack(model)
        self.main = self.unpacked.subgraphs[0]
        self.random = np.random.default_rng(seed)
        self.weights, self.bias, self.axis = _PLACES[operator.name]

    def plant(self, what: str) -> Planted:
        getattr(self, "_" + what)()
        return Planted(pack(self.unpacked), self.operator.index, self.operator.outputs[0], what)

    def _root(self, position: int) -> int:
        if position >= len(self.operator.inputs) or self.operator.inputs[position] < 0:
            raise CannotPlantError("no bias")
        return self.graph.root(self.operator.inputs[position])

    def _own(self, position: int) -> Any:
        """Gives the operator a copy of a constant, behind a bridge of its own where there is one; returns the tensor."""
        root = self._root(position)
        table = copy.deepcopy(self.main.tensors[root])
        self.unpacked.buffers.append(copy.deepcopy(self.unpacked.buffers[table.buffer]))
        table.buffer = len(self.unpacked.buffers) - 1
        self.main.tensors.append(table)
        index = len(self.main.tensors) - 1
        read = self.operator.inputs[position]
        if read != root:
            index = self._own_bridge(read, index)
        rewired = self.main.operators[self._position(self.operator.outputs[0])]
        inputs = np.array(rewired.inputs, dtype=np.int32)
        inputs[position] = index
        rewired.inputs = inputs
        return table

    def _position(self, output: int) -> int:
        return next(i for i, operator in enumerate(self.main.operators) if output in operator.outputs)

    def _own_bridge(self, read: int, source: int) -> int:
        at = self._position(read)
        bridge = copy.deepcopy(self.main.operators[at])
        self.main.tensors.append(copy.deepcopy(self.main.tensors[read]))
        index = len(self.main.tensors) - 1
        bridge.inputs, bridge.outputs = np.array([source], np.int32), np.array([index], np.int32)
        self.main.operators.insert(at, bridge)
        return index

    def _change(self, table: Any, root: int, values: np.ndarray) -> None:
        dtype = self.graph.tensor(root).dtype
        self.unpacked.buffers[table.buffer].data = np.frombuffer(np.ascontiguousarray(values, dtype).tobytes(), np.uint8)

    def _values(self, root: int) -> np.ndarray:
        return np.array(self.model.constant(self.graph.tensor(root)))

    def _weight_scale(self) -> None:
        root = self._root(self.weights)
        table = self._own(self.weights)
        if self.graph.tensor(root).dtype == np.float16:
            self._change(table, root, 2 * self._values(root))
            return
        table.quantization.scale = 2 * np.asarray(table.quantization.scale, np.float32)
        if self._has_integer_bias():
            bias = self._own(self.bias)
            if bias.quantization is not None and bias.quantization.scale is not None:
                bias.quantization.scale = 2 * np.asarray(bias.quantization.scale, np.float32)

    def _has_integer_bias(self) -> bool:
        """True where the scale of the bias is that of the weights times that of the input."""
        present = self.bias < len(self.operator.inputs) and self.operator.inputs[self.bias] >= 0
        return present and self._is_convolution() and self._values(self._root(self.bias)).dtype.kind == "i"

    def _is_convolution(self) -> bool:
        return self.operator.name != "UNIDIRECTIONAL_SEQUENCE_LSTM"

    def _swapped_channels(self) -> None:
        root = self._root(self.weights)
        values = np.moveaxis(self._values(root), self.axis, 0).copy()
        if len(values) < 2:
            raise CannotPlantError("one channel alone")
        first = int(self.random.integers(len(values)))
        other = int(np.argmax(np.square(values.astype(np.float64) - values[first]).reshape(len(values), -1).sum(axis=1)))
        if np.array_equal(values[first], values[other]):
            raise CannotPlantError("all channels are the same")
        values[[first, other]] = values[[other, first]]
        self._change(self._own(self.weights), root, np.moveaxis(values, 0, self.axis))

    def _saturated_bias(self) -> None:
        root = self._root(self.bias)
        values = self._values(root)
        if values.dtype.kind != "i" and values.dtype != np.float16:
            raise CannotPlantError("the bias is float32")
        # Half of int32's range, which leaves room for the sum of the products; what the kernels multiply ends at 2**47.
        extreme = {np.int32: 2**30, np.int64: 2**40, np.float16: 65504}[values.dtype.type]
        values[int(self.random.integers(values.size))] = extreme
        self._change(self._own(self.bias), root, values)

    def _clipping_scale(self) -> None:
        self.rescale(0.25)

    def rescale(self, factor: float) -> None:
        output = self.operator.outputs[0]
        if not self.graph.tensor(output).is_quantized:
            raise CannotPlantError("the output is float")
        if not self._is_convolution() or not {op.name for op in self._readers(output)} <= _RESCALING:
            raise CannotPlantError("its readers, or itself, take no other scale")
        quantization = self.main.tensors[output].quantization
        quantization.scale = (np.asarray(quantization.scale, np.float32) * factor).astype(np.float32)
        for reader in self._readers(output):
            if reader.name in _PLACES:
                self._rescale_bias(reader, factor)

    def _rescale_bias(self, reader: Operator, factor: float) -> None:
        """Gives the bias of a reader, whose scale is that of the input times that of the weights, the same real value."""
        planter = copy.copy(self)
        planter.operator = reader
        planter.weights, planter.bias, planter.axis = _PLACES[reader.name]
        if planter.bias >= len(reader.inputs) or reader.inputs[planter.bias] < 0:
            return
        root = planter._root(planter.bias)
        table, values = planter._own(planter.bias), planter._values(root)
        limits = np.iinfo(np.int32)
        planter._change(table, root, np.clip(np.round(values / factor), limits.min, limits.max))
        if table.quantization is not None and table.quantization.scale is not None:
            table.quantization.scale = (np.asarray(table.quantization.scale, np.float32) * factor).astype(np.float32)

    def _readers(self, index: int) -> list[Operator]:
        return [operator for operator in self.graph.subgraph.operators if index in operator.inputs]
