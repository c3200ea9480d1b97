"""Datasets that TensorFlow Datasets has prepared on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tflite_qdebug.datasets.calling import Function, call, option_function
from tflite_qdebug.datasets.images import Number, PixelOptions, Size, image_layout, pillow
from tflite_qdebug.datasets.samples import LABEL_KEYS, Element, InputSpec, split_element
from tflite_qdebug.datasets.sources import Source
from tflite_qdebug.errors import DatasetError, MissingPackageError, OptionError, did_you_mean

_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+$")


def tensorflow_datasets() -> Any:
    """Imports TensorFlow Datasets.

    Raises:
        MissingPackageError: It is not installed, or TensorFlow is not.
    """
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise MissingPackageError(
            f"tfds: needs TensorFlow Datasets ({error}): pip install tensorflow-datasets tensorflow"
        ) from error


class TfdsSource(Source):
    """One split of a prepared dataset, in its stored order."""

    add_batch = True

    def __init__(
        self,
        builder: Any,
        split: str,
        image: Any,
        label: Optional[str],
        options: PixelOptions,
        mapping: Optional[Callable[[Any], Any]] = None,
    ):
        self.description = f"tfds:{builder.info.full_name} split {split}"
        self._builder = builder
        self._split = split
        self._image = image
        self._label = label
        self._options = options
        self._map = mapping
        self.length = _split_length(builder, split)

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        for features in _read_split(self._builder, self._split).as_numpy_iterator():
            label = None if self._label is None else features[self._label]
            if self._map is None:
                values = self._values(features, inputs)
            else:
                made, own, _ = split_element(call("map", self._map, features), inputs, "auto")
                values, label = _by_title(made, inputs), label if own is None else own
            titles = {name: spec for spec in inputs for name in (spec.name, spec.title)}
            yield Element({name: self._convert(value, titles.get(name)) for name, value in values.items()}, label)

    def _values(self, features: Dict[str, Any], inputs: Sequence[InputSpec]) -> Dict[str, Any]:
        """The model's inputs: the image feature for a single input, else the features that are called like them."""
        if len(inputs) == 1 and isinstance(self._image, str):
            return {inputs[0].title: features[self._image]}
        # By the names that the supervised keys give them, or their own.
        called = self._image if isinstance(self._image, dict) else {}
        found: Dict[str, Any] = {}
        for spec in inputs:
            feature = next((name for name in (spec.title, spec.name) if name in called or name in features), None)
            if feature is None:
                raise DatasetError(
                    f"the model's input {spec.title!r} is no feature of {self.description}, which has {list(features)}; "
                    + ("say which with image=FEATURE, or " if len(inputs) == 1 else "")
                    + "give map=module:function, which is given the features and returns the inputs by name"
                )
            found[spec.title] = features[called.get(feature, feature)]
        return found

    def _convert(self, value: Any, spec: Optional[InputSpec]) -> Any:
        """What the options make of one value; of one that no input is called like, nothing: the check will say so."""
        return value if spec is None else self._options.preprocessed(self._scaled(value, spec))

    def _scaled(self, value: Any, spec: InputSpec) -> Any:
        """Pixels go through the options; other features only if these were given, as nothing is cast unasked."""
        options = self._options
        if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype != np.uint8:
            if options.scale is None and options.offset is None:
                return value
            scale = np.float32(1 if options.scale is None else options.scale)
            return np.asarray(value).astype(np.float32) * scale + np.float32(options.offset or 0)
        height, width, channels = image_layout(spec)
        wanted = (*(options.size or (width, height))[::-1], 1 if channels is None else channels)
        if options.mode is None and all(want in (-1, got) for got, want in zip(value.shape, wanted)):
            return options.scaled(value, spec)  # the usual case needs no Pillow
        return options.convert(pillow().fromarray(value[..., 0] if value.shape[2] == 1 else value), spec)


def _by_title(made: Any, inputs: Sequence[InputSpec]) -> Dict[str, Any]:
    """Returns what the user's ``map`` has made by the names of the inputs; one array is that of a model with one input.

    Raises:
        DatasetError: Several arrays came without names.
    """
    if isinstance(made, Mapping):
        return dict(made)
    if isinstance(made, (list, tuple)) and len(made) == 1 and len(inputs) == 1:
        made = made[0]
    if isinstance(made, (list, tuple)) or len(inputs) != 1:
        raise DatasetError(
            f"map: the function returned a {type(made).__name__}, expected a dict of arrays by input, "
            f"{[spec.title for spec in inputs]}, or the pair of it and a label"
        )
    return {inputs[0].title: made}


def _read_split(builder: Any, split: str) -> Any:
    # Auto-caching would hold the whole split in memory.
    config = tensorflow_datasets().ReadConfig(try_autocache=False)
    return builder.as_dataset(split=split, shuffle_files=False, read_config=config)


def _split_length(builder: Any, split: str) -> int:
    """Checks the split and returns how many examples it has."""
    known = list(builder.info.splits)
    try:
        return int(builder.info.splits[split].num_examples)
    except Exception as error:  # which one depends on where in the text the parser of tensorflow_datasets stumbles
        hint = did_you_mean(re.split(r"[\[+]", split)[0], known)
        message = f"split={split} of {builder.info.full_name} cannot be read: {error} It has {known}.{hint}"
        raise OptionError(message) from error


