"""Which operator belongs to which, in models of different tools: fused, split, reordered, inserted, renamed, retrained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import models
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import conv, converter_of, float_bytes, spec, weights
from shared_data import samples as real_samples

from tflite_qdebug import tf_private
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.flatbuffer import Writer, drop_unused_codes, pack, unpack, with_renamed
from tflite_qdebug.edit.weights import cast_weights_to_float16
from tflite_qdebug.errors import ModelError
from tflite_qdebug.match import Match, match_models
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)


class Pair(NamedTuple):
    floating: bytes
    quantized: bytes
    samples: list[list[np.ndarray]]

    def match(self) -> Match:
        return match_models(Model(self.floating), Model(self.quantized))

    def named(self) -> dict[tuple[str, int], tuple[str, int]]:
        """Returns who belongs to whom, each as its type and which of that type it is, in order: ``{float: quantized}``."""
        mine, others = numbered(Model(self.floating)), numbered(Model(self.quantized))
        return {mine[pair.float_operator]: others[pair.quantized_operator] for pair in self.match().operators}

    def run(self) -> Run:
        return pair_error(self.floating, self.quantized, self.samples, parts=True, backend=BACKEND, progress=False)


def numbered(model: Model) -> dict[int, tuple[str, int]]:
    counts: dict[str, int] = {}
    found = {}
    for operator in model.main.operators:
        found[operator.index] = operator.name, counts.setdefault(operator.name, 0)
        counts[operator.name] += 1
    return found


def normal(*shape: int, count: int = 6) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(11)
    return [[generator.normal(size=shape).astype(np.float32)] for _ in range(count)]


def pair(floating: Callable[..., Any], quantized: Callable[..., Any], shape: tuple[int, ...], dynamic: bool = False) -> Pair:
    """Returns the float model of one function and the int8 model of another."""
    samples = normal(*shape)
    with tf_private.captured_chatter():
        first, second = (
            float_bytes(converter_of(function, [spec(*((None, *shape[1:]) if is_dynamic else shape))]))
            for function, is_dynamic in ((floating, dynamic), (quantized, False))
        )
    data = load_float_model(second).calibrate(samples, "exposed", histograms=False, progress=False).quantize("int8").data
    return Pair(first, data, samples)


def check_sane(run: Run, most: float = 1.0) -> None:
    """Nothing is wrong with the model, so each row has little more than rounding in it."""
    steps = run.columns()["rmse_over_scale"]
    known = steps[~np.isnan(steps)]
    assert len(known) >= 2
    assert known.max() < most, [(layer.op_name, layer.node, step) for layer, step in zip(run.layers, steps, strict=True)]


# -- names and order -------------------------------------------------------------------------------------------------------


@functools.cache
def small(name: str) -> Pair:
    float_model = models.calibrated(name).float_model
    assert float_model is not None
    return Pair(float_model.data, models.calibrated(name).quantize("int8").data, models.samples(name, 3, seed=1))


SMALL = ["mixed", "chain", "two_by_two", "weighty", "attention", "scalars", "lstm", "embedding", "with_cosine"]


@pytest.mark.parametrize("name", SMALL)
def test_renamed_tensors(name: str) -> None:
    known = small(name)
    renamed = known._replace(quantized=with_renamed(Model(known.quantized), lambda index, old: f"t{index}"))
    inputs = [tensor.shape for tensor in (Model(known.floating).main.tensors[i] for i in Model(known.floating).main.inputs)]
    assert len(set(inputs)) == len(inputs)  # else their order alone would tell them apart
    wanted = known.named()
    assert renamed.named() == wanted
    assert not renamed.match().unmatched_quantized
    assert not any("name" in found.evidence for found in renamed.match().operators)
    np.testing.assert_array_equal(renamed.run().statistics.sums, known.run().statistics.sums)


def test_digits_that_a_converter_adds_do_not_mislead() -> None:
    """TensorFlow's quantizer calls relu_1 relu_11, as the float model calls the eleventh."""
    kernels = [weights(6, 6, seed=seed) for seed in range(13)]

    def function(x: Any) -> Any:
        for kernel in kernels:
            x = tf.nn.tanh(tf.matmul(x, kernel))
        return x

    known = pair(function, function, (1, 6))
    turns = [op.outputs[0] for op in Model(known.floating).main.operators if op.name == "TANH"]
    others = [op.outputs[0] for op in Model(known.quantized).main.operators if op.name == "TANH"]
    named = known._replace(
        floating=with_renamed(Model(known.floating), lambda i, old: f"tanh_{turns.index(i)}" if i in turns else f"f{i}"),
        quantized=with_renamed(Model(known.quantized), lambda i, old: f"tanh_{others.index(i)}1" if i in others else f"q{i}"),
    )
    assert {a: b for a, b in named.named().items() if a[0] == "TANH"} == {("TANH", i): ("TANH", i) for i in range(13)}
    check_sane(named.run(), 3.0)


