"""Quantize and dequantize, held against TensorFlow Lite's own QUANTIZE and DEQUANTIZE kernels and against hand arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from models import run

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ModelError
from tflite_qdebug.quantization import QuantizationParameters

COUNT = 4096


@functools.cache
def one_operator(dtype: str, scale: float, zero_point: int, to_integer: bool) -> bytes:
    """A model of QUANTIZE alone (float to integers), or of DEQUANTIZE alone, written by hand."""
    import flatbuffers

    schema = tf_private.schema()
    types = {"float32": 0, "int8": 9, "uint8": 3, "int16": 7}

    def tensor(name: str, kind: str) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, np.array([1, COUNT], dtype=np.int32), types[kind], 0
        if kind != "float32":
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [np.float32(scale)], [zero_point]
        return made

    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    operator.inputs, operator.outputs = np.array([0], dtype=np.int32), np.array([1], dtype=np.int32)
    builtin = schema.BuiltinOperator.QUANTIZE if to_integer else schema.BuiltinOperator.DEQUANTIZE
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 2
    graph, model = schema.SubGraphT(), schema.ModelT()
    kinds = ("float32", dtype) if to_integer else (dtype, "float32")
    graph.tensors = [tensor(name, kind) for name, kind in zip(("in", "out"), kinds, strict=True)]
    graph.inputs, graph.outputs = operator.inputs, operator.outputs
    graph.operators = [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def result_of(model: bytes, values: np.ndarray) -> np.ndarray:
    interpreter = run(model, [values.reshape(1, COUNT)])
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)


CASES = [
    ("int8", 0.1, -3), ("int8", 0.25, 0), ("int8", 1 / 255, -128), ("int8", 0.037, 127), ("uint8", 0.05, 128),
    ("uint8", 0.5, 0), ("int16", 0.001, 0), ("int16", 3.0517578e-05, 0),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "scale", "zero_point"), CASES)
def test_quantize_gives_the_integers_of_the_kernel(dtype: str, scale: float, zero_point: int) -> None:
    parameters = QuantizationParameters([scale], [zero_point])
    limits = np.iinfo(dtype)
    span = (limits.max - limits.min) * scale
    values = np.random.default_rng(1).uniform(-span, span, COUNT).astype(np.float32)
    # Ties, as near as float32 comes to them; the ends; far beyond them.
    steps = np.arange(limits.min, limits.min + 200) - zero_point + 0.5
    values[:200] = (steps * scale).astype(np.float32)
    values[200:400] = ((np.arange(-100, 100) + 0.5) * scale).astype(np.float32)
    values[400:404] = [0.0, -0.0, 10 * span, -10 * span]
    expected = result_of(one_operator(dtype, scale, zero_point, True), values)
    got = parameters.quantize(values, np.dtype(dtype))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("dtype", "scale", "zero_point"), CASES)
def test_dequantize_gives_the_floats_of_the_kernel(dtype: str, scale: float, zero_point: int) -> None:
    limits = np.iinfo(dtype)
    values = np.random.default_rng(2).integers(limits.min, limits.max + 1, COUNT).astype(dtype)
    values[:2] = limits.min, limits.max
    expected = result_of(one_operator(dtype, scale, zero_point, False), values)
    got = QuantizationParameters([scale], [zero_point]).dequantize(values)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_halves_are_rounded_away_from_zero() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], dtype=np.float32)
    got = QuantizationParameters([1.0], [0]).quantize(values, np.int8)
    assert got.tolist() == [1, 2, 3, -1, -2, -3]
    assert np.round(values).tolist() == [0, 2, 2, -0, -2, -2], "the test must hold cases in which numpy differs"


def test_beyond_the_range_is_clipped_to_its_ends() -> None:
    values = np.array([1e9, -1e9, 12.7, 12.8, -12.8, -12.9], dtype=np.float32)
    assert QuantizationParameters([0.1], [0]).quantize(values, np.int8).tolist() == [127, -128, 127, 127, -128, -128]
    assert QuantizationParameters([0.1], [0]).quantize(values, np.uint8).tolist() == [255, 0, 127, 128, 0, 0]


def test_per_channel_takes_each_channel_by_its_own_scale() -> None:
    parameters = QuantizationParameters([0.5, 2.0, 0.25], [0, 1, -1], axis=1)
    values = np.array([[[1, -1], [1, -1], [1, -1]]], dtype=np.int8)
    expected = np.array([[[0.5, -0.5], [0.0, -4.0], [0.5, 0.0]]], dtype=np.float32)
    np.testing.assert_array_equal(parameters.dequantize(values), expected)
    np.testing.assert_array_equal(parameters.quantize(expected, np.int8), values)
    assert parameters.is_per_channel


def test_int32_bias_keeps_what_float32_cannot_hold() -> None:
    values = np.array([16_777_217, -(2**31), 2**31 - 1], dtype=np.int32)  # 2**24 + 1 is no float32
    scale = np.float32(3e-5)
    expected = (values.astype(np.float64) * np.float64(scale)).astype(np.float32)
    np.testing.assert_array_equal(QuantizationParameters([scale], [0]).dequantize(values), expected)


def test_a_zero_point_of_zero_is_a_parameter() -> None:
    detail = {"quantization_parameters": {"scales": np.array([0.5]), "zero_points": np.array([0]), "quantized_dimension": 3}}
    parameters = QuantizationParameters.from_detail(detail)
    assert parameters is not None
    assert (parameters.scale.tolist(), parameters.zero_point.tolist()) == ([0.5], [0])


@pytest.mark.parametrize("parameters", [None, {}, {"scales": [], "zero_points": []}, {"scales": [1.0], "zero_points": []}])
def test_a_float_tensor_has_no_parameters(parameters: Any) -> None:
    assert QuantizationParameters.from_detail({"quantization_parameters": parameters}) is None


@pytest.mark.parametrize(("scale", "zero_point"), [([], []), ([1.0], []), ([1.0, 2.0], [0])])
def test_lengths_that_differ_are_refused(scale: list[float], zero_point: list[int]) -> None:
    with pytest.raises(ModelError, match=f"got {len(scale)} scales and {len(zero_point)} zero points"):
        QuantizationParameters(scale, zero_point)


def test_equality_looks_at_values_and_at_the_axis_only_where_it_means_something() -> None:
    assert QuantizationParameters([0.5], [1], 0) == QuantizationParameters([0.5], [1], 3)
    assert hash(QuantizationParameters([0.5], [1], 0)) == hash(QuantizationParameters([0.5], [1], 3))
    assert QuantizationParameters([0.5, 1], [0, 0], 0) != QuantizationParameters([0.5, 1], [0, 0], 3)
    assert QuantizationParameters([0.5], [1]) != QuantizationParameters([0.5], [2])
    assert QuantizationParameters([0.5], [1]) != "0.5"
