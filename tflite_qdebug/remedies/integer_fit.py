"""Integers for the weights of a layer for the least squared error of its output, from sums over its inputs.

Rounding each weight to the nearest integer is best for the weights, not for their sums: what one weight loses another can make
good. The error of an output channel is a quadratic form in its weights (Nagel et al. 2020, https://arxiv.org/abs/2004.10568,
section 3), of which the sums of products of the inputs are the matrix. It is lowered in two steps, neither of which trains:
columns are rounded one after another and each error is passed on to those not rounded yet (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323), then single weights are moved as long as that lowers the error.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["Moments", "Problem", "Solution", "solve"]

# Columns whose errors are passed on at once.
_BLOCK = 64
_MOST_SWEEPS = 30


class Moments:
    """Sums over positions and samples of what the error of a layer's output depends on.

    With inputs x as ``(groups, features)`` and outputs y as ``(groups, channels)`` at each position:

    Attributes:
        count: Positions.
        xx: Sum of x x^T, ``(groups, features, features)``.
        x: Sum of x, ``(groups, features)``.
        yx: Sum of y x^T, ``(groups, channels, features)``.
        y: Sum of y, ``(groups, channels)``.
        yy: Sum of y^2, ``(groups, channels)``.
    """

    def __init__(self, groups: int, channels: int, features: int) -> None:
        """Begins with nothing."""
        self.count = 0
        self.xx, self.x = np.zeros((groups, features, features)), np.zeros((groups, features))
        self.yx, self.y = np.zeros((groups, channels, features)), np.zeros((groups, channels))
        self.yy = np.zeros((groups, channels))

    def add(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Adds positions: inputs ``(groups, positions, features)``, outputs ``(groups, channels, positions)``, float64."""
        self.count += inputs.shape[1]
        self.xx += inputs.transpose(0, 2, 1) @ inputs
        self.x += inputs.sum(1)
        self.yx += outputs @ inputs
        self.y += outputs.sum(2)
        self.yy += (outputs**2).sum(2)

    def __iadd__(self, other: Moments) -> Moments:
        self.count += other.count
        for name in ("xx", "x", "yx", "y", "yy"):
            array = getattr(self, name)
            array += getattr(other, name)
        return self

    @property
    def finite(self) -> bool:
        """True where nothing is NaN or infinite."""
        return all(bool(np.isfinite(array).all()) for array in (self.xx, self.x, self.yx, self.yy))


@dataclasses.dataclass(frozen=True)
class Problem:
    """The weights of a layer, and what they may become.

    All arrays are ``(groups, channels, features)`` or, marked so, ``(groups, channels)``.

    Attributes:
        integers: As they are.
        wanted: The float weights, in steps of the integers: real numbers.
        lowest: Least integer that each may become.
        highest: Greatest.
        step: What a product of integers of input and weight is worth, ``(groups, channels)``.
        bias: Of the quantized layer, as real numbers, ``(groups, channels)``.
        float_bias: Of the float layer.
        free_bias: The bias follows, so that the mean error is 0; it is a multiple of ``step`` then.
    """

    integers: np.ndarray
    wanted: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    step: np.ndarray
    bias: np.ndarray
    float_bias: np.ndarray
    free_bias: bool = False

    @property
    def movable(self) -> np.ndarray:
        """True for channels in which some weight may move, ``(groups, channels)``."""
        return np.asarray((self.lowest < self.highest).any(2))


@dataclasses.dataclass(frozen=True)
class Solution:
    """Weights, float64 though integers, and the bias that goes with them."""

    integers: np.ndarray
    bias: np.ndarray

    def errors(self, problem: Problem, moments: Moments) -> np.ndarray:
        """Returns the mean squared error of the output of each channel, ``(groups, channels)``."""
        k, step, bias = self.integers, problem.step, self.bias
        square = (k @ moments.xx * k).sum(2) * step**2
        cross = ((moments.yx - bias[..., np.newaxis] * moments.x[:, np.newaxis]) * k).sum(2) * step
        rest = moments.yy - 2 * bias * moments.y + moments.count * bias**2
        found: np.ndarray = np.maximum(square - 2 * cross + rest, 0.0) / max(moments.count, 1)
        return found

    def where(self, chosen: np.ndarray, other: Solution) -> Solution:
        """Returns this one where ``chosen``, ``(groups, channels)``, is True, else the other."""
        integers = np.where(chosen[..., np.newaxis], self.integers, other.integers)
        return Solution(integers, np.where(chosen, self.bias, other.bias))


