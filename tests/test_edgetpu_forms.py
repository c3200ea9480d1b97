"""What a float model needs to fit the Edge TPU: fixed sizes, and forms that the device has; both compute what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
from models import dataset, float_model, outputs, run

from tflite_qdebug.conversion import FloatModel, load_float_model
from tflite_qdebug.edgetpu.conversion import convert_for_edgetpu, edgetpu_float_model
from tflite_qdebug.edgetpu.op_versions import newest_version
from tflite_qdebug.edit.edgetpu_forms import with_edgetpu_forms
from tflite_qdebug.edit.static_shapes import with_static_shapes
from tflite_qdebug.errors import ConversionError, DatasetError, ModelError, OptionError
from tflite_qdebug.model import Model

layers = keras.layers
IMAGE = (9, 10, 4)


def made(build: Callable[[Any], Any], shape: tuple[int, ...] = IMAGE) -> FloatModel:
    """A float model of a batch of any size, as Keras makes it."""
    keras.utils.set_random_seed(3)
    source = keras.Input(shape)
    return load_float_model(keras.Model(source, build(source)))


def names(content: bytes | Model) -> list[str]:
    model = content if isinstance(content, Model) else Model(content)
    return [operator.name for operator in model.main.operators]


def sample(model: FloatModel, seed: int = 0) -> list[np.ndarray]:
    shape = model.model.main.tensors[model.model.main.inputs[0]].shape
    return [np.random.default_rng(seed).normal(size=(1, *shape[1:])).astype(np.float32)]


def both(model: FloatModel) -> tuple[np.ndarray, np.ndarray, bytes, tuple[str, ...]]:
    """What a model gives before and after, what became of it, and what was said."""
    changed, changes = edgetpu_float_model(model)
    inputs = sample(model)
    before = run(model.data, inputs, preserve=False).get_tensor(model.model.main.outputs[0])
    after = run(changed.data, inputs, preserve=False).get_tensor(changed.model.main.outputs[0])
    return before, after, changed.data, changes


# ------------------------------------------------------------------------------------------------------------ fixed sizes


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda x: layers.Dense(3)(layers.Flatten()(x)), ["RESHAPE", "FULLY_CONNECTED"]),
        (lambda x: layers.Conv2DTranspose(3, 3, strides=2)(x), ["TRANSPOSE_CONV"]),
        (lambda x: layers.Reshape((6, 60))(x), ["RESHAPE"]),
    ],
)
def test_shapes_that_are_computed_become_constants(build: Callable[[Any], Any], left: list[str]) -> None:
    model = made(build)
    assert "SHAPE" in names(model.model)
    content, changes = with_static_shapes(model.model)
    assert names(content) == left
    assert all(-1 not in tensor.shape for tensor in Model(content).main.tensors)
    assert "takes one sample: (-1, 9, 10, 4) became (1, 9, 10, 4)" in changes[0]
    assert "3 operators that computed shapes" in changes[1]
    (expected,), (got,) = (outputs(each, sample(model)) for each in (model.data, content))
    np.testing.assert_array_equal(got, expected)


def test_a_model_of_fixed_sizes_stays_as_it_is() -> None:
    model = float_model("mixed")
    content, changes = with_static_shapes(model.model)
    assert changes == ()
    assert names(content) == names(model.model)


def test_a_size_other_than_the_batch_is_refused() -> None:
    model = made(lambda x: layers.Conv2D(2, 3)(x), (None, None, 4))
    with pytest.raises(ModelError, match=r"of which more than the batch is open.*full shape"):
        with_static_shapes(model.model)


def test_a_fixed_batch_of_several_is_refused() -> None:
    source = keras.Input(IMAGE, batch_size=8)
    with pytest.raises(ModelError, match=r"\(8, 9, 10, 4\), a fixed batch of 8; expected a batch of 1"):
        edgetpu_float_model(keras.Model(source, layers.Conv2D(2, 3)(source)))


# ------------------------------------------------------------------------------------------------------------------ forms


@pytest.mark.parametrize(
    ("build", "left", "words"),
    [
        (lambda x: layers.LeakyReLU(0.2)(x), ["PRELU"], "1 LEAKY_RELU became PRELU"),
        (lambda x: layers.UpSampling2D((2, 3))(x), ["RESIZE_NEAREST_NEIGHBOR"], "became RESIZE_NEAREST_NEIGHBOR"),
        (lambda x: layers.UpSampling2D((1, 2))(x), ["RESHAPE", "RESIZE_NEAREST_NEIGHBOR"], "became RESIZE_NEAREST_NEIGHBOR"),
        (lambda x: layers.Dense(5, activation="relu")(x), ["RESHAPE", "CONV_2D", "RESHAPE"], "convolutions of size 1"),
        (lambda x: layers.Conv2D(5, 3, dilation_rate=2)(x), ["CONV_2D"], "dilated ones"),
        (lambda x: layers.Conv2D(5, 3, dilation_rate=2, padding="same")(x), ["CONV_2D"], "dilated ones"),
        (lambda x: layers.Conv2D(5, (2, 4), dilation_rate=3, padding="same")(x), ["CONV_2D"], "dilated ones"),
        (lambda x: layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x), ["DEPTHWISE_CONV_2D"], "dilated ones"),
        (lambda x: layers.Conv2D(6, 3, groups=2)(x), ["SPLIT", "CONV_2D", "CONV_2D", "CONCATENATION"], "in groups"),
        (lambda x: layers.Activation("hard_silu")(x), ["ADD", "MUL", "MUL"], "1 HARD_SWISH became additions and products"),
    ],
)  # fmt: skip
def test_forms_compute_the_same(build: Callable[[Any], Any], left: list[str], words: str) -> None:
    before, after, content, changes = both(made(build))
    assert names(content) == left
    assert words in changes[-1]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=2e-6)
    assert before.std() > 0.05


def test_leaky_relu_by_hand() -> None:
    model = made(lambda x: layers.LeakyReLU(0.2)(x))
    changed, _ = edgetpu_float_model(model)
    (values,) = inputs = sample(model)
    np.testing.assert_allclose(outputs(changed.data, inputs)[0], np.where(values > 0, values, 0.2 * values), rtol=1e-6)
    assert (
        changed.model.main.tensors[changed.model.main.outputs[0]].name
        == model.model.main.tensors[model.model.main.outputs[0]].name
    )


def test_repeated_pixels_by_hand() -> None:
    model = made(lambda x: layers.UpSampling2D((2, 3))(x))
    changed, _ = edgetpu_float_model(model)
    (values,) = inputs = sample(model)
    np.testing.assert_array_equal(outputs(changed.data, inputs)[0], values.repeat(2, axis=1).repeat(3, axis=2))


def test_a_dense_layer_that_keeps_dimensions_becomes_plain() -> None:
    keras.utils.set_random_seed(3)
    source = keras.Input((1, 4), batch_size=1)
    model = load_float_model(keras.Model(source, layers.Dense(3)(source)))
    before, after, content, changes = both(model)
    assert names(content).count("FULLY_CONNECTED") == 1
    assert "1 dense layers that keep dimensions became plain ones" in changes
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_weights_are_not_stored_twice() -> None:
    model = made(lambda x: layers.Dense(64, use_bias=False)(x), (5, 5, 64))
    changed, _ = edgetpu_float_model(model)
    assert len(changed.data) < len(model.data) + 4 * 64 * 64


def test_what_fits_already_stays_byte_for_byte() -> None:
    model = float_model("chain").model
    content, changes = with_edgetpu_forms(model)
    assert (content, changes) == (model.data, ())


@pytest.mark.parametrize(
    "build",
    [
        # What is read by others too, or is not the whole pattern, is left alone.
        lambda x: keras.ops.tile(x, (1, 2, 1, 1)),
        lambda x: layers.Dense(5)(layers.Flatten()(x)),
        lambda x: layers.Conv2D(5, 3)(x),
        lambda x: layers.DepthwiseConv2D(3)(x),
    ],
)
def test_what_is_no_such_form_stays(build: Callable[[Any], Any]) -> None:
    content, _ = with_static_shapes(made(build).model)
    assert with_edgetpu_forms(Model(content))[1] == ()


# ------------------------------------------------------------------------------------------------------------- conversion


def calibration(model: FloatModel, count: int = 4) -> Callable[[], Iterator[list[np.ndarray]]]:
    return lambda: iter([sample(model, seed) for seed in range(count)])


def unet_like(x: Any) -> Any:
    wide = layers.LeakyReLU(0.1)(layers.Conv2D(8, 3, padding="same")(x))
    deep = layers.Activation("hard_silu")(layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(wide)))
    joined = layers.Concatenate()([wide, layers.UpSampling2D()(deep)])
    return layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Conv2D(4, 1)(joined)))


def test_conversion_maps_everything() -> None:
    model = made(unet_like, (8, 8, 4))
    found = convert_for_edgetpu(model, calibration(model), progress=False)
    assert (found.partition.mapped, found.partition.total) == (found.partition.total, len(names(found.data)))
    assert found.partition.refused == ()
    assert found.partition.notes == ()  # dense layers are per tensor, the batch is 1
    quantized = Model(found.data)
    assert all(not tensor.is_float for tensor in quantized.main.tensors)
    assert [quantized.main.tensors[index].shape for index in quantized.main.inputs] == [(1, 8, 8, 4)]
    assert all(operator.version <= newest_version(operator.name) for operator in quantized.main.operators)
    dense = next(operator for operator in quantized.main.operators if operator.name == "FULLY_CONNECTED")
    weights = quantized.main.tensors[dense.inputs[1]].quantization
    assert weights is not None
    assert weights.scale.size == 1
    # The same without the forms: the model is refused for TILE, which the converter writes in version 3.
    with pytest.raises(ConversionError, match=r"would refuse the model: Didn't find op for builtin opcode 'TILE' version '3'"):
        convert_for_edgetpu(model, calibration(model), rewrite=False, progress=False)


def test_conversion_is_near_the_float_model() -> None:
    model = made(unet_like, (8, 8, 4))
    found = convert_for_edgetpu(model, calibration(model), input_type="float32", output_type="float32", progress=False)
    inputs = sample(model, 1)
    expected, got = outputs(model.data, inputs)[0], outputs(found.data, inputs)[0]
    assert np.abs(got - expected).max() < 0.05
    # Floats in and out cost a conversion on the CPU each.
    assert [each.operator for each in found.partition.operators if not each.mapped] == ["QUANTIZE", "DEQUANTIZE"]


def test_types_of_inputs_and_outputs() -> None:
    model = float_model("mixed")
    found = convert_for_edgetpu(model, dataset("mixed", 4), input_type="uint8", output_type="uint8", progress=False)
    main = Model(found.data).main
    assert {main.tensors[index].dtype.name for index in (*main.inputs, *main.outputs)} == {"uint8"}
    with pytest.raises(OptionError, match="got input_type 'int16'"):
        convert_for_edgetpu(model, dataset("mixed", 4), input_type="int16", progress=False)


def test_what_cannot_be_integers_is_named() -> None:
    model = made(lambda x: layers.ELU()(layers.Conv2D(3, 3)(x)))
    with pytest.raises(ConversionError, match="ELU"):
        convert_for_edgetpu(model, calibration(model), progress=False)


def test_samples_of_several_are_refused() -> None:
    model = made(lambda x: layers.Conv2D(3, 3)(x))
    with pytest.raises(DatasetError, match=r"\(2, 9, 10, 4\)"):
        convert_for_edgetpu(model, [[np.zeros((2, *IMAGE), np.float32)]], progress=False)
