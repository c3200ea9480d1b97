"""Which layers of a Keras model are trained quantization-aware, and the Python that says so elsewhere."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tflite_qdebug import tf_private
from tflite_qdebug.errors import MissingPackageError, ModelError, OptionError, nearest_names
from tflite_qdebug.remedies.keras2 import as_tf_keras

__all__ = ["Annotation", "LayerGraph", "annotate", "import_tfmot", "layer_of_node"]

#: Layers that tensorflow-model-optimization folds a batch normalization into.
_FOLDING = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")
_ACTIVATIONS = ("ReLU", "LeakyReLU", "Activation")
# Handled by a transformation of the graph, not by its registry.
_TRANSFORMED = ("SeparableConv2D", "SeparableConv1D")
_ACTIVATION_NAMES = ("linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh")
# What a model's output tensor is called, instead of after its layer.
_OUTPUT_NAME = re.compile(r"(StatefulPartitionedCall|PartitionedCall|Identity)(_\d+)?(:\d+)?")
_PREFIX = "quant_"


def import_tfmot() -> Any:
    """Imports tensorflow-model-optimization, and leaves the environment as it was.

    Its import sets TF_USE_LEGACY_KERAS in the process's environment, which would give the user's later ``tf.keras``, and all
    child processes, another Keras.

    Raises:
        MissingPackageError: Where it is not installed, or does not fit TensorFlow.
    """
    tf = tf_private.tensorflow()
    getattr(tf.keras, "version", None)  # decided now, by the user's environment
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise MissingPackageError(
            f"quantization-aware training needs tensorflow-model-optimization, which cannot be imported ({error}); "
            "pip install tensorflow-model-optimization tf-keras"
        ) from error
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The layers to train quantization-aware.

    Attributes:
        layers: Their Keras names, in the model's order.
        skipped: ``{layer: reason}`` of layers that were asked for and that tensorflow-model-optimization cannot quantize.
        nodes: ``{node: layer}`` of the report's nodes that were given, and the layers they were found to be.
    """

    layers: tuple[str, ...]
    skipped: dict[str, str]
    nodes: dict[str, str]

    def refusals(self) -> list[str]:
        """Returns each reason with the layers that it holds for."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]

    def code(self) -> str:
        """Returns Python to be pasted into a training script that has a tf-keras ``model``."""
        names = "\n".join(f"    {name!r}," for name in self.layers)
        left = "".join(f"# left out: {line}\n" for line in self.refusals())
        return f"""\
import tensorflow_model_optimization as tfmot
import tf_keras

QUANTIZED_LAYERS = {{
{names}
}}
{left}

def annotate(layer):
    if layer.name in QUANTIZED_LAYERS:
        return tfmot.quantization.keras.quantize_annotate_layer(layer)
    return layer


