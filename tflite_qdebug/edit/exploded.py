"""A model whose operators no longer feed each other: each can be run by itself, on inputs that are given to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_codes, pack, replace_input, unpack
from tflite_qdebug.model import Model, Operator, Subgraph, Tensor
from tflite_qdebug.operators import OPERANDS

__all__ = [
    "ExplodedModel",
    "computed_tensors",
    "derived_tensors",
    "explode",
    "float_twins",
    "give_shape",
    "has_open_inputs",
    "have_float_form",
    "is_builtin",
    "joined_operators",
]

#: Operators that run other subgraphs; each counts as one operator, its bodies included.
CONTROL_FLOW = frozenset({"CALL", "CALL_ONCE", "IF", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE", "WHILE"})
_RANDOM = frozenset({"MULTINOMIAL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "STABLEHLO_RNG_BIT_GENERATOR"})
_OF_SHAPES = frozenset({"RANK", "SHAPE"})
# They take the integers for what they are, not for what they stand for; or turn one into the other, which needs no kernel.
_INTEGER_FORM = frozenset({"BITCAST", "CAST", "DEQUANTIZE", "FAKE_QUANT", "QUANTIZE"})


@dataclasses.dataclass(frozen=True)
class ExplodedModel:
    """A model of operators without connections, and how to use it. Tensors are named by their index in the first model.

    Attributes:
        data: The flatbuffer.
        inputs: The tensor whose value each input takes, in input order.
        outputs: The tensors that it computes; they have the same index in it.
    """

    data: bytes
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _is_opaque(tensor: Tensor) -> bool:
    """True for resources, variants and strings, which can be neither fed nor compared."""
    return tensor.dtype == object


def is_builtin(operator: Operator) -> bool:
    """True for an operator of the schema's, which a runtime has unless it is old; False for a custom one."""
    return operator.name in tf_private.builtin_operator_names().values()


def derived_tensors(graph: Subgraph) -> frozenset[int]:
    """Returns the tensors that are computed from constants and from shapes alone, whatever the sample.

    They stay where they are: kernels want weights and shapes to be constant, and choose another path where they are fed.
    """
    derived: set[int] = set()
    for operator in graph.operators:
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
        if operator.name in CONTROL_FLOW | _RANDOM or not is_builtin(operator) or any(map(_is_opaque, tensors)):
            continue
        reads = [index for index in operator.inputs if index >= 0]
        if operator.name in _OF_SHAPES or all(graph.tensors[i].is_constant or i in derived for i in reads):
            derived.update(operator.outputs)
    return frozenset(derived)


def computed_tensors(graph: Subgraph) -> list[tuple[Operator, int]]:
    """Returns each output of each operator that can be compared, in execution order: neither derived nor opaque."""
    derived = derived_tensors(graph)
    return [
        (operator, index)
        for operator in graph.operators
        for index in operator.outputs
        if index >= 0 and index not in derived and not _is_opaque(graph.tensors[index])
    ]


def joined_operators(graph: Subgraph) -> dict[int, str]:
    """Returns why operators cannot be cut off from others: ``{position: reason}``."""
    readers: dict[int, set[int]] = {}
    reasons: dict[int, str] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            if index < 0:
                continue
            if graph.tensors[index].is_variable:
                readers.setdefault(index, set()).add(operator.index)
            if _is_opaque(graph.tensors[index]):
                reasons[operator.index] = "resources, variants and strings cannot be fed"
    for operators in readers.values():
        if len(operators) > 1:
            reasons.update(dict.fromkeys(operators, "they share their state"))
    return reasons


