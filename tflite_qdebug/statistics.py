"""Mergeable statistics of quantization error and of values, kept as sums and derived only when asked for.

Everything is vectorized over layers: one ``ErrorStatistics`` holds a whole model, one row of sums per layer. Sums are
pooled over samples and divided once, so that a part of the samples added to another part gives what all of them give.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

from tflite_qdebug.kernels import RELATIVE_COLUMNS, count_values
from tflite_qdebug.shown import Shown

__all__ = ["TENSORFLOW_METRICS", "ErrorStatistics", "Histogram", "SampleSums"]

TENSORFLOW_METRICS = ("num_elements", "stddev", "mean_error", "max_abs_error", "mean_squared_error")

# Columns of what one sample adds to one layer; e = dequantized - float, r = float, q = integer value.
_SUM_COLUMNS = ("count", "error", "error_squared", "float_squared", "error_float", "below_end", "above_end")
_COUNT, _ERROR, _ERROR_SQUARED, _FLOAT_SQUARED, _ERROR_FLOAT, _LOW, _HIGH = range(len(_SUM_COLUMNS))


class SampleSums:
    """What one sample adds: one row per layer.

    Attributes:
        sums: float64 ``(layers, 7)``: n, sum e, sum e^2, sum r^2, sum e r, values at the low end, at the high end.
        max_abs_error: float64 ``(layers,)``: max |e|.
        max_inner_error: float64 ``(layers,)``: max |e| where the float value is within the range that the integers have.
        integer_range: int64 ``(layers, 2)``: least and greatest integer value; float tensors leave it at (0, 0).
        stddev: float64 ``(layers,)``: standard deviation of e in this sample.
        relative_sums: float64 ``(layers, 2)``: sum |e| / |r| over the r other than 0, and how many these are; None where they
            were not measured.
    """

    __slots__ = ("integer_range", "max_abs_error", "max_inner_error", "relative_sums", "stddev", "sums")

    def __init__(self, rows: np.ndarray, relative_rows: Optional[np.ndarray] = None) -> None:
        """Takes the rows that the kernels filled.

        Args:
            rows: Of ``kernels.measure_pair``, float64 ``(layers, 12)``.
            relative_rows: Of ``kernels.measure_relative``, float64 ``(layers, 2)``.
        """
        self.relative_sums = relative_rows
        self.sums = rows[:, : len(_SUM_COLUMNS)]
        self.max_abs_error, self.stddev, self.max_inner_error = rows[:, 7], rows[:, 8], rows[:, 11]
        self.integer_range = rows[:, 9:11].astype(np.int64)

    def tensorflow_metrics(self) -> np.ndarray:
        """Returns TensorFlow's five default metrics of this sample, float64 ``(layers, 5)``."""
        count = self.sums[:, _COUNT]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self.sums[:, _ERROR] / count
            mean_squared = self.sums[:, _ERROR_SQUARED] / count
        return np.stack([count, self.stddev, mean, self.max_abs_error, mean_squared], axis=1)


