"""Unbalanced concatenations: small tensors get their own scale, convolutions of them are cut in parts."""

from __future__ import annotations

import functools
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tflite_qdebug import tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.model import Model, Tensor
from tflite_qdebug.remedies.branches import split_convolutions
from tflite_qdebug.remedies.splitting import split_unbalanced

layers = keras.layers
SHAPE = (8, 8, 4)
FACTOR = 100.0


def samples(count: int = 8, seed: int = 1) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.normal(size=(1, *SHAPE)).astype(np.float32)] for _ in range(count)]


def _branches(activation: str, names: str = "ab") -> tuple[Any, list[Any]]:
    image = keras.Input(SHAPE, batch_size=1, name="image")
    made = [layers.Conv2D(4, 3, padding="same", activation=activation, name=name)(image) for name in names]
    return image, made


def _built(name: str) -> Any:
    """Branch ``b`` is planted to be a hundred times as wide as ``a``; who reads it makes up for that."""
    image, (small, large) = _branches("swish" if name == "swish" else "relu")
    if name in ("plain", "swish"):
        outputs = [layers.Conv2D(3, 3, activation="relu", name="y")(layers.Concatenate(name="joined")([small, large]))]
    elif name == "maximum":
        outputs = [layers.Conv2D(3, 3, name="y")(layers.Maximum(name="joined")([small, large]))]
        outputs.append(layers.Conv2D(3, 3, name="z")(small))
    elif name == "added":
        outputs = [layers.Conv2D(3, 3, name="y")(layers.Add(name="joined")([small, large]))]
        outputs.append(layers.Conv2D(3, 3, name="z")(small))
    elif name == "reshaped":
        flat = layers.Reshape((64, 4), name="flat")(small)
        outputs = [layers.Concatenate(name="joined")([flat, layers.Reshape((64, 4))(large)])]
        outputs.append(layers.Conv2D(3, 3, name="z")(small))
    elif name == "two":
        joined = layers.Concatenate(name="joined")([small, large])
        other = layers.Concatenate(name="other")([small, keras.ops.tanh(image)])
        outputs = [layers.Conv2D(3, 3, name="y")(joined), layers.Conv2D(3, 1, name="z")(other)]
    else:
        joined = layers.Concatenate(name="joined")([small, large])
        outputs = [layers.Conv2D(3, 3, name="y")(joined), layers.Conv2D(3, 3, name="z")(small)]
    return keras.Model(image, outputs)


@functools.cache
def floating(name: str, factor: float = FACTOR) -> bytes:
    keras.backend.clear_session()
    model = _built(name)
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0, 0.3, weights.shape) for weights in model.get_weights()])
    large = model.get_layer("b")
    large.set_weights([factor * weights for weights in large.get_weights()])
    reader = next((layer for layer in model.layers if layer.name == "y"), None)
    if reader is not None and name not in ("maximum", "added"):
        weights, bias = reader.get_weights()
        weights[:, :, 4:] /= factor
        reader.set_weights([weights, bias])
    with tf_private.captured_chatter():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def calibrated_from(data: bytes) -> CalibratedModel:
    backend = Backend(kernels="builtin", workers=1)
    return load_float_model(data).calibrate(samples(), "exposed", progress=False, backend=backend)


@functools.cache
def calibrated(name: str, factor: float = FACTOR) -> CalibratedModel:
    return calibrated_from(floating(name, factor))


@functools.cache
def quantized(name: str) -> bytes:
    return calibrated(name).quantize("int8").data


def quality(float_data: bytes, data: bytes) -> list[float]:
    """Returns the signal to noise ratio of each output, in dB, in TensorFlow's interpreter."""
    power: Any = 0.0
    error: Any = 0.0
    for inputs in samples(8, seed=7):
        references = [values.astype(np.float64) for values in models.outputs(float_data, inputs, "builtin")]
        found = [values.astype(np.float64) for values in models.outputs(data, inputs, "builtin")]
        power = power + np.array([np.sum(values**2) for values in references])
        error = error + np.array([np.sum((one - other) ** 2) for one, other in zip(references, found, strict=True)])
    return [float(value) for value in 10 * np.log10(power / error)]


def named(model: Model, part: str, op_name: str = "CONV_2D") -> Tensor:
    found = [model.main.tensors[op.outputs[0]] for op in model.main.operators if op.name == op_name]
    return next(tensor for tensor in found if f"/{part}_1/" in tensor.name)


def scale(tensor: Tensor) -> float:
    assert tensor.quantization is not None
    return float(tensor.quantization.scale[0])


@pytest.mark.parametrize("name", ["shared", "two", "maximum"])
def test_other_readers_get_the_fine_scale(name: str) -> None:
    found = split_unbalanced(floating(name), quantized(name), calibrated(name).histograms)
    (split,) = found.split
    small = named(Model(floating(name)), "a")
    assert split.tensor == small.name
    histogram = calibrated(name).histograms[small.name]
    assert split.scale_after == pytest.approx(histogram.maximum / 255, rel=1e-6)  # of a RELU's output: from zero on
    assert split.scale_before == pytest.approx(scale(named(Model(quantized(name)), "a")))
    before, after = quality(floating(name), quantized(name)), quality(floating(name), found.data)
    # One output comes of the small branch alone; the other one of what is joined, as before.
    fine = int(np.argmax(np.subtract(after, before)))
    assert after[fine] > before[fine] + 20
    assert after[1 - fine] > before[1 - fine] - 1


