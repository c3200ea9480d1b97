"""Cross-layer equalization and absorption of high biases, against the float function and ranges worked out by numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from shared_data import samples as real_samples

from tflite_qdebug import tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.errors import ConversionError, ModelError, OptionError
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.remedies.absorption import absorb_high_biases, channel_minima
from tflite_qdebug.remedies.equalization import Equalized, equalize

layers = keras.layers
SHAPE = (8, 8, 4)


def conv(filters: int, name: str, **options: Any) -> Any:
    return layers.Conv2D(filters, options.pop("size", 3), padding=options.pop("padding", "same"), name=name, **options)


def _chain(x: Any) -> Any:
    return conv(5, "second")(conv(8, "first", activation="relu")(x))


def _triple(x: Any) -> Any:
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="middle")(conv(8, "first", activation="relu")(x))
    return conv(5, "last", size=1)(x)


def _multiplier(x: Any) -> Any:
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="middle")(conv(6, "first", activation="relu")(x))
    return conv(5, "last", size=1)(x)


def _between(x: Any) -> Any:
    """LEAKY_RELU, padding, pooling, PRELU."""
    x = layers.MaxPooling2D()(layers.ZeroPadding2D(1)(layers.LeakyReLU(negative_slope=0.2)(conv(8, "first")(x))))
    x = layers.AveragePooling2D(2)(layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones")(conv(6, "second")(x)))
    return conv(5, "last", size=1)(x)


def _flattened(x: Any) -> Any:
    x = layers.Flatten()(conv(3, "first", activation="relu")(x))
    return layers.Dense(5, name="last")(layers.Dense(6, activation="relu", name="hidden")(x))


def _averaged(x: Any) -> Any:
    return layers.Dense(5, name="last")(layers.GlobalAveragePooling2D()(conv(6, "first", activation="relu")(x)))


def _transposed(x: Any) -> Any:
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu", name="up")(conv(8, "first")(x))
    return conv(5, "last")(x)


def _two_readers(x: Any) -> Any:
    x = conv(8, "first", activation="relu")(x)
    return [conv(5, "left")(x), layers.GlobalAveragePooling2D()(conv(3, "right", size=1)(x))]


def _residual(x: Any) -> Any:
    x = conv(6, "first", activation="relu")(x)
    return conv(5, "last")(layers.Add()([x, conv(6, "inner")(conv(7, "wide", activation="relu")(x))]))


def _joined(x: Any) -> Any:
    x = layers.Concatenate()([conv(6, "left", activation="relu")(x), conv(3, "right", activation="relu")(x)])
    return conv(5, "last")(x)


def _gated(x: Any) -> Any:
    """Squeeze and excitation."""
    x = conv(6, "first", activation="relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = keras.ops.sigmoid(conv(6, "excite", size=1)(conv(2, "squeeze", size=1, activation="relu")(gate)))
    return conv(5, "last")(layers.Multiply()([x, gate]))


TOPOLOGIES: dict[str, tuple[Callable[[Any], Any], set[tuple[int, int]]]] = {
    # ... with how many layers on both sides the channels are expected to be shared.
    "chain": (_chain, {(1, 1)}),
    "triple": (_triple, {(1, 1)}),
    "multiplier": (_multiplier, {(1, 1)}),
    "between": (_between, {(1, 1)}),
    "flattened": (_flattened, {(1, 1)}),
    "averaged": (_averaged, {(1, 1)}),
    "transposed": (_transposed, {(1, 1)}),
    "two_readers": (_two_readers, {(1, 2)}),
    "residual": (_residual, {(2, 2), (1, 1)}),
    "joined": (_joined, {(1, 1)}),
    "gated": (_gated, {(1, 2), (1, 1)}),
}


def converted(build: Callable[[Any], Any], shape: tuple[int, ...] = SHAPE, seed: int = 0, high: float = 0.0) -> bytes:
    """Returns the float ``.tflite`` with random weights, uneven by up to 30 among channels."""
    keras.backend.clear_session()
    image = keras.Input(shape, batch_size=1, name="image")
    model = keras.Model(image, build(image))
    generator = np.random.default_rng(seed)
    weights = []
    for values in model.get_weights():
        drawn = generator.normal(0.0, 1.0 / np.sqrt(max(values[..., 0].size, 1)), values.shape)
        drawn *= np.exp(generator.uniform(-1.7, 1.7, values.shape[-1]))
        weights.append(drawn + high if values.ndim == 1 else drawn)
    model.set_weights(weights)
    with tf_private.captured_chatter():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


@functools.cache
def topology(name: str) -> bytes:
    return converted(TOPOLOGIES[name][0])


def images(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 5) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.normal(size=(1, *shape)).astype(np.float32)] for _ in range(count)]


def assert_same_function(before: bytes, after: bytes, samples: list[list[np.ndarray]]) -> None:
    for inputs in samples:
        for one, other in zip(models.outputs(before, inputs), models.outputs(after, inputs), strict=True):
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


def node(model: Model, operator: Operator) -> str:
    return model.main.tensors[operator.outputs[0]].name


def ranges_of(model: Model, name: str, written: bool) -> np.ndarray:
    """Returns the greatest magnitude of the weights of each channel that a layer writes, or reads, straight from the file."""
    operator = next(operator for operator in model.main.operators if node(model, operator) == name)
    weights = np.abs(model.constant(model.main.tensors[operator.inputs[1]]))
    axis = weights.ndim - 1 if operator.name == "DEPTHWISE_CONV_2D" or not written else 0
    return weights.max(axis=tuple(other for other in range(weights.ndim) if other != axis))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_function_stays(name: str) -> None:
    found = equalize(topology(name))
    assert {(len(pair.first), len(pair.second)) for pair in found.pairs} == TOPOLOGIES[name][1]
    assert all(pair.factors[0] < pair.factors[1] for pair in found.pairs)
    assert not found.replaced
    assert_same_function(topology(name), found.data, images(3))


@pytest.mark.parametrize("name", ["chain", "triple", "averaged", "transposed", "between"])
def test_ranges_of_neighbours_are_even(name: str) -> None:
    before, found = Model(topology(name)), equalize(topology(name))
    after = Model(found.data)
    for pair in found.pairs:
        (first,), (second,) = pair.first, pair.second
        assert not np.allclose(ranges_of(before, first, True), ranges_of(before, second, False), rtol=0.05)
        np.testing.assert_allclose(ranges_of(after, first, True), ranges_of(after, second, False), rtol=1e-3)


def test_factors_are_those_of_the_paper() -> None:
    before, after = Model(topology("chain")), Model(equalize(topology("chain")).data)
    (first, second) = (node(before, operator) for operator in before.main.operators)
    r1, r2 = ranges_of(before, first, True).astype(np.float64), ranges_of(before, second, False).astype(np.float64)
    factors = np.sqrt(r1 * r2) / r2  # equation 11
    w1, w2 = (before.constant(before.main.tensors[operator.inputs[1]]) for operator in before.main.operators)
    new1, new2 = (after.constant(after.main.tensors[operator.inputs[1]]) for operator in after.main.operators)
    np.testing.assert_allclose(new1, w1 / factors[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(new2, w2 * factors, rtol=1e-5)
    bias = before.main.operators[0].inputs[2]
    expected = before.constant(before.main.tensors[bias]) / factors
    (pair,) = equalize(topology("chain")).pairs
    assert pair.factors == pytest.approx((factors.min(), factors.max()), rel=1e-5)
    assert pair.precision_before == pytest.approx(np.mean(r1 / r1.max() * r2 / r2.max()))
    even = np.sqrt(r1 * r2)
    assert pair.precision_after == pytest.approx(np.mean((even / even.max()) ** 2))
    assert pair.precision_after > pair.precision_before
    np.testing.assert_allclose(after.constant(after.main.tensors[bias]), expected, rtol=1e-5)


def test_depthwise_triple_is_that_of_three_ranges() -> None:
    """With r1, r2, r3 on the way of one channel, all three become their geometric mean."""
    before, after = (Model(data) for data in (topology("triple"), equalize(topology("triple")).data))
    first, middle, last = (node(before, operator) for operator in before.main.operators)
    found = [(ranges_of(model, first, True), ranges_of(model, middle, True), ranges_of(model, last, False))
             for model in (before, after)]  # fmt: skip
    expected = np.cbrt(np.prod(np.array(found[0], np.float64), axis=0))
    for ranges in found[1]:
        np.testing.assert_allclose(ranges, expected, rtol=1e-3)


def test_many_readers_share_the_widest_range() -> None:
    found = equalize(topology("two_readers"))
    after, (pair,) = Model(found.data), found.pairs
    widest = np.max([ranges_of(after, name, False) for name in pair.second], axis=0)
    np.testing.assert_allclose(ranges_of(after, pair.first[0], True), widest, rtol=1e-3)


def test_flattened_channels_are_followed() -> None:
    found = equalize(topology("flattened"))
    after, pair = Model(found.data), found.pairs[0]
    widest = ranges_of(after, pair.second[0], False).reshape(-1, 3).max(axis=0)
    np.testing.assert_allclose(ranges_of(after, pair.first[0], True), widest, rtol=1e-3)


def test_file_differs_in_weights_and_biases_alone() -> None:
    before = Model(topology("triple"))
    after = equalize(before.data).data
    assert len(after) == len(before.data)
    changed = np.flatnonzero(np.frombuffer(before.data, np.uint8) != np.frombuffer(after, np.uint8))
    allowed = np.zeros(len(after), bool)
    for operator in before.main.operators:
        for index in operator.inputs[1:]:
            start = before.place(before.main.tensors[index])
            allowed[start : start + before.constant(before.main.tensors[index]).nbytes] = True
    assert len(changed)
    assert allowed[changed].all()


def test_equalizing_twice_changes_next_to_nothing() -> None:
    once = equalize(topology("residual"))
    twice = equalize(once.data)
    assert all(abs(end - 1) < 1e-3 for pair in twice.pairs for end in pair.factors)
    assert equalize(topology("residual")).data == once.data


def test_strength_is_a_power() -> None:
    whole, half = (equalize(topology("chain"), strength=strength).pairs[0] for strength in (1.0, 0.5))
    np.testing.assert_allclose(np.sqrt(whole.factors), half.factors, rtol=1e-6)
    assert_same_function(topology("gated"), equalize(topology("gated"), strength=0.7).data, images(2))


@functools.cache
def broken_chain() -> bytes:
    return converted(lambda x: conv(5, "second")(keras.ops.silu(conv(8, "first")(x))))


def test_what_is_not_equivariant_breaks_the_chain() -> None:
    found = equalize(broken_chain())
    assert found.data == broken_chain()
    assert found.pairs == ()
    first, second = found.left_out
    assert "LOGISTIC" in first[1] or "MUL" in first[1]
    assert second[1] == "output of the model"


def test_dead_channels_keep_their_values() -> None:
    model = Model(topology("chain"))
    weights = model.main.tensors[model.main.operators[0].inputs[1]]
    values = model.constant(weights).copy()
    values[2], values[3] = 0.0, values[3] * 1e-12
    from tflite_qdebug.edit.patched import Patch

    patch = Patch(model)
    patch.constant(weights.index, values)
    found = equalize(patch.data())
    after = Model(found.data)
    np.testing.assert_array_equal(after.constant(after.main.tensors[weights.index])[2:4], values[2:4])
    second = after.main.tensors[after.main.operators[1].inputs[1]]
    np.testing.assert_array_equal(after.constant(second)[..., 2:4], model.constant(second)[..., 2:4])
    assert found.pairs[0].channels == 6
    assert_same_function(patch.data(), found.data, images(2))


@functools.cache
def shared_dense() -> bytes:
    def build(x: Any) -> Any:
        dense = layers.Dense(4, name="dense", activation="relu")
        return layers.Dense(3, name="last")(dense(dense(x)))

    return converted(build, (4,))


def test_shared_weights_get_copies() -> None:
    model = Model(shared_dense())
    assert len({operator.inputs[1] for operator in model.main.operators}) == 2  # of three layers
    found = equalize(shared_dense())
    assert len(found.pairs) == 2
    assert_same_function(shared_dense(), found.data, images(3, (4,)))


# ---------------------------------------------------------------------------------------------------------------- RELU6


@functools.cache
def with_relu6() -> bytes:
    def build(x: Any) -> Any:
        x = conv(8, "first")(x)
        x = conv(8, "second")(keras.ops.relu6(x))
        return conv(4, "third")(keras.ops.relu6(x))

    data = converted(build)
    model = Model(data)
    assert [operator.name for operator in model.main.operators] == ["CONV_2D"] * 3
    return data


def calibrated_ranges(data: bytes, scale: float = 1.0) -> dict[str, tuple[float, float]]:
    """Returns the ranges of all activations, by TensorFlow's interpreter."""
    model = Model(data)
    found: dict[str, tuple[float, float]] = {}
    for (image,) in images(4):
        interpreter = models.run(data, [image * np.float32(scale)])
        for operator in model.main.operators:
            values = interpreter.get_tensor(operator.outputs[0])
            least, greatest = found.get(node(model, operator), (np.inf, -np.inf))
            found[node(model, operator)] = min(least, float(values.min())), max(greatest, float(values.max()))
    return found


