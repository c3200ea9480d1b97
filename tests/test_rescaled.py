"""New ranges in a quantized model against TensorFlow's quantizer, which makes the same model from the same ranges."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
import shared_data

from tflite_qdebug import edit, example, tf_private
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.edit.rescaled import (
    RangeSlot,
    Rescaler,
    matched_biases,
    range_slots,
    ranges_by_tensor,
    rescale,
    scale_of_range,
    slots_by_name,
)
from tflite_qdebug.errors import OptionError
from tflite_qdebug.match import match_models
from tflite_qdebug.model import Model


@functools.cache
def example_calibrated() -> Model:
    return load_float_model(example.float_model()).calibrate(example.representative_dataset(), "exposed").model


def quantized(calibrated: Model, kind: str = "int8", **options: Any) -> Model:
    return Model(CalibratedModel(None, calibrated.data).quantize(kind, **options).data)


def other_ranges(calibrated: Model, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Returns for each activation 0.3 to 1.1 times what either end was."""
    generator, names = np.random.default_rng(seed), [tensor.name for tensor in calibrated.main.tensors]
    found = {}
    for tensor in calibrated.main.tensors:
        if tensor.minimum is not None and tensor.maximum is not None and names.count(tensor.name) == 1:
            low, high = tensor.minimum * generator.uniform(0.3, 1.1), tensor.maximum * generator.uniform(0.3, 1.1)
            found[tensor.name] = (min(low, high), max(low, high))
    return found


def both(calibrated: Model, kind: str = "int8", **options: Any) -> tuple[bytes, bytes]:
    """Returns the quantized model with other ranges: ours, and what TensorFlow makes of the float model with these."""
    before = quantized(calibrated, kind, **options)
    match, ranges = match_models(calibrated, before), other_ranges(calibrated)
    rescaler = Rescaler(before, matched_biases(calibrated, before, match))
    ours = rescaler.apply(ranges_by_tensor(calibrated, before, match, rescaler.slots, ranges))
    index = {tensor.name: tensor.index for tensor in calibrated.main.tensors}
    theirs = edit.with_ranges(calibrated, {index[name]: ends for name, ends in ranges.items()})
    assert ours != before.data
    return ours, quantized(Model(theirs), kind, **options).data


def check_same_tensors(ours: bytes, theirs: bytes) -> None:
    first, second = Model(ours), Model(theirs)
    assert len(first.main.tensors) == len(second.main.tensors)
    for mine, other in zip(first.main.tensors, second.main.tensors, strict=True):
        assert (mine.name, mine.quantization) == (other.name, other.quantization)
        if mine.is_constant:
            np.testing.assert_array_equal(first.constant(mine), second.constant(other))


# --------------------------------------------------------------------------------------------- against TensorFlow


SMALL = ("mixed", "chain", "two_by_two", "shared_weights", "dynamic_batch", "weighty", "attention", "constant_product",
         "with_cosine", "odd_channels")  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_rescaled_model_is_tensorflows_byte_for_byte(name: str) -> None:
    ours, theirs = both(models.calibrated(name).model)
    assert ours == theirs


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"kind": "full_integer"},
                                     {"kind": "full_integer", "input_type": "uint8", "output_type": "uint8"}])  # fmt: skip
def test_the_example_is_tensorflows_byte_for_byte(options: dict[str, Any]) -> None:
    ours, theirs = both(example_calibrated(), **options)
    assert ours == theirs


@pytest.mark.parametrize("name", ["mixed", "chain", "two_by_two", "weighty"])
def test_16_bit_activations_are_those_of_tensorflow(name: str) -> None:
    check_same_tensors(*both(models.calibrated(name).model, "int16x8"))


def test_super_resolution_is_tensorflows_byte_for_byte(shared_models: Path) -> None:
    name = "super_resolution/fsrcnn_x2_float"
    samples = shared_data.samples(name)
    float_model = load_float_model(shared_models / f"{name}.tflite")
    ours, theirs = both(float_model.calibrate(lambda: iter(samples), "exposed").model)
    assert ours == theirs


