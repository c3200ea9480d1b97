"""The one loop over a dataset: samples through interpreters into statistics, with several workers at once.

``invoke`` releases the interpreter lock, and so do numpy's loops, so a thread per processor with an interpreter of its own
keeps all of them busy. What a sample gives comes back as one small array of sums; they are added up in the order of
the samples, so that the result does not depend on the number of workers, and memory not on the number of samples.
"""

from __future__ import annotations

import collections
import itertools
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

import numpy as np

from tflite_qdebug.errors import DatasetError, InterpreterError, MetricError, OptionError
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.kernels import COLUMNS, OPTIMIZED_STRIDE, dequantized, measure_pair
from tflite_qdebug.kernels import arguments as kernel_arguments
from tflite_qdebug.progress import track
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import ErrorStatistics, SampleSums

__all__ = ["Backend", "Collected", "LayerMetrics", "PairReader", "collect_layer_errors", "map_samples"]

T = TypeVar("T")
Sample = Any  # datasets.Sample; anything with `index` and `inputs`


class Backend(NamedTuple):
    """Which code runs the model.

    Attributes:
        runtime: As in `Interpreter`.
        kernels: As in `Interpreter`.
        delegates: As in `Interpreter`.
        workers: Interpreters at once; None: one per processor that this process may use, eight at most.
        threads: Threads of each interpreter's kernels.
    """

    runtime: str = "auto"
    kernels: str = "auto"
    delegates: Sequence[Delegate] = ()
    workers: Optional[int] = None
    threads: int = 1

    def open(self, model: bytes, kernels: Optional[str] = None) -> Interpreter:
        """Opens an interpreter."""
        return Interpreter(model, self.runtime, kernels or self.kernels, self.threads, self.delegates)

    def worker_count(self) -> int:
        """Returns how many workers to use.

        Raises:
            OptionError: For a count below one.
        """
        if self.workers is None:
            available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return max(1, min(available, 8))
        if self.workers < 1:
            raise OptionError("got workers={}, expected 1 or more".format(self.workers))
        return int(self.workers)


class LayerMetrics(NamedTuple):
    """The user's own metrics, evaluated on each sample.

    Attributes:
        difference: ``{name: f(error)}``; error is float32, in the tensor's shape.
        direct: ``{name: f(float values, integer values, scale, zero point)}``.
        model: ``{name: f(float outputs, dequantized outputs)}``, both lists in output order.
    """

    difference: Mapping[str, Callable[..., Any]] = {}
    direct: Mapping[str, Callable[..., Any]] = {}
    model: Mapping[str, Callable[..., Any]] = {}


class Collected(NamedTuple):
    """What `collect_layer_errors` returns."""

    statistics: ErrorStatistics
    metrics: Dict[str, np.ndarray]
    model_metrics: Dict[str, float]
    provenance: Dict[str, Any]
    notes: List[str]


