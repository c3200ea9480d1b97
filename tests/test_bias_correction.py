"""Bias correction: errors planted and taken back, and means worked out by numpy from TensorFlow's own interpreter."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tflite_qdebug import tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.edit import Patch
from tflite_qdebug.edit.dequantized import dequantize_model, implied_activations
from tflite_qdebug.edit.prefix import Prefixes
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.remedies.bias_correction import CorrectedBiases, correct_biases

BACKEND = Backend(kernels="reference", workers=1, isolate=False)
PLACES = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
Samples = list[list[np.ndarray]]


def layers(model: Model) -> list[Operator]:
    return [op for op in model.main.operators if op.name in PLACES]


def bias(model: Model, operator: Operator) -> np.ndarray:
    return model.constant(model.main.tensors[operator.inputs[PLACES[operator.name]]])


def planted(model: Model, operator: Operator, steps: np.ndarray) -> bytes:
    patch, old = Patch(model), bias(model, operator)
    patch.constant(operator.inputs[PLACES[operator.name]], (old + steps).astype(old.dtype))
    return patch.data()


def corrected(floating: bytes, quantized: bytes, samples: Samples, **options: Any) -> CorrectedBiases:
    return correct_biases(floating, quantized, lambda: iter(samples), **{"backend": BACKEND, "progress": False, **options})


def step_of(model: Model, operator: Operator) -> np.ndarray:
    data = 2 if operator.name == "TRANSPOSE_CONV" else 0
    tensors = model.main.tensors
    return tensors[operator.inputs[data]].quantization.scale[0] * tensors[operator.inputs[1]].quantization.scale


def means(data: bytes, tensor: int, samples: Samples) -> np.ndarray:
    """Returns the mean of each channel of a tensor, in real numbers, by TensorFlow's reference kernels."""
    table = Model(data).main.tensors[tensor]
    rows = []
    for sample in samples:
        values = models.run(data, sample).get_tensor(tensor).astype(np.float64)
        if table.is_quantized:
            values = (values - float(table.quantization.zero_point[0])) * float(table.quantization.scale[0])
        rows.append(values.reshape(-1, values.shape[-1]))
    return np.concatenate(rows).mean(axis=0)


@functools.cache
def built(name: str) -> tuple[bytes, bytes, Samples]:
    """Returns a small model for this file, float and int8, and samples."""
    image = keras.Input((6, 6, 3), batch_size=1, name="image")
    conv = functools.partial(keras.layers.Conv2D, 6, 3, padding="same", name="conv")
    bodies = {
        "relu": lambda: conv(activation="relu")(image),
        "relu6": lambda: keras.layers.ReLU(6.0)(conv()(image)),
        "multiplier": lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(image),
        "hard_swish": lambda: keras.ops.hard_silu(conv()(image)),
        "branches": lambda: keras.layers.Add()([conv()(image), keras.layers.Conv2D(6, 1, name="beside")(image)]),
        "none": lambda: keras.ops.tanh(image),
    }
    model = keras.Model(image, bodies[name]())
    generator = np.random.default_rng(5)
    model.set_weights([generator.normal(0.0, 0.4, values.shape).astype(np.float32) for values in model.get_weights()])
    with tf_private.captured_chatter():
        floating = bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    samples = [[generator.normal(0.3, 1.5, (1, 6, 6, 3)).astype(np.float32)] for _ in range(8)]
    quantized = load_float_model(floating).calibrate(lambda: iter(samples), "exposed").quantize("int8").data
    return floating, quantized, samples


