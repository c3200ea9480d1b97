from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from typing import Any

import control_flow_models as built
import numpy as np
import pytest
from contracts import check_edit_keeps_outputs
from models import float_tflite, outputs, run

from tflite_qdebug import edit, tf_private
from tflite_qdebug.analyses import control_flow
from tflite_qdebug.analyses.control_flow import bodies, body_dataset, body_samples, counterparts
from tflite_qdebug.analyses.layer_error import run_debug_model
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.edit.flatbuffer import expose, pack, unpack
from tflite_qdebug.edit.subgraphs import copy_passed_inputs, select_subgraph, with_ranges_of
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError, OptionError
from tflite_qdebug.model import Model

IN_PLACE = {"ADD", "SUB", "MUL", "DIV", "RESHAPE", "SOFTMAX"}
BUILTIN = Backend(kernels="builtin", workers=1)


def opened(model: Model, count: int = 5, seed: int = 0) -> Dataset:
    return open_dataset(built.samples(model, count, seed), model.input_specs())


def dense(x: np.ndarray, seed: int) -> np.ndarray:
    return x @ built.weights(seed) + built.weights(seed + 100)[0]


def path_to(model: Model, kind: str, number: int = 0) -> str:
    return [body.path for body in bodies(model) if body.kind == kind][number]


# ---------------------------------------------------------------------------------------------------------------- listing


def test_bodies_of_a_loop() -> None:
    cond, body = bodies(Model(built.loop()))
    assert (cond.path, cond.kind, cond.subgraph) == ("main/while:1/cond", "cond", 1)
    assert (body.path, body.kind, body.subgraph) == ("main/while:1/body", "body", 2)
    assert (body.parent, body.operator, body.op_name, body.called, body.refusal) == (0, 1, "WHILE", (1, 2), None)


def test_bodies_within_bodies() -> None:
    assert [body.path for body in bodies(Model(built.nested()))] == [
        "main/while:0/cond",
        "main/while:0/body",
        "main/while:0/body/if:3/then",
        "main/while:0/body/if:3/then/while:0/cond",
        "main/while:0/body/if:3/then/while:0/body",
        "main/while:0/body/if:3/else",
    ]
    assert [body.path for body in bodies(Model(built.composite()))] == ["main/composite:1/decomposition"]
    assert [body.path for body in bodies(Model(built.branches()))] == ["main/if:3/then", "main/if:3/else"]
    assert bodies(Model(select_subgraph(Model(built.loop()), 2))) == []


def test_bodies_of_a_quantized_model_and_of_its_float_model() -> None:
    quantized, floating = Model(built.quantized("loop")), Model(built.loop())
    assert path_to(quantized, "body") == "main/while:3/body"  # behind QUANTIZE and DEQUANTIZE
    assert {path: body.path for path, body in counterparts(quantized, floating).items()} == {
        "main/while:3/cond": "main/while:1/cond",
        "main/while:3/body": "main/while:1/body",
    }
    nested = counterparts(Model(built.quantized("nested")), Model(built.nested()))
    assert {path: body.path for path, body in nested.items()} == {
        body.path: body.path for body in bodies(Model(built.nested()))
    }
    assert counterparts(quantized, Model(built.branches())) == {}


# ------------------------------------------------------------------------------------------------------- what they receive


def test_loop_receives_each_iteration() -> None:
    model = Model(built.loop())
    dataset = opened(model, 10)  # steps 0, 1, 2, 3, 4, 0, ...
    got = list(body_samples(model, "main/while:1/body", dataset, BUILTIN))
    expected = []
    for number, (x, steps) in enumerate(built.samples(model, 10)):
        state = np.maximum(dense(x, 0), 0.0)
        for step in range(int(steps)):
            expected.append((number, step, state, steps))
            state = np.tanh(dense(state, 1)) * 1.5
    assert [sample.index for sample in got] == list(range(20))
    assert len(expected) == 20
    for sample, (number, step, state, steps) in zip(got, expected, strict=True):
        assert sample.label == (number, step)
        assert (int(sample.inputs[0]), int(sample.inputs[2])) == (step, int(steps))
        np.testing.assert_allclose(sample.inputs[1], state, rtol=1e-4, atol=1e-5)


