"""Which nodes are left float: those that give back most, as few as it takes, and what is done where no single one helps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import faulty_models
import planting

from tflite_qdebug.analyses.mixed_pair import Task
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.errors import ModelError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import UNITS, Candidate, Measured, Recipe
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.remedies import ranking, spending
from tflite_qdebug.remedies.judging import Judge
from tflite_qdebug.remedies.logbook import Logbook
from tflite_qdebug.remedies.ranking import Gains, Ranking
from tflite_qdebug.remedies.sample_sets import SampleSets
from tflite_qdebug.remedies.scoring import Scored, Scorer
from tflite_qdebug.remedies.spending import Spending, Trial
from tflite_qdebug.remedies.target import parse_target
from tflite_qdebug.remedies.workshop import Workshop, recipe_key

NODES = tuple("abcdefgh")


class World:
    """A model whose error is a function of which nodes are float: it needs no model to be searched."""

    def __init__(
        self,
        error: Callable[[frozenset[str]], float],
        damage: Sequence[str] = NODES,
        kind: str = "float",
        units: Sequence[str] = UNITS,
    ) -> None:
        self.error, self.damage, self.tried = error, damage, list[tuple[str, ...]]()
        self.judge = Judge(parse_target("mse <= 0.1", {}), "mse")
        for name, left in (("float", NODES), ("int8", ())):
            self.judge.candidates.append(self.candidate(name, Recipe(), left))
        self.judge.set_goals()
        self.judge.scored[recipe_key(Recipe())] = self.scored(())
        self.notes: list[str] = []
        self.kind = kind
        self.spending = Spending(kind, self.judge, self, self.attempt, self.notes.append, units)  # type: ignore[arg-type]

    def candidate(self, name: str, recipe: Recipe, left: Collection[str]) -> Candidate:
        value = self.error(frozenset(left))
        found = Candidate(name, "float nodes", recipe, 1000, {"mse": Measured(value)}, float_operators=len(left))
        return dataclasses.replace(found, met=value <= 0.1)

    def scored(self, left: Collection[str]) -> Scored:
        return Scored(self.error(frozenset(left)), np.zeros(0), {}, {})

    def attempt(self, trials: Sequence[Trial]) -> list[Candidate | None]:
        found: list[Candidate | None] = []
        for name, _, recipe in trials:
            left = recipe.int16_nodes if self.kind == "int16" else recipe.float_nodes
            self.tried.append(left)
            self.judge.scored[recipe_key(recipe)] = self.scored(left)
            found.append(self.candidate(name, recipe, left))
            self.judge.candidates.append(found[-1])  # type: ignore[arg-type]
        return found

    def by_damage(self, recipe: Recipe) -> dict[str, float]:
        return {name: 1e-3 * (len(self.damage) - position) for position, name in enumerate(self.damage)}

    def blocks(self, recipe: Recipe) -> list[tuple[str, ...]]:
        return [("a", "b"), ("c", "d", "e"), ("f",), ("g", "h")]

    def types(self, recipe: Recipe) -> dict[str, str]:
        return {name: "ADD" if name in "gh" else f"OP_{name}" for name in NODES}

    def by_gain(self, recipe: Recipe, left: tuple[str, ...]) -> Gains:
        error = self.error(frozenset(left))
        gains = {name: error - self.error(frozenset(left) | {name}) for name in self.damage if name not in left}
        return Gains(error, dict(sorted(gains.items(), key=lambda item: -item[1])))

    def best(self) -> tuple[str, ...]:
        recipe = self.judge.candidates[self.judge.best()].recipe
        return recipe.int16_nodes if self.kind == "int16" else recipe.float_nodes


def needs(*sets: str) -> Callable[[frozenset[str]], float]:
    """Returns an error that each set of nodes takes its share of, once all of the set are float."""
    return lambda left: 1.0 - sum(set(one) <= left for one in sets) / len(sets)


@pytest.mark.parametrize("kind", ["float", "int16"])
def test_step_by_step_fewer_are_found_than_by_damage(kind: str) -> None:
    # By damage the two that are to be float are the first and the last but one.
    world = World(needs("a", "g"), kind=kind)
    world.spending.run()
    assert set(world.best()) == {"a", "g"}


def test_what_helps_only_together_is_found() -> None:
    # No single node gives anything back, nor do two: what does most damage alone is added nevertheless.
    world = World(needs("abc"), damage="dcbaefgh")
    world.spending.run()
    assert set(world.best()) == {"a", "b", "c"}  # d was added as well, and taken back


def test_all_of_one_type_are_tried() -> None:
    world = World(needs("gh"))
    world.spending.run()
    assert set(world.best()) == {"g", "h"}
    assert ("g", "h") in world.tried


def test_by_block_alone_blocks_stay_whole() -> None:
    # The block of c does the least damage of the three that have several nodes, and not all of it is needed.
    world = World(needs("c"), damage="abghfcde", units=["block"])
    world.spending.run()
    assert set(world.best()) == {"c", "d", "e"}
    assert {frozenset(one) for one in world.tried} <= {frozenset(one) for one in ("ab", "gh", "cde", "abgh", "abghcde")}


def test_by_block_fewer_blocks_are_found() -> None:
    # With one block it is not done, with all three it is; two suffice.
    world = World(needs("a", "h"), damage="abghfcde", units=["block"])
    world.spending.run()
    assert set(world.best()) == {"a", "b", "g", "h"}


@pytest.mark.parametrize("unit", UNITS)
def test_only_units_that_were_asked_for_are_spent(unit: str) -> None:
    world = World(lambda left: 1.0, units=[unit])
    world.spending.run()
    whole = {"type": [{"g", "h"}], "block": [set("ab"), set("cde"), set("gh")]}.get(unit, [{name} for name in NODES])
    assert world.tried
    for left in world.tried:
        assert set(left) == set().union(*(one for one in whole if one <= set(left)))


def test_unneeded_nodes_are_taken_back() -> None:
    # By damage alone it takes seven, of which two are needed.
    world = World(needs("c", "f"), damage="abcdefgh")
    world.by_gain = lambda recipe, left: Gains(1.0, {})  # type: ignore[method-assign]
    world.spending.run()
    assert set(world.best()) == {"c", "f"}


def test_where_gains_cannot_be_measured_that_is_told() -> None:
    def broken(recipe: Recipe, left: tuple[str, ...]) -> Gains:
        raise ModelError("they are no pair")

    world = World(needs("c", "f"))
    world.by_gain = broken  # type: ignore[method-assign]
    world.spending.run()
    assert set(world.best()) == {"c", "f"}
    assert "they are no pair" in world.notes[0]


def test_out_of_reach_all_is_tried() -> None:
    world = World(lambda left: 1.0)
    world.spending.run()
    assert NODES in {tuple(sorted(one)) for one in world.tried}
    assert world.judge.candidates[world.judge.best()].recipe == Recipe()


# -- gains --

BUILTIN = Backend(kernels="builtin", workers=1, isolate=False)


@pytest.fixture(scope="module")
def broken() -> tuple[faulty_models.Pair, list[str]]:
    """Two broken layers, of which the second does more damage."""
    pair = faulty_models.sound()
    model = Model(pair.quantized)
    chosen = [planting.plantable(model)[position] for position in (1, 3)]
    names = [model.main.tensors[operator.outputs[0]].name for operator in chosen]
    for operator in chosen:
        model = Model(planting.plant(model, "swapped_channels", operator).data)
    return pair._replace(quantized=model.data), names


def ranked(pair: faulty_models.Pair) -> Ranking:
    floats = load_float_model(pair.floating)
    data = SampleSets(floats, pair.samples, pair.samples, None, None)
    scorer = Scorer(floats.model, data.opened(pair.samples, "debug dataset"), Task({}, 0), BUILTIN, False)
    workshop = Workshop(floats, pair.samples, quantized_model=pair.quantized, backend=BUILTIN, progress=False)
    return Ranking(workshop, data, scorer, Logbook(None, ""), None, False)


def error_by_hand(model: bytes, pair: faulty_models.Pair) -> float:
    """Squared error over squared float values, over all samples."""
    error = size = 0.0
    for sample in pair.samples:
        outputs = []
        for data in (pair.floating, model):
            interpreter = Interpreter(data, kernels="builtin")
            interpreter.invoke(sample)
            (info,) = interpreter.outputs
            values = interpreter.read(info.index)
            outputs.append(values if info.quantization is None else info.quantization.dequantize(values))
        error += float(np.sum((outputs[1].astype(np.float64) - outputs[0]) ** 2))
        size += float(np.sum(outputs[0].astype(np.float64) ** 2))
    return error / size


def test_a_gain_is_the_difference_of_two_models(broken: tuple[faulty_models.Pair, list[str]]) -> None:
    pair, names = broken
    found = ranked(pair)
    workshop = found._workshop
    first = found.by_gain(Recipe(), ())
    assert first.error == pytest.approx(error_by_hand(pair.quantized, pair), rel=1e-4)
    assert list(first.by_node.values()) == sorted(first.by_node.values(), reverse=True)
    for name in names:
        without = error_by_hand(workshop.build(Recipe(float_nodes=(name,))), pair)
        assert first.by_node[name] == pytest.approx(first.error - without, rel=1e-3)
    # With one of them float, the other comes first, and gives all back that is left to be given.
    chosen = next(iter(first.by_node))
    assert chosen in names
    (other,) = set(names) - {chosen}
    second = found.by_gain(Recipe(), (chosen,))
    assert next(iter(second.by_node)) == other
    assert chosen not in second.by_node
    assert second.error == pytest.approx(first.error - first.by_node[chosen], rel=1e-3)
    both = error_by_hand(workshop.build(Recipe(float_nodes=(chosen, other))), pair)
    assert second.by_node[other] == pytest.approx(second.error - both, rel=1e-3)


def test_what_was_measured_is_not_measured_again(
    broken: tuple[faulty_models.Pair, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ranked(broken[0])
    first, order = found.by_gain(Recipe(), ()), found.by_damage(Recipe())

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ranking, "sensitivity", refuse)
    assert found.by_gain(Recipe(), ()) == first
    assert found.by_damage(Recipe()) == order


@pytest.mark.parametrize(
    ("outputs", "error", "gains"),
    [
        # float value 2: squared 4; errors 1, 0.5 and 2 as squares 1, 0.25, 4
        ({"": 3.0, "a": 2.5, "b": 4.0}, 0.25, {"a": 0.25 - 0.0625, "b": 0.25 - 1.0}),
        ({"": np.nan, "a": np.nan, "b": 3.0}, np.inf, {"b": np.inf, "a": 0.0}),
        ({"": 3.0, "a": np.nan, "b": 2.0}, 0.25, {"b": 0.25, "a": -np.inf}),
    ],
)
def test_gains_by_hand(outputs: dict[str, float], error: float, gains: dict[str, float]) -> None:
    from tflite_qdebug.findings import Sensitivity

    names = [*(name for name in outputs if name), ""]
    errors = OutputErrors(names, ["out"])
    reference = np.array([2.0], np.float32)
    rows = [[measure_output(np.array([outputs[name]], np.float32), reference)] for name in names]
    errors.add(0, np.array(rows))
    found = Sensitivity("float", tuple(names[:-1]), ("ADD",) * 2, (0, 1), errors, "sqnr_db")
    worked_out = ranking._gains(found, set(names))
    assert worked_out.error == pytest.approx(error)
    assert worked_out.by_node == pytest.approx(gains)
    assert list(worked_out.by_node) == list(gains) or outputs[""] == 3.0


def test_portions_grow_with_what_is_float_already() -> None:
    world = World(lambda left: 1.0 - len(left) / 200.0 * (25.0 if left <= set(NODES) else 1.0))
    steps = [len(left) for left in world.spending._steps(Recipe(), world.by_damage(Recipe()))]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    many = [f"n{i}" for i in range(200)]
    world.damage = many
    steps = [len(left) for left in world.spending._steps(Recipe(), world.by_damage(Recipe()))]
    assert steps[:4] == [8, 16, 24, 32]
    assert steps[-1] == 200
    assert max(b / a for a, b in itertools.pairwise(steps[4:])) <= 1.0 + 1.0 / spending._OF_FLOAT
