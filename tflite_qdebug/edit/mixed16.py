"""Quantized models in which some nodes compute with 16-bit activations, put together from an int8 and a 16x8 model.

The int8 model stays as it is, bit for bit, but for the chosen nodes: these become copies of the 16x8 model's operators. Where
the two meet, int16 becomes int8 by a QUANTIZE, and int8 becomes int16 by DEQUANTIZE and QUANTIZE, since TensorFlow's kernels
have no direct way. So whatever was done to the int8 model (tuned ranges, corrected biases, rounded
weights) is kept, which quantizing anew in two widths would undo.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from tflite_qdebug.edit.debug_model import BRIDGES
from tflite_qdebug.edit.flatbuffer import drop_unused_buffers, drop_unused_codes, pack
from tflite_qdebug.edit.mixed import MixedModels, Node
from tflite_qdebug.edit.twins import OperatorWriter
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Operator, Tensor

__all__ = ["Int16Models", "is_int16"]

_INT16 = np.dtype(np.int16)
# What they call was quantized to int8, and is theirs.
_CALLING = ("WHILE", "IF", "CALL_ONCE", "STABLEHLO_COMPOSITE")
# What QUANTIZE makes of integers without a detour. int8 -> int16 is not among it: LiteRT 2.3 has it, TensorFlow 2.21 not.
_REQUANTIZED = ((_INT16, np.dtype(np.int8)), (_INT16, _INT16))


def is_int16(tensor: Tensor) -> bool:
    """True for a quantized tensor of 16 bits."""
    return tensor.is_quantized and tensor.dtype == _INT16


class Int16Models:
    """Puts together models in which each node is as in an int8 model, or as in a 16x8 model.

    Attributes:
        narrow: The float and the int8 model.
        wide: The float and the 16x8 model.
    """

    def __init__(self, narrow: MixedModels, wide: MixedModels) -> None:
        """Finds which nodes the 16x8 model has in 16 bits.

        Args:
            narrow: The float and the int8 model; some of its nodes may be float.
            wide: The same float model and its whole 16x8 form.

        Raises:
            ModelError: Where the two were not made with the same float model.
        """
        if narrow.floats.graph.model.data != wide.floats.graph.model.data:
            raise ModelError("the int8 and the 16x8 model were matched with different float models, expected one and the same")
        self.narrow, self.wide = narrow, wide
        self._wide_value = {place: value for value, place in wide.floats.at.items()}
        self._reasons = {node.operator: self._why_not(node) for node in narrow.nodes}

    def reason(self, node: Node) -> str:
        """Returns why a node of `narrow` cannot be computed in 16 bits; empty where it can."""
        return self._reasons[node.operator]

    def reads(self, node: Node) -> tuple[int, ...]:
        """Returns the values of `narrow` that a node's 16-bit form reads."""
        return tuple(value for value in map(self._narrow_value, self._feeds(node)) if value is not None)

    def build(self, nodes: Iterable[Node]) -> bytes:
        """Returns the int8 model with the chosen nodes in 16 bits.

        Between two chosen nodes values stay int16; other readers get them rounded to the int8 model's own scale.

        Args:
            nodes: Nodes of `narrow`, each without a `reason` against it.

        Raises:
            ModelError: For a node that has one.
        """
        chosen = list(nodes)
        for node in chosen:
            if self.reason(node):
                raise ModelError(
                    f"{node.op_name} {node.name!r} cannot be computed with 16-bit activations: {self.reason(node)}"
                )
        return _Assembly(self, chosen).data() if chosen else self.narrow.graph.model.data

    def operators(self, node: Node) -> list[Operator]:
        """Returns the operators of the 16x8 model that compute a node's values, without the bridges."""
        values = [self._wide_value[place] for place in node.places if place in self._wide_value]
        found = {operator.index: operator for value in values for operator in self.wide.operators(value)}
        return [found[index] for index in sorted(found)]

    def wide_value(self, value: int) -> int:
        """Returns the tensor of the 16x8 model that computes a value of `narrow`."""
        return self._wide_value[self.narrow.floats.at[value]]

    def narrow_value(self, root: int) -> int:
        """Returns the tensor of the int8 model that computes what a tensor of the 16x8 model does."""
        return self.narrow.floats.values[self.wide.floats.at[root]]

    def _narrow_value(self, root: int) -> int | None:
        place = self.wide.floats.at.get(root)
        return None if place is None else self.narrow.floats.values.get(place)

    def _feeds(self, node: Node) -> list[int]:
        region = self.operators(node)
        inside = {output for operator in region for output in operator.outputs}
        return [root for root in self.wide.regions.feeds(region) if root not in inside]

    def _why_not(self, node: Node) -> str:
        graph, region = self.wide.graph, self.operators(node)
        if not region or any(place not in self._wide_value for place in node.places):
            return "the 16x8 model has no counterpart of it"
        outputs = [graph.tensor(self.wide_value(value)) for value in node.values]
        if any(tensor.is_float for tensor in outputs):
            return f"the quantizer has no {node.op_name} with 16-bit activations, or none for these types and shapes"
        if not all(map(is_int16, outputs)):
            return "its output is no real number, so that 16 bits mean nothing there"
        if any(graph.tensor(index).is_float for operator in region for index in operator.outputs):
            return "a part of it is float in the 16x8 model"
        if any(index >= 0 and graph.tensor(index).is_variable for operator in region for index in operator.inputs):
            return "it has variables, whose type belongs to the int8 model"
        if node.op_name in _CALLING:
            return "it calls other parts of the model"
        if self._unmatched_outputs(node):
            return "one of its outputs has no counterpart in the float model"
        return self._why_out_of_place(node)

    def _unmatched_outputs(self, node: Node) -> list[int]:
        subgraph = self.narrow.graph.subgraph
        read = {index for operator in subgraph.operators for index in operator.inputs}.union(subgraph.outputs)
        outputs = subgraph.operators[node.operator].outputs
        return [index for index in outputs if index in read and index not in node.values]

    def _why_out_of_place(self, node: Node) -> str:
        """Says what a node's 16-bit form would read too early, if anything."""
        producers = self.narrow.graph.subgraph.producers
        for root in self._feeds(node):
            value = self._narrow_value(root)
            if value is None:
                return f"its 16-bit form reads {self.wide.graph.tensor(root).name!r}, which the int8 model has not"
            producer = producers.get(value)
            if producer is not None and producer.index >= node.operator:
                return "the int8 and the 16x8 model compute it in different orders"
        return ""