def scaled(factor: float, count: int = 4) -> list[list[np.ndarray]]:
    return [[image * np.float32(factor)] for (image,) in images(count)]


def activations(data: bytes) -> list[int]:
    return Graph(Model(data)).activation_functions


def test_relu6_is_left_where_nothing_is_known() -> None:
    found = equalize(with_relu6())
    assert found.data == with_relu6()
    assert [reason for _, reason in found.left_out if "RELU6" in reason]
    assert "their ranges are not known" in found.notes[0]
    assert equalize(with_relu6(), relu6="leave", ranges=calibrated_ranges(with_relu6(), 0.01)).data == with_relu6()


def test_relu6_becomes_relu_where_six_is_not_reached() -> None:
    ranges = calibrated_ranges(with_relu6(), 0.1)
    assert max(high for _, high in ranges.values()) < 6
    found = equalize(with_relu6(), ranges=ranges)
    assert len(found.replaced) == len(found.pairs) == 2
    assert not found.limited
    assert activations(with_relu6()) == [3, 3, 0]
    assert activations(found.data) == [1, 1, 0]
    assert_same_function(with_relu6(), found.data, scaled(0.1))


def test_relu6_that_reaches_six_is_left() -> None:
    ranges = calibrated_ranges(with_relu6(), 10.0)
    first = node(Model(with_relu6()), Model(with_relu6()).main.operators[0])
    assert max(high for _, high in list(ranges.values())[:2]) == 6.0
    assert equalize(with_relu6(), ranges=ranges).data == with_relu6()
    found = equalize(with_relu6(), ranges={**ranges, first: (0.0, 5.9)})
    assert found.replaced == (first,)
    assert activations(found.data) == [1, 3, 0]


