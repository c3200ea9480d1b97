"""The dataset that the rest of the package reads, and what a user may give for one."""

from __future__ import annotations

import os
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug.datasets.calling import FUNCTION, import_function
from tflite_qdebug.datasets.files import FolderSource, open_npy, open_npz
from tflite_qdebug.datasets.images import from_images
from tflite_qdebug.datasets.samples import InputSpec, Labels, Sample, as_array, check_inputs, split_element
from tflite_qdebug.datasets.sources import (
    ArraySource,
    FunctionSource,
    IterableSource,
    IteratorSource,
    Source,
    TableSource,
    TfDataSource,
)
from tflite_qdebug.datasets.tfds import from_tfds
from tflite_qdebug.errors import DatasetError, NoSampleError, OptionError, QDebugError, did_you_mean
from tflite_qdebug.shown import Shown

IMAGE_OPTIONS = ("size", "scale", "offset", "mode", "resample", "preprocess")
TFDS_OPTIONS = ("split", "data_dir", "image", "label", "map", *IMAGE_OPTIONS)
FORMS = (
    "a function that returns samples, a list of samples, an array or dict of arrays, a tf.data.Dataset, x.npz, x.npy,"
    " a folder of <input>/<n>.npy or of images, images:FOLDER?size=..., tfds:NAME?split=..., module:function"
)


class Dataset(Shown):
    """Samples that were checked against a model's inputs; can be iterated again unless made of a one-shot iterator.

    Sources are read lazily, one sample at a time, and every sample is checked when its turn comes. Made by
    :func:`open_dataset`.

    Attributes:
        role: What the samples are for, such as ``"debug dataset"``; stands in every error.
        length: Number of samples that a pass yields, or None until a full pass has discovered it.
        inputs: The model's inputs, in its order.
        limit: How many samples are taken at most, or None.
        signature: The signature that samples have to be for, or None.
        labels: Whether a tuple is read as ``(inputs, label)``.
        skip_others: Whether samples for another signature are passed over, instead of being an error.
        source: Where the samples come from.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[InputSpec],
        role: str = "debug dataset",
        limit: Optional[int] = None,
        signature: Optional[str] = None,
        labels: Labels = False,
        skip_others: bool = False,
    ) -> None:
        self.role = role
        self.inputs = tuple(inputs)
        self.limit = limit
        self.signature = signature
        self.labels = labels
        self.skip_others = skip_others
        self.source = source = source.fitted(self.inputs)
        known = [count for count in (source.length, limit) if count is not None]
        self.length = min(known) if source.length is not None or _is_infinite(source) else None

    @property
    def description(self) -> str:
        """Short text for a run's provenance, e.g. ``"digits.npz (150 samples)"``."""
        total = self.source.length
        if self.length is None:
            return self.source.description + (f" (at most {_samples(self.limit)})" if self.limit else "")
        part = f"first {self.length} of " if total is not None and total > self.length else ""
        return f"{self.source.description} ({part}{_samples(total if part and total else self.length)})"

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name} {spec.shape}" for spec in self.inputs)
        return f"<{self.role}: {self.description}; {inputs}>"

    def __iter__(self) -> Iterator[Sample]:
        count = 0
        seen: Dict[str, None] = {}
        for element, source in self._elements():
            with _located(f"{self.role}, sample {count}: "):
                labels = self.labels or source.labels
                values, label, signature = split_element(element, self.inputs, labels)
                if self.skip_others and signature not in (None, self.signature):
                    continue
                self._check_signature(signature, seen)
                arrays = check_inputs(values, self.inputs, source.add_batch, labels)
            yield Sample(count, arrays, label, signature or self.signature)
            count += 1
        if not count:
            raise NoSampleError(f"{self.role}: {self.source.description} has no sample for the signature {self.signature!r}")
        self.length = count

    def _elements(self) -> Iterator[Tuple[Any, Source]]:
        """Yields what the source reads, up to the limit, and the source; its errors and the user's come out as DatasetError."""
        with self._reading(0):
            source = self.source.start().fitted(self.inputs)
            if _is_infinite(source) and self.limit is None:
                raise DatasetError("the samples never end (repeat()), give a limit")
            elements = source.read(self.inputs)
        count = 0
        try:
            # The limit is looked at first: a sample more than wanted may be costly, or missed by who reads on.
            while self.limit is None or count < self.limit:
                with self._reading(count):
                    try:
                        element = next(elements)
                    except StopIteration:
                        break
                yield element, source
                count += 1
        finally:
            if hasattr(elements, "close"):
                elements.close()
        if count == 0:
            raise DatasetError(f"{self.role}: {self.source.description} yielded no samples{_empty_hint(self.source)}")

    @contextmanager
    def _reading(self, index: int) -> Iterator[None]:
        try:
            yield
        except DatasetError as error:
            raise DatasetError(f"{self.role}, sample {index}: {error}") from error
        except QDebugError:
            raise
        except Exception as error:
            name = type(error).__name__
            raise DatasetError(f"{self.role}, sample {index}: {self.source.description} raised {name}: {error}") from error

    def _check_signature(self, signature: Optional[str], seen: Dict[str, None]) -> None:
        if signature is not None:
            seen[signature] = None
        others = [name for name in seen if name != self.signature]
        if self.signature is not None and others:
            raise DatasetError(f"got the signature {', '.join(map(repr, others))}, expected {self.signature!r}")


