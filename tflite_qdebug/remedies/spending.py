"""Leaves nodes float, or in 16 bits: as few as it takes to reach the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from tflite_qdebug.errors import ModelError
from tflite_qdebug.outcome import UNITS, Candidate, Recipe
from tflite_qdebug.remedies.judging import Judge
from tflite_qdebug.remedies.ranking import Ranking
from tflite_qdebug.remedies.workshop import recipe_key

__all__ = ["Spending", "Trial"]

#: A name, a kind and a recipe.
Trial = tuple[str, str, Recipe]
_COUNTS = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 50, 65, 80, 100, 150, 250, 400, 700, 1000)
# How many nodes are added at once: of all nodes one in so many, and of those that are float already one in so many.
_OF_ALL, _OF_FLOAT = 25, 4
# So many of the blocks that do most damage are tried alone.
_SINGLE_BLOCKS = 8
# How often nodes are taken back: each time as many models are measured as there are nodes left.
_PRUNINGS = 3


class Spending:
    """Looks for the fewest nodes that have to be float, in four ways.

    All nodes of one operator type. Whole blocks, those first whose nodes do most damage. The most sensitive nodes first: as
    many as it takes of those that do most damage where they alone are quantized. And step by step: those that do most damage
    alone, or give back most where the ones found so far are float. These do not see the same. A tensor between two nodes is
    quantized until both of them are float, so that neither gives anything back alone, but their block does; and what is wrong
    in a node may show only when the nodes before it are right.
    """

    def __init__(
        self,
        kind: str,
        judge: Judge,
        ranking: Ranking,
        attempt: Callable[[Sequence[Trial]], list[Candidate | None]],
        note: Callable[[str], None],
        units: Sequence[str] = UNITS,
    ) -> None:
        """Tries nothing yet.

        Args:
            kind: ``float`` or ``int16``.
            judge: Knows what was tried.
            ranking: Ranks nodes.
            attempt: Measures models; returns one candidate for each, None where it cannot be made.
            note: Tells the reader.
            units: Of `UNITS`, what is left float at once.
        """
        self._units = units
        self._kind, self._judge, self._ranking, self._attempt, self._note = kind, judge, ranking, attempt, note

    def run(self) -> None:
        """Tries what there is to be tried; the judge knows the result."""
        # Many that are much alike are compared, of which the best is mostly the luckiest.
        self._judge.margin = 1.0
        bases = [(recipe, self._ranking.by_damage(recipe)) for recipe in self._bases()]
        found: list[tuple[Recipe, Candidate]] = []
        by_node = (self._most_sensitive, self._step_by_step)
        ways = {"type": (self._by_type,), "block": (self._by_block,), "node": by_node}
        for way in (way for unit in UNITS if unit in self._units for way in ways[unit]):
            for recipe, damage in bases:
                if way == self._step_by_step and found and recipe != bases[0][0]:
                    break  # one step takes as long as all that was tried in the other ways
                fewest = min((len(self._nodes(one.recipe)) for _, one in found), default=len(damage) + 1)
                chosen = way(recipe, damage, fewest)
                found += [] if chosen is None else [(recipe, chosen)]
        if found and "node" in self._units:
            self._pruned(*min(found, key=lambda one: self._judge.cost(one[1])))

    def _bases(self) -> list[Recipe]:
        """Returns what nodes are left float of: the best integer model, and the best whose weights and biases are as they were.

        Fitted weights and biases make good what the layers before get wrong. Where these are float, nothing is wrong, and what
        makes it good is an error of its own.
        """
        best = self._judge.best_integer().recipe
        plain = dataclasses.replace(best, rounded=False, biases_corrected=False, tuned={})
        return [best] if best == plain else [plain, best]

    def _trial(self, recipe: Recipe, nodes: Sequence[str], int8_weights: bool = True) -> Trial:
        count = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"
        if self._kind == "int16":
            return f"{recipe.in_words()} + {count} 16-bit", "16x8", dataclasses.replace(recipe, int16_nodes=tuple(nodes))
        name = f"{recipe.in_words()} + {count} float" + (", int8 weights" if int8_weights else "")
        return name, "float nodes", dataclasses.replace(recipe, float_nodes=tuple(nodes), int8_weights=int8_weights)

    def _trials(self, recipe: Recipe, nodes: Sequence[str]) -> list[Trial]:
        """Returns both forms of float nodes, one with weights kept as int8 in the file; 16 bits have one form."""
        return [self._trial(recipe, nodes, stored) for stored in ((True, False) if self._kind == "float" else (True,))]

    def _nodes(self, recipe: Recipe) -> tuple[str, ...]:
        return recipe.int16_nodes if self._kind == "int16" else recipe.float_nodes

    def _cheapest(self, candidates: Sequence[Candidate | None]) -> Candidate | None:
        """Returns the cheapest of those that meet the target."""
        return min([one for one in candidates if one is not None and one.met], key=self._judge.cost, default=None)

    # -- all of one type --

    def _by_type(self, recipe: Recipe, damage: Mapping[str, float], fewest: int) -> Candidate | None:
        types = self._ranking.types(recipe)
        trials = []
        for op_name in dict.fromkeys(types[name] for name in damage):
            nodes = [name for name in damage if types[name] == op_name]
            if 1 < len(nodes) < min(len(damage), fewest):
                words, kind, changed = self._trial(recipe, nodes)
                trials.append((f"{words}, all {op_name}", kind, changed))
        return self._cheapest(self._attempt(trials))

    # -- whole blocks --

    def _by_block(self, recipe: Recipe, damage: Mapping[str, float], fewest: int) -> Candidate | None:
        """Leaves whole blocks float: each that may suffice alone, then more and more, those that do most damage first."""
        blocks = [[name for name in block if name in damage] for block in self._ranking.blocks(recipe)]
        # Errors that do not depend on each other add up as squares, in which the damage is measured.
        blocks = sorted((block for block in blocks if len(block) > 1), key=lambda block: -sum(damage[name] for name in block))
        if not blocks:
            return None
        counts = [count for count in _COUNTS if count < len(blocks)] + [len(blocks)]
        sets = [*([block] for block in blocks[1:_SINGLE_BLOCKS]), *(blocks[:count] for count in counts)]
        chosen = self._cheapest(self._attempt(self._block_trials(recipe, sets, fewest)))
        if chosen is None:
            return None
        enough = next((count for count in counts if _joined(blocks[:count]) == self._nodes(chosen.recipe)), 0)
        below = max((count for count in counts if count < enough), default=0)
        between = [blocks[:count] for count in range(below + 1, enough)]
        return self._cheapest([chosen, *self._attempt(self._block_trials(recipe, between, fewest))])

    def _block_trials(self, recipe: Recipe, sets: Sequence[Sequence[Sequence[str]]], fewest: int) -> list[Trial]:
        trials = []
        for blocks in sets:
            nodes = _joined(blocks)
            if len(nodes) < fewest:
                words, kind, changed = self._trial(recipe, nodes)
                trials.append((f"{words}, {len(blocks)} {'block' if len(blocks) == 1 else 'blocks'}", kind, changed))
        return trials

    # -- the most sensitive first --

    def _most_sensitive(self, recipe: Recipe, damage: Mapping[str, float], fewest: int) -> Candidate | None:
        order = list(damage)
        counts = [count for count in _COUNTS if count < min(len(order), fewest)]
        counts += [len(order)] * (0 < len(order) < fewest)
        self._attempt([trial for count in counts for trial in self._trials(recipe, order[:count])])
        return self._narrowed(recipe, order) if order and self._judge.target.quality else None

    def _narrowed(self, recipe: Recipe, order: Sequence[str]) -> Candidate | None:
        """Looks for the fewest nodes that reach the target; None where no number does.

        The error is no smooth function of how many nodes are float, so that what lies between the last number that does not and
        the first that does is tried in portions, and not by halves alone.
        """
        while True:
            spent = [
                one for one in self._judge.candidates if self._nodes(one.recipe) and self._is_prefix(one.recipe, recipe, order)
            ]
            fewest = self._cheapest(spent)
            if fewest is None:
                return None
            count = len(self._nodes(fewest.recipe))
            below = max((len(self._nodes(one.recipe)) for one in spent if len(self._nodes(one.recipe)) < count), default=0)
            between = range(below + 1, count)
            if not between:
                return fewest
            step = max(1, len(between) // 8)
            tried = [self._trial(recipe, order[:number], fewest.recipe.int8_weights) for number in between[::step]]
            if not any(self._attempt(tried)):  # none of them can be made
                return fewest

    def _is_prefix(self, recipe: Recipe, base: Recipe, order: Sequence[str]) -> bool:
        nodes = self._nodes(recipe)
        alone = dataclasses.replace(recipe, float_nodes=(), int16_nodes=(), int8_weights=False)
        return recipe_key(alone) == recipe_key(base) and list(nodes) == list(order[: len(nodes)])

    # -- step by step --

    def _step_by_step(self, recipe: Recipe, damage: Mapping[str, float], fewest: int) -> Candidate | None:
        """Adds some nodes at a time, until the target is met or no fewer nodes meet it."""
        for left in self._steps(recipe, damage):
            if len(left) >= fewest:
                return None
            chosen = self._cheapest(self._attempt(self._trials(recipe, left)))
            if chosen is not None:
                return chosen
        return None

    def _steps(self, recipe: Recipe, damage: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
        """Yields more and more nodes."""
        left: tuple[str, ...] = ()
        while len(left) < len(damage):
            count = max(1, len(damage) // _OF_ALL, len(left) // _OF_FLOAT)
            try:
                gains = self._ranking.by_gain(recipe, left).by_node
            except ModelError as error:
                self._note(f"with {len(left)} nodes float, what others give back cannot be measured: {error}")
                return
            # Both in the same unit: a share of the squared error at the outputs.
            value = {name: max(alone, gains.get(name, 0.0)) for name, alone in damage.items() if name not in left}
            left += tuple(sorted(value, key=lambda name: -value[name])[:count])
            yield left

    # -- fewer --

    def _pruned(self, recipe: Recipe, chosen: Candidate) -> None:
        """Takes back nodes that proved unneeded, as many as the target allows for."""
        for _ in range(_PRUNINGS):
            nodes = self._nodes(chosen.recipe)
            without = {name: [other for other in nodes if other != name] for name in nodes}
            int8_weights = chosen.recipe.int8_weights
            tried = self._attempt([self._without(recipe, rest, int8_weights) for rest in without.values() if rest])
            by_node = dict(zip(without, tried, strict=False))
            fit = [name for name, one in by_node.items() if one is not None and one.met]
            fit.sort(key=lambda name: self._judge.objective(by_node[name]))
            if not fit:
                return
            # All that can be missed alone, then fewer of them: together they may be missed after all.
            sets = [[name for name in nodes if name not in fit[:count]] for count in range(1, len(fit) + 1)]
            found = self._cheapest(self._attempt([self._without(recipe, rest, int8_weights) for rest in sets if rest]))
            chosen = chosen if found is None else found
            if found is None or not 1 < len(self._nodes(chosen.recipe)) < len(nodes):
                return

    def _without(self, recipe: Recipe, nodes: Sequence[str], int8_weights: bool) -> Trial:
        name, kind, changed = self._trial(recipe, nodes, int8_weights)
        return f"{name}, pruned", kind, changed


def _joined(blocks: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block)
