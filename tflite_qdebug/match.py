"""Which operator and tensor of a float model belongs to which of a quantized model, and how sure that is.

The two may come from different tools: names changed, operators fused, split, reordered or inserted. What is used, from strong
to weak: names of output tensors, constants (a dequantized weight is near the float one), and structure (what feeds and what
reads an operator, its type, its shapes). Values that agree on a sample are asked of `Match.confirmed`.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Operator, Tensor

__all__ = ["AGREES", "BRIDGES", "Graph", "Match", "OperatorMatch", "match_models"]

#: Operators that only carry values between float and integers.
BRIDGES = ("QUANTIZE", "DEQUANTIZE")
# Types that stand for one another in models of different tools.
_ALIKE = (
    ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    ("AVERAGE_POOL_2D", "MEAN"),
    ("CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"),
    ("SPLIT", "SPLIT_V"),
    ("SLICE", "STRIDED_SLICE"),
    ("PACK", "CONCATENATION"),
    ("PAD", "PADV2"),
    ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"),
    ("ADD", "ADD_N"),
)
_CLASS = {name: names[0] for names in _ALIKE for name in names}
_ACTIVATIONS = ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TANH", "LEAKY_RELU", "PRELU", "MINIMUM", "MAXIMUM")
# Those that a range of integers can do instead, and the schema's code of those that can be fused.
_CLIPPING = ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "MINIMUM", "MAXIMUM")
_FUSED = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3, "TANH": 4}
# Operators with one activation that one tool inserts or leaves out where another does not.
_PASSED = (*_ACTIVATIONS, "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "TRANSPOSE", "CAST")
_MOST_PASSED = 3
# How many operators are tried for one that neither names, weights nor neighbours speak for.
_NEAREST = 40
_SAMPLED_WEIGHTS = 4096
# Trained anew with quantization in the loop, a layer's weights keep a cosine of 0.98 to their own, and below 0.3 to others.
_NEAR = 0.9
_ENOUGH = 2.0
#: From this cosine on, a tensor's values on a sample speak for its being the other's counterpart.
AGREES = 0.9


@dataclasses.dataclass(frozen=True)
class OperatorMatch:
    """One operator of the quantized model and its counterpart.

    Attributes:
        float_operator: Index in the float model.
        quantized_operator: Index in the quantized model.
        evidence: Some of ``name``, ``constants``, ``structure``, ``values``.
        similarity: Cosine of the weights; None without weights.
    """

    float_operator: int
    quantized_operator: int
    evidence: tuple[str, ...]
    similarity: float | None

    @property
    def confidence(self) -> str:
        """``sure`` by two kinds of evidence, ``likely`` by one, ``doubtful`` by the type alone."""
        return ("doubtful", "likely", "sure")[min(len(self.evidence), 2)]


class Graph:
    """A subgraph in which QUANTIZE and DEQUANTIZE are seen through: the operators between *values*.

    A value is called by its root: the tensor that computes it, before any bridge.

    Attributes:
        model: The model.
        subgraph: Its main subgraph.
        operators: The operators but the bridges, in execution order.
    """

    def __init__(self, model: Model) -> None:
        """Reads the graph."""
        self.model, self.subgraph = model, model.main
        self.operators = [operator for operator in self.subgraph.operators if operator.name not in BRIDGES]
        self._readers: dict[int, list[Operator]] = {}
        self._activations: dict[int, dict[int, int]] = {}
        for operator in self.operators:
            for root in dict.fromkeys(self.activations(operator).values()):
                self._readers.setdefault(root, []).append(operator)
        self.outputs = [self.root(index) for index in self.subgraph.outputs]

    def tensor(self, index: int) -> Tensor:
        """Returns a tensor."""
        return self.subgraph.tensors[index]

    @functools.cached_property
    def _roots(self) -> dict[int, int]:
        roots: dict[int, int] = {}
        for operator in self.subgraph.operators:
            if operator.name in BRIDGES and operator.inputs and operator.outputs:
                roots[operator.outputs[0]] = roots.get(operator.inputs[0], operator.inputs[0])
        return roots

    def root(self, index: int) -> int:
        """Returns the value that a tensor holds."""
        return self._roots.get(index, index)

    def producer(self, root: int) -> Operator | None:
        """Returns the operator that computes a value; None for an input, a constant, a variable."""
        return self.subgraph.producers.get(root)

    def readers(self, root: int) -> list[Operator]:
        """Returns the operators that read a value."""
        return self._readers.get(root, [])

    def is_constant(self, index: int) -> bool:
        """True where the values stand in the file, bridged or not."""
        return self.tensor(self.root(index)).is_constant

    def activations(self, operator: Operator) -> dict[int, int]:
        """Returns the values that an operator computes with: ``{input position: root}``."""
        if operator.index not in self._activations:
            self._activations[operator.index] = {
                position: self.root(index)
                for position, index in enumerate(operator.inputs)
                if index >= 0 and not self.is_constant(index) and not self.tensor(self.root(index)).is_variable
            }
        return self._activations[operator.index]

    def is_numeric(self, index: int) -> bool:
        """True for a tensor of real numbers, float or quantized, unlike shapes, indices and masks."""
        tensor = self.tensor(index)
        return tensor.is_float or tensor.is_quantized

    def computes(self, operator: Operator) -> bool:
        """True for an operator of which some output is of real numbers."""
        return any(self.is_numeric(index) for index in operator.outputs)

    def weights(self, operator: Operator) -> Tensor | None:
        """Returns the greatest constant of real numbers that an operator reads."""
        found = [self.tensor(self.root(index)) for index in operator.inputs if index >= 0 and self.is_constant(index)]
        found = [tensor for tensor in found if tensor.is_float or tensor.is_quantized or tensor.dtype == np.float16]
        found = [tensor for tensor in found if np.prod(tensor.shape) > 1]
        return max(found, key=lambda tensor: int(np.prod(tensor.shape)), default=None)

    def real_values(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a constant as float32, dequantized where they are quantized."""
        values = self.model.constant(tensor)
        if tensor.is_quantized and tensor.quantization is not None:
            return tensor.quantization.dequantize(values)
        return values.astype(np.float32)

    @functools.cached_property
    def activation_functions(self) -> list[int]:
        """The activation function fused into each operator of the subgraph; 0 for none."""
        schema = tf_private.schema()
        table = schema.Model.GetRootAs(self.model.data, 0).Subgraphs(self.subgraph.index)
        types = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}
        found = []
        for operator in self.subgraph.operators:
            row = table.Operators(operator.index)
            kind, options = getattr(schema, types.get(row.BuiltinOptionsType(), ""), None), row.BuiltinOptions()
            if kind is None or options is None or not hasattr(kind, "FusedActivationFunction"):
                found.append(0)
                continue
            reader = kind()
            reader.Init(options.Bytes, options.Pos)
            found.append(int(reader.FusedActivationFunction()))
        return found


