"""A debug model out of a quantized model and the float model it came from, whoever made the two.

Each operator of the quantized model gets a *float twin*: the operators of the float model between the same values, on the
dequantized inputs of its counterpart. What the float model has no counterpart of is held against its own dequantized form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.edit.debug_model import BRIDGES, NUMERIC_VERIFY, PARTS, DebugModel, tensors_of
from tflite_qdebug.edit.dequantized import dequantize_model, implied_activations, refuse_compiled
from tflite_qdebug.edit.flatbuffer import append_outputs, pack, unpack
from tflite_qdebug.edit.regions import Regions, with_weights
from tflite_qdebug.edit.twins import SHARED_STATE, Source, TwinWriter
from tflite_qdebug.errors import ModelError
from tflite_qdebug.match import AGREES, Graph, Match, match_models
from tflite_qdebug.model import Model, Operator, Tensor, refuses_broken_models
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.record import Layer

__all__ = ["debug_pair"]

FLOAT_MODEL, DEQUANTIZED = "float model", "dequantized weights"
# Below this cosine two weights are not a rounding apart, nor a fine-tuning.
_STRANGE = 0.5


@refuses_broken_models
def debug_pair(
    float_model: Model | None,
    quantized_model: Model,
    whole_model: bool = False,
    parts: bool = False,
    match: Match | None = None,
) -> DebugModel:
    """Builds a debug model out of a quantized model and the float model that it was made from.

    Args:
        float_model: None where there is none: the twins are made from the dequantized weights, and the error of the weights
            cannot be seen.
        quantized_model: Of any kind: int8, uint8, 16x8, dynamic range, float16, or mixed with float operators.
        whole_model: Compare with float twins that read one another throughout (the accumulated error), instead of the
            dequantized inputs of their counterparts (the error that each operator adds).
        parts: Also compare what `DebugModel.parts` and `DebugModel.whole` list; takes five float copies of the model instead of
            one.
        match: What belongs to what, where that is known; else it is found.

    Raises:
        ModelError: Where nothing is quantized, the two cannot belong together, or the quantized model was compiled for an
            Edge TPU.
    """
    return _PairBuilder(float_model, quantized_model, whole_model, parts, match).build()


@dataclasses.dataclass
class _Row:
    """A quantized tensor, who computes it, and its place in the float model."""

    tensor: Tensor
    operator: Operator
    operators: list[Operator]
    feeds: dict[int, int]
    own: int | None = None


class _PairBuilder:
    """Copies float operators into a quantized model, one layer after another."""

    def __init__(
        self, float_model: Model | None, quantized_model: Model, whole_model: bool, parts: bool, match: Match | None
    ) -> None:
        self._graph, self._whole, self._wants_parts = Graph(quantized_model), whole_model, parts
        self._regions = Regions(self._graph)
        refuse_compiled(quantized_model)
        self._match = None
        if float_model is not None:
            self._match = match or match_models(float_model, quantized_model)
            self._reference = Source(FLOAT_MODEL, Graph(float_model), unpack(float_model), self._match.values)
        own = Graph(Model(dequantize_model(quantized_model, self._activations())))
        everything = {root: root for root in [*own.subgraph.inputs, *own.subgraph.producers]}
        self._dequantized = Source(DEQUANTIZED, own, unpack(own.model), everything)
        if float_model is None:
            self._reference = self._dequantized
        self._twins = TwinWriter(self._graph, self._dequantized)
        self._own_outputs = len(self._graph.subgraph.outputs)
        self._layers: list[Layer] = []
        self._parts: dict[str, list[Layer | None]] = {name: [] for name in PARTS}
        self._unverified: dict[str, list[str]] = {}

    def _activations(self) -> dict[int, int]:
        """Returns the activation functions that quantized operators lack: of their counterparts, else of their ranges."""
        found = implied_activations(self._graph.model)
        fused = self._graph.activation_functions
        for pair in self._match.operators if self._match else ():
            theirs = self._reference.graph.activation_functions[pair.float_operator]
            if theirs and not fused[pair.quantized_operator]:
                found[pair.quantized_operator] = theirs
        self._implied = len(found)
        return found

    def _open_inputs(self) -> tuple[InputSpec, ...]:
        """Makes inputs of integers float, with a QUANTIZE behind each, so that their rounding can be seen."""
        specs = []
        main = self._twins.writer.main
        inputs = [int(index) for index in main.inputs]
        for position, spec in enumerate(self._graph.model.input_specs()):
            index = inputs[position]
            tensor = self._graph.tensor(index)
            source = self._source_input(index)
            if tensor.is_quantized and (source is None or source.is_float):
                self._twins.open_input(index)
                spec = InputSpec(spec.name, spec.shape, (np.dtype(np.float32), tensor.dtype), spec.key)
            elif source is not None and source.dtype != tensor.dtype:
                raise ModelError(
                    f"input {tensor.name!r} is {tensor.dtype} in the quantized model and {source.dtype} in the float model; "
                    "expected the same, or float32 and integers with a scale"
                )
            else:
                self._twins.inputs[index] = index
            inputs[position] = self._twins.inputs[index]
            specs.append(spec)
        main.inputs = np.array(inputs, dtype=np.int32)
        return tuple(specs)

    def _source_input(self, index: int) -> Tensor | None:
        place = self._reference.at.get(index)
        return None if place is None else self._reference.graph.tensor(place)

    def build(self) -> DebugModel:
        specs = self._open_inputs()
        for operator in self._twins.prepended:
            quantized = self._graph.tensor(int(operator.outputs[0]))
            self._add_quantize(quantized, int(operator.inputs[0]), -1, quantized.name)
        for operator in self._graph.subgraph.operators:
            if operator.name in BRIDGES:
                self._add_bridge(operator)
            elif self._regions.is_quantized(operator) or (self._whole and self._graph.computes(operator)):
                for output in operator.outputs:
                    if self._graph.is_numeric(output):
                        self._add_row(operator, output)
        if not self._layers or not any(map(self._regions.is_quantized, self._graph.operators)):
            raise ModelError(
                "Please check if the quantized model is in debug mode: no operator of the quantized model computes anything "
                "differently from its counterpart in the float model, so there is nothing to compare"
            )
        return self._finish(specs)

    def _add_bridge(self, operator: Operator) -> None:
        """Makes a layer of a QUANTIZE that takes float values: it rounds and clips like any other."""
        source, target = self._graph.tensor(operator.inputs[0]), self._graph.tensor(operator.outputs[0])
        if operator.name == "QUANTIZE" and source.is_float and not source.is_constant and target.is_quantized:
            self._add_quantize(target, source.index, operator.index, source.name)

    def _add_quantize(self, quantized: Tensor, source: int, operator: int, node: str) -> None:
        reference: int | None = source
        place = (
            self._reference.at.get(self._graph.root(quantized.index)) if source < len(self._graph.subgraph.tensors) else None
        )
        chain = None if place is None else self._twins.chain(self._reference, place)
        if operator < 0:
            chain = source
        if self._whole:
            reference = chain
        if reference is None:
            return
        evidence = "" if self._reference is self._dequantized else "structure"
        self._append(quantized, "QUANTIZE", operator, node, reference, self._reference.name, evidence)
        if self._wants_parts:
            self._add_parts(
                weights=None,
                output=(quantized.index, source),
                input=None if chain in (None, source) else (source, chain),
                accumulated=None if chain is None else (quantized.index, chain),
                own=None if chain is None else (self._twins.as_integers(chain, quantized.index), chain),
            )

    def _add_parts(self, **pairs: tuple[int | None, int | None] | None) -> None:
        """Adds what the last layer's error is made of: ``(tensor with the error, tensor without)``, or None."""
        layer = self._layers[-1]
        for name, pair in pairs.items():
            if pair is None or pair[0] is None or pair[1] is None:
                self._parts[name].append(None)
            elif name == "own":
                self._parts[name].append(dataclasses.replace(layer, tensor_idx=pair[0], float_idx=pair[1]))
            else:
                self._parts[name].append(_between(layer, pair[0], pair[1]))

    def _add_row(self, operator: Operator, output: int) -> None:
        row = self._row(operator, output)
        source, place = (self._reference, row.own) if row.own is not None else (self._dequantized, output)
        assert place is not None
        twin, note = self._twin(source, place, row)
        if twin is None and source is not self._dequantized:
            source, place = self._dequantized, output
            twin, note = self._twin(source, place, row)
        chain = self._twins.chain(source, place) if self._whole or self._wants_parts else None
        reference = chain if self._whole else twin
        if reference is None:
            self._unverified.setdefault(note or "its inputs are not known in float", []).append(
                self._name(row.tensor, operator)
            )
            return
        node = source.graph.tensor(place).name
        self._append(row.tensor, operator.name, operator.index, node, reference, source.name, self._evidence(operator))
        if self._wants_parts:
            self._append_parts(row, source, twin, chain)

    def _append_parts(self, row: _Row, source: Source, twin: int | None, chain: int | None) -> None:
        quantized = row.tensor.index
        weighted = source is not self._dequantized and any(self._regions.reads_reduced_constant(op) for op in row.operators)
        changed = self._twin(self._dequantized, quantized, row)[0] if weighted else twin
        self._add_parts(
            weights=(changed, twin) if weighted else None,
            output=(quantized, changed),
            input=(twin, chain),
            accumulated=(quantized, chain),
            own=self._on_sound_inputs(row, source, source.at.get(quantized)),
        )

    def _on_sound_inputs(self, row: _Row, source: Source, place: int | None) -> tuple[int | None, int | None] | None:
        """Returns what quantized operators and twin give for the float model's own values; None where these are not known."""
        if place is None:
            return None
        operators, met = source.region(place, source.values)
        chains = {root: self._twins.chain(source, root) for root in met}
        roots = {source.at[root] for root in row.feeds if root in source.at}
        if None in chains.values() or len(roots) < len(row.feeds) or not roots <= chains.keys():
            return None
        entries = {root: row.feeds.get(source.values[root], self._regions.default_entry(source.values[root])) for root in met}
        feeds = {root: self._twins.rounded(chain, entries[root]) for root, chain in chains.items() if chain is not None}
        twin = self._twins.compute(source, operators, feeds, place)
        chosen = {entries[root]: chains[root] for root in roots}
        return self._twins.again(row.tensor.index, chosen), twin  # type: ignore[arg-type]

    def _row(self, operator: Operator, output: int) -> _Row:
        own = self._reference.at.get(output)
        operators = [operator] if own is None else self._regions.operators(output, self._reference.at.keys())
        feeds = self._regions.feeds(operators)
        return _Row(self._graph.tensor(output), operator, operators, feeds, own)

    def _twin(self, source: Source, place: int, row: _Row) -> tuple[int | None, str]:
        """Copies what computes a value out of the values before it; returns its tensor, or None and why not."""
        if source is self._dequantized:
            by_output = {output for operator in row.operators for output in operator.outputs}
            operators = [op for op in source.graph.operators if by_output.intersection(op.outputs)]
            custom = [op.name for op in operators if op.name not in self._twins.writer.builtin]
            if custom:
                return None, f"custom operators ({', '.join(custom)}) have no float twin unless the float model gives it"
            met = [root for op in operators for root in source.graph.activations(op).values() if root not in by_output]
        else:
            operators, met = source.region(place, source.values)
        feeds = {}
        for root in met:
            other = source.values.get(root)
            if other is None:
                return None, "its inputs are not known in float"
            feeds[root] = self._twins.as_float(row.feeds.get(other, self._regions.default_entry(other)))
        shared = [op.name for op in operators if op.name in SHARED_STATE]
        if shared:
            return None, f"it reads variables that the whole model shares ({', '.join(shared)})"
        return self._twins.compute(source, operators, feeds, place), ""

    def _evidence(self, operator: Operator) -> str:
        if self._match is None:
            return ""
        for pair in self._match.operators:
            if pair.quantized_operator == operator.index:
                return "+".join(pair.evidence) or "type"
        return ""

    def _name(self, tensor: Tensor, operator: Operator) -> str:
        return f"{operator.name} {tensor.name!r}"

    def _append(
        self, quantized: Tensor, op_name: str, operator: int, node: str, reference: int, source: str, evidence: str
    ) -> None:
        self._layers.append(_layer(node, op_name, operator, quantized, reference, source, evidence))

    def _finish(self, specs: tuple[InputSpec, ...]) -> DebugModel:
        layers = tuple(self._layers)
        main = self._twins.writer.main
        parts = {name: tuple(rows) for name, rows in self._parts.items()} if self._wants_parts else {}
        whole = self._whole_model() if self._wants_parts else {}
        main.operators = [*self._twins.prepended, *main.operators, *self._twins.appended]
        compared = tensors_of(layer for rows in [*parts.values(), *whole.values()] for layer in rows if layer is not None)
        inputs = set(main.inputs)
        # An input keeps its value by itself, and the runtimes take no tensor for both.
        append_outputs(self._twins.unpacked, [index for index in [*tensors_of(layers), *compared] if index not in inputs])
        models = [self._graph.model, self._reference.graph.model]
        return DebugModel(
            pack(self._twins.unpacked),
            layers,
            self._own_outputs,
            any(tensor.is_variable for model in models for tensor in model.main.tensors),
            "whole_model" if self._whole else "per_layer",
            self._all_notes(),
            specs,
            self._input_scales(),
            parts,
            whole,
        )

    def _input_scales(self) -> tuple[QuantizationParameters | None, ...]:
        inputs = self._graph.subgraph.inputs
        return tuple(self._graph.tensor(i).quantization if self._twins.inputs[i] != i else None for i in inputs)

    def _whole_model(self) -> dict[str, tuple[Layer, ...]]:
        """Returns each output beside the float model's: quantized, with weights alone quantized, with activations alone."""
        chains = {"weights": self._with_weights(), "activations": self._with_activations()}
        rows: dict[str, list[Layer]] = {"quantized": [], **{name: [] for name, chain in chains.items() if chain}}
        for index in self._graph.subgraph.outputs:
            root = self._graph.root(index)
            place = self._reference.at.get(root)
            reference = None if place is None else self._twins.chain(self._reference, place)
            if place is None or reference is None or not self._graph.is_numeric(root):
                continue
            row = self._output_row(index, root, reference)
            changed = {name: self._twins.chain(chain, place) for name, chain in chains.items() if chain}
            if None in changed.values() or reference in changed.values():
                continue
            rows["quantized"].append(row)
            for name, tensor in changed.items():
                rows[name].append(_between(row, tensor, reference))  # type: ignore[arg-type]
        return {name: tuple(found) for name, found in rows.items()}

    def _output_row(self, index: int, root: int, reference: int) -> Layer:
        producer, tensor = self._graph.producer(root), self._graph.tensor(root)
        return _layer(
            self._graph.tensor(index).name,
            producer.name if producer else "INPUT",
            producer.index if producer else -1,
            tensor,
            reference,
            self._reference.name,
        )

    def _with_weights(self) -> Source | None:
        """Returns the float model with the dequantized constants of the quantized one."""
        if self._match is None or self._reference is self._dequantized:
            return None
        return with_weights(self._reference, self._dequantized, self._match, self._graph)

    def _with_activations(self) -> Source | None:
        """Returns the float model with each value rounded and clipped as its counterpart in the quantized model is."""
        rounded = {}
        for mine, other in self._reference.values.items():
            entry = self._graph.tensor(self._regions.default_entry(other))
            if entry.is_quantized and self._reference.graph.tensor(mine).is_float:
                rounded[mine] = entry.index
        if not rounded:
            return None
        return dataclasses.replace(self._reference, name="float model, activations quantized", rounded=rounded)

    def _all_notes(self) -> tuple[str, ...]:
        notes = []
        if self._reference is self._dequantized:
            notes.append(
                "measured without the float model, against the model's own dequantized weights: the error of the weights "
                "themselves is invisible, and a broken weight looks like a sound one"
            )
            if self._implied:
                notes.append(
                    f"{self._implied} operators have no activation function but a range that begins at 0, as models trained "
                    "with quantization have for RELU and RELU6; their float twins have it"
                )
        elif self._match is not None:
            notes += _match_notes(self._match, self._reference.graph, self._graph)
        for reason, names in self._unverified.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            notes.append(f"no row for {', '.join(names[:3])}{more}: {reason}")
        return tuple(notes)


