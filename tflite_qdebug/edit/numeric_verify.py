"""TensorFlow's own debug model, without its slow operators."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import numpy as np

from tflite_qdebug.edit.debug_model import ADDED, BRIDGES, NUMERIC_VERIFY, DebugModel, tensors_of
from tflite_qdebug.edit.flatbuffer import append_outputs, pack, require_single_subgraph, unpack
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Operator, Tensor, refuses_broken_models
from tflite_qdebug.record import Layer

__all__ = ["strip_numeric_verify"]


@refuses_broken_models
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
    require_single_subgraph(model, "the debugger")
    names = _original_names(model, original) if original is not None else {}
    layers = tuple(_verified_layer(model, operator, names) for operator in verifiers)
    unpacked = unpack(model)
    removed = {operator.index for operator in verifiers}
    table = unpacked.subgraphs[0]
    table.operators = [operator for index, operator in enumerate(table.operators) if index not in removed]
    append_outputs(unpacked, tensors_of(layers))
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
    return DebugModel(pack(unpacked), layers, own, stateful, verify, notes, inputs)


def _unverified(model: Model, layers: Iterable[Layer]) -> tuple[str, ...]:
    """Says which quantized operators TensorFlow's debug model does not verify, as happens with some of UNPACK."""
    verified = {layer.tensor_idx for layer in layers}
    missing = [
        operator
        for operator in model.main.operators
        if operator.name not in ADDED
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
        return operator.name not in ADDED and not any(tensor.is_quantized for tensor in touched)

    copies = [operator for operator in model.main.operators if operator.outputs and copied(operator)]
    sources = [operator for operator in original.main.operators if operator.outputs and operator.name not in ADDED]
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
