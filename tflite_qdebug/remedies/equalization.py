"""Cross-layer equalization: weights of consecutive layers get channels of the same range, and the float function stays.

After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_codes, pack, unpack
from tflite_qdebug.edit.patched import Patch, with_own_constants
from tflite_qdebug.errors import ModelError, OptionError, did_you_mean
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.remedies.channels import FACTORS, Channels, WeightedLayer, activation_names

__all__ = ["RELU6", "Equalized", "EqualizedPair", "equalize", "require_plain_float"]

#: What may become of a RELU6 between two layers.
RELU6 = ("leave", "unreached", "limit", "replace")
# A channel whose weights are this far below its layer's greatest is dead: what is left of it after folding a batch norm.
_DEAD = 1e-6
# Factors beyond this, or below its reciprocal, cost precision of float32 and blow up biases.
_BOUND = 1e4
# Of logarithms: where no factor changes by more in a sweep it is the last, and a factor nearer to 1 is left at 1.
_CONVERGED = 1e-4
_MOVED = 1e-6


@dataclasses.dataclass(frozen=True)
class EqualizedPair:
    """Layers whose common channels were equalized: two, or more where what one writes is added up or read by several.

    Attributes:
        first: Nodes that write the channels.
        second: Nodes that read them.
        channels: How many there are.
        factors: Least and greatest factor by which a channel was divided, and then multiplied again.
        precision_before: Mean over channels of ``p1 p2``, where ``p`` is the channel's range of weights over that of the
            layer's widest channel (equations 8 and 9 of the paper); 1 is the best.
        precision_after: The same afterwards.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    channels: int
    factors: tuple[float, float]
    precision_before: float
    precision_after: float


@dataclasses.dataclass(frozen=True)
class Equalized:
    """A float model after equalization.

    Attributes:
        data: The ``.tflite``; the very bytes that were given where nothing applied.
        pairs: What was equalized, in execution order of the first.
        left_out: ``(node, reason)`` of layers whose output could not be rescaled.
        replaced: Nodes whose RELU6 became a RELU.
        limited: Those of them that got a MINIMUM behind them.
        notes: What the reader must know.
    """

    data: bytes
    pairs: tuple[EqualizedPair, ...]
    left_out: tuple[tuple[str, str], ...]
    replaced: tuple[str, ...]
    limited: tuple[str, ...]
    notes: tuple[str, ...]


