"""The blocks of a model: what can be left float as one piece, with one conversion before it and one behind.

Residual, inverted-residual and attention blocks have this in common: all that comes after depends on one value alone, and this
value is small beside what is between, or as small as its like. So they are found by their structure. Names would tell as well
where the authors of a model gave such, which the converter has often joined or lost.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator

__all__ = ["Block", "blocks_of", "find_blocks"]

# What belongs to the layer before it.
_FOLLOWING = (
    *("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG", "PRELU", "RELU", "RELU6", "RELU_0_TO_1"),
    *("RELU_N1_TO_1", "RSQRT", "SQRT", "SQUARE", "TANH"),
)
_JOINING = ("ADD", "CONCATENATION", "SUB")


@dataclasses.dataclass(frozen=True)
class Block:
    """A stretch of a model between two values on which all that follows depends.

    Attributes:
        name: What the names of its nodes have in common, where no other block has it too; else its first and its last node.
        nodes: Names of its operators' first outputs, as a denylist takes them, in execution order.
    """

    name: str
    nodes: tuple[str, ...]


def find_blocks(model: Any) -> tuple[Block, ...]:
    """Finds the blocks of a float model.

    A model is cut behind each value that alone is read later (a bottleneck), where branches join in it, or where it is not
    larger than the bottlenecks before and behind it; but not between a layer and its activation function.

    Args:
        model: Anything that `load_float_model` takes.

    Returns:
        The blocks in execution order; together they have all operators of the main subgraph that compute real numbers, once
        each. A plain chain of layers whose values are all of one size has blocks of one layer.

    Raises:
        ModelError: Where the model cannot be read.

    Example:
        ``calibrated.quantize("int8", denylisted_nodes=find_blocks(float_model)[3].nodes)``
    """
    return blocks_of(load_float_model(model).model)


def blocks_of(model: Model) -> tuple[Block, ...]:
    """Finds the blocks of a float model that has been read, see `find_blocks`."""
    graph = Graph(model)
    operators = [operator for operator in graph.operators if operator.outputs and graph.computes(operator)]
    ends = _ends(graph, operators)
    starts = [0, *(end + 1 for end in ends)]
    stretches = [operators[start : end + 1] for start, end in zip(starts, [*ends, len(operators) - 1], strict=True)]
    nodes = [tuple(graph.tensor(operator.outputs[0]).name for operator in stretch) for stretch in stretches if stretch]
    return tuple(Block(name, names) for name, names in zip(_names(nodes), nodes, strict=True))


def _ends(graph: Graph, operators: Sequence[Operator]) -> list[int]:
    """Returns the positions of the operators behind which a model is cut."""
    found = _bottlenecks(graph, operators)
    sizes = [math.prod(max(1, length) for length in graph.tensor(value).shape) for _, value in found]
    ends = []
    for place, (position, value) in enumerate(found):
        around = sizes[max(0, place - 1) : place + 2]
        readers = graph.readers(value)
        follows = len(readers) == 1 and readers[0].name in _FOLLOWING
        if not follows and (sizes[place] == min(around) or operators[position].name in _JOINING):
            ends.append(position)
    return ends


def _bottlenecks(graph: Graph, operators: Sequence[Operator]) -> list[tuple[int, int]]:
    """Returns each position behind which only one value is still read, and that value."""
    last: dict[int, int] = {}
    for position, operator in enumerate(operators):
        for root in graph.activations(operator).values():
            if graph.is_numeric(root):
                last[root] = position
    live = {root for root in last if graph.producer(root) is None}
    found = []
    for position, operator in enumerate(operators):
        live.update(output for output in operator.outputs if output in last)
        live = {root for root in live if last[root] > position}
        if len(live) == 1:
            found.append((position, next(iter(live))))
    return found


def _names(stretches: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns what to call stretches of nodes: what their names begin with, where that tells them apart."""
    # A fused operator has the names of all that it was made of.
    short = [[name.split(";")[0] for name in names] for names in stretches]
    every = [name for names in short for name in names]
    found = []
    for names in short:
        prefix = _common(names)
        alone = prefix and sum(name.startswith(prefix) for name in every) == len(names)
        found.append(prefix if alone else names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}")
    return found


def _common(names: Sequence[str]) -> str:
    """Returns what names have in common, whole words of it."""
    first, last = min(names), max(names)
    length = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    if any(re.search(r"[^\W_]$", name[:length]) and re.match(r"[^\W_]", name[length:]) for name in names):
        return re.sub(r"[^\W_]+$", "", first[:length]).rstrip("/_;.")  # not the half of a word
    return first[:length].rstrip("/_;.")
