"""The main paths in a few tests that hold on every TensorFlow that is claimed, the oldest included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tflite_qdebug
from tflite_qdebug import KINDS, CalibratedModel, example, tf_private


@pytest.fixture(scope="module")
def calibrated() -> CalibratedModel:
    return tflite_qdebug.load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset)


def test_int8_is_what_tensorflow_makes_of_the_same_calibrated_model(calibrated: CalibratedModel) -> None:
    from tensorflow.lite.python import convert

    with tf_private.captured_chatter():
        assert calibrated.quantize("int8").data == convert.mlir_quantize(calibrated.data)
        verified = convert.mlir_quantize(calibrated.data, enable_numeric_verify=True, enable_whole_model_verify=True)
    assert len(calibrated.numeric_verify_model(whole_model=True)) == len(verified)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_and_answers(calibrated: CalibratedModel, kind: str) -> None:
    models = {"float": calibrated.float_model, kind + "_": calibrated.quantize(kind)}
    scores = tflite_qdebug.evaluate(models, example.evaluation_dataset, limit=100).scores
    assert scores[1].agreement > 0.6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float"])
@pytest.mark.parametrize("whole_model", [False, True])
def test_every_kind_is_measured(calibrated: CalibratedModel, kind: str, whole_model: bool) -> None:
    run = tflite_qdebug.layer_error(calibrated, example.debug_dataset, kind=kind, whole_model=whole_model, limit=10)
    assert np.isfinite(run.statistics.sums).all()
    assert run.statistics.samples == 10


def test_the_five_metrics_are_tensorflows(calibrated: CalibratedModel) -> None:
    content = calibrated.numeric_verify_model()
    images = [list(sample) for sample in example.debug_dataset()][:10]
    ours = tflite_qdebug.QuantizationDebugger(quant_debug_model_content=content, debug_dataset=lambda: iter(images))
    ours.run()
    with tf_private.captured_chatter():
        theirs = tf.lite.experimental.QuantizationDebugger(
            quant_debug_model_content=content, debug_dataset=lambda: iter(images)
        )
        theirs.run()
    assert list(ours.layer_statistics) == list(theirs.layer_statistics)
    for key, row in theirs.layer_statistics.items():
        rmse = float(row["mean_squared_error"]) ** 0.5
        for name in ("stddev", "mean_error", "max_abs_error"):
            assert ours.layer_statistics[key][name] == pytest.approx(row[name], abs=1e-5 * rmse), (key, name)


def test_a_keras_model_keeps_its_weights() -> None:
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((8, 8, 3))
    hidden = tf.keras.layers.Flatten()(tf.keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(5)(hidden))
    float_model = tflite_qdebug.load_float_model(model)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    interpreter = tflite_qdebug.Interpreter(float_model.data)
    interpreter.invoke([image])
    np.testing.assert_allclose(interpreter.read_outputs()[0], model.predict(image, verbose=0), atol=1e-5)


def test_a_converter_is_debugged_and_left_as_it_was(tmp_path: Path) -> None:
    class Layer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 3, 1, 4)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")])
        def __call__(self, image: tf.Tensor) -> tf.Tensor:
            return tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "SAME"))

    layer = Layer()
    tf.saved_model.save(layer, str(tmp_path), signatures=layer.__call__.get_concrete_function())

    def samples() -> Iterator[list[np.ndarray]]:
        for sample in example.representative_dataset():
            yield list(sample)

    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    before = dict(vars(converter))
    debugger = tflite_qdebug.QuantizationDebugger(converter=converter, debug_dataset=example.debug_dataset)
    debugger.run()
    assert len(debugger.layer_statistics) == 1
    assert {name: value for name, value in vars(converter).items() if value is not before.get(name)} == {}
