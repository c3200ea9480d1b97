"""Distributions and channels against numpy on what TensorFlow's interpreter computes, planted faults, laws of merging."""

from __future__ import annotations

import csv
import functools
import math
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from conftest import SHARED_MODELS
from contracts import check_mergeable
from shared_data import samples as real_samples

from tflite_qdebug import edit, example, kernels
from tflite_qdebug.analyses.profiles import profile_pair
from tflite_qdebug.analyses.value_profiles import Tracked, _channels, _Worker
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.findings import Channels, Profile, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.record import Layer
from tflite_qdebug.reports.profiles import channel_table, profile_columns, profile_table, write_channel_csv, write_profile_csv
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.value_statistics import ChannelCounts, Spread, TensorCounts, channel_rows, empty_rows, merged, outlier_share

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
Samples = list[list[np.ndarray]]


def profiled(floating: Any, quantized: Any, samples: Any, **options: Any) -> tuple[Profile, ...]:
    return profile_pair(floating, quantized, samples, **{"backend": BACKEND, "progress": False, **options})


@functools.cache
def pair_of(name: str, kind: str = "int8") -> tuple[bytes, bytes, Samples]:
    calibrated = models.calibrated(name)
    assert calibrated.float_model is not None
    return calibrated.float_model.data, calibrated.quantize(kind).data, models.samples(name, 5, seed=1)


@functools.cache
def profiles_of(name: str, kind: str = "int8") -> tuple[Profile, ...]:
    return profiled(*pair_of(name, kind))


def of_role(profiles: tuple[Profile, ...], role: str) -> list[Profile]:
    return [profile for profile in profiles if profile.role == role]