def explode(model: Model, shapes: Mapping[int, Sequence[int]], operators: Collection[int] | None = None) -> ExplodedModel:
    """Returns the model with every intermediate tensor that an operator reads replaced by an input of its own.

    Each operator then computes from what is fed to it, and not from what the operator before it gave: a difference
    between two kernels shows where it is made, and nowhere behind. State, resources, constants and what is computed from
    constants and shapes alone stay connected. A loop or a branch is one operator.

    Args:
        model: Any model; its main subgraph is taken.
        shapes: The shape of each of the main subgraph's tensors as a sample has it, by index; read where the file leaves
            it open.
        operators: Positions of the operators to keep; None: all.
    """
    builder = _Builder(model, shapes, operators)
    return builder.finish(builder.wanted)


def have_float_form(model: Model) -> list[int]:
    """Returns the operators that compute on quantized values and may have a kernel for floats, by their positions."""
    graph = model.main
    derived = derived_tensors(graph)
    found = []
    for operator in graph.operators:
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
        if operator.name in CONTROL_FLOW | _INTEGER_FORM or not is_builtin(operator) or any(map(_is_opaque, tensors)):
            continue
        if any(tensor.is_quantized and tensor.index in derived for tensor in tensors):
            continue  # the constant that it comes from would have to become float, with all operators between
        if any(tensor.is_quantized for tensor in tensors):
            found.append(operator.index)
    return found


def float_twins(model: Model, shapes: Mapping[int, Sequence[int]], operators: Collection[int]) -> ExplodedModel:
    """Returns the exploded model of these operators in float: no rounding, no integer arithmetic.

    Constants are dequantized; every input and output that carries a scale is float32 instead. What comes out is the exact
    result for the quantized operator's inputs and weights, up to float32's own rounding.

    Args:
        model: As for `explode`.
        shapes: As for `explode`.
        operators: Positions, of those that `have_float_form` names. Not each of them has a kernel for floats: a runtime
            refuses the model of one that has not.
    """
    builder = _Builder(model, shapes, operators)
    builder.make_float()
    return builder.finish(builder.wanted)


def has_open_inputs(graph: Subgraph) -> bool:
    """True where the file leaves a size of an input open, so that other sizes may change with it."""
    return any(-1 in graph.tensors[index].shape for index in graph.inputs)


def give_shape(table: Any, described: Tensor, actual: tuple[int, ...], dynamic: bool) -> None:
    """Gives a tensor that becomes an input the shape of its values, which a file leaves open for what is computed.

    Args:
        table: The tensor, as the schema's object; changed in place.
        described: As the file has it.
        actual: Its shape on a sample.
        dynamic: All its sizes may be others on other samples; else those alone that the file does not give.
    """
    if dynamic or len(described.shape) != len(actual):
        signature = (-1,) * len(actual)
    else:
        signature = tuple(a if a == d else -1 for a, d in zip(actual, described.shape, strict=True))
    table.hasRank, table.shape = True, np.array(actual, dtype=np.int32)
    table.shapeSignature = np.array(signature, dtype=np.int32) if -1 in signature else None


