"""Operators of a float model that the Edge TPU lacks, written as ones that it has and that compute the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_buffers, drop_unused_codes, pack, unpack
from tflite_qdebug.edit.hard_swish import unfold_hard_swish
from tflite_qdebug.model import Model, Operator, refuses_broken_models

__all__ = ["with_edgetpu_forms"]

# More convolutions than that in the place of one in groups are no gain.
_MOST_GROUPS = 32


@refuses_broken_models
def with_edgetpu_forms(model: Model) -> tuple[bytes, tuple[str, ...]]:
    """Returns the float model with what the device lacks as what it has, and what was changed, in sentences.

    All forms are exact but for the rounding of floats; after quantization they round at other places than the one operator did:

    - HARD_SWISH: ``x * relu6(x + 3) / 6``, its definition, of ADD and MUL.
    - LEAKY_RELU: PRELU with one slope for all channels.
    - Values repeated along height and width by TILE, as Keras 3 upsamples: RESIZE_NEAREST_NEIGHBOR.
    - Dense layers over several rows: a convolution of size 1, with the rows as pixels.
    - Dilated convolutions between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND: one convolution with dilation.
    - Convolutions in groups: SPLIT, a convolution for each, CONCATENATION.

    Names of the tensors that stay are kept, so that a node is called as before.

    Args:
        model: Of float values, with fixed sizes (`with_static_shapes`) and one subgraph.
    """
    swishes = sum(operator.name == "HARD_SWISH" for operator in model.main.operators)
    content = unfold_hard_swish(model)[0]
    forms = _Forms(Model(content))
    forms.rewrite()
    if swishes:
        forms.count("HARD_SWISH", "additions and products", swishes)
    return (forms.packed(), forms.changes) if forms.changes else (model.data, ())


class _Forms:
    """One model that is being rewritten."""

    def __init__(self, model: Model) -> None:
        self.model, self.main = model, model.main
        self.unpacked = unpack(model)
        self.writer = Writer(self.unpacked)
        self.rows: dict[int, list[Any]] = {
            operator.index: [row] for operator, row in zip(model.main.operators, self.writer.main.operators, strict=True)
        }
        self.counts: dict[tuple[str, str], int] = {}
        self.resized: dict[int, tuple[int, int]] = {}  # output of a RESIZE made here: its input, its place in the rows
        self.readers: dict[int, list[Operator]] = {}
        for operator in model.main.operators:
            for index in operator.inputs:
                self.readers.setdefault(index, []).append(operator)

    @property
    def changes(self) -> tuple[str, ...]:
        return tuple(f"{count} {name} became {form}" for (name, form), count in self.counts.items())

    def count(self, name: str, form: str, times: int = 1) -> None:
        self.counts[name, form] = self.counts.get((name, form), 0) + times

    def rewrite(self) -> None:
        for operator in self.main.operators:
            for form in (_leaky_relu, _repeat, _dense, _dilated, _groups):
                if form(self, operator):
                    break
        self.writer.main.operators = [row for rows in self.rows.values() for row in rows]
        merged = _merge_reshapes(self.writer)
        if merged and not self.counts:
            self.count("reshapes of what is reshaped at once again", "one with that", merged)

    def packed(self) -> bytes:
        drop_unused_codes(self.unpacked)
        drop_unused_buffers(self.unpacked)
        return pack(self.unpacked)

    # ------------------------------------------------------------------------------------------------------- what it has

    def shape(self, index: int) -> tuple[int, ...]:
        return self.main.tensors[index].shape

    def name(self, index: int) -> str:
        return self.main.tensors[index].name

    def constant(self, index: int) -> np.ndarray | None:
        tensor = self.main.tensors[index] if index >= 0 else None
        return self.model.constant(tensor) if tensor is not None and tensor.is_constant else None

    def only_reader(self, operator: Operator, name: str) -> Operator | None:
        """Returns the one operator that reads what another writes, where it is of that type and nothing else reads it."""
        if len(operator.outputs) != 1 or operator.outputs[0] in self.main.outputs:
            return None
        found = self.readers.get(operator.outputs[0], [])
        return found[0] if len(found) == 1 and found[0].name == name else None

    def options(self, operator: Operator) -> Any:
        return self.rows[operator.index][0].builtinOptions

    # ------------------------------------------------------------------------------------------------------ what it gets

    def values(self, name: str, values: np.ndarray) -> int:
        """Adds a constant; returns its index."""
        types = {"f": self.writer.schema.TensorType.FLOAT32, "i": self.writer.schema.TensorType.INT32}
        tensor = self.writer.schema.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name.encode(), types[values.dtype.kind], True
        tensor.shape, tensor.buffer = np.array(values.shape, np.int32), self.writer.add_values(values)
        self.writer.main.tensors.append(tensor)
        return len(self.writer.main.tensors) - 1

    def tensor(self, name: str, shape: Sequence[int]) -> int:
        """Adds a float tensor without values; returns its index."""
        tensor = self.writer.schema.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name.encode(), self.writer.schema.TensorType.FLOAT32, True
        tensor.shape, tensor.buffer = np.array(shape, np.int32), 0
        self.writer.main.tensors.append(tensor)
        return len(self.writer.main.tensors) - 1

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **fields: Any) -> Any:
        """Returns a new operator, not yet put anywhere."""
        schema, row = self.writer.schema, self.writer.schema.OperatorT()
        row.opcodeIndex = self.writer.add_code(name, 1)
        row.inputs, row.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options:
            row.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            row.builtinOptions = getattr(schema, f"{options}T")()
            for field, value in fields.items():
                setattr(row.builtinOptions, field, value)
        return row

    def reshape(self, source: int, target: int, shape: Sequence[int], name: str) -> Any:
        """Returns a RESHAPE, not yet put anywhere."""
        sizes = self.values(f"{name}/shape", np.array(shape, np.int32))
        return self.operator("RESHAPE", [source, sizes], [target], "ReshapeOptions", newShape=np.array(shape, np.int32))


# ----------------------------------------------------------------------------------------------------------- the forms


def _leaky_relu(forms: _Forms, operator: Operator) -> bool:
    if operator.name != "LEAKY_RELU" or len(forms.shape(operator.outputs[0])) < 2:
        return False
    source, target = operator.inputs[0], operator.outputs[0]
    shape = (1,) * (len(forms.shape(source)) - 2) + (forms.shape(source)[-1],)
    slopes = forms.values(f"{forms.name(target)}/slopes", np.full(shape, forms.options(operator).alpha, np.float32))
    forms.rows[operator.index] = [forms.operator("PRELU", [source, slopes], [target])]
    forms.count("LEAKY_RELU", "PRELU with one slope for all channels")
    return True


def _repeat(forms: _Forms, operator: Operator) -> bool:
    """Values repeated along one axis: a dimension of 1 put in behind it, TILE there, and RESHAPE."""
    if operator.name not in ("EXPAND_DIMS", "RESHAPE"):
        return False
    tile = forms.only_reader(operator, "TILE")
    back = None if tile is None else forms.only_reader(tile, "RESHAPE")
    if tile is None or back is None:
        return False
    source, target = operator.inputs[0], back.outputs[0]
    before, wide, after = forms.shape(source), forms.shape(operator.outputs[0]), forms.shape(target)
    times = forms.constant(tile.inputs[1])
    if times is None or len(before) != 4 or len(wide) != 5 or len(after) != 4:
        return False
    axes = [axis for axis, count in enumerate(times.tolist()) if count != 1]
    if len(axes) != 1 or axes[0] not in (2, 3) or wide != (*before[: axes[0]], 1, *before[axes[0] :]):
        return False
    axis = axes[0] - 1
    if after != tuple(size * int(times[axes[0]]) if place == axis else size for place, size in enumerate(before)):
        return False
    earlier = forms.resized.get(source)
    if earlier is not None and len(forms.readers.get(source, [])) == 1 and source not in forms.main.outputs:
        source, place = earlier  # height and width are enlarged one after the other; one operator does both
        forms.rows[place] = []
    sizes = forms.values(f"{forms.name(target)}/size", np.array(after[1:3], np.int32))
    forms.rows[operator.index] = forms.rows[tile.index] = []
    forms.rows[back.index] = [
        forms.operator("RESIZE_NEAREST_NEIGHBOR", [source, sizes], [target], "ResizeNearestNeighborOptions")
    ]
    forms.resized[target] = source, back.index
    if earlier is None:
        forms.count("TILE that repeats pixels", "RESIZE_NEAREST_NEIGHBOR")
    return True


def _dense(forms: _Forms, operator: Operator) -> bool:
    """A dense layer over several rows, or one that keeps the dimensions of its input."""
    if operator.name != "FULLY_CONNECTED" or len(operator.outputs) != 1 or forms.options(operator) is None:
        return False
    source, target, options = operator.inputs[0], operator.outputs[0], forms.options(operator)
    weights = forms.main.tensors[operator.inputs[1]]
    before, after = forms.shape(source), forms.shape(target)
    rows = math.prod(after[:-1])
    plain = len(before) == len(after) == 2
    if not weights.is_constant or not weights.is_float or options.weightsFormat or (rows == 1 and plain):
        return False
    name, depth = forms.name(target), weights.shape[1]
    bias = operator.inputs[2] if len(operator.inputs) > 2 else -1
    bias = bias if bias >= 0 else forms.values(f"{name}/biases", np.zeros(weights.shape[0], np.float32))
    is_image = len(before) == 4 and (before[0], before[-1]) == (1, depth)
    flat: tuple[int, ...] = (1, depth) if rows == 1 else before if is_image else (1, 1, rows, depth)
    result = (*flat[:-1], after[-1])
    read = source if before == flat else forms.tensor(f"{name}/rows", flat)
    written = target if after == result else forms.tensor(f"{name}/pixels", result)
    inner = _plain_dense if rows == 1 else _pointwise
    forms.rows[operator.index] = [
        *([forms.reshape(source, read, flat, f"{name}/rows")] if read != source else []),
        inner(forms, operator, read, bias, written),
        *([forms.reshape(written, target, after, f"{name}/pixels")] if written != target else []),
    ]
    if rows > 1:
        forms.count("dense layers over several rows", "convolutions of size 1")
    else:
        forms.count("dense layers that keep dimensions", "plain ones")
    return True


def _plain_dense(forms: _Forms, operator: Operator, read: int, bias: int, written: int) -> Any:
    activation = forms.options(operator).fusedActivationFunction
    inputs = [read, operator.inputs[1], bias]
    return forms.operator("FULLY_CONNECTED", inputs, [written], "FullyConnectedOptions", fusedActivationFunction=activation)


def _pointwise(forms: _Forms, operator: Operator, read: int, bias: int, written: int) -> Any:
    """Returns a convolution of size 1 with the weights of a dense layer, whose bytes stay where they are."""
    weights = forms.main.tensors[operator.inputs[1]]
    filters = forms.tensor(f"{forms.name(operator.outputs[0])}/filters", (weights.shape[0], 1, 1, weights.shape[1]))
    forms.writer.main.tensors[filters].buffer = forms.writer.main.tensors[operator.inputs[1]].buffer
    activation = forms.options(operator).fusedActivationFunction
    ones = dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1)
    fields = {**ones, "padding": forms.writer.schema.Padding.VALID, "fusedActivationFunction": activation}
    return forms.operator("CONV_2D", [read, filters, bias], [written], "Conv2DOptions", **fields)


def _dilated(forms: _Forms, operator: Operator) -> bool:
    """SPACE_TO_BATCH_ND, a convolution, BATCH_TO_SPACE_ND."""
    if operator.name != "SPACE_TO_BATCH_ND":
        return False
    inner = forms.only_reader(operator, "CONV_2D") or forms.only_reader(operator, "DEPTHWISE_CONV_2D")
    back = None if inner is None else forms.only_reader(inner, "BATCH_TO_SPACE_ND")
    if inner is None or back is None or inner.inputs[0] != operator.outputs[0]:
        return False
    source, target = operator.inputs[0], back.outputs[0]
    block, margins, crops = (forms.constant(index) for index in (*operator.inputs[1:3], back.inputs[2]))
    if block is None or margins is None or crops is None or len(forms.shape(source)) != 4 or len(set(block.tolist())) != 1:
        return False
    padding = _padding(forms, inner, int(block[0]), source, target, margins, crops)
    options = forms.options(inner)
    strides = (options.strideH, options.strideW, options.dilationHFactor, options.dilationWFactor)
    if padding is None or strides != (1, 1, 1, 1) or options.padding != forms.writer.schema.Padding.VALID:
        return False
    options.dilationHFactor = options.dilationWFactor = int(block[0])
    options.padding = padding
    row = forms.rows[inner.index][0]
    row.inputs = np.array([source, *inner.inputs[1:]], np.int32)
    row.outputs = np.array([target], np.int32)
    forms.rows[operator.index] = forms.rows[back.index] = []
    forms.count("convolutions between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND", "dilated ones")
    return True


def _padding(
    forms: _Forms, inner: Operator, dilation: int, source: int, target: int, margins: np.ndarray, crops: np.ndarray
) -> int | None:
    """Returns the padding with which one dilated convolution does the same; None where there is none."""
    before, after = forms.shape(source)[1:3], forms.shape(target)[1:3]
    kernel = forms.shape(inner.inputs[1])[1:3]
    reach = [dilation * (size - 1) for size in kernel]
    schema = forms.writer.schema
    starts = margins.reshape(-1, 2)[:, 0].tolist()
    if crops.reshape(-1, 2)[:, 0].any():
        return None
    if starts == [0, 0] and all(out == size - more for out, size, more in zip(after, before, reach, strict=True)):
        return int(schema.Padding.VALID)
    if after == before and starts == [more // 2 for more in reach]:
        return int(schema.Padding.SAME)
    return None


def _groups(forms: _Forms, operator: Operator) -> bool:
    """A convolution in groups."""
    if operator.name != "CONV_2D":
        return False
    filters = forms.constant(operator.inputs[1])
    shape = forms.shape(operator.inputs[0])
    if filters is None or filters.dtype != np.float32 or shape[-1] == filters.shape[-1]:
        return False
    groups = shape[-1] // filters.shape[-1]
    bias = forms.constant(operator.inputs[2]) if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
    if groups > _MOST_GROUPS or (bias is None and len(operator.inputs) > 2 and operator.inputs[2] >= 0):
        return False
    target, row = operator.outputs[0], forms.rows[operator.index][0]
    name, out = forms.name(target), forms.shape(target)
    biases = np.zeros(filters.shape[0], np.float32) if bias is None else bias
    parts = [forms.tensor(f"{name}/in{group}", (*shape[:-1], filters.shape[-1])) for group in range(groups)]
    results = [forms.tensor(f"{name}/out{group}", (*out[:-1], filters.shape[0] // groups)) for group in range(groups)]
    axis = forms.values(f"{name}/axis", np.array(3, np.int32))
    rows = [forms.operator("SPLIT", [axis, operator.inputs[0]], parts, "SplitOptions", numSplits=groups)]
    for group, (own, bias_part) in enumerate(zip(np.split(filters, groups), np.split(biases, groups), strict=True)):
        names = [forms.values(f"{name}/filters{group}", own), forms.values(f"{name}/biases{group}", bias_part)]
        convolution = forms.operator("CONV_2D", [parts[group], *names], [results[group]])
        convolution.builtinOptionsType, convolution.builtinOptions = row.builtinOptionsType, row.builtinOptions
        rows.append(convolution)
    rows.append(forms.operator("CONCATENATION", results, [target], "ConcatenationOptions", axis=3))
    forms.rows[operator.index] = rows
    forms.count("convolutions in groups", "SPLIT, one convolution for each group, and CONCATENATION")
    return True


def _merge_reshapes(writer: Writer) -> int:
    """Makes one of a RESHAPE that alone reads another, or EXPAND_DIMS or SQUEEZE; returns how many are gone."""
    codes = {
        name: {index for index, each in enumerate(writer.unpacked.operatorCodes)
               if max(each.builtinCode, each.deprecatedBuiltinCode) == writer.builtin[name]}
        for name in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")
    }  # fmt: skip
    readers: dict[int, int] = {}
    for row in writer.main.operators:
        for index in row.inputs:
            readers[int(index)] = readers.get(int(index), 0) + 1
    makers: dict[int, Any] = {}
    dropped: set[int] = set()
    for row in writer.main.operators:
        if not any(row.opcodeIndex in own for own in codes.values()):
            continue
        source = int(row.inputs[0])
        earlier = makers.get(source)
        unseen = readers[source] == 1 and source not in writer.main.outputs
        if earlier is not None and unseen and row.opcodeIndex in codes["RESHAPE"]:
            row.inputs = np.array([earlier.inputs[0], *row.inputs[1:]], np.int32)
            dropped.add(id(earlier))
        makers[int(row.outputs[0])] = row
    writer.main.operators = [row for row in writer.main.operators if id(row) not in dropped]
    return len(dropped)