def values_by_hand(
    profile: Profile, floating: bytes, data: bytes, samples: Samples
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the float values and the integers of an output, one array per sample, as TensorFlow's interpreter has them."""
    by_name = {tensor.name: tensor.index for tensor in Model(floating).main.tensors}
    output = Model(data).main.operators[profile.operator].outputs[0]
    mine = [models.run(floating, inputs, "builtin").get_tensor(by_name[profile.node]) for inputs in samples]
    return mine, [models.run(data, inputs, "builtin").get_tensor(output) for inputs in samples]


def check_histogram(histogram: Histogram, values: np.ndarray) -> None:
    edges = histogram.edges()
    nonzero = values[values != 0].astype(np.float64)
    counted, _ = np.histogram(nonzero, edges)
    # numpy puts what is equal to the last edge into the last bin, and there is nothing beyond.
    np.testing.assert_array_equal(histogram.counts, counted)
    assert counted.sum() == nonzero.size
    assert histogram.zeros == values.size - nonzero.size
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    assert len(edges) <= 513
    assert edges[-1] <= 256 * (edges[1] - edges[0])
    assert edges[0] >= -256 * (edges[1] - edges[0])


def check_channels(channels: Channels | None, values: np.ndarray, exactly: bool = False) -> None:
    assert channels is not None
    each = np.moveaxis(values, channels.axis, 0).reshape(values.shape[channels.axis], -1).astype(np.float64)
    np.testing.assert_array_equal(channels.minimum, each.min(axis=1))
    np.testing.assert_array_equal(channels.maximum, each.max(axis=1))
    np.testing.assert_allclose(channels.mean, each.mean(axis=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(channels.deviation, each.std(axis=1), rtol=1e-6, atol=1e-9)
    bin_width = np.abs(each).max(axis=1) / 32
    for share, found in ((0.25, channels.lower), (0.5, channels.median), (0.75, channels.upper)):
        if exactly:
            np.testing.assert_allclose(found, np.quantile(each, share, axis=1), rtol=1e-5, atol=1e-7)
        else:
            exact = np.quantile(each, share, axis=1, method="inverted_cdf")
            assert (np.abs(found - exact) <= bin_width).all()


# -- by hand ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "chain", "dynamic_batch", "attention"])
def test_outputs_are_those_worked_out_by_hand(name: str) -> None:
    floating, data, samples = pair_of(name)
    found = of_role(profiles_of(name), "output")
    assert len(found) >= 3 - (name == "dynamic_batch")
    quantized = Model(data).main
    for profile in found:
        if profile.op_name == "SPLIT":  # two outputs
            continue
        mine, integers = values_by_hand(profile, floating, data, samples)
        values, whole = np.concatenate(mine), np.concatenate(integers)
        tensor = quantized.tensors[quantized.operators[profile.operator].outputs[0]]
        assert tensor.quantization is not None
        scale, point = float(tensor.quantization.scale[0]), int(tensor.quantization.zero_point[0])
        assert (profile.scale, profile.integers, profile.samples) == (scale, 256, 5)
        assert (profile.low, profile.high) == pytest.approx(((-128 - point) * scale, (127 - point) * scale))
        check_histogram(profile.values, values)
        wide = values.astype(np.float64)
        deviation = wide.std()
        assert profile.mean == pytest.approx(wide.mean(), abs=1e-9 + 1e-9 * deviation)
        assert profile.deviation == pytest.approx(deviation, rel=1e-9)
        assert profile.kurtosis == pytest.approx(np.mean((wide - wide.mean()) ** 4) / deviation**4, rel=1e-9)
        assert profile.clipped_low == np.mean(values < np.float32(profile.low - scale / 2))
        assert profile.clipped_high == np.mean(values > np.float32(profile.high + scale / 2))
        assert profile.negative == np.mean(values < 0)
        assert profile.near_zero == np.mean(np.abs(values) < np.float32(scale / 2))
        assert profile.integers_used == len(np.unique(whole))
        real = tensor.quantization.dequantize(whole)
        assert profile.quantized is not None
        check_histogram(profile.quantized, real)
        error = real.astype(np.float64) - values
        assert profile.error is not None
        assert profile.error.total == error.size
        assert profile.error.maximum == pytest.approx(error.max(), abs=1e-5)
        assert profile.error.minimum == pytest.approx(error.min(), abs=1e-5)
        assert profile.channels is not None
        assert profile.channels.axis == values.ndim - 1
        check_channels(profile.channels, values)
        check_channels_of_integers(profile.quantized_channels, real)
        np.testing.assert_array_equal(profile.channels.scale, [scale])


def check_channels_of_integers(channels: Channels | None, real: np.ndarray) -> None:
    assert channels is not None
    each = np.moveaxis(real, channels.axis, 0).reshape(real.shape[channels.axis], -1)
    # The optimized kernels round once more on the way to real values.
    np.testing.assert_allclose(channels.minimum, each.min(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(channels.maximum, each.max(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(channels.mean, each.mean(axis=1, dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_the_input_has_the_range_of_the_quantized_input() -> None:
    _, data, samples = pair_of("mixed")
    (profile,) = of_role(profiles_of("mixed"), "input")
    values = np.concatenate([inputs[0] for inputs in samples])
    check_histogram(profile.values, values)
    quantize = next(operator for operator in Model(data).main.operators if operator.name == "QUANTIZE")
    parameters = Model(data).main.tensors[quantize.outputs[0]].quantization
    assert parameters is not None
    assert profile.scale == float(parameters.scale[0])
    step, point = float(parameters.scale[0]), int(parameters.zero_point[0])
    assert profile.clipped_low == np.mean(values < (-128.5 - point) * step)
    assert profile.clipped_high == np.mean(values > (127.5 - point) * step)
    assert profile.clipped_high + profile.clipped_low > 0  # other samples than those that calibrated
    assert profile.integers_used == len(np.unique(parameters.quantize(values, np.int8)))
    check_channels(profile.channels, values)


def test_full_integer_models_show_their_inputs_too() -> None:
    profiles = profiles_of("two_by_two", "full_integer")
    inputs = of_role(profiles, "input")
    assert len(inputs) == 2
    assert all(profile.integers == 256 and profile.samples == 5 for profile in inputs)
    assert len({profile.node for profile in inputs}) == 2


@pytest.mark.parametrize("name", ["mixed", "weighty"])
def test_weights_are_those_of_the_files(name: str) -> None:
    floating, data, _ = pair_of(name)
    theirs, ours = Model(data), Model(floating)
    found = of_role(profiles_of(name), "weights")
    axes = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
    places = {"TRANSPOSE_CONV": 1}
    assert [profile.op_name for profile in found] == [op.name for op in theirs.main.operators if op.name in axes]
    floats = {op.name: [each for each in ours.main.operators if each.name == op.name] for op in ours.main.operators}
    for profile in found:
        operator = theirs.main.operators[profile.operator]
        tensor = theirs.main.tensors[operator.inputs[places.get(operator.name, 1)]]
        stored, parameters = theirs.constant(tensor), tensor.quantization
        assert parameters is not None
        mine = floats[operator.name].pop(0)
        values = ours.constant(ours.main.tensors[mine.inputs[1]])
        assert profile.tensor == tensor.name
        assert profile.channels is not None
        assert profile.channels.axis == axes[operator.name]
        check_histogram(profile.values, values)
        check_channels(profile.channels, values, exactly=True)
        real = parameters.dequantize(stored)
        assert profile.quantized is not None
        check_histogram(profile.quantized, real)
        assert profile.error is not None
        check_histogram(profile.error, real - values)
        np.testing.assert_array_equal(profile.channels.scale, parameters.scale)
        assert np.isnan([profile.low, profile.high, profile.scale]).all() == parameters.is_per_channel
        assert profile.integers_used == len(np.unique(stored))
        assert (profile.clipped_low, profile.clipped_high, profile.samples) == (0.0, 0.0, 0)
        wide = values.astype(np.float64)
        assert profile.kurtosis == pytest.approx(np.mean((wide - wide.mean()) ** 4) / wide.var() ** 2)
        shape = np.ones(values.ndim, int)
        shape[parameters.axis] = -1
        assert profile.near_zero == np.mean(np.abs(values) < 0.5 * parameters.scale.astype(np.float64).reshape(shape))


def test_a_node_is_called_as_in_the_run() -> None:
    profiles = profiles_of("mixed")
    names = {profile.operator: profile.node for profile in of_role(profiles, "output")}
    weights = of_role(profiles, "weights")
    assert all(names[profile.operator] == profile.node for profile in weights)
    order = [profile.operator for profile in profiles]
    assert order == sorted(order)


def test_an_lstm_shows_each_matrix_and_no_bias() -> None:
    found = [profile for profile in of_role(profiles_of("lstm"), "weights") if "LSTM" in profile.op_name]
    assert len(found) == 8  # four gates, each for input and state
    sizes = [profile.values.total for profile in found]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {24, 16}


@pytest.mark.parametrize("kind", ["dynamic_range", "float16", "int16x8"])
def test_other_kinds_of_quantization(kind: str) -> None:
    profiles = profiles_of("weighty", kind)
    outputs = of_role(profiles, "output")
    (first, *_) = [profile for profile in of_role(profiles, "weights") if profile.op_name == "CONV_2D"]
    assert first.quantized is not None
    assert first.error is not None
    assert first.error.maximum > 0
    if kind == "int16x8":
        assert {profile.integers for profile in outputs} == {65536}
        assert all(256 < profile.integers_used <= profile.values.total for profile in outputs if profile.values.total > 2000)
        assert all(profile.quantized and len(profile.quantized.counts) <= 512 for profile in outputs)
        return
    assert all(profile.quantized is None and profile.error is None and profile.integers == 0 for profile in outputs)
    assert all(math.isnan(profile.scale) and math.isnan(profile.near_zero) for profile in outputs)
    assert all(profile.channels is not None and profile.quantized_channels is None for profile in outputs)
    (image,) = of_role(profiles, "input")
    assert (image.op_name, image.quantized) == ("INPUT", None)
    check_histogram(image.values, np.concatenate([inputs[0] for inputs in pair_of("weighty")[2]]))
    assert first.integers == (256 if kind == "dynamic_range" else 0)


def test_without_a_float_model_its_place_is_taken_by_the_dequantized_one() -> None:
    _, data, samples = pair_of("mixed")
    profiles = profiled(None, data, samples)
    assert len(profiles) == len(profiles_of("mixed"))
    assert {profile.reference for profile in profiles} == {"dequantized weights"}
    for profile in of_role(profiles, "weights"):
        assert profile.error is not None
        assert profile.error.zeros == profile.values.total
    theirs = {profile.tensor: profile for profile in of_role(profiles_of("mixed"), "output")}
    for profile in of_role(profiles, "output"):
        assert profile.integers_used == theirs[profile.tensor].integers_used
        assert profile.mean == pytest.approx(theirs[profile.tensor].mean, abs=0.05 * theirs[profile.tensor].deviation)


# -- planted faults --------------------------------------------------------------------------------------------------------


def with_channel(data: bytes, factor: float, channel: int = 2) -> bytes:
    """Returns the float model ``chain`` with weights and bias of one channel of its first convolution times a factor."""
    model = Model(data)
    unpacked, operator = unpack(model), model.main.operators[0]
    assert operator.name == "CONV_2D"
    for index in operator.inputs[1:]:
        tensor = model.main.tensors[index]
        values = model.constant(tensor).copy()
        values[channel] *= np.float32(factor)
        unpacked.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    return pack(unpacked)


@functools.cache
def planted(factor: float) -> tuple[Profile, Profile]:
    """Returns weights and output of the first convolution."""
    floating = load_float_model(with_channel(pair_of("chain")[0], factor))
    quantized = floating.calibrate(models.dataset("chain", 4), progress=False).quantize("int8").data
    found = profiled(floating, quantized, pair_of("chain")[2])
    first = next(profile for profile in found if profile.op_name == "CONV_2D")
    return next(p for p in found if p.node == first.node and p.role == "weights"), next(
        p for p in found if p.node == first.node and p.role == "output"
    )


def test_an_outlier_channel_dominates() -> None:
    for profile in planted(50.0):
        assert profile.channels is not None
        assert profile.channels.dominating.tolist() == [2]
        assert profile.channels.spread > 20
        assert profile.kurtosis > 5
    for profile in planted(1.0):
        assert profile.channels is not None
        assert profile.channels.dominating.tolist() == []
        assert profile.channels.spread < 4
    assert planted(50.0)[1].integers_used < 256
    assert planted(50.0)[1].near_zero > 5 * planted(1.0)[1].near_zero


def test_a_channel_of_zeros_is_dead() -> None:
    for profile in planted(0.0):
        assert profile.channels is not None
        assert profile.channels.dead.tolist() == [2]
        assert (profile.channels.lower[2], profile.channels.upper[2]) == (0.0, 0.0)


def test_a_range_that_is_100_times_too_wide_leaves_few_integers() -> None:
    calibrated = models.calibrated("chain")
    name = calibrated.model.main.tensors[calibrated.model.main.operators[0].outputs[0]].name
    ranges = {
        tensor.index: (tensor.minimum * factor, tensor.maximum * factor)
        for tensor in calibrated.model.main.tensors
        if tensor.minimum is not None and tensor.maximum is not None
        for factor in [100.0 if tensor.name == name else 1.0]
    }
    wide = type(calibrated)(calibrated.float_model, edit.with_ranges(calibrated.model, ranges)).quantize("int8").data
    floating, _, samples = pair_of("chain")
    found = {profile.node: profile for profile in of_role(profiled(floating, wide, samples), "output")}
    before = {profile.node: profile for profile in of_role(profiles_of("chain"), "output")}
    assert before[name].integers_used > 100
    assert found[name].integers_used <= 5
    assert found[name].scale == pytest.approx(100 * before[name].scale, rel=0.02)
    assert found[name].near_zero > 0.3


def test_the_illness_of_the_example_shows() -> None:
    float_model = load_float_model(example.float_model())
    quantized = float_model.calibrate(example.representative_dataset, progress=False).quantize("int8").data
    profiles = profiled(float_model, quantized, example.debug_dataset, limit=20)
    weights = [profile for profile in of_role(profiles, "weights") if "block" in profile.node and "project" in profile.node]
    # Two weights of each filter take the whole range of the first three projections, and leave the others near zero.
    assert [profile.near_zero > 0.4 for profile in weights] == [True] * 3 + [False] * 3
    dominated = [
        p for p in of_role(profiles, "output") if p.channels and len(p.channels.dominating) and len(p.channels.dead) < 5
    ]
    assert ["block4_expand" in profile.node for profile in dominated] == [True]


# -- options and errors ----------------------------------------------------------------------------------------------------


def test_chosen_nodes_roles_and_axis() -> None:
    floating, data, samples = pair_of("mixed")
    first = of_role(profiles_of("mixed"), "weights")[0]
    found = profiled(floating, data, samples, nodes=[first.node], axis=1)
    assert [profile.role for profile in found] == ["weights", "output"]
    output = found[1]
    mine, _ = values_by_hand(output, floating, data, samples)
    assert output.channels is not None
    assert output.channels.axis == 1
    check_channels(output.channels, np.concatenate(mine))
    assert found[0].channels is not None
    assert len(found[0].channels.minimum) == 3  # height of the kernel
    assert np.isnan(found[0].channels.scale).all()  # the scales run along another axis
    (alone,) = profiled(floating, data, samples, nodes=[first.node], roles=["output"], axis=-1)
    assert alone.channels is not None
    assert alone.channels.axis == 3


def test_weights_alone_need_no_data() -> None:
    floating, data, _ = pair_of("mixed")
    found = profiled(floating, data, None, roles=["weights"])
    assert json_of(found) == json_of(tuple(of_role(profiles_of("mixed"), "weights")))


def test_limit_takes_the_first_samples() -> None:
    floating, data, samples = pair_of("chain")
    assert json_of(profiled(floating, data, samples, limit=2)) == json_of(profiled(floating, data, samples[:2]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nodes": ["first/Rellu"]}, "Did you mean '.*first"),
        ({"nodes": "first"}, r"expected a list of names, such as \['first'\]"),
        ({"nodes": []}, "empty list of nodes"),
        ({"roles": ["weight"]}, "got role 'weight', expected weights, output, input. Did you mean 'weights'"),
        ({"roles": []}, "got no roles"),
        ({"axis": 3}, r"got axis 3, but .* has shape \(.*: expected"),
        ({"axis": -7}, "got axis -7"),
        ({"axis": "last"}, "got axis 'last'"),
    ],
)
def test_wrong_options(options: dict[str, Any], expected: str) -> None:
    floating, data, samples = pair_of("mixed")
    with pytest.raises(OptionError, match=expected):
        profiled(floating, data, samples, **options)


def test_an_axis_of_any_size_is_refused() -> None:
    with pytest.raises(OptionError, match="of any size there"):
        profiled(*pair_of("dynamic_batch"), axis=0, roles=["input"])


def test_a_node_without_what_is_asked_for() -> None:
    floating, data, samples = pair_of("mixed")
    softmax = next(profile for profile in profiles_of("mixed") if profile.op_name == "SOFTMAX")
    with pytest.raises(OptionError, match=r"none of the nodes .* has weights"):
        profiled(floating, data, samples, nodes=[softmax.node], roles=["weights"])


def test_data_is_missing() -> None:
    floating, data, _ = pair_of("chain")
    with pytest.raises(OptionError, match="got no debug dataset"):
        profiled(floating, data, None)
    with pytest.raises(DatasetError, match="no samples"):
        profiled(floating, data, [])
    with pytest.raises(DatasetError, match="no samples"):
        profiled(None, data, iter(()))


@pytest.mark.parametrize("isolate", [False, True])
def test_infinity_names_tensor_and_sample(isolate: bool) -> None:
    _, data, samples = pair_of("chain")
    floating = with_channel(pair_of("chain")[0], 50.0)
    huge = [samples[0], samples[1], [np.full_like(samples[0][0], 3e38)], samples[2]]
    first = of_role(profiles_of("chain"), "output")[0]
    backend = BACKEND._replace(isolate=isolate)
    with pytest.raises(
        ModelError, match=r"sample 2: the float model gives NaN or infinity in output '.*16 of 96 values"
    ) as caught:
        profiled(floating, data, huge, backend=backend)
    assert first.node in str(caught.value)
    assert len(profiled(floating, data, huge, roles=["input"], backend=backend)) == 1  # the input itself is finite


def test_nan_among_the_weights_names_the_node() -> None:
    floating, data, samples = pair_of("chain")
    first = of_role(profiles_of("chain"), "weights")[0]
    with pytest.raises(ModelError, match="27 of 162 values are NaN or infinite") as caught:
        profiled(with_channel(floating, math.nan), data, samples, roles=["weights"], nodes=[first.node])
    assert first.node in str(caught.value)


# -- merging ---------------------------------------------------------------------------------------------------------------


def json_of(profiles: tuple[Profile, ...]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save_part(folder, "profiles", profiles).read_bytes()


@pytest.mark.parametrize("isolate", [False, True])
def test_workers_make_no_difference(isolate: bool) -> None:
    floating, data, _ = pair_of("mixed")
    samples = [[array * np.float32(1 + index)] for index, [array] in enumerate(models.samples("mixed", 9, seed=3))]
    found = [
        profiled(floating, data, samples, backend=Backend("auto", "builtin", (), count, 1, isolate)) for count in (1, 2, 3)
    ]
    assert json_of(found[0]) == json_of(found[1]) == json_of(found[2])


def arrays(count: int = 5, kind: str = "") -> list[np.ndarray]:
    generator = np.random.default_rng(4)
    made = [generator.normal(0.1, 2.0, (3, 7, 11)).astype(np.float32) for _ in range(count)]
    for index, array in enumerate(made):
        array[:, 2] = 0.0
        array[:, 3] = np.maximum(array[:, 3], 0)
        array[:, 5] *= np.float32(100.0**index)
        array[:, 6] = 5.0 + 1e-3 * array[:, 6]
    return made


def counted(parts: list[np.ndarray]) -> ChannelCounts:
    counts = ChannelCounts(7)
    for part in parts:
        counts.add(slice(0, 7), part, channel_rows(part))
    return counts


def same_counts(first: ChannelCounts, second: ChannelCounts) -> None:
    for name in ("counts", "exponents", "zeros"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_counts_of_channels_merge_exactly() -> None:
    made = arrays()
    check_mergeable(
        lambda: ChannelCounts(7), [counted(made[:1]), counted(made[1:3]), counted(made[3:])], counted(made), same_counts
    )


def test_counts_of_channels_are_those_of_numpy() -> None:
    made = arrays()
    counts, whole = counted(made), np.concatenate(made).astype(np.float64)
    for channel in range(7):
        values = whole[:, channel].reshape(-1)
        assert counts.zeros[channel] == np.count_nonzero(values == 0)
        edges = np.ldexp(np.arange(-64, 65, dtype=np.float64), max(int(counts.exponents[channel]), -1000))
        found, _ = np.histogram(values[values != 0], edges)
        np.testing.assert_array_equal(counts.counts[channel], found)
        largest = np.abs(values).max()
        assert largest == 0 or largest / 64 <= edges[65] <= largest / 32
    rows = channel_rows(np.concatenate(made))
    shares = (0.25, 0.5, 0.75)
    quartiles = counts.quantiles(slice(0, 7), shares, rows)
    exact = np.quantile(whole, shares, axis=(0, 2), method="inverted_cdf")
    assert (np.abs(quartiles - exact) <= np.abs(whole).max(axis=(0, 2)) / 32).all()


def test_a_tensor_of_another_size_than_in_the_file_has_no_channels() -> None:
    layer = Layer("a", "ADD", 0, "a", 0, 1, (1, 5), "int8", 0.1, 0, "")
    entry = Tracked(layer, "output", axis=1, channels=5)
    rows, counts = empty_rows(5, kernels.CHANNEL_COLUMNS), ChannelCounts(5)
    _Worker._add_channels(entry, np.ones((1, 3), np.float32), rows, counts)
    total = merged(empty_rows(5, kernels.CHANNEL_COLUMNS), rows)
    _Worker._add_channels(entry, np.ones((1, 5), np.float32), rows, counts)
    assert _channels(entry, rows, counts) is not None
    assert _channels(entry, merged(total, rows), counts) is None


def test_counts_of_tensors_merge_exactly() -> None:
    def part(made: list[np.ndarray]) -> TensorCounts:
        counts = TensorCounts(256)
        for array in made:
            counts.values.add(array)
            counts.error.add(array * np.float32(0.01))
            counts.integers += np.bincount(np.clip(array * 3, 0, 255).astype(int).reshape(-1), minlength=256)
        return counts

    def same(first: TensorCounts, second: TensorCounts) -> None:
        assert first.values.to_dict() == second.values.to_dict()
        assert first.error.to_dict() == second.error.to_dict()
        np.testing.assert_array_equal(first.integers, second.integers)

    made = arrays()
    check_mergeable(lambda: TensorCounts(256), [part(made[:1]), part(made[1:3]), part(made[3:])], part(made), same)


def scanned(values: np.ndarray) -> np.ndarray:
    rows = empty_rows(1)
    kernels.scan_values()(values.reshape(-1), -1.0, 1.0, 0.5, rows[0])
    return rows


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_merge_to_those_of_all_values_far_from_zero_too(offset: float) -> None:
    generator = np.random.default_rng(0)
    parts = [
        (generator.gamma(2.0, 1.0, size) + offset + shift).astype(np.float32) for size, shift in ((1, 0), (700, 3), (4000, -2))
    ]
    total = functools.reduce(merged, map(scanned, parts), empty_rows(1))
    wide = np.concatenate(parts).astype(np.float64)
    spread = Spread.of(total[0])
    assert spread.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert spread.deviation == pytest.approx(wide.std(), rel=1e-10)
    assert spread.kurtosis == pytest.approx(np.mean((wide - wide.mean()) ** 4) / wide.var() ** 2, rel=1e-9)
    np.testing.assert_allclose(total[0, 5], np.sum((wide - wide.mean()) ** 3), rtol=1e-7)
    assert total[0, [0, 7, 8, 9, 10]].tolist() == [
        wide.size, (wide < 0).sum(), (wide < -1).sum(), (wide > 1).sum(), (np.abs(wide) < 0.5).sum()
    ]  # fmt: skip
    reverse = functools.reduce(merged, map(scanned, reversed(parts)), empty_rows(1))
    np.testing.assert_allclose(reverse, total, rtol=1e-8)


def test_a_constant_has_no_shape() -> None:
    spread = Spread.of(scanned(np.full(1000, 0.1, np.float32))[0])
    assert spread.deviation == 0.0
    assert math.isnan(spread.kurtosis)
    assert math.isnan(Spread.of(empty_rows(1)[0]).mean)


def test_outliers_are_counted_to_the_width_of_a_bin() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(0, 1, 100_000).astype(np.float32)
    values[:40], values[40:50] = 9.0, -20.0
    histogram = Histogram()
    histogram.add(values)
    spread = Spread.of(scanned(values)[0])
    wide = values.astype(np.float64)
    exact = np.mean(np.abs(wide - wide.mean()) > 6 * wide.std())
    assert outlier_share(histogram, spread) == exact == 50 / 100_000
    assert outlier_share(Histogram(), Spread.of(empty_rows(1)[0])) == 0.0
    shifted = (generator.normal(0, 1, 10_000) * 0.01 + 10).astype(np.float32)
    shifted[:3] = 0.0
    apart = Histogram()
    apart.add(shifted)
    assert outlier_share(apart, Spread.of(scanned(shifted)[0])) == 3 / 10_000


def test_memory_does_not_grow_with_the_samples() -> None:
    floating, data, samples = pair_of("chain")
    profiled(floating, data, samples)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            profiled(floating, data, lambda: (samples[index % 5] for index in range(count)), roles=["output"])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert abs(peak(300) - peak(10)) < 100_000


# -- histograms and inner loops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 8, 256])
def test_a_coarsened_histogram_is_the_one_of_fewer_bins(bins: int) -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 5000).astype(np.float32)
    fine = Histogram()
    fine.add(values)
    before = fine.to_dict()
    coarse = fine.coarsened(bins)
    assert fine.to_dict() == before
    counted, _ = np.histogram(values.astype(np.float64), coarse.edges())
    np.testing.assert_array_equal(coarse.counts, counted)
    assert coarse.total == 5000
    assert coarse.first >= -bins
    assert coarse.first + len(coarse.counts) <= bins
    assert (coarse.minimum, coarse.maximum) == (fine.minimum, fine.maximum)
    assert fine.coarsened(4096).to_dict() == before
    assert Histogram().coarsened(bins).to_dict() == Histogram().to_dict()
    zeros = Histogram()
    zeros.add(np.zeros(4, np.float32))
    assert zeros.coarsened(bins).zeros == 4


def test_values_with_counts_are_as_good_as_values() -> None:
    generator = np.random.default_rng(1)
    steps, counts = np.arange(-128, 128) * 0.05, generator.integers(0, 4, 256)
    steps[128] = 0.0
    weighted, plain = Histogram(), Histogram()
    weighted.add_weighted(steps[:100], np.zeros(100, int))
    assert weighted.total == 0
    weighted.add_weighted(steps, counts)
    plain.add(np.repeat(steps, counts))
    assert weighted.to_dict() == plain.to_dict()


def both(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    loop, mine = (
        getattr(kernels, name)(),
        getattr(kernels, f"_{name.split('_')[0]}{'_channels' * name.endswith('channels')}_with_numpy"),
    )
    if loop is mine:
        pytest.skip("numba is not installed")
    return loop, mine


@pytest.mark.parametrize("count", [1, 4095, 4097, 70000])
def test_the_loops_over_values_agree(count: int) -> None:
    values = np.random.default_rng(count).normal(1.0, 2.0, count).astype(np.float32)
    rows = np.zeros((2, kernels.SCAN_COLUMNS))
    for row, scan in zip(rows, both("scan_values"), strict=True):
        scan(values, -2.5, 3.0, 0.25, row)
    exact = [0, 1, 2, 7, 8, 9, 10]
    np.testing.assert_array_equal(rows[0, exact], rows[1, exact])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5000, 69999])
def test_the_mean_is_finite_only_where_all_values_are(odd: float, place: int) -> None:
    values = np.random.default_rng(0).normal(0.0, 1.0, 70000).astype(np.float32)
    values[place] = odd
    for scan in both("scan_values"):
        row = np.zeros(kernels.SCAN_COLUMNS)
        scan(values, -1.0, 1.0, 0.1, row)
        assert not np.isfinite(row[3])


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 1), (3, 5, 7), (1, 8, 9)])
def test_the_loops_over_channels_agree(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(1.0, 2.0, shape).astype(np.float32)
    values.reshape(-1)[::4] = 0.0
    rows = np.zeros((2, shape[1], kernels.CHANNEL_COLUMNS))
    for row, scan in zip(rows, both("scan_channels"), strict=True):
        scan(values, row)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-12, atol=1e-12)
    per_bin = np.ldexp(1.0, np.arange(shape[1]) % 3)
    counts, zeros = np.zeros((2, shape[1], 128), np.int64), np.zeros((2, shape[1]), np.int64)
    for position, count in enumerate(both("count_channels")):
        count(values, per_bin, counts[position], zeros[position])
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(zeros[0], zeros[1])
    assert counts[0].sum() + zeros[0].sum() == values.size


# -- tables ----------------------------------------------------------------------------------------------------------------


def test_tables_and_files(tmp_path: Path) -> None:
    weights, output = planted(50.0)
    header, rows = profile_table([weights, output])
    assert all(len(row) == len(header) for row in rows)
    first = dict(zip(header, rows[0], strict=True))
    assert (first["role"], first["operator"], first["range"], first["dominating"]) == ("weights", "CONV_2D", "per channel", "1")
    assert dict(zip(header, rows[1], strict=True))["used"] == f"{output.integers_used}/256"
    header, rows = channel_table(output, 3)
    assert len(rows) == 3
    assert all(len(row) == len(header) for row in rows)
    assert (rows[0][0], rows[0][-1], rows[0][-2]) == ("2", "dominates", "100")
    write_profile_csv([weights, output], tmp_path / "profiles.csv")
    with open(tmp_path / "profiles.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(profile_columns([weights, output]))
    assert float(read[1]["kurtosis"]) == output.kurtosis
    assert [row["channels"] for row in read] == ["6", "6"]
    write_channel_csv(output, tmp_path / "channels.csv")
    with open(tmp_path / "channels.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert output.channels is not None
    assert [float(row["median"]) for row in read] == output.channels.median.tolist()
    assert [float(row["scale"]) for row in read] == [output.scale] * 6
    with pytest.raises(OptionError, match="count 0"):
        channel_table(output, 0)


# -- real models -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason=f"the real models are not at {SHARED_MODELS}")
@pytest.mark.parametrize("name", ["keyword_spotting/kws_ref_float", "super_resolution/espcn_x2_float"])
def test_real_models(name: str) -> None:
    samples = real_samples(name, 3)
    float_model = load_float_model(SHARED_MODELS / f"{name}.tflite")
    quantized = float_model.calibrate(samples, progress=False).quantize("int8").data
    profiles = profiled(float_model, quantized, samples)
    assert {profile.role for profile in profiles} == {"weights", "output", "input"}
    for profile in profiles:
        assert profile.error is not None
        assert profile.values.total == profile.error.total > 0
        assert 0 < profile.integers_used <= 256
        if profile.role == "output" and profile.op_name != "SOFTMAX":  # measured on the samples that calibrated
            assert profile.clipped_low + profile.clipped_high < 0.01
    pickle.loads(pickle.dumps(profiles))
