"""The one loop over a dataset: samples through interpreters into statistics, with several workers at once.

``invoke`` releases the interpreter lock, and so do numpy's loops, so a thread per processor with an interpreter of its own
keeps all of them busy. What a sample gives comes back as one small array of sums; they are added up in the order of
the samples, so that the result does not depend on the number of workers, and memory not on the number of samples.
"""

from __future__ import annotations

import collections
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, TypeVar

import numpy as np

from tflite_qdebug.errors import DatasetError, InterpreterError, MetricError, OptionError
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.progress import track
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import ErrorStatistics, SampleSums

__all__ = ["Backend", "Collected", "LayerMetrics", "PairReader", "collect_layer_errors", "map_samples"]

import threading
_LOCK = threading.Lock()
T = TypeVar("T")
Sample = Any  # datasets.Sample; anything with `index` and `inputs`

# Layers up to this many elements are gathered and measured together: for them the calls cost more than the arithmetic.
_GATHERED = 4096
# Larger ones are measured in blocks whose float values, errors and dequantized values stay in the second-level cache.
_BLOCK = 131072


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
    idle = queue.SimpleQueue()  # type: queue.SimpleQueue[Any]
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
    waiting = collections.deque()  # type: Deque[Future[T]]
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
    """Reads the sums of all layers out of an interpreter that has just run.

    Args given once: which tensors; what one call needs (buffers, positions) is made at the first sample and again when
    a dynamic shape changed.
    """

    def __init__(self, interpreter: Interpreter, layers: Sequence[Layer]) -> None:
        self._interpreter = interpreter
        self._layers = layers
        self._ends = [
            (np.iinfo(layer.dtype).min, np.iinfo(layer.dtype).max) if np.dtype(layer.dtype).kind in "iu" else None
            for layer in layers
        ]
        self._sizes = None  # type: Optional[List[int]]
        # Where an end of the integer range has been seen, its values are counted; until then the extreme is looked for.
        self._seen = np.zeros((len(layers), 2), dtype=bool)

    def read(self) -> SampleSums:
        """Returns what the sample that has just run adds."""
        view = self._interpreter.view
        floats = [view(layer.float_idx).reshape(-1) for layer in self._layers]
        quantized = [view(layer.tensor_idx).reshape(-1) for layer in self._layers]
        sizes = [values.size for values in floats]
        if sizes != self._sizes:
            self._prepare(sizes, [values.size for values in quantized])
        sample = SampleSums(len(self._layers))
        with np.errstate(invalid="ignore", over="ignore"):
            for group in self._groups:
                self._read_gathered(sample, group, floats, quantized)
            for position in self._large:
                self._read_large(sample, position, floats[position], quantized[position])
        return sample

    def _prepare(self, sizes: List[int], quantized_sizes: List[int]) -> None:
        for layer, size, quantized_size in zip(self._layers, sizes, quantized_sizes):
            if size != quantized_size:
                raise InterpreterError(
                    "layer {!r}: its float tensor has {} elements and its quantized tensor {}; they are no pair".format(
                        layer.node, size, quantized_size
                    )
                )
        self._sizes = sizes
        small = [position for position, size in enumerate(sizes) if 0 < size <= _GATHERED]
        self._large = [position for position, size in enumerate(sizes) if size > _GATHERED]
        # One group per type, so that the integers can be gathered without a cast.
        dtypes = sorted({self._layers[position].dtype for position in small})
        self._groups = [
            _Group([position for position in small if self._layers[position].dtype == dtype], self._layers, sizes)
            for dtype in dtypes
        ]
        block = min(_BLOCK, max([sizes[position] for position in self._large], default=1))
        self._error = np.empty(block, dtype=np.float32)
        self._dequantized = np.empty(block, dtype=np.float32)
        self._ones = np.ones(block, dtype=np.float32)

    def _read_gathered(
        self, sample: SampleSums, group: _Group, floats: List[np.ndarray], quantized: List[np.ndarray]
    ) -> None:
        reference = np.concatenate([floats[position] for position in group.positions], out=group.reference)
        integers = np.concatenate([quantized[position] for position in group.positions], out=group.integers)
        if group.scale is None:
            error = integers.astype(np.float64)
            error -= reference
        else:
            # In float32 as the kernel does it, then exactly: the sums of few elements can afford float64.
            dequantized = (integers.astype(np.float32) - group.zero_point) * group.scale
            error = np.subtract(dequantized, reference).astype(np.float64)
        signal = reference.astype(np.float64)
        add, starts, rows = np.add.reduceat, group.starts, group.positions
        error_sum, error_squared = add(error, starts), add(error * error, starts)
        sample.sums[rows, :5] = np.stack(
            [group.sizes, error_sum, error_squared, add(signal * signal, starts), add(error * signal, starts)], axis=1
        )
        mean = error_sum / group.sizes
        sample.stddev[rows] = np.sqrt(np.maximum(error_squared / group.sizes - mean * mean, 0.0))
        sample.max_abs_error[rows] = np.maximum.reduceat(np.abs(error), starts)
        ends = self._ends[group.positions[0]]
        if ends is not None:
            sample.integer_range[rows, 0] = np.minimum.reduceat(integers, starts)
            sample.integer_range[rows, 1] = np.maximum.reduceat(integers, starts)
            sample.sums[rows, 5] = add((integers == ends[0]).astype(np.int64), starts)
            sample.sums[rows, 6] = add((integers == ends[1]).astype(np.int64), starts)

    def _read_large(self, sample: SampleSums, position: int, reference: np.ndarray, integers: np.ndarray) -> None:
        layer = self._layers[position]
        ready = None
        if layer.dequantized_idx is not None:
            ready = self._interpreter.view(layer.dequantized_idx).reshape(-1)
        elif layer.scale is None:
            ready = integers
        error_sum = error_squared = float_squared = error_float = 0.0
        lowest, highest = [], []
        size, dot, ones = reference.size, np.dot, self._ones
        for start in range(0, size, _BLOCK):
            signal = reference if size <= _BLOCK else reference[start : start + _BLOCK]
            count = signal.size
            error = self._error[:count]
            if ready is not None:
                np.subtract(ready[start : start + count], signal, error)
            else:
                dequantized = self._dequantized[:count]
                np.copyto(dequantized, integers[start : start + count], casting="unsafe")
                dequantized -= np.float32(layer.zero_point)
                dequantized *= np.float32(layer.scale)
                np.subtract(dequantized, signal, error)
            # Dot products run in vector instructions, which numpy's sum does only in part.
            error_sum += float(dot(error, ones[:count]))
            error_squared += float(dot(error, error))
            float_squared += float(dot(signal, signal))
            error_float += float(dot(error, signal))
            lowest.append(np.minimum.reduce(error))
            highest.append(np.maximum.reduce(error))
        sample.sums[position, :5] = size, error_sum, error_squared, float_squared, error_float
        sample.max_abs_error[position] = np.maximum(np.max(highest), -np.min(lowest)) if len(lowest) > 1 else np.maximum(highest[0], -lowest[0])
        sample.stddev[position] = self._deviation(position, reference, integers, ready, error_sum, error_squared)
        if self._ends[position] is not None:
            self._read_integers(sample, position, integers)

    def _deviation(
        self,
        position: int,
        reference: np.ndarray,
        integers: np.ndarray,
        ready: Optional[np.ndarray],
        error_sum: float,
        error_squared: float,
    ) -> float:
        """Returns the standard deviation of one layer's error in this sample.

        Where the bias is most of the error, the difference of the two sums would cancel, so the deviation is taken
        around the mean in a second pass.
        """
        size = reference.size
        mean, mean_squared = error_sum / size, error_squared / size
        variance = mean_squared - mean * mean
        if variance > 0.1 * mean_squared or not np.isfinite(variance):
            return float(np.sqrt(variance))
        layer = self._layers[position]
        if ready is None:
            ready = (integers.astype(np.float32) - np.float32(layer.zero_point)) * np.float32(layer.scale)
        return float(np.std((ready - reference).astype(np.float64)))

    def _read_integers(self, sample: SampleSums, position: int, integers: np.ndarray) -> None:
        low, high = self._ends[position]  # type: ignore[misc]
        seen = self._seen[position]
        if not seen[0]:
            sample.integer_range[position, 0] = least = int(np.minimum.reduce(integers))
            seen[0] = least == low
        if seen[0]:
            sample.sums[position, 5] = count = np.count_nonzero(integers == low)
            sample.integer_range[position, 0] = low if count else np.minimum.reduce(integers)
        if not seen[1]:
            sample.integer_range[position, 1] = greatest = int(np.maximum.reduce(integers))
            seen[1] = greatest == high
        if seen[1]:
            sample.sums[position, 6] = count = np.count_nonzero(integers == high)
            sample.integer_range[position, 1] = high if count else np.maximum.reduce(integers)


