"""Models in which some nodes are quantized and the others float, put together from a float model and its quantized form.

A node that is quantized has the quantized model's own operators; between it and a float one stand QUANTIZE and DEQUANTIZE with
the quantized model's own scales. That is what TensorFlow's quantizer makes with the others denylisted, without quantizing anew.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.edit.dequantized import dequantize_model, implied_activations, refuse_compiled
from tflite_qdebug.edit.flatbuffer import append_outputs, pack, unpack
from tflite_qdebug.edit.regions import Regions, with_weights
from tflite_qdebug.edit.subgraphs import reachable_subgraphs, referenced_subgraphs
from tflite_qdebug.edit.twins import SHARED_STATE, OperatorWriter, Source
from tflite_qdebug.errors import ModelError, OptionError, completed, did_you_mean
from tflite_qdebug.match import Graph, Match
from tflite_qdebug.model import Model, Operator

__all__ = ["FLOAT", "FORMS", "MixedModel", "MixedModels", "Node"]

#: What a node can be: float; quantized; float with quantized weights alone; float with its input activations alone quantized.
FORMS = ("float", "node", "weights", "activation")
FLOAT, NODE, WEIGHTS, ACTIVATION = FORMS


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator of the quantized model whose outputs the float model has too.

    Attributes:
        operator: Its position in the quantized model.
        op_name: Its type.
        name: The name of its first output in the float model, as a denylist takes it.
        values: Its outputs: tensors of the quantized model.
        places: The same in the float model.
        reads: ``{value: the tensor of the quantized model as which it is read}``, through whatever stands between.
        quantized: True where it, or what stands between it and the values before it, is quantized.
        weighted: True where its constants are quantized.
    """

    operator: int
    op_name: str
    name: str
    values: tuple[int, ...]
    places: tuple[int, ...]
    reads: Mapping[int, int]
    quantized: bool
    weighted: bool


@dataclasses.dataclass(frozen=True)
class MixedModel:
    """A model, or a part of one.

    Attributes:
        data: The ``.tflite``.
        inputs: The values that it is fed, in input order.
        outputs: The values that it computes, in output order.
        tensors: Which of its tensors holds each of them.
        references: Which of its tensors holds each of them with all nodes float; the same tensor where nothing before it is
            quantized, empty where that was not asked for.
        real: ``{value: tensor}`` of those that come out as float32 though the others are integers.
    """

    data: bytes
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[int, ...] = ()
    references: tuple[int, ...] = ()
    real: Mapping[int, int] = dataclasses.field(default_factory=dict)


