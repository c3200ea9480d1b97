"""A float and a quantized model, or a quantized one alone: numbers of TensorFlow's debugger, and numbers worked out by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED_MODELS
from shared_data import samples as real_samples
from test_tensorflow_equality import run_theirs

from tflite_qdebug.analyses.layer_error import layer_error
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.edit.dequantized import dequantize_model
from tflite_qdebug.edit.flatbuffer import drop_unused_codes, pack, unpack, with_renamed
from tflite_qdebug.errors import DatasetError, ModelError, QDebugError
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.record import Run

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
Samples = list[list[np.ndarray]]


def measured(floating: Any, quantized: Any, samples: Any, **options: Any) -> Run:
    return pair_error(floating, quantized, samples, **{"backend": BACKEND, "progress": False, **options})


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, dtype=np.float64)))))


def real(model: Model, interpreter: Any, index: int) -> np.ndarray:
    values, tensor = interpreter.get_tensor(index), model.main.tensors[index]
    return tensor.quantization.dequantize(values) if tensor.is_quantized else values  # type: ignore[union-attr]


def row_of(run: Run, op_name: str, nth: int = 0) -> int:
    return [i for i, layer in enumerate(run.layers) if layer.op_name == op_name][nth]


# -- TensorFlow's debugger -------------------------------------------------------------------------------------------------

SMALL = ["mixed", "chain", "two_by_two", "shared_weights", "dynamic_batch", "weighty", "with_cosine", "attention", "embedding",
         "constant_product", "scalars", "lstm", "long_lstm"]  # fmt: skip
REAL = ["keyword_spotting/kws_ref_float", "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float",
        "mobilenetv3_small/mobilenet_v3_small_float", "face_detection/face_detection_short_range_f32folded",
        "super_resolution/fsrcnn_x2_float", "super_resolution/espcn_x2_float", "structure/conv_fc_mnist"]  # fmt: skip


@functools.cache
def source(name: str) -> tuple[CalibratedModel, Samples]:
    if name in SMALL:
        # TensorFlow's debugger does not set variables back: later samples would begin in the state of the first.
        return models.calibrated(name), models.samples(name, 1 if "lstm" in name else 3, seed=1)
    if not SHARED_MODELS.is_dir():
        pytest.skip(f"the real models are not at {SHARED_MODELS}")
    float_model = load_float_model(SHARED_MODELS / f"{name}.tflite")
    return float_model.calibrate(real_samples(name, 4), progress=False), real_samples(name)


@functools.cache
def pair_of(name: str) -> tuple[bytes, bytes, Samples]:
    """Returns float model and int8 model; the latter as TensorFlow's debug model has it, where that is another."""
    calibrated, samples = source(name)
    assert calibrated.float_model is not None
    quantized = calibrated.quantize("int8").data
    if name.startswith("face"):
        quantized = quantized_half(calibrated.numeric_verify_model())
        plain = Model(calibrated.quantize("int8").data)
        assert sum(op.name == "RELU" for op in Model(quantized).main.operators) > 10
        assert not any(op.name == "RELU" for op in plain.main.operators)  # fused there, and not where each is verified
    return calibrated.float_model.data, quantized, samples


def quantized_half(debug_model: bytes) -> bytes:
    """Returns TensorFlow's debug model without what its own outputs do not need: verification and float twins."""
    unpacked = unpack(Model(debug_model))
    main = unpacked.subgraphs[0]
    needed, kept = set(map(int, main.outputs)), []
    for operator in reversed(main.operators):
        if needed.intersection(map(int, operator.outputs)):
            kept.insert(0, operator)
            needed.update(map(int, operator.inputs))
    main.operators = kept
    drop_unused_codes(unpacked)
    return pack(unpacked)


def bridged_from(model: Model, operator: Operator, wanted: Callable[[Any], bool]) -> list[int]:
    """Returns the float tensors that an operator reads through a QUANTIZE, where they are as wanted."""
    producers, tensors = model.main.producers, model.main.tensors
    found = [producers[index] for index in operator.inputs if index in producers and producers[index].name == "QUANTIZE"]
    return [op.inputs[0] for op in found if tensors[op.inputs[0]].is_float and wanted(op.inputs[0])]