@functools.cache
def exact() -> tuple[bytes, bytes, Samples]:
    """Returns a dense layer whose output has the scale of its sums: int8 computes exactly what float computes."""
    vector = keras.Input((6,), batch_size=1, name="vector")
    model = keras.Model(vector, keras.layers.Dense(4, name="dense")(vector))
    generator = np.random.default_rng(2)
    kernel = generator.integers(-1, 2, (6, 4)) * 0.25
    kernel[0] = 0.25  # so that no channel is without weights
    model.set_weights([kernel.astype(np.float32), (generator.integers(-9, 10, 4) * 0.125).astype(np.float32)])
    with tf_private.captured_chatter():
        floating = bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    samples = [[(generator.integers(-10, 11, (1, 6)) * 0.5).astype(np.float32)] for _ in range(8)]
    quantized = Model(load_float_model(floating).calibrate(lambda: iter(samples), "exposed").quantize("int8").data)
    dense, tensors = layers(quantized)[0], quantized.main.tensors
    patch, real = Patch(quantized), Model(floating)
    weights = tensors[dense.inputs[1]]
    float_dense = layers(real)[0]
    patch.constant(weights.index, np.rint(real.constant(real.main.tensors[float_dense.inputs[1]]) / 0.25).astype(np.int8))
    patch.constant(dense.inputs[2], np.rint(bias(real, float_dense) / 0.125).astype(np.int32))
    for index, scale in ((dense.inputs[0], 0.5), (weights.index, 0.25), (dense.inputs[2], 0.125), (dense.outputs[0], 0.125)):
        count = tensors[index].quantization.scale.size
        patch.quantization(index, [scale] * count, [0] * tensors[index].quantization.zero_point.size)
    return floating, patch.data(), samples


def test_an_exact_model_comes_back_as_it_was() -> None:
    floating, quantized, samples = exact()
    found = corrected(floating, quantized, samples)
    assert found.data == quantized
    assert [node.channels for node in found.nodes] == [0]
    assert found.samples == 8


def test_a_planted_error_is_removed_to_the_last_step() -> None:
    floating, quantized, samples = exact()
    model = Model(quantized)
    dense = layers(model)[0]
    found = corrected(floating, planted(model, dense, np.array([3, 0, -7, 11])), samples)
    assert found.data == quantized
    (node,) = found.nodes
    assert (node.channels, node.steps, node.shift, node.before) == (3, -11, -11 * 0.125, -11 * 0.125)


@pytest.mark.parametrize("name", ["chain", "weighty", "mixed"])
def test_a_planted_error_is_removed_to_the_rounding_of_the_outputs(name: str) -> None:
    floating, samples = models.float_tflite(name), models.samples(name, models.COUNT)
    quantized = Model(models.calibrated(name).quantize("int8").data)
    first = layers(quantized)[0]
    scale = float(quantized.main.tensors[first.outputs[0]].quantization.scale[0])
    steps = np.zeros(bias(quantized, first).shape)
    steps[1], steps[3] = 12.0 * scale / step_of(quantized, first)[[1, 3]] * [1.0, -1.0]
    sound = Model(corrected(floating, quantized.data, samples).data)
    mended = Model(corrected(floating, planted(quantized, first, steps), samples).data)
    for one, other in zip(layers(sound), layers(mended), strict=True):
        apart = np.abs(bias(sound, one).astype(np.int64) - bias(mended, other)) * step_of(sound, one)
        # Outputs are rounded, each by half a step at most, in either model.
        assert apart.max() <= float(sound.main.tensors[one.outputs[0]].quantization.scale[0])


@pytest.mark.parametrize("name", ["chain", "weighty"])
def test_means_agree_with_the_float_model(name: str) -> None:
    floating, samples = models.float_tflite(name), models.samples(name, models.COUNT)
    quantized = Model(models.calibrated(name).quantize("int8").data)
    steps = {op.index: 6.0 * _scale(quantized, op) / step_of(quantized, op) for op in layers(quantized)}
    broken = quantized.data
    for op in layers(quantized):
        broken = planted(Model(broken), op, steps[op.index])
    found = corrected(floating, broken, samples).data
    for mine, other in zip(layers(quantized), layers(Model(floating)), strict=True):
        wanted = means(floating, other.outputs[0], samples)
        # Of a channel that its activation function shuts in float the bias stays as it is.
        alive = wanted != 0.0
        before, after = (np.abs(means(data, mine.outputs[0], samples) - wanted)[alive] for data in (broken, found))
        assert before.max() > 2.0 * _scale(quantized, mine)
        assert after.max() < (1.0 if mine.name == "FULLY_CONNECTED" else 0.25) * _scale(quantized, mine)


def _scale(model: Model, operator: Operator) -> float:
    return float(model.main.tensors[operator.outputs[0]].quantization.scale[0])


