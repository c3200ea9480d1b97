"""A built-in example: a small trained network that really loses accuracy when it is quantized to int8.

**The model** is a MobileNetV3 in miniature (49 thousand weights): a stem, six inverted-residual blocks, a 1x1 head and
two dense layers. It holds CONV_2D, DEPTHWISE_CONV_2D, HARD_SWISH, ADD, MEAN, MUL (squeeze-excite), FULLY_CONNECTED and
SOFTMAX. Input: one float32 image (1, 8, 8, 1) from 0 to 1. Output: float32 probabilities (1, 10).

**The data** are the 1797 handwritten digits of scikit-learn (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0), cut at random into 897 for training, 150 that
calibrate ("representative"), 150 that are measured ("debug") and 600 with which accuracy is measured ("evaluation").

**The illness** is in the scales of channels, which were spread on purpose after training; the float outputs are
unchanged. Real networks get it from batch normalization folded into convolutions: a channel that hardly varied in
training is divided by its small deviation, and its neighbours are not.

- In ``block1``, ``block2`` and ``block3`` the depthwise convolution has two output channels 256 times smaller than
  trained, and the projection after it has weights 256 times larger for them. Per-channel quantization of weights has a
  scale for each *output* channel, so that within each filter these two large weights take the whole int8 range and of
  the others nearly all become -1, 0 or 1. This is what costs the accuracy.
- In ``block4`` one channel between the expansion and the depthwise convolution is 32 times larger than trained, which
  leaves the others fewer than 10 of the tensor's 256 levels. It costs hardly any accuracy, and the root mean square
  error relative to the scale does not show it (the tensor looks healthier than most); the ranges of its channels do.

**The figures**, with TensorFlow 2.21 on x86-64, correct answers among the 600 of the evaluation split: float 99.0 %,
int8 74.5 % (75.5 % with the kernels of TensorFlow Lite in place of XNNPACK's, 73.5 % with the reference kernels). Of
all nodes the three projections have the largest RMSE / scale, 10 to 15 where all others are below 0.5; with one, two,
three of them in float, worst first, it is 94.3 %, 98.0 %, 98.2 %. Activations of 16 bits do not help (76.7 %): the
weights are ill.

``train.py`` makes both files again. Importing this module loads nothing but numpy.
"""

from __future__ import annotations

import pathlib
from typing import Iterator, List, Tuple

import numpy as np

from tflite_qdebug.errors import OptionError, did_you_mean

__all__ = [
    "DATA_PATH",
    "MODEL_PATH",
    "PIXEL_MAXIMUM",
    "SPLITS",
    "debug_dataset",
    "evaluation_dataset",
    "float_model",
    "labelled_debug_dataset",
    "load_split",
    "representative_dataset",
]

MODEL_PATH = pathlib.Path(__file__).resolve().parent / "model.tflite"
"""The float TensorFlow Lite model."""

DATA_PATH = pathlib.Path(__file__).resolve().parent / "data.npz"
"""For each split ``<name>_pixels`` uint8 (n, 8, 8), ``<name>_labels`` uint8 (n,) and ``<name>_rows`` uint16 (n,), the
positions in the data set of scikit-learn."""

PIXEL_MAXIMUM = 16
"""The largest value of a stored pixel; an image divides by it."""

SPLITS = ("training", "representative", "debug", "evaluation")
"""The names that ``load_split`` takes. No digit is in two of them."""


def float_model() -> bytes:
    """Returns the float TensorFlow Lite model, as ``MODEL_PATH`` holds it."""
    return MODEL_PATH.read_bytes()


def load_split(name: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of one split.

    Args:
        name: One of ``SPLITS``.

    Returns:
        Images, float32 (n, 8, 8, 1) from 0 to 1, and labels, int64 (n,) from 0 to 9.

    Raises:
        OptionError: If there is no such split.
    """
    if name not in SPLITS:
        known = ", ".join(repr(split) for split in SPLITS)
        raise OptionError(f"The example has no split {name!r}; it has {known}.{did_you_mean(str(name), SPLITS)}")
    with np.load(DATA_PATH) as arrays:
        pixels, labels = arrays[f"{name}_pixels"], arrays[f"{name}_labels"]
    return pixels[..., np.newaxis].astype(np.float32) / PIXEL_MAXIMUM, labels.astype(np.int64)


def representative_dataset() -> Iterator[List[np.ndarray]]:
    """Yields what calibrates: 150 times the model's inputs, a list of one float32 image (1, 8, 8, 1).

    Pass the function itself as ``converter.representative_dataset``.
    """
    return _inputs("representative")


def debug_dataset() -> Iterator[List[np.ndarray]]:
    """Yields what is measured: 150 times the model's inputs, a list of one float32 image (1, 8, 8, 1)."""
    return _inputs("debug")


def labelled_debug_dataset() -> Iterator[Tuple[List[np.ndarray], int]]:
    """Yields the debug samples with their labels: 150 pairs, as `evaluation_dataset`."""
    return _pairs("debug")


def evaluation_dataset() -> Iterator[Tuple[List[np.ndarray], int]]:
    """Yields 600 pairs: the model's inputs, a list of one float32 image (1, 8, 8, 1), and the label from 0 to 9."""
    return _pairs("evaluation")


def _pairs(name: str) -> Iterator[Tuple[List[np.ndarray], int]]:
    images, labels = load_split(name)
    for row in range(len(labels)):
        yield [images[row : row + 1]], int(labels[row])


def _inputs(name: str) -> Iterator[List[np.ndarray]]:
    for image in load_split(name)[0]:
        yield [image[np.newaxis]]