def _fits(first: Tensor, second: Tensor, exactly: bool = True) -> bool:
    """True where two shapes can be the same, -1 being any size, and dimensions of one mattering only ``exactly``."""
    ours, theirs = ([size for size in tensor.shape if size != 1] for tensor in (first, second))
    if -1 in ours or -1 in theirs:
        # A model with a batch of any size beside one with a batch of 1: compare from the end.
        pairs = zip(reversed(first.shape), reversed(second.shape), strict=False)
        return not exactly or all(-1 in pair or pair[0] == pair[1] for pair in pairs)
    return ours == theirs if exactly else int(np.prod(ours)) == int(np.prod(theirs))


def _is_permuted(first: Tensor, second: Tensor) -> bool:
    """True where two shapes have the same dimensions in any order."""
    return sorted(first.shape) == sorted(second.shape)


_SUFFIXES = re.compile(r"(_int8|_int16|_quantized|_dequant(ized?)?|:\d+)+$")
_PREFIXES = re.compile(r"(^|/)(statefulpartitionedcall|quant_|functional_?\d*/|model_?\d*/|sequential_?\d*/)+")


def _simplified(name: str) -> str:
    """Returns what is left of a name without what converters and training with quantization put around it."""
    simple = _SUFFIXES.sub("", name.partition(";")[0].lower())
    return _PREFIXES.sub("/", simple).strip("/")