def test_mobilenet_is_tensorflows_but_for_channels_at_the_limit_of_biases(shared_models: Path) -> None:
    name = "mobilenetv3_small/mobilenet_v3_small_float"
    samples = shared_data.samples(name)
    calibrated = load_float_model(shared_models / f"{name}.tflite").calibrate(lambda: iter(samples), "exposed").model
    ours, theirs = (Model(data) for data in both(calibrated))
    compared = 0
    for mine, other in zip(ours.main.tensors, theirs.main.tensors, strict=True):
        assert mine.name == other.name
        if mine.is_quantized and not mine.is_constant:
            assert mine.quantization == other.quantization
        if mine.dtype == np.int32 and mine.is_constant and mine.quantization is not None and other.quantization is not None:
            # There the quantizer makes the weights coarser, from the float weights; ours come from the quantized ones.
            fits = np.abs(ours.constant(mine)) < 2**29
            np.testing.assert_array_equal(ours.constant(mine)[fits], theirs.constant(other)[fits])
            np.testing.assert_array_equal(mine.quantization.scale[fits], other.quantization.scale[fits])
            np.testing.assert_allclose(mine.quantization.scale, other.quantization.scale, rtol=1e-6)
            compared += int(fits.sum())
    assert compared > 5000


def joined_twice() -> Any:
    """One value that two CONCATENATION read, beside others."""
    vector = keras.Input((6,), batch_size=1, name="vector")
    once, left, right = (keras.layers.Dense(4, use_bias=False, name=name)(vector) for name in ("once", "left", "right"))
    return keras.Model(vector, [keras.ops.concatenate([once, other], axis=1) for other in (left, right)])


def test_the_quantizer_inserts_operators_where_ranges_part_and_rescaling_does_not() -> None:
    model = joined_twice()
    generator = np.random.default_rng(0)  # one for all: what is equal is computed once
    model.set_weights([generator.normal(size=weights.shape).astype(np.float32) for weights in model.get_weights()])
    float_model = load_float_model(model)
    written = {operator.outputs[0]: operator.name for operator in float_model.model.main.operators}
    computed = dict.fromkeys((*float_model.model.main.inputs, *written), (-4.0, 4.0))
    same = quantized(Model(edit.with_ranges(float_model.model, computed)))
    joined = [i for i, name in written.items() if name == "CONCATENATION"]
    assert len(joined) == 2
    wider = quantized(Model(edit.with_ranges(float_model.model, {**computed, joined[0]: (-8.0, 8.0)})))
    count = [sum(operator.name == "QUANTIZE" for operator in one.main.operators) for one in (same, wider)]
    assert count[1] > count[0]
    # In the first model both are one slot, and cannot part; in the second they are two.
    outputs = [[i for op in one.main.operators if op.name == "CONCATENATION" for i in op.outputs] for one in (same, wider)]
    assert Rescaler(same).slot_at(outputs[0][0]) == Rescaler(same).slot_at(outputs[0][1])
    with pytest.raises(OptionError, match="must have the same"):
        rescale(same, {outputs[0][0]: (-8.0, 8.0), outputs[0][1]: (-2.0, 2.0)})
    assert Rescaler(wider).slot_at(outputs[1][0]) != Rescaler(wider).slot_at(outputs[1][1])


# --------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("ends", "dtype", "scale", "zero_point"),
    [
        ((0.0, 2.55), np.int8, 0.01, -128),
        ((0.5, 2.55), np.int8, 0.01, -128),  # widened to hold zero
        ((-2.55, -1.0), np.int8, 0.01, 127),
        ((-1.28, 1.27), np.int8, 0.01, 0),
        ((-1.28, 1.27), np.uint8, 0.01, 128),
        ((-0.5, 2.05), np.int8, 0.01, -78),
        ((0.0, 0.0), np.int8, 2e-6 / 255, -1),  # as wide as TensorFlow makes nothing
        ((-3.2767, 1.0), np.int16, 1e-4, 0),
    ],
)
def test_scale_and_zero_point_by_hand(ends: tuple[float, float], dtype: Any, scale: float, zero_point: int) -> None:
    got = scale_of_range(*ends, dtype)
    assert got[0] == pytest.approx(scale, rel=1e-6)
    assert got[1] == zero_point or ends == (0.0, 0.0)


@pytest.mark.parametrize("ends", [(np.nan, 1.0), (0.0, np.inf), (1.0, -1.0), (-1e300, 0.0), (-3e38, 3e38)])
def test_what_is_no_range_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="got the range"):
        scale_of_range(*ends, np.int8)


