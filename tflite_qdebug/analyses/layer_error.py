"""The error of each layer over a debug dataset: what it adds itself, or what has accumulated up to it."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

from tflite_qdebug.collect import Backend, Collected, LayerMetrics, collect_layer_errors
from tflite_qdebug.conversion import CalibratedModel
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.edit import DebugModel
from tflite_qdebug.record import Run

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
        metrics: The user's own metrics.
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
    dataset: Dataset,
    backend: Backend | None = None,
    metrics: LayerMetrics | None = None,
    float_model: bytes | None = None,
    progress: bool | None = None,
    options: dict[str, Any] | None = None,
) -> Run:
    """Runs a debug model over an opened dataset and returns the run, with what is needed to repeat it.

    An error or an interruption on the way carries the run over the samples before it, as its ``partial_run``.
    """
    from tflite_qdebug import __version__

    backend, metrics = backend or Backend(), metrics or LayerMetrics()

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
        return Run(
            debug_model.verify,
            list(debug_model.layers),
            collected.statistics,
            collected.metrics,
            collected.model_metrics,
            provenance,
            [*debug_model.notes, *collected.notes, *notes],
        )

    try:
        collected = collect_layer_errors(
            debug_model.data,
            debug_model.layers,
            dataset,
            backend,
            metrics,
            float_model if metrics.model else None,
            debug_model.outputs,
            debug_model.stateful,
            progress,
            f"measuring {len(debug_model.layers)} layers",
        )
    except BaseException as error:
        if hasattr(error, "collected"):
            reason = f"ended before the dataset did: {type(error).__name__} {error}".rstrip()
            error.partial_run = as_run(error.collected, [reason])  # type: ignore[attr-defined]
        raise
    return as_run(collected, [])
