"""New ranges for the activations of a quantized model, without quantizing it anew.

A range is a scale and a zero point, and it is known to more than one tensor: operators that only move values, such as RESHAPE,
need the scale of what they read, and a bias has the scale of its layer's input times that of its weights. What has to change
together is a *slot*. The arithmetic is that of TensorFlow's quantizers, so that the result is what they would have made of the
same ranges: ``ConvertStatsToQDQs`` and ``DownCastScale`` of ``tensorflow/compiler/mlir/lite/quantization`` for int8,
``GetSymmetricQuantizationParams`` of ``tensorflow/lite/tools/optimize/quantization_utils.cc`` for int16, and
``SymmetricBiasQuantize`` of the same file for biases.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.edit.patched import Patch, with_own_constants
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.match import Graph, Match
from tflite_qdebug.model import Model, Operator, Subgraph, Tensor, refuses_broken_models
from tflite_qdebug.operators import OPERANDS

__all__ = ["RangeSlot", "Rescaler", "matched_biases", "range_slots", "ranges_by_tensor", "rescale", "scale_of_range",
           "slots_by_name"]  # fmt: skip

Range = tuple[float, float]

# Their kernels take any scale on either side. All others are taken to need equal ones wherever the model has equal ones.
_RESCALING = {"ABS", "ADD", "ARG_MAX", "ARG_MIN", "BATCH_MATMUL", "DEQUANTIZE", "DIV", "ELU", "EQUAL", "EXP", "GELU", "GREATER",
              "GREATER_EQUAL", "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG", "LOGISTIC",
              "LOG_SOFTMAX", "MEAN", "MUL", "NOT_EQUAL", "PRELU", "QUANTIZE", "REDUCE_PROD", "RELU", "RELU6", "RELU_0_TO_1",
              "RELU_N1_TO_1", "RSQRT", "SOFTMAX", "SQRT", "SQUARED_DIFFERENCE", "SUB", "SUM", "TANH", *OPERANDS}  # fmt: skip
_PRESCRIBED = {"L2_NORMALIZATION", "LOGISTIC", "LOG_SOFTMAX", "SOFTMAX", "TANH"}
_RECURRENT = {"BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "LSTM", "RNN", "SVDF",
              "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN"}  # fmt: skip
_ELSEWHERE = {"ASSIGN_VARIABLE", "CALL", "CALL_ONCE", "IF", "READ_VARIABLE", "STABLEHLO_COMPOSITE", "WHILE"}
# As TensorFlow has them: a range below the first is widened by it to both sides, and a bias above the second makes its
# channel's weights coarser, which leaves the accumulator some room.
_NEAR_ZERO = 1e-6
_LARGEST_BIAS = np.iinfo(np.int32).max // 2


@dataclasses.dataclass(frozen=True)
class RangeSlot:
    """Tensors of a quantized model's main subgraph that have one range.

    Attributes:
        tensors: Their indices, ascending.
        owner: The one whose calibrated range TensorFlow's quantizer gives to all: what the last operator that joins several
            tensors writes, else what is there first.
        minimum: The real value of the least integer.
        maximum: That of the greatest.
        fixed: Why the range cannot change; empty where it can.
    """

    tensors: tuple[int, ...]
    owner: int
    minimum: float
    maximum: float
    fixed: str = ""


def scale_of_range(minimum: float, maximum: float, dtype: Any) -> tuple[np.float32, int]:
    """Returns scale and zero point that TensorFlow's quantizers give to a range.

    Args:
        minimum: Taken as float32, as calibration stores it, and as 0 where it is greater.
        maximum: Taken as float32, and as 0 where it is less.
        dtype: int8 or uint8: asymmetric; int16: symmetric, zero point 0.

    Raises:
        OptionError: Where the ends are not finite, or the first is greater.
    """
    with np.errstate(over="ignore"):
        low, high = np.float32(minimum), np.float32(maximum)
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise OptionError(f"got the range {minimum} to {maximum}, expected two finite numbers of float32, the lesser one first")
    least, greatest = min(float(low), 0.0), max(float(high), 0.0)
    if greatest - least < _NEAR_ZERO:
        least, greatest = least - _NEAR_ZERO, greatest + _NEAR_ZERO
    if dtype == np.int16:
        return np.float32(max(-least, greatest)) / np.float32(np.iinfo(np.int16).max), 0
    with np.errstate(over="ignore"):
        scale = (np.float32(greatest) - np.float32(least)) / np.float32(255)
    if not np.isfinite(scale):
        raise OptionError(f"got the range {minimum} to {maximum}, whose width is beyond float32")
    zero_point = int(np.clip(_rounded(np.float32(-128 - least / float(scale))), -128, 127))
    return scale, zero_point + (128 if dtype == np.uint8 else 0)


def _rounded(values: Any) -> Any:
    """Rounds halves away from zero, as ``std::round``."""
    whole = np.trunc(values)
    return whole + np.trunc(2 * (values - whole))


@refuses_broken_models
def range_slots(quantized: Model) -> tuple[RangeSlot, ...]:
    """Returns the slots of a quantized model in the order of execution.

    Tensors are connected where an operator whose kernel does not rescale reads or writes them with the same scale and zero
    point. Constants, per-channel activations and tensors of other subgraphs have no slot.
    """
    return tuple(_Slots(quantized.main).slots())


class _Slots:
    """Connects the tensors of one subgraph."""

    def __init__(self, graph: Subgraph) -> None:
        self._graph = graph
        self._parent = {tensor.index: tensor.index for tensor in graph.tensors if _has_range(tensor)}
        self._reasons: dict[int, dict[str, None]] = {}
        self._joined: dict[int, int] = {}  # output of an operator with several inputs -> its position
        for operator in graph.operators:
            self._connect(operator)
            self._fix(operator)

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            index = self._parent[index]
        return index

    def _same(self, first: Tensor, second: Tensor) -> bool:
        if first.quantization is None or second.quantization is None or first.quantization.is_per_channel:
            return False
        offset = {np.dtype(np.uint8): 128}
        points = [int(one.quantization.zero_point[0]) - offset.get(one.dtype, 0) for one in (first, second) if one.quantization]
        return points[0] == points[1] and np.array_equal(first.quantization.scale, second.quantization.scale)

    def _connect(self, operator: Operator) -> None:
        read, written = (
            [self._graph.tensors[index] for index in indices if index >= 0] for indices in (operator.inputs, operator.outputs)
        )
        ends = [tensor for tensor in (*read, *written) if tensor.is_quantized]
        slots = [tensor for tensor in ends if tensor.index in self._parent]
        # A QUANTIZE between signed and unsigned integers only shifts them.
        shifts = operator.name == "QUANTIZE" and len(slots) == 2 and {tensor.dtype.char for tensor in slots} == {"b", "B"}
        if not slots or (operator.name in _RESCALING and not shifts):
            return
        for position, first in enumerate(slots):
            for second in slots[position + 1 :]:
                if self._same(first, second) and (shifts or first.dtype == second.dtype):
                    self._parent[self._root(second.index)] = self._root(first.index)
            if any(tensor.is_constant and self._same(first, tensor) for tensor in ends):
                self._note(first.index, f"{operator.name} reads a constant of the same scale")
        if sum(tensor.is_quantized for tensor in read) > 1:
            self._joined.update(dict.fromkeys(operator.outputs, operator.index))

    def _fix(self, operator: Operator) -> None:
        reason = ""
        if operator.name in _RECURRENT:
            reason = f"{operator.name} keeps states and inner scales"
        elif operator.name in _ELSEWHERE:
            reason = f"{operator.name} shares it with another part of the model"
        elif operator.name not in tf_private.builtin_operator_names().values():
            reason = f"the custom operator {operator.name} may hold a copy of its scale"
        for index in (*operator.inputs, *operator.outputs) if reason else ():
            self._note(index, reason)
        for index in operator.outputs if operator.name in _PRESCRIBED else ():
            self._note(index, f"the kernel of {operator.name} prescribes the scale of its output")
        self._fix_odd_bias(operator)

    def _fix_odd_bias(self, operator: Operator) -> None:
        found = _bias_of(self._graph, operator)
        if found is None:
            return
        source, weights, bias = found
        if weights.quantization is None or bias.quantization is None or not bias.is_constant:
            self._note(source.index, f"the bias of {operator.name} does not stand in the file, or has no scale")
            return
        scales, biases = len(weights.quantization.scale), len(bias.quantization.scale)
        if biases not in (1, int(np.prod(bias.shape))) or scales != biases:
            self._note(source.index, f"{operator.name} has {scales} scales of its weights and {biases} of its bias")

    def _note(self, index: int, reason: str) -> None:
        if index in self._parent:
            self._reasons.setdefault(index, {})[reason] = None

    def slots(self) -> Iterator[RangeSlot]:
        groups: dict[int, list[int]] = {}
        for index in sorted(self._parent):
            groups.setdefault(self._root(index), []).append(index)
        order = {output: operator.index for operator in self._graph.operators for output in operator.outputs}
        made = []
        for members in groups.values():
            first = min(members, key=lambda index: (order.get(index, -1), index))
            made.append((order.get(first, -1), self._slot(members, first)))
        yield from (slot for _, slot in sorted(made, key=lambda entry: (entry[0], entry[1].tensors)))

    def _slot(self, members: list[int], first: int) -> RangeSlot:
        joined = [index for index in members if index in self._joined and len(members) > 1]
        owner = max(joined, key=lambda index: (self._joined[index], index), default=first)
        tensor = self._graph.tensors[owner]
        reasons = dict.fromkeys(reason for index in members for reason in self._reasons.get(index, {}))
        for index in members:
            if self._graph.tensors[index].is_variable:
                reasons["it is a state"] = None
        if tensor.dtype == np.int16 and any(_zero_point(self._graph.tensors[index]) for index in members):
            reasons["16-bit activations with a zero point other than 0"] = None
        minimum, maximum = _ends(tensor)
        if not (np.isfinite(minimum) and np.isfinite(maximum)):
            reasons["its scale is not finite"] = None
        return RangeSlot(tuple(members), owner, minimum, maximum, "; ".join(reasons))


def _has_range(tensor: Tensor) -> bool:
    quantization = tensor.quantization
    return tensor.is_quantized and not tensor.is_constant and quantization is not None and not quantization.is_per_channel


def _zero_point(tensor: Tensor) -> int:
    return 0 if tensor.quantization is None else int(tensor.quantization.zero_point[0])


def _ends(tensor: Tensor) -> Range:
    """Returns the real values of the first and the last integer that are used."""
    assert tensor.quantization is not None
    limits = np.iinfo(tensor.dtype)
    least = -int(limits.max) if tensor.dtype == np.int16 else int(limits.min)
    scale, zero_point = float(tensor.quantization.scale[0]), _zero_point(tensor)
    return scale * (least - zero_point), scale * (int(limits.max) - zero_point)


def _bias_of(graph: Subgraph, operator: Operator) -> tuple[Tensor, Tensor, Tensor] | None:
    """Returns input, weights and integer bias of an operator with a bias; else None."""
    positions = OPERANDS.get(operator.name, ())
    if not positions or len(operator.inputs) <= max(positions) or operator.inputs[positions[2]] < 0:
        return None
    source, weights, bias = (graph.tensors[operator.inputs[position]] for position in positions)
    if not _has_range(source) or bias.dtype not in (np.int32, np.int64):
        return None
    return source, weights, bias


@dataclasses.dataclass(frozen=True)
class _Bias:
    """One bias that has to follow its operator's input.

    Attributes:
        source: The input that its scale depends on.
        weights: The tensor of the weights, constant or not.
        tensor: The bias.
        real: Its real values, float64.
        exact: True where these are the float model's.
    """

    source: int
    weights: Tensor
    tensor: Tensor
    real: np.ndarray
    exact: bool


class Rescaler:
    """Gives the activations of one quantized model other ranges, as often as needed: the model is read once.

    Attributes:
        slots: What can have a range of its own, and what cannot, as `range_slots`.
    """

    def __init__(self, quantized: Model, float_biases: Mapping[int, np.ndarray] | None = None) -> None:
        """Reads the model.

        Args:
            quantized: Its main subgraph is taken.
            float_biases: ``{bias tensor: its float values, (channels,)}``, as `matched_biases` gives them; others are
                expressed anew from their integers, which can be one step off what the float values would give.

        Raises:
            ModelError: Where the model is broken.
            OptionError: Where a float bias is not of its tensor's shape or not finite.
        """
        self._given = quantized
        self.slots = range_slots(quantized)
        self._slot_of = {index: slot for slot in self.slots for index in slot.tensors}
        self._model = _unshared(quantized, self.slots)
        self._float_biases = dict(float_biases or {})
        self._readers: dict[int, list[_Bias]] = {}
        for bias in self._biases():
            for index in {bias.source, bias.weights.index}:
                self._readers.setdefault(index, []).append(bias)

    def slot_at(self, tensor: int) -> RangeSlot | None:
        """Returns the slot of a tensor; None where it has none."""
        return self._slot_of.get(tensor)

    def _biases(self) -> Iterator[_Bias]:
        copies = _origins(self._given, self._model)
        for operator in self._model.main.operators:
            found = _bias_of(self._model.main, operator)
            if found is None or found[2].quantization is None or not found[2].is_constant:
                continue
            source, weights, bias = found
            values = self._float_biases.get(copies.get(bias.index, bias.index))
            if values is not None and (np.shape(values) != bias.shape or not np.all(np.isfinite(values))):
                raise OptionError(
                    f"got float values of shape {np.shape(values)} for the bias {bias.name!r}, expected finite ones of shape "
                    f"{bias.shape}"
                )
            assert bias.quantization is not None
            real = self._model.constant(bias) * bias.quantization.scale.astype(np.float64)
            real = real if values is None else np.asarray(values, np.float64)
            yield _Bias(source.index, weights, bias, real, values is not None)

    def apply(self, ranges: Mapping[int, Range]) -> bytes:
        """Returns the model with other ranges; it differs from this one in scales, zero points and biases alone.

        Where a bias no longer fits because its input's scale became small, the weights of that channel get a coarser scale, as
        TensorFlow's quantizer does.

        Args:
            ranges: ``{any tensor of a slot: (minimum, maximum)}``, in real values. A slot that is given the range it has is
                left as it is.

        Raises:
            OptionError: Where a tensor has no slot or a fixed one, a range is no range, two tensors of a slot are given
                different ranges, or a bias cannot be held.
        """
        wanted = self._wanted(ranges)
        if not wanted:
            return self._given.data
        patch = Patch(self._model)
        scales: dict[int, np.float32] = {}
        for slot, (minimum, maximum) in wanted.items():
            for index in slot.tensors:
                tensor = self._model.main.tensors[index]
                scales[index], zero_point = scale_of_range(minimum, maximum, tensor.dtype)
                patch.quantization(index, scales[index], zero_point)
        rewritten: set[int] = set()
        for index in scales:
            for bias in self._readers.get(index, ()):
                if bias.tensor.index not in rewritten:
                    rewritten.add(bias.tensor.index)
                    self._rewrite(patch, bias, scales)
        return patch.data()

    def _wanted(self, ranges: Mapping[int, Range]) -> dict[RangeSlot, Range]:
        wanted: dict[RangeSlot, Range] = {}
        for index, given in ranges.items():
            minimum, maximum = float(given[0]), float(given[1])
            slot = self._slot_of.get(index)
            if slot is None:
                count = len(self._given.main.tensors)
                what = f"tensor {index}" + (f" ({self._given.main.tensors[index].name!r})" if 0 <= index < count else "")
                raise OptionError(f"got a range for {what}, expected a quantized activation of the model")
            name = self._given.main.tensors[index].name
            if slot.fixed:
                raise OptionError(f"got a range for {name!r}, whose range cannot change: {slot.fixed}")
            if wanted.setdefault(slot, (minimum, maximum)) != (minimum, maximum):
                others = ", ".join(repr(self._given.main.tensors[other].name) for other in slot.tensors if other != index)
                raise OptionError(
                    f"got the range {minimum:g} to {maximum:g} for {name!r} and another for one that must have the same "
                    f"({others}); give one of them"
                )
        return {slot: given for slot, given in wanted.items() if given != (slot.minimum, slot.maximum)}

    def _rewrite(self, patch: Patch, bias: _Bias, scales: Mapping[int, np.float32]) -> None:
        def scale(tensor: Tensor) -> np.ndarray:
            assert tensor.quantization is not None
            return np.atleast_1d(scales.get(tensor.index, tensor.quantization.scale))

        source, weights = scale(self._model.main.tensors[bias.source]), scale(bias.weights)
        product = source * weights  # in float32, as the quantizer stores it
        if self._is_too_large(bias, source, product):
            largest = np.abs(bias.real) if len(product) > 1 else np.atleast_1d(np.abs(bias.real).max())
            needed = np.where(largest > product * np.float64(_LARGEST_BIAS), largest / _LARGEST_BIAS, 0.0)
            weights = np.where(needed > 0, (needed / source).astype(np.float32), weights)
            product = np.where(needed > 0, needed.astype(np.float32), product)
            patch.constant(bias.weights.index, self._requantized(bias.weights, weights))
            patch.quantization(bias.weights.index, weights, np.zeros(len(weights)))
        patch.constant(bias.tensor.index, _as_integers(bias.real, product, bias.tensor.dtype, bias.exact))
        patch.quantization(bias.tensor.index, product, np.zeros(len(product)))

    def _is_too_large(self, bias: _Bias, source: np.ndarray, product: np.ndarray) -> bool:
        """True where a bias does not leave its accumulator room any more, because its input has a smaller scale than before."""
        was = self._model.main.tensors[bias.source].quantization
        assert was is not None
        fits = np.all(np.abs(bias.real) <= product * np.float64(_LARGEST_BIAS))
        if fits or bias.tensor.dtype != np.int32 or source[0] >= was.scale[0]:
            return False
        if not bias.weights.is_constant or not self._is_own(bias.weights):
            raise OptionError(
                f"the range of {self._model.main.tensors[bias.source].name!r} is too narrow: the bias {bias.tensor.name!r} "
                "would not fit into 32 bits, and its operator shares its weights with another"
            )
        return True

    def _is_own(self, tensor: Tensor) -> bool:
        readers = sum(tensor.index in operator.inputs for operator in self._model.main.operators)
        holders = sum(other.buffer == tensor.buffer for subgraph in self._model.subgraphs for other in subgraph.tensors)
        return readers == 1 and holders == 1

    def _requantized(self, weights: Tensor, scales: np.ndarray) -> np.ndarray:
        assert weights.quantization is not None
        shape = [1] * len(weights.shape)
        if len(scales) > 1:
            shape[weights.quantization.axis] = -1
        factor = (weights.quantization.scale.astype(np.float64) / scales).reshape(shape)
        limits = np.iinfo(weights.dtype)
        return np.clip(_rounded(self._model.constant(weights) * factor), limits.min, limits.max).astype(weights.dtype)


def _as_integers(real: np.ndarray, scale: np.ndarray, dtype: Any, exact: bool) -> np.ndarray:
    """Returns the integers of a bias, held within the range of its type."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, 0.0, 1.0 / scale.astype(np.float64))
    # The quantizer multiplies in float32. What was rounded to integers before is not rounded to float32 on top.
    steps = np.float32(real) * np.float32(inverse) if exact else real * inverse
    limit = float(np.iinfo(dtype).max)
    rounded = _rounded(steps.astype(np.float64))
    whole = np.clip(rounded, -limit, limit)
    if dtype == np.int32:
        return whole.astype(np.int32)
    return np.clip(rounded, -(2.0**62), 2.0**62).astype(np.int64)


