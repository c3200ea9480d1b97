"""What it costs on the Edge TPU to keep nodes in float: the device has no floats, so that the graph is cut there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tflite_qdebug.analyses.graph import multiplications
from tflite_qdebug.edgetpu.partition import Partition, cut_by_float, partition
from tflite_qdebug.edit import BRIDGES
from tflite_qdebug.errors import OptionError, completed
from tflite_qdebug.findings import Advice, Diagnosis, Findings
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import percent, shortened

__all__ = [
    "FLOAT_PRICE_HEADER",
    "FloatPrice",
    "float_price",
    "float_prices",
    "operators_called",
    "priced_advice",
    "priced_diagnosis",
]


@dataclasses.dataclass(frozen=True)
class FloatPrice(Shown):
    """What leaves the device where some nodes are kept float.

    Of a model that the compiler refuses as a whole, all counts are of what would map, were that mended.

    Attributes:
        nodes: The nodes, by their output tensors in the quantized model.
        operators: Positions of their operators.
        total: Operators of the model.
        mapped: How many of them map with everything quantized.
        left: How many still do.
        kept: Positions of those that are kept float and would have mapped.
        cut_off: Positions of others that leave the device though they stay quantized: they lie behind what is kept float, or
            convert from or to it.
        gained: Positions of operators that map only so: what cuts them off has nothing mapped before it any more.
        multiplications: Of all operators that map with everything quantized, for one sample.
        multiplications_left: Of those that still do.
        crossings: Tensors that pass between host and device for one sample, with everything quantized.
        crossings_left: The same with the nodes in float.
        refused: Why the compiler refuses the model as it is; mostly empty.
    """

    nodes: tuple[str, ...]
    operators: tuple[int, ...]
    total: int
    mapped: int
    left: int
    kept: tuple[int, ...]
    cut_off: tuple[int, ...]
    gained: tuple[int, ...]
    multiplications: int
    multiplications_left: int
    crossings: int
    crossings_left: int
    refused: tuple[str, ...] = ()

    @property
    def lost(self) -> int:
        """Number of operators that leave the device."""
        return len(self.kept) + len(self.cut_off)

    @property
    def lost_share(self) -> float:
        """Share of the device's multiplications that leave it, 0..1; NaN where it has none."""
        return 1.0 - self.multiplications_left / self.multiplications if self.multiplications else math.nan

    @property
    def words(self) -> str:
        """What it costs, in a sentence."""
        if self.refused:
            return f"the compiler refuses the model as it is ({self.refused[0]}); were that mended, {self._words}"
        return self._words

    @property
    def _words(self) -> str:
        if not self.mapped:
            return "nothing of the model maps to the Edge TPU as it is, so that nothing is lost there"
        if not self.lost:
            return f"nothing leaves the Edge TPU: {self.left} of {self.total} operators map as before"
        work = "" if math.isnan(self.lost_share) else f" ({percent(self.lost_share)} of its multiplications)"
        behind = f", {len(self.cut_off)} of them because they lie behind" if self.cut_off else ""
        rest = f"{self.left} of {self.total} stay" if self.left else "nothing stays"
        more = f", {len(self.gained)} come there instead" if self.gained else ""
        return f"{self.lost} of {self.mapped} operators leave the Edge TPU{work}{behind}{more}; {rest}"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        share = None if math.isnan(self.lost_share) else self.lost_share
        return {**dataclasses.asdict(self), "lost": self.lost, "lost_share": share, "words": self.words}

    def row(self, name_width: int = 40) -> list[str]:
        """Returns it as text, under `FLOAT_PRICE_HEADER`."""
        name = shortened(self.nodes[0], name_width) + (f" and {len(self.nodes) - 1} more" if len(self.nodes) > 1 else "")
        share = "-" if math.isnan(self.lost_share) else percent(self.lost_share)
        return [name, str(self.lost), str(len(self.cut_off)), share, f"{self.left} of {self.total}", str(self.crossings_left)]

    def __repr__(self) -> str:
        return f"FloatPrice({', '.join(shortened(name, 40) for name in self.nodes)}: {self.words})"


#: What stands above the columns of `FloatPrice.row`.
FLOAT_PRICE_HEADER = ("node", "leave", "behind it", "multiplications", "stay", "crossings")


@refuses_broken_models
def float_price(model: Model, nodes: Collection[str | int], *, runtime_version: int = 14) -> FloatPrice:
    """Predicts what leaves the Edge TPU where some nodes are all kept float, without making that model.

    Args:
        model: The quantized model.
        nodes: Names of the nodes, by their output tensors in this model, or positions of operators.
        runtime_version: As `partition` has it.

    Raises:
        ModelError: For a model that has been compiled already.
        OptionError: For a node that the model lacks, with the nearest names.
    """
    return float_prices(model, [nodes], runtime_version=runtime_version)[0]


