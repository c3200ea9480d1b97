"""The values of tensors while a debug model runs: counted by each worker, and made into profiles once all samples are done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.weight_profiles import SHOWN_BINS
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import Sample
from tflite_qdebug.edit.pairs import FLOAT_MODEL
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError
from tflite_qdebug.findings import Channels, Profile
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.kernels import CHANNEL_COLUMNS, OPTIMIZED_STRIDE, dequantized, scan_values
from tflite_qdebug.progress import track
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.value_statistics import (
    ABOVE,
    BELOW,
    NEAR,
    NEGATIVE,
    ChannelCounts,
    Spread,
    TensorCounts,
    as_channels,
    channel_rows,
    empty_rows,
    merged,
    outlier_share,
)

__all__ = ["Plan", "Tracked"]


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A tensor whose values are looked at while the debug model runs.

    Attributes:
        layer: Its names, its indices in the debug model, and its scale, None where it is float in the quantized model.
        role: ``output`` or ``input``.
        axis: That of the channels; None: it has none.
        channels: Size of the axis.
        start: Place of the first channel among the channels of all tensors.
    """

    layer: Layer
    role: str
    axis: int | None = None
    channels: int = 0
    start: int = 0

    @property
    def node(self) -> str:
        """What the run calls the operator."""
        return self.layer.node

    @property
    def place(self) -> slice:
        """Of its channels among those of all tensors."""
        return slice(self.start, self.start + self.channels)

    @property
    def limits(self) -> tuple[int, int] | None:
        """The least and the greatest integer; None where it is float."""
        if self.layer.scale is None:
            return None
        found = np.iinfo(self.layer.dtype)
        return int(found.min), int(found.max)

    @property
    def range(self) -> tuple[float, float]:
        """What these stand for, in real units."""
        if self.limits is None or self.layer.scale is None:
            return float("nan"), float("nan")
        point = self.layer.zero_point or 0
        return (self.limits[0] - point) * self.layer.scale, (self.limits[1] - point) * self.layer.scale


class _Counted(NamedTuple):
    """What one worker counted."""

    tensors: list[TensorCounts]
    channels: ChannelCounts
    quantized_channels: ChannelCounts