def _unshared(quantized: Model, slots: Iterable[RangeSlot]) -> Model:
    """Returns the model with each bias and each scale that may change in a place of its own; mostly the model itself."""
    biases = [found[2].index for operator in quantized.main.operators if (found := _bias_of(quantized.main, operator))]
    constant = [index for index in biases if quantized.main.tensors[index].is_constant]
    model = Model(with_own_constants(quantized, constant)) if constant else quantized
    model = quantized if model.data == quantized.data else model
    changing = {index for slot in slots for index in slot.tensors} | set(constant)
    places = _places_of_scales(model)
    users = Counter(places.values())
    if any(users[place] > 1 for index, place in places.items() if index in changing):
        model = Model(pack(unpack(model)))  # which writes a list of its own for each tensor
    return model


def _places_of_scales(model: Model) -> dict[int, int]:
    """Returns where in the file the scales of each tensor of the main subgraph begin."""
    table = tf_private.schema().Model.GetRootAs(model.data, 0).Subgraphs(0)
    found = {}
    for tensor in model.main.tensors:
        parameters = table.Tensors(tensor.index).Quantization()
        if parameters is not None and parameters.ScaleLength():
            found[tensor.index] = int(parameters.ScaleAsNumpy().__array_interface__["data"][0])
    return found


