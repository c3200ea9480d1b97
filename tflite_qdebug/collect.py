"""The one loop over a dataset: samples through interpreters into statistics, with several workers at once.

What a sample gives comes back from its worker as one small array of sums; they are added up in the order of the samples, so
that the result does not depend on the number of workers, and memory not on the number of samples. Before the loop the first
sample is tried, apart, to see which kernels run the model, and whether they compute what others do.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import time
from typing import Any, Callable, ContextManager, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug import canary, isolation, tf_private
from tflite_qdebug.delegates import crash_advice, label
from tflite_qdebug.errors import DatasetError, InterpreterError, MetricError, OptionError
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.kernels import COLUMNS, OPTIMIZED_STRIDE, RELATIVE_COLUMNS, dequantized, measure_pair, measure_relative
from tflite_qdebug.kernels import arguments as kernel_arguments
from tflite_qdebug.progress import track
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import ErrorStatistics, SampleSums
from tflite_qdebug.workers import Workers, map_samples

__all__ = ["Backend", "Collected", "LayerMetrics", "PairReader", "collect_layer_errors", "map_samples"]

_log = logging.getLogger(__name__)

Sample = Any  # datasets.Sample; anything with `index` and `inputs`
# Where a sample takes longer, how much longer does not matter.
_SHORT_SECONDS = 0.005
_Examined = Tuple[Optional[Dict[str, Any]], List[str]]
# What the canary showed of delegates and models, once in each process and in those forked from it.
_EXAMINED: Dict[Tuple[str, str], _Examined] = {}


class Backend(NamedTuple):
    """Which code runs the model.

    Attributes:
        runtime: As in `Interpreter`.
        kernels: As in `Interpreter`.
        delegates: As in `Interpreter`; they run quantized models. What they compute is believed after a canary input.
        workers: Interpreters at once; None: one per processor that this process may use, eight at most; one with a delegate,
            whose device may serve one process only.
        threads: Threads of each interpreter's kernels.
        isolate: Run models in processes of their own, which a model may end without harm. None: where the system allows
            it, and the user's own functions need not be called there. True, and a delegate, also calls those there; what
            they keep in memory is then lost.
        time_limit: Seconds that opening a model, or one sample, may take in such a process.
        strict: A delegate whose canary is wrong is an error; False: it is noted, to find out where it is wrong.
    """

    runtime: str = "auto"
    kernels: str = "auto"
    delegates: Sequence[Delegate] = ()
    workers: Optional[int] = None
    threads: int = 1
    isolate: Optional[bool] = None
    time_limit: float = isolation.TIME_LIMIT
    strict: bool = True

    def open(self, model: bytes, kernels: Optional[str] = None) -> Interpreter:
        """Opens an interpreter; one with delegates after a canary input went through, in a process of its own where possible.

        Raises:
            InterpreterError: As `Interpreter`; where a delegate ends its process, or `canary.examine` finds it wrong.
        """
        kernels = kernels or self.kernels
        if not self.delegates:
            return Interpreter(model, self.runtime, kernels, self.threads)
        key = repr([self._replace(kernels=kernels).identity, self.strict]), hashlib.sha256(model).hexdigest()
        if key not in _EXAMINED and self.isolate is not False and isolation.available() and not isolation.is_child():
            _EXAMINED[key] = self.apart(self._examined, model, kernels, what="opening the model")
        with self._at("was being loaded"):
            interpreter = Interpreter(model, self.runtime, kernels, self.threads, self.delegates)
        if key not in _EXAMINED:
            _EXAMINED[key] = self._examine(interpreter, model)
        found, notes = _EXAMINED[key]
        interpreter.canary = found
        interpreter.notes.extend(notes)
        return interpreter

    def _examined(self, model: bytes, kernels: str) -> _Examined:
        with self._at("was being loaded"):
            interpreter = Interpreter(model, self.runtime, kernels, self.threads, self.delegates)
        return self._examine(interpreter, model)

    def _examine(self, interpreter: Interpreter, model: bytes) -> _Examined:
        """Runs the canary; returns what it showed."""
        with self._at("computed a canary input"):
            return canary.examine(interpreter, lambda: self.without_delegates.open(model, "builtin"), self.strict)

    def _at(self, words: str) -> ContextManager[None]:
        """Says what the delegate is at, and what to do, for the message should it end the process there."""
        runtime = tf_private.open_runtime(self.runtime)
        advice = crash_advice(runtime.name, runtime.version)
        return isolation.doing("{} {}. {}".format(label(self.delegates), words, advice))

    @property
    def without_delegates(self) -> Backend:
        """The same for models that no delegate is to run: float ones."""
        return self._replace(delegates=())

    @property
    def identity(self) -> List[Any]:
        """What tells the code that runs from other code, as plain data."""
        return [self.runtime, self.kernels, [list(delegate) for delegate in self.delegates]]

    def worker_count(self) -> int:
        """Returns how many workers to use.

        Raises:
            OptionError: For a count below one.
        """
        if self.workers is None and self.delegates:
            return 1
        if self.workers is None:
            available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return max(1, min(available, 8))
        if self.workers < 1:
            raise OptionError("got workers={}, expected 1 or more".format(self.workers))
        return int(self.workers)

    def isolated(self, own_functions: bool = False) -> bool:
        """Returns whether to run in processes of their own; ``own_functions``: the user's functions are to be called.

        Raises:
            OptionError: Where it is asked for and the system does not allow it, or for a time limit that is none.
        """
        if not self.time_limit > 0:
            raise OptionError("got time_limit={!r}, expected seconds above 0".format(self.time_limit))
        if self.isolate and not isolation.available():
            raise OptionError("got isolate=True, which needs Linux: elsewhere processes cannot be forked safely")
        if self.isolate is None:
            return isolation.available() and (bool(self.delegates) or not own_functions)
        return self.isolate

    def pool(
        self,
        open_worker: Callable[[], Any],
        what: str,
        finish: Optional[Callable[[Any], Any]] = None,
        replaceable: bool = True,
        own_functions: bool = False,
        count: Optional[int] = None,
    ) -> Workers:
        """Returns the workers for `map_samples`, in processes or in threads.

        Args:
            open_worker: Makes a worker, such as an interpreter; called in its process.
            what: What is done with a sample, for messages: "measuring layers".
            finish: As for `Workers`.
            replaceable: As for `Workers`.
            own_functions: As for `isolated`.
            count: How many; None: as many as `worker_count` says.

        Raises:
            OptionError: As `isolated` and `worker_count`.
        """
        tf_private.open_runtime(self.runtime)  # imported here, once, and not in each process
        count, isolated = count or self.worker_count(), self.isolated(own_functions)
        workers = Workers(open_worker, count, isolated, self._by(what), self.time_limit, finish, replaceable)
        if own_functions and isolated and self.isolate is None:
            workers.notes.append(
                "the functions given ran in the process of {}, which may end it; what they keep in memory is lost".format(
                    label(self.delegates)
                )
            )
        return workers

    def _by(self, what: str) -> str:
        return "{} with {}".format(what, label(self.delegates)) if self.delegates else what

    def apart(self, function: Callable[..., Any], *arguments: Any, what: str) -> Any:
        """Returns ``function(*arguments)``, computed in a process of its own unless ``isolate`` is False.

        Raises:
            InterpreterError: Where that process ends or takes too long.
        """
        tf_private.open_runtime(self.runtime)  # as in `pool`
        isolate = self.isolate is not False
        return isolation.call(function, *arguments, what=self._by(what), time_limit=self.time_limit, isolate=isolate)


class LayerMetrics(NamedTuple):
    """What is measured besides the errors that all runs have, on each sample: the user's own metrics, and costly ones of ours.

    Attributes:
        difference: ``{name: f(error)}``; error is float32, in the tensor's shape.
        direct: ``{name: f(float values, integer values, scale, zero point)}``.
        model: ``{name: f(float outputs, dequantized outputs)}``, both lists in output order.
        relative: Measure the mean relative error too, the column ``mre``: a division for each element, which takes as long as
            all other errors together.
    """

    difference: Mapping[str, Callable[..., Any]] = {}
    direct: Mapping[str, Callable[..., Any]] = {}
    model: Mapping[str, Callable[..., Any]] = {}
    relative: bool = False


class Collected(NamedTuple):
    """What `collect_layer_errors` returns."""

    statistics: ErrorStatistics
    metrics: Dict[str, np.ndarray]
    model_metrics: Dict[str, float]
    provenance: Dict[str, Any]
    notes: List[str]


class PairReader:
    """Reads the sums of all layers out of an interpreter that has just run."""

    def __init__(self, interpreter: Interpreter, layers: Sequence[Layer], relative: bool = False) -> None:
        """Prepares what does not change from sample to sample; ``relative``: relative errors are to be read too."""
        self._interpreter = interpreter
        self._layers = layers
        self._measure = measure_pair()[1]
        self._measure_relative = measure_relative() if relative else None
        stride = _stride_of(interpreter)
        self._arguments = [_kernel_arguments(layer, stride) for layer in layers]

    def read(self) -> SampleSums:
        """Returns what the sample that has just run adds."""
        view, measure, relative = self._interpreter.view, self._measure, self._measure_relative
        rows = np.zeros((len(self._layers), COLUMNS))
        relative_rows = None if relative is None else np.zeros((len(self._layers), RELATIVE_COLUMNS))
        for position, (layer, arguments) in enumerate(zip(self._layers, self._arguments)):
            values, reference = view(layer.tensor_idx).reshape(-1), view(layer.float_idx).reshape(-1)
            if values.size != reference.size:
                raise InterpreterError(
                    "layer {!r}: its float tensor has {} elements and its quantized tensor {}; they are no pair".format(
                        layer.node, reference.size, values.size
                    )
                )
            measure(values, reference, *arguments, rows[position])
            if relative is not None and relative_rows is not None:
                relative(values, reference, *arguments, relative_rows[position])
        return SampleSums(rows, relative_rows)


def _stride_of(interpreter: Interpreter) -> int:
    return 0 if interpreter.kernels == "reference" else OPTIMIZED_STRIDE


def _kernel_arguments(layer: Layer, stride: int) -> Tuple[float, float, float, int, int, int]:
    if layer.scale is None:
        return kernel_arguments(1.0, 0, 0, 0, stride)
    limits = np.iinfo(layer.dtype)
    return kernel_arguments(layer.scale, layer.zero_point or 0, int(limits.min), int(limits.max), stride)


class _Worker:
    """An interpreter of the debug model, one of the float model where model metrics need it, and their readers."""

    def __init__(
        self,
        interpreter: Interpreter,
        float_interpreter: Optional[Interpreter],
        layers: Sequence[Layer],
        metrics: LayerMetrics,
        outputs: int,
        stateful: bool,
    ) -> None:
        self.interpreter = interpreter
        self._float = float_interpreter
        self._layers = layers
        self._metrics = metrics
        self._outputs = outputs
        self._stateful = stateful
        self._reader = PairReader(interpreter, layers, metrics.relative)

    def measure(self, sample: Sample) -> Any:
        """Runs one sample; returns its sums, the layer metrics ``(metrics, layers)`` and the model metrics."""
        return self._sums(sample), self._layer_metrics(sample), self._model_metrics(sample)

    def _sums(self, sample: Sample) -> SampleSums:
        try:
            if self._stateful:
                self.interpreter.reset_variables()
            self.interpreter.invoke(sample.inputs)
            return self._reader.read()
        except DatasetError as error:
            raise DatasetError("sample {}: {}".format(sample.index, error)) from error

    def tried(self, sample: Sample) -> _Trial:
        """Runs one sample and returns what it showed; a short one twice, since the first time also fills caches."""
        start = time.perf_counter()
        sums = self._sums(sample)
        seconds = time.perf_counter() - start
        if self._float is not None:
            self._float.invoke(sample.inputs)
        if seconds < _SHORT_SECONDS:
            start = time.perf_counter()
            sums = self._sums(sample)
            seconds = time.perf_counter() - start
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.sqrt(sums.sums[:, 2] / sums.sums[:, 0])
        self.interpreter.reset_variables()  # the run begins where the trial began
        kernels = {"xnnpack": "auto"}.get(self.interpreter.kernels, self.interpreter.kernels)
        return _Trial(kernels, self.interpreter.provenance(), self.interpreter.notes, errors, seconds)

    def _layer_metrics(self, sample: Sample) -> np.ndarray:
        difference, direct = self._metrics.difference, self._metrics.direct
        values = np.full((len(difference) + len(direct), len(self._layers)), np.nan)
        if not len(values):
            return values
        read = self.interpreter.read
        for position, layer in enumerate(self._layers):
            reference, quantized = read(layer.float_idx), read(layer.tensor_idx)
            if layer.scale is None:
                error = quantized - reference
            else:
                error = dequantized(quantized, layer.scale, layer.zero_point or 0, _stride_of(self.interpreter))
                error -= reference
            where = "layer {!r}, sample {}".format(layer.node, sample.index)
            for row, (name, function) in enumerate(difference.items()):
                values[row, position] = _number(name, where, function, error)
            for row, (name, function) in enumerate(direct.items(), len(difference)):
                arguments = (reference, quantized, layer.scale, layer.zero_point)
                values[row, position] = _number(name, where, function, *arguments)
        return values

    def _model_metrics(self, sample: Sample) -> np.ndarray:
        if not self._metrics.model:
            return np.zeros(0)
        quantized = self.interpreter.read_outputs(dequantized=True)[: self._outputs]
        floats: List[np.ndarray] = []
        if self._float is not None:
            if self._stateful:
                self._float.reset_variables()
            self._float.invoke(sample.inputs)
            floats = self._float.read_outputs(dequantized=True)
        where = "sample {}".format(sample.index)
        return np.array([_number(name, where, function, floats, quantized) for name, function in self._metrics.model.items()])


def _number(name: str, where: str, function: Callable[..., Any], *arguments: Any) -> float:
    try:
        value = function(*arguments)
    except Exception as error:
        raise MetricError("metric {!r} failed on {}: {}: {}".format(name, where, type(error).__name__, error)) from error
    got = repr(value)
    try:
        if value is not None:  # which numpy would take for NaN: a metric that forgot to return something
            array = np.asarray(value, dtype=np.float64)
            if array.size == 1:
                return float(array.reshape(()))
            got = "an array of shape {}".format(array.shape)
    except (TypeError, ValueError):
        pass
    raise MetricError("metric {!r} on {}: got {}, expected one number".format(name, where, got))


def collect_layer_errors(
    model: bytes,
    layers: Sequence[Layer],
    dataset: Any,
    backend: Backend,
    metrics: LayerMetrics,
    float_model: Optional[bytes] = None,
    outputs: int = 0,
    stateful: bool = False,
    progress: Optional[bool] = None,
    what: str = "measuring layers",
    sequence: bool = False,
) -> Collected:
    """Runs a debug model over a dataset and measures every layer.

    Args:
        model: Debug model whose pairs of tensors are all outputs.
        layers: The pairs.
        dataset: Iterable of samples, with ``length`` where that is known.
        backend: Which code runs it.
        metrics: What else is measured.
        float_model: For model metrics.
        outputs: How many of the debug model's outputs are the model's own; they come first.
        stateful: Set variables back before each sample.
        progress: As in `track`.
        what: Words beside the progress bar.
        sequence: The model's variables carry over from sample to sample, so that none can be left out.

    Raises:
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where the model does not run; also where its first sample ends the process that runs it, or several
            samples do. One or two others that do are left out, and noted.
        MetricError: Where a metric fails.
    """
    samples = iter(track(dataset, what, getattr(dataset, "length", None), progress))
    ahead = list(itertools.islice(samples, 1))
    if not ahead:
        raise DatasetError("the {} yielded no samples".format(getattr(dataset, "role", "debug dataset")))
    _compile(layers, metrics.relative)
    own_functions = bool(metrics.difference or metrics.direct or metrics.model)

    def opened(kernels: str) -> _Worker:
        return _open_worker(backend, model, float_model, kernels, layers, metrics, outputs, stateful)

    pool = backend.pool(lambda: opened(trial.kernels), what, replaceable=not sequence, own_functions=own_functions)
    totals = _Totals(len(layers), metrics)
    with contextlib.closing(pool) as workers:
        trial, notes = _tried(backend, opened, workers, layers, ahead[0])
        workers.count = _useful_workers(backend, trial.seconds, getattr(dataset, "length", None))
        about = dict(trial.provenance, workers=workers.count, isolated=workers.isolated, statistics=measure_pair()[0])
        _log.info("measuring %d layers, %d workers, kernels %s", len(layers), workers.count, trial.kernels)
        try:
            for position, result in workers.map(_Worker.measure, itertools.chain(ahead, samples)):
                totals.add(position, result)
        except BaseException as error:
            # Hours may have gone into the samples before this one: they travel with the error.
            if totals.statistics.samples:
                error.collected = totals.collected(about, notes + workers.notes)  # type: ignore[attr-defined]
            raise
    return totals.collected(about, notes + workers.notes)


class _Totals:
    """What the samples so far add up to."""

    def __init__(self, layers: int, metrics: LayerMetrics) -> None:
        self.statistics = ErrorStatistics(layers)
        self._names, self._model_names = [*metrics.difference, *metrics.direct], list(metrics.model)
        self._sums = np.zeros((len(self._names), layers))
        self._counts = np.zeros((len(self._names), layers), dtype=np.int64)
        self._model_sums = np.zeros(len(self._model_names))

    def add(self, position: int, result: Tuple[SampleSums, np.ndarray, np.ndarray]) -> None:
        """Adds what ``_Worker.measure`` returned for one sample."""
        sample_sums, layer_values, values = result
        self.statistics.add(position, sample_sums)
        present = ~np.isnan(layer_values)
        self._sums += np.where(present, layer_values, 0.0)
        self._counts += present
        self._model_sums += values

    def collected(self, provenance: Dict[str, Any], notes: List[str]) -> Collected:
        """Returns the means."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self._sums / self._counts
            averages = self._model_sums / self.statistics.samples
        metrics, model_metrics = dict(zip(self._names, means)), dict(zip(self._model_names, averages.tolist()))
        return Collected(self.statistics, metrics, model_metrics, provenance, notes)