annotated = tf_keras.models.clone_model(model, clone_function=annotate)
quantization_aware = tfmot.quantization.keras.quantize_apply(annotated)
"""


def annotate(model: Any, layers: Sequence[str] | None = None, *, strict: bool = False) -> Annotation:
    """Chooses the layers to train quantization-aware, without training.

    Args:
        model: As `as_tf_keras` takes it.
        layers: Names of Keras layers, or nodes of a report (output tensor names, also shortened with ``…``). A convolution
            comes with the batch normalization and the activation behind it, and these with it, since they are one operator
            in the converted model. None: all layers.
        strict: Raise where a layer cannot be trained quantization-aware, instead of leaving it float.

    Raises:
        OptionError: For a name that is no layer of the model, with the nearest ones.
        ModelError: Where a layer cannot be quantized and ``strict`` is set, or none can.
        MissingPackageError: Where tensorflow-model-optimization or tf-keras is missing.
    """
    registry = import_tfmot().quantization.keras.default_8bit.Default8BitQuantizeScheme().get_quantize_registry()
    keras_model = as_tf_keras(model)
    graph = LayerGraph(keras_model)
    if layers is None:
        nodes, wanted = {}, [name for name in graph.layers if type(graph.layers[name]).__name__ != "InputLayer"]
    else:
        nodes = _found(layers, graph)
        chosen = {member for name in nodes.values() for member in graph.group(name)}
        wanted = [name for name in graph.layers if name in chosen]
    reasons: dict[str, str] = {}
    for name in wanted:
        reason = _refusal(name, graph, registry, wanted, reasons)
        if reason:
            reasons[name] = reason
    kept = tuple(name for name in wanted if name not in reasons)
    annotation = Annotation(kept, reasons, nodes)
    shown = "; ".join(annotation.refusals())
    if strict and reasons:
        raise ModelError(
            f"{len(reasons)} layers cannot be trained quantization-aware ({shown}), and strict forbids to leave any out; "
            "choose other layers, or strict=False"
        )
    if not kept:
        raise ModelError(f"none of the layers asked for can be trained quantization-aware ({shown}); choose others")
    return annotation


def _refusal(name: str, graph: LayerGraph, registry: Any, wanted: Sequence[str], reasons: dict[str, str]) -> str | None:
    """Returns why a layer cannot be annotated, or None where it can."""
    layer = graph.layers[name]
    kind = type(layer).__name__
    before = graph.producers[name]
    if kind == "BatchNormalization":
        if len(before) == 1 and before[0] in wanted and before[0] not in reasons and graph.folds(before[0]):
            return None
        return f"tensorflow-model-optimization takes a BatchNormalization only right behind {', '.join(_FOLDING)}"
    if kind not in _TRANSFORMED and not registry.supports(layer):
        return f"tensorflow-model-optimization has no rule for {kind}"
    function = getattr(layer, "activation", None)
    known = getattr(function, "__name__", str(function))
    if function is not None and known not in _ACTIVATION_NAMES:
        return f"tensorflow-model-optimization has no rule for the activation {known!r}"
    if kind in _ACTIVATIONS and before and all(one in reasons for one in before):
        return "the layer before it, which the converter fuses it with, is left out"
    return None


# --------------------------------------------------------------------------------------------------------------- graph


class LayerGraph:
    """The layers of a functional model, and which feeds which."""

    def __init__(self, model: Any) -> None:
        """Reads a functional tf-keras model."""
        self.name, self.outputs = str(model.name), [str(name) for name in model.output_names]
        self.layers = {layer.name: layer for layer in model.layers}
        self.producers: dict[str, list[str]] = {}
        self.consumers: dict[str, list[str]] = {name: [] for name in self.layers}
        for layer in model.get_config()["layers"]:
            name = layer["config"]["name"]
            self.producers[name] = list(dict.fromkeys(_references(layer["inbound_nodes"], self.layers)))
            for producer in self.producers[name]:
                self.consumers[producer].append(name)

    def kind(self, name: str) -> str:
        """Returns the class of a layer."""
        return type(self.layers[name]).__name__

    def has_kernel(self, name: str) -> bool:
        """True for a layer that multiplies by a matrix of weights, as convolutions do and batch normalizations do not."""
        return any(len(weight.shape) > 1 for weight in self.layers[name].weights)

    def folds(self, name: str) -> bool:
        """True where a batch normalization behind this layer becomes part of it."""
        return self.kind(name) in _FOLDING and len(self.consumers[name]) == 1

    def group(self, name: str) -> list[str]:
        """Returns a layer with those that become one operator with it."""
        first = name
        while self.kind(first) in (*_ACTIVATIONS, "BatchNormalization"):
            before = self.producers[first]
            if len(before) != 1 or len(self.consumers[before[0]]) != 1 or self.kind(before[0]) == "InputLayer":
                break
            first = before[0]
        group = [first]
        for kinds in (("BatchNormalization",), _ACTIVATIONS):
            after = self.consumers[group[-1]]
            if len(after) == 1 and self.kind(after[0]) in kinds:
                group.append(after[0])
        return group if name in group else [name]


def _references(value: Any, names: Iterable[str]) -> Iterator[str]:
    """Yields the layers named in a configuration's inbound nodes, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return
    if len(value) >= 3 and isinstance(value[0], str) and value[0] in names and isinstance(value[1], int):
        yield value[0]
        value = value[3:]
    for entry in value:
        yield from _references(entry, names)


