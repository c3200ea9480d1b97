"""The error of each layer over a debug dataset: what it adds itself, or what has accumulated up to it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from tflite_qdebug.collect import Backend, Collected, LayerMetrics, collect_layer_errors
from tflite_qdebug.conversion import CalibratedModel
from tflite_qdebug.datasets import Dataset, Sample, open_dataset
from tflite_qdebug.edit import DebugModel
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.record import Layer, Run

__all__ = ["layer_error", "run_debug_model"]


def layer_error(
    calibrated: CalibratedModel,
    debug_dataset: Any,
    *,
    kind: str = "int8",
    whole_model: bool = False,
    limit: int | None = None,
    backend: Backend | None = None,
    metrics: LayerMetrics | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Measures every layer of a model quantized from ``calibrated``.

    Args:
        calibrated: The calibrated model.
        debug_dataset: Anything that `open_dataset` takes; best apart from the representative dataset, which flatters.
        kind: The kind of quantization, as in `CalibratedModel.quantize`.
        whole_model: Measure the error accumulated up to each layer, instead of what the layer itself adds.
        limit: Take the first so many samples.
        backend: Which code runs the model.
        metrics: The user's own metrics, and whether to measure the mean relative error too.
        progress: As in `progress.track`.
        **options: Denylists, types and so on, as in `CalibratedModel.quantize`.

    Returns:
        The run, one layer for each quantized operator.

    Raises:
        QDebugError: One of its kinds, as `CalibratedModel.debug_model` and `collect_layer_errors` tell.
    """
    debug_model = calibrated.debug_model(kind, whole_model=whole_model, **options)
    dataset = open_dataset(debug_dataset, calibrated.model.input_specs(), "debug dataset", limit)
    float_model = calibrated.float_model.data if calibrated.float_model else None
    described = {"kind": kind, "calibration_dataset": calibrated.dataset, **options}
    return run_debug_model(debug_model, dataset, backend, metrics, float_model, progress, described)


def run_debug_model(
    debug_model: DebugModel,
    dataset: Dataset | RealValued,
    backend: Backend | None = None,
    metrics: LayerMetrics | None = None,
    float_model: bytes | None = None,
    progress: bool | None = None,
    options: dict[str, Any] | None = None,
    reset: bool = True,
) -> Run:
    """Runs a debug model over an opened dataset and returns the run, with what is needed to repeat it.

    Variables are set back before each sample unless ``reset`` is False.

    An error or an interruption on the way carries the run over the samples before it, as its ``partial_run``.
    """
    from tflite_qdebug import __version__

    backend, metrics = backend or Backend(), metrics or LayerMetrics()
    count = len(debug_model.layers)
    compared = list(debug_model.layers)
    rows = {
        group: {name: _appended(compared, layers) for name, layers in of.items()}
        for group, of in (("parts", debug_model.parts), ("whole", debug_model.whole))
    }

    def as_run(collected: Collected, notes: list[str]) -> Run:
        provenance = {
            "tflite_qdebug": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "verify": debug_model.verify,
            "options": {name: value for name, value in (options or {}).items() if value not in (None, (), [])},
            "debug_model_sha256": hashlib.sha256(debug_model.data).hexdigest(),
            "float_model_sha256": hashlib.sha256(float_model).hexdigest() if float_model else None,
            "debug_dataset": dataset.description,
            "samples": collected.statistics.samples,
            **collected.provenance,
        }
        select = collected.statistics.select
        return Run(
            debug_model.verify,
            list(debug_model.layers),
            select(range(count)),
            {name: values[:count] for name, values in collected.metrics.items()},
            collected.model_metrics,
            provenance,
            [*debug_model.notes, *collected.notes, *notes],
            {name: select(places) for name, places in rows["parts"].items()},
            {name: select(places) for name, places in rows["whole"].items()},
            [layer.node for layer in debug_model.whole.get("quantized", ())],
        )

    try:
        collected = collect_layer_errors(
            debug_model.data,
            compared,
            dataset if isinstance(dataset, RealValued) else RealValued(dataset, debug_model.scales),
            backend,
            metrics,
            float_model if metrics.model else None,
            debug_model.outputs,
            debug_model.stateful and reset,
            progress,
            f"measuring {count} layers",
            sequence=debug_model.stateful and not reset,
        )
    except BaseException as error:
        if hasattr(error, "collected"):
            reason = f"ended before the dataset did: {type(error).__name__} {error}".rstrip()
            error.partial_run = as_run(error.collected, [reason])  # type: ignore[attr-defined]
        raise
    return as_run(collected, [])


def _appended(compared: list[Layer], layers: Sequence[Layer | None]) -> list[int]:
    """Appends the layers that exist, and returns the place of each; -1 for one that does not."""
    places = []
    for layer in layers:
        places.append(-1 if layer is None else len(compared))
        if layer is not None:
            compared.append(layer)
    return places


class RealValued:
    """A dataset for a model with float inputs whose samples may be integers of the quantized model: these get dequantized.

    Attributes:
        role: As of the dataset.
        length: As of the dataset.
    """

    def __init__(self, dataset: Dataset, scales: Sequence[QuantizationParameters | None]) -> None:
        """Wraps an opened dataset; ``scales`` has None for an input whose samples stay as they are."""
        self._dataset, self._scales = dataset, scales
        self._ahead: list[Sample] = []
        self._rest: Iterator[Sample] | None = None
        self._failure: Exception | None = None
        self.role, self.length = dataset.role, dataset.length

    @property
    def description(self) -> str:
        """As of the dataset."""
        return self._dataset.description

    def ahead(self, count: int) -> list[Sample]:
        """Returns the first samples, so many at most, which the next pass yields all the same.

        A wrong sample among them ends them here, and is an error only in that pass, when those before it have been measured.

        Raises:
            DatasetError: Where the very first is wrong, or there is none.
        """
        self._rest = self._rest or self._samples()
        try:
            for sample in itertools.islice(self._rest, max(0, count - len(self._ahead))):
                self._ahead.append(sample)
        except Exception as error:
            self._failure = error
        if not self._ahead and self._failure is not None:
            raise self._failure
        return self._ahead[:count]

    def __iter__(self) -> Iterator[Sample]:
        ahead, rest, failure = self._ahead, self._rest or self._samples(), self._failure
        self._ahead, self._rest, self._failure = [], None, None
        yield from ahead
        if failure is not None:
            raise failure
        yield from rest

    def _samples(self) -> Iterator[Sample]:
        for sample in self._dataset:
            yield dataclasses.replace(sample, inputs=[self._real(i, array) for i, array in enumerate(sample.inputs)])

    def _real(self, position: int, array: np.ndarray) -> np.ndarray:
        scale = self._scales[position] if position < len(self._scales) else None
        return array if scale is None or array.dtype == np.float32 else scale.dequantize(array)
