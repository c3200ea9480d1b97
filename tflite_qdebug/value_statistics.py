"""Mergeable statistics of the values of many tensors and of their channels: moments, extremes, histograms, integers used.

Moments of a sample are taken about its own mean and merged by the formulas of P. Pebay, "Formulas for Robust, One-Pass Parallel
Computation of Covariances and Arbitrary-Order Statistical Moments" (Sandia report SAND2008-6212, 2008), so that a mean far from
zero costs no digits. What is counted is exact in any order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tflite_qdebug.kernels import CHANNEL_COLUMNS, SCAN_COLUMNS, count_channels, scan_channels
from tflite_qdebug.statistics import Histogram

__all__ = [
    "ABOVE",
    "BELOW",
    "NEAR",
    "NEGATIVE",
    "ChannelCounts",
    "Spread",
    "TensorCounts",
    "as_channels",
    "channel_rows",
    "empty_rows",
    "merged",
    "outlier_share",
]

# Columns of the rows that the kernels fill; channels have the first five.
COUNT, MINIMUM, MAXIMUM, MEAN, SECOND, THIRD, FOURTH, NEGATIVE, BELOW, ABOVE, NEAR = range(SCAN_COLUMNS)
#: From how many standard deviations on a value is an outlier.
OUTLYING = 6.0
# Bins on either side of zero, of each channel.
_BINS = 64
# The exponent of a channel that has had no value but zero: below that of any float.
_NONE = -4096


def empty_rows(count: int, columns: int = SCAN_COLUMNS) -> np.ndarray:
    """Returns rows of no values, the zero of `merged`: float64 ``(count, columns)``."""
    rows = np.zeros((count, columns))
    rows[:, MINIMUM], rows[:, MAXIMUM] = np.inf, -np.inf
    return rows


def merged(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the rows of the values of both, each row on its own: float64 ``(rows, CHANNEL_COLUMNS or SCAN_COLUMNS)``.

    Where a row is NaN the sum is, too.
    """
    total = first + second
    a, b, n = first[:, COUNT], second[:, COUNT], np.maximum(total[:, COUNT], 1.0)
    delta = np.where((a > 0) & (b > 0), second[:, MEAN] - first[:, MEAN], 0.0)
    total[:, MINIMUM] = np.minimum(first[:, MINIMUM], second[:, MINIMUM])
    total[:, MAXIMUM] = np.maximum(first[:, MAXIMUM], second[:, MAXIMUM])
    total[:, MEAN] = np.where(a > 0, first[:, MEAN] + delta * b / n, second[:, MEAN])
    a2, b2 = first[:, SECOND], second[:, SECOND]
    total[:, SECOND] += delta**2 * a * b / n
    if first.shape[1] > CHANNEL_COLUMNS:
        total[:, THIRD] += delta**3 * a * b * (a - b) / n**2 + 3.0 * delta * (a * b2 - b * a2) / n
        total[:, FOURTH] += (
            delta**4 * a * b * (a * a - a * b + b * b) / n**3 + 6.0 * delta**2 * (a * a * b2 + b * b * a2) / n**2
        )
        total[:, FOURTH] += 4.0 * delta * (a * second[:, THIRD] - b * first[:, THIRD]) / n
    return total


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean, deviation and shape of the values of one tensor, out of a row.

    Attributes:
        mean: NaN of no values.
        deviation: Their standard deviation.
        kurtosis: 3 for a normal distribution; NaN where all values are equal.
    """

    mean: float
    deviation: float
    kurtosis: float

    @classmethod
    def of(cls, row: np.ndarray) -> Spread:
        """Reads a row of `SCAN_COLUMNS`."""
        count = row[COUNT]
        if not count:
            return cls(float("nan"), float("nan"), float("nan"))
        variance = float(row[SECOND] / count)
        # Values that are all equal are off their own mean by its rounding, and the shape of that means nothing.
        even = row[MINIMUM] == row[MAXIMUM] or variance == 0.0
        kurtosis = float("nan") if even else float(row[FOURTH] / count / variance / variance)
        return cls(float(row[MEAN]), 0.0 if even else variance**0.5, kurtosis)


def outlier_share(histogram: Histogram, spread: Spread) -> float:
    """Returns the share of values more than 6 standard deviations from the mean, to the width of a bin.

    A bin that lies across that limit does not count: the share may be too small, and is never too large.
    """
    if not histogram.total or not spread.deviation > 0.0:
        return 0.0
    low, high = spread.mean - OUTLYING * spread.deviation, spread.mean + OUTLYING * spread.deviation
    edges = histogram.edges()
    outside = int(histogram.counts[(edges[1:] <= low) | (edges[:-1] > high)].sum())
    outside += histogram.zeros if not low <= 0.0 <= high else 0
    return outside / histogram.total


def as_channels(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns values as ``(before, channels, behind)``, a view where they are contiguous."""
    return values.reshape(int(np.prod(values.shape[:axis])), values.shape[axis], int(np.prod(values.shape[axis + 1 :])))


def channel_rows(values: np.ndarray) -> np.ndarray:
    """Returns the rows of the channels of finite values ``(before, channels, behind)``; of no values empty ones."""
    rows = empty_rows(values.shape[1], CHANNEL_COLUMNS)
    if values.size:
        scan_channels()(values, rows)
    return rows


