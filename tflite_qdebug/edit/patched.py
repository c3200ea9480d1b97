"""Constants and scales of a model, overwritten where they lie: nothing moves, and nothing else changes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import Writer, pack, replace_input, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Tensor, refuses_broken_models

__all__ = ["Patch", "with_own_constants"]


class Patch:
    """A copy of a model that is being changed in place.

    Only values can change, not their shapes or types, so the file keeps its size and its structure, and a change costs no more
    than copying it.
    """

    def __init__(self, model: Model) -> None:
        """Copies a model; a change of one tensor reaches every tensor with the same buffer (see `with_own_constants`).

        Raises:
            ModelError: Where the model is broken.
        """
        self._model, self._content = model, bytearray(model.data)
        self._root = tf_private.schema().Model.GetRootAs(self._content, 0)

    def constant(self, index: int, values: np.ndarray) -> None:
        """Overwrites a constant of the main subgraph.

        Args:
            index: The tensor.
            values: Of its shape and type.

        Raises:
            ModelError: Where the tensor is no constant, or the values have another shape or type.
        """
        tensor = self._model.main.tensors[index]
        old = self._model.constant(tensor)
        if values.shape != old.shape or values.dtype != old.dtype:
            raise ModelError(
                f"got values of shape {values.shape} and type {values.dtype} for constant {tensor.name!r}, expected "
                f"{old.shape} and {old.dtype}"
            )
        start = self._model.place(tensor)
        written = np.frombuffer(self._content, np.uint8, old.nbytes, start)
        written[:] = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)

    def quantization(self, index: int, scale: Any, zero_point: Any) -> None:
        """Overwrites scale and zero point of a tensor of the main subgraph.

        Args:
            index: The tensor.
            scale: As many as it has, one or one per channel.
            zero_point: Likewise.

        Raises:
            ModelError: Where the tensor has none, or another number of them.
        """
        tensor = self._model.main.tensors[index]
        parameters = self._root.Subgraphs(0).Tensors(index).Quantization()
        scales, zero_points = np.atleast_1d(np.asarray(scale, np.float32)), np.atleast_1d(np.asarray(zero_point, np.int64))
        had = (0, 0) if parameters is None else (parameters.ScaleLength(), parameters.ZeroPointLength())
        if parameters is None or had != (scales.size, zero_points.size):
            raise ModelError(
                f"got {scales.size} scales and {zero_points.size} zero points for tensor {tensor.name!r}, expected {had[0]} "
                f"and {had[1]}"
            )
        parameters.ScaleAsNumpy()[:] = scales
        parameters.ZeroPointAsNumpy()[:] = zero_points

    def data(self) -> bytes:
        """Returns the changed model."""
        return bytes(self._content)


@refuses_broken_models
def with_own_constants(model: Model, tensors: Collection[int]) -> bytes:
    """Returns the model with those constants read by one operator each, and kept in buffers of their own.

    What is shared is copied, so that one can be changed without the others; the model itself where nothing is shared.

    Args:
        model: The model.
        tensors: Constants of its main subgraph. The copies stand behind all other tensors.
    """
    wanted = set(tensors)
    readers = Counter(index for operator in model.main.operators for index in operator.inputs)
    holders = Counter(tensor.buffer for subgraph in model.subgraphs for tensor in subgraph.tensors)
    if not any(readers[index] > 1 or holders[model.main.tensors[index].buffer] > 1 for index in wanted):
        return model.data
    unpacked = unpack(model)
    writer = Writer(unpacked)
    seen: set[int] = set()
    for operator in model.main.operators:
        for position, index in enumerate(operator.inputs):
            if index not in wanted:
                continue
            if index in seen:
                replace_input(
                    writer.main.operators[operator.index], position, _copied(writer, model, model.main.tensors[index])
                )
            elif holders[model.main.tensors[index].buffer] > 1:
                writer.main.tensors[index].buffer = writer.add_values(model.constant(model.main.tensors[index]))
            seen.add(index)
    return pack(unpacked)


def _copied(writer: Writer, model: Model, tensor: Tensor) -> int:
    table = copy.copy(writer.main.tensors[tensor.index])
    table.buffer = writer.add_values(model.constant(tensor))
    table.name = f"{tensor.name}_{len(writer.main.tensors)}".encode()
    writer.main.tensors.append(table)
    return len(writer.main.tensors) - 1
