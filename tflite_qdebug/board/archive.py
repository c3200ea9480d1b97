"""The archive that goes to a board: a zip file that Python runs, sealed by the hash of all that is in it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from tflite_qdebug.board.start import FIRST, SEAL, seal_of, whole
from tflite_qdebug.errors import ModelError, OptionError, OutputError, did_you_mean

__all__ = ["FORMAT_VERSION", "ArchiveWriter", "Bundle", "Entry"]

FORMAT_VERSION = 1
_FORMAT = "tflite_qdebug bundle"
_MANIFEST = "manifest.json"
# The same content is the same archive, whenever it is made.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


class Entry(NamedTuple):
    """One model of a bundle.

    Attributes:
        name: ``quantized``, ``compiled``, ``float`` or ``debug``.
        samples: The set of samples that it runs on: ``debug`` or ``evaluation``.
        sha256: Of the ``.tflite``.
        size: Bytes of it.
        expected: Whose outputs on the host its own are held against; empty for none.
        steps: For each output, real units per quantization step; None where it has none.
        stateful: True where variables are to be set back before each sample.
        delegate: ``[library, options]`` that it needs, or None.
        layers: Of a debug model: the pairs of tensors, as plain data; else empty.
        kernels: The kernels that the host's own result is of.
        inputs: For each input of the model, which of a sample's arrays it takes; empty: in their order.
        outputs: For each output of the quantized model, which of this model's it is; empty: in their order.
    """

    name: str
    samples: str
    sha256: str
    size: int
    expected: str = ""
    steps: Sequence[Optional[float]] = ()
    stateful: bool = False
    delegate: Optional[Sequence[Any]] = None
    layers: Sequence[Mapping[str, Any]] = ()
    kernels: str = ""
    inputs: Sequence[int] = ()
    outputs: Sequence[int] = ()

    def fed(self, sample: Sequence[np.ndarray]) -> List[np.ndarray]:
        """Returns the arrays of a sample in the order of the model's inputs."""
        return [sample[position] for position in self.inputs] if self.inputs else list(sample)

    def given(self, outputs: Sequence[np.ndarray]) -> List[np.ndarray]:
        """Returns the model's outputs in the order of the quantized model's."""
        return [outputs[position] for position in self.outputs] if self.outputs else list(outputs)