def _origins(given: Model, unshared: Model) -> dict[int, int]:
    """Returns of which tensor of the given model a constant that got a copy is the copy."""
    pairs = zip(given.main.operators, unshared.main.operators, strict=True)
    return {new: old for first, second in pairs for old, new in zip(first.inputs, second.inputs, strict=True) if old != new}


def rescale(quantized: Model, ranges: Mapping[int, Range], float_biases: Mapping[int, np.ndarray] | None = None) -> bytes:
    """Returns a quantized model with other ranges for its activations; see `Rescaler.apply`, which is faster when repeated.

    Raises:
        OptionError: As there.
        ModelError: Where the model is broken.
    """
    return Rescaler(quantized, float_biases).apply(ranges)


@refuses_broken_models
def matched_biases(float_model: Model, quantized: Model, match: Match) -> dict[int, np.ndarray]:
    """Returns the float values of biases: ``{bias tensor of the quantized model: (channels,) float32}``.

    Only of those whose integers stand for these values, to a step: where a bias was corrected, or moved between layers, the
    integers know better.
    """
    found = {}
    for pair in match.operators:
        mine, other = float_model.main.operators[pair.float_operator], quantized.main.operators[pair.quantized_operator]
        ours, theirs = OPERANDS.get(mine.name, ()), _bias_of(quantized.main, other)
        if not ours or theirs is None or len(mine.inputs) <= max(ours) or mine.inputs[ours[2]] < 0:
            continue
        source, bias = float_model.main.tensors[mine.inputs[ours[2]]], theirs[2]
        if not (source.is_constant and source.is_float and bias.is_constant) or bias.quantization is None:
            continue
        real, step = float_model.constant(source), bias.quantization.scale.astype(np.float64)
        if real.shape == bias.shape and np.all(np.abs(quantized.constant(bias) * step - real) <= step + 1e-6 * np.abs(real)):
            found[bias.index] = real
    return found