class MixedModels:
    """Puts together models in which each node is float or quantized.

    Values are called by the tensor of the quantized model that computes them.

    Attributes:
        nodes: In execution order.
        outputs: The model's outputs that both models have: values, in output order.
        output_names: What they are called in the float model.
        inputs: The model's inputs, as values, in the quantized model's order.
        left_out: Names of operators of the quantized model that are part of no node: neither they nor what they feed has a
            counterpart.
        regions: What stands between values in the quantized model.
        floats: The float model.
        quantized: The quantized model.
    """

    def __init__(self, float_model: Model, quantized_model: Model, match: Match) -> None:
        """Finds the nodes.

        Raises:
            ModelError: Where the two have no output in common, or the quantized model was compiled for an Edge TPU.
        """
        refuse_compiled(quantized_model)
        self.graph, self.match = Graph(quantized_model), match
        self.regions = Regions(self.graph)
        self.floats = Source("float model", Graph(float_model), unpack(float_model), match.values)
        self.quantized = Source("quantized model", self.graph, unpack(quantized_model), {})
        self._feeds: dict[tuple[int, bool], list[int]] = {}
        self.inputs = tuple(root for root in self.graph.subgraph.inputs if root in self.floats.at)
        self.nodes = self._find_nodes()
        self._node_of = {value: node for node in self.nodes for value in node.values}
        self.outputs = tuple(dict.fromkeys(root for root in self.graph.outputs if root in self._node_of))
        if not self.outputs:
            raise ModelError(
                "the float and the quantized model have no output in common, so that no error can be measured there"
            )
        self.output_names = tuple(self.floats.graph.tensor(self.floats.at[root]).name for root in self.outputs)
        covered = {operator.index for node in self.nodes for value in node.values for operator in self.operators(value)}
        left_out = [operator for operator in self.graph.operators if operator.index not in covered]
        self.left_out = tuple(self.graph.tensor(op.outputs[0]).name if op.outputs else op.name for op in left_out)

    def operators(self, value: int) -> list[Operator]:
        """Returns the quantized model's operators between a value and the values before it."""
        return self.regions.operators(value, self.floats.at.keys())

    def _find_nodes(self) -> tuple[Node, ...]:
        nodes = []
        for operator in self.graph.operators:
            values = tuple(output for output in operator.outputs if output in self.floats.at)
            places = tuple(self.floats.at[value] for value in values)
            if not values or any(self.floats.graph.producer(place) is None for place in places):
                continue
            region = list({op.index: op for value in values for op in self.operators(value)}.values())
            nodes.append(
                Node(
                    operator.index,
                    operator.name,
                    self.floats.graph.tensor(places[0]).name,
                    values,
                    places,
                    self.regions.feeds(region),
                    any(map(self._is_quantized, region)),
                    any(map(self.regions.reads_reduced_constant, region)),
                )
            )
        return tuple(nodes)

    def _is_quantized(self, operator: Operator) -> bool:
        regions = self.regions
        return regions.is_quantized(operator) or regions.reads_quantized(operator) or self._calls_quantized(operator)

    def _calls_quantized(self, operator: Operator) -> bool:
        """True for a loop or a branch inside of which something is quantized."""
        unpacked, model = self.quantized.unpacked, self.graph.model
        table = unpacked.subgraphs[self.graph.subgraph.index].operators[operator.index]
        called = reachable_subgraphs(unpacked, referenced_subgraphs(table))
        tensors = (tensor for index in called for tensor in model.subgraphs[index].tensors)
        return any(tensor.is_quantized or (tensor.is_constant and tensor.dtype == np.float16) for tensor in tensors)

    @functools.cached_property
    def dequantized(self) -> Source:
        """The quantized model as a float model."""
        model = self.graph.model
        own = Graph(Model(dequantize_model(model, implied_activations(model))))
        everything = {root: root for root in [*own.subgraph.inputs, *own.subgraph.producers]}
        return Source("dequantized weights", own, unpack(own.model), everything)

    @functools.cached_property
    def weighted(self) -> Source:
        """The float model with the quantized model's weights."""
        return with_weights(self.floats, self.dequantized, self.match, self.graph)

    def node(self, name: str) -> Node:
        """Returns the node of that name; of several the first.

        Raises:
            OptionError: Where there is none, with the nearest names.
        """
        return self._node_of[self.value(name)]

    def value(self, name: str) -> int:
        """Returns the output of a node that has that name, in the float or the quantized model; of several the first.

        Raises:
            OptionError: Where there is none, with the nearest names.
        """
        names = {self.graph.tensor(value).name: value for node in self.nodes[::-1] for value in node.values[::-1]}
        for node in self.nodes[::-1]:
            places = zip(node.places[::-1], node.values[::-1], strict=True)
            names.update({self.floats.graph.tensor(place).name: value for place, value in places})
        name = completed(name, names, "node")
        if name not in names:
            raise OptionError(f"got node {name!r}, which the model has not.{did_you_mean(name, names)}")
        return names[name]

    def feeds(self, value: int, form: str) -> list[int]:
        """Returns the values that a value is computed from, where its node has that form."""
        key = (value, form == NODE)
        if key not in self._feeds:
            self._feeds[key] = self._find_feeds(value, form)
        return self._feeds[key]

    def _find_feeds(self, value: int, form: str) -> list[int]:
        if form == NODE:
            return list(self.regions.feeds(self.operators(value)))
        _, met = self.floats.region(self.floats.at[value], self.floats.values)
        graph = self.floats.graph
        return [self.floats.values[root] for root in met if root in self.floats.values and not graph.is_constant(root)]

    def order(self, form: str) -> list[int]:
        """Returns the values of all nodes in execution order, of the float model or (form ``node``) of the quantized one."""
        graph, at = (self.graph, {v: v for v in self._node_of}) if form == NODE else (self.floats.graph, self.floats.at)
        place = {operator.index: position for position, operator in enumerate(graph.operators)}
        producers = {value: graph.producer(at[value]) for value in self._node_of}
        return sorted(self._node_of, key=lambda value: place[producers[value].index])  # type: ignore[union-attr]

    def node_of(self, value: int) -> Node | None:
        """Returns the node that computes a value; None for an input."""
        return self._node_of.get(value)

    def tensor_of(self, value: int, form: str) -> int:
        """Returns the tensor that holds a value in the float model or (form ``node``) in the quantized one."""
        return value if form == NODE else self.floats.at[value]

    def build(
        self,
        forms: Callable[[Node], str] | Mapping[int, str],
        outputs: Sequence[int] | None = None,
        fed: Collection[int] = (),
        *,
        native: bool = False,
        shapes: Mapping[int, Sequence[int]] | None = None,
        reference: bool = False,
        real: Collection[int] = (),
    ) -> MixedModel:
        """Puts a model together.

        Args:
            forms: The form of each node: a function, or ``{operator: form}`` with float for all others.
            outputs: The values that it computes; None: the model's outputs. They come out as float32 where they are real
                numbers.
            fed: Values that are given to it, besides the model's inputs. Without any it takes all of the model's inputs, in
                their order; else those that it needs.
            native: Outputs and fed values are as the quantized model has them (integers), instead of float.
            shapes: ``{value: shape}`` of fed values in a sample, where the file leaves them open.
            reference: Also compute each output with all nodes float, on the same inputs.
            real: With ``native``, values that come out as float32 besides, not rounded where their node is float.

        Raises:
            ModelError: Where a value cannot be computed: by shared variables, or values without a counterpart.
        """
        form_of = (lambda node: forms.get(node.operator, FLOAT)) if isinstance(forms, Mapping) else forms
        wanted = list(self.outputs if outputs is None else outputs)
        assembly = _Assembly(self, form_of, {*fed, *self.inputs}, native, shapes or {})
        if not fed:
            assembly.feed(self.inputs)
        whole = outputs is None and not fed and not native
        return assembly.model(wanted, reference, real, signed=whole)

    def build_together(
        self,
        parts: Sequence[tuple[Callable[[Node], str], Sequence[int], Collection[int]]],
        fed: Collection[int] = (),
        *,
        native: bool = False,
        shapes: Mapping[int, Sequence[int]] | None = None,
    ) -> list[MixedModel]:
        """Puts several models together into one, which computes what they have in common once.

        Args:
            parts: For each the form of each node, the values that it computes, and those that come out as float32 besides.
            fed: As for `build`.
            native: As for `build`.
            shapes: As for `build`.

        Returns:
            One for each part, of the same ``data`` and ``inputs``, each with tensors of its own.
        """
        weighted = next((form_of for form_of, _, _ in parts if _wants_weights(self, form_of)), parts[0][0])
        assembly = _Assembly(self, weighted, {*fed, *self.inputs}, native, shapes or {})
        return assembly.together(parts)

    def build_apart(self, nodes: Sequence[Node], shapes: Mapping[int, Sequence[int]] | None = None) -> MixedModel:
        """Puts a model together in which each of the nodes is quantized by itself, on values that are given to it.

        Args:
            nodes: None of which feeds another here, even where it does in the model.
            shapes: As for `build`.
        """
        fed = {feed for node in nodes for value in node.values for feed in self.feeds(value, NODE)}
        return _Assembly(self, lambda _: NODE, fed, False, shapes or {}).apart(nodes)

    def exposed(self, form: str, tensors: Iterable[int]) -> bytes:
        """Returns the float model, or (form ``node``) the quantized one, with further tensors as outputs, behind its own."""
        source = self.quantized if form == NODE else self.floats
        # Copies of what is changed, not of the weights: it has been unpacked once.
        unpacked = copy.copy(source.unpacked)
        unpacked.subgraphs = [copy.copy(subgraph) for subgraph in unpacked.subgraphs]
        append_outputs(unpacked, tensors)
        return pack(unpacked)

    def input_specs(self) -> list[InputSpec]:
        """Returns what a model that is fed the model's inputs as floats expects, in the quantized model's order."""
        specs = dict(zip(self.floats.graph.subgraph.inputs, self.floats.graph.model.input_specs(), strict=True))
        return [specs[self.floats.at[root]] for root in self.inputs]


