"""What a board measured, as plain data: each model's outputs and latency, and the error of each layer there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_qdebug.record import Run
from tflite_qdebug.shown import Shown

__all__ = ["HOST", "Board", "BoardModel"]

#: What the outputs on the host are called, where a board is called by its name.
HOST = "host"


@dataclasses.dataclass(frozen=True)
class BoardModel:
    """One model on the board; or, for comparison, on the host.

    Attributes:
        name: ``float``, ``quantized`` or ``compiled``.
        where: The board's name, or `HOST`.
        size: Bytes of the ``.tflite``.
        samples: How many were measured.
        wanted: How many there are.
        runtime: Package and version; empty where nothing ran.
        kernels: ``xnnpack``, ``builtin``, ``reference`` or a delegate's library; several with how many operators each ran.
        threads: Of the kernels.
        metrics: Task metrics, mean over the samples.
        sqnr_db: Of the worst output against the float model's on the host; NaN without a float model.
        cosine: The same.
        largest: Largest difference from the outputs on the host, in steps; NaN where there are no steps, or for the host.
        over_one: Share of the outputs that differ by more than a step.
        one_sided: Outputs that are NaN or infinite on one side alone.
        median: Milliseconds of a run; NaN where latency was not measured.
        percentile_90: Nine of ten runs took less.
        runs: How many were measured.
        first: Milliseconds of the first run.
        opening: Milliseconds that opening the model took; with a delegate, those for its canary too.
        failure: Why it could not be run, or not be finished; empty where it could.
        notes: What the reader must know.
    """

    name: str
    where: str
    size: int
    samples: int
    wanted: int
    runtime: str = ""
    kernels: str = ""
    threads: int = 1
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sqnr_db: float = float("nan")
    cosine: float = float("nan")
    largest: float = float("nan")
    over_one: float = float("nan")
    one_sided: int = 0
    median: float = float("nan")
    percentile_90: float = float("nan")
    runs: int = 0
    first: float = float("nan")
    opening: float = float("nan")
    failure: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Board(Shown):
    """One result of a bundle.

    Attributes:
        name: Of the board.
        bundle: Hash of the bundle.
        models: On the board, then the same on the host.
        metrics: Names of the task metrics, the main one first.
        layers: The error of each layer on the board, as far as its samples were measured; None where the bundle had no debug
            model, or it did not run.
        host_layers: The same on the host, on all samples of the bundle.
        about: What the board is, and in which state it was: names and values.
        settings: How the bundle was run.
        notes: What the reader must know.
    """

    name: str
    bundle: str
    models: tuple[BoardModel, ...]
    metrics: tuple[str, ...] = ()
    layers: Run | None = None
    host_layers: Run | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self.models if model.where == self.name)
        return f"Board({self.name!r}; {names}; {len(self.faulty())} layers otherwise than on the host)"

    def model(self, name: str, where: str | None = None) -> BoardModel | None:
        """Returns a model of the board; or of `HOST`."""
        place = self.name if where is None else where
        return next((model for model in self.models if (model.name, model.where) == (name, place)), None)

    def differing(self, least: float = 0.005) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Returns the layers whose error there is another than on the host, those that differ most first.

        Args:
            least: What they must differ by, in steps of 8 bits.

        Returns:
            Their positions, and the errors of all layers there and on the host, in steps of 8 bits as `Run.severity` has them.
            NaN on one side alone counts as the greatest difference.
        """
        if self.layers is None or self.host_layers is None:
            return [], np.zeros(0), np.zeros(0)
        there, here = self.layers.severity(), self.host_layers.severity()
        difference = np.nan_to_num(np.abs(there - here), nan=0.0, posinf=np.inf)
        difference = np.where(np.isnan(there) != np.isnan(here), np.inf, difference)
        order = np.argsort(-difference, kind="stable")
        return [int(place) for place in order if difference[place] >= least], there, here

    def faulty(self) -> list[int]:
        """Returns the layers that the board computes plainly otherwise, in execution order: half a step and a fifth worse."""
        positions, there, here = self.differing(0.5)
        return sorted(place for place in positions if np.isnan(there[place]) or there[place] > 1.2 * here[place] + 0.5)

    @property
    def key(self) -> tuple[Any, ...]:
        """What a later result replaces: one of the same board, run the same way."""
        return self.name, self.settings
