"""Statistics against float64 arithmetic by hand, the laws of merging, and the two inner loops against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contracts import check_mergeable

from tflite_qdebug import kernels
from tflite_qdebug.statistics import ErrorStatistics, Histogram, SampleSums

SCALE, ZERO_POINT = 0.05, -7


def loops() -> list[Any]:
    name, measure = kernels.measure_pair()
    found = [pytest.param(kernels._with_numpy, id="numpy")]
    if name != "numpy":
        found.append(pytest.param(measure, id="numba"))
    return found


def measured(
    values: np.ndarray,
    reference: np.ndarray,
    scale: float = SCALE,
    zero_point: float = ZERO_POINT,
    measure: Callable[..., Any] = kernels._with_numpy,
    stride: int = kernels.OPTIMIZED_STRIDE,
) -> np.ndarray:
    limits = (0, 0) if values.dtype.kind == "f" else (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)
    row = np.zeros(kernels.COLUMNS)
    measure(values, reference, *kernels.arguments(scale, zero_point, int(limits[0]), int(limits[1]), stride), row)
    return row


def sums_of(values: np.ndarray, reference: np.ndarray, **options: Any) -> SampleSums:
    return SampleSums(measured(values, reference, **options)[np.newaxis])


def pair(count: int, dtype: Any = np.int8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Integers, and float values that lie off them by noise of about half a step."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        values = generator.normal(0.0, 2.0, count).astype(dtype)
        return values, (values + generator.normal(0.0, 0.1, count)).astype(np.float32)
    limits = np.iinfo(dtype)
    values = generator.integers(max(limits.min, -2000), min(limits.max, 2000) + 1, count).astype(dtype)
    real = (values.astype(np.float64) - ZERO_POINT) * SCALE
    return values, (real + generator.normal(0.0, SCALE / 2, count)).astype(np.float32)


def by_hand(values: np.ndarray, reference: np.ndarray, scale: float, zero_point: float) -> dict[str, float]:
    error = (values.astype(np.float64) - zero_point) * np.float64(np.float32(scale)) - reference.astype(np.float64)
    signal = reference.astype(np.float64)
    return {
        "count": len(values),
        "sum": error.sum(),
        "squared": (error**2).sum(),
        "signal": (signal**2).sum(),
        "product": (error * signal).sum(),
        "peak": np.abs(error).max() if len(error) else 0.0,
        "stddev": error.std() if len(error) else 0.0,
    }


@pytest.mark.parametrize("measure", loops())
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 70000])
def test_a_sample_gives_the_sums_of_float64_arithmetic(measure: Callable[..., Any], dtype: Any, count: int) -> None:
    values, reference = pair(count, dtype, seed=count)
    scale, zero_point = (1.0, 0.0) if dtype is np.float32 else (SCALE, ZERO_POINT)
    row = measured(values, reference, scale, zero_point, measure)
    hand = by_hand(values, reference, scale, zero_point)
    rmse = math.sqrt(hand["squared"] / max(count, 1))
    # float32 holds a value of 200 to 1e-5, in which an error of 0.03 stands: 1e-3 of it at worst, random over elements.
    unit = float(np.abs(reference).max(initial=0.0)) * 2.0**-23
    assert row[0] == count
    assert row[1] == pytest.approx(hand["sum"], abs=unit * count + 1e-12)
    assert row[2] == pytest.approx(hand["squared"], abs=2 * unit * rmse * count + 1e-12)
    assert row[3] == pytest.approx(hand["signal"], rel=1e-5, abs=1e-12)
    assert row[4] == pytest.approx(hand["product"], abs=3 * unit * math.sqrt(hand["signal"] * count) + 1e-6)
    assert row[7] == pytest.approx(hand["peak"], abs=2 * unit)
    assert row[8] == pytest.approx(hand["stddev"], abs=2 * unit + 1e-5 * rmse)
    if dtype is not np.float32 and count:
        limits = np.iinfo(dtype)
        assert row[5:7].tolist() == [(values == limits.min).sum(), (values == limits.max).sum()]
        assert row[9:11].tolist() == [values.min(), values.max()]
        if count >= 4095 and dtype is not np.int16:
            assert min(row[5:7]) > 0, "the sample must reach both ends"


@pytest.mark.parametrize("measure", loops())
def test_the_inner_error_leaves_out_what_the_range_clips(measure: Callable[..., Any]) -> None:
    # Steps of 0.5 around 0: the integers reach from -64 to 63.5, and what rounds to these from a quarter beyond.
    values = np.array([127, 127, -128, 10, 127], np.int8)
    reference = np.array([90.0, 63.7, -64.2, 8.0, 60.0], np.float32)
    row = measured(values, reference, 0.5, 0, measure)
    assert row[7] == 26.5
    assert row[11] == 3.5  # of 60, which is within the range; of 8 it is 3
    floats = measured(np.array([1.0, 5.0], np.float32), np.array([1.0, 3.0], np.float32), 1.0, 0, measure)
    assert floats[[7, 11]].tolist() == [2.0, 2.0]


@pytest.mark.skipif(len(loops()) < 2, reason="numba is not installed")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 70000])
@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
def test_numba_and_numpy_agree(dtype: Any, count: int, odd: float | None) -> None:
    values, reference = pair(count, dtype, seed=count + 1)
    if odd is not None and count:
        reference[count // 2] = odd
    scale, zero_point = (1.0, 0.0) if dtype is np.float32 else (SCALE, ZERO_POINT)
    expected = measured(values, reference, scale, zero_point)
    got = measured(values, reference, scale, zero_point, kernels.measure_pair()[1])
    exact = [0, 5, 6, 9, 10]
    np.testing.assert_array_equal(got[exact], expected[exact])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    # numba's product and difference are rounded once, numpy's twice: off by a unit of the largest value at each element.
    finite = np.isfinite(expected)
    unit = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0)) * 2.0**-23
    signal = np.sqrt(float(np.nansum(np.square(reference[np.isfinite(reference)], dtype=np.float64))) * count)
    tolerance = np.array([0, count, count * 0.1, 10 * signal, 3 * signal, 0, 0, 2, 2, 0, 0, 2]) * unit + 1e-12
    assert (np.abs(got[finite] - expected[finite]) <= tolerance[finite]).all(), (got, expected)


@pytest.mark.parametrize("measure", loops())
@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 4096, 69999])
def test_one_nan_or_infinity_among_many_is_not_lost(measure: Callable[..., Any], odd: float, place: int) -> None:
    values, reference = pair(70000)
    reference[place] = odd
    row = measured(values, reference, measure=measure)
    assert not np.isfinite(row[[1, 2, 4, 7, 8]]).any()
    assert np.isnan(row[7]) if math.isnan(odd) else row[7] == math.inf
    statistics = ErrorStatistics(1)
    statistics.add(0, sums_of(*pair(100)))
    statistics.add(1, SampleSums(row[np.newaxis]))
    assert not np.isfinite(statistics.rmse[0])
    assert not np.isfinite(statistics.max_abs_error[0])
    assert statistics.worst_sample[0] == 1
    # TensorFlow leaves a NaN sample out of its mean; an infinite one makes the mean infinite.
    assert statistics.tensorflow_counts[0, 0] == 2


@pytest.mark.parametrize("measure", loops())
@pytest.mark.parametrize("bias", [1.0, 30.0, 1000.0])
def test_stddev_is_exact_where_the_bias_is_most_of_the_error(measure: Callable[..., Any], bias: float) -> None:
    values, reference = pair(50000)
    reference = (reference.astype(np.float64) + bias).astype(np.float32)
    row = measured(values, reference, measure=measure)
    hand = by_hand(values, reference, SCALE, ZERO_POINT)
    rmse = math.sqrt(hand["squared"] / 50000)
    assert abs(row[8] - hand["stddev"]) < 1e-5 * rmse


@pytest.mark.parametrize("measure", loops())
def test_values_at_the_ends_are_counted(measure: Callable[..., Any]) -> None:
    values = np.array([-128, -128, 5, 127, 127, 127, 126, -127], dtype=np.int8)
    row = measured(values, np.zeros(8, dtype=np.float32), 1.0, 0.0, measure)
    assert row[5:7].tolist() == [2, 3]
    assert row[9:11].tolist() == [-128, 127]
    statistics = ErrorStatistics(1)
    statistics.add(0, SampleSums(row[np.newaxis]))
    assert statistics.saturated_low[0] == 2 / 8
    assert statistics.saturated_high[0] == 3 / 8
    assert statistics.range_used(np.array([256.0]))[0] == 1.0


# -------------------------------------------------------------------------------------------------------- relative error


def relative_loops() -> list[Any]:
    found = [pytest.param(kernels._relative_with_numpy, id="numpy")]
    if kernels.measure_relative() is not kernels._relative_with_numpy:
        found.append(pytest.param(kernels.measure_relative(), id="numba"))
    return found


def relative(
    values: np.ndarray,
    reference: np.ndarray,
    scale: float = SCALE,
    zero_point: float = ZERO_POINT,
    measure: Callable[..., Any] = kernels._relative_with_numpy,
) -> np.ndarray:
    limits = (0, 0) if values.dtype.kind == "f" else (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)
    row = np.full(kernels.RELATIVE_COLUMNS, 7.0)  # what stood there before must not matter
    measure(values, reference, *kernels.arguments(scale, zero_point, int(limits[0]), int(limits[1]), 8), row)
    return row


def with_zeros(count: int, dtype: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `pair`, with a third of the float values zero, and none nearer to it than a tenth of a step."""
    values, reference = pair(count, dtype, seed)
    reference[np.abs(reference) < SCALE / 10] = SCALE
    reference[::3] = 0.0
    reference[1::7] *= -1.0
    return values, reference


