"""What keeps one operator off the Edge TPU, whatever stands around it.

Sources: Coral's "TensorFlow models on the Edge TPU" (requirements and table of supported operations); logs of the compiler 16.0
that users published, where that page says nothing; models that Coral published with their compiled form. A verdict that
rests on a few logs, or lies between what is known to map and what is known not to, is marked as unsure.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edgetpu.op_versions import newest_version, release_of
from tflite_qdebug.model import Model, Operator, Tensor

__all__ = [
    "BLOCKED",
    "DATA_TYPE",
    "DYNAMIC",
    "MAPPED",
    "NOT_CONSTANT",
    "NOT_SUPPORTED",
    "RANK",
    "UNSPECIFIED",
    "VERSION",
    "Rules",
    "Verdict",
    "is_builtin",
]

#: The compiler's own words.
MAPPED = "Mapped to Edge TPU"
BLOCKED = "More than one subgraph is not supported"
UNSPECIFIED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
VERSION = "Operation version not supported"
DATA_TYPE = "Operation is working on an unsupported data type"
NOT_SUPPORTED = "Operation not supported"
RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
NOT_CONSTANT = "Filter, bias, or other param is not constant at compile-time"
DYNAMIC = "Attempting to use a delegate that only supports static-sized tensors with a graph that has dynamic-sized tensors"

# Inputs that must stand in the file, by position. What is left are data.
_PARAMETERS: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2), "TRANSPOSE_CONV": (0, 1, 3),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 18), *range(20, 24)), "PRELU": (1,), "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,), "RESIZE_NEAREST_NEIGHBOR": (1,), "MEAN": (1,), "SUM": (1,), "REDUCE_MAX": (1,),
    "REDUCE_MIN": (1,), "PAD": (1,), "SLICE": (1, 2), "STRIDED_SLICE": (1, 2, 3), "TRANSPOSE": (1,), "EXPAND_DIMS": (1,),
    "TILE": (1,), "SPLIT": (0,),
}  # fmt: skip
# Of these the parameters are weights, which the device keeps; those of others only say what is to be done.
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "PRELU")
# Inputs that say how large an output is: where one is computed, the size is known only when the model runs.
_SIZES: dict[str, tuple[int, ...]] = {
    "RESHAPE": (1,), "RESIZE_BILINEAR": (1,), "RESIZE_NEAREST_NEIGHBOR": (1,), "TRANSPOSE_CONV": (0,), "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3), "PAD": (1,), "PADV2": (1,), "MIRROR_PAD": (1,), "TILE": (1,), "BROADCAST_TO": (1,),
    "FILL": (0,), "RANGE": (0, 1, 2), "MEAN": (1,), "SUM": (1,), "REDUCE_MAX": (1,), "REDUCE_MIN": (1,), "REDUCE_PROD": (1,),
    "REDUCE_ANY": (1,), "EXPAND_DIMS": (1,), "TOPK_V2": (1,), "ONE_HOT": (1,), "TRANSPOSE": (1,), "SPLIT": (0,),
    "SPLIT_V": (1, 2), "SPACE_TO_BATCH_ND": (1, 2), "BATCH_TO_SPACE_ND": (1, 2), "ARG_MAX": (1,), "ARG_MIN": (1,),
}  # fmt: skip
# Each of its values counts, so the size of what it writes is known only when it runs.
_ALWAYS_DYNAMIC = ("WHERE", "UNIQUE")
# The oldest runtime of the device that has an operator (Coral's table).
_RUNTIMES = {"TRANSPOSE_CONV": 13, "TRANSPOSE": 14}
_NO_LIMITS = (
    "ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "SUB", "QUANTIZE", "RELU", "RELU6",
    "RELU_N1_TO_1", "SLICE", "SPACE_TO_DEPTH", "TANH", "SQUEEZE", "RSQRT",
    "SQUARED_DIFFERENCE",
)  # fmt: skip
_EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))
# 4 is the newest that was seen to map; 5 adds keep_num_dims, and a log shows dense layers with it refused.
_DENSE_VERSION = 4
_SOFTMAX_SIZE = 16_000
# Enlargements: what is known to map goes to 2, what is known not to begins at 15; between them nothing is known.
_RATIO_SEEN, _RATIO_REFUSED, _RATIO_GUESSED = 2.0, 15.0, 8.0
# Bytes that an enlarged image may have: 128 x 128 x 32 is known to map, 512 x 512 x 32 not to.
_RESIZED_SEEN, _RESIZED_REFUSED = 1 << 19, 1 << 23
# Values of an input of an LSTM: up to some 900 the compiler took them, of 1000 and more it died without a word.
_LSTM_SEEN = 900
# Elements that one mean is taken over: 8192 mapped, 32768 did not.
_MEAN_SEEN, _MEAN_GUESSED = 8_192, 16_384
# Bytes that a TRANSPOSE moves: in a published log of the compiler 16 (YOLOv5s, 224 x 224) 49,980 mapped, 199,920 did not.
_MOVED_SEEN, _MOVED_GUESSED, _MOVED_REFUSED = 49_980, 150_000, 199_920
# Bytes of a tensor beyond which "certain reshapes might not be mapped".
_LARGE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the compiler does with an operator, for what it is.

    Attributes:
        status: In the compiler's own words.
        words: Why, in plain words; of a mapped operator what is doubtful, or nothing.
        sure: False where it is a guess.
    """

    status: str
    words: str = ""
    sure: bool = True

    @property
    def is_mapped(self) -> bool:
        """True where nothing is in the way."""
        return self.status == MAPPED