class _Trial(NamedTuple):
    """What one sample showed.

    Attributes:
        kernels: To be asked for when the model is opened again.
        provenance: Of the interpreter.
        notes: Of the interpreter.
        errors: Root mean square error of each layer.
        seconds: How long the sample took.
    """

    kernels: str
    provenance: Dict[str, Any]
    notes: List[str]
    errors: np.ndarray
    seconds: float


def _open_worker(
    backend: Backend,
    model: bytes,
    float_model: Optional[bytes],
    kernels: str,
    layers: Sequence[Layer],
    metrics: LayerMetrics,
    outputs: int,
    stateful: bool,
) -> _Worker:
    floating = backend.without_delegates.open(float_model, None if backend.delegates else kernels) if float_model else None
    return _Worker(backend.open(model, kernels), floating, layers, metrics, outputs, stateful)


def _compile(layers: Sequence[Layer], relative: bool) -> None:
    """Compiles what measures the layers here, once, and not in each process."""
    measures = [(measure_pair()[1], COLUMNS)] + ([(measure_relative(), RELATIVE_COLUMNS)] if relative else [])
    for dtype in {layer.dtype for layer in layers}:
        for measure, columns in measures:
            measure(np.zeros(1, dtype), np.zeros(1, np.float32), *kernel_arguments(1.0, 0, 0, 0, 0), np.zeros(columns))


