"""The one face of the interpreters: what it feeds, what it refuses, which kernels it says it ran."""

from __future__ import annotations

import functools
import importlib.util
import types
from typing import Any

import models
import numpy as np
import pytest

from tflite_qdebug import tf_private
from tflite_qdebug.errors import DatasetError, InterpreterError, MissingPackageError, OptionError
from tflite_qdebug.interpreter import Delegate, Interpreter

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("tensorflow", "ai_edge_litert", "tflite_runtime")
]


@functools.cache
def int8(input_type: str = "int8") -> bytes:
    return models.calibrated("mixed").quantize("int8", input_type=input_type, output_type=input_type).data


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kernels", ["auto", "builtin", "reference"])
def test_outputs_are_those_of_tensorflow(runtime: str, kernels: str) -> None:
    inputs = models.samples("mixed", 1)[0]
    interpreter = Interpreter(models.float_tflite("mixed"), runtime, kernels)
    interpreter.invoke(inputs)
    expected = models.outputs(models.float_tflite("mixed"), inputs)[0]
    np.testing.assert_allclose(interpreter.read_outputs()[0], expected, atol=1e-6)
    assert interpreter.runtime == runtime
    assert interpreter.kernels == {"auto": "xnnpack"}.get(kernels, kernels)
    assert interpreter.provenance()["kernels"] == interpreter.kernels
    assert interpreter.notes == []


def test_two_inputs_are_fed_in_the_models_order() -> None:
    inputs = models.samples("two_by_two", 1)[0]
    interpreter = Interpreter(models.float_tflite("two_by_two"), kernels="reference")
    interpreter.invoke(inputs)
    for ours, theirs in zip(interpreter.read_outputs(), models.outputs(models.float_tflite("two_by_two"), inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_floats_are_quantized_and_clipped_for_an_integer_input(dtype: str) -> None:
    interpreter = Interpreter(int8(dtype), kernels="reference")
    values = models.samples("mixed", 1)[0][0] * 100  # far beyond the calibrated range
    parameters = interpreter.inputs[0].quantization
    scale, zero_point = np.float32(parameters.scale[0]), int(parameters.zero_point[0])
    steps = (values / scale).astype(np.float64)
    limits = np.iinfo(dtype)
    expected = np.clip(np.sign(steps) * np.floor(np.abs(steps) + 0.5) + zero_point, limits.min, limits.max).astype(dtype)
    interpreter.invoke([values])
    np.testing.assert_array_equal(interpreter.read(interpreter.inputs[0].index), expected)
    interpreter.invoke([expected])  # integers are fed as they are
    raw, real = interpreter.read_outputs()[0], interpreter.read_outputs(dequantized=True)[0]
    out = interpreter.outputs[0].quantization
    np.testing.assert_allclose(real, (raw.astype(float) - out.zero_point[0]) * out.scale[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([], r"Number of inputs provided \(0\) does not match number of inputs to the model \(1\)"),
        ([np.zeros((1, 8, 8, 4), np.float32)] * 2, "provided .2. does not match"),
        ([np.zeros((1, 8, 8, 4), np.float64)], "got dtype float64, expected float32"),
        ([np.zeros((1, 8, 8, 4), np.int8)], "got dtype int8, expected float32"),
        ([np.zeros((1, 8, 4, 8), np.float32)], r"got shape \(1, 8, 4, 8\), expected \(1, 8, 8, 4\)"),
        ([np.zeros((2, 8, 8, 4), np.float32)], r"got shape \(2, 8, 8, 4\)"),
        ([np.zeros((8, 8, 4), np.float32)], r"got shape \(8, 8, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_cast_or_resized(arrays: list[np.ndarray], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        Interpreter(models.float_tflite("mixed")).invoke(arrays)


def test_a_dynamic_batch_takes_every_size() -> None:
    interpreter = Interpreter(models.float_tflite("dynamic_batch"), kernels="reference")
    for batch in (1, 3, 2):
        values = np.random.default_rng(batch).normal(size=(batch, 10)).astype(np.float32)
        interpreter.invoke([values])
        expected = models.keras_model("dynamic_batch").predict(values, verbose=0)
        np.testing.assert_allclose(interpreter.read_outputs()[0], expected, atol=1e-6)
    with pytest.raises(DatasetError, match=r"got shape \(2, 11\), expected \(-1, 10\)"):
        interpreter.invoke([np.zeros((2, 11), np.float32)])


def test_a_view_is_no_copy() -> None:
    interpreter = Interpreter(models.float_tflite("mixed"), kernels="reference")
    interpreter.invoke(models.samples("mixed", 1)[0])
    view = interpreter.view(interpreter.outputs[0].index)
    assert not view.flags.owndata
    np.testing.assert_array_equal(view, interpreter.read(interpreter.outputs[0].index))


def test_variables_are_set_back() -> None:
    interpreter = Interpreter(models.float_tflite("lstm"), kernels="reference")
    inputs = models.samples("lstm", 1)[0]
    interpreter.invoke(inputs)
    first = interpreter.read_outputs()[0]
    interpreter.reset_variables()
    interpreter.invoke(inputs)
    np.testing.assert_array_equal(interpreter.read_outputs()[0], first)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kernels": "fast"}, "got kernels 'fast', expected auto, builtin, reference"),
        ({"threads": 0}, "got threads 0"),
        ({"threads": "2"}, "got threads '2'"),
        ({"runtime": "torch"}, "got runtime 'torch'"),
    ],
)
def test_options_are_checked(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Interpreter(models.float_tflite("mixed"), **arguments)


def test_a_runtime_that_is_not_installed() -> None:
    if importlib.util.find_spec("tflite_runtime") is not None:
        pytest.skip("tflite_runtime is installed")
    with pytest.raises(MissingPackageError, match="tflite_runtime"):
        Interpreter(models.float_tflite("mixed"), "tflite_runtime")


def test_a_broken_model_and_a_missing_delegate_are_interpreter_errors() -> None:
    with pytest.raises(InterpreterError, match="cannot run the model with kernels='auto'"):
        Interpreter(models.float_tflite("mixed")[:200])
    with pytest.raises(InterpreterError, match=r"cannot load the delegate /none\.so with options {'device': 'usb'}"):
        Interpreter(models.float_tflite("mixed"), delegates=[Delegate("/none.so", {"device": "usb"})])


def test_a_kernel_that_the_resolver_lacks_is_named() -> None:
    data = models.float_model("constant_product").quantize("dynamic_range").data
    with pytest.raises(InterpreterError, match="BATCH_MATMUL"):
        Interpreter(data, kernels="reference")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, MemoryError, IndexError, OverflowError])
def test_what_a_runtime_raises_of_a_broken_model_is_an_interpreter_error(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        _interpreter = types.SimpleNamespace(NumNodes=lambda: 1)

        def allocate_tensors(self) -> None:
            raise kind("_Map_base::at")

    monkeypatch.setattr(tf_private, "new_interpreter", lambda *arguments, **options: Broken())
    with pytest.raises(InterpreterError, match="cannot run the model"):
        Interpreter(models.float_tflite("mixed"))
