"""The innermost loop: what one sample adds to one layer's statistics.

Twice the same arithmetic: with numba, where it is installed, in one pass over memory; with numpy alone, in some ten. Both
release the interpreter lock.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Tuple

import numpy as np

__all__ = [
    "CHANNEL_COLUMNS",
    "COLUMNS",
    "OPTIMIZED_STRIDE",
    "RELATIVE_COLUMNS",
    "SCAN_COLUMNS",
    "arguments",
    "count_channels",
    "count_values",
    "dequantized",
    "measure_pair",
    "measure_relative",
    "scan_channels",
    "scan_values",
]

#: What ``measure_pair`` fills: the seven columns of ``SampleSums.sums``, then max |e|, standard deviation of e, least and
#: greatest integer, and max |e| where the float value is within the range that the integers have.
COLUMNS = 12

#: What ``measure_relative`` fills: the sum of |e| / |r| over float values r other than zero, and how many these are.
RELATIVE_COLUMNS = 2

#: What ``scan_values`` fills: number of values, least, greatest, mean, sums of the second, third and fourth powers of what they
#: are off the mean, how many are negative, below the range, above it, and near zero.
SCAN_COLUMNS = 11
#: What ``scan_channels`` fills: the first five of these.
CHANNEL_COLUMNS = 5

#: How many elements the optimized DEQUANTIZE takes at once.
OPTIMIZED_STRIDE = 8

# Errors and float values of a block stay in the second-level cache.
_BLOCK = 65536


def arguments(scale: float, zero_point: int, low: int, high: int, stride: int) -> Tuple[float, float, float, int, int, int]:
    """Returns what the function of `measure_pair` takes between the values and the row.

    Args:
        scale: Real units per step.
        zero_point: The integer that stands for 0.0.
        low: Least integer of the type.
        high: Greatest integer of the type.
        stride: As for `dequantized`.
    """
    step, point = np.float32(scale), np.float32(zero_point)
    return float(step), float(point), float(-point * step), low, high, stride


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are results here
def dequantized(values: np.ndarray, scale: float, zero_point: float, stride: int) -> np.ndarray:
    """Returns the float32 values that TensorFlow Lite's DEQUANTIZE and NumericVerify compute, to the last bit.

    Its optimized kernels take ``stride`` elements at once as ``q * scale + (-zero_point * scale)``, each product rounded, and
    what is left over as ``(q - zero_point) * scale``, as the reference kernels take all.

    Args:
        values: Integers, of any shape.
        scale: Real units per step.
        zero_point: The integer that stands for 0.0.
        stride: 8 for the optimized kernels, 0 for the reference kernels.
    """
    step, point = np.float32(scale), np.float32(zero_point)
    result = values.reshape(-1).astype(np.float32)
    body = result.size - result.size % stride if stride else 0
    result[:body] *= step
    result[:body] += -point * step
    result[body:] -= point
    result[body:] *= step
    return result.reshape(values.shape)


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are results here
def _with_numpy(
    values: np.ndarray,
    reference: np.ndarray,
    scale: float,
    zero_point: float,
    offset: float,
    low: int,
    high: int,
    stride: int,
    row: np.ndarray,
) -> None:
    quantized = low != high
    row[:] = 0.0
    row[0] = reference.size
    peaks, inner = [], []
    least, greatest = ((low - 0.5 - zero_point) * scale, (high + 0.5 - zero_point) * scale) if quantized else (-np.inf, np.inf)
    for start in range(0, reference.size, _BLOCK):
        signal = reference[start : start + _BLOCK]
        error = dequantized(values[start : start + _BLOCK], scale, zero_point, stride)
        error -= signal
        row[1] += np.add.reduce(error, dtype=np.float64)
        # Dot products run in vector instructions, which numpy's sum does only in part.
        products = np.dot(error, error), np.dot(signal, signal), np.dot(error, signal)
        if not np.isfinite(products).all():
            # Squares beyond float32, as of an attention mask of -3.4e38: once more, with room for them.
            wide_error, wide_signal = error.astype(np.float64), signal.astype(np.float64)
            products = np.dot(wide_error, wide_error), np.dot(wide_signal, wide_signal), np.dot(wide_error, wide_signal)
        row[2:5] += products
        peaks += [np.maximum.reduce(error), -np.minimum.reduce(error)]
        within = (signal >= np.float32(least)) & (signal <= np.float32(greatest))
        inner.append(np.max(np.abs(error), where=within, initial=0.0))
    row[7] = np.max(peaks) if peaks else 0.0
    row[11] = np.max(inner) if inner else 0.0
    mean = row[1] / row[0] if row[0] else 0.0
    variance = row[2] / row[0] - mean * mean if row[0] else 0.0
    if variance < 0.1 * row[2] / max(row[0], 1.0):
        # The bias is most of the error: the difference of the two sums would cancel.
        variance = np.var(dequantized(values, scale, zero_point, stride) - reference, dtype=np.float64)
    row[8] = np.sqrt(variance)
    if quantized:
        row[9], row[10] = high, low  # the range of nothing, which leaves another range as it is when they are joined
    if quantized and reference.size:
        row[9], row[10] = np.minimum.reduce(values), np.maximum.reduce(values)
        row[5] = np.count_nonzero(values == low) if row[9] == low else 0
        row[6] = np.count_nonzero(values == high) if row[10] == high else 0


@functools.lru_cache(maxsize=None)
def measure_pair() -> Tuple[str, Callable[..., Any]]:
    """Returns which library measures, and the function ``f(values, reference, *arguments(...), row)``.

    ``values`` and ``reference`` are one-dimensional and equally long, the latter float32; ``row`` is float64 ``(COLUMNS,)``.
    Where only weights are quantized the values are float32, with scale 1, zero point 0 and equal ends.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return "numpy", _with_numpy
    return "numba {}".format(numba_kernels.VERSION), numba_kernels.measure


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are results here
def _relative_with_numpy(
    values: np.ndarray,
    reference: np.ndarray,
    scale: float,
    zero_point: float,
    offset: float,
    low: int,
    high: int,
    stride: int,
    row: np.ndarray,
) -> None:
    row[:] = 0.0
    for start in range(0, reference.size, _BLOCK):
        signal = reference[start : start + _BLOCK]
        error = dequantized(values[start : start + _BLOCK], scale, zero_point, stride)
        error -= signal
        present = signal != 0  # true of NaN, which must not get lost
        row[0] += np.add.reduce(np.abs(error[present]).astype(np.float64) / np.abs(signal[present]))
        row[1] += np.count_nonzero(present)


