"""How good candidates are: several models over the same samples, against the float model, in one pass."""

from __future__ import annotations

import dataclasses
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
from tflite_qdebug.output_error import REPLICATES, OutputErrors, Reference, softmax
from tflite_qdebug.paired import sign_test
from tflite_qdebug.progress import track
from tflite_qdebug.quantization import QuantizationParameters

__all__ = ["Scored", "Scorer", "decision_tensors", "latency"]

# Operators whose 8-bit output says less than their input: what is compared is the input.
_DECISIONS = {"SOFTMAX": "classes", "LOG_SOFTMAX": "classes", "LOGISTIC": "yes or no"}
VALUES = "values"
_TIMED_SECONDS, _TIMED_RUNS = 0.5, 50
_CONFIDENCE = 0.9


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model, measured.

    Attributes:
        objective: What the search lowers, the mean over all outputs. Of classes it is the Jensen-Shannon divergence in nats,
            which some samples that are all wrong do not outweigh, and the expected loss: how much less probable the float model
            holds the answers than its own. Of values it is the squared error over the squared float values. Infinite where an
            output is NaN.
        objectives: The same over random choices of the samples, ``(choices,)``.
        metrics: Of `output_error.METRICS` at the worst output, ``agreement``, the task metrics, and ``expected_loss`` where
            classes are told apart, with intervals.
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


