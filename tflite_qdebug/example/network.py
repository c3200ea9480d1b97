"""The built-in example as a Keras model, for what needs layers and not a ``.tflite``, such as quantization-aware training.

The batch normalizations that the converter folded into the convolutions are unfolded again: each gets the mean m and the
variance v that its convolution has on the training split, the scale sqrt(v + epsilon) and the offset bias + m, which is
x + bias, as in the ``.tflite``, and leaves the network trainable.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tflite_qdebug.example import MODEL_PATH, load_split
from tflite_qdebug.example.train import build_network
from tflite_qdebug.model import Model

__all__ = ["keras_network"]


def keras_network() -> Any:
    """Returns the example as a Keras model: image (batch, 8, 8, 1) from 0 to 1 -> probabilities (batch, 10)."""
    network = build_network()
    model = Model(MODEL_PATH)
    main = model.main
    operators = [
        operator for operator in main.operators if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    layers = [layer for layer in network.layers if layer.weights and not layer.name.endswith("_bn")]
    biases = {}
    for layer, operator in zip(layers, operators, strict=True):
        kernel, bias = (model.constant(main.tensors[index]) for index in operator.inputs[1:])
        axes = {"CONV_2D": (1, 2, 3, 0), "DEPTHWISE_CONV_2D": (1, 2, 3, 0), "FULLY_CONNECTED": (1, 0)}[operator.name]
        kernel = np.transpose(kernel, axes)
        if layer.name.endswith("_squeeze_gate"):  # the converter put the 3 of relu6(x + 3) into the bias
            bias = bias - 3.0
        if layer.use_bias:
            layer.set_weights([kernel, bias])
        else:
            layer.set_weights([kernel])
            biases[layer.name] = bias
    _unfold(network, biases)
    return network


def _unfold(network: Any, biases: dict[str, np.ndarray]) -> None:
    from tensorflow.keras import Model as KerasModel

    for name, bias in biases.items():
        normalization = network.get_layer(f"{name}_bn")
        variance = np.full_like(bias, 1.0 - normalization.epsilon)
        normalization.set_weights([np.ones_like(bias), bias, np.zeros_like(bias), variance])
    probe = KerasModel(network.input, [network.get_layer(name).output for name in biases])
    outputs = probe.predict(load_split("training")[0], verbose=0)
    for (name, bias), output in zip(biases.items(), outputs, strict=True):
        normalization = network.get_layer(f"{name}_bn")
        mean, variance = output.mean(axis=(0, 1, 2)), output.var(axis=(0, 1, 2))
        normalization.set_weights([np.sqrt(variance + normalization.epsilon), bias + mean, mean, variance])
