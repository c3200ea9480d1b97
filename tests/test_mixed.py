"""Partly quantized models: TensorFlow's quantizer with the other nodes denylisted, and numbers worked out by hand."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import converter_of, float_bytes, normal, spec
from debugger_models import weights as drawn
from shared_data import samples as real_samples
from test_pairs import pair_of, source

from tflite_qdebug import example
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.edit.mixed import ACTIVATION, FLOAT, NODE, WEIGHTS, MixedModels, Node
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.match import match_models
from tflite_qdebug.model import Model

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
Samples = list[list[np.ndarray]]


def mixed_models(floating: bytes, quantized: bytes) -> MixedModels:
    ours, theirs = Model(floating), Model(quantized)
    return MixedModels(ours, theirs, match_models(ours, theirs))


def results(data: bytes, samples: Samples) -> list[np.ndarray]:
    """Returns each output over the samples, in real numbers, by TensorFlow's interpreter with the builtin kernels."""
    main = Model(data).main
    found = []
    for sample in samples:
        fed = [as_fed(main.tensors[index], values) for index, values in zip(main.inputs, sample, strict=True)]
        found.append(
            [real(main.tensors[i], v) for i, v in zip(main.outputs, models.outputs(data, fed, "builtin"), strict=True)]
        )
    return [np.stack(values) for values in zip(*found, strict=True)]


def as_fed(tensor: Any, values: np.ndarray) -> np.ndarray:
    return tensor.quantization.quantize(values, tensor.dtype) if tensor.is_quantized and values.dtype == np.float32 else values


def real(tensor: Any, values: np.ndarray) -> np.ndarray:
    return tensor.quantization.dequantize(values) if tensor.is_quantized else values


def check_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def form_of(nodes: Any, form: str = NODE, rest: str = FLOAT) -> Callable[[Node], str]:
    operators = {node.operator for node in nodes}
    return lambda node: form if node.operator in operators else rest