class ErrorStatistics:
    """Pooled error of every layer of a model over all samples seen; ``a + b`` merges.

    Formulas (e = dequantized - float, r = float; sums over all elements of all samples):
    ``bias = sum e / n``; ``rmse = sqrt(sum e^2 / n)``; ``sqnr_db = 10 log10(sum r^2 / sum e^2)``, with no epsilon, so
    infinite where the error is zero; ``cosine = sum r q / sqrt(sum r^2 sum q^2)`` with q = r + e;
    ``mse = sum e^2 / n``; ``mre = sum (|e| / |r|) / m`` over the m elements whose r is not 0.

    Attributes:
        samples: Number of samples added.
        sums: float64 ``(layers, 7)``, as in ``SampleSums``.
        max_abs_error: float64 ``(layers,)``.
        max_inner_error: float64 ``(layers,)``, the same without what the range of the integers clips.
        integer_range: int64 ``(layers, 2)``.
        worst_sample: int64 ``(layers,)``: index of the sample with the greatest mean squared error; -1 before any.
        worst_mean_squared_error: float64 ``(layers,)``: of that sample; NaN counts as worse than any number.
        tensorflow_sums: float64 ``(layers, 5)``: per-sample metrics added up, without NaN.
        tensorflow_counts: int64 ``(layers, 5)``: how many of them were not NaN.
        relative_sums: float64 ``(layers, 2)``, as in ``SampleSums``; NaN where a sample has elements of which they were not
            measured, so that the mean of some samples does not pass for that of all.
    """

    _FIELDS = (
        "sums", "max_abs_error", "max_inner_error", "integer_range", "worst_sample", "worst_mean_squared_error",
        "tensorflow_sums", "tensorflow_counts", "relative_sums",
    )  # fmt: skip

    def __init__(self, layers: int) -> None:
        """Makes empty statistics, the zero of ``+``, for ``layers`` layers."""
        self.samples = 0
        self.sums = np.zeros((layers, len(_SUM_COLUMNS)))
        self.max_abs_error = np.zeros(layers)
        self.max_inner_error = np.zeros(layers)
        self.integer_range = np.tile(np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min]), (layers, 1))
        self.worst_sample = np.full(layers, -1, dtype=np.int64)
        self.worst_mean_squared_error = np.full(layers, -np.inf)
        self.tensorflow_sums = np.zeros((layers, len(TENSORFLOW_METRICS)))
        self.tensorflow_counts = np.zeros((layers, len(TENSORFLOW_METRICS)), dtype=np.int64)
        self.relative_sums = np.zeros((layers, RELATIVE_COLUMNS))

    def __len__(self) -> int:
        return len(self.sums)

    def select(self, rows: Sequence[int]) -> ErrorStatistics:
        """Returns the statistics of some layers; a row of -1 is one of no element."""
        selected = ErrorStatistics(len(rows))
        selected.samples = self.samples
        places = np.asarray(rows, dtype=np.int64)  # of an empty list too
        known = np.flatnonzero(places >= 0)
        for name in self._FIELDS:
            getattr(selected, name)[known] = getattr(self, name)[places[known]]
        return selected

    def add(self, index: int, sample: SampleSums) -> None:
        """Adds what sample number ``index`` gave."""
        metrics = sample.tensorflow_metrics()
        present = ~np.isnan(metrics)
        self.samples += 1
        self.sums += sample.sums
        self.max_abs_error = np.maximum(self.max_abs_error, sample.max_abs_error)
        self.max_inner_error = np.maximum(self.max_inner_error, sample.max_inner_error)
        self._widen(sample.integer_range)
        self._take_worse(np.full(len(self), index), metrics[:, 4])
        self.tensorflow_sums += np.where(present, metrics, 0.0)
        self.tensorflow_counts += present
        self.relative_sums += _unmeasured(sample.sums) if sample.relative_sums is None else sample.relative_sums

    def _widen(self, integer_range: np.ndarray) -> None:
        self.integer_range[:, 0] = np.minimum(self.integer_range[:, 0], integer_range[:, 0])
        self.integer_range[:, 1] = np.maximum(self.integer_range[:, 1], integer_range[:, 1])

    def _take_worse(self, index: np.ndarray, mean_squared: np.ndarray) -> None:
        theirs = np.where(np.isnan(mean_squared), np.inf, mean_squared)
        # The lower index wins a tie, so that the order of merging does not matter.
        worse = (theirs > self.worst_mean_squared_error) | (
            (theirs == self.worst_mean_squared_error) & (index < self.worst_sample)
        )
        self.worst_sample = np.where(worse, index, self.worst_sample)
        self.worst_mean_squared_error = np.where(worse, theirs, self.worst_mean_squared_error)

    def __add__(self, other: ErrorStatistics) -> ErrorStatistics:
        if len(self) != len(other):
            raise ValueError("cannot add statistics of {} and of {} layers".format(len(self), len(other)))
        total = ErrorStatistics(len(self))
        total.samples = self.samples + other.samples
        total.sums = self.sums + other.sums
        total.max_abs_error = np.maximum(self.max_abs_error, other.max_abs_error)
        total.max_inner_error = np.maximum(self.max_inner_error, other.max_inner_error)
        for part in (self, other):
            total._widen(part.integer_range)
            total._take_worse(part.worst_sample, part.worst_mean_squared_error)
        total.tensorflow_sums = self.tensorflow_sums + other.tensorflow_sums
        total.tensorflow_counts = self.tensorflow_counts + other.tensorflow_counts
        total.relative_sums = self.relative_sums + other.relative_sums
        return total

    def tensorflow_metrics(self) -> np.ndarray:
        """Returns TensorFlow's five metrics as its debugger aggregates them: the mean over samples, NaN left out."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.tensorflow_sums / self.tensorflow_counts

    def _per_element(self, column: int) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums[:, column] / self.sums[:, _COUNT]

    @property
    def num_elements(self) -> np.ndarray:
        """Elements of all samples together, int64 ``(layers,)``."""
        return self.sums[:, _COUNT].astype(np.int64)

    @property
    def bias(self) -> np.ndarray:
        """Mean error, signed, in real units, ``(layers,)``."""
        return self._per_element(_ERROR)

    @property
    def mse(self) -> np.ndarray:
        """Mean squared error in real units squared, ``(layers,)``."""
        return self._per_element(_ERROR_SQUARED)

    @property
    def mre(self) -> np.ndarray:
        """Mean relative error, a ratio, ``(layers,)``; NaN where it was not measured, or no float value is other than 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.relative_sums[:, 0] / self.relative_sums[:, 1]

    @property
    def has_relative_errors(self) -> bool:
        """Whether `mre` was measured, on every sample."""
        return not np.isnan(self.relative_sums[:, 1]).any()

    @property
    def rmse(self) -> np.ndarray:
        """Root mean square error in real units, ``(layers,)``."""
        return np.sqrt(self._per_element(_ERROR_SQUARED))

    @property
    def sqnr_db(self) -> np.ndarray:
        """Signal to quantization noise in dB, ``(layers,)``; infinite without error, NaN where signal and error are 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 10.0 * np.log10(self.sums[:, _FLOAT_SQUARED] / self.sums[:, _ERROR_SQUARED])

    @property
    def cosine(self) -> np.ndarray:
        """Cosine similarity of dequantized and float values, ``(layers,)``; NaN where either is zero throughout."""
        squared, product, error = (self.sums[:, column] for column in (_FLOAT_SQUARED, _ERROR_FLOAT, _ERROR_SQUARED))
        dequantized_squared = np.maximum(squared + 2.0 * product + error, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip((squared + product) / np.sqrt(squared * dequantized_squared), -1.0, 1.0)

    @property
    def saturated_low(self) -> np.ndarray:
        """Share of values at the least integer, 0..1, ``(layers,)``."""
        return self._per_element(_LOW)

    @property
    def saturated_high(self) -> np.ndarray:
        """Share of values at the greatest integer, 0..1, ``(layers,)``."""
        return self._per_element(_HIGH)

    def range_used(self, levels: np.ndarray) -> np.ndarray:
        """Returns the share of the integer range between the least and the greatest value seen, 0..1.

        Args:
            levels: Number of integers that each layer's type has (256 for int8), ``(layers,)``; NaN for a float tensor.
        """
        spread = np.clip(self.integer_range[:, 1].astype(float) - self.integer_range[:, 0].astype(float) + 1, 0, None)
        return spread / levels

    def to_dict(self) -> Dict[str, Any]:
        """Returns plain lists and numbers, for the saved run."""
        fields: Dict[str, Any] = {name: getattr(self, name).tolist() for name in self._FIELDS}
        fields["samples"] = self.samples
        if np.isnan(self.relative_sums[self.sums[:, _COUNT] > 0, 1]).all():
            del fields["relative_sums"]  # which says the same as rows of NaN
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ErrorStatistics:
        """Reads what ``to_dict`` gave."""
        statistics = cls(len(fields["max_abs_error"]))
        statistics.samples = int(fields["samples"])
        fields = dict(fields)
        fields.setdefault("relative_sums", _unmeasured(np.asarray(fields["sums"], dtype=np.float64)))
        for name in cls._FIELDS:
            empty = getattr(statistics, name)
            # A run saved before there was the inner error: the greatest of all is the nearest that it has.
            values = fields.get(name, fields["max_abs_error"]) if name == "max_inner_error" else fields[name]
            setattr(statistics, name, np.asarray(values, dtype=empty.dtype).reshape(empty.shape))
        return statistics


def _unmeasured(sums: np.ndarray) -> np.ndarray:
    """Returns relative sums that say of every layer with elements that they were not measured."""
    present = sums.reshape(-1, len(_SUM_COLUMNS))[:, _COUNT] > 0
    return np.repeat(np.where(present, np.nan, 0.0)[:, np.newaxis], RELATIVE_COLUMNS, axis=1)


class Histogram(Shown):
    """Counts of values in bins whose width is a power of two and one of whose edges is zero; ``a + b`` is exact.

    When values outgrow the bins, the width doubles and neighbours are added up, which loses no count. Two histograms of
    different width are merged by first bringing the finer to the width of the coarser.

    Attributes:
        exponent: The bin width is ``2 ** exponent``; None before the first value other than zero.
        first: Position of the first bin; bin k covers ``[(first + k), (first + k + 1)) * 2 ** exponent``.
        counts: int64 ``(bins,)``.
        zeros: How many values were exactly zero; they stand in no bin.
        minimum: Least value, +inf before any.
        maximum: Greatest value, -inf before any.
    """

    __slots__ = ("counts", "exponent", "first", "limit", "maximum", "minimum", "zeros")

    def __init__(self, bins: int = 2048) -> None:
        """Makes an empty histogram that never has more than ``bins`` bins on either side of zero."""
        self.limit = bins
        self.exponent: Optional[int] = None
        self.first = 0
        self.counts = np.zeros(0, dtype=np.int64)
        self.zeros = 0
        self.minimum = np.inf
        self.maximum = -np.inf

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum()) + self.zeros

    def add(self, values: np.ndarray, minimum: Optional[float] = None, maximum: Optional[float] = None) -> None:
        """Counts float values of any shape; ``minimum`` and ``maximum`` spare two passes where they are known."""
        if not values.size:
            return
        low = float(values.min()) if minimum is None else minimum
        high = float(values.max()) if maximum is None else maximum
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        largest = max(abs(low), abs(high))
        if largest == 0.0:
            self.zeros += values.size
            return
        self._coarsen_to(self._exponent_for(largest))
        assert self.exponent is not None
        # A power of two: the product is exact, so a value on an edge stays on it.
        per_bin = np.float64(2.0) ** -self.exponent
        first, last = int(np.floor(low * per_bin)), int(np.floor(high * per_bin))
        counts = np.zeros(last - first + 1, dtype=np.int64)
        self.zeros += int(count_values()(np.ascontiguousarray(values).reshape(-1), per_bin, first, counts))
        self._add_counts(first, counts)

    def add_weighted(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Counts each float value so many times; both ``(values,)``."""
        present = np.flatnonzero(counts)
        if not len(present):
            return
        real, times = np.asarray(values, dtype=np.float64)[present], np.asarray(counts)[present]
        self.minimum, self.maximum = min(self.minimum, float(real.min())), max(self.maximum, float(real.max()))
        self.zeros += int(times[real == 0.0].sum())
        real, times = real[real != 0.0], times[real != 0.0]
        if not len(real):
            return
        self._coarsen_to(self._exponent_for(float(np.abs(real).max())))
        assert self.exponent is not None
        places = np.floor(np.ldexp(real, -self.exponent)).astype(np.int64)
        counted = np.zeros(int(places.max() - places.min()) + 1, dtype=np.int64)
        np.add.at(counted, places - places.min(), times)
        self._add_counts(int(places.min()), counted)

    def coarsened(self, bins: int) -> Histogram:
        """Returns a copy with at most ``bins`` bins on either side of zero: neighbours are added up, no count is lost."""
        coarse = Histogram(bins)
        if self.exponent is not None:
            last, steps = self.first + len(self.counts) - 1, 0
            while (last >> steps) >= bins or (self.first >> steps) < -bins:
                steps += 1
            coarse.exponent = self.exponent + steps
        return coarse + self

    def _exponent_for(self, largest: float) -> int:
        # frexp: largest < 2**power; the bins must reach it, and the limit is a number of bins on one side of zero
        power = int(np.frexp(largest)[1])
        return power - int(np.floor(np.log2(self.limit)))

    def _coarsen_to(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
            return
        steps = exponent - self.exponent
        if steps <= 0:
            return
        if len(self.counts):
            places = (np.arange(len(self.counts)) + self.first) >> steps
            first = int(places[0])
            self.counts = np.bincount(places - first, weights=self.counts).astype(np.int64)
            self.first = first
        self.exponent = exponent

    def _add_counts(self, first: int, counts: np.ndarray) -> None:
        if not len(self.counts):
            self.first, self.counts = first, counts.astype(np.int64)
            return
        low = min(self.first, first)
        high = max(self.first + len(self.counts), first + len(counts))
        total = np.zeros(high - low, dtype=np.int64)
        total[self.first - low : self.first - low + len(self.counts)] += self.counts
        total[first - low : first - low + len(counts)] += counts
        self.first, self.counts = low, total

    def copy(self) -> Histogram:
        """Returns an independent copy."""
        other = Histogram(self.limit)
        other.exponent, other.first, other.counts = self.exponent, self.first, self.counts.copy()
        other.zeros, other.minimum, other.maximum = self.zeros, self.minimum, self.maximum
        return other

    def __add__(self, other: Histogram) -> Histogram:
        total, addend = self.copy(), other.copy()
        total.zeros += addend.zeros
        total.minimum, total.maximum = min(total.minimum, addend.minimum), max(total.maximum, addend.maximum)
        if addend.exponent is not None:
            if total.exponent is not None:
                addend._coarsen_to(total.exponent)
            total._coarsen_to(addend.exponent)
            total._add_counts(addend.first, addend.counts)
        return total

    def edges(self) -> np.ndarray:
        """Returns the edges of the bins, float64 ``(bins + 1,)``."""
        return np.ldexp((np.arange(len(self.counts) + 1) + self.first).astype(np.float64), self.exponent or 0)

    def to_dict(self) -> Dict[str, Any]:
        """Returns plain numbers, for the saved run."""
        return {
            "exponent": self.exponent,
            "first": self.first,
            "counts": self.counts.tolist(),
            "zeros": self.zeros,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Histogram:
        """Reads what ``to_dict`` gave."""
        histogram = cls()
        histogram.exponent = None if fields["exponent"] is None else int(fields["exponent"])
        histogram.first, histogram.zeros = int(fields["first"]), int(fields["zeros"])
        histogram.counts = np.asarray(fields["counts"], dtype=np.int64)
        histogram.minimum, histogram.maximum = float(fields["minimum"]), float(fields["maximum"])
        return histogram

    def __repr__(self) -> str:
        return "Histogram({} values in {} bins, {:.6g} .. {:.6g})".format(
            self.total, len(self.counts), self.minimum, self.maximum
        )
