"""Where TensorFlow's debugger is right, ours gives its figures: layer by layer, in its order, under its names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import debugger_models as scenarios
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import OurDebugger, TheirDebugger, conv, converter_of, normal, spec, weights
from tensorflow.lite.tools.optimize.debugging.python import debugger as theirs

from tflite_qdebug import Backend, CalibratedModel, Run, example, layer_error, load_float_model

METRICS = ["num_elements", "stddev", "mean_error", "max_abs_error", "mean_squared_error"]


def example_model() -> tuple[CalibratedModel, Callable[[], Iterator[Any]]]:
    images = [list(sample) for sample in example.debug_dataset()][:20]
    calibrated = load_float_model(example.float_model()).calibrate(example.representative_dataset, progress=False)
    return calibrated, lambda: iter(images)


def calibrated_of(function: Callable[..., Any], shapes: dict[str, tuple[int, ...]]) -> tuple[CalibratedModel, Any]:
    """Returns a calibrated model, and samples in its own order of inputs."""
    converter = converter_of(function, [spec(*shape, name=name) for name, shape in shapes.items()])
    float_model = load_float_model(converter)
    samples = normal(*(one.shape for one in float_model.model.input_specs()))
    return float_model.calibrate(samples, progress=False), samples


def two_inputs_and_outputs() -> tuple[CalibratedModel, Any]:
    kernels = [weights(3, 3, 4, 4, seed=seed) for seed in range(3)]

    def function(first: Any, second: Any) -> dict[str, Any]:
        one = tf.nn.relu(conv(first, kernels[0]))
        two = tf.nn.tanh(conv(second, kernels[1]))
        mixed = conv(one + tf.image.resize(two, (8, 8)), kernels[2])
        return {"sum": tf.nn.sigmoid(mixed), "mean": tf.reduce_mean(two, axis=(1, 2))}

    return calibrated_of(function, {"first": (1, 8, 8, 4), "second": (1, 4, 4, 4)})


def shared_weights() -> tuple[CalibratedModel, Any]:
    kernel, dense = weights(3, 3, 4, 4), weights(4, 4, seed=5)

    def function(x: Any) -> Any:
        x = tf.nn.relu6(conv(x, kernel))
        x = tf.nn.relu(conv(x, kernel)) + x
        x = tf.reduce_mean(tf.nn.max_pool2d(x, 2, 2, "VALID"), axis=(1, 2))
        return tf.nn.softmax(tf.matmul(tf.matmul(x, dense), dense))

    return calibrated_of(function, {"x": (1, 8, 8, 4)})


def mobilenet() -> tuple[CalibratedModel, Any]:
    image = pytest.importorskip("PIL.Image", reason="Pillow decodes the images")
    import io

    folder = Path(__file__).resolve().parents[2] / "shared" / "models"
    path = folder / "mobilenetv3_small" / "mobilenet_v3_small_float.tflite"
    if not path.exists():
        pytest.skip(f"the real models are not at {folder}")
    with np.load(folder / "imagenet_500" / "images.npz") as arrays:
        content, offsets = arrays["jpeg"].tobytes(), arrays["offsets"]

    def images(first: int, count: int) -> list[list[np.ndarray]]:
        parts = (content[offsets[i] : offsets[i + 1]] for i in range(first, first + count))
        return [[np.asarray(image.open(io.BytesIO(part)).convert("RGB"), dtype=np.float32)[np.newaxis]] for part in parts]

    calibrated = load_float_model(path).calibrate(images(0, 10), progress=False)
    samples = images(250, 3)
    return calibrated, lambda: iter(samples)


MODELS = {
    "example": example_model,
    "two inputs, two outputs": two_inputs_and_outputs,
    "shared weights": shared_weights,
    "MobileNetV3-Small": mobilenet,
}


@functools.cache
def made(name: str) -> tuple[CalibratedModel, Any]:
    return MODELS[name]()


def run_theirs(monkeypatch: pytest.MonkeyPatch, data: bytes, samples: Any, kernels: str) -> dict[str, dict[str, float]]:
    """Runs TensorFlow's debugger, which cannot choose its kernels, on those that are asked for."""
    resolvers = tf.lite.experimental.OpResolverType
    resolver = {"auto": resolvers.AUTO, "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES}[kernels]
    interpreter = functools.partial(theirs._interpreter.Interpreter, experimental_op_resolver_type=resolver)
    monkeypatch.setattr(theirs._interpreter, "Interpreter", interpreter)
    debugger = TheirDebugger(quant_debug_model_content=data, debug_dataset=samples)
    debugger.run()
    return {key: dict(row) for key, row in debugger.layer_statistics.items()}


def assert_equal(run: Run, wanted: dict[str, dict[str, float]]) -> None:
    """Compares to 1e-5 of each layer's RMSE."""
    ours = run.tensorflow_statistics()
    assert list(ours) == list(wanted)
    for key, row in wanted.items():
        assert list(ours[key]) == list(row) == METRICS
        rmse = float(row["mean_squared_error"]) ** 0.5
        allowed = 1e-5 * rmse
        assert ours[key]["num_elements"] == row["num_elements"]
        for name in ("stddev", "mean_error", "max_abs_error"):
            assert abs(ours[key][name] - row[name]) <= allowed, (key, name, ours[key][name], row[name], rmse)
        assert abs(ours[key]["mean_squared_error"] ** 0.5 - rmse) <= allowed, key


@pytest.mark.parametrize("whole_model", [False, True], ids=["per layer", "whole model"])
@pytest.mark.parametrize(
    ("name", "kernels"),
    # XNNPACK refuses the debug model of MobileNetV3-Small.
    [(name, kernels) for name in MODELS for kernels in ("builtin", "auto") if (name, kernels) != ("MobileNetV3-Small", "auto")],
)
def test_the_five_metrics_are_tensorflows(monkeypatch: pytest.MonkeyPatch, name: str, whole_model: bool, kernels: str) -> None:
    calibrated, samples = made(name)
    data = calibrated.numeric_verify_model(whole_model=whole_model)
    ours = OurDebugger(quant_debug_model_content=data, debug_dataset=samples, backend=Backend(kernels=kernels))
    ours.run()
    assert ours.layer_statistics is not None
    assert ours.result is not None
    assert ours.result.verify == ("whole_model" if whole_model else "per_layer")
    assert ours.result.provenance["kernels"] == {"auto": "xnnpack"}.get(kernels, kernels)
    wanted = run_theirs(monkeypatch, data, samples, kernels)
    assert len(wanted) == {"example": 45, "two inputs, two outputs": 8, "shared weights": 8, "MobileNetV3-Small": 111}[name]
    assert ours.layer_statistics == ours.result.tensorflow_statistics()
    assert_equal(ours.result, wanted)


def test_our_own_debug_model_has_the_figures_of_tensorflows(monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated, samples = made("example")
    run = layer_error(calibrated, samples, backend=Backend(kernels="builtin"), progress=False)
    wanted = run_theirs(monkeypatch, calibrated.numeric_verify_model(), samples, "builtin")
    assert_equal(run, wanted)


def test_a_pair_of_models_has_the_figures_of_tensorflows_debug_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debug model that is put together from a float and an int8 model measures what TensorFlow's own measures."""
    from tflite_qdebug import Model, edit
    from tflite_qdebug.analyses.layer_error import run_debug_model
    from tflite_qdebug.datasets import open_dataset

    calibrated, samples = made("shared weights")
    assert calibrated.float_model is not None
    pair = edit.debug_pair(calibrated.float_model.model, Model(calibrated.quantize("int8").data))
    dataset = open_dataset(samples, calibrated.model.input_specs())
    run = run_debug_model(pair, dataset, Backend(kernels="builtin"), progress=False)
    wanted = run_theirs(monkeypatch, calibrated.numeric_verify_model(), samples, "builtin")
    by_node = {layer.node: rmse for layer, rmse in zip(run.layers, run.statistics.rmse, strict=True)}
    tensorflows = layer_error(calibrated, samples, backend=Backend(kernels="builtin"), progress=False)
    assert len(wanted) == len(tensorflows.layers)
    first = tensorflows.layers[0].node  # TensorFlow's first float copy reads the float input, ours the dequantized one
    for layer, rmse in zip(tensorflows.layers, tensorflows.statistics.rmse, strict=True):
        if layer.node != first:
            assert by_node[layer.node] == pytest.approx(rmse, rel=1e-4), layer.node


def planted_converter(depth: int, ill: int) -> Any:
    """Convolutions in a row, one of which has filters that int8 cannot hold: one large weight among small ones in each."""
    kernels = []
    for position in range(depth):
        kernel = weights(3, 3, 8, 8, seed=position, scale=0.15).numpy()
        if position == ill:
            # An input channel that hardly varies, behind weights that are large in return: the output stays what it is.
            kernel[:, :, 0, :] *= 256.0
            kernels[-1][:, :, :, 0] /= 256.0
        kernels.append(kernel)

    def function(x: Any) -> Any:
        for kernel in kernels:
            x = tf.nn.relu(conv(x, tf.constant(kernel)))
        return x

    return converter_of(function, [spec(1, 8, 8, 8)], normal((1, 8, 8, 8), count=10))


@pytest.mark.parametrize("ill", [1, 3, 4])
def test_an_error_planted_in_one_layer_is_found(ill: int) -> None:
    debugger = OurDebugger(converter=planted_converter(5, ill), debug_dataset=normal((1, 8, 8, 8), count=10))
    debugger.run()
    run = debugger.result
    assert run is not None
    badness = run.columns()["rmse_over_scale"]
    assert run.worst(count=1) == [ill]
    assert badness[ill] > 3 * np.delete(badness, ill).max()
    healthy = OurDebugger(converter=planted_converter(5, -1), debug_dataset=normal((1, 8, 8, 8), count=10))
    healthy.run()
    assert healthy.layers["rmse_over_scale"].max() < badness[ill] / 3
    # With that one in float, what it did to the output is gone.
    node = run.layers[ill].node
    options = scenarios.OurOptions(denylisted_nodes=[node], model_debug_metrics={"rmse": output_rmse})
    spared = OurDebugger(
        converter=planted_converter(5, ill), debug_dataset=normal((1, 8, 8, 8), count=10), debug_options=options
    )
    spared.run()
    spared_rmse = (spared.model_statistics or {})["rmse"]
    spared.options = scenarios.OurOptions(model_debug_metrics={"rmse": output_rmse})
    spared.run()
    assert (spared.model_statistics or {})["rmse"] > 2 * spared_rmse


def output_rmse(floats: list[np.ndarray], quantized: list[np.ndarray]) -> float:
    return float(np.sqrt(np.mean((floats[0] - quantized[0]) ** 2)))
