"""Tensors that carry the coarse scale of a concatenation get one of their own, and are rescaled for the concatenation alone.

An int8 CONCATENATION copies integers: all that it joins has one scale, that of its output, and TensorFlow's quantizer has the
operators before it write in that scale. What is small beside the others then has few integers left; and where it is read by
other operators too, these get the coarse values as well, without any need. So it is with MAXIMUM, MINIMUM, PACK, SELECT. An ADD
takes inputs of any scale and needs none of this.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, pack, replace_input, unpack
from tflite_qdebug.edit.rescaled import RangeSlot, Rescaler, matched_biases, range_slots
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.match import match_models
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.statistics import Histogram

__all__ = ["Split", "SplitTensor", "ends_of", "split_unbalanced", "width_of"]

Range = tuple[float, float]
# Their kernels copy or compare integers, so that all tensors they join have one scale.
_JOINING = frozenset({"CONCATENATION", "MAXIMUM", "MINIMUM", "PACK", "SELECT", "SELECT_V2"})


@dataclasses.dataclass(frozen=True)
class SplitTensor:
    """A tensor that got a scale of its own.

    Attributes:
        tensor: Its name in the float model.
        readers: Nodes of the quantized model for which it is rescaled: they keep the scale they had.
        scale_before: In real units.
        scale_after: The same.
    """

    tensor: str
    readers: tuple[str, ...]
    scale_before: float
    scale_after: float


@dataclasses.dataclass(frozen=True)
class Split:
    """A quantized model whose joined tensors have scales of their own.

    Attributes:
        data: The ``.tflite``; the very bytes that were given where nothing applied.
        split: What was given a scale, in execution order.
        left_out: ``(tensor, reason)`` of what is unbalanced, or was asked for, and stayed as it is.
    """

    data: bytes
    split: tuple[SplitTensor, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class _Joint:
    """One input of an operator that joins, in the quantized model.

    Attributes:
        operator: The operator.
        position: The input.
        tensor: The tensor there.
    """

    operator: Operator
    position: int
    tensor: int


@refuses_broken_models
def split_unbalanced(
    float_model: Model | bytes | str | os.PathLike[str],
    quantized_model: Model | bytes | str | os.PathLike[str],
    ranges: Mapping[str, Range | Histogram],
    *,
    ratio: float = 4.0,
    tensors: Sequence[str] | None = None,
) -> Split:
    """Gives tensors that are small beside what they are joined with a scale of their own for their other readers.

    A QUANTIZE before the operator that joins brings them to the scale it needs. Biases of other readers are expressed in the
    new scale. Only tensors with other readers gain by it: what the concatenation alone reads ends in its scale all the same,
    and is best written in it at once (for a convolution behind it see `split_convolutions`).

    Args:
        float_model: The float model.
        quantized_model: Its quantized form.
        ranges: ``{tensor of the float model: (least, greatest value) or its histogram}``, from calibration.
        ratio: Split where the joint scale is at least so many times the one that the tensor needs; 4 is two bits.
        tensors: Names of the float model's tensors to be split, whatever their ratio; None: all that are unbalanced.

    Raises:
        OptionError: For names that the float model has not, or a ratio of 1 or less.
        ModelError: Where a model is broken, or the two are no pair.
    """
    floating = float_model if isinstance(float_model, Model) else Model(float_model)
    quantized = quantized_model if isinstance(quantized_model, Model) else Model(quantized_model)
    if not ratio > 1.0:
        raise OptionError(f"got ratio={ratio!r}, expected a number above 1")
    return _Splitter(floating, quantized, ranges, ratio, tensors).split()


class _Splitter:
    def __init__(
        self,
        floating: Model,
        quantized: Model,
        ranges: Mapping[str, Range | Histogram],
        ratio: float,
        tensors: Sequence[str] | None,
    ) -> None:
        known = [tensor.name for tensor in floating.main.tensors]
        if isinstance(tensors, str):
            raise OptionError(f"got tensors={tensors!r}, expected a list of names, such as [{tensors!r}]")
        for name in (*ranges, *(tensors or ())):
            if name not in known:
                raise OptionError(f"got tensor {name!r}, which the float model has not.{did_you_mean(name, known)}")
        self._floating, self._quantized, self._ratio, self._asked = floating, quantized, ratio, tensors
        self._slots = {index: slot for slot in range_slots(quantized) for index in slot.tensors}
        self._names = {
            other: floating.main.tensors[mine].name
            for mine, other in match_models(floating, quantized).values.items()
            if known.count(floating.main.tensors[mine].name) == 1
        }
        self._ranges = {name: ends_of(found) for name, found in ranges.items()}
        self._left_out: dict[str, str] = {}

    def split(self) -> Split:
        """Returns the model with what is worth it split."""
        wanted = self._wanted()
        useful = self._useful(wanted)
        for name in self._asked or ():
            if name not in {self._names[tensor] for tensor in useful} and name not in self._left_out:
                self._left_out[name] = "no operator joins it with others"
        if not useful:
            return Split(self._quantized.data, (), tuple(self._left_out.items()))
        cut = Model(self._cut(joint for joints in useful.values() for joint in joints))
        return self._rescaled(cut, useful)

    def _joints(self) -> Iterable[_Joint]:
        main = self._quantized.main
        for operator in main.operators:
            slots = [self._slots.get(index) for index in (*operator.inputs, *operator.outputs)]
            if operator.name not in _JOINING or len({index for index in operator.inputs if index in self._slots}) < 2:
                continue
            for position, index in enumerate(operator.inputs):
                if slots[position] is not None and slots[position] == self._slots.get(operator.outputs[0]):
                    yield _Joint(operator, position, index)

    def _wanted(self) -> dict[int, list[_Joint]]:
        """Returns the inputs to be cut off, by tensor: those that are asked for, or small beside their slot."""
        found: dict[int, list[_Joint]] = {}
        for joint in self._joints():
            name = self._names.get(joint.tensor)
            if name is None or (self._asked is not None and name not in self._asked):
                continue
            slot = self._slots[joint.tensor]
            if name not in self._ranges:
                if self._asked is not None:
                    self._left_out[name] = "its range is not known"
                continue
            own = width_of(self._ranges[name])
            if self._asked is None and (slot.maximum - slot.minimum) < self._ratio * own:
                continue
            if slot.fixed:
                self._left_out[name] = f"its scale cannot change: {slot.fixed}"
                continue
            found.setdefault(joint.tensor, []).append(joint)
        return found

    def _useful(self, wanted: Mapping[int, list[_Joint]]) -> dict[int, list[_Joint]]:
        """Returns those of the cuts behind which some other operator reads the finer scale."""
        useful = dict(wanted)
        while useful:
            cut = Model(self._cut(joint for joints in useful.values() for joint in joints))
            slots = {index: slot for slot in range_slots(cut) for index in slot.tensors}
            idle = {tensor: reason for tensor in useful if (reason := self._idle(cut, slots, tensor, useful))}
            if not idle:
                break
            for tensor, reason in idle.items():
                self._left_out[self._names[tensor]] = reason
                del useful[tensor]
        return useful

    def _idle(self, cut: Model, slots: Mapping[int, RangeSlot], tensor: int, useful: Mapping[int, list[_Joint]]) -> str:
        """Returns why a cut would gain nothing; empty where it does."""
        slot = slots[tensor]
        if slot.fixed:
            return f"its scale cannot change: {slot.fixed}"
        was = self._slots[tensor]
        needed = max(width_of(self._ranges[name]) for name in self._known(slot))
        if self._asked is None and (was.maximum - was.minimum) < self._ratio * needed:
            return "what has its scale too needs the coarse one"
        new = len(self._quantized.main.tensors)  # tensors from here on are those that rescale
        members = set(slot.tensors)
        readers = [
            operator
            for operator in cut.main.operators
            if members.intersection(operator.inputs) and not members.intersection(operator.outputs)
        ]
        if all(operator.outputs[0] >= new for operator in readers) and not members.intersection(cut.main.outputs):
            return "nothing else reads it: it is best written in the joint scale at once"
        return ""

    def _known(self, slot: RangeSlot) -> list[str]:
        """Returns the names of a slot's tensors whose range is known."""
        names = (self._names.get(index) for index in slot.tensors)
        return [name for name in names if name is not None and name in self._ranges]

    def _cut(self, joints: Iterable[_Joint]) -> bytes:
        """Returns the model with a QUANTIZE before each of the inputs, which for now changes nothing."""
        unpacked = unpack(self._quantized)
        writer = Writer(unpacked)
        tables = list(writer.main.operators)
        before: dict[int, list[Any]] = {}
        for joint in joints:
            source = writer.main.tensors[joint.tensor]
            name = (source.name or b"").decode("utf-8", "replace")
            target = writer.add_tensor(f"{name}_joined_{joint.operator.index}_{joint.position}", source, source.type)
            writer.main.tensors[target].quantization = copy.deepcopy(source.quantization)
            operator = writer.schema.OperatorT()
            operator.opcodeIndex = writer.add_code("QUANTIZE", 2 if source.type == writer.schema.TensorType.INT16 else 1)
            operator.inputs, operator.outputs = np.array([joint.tensor], np.int32), np.array([target], np.int32)
            operator.builtinOptionsType = writer.schema.BuiltinOptions.QuantizeOptions
            operator.builtinOptions = writer.schema.QuantizeOptionsT()
            before.setdefault(joint.operator.index, []).append(operator)
            replace_input(tables[joint.operator.index], joint.position, target)
        writer.main.operators = [table for index, operator in enumerate(tables) for table in (*before.get(index, ()), operator)]
        return pack(unpacked)

    def _rescaled(self, cut: Model, useful: Mapping[int, list[_Joint]]) -> Split:
        match = match_models(self._floating, cut)
        rescaler = Rescaler(cut, matched_biases(self._floating, cut, match))
        wanted: dict[int, Range] = {}
        for tensor in useful:
            slot = rescaler.slot_at(tensor)
            assert slot is not None
            ends = [self._ranges[name] for name in self._known(slot)]
            wanted[slot.owner] = min(low for low, _ in ends), max(high for _, high in ends)
        result = Model(rescaler.apply(wanted))
        split = tuple(
            SplitTensor(
                self._names[tensor],
                tuple(self._quantized.main.tensors[joint.operator.outputs[0]].name for joint in joints),
                _scale(self._quantized, tensor),
                _scale(result, tensor),
            )
            for tensor, joints in useful.items()
        )
        return Split(result.data, split, tuple(self._left_out.items()))


def ends_of(found: Range | Histogram) -> Range:
    """Returns least and greatest value of a range or a histogram.

    Raises:
        OptionError: Where they are not finite, or the first is greater.
    """
    low, high = (found.minimum, found.maximum) if isinstance(found, Histogram) else found
    low, high = float(low), float(high)
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise OptionError(f"got the range {low} to {high}, expected two finite numbers, the lesser one first")
    return low, high


def width_of(ends: Range) -> float:
    """Returns the width of a range with zero in it, as integers have it."""
    return max(ends[1], 0.0) - min(ends[0], 0.0)


def _scale(model: Model, index: int) -> float:
    quantization = model.main.tensors[index].quantization
    assert quantization is not None
    return float(quantization.scale[0])
