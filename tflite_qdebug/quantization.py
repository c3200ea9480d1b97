"""Quantization parameters, and the two directions between real and integer values.

The arithmetic is that of the TensorFlow Lite kernels, in float32: ``real = scale * (q - zero_point)`` and
``q = clip(round(real / scale) + zero_point)`` with halves rounded away from zero, as ``TfLiteRound`` does
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec). ``numpy.round``, which rounds
halves to even, would be off by one step at every tie.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug.errors import ModelError

__all__ = ["QuantizationParameters"]


class QuantizationParameters:
    """Scale and zero point of one tensor, per tensor or per channel.

    Attributes:
        scale: float32 array ``(channels,)``, one element when quantized per tensor; real units per integer step.
        zero_point: int64 array ``(channels,)``; the integer that stands for 0.0.
        axis: The dimension that the channels run along; 0 and without meaning when quantized per tensor.
    """

    __slots__ = ("axis", "scale", "zero_point")

    def __init__(self, scale: Sequence[float], zero_point: Sequence[int], axis: int = 0) -> None:
        """Checks and keeps the parameters.

        Raises:
            ModelError: Where the lengths differ or there is none. Odd scales pass: models in use have infinite ones on
                tensors that nothing reads, and a view must not refuse them.
        """
        self.scale = np.asarray(scale, dtype=np.float32).reshape(-1)
        self.zero_point = np.asarray(zero_point, dtype=np.int64).reshape(-1)
        self.axis = int(axis)
        if not len(self.scale) or len(self.scale) != len(self.zero_point):
            raise ModelError(
                "got {} scales and {} zero points for one tensor, expected as many of the one as of the other, and at "
                "least one".format(len(self.scale), len(self.zero_point))
            )

    @classmethod
    def from_detail(cls, detail: Mapping[str, Any]) -> Optional[QuantizationParameters]:
        """Reads the parameters of one entry of ``Interpreter.get_tensor_details()``; None for a float tensor."""
        parameters = detail.get("quantization_parameters") or {}
        scale = parameters.get("scales", ())
        zero_point = parameters.get("zero_points", ())
        # Ask for the length: a zero point of 0 is a parameter like any other, and false in a condition.
        if len(scale) == 0 or len(zero_point) == 0:
            return None
        return cls(scale, zero_point, parameters.get("quantized_dimension", 0))

    @property
    def is_per_channel(self) -> bool:
        """True where there is more than one scale."""
        return len(self.scale) > 1

    def _shaped(self, of: Tuple[int, ...]) -> Tuple[np.ndarray, np.ndarray]:
        if not self.is_per_channel:
            return self.scale[0], self.zero_point[0]
        if not 0 <= self.axis < len(of) or of[self.axis] != len(self.scale):
            raise ModelError(
                "the model is broken: got {} scales along axis {} of a tensor of shape {}, expected one for each "
                "channel".format(len(self.scale), self.axis, of)
            )
        shape = [1] * len(of)
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Returns the float32 real values of integers, in the same shape."""
        scale, zero_point = self._shaped(values.shape)
        if values.dtype.itemsize <= 2:  # exact in float32, and that is what the kernels compute
            return (values.astype(np.float32) - np.float32(zero_point)) * scale
        return ((values.astype(np.int64) - zero_point) * scale.astype(np.float64)).astype(np.float32)

    def quantize(self, values: np.ndarray, dtype: Any) -> np.ndarray:
        """Returns the integers of ``dtype`` that stand for real values, clipped to its range, in the same shape."""
        scale, zero_point = self._shaped(values.shape)
        limits = np.iinfo(dtype)
        steps = np.asarray(values, dtype=np.float32) / scale
        rounded = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + zero_point
        return np.clip(rounded, limits.min, limits.max).astype(dtype)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QuantizationParameters)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.axis == other.axis or not self.is_per_channel)
        )

    def __hash__(self) -> int:
        return hash((self.scale.tobytes(), self.zero_point.tobytes()))

    def __repr__(self) -> str:
        if self.is_per_channel:
            return "QuantizationParameters({} channels along axis {})".format(len(self.scale), self.axis)
        return "QuantizationParameters(scale={:.6g}, zero_point={})".format(self.scale[0], self.zero_point[0])
