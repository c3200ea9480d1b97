"""The samples on which the quantized model differs most from the float model, and those whose prediction flips."""

from __future__ import annotations

import functools
import heapq
import math
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.pairs import Pair, open_pair
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import Sample, open_dataset
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, did_you_mean
from tflite_qdebug.findings import SampleError, Samples
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.match import Graph, match_models
from tflite_qdebug.output_error import BADNESS, OutputErrors, measure_output, metric_of_sums, pooled_sums
from tflite_qdebug.progress import track

__all__ = ["RANKING", "worst_samples"]

#: Metrics that can rank samples.
RANKING = ("sqnr_db", "cosine", "mse", "mre", "chebyshev", "kl")


def worst_samples(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    metric: str = "sqnr_db",
    count: int = 10,
    signature: str | None = None,
    limit: int | None = None,
    labels: bool | str = False,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> Samples:
    """Runs both models on every sample, and keeps those on which they differ most.

    It answers what ``select_sensitive_samples`` of Horizon's ``hmct-debugger`` does. What is kept does not grow with the number
    of samples.

    Args:
        float_model: Anything that `load_float_model` takes.
        quantized_model: A quantized ``.tflite`` made by any tool: path, bytes, or anything with ``data``.
        debug_dataset: Anything that `open_dataset` takes. For an integer input samples may be float or such integers.
        metric: One of `RANKING`, of all outputs together. A sample that gives NaN or infinity is worse than any other.
        count: How many of the worst samples, and how many flips, to keep.
        signature: Run this signature; None: the main subgraph.
        limit: Take the first so many samples.
        labels: As for `open_dataset`.
        backend: Which code runs the models; a delegate runs the quantized model alone.
        progress: As in `progress.track`.

    Returns:
        The samples, and the error at the outputs over all of them. An error or an interruption on the way carries what was
        found before as its ``partial_samples``.

    Raises:
        OptionError: For an unknown metric, one that does not apply to the outputs, or a count below 1.
        ModelError: Where a model cannot be read, or the two are no pair.
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where a model does not run.
    """
    if metric not in RANKING:
        raise OptionError(f"got metric {metric!r}, expected one of {', '.join(RANKING)}.{did_you_mean(metric, RANKING)}")
    if count < 1:
        raise OptionError(f"got count={count}, expected 1 or more samples to keep")
    backend = backend or Backend()
    pair = open_pair(float_model, quantized_model).select(signature)
    plan = _plan(pair, backend)
    main = pair.quantized.main
    several = pair.signature is not None
    dataset = open_dataset(
        debug_dataset, pair.quantized.input_specs(), "debug dataset", limit, pair.signature, labels, skip_others=several
    )
    samples = RealValued(dataset, [main.tensors[index].quantization for index in main.inputs])
    kept = _Kept(metric, count, plan.names)
    workers = backend.pool(functools.partial(_Worker, plan), "running both models", finish=_Worker.provenance)

    def found() -> Samples:
        ran = workers.finished[0] if workers.finished else {}
        return kept.found(_provenance(pair, samples, kept, ran), [*plan.notes, *ran.get("notes", ()), *workers.notes])

    try:
        for compared in map_samples(_Worker.compare, workers, track(samples, "comparing outputs", samples.length, progress)):
            kept.add(compared)
    except BaseException as error:
        if kept.errors.samples:
            error.partial_samples = found()  # type: ignore[attr-defined]
        raise
    if not kept.errors.samples:
        raise DatasetError(f"the {dataset.role} yielded no samples")
    return found()


class _Plan(NamedTuple):
    """The two models, and which input and output of the one belongs to which of the other.

    Attributes:
        inputs: For each input of the float model its position among the quantized model's.
        outputs: Positions of outputs that are compared: ``(quantized model, float model)``.
        names: Of these outputs in the float model.
    """

    floating: bytes
    quantized: bytes
    backend: Backend
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    stateful: bool
    notes: tuple[str, ...]


def _plan(pair: Pair, backend: Backend) -> _Plan:
    if pair.floating is None:
        raise ModelError(
            "got no float model; what the quantized model gives can only be held against the float model's outputs"
        )
    ours, theirs = Graph(pair.floating), Graph(pair.quantized)
    match = match_models(pair.floating, pair.quantized)
    at = {other: mine for mine, other in match.values.items()}
    outputs, names, left_out = [], [], []
    for position, (index, root) in enumerate(zip(theirs.subgraph.outputs, theirs.outputs, strict=True)):
        other = ours.outputs.index(at[root]) if at.get(root) in ours.outputs else -1
        if other < 0 or not theirs.is_numeric(index) or not ours.is_numeric(ours.subgraph.outputs[other]):
            left_out.append(theirs.tensor(index).name)
            continue
        outputs.append((position, other))
        names.append(ours.tensor(ours.subgraph.outputs[other]).name)
    if not outputs:
        raise ModelError(
            f"none of the quantized model's outputs ({', '.join(map(repr, left_out))}) is of real numbers and has a "
            "counterpart in the float model; expected one that can be compared"
        )
    notes = [f"outputs that cannot be compared, since they are no real numbers: {', '.join(left_out)}"] if left_out else []
    return _Plan(
        pair.floating.data,
        pair.quantized.data,
        backend,
        tuple(pair.quantized.main.inputs.index(match.values[index]) for index in pair.floating.main.inputs),
        tuple(outputs),
        tuple(names),
        any(tensor.is_variable for model in (pair.floating, pair.quantized) for tensor in model.main.tensors),
        tuple(notes),
    )


class _Compared(NamedTuple):
    """What one sample showed: the sums of each output, ``(outputs, COLUMNS)``, and the classes."""

    position: int
    label: Any
    sums: np.ndarray
    float_class: int
    quantized_class: int


class _Worker:
    """An interpreter of each model."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._floating: Interpreter = plan.backend.without_delegates.open(plan.floating)
        self._quantized: Interpreter = plan.backend.open(plan.quantized)

    def compare(self, sample: Sample) -> _Compared:
        try:
            references = self._outputs(self._floating, [sample.inputs[position] for position in self._plan.inputs])
            values = self._outputs(self._quantized, sample.inputs)
        except DatasetError as error:
            raise DatasetError(f"sample {sample.index}: {error}") from error
        pairs = [(values[mine], references[other]) for mine, other in self._plan.outputs]
        classes = _classes(*pairs[0])
        return _Compared(sample.index, sample.label, np.stack([measure_output(*pair) for pair in pairs]), *classes)

    def _outputs(self, interpreter: Interpreter, inputs: list[np.ndarray]) -> list[np.ndarray]:
        if self._plan.stateful:
            interpreter.reset_variables()
        interpreter.invoke(inputs)
        return interpreter.read_outputs(dequantized=True)

    def provenance(self) -> dict[str, Any]:
        notes = [
            f"{name} model: {note}"
            for name, interpreter in (("float", self._floating), ("quantized", self._quantized))
            for note in interpreter.notes
        ]
        return {**self._quantized.provenance(), "float_kernels": self._floating.kernels, "notes": notes}


def _classes(values: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Returns the position of the greatest value of both, -1 where the output is not one row of several values."""
    if reference.ndim == 0 or reference.shape[-1] < 2 or reference.size != reference.shape[-1]:
        return -1, -1
    return int(reference.argmax()), int(values.argmax())


class _Kept:
    """The worst samples so far, the first flips, and the errors over all."""

    def __init__(self, metric: str, count: int, outputs: tuple[str, ...]) -> None:
        self._metric, self._count = metric, count
        self.errors = OutputErrors(["quantized"], outputs)
        self._worst: list[tuple[float, int, SampleError]] = []  # a heap, the least bad first
        self._flips: list[SampleError] = []
        self._flip_count = 0

    def add(self, compared: _Compared) -> None:
        pooled = pooled_sums(compared.sums)
        sample = SampleError(
            index=compared.position,
            label=compared.label,
            sqnr_db=float(metric_of_sums("sqnr_db", pooled)),
            cosine=float(metric_of_sums("cosine", pooled)),
            mse=float(metric_of_sums("mse", pooled)),
            float_class=compared.float_class,
            quantized_class=compared.quantized_class,
            value=float(metric_of_sums(self._metric, pooled)),
        )
        self.errors.add(compared.position, compared.sums[None])
        if self._metric not in self.errors.names():
            raise OptionError(
                f"got metric {self._metric!r}, which does not apply: the outputs of sample {compared.position} are no "
                "probabilities that sum to 1"
            )
        badness = _badness(sample.value, BADNESS[self._metric], bool(np.isfinite(pooled).all()))
        # Of equals the first sample stays.
        entry = (badness, -sample.index, sample)
        if len(self._worst) < self._count:
            heapq.heappush(self._worst, entry)
        elif entry[:2] > self._worst[0][:2]:
            heapq.heapreplace(self._worst, entry)
        if sample.flipped:
            self._flip_count += 1
            if len(self._flips) < self._count:
                self._flips.append(sample)

    def found(self, provenance: dict[str, Any], notes: list[str]) -> Samples:
        worst = tuple(sample for _, _, sample in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))
        unique = tuple(dict.fromkeys(notes))
        return Samples(worst, tuple(self._flips), self._flip_count, self.errors, self._metric, provenance, unique)


def _badness(value: float, sign: float, finite: bool) -> float:
    if not finite:
        return math.inf
    return -math.inf if math.isnan(value) else sign * value


def _provenance(pair: Pair, samples: RealValued, kept: _Kept, ran: dict[str, Any]) -> dict[str, Any]:
    from tflite_qdebug import __version__

    assert pair.floating is not None
    return {
        "tflite_qdebug": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": {"model": pair.origin, **({"signature": pair.signature} if pair.signature else {})},
        "float_model_sha256": pair.floating.sha256,
        "quantized_model_sha256": pair.quantized.sha256,
        "debug_dataset": samples.description,
        "samples": kept.errors.samples,
        **{name: value for name, value in ran.items() if name != "notes"},
    }