def compared(monkeypatch: pytest.MonkeyPatch, name: str, whole_model: bool) -> tuple[Run, dict[int, float]]:
    """Returns our run, and TensorFlow's RMSE of each of its rows that is not ours to 1e-3."""
    calibrated, samples = source(name)
    floating, quantized, _ = pair_of(name)
    ours = measured(floating, quantized, samples, whole_model=whole_model, parts=True)
    data = calibrated.numeric_verify_model(whole_model=whole_model)
    theirs = run_theirs(monkeypatch, data, lambda: iter(samples), "builtin")
    nodes = layer_error(calibrated, samples, whole_model=whole_model, backend=BACKEND, progress=False).layers
    rows = {(layer.node, layer.op_name): i for i, layer in enumerate(ours.layers)}
    assert len(nodes) == len(theirs) >= 1
    differing = {}
    for layer in nodes:
        row = rows[layer.node, layer.op_name]
        rmse = float(theirs[layer.key]["mean_squared_error"]) ** 0.5
        if rmse != pytest.approx(float(ours.statistics.rmse[row]), rel=1e-3, abs=1e-9):
            differing[row] = rmse
    rest = {layer.op_name for layer in ours.layers} - {layer.op_name for layer in nodes}
    assert rest <= {"QUANTIZE", "SIN", "COS"}  # its rounding of inputs has a row; so have, in whole models, float operators
    return ours, differing


@pytest.mark.parametrize("name", [*SMALL, *REAL])
def test_what_each_layer_adds_is_tensorflows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ours, differing = compared(monkeypatch, name, whole_model=False)
    quantized = Model(pair_of(name)[1])
    for row, rmse in differing.items():
        layer = ours.layers[row]
        operator = quantized.main.producers[layer.tensor_idx]
        inputs = quantized.main.inputs
        if bridged_from(quantized, operator, lambda index: index in inputs):  # noqa: B023
            # TensorFlow's twin reads the input itself, so its row has the rounding of the input, which has one of its own here.
            assert rmse == pytest.approx(ours.parts["accumulated"].rmse[row], rel=1e-3), layer
        elif bridged_from(quantized, operator, lambda index: True):
            # The same behind an operator that stayed float, inside of the model.
            assert rmse == pytest.approx(dense_by_hand(name, layer.tensor_idx), rel=1e-3), layer
        else:
            # TensorFlow's twin of a pool is a pool of integers: it finds no error where there is rounding.
            assert layer.op_name == "AVERAGE_POOL_2D"
            assert rmse < 1e-6
            assert ours.statistics.rmse[row] == pytest.approx(pool_by_hand(name, operator), rel=1e-3)
    assert len(differing) <= 3


def dense_by_hand(name: str, output: int) -> float:
    """Returns the error of a dense layer against the float one on the value before it was quantized."""
    floating, data, samples = pair_of(name)
    quantized, graph = Model(data), Graph(Model(floating))
    operator = quantized.main.producers[output]
    (before,) = bridged_from(quantized, operator, lambda index: True)
    dense = [op for op in graph.operators if op.name == "FULLY_CONNECTED"][-1]
    kernel = graph.model.constant(graph.tensor(dense.inputs[1]))
    bias = graph.model.constant(graph.tensor(dense.inputs[2])) if dense.inputs[2] >= 0 else 0
    errors = []
    for inputs in samples:
        interpreter = models.run(data, inputs, "builtin")
        errors.append(real(quantized, interpreter, output) - (interpreter.get_tensor(before) @ kernel.T + bias))
    return rms(errors)


def pool_by_hand(name: str, operator: Operator) -> float:
    _, data, samples = pair_of(name)
    quantized, errors = Model(data), []
    options = unpack(quantized).subgraphs[0].operators[operator.index].builtinOptions
    size, stride = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
    for inputs in samples:
        interpreter = models.run(data, inputs, "builtin")
        before, after = (real(quantized, interpreter, index) for index in (operator.inputs[0], operator.outputs[0]))
        errors.append(after - tf.nn.avg_pool2d(before, size, stride, ("SAME", "VALID")[options.padding]).numpy())
    return rms(errors)


