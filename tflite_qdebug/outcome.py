"""What a search for remedies tried and found, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size, number

__all__ = ["SPENDING", "UNITS", "Candidate", "Difference", "Measured", "Outcome", "Recipe"]

#: What may be spent where integer operators alone do not reach the target.
SPENDING = ("float", "int16", "nothing")
#: In what units it may be spent.
UNITS = ("type", "block", "node")


@dataclasses.dataclass(frozen=True)
class Recipe(Shown):
    """What is done to a float model on its way to a quantized one; the same recipe and data give the same bytes.

    Attributes:
        equalized: Weights of consecutive layers are equalized in the float model, and high biases absorbed.
        per_channel: One scale for each channel of weights.
        per_channel_dense: The same for dense layers.
        ranges: ``{tensor of the float model: (minimum, maximum)}`` of activations whose range is not the calibrated one.
        ranges_by: How they were chosen, in words.
        split: Tensors of the float model that are rescaled for one reader, so that the others keep a finer scale.
        rounded: Weights are rounded for the least error at their layer's output.
        biases_corrected: Biases are corrected layer by layer; with ``rounded``, both are fitted together.
        tuned: Like ``ranges``, of activations that were tuned together at the outputs, after weights and biases.
        float_nodes: Nodes left float, by the names that a denylist takes, in the order of the search.
        int8_weights: True where the weights of nodes left float are kept as int8 in the file.
        int16_nodes: Nodes with 16-bit activations.
        trained: The model was trained quantization-aware.
    """

    equalized: bool = False
    per_channel: bool = True
    per_channel_dense: bool = True
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    ranges_by: str = ""
    split: tuple[str, ...] = ()
    rounded: bool = False
    biases_corrected: bool = False
    tuned: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    float_nodes: tuple[str, ...] = ()
    int8_weights: bool = False
    int16_nodes: tuple[str, ...] = ()
    trained: bool = False

    def in_words(self) -> str:
        """Returns what is done where all nodes stay integer, without what is spent."""
        words = [f"ranges by {self.ranges_by}" if self.ranges else "int8"]
        words += ["equalized weights"] * self.equalized + ["per tensor"] * (not self.per_channel)
        words += ["dense layers per tensor"] * (not self.per_channel_dense) + ["rounding"] * self.rounded
        words += [f"{len(self.split)} tensors split"] * bool(self.split)
        words += ["biases"] * self.biases_corrected + ["tuned ranges"] * bool(self.tuned)
        return " + ".join(words)

    def __repr__(self) -> str:
        spent = [f"{len(self.float_nodes)} nodes float"] * bool(self.float_nodes)
        spent += [f"{len(self.int16_nodes)} nodes in 16 bits"] * bool(self.int16_nodes) + ["trained"] * self.trained
        return f"Recipe({' + '.join([self.in_words(), *spent])})"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric over all samples.

    Attributes:
        value: Over all samples; a share between 0 and 1 for accuracies.
        low: Lower end of the 90 % interval over random choices of samples; NaN where it was not worked out.
        high: Upper end.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of a model less that of the float model, on the same samples.

    Attributes:
        value: Over all samples.
        low: Lower end of the paired 90 % interval.
        high: Upper end.
        p_value: Probability of a difference at least as large where there is none (exact sign test on the samples that
            differ; McNemar's for accuracy); NaN where it was not worked out.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    p_value: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Candidate(Shown):
    """A model that the search made.

    Attributes:
        name: Short, in words: ``int8``, ``percentile 99.99 %``, ``joint ranges + 5 nodes float``.
        kind: What was done last: ``float``, ``int8``, ``ranges``, ``bias``, ``rounding``, ``equalization``, ``weights``,
            ``float nodes``,
            ``16x8``, ``training``.
        recipe: How to make it again.
        size: Bytes of the ``.tflite``.
        metrics: ``{metric: over the debug samples}``, the target's first.
        differences: ``{metric: against the float model}``, on the same samples, for task metrics.
        float_operators: Operators that compute in float.
        operators: All operators, without those that only convert.
        islands: Groups of float operators that hang together: each costs a way out of integers and back.
        milliseconds: Median for one sample on this machine, one thread; NaN where it was not measured.
        edgetpu_operators: Operators that map to the Edge TPU, predicted; None where that was not asked for.
        sha256: Of the file.
        met: Meets the target on the debug samples.
        kept: It became the base of what was tried next.
        seconds: Since the search began.
    """

    name: str
    kind: str
    recipe: Recipe
    size: int
    metrics: Mapping[str, Measured]
    differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    float_operators: int = 0
    operators: int = 0
    islands: int = 0
    milliseconds: float = float("nan")
    edgetpu_operators: int | None = None
    sha256: str = ""
    met: bool = False
    kept: bool = False
    seconds: float = float("nan")

    def __repr__(self) -> str:
        values = [f"{name} {number(found.value)}" for name, found in self.metrics.items()]
        return f"Candidate({', '.join([repr(self.name), *values, byte_size(self.size)])}{', met' if self.met else ''})"


@dataclasses.dataclass(frozen=True)
class Outcome(Shown):
    """What a search for remedies found.

    Attributes:
        target: As it was asked for, normalized: ``top_1 >= float - 0.5 %``.
        metrics: Names of the metrics of the candidates, the target's main one first.
        goals: For each metric of the target what has to be reached, as a number: ``{"top_1": 0.815}``.
        large_is_good: ``{metric: True where more is better}``.
        candidates: In the order in which they were tried; the first is the float model, the second plain int8.
        best: Position of the one that is handed back: the cheapest that meets the target, else the nearest to it.
        front: Positions of those that none beats in the main metric at the same size or a smaller one, by size.
        upper_bounds: What can be reached at all: all 16-bit, all float.
        proof: Float, plain int8 and the best one on evaluation samples that the search never saw; empty without such samples.
        proof_samples: How many these were.
        samples: Debug samples.
        stopped: Why the search ended: ``target met``, ``out of reach``, ``time``, ``interrupted``.
        seconds: That it took.
        notes: What the reader must know.
        provenance: What is needed to repeat it.
    """

    target: str
    metrics: tuple[str, ...]
    goals: Mapping[str, float]
    large_is_good: Mapping[str, bool]
    candidates: tuple[Candidate, ...]
    best: int
    front: tuple[int, ...] = ()
    upper_bounds: tuple[Candidate, ...] = ()
    proof: tuple[Candidate, ...] = ()
    proof_samples: int = 0
    samples: int = 0
    stopped: str = ""
    seconds: float = float("nan")
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool:
        """True where the best candidate meets the target on the debug samples."""
        return self.candidates[self.best].met

    def __repr__(self) -> str:
        name = self.candidates[self.best].name
        end = f"met by {name!r}" if self.met else f"not met, nearest {name!r}"
        return f"Outcome({self.target!r} {end}, {len(self.candidates)} candidates, {self.samples} samples)"