def _useful_workers(backend: Backend, seconds: float, length: Optional[int]) -> int:
    """Returns how many workers to start: one where the samples are done sooner than a process is started and fed."""
    if backend.workers is None and (seconds < 2e-4 or (length is not None and length * seconds < 0.03)):
        return 1
    return backend.worker_count()


def _tried(
    backend: Backend, opened: Callable[[str], _Worker], workers: Workers, layers: Sequence[Layer], sample: Sample
) -> Tuple[_Trial, List[str]]:
    """Runs one sample ahead of the rest; returns what it showed, and notes for the reader of the result.

    The process that tries the kernels goes on as the first worker. Where it ends, each kind of kernels is tried in a process
    of its own, to tell which of them it was.
    """

    def scout() -> Tuple[_Worker, Tuple[_Trial, List[str]]]:
        tried: Dict[str, _Worker] = {}

        def attempt(kernels: str) -> _Trial:
            worker = opened(kernels)
            trial = worker.tried(sample)
            tried[trial.kernels] = worker
            return trial

        found = _compared(backend, attempt, layers)
        return tried[found[0].kernels], found

    def apart(kernels: str) -> _Trial:
        what = "running sample {} with {} kernels".format(sample.index, "xnnpack" if kernels == "auto" else kernels)
        return backend.apart(lambda: opened(kernels).tried(sample), what=what)

    if workers.isolated:
        try:
            return workers.start(_Worker.measure, scout, sample)
        except InterpreterError as error:
            if not hasattr(error, "ended"):
                raise
    return _compared(backend, apart, layers)