@pytest.mark.parametrize("name", [*SMALL, *REAL])
def test_what_has_accumulated_is_tensorflows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ours, differing = compared(monkeypatch, name, whole_model=True)
    quantized = Model(pair_of(name)[1])
    broken = taken_up_again(quantized)
    for row in differing:
        # Behind a rescaling and at a recurrent layer TensorFlow's float chain starts again from quantized values.
        assert ours.layers[row].tensor_idx in broken, ours.layers[row]
    if name in ("lstm", "long_lstm"):  # there it measures what the layer alone adds
        alone = measured(*pair_of(name))
        row = row_of(ours, "UNIDIRECTIONAL_SEQUENCE_LSTM")
        assert differing[row] == pytest.approx(alone.statistics.rmse[row], rel=1e-3)
    assert bool(differing) == (name in ("mixed", "lstm", "long_lstm"))


def taken_up_again(quantized: Model) -> set[int]:
    main, found = quantized.main, set()
    for operator in main.operators:
        rescaling = operator.name == "QUANTIZE" and main.tensors[operator.inputs[0]].is_quantized
        if rescaling or operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" or found.intersection(operator.inputs):
            found.update(operator.outputs)
    return found


@pytest.mark.parametrize("name", ["mixed", "two_by_two", "lstm", "with_cosine", "keyword_spotting/kws_ref_float",
                                  "super_resolution/espcn_x2_float"])  # fmt: skip
def test_the_accumulated_error_is_that_of_the_two_models_run_by_hand(name: str) -> None:
    floating, data, samples = pair_of(name)
    run = measured(floating, data, samples, whole_model=True)
    float_model, quantized = Model(floating), Model(data)
    by_name = {tensor.name: tensor.index for tensor in float_model.main.tensors}
    errors: dict[int, list[np.ndarray]] = {}
    for inputs in samples:
        mine, other = models.run(floating, inputs, "builtin"), models.run(data, inputs, "builtin")
        for i, layer in enumerate(run.layers):
            if layer.op_name != "QUANTIZE":
                wanted = mine.get_tensor(by_name[layer.node])
                errors.setdefault(i, []).append(real(quantized, other, layer.tensor_idx) - wanted)
    assert len(errors) >= 3
    for i, values in errors.items():
        assert run.statistics.rmse[i] == pytest.approx(rms(values), rel=1e-3, abs=1e-7), run.layers[i]


# -- parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "int16x8", "dynamic_range", "float16"])
@pytest.mark.parametrize("name", ["mixed", "weighty", "lstm"])
def test_the_parts_add_up_to_the_accumulated_error(name: str, kind: str) -> None:
    if (name, kind) in (("mixed", "dynamic_range"), ("lstm", "dynamic_range"), ("lstm", "int16x8")):
        pytest.skip("nothing in it is quantized, or TensorFlow makes no such model")
    calibrated, samples = source(name)
    assert calibrated.float_model is not None
    quantized = calibrated.quantize(kind).data
    run = measured(calibrated.float_model.data, quantized, samples, parts=True)
    whole = measured(calibrated.float_model.data, quantized, samples, whole_model=True)
    present = {part: np.nan_to_num(statistics.bias) for part, statistics in run.parts.items()}
    total = present["weights"] + present["output"] + present["input"]
    largest = np.sqrt(run.statistics.sums[:, 3] / run.statistics.sums[:, 0])
    np.testing.assert_array_less(np.abs(total - present["accumulated"]), 1e-6 * largest + 1e-12)
    rows = {layer.key: i for i, layer in enumerate(whole.layers)}
    for i, layer in enumerate(run.layers):
        if layer.key in rows:
            accumulated = run.parts["accumulated"].rmse[i]
            assert accumulated == pytest.approx(whole.statistics.rmse[rows[layer.key]], rel=1e-6, abs=1e-12)


