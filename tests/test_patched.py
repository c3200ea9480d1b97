"""Values overwritten in place, constants of their own, and weights of float operators kept as int8."""

from __future__ import annotations

import models
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug.edit import Patch, store_weights_as_int8, with_own_constants
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model


@pytest.fixture(scope="module")
def quantized() -> Model:
    return Model(models.calibrated("mixed").quantize("int8").data)


def bias_of(model: Model) -> int:
    return next(op.inputs[2] for op in model.main.operators if op.name == "CONV_2D")


def test_a_constant_is_overwritten_and_nothing_else(quantized: Model) -> None:
    index = bias_of(quantized)
    tensor = quantized.main.tensors[index]
    before = quantized.constant(tensor).copy()
    patch = Patch(quantized)
    patch.constant(index, before + 7)
    changed = Model(patch.data())
    np.testing.assert_array_equal(changed.constant(changed.main.tensors[index]), before + 7)
    np.testing.assert_array_equal(quantized.constant(tensor), before)  # the model itself is as it was
    one, other = (np.frombuffer(model.data, np.uint8) for model in (quantized, changed))
    places = np.flatnonzero(one != other)
    start = quantized.place(tensor)
    assert len(one) == len(other)
    assert places.min() >= start
    assert places.max() < start + before.nbytes


def test_a_scale_is_overwritten(quantized: Model) -> None:
    operator = next(op for op in quantized.main.operators if op.name == "CONV_2D")
    patch = Patch(quantized)
    patch.quantization(operator.outputs[0], 0.125, -5)
    found = Model(patch.data()).main.tensors[operator.outputs[0]].quantization
    assert found is not None
    assert (float(found.scale[0]), int(found.zero_point[0])) == (0.125, -5)
    weights = quantized.main.tensors[operator.inputs[1]].quantization
    assert weights is not None
    patch = Patch(quantized)
    patch.quantization(operator.inputs[1], 2 * weights.scale, np.zeros(len(weights.scale)))
    again = Model(patch.data()).main.tensors[operator.inputs[1]].quantization
    assert again is not None
    np.testing.assert_array_equal(again.scale, 2 * weights.scale)


def test_what_does_not_fit_is_refused(quantized: Model) -> None:
    index, patch = bias_of(quantized), Patch(quantized)
    shape = quantized.main.tensors[index].shape
    with pytest.raises(ModelError, match="expected"):
        patch.constant(index, np.zeros(shape, np.float32))
    with pytest.raises(ModelError, match="shape"):
        patch.constant(index, np.zeros((*shape, 2), np.int32))
    with pytest.raises(ModelError, match="no constant"):
        patch.constant(quantized.main.inputs[0], np.zeros(1, np.float32))
    with pytest.raises(ModelError, match="expected 1"):
        patch.quantization(next(op.outputs[0] for op in quantized.main.operators if op.name == "CONV_2D"), [1.0, 2.0], [0, 0])
    with pytest.raises(ModelError, match="expected 0"):
        patch.quantization(quantized.main.inputs[0], 1.0, 0)


def test_shared_constants_get_copies() -> None:
    data = models.calibrated("shared_weights").quantize("int8").data
    model = Model(data)
    places = [(op.index, index) for op in model.main.operators for index in op.inputs if index >= 0]
    constants = {index for _, index in places if model.main.tensors[index].is_constant}
    shared = [i for i in constants if sum(index == i for _, index in places) > 1]
    buffers = [model.main.tensors[i].buffer for i in constants]
    shared += [i for i in constants if buffers.count(model.main.tensors[i].buffer) > 1]
    assert shared, "the model was made for its shared weights"
    own = Model(with_own_constants(model, constants))
    readers: dict[int, int] = {}
    for operator in own.main.operators:
        for index in operator.inputs:
            if index >= 0 and own.main.tensors[index].is_constant:
                readers[own.main.tensors[index].buffer] = readers.get(own.main.tensors[index].buffer, 0) + 1
    assert set(readers.values()) == {1}
    inputs = models.samples("shared_weights", 1)[0]
    for mine, other in zip(models.outputs(own.data, inputs), models.outputs(data, inputs), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert with_own_constants(own, constants) == own.data


def test_weights_of_float_operators_are_kept_as_int8() -> None:
    floats = models.float_model("weighty")
    stored = Model(store_weights_as_int8(floats.model))
    assert len(stored.data) < 0.6 * len(floats.data)
    by_name = {tensor.name: tensor for tensor in stored.main.tensors}
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    checked = 0
    for operator in floats.model.main.operators:
        if operator.name not in kinds:
            continue
        tensor = floats.model.main.tensors[operator.inputs[1]]
        values = floats.model.constant(tensor)
        found = by_name[tensor.name]
        if values.size < 1024:
            assert found.is_float
            continue
        assert found.dtype == np.int8
        assert found.quantization is not None
        axis = 3 if operator.name == "DEPTHWISE_CONV_2D" else 0
        others = tuple(i for i in range(values.ndim) if i != axis)
        steps = np.abs(values).max(axis=others) / 127.0
        np.testing.assert_allclose(found.quantization.scale, steps, rtol=1e-6)
        error = np.abs(found.quantization.dequantize(stored.constant(found)) - values)
        assert (error <= 0.5001 * steps.reshape([-1 if i == axis else 1 for i in range(values.ndim)])).all()
        checked += 1
    assert checked
    inputs = models.samples("weighty", 1)[0]
    for kernels in ("reference", "builtin"):
        expected, given = (models.outputs(data, inputs, kernels)[0] for data in (floats.data, stored.data))
        np.testing.assert_allclose(given, expected, atol=0.05 * np.abs(expected).max())
        assert not np.array_equal(given, expected)


def test_a_model_without_weights_keeps_its_operators() -> None:
    floats = models.float_model("two_by_two")
    small = Model(store_weights_as_int8(floats.model))
    assert [op.name for op in small.main.operators] == [op.name for op in floats.model.main.operators]
