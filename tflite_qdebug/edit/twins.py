"""Float operators written into a quantized model: copies of a float model's, on whatever they are to read."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, unpack
from tflite_qdebug.edit.subgraphs import copy_subgraphs, referenced_subgraphs, renumber_subgraphs
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Operator

__all__ = ["SHARED_STATE", "OperatorWriter", "Source", "TwinWriter"]

#: They name state that an interpreter keeps: a copy would share it with what it was copied from.
SHARED_STATE = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE", "CALL_ONCE")


@dataclasses.dataclass(frozen=True)
class Source:
    """A float model whose operators are copied, and which of its values are which of the quantized model.

    Attributes:
        name: Tells copies of one source from those of another.
        graph: The model.
        unpacked: The same as objects.
        values: ``{root: root in the quantized model}``.
        constants: ``{(operator, input position): constant of the dequantized model}`` to be read instead of its own.
        rounded: ``{root: tensor of the quantized model}``: values to be rounded as that tensor is.
    """

    name: str
    graph: Graph
    unpacked: Any
    values: Mapping[int, int]
    constants: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    rounded: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def at(self) -> dict[int, int]:
        """``{root in the quantized model: root}``."""
        return {other: mine for mine, other in self.values.items()}

    def region(self, output: int, stops: Iterable[int]) -> tuple[list[Operator], list[int]]:
        """Returns the operators between a value and the stops before it, in order of execution, and the stops met."""
        stops = set(stops) - {output}
        operators: dict[int, Operator] = {}
        met: dict[int, None] = {}
        waiting = [output]
        while waiting:
            root = waiting.pop()
            producer = self.graph.producer(root)
            if root in stops or producer is None:
                met[root] = None
            elif producer.index not in operators:
                operators[producer.index] = producer
                waiting += self.graph.activations(producer).values()
        return [operators[index] for index in sorted(operators)], list(met)


class OperatorWriter:
    """Copies operators of other models into an unpacked one, on whatever they are to read.

    Attributes:
        unpacked: The model as objects, changed in place.
        writer: Writes into it.
        appended: The copies, to be put behind the operators that are there.
    """

    def __init__(self, unpacked: Any, dequantized: Source, suffix: bytes = b"") -> None:
        """Starts without a copy.

        Args:
            unpacked: The model.
            dequantized: A quantized model as a float model, whose constants a `Source` may ask for.
            suffix: Behind the names of copied tensors.
        """
        self.unpacked, self.writer = unpacked, Writer(unpacked)
        self.appended: list[Any] = []
        self._dequantized, self._suffix = dequantized, suffix
        self._constants: dict[tuple[int, int], int] = {}
        self._copies: dict[Any, list[int]] = {}
        self._called: dict[tuple[str, int], int] = {}

    def quantize(self, source: int, target: int, dtype: np.dtype[Any]) -> Any:
        """Returns a QUANTIZE operator (not yet put anywhere) between two tensors."""
        schema = self.writer.schema
        operator = schema.OperatorT()
        operator.opcodeIndex = self.writer.add_code("QUANTIZE", 2 if dtype == np.int16 else 1)
        operator.inputs, operator.outputs = np.array([source], np.int32), np.array([target], np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        operator.builtinOptions = schema.QuantizeOptionsT()
        return operator

    def add_tensor(self, source: Source, index: int) -> int:
        """Copies a tensor, with its values where it is constant."""
        tensor = copy.copy(source.unpacked.subgraphs[source.graph.subgraph.index].tensors[index])
        if source.graph.tensor(index).is_constant:
            self.unpacked.buffers.append(source.unpacked.buffers[tensor.buffer])
            tensor.buffer = len(self.unpacked.buffers) - 1
        else:
            tensor.buffer = 0
        tensor.name = (tensor.name or b"") + self._suffix
        self.writer.main.tensors.append(tensor)
        return len(self.writer.main.tensors) - 1

    def constant(self, source: Source, index: int) -> int:
        """Copies a constant, once."""
        key = (id(source.unpacked), index)  # variants of one source share them
        if key not in self._constants:
            self._constants[key] = self.add_tensor(source, index)
        return self._constants[key]

    def copy(self, source: Source, operator: Operator, inputs: list[int], intermediates: bool = False) -> list[int]:
        """Copies an operator, the same one on the same inputs only once; returns its outputs.

        Args:
            source: The model that it is of.
            operator: The operator.
            inputs: The tensors that the copy reads.
            intermediates: Keep the scales between the gates of an integer LSTM, which a float one takes for an error.
        """
        key = (source.name, operator.index, tuple(inputs))
        if key in self._copies:
            return self._copies[key]
        outputs = [self.add_tensor(source, index) for index in operator.outputs]
        table = copy.copy(source.unpacked.subgraphs[source.graph.subgraph.index].operators[operator.index])
        code = source.unpacked.operatorCodes[table.opcodeIndex]
        table.opcodeIndex = self.writer.add_code(operator.name, code.version, code.customCode)
        table.inputs, table.outputs = np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)
        kept = table.intermediates if intermediates and table.intermediates is not None else []
        table.intermediates = np.array([self.add_tensor(source, int(index)) for index in kept], dtype=np.int32)
        called = [index for index in referenced_subgraphs(table) if (source.name, index) not in self._called]
        for index, copied in copy_subgraphs(source.unpacked, self.unpacked, called).items() if called else ():
            self._called[source.name, index] = copied
        renumber_subgraphs(table, {index: copied for (name, index), copied in self._called.items() if name == source.name})
        self.appended.append(table)
        self._copies[key] = outputs
        return outputs

    def compute(self, source: Source, operators: Iterable[Operator], feeds: Mapping[int, int], output: int) -> int | None:
        """Copies a region; returns the tensor that holds its output, None where an input is missing."""
        known = {root: self._after(source, root, tensor) for root, tensor in feeds.items()}
        for operator in operators:
            if operator.name in SHARED_STATE:
                return None
            inputs = []
            for position, index in enumerate(operator.inputs):
                root = source.graph.root(index) if index >= 0 else index
                if index < 0:
                    inputs.append(index)
                elif root in known:
                    inputs.append(known[root])
                elif (operator.index, position) in source.constants:
                    inputs.append(self.constant(self._dequantized, source.constants[operator.index, position]))
                elif source.graph.tensor(root).is_constant:
                    inputs.append(self.constant(source, root))
                elif source.graph.tensor(root).is_variable:
                    inputs.append(self.add_tensor(source, root))
                else:
                    return None
            if any(source.graph.tensor(index).is_variable for index in operator.inputs if index >= 0):
                # Its own state each time: a copy on the same inputs is found by the constants and activations alone.
                inputs = self.with_state(source, operator, inputs)
            for index, copied in zip(operator.outputs, self.copy(source, operator, inputs), strict=True):
                known[index] = self._after(source, index, copied)
        return known.get(output)

    def _after(self, source: Source, root: int, tensor: int) -> int:
        """Returns a value as its readers get it: rounded, where the source wants it so."""
        return tensor

    def with_state(self, source: Source, operator: Operator, inputs: list[int]) -> list[int]:
        """Returns the inputs of an operator with variables: those it was given before with the same other inputs."""
        stateless = tuple(
            -2 if index >= 0 and source.graph.tensor(index).is_variable else copied
            for index, copied in zip(operator.inputs, inputs, strict=True)
        )
        return self._copies.setdefault((source.name, operator.index, "state", stateless), inputs)


class TwinWriter(OperatorWriter):
    """Copies float operators behind those of a quantized model.

    Attributes:
        inputs: ``{input of the quantized model: the tensor that is fed}``, from which chains start.
        prepended: Operators to be put before those of the model.
    """

    def __init__(self, quantized: Graph, dequantized: Source) -> None:
        """Prepares a copy of the quantized model.

        Args:
            quantized: The model.
            dequantized: It as a float model, whose constants a `Source` may ask for.
        """
        super().__init__(unpack(quantized.model), dequantized, b"_float")
        self._graph = quantized
        self.unpacked.signatureDefs = []
        self.inputs: dict[int, int] = {}
        self.prepended: list[Any] = []
        self._floats: dict[int, int] = {}
        self._chains: dict[tuple[str, int], int | None] = {}
        self._roundings: dict[tuple[int, int], int] = {}
        self._integers: dict[tuple[int, int], int] = {}

    def open_input(self, index: int) -> None:
        """Makes an input of integers float, with a QUANTIZE behind it, so that its rounding can be seen."""
        tensor = self._graph.tensor(index)
        schema, main = self.writer.schema, self.writer.main
        fed = self.writer.add_tensor(tensor.name + "_float", main.tensors[tensor.index], schema.TensorType.FLOAT32)
        self.prepended.append(self.quantize(fed, tensor.index, tensor.dtype))
        self.inputs[index] = fed

    def as_float(self, index: int) -> int:
        """Returns the dequantized form of a tensor of the quantized model."""
        tensor = self._graph.tensor(index)
        if not tensor.is_quantized:
            return index
        if index not in self._floats:
            operator, target = self.writer.dequantize(index, tensor.name + "_verify", 2)
            self.appended.append(operator)
            self._floats[index] = target
        return self._floats[index]

    def _after(self, source: Source, root: int, tensor: int) -> int:
        return self.rounded(tensor, source.rounded[root]) if root in source.rounded else tensor

    def chain(self, source: Source, output: int) -> int | None:
        """Returns the value as the float model alone computes it from the float inputs."""
        key = (source.name, output)
        if key not in self._chains:
            feeds = {source.at[index]: tensor for index, tensor in self.inputs.items() if source.at.get(index) is not None}
            operators, _ = source.region(output, feeds)
            if output in feeds:
                self._chains[key] = feeds[output]
            else:
                self._chains[key] = self.compute(source, operators, feeds, output)
        return self._chains[key]

    def rounded(self, index: int, like: int) -> int:
        """Returns float values rounded and clipped as a tensor of the quantized model is, float again."""
        integers = self.as_integers(index, like)
        if integers == index:
            return index
        if (index, like) not in self._roundings:
            back, target = self.writer.dequantize(integers, self._graph.tensor(like).name + "_rounded_float", 2)
            self.appended.append(back)
            self._roundings[index, like] = target
        return self._roundings[index, like]

    def as_integers(self, index: int, like: int) -> int:
        """Returns float values quantized as a tensor of the quantized model is; as they are where that one is float."""
        main, quantized = self.writer.main, self._graph.tensor(like)
        if not quantized.is_quantized:
            return index
        if (index, like) not in self._integers:
            integers = self.writer.add_tensor(quantized.name + "_rounded", main.tensors[index], main.tensors[like].type)
            main.tensors[integers].quantization = main.tensors[like].quantization
            self.appended.append(self.quantize(index, integers, quantized.dtype))
            self._integers[index, like] = integers
        return self._integers[index, like]

    def again(self, output: int, feeds: Mapping[int, int]) -> int | None:
        """Copies the quantized operators between other values and a tensor; returns its copy, None where a value is missing.

        Args:
            output: The tensor of the quantized model.
            feeds: ``{tensor of the quantized model: float tensor}``, to be read in its place, rounded as it is.
        """
        main = self.writer.main
        known = {index: self.as_integers(tensor, index) for index, tensor in feeds.items()}
        for operator in self._between(output, feeds):
            if operator.name in SHARED_STATE:
                return None
            table = copy.copy(self.unpacked.subgraphs[self._graph.subgraph.index].operators[operator.index])
            inputs = []
            for index in operator.inputs:
                tensor = None if index < 0 else self._graph.tensor(index)
                if tensor is not None and tensor.is_variable:
                    main.tensors.append(copy.copy(main.tensors[index]))
                    inputs.append(len(main.tensors) - 1)
                elif tensor is None or tensor.is_constant or index in known:
                    inputs.append(known.get(index, index))
                else:
                    return None
            for index in operator.outputs:
                main.tensors.append(copy.copy(main.tensors[index]))
                known[index] = len(main.tensors) - 1
            table.inputs = np.array(inputs, dtype=np.int32)
            table.outputs = np.array([known[index] for index in operator.outputs], dtype=np.int32)
            self.appended.append(table)
        return known.get(output)

    def _between(self, output: int, feeds: Mapping[int, int]) -> list[Operator]:
        """Returns the operators of the quantized model, bridges and all, that compute a tensor out of others."""
        found: dict[int, Operator] = {}
        waiting = [output]
        while waiting:
            index = waiting.pop()
            producer = None if index in feeds else self._graph.subgraph.producers.get(index)
            if producer is not None and producer.index not in found:
                found[producer.index] = producer
                waiting += [index for index in producer.inputs if index >= 0]
        return [found[index] for index in sorted(found)]
