"""Biases corrected layer by layer, so that each channel has the float model's mean.

The empirical form of bias correction: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2 and appendix D. Layers are taken in execution order, each behind layers that have been
corrected already.

Means are compared where the next layer reads them, behind the activation function: a convex function makes a shift of the mean
of what was but noise before it. Part of such a shift of the bias is lost where the function is flat, so the difference is
divided by the function's mean slope, and a second pass makes good what that missed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.analyses.mixed_pair import MixedPair, open_mixed, trusted_backend
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.edit import Patch, expose, with_own_constants
from tflite_qdebug.edit.mixed import MixedModels
from tflite_qdebug.edit.prefix import Prefixes
from tflite_qdebug.errors import DatasetError, OptionError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator, Tensor
from tflite_qdebug.operators import OPERANDS, WEIGHTED
from tflite_qdebug.progress import track

__all__ = ["POINTS", "CorrectedBiases", "CorrectedNode", "correct_biases"]

#: Where means can be compared: behind an activation function that is an operator of its own too, or at the layer's output.
POINTS = ("activation", "output")
# What functions that clip leave as it is: fused, by the schema's code, and as operators.
_FUSED = {1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_CLIPPING = {"RELU": (0.0, np.inf), "RELU_N1_TO_1": (-1.0, 1.0), "RELU6": (0.0, 6.0), "RELU_0_TO_1": (0.0, 1.0)}
_SMOOTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "HARD_SWISH": lambda x: np.where(x <= -3.0, 0.0, np.where(x >= 3.0, 1.0, (2.0 * x + 3.0) / 6.0)),
    "LOGISTIC": lambda x: 0.25 / np.cosh(np.clip(x / 2.0, -300.0, 300.0)) ** 2,
    "TANH": lambda x: 1.0 / np.cosh(np.clip(x, -300.0, 300.0)) ** 2,
}
# A function so flat on a channel says little of where its inputs lie: their own mean is then compared.
_FLAT = 0.25
# No shift is more than so many times the difference it is to make good.
_LEAST_SLOPE = 0.05
# What an accumulator holds: int32, and for 64 bits what the kernels can still rescale.
_ACCUMULATORS = {np.dtype(np.int32): 2**31 - 1, np.dtype(np.int64): 2**47 - 1}
# Samples are kept in memory up to so many bytes; of more, all are read again in each pass.
_HELD_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class CorrectedNode:
    """What became of the biases of one node.

    Attributes:
        name: Its output's name in the float model.
        op_name: Its type.
        channels: How many channels have another bias now.
        shift: The largest change, in real units of the output; with its sign.
        steps: The largest change, in steps of the bias; with its sign.
        before: The largest difference of means, float less quantized, that was found before, in real units.
        saturated: Channels whose bias would have had to be larger than the accumulator allows.
    """

    name: str
    op_name: str
    channels: int
    shift: float
    steps: int
    before: float
    saturated: int


@dataclasses.dataclass(frozen=True)
class CorrectedBiases:
    """A quantized model with other biases.

    Attributes:
        data: The ``.tflite``; the bytes that came in where nothing was to be done, else of the same size unless layers shared a
            bias.
        nodes: Those that were corrected, in execution order.
        left_out: ``{node: why its biases were left alone}``.
        samples: That were used.
        notes: What the reader must know.
    """

    data: bytes
    nodes: tuple[CorrectedNode, ...]
    left_out: Mapping[str, str]
    samples: int
    notes: tuple[str, ...] = ()


def correct_biases(
    float_model: Any,
    quantized_model: Any,
    dataset: Any,
    *,
    nodes: Sequence[str] | None = None,
    at: str = "activation",
    rounds: int = 2,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> CorrectedBiases:
    """Brings the mean of each output channel to the float model's, layer by layer in execution order.

    Layers that do not feed each other share their passes over the samples, of which there are one or two for each layer.
    Channels that are dead in the float model, of which the activation function lets nothing pass, are left alone.

    Args:
        float_model: As for `pair_error`.
        quantized_model: Its quantized form, of any tool; some nodes may be float.
        dataset: Samples, as for `pair_error`; the representative dataset will do. Labels are of no interest.
        nodes: Names of the nodes to correct; None: all that have integer biases.
        at: One of `POINTS`.
        rounds: Passes for a layer with an activation function; others need one.
        limit: Take the first so many samples.
        backend: Which code runs the models.
        progress: As in `progress.track`.

    Raises:
        OptionError: For a node that does not exist, with the nearest names; for an unknown ``at`` or less than one round.
        ModelError: Where a model cannot be read, or the two are no pair.
        DatasetError: For a wrong sample, or an empty dataset.
        InterpreterError: Where a model cannot be run.
    """
    if nodes is not None and (isinstance(nodes, str) or not nodes):
        raise OptionError(f"got {nodes!r} as the nodes to correct, expected a list of at least one name, or None for all")
    if at not in POINTS:
        raise OptionError(f"got at={at!r}, expected one of {', '.join(POINTS)}")
    if rounds < 1:
        raise OptionError(f"got rounds={rounds}, expected 1 or more")
    backend = backend or Backend()
    mixed = open_mixed(float_model, quantized_model, dataset, limit=limit, backend=backend)
    layers, left_out = _find_layers(mixed.models, nodes, at)
    notes = _first_notes(mixed.models, layers, left_out)
    if not layers:
        return CorrectedBiases(mixed.pair.quantized.data, (), left_out, 0, tuple(notes))
    backend, doubts = trusted_backend(mixed, backend)
    correction = _Correction(mixed, layers, backend, rounds)
    correction.run(progress)
    found = correction.result(left_out)
    return dataclasses.replace(found, notes=tuple(dict.fromkeys([*notes, *doubts, *found.notes])))


@dataclasses.dataclass(frozen=True)
class _Side:
    """Where a layer is measured in one of the two models.

    Attributes:
        output: Its own output; None where the model has no such value.
        point: The tensor whose means are compared.
        channels: How many.
        slopes: For the quantized model, the slope of all that lies between the sum and the point, for each integer that
            the output can be, the least first.
        gate: For the float model, where an activation function shows whether it lets something pass; None without one.
        passed: Between which values there it does.
    """

    output: Tensor | None
    point: Tensor
    channels: int
    slopes: np.ndarray | None = None
    gate: Tensor | None = None
    passed: tuple[float, float] = (-np.inf, np.inf)

    def measure(self, interpreter: Interpreter) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sums of a sample, float64 ``(3, channels)``, and how many values a channel has, ``(2,)``.

        The rows are the point, the slopes or 1 where something passes, and the output.
        """
        sums, counts = np.zeros((3, self.channels)), np.zeros(2, np.int64)
        rows = self._rows(interpreter.view(self.point.index))
        counts[0], sums[0] = len(rows), _sum(rows)
        if self.gate is not None:
            rows = self._rows(interpreter.view(self.gate.index))
            sums[1] = np.sum((rows > self.passed[0]) & (rows < self.passed[1]), axis=0)
        if self.output is None:
            return sums, counts
        rows = self._rows(interpreter.view(self.output.index))
        counts[1], sums[2] = len(rows), _sum(rows)
        if self.slopes is not None:
            least = int(np.iinfo(self.output.dtype).min)
            sums[1] = np.sum(self.slopes[rows.astype(np.int64) - least], axis=0)
        return sums, counts

    def _rows(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values).reshape(-1, self.channels)