class _Names:
    """The operators of a graph by the names of their outputs; those that several share count as none."""

    def __init__(self, graph: Graph, simplify: Any) -> None:
        aliases: dict[int, set[str]] = {}
        for tensor in graph.subgraph.tensors:
            # TensorFlow's quantizer gives an output's name to its dequantized copy.
            aliases.setdefault(graph.root(tensor.index), set()).add(simplify(tensor.name))
        found: dict[str, set[tuple[int, int]]] = {}
        for operator in graph.operators:
            for place, output in enumerate(operator.outputs):
                for name in aliases.get(output, set()) - {""}:
                    found.setdefault(name, set()).add((operator.index, place))
        self.places = {name: next(iter(places)) for name, places in found.items() if len(places) == 1}


@dataclasses.dataclass(frozen=True)
class Match:
    """What belongs to what.

    Attributes:
        operators: The pairs, in the quantized model's order.
        values: ``{float root: quantized root}``: tensors that hold the same value.
        unmatched_quantized: Operators that compute and have no counterpart, by index.
        unmatched_float: The same of the float model.
        agreement: ``{quantized root: cosine with its counterpart on one sample}``; empty where none was tried.
    """

    operators: tuple[OperatorMatch, ...]
    values: Mapping[int, int]
    unmatched_quantized: tuple[int, ...]
    unmatched_float: tuple[int, ...]
    agreement: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def confirmed(self, agreement: Mapping[int, float], quantized: Graph) -> Match:
        """Returns the match with what a sample showed; that values differ is no evidence against: an error does that too.

        Args:
            agreement: ``{quantized root: cosine with its float counterpart}``, each model on its own inputs.
            quantized: The quantized model.
        """

        def agrees(pair: OperatorMatch) -> bool:
            outputs = quantized.subgraph.operators[pair.quantized_operator].outputs
            known = [agreement[output] for output in outputs if output in agreement]
            return bool(known) and min(known) >= AGREES

        operators = tuple(
            dataclasses.replace(pair, evidence=(*pair.evidence, "values")) if agrees(pair) else pair for pair in self.operators
        )
        return dataclasses.replace(self, operators=operators, agreement=dict(agreement))

    def extended(self, values: Iterable[tuple[int, int]]) -> Match:
        """Returns the match with further values, ``(float root, quantized root)``, that a sample showed to be the same."""
        return dataclasses.replace(self, values={**self.values, **dict(values)})

    def counts(self) -> dict[str, int]:
        """Returns how many pairs are ``sure``, ``likely`` and ``doubtful``."""
        found = Counter(pair.confidence for pair in self.operators)
        return {confidence: found[confidence] for confidence in ("sure", "likely", "doubtful")}


def match_models(float_model: Model, quantized_model: Model) -> Match:
    """Matches the main subgraphs of two models.

    Raises:
        ModelError: Where their inputs or outputs cannot belong together.
    """
    return _Matcher(Graph(float_model), Graph(quantized_model)).match()


