"""16-bit activations: sums worked out with numpy, models that must stay as they are, planted faults."""

from __future__ import annotations

import functools
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import converter_of, fixed, normal, spec
from debugger_models import weights as drawn
from shared_data import samples as real_samples

from tflite_qdebug import edit, example, tf_private
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.edit.hard_swish import unfold_hard_swish
from tflite_qdebug.edit.mixed import FLOAT, NODE, MixedModels
from tflite_qdebug.edit.mixed16 import Int16Models
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.match import match_models
from tflite_qdebug.model import Model
from tflite_qdebug.remedies.int16 import Int16Model, int16_model, with_int16_nodes

Samples = list[list[np.ndarray]]
SMALL = ("mixed", "chain", "two_by_two", "shared_weights", "attention", "weighty", "dynamic_batch")


@functools.cache
def calibrated(name: str) -> CalibratedModel:
    return models.calibrated(name)


@functools.cache
def int8(name: str) -> bytes:
    return calibrated(name).quantize("int8").data


@functools.cache
def whole(name: str) -> Int16Model:
    return int16_model(calibrated(name))


def calibrated_function(function: Any, specs: Any, samples: Any) -> CalibratedModel:
    with tf_private.captured_chatter():
        return load_float_model(converter_of(function, specs, samples)).calibrate(samples, progress=False)


def nodes_of(model: bytes) -> list[str]:
    """Returns the operators that are no bridges, each with the types of what it computes."""
    main = Model(model).main
    return [
        f"{op.name} {main.tensors[op.outputs[0]].dtype}" for op in main.operators if op.name not in ("QUANTIZE", "DEQUANTIZE")
    ]


def node_names(name: str) -> list[str]:
    main = calibrated(name).model.main
    return [main.tensors[op.outputs[0]].name for op in main.operators]


def noise(model: bytes, floats: bytes, samples: Samples) -> float:
    """Returns the mean square error of a model's first output against the float model."""
    errors = [models.outputs(model, s, "builtin")[0] - models.outputs(floats, s, "builtin")[0] for s in samples]
    return float(np.mean(np.square(errors)))


# -- the arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op_name", ["CONV_2D", "FULLY_CONNECTED"])
def test_a_sum_worked_out_with_numpy(op_name: str) -> None:
    data = with_int16_nodes(calibrated("chain"), [], quantized_model=int8("chain"), op_types=[op_name]).data
    model = Model(data)
    chosen = next(op for op in model.main.operators if op.name == op_name)
    interpreter = models.run(data, models.samples("chain", 1, seed=5)[0], "builtin")
    read, weights, bias, written = (model.main.tensors[index] for index in (*chosen.inputs, *chosen.outputs))
    assert [str(tensor.dtype) for tensor in (read, weights, bias, written)] == ["int16", "int8", "int64", "int16"]
    for tensor in (read, written):
        assert tensor.quantization is not None
        assert tensor.quantization.zero_point.tolist() == [0]
    values = interpreter.get_tensor(read.index).astype(np.int64)
    kernel = model.constant(weights).astype(np.int64)
    if op_name == "CONV_2D":
        height, width = kernel.shape[1:3]
        patches = np.lib.stride_tricks.sliding_window_view(values[0], (height, width), axis=(0, 1))
        sums = np.einsum("xychw,ohwc->xyo", patches, kernel)[None]
    else:
        sums = values.reshape(1, -1) @ kernel.T
    sums = sums + model.constant(bias)
    scale = read.quantization.scale * weights.quantization.scale / written.quantization.scale  # type: ignore[union-attr]
    expected = np.clip(np.round(sums * scale.astype(np.float64)), -32768, 32767)
    got = interpreter.get_tensor(written.index)
    # The kernel multiplies with 15 bits of the scale, and rounds twice.
    assert np.abs(got - expected).max() <= max(1, np.abs(expected).max() / 2**14)
    assert np.abs(expected).max() > 1000


