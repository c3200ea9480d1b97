"""Any dataset, written as ``<input>/<n>.npy``."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Union

import numpy as np

from tflite_qdebug.datasets.opening import Dataset
from tflite_qdebug.datasets.samples import Sample
from tflite_qdebug.errors import DatasetError, OutputError

if TYPE_CHECKING:
    from tflite_qdebug.datasets.samples import Array


def save_folder(
    dataset: Dataset,
    directory: Union[str, os.PathLike[str]],
    progress: Optional[Callable[[int, Optional[int]], None]] = None,
) -> int:
    """Writes a dataset as ``<input>/<n>.npy``, and ``labels.npy`` if there are labels.

    The folder can be opened again by :func:`open_dataset`, on a machine that has numpy alone. Input folders are called
    by key, or by tensor name where there is none, percent-encoded. The folder gets its name once it is complete.

    Args:
        dataset: What to write; one pass is made.
        directory: Where to; must not exist or be empty.
        progress: Called after each sample with the number written and the dataset's length (None if not known).

    Returns:
        The number of samples written.

    Raises:
        OutputError: The folder is not empty, or the disk refuses.
        DatasetError: A sample does not fit, some samples only have labels, or there are several signatures.
    """
    directory = Path(directory)
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise OutputError(f"{directory} exists and is not an empty folder: choose another or remove it")
        partial.mkdir(parents=True)
        try:
            count = _write_samples(dataset, partial, progress)
            if directory.exists():
                directory.rmdir()
            partial.replace(directory)
        finally:
            shutil.rmtree(str(partial), ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the {dataset.role} to {directory}: {error}") from error
    return count


def _write_samples(dataset: Dataset, folder: Path, progress: Optional[Callable[[int, Optional[int]], None]]) -> int:
    folders = [folder / urllib.parse.quote(spec.title, safe="") for spec in dataset.inputs]
    for path in folders:
        path.mkdir()
    labels: List[Any] = []
    first: Optional[Sample] = None
    count = 0
    for sample in dataset:
        first = first or sample
        if sample.signature != first.signature or (sample.label is None) != (first.label is None):
            raise DatasetError(
                f"{dataset.role}, sample {sample.index}: signature {sample.signature!r} and label {sample.label!r} are"
                f" unlike those of sample 0, {first.signature!r} and {first.label!r}; a folder holds one kind of sample"
            )
        for path, array in zip(folders, sample.inputs):
            np.save(str(path / f"{sample.index}.npy"), array, allow_pickle=False)
        labels.append(sample.label)
        count += 1
        if progress is not None:
            progress(count, dataset.length)
    if first is not None and first.label is not None:
        np.save(str(folder / "labels.npy"), _label_array(labels, dataset.role), allow_pickle=False)
    return count


def _label_array(labels: List[Any], role: str) -> Array:
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise DatasetError(f"{role}: the labels cannot be saved as one array: {error}") from error
    if array.dtype.kind == "O":
        raise DatasetError(f"{role}: the labels cannot be saved as one array, as they are not all of one kind")
    return array