def branches(x: Any) -> Any:
    left = tf.nn.relu(conv(x, weights(3, 3, 4, 4, seed=1)))
    right = tf.nn.relu(conv(x, weights(3, 3, 4, 4, seed=2)))
    left, right = (conv(side, weights(3, 3, 4, 4, seed=seed)) for side, seed in ((left, 3), (right, 4)))
    return left - tf.nn.tanh(right)


def test_branches_in_another_order() -> None:
    known = pair(branches, branches, (1, 6, 6, 4))
    unpacked = unpack(Model(known.quantized))
    main = unpacked.subgraphs[0]
    waiting, done, order = list(main.operators), set(map(int, main.inputs)), []
    produced = {int(output) for operator in waiting for output in operator.outputs}
    while waiting:  # the last one that can go next
        ready = next(op for op in reversed(waiting) if all(int(i) in done or int(i) not in produced for i in op.inputs))
        waiting.remove(ready)
        order.append(ready)
        done.update(map(int, ready.outputs))
    assert order != main.operators
    main.operators = order
    plain = known._replace(quantized=with_renamed(Model(pack(unpacked)), lambda index, old: f"t{index}"))
    run, wanted = plain.run(), known.run()
    rows = {layer.tensor_idx: i for i, layer in enumerate(wanted.layers)}
    for i, layer in enumerate(run.layers):
        assert layer.op_name == "QUANTIZE" or layer.node == wanted.layers[rows[layer.tensor_idx]].node
        assert run.statistics.rmse[i] == wanted.statistics.rmse[rows[layer.tensor_idx]]


# -- activations -----------------------------------------------------------------------------------------------------------

RELU = 1


def fused(data: bytes, wanted: bool) -> list[Any]:
    unpacked = unpack(Model(data))
    return [
        op
        for op in unpacked.subgraphs[0].operators
        if (getattr(op.builtinOptions, "fusedActivationFunction", 0) == RELU) == wanted
    ]


def separated(data: bytes) -> bytes:
    """Returns the model with a RELU behind each operator that has it fused; integers: with the same scale."""
    unpacked = unpack(Model(data))
    writer = Writer(unpacked)
    main, operators = unpacked.subgraphs[0], []
    for operator in main.operators:
        operators.append(operator)
        if getattr(operator.builtinOptions, "fusedActivationFunction", 0) != RELU:
            continue
        operator.builtinOptions.fusedActivationFunction = 0
        output = int(operator.outputs[0])
        before = writer.add_tensor(f"before_{output}", main.tensors[output], main.tensors[output].type)
        main.tensors[before].quantization = main.tensors[output].quantization
        operator.outputs = np.array([before], np.int32)
        behind = writer.schema.OperatorT()
        behind.opcodeIndex = writer.add_code("RELU", 2)
        behind.inputs, behind.outputs = np.array([before], np.int32), np.array([output], np.int32)
        operators.append(behind)
    main.operators = operators
    return pack(unpacked)


def without_activation(data: bytes) -> bytes:
    """Returns the model without fused RELUs, which the range of integers that begins at 0.0 makes anyway."""
    unpacked = unpack(Model(data))
    for operator in unpacked.subgraphs[0].operators:
        if getattr(operator.builtinOptions, "fusedActivationFunction", 0) == RELU:
            operator.builtinOptions.fusedActivationFunction = 0
    return pack(unpacked)


def rectified(x: Any) -> Any:
    for seed in range(3):
        x = tf.nn.relu(conv(x, weights(3, 3, 4, 4, seed=seed)))
    return tf.reduce_mean(x, axis=(1, 2))