def slots_by_name(float_model: Model, quantized: Model, match: Match, slots: Iterable[RangeSlot]) -> dict[str, RangeSlot]:
    """Returns the slot of each activation of the float model, by its name.

    Names that several tensors of different slots share, and tensors without a counterpart, are left out.
    """
    found: dict[str, dict[RangeSlot, None]] = {}
    for mine, slot in _slots_by_value(quantized, match, slots).items():
        found.setdefault(float_model.main.tensors[mine].name, {})[slot] = None
    return {name: next(iter(known)) for name, known in found.items() if len(known) == 1}


def _slots_by_value(quantized: Model, match: Match, slots: Iterable[RangeSlot]) -> dict[int, RangeSlot]:
    """Returns the slot of each matched value: of the tensor that computes it, else of its only form in integers."""
    graph = Graph(quantized)
    by_tensor: dict[int, RangeSlot] = {}
    by_root: dict[int, dict[RangeSlot, None]] = {}
    for slot in slots:
        for index in slot.tensors:
            by_tensor[index] = slot
            by_root.setdefault(graph.root(index), {})[slot] = None
    found = {}
    for mine, other in match.values.items():
        known = [by_tensor[other]] if other in by_tensor else list(by_root.get(other, ()))
        if len(known) == 1:
            found[mine] = known[0]
    return found


