"""What the bodies of loops, branches and composite operators receive, so that each can be measured as a model of its own.

The tensors inside of a body cannot be read from outside. So the operator that calls it is not run, but followed: the model
runs up to it, and what it would do is done here, subgraph by subgraph, with the values that the running model has.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import Dataset, Sample
from tflite_qdebug.datasets.sources import Source
from tflite_qdebug.edit.flatbuffer import unpack
from tflite_qdebug.edit.subgraphs import reachable_subgraphs, referenced_subgraphs, select_prefix, select_subgraph
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError, OptionError, did_you_mean
from tflite_qdebug.model import Model, refuses_broken_models

__all__ = ["MAX_ITERATIONS", "Body", "bodies", "body_dataset", "body_samples", "counterparts"]

#: How often a loop's body runs on one sample before the loop is taken for endless.
MAX_ITERATIONS = 10_000
# More than any real model has; a broken one can have 2**n paths through n subgraphs.
_MAX_BODIES = 10_000
_MAX_DEPTH = 100
# Operators that call subgraphs: their name in a path, and what they call.
_CALLERS = {
    "WHILE": ("while", ("cond", "body")),
    "IF": ("if", ("then", "else")),
    "STABLEHLO_COMPOSITE": ("composite", ("decomposition",)),
    "CALL_ONCE": ("call_once", ("init",)),
}
_Values = list[np.ndarray]
# What a subgraph receives, and where that comes from: the sample, then the iteration of each loop on the way.
_Received = tuple[_Values, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Body:
    """A subgraph that an operator calls, at one place.

    Attributes:
        path: The way to it: ``main/while:5/body`` is called by the main subgraph's operator 5.
        subgraph: Its index in the model.
        parent: The index of the subgraph that calls it.
        operator: The index of the calling operator in ``parent``.
        op_name: The type of the calling operator: ``WHILE``, ``IF``, ``STABLEHLO_COMPOSITE``, ``CALL_ONCE``, or another.
        kind: ``body``, ``cond``, ``then``, ``else``, ``decomposition``, ``init``, or ``called`` for other operators.
        called: All subgraphs that the calling operator calls, in the order of the schema.
        refusal: Why it cannot be measured, in words; None where it can.
    """

    path: str
    subgraph: int
    parent: int
    operator: int
    op_name: str
    kind: str
    called: tuple[int, ...]
    refusal: str | None = None


@refuses_broken_models
def bodies(model: Model) -> list[Body]:
    """Returns every subgraph that the main one calls, directly or not, in execution order, the outer before the inner.

    A subgraph that is called at several places is there as often.

    Raises:
        ModelError: Where an operator refers to a subgraph that the model lacks.
    """
    unpacked = unpack(model)
    everywhere = _assigns_variables(model, unpacked)
    found: list[Body] = []

    def visit(index: int, path: str, above: tuple[int, ...], refusal: str | None) -> None:
        for operator, table in zip(model.subgraphs[index].operators, unpacked.subgraphs[index].operators or [], strict=False):
            called = referenced_subgraphs(table)
            name, kinds = _CALLERS.get(operator.name, (operator.name.lower(), ("called",) * len(called)))
            if not called:
                continue
            reachable_subgraphs(unpacked, called)  # refuses indices out of range
            where = f"{path}/{name}:{operator.index}"
            if len(called) != len(kinds):
                raise ModelError(f"the model is broken: {where} calls {len(called)} subgraphs, expected {len(kinds)}")
            for subgraph, kind in zip(called, kinds, strict=True):
                body = Body(f"{where}/{kind}", subgraph, index, operator.index, operator.name, kind, called)
                reason = _refusal(model, unpacked, body, above) or refusal
                found.append(dataclasses.replace(body, refusal=reason))
                if len(found) > _MAX_BODIES or len(above) > _MAX_DEPTH:
                    raise ModelError(
                        f"got a model with more than {_MAX_BODIES} ways through its subgraphs, or calls that are nested more "
                        f"than {_MAX_DEPTH} deep; expected fewer"
                    )
                if subgraph not in above:
                    inner = reason and f"it is called by {body.path}, which is refused: {reason}"
                    visit(subgraph, body.path, (*above, subgraph), refusal or inner)

    visit(0, "main", (0,), everywhere)
    return found


@refuses_broken_models
def counterparts(model: Model, other: Model) -> dict[str, Body]:
    """Returns for each body of a model, by path, the one of another model, such as the float one that it was made from.

    Quantizers insert operators, but keep those that call subgraphs and their order, so they are told by that: the second WHILE
    here is the second WHILE there. Where their numbers differ, nothing that they call has a counterpart.
    """
    theirs = _by_caller(other)
    found: dict[str, Body] = {}
    places = {"main": "main"}
    for (parent, op_name, kind), ours in _by_caller(model).items():
        candidates = theirs.get((places.get(parent, ""), op_name, kind), [])
        if len(candidates) == len(ours):
            for body, candidate in zip(ours, candidates, strict=True):
                found[body.path], places[body.path] = candidate, candidate.path
    return found


def _by_caller(model: Model) -> dict[tuple[str, str, str], list[Body]]:
    grouped: dict[tuple[str, str, str], list[Body]] = {}
    for body in bodies(model):
        grouped.setdefault((body.path.rsplit("/", 2)[0], body.op_name, body.kind), []).append(body)
    return grouped


def body_samples(
    model: Model,
    path: str,
    dataset: Iterable[Sample],
    backend: Backend | None = None,
    max_iterations: int = MAX_ITERATIONS,
    sequence: bool = False,
) -> Iterator[Sample]:
    """Yields what a body receives while the model runs over a dataset, one sample for each of its runs.

    Only the way to this body is run: the main subgraph up to the operator that calls it, and so on inwards; of a loop,
    its condition and its body. Each body of a model costs such a pass of its own. Nothing is held but the present sample.
    The loops on the way are watched for their end; others, before the way or off it, are run by the interpreter, which waits
    for ever for one that does not end.

    Args:
        model: The (quantized) model.
        path: Of one of its `bodies`.
        dataset: Samples for the main subgraph.
        backend: Which code runs the model; one interpreter for each subgraph on the way.
        max_iterations: How often a loop's body may run on one sample.
        sequence: The samples are a sequence: recurrent layers keep their state from one to the next, instead of being reset.

    Yields:
        Samples whose ``inputs`` are those of the body's subgraph. ``index`` counts from 0, and ``label`` says where they
        come from: (sample, iteration of the outermost loop, ..., iteration of the innermost loop).

    Raises:
        OptionError: For an unknown path or a limit below one.
        ModelError: Where this body cannot be measured, with the reason.
        DatasetError: Where the body never runs on this dataset, or a sample is wrong.
        InterpreterError: Where a loop does not end, or the model does not run.
    """
    chain = _chain(model, path)
    if max_iterations < 1:
        raise OptionError(f"got max_iterations={max_iterations}, expected 1 or more")
    read = 0

    def entered() -> Iterator[_Received]:
        nonlocal read
        for sample in dataset:
            read += 1
            yield list(sample.inputs), (sample.index,)

    received: Iterator[_Received] = entered()
    for body in chain:
        received = _follow(model, body, received, backend or Backend(), max_iterations, sequence)
    count = 0
    for inputs, origin in received:
        yield Sample(count, inputs, origin)
        count += 1
    if read and not count:
        raise DatasetError(
            f"{path} never runs on the {read} samples of the {getattr(dataset, 'role', 'dataset')}: a loop's condition is "
            "false at once, or a branch is never taken; expected a sample on which it runs"
        )


def body_dataset(
    model: Model,
    path: str,
    dataset: Dataset,
    backend: Backend | None = None,
    max_iterations: int = MAX_ITERATIONS,
    sequence: bool = False,
) -> Dataset:
    """Returns `body_samples` as a dataset for the model of the body alone, ``select_subgraph(model, body.subgraph)``.

    Its samples are computed anew in each pass, and their number is known after the first.

    Raises:
        OptionError: For an unknown path.
        ModelError: Where this body cannot be measured, with the reason.
    """
    body = _chain(model, path)[-1]
    source = _BodySource(model, path, dataset, backend, max_iterations, sequence)
    inputs = Model(select_subgraph(model, body.subgraph)).input_specs()
    return Dataset(source, inputs, f"{dataset.role} in {path}")


class _BodySource(Source):
    """The samples of a body."""

    def __init__(
        self, model: Model, path: str, dataset: Dataset, backend: Backend | None, max_iterations: int, sequence: bool
    ) -> None:
        self._arguments = (model, path, dataset, backend, max_iterations, sequence)
        self.description = f"what {path} receives on {dataset.description}"

    def read(self, inputs: Sequence[Any]) -> Iterator[Sample]:
        return body_samples(*self._arguments)


def _chain(model: Model, path: str) -> list[Body]:
    """Returns the bodies on the way to one, itself the last."""
    by_path = {body.path: body for body in bodies(model)}
    if path not in by_path:
        known = ", ".join(by_path) or "none"
        raise OptionError(f"got body {path!r}, expected one of the model's: {known}.{did_you_mean(path, by_path)}")
    if by_path[path].refusal:
        raise ModelError(f"{path} cannot be measured: {by_path[path].refusal}")
    return [body for name, body in by_path.items() if path == name or path.startswith(name + "/")]


def _refusal(model: Model, unpacked: Any, body: Body, above: Sequence[int]) -> str | None:
    if body.kind == "init":
        return "it runs once, to initialise variables, and receives no data"
    if body.op_name not in _CALLERS:
        return f"how {body.op_name} calls it is not followed"
    if body.subgraph in above:
        return "it calls itself"
    for index in reachable_subgraphs(unpacked, body.called):
        for tensor in model.subgraphs[index].tensors:
            if tensor.is_variable:
                return f"it keeps a state between its runs (variable {tensor.name!r})"
            if tensor.dtype == object:
                return f"it shares variables with other subgraphs, or handles no numbers (tensor {tensor.name!r})"
    return None


def _assigns_variables(model: Model, unpacked: Any) -> str | None:
    """Refuses all bodies of a model that changes shared variables: where it stops before the end, they have other values."""
    initialising: set[int] = set()
    for subgraph, tables in zip(model.subgraphs, unpacked.subgraphs, strict=True):
        for operator, table in zip(subgraph.operators, tables.operators or [], strict=False):
            if operator.name == "CALL_ONCE":
                initialising.update(referenced_subgraphs(table))
    for index in reachable_subgraphs(unpacked, [0]):
        names = {operator.name for operator in model.subgraphs[index].operators}
        if index not in initialising and "ASSIGN_VARIABLE" in names:
            return "the model changes variables (ASSIGN_VARIABLE), which carry over from sample to sample"
    return None


def _follow(
    model: Model, body: Body, entered: Iterator[_Received], backend: Backend, max_iterations: int, sequence: bool
) -> Iterator[_Received]:
    """Turns what the calling subgraph receives into what the body receives."""
    caller = _Caller(model, body, backend, sequence)
    loop = _Loop(model, body, backend, max_iterations) if body.op_name == "WHILE" else None
    for inputs, origin in entered:
        values = caller.values(inputs)
        if loop is not None:
            yield from loop.states(values, origin)
        elif body.op_name != "IF":
            yield values, origin
        elif bool(values[0].reshape(())) == (body.kind == "then"):
            yield values[1:], origin


class _Caller:
    """Runs the calling subgraph up to the calling operator."""

    def __init__(self, model: Model, body: Body, backend: Backend, sequence: bool) -> None:
        self._model, self._subgraph = model, model.subgraphs[body.parent]
        self._wanted = self._subgraph.operators[body.operator].inputs
        if min(self._wanted, default=0) < 0:
            raise ModelError(f"{body.path} cannot be measured: an input of {body.op_name} is absent")
        before = self._subgraph.operators[: body.operator]
        self._computed = {output for operator in before for output in operator.outputs}.intersection(self._wanted)
        self._interpreter = None
        if self._computed:
            self._interpreter = backend.open(select_prefix(model, body.parent, body.operator))
        self._resets = not sequence and any(tensor.is_variable for tensor in self._subgraph.tensors)

    def values(self, inputs: _Values) -> _Values:
        """Returns what the operator reads where the subgraph receives ``inputs``."""
        if self._interpreter is not None:
            if self._resets:
                self._interpreter.reset_variables()
            self._interpreter.invoke(inputs)
        return [self._value(index, inputs) for index in self._wanted]

    def _value(self, index: int, inputs: _Values) -> np.ndarray:
        tensor = self._subgraph.tensors[index]
        if index in self._computed and self._interpreter is not None:
            return self._interpreter.read(index)
        if index in self._subgraph.inputs:
            given = inputs[self._subgraph.inputs.index(index)]
            parameters = tensor.quantization
            return given if given.dtype == tensor.dtype or parameters is None else parameters.quantize(given, tensor.dtype)
        return self._model.constant(tensor)


class _Loop:
    """Does what WHILE does."""

    def __init__(self, model: Model, body: Body, backend: Backend, max_iterations: int) -> None:
        self._path, self._kind, self._limit = body.path, body.kind, max_iterations
        self._cond, self._body = (backend.open(select_subgraph(model, index)) for index in body.called)

    def states(self, state: _Values, origin: tuple[int, ...]) -> Iterator[_Received]:
        """Yields the state at each run of the condition, or of the body, whichever is followed."""
        for iteration in itertools.count():
            if self._kind == "cond":
                yield state, (*origin, iteration)
            self._cond.invoke(state)
            if not bool(self._cond.read_outputs()[0].reshape(())):
                return
            if iteration == self._limit:
                raise InterpreterError(
                    f"{self._path}: the loop goes on after {self._limit} iterations on sample {origin[0]}, expected that its "
                    "condition becomes false; quantization may have changed the condition. If so many are right, raise "
                    "max_iterations"
                )
            if self._kind == "body":
                yield state, (*origin, iteration)
            self._body.invoke(state)
            state = self._body.read_outputs()