# ------------------------------------------------------------------------------------------------------- names of nodes


def _found(names: Sequence[str], graph: LayerGraph) -> dict[str, str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise OptionError(f"got layers={names!r}, expected a list of names, such as ['conv2d']")
    if not names:
        raise OptionError("got an empty list of layers, expected names, or None for all layers")
    found, refusals = {}, []
    for name in names:
        try:
            found[name] = layer_of_node(name, graph)
        except OptionError as error:
            refusals.append(str(error))
    if refusals:
        raise OptionError("\n".join(refusals))
    return found


def layer_of_node(node: str, graph: LayerGraph) -> str:
    """Returns the Keras layer that a node of a report comes from.

    The converter calls a tensor by the scopes of the operators it fused: ``model/conv2d_3/Relu;model/conv2d_3/BiasAdd``. The
    first scope that names a layer counts, or the layer with weights in front of it where another scope names that: an
    operator is its weights more than its activation.

    Args:
        node: An output tensor name, whole or shortened with ``…``, or just the name of a layer.
        graph: The layers of the model.

    Raises:
        OptionError: Where there is no such layer, or several could be meant, with the nearest names.
    """
    if node in graph.layers:
        return node
    if _OUTPUT_NAME.fullmatch(node) and len(graph.outputs) == 1:
        return graph.outputs[0]
    found = [name for scopes in node.split(";") if (name := _layer_of_scopes(scopes.split("/"), graph))]
    if not found:
        raise OptionError(_unknown_node(node, graph))
    name = found[0]
    while not graph.has_kernel(name) and len(graph.producers[name]) == 1:
        name = graph.producers[name][0]
    return name if name in found else found[0]


def _layer_of_scopes(parts: list[str], graph: LayerGraph) -> str | None:
    """Returns the layer that one of nested scopes names, the outermost first.

    TensorFlow puts ``_1`` behind all scopes of a model that it traces twice, as it does with those of Keras 3: the scope of
    the model itself tells.
    """
    root = re.fullmatch(re.escape(graph.name) + r"(_\d+)?", parts[0])
    traced_twice = root is not None and root[1] is not None
    for part in parts[1:] if root else parts:
        for pattern in _readings(part, traced_twice):
            found = [layer for layer in graph.layers if re.fullmatch(pattern, layer)]
            if len(found) > 1:
                raise OptionError(
                    f"got the node {'/'.join(parts)!r}, which {len(found)} layers fit: {', '.join(found)}; give one of them"
                )
            if found:
                return found[0]
    return None


def _unknown_node(node: str, graph: LayerGraph) -> str:
    parts = [re.sub(r"_\d+$", "", part) for part in node.split(";")[0].split("/") if part]
    nearest = next((found for part in (node, *parts) if (found := nearest_names(part, graph.layers))), [])
    hint = f" Did you mean {', or '.join(map(repr, nearest))}?" if nearest else ""
    return (
        f"got the node {node!r}, which comes from no layer of the model {graph.name!r}; expected the name of a layer, or of an "
        f"operator's output tensor, which has the layer's name among its parts.{hint}"
    )


def _readings(part: str, traced_twice: bool) -> list[str]:
    """Returns patterns of the layer names that a scope may stand for, the likelier first."""
    part = part.removeprefix(_PREFIX)
    plain = ".*".join(re.escape(piece) for piece in part.split("…"))
    shorter = ".*".join(re.escape(piece) for piece in re.sub(r"_\d+$", "", part).split("…"))
    if part.strip("…") == "":
        return []
    return [shorter, plain] if traced_twice else [plain, shorter]
