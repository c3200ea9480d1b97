"""Unpacking and packing flatbuffers, and the edits that every other one is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model

__all__ = ["Writer", "append_outputs", "drop_unused_buffers", "drop_unused_codes", "drop_unused_tensors", "expose",
           "model_of_nothing", "pack", "replace_input", "require_single_subgraph", "unpack", "with_ranges",
           "with_renamed"]  # fmt: skip

# Pairs of operators, by position, that must keep their order. Edits move operators, and a runtime trusts the positions; without
# them it keeps operators with side effects in their order.
_OPERATOR_ORDER = b"model_control_dependencies"


def unpack(model: Model) -> Any:
    """Returns the model as objects of the schema, which can be changed."""
    schema = tf_private.schema()
    try:
        unpacked = schema.ModelT.InitFromPackedBuf(model.data, 0)
    except Exception as error:  # whatever a broken file leads to in parts that a view of it does not read
        raise ModelError(f"the model is broken: its structure cannot be read ({error})") from error
    unpacked.buffers, unpacked.operatorCodes = unpacked.buffers or [], unpacked.operatorCodes or []
    for subgraph in unpacked.subgraphs:
        # A list that is absent is as good as one of nothing.
        subgraph.operators, subgraph.tensors = subgraph.operators or [], subgraph.tensors or []
        for lists in (subgraph, *subgraph.operators):
            lists.inputs = np.zeros(0, np.int32) if lists.inputs is None else lists.inputs
            lists.outputs = np.zeros(0, np.int32) if lists.outputs is None else lists.outputs
    for buffer in unpacked.buffers:
        # Data outside of the flatbuffer would be lost when it is written again.
        if buffer.data is None and getattr(buffer, "size", None):
            buffer.data = np.frombuffer(model.data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if unpacked.metadata is not None:
        unpacked.metadata = [metadata for metadata in unpacked.metadata if metadata.name != _OPERATOR_ORDER]
    return unpacked


def pack(unpacked: Any) -> bytes:
    """Returns the bytes of what `unpack` gave."""
    import flatbuffers

    # Room from the start for what has to be copied anyway: a builder that grows copies all it holds each time.
    weights = sum(0 if buffer.data is None else len(buffer.data) + 64 for buffer in unpacked.buffers or [])
    builder = flatbuffers.Builder(weights + (1 << 18))
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def model_of_nothing() -> bytes:
    """Returns a model without operators, whose one number is input and output: any runtime, kernels and delegate open it."""
    schema = tf_private.schema()
    tensor, subgraph, model = schema.TensorT(), schema.SubGraphT(), schema.ModelT()
    tensor.name, tensor.type, tensor.buffer = b"nothing", schema.TensorType.FLOAT32, 0
    tensor.shape, tensor.hasRank = np.array([1], dtype=np.int32), True
    subgraph.tensors, subgraph.operators = [tensor], []
    subgraph.inputs = subgraph.outputs = np.array([0], dtype=np.int32)
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [subgraph], [], [schema.BufferT()]
    return pack(model)


def require_single_subgraph(model: Model, what: str) -> None:
    """Refuses a model of several subgraphs.

    Raises:
        ModelError: Where there are several; ``what`` stands in its message.
    """
    if len(model.subgraphs) > 1:
        names = ", ".join(repr(subgraph.name or subgraph.index) for subgraph in model.subgraphs)
        raise ModelError(
            f"got a model with {len(model.subgraphs)} subgraphs ({names}), expected one: {what} does not follow other "
            "signatures or the bodies of while and if, and leaving them out would report a part as the whole; use "
            "pair_errors, or tflite-qdebug run, which measure each"
        )


def expose(model: Model, tensors: Iterable[int]) -> bytes:
    """Returns the model with further tensors of its main subgraph as outputs, behind its own.

    An output keeps its value to the end of an invocation, also under XNNPACK; other tensors are overwritten.
    """
    unpacked = unpack(model)
    append_outputs(unpacked, tensors)
    return pack(unpacked)


def append_outputs(unpacked: Any, tensors: Iterable[int]) -> None:
    """Makes further tensors of the main subgraph outputs, behind those that are."""
    main = unpacked.subgraphs[0]
    main.outputs = np.array(list(dict.fromkeys([*main.outputs, *tensors])), dtype=np.int32)


def with_ranges(model: Model, ranges: Mapping[int, tuple[float, float]]) -> bytes:
    """Returns the float model with a calibrated minimum and maximum on the given tensors of its main subgraph."""
    schema = tf_private.schema()
    unpacked = unpack(model)
    tensors = unpacked.subgraphs[0].tensors
    for index, (minimum, maximum) in ranges.items():
        parameters = tensors[index].quantization or schema.QuantizationParametersT()
        parameters.min, parameters.max = [np.float32(minimum)], [np.float32(maximum)]
        tensors[index].quantization = parameters
    return pack(unpacked)


def with_renamed(model: Model, rename: Callable[[int, str], str]) -> bytes:
    """Returns the model with each tensor of its main subgraph called ``rename(index, name)``."""
    unpacked = unpack(model)
    for index, tensor in enumerate(unpacked.subgraphs[0].tensors):
        tensor.name = rename(index, (tensor.name or b"").decode("utf-8", "replace")).encode()
    return pack(unpacked)


class Writer:
    """Adds tensors, constants and operators to one subgraph of an unpacked model, by default the main one."""

    def __init__(self, unpacked: Any, subgraph: int = 0) -> None:
        self.schema = tf_private.schema()
        self.unpacked = unpacked
        self.main = unpacked.subgraphs[subgraph]
        self.builtin = {name: code for code, name in tf_private.builtin_operator_names().items()}

    def add_tensor(self, name: str, like: Any, tensor_type: int) -> int:
        """Adds a tensor without values, of the shape of another; returns its index."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), tensor_type, 0
        tensor.shape, tensor.shapeSignature, tensor.hasRank = like.shape, like.shapeSignature, like.hasRank
        self.main.tensors.append(tensor)
        return len(self.main.tensors) - 1

    def add_values(self, values: np.ndarray) -> int:
        """Adds a buffer; returns its index."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.unpacked.buffers.append(buffer)
        return len(self.unpacked.buffers) - 1

    def add_code(self, name: str, version: int, custom: bytes | None = None) -> int:
        """Returns the index of an operator code, added where it is missing."""
        builtin = self.builtin.get(name, self.builtin["CUSTOM"])
        for index, code in enumerate(self.unpacked.operatorCodes):
            same = max(code.builtinCode, code.deprecatedBuiltinCode) == builtin
            if same and code.version == version and code.customCode == custom:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version, code.customCode = version, custom
        self.unpacked.operatorCodes.append(code)
        return len(self.unpacked.operatorCodes) - 1

    def dequantize(self, source: int, name: str, version: int) -> tuple[Any, int]:
        """Returns a DEQUANTIZE operator (not yet put anywhere) that reads ``source``, and the tensor it writes."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.add_code("DEQUANTIZE", version)
        target = self.add_tensor(name, self.main.tensors[source], self.schema.TensorType.FLOAT32)
        operator.inputs = np.array([source], dtype=np.int32)
        operator.outputs = np.array([target], dtype=np.int32)
        operator.builtinOptionsType = self.schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = self.schema.DequantizeOptionsT()
        return operator, target