def test_only_what_is_split_changes() -> None:
    before = Model(quantized("shared"))
    after = Model(split_unbalanced(floating("shared"), before, calibrated("shared").histograms).data)
    assert [op.name for op in after.main.operators if op.name != "QUANTIZE"] == [
        op.name for op in before.main.operators if op.name != "QUANTIZE"
    ]
    assert len(after.main.operators) == len(before.main.operators) + 1
    small, fine = named(before, "a"), []
    reader = next(op for op in before.main.operators if op.name == "CONV_2D" and op.inputs[0] == small.index)
    for one, other in zip(before.main.tensors, after.main.tensors, strict=False):
        assert (one.name, one.shape, one.dtype) == (other.name, other.shape, other.dtype)
        same = one.quantization == other.quantization
        if one.is_constant:
            same = same and np.array_equal(before.constant(one), after.constant(other))
        if not same:
            fine.append(one.index)
    assert sorted(fine) == sorted([small.index, reader.inputs[2]])  # its scale, and the bias of who reads it


def test_the_bias_of_a_reader_is_that_of_the_float_model() -> None:
    result = Model(split_unbalanced(floating("shared"), quantized("shared"), calibrated("shared").histograms).data)
    small = named(result, "a")
    reader = next(op for op in result.main.operators if op.name == "CONV_2D" and op.inputs[0] == small.index)
    source = Model(floating("shared"))
    counterpart = named(source, "a")
    origin = next(op for op in source.main.operators if op.name == "CONV_2D" and op.inputs[0] == counterpart.index)
    real = source.constant(source.main.tensors[origin.inputs[2]]).astype(np.float64)
    weights, bias = (result.main.tensors[reader.inputs[place]] for place in (1, 2))
    assert weights.quantization is not None
    step = scale(small) * weights.quantization.scale.astype(np.float64)
    np.testing.assert_allclose(result.constant(bias), np.round(real / step), atol=1)


def test_the_joined_branch_keeps_its_scale() -> None:
    before = Model(quantized("shared"))
    after = Model(split_unbalanced(floating("shared"), before, calibrated("shared").histograms).data)
    join = next(op for op in after.main.operators if op.name == "CONCATENATION")
    scales = {scale(after.main.tensors[index]) for index in (*join.inputs, *join.outputs)}
    assert scales == {scale(named(before, "joined", "CONCATENATION"))}


def test_a_reshape_between_shares_the_fine_scale() -> None:
    found = split_unbalanced(floating("reshaped"), quantized("reshaped"), calibrated("reshaped").histograms)
    assert len(found.split) == 1
    result = Model(found.data)
    reshape = next(op for op in result.main.operators if op.name == "RESHAPE" and op.inputs[0] == named(result, "a").index)
    assert scale(result.main.tensors[reshape.outputs[0]]) == scale(named(result, "a"))
    before, after = (quality(floating("reshaped"), data) for data in (quantized("reshaped"), found.data))
    assert max(np.subtract(after, before)) > 20


@pytest.mark.parametrize(("name", "reason"), [("plain", "nothing else reads it"), ("added", "")])
def test_what_gains_nothing_is_left(name: str, reason: str) -> None:
    found = split_unbalanced(floating(name), quantized(name), calibrated(name).histograms)
    assert found.data == quantized(name)
    assert found.split == ()
    assert [reason in why for _, why in found.left_out] == ([True] if reason else [])


def test_ratio_and_names() -> None:
    histograms = calibrated("shared").histograms
    plain = {name: (histogram.minimum, histogram.maximum) for name, histogram in histograms.items()}
    small, large = (named(Model(floating("shared")), part).name for part in "ab")
    assert split_unbalanced(floating("shared"), quantized("shared"), plain, ratio=1000.0).data == quantized("shared")
    asked = split_unbalanced(floating("shared"), quantized("shared"), plain, ratio=1000.0, tensors=[small])
    assert asked.data == split_unbalanced(floating("shared"), quantized("shared"), histograms).data
    other = split_unbalanced(floating("shared"), quantized("shared"), plain, tensors=[large])
    assert other.left_out[0][0] == large
    unknown = split_unbalanced(floating("shared"), quantized("shared"), {}, tensors=[small])
    assert unknown.left_out == ((small, "its range is not known"),)
    image = Model(floating("shared")).main.tensors[Model(floating("shared")).main.inputs[0]].name
    assert split_unbalanced(floating("shared"), quantized("shared"), plain, tensors=[image]).left_out == (
        (image, "no operator joins it with others"),
    )


