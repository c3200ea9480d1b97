"""Which nodes to leave float first: by what each does alone, and by what it gives back where others are float already."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.findings import Sensitivity
from tflite_qdebug.outcome import Recipe
from tflite_qdebug.remedies.blocks import blocks_of
from tflite_qdebug.remedies.logbook import Logbook
from tflite_qdebug.remedies.sample_sets import SampleSets
from tflite_qdebug.remedies.scoring import VALUES, Scorer, decision_tensors
from tflite_qdebug.remedies.workshop import Base, Workshop, recipe_key

__all__ = ["Gains", "Ranking"]

_SAMPLES = 48


class Gains(NamedTuple):
    """What leaving one more node float gives back.

    Attributes:
        error: Squared error over squared float values, the mean over the outputs, of the model as it is.
        by_node: By how much each node lowers it, the largest first; infinite where the error is, and is not without the node.
    """

    error: float
    by_node: dict[str, float]


class Ranking:
    """Ranks the nodes of the models that a search makes; what it has measured is kept in the logbook."""

    def __init__(
        self,
        workshop: Workshop,
        data: SampleSets,
        scorer: Scorer,
        logbook: Logbook,
        folder: Path | None,
        progress: bool | None,
    ) -> None:
        """Measures nothing yet.

        Args:
            workshop: Makes the models.
            data: The representative samples rank: nodes chosen on the samples that judge the choice would flatter it.
            scorer: Tells which code runs the models.
            logbook: Remembers.
            folder: Where an interrupted sweep goes on from; None: nowhere.
            progress: As in `progress.track`.
        """
        self._workshop, self._data, self._scorer, self._logbook = workshop, data, scorer, logbook
        self._folder, self._progress = folder, progress

    def by_damage(self, recipe: Recipe) -> dict[str, float]:
        """Returns what each quantized node of a model does where it alone is quantized, that first which does most.

        Returns:
            ``{node: squared error over squared float values, the mean over the outputs}``; infinite where an output is NaN, 0
            for nodes that the outputs do not depend on.
        """
        base = self._workshop.based(recipe)
        key = "sensitivity " + recipe_key(recipe)
        known = self._logbook.get(key, "damage")
        if known is None:
            found = self._swept(base, base.quantized.data, "node", key)
            damage = dict(zip(found.nodes, _shares(found).tolist(), strict=True))
            known = dict(sorted(damage.items(), key=lambda item: -item[1]))
            known.update({node.name: 0.0 for node in base.mixed.nodes if node.quantized and node.name not in known})
            self._logbook.put(key, "damage", known)
        return dict(known)

    def types(self, recipe: Recipe) -> dict[str, str]:
        """Returns the operator of each node, by its name."""
        return {node.name: node.op_name for node in self._workshop.based(recipe).mixed.nodes}

    def blocks(self, recipe: Recipe) -> list[tuple[str, ...]]:
        """Returns the names of the nodes of each block of the float model, see `find_blocks`."""
        return [block.nodes for block in blocks_of(self._workshop.based(recipe).float_model)]

    def by_gain(self, recipe: Recipe, left: tuple[str, ...]) -> Gains:
        """Returns what each node gives back that is left float beside those that are already.

        Args:
            recipe: A model whose nodes are all integer.
            left: Names of the nodes that are float already.
        """
        base = self._workshop.based(recipe)
        key = "gains " + recipe_key(recipe)
        name = hashlib.sha256("\n".join(left).encode()).hexdigest()
        known = self._logbook.get(key, name)
        if known is None:
            data = self._workshop.build(dataclasses.replace(recipe, float_nodes=left)) if left else base.quantized.data
            found = self._swept(base, data, "float", key + name)
            nodes = {node.name for node in base.mixed.nodes if node.quantized} - set(left)
            known = _gains(found, nodes)
            self._logbook.put(key, name, [known.error, known.by_node])
        return Gains(*known)

    def _swept(self, base: Base, data: bytes, mode: str, key: str) -> Sensitivity:
        saved = None if self._folder is None else self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.partial.json"
        return sensitivity(
            base.float_model.data,
            data,
            self._data.representative,
            mode=mode,
            output_node=_place_of_error(base),
            metric="sqnr_db",
            limit=min(_SAMPLES, self._data.limit or _SAMPLES),
            backend=self._scorer.backend,
            progress=self._progress,
            saved=saved,
        )


def _gains(found: Sensitivity, nodes: set[str]) -> Gains:
    """Works the gains out of a sweep whose last variant is the model with none of its nodes float."""
    shares = _shares(found)
    error = float(shares[-1])
    gains = {
        name: (np.inf if np.isinf(error) else error - float(one)) if np.isfinite(one) else (0.0 if np.isinf(error) else -np.inf)
        for name, one in zip(found.nodes, shares[:-1], strict=True)
        if name in nodes
    }
    return Gains(error, dict(sorted(gains.items(), key=lambda item: -item[1])))


def _shares(found: Sensitivity) -> np.ndarray:
    """Returns squared error over squared float values of each variant, the mean over the outputs; infinite for NaN."""
    with np.errstate(all="ignore"):
        shares = 10.0 ** (-found.errors.metric("sqnr_db") / 10.0)
    # Without signal and error nothing is wrong; what is NaN for another reason is as wrong as can be.
    nothing = np.isnan(shares) & np.isfinite(found.errors.sums).all(axis=-1)
    return np.asarray(np.where(nothing, 0.0, np.where(np.isfinite(shares), shares, np.inf)).mean(axis=-1))


def _place_of_error(base: Base) -> str | None:
    """Returns at which node the error is measured: before a final softmax, which hides most of it; else None, the outputs."""
    decisions = decision_tensors(base.float_model)
    if len(decisions) == 1 and decisions[0][1] != VALUES:
        name = base.float_model.main.tensors[decisions[0][0]].name
        if name in {node.name for node in base.mixed.nodes}:
            return name
    return None