def _compared(backend: Backend, attempt: Callable[[str], _Trial], layers: Sequence[Layer]) -> Tuple[_Trial, List[str]]:
    """Tries the kernels asked for and, where that is XNNPACK, the builtin ones too; returns which to use, and notes."""
    trial = attempt(backend.kernels)
    notes = list(trial.notes)
    if trial.provenance["kernels"] != "xnnpack" or backend.delegates:
        return trial, notes
    try:
        builtin = attempt("builtin")
    except InterpreterError as error:
        if hasattr(error, "ended"):
            notes.append("XNNPACK could not be held against the builtin kernels: {}".format(error))
        return trial, notes  # the builtin kernels cannot run this model at all: nothing to compare with
    note = _kernel_fault(layers, trial.errors, builtin.errors)
    if note is None:
        return trial, notes
    # Other analyses of the same model ask for it: they must not run on those kernels either.
    return builtin._replace(provenance=dict(builtin.provenance, kernel_fault=True)), [*notes, *builtin.notes, note]


def _kernel_fault(layers: Sequence[Layer], xnnpack: np.ndarray, builtin: np.ndarray) -> Optional[str]:
    """Says where the errors under XNNPACK and under the builtin kernels differ by more than rounding, or None.

    A kernel that computes nonsense (int8 BATCH_MATMUL in TensorFlow 2.21) must not be taken for quantization error. Half
    a step beyond twice the builtin kernels' error is far outside of what different rounding can do to one operator.
    """
    steps = np.array([np.nan if layer.scale is None else layer.scale for layer in layers])
    faulty = np.flatnonzero((xnnpack > 2.0 * builtin + 0.5 * steps) | (np.isnan(xnnpack) & ~np.isnan(builtin)))
    if not len(faulty):
        return None
    worst = ", ".join(
        "{} {!r} (rmse {:.4g} instead of {:.4g})".format(layers[i].op_name, layers[i].node, xnnpack[i], builtin[i])
        for i in faulty[:3]
    )
    return (
        "XNNPACK computes {} of {} layers differently from the builtin kernels: {}. That is a fault of the kernels, not of "
        "quantization; the builtin kernels ran instead".format(len(faulty), len(layers), worst)
    )