@pytest.mark.parametrize(
    ("floating", "quantized"),
    [
        (separated, bytes),
        (bytes, separated),
        (bytes, without_activation),
        (separated, without_activation),
    ],
)
def test_a_relu_fused_here_and_separate_or_left_out_there(floating: Any, quantized: Any) -> None:
    known = pair(rectified, rectified, (1, 6, 6, 4))
    assert len(fused(known.quantized, True)) == 3
    other = Pair(
        floating(known.floating), with_renamed(Model(quantized(known.quantized)), lambda i, old: f"t{i}"), known.samples
    )
    match = other.named()
    assert [match["CONV_2D", i] for i in range(3)] == [("CONV_2D", i) for i in range(3)]
    assert match["MEAN", 0] == ("MEAN", 0)
    run, wanted = other.run(), known.run()
    check_sane(run)
    # Behind each RELU the numbers are those of the plain pair, wherever it is computed.
    rows = [
        i for i, layer in enumerate(run.layers) if layer.op_name in ("CONV_2D", "MEAN") and layer.reference == "float model"
    ]
    plain = {(*layer.shape, layer.scale): i for i, layer in enumerate(wanted.layers)}
    mean = [i for i in rows if run.layers[i].op_name == "MEAN"]
    assert len(mean) == 1
    for i in mean:
        there = plain[(*run.layers[i].shape, run.layers[i].scale)]
        for part in ("accumulated", "own"):
            assert run.parts[part].rmse[i] == pytest.approx(wanted.parts[part].rmse[there], rel=1e-5)
    if quantized is not separated:
        assert len(rows) == 4
        np.testing.assert_allclose(run.statistics.rmse, wanted.statistics.rmse, rtol=1e-5, atol=1e-9)


# -- inserted and replaced operators ---------------------------------------------------------------------------------------


class Inserter:
    """Puts operators into a model as a tool without TensorFlow's simplifications leaves them."""

    def __init__(self, data: bytes) -> None:
        self.model, self.unpacked = Model(data), unpack(Model(data))
        self.writer, self.main = Writer(self.unpacked), self.unpacked.subgraphs[0]

    def operators(self, name: str) -> list[Any]:
        table = self.main.operators
        return [table[operator.index] for operator in self.model.main.operators if operator.name == name]

    def tensor(self, like: int, shape: Any) -> int:
        source = self.main.tensors[like]
        index = self.writer.add_tensor(f"inserted_{len(self.main.tensors)}", source, source.type)
        made = self.main.tensors[index]
        made.quantization, made.shape, made.shapeSignature = source.quantization, np.array(shape, np.int32), None
        return index

    def constant(self, values: Any) -> int:
        values = np.array(values, np.int32)
        index = self.tensor(0, values.shape)
        made = self.main.tensors[index]
        made.type, made.quantization = self.writer.schema.TensorType.INT32, None
        made.buffer = self.writer.add_values(values)
        return index

    def operator(self, name: str, inputs: list[int], output: int) -> Any:
        made = self.writer.schema.OperatorT()
        made.opcodeIndex = self.writer.add_code(name, 2 if name in ("PAD", "TRANSPOSE") else 1)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        return made

    def before(self, operator: Any, made: Any, output: int) -> None:
        """Puts an operator before another, which reads its output instead of its first input."""
        at = next(i for i, one in enumerate(self.main.operators) if one is operator)
        self.main.operators.insert(at, made)
        operator.inputs = np.array([output, *operator.inputs[1:]], np.int32)

    def shape(self, index: int) -> list[int]:
        return [int(size) for size in self.main.tensors[index].shape]

    def packed(self) -> bytes:
        return pack(self.unpacked)


def padded(data: bytes) -> bytes:
    """PAD and convolutions without padding, where they have padding."""
    edit = Inserter(data)
    for operator in edit.operators("CONV_2D"):
        source = int(operator.inputs[0])
        batch, height, width, channels = edit.shape(source)
        target = edit.tensor(source, (batch, height + 2, width + 2, channels))
        edges = edit.constant([[0, 0], [1, 1], [1, 1], [0, 0]])
        edit.before(operator, edit.operator("PAD", [source, edges], target), target)
        operator.builtinOptions.padding = 1
    return edit.packed()


