"""The operators of a quantized model and how they feed each other, as the reports show them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.analyses.pairs import Pair
from tflite_qdebug.findings import GraphNode
from tflite_qdebug.match import Graph, Match, match_models
from tflite_qdebug.model import Model, Operator, Tensor, refuses_broken_models
from tflite_qdebug.record import Run

__all__ = ["describe_graph", "graph_key", "multiplications"]

# Fields of an operator's options that say nothing where they are 0, False or 1.
_SILENT_FIELDS = re.compile(r"kernelType|asymmetricQuantize|quantizedBiasType|^keepNumDims|weightsFormat|^potScale|^beta$")
_WINDOWS = ("stride", "dilation", "filter")


@refuses_broken_models
def describe_graph(pair: Pair, match: Match | None = None, run: Run | None = None) -> tuple[GraphNode, ...]:
    """Describes the operators of a quantized model's main subgraph, QUANTIZE and DEQUANTIZE seen through.

    Args:
        pair: As `open_pair` gives it.
        match: What belongs to what, where that is known; else it is found by names, constants and structure.
        run: The layers of `pair_error` for the same pair, whose names are then taken as they are: a value that only its
            numbers on a sample matched has another name here otherwise.

    Returns:
        The operators in execution order.
    """
    graph = Graph(pair.quantized)
    if pair.floating is not None and match is None:
        match = match_models(pair.floating, pair.quantized)
    names = _Names(graph, None if pair.floating is None else Graph(pair.floating), match, run)
    sizes = _buffer_sizes(pair.quantized)
    keys = graph_key(pair.quantized), graph_key(pair.floating) if pair.floating is not None else "main"
    options = _Options(pair.quantized)
    return tuple(
        GraphNode(
            operator=operator.index,
            op_name=operator.name,
            nodes=tuple(names.of(output) for output in operator.outputs),
            inputs=_positions(graph.producer(root) for root in graph.activations(operator).values()),
            outputs=_positions(reader for output in operator.outputs for reader in graph.readers(output)),
            is_float=_is_float(graph, operator),
            options=options.of(graph, operator),
            shape=graph.tensor(operator.outputs[0]).shape if operator.outputs else (),
            macs=multiplications(graph, operator),
            weight_bytes=sum(sizes[tensor.buffer] for tensor in _constants(graph, operator)),
            float_operators=names.float_operators(operator),
            graph_key=keys[0],
            float_graph_key=keys[1],
        )
        for operator in graph.operators
    )


def graph_key(model: Model) -> str:
    """Returns what Model Explorer calls the main subgraph: by its name, else its signature's, else ``main``."""
    signature = next((entry.key for entry in model.signatures if entry.subgraph == 0), "")
    return model.main.name or signature or "main"


class _Names:
    """What a run calls the values of a quantized model, and which float operators compute them."""

    def __init__(self, graph: Graph, floating: Graph | None, match: Match | None, run: Run | None) -> None:
        self._graph, self._floating = graph, floating
        self._places = {other: mine for mine, other in match.values.items()} if match else {}
        self._operators: dict[int, set[int]] = {}
        for pair in match.operators if match else ():
            self._operators.setdefault(pair.quantized_operator, set()).add(pair.float_operator)
        self._known: dict[int, str] = {}
        tensors = graph.subgraph.tensors
        for layer in run.layers if run else ():
            place = layer.tensor_idx
            if layer.op_name != "QUANTIZE" and place < len(tensors) and tensors[place].name == layer.tensor_name:
                self._known[place] = layer.node

    def of(self, output: int) -> str:
        if output in self._known:
            return self._known[output]
        if self._floating is not None and output in self._places:
            return self._floating.tensor(self._places[output]).name
        return self._graph.tensor(output).name

    def float_operators(self, operator: Operator) -> tuple[int, ...]:
        found = set(self._operators.get(operator.index, ()))
        for output in operator.outputs:
            producer = None
            if self._floating is not None and output in self._places:
                producer = self._floating.producer(self._places[output])
            if producer is not None:
                found.add(producer.index)
        return tuple(sorted(found))


