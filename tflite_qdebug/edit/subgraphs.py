"""Subgraphs: which ones an operator calls, copying them from model to model, making one of them the main one."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import drop_unused_buffers, drop_unused_codes, pack, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model

__all__ = ["copy_subgraphs", "reachable_subgraphs", "referenced_subgraphs", "renumber_subgraphs", "select_prefix",
           "select_subgraph"]  # fmt: skip

# Options of the schema -> their fields that are indices of subgraphs; one that a schema lacks is never met.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "IfOptionsT": ("thenSubgraphIndex", "elseSubgraphIndex"),
    "WhileOptionsT": ("condSubgraphIndex", "bodySubgraphIndex"),
    "CallOnceOptionsT": ("initSubgraphIndex",),
    "CallOptionsT": ("subgraph",),
    "StableHLOCompositeOptionsT": ("decompositionSubgraphIndex",),
    "StablehloWhileOptionsT": ("condSubgraphIndex", "bodySubgraphIndex"),
    "StablehloReduceOptionsT": ("bodySubgraphIndex",),
    "StablehloReduceWindowOptionsT": ("bodySubgraphIndex",),
    "StablehloSortOptionsT": ("comparatorSubgraphIndex",),
    "StablehloScatterOptionsT": ("updateComputationSubgraphIndex",),
    "StablehloCaseOptionsT": ("branchSubgraphIndices",),
}
# Which operators of a subgraph must not change places, by their positions: a list for each subgraph.
_CONTROL_EDGES = b"model_control_dependencies"
_CONTROL_EDGES_VERSION = 1
_Edges = list[list[tuple[int, int]]]


def referenced_subgraphs(operator_table: Any) -> tuple[int, ...]:
    """Returns the subgraphs that an operator calls, in the order of the schema's fields (IF: then, else; WHILE: cond, body).

    Args:
        operator_table: An ``OperatorT`` of the schema.

    Returns:
        Indices of subgraphs, with repetitions. A negative index, which stands for no subgraph, is left out; 0 is one.
    """
    found: list[int] = []
    for options in (operator_table.builtinOptions, getattr(operator_table, "builtinOptions2", None)):
        for field in _FIELDS.get(type(options).__name__, ()):
            found += np.atleast_1d(_value(options, field)).tolist()
    return tuple(index for index in found if index >= 0)


def renumber_subgraphs(operator_table: Any, mapping: Mapping[int, int]) -> None:
    """Makes an operator call other subgraphs; its options are copied first, as tables may share them.

    Args:
        operator_table: An ``OperatorT`` of the schema, changed in place.
        mapping: Old -> new index; an index that it lacks stays.
    """
    for attribute in ("builtinOptions", "builtinOptions2"):
        options = getattr(operator_table, attribute, None)
        fields = _FIELDS.get(type(options).__name__, ())
        if not fields:
            continue
        options = copy.copy(options)
        for field in fields:
            old = _value(options, field)
            if isinstance(old, int):
                setattr(options, field, mapping.get(old, old))
            else:
                setattr(options, field, np.array([mapping.get(int(index), int(index)) for index in old], dtype=np.int32))
        setattr(operator_table, attribute, options)


def reachable_subgraphs(unpacked: Any, indices: Iterable[int]) -> list[int]:
    """Returns the given subgraphs of an unpacked model and all that they call, directly or not, in ascending order.

    Raises:
        ModelError: Where an index is none of the model's subgraphs.
    """
    found: set[int] = set()
    waiting = list(indices)
    while waiting:
        index = waiting.pop()
        if index in found:
            continue
        if not 0 <= index < len(unpacked.subgraphs):
            raise ModelError(
                f"got a reference to subgraph {index}, expected one of the model's {len(unpacked.subgraphs)} "
                f"(0 to {len(unpacked.subgraphs) - 1})"
            )
        found.add(index)
        waiting += [called for table in unpacked.subgraphs[index].operators or [] for called in referenced_subgraphs(table)]
    return sorted(found)


def copy_subgraphs(source_unpacked: Any, target_unpacked: Any, indices: Iterable[int]) -> dict[int, int]:
    """Copies subgraphs of one unpacked model behind those of another, with all that they call, and their constants.

    Constants that the subgraphs share stay shared. A name that is taken gets a number behind it, since TensorFlow's quantizer
    refuses two subgraphs of one name. The source is left as it is.

    Args:
        source_unpacked: As `edit.flatbuffer.unpack` gives it.
        target_unpacked: Likewise; changed in place.
        indices: Subgraphs of the source.

    Returns:
        For each copied subgraph its index in the source -> in the target.

    Raises:
        ModelError: Where the source has no such subgraph.
    """
    wanted = reachable_subgraphs(source_unpacked, indices)
    edges, source_edges = _read_edges(target_unpacked), _read_edges(source_unpacked)
    first = len(target_unpacked.subgraphs)
    mapping = {index: first + position for position, index in enumerate(wanted)}
    buffers: dict[int, int] = {}
    for index in wanted:
        subgraph = copy.deepcopy(source_unpacked.subgraphs[index])
        subgraph.name = _unique(subgraph.name or b"subgraph", {other.name for other in target_unpacked.subgraphs})
        for tensor in subgraph.tensors or []:
            if tensor.buffer not in buffers:
                buffers[tensor.buffer] = _copy_buffer(source_unpacked, target_unpacked, tensor.buffer)
            tensor.buffer = buffers[tensor.buffer]
        for table in subgraph.operators or []:
            table.opcodeIndex = _copy_code(source_unpacked, target_unpacked, table.opcodeIndex)
            renumber_subgraphs(table, mapping)
        target_unpacked.subgraphs.append(subgraph)
    if edges or source_edges:
        edges = (edges or [[] for _ in range(first)]) + [source_edges[index] if source_edges else [] for index in wanted]
    _write_edges(target_unpacked, edges)
    return mapping


def select_subgraph(model: Model, index: int) -> bytes:
    """Returns the model with another of its subgraphs as the main one, which runs when the model is invoked.

    Whatever the new main subgraph does not reach is left out: other subgraphs, their constants, operator codes and
    signatures. The signatures of the new main subgraph stay. Variables that another subgraph initialises are not
    initialised any more; those that the subgraph itself initialises (CALL_ONCE) are.

    Raises:
        ModelError: Where the model has no such subgraph.
    """
    unpacked = unpack(model)
    _make_main(unpacked, index)
    return pack(unpacked)


def select_prefix(model: Model, index: int, operator: int) -> bytes:
    """Returns one subgraph as the main one, cut off before one of its operators, whose inputs are the outputs.

    What the operator reads can so be had without running it. Constants and inputs of the subgraph are no outputs.

    Raises:
        ModelError: Where the model has no such subgraph, or the subgraph no such operator.
    """
    unpacked = unpack(model)
    reachable_subgraphs(unpacked, [index])
    subgraph, edges = unpacked.subgraphs[index], _read_edges(unpacked)
    if not 0 <= operator < len(subgraph.operators):
        raise ModelError(f"got operator {operator}, expected one of the {len(subgraph.operators)} of subgraph {index}")
    wanted = [int(tensor) for tensor in subgraph.operators[operator].inputs]
    subgraph.operators = subgraph.operators[:operator]
    computed = {int(tensor) for table in subgraph.operators for tensor in table.outputs}
    subgraph.outputs = np.array([tensor for tensor in dict.fromkeys(wanted) if tensor in computed], dtype=np.int32)
    unpacked.signatureDefs = []
    if edges:
        edges[index] = [pair for pair in edges[index] if max(pair) < operator]
        _write_edges(unpacked, edges)
    _make_main(unpacked, index)
    return pack(unpacked)


def _make_main(unpacked: Any, index: int) -> None:
    others = [reached for reached in reachable_subgraphs(unpacked, [index]) if reached != index]
    order = [index, *others]
    mapping = {old: new for new, old in enumerate(order)}
    edges = _read_edges(unpacked)
    unpacked.subgraphs = [unpacked.subgraphs[old] for old in order]
    for subgraph in unpacked.subgraphs:
        for table in subgraph.operators or []:
            renumber_subgraphs(table, mapping)
    unpacked.signatureDefs = [entry for entry in unpacked.signatureDefs or [] if entry.subgraphIndex == index]
    for entry in unpacked.signatureDefs:
        entry.subgraphIndex = 0
    _write_edges(unpacked, [edges[old] for old in order] if edges else [])
    drop_unused_buffers(unpacked)
    drop_unused_codes(unpacked)


def _value(options: Any, field: str) -> Any:
    value = getattr(options, field)
    return [] if value is None else value


def _unique(name: bytes, taken: set[bytes]) -> bytes:
    candidates = (name if number == 0 else name + b"_%d" % number for number in itertools.count())
    return next(candidate for candidate in candidates if candidate not in taken)


def _copy_buffer(source: Any, target: Any, index: int) -> int:
    """Returns where the target has the values of a buffer; no values are in buffer 0, by the schema's rule."""
    if index == 0 or source.buffers[index].data is None:
        return 0
    target.buffers.append(copy.copy(source.buffers[index]))
    return len(target.buffers) - 1


