"""Cuts: some operators of a model as a model of their own, with their constants and the subgraphs that they call."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.edit.exploded import (
    computed_tensors,
    derived_tensors,
    give_shape,
    has_open_inputs,
    is_builtin,
    joined_operators,
)
from tflite_qdebug.edit.flatbuffer import drop_unused_tensors, pack, unpack
from tflite_qdebug.edit.subgraphs import make_main, reachable_subgraphs, referenced_subgraphs, selected_signature
from tflite_qdebug.errors import ModelError, OptionError, completed, did_you_mean
from tflite_qdebug.model import Model, Operator, Subgraph, refuses_broken_models
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size

__all__ = ["Cut", "Cuts", "extract", "extract_operator"]

# What a reader of a cut still wants to know of the model it came from; the rest speaks of inputs and outputs that are gone.
_METADATA = (b"min_runtime_version", b"CONVERSION_METADATA")

Reference = str | int


@dataclasses.dataclass(frozen=True)
class Cut(Shown):
    """Operators of a model as a model of their own.

    Attributes:
        name: ``operator_007_CONV_2D`` or ``operators_003_009``, by the positions of the operators; fit for a file.
        data: The flatbuffer. Tensors keep their names, not their numbers.
        operators: Positions of the operators in the model, in execution order, with those that compute their shapes.
        op_names: Types of these operators.
        inputs: Tensors of the model that are inputs, by index, in input order.
        outputs: Tensors of the model that are outputs, by index, in output order.
        input_names: What the cut's inputs are called.
        output_names: What its outputs are called.
        further_inputs: Those of the inputs that were not asked for, but that the operators read too.
        notes: What a reader must know, such as state that is shared with operators outside.
    """

    name: str
    data: bytes
    operators: tuple[int, ...]
    op_names: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    further_inputs: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Cut({self.name!r}, {len(self.operators)} operators, {byte_size(len(self.data))})"


def extract(
    model: Any,
    from_tensors: Iterable[Reference] | None = None,
    to_tensors: Iterable[Reference] | None = None,
    *,
    signature: str | None = None,
    shapes: Mapping[int, Sequence[int]] | None = None,
) -> Cut:
    """Returns the operators between some tensors and others as a model of their own.

    It computes ``to_tensors`` from ``from_tensors`` by every operator that lies on a way from the ones to the others. What
    these operators read besides becomes an input too (`Cut.further_inputs`): a branch that goes around ``from_tensors``, say.
    Composite operators, loops and branches bring their subgraphs along, recurrent layers their variables.

    Args:
        model: Path, bytes or something with ``data``.
        from_tensors: Names or indices; None: the model's inputs.
        to_tensors: The same; None: the model's outputs.
        signature: Cut this signature's subgraph; None: the main one.
        shapes: Shapes of tensors as a sample has them, by index, where the file leaves them open.

    Raises:
        OptionError: For an unknown or ambiguous name, a constant, or tensors between which there is nothing.
        ModelError: For a broken model, or one whose tensors cannot be fed, such as resources.
    """
    return Cuts(_opened(model, signature), shapes).between(from_tensors, to_tensors)


def extract_operator(
    model: Any,
    operator: Reference,
    *,
    signature: str | None = None,
    shapes: Mapping[int, Sequence[int]] | None = None,
) -> Cut:
    """Returns one operator as a model of its own.

    Args:
        model: As for `extract`.
        operator: Its node, which is the name of its output; its position; or its type where the model has one of it alone.
        signature: As for `extract`.
        shapes: As for `extract`.

    Raises:
        OptionError: Where there is no such operator, or several.
        ModelError: As for `extract`.
    """
    return Cuts(_opened(model, signature), shapes).operator(operator)


def _opened(model: Any, signature: str | None) -> Model:
    whole = model if isinstance(model, Model) else Model(getattr(model, "data", model))
    return whole if signature is None else selected_signature(whole, signature)


class Cuts:
    """Makes cuts of the main subgraph of one model."""

    @refuses_broken_models
    def __init__(self, model: Model, shapes: Mapping[int, Sequence[int]] | None = None) -> None:
        """Reads what all cuts need.

        Args:
            model: The model.
            shapes: As for `extract`.
        """
        self.model, self.graph, self.shapes = model, model.main, shapes or {}
        self._derived = derived_tensors(self.graph)
        self._joined = joined_operators(self.graph)
        self._dynamic = has_open_inputs(self.graph)
        self._unpacked = unpacked = unpack(model)
        self._called = [reachable_subgraphs(unpacked, referenced_subgraphs(table)) for table in unpacked.subgraphs[0].operators]
        # Of each operator the results that can be read and depend on the sample.
        self.computed: dict[int, list[int]] = {}
        for operator, index in computed_tensors(self.graph):
            self.computed.setdefault(operator.index, []).append(index)

    @refuses_broken_models
    def between(self, from_tensors: Iterable[Reference] | None, to_tensors: Iterable[Reference] | None) -> Cut:
        """Returns the cut between tensors, as `extract` does."""
        graph = self.graph
        starts = None if from_tensors is None else self._tensors(from_tensors, "from")
        ends = list(dict.fromkeys(graph.outputs)) if to_tensors is None else self._tensors(to_tensors, "to")
        self._check_ends(starts, ends)
        before = self._before(ends, starts or ())
        if starts is None:
            wanted, boundary = before, list(graph.inputs)
        else:
            behind = self._behind(starts)
            unreached = [index for index in ends if graph.producers[index].index not in before & behind]
            if unreached:
                raise OptionError(
                    f"no way leads from {self._listed(starts)} to {self._listed(unreached)}: expected tensors of which the "
                    "second are computed from the first; are they the wrong way round?"
                )
            wanted, boundary = before & behind, starts
        cut = self._cut(wanted, ends, boundary)
        idle = [index for index in starts or () if index not in cut.inputs]
        if idle:
            raise OptionError(
                "got a tensor to cut from that is not needed: "
                f"nothing between {self._listed(starts or ())} and {self._listed(ends)} reads {self._listed(idle)}"
            )
        return cut

    @refuses_broken_models
    def operator(self, reference: Reference) -> Cut:
        """Returns the cut of one operator, as `extract_operator` does."""
        operator = self._operator(reference)
        outputs = [index for index in operator.outputs if index >= 0 and self.graph.tensors[index].dtype != object]
        if not outputs:
            raise ModelError(
                f"operator {operator.index} ({operator.name}) has no result that could be read: it gives nothing, resources or "
                "strings; expected an operator that computes numbers"
            )
        return self._cut({operator.index}, outputs, None)

    @refuses_broken_models
    def span(self, operators: Collection[int], ends: Collection[int] = ()) -> Cut:
        """Returns the cut of some operators.

        Args:
            operators: Their positions.
            ends: Tensors to be outputs besides those that other operators read, or that the model gives.
        """
        read = {index for op in self.graph.operators if op.index not in operators for index in op.inputs}
        shown = {*read, *ends, *self.graph.outputs}
        computed = [index for position in sorted(operators) for index in self.computed.get(position, [])]
        outputs = [index for index in computed if index in shown] or computed
        return self._cut(set(operators), outputs, None)

    def every(self) -> list[Cut]:
        """Returns a cut of each operator whose results can be read and depend on the sample.

        Raises:
            ModelError: Where there is none.
        """
        if not self.computed:
            raise ModelError("the model has no operator to cut out: all computes from constants alone")
        return [self.operator(position) for position in self.computed]

    @refuses_broken_models
    def until(self, tensors: Iterable[int]) -> bytes:
        """Returns the model with nothing but what tensors are computed by, and these as outputs; all keep their numbers."""
        outputs = [index for index in tensors if index in self.graph.producers]
        needed = self._with_needed(self._before(outputs, ()), ())
        unpacked = _copied(self._unpacked)
        main = unpacked.subgraphs[0]
        main.operators = [main.operators[position] for position in sorted(needed)]
        main.outputs = np.array(outputs, dtype=np.int32)
        unpacked.signatureDefs = []
        make_main(unpacked, 0)
        return pack(unpacked)

    def custom_operators(self, cut: Cut) -> list[str]:
        """Returns the custom operators that a cut's outputs are computed by, in it or before it."""
        before = [self.graph.operators[position] for position in sorted(self._before(cut.outputs, ()))]
        return list(dict.fromkeys(operator.name for operator in before if not is_builtin(operator)))

    def again(self, cut: Cut) -> Cut:
        """Returns a cut made once more, with the shapes that are known here."""
        asked = [index for index in cut.inputs if index not in cut.further_inputs]
        return dataclasses.replace(self._cut(set(cut.operators), cut.outputs, asked), name=cut.name)

    def _tensors(self, references: Iterable[Reference], side: str) -> list[int]:
        if isinstance(references, (str, int)):
            references = [references]
        names = {tensor.name for tensor in self.graph.tensors}
        single: list[Reference] = []
        for reference in references:  # commas part names, unless they are part of one
            joined = isinstance(reference, str) and reference not in names and "…" not in reference
            single += reference.split(",") if isinstance(reference, str) and joined else [reference]
        found = list(dict.fromkeys(self._tensor(reference, side) for reference in single))
        if not found:
            raise OptionError(f"got no tensor to cut {side}, expected one or more names")
        return found

    def _tensor(self, reference: Reference, side: str) -> int:
        graph = self.graph
        if not isinstance(reference, str):
            index = int(reference)
            if not 0 <= index < len(graph.tensors):
                raise OptionError(f"got tensor {index} to cut {side}, expected a number from 0 to {len(graph.tensors) - 1}")
        else:
            index = self._named(reference, side)
        tensor = graph.tensors[index]
        if tensor.is_constant or (index not in graph.producers and index not in graph.inputs):
            what = "a constant" if tensor.is_constant else "a variable, or read and written by nothing"
            raise OptionError(f"tensor {tensor.name!r} ({index}) is {what}: expected one that is computed, or an input")
        if tensor.dtype == object:
            raise ModelError(
                f"tensor {tensor.name!r} ({index}) holds resources, variants or strings, which can be neither fed nor "
                "compared: cut elsewhere"
            )
        return index

    def _named(self, name: str, side: str) -> int:
        graph = self.graph
        places: dict[str, list[int]] = {}
        for tensor in graph.tensors:
            if tensor.index in graph.producers or tensor.index in graph.inputs or tensor.is_constant:
                places.setdefault(tensor.name, []).append(tensor.index)
        found = places.get(completed(name, places, "tensor"), [])
        found = [index for index in found if not graph.tensors[index].is_constant] or found
        if not found and name.isdecimal():
            return self._tensor(int(name), side)
        if not found:
            raise OptionError(
                f"got {name!r} to cut {side}, expected the name of a tensor of the model, or its number."
                f"{did_you_mean(name, [known for known in places if known])}"
            )
        if len(found) > 1:
            numbers = ", ".join(map(str, found))
            raise OptionError(f"got {name!r} to cut {side}, which {len(found)} tensors are called: give a number of {numbers}")
        return found[0]

    def _operator(self, reference: Reference) -> Operator:
        operators = self.graph.operators
        if not isinstance(reference, str) or (reference.isdecimal() and reference not in self.graph.nodes):
            position = int(reference)
            if not 0 <= position < len(operators):
                raise OptionError(f"got operator {position}, expected a position from 0 to {len(operators) - 1}")
            return operators[position]
        nodes = self.graph.nodes
        found = nodes.get(completed(reference, nodes, "node"), [])
        found = found or [operator for operator in operators if operator.name == reference]
        found = list({operator.index: operator for operator in found}.values())
        if not found:
            known = [*nodes, *(operator.name for operator in operators)]
            raise OptionError(f"got operator {reference!r}, expected a node of the model.{did_you_mean(reference, known)}")
        if len(found) > 1:
            listed = ", ".join(str(operator.index) for operator in found)
            raise OptionError(f"got operator {reference!r}, which {len(found)} operators are: give one's position of {listed}")
        return found[0]

    def _check_ends(self, starts: Collection[int] | None, ends: Collection[int]) -> None:
        graph = self.graph
        both = [index for index in ends if index in (starts or ())]
        if both:
            raise OptionError(f"got {self._listed(both)} on both sides of the cut: nothing lies between")
        given = [index for index in ends if index not in graph.producers]
        if given:
            raise OptionError(f"got {self._listed(given)} to cut to, which no operator computes: expected an operator's output")

    def _before(self, ends: Iterable[int], stops: Collection[int]) -> set[int]:
        """Returns the operators that tensors are computed by, back to the stops."""
        found: set[int] = set()
        waiting = list(ends)
        while waiting:
            producer = self.graph.producers.get(waiting.pop())
            if producer is not None and producer.index not in found:
                found.add(producer.index)
                waiting += [index for index in producer.inputs if index not in stops]
        return found

    def _behind(self, starts: Iterable[int]) -> set[int]:
        """Returns the operators whose results depend on tensors."""
        reached, found = set(starts), set()
        for operator in self.graph.operators:
            if reached.intersection(operator.inputs):
                found.add(operator.index)
                reached.update(operator.outputs)
        return found

    def _listed(self, indices: Iterable[int]) -> str:
        return ", ".join(repr(self.graph.tensors[index].name or index) for index in indices)

    def _cut(self, wanted: Collection[int], outputs: Sequence[int], asked: Sequence[int] | None) -> Cut:
        """Returns the cut of some operators.

        Args:
            wanted: Their positions.
            outputs: Tensors that they compute.
            asked: Inputs that were asked for; None: whatever the operators read.
        """
        graph, asked_for = self.graph, list(asked or ())
        kept = self._with_needed(wanted, asked_for)
        inputs = self._inputs(kept, asked_for)
        names = _unlike([graph.tensors[index].name for index in (*inputs, *outputs)])
        content = self._written(kept, inputs, outputs, names)
        operators = tuple(sorted(kept))
        main = sorted(wanted)
        name = f"operators_{main[0]:03d}_{main[-1]:03d}"
        if len(main) == 1:
            name = f"operator_{main[0]:03d}_{re.sub(r'[^A-Za-z0-9_]', '_', graph.operators[main[0]].name)}"
        return Cut(
            name=name,
            data=content,
            operators=operators,
            op_names=tuple(graph.operators[position].name for position in operators),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            input_names=tuple(names[: len(inputs)]),
            output_names=tuple(names[len(inputs) :]),
            further_inputs=() if asked is None else tuple(index for index in inputs if index not in asked_for),
            notes=tuple(self._notes(kept)),
        )

    def _with_needed(self, wanted: Iterable[int], stops: Collection[int]) -> set[int]:
        """Returns positions of operators, and of those that give them what cannot be fed: shapes, constants, resources."""
        graph, kept = self.graph, set()
        waiting = list(wanted)
        while waiting:
            position = waiting.pop()
            if position in kept:
                continue
            kept.add(position)
            for index in graph.operators[position].inputs:
                producer = graph.producers.get(index)
                if producer is not None and index not in stops and self._stays(index):
                    waiting.append(producer.index)
            if self._has_resources(position):
                waiting += self._preparing(position)
        return kept

    def _stays(self, index: int) -> bool:
        """True for tensors that are not to be fed: resources cannot be, and kernels want shapes to be constant."""
        return index in self._derived or self.graph.tensors[index].dtype == object

    def _has_resources(self, position: int) -> bool:
        """True for an operator that reads or writes a resource, itself or in a subgraph that it calls."""
        tables: list[tuple[Subgraph, Sequence[Operator]]] = [(self.graph, [self.graph.operators[position]])]
        tables += [(self.model.subgraphs[called], self.model.subgraphs[called].operators) for called in self._called[position]]
        return any(
            graph.tensors[index].dtype == object
            for graph, operators in tables
            for operator in operators
            for index in (*operator.inputs, *operator.outputs)
            if index >= 0
        )

    def _preparing(self, position: int) -> list[int]:
        """Returns the operators that give nothing but fill resources before an operator reads them."""
        return [
            operator.index
            for operator in self.graph.operators[:position]
            if not operator.outputs and (operator.name == "CALL_ONCE" or self._has_resources(operator.index))
        ]

    def _inputs(self, kept: Collection[int], asked: Sequence[int]) -> list[int]:
        """Returns the tensors that must be fed: those that were asked for first, then the model's inputs, then others."""
        graph = self.graph
        computed = {index for position in kept for index in graph.operators[position].outputs} - set(asked)
        read = dict.fromkeys(index for position in sorted(kept) for index in graph.operators[position].inputs if index >= 0)
        fed = [index for index in read if index not in computed and (index in graph.producers or index in graph.inputs)]
        fed = [index for index in fed if not graph.tensors[index].is_constant]
        ordered = [*(index for index in asked if index in fed), *(index for index in graph.inputs if index in fed), *fed]
        return list(dict.fromkeys(ordered))

    def _written(self, kept: Collection[int], inputs: Sequence[int], outputs: Sequence[int], names: Sequence[str]) -> bytes:
        """Returns the flatbuffer of some operators."""
        unpacked = _copied(self._unpacked)
        main = unpacked.subgraphs[0]
        main.operators = [main.operators[position] for position in sorted(kept)]
        self._disconnect(main, set(inputs))
        main.inputs, main.outputs = np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)
        for index, name in zip((*inputs, *outputs), names, strict=True):
            main.tensors[index].name = name.encode()
        for index in inputs:
            if index in self.shapes and index not in self.graph.inputs:
                give_shape(main.tensors[index], self.graph.tensors[index], tuple(self.shapes[index]), self._dynamic)
        unpacked.signatureDefs = []  # they speak of other inputs and outputs
        unpacked.metadata = [entry for entry in unpacked.metadata or [] if entry.name in _METADATA]
        unpacked.description = f"operators {', '.join(map(str, sorted(kept)))} of a model".encode()
        make_main(unpacked, 0)
        drop_unused_tensors(unpacked)
        return pack(unpacked)

    def _disconnect(self, main: Any, inputs: Collection[int]) -> None:
        """Lets operators that compute an input too, beside what is wanted of them, write it where nobody reads it."""
        for table in main.operators:
            for place, index in enumerate(table.outputs):
                if index in inputs:
                    spare = copy.copy(main.tensors[index])
                    spare.name = (spare.name or b"") + b"/unused"
                    main.tensors.append(spare)
                    table.outputs = np.array(table.outputs, dtype=np.int32)
                    table.outputs[place] = len(main.tensors) - 1

    def _notes(self, kept: Collection[int]) -> list[str]:
        shared = sorted(position for position, reason in self._joined.items() if "state" in reason)
        outside = [position for position in shared if position not in kept]
        if outside and any(position in kept for position in shared):
            listed = ", ".join(f"{self.graph.operators[position].name} {position}" for position in outside)
            return [f"shares its state with operators that are not in the cut: {listed}"]
        return []


def _copied(unpacked: Any) -> Any:
    """Returns a copy of an unpacked model whose tables can be changed; what these hold is shared, constants above all."""
    made = copy.copy(unpacked)
    made.buffers = [copy.copy(buffer) for buffer in unpacked.buffers]
    made.operatorCodes = list(unpacked.operatorCodes)
    made.metadata = [copy.copy(entry) for entry in unpacked.metadata or []]
    made.subgraphs = [copy.copy(subgraph) for subgraph in unpacked.subgraphs]
    for subgraph in made.subgraphs:
        subgraph.tensors = [copy.copy(tensor) for tensor in subgraph.tensors]
        subgraph.operators = [copy.copy(operator) for operator in subgraph.operators]
    return made


def _unlike(names: Sequence[str]) -> list[str]:
    """Returns names of which no two are the same: with numbers behind those that are taken, and for empty ones others."""
    found: list[str] = []
    for name in names:
        candidate, number = name or "tensor", 2
        while candidate in found:
            candidate, number = f"{name or 'tensor'}_{number}", number + 1
        found.append(candidate)
    return found