def twin(operator: Operator, inputs: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """Returns what an operator of the model ``mixed`` computes in float, by TensorFlow's own functions."""
    if operator.name == "CONV_2D":
        kernel = np.transpose(weights[0], (1, 2, 3, 0))
        return tf.nn.relu(tf.nn.conv2d(inputs[0], kernel, 1, "SAME") + weights[1]).numpy()
    if operator.name == "DEPTHWISE_CONV_2D":
        kernel = np.transpose(weights[0], (1, 2, 3, 0))
        return (tf.nn.depthwise_conv2d(inputs[0], kernel, (1, 1, 1, 1), "SAME") + weights[1]).numpy()
    if operator.name == "FULLY_CONNECTED":
        return inputs[0] @ weights[0].T + weights[1]
    if operator.name == "ADD":
        return inputs[0] + inputs[1]
    assert operator.name == "CONCATENATION"
    return np.concatenate(inputs, axis=-1)


@pytest.mark.parametrize("op_name", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "CONCATENATION"])
def test_the_parts_are_those_worked_out_by_hand(op_name: str) -> None:
    floating, data, samples = pair_of("mixed")
    run = measured(floating, data, samples, parts=True)
    row = row_of(run, op_name)
    ours, theirs = Graph(Model(floating)), Graph(Model(data))
    other = theirs.subgraph.producers[run.layers[row].tensor_idx]
    mine = next(op for op in ours.operators if ours.tensor(op.outputs[0]).name == run.layers[row].node)
    constants = [index for index in mine.inputs if index >= 0 and ours.is_constant(index)]
    weights = [ours.model.constant(ours.tensor(index)) for index in constants]
    dequantized = [theirs.real_values(theirs.tensor(i)) for i in other.inputs if theirs.is_constant(i)]
    if len(dequantized) > 1:  # the scale of a bias is that of the input times that of the weights
        source_scale = theirs.tensor(other.inputs[0]).quantization.scale[0]  # type: ignore[union-attr]
        scale = source_scale.astype(np.float64) * theirs.tensor(other.inputs[1]).quantization.scale  # type: ignore[union-attr]
        dequantized[1] = (theirs.model.constant(theirs.tensor(other.inputs[2])) * scale).astype(np.float32)
    errors: dict[str, list[np.ndarray]] = {"weights": [], "output": [], "input": [], "accumulated": []}
    for sample in samples:
        one, two = models.run(floating, sample, "builtin"), models.run(data, sample, "builtin")
        inputs = [
            real(theirs.model, two, unscaled(theirs.model, index)) for index in other.inputs if not theirs.is_constant(index)
        ]
        sound, changed = twin(mine, inputs, weights), twin(mine, inputs, dequantized)
        result, chain = real(theirs.model, two, other.outputs[0]), one.get_tensor(mine.outputs[0])
        errors["weights"].append(changed - sound)
        errors["output"].append(result - changed)
        errors["input"].append(sound - chain)
        errors["accumulated"].append(result - chain)
    for part, values in errors.items():
        if part == "weights" and not weights:
            assert run.parts[part].num_elements[row] == 0
            errors["output"] = errors["output"] or values
            continue
        assert run.parts[part].rmse[row] == pytest.approx(rms(values), rel=1e-3), part
        assert run.parts[part].bias[row] == pytest.approx(float(np.mean(values)), rel=1e-2, abs=1e-3 * rms(values)), part


def unscaled(model: Model, index: int) -> int:
    """Returns the tensor before a QUANTIZE that rescales, whose error is its reader's."""
    producer = model.main.producers.get(index)
    if producer is not None and producer.name == "QUANTIZE" and model.main.tensors[producer.inputs[0]].is_quantized:
        return producer.inputs[0]
    return index


