"""Accumulated error: the error at every node's output in partly quantized models, as a curve over the nodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tflite_qdebug.analyses.layer_error import run_debug_model
from tflite_qdebug.analyses.mixed_pair import MixedPair, open_mixed, trusted_backend
from tflite_qdebug.collect import Backend, LayerMetrics
from tflite_qdebug.edit import DebugModel
from tflite_qdebug.edit.mixed import ACTIVATION, FLOAT, NODE, WEIGHTS, MixedModels, Node
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.findings import Curve
from tflite_qdebug.record import Layer

__all__ = ["accumulated_error", "partly_quantized"]

#: Names of groups that are no nodes.
ALL, GROUPS = "all", {"weights": WEIGHTS, "weight": WEIGHTS, "activation": ACTIVATION, "activations": ACTIVATION}


def accumulated_error(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    quantized: Sequence[str | Sequence[str]] = (),
    left_float: Sequence[str | Sequence[str]] = (),
    signature: str | None = None,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
    finished: Callable[[Curve], None] | None = None,
    known: Iterable[Curve] = (),
) -> tuple[Curve, ...]:
    """Measures the error at every node's output, against the float model's, in partly quantized models.

    A curve's run has all columns of `Run.columns`, ``mre`` among them.

    Args:
        float_model: As for `pair_error`.
        quantized_model: As for `pair_error`.
        debug_dataset: As for `pair_error`.
        quantized: What is quantized, one curve for each entry: a node's name, or a list of them, together; ``weights``: the
            weights of all nodes alone; ``activation``: the activations of all nodes alone; ``all``. A group may hold nodes and
            one of these words: ``["weights", "conv1"]`` quantizes the weights of ``conv1`` alone.
        left_float: What is left float while all others are quantized, one curve for each entry: a node's name, or a list.
        signature: As for `pair_error`.
        limit: Take the first so many samples.
        backend: Which code runs the models.
        progress: As in `progress.track`.
        finished: Called with each curve as soon as it is there, so that it may be saved.
        known: Curves measured before, on the same models and samples; one that is asked for again is taken from here.

    Returns:
        The curves, those of ``quantized`` first. With neither of the two there are three: ``all``, ``weights``, ``activation``.

    Raises:
        OptionError: For an unknown node, or where weights or activations of everything are to be left float.
        QDebugError: One of its kinds, as `pair_error` tells.
    """
    backend = backend or Backend()
    mixed = open_mixed(float_model, quantized_model, debug_dataset, signature=signature, limit=limit, backend=backend)
    backend, doubts = trusted_backend(mixed, backend)
    for option, entries in (("quantized", quantized), ("left_float", left_float)):
        if isinstance(entries, str):
            raise OptionError(f"got {option}={entries!r}, expected a list of groups, such as [{entries!r}]")
    asked = list(quantized) or ([] if left_float else [ALL, "weights", "activation"])
    wanted = [_quantized_group(mixed.models, _as_group(entry)) for entry in asked]
    wanted += [_float_group(mixed.models, _as_group(entry)) for entry in left_float]
    before = {(curve.name, curve.quantized, curve.left_float): curve for curve in known}
    curves = []
    for name, quantized_names, float_names, forms in wanted:
        curve = before.get((name, quantized_names, float_names))
        if curve is None or not _is_of(curve, mixed):
            run = _measured(mixed, forms, name, backend, progress)
            run.notes += doubts
            curve = Curve(name, quantized_names, float_names, run)
            if finished is not None:
                finished(curve)
        curves.append(curve)
    return tuple(curves)


def _is_of(curve: Curve, mixed: MixedPair) -> bool:
    """True where a curve was measured on these models and samples, with all that a curve has by now."""
    ran = curve.run.provenance
    models = (ran.get("float_model_sha256"), ran.get("quantized_model_sha256"))
    same = models == mixed.hashes and ran.get("pair_and_samples") == _identity(mixed)
    return same and curve.run.statistics.has_relative_errors


def _identity(mixed: MixedPair) -> str:
    return hashlib.sha256(json.dumps(mixed.identity).encode()).hexdigest()


def _as_group(entry: str | Sequence[str]) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) else tuple(entry)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"got group {entry!r}, expected the name of a node, or a list of names")
    return names


_Group = tuple[str, tuple[str, ...], tuple[str, ...], dict[int, str]]


def _quantized_group(models: MixedModels, names: tuple[str, ...]) -> _Group:
    words = {GROUPS[name] for name in names if name in GROUPS}
    form = words.pop() if len(words) == 1 else NODE
    nodes = [_node(models, name) for name in names if name not in GROUPS and name != ALL]
    # Nodes narrow a word down, but beside all of them one more says nothing.
    chosen = nodes if nodes and ALL not in names else [node for node in models.nodes if node.quantized]
    title = " + ".join(names) if len(names) <= 2 else f"{names[0]} + {len(names) - 1} more"
    return title, names, (), {node.operator: form for node in chosen}


def _float_group(models: MixedModels, names: tuple[str, ...]) -> _Group:
    words = [name for name in names if name in GROUPS or name == ALL]
    if words:
        raise OptionError(
            f"got {words[0]!r} to be left float, expected names of nodes; to quantize one kind alone, quantize the other"
        )
    left = {_node(models, name).operator for name in names}
    title = f"all but {names[0]}" if len(names) == 1 else f"all but {len(names)} nodes"
    return title, (), names, {node.operator: NODE for node in models.nodes if node.operator not in left}


def _node(models: MixedModels, name: str) -> Node:
    try:
        return models.node(name)
    except OptionError as error:
        words = [ALL, "weights", "activation"]
        text = str(error) if str(error).endswith((".", "?")) else f"{error}."
        raise OptionError(f"{text} Besides nodes there are {', '.join(words)}.{did_you_mean(name, words)}") from error


def _measured(mixed: MixedPair, forms: dict[int, str], name: str, backend: Backend, progress: bool | None) -> Any:
    debug_model = partly_quantized(mixed.models, lambda node: forms.get(node.operator, FLOAT), mixed.is_stateful)
    described = {"model": mixed.pair.origin, "quantized_model_sha256": mixed.pair.quantized.sha256, "partly_quantized": name}
    floating = None if mixed.pair.floating is None else mixed.pair.floating.data
    metrics = LayerMetrics(relative=True)
    run = run_debug_model(debug_model, mixed.samples(), backend, metrics, floating, progress, described)
    run.provenance["quantized_model_sha256"] = mixed.pair.quantized.sha256
    run.provenance["pair_and_samples"] = _identity(mixed)
    return run


def partly_quantized(models: MixedModels, form_of: Callable[[Node], str], stateful: bool) -> DebugModel:
    """Returns a model that computes every node's output as the forms say, and all in float.

    Args:
        models: Puts it together.
        form_of: As for `MixedModels.build`.
        stateful: True where the models have variables.
    """
    graph, floats = models.graph, models.floats
    values = [
        value for value in models.order(FLOAT) if graph.is_numeric(value) and floats.graph.tensor(floats.at[value]).is_float
    ]
    model = models.build(form_of, values, reference=True)
    layers = []
    for value, tensor, reference in zip(values, model.tensors, model.references, strict=True):
        node = models.node_of(value)
        assert node is not None
        name = floats.graph.tensor(floats.at[value]).name
        shape = graph.tensor(value).shape
        layers.append(
            Layer(name, node.op_name, node.operator, name, tensor, reference, shape, "float32", None, None, f"{name}:{value}")
        )
    specs = dict(zip(models.inputs, models.input_specs(), strict=True))
    return DebugModel(
        model.data,
        tuple(layers),
        0,
        stateful,
        "whole_model",
        (),
        tuple(specs[value] for value in model.inputs),
        tuple(graph.tensor(value).quantization for value in model.inputs),
    )
