"""Reading a model that the Edge TPU compiler wrote: which operators it swallowed, by comparison with what it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from tflite_qdebug.edgetpu.partition import CUSTOM_OPERATOR
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, Operator, refuses_broken_models

__all__ = ["CompiledModel", "read_compiled"]


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """What the compiler did with a model.

    Attributes:
        mapped: For each operator of the source model, in execution order, whether it is in a piece on the device.
        segments: Pieces on the device: operators ``edgetpu-custom-op``.
        inputs: Names of the tensors that the pieces read, without states.
        outputs: Names of the tensors that they write.
    """

    mapped: tuple[bool, ...]
    segments: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of operators of the source model."""
        return len(self.mapped)

    @property
    def crossings(self) -> int:
        """Number of times a tensor passes between host and device for one sample."""
        return len(self.inputs) + len(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {**dataclasses.asdict(self), "total": self.total, "crossings": self.crossings}


@refuses_broken_models
def read_compiled(source: Model, compiled: Model) -> CompiledModel:
    """Finds which operators of a model are in its compiled form no more.

    Args:
        source: What the compiler was given.
        compiled: What it wrote, ``*_edgetpu.tflite``.

    Raises:
        ModelError: Where the second has an operator that the first lacks: it was not made of it.
    """
    main = compiled.main
    pieces = [operator for operator in main.operators if operator.name == CUSTOM_OPERATOR]
    kept = _kept(source, compiled)
    names = [tensor.name for tensor in main.tensors]
    return CompiledModel(
        mapped=tuple(operator.index not in kept for operator in source.main.operators),
        segments=len(pieces),
        inputs=tuple(names[i] for piece in pieces for i in piece.inputs if i >= 0 and not main.tensors[i].is_variable),
        outputs=tuple(names[i] for piece in pieces for i in piece.outputs),
    )


def _kept(source: Model, compiled: Model) -> set[int]:
    """Returns the operators of the source that the compiled model still has."""
    left = {operator.index: operator for operator in source.main.operators}
    waiting = [operator for operator in compiled.main.operators if operator.name != CUSTOM_OPERATOR]
    # The surest likeness first: a name may occur twice, or have been changed.
    for likeness in (_by_all_names, _by_output_names, _by_contents):
        waiting = _paired(source, left, compiled, waiting, likeness)
    if waiting:
        operator = waiting[0]
        name = compiled.main.tensors[operator.outputs[0]].name if operator.outputs else ""
        raise ModelError(
            f"the compiled model has operator {operator.index} ({operator.name}, {name!r}), and the model it is compared with "
            "has no such one; expected the model that was given to the compiler"
        )
    if left and all(operator.name != CUSTOM_OPERATOR for operator in compiled.main.operators):
        raise ModelError(
            f"got a second model without the operator {CUSTOM_OPERATOR}, with fewer operators than the first; expected what "
            "the compiler wrote of the first"
        )
    return {operator.index for operator in source.main.operators} - set(left)


def _paired(
    source: Model,
    left: dict[int, Operator],
    compiled: Model,
    waiting: Sequence[Operator],
    likeness: Callable[[Model, Operator], Hashable],
) -> list[Operator]:
    """Takes from ``left`` what is like the operators that wait, in order; returns those that are like none."""
    if not waiting:
        return []
    found: dict[Hashable, list[int]] = {}
    for index, operator in left.items():
        found.setdefault(likeness(source, operator), []).append(index)
    still = []
    for operator in reversed(waiting):
        candidates = found.get(likeness(compiled, operator))
        if candidates:
            # What stays on the CPU mostly stands at the end, so the last of several alike is taken.
            left.pop(candidates.pop())
        else:
            still.append(operator)
    return still[::-1]


def _by_all_names(model: Model, operator: Operator) -> Hashable:
    tensors = model.main.tensors
    read = tuple(tensors[index].name for index in operator.inputs if index >= 0 and not tensors[index].is_constant)
    return (*_by_output_names(model, operator), read)


def _by_output_names(model: Model, operator: Operator) -> tuple[Hashable, ...]:
    return operator.name, tuple(model.main.tensors[index].name for index in operator.outputs)


def _by_contents(model: Model, operator: Operator) -> Hashable:
    tensors = [model.main.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    shapes = tuple((tensor.shape, str(tensor.dtype)) for tensor in tensors)
    constants = tuple(hash(model.constant(tensor).tobytes()) for tensor in tensors if tensor.is_constant)
    return operator.name, shapes, constants