def solve(problem: Problem, moments: Moments, aim: str, damping: float) -> Solution:
    """Returns weights for the least squared error of the output, never worse than what they are by the damped objective.

    Args:
        problem: The layer.
        moments: Of its inputs, as the integers less the zero point, and of the float layer's outputs.
        aim: ``float``: the outputs of the float layer in the float model. ``own``: those of the float layer on the same
            inputs, so that errors of the layers before are not made good.
        damping: Weight of the squared error of the weights themselves, in shares of the inputs' mean square. It keeps the
            weights from following what these samples alone ask for.
    """
    matrix, target = _quadratic(problem, moments, aim)
    share = damping * np.trace(matrix, axis1=1, axis2=2) / matrix.shape[1]
    live = share > 0
    share = np.where(live, share, 1.0)
    matrix = np.where(live[:, np.newaxis, np.newaxis], matrix, 0.0) + share[:, np.newaxis, np.newaxis] * np.eye(matrix.shape[1])
    target = np.where(live[:, np.newaxis, np.newaxis], target, 0.0) + share[:, np.newaxis, np.newaxis] * problem.wanted
    passed_on = _descended(problem, matrix, target, _passed_on(problem, matrix, target))
    moved = _descended(problem, matrix, target, problem.integers.astype(np.float64))
    better = _objective(matrix, target, passed_on) < _objective(matrix, target, moved)
    integers = np.where(better[..., np.newaxis], passed_on, moved)
    return Solution(integers, _bias(problem, moments, integers, aim))


def _quadratic(problem: Problem, moments: Moments, aim: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns H and g of the error ``k^T H k - 2 k g`` of the integers k, in units of squared steps."""
    matrix, step = moments.xx, problem.step[..., np.newaxis]
    own = aim == "own"
    if problem.free_bias:
        mean = moments.x / moments.count
        matrix = matrix - mean[:, :, np.newaxis] * moments.x[:, np.newaxis]
        if own:
            return matrix, problem.wanted @ matrix
        return matrix, (moments.yx - moments.y[..., np.newaxis] * mean[:, np.newaxis]) / step
    if own:
        excess = (problem.float_bias - problem.bias)[..., np.newaxis] / step
        return matrix, problem.wanted @ matrix + excess * moments.x[:, np.newaxis]
    return matrix, (moments.yx - problem.bias[..., np.newaxis] * moments.x[:, np.newaxis]) / step


def _bias(problem: Problem, moments: Moments, integers: np.ndarray, aim: str) -> np.ndarray:
    """Returns the bias: as it is, or the one that leaves no mean error, in whole steps."""
    if not problem.free_bias:
        return problem.bias
    mean, sums = moments.y / moments.count, moments.x[:, np.newaxis] / moments.count
    if aim == "own":
        mean = problem.float_bias + (problem.wanted * sums).sum(2) * problem.step
    steps = np.rint((mean - (integers * sums).sum(2) * problem.step) / problem.step)
    return np.clip(steps, -(2**31) + 1, 2**31 - 1) * problem.step


def _objective(matrix: np.ndarray, target: np.ndarray, integers: np.ndarray) -> np.ndarray:
    found: np.ndarray = ((integers @ matrix - 2 * target) * integers).sum(2)
    return found


def _passed_on(problem: Problem, matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rounds one column after another, those with the strongest inputs first, and passes each error on to the rest."""
    order = np.argsort(-np.diagonal(matrix, axis1=1, axis2=2), axis=1, kind="stable")
    rows = np.arange(len(matrix))[:, np.newaxis]
    sorted_matrix = matrix[rows[:, :, np.newaxis], order[:, :, np.newaxis], order[:, np.newaxis, :]]
    inverse = np.linalg.inv(sorted_matrix)
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    best = np.linalg.solve(matrix, target.transpose(0, 2, 1)).transpose(0, 2, 1)
    left, lowest, highest = (_in_order(array, order) for array in (best, problem.lowest, problem.highest))
    features = matrix.shape[1]
    for start in range(0, features, _BLOCK):
        stop = min(start + _BLOCK, features)
        errors = np.empty((*left.shape[:2], stop - start))
        for column in range(start, stop):
            rounded = np.clip(np.rint(left[:, :, column]), lowest[:, :, column], highest[:, :, column])
            error = (left[:, :, column] - rounded) / upper[:, column, column][:, np.newaxis]
            left[:, :, column] = rounded
            left[:, :, column + 1 : stop] -= error[..., np.newaxis] * upper[:, np.newaxis, column, column + 1 : stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return _in_order(left, np.argsort(order, axis=1, kind="stable"))


def _in_order(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array.astype(np.float64), np.broadcast_to(order[:, np.newaxis], array.shape), axis=2)


def _descended(problem: Problem, matrix: np.ndarray, target: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """Moves one weight after another to where the error is least with all others as they are, until none moves."""
    integers = integers.copy()
    slope = integers @ matrix - target
    for _ in range(_MOST_SWEEPS):
        moved = False
        for column in range(matrix.shape[1]):
            now, curve = integers[:, :, column], matrix[:, column, column][:, np.newaxis]
            best = np.clip(
                np.rint(now - slope[:, :, column] / curve), problem.lowest[:, :, column], problem.highest[:, :, column]
            )
            change = best - now
            # A tie between two integers would go to and fro.
            gain = -change * (2 * slope[:, :, column] + change * curve)
            groups, channels = np.nonzero(gain > 1e-9 * curve)
            if len(groups):
                moved = True
                by = change[groups, channels]
                integers[groups, channels, column] += by
                slope[groups, channels] += by[:, np.newaxis] * matrix[groups, column]
        if not moved:
            break
    return integers