def test_the_part_of_its_own_is_measured_on_the_float_models_values() -> None:
    floating, data, samples = pair_of("chain")
    run = measured(floating, data, samples, parts=True)
    first = row_of(run, "CONV_2D")
    # The first operator reads the rounded input either way.
    assert run.parts["own"].rmse[first] == run.statistics.rmse[first]
    # The last one by hand: its input is the float model's, rounded as it is in the quantized model.
    graph, row = Graph(Model(data)), row_of(run, "FULLY_CONNECTED")
    operator = graph.subgraph.producers[run.layers[row].tensor_idx]
    source_, kernel, bias = (graph.tensor(index) for index in operator.inputs)
    target = graph.tensor(operator.outputs[0])
    ours = Graph(Model(floating))
    dense = next(op for op in ours.operators if op.name == "FULLY_CONNECTED")
    weights = ours.model.constant(ours.tensor(dense.inputs[1]))
    constant = ours.model.constant(ours.tensor(dense.inputs[2]))
    errors = []
    for sample in samples:
        value = models.run(floating, sample, "builtin").get_tensor(dense.inputs[0])
        integers = source_.quantization.quantize(value, np.int8)  # type: ignore[union-attr]
        total = (integers.astype(np.int64) - source_.quantization.zero_point) @ graph.model.constant(kernel).T.astype(np.int64)  # type: ignore[union-attr]
        total = total + graph.model.constant(bias)
        scale = source_.quantization.scale.astype(np.float64) * kernel.quantization.scale  # type: ignore[union-attr]
        result = target.quantization.dequantize(target.quantization.quantize((total * scale).astype(np.float32), np.int8))  # type: ignore[union-attr]
        errors.append(result - (source_.quantization.dequantize(integers) @ weights.T + constant))  # type: ignore[union-attr]
    assert run.parts["own"].rmse[row] == pytest.approx(rms(errors), rel=1e-3)


def sqnr(reference: Any, values: Any) -> float:
    return 20 * np.log10(rms(reference) / rms(np.asarray(values) - np.asarray(reference)))


def test_weights_alone_quantized_are_the_float_model_with_dequantized_weights() -> None:
    floating, data, samples = pair_of("mixed")
    run = measured(floating, data, samples, parts=True)
    ours, theirs = Graph(Model(floating)), Graph(Model(dequantize_model(Model(data))))
    unpacked = unpack(ours.model)
    for mine, other in zip(
        *([op for op in graph.operators if graph.weights(op) is not None and len(op.inputs) == 3] for graph in (ours, theirs)),
        strict=True,
    ):
        for first, second in zip(mine.inputs[1:], other.inputs[1:], strict=True):
            values = theirs.model.constant(theirs.tensor(second))
            buffer = unpacked.buffers[unpacked.subgraphs[0].tensors[first].buffer]
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    changed = pack(unpacked)
    reference, values, quantized = (
        [models.outputs(model, sample, "builtin")[0] for sample in samples] for model in (floating, changed, data)
    )
    assert run.outputs == ["StatefulPartitionedCall_1:0"]
    assert run.whole["weights"].sqnr_db[0] == pytest.approx(sqnr(reference, values), abs=0.01)
    assert run.whole["quantized"].sqnr_db[0] == pytest.approx(sqnr(reference, quantized), abs=0.01)


def test_activations_alone_quantized_are_the_float_model_with_rounding() -> None:
    floating, data, samples = pair_of("chain")
    run = measured(floating, data, samples, parts=True)
    ours, theirs = Graph(Model(floating)), Graph(Model(data))

    def rounded(value: Any, index: int) -> np.ndarray:
        parameters = theirs.tensor(index).quantization
        assert parameters is not None
        return parameters.dequantize(parameters.quantize(np.asarray(value), np.int8))

    integer = [op for op in theirs.operators if op.name in ("CONV_2D", "FULLY_CONNECTED")]
    reference, values = [], []
    for sample in samples:
        value: Any = rounded(sample[0], integer[0].inputs[0])
        for mine, other in zip([op for op in ours.operators if op.name != "RESHAPE"], integer, strict=True):
            kernel, bias = (ours.model.constant(ours.tensor(index)) for index in mine.inputs[1:])
            if mine.name == "CONV_2D":
                value = tf.nn.conv2d(value, np.transpose(kernel, (1, 2, 3, 0)), 1, "VALID") + bias
            else:
                value = np.reshape(value, (1, -1)) @ kernel.T + bias
            value = rounded(value, other.outputs[0])
        values.append(value)
        reference.append(models.outputs(floating, sample, "builtin")[0])
    assert run.whole["activations"].sqnr_db[0] == pytest.approx(sqnr(reference, values), abs=0.05)


