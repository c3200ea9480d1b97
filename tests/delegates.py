"""Builds the external delegate of ``test_delegate.c``, and names it with its options."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tflite_qdebug.interpreter import Delegate

SOURCE = Path(__file__).with_name("test_delegate.c")
_FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


@functools.cache
def _compiled(source: bytes) -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the external delegate cannot be built")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libtest_delegate.so"
        done = subprocess.run(
            [compiler, *_FLAGS, "-x", "c", "-", "-o", str(library), "-lm"], input=source, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return library.read_bytes()


def build(folder: Path) -> Path:
    """Returns the path of the delegate's shared library in ``folder``; it is compiled once, and skipped without a compiler."""
    source = SOURCE.read_bytes()
    library = Path(folder) / f"libtest_delegate_{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not library.exists():
        # A library that is loaded must not change under its process.
        draft = library.with_suffix(f".{os.getpid()}")
        draft.write_bytes(_compiled(source))
        draft.replace(library)
    return library


def delegate(library: Path, **options: object) -> Delegate:
    """Returns the delegate with options as ``test_delegate.c`` describes them, such as ``mode="off", at=3, steps=20``."""
    return Delegate(str(library), {name: str(value) for name, value in options.items()})