def replace_input(table: Any, position: int, index: int) -> None:
    """Makes an operator read another tensor at one position."""
    inputs = np.array(table.inputs, dtype=np.int32)
    inputs[position] = index
    table.inputs = inputs


def drop_unused_codes(unpacked: Any) -> None:
    """Removes operator codes that no operator has any more: a runtime refuses a model for a code alone."""
    operators = [operator for subgraph in unpacked.subgraphs for operator in subgraph.operators]
    used = sorted({operator.opcodeIndex for operator in operators})
    unpacked.operatorCodes = [unpacked.operatorCodes[index] for index in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)


def drop_unused_tensors(unpacked: Any) -> dict[int, int]:
    """Removes tensors of the main subgraph that nothing refers to any more, and buffers that no tensor has.

    Returns:
        For each tensor that stays its old index -> its new one.
    """
    main = unpacked.subgraphs[0]
    lists = [main.inputs, main.outputs]
    for operator in main.operators:
        lists += [operator.inputs, operator.outputs, () if operator.intermediates is None else operator.intermediates]
    used = sorted({int(index) for indices in lists for index in indices} - {-1})
    mapping = {old: new for new, old in enumerate(used)}

    def moved(indices: Any) -> np.ndarray:
        return np.array([mapping.get(int(index), -1) for index in indices], dtype=np.int32)

    main.tensors = [main.tensors[index] for index in used]
    main.inputs, main.outputs = moved(main.inputs), moved(main.outputs)
    for operator in main.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        if operator.intermediates is not None:
            operator.intermediates = moved(operator.intermediates)
    holders = [tensor for subgraph in unpacked.subgraphs for tensor in subgraph.tensors] + list(unpacked.metadata or [])
    kept = sorted({0, *(holder.buffer for holder in holders)})  # buffer 0 stands for no values
    unpacked.buffers, unpacked.metadataBuffer = [unpacked.buffers[index] for index in kept], None
    for holder in holders:
        holder.buffer = kept.index(holder.buffer)
    return mapping


def drop_unused_buffers(unpacked: Any) -> None:
    """Empties buffers that no tensor or metadata refers to any more; their numbers stay, so nothing else moves."""
    used = {tensor.buffer for subgraph in unpacked.subgraphs for tensor in subgraph.tensors}
    used |= {metadata.buffer for metadata in unpacked.metadata or []}
    for index, buffer in enumerate(unpacked.buffers):
        if index not in used:
            buffer.data = None
