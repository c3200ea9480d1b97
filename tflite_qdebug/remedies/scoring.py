"""How good candidates are: several models over the same samples, against the float model, in one pass."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.mixed_pair import Task
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.edit import BRIDGES, expose
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import Difference, Measured
from tflite_qdebug.output_error import OutputErrors, Reference, metric_of_sums, softmax
from tflite_qdebug.progress import track
from tflite_qdebug.quantization import QuantizationParameters

__all__ = ["Scored", "Scorer", "decision_tensors", "latency"]

# Operators whose 8-bit output says less than their input: what is compared is the input.
_DECISIONS = ("SOFTMAX", "LOGISTIC", "LOG_SOFTMAX")
_TIMED_SECONDS, _TIMED_RUNS = 0.5, 50
_CONFIDENCE = 0.9


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model, measured.

    Attributes:
        objective: What the search lowers: over all outputs the mean of the KL divergence (classes) or of the squared error
            over the squared float values; infinite where an output is NaN.
        objectives: The same over random choices of the samples, ``(choices,)``.
        metrics: Of `output_error.METRICS` at the worst output, ``agreement``, and the task metrics, with intervals.
        differences: Of the task metrics, against the float model.
        notes: What the reader must know.
    """

    objective: float
    objectives: np.ndarray
    metrics: Mapping[str, Measured]
    differences: Mapping[str, Difference]
    notes: tuple[str, ...] = ()

    def chance_of_beating(self, other: Scored) -> float:
        """Returns for which share of the random choices the objective is below another's."""
        finite = np.isfinite(self.objectives) | np.isfinite(other.objectives)
        return float(np.mean(self.objectives[finite] < other.objectives[finite])) if finite.any() else 0.0


def decision_tensors(model: Model) -> list[tuple[int, bool]]:
    """Returns where a model's outputs are compared: ``(tensor, True for logits)``, in output order.

    Behind a final SOFTMAX or LOGISTIC 8 bits are steps of 1/256, which drown what candidates differ in; so its input is
    compared, as the probabilities that it stands for.
    """
    producers = model.main.producers
    found = []
    for output in model.main.outputs:
        index = output
        while index in producers and producers[index].name in BRIDGES:
            index = producers[index].inputs[0]
        producer = producers.get(index)
        if producer is not None and producer.name in _DECISIONS and producer.inputs[0] in producers:
            found.append((producer.inputs[0], True))
        else:
            found.append((output, False))
    return found


class Scorer:
    """Measures models on the samples of one dataset, always by the same kernels.

    Attributes:
        float_metrics: The float model's own task metrics on the samples, after the first measurement.
        samples: How many there were.
        backend: Which code runs the models; the builtin kernels from the moment when XNNPACK refuses one.
    """

    def __init__(
        self,
        float_model: Model,
        samples: RealValued,
        task: Task,
        backend: Backend,
        progress: bool | None = None,
        what: str = "debug samples",
    ) -> None:
        """Takes the float model and the opened samples.

        Args:
            float_model: What candidates are held against.
            samples: As `analyses.mixed_pair.open_mixed` opens them.
            task: The user's metrics.
            backend: Which code runs the models.
            progress: As in `progress.track`.
            what: The samples, for messages.
        """
        self._float, self._samples, self._task = float_model, samples, task
        self.backend, self._progress, self._what = backend, progress, what
        self.float_metrics: dict[str, Measured] = {}
        self.samples = 0
        self.provenance: dict[str, Any] = {}

    def measure(self, models: Mapping[str, bytes]) -> dict[str, Scored]:
        """Runs all models over all samples.

        Raises:
            ModelError: Where a model's outputs are not those of the float model.
            InterpreterError: Where a model cannot be run.
            DatasetError: For a wrong sample, a missing label, or no sample.
            MetricError: Where a task metric fails.
        """
        if not models:
            return {}
        exposed = {name: _Exposed.of(Model(data), len(self._float.main.outputs)) for name, data in models.items()}
        reference = _Exposed.of(self._float, len(self._float.main.outputs))
        by_logits = all(one.has_decisions for one in exposed.values()) and reference.has_decisions
        workers = self.backend.pool(
            lambda: _Worker(reference, list(exposed.values()), by_logits, self._task, self.backend),
            f"measuring models on the {self._what}",
            finish=_Worker.described,
            own_functions=self._task.own,
        )
        tables = _Tables([*models], self._float, reference, self._task)
        label = f"{next(iter(models))}" if len(models) == 1 else f"{len(models)} models"
        samples = track(self._samples, f"measuring {label}", self._samples.length, self._progress)
        for index, outputs, decisions, task in map_samples(_Worker.measure, workers, samples):
            tables.add(index, outputs, decisions, task)
        if not tables.errors.samples:
            raise DatasetError(f"the {self._what} are none: the dataset yielded no samples")
        self.samples = tables.errors.samples
        described = workers.finished[-1]
        self.provenance = described[0][0]
        if (
            self.backend.kernels == "auto"
            and not self.backend.delegates
            and any(d["kernels"] == "builtin" for d, _ in described)
        ):
            # Whatever is compared must not differ by kernels as well.
            self.backend = self.backend._replace(kernels="builtin")
            if any(d["kernels"] != "builtin" for d, _ in described):
                return self.measure(models)
        notes = [tuple(dict.fromkeys([*found, *workers.notes])) for _, found in described]
        self.float_metrics = {name: tables.measured(0, name) for name in self._task.functions}
        return {name: tables.scored(position + 1, notes[position + 1]) for position, name in enumerate(models)}


