"""Weights rounded for the least error at their layer's output instead of each to the nearest integer, without training.

Scales, zero points and the size of the file stay; only integers of weights change. What a layer's output ought to be is told by
the float model; what its inputs are, by the quantized one, so that errors of the layers before are made good where weights can
do that. All that is needed of the samples are sums. A layer that makes good what came before must see what that has become, so
that layers are worked on in order, each with a pass of its own over the samples.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.analyses.mixed_pair import MixedPair, memory_budget, open_mixed, trusted_backend
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.edit import Patch, expose
from tflite_qdebug.edit.mixed import MixedModels
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator, Tensor
from tflite_qdebug.operators import WEIGHTED
from tflite_qdebug.progress import track
from tflite_qdebug.remedies.integer_fit import Moments, Problem, Solution, solve
from tflite_qdebug.remedies.patches import Geometry

__all__ = ["AIMS", "Rounded", "RoundedNode", "optimize_rounding"]

#: What the outputs of a layer are aimed at; ``best`` takes for each channel what does better on samples left out.
AIMS = ("best", "float", "own")
#: Inputs of one output channel, above which the sums would be too large, and their inversion too slow.
MOST_FEATURES = 4096
# Weights of layers that belong together are alike even where they are coarsely rounded; see match.
_LIKE = 0.9
# Shares of the inputs' mean square. More of it keeps weights near to the float ones.
_DAMPINGS = (0.01, 0.1)


@dataclasses.dataclass(frozen=True)
class RoundedNode:
    """What became of the weights of one node.

    Attributes:
        name: Its output's name in the float model.
        op_name: Its type.
        before: Mean squared error of its output before the activation function, against the float model's, with the weights as
            they were; worked out from the sums over the samples used.
        after: The same with the weights as they are now.
        moved: Share of the weights that are another integer now.
        steps: How far the one went that went farthest.
        channels: Share of the output channels whose weights were changed; of the others no change did well on the samples
            that were left out.
    """

    name: str
    op_name: str
    before: float
    after: float
    moved: float
    steps: int
    channels: float


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A quantized model with other integers as weights.

    Attributes:
        data: The ``.tflite``, of the same size; the very bytes that came in where nothing could be improved.
        nodes: In execution order.
        left_out: ``{node: why its weights were left alone}``.
        samples: That were used.
        notes: What the reader must know.
    """

    data: bytes
    nodes: tuple[RoundedNode, ...]
    left_out: Mapping[str, str]
    samples: int
    notes: tuple[str, ...] = ()


