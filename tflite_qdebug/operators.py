"""What is known of operators by their type alone."""

from __future__ import annotations

__all__ = ["OPERANDS", "WEIGHTED"]

#: Positions of data, weights and bias among the inputs of the operators whose kernels give an integer bias the scale of data
#: times weights.
OPERANDS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "CONV_3D": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
#: Those of them whose weights can be fitted, equalized and stored; CONV_3D has no integer kernel.
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