_FREE = Verdict(MAPPED)


class Rules:
    """The rules for the operators of one model's main subgraph."""

    def __init__(self, model: Model, runtime_version: int) -> None:
        """Keeps the model."""
        self.model, self.main, self.runtime_version = model, model.main, runtime_version

    def verdict(self, operator: Operator) -> Verdict:
        """Returns what is in the way of an operator, the first of what the compiler looks at."""
        for look in (_version, _size, _rank, _data_type, _support, _runtime, _parameters):
            found = look(self, operator)
            if found is not None:
                return found
        return _CHECKS.get(operator.name, _nothing)(self, operator) or _FREE

    # ------------------------------------------------------------------------------------------- what the rules ask for

    def tensors(self, indices: Iterable[int]) -> list[Tensor]:
        """Returns the tensors that are there."""
        return [self.main.tensors[index] for index in indices if index >= 0]

    def data(self, operator: Operator) -> list[Tensor]:
        """Returns the inputs that an operator computes with: neither its parameters nor its state."""
        parameters = _PARAMETERS.get(operator.name, ())
        given = self.tensors(index for position, index in enumerate(operator.inputs) if position not in parameters)
        return [tensor for tensor in given if not tensor.is_variable]

    def parameters(self, operator: Operator) -> list[Tensor]:
        """Returns the inputs that must be constant."""
        positions = _PARAMETERS.get(operator.name, ())
        return self.tensors(operator.inputs[position] for position in positions if position < len(operator.inputs))

    def values(self, operator: Operator, position: int) -> np.ndarray | None:
        """Returns the values of a constant input; None where it is absent or no constant."""
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            return None
        tensor = self.main.tensors[operator.inputs[position]]
        return self.model.constant(tensor) if tensor.is_constant else None

    def option(self, operator: Operator, name: str) -> int:
        """Returns an option of an operator, its default where it has none."""
        row = self._table.Operators(operator.index)
        kind, table = _option_tables().get(row.BuiltinOptionsType()), row.BuiltinOptions()
        if kind is None or table is None or not hasattr(kind, name):
            return 1 if name.startswith(("Dilation", "Stride")) else 0
        reader = kind()
        reader.Init(table.Bytes, table.Pos)
        return int(getattr(reader, name)())

    @functools.cached_property
    def _table(self) -> Any:
        return tf_private.schema().Model.GetRootAs(self.model.data, 0).Subgraphs(self.main.index)

    # ------------------------------------------------------------------------------------------------ of the whole model

    def weights(self, operator: Operator) -> list[Tensor]:
        """Returns the constants of an operator that the device has to hold."""
        held = self.data(operator)
        if operator.name in _WITH_WEIGHTS:
            shape = operator.inputs[0] if operator.name == "TRANSPOSE_CONV" else -1
            held = held + [tensor for tensor in self.parameters(operator) if tensor.index != shape]
        return [tensor for tensor in held if tensor.is_constant]

    def dynamic_tensors(self) -> list[Tensor]:
        """Returns the tensors whose size is known only when the model runs.

        A batch of any size (-1 in the shape signature) is none by itself: beside it stands the size 1, which the compiler
        takes. But Keras then computes the shapes for some layers, and such a shape is.
        """
        unsized = [index for index in self.main.inputs if _has_negative(self._table.Tensors(index))]
        made = [index for operator in self.main.operators if _size(self, operator) for index in operator.outputs]
        return self.tensors([*unsized, *made])

    def unknown_versions(self) -> dict[str, int]:
        """Returns ``{operator: version}`` of the operator codes that are newer than the compiler."""
        root = tf_private.schema().Model.GetRootAs(self.model.data, 0)
        names = tf_private.builtin_operator_names()
        found = {}
        for index in range(root.OperatorCodesLength()):
            code = root.OperatorCodes(index)
            name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
            if name != "CUSTOM" and code.Version() > newest_version(name):
                found[name] = code.Version()
        return found


