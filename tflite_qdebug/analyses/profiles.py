"""How the values of weights, inputs and outputs are distributed, in float and quantized, whole and by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from tflite_qdebug import edit
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.pairs import Pair, confirmed_match, open_pair
from tflite_qdebug.analyses.value_profiles import Plan, Tracked
from tflite_qdebug.analyses.weight_profiles import checked_axis, weight_profiles
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import Sample, open_dataset
from tflite_qdebug.edit import DebugModel
from tflite_qdebug.edit.pairs import DEQUANTIZED, FLOAT_MODEL
from tflite_qdebug.errors import DatasetError, OptionError, did_you_mean
from tflite_qdebug.findings import Profile
from tflite_qdebug.match import Graph, match_models
from tflite_qdebug.record import Layer

__all__ = ["ROLES", "profile_pair"]

#: What a profile can be of.
ROLES = ("weights", "output", "input")
# A longer axis is hardly one of channels, but of a flattened picture; it takes a kilobyte for each of its elements.
_MOST_CHANNELS = 8192


def profile_pair(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    nodes: Sequence[str] | None = None,
    roles: Sequence[str] = ROLES,
    axis: int | None = None,
    signature: str | None = None,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> tuple[Profile, ...]:
    """Returns how the values of a quantized model, and of the float model that it came from, are distributed.

    The dataset is gone through once, for all tensors. Each model computes on its own values throughout, so that an error is the
    accumulated one; variables are set back before each sample. What a sample leaves behind is counted in bins, so that memory
    does not depend on the number of samples; quartiles of channels and shares of outliers are therefore known to the width of a
    bin: quartiles to 1/32 of the channel's largest value. Those of weights are exact.

    Args:
        float_model: Anything that `load_float_model` takes; None: the quantized model's own dequantized weights stand for it.
        quantized_model: A quantized ``.tflite`` made by any tool: path, bytes, or anything with ``data``.
        debug_dataset: Anything that `open_dataset` takes; may be None for weights alone.
        nodes: Names as in a run; None: all.
        roles: Some of `ROLES`. ``output``: each matched operator's; ``weights``: the constants of each operator but biases;
            ``input``: the model's inputs, with the range that they have in the quantized model.
        axis: That of the channels, for all tensors; None: the last of inputs and outputs, of weights the one proper to the
            operator.
        signature: As for `pair_error`.
        limit: Take the first so many samples.
        backend: Which code runs the model. Where XNNPACK computes nonsense, which a run notes, ask for the kernels of the run.
        progress: As in `progress.track`.

    Returns:
        Inputs first, then each operator's weights and outputs, in execution order. Channels are None where an activation has
        no axis, one of no fixed size, or, unless ``axis`` asks for it, one of more than 8192.

    Raises:
        OptionError: For unknown nodes, which names the nearest, for unknown roles, or an axis that a tensor has not.
        ModelError: Where a model cannot be read, the two are no pair, or one of them gives NaN or infinity: with the tensor and
            the sample.
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where the model does not run.
    """
    chosen = _checked_roles(roles)
    backend = backend or Backend()
    if debug_dataset is None and set(chosen) != {"weights"}:
        raise OptionError(
            "got no debug dataset, which the profiles of inputs and outputs need; expected one, or roles=['weights']"
        )
    pair = open_pair(float_model, quantized_model).select(signature)
    samples = None if debug_dataset is None else _opened(pair, debug_dataset, limit)
    match = None
    if pair.floating is not None:
        match = match_models(pair.floating, pair.quantized)
        if samples is not None:
            match = confirmed_match(match, pair.floating, pair.quantized, _first(samples), backend)
    debug_model = edit.debug_pair(pair.floating, pair.quantized, True, False, match)
    graph = Graph(pair.quantized)
    names = _node_names(graph, debug_model)
    tracked = list(_tracked(graph, debug_model, pair.floating is not None))
    known = [*dict.fromkeys([*(entry.node for entry in tracked), *names.values()])]
    wanted = _checked_nodes(nodes, known)
    found: list[Profile] = []
    if "weights" in chosen:
        names = {operator: node for operator, node in names.items() if node in wanted}
        floating = None if pair.floating is None else Graph(pair.floating)
        found += weight_profiles(floating, graph, match, names, axis)
    tracked = [entry for entry in tracked if entry.node in wanted and entry.role in chosen]
    if tracked and samples is not None:
        plan = Plan(debug_model.data, debug_model.stateful, _with_axes(tracked, axis), backend)
        found += plan.profiles(samples, progress)
    if nodes is not None and not found:
        raise OptionError(f"none of the nodes {', '.join(map(repr, nodes))} has {' or '.join(chosen)}; choose other roles")
    # Stable: of one operator the weights come first.
    return tuple(sorted(found, key=lambda profile: -1 if profile.role == "input" else profile.operator))


def _checked_roles(roles: Sequence[str]) -> tuple[str, ...]:
    chosen = (roles,) if isinstance(roles, str) else tuple(roles)
    for role in chosen:
        if role not in ROLES:
            raise OptionError(f"got role {role!r}, expected {', '.join(ROLES)}.{did_you_mean(str(role), ROLES)}")
    if not chosen:
        raise OptionError(f"got no roles, expected some of {', '.join(ROLES)}")
    return chosen


def _checked_nodes(nodes: Sequence[str] | None, known: Sequence[str]) -> set[str]:
    if nodes is None:
        return set(known)
    if isinstance(nodes, str):
        raise OptionError(f"got nodes={nodes!r}, expected a list of names, such as [{nodes!r}]")
    for name in nodes:
        if name not in known:
            raise OptionError(
                f"got node {name!r}, expected the name of a layer of the run, which has no such one."
                f"{did_you_mean(str(name), known)}"
            )
    if not nodes:
        raise OptionError("got an empty list of nodes, expected names, or None for all")
    return set(nodes)


def _opened(pair: Pair, source: Any, limit: int | None) -> RealValued:
    main = pair.quantized.main
    several = pair.signature is not None
    specs = pair.quantized.input_specs()
    dataset = open_dataset(source, specs, "debug dataset", limit, pair.signature, skip_others=several)
    return RealValued(dataset, [main.tensors[index].quantization for index in main.inputs])


def _first(samples: RealValued) -> Sample:
    ahead = samples.ahead(1)
    if not ahead:
        raise DatasetError(f"the {samples.role} yielded no samples")
    return ahead[0]


def _node_names(graph: Graph, debug_model: DebugModel) -> dict[int, str]:
    """Returns what the run calls each operator of the quantized model; one without a layer goes by its own output."""
    names = {op.index: graph.tensor(op.outputs[0]).name for op in graph.operators if op.outputs}
    for layer in reversed(debug_model.layers):
        if layer.operator in names:
            names[layer.operator] = layer.node
    return names


def _tracked(graph: Graph, debug_model: DebugModel, has_float: bool) -> Iterator[Tracked]:
    """Yields the model's inputs and the pairs of the debug model."""
    inputs, seen = graph.subgraph.inputs, set()
    for layer in debug_model.layers:
        source = None
        if layer.op_name == "QUANTIZE":
            source = layer.tensor_idx if layer.operator < 0 else graph.subgraph.operators[layer.operator].inputs[0]
        if source in inputs:
            seen.add(source)
            yield Tracked(dataclasses.replace(layer, tensor_name=graph.tensor(source).name), "input")
        else:
            yield Tracked(layer, "output")
    for index in inputs:
        tensor = graph.tensor(index)
        if index not in seen and tensor.is_float:
            reference = FLOAT_MODEL if has_float else DEQUANTIZED
            yield Tracked(
                Layer(tensor.name, "INPUT", -1, tensor.name, index, index, tensor.shape, "float32", None, None, "", reference),
                "input",
            )


def _with_axes(tracked: Sequence[Tracked], axis: int | None) -> list[Tracked]:
    """Gives each tensor its axis, and its channels a place among those of all."""
    result, start = [], 0
    for entry in tracked:
        shape = entry.layer.shape
        own: int | None
        if axis is not None:
            own = checked_axis(axis, shape, f"the {entry.role} {entry.node!r}")
        else:
            own = len(shape) - 1 if shape and 0 < shape[-1] <= _MOST_CHANNELS else None
        size = 0 if own is None else shape[own]
        result.append(dataclasses.replace(entry, axis=own, channels=size, start=start))
        start += size
    return result