@dataclasses.dataclass(frozen=True)
class _Exposed:
    """A model whose decision tensors are outputs too.

    Attributes:
        data: The file.
        outputs: The model's own outputs.
        decisions: ``(tensor, True for logits)`` for each of them.
        scales: ``{tensor: how its integers are read}``.
    """

    data: bytes
    outputs: tuple[int, ...]
    decisions: tuple[tuple[int, bool], ...]
    scales: Mapping[int, QuantizationParameters]

    @property
    def has_decisions(self) -> bool:
        return any(is_logits for _, is_logits in self.decisions)

    @classmethod
    def of(cls, model: Model, outputs: int) -> _Exposed:
        if len(model.main.outputs) < outputs:
            raise ModelError(f"got a model with {len(model.main.outputs)} outputs, expected {outputs}, as the float model has")
        # Behind its own a model may have outputs that were exposed already.
        own = model.main.outputs[:outputs]
        decisions = tuple(decision_tensors(model)[:outputs])
        further = [index for index, is_logits in decisions if is_logits and index not in model.main.outputs]
        tensors = [model.main.tensors[index] for index in (*own, *(index for index, _ in decisions))]
        scales = {tensor.index: tensor.quantization for tensor in tensors if tensor.is_quantized and tensor.quantization}
        return cls(expose(model, further) if further else model.data, own, decisions, scales)

    def read(self, interpreter: Interpreter, index: int) -> np.ndarray:
        """Returns a tensor as real numbers."""
        values = interpreter.read(index)
        return self.scales[index].dequantize(values) if index in self.scales else values


class _Worker:
    """Interpreters of the float model and of the candidates."""

    def __init__(self, reference: _Exposed, models: list[_Exposed], by_logits: bool, task: Task, backend: Backend) -> None:
        self._exposed, self._by_logits, self._task = [reference, *models], by_logits, task
        self._interpreters: list[Interpreter] = [backend.open(one.data) for one in self._exposed]
        self._stateful = any(tensor.is_variable for tensor in Model(reference.data).main.tensors)

    def described(self) -> list[tuple[dict[str, Any], list[str]]]:
        return [(interpreter.provenance(), interpreter.notes) for interpreter in self._interpreters]

    def measure(self, sample: Any) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the sample's index, what it adds at outputs and at decisions, and the task metrics, the float model first."""
        references: list[Reference] = []
        deciding: list[Reference] = []
        rows, decided, task = [], [], []
        for interpreter, exposed in zip(self._interpreters, self._exposed, strict=True):
            if self._stateful:
                interpreter.reset_variables()
            interpreter.invoke(sample.inputs)
            outputs = [exposed.read(interpreter, index) for index in exposed.outputs]
            decisions = [
                softmax(exposed.read(interpreter, index)).astype(np.float32)
                if is_logits and self._by_logits
                else outputs[position]
                for position, (index, is_logits) in enumerate(exposed.decisions)
            ]
            if not references:
                references, deciding = [Reference(values) for values in outputs], [Reference(values) for values in decisions]
            rows.append([reference.measure(values) for reference, values in zip(references, outputs, strict=True)])
            decided.append([reference.measure(values) for reference, values in zip(deciding, decisions, strict=True)])
            task.append(self._task.values(outputs, sample))
        return sample.index, np.array(rows), np.array(decided), np.array(task, dtype=np.float64).reshape(len(rows), -1)


