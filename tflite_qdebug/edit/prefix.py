"""The first operators of a model as a model of their own, without packing it again for each."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import append_outputs, pack, unpack
from tflite_qdebug.edit.patched import Patch
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model

__all__ = ["Prefixes"]

# Fields of the schema, as offsets into the tables of fields: a model's subgraphs, a subgraph's outputs and operators.
_SUBGRAPHS, _OUTPUTS, _OPERATORS = 8, 8, 10


class Prefixes:
    """A model from which the first so many operators can be had, with constants that may be overwritten between.

    It is packed once. A prefix is the same file with shorter lists of operators and outputs, so it costs no more than copying.

    Attributes:
        model: The model with all tensors of interest as outputs, behind its own; tensors have the numbers they had.
    """

    def __init__(self, model: Model, tensors: Iterable[int]) -> None:
        """Prepares a model.

        Args:
            model: The model.
            tensors: Those of its main subgraph that prefixes may have as outputs.

        Raises:
            ModelError: Where the model is broken.
        """
        unpacked = unpack(model)
        append_outputs(unpacked, tensors)
        unpacked.signatureDefs = None  # they name outputs that a prefix does not compute
        self.model = Model(pack(unpacked))
        self._room = len(self.model.main.outputs)
        self._patch = Patch(self.model)

    def constant(self, index: int, values: np.ndarray) -> None:
        """Overwrites a constant, as `Patch.constant` does."""
        self._patch.constant(index, values)

    def until(self, operators: int, outputs: Sequence[int]) -> bytes:
        """Returns the model of the first operators, as the constants are now.

        Args:
            operators: How many.
            outputs: The tensors that it gives, all of them computed by these operators.

        Raises:
            ModelError: Where there are not so many, or an output is not among what was prepared.
        """
        if not 0 < operators <= len(self.model.main.operators) or not 0 < len(outputs) <= self._room:
            raise ModelError(f"got {operators} operators and {len(outputs)} outputs for a prefix, which the model has not")
        content = bytearray(self._patch.data())
        table = _main(content)
        for field, length in ((_OPERATORS, operators), (_OUTPUTS, len(outputs))):
            start = table.Vector(table.Offset(field))
            struct.pack_into("<I", content, start - 4, length)
        struct.pack_into(f"<{len(outputs)}i", content, start, *outputs)
        return bytes(content)


def _main(content: bytearray) -> Any:
    """Returns the table of the main subgraph; the schema's readers tell values, not where they stand."""
    from flatbuffers.table import Table

    root = Table(content, struct.unpack_from("<I", content)[0])
    return Table(content, root.Indirect(root.Vector(root.Offset(_SUBGRAPHS))))
