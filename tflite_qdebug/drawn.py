"""What a sample looks like: an image, a curve, or text, small enough to stand in a report."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.errors import MissingPackageError
from tflite_qdebug.wording import number

__all__ = ["Drawing", "draw_samples"]

#: Pixels of the longer side; larger images are shown smaller, and say so.
MOST_PIXELS = 128
# Points of a curve; of longer ones the least and greatest value of each stretch is kept.
_MOST_POINTS = 400
_MOST_CURVES = 4
_LEAST_PIXELS, _LEAST_POINTS = 4, 8
_TEXT_VALUES = 8


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One input of one sample, to be looked at.

    Attributes:
        name: Of the input.
        kind: ``image``, ``curve`` or ``text``.
        words: What it is: shape, and which values are black and white.
        pixels: Of an image: uint8, (height, width) or (height, width, 3).
        curves: Of a curve: the values of each channel.
        text: The first values, of all kinds.
    """

    name: str
    kind: str
    words: str
    pixels: np.ndarray | None = None
    curves: tuple[tuple[float, ...], ...] = ()
    text: str = ""

    def png(self) -> bytes:
        """Returns the image as a PNG file; nothing of another kind.

        Raises:
            MissingPackageError: Where Pillow is not installed.
        """
        if self.pixels is None:
            return b""
        buffer = io.BytesIO()
        _pillow().fromarray(self.pixels).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data; images as PNG in base64."""
        fields = {name: getattr(self, name) for name in ("name", "kind", "words", "curves", "text")}
        return {**fields, "png": base64.b64encode(self.png()).decode()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Drawing:
        """Reads what `to_dict` gave."""
        png = base64.b64decode(fields["png"])
        pixels = np.array(_pillow().open(io.BytesIO(png))) if png else None
        curves = tuple(tuple(curve) for curve in fields["curves"])
        return cls(fields["name"], fields["kind"], fields["words"], pixels, curves, fields["text"])


def draw_samples(specs: Sequence[InputSpec], samples: Sequence[Sequence[np.ndarray]]) -> list[tuple[Drawing, ...]]:
    """Returns each sample's inputs as drawings; of all samples one value is the same grey.

    Args:
        specs: The model's inputs, in its order.
        samples: Arrays in the same order; of a batch the first is drawn.

    Raises:
        MissingPackageError: Where an image is to be drawn smaller and Pillow is not installed.
    """
    columns = []
    for position, spec in enumerate(specs):
        arrays = [_first_of_batch(sample[position], spec) for sample in samples]
        limits = _limits(arrays)
        columns.append([_drawing(spec.title, array, limits) for array in arrays])
    return [tuple(column[row] for column in columns) for row in range(len(samples))]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("drawing samples needs Pillow, which is not installed; pip install pillow") from error
    return Image


def _first_of_batch(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Returns the first of a batch; an input of one or three axes that are all its own has none."""
    has_batch = array.ndim in (2, 4, 5) or (array.ndim > 0 and array.shape[0] == 1 and spec.shape[0] in (1, -1))
    return array[0] if has_batch and len(array) else array


def _limits(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns which values are black and white: of a usual range of pixels its ends, else the least and the greatest."""
    kinds = {array.dtype for array in arrays}
    if kinds in ({np.dtype(np.uint8)}, {np.dtype(np.int8)}):
        info = np.iinfo(arrays[0].dtype)
        return float(info.min), float(info.max)
    numeric = [array for array in arrays if array.dtype.kind in "fiub" and array.size]
    if not numeric:
        return 0.0, 1.0
    low, high = min(float(array.min()) for array in numeric), max(float(array.max()) for array in numeric)
    for usual in ((0.0, 1.0), (-1.0, 1.0)):
        if usual[0] <= low and high <= usual[1]:
            return usual
    return (0.0, 255.0) if low >= 0.0 and 32.0 < high <= 255.0 else (low, high)


def _drawing(name: str, array: np.ndarray, limits: tuple[float, float]) -> Drawing:
    shape = " x ".join(map(str, array.shape)) or "one value"
    text = _text(array)
    found = _as_image(array)
    if found is not None:
        image, which = found
        pixels, smaller = _shrunk(_grey(image, limits))
        words = f"{shape}{which}; {limits[0]:.3g} is black, {limits[1]:.3g} white{smaller}"
        return Drawing(name, "image", words, pixels, text=text)
    curves = _as_curves(array)
    if curves is not None:
        kept = tuple(tuple(float(f"{value:.5g}") for value in _thinned(curve)) for curve in curves)
        more = "" if len(curves) == 1 else f", {len(curves)} channels"
        words = f"{shape}{more}; from {number(float(array.min()), 3)} to {number(float(array.max()), 3)}"
        return Drawing(name, "curve", words, curves=kept, text=text)
    return Drawing(name, "text", shape, text=text)


def _text(array: np.ndarray) -> str:
    values = array.reshape(-1)[:_TEXT_VALUES].tolist()
    shown = [number(value) if isinstance(value, float) else str(value) for value in values]
    return ", ".join(shown) + (", …" if array.size > len(values) else "")


def _as_image(array: np.ndarray) -> tuple[np.ndarray, str] | None:
    """Returns (height, width) or (height, width, 3), and what of the array it is where it is not all; None of no image."""
    is_wide = array.ndim in (2, 3) and min(array.shape[:2]) >= _LEAST_PIXELS
    if not is_wide or (array.dtype.kind not in "fu" and array.dtype != np.int8):
        return None  # wide integers are indices, of words or of rows
    if array.ndim == 2:
        return (array, "") if array.shape[1] > _MOST_CURVES else None
    channels = array.shape[2]
    if channels == 1:
        return array[..., 0], ""
    if channels in (3, 4):
        return array[..., :3], "" if channels == 3 else ", the first 3 channels"
    return array[..., 0], f", the first of {channels} channels"


def _grey(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    share = (image.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.round(255.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def _shrunk(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    height, width = pixels.shape[:2]
    factor = max(height, width) / MOST_PIXELS
    if factor <= 1.0:
        return pixels, ""
    image = _pillow()
    size = max(1, round(width / factor)), max(1, round(height / factor))
    smaller = image.fromarray(pixels).resize(size, getattr(image, "Resampling", image).BOX)
    return np.asarray(smaller), f"; drawn {size[1]} x {size[0]}"


def _as_curves(array: np.ndarray) -> list[np.ndarray] | None:
    """Returns the values of each channel over time; None where that is no curve."""
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or len(array) < _LEAST_POINTS:
        return None
    if array.ndim == 1:
        return [array]
    return [array[:, channel] for channel in range(array.shape[1])] if 0 < array.shape[1] <= _MOST_CURVES else None


def _thinned(values: np.ndarray) -> np.ndarray:
    """Returns a curve with few points that has all peaks: of each stretch its least and greatest value, in their order."""
    if len(values) <= _MOST_POINTS:
        return values
    kept = []
    for stretch in np.array_split(values, _MOST_POINTS // 2):
        ends = sorted((int(np.argmin(stretch)), int(np.argmax(stretch))))
        kept += [stretch[ends[0]], stretch[ends[1]]]
    return np.array(kept)