class _Matcher:
    """Accepts pairs from the strongest down; each accepted pair speaks for its neighbours."""

    def __init__(self, ours: Graph, theirs: Graph) -> None:
        self.ours, self.theirs = ours, theirs
        self.inputs = dict(_paired_ends(ours, theirs, "input"))
        self.ends = dict(_paired_ends(ours, theirs, "output"))
        self.found: dict[int, int] = {}  # float operator -> quantized operator
        self.taken: set[int] = set()
        self.heap: list[tuple[float, int, int, int]] = []
        self.similar: dict[tuple[int, int], float] = _similarities(ours, theirs)
        self.named = _same_names(ours, theirs)
        self.position = [{op.index: place for place, op in enumerate(graph.operators)} for graph in (ours, theirs)]
        self.tries = itertools.count()

    def match(self) -> Match:
        strong = [pair for pair, value in self.similar.items() if value >= _NEAR]
        for pair in dict.fromkeys([*self.named, *strong]):
            self._propose(*pair)
        for mine, other in self.inputs.items():
            self._propose_readers(mine, other)
        for mine, other in self.ends.items():
            self._propose_producers(mine, other)
        self._accept()
        self._align_rest()
        self._accept()
        values = self._values()
        pairs = tuple(self._described(mine, other, values) for mine, other in sorted(self.found.items(), key=lambda p: p[1]))
        return Match(pairs, values, _missing(self.theirs, self.taken), _missing(self.ours, self.found))

    def _propose(self, mine: int, other: int, bonus: float = 0.0) -> None:
        """Puts a pair on the heap with what speaks for it now."""
        if mine in self.found or other in self.taken:
            return
        first, second = self.ours.subgraph.operators[mine], self.theirs.subgraph.operators[other]
        if _CLASS.get(first.name, first.name) != _CLASS.get(second.name, second.name):
            return
        if len(first.outputs) != len(second.outputs) or not first.outputs:
            return
        weight = bonus + self.named.get((mine, other), 0.0) + (1.0 if first.name == second.name else 0.0)
        similarity = self.similar.get((mine, other))
        if similarity is not None:
            # Weights of another training, or broken ones, are none the less in their place.
            weight += max(8.0 * (similarity - 0.5), -1.0)
        elif self.ours.weights(first) is not None and self.theirs.weights(second) is not None:
            weight -= 2.0  # weights of different size
        outputs = list(zip(first.outputs, second.outputs, strict=True))
        shapes = [_fits(self.ours.tensor(a), self.theirs.tensor(b)) for a, b in outputs]
        if not all(shapes):
            turned = all(_is_permuted(self.ours.tensor(a), self.theirs.tensor(b)) for a, b in outputs)
            weight -= 0.0 if turned else 1.0
        else:
            weight += 1.0
        weight += 2.0 * self._agreeing_inputs(first, second)
        weight += 0.5 * (1.0 - self._distance(mine, other))
        heapq.heappush(self.heap, (-weight, next(self.tries), mine, other))

    def _agreeing_inputs(self, first: Operator, second: Operator) -> float:
        """Returns the share of activations whose producers are matched to each other, less the share that disagrees."""
        mine, others = self.ours.activations(first), self.theirs.activations(second)
        shared = [position for position in mine if position in others]
        if not shared:
            return 0.0
        score = 0.0
        for position in shared:
            above = [operator.index for operator, _ in _upward(self.ours, mine[position])]
            beside = [operator.index for operator, _ in _upward(self.theirs, others[position])]
            if not above or not beside:
                score += 1.0 if self.inputs.get(mine[position]) == others[position] else 0.0
            elif self.found.get(above[0]) == beside[0]:
                score += 1.0
            elif any(self.found.get(index) in beside for index in above):  # one tool inserted something
                score += 0.7
            elif above[0] in self.found or beside[0] in self.taken:
                score -= 0.5
        return score / len(shared)

    def _accept(self) -> None:
        while self.heap:
            weight, _, mine, other = heapq.heappop(self.heap)
            if -weight < _ENOUGH or mine in self.found or other in self.taken:
                continue
            self.found[mine] = other
            self.taken.add(other)
            first, second = self.ours.subgraph.operators[mine], self.theirs.subgraph.operators[other]
            above, beside = self.ours.activations(first), self.theirs.activations(second)
            for position in above.keys() & beside.keys():
                self._propose_producers(above[position], beside[position])
            for a, b in zip(first.outputs, second.outputs, strict=True):
                self._propose_readers(self.ours.root(a), self.theirs.root(b))

    def _propose_producers(self, mine: int, other: int) -> None:
        for (above, passed), (beside, skipped) in itertools.product(_upward(self.ours, mine), _upward(self.theirs, other)):
            self._propose(above.index, beside.index, 1.0 - 0.3 * (passed + skipped))

    def _propose_readers(self, mine: int, other: int) -> None:
        for (below, passed), (beside, skipped) in itertools.product(_downward(self.ours, mine), _downward(self.theirs, other)):
            self._propose(below.index, beside.index, 1.0 - 0.3 * (passed + skipped))

    def _align_rest(self) -> None:
        """Proposes what is left: each operator and those of its kind that stand about where it stands in the order."""
        free: dict[str, list[Operator]] = {}
        for op in self.ours.operators:
            if op.index not in self.found and self.ours.computes(op):
                free.setdefault(_CLASS.get(op.name, op.name), []).append(op)
        for second in self.theirs.operators:
            if second.index in self.taken or not self.theirs.computes(second):
                continue
            alike = free.get(_CLASS.get(second.name, second.name), [])
            for first in heapq.nsmallest(_NEAREST, alike, lambda op: self._distance(op.index, second.index)):  # noqa: B023
                self._propose(first.index, second.index)

    def _distance(self, mine: int, other: int) -> float:
        """Returns how far apart two operators stand, from 0 to 1 of a model's length."""
        places = self.position[0][mine] / len(self.position[0]), self.position[1][other] / len(self.position[1])
        return abs(places[0] - places[1])

    def _values(self) -> dict[int, int]:
        values = dict(self.inputs)
        taken = set(values.values())
        turned: set[int] = set()
        for mine, other in sorted(self.found.items()):
            first, second = self.ours.subgraph.operators[mine], self.theirs.subgraph.operators[other]
            if self._is_turned(first, second, turned):
                turned.add(mine)
                continue
            for a, b in zip(first.outputs, second.outputs, strict=True):
                a, b = self._through_activation(first, second, a, b)
                same = first.name == second.name and first.name not in _CLASS
                fits = _fits(self.ours.tensor(a), self.theirs.tensor(b), exactly=same) and self._same_sort(a, b)
                if fits and a not in values and b not in taken:
                    values[a] = b
                    taken.add(b)
        for a, b in self.ends.items():
            if a not in values and b not in taken and _fits(self.ours.tensor(a), self.theirs.tensor(b), exactly=False):
                values[a] = b
                taken.add(b)
        return values

    def _is_turned(self, first: Operator, second: Operator, turned: Container[int]) -> bool:
        """True where a TRANSPOSE on one side alone gives a pair the same values in another order, of whatever shape."""
        mine, others = self.ours.activations(first), self.theirs.activations(second)
        for position in mine.keys() & others.keys():
            above, count = _transposes(self.ours, mine[position], self.found)
            _, more = _transposes(self.theirs, others[position], self.taken)
            if (count + more + (above in turned)) % 2:
                return True
        return False

    def _same_sort(self, mine: int, other: int) -> bool:
        """True where both are of real numbers, or both of the same type of integers."""
        first, second = self.ours.tensor(mine), self.theirs.tensor(other)
        return first.dtype == second.dtype or (self.ours.is_numeric(mine) and self.theirs.is_numeric(other))

    def _through_activation(self, first: Operator, second: Operator, mine: int, other: int) -> tuple[int, int]:
        """Returns the outputs, behind an activation function that is an operator on one side and not on the other."""
        ahead, beside = self._activation(self.ours, first, mine), self._activation(self.theirs, second, other)
        if ahead is not None and ahead.index not in self.found and self._does(self.theirs, second, beside, ahead.name):
            mine = ahead.outputs[0]
        if beside is not None and beside.index not in self.taken and self._does(self.ours, first, ahead, beside.name):
            other = beside.outputs[0]
        return mine, other

    @staticmethod
    def _activation(graph: Graph, operator: Operator, output: int) -> Operator | None:
        """Returns the activation function that alone reads an output, where none is fused."""
        readers = graph.readers(output)
        alone = not graph.activation_functions[operator.index] and output not in graph.outputs and len(readers) == 1
        return readers[0] if alone and readers[0].name in _ACTIVATIONS else None

    @staticmethod
    def _does(graph: Graph, operator: Operator, activation: Operator | None, name: str) -> bool:
        """True where an operator applies an activation function itself: fused, or, if that only clips, by its range."""
        fused = graph.activation_functions[operator.index]
        if name in _FUSED:
            return fused == _FUSED[name] or (name in _CLIPPING and (bool(fused) or activation is None))
        return name in _CLIPPING and activation is None

    def _described(self, mine: int, other: int, values: Mapping[int, int]) -> OperatorMatch:
        first, second = self.ours.subgraph.operators[mine], self.theirs.subgraph.operators[other]
        evidence = ["name"] if (mine, other) in self.named else []
        similarity = self.similar.get((mine, other))
        if similarity is not None and similarity >= _NEAR:
            evidence.append("constants")
        above, beside = self.ours.activations(first), self.theirs.activations(second)
        feeding = [beside[position] for position in sorted(beside) if self.theirs.is_numeric(beside[position])]
        needed = [above[position] for position in sorted(above) if self.ours.is_numeric(above[position])]
        if [values.get(root) for root in needed] == feeding and any(output in values for output in self._ends_of(first)):
            evidence.append("structure")
        return OperatorMatch(mine, other, tuple(evidence), similarity)

    def _ends_of(self, operator: Operator) -> Iterator[int]:
        for output in operator.outputs:
            yield output
            yield from (reader.outputs[0] for reader in self.ours.readers(output) if reader.name in _ACTIVATIONS)