# -- a quantized model alone -----------------------------------------------------------------------------------------------


def test_alone_equals_the_pair_where_the_float_weights_lie_on_the_grid() -> None:
    _, data, samples = pair_of("weighty")
    floating = dequantize_model(Model(data))
    alone, pair = measured(None, data, samples, parts=True), measured(floating, data, samples, parts=True)
    assert [layer.tensor_idx for layer in alone.layers] == [layer.tensor_idx for layer in pair.layers]
    np.testing.assert_allclose(alone.statistics.rmse, pair.statistics.rmse, rtol=1e-6)
    np.testing.assert_allclose(alone.parts["accumulated"].rmse, pair.parts["accumulated"].rmse, rtol=1e-6)
    np.testing.assert_allclose(alone.parts["own"].rmse, pair.parts["own"].rmse, rtol=1e-6)
    weighted = pair.parts["weights"].num_elements > 0
    assert weighted.sum() == 5
    assert not np.any(pair.parts["weights"].rmse[weighted])
    assert any("the error of the weights themselves is invisible" in note for note in alone.notes)
    assert {layer.reference for layer in alone.layers} == {"dequantized weights"}
    assert "weights" not in alone.whole


@pytest.mark.parametrize("kind", ["int8", "full_integer", "int16x8", "dynamic_range", "float16"])
def test_every_kind_can_be_measured_alone(kind: str) -> None:
    calibrated, _ = source("weighty")
    run = measured(None, calibrated.quantize(kind).data, models.samples("weighty", models.COUNT))
    assert np.isfinite(run.statistics.rmse).all()
    steps = run.columns()["rmse_over_scale"]
    if kind in ("dynamic_range", "float16"):  # dynamic range: the activations are rounded on the fly
        assert (run.statistics.rmse > 0).any() == (kind == "dynamic_range")
    else:
        # What is clipped is off by many of the fine steps of 16 bits.
        clipped = run.statistics.saturated_low + run.statistics.saturated_high > 0
        assert np.nanmax(steps[~clipped] if kind == "int16x8" else steps) < 1.0
        assert 0.2 < np.nanmedian(steps) < (0.6 if kind == "int16x8" else 0.37)


ALONE = ["coral/mobilenet_v1_0.25_128_quant", "coral/keras_lstm_mnist_ptq", "mnist_lstm/trained_lstm_int8",
         "keyword_spotting/kws_ref_model_int8", "mobilenet_v1_0.25/mobilenet_v1_0.25_224_quant_QAT"]  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_real_quantized_models_alone(shared_models: Any, name: str) -> None:
    run = measured(None, shared_models / f"{name}.tflite", real_samples(name))
    steps = run.columns()["rmse_over_scale"]
    assert np.nanmax(steps) < 0.6  # nothing but rounding: the weights are their own reference
    assert len(run.layers) >= 5


def test_deeplab_alone(shared_models: Any) -> None:
    name = "coral/deeplabv3_mnv2_dm05_pascal_quant"
    run = measured(None, shared_models / f"{name}.tflite", real_samples(name, 1))
    assert np.nanmedian(run.columns()["rmse_over_scale"]) < 0.4
    assert len(run.layers) > 60


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant_edgetpu", "keras_lstm_mnist_ptq_edgetpu"])
def test_a_compiled_model_is_refused(shared_models: Any, name: str) -> None:
    with pytest.raises(ModelError, match="compiled for the Edge TPU"):
        measured(None, shared_models / "coral" / f"{name}.tflite", [[np.zeros((1, 128, 128, 3), np.uint8)]])


def test_a_custom_operator_is_named(shared_models: Any) -> None:
    name = "coral/posenet_mobilenet_v1_075_353_481_16_quant_decoder"
    with pytest.raises(QDebugError, match=r"PosenetDecoder|custom"):
        measured(None, shared_models / f"{name}.tflite", real_samples(name, 1))