def _has_negative(table: Any) -> bool:
    return any(table.Shape(position) < 0 for position in range(table.ShapeLength()))


@functools.cache
def _option_tables() -> dict[int, Any]:
    schema = tf_private.schema()
    kinds = vars(schema.BuiltinOptions)
    return {code: getattr(schema, name, None) for name, code in kinds.items() if isinstance(code, int)}


@functools.cache
def _builtin_names() -> frozenset[str]:
    return frozenset(tf_private.builtin_operator_names().values())


def is_builtin(name: str) -> bool:
    """True for the name of an operator of the schema, False for a custom one's own."""
    return name in _builtin_names()


# ------------------------------------------------------------------------------------------------- rules for all operators


def _version(_: Rules, operator: Operator) -> Verdict | None:
    newest = newest_version(operator.name)
    if not is_builtin(operator.name) or operator.version <= newest:
        return None
    release = release_of(operator.name, operator.version)
    came = f", which came with TensorFlow Lite {release}" if release else ""
    return Verdict(
        VERSION,
        f"it is version {operator.version}{came}; the compiler knows up to {newest or 'none'} and refuses the whole model",
    )


def _size(rules: Rules, operator: Operator) -> Verdict | None:
    sizes = rules.tensors(operator.inputs[at] for at in _SIZES.get(operator.name, ()) if at < len(operator.inputs))
    computed = next((tensor.name for tensor in sizes if not tensor.is_constant), None)
    if computed is None and operator.name not in _ALWAYS_DYNAMIC:
        return None
    return Verdict(DYNAMIC, f"the size of what it writes depends on {'its input' if computed is None else repr(computed)}")


def _rank(rules: Rules, operator: Operator) -> Verdict | None:
    for tensor in [*rules.data(operator), *rules.tensors(operator.outputs)]:
        if any(size not in (1, -1) for size in tensor.shape[:-3]):
            return Verdict(RANK, f"{tensor.name!r} has shape {tensor.shape}: only the last three sizes may be other than 1")
    return None