class _Assembly(OperatorWriter):
    """One model in the making: a copy of the int8 model, changed."""

    def __init__(self, models: Int16Models, chosen: Collection[Node]) -> None:
        super().__init__(_copied(models.narrow.quantized.unpacked), models.wide.quantized, b"_int16")
        self._models, self._chosen = models, list(chosen)
        self._narrow, self._wide = models.narrow.graph, models.wide.graph
        self._source = models.wide.quantized
        # Values of the int8 model -> their int16 tensor.
        self._computed: dict[int, int] = {}
        self._widened: dict[tuple[int, float], int] = {}

    def data(self) -> bytes:
        main = self.writer.main
        before = list(main.operators)
        places = {node.operator: node for node in self._chosen}
        rows: list[Any] = []
        for position, table in enumerate(before):
            if position in places:
                self._emit(places[position])
            elif not self._repointed(position):
                rows.append(table)
            rows += self._drained()
        main.operators = _without_dead(rows, main, before)
        _drop_unused_tensors(self.unpacked)
        # Copies, since what was taken over from the 16x8 model is still its own.
        self.unpacked.buffers = [copy.copy(buffer) for buffer in self.unpacked.buffers]
        drop_unused_buffers(self.unpacked)
        drop_unused_codes(self.unpacked)
        return pack(self.unpacked)

    def _drained(self) -> list[Any]:
        rows, self.appended[:] = list(self.appended), []
        return rows

    def _emit(self, node: Node) -> None:
        local: dict[int, int] = {}
        for operator in self._models.operators(node):
            inputs = [self._input_of(index, local) for index in operator.inputs]
            local.update(zip(operator.outputs, self.copy(self._source, operator, inputs), strict=True))
        for value in node.values:
            self._computed[value] = local[self._models.wide_value(value)]
        for value in node.values:
            # Its int8 (or float) form, for readers that are not bridges; it goes again where nobody reads it.
            self._convert(self._computed[value], value)

    def _repointed(self, position: int) -> bool:
        """Makes a bridge of the int8 model read the int16 value itself; True where another one stands for it."""
        operator = self._narrow.subgraph.operators[position]
        if operator.name not in BRIDGES or operator.inputs[0] not in self._computed:
            return False
        self._convert(self._computed[operator.inputs[0]], operator.outputs[0])
        return True

    def _input_of(self, index: int, local: Mapping[int, int]) -> int:
        """Returns what a copied operator reads as ``index``."""
        if index < 0:
            return index
        root = self._wide.root(index)
        if self._wide.is_constant(index):
            return self._bridged(self.constant(self._source, root), root, index)
        if root in local:
            return self._bridged(local[root], root, index)
        value = self._models.narrow_value(root)
        if value in self._computed:
            return self._bridged(self._computed[value], root, index)
        return self._widen(value, index) if self._wide.tensor(index).is_quantized else value

    def _bridged(self, tensor: int, root: int, index: int) -> int:
        """Returns ``index`` as the 16x8 model computes it from a value, with copies of the bridges between."""
        path = []
        while index != root:
            path.append(self._wide.subgraph.producers[index])
            index = path[-1].inputs[0]
        for operator in reversed(path):
            tensor = self.copy(self._source, operator, [tensor])[0]
        return tensor

    def _widen(self, value: int, like: int) -> int:
        """Returns a value of the int8 model as int16, with the scale of a tensor of the 16x8 model."""
        parameters = self._wide.tensor(like).quantization
        assert parameters is not None
        key = (value, float(parameters.scale[0]))
        if key not in self._widened:
            tensor = self.add_tensor(self._source, like)
            self._convert(value, tensor)
            self._widened[key] = tensor
        return self._widened[key]

    def _convert(self, source: int, target: int) -> None:
        """Writes a value, as it is in one tensor, into another: quantized, dequantized, or with another scale."""
        main, schema = self.writer.main, self.writer.schema
        types = {getattr(schema.TensorType, name): np.dtype(name.lower()) for name in ("FLOAT32", "INT8", "UINT8", "INT16")}
        before, after = types[main.tensors[source].type], types[main.tensors[target].type]
        if after == np.float32 or (before != np.float32 and (before, after) not in _REQUANTIZED):
            operator, made = self.writer.dequantize(
                source, _name(main.tensors[source]) + "_float", 3 if before == _INT16 else 2
            )
            self.appended.append(operator)
            if after == np.float32:
                main.tensors.pop()
                operator.outputs = np.array([target], np.int32)
                return
            source = made
        self.appended.append(self.quantize(source, target, after))


