"""The names in a ``.tflite``, read within milliseconds and without TensorFlow, whose schema takes seconds to load.

Where more than names is wanted, `model` reads the whole structure. Positions of fields are those of the schema, which never
change: a schema of flatbuffers only grows.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tflite_qdebug.errors import MissingPackageError, ModelError

__all__ = ["Outline", "Port", "outline"]

_IDENTIFIER = b"TFL3"
# Fields of the schema's tables, by position.
_SUBGRAPHS, _SIGNATURES = 2, 7
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3
_SHAPE, _TYPE, _NAME, _SHAPE_SIGNATURE = 0, 1, 3, 7
_OPERATOR_OUTPUTS = 2
_SIGNATURE_KEY = 2
_TYPES = ("float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
          "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4")  # fmt: skip


class Port(NamedTuple):
    """An input or an output of a model.

    Attributes:
        name: Of the tensor.
        dtype: Name of its type.
        shape: With -1 for sizes that are open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {'×'.join('?' if size < 0 else str(size) for size in self.shape) or 'scalar'}"


class Outline(NamedTuple):
    """What a model is called from outside.

    Attributes:
        inputs: Of the main subgraph.
        outputs: The same.
        nodes: Names of its operators' outputs, in execution order, each once: what a denylist takes.
        signatures: Keys of the signatures.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[str, ...]
    signatures: tuple[str, ...]


def outline(source: str | os.PathLike[str] | bytes) -> Outline:
    """Reads the names in a model.

    Args:
        source: Path or bytes of a ``.tflite``.

    Raises:
        ModelError: Where it cannot be read.
        MissingPackageError: Where flatbuffers is not installed.
    """
    what = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        if isinstance(source, bytes):
            return _read(source, what)
        with Path(source).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(content, what)
    except (ModelError, MissingPackageError):
        raise
    except OSError as error:
        raise ModelError(f"cannot read the model {what}: {error.strerror or error}") from error
    except Exception as error:  # whatever offsets of a broken file lead to: struct.error, IndexError, ...
        raise ModelError(f"{what}: the model is broken: its structure cannot be read ({error})") from error


def _read(content: Any, what: str) -> Outline:
    try:
        from flatbuffers import encode, number_types, packer, table
    except ImportError as error:
        raise MissingPackageError(
            "reading the names in a model needs flatbuffers, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    if bytes(content[4:8]) != _IDENTIFIER:
        raise ModelError(f"{what}: got a file without {_IDENTIFIER!r} at byte 4, expected a TensorFlow Lite flatbuffer")
    integers = number_types.Int32Flags

    def place(owner: Any, field: int) -> int:
        return int(owner.Offset(4 + 2 * field))

    def tables(owner: Any, field: int) -> Iterator[Any]:
        offset = place(owner, field)
        if offset:
            start = owner.Vector(offset)
            for index in range(owner.VectorLen(offset)):
                yield table.Table(content, owner.Indirect(start + 4 * index))

    def numbers(owner: Any, field: int) -> list[int]:
        offset = place(owner, field)
        if not offset:
            return []
        start = owner.Vector(offset)
        return [int(owner.Get(integers, start + 4 * index)) for index in range(owner.VectorLen(offset))]

    def text(owner: Any, field: int) -> str:
        offset = place(owner, field)
        return owner.String(offset + owner.Pos).decode("utf-8", "replace") if offset else ""

    def port(tensor: Any) -> Port:
        offset = place(tensor, _TYPE)
        code = int(tensor.Get(number_types.Int8Flags, offset + tensor.Pos)) if offset else 0
        shape = numbers(tensor, _SHAPE_SIGNATURE) or numbers(tensor, _SHAPE)
        return Port(text(tensor, _NAME), _TYPES[code] if code < len(_TYPES) else f"type {code}", tuple(shape))

    root = table.Table(content, encode.Get(packer.uoffset, content, 0))
    main = next(tables(root, _SUBGRAPHS), None)
    if main is None:
        raise ModelError(f"{what}: the model is broken: got no subgraph, expected at least one")
    tensors = list(tables(main, _TENSORS))
    made = (index for operator in tables(main, _OPERATORS) for index in numbers(operator, _OPERATOR_OUTPUTS))
    return Outline(
        tuple(port(tensors[index]) for index in numbers(main, _INPUTS)),
        tuple(port(tensors[index]) for index in numbers(main, _OUTPUTS)),
        tuple(dict.fromkeys(text(tensors[index], _NAME) for index in made)),
        tuple(text(signature, _SIGNATURE_KEY) for signature in tables(root, _SIGNATURES)),
    )
