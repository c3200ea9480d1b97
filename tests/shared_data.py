"""Real samples for the real models of the shared folder, few of them."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from conftest import SHARED_MODELS

from tflite_qdebug.model import Model

Samples = list[list[np.ndarray]]


def _images(count: int, height: int, width: int) -> list[np.ndarray]:
    image = pytest.importorskip("PIL.Image", reason="Pillow decodes the images")
    with np.load(SHARED_MODELS / "imagenet_500" / "images.npz") as arrays:
        content, offsets = arrays["jpeg"].tobytes(), arrays["offsets"]
    opened = (image.open(io.BytesIO(content[offsets[i] : offsets[i + 1]])).convert("RGB") for i in range(100, 100 + count))
    return [np.asarray(one.resize((width, height)), dtype=np.float32)[np.newaxis] for one in opened]


def _words(count: int) -> Samples:
    with np.load(SHARED_MODELS / "keyword_spotting" / "kws01_1000_mfcc.npz") as arrays:
        found = dict(arrays)
    integers = next(values for values in found.values() if values.ndim >= 2)
    scale, zero_point = (float(np.ravel(found[name])[0]) for name in ("scale", "zero_point"))
    chosen = integers[100 : 100 + count].reshape(-1, 1, 49, 10, 1)
    return [[((one.astype(np.float32) - zero_point) * scale).astype(np.float32)] for one in chosen]


def _array(path: str, rank: int, size: int) -> np.ndarray:
    with np.load(SHARED_MODELS / path) as arrays:
        return next(arrays[name] for name in arrays.files if arrays[name].ndim >= rank and size in arrays[name].shape)


def _faces(count: int) -> Samples:
    image = pytest.importorskip("PIL.Image", reason="Pillow scales the images")
    faces = _array("face_detection/faces40.npz", 4, 192)[:count]
    scaled = [np.asarray(image.fromarray(face).resize((128, 128)), dtype=np.float32) for face in faces]
    return [[(one / 127.5 - 1)[np.newaxis]] for one in scaled]


def _random(name: str, count: int) -> Samples:
    generator = np.random.default_rng(0)

    def values(spec: object) -> np.ndarray:
        shape = tuple(2 if size == -1 else size for size in spec.shape)  # type: ignore[attr-defined]
        if np.dtype(np.float32) in spec.dtypes:  # type: ignore[attr-defined]
            return generator.normal(0.0, 1.0, shape).astype(np.float32)
        return generator.integers(0, 2, shape).astype(spec.dtypes[0])  # type: ignore[attr-defined]

    specs = Model(SHARED_MODELS / f"{name}.tflite").input_specs()
    return [[values(spec) for spec in specs] for _ in range(count)]


@functools.cache
def samples(name: str, count: int = 2) -> Samples:
    """Returns ``count`` samples in float32 for a model, called by its path without ``.tflite``."""
    if name.startswith("mobilenetv3"):
        return [[one] for one in _images(count, 224, 224)]
    if name.startswith(("mobilenet_v1", "coral/mobilenet", "coral/deeplab", "coral/posenet")):
        _, height, width, _ = Model(SHARED_MODELS / f"{name}.tflite").input_specs()[0].shape
        return [[((one - 127.5) / 127.5).astype(np.float32)] for one in _images(count, height, width)]
    if name.startswith("keyword"):
        return _words(count)
    if "lstm" in name:
        digits = _array("mnist_lstm/mnist_test2200.npz", 3, 28)[:count]
        return [[(one / 255).astype(np.float32)[np.newaxis]] for one in digits]
    if name.startswith("super"):
        patches = _array("super_resolution/y_pairs_128_64.npz", 3, 64)[:count]
        return [[(one / 255).astype(np.float32).reshape(1, 64, 64, 1)] for one in patches]
    if name.startswith("face"):
        return _faces(count)
    return _random(name, count)
