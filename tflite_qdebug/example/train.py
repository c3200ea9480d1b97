"""Makes the files of the example: ``python -m tflite_qdebug.example.train`` rewrites ``model.tflite`` and ``data.npz``.

Three steps, with fixed seeds: split scikit-learn's digits, train a small MobileNetV3-like network on the training
split, and spread its channel scales (see the docstring of ``tflite_qdebug.example`` for what that is and why it is
realistic). It takes about half a minute and needs TensorFlow and scikit-learn; using the example needs neither.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite_qdebug.example import DATA_PATH, MODEL_PATH, SPLITS, load_split

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["build_network", "main", "split_digits", "spread_channel_scales", "to_tflite", "train_network"]

SEED = 1
SPLIT_SIZES = {"training": 897, "representative": 150, "debug": 150, "evaluation": 600}
STEPS = 900
BATCH_SIZE = 64
LEARNING_RATE = 4e-3

# block -> (count, exponent): so many of the least important depthwise output channels shrink by 2**-exponent.
SHRUNK_CHANNELS = {"block1": (2, 8), "block2": (2, 8), "block3": (2, 8)}
# block -> exponent: the largest channel of the expansion's output grows by 2**exponent.
GROWN_CHANNEL = {"block4": 5}


def split_digits() -> dict[str, np.ndarray]:
    """Returns scikit-learn's digits, shuffled and cut into disjoint splits.

    Returns:
        For each name in ``SPLITS``: ``<name>_pixels`` uint8 (n, 8, 8) from 0 to 16, ``<name>_labels`` uint8 (n,) and
        ``<name>_rows`` uint16 (n,), the positions in scikit-learn's data set.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    ends = np.cumsum([SPLIT_SIZES[name] for name in SPLITS])
    if ends[-1] != len(order):
        raise ValueError(f"The splits hold {ends[-1]} digits and scikit-learn has {len(order)}; correct SPLIT_SIZES.")
    arrays = {}
    for name, rows in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        arrays[f"{name}_pixels"] = digits.images[rows].astype(np.uint8)
        arrays[f"{name}_labels"] = digits.target[rows].astype(np.uint8)
        arrays[f"{name}_rows"] = rows.astype(np.uint16)
    return arrays


def hard_swish(x: Any, name: str) -> Any:
    """Returns ``x * relu6(x + 3) / 6`` in the form that the TensorFlow Lite converter fuses into HARD_SWISH."""
    return x * hard_sigmoid(x, name)


def hard_sigmoid(x: Any, name: str) -> Any:
    """Returns ``relu6(x + 3) / 6``, which TensorFlow Lite computes with a fused RELU6 and a MUL."""
    import tensorflow as tf

    return tf.keras.layers.ReLU(6.0, name=name)(x + 3.0) * (1.0 / 6.0)


def relu(x: Any, name: str) -> Any:
    """Returns ``max(x, 0)``."""
    import tensorflow as tf

    return tf.keras.layers.ReLU(name=name)(x)


def normalized(layer: tf.keras.layers.Layer, x: Any, activation: Callable[[Any, str], Any] | None = None) -> Any:
    """Applies a convolution without bias, its batch normalization and, if given, an activation."""
    import tensorflow as tf

    x = tf.keras.layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_bn")(layer(x))
    return x if activation is None else activation(x, f"{layer.name}_activation")


