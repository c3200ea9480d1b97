"""A convolution of a concatenation becomes a sum of convolutions, so that what is joined needs no common scale.

``conv(concat(a, b)) = conv_a(a) + conv_b(b)``, with the weights cut along their input channels. An int8 concatenation gives all
its inputs one scale, an int8 ADD does not. It is the same number of products, and one addition more.

Where layers with weights and without a function that breaks the chain write ``a`` and ``b``, equalization evens them out for
nothing; this is for branches that come out of HARD_SWISH, SWISH, multiplications and the like.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_buffers, drop_unused_codes, pack, replace_input, unpack
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.remedies.channels import options_of
from tflite_qdebug.remedies.equalization import require_plain_float
from tflite_qdebug.remedies.splitting import ends_of, width_of
from tflite_qdebug.statistics import Histogram

__all__ = ["SplitConvolution", "SplitConvolutions", "split_convolutions"]

Range = tuple[float, float]
_READERS = ("CONV_2D", "FULLY_CONNECTED")


@dataclasses.dataclass(frozen=True)
class SplitConvolution:
    """A convolution that became several.

    Attributes:
        node: Its name, which the sum has now.
        parts: Which inputs of the concatenation each of the new ones reads.
    """

    node: str
    parts: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class SplitConvolutions:
    """A float model after the split; it is to be calibrated again.

    Attributes:
        data: The ``.tflite``; the very bytes that were given where nothing applied.
        split: In execution order.
        left_out: ``(node, reason)`` of convolutions that were asked for, or read an unbalanced concatenation, and stayed.
    """

    data: bytes
    split: tuple[SplitConvolution, ...]
    left_out: tuple[tuple[str, str], ...]


@refuses_broken_models
def split_convolutions(
    float_model: Model | bytes | str | os.PathLike[str],
    ranges: Mapping[str, Range | Histogram],
    *,
    ratio: float = 4.0,
    nodes: Sequence[str] | None = None,
) -> SplitConvolutions:
    """Splits convolutions and dense layers that read a concatenation whose inputs have ranges of different width.

    Inputs whose ranges are within ``ratio`` of the widest of them stay together. Where all are of one size nothing is split: it
    would cost accuracy, since each part is rounded before the sum.

    Args:
        float_model: The float model.
        ranges: ``{tensor: (least, greatest value) or its histogram}``, from calibration.
        ratio: As above, at least 1.
        nodes: Names of the layers to be split; None: all that read an unbalanced concatenation.

    Raises:
        OptionError: For unknown names, or a ratio below 1.
        ModelError: Where the model is broken or quantized.
    """
    model = float_model if isinstance(float_model, Model) else Model(float_model)
    require_plain_float(model)
    if not ratio >= 1.0:
        raise OptionError(f"got ratio={ratio!r}, expected a number of at least 1")
    _check_names(model, ranges, nodes)
    found: list[tuple[Operator, Operator, list[list[int]]]] = []
    left_out: dict[str, str] = {}
    for node, join, reader, reason in _candidates(model):
        if nodes is not None and node not in nodes:
            continue
        known = [model.main.tensors[index].name in ranges for index in join.inputs]
        parts = _parts(model, join, ranges, ratio) if all(known) else []
        if not all(known):
            left_out[node] = "not all ranges of what it reads are known"
        elif len(parts) < 2:
            if nodes is not None:
                left_out[node] = "what it reads is balanced"
        elif reason:
            left_out[node] = reason
        else:
            found.append((join, reader, parts))
    names = [model.main.tensors[reader.outputs[0]].name for _, reader, _ in found]
    for node in nodes or ():
        if node not in names and node not in left_out:
            left_out[node] = "it is no convolution or dense layer that reads a concatenation of channels"
    split = tuple(
        SplitConvolution(name, tuple(tuple(model.main.tensors[join.inputs[at]].name for at in part) for part in parts))
        for name, (join, _, parts) in zip(names, found, strict=True)
    )
    return SplitConvolutions(_written(model, found) if found else model.data, split, tuple(left_out.items()))


def _check_names(model: Model, ranges: Mapping[str, Any], nodes: Sequence[str] | None) -> None:
    if isinstance(nodes, str):
        raise OptionError(f"got nodes={nodes!r}, expected a list of names, such as [{nodes!r}]")
    tensors = [tensor.name for tensor in model.main.tensors]
    for what, names, known in (("a range of tensor", ranges, tensors), ("node", nodes or (), model.node_names())):
        for name in names:
            if name not in known:
                raise OptionError(f"got {what} {name!r}, which the model has not.{did_you_mean(name, known)}")


def _candidates(model: Model) -> Iterator[tuple[str, Operator, Operator, str]]:
    """Yields each layer that reads a concatenation of channels: its name, both operators, why it cannot be split."""
    main = model.main
    for reader in main.operators:
        join = main.producers.get(reader.inputs[0]) if reader.name in _READERS else None
        if join is None or join.name != "CONCATENATION" or len(set(join.inputs)) < 2:
            continue
        weights, channels = main.tensors[reader.inputs[1]], [main.tensors[index].shape[-1] for index in join.inputs]
        rank = len(main.tensors[join.outputs[0]].shape)
        options = options_of(model, join)
        if options.Axis() % rank != rank - 1 or options.FusedActivationFunction():
            continue
        readers = [operator for operator in main.operators if join.outputs[0] in operator.inputs]
        reason = ""
        if len(readers) > 1 or join.outputs[0] in main.outputs:
            reason = "its input is read by others too"
        elif not (weights.is_constant and weights.is_float) or min(channels) < 1 or sum(channels) != weights.shape[-1]:
            reason = "its weights cannot be cut along the channels"
        elif len(reader.inputs) < 3 or reader.inputs[2] < 0:
            reason = "it has no bias"
        yield main.tensors[reader.outputs[0]].name, join, reader, reason


def _parts(model: Model, join: Operator, ranges: Mapping[str, Range | Histogram], ratio: float) -> list[list[int]]:
    """Returns the positions of the inputs that stay together, the widest first."""
    widths = [width_of(ends_of(ranges[model.main.tensors[index].name])) for index in join.inputs]
    parts: list[list[int]] = []
    for position in sorted(range(len(widths)), key=lambda position: -widths[position]):
        if parts and widths[parts[-1][0]] < ratio * widths[position]:
            parts[-1].append(position)
        elif widths[position] > 0 or not parts:
            parts.append([position])
        else:
            parts[-1].append(position)  # zeros need no scale of their own
    return parts


def _written(model: Model, found: Sequence[tuple[Operator, Operator, list[list[int]]]]) -> bytes:
    unpacked = unpack(model)
    writer = Writer(unpacked)
    tables = list(writer.main.operators)
    instead: dict[int, list[Any]] = {}
    for join, reader, parts in found:
        instead[join.index] = []
        instead[reader.index] = _Parts(model, writer, tables, join, reader).operators(parts)
    writer.main.operators = [new for index, table in enumerate(tables) for new in instead.get(index, [table])]
    drop_unused_buffers(unpacked)
    drop_unused_codes(unpacked)
    return pack(unpacked)


class _Parts:
    """What stands in the place of one convolution."""

    def __init__(self, model: Model, writer: Writer, tables: Sequence[Any], join: Operator, reader: Operator) -> None:
        self._writer, self._join, self._reader = writer, join, reader
        self._tables = tables
        self._weights = model.constant(model.main.tensors[reader.inputs[1]])
        sizes = [model.main.tensors[index].shape[-1] for index in join.inputs]
        self._starts = np.cumsum([0, *sizes])
        self._name = model.main.tensors[reader.outputs[0]].name

    def operators(self, parts: Sequence[Sequence[int]]) -> list[Any]:
        """Returns the operators; the last writes what the convolution wrote."""
        output, operators, total = self._reader.outputs[0], [], -1
        for number, part in enumerate(parts):
            joined, source = self._joined(sorted(part), number)
            partial = self._tensor(f"part_{number}", output)
            operators += [*joined, self._convolution(sorted(part), number, source, partial)]
            if number:
                last = number == len(parts) - 1
                target = output if last else self._tensor(f"sum_{number}", output)
                operators.append(self._sum(total, partial, target, last))
                partial = target
            total = partial
        return operators

    def _tensor(self, what: str, like: int) -> int:
        return self._writer.add_tensor(f"{self._name}_{what}", self._writer.main.tensors[like], self._float)

    @property
    def _float(self) -> int:
        return int(self._writer.schema.TensorType.FLOAT32)

    def _joined(self, part: Sequence[int], number: int) -> tuple[list[Any], int]:
        """Returns a concatenation of some inputs, where it takes one, and the tensor with them."""
        if len(part) == 1:
            return [], int(self._join.inputs[part[0]])
        target = self._tensor(f"joined_{number}", self._join.outputs[0])
        table, channels = self._writer.main.tensors[target], sum(int(np.diff(self._starts)[at]) for at in part)
        table.shape = np.array([*table.shape[:-1], channels], np.int32)
        if table.shapeSignature is not None and len(table.shapeSignature):
            table.shapeSignature = np.array([*table.shapeSignature[:-1], channels], np.int32)
        operator = copy.deepcopy(self._tables[self._join.index])
        operator.inputs = np.array([self._join.inputs[at] for at in part], np.int32)
        operator.outputs = np.array([target], np.int32)
        return [operator], target

    def _constant(self, what: str, like: int, values: np.ndarray) -> int:
        index = self._tensor(what, like)
        table = self._writer.main.tensors[index]
        table.shape, table.shapeSignature = np.array(values.shape, np.int32), None
        table.buffer = self._writer.add_values(values)
        return index

    def _convolution(self, part: Sequence[int], number: int, source: int, target: int) -> Any:
        operator = copy.deepcopy(self._tables[self._reader.index])
        cut = np.concatenate([self._weights[..., self._starts[at] : self._starts[at + 1]] for at in part], axis=-1)
        replace_input(operator, 0, source)
        replace_input(operator, 1, self._constant(f"weights_{number}", self._reader.inputs[1], cut))
        if number:  # the first takes all of the bias
            zeros = np.zeros(len(cut), np.float32)
            replace_input(operator, 2, self._constant(f"bias_{number}", self._reader.inputs[2], zeros))
        operator.outputs = np.array([target], np.int32)
        operator.builtinOptions.fusedActivationFunction = self._writer.schema.ActivationFunctionType.NONE
        return operator

    def _sum(self, first: int, second: int, target: int, last: bool) -> Any:
        schema, operator = self._writer.schema, self._writer.schema.OperatorT()
        operator.opcodeIndex = self._writer.add_code("ADD", 1)
        operator.inputs, operator.outputs = np.array([first, second], np.int32), np.array([target], np.int32)
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
        if last:
            activation = self._tables[self._reader.index].builtinOptions.fusedActivationFunction
            operator.builtinOptions.fusedActivationFunction = activation
        return operator
