"""What a debug model is: a model that computes each layer both ways, and which of its tensors are to be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.match import BRIDGES
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.record import Layer

__all__ = ["ADDED", "BRIDGES", "NUMERIC_VERIFY", "PARTS", "DebugModel", "tensors_of"]

NUMERIC_VERIFY = "NumericVerify"
#: The parts of an error. With ``e`` the float twin on dequantized inputs: ``weights``: the same twin with dequantized weights,
#: less ``e``; ``output``: the quantized operator less that twin, so rounding, clipping and the kernel's own arithmetic;
#: ``input``: ``e`` less the float model on its own inputs; ``accumulated``: the sum of the three. Apart from these, ``own``:
#: the quantized operator less the float twin, both on the float model's own values, rounded as the operator's inputs are:
#: what it adds where all before it is sound.
PARTS = ("weights", "output", "input", "accumulated", "own")
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
        scales: For each input that the quantized model takes as integers, and this one as float32: their scale.
        parts: Of what each layer's error is made: for each name of `PARTS` one more pair of tensors per layer, None where the
            part does not exist.
        whole: Each output of the model against the float model's: ``quantized``, with ``weights`` alone quantized, and with
            ``activations`` alone.
    """

    data: bytes
    layers: tuple[Layer, ...]
    outputs: int
    stateful: bool
    verify: str
    notes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    scales: tuple[QuantizationParameters | None, ...] = ()
    parts: Mapping[str, tuple[Layer | None, ...]] = dataclasses.field(default_factory=dict)
    whole: Mapping[str, tuple[Layer, ...]] = dataclasses.field(default_factory=dict)


def tensors_of(layers: Iterable[Layer]) -> list[int]:
    """Returns the tensors that the layers compare, in pairs."""
    return [index for layer in layers for index in (layer.tensor_idx, layer.float_idx)]
