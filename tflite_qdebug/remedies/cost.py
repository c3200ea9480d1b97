"""What a model costs: its size, its operators in float, how often it leaves integers, what maps to an Edge TPU."""

from __future__ import annotations

import dataclasses
import hashlib

from tflite_qdebug.edgetpu.partition import mapped_operators
from tflite_qdebug.edit import BRIDGES
from tflite_qdebug.errors import QDebugError
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.outcome import Candidate

__all__ = ["described", "edgetpu_operators", "float_islands"]


def described(data: bytes, candidate: Candidate) -> Candidate:
    """Returns the candidate with what its file tells: operators, those in float, islands, SHA-256."""
    model = Model(data)
    count = sum(operator.name not in BRIDGES for operator in model.main.operators)
    floating = _float_operators(model)
    return dataclasses.replace(
        candidate,
        size=len(data),
        operators=count,
        float_operators=len(floating),
        islands=len(float_islands(model)),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _float_operators(model: Model) -> list[Operator]:
    tensors = model.main.tensors
    return [
        operator
        for operator in model.main.operators
        if operator.name not in BRIDGES and any(tensors[index].is_float for index in operator.outputs)
    ]


def float_islands(model: Model) -> list[list[int]]:
    """Returns the operators of the main subgraph that compute in float, in groups that float values connect.

    Each group costs a conversion from integers on every way in and one back on every way out.
    """
    floating = _float_operators(model)
    parent = {operator.index: operator.index for operator in floating}

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    producers = {output: operator.index for operator in floating for output in operator.outputs}
    for operator in floating:
        for index in operator.inputs:
            if index in producers and model.main.tensors[index].is_float:
                parent[root(operator.index)] = root(producers[index])
    groups: dict[int, list[int]] = {}
    for operator in floating:
        groups.setdefault(root(operator.index), []).append(operator.index)
    return sorted(groups.values())


def edgetpu_operators(data: bytes) -> int | None:
    """Returns how many operators are predicted to map to the Edge TPU; None where that cannot be told."""
    try:
        return mapped_operators(data, if_accepted=True)[0]
    except QDebugError:
        return None