def test_condition_is_asked_once_more_than_the_body_runs() -> None:
    model = Model(built.loop())
    got = list(body_samples(model, "main/while:1/cond", opened(model), BUILTIN))
    assert [sample.label for sample in got] == [(number, step) for number in range(5) for step in range(number + 1)]
    assert [int(sample.inputs[0]) for sample in got] == [step for number in range(5) for step in range(number + 1)]


@pytest.mark.parametrize("kernels", ["auto", "builtin", "reference"])
def test_last_iteration_gives_what_the_loop_gives(kernels: str) -> None:
    # The runtime's own WHILE, run as a whole in the quantized model, is the witness.
    model = Model(built.quantized("loop"))
    loop = next(operator for operator in model.main.operators if operator.name == "WHILE")
    exposed, backend = expose(model, loop.outputs), Backend(kernels=kernels, workers=1)
    body = Model(select_subgraph(model, bodies(model)[1].subgraph))
    for inputs in built.samples(model, 5)[1:]:
        *_, last = body_samples(model, "main/while:3/body", open_dataset([inputs], model.input_specs()), backend)
        whole, own = backend.open(exposed), backend.open(body.data)
        whole.invoke(inputs)
        own.invoke(last.inputs)
        for index, output in zip(loop.outputs, own.read_outputs(), strict=True):
            np.testing.assert_array_equal(output, whole.read(index))


def test_branch_receives_the_samples_that_take_it() -> None:
    model = Model(built.branches())
    samples = built.samples(model, 12)
    taken = [float(x.sum()) > 0 for (x,) in samples]
    assert 3 <= sum(taken) <= 9
    for kind in ("then", "else"):
        expected = [(i, np.maximum(dense(x, 0), 0.0)) for i, (x,) in enumerate(samples) if taken[i] == (kind == "then")]
        got = list(body_samples(model, f"main/if:3/{kind}", opened(model, 12), BUILTIN))
        assert [sample.label for sample in got] == [(number,) for number, _ in expected]
        for sample, (_, state) in zip(got, expected, strict=True):
            np.testing.assert_allclose(sample.inputs[0], state, rtol=1e-4, atol=1e-5)


def test_loop_in_a_branch_in_a_loop() -> None:
    model = Model(built.nested())
    path = "main/while:0/body/if:3/then/while:0/body"
    expected = []
    for number, (x, steps) in enumerate(built.samples(model, 5)):
        state = x
        for step in range(int(steps)):
            if step % 2 == 0:
                state = np.tanh(dense(state, 3))
                continue
            for inner in range(2):
                expected.append(((number, step, inner), inner, state))
                state = np.sin(dense(state, 4))
    got = list(body_samples(model, path, opened(model), BUILTIN))
    assert len(expected) == 8  # two iterations for 2 steps, two for 3, four for 4
    assert [sample.label for sample in got] == [origin for origin, _, _ in expected]
    for sample, (_, inner, state) in zip(got, expected, strict=True):
        assert int(sample.inputs[0]) == inner
        np.testing.assert_allclose(sample.inputs[1], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["float", "int16x8"])