def test_nothing_but_biases_differs() -> None:
    floating, samples = models.float_tflite("weighty"), models.samples("weighty", models.COUNT)
    quantized = models.calibrated("weighty").quantize("int8").data
    model = Model(quantized)
    found = corrected(floating, quantized, samples).data
    assert found != quantized
    assert len(found) == len(quantized)
    ours, theirs = np.frombuffer(found, np.uint8), np.frombuffer(quantized, np.uint8)
    allowed = np.zeros(len(ours), bool)
    for op in layers(model):
        tensor = model.main.tensors[op.inputs[PLACES[op.name]]]
        allowed[model.place(tensor) : model.place(tensor) + model.constant(tensor).nbytes] = True
    assert not np.any((ours != theirs) & ~allowed)


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_a_fused_activation_function(name: str) -> None:
    floating, quantized, samples = built(name)
    model, real = Model(quantized), Model(floating)
    conv = layers(model)[0]
    broken = planted(model, conv, 10.0 * _scale(model, conv) / step_of(model, conv))
    found = corrected(floating, broken, samples).data
    wanted = means(floating, real.main.operators[-1].outputs[0], samples)
    before, after = (np.abs(means(data, conv.outputs[0], samples) - wanted) for data in (broken, found))
    assert before.max() > 3.0 * _scale(model, conv)
    assert after.max() < 0.5 * _scale(model, conv)


def test_a_dead_channel_is_not_shifted() -> None:
    floating, quantized, samples = built("relu")
    real, model = Model(floating), Model(quantized)
    patch, old = Patch(real), bias(real, layers(real)[0]).copy()
    old[2] = -1000.0
    patch.constant(layers(real)[0].inputs[2], old)
    conv = layers(model)[0]
    found = Model(corrected(patch.data(), quantized, samples).data)
    assert bias(found, conv)[2] == bias(model, conv)[2]


def test_an_activation_function_of_its_own() -> None:
    floating, quantized, samples = built("hard_swish")
    model, real = Model(quantized), Model(floating)
    conv, swish = layers(model)[0], next(op for op in model.main.operators if op.name == "HARD_SWISH")
    broken = planted(model, conv, 8.0 * _scale(model, conv) / step_of(model, conv))
    found = corrected(floating, broken, samples).data
    wanted = means(floating, next(op for op in real.main.operators if op.name == "HARD_SWISH").outputs[0], samples)
    before, after = (np.abs(means(data, swish.outputs[0], samples) - wanted) for data in (broken, found))
    assert before.max() > 2.0 * _scale(model, swish)
    assert after.max() < 0.5 * _scale(model, swish)
    at_output = corrected(floating, broken, samples, at="output").data
    wanted = means(floating, layers(real)[0].outputs[0], samples)
    assert np.abs(means(at_output, conv.outputs[0], samples) - wanted).max() < 0.25 * _scale(model, conv)


def test_a_depthwise_layer_with_a_multiplier() -> None:
    floating, quantized, samples = built("multiplier")
    model, real = Model(quantized), Model(floating)
    depthwise = layers(model)[0]
    assert depthwise.name == "DEPTHWISE_CONV_2D"
    assert bias(model, depthwise).shape == (6,)
    broken = planted(model, depthwise, np.array([0, 20, 0, 0, -20, 0]) * _scale(model, depthwise) / step_of(model, depthwise))
    found = corrected(floating, broken, samples).data
    wanted = means(floating, layers(real)[0].outputs[0], samples)
    assert np.abs(means(found, depthwise.outputs[0], samples) - wanted).max() < 0.25 * _scale(model, depthwise)


def test_layers_that_do_not_feed_each_other_are_both_corrected() -> None:
    floating, quantized, samples = built("branches")
    model = Model(quantized)
    broken = quantized
    for op in layers(model):
        broken = planted(Model(broken), op, 10.0 * _scale(model, op) / step_of(model, op))
    found = corrected(floating, broken, samples)
    assert len(found.nodes) == 2
    for node, op in zip(found.nodes, layers(model), strict=True):
        assert node.before == pytest.approx(-10.0 * _scale(model, op), abs=2.0 * _scale(model, op))