def optimize_rounding(
    float_model: Any,
    quantized_model: Any,
    dataset: Any,
    *,
    nodes: Sequence[str] | None = None,
    aim: str = "best",
    steps: int = 1,
    passes: int | None = None,
    biases: bool = False,
    limit: int | None = None,
    memory: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> Rounded:
    """Chooses the integers of the weights for the least squared error of each layer's output.

    For each output channel, several roundings are worked out on half of the samples, and the one with the least error on the
    other half is made again with all of them; where none is better there than what the file has, the file's stays.

    Args:
        float_model: As for `pair_error`.
        quantized_model: Its quantized form, of any tool; some nodes may be float.
        dataset: Samples, as for `pair_error`; the representative dataset will do. Labels are of no interest.
        nodes: Names of the nodes whose weights may change; None: all with int8 weights.
        aim: One of `AIMS`. ``float``: the float model's outputs, which makes good what layers before got wrong. That has to be
            seen as it is, so that the samples run anew for each layer, through the weights found so far. ``own``: what float
            weights would give on the quantized layer's own inputs; the samples run once.
        steps: How many steps a weight may move from what it is.
        passes: Run the samples so many times at most, as far as memory allows; None: as often as the aim asks for. Layers are
            then worked on together, and aim at what ``own`` does where they follow another of the same pass.
        biases: Also move the bias, so that the mean error against the aim is 0; not where several layers share one.
        limit: Take the first so many samples.
        memory: Bytes for the sums; the samples are run more often where they do not suffice. None: a quarter of the machine's.
        backend: Which code runs the models.
        progress: As in `progress.track`.

    Raises:
        OptionError: For a node that does not exist, with the nearest names, or a number below 1.
        ModelError: Where a model cannot be read, or the two are no pair.
        DatasetError: For a wrong sample, or an empty dataset.
        InterpreterError: Where a model cannot be run.
    """
    _check(nodes, aim, steps, passes)
    budget = memory_budget(memory)
    backend = backend or Backend()
    mixed = open_mixed(float_model, quantized_model, dataset, limit=limit, backend=backend)
    layers, left_out = _find_layers(mixed.models, nodes)
    data, notes, samples = mixed.pair.quantized.data, _first_notes(mixed, layers, left_out), 0
    found: list[RoundedNode] = []
    seen = data
    if layers:
        backend, doubts = trusted_backend(mixed, backend)
        notes += doubts
    groups = list(_grouped(mixed.models.graph, layers, aim, passes, budget))
    for position, group in enumerate(groups):
        what = "rounding weights" + (f", pass {position + 1} of {len(groups)}" if len(groups) > 1 else "")
        tracked = track(mixed.samples(), what, mixed.samples().length, progress)
        seen = data if group.fresh else seen
        gathered = _gather(mixed, seen, list(group.aims), backend, tracked)
        samples = gathered.samples
        notes += gathered.notes
        patch = Patch(Model(data))
        for (layer, own_aim), halves in zip(group.aims.items(), gathered.moments, strict=True):
            reason = _unfit(layer, halves)
            if reason:
                left_out[layer.name] = reason
                continue
            found.append(_rounded(layer, halves, patch, own_aim, steps, biases))
        data = patch.data()
    if layers and samples < 2:
        notes.append("there was one sample, so that none could be left out to see whether the weights suit others as well")
    return Rounded(data, tuple(found), left_out, samples, tuple(dict.fromkeys(notes)))


def _check(nodes: Any, aim: str, steps: int, passes: int | None) -> None:
    if nodes is not None and (isinstance(nodes, str) or not nodes):
        raise OptionError(f"got {nodes!r} as the nodes to round, expected a list of at least one name, or None for all")
    if aim not in AIMS:
        raise OptionError(f"got aim {aim!r}, expected one of {', '.join(AIMS)}")
    for name, value in (("steps", steps), ("passes", passes)):
        if value is not None and value < 1:
            raise OptionError(f"got {name}={value}, expected 1 or more")


def _first_notes(mixed: MixedPair, layers: Sequence[_Layer], left_out: Mapping[str, str]) -> list[str]:
    notes = []
    if not layers and not left_out:
        notes.append("the model has no layer with int8 weights: nothing was rounded anew")
    inner = sum(op.name in WEIGHTED for subgraph in mixed.pair.quantized.subgraphs[1:] for op in subgraph.operators)
    if inner:
        notes.append(f"{inner} layers inside of loops and branches were left as they are")
    return notes


@dataclasses.dataclass(frozen=True)
class _Side:
    """A layer in one of the two models.

    Attributes:
        graph: The model.
        operator: The layer.
        geometry: How it walks over its input.
        weights: The tensor that holds them, seen through DEQUANTIZE.
        bias: The tensor that holds it, None without one.
        size: Height and width of a transposed convolution's output.
        own_bias: No other operator reads its bias.
    """

    graph: Graph
    operator: Operator
    geometry: Geometry
    weights: Tensor
    bias: Tensor | None
    size: tuple[int, int] | None
    own_bias: bool

    @property
    def read(self) -> Tensor:
        """The tensor that it reads as its input."""
        return self.graph.tensor(self.operator.inputs[_places(self.operator)[0]])

    @functools.cached_property
    def real_weights(self) -> np.ndarray:
        """As real numbers, float64, ``(groups, channels, features)``."""
        return self.geometry.matrix(self.graph.real_values(self.weights).astype(np.float64))

    @functools.cached_property
    def real_bias(self) -> np.ndarray:
        """As real numbers, float64, ``(groups, channels)``."""
        if self.bias is None:
            return self.geometry.per_channel(np.zeros(1))
        values = self.graph.model.constant(self.bias).astype(np.float64).reshape(-1)
        if self.bias.quantization is not None:
            values = values * self.bias.quantization.scale.astype(np.float64)
        return self.geometry.per_channel(values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the quantized model and its counterpart in the float model."""

    name: str
    quantized: _Side
    floating: _Side

    @property
    def scale(self) -> np.ndarray:
        """What one step of the weights is worth, ``(groups, channels)``."""
        assert self.quantized.weights.quantization is not None
        return self.quantized.geometry.per_channel(self.quantized.weights.quantization.scale.astype(np.float64))

    @property
    def input_scale(self) -> float:
        """What one step of the input is worth; 1 for a float input."""
        parameters = self.quantized.read.quantization
        return float(parameters.scale[0]) if self.quantized.read.is_quantized and parameters else 1.0

    @property
    def bytes(self) -> int:
        """Memory for the sums of both halves of the samples."""
        return 2 * 8 * self.quantized.geometry.elements


def _places(operator: Operator) -> tuple[int, int, int]:
    """Returns at which positions an operator has its input, weights and bias."""
    return (2, 1, 3) if operator.name == "TRANSPOSE_CONV" else (0, 1, 2)


def _find_layers(models: MixedModels, names: Sequence[str] | None) -> tuple[list[_Layer], dict[str, str]]:
    """Returns the layers that can be worked on, and why others cannot."""
    known = {node.operator: node.name for node in models.nodes}
    wanted = None if names is None else {models.node(name).operator for name in names}
    graph, floats = models.graph, models.floats.graph
    pairs = {pair.quantized_operator: pair.float_operator for pair in models.match.operators}
    readers = _readers(graph)
    layers, left_out = [], {}
    for operator in graph.operators:
        if wanted is not None and operator.index not in wanted:
            continue
        name = known.get(operator.index, graph.tensor(operator.outputs[0]).name if operator.outputs else operator.name)
        try:
            side = _side(graph, models.quantized.unpacked, operator, readers)
            if operator.index not in pairs:
                raise _UnfitError("it has no counterpart in the float model")
            other = floats.subgraph.operators[pairs[operator.index]]
            layers.append(_Layer(name, side, _counterpart(side, _side(floats, models.floats.unpacked, other, None))))
        except _UnfitError as unfit:
            if wanted is not None or not unfit.usual:
                left_out[name] = str(unfit)
    return layers, left_out


class _UnfitError(Exception):
    """A node whose weights are left alone; ``usual`` where nobody would expect otherwise."""

    def __init__(self, reason: str, usual: bool = False) -> None:
        super().__init__(reason)
        self.usual = usual


def _readers(graph: Graph) -> dict[int, int]:
    """Returns how often each buffer is read by operators that compute, counting tensors that share one as well."""
    counts: dict[int, int] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            if index >= 0 and graph.is_constant(index):
                buffer = graph.tensor(graph.root(index)).buffer
                counts[buffer] = counts.get(buffer, 0) + 1
    for subgraph in graph.model.subgraphs:
        for tensor in subgraph.tensors:
            if subgraph.index != graph.subgraph.index and tensor.is_constant:
                counts[tensor.buffer] = counts.get(tensor.buffer, 0) + 2
    for index in graph.subgraph.outputs:  # a constant that is also an output
        buffer = graph.tensor(graph.root(index)).buffer
        counts[buffer] = counts.get(buffer, 0) + 1
    return counts


def _side(graph: Graph, unpacked: Any, operator: Operator, readers: Mapping[int, int] | None) -> _Side:
    """Reads a layer; ``readers`` for the quantized model, whose weights have to be fit to be changed."""
    if operator.name not in WEIGHTED or len(operator.inputs) < 2:
        raise _UnfitError("it is no layer with weights that are known here", usual=True)
    place, weight_place, bias_place = _places(operator)
    index = operator.inputs[weight_place]
    weights = graph.tensor(graph.root(index))
    if not weights.is_constant:
        raise _UnfitError("its weights are computed", usual=True)
    if readers is not None:
        _check_integers(weights, readers)
    bias = None
    if len(operator.inputs) > bias_place and operator.inputs[bias_place] >= 0:
        bias = graph.tensor(graph.root(operator.inputs[bias_place]))
        if not bias.is_constant:
            raise _UnfitError("its bias is computed")
    table = unpacked.subgraphs[graph.subgraph.index].operators[operator.index]
    read = graph.tensor(operator.inputs[place])
    if getattr(table.builtinOptions, "weightsFormat", 0):
        raise _UnfitError("its weights are stored in a shuffled order")
    if graph.is_constant(read.index) or not (read.is_float or read.is_quantized):
        raise _UnfitError("its input is a constant, or neither float nor quantized")
    if read.is_quantized and read.quantization is not None and read.quantization.is_per_channel:
        raise _UnfitError("its input has a scale for each channel")
    geometry = Geometry.of(operator.name, weights.shape, read.shape[-1] if read.shape else 0, table.builtinOptions)
    if geometry.features > MOST_FEATURES:
        raise _UnfitError(f"each output is made of {geometry.features} inputs, more than {MOST_FEATURES}")
    size = None
    if operator.name == "TRANSPOSE_CONV":
        shape = graph.tensor(operator.outputs[0]).shape
        if len(shape) != 4 or min(shape[1:3]) < 0:
            raise _UnfitError("the file leaves the size of its output open")
        size = (shape[1], shape[2])
    own_bias = bias is not None and readers is not None and readers.get(bias.buffer, 0) <= 1
    return _Side(graph, operator, geometry, weights, bias, size, own_bias)


def _check_integers(weights: Tensor, readers: Mapping[int, int]) -> None:
    """Refuses weights that cannot be changed, or not for one layer alone."""
    if not weights.is_quantized or weights.quantization is None:
        raise _UnfitError(f"its weights are {weights.dtype}", usual=True)
    if weights.dtype != np.int8:
        raise _UnfitError(f"its weights are {weights.dtype}, expected int8")
    if weights.quantization.zero_point.any():
        raise _UnfitError("its weights have a zero point")
    if readers.get(weights.buffer, 0) > 1:
        raise _UnfitError("its weights are shared with another operator")


def _counterpart(mine: _Side, other: _Side) -> _Side:
    """Returns the layer of the float model where it is the same layer with the same weights, up to rounding."""
    if other.operator.name != mine.operator.name or other.geometry.shape != mine.geometry.shape:
        raise _UnfitError(
            f"its counterpart in the float model is {other.operator.name} with weights of shape {other.geometry.shape}"
        )
    if not other.read.is_float:
        raise _UnfitError("the input of its counterpart in the float model is not float")
    first, second = mine.real_weights.reshape(-1), other.real_weights.reshape(-1)
    lengths = math.sqrt(float(first @ first) * float(second @ second))
    if not lengths > 0 or not math.isfinite(lengths):
        raise _UnfitError("its weights are all zero, or not finite")
    if float(first @ second) < _LIKE * lengths:
        raise _UnfitError(f"its weights are unlike those of the float model (cosine {float(first @ second) / lengths:.2f})")
    return other


class _Group(NamedTuple):
    """What one pass over the samples is for.

    Attributes:
        aims: What each layer aims at.
        fresh: The layers see what became of those before; else what the group before saw, from which only memory parts it.
    """

    aims: dict[_Layer, str]
    fresh: bool


def _grouped(graph: Graph, layers: Sequence[_Layer], aim: str, passes: int | None, budget: int) -> Iterator[_Group]:
    """Splits the layers into groups, each for a pass over the samples, and tells what each layer aims at.

    Layers that make good what those before got wrong must see what these have become: if several of a chain did so at once, the
    same error would be made good as often.
    """
    ranks = _ranks(graph, layers, aim)
    together = -(-(max(ranks, default=0) + 1) // passes) if passes else 1
    used = 0
    group: _Group | None = None
    current = -1
    for layer, rank in zip(layers, ranks, strict=True):
        fresh = rank // together != current
        if group is None or fresh or used + layer.bytes > budget:
            if group is not None:
                yield group
            group, used, current = _Group({}, fresh), 0, rank // together
        group.aims[layer] = aim if rank % together == 0 else "own"
        used += layer.bytes
    if group is not None:
        yield group


def _ranks(graph: Graph, layers: Sequence[_Layer], aim: str) -> list[int]:
    """Numbers the layers so that none of a number follows another of it; with aim ``own`` all have the same."""
    ranks: list[int] = []
    rank, behind = 0, set[int]()  # what the layers of this rank have a part in
    for layer in layers:
        operator = layer.quantized.operator
        if aim != "own" and any(graph.root(index) in behind for index in operator.inputs if index >= 0):
            rank, behind = rank + 1, set()
        ranks.append(rank)
        behind |= _behind(graph, operator)
    return ranks


def _behind(graph: Graph, operator: Operator) -> set[int]:
    """Returns all values that an operator has a part in."""
    found = set(operator.outputs)
    waiting = list(operator.outputs)
    while waiting:
        for reader in graph.readers(waiting.pop()):
            fresh = set(reader.outputs) - found
            found |= fresh
            waiting += fresh
    return found


class _Gathered(NamedTuple):
    """What a pass over the samples gives.

    Attributes:
        moments: For each layer those of every other sample, and those of the rest.
        samples: How many there were.
        notes: Of the workers.
    """

    moments: list[tuple[Moments, Moments]]
    samples: int
    notes: list[str]


# Of one sample and layer: its sums, or the inputs and outputs that they are of, whichever is less to hand over.
_Part = Moments | tuple[np.ndarray, np.ndarray]


def _gather(mixed: MixedPair, data: bytes, layers: Sequence[_Layer], backend: Backend, samples: Iterator[Any]) -> _Gathered:
    """Runs the samples through both models."""
    quantized, floating = Model(data), mixed.models.floats.graph.model
    exposed = [
        expose(model, [index for index in dict.fromkeys(read) if index in model.main.producers])
        for model, read in (
            (quantized, [layer.quantized.read.index for layer in layers]),
            (floating, [layer.floating.read.index for layer in layers]),
        )
    ]
    workers = backend.pool(lambda: _Worker(mixed, exposed, layers, backend), "rounding weights", finish=_Worker.notes)
    halves = [[_empty(layer), _empty(layer)] for layer in layers]
    count = 0
    for parts in map_samples(_Worker.measure, workers, samples):
        for position, part in enumerate(parts):
            sums = halves[position][count % 2]
            if isinstance(part, Moments):
                sums += part
            else:
                sums.add(*(array.astype(np.float64) for array in part))
        count += 1
    if not count:
        raise DatasetError("the dataset yielded no samples")
    notes = [*workers.notes, *(note for found in workers.finished for note in found)]
    return _Gathered([(first, second) for first, second in halves], count, notes)


def _empty(layer: _Layer) -> Moments:
    geometry = layer.quantized.geometry
    return Moments(geometry.groups, geometry.channels, geometry.features)


class _Worker:
    """Interpreters of both models, with what the layers read as outputs."""

    def __init__(self, mixed: MixedPair, exposed: Sequence[bytes], layers: Sequence[_Layer], backend: Backend) -> None:
        self._mixed, self._layers = mixed, layers
        self._quantized, self._floating = backend.open(exposed[0]), backend.without_delegates.open(exposed[1])

    def notes(self) -> list[str]:
        """Returns what the reader must know of the interpreters."""
        return [*self._quantized.notes, *self._floating.notes]

    def measure(self, sample: Any) -> list[_Part]:
        """Returns what a sample adds to each layer's sums."""
        floats, values = self._mixed.models.floats, self._mixed.feeds(sample)
        if self._mixed.is_stateful:
            self._quantized.reset_variables()
            self._floating.reset_variables()
        self._quantized.invoke(sample.inputs)
        self._floating.invoke([values[floats.values[index]] for index in floats.graph.subgraph.inputs])
        return [self._part(layer) for layer in self._layers]

    def _part(self, layer: _Layer) -> _Part:
        mine, other = layer.quantized, layer.floating
        inputs = self._quantized.read(mine.read.index).astype(np.float64)
        if mine.read.is_quantized and mine.read.quantization is not None:
            inputs -= float(mine.read.quantization.zero_point[0])  # exact, and so are the sums of their products
        real = self._floating.read(other.read.index).astype(np.float64)
        positions = mine.geometry.positions(inputs.shape, mine.size)
        if positions != other.geometry.positions(real.shape, other.size):
            raise ModelError(
                f"node {layer.name!r} has inputs of shape {inputs.shape} in the quantized and {real.shape} in the float model, "
                "which give outputs of different sizes: the two are no pair"
            )
        pairs = self._positions(mine, inputs, other, real)
        if mine.geometry.raw_elements(positions) < mine.geometry.elements:
            found = list(pairs)
            return (
                np.concatenate([x for x, _ in found], axis=1).astype(np.float32),
                np.concatenate([y for _, y in found], axis=2),
            )
        sums = _empty(layer)
        for x, y in pairs:
            sums.add(x, y)
        return sums

    @staticmethod
    def _positions(mine: _Side, inputs: np.ndarray, other: _Side, real: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields inputs of the quantized layer with outputs of the float one, band by band."""
        bands = zip(mine.geometry.inputs(inputs, mine.size), other.geometry.inputs(real, other.size), strict=True)
        for x, float_x in bands:
            yield x, other.real_weights @ float_x.transpose(0, 2, 1) + other.real_bias[..., np.newaxis]


def _unfit(layer: _Layer, halves: tuple[Moments, Moments]) -> str:
    """Says why the sums of a layer are of no use, or nothing."""
    if not all(half.finite for half in halves):
        return "its inputs or outputs are NaN or infinite on these samples"
    if not any(half.xx.any() for half in halves):
        return "its inputs are all zero on these samples"
    return ""


def _rounded(layer: _Layer, halves: tuple[Moments, Moments], patch: Patch, aim: str, steps: int, biases: bool) -> RoundedNode:
    """Chooses the weights of a layer, and writes them."""
    problem = _problem(layer, steps, biases)
    whole = _empty(layer)
    for half in halves:
        whole += half
    before = Solution(problem.integers, problem.bias)
    after = _chosen(problem, before, halves, whole, aim)
    geometry = layer.quantized.geometry
    weights = geometry.weights(after.integers).astype(np.int8)
    patch.constant(layer.quantized.weights.index, weights)
    if problem.free_bias:
        _write_bias(layer, patch, problem, after)
    changed = after.integers != problem.integers
    return RoundedNode(
        layer.name,
        layer.quantized.operator.name,
        float(before.errors(problem, whole).mean()),
        float(after.errors(problem, whole).mean()),
        float(changed.mean()),
        int(np.abs(after.integers - problem.integers).max()),
        float(changed.any(2).mean()),
    )


def _write_bias(layer: _Layer, patch: Patch, problem: Problem, after: Solution) -> None:
    tensor = layer.quantized.bias
    assert tensor is not None
    old = layer.quantized.graph.model.constant(tensor)
    values = after.bias if tensor.is_float else np.rint(after.bias / problem.step)
    values = values.reshape(-1).astype(old.dtype).reshape(old.shape)
    # What did not change keeps its bits.
    kept = (after.bias == problem.bias).reshape(old.shape)
    patch.constant(tensor.index, np.where(kept, old, values))


def _problem(layer: _Layer, steps: int, biases: bool) -> Problem:
    side = layer.quantized
    integers = side.geometry.matrix(side.graph.model.constant(side.weights)).astype(np.float64)
    scale = layer.scale
    step = scale * layer.input_scale
    sound = np.isfinite(step) & (step > np.finfo(np.float32).tiny)  # a channel of zeros may have any scale
    wanted = np.where(sound[..., np.newaxis], layer.floating.real_weights / np.where(sound, scale, 1.0)[..., np.newaxis], 0.0)
    moving = np.where(sound, steps, 0)[..., np.newaxis]
    lowest = np.minimum(integers, np.maximum(integers - moving, -127.0))  # -128 only where the file has it already
    highest = np.maximum(integers, np.minimum(integers + moving, 127.0))
    return Problem(
        integers,
        wanted,
        lowest,
        highest,
        np.where(sound, step, 1.0),
        side.real_bias,
        layer.floating.real_bias,
        biases and side.bias is not None and side.own_bias,
    )


def _chosen(problem: Problem, before: Solution, halves: tuple[Moments, Moments], whole: Moments, aim: str) -> Solution:
    """Returns for each channel the rounding that does best on samples that it was not made for."""
    plans = list(itertools.product(AIMS[1:] if aim == "best" else (aim,), _DAMPINGS))
    first, second = halves
    if not second.count:
        plans, best = plans[-1:], np.zeros(before.bias.shape, dtype=int)
    else:
        left_out = [solve(problem, first, *plan).errors(problem, second) for plan in plans]
        best = np.stack([before.errors(problem, second), *left_out]).argmin(0) - 1  # the first of equals
    found = before
    for position, plan in enumerate(plans):
        chosen = best == position
        if chosen.any():
            found = solve(problem, whole, *plan).where(chosen, found)
    # Damped, a rounding may be better for the weights and worse for the outputs.
    better = found.errors(problem, whole) < before.errors(problem, whole)
    return found.where(better & problem.movable, before)
