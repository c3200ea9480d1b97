"""What each operator of a model takes on this machine, as plain data, and what float islands cost in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_qdebug.shown import Shown

__all__ = ["Island", "Latency", "ModelTime", "OperatorTime"]


@dataclasses.dataclass(frozen=True)
class ModelTime:
    """What a whole model takes.

    Attributes:
        name: ``float`` or ``quantized``.
        median: Milliseconds of a run.
        percentile_90: Nine of ten runs took less.
        runs: How many were measured.
        kernels: That ran it.
        failure: Why it was not measured; empty where it was.
    """

    name: str
    median: float = float("nan")
    percentile_90: float = float("nan")
    runs: int = 0
    kernels: str = ""
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """What one operator of the quantized model takes by itself.

    Attributes:
        operator: Its position in the quantized model.
        op_name: Its type.
        node: Name of its first output.
        median: Milliseconds of a run; NaN where it could not be run by itself.
        percentile_90: Nine of ten runs took less.
        runs: How many were measured.
        computes: ``float`` where it computes on floats, ``converts`` for QUANTIZE and DEQUANTIZE, ``integer`` else.
        island: Number of the float island that it belongs to, from 0; -1 for none.
        note: Why it was not measured; empty where it was.
    """

    operator: int
    op_name: str
    node: str
    median: float
    percentile_90: float
    runs: int
    computes: str = "integer"
    island: int = -1
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Island:
    """Float operators that feed each other inside of a quantized model, and the conversions at their edge.

    Attributes:
        operators: Positions among the timed operators.
        nodes: Names of the float operators.
        computing: Milliseconds of the float operators.
        converting: Milliseconds of QUANTIZE and DEQUANTIZE around them.
    """

    operators: tuple[int, ...]
    nodes: tuple[str, ...]
    computing: float
    converting: float


@dataclasses.dataclass(frozen=True)
class Latency(Shown):
    """What models and operators take.

    Attributes:
        whole_models: The float and the quantized model.
        timed: The operators of the quantized model, in execution order.
        runtime: Package and version.
        kernels: As they were asked for.
        threads: Of the kernels.
        machine: What it ran on.
        how: How the times of operators were taken.
        provenance: As of a run.
        notes: What the reader must know.
    """

    whole_models: tuple[ModelTime, ...]
    timed: tuple[OperatorTime, ...]
    runtime: str
    kernels: str
    threads: int = 1
    machine: str = ""
    how: str = ""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        times = ", ".join(f"{model.name} {model.failure or f'{model.median:.3g} ms'}" for model in self.whole_models)
        return f"Latency({times}; {len(self.timed)} operators)"

    def model(self, name: str) -> ModelTime | None:
        """Returns the whole model of that name."""
        return next((model for model in self.whole_models if model.name == name), None)

    @property
    def total(self) -> float:
        """Milliseconds of all operators, each by itself, added up."""
        return float(np.nansum([entry.median for entry in self.timed]))

    def share(self, entry: OperatorTime) -> float:
        """Returns an operator's share of what all take."""
        return entry.median / self.total if self.total > 0 else float("nan")

    def slowest(self, count: int | None = None) -> list[int]:
        """Returns the positions of the operators, those that take longest first; those that were not measured last."""
        times = np.array([-np.inf if np.isnan(entry.median) else entry.median for entry in self.timed])
        return [int(position) for position in np.argsort(-times, kind="stable")[:count]]

    def islands(self) -> list[Island]:
        """Returns the float islands, the dearest first."""
        found = []
        for number in sorted({entry.island for entry in self.timed if entry.island >= 0}):
            places = [place for place, entry in enumerate(self.timed) if entry.island == number]
            entries = [self.timed[place] for place in places]
            floats = [entry for entry in entries if entry.computes == "float"]
            computing = float(np.nansum([entry.median for entry in floats]))
            converting = float(np.nansum([entry.median for entry in entries if entry.computes == "converts"]))
            found.append(Island(tuple(places), tuple(entry.node for entry in floats), computing, converting))
        return sorted(found, key=lambda island: -(island.computing + island.converting))