def test_16_bit_activations() -> None:
    floating, samples = models.float_tflite("chain"), models.samples("chain", models.COUNT)
    quantized = Model(models.calibrated("chain").quantize("int16x8").data)
    first = layers(quantized)[0]
    assert bias(quantized, first).dtype == np.int64
    broken = planted(quantized, first, np.full(6, -500.0) * _scale(quantized, first) / step_of(quantized, first))
    for sample in samples:  # what is clipped would be missing in the mean
        assert np.abs(models.run(broken, sample).get_tensor(first.outputs[0]).astype(int)).max() < 32767
    sound, mended = (Model(corrected(floating, data, samples).data) for data in (quantized.data, broken))
    apart = np.abs(bias(mended, first) - bias(sound, first)) * step_of(quantized, first)
    assert apart.max() < 1.0 * _scale(quantized, first)


def test_uint8(shared_models: Path) -> None:
    quantized = Model(shared_models / "coral" / "mobilenet_v1_0.25_128_quant.tflite")
    floating = dequantize_model(quantized, implied_activations(quantized))
    first = layers(quantized)[0]
    assert quantized.main.tensors[first.outputs[0]].dtype == np.uint8
    name = quantized.main.tensors[first.outputs[0]].name
    generator = np.random.default_rng(0)
    samples = [[generator.uniform(-1.0, 1.0, (1, 128, 128, 3)).astype(np.float32)] for _ in range(2)]
    sound, mended = (
        Model(corrected(floating, data, samples, nodes=[name]).data)
        for data in (
            quantized.data,
            planted(quantized, first, np.full(8, 3.0) * _scale(quantized, first) / step_of(quantized, first)),
        )
    )
    apart = np.abs(bias(sound, first).astype(np.int64) - bias(mended, first)) * step_of(quantized, first)
    wanted = means(floating, layers(Model(floating))[0].outputs[0], samples)
    alive = (wanted > 0.0) & (wanted < 6.0)
    assert alive.sum() > 2
    assert apart[alive].max() < _scale(quantized, first)


def test_workers_do_not_change_the_bytes() -> None:
    floating, samples = models.float_tflite("mixed"), models.samples("mixed", models.COUNT)
    quantized = models.calibrated("mixed").quantize("int8").data
    options = [Backend(kernels="builtin", workers=1), Backend(kernels="builtin", workers=2)]
    found = [corrected(floating, quantized, samples, backend=backend) for backend in options]
    assert found[0].data == found[1].data
    assert found[0].nodes == found[1].nodes


def test_a_model_with_float_nodes() -> None:
    floating, samples = models.float_tflite("chain"), models.samples("chain", models.COUNT)
    second = layers(Model(floating))[1].outputs[0]
    name = Model(floating).main.tensors[second].name
    mixed = Model(CalibratedModel(None, models.calibrated("chain").data).quantize("int8", denylisted_nodes=[name]).data)
    integers = [op for op in layers(mixed) if bias(mixed, op).dtype == np.int32]
    assert len(integers) == len(layers(mixed)) - 1
    last = integers[-1]
    broken = planted(mixed, last, 9.0 * _scale(mixed, last) / step_of(mixed, last))
    found = corrected(floating, broken, samples)
    assert len(found.nodes) == len(integers)
    wanted = means(floating, layers(Model(floating))[-1].outputs[0], samples)
    assert np.abs(means(found.data, last.outputs[0], samples) - wanted).max() < 1.0 * _scale(mixed, last)


def test_a_sound_model_hardly_changes() -> None:
    floating, samples = models.float_tflite("chain"), models.samples("chain", models.COUNT)
    quantized = Model(models.calibrated("chain").quantize("int8").data)
    before = bytes(quantized.data)
    found = corrected(floating, quantized.data, samples)
    for node, op in zip(found.nodes, layers(quantized), strict=True):
        assert abs(node.shift) < 1.5 * _scale(quantized, op)
    assert quantized.data == before


def test_only_the_nodes_asked_for() -> None:
    floating, samples = models.float_tflite("chain"), models.samples("chain", models.COUNT)
    quantized = Model(models.calibrated("chain").quantize("int8").data)
    first = layers(quantized)[0]
    found = corrected(floating, quantized.data, samples, nodes=[quantized.main.tensors[first.outputs[0]].name])
    assert [node.op_name for node in found.nodes] == ["CONV_2D"]
    for op in layers(quantized)[1:]:
        np.testing.assert_array_equal(bias(Model(found.data), op), bias(quantized, op))