def _name(tensor: Any) -> str:
    return (tensor.name or b"").decode("utf-8", "replace")


def _copied(unpacked: Any) -> Any:
    """Returns a copy to be changed: of the lists and of the operators, not of the weights."""
    made = copy.copy(unpacked)
    made.buffers, made.operatorCodes = list(made.buffers), list(made.operatorCodes)
    made.subgraphs = [copy.copy(subgraph) for subgraph in made.subgraphs]
    for subgraph in made.subgraphs:
        subgraph.tensors = [copy.copy(tensor) for tensor in subgraph.tensors]
        subgraph.operators = [copy.copy(operator) for operator in subgraph.operators]
    made.signatureDefs = copy.deepcopy(made.signatureDefs)
    return made


def _without_dead(rows: list[Any], main: Any, before: Collection[Any]) -> list[Any]:
    """Returns the operators without those that only fed what was taken out, and conversions that nobody reads."""
    original = {id(table) for table in before}
    read_before = {int(index) for table in before for index in table.inputs} | {int(index) for index in main.outputs}
    live = {int(index) for index in main.outputs}
    kept = []
    for table in reversed(rows):
        outputs = [int(index) for index in table.outputs]
        # What the int8 model computed without a reader, or for its own sake, is none of our business.
        idle = id(table) in original and not any(index in read_before for index in outputs)
        if idle or not outputs or any(index in live for index in outputs):
            kept.append(table)
            live.update(int(index) for index in table.inputs)
    return kept[::-1]


def _drop_unused_tensors(unpacked: Any) -> None:
    """Removes tensors of the main subgraph that nothing refers to any more, and renumbers the others."""
    main = unpacked.subgraphs[0]
    lists = [main, *main.operators]
    used = {int(index) for table in lists for index in (*table.inputs, *table.outputs)}
    used |= {int(index) for table in main.operators for index in _intermediates(table)}
    signatures = [entry for signature in unpacked.signatureDefs or [] if not signature.subgraphIndex
                  for entry in (*(signature.inputs or []), *(signature.outputs or []))]  # fmt: skip
    used |= {entry.tensorIndex for entry in signatures}
    places = {index: place for place, index in enumerate(sorted(used - {-1}))} | {-1: -1}
    main.tensors = [main.tensors[index] for index in sorted(used - {-1})]
    for table in lists:
        table.inputs = np.array([places[int(index)] for index in table.inputs], np.int32)
        table.outputs = np.array([places[int(index)] for index in table.outputs], np.int32)
    for table in main.operators:
        if table.intermediates is not None:
            table.intermediates = np.array([places[int(index)] for index in table.intermediates], np.int32)
    for entry in signatures:
        entry.tensorIndex = places[entry.tensorIndex]


def _intermediates(table: Any) -> Iterable[int]:
    return () if table.intermediates is None else table.intermediates
