"""One sample at a time: sizes that a float model leaves open are fixed, and what was computed from them becomes constant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_buffers, drop_unused_codes, expose, pack, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model, refuses_broken_models

__all__ = ["with_static_shapes"]

# What they give does not follow from the values that they read.
_NOT_FOLDED = ("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL", "VAR_HANDLE", "READ_VARIABLE", "CALL_ONCE", "WHILE",
               "IF", "HASHTABLE")  # fmt: skip
# Elements. A larger constant would make the file larger for nothing.
_LARGEST = 1 << 16


@refuses_broken_models
def with_static_shapes(model: Model) -> tuple[bytes, tuple[str, ...]]:
    """Returns the float model for a batch of 1, all of its sizes fixed, and what was changed, in sentences.

    Keras leaves the batch open and computes the shapes of some layers from it when the model runs (SHAPE, STRIDED_SLICE, PACK
    before a RESHAPE). With the batch fixed these follow from the file alone; they are computed here, once, and stand as
    constants in the model. Names of tensors stay.

    Args:
        model: Of float values, with one subgraph.

    Raises:
        ModelError: Where a size other than the batch is open, or the model has several subgraphs.
        InterpreterError: Where the model does not run.
    """
    if len(model.subgraphs) > 1:
        raise ModelError(
            f"got a model of {len(model.subgraphs)} subgraphs, expected one: the Edge TPU takes the main one alone"
        )
    opened = [tensor for tensor in (model.main.tensors[index] for index in model.main.inputs) if -1 in tensor.shape]
    wrong = [tensor for tensor in opened if -1 in tensor.shape[1:]]
    if wrong:
        raise ModelError(
            f"input {wrong[0].name!r} has shape {wrong[0].shape}, of which more than the batch is open; expected fixed sizes: "
            "give the Keras model an Input with a full shape, or the SavedModel a signature with one"
        )
    unpacked = unpack(model)
    for tensor in unpacked.subgraphs[0].tensors:
        tensor.shapeSignature = None
    fixed = Model(pack(unpacked))
    folded = _follows_from_shapes(fixed)
    values, shapes = _computed(fixed, folded)
    content = _rewritten(fixed, values, shapes)
    changes = [f"input {tensor.name!r} takes one sample: {tensor.shape} became {(1, *tensor.shape[1:])}" for tensor in opened]
    gone = len(fixed.main.operators) - len(Model(content).main.operators)
    if gone:
        changes.append(f"{gone} operators that computed shapes are constants now")
    return content, tuple(changes)


def _follows_from_shapes(model: Model) -> dict[int, int]:
    """Returns ``{tensor: its operator}`` of what the file alone decides, once the sizes of the inputs are fixed."""
    tensors, found = model.main.tensors, dict[int, int]()
    for operator in model.main.operators:
        read = [index for index in operator.inputs if index >= 0]
        known = all(tensors[index].is_constant or index in found for index in read)
        from_shape = operator.name in ("SHAPE", "RANK") or (known and any(index in found for index in read))
        if from_shape and operator.name not in _NOT_FOLDED and not set(operator.outputs) & set(model.main.outputs):
            found.update(dict.fromkeys(operator.outputs, operator.index))
    return found


def _computed(model: Model, folded: Mapping[int, int]) -> tuple[dict[int, np.ndarray], dict[int, tuple[int, ...]]]:
    """Returns the values of these tensors, and the shapes of all; what differs between two samples is left out."""
    interpreter = Interpreter(expose(model, folded), kernels="builtin")
    generator = np.random.default_rng(0)
    seen: list[dict[int, np.ndarray]] = []
    for scale in (0.0, 1.0):
        interpreter.invoke([_sample(info.shape, info.dtype, scale, generator) for info in interpreter.inputs])
        seen.append({index: interpreter.read(index) for index in folded})
    equal = {
        index: values for index, values in seen[0].items()
        if values.size <= _LARGEST and np.array_equal(values, seen[1][index])
    }  # fmt: skip
    shapes = {index: info.shape for index, info in interpreter.tensor_infos().items() if index < len(model.main.tensors)}
    return equal, shapes


def _sample(shape: Sequence[int], dtype: Any, scale: float, generator: np.random.Generator) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return (scale * generator.uniform(0.1, 0.9, shape)).astype(dtype)
    return np.full(shape, scale, dtype)


def _rewritten(model: Model, values: Mapping[int, np.ndarray], shapes: Mapping[int, Sequence[int]]) -> bytes:
    """Writes the constants and drops the operators that nothing reads any more."""
    unpacked = unpack(model)
    writer = Writer(unpacked)
    for index, tensor in enumerate(writer.main.tensors):
        if index in values:
            tensor.buffer = writer.add_values(values[index])
        if index in shapes and not model.main.tensors[index].is_constant:
            tensor.shape = np.array(shapes[index], np.int32)
    constants = set(values)
    writer.main.operators = [
        row for row, operator in zip(writer.main.operators, model.main.operators, strict=True)
        if not operator.outputs or not set(operator.outputs) <= constants
    ]  # fmt: skip
    _drop_unread(writer.main, constants)
    drop_unused_codes(unpacked)
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def _drop_unread(main: Any, constants: Collection[int]) -> None:
    """Empties the constants that only dropped operators read."""
    read = {int(index) for operator in main.operators for index in operator.inputs} | set(map(int, main.outputs))
    for index in constants:
        if index not in read:
            main.tensors[index].buffer = 0