def test_decomposition_receives_the_inputs_of_the_composite_operator(kind: str) -> None:
    model = Model(built.composite() if kind == "float" else built.quantized("composite", kind))
    (body,) = bodies(model)
    alone = select_subgraph(model, body.subgraph)
    exposed = expose(model, model.main.operators[body.operator].outputs)
    got = list(body_samples(model, body.path, opened(model), BUILTIN))
    for sample, inputs in zip(got, built.samples(model, 5), strict=True):
        if kind == "float":
            np.testing.assert_allclose(sample.inputs[0], np.maximum(dense(inputs[0], 0), 0.0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(outputs(alone, sample.inputs, "builtin")[0], outputs(exposed, inputs, "builtin")[-1])


def test_decomposition_of_a_real_model(shared_models: Any) -> None:
    built.require_composites()
    model = Model(shared_models / "structure" / "sdpa_composite.tflite")
    (body,) = bodies(model)
    assert body.path == "main/composite:5/decomposition"
    x = np.random.default_rng(0).normal(size=(1, 32, 128)).astype(np.float32)
    (sample,) = body_samples(model, body.path, open_dataset([[x]], model.input_specs()), BUILTIN)
    assert [values.shape for values in sample.inputs] == [(1, 32, 1, 128)] * 3
    (got,) = outputs(select_subgraph(model, body.subgraph), sample.inputs, "builtin")
    exposed = expose(model, model.main.operators[body.operator].outputs)
    np.testing.assert_array_equal(got, outputs(exposed, [x], "builtin")[-1])


def test_nothing_but_the_present_sample_is_read() -> None:
    model = Model(built.loop())
    read = []

    def endless() -> Any:
        for number in itertools.count():
            read.append(number)
            yield [np.ones((1, built.SIZE), np.float32), np.array(3, np.int32)]

    taken = list(itertools.islice(body_samples(model, "main/while:1/body", open_dataset(endless, model.input_specs())), 7))
    assert [sample.label for sample in taken] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert len(read) == 3


def test_quantized_input_that_goes_straight_into_the_operator() -> None:
    # The float sample is quantized as the interpreter would do it.
    unpacked = unpack(Model(built.quantized("composite", "int16x8")))
    main, inner = unpacked.subgraphs
    quantize, _, _, composite, *_ = main.operators
    # The main subgraph is left with the composite operator, which reads int16; so does the decomposition.
    main.inputs = composite.inputs = quantize.outputs
    main.operators, main.outputs = [composite], composite.outputs
    inner.tensors[inner.inputs[0]].type = main.tensors[quantize.outputs[0]].type
    inner.tensors[inner.inputs[0]].quantization = main.tensors[quantize.outputs[0]].quantization
    edited = Model(pack(unpacked))
    (spec,) = edited.input_specs()
    x = np.random.default_rng(0).normal(size=(1, built.SIZE)).astype(np.float32)
    (sample,) = body_samples(edited, "main/composite:0/decomposition", open_dataset([[x]], [spec]), BUILTIN)
    scale = edited.main.tensors[edited.main.inputs[0]].quantization.scale[0]
    assert sample.inputs[0].dtype == np.int16
    np.testing.assert_array_equal(sample.inputs[0], np.clip(np.round(x / scale), -32768, 32767).astype(np.int16))


def with_last_operator_as_composite(data: bytes) -> bytes:
    """The model with its last operator, and no other, inside of a composite operator."""
    built.require_composites()
    schema, unpacked = tf_private.schema(), unpack(Model(data))
    main, inner = unpacked.subgraphs[0], copy.deepcopy(unpacked.subgraphs[0])
    last = main.operators[-1]
    inner.name, inner.operators = b"decomposition", inner.operators[-1:]
    inner.inputs, inner.outputs = last.inputs[:1], last.outputs
    for tensor in inner.tensors:
        tensor.isVariable = False
    unpacked.subgraphs.append(inner)
    options = schema.StableHLOCompositeOptionsT()
    options.decompositionSubgraphIndex = len(unpacked.subgraphs) - 1
    last.opcodeIndex, last.inputs = edit.flatbuffer.Writer(unpacked).add_code("STABLEHLO_COMPOSITE", 1), inner.inputs
    last.builtinOptionsType, last.builtinOptions = 0, None
    last.builtinOptions2Type, last.builtinOptions2 = schema.BuiltinOptions2.StableHLOCompositeOptions, options
    return pack(unpacked)


@pytest.mark.parametrize("sequence", [False, True])
def test_state_of_a_recurrent_layer_before_the_body(sequence: bool) -> None:
    data = float_tflite("lstm")
    model = Model(with_last_operator_as_composite(data))
    assert any(tensor.is_variable for tensor in model.main.tensors)
    (body,) = bodies(model)
    rows = np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)
    dataset = open_dataset([[rows]] * 3, model.input_specs())
    got = [sample.inputs[0] for sample in body_samples(model, body.path, dataset, BUILTIN, sequence=sequence)]
    last = Model(data).main.operators[-1].inputs[0]
    witness = BUILTIN.open(expose(Model(data), [last]))
    for state in got:
        if not sequence:
            witness.reset_variables()
        witness.invoke([rows])
        np.testing.assert_array_equal(state, witness.read(last))
    assert np.array_equal(got[0], got[1]) != sequence


# ------------------------------------------------------------------------------------------------------------ as a dataset


def test_dataset_of_a_body() -> None:
    model = Model(built.quantized("loop"))
    dataset = body_dataset(model, "main/while:3/body", opened(model), BUILTIN)
    body = Model(select_subgraph(model, bodies(model)[1].subgraph))
    assert [(spec.name, spec.shape) for spec in dataset.inputs] == [(s.name, s.shape) for s in body.input_specs()]
    assert (dataset.length, dataset.role) == (None, "debug dataset in main/while:3/body")
    assert dataset.description == "what main/while:3/body receives on list (5 samples)"
    first = list(dataset)
    assert (len(first), dataset.length) == (10, 10)
    for one, other in zip(first, dataset, strict=True):  # a second pass is the same
        assert one.label == other.label
        for left, right in zip(one.inputs, other.inputs, strict=True):
            np.testing.assert_array_equal(left, right)


def planted(data: bytes) -> bytes:
    """The quantized loop with the scale of the body's weights doubled; bias and its scale go with it, so that it stays."""
    unpacked = unpack(Model(data))
    body = Model(data).subgraphs[2]
    operator = next(operator for operator in body.operators if operator.name == "FULLY_CONNECTED")
    weights, bias = (unpacked.subgraphs[2].tensors[index] for index in operator.inputs[1:])
    for tensor in (weights, bias):
        tensor.quantization.scale = np.asarray(tensor.quantization.scale) * np.float32(2)
    buffer = unpacked.buffers[bias.buffer]
    buffer.data = np.frombuffer((np.asarray(buffer.data).view(np.int32) // 2).tobytes(), np.uint8)
    return pack(unpacked)


def dense_error(model: Model, states: list[np.ndarray]) -> tuple[float, float]:
    """RMSE of the body's quantized dense layer, and its scale, in numpy: states through int8, weights as they stand there."""
    body = model.subgraphs[2]
    operator = next(operator for operator in body.operators if operator.name == "FULLY_CONNECTED")
    x, weights, bias = (body.tensors[index] for index in operator.inputs)
    output = body.tensors[operator.outputs[0]]
    squares = []
    for state in states:
        integers = np.clip(np.round(state / x.quantization.scale[0]) + x.quantization.zero_point[0], -128, 127)
        real = (integers - x.quantization.zero_point[0]) * np.float64(x.quantization.scale[0])
        wide = model.constant(weights).astype(np.float64) * weights.quantization.scale[:, None]
        exact = real @ wide.T + model.constant(bias) * np.float64(bias.quantization.scale)
        steps = np.clip(np.round(exact / output.quantization.scale[0]) + output.quantization.zero_point[0], -128, 127)
        quantized = (steps - output.quantization.zero_point[0]) * np.float64(output.quantization.scale[0])
        squares.append((quantized - dense(real, 1)) ** 2)
    return float(np.sqrt(np.mean(squares))), float(output.quantization.scale[0])


def measured(model: Model, seed: int = 0) -> tuple[Any, list[np.ndarray]]:
    """The layers of the loop's body, and the states that it received."""
    path, floating = path_to(model, "body"), Model(built.loop())
    float_body = Model(select_subgraph(floating, counterparts(model, floating)[path].subgraph))
    quantized_body = Model(select_subgraph(model, bodies(model)[1].subgraph))
    dataset = body_dataset(model, path, opened(model, 15, seed), BUILTIN)
    run = run_debug_model(edit.debug_pair(float_body, quantized_body), dataset, BUILTIN)
    return run.frame(), [sample.inputs[1] for sample in dataset]


def test_layers_of_a_body_are_measured() -> None:
    model = Model(built.quantized("loop"))
    layers, states = measured(model)
    assert len(states) == 30
    row = layers[layers.op_name == "FULLY_CONNECTED"].iloc[0]
    rmse, scale = dense_error(model, states)
    assert 0.25 < rmse / scale < 0.7  # rounding, and little else
    assert row.rmse_over_scale == pytest.approx(rmse / scale, rel=1e-3)
    assert {"FULLY_CONNECTED", "TANH", "MUL"} <= set(layers.op_name)


def test_error_planted_in_a_body_is_the_worst_layer() -> None:
    model = Model(planted(built.quantized("loop")))
    layers, states = measured(model)
    worst = layers.sort_values("rmse_over_scale").iloc[-1]
    assert worst.op_name == "FULLY_CONNECTED"
    rmse, scale = dense_error(model, states)
    assert rmse / scale > 10
    assert worst.rmse_over_scale == pytest.approx(rmse / scale, rel=1e-3)
    others = layers[layers.op_name.isin(["TANH", "MUL"])]
    assert len(others) == 2
    assert (others.rmse_over_scale < 1.0).all()


# -------------------------------------------------------------------------------------------------------- recurrent layers


@functools.cache
def calibrated(name: str) -> CalibratedModel:
    """Calibrated by TensorFlow on a model whose loop hands on a copy; the calibrator dies of the model itself."""
    floating = load_float_model(built.recurrent(name))
    copied = load_float_model(copy_passed_inputs(floating.model))
    assert copied.data != floating.data
    ranged = copied.calibrate(built.samples(floating.model, 10)).model
    return CalibratedModel(floating, with_ranges_of(floating.model, ranged))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_copied_inputs_change_no_output(name: str) -> None:
    model = Model(built.recurrent(name))
    copied = Model(copy_passed_inputs(model))
    for before, after in zip(model.subgraphs, copied.subgraphs, strict=True):
        assert after.tensors[: len(before.tensors)] == tuple(
            dataclasses.replace(tensor, buffer=same.buffer) for tensor, same in zip(before.tensors, after.tensors, strict=False)
        )
        if before.name.endswith("while_body"):
            assert set(before.inputs) & {index for index in before.outputs if before.tensors[index].is_float}
            assert not set(after.inputs) & {index for index in after.outputs if after.tensors[index].is_float}
    check_edit_keeps_outputs(model.data, copied.data, built.samples(model, 3), "builtin")


def test_nothing_is_copied_without_need() -> None:
    for data in (built.loop(), built.branches(), built.composite()):
        assert copy_passed_inputs(Model(data)) == data


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_ranges_in_a_recurrent_layer(name: str) -> None:
    # The witness: each iteration of the loop, run by itself with everything exposed.
    model = calibrated(name).model
    (body,) = (body for body in bodies(model) if body.kind == "body")
    alone = Model(select_subgraph(model, body.subgraph))
    samples = list(body_samples(model, body.path, opened(model, 10), Backend(kernels="reference")))
    assert len(samples) == 10 * 5
    runs = [run(alone.data, sample.inputs, "reference") for sample in samples]
    # These write their result over an input, which TensorFlow's calibrator then counts too.
    in_place = {index for op in alone.main.operators if op.name in IN_PLACE for index in op.inputs}
    compared = 0
    for index in alone.main.producers:
        tensor = alone.main.tensors[index]
        if tensor.is_float:
            values = np.concatenate([ran.get_tensor(index).reshape(-1) for ran in runs])
            assert tensor.minimum <= values.min() + 1e-5
            assert tensor.maximum >= values.max() - 1e-5
            if index not in in_place and values.max() > 0:
                np.testing.assert_allclose((tensor.minimum, tensor.maximum), (values.min(), values.max()), rtol=1e-4, atol=1e-5)
                compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_layers_of_a_quantized_recurrent_layer(name: str) -> None:
    floating, quantized = Model(built.recurrent(name)), Model(calibrated(name).quantize("int8").data)
    path = path_to(quantized, "body")
    inner = Model(select_subgraph(quantized, {body.path: body.subgraph for body in bodies(quantized)}[path]))
    integers = [operator for operator in inner.main.operators if inner.main.tensors[operator.outputs[0]].is_quantized]
    assert sum(operator.name == "FULLY_CONNECTED" for operator in integers) == 2
    for inputs in built.samples(floating, 5):
        exact = outputs(floating.data, inputs)[0]
        assert np.abs(outputs(quantized.data, inputs)[0] - exact).max() < 0.15 * np.abs(exact).max() + 0.02
    float_body = Model(select_subgraph(floating, counterparts(quantized, floating)[path].subgraph))
    dataset = body_dataset(quantized, path, opened(quantized, 6), BUILTIN)
    run = run_debug_model(edit.debug_pair(float_body, inner), dataset, BUILTIN)
    assert run.statistics.samples == 6 * 5
    layers = run.frame()
    dense_layers = layers[layers.op_name == "FULLY_CONNECTED"]
    assert len(dense_layers) == 2
    assert (dense_layers.rmse_over_scale < 1.0).all()
    assert (dense_layers.sqnr_db > 25).all()


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_unknown_path() -> None:
    model = Model(built.loop())
    with pytest.raises(OptionError, match=r"main/while:1/bdy.*expected one of the model's.*Did you mean 'main/while:1/body'"):
        list(body_samples(model, "main/while:1/bdy", opened(model)))
    with pytest.raises(OptionError, match="the model's: none"):
        body_dataset(Model(select_subgraph(model, 2)), "main", opened(model))


def test_body_that_never_runs() -> None:
    model = Model(built.loop())
    never = open_dataset([[np.ones((1, built.SIZE), np.float32), np.array(0, np.int32)]] * 3, model.input_specs())
    with pytest.raises(DatasetError, match="main/while:1/body never runs on the 3 samples of the debug dataset"):
        list(body_samples(model, "main/while:1/body", never))
    with pytest.raises(DatasetError, match="never runs on the 3 samples"):
        list(body_dataset(model, "main/while:1/body", never))
    assert len(list(body_samples(model, "main/while:1/cond", never))) == 3


def test_endless_loop() -> None:
    # The runtime's own WHILE would not come back.
    model = Model(built.endless())
    path = path_to(model, "body")
    ending, endless = -np.ones((1, built.SIZE), np.float32), np.ones((1, built.SIZE), np.float32)
    dataset = open_dataset([[ending], [endless]], model.input_specs())
    samples = body_samples(model, path, dataset, BUILTIN, max_iterations=20)
    assert [next(samples).label for _ in range(20)] == [(1, step) for step in range(20)]
    with pytest.raises(InterpreterError, match=r"the loop goes on after 20 iterations on sample 1.*raise max_iterations"):
        next(samples)
    with pytest.raises(OptionError, match="got max_iterations=0"):
        next(body_samples(model, path, dataset, max_iterations=0))


def test_limit_of_iterations_is_no_less() -> None:
    model = Model(built.loop())
    dataset = open_dataset([[np.ones((1, built.SIZE), np.float32), np.array(4, np.int32)]], model.input_specs())
    assert len(list(body_samples(model, "main/while:1/body", dataset, BUILTIN, max_iterations=4))) == 4
    with pytest.raises(InterpreterError, match="after 3 iterations"):
        list(body_samples(model, "main/while:1/body", dataset, BUILTIN, max_iterations=3))


def test_bodies_with_variables_are_refused() -> None:
    model = Model(built.variables())
    looped = next(signature.subgraph for signature in model.signatures if signature.key == "looped")
    selected = Model(select_subgraph(model, looped))
    init, cond, body = bodies(selected)
    assert (init.kind, init.refusal) == ("init", "it runs once, to initialise variables, and receives no data")
    for refused in (cond, body):
        assert refused.refusal is not None
        assert refused.refusal.startswith("it shares variables with other subgraphs, or handles no numbers (tensor '")
    with pytest.raises(ModelError, match="main/while:2/body cannot be measured: it shares variables"):
        next(body_samples(selected, body.path, opened(selected)))
    with pytest.raises(ModelError, match="main/call_once:0/init cannot be measured: it runs once"):
        body_dataset(selected, init.path, opened(selected))


def test_bodies_of_a_model_that_changes_variables_are_refused() -> None:
    built.require_composites()
    loop, other = Model(built.loop()), Model(built.variables())
    add = next(signature.subgraph for signature in other.signatures if signature.key == "add")
    unpacked = unpack(Model(select_subgraph(other, add)))
    mapping = edit.subgraphs.copy_subgraphs(unpack(loop), unpacked, [0])
    # Behind its own operators, `add` now calls the loop as a decomposition would be called.
    schema = tf_private.schema()
    operator, options = schema.OperatorT(), schema.StableHLOCompositeOptionsT()
    options.decompositionSubgraphIndex = mapping[0]
    operator.opcodeIndex = edit.flatbuffer.Writer(unpacked).add_code("STABLEHLO_COMPOSITE", 1)
    operator.inputs, operator.outputs = unpacked.subgraphs[0].inputs, np.array([], np.int32)
    operator.builtinOptions2Type, operator.builtinOptions2 = schema.BuiltinOptions2.StableHLOCompositeOptions, options
    unpacked.subgraphs[0].operators.append(operator)
    found = {body.kind: body.refusal for body in bodies(Model(pack(unpacked)))}
    assert found["decomposition"] == "the model changes variables (ASSIGN_VARIABLE), which carry over from sample to sample"
    assert found["body"] == found["decomposition"]


def with_state(data: bytes, subgraph: int) -> bytes:
    """Declares one of a subgraph's tensors a variable."""
    unpacked = unpack(Model(data))
    operator = next(op for op in Model(data).subgraphs[subgraph].operators if op.name == "FULLY_CONNECTED")
    unpacked.subgraphs[subgraph].tensors[operator.outputs[0]].isVariable = True
    return pack(unpacked)


def test_body_with_a_state_of_its_own_is_refused() -> None:
    refusals = {body.kind: body.refusal for body in bodies(Model(with_state(built.loop(), 2)))}
    reason = "it keeps a state between its runs (variable 'while/MatMul;while/add_1')"
    assert refusals == {"cond": reason, "body": reason}  # the condition cannot be followed either


def test_what_a_refused_body_calls_is_refused_with_its_reason() -> None:
    data = built.nested()
    inner = next(subgraph.index for subgraph in Model(data).subgraphs if subgraph.name == "while/cond/while_body")
    found = {body.path: body.refusal for body in bodies(Model(with_state(data, inner)))}
    assert all(refusal is not None and "keeps a state" in refusal for path, refusal in found.items() if "else" not in path)


def renumbered(data: bytes, references: dict[int, dict[str, int]]) -> bytes:
    """Changes the subgraphs that the first calling operator of some subgraphs calls."""
    unpacked = unpack(Model(data))
    for index, fields in references.items():
        table = next(t for t in unpacked.subgraphs[index].operators if edit.subgraphs.referenced_subgraphs(t))
        for field, value in fields.items():
            setattr(table.builtinOptions, field, value)
    return pack(unpacked)


def test_broken_references() -> None:
    data = built.nested()
    with pytest.raises(ModelError, match="reference to subgraph 99, expected one of the model's 7"):
        bodies(Model(renumbered(data, {0: {"bodySubgraphIndex": 99}})))
    with pytest.raises(ModelError, match="main/while:0 calls 1 subgraphs, expected 2"):
        bodies(Model(renumbered(data, {0: {"condSubgraphIndex": -1}})))
    itself = bodies(Model(renumbered(data, {0: {"bodySubgraphIndex": 0}})))
    assert [(body.path, body.refusal) for body in itself[1:]] == [("main/while:0/body", "it calls itself")]


def test_too_many_ways_through_the_subgraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_flow, "_MAX_BODIES", 5)
    with pytest.raises(ModelError, match="more than 5 ways through its subgraphs"):
        bodies(Model(built.nested()))
    monkeypatch.undo()
    monkeypatch.setattr(control_flow, "_MAX_DEPTH", 2)
    with pytest.raises(ModelError, match="nested more than 2 deep"):
        bodies(Model(built.nested()))