@refuses_broken_models
def equalize(
    float_model: Model | bytes | str | os.PathLike[str],
    *,
    iterations: int = 200,
    strength: float = 1.0,
    relu6: str = "unreached",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Equalized:
    """Rescales channels between layers until the weights on both sides have the same range.

    A channel that one layer writes is divided by ``s`` and multiplied by it where it is read; ``s = sqrt(r1 / r2)`` with the
    ranges of its weights on both sides (equation 11 of the paper), which makes them equal. Layers share channels with the one
    before and the one behind, so that this is repeated over all of them. Between the layers may be whatever gives a factor on:
    RELU, PRELU, pooling, padding with zeros, sums over positions, additions of two activations, concatenations, gates. Where
    several layers read or write a channel, its range is that of the widest. What reads other values than before (the outputs of
    the model, HARD_SWISH, LOGISTIC...) breaks the chain.

    RELU6 does not keep a factor, and a limit for each channel is not to be had from a fused activation. The paper puts a RELU
    in its place, which changes the function where 6 is reached. A RELU and a MINIMUM with ``6 / s`` for each channel behind it
    keep it, for one more operator.

    Args:
        float_model: The float ``.tflite``; ranges that it carries are no longer true afterwards: calibrate it then.
        iterations: Most sweeps over all layers; it ends before where nothing changes any more.
        strength: The factors are raised to this power. 1 makes weights even; less leaves activations more even, whose channels
            are divided by the same factors, while all of them share one scale.
        relu6: ``leave``: layers with one keep their output's scale. ``unreached``: it becomes a RELU where ``ranges`` show that
            6 is never reached, so that the function stays on these samples. ``limit``: so too, and elsewhere a RELU and a
            MINIMUM. ``replace``: it becomes a RELU between all layers that are equalized.
        ranges: ``{tensor: (least, greatest value)}``, from calibration.

    Raises:
        OptionError: For a wrong number of iterations or strength, a word that means nothing, or ranges of unknown tensors.
        ModelError: Where the model is broken or quantized.
    """
    if relu6 not in RELU6:
        raise OptionError(f"got relu6={relu6!r}, expected {', '.join(RELU6)}.{did_you_mean(str(relu6), RELU6)}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise OptionError(f"got iterations={iterations!r}, expected 1 or more")
    if not 0.0 < strength <= 1.0:
        raise OptionError(f"got strength={strength!r}, expected a number above 0 and up to 1")
    model = float_model if isinstance(float_model, Model) else Model(float_model)
    require_plain_float(model)
    limited = _Limited(model, relu6, ranges or {})
    channels = Channels(model, FACTORS, limited.passes)
    solver = _Solver(channels)
    sweeps = solver.solve(iterations, strength)
    changed = [layer for layer in channels.layers if solver.changes(layer)]
    active = {layer.operator.index for layer in channels.layers if solver.moved[layer.writes].any()}
    replaced = limited.to_be_replaced(channels, solver.moved)
    behind = limited.to_be_limited(replaced)
    data = _written(model, changed, solver)
    if replaced:
        limits = {operator.index: 6.0 / solver.factors(channels.labels(operator.outputs[0])) for operator in behind}
        data = _without_relu6(data, replaced, limits)
    pairs = _pairs(model, channels, solver)
    notes = [] if sweeps < iterations or not pairs else [f"not converged after {iterations} sweeps"]
    notes += limited.notes(replaced)
    if changed and any(tensor.minimum is not None for tensor in model.main.tensors if tensor.index in model.main.producers):
        notes.append("ranges that the model carries are those of before: calibrate it again")
    if solver.bounded:
        notes.append(f"the factors of {solver.bounded} channels were held at {_BOUND:g}, their ranges are not even")
    left_out = tuple(
        (node, reason)
        for node, reason in channels.left_out()
        if not any(node == model.main.tensors[model.main.operators[index].outputs[0]].name for index in active)
    )
    names, held = (tuple(model.main.tensors[operator.outputs[0]].name for operator in found) for found in (replaced, behind))
    return Equalized(data, pairs, left_out, names, held, tuple(notes))


def require_plain_float(model: Model) -> None:
    """Refuses a model that is quantized.

    Raises:
        ModelError: For such a model.
    """
    for tensor in model.main.tensors:
        if tensor.is_quantized:
            raise ModelError(f"got a model that is quantized (tensor {tensor.name!r}), expected a float model")


class _Limited:
    """The RELU6 of a model, and which of them may become a RELU."""

    def __init__(self, model: Model, relu6: str, ranges: Mapping[str, tuple[float, float]]) -> None:
        known = [tensor.name for tensor in model.main.tensors]
        for name in ranges:
            if name not in known:
                raise OptionError(f"got a range of tensor {name!r}, which the model has not.{did_you_mean(name, known)}")
        names, codes = activation_names(), Graph(model).activation_functions
        self._operators = [
            operator for operator in model.main.operators if "RELU6" in (operator.name, names[codes[operator.index]])
        ]
        self._greatest = {
            operator.index: float(ranges[name][1])
            for operator in self._operators
            if (name := model.main.tensors[operator.outputs[0]].name) in ranges
        }
        self._candidates = {
            operator.index
            for operator in self._operators
            if relu6 in ("limit", "replace") or (relu6 == "unreached" and self._is_unreached(operator))
        }
        self._relu6 = relu6

    def _is_unreached(self, operator: Operator) -> bool:
        return self._greatest.get(operator.index, math.inf) < 6.0

    def passes(self, operator: Operator) -> bool:
        """True for an operator whose RELU6 may become a RELU."""
        return operator.index in self._candidates

    def to_be_replaced(self, channels: Channels, moved: np.ndarray) -> list[Operator]:
        """Returns the operators of which some channel got a factor."""
        return [
            operator
            for operator in self._operators
            if operator.index in self._candidates and moved[channels.labels(operator.outputs[0])].any()
        ]

    def to_be_limited(self, replaced: Sequence[Operator]) -> list[Operator]:
        """Returns those of the operators behind which a MINIMUM keeps the function."""
        return [operator for operator in replaced if self._relu6 == "limit" and not self._is_unreached(operator)]

    def notes(self, replaced: Sequence[Operator]) -> list[str]:
        """Says what became of them."""
        notes = []
        left = len(self._operators) - len(replaced)
        reached = [operator for operator in replaced if not self._is_unreached(operator)]
        if replaced:
            notes.append(f"RELU6 became RELU in {len(replaced)} operators")
        if reached and self._relu6 == "limit":
            notes.append(f"{len(reached)} of these may reach 6, and have a MINIMUM behind them: as many operators more")
        elif reached:
            notes.append(f"{len(reached)} of these may reach 6, as far as is known: the float function is no longer the same")
        if left and self._relu6 == "unreached":
            unknown = sum(operator.index not in self._greatest for operator in self._operators)
            reason = "their ranges are not known" if unknown else "they reach 6, or nothing is gained by it"
            notes.append(f"{left} operators keep their RELU6: {reason}")
        elif left:
            notes.append(f"{left} operators keep their RELU6")
        return notes


class _Solver:
    """Finds the factors. A label's factor is kept as its logarithm; channels are divided by it where they are written.

    Attributes:
        moved: Labels with a factor other than 1, bool ``(labels,)``.
        bounded: How many of them are at the bound.
    """

    def __init__(self, channels: Channels) -> None:
        self._layers = channels.layers
        self._magnitudes = [layer.magnitudes() for layer in self._layers]
        self._free = channels.free()
        self.logarithms = np.zeros(channels.count)
        self._free &= self._alive()
        self.bounded = 0

    def _alive(self) -> np.ndarray:
        """True for labels that are written and read with weights that are not next to nothing."""
        written, read = self._ranges()
        alive = np.zeros((2, len(self.logarithms)), bool)
        for layer, magnitudes in zip(self._layers, self._magnitudes, strict=True):
            least = _DEAD * magnitudes.max(initial=0.0)
            for side, labels in enumerate((layer.writes, layer.reads)):
                found = (written, read)[side][labels]
                alive[side, labels[(found > least) & np.isfinite(found)]] = True
        return np.asarray(alive.all(axis=0))

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each label the greatest magnitude of the weights that write it, and of those that read it."""
        everyone = range(len(self._layers))
        return self._written(everyone), self._read(everyone)

    def _written(self, positions: Iterable[int]) -> np.ndarray:
        found = np.zeros(len(self.logarithms))
        for position in positions:
            layer, magnitudes = self._layers[position], self._magnitudes[position]
            inner = magnitudes * np.exp(self.logarithms[layer.reads])
            outer = np.exp(-self.logarithms[layer.writes])
            np.maximum.at(found, layer.writes, (inner if layer.is_depthwise else inner.max(axis=1)) * outer)
        return found

    def _read(self, positions: Iterable[int]) -> np.ndarray:
        found = np.zeros(len(self.logarithms))
        for position in positions:
            layer, magnitudes = self._layers[position], self._magnitudes[position]
            inner = magnitudes * layer.on_rows(np.exp(-self.logarithms[layer.writes]))
            outer = np.exp(self.logarithms[layer.reads])
            np.maximum.at(found, layer.reads, (inner if layer.is_depthwise else inner.max(axis=0)) * outer)
        return found

    def precisions(self, labels: np.ndarray) -> float:
        """Returns the mean of ``p1 p2`` over labels, each side relative to the widest channel of them."""
        written, read = (values[labels] for values in self._ranges())
        return float(np.mean(written / written.max() * read / read.max()))

    def solve(self, iterations: int, strength: float) -> int:
        """Balances the layers one after the other, there and back, until nothing changes; returns the number of sweeps."""
        groups = self._groups()
        sweep = 0
        for sweep in range(iterations):
            order = groups if sweep % 2 == 0 else groups[::-1]
            if max((self._balance(*group) for group in order), default=0.0) < _CONVERGED:
                break
        else:
            sweep = iterations
        self.bounded = int(np.sum(np.abs(self.logarithms) >= math.log(_BOUND)))
        self.logarithms *= strength
        self.moved = np.abs(self.logarithms) > _MOVED
        return sweep

    def _groups(self) -> list[tuple[np.ndarray, list[int], list[int]]]:
        """Returns what is balanced at once: the free labels that a layer writes, all that write some of them, and read."""
        groups: list[tuple[np.ndarray, list[int], list[int]]] = []
        done = np.zeros(len(self.logarithms), bool)
        for layer in self._layers:
            labels = np.unique(layer.writes)
            labels = labels[self._free[labels] & ~done[labels]]
            done[labels] = True
            if not len(labels):
                continue
            layers = list(enumerate(self._layers))
            writers = [position for position, other in layers if np.isin(other.writes, labels).any()]
            readers = [position for position, other in layers if np.isin(other.reads, labels).any()]
            groups.append((labels, writers, readers))
        return groups

    def _balance(self, labels: np.ndarray, writers: Sequence[int], readers: Sequence[int]) -> float:
        """Makes the ranges of labels even, all at once; returns the greatest change."""
        limit = math.log(_BOUND)
        before = self.logarithms[labels]
        # A layer that reads and writes labels of the group, as within a residual block, makes them depend on each other.
        step = 0.25 if set(writers) & set(readers) else 0.5
        wanted = before + step * np.log(self._written(writers)[labels] / self._read(readers)[labels])
        self.logarithms[labels] = np.clip(wanted, -limit, limit)
        return float(np.abs(self.logarithms[labels] - before).max())

    def reset(self) -> np.ndarray:
        """Sets all factors to 1; returns what the logarithms were."""
        found, self.logarithms = self.logarithms, np.zeros_like(self.logarithms)
        return found

    def changes(self, layer: WeightedLayer) -> bool:
        """True where some of the layer's values change."""
        return bool(self.moved[layer.reads].any() or self.moved[layer.writes].any())

    def factors(self, labels: np.ndarray) -> np.ndarray:
        """Returns the factor of each label; exactly 1 where it did not move."""
        return np.where(self.moved[labels], np.exp(self.logarithms[labels]), 1.0)


def _written(model: Model, changed: Sequence[WeightedLayer], solver: _Solver) -> bytes:
    """Returns the model with the weights and biases of the changed layers."""
    if not changed:
        return model.data
    touched = {layer.operator.inputs[layer.places[0]] for layer in changed}
    touched |= {layer.bias for layer in changed if layer.bias is not None}
    own = Model(with_own_constants(model, touched))
    patch = Patch(own)
    for layer in changed:
        operator = own.main.operators[layer.operator.index]
        written = solver.factors(layer.writes)
        weights = layer.weights * layer.on_read(solver.factors(layer.reads)) / layer.on_written(written)
        patch.constant(operator.inputs[layer.places[0]], weights.astype(np.float32))
        if layer.bias is not None:
            bias = operator.inputs[layer.places[1]]
            patch.constant(bias, (own.constant(own.main.tensors[bias]) / written).astype(np.float32))
    return patch.data()


def _without_relu6(data: bytes, operators: Sequence[Operator], limits: Mapping[int, np.ndarray]) -> bytes:
    """Returns the model with RELU for the RELU6 of operators, and a MINIMUM behind some: ``{operator: (channels,)}``."""
    unpacked = unpack(Model(data))
    writer = Writer(unpacked)
    tables = list(writer.main.operators)
    for operator in operators:
        table = tables[operator.index]
        if operator.name == "RELU6":
            table.opcodeIndex = writer.add_code("RELU", 1)
        else:
            table.builtinOptions.fusedActivationFunction = writer.schema.ActivationFunctionType.RELU
        if operator.index in limits:
            place = next(place for place, other in enumerate(writer.main.operators) if other is table)
            writer.main.operators.insert(place + 1, _minimum(writer, table, limits[operator.index]))
    drop_unused_codes(unpacked)
    return pack(unpacked)


def _minimum(writer: Writer, table: Any, limits: np.ndarray) -> Any:
    """Returns a MINIMUM that takes over the output of an operator, which gets another."""
    target = int(table.outputs[0])
    name = writer.main.tensors[target].name.decode("utf-8", "replace")
    source = writer.add_tensor(f"{name}_unlimited", writer.main.tensors[target], writer.schema.TensorType.FLOAT32)
    table.outputs = np.array([source], dtype=np.int32)
    constant = writer.schema.TensorT()
    constant.name, constant.type, constant.hasRank = f"{name}_limits".encode(), writer.schema.TensorType.FLOAT32, True
    constant.shape, constant.buffer = np.array([len(limits)], np.int32), writer.add_values(limits.astype(np.float32))
    writer.main.tensors.append(constant)
    operator = writer.schema.OperatorT()
    operator.opcodeIndex = writer.add_code("MINIMUM", 1)
    operator.inputs = np.array([source, len(writer.main.tensors) - 1], dtype=np.int32)
    operator.outputs = np.array([target], dtype=np.int32)
    operator.builtinOptionsType = writer.schema.BuiltinOptions.MaximumMinimumOptions
    operator.builtinOptions = writer.schema.MaximumMinimumOptionsT()
    return operator


def _pairs(model: Model, channels: Channels, solver: _Solver) -> tuple[EqualizedPair, ...]:
    """Returns who shares the channels that got a factor, one entry for the same layers on both sides."""
    sides: dict[int, tuple[dict[int, None], dict[int, None]]] = {}
    for layer in channels.layers:
        for side, labels in enumerate((layer.writes, layer.reads)):
            for label in np.unique(labels[solver.moved[labels]]):
                sides.setdefault(int(label), ({}, {}))[side][layer.operator.index] = None
    together: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for label, (writers, readers) in sorted(sides.items()):
        together.setdefault((tuple(writers), tuple(readers)), []).append(label)
    after = [solver.precisions(np.array(labels)) for labels in together.values()]
    logarithms = solver.reset()
    before = [solver.precisions(np.array(labels)) for labels in together.values()]
    solver.logarithms = logarithms

    def named(operators: Sequence[int]) -> tuple[str, ...]:
        return tuple(model.main.tensors[model.main.operators[index].outputs[0]].name for index in operators)

    pairs = []
    for place, ((first, second), members) in enumerate(together.items()):
        factors = np.exp(logarithms[members])
        ends = (float(factors.min()), float(factors.max()))
        pairs.append(EqualizedPair(named(first), named(second), len(members), ends, before[place], after[place]))
    return tuple(pairs)