def test_only_scales_zero_points_and_biases_differ() -> None:
    before = quantized(example_calibrated())
    rescaler = Rescaler(before)
    slot = next(slot for slot in rescaler.slots if not slot.fixed and len(rescaler.slots) > 3 and slot.owner in _fed(before))
    after = rescaler.apply({slot.owner: (slot.minimum / 2, slot.maximum / 3)})
    assert len(after) == len(before.data)
    biases = [op.inputs[2] for op in before.main.operators if op.name in CONVOLUTIONS and op.inputs[0] in slot.tensors]
    allowed = np.zeros(len(after), bool)
    for index in (*slot.tensors, *biases):
        for start, size in _stored_at(before, index):
            allowed[start : start + size] = True
    changed = np.frombuffer(after, np.uint8) != np.frombuffer(before.data, np.uint8)
    assert biases
    assert changed.any()
    assert not np.any(changed & ~allowed)


CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def _fed(model: Model) -> set[int]:
    return {operator.inputs[0] for operator in model.main.operators if operator.name in CONVOLUTIONS}


def _stored_at(model: Model, index: int) -> list[tuple[int, int]]:
    """Returns where the file holds scales, zero points and, of a constant, the values of a tensor."""
    origin = np.frombuffer(model.data, np.uint8).__array_interface__["data"][0]
    parameters = tf_private.schema().Model.GetRootAs(model.data, 0).Subgraphs(0).Tensors(index).Quantization()
    arrays = [parameters.ScaleAsNumpy(), parameters.ZeroPointAsNumpy()]
    if model.main.tensors[index].is_constant:
        arrays.append(model.constant(model.main.tensors[index]))
    return [(array.__array_interface__["data"][0] - origin, array.nbytes) for array in arrays]


def test_biases_keep_what_they_stand_for_without_float_values() -> None:
    before = quantized(example_calibrated())
    rescaler = Rescaler(before)
    free = {slot.owner: (slot.minimum * 0.7, slot.maximum * 0.6) for slot in rescaler.slots if not slot.fixed}
    after, checked = Model(rescaler.apply(free)), 0
    for old, new in zip(before.main.tensors, after.main.tensors, strict=True):
        if old.is_constant and old.dtype == np.int32 and old.quantization is not None and new.quantization is not None:
            step = new.quantization.scale.astype(np.float64)
            meant = before.constant(old) * old.quantization.scale.astype(np.float64)
            assert np.all(np.abs(after.constant(new) * step - meant) <= step * (0.5 + 1e-6))
            checked += 1
    assert checked > 10
    for operator in after.main.operators:
        if operator.name in CONVOLUTIONS:
            source, weights, bias = (after.main.tensors[index].quantization for index in operator.inputs[:3])
            assert source is not None
            assert weights is not None
            assert bias is not None
            np.testing.assert_array_equal(bias.scale, source.scale * weights.scale)


def test_the_same_range_gives_the_same_bytes() -> None:
    before = quantized(example_calibrated())
    rescaler = Rescaler(before)
    assert rescaler.apply({}) == before.data
    assert (
        rescaler.apply({slot.owner: (slot.minimum, slot.maximum) for slot in rescaler.slots if not slot.fixed}) == before.data
    )


def test_a_narrowed_range_clips_and_keeps_the_rest() -> None:
    before = quantized(models.calibrated("chain").model, "full_integer")
    index = before.main.inputs[0]
    after = rescale(before, {index: (-0.5, 0.5)})
    sample = [np.linspace(-60, 60, 108).reshape(1, 6, 6, 3).astype(np.int8)]
    was = before.main.tensors[index].quantization
    assert was is not None
    real = was.dequantize(sample[0])
    given = Model(after).main.tensors[index].quantization
    assert given is not None
    again = given.quantize(real, np.int8)
    np.testing.assert_allclose(given.dequantize(again), np.clip(real, -0.5, 0.5), atol=0.6 * float(given.scale[0]))
    inside = [was.quantize(np.clip(real, -0.49, 0.49), np.int8)]
    same = [given.quantize(was.dequantize(inside[0]), np.int8)]
    step = before.main.tensors[before.main.outputs[0]].quantization
    assert step is not None
    difference = models.outputs(before.data, inside)[0].astype(int) - models.outputs(after, same)[0].astype(int)
    assert np.abs(difference).max() <= 3


# --------------------------------------------------------------------------------------------- slots


def names_of(model: Model, slot: RangeSlot) -> set[str]:
    return {model.main.tensors[index].name for index in slot.tensors}