def without_round_trips(data: bytes) -> bytes:
    """Returns a model in which nobody reads a value that was quantized only to be dequantized again.

    TensorFlow's quantizer rounds the output of TANH, whose range is fixed, and the input of an LSTM, denylisted or not.
    """
    unpacked = unpack(Model(data))
    main = unpacked.subgraphs[0]
    names = [operator.name for operator in Model(data).main.operators]
    quantized = {int(op.outputs[0]): int(op.inputs[0]) for op, name in zip(main.operators, names, strict=True)
                 if name == "QUANTIZE" and main.tensors[int(op.inputs[0])].type == 0}  # fmt: skip
    undone = {int(op.outputs[0]): quantized[int(op.inputs[0])] for op, name in zip(main.operators, names, strict=True)
              if name == "DEQUANTIZE" and int(op.inputs[0]) in quantized}  # fmt: skip
    for operator in main.operators:
        operator.inputs = np.array([undone.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
    return pack(unpacked)


def denylisted(calibrated: CalibratedModel, names: list[str]) -> bytes:
    return without_round_trips(calibrated.quantize("int8", denylisted_nodes=names).data)


# -- whole models ----------------------------------------------------------------------------------------------------------

KINDS = [
    *((name, "int8") for name in ("mixed", "chain", "two_by_two", "shared_weights", "dynamic_batch", "weighty", "with_cosine",
                                  "attention", "embedding", "constant_product", "scalars", "lstm")),
    ("mixed", "full_integer"), ("two_by_two", "full_integer"), ("lstm", "full_integer"),
    ("mixed", "int16x8"), ("weighty", "int16x8"), ("two_by_two", "int16x8"),
    ("weighty", "dynamic_range"), ("embedding", "dynamic_range"), ("mixed", "float16"), ("lstm", "float16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_all_or_no_nodes_quantized_are_the_two_models(name: str, kind: str) -> None:
    calibrated, samples = source(name)
    assert calibrated.float_model is not None
    floating, quantized = calibrated.float_model.data, calibrated.quantize(kind).data
    made = mixed_models(floating, quantized)
    assert not made.left_out
    check_same(results(made.build(lambda node: NODE).data, samples), results(quantized, samples))
    check_same(results(made.build({}).data, samples), results(floating, samples))
    assert any(node.quantized for node in made.nodes)
    both = made.build(lambda node: NODE, reference=True)
    for sample in samples:
        interpreter = models.run(both.data, sample, "builtin", preserve=False)
        for index, other in zip(both.references, results(floating, [sample]), strict=True):
            np.testing.assert_array_equal(interpreter.get_tensor(index), other[0])


@pytest.mark.parametrize("name", ["two_by_two", "dynamic_batch"])
def test_signatures_stay(name: str) -> None:
    floating, quantized, samples = pair_of(name)
    made = mixed_models(floating, quantized)
    left = next(node for node in made.nodes if node.quantized)
    data = made.build(form_of([left], FLOAT, NODE)).data
    whole = Model(quantized)
    assert whole.signatures
    assert [one.key for one in Model(data).signatures] == [one.key for one in whole.signatures]
    expected = dict(zip(whole.main.outputs, models.outputs(data, samples[0], "builtin"), strict=True))
    interpreter = tf.lite.Interpreter(model_content=data)
    for signature in whole.signatures:
        fed = {key: samples[0][whole.main.inputs.index(index)] for key, index in signature.inputs.items()}
        found = interpreter.get_signature_runner(signature.key)(**fed)
        assert set(found) == set(signature.outputs)
        for key, index in signature.outputs.items():
            np.testing.assert_allclose(found[key], expected[index], atol=0.1)
    # Named samples reach it too.
    assert [spec_.key for spec_ in Model(data).input_specs()] == [spec_.key for spec_ in whole.input_specs()]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integer_inputs_and_outputs(kind: str) -> None:
    floating, _, samples = pair_of("chain")
    quantized = source("chain")[0].quantize("full_integer", input_type=kind, output_type=kind).data
    made = mixed_models(floating, quantized)
    check_same(results(made.build(lambda node: NODE).data, samples), results(quantized, samples))
    specs = made.input_specs()
    assert [spec_.dtypes for spec_ in specs] == [(np.dtype(np.float32),)]


@pytest.mark.parametrize(("floating", "quantized"), [
    ("mobilenet_v1_0.25/mobilenet_v1_0.25_224_float", "mobilenet_v1_0.25/mobilenet_v1_0.25_224_quant_QAT"),
    ("keyword_spotting/kws_ref_float", "keyword_spotting/kws_ref_model_int8"),
    ("mnist_lstm/trained_lstm", "mnist_lstm/trained_lstm_int8"),
])  # fmt: skip
def test_real_pairs_of_other_tools(shared_models: Any, floating: str, quantized: str) -> None:
    ours, theirs = ((shared_models / f"{name}.tflite").read_bytes() for name in (floating, quantized))
    made, samples = mixed_models(ours, theirs), real_samples(floating)
    check_same(results(made.build(lambda node: NODE).data, samples), results(theirs, samples))
    check_same(results(made.build({}).data, samples), results(ours, samples))


@pytest.mark.parametrize("kind", ["int8", "dynamic_range"])
@pytest.mark.parametrize("name", ["loop", "branches", "captured"])
def test_loops_and_branches(name: str, kind: str) -> None:
    floating = getattr(control_flow_models, name)()
    quantized = control_flow_models.quantized(name) if kind == "int8" else getattr(control_flow_models, name)(kind)
    made, samples = mixed_models(floating, quantized), control_flow_models.samples(Model(floating), 5)
    check_same(results(made.build(lambda node: NODE).data, samples), results(quantized, samples))
    check_same(results(made.build({}).data, samples), results(floating, samples))
    # What is quantized inside of a loop makes the loop a quantized node; its weights cannot be told from its activations.
    calling = [node for node in made.nodes if node.op_name in ("WHILE", "IF")]
    bodies = Model(quantized).subgraphs[1:]
    assert any(node.quantized for node in calling) == (
        any(tensor.is_quantized for body in bodies for tensor in body.tensors) or name == "branches"
    )
    assert not any(node.weighted for node in calling)


def test_a_variable_of_the_whole_model_is_refused() -> None:
    floating = Model(control_flow_models.variables())
    made = mixed_models(floating.data, floating.data)
    with pytest.raises(ModelError, match="reads variables that the whole model shares"):
        made.build({})
    with pytest.raises(ModelError, match="reads variables that the whole model shares"):
        made.build(lambda node: NODE)


def test_models_without_a_common_output_are_refused() -> None:
    unpacked = unpack(Model(models.float_tflite("chain")))
    main = unpacked.subgraphs[0]
    main.outputs = main.inputs  # an input that is an output is computed by no node
    with pytest.raises(ModelError, match="no output in common"):
        mixed_models(pack(unpacked), pack(unpacked))


# -- TensorFlow's quantizer with nodes denylisted --------------------------------------------------------------------------


@functools.cache
def built_in() -> tuple[CalibratedModel, MixedModels, Samples]:
    float_model = load_float_model(example.MODEL_PATH)
    calibrated = float_model.calibrate(example.representative_dataset, progress=False)
    made = mixed_models(float_model.data, calibrated.quantize("int8").data)
    return calibrated, made, [sample.inputs for sample in float_model.dataset(example.debug_dataset, limit=3)]


@functools.cache
def small(name: str) -> tuple[CalibratedModel, MixedModels, Samples]:
    calibrated, samples = source(name)
    assert calibrated.float_model is not None
    return calibrated, mixed_models(calibrated.float_model.data, calibrated.quantize("int8").data), samples


def check_loop(calibrated: CalibratedModel, made: MixedModels, samples: Samples, chosen: list[Node]) -> None:
    names = [node.name for node in made.nodes]
    inside = {node.name for node in chosen}
    ours = results(made.build(form_of(chosen)).data, samples)
    check_same(ours, results(denylisted(calibrated, [name for name in names if name not in inside]), samples))


def test_each_node_of_the_example_alone_is_tensorflows_model_with_the_others_denylisted() -> None:
    calibrated, made, samples = built_in()
    assert len(made.nodes) == 45
    for node in made.nodes:
        check_loop(calibrated, made, samples, [node])


def test_each_node_of_the_example_left_float_is_tensorflows_model_with_it_denylisted() -> None:
    calibrated, made, samples = built_in()
    for node in made.nodes:
        check_loop(calibrated, made, samples, [other for other in made.nodes if other is not node])


@pytest.mark.parametrize("seed", range(6))
def test_any_nodes_of_the_example_quantized(seed: int) -> None:
    calibrated, made, samples = built_in()
    chosen = random.Random(seed).sample(made.nodes, 5 + 6 * seed)
    check_loop(calibrated, made, samples, chosen)


# "mixed" has a SPLIT, an ADD, and a CONCATENATION one input of which is requantized; of "two_by_two" an output is also read.
SMALL = ["mixed", "two_by_two", "shared_weights", "dynamic_batch", "with_cosine", "attention", "embedding", "constant_product",
         "scalars", "lstm"]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_each_node_of_small_models(name: str) -> None:
    calibrated, made, samples = small(name)
    for node in made.nodes:
        check_loop(calibrated, made, samples, [node])
        check_loop(calibrated, made, samples, [other for other in made.nodes if other is not node])


@pytest.mark.parametrize("name", ["mixed", "two_by_two", "scalars"])
def test_any_nodes_of_small_models(name: str) -> None:
    calibrated, made, samples = small(name)
    generator = random.Random(name)
    for _ in range(4):
        check_loop(calibrated, made, samples, generator.sample(made.nodes, generator.randrange(2, len(made.nodes))))


def test_a_batch_of_any_size() -> None:
    _, made, _ = small("dynamic_batch")
    batch = np.random.default_rng(2).normal(size=(6, 10)).astype(np.float32)
    data = made.build(form_of(made.nodes[:1])).data
    together, apart = results(data, [[batch]])[0][0], results(data, [[row[None]] for row in batch])[0][:, 0]
    np.testing.assert_array_equal(together, apart)


def test_state_begins_anew_and_is_kept_apart() -> None:
    """Two LSTMs in one model, the float and the quantized one, each have their own variables."""
    _, made, _ = small("lstm")
    samples = models.samples("lstm", 3, seed=4)
    both = made.build(lambda node: NODE, reference=True)
    data = {"mixed": both.data, "float": made.floats.graph.model.data, "int8": made.graph.model.data}
    interpreters = {name: models.reference_interpreter(model, False, "builtin") for name, model in data.items()}
    for sample in samples:  # without a reset in between
        for interpreter in interpreters.values():
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[0])
            interpreter.invoke()
        given = {name: it.get_tensor(it.get_output_details()[0]["index"]) for name, it in interpreters.items()}
        np.testing.assert_array_equal(interpreters["mixed"].get_tensor(both.tensors[0]), given["int8"])
        np.testing.assert_array_equal(interpreters["mixed"].get_tensor(both.references[0]), given["float"])


# -- weights alone, activations alone --------------------------------------------------------------------------------------


def rounded(tensor: Any, values: Any) -> np.ndarray:
    """Returns values rounded to the steps of a tensor, and clipped to its range, by numpy."""
    scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zero_point[0])
    limits = np.iinfo(tensor.dtype)
    integers = np.clip(np.round(np.asarray(values, np.float32) / np.float32(scale)) + zero_point, limits.min, limits.max)
    return ((integers - zero_point) * scale).astype(np.float32)


def by_hand(made: MixedModels, sample: list[np.ndarray], weights: set[int], activations: set[int]) -> np.ndarray:
    """Computes the model "chain": two convolutions, a reshaping and a dense layer, with some of them partly quantized."""
    value: Any = sample[0]
    ours, theirs = made.floats.graph, made.graph
    for position, node in enumerate(made.nodes):
        other = theirs.subgraph.operators[node.operator]
        if position in activations:
            value = rounded(theirs.tensor(other.inputs[0]), value)
        if node.op_name == "RESHAPE":
            value = np.reshape(value, (1, -1))
            continue
        mine = ours.subgraph.producers[node.places[0]]
        kernel, bias = (ours.model.constant(ours.tensor(index)) for index in mine.inputs[1:])
        if position in weights:
            source_, table, constant = (theirs.tensor(index) for index in other.inputs)
            scale = table.quantization.scale.astype(np.float64)  # type: ignore[union-attr]
            shape = (-1, *[1] * (kernel.ndim - 1))
            kernel = (theirs.model.constant(table) * scale.reshape(shape)).astype(np.float32)
            bias = (theirs.model.constant(constant) * scale * float(source_.quantization.scale[0])).astype(np.float32)  # type: ignore[union-attr]
        if node.op_name == "CONV_2D":
            value = tf.nn.conv2d(value, np.transpose(kernel, (1, 2, 3, 0)), 1, "VALID").numpy() + bias
        else:
            value = value @ kernel.T + bias
    return np.asarray(value)


@pytest.mark.parametrize("position", [0, 1, 3, None])
@pytest.mark.parametrize("form", [WEIGHTS, ACTIVATION])
def test_a_part_of_a_node_by_hand(form: str, position: int | None) -> None:
    _, made, samples = small("chain")
    assert [node.op_name for node in made.nodes] == ["CONV_2D", "CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    chosen = set(range(4)) if position is None else {position}
    data = made.build(form_of([made.nodes[i] for i in chosen], form)).data
    plain = results(made.build({}).data, samples)[0]
    for sample, given, unchanged in zip(samples, results(data, samples)[0], plain, strict=True):
        wanted = by_hand(made, sample, chosen if form == WEIGHTS else set(), chosen if form == ACTIVATION else set())
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5)
        assert np.abs(given - unchanged).max() > 1e-3  # not for nothing


@pytest.mark.parametrize("name", ["mixed", "weighty", "chain"])
def test_weights_and_activations_of_all_nodes_are_what_pairs_measure(name: str) -> None:
    _, made, samples = small(name)
    floating, quantized, _ = pair_of(name)
    run = pair_error(floating, quantized, samples, parts=True, backend=BACKEND, progress=False)
    reference = results(floating, samples)[0]
    for form, part in ((WEIGHTS, "weights"), (ACTIVATION, "activations")):
        found = results(made.build(lambda node: form).data, samples)[0]  # noqa: B023
        if form == ACTIVATION:  # pairs round the output too, which no node reads
            found = rounded(made.graph.tensor(made.outputs[0]), found)
        error = found.astype(np.float64) - reference
        sqnr = 10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / np.sum(error**2))
        assert run.whole[part].sqnr_db[0] == pytest.approx(sqnr, abs=0.02), part


def test_weights_that_are_not_quantized_change_nothing() -> None:
    _, made, samples = small("mixed")
    plain = results(made.floats.graph.model.data, samples)
    unweighted = [node for node in made.nodes if not node.weighted]
    assert {node.op_name for node in unweighted} == {"ADD", "SPLIT", "TANH", "CONCATENATION", "MEAN", "SOFTMAX"}
    for node in unweighted:
        check_same(results(made.build({node.operator: WEIGHTS}).data, samples), plain)


# -- parts of a model ------------------------------------------------------------------------------------------------------


def handed(made: MixedModels, base: bytes, form: str, sample: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Returns every value of the float model, or of the quantized one, by TensorFlow's interpreter."""
    interpreter = models.run(base, sample, "builtin")
    values = {value: interpreter.get_tensor(made.tensor_of(value, form)) for value in made.order(form)}
    return {**dict(zip(made.inputs, sample, strict=True)), **values}


def cut_results(made: MixedModels, rest: str, chosen: Node, form: str, cut: int, sample: list[np.ndarray]) -> list[np.ndarray]:
    """Computes the outputs in two parts: up to a position of the order, and what follows it."""
    native = rest == NODE
    order = made.order(rest)
    base = (made.graph if native else made.floats.graph).model.data
    known = handed(made, base, rest, sample)
    forms = form_of([chosen], form, rest)
    tail = made.build(forms, None, order[:cut], native=native)
    wanted = [value for value in tail.inputs if value not in made.inputs]
    head = made.build(forms, wanted, native=native)
    assert head.outputs == tuple(wanted)
    first = models.run(head.data, [known[value] for value in head.inputs], "builtin", preserve=False)
    known.update({value: first.get_tensor(index) for value, index in zip(head.outputs, head.tensors, strict=True)})
    second = models.run(tail.data, [known[value] for value in tail.inputs], "builtin", preserve=False)
    found = [second.get_tensor(index) for index in tail.tensors]
    return [
        real(made.graph.tensor(value), v) if v.dtype != np.float32 else v for value, v in zip(tail.outputs, found, strict=True)
    ]


@pytest.mark.parametrize(("rest", "form"), [(FLOAT, NODE), (FLOAT, ACTIVATION), (FLOAT, WEIGHTS), (NODE, FLOAT)])
@pytest.mark.parametrize("name", ["mixed", "two_by_two", "lstm"])
def test_two_parts_give_what_the_whole_gives(name: str, rest: str, form: str) -> None:
    _, made, samples = small(name)
    order = made.order(rest)
    for node in made.nodes:
        whole = made.build(form_of([node], form, rest))
        expected = [values[0] for values in results(whole.data, samples[:1])]
        for cut in range(1, len(order)):
            if any(value in order[:cut] for value in made.outputs):
                continue  # what is before the cut is no output of the second part
            found = cut_results(made, rest, node, form, cut, samples[0])
            if rest == NODE and set(node.values) & set(made.outputs):
                # Between integers an output of a float node is rounded.
                expected = [
                    rounded(made.graph.tensor(value), values) for value, values in zip(made.outputs, expected, strict=True)
                ]
            check_same(found, expected)


def test_an_output_of_a_float_node_between_integers_can_come_out_unrounded() -> None:
    _, made, samples = small("two_by_two")
    node = next(node for node in made.nodes if node.op_name == "ADD")  # an output, and read by a dense layer
    forms = form_of([node], FLOAT, NODE)
    whole = results(made.build(forms).data, samples[:1])
    head = made.build(forms, node.values, native=True, real=node.values)
    interpreter = models.run(head.data, samples[0], "builtin", preserve=False)
    exact = interpreter.get_tensor(head.real[node.values[0]])
    np.testing.assert_array_equal(exact, whole[made.outputs.index(node.values[0])][0])
    tensor = made.graph.tensor(node.values[0])
    integers = interpreter.get_tensor(head.tensors[0])
    assert integers.dtype == np.int8
    np.testing.assert_array_equal(real(tensor, integers), rounded(tensor, exact))


def test_constants_that_operators_share_are_held_once() -> None:
    _, made, _ = small("shared_weights")
    for forms in ({}, form_of(made.nodes)):
        buffers = [buffer for buffer in unpack(Model(made.build(forms).data)).buffers if buffer.data is not None]
        assert sorted(len(buffer.data) for buffer in buffers) == [256 if forms else 1024]


def test_the_outputs_are_in_the_quantized_models_order_each_once() -> None:
    floating, quantized, samples = pair_of("two_by_two")
    unpacked = unpack(Model(quantized))
    main = unpacked.subgraphs[0]
    main.outputs = np.array([main.outputs[1], main.outputs[0], main.outputs[1]], dtype=np.int32)
    # As often in the float model, or the two would be no pair.
    other = unpack(Model(floating))
    other.subgraphs[0].outputs = np.array([other.subgraphs[0].outputs[i] for i in (1, 0, 1)], dtype=np.int32)
    made = mixed_models(pack(other), pack(unpacked))
    found, plain = results(made.build(lambda node: NODE).data, samples), results(quantized, samples)
    check_same(found, plain[::-1])


def test_an_input_that_is_an_output_is_none() -> None:
    floating, quantized, samples = pair_of("chain")
    passed = []
    for data in (floating, quantized):
        unpacked = unpack(Model(data))
        unpacked.subgraphs[0].outputs = np.array([*unpacked.subgraphs[0].outputs, *unpacked.subgraphs[0].inputs], np.int32)
        passed.append(pack(unpacked))
    made = mixed_models(*passed)
    assert len(made.outputs) == 1
    check_same(results(made.build(lambda node: NODE).data, samples), results(quantized, samples))


# -- nodes -----------------------------------------------------------------------------------------------------------------


def test_names_of_nodes() -> None:
    _, made, _ = small("mixed")
    split = next(node for node in made.nodes if node.op_name == "SPLIT")
    assert made.node("functional_1/split") is split
    assert split.values == tuple(made.value(f"functional_1/split{end}") for end in ("", "1"))
    assert split.name == "functional_1/split"
    with pytest.raises(OptionError, match=r"got node 'functional_1/Tan', .*functional_1/Tanh"):
        made.node("functional_1/Tan")


def test_what_counts_as_quantized() -> None:
    def decided(x: Any) -> Any:
        return tf.argmax(tf.matmul(x, drawn(8, 6)), -1, output_type=tf.int32)

    converter = converter_of(decided, [spec(1, 8)], normal((1, 8)))
    floating = load_float_model(float_bytes(converter))
    quantized = floating.calibrate(normal((1, 8)), progress=False).quantize("int8").data
    made = mixed_models(floating.data, quantized)
    # ARG_MAX gives no real numbers, but reads integers, of which several may be equal.
    assert [(node.op_name, node.quantized, node.weighted) for node in made.nodes] == [
        ("FULLY_CONNECTED", True, True), ("ARG_MAX", True, False)
    ]  # fmt: skip
    samples = list(normal((1, 8), count=5, seed=3)())
    check_same(results(made.build(lambda node: NODE).data, samples), results(quantized, samples))
    logits = [floats @ np.asarray(drawn(8, 6)) for (floats,) in samples]
    tensor = made.graph.tensor(made.nodes[0].values[0])
    wanted = [rounded(tensor, values).argmax(-1) for values in logits]
    alone = results(made.build(form_of(made.nodes[1:])).data, samples)[0]
    np.testing.assert_array_equal(alone, np.stack(wanted))