def _prepared(data_dir: Path, name: str = "*") -> List[Tuple[str, ...]]:
    """Lists what is prepared in ``data_dir`` as (name, version) or (name, config, version)."""
    found = [path.parent for depth in ("*", "*/*") for path in data_dir.glob(f"{name}/{depth}/dataset_info.json")]
    return sorted(path.relative_to(data_dir).parts for path in found)


def _version_order(parts: Tuple[str, ...]) -> List[int]:
    return [int(number) for number in re.findall(r"\d+", parts[-1])]


def _find(name: str, data_dir: Path) -> Path:
    """Finds ``name[/config][:version]`` or ``name[/config][/version]`` in ``data_dir``, the newest version.

    The folder is looked up here, and not by ``tfds.builder``, since that one may ask a server about the dataset.
    """
    path, _, version = name.partition(":")
    wanted = path.split("/")
    if not version and len(wanted) > 1 and _VERSION.match(wanted[-1]):
        version = wanted.pop()
    matching = [
        parts
        for parts in _prepared(data_dir, wanted[0])
        if list(parts[: len(wanted)]) == wanted and fnmatch.fnmatch(parts[-1], version or "*")
    ]
    if not matching:
        raise DatasetError(_absent(name, wanted[0], data_dir))
    configs = sorted({"/".join(parts[:-1]) for parts in matching})
    if len(configs) > 1:
        raise OptionError(f"{name} is prepared in several configurations, name one of {configs}")
    return data_dir.joinpath(*max(matching, key=_version_order))


def _absent(name: str, dataset: str, data_dir: Path) -> str:
    there = ["/".join(parts) for parts in _prepared(data_dir)]
    known = did_you_mean(dataset, [entry.split("/")[0] for entry in there])
    return (
        f"{name} is not prepared in {data_dir}, which holds {there or 'no prepared dataset'}.{known} Nothing is"
        ' downloaded here: prepare it with python -c "import tensorflow_datasets as tfds;'
        f" tfds.builder('{name}', data_dir='{data_dir}').download_and_prepare()\", or say where it is with data_dir="
    )


def _feature(builder: Any, option: str, name: Optional[str], position: int) -> Any:
    """Checks the feature that was asked for, or takes the supervised one: for several inputs a dict of them by input.

    Without supervised keys, a feature called ``label`` or ``labels`` is the label.
    """
    known = list(builder.info.features)
    supervised = builder.info.supervised_keys
    if name is None:
        default = supervised[position] if supervised else None
        if option == "label":
            fallback = next((key for key in LABEL_KEYS if key in known), None)
            return default if isinstance(default, str) else fallback if supervised is None else None
        return default if isinstance(default, (str, dict)) else None
    if name not in known:
        hint = did_you_mean(name, known)
        raise OptionError(f"{option}={name}: {builder.info.full_name} has no such feature, it has {known}.{hint}")
    return name


def from_tfds(
    name: str,
    split: Optional[str] = None,
    data_dir: Union[str, os.PathLike[str], None] = None,
    image: Optional[str] = None,
    label: Optional[str] = None,
    size: Size = None,
    scale: Number = None,
    offset: Number = None,
    mode: Optional[str] = None,
    resample: str = "bilinear",
    preprocess: Function = None,
    map: Function = None,  # noqa: A002 - as tf.data calls it
) -> Source:
    """Takes a dataset prepared by TensorFlow Datasets; ``tfds:NAME?split=test[:100]&...`` as a string.

    Args:
        name: ``mnist``, with ``/config`` and ``:version`` where there are several; the newest version by default.
        split: As TensorFlow Datasets writes it, e.g. ``test[:100]``; may be left out if there is only one.
        data_dir: Where datasets are prepared; by default ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
        image: The feature that is the model's input, by default the supervised one. A model with several inputs takes
            the features that are called as they are, or those that the supervised keys name for them.
        label: The feature that is the label, by default the supervised one; without supervised keys one called ``label``.
        size: For uint8 images, as in :func:`from_images`, and so are ``mode`` and ``resample``.
        scale: ``value * scale + offset`` in float32. Images become float32 in any case (see :func:`from_images`), other
            features only if scale or offset is given.
        offset: See ``scale``.
        mode: See ``size``.
        resample: See ``size``.
        preprocess: A function, or ``module:function``, that is given each input after all that, and returns it, such as
            ``preprocess_input`` of a Keras application.
        map: A function, or ``module:function``, that is given an example's features, a dict of numpy arrays, before all that,
            and returns the inputs by name, or the array of a single input, or the pair of these and a label.

    Returns:
        A source for :func:`open_dataset`.

    Raises:
        DatasetError: The dataset is not prepared.
        OptionError: No such split or feature, or an option means nothing here.
        MissingPackageError: TensorFlow Datasets is not installed.
    """
    options = PixelOptions.parse(size, scale, offset, mode, resample, preprocess)
    mapping = option_function("map", map, "a function of a dict of features that returns the inputs")
    tfds = tensorflow_datasets()
    place = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    folder = _find(name, place)
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # a damaged or very old folder: tensorflow_datasets has no error of its own for it
        raise DatasetError(f"tensorflow_datasets cannot read {folder}: {error}; prepare it again") from error
    splits = list(builder.info.splits)
    if split is None and len(splits) != 1:
        raise OptionError(f"{name} has the splits {splits}: say which, for example split={splits[-1]}[:100]")
    wanted = _feature(builder, "image", image, 0)
    return TfdsSource(builder, split or splits[0], wanted, _feature(builder, "label", label, 1), options, mapping)