class _Builder:
    """Cuts the operators of a model apart."""

    def __init__(self, model: Model, shapes: Mapping[int, Sequence[int]], operators: Collection[int] | None) -> None:
        self._model, self._graph, self._shapes = model, model.main, shapes
        self._unpacked = unpack(model)
        self._unpacked.signatureDefs = []  # they speak of other inputs and outputs
        self._writer = Writer(self._unpacked)
        self._derived = derived_tensors(self._graph)
        everything = range(len(self._graph.operators))
        self.wanted = [self._graph.operators[i] for i in sorted(everything if operators is None else operators)]
        self._kept = set(everything) if operators is None else self._with_derived(self.wanted)
        self._dynamic = has_open_inputs(self._graph)
        self._fed: dict[int, int] = {}
        for position in sorted(self._kept):
            self._cut(self._graph.operators[position])

    def _with_derived(self, operators: Iterable[Operator]) -> set[int]:
        """Returns the positions of operators, and of those that compute their derived inputs."""
        kept: set[int] = set()
        waiting = list(operators)
        while waiting:
            operator = waiting.pop()
            if operator.index not in kept:
                kept.add(operator.index)
                waiting += [self._graph.producers[index] for index in operator.inputs if index in self._derived]
        return kept

    def _cut(self, operator: Operator) -> None:
        table = self._writer.main.operators[operator.index]
        for position, index in enumerate(operator.inputs):
            if index in self._graph.inputs:
                self._fed[index] = index
            elif index in self._graph.producers and index not in self._derived and not _is_opaque(self._graph.tensors[index]):
                if index not in self._fed:
                    self._fed[index] = self._add_input(index)
                replace_input(table, position, self._fed[index])

    def _add_input(self, index: int) -> int:
        """Adds the tensor that stands for a computed one wherever that is read."""
        tensor = copy.copy(self._writer.main.tensors[index])
        tensor.name, tensor.buffer = (tensor.name or b"") + b"/fed", 0
        give_shape(tensor, self._graph.tensors[index], tuple(self._shapes[index]), self._dynamic)
        self._writer.main.tensors.append(tensor)
        return len(self._writer.main.tensors) - 1

    def make_float(self) -> None:
        """Makes floats of all that the wanted operators read and write with a scale."""
        touched: set[int] = set()
        for operator in self.wanted:
            touched.update((*operator.inputs, *operator.outputs))
        touched -= {-1, *(index for operator in self.wanted for index in self._convert_bias(operator))}
        for index in sorted(touched):
            tensor = self._graph.tensors[index]
            if tensor.is_quantized or self._is_other_constant(tensor):
                values = None
                if tensor.is_constant and tensor.quantization is not None:
                    values = tensor.quantization.dequantize(self._model.constant(tensor))
                for position in {index, self._fed.get(index, index)}:
                    self._set_float(self._writer.main.tensors[position], values)

    def _is_other_constant(self, tensor: Tensor) -> bool:
        """True for constants of 32 or 64 bits that stand for real numbers, such as a recurrent layer's bias."""
        return tensor.is_constant and tensor.quantization is not None and tensor.dtype in (np.int32, np.int64)

    def _set_float(self, table: Any, values: np.ndarray | None) -> None:
        table.type, table.quantization = self._writer.schema.TensorType.FLOAT32, None
        if values is not None:
            table.buffer = self._writer.add_values(values.astype(np.float32))

    def _convert_bias(self, operator: Operator) -> list[int]:
        """Gives an operator a float bias of its own; the integer one may be shared by operators with other scales."""
        data, weights, position = OPERANDS.get(operator.name, (0, 1, len(operator.inputs)))
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            return []
        bias = self._graph.tensors[operator.inputs[position]]
        first, second = (self._graph.tensors[operator.inputs[place]] for place in (data, weights))
        integer = bias.is_constant and bias.dtype in (np.int32, np.int64)
        if not integer or first.quantization is None or second.quantization is None:
            return []
        step = first.quantization.scale.astype(np.float64) * second.quantization.scale
        table = copy.copy(self._writer.main.tensors[bias.index])
        self._set_float(table, (self._model.constant(bias) * step).astype(np.float32))
        self._writer.main.tensors.append(table)
        replace_input(self._writer.main.operators[operator.index], position, len(self._writer.main.tensors) - 1)
        return [bias.index]

    def finish(self, wanted: Iterable[Operator]) -> ExplodedModel:
        """Writes the model."""
        comparable = computed_tensors(self._graph)
        positions = {operator.index for operator in wanted}
        outputs = tuple(dict.fromkeys(index for operator, index in comparable if operator.index in positions))
        main = self._writer.main
        main.operators = [table for position, table in enumerate(main.operators) if position in self._kept]
        main.inputs = np.array(list(self._fed.values()), dtype=np.int32)
        main.outputs = np.array(outputs, dtype=np.int32)
        drop_unused_codes(self._unpacked)
        return ExplodedModel(pack(self._unpacked), tuple(self._fed), outputs)
