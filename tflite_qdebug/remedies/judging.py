"""Which of the candidates is the best one, by a target: what meets it, what that costs, and what is near where nothing does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tflite_qdebug.analyses.evaluation import METRICS as ACCURACIES
from tflite_qdebug.errors import OptionError
from tflite_qdebug.outcome import Candidate
from tflite_qdebug.output_error import BADNESS
from tflite_qdebug.remedies.scoring import Scored
from tflite_qdebug.remedies.target import Clause, Target
from tflite_qdebug.remedies.workshop import recipe_key

__all__ = ["Judge", "value_of"]

# From the middle of a normal distribution to the end of the interval that holds 90 % of it.
_STANDARD_ERRORS = 1.645
# Sizes that differ by less are as good as equal.
_SAME_SIZE = 0.001


class Judge:
    """Compares candidates.

    Attributes:
        target: What is to be reached.
        candidates: The float model first, then plain int8, then all others in the order in which they were tried.
        scored: What was measured of each but the float model, by the key of its recipe.
        goals: The numbers to be reached, by the words of their conditions.
        margin: By how many standard errors an accuracy has to be within the target; to be set where many candidates are much
            alike, of which the best is mostly the luckiest.
    """

    def __init__(self, target: Target, default_metric: str) -> None:
        """Knows no candidate yet.

        Args:
            target: What is to be reached.
            default_metric: What the front is of where the target names no metric.
        """
        self.target, self._default = target, default_metric
        self.candidates: list[Candidate] = []
        self.scored: dict[str, Scored] = {}
        self.goals: dict[str, float] = {}
        self.margin = 0.0

    def set_goals(self) -> None:
        """Works out the goals from the float model and plain int8, the first two candidates.

        Raises:
            OptionError: Where a metric is none of this model, or there is no such number.
        """
        self.goals = {str(clause): self._goal(clause) for clause in self.target.clauses if clause.metric != "time"}

    def _goal(self, clause: Clause) -> float:
        """Returns the number to be reached.

        Raises:
            OptionError: Where the metric is none of this model, or there is no such number.
        """
        floats, plain = self.candidates[0], self.candidates[1]
        values = [value_of(candidate, clause.metric) for candidate in (floats, plain)]
        if math.isnan(values[1]) and clause.metric not in plain.metrics and clause.metric != "latency":
            raise OptionError(
                f"target '{clause}': {clause.metric} does not apply to this model's outputs; expected one of "
                f"{', '.join(plain.metrics)}"
            )
        goal = clause.goal(*values)
        if not math.isfinite(goal):
            raise OptionError(f"target '{clause}': that is {goal}, which no model reaches or misses; expected a finite number")
        most = 1.0 if clause.metric in (*ACCURACIES, "agreement") else math.inf
        if clause.at_least and goal > most:
            raise OptionError(
                f"target '{clause}': that is {100 * goal:.4g} %, as float has {100 * values[0]:.4g} %; expected at most 100 %"
            )
        return goal

    def is_met(self, candidate: Candidate, clauses: Sequence[Clause]) -> bool:
        """Returns whether a candidate meets conditions, and not by luck alone."""
        return all(
            clause.met(value_of(candidate, clause.metric), self.goals[str(clause)]) and not self._is_luck(candidate, clause)
            for clause in clauses
        )

    def _is_luck(self, candidate: Candidate, clause: Clause) -> bool:
        """Returns whether an accuracy is within the target by chance alone.

        Some hundred samples cannot tell half a point. Where the interval reaches below the target, the probabilities that the
        float model gives to the answers are asked as well: what it expects to be lost varies much less than what is.
        """
        if clause.metric != "top_1" or "expected_loss" not in candidate.metrics or "top_1" not in candidate.differences:
            return False
        allowed = value_of(self.candidates[0], "top_1") - self.goals[str(clause)]
        if allowed <= 0.0 or candidate.differences["top_1"].low >= -allowed:
            return False
        expected = candidate.metrics["expected_loss"]
        error = (expected.high - expected.low) / (2.0 * _STANDARD_ERRORS)
        return expected.value + (0.0 if math.isnan(error) else self.margin * error) > allowed

    @property
    def main(self) -> str:
        """The metric that the front is of."""
        if self.target.quality:
            return self.target.quality[0].metric
        return self._default

    def large_is_good(self, metric: str) -> bool:
        """Returns whether more of a metric is better, as the target has it or else as it is by itself."""
        asked = {clause.metric: clause.at_least for clause in self.target.clauses}
        return asked.get(metric, BADNESS.get(metric, -1.0) < 0.0)

    def objective(self, candidate: Candidate | None) -> float:
        """Returns what the search lowers; infinite for what could not be made."""
        return math.inf if candidate is None else self.scored[recipe_key(candidate.recipe)].objective

    def best_integer(self) -> Candidate:
        """Returns the model without anything spent whose outputs are nearest to the float model's."""
        made = [one for one in self.candidates[1:] if not one.recipe.trained]
        integer = [one for one in made if not one.recipe.float_nodes and not one.recipe.int16_nodes]
        return min(integer, key=self.objective)

    def cost(self, candidate: Candidate) -> tuple[Any, ...]:
        """Returns what makes one candidate cheaper than another: size, then operators in float, then its error."""
        plain = self.candidates[1].size
        size = round(candidate.size / plain / _SAME_SIZE)
        return max(size, round(1.0 / _SAME_SIZE)), candidate.float_operators, size, self.objective(candidate)

    def best(self) -> int:
        """Returns the position of the candidate that would be handed back now."""
        budgets = [clause for clause in self.target.budgets if clause.metric != "latency"]

        def key(position: int) -> tuple[Any, ...]:
            candidate = self.candidates[position]
            if candidate.met and self.target.quality:
                return (0, *self.cost(candidate))
            within = self.is_met(candidate, budgets)
            return (1 if within else 2, *self._shortfall(candidate), self.objective(candidate), *self.cost(candidate))

        return min(range(1, len(self.candidates)), key=key)

    def _shortfall(self, candidate: Candidate) -> tuple[float, ...]:
        """Returns by how much a candidate misses each condition on quality, the main one first."""
        missing = []
        for clause in self.target.quality:
            value, goal = value_of(candidate, clause.metric), self.goals[str(clause)]
            gap = (goal - value) if clause.at_least else (value - goal)
            if clause.metric == "top_1" and "expected_loss" in candidate.metrics:
                # Which of two misses by less is a matter of a few samples; what is expected to be lost is less so.
                allowed = value_of(self.candidates[0], "top_1") - goal
                gap = candidate.metrics["expected_loss"].value - allowed
            missing.append(math.inf if math.isnan(gap) else max(0.0, gap))
        return tuple(missing)

    def front(self) -> tuple[int, ...]:
        """Returns the candidates that none beats in the main metric at the same size or a smaller one."""
        sign = 1.0 if self.large_is_good(self.main) else -1.0
        order = sorted(
            range(1, len(self.candidates)),
            key=lambda i: (self.candidates[i].size, -sign * value_of(self.candidates[i], self.main), i),
        )
        front, best = [], -math.inf
        for position in order:
            value = sign * value_of(self.candidates[position], self.main)
            if value > best:
                front.append(position)
                best = value
        return tuple(front)


def value_of(candidate: Candidate, metric: str) -> float:
    """Returns a metric or a cost of a candidate; NaN where it has none."""
    costs = {"size": candidate.size, "latency": candidate.milliseconds, "float_operators": candidate.float_operators}
    if metric in costs:
        return float(costs[metric])
    return candidate.metrics[metric].value if metric in candidate.metrics else math.nan
