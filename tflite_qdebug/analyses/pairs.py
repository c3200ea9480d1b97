"""The error of each layer of any quantized model, with the float model it came from or without, whoever made the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug import edit
from tflite_qdebug.analyses.control_flow import Body, bodies, body_dataset, counterparts
from tflite_qdebug.analyses.layer_error import RealValued, run_debug_model
from tflite_qdebug.collect import Backend, LayerMetrics
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import Dataset, Sample, open_dataset
from tflite_qdebug.edit.dequantized import refuse_compiled
from tflite_qdebug.edit.subgraphs import select_subgraph, selected_signature
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, QDebugError, did_you_mean
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.match import Graph, Match, match_models
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run

__all__ = ["Pair", "confirmed_match", "load_quantized_model", "open_pair", "pair_error", "pair_errors"]

#: On how many samples the error is split unless asked otherwise: enough to tell which layer is to blame.
FEW = 8
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
    refuse_compiled(model)
    if not reduced:
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
    parts: int | bool = FEW,
    sequence: bool = False,
    signature: str | None = None,
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
        parts: On how many samples, the first, to split each layer's error into weights, output and input, and the model's into
            weights and activations, as `Run` has them; True: on all, which takes some 3.7 times as long; 0: on none.
        sequence: The samples are a sequence: variables keep their state from one to the next, instead of being reset.
        signature: Measure this signature; None: the main subgraph. `pair_errors` measures all of them, and what is inside of
            loops and branches.
        limit: Take the first so many samples.
        backend: Which code runs the model; ``sequence`` uses one worker.
        metrics: The user's own metrics.
        progress: As in `progress.track`.

    Returns:
        The run, one layer for each quantized operator and each QUANTIZE of float values.

    Raises:
        ModelError: Where a model cannot be read, or the two are no pair.
        OptionError: For a signature that a model lacks.
        QDebugError: One of its kinds, as `collect_layer_errors` tells.
    """
    pair = open_pair(float_model, quantized_model)
    chosen = pair.select(signature)
    backend = backend or Backend()
    dataset = _opened(chosen, debug_dataset, limit)
    settings = _Settings(whole_model, parts, sequence, backend, metrics, progress)
    run = _measured(chosen, dataset, settings)
    run.notes += pair.left_out(chosen)
    return run


def pair_errors(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    whole_model: bool = False,
    parts: int | bool = FEW,
    sequence: bool = False,
    signature_datasets: Mapping[str, Any] | None = None,
    limit: int | None = None,
    backend: Backend | None = None,
    metrics: LayerMetrics | None = None,
    progress: bool | None = None,
) -> dict[str, Run]:
    """Measures every signature of a quantized model, and the operators inside of its loops, branches and composites.

    Args:
        float_model: As for `pair_error`.
        quantized_model: As for `pair_error`.
        debug_dataset: As for `pair_error`; of samples ``(signature, inputs)`` each signature takes its own. May be None where
            ``signature_datasets`` has data for each signature that is to be measured.
        whole_model: As for `pair_error`.
        parts: As for `pair_error`.
        sequence: As for `pair_error`.
        signature_datasets: ``{signature: dataset}`` for signatures that take other samples.
        limit: As for `pair_error`.
        backend: As for `pair_error`.
        metrics: As for `pair_error`.
        progress: As for `pair_error`.

    Returns:
        The runs by name: the signature's key, or ``main`` in a model with one at most; ``<that>/while:5/body`` for what
        operator 5 calls. What could not be measured stands in the notes of the run that it belongs to.

    Raises:
        QDebugError: As `pair_error`, where nothing at all could be measured.
    """
    pair = open_pair(float_model, quantized_model)
    backend = backend or Backend()
    settings = _Settings(whole_model, parts, sequence, backend, metrics, progress)
    runs: dict[str, Run] = {}
    failures: dict[str, QDebugError] = {}
    given = dict(signature_datasets or {})
    _check_signatures(pair, given)
    keys: list[str | None] = [*pair.signatures] or [None]
    for key in keys:
        data = given.get(key or "", debug_dataset)
        if data is None:
            continue
        try:
            chosen = pair.select(key)
            dataset = _opened(chosen, data, limit)
            runs.update(_all_measured(chosen, key or "main", dataset, settings))
        except (DatasetError, ModelError) as error:
            if len(pair.signatures) < 2:
                raise
            failures[str(key)] = error
    if not runs:
        raise next(iter(failures.values()), OptionError("got no debug dataset, expected one"))
    for key, failure in failures.items():
        next(iter(runs.values())).notes.append(f"signature {key!r} is not measured: {failure}")
    return runs


