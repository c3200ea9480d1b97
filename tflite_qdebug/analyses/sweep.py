"""How a sweep over all nodes is cut into models that share what they can.

To quantize one node alone changes nothing before it: what stands there is computed once for all nodes, by the *base*, whose
values are handed on. What stands behind is cut into blocks: the *head* of a node goes from there to the end of its block, and
from then on all nodes of the block share one *tail*. So a node costs what follows it, and the weights are held by a few tails
instead of by as many models as there are nodes. The heads of a block are one model, which stays in the processor's cache.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence

from tflite_qdebug.edit.mixed import ACTIVATION, FLOAT, NODE, WEIGHTS, MixedModel, MixedModels, Node
from tflite_qdebug.errors import ModelError, OptionError

__all__ = ["Pass", "Sweep", "Variant", "plan_sweep"]

#: The form that a node alone has in each mode, and the form of all others.
FORMS = {"node": (NODE, FLOAT), "weights": (WEIGHTS, FLOAT), "activation": (ACTIVATION, FLOAT), "float": (FLOAT, NODE)}
# A head holds what is left of its block, a tail all that follows: short blocks make many tails, long ones large heads.
_BLOCK, _MOST_BLOCKS = 16, 12


@dataclasses.dataclass(frozen=True)
class Variant:
    """One node in another form than all others.

    Attributes:
        node: Its position among the nodes that are swept.
        head: From the beginning of the node's block to its end; nodes of one block share one model, with outputs for each.
        tail: Position of the tail behind it; -1 where the head gives the outputs.
    """

    node: int
    head: MixedModel
    tail: int


@dataclasses.dataclass(frozen=True)
class Pass:
    """What runs in one pass over the dataset.

    Attributes:
        variants: The nodes.
        tails: ``{position: model}``.
        memory: Bytes that one worker needs, estimated.
    """

    variants: tuple[Variant, ...]
    tails: dict[int, MixedModel]
    memory: int


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All that a sweep runs.

    Attributes:
        nodes: Those that are swept.
        base: The float model, or with mode ``float`` the quantized one, with every value that is handed on as an output.
        at: ``{value: tensor of the base}``.
        outputs: The values at which the error is measured.
        passes: How the nodes are parted, where they do not fit into memory at once.
    """

    nodes: tuple[Node, ...]
    base: bytes
    at: dict[int, int]
    outputs: tuple[int, ...]
    passes: tuple[Pass, ...]


def plan_sweep(
    models: MixedModels,
    mode: str,
    nodes: Collection[str] | None,
    outputs: Sequence[int],
    shapes: dict[int, tuple[int, ...]],
    memory: int,
) -> Sweep:
    """Cuts a sweep into models.

    Args:
        models: Puts them together.
        mode: One of `findings.MODES`.
        nodes: Names of the nodes to be swept; None: all that are quantized and lie before the outputs.
        outputs: The values at which the error is measured.
        shapes: ``{value: shape}`` of each value in a sample.
        memory: Bytes that one worker may take.

    Raises:
        ModelError: Where nothing is quantized that the outputs depend on.
        OptionError: For a node that is not, or does not fit into memory.
    """
    return _Planner(models, mode, outputs, shapes, memory).plan(nodes)


