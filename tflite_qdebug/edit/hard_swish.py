"""HARD_SWISH as additions and products, which have integer kernels of 16 bits; HARD_SWISH has none."""

from __future__ import annotations

from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_codes, pack, unpack
from tflite_qdebug.model import Model

__all__ = ["HARD_SWISH_RANGES", "unfold_hard_swish"]

#: Ranges of the two values between, in the order of their tensors: ``relu6(x + 3)`` and a sixth of it.
HARD_SWISH_RANGES = ((0.0, 6.0), (0.0, 1.0))


def unfold_hard_swish(model: Model) -> tuple[bytes, dict[int, tuple[float, float]]]:
    """Returns the float model with each HARD_SWISH of its main subgraph as ``x * (relu6(x + 3) / 6)``, its definition.

    (Howard et al., Searching for MobileNetV3, 2019, section 5.2.) All tensors keep their index; new ones stand behind them.

    Returns:
        The model, and ``{new tensor: (minimum, maximum)}`` of the values between; the model itself without any.
    """
    places = [operator for operator in model.main.operators if operator.name == "HARD_SWISH"
              and model.main.tensors[operator.outputs[0]].is_float]  # fmt: skip
    if not places:
        return model.data, {}
    unpacked = unpack(model)
    writer = Writer(unpacked)
    schema = writer.schema
    three, sixth = _constant(writer, "hard_swish/three", 3.0), _constant(writer, "hard_swish/sixth", 1 / 6)
    ranges: dict[int, tuple[float, float]] = {}
    rows: list[Any] = list(writer.main.operators)
    for operator in reversed(places):
        read, written = operator.inputs[0], operator.outputs[0]
        like, name = writer.main.tensors[written], model.main.tensors[written].name
        shifted, gate = (writer.add_tensor(f"{name}/{part}", like, schema.TensorType.FLOAT32) for part in ("relu6", "gate"))
        ranges.update(zip((shifted, gate), HARD_SWISH_RANGES, strict=True))
        rows[operator.index : operator.index + 1] = [
            _binary(writer, "ADD", read, three, shifted, schema.ActivationFunctionType.RELU6),
            _binary(writer, "MUL", shifted, sixth, gate, schema.ActivationFunctionType.NONE),
            _binary(writer, "MUL", read, gate, written, schema.ActivationFunctionType.NONE),
        ]
    writer.main.operators = rows
    drop_unused_codes(unpacked)
    return pack(unpacked), ranges


def _constant(writer: Writer, name: str, value: float) -> int:
    tensor = writer.schema.TensorT()
    tensor.name, tensor.type = name.encode(), writer.schema.TensorType.FLOAT32
    tensor.shape, tensor.hasRank = np.zeros(0, np.int32), True
    tensor.buffer = writer.add_values(np.array(value, np.float32))
    writer.main.tensors.append(tensor)
    return len(writer.main.tensors) - 1


def _binary(writer: Writer, name: str, first: int, second: int, output: int, activation: int) -> Any:
    schema, operator = writer.schema, writer.schema.OperatorT()
    operator.opcodeIndex = writer.add_code(name, 1)
    operator.inputs, operator.outputs = np.array([first, second], np.int32), np.array([output], np.int32)
    kind = "AddOptions" if name == "ADD" else "MulOptions"
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    operator.builtinOptions = getattr(schema, kind + "T")()
    operator.builtinOptions.fusedActivationFunction = activation
    return operator