class _Worker:
    """An interpreter of the debug model, and what it has counted so far."""

    def __init__(self, interpreter: Interpreter, tracked: Sequence[Tracked], stateful: bool) -> None:
        self._interpreter, self._tracked, self._stateful = interpreter, tracked, stateful
        self._stride = 0 if interpreter.kernels == "reference" else OPTIMIZED_STRIDE
        total = sum(entry.channels for entry in tracked)
        levels = [entry.limits[1] - entry.limits[0] + 1 if entry.limits else 0 for entry in tracked]
        self.counted = _Counted([TensorCounts(count) for count in levels], ChannelCounts(total), ChannelCounts(total))

    def measure(self, sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs one sample and counts its values; returns its rows, those of all channels, and of the quantized ones."""
        try:
            if self._stateful:
                self._interpreter.reset_variables()
            self._interpreter.invoke(sample.inputs)
        except DatasetError as error:
            raise DatasetError(f"sample {sample.index}: {error}") from error
        rows = empty_rows(len(self._tracked))
        total = len(self.counted.channels.zeros)
        channels, quantized = empty_rows(total, CHANNEL_COLUMNS), empty_rows(total, CHANNEL_COLUMNS)
        for position, entry in enumerate(self._tracked):
            values = self._scanned(entry, rows[position], sample)
            if not values.size:
                continue
            self.counted.tensors[position].values.add(values, rows[position, 1], rows[position, 2])
            self._add_channels(entry, values, channels, self.counted.channels)
            if entry.layer.scale is not None:
                real = self._compared(entry, values, self.counted.tensors[position], sample)
                self._add_channels(entry, real, quantized, self.counted.quantized_channels)
        return rows, channels, quantized

    def _scanned(self, entry: Tracked, row: np.ndarray, sample: Sample) -> np.ndarray:
        """Returns the float values, and fills their row."""
        values = np.ascontiguousarray(self._interpreter.view(entry.layer.float_idx), dtype=np.float32)
        if not values.size:
            return values
        half = 0.5 * (entry.layer.scale or 0.0)
        low, high = (-np.inf, np.inf) if entry.layer.scale is None else entry.range
        scan_values()(values.reshape(-1), low - half, high + half, half, row)
        if not np.isfinite(row[3]):
            raise _not_finite(entry, values, sample, "float model" if entry.layer.reference == FLOAT_MODEL else "float form")
        return values

    def _compared(self, entry: Tracked, values: np.ndarray, counts: TensorCounts, sample: Sample) -> np.ndarray:
        """Counts integers and errors; returns the dequantized values, in the shape of the float ones."""
        integers, limits = self._interpreter.view(entry.layer.tensor_idx).reshape(-1), entry.limits
        assert limits is not None
        assert entry.layer.scale is not None
        if integers.size != values.size:
            raise InterpreterError(
                f"{entry.role} {entry.node!r}: its float tensor has {values.size} elements and its quantized tensor "
                f"{integers.size}; they are no pair"
            )
        counts.integers += np.bincount(integers.astype(np.int64) - limits[0], minlength=len(counts.integers))
        real = dequantized(integers, entry.layer.scale, entry.layer.zero_point or 0, self._stride)
        error = real - values.reshape(-1)
        low, high = float(error.min()), float(error.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise _not_finite(entry, real, sample, "quantized model")
        counts.error.add(error, low, high)
        return real.reshape(values.shape)

    @staticmethod
    def _add_channels(entry: Tracked, values: np.ndarray, rows: np.ndarray, counts: ChannelCounts) -> None:
        if entry.axis is None:
            return
        if entry.axis >= values.ndim or values.shape[entry.axis] != entry.channels:
            rows[entry.place] = np.nan  # the file has another size than the tensor: there are no channels to speak of
            return
        by_channel = as_channels(values, entry.axis)
        rows[entry.place] = own = channel_rows(by_channel)
        counts.add(entry.place, by_channel, own)


def _not_finite(entry: Tracked, values: np.ndarray, sample: Sample, whose: str) -> ModelError:
    broken = values.size - np.count_nonzero(np.isfinite(values))
    return ModelError(
        f"sample {sample.index}: the {whose} gives NaN or infinity in {entry.role} {entry.node!r} (tensor "
        f"{entry.layer.tensor_name!r}), {broken} of {values.size} values; expected finite ones. Leave out that sample, or "
        "choose other nodes"
    )


class Plan:
    """One pass over the dataset: workers count, rows are merged in the order of the samples."""

    def __init__(self, model: bytes, stateful: bool, tracked: list[Tracked], backend: Backend) -> None:
        self._model, self._stateful, self._tracked, self._backend = model, stateful, tracked, backend

    def profiles(self, samples: RealValued, progress: bool | None) -> list[Profile]:
        """Runs all samples and returns a profile of each tensor."""
        _compile()
        what = f"profiling {len(self._tracked)} tensors"
        # A worker's counts would be lost with it, so that none is replaced.
        workers = self._backend.pool(self._worker, what, finish=lambda worker: worker.counted, replaceable=False)
        total = sum(entry.channels for entry in self._tracked)
        sums = [empty_rows(len(self._tracked)), empty_rows(total, CHANNEL_COLUMNS), empty_rows(total, CHANNEL_COLUMNS)]
        count = 0
        for rows in map_samples(_Worker.measure, workers, track(samples, what, samples.length, progress)):
            count += 1
            sums = [merged(total_rows, own) for total_rows, own in zip(sums, rows, strict=True)]
        if not count:
            raise DatasetError(f"the {samples.role} yielded no samples")
        counted = workers.finished[0]
        for other in workers.finished[1:]:
            tensors = [mine + theirs for mine, theirs in zip(counted.tensors, other.tensors, strict=True)]
            channels = counted.channels + other.channels, counted.quantized_channels + other.quantized_channels
            counted = _Counted(tensors, *channels)
        return [self._profile(position, sums, counted, count) for position in range(len(self._tracked))]

    def _worker(self) -> _Worker:
        return _Worker(self._backend.open(self._model), self._tracked, self._stateful)

    def _profile(self, position: int, sums: list[np.ndarray], counted: _Counted, samples: int) -> Profile:
        entry, row, counts = self._tracked[position], sums[0][position], counted.tensors[position]
        layer, spread = entry.layer, Spread.of(row)
        low, high = entry.range
        is_float = layer.scale is None
        shares = row / row[0] if row[0] else np.full_like(row, np.nan)
        quantized = _channels(entry, sums[2], counted.quantized_channels)
        return Profile(
            node=layer.node,
            op_name=layer.op_name,
            operator=layer.operator,
            role=entry.role,
            tensor=layer.tensor_name,
            values=counts.values.coarsened(SHOWN_BINS),
            quantized=None if is_float else _of_integers(entry, counts.integers),
            error=None if is_float else counts.error.coarsened(SHOWN_BINS),
            low=low,
            high=high,
            scale=float("nan") if layer.scale is None else layer.scale,
            clipped_low=float(shares[BELOW]),
            clipped_high=float(shares[ABOVE]),
            integers_used=int(np.count_nonzero(counts.integers)),
            integers=len(counts.integers),
            mean=spread.mean,
            deviation=spread.deviation,
            kurtosis=spread.kurtosis,
            outliers=outlier_share(counts.values, spread),
            negative=float(shares[NEGATIVE]),
            near_zero=float("nan") if is_float else float(shares[NEAR]),
            channels=_channels(entry, sums[1], counted.channels),
            quantized_channels=None if is_float else quantized,
            samples=samples,
            reference=layer.reference,
        )


def _compile() -> None:
    """Compiles the inner loops here, once, and not in each process."""
    values = np.ones((1, 1, 1), np.float32)
    scan_values()(values.reshape(-1), -np.inf, np.inf, 0.0, empty_rows(1)[0])
    Histogram().add(values)
    ChannelCounts(1).add(slice(0, 1), values, channel_rows(values))


def _of_integers(entry: Tracked, integers: np.ndarray) -> Histogram:
    limits, histogram = entry.limits, Histogram()
    assert limits is not None
    assert entry.layer.scale is not None
    steps = np.arange(limits[0], limits[1] + 1, dtype=np.float32) - np.float32(entry.layer.zero_point or 0)
    histogram.add_weighted(steps * np.float32(entry.layer.scale), integers)
    return histogram.coarsened(SHOWN_BINS)


def _channels(entry: Tracked, rows: np.ndarray, counts: ChannelCounts) -> Channels | None:
    if entry.axis is None:
        return None
    own = rows[entry.place]
    if not (own[:, 0] > 0).all():  # NaN as well: no channels to speak of
        return None
    lower, median, upper = counts.quantiles(entry.place, (0.25, 0.5, 0.75), own)
    scale = np.array([np.nan if entry.layer.scale is None else entry.layer.scale])
    deviation = np.sqrt(own[:, 4] / own[:, 0])
    return Channels(entry.axis, own[:, 1], lower, median, upper, own[:, 2], own[:, 3], deviation, scale)