@pytest.mark.parametrize("measure", relative_loops())
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097, 70000])
def test_relative_errors_are_those_of_float64_arithmetic(measure: Callable[..., Any], dtype: Any, count: int) -> None:
    values, reference = with_zeros(count, dtype, seed=count)
    scale, zero_point = (1.0, 0.0) if dtype is np.float32 else (SCALE, ZERO_POINT)
    row = relative(values, reference, scale, zero_point, measure)
    present = reference != 0
    size = np.abs(reference[present].astype(np.float64))
    real = (values[present].astype(np.float64) - zero_point) * np.float64(np.float32(scale))
    ratios = np.abs(real - reference[present]) / size
    # The error is known to a unit of the larger value in float32, and its ratio to that over the float value.
    unit = 2.0**-22 * (np.maximum(np.abs(real), np.abs(zero_point * scale)) / size + 1.0)
    assert row[1] == len(size) == count - len(range(0, count, 3))
    assert row[0] == pytest.approx(ratios.sum(), abs=unit.sum() + 1e-12)
    if count > 2:
        assert unit.sum() < 1e-3 * ratios.sum(), "the test would notice nothing"


@pytest.mark.parametrize("measure", relative_loops())
@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (1.0, math.nan, math.nan),
        (math.nan, 1.0, math.nan),
        (1.0, math.inf, math.nan),  # an infinite error over an infinite value
        (1.0, -math.inf, math.nan),
        (math.inf, 1.0, math.inf),
        (-math.inf, 1.0, math.inf),
        (math.inf, 0.0, 0.0),  # left out, as every float value of zero
        (math.nan, -0.0, 0.0),
        (3.0e38, 1.0e-40, 3.0e38 / float(np.float32(1.0e-40))),  # beyond float32
    ],
)
@pytest.mark.parametrize("place", [0, 4096, 9999])
def test_relative_errors_of_odd_values(
    measure: Callable[..., Any], value: float, reference: float, expected: float, place: int
) -> None:
    values, floats = np.ones(10000, np.float32), np.ones(10000, np.float32)
    values[place], floats[place] = value, reference
    row = relative(values, floats, 1.0, 0.0, measure)
    assert row[1] == 10000 - (reference == 0)
    np.testing.assert_allclose(row[0], expected, rtol=1e-6)


