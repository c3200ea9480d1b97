"""Small Keras models, and the float ``.tflite`` that TensorFlow makes of each; made once in a session.

Weights are drawn from a seeded generator, not trained: what is tested is arithmetic, and that has no need of accuracy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tflite_qdebug import tf_private
from tflite_qdebug.conversion import CalibratedModel, FloatModel, load_float_model

#: Samples of a representative dataset.
COUNT = 8

_BUILDERS: dict[str, Callable[[], Any]] = {}


def _model(builder: Callable[[], Any]) -> Callable[[], Any]:
    _BUILDERS[builder.__name__] = builder
    return builder


@_model
def mixed() -> Any:
    """Convolutions, addition, split, concatenation, mean, dense layer, softmax: one input, one output."""
    image = keras.Input((8, 8, 4), batch_size=1, name="image")
    first = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(image)
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(first)
    added = keras.layers.Add(name="added")([first, depthwise])
    left, right = keras.ops.split(added, 2, axis=-1)
    joined = keras.layers.Concatenate(name="joined")([keras.ops.tanh(left), right])
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(joined)
    dense = keras.layers.Dense(5, name="dense")(pooled)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(dense))


@_model
def chain() -> Any:
    """Two convolutions and a dense layer: nothing that computes in place."""
    image = keras.Input((6, 6, 3), batch_size=1, name="image")
    first = keras.layers.Conv2D(6, 3, name="first")(image)
    second = keras.layers.Conv2D(4, 3, name="second")(first)
    return keras.Model(image, keras.layers.Dense(3, name="dense")(keras.layers.Flatten()(second)))


@_model
def two_by_two() -> Any:
    """Two inputs of different shape, two outputs of different shape."""
    wide = keras.Input((12,), batch_size=1, name="wide")
    narrow = keras.Input((3,), batch_size=1, name="narrow")
    total = keras.layers.Dense(3, name="reduced")(wide) + narrow
    return keras.Model([wide, narrow], [total, keras.layers.Dense(2, name="small")(total)])


@_model
def shared_weights() -> Any:
    """One kernel that two operators read."""
    vector = keras.Input((16,), batch_size=1, name="vector")
    dense = keras.layers.Dense(16, name="dense", use_bias=False)
    once = keras.layers.ReLU()(dense(vector))
    return keras.Model(vector, dense(keras.ops.sin(once)))


@_model
def dynamic_batch() -> Any:
    """A batch of any size."""
    vector = keras.Input((10,), name="vector")
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")(vector)
    return keras.Model(vector, keras.layers.Dense(4, name="last")(hidden))


@_model
def weighty() -> Any:
    """Kernels of more than 1024 elements, which weight-only quantizers take: convolution, depthwise, transposed, dense."""
    image = keras.Input((6, 6, 12), batch_size=1, name="image")
    first = keras.layers.Conv2D(16, 3, padding="same", name="first")(image)
    depthwise = keras.layers.DepthwiseConv2D(9, padding="same", name="depthwise")(first)
    up = keras.layers.Conv2DTranspose(12, 3, strides=2, padding="same", name="up")(depthwise)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.ReLU()(up))
    # The activation keeps TensorFlow from moving the first bias into the second.
    dense = keras.layers.Dense(100, activation="relu", name="dense")(pooled)
    return keras.Model(image, keras.layers.Dense(3, name="small")(dense))


@_model
def with_cosine() -> Any:
    """COS has no int8 kernel."""
    vector = keras.Input((8,), batch_size=1, name="vector")
    hidden = keras.layers.Dense(8, name="hidden")(vector)
    return keras.Model(vector, keras.layers.Dense(4, name="last")(keras.ops.cos(hidden)))


@_model
def attention() -> Any:
    """A product of two activations: BATCH_MATMUL."""
    tokens = keras.Input((6, 8), batch_size=1, name="tokens")
    query, key = (keras.layers.Dense(8, name=name)(tokens) for name in ("query", "key"))
    return keras.Model(tokens, keras.ops.matmul(query, keras.ops.transpose(key, (0, 2, 1))))


@_model
def embedding() -> Any:
    """A table of 1600 elements that is gathered from, and multiplied with as the weights of a dense layer."""
    ids = keras.Input((4,), batch_size=1, dtype="int32", name="ids")
    table = keras.layers.Embedding(200, 8, name="table")
    return keras.Model(ids, keras.ops.matmul(keras.ops.tanh(table(ids)), keras.ops.transpose(table.embeddings)))


@_model
def constant_product() -> Any:
    """BATCH_MATMUL with a constant of 2000 elements."""
    tokens = keras.Input((6, 40), batch_size=1, name="tokens")
    constant = np.random.default_rng(0).normal(size=(1, 40, 50)).astype(np.float32)
    return keras.Model(tokens, keras.ops.matmul(tokens, constant))


@_model
def scalars() -> Any:
    """Constants that are no weights: scalars, a vector beyond the range of float16 and below it, a constant that is joined."""
    vector = keras.Input((64,), batch_size=1, name="vector")
    spread = np.concatenate([np.linspace(1e-9, 1e-7, 32), np.linspace(1e4, 1e5, 32)]).astype(np.float32)
    value = keras.ops.tanh(vector) * 3.3 + keras.ops.convert_to_tensor(spread)
    value = keras.ops.tanh(value) + 0.1
    value = keras.ops.concatenate([value, keras.ops.convert_to_tensor(np.linspace(1, 2, 64, dtype=np.float32)[None])])
    return keras.Model(vector, keras.ops.maximum(value, 0.2))


@_model
def odd_channels() -> Any:
    """A dense layer whose weights are set by `keras_model`: channels of zeros, of tiny and of huge values, ties."""
    vector = keras.Input((64,), batch_size=1, name="vector")
    return keras.Model(vector, keras.layers.Dense(64, name="dense")(vector))


def _odd_weights() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    weights = generator.normal(size=(64, 64)).astype(np.float32)
    for channel, factor in enumerate([0.0, 1e-30, 1e-41, 1e30, 1e-7, 2e-7, 4e-7]):
        weights[:, channel] *= np.float32(factor)
    weights[:, 32:] = generator.integers(-254, 255, (64, 32)) / 2
    weights[0, 32:] = 127.0  # scale 1: every odd half is a tie
    return [weights, np.zeros(64, dtype=np.float32)]


@_model
def long_lstm() -> Any:
    """A recurrent layer with matrices of 1600 elements."""
    import tf_keras

    rows = tf_keras.Input((5, 40), batch_size=1, name="rows")
    return tf_keras.Model(rows, tf_keras.layers.LSTM(40, name="recurrent")(rows))


@_model
def lstm() -> Any:
    """A recurrent layer of Keras 2, which TensorFlow fuses into one operator with variables."""
    import tf_keras

    rows = tf_keras.Input((5, 6), batch_size=1, name="rows")
    return tf_keras.Model(rows, tf_keras.layers.Dense(3, name="last")(tf_keras.layers.LSTM(4, name="recurrent")(rows)))


@functools.cache
def keras_model(name: str) -> Any:
    """Returns the model, with weights that depend on nothing but its name."""
    keras.backend.clear_session()
    model = _BUILDERS[name]()
    generator = np.random.default_rng(sum(name.encode()))
    model.set_weights([generator.normal(0.0, 1.0 / np.sqrt(max(weights[..., 0].size, 1)), weights.shape).astype(np.float32)
                       for weights in model.get_weights()])  # fmt: skip
    if name == "odd_channels":
        model.set_weights(_odd_weights())
    return model


@functools.cache
def float_tflite(name: str) -> bytes:
    """Returns TensorFlow's own conversion of the model, without any optimization."""
    with tf_private.captured_chatter():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(keras_model(name)).convert())