def _data_type(rules: Rules, operator: Operator) -> Verdict | None:
    data, outputs = rules.data(operator), rules.tensors(operator.outputs)
    if _support(rules, operator):  # which of its constants are data is not known here
        data = [tensor for tensor in data if not tensor.is_constant]
    if operator.name == "QUANTIZE" and data and data[0].is_float and all(map(_is_eight_bit, outputs)):
        return Verdict(UNSPECIFIED, "it makes integers of floats; the device has no floats")
    for tensor in [*data, *outputs]:
        if not _is_eight_bit(tensor):
            return Verdict(DATA_TYPE, f"{tensor.name!r} is {_kind(tensor)}; the device computes with 8-bit integers alone")
    return None


def _is_eight_bit(tensor: Tensor) -> bool:
    return tensor.dtype in _EIGHT_BIT and tensor.quantization is not None


def _kind(tensor: Tensor) -> str:
    kind = "of an unknown type" if tensor.dtype == object else str(tensor.dtype)
    return f"{kind} without a scale" if tensor.dtype in _EIGHT_BIT else kind


def _support(_: Rules, operator: Operator) -> Verdict | None:
    if operator.name in _NO_LIMITS or operator.name in _CHECKS:
        return None
    return Verdict(NOT_SUPPORTED, "the device has no such operator")


def _runtime(rules: Rules, operator: Operator) -> Verdict | None:
    needed = _RUNTIMES.get(operator.name, 0)
    if rules.runtime_version >= needed:
        return None
    return Verdict(NOT_SUPPORTED, f"it needs runtime {needed} on the device, and runtime {rules.runtime_version} was asked for")


def _parameters(rules: Rules, operator: Operator) -> Verdict | None:
    for tensor in rules.parameters(operator):
        if not tensor.is_constant:
            return Verdict(NOT_CONSTANT, f"{tensor.name!r} is computed; it must stand in the file")
        if tensor.dtype == object or tensor.dtype.kind not in "iu":
            return Verdict(DATA_TYPE, f"the constant {tensor.name!r} is {_kind(tensor)}")
    return None


# ------------------------------------------------------------------------------------------------- rules for single ones


def _nothing(_: Rules, __: Operator) -> Verdict | None:
    return None


def _without_activation(rules: Rules, operator: Operator) -> Verdict | None:
    if rules.option(operator, "FusedActivationFunction"):
        return Verdict(UNSPECIFIED, "an activation function is fused into it, which the device takes of convolutions alone")
    return None


def _concatenation(rules: Rules, operator: Operator) -> Verdict | None:
    constants = [tensor for tensor in rules.data(operator) if tensor.is_constant]
    for tensor in constants:
        if len(operator.inputs) != 2:
            return Verdict(UNSPECIFIED, f"it joins the constant {tensor.name!r} with more than one other tensor")
        parameters = tensor.quantization
        if parameters is not None and np.any(rules.model.constant(tensor) != np.ravel(parameters.zero_point)[0]):
            return Verdict(UNSPECIFIED, f"it joins the constant {tensor.name!r}, which is not all zeros")
    return _without_activation(rules, operator)


def _convolution(rules: Rules, operator: Operator) -> Verdict | None:
    dilation = [rules.option(operator, f"Dilation{side}Factor") for side in "HW"]
    if dilation[0] != dilation[1]:
        return Verdict(UNSPECIFIED, f"it is dilated by {dilation[0]} in height and {dilation[1]} in width; they must be equal")
    image, filters = (rules.main.tensors[index] for index in operator.inputs[:2])
    if operator.name == "CONV_2D" and image.shape and image.shape[-1] not in (-1, filters.shape[-1]):
        return Verdict(UNSPECIFIED, "it is a convolution in groups", sure=False)
    if operator.name == "DEPTHWISE_CONV_2D" and rules.runtime_version <= 12 and max(dilation) > 1:
        return Verdict(UNSPECIFIED, "it is dilated, which needs runtime 13 on the device")
    return None