@pytest.mark.parametrize(
    ("ranges", "options"),
    [({}, {"ratio": 1.0}), ({}, {"ratio": float("nan")}), ({"nobody": (0.0, 1.0)}, {}), ({}, {"tensors": ["nobody"]}),
     ({}, {"tensors": "nobody"}), ({"image": (1.0, 0.0)}, {}), ({"image": (0.0, float("nan"))}, {})],
)  # fmt: skip
def test_wrong_options(ranges: dict[str, Any], options: dict[str, Any]) -> None:
    known = Model(floating("shared")).main.tensors[Model(floating("shared")).main.inputs[0]].name
    ranges = {known if name == "image" else name: ends for name, ends in ranges.items()}
    with pytest.raises(OptionError):
        split_unbalanced(floating("shared"), quantized("shared"), ranges, **options)


# ------------------------------------------------------------------------------------------------ convolutions in parts


@pytest.mark.parametrize("name", ["plain", "swish", "shared", "two"])
def test_parts_compute_the_same(name: str) -> None:
    found = split_convolutions(floating(name), calibrated(name).histograms)
    assert [len(split.parts) for split in found.split] == [2] * len(found.split)
    assert len(found.split) >= 1
    for inputs in samples(3, seed=2):
        before, after = models.outputs(floating(name), inputs), models.outputs(found.data, inputs)
        for one, other in zip(before, after, strict=True):
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    names = [operator.name for operator in Model(found.data).main.operators]
    assert names.count("ADD") == len(found.split)
    was = [operator.name for operator in Model(floating(name)).main.operators]
    assert names.count("CONCATENATION") == was.count("CONCATENATION") - len(found.split)


def test_parts_bring_back_what_the_common_scale_took() -> None:
    """Equalization cannot help here: SWISH does not keep a factor."""
    parts = split_convolutions(floating("swish"), calibrated("swish").histograms).data
    before = quality(floating("swish"), quantized("swish"))
    after = quality(floating("swish"), calibrated_from(parts).quantize("int8").data)
    assert before[0] < 15
    assert after[0] > 25


def test_weights_are_cut_along_their_channels() -> None:
    model = Model(floating("plain"))
    reader = model.main.producers[model.main.outputs[0]]
    weights = model.constant(model.main.tensors[reader.inputs[1]])
    found = split_convolutions(model, calibrated("plain").histograms)
    result = Model(found.data)
    total = result.main.producers[result.main.outputs[0]]
    assert total.name == "ADD"
    cuts = {}
    for index in total.inputs:
        part = result.main.producers[index]
        cuts[result.main.tensors[part.inputs[0]].name] = [result.constant(result.main.tensors[i]) for i in part.inputs[1:]]
    small, large = (cuts[named(model, name).name] for name in "ab")
    np.testing.assert_array_equal(small[0], weights[..., :4])
    np.testing.assert_array_equal(large[0], weights[..., 4:])
    np.testing.assert_array_equal(small[1] + large[1], model.constant(model.main.tensors[reader.inputs[2]]))
    assert named(model, "b").name in found.split[0].parts[0]  # the widest first


def test_balanced_convolutions_are_left() -> None:
    data, histograms = floating("plain", 1.0), calibrated("plain", 1.0).histograms
    node = Model(data).main.tensors[Model(data).main.outputs[0]].name
    assert split_convolutions(data, histograms).data == data
    found = split_convolutions(data, histograms, nodes=[node])
    assert found.left_out == ((node, "what it reads is balanced"),)
    assert split_convolutions(data, {}, nodes=[node]).left_out == ((node, "not all ranges of what it reads are known"),)
    first = named(Model(data), "a").name
    assert "reads a concatenation" in split_convolutions(data, histograms, nodes=[first]).left_out[0][1]


def test_inputs_of_one_size_stay_together() -> None:
    keras.backend.clear_session()
    image, made = _branches("relu", "abc")
    model = keras.Model(image, layers.Conv2D(3, 1, name="y")(layers.Concatenate(name="joined")(made)))
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0, 0.3, weights.shape) for weights in model.get_weights()])
    with tf_private.captured_chatter():
        data = bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    a, b, c = (named(Model(data), name).name for name in "abc")
    found = split_convolutions(data, {a: (0.0, 1.0), b: (0.0, 50.0), c: (0.0, 1.5)})
    (split,) = found.split
    assert split.parts == ((b,), (c, a))
    for inputs in samples(2):
        one, other = models.outputs(data, inputs)[0], models.outputs(found.data, inputs)[0]
        assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


def test_wrong_nodes() -> None:
    with pytest.raises(OptionError, match="nobody"):
        split_convolutions(floating("plain"), {}, nodes=["nobody"])
    with pytest.raises(OptionError, match="list of names"):
        split_convolutions(floating("plain"), {}, nodes="nobody")
    with pytest.raises(OptionError, match="nobody"):
        split_convolutions(floating("plain"), {"nobody": (0.0, 1.0)})
    with pytest.raises(OptionError, match="ratio"):
        split_convolutions(floating("plain"), {}, ratio=0.5)
    with pytest.raises(ModelError, match="expected a float model"):
        split_convolutions(quantized("plain"), {})
