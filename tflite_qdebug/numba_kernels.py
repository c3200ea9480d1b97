"""The inner loop for numba: one short loop per purpose over a block that stays in cache, each a vector instruction stream.

Imported only by ``kernels.measure_pair``, where numba is installed. Sums may be reordered, which vector instructions need;
NaN and infinity keep their meaning, so the flags that assume their absence stay off.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

VERSION = numba.__version__
_FLAGS = {"reassoc", "contract", "nsz", "arcp"}
_BLOCK = 4096
_compiled = numba.njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")


@_compiled
def _errors(values: Any, reference: Any, scale: Any, zero_point: Any, offset: Any, stride: Any, errors: Any) -> None:
    # Several loops, lest a product and a sum become one instruction that does not round the product: the kernels of
    # TensorFlow Lite do round it, and where both values are equal there must be no error. For the same reason the offset,
    # itself a product, comes from outside.
    body = values.size - values.size % stride if stride else 0
    for i in range(body):
        errors[i] = np.float32(values[i]) * scale
    for i in range(body):
        errors[i] = (errors[i] + offset) - reference[i]
    for i in range(body, values.size):
        errors[i] = (np.float32(values[i]) - zero_point) * scale
    for i in range(body, values.size):
        errors[i] -= reference[i]


@_compiled
def _sums(errors: Any, reference: Any) -> Any:
    total = squared = signal_squared = product = np.float32(0.0)
    for i in range(errors.size):
        error, signal = errors[i], reference[i]
        total += error
        squared += error * error
        signal_squared += signal * signal
        product += error * signal
    return total, squared, signal_squared, product


@_compiled
def _peaks(bits: Any, reference: Any, least: Any, greatest: Any) -> Any:
    # As integers, absolute values of floats are in the same order, and NaN is above infinity: it cannot get lost.
    peak = inner = np.int32(0)
    for i in range(bits.size):
        magnitude = bits[i] & np.int32(0x7FFFFFFF)
        peak = magnitude if magnitude > peak else peak
        magnitude = magnitude if (reference[i] >= least) & (reference[i] <= greatest) else np.int32(0)
        inner = magnitude if magnitude > inner else inner
    return peak, inner


@_compiled
def _extremes(values: Any) -> Any:
    least = greatest = values[0]
    for i in range(values.size):
        value = values[i]
        least = value if value < least else least
        greatest = value if value > greatest else greatest
    return least, greatest


@_compiled
def _count(values: Any, end: Any) -> Any:
    count = np.int32(0)
    for i in range(values.size):
        count += np.int32(values[i] == end)
    return count


@_compiled
def _variance_about(
    values: Any, reference: Any, scale: Any, zero_point: Any, offset: Any, stride: Any, mean: Any, errors: Any
) -> Any:
    # The mean is known as well as float32 knows it: what it is off by is taken out again.
    total = squared = 0.0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        _errors(block, reference[start : start + _BLOCK], scale, zero_point, offset, stride, errors)
        for i in range(block.size):
            deviation = np.float64(errors[i]) - mean
            total += deviation
            squared += deviation * deviation
    total /= values.size
    return max(squared / values.size - total * total, 0.0)


@_compiled
def _wide_sums(values: Any, reference: Any, scale: Any, zero_point: Any, offset: Any, stride: Any, errors: Any) -> Any:
    squared = signal_squared = product = 0.0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        _errors(block, reference[start : start + _BLOCK], scale, zero_point, offset, stride, errors)
        for i in range(block.size):
            error, signal = np.float64(errors[i]), np.float64(reference[start + i])
            squared += error * error
            signal_squared += signal * signal
            product += error * signal
    return squared, signal_squared, product


@_compiled
def measure(
    values: Any,
    reference: Any,
    scale: Any,
    zero_point: Any,
    offset: Any,
    low: Any,
    high: Any,
    stride: Any,
    row: Any,
) -> None:
    """As ``kernels.measure_pair`` describes."""
    size = reference.size
    step, point, shift = np.float32(scale), np.float32(zero_point), np.float32(offset)
    errors = np.empty(min(size, _BLOCK), dtype=np.float32)
    bits = errors.view(np.int32)
    peaks = np.zeros(2, dtype=np.int32)
    lower, upper = np.float32(-np.inf), np.float32(np.inf)
    if low != high:
        lower, upper = np.float32((low - 0.5 - point) * step), np.float32((high + 0.5 - point) * step)
    total = squared = signal_squared = product = 0.0
    count_low = count_high = 0
    least, greatest = high, low
    for start in range(0, size, _BLOCK):
        block, signal = values[start : start + _BLOCK], reference[start : start + _BLOCK]
        error = errors[: block.size]
        _errors(block, signal, step, point, shift, stride, error)
        sums = _sums(error, signal)
        total += sums[0]
        squared += sums[1]
        signal_squared += sums[2]
        product += sums[3]
        found = _peaks(bits[: block.size], signal, lower, upper)
        peaks[0], peaks[1] = max(peaks[0], found[0]), max(peaks[1], found[1])
        if low != high:
            extremes = _extremes(block)
            least, greatest = min(least, extremes[0]), max(greatest, extremes[1])
            if extremes[0] == low:
                count_low += _count(block, extremes[0])
            if extremes[1] == high:
                count_high += _count(block, extremes[1])
    # Comparisons, since reordering makes nothing of isfinite's x - x; as an integer infinity is 0x7F800000.
    if not squared + signal_squared + abs(product) < np.inf and peaks[0] < 0x7F800000:
        # Squares beyond float32, as of an attention mask of -3.4e38: once more, with room for them.
        squared, signal_squared, product = _wide_sums(values, reference, step, point, shift, stride, errors)
    mean = total / max(size, 1)
    mean_squared = squared / max(size, 1)
    variance = mean_squared - mean * mean
    if variance < 0.1 * mean_squared:
        # The bias is most of the error: the difference of the two sums would cancel.
        variance = _variance_about(values, reference, step, point, shift, stride, mean, errors)
    row[0], row[1], row[2], row[3], row[4] = size, total, squared, signal_squared, product
    row[5], row[6], row[7], row[8] = count_low, count_high, peaks.view(np.float32)[0], np.sqrt(variance)
    row[9], row[10], row[11] = least, greatest, peaks.view(np.float32)[1]


@_compiled
def _relative_sums(errors: Any, reference: Any) -> Any:
    total, count = 0.0, np.int32(0)
    for i in range(errors.size):
        error, signal = np.float64(abs(errors[i])), np.float64(abs(reference[i]))
        # Divided first and chosen then: a choice between two numbers is a vector instruction, a branch is none.
        ratio = error / signal
        total += ratio if signal != 0.0 else 0.0
        count += np.int32(signal != 0.0)
    return total, count


@_compiled
def measure_relative(
    values: Any,
    reference: Any,
    scale: Any,
    zero_point: Any,
    offset: Any,
    low: Any,
    high: Any,
    stride: Any,
    row: Any,
) -> None:
    """As ``kernels.measure_relative`` describes."""
    size = reference.size
    step, point, shift = np.float32(scale), np.float32(zero_point), np.float32(offset)
    errors = np.empty(min(size, _BLOCK), dtype=np.float32)
    row[0] = row[1] = 0.0
    for start in range(0, size, _BLOCK):
        block, signal = values[start : start + _BLOCK], reference[start : start + _BLOCK]
        error = errors[: block.size]
        _errors(block, signal, step, point, shift, stride, error)
        sums = _relative_sums(error, signal)
        row[0] += sums[0]
        row[1] += sums[1]


@_compiled
def count(values: Any, per_bin: Any, first: Any, counts: Any) -> Any:
    """As ``kernels.count_values`` describes."""
    zeros = 0
    for i in range(values.size):
        value = np.float64(values[i])
        if value == 0.0:
            zeros += 1
        else:
            counts[np.int64(np.floor(value * per_bin)) - first] += 1
    return zeros


@_compiled
def _sum(values: Any) -> Any:
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i])
    return total


@_compiled
def _powers(values: Any, mean: Any) -> Any:
    second = third = fourth = 0.0
    for i in range(values.size):
        deviation = np.float64(values[i]) - mean
        square = deviation * deviation
        second += square
        third += square * deviation
        fourth += square * square
    return second, third, fourth


@_compiled
def _tallies(values: Any, least: Any, greatest: Any, near: Any) -> Any:
    negative = below = above = close = np.int32(0)  # of one block
    for i in range(values.size):
        value = values[i]
        negative += np.int32(value < np.float32(0.0))
        below += np.int32(value < least)
        above += np.int32(value > greatest)
        close += np.int32(abs(value) < near)
    return negative, below, above, close


@_compiled
def scan(values: Any, least: Any, greatest: Any, near: Any, row: Any) -> None:
    """As ``kernels.scan_values`` describes."""
    lower, upper, close = np.float32(least), np.float32(greatest), np.float32(near)
    row[:] = 0.0
    row[0] = values.size
    extremes = _extremes(values)
    row[1], row[2] = extremes[0], extremes[1]
    row[3] = _sum(values) / values.size
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        powers = _powers(block, row[3])
        tallies = _tallies(block, lower, upper, close)
        for i in range(3):
            row[4 + i] += powers[i]
        for i in range(4):
            row[7 + i] += tallies[i]


@_compiled
def scan_channels(values: Any, rows: Any) -> None:
    """As ``kernels.scan_channels`` describes."""
    before, channels, behind = values.shape
    rows[:, 0] = before * behind
    rows[:, 1] = np.inf
    rows[:, 2] = -np.inf
    rows[:, 3:] = 0.0
    for i in range(before):
        for channel in range(channels):
            for j in range(behind):
                value = np.float64(values[i, channel, j])
                rows[channel, 1] = min(rows[channel, 1], value)
                rows[channel, 2] = max(rows[channel, 2], value)
                rows[channel, 3] += value
    for channel in range(channels):
        rows[channel, 3] /= before * behind
    for i in range(before):
        for channel in range(channels):
            for j in range(behind):
                deviation = np.float64(values[i, channel, j]) - rows[channel, 3]
                rows[channel, 4] += deviation * deviation


@_compiled
def count_channels(values: Any, per_bin: Any, counts: Any, zeros: Any) -> None:
    """As ``kernels.count_channels`` describes."""
    before, channels, behind = values.shape
    middle = counts.shape[1] // 2
    for i in range(before):
        for channel in range(channels):
            for j in range(behind):
                value = np.float64(values[i, channel, j])
                if value == 0.0:
                    zeros[channel] += 1
                else:
                    counts[channel, np.int64(np.floor(value * per_bin[channel])) + middle] += 1