def map_samples(
    work: Callable[[Any, Sample], T],
    workers: Sequence[Any],
    samples: Iterable[Sample],
) -> Iterator[T]:
    """Yields ``work(worker, sample)`` in the order of the samples, each worker doing one at a time.

    At most two samples per worker are held, so memory does not grow with their number. The first error ends it.
    """
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(sample: Sample) -> T:
        worker = idle.get()
        try:
            return work(worker, sample)
        finally:
            idle.put(worker)

    if len(workers) == 1:
        for sample in samples:
            yield work(workers[0], sample)
        return
    waiting: Deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(len(workers), thread_name_prefix="tflite_qdebug") as pool:
        try:
            for sample in samples:
                waiting.append(pool.submit(one, sample))
                if len(waiting) >= 2 * len(workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class PairReader:
    """Reads the sums of all layers out of an interpreter that has just run."""

    def __init__(self, interpreter: Interpreter, layers: Sequence[Layer]) -> None:
        """Prepares what does not change from sample to sample."""
        self._interpreter = interpreter
        self._layers = layers
        self._measure = measure_pair()[1]
        stride = _stride_of(interpreter)
        self._arguments = [_kernel_arguments(layer, stride) for layer in layers]

    def read(self) -> SampleSums:
        """Returns what the sample that has just run adds."""
        view, measure = self._interpreter.view, self._measure
        rows = np.zeros((len(self._layers), COLUMNS))
        for layer, arguments, row in zip(self._layers, self._arguments, rows):
            values, reference = view(layer.tensor_idx).reshape(-1), view(layer.float_idx).reshape(-1)
            if values.size != reference.size:
                raise InterpreterError(
                    "layer {!r}: its float tensor has {} elements and its quantized tensor {}; they are no pair".format(
                        layer.node, reference.size, values.size
                    )
                )
            measure(values, reference, *arguments, row)
        return SampleSums(rows)


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
        self._reader = PairReader(interpreter, layers)

    def measure(self, sample: Sample) -> Any:
        """Runs one sample; returns its sums, the layer metrics ``(metrics, layers)`` and the model metrics."""
        try:
            if self._stateful:
                self.interpreter.reset_variables()
            self.interpreter.invoke(sample.inputs)
            sums = self._reader.read()
            return sums, self._layer_metrics(sample), self._model_metrics(sample)
        except DatasetError as error:
            raise DatasetError("sample {}: {}".format(sample.index, error)) from error

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
) -> Collected:
    """Runs a debug model over a dataset and measures every layer.

    Args:
        model: Debug model whose pairs of tensors are all outputs.
        layers: The pairs.
        dataset: Iterable of samples, with ``length`` where that is known.
        backend: Which code runs it.
        metrics: The user's own metrics.
        float_model: For model metrics.
        outputs: How many of the debug model's outputs are the model's own; they come first.
        stateful: Set variables back before each sample.
        progress: As in `track`.
        what: Words beside the progress bar.

    Raises:
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where the model does not run.
        MetricError: Where a metric fails.
    """
    first = backend.open(model)
    notes = list(first.notes)
    samples = iter(track(dataset, what, getattr(dataset, "length", None), progress))
    kernels = {"xnnpack": "auto"}.get(first.kernels, first.kernels)
    ahead: List[Sample] = []

    def worker(interpreter: Interpreter) -> _Worker:
        floating = backend.open(float_model, None if backend.delegates else kernels) if float_model else None
        return _Worker(interpreter, floating, layers, metrics, outputs, stateful)

    if first.kernels == "xnnpack" and not backend.delegates:
        ahead = list(itertools.islice(samples, 1))
        note = _kernel_fault(first, backend, model, layers, ahead, stateful) if ahead else None
        if note is not None:
            notes.append(note)
            kernels = "builtin"
            first = backend.open(model, kernels)
    workers = [worker(first)]
    workers += [worker(backend.open(model, kernels)) for _ in range(backend.worker_count() - 1)]

    statistics = ErrorStatistics(len(layers))
    names = [*metrics.difference, *metrics.direct]
    sums, counts = np.zeros((len(names), len(layers))), np.zeros((len(names), len(layers)), dtype=np.int64)
    model_sums = np.zeros(len(metrics.model))
    everything = itertools.chain(ahead, samples)

    def collected() -> Collected:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / counts
            averages = model_sums / statistics.samples
        return Collected(
            statistics,
            dict(zip(names, means)),
            dict(zip(metrics.model, averages.tolist())),
            dict(first.provenance(), workers=len(workers), statistics=measure_pair()[0]),
            notes,
        )

    try:
        for position, result in enumerate(map_samples(_Worker.measure, workers, everything)):
            sample_sums, layer_values, values = result
            statistics.add(position, sample_sums)
            present = ~np.isnan(layer_values)
            sums += np.where(present, layer_values, 0.0)
            counts += present
            model_sums += values
    except BaseException as error:
        # Hours may have gone into the samples before this one: they travel with the error.
        if statistics.samples:
            error.collected = collected()  # type: ignore[attr-defined]
        raise
    if not statistics.samples:
        raise DatasetError("the {} yielded no samples".format(getattr(dataset, "role", "debug dataset")))
    return collected()


def _kernel_fault(
    interpreter: Interpreter,
    backend: Backend,
    model: bytes,
    layers: Sequence[Layer],
    samples: Sequence[Sample],
    stateful: bool,
) -> Optional[str]:
    """Says where XNNPACK and the builtin kernels disagree by more than rounding, or None.

    A kernel that computes nonsense (int8 BATCH_MATMUL in TensorFlow 2.21) must not be taken for quantization error. Half
    a step beyond twice the builtin kernels' error is far outside of what different rounding can do to one operator.
    """
    try:
        builtin = backend.open(model, "builtin")
    except InterpreterError:
        return None  # the builtin kernels cannot run this model at all: nothing to compare with
    errors = []
    for candidate in (interpreter, builtin):
        sums = _Worker(candidate, None, layers, LayerMetrics(), 0, stateful).measure(samples[0])[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            errors.append(np.sqrt(sums.sums[:, 2] / sums.sums[:, 0]))
    steps = np.array([np.nan if layer.scale is None else layer.scale for layer in layers])
    faulty = np.flatnonzero((errors[0] > 2.0 * errors[1] + 0.5 * steps) | (np.isnan(errors[0]) & ~np.isnan(errors[1])))
    if not len(faulty):
        return None
    worst = ", ".join(
        "{} {!r} (rmse {:.4g} instead of {:.4g})".format(layers[i].op_name, layers[i].node, errors[0][i], errors[1][i])
        for i in faulty[:3]
    )
    return (
        "XNNPACK computes {} of {} layers differently from the builtin kernels: {}. That is a fault of the kernels, not of "
        "quantization; the builtin kernels ran instead".format(len(faulty), len(layers), worst)
    )
