"""Ranges of activations, chosen from histograms instead of extremes: how much of the tails is worth the levels it costs.

All ranges are of real values, per tensor, and called by the float model's tensor names. ``edit.rescaled`` puts them into a
quantized model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.statistics import Histogram

__all__ = ["METHODS", "choose_ranges", "needed_ranges", "useful_ranges"]

Range = tuple[float, float]

#: How a range is chosen from a histogram.
METHODS = ("minmax", "percentile", "mse", "entropy")
_STEPS = 255  # between the 256 integers of 8 bits
_EVERYTHING = (-math.inf, math.inf)
_NOTHING = (math.inf, -math.inf)
# The outputs of these have 256 steps of 1/256 and 1/128: from here on they stay within half a step of their end.
_LOGISTIC_END = math.log(511.0)
_TANH_END = math.atanh(255.0 / 256.0)
# What of its input an operator can tell apart: values beyond are as good as the end.
_TELLS_APART: dict[str, Range] = {
    "HARD_SWISH": (-3.0, math.inf),
    "LOGISTIC": (-_LOGISTIC_END, _LOGISTIC_END),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_0_TO_1": (0.0, 1.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "TANH": (-_TANH_END, _TANH_END),
}
# They move values, or take the greatest of some: to clip before is as good as to clip behind.
_MOVING = {"BATCH_TO_SPACE_ND", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "GATHER_ND",
           "MAX_POOL_2D", "MIRROR_PAD", "PACK", "PAD", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE",
           "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE",
           "UNPACK"}  # fmt: skip
# The search for the best ends: so many places on either side of zero, then so many between the neighbours of the best.
_COARSE, _FINE, _ZOOMS = 20, 7, 2


def choose_ranges(
    histograms: Mapping[str, Histogram],
    method: str = "percentile",
    *,
    share: float = 0.9999,
    needed: Mapping[str, Range] | None = None,
) -> dict[str, Range]:
    """Returns a range for each tensor.

    Args:
        histograms: ``{tensor: of its values}``, as `CalibratedModel` has them.
        method: ``minmax``: least and greatest value. ``percentile``: what holds the given share of the values, with as many
            beyond either end. ``mse``: the least sum of squared errors of rounding to 8 bits and clipping. ``entropy``: the
            least Kullback-Leibler divergence of the rounded from the clipped distribution (S. Migacz, "8-bit inference with
            TensorRT", GTC 2017, as in ONNX Runtime's ``get_entropy_threshold``), here with both ends apart.
        share: For ``percentile``, above 0 and at most 1.
        needed: ``{tensor: what its readers can tell apart}``, as `needed_ranges` gives it: values beyond count as its ends,
            so that no method spends levels on them.

    Raises:
        OptionError: For another method or share, or a histogram that is empty or of values that are not finite.
    """
    if method not in METHODS:
        raise OptionError(f"got method {method!r} for ranges, expected {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    if not 0 < share <= 1:
        raise OptionError(f"got share {share!r} for ranges, expected a number above 0 and at most 1, such as 0.9999")
    found = {}
    for name, histogram in histograms.items():
        cells = _Cells.of(name, histogram)
        ends = (needed or {}).get(name, _EVERYTHING)
        chosen = _chosen(cells.clipped(*ends), method, share)
        found[name] = chosen if ends == _EVERYTHING else _within(chosen, ends)
    return found


def _chosen(cells: _Cells, method: str, share: float) -> Range:
    if method == "minmax" or not len(cells.counts):
        return cells.minimum, cells.maximum
    if method == "percentile":
        tail = (1.0 - share) / 2
        return cells.quantile(tail), cells.quantile(1.0 - tail)
    return _searched(cells, _SquaredError(cells) if method == "mse" else _Divergence(cells))


@dataclasses.dataclass(frozen=True)
class _Cells:
    """What a histogram says: values spread evenly over each bin, and zeros, which any range holds exactly.

    Attributes:
        start: Lower edge of the first bin.
        width: Of every bin.
        counts: float64 ``(bins,)``.
        zeros: How many values are exactly zero; they are in no bin.
        minimum: Least value.
        maximum: Greatest value.
    """

    start: float
    width: float
    counts: np.ndarray
    zeros: int
    minimum: float
    maximum: float

    @classmethod
    def of(cls, name: str, histogram: Histogram) -> _Cells:
        """Reads a histogram.

        Raises:
            OptionError: Where it is empty or not of finite values.
        """
        if not histogram.total:
            raise OptionError(f"the histogram of tensor {name!r} is empty: no range can be chosen; calibrate on some samples")
        if not (math.isfinite(histogram.minimum) and math.isfinite(histogram.maximum)):
            raise OptionError(
                f"the histogram of tensor {name!r} goes from {histogram.minimum} to {histogram.maximum}, expected finite values"
            )
        edges = histogram.edges()
        width = float(edges[1] - edges[0]) if len(edges) > 1 else 0.0
        counts = histogram.counts.astype(np.float64)
        return cls(float(edges[0]), width, counts, histogram.zeros, histogram.minimum, histogram.maximum)

    def clipped(self, low: float, high: float) -> _Cells:
        """Returns the same with values beyond the ends put at them."""
        if low <= self.minimum and self.maximum <= high:
            return self
        low, high = float(np.clip(self.minimum, low, high)), float(np.clip(self.maximum, low, high))
        if not len(self.counts):
            return dataclasses.replace(self, minimum=low, maximum=high)
        last = len(self.counts) - 1
        first, final = (int(np.clip((end - self.start) // self.width, 0, last)) for end in (low, high))
        counts = self.counts[first : final + 1].copy()
        counts[0] += self.counts[:first].sum()
        counts[-1] += self.counts[final + 1 :].sum()
        return dataclasses.replace(self, start=self.start + first * self.width, counts=counts, minimum=low, maximum=high)

    @property
    def edges(self) -> np.ndarray:
        """Of the bins, float64 ``(bins + 1,)``."""
        return self.start + self.width * np.arange(len(self.counts) + 1)

    def quantile(self, share: float) -> float:
        """Returns what ``numpy.quantile`` gives for the values, to within the width of a bin."""
        edges = np.clip(self.edges, self.minimum, self.maximum)
        lower, upper, counts = edges[:-1], edges[1:], self.counts
        if self.zeros:  # a bin of no width, between the negative ones and the others
            place = int(np.sum(self.edges[:-1] < 0))
            lower, upper = np.insert(lower, place, 0.0), np.insert(upper, place, 0.0)
            counts = np.insert(counts, place, self.zeros)
        summed = np.cumsum(counts)
        last = summed[-1] - 1

        def ordered(position: float) -> float:
            if position <= 0 or position >= last:
                return self.minimum if position <= 0 else self.maximum
            cell = int(np.searchsorted(summed, position, "right"))
            inside = (position - (summed[cell] - counts[cell]) + 0.5) / counts[cell]
            return float(lower[cell] + inside * (upper[cell] - lower[cell]))

        before = math.floor(share * last)
        low, high = ordered(before), ordered(before + 1)
        return float(low + (share * last - before) * (high - low))


def _searched(cells: _Cells, cost: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Range:
    """Returns the ends that cost least: a grid over both, which is finer near zero, then finer ones around the best."""
    ends = (min(cells.minimum, 0.0), max(cells.maximum, 0.0))
    grid = (np.arange(_COARSE, -1, -1) / _COARSE) ** 1.5
    places = [grid if end else np.zeros(1) for end in ends]
    for zoom in range(_ZOOMS + 1):
        # Rows from the widest range on: of equals, the first is taken.
        rows, columns = (axis.ravel() for axis in np.meshgrid(*places, indexing="ij"))
        best = int(np.argmin(cost(rows * ends[0], columns * ends[1])))
        chosen = (rows[best] * ends[0], columns[best] * ends[1])
        if zoom < _ZOOMS:
            places = [_around(axis, value) for axis, value in zip(places, (rows[best], columns[best]), strict=True)]
    return float(chosen[0]), float(chosen[1])


def _around(axis: np.ndarray, value: float) -> np.ndarray:
    """Returns places between the neighbours of one, descending, itself among them."""
    place = int(np.flatnonzero(axis == value)[0])
    above, below = axis[max(place - 1, 0)], axis[min(place + 1, len(axis) - 1)]
    half = _FINE // 2 + 1
    return np.concatenate([np.linspace(above, value, half)[:-1], np.linspace(value, below, half)]) if above > below else axis


def _levels(lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale of each range, and the whole number of steps below zero, both ``(ranges, 1)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = (highs - lows) / _STEPS
        below = np.where(scales > 0, np.floor(-lows / scales + 0.5), 0.0)
    return scales[:, None], below[:, None]


class _SquaredError:
    """Sum of the squared errors of rounding to 256 levels and clipping, from integrals over the bins."""

    def __init__(self, cells: _Cells) -> None:
        self._cells, edges = cells, cells.edges
        self._lower = edges[:-1]
        # Moments of values spread evenly over each bin: how many, their sum, the sum of their squares.
        sums = cells.counts * (edges[1:] + edges[:-1]) / 2
        squares = cells.counts * (edges[1:] ** 2 + edges[1:] * edges[:-1] + edges[:-1] ** 2) / 3
        self._before = [np.concatenate([[0.0], np.cumsum(part)]) for part in (cells.counts, sums, squares)]

    def _moments(self, values: np.ndarray) -> Iterable[np.ndarray]:
        """Returns the three moments of all that is below each value."""
        width, counts = self._cells.width, self._cells.counts
        place = np.clip((values - self._cells.start) / width, 0, len(counts))
        bins = np.minimum(place.astype(np.int64), len(counts) - 1)
        part = place - bins
        lower, inside = self._lower[bins], counts[bins] * part
        reached = width * part
        yield self._before[0][bins] + inside
        yield self._before[1][bins] + inside * (lower + reached / 2)
        yield self._before[2][bins] + inside * (lower * lower + lower * reached + reached * reached / 3)

    def __call__(self, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """Returns the error of each range, ``(ranges,)``."""
        scales, below = _levels(lows, highs)
        steps = np.arange(_STEPS + 1) - below
        bounds = scales * (steps[:, 1:] - 0.5)
        count, total, square = (
            np.diff(moment, prepend=0.0, append=all_of[-1])
            for moment, all_of in zip(self._moments(bounds), self._before, strict=True)
        )
        level = scales * steps
        return np.asarray((square - 2 * level * total + level * level * count).sum(axis=1))


class _Divergence:
    """Kullback-Leibler divergence of the values rounded to 256 levels from the values clipped to the range.

    As in the source, what is beyond an end counts at the end for the clipped distribution and not at all for the rounded one,
    each level is spread evenly over those of its bins that are not empty, and a range has at least as many bins as levels.
    Zeros are left out: they are exact in any range, and a peak of them would hide everything else.
    """

    _FLOOR = 1e-4  # ONNX Runtime's, for the share of a bin that only clipped values fall into

    def __init__(self, cells: _Cells) -> None:
        self._cells, counts = cells, cells.counts
        self._before = np.concatenate([[0.0], np.cumsum(counts)])
        self._filled = np.concatenate([[0], np.cumsum(counts > 0)])
        self._logarithms = np.concatenate([[0.0], np.cumsum(_times_log(counts))])

    def __call__(self, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """Returns the divergence of each range, ``(ranges,)``; infinite where it has fewer bins than levels."""
        cells, bins = self._cells, len(self._cells.counts)
        first, stop = (np.clip(np.round((ends - cells.start) / cells.width), 0, bins).astype(int) for ends in (lows, highs))
        stop = np.maximum(stop, first + 1).clip(max=bins)
        first = np.minimum(first, stop - 1)
        scales, below = _levels(lows, highs)
        bounds = scales * (np.arange(1, _STEPS + 1) - below - 0.5)
        inner = np.ceil((bounds - cells.start) / cells.width - 0.5).astype(np.int64)
        marks = np.concatenate([first[:, None], np.clip(inner, first[:, None], stop[:, None]), stop[:, None]], axis=1)
        found = self._divergence(marks, first, stop)
        # The whole range is always allowed.
        return np.where((stop - first > _STEPS) | ((first == 0) & (stop == bins)), found, np.inf)

    def _divergence(self, marks: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        rows, counts = np.arange(len(marks)), self._cells.counts
        rounded = np.diff(self._before[marks], axis=1)
        clipped, filled = rounded.copy(), np.diff(self._filled[marks], axis=1)
        logarithms = self._logarithms[stop] - self._logarithms[first]
        wide = np.diff(marks, axis=1) > 0
        for ends, level, beyond in (
            (first, np.argmax(wide, axis=1), self._before[first]),
            (stop - 1, marks.shape[1] - 2 - np.argmax(wide[:, ::-1], axis=1), self._before[-1] - self._before[stop]),
        ):
            clipped[rows, level] += beyond
            filled[rows, level] += (counts[ends] == 0) & (beyond > 0)
            logarithms += _times_log(counts[ends] + beyond) - _times_log(counts[ends])
        total, inside = self._before[-1], self._before[stop] - self._before[first]
        share = np.where(rounded > 0, rounded, self._FLOOR) / np.maximum(filled, 1) / np.maximum(inside, self._FLOOR)[:, None]
        return np.asarray((logarithms - (clipped * np.log(share)).sum(axis=1)) / total - np.log(total))


def _times_log(values: np.ndarray) -> np.ndarray:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))


@refuses_broken_models
def needed_ranges(float_model: Model) -> dict[str, Range]:
    """Returns what of each activation its readers can tell apart, for those where that is not everything.

    HARD_SWISH gives 0 below -3, RELU below 0; RELU6 and its kin have two ends; LOGISTIC and TANH come as near to their ends as
    half a step of their 8-bit output; MAXIMUM and MINIMUM with a constant let nothing through beyond it. Operators that move
    values need what is needed of their outputs. Several readers need the union; an output of the model is needed whole.

    Args:
        float_model: Its main subgraph is taken.

    Returns:
        ``{tensor: (least, greatest)}``, an end being infinite where there is none.
    """
    graph = float_model.main
    needed: dict[int, Range] = dict.fromkeys(graph.outputs, _EVERYTHING)
    for operator in reversed(graph.operators):
        for index in operator.inputs:
            if index >= 0 and graph.tensors[index].is_float and not graph.tensors[index].is_constant:
                needed[index] = _union(needed.get(index, _NOTHING), _needed_by(float_model, operator, needed))
    by_name: dict[str, Range] = {}
    for index, ends in needed.items():
        name = graph.tensors[index].name
        by_name[name] = _union(by_name.get(name, _NOTHING), ends)
    return {name: ends for name, ends in by_name.items() if ends not in (_EVERYTHING, _NOTHING)}


def _union(first: Range, second: Range) -> Range:
    return min(first[0], second[0]), max(first[1], second[1])


def _needed_by(model: Model, operator: Operator, needed: Mapping[int, Range]) -> Range:
    if operator.name in _TELLS_APART:
        return _TELLS_APART[operator.name]
    if operator.name in _MOVING:
        ends = _NOTHING
        for output in operator.outputs:
            ends = _union(ends, needed.get(output, _NOTHING))
        return ends
    if operator.name in ("MAXIMUM", "MINIMUM"):
        constants = [model.main.tensors[index] for index in operator.inputs if model.main.tensors[index].is_constant]
        if len(constants) == 1 and constants[0].is_float and np.all(np.isfinite(model.constant(constants[0]))):
            values = model.constant(constants[0])
            return (float(values.min()), math.inf) if operator.name == "MAXIMUM" else (-math.inf, float(values.max()))
    return _EVERYTHING


@refuses_broken_models
def useful_ranges(float_model: Model, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Returns the part of each range that its readers can tell apart; see `needed_ranges`.

    Where an end moved, the range is widened by about a step so that zero and both ends are whole steps from one another: the
    rounding of the zero point then cuts nothing off.

    Args:
        float_model: The float model.
        ranges: ``{tensor: (minimum, maximum)}``.

    Raises:
        OptionError: Where the float model has no such tensor.
    """
    known = {tensor.name for tensor in float_model.main.tensors}
    for name in ranges:
        if name not in known:
            raise OptionError(f"got a range for tensor {name!r}, which the float model has not.{did_you_mean(name, known)}")
    needed = needed_ranges(float_model)
    return {name: _within(given, needed[name]) if name in needed else given for name, given in ranges.items()}


def _within(given: Range, ends: Range) -> Range:
    """Returns the part of a range between two ends, on whole steps where that is less than all of it."""
    low, high = (float(np.clip(end, *ends)) for end in given)
    return given if (low, high) == given else _on_steps(min(low, 0.0), max(high, 0.0))


def _on_steps(low: float, high: float) -> Range:
    """Returns the least range around one of which both ends and zero lie on 256 equal steps."""
    if low == 0 or high == 0:
        return low, high
    below = min(math.ceil(-low / (high - low) * _STEPS), _STEPS - 1)
    step = max(-low / below, high / (_STEPS - below))
    return -below * step, (_STEPS - below) * step
