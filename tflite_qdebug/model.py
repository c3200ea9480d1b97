"""An immutable view of a ``.tflite`` flatbuffer: subgraphs, operators, tensors, constants, signatures.

Constants are read where they lie, without a copy; nothing here changes a model (that is ``edit``).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.errors import ModelError
from tflite_qdebug.quantization import QuantizationParameters

__all__ = ["Model", "Operator", "Signature", "Subgraph", "Tensor", "read_model_bytes"]

_IDENTIFIER = b"TFL3"
# TensorType of the schema -> numpy. STRING, RESOURCE and VARIANT have no fixed width and are left as object.
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32), 1: np.dtype(np.float16), 2: np.dtype(np.int32), 3: np.dtype(np.uint8),
    4: np.dtype(np.int64), 6: np.dtype(np.bool_), 7: np.dtype(np.int16), 8: np.dtype(np.complex64),
    9: np.dtype(np.int8), 10: np.dtype(np.float64), 11: np.dtype(np.complex128), 12: np.dtype(np.uint64),
    15: np.dtype(np.uint32), 16: np.dtype(np.uint16),
}  # fmt: skip
QUANTIZED_DTYPES = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        index: Position in the subgraph; the interpreter uses the same.
        name: As the file has it; not always unique.
        shape: As the file has it, with -1 for dimensions that are dynamic.
        dtype: numpy's; ``object`` for strings, resources and variants.
        quantization: None for a tensor without scales.
        minimum: Calibrated minimum, or None.
        maximum: Calibrated maximum, or None.
        is_constant: True where the file holds its values.
        is_variable: True for state that outlives an invocation.
        buffer: Index into the model's buffers.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: QuantizationParameters | None
    minimum: float | None
    maximum: float | None
    is_constant: bool
    is_variable: bool
    buffer: int

    @property
    def is_float(self) -> bool:
        """True for a float32 tensor."""
        return self.dtype == np.float32

    @property
    def is_quantized(self) -> bool:
        """True for an integer tensor with a scale."""
        return self.quantization is not None and self.dtype in QUANTIZED_DTYPES


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator of a subgraph.

    Attributes:
        index: Position in execution order.
        name: The schema's name (``CONV_2D``), or the custom operator's own (``NumericVerify``).
        version: Operator version.
        inputs: Tensor indices; -1 for an optional input that is absent.
        outputs: Tensor indices.
    """

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named way to call a subgraph: ``{key: tensor index}`` for inputs and outputs."""

    key: str
    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """One graph of operators; the first is the main one."""

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def producers(self) -> dict[int, Operator]:
        """The operator that writes each tensor, by tensor index."""
        return {output: operator for operator in self.operators for output in operator.outputs}

    @functools.cached_property
    def nodes(self) -> dict[str, list[Operator]]:
        """The operators by the name of each of their output tensors, as a denylist calls them.

        Several operators can bear one name; an operator with several outputs stands under each.
        """
        nodes: dict[str, list[Operator]] = {}
        for operator in self.operators:
            for output in operator.outputs:
                nodes.setdefault(self.tensors[output].name, []).append(operator)
        return nodes


def read_model_bytes(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> bytes:
    """Returns the bytes of a ``.tflite`` given as a path or as bytes.

    Raises:
        ModelError: Where there is no such file, or it is not a TensorFlow Lite flatbuffer.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, what = bytes(source), f"{len(source)} bytes"
    else:
        path = Path(source)
        what = str(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read the model {what}: {error.strerror or error}") from error
    if len(data) < 8 or data[4:8] != _IDENTIFIER:
        raise ModelError(
            f"{what}: got a file that begins with {data[:8]!r}, expected a TensorFlow Lite flatbuffer, which has "
            f"{_IDENTIFIER!r} at byte 4"
        )
    return data


class Model:
    """A ``.tflite`` model, read only.

    Attributes:
        data: The flatbuffer.
        subgraphs: All subgraphs; `main` is the first.
        signatures: The model's signatures, possibly none.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> None:
        """Reads the structure of a model.

        Args:
            source: Path or bytes of a ``.tflite``.

        Raises:
            ModelError: Where the file cannot be read or its structure is broken.
        """
        self.data = read_model_bytes(source)
        try:
            self._root = tf_private.schema().Model.GetRootAs(self.data, 0)
            self._operator_names = tuple(self._read_operator_codes())
            self.subgraphs = tuple(self._read_subgraph(index) for index in range(self._root.SubgraphsLength()))
            self.signatures = tuple(self._read_signatures())
        except ModelError:
            raise
        except Exception as error:  # whatever offsets of a broken file lead to: struct.error, IndexError, ...
            raise ModelError(f"the model is broken: its structure cannot be read ({error})") from error
        if not self.subgraphs:
            raise ModelError("the model is broken: got no subgraph, expected at least one")

    @property
    def main(self) -> Subgraph:
        """The subgraph that runs when the model is invoked."""
        return self.subgraphs[0]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def _counted(self, count: int) -> range:
        # A broken file may claim 2**31 entries; each takes at least four bytes.
        if count * 4 > len(self.data):
            raise ModelError(f"the model is broken: got a list of {count} entries in a file of {len(self.data)} bytes")
        return range(count)

    def _read_operator_codes(self) -> Iterator[tuple[str, int]]:
        names = tf_private.builtin_operator_names()
        for index in self._counted(self._root.OperatorCodesLength()):
            code = self._root.OperatorCodes(index)
            builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            name = names.get(builtin, f"BUILTIN_{builtin}")
            yield (custom.decode("utf-8", "replace") if name == "CUSTOM" and custom else name), code.Version()

    def _read_tensor(self, table: Any, index: int) -> Tensor:
        shape = tuple(int(size) for size in _vector(table.ShapeAsNumpy()))
        signature = tuple(int(size) for size in _vector(table.ShapeSignatureAsNumpy()))
        quantization, minimum, maximum = None, None, None
        parameters = table.Quantization()
        if parameters is not None:
            if parameters.ScaleLength() and parameters.ZeroPointLength():
                scale, zero_point = parameters.ScaleAsNumpy(), parameters.ZeroPointAsNumpy()
                quantization = QuantizationParameters(scale, zero_point, parameters.QuantizedDimension())
            if parameters.MinLength() and parameters.MaxLength():
                minimum, maximum = float(parameters.Min(0)), float(parameters.Max(0))
        return Tensor(
            index=index,
            name=(table.Name() or b"").decode("utf-8", "replace"),
            shape=signature or shape,
            dtype=_DTYPES.get(table.Type(), np.dtype(object)),
            quantization=quantization,
            minimum=minimum,
            maximum=maximum,
            is_constant=self._buffer_length(table.Buffer()) > 0,
            is_variable=bool(table.IsVariable()),
            buffer=table.Buffer(),
        )

    def _buffer_length(self, index: int) -> int:
        buffer = self._root.Buffers(index)
        return max(buffer.DataLength(), buffer.Size() if hasattr(buffer, "Size") else 0)

    def _read_subgraph(self, index: int) -> Subgraph:
        table = self._root.Subgraphs(index)
        tensors = tuple(self._read_tensor(table.Tensors(i), i) for i in self._counted(table.TensorsLength()))
        operators = []
        for position in self._counted(table.OperatorsLength()):
            operator = table.Operators(position)
            name, version = self._operator_names[operator.OpcodeIndex()]
            inputs, outputs = _indices(operator.InputsAsNumpy()), _indices(operator.OutputsAsNumpy())
            operators.append(Operator(position, name, version, inputs, outputs))
        subgraph = Subgraph(
            index=index,
            name=(table.Name() or b"").decode("utf-8", "replace"),
            tensors=tensors,
            operators=tuple(operators),
            inputs=_indices(table.InputsAsNumpy()),
            outputs=_indices(table.OutputsAsNumpy()),
        )
        used = [i for op in operators for i in (*op.inputs, *op.outputs)] + [*subgraph.inputs, *subgraph.outputs]
        if used and not -1 <= min(used) <= max(used) < len(tensors):
            raise ModelError(
                f"the model is broken: an operator of subgraph {index} refers to tensor {max(used)}, expected an "
                f"index below {len(tensors)}"
            )
        return subgraph

    def _read_signatures(self) -> Iterator[Signature]:
        for index in self._counted(self._root.SignatureDefsLength()):
            table = self._root.SignatureDefs(index)
            sides = [
                {
                    (entry.Name() or b"").decode("utf-8", "replace"): int(entry.TensorIndex())
                    for entry in (read(i) for i in self._counted(length))
                }
                for read, length in (
                    (table.Inputs, table.InputsLength()),
                    (table.Outputs, table.OutputsLength()),
                )
            ]
            key = (table.SignatureKey() or b"").decode("utf-8", "replace")
            yield Signature(key, table.SubgraphIndex(), sides[0], sides[1])

    def constant(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a constant, a view into the file where they are stored in it.

        Raises:
            ModelError: Where the tensor is no constant or its buffer does not fit its shape.
        """
        buffer = self._root.Buffers(tensor.buffer)
        if tensor.dtype == object:
            raise ModelError(f"tensor {tensor.name!r} is of strings or resources, expected numbers")
        try:
            if buffer.DataLength():
                raw = buffer.DataAsNumpy()
            elif hasattr(buffer, "Size") and buffer.Size():
                raw = np.frombuffer(self.data, np.uint8, buffer.Size(), buffer.Offset())
            else:
                raise ModelError(f"tensor {tensor.name!r} is no constant: it has no values in the file")
            return raw.view(tensor.dtype).reshape(tensor.shape)
        except ModelError:
            raise
        except Exception as error:  # as in the constructor
            raise ModelError(
                f"the model is broken: constant {tensor.name!r} cannot be read as {tensor.dtype} of shape {tensor.shape} "
                f"({error})"
            ) from error

    def input_specs(self) -> list[InputSpec]:
        """Returns what the main subgraph expects of a sample, in input order.

        An integer input with a scale takes floats as well; they are quantized, and clipped, when they are fed.
        """
        keys = {index: key for signature in self.signatures[:1] for key, index in signature.inputs.items()}
        specs = []
        for index in self.main.inputs:
            tensor = self.main.tensors[index]
            dtypes = (tensor.dtype, np.dtype(np.float32)) if tensor.is_quantized else (tensor.dtype,)
            specs.append(InputSpec(tensor.name, tensor.shape, dtypes, keys.get(index)))
        return specs

    def node_names(self) -> list[str]:
        """Returns the names by which the main subgraph's operators can be denylisted, in execution order."""
        return list(self.main.nodes)

    def __repr__(self) -> str:
        return f"Model({len(self.main.operators)} operators, {len(self.data)} bytes, sha256 {self.sha256[:12]})"


def _vector(values: Any) -> Sequence[int]:
    # The generated reader returns 0, not an empty array, for a vector that is absent.
    return () if isinstance(values, int) else values


def _indices(values: Any) -> tuple[int, ...]:
    return tuple(int(index) for index in _vector(values))