def ranges_by_tensor(
    float_model: Model, quantized: Model, match: Match, slots: Iterable[RangeSlot], ranges: Mapping[str, Range]
) -> dict[int, Range]:
    """Returns ranges that are given by the float model's names as `Rescaler.apply` takes them.

    Of several names of one slot, the range of the slot's owner is taken, as TensorFlow's quantizer does, else that of the first
    in execution order. What the quantized model has no slot for, or a fixed one, is left out.

    Args:
        float_model: The float model.
        quantized: The quantized model.
        match: Of both.
        slots: Of the quantized model.
        ranges: ``{tensor of the float model: (minimum, maximum)}``.

    Raises:
        OptionError: Where the float model has no such tensor.
    """
    order = {tensor.name: None for tensor in float_model.main.tensors}
    for name in ranges:
        if name not in order:
            raise OptionError(f"got a range for tensor {name!r}, which the float model has not.{did_you_mean(name, order)}")
    slots = tuple(slots)
    named = slots_by_name(float_model, quantized, match, slots)
    graph, owned = Graph(quantized), {slot.owner for slot in slots}
    at = {graph.root(index): index for index in owned}
    owners = {float_model.main.tensors[mine].name for mine, other in match.values.items() if {other, at.get(other)} & owned}
    written = {index: place for place, index in enumerate(_in_execution_order(float_model))}
    place = {tensor.name: written.get(tensor.index, -1) for tensor in float_model.main.tensors}
    chosen: dict[int, Range] = {}
    for name in sorted(ranges, key=lambda name: (name not in owners, place[name])):
        slot = named.get(name)
        if slot is not None and not slot.fixed:
            chosen.setdefault(slot.owner, ranges[name])
    return chosen


def _in_execution_order(model: Model) -> Iterator[int]:
    for operator in model.main.operators:
        yield from operator.outputs
