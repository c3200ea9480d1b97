"""Which operators of a quantized model stand between two values that a float model has too, and what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from tflite_qdebug.edit.twins import Source
from tflite_qdebug.match import Graph, Match
from tflite_qdebug.model import Operator

__all__ = ["Regions", "with_weights"]

# They read a tensor, but none of its values.
_BLIND = ("SHAPE", "RANK")


class Regions:
    """The operators of a quantized model between values."""

    def __init__(self, quantized: Graph) -> None:
        """Keeps the model."""
        self._graph = quantized

    def is_quantized(self, operator: Operator) -> bool:
        """True where an operator's output is quantized, or a constant that it reads is not what it was in float."""
        if any(self._graph.tensor(output).is_quantized for output in operator.outputs):
            return True
        return self._graph.computes(operator) and self.reads_reduced_constant(operator)

    def reads_quantized(self, operator: Operator) -> bool:
        """True where an operator reads integers that stand for real numbers; ARG_MAX gives none, but may give another index."""
        if operator.name in _BLIND:
            return False
        read = (index for index in operator.inputs if index >= 0 and not self._graph.is_constant(index))
        return any(self._graph.tensor(index).is_quantized for index in read)

    def reads_reduced_constant(self, operator: Operator) -> bool:
        """True where a constant that an operator reads has fewer bits than float32."""
        constants = (self._graph.tensor(self._graph.root(index)) for index in operator.inputs if index >= 0)
        return any(tensor.is_constant and (tensor.is_quantized or tensor.dtype == np.float16) for tensor in constants)

    def operators(self, output: int, stops: Collection[int]) -> list[Operator]:
        """Returns the operators between a value and the stops before it, in order of execution."""
        found: dict[int, Operator] = {}
        waiting = [output]
        while waiting:
            producer = self._graph.producer(waiting.pop())
            if producer is not None and producer.index not in found:
                found[producer.index] = producer
                waiting += [root for root in self._graph.activations(producer).values() if root not in stops]
        return [found[index] for index in sorted(found)]

    def feeds(self, operators: Collection[Operator]) -> dict[int, int]:
        """Returns ``{value: the tensor as which it is read}`` of all that the operators read and that is not constant."""
        feeds: dict[int, int] = {}
        for operator in operators:
            for index in operator.inputs:
                if index >= 0 and not self._graph.is_constant(index) and not self._graph.tensor(index).is_variable:
                    feeds.setdefault(self._graph.root(index), self._entry(index))
        return feeds

    def _entry(self, index: int) -> int:
        """Returns the first quantized tensor between a value and the operator that reads it as ``index``; else the value."""
        entry = root = self._graph.root(index)
        while index != root:
            if self._graph.tensor(index).is_quantized:
                entry = index
            index = self._graph.subgraph.producers[index].inputs[0]
        return root if self._graph.tensor(root).is_quantized else entry

    def default_entry(self, root: int) -> int:
        """Returns the quantized tensor that holds a value, wherever it is read; the value itself where none does."""
        if self._graph.tensor(root).is_quantized:
            return root
        for operator in self._graph.subgraph.operators:
            if operator.name == "QUANTIZE" and operator.inputs[0] == root:
                return operator.outputs[0]
        return root


def with_weights(reference: Source, dequantized: Source, match: Match, quantized: Graph) -> Source:
    """Returns the float model with the dequantized constants of the quantized one."""
    ours, theirs = reference.graph, dequantized.graph
    constants = {}
    for pair in match.operators:
        mine = ours.subgraph.operators[pair.float_operator]
        outputs = set(quantized.subgraph.operators[pair.quantized_operator].outputs)
        other = next(operator for operator in theirs.operators if outputs.intersection(operator.outputs))
        for position, (first, second) in enumerate(zip(mine.inputs, other.inputs, strict=False)):
            if first < 0 or second < 0 or not (ours.is_constant(first) and theirs.is_constant(second)):
                continue
            before, after = ours.tensor(ours.root(first)), theirs.tensor(theirs.root(second))
            if before.is_float and after.is_float and before.shape == after.shape and mine.name == other.name:
                constants[mine.index, position] = after.index
    return dataclasses.replace(reference, name="float model, weights quantized", constants=constants)
