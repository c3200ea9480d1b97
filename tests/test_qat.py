"""Quantization-aware training: it brings lost accuracy back, says what it trains, and leaves the caller's things alone."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("tf_keras")
# Not imported here: that would set TF_USE_LEGACY_KERAS for all tests.
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("tensorflow-model-optimization is not installed", allow_module_level=True)

import keras
import tensorflow as tf
import tf_keras

import tflite_qdebug
from tflite_qdebug import example
from tflite_qdebug.cli import main
from tflite_qdebug.errors import ConversionError, DatasetError, MissingPackageError, ModelError, OptionError
from tflite_qdebug.example.network import keras_network
from tflite_qdebug.model import Model
from tflite_qdebug.remedies import qat as qat_module
from tflite_qdebug.remedies.annotation import LayerGraph, annotate, import_tfmot, layer_of_node
from tflite_qdebug.remedies.keras2 import as_tf_keras
from tflite_qdebug.remedies.qat import QatResult, train_quantization_aware, without_quantizers
from tflite_qdebug.remedies.qat_comparison import QatComparison, compare_training

SPLITS = {
    "training": slice(0, 1000),
    "representative": slice(1000, 1100),
    "debug": slice(1100, 1150),
    "test": slice(1150, None),
}


@pytest.fixture(scope="module")
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    datasets = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(datasets.target))
    images = (datasets.images[order] / 16).astype(np.float32)[..., None]
    labels = datasets.target[order].astype(np.int64)
    return {name: (images[rows], labels[rows]) for name, rows in SPLITS.items()}


@pytest.fixture(scope="module")
def ill(digits: dict[str, tuple[np.ndarray, np.ndarray]]) -> keras.Model:
    """A network trained to read digits, of whose depthwise channels six are then 256 times smaller, and their readers larger.

    Its float outputs stay as they were; one scale for each filter of the projection can no longer hold its weights.
    """
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image)
    x = keras.layers.ReLU(name="stem_relu")(keras.layers.BatchNormalization(momentum=0.9, name="stem_bn")(x))
    x = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.ReLU(name="depthwise_relu")(keras.layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(x))
    x = keras.layers.Conv2D(24, 1, use_bias=False, name="project")(x)
    x = keras.layers.ReLU(name="project_relu")(keras.layers.BatchNormalization(momentum=0.9, name="project_bn")(x))
    x = keras.layers.Flatten(name="flat")(x)
    network = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="answer")(x), name="reader")
    network.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    network.fit(*digits["training"], batch_size=64, epochs=12, verbose=0)
    before = network.predict(digits["test"][0], verbose=0)
    channels, factor = [1, 2, 5, 7, 11, 14], 2.0**-8
    gamma, beta, mean, variance = network.get_layer("depthwise_bn").get_weights()
    gamma[channels] *= factor
    beta[channels] *= factor
    network.get_layer("depthwise_bn").set_weights([gamma, beta, mean, variance])
    (kernel,) = network.get_layer("project").get_weights()
    kernel[:, :, channels] /= factor
    network.get_layer("project").set_weights([kernel])
    np.testing.assert_allclose(network.predict(digits["test"][0], verbose=0), before, atol=1e-4)
    return network


@pytest.fixture(scope="module")
def trained(ill: keras.Model, digits: dict[str, tuple[np.ndarray, np.ndarray]]) -> QatResult:
    return train_quantization_aware(ill, digits["training"], layers=["project"], epochs=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def comparison(trained: QatResult, digits: dict[str, tuple[np.ndarray, np.ndarray]]) -> QatComparison:
    images, labels = digits["test"]
    test = {"image": images, "labels": labels}
    return compare_training(trained, digits["representative"][0], test, digits["debug"][0])


def tiny(framework: Any = keras, **dense: Any) -> Any:
    """conv, batch normalization, hard swish by arithmetic, conv with relu, dropout, dense."""
    layers = framework.layers
    image = framework.Input((8, 8, 1), name="image")
    x = layers.BatchNormalization(name="first_bn")(layers.Conv2D(4, 3, use_bias=False, name="first")(image))
    x = x * (layers.ReLU(6.0, name="gate")(x + 3.0) * (1 / 6.0))
    x = layers.Conv2D(4, 3, activation="relu", name="second")(x)
    x = layers.Dropout(0.3, name="drop")(layers.Flatten(name="flat")(x))
    return framework.Model(image, layers.Dense(4, name="out", **dense)(x), name="tiny")


@pytest.fixture(scope="module")
def tiny_keras2() -> Any:
    keras.utils.set_random_seed(0)
    return as_tf_keras(tiny())


def noise(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.normal(size=(count, 8, 8, 1)).astype(np.float32), generator.integers(0, 4, count)


def interpreted(data: bytes, images: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(model_content=data)
    interpreter.allocate_tensors()
    rows = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(rows)


# ------------------------------------------------------------------------------------------------------ what it is for


def test_training_brings_back_what_ptq_lost(
    comparison: QatComparison, digits: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    images, labels = digits["test"]
    # Counted here by hand, with TensorFlow's interpreter and numpy.
    counted = {
        name: float(np.mean(interpreted(model.data, images).argmax(axis=1) == labels))
        for name, model in comparison.models.items()
        if name != "trained_float"
    }
    scores = {score.name: score.metrics["top_1"] for score in comparison.evaluation.scores}
    assert {name: scores[name] for name in counted} == pytest.approx(counted, abs=0.005)
    assert counted["float"] > 0.95
    assert counted["ptq"] < counted["float"] - 0.1
    assert counted["qat"] > counted["float"] - 0.03
    assert comparison.verdict().startswith("top_1: float 0.9")


def test_comparison_names_the_ill_layer(comparison: QatComparison) -> None:
    by_layer = {entry["layer"]: entry for entry in comparison.to_dict()["layers_compared"]}
    assert {"stem", "depthwise", "project", "answer"} <= set(by_layer)
    ill_layer = by_layer["project"]
    assert ill_layer["op_name"] == "CONV_2D"
    assert ill_layer["ptq"]["rmse_over_scale"] > 1.5
    assert all(by_layer[name]["ptq"]["rmse_over_scale"] < 0.7 for name in ("stem", "depthwise", "answer"))
    # Weights are trained as rounded, so that their rounding is no error to the trained model: what is left is activations.
    assert ill_layer["qat_rounded"]["rmse_over_scale"] < 0.4
    assert comparison.worst(1)[0].layer == "project"


def test_comparison_has_every_layer_of_both_models(comparison: QatComparison) -> None:
    header, rows = comparison.table()
    assert len(header) == len(rows[0]) == 8
    ptq = [row.ptq for row in comparison.layers if row.ptq is not None]
    trained_rows = [row.qat for row in comparison.layers if row.qat is not None]
    assert sorted(ptq) == list(range(len(comparison.runs["ptq"].layers)))
    assert sorted(trained_rows) == list(range(len(comparison.runs["qat"].layers)))
    alone = [row for row in comparison.layers if row.ptq is None or row.qat is None]
    assert bool(alone) == any(" model alone: " in note for note in comparison.notes)


def test_sizes_are_those_of_the_files(comparison: QatComparison) -> None:
    assert {score.name: score.size for score in comparison.evaluation.scores} == {
        name: len(model.data) for name, model in comparison.models.items()
    }


# ------------------------------------------------------------------------------------------------------------ training


def test_history_and_options_are_kept(trained: QatResult) -> None:
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert trained.history[-1]["accuracy"] > 0.95
    assert trained.options["loss"] == "sparse_categorical_crossentropy"
    assert trained.options["samples"] == 1000
    assert trained.annotation.layers == ("project", "project_bn", "project_relu")


def test_callers_model_and_process_stay_as_they_were(digits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    model = tiny()
    weights, environment = model.get_weights(), dict(os.environ)
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    train_quantization_aware(model, noise(), layers=["second"], epochs=1)
    assert all(np.array_equal(before, after) for before, after in zip(weights, model.get_weights(), strict=True))
    assert dict(os.environ) == environment
    assert tf.keras.Model is keras.Model
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_importing_tfmot_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    code = (
        "import os; from tflite_qdebug.remedies.annotation import import_tfmot; import_tfmot(); import tensorflow as tf; "
        "print(os.environ.get('TF_USE_LEGACY_KERAS'), tf.keras.Model.__module__.split('.')[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "keras"]


def test_one_seed_gives_one_model(tiny_keras2: Any) -> None:
    def weights(seed: int, data: Any) -> list[np.ndarray]:
        return train_quantization_aware(tiny_keras2, data, epochs=1, batch_size=16, seed=seed).model.get_weights()

    images, labels = noise()
    first = weights(7, (images, labels))
    # Dropout too has a seed of its own; and data in batches are the same data.
    again = weights(7, tf.data.Dataset.from_tensor_slices((images, labels)).batch(16))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    other = weights(8, (images, labels))
    assert not all(np.array_equal(one, another) for one, another in zip(first, other, strict=True))


def test_ranges_start_where_the_float_model_is(tiny_keras2: Any) -> None:
    images, _ = noise()
    trainee = qat_module._quantization_aware(tiny_keras2, ["first", "first_bn", "second", "flat", "out"], 0, False)
    qat_module._start_ranges(trainee, [images], 24, seed=5)
    rows = np.random.default_rng(5).permutation(48)
    probe = tf_keras.Model(tiny_keras2.input, [tiny_keras2.get_layer(name).output for name in ("first_bn", "second", "out")])
    batches = [probe.predict(images[rows[start : start + 24]], verbose=0) for start in (0, 24)]
    variables = {variable.name: float(variable) for variable in trainee.weights if variable.shape.rank == 0}
    for position, place in enumerate(["quant_first_bn/output", "quant_second/post_activation", "quant_out/post_activation"]):
        low = np.mean([min(0.0, batch[position].min()) for batch in batches])
        high = np.mean([batch[position].max() for batch in batches])
        assert variables[f"{place}_min:0"] == pytest.approx(low, rel=1e-4, abs=1e-6)
        assert variables[f"{place}_max:0"] == pytest.approx(high, rel=1e-4)
    of_input = next(value for name, value in variables.items() if name.startswith("quantize_layer") and "_max" in name)
    assert of_input == pytest.approx(np.mean([images[rows[start : start + 24]].max() for start in (0, 24)]), rel=1e-5)


def test_range_before_a_softmax_is_that_of_the_logits() -> None:
    keras.utils.set_random_seed(0)
    model = as_tf_keras(keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax", name="answer")]))
    inputs = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    trainee = qat_module._quantization_aware(model, ["answer"], 0, False)
    qat_module._start_ranges(trainee, [inputs], 32, seed=0)
    kernel, bias = model.get_weights()
    logits = inputs @ kernel + bias
    variables = {variable.name: float(variable) for variable in trainee.weights if variable.shape.rank == 0}
    assert variables["quant_answer/pre_activation_min:0"] == pytest.approx(logits.min(), rel=1e-4)
    assert variables["quant_answer/pre_activation_max:0"] == pytest.approx(logits.max(), rel=1e-4)


def test_without_labels_the_float_model_teaches(tiny_keras2: Any) -> None:
    images, _ = noise()
    result = train_quantization_aware(tiny_keras2, images, layers=["second"], epochs=3, batch_size=48, learning_rate=1e-3)
    assert result.options["loss"] == "distillation"
    assert "accuracy" not in result.history[0]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert any("no labels" in note for note in result.notes)


# ---------------------------------------------------------------------------------------------------------- conversion


def test_whole_model_answers_as_tensorflows_own_conversion() -> None:
    keras.utils.set_random_seed(0)
    images, labels = noise()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    result = train_quantization_aware(model, (images, labels), epochs=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(result.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    theirs = converter.convert()
    ours = result.convert(images[:8])
    assert ours.float_nodes == ()
    assert np.array_equal(interpreted(ours.data, images), interpreted(theirs, images))
    full = Model(result.convert(images[:8], "full_integer").data).main
    assert {full.tensors[index].dtype.name for index in (*full.inputs, *full.outputs)} == {"int8"}


def test_ranges_are_learned_where_trained_and_calibrated_elsewhere(
    trained: QatResult, comparison: QatComparison, digits: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    converted = Model(comparison.models["qat"].data).main
    scales = {tensor.name.split(";")[0]: tensor.quantization.scale for tensor in converted.tensors if tensor.is_quantized}
    learned = {variable.name: float(variable) for variable in trained.model.weights if variable.shape.rank == 0}
    of_project = next(scale for name, scale in scales.items() if "project_relu/" in name)
    assert of_project[0] == pytest.approx(learned["quant_project_relu/output_max:0"] / 255, rel=1e-3)
    # The stem was left to calibration: its range is that of the trained weights on the representative samples.
    twin = without_quantizers(trained.model)
    stem = tf_keras.Model(twin.input, twin.get_layer("stem_relu").output).predict(digits["representative"][0], verbose=0)
    of_stem = next(scale for name, scale in scales.items() if "stem_relu/" in name)
    assert of_stem[0] == pytest.approx(stem.max() / 255, rel=1e-3)
    assert comparison.models["qat"].float_nodes == ()


def test_without_representative_data_the_rest_stays_float_and_is_named(trained: QatResult) -> None:
    nodes = trained.convert().float_nodes
    assert any("stem" in node.node and node.op_name == "CONV_2D" for node in nodes)
    with pytest.raises(ConversionError, match="give a representative dataset"):
        trained.convert(kind="full_integer")
    with pytest.raises(OptionError, match="expected 'int8' or 'full_integer'"):
        trained.convert(kind="int16x8")
    with pytest.raises(OptionError, match="Did you mean 'int8'"):
        trained.convert(input_type="int9")


def test_float_twin_has_the_trained_weights_and_no_quantizer(trained: QatResult) -> None:
    twin = without_quantizers(trained.model)
    assert [layer.name for layer in twin.layers if layer.name.startswith("quant_")] == []
    kernel = next(weight for weight in trained.model.weights if weight.name == "project/kernel:0")
    assert np.array_equal(twin.get_layer("project").get_weights()[0], kernel.numpy())
    assert not np.array_equal(kernel.numpy(), trained.float_keras_model.get_layer("project").get_weights()[0])
    assert not any(tensor.is_quantized for tensor in trained.trained_float_model.model.main.tensors)


# ---------------------------------------------------------------------------------------------------------- annotation


def test_a_layer_comes_with_what_is_one_operator_with_it(ill: keras.Model) -> None:
    expected = ("depthwise", "depthwise_bn", "depthwise_relu")
    for name in (*expected, "reader_1/depthwise_relu_1/Relu;reader_1/depthwise_bn_1/batchnorm/add_1"):
        assert annotate(ill, [name]).layers == expected
    assert annotate(ill, ["answer"]).layers == ("answer",)


def test_the_code_does_what_it_says(tiny_keras2: Any) -> None:
    annotation = annotate(tiny_keras2, ["first", "second"])
    space: dict[str, Any] = {"model": tiny_keras2}
    exec(compile(annotation.code(), "annotation.py", "exec"), space)
    wrapped = [layer.layer.name for layer in space["quantization_aware"].layers if type(layer).__name__ == "QuantizeWrapperV2"]
    assert [name for name in wrapped if name in ("first", "first_bn", "second", "out")] == list(annotation.layers)
    kernel = next(weight for weight in space["quantization_aware"].weights if weight.name == "second/kernel:0")
    assert np.array_equal(kernel.numpy(), tiny_keras2.get_layer("second").get_weights()[0])


def test_what_cannot_be_quantized_is_named_with_the_reason(tiny_keras2: Any) -> None:
    annotation = annotate(tiny_keras2)
    assert annotation.layers == ("first", "first_bn", "second", "flat", "drop", "out")
    of_kind = {type(tiny_keras2.get_layer(name)).__name__: reason for name, reason in annotation.skipped.items()}
    assert of_kind.pop("ReLU") == "the layer before it, which the converter fuses it with, is left out"
    assert of_kind == {kind: f"tensorflow-model-optimization has no rule for {kind}" for kind in ("Rescaling", "Multiply")}
    with pytest.raises(ModelError, match=r"no rule for Rescaling.*strict"):
        annotate(tiny_keras2, strict=True)
    with pytest.raises(ModelError, match="none of the layers asked for"):
        annotate(tiny_keras2, [name for name in annotation.skipped if name != "gate"][:1])


def test_a_batch_normalization_alone_is_left_out() -> None:
    model = tf_keras.Sequential(
        [tf_keras.layers.InputLayer((4,)), tf_keras.layers.BatchNormalization(name="bn"), tf_keras.layers.Dense(2, name="fc")]
    )
    annotation = annotate(model)
    assert annotation.layers == ("fc",)
    assert "only right behind Conv2D" in annotation.skipped["bn"]


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("conv2d_1", "conv2d_1"),
        ("net/conv2d_1/Relu;net/conv2d_1/BiasAdd", "conv2d_1"),
        # Traced twice, as TensorFlow does with a model of Keras 3: _1 behind every scope.
        ("net_1/conv2d_1/Relu;net_1/conv2d_1/convolution", "conv2d"),
        ("net_1/conv2d_1_2/Relu", "conv2d_1"),
        ("net/quant_conv2d_1/Relu", "conv2d_1"),
        ("net_1/relu_1/Relu;net_1/conv2d_1_2/convolution", "conv2d_1"),
        ("net_1/conv2d_1_2/Re…", "conv2d_1"),
        ("net_1/conv…d_1_2/Relu", "conv2d_1"),
        ("StatefulPartitionedCall_1:0", "dense"),
    ],
)
def test_nodes_are_found_to_be_layers(node: str, layer: str) -> None:
    assert layer_of_node(node, LayerGraph(numbered())) == layer


def numbered() -> Any:
    layers = tf_keras.layers
    image = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(2, 3, activation="relu", name="conv2d")(image)
    x = layers.ReLU(name="relu")(layers.Conv2D(2, 3, name="conv2d_1")(x))
    return tf_keras.Model(image, layers.Dense(2, name="dense")(layers.Flatten(name="flatten")(x)), name="net")


def test_nodes_of_no_layer_are_all_named_with_the_nearest() -> None:
    with pytest.raises(OptionError) as caught:
        annotate(numbered(), ["net/konv2d_1/Relu", "conv2d", "nowhere"])
    assert "'net/konv2d_1/Relu'" in str(caught.value)
    assert "Did you mean 'conv2d_1'" in str(caught.value)
    assert "'nowhere'" in str(caught.value)
    with pytest.raises(OptionError, match="which 2 layers fit: conv2d, conv2d_1"):
        annotate(numbered(), ["net/conv…/Relu"])
    with pytest.raises(OptionError, match="expected a list of names"):
        annotate(numbered(), "conv2d")


def test_every_node_of_a_report_is_found(ill: keras.Model) -> None:
    graph = LayerGraph(as_tf_keras(ill))
    main_graph = tflite_qdebug.load_float_model(ill).model.main
    nodes = {op.name: main_graph.tensors[op.outputs[0]].name for op in main_graph.operators if op.name != "RESHAPE"}
    found = {name: graph.group(layer_of_node(node, graph))[0] for name, node in nodes.items() if "flat" not in node}
    assert found == {"CONV_2D": "project", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "answer", "SOFTMAX": "answer"}


# --------------------------------------------------------------------------------------------------------- translation


def test_a_real_model_is_translated_and_its_nodes_are_found(shared_models: Path) -> None:
    path = shared_models / "keyword_spotting" / "kws_ref.keras"
    graph = LayerGraph(as_tf_keras(path))
    main_graph = tflite_qdebug.load_float_model(path).model.main
    nodes = [main_graph.tensors[op.outputs[0]].name for op in main_graph.operators if op.name.endswith("CONV_2D")]
    assert [layer_of_node(node, graph) for node in nodes] == [
        "conv0",
        *(f"{kind}{i}" for i in range(4) for kind in ("dw", "pw")),
    ]
    annotation = annotate(path)
    assert annotation.skipped == {}
    assert len(annotation.layers) == 30


def test_translated_model_gives_the_same_outputs(ill: keras.Model) -> None:
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    for model in (ill, tiny()):
        translated = as_tf_keras(model)
        assert isinstance(translated, tf_keras.Model)
        assert {layer.name for layer in model.layers} <= {layer.name for layer in translated.layers}
        np.testing.assert_allclose(translated.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)


def test_arithmetic_and_activations_mean_the_same() -> None:
    x = keras.Input((5,), name="x")
    model = keras.Model(
        x,
        [
            keras.layers.Activation("hard_sigmoid")(x),
            keras.layers.Activation("hard_silu")(x),
            2.0 - x,
            -(x / 4.0),
            keras.ops.maximum(x, x * x),
            keras.layers.LeakyReLU(negative_slope=0.1)(x - 1.0),
        ],
    )
    values = np.linspace(-5, 5, 10, dtype=np.float32).reshape(2, 5)
    got = as_tf_keras(model).predict(values, verbose=0)
    gate = np.clip(values + 3, 0, 6) / 6
    shifted = values - 1
    leaky = np.where(shifted > 0, shifted, 0.1 * shifted)
    for output, expected in zip(
        got, [gate, values * gate, 2 - values, -values / 4, np.maximum(values, values**2), leaky], strict=True
    ):
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_a_layer_that_means_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tflite_qdebug.remedies import keras2

    # tf-keras's own hard_sigmoid is clip(0.2 x + 0.5).
    monkeypatch.setattr(keras2, "_activation", lambda name: name)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(3, name="fc"), keras.layers.Activation("hard_sigmoid", name="gate")]
    )
    with pytest.raises(ModelError, match="first in the layer 'gate'"):
        as_tf_keras(model)


class Doubling(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs * 2


def unfit_models() -> dict[str, tuple[Any, str]]:
    class Subclassed(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    x = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    nested = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="inner")
    return {
        "custom layer": (keras.Model(x, Doubling(name="twice")(x)), "'twice' cannot be translated.*layer class Doubling"),
        "operation": (keras.Model(x, keras.ops.erf(x)), "operation Erf"),
        "subclassed": (Subclassed(), "the subclassed model"),
        "shared": (keras.Model(x, shared(shared(x))), "'shared' is used 2 times"),
        "nested": (keras.Model(x, nested(x)), "'inner' is a model itself"),
        "no input": (keras.Sequential([keras.layers.Dense(2)]), "no input shape yet"),
        "no model": (b"TFL3", "expected a Keras model"),
        "no file": ("nowhere.keras", "cannot read the model nowhere.keras"),
    }


@pytest.mark.parametrize("case", unfit_models())
def test_what_cannot_be_translated_is_an_error_with_the_reason(case: str) -> None:
    model, message = unfit_models()[case]
    with pytest.raises(ModelError, match=message):
        as_tf_keras(model)


def test_example_as_a_keras_model_is_the_example() -> None:
    images, _ = example.load_split("evaluation")
    np.testing.assert_allclose(
        keras_network().predict(images[:100], verbose=0), interpreted(example.float_model(), images[:100]), atol=1e-4
    )


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, OptionError, "got epochs 0, expected a whole number"),
        ({"batch_size": 1.5}, OptionError, "got batch_size 1.5"),
        ({"learning_rate": -1.0}, OptionError, "got learning_rate -1.0"),
        ({"label_offset": 1}, DatasetError, "got labels 1 to 4, expected 0 to 3"),
        ({"learning_rate": 1e30, "epochs": 3}, OptionError, "training ran away"),
        ({"layers": []}, OptionError, "an empty list of layers"),
        ({"loss": "mean_squared_eror"}, OptionError, "Did you mean 'mean_squared_error'"),
        ({"loss": "categorical_crossentropy"}, OptionError, "give labels that fit the loss"),
    ],
)
def test_options_that_mean_nothing_are_refused(tiny_keras2: Any, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train_quantization_aware(tiny_keras2, noise(), **{"layers": ["out"], "epochs": 1, **options})


def test_labels_that_do_not_fit_are_refused(tiny_keras2: Any) -> None:
    images, labels = noise(4)
    with pytest.raises(DatasetError, match=r"inputs of shape \(4, 8, 8, 1\) and labels of shape \(3,\)"):
        train_quantization_aware(tiny_keras2, (images, labels[:3]))
    with pytest.raises(DatasetError, match="1 of 2 samples have a label"):
        train_quantization_aware(tiny_keras2, [([images[:1]], 1), [images[1:2]]])
    with pytest.raises(DatasetError, match="the whole number of a class"):
        train_quantization_aware(tiny_keras2, (images, np.zeros((4, 4), np.float32)))
    with pytest.raises(DatasetError, match="have no labels, which the loss 'mse' needs"):
        train_quantization_aware(tiny_keras2, images, loss="mse")
    with pytest.raises(DatasetError, match="got shape"):
        train_quantization_aware(tiny_keras2, (images[:, :4], labels))
    regression = tf_keras.Sequential(
        [tf_keras.layers.InputLayer((8, 8, 1)), tf_keras.layers.Flatten(), tf_keras.layers.Dense(1)]
    )
    with pytest.raises(OptionError, match="no loss can be chosen"):
        train_quantization_aware(regression, (images, labels))


@pytest.mark.parametrize("package", ["tensorflow_model_optimization", "tf_keras"])
def test_a_missing_package_is_named_with_the_command(
    package: str, tiny_keras2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install .*tf-keras"):
        train_quantization_aware(tiny_keras2, noise())
    assert main(["qat", "example", "--annotation-only", "--no-progress"]) == 7
    assert "pip install" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def files(ill: keras.Model, digits: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat")
    ill.save(folder / "reader.keras")
    for name, (images, labels) in digits.items():
        np.savez(folder / f"{name}.npz", image=images, labels=labels)
    return folder


def test_command_trains_the_suspects_of_a_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--representative-data",
        str(files / "representative.npz"),
        "--debug-data",
        str(files / "debug.npz"),
        "--no-progress",
    ]
    model = str(files / "reader.keras")
    assert main(["run", model, *given, "--output", str(files / "run")]) == 0
    words = ["qat", model, *given, "--training-data", str(files / "training.npz"), "--evaluation-data", str(files / "test.npz")]
    words += ["--suspects", str(files / "run" / "run.json"), "--epochs", "3", "--learning-rate", "0.001"]
    capsys.readouterr()
    assert main([*words, "--output", str(files / "out")]) == 0
    printed = capsys.readouterr().out
    assert "is the layer project" in printed
    assert "tfmot.quantization.keras.quantize_apply(annotated)" in printed
    saved = json.loads((files / "out" / "qat.json").read_text())
    assert saved["layers"] == ["project", "project_bn", "project_relu"]
    assert (saved["format"], saved["format_version"]) == ("tflite_qdebug qat", 1)
    assert len(saved["history"]) == 3
    accuracy = {score["name"]: score["metrics"]["top_1"] for score in saved["evaluation"]["scores"]}
    assert accuracy["ptq"] < accuracy["float"] - 0.1
    assert accuracy["qat"] > accuracy["float"] - 0.04
    for name in ("float", "ptq", "qat", "trained_float"):
        assert len(Model(files / "out" / f"{name}.tflite").main.operators) > 4
    with (files / "out" / "layers.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == [entry["layer"] for entry in saved["layers_compared"]]
    with import_tfmot().quantization.keras.quantize_scope():
        loaded = tf_keras.models.load_model(files / "out" / "qat.h5", compile=False)
    assert "quant_project" in [layer.name for layer in loaded.layers]
    plain = tf_keras.models.load_model(files / "out" / "qat_float.keras", compile=False)
    images = np.load(files / "test.npz")["image"]
    expected = interpreted((files / "out" / "trained_float.tflite").read_bytes(), images[:20])
    np.testing.assert_allclose(plain.predict(images[:20], verbose=0), expected, atol=1e-4)
    assert np.mean(loaded.predict(images, verbose=0).argmax(axis=1) == np.load(files / "test.npz")["labels"]) == pytest.approx(
        accuracy["qat"], abs=0.02
    )


def test_command_prints_the_annotation_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qat", str(files / "reader.keras"), "--layer", "stem", "--annotation-only", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["layers"] == ["stem", "stem_bn", "stem_relu"]
    compile(printed["code"], "annotation.py", "exec")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["example", "--kind", "int16x8"], 2, "expected int8 or full_integer"),
        (["{folder}/reader.keras"], 2, "--training-data is needed"),
        (["example", "--training-data", "missing.npz"], 4, "missing.npz"),
        (["example", "--suspects", "missing.json"], 3, "missing.json"),
        (["{folder}/reader.keras", "--annotation-only", "--layer", "steam"], 2, "Did you mean 'stem'"),
        ([str(example.MODEL_PATH), "--annotation-only"], 3, "cannot load the Keras model"),
    ],
)
def test_each_failure_is_a_message_with_its_code(
    files: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert main(["qat", *(word.format(folder=files) for word in words), "--no-progress"]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
