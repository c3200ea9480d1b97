"""Layers with weights as products of matrices: which inputs each weight meets at each position of the output."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tflite_qdebug.errors import ModelError

__all__ = ["Geometry"]

# Elements of a matrix that is made at once: a large image is taken in bands of rows.
_MOST_ELEMENTS = 2**22
_VALID = 1


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a layer with weights walks over its input.

    Weights and inputs are brought into one form: ``groups`` groups of channels that share their inputs. Within a group, each
    output at each position is the sum of ``features`` products, of the group's inputs and of the channel's weights.

    Attributes:
        op_name: One of `operators.WEIGHTED`.
        shape: Of the weights.
        groups: How many groups of output channels have inputs of their own: the input channels of a depthwise convolution.
        features: Weights of one output channel.
        channels: Output channels of each group.
        stride: Vertical and horizontal; 1 for a dense layer.
        dilation: Likewise.
        valid: Padding is VALID; else SAME.
    """

    op_name: str
    shape: tuple[int, ...]
    groups: int
    features: int
    channels: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    valid: bool = True

    @classmethod
    def of(cls, op_name: str, shape: tuple[int, ...], depth: int, options: Any) -> Geometry:
        """Reads the geometry of an operator.

        Args:
            op_name: One of `operators.WEIGHTED`.
            shape: Of its weights.
            depth: Channels of its input; of no interest for a dense layer.
            options: Its builtin options, as the object API of the schema gives them; None for the defaults.

        Raises:
            ModelError: Where the weights do not fit the input.
        """
        if op_name == "FULLY_CONNECTED":
            if len(shape) != 2:
                raise ModelError(f"the model is broken: FULLY_CONNECTED has weights of shape {shape}, expected two dimensions")
            return cls(op_name, shape, 1, shape[1], shape[0])
        if len(shape) != 4:
            raise ModelError(f"the model is broken: {op_name} has weights of shape {shape}, expected four dimensions")
        stride = (getattr(options, "strideH", 1) or 1, getattr(options, "strideW", 1) or 1)
        dilation = (getattr(options, "dilationHFactor", 1) or 1, getattr(options, "dilationWFactor", 1) or 1)
        valid = getattr(options, "padding", 0) == _VALID
        taps = shape[1] * shape[2]
        if op_name == "DEPTHWISE_CONV_2D":
            groups, rest, features, channels = depth, shape[3] % max(depth, 1), taps, shape[3] // max(depth, 1)
        else:
            groups, rest = divmod(depth, max(shape[3], 1))
            rest = rest or (shape[0] % groups if groups else 1)
            features, channels = taps * shape[3], shape[0] // max(groups, 1)
        if rest or not groups:
            raise ModelError(f"the model is broken: {op_name} has weights of shape {shape} for an input of {depth} channels")
        return cls(op_name, shape, groups, features, channels, stride, dilation, valid)

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """Returns weights, or what has their shape, as ``(groups, channels, features)``."""
        if self.op_name == "DEPTHWISE_CONV_2D":
            return weights.reshape(self.features, self.groups, self.channels).transpose(1, 2, 0)
        return weights.reshape(self.groups, self.channels, self.features)

    def weights(self, matrix: np.ndarray) -> np.ndarray:
        """Returns weights in the operator's shape, from what `matrix` gives."""
        if self.op_name == "DEPTHWISE_CONV_2D":
            return np.ascontiguousarray(matrix.transpose(2, 0, 1)).reshape(self.shape)
        return np.ascontiguousarray(matrix).reshape(self.shape)

    def per_channel(self, values: np.ndarray) -> np.ndarray:
        """Returns one value for all output channels, or one for each in the file's order, as ``(groups, channels)``."""
        return np.broadcast_to(values.reshape(-1), (self.groups * self.channels,)).reshape(self.groups, self.channels)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a convolution's output; those of a transposed one are its own choice."""
        sizes = []
        for size, kernel, stride, dilation in zip((height, width), self.shape[1:3], self.stride, self.dilation, strict=True):
            reach = (kernel - 1) * dilation if self.valid else 0
            sizes.append(max(0, -(-(size - reach) // stride)))
        return sizes[0], sizes[1]

    def inputs(self, values: np.ndarray, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Yields the inputs that the weights meet, as ``(groups, positions, features)``, in bands of rows of the output.

        Args:
            values: The layer's input, ``(batch, height, width, channels)``, less its zero point: padding is 0. For a dense
                layer any shape.
            size: Height and width of a transposed convolution's output.
        """
        if self.op_name == "FULLY_CONNECTED":
            rows = values.reshape(1, -1, self.features)
            at_once = max(1, _MOST_ELEMENTS // self.features)
            yield from (rows[:, start : start + at_once] for start in range(0, rows.shape[1], at_once))
            return
        _, height, width, depth = values.shape
        size = size or self.output_size(height, width)
        down, across = (self._sources(axis, values.shape[1 + axis], size[axis]) for axis in (0, 1))
        at_once = max(1, _MOST_ELEMENTS // max(1, size[1] * self.shape[1] * self.shape[2] * depth))
        # One more row and column, of zeros, for what lies outside.
        padded = np.pad(values, ((0, 0), (0, 1), (0, 1), (0, 0)))
        for image in padded:
            for start in range(0, size[0], at_once):
                band = down[start : start + at_once]
                taken = image[band[:, np.newaxis, :, np.newaxis], across[np.newaxis, :, np.newaxis, :]]
                yield self._grouped(taken.reshape(len(band) * size[1], -1, depth))

    def _sources(self, axis: int, size: int, output: int) -> np.ndarray:
        """Returns which row or column each output reads at each tap, ``(output, taps)``; ``size`` for one outside."""
        kernel, stride, dilation = self.shape[1 + axis], self.stride[axis], self.dilation[axis]
        places, taps = np.arange(output)[:, np.newaxis], np.arange(kernel)
        if self.op_name == "TRANSPOSE_CONV":
            # Each input is spread over outputs; seen from an output, only every stride-th tap meets one.
            before = max((size - 1) * stride + kernel - output, 0) // 2
            spread = places + before - taps
            found = np.where(spread % stride == 0, spread // stride, size)
        else:
            needed = (output - 1) * stride + (kernel - 1) * dilation + 1
            before = 0 if self.valid else max(needed - size, 0) // 2
            found = places * stride - before + taps * dilation
        return np.where((found >= 0) & (found < size), found, size)

    def _grouped(self, taken: np.ndarray) -> np.ndarray:
        positions = len(taken)
        if self.op_name == "DEPTHWISE_CONV_2D":
            return taken.transpose(2, 0, 1)
        split = taken.reshape(positions, taken.shape[1], self.groups, -1)
        return split.transpose(2, 0, 1, 3).reshape(self.groups, positions, self.features)

    @property
    def elements(self) -> int:
        """Numbers that the sums of products take, see `integer_fit.Moments`."""
        return self.groups * (self.features * (self.features + 1 + self.channels) + 2 * self.channels)

    def raw_elements(self, positions: int) -> int:
        """Numbers that the inputs and outputs of so many positions take."""
        return self.groups * positions * (self.features + self.channels)

    def positions(self, shape: tuple[int, ...], size: tuple[int, int] | None = None) -> int:
        """Returns how many positions the output of an input of that shape has."""
        if self.op_name == "FULLY_CONNECTED":
            return math.prod(shape) // self.features
        return shape[0] * math.prod(size or self.output_size(shape[1], shape[2]))
