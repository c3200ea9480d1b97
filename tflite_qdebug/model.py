"""An immutable view of a ``.tflite`` flatbuffer: subgraphs, operators, tensors, constants, signatures.

Constants are read where they lie, without a copy; nothing here changes a model (that is ``edit``).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.errors import ModelError, OptionError, QDebugError, did_you_mean
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size

__all__ = ["Model", "Operator", "Signature", "Subgraph", "Tensor", "read_model_bytes", "refuses_broken_models"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_IDENTIFIER = b"TFL3"
# TensorType of the schema -> numpy. STRING, RESOURCE and VARIANT have no fixed width and are left as object.
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32), 1: np.dtype(np.float16), 2: np.dtype(np.int32), 3: np.dtype(np.uint8),
    4: np.dtype(np.int64), 6: np.dtype(np.bool_), 7: np.dtype(np.int16), 8: np.dtype(np.complex64),
    9: np.dtype(np.int8), 10: np.dtype(np.float64), 11: np.dtype(np.complex128), 12: np.dtype(np.uint64),
    15: np.dtype(np.uint32), 16: np.dtype(np.uint16),
}  # fmt: skip
# How many entries of lists a file may have for each of its bytes. A sound file has less than one, but may share some.
_READ_PER_BYTE = 4
_MOST_DIMENSIONS = 64
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


def refuses_broken_models(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes a function that reads or edits models raise ModelError where a broken one leads it astray.

    `Model` checks the structure, not what operators mean: that one of a type has so many inputs, that its constants fit.
    """

    @functools.wraps(function)
    def refusing(*arguments: _P.args, **keywords: _P.kwargs) -> _T:
        try:
            return function(*arguments, **keywords)
        except QDebugError:
            raise
        except (LookupError, ArithmeticError, AttributeError, TypeError, ValueError, struct.error, MemoryError) as error:
            raise ModelError(
                f"the model is broken, or of a kind that is not known here: {function.__name__} failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    return refusing


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


class Model(Shown):
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
            self._read()
        except ModelError as error:
            if isinstance(source, (str, os.PathLike)):
                raise ModelError(f"{os.fspath(source)}: {error}") from error
            raise

    def _read(self) -> None:
        # Offsets may let many tables share one list: what is read in all is bounded, not each list alone.
        self._left = _READ_PER_BYTE * len(self.data)
        try:
            self._root = tf_private.schema().Model.GetRootAs(self.data, 0)
            self._operator_names = tuple(self._read_operator_codes())
            self._buffers = tuple(self._read_buffers())
            self.subgraphs = tuple(self._read_subgraph(index) for index in self._counted(self._root.SubgraphsLength()))
            self.signatures = tuple(self._read_signatures())
            self._count_the_rest()
        except ModelError:
            raise
        except Exception as error:  # whatever offsets of a broken file lead to: struct.error, IndexError, ...
            raise ModelError(f"the model is broken: its structure cannot be read ({error}); was the file cut short?") from error
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

    def _charge(self, count: int) -> None:
        """Counts what is read; each element takes at least a byte of the file, unless a broken file shares them."""
        self._left -= count
        if self._left < 0:
            raise ModelError(
                f"the model is broken: got lists of more than {_READ_PER_BYTE * len(self.data)} entries in all, in a file of "
                f"{len(self.data)} bytes"
            )

    def _counted(self, count: int) -> range:
        # A broken file may claim 2**31 entries; each takes at least four bytes.
        if count * 4 > len(self.data):
            raise ModelError(f"the model is broken: got a list of {count} entries in a file of {len(self.data)} bytes")
        self._charge(4 * count)
        return range(count)

    def _text(self, content: bytes | None) -> str:
        self._charge(len(content or b""))
        return (content or b"").decode("utf-8", "replace")

    def _numbers(self, values: Any, most: int | None = None) -> tuple[int, ...]:
        """Returns a list of integers; with ``most``, of indices below it, -1 for none."""
        numbers = _vector(values)
        self._charge(len(numbers))
        found = tuple(int(number) for number in numbers)
        if most is not None and found and not -1 <= min(found) <= max(found) < most:
            wrong = next(number for number in found if not -1 <= number < most)
            raise ModelError(f"the model is broken: got a reference to tensor {wrong}, expected an index below {most}")
        return found

    def _count_the_rest(self) -> None:
        """Counts the lists that are not read here, but will be where the model is edited."""
        root = self._root
        for index in self._counted(root.MetadataLength()):
            self._text(root.Metadata(index).Name())
        self._charge(root.MetadataBufferLength())
        for position in range(root.SubgraphsLength()):
            table = root.Subgraphs(position)
            for index in range(table.OperatorsLength()):
                self._charge(_size_of_rest(table.Operators(index)))

    def _read_buffers(self) -> Iterator[tuple[int, int]]:
        """Yields where each buffer's values begin in the file, and how many bytes they are."""
        origin = _address(np.frombuffer(self.data, np.uint8))
        for index in self._counted(self._root.BuffersLength()):
            buffer = self._root.Buffers(index)
            start, size = 0, buffer.DataLength()
            if size:
                start = _address(buffer.DataAsNumpy()) - origin  # which refuses what lies beyond the file
            elif hasattr(buffer, "Size"):
                start, size = buffer.Offset(), buffer.Size()
            if start + size > len(self.data):
                raise ModelError(
                    f"the model is broken: buffer {index} has {size} bytes at byte {start} of a file of {len(self.data)} bytes"
                )
            yield start, size

    def _read_operator_codes(self) -> Iterator[tuple[str, int]]:
        names = tf_private.builtin_operator_names()
        for index in self._counted(self._root.OperatorCodesLength()):
            code = self._root.OperatorCodes(index)
            builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            name = names.get(builtin, f"BUILTIN_{builtin}")
            custom = self._text(custom)
            yield (custom if name == "CUSTOM" and custom else name), code.Version()

    def _read_tensor(self, table: Any, index: int) -> Tensor:
        shape, signature = self._numbers(table.ShapeAsNumpy()), self._numbers(table.ShapeSignatureAsNumpy())
        quantization, minimum, maximum = None, None, None
        parameters = table.Quantization()
        if parameters is not None:
            self._charge(sum(getattr(parameters, f"{name}Length")() for name in ("Scale", "ZeroPoint", "Min", "Max")))
            if parameters.ScaleLength() and parameters.ZeroPointLength():
                scale, zero_point = parameters.ScaleAsNumpy(), parameters.ZeroPointAsNumpy()
                quantization = QuantizationParameters(scale, zero_point, parameters.QuantizedDimension())
            if parameters.MinLength() and parameters.MaxLength():
                minimum, maximum = float(parameters.Min(0)), float(parameters.Max(0))
        tensor = Tensor(
            index=index,
            name=self._text(table.Name()),
            shape=signature or shape,
            dtype=_DTYPES.get(table.Type(), np.dtype(object)),
            quantization=quantization,
            minimum=minimum,
            maximum=maximum,
            is_constant=self._buffers[table.Buffer()][1] > 0,
            is_variable=bool(table.IsVariable()),
            buffer=table.Buffer(),
        )
        self._check_shape(tensor, shape, table)
        return tensor

    def _check_shape(self, tensor: Tensor, shape: tuple[int, ...], table: Any) -> None:
        what = f"the model is broken: tensor {tensor.index} ({tensor.name!r}) has shape {shape}"
        if any(size < -1 for size in (*shape, *tensor.shape)):
            raise ModelError(f"{what}, expected no negative sizes")
        if len(tensor.shape) != len(shape) and shape:
            raise ModelError(
                f"{what} and shape signature {tensor.shape}, expected as many dimensions of the one as of the other"
            )
        sparse = table.Sparsity()
        if sparse is not None:
            self._charge(_size_of_sparsity(sparse))
        held = self._buffers[tensor.buffer][1]
        needed = math.prod(shape) * tensor.dtype.itemsize
        if tensor.is_constant and tensor.dtype != object and sparse is None and needed > held:
            raise ModelError(f"{what}, which takes {needed} bytes, and its buffer has {held}")

    def _read_subgraph(self, index: int) -> Subgraph:
        table = self._root.Subgraphs(index)
        tensors = tuple(self._read_tensor(table.Tensors(i), i) for i in self._counted(table.TensorsLength()))
        operators = []
        for position in self._counted(table.OperatorsLength()):
            operator = table.Operators(position)
            code, most = operator.OpcodeIndex(), len(tensors)
            if code >= len(self._operator_names):
                raise ModelError(
                    f"the model is broken: operator {position} of subgraph {index} has code {code}, expected one below "
                    f"{len(self._operator_names)}"
                )
            inputs = self._numbers(operator.InputsAsNumpy(), most)
            outputs = self._numbers(operator.OutputsAsNumpy(), most)
            name, version = self._operator_names[code]
            operators.append(Operator(position, name, version, inputs, outputs))
        subgraph = Subgraph(
            index=index,
            name=self._text(table.Name()),
            tensors=tensors,
            operators=tuple(operators),
            inputs=self._numbers(table.InputsAsNumpy(), len(tensors)),
            outputs=self._numbers(table.OutputsAsNumpy(), len(tensors)),
        )
        if -1 in subgraph.inputs or -1 in subgraph.outputs:
            raise ModelError(f"the model is broken: an input or output of subgraph {index} is no tensor")
        _check_order(subgraph)
        return subgraph

    def _read_signatures(self) -> Iterator[Signature]:
        for index in self._counted(self._root.SignatureDefsLength()):
            table = self._root.SignatureDefs(index)
            key, subgraph = self._text(table.SignatureKey()), table.SubgraphIndex()
            if subgraph >= len(self.subgraphs):
                raise ModelError(
                    f"the model is broken: signature {key!r} is for subgraph {subgraph}, expected one below "
                    f"{len(self.subgraphs)}"
                )
            sides: list[dict[str, int]] = []
            for read, length in ((table.Inputs, table.InputsLength()), (table.Outputs, table.OutputsLength())):
                entries = [read(position) for position in self._counted(length)]
                names = [self._text(entry.Name()) for entry in entries]
                indices = self._numbers([entry.TensorIndex() for entry in entries], len(self.subgraphs[subgraph].tensors))
                sides.append(dict(zip(names, indices, strict=True)))
            yield Signature(key, subgraph, *sides)

    def constant(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a constant, a view into the file where they are stored in it.

        Raises:
            ModelError: Where the tensor is no constant or its buffer does not fit its shape.
        """
        start, size = self._buffers[tensor.buffer]
        if tensor.dtype == object:
            raise ModelError(f"tensor {tensor.name!r} is of strings or resources, expected numbers")
        if not size:
            raise ModelError(f"tensor {tensor.name!r} is no constant: it has no values in the file")
        try:
            raw = np.frombuffer(self.data, np.uint8, size, start)
            return raw.view(tensor.dtype).reshape(tensor.shape)
        except Exception as error:  # as in the constructor
            raise ModelError(
                f"the model is broken: constant {tensor.name!r} cannot be read as {tensor.dtype} of shape {tensor.shape} "
                f"({error})"
            ) from error

    def place(self, tensor: Tensor) -> int:
        """Returns at which byte of the file the values of a constant begin."""
        return self._buffers[tensor.buffer][0]

    def input_specs(self) -> list[InputSpec]:
        """Returns what the main subgraph expects of a sample, in input order.

        An integer input with a scale takes floats as well; they are quantized, and clipped, when they are fed.
        """
        return self._specs_of(self.main, next((entry for entry in self.signatures if entry.subgraph == 0), None))

    def signature_specs(self, signature: str) -> list[InputSpec]:
        """Returns the same of a signature's subgraph.

        Raises:
            OptionError: Where the model has no such signature.
        """
        found = self.signature(signature)
        return self._specs_of(self.subgraphs[found.subgraph], found)

    def signature(self, key: str) -> Signature:
        """Returns a signature by its key.

        Raises:
            OptionError: Where the model has no such signature.
        """
        found = {entry.key: entry for entry in self.signatures}
        if key not in found:
            known = ", ".join(map(repr, found)) or "none"
            raise OptionError(f"got signature {key!r}, expected one of the model's: {known}.{did_you_mean(key, found)}")
        return found[key]

    @staticmethod
    def _specs_of(subgraph: Subgraph, signature: Signature | None) -> list[InputSpec]:
        keys = {index: key for key, index in signature.inputs.items()} if signature else {}
        specs = []
        for index in subgraph.inputs:
            tensor = subgraph.tensors[index]
            dtypes = (tensor.dtype, np.dtype(np.float32)) if tensor.is_quantized else (tensor.dtype,)
            specs.append(InputSpec(tensor.name, tensor.shape, dtypes, keys.get(index)))
        return specs

    def node_names(self) -> list[str]:
        """Returns the names by which the main subgraph's operators can be denylisted, in execution order."""
        return list(self.main.nodes)

    def __repr__(self) -> str:
        return f"Model({len(self.main.operators)} operators, {byte_size(len(self.data))}, sha256 {self.sha256[:12]})"


def _vector(values: Any) -> Sequence[int]:
    # The generated reader returns 0, not an empty array, for a vector that is absent.
    return () if isinstance(values, int) else values


def _address(values: np.ndarray) -> int:
    return int(values.__array_interface__["data"][0])


def _check_order(subgraph: Subgraph) -> None:
    """Refuses operators that read what only they, or later ones, write: the order of operators is that of execution."""
    there = {*subgraph.inputs, -1}
    there |= {tensor.index for tensor in subgraph.tensors if tensor.is_constant or tensor.is_variable}
    made = subgraph.producers
    for operator in subgraph.operators:
        for index in operator.inputs:
            if index not in there and index in made:
                raise ModelError(
                    f"the model is broken: operator {operator.index} ({operator.name}) of subgraph {subgraph.index} reads "
                    f"tensor {index} ({subgraph.tensors[index].name!r}) before operator {made[index].index} "
                    f"({made[index].name}) has written it"
                )
        there.update(operator.outputs)


def _size_of_rest(operator: Any) -> int:
    """Returns the number of elements in the lists of an operator that only an edit looks at."""
    size = operator.CustomOptionsLength() + operator.IntermediatesLength() + operator.MutatingVariableInputsLength()
    for kind, options in (
        ("BuiltinOptions", operator.BuiltinOptions),
        ("BuiltinOptions2", getattr(operator, "BuiltinOptions2", None)),
    ):
        table = options() if options is not None else None
        if table is not None:
            size += _size_of_options(table, kind, getattr(operator, f"{kind}Type")())
    return int(size)


def _size_of_options(table: Any, union: str, kind: int) -> int:
    name = _option_names(union).get(kind)
    lengths = _length_methods(name) if name else ()
    if not lengths:
        return 0
    options = getattr(tf_private.schema(), str(name))()
    options.Init(table.Bytes, table.Pos)
    return sum(getattr(options, method)() for method in lengths)


@functools.cache
def _option_names(union: str) -> dict[int, str]:
    kinds = vars(getattr(tf_private.schema(), union))
    return {code: name for name, code in kinds.items() if isinstance(code, int)}


@functools.cache
def _length_methods(table: str) -> tuple[str, ...]:
    return tuple(name for name in dir(getattr(tf_private.schema(), table, None)) if name.endswith("Length"))


def _size_of_sparsity(sparsity: Any) -> int:
    """Returns the number of elements in the lists that say where a sparse constant has values."""
    size = sparsity.TraversalOrderLength() + sparsity.BlockMapLength() + sparsity.DimMetadataLength()
    for index in range(min(sparsity.DimMetadataLength(), _MOST_DIMENSIONS)):
        size += _size_of_dimension(sparsity.DimMetadata(index))
    return int(size)


def _size_of_dimension(dimension: Any) -> int:
    schema, size = tf_private.schema(), 0
    for name in ("ArraySegments", "ArrayIndices"):
        table = getattr(dimension, name)()
        kind = next((k for k, v in vars(schema.SparseIndexVector).items() if v == getattr(dimension, f"{name}Type")()), "NONE")
        if table is not None and kind != "NONE":
            values = getattr(schema, kind)()
            values.Init(table.Bytes, table.Pos)
            size += values.ValuesLength()
    return size