def test_a_minimum_keeps_the_function_of_relu6() -> None:
    found = equalize(with_relu6(), relu6="limit")
    assert len(found.limited) == len(found.pairs) == 2
    assert [operator.name for operator in Model(found.data).main.operators] == ["CONV_2D", "MINIMUM"] * 2 + ["CONV_2D"]
    assert_same_function(with_relu6(), found.data, scaled(20.0))
    quantized = load_float_model(found.data).calibrate(images(4), "exposed", progress=False).quantize("int8")
    assert quantized.float_nodes == ()


def test_replacing_relu6_says_that_the_function_changes() -> None:
    found = equalize(with_relu6(), relu6="replace")
    assert len(found.replaced) == 2
    assert any("no longer the same" in note for note in found.notes)
    assert_same_function(with_relu6(), found.data, scaled(0.1))
    one, other = (models.outputs(data, scaled(20.0)[0])[0] for data in (with_relu6(), found.data))
    assert np.abs(one - other).max() > 0.1 * np.abs(one).max()


# ------------------------------------------------------------------------------------------------------- what it is for


def signal_to_noise(floating: bytes, quantized: bytes, samples: list[list[np.ndarray]]) -> float:
    power = error = 0.0
    for inputs in samples:
        reference, values = (models.outputs(data, inputs, "builtin")[0].astype(np.float64) for data in (floating, quantized))
        power, error = power + float(np.sum(reference**2)), error + float(np.sum((values - reference) ** 2))
    return 10 * np.log10(power / error)