def test_a_bias_does_not_leave_its_type() -> None:
    floating, quantized, samples = exact()
    real, model = Model(floating), Model(quantized)
    patch, far = Patch(real), bias(real, layers(real)[0]).copy()
    far[1] = 1e12
    patch.constant(layers(real)[0].inputs[2], far)
    found = corrected(patch.data(), quantized, samples)
    dense = layers(model)[0]
    weights = np.abs(model.constant(model.main.tensors[dense.inputs[1]]).astype(np.int64))[1].sum()
    assert bias(Model(found.data), dense)[1] == 2**31 - 1 - 255 * weights
    assert found.nodes[0].saturated == 1
    assert any("larger than their type" in note for note in found.notes)


def test_means_that_are_nan() -> None:
    floating, quantized, samples = exact()
    real, model = Model(floating), Model(quantized)
    dense = layers(model)[0]
    broken = planted(model, dense, np.array([5, 5, 5, 5]))
    for channels, left in (([2], False), ([0, 1, 2, 3], True)):
        patch, values = Patch(real), bias(real, layers(real)[0]).copy()
        values[channels] = np.nan
        patch.constant(layers(real)[0].inputs[2], values)
        found = corrected(patch.data(), broken, samples)
        expected = bias(model, dense).copy()
        expected[channels] += 5
        np.testing.assert_array_equal(bias(Model(found.data), dense), expected)
        assert bool(found.left_out) is left
        assert bool(found.notes) is not left


def test_a_channel_without_a_scale() -> None:
    floating, quantized, samples = built("branches")
    model = Model(quantized)
    conv = layers(model)[0]
    patch, weights = Patch(model), model.main.tensors[conv.inputs[1]].quantization
    scales = np.array(weights.scale)
    scales[4] = 0.0
    patch.quantization(conv.inputs[1], scales, weights.zero_point)
    found = Model(corrected(floating, patch.data(), samples).data)
    assert bias(found, conv)[4] == bias(model, conv)[4]


def test_a_model_without_such_layers_is_returned_as_it_is() -> None:
    floating, quantized, samples = built("none")
    found = corrected(floating, quantized, samples)
    assert found.data == quantized
    assert found.nodes == ()
    assert "left as it is" in found.notes[0] or "left as it was" in found.notes[0]


def test_a_node_that_cannot_be_corrected_is_named_with_the_reason() -> None:
    floating, samples = models.float_tflite("mixed"), models.samples("mixed", models.COUNT)
    quantized = models.calibrated("mixed").quantize("int8").data
    found = corrected(floating, quantized, samples, nodes=["functional_1/added_1/Add"])
    assert found.left_out == {"functional_1/added_1/Add": "ADD has no bias"}
    assert found.data == quantized


def test_wrong_options() -> None:
    floating, quantized, samples = exact()
    with pytest.raises(OptionError, match="has not"):
        corrected(floating, quantized, samples, nodes=["no such node"])
    for options in ({"nodes": "dense"}, {"nodes": []}, {"at": "outputs"}, {"rounds": 0}):
        with pytest.raises(OptionError, match="expected"):
            corrected(floating, quantized, samples, **options)


def test_an_empty_dataset() -> None:
    floating, quantized, _ = exact()
    with pytest.raises(DatasetError):
        corrected(floating, quantized, [])


def test_a_prefix_computes_what_the_whole_model_computes() -> None:
    model = Model(models.calibrated("chain").quantize("int8").data)
    samples = models.samples("chain", 1)
    wanted = [op.outputs[0] for op in layers(model)]
    prefixes = Prefixes(model, wanted)
    for count, op in enumerate(model.main.operators, 1):
        if op.outputs[0] not in wanted:
            continue
        part = prefixes.until(count, [op.outputs[0]])
        assert len(Model(part).main.operators) == count
        whole = models.run(model.data, samples[0]).get_tensor(op.outputs[0])
        np.testing.assert_array_equal(models.outputs(part, samples[0])[0], whole)
    with pytest.raises(ModelError):
        prefixes.until(0, wanted[:1])