@refuses_broken_models
def float_prices(
    model: Model, groups: Iterable[Collection[str | int]] | None = None, *, runtime_version: int = 14
) -> list[FloatPrice]:
    """Predicts what leaves the Edge TPU for several choices of nodes, each by itself.

    Args:
        model: The quantized model.
        groups: For each choice its nodes, as `float_price` takes them; None: every operator alone but conversions.
        runtime_version: As `partition` has it.

    Returns:
        One for each choice, in their order.

    Raises:
        ModelError: For a model that has been compiled already.
        OptionError: For a node that the model lacks, with the nearest names.
    """
    whole = partition(model, runtime_version=runtime_version)
    if groups is None:
        groups = [[operator.index] for operator in model.main.operators if operator.name not in BRIDGES and operator.outputs]
    graph = Graph(model)
    work = [multiplications(graph, operator) for operator in model.main.operators]
    return [
        _price(model.main.operators, whole, cut_by_float(model, nodes, runtime_version=runtime_version), nodes, work)
        for nodes in groups
    ]


def _price(
    operators: Sequence[Operator], whole: Partition, cut: Partition, nodes: Collection[str | int], work: Sequence[int]
) -> FloatPrice:
    named = [nodes] if isinstance(nodes, str) else nodes
    lost = [
        before.index for before, after in zip(whole.operators, cut.operators, strict=True)
        if before.would_map and not after.would_map
    ]  # fmt: skip
    kept = tuple(index for index in lost if cut.operators[index].is_float)
    return FloatPrice(
        nodes=tuple(whole.operators[node].output if isinstance(node, int) else node for node in named),
        operators=tuple(each.index for each in cut.operators if each.is_float),
        total=len(operators),
        mapped=whole.would_map,
        left=cut.would_map,
        kept=kept,
        cut_off=tuple(index for index in lost if index not in kept),
        gained=tuple(
            before.index
            for before, after in zip(whole.operators, cut.operators, strict=True)
            if after.would_map and not before.would_map
        ),
        multiplications=sum(work[place.index] for place in whole.operators if place.would_map),
        multiplications_left=sum(work[place.index] for place in cut.operators if place.would_map),
        crossings=whole.crossings,
        crossings_left=cut.crossings,
        refused=whole.refused,
    )


def priced_advice(advice: Iterable[Advice], findings: Findings, model: Model) -> tuple[Advice, ...]:
    """Returns what to try, with what it costs on the Edge TPU beside everything that leaves nodes float.

    Args:
        advice: Of the run.
        findings: The run.
        model: Its quantized model.

    Raises:
        ModelError: For a model that has been compiled already.
    """
    return tuple(
        dataclasses.replace(each, how=_joined(each.how, _words_on_price(each.nodes, findings, model))) if each.nodes else each
        for each in advice
    )


def priced_diagnosis(diagnosis: Diagnosis, findings: Findings, model: Model) -> Diagnosis:
    """Returns a diagnosis with what it costs on the Edge TPU to leave a suspect float, where that is what it suggests.

    Args:
        diagnosis: Of the run.
        findings: The run.
        model: Its quantized model.

    Raises:
        ModelError: For a model that has been compiled already.
    """
    suspects = tuple(
        dataclasses.replace(each, evidence=(*each.evidence, _words_on_price([each.node], findings, model)))
        if each.line.startswith("denylisted_nodes=")
        else each
        for each in diagnosis.suspects
    )
    return dataclasses.replace(diagnosis, suspects=suspects)


def _words_on_price(nodes: Sequence[str], findings: Findings, model: Model) -> str:
    try:
        price = float_price(model, operators_called(findings, model, nodes))
    except OptionError:  # a name of the float model alone: fused away, or computed otherwise
        return "what it costs on the Edge TPU is not known: the quantized model has no operator of that name"
    return f"left float, {price.words}" if price.lost else price.words


def _joined(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def operators_called(findings: Findings, model: Model, names: Iterable[str]) -> list[str | int]:
    """Returns the operators of a run's quantized model that its nodes stand for: positions, and names where none is known.

    A run calls its nodes as the float model does; a quantized model that came from elsewhere may call them otherwise.

    Args:
        findings: Of the run.
        model: Its quantized model.
        names: Of nodes, as any table of the run shows them.

    Raises:
        OptionError: For a name with ``…`` that several nodes fit.
    """
    places = _places_of_nodes(findings, model)
    full = [completed(name, {**places, **model.main.nodes}, "node") for name in names]
    return [places.get(name, name) for name in full]


def _places_of_nodes(findings: Findings, model: Model) -> dict[str, int]:
    """Returns the positions of operators in the quantized model by the names of the run's nodes; the surest source last."""
    producers = {model.main.tensors[output].name: operator.index for operator in model.main.operators
                 for output in operator.outputs}  # fmt: skip
    layers = findings.run.layers
    places = {layer.node: producers[layer.tensor_name] for layer in layers if layer.tensor_name in producers}
    places.update({layer.node: producers[layer.node] for layer in layers if layer.node in producers})
    for sensitivity in findings.sensitivity.values():
        places.update(zip(sensitivity.nodes, sensitivity.operators, strict=True))
    places.update({name: node.operator for node in findings.graph for name in node.nodes})
    return {name: place for name, place in places.items() if place < len(model.main.operators)}