def _samples(count: Optional[int]) -> str:
    return f"{count} sample" if count == 1 else f"{count} samples"


def _is_infinite(source: Source) -> bool:
    return isinstance(source, TfDataSource) and source.infinite


def _empty_hint(source: Source) -> str:
    return "; was the iterator consumed before? pass a function" if isinstance(source, IteratorSource) else ""


@contextmanager
def _located(prefix: str) -> Iterator[None]:
    """Puts the role (and the sample) before an error, once, at the boundary."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(prefix + str(error)) from error.__cause__ or error


def open_dataset(
    source: Any,
    inputs: Sequence[InputSpec],
    role: str = "debug dataset",
    limit: Optional[int] = None,
    signature: Optional[str] = None,
    labels: Optional[Labels] = None,
    skip_others: bool = False,
) -> Dataset:
    """Opens a representative, debug or evaluation dataset, from whatever there is.

    A *sample* is a list or tuple of arrays in the model's input order, a dict by key or tensor name, one bare array for
    a model with one input, or ``(signature, dict)``. With ``labels``, a **tuple** is ``(inputs, label)``, or
    ``(signature, inputs, label)``: the first item holds all inputs (list, tuple, dict or array) and what follows is the
    label. A list is never split, and a dict may hold its label under ``label`` or ``labels``. Without ``labels``, a
    tuple is the inputs. Arrays are never cast, resized or reordered.

    Args:
        source: One of

            - a function without arguments that returns an iterator of samples, or any other form of this list; or the
              ``tf.lite.RepresentativeDataset`` around one;
            - a list or tuple of samples, or another object that can be iterated again and again;
            - an array of shape (samples, ...) for a model with one input, or a dict of them by input, with ``labels``
              or ``label`` if wanted; a batch axis of 1 is added where the model has it;
            - a generator object or another one-shot iterator, for a single pass;
            - a ``tf.data.Dataset``; its batches are taken apart, unless the model takes batches of that size, and its pairs are
              ``(inputs, label)`` for any role, where they cannot be the inputs;
            - a path or string: ``x.npz``, ``x.npy``, a folder of ``<input>/<n>.npy``, a folder of images,
              ``images:FOLDER?size=224x224&scale=0.00784&offset=-1&mode=RGB&resample=bilinear`` (see
              :func:`from_images`), ``tfds:NAME?split=test[:100]&data_dir=...`` (see :func:`from_tfds`), both with
              ``preprocess=module:function``, or
              ``module:function``;
            - what :func:`from_images` or :func:`from_tfds` returned, or an opened Dataset, checked anew.
        inputs: The model's inputs, in its order.
        role: What the samples are for; stands in every error.
        limit: Take the first ``limit`` samples.
        signature: The signature that is to be fed; samples for another are an error.
        labels: Whether tuples are ``(inputs, label)``. None: True for the role "evaluation dataset", else False. ``"auto"``: a
            pair that cannot be the inputs is ``(inputs, label)``.
        skip_others: Pass over samples for another signature; the limit counts them all the same.

    Returns:
        The dataset. Nothing but array files and folder listings has been read so far.

    Raises:
        DatasetError: The source cannot be read, or is empty.
        OptionError: A limit, a query option, a module or a function that means nothing here.
        MissingPackageError: Pillow or TensorFlow Datasets is needed and not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1):
        raise OptionError(f"{role}: limit must be a whole number of at least 1, got {limit!r}")
    if isinstance(source, Dataset):
        limits = [count for count in (limit, source.limit) if count is not None]
        limit = min(limits) if limits else None
        signature = source.signature if signature is None else signature
        labels = source.labels if labels is None else labels
        source = source.source
    with _located(f"{role}: "):
        found = _as_source(source)
        if found.length == 0:
            raise DatasetError(f"{found.description} yielded no samples")
        if _is_infinite(found) and limit is None:
            raise DatasetError("the samples never end (repeat()), give a limit")
    labels = role == "evaluation dataset" if labels is None else labels
    return Dataset(found, inputs, role, limit, signature, labels, skip_others)