def _sum(rows: np.ndarray) -> np.ndarray:
    # Integers are added up exactly.
    return rows.sum(axis=0, dtype=np.int64 if rows.dtype.kind in "iu" else np.float64)


class _Means(NamedTuple):
    """What all samples give for a layer in one of the models; ``(channels,)`` each, in real units.

    Attributes:
        point: Mean where means are compared.
        slope: Mean slope, or the share that an activation function lets pass.
        output: Mean of the layer's own output.
    """

    point: np.ndarray
    slope: np.ndarray
    output: np.ndarray


def _means(side: _Side, sums: np.ndarray, counts: np.ndarray) -> _Means:
    with np.errstate(invalid="ignore", divide="ignore"):
        point, output = sums[0] / counts[0], sums[2] / counts[1]
        slope = sums[1] / counts[0]
    return _Means(_real(side.point, point), slope, output if side.output is None else _real(side.output, output))


def _real(tensor: Tensor, means: np.ndarray) -> np.ndarray:
    if not tensor.is_quantized or tensor.quantization is None:
        return means
    scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zero_point[0]
    return (means - float(zero_point)) * float(scale)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer that can be corrected.

    Attributes:
        name: Its output's name in the float model.
        operator: In the quantized model.
        bias: Position of the bias among its inputs.
        last: The operator that computes the point.
        step: What one step of the bias is worth, float64 ``(channels,)``; 0 for channels without a scale.
        most: The largest bias that leaves room for the sum, int64 ``(channels,)``.
        quantized: Where it is measured.
        floating: Likewise.
        clips: It has an activation function that clips, or none.
    """

    name: str
    operator: Operator
    bias: int
    last: Operator
    step: np.ndarray
    most: np.ndarray
    quantized: _Side
    floating: _Side
    clips: bool

    @property
    def bends(self) -> bool:
        """True where one pass may not be enough."""
        return not self.clips or self.floating.gate is not None

    def shift(self, wanted: _Means, found: _Means) -> np.ndarray:
        """Returns by how much each bias has to change, in real units; 0 where that cannot be told."""
        with np.errstate(invalid="ignore"):
            if not self.clips:
                change = (wanted.point - found.point) / np.maximum(found.slope, _FLAT)
                own = wanted.output - found.output
                change = np.where((found.slope < _FLAT) & np.isfinite(own), own, change)
            else:
                passes = 1.0 if self.floating.gate is None else wanted.slope
                change = (wanted.point - found.point) / np.maximum((passes + found.slope) / 2.0, _LEAST_SLOPE)
            dead = (wanted.slope == 0.0) if self.floating.gate is not None else np.zeros(len(change), bool)
        return np.where(dead | ~np.isfinite(change), 0.0, change)


class _UnfitError(Exception):
    """A node whose biases are left alone; ``usual`` where nobody would expect otherwise."""

    def __init__(self, reason: str, usual: bool = False) -> None:
        super().__init__(reason)
        self.usual = usual


def _find_layers(models: MixedModels, names: Sequence[str] | None, at: str) -> tuple[list[_Layer], dict[str, str]]:
    """Returns the layers that can be corrected, and why others cannot."""
    known = {node.operator: node.name for node in models.nodes}
    wanted = None if names is None else {models.node(name).operator for name in names}
    layers, left_out = [], {}
    for operator in models.graph.operators:
        if wanted is not None and operator.index not in wanted:
            continue
        output = models.graph.tensor(operator.outputs[0]).name if operator.outputs else operator.name
        name = known.get(operator.index, output)
        try:
            layers.append(_layer(models, operator, name, at))
        except _UnfitError as unfit:
            if wanted is not None or not unfit.usual:
                left_out[name] = str(unfit)
    return layers, left_out


def _layer(models: MixedModels, operator: Operator, name: str, at: str) -> _Layer:
    graph, floats = models.graph, models.floats
    if operator.name not in WEIGHTED:
        raise _UnfitError(f"{operator.name} has no bias", usual=True)
    data, weights, bias = (
        graph.tensor(operator.inputs[place]) if place < len(operator.inputs) and operator.inputs[place] >= 0 else None
        for place in OPERANDS[operator.name]
    )
    output = graph.tensor(operator.outputs[0])
    if data is None or weights is None or not (data.is_quantized and weights.is_quantized and output.is_quantized):
        raise _UnfitError("it does not compute in integers", usual=output.is_float)
    if bias is None:
        raise _UnfitError("it has no bias")
    if not bias.is_constant or bias.dtype not in _ACCUMULATORS:
        raise _UnfitError("its bias is no constant of integers")
    channels = int(np.prod(bias.shape))
    last = _point(graph, operator) if at == "activation" else operator
    if last.outputs[0] not in floats.at:
        last = operator
    value = last.outputs[0]
    if value not in floats.at:
        raise _UnfitError("its output has no counterpart in the float model")
    point = graph.tensor(value)
    mine = _Side(output, point, channels, _slopes(graph, operator, last, output))
    own = floats.at.get(output.index)
    place = floats.graph.tensor(floats.at[value])
    float_output = None if own is None else floats.graph.tensor(own)
    other = _Side(float_output, place, channels, None, *_gate(floats.graph, place, float_output))
    shapes = (output.shape, point.shape, place.shape, *([] if float_output is None else [float_output.shape]))
    if any(not shape or shape[-1] != channels for shape in shapes):
        raise _UnfitError("its output channels are not the last dimension")
    clips = last.name not in _SMOOTH
    step, most = _steps(graph, data, weights, bias, operator)
    if not np.any(step):
        raise _UnfitError("its scales are 0")
    return _Layer(name, operator, OPERANDS[operator.name][2], last, step, most, mine, other, clips)


def _point(graph: Graph, operator: Operator) -> Operator:
    """Returns the activation function that alone reads a layer's output, or the layer."""
    output = operator.outputs[0]
    readers = graph.readers(output)
    alone = len(readers) == 1 and output not in graph.outputs and not graph.activation_functions[operator.index]
    return readers[0] if alone and readers[0].name in {**_SMOOTH, **_CLIPPING} else operator


