"""Models with several subgraphs: signatures, loops, branches, composite operators, variables; each made once in a session.

Weights are drawn from a seeded generator: what is tested is which subgraph gets which values.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tflite_qdebug import tf_private
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_codes, pack, unpack
from tflite_qdebug.edit.subgraphs import copy_subgraphs
from tflite_qdebug.model import Model

#: Size of the vectors; a dense layer of this size has 1024 weights, which weight-only quantizers take.
SIZE = 32


def weights(seed: int) -> np.ndarray:
    """Returns the weights (inputs, outputs) of a dense layer."""
    return np.random.default_rng(seed).normal(0.0, 0.25, (SIZE, SIZE)).astype(np.float32)


def dense(x: Any, seed: int) -> Any:
    """A dense layer, as TensorFlow operations."""
    return tf.matmul(x, tf.constant(weights(seed))) + tf.constant(weights(seed + 100)[0])


def _convert(converter: Any, kind: str) -> bytes:
    """TensorFlow's own conversion to ``float``, ``dynamic_range`` or ``float16``."""
    converter.experimental_enable_resource_variables = True
    if kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def _converted(function: Any, kind: str) -> bytes:
    with tf_private.captured_chatter():
        return _convert(tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()]), kind)


_VECTOR = tf.TensorSpec((1, SIZE), tf.float32, "x")
_STEPS = tf.TensorSpec((), tf.int32, "steps")


@functools.cache
def loop(kind: str = "float") -> bytes:
    """WHILE: a dense layer as often as the second input says; a dense layer before and one behind it."""

    @tf.function(input_signature=[_VECTOR, _STEPS])
    def function(x: Any, steps: Any) -> Any:
        state = tf.while_loop(
            lambda i, x: i < steps, lambda i, x: (i + 1, tf.tanh(dense(x, 1)) * 1.5), (0, tf.nn.relu(dense(x, 0)))
        )
        return dense(state[1], 2)

    return _converted(function, kind)


@functools.cache
def branches(kind: str = "float") -> bytes:
    """IF: one of two dense layers, by the sign of the input's sum."""

    @tf.function(input_signature=[_VECTOR])
    def function(x: Any) -> Any:
        hidden = tf.nn.relu(dense(x, 0))
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: tf.tanh(dense(hidden, 1)), lambda: tf.nn.relu(dense(hidden, 2)) - 1.0)

    return _converted(function, kind)


@functools.cache
def nested(kind: str = "float") -> bytes:
    """A loop in which the parity of the step chooses a branch, one of which has a loop of its own."""

    @tf.function(input_signature=[_VECTOR, _STEPS])
    def function(x: Any, steps: Any) -> Any:
        def inner(x: Any) -> Any:
            return tf.while_loop(lambda j, x: j < 2, lambda j, x: (j + 1, tf.sin(dense(x, 4))), (0, x))[1]

        def body(i: Any, x: Any) -> Any:
            return i + 1, tf.cond(i % 2 > 0, lambda: inner(x), lambda: tf.tanh(dense(x, 3)))

        return tf.while_loop(lambda i, x: i < steps, body, (0, x))[1]

    return _converted(function, kind)


@functools.cache
def signatures(kind: str = "float") -> bytes:
    """Three signatures: two dense layers one after the other, the second of them, and a loop."""

    class Module(tf.Module):
        @tf.function(input_signature=[_VECTOR])
        def both(self, x: Any) -> dict[str, Any]:
            hidden = tf.nn.relu(dense(x, 0))
            return {"hidden": hidden, "result": dense(hidden, 1)}

        @tf.function(input_signature=[_VECTOR])
        def second(self, x: Any) -> dict[str, Any]:
            return {"result": dense(x, 1)}

        @tf.function(input_signature=[_VECTOR, _STEPS])
        def looped(self, x: Any, steps: Any) -> dict[str, Any]:
            return {"last": tf.while_loop(lambda i, x: i < steps, lambda i, x: (i + 1, tf.tanh(dense(x, 2))), (0, x))[1]}

    return _saved(Module(), ["both", "second", "looped"], kind)


@functools.cache
def variables(kind: str = "float") -> bytes:
    """Two signatures that share a variable: one adds to it, one doubles it; and a loop that reads it."""

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(np.full((1, SIZE), 0.5, np.float32))

        @tf.function(input_signature=[_VECTOR])
        def add(self, x: Any) -> dict[str, Any]:
            self.total.assign_add(x)
            return {"total": self.total.read_value() + 0.0}

        @tf.function(input_signature=[_VECTOR])
        def double(self, x: Any) -> dict[str, Any]:
            return {"double": self.total * 2.0 + x}

        @tf.function(input_signature=[_VECTOR])
        def looped(self, x: Any) -> dict[str, Any]:
            return {"last": tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.tanh(x + self.total)), (0, x))[1]}

    return _saved(Module(), ["add", "double", "looped"], kind)


