"""Edits against TensorFlow: what it computes in the models before and after, and the models that it makes itself."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
import tensorflow as tf
from contracts import check_edit_keeps_outputs
from models import calibrated

from tflite_qdebug import edit, tf_private
from tflite_qdebug.collect import Backend, LayerMetrics, collect_layer_errors
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import Sample
from tflite_qdebug.edit import flatbuffer
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run

REFERENCE = Backend(kernels="reference", workers=1)


@functools.cache
def by_tensorflow(name: str, kind: str, per_channel: bool = True) -> bytes:
    """TensorFlow's own conversion of the Keras model to a kind that needs no calibration."""
    converter = tf.lite.TFLiteConverter.from_keras_model(models.keras_model(name))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_disable_per_channel = not per_channel
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with tf_private.captured_chatter():
        return bytes(converter.convert())


def run_of(debug_model: edit.DebugModel, samples: list[list[np.ndarray]], backend: Backend = REFERENCE) -> Run:
    dataset = [Sample(index, inputs) for index, inputs in enumerate(samples)]
    collected = collect_layer_errors(
        debug_model.data, debug_model.layers, dataset, backend, LayerMetrics(), stateful=debug_model.stateful
    )
    return Run(debug_model.verify, list(debug_model.layers), collected.statistics)


# --------------------------------------------------------------------------------------- exposing, renaming, ranges


@pytest.mark.parametrize("name", ["mixed", "two_by_two", "shared_weights", "weighty", "int8"])
def test_exposed_tensors_hold_what_the_model_computes(name: str) -> None:
    data = calibrated("mixed").quantize("int8").data if name == "int8" else models.float_tflite(name)
    samples = models.samples("mixed" if name == "int8" else name, 2)
    model = Model(data)
    wanted = list(model.main.producers)
    exposed = edit.expose(model, wanted)
    check_edit_keeps_outputs(data, exposed, samples)
    truth, ours = models.run(data, samples[0], preserve=True), models.run(exposed, samples[0], preserve=False)
    compared = 0
    for index in wanted:
        np.testing.assert_array_equal(ours.get_tensor(index), truth.get_tensor(index))
        compared += 1
    assert compared >= 3
    assert set(wanted) <= set(Model(exposed).main.outputs)


def test_exposing_an_output_or_a_tensor_twice_adds_it_once() -> None:
    model = Model(models.float_tflite("mixed"))
    inner = next(iter(model.main.producers))
    exposed = Model(edit.expose(model, [inner, *model.main.outputs, inner]))
    assert exposed.main.outputs == (*model.main.outputs, inner)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: edit.expose(model, list(model.main.producers)),
        lambda model: edit.with_renamed(model, lambda index, name: f"tensor {index}"),
        lambda model: edit.with_ranges(model, {model.main.inputs[0]: (-1.0, 1.0)}),
        edit.cast_weights_to_float16,
        edit.quantize_weights,
    ],
)
def test_an_edit_returns_new_bytes_and_leaves_the_old(change: Any) -> None:
    data = models.float_tflite("weighty")
    before = hashlib.sha256(data).hexdigest()
    model = Model(data)
    weights = [model.constant(tensor).copy() for tensor in model.main.tensors if tensor.is_constant]
    changed = change(model)
    assert changed != data
    assert hashlib.sha256(data).hexdigest() == before == hashlib.sha256(model.data).hexdigest()
    for tensor, values in zip([tensor for tensor in model.main.tensors if tensor.is_constant], weights, strict=True):
        np.testing.assert_array_equal(model.constant(tensor), values)


def test_ranges_are_written_where_they_were_asked_for() -> None:
    model = Model(models.float_tflite("mixed"))
    first, second = list(model.main.producers)[:2]
    ranged = edit.with_ranges(model, {first: (-1.5, 2.25), second: (0.0, 0.1)})
    check_edit_keeps_outputs(model.data, ranged, models.samples("mixed", 1))
    tensors = Model(ranged).main.tensors
    assert (tensors[first].minimum, tensors[first].maximum) == (-1.5, 2.25)
    assert (tensors[second].minimum, tensors[second].maximum) == (0.0, float(np.float32(0.1)))
    assert [tensor.index for tensor in tensors if tensor.minimum is not None] == sorted([first, second])