class _Tables:
    """Sums over the samples, of the float model and all candidates."""

    def __init__(self, names: list[str], float_model: Model, reference: _Exposed, task: Task) -> None:
        outputs = [float_model.main.tensors[index].name for index in reference.outputs]
        self.task = tuple(task.functions)
        self.errors = OutputErrors(["float", *names], outputs, self.task)
        self.deciding = OutputErrors(["float", *names], outputs)
        self.better, self.worse = (np.zeros((len(names) + 1, len(self.task)), dtype=np.int64) for _ in range(2))

    def add(self, index: int, rows: np.ndarray, decisions: np.ndarray, task: np.ndarray) -> None:
        self.errors.add(index, rows, task)
        self.deciding.add(index, decisions)
        self.better += task > task[:1]
        self.worse += task < task[:1]

    def scored(self, position: int, notes: tuple[str, ...]) -> Scored:
        names = [name for name in self.errors.names() if name not in self.task]
        metrics = {name: self.measured(position, name) for name in (*self.task, *names)}
        if "flips" in metrics:
            flips = metrics["flips"]
            metrics["agreement"] = Measured(1.0 - flips.value, 1.0 - flips.high, 1.0 - flips.low)
        differences = {name: self._difference(position, column) for column, name in enumerate(self.task)}
        usable = self.deciding.weights > 0
        objectives = _objective(self.deciding.replicates[usable, position])
        return Scored(float(_objective(self.deciding.sums[position])), objectives, metrics, differences, notes)

    def measured(self, position: int, name: str) -> Measured:
        one = self.errors.select([position])
        low, high = one.worst_interval(name)
        return Measured(float(one.worst(name)[0]), float(low[0]), float(high[0]))

    def _difference(self, position: int, column: int) -> Difference:
        """Returns how a task metric differs from the float model's, with the interval and test of paired samples."""
        errors = self.errors
        value = (errors.task_sums[position, column] - errors.task_sums[0, column]) / errors.samples
        usable = errors.weights > 0
        replicates = errors.task_replicates[usable, position, column] - errors.task_replicates[usable, 0, column]
        ends = (50.0 * (1.0 - _CONFIDENCE), 50.0 * (1.0 + _CONFIDENCE))
        low, high = np.percentile(replicates / errors.weights[usable], ends) if errors.samples > 1 else (np.nan, np.nan)
        p_value = sign_test(int(self.better[position, column]), int(self.worse[position, column]))
        return Difference(float(value), float(low), float(high), p_value)


def sign_test(better: int, worse: int) -> float:
    """Returns the two-sided probability of so uneven a split of samples where neither model is better.

    The exact sign test; for a metric that is 0 or 1 it is McNemar's exact test.
    """
    total, fewer = better + worse, min(better, worse)
    if not total:
        return 1.0
    # In logarithms: 2**-n is nothing for a few thousand samples.
    terms = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(term - total * math.log(2.0)) for term in terms))


def _objective(sums: np.ndarray) -> np.ndarray:
    """Returns the objective of sums ``(..., outputs, COLUMNS)``: ``(...)``."""
    with np.errstate(all="ignore"):
        kl, relative = metric_of_sums("kl", sums), 10.0 ** (-metric_of_sums("sqnr_db", sums) / 10.0)
    # Without signal the error itself: nothing to relate it to.
    relative = np.where(np.isnan(relative), 0.0, np.where(np.isposinf(relative), metric_of_sums("mse", sums), relative))
    each = np.where(np.isnan(kl), relative, kl)
    broken = ~np.isfinite(sums).all(axis=-1)
    return np.asarray(np.where(broken, np.inf, each).mean(axis=-1))


def latency(model: bytes, inputs: Sequence[np.ndarray], backend: Backend) -> float:
    """Returns the median milliseconds of one invocation, one thread, on this machine.

    Raises:
        InterpreterError: Where the model cannot be run.
    """
    return float(backend.apart(_timed, model, inputs, backend, what="timing a model"))


def _timed(model: bytes, inputs: Sequence[np.ndarray], backend: Backend) -> float:
    interpreter = backend._replace(threads=1).open(model)
    interpreter.invoke(inputs)  # the first time packs weights
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - begun < _TIMED_SECONDS and len(seconds) < _TIMED_RUNS):
        start = time.perf_counter()
        interpreter.invoke(inputs)
        seconds.append(time.perf_counter() - start)
    if not seconds:
        raise InterpreterError("the model could not be timed")
    return 1000.0 * statistics.median(seconds)