@functools.cache
def captured(kind: str = "float") -> bytes:
    """A loop and a branch that read weights from outside; a branch that is a constant; a dense layer that shares weights."""

    @tf.function(input_signature=[_VECTOR])
    def function(x: Any) -> Any:
        shared, scale = tf.constant(weights(5)), tf.constant(weights(105)[0])
        x = tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.tanh(tf.matmul(x, shared)) * scale), (0, x))[1]
        x = tf.nn.relu(tf.matmul(x, shared) + scale)
        return tf.cond(tf.reduce_sum(x) > 8.0, lambda: tf.matmul(x, shared), lambda: tf.constant(weights(6)[:1]))

    return _converted(function, kind)


@functools.cache
def recurrent(name: str) -> bytes:
    """A float model with a recurrent layer (``LSTM``, ``GRU``, ``SimpleRNN``) of Keras 3 as a loop, and a dense layer."""
    import keras

    keras.backend.clear_session()
    rows = keras.Input((5, 6), batch_size=1, name="rows")
    model = keras.Model(rows, keras.layers.Dense(3, name="last")(getattr(keras.layers, name)(8, name="recurrent")(rows)))
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0.0, 0.4, values.shape).astype(np.float32) for values in model.get_weights()])
    return load_float_model(model).data


def require_composites() -> None:
    """Skips the test where this TensorFlow is too old for composite operators."""
    if not hasattr(tf_private.schema(), "StableHLOCompositeOptionsT"):
        pytest.skip("this TensorFlow knows no STABLEHLO_COMPOSITE")


@functools.cache
def composite() -> bytes:
    """STABLEHLO_COMPOSITE: between two dense layers, an operator that a runtime replaces by a third dense layer and TANH."""

    @tf.function(input_signature=[_VECTOR])
    def around(x: Any) -> Any:
        return dense(tf.sin(tf.nn.relu(dense(x, 0))), 2)

    @tf.function(input_signature=[_VECTOR])
    def within(x: Any) -> Any:
        return tf.tanh(dense(x, 1))

    from flatbuffers import flexbuffers

    require_composites()
    schema = tf_private.schema()
    outer, inner = unpack(Model(_converted(around, "float"))), unpack(Model(_converted(within, "float")))
    options = schema.StableHLOCompositeOptionsT()
    options.name = b"test.tanh_of_dense"
    options.compositeAttributes = np.frombuffer(flexbuffers.Dumps({}), np.uint8)
    options.decompositionSubgraphIndex = copy_subgraphs(inner, outer, [0])[0]
    operator = outer.subgraphs[0].operators[1]  # SIN
    operator.opcodeIndex = Writer(outer).add_code("STABLEHLO_COMPOSITE", 1)
    operator.builtinOptionsType, operator.builtinOptions = 0, None
    operator.builtinOptions2Type, operator.builtinOptions2 = schema.BuiltinOptions2.StableHLOCompositeOptions, options
    drop_unused_codes(outer)
    return pack(outer)


@functools.cache
def endless() -> bytes:
    """A loop whose condition is true for every sample with a positive sum."""

    @tf.function(input_signature=[_VECTOR])
    def function(x: Any) -> Any:
        return tf.while_loop(lambda x: tf.reduce_sum(x) > 0.0, lambda x: (x * 1.0 + 0.25,), (x + 0.0,))[0]

    return _converted(function, "float")


@functools.cache
def quantized(name: str, kind: str = "int8") -> bytes:
    """Returns the model as TensorFlow quantizes it, calibrated on samples(model, 15): nothing is clipped there."""
    data: bytes = globals()[name]()
    calibrated = load_float_model(data).calibrate(samples(Model(data), 15))
    return calibrated.quantize(kind).data


def samples(model: Model, count: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Returns samples in input order; a number of steps goes 0, 1, 2, ... 4, 0, ..."""
    generator = np.random.default_rng(seed)
    return [
        [
            np.array(number % 5, np.int32)
            if np.int32 in spec.dtypes
            else generator.normal(0.0, 1.0, spec.shape).astype(np.float32)
            for spec in model.input_specs()
        ]
        for number in range(count)
    ]


def _saved(module: Any, names: list[str], kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder, tf_private.captured_chatter():
        tf.saved_model.save(module, folder, signatures={name: getattr(module, name) for name in names})
        return _convert(tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=names), kind)