def test_the_error_of_activations_is_about_256_times_smaller() -> None:
    samples = normal((1, 64), (1, 64), count=16)
    made = calibrated_function(lambda x, y: x + y * x, [spec(1, 64), spec(1, 64, name="y")], samples)
    floats, tested = made.float_model.data, list(samples())  # type: ignore[union-attr]
    eight, sixteen = noise(made.quantize("int8").data, floats, tested), noise(int16_model(made).data, floats, tested)
    # Both ends are symmetric, so that int8 uses 255 steps where int16 uses 65534.
    assert 180 < np.sqrt(eight / sixteen) < 340


def test_ranges_are_those_that_were_given() -> None:
    name = node_names("chain")[0]
    made = with_int16_nodes(calibrated("chain"), [name], ranges={name: (-3.0, 50.0)}, quantized_model=int8("chain"))
    tensors = [tensor for tensor in Model(made.data).main.tensors if tensor.dtype == np.int16]
    scales = [float(tensor.quantization.scale[0]) for tensor in tensors if tensor.quantization is not None]
    assert np.float32(50 / 32767) in np.array(scales, np.float32)


def test_what_int8_can_stand_for_is_not_cut_off() -> None:
    # The node reads int8 values whose range was chosen four times as wide as what was calibrated.
    first, second = node_names("chain")[:2]
    low, high = next((t.minimum, t.maximum) for t in calibrated("chain").model.main.tensors if t.name == first)
    wide = planted("chain", first, 4.0)
    made = Model(with_int16_nodes(calibrated("chain"), [second], quantized_model=wide.quantize("int8").data).data)
    chosen = next(
        op for op in made.main.operators if made.main.tensors[op.outputs[0]].dtype == np.int16 and op.name == "CONV_2D"
    )
    scale = made.main.tensors[chosen.inputs[0]].quantization.scale[0]  # type: ignore[union-attr]
    assert low is not None
    assert high is not None
    assert scale * 32767 >= 4 * max(-low, high) * 0.999


# -- the int8 nodes stay what they are -------------------------------------------------------------------------------------


def described(model: Model, index: int) -> Any:
    """Returns what an operator is, with its constants, and the scales and the names of what it reads and writes."""
    operator, main = model.main.operators[index], model.main
    row = edit.flatbuffer.unpack(model).subgraphs[0].operators[index]
    options = row.builtinOptions
    told = [] if options is None else sorted((name, str(value)) for name, value in vars(options).items())
    seen = []
    for place in (*operator.inputs, *operator.outputs):
        if place >= 0:
            tensor = main.tensors[place]
            scale = (
                None
                if tensor.quantization is None
                else (tensor.quantization.scale.tolist(), tensor.quantization.zero_point.tolist())
            )
            values = model.constant(tensor).tobytes() if tensor.is_constant else b""
            seen.append((tensor.name, tensor.shape, str(tensor.dtype), scale, values))
    return operator.name, told, seen


@pytest.mark.parametrize("name", SMALL)
def test_the_other_nodes_are_the_int8_models_bit_for_bit(name: str) -> None:
    before = Model(int8(name))
    candidates = [name_ for name_ in node_names(name) if name_ in whole(name).int16_nodes]
    for chosen in candidates:
        made = with_int16_nodes(calibrated(name), [chosen], quantized_model=int8(name))
        assert made.int16_nodes == (chosen,)
        after = Model(made.data)
        kept = [described(after, op.index) for op in after.main.operators if op.name not in edit.BRIDGES]
        own = [described(before, op.index) for op in before.main.operators if op.name not in edit.BRIDGES]
        missing = [row for row in own if row not in kept]
        assert len(missing) == 1
        assert len(kept) == len(own)
        # And what is not a copy of the int8 model's own is the one chosen.
        (new,) = [row for row in kept if row not in own]
        assert new[0] == missing[0][0]
        assert new[2][-1][2] == "int16"
        assert after.input_specs() == before.input_specs()