def turned(data: bytes) -> bytes:
    """TANH on channels first: TRANSPOSE there and back."""
    edit = Inserter(data)
    for operator in edit.operators("TANH"):
        source, output = int(operator.inputs[0]), int(operator.outputs[0])
        batch, height, width, channels = edit.shape(source)
        there, result = (edit.tensor(index, (batch, channels, height, width)) for index in (source, output))
        edit.before(operator, edit.operator("TRANSPOSE", [source, edit.constant([0, 3, 1, 2])], there), there)
        operator.outputs = np.array([result], np.int32)
        at = next(i for i, one in enumerate(edit.main.operators) if one is operator)
        back = edit.operator("TRANSPOSE", [result, edit.constant([0, 2, 3, 1])], output)
        edit.main.operators.insert(at + 1, back)
    return edit.packed()


def reshaped(data: bytes) -> bytes:
    """RESHAPE before each dense layer."""
    edit = Inserter(data)
    for operator in edit.operators("FULLY_CONNECTED"):
        source = int(operator.inputs[0])
        target = edit.tensor(source, (1, edit.shape(source)[-1]))
        edit.before(operator, edit.operator("RESHAPE", [source, edit.constant(edit.shape(target))], target), target)
    return edit.packed()


def squeezed(data: bytes) -> bytes:
    """SQUEEZE before each dense layer."""
    edit = Inserter(data)
    for operator in edit.operators("FULLY_CONNECTED"):
        source = int(operator.inputs[0])
        target = edit.tensor(source, (1, edit.shape(source)[-1]))
        made = edit.operator("SQUEEZE", [source], target)
        made.builtinOptionsType = edit.writer.schema.BuiltinOptions.SqueezeOptions
        made.builtinOptions = edit.writer.schema.SqueezeOptionsT()
        made.builtinOptions.squeezeDims = np.array([1, 2], np.int32)
        edit.before(operator, made, target)
    return edit.packed()


KERNEL = weights(3, 3, 4, 4, seed=7)
DENSE = weights(16, 8, seed=8)


def convolutions(x: Any) -> Any:
    return conv(tf.nn.tanh(conv(tf.nn.tanh(conv(x, KERNEL)), weights(3, 3, 4, 4, seed=9))), KERNEL)


def with_pixels(x: Any) -> Any:
    return tf.nn.tanh(tf.matmul(tf.reshape(tf.nn.tanh(x), (1, 16)), DENSE))


def with_shape(x: Any) -> Any:
    return tf.matmul(tf.reshape(tf.nn.tanh(x), tf.stack([tf.shape(x)[0], 16])), DENSE)


def with_constant(x: Any) -> Any:
    return tf.matmul(tf.reshape(tf.nn.tanh(x), (1, 16)), DENSE)


def in_halves(x: Any) -> Any:
    flat = tf.reshape(tf.nn.tanh(x), (1, 16))
    return tf.nn.tanh(tf.concat([tf.matmul(flat, DENSE[:, :4]), tf.matmul(flat, DENSE[:, 4:])], axis=1))


def operator_names(data: bytes) -> list[str]:
    return [op.name for op in Model(data).main.operators if op.name not in ("QUANTIZE", "DEQUANTIZE")]


def check_others_shape(known: Pair, most: float = 1.0) -> Run:
    """Checks a pair of different shape under other names: its rows are sane, and its outputs held against each other."""
    assert sorted(operator_names(known.floating)) != sorted(operator_names(known.quantized))
    renamed = known._replace(quantized=with_renamed(Model(known.quantized), lambda i, old: f"t{i}"))
    run, match = renamed.run(), renamed.named()
    check_sane(run, most)
    for kind in ("CONV_2D", "TANH", "RELU"):
        assert all(other == mine for mine, other in match.items() if mine[0] == kind)
    last = [i for i, layer in enumerate(run.layers) if layer.op_name != "QUANTIZE"][-1]
    assert run.layers[last].reference == "float model"
    errors = []
    for sample in known.samples:
        (ours,), (theirs,) = (models.outputs(data, sample, "builtin") for data in (known.floating, known.quantized))
        errors.append(theirs - ours)
    assert run.whole["quantized"].rmse[0] == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-3)
    assert run.whole["quantized"].sqnr_db[0] > 20
    return run


