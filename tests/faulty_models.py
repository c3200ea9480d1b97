"""A small sound network, and the same with one fault planted into one layer; float ``.tflite``, quantized, and samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tflite_qdebug import edit, tf_private
from tflite_qdebug.conversion import CalibratedModel, load_float_model

#: Images that calibrate, and others that are measured.
CALIBRATING, MEASURED = 24, 12


class Pair(NamedTuple):
    floating: bytes
    quantized: bytes
    samples: list[list[np.ndarray]]


Weights = dict[str, list[np.ndarray]]


def network(joining: str = "concatenate") -> Any:
    """Stem, two branches that are joined, a residual addition, a head: 10 operators."""
    image = keras.Input((8, 8, 4), batch_size=1, name="image")
    stem = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(image)
    left = keras.layers.Conv2D(8, 1, activation="relu", name="left")(stem)
    right = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="right")(stem)
    joined = keras.layers.Concatenate(name="joined")([left, right])
    mixed = keras.layers.Conv2D(16, 3, padding="same", name="mixed")(joined)
    added = keras.layers.Add(name="added")([mixed, stem])
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.ReLU(name="active")(added))
    return keras.Model(image, keras.layers.Dense(6, name="head")(pooled))


def _drawn(model: Any, seed: int = 5) -> Weights:
    """Returns weights that keep the size of values from layer to layer (He et al. 2015), and small biases."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for layer in model.layers:
        shapes = [value.shape for value in layer.get_weights()]
        if shapes:
            inputs = int(np.prod(shapes[0][:-1]))
            kernel = generator.normal(0.0, np.sqrt(2.0 / inputs), shapes[0]).astype(np.float32)
            drawn[layer.name] = [kernel, *(generator.normal(0.0, 0.05, shape).astype(np.float32) for shape in shapes[1:])]
    return drawn


def images(count: int, seed: int) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.normal(0.0, 1.0, (1, 8, 8, 4)).astype(np.float32)] for _ in range(count)]


def converted(model: Any) -> bytes:
    with tf_private.captured_chatter():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def pair_of(
    model: Any,
    *,
    samples: Callable[[int, int], list[list[np.ndarray]]] = images,
    ranges: Callable[[CalibratedModel], Mapping[int, tuple[float, float]]] | None = None,
    **options: Any,
) -> Pair:
    """Converts, calibrates and quantizes a Keras model; ``ranges`` gives activations other ranges than the calibrated."""
    floating = model if isinstance(model, bytes) else converted(model)
    calibrated = load_float_model(floating).calibrate(samples(CALIBRATING, 1), "exposed", histograms=False, progress=False)
    if ranges is not None:
        calibrated = CalibratedModel(calibrated.float_model, edit.with_ranges(calibrated.model, ranges(calibrated)))
    return Pair(floating, calibrated.quantize("int8", **options).data, samples(MEASURED, 2))


def built(change: Callable[[Weights], None] | None = None, seed: int = 5) -> Any:
    """Returns the network with its weights, which ``change`` may change."""
    keras.backend.clear_session()
    model = network()
    drawn = _drawn(model, seed)
    if change is not None:
        change(drawn)
    for name, values in drawn.items():
        model.get_layer(name).set_weights(values)
    return model


@functools.cache
def sound() -> Pair:
    """The network as it is."""
    return pair_of(built())


def node(names: list[str], layer: str) -> str:
    """Returns the one node of a Keras layer that a name contains."""
    (found,) = [name for name in names if f"/{layer}_1/" in name.partition(";")[0]]
    return found


def widened(calibrated: CalibratedModel, layer: str, factor: float) -> dict[int, tuple[float, float]]:
    """Returns the calibrated range of a layer's output, so many times as wide."""
    tensors = calibrated.model.main.tensors
    producers = calibrated.model.main.producers
    (index,) = [i for i in producers if f"/{layer}_1/" in tensors[i].name.partition(";")[0]]
    return {index: (factor * float(tensors[index].minimum or 0.0), factor * float(tensors[index].maximum or 0.0))}


def outlier_channel(weights: Weights) -> None:
    """Weights and bias of one output channel of ``right`` are 50 times larger."""
    for values in weights["right"]:
        values[..., 3] *= 50.0


def hidden_outlier_channel(weights: Weights) -> None:
    """The same, and the weights that read the channel 50 times smaller: the model computes what it did."""
    outlier_channel(weights)
    weights["mixed"][0][:, :, 8 + 3] /= 50.0


def unbalanced(weights: Weights) -> None:
    """``left`` gives values 100 times smaller, which the weights that read them make up for."""
    for values in weights["left"]:
        values *= 0.01
    weights["mixed"][0][:, :, :8] *= 100.0


def dead(weights: Weights) -> None:
    """The biases of ``left`` are so far below zero that its ReLU lets nothing through."""
    weights["left"][1][:] = -100.0


def graded(weights: Weights) -> None:
    """The channels of ``right`` are the smaller the later they come: by 4 from one to the next."""
    for values in weights["right"]:
        values *= 4.0 ** -np.arange(8, dtype=np.float32)


def uneven(weights: Weights) -> None:
    """Half of the channels of ``right`` are 60 times smaller than the others."""
    for values in weights["right"]:
        values[..., 4:] /= 60.0


def spiked(size: float) -> Callable[[int, int], list[list[np.ndarray]]]:
    """Returns what draws images of which one has one pixel of that size in its first channel."""

    def drawn(count: int, seed: int) -> list[list[np.ndarray]]:
        generator = np.random.default_rng(seed)
        made = [generator.normal(0.0, 1.0, (1, 32, 32, 4)).clip(-3.0, 3.0).astype(np.float32) for _ in range(count)]
        made[3][0, 5, 7, 0] = size
        return [[image] for image in made]

    return drawn


def pointwise() -> Any:
    """A convolution of each pixel by itself; half of the output channels read the first channel."""
    keras.backend.clear_session()
    image = keras.Input((32, 32, 4), batch_size=1, name="image")
    values = keras.layers.Conv2D(8, 1, name="values")(image)
    model = keras.Model(image, keras.layers.Conv2D(4, 1, name="behind")(values))
    drawn = _drawn(model, 2)
    drawn["values"][0][..., 0, :4] = 0.0
    for name, values_ in drawn.items():
        model.get_layer(name).set_weights(values_)
    return model


def swish(size: float) -> Any:
    """Hard-swish of values of which a quarter has that size, then a dense layer."""
    keras.backend.clear_session()
    image = keras.Input((8, 8, 4), batch_size=1, name="image")
    values = keras.layers.Conv2D(8, 1, name="values")(image)
    active = keras.layers.Activation("hard_silu", name="active")(values)
    model = keras.Model(image, keras.layers.Dense(4, name="head")(keras.layers.Flatten()(active)))
    drawn = _drawn(model, 2)
    drawn["values"][0][..., :2] *= size
    for name, values_ in drawn.items():
        model.get_layer(name).set_weights(values_)
    return model


def logarithm(least: float) -> Any:
    """Logarithm of squares, to which ``least`` is added, then a dense layer."""
    keras.backend.clear_session()
    image = keras.Input((8, 8, 4), batch_size=1, name="image")
    energy = keras.ops.square(keras.layers.Conv2D(8, 1, name="values")(image))
    logged = keras.ops.log(energy + least)
    model = keras.Model(image, keras.layers.Dense(4, name="head")(keras.layers.Flatten()(logged)))
    for name, values in _drawn(model, 2).items():
        model.get_layer(name).set_weights(values)
    return model
