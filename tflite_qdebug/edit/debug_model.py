"""What a debug model is: a model that computes each layer both ways, and which of its tensors are to be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.record import Layer

__all__ = ["ADDED", "BRIDGES", "NUMERIC_VERIFY", "DebugModel", "tensors_of"]

NUMERIC_VERIFY = "NumericVerify"
# Operators that only carry values between float and integers.
BRIDGES = ("QUANTIZE", "DEQUANTIZE")
# Operators that a debug model has and the model that it was made from has not.
ADDED = (*BRIDGES, NUMERIC_VERIFY)


@dataclasses.dataclass(frozen=True)
class DebugModel:
    """A model that computes each layer both ways, and which of its tensors are to be compared.

    Attributes:
        data: The ``.tflite``; all tensors to be compared are outputs, behind the model's own.
        layers: The pairs.
        outputs: Number of the model's own outputs.
        stateful: True where it has variables.
        verify: ``per_layer`` or ``whole_model``.
        notes: What the reader of a result must know.
        inputs: What the model expects of a sample, in input order.
    """

    data: bytes
    layers: tuple[Layer, ...]
    outputs: int
    stateful: bool
    verify: str
    notes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()


def tensors_of(layers: Iterable[Layer]) -> list[int]:
    """Returns the tensors that the layers compare, in pairs."""
    return [index for layer in layers for index in (layer.tensor_idx, layer.float_idx)]