@functools.cache
def while_loop() -> bytes:
    """Returns a float model with a loop, whose body is a second subgraph."""

    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32)])
    def looped(x: Any) -> Any:
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.sin(x) * 1.5), (0, x))[1]

    with tf_private.captured_chatter():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([looped.get_concrete_function()])
        return bytes(converter.convert())


@functools.cache
def float_model(name: str) -> FloatModel:
    """Returns our conversion of the model, from its int8 converter."""
    return load_float_model(converter(name))


@functools.cache
def calibrated(name: str) -> CalibratedModel:
    """Returns it calibrated on `COUNT` samples, by TensorFlow."""
    return float_model(name).calibrate(dataset(name, COUNT))


def samples(name: str, count: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Returns ``count`` samples for the model, in the order of its inputs in the ``.tflite``."""
    interpreter = reference_interpreter(float_tflite(name))
    details = interpreter.get_input_details()
    generator = np.random.default_rng(seed)

    def values(detail: Any) -> np.ndarray:
        if detail["dtype"] == np.float32:
            return generator.normal(0.0, 1.0, detail["shape"]).astype(np.float32)
        return generator.integers(0, 100, detail["shape"]).astype(detail["dtype"])

    return [[values(detail) for detail in details] for _ in range(count)]


def dataset(name: str, count: int, seed: int = 0) -> Callable[[], Iterator[list[np.ndarray]]]:
    """Returns a function as TensorFlow wants it for a representative dataset."""
    values = samples(name, count, seed)
    return lambda: iter(values)


def converter(name: str, count: int = COUNT, **settings: Any) -> Any:
    """Returns a converter of the model for int8, with ``settings`` as further attributes."""
    made = tf.lite.TFLiteConverter.from_keras_model(keras_model(name))
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.representative_dataset = dataset(name, count)
    for key, value in settings.items():
        setattr(made, key, value)
    return made


def reference_interpreter(model: bytes, preserve: bool = True, kernels: str = "reference") -> Any:
    """Returns TensorFlow's interpreter, without anything of ours, that keeps every tensor's value."""
    resolvers = tf.lite.experimental.OpResolverType
    resolver = {"reference": resolvers.BUILTIN_REF, "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES}[kernels]
    interpreter = tf.lite.Interpreter(
        model_content=model, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=preserve
    )
    interpreter.allocate_tensors()
    return interpreter


def run(model: bytes, inputs: list[np.ndarray], kernels: str = "reference", preserve: bool = True) -> Any:
    """Runs one sample in TensorFlow's interpreter and returns the interpreter."""
    interpreter = reference_interpreter(model, preserve, kernels)
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        if tuple(detail["shape"]) != values.shape:
            interpreter.resize_tensor_input(detail["index"], values.shape)
            interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return interpreter


def outputs(model: bytes, inputs: list[np.ndarray], kernels: str = "reference") -> list[np.ndarray]:
    """Returns the model's outputs for one sample, in TensorFlow's interpreter."""
    interpreter = run(model, inputs, kernels, preserve=False)
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