def first_signature(dataset: Dataset) -> Optional[str]:
    """Returns the signature that the first sample is for, or None where samples do not say; reads that sample alone.

    A one-shot iterator is not touched: its samples are for one signature.
    """
    if isinstance(dataset.source, IteratorSource):
        return None
    try:
        element = next(dataset.source.start().read(dataset.inputs), None)
        return split_element(element, dataset.inputs, dataset.labels)[2] if element is not None else None
    except Exception:  # the pass over the dataset meets it again, and says which sample it was
        return None


def _as_source(source: Any) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _parse(os.fsdecode(source))
    if isinstance(source, np.ndarray) or (callable(getattr(source, "numpy", None)) and hasattr(source, "shape")):
        return ArraySource(as_array(source))
    if TfDataSource.recognizes(source):
        return TfDataSource(source)
    if isinstance(source, Mapping):
        return TableSource(source)
    if callable(getattr(source, "input_gen", None)):  # tf.lite.RepresentativeDataset wraps the user's function
        return FunctionSource(source.input_gen, _as_source)
    if isinstance(source, Iterator):
        return IteratorSource(source)
    if hasattr(source, "__iter__"):
        return IterableSource(source)
    if callable(source):
        return FunctionSource(source, _as_source)
    raise DatasetError(f"cannot take samples from a {type(source).__name__}, expected {FORMS}")


def _parse(text: str) -> Source:
    """Opens what a string or a path names."""
    scheme, colon, rest = text.partition(":")
    if scheme + colon == "images:":
        folder, options = _query(rest, IMAGE_OPTIONS, "images:")
        return from_images(folder, **options)
    if scheme + colon == "tfds:":
        name, options = _query(rest, TFDS_OPTIONS, "tfds:")
        return from_tfds(name, **options)
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderSource(path) if FolderSource.recognizes(path) else from_images(path)
    if path.is_file():
        return _open_file(path)
    if FUNCTION.match(text):
        return FunctionSource(import_function(text), _as_source)
    raise DatasetError(f"there is no file or folder {text!r}, expected {FORMS}")


def _open_file(path: Path) -> Source:
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix == ".npy":
        return open_npy(path)
    raise DatasetError(f"cannot take samples from the file {path}, expected {FORMS}")


def _query(text: str, known: Sequence[str], form: str) -> Tuple[str, Dict[str, Any]]:
    """Splits ``NAME?option=value&...``; a plus stays a plus, as ``split=train+test`` has one."""
    name, _, query = text.partition("?")
    options: Dict[str, Any] = {}
    for item in query.split("&") if query else ():
        option, equals, value = item.partition("=")
        if option not in known:
            raise OptionError(f"{form} has no option {option!r}, it has {list(known)}.{did_you_mean(option, known)}")
        if not equals or not value:
            raise OptionError(f"{form} expects {option}=value, got {item!r}")
        options[option] = urllib.parse.unquote(value)
    if not name:
        raise OptionError(f"{form} lacks a name, expected {form}NAME?option=value&...")
    return name, options