def _missing(graph: Graph, known: Container[int]) -> tuple[int, ...]:
    return tuple(op.index for op in graph.operators if graph.computes(op) and op.index not in known)


def _transposes(graph: Graph, root: int, known: Container[int]) -> tuple[int, int]:
    """Returns the matched operator that a value comes from, -1 for none, and how many TRANSPOSE lie between."""
    count = 0
    for producer, _ in _upward(graph, root):
        if producer.index in known:
            return producer.index, count
        count += producer.name == "TRANSPOSE"
    return -1, count


def _upward(graph: Graph, root: int) -> Iterator[tuple[Operator, int]]:
    """Yields the producer of a value, and those before it over operators that one tool leaves out."""
    for passed in range(_MOST_PASSED + 1):
        producer = graph.producer(root)
        if producer is None:
            return
        yield producer, passed
        above = graph.activations(producer)
        if producer.name not in _PASSED or len(above) == 0:
            return
        root = next(iter(above.values()))


def _downward(graph: Graph, root: int) -> Iterator[tuple[Operator, int]]:
    roots = [root]
    for passed in range(_MOST_PASSED + 1):
        readers = [reader for value in roots for reader in graph.readers(value)]
        yield from ((reader, passed) for reader in readers)
        roots = [reader.outputs[0] for reader in readers if reader.name in _PASSED and reader.outputs]


