"""Folders of images as samples, and what turns pixels into a model's input."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from tflite_qdebug.datasets.calling import Function, call, option_function
from tflite_qdebug.datasets.files import parse_labels, read_rows
from tflite_qdebug.datasets.samples import Element, InputSpec, count_error
from tflite_qdebug.datasets.sources import Source
from tflite_qdebug.errors import DatasetError, MissingPackageError, OptionError, did_you_mean

if TYPE_CHECKING:
    from tflite_qdebug.datasets.samples import Array

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")
MODES = {"L": 1, "RGB": 3, "RGBA": 4}
RESAMPLING = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

Size = Union[None, int, str, Tuple[int, int]]
Number = Union[None, float, str]


def pillow() -> Any:
    """Imports Pillow's ``Image`` module.

    Raises:
        MissingPackageError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("reading or resizing images needs Pillow: pip install pillow") from error
    return Image


@dataclass(frozen=True)
class PixelOptions:
    """How 8-bit images become a model's input: ``value = pixel * scale + offset`` in float32.

    Attributes:
        size: ``(width, height)`` that images are resized to; None takes images of the model's size alone.
        scale: Factor; None is 1.
        offset: What is added after scaling; None is 0.
        mode: ``L``, ``RGB`` or ``RGBA``; None derives it from the model's number of channels.
        resample: Pillow's name of the filter for resizing.
        preprocess: What is made of each array after all that; None leaves it.
    """

    size: Optional[Tuple[int, int]] = None
    scale: Optional[float] = None
    offset: Optional[float] = None
    mode: Optional[str] = None
    resample: str = "bilinear"
    preprocess: Optional[Callable[[Any], Any]] = None

    @classmethod
    def parse(
        cls, size: Size, scale: Number, offset: Number, mode: Optional[str], resample: str, preprocess: Function = None
    ) -> PixelOptions:
        """Checks the options as they stand in a call or in a query string.

        Raises:
            OptionError: A value that means nothing here.
        """
        if mode is not None and mode not in MODES:
            raise OptionError(f"unknown mode {mode!r}, expected one of {list(MODES)}.{did_you_mean(mode, MODES)}")
        if resample not in RESAMPLING:
            hint = did_you_mean(resample, RESAMPLING)
            raise OptionError(f"unknown resample {resample!r}, expected one of {list(RESAMPLING)}.{hint}")
        return cls(
            _parse_size(size),
            _parse_number("scale", scale),
            _parse_number("offset", offset),
            mode,
            resample,
            option_function("preprocess", preprocess, "a function of an array that returns an array"),
        )

    def convert(self, picture: Any, spec: InputSpec) -> Array:
        """Turns an opened Pillow image into an array of shape (height, width, channels), or (height, width).

        Raises:
            DatasetError: The size differs from the model's and none was given, or the image has more than 8 bits.
        """
        height, width, channels = image_layout(spec)
        if picture.mode.startswith(("I", "F")):
            raise DatasetError(f"an image of mode {picture.mode} has more than 8 bits per channel; convert it yourself")
        mode = self.mode or _mode_of(channels, spec)
        if picture.mode != mode:
            picture = picture.convert(mode)
        if self.size is not None and picture.size != self.size:
            image = pillow()
            picture = picture.resize(self.size, getattr(getattr(image, "Resampling", image), self.resample.upper()))
        if self.size is None and any(want not in (-1, got) for got, want in zip(picture.size, (width, height))):
            raise DatasetError(
                "got an image of {}x{}, expected {}x{} (width x height); add size={}x{} to have images resized".format(
                    *picture.size,
                    *(("any" if side == -1 else side) for side in (width, height)),
                    *(got if want == -1 else want for got, want in zip(picture.size, (width, height))),
                )
            )
        return self.scaled(np.asarray(picture), spec)

    def scaled(self, pixels: Array, spec: InputSpec) -> Array:
        """Applies scale and offset in float32, and drops or adds a single channel's axis as the model has it."""
        layout = image_layout(spec)
        if pixels.ndim == 2 and layout[2] is not None:
            pixels = pixels[..., np.newaxis]
        if pixels.ndim == 3 and layout[2] is None and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if self.scale is None and self.offset is None and not _takes_float(spec) and np.uint8 in spec.dtypes:
            return pixels  # a model of raw pixels
        scale = np.float32(1 if self.scale is None else self.scale)
        return pixels.astype(np.float32) * scale + np.float32(self.offset or 0)

    def preprocessed(self, array: Any) -> Any:
        """Returns what the user's function makes of an input, on a copy of its own, as Keras's functions write into it.

        Raises:
            DatasetError: The function raised.
        """
        return array if self.preprocess is None else call("preprocess", self.preprocess, np.array(array))


def _takes_float(spec: InputSpec) -> bool:
    return any(dtype.kind == "f" for dtype in spec.dtypes)


def _parse_number(name: str, value: Number) -> Optional[float]:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name}={value!r} is not a number") from error
    if not math.isfinite(number):
        raise OptionError(f"{name}={value!r} is not a finite number")
    return number


def _parse_size(size: Size) -> Optional[Tuple[int, int]]:
    if size is None:
        return None
    sides: Any = size.lower().split("x") if isinstance(size, str) else size
    sides = [sides] if isinstance(sides, int) else list(sides)
    try:
        width, height = (int(side) for side in (sides * 2 if len(sides) == 1 else sides))
    except (TypeError, ValueError) as error:
        raise OptionError(f"size={size!r} is not a size, expected WIDTHxHEIGHT such as 320x240") from error
    if width < 1 or height < 1:
        raise OptionError(f"size={size!r} is empty, expected WIDTHxHEIGHT such as 320x240")
    return width, height