def _copy_code(source: Any, target: Any, index: int) -> int:
    def key(code: Any) -> tuple[Any, ...]:
        return max(code.builtinCode, code.deprecatedBuiltinCode), code.version, code.customCode

    wanted = source.operatorCodes[index]
    for position, code in enumerate(target.operatorCodes):
        if key(code) == key(wanted):
            return position
    target.operatorCodes.append(copy.copy(wanted))
    return len(target.operatorCodes) - 1


def _read_edges(unpacked: Any) -> _Edges:
    """Returns which operators must keep their order, for each subgraph; empty where the model does not say, or is broken.

    A runtime indexes this list by subgraph without a look at its length, so it has to follow every change of subgraphs.
    The format is TensorFlow's (``lite/experimental/remat/metadata_util.cc``): unsigned varints, signed ones in zigzag.
    """
    entry = _edges_entry(unpacked)
    if entry is None:
        return []
    data = unpacked.buffers[entry.buffer].data
    numbers = _varints(bytes(bytearray(data if data is not None else b"")))
    edges: _Edges = []
    with contextlib.suppress(StopIteration):
        if next(numbers) == _CONTROL_EDGES_VERSION and next(numbers) == len(unpacked.subgraphs):
            for _ in unpacked.subgraphs:
                edges.append([(_from_zigzag(next(numbers)), _from_zigzag(next(numbers))) for _ in range(next(numbers))])
    return edges if len(edges) == len(unpacked.subgraphs) else []