def test_planted_uneven_channels_are_healed() -> None:
    def planted(factors: np.ndarray) -> bytes:
        keras.backend.clear_session()
        image = keras.Input(SHAPE, batch_size=1, name="image")
        x = conv(8, "first", activation="relu")(image)
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="middle")(x)
        model = keras.Model(image, conv(5, "last", size=1)(x))
        generator = np.random.default_rng(1)
        drawn = [generator.normal(0, 1 / np.sqrt(w[..., 0].size), w.shape) for w in model.get_weights()]
        drawn = [values * (0 if values.ndim == 1 else 1) for values in drawn]
        drawn[0], drawn[4] = drawn[0] * factors, drawn[4] / factors[:, None]
        model.set_weights(drawn)
        with tf_private.captured_chatter():
            return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())

    def quality(data: bytes) -> float:
        calibrated = load_float_model(data).calibrate(images(8), "exposed", progress=False, backend=Backend(workers=1))
        quantized = calibrated.quantize("int8", per_channel=False, per_channel_dense=False).data
        return signal_to_noise(sound, quantized, images(8, seed=9))

    sound, factors = planted(np.ones(8)), np.ones(8)
    factors[3] = 100.0
    broken = planted(factors)
    assert_same_function(sound, broken, images(2))
    assert quality(broken) < quality(sound) - 15
    assert quality(equalize(broken).data) > quality(sound) - 1


