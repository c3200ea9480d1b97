"""Weights rounded for their layer's output, against all roundings, TensorFlow's own convolutions, and both models run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import converter_of, float_bytes, normal, outputs_of, spec, weights

from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.errors import DatasetError, OptionError
from tflite_qdebug.model import Model
from tflite_qdebug.remedies.integer_fit import Moments, Problem, Solution, solve
from tflite_qdebug.remedies.patches import Geometry
from tflite_qdebug.remedies.rounding import Rounded, optimize_rounding

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
SHAPE = (1, 7, 6, 4)
SAMPLES = normal(SHAPE, count=6)
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def pair_of(
    function: Callable[..., Any], samples: Any = SAMPLES, shape: tuple[int, ...] = SHAPE, **options: Any
) -> tuple[bytes, bytes]:
    floating = float_bytes(converter_of(function, [spec(*shape)]))
    calibrated = load_float_model(floating).calibrate(samples, progress=False)
    return floating, calibrated.quantize("int8", **options).data


@functools.cache
def one_layer() -> tuple[bytes, bytes]:
    """A convolution, whose weights have one scale for all channels, one of which is a hundred times as large."""
    kernel = weights(3, 3, 4, 5).numpy() * np.array([1, 1, 1, 1, 40], np.float32)
    bias = tf.constant([0.3, -0.2, 0.1, 0.0, 1.0])
    return pair_of(lambda x: tf.nn.conv2d(x, kernel, [1, 2, 1, 1], "SAME", dilations=1) + bias, per_channel=False)


@functools.cache
def chain() -> tuple[bytes, bytes]:
    """Layers of each kind in a row, of which each clips."""
    first, second, last = weights(3, 3, 4, 6, seed=2), weights(3, 3, 6, 1, seed=3), weights(7 * 6 * 6, 5, seed=4, scale=0.1)

    def function(x: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME"))
        x = tf.nn.relu(tf.nn.depthwise_conv2d(x, second, [1, 1, 1, 1], "SAME"))
        return tf.matmul(tf.reshape(x, (1, 7 * 6 * 6)), last)

    return pair_of(function, per_channel=False)


def rounded(pair: tuple[bytes, bytes], samples: Any = SAMPLES, **options: Any) -> Rounded:
    return optimize_rounding(*pair, samples, **{"backend": BACKEND, "progress": False, **options})


def weight_tensors(data: bytes) -> list[Any]:
    main = Model(data).main
    return [main.tensors[operator.inputs[1]] for operator in main.operators if operator.name in WEIGHTED]


def output_error(pair: tuple[bytes, bytes], data: bytes, samples: Any = SAMPLES) -> float:
    theirs, ours = outputs_of(pair[0], samples), outputs_of(data, samples)
    return float(np.mean([(b[0].astype(np.float64) - a[0]) ** 2 for a, b in zip(theirs, ours, strict=True)]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("aim", ["own", "float"])
def test_no_rounding_is_much_better(seed: int, aim: str) -> None:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(6, 6))
    x = np.rint(10 * generator.normal(size=(1, 200, 6)) @ mixing + 5)
    wanted = generator.uniform(-6, 6, (1, 3, 6))
    seen = x + generator.normal(size=x.shape)
    float_outputs = wanted @ seen.transpose(0, 2, 1) * 0.5 + 2.0
    nearest = np.rint(wanted)
    bias = np.full((1, 3), 2.0)
    moments = Moments(1, 3, 6)
    moments.add(x, float_outputs)
    problem = Problem(nearest, wanted, nearest - 1, nearest + 1, np.full((1, 3), 0.5), bias, bias)
    target = float_outputs if aim == "float" else wanted @ x.transpose(0, 2, 1) * 0.5 + 2.0

    def error(integers: np.ndarray) -> np.ndarray:
        return ((0.5 * integers @ x[0].T + 2.0 - target[0]) ** 2).mean(1)

    found = solve(problem, moments, aim, 1e-9).integers[0]
    near = error(nearest[0])
    for channel in range(3):
        steps = np.array(list(itertools.product([-1, 0, 1], repeat=6)))
        every = 0.5 * (nearest[0, channel] + steps) @ x[0].T + 2.0
        best = ((every - target[0, channel]) ** 2).mean(1).min()
        mine = error(found)[channel]
        assert best * (1 - 1e-9) <= mine <= min(near[channel] * (1 + 1e-9), 2.0 * best)
    assert abs(found - nearest[0]).max() <= 1
    if aim == "float":
        np.testing.assert_allclose(Solution(found[np.newaxis], bias).errors(problem, moments)[0], error(found), rtol=1e-9)


def options(stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), valid: bool = False) -> Any:
    return SimpleNamespace(
        strideH=stride[0], strideW=stride[1], dilationHFactor=dilation[0], dilationWFactor=dilation[1], padding=int(valid)
    )


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((3, 1), (1, 1)), ((1, 1), (2, 3))])
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise"])
def test_inputs_and_weights_give_tensorflows_convolutions(
    kind: str, stride: tuple[int, int], dilation: tuple[int, int], valid: bool
) -> None:
    if kind == "depthwise" and stride[0] != stride[1]:
        pytest.skip("TensorFlow's depthwise convolution has one stride")
    generator = np.random.default_rng(0)
    image = generator.normal(size=(2, 11, 9, 4)).astype(np.float32)
    padding = "VALID" if valid else "SAME"
    strides = [1, *stride, 1]
    if kind == "depthwise":
        kernel = generator.normal(size=(3, 2, 4, 3)).astype(np.float32)
        expected = tf.nn.depthwise_conv2d(image, kernel, strides, padding, dilations=dilation).numpy()
        stored, name = kernel.reshape(1, 3, 2, 12), "DEPTHWISE_CONV_2D"
    else:
        kernel = generator.normal(size=(3, 2, 2 if kind == "grouped" else 4, 6)).astype(np.float32)
        parts = zip(np.split(image, 2, -1), np.split(kernel, 2, -1), strict=True) if kind == "grouped" else [(image, kernel)]
        results = [tf.nn.conv2d(x, w, strides, padding, dilations=dilation).numpy() for x, w in parts]
        expected, stored, name = np.concatenate(results, -1), kernel.transpose(3, 0, 1, 2), "CONV_2D"
    geometry = Geometry.of(name, stored.shape, 4, options(stride, dilation, valid))
    inputs = np.concatenate(list(geometry.inputs(image)), axis=1)
    products = geometry.matrix(stored) @ inputs.transpose(0, 2, 1)
    found = products.reshape(-1, inputs.shape[1]).T.reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(geometry.weights(geometry.matrix(stored)), stored)
    assert geometry.positions(image.shape) == inputs.shape[1]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_inputs_of_a_transposed_convolution(stride: int, padding: str) -> None:
    generator = np.random.default_rng(0)
    image, kernel = generator.normal(size=(1, 5, 4, 3)), generator.normal(size=(3, 2, 6, 3))
    edge = 0 if padding == "SAME" else 1
    size = (5 * stride + edge * max(0, 3 - stride), 4 * stride + edge * max(0, 2 - stride))
    expected = tf.nn.conv2d_transpose(image, kernel, (1, *size, 6), stride, padding).numpy()
    stored = kernel.transpose(2, 0, 1, 3)
    geometry = Geometry.of("TRANSPOSE_CONV", stored.shape, 3, options((stride, stride), valid=padding == "VALID"))
    inputs = np.concatenate(list(geometry.inputs(image, size)), axis=1)
    found = (geometry.matrix(stored) @ inputs.transpose(0, 2, 1))[0].T.reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_sums_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # A 3 x 3 kernel with stride 2 and SAME padding on 4 x 4: padded at the far end alone; in bands of one row each.
    monkeypatch.setattr("tflite_qdebug.remedies.patches._MOST_ELEMENTS", 1)
    image = np.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    geometry = Geometry.of("CONV_2D", (1, 3, 3, 1), 1, options((2, 2)))
    bands = list(geometry.inputs(image))
    assert len(bands) == 2
    rows = [
        [1, 2, 3, 5, 6, 7, 9, 10, 11], [3, 4, 0, 7, 8, 0, 11, 12, 0],
        [9, 10, 11, 13, 14, 15, 0, 0, 0], [11, 12, 0, 15, 16, 0, 0, 0, 0],
    ]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(bands, axis=1)[0], rows)
    moments = Moments(1, 1, 9)
    for band, outputs in zip(bands, ([[1.0, 2.0]], [[3.0, 4.0]]), strict=True):
        moments.add(band, np.array([outputs]))
    expected = np.array(rows, dtype=float)
    np.testing.assert_array_equal(moments.xx[0], sum(np.outer(row, row) for row in expected))
    np.testing.assert_array_equal(moments.yx[0, 0], np.array([1, 2, 3, 4]) @ expected)
    assert (moments.count, moments.y[0, 0], moments.yy[0, 0]) == (4, 10, 30)


def test_error_is_what_it_says() -> None:
    pair = one_layer()
    found = rounded(pair)
    assert found.left_out == {}
    assert found.samples == 6
    assert [node.op_name for node in found.nodes] == ["CONV_2D"]
    true = [layer_error(pair[0], data) for data in (pair[1], found.data)]
    assert found.nodes[0].before == pytest.approx(true[0], rel=1e-5)
    assert found.nodes[0].after == pytest.approx(true[1], rel=1e-5)
    assert true[1] < true[0]
    assert output_error(pair, found.data) < output_error(pair, pair[1])


def layer_error(floating: bytes, quantized: bytes) -> float:
    """Returns the convolution's error with the quantized model's numbers, by TensorFlow, without rounding its output."""
    ours, theirs = Model(floating), Model(quantized)

    def constants(model: Model) -> tuple[np.ndarray, np.ndarray]:
        operator = next(op for op in model.main.operators if op.name == "CONV_2D")
        tensors = [model.main.tensors[index] for index in operator.inputs[1:]]
        values = [model.constant(tensor) for tensor in tensors]
        real = [v if t.is_float else t.quantization.dequantize(v) for t, v in zip(tensors, values, strict=True)]  # type: ignore[union-attr]
        return real[0].transpose(1, 2, 3, 0).astype(np.float64), real[1].astype(np.float64)

    operator = next(op for op in theirs.main.operators if op.name == "CONV_2D")
    steps = theirs.main.tensors[operator.inputs[0]].quantization
    assert steps is not None
    (kernel, bias), (float_kernel, float_bias) = constants(theirs), constants(ours)
    errors = []
    for (image,) in SAMPLES():
        read = steps.dequantize(steps.quantize(image, np.int8)).astype(np.float64)
        got = tf.nn.conv2d(read, kernel, [1, 2, 1, 1], "SAME").numpy() + bias
        expected = tf.nn.conv2d(image.astype(np.float64), float_kernel, [1, 2, 1, 1], "SAME").numpy() + float_bias
        errors.append((got - expected) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("aim", ["best", "float", "own"])
def test_chain_gets_better(aim: str) -> None:
    pair = chain()
    found = rounded(pair, aim=aim)
    assert len(found.nodes) == 3
    assert {node.op_name for node in found.nodes} == set(WEIGHTED[:3])
    assert all(node.after <= node.before for node in found.nodes)
    assert any(node.moved > 0 for node in found.nodes)
    assert output_error(pair, found.data) < output_error(pair, pair[1])


@pytest.mark.parametrize("options", [{}, {"biases": True}, {"steps": 3, "aim": "float"}])
def test_nothing_else_changes(options: dict[str, Any]) -> None:
    _, before = chain()
    found = rounded(chain(), **options)
    assert len(found.data) == len(before)
    assert found.data != before
    model, other = Model(before), Model(found.data)
    allowed = np.zeros(len(before), dtype=bool)
    for operator in model.main.operators:
        if operator.name in WEIGHTED:
            for index in filter(lambda index: index >= 0, operator.inputs[1 : 3 if options.get("biases") else 2]):
                start = model.place(model.main.tensors[index])
                allowed[start : start + model.constant(model.main.tensors[index]).nbytes] = True
    differs = np.frombuffer(before, np.uint8) != np.frombuffer(found.data, np.uint8)
    assert not (differs & ~allowed).any()
    steps = options.get("steps", 1)
    moved = []
    for tensor in weight_tensors(before):
        old, new = (one.constant(tensor).astype(int) for one in (model, other))
        assert abs(new).max() <= 127
        moved.append(int(abs(new - old).max()))
    assert moved == [node.steps for node in found.nodes]
    assert max(moved) <= steps
    assert [node.moved for node in found.nodes] == [
        np.mean(model.constant(tensor) != other.constant(tensor)) for tensor in weight_tensors(before)
    ]


@pytest.mark.parametrize("aim", ["own", "float"])
def test_biases_leave_no_mean_error(aim: str) -> None:
    generator = np.random.default_rng(5)
    x = np.rint(generator.normal(20, 10, (1, 300, 6)))
    wanted = generator.uniform(-6, 6, (1, 3, 6))
    float_outputs = 0.5 * wanted @ x.transpose(0, 2, 1) + (7.3 if aim == "float" else 4.0)
    moments = Moments(1, 3, 6)
    moments.add(x, float_outputs)
    nearest = np.rint(wanted)
    bias = np.zeros((1, 3))
    problem = Problem(nearest, wanted, nearest - 1, nearest + 1, np.full((1, 3), 0.5), bias, bias + 4.0, free_bias=True)
    found = solve(problem, moments, aim, 0.01)
    np.testing.assert_array_equal(found.bias * 2, np.rint(found.bias * 2))
    mean = (0.5 * found.integers @ x.transpose(0, 2, 1) + found.bias[..., np.newaxis] - float_outputs).mean(2)
    assert abs(mean).max() <= 0.25 + 1e-9  # half a step


def test_biases_are_written() -> None:
    pair = one_layer()
    found = rounded(pair, aim="float", biases=True)
    assert found.nodes[0].after == pytest.approx(layer_error(pair[0], found.data), rel=1e-5)

    def bias_of(data: bytes) -> np.ndarray:
        model = Model(data)
        operator = next(op for op in model.main.operators if op.name == "CONV_2D")
        return model.constant(model.main.tensors[operator.inputs[2]])

    assert (bias_of(found.data) != bias_of(pair[1])).any()


def test_workers_make_no_difference() -> None:
    options = {"backend": None, "aim": "best"}
    found = [
        rounded(chain(), **{**options, "backend": Backend(kernels="builtin", workers=count)}) for count in (1, 2)
    ]  # fmt: skip
    assert found[0].data == found[1].data
    assert found[0].nodes == found[1].nodes


def test_memory_only_costs_passes() -> None:
    assert rounded(chain(), aim="own", memory=1).data == rounded(chain(), aim="own").data


def test_few_passes_do_not_make_good_twice() -> None:
    pair = chain()
    found = rounded(pair, aim="float", passes=1)
    assert len(found.nodes) == 3
    assert output_error(pair, found.data) < output_error(pair, pair[1])


def test_chosen_nodes_alone() -> None:
    everything = rounded(chain(), aim="own")
    name = everything.nodes[1].name
    found = rounded(chain(), nodes=[name], aim="own")
    assert [node.name for node in found.nodes] == [name]
    changed = [
        not np.array_equal(Model(chain()[1]).constant(tensor), Model(found.data).constant(tensor))
        for tensor in weight_tensors(found.data)
    ]
    assert changed == [False, True, False]


def test_some_nodes_float() -> None:
    floating, _ = chain()
    name = rounded(chain(), aim="own").nodes[0].name
    calibrated = load_float_model(floating).calibrate(SAMPLES, progress=False)
    quantized = calibrated.quantize("int8", per_channel=False, denylisted_nodes=[name]).data
    found = rounded((floating, quantized))
    assert len(found.nodes) == 2
    assert name not in {node.name for node in found.nodes} | set(found.left_out)
    assert output_error((floating, quantized), found.data) <= output_error((floating, quantized), quantized)


def test_shared_weights_are_left_alone() -> None:
    samples = models.dataset("shared_weights", models.COUNT)
    calibrated = models.calibrated("shared_weights")
    assert calibrated.float_model is not None
    quantized = calibrated.quantize("int8").data
    found = rounded((calibrated.float_model.data, quantized), samples)
    model = Model(quantized)
    readers = [op.inputs[1] for op in model.main.operators if op.name == "FULLY_CONNECTED"]
    if len(set(readers)) == len(readers):
        pytest.skip("this TensorFlow gives each layer weights of its own")
    assert found.data == quantized
    assert set(found.left_out.values()) == {"its weights are shared with another operator"}


def test_transposed_convolution() -> None:
    samples = models.dataset("weighty", models.COUNT)
    calibrated = models.calibrated("weighty")
    assert calibrated.float_model is not None
    pair = calibrated.float_model.data, calibrated.quantize("int8", per_channel=False).data
    found = rounded(pair, samples)
    assert set(WEIGHTED) <= {node.op_name for node in found.nodes}
    assert not found.left_out
    assert all(node.after <= node.before for node in found.nodes)


def test_without_weights() -> None:
    pair = pair_of(lambda x: tf.nn.relu(x) + tf.tanh(x))
    found = rounded(pair)
    assert found.data == pair[1]
    assert found.nodes == ()
    assert found.left_out == {}
    assert any("no layer with int8 weights" in note for note in found.notes)


def test_node_without_weights_is_left_out_with_the_reason() -> None:
    pair = pair_of(lambda x: tf.tanh(tf.nn.conv2d(x, weights(3, 3, 4, 5), 1, "SAME")))
    main = Model(pair[0]).main
    name = main.tensors[next(op for op in main.operators if op.name == "TANH").outputs[0]].name
    found = rounded(pair, nodes=[name])
    assert found.data == pair[1]
    assert list(found.left_out) == [name]
    assert "no layer with weights" in found.left_out[name]


def test_weights_of_another_model_are_left_alone() -> None:
    floating = pair_of(lambda x: tf.nn.conv2d(x, weights(3, 3, 4, 5, seed=8), 1, "SAME"))[0]
    quantized = pair_of(lambda x: tf.nn.conv2d(x, weights(3, 3, 4, 5, seed=9), 1, "SAME"))[1]
    found = rounded((floating, quantized))
    assert found.data == quantized
    assert "unlike those of the float model" in next(iter(found.left_out.values()))


def test_one_sample_is_said() -> None:
    found = rounded(chain(), limit=1)
    assert found.samples == 1
    assert any("one sample" in note for note in found.notes)


def test_wrong_arguments() -> None:
    name = rounded(chain(), aim="own").nodes[0].name
    with pytest.raises(OptionError, match="Did you mean"):
        rounded(chain(), nodes=[name[:-1] + "?"])
    for options in ({"nodes": []}, {"nodes": name}, {"steps": 0}, {"passes": 0}, {"aim": "flaot"}, {"memory": 0}):
        with pytest.raises(OptionError, match="got"):
            rounded(chain(), **options)
    with pytest.raises(DatasetError, match=r"no sample|empty"):
        rounded(chain(), [])
    bad = np.full(SHAPE, np.nan, dtype=np.float32)
    with pytest.raises(DatasetError, match=r"NaN|nan"):
        rounded(chain(), [[bad]])
    with pytest.raises(DatasetError, match=r"NaN|nan"):
        rounded(chain(), [*[list(sample) for sample in SAMPLES()], [bad]])
