"""Bytes to new bytes: every edit returns another model and leaves the one it was given as it is."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Operator, Tensor
from tflite_qdebug.record import Layer

__all__ = ["DebugModel", "cast_weights_to_float16", "debug_pair", "expose", "fold_float16", "quantize_weights",
           "strip_numeric_verify", "with_ranges", "with_renamed"]  # fmt: skip

NUMERIC_VERIFY = "NumericVerify"
# Operators that only carry values between float and integers.
BRIDGES = ("QUANTIZE", "DEQUANTIZE")
# Operators that a debug model has and the model that it was made from has not.
_ADDED = (*BRIDGES, NUMERIC_VERIFY)
_FLOAT16_MAXIMUM = float(np.finfo(np.float16).max)
# TensorFlow leaves weights of fewer elements in float when it quantizes weights alone.
_MINIMUM_WEIGHTS = 1024
# ... and takes no smaller greatest magnitude than this, so that a channel of zeros has a scale.
_SMALLEST_MAGNITUDE = np.float32(5e-7)


class _Hybrid(NamedTuple):
    """How TensorFlow's dynamic-range quantizer treats the weights of one type of operator.

    Attributes:
        weights: Positions of the weights among the inputs; all of them become int8, or none.
        axis: The axis of the channels; None: one scale for all.
        per_tensor: Version of the hybrid kernel with one scale.
        per_channel: Version of the hybrid kernel with a scale for each channel.
        asymmetric: Whether it has the option ``asymmetric_quantize_inputs``, which TensorFlow sets.
    """

    weights: tuple[int, ...]
    axis: int | None
    per_tensor: int
    per_channel: int
    asymmetric: bool = False


_HYBRID = {
    "CONV_2D": _Hybrid((1,), 0, 2, 5),
    "DEPTHWISE_CONV_2D": _Hybrid((1,), 3, 4, 6),
    "FULLY_CONNECTED": _Hybrid((1,), 0, 9, 12, asymmetric=True),
    "TRANSPOSE_CONV": _Hybrid((1,), 0, 2, 2),
    "BATCH_MATMUL": _Hybrid((1,), None, 4, 4, asymmetric=True),
    "EMBEDDING_LOOKUP": _Hybrid((1,), 0, 3, 4),
    "GATHER": _Hybrid((0,), None, 2, 2),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Hybrid((1, 2, 3, 4, 5, 6, 7, 8, 16), None, 3, 3, asymmetric=True),
}


@dataclasses.dataclass(frozen=True)
class DebugModel:
    """A model that computes each layer both ways, and which of its tensors are to be compared.

    Attributes:
        data: The ``.tflite``; all tensors to be compared are outputs, behind the model's own.
        layers: The pairs.
        outputs: Number of the model's own outputs.
        stateful: True where it has variables.
        verify: ``per_layer`` or ``whole_model``.
        notes: What the reader of a result must know.
        inputs: What the model expects of a sample, in input order.
    """

    data: bytes
    layers: tuple[Layer, ...]
    outputs: int
    stateful: bool
    verify: str
    notes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()


def _unpack(model: Model) -> Any:
    schema = tf_private.schema()
    unpacked = schema.ModelT.InitFromPackedBuf(model.data, 0)
    for buffer in unpacked.buffers:
        # Data outside of the flatbuffer would be lost when it is written again.
        if buffer.data is None and getattr(buffer, "size", None):
            buffer.data = np.frombuffer(model.data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return unpacked


def _pack(unpacked: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _require_single_subgraph(model: Model, what: str) -> None:
    if len(model.subgraphs) > 1:
        names = ", ".join(repr(subgraph.name or subgraph.index) for subgraph in model.subgraphs)
        raise ModelError(
            f"got a model with {len(model.subgraphs)} subgraphs ({names}), expected one: {what} does not yet follow other "
            "signatures or the bodies of while and if, and leaving them out would report a part as the whole; convert "
            "one signature at a time"
        )


def expose(model: Model, tensors: Iterable[int]) -> bytes:
    """Returns the model with further tensors of its main subgraph as outputs, behind its own.

    An output keeps its value to the end of an invocation, also under XNNPACK; other tensors are overwritten.
    """
    unpacked = _unpack(model)
    _append_outputs(unpacked, tensors)
    return _pack(unpacked)


def _append_outputs(unpacked: Any, tensors: Iterable[int]) -> None:
    main = unpacked.subgraphs[0]
    main.outputs = np.array(list(dict.fromkeys([*main.outputs, *tensors])), dtype=np.int32)


def strip_numeric_verify(model: Model, original: Model | None = None, whole_model: bool | None = None) -> DebugModel:
    """Turns TensorFlow's debug model into one without its slow NumericVerify operators.

    Both inputs of each become outputs, from which the same difference is computed outside.

    Args:
        model: TensorFlow's debug model, per layer or whole model.
        original: The float or calibrated model that it was made from, to call the nodes by their names there. Without
            it they are called as the debug model calls them, some with digits of TensorFlow's behind their name.
        whole_model: Which of both it is; None tells it from the wiring, which one layer alone does not show.

    Raises:
        ModelError: Where the model has no NumericVerify operator, or more than one subgraph.
    """
    main = model.main
    verifiers = [operator for operator in main.operators if operator.name == NUMERIC_VERIFY]
    if not verifiers:
        raise ModelError(
            "Please check if the quantized model is in debug mode: got a model without a NumericVerify operator, which "
            "means that it was not made for debugging, or that the denylist leaves nothing quantized"
        )
    _require_single_subgraph(model, "the debugger")
    names = _original_names(model, original) if original is not None else {}
    layers = tuple(_verified_layer(model, operator, names) for operator in verifiers)
    unpacked = _unpack(model)
    removed = {operator.index for operator in verifiers}
    table = unpacked.subgraphs[0]
    table.operators = [operator for index, operator in enumerate(table.operators) if index not in removed]
    _append_outputs(unpacked, _tensors_of(layers))
    # The differences may be outputs themselves; nothing computes them any more.
    gone = {output for operator in verifiers for output in operator.outputs}
    table.outputs = np.array([index for index in table.outputs if index not in gone], dtype=np.int32)
    stateful = any(tensor.is_variable for tensor in main.tensors)
    if whole_model is None:
        # Float copies read what their twins read, dequantized; only in a whole-model chain do they read one another.
        compared = {layer.float_idx for layer in layers}
        whole_model = any(compared.intersection(op.inputs) for op in main.operators if op.index not in removed)
    verify = "whole_model" if whole_model else "per_layer"
    own = len([index for index in main.outputs if index not in gone])
    notes, inputs = _unverified(model, layers), tuple(model.input_specs())
    return DebugModel(_pack(unpacked), layers, own, stateful, verify, notes, inputs)


def _unverified(model: Model, layers: Iterable[Layer]) -> tuple[str, ...]:
    """Says which quantized operators TensorFlow's debug model does not verify, as happens with some of UNPACK."""
    verified = {layer.tensor_idx for layer in layers}
    missing = [
        operator
        for operator in model.main.operators
        if operator.name not in _ADDED
        and any(model.main.tensors[output].is_quantized for output in operator.outputs)
        and not verified.intersection(operator.outputs)
    ]
    if not missing:
        return ()
    shown = ", ".join(f"{operator.name} {model.main.tensors[operator.outputs[0]].name!r}" for operator in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (f"TensorFlow's debug model verifies all quantized operators but {len(missing)}, which have no row: {shown}{more}",)


def _original_names(model: Model, original: Model) -> dict[int, str]:
    """Returns the names that the float tensors of a debug model have in the model it was made from, by tensor index.

    TensorFlow puts digits behind a name that is taken, and joins the names of an operator's outputs, so the names alone
    do not tell. But it copies the operators in their order.
    """

    def sequence(of: Model, operators: list[Operator]) -> list[tuple[str, tuple[int, ...]]]:
        return [(operator.name, of.main.tensors[operator.outputs[0]].shape) for operator in operators]

    def copied(operator: Operator) -> bool:
        touched = (model.main.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0)
        return operator.name not in _ADDED and not any(tensor.is_quantized for tensor in touched)

    copies = [operator for operator in model.main.operators if operator.outputs and copied(operator)]
    sources = [operator for operator in original.main.operators if operator.outputs and operator.name not in _ADDED]
    matcher = difflib.SequenceMatcher(None, sequence(model, copies), sequence(original, sources), autojunk=False)
    names: dict[int, str] = {}
    for start, source_start, length in matcher.get_matching_blocks():
        for copied_one, source in zip(copies[start : start + length], sources[source_start:], strict=False):
            true_names = [original.main.tensors[index].name for index in source.outputs]
            # A copy that TensorFlow rewrote bears a name made up for it, such as tfl.dequantize7.
            if model.main.tensors[copied_one.outputs[0]].name.startswith((true_names[0], "tfl.")):
                names.update(zip(copied_one.outputs, true_names, strict=False))
    return names


def _own_name(model: Model, quantized: Tensor, reference: Tensor) -> str:
    """Returns the name of a float copy without the digits that it got because the model's output took the name."""
    results = [quantized] + [
        model.main.tensors[output]
        for operator in model.main.operators
        if operator.name in BRIDGES and quantized.index in operator.inputs
        for output in operator.outputs
    ]
    for tensor in results:
        digits = reference.name[len(tensor.name) :]
        if tensor.index in model.main.outputs and reference.name.startswith(tensor.name) and digits.isdigit():
            return tensor.name
    return quantized.name[:-1] if reference.name.startswith("tfl.") and quantized.name[-1:].isdigit() else reference.name


def _tensors_of(layers: Iterable[Layer]) -> list[int]:
    return [index for layer in layers for index in (layer.tensor_idx, layer.float_idx)]


def _verified_layer(model: Model, verifier: Operator, names: Mapping[int, str]) -> Layer:
    main = model.main
    quantized, reference = (main.tensors[index] for index in verifier.inputs[:2])
    if quantized.quantization is None:
        raise ModelError(f"the model is broken: NumericVerify reads {quantized.name!r}, which has no scale")
    producer = main.producers.get(quantized.index)
    return Layer(
        node=names.get(reference.index) or _own_name(model, quantized, reference),
        op_name=producer.name if producer else "INPUT",
        operator=producer.index if producer else -1,
        tensor_name=quantized.name,
        tensor_idx=quantized.index,
        float_idx=reference.index,
        shape=quantized.shape,
        dtype=quantized.dtype.name,
        scale=float(quantized.quantization.scale[0]),
        zero_point=int(quantized.quantization.zero_point[0]),
        key=main.tensors[verifier.outputs[0]].name,
    )


def with_ranges(model: Model, ranges: Mapping[int, tuple[float, float]]) -> bytes:
    """Returns the float model with a calibrated minimum and maximum on the given tensors of its main subgraph."""
    schema = tf_private.schema()
    unpacked = _unpack(model)
    tensors = unpacked.subgraphs[0].tensors
    for index, (minimum, maximum) in ranges.items():
        parameters = tensors[index].quantization or schema.QuantizationParametersT()
        parameters.min, parameters.max = [np.float32(minimum)], [np.float32(maximum)]
        tensors[index].quantization = parameters
    return _pack(unpacked)


def with_renamed(model: Model, rename: Callable[[int, str], str]) -> bytes:
    """Returns the model with each tensor of its main subgraph called ``rename(index, name)``."""
    unpacked = _unpack(model)
    for index, tensor in enumerate(unpacked.subgraphs[0].tensors):
        tensor.name = rename(index, (tensor.name or b"").decode("utf-8", "replace")).encode()
    return _pack(unpacked)


class _Writer:
    """Adds tensors, constants and operators to the main subgraph of an unpacked model."""

    def __init__(self, unpacked: Any) -> None:
        self.schema = tf_private.schema()
        self.unpacked = unpacked
        self.main = unpacked.subgraphs[0]
        self.builtin = {name: code for code, name in tf_private.builtin_operator_names().items()}

    def add_tensor(self, name: str, like: Any, tensor_type: int) -> int:
        """Adds a tensor without values, of the shape of another; returns its index."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), tensor_type, 0
        tensor.shape, tensor.shapeSignature, tensor.hasRank = like.shape, like.shapeSignature, like.hasRank
        self.main.tensors.append(tensor)
        return len(self.main.tensors) - 1

    def add_values(self, values: np.ndarray) -> int:
        """Adds a buffer; returns its index."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.unpacked.buffers.append(buffer)
        return len(self.unpacked.buffers) - 1

    def add_code(self, name: str, version: int, custom: bytes | None = None) -> int:
        """Returns the index of an operator code, added where it is missing."""
        builtin = self.builtin.get(name, self.builtin["CUSTOM"])
        for index, code in enumerate(self.unpacked.operatorCodes):
            same = max(code.builtinCode, code.deprecatedBuiltinCode) == builtin
            if same and code.version == version and code.customCode == custom:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version, code.customCode = version, custom
        self.unpacked.operatorCodes.append(code)
        return len(self.unpacked.operatorCodes) - 1

    def dequantize(self, source: int, name: str, version: int) -> tuple[Any, int]:
        """Returns a DEQUANTIZE operator (not yet put anywhere) that reads ``source``, and the tensor it writes."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.add_code("DEQUANTIZE", version)
        target = self.add_tensor(name, self.main.tensors[source], self.schema.TensorType.FLOAT32)
        operator.inputs = np.array([source], dtype=np.int32)
        operator.outputs = np.array([target], dtype=np.int32)
        operator.builtinOptionsType = self.schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = self.schema.DequantizeOptionsT()
        return operator, target


def cast_weights_to_float16(model: Model) -> bytes:
    """Returns the model with its float constants stored as float16, each behind a DEQUANTIZE, as TensorFlow does.

    Values beyond float16's range (65504) are clipped to it, as TensorFlow does.
    """
    _require_single_subgraph(model, "float16")
    unpacked = _unpack(model)
    writer = _Writer(unpacked)
    read = {index for operator in model.main.operators for index in operator.inputs}
    inserted, replaced = [], {}
    for tensor in model.main.tensors:
        if not (tensor.is_constant and tensor.is_float and tensor.index in read):
            continue
        values = np.clip(model.constant(tensor), -_FLOAT16_MAXIMUM, _FLOAT16_MAXIMUM).astype(np.float16)
        table = writer.main.tensors[tensor.index]
        table.type, table.buffer = writer.schema.TensorType.FLOAT16, writer.add_values(values)
        operator, target = writer.dequantize(tensor.index, tensor.name + "_dequantize", 3)
        inserted.append(operator)
        replaced[tensor.index] = target
    for operator in writer.main.operators:
        operator.inputs = np.array([replaced.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
    writer.main.operators = inserted + writer.main.operators
    _drop_unused_buffers(unpacked)
    return _pack(unpacked)


def fold_float16(model: Model) -> bytes:
    """Returns the model with its float16 constants as float32, and without the DEQUANTIZE behind each.

    Every float16 is a float32 as well, so the outputs stay the same. TensorFlow's quantizers refuse the float16 form, or
    die of it.
    """
    unpacked = _unpack(model)
    writer = _Writer(unpacked)
    main = model.main
    halves = {
        operator.outputs[0]: operator
        for operator in main.operators
        if operator.name == "DEQUANTIZE"
        and main.tensors[operator.inputs[0]].is_constant
        and main.tensors[operator.inputs[0]].dtype == np.float16
    }
    for target, operator in halves.items():
        values = model.constant(main.tensors[operator.inputs[0]]).astype(np.float32)
        writer.main.tensors[target].buffer = writer.add_values(values)
    removed = {operator.index for operator in halves.values()}
    writer.main.operators = [table for index, table in enumerate(writer.main.operators) if index not in removed]
    read = {int(index) for table in writer.main.operators for index in table.inputs}
    for operator in halves.values():
        if operator.inputs[0] not in read:
            writer.main.tensors[operator.inputs[0]].buffer = 0
    _drop_unused_buffers(unpacked)
    _drop_unused_codes(unpacked)
    return _pack(unpacked)


def quantize_weights(model: Model, per_channel: bool = True, per_channel_dense: bool = True) -> bytes:
    """Returns the dynamic-range model: weights as int8, activations quantized on the fly by the hybrid kernels.

    As TensorFlow does: symmetric, narrow range (-127..127), per channel where the kernel can, weights of at least 1024
    elements only. A table that GATHER reads becomes int8 too, and what is gathered is dequantized. Weights that several
    operators read are quantized for each kind of reader; who cannot take int8 keeps the float ones. Recurrent operators
    other than UNIDIRECTIONAL_SEQUENCE_LSTM keep float weights.
    """
    _require_single_subgraph(model, "dynamic_range")
    unpacked = _unpack(model)
    writer = _Writer(unpacked)
    uses: dict[int, dict[int | None, list[tuple[int, int]]]] = {}
    behind: dict[int, Any] = {}
    for operator in model.main.operators:
        weights = _quantizable_weights(model, operator)
        if not weights:
            continue
        wanted = per_channel and (per_channel_dense or operator.name != "FULLY_CONNECTED")
        axis = _HYBRID[operator.name].axis if wanted else None
        for position in weights:
            uses.setdefault(operator.inputs[position], {}).setdefault(axis, []).append((operator.index, position))
        _make_hybrid(writer, operator, axis is not None)
    readers = Counter(index for operator in model.main.operators for index in operator.inputs)
    readers.update(model.main.outputs)
    for index, by_axis in uses.items():
        for axis, places in by_axis.items():
            target, readers[index] = index, readers[index] - len(places)
            if readers[index]:  # who comes later, or cannot take integers, reads the float values
                target = writer.add_tensor(
                    model.main.tensors[index].name, writer.main.tensors[index], writer.schema.TensorType.INT8
                )
            _quantize_constant(writer, target, model.constant(model.main.tensors[index]), axis)
            for operator_index, position in places:
                _replace_input(writer.main.operators[operator_index], position, target)
    for operator in model.main.operators:
        if operator.name == "GATHER" and _quantizable_weights(model, operator):
            behind[operator.index] = _gather_integers(writer, model, operator)
    writer.main.operators = [
        table
        for index, operator in enumerate(writer.main.operators)
        for table in ([operator, behind[index]] if index in behind else [operator])
    ]
    _drop_unused_buffers(unpacked)
    return _pack(unpacked)


def _quantizable_weights(model: Model, operator: Operator) -> list[int]:
    """Returns the positions of the inputs that become int8: all weights of a hybrid operator, or none."""
    hybrid = _HYBRID.get(operator.name)
    if hybrid is None:
        return []
    positions = [position for position in hybrid.weights if operator.inputs[position : position + 1] not in ((), (-1,))]
    tensors = [model.main.tensors[operator.inputs[position]] for position in positions]
    fit = all(t.is_constant and t.is_float and int(np.prod(t.shape)) >= _MINIMUM_WEIGHTS for t in tensors)
    return positions if fit else []


def _quantize_constant(writer: _Writer, index: int, values: np.ndarray, axis: int | None) -> None:
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    largest = np.maximum(np.abs(values).max(axis=others, keepdims=True), _SMALLEST_MAGNITUDE)
    scale = (largest.astype(np.float32) / np.float32(127)).astype(np.float32)
    integers = np.clip(_round_half_away(values / scale), -127, 127).astype(np.int8)
    table = writer.main.tensors[index]
    table.type, table.buffer = writer.schema.TensorType.INT8, writer.add_values(integers)
    parameters = writer.schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = scale.reshape(-1), np.zeros(scale.size, dtype=np.int64)
    parameters.quantizedDimension = axis or 0
    table.quantization = parameters


def _replace_input(table: Any, position: int, index: int) -> None:
    inputs = np.array(table.inputs, dtype=np.int32)
    inputs[position] = index
    table.inputs = inputs


def _gather_integers(writer: _Writer, model: Model, operator: Operator) -> Any:
    """Makes a GATHER write integers, and returns the DEQUANTIZE to be put behind it."""
    table, output = writer.main.operators[operator.index], operator.outputs[0]
    reader, integers = writer.dequantize(output, model.main.tensors[output].name + "_int8", 2)
    written = writer.main.tensors[integers]
    written.type = writer.schema.TensorType.INT8
    written.quantization = writer.main.tensors[int(table.inputs[0])].quantization
    table.outputs = np.array([integers], dtype=np.int32)
    reader.inputs, reader.outputs = np.array([integers], dtype=np.int32), np.array([output], dtype=np.int32)
    return reader


def _round_half_away(values: np.ndarray) -> np.ndarray:
    return np.trunc(values + np.copysign(np.float32(0.5), values))


def _make_hybrid(writer: _Writer, operator: Operator, per_channel: bool) -> None:
    hybrid = _HYBRID[operator.name]
    table = writer.main.operators[operator.index]
    version = hybrid.per_channel if per_channel else hybrid.per_tensor
    table.opcodeIndex = writer.add_code(operator.name, max(version, operator.version))
    if hybrid.asymmetric and table.builtinOptions is not None:
        table.builtinOptions.asymmetricQuantizeInputs = True


def _drop_unused_codes(unpacked: Any) -> None:
    """Removes operator codes that no operator has any more: a runtime refuses a model for a code alone."""
    operators = [operator for subgraph in unpacked.subgraphs for operator in subgraph.operators]
    used = sorted({operator.opcodeIndex for operator in operators})
    unpacked.operatorCodes = [unpacked.operatorCodes[index] for index in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)


def _drop_unused_buffers(unpacked: Any) -> None:
    """Empties buffers that no tensor or metadata refers to any more; their numbers stay, so nothing else moves."""
    used = {tensor.buffer for subgraph in unpacked.subgraphs for tensor in subgraph.tensors}
    used |= {metadata.buffer for metadata in unpacked.metadata or []}
    for index, buffer in enumerate(unpacked.buffers):
        if index not in used:
            buffer.data = None


def debug_pair(float_model: Model, quantized_model: Model, whole_model: bool = False) -> DebugModel:
    """Builds a debug model out of a float model and the model quantized from it.

    Each operator of the float model whose twin in the quantized model computes something else gets copied into the
    latter: with the float constants, and on inputs that are the dequantized inputs of its twin (per layer), or the
    copies' own outputs throughout (whole model). The two are matched by the names of their output tensors, which
    TensorFlow's quantizers keep.

    Raises:
        ModelError: Where there is more than one subgraph, or no operator can be matched.
    """
    for model in (float_model, quantized_model):
        _require_single_subgraph(model, "the debugger")
    builder = _PairBuilder(float_model, quantized_model, whole_model)
    for operator in float_model.main.operators:
        builder.add(operator)
    if not builder.layers:
        raise ModelError(
            "Please check if the quantized model is in debug mode: no operator of the quantized model computes anything "
            "differently from its namesake in the float model, so there is nothing to compare"
        )
    return builder.finish()


class _PairBuilder:
    """Copies float operators into a quantized model, one after another."""

    def __init__(self, float_model: Model, quantized_model: Model, whole_model: bool) -> None:
        self._float, self._quantized, self._whole = float_model, quantized_model, whole_model
        self._source = _unpack(float_model)
        self._unpacked = _unpack(quantized_model)
        self._writer = _Writer(self._unpacked)
        self._own_outputs = len(self._writer.main.outputs)
        self._dequantized: dict[int, int] = {}
        self._copied: dict[int, int] = {}
        self._appended: list[Any] = []
        self.layers: list[Layer] = []
        self._by_name: dict[str, list[Tensor]] = {}
        for tensor in quantized_model.main.tensors:
            self._by_name.setdefault(tensor.name, []).append(tensor)
        self._inputs = dict(zip(float_model.main.inputs, quantized_model.main.inputs, strict=True))
        if whole_model:
            self._copied = {source: self._as_float(target) for source, target in self._inputs.items()}

    def _twin(self, tensor: Tensor, op_name: str) -> tuple[Tensor, Operator] | None:
        """Returns the quantized model's tensor of that name, made by an operator of that type, and the operator."""
        # TensorFlow's quantizers give a model output's name to its dequantized copy, and itself a suffix.
        for name in (tensor.name, tensor.name + "_int16", tensor.name + "_int8"):
            for candidate in self._by_name.get(name, ()):
                made, producer = candidate, self._quantized.main.producers.get(candidate.index)
                if producer is not None and producer.name in _ADDED and op_name not in _ADDED:
                    made = self._quantized.main.tensors[producer.inputs[0]]
                    producer = self._quantized.main.producers.get(made.index)
                if producer is not None and producer.name == op_name:
                    return made, producer
        return None

    def _counterpart(self, index: int) -> int | None:
        """Returns the quantized model's tensor that holds what a float activation holds."""
        if index in self._inputs:
            return self._inputs[index]
        tensor = self._float.main.tensors[index]
        producer = self._float.main.producers.get(index)
        twin = self._twin(tensor, producer.name) if producer else None
        return twin[0].index if twin else None

    def _as_float(self, index: int) -> int:
        tensor = self._quantized.main.tensors[index]
        if not tensor.is_quantized:
            return index
        if index not in self._dequantized:
            operator, target = self._writer.dequantize(index, tensor.name + "_verify", 2)
            self._appended.append(operator)
            self._dequantized[index] = target
        return self._dequantized[index]

    def _copy_tensor(self, index: int) -> int:
        """Copies a tensor of the float model with its values, if it has any."""
        tensor = copy.copy(self._source.subgraphs[0].tensors[index])
        if self._float.main.tensors[index].is_constant:
            self._unpacked.buffers.append(self._source.buffers[tensor.buffer])
            tensor.buffer = len(self._unpacked.buffers) - 1
        else:
            tensor.buffer = 0
        tensor.name = (tensor.name or b"") + b"_float"
        self._writer.main.tensors.append(tensor)
        return len(self._writer.main.tensors) - 1

    def _input(self, index: int) -> int | None:
        if index < 0:
            return index
        tensor = self._float.main.tensors[index]
        computed = index in self._float.main.producers or index in self._inputs
        if self._whole and index in self._copied:
            return self._copied[index]
        if not computed:  # a constant, or a variable
            if index not in self._copied:
                self._copied[index] = self._copy_tensor(index)
            return self._copied[index]
        counterpart = self._counterpart(index)
        return None if counterpart is None else self._as_float(counterpart) if tensor.is_float else counterpart

    def add(self, operator: Operator) -> None:
        """Copies one operator, and makes a layer of each of its outputs that has a twin."""
        tensors = self._float.main.tensors
        twins = {output: self._twin(tensors[output], operator.name) for output in operator.outputs}
        matched = [twin for twin in twins.values() if twin is not None]
        if not self._whole and not any(self._differs(operator, *twin) for twin in matched):
            return
        inputs = [self._input(index) for index in operator.inputs]
        if any(index is None for index in inputs):
            return
        outputs = [self._copy_tensor(index) for index in operator.outputs]
        table = copy.copy(self._source.subgraphs[0].operators[operator.index])
        code = self._source.operatorCodes[table.opcodeIndex]
        table.opcodeIndex = self._writer.add_code(operator.name, code.version, code.customCode)
        table.inputs, table.outputs = np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)
        self._appended.append(table)
        for output, copied in zip(operator.outputs, outputs, strict=True):
            self._copied[output] = copied
            twin = twins[output]
            if twin is not None and tensors[output].is_float:
                self._add_layer(tensors[output], *twin, copied)

    def _differs(self, operator: Operator, tensor: Tensor, twin: Operator) -> bool:
        """True where the twin quantizes its output, or reads weights that are not the float ones."""
        if tensor.is_quantized:
            return True
        main = self._quantized.main
        for theirs, ours in zip(twin.inputs, operator.inputs, strict=False):
            if ours < 0 or theirs < 0 or not self._float.main.tensors[ours].is_constant:
                continue
            if not main.tensors[theirs].is_constant or not main.tensors[theirs].is_float:
                return self._float.main.tensors[ours].is_float
        return False

    def _add_layer(self, reference: Tensor, quantized: Tensor, twin: Operator, copied: int) -> None:
        parameters = quantized.quantization if quantized.is_quantized else None
        self.layers.append(
            Layer(
                node=reference.name,
                op_name=twin.name,
                operator=twin.index,
                tensor_name=quantized.name,
                tensor_idx=quantized.index,
                float_idx=copied,
                shape=quantized.shape,
                dtype=quantized.dtype.name,
                scale=None if parameters is None else float(parameters.scale[0]),
                zero_point=None if parameters is None else int(parameters.zero_point[0]),
                key=f"{NUMERIC_VERIFY}/{quantized.name}:{quantized.index}",
            )
        )

    def finish(self) -> DebugModel:
        """Writes the debug model."""
        layers = tuple(self.layers)
        self._writer.main.operators = [*self._writer.main.operators, *self._appended]
        _append_outputs(self._unpacked, _tensors_of(layers))
        models = (self._float, self._quantized)
        stateful = any(tensor.is_variable for model in models for tensor in model.main.tensors)
        verify = "whole_model" if self._whole else "per_layer"
        inputs = tuple(self._quantized.input_specs())
        return DebugModel(_pack(self._unpacked), layers, self._own_outputs, stateful, verify, inputs=inputs)