@pytest.mark.parametrize("folder", ["super_resolution", "keyword_spotting", "mobilenetv3_small", "mobilenet_v1_0.25"])
def test_real_models_keep_their_function(folder: str, shared_models: Any) -> None:
    paths = [path for path in sorted((shared_models / folder).glob("*.tflite")) if is_float(Model(path))]
    assert paths
    for path in paths:
        found = equalize(path, relu6="limit", strength=0.8)
        assert found.pairs, path
        assert_same_function(path.read_bytes(), found.data, real_samples(f"{folder}/{path.stem}", 1))


def is_float(model: Model) -> bool:
    return not any(tensor.is_quantized or tensor.dtype == np.float16 for tensor in model.main.tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relu6": "limits"}, "limit"),
        ({"iterations": 0}, "1 or more"),
        ({"iterations": True}, "1 or more"),
        ({"strength": 0.0}, "above 0"),
        ({"strength": float("nan")}, "above 0"),
        ({"ranges": {"fist": (0.0, 1.0)}}, "fist"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        equalize(topology("chain"), **options)


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(ModelError, match="expected a float model"):
        equalize(models.calibrated("chain").quantize("int8").data)


# ----------------------------------------------------------------------------------------------------------- absorption


def _valid(x: Any) -> Any:
    x = conv(8, "first", padding="valid", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="valid", activation="relu", name="middle")(x)
    x = conv(6, "point", size=1, activation="relu")(x)
    return layers.Dense(3, name="last")(layers.GlobalAveragePooling2D()(x))


@functools.cache
def high() -> bytes:
    return converted(_valid, high=6.0)


def minima_by_hand(data: bytes, samples: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    model = Model(data)
    found = {}
    for operator in model.main.operators:
        if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            runs = [models.run(data, inputs, "builtin").get_tensor(operator.outputs[0]) for inputs in samples]
            found[node(model, operator)] = np.min([values.reshape(-1, values.shape[-1]).min(axis=0) for values in runs], axis=0)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_minima(workers: int) -> None:
    found = channel_minima(high(), images(5), backend=Backend(kernels="builtin", workers=workers), progress=False)
    expected = minima_by_hand(high(), images(5))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_absorption_keeps_the_function_and_narrows_ranges() -> None:
    samples = images(6)
    minima = minima_by_hand(high(), samples)
    found = absorb_high_biases(high(), minima)
    assert_same_function(high(), found.data, samples)
    model, lowered = Model(high()), minima_by_hand(found.data, samples)
    operators = [node(model, operator) for operator in model.main.operators if node(model, operator) in minima]
    for name in operators[:-1]:
        expected = int(np.sum(minima[name] > 0))
        assert expected, "a test without high biases"
        assert found.layers[name][0] == expected
        assert found.layers[name][1] == pytest.approx(minima[name].max())
        np.testing.assert_allclose(lowered[name][minima[name] > 0], 0.0, atol=1e-4 * minima[name].max())
    assert operators[-1] not in found.layers


def test_absorption_rewrites_biases_alone() -> None:
    model = Model(high())
    after = absorb_high_biases(high(), minima_by_hand(high(), images(6))).data
    assert len(after) == len(model.data)
    allowed = np.zeros(len(after), bool)
    for operator in model.main.operators:
        for index in operator.inputs[2:3]:
            start = model.place(model.main.tensors[index])
            allowed[start : start + model.constant(model.main.tensors[index]).nbytes] = True
    changed = np.frombuffer(model.data, np.uint8) != np.frombuffer(after, np.uint8)
    assert changed.any()
    assert not changed[~allowed].any()


def test_padding_and_negative_minima_leave_the_model_alone() -> None:
    padded = converted(_chain, high=6.0)
    minima = minima_by_hand(padded, images(3))
    found = absorb_high_biases(padded, minima)
    assert found.data == padded
    assert "pads with zeros" in found.left_out[0][1]
    low = {name: np.full_like(values, -1.0) for name, values in minima_by_hand(high(), images(1)).items()}
    assert absorb_high_biases(high(), low).data == high()


def test_absorption_through_relu6_where_six_is_not_reached() -> None:
    def build(x: Any) -> Any:
        return conv(3, "last", size=1)(keras.ops.relu6(conv(5, "first", size=1)(x)))

    data = converted(build, high=3.0, seed=2)
    samples = scaled(0.05)
    minima = minima_by_hand(data, samples)
    first = node(Model(data), Model(data).main.operators[0])
    assert (minima[first] > 0).any()
    assert absorb_high_biases(data, minima).data == data
    found = absorb_high_biases(data, minima, ranges={first: (0.0, 5.9)})
    assert first in found.layers
    assert activations(found.data) == [3, 0]


def test_wrong_minima() -> None:
    name = node(Model(high()), Model(high()).main.operators[0])
    with pytest.raises(OptionError, match="Did you mean"):
        absorb_high_biases(high(), {name[:-1]: np.zeros(8, np.float32)})
    with pytest.raises(OptionError, match="shape"):
        absorb_high_biases(high(), {name: np.zeros(7, np.float32)})
    with pytest.raises(OptionError, match="NaN"):
        absorb_high_biases(high(), {name: np.full(8, np.nan)})
    with pytest.raises(OptionError, match="no_such"):
        absorb_high_biases(high(), {}, ranges={"no_such": (0.0, 1.0)})


def test_minima_of_a_model_that_gives_nan() -> None:
    from tflite_qdebug.edit.patched import Patch

    model = Model(high())
    bias = model.main.operators[0].inputs[2]
    patch = Patch(model)
    patch.constant(bias, np.full(8, np.nan, np.float32))
    with pytest.raises(ConversionError, match="NaN"):
        channel_minima(patch.data(), images(1), progress=False, backend=Backend(kernels="builtin", workers=1))


def test_result_is_plain_data() -> None:
    assert isinstance(equalize(topology("chain")), Equalized)
