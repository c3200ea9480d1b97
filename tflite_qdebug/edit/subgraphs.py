"""Subgraphs: which ones an operator calls, copying them from model to model, making one of them the main one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_buffers, drop_unused_codes, pack, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Tensor, refuses_broken_models

__all__ = ["copy_passed_inputs", "copy_subgraphs", "make_main", "reachable_subgraphs", "referenced_subgraphs",
           "renumber_subgraphs", "select_prefix", "select_subgraph", "selected_signature", "with_ranges_of"]  # fmt: skip

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
    return mapping


@refuses_broken_models
def select_subgraph(model: Model, index: int) -> bytes:
    """Returns the model with another of its subgraphs as the main one, which runs when the model is invoked.

    Whatever the new main subgraph does not reach is left out: other subgraphs, their constants, operator codes and
    signatures. The signatures of the new main subgraph stay. Variables that another subgraph initialises are not
    initialised any more; those that the subgraph itself initialises (CALL_ONCE) are.

    Raises:
        ModelError: Where the model has no such subgraph.
    """
    unpacked = unpack(model)
    make_main(unpacked, index)
    return pack(unpacked)


@refuses_broken_models
def select_prefix(model: Model, index: int, operator: int) -> bytes:
    """Returns one subgraph as the main one, cut off before one of its operators, whose inputs are the outputs.

    What the operator reads can so be had without running it. Constants and inputs of the subgraph are no outputs.

    Raises:
        ModelError: Where the model has no such subgraph, or the subgraph no such operator.
    """
    unpacked = unpack(model)
    reachable_subgraphs(unpacked, [index])
    operators = model.subgraphs[index].operators
    if not 0 <= operator < len(operators):
        raise ModelError(f"got operator {operator}, expected one of the {len(operators)} of subgraph {index}")
    computed = {output for before in operators[:operator] for output in before.outputs}
    wanted = [tensor for tensor in dict.fromkeys(operators[operator].inputs) if tensor in computed]
    subgraph = unpacked.subgraphs[index]
    subgraph.operators, subgraph.outputs = subgraph.operators[:operator], np.array(wanted, dtype=np.int32)
    unpacked.signatureDefs = []
    make_main(unpacked, index)
    return pack(unpacked)


@refuses_broken_models
def copy_passed_inputs(model: Model) -> bytes:
    """Returns the model in which no body of a loop hands a float input on as an output: it hands on a copy of it.

    TensorFlow's calibrator (seen in 2.16 and 2.21) ends the process where one does, as the loops of recurrent layers do with
    the sequence that they read. The copy is MAXIMUM of the input and itself, behind the body's operators, so that everything
    else keeps its index. A model without such a loop comes back as it is.
    """
    if not any(operator.name == "WHILE" for subgraph in model.subgraphs for operator in subgraph.operators):
        return model.data
    unpacked = unpack(model)
    tables = [table for subgraph in unpacked.subgraphs for table in subgraph.operators or []]
    loops = [getattr(table.builtinOptions, "bodySubgraphIndex", None) for table in tables]
    changed = False
    for index in sorted({index for index in loops if index is not None}):
        writer, subgraph = Writer(unpacked, index), model.subgraphs[index]
        for position, output in enumerate(subgraph.outputs):
            if output in subgraph.inputs and subgraph.tensors[output].is_float:
                _hand_on_a_copy(writer, position, subgraph.tensors[output])
                changed = True
    return pack(unpacked) if changed else model.data


def _hand_on_a_copy(writer: Writer, position: int, tensor: Tensor) -> None:
    schema, subgraph = writer.schema, writer.main
    target = writer.add_tensor(tensor.name + "_copy", subgraph.tensors[tensor.index], schema.TensorType.FLOAT32)
    operator = schema.OperatorT()
    operator.opcodeIndex = writer.add_code("MAXIMUM", 1)
    operator.inputs, operator.outputs = np.array([tensor.index] * 2, np.int32), np.array([target], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
    operator.builtinOptions = schema.MaximumMinimumOptionsT()
    subgraph.operators.append(operator)
    outputs = np.array(subgraph.outputs, dtype=np.int32)
    outputs[position] = target
    subgraph.outputs = outputs


@refuses_broken_models
def with_ranges_of(model: Model, calibrated: Model) -> bytes:
    """Returns the model with the calibrated ranges of another one, whose first tensors are the same, in all subgraphs."""
    schema, unpacked = tf_private.schema(), unpack(model)
    for subgraph, ranged in zip(unpacked.subgraphs, calibrated.subgraphs, strict=True):
        for table, tensor in zip(subgraph.tensors or [], ranged.tensors, strict=False):
            if tensor.minimum is not None and tensor.maximum is not None:
                parameters = table.quantization or schema.QuantizationParametersT()
                parameters.min, parameters.max = [np.float32(tensor.minimum)], [np.float32(tensor.maximum)]
                table.quantization = parameters
    return pack(unpacked)


def selected_signature(model: Model, key: str) -> Model:
    """Returns the model with a signature's subgraph as the main one; the model itself where it is that already.

    Raises:
        OptionError: Where the model has no such signature.
    """
    subgraph = model.signature(key).subgraph
    return Model(select_subgraph(model, subgraph)) if subgraph else model


def make_main(unpacked: Any, index: int) -> None:
    """Makes one subgraph of an unpacked model the main one, in place; what it does not reach is left out.

    Raises:
        ModelError: Where the model has no such subgraph.
    """
    others = [reached for reached in reachable_subgraphs(unpacked, [index]) if reached != index]
    order = [index, *others]
    mapping = {old: new for new, old in enumerate(order)}
    unpacked.subgraphs = [unpacked.subgraphs[old] for old in order]
    for subgraph in unpacked.subgraphs:
        for table in subgraph.operators or []:
            renumber_subgraphs(table, mapping)
    unpacked.signatureDefs = [entry for entry in unpacked.signatureDefs or [] if entry.subgraphIndex == index]
    for entry in unpacked.signatureDefs:
        entry.subgraphIndex = 0
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