def _dense(rules: Rules, operator: Operator) -> Verdict | None:
    if rules.option(operator, "WeightsFormat"):
        return Verdict(UNSPECIFIED, "its weights are shuffled; the device takes the default order alone")
    if operator.version > _DENSE_VERSION:
        return Verdict(
            VERSION,
            f"it is version {operator.version}, and none above {_DENSE_VERSION} is known to map (5 keeps the dimensions of its "
            "input: put a RESHAPE around it instead)",
            sure=False,
        )
    output = rules.main.tensors[operator.outputs[0]]
    if _dimensions(output) > 1:
        return Verdict(UNSPECIFIED, f"its output has shape {output.shape}: it must be one vector")
    return None


def _dimensions(tensor: Tensor) -> int:
    return sum(size not in (1, -1) for size in tensor.shape)


def _axes(rules: Rules, operator: Operator, position: int) -> tuple[Tensor, list[int]]:
    """Returns the tensor that is worked on and the axes, counted from the front."""
    tensor, given = rules.data(operator)[0], rules.values(operator, position)
    rank = max(len(tensor.shape), 1)
    return tensor, sorted({int(axis) % rank for axis in np.ravel(np.zeros(0, np.int32) if given is None else given)})


def _touches_batch(what: str, tensor: Tensor, axes: Iterable[int]) -> Verdict | None:
    if 0 not in axes or len(tensor.shape) < 2:
        return None
    # Of a tensor of two or three dimensions the first may be what Coral's table calls the batch, or not.
    return Verdict(UNSPECIFIED, f"it {what} the batch dimension", sure=len(tensor.shape) > 3)


def _reduction(rules: Rules, operator: Operator) -> Verdict | None:
    tensor, axes = _axes(rules, operator, 1)
    found = _touches_batch("reduces", tensor, axes)
    if found is not None or operator.name != "MEAN":
        return found
    depth = len(tensor.shape) - 1
    if depth in axes and tensor.shape[depth] % 4:
        return Verdict(UNSPECIFIED, f"it takes the mean over a depth of {tensor.shape[depth]}, which is no multiple of 4")
    if rules.runtime_version <= 12 and depth in axes:
        return Verdict(UNSPECIFIED, "it takes the mean over the depth, which needs runtime 13 on the device")
    count = math.prod(tensor.shape[axis] for axis in axes)
    if count > _MEAN_SEEN:
        status = UNSPECIFIED if count > _MEAN_GUESSED else MAPPED
        return Verdict(status, f"it takes the mean of {count} values: {_MEAN_SEEN} are known to map, 32768 not to", sure=False)
    return None


def _pack(rules: Rules, operator: Operator) -> Verdict | None:
    output = rules.main.tensors[operator.outputs[0]]
    return _touches_batch("packs along", output, [rules.option(operator, "Axis") % max(len(output.shape), 1)])


def _split(rules: Rules, operator: Operator) -> Verdict | None:
    tensor, axes = _axes(rules, operator, 0)
    return _touches_batch("splits", tensor, axes)


def _pad(rules: Rules, operator: Operator) -> Verdict | None:
    tensor, margins = rules.data(operator)[0], rules.values(operator, 1)
    padded = [] if margins is None else [axis for axis, margin in enumerate(margins.reshape(-1, 2)) if margin.any()]
    depth = len(tensor.shape) - 1
    if rules.runtime_version <= 12 and depth in padded:
        return Verdict(UNSPECIFIED, "it pads the depth, which needs runtime 13 on the device")
    return _touches_batch("pads", tensor, padded)


def _tile(rules: Rules, operator: Operator) -> Verdict | None:
    tensor, times = rules.data(operator)[0], rules.values(operator, 1)
    repeated = [] if times is None else [axis for axis, count in enumerate(np.ravel(times)) if count != 1]
    return _touches_batch("repeats", tensor, repeated) or Verdict(
        MAPPED, "Coral's table does not have it, yet it was seen to map", sure=False
    )


def _prelu(rules: Rules, operator: Operator) -> Verdict | None:
    slopes = rules.parameters(operator)[0]
    if any(size != 1 for size in slopes.shape[:-1]):
        return Verdict(
            UNSPECIFIED,
            f"its slopes have shape {slopes.shape}: only the last size may be other than 1 (Keras: shared_axes=[1, 2])",
        )
    return None