class _Settings(NamedTuple):
    """How to measure."""

    whole_model: bool
    parts: int | bool
    sequence: bool
    backend: Backend
    metrics: LayerMetrics | None
    progress: bool | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A quantized model and the float model that it came from, or None.

    Attributes:
        floating: The float model.
        quantized: The quantized model.
        origin: Where the float model came from.
        signature: The signature that is the main subgraph of both; None where nothing was selected.
    """

    floating: Model | None
    quantized: Model
    origin: str
    signature: str | None = None

    @property
    def signatures(self) -> list[str]:
        """The signatures, where there are several."""
        keys = [signature.key for signature in self.quantized.signatures]
        return keys if len(keys) > 1 else []

    def select(self, signature: str | None) -> Pair:
        """Returns the pair with that signature as main subgraph.

        Raises:
            OptionError: Where a model has no such signature.
        """
        if signature is None:
            return self
        floating = None if self.floating is None else selected_signature(self.floating, signature)
        return Pair(floating, selected_signature(self.quantized, signature), self.origin, signature)

    def left_out(self, chosen: Pair) -> list[str]:
        """Says what a run of the main subgraph alone does not show."""
        notes = []
        others = [key for key in self.signatures if key != (chosen.signature or self.quantized.signatures[0].key)]
        if others:
            notes.append(f"not measured: the signatures {', '.join(map(repr, others))}; pair_errors measures all")
        inside = [body.path for body in bodies(chosen.quantized) if _has_quantized(chosen.quantized, body.subgraph)]
        if inside:
            notes.append(f"not measured: the operators inside of {', '.join(inside)}; pair_errors measures them")
        return notes


def open_pair(float_model: Any, quantized_model: Any) -> Pair:
    """Reads both models, as `pair_error` takes them."""
    quantized = load_quantized_model(quantized_model)
    if float_model is None:
        return Pair(None, quantized, "none")
    floating = load_float_model(float_model)
    return Pair(floating.model, quantized, floating.origin)


def _check_signatures(pair: Pair, given: Mapping[str, Any]) -> None:
    known = pair.signatures or ["main", *(signature.key for signature in pair.quantized.signatures)]
    for key in given:
        if key not in known:
            raise OptionError(f"got data for signature {key!r}, expected one of {', '.join(known)}.{did_you_mean(key, known)}")


def _has_quantized(model: Model, subgraph: int) -> bool:
    tensors = model.subgraphs[subgraph].tensors
    return any(tensor.is_quantized or (tensor.is_constant and tensor.dtype == np.float16) for tensor in tensors)


def _opened(pair: Pair, source: Any, limit: int | None) -> Dataset:
    several = pair.signature is not None
    return open_dataset(source, pair.quantized.input_specs(), "debug dataset", limit, pair.signature, skip_others=several)


def _measured(pair: Pair, dataset: Dataset, settings: _Settings) -> Run:
    """Matches, builds the debug model, and runs it."""
    match = None
    quantized = pair.quantized.main
    samples = RealValued(dataset, [quantized.tensors[index].quantization for index in quantized.inputs])
    if pair.floating is not None:
        match = match_models(pair.floating, pair.quantized)
        match = confirmed_match(match, pair.floating, pair.quantized, samples.ahead(1)[0], settings.backend)
    described = {
        "model": pair.origin,
        "quantized_model_sha256": pair.quantized.sha256,
        "signature": pair.signature,
        "sequence": settings.sequence,
    }
    backend = settings.backend._replace(workers=1) if settings.sequence else settings.backend
    floating = pair.floating.data if pair.floating else None
    reset = not settings.sequence

    def ran(parts: bool, source: RealValued, metrics: LayerMetrics | None, progress: bool | None) -> Run:
        debug_model = edit.debug_pair(pair.floating, pair.quantized, settings.whole_model, parts, match)
        return run_debug_model(debug_model, source, backend, metrics, floating, progress, described, reset)

    few = 0 if settings.parts is True else int(settings.parts)
    if settings.parts is True or (few and len(samples.ahead(few + 1)) <= few):
        return ran(True, samples, settings.metrics, settings.progress)
    split = None
    if few:
        arrays = [list(sample.inputs) for sample in samples.ahead(few)]
        first = open_dataset(arrays, dataset.inputs, dataset.role)
        split = ran(True, RealValued(first, ()), None, False)
    run = ran(False, samples, settings.metrics, settings.progress)
    if split is not None:
        run.parts, run.whole, run.outputs = split.parts, split.whole, split.outputs
        run.notes.append(f"the parts of the error are of the first {few} samples; parts=True, or --parts, splits it on all")
    return run


def _all_measured(pair: Pair, name: str, dataset: Dataset, settings: _Settings) -> dict[str, Run]:
    """Measures the main subgraph, and what is inside of its loops, branches and composites."""
    runs: dict[str, Run] = {}
    notes: list[str] = []
    inside = [body for body in bodies(pair.quantized) if _has_quantized(pair.quantized, body.subgraph)]
    if _has_quantized(pair.quantized, 0) or not inside:
        runs[name] = _measured(pair, dataset, settings)
    else:
        notes.append(f"{name} itself is float throughout; only what it calls is quantized")
    if runs and not settings.backend.delegates:
        # Where XNNPACK refused the model, or computed nonsense, the builtin kernels ran: inside of it they do too.
        ran = str(runs[name].provenance["kernels"])
        settings = settings._replace(backend=settings.backend._replace(kernels={"xnnpack": "auto"}.get(ran, ran)))
    runs.update(_inside(pair, inside, name, notes, dataset, settings))
    if not runs:
        raise ModelError("; ".join(notes))
    next(iter(runs.values())).notes += notes
    return runs


def _inside(
    pair: Pair, inside: Sequence[Body], name: str, notes: list[str], dataset: Dataset, settings: _Settings
) -> Iterator[tuple[str, Run]]:
    """Yields the runs of what is inside; what cannot be measured is noted."""
    theirs = counterparts(pair.quantized, pair.floating) if inside and pair.floating else {}
    for body in inside:
        path = name + body.path[len("main") :]
        if body.refusal:
            notes.append(f"{path} is not measured: {body.refusal}")
            continue
        counterpart = theirs.get(body.path)
        floating = Model(select_subgraph(pair.floating, counterpart.subgraph)) if pair.floating and counterpart else None
        inner = Pair(floating, Model(select_subgraph(pair.quantized, body.subgraph)), pair.origin)
        try:
            received = body_dataset(pair.quantized, body.path, dataset, settings.backend, sequence=settings.sequence)
            run = _measured(inner, received, settings._replace(sequence=False))
        except QDebugError as error:
            notes.append(f"{path} is not measured: {error}")
            continue
        if pair.floating and counterpart is None:
            run.notes.append("the float model has no such body, so it is held against its own dequantized form")
        yield path, run


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

    def compared() -> tuple[dict[int, float], list[tuple[int, int]]]:
        mine = _values_of(ours, [sample.inputs[position] for position in order], backend.without_delegates)
        others = _values_of(theirs, sample.inputs, backend)
        agreement = {b: _cosine(mine[a], others[b]) for a, b in match.values.items() if a in mine and b in others}
        return agreement, list(_found_by_value(match, mine, others))

    agreement, found = backend.apart(compared, what="running both models on the first sample")
    return match.extended(found).confirmed(agreement, theirs)


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
        # Not by BLAS: to wake its threads takes a hundred times longer than the sums, where other processes keep them waiting.
        product, ours, theirs = (np.einsum("i,i->", a, b) for a, b in ((wide, other), (wide, wide), (other, other)))
        value = float(product / np.sqrt(ours * theirs))
    return value if np.isfinite(value) else float(not wide.any() and not other.any())


def _found_by_value(match: Match, mine: dict[int, np.ndarray], others: dict[int, np.ndarray]) -> Iterator[tuple[int, int]]:
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