def _slopes(graph: Graph, operator: Operator, last: Operator, output: Tensor) -> np.ndarray:
    """Returns the slope of what lies between the sum and the point, for each integer that the layer's output can be."""
    limits, parameters = np.iinfo(output.dtype), output.quantization
    assert parameters is not None
    integers = np.arange(limits.min, limits.max + 1)
    real = (integers - float(parameters.zero_point[0])) * float(parameters.scale[0])
    with np.errstate(over="ignore"):
        slopes = _SMOOTH[last.name](real) if last.name in _SMOOTH else np.ones(len(real))
    low, high = _FUSED.get(graph.activation_functions[operator.index], (-np.inf, np.inf))
    if last is not operator and last.name in _CLIPPING:
        low, high = _CLIPPING[last.name]
    # A bound between two integers is rounded to one by the kernels, which then stands for all beyond it.
    half = 0.5 * float(parameters.scale[0])
    inside = (real > low + half) & (real < high - half) & (integers > limits.min) & (integers < limits.max)
    return np.where(inside, slopes, 0.0)


def _gate(floats: Graph, place: Tensor, output: Tensor | None) -> tuple[Tensor | None, tuple[float, float]]:
    """Returns where an activation function of the float model shows that it lets something pass, and between which values."""
    everything, producer = (-np.inf, np.inf), floats.producer(place.index)
    if producer is None:
        return None, everything
    if producer.name == "HARD_SWISH" and output is not None:
        return output, (-3.0, np.inf)
    passed = _CLIPPING.get(producer.name, _FUSED.get(floats.activation_functions[producer.index]))
    return (None, everything) if passed is None else (place, passed)