def _layer(node: str, op_name: str, operator: int, quantized: Tensor, reference: int, source: str, evidence: str = "") -> Layer:
    parameters = quantized.quantization if quantized.is_quantized else None
    return Layer(
        node=node,
        op_name=op_name,
        operator=operator,
        tensor_name=quantized.name,
        tensor_idx=quantized.index,
        float_idx=reference,
        shape=quantized.shape,
        dtype=quantized.dtype.name,
        scale=None if parameters is None else float(parameters.scale[0]),
        zero_point=None if parameters is None else int(parameters.zero_point[0]),
        key=f"{NUMERIC_VERIFY}/{quantized.name}:{quantized.index}",
        reference=source,
        matched_by=evidence,
    )


def _between(layer: Layer, tensor: int, reference: int) -> Layer:
    """Returns the layer with other tensors to be compared, float ones in general."""
    if tensor == layer.tensor_idx:
        return dataclasses.replace(layer, float_idx=reference)
    return dataclasses.replace(layer, tensor_idx=tensor, float_idx=reference, dtype="float32", scale=None, zero_point=None)


def _match_notes(match: Match, ours: Graph, theirs: Graph) -> list[str]:
    """Says how much was matched, how surely, and what was not."""
    shown = ", ".join(f"{count} {confidence}" for confidence, count in match.counts().items() if count)
    total = len(match.operators) + len(match.unmatched_quantized)
    found = len(match.operators)
    notes = [f"matched {found} of {total} operators of the quantized model with the float model ({shown or 'none'})"]
    if match.unmatched_quantized:
        notes.append(
            "operators of the quantized model without a counterpart in the float model, held against their own dequantized "
            f"form: {_listed(theirs, match.unmatched_quantized)}"
        )
    if match.unmatched_float:
        notes.append(
            "operators of the float model without a counterpart in the quantized model, fused or left out there: "
            f"{_listed(ours, match.unmatched_float)}"
        )
    weighted = [pair.similarity for pair in match.operators if pair.similarity is not None]
    strangers = sum(similarity < _STRANGE for similarity in weighted)
    if strangers:
        notes.append(
            f"the weights of {strangers} of {len(weighted)} matched operators are not near those of the float model (cosine "
            f"below {_STRANGE}): either they are broken, or this quantized model was not made from this float model"
        )
    differing = [root for root, value in match.agreement.items() if value < AGREES]
    if differing:
        first = theirs.tensor(min(differing, key=lambda root: _rank(theirs, root)))
        notes.append(
            f"on the first sample {len(differing)} of {len(match.agreement)} matched tensors disagree (cosine below {AGREES}); "
            f"the first is {first.name!r}"
        )
    return notes


def _rank(graph: Graph, root: int) -> int:
    producer = graph.producer(root)
    return -1 if producer is None else producer.index


def _listed(graph: Graph, indices: Sequence[int]) -> str:
    operators = [graph.subgraph.operators[index] for index in indices]
    names = ", ".join(f"{operator.name} {graph.tensor(operator.outputs[0]).name!r}" for operator in operators[:3])
    return names + (f" and {len(operators) - 3} more" if len(operators) > 3 else "")