def _resize(rules: Rules, operator: Operator) -> Verdict | None:
    source, target = rules.data(operator)[0].shape, rules.main.tensors[operator.outputs[0]].shape
    ratio = max((after / before for before, after in zip(source[1:3], target[1:3], strict=False) if before > 0), default=1.0)
    if ratio > _RATIO_SEEN:
        status = UNSPECIFIED if ratio > _RATIO_GUESSED else MAPPED
        return Verdict(
            status,
            f"it enlarges {ratio:.3g} times: {_RATIO_SEEN:g} times is known to map, {_RATIO_REFUSED:g} times known not to",
            sure=ratio >= _RATIO_REFUSED,
        )
    size = _largest(rules, operator)
    if size > _RESIZED_SEEN:
        status = UNSPECIFIED if size >= _RESIZED_REFUSED else MAPPED
        words = f"it writes {size} bytes: {_RESIZED_SEEN} are known to map, {_RESIZED_REFUSED} not to (of an older compiler)"
        return Verdict(status, words, sure=False)
    return None


def _lstm(rules: Rules, operator: Operator) -> Verdict | None:
    depth = rules.data(operator)[0].shape[-1]
    if depth <= _LSTM_SEEN:
        return None
    return Verdict(
        MAPPED, f"each step reads {depth} values: with more than {_LSTM_SEEN} the compiler may die without a word", sure=False
    )


def _softmax(rules: Rules, operator: Operator) -> Verdict | None:
    tensor = rules.data(operator)[0]
    if _dimensions(tensor) > 1:
        return Verdict(UNSPECIFIED, f"its input has shape {tensor.shape}: it must be one vector", sure=False)
    if math.prod(tensor.shape) > _SOFTMAX_SIZE:
        return Verdict(UNSPECIFIED, f"its input has {math.prod(tensor.shape)} values, at most {_SOFTMAX_SIZE} are taken")
    return None


def _strided_slice(rules: Rules, operator: Operator) -> Verdict | None:
    strides = rules.values(operator, 3)
    if strides is not None and np.any(strides != 1):
        return Verdict(UNSPECIFIED, f"it takes steps of {np.ravel(strides).tolist()}; all must be 1")
    for mask in ("EllipsisMask", "NewAxisMask"):
        if rules.option(operator, mask):
            return Verdict(UNSPECIFIED, "it is written with an ellipsis or a new axis")
    return None


def _large(rules: Rules, operator: Operator) -> Verdict | None:
    size = _largest(rules, operator)
    if size > _LARGE:
        return Verdict(MAPPED, f"it may be refused for its size, {size} bytes: the limit is not published", sure=False)
    return None


def _transpose(rules: Rules, operator: Operator) -> Verdict | None:
    size = _largest(rules, operator)
    if size <= _MOVED_SEEN:
        return None
    status = UNSPECIFIED if size > _MOVED_GUESSED else MAPPED
    return Verdict(
        status, f"it moves {size} bytes: {_MOVED_SEEN} are known to map, {_MOVED_REFUSED} not to, of one model", sure=False
    )


def _largest(rules: Rules, operator: Operator) -> int:
    """Returns the bytes of the largest output."""
    return max(math.prod(abs(size) for size in tensor.shape) for tensor in rules.tensors(operator.outputs))


_CHECKS: dict[str, Callable[[Rules, Operator], Verdict | None]] = {
    "AVERAGE_POOL_2D": _without_activation,
    "MAX_POOL_2D": _without_activation,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _dense,
    "MEAN": _reduction,
    "SUM": _reduction,
    "REDUCE_MAX": _reduction,
    "REDUCE_MIN": _reduction,
    "PACK": _pack,
    "PAD": _pad,
    "SPLIT": _split,
    "PRELU": _prelu,
    "RESHAPE": _large,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SOFTMAX": _softmax,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _tile,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _nothing,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}