class ArchiveWriter:
    """Writes an archive beside its place, and puts it there once it is whole and sealed. A context manager."""

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Begins the archive.

        Raises:
            OutputError: Where there can be none.
        """
        self.path = os.path.abspath(os.fspath(path))
        self._draft = ""
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            handle, self._draft = tempfile.mkstemp(dir=os.path.dirname(self.path), prefix=os.path.basename(self.path) + ".")
            self._file = os.fdopen(handle, "w+b")
            self._file.write(FIRST + SEAL + 64 * b"0" + b"\n")
            self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._draft:
            with contextlib.suppress(Exception):  # the disk may be full, and what there is goes anyway
                self._zip.close()
            self._file.close()
            os.unlink(self._draft)
            self._draft = ""

    def add(self, name: str, content: bytes) -> None:
        """Adds a file.

        Raises:
            OutputError: Where the disk is full.
        """
        about = zipfile.ZipInfo(name, _LONG_AGO)
        about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        try:
            self._zip.writestr(about, content)
        except OSError as error:
            raise self._failed(error) from error

    def add_arrays(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Adds arrays, as `Bundle.arrays` reads them.

        Raises:
            ModelError: For an array of objects, which strings are.
            OutputError: Where the disk is full.
        """
        if any(array.dtype == object for array in arrays):
            raise ModelError(
                "{} holds strings, expected numbers: a model with such inputs or outputs has no bundle".format(name)
            )
        content = io.BytesIO()
        named: Dict[str, Any] = {"a{}".format(position): array for position, array in enumerate(arrays)}
        np.savez(content, **named)
        self.add(name, content.getvalue())

    def finish(self, manifest: Mapping[str, Any]) -> str:
        """Adds the manifest, seals the archive, and puts it in its place; returns its hash.

        Raises:
            OutputError: Where it cannot be written.
        """
        described = {"format": _FORMAT, "format_version": FORMAT_VERSION, **manifest}
        self.add(_MANIFEST, json.dumps(described, indent=1, sort_keys=True).encode())
        try:
            self._zip.close()
            digest = self._seal()
            os.replace(self._draft, self.path)
            self._draft = ""
            os.chmod(self.path, 0o755)
        except OSError as error:
            raise self._failed(error) from error
        return digest

    def _seal(self) -> str:
        """Writes the hash of all that follows into the second line."""
        digest = hashlib.sha256()
        self._file.seek(len(FIRST) + len(SEAL) + 65)
        for block in iter(lambda: self._file.read(1 << 20), b""):
            digest.update(block)
        self._file.seek(len(FIRST) + len(SEAL))
        self._file.write(digest.hexdigest().encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return digest.hexdigest()

    def _failed(self, error: OSError) -> OutputError:
        return OutputError("cannot write {}: {}".format(self.path, error.strerror or error))


class Bundle:
    """An archive, opened to be read.

    Attributes:
        path: Where it is.
        id: Its hash.
        manifest: What it holds.
        entries: Its models, in the order in which they are run.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Reads the manifest, after the hash was checked.

        Raises:
            ModelError: Where there is no archive, its hash is wrong, or it is of another format.
        """
        self.path = os.path.abspath(os.fspath(path))
        try:
            if not whole(self.path):
                raise ModelError("the hash of {} is wrong: it was changed, or not copied whole; copy it anew".format(self.path))
            self.id = seal_of(self.path)
            self._zip = zipfile.ZipFile(self.path)
            self.manifest: Dict[str, Any] = json.loads(self._read(_MANIFEST).decode("utf-8"))
        except OSError as error:
            raise ModelError("cannot read the bundle {}: {}".format(self.path, error.strerror or error)) from error
        except (zipfile.BadZipFile, ValueError, KeyError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError("{} is no bundle: {}".format(self.path, error)) from error
        found = self.manifest.get("format"), self.manifest.get("format_version")
        if found != (_FORMAT, FORMAT_VERSION):
            raise ModelError(
                "{}: got {!r} version {!r}, expected {!r} version {}; make the bundle anew".format(
                    self.path, found[0], found[1], _FORMAT, FORMAT_VERSION
                )
            )
        self.entries = [Entry(**entry) for entry in self.manifest["models"]]

    def _read(self, name: str) -> bytes:
        return self._zip.read(name)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def entry(self, name: str) -> Entry:
        """Returns the model of that name.

        Raises:
            OptionError: Where there is none.
        """
        names = [entry.name for entry in self.entries]
        if name not in names:
            raise OptionError("got model {!r}, expected one of {}.{}".format(name, ", ".join(names), did_you_mean(name, names)))
        return self.entries[names.index(name)]

    def count(self, samples: str) -> int:
        """Returns how many samples a set has."""
        return int(self.manifest["sets"][samples])

    def model(self, name: str) -> bytes:
        """Returns the content of a model's file."""
        return self._read("models/{}.tflite".format(name))

    def sample(self, samples: str, index: int) -> List[np.ndarray]:
        """Returns the inputs of a sample, in input order."""
        return self.arrays("samples/{}/{}.npz".format(samples, index))

    def expected(self, name: str, samples: str, index: int) -> List[np.ndarray]:
        """Returns the outputs of a model on the host, in output order."""
        return self.arrays("expected/{}/{}/{}.npz".format(name, samples, index))

    def arrays(self, name: str) -> List[np.ndarray]:
        """Returns arrays that `ArchiveWriter.add_arrays` has written."""
        with np.load(io.BytesIO(self._read(name)), allow_pickle=False) as arrays:
            return [arrays["a{}".format(position)] for position in range(len(arrays.files))]

    def label(self, index: int) -> Tuple[bool, Any]:
        """Returns whether a sample of the evaluation set has a label, and the label; known to the host alone."""
        name = "labels/{}.npz".format(index)
        if name not in self._zip.namelist():
            return False, None
        value = self.arrays(name)[0]
        return True, value if value.ndim else value[()]

    def text(self, name: str) -> str:
        """Returns a text file."""
        return self._read(name).decode("utf-8")