@functools.lru_cache(maxsize=None)
def measure_relative() -> Callable[..., None]:
    """Returns the function ``f(values, reference, *arguments(...), row)``; ``row`` is float64 ``(RELATIVE_COLUMNS,)``.

    ``values`` and ``reference`` are as for `measure_pair`. Apart from it, since a division for each element takes about as long
    as all else that is measured. The quotients are float64: a value of 1e-40 lets them leave float32.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return _relative_with_numpy
    return numba_kernels.measure_relative  # type: ignore[no-any-return]


def _count_with_numpy(values: np.ndarray, per_bin: float, first: int, counts: np.ndarray) -> int:
    nonzero = values[values != 0]
    bins = np.floor(nonzero.astype(np.float64) * per_bin).astype(np.int64) - first
    counts += np.bincount(bins, minlength=len(counts))
    return int(values.size - nonzero.size)


@functools.lru_cache(maxsize=None)
def count_values() -> Callable[..., int]:
    """Returns the function ``f(values, bins per unit, first bin, counts)`` that counts into bins and returns the zeros.

    ``values`` is one-dimensional and float; a value ``v`` other than zero counts in ``counts[floor(v * per_bin) - first]``.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return _count_with_numpy
    return numba_kernels.count  # type: ignore[no-any-return]


def _scan_with_numpy(values: np.ndarray, least: float, greatest: float, near: float, row: np.ndarray) -> None:
    lower, upper, close = np.float32(least), np.float32(greatest), np.float32(near)
    row[:] = 0.0
    row[0], row[1], row[2] = values.size, values.min(), values.max()
    with np.errstate(invalid="ignore"):  # infinity less infinity: the caller looks whether the mean is finite
        row[3] = mean = np.add.reduce(values, dtype=np.float64) / values.size
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            deviation = block.astype(np.float64) - mean
            square = deviation * deviation
            row[4:7] += square.sum(), np.dot(square, deviation), np.dot(square, square)
            row[7:10] += np.count_nonzero(block < 0), np.count_nonzero(block < lower), np.count_nonzero(block > upper)
            row[10] += np.count_nonzero(np.abs(block) < close)


@functools.lru_cache(maxsize=None)
def scan_values() -> Callable[..., None]:
    """Returns the function ``f(values, least, greatest, near, row)`` that fills ``row``, float64 ``(SCAN_COLUMNS,)``.

    ``values`` is one-dimensional, float32 and not empty; below and above count what is less than ``least`` and more than
    ``greatest``, near zero what is smaller in size than ``near``, all three as float32. The mean is taken first, and the powers
    about it, so that nothing cancels. It is finite only where all values are.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return _scan_with_numpy
    return numba_kernels.scan  # type: ignore[no-any-return]


def _scan_channels_with_numpy(values: np.ndarray, rows: np.ndarray) -> None:
    rows[:, 0] = values.shape[0] * values.shape[2]
    rows[:, 1], rows[:, 2] = values.min(axis=(0, 2)), values.max(axis=(0, 2))
    rows[:, 3] = values.mean(axis=(0, 2), dtype=np.float64)
    rows[:, 4] = np.square(values - rows[:, 3][:, np.newaxis]).sum(axis=(0, 2))


@functools.lru_cache(maxsize=None)
def scan_channels() -> Callable[..., None]:
    """Returns the function ``f(values, rows)`` that fills ``rows``, float64 ``(channels, CHANNEL_COLUMNS)``.

    ``values`` is float32 ``(before, channels, behind)``, finite and not empty.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return _scan_channels_with_numpy
    return numba_kernels.scan_channels  # type: ignore[no-any-return]


def _count_channels_with_numpy(values: np.ndarray, per_bin: np.ndarray, counts: np.ndarray, zeros: np.ndarray) -> None:
    channels, bins = counts.shape
    places = np.floor(values * per_bin[:, np.newaxis]).astype(np.int64) + bins // 2
    places += np.arange(channels)[:, np.newaxis] * bins
    present = values != 0
    counts += np.bincount(places[present], minlength=counts.size).reshape(counts.shape)
    zeros += np.count_nonzero(~present, axis=(0, 2))


@functools.lru_cache(maxsize=None)
def count_channels() -> Callable[..., None]:
    """Returns the function ``f(values, bins per unit, counts, zeros)`` that counts the values of each channel into bins.

    ``values`` is float32 ``(before, channels, behind)``, ``per_bin`` float64 ``(channels,)``, ``counts`` int64
    ``(channels, bins)``, the middle of which is zero, and ``zeros`` int64 ``(channels,)``: values of zero stand in no bin.
    """
    try:
        from tflite_qdebug import numba_kernels
    except ImportError:
        return _count_channels_with_numpy
    return numba_kernels.count_channels  # type: ignore[no-any-return]
