"""Writing files so that nothing is lost."""

from __future__ import annotations

import os
import tempfile
from typing import Union

from tflite_qdebug.errors import OutputError

__all__ = ["write_atomically"]


def write_atomically(path: Union[str, os.PathLike[str]], content: bytes) -> None:
    """Writes a file so that a full disk or a crash leaves either the old one or the new one, never half of it.

    Raises:
        OutputError: Where it cannot be written.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=os.path.basename(path) + ".")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise OutputError("cannot write {}: {}".format(path, error.strerror or error)) from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