def squeeze_excite(x: Any, name: str) -> Any:
    """Multiplies each channel by a gate between 0 and 1, computed from the means of all channels."""
    from tensorflow.keras import layers

    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(x)
    gate = relu(layers.Conv2D(max(8, channels // 4), 1, name=f"{name}_reduce")(gate), f"{name}_reduce_activation")
    gate = hard_sigmoid(layers.Conv2D(channels, 1, name=f"{name}_gate")(gate), f"{name}_gate_activation")
    return layers.Multiply(name=f"{name}_scale")([x, gate])


def inverted_residual(
    x: Any,
    name: str,
    expanded: int,
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    activation: Callable[[Any, str], Any] = relu,
    squeeze: bool = False,
) -> Any:
    """The block of MobileNetV3: 1x1 expansion, depthwise convolution, squeeze-excite, 1x1 projection, residual."""
    from tensorflow.keras import layers

    options = {"padding": "same", "use_bias": False}
    y = normalized(layers.Conv2D(expanded, 1, name=f"{name}_expand", **options), x, activation)
    depthwise = layers.DepthwiseConv2D(kernel, strides=stride, name=f"{name}_depthwise", **options)
    y = normalized(depthwise, y, activation)
    if squeeze:
        y = squeeze_excite(y, f"{name}_squeeze")
    y = normalized(layers.Conv2D(channels, 1, name=f"{name}_project", **options), y)
    return layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and x.shape[-1] == channels else y


def build_network(batch_size: int | None = None) -> tf.keras.Model:
    """Returns the untrained network: image (batch, 8, 8, 1) from 0 to 1 -> probabilities (batch, 10)."""
    from tensorflow.keras import Input, Model, layers

    image = Input((8, 8, 1), batch_size=batch_size, name="image")
    x = normalized(layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem"), image, hard_swish)
    x = inverted_residual(x, "block1", 32, 16)
    x = inverted_residual(x, "block2", 48, 24, stride=2)
    x = inverted_residual(x, "block3", 64, 24)
    x = inverted_residual(x, "block4", 64, 24)
    x = inverted_residual(x, "block5", 72, 32, kernel=5, stride=2, activation=hard_swish, squeeze=True)
    x = inverted_residual(x, "block6", 96, 32, activation=hard_swish, squeeze=True)
    x = normalized(layers.Conv2D(96, 1, use_bias=False, name="head"), x, hard_swish)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = hard_swish(layers.Dense(96, name="dense")(x), "dense_activation")
    x = layers.Dropout(0.2, name="dropout")(x)
    x = layers.Dense(10, name="logits")(x)
    return Model(image, layers.Softmax(name="probabilities")(x), name="digits")


def augmented(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns the images (n, 8, 8, 1), each shifted by up to one pixel and dimmed by up to a fifth."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = generator.integers(0, 3, (len(images), 2))
    shifted = np.stack([one[top : top + 8, left : left + 8] for one, (top, left) in zip(padded, corners, strict=True)])
    return shifted * generator.uniform(0.8, 1.0, (len(images), 1, 1, 1)).astype(np.float32)


def train_network(images: np.ndarray, labels: np.ndarray) -> tf.keras.Model:
    """Returns the network trained on images (n, 8, 8, 1) and labels (n,); the same weights each time."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    network = build_network()
    rate = tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE, STEPS)
    network.compile(tf.keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    generator = np.random.default_rng(SEED)
    for _ in range(STEPS):
        rows = generator.choice(len(images), BATCH_SIZE, replace=False)  # batch normalization needs full batches
        network.train_on_batch(augmented(images[rows], generator), labels[rows])
    return network


def spread_channel_scales(network: tf.keras.Model, images: np.ndarray) -> None:
    """Rescales channels of ``network`` in place so that its outputs stay equal but int8 can no longer hold it.

    As ``relu(s * x) = s * relu(x)`` for positive s, a channel in front of a ReLU can be scaled by s and the
    weights that read it by 1 / s. All factors are powers of two, so that the float outputs do not even change
    in the last bit. It is cross-layer equalization (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019, section 4.1) run backwards.

    Args:
        network: A trained network of ``build_network``.
        images: (n, 8, 8, 1), from which the importance and the range of the channels are taken.
    """
    for block, (count, exponent) in SHRUNK_CHANNELS.items():
        kernel = network.get_layer(f"{block}_project").get_weights()[0]  # (1, 1, input channels, output channels)
        activation = channel_activations(network, f"{block}_depthwise_activation", images)
        importance = activation.std(axis=0) * np.linalg.norm(kernel[0, 0], axis=1)
        least = np.argsort(importance)[:count].tolist()
        rescale_channels(network, f"{block}_depthwise_bn", f"{block}_project", least, 2.0**-exponent)
    for block, exponent in GROWN_CHANNEL.items():
        activation = channel_activations(network, f"{block}_expand_activation", images)
        largest = [int(np.argmax(activation.max(axis=0)))]
        rescale_channels(network, f"{block}_expand_bn", f"{block}_depthwise", largest, 2.0**exponent)


def channel_activations(network: tf.keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    """Returns the output of ``layer`` for ``images``, as (positions of all images, channels)."""
    from tensorflow.keras import Model

    outputs = Model(network.input, network.get_layer(layer).output).predict(images, verbose=0)
    return outputs.reshape(-1, outputs.shape[-1])


def rescale_channels(network: tf.keras.Model, normalization: str, reader: str, channels: Sequence[int], factor: float) -> None:
    """Scales channels of a batch normalization by ``factor``, and the reader's weights for them by its inverse."""
    gamma, beta, mean, variance = network.get_layer(normalization).get_weights()
    gamma[channels] *= factor
    beta[channels] *= factor
    network.get_layer(normalization).set_weights([gamma, beta, mean, variance])
    (kernel,) = network.get_layer(reader).get_weights()  # input channels are axis 2, also of a depthwise convolution
    kernel[:, :, channels] /= factor
    network.get_layer(reader).set_weights([kernel])


def to_tflite(network: tf.keras.Model) -> bytes:
    """Returns ``network`` as a float TensorFlow Lite model with a fixed batch of 1."""
    import tensorflow as tf

    single = build_network(batch_size=1)
    single.set_weights(network.get_weights())
    with contextlib.redirect_stdout(io.StringIO()):  # Keras lists every variable
        return tf.lite.TFLiteConverter.from_keras_model(single).convert()


def predict_tflite(model: bytes, images: np.ndarray) -> np.ndarray:
    """Returns the outputs (n, 10) of a TensorFlow Lite model for images (n, 8, 8, 1)."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=model)
    interpreter.allocate_tensors()
    image, output = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows: list[np.ndarray] = []
    for one in images:
        interpreter.set_tensor(image, one[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(output)[0])
    return np.stack(rows)


def main() -> None:
    """Rewrites the files of the example, and checks the written model against the trained network.

    One thread computes, so that sums are taken in the same order on any count of cores; another version of TensorFlow
    or another kind of processor may still train slightly different weights.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **split_digits())  # type: ignore[arg-type]
    DATA_PATH.write_bytes(arrays.getvalue())
    images, labels = load_split("training")
    network = train_network(images, labels)
    held_out, held_out_labels = load_split("evaluation")
    trained = network.predict(held_out, verbose=0)
    spread_channel_scales(network, images)
    model = to_tflite(network)
    difference = float(np.abs(predict_tflite(model, held_out) - trained).max())
    if difference > 1e-4:
        raise RuntimeError(f"The model differs from the trained network by {difference:g}, more than 1e-4.")
    MODEL_PATH.write_bytes(model)
    accuracy = float(np.mean(trained.argmax(axis=1) == held_out_labels))
    print(f"accuracy {accuracy:.4f} on {len(held_out)} held-out digits")
    print(f"{MODEL_PATH.name}: {len(model)} bytes, {DATA_PATH.name}: {DATA_PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