class _Assembly(OperatorWriter):
    """One model in the making."""

    def __init__(
        self,
        models: MixedModels,
        form_of: Callable[[Node], str],
        fed: Collection[int],
        native: bool,
        shapes: Mapping[int, Sequence[int]],
    ) -> None:
        super().__init__(_empty_model(), models.dequantized if _wants_weights(models, form_of) else models.floats)
        self._models, self._form_of, self._fed, self._native, self._shapes = models, form_of, fed, native, shapes
        self._graph, self._floats, self._quantized = models.graph, models.floats, models.quantized
        self._fed_tensors: dict[int, int] = {}
        # Each value as the float model has it, and as the quantized model has it; the first also holds what is no real number.
        self._as_float: dict[int, int] = {}
        self._as_quantized: dict[int, int] = {}
        self._roundings: dict[tuple[int, int], int] = {}
        self._read: dict[int, int] = {}

    def model(self, wanted: Sequence[int], reference: bool, real: Collection[int], signed: bool) -> MixedModel:
        self._compute([*wanted, *real], self._form_of)
        tensors = [self._given(value) for value in wanted]
        floats = {value: self.float_of(value) for value in real}
        references: list[int] = []
        if reference:
            # What is float throughout is computed once for both: a copy on the same inputs is found again.
            self._as_float = {value: self._as_float[value] for value in self._fed_tensors}
            self._as_quantized = {}
            self._compute(wanted, lambda _: FLOAT)
            references = [self.float_of(value) for value in wanted]
        if signed:
            self._sign(dict(zip(wanted, tensors, strict=True)))
        data = self._packed([*tensors, *references, *floats.values()])
        return MixedModel(data, tuple(self._fed_tensors), tuple(wanted), tuple(tensors), tuple(references), floats)

    def _sign(self, computed: Mapping[int, int]) -> None:
        """Gives the file the quantized model's signatures, by which programs call it and datasets name its inputs."""
        schema = tf_private.schema()
        subgraph = self._graph.subgraph
        fed = {index: self._fed_tensors.get(index) for index in subgraph.inputs}
        given = {index: computed.get(value) for index, value in zip(subgraph.outputs, self._graph.outputs, strict=True)}
        for signature in self._graph.model.signatures:
            sides = [(signature.inputs, fed), (signature.outputs, given)]
            # A signature of another subgraph, or of an input or output that the float model lacks, would lead nowhere.
            if signature.subgraph or any(places.get(index) is None for names, places in sides for index in names.values()):
                continue
            table = schema.SignatureDefT()
            table.signatureKey, table.subgraphIndex = signature.key.encode(), 0
            table.inputs, table.outputs = ([_entry(schema, name, places[index]) for name, index in names.items()]
                                           for names, places in sides)  # fmt: skip
            self.unpacked.signatureDefs = [*(self.unpacked.signatureDefs or []), table]

    def _packed(self, outputs: Iterable[int]) -> bytes:
        """Returns the file, with what was fed as inputs."""
        main = self.writer.main
        main.inputs = np.array(list(self._fed_tensors.values()), dtype=np.int32)
        main.outputs = np.array(list(dict.fromkeys(outputs)), dtype=np.int32)
        main.operators = self.appended
        return pack(self.unpacked)

    def together(self, parts: Sequence[tuple[Callable[[Node], str], Sequence[int], Collection[int]]]) -> list[MixedModel]:
        """Returns a model for each part, all of them in one file."""
        found = []
        for form_of, wanted, real in parts:
            # Each begins with what is given to it; a copy of an operator on the same inputs is found again.
            self._form_of, self._as_float, self._as_quantized = form_of, {}, {}
            self._compute([*wanted, *real], form_of)
            tensors = tuple(self._given(value) for value in wanted)
            found.append((tuple(wanted), tensors, {value: self.float_of(value) for value in real}))
        data = self._packed(index for _, tensors, floats in found for index in (*tensors, *floats.values()))
        inputs = tuple(self._fed_tensors)
        return [MixedModel(data, inputs, wanted, tensors, (), floats) for wanted, tensors, floats in found]

    def apart(self, nodes: Sequence[Node]) -> MixedModel:
        """Returns a model of nodes that do not feed each other."""
        values, tensors = [], []
        for node in nodes:
            for value in node.values:
                for feed in self._models.feeds(value, NODE):
                    if not self._is_known(feed):
                        self._feed(feed)
                # What is given to others under its name stays what it was.
                given = self._as_float.pop(value, None)
                self._emit_quantized(value, node)
                values.append(value)
                tensors.append(self.float_of(value))
                self._as_quantized.pop(value, None)
                self._as_float.pop(value)
                if given is not None:
                    self._as_float[value] = given
        return MixedModel(self._packed(tensors), tuple(self._fed_tensors), tuple(values), tuple(tensors))

    def feed(self, values: Iterable[int]) -> None:
        """Makes inputs of values, in this order."""
        for value in values:
            self._feed(value)

    def _given(self, value: int) -> int:
        if not self._native:
            return self.float_of(value)
        if value not in self._as_quantized:
            return self.rounding(value, value) if self._graph.tensor(value).is_quantized else self.float_of(value)
        return self._as_quantized[value]

    def _compute(self, wanted: Iterable[int], form_of: Callable[[Node], str]) -> None:
        """Computes values and what they need; not by recursion, since a model may be a thousand operators deep."""
        stack = list(wanted)
        begun: set[int] = set()
        while stack:
            value = stack[-1]
            if self._is_known(value):
                stack.pop()
                continue
            node = self._models.node_of(value)
            if value in self._fed or node is None:
                self._feed(value)
                stack.pop()
                continue
            form = form_of(node)
            missing = [feed for feed in self._models.feeds(value, form) if not self._is_known(feed)]
            if missing:
                if value in begun:
                    raise ModelError(f"the float and the quantized model compute {node.name!r} in different orders")
                begun.add(value)
                stack += missing
                continue
            self._emit(value, node, form)
            stack.pop()

    def _is_known(self, value: int) -> bool:
        return value in self._as_float or value in self._as_quantized

    def _feed(self, value: int) -> None:
        native = self._native and value not in self._models.inputs
        if value not in self._fed_tensors:
            if not native and value not in self._floats.at:
                raise ModelError(f"{self._graph.tensor(value).name!r} has no counterpart in the float model")
            self._add_input(value, native)
        known = self._as_quantized if native else self._as_float
        known[value] = self._fed_tensors[value]

    def _add_input(self, value: int, native: bool) -> None:
        source, place = (self._quantized, value) if native else (self._floats, self._floats.at[value])
        tensor = self._fed_tensors[value] = self.add_tensor(source, place)
        table, shape = self.writer.main.tensors[tensor], self._shapes.get(value)
        if shape is not None and value not in self._models.inputs:
            known = (
                [] if table.shape is None else list(table.shapeSignature if table.shapeSignature is not None else table.shape)
            )
            if len(known) != len(shape) or any(a != b for a, b in zip(known, shape, strict=True)):
                table.shapeSignature = np.array([a if a == b else -1 for a, b in _paired(shape, known)], dtype=np.int32)
            table.shape, table.hasRank = np.array(shape, dtype=np.int32), True

    def _emit(self, value: int, node: Node, form: str) -> None:
        if form == NODE:
            self._emit_quantized(value, node)
            return
        place = self._floats.at[value]
        source = self._models.weighted if form == WEIGHTS else self._floats
        operators, met = source.region(place, source.values)
        feeds = {}
        for root in met:
            if source.graph.is_constant(root) or root not in source.values:
                continue
            other = source.values[root]
            feeds[root] = self._rounded(other, node) if form == ACTIVATION else self.float_of(other)
        result = self.compute(source, operators, feeds, place)
        if result is None:
            raise self._cannot(node, operators)
        self._as_float[value] = result

    def _cannot(self, node: Node, operators: Iterable[Operator]) -> ModelError:
        shared = sorted({operator.name for operator in operators if operator.name in SHARED_STATE})
        reason = (
            f"it reads variables that the whole model shares ({', '.join(shared)})" if shared else "its inputs are not known"
        )
        return ModelError(f"{node.op_name} {node.name!r} cannot be put into another model: {reason}")

    def _emit_quantized(self, value: int, node: Node) -> None:
        operators = self._models.operators(value)
        local: dict[int, int] = {}
        for operator in operators:
            if operator.name in SHARED_STATE:
                raise self._cannot(node, operators)
            inputs = [self._input_of(index, local) for index in operator.inputs]
            if any(index >= 0 and self._graph.tensor(index).is_variable for index in operator.inputs):
                inputs = self.with_state(self._quantized, operator, inputs)
            local.update(zip(operator.outputs, self.copy(self._quantized, operator, inputs, True), strict=True))
        # Other outputs of the operator have their own turn; what stands between is nobody else's.
        if self._graph.tensor(value).is_quantized or self._graph.tensor(value).is_float:
            self._as_quantized[value] = local[value]
        else:
            self._as_float[value] = local[value]

    def _input_of(self, index: int, local: Mapping[int, int]) -> int:
        """Returns what a quantized operator reads as ``index``."""
        if index < 0:
            return index
        root, tensor = self._graph.root(index), self._graph.tensor(index)
        if tensor.is_variable:
            return self.add_tensor(self._quantized, index)
        if self._graph.is_constant(index):
            return self._bridged(self.constant(self._quantized, root), root, index)
        if root in local:
            return self._bridged(local[root], root, index)
        if not tensor.is_quantized:
            return self.float_of(root)
        if root in self._as_quantized:
            return self._bridged(self._as_quantized[root], root, index)
        # Rounded as it would be behind a quantized operator, and by whatever rescales it on the way, as TensorFlow's quantizer
        # does; so it makes no difference whether it comes from here or, rounded, from a model that runs before this one.
        rounded = self.rounding(root, root) if self._graph.tensor(root).is_quantized else self.float_of(root)
        return self._bridged(rounded, root, index)

    def _bridged(self, tensor: int, root: int, index: int) -> int:
        """Returns ``index`` as the quantized model computes it from a value, with copies of the bridges between."""
        path = []
        while index != root:
            path.append(self._graph.subgraph.producers[index])
            index = path[-1].inputs[0]
        for operator in reversed(path):
            tensor = self.copy(self._quantized, operator, [tensor])[0]
        return tensor

    def float_of(self, value: int) -> int:
        """Returns a value as float32, or as it is where it is no real number."""
        if value not in self._as_float:
            tensor = self._as_quantized[value]
            if self._graph.tensor(value).is_quantized:
                tensor = self._dequantized_once(tensor, self._graph.tensor(value).name + "_dequantized")
            self._as_float[value] = tensor
        return self._as_float[value]

    def _dequantized_once(self, integers: int, name: str) -> int:
        if integers not in self._read:
            operator, self._read[integers] = self.writer.dequantize(integers, name, 2)
            self.appended.append(operator)
        return self._read[integers]

    def rounding(self, value: int, like: int) -> int:
        """Returns a value as integers, quantized as a tensor of the quantized model is."""
        key = (self.float_of(value), like)
        if key not in self._roundings:
            main, tensor = self.writer.main, self._graph.tensor(like)
            table = self._quantized.unpacked.subgraphs[self._graph.subgraph.index].tensors[like]
            integers = self.writer.add_tensor(tensor.name + "_quantized", main.tensors[key[0]], table.type)
            main.tensors[integers].quantization = table.quantization
            self.appended.append(self.quantize(key[0], integers, tensor.dtype))
            self._roundings[key] = integers
        return self._roundings[key]

    def _rounded(self, value: int, node: Node) -> int:
        """Returns a value rounded and clipped as the quantized node reads it, in float again."""
        entry = node.reads.get(value)
        like = entry if entry is not None else self._models.regions.default_entry(value)
        if not self._graph.tensor(like).is_quantized:
            return self.float_of(value)
        integers = self.rounding(value, like)
        return self._dequantized_once(integers, self._graph.tensor(like).name + "_rounded")


def _wants_weights(models: MixedModels, form_of: Callable[[Node], str]) -> bool:
    return any(form_of(node) == WEIGHTS for node in models.nodes)


def _paired(shape: Sequence[int], known: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shape, known, strict=True)) if len(shape) == len(known) else [(size, -1) for size in shape]


def _entry(schema: Any, name: str, tensor: int | None) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), tensor
    return entry


def _empty_model() -> Any:
    """Returns an unpacked model without an operator."""
    schema = tf_private.schema()
    model, graph = schema.ModelT(), schema.SubGraphT()
    graph.name, graph.tensors, graph.operators = b"main", [], []
    graph.inputs, graph.outputs = np.zeros(0, np.int32), np.zeros(0, np.int32)
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [], [schema.BufferT()]
    return model