class _Group:
    """Small layers of one type, laid end to end."""

    def __init__(self, positions: List[int], layers: Sequence[Layer], sizes: List[int]) -> None:
        self.positions = positions
        self.sizes = np.array([sizes[position] for position in positions])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        total = int(self.sizes.sum())
        self.reference = np.empty(total, dtype=np.float32)
        self.integers = np.empty(total, dtype=layers[positions[0]].dtype)
        self.scale = self.zero_point = None  # type: Optional[np.ndarray]
        if layers[positions[0]].scale is not None:
            scales = [layers[position].scale for position in positions]
            points = [layers[position].zero_point for position in positions]
            self.scale = np.repeat(np.array(scales, dtype=np.float32), self.sizes)
            self.zero_point = np.repeat(np.array(points, dtype=np.float32), self.sizes)


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
        self._reading = _LOCK

    def measure(self, sample: Sample) -> Any:
        """Runs one sample; returns its sums, the layer metrics ``(metrics, layers)`` and the model metrics."""
        try:
            if self._stateful:
                self.interpreter.reset_variables()
            self.interpreter.invoke(sample.inputs)
            with self._reading:
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
                error = (quantized.astype(np.float32) - np.float32(layer.zero_point)) * np.float32(layer.scale)
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
        floats = []  # type: List[np.ndarray]
        if self._float is not None:
            if self._stateful:
                self._float.reset_variables()
            self._float.invoke(sample.inputs)
            floats = self._float.read_outputs(dequantized=True)
        where = "sample {}".format(sample.index)
        return np.array(
            [_number(name, where, function, floats, quantized) for name, function in self._metrics.model.items()]
        )