# -- inputs and outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_samples_are_their_dequantized_floats(dtype: str) -> None:
    calibrated, samples = source("chain")
    assert calibrated.float_model is not None
    floating = calibrated.float_model.data
    data = calibrated.quantize("full_integer", input_type=dtype, output_type=dtype).data
    model = Model(data)
    parameters = model.main.tensors[model.main.inputs[0]].quantization
    assert parameters is not None
    integers = [[parameters.quantize(sample[0], dtype)] for sample in samples]
    floats = [[parameters.dequantize(sample[0])] for sample in integers]
    for reference in (floating, None):
        one, two = (measured(reference, data, given, parts=True) for given in (integers, floats))
        np.testing.assert_array_equal(one.statistics.sums, two.statistics.sums)
        np.testing.assert_array_equal(one.parts["accumulated"].sums, two.parts["accumulated"].sums)
        # On the grid, the rounding of the input does nothing.
        assert one.statistics.rmse[0] < 1e-5 * parameters.scale[0]
    given = measured(floating, data, samples)
    assert given.layers[0].op_name == "QUANTIZE"
    assert given.columns()["rmse_over_scale"][0] == pytest.approx(0.289, abs=0.1)


def reordered(data: bytes, inputs: list[int] | None, outputs: list[int] | None) -> bytes:
    unpacked = unpack(Model(data))
    main = unpacked.subgraphs[0]
    if inputs:
        main.inputs = np.array([main.inputs[i] for i in inputs], dtype=np.int32)
    if outputs:
        main.outputs = np.array([main.outputs[i] for i in outputs], dtype=np.int32)
    return pack(unpacked)


def test_inputs_and_outputs_in_another_order() -> None:
    floating, data, samples = pair_of("two_by_two")
    swapped = reordered(data, [1, 0], [1, 0])
    plain = measured(floating, data, samples, parts=True)
    turned = measured(floating, swapped, [sample[::-1] for sample in samples], parts=True)
    rows = {layer.tensor_idx: i for i, layer in enumerate(plain.layers)}
    for i, layer in enumerate(turned.layers):
        assert turned.statistics.rmse[i] == plain.statistics.rmse[rows[layer.tensor_idx]]
        assert turned.parts["accumulated"].rmse[i] == plain.parts["accumulated"].rmse[rows[layer.tensor_idx]]
    assert turned.outputs == plain.outputs[::-1]


def test_a_batch_of_any_size() -> None:
    floating, data, _ = pair_of("dynamic_batch")
    batch = np.random.default_rng(2).normal(size=(6, 10)).astype(np.float32)
    together = measured(floating, data, [[batch]], parts=True)
    apart = measured(floating, data, [[one[np.newaxis]] for one in batch], parts=True)
    np.testing.assert_allclose(together.statistics.rmse, apart.statistics.rmse, rtol=1e-6)
    np.testing.assert_allclose(together.parts["own"].rmse, apart.parts["own"].rmse, rtol=1e-6)


def test_shared_weights_duplicate_names_and_what_is_connected_to_nothing() -> None:
    floating, data, samples = pair_of("shared_weights")
    plain = measured(floating, data, samples, parts=True)
    same_names = with_renamed(Model(data), lambda index, name: "same")
    odd = unpack(Model(same_names))
    unused = odd.subgraphs[0].tensors[int(odd.subgraphs[0].inputs[0])]
    odd.subgraphs[0].tensors.append(unused)
    run = measured(floating, pack(odd), samples, parts=True)
    np.testing.assert_array_equal(run.statistics.sums, plain.statistics.sums)
    np.testing.assert_array_equal(run.parts["own"].sums, plain.parts["own"].sums)
    assert not any("name" in layer.matched_by for layer in run.layers)
    assert len({layer.key for layer in run.layers}) == len(run.layers)