def test_operators_that_move_values_share_a_slot() -> None:
    model = quantized(models.calibrated("mixed").model)
    slots = range_slots(model)
    of = {index: slot for slot in slots for index in slot.tensors}
    by_type = {operator.name: operator for operator in model.main.operators}
    split, joined, tanh = by_type["SPLIT"], by_type["CONCATENATION"], by_type["TANH"]
    moved = of[joined.outputs[0]]
    assert set(moved.tensors) == {split.inputs[1], *split.outputs, *joined.inputs, *joined.outputs}
    assert (moved.owner, moved.fixed) == (joined.outputs[0], "")
    # What TANH prescribes goes through a QUANTIZE before it is joined.
    assert of[tanh.outputs[0]].tensors == tanh.outputs
    assert "TANH prescribes" in of[tanh.outputs[0]].fixed
    assert of[by_type["SOFTMAX"].inputs[0]] != of[by_type["SOFTMAX"].outputs[0]]
    assert "SOFTMAX prescribes" in of[by_type["SOFTMAX"].outputs[0]].fixed
    assert not of[by_type["SOFTMAX"].inputs[0]].fixed
    activations = [tensor.index for tensor in model.main.tensors if tensor.is_quantized and not tensor.is_constant]
    assert sorted(index for slot in slots for index in slot.tensors) == activations
    for slot in slots:
        quantization = model.main.tensors[slot.owner].quantization
        assert quantization is not None
        least, greatest = quantization.dequantize(np.array([-128, 127], np.int8))
        assert (slot.minimum, slot.maximum) == (pytest.approx(least), pytest.approx(greatest))


def test_a_constant_in_a_slot_fixes_it() -> None:
    model = quantized(models.calibrated("scalars").model)
    of = {index: slot for slot in range_slots(model) for index in slot.tensors}
    largest = next(operator for operator in model.main.operators if operator.name == "MAXIMUM")
    assert "constant" in of[largest.outputs[0]].fixed


def test_states_are_fixed(shared_models: Path) -> None:
    slots = range_slots(Model(shared_models / "coral" / "keras_lstm_mnist_ptq.tflite"))
    assert sum("state" in slot.fixed for slot in slots) >= 2
    custom = range_slots(Model(shared_models / "coral" / "posenet_mobilenet_v1_075_353_481_16_quant_decoder.tflite"))
    assert any("custom operator PosenetDecoderOp" in slot.fixed for slot in custom)


def test_slots_by_the_names_of_the_float_model() -> None:
    calibrated = example_calibrated()
    model = quantized(calibrated)
    match = match_models(calibrated, model)
    slots = range_slots(model)
    named = slots_by_name(calibrated, model, match, slots)
    read = {index for operator in calibrated.main.operators for index in operator.inputs}
    activations = {t.name for t in calibrated.main.tensors if t.minimum is not None and t.index in read}
    assert activations <= set(named)
    assert {slot for slot in slots if not slot.fixed} <= set(named.values())


def test_the_range_of_a_joining_operator_goes_before_those_of_its_inputs() -> None:
    model = joined_twice()
    float_model = load_float_model(model).model
    written = {operator.outputs[0]: operator.name for operator in float_model.main.operators}
    ends = dict.fromkeys((*float_model.main.inputs, *written), (-4.0, 4.0))
    calibrated = Model(edit.with_ranges(float_model, ends))
    before = quantized(calibrated)
    match = match_models(calibrated, before)
    slots = range_slots(before)
    last = [index for index, name in written.items() if name == "CONCATENATION"][-1]
    dense = [index for index, name in written.items() if name == "FULLY_CONNECTED"]
    given = {float_model.main.tensors[index].name: (-1.0, 1.0) for index in dense}
    given[float_model.main.tensors[last].name] = (-2.0, 2.0)
    chosen = ranges_by_tensor(calibrated, before, match, slots, given)
    assert (-2.0, 2.0) in chosen.values()
    assert (-1.0, 1.0) not in chosen.values()


# --------------------------------------------------------------------------------------------- odd biases


