"""Samples in files: ``.npz`` and ``<input>/<n>.npy`` folders, read."""

from __future__ import annotations

import csv
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug.datasets.samples import Element, InputSpec
from tflite_qdebug.datasets.sources import ArraySource, Source, TableSource
from tflite_qdebug.errors import DatasetError

if TYPE_CHECKING:
    pass


def load_array(path: Path, mmap_mode: Optional[Any] = None) -> Any:
    """Loads a ``.npy`` or ``.npz`` file without ever unpickling.

    Raises:
        DatasetError: The file cannot be read, is no array, or holds Python objects.
    """
    try:
        return np.load(str(path), mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def open_npy(path: Path) -> Source:
    """Opens one array of shape (samples, ...); it stays on disk and is read sample by sample."""
    return ArraySource(load_array(path, mmap_mode="r"), path.name)


def open_npz(path: Path) -> Source:
    """Opens arrays of shape (samples, ...) by input, with ``labels`` or ``label`` if there.

    All members are loaded into memory, once: they are compressed as a whole and cannot be read sample by sample.
    """
    columns: Dict[str, Any] = {}
    archive = load_array(path)
    if not hasattr(archive, "files"):
        raise DatasetError(f"{path} holds a single array without a name, call it {path.stem}.npy")
    with archive:
        for name in archive.files:
            try:
                columns[name] = archive[name]
            except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged member
                raise DatasetError(f"cannot read {name!r} of {path}: {error}") from error
    return TableSource(columns, path.name)


class FolderSource(Source):
    """A folder of ``<input>/<n>.npy``, in the order of the numbers, each file read when its turn comes.

    The input folders are called by key or tensor name, percent-encoded where a file system would object. Labels are in
    ``labels.npy``, ``labels.txt`` (one per line) or ``labels.csv`` (``n,label``), in the order of the numbers.
    """

    add_batch = True

    def __init__(self, folder: Path) -> None:
        self.description = f"{folder.name}/"
        self._columns = {
            urllib.parse.unquote(child.name): _numbered(child)
            for child in sorted(folder.iterdir())
            if child.is_dir() and any(child.glob("*.npy"))
        }
        self._numbers = _common_numbers(self._columns, folder)
        self.length = len(self._numbers)
        self._labels = _folder_labels(folder, self._numbers)

    @staticmethod
    def recognizes(folder: Path) -> bool:
        """Tells whether there is an ``<input>/<n>.npy`` in ``folder``."""
        return any(folder.glob("*/*.npy"))

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        for position, number in enumerate(self._numbers):
            row = {name: load_array(files[number]) for name, files in self._columns.items()}
            yield Element(row, None if self._labels is None else self._labels[position])


def _numbered(folder: Path) -> Dict[int, Path]:
    files: Dict[int, Path] = {}
    for path in folder.glob("*.npy"):
        if not path.stem.isdecimal():
            raise DatasetError(f"{path} is not called by a number, expected {folder.name}/<n>.npy")
        if int(path.stem) in files:
            raise DatasetError(f"{path} and {files[int(path.stem)].name} have the same number")
        files[int(path.stem)] = path
    return files


def _common_numbers(columns: Mapping[str, Dict[int, Path]], folder: Path) -> List[int]:
    numbers = sorted({number for files in columns.values() for number in files})
    for name, files in columns.items():
        missing = [number for number in numbers if number not in files]
        if missing:
            raise DatasetError(f"{folder}: the input {name!r} lacks {missing[0]}.npy, which another input has")
    return numbers


def _folder_labels(folder: Path, numbers: Sequence[int]) -> Optional[Sequence[Any]]:
    labels: Optional[Sequence[Any]] = None
    if (folder / "labels.npy").exists():
        labels = load_array(folder / "labels.npy")
    elif (folder / "labels.txt").exists():
        labels = parse_labels([row[0] for row in read_rows(folder / "labels.txt", columns=1)])
    elif (folder / "labels.csv").exists():
        table = {_stem(name): label for name, label in read_rows(folder / "labels.csv", columns=2)}
        missing = [number for number in numbers if str(number) not in table]
        if missing:
            raise DatasetError(f"{folder / 'labels.csv'} has no label for sample {missing[0]}")
        labels = parse_labels([table[str(number)] for number in numbers])
    if labels is not None and len(labels) != len(numbers):
        raise DatasetError(f"{folder} has {len(labels)} labels for {len(numbers)} samples")
    return labels


def _stem(name: str) -> str:
    stem = Path(name).stem
    return str(int(stem)) if stem.isdecimal() else stem


def read_rows(path: Path, columns: int) -> List[Tuple[str, ...]]:
    """Reads a text file of labels, leaving out empty lines and the heading ``file,label``.

    Args:
        path: A file with one label per line (1 column), or with ``file,label`` (2 columns).
        columns: How many columns there have to be.

    Raises:
        DatasetError: The file cannot be read, or a line has another number of columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file)) if columns > 1 else [[line.strip()] for line in file]
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    rows = [tuple(cell.strip() for cell in line) for line in lines if any(cell.strip() for cell in line)]
    if rows and columns > 1 and rows[0][-1] == "label":
        rows = rows[1:]
    for row in rows:
        if len(row) != columns:
            raise DatasetError(f"{path}: got {len(row)} columns in {','.join(row)!r}, expected file,label")
    return rows


def parse_labels(texts: Sequence[str]) -> List[Any]:
    """Returns integers if all texts are integers, floats if all are numbers, else the texts."""
    for kind in (int, float):
        try:
            return [kind(text) for text in texts]
        except ValueError:
            continue
    return list(texts)