def image_layout(spec: InputSpec) -> Tuple[int, int, Optional[int]]:
    """Returns (height, width, channels) of a model's image input; -1 where dynamic, channels None where not an axis.

    Raises:
        DatasetError: The input is not shaped like an image.
    """
    shape = spec.shape
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    if len(shape) == 3 and shape[0] in (1, -1):
        return shape[1], shape[2], None
    if len(shape) == 3:
        return shape
    if len(shape) == 2 and shape[0] not in (1, -1):
        return shape[0], shape[1], None
    raise DatasetError(f"images do not fit the input {spec}, expected (batch, height, width, channels)")


def _mode_of(channels: Optional[int], spec: InputSpec) -> str:
    wanted = {None: 1, -1: 3}.get(channels, channels)
    for mode, count in MODES.items():
        if count == wanted:
            return mode
    raise DatasetError(f"images have 1, 3 or 4 channels, the input {spec} has {channels}")


def single_input(inputs: Sequence[InputSpec]) -> InputSpec:
    """Returns the model's only input.

    Raises:
        DatasetError: The model has several.
    """
    if len(inputs) != 1:
        names = [spec.title for spec in inputs]
        raise DatasetError(f"{count_error(1, inputs)}: images are one input, the model takes {names}.")
    return inputs[0]


class ImageSource(Source):
    """A folder of images, read one at a time.

    Class subfolders give labels 0, 1, ... in sorted order, unless ``labels.csv`` (``file,label``, the file relative to
    the folder) does.
    """

    add_batch = True

    def __init__(self, folder: Path, options: PixelOptions) -> None:
        self.description = f"images in {folder.name}/"
        self._options = options
        self._paths, self._labels = _find_images(folder)
        self.length = len(self._paths)

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        spec = single_input(inputs)
        for position, path in enumerate(self._paths):
            yield Element(
                [self._options.preprocessed(self._load(path, spec))], None if self._labels is None else self._labels[position]
            )

    def _load(self, path: Path, spec: InputSpec) -> Array:
        try:
            with pillow().open(str(path)) as picture:
                return self._options.convert(picture, spec)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error.__cause__
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a damaged file
            raise DatasetError(f"cannot read the image {path}: {error}") from error


def list_images(folder: Path) -> List[Path]:
    """Returns the image files right in ``folder``, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _find_images(folder: Path) -> Tuple[List[Path], Optional[List[Any]]]:
    """Returns the images in order and their labels."""
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    paths, labels = list_images(folder), None
    subfolders = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    by_class = [list_images(child) for child in subfolders]
    if any(by_class):
        if paths:
            names = [child.name for child, found in zip(subfolders, by_class) if found]
            raise DatasetError(f"{folder} has images itself and in its subfolders {names}: name the folder you mean")
        paths = [path for found in by_class for path in found]
        labels = [index for index, found in enumerate(by_class) for _ in found]
    if not paths:
        raise DatasetError(f"{folder} holds no images ({', '.join(SUFFIXES)}) and no <input>/<n>.npy")
    if (folder / "labels.csv").exists():
        labels = _csv_labels(folder, paths)
    return paths, labels


def _csv_labels(folder: Path, paths: Sequence[Path]) -> List[Any]:
    table: Dict[str, str] = {Path(name).as_posix(): label for name, label in read_rows(folder / "labels.csv", 2)}
    names = [path.relative_to(folder).as_posix() for path in paths]
    missing = [name for name in names if name not in table]
    if missing:
        raise DatasetError(f"{folder / 'labels.csv'} has no label for {missing[0]}.{did_you_mean(missing[0], table)}")
    return parse_labels([table[name] for name in names])


def from_images(
    folder: Union[str, os.PathLike[str]],
    size: Size = None,
    scale: Number = None,
    offset: Number = None,
    mode: Optional[str] = None,
    resample: str = "bilinear",
    preprocess: Function = None,
) -> Source:
    """Takes a folder of png, jpg, jpeg or bmp files as samples; ``images:FOLDER?size=...`` as a string.

    A pixel becomes ``pixel * scale + offset`` in float32. A model that accepts uint8 and no float gets the pixels as
    they are, if neither scale nor offset is given. EXIF rotation is not applied.

    Args:
        folder: Images, sorted by name; or one subfolder for each class, which gives labels 0, 1, ... in sorted order.
            ``labels.csv`` (``file,label``) gives labels as well, and goes first.
        size: ``(width, height)``, ``"WIDTHxHEIGHT"``, or one number for a square: images of another size are resized.
            None: an image whose size is not the model's is an error.
        scale: Factor, 1 if None.
        offset: Added after scaling, 0 if None.
        mode: ``L``, ``RGB`` or ``RGBA``; by default what the model's number of channels asks for.
        resample: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or ``lanczos``.
        preprocess: A function, or ``module:function``, that is given each image after all that, as float32 (height, width,
            channels), and returns the input, such as ``preprocess_input`` of a Keras application.

    Returns:
        A source for :func:`open_dataset`.

    Raises:
        DatasetError: There are no images, or labels are missing.
        OptionError: An option means nothing here.
        MissingPackageError: Pillow is not installed.
    """
    options = PixelOptions.parse(size, scale, offset, mode, resample, preprocess)
    pillow()
    return ImageSource(Path(folder).expanduser(), options)