def _number(name: str, where: str, function: Callable[..., Any], *arguments: Any) -> float:
    try:
        value = function(*arguments)
    except Exception as error:
        raise MetricError("metric {!r} failed on {}: {}: {}".format(name, where, type(error).__name__, error)) from error
    try:
        array = np.asarray(value, dtype=np.float64)
        if array.size != 1:
            raise ValueError("shape {}".format(array.shape))
        return float(array.reshape(()))
    except (TypeError, ValueError) as error:
        raise MetricError(
            "metric {!r} on {}: got {!r} ({}), expected one number".format(name, where, value, error)
        ) from error


def collect_layer_errors(
    model: bytes,
    layers: Sequence[Layer],
    dataset: Any,
    backend: Backend = Backend(),
    metrics: LayerMetrics = LayerMetrics(),
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
    ahead = []  # type: List[Sample]

    def worker(interpreter: Interpreter) -> _Worker:
        floating = backend.open(float_model, None if backend.delegates else kernels) if float_model else None
        return _Worker(interpreter, floating, layers, metrics, outputs, stateful)

    if first.kernels == "xnnpack" and not backend.delegates:
        ahead = [sample for sample, _ in zip(samples, range(1))]
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
    everything = _chained(ahead, samples)
    for position, result in enumerate(map_samples(_Worker.measure, workers, everything)):
        sample_sums, layer_values, values = result
        statistics.add(position, sample_sums)
        present = ~np.isnan(layer_values)
        sums += np.where(present, layer_values, 0.0)
        counts += present
        model_sums += values
    if not statistics.samples:
        raise DatasetError("the {} yielded no samples".format(getattr(dataset, "role", "debug dataset")))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
    averages = model_sums / statistics.samples
    return Collected(
        statistics,
        dict(zip(names, means)),
        dict(zip(metrics.model, (float(value) for value in averages))),
        dict(workers[0].interpreter.provenance(), workers=len(workers)),
        notes,
    )


def _chained(ahead: List[Sample], samples: Iterator[Sample]) -> Iterator[Sample]:
    yield from ahead
    ahead.clear()
    yield from samples


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
