"""The result of a board: records, one a line, that are only ever added; each line begins with its own checksum.

What was written stays, whatever ends the process. A line that was not written whole is cut off when the next run goes on.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any, Dict, Iterator, Mapping, Optional, Set, Tuple, Union

import numpy as np

from tflite_qdebug.errors import ModelError, OptionError, OutputError
from tflite_qdebug.record import decoded, encoded

__all__ = ["FORMAT_VERSION", "Journal", "packed", "read_records", "unpacked"]

FORMAT_VERSION = 1
_FORMAT = "tflite_qdebug board result"
_OPEN: Set[int] = set()


def _let_go() -> None:
    """Closes results in a process that runs a model: it must not hold the lock when the one that writes is gone."""
    for file in _OPEN:
        os.close(file)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def packed(array: np.ndarray) -> Dict[str, Any]:
    """Returns an array as plain data, exactly."""
    plain = np.ascontiguousarray(array)
    content = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        "dtype": plain.dtype.name,
        "shape": list(np.shape(array)),
        "data": base64.b64encode(zlib.compress(content, 1)).decode("ascii"),
    }


def unpacked(fields: Mapping[str, Any]) -> np.ndarray:
    """Returns what `packed` was given."""
    dtype = np.dtype(fields["dtype"])
    content = zlib.decompress(base64.b64decode(fields["data"]))
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype).reshape(fields["shape"])


def read_records(path: Union[str, "os.PathLike[str]"]) -> Iterator[Tuple[int, Optional[Dict[str, Any]]]]:
    """Yields each line's end in the file, and its record; None for a line that is not as it was written.

    Raises:
        ModelError: Where there is no such file, or it does not begin as a result does.
    """
    end = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                end += len(line)
                record = _record(line)
                if end == len(line) and (record is None or record.get("format") != _FORMAT):
                    raise ModelError("{} is no result of a bundle, or its first line is broken".format(os.fspath(path)))
                if end == len(line) and record is not None and record["format_version"] != FORMAT_VERSION:
                    raise ModelError(
                        "{}: got format version {}, expected {}".format(
                            os.fspath(path), record["format_version"], FORMAT_VERSION
                        )
                    )
                yield end, record
    except OSError as error:
        raise ModelError("cannot read the result {}: {}".format(os.fspath(path), error.strerror)) from error
    if not end:
        raise ModelError("{} is empty, expected the result of a bundle".format(os.fspath(path)))


def _record(line: bytes) -> Optional[Dict[str, Any]]:
    if not line.endswith(b"\n"):
        return None
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:-1]):
            return None
        found = decoded(json.loads(line[9:-1].decode("ascii")))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Journal:
    """A result that is being written.

    Attributes:
        path: Of the file.
        resumed: True where it goes on with an earlier one.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"], header: Mapping[str, Any]) -> None:
        """Begins a result, or goes on with the one that is there.

        Args:
            path: Of the file.
            header: What must be the same to go on: the bundle and how it is run.

        Raises:
            OptionError: Where the file there is of another bundle, or was run otherwise, or is being written now.
            ModelError: Where it is no result.
            OutputError: Where it cannot be written.
        """
        self.path = os.fspath(path)
        first = {"format": _FORMAT, "format_version": FORMAT_VERSION, **header}
        self.resumed, self._size = False, 0
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise OutputError(
                "cannot write {}: {}; choose another place by --output".format(self.path, error.strerror)
            ) from error
        self._lock()
        _OPEN.add(self._file)
        if self._begun():
            self._go_on(first)
        else:
            self.write(first)

    def _begun(self) -> bool:
        """True where there is a first line; what a full disk left of one is no result."""
        with open(self.path, "rb") as file:
            return file.readline().endswith(b"\n")

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise OptionError("{} is being written by another process".format(self.path)) from error

    def _go_on(self, first: Mapping[str, Any]) -> None:
        torn = False
        for end, record in read_records(self.path):
            if not self._size and record is not None:
                self._check_same(record, first)
            torn = record is None
            # A broken line amid others stays, and does not count; one at the end was not written whole.
            self._size = self._size if torn else end
        if torn or os.fstat(self._file).st_size != self._size:
            self._truncate()
        self.resumed = True

    def _check_same(self, found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        for name, wanted in first.items():
            if found.get(name) != json.loads(json.dumps(wanted)):
                raise OptionError(
                    "{} was begun with {} {!r}, got {!r}; expected the same, to go on, or another --output".format(
                        self.path, name, found.get(name), wanted
                    )
                )

    def _truncate(self) -> None:
        os.ftruncate(self._file, self._size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record, and waits until it is on the disk.

        Raises:
            OutputError: Where it cannot be written; those before it stay.
        """
        text = json.dumps(encoded(record), separators=(",", ":"), allow_nan=False).encode("ascii")
        line = "{:08x} ".format(zlib.crc32(text)).encode("ascii") + text + b"\n"
        try:
            os.lseek(self._file, self._size, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            self._truncate()
            raise OutputError(
                "cannot write {}: {}; what was measured so far is in it. Make room, and run the same command to go on".format(
                    self.path, error.strerror or error
                )
            ) from error
        self._size += len(line)

    def close(self) -> None:
        """Closes the file."""
        _OPEN.discard(self._file)
        os.close(self._file)
