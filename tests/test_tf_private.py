"""The private names that the package uses: the first to fail when TensorFlow moves one of them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import tensorflow as tf

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ConversionError


def test_the_quantizer_takes_our_arguments() -> None:
    from tensorflow.lite.python import convert

    parameters = inspect.signature(convert.mlir_quantize).parameters
    wanted = {
        "disable_per_channel", "fully_quantize", "input_data_type", "output_data_type", "enable_numeric_verify",
        "enable_whole_model_verify", "denylisted_ops", "denylisted_nodes", "enable_variable_quantization",
    }  # fmt: skip
    assert wanted <= set(parameters)


def test_the_calibrator_has_what_we_call() -> None:
    from tensorflow.lite.python.optimize import calibrator

    assert callable(calibrator.add_intermediate_tensors)
    made = calibrator.Calibrator(models.float_tflite("chain"))
    assert list(inspect.signature(made.calibrate).parameters)[:1] == ["dataset_gen"]
    for name in ("Prepare", "QuantizeModel", "FeedTensor", "Calibrate"):
        assert hasattr(made._calibrator, name)


def test_a_converter_has_the_attributes_that_we_read_and_set() -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(models.keras_model("chain"))
    for name in (
        "optimizations", "representative_dataset", "target_spec", "experimental_new_quantizer", "inference_input_type",
        "inference_output_type", "_metadata", "_collected_converter_params", "_experimental_calibrate_only",
        "_experimental_disable_per_channel", "_experimental_variable_quantization",
    ):  # fmt: skip
        assert hasattr(converter, name), name
    assert {"supported_ops", "supported_types"} <= set(vars(converter.target_spec))
    assert callable(converter._quantize)
    assert tf_private.is_converter(converter)
    assert not tf_private.is_converter(models.keras_model("chain"))
    assert tf_private.is_keras_model(models.keras_model("chain"))
    assert not tf_private.is_keras_model(converter)


def test_conversion_goes_through_the_step_that_we_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were ``_quantize`` not called, a quantized model would come back for a float one."""
    called = []
    kind = type(models.converter("chain"))
    original = kind._quantize
    monkeypatch.setattr(kind, "_quantize", lambda self, *a, **k: called.append(1) or original(self, *a, **k))
    with tf_private.captured_chatter():
        models.converter("chain").convert()
    assert called


def test_the_interpreter_has_what_we_call() -> None:
    interpreter = tf_private.new_interpreter(tf_private.open_runtime("tensorflow"), models.float_tflite("chain"), "builtin", 1)
    interpreter.allocate_tensors()
    view = tf_private.tensor_view(interpreter)
    index = interpreter.get_input_details()[0]["index"]
    assert view(index).shape == (1, 6, 6, 3)
    view(index)[...] = 2.5
    assert (interpreter.get_tensor(index) == 2.5).all()
    interpreter.invoke()  # no view is left behind
    assert [operator["op_name"] for operator in tf_private.operators(interpreter)][:2] == ["CONV_2D", "CONV_2D"]
    assert interpreter.get_tensor_details()
    for name in ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"):
        assert hasattr(tf_private.open_runtime("tensorflow").resolvers, name)
    parameters = inspect.signature(tf_private.open_runtime("tensorflow").interpreter.__init__).parameters
    assert {"model_content", "num_threads", "experimental_op_resolver_type", "experimental_preserve_all_tensors",
            "experimental_delegates"} <= set(parameters)  # fmt: skip


def test_the_schema_has_what_we_use() -> None:
    schema = tf_private.schema()
    for name in ("Model", "ModelT", "BufferT", "TensorT", "OperatorT", "OperatorCodeT", "QuantizationParametersT",
                 "DequantizeOptionsT", "BuiltinOptions", "TensorType"):  # fmt: skip
        assert hasattr(schema, name)
    names = tf_private.builtin_operator_names()
    assert (names[0], names[3], names[32], names[6]) == ("ADD", "CONV_2D", "CUSTOM", "DEQUANTIZE")
    assert {"offset", "size"} <= set(vars(schema.BufferT()))


def test_the_counter_is_called_once_for_each_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = importlib.import_module("tensorflow.lite.python.metrics.metrics")
    called = []
    monkeypatch.setattr(metrics.TFLiteMetrics, "increase_counter_debugger_creation", lambda self: called.append(1))
    tf_private.increase_debugger_counter()
    assert called == [1]


def test_tensorflows_own_words_stand_in_the_error() -> None:
    with pytest.raises(ConversionError, match="TensorFlow could not quantize the model"):
        tf_private.quantize(b"no model", tf_private.QuantizeOptions())
    with pytest.raises(ConversionError, match="could not quantize the model to 16x8"):
        tf_private.quantize_int16x8(b"no model", tf_private.QuantizeOptions())
    with pytest.raises(ConversionError, match="could not calibrate the model: Invalid model"):
        tf_private.calibrate(b"no model", list)


# ------------------------------------------------------------------------------------------------------------- chatter


def stderr_target() -> Any:
    return os.fstat(2).st_ino, os.fstat(2).st_dev


def test_chatter_of_python_and_of_native_code_is_captured(capfd: pytest.CaptureFixture[str]) -> None:
    before = stderr_target()
    with tf_private.captured_chatter() as captured:
        print("to stdout")
        os.write(2, b"from native code\n")
        print("to stderr", file=sys.stderr)
    assert "from native code" in captured.text
    assert stderr_target() == before
    os.write(2, b"afterwards\n")
    shown = capfd.readouterr()
    assert "to stdout" not in shown.out
    assert "native" not in shown.err
    assert "afterwards" in shown.err


def test_the_streams_come_back_also_when_something_is_raised() -> None:
    before, stdout = stderr_target(), sys.stdout
    open_files = Path("/proc/self/fd")
    handles = len(list(open_files.iterdir())) if open_files.is_dir() else 0
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), tf_private.captured_chatter():
            raise ZeroDivisionError
    assert stderr_target() == before
    assert sys.stdout is stdout
    if handles:
        assert len(list(open_files.iterdir())) == handles


def test_captures_can_stand_in_one_another() -> None:
    before = stderr_target()
    with tf_private.captured_chatter() as outer:
        os.write(2, b"one\n")
        with tf_private.captured_chatter() as inner:
            os.write(2, b"two\n")
        os.write(2, b"three\n")
    assert (outer.text, inner.text) == ("one\nthree\n", "two\n")
    assert stderr_target() == before