class ChannelCounts:
    """How often which values occur in each channel; ``a + b`` is exact.

    As in `Histogram` the bins of a channel are as wide as a power of two and have an edge at zero; each channel has its own
    width, doubled when its values outgrow the bins, so that one large channel takes nothing from the others.

    Attributes:
        counts: int64 ``(channels, 128)``: bin k covers ``[k - 64, k - 63) * 2 ** exponent``.
        exponents: int64 ``(channels,)``.
        zeros: int64 ``(channels,)``: how many values were exactly zero; they stand in no bin.
    """

    def __init__(self, channels: int) -> None:
        """Starts with no values."""
        self.counts = np.zeros((channels, 2 * _BINS), dtype=np.int64)
        self.exponents = np.full(channels, _NONE, dtype=np.int64)
        self.zeros = np.zeros(channels, dtype=np.int64)

    def add(self, place: slice, values: np.ndarray, rows: np.ndarray) -> None:
        """Counts values.

        Args:
            place: Of their channels among all.
            values: float32 ``(before, channels, behind)``.
            rows: Their `channel_rows`.
        """
        if not values.size:
            return
        largest = np.maximum(np.abs(rows[:, MINIMUM]), np.abs(rows[:, MAXIMUM]))
        needed = np.where(largest > 0.0, np.frexp(largest)[1] - int(np.log2(_BINS)), _NONE)
        self._widen(np.arange(place.start, place.stop), needed)
        per_bin = np.ldexp(1.0, np.where(self.exponents[place] == _NONE, 0, -self.exponents[place]))
        count_channels()(values, per_bin, self.counts[place], self.zeros[place])

    def _widen(self, channels: np.ndarray, exponents: np.ndarray) -> None:
        """Makes the bins of some channels at least so wide."""
        steps = np.where(self.exponents[channels] == _NONE, 0, exponents - self.exponents[channels])
        for step in np.unique(steps[steps > 0]):
            rows = channels[steps == step]
            places = ((np.arange(2 * _BINS) - _BINS) >> int(min(step, 8))) + _BINS
            wide = np.zeros((2 * _BINS, len(rows)), dtype=np.int64)
            np.add.at(wide, places, self.counts[rows].T)
            self.counts[rows] = wide.T
        self.exponents[channels] = np.maximum(self.exponents[channels], exponents)

    def __add__(self, other: ChannelCounts) -> ChannelCounts:
        total, addend = (ChannelCounts(len(self.zeros)) for _ in range(2))
        for copy, part in ((total, self), (addend, other)):
            copy.counts, copy.exponents = part.counts.copy(), part.exponents.copy()
            copy._widen(np.arange(len(self.zeros)), np.maximum(self.exponents, other.exponents))
        total.counts += addend.counts
        total.zeros = self.zeros + other.zeros
        return total

    def quantiles(self, place: slice, shares: tuple[float, ...], rows: np.ndarray) -> np.ndarray:
        """Returns below which value such shares of each channel lie, to the width of a bin: float64 ``(shares, channels)``.

        Args:
            place: Of the channels among all.
            shares: Between 0 and 1.
            rows: The channels' rows; a quantile is within minimum and maximum.
        """
        exponents = np.where(self.exponents[place] == _NONE, 0, self.exponents[place])
        edges = np.ldexp(np.arange(-_BINS, _BINS + 1, dtype=np.float64), exponents[:, np.newaxis])
        # Zeros stand between the negative and the positive bins, and are as wide as nothing.
        cells = np.insert(self.counts[place], _BINS, self.zeros[place], axis=1)
        lower, upper = np.insert(edges[:, :-1], _BINS, 0.0, axis=1), np.insert(edges[:, 1:], _BINS, 0.0, axis=1)
        reached = np.cumsum(cells, axis=1)
        channel = np.arange(len(cells))
        found = []
        for share in shares:
            wanted = np.maximum(np.ceil(share * reached[:, -1]), 1)  # the so-manieth value in order
            cell = np.argmax(reached >= wanted[:, np.newaxis], axis=1)
            held = np.maximum(cells[channel, cell], 1)
            within = np.clip((wanted - (reached[channel, cell] - held) - 0.5) / held, 0.0, 1.0)
            start = lower[channel, cell]
            value = start + within * (upper[channel, cell] - start)
            found.append(np.clip(value, rows[:, MINIMUM], rows[:, MAXIMUM]))
        return np.stack(found)


class TensorCounts:
    """How often which values occur in a tensor of the float model, in its quantized counterpart, and in the error.

    ``a + b`` is exact.

    Attributes:
        values: Of the float model.
        error: Quantized less float.
        integers: int64 ``(levels,)``: how often each integer occurs, the least first; empty of a float tensor.
    """

    def __init__(self, levels: int = 0) -> None:
        """Starts with no values."""
        self.values, self.error = Histogram(), Histogram()
        self.integers = np.zeros(levels, dtype=np.int64)

    def __add__(self, other: TensorCounts) -> TensorCounts:
        total = TensorCounts()
        total.values, total.error = self.values + other.values, self.error + other.error
        total.integers = self.integers + other.integers
        return total