def _positions(operators: Iterator[Operator | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(operator.index for operator in operators if operator is not None))


def _is_float(graph: Graph, operator: Operator) -> bool:
    """True where it reads and writes float values, and no quantized ones: not where weights alone are quantized."""
    tensors = [graph.tensor(index) for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return any(tensor.is_float for tensor in tensors) and not any(tensor.is_quantized for tensor in tensors)


def _constants(graph: Graph, operator: Operator) -> list[Tensor]:
    roots = dict.fromkeys(graph.root(index) for index in operator.inputs if index >= 0)
    return [graph.tensor(root) for root in roots if graph.tensor(root).is_constant]


def _buffer_sizes(model: Model) -> list[int]:
    """Returns the bytes of each buffer, of types that numpy lacks as well."""
    root = tf_private.schema().Model.GetRootAs(model.data, 0)
    buffers = [root.Buffers(index) for index in range(root.BuffersLength())]
    return [buffer.DataLength() or (buffer.Size() if hasattr(buffer, "Size") else 0) for buffer in buffers]


def _size(tensor: Tensor) -> int:
    """Returns the number of elements, dimensions of any size counted as 1."""
    return math.prod(1 if size < 0 else size for size in tensor.shape)


def multiplications(graph: Graph, operator: Operator) -> int:
    """Returns how many multiplications of a value with a weight (or another value) an operator needs for one sample.

    Counted are convolutions, dense layers, products of matrices, and recurrent layers; bias, activation functions and
    elementwise operators are not. Dimensions of any size count as 1.
    """
    tensors = [graph.tensor(graph.root(index)) if index >= 0 else None for index in operator.inputs]
    outputs = _size(graph.tensor(operator.outputs[0])) if operator.outputs else 0
    first, second = (tensors[place] if place < len(tensors) else None for place in (0, 1))
    if first is None or second is None:
        return 0
    kernel = second.shape
    if operator.name == "CONV_2D":  # (output channels, height, width, input channels of a group)
        return outputs * math.prod(kernel[1:])
    if operator.name == "DEPTHWISE_CONV_2D":  # (1, height, width, channels)
        return outputs * math.prod(kernel[1:3])
    if operator.name == "CONV_3D":  # (depth, height, width, input channels, output channels)
        return outputs * math.prod(kernel[:4])
    if operator.name in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):  # inputs: shape of the output, kernel, values
        values = tensors[2] if len(tensors) > 2 else None
        channels_last = operator.name == "TRANSPOSE_CONV"
        return 0 if values is None else _size(values) * math.prod(kernel[:3] if channels_last else kernel[:4])
    if operator.name == "FULLY_CONNECTED":  # (outputs, inputs)
        return outputs * kernel[-1]
    if operator.name == "BATCH_MATMUL":
        return outputs * _inner(graph, operator, first)
    if operator.name.endswith(("LSTM", "RNN")):
        return _recurrent(operator, first, [tensor for tensor in tensors[1:] if tensor is not None])
    return 0


def _inner(graph: Graph, operator: Operator, first: Tensor) -> int:
    """Returns the dimension that a product of matrices sums over."""
    options = _table(tf_private.schema(), graph.model, operator.index)
    adjoint = bool(getattr(options, "adjX", False))
    return first.shape[-2 if adjoint else -1] if len(first.shape) > 1 else first.shape[-1]


def _recurrent(operator: Operator, first: Tensor, others: list[Tensor]) -> int:
    """Returns the products of all matrices with a vector, once for each step of each sequence of the batch."""
    matrices = sum(_size(tensor) for tensor in others if tensor.is_constant and len(tensor.shape) == 2)
    vectors = _size(first) // max(first.shape[-1], 1) if first.shape else 1
    return matrices * vectors


class _Options:
    """What describes operators, from the options in the file."""

    def __init__(self, model: Model) -> None:
        self._model, self._schema = model, tf_private.schema()
        self._functions = _names_of(self._schema.ActivationFunctionType)
        self._paddings = _names_of(self._schema.Padding)

    def of(self, graph: Graph, operator: Operator) -> dict[str, str]:
        table = _table(self._schema, self._model, operator.index)
        found: dict[str, str] = {}
        kernel = _kernel(graph, operator)
        if kernel:
            found["kernel"] = kernel
        fields = dict(vars(table)) if table is not None else {}
        for name in _WINDOWS:
            size = _window(fields, name)
            if size and not (name == "dilation" and size == "1x1"):
                found["kernel" if name == "filter" else name] = _short(size)
        if "padding" in fields:
            found["padding"] = self._paddings.get(fields.pop("padding"), "?")
        activation = fields.pop("fusedActivationFunction", 0)
        if activation:
            found["activation"] = self._functions.get(activation, str(activation))
        found.update(_others(fields))
        return found


def _table(schema: Any, model: Model, index: int) -> Any:
    """Returns an operator's options as an object; None where it has none that are known."""
    row = schema.Model.GetRootAs(model.data, 0).Subgraphs(model.main.index).Operators(index)
    name, table = _names_of(schema.BuiltinOptions).get(row.BuiltinOptionsType(), ""), row.BuiltinOptions()
    kind = getattr(schema, f"{name}T", None)
    if kind is None or table is None:
        return None
    reader = getattr(schema, name)()
    reader.Init(table.Bytes, table.Pos)
    return kind.InitFromObj(reader)


def _names_of(enumeration: Any) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if isinstance(code, int)}


def _kernel(graph: Graph, operator: Operator) -> str:
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV") or len(operator.inputs) < 2:
        return ""
    shape = graph.tensor(graph.root(operator.inputs[1])).shape
    return f"{shape[1]}x{shape[2]}" if len(shape) == 4 else ""


def _window(fields: dict[str, Any], name: str) -> str:
    """Takes height and width of a stride, dilation or window out of the fields: ``3x3``, or nothing."""
    suffixes = ("Height", "Width") if name == "filter" else ("H", "W")
    if name == "dilation":
        suffixes = ("HFactor", "WFactor")
    sizes = [fields.pop(name + suffix, 0) for suffix in suffixes]
    return "x".join(map(str, sizes)) if all(sizes) else ""


def _short(size: str) -> str:
    height, _, width = size.partition("x")
    return height if height == width else size


def _others(fields: Mapping[str, Any]) -> dict[str, str]:
    """Returns the remaining fields that say something, in words."""
    found = {}
    for name, value in fields.items():
        listed = value.tolist() if isinstance(value, np.ndarray) else value
        if _SILENT_FIELDS.search(name) or listed is None or (not listed and name != "axis"):
            continue
        if name == "depthMultiplier" and listed == 1:
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("_", " ")
        if isinstance(listed, bool):
            found[words] = "yes"
        elif isinstance(listed, list):
            found[words] = "x".join(map(str, listed))
        elif isinstance(listed, (int, float)):
            found[words] = f"{listed:g}"
    return found