def test_values_before_and_after_a_16_bit_node() -> None:
    # Values before it are the int8 model's; those behind it are what the int8 model computes of the same integers.
    names = node_names("chain")
    made, before = (
        Model(with_int16_nodes(calibrated("chain"), [names[1]], quantized_model=int8("chain")).data),
        Model(int8("chain")),
    )
    sample = models.samples("chain", 1, seed=7)[0]
    ours, theirs = models.run(made.data, sample, "builtin"), models.run(before.data, sample, "builtin")

    def value(model: Model, interpreter: Any, name: str) -> np.ndarray:
        tensor = next(t for t in model.main.tensors if t.name == name and t.dtype == np.int8 and not t.is_constant)
        return interpreter.get_tensor(tensor.index)

    np.testing.assert_array_equal(value(made, ours, names[0]), value(before, theirs, names[0]))
    # Both have computed the same sums, rounded once, and once more by the way of 16 bits.
    difference = value(made, ours, names[1]).astype(int) - value(before, theirs, names[1])
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", SMALL)
def test_all_nodes_chosen_are_the_whole_16x8_model(name: str) -> None:
    made = with_int16_nodes(calibrated(name), whole(name).int16_nodes, quantized_model=int8(name))
    assert not made.left
    assert not any("int8" in entry for entry in nodes_of(made.data))
    for sample in models.samples(name, 2, seed=4):
        for ours, theirs in zip(models.outputs(made.data, sample), models.outputs(whole(name).data, sample), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_node_chosen_is_the_int8_model_and_bytes_repeat() -> None:
    assert with_int16_nodes(calibrated("mixed"), [], quantized_model=int8("mixed")).data == int8("mixed")
    chosen = whole("mixed").int16_nodes[1:4]
    first, second = (with_int16_nodes(calibrated("mixed"), chosen, quantized_model=int8("mixed")).data for _ in range(2))
    assert first == second
    assert with_int16_nodes(calibrated("mixed"), chosen).data == first  # TensorFlow's int8 model by default
    assert with_int16_nodes(calibrated("mixed"), reversed(chosen)).data == first


def test_a_model_put_together_serves_again_and_again() -> None:
    floats = calibrated("mixed").float_model
    assert floats is not None
    quantized = Model(int8("mixed"))
    narrow = MixedModels(floats.model, quantized, match_models(floats.model, quantized))
    before = narrow.build(lambda node: NODE).data
    for chosen in whole("mixed").int16_nodes[:3]:
        with_reused = with_int16_nodes(calibrated("mixed"), [chosen], narrow=narrow).data
        assert with_reused == with_int16_nodes(calibrated("mixed"), [chosen], quantized_model=int8("mixed")).data
    assert narrow.build(lambda node: NODE).data == before


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_other_kernels_compute_the_same(kernels: str) -> None:
    from tflite_qdebug.collect import Backend

    made = with_int16_nodes(calibrated("mixed"), whole("mixed").int16_nodes[2:6], quantized_model=int8("mixed"))
    sample = models.samples("mixed", 1, seed=2)[0]
    interpreter = Backend(kernels=kernels, workers=1, isolate=False).open(made.data)
    interpreter.invoke(sample)
    output = Model(made.data).main.outputs[0]
    np.testing.assert_allclose(interpreter.view(output), models.outputs(made.data, sample, "builtin")[0], atol=0.01)


@pytest.mark.parametrize("ends", ["int8", "uint8"])
def test_inputs_and_outputs_keep_their_type(ends: str) -> None:
    quantized = calibrated("chain").quantize("full_integer", input_type=ends, output_type=ends).data
    names = node_names("chain")
    for chosen in ([names[0]], [names[-1]], names):
        made = Model(with_int16_nodes(calibrated("chain"), chosen, quantized_model=quantized).data)
        assert {str(made.main.tensors[index].dtype) for index in (*made.main.inputs, *made.main.outputs)} == {ends}
        read = made.main.tensors[made.main.inputs[0]]
        assert read.quantization is not None
        sample = [read.quantization.quantize(models.samples("chain", 1)[0][0], read.dtype)]  # one that was calibrated
        ours, theirs = (models.outputs(data, sample, "builtin")[0].astype(int) for data in (made.data, quantized))
        assert np.abs(ours - theirs).max() <= 6


def test_a_float_node_gives_and_takes_values_that_are_not_rounded_to_8_bits() -> None:
    first, second = node_names("chain")[:2]
    floats = calibrated("chain").float_model
    assert floats is not None
    quantized = Model(int8("chain"))
    mixed = MixedModels(floats.model, quantized, match_models(floats.model, quantized))
    partly = mixed.build(lambda node: FLOAT if node.name == first else NODE).data
    made = Model(with_int16_nodes(calibrated("chain"), [second], quantized_model=partly).data)
    chosen = next(
        op for op in made.main.operators if made.main.tensors[op.outputs[0]].dtype == np.int16 and op.name == "CONV_2D"
    )
    fed = made.main.producers[chosen.inputs[0]]
    assert fed.name == "QUANTIZE"
    assert made.main.tensors[fed.inputs[0]].is_float
    assert made.main.producers[fed.inputs[0]].name == "CONV_2D"


# -- what it repairs -------------------------------------------------------------------------------------------------------


def planted(name: str, tensor: str, factor: float) -> CalibratedModel:
    """Returns a calibrated model in which the range of one tensor is too wide."""
    good = calibrated(name)
    index = next(t.index for t in good.model.main.tensors if t.name == tensor)
    before = good.model.main.tensors[index]
    assert before.minimum is not None
    assert before.maximum is not None
    ranges = {index: (factor * before.minimum, factor * before.maximum)}
    return CalibratedModel(good.float_model, edit.with_ranges(good.model, ranges))


def test_a_range_100_times_too_wide_is_repaired() -> None:
    name, first = "chain", node_names("chain")[0]
    floats = calibrated(name).float_model
    assert floats is not None
    samples = models.samples(name, 4)  # some that were calibrated: nothing else is cut off
    bad = planted(name, first, 100.0)
    broken = bad.quantize("int8").data
    good, before = noise(int8(name), floats.data, samples), noise(broken, floats.data, samples)
    assert before > 100 * good
    made = with_int16_nodes(bad, [first], quantized_model=broken, readers=True)
    assert made.int16_nodes == tuple(node_names(name)[:2])
    assert noise(made.data, floats.data, samples) < 1.5 * good
    # The node alone: the one that reads its values rounds them to the same 8 bits, and that is said.
    alone = with_int16_nodes(bad, [node_names(name)[1]], quantized_model=broken)
    assert noise(alone.data, floats.data, samples) > 10 * good
    assert repr(node_names(name)[1]) in alone.notes[-1]
    assert "readers=True" in alone.notes[-1]
    assert not made.notes


def test_the_last_node_is_repaired_by_itself() -> None:
    name, last = "chain", node_names("chain")[-1]
    floats = calibrated(name).float_model
    assert floats is not None
    samples = models.samples(name, 4)  # some that were calibrated: nothing else is cut off
    bad = planted(name, last, 100.0)
    broken = bad.quantize("int8").data
    made = with_int16_nodes(bad, [last], quantized_model=broken)
    good = noise(int8(name), floats.data, samples)
    assert noise(broken, floats.data, samples) > 50 * good
    assert noise(made.data, floats.data, samples) < 1.5 * good
    assert not made.notes


# -- what has no 16-bit form -----------------------------------------------------------------------------------------------


def test_an_operator_without_16_bit_kernel_is_named_and_stays() -> None:
    main = calibrated("with_cosine").model.main
    cosine = next(main.tensors[op.outputs[0]].name for op in main.operators if op.name == "COS")
    made = with_int16_nodes(calibrated("with_cosine"), [cosine], quantized_model=int8("with_cosine"))
    assert made.data == int8("with_cosine")
    (left,) = made.left
    assert (left.node, left.op_name) == (cosine, "COS")
    assert "no COS with 16-bit activations" in left.reason
    assert [node.op_name for node in int16_model(calibrated("with_cosine")).left] == ["COS"]


def test_an_index_is_no_real_number() -> None:
    samples = normal((1, 8))
    made = calibrated_function(lambda x: (tf.argmax(tf.matmul(x, drawn(8, 8)), -1), tf.tanh(x)), [spec(1, 8)], samples)
    name = next(made.model.main.tensors[op.outputs[0]].name for op in made.model.main.operators if op.name == "ARG_MAX")
    result = with_int16_nodes(made, [name])
    assert not result.int16_nodes
    assert result.left[0].op_name == "ARG_MAX"


def test_hard_swish_is_unfolded() -> None:
    samples = normal((1, 6, 6, 4), scale=3.0)
    kernel = drawn(3, 3, 4, 4)

    def function(x: Any) -> Any:
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.nn.conv2d(y * tf.nn.relu6(y + 3.0) * (1 / 6), kernel, 1, "SAME")

    made = calibrated_function(function, [spec(1, 6, 6, 4)], samples)
    assert "HARD_SWISH" in [op.name for op in made.model.main.operators]
    assert made.float_model is not None
    unfolded, ranges = unfold_hard_swish(made.float_model.model)
    assert sorted(op.name for op in Model(unfolded).main.operators) == ["ADD", "CONV_2D", "CONV_2D", "MUL", "MUL"]
    assert sorted(ranges.values()) == [(0.0, 1.0), (0.0, 6.0)]
    for sample in samples():
        np.testing.assert_allclose(
            models.outputs(unfolded, sample)[0], models.outputs(made.float_model.data, sample)[0], rtol=1e-5, atol=1e-5
        )
    result = int16_model(made)
    assert not result.left
    assert not any("float" in entry for entry in nodes_of(result.data))
    name = next(made.model.main.tensors[op.outputs[0]].name for op in made.model.main.operators if op.name == "HARD_SWISH")
    mixed = with_int16_nodes(made, [name], readers=True)
    assert nodes_of(mixed.data) == ["CONV_2D int8", "ADD int16", "MUL int16", "MUL int16", "CONV_2D int16"]
    tested = list(samples())
    assert noise(mixed.data, made.float_model.data, tested) < noise(made.quantize("int8").data, made.float_model.data, tested)
    assert unfold_hard_swish(Model(models.float_tflite("chain"))) == (models.float_tflite("chain"), {})


def test_values_that_are_always_zero_get_a_range_that_kernels_take() -> None:
    kernel = -tf.abs(drawn(4, 4))
    samples = fixed([[[1.0, 2.0, 0.5, 3.0]]], [[[0.1, 2.0, 1.5, 0.3]]])
    made = calibrated_function(lambda x: tf.matmul(tf.nn.relu(tf.matmul(x, kernel)), drawn(4, 4)) + x, [spec(1, 4)], samples)
    dead = [t.name for t in made.model.main.tensors if t.maximum is not None and t.maximum < 1e-30]
    assert dead
    result = int16_model(made)
    assert any("zero in all samples" in note and "0.0001" in note for note in result.notes)
    for sample in samples():
        np.testing.assert_allclose(models.outputs(result.data, sample, "builtin")[0], sample[0], atol=1e-3)


def test_a_loop_has_no_16_bit_form() -> None:
    floats, quantized = Model(control_flow_models.loop()), Model(control_flow_models.quantized("loop"))
    narrow = MixedModels(floats, quantized, match_models(floats, quantized))
    reasons = {node.op_name: Int16Models(narrow, narrow).reason(node) for node in narrow.nodes}
    assert reasons["WHILE"]


# -- wrong arguments -------------------------------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    name = node_names("chain")[0]
    with pytest.raises(OptionError, match=r"got node 'first_/convolution'.*Did you mean"):
        with_int16_nodes(calibrated("chain"), ["first_/convolution"])
    with pytest.raises(OptionError, match=r"got operator type 'CONV2D'.*Did you mean 'CONV_2D'"):
        with_int16_nodes(calibrated("chain"), [], op_types=["CONV2D"])
    with pytest.raises(OptionError, match="expected a list of names"):
        with_int16_nodes(calibrated("chain"), name)
    with pytest.raises(OptionError, match="got a range for 'nothing', expected an activation"):
        int16_model(calibrated("chain"), ranges={"nothing": (0, 1)})
    for wrong in ((1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(OptionError, match="the lesser first"):
            int16_model(calibrated("chain"), ranges={name: wrong})
    with pytest.raises(OptionError, match=r"got no range for .* and .* more activations"):
        int16_model(models.float_tflite("chain"))


def test_a_dataset_or_all_ranges_serve_as_well_as_a_calibrated_model() -> None:
    floats = calibrated("chain").float_model
    assert floats is not None
    ranges = {t.name: (t.minimum, t.maximum) for t in calibrated("chain").model.main.tensors if t.minimum is not None}
    by_ranges = int16_model(floats, ranges=ranges).data  # type: ignore[arg-type]
    assert by_ranges == whole("chain").data
    by_samples = int16_model(floats, representative_dataset=models.dataset("chain", models.COUNT)).data
    for sample in models.samples("chain", 2, seed=1):
        ours, theirs = (models.outputs(data, sample)[0] for data in (by_samples, by_ranges))
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


def test_models_of_other_float_models_and_refused_nodes() -> None:
    floats, other = calibrated("chain").float_model, calibrated("mixed").float_model
    assert floats is not None
    assert other is not None
    pairs = [
        MixedModels(f.model, Model(int8(n)), match_models(f.model, Model(int8(n))))
        for n, f in (("chain", floats), ("mixed", other))
    ]
    with pytest.raises(ModelError, match="expected one and the same"):
        Int16Models(*pairs)
    eight = Int16Models(pairs[0], pairs[0])  # an int8 model has no node in 16 bits
    with pytest.raises(ModelError, match="cannot be computed with 16-bit activations"):
        eight.build([pairs[0].nodes[0]])


# -- the built-in and the real models --------------------------------------------------------------------------------------


def test_the_built_in_model() -> None:
    made = load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset, "exposed", progress=False)
    samples = [inputs for inputs, _ in zip(example.debug_dataset(), range(5), strict=False)]
    assert made.float_model is not None
    result = int16_model(made)
    eight = made.quantize("int8").data
    errors = [noise(model, made.float_model.data, samples) for model in (result.data, eight)]
    assert errors[0] < errors[1] / 2  # the rest is the weights'
    half = with_int16_nodes(made, result.int16_nodes[: len(result.int16_nodes) // 2], quantized_model=eight)
    assert len(Model(half.data).main.operators) > len(Model(eight).main.operators)
    assert noise(half.data, made.float_model.data, samples) < 2 * errors[1]


@pytest.mark.parametrize("name", ["mobilenetv3_small/mobilenet_v3_small_float", "super_resolution/fsrcnn_x2_float",
                                  "keyword_spotting/kws_ref_float"])  # fmt: skip
def test_real_models(shared_models: Any, name: str) -> None:
    made = load_float_model(shared_models / f"{name}.tflite").calibrate(
        lambda: iter(real_samples(name, 4)), "exposed", histograms=False, progress=False
    )
    result, eight = int16_model(made), made.quantize("int8").data
    # Where there is no kernel: DEPTH_TO_SPACE of FSRCNN.
    assert {node.op_name for node in result.left} <= {"DEPTH_TO_SPACE"}
    mixed = with_int16_nodes(made, result.int16_nodes, quantized_model=eight)
    floats, samples = made.float_model, real_samples(name, 2)
    assert floats is not None
    bad, whole_error, good = (noise(model, floats.data, samples) for model in (eight, result.data, mixed.data))
    assert whole_error < bad
    assert good < bad