def test_float_islands_have_no_error_of_their_own() -> None:
    floating, data, samples = pair_of("with_cosine")
    run = measured(floating, data, samples, parts=True)
    assert [layer.op_name for layer in run.layers] == ["QUANTIZE", "FULLY_CONNECTED", "QUANTIZE", "FULLY_CONNECTED"]
    assert run.columns()["rmse_over_scale"][2] == pytest.approx(0.289, abs=0.08) or run.statistics.saturated_high[2] > 0
    whole = measured(floating, data, samples, whole_model=True)
    assert "COS" in [layer.op_name for layer in whole.layers]


# -- refusals --------------------------------------------------------------------------------------------------------------


def test_swapped_or_equal_models_are_refused() -> None:
    floating, data, samples = pair_of("chain")
    with pytest.raises(ModelError, match="are the two swapped"):
        measured(data, floating, samples)
    with pytest.raises(ModelError, match="quantized already"):
        measured(data, data, samples)
    with pytest.raises(ModelError, match="none of its tensors is quantized"):
        measured(floating, floating, samples)
    with pytest.raises(ModelError, match="none of its tensors is quantized"):
        measured(None, floating, samples)


def test_models_that_are_no_pair_are_refused() -> None:
    _, data, samples = pair_of("chain")
    with pytest.raises(ModelError, match=r"2 inputs .* quantized model with 1"):
        measured(pair_of("two_by_two")[0], data, samples)
    with pytest.raises(ModelError, match=r"of the float model has shape .* no such input left"):
        measured(pair_of("mixed")[0], data, samples)


def test_a_wrong_sample_is_refused() -> None:
    floating, data, samples = pair_of("chain")
    with pytest.raises(DatasetError, match=r"sample 1.*expected"):
        measured(floating, data, [samples[0], [np.zeros((1, 2, 2, 3), np.float32)]])
    with pytest.raises(DatasetError):
        measured(floating, data, [])
    with pytest.raises(DatasetError, match=r"NaN|finite"):
        measured(floating, data, [[np.full((1, 6, 6, 3), np.nan, np.float32)]])


# -- state -----------------------------------------------------------------------------------------------------------------

LSTM = "mnist_lstm/trained_lstm"


def by_hand(data: bytes, samples: Samples, keep: bool) -> list[np.ndarray]:
    """Returns the real output for each sample; variables keep their values, or are set back before each."""
    model = Model(data)
    source_, target = (model.main.tensors[index] for index in (model.main.inputs[0], model.main.outputs[0]))
    interpreter = models.reference_interpreter(data, kernels="builtin")
    results = []
    for sample in samples:
        if not keep:
            interpreter.reset_all_variables()
        value = source_.quantization.quantize(sample[0], source_.dtype) if source_.is_quantized else sample[0]  # type: ignore[union-attr]
        interpreter.set_tensor(source_.index, value)
        interpreter.invoke()
        results.append(real(model, interpreter, target.index))
    return results


@pytest.mark.parametrize("sequence", [False, True])
def test_state_is_reset_for_each_sample_or_kept_through_a_sequence(shared_models: Any, sequence: bool) -> None:
    floating, data = ((shared_models / f"{LSTM}{end}.tflite").read_bytes() for end in ("", "_int8"))
    samples = real_samples(LSTM, 4)
    run = measured(floating, data, samples, sequence=sequence, parts=True, whole_model=True)
    errors = np.array(by_hand(data, samples, sequence)) - np.array(by_hand(floating, samples, sequence))
    assert run.whole["quantized"].rmse[0] == pytest.approx(rms(errors), rel=1e-3)
    assert run.layers[-1].op_name == "SOFTMAX" or run.layers[-1].op_name == "FULLY_CONNECTED"
    assert run.provenance["options"]["sequence"] is sequence
    once = measured(floating, data, samples, sequence=not sequence, parts=True)
    assert once.whole["quantized"].rmse[0] != pytest.approx(rms(errors), rel=1e-3)
    if not sequence:  # what is before a sample does not matter
        backwards = measured(floating, data, samples[::-1], parts=True)
        np.testing.assert_allclose(backwards.statistics.rmse, once_reset(floating, data, samples), rtol=1e-6)


def once_reset(floating: bytes, data: bytes, samples: Samples) -> np.ndarray:
    return measured(floating, data, samples, parts=True).statistics.rmse