@pytest.mark.skipif(len(relative_loops()) < 2, reason="numba is not installed")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 70000])
@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
def test_numba_and_numpy_agree_on_relative_errors(dtype: Any, count: int, odd: float | None) -> None:
    values, reference = with_zeros(count, dtype, seed=count + 1)
    if odd is not None and count:
        reference[count // 2] = odd
    scale, zero_point = (1.0, 0.0) if dtype is np.float32 else (SCALE, ZERO_POINT)
    expected = relative(values, reference, scale, zero_point)
    got = relative(values, reference, scale, zero_point, kernels.measure_relative())
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- ErrorStatistics


def statistics_of(parts: list[tuple[int, SampleSums]], layers: int = 2) -> ErrorStatistics:
    statistics = ErrorStatistics(layers)
    for index, sample in parts:
        statistics.add(index, sample)
    return statistics


def exact_sample(seed: int, with_relative: bool = False) -> SampleSums:
    """Two layers whose sums are exact in float64, whatever the order of addition."""
    generator = np.random.default_rng(seed)
    rows, relative_rows = [], []
    for _ in range(2):
        values = generator.integers(-128, 128, 64).astype(np.int8)
        reference = generator.integers(-40, 40, 64).astype(np.float32) / 4
        rows.append(measured(values, reference, 0.25, 3.0))
        powers = np.where(reference == 0, 0, np.float32(2.0) ** (np.abs(reference) % 4).astype(np.int32)).astype(np.float32)
        relative_rows.append(relative(values, powers, 0.25, 3.0))  # quotients by powers of two are exact
    return SampleSums(np.array(rows), np.array(relative_rows) if with_relative else None)


def same_statistics(first: ErrorStatistics, second: ErrorStatistics) -> None:
    assert first.samples == second.samples
    for name in ErrorStatistics._FIELDS:
        ours, theirs = getattr(first, name), getattr(second, name)
        if name == "tensorflow_sums":  # square roots and quotients round, so their sums do too
            np.testing.assert_allclose(ours, theirs, rtol=1e-13, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("with_relative", [False, True])
def test_error_statistics_merge(with_relative: bool) -> None:
    samples = [(index, exact_sample(index, with_relative)) for index in range(9)]
    parts = [statistics_of(samples[0:2]), statistics_of(samples[2:7]), statistics_of(samples[7:])]
    check_mergeable(lambda: ErrorStatistics(2), parts, statistics_of(samples), same_statistics)


def test_error_statistics_merge_with_nan_and_infinity_among_them() -> None:
    samples = [(index, exact_sample(index)) for index in range(6)]
    samples[1][1].sums[0, 2] = math.nan
    samples[4][1].sums[1, 2] = math.inf
    parts = [statistics_of(samples[0:2]), statistics_of(samples[2:4]), statistics_of(samples[4:])]
    check_mergeable(lambda: ErrorStatistics(2), parts, statistics_of(samples), same_statistics)
    whole = statistics_of(samples)
    assert whole.worst_sample.tolist() == [1, 4]
    assert np.isnan(whole.rmse[0])
    assert np.isinf(whole.rmse[1])


def test_a_mean_relative_error_of_some_samples_does_not_pass_for_that_of_all() -> None:
    samples = [(index, exact_sample(index, with_relative=index != 2)) for index in range(4)]
    parts = [statistics_of(samples[0:1]), statistics_of(samples[1:3]), statistics_of(samples[3:])]
    check_mergeable(lambda: ErrorStatistics(2), parts, statistics_of(samples), same_statistics)
    assert [part.has_relative_errors for part in parts] == [True, False, True]
    for whole in (statistics_of(samples), sum(parts, ErrorStatistics(2))):
        assert np.isnan(whole.mre).all()
        assert not whole.has_relative_errors
        assert np.isfinite(whole.rmse).all()
    assert np.isfinite((parts[0] + parts[2]).mre).all()


def test_the_mean_relative_error_is_pooled_over_samples_by_hand() -> None:
    samples = [with_zeros(count, np.int8, seed=count) for count in (1000, 3000, 500)]
    statistics = ErrorStatistics(1)
    for index, (values, reference) in enumerate(samples):
        statistics.add(index, SampleSums(measured(values, reference)[np.newaxis], relative(values, reference)[np.newaxis]))
    ratios = []
    for values, reference in samples:
        present = reference != 0
        real = (values[present].astype(np.float64) - ZERO_POINT) * np.float64(np.float32(SCALE))
        ratios.append(np.abs(real - reference[present]) / np.abs(reference[present].astype(np.float64)))
    pooled, mean_of_means = np.concatenate(ratios).mean(), np.mean([part.mean() for part in ratios])
    assert abs(pooled - mean_of_means) > 1e-3 * pooled, "the test would not see the difference"
    assert statistics.mre[0] == pytest.approx(pooled, rel=1e-4)
    error = np.concatenate([(v.astype(np.float64) - ZERO_POINT) * np.float64(np.float32(SCALE)) - r for v, r in samples])
    assert statistics.mse[0] == pytest.approx((error**2).mean(), rel=1e-5)


def test_a_layer_of_zeros_has_no_relative_error_though_it_was_measured() -> None:
    values, reference = np.array([3, 4], np.int8), np.zeros(2, np.float32)
    statistics = ErrorStatistics(1)
    statistics.add(0, SampleSums(measured(values, reference)[np.newaxis], relative(values, reference)[np.newaxis]))
    assert np.isnan(statistics.mre[0])
    assert statistics.has_relative_errors
    assert ErrorStatistics.from_dict(statistics.to_dict()).has_relative_errors


def test_the_worst_sample_does_not_depend_on_the_order_of_merging_also_on_a_tie() -> None:
    sample = exact_sample(3)
    for order in itertools.permutations(range(3)):
        merged = ErrorStatistics(2)
        for index in order:
            merged = merged + statistics_of([(index, sample)])
        assert merged.worst_sample.tolist() == [0, 0]


def test_statistics_of_different_models_do_not_add() -> None:
    with pytest.raises(ValueError, match="2 and of 3 layers"):
        ErrorStatistics(2) + ErrorStatistics(3)


def test_pooled_figures_by_hand() -> None:
    samples = [pair(1000, seed=1), pair(3000, seed=2), pair(500, seed=3)]
    statistics = ErrorStatistics(1)
    for index, (values, reference) in enumerate(samples):
        statistics.add(index, sums_of(values, reference))
    values = np.concatenate([sample[0] for sample in samples])
    signal = np.concatenate([sample[1] for sample in samples]).astype(np.float64)
    real = (values.astype(np.float64) - ZERO_POINT) * np.float64(np.float32(SCALE))
    error = real - signal
    assert statistics.num_elements[0] == 4500
    assert statistics.bias[0] == pytest.approx(error.mean(), abs=1e-6)
    assert statistics.rmse[0] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert statistics.sqnr_db[0] == pytest.approx(10 * np.log10((signal**2).sum() / (error**2).sum()), abs=1e-3)
    cosine = (real @ signal) / np.sqrt((real @ real) * (signal @ signal))
    assert statistics.cosine[0] == pytest.approx(cosine, abs=1e-7)
    assert statistics.max_abs_error[0] == pytest.approx(np.abs(error).max(), rel=1e-4)
    # The difference between pooling and TensorFlow's mean over samples must be visible in this test's data.
    per_sample = [(((v.astype(float) - ZERO_POINT) * SCALE - r) ** 2).mean() for v, r in samples]
    assert statistics.tensorflow_metrics()[0, 4] == pytest.approx(np.mean(per_sample), rel=1e-5)
    assert statistics.tensorflow_metrics()[0, 0] == pytest.approx(1500)
    assert statistics.worst_sample[0] == int(np.argmax(per_sample))


def test_no_error_and_no_signal() -> None:
    values = np.array([ZERO_POINT, ZERO_POINT + 20], dtype=np.int8)
    statistics = ErrorStatistics(2)
    exact = measured(values, np.array([0.0, 20 * SCALE], dtype=np.float32))
    silent = measured(values[:1], np.zeros(1, dtype=np.float32))
    statistics.add(0, SampleSums(np.array([exact, silent])))
    assert statistics.rmse.tolist() == [0.0, 0.0]
    assert statistics.sqnr_db[0] == math.inf
    assert math.isnan(statistics.sqnr_db[1])
    assert math.isnan(statistics.cosine[1])


def test_empty_statistics_have_no_figures_and_no_warning() -> None:
    empty = ErrorStatistics(1)
    figures = [empty.bias, empty.mse, empty.mre, empty.rmse, empty.sqnr_db, empty.cosine, empty.saturated_low]
    for figure in (*figures, empty.tensorflow_metrics()[0, :1]):
        assert np.isnan(figure).all()
    assert empty.worst_sample.tolist() == [-1]


@pytest.mark.parametrize("with_relative", [False, True])
def test_statistics_survive_their_saved_form(with_relative: bool) -> None:
    whole = statistics_of([(index, exact_sample(index, with_relative)) for index in range(3)])
    whole = whole.select([0, -1, 1])  # the one between has no element
    same_statistics(ErrorStatistics.from_dict(whole.to_dict()), whole)
    assert ("relative_sums" in whole.to_dict()) == with_relative
    for empty in (ErrorStatistics(0), ErrorStatistics(2)):
        same_statistics(ErrorStatistics.from_dict(empty.to_dict()), empty)


def test_statistics_saved_before_there_was_a_relative_error_load_without() -> None:
    old = statistics_of([(0, exact_sample(0, with_relative=True))]).to_dict()
    del old["relative_sums"]
    loaded = ErrorStatistics.from_dict(old)
    assert np.isnan(loaded.mre).all()
    assert not loaded.has_relative_errors
    later = statistics_of([(1, exact_sample(1, with_relative=True))])
    assert np.isnan((loaded + later).mre).all()
    assert np.isfinite((loaded + later).mse).all()
    nothing = ErrorStatistics(2).to_dict()
    nothing.pop("relative_sums", None)
    np.testing.assert_array_equal((ErrorStatistics.from_dict(nothing) + later).mre, later.mre)


# ------------------------------------------------------------------------------------------------------------- Histogram


def histogram_of(*arrays: np.ndarray, bins: int = 2048) -> Histogram:
    histogram = Histogram(bins)
    for values in arrays:
        histogram.add(values)
    return histogram


def same_histograms(first: Histogram, second: Histogram) -> None:
    ours, theirs = (dict(histogram.to_dict()) for histogram in (first, second))
    assert ours == theirs


@pytest.mark.parametrize("kind", ["alike", "growing", "shrinking", "positive", "with zeros", "with empties"])
def test_histogram_merges_exactly(kind: str) -> None:
    generator = np.random.default_rng(5)
    arrays = [generator.normal(0, 1, 1000).astype(np.float32) for _ in range(5)]
    factors = {"growing": [1, 10, 100, 3000, 1e6], "shrinking": [1e6, 1000, 1, 0.01, 1e-5]}.get(kind, [1] * 5)
    arrays = [array * np.float32(factor) for array, factor in zip(arrays, factors, strict=True)]
    if kind == "positive":
        arrays = [np.abs(array) + 5 for array in arrays]
    if kind == "with zeros":
        arrays = [np.maximum(array, 0) for array in arrays]
    if kind == "with empties":
        arrays[1], arrays[3] = arrays[1][:0], np.zeros(7, dtype=np.float32)
    parts = [histogram_of(arrays[0]), histogram_of(*arrays[1:4]), histogram_of(arrays[4])]
    whole = histogram_of(*arrays)
    check_mergeable(Histogram, parts, whole, same_histograms)
    assert whole.total == sum(array.size for array in arrays)


@pytest.mark.parametrize("bins", [16, 256, 2048])
@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 7e4, 3e37])
def test_histogram_counts_what_numpy_counts_on_the_same_edges(bins: int, spread: float) -> None:
    generator = np.random.default_rng(6)
    arrays = [(generator.normal(0, spread, 500) * factor).astype(np.float32) for factor in (0.01, 1, 0.1, 1.9)]
    histogram = histogram_of(*arrays, bins=bins)
    edges = histogram.edges()
    values = np.concatenate(arrays).astype(np.float64)
    counts, _ = np.histogram(values, edges)
    np.testing.assert_array_equal(histogram.counts, counts)
    assert histogram.counts.sum() == len(values)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    assert len(histogram.counts) <= 2 * bins
    # Zero is an edge, or beyond the outermost one; widths are a power of two.
    assert not np.any((edges[:-1] < 0) & (edges[1:] > 0))
    assert math.frexp(edges[1] - edges[0])[0] == 0.5