def test_renaming_changes_names_alone() -> None:
    model = Model(models.float_tflite("mixed"))
    renamed = edit.with_renamed(model, lambda index, name: "same")
    check_edit_keeps_outputs(model.data, renamed, models.samples("mixed", 1))
    assert {tensor.name for tensor in Model(renamed).main.tensors} == {"same"}


def test_buffers_outside_of_the_flatbuffer_are_kept() -> None:
    """As in models above 2 GB: ``Buffer.offset`` and ``Buffer.size`` point behind the flatbuffer."""
    import flatbuffers

    model = Model(models.float_tflite("chain"))
    unpacked = flatbuffer.unpack(model)
    moved = {}
    for index, buffer in enumerate(unpacked.buffers):
        if buffer.data is not None and len(buffer.data) > 100:
            moved[index] = bytes(bytearray(buffer.data))
            buffer.data, buffer.offset, buffer.size = None, 1 << 20, len(moved[index])
    assert moved

    def packed() -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(unpacked.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    place = len(packed()) + 64
    tail = b"\0" * 64
    for index, content in moved.items():
        unpacked.buffers[index].offset = place
        place += len(content)
        tail += content
    outside = packed() + tail
    view = Model(outside)
    for tensor in view.main.tensors:
        if tensor.is_constant:
            np.testing.assert_array_equal(view.constant(tensor), model.constant(model.main.tensors[tensor.index]))
    check_edit_keeps_outputs(model.data, edit.expose(view, list(view.main.producers)), models.samples("chain", 1))


# ------------------------------------------------------------------------------------------------------- NumericVerify


@pytest.mark.parametrize("kernels", ["reference", "builtin"])
@pytest.mark.parametrize("whole_model", [False, True])
@pytest.mark.parametrize("name", ["mixed", "two_by_two", "shared_weights"])
def test_the_stripped_model_gives_the_differences_of_numeric_verify(name: str, whole_model: bool, kernels: str) -> None:
    debug = calibrated(name).numeric_verify_model(whole_model=whole_model)
    stripped = edit.strip_numeric_verify(Model(debug))
    assert "NumericVerify" not in {operator.name for operator in Model(stripped.data).main.operators}
    for inputs in models.samples(name, 2, seed=9):
        theirs = models.run(debug, inputs, kernels, preserve=True)
        # The builtin float kernels round by how their arrays lie in memory, so keep that alike.
        ours = models.run(stripped.data, inputs, kernels, preserve=kernels == "builtin")
        differences = {
            detail["name"]: detail["index"] for detail in theirs.get_tensor_details() if "NumericVerify" in detail["name"]
        }
        assert len(differences) == len(stripped.layers) >= 2
        for layer in stripped.layers:
            for index in (layer.tensor_idx, layer.float_idx):
                np.testing.assert_array_equal(ours.get_tensor(index), theirs.get_tensor(index))
            integers = ours.get_tensor(layer.tensor_idx).astype(np.float32)
            scale, zero_point = np.float32(layer.scale), np.float32(layer.zero_point)
            dequantized = ((integers - zero_point) * scale).reshape(-1)
            if kernels == "builtin":  # eight at a time as a product and a sum, which round otherwise
                eights = integers.size // 8 * 8
                dequantized[:eights] = integers.reshape(-1)[:eights] * scale + -zero_point * scale
            difference = dequantized.reshape(integers.shape) - ours.get_tensor(layer.float_idx)
            np.testing.assert_array_equal(difference, theirs.get_tensor(differences[layer.key]))
    check_edit_keeps_outputs(debug, stripped.data, models.samples(name, 1), kernels)


def test_a_model_without_numeric_verify_is_refused_in_tensorflows_words() -> None:
    with pytest.raises(ModelError, match="Please check if the quantized model is in debug mode"):
        edit.strip_numeric_verify(Model(calibrated("mixed").quantize("int8").data))


def test_a_loop_is_refused_by_the_names_of_its_bodies() -> None:
    data = control_flow_models.loop()
    calibrated = load_float_model(data).calibrate(control_flow_models.samples(Model(data), 2))
    with pytest.raises(ModelError, match=r"3 subgraphs .*while_cond.*while_body"):
        edit.strip_numeric_verify(Model(calibrated.numeric_verify_model()))


# -------------------------------------------------------------------------------------------------- weights alone

WEIGHT_MODELS = ["mixed", "weighty", "attention", "embedding", "constant_product", "scalars", "odd_channels", "long_lstm",
                 "shared_weights"]  # fmt: skip


def constants(data: bytes) -> list[tuple[Any, ...]]:
    model = Model(data)
    read = {index for operator in model.main.operators for index in operator.inputs}
    return sorted(
        (
            tensor.dtype.name,
            tensor.shape,
            model.constant(tensor).tobytes(),
            b"" if tensor.quantization is None else tensor.quantization.scale.tobytes(),
            tensor.quantization.axis if tensor.quantization and tensor.quantization.is_per_channel else 0,
        )
        for tensor in model.main.tensors
        if tensor.is_constant and tensor.index in read
    )


def operators(data: bytes) -> tuple[list[str], dict[str, int]]:
    """The names, and the highest version of each: TensorFlow writes that into every operator of the name."""
    found = Model(data).main.operators
    versions: dict[str, int] = {}
    for operator in found:
        versions[operator.name] = max(operator.version, versions.get(operator.name, 0))
    return sorted(operator.name for operator in found), versions


@pytest.mark.parametrize("name", WEIGHT_MODELS)
def test_float16_is_what_tensorflow_makes(name: str) -> None:
    theirs = by_tensorflow(name, "float16")
    ours = models.float_model(name).quantize("float16").data
    if "lstm" not in name:  # TensorFlow stores the state's zeros as float16 too
        assert constants(ours) == constants(theirs)
        assert operators(ours) == operators(theirs)
    check_edit_keeps_outputs(theirs, ours, models.samples(name, 2))
    check_edit_keeps_outputs(theirs, ours, models.samples(name, 2), "builtin")


def test_float16_weights_folded_give_the_same_outputs() -> None:
    half = Model(models.float_model("weighty").quantize("float16").data)
    folded = edit.fold_float16(half)
    check_edit_keeps_outputs(half.data, folded, models.samples("weighty", 2))
    view = Model(folded)
    assert not any(tensor.dtype == np.float16 and tensor.is_constant for tensor in view.main.tensors)
    assert "DEQUANTIZE" not in [operator.name for operator in view.main.operators]
    original = models.float_model("weighty").model
    assert [operator.name for operator in view.main.operators] == [operator.name for operator in original.main.operators]
    for operator, source in zip(view.main.operators, original.main.operators, strict=True):
        for index, source_index in zip(operator.inputs, source.inputs, strict=True):
            if source_index >= 0 and original.main.tensors[source_index].is_constant:
                values = original.constant(original.main.tensors[source_index])
                wanted = values.astype(np.float16).astype(np.float32) if values.dtype == np.float32 else values
                np.testing.assert_array_equal(view.constant(view.main.tensors[index]), wanted)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", WEIGHT_MODELS)
def test_dynamic_range_is_what_tensorflow_makes(name: str, per_channel: bool) -> None:
    if (name, per_channel) == ("long_lstm", False):
        return  # never per channel, and slow to convert
    theirs = by_tensorflow(name, "dynamic_range", per_channel)
    ours = models.float_model(name).quantize("dynamic_range", per_channel=per_channel).data
    if (name, per_channel) == ("embedding", False):  # TensorFlow lets the dense layer dequantize the table for itself
        assert {kind for kind, *_ in constants(ours)} == {kind for kind, *_ in constants(theirs)}
    else:
        assert constants(ours) == constants(theirs)
        assert operators(ours) == operators(theirs)
    if (name, per_channel) == ("weighty", False):
        return  # the hybrid DEPTHWISE_CONV_2D with one scale reads scales that are not there: garbage in TensorFlow 2.21
    # The reference kernels have no BATCH_MATMUL of version 4.
    for kernels in ("builtin",) if name == "constant_product" else ("builtin", "reference"):
        check_edit_keeps_outputs(theirs, ours, models.samples(name, 2), kernels)
    if name in ("weighty", "embedding", "constant_product", "odd_channels", "long_lstm"):
        assert "int8" in {kind for kind, *_ in constants(ours)}
        assert len(ours) < 0.6 * len(models.float_tflite(name))


def test_integers_of_weights_by_hand() -> None:
    """Channel 40 of the dense layer has scale 1 and ties; channel 0 is zero."""
    ours = Model(models.float_model("odd_channels").quantize("dynamic_range").data)
    tensor = next(tensor for tensor in ours.main.tensors if tensor.dtype == np.int8)
    weights = models.keras_model("odd_channels").get_weights()[0].T  # (out, in)
    magnitude = np.maximum(np.abs(weights).max(axis=1).astype(np.float64), 5e-7)
    np.testing.assert_allclose(tensor.quantization.scale, magnitude / 127, rtol=1e-6)
    exact = weights[40].astype(np.float64)
    assert np.count_nonzero(np.abs(exact * 2 % 2) == 1) > 5, "there must be ties"
    np.testing.assert_array_equal(ours.constant(tensor)[40], np.sign(exact) * np.floor(np.abs(exact) + 0.5))
    assert not ours.constant(tensor)[0].any()


# ------------------------------------------------------------------------------------------------------------- pairs


def quantized_pair(name: str, kind: str) -> tuple[Model, Model]:
    made = calibrated(name)
    return Model(made.float_model.data), Model(made.quantize(kind).data)


def spoiled(model: Model, op_name: str) -> tuple[bytes, int]:
    """Turns the sign of a fifth of the weights of the first operator of a type; returns which one it was."""
    operator = next(operator for operator in model.main.operators if operator.name == op_name)
    source = operator.inputs[1]
    if not model.main.tensors[source].is_constant:  # float16, behind a DEQUANTIZE
        source = model.main.producers[source].inputs[0]
    unpacked = flatbuffer.unpack(model)
    values = model.constant(model.main.tensors[source]).copy()
    flat = values.reshape(-1)
    flat[::5] = -flat[::5]
    unpacked.buffers[model.main.tensors[source].buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    return flatbuffer.pack(unpacked), operator.index


@pytest.mark.parametrize("op_name", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
@pytest.mark.parametrize("kind", ["int16x8", "dynamic_range", "float16", "int8"])
def test_a_planted_error_is_found_in_its_layer_and_only_there(kind: str, op_name: str) -> None:
    floating, quantized = quantized_pair("weighty", kind)
    broken, operator = spoiled(quantized, op_name)
    samples = models.samples("weighty", 3, seed=5)
    healthy = run_of(edit.debug_pair(floating, quantized), samples)
    ill = run_of(edit.debug_pair(floating, Model(broken)), samples)
    worst = ill.worst("sqnr_db")
    assert ill.layers[worst[0]].operator == operator
    assert ill.statistics.sqnr_db[worst[0]] < 15.0
    for position, layer in enumerate(ill.layers):
        if layer.operator < operator:  # before the fault nothing changes, behind it values may leave the calibrated range
            assert ill.statistics.sqnr_db[position] == healthy.statistics.sqnr_db[position]
        elif layer.operator > operator:
            assert ill.statistics.sqnr_db[position] > ill.statistics.sqnr_db[worst[0]] + 5.0
    assert healthy.statistics.sqnr_db.min() > 20.0


@pytest.mark.parametrize("kind", ["int16x8", "dynamic_range", "float16", "int8"])
def test_the_error_of_a_dense_layer_by_hand(kind: str) -> None:
    """Its own error: float weights times the input that its quantized twin reads, against what the twin gives."""
    floating, quantized = quantized_pair("weighty", kind)
    pair = edit.debug_pair(floating, quantized)
    samples = models.samples("weighty", 3, seed=6)
    run = run_of(pair, samples)
    dense = [position for position, layer in enumerate(pair.layers) if layer.op_name == "FULLY_CONNECTED"]
    assert len(dense) == (1 if kind == "dynamic_range" else 2)  # dynamic range leaves 300 weights in float
    weights = {weights.shape: weights for weights in models.keras_model("weighty").get_weights() if weights.ndim == 2}
    biases = {weights.shape[0]: weights for weights in models.keras_model("weighty").get_weights() if weights.ndim == 1}
    for position in dense:
        layer = pair.layers[position]
        source = quantized.main.operators[layer.operator].inputs[0]
        errors = []
        for inputs in samples:
            interpreter = models.run(quantized.data, inputs)
            read, written = (
                real(quantized.main.tensors[index], interpreter.get_tensor(index)) for index in (source, layer.tensor_idx)
            )
            size = written.shape[-1]
            expected = read @ weights[(read.shape[-1], size)].astype(np.float64) + biases[size]
            errors.append(written - (np.maximum(expected, 0) if size == 100 else expected))
        errors = np.concatenate([error.reshape(-1) for error in errors])
        signal = np.abs(written).max()
        assert run.statistics.rmse[position] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-3, abs=1e-6 * signal)
        assert run.statistics.bias[position] == pytest.approx(errors.mean(), rel=1e-2, abs=1e-6 * signal)
        assert run.statistics.max_abs_error[position] == pytest.approx(np.abs(errors).max(), rel=1e-3, abs=1e-6 * signal)


def real(tensor: Any, values: np.ndarray) -> np.ndarray:
    if tensor.quantization is None:
        return values.astype(np.float64)
    return (values.astype(np.float64) - int(tensor.quantization.zero_point[0])) * float(tensor.quantization.scale[0])


@pytest.mark.parametrize("kind", ["int16x8", "dynamic_range", "float16"])
def test_a_whole_model_pair_holds_the_float_model(kind: str) -> None:
    floating, quantized = quantized_pair("weighty", kind)
    pair = edit.debug_pair(floating, quantized, whole_model=True)
    inputs = models.samples("weighty", 1, seed=7)[0]
    ours = models.run(pair.data, inputs, preserve=False)
    theirs = models.run(floating.data, inputs)
    names = {tensor.name: tensor.index for tensor in floating.main.tensors}
    assert len(pair.layers) >= 5
    for layer in pair.layers:
        np.testing.assert_array_equal(ours.get_tensor(layer.float_idx), theirs.get_tensor(names[layer.node]))
    check_edit_keeps_outputs(quantized.data, pair.data, [inputs])


@pytest.mark.parametrize("name", ["embedding", "long_lstm"])
def test_weights_in_tables_and_recurrent_layers_are_compared(name: str) -> None:
    floating = models.float_model(name)
    pair = edit.debug_pair(floating.model, Model(floating.quantize("dynamic_range").data))
    run = run_of(pair, models.samples(name, 3))
    wanted = {"embedding": "GATHER", "long_lstm": "UNIDIRECTIONAL_SEQUENCE_LSTM"}[name]
    position = [layer.op_name for layer in pair.layers].index(wanted)
    assert 25.0 < run.statistics.sqnr_db[position] < 60.0
    if name == "embedding":
        assert run.statistics.rmse[position] / pair.layers[position].scale == pytest.approx(1 / np.sqrt(12), rel=0.3)


def test_two_equal_models_have_nothing_to_compare() -> None:
    model = Model(models.float_tflite("mixed"))
    with pytest.raises(ModelError, match="nothing to compare"):
        edit.debug_pair(model, model)