def decision_tensors(model: Model) -> list[tuple[int, str]]:
    """Returns where a model's outputs are compared: ``(tensor, what it is)``, in output order.

    Behind a final SOFTMAX or LOGISTIC 8 bits are steps of 1/256, which drown what candidates differ in; so its input is
    compared, as the probabilities that it stands for: ``classes`` or ``yes or no``. All else are ``values``.
    """
    producers = model.main.producers
    found = []
    for output in model.main.outputs:
        index = output
        while index in producers and producers[index].name in BRIDGES:
            index = producers[index].inputs[0]
        producer = producers.get(index)
        if producer is not None and producer.name in _DECISIONS and producer.inputs[0] in producers:
            found.append((producer.inputs[0], _DECISIONS[producer.name]))
        else:
            found.append((output, VALUES))
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
        alike = all(one.kinds == reference.kinds for one in exposed.values())
        workers = self.backend.pool(
            lambda: _Worker(reference, list(exposed.values()), alike, self._task, self.backend),
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
        decisions: As `decision_tensors` tells.
        scales: ``{tensor: how its integers are read}``.
    """

    data: bytes
    outputs: tuple[int, ...]
    decisions: tuple[tuple[int, str], ...]
    scales: Mapping[int, QuantizationParameters]

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind in self.decisions]

    @classmethod
    def of(cls, model: Model, outputs: int) -> _Exposed:
        if len(model.main.outputs) < outputs:
            raise ModelError(f"got a model with {len(model.main.outputs)} outputs, expected {outputs}, as the float model has")
        # Behind its own a model may have outputs that were exposed already.
        own = model.main.outputs[:outputs]
        decisions = tuple(decision_tensors(model)[:outputs])
        further = [index for index, kind in decisions if kind != VALUES and index not in model.main.outputs]
        tensors = [model.main.tensors[index] for index in (*own, *(index for index, _ in decisions))]
        scales = {tensor.index: tensor.quantization for tensor in tensors if tensor.is_quantized and tensor.quantization}
        return cls(expose(model, further) if further else model.data, own, decisions, scales)

    def read(self, interpreter: Interpreter, index: int) -> np.ndarray:
        """Returns a tensor as real numbers."""
        values = interpreter.read(index)
        return self.scales[index].dequantize(values) if index in self.scales else values


class _Worker:
    """Interpreters of the float model and of the candidates."""

    def __init__(self, reference: _Exposed, models: list[_Exposed], alike: bool, task: Task, backend: Backend) -> None:
        self._exposed, self._alike, self._task = [reference, *models], alike, task
        floating = backend.without_delegates.open(reference.data)
        self._interpreters: list[Interpreter] = [floating, *(backend.open(one.data) for one in models)]
        self._stateful = any(tensor.is_variable for tensor in Model(reference.data).main.tensors)

    def described(self) -> list[tuple[dict[str, Any], list[str]]]:
        return [(interpreter.provenance(), interpreter.notes) for interpreter in self._interpreters]

    def measure(self, sample: Any) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the sample's index, what it adds at outputs and at decisions, and the task metrics, the float model first."""
        references: list[Reference] = []
        deciding: list[_Decision] = []
        rows, decided, task = [], [], []
        for interpreter, exposed in zip(self._interpreters, self._exposed, strict=True):
            if self._stateful:
                interpreter.reset_variables()
            interpreter.invoke(sample.inputs)
            outputs = [exposed.read(interpreter, index) for index in exposed.outputs]
            # Where one of the models ends otherwise than the float model does, all are compared at their outputs.
            decisions = [exposed.read(interpreter, index) for index, _ in exposed.decisions] if self._alike else outputs
            if not references:
                references = [Reference(values) for values in outputs]
                kinds = exposed.kinds if self._alike else [VALUES] * len(outputs)
                deciding = [_Decision(values, kind) for values, kind in zip(decisions, kinds, strict=True)]
            rows.append([reference.measure(values) for reference, values in zip(references, outputs, strict=True)])
            decided.append([decision.measure(values) for decision, values in zip(deciding, decisions, strict=True)])
            task.append(self._task.values(outputs, sample))
        return sample.index, np.array(rows), np.array(decided), np.array(task, dtype=np.float64).reshape(len(rows), -1)


class _Decision:
    """What the float model gave where its output is decided."""

    def __init__(self, values: np.ndarray, kind: str) -> None:
        self._kind, self._values = kind, values.astype(np.float64)
        self._probabilities = self._read(values)
        self._own: np.ndarray | None = None
        if kind == "classes":
            flat = self._probabilities.reshape(-1, self._probabilities.shape[-1])
            self._flat, self._own = flat, flat.max(axis=-1)

    def _read(self, values: np.ndarray) -> np.ndarray:
        """Returns the probabilities that logits stand for: one distribution in each row."""
        if self._kind == "classes":
            return softmax(values)
        if self._kind == VALUES:
            return np.zeros(0)
        yes = 1.0 / (1.0 + np.exp(-np.clip(values.astype(np.float64), -700.0, 700.0)))
        return np.stack([yes, 1.0 - yes], axis=-1)

    def measure(self, values: np.ndarray) -> np.ndarray:
        """Returns ``(error, of what, expected loss, rows)`` of one sample."""
        with np.errstate(all="ignore"):
            if self._kind == VALUES:
                error = values.reshape(-1).astype(np.float64) - self._values.reshape(-1)
                return np.array([error @ error, float(np.sum(self._values**2)), 0.0, 0.0])
            other = self._read(values)
            if not np.isfinite(other).all():
                return np.array([np.nan, 1.0, 0.0, 0.0])
            middle = 0.5 * (self._probabilities + other)
            divergence = 0.5 * (_relative_entropy(self._probabilities, middle) + _relative_entropy(other, middle))
        rows = other.size // other.shape[-1]
        if self._own is None:
            return np.array([divergence, float(rows), 0.0, 0.0])
        chosen = values.reshape(rows, -1).argmax(axis=-1)
        loss = float(np.sum(self._own - self._flat[np.arange(rows), chosen]))
        return np.array([divergence + loss, float(rows), loss, float(rows)])


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    present = p > 0.0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


class _Tables:
    """Sums over the samples, of the float model and all candidates."""

    def __init__(self, names: list[str], float_model: Model, reference: _Exposed, task: Task) -> None:
        outputs = [float_model.main.tensors[index].name for index in reference.outputs]
        self.task = tuple(task.functions)
        self.errors = OutputErrors(["float", *names], outputs, self.task)
        # Error, of what, expected loss, rows: summed, and over the random choices that the other errors are of.
        self.deciding = np.zeros((len(names) + 1, len(outputs), 4))
        self.choices = np.zeros((REPLICATES, *self.deciding.shape))
        self.better, self.worse = (np.zeros((len(names) + 1, len(self.task)), dtype=np.int64) for _ in range(2))

    def add(self, index: int, rows: np.ndarray, decisions: np.ndarray, task: np.ndarray) -> None:
        self.errors.add(index, rows, task)
        drawn = np.random.default_rng(index).poisson(1.0, REPLICATES).astype(np.float64)
        self.deciding += decisions
        with np.errstate(invalid="ignore"):
            chosen = drawn > 0.0
            self.choices[chosen] += drawn[chosen, None, None, None] * decisions
        self.better += task > task[:1]
        self.worse += task < task[:1]

    def scored(self, position: int, notes: tuple[str, ...]) -> Scored:
        names = [name for name in self.errors.names() if name not in self.task]
        metrics = {name: self.measured(position, name) for name in (*self.task, *names)}
        if "flips" in metrics:
            flips = metrics["flips"]
            metrics["agreement"] = Measured(1.0 - flips.value, 1.0 - flips.high, 1.0 - flips.low)
        differences = {name: self._difference(position, column) for column, name in enumerate(self.task)}
        usable = self.errors.weights > 0
        of_choices = self.choices[usable, position]
        if self.deciding[0, :, 3].any():
            losses = _ratio(of_choices[..., 2].sum(axis=-1), of_choices[..., 3].sum(axis=-1))
            loss = float(_ratio(self.deciding[position, :, 2].sum(), self.deciding[position, :, 3].sum()))
            ends = np.percentile(losses, (5.0, 95.0)) if self.errors.samples > 1 and len(losses) else (np.nan, np.nan)
            metrics["expected_loss"] = Measured(loss, float(ends[0]), float(ends[1]))
        return Scored(float(_objective(self.deciding[position])), _objective(of_choices), metrics, differences, notes)

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


def _objective(sums: np.ndarray) -> np.ndarray:
    """Returns the objective of sums ``(..., outputs, 4)``: ``(...)``."""
    error, of_what = sums[..., 0], sums[..., 1]
    # Without signal the error itself: nothing to relate it to.
    each = _ratio(error, np.where(of_what == 0.0, 1.0, of_what))
    return np.asarray(np.where(np.isfinite(each), each, np.inf).mean(axis=-1))


def _ratio(above: Any, below: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(np.true_divide(above, below))


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
