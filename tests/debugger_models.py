"""Small models and scenarios for the tests of the debugger, built by TensorFlow and, where a fault is shown, given to both
TensorFlow's debugger and ours."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.tools.optimize.debugging.python import debugger as theirs

from tflite_qdebug import debugger as ours

TheirDebugger, TheirOptions = theirs.QuantizationDebugger, theirs.QuantizationDebugOptions
OurDebugger, OurOptions = ours.QuantizationDebugger, ours.QuantizationDebugOptions

Samples = Callable[[], Iterator[list[np.ndarray]]]


def spec(*shape: int | None, dtype: Any = tf.float32, name: str = "x") -> Any:
    return tf.TensorSpec(shape, dtype, name)


def converter_of(function: Callable[..., Any], specs: Sequence[Any], samples: Samples | None = None) -> Any:
    """Returns an int8 converter of a Python function, calibrated on ``samples``."""
    module = tf.Module()
    module.function = tf.function(function, input_signature=specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.kept_alive = module  # its variables die with it
    return converter


def float_bytes(converter: Any) -> bytes:
    """Returns the plain float model of a converter, which stays as it is."""
    optimizations, converter.optimizations = converter.optimizations, []
    try:
        return bytes(converter.convert())
    finally:
        converter.optimizations = optimizations


def normal(*shapes: Sequence[int], count: int = 8, scale: float = 1.0, seed: int = 0) -> Samples:
    """Returns a function that yields ``count`` samples of normally distributed inputs of those shapes."""

    def samples() -> Iterator[list[np.ndarray]]:
        generator = np.random.default_rng(seed)
        for _ in range(count):
            yield [(scale * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]

    return samples


def fixed(*samples: Sequence[Any]) -> Samples:
    """Returns a function that yields these samples, each a list of array-likes."""
    return lambda: iter([[np.asarray(array, dtype=np.float32) for array in sample] for sample in samples])


def weights(*shape: int, seed: int = 1, scale: float = 0.4) -> Any:
    return tf.constant(np.random.default_rng(seed).standard_normal(shape) * scale, tf.float32)


def conv(values: Any, kernel: Any) -> Any:
    return tf.nn.conv2d(values, kernel, 1, "SAME")


CHAIN_SHAPE = (1, 8, 8, 4)


def chain_converter(depth: int = 4, samples: Samples | None = None) -> Any:
    """Convolutions in a row, whose intermediate tensors share memory in the interpreter's arena."""
    kernels = [weights(3, 3, 4, 4, seed=seed) for seed in range(depth)]

    def chain(x: Any) -> Any:
        for kernel in kernels:
            x = tf.nn.relu(conv(x, kernel))
        return x

    return converter_of(chain, [spec(*CHAIN_SHAPE)], samples or normal(CHAIN_SHAPE))


def dump(debugger: Any) -> tuple[list[str], list[dict[str, str]]]:
    """Returns columns and rows of the debugger's CSV."""
    file = io.StringIO(newline="")
    debugger.layer_statistics_dump(file)
    reader = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    rows = list(reader)
    return list(reader.fieldnames or ()), rows


def outputs_of(model: bytes, samples: Samples, kernels: str = "BUILTIN_WITHOUT_DEFAULT_DELEGATES") -> list[list[np.ndarray]]:
    """Runs a model; dequantizes nothing."""
    resolver = getattr(tf.lite.experimental.OpResolverType, kernels)
    interpreter = tf.lite.Interpreter(model_content=model, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    results = []
    for sample in samples():
        for detail, array in zip(interpreter.get_input_details(), sample, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        results.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return results


def operator_types(model: bytes) -> dict[str, set[str]]:
    """Returns ``{operator: types of its outputs}`` of a model's main subgraph, without QUANTIZE and DEQUANTIZE."""
    from tflite_qdebug import Model

    main = Model(model).main
    types: dict[str, set[str]] = {}
    for operator in main.operators:
        if operator.name not in ("QUANTIZE", "DEQUANTIZE", "NumericVerify"):
            types.setdefault(operator.name, set()).update(main.tensors[i].dtype.name for i in operator.outputs)
    return types


def tensorflow_shows_fault(shown: bool, what: str) -> None:
    """Skips where this TensorFlow no longer has the fault; what is asserted of ours has been asserted before."""
    if not shown:
        pytest.skip(f"TensorFlow {tf.__version__} does not show this fault: {what}")


def raised(call: Callable[[], Any]) -> BaseException | None:
    """Returns what a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


@functools.cache
def chain_models() -> tuple[bytes, bytes]:
    """Returns float model and TensorFlow's debug model of the chain."""
    from tflite_qdebug import load_float_model

    converter = chain_converter()
    calibrated = load_float_model(converter).calibrate(normal(CHAIN_SHAPE), progress=False)
    assert calibrated.float_model is not None
    return calibrated.float_model.data, calibrated.numeric_verify_model()
