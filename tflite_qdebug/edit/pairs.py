"""A debug model out of a float model and the model quantized from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tflite_qdebug.edit.debug_model import ADDED, NUMERIC_VERIFY, DebugModel, tensors_of
from tflite_qdebug.edit.flatbuffer import Writer, append_outputs, pack, require_single_subgraph, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Operator, Tensor
from tflite_qdebug.record import Layer

__all__ = ["debug_pair"]


def debug_pair(float_model: Model, quantized_model: Model, whole_model: bool = False) -> DebugModel:
    """Builds a debug model out of a float model and the model quantized from it.

    Each operator of the float model whose twin in the quantized model computes something else gets copied into the
    latter: with the float constants, and on inputs that are the dequantized inputs of its twin (per layer), or the
    copies' own outputs throughout (whole model). The two are matched by the names of their output tensors, which
    TensorFlow's quantizers keep.

    Raises:
        ModelError: Where there is more than one subgraph, or no operator can be matched.
    """
    for model in (float_model, quantized_model):
        require_single_subgraph(model, "the debugger")
    builder = _PairBuilder(float_model, quantized_model, whole_model)
    for operator in float_model.main.operators:
        builder.add(operator)
    if not builder.layers:
        raise ModelError(
            "Please check if the quantized model is in debug mode: no operator of the quantized model computes anything "
            "differently from its namesake in the float model, so there is nothing to compare"
        )
    return builder.finish()


class _PairBuilder:
    """Copies float operators into a quantized model, one after another."""

    def __init__(self, float_model: Model, quantized_model: Model, whole_model: bool) -> None:
        self._float, self._quantized, self._whole = float_model, quantized_model, whole_model
        self._source = unpack(float_model)
        self._unpacked = unpack(quantized_model)
        self._writer = Writer(self._unpacked)
        self._own_outputs = len(self._writer.main.outputs)
        self._dequantized: dict[int, int] = {}
        self._copied: dict[int, int] = {}
        self._appended: list[Any] = []
        self.layers: list[Layer] = []
        self._by_name: dict[str, list[Tensor]] = {}
        for tensor in quantized_model.main.tensors:
            self._by_name.setdefault(tensor.name, []).append(tensor)
        self._inputs = dict(zip(float_model.main.inputs, quantized_model.main.inputs, strict=True))
        if whole_model:
            self._copied = {source: self._as_float(target) for source, target in self._inputs.items()}

    def _twin(self, tensor: Tensor, op_name: str) -> tuple[Tensor, Operator] | None:
        """Returns the quantized model's tensor of that name, made by an operator of that type, and the operator."""
        # TensorFlow's quantizers give a model output's name to its dequantized copy, and itself a suffix.
        for name in (tensor.name, tensor.name + "_int16", tensor.name + "_int8"):
            for candidate in self._by_name.get(name, ()):
                made, producer = candidate, self._quantized.main.producers.get(candidate.index)
                if producer is not None and producer.name in ADDED and op_name not in ADDED:
                    made = self._quantized.main.tensors[producer.inputs[0]]
                    producer = self._quantized.main.producers.get(made.index)
                if producer is not None and producer.name == op_name:
                    return made, producer
        return None

    def _counterpart(self, index: int) -> int | None:
        """Returns the quantized model's tensor that holds what a float activation holds."""
        if index in self._inputs:
            return self._inputs[index]
        tensor = self._float.main.tensors[index]
        producer = self._float.main.producers.get(index)
        twin = self._twin(tensor, producer.name) if producer else None
        return twin[0].index if twin else None

    def _as_float(self, index: int) -> int:
        tensor = self._quantized.main.tensors[index]
        if not tensor.is_quantized:
            return index
        if index not in self._dequantized:
            operator, target = self._writer.dequantize(index, tensor.name + "_verify", 2)
            self._appended.append(operator)
            self._dequantized[index] = target
        return self._dequantized[index]

    def _copy_tensor(self, index: int) -> int:
        """Copies a tensor of the float model with its values, if it has any."""
        tensor = copy.copy(self._source.subgraphs[0].tensors[index])
        if self._float.main.tensors[index].is_constant:
            self._unpacked.buffers.append(self._source.buffers[tensor.buffer])
            tensor.buffer = len(self._unpacked.buffers) - 1
        else:
            tensor.buffer = 0
        tensor.name = (tensor.name or b"") + b"_float"
        self._writer.main.tensors.append(tensor)
        return len(self._writer.main.tensors) - 1

    def _input(self, index: int) -> int | None:
        if index < 0:
            return index
        tensor = self._float.main.tensors[index]
        computed = index in self._float.main.producers or index in self._inputs
        if self._whole and index in self._copied:
            return self._copied[index]
        if not computed:  # a constant, or a variable
            if index not in self._copied:
                self._copied[index] = self._copy_tensor(index)
            return self._copied[index]
        counterpart = self._counterpart(index)
        return None if counterpart is None else self._as_float(counterpart) if tensor.is_float else counterpart

    def add(self, operator: Operator) -> None:
        """Copies one operator, and makes a layer of each of its outputs that has a twin."""
        tensors = self._float.main.tensors
        twins = {output: self._twin(tensors[output], operator.name) for output in operator.outputs}
        matched = [twin for twin in twins.values() if twin is not None]
        if not self._whole and not any(self._differs(operator, *twin) for twin in matched):
            return
        inputs = [self._input(index) for index in operator.inputs]
        if any(index is None for index in inputs):
            return
        outputs = [self._copy_tensor(index) for index in operator.outputs]
        table = copy.copy(self._source.subgraphs[0].operators[operator.index])
        code = self._source.operatorCodes[table.opcodeIndex]
        table.opcodeIndex = self._writer.add_code(operator.name, code.version, code.customCode)
        table.inputs, table.outputs = np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)
        self._appended.append(table)
        for output, copied in zip(operator.outputs, outputs, strict=True):
            self._copied[output] = copied
            twin = twins[output]
            if twin is not None and tensors[output].is_float:
                self._add_layer(tensors[output], *twin, copied)

    def _differs(self, operator: Operator, tensor: Tensor, twin: Operator) -> bool:
        """True where the twin quantizes its output, or reads weights that are not the float ones."""
        if tensor.is_quantized:
            return True
        main = self._quantized.main
        for theirs, ours in zip(twin.inputs, operator.inputs, strict=False):
            if ours < 0 or theirs < 0 or not self._float.main.tensors[ours].is_constant:
                continue
            if not main.tensors[theirs].is_constant or not main.tensors[theirs].is_float:
                return self._float.main.tensors[ours].is_float
        return False

    def _add_layer(self, reference: Tensor, quantized: Tensor, twin: Operator, copied: int) -> None:
        parameters = quantized.quantization if quantized.is_quantized else None
        self.layers.append(
            Layer(
                node=reference.name,
                op_name=twin.name,
                operator=twin.index,
                tensor_name=quantized.name,
                tensor_idx=quantized.index,
                float_idx=copied,
                shape=quantized.shape,
                dtype=quantized.dtype.name,
                scale=None if parameters is None else float(parameters.scale[0]),
                zero_point=None if parameters is None else int(parameters.zero_point[0]),
                key=f"{NUMERIC_VERIFY}/{quantized.name}:{quantized.index}",
            )
        )

    def finish(self) -> DebugModel:
        """Writes the debug model."""
        layers = tuple(self.layers)
        self._writer.main.operators = [*self._writer.main.operators, *self._appended]
        append_outputs(self._unpacked, tensors_of(layers))
        models = (self._float, self._quantized)
        stateful = any(tensor.is_variable for model in models for tensor in model.main.tensors)
        verify = "whole_model" if self._whole else "per_layer"
        inputs = tuple(self._quantized.input_specs())
        return DebugModel(pack(self._unpacked), layers, self._own_outputs, stateful, verify, inputs=inputs)