@pytest.mark.parametrize("largest", [1.0, 2.0, 0.5, 1024.0, -1.0, -4.0])
def test_a_power_of_two_falls_into_a_bin_inside_the_limit(largest: float) -> None:
    histogram = histogram_of(np.array([largest, largest / 3, largest / 7], dtype=np.float32), bins=8)
    counts, _ = np.histogram([largest, largest / 3, largest / 7], histogram.edges())
    np.testing.assert_array_equal(histogram.counts, counts)
    assert len(histogram.counts) <= 9


def test_zeros_stand_apart() -> None:
    histogram = histogram_of(np.zeros(5, dtype=np.float32), np.array([-0.0, 0.0, 3.0], dtype=np.float32))
    assert (histogram.zeros, histogram.total, histogram.counts.sum()) == (7, 8, 1)
    assert (histogram.minimum, histogram.maximum) == (0.0, 3.0)


def test_the_smallest_float_is_counted() -> None:
    tiny = np.array([1e-45, -1e-45, 1.0], dtype=np.float32)
    assert histogram_of(tiny).total == 3
    assert histogram_of(tiny[:2]).total == 2


def test_an_empty_array_changes_nothing() -> None:
    histogram = histogram_of(np.array([1.0, 2.0], dtype=np.float32))
    before = histogram.to_dict()
    histogram.add(np.zeros((0, 3), dtype=np.float32))
    assert histogram.to_dict() == before
    assert "2 values" in repr(histogram)


def test_memory_does_not_grow_with_the_values() -> None:
    histogram = Histogram(64)
    generator = np.random.default_rng(1)
    for power in range(-60, 60):
        histogram.add(np.ldexp(generator.normal(0, 1, 100), power))
    assert histogram.total == 12000
    assert len(histogram.counts) <= 128


@pytest.mark.parametrize("measure", loops())
def test_squares_beyond_float32_are_summed_all_the_same(measure: Callable[..., Any]) -> None:
    # An attention mask: float32's lowest value beside ordinary ones.
    reference = np.full(5000, np.finfo(np.float32).min, dtype=np.float32)
    reference[:10] = 1.0
    values = reference.copy()
    values[:10] += np.float32(0.25)
    row = measured(values, reference, 1.0, 0.0, measure)
    assert row[2] == pytest.approx(10 * 0.25**2)
    assert row[3] == pytest.approx(10 + 4990 * float(np.finfo(np.float32).min) ** 2)
    assert np.isfinite(row).all()