@pytest.mark.parametrize(
    ("floating", "quantized"), [(bytes, padded), (padded, bytes), (bytes, turned), (turned, bytes), (padded, turned)]
)
def test_padding_and_transposes_inserted_here_and_not_there(floating: Any, quantized: Any) -> None:
    known = pair(convolutions, convolutions, (1, 6, 6, 4))
    other = known._replace(floating=floating(known.floating), quantized=quantized(known.quantized))
    run = check_others_shape(other)
    kinds = [found.quantized_operator for found in other.match().operators]
    convolutional = [op.index for op in Model(other.quantized).main.operators if op.name in ("CONV_2D", "TANH")]
    assert set(convolutional) <= set(kinds)
    # The convolutions behind what differs have the numbers of the plain pair.
    wanted = known.run()
    assert run.parts["accumulated"].rmse[-1] == pytest.approx(wanted.parts["accumulated"].rmse[-1], rel=1e-5)
    assert run.statistics.rmse[-1] == pytest.approx(wanted.statistics.rmse[-1], rel=1e-5)


@pytest.mark.parametrize(("floating", "quantized"), [(bytes, turned), (turned, bytes)])
def test_values_in_another_order_are_not_taken_for_the_same_by_their_shape(floating: Any, quantized: Any) -> None:
    known = pair(convolutions, convolutions, (1, 4, 4, 4))
    other = known._replace(floating=floating(known.floating), quantized=quantized(known.quantized))
    run = check_others_shape(other)
    assert not any("disagree" in note for note in run.notes)


@pytest.mark.parametrize(
    ("floating", "quantized"), [(reshaped, squeezed), (squeezed, reshaped), (bytes, reshaped), (squeezed, bytes)]
)
def test_reshape_squeeze_or_neither(floating: Any, quantized: Any) -> None:
    def function(x: Any) -> Any:
        return tf.nn.tanh(tf.matmul(tf.nn.tanh(x), DENSE))

    known = pair(function, function, (1, 1, 1, 16))
    other = known._replace(floating=floating(known.floating), quantized=quantized(known.quantized))
    run, wanted = check_others_shape(other), known.run()
    assert other.named()["FULLY_CONNECTED", 0] == ("FULLY_CONNECTED", 0)
    assert run.parts["accumulated"].rmse[-1] == pytest.approx(wanted.parts["accumulated"].rmse[-1], rel=1e-5)


def test_arithmetic_of_shapes_against_a_constant() -> None:
    known = pair(with_shape, with_constant, (1, 4, 4, 1), dynamic=True)
    assert "SHAPE" in operator_names(known.floating)
    check_others_shape(known)
    assert not known.match().unmatched_float  # operators on shapes compute no values, and need no counterpart


@pytest.mark.parametrize(("floating", "quantized"), [(with_pixels, in_halves), (in_halves, with_pixels)])
def test_one_dense_layer_against_two_halves(floating: Any, quantized: Any) -> None:
    known = pair(floating, quantized, (1, 4, 4, 1))
    assert (
        operator_names(known.floating).count("FULLY_CONNECTED"),
        operator_names(known.quantized).count("FULLY_CONNECTED"),
    ) in (
        (1, 2),
        (2, 1),
    )
    run = check_others_shape(known)
    assert any("without a counterpart" in note for note in run.notes)


# -- the same again and again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("different", [True, False], ids=["own weights", "the same weights"])
def test_repeated_layers_are_matched_in_order(different: bool) -> None:
    def repeated(x: Any) -> Any:
        for seed in range(6):
            x = tf.nn.tanh(x + conv(x, weights(3, 3, 4, 4, seed=seed if different else 1)))
        return x

    known = pair(repeated, repeated, (1, 5, 5, 4))
    renamed = known._replace(quantized=with_renamed(Model(known.quantized), lambda i, old: f"t{i}"))
    match = renamed.named()
    assert len(match) == 18
    assert all(a == b for a, b in match.items()), match
    check_sane(renamed.run())


# -- models of others ------------------------------------------------------------------------------------------------------