class _Planner:
    def __init__(
        self, models: MixedModels, mode: str, outputs: Sequence[int], shapes: dict[int, tuple[int, ...]], memory: int
    ) -> None:
        self._models, self._outputs, self._shapes, self._memory = models, tuple(outputs), shapes, memory
        self._mode, (self._form, self._rest) = mode, FORMS[mode]
        self._native = self._rest == NODE
        needed = self._needed()
        self._order = [value for value in models.order(self._rest) if value in needed]
        self._place = {value: position for position, value in enumerate(self._order)}
        self._readers: dict[int, list[int]] = {}
        for value in self._order:
            for feed in models.feeds(value, self._rest):
                self._readers.setdefault(feed, []).append(value)

    def _needed(self) -> set[int]:
        needed: set[int] = set()
        waiting = list(self._outputs)
        while waiting:
            value = waiting.pop()
            if value not in needed and self._models.node_of(value) is not None:
                needed.add(value)
                waiting += self._models.feeds(value, self._rest)
        return needed

    def plan(self, names: Collection[str] | None) -> Sweep:
        nodes = self._swept(names)
        cuts = self._cuts()
        tails = {position: self._tail(cut) for position, cut in enumerate(cuts[:-1])}
        blocks: dict[int, list[tuple[int, Node]]] = {}
        for position, node in enumerate(nodes):
            last = max(self._place[value] for value in node.values if value in self._place)
            blocks.setdefault(next(index for index, cut in enumerate(cuts) if last < cut), []).append((position, node))
        groups = [
            group for block in sorted(blocks) for group in self._groups(nodes, blocks[block], block, cuts, tails.get(block))
        ]
        variants = [variant for group in groups for variant in group]
        handed = {value for variant in variants for value in variant.head.inputs}
        handed |= {value for tail in tails.values() for value in tail.inputs} | set(self._outputs)
        form = self._rest
        at = {value: self._models.tensor_of(value, form) for value in handed if value not in self._models.inputs}
        graph = self._models.graph if self._native else self._models.floats.graph
        # An operator with several outputs keeps them all; a tensor cannot be input and output at once.
        base = self._models.exposed(form, [index for index in at.values() if index not in graph.subgraph.inputs])
        return Sweep(tuple(nodes), base, at, self._outputs, tuple(self._passes(groups, tails)))

    def _swept(self, names: Collection[str] | None) -> list[Node]:
        if isinstance(names, str) or (names is not None and not names):
            raise OptionError(f"got nodes={names!r}, expected a list of names, or None for all that are quantized")
        fit = [node for node in self._models.nodes if self._fits(node)]
        if names is None:
            if not fit:
                raise ModelError(f"nothing that the outputs depend on is quantized{self._part}, so no node can be sensitive")
            return fit
        asked = {self._models.node(name).operator: name for name in names}
        for operator, name in asked.items():
            if operator not in {node.operator for node in fit}:
                raise OptionError(
                    f"got node {name!r}, which is not quantized{self._part}, or which the outputs do not depend on"
                )
        return [node for node in fit if node.operator in asked]

    @property
    def _part(self) -> str:
        return {"weights": " in its weights", "activation": " in its input activations"}.get(self._mode, "")

    def _fits(self, node: Node) -> bool:
        if not any(value in self._place for value in node.values):
            return False
        if self._form == ACTIVATION:
            return node.quantized and any(self._models.graph.tensor(index).is_quantized for index in node.reads.values())
        return node.weighted if self._form == WEIGHTS else node.quantized

    def _size(self, value: int) -> int:
        return 4 * math.prod(self._shapes.get(value, (1,)))

    def _cuts(self) -> list[int]:
        """Returns where blocks end: positions in the order, where few bytes have to be handed on; the last is the end."""
        count = len(self._order)
        block = max(_BLOCK, -(-count // _MOST_BLOCKS))
        live = self._live()
        cuts: list[int] = []
        for middle in range(block, count - block // 2, block):
            around = range(max(middle - block // 2, (cuts or [0])[-1] + 1), min(middle + block // 2, count - 1))
            if around:
                cuts.append(min(around, key=lambda position: (live[position], abs(position - middle))))
        return [*cuts, count]

    def _live(self) -> list[int]:
        """Returns how many bytes have to be handed on over each position of the order."""
        change = [0] * (len(self._order) + 2)
        for value, readers in self._readers.items():
            start = self._place.get(value, -1) + 1
            change[start] += self._size(value)
            change[max(self._place[reader] for reader in readers) + 1] -= self._size(value)
        total, live = 0, []
        for step in change:
            total += step
            live.append(total)
        return live

    def _tail(self, cut: int) -> MixedModel:
        behind = [value for value in self._outputs if self._place.get(value, -1) >= cut]
        rest = self._rest
        return self._models.build(lambda _: rest, behind, self._order[:cut], native=self._native, shapes=self._shapes)

    def _variants(
        self, chosen: Sequence[tuple[int, Node]], block: int, cuts: list[int], tail: MixedModel | None
    ) -> list[Variant]:
        """Returns variants of one block, whose heads are one model: what they have in common is computed once."""
        form, rest = self._form, self._rest
        parts, reaching = [], []
        for _, node in chosen:
            changed = self._behind(node, cuts[block])
            wanted = [value for value in (tail.inputs if tail else ()) if value in changed]
            results = [value for value in self._outputs if value in changed and self._place[value] < cuts[block]]
            reaching.append(bool(wanted))

            def form_of(other: Node, operator: int = node.operator) -> str:
                return form if other.operator == operator else rest

            # A node left float that gives an output gives it as it is; only who reads it gets it rounded.
            given = wanted if self._native else list(dict.fromkeys([*wanted, *results]))
            parts.append((form_of, given, results if self._native else ()))
        before = self._order[: cuts[block - 1] if block else 0]
        heads = self._models.build_together(parts, before, native=self._native, shapes=self._shapes)
        return [
            Variant(position, head, block if reaches else -1)
            for (position, _), head, reaches in zip(chosen, heads, reaching, strict=True)
        ]

    def _behind(self, node: Node, cut: int) -> set[int]:
        """Returns what a node changes, up to a position of the order: its values, and those computed from them."""
        changed = {value for value in node.values if value in self._place}
        for position in range(min(map(self._place.__getitem__, changed)), cut):
            value = self._order[position]
            if any(feed in changed for feed in self._models.feeds(value, self._rest)):
                changed.add(value)
        return changed

    @property
    def _base_memory(self) -> int:
        return 2 * _memory_of(self._models.graph.model.data, self._shapes.values())

    def _memory_of_head(self, head: MixedModel) -> int:
        return _memory_of(head.data, [self._shapes.get(value, ()) for value in (*head.inputs, *head.outputs)])

    def _groups(
        self,
        nodes: Sequence[Node],
        chosen: Sequence[tuple[int, Node]],
        block: int,
        cuts: list[int],
        tail: MixedModel | None,
    ) -> Iterator[list[Variant]]:
        """Yields the nodes of a block, together if memory allows, else in halves of halves.

        Raises:
            OptionError: Where memory does not allow for a single one.
        """
        variants = self._variants(chosen, block, cuts, tail)
        memory = self._base_memory + self._memory_of_head(variants[0].head)
        memory += 0 if tail is None else _memory_of(tail.data, self._shapes.values())
        if memory <= self._memory:
            yield variants
            return
        if len(chosen) == 1:
            raise OptionError(
                f"got a memory budget of {self._memory / 1e6:.3g} MB for each worker; node {nodes[chosen[0][0]].name!r} "
                f"alone needs about {memory / 1e6:.3g} MB. Allow more, or use fewer workers"
            )
        half = len(chosen) // 2
        yield from self._groups(nodes, chosen[:half], block, cuts, tail)
        yield from self._groups(nodes, chosen[half:], block, cuts, tail)

    def _passes(self, groups: Sequence[list[Variant]], tails: dict[int, MixedModel]) -> Iterator[Pass]:
        """Yields as few passes as memory allows."""
        chosen: list[Variant] = []
        held: set[int] = set()
        memory = self._base_memory

        def needed(group: list[Variant]) -> int:
            new = {variant.tail for variant in group} - held - {-1}
            return self._memory_of_head(group[0].head) + sum(_memory_of(tails[t].data, self._shapes.values()) for t in new)

        for group in groups:
            if chosen and memory + needed(group) > self._memory:
                yield Pass(tuple(chosen), {tail: tails[tail] for tail in sorted(held)}, memory)
                chosen, held, memory = [], set(), self._base_memory
            memory += needed(group)
            chosen += group
            held |= {variant.tail for variant in group} - {-1}
        yield Pass(tuple(chosen), {tail: tails[tail] for tail in sorted(held)}, memory)


def _memory_of(data: bytes, shapes: Collection[Sequence[int]]) -> int:
    """Estimates what an opened model takes: its file, its weights packed for the kernels, its activations."""
    return 2 * len(data) + 4 * sum(math.prod(shape) for shape in shapes)
