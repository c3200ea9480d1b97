"""The error of each layer of any quantized model, with the float model it came from or without, whoever made the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tflite_qdebug import edit
from tflite_qdebug.analyses.layer_error import RealValued, run_debug_model
from tflite_qdebug.collect import Backend, LayerMetrics
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import Sample, open_dataset
from tflite_qdebug.errors import ModelError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.match import Graph, Match, match_models
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run

__all__ = ["confirmed_match", "load_quantized_model", "pair_error"]

# From this cosine on, two tensors are taken for the same by their values alone.
_SAME = 0.99


def load_quantized_model(source: Any) -> Model:
    """Reads a quantized ``.tflite``: path, bytes, or anything with ``data``.

    Raises:
        ModelError: Where it cannot be read, or nothing in it is quantized.
    """
    model = source if isinstance(source, Model) else Model(getattr(source, "data", source))
    reduced = [
        tensor
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
        if tensor.is_quantized or (tensor.is_constant and tensor.dtype == np.float16)
    ]
    if not reduced and not any(op.name == "edgetpu-custom-op" for op in model.main.operators):
        raise ModelError(
            "got a float model as the quantized one: none of its tensors is quantized; expected the quantized model (are the "
            "two swapped?)"
        )
    return model


def pair_error(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    whole_model: bool = False,
    parts: bool = False,
    sequence: bool = False,
    limit: int | None = None,
    backend: Backend | None = None,
    metrics: LayerMetrics | None = None,
    progress: bool | None = None,
) -> Run:
    """Measures every layer of a quantized model against the float model.

    Args:
        float_model: Anything that `load_float_model` takes; None: the float operators are made of the quantized model's own
            dequantized weights, whose error is invisible then.
        quantized_model: A quantized ``.tflite`` made by any tool: path, bytes, or anything with ``data``.
        debug_dataset: Anything that `open_dataset` takes. For an integer input samples may be float or such integers.
        whole_model: Measure the error accumulated up to each layer, instead of what the layer itself adds.
        parts: Also split each layer's error into weights, output and input, and the model's into weights and activations; see
            `Run`.
        sequence: The samples are a sequence: variables keep their state from one to the next, instead of being reset.
        limit: Take the first so many samples.
        backend: Which code runs the model; ``sequence`` needs one worker.
        metrics: The user's own metrics.
        progress: As in `progress.track`.

    Returns:
        The run, one layer for each quantized operator and each QUANTIZE of float values.

    Raises:
        ModelError: Where a model cannot be read, or the two are no pair.
        QDebugError: One of its kinds, as `collect_layer_errors` tells.
    """
    quantized = load_quantized_model(quantized_model)
    floating = None if float_model is None else load_float_model(float_model)
    backend = backend or Backend()
    match = None
    dataset = open_dataset(debug_dataset, quantized.input_specs(), "debug dataset", limit)
    if floating is not None:
        match = match_models(floating.model, quantized)
        samples = RealValued(dataset, [quantized.main.tensors[index].quantization for index in quantized.main.inputs])
        match = confirmed_match(match, floating.model, quantized, samples.first(), backend)
    debug_model = edit.debug_pair(floating.model if floating else None, quantized, whole_model, parts, match)
    described = {
        "model": floating.origin if floating else "none",
        "quantized_model_sha256": hashlib.sha256(quantized.data).hexdigest(),
        "sequence": sequence,
    }
    if sequence:
        backend = backend._replace(workers=1)
    return run_debug_model(
        debug_model, dataset, backend, metrics, floating.data if floating else None, progress, described, not sequence
    )


def confirmed_match(match: Match, float_model: Model, quantized_model: Model, sample: Sample, backend: Backend) -> Match:
    """Returns the match with what one sample showed: which values agree, and which unmatched ones must be the same.

    Args:
        match: What names, constants and structure gave.
        float_model: The float model.
        quantized_model: The quantized model.
        sample: With an array for each input, in the quantized model's order, float32 where it has a scale.
        backend: Which code runs the models.
    """
    ours, theirs = Graph(float_model), Graph(quantized_model)
    order = [quantized_model.main.inputs.index(match.values[index]) for index in float_model.main.inputs]
    mine = _values_of(ours, [sample.inputs[position] for position in order], backend)
    others = _values_of(theirs, sample.inputs, backend)
    agreement = {b: _cosine(mine[a], others[b]) for a, b in match.values.items() if a in mine and b in others}
    match = match.extended(_found_by_value(match, ours, theirs, mine, others))
    return match.confirmed(agreement, theirs)


def _values_of(graph: Graph, inputs: list[np.ndarray], backend: Backend) -> dict[int, np.ndarray]:
    """Returns every value of real numbers that a model computes, float32 and flat, by root."""
    wanted = [
        output
        for operator in graph.operators
        for output in operator.outputs
        if graph.is_numeric(output) and graph.tensor(output).dtype != object
    ]
    interpreter: Interpreter = backend.open(edit.expose(graph.model, wanted))
    interpreter.invoke(inputs)
    values = {}
    for index in wanted:
        array, quantization = interpreter.read(index), graph.tensor(index).quantization
        if array.dtype != np.float32 and quantization is not None:
            array = quantization.dequantize(array)
        values[index] = array.reshape(-1)
    return values


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    if first.size != second.size:
        return 0.0
    wide, other = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(all="ignore"):
        value = float(wide @ other / np.sqrt((wide @ wide) * (other @ other)))
    return value if np.isfinite(value) else float(not wide.any() and not other.any())


def _found_by_value(
    match: Match, ours: Graph, theirs: Graph, mine: dict[int, np.ndarray], others: dict[int, np.ndarray]
) -> Iterator[tuple[int, int]]:
    """Yields values that nothing else has matched, and that are the same numbers as no third value is."""
    taken = set(match.values.values())
    left = {root: array for root, array in others.items() if root not in taken}
    for root, array in mine.items():
        if root in match.values or not array.any():
            continue
        alike = [other for other, theirs_ in left.items() if theirs_.size == array.size and _cosine(array, theirs_) >= _SAME]
        rivals = [other for other, values in mine.items() if other != root and values.size == array.size]
        if len(alike) == 1 and not any(_cosine(mine[rival], left[alike[0]]) >= _SAME for rival in rivals):
            yield root, alike.pop()