def _same_names(ours: Graph, theirs: Graph) -> dict[tuple[int, int], float]:
    """Returns pairs of operators whose outputs are called alike, and how much that weighs."""
    found: dict[tuple[int, int], float] = {}
    for simplify, weight in ((_simplified, 3.0), (lambda name: name, 6.0)):
        mine, others = (_Names(graph, simplify).places for graph in (ours, theirs))
        for name in mine.keys() & others.keys():
            # TensorFlow's quantizer adds digits: its relu_11 may be relu_1 as well.
            misleading = name[-1].isdigit() and name[:-1] in mine and name[:-1] not in others
            (first, place), (second, other) = mine[name], others[name]
            if place == other and not misleading and _same_size(ours, first, theirs, second):
                found[first, second] = weight
    return found


def _same_size(ours: Graph, first: int, theirs: Graph, second: int) -> bool:
    mine, others = ours.subgraph.operators[first].outputs, theirs.subgraph.operators[second].outputs
    pairs = zip(mine, others, strict=False)
    return all(_fits(ours.tensor(a), theirs.tensor(b), exactly=False) for a, b in pairs)


def _similarities(ours: Graph, theirs: Graph) -> dict[tuple[int, int], float]:
    """Returns the cosine between the weights of operators, for those with equally many."""
    by_size: list[dict[int, list[tuple[int, np.ndarray]]]] = []
    for graph in (ours, theirs):
        groups: dict[int, list[tuple[int, np.ndarray]]] = {}
        for operator in graph.operators:
            tensor = graph.weights(operator)
            if tensor is None:
                continue
            values = graph.real_values(tensor).reshape(-1)
            picked = values[:: max(1, values.size // _SAMPLED_WEIGHTS)].astype(np.float64)
            length = np.sqrt(picked @ picked)
            if np.isfinite(length) and length > 0:
                groups.setdefault(values.size, []).append((operator.index, picked / length))
        by_size.append(groups)
    found = {}
    for size in by_size[0].keys() & by_size[1].keys():
        mine, others = by_size[0][size], by_size[1][size]
        cosines = np.stack([vector for _, vector in mine]) @ np.stack([vector for _, vector in others]).T
        for (row, (first, _)), (column, (second, _)) in itertools.product(enumerate(mine), enumerate(others)):
            found[first, second] = float(cosines[row, column])
    return found


def _paired_ends(ours: Graph, theirs: Graph, which: str) -> Iterator[tuple[int, int]]:
    """Pairs the inputs or outputs of two graphs: by signature key, by name, else by their order."""
    mine, others = (_ends(graph, which) for graph in (ours, theirs))
    if len(mine) != len(others):
        raise ModelError(
            f"got a float model with {len(mine)} {which}s and a quantized model with {len(others)}, expected as many: they are "
            "no pair"
        )
    sides = [_end_names(graph, which) for graph in (ours, theirs)]
    left = list(others)
    for index in mine:
        same = [other for other in left if sides[0][index] & sides[1][other]]
        fitting = [other for other in left if _fits(ours.tensor(index), theirs.tensor(other))]
        fitting = fitting or [other for other in left if _fits(ours.tensor(index), theirs.tensor(other), exactly=False)]
        chosen = next((other for other in same if other in fitting), None)
        if chosen is None:
            chosen = others[mine.index(index)] if others[mine.index(index)] in fitting else next(iter(fitting), None)
        if chosen is None:
            tensor = ours.tensor(index)
            raise ModelError(
                f"{which} {tensor.name!r} of the float model has shape {tensor.shape}, and the quantized model has no such "
                f"{which} left ({', '.join(str(theirs.tensor(other).shape) for other in left)}): they are no pair"
            )
        left.remove(chosen)
        yield ours.root(index), theirs.root(chosen)


def _ends(graph: Graph, which: str) -> tuple[int, ...]:
    return graph.subgraph.inputs if which == "input" else graph.subgraph.outputs


def _end_names(graph: Graph, which: str) -> dict[int, set[str]]:
    names = {index: {"name " + graph.tensor(index).name} for index in _ends(graph, which)}
    for signature in graph.model.signatures:
        if signature.subgraph == graph.subgraph.index:
            keys = signature.inputs if which == "input" else signature.outputs
            for key, index in keys.items():
                names.setdefault(index, set()).add("key " + key)
    return names
