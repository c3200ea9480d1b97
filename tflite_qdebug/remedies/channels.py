"""Which channels of which tensors belong together: those that one factor, or one offset, has to go through unchanged.

A convolution can take a factor out of each channel that it writes, and the layer that reads it can put the factor back, where
all that lies between gives factor times its result for factor times its input. So can an offset, through fewer operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ModelError
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.operators import OPERANDS, WEIGHTED

__all__ = ["FACTORS", "OFFSETS", "Channels", "Kept", "WeightedLayer", "activation_names", "options_of"]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What operators keep: a positive factor, or an offset, for each channel.

    Attributes:
        what: Word for messages.
        operators: With one data input, of which each output channel comes from the input channel of the same number.
        activations: Functions fused into operators, or operators of their own.
        sums: ADD and SUB keep it, where both inputs have the same.
    """

    what: str
    operators: frozenset[str]
    activations: frozenset[str]
    sums: bool


#: A factor above zero for each channel.
FACTORS = Kept(
    "factor",
    frozenset({
        "ABS", "AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "LEAKY_RELU", "MAX_POOL_2D", "MEAN", "MIRROR_PAD", "NEG", "PAD", "PRELU",
        "REDUCE_MAX", "REDUCE_MIN", "RELU", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_BATCH_ND", "SUM",
    }),
    frozenset({"NONE", "RELU"}),
    True,
)  # fmt: skip
#: An offset for each channel, as long as all values are above zero before and after it.
OFFSETS = Kept(
    "offset",
    frozenset({"AVERAGE_POOL_2D", "LEAKY_RELU", "MAX_POOL_2D", "MEAN", "PRELU", "REDUCE_MAX", "REDUCE_MIN", "RELU",
               "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}),
    frozenset({"NONE", "RELU"}),
    False,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WeightedLayer:
    """A convolution or dense layer with constant float weights.

    Attributes:
        operator: The operator.
        weights: Its weights, as in the file.
        reads: Label of each channel that it reads; of a depthwise one, for each channel of its weights.
        writes: Label of each channel that it writes.
    """

    operator: Operator
    weights: np.ndarray
    reads: np.ndarray
    writes: np.ndarray

    @property
    def places(self) -> tuple[int, int]:
        """Positions of weights and bias among the operator's inputs."""
        return OPERANDS[self.operator.name][1:]

    @property
    def data(self) -> int:
        """The tensor that it reads."""
        return self.operator.inputs[OPERANDS[self.operator.name][0]]

    @property
    def is_depthwise(self) -> bool:
        """True where each channel that it writes comes from one that it reads."""
        return self.operator.name == "DEPTHWISE_CONV_2D"

    @property
    def bias(self) -> int | None:
        """The tensor of the bias; None without."""
        place = self.places[1]
        return self.operator.inputs[place] if place < len(self.operator.inputs) and self.operator.inputs[place] >= 0 else None

    def magnitudes(self) -> np.ndarray:
        """Returns the greatest magnitude of the weights ``(written, read)``, of a depthwise layer ``(written,)``; float64."""
        magnitudes = np.abs(self.weights).astype(np.float64)
        if self.is_depthwise:
            return magnitudes.max(axis=(0, 1, 2))
        return magnitudes if magnitudes.ndim == 2 else magnitudes.max(axis=(1, 2))

    def on_rows(self, values: np.ndarray) -> np.ndarray:
        """Returns one value for each channel that it writes, in a shape to be multiplied with its `magnitudes`."""
        return values if self.is_depthwise else values[:, np.newaxis]

    def on_read(self, values: np.ndarray) -> np.ndarray:
        """Returns one value for each entry of `reads`, in a shape to be multiplied with the weights."""
        return values  # of all kinds of layers the last axis of the weights

    def on_written(self, values: np.ndarray) -> np.ndarray:
        """Returns one value for each channel that it writes, in a shape to be multiplied with the weights."""
        return values if self.is_depthwise else values.reshape(-1, *[1] * (self.weights.ndim - 1))


class Channels:
    """A label for each channel of each activation of a float model; channels with the same label belong together.

    A channel is one along the last axis. Where something keeps a label from being changed, `reason` says what.

    Attributes:
        layers: Those with weights, in execution order.
    """

    def __init__(
        self,
        model: Model,
        kept: Kept,
        passes: Callable[[Operator], bool] = lambda operator: False,
        takes: Callable[[Operator], str] = lambda operator: "",
    ) -> None:
        """Follows the channels through the main subgraph.

        Args:
            model: The float model.
            kept: What has to be kept.
            passes: True for an operator whose activation function keeps it here, though it does not in general.
            takes: Why a layer cannot give its reader's side of what is kept; empty where it can.
        """
        self._model, self._graph, self._kept, self._passes, self._takes = model, Graph(model), kept, passes, takes
        self._activations = [activation_names()[code] for code in self._graph.activation_functions]
        self._parents = np.zeros(0, np.int64)
        self._reasons: dict[int, str] = {}
        self._labels: dict[int, np.ndarray] = {}
        self.layers: list[WeightedLayer] = []
        for index in model.main.inputs:
            self._pin(self.labels(index), "input of the model")
        for operator in model.main.operators:
            self._follow(operator)
        for index in model.main.outputs:
            self._pin(self.labels(index), "output of the model")
        self.layers = [
            dataclasses.replace(layer, reads=self._found(layer.reads), writes=self._found(layer.writes))
            for layer in self.layers
        ]
        self._reasons = {int(self._found(np.array([label]))[0]): reason for label, reason in reversed(self._reasons.items())}

    @property
    def count(self) -> int:
        """Number of labels; some stand for nothing any more."""
        return len(self._parents)

    def labels(self, index: int) -> np.ndarray:
        """Returns the label of each channel of a tensor; of one without channels none."""
        if index not in self._labels:
            tensor = self._model.main.tensors[index]
            countable = tensor.is_float and not tensor.is_constant and tensor.shape and tensor.shape[-1] > 0
            self._labels[index] = self._new(tensor.shape[-1] if countable else 0)
            if tensor.is_variable:
                self._pin(self._labels[index], f"variable {tensor.name!r}")
        return self._found(self._labels[index])

    def reason(self, label: int) -> str | None:
        """Returns why a label may not be changed; None where it may."""
        return self._reasons.get(int(label))

    def free(self) -> np.ndarray:
        """Returns for each label whether it may be changed, bool ``(count,)``."""
        free = np.ones(self.count, dtype=bool)
        free[list(self._reasons)] = False
        return free

    def _new(self, count: int) -> np.ndarray:
        labels = np.arange(len(self._parents), len(self._parents) + count)
        self._parents = np.concatenate([self._parents, labels])
        return labels

    def _found(self, labels: np.ndarray) -> np.ndarray:
        while True:
            parents = self._parents[labels]
            if np.array_equal(parents, labels):
                return parents
            labels = parents

    def _tie(self, first: np.ndarray, second: np.ndarray) -> None:
        for one, other in zip(first, second, strict=True):
            low, high = sorted(int(self._found(np.array([label]))[0]) for label in (one, other))
            self._parents[high] = low
            if high in self._reasons:
                self._reasons.setdefault(low, self._reasons[high])

    def _pin(self, labels: np.ndarray, reason: str) -> None:
        for label in self._found(labels):
            self._reasons.setdefault(int(label), reason)

    def _follow(self, operator: Operator) -> None:
        try:
            followed = self._followed(operator)
        except ModelError:  # constants that cannot be read as numbers, such as sparse ones
            followed = False
        shown = self._model.main.tensors[operator.outputs[0]].name if operator.outputs else operator.index
        if not followed:
            for index in (*operator.inputs, *operator.outputs):
                if index >= 0:
                    self._pin(self.labels(index), f"{operator.name} {shown!r} keeps no {self._kept.what}")
            return
        activation = self._activations[operator.index]
        if activation not in self._kept.activations and not self._passes(operator):
            for index in operator.outputs:
                self._pin(self.labels(index), f"{activation} of {operator.name} {shown!r} keeps no {self._kept.what}")

    def _followed(self, operator: Operator) -> bool:
        """Gives an operator's outputs their labels; False where it keeps nothing."""
        name = operator.name
        if name in WEIGHTED:
            return self._follow_layer(operator)
        if name in self._kept.operators or (name == "RELU6" and self._passes(operator)):
            for index in operator.inputs[1:]:
                self._pin(self.labels(index), f"second input of {name}")
            return self._keeps_axes(operator) and self._hand_on(operator.inputs[0], operator.outputs[0])
        if name in ("ADD", "SUB"):
            return self._kept.sums and self._follow_sum(operator)
        if name in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"):
            return self._follow_reshape(operator)
        follow = {"MUL": self._follow_product, "CONCATENATION": self._follow_concatenation, "SPLIT": self._follow_split}
        return name in follow and follow[name](operator)

    def _hand_on(self, source: int, target: int) -> bool:
        labels = self.labels(source)
        if not len(labels) or self._model.main.tensors[target].shape[-1:] != (len(labels),):
            return False
        self._labels[target] = labels
        return True

    def _keeps_axes(self, operator: Operator) -> bool:
        """False where an operator mixes channels, or adds some."""
        tensor = self._model.main.tensors
        last = len(tensor[operator.inputs[0]].shape) - 1
        if operator.name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
            axes = tensor[operator.inputs[1]]
            return axes.is_constant and last not in {int(axis) % (last + 1) for axis in np.ravel(self._model.constant(axes))}
        if operator.name in ("PAD", "MIRROR_PAD"):
            amounts = tensor[operator.inputs[1]]
            return amounts.is_constant and not self._model.constant(amounts).reshape(last + 1, 2)[last].any()
        if operator.name in ("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"):
            return tensor[operator.inputs[1]].shape[0] < last
        return True

    def _follow_layer(self, operator: Operator) -> bool:
        data, place, behind = OPERANDS[operator.name]
        tensor = self._model.main.tensors[operator.inputs[place]]
        refused = self._takes(operator)
        bias = operator.inputs[behind] if behind < len(operator.inputs) else -1
        if not (tensor.is_constant and tensor.is_float and (bias < 0 or self._model.main.tensors[bias].is_constant)):
            return False
        weights = self._model.constant(tensor)
        reads = self._read_by(operator, weights, self.labels(operator.inputs[data]))
        if reads is None:
            return False
        if refused:
            self._pin(reads, refused)
        writes = self.labels(operator.outputs[0])
        if len(writes) != weights.shape[-1 if operator.name == "DEPTHWISE_CONV_2D" else 0]:
            return False
        self.layers.append(WeightedLayer(operator, weights, reads, writes))
        return True

    @staticmethod
    def _read_by(operator: Operator, weights: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Returns the label for each place along the last axis of weights; None where there is no such, as in groups."""
        size = weights.shape[-1]
        if not len(labels) or weights.ndim != (2 if operator.name == "FULLY_CONNECTED" else 4):
            return None
        if operator.name == "DEPTHWISE_CONV_2D":
            return np.repeat(labels, size // len(labels)) if size % len(labels) == 0 else None
        if operator.name == "FULLY_CONNECTED" and size % len(labels) == 0:
            return np.tile(labels, size // len(labels))  # which takes its input as rows of that size
        return labels if size == len(labels) else None

    def _follow_sum(self, operator: Operator) -> bool:
        first, second = (self._model.main.tensors[index] for index in operator.inputs)
        if first.is_constant or second.is_constant or first.shape != second.shape:
            return False
        if not self._hand_on(first.index, operator.outputs[0]):
            return False
        self._tie(self.labels(first.index), self.labels(second.index))
        return True

    def _follow_product(self, operator: Operator) -> bool:
        """A product with a constant, or with a gate: the gate must keep its values, the other goes through it."""
        tensors = [self._model.main.tensors[index] for index in operator.inputs]
        shape = self._model.main.tensors[operator.outputs[0]].shape
        if self._kept.what != "factor":
            return False
        whole = [tensor for tensor in tensors if not tensor.is_constant and tensor.shape == shape]
        if len(whole) != 1:
            return False
        if not self._hand_on(whole[0].index, operator.outputs[0]):
            return False
        for tensor in tensors:
            if tensor.index != whole[0].index:
                self._pin(self.labels(tensor.index), "gate of a MUL")
        return True

    def _follow_concatenation(self, operator: Operator) -> bool:
        inputs = [self._model.main.tensors[index] for index in operator.inputs]
        if any(tensor.is_constant or not len(self.labels(tensor.index)) for tensor in inputs):
            return False
        rank = len(inputs[0].shape)
        if options_of(self._model, operator).Axis() % rank == rank - 1:
            self._labels[operator.outputs[0]] = np.concatenate([self.labels(tensor.index) for tensor in inputs])
            return True
        for tensor in inputs[1:]:
            self._tie(self.labels(inputs[0].index), self.labels(tensor.index))
        return self._hand_on(inputs[0].index, operator.outputs[0])

    def _follow_split(self, operator: Operator) -> bool:
        axis, source = (self._model.main.tensors[index] for index in operator.inputs)
        if not axis.is_constant or not len(self.labels(source.index)):
            return False
        if int(self._model.constant(axis).reshape(-1)[0]) % len(source.shape) != len(source.shape) - 1:
            return all(self._hand_on(source.index, output) for output in operator.outputs)
        for output, labels in zip(operator.outputs, np.split(self.labels(source.index), len(operator.outputs)), strict=True):
            self._labels[output] = labels
        return True

    def _follow_reshape(self, operator: Operator) -> bool:
        """Channels stay where the last axis does, or where it takes in axes before it, as in flattening."""
        source, target = (self._model.main.tensors[index].shape for index in (operator.inputs[0], operator.outputs[0]))
        labels = self.labels(operator.inputs[0])
        if not len(labels) or not target or target[-1] < 1 or target[-1] % len(labels):
            return False
        size, rest = target[-1], len(labels)
        for dimension in source[-2::-1]:
            if rest == size:
                break
            if dimension < 1:
                return False
            rest *= dimension
        if rest != size:
            return False
        self._labels[operator.outputs[0]] = np.tile(labels, size // len(labels))
        return True

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Yields each layer whose output may not be changed, by its node's name, with the reason."""
        for layer in self.layers:
            reasons = [reason for label in layer.writes if (reason := self.reason(label)) is not None]
            if reasons:
                yield self._model.main.tensors[layer.operator.outputs[0]].name, reasons[0]


def activation_names() -> dict[int, str]:
    """Returns the names of the activation functions that operators can have fused into them."""
    kinds = vars(tf_private.schema().ActivationFunctionType)
    return {code: name for name, code in kinds.items() if isinstance(code, int)}


def options_of(model: Model, operator: Operator) -> Any:
    """Returns the options of an operator of the main subgraph, as the schema's reader has them.

    Raises:
        ModelError: Where it has none.
    """
    schema = tf_private.schema()
    row = schema.Model.GetRootAs(model.data, 0).Subgraphs(0).Operators(operator.index)
    types = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}
    found = row.BuiltinOptions()
    if found is None:
        raise ModelError(f"the model is broken: {operator.name}, operator {operator.index}, has no options")
    options = getattr(schema, types[row.BuiltinOptionsType()])()
    options.Init(found.Bytes, found.Pos)
    return options
