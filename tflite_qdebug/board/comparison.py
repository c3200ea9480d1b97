"""How far the outputs of a model are from those that were expected, in quantization steps; mergeable sums."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

import numpy as np

from tflite_qdebug.errors import ModelError

__all__ = ["StepDifference", "outputs_difference"]


class StepDifference(NamedTuple):
    """Differences of integers, or of floats that stand for integers, in steps; sums over elements.

    Attributes:
        elements: How many were compared.
        differing: How many differ by half a step or more.
        over_one: How many differ by more than a step.
        largest: The largest difference.
        one_sided: How many are NaN or infinite on one side alone.
    """

    elements: int = 0
    differing: int = 0
    over_one: int = 0
    largest: float = 0.0
    one_sided: int = 0

    def plus(self, other: StepDifference) -> StepDifference:
        """Returns the differences of both."""
        return StepDifference(
            self.elements + other.elements,
            self.differing + other.differing,
            self.over_one + other.over_one,
            max(self.largest, other.largest),
            self.one_sided + other.one_sided,
        )


def outputs_difference(
    outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], steps: Sequence[Optional[float]]
) -> StepDifference:
    """Returns how far outputs are off, over all of them that have a step.

    Args:
        outputs: In output order.
        expected: In the same order, of the same shapes and types.
        steps: For each output, real units per step; None leaves out a float output, which has none.

    Raises:
        ModelError: Where the number, the shapes or the types differ.
    """
    described = [[(tuple(array.shape), array.dtype.name) for array in arrays] for arrays in (outputs, expected)]
    if described[0] != described[1]:
        raise ModelError("got outputs of shape and type {}, expected {}: not the same model".format(described[0], described[1]))
    total = StepDifference()
    for array, reference, step in zip(outputs, expected, steps):
        if array.dtype.kind not in "iub" and step is None:
            continue
        unit = 1.0 if array.dtype.kind in "iub" else float(step or 1.0)
        ours, theirs = array.astype(np.float64), reference.astype(np.float64)
        one_sided = np.isfinite(ours) != np.isfinite(theirs)
        with np.errstate(invalid="ignore"):
            difference = np.abs(ours - theirs) / unit
        difference = difference[np.isfinite(difference)]
        total = total.plus(
            StepDifference(
                int(array.size),
                int(np.count_nonzero(difference >= 0.5)),
                # A float output holds the integer times its scale, rounded to float32.
                int(np.count_nonzero(difference > 1.01)),
                float(difference.max()) if difference.size else 0.0,
                int(np.count_nonzero(one_sided)),
            )
        )
    return total