def test_retrained_weights_are_matched_by_structure(shared_models: Any) -> None:
    folder = shared_models / "keyword_spotting"
    known = Pair(
        (folder / "kws_ref_float.tflite").read_bytes(),
        (folder / "kws_ref_model_int8.tflite").read_bytes(),
        real_samples("keyword_spotting/kws_ref_float"),
    )
    match = known.named()
    for kind, count in (("CONV_2D", 5), ("DEPTHWISE_CONV_2D", 4), ("FULLY_CONNECTED", 1), ("SOFTMAX", 1)):
        assert [match[kind, i] for i in range(count)] == [(kind, i) for i in range(count)]
    assert not known.match().unmatched_quantized
    run = known.run()
    assert any("not near those of the float model" in note and "not made from this float model" in note for note in run.notes)
    weighted = [layer for layer in run.layers if layer.op_name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    assert not any("constants" in layer.matched_by for layer in weighted)


def test_a_sibling_trained_with_quantization(shared_models: Any) -> None:
    folder = shared_models / "mobilenet_v1_0.25"
    name = "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float"
    files = [folder / f"mobilenet_v1_0.25_224_{end}.tflite" for end in ("float", "quant_QAT")]
    known = Pair(*(file.read_bytes() for file in files), real_samples(name))
    assert all(a == b for a, b in known.named().items() if a[0] not in ("SQUEEZE", "RESHAPE")), known.named()
    assert not known.match().unmatched_quantized
    assert not known.match().unmatched_float
    similar = [found.similarity for found in known.match().operators if found.similarity is not None]
    assert len(similar) == 28
    assert np.median(similar) > 0.8
    assert known.match().counts()["doubtful"] == 0


def test_inputs_or_outputs_that_differ_in_number_are_no_pair() -> None:
    with pytest.raises(ModelError, match="they are no pair"):
        match_models(Model(small("two_by_two").floating), Model(small("chain").quantized))


def test_a_model_of_a_thousand_operators() -> None:
    """Layers of one shape, with weights and without, under other names: what is hard for a matcher that compares all."""
    count, width = 500, 8
    unpacked = unpack(Model(models.float_tflite("dynamic_batch")))
    writer, generator = Writer(unpacked), np.random.default_rng(0)
    main = unpacked.subgraphs[0]
    dense = next(op for op in main.operators if op.builtinOptionsType == writer.schema.BuiltinOptions.FullyConnectedOptions)
    dense.builtinOptions.fusedActivationFunction = 0
    main.operators, main.tensors, unpacked.signatureDefs, unpacked.metadata = [], [], [], []

    def add(shape: list[int], values: np.ndarray | None = None) -> int:
        tensor = writer.schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"float_{len(main.tensors)}".encode(), shape, 0
        tensor.buffer = 0 if values is None else writer.add_values(values.astype(np.float32))
        main.tensors.append(tensor)
        return len(main.tensors) - 1

    last = add([1, width])
    main.inputs = np.array([last], np.int32)
    for _ in range(count):
        made, turned = add([1, width]), add([1, width])
        operator, activation = writer.schema.OperatorT(), writer.schema.OperatorT()
        operator.opcodeIndex, operator.builtinOptionsType = dense.opcodeIndex, dense.builtinOptionsType
        operator.builtinOptions = dense.builtinOptions
        kernel = add([width, width], generator.normal(size=(width, width)))
        operator.inputs, operator.outputs = np.array([last, kernel, -1], np.int32), np.array([made], np.int32)
        activation.opcodeIndex = writer.add_code("TANH", 1)
        activation.inputs, activation.outputs = np.array([made], np.int32), np.array([turned], np.int32)
        main.operators += [operator, activation]
        last = turned
    main.outputs = np.array([last], np.int32)
    drop_unused_codes(unpacked)
    data = pack(unpacked)
    other = with_renamed(Model(cast_weights_to_float16(Model(data))), lambda index, old: f"other_{index}")
    known = Pair(data, other, [])
    match = known.named()
    assert len(match) == 2 * count
    assert all(a == b for a, b in match.items())
    assert known.match().counts() == {"sure": count * 2, "likely": 0, "doubtful": 0} or known.match().counts()["doubtful"] == 0