def _edges_entry(unpacked: Any) -> Any:
    return next((metadata for metadata in unpacked.metadata or [] if metadata.name == _CONTROL_EDGES), None)


def _write_edges(unpacked: Any, edges: _Edges) -> None:
    """Says which operators must keep their order, for each subgraph; without edges, that nothing is known."""
    entry = _edges_entry(unpacked)
    if not edges:
        unpacked.metadata = [metadata for metadata in unpacked.metadata or [] if metadata is not entry]
        return
    numbers = [_CONTROL_EDGES_VERSION, len(edges)]
    for pairs in edges:
        numbers += [len(pairs), *(_zigzag(position) for pair in pairs for position in pair)]
    schema = tf_private.schema()
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(b"".join(_varint(number) for number in numbers), np.uint8)
    unpacked.buffers.append(buffer)
    if entry is None:
        entry = schema.MetadataT()
        entry.name = _CONTROL_EDGES
        unpacked.metadata = [*(unpacked.metadata or []), entry]
    entry.buffer = len(unpacked.buffers) - 1


def _varints(data: bytes) -> Iterator[int]:
    value, shift = 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value, shift = 0, 0
        elif shift > 35:
            return


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _zigzag(number: int) -> int:
    return -2 * number - 1 if number < 0 else 2 * number


def _from_zigzag(number: int) -> int:
    return -(number // 2) - 1 if number % 2 else number // 2