def overflowing() -> tuple[Model, Model]:
    """A dense layer whose first channel hardly reads its input and has a great bias: calibrated and quantized."""
    vector = keras.Input((8,), batch_size=1, name="vector")
    model = keras.Model(vector, keras.layers.Dense(3, name="dense")(vector))
    weights = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    weights[:, 0] *= 2e-5 / np.abs(weights[:, 0]).max()
    model.set_weights([weights, np.array([3.0, -1.0, 0.5], np.float32)])
    float_model = load_float_model(model).model
    ends = dict.fromkeys((*float_model.main.inputs, *float_model.main.producers), (-8.0, 8.0))
    calibrated = Model(edit.with_ranges(float_model, ends))
    return calibrated, quantized(calibrated)


def test_weights_become_coarser_where_a_bias_would_not_fit() -> None:
    calibrated, before = overflowing()
    dense = next(operator for operator in before.main.operators if operator.name == "FULLY_CONNECTED")
    match = match_models(calibrated, before)
    narrow = (-0.5, 0.5)
    ours = Model(rescale(before, {dense.inputs[0]: narrow}, matched_biases(calibrated, before, match)))
    ends = {tensor.index: narrow for tensor in calibrated.main.tensors if tensor.index in calibrated.main.inputs}
    theirs = quantized(Model(edit.with_ranges(calibrated, ends)))
    for position in (0, 1, 2):
        mine, other = (model.main.tensors[dense.inputs[position]] for model in (ours, theirs))
        assert mine.quantization is not None
        assert other.quantization is not None
        np.testing.assert_allclose(mine.quantization.scale, other.quantization.scale, rtol=1e-6)
        if position:
            step = np.abs(ours.constant(mine).astype(np.int64) - theirs.constant(other))
            assert step.max() <= (1 if position == 1 else 256)
    was, now = (model.main.tensors[dense.inputs[1]].quantization for model in (before, ours))
    assert was is not None
    assert now is not None
    assert now.scale[0] > 2 * was.scale[0]
    assert np.array_equal(now.scale[1:], was.scale[1:])


def test_biases_in_one_buffer_get_a_copy_each() -> None:
    before = quantized(models.calibrated("attention").model)
    dense = [operator for operator in before.main.operators if operator.name == "FULLY_CONNECTED"]
    unpacked = unpack(before)
    tables = unpacked.subgraphs[0].tensors
    tables[dense[0].inputs[2]].buffer = tables[dense[1].inputs[2]].buffer
    shared = Model(pack(unpacked))
    slot = Rescaler(shared).slot_at(dense[0].inputs[0])
    assert slot is not None
    assert dense[1].inputs[0] in slot.tensors
    after = Model(rescale(shared, {slot.owner: (slot.minimum * 0.7, slot.maximum * 0.7)}))
    rewritten = []
    for position in (0, 1):
        old = shared.main.tensors[dense[position].inputs[2]]
        new = after.main.tensors[after.main.operators[dense[position].index].inputs[2]]
        assert old.quantization is not None
        assert new.quantization is not None
        meant = shared.constant(old) * old.quantization.scale.astype(np.float64)
        real = after.constant(new) * new.quantization.scale.astype(np.float64)
        np.testing.assert_allclose(real, meant, atol=0.51 * float(new.quantization.scale.max()))
        rewritten.append(new.buffer)
    assert rewritten[0] != rewritten[1]


# --------------------------------------------------------------------------------------------- wrong input


def test_wrong_requests_are_refused() -> None:
    calibrated = models.calibrated("mixed").model
    model = quantized(calibrated)
    rescaler = Rescaler(model)
    fixed = next(slot for slot in rescaler.slots if slot.fixed)
    with pytest.raises(OptionError, match="cannot change: the kernel of"):
        rescaler.apply({fixed.owner: (0.0, 1.0)})
    constant = next(tensor for tensor in model.main.tensors if tensor.is_constant)
    for index in (constant.index, len(model.main.tensors), -1):
        with pytest.raises(OptionError, match="expected a quantized activation"):
            rescaler.apply({index: (0.0, 1.0)})
    free = next(slot for slot in rescaler.slots if not slot.fixed)
    with pytest.raises(OptionError, match="finite"):
        rescaler.apply({free.owner: (0.0, float("nan"))})
    with pytest.raises(OptionError, match="Did you mean"):
        ranges_by_tensor(calibrated, model, match_models(calibrated, model), rescaler.slots,
                         {calibrated.main.tensors[-1].name + "x": (0.0, 1.0)})  # fmt: skip
    bias = next(op for op in model.main.operators if op.name == "CONV_2D").inputs[2]
    with pytest.raises(OptionError, match="float values of shape"):
        Rescaler(model, {bias: np.zeros(2)})
