"""Sensitivity analysis: the error at the outputs as the most sensitive nodes are left float, one after another."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.analyses.evaluation import task_functions
from tflite_qdebug.analyses.kept import Kept
from tflite_qdebug.analyses.mixed_pair import MixedPair, Task, check_metric, open_mixed, trusted_backend
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.edit.mixed import FLOAT, NODE, MixedModel
from tflite_qdebug.errors import DatasetError, OptionError
from tflite_qdebug.findings import Steps
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.output_error import BADNESS, OutputErrors, Reference
from tflite_qdebug.progress import track

__all__ = ["THRESHOLDS", "first_met", "leave_float"]

#: Where each metric is good enough, unless asked otherwise: Horizon's cosine of 0.999, and what corresponds to it.
THRESHOLDS = {"cosine": 0.999, "sqnr_db": 27.0, "kl": 0.01, "flips": 0.01}


def leave_float(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    nodes: Sequence[str],
    *,
    metric: str = "sqnr_db",
    threshold: float | None = None,
    most: int = 20,
    go_on: bool = False,
    task_metrics: Sequence[str | Callable[..., Any]] = (),
    large_is_bad: bool = False,
    label_offset: int = 0,
    signature: str | None = None,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
    saved: str | os.PathLike[str] | None = None,
    finished: Callable[[Steps], None] | None = None,
) -> Steps:
    """Measures the error at the outputs with none of the nodes left float, with the first, the first two and so on.

    Args:
        float_model: As for `pair_error`.
        quantized_model: As for `pair_error`.
        debug_dataset: As for `pair_error`; with labels for task metrics.
        nodes: Names of the nodes, the one to be left float first in front, as `Sensitivity.order` ranks them.
        metric: What the threshold is of: one of `output_error.METRICS`, or a task metric's name. It is met when every output
            meets it.
        threshold: None: that of `THRESHOLDS`; for other metrics there is none, and all steps are made.
        most: Most nodes to be left float.
        go_on: Go on behind the step that meets the threshold.
        task_metrics: As for `sensitivity`.
        large_is_bad: For a task metric that the threshold is of.
        label_offset: Added to each label.
        signature: As for `pair_error`.
        limit: Take the first so many samples.
        backend: Which code runs the models.
        progress: As in `progress.track`.
        saved: As for `sensitivity`: finished steps are kept in it.
        finished: As for `sensitivity`.

    Raises:
        OptionError: For an unknown metric or node, or no node.
        QDebugError: One of its kinds, as `sensitivity` tells.
    """
    functions = task_functions(task_metrics)
    check_metric(metric, functions)
    if isinstance(nodes, str) or not nodes:
        raise OptionError(f"got {nodes!r} as the nodes to be left float, expected a list of at least one name")
    if most < 1:
        raise OptionError(f"got most={most}, expected 1 or more nodes to be left float")
    if threshold is not None and math.isnan(threshold):
        raise OptionError("got NaN as the threshold, which no value meets; expected a number")
    threshold = THRESHOLDS.get(metric) if threshold is None else threshold
    backend = backend or Backend()
    mixed = open_mixed(float_model, quantized_model, debug_dataset, signature=signature, limit=limit, backend=backend)
    backend, doubts = trusted_backend(mixed, backend)
    by_operator = {node.operator: node for node in map(mixed.models.node, nodes)}
    chosen = list(by_operator.values())[:most]
    runner = _Runner(mixed, Task(functions, label_offset), backend, progress)
    kept = Kept(None if saved is None else Path(saved), runner.key([node.operator for node in chosen]))
    errors: OutputErrors | None = None
    sizes: list[int] = []
    met = None
    with kept:
        for step in range(len(chosen) + 1):
            left = {node.operator for node in chosen[:step]}
            model = mixed.models.build(lambda node: FLOAT if node.operator in left else NODE, reference=True)  # noqa: B023
            found = runner.run(step, len(chosen), model, kept)
            errors = found if errors is None else errors.joined(found)
            sizes.append(len(mixed.models.build(lambda node: FLOAT if node.operator in left else NODE).data))  # noqa: B023
            good = threshold is not None and first_met(found, metric, threshold, large_is_bad) == 0
            if good and met is None:
                met = step
            if good and not go_on:
                break
    assert errors is not None
    made = len(sizes) - 1
    steps = Steps(
        tuple(node.name for node in chosen[:made]),
        tuple(node.op_name for node in chosen[:made]),
        errors,
        metric,
        float("nan") if threshold is None else threshold,
        met,
        tuple(sizes),
        runner.provenance(errors.samples),
        tuple(dict.fromkeys([*doubts, *runner.notes])),
        runner.float_metrics,
    )
    if finished is not None:
        finished(steps)
    kept.finish()
    return steps


def first_met(errors: OutputErrors, metric: str, threshold: float, large_is_bad: bool = False) -> int | None:
    """Returns the first step whose outputs all meet a threshold; None where none does. NaN meets nothing, nor is it met.

    Args:
        errors: One variant for each step.
        metric: What the threshold is of.
        threshold: Met by what equals it.
        large_is_bad: For a task metric.
    """
    sign = BADNESS.get(metric, 1.0 if large_is_bad else -1.0)
    met = np.flatnonzero(errors.badness(metric, large_is_bad) <= sign * threshold)
    return int(met[0]) if len(met) else None


class _Runner:
    """Runs one whole model after another."""

    def __init__(self, mixed: MixedPair, task: Task, backend: Backend, progress: bool | None) -> None:
        self._mixed, self._task, self._backend, self._progress = mixed, task, backend, progress
        self.notes: list[str] = []
        self.float_metrics: dict[str, float] = {}
        self._ran: dict[str, Any] = {}

    def key(self, operators: list[int]) -> str:
        """Returns what tells this analysis from others."""
        described = [
            self._mixed.identity,
            self._task.identity,
            operators,
            self._backend.identity,
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def run(self, step: int, steps: int, model: MixedModel, kept: Kept) -> OutputErrors:
        """Measures one step; the float model's own task metrics on the way."""
        names = ["all quantized" if not step else f"{step} left float", "float"]
        errors, following = kept.state(step, OutputErrors(names, self._mixed.models.output_names, tuple(self._task.functions)))
        before = kept.about(step)
        if not before.get("complete"):
            errors, before = self._measured(step, steps, model, kept, errors, following)
        self._ran = before["ran"] or self._ran
        self.notes += before["notes"]
        if self._ran.get("kernels") == "builtin" and self._backend.kernels == "auto":
            # Where XNNPACK refused one step, the next must not differ from it by kernels as well.
            self._backend = self._backend._replace(kernels="builtin")
        self.float_metrics = {name: float(errors.metric(name)[1, 0]) for name in self._task.functions}
        return errors.select([0])

    def _measured(
        self, step: int, steps: int, model: MixedModel, kept: Kept, errors: OutputErrors, following: int
    ) -> tuple[OutputErrors, dict[str, Any]]:
        """Goes on with one step; returns its errors, and which code ran and what the reader must know."""
        before = kept.about(step)
        workers = self._backend.pool(
            lambda: _Worker(self._mixed, model, self._task, self._backend),
            f"leaving {step} nodes float",
            finish=_Worker.described,
            own_functions=self._task.own,
        )
        samples, complete = self._mixed.samples(), False
        tracked = track(samples, f"sensitivity analysis, step {step} of {steps}", samples.length, self._progress)

        def about() -> dict[str, Any]:
            notes = [*before.get("notes", ()), *workers.notes, *(note for _, found in workers.finished for note in found)]
            ran = workers.finished[-1][0] if workers.finished else before.get("ran", {})
            return {"notes": list(dict.fromkeys(notes)), "ran": ran, "complete": complete}

        try:
            for index, rows, task in map_samples(_Worker.measure, workers, (s for s in tracked if s.index >= following)):
                errors.add(index, rows, task)
                following = index + 1
                kept.keep(step, errors, following, about=about())
            complete = True
        finally:
            if errors.samples:
                kept.keep(step, errors, following, now=True, about=about())
        if not errors.samples:
            raise DatasetError("the debug dataset yielded no samples")
        return errors, about()

    def provenance(self, samples: int) -> dict[str, Any]:
        """Returns what is needed to repeat it."""
        floating, quantized = self._mixed.hashes
        return {
            "float_model_sha256": floating,
            "quantized_model_sha256": quantized,
            "debug_dataset": self._mixed.dataset.description,
            "samples": samples,
            "workers": self._backend.worker_count(),
            **self._ran,
        }


class _Worker:
    """An interpreter of a model that also computes its outputs in float."""

    def __init__(self, mixed: MixedPair, model: MixedModel, task: Task, backend: Backend) -> None:
        self._mixed, self._model, self._task = mixed, model, task
        self._interpreter: Interpreter = backend.open(model.data)

    def described(self) -> tuple[dict[str, Any], list[str]]:
        """Returns which code ran, and what the reader must know."""
        return self._interpreter.provenance(), self._interpreter.notes

    def measure(self, sample: Any) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the sample's index, what it adds at each output, and the task metrics, of the model and of the float one."""
        if self._mixed.is_stateful:
            self._interpreter.reset_variables()
        self._interpreter.invoke(sample.inputs)
        outputs = [self._interpreter.read(index) for index in self._model.tensors]
        floats = [self._interpreter.read(index) for index in self._model.references]
        references = [Reference(values) for values in floats]
        rows = np.array([[other.measure(mine) for mine, other in zip(of, references, strict=True)] for of in (outputs, floats)])
        task = np.array([self._task.values(of, sample) for of in (outputs, floats)], dtype=np.float64)
        return sample.index, rows, task.reshape(2, -1)