def _steps(graph: Graph, data: Tensor, weights: Tensor, bias: Tensor, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a step of each bias is worth, and the largest bias that leaves room for the sum of the products."""
    channels, most = int(np.prod(bias.shape)), _ACCUMULATORS[bias.dtype]
    assert data.quantization is not None
    assert weights.quantization is not None
    scales = np.asarray(weights.quantization.scale, np.float64)
    if scales.size not in (1, channels):
        raise _UnfitError(f"it has {scales.size} scales of weights for {channels} channels")
    step = np.broadcast_to(float(data.quantization.scale[0]) * scales, channels)
    step = np.where(np.isfinite(step) & (step > 0.0), step, 0.0)
    room = np.zeros(channels, np.int64)
    if weights.is_constant:
        values = graph.model.constant(weights).astype(np.int64) - int(weights.quantization.zero_point[0])
        axis = values.ndim - 1 if operator.name == "DEPTHWISE_CONV_2D" else 0
        if values.shape[axis] != channels:
            raise _UnfitError(f"it has weights of shape {values.shape} for {channels} channels")
        widest = int(np.iinfo(data.dtype).max) - int(np.iinfo(data.dtype).min)
        room = np.abs(np.moveaxis(values, axis, 0).reshape(channels, -1)).sum(axis=1) * widest
    return step, np.maximum(most - room, 0)


def _first_notes(models: MixedModels, layers: Sequence[_Layer], left_out: Mapping[str, str]) -> list[str]:
    notes = []
    if not layers:
        what = "of those asked for " if left_out else ""
        notes.append(f"no layer {what}has integer biases that can be corrected: the model was left as it is")
    inner = sum(op.name in WEIGHTED for subgraph in models.graph.model.subgraphs[1:] for op in subgraph.operators)
    if inner:
        notes.append(f"{inner} layers inside of loops and branches were left as they are")
    return notes


class _Held:
    """Samples for many passes, in memory as long as they are few."""

    def __init__(self, samples: Any) -> None:
        self._samples, self._held = samples, list[Any]()
        self._complete = False

    def __iter__(self) -> Iterator[Any]:
        if self._complete:
            yield from self._held
            return
        held: list[Any] | None = []
        size = 0
        for sample in self._samples:
            size += sum(array.nbytes for array in sample.inputs)
            if held is not None:
                held = [*held, sample] if size <= _HELD_BYTES else None
            yield sample
        if held is not None:
            self._held, self._complete = held, True


class _Correction:
    """The biases in the making."""

    def __init__(self, mixed: MixedPair, layers: Sequence[_Layer], backend: Backend, rounds: int) -> None:
        self._mixed, self._layers, self._backend, self._rounds = mixed, layers, backend, rounds
        original = mixed.pair.quantized
        self._base = Model(with_own_constants(original, [layer.operator.inputs[layer.bias] for layer in layers]))
        main = self._base.main
        self._places = [main.operators[layer.operator.index].inputs[layer.bias] for layer in layers]
        self._before = [self._base.constant(main.tensors[place]).copy() for place in self._places]
        self._biases = [bias.copy() for bias in self._before]
        self._saturated = [np.zeros(len(layer.step), bool) for layer in layers]
        self._differences = [0.0] * len(layers)
        self._unknown: dict[int, int] = {}
        self._notes: list[str] = []
        self._samples, self._count = _Held(mixed.samples()), 0
        self._prefixes = Prefixes(self._base, [index for layer in layers for index in _read(layer.quantized)])

    def run(self, progress: bool | None) -> None:
        """Corrects all layers."""
        self._choose_kernels()
        wanted = self._float_means()
        levels = _levels(self._mixed.models.graph, self._layers)
        passes = [
            (members, turn)
            for level in levels
            for turn in range(self._rounds)
            if (members := [i for i in level if not turn or self._layers[i].bends])
        ]
        for members, turn in track(passes, "correcting biases", len(passes), progress):
            for position, means in zip(members, self._quantized_means(members), strict=True):
                self._correct(position, wanted[position], means, first=not turn)

    def _choose_kernels(self) -> None:
        """XNNPACK may refuse the whole model and take a part of it; all passes are to run on the same kernels."""
        if self._backend.kernels != "auto" or self._backend.delegates:
            return
        content = self._prefixes.model.data
        kernels, notes = self._backend.apart(
            lambda: (lambda opened: (opened.kernels, opened.notes))(self._backend.open(content)), what="opening the model"
        )
        self._notes += notes
        if kernels == "builtin":
            self._backend = self._backend._replace(kernels="builtin")

    def _float_means(self) -> list[_Means]:
        floats = self._mixed.models.floats
        sides = [layer.floating for layer in self._layers]
        read = dict.fromkeys(index for side in sides for index in _read(side))
        content = expose(floats.graph.model, read)
        values = [floats.values[index] for index in floats.graph.subgraph.inputs]

        def feed(sample: Any) -> list[np.ndarray]:
            given = self._mixed.feeds(sample)
            return [given[value] for value in values]

        return self._gathered(content, sides, feed)

    def _quantized_means(self, members: Sequence[int]) -> list[_Means]:
        sides = [self._layers[position].quantized for position in members]
        read = list(dict.fromkeys(index for side in sides for index in _read(side)))
        operators = max(self._layers[position].last.index for position in members) + 1
        return self._gathered(self._prefixes.until(operators, read), sides, lambda sample: sample.inputs)

    def _gathered(self, content: bytes, sides: Sequence[_Side], feed: Callable[[Any], Any]) -> list[_Means]:
        """Runs all samples through a model and returns the means."""
        stateful = self._mixed.is_stateful

        def measure(interpreter: Interpreter, sample: Any) -> list[tuple[np.ndarray, np.ndarray]]:
            if stateful:
                interpreter.reset_variables()
            interpreter.invoke(feed(sample))
            return [side.measure(interpreter) for side in sides]

        sums = [np.zeros((3, side.channels)) for side in sides]
        counts = [np.zeros(2, np.int64) for _ in sides]
        workers = self._backend.pool(lambda: self._backend.open(content), "correcting biases")
        self._count = 0
        for parts in map_samples(measure, workers, self._samples):
            self._count += 1
            for position, (part, count) in enumerate(parts):
                sums[position] += part
                counts[position] += count
        if not self._count:
            raise DatasetError("the dataset yielded no samples, or none for a second pass: give one that can be read again")
        self._notes += workers.notes
        return [_means(side, total, count) for side, total, count in zip(sides, sums, counts, strict=True)]

    def _correct(self, position: int, wanted: _Means, found: _Means, first: bool) -> None:
        layer, bias = self._layers[position], self._biases[position]
        change = layer.shift(wanted, found)
        steps = np.divide(change, layer.step, out=np.zeros(len(change)), where=layer.step > 0.0)
        if first:
            with np.errstate(invalid="ignore"):
                difference = wanted.point - found.point
            finite = difference[np.isfinite(difference)]
            self._differences[position] = float(finite[np.abs(finite).argmax()]) if len(finite) else 0.0
            self._unknown[position] = len(difference) - len(finite)
        old = bias.reshape(-1).astype(np.int64)
        aimed = np.rint(old + steps)
        # What was beyond the bound already may come back from there, and go no farther.
        most = np.maximum(layer.most, np.abs(old)).astype(np.float64)
        most = np.minimum(most, float(np.iinfo(bias.dtype).max))
        self._saturated[position] = np.abs(aimed) > most
        new = np.where(steps == 0.0, old, np.clip(aimed, -most, most).astype(np.int64))
        self._biases[position] = new.astype(bias.dtype).reshape(bias.shape)
        self._prefixes.constant(self._places[position], self._biases[position])

    def result(self, left_out: Mapping[str, str]) -> CorrectedBiases:
        """Returns the model, and what became of each node."""
        patch, found, reasons = Patch(self._base), [], dict(left_out)
        for position, layer in enumerate(self._layers):
            if self._unknown[position] == len(layer.step):
                reasons[layer.name] = "the float model's means are NaN or infinite"
                continue
            if self._unknown[position]:
                self._notes.append(
                    f"{self._unknown[position]} of {len(layer.step)} channels of {layer.name!r} were left as they are: the "
                    "float model's means are NaN or infinite"
                )
            patch.constant(self._places[position], self._biases[position])
            found.append(self._node(position))
        changed = any(node.channels for node in found)
        data = patch.data() if changed else self._mixed.pair.quantized.data
        saturated = [node.name for node in found if node.saturated]
        if saturated:
            self._notes.append(
                f"biases of {len(saturated)} nodes would have to be larger than their type allows, {saturated[0]!r} among them"
                ": the scale of their inputs or weights is too small"
            )
        return CorrectedBiases(data, tuple(found), reasons, self._count, tuple(self._notes))

    def _node(self, position: int) -> CorrectedNode:
        layer = self._layers[position]
        moved = self._biases[position].reshape(-1).astype(np.int64) - self._before[position].reshape(-1).astype(np.int64)
        shifts = moved * layer.step
        return CorrectedNode(
            layer.name,
            layer.operator.name,
            int(np.count_nonzero(moved)),
            float(shifts[np.abs(shifts).argmax()]),
            int(moved[np.abs(moved).argmax()]),
            self._differences[position],
            int(self._saturated[position].sum()),
        )


def _read(side: _Side) -> list[int]:
    return [side.point.index, *([] if side.output is None else [side.output.index])]


def _levels(graph: Graph, layers: Sequence[_Layer]) -> list[list[int]]:
    """Groups layers, each behind all that feed it, so that none feeds another of its group; positions in ``layers``."""
    position_of = {layer.operator.index: position for position, layer in enumerate(layers)}
    depth: dict[int, int] = {}
    levels: dict[int, list[int]] = {}
    for operator in graph.subgraph.operators:
        above = max((depth.get(index, 0) for index in operator.inputs), default=0)
        if operator.index in position_of:
            levels.setdefault(above, []).append(position_of[operator.index])
            above += 1
        depth.update(dict.fromkeys(operator.outputs, above))
    return [levels[level] for level in sorted(levels)]
