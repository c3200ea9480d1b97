"""Cuts: parts of a model as models of their own give what the whole model gives there, and bring along what they need."""

from __future__ import annotations

import functools
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
import shared_data
from conftest import SHARED_MODELS

from tflite_qdebug import extract, extract_operator
from tflite_qdebug.edit import with_renamed
from tflite_qdebug.edit.extracted import Cut, Cuts
from tflite_qdebug.edit.flatbuffer import expose, model_of_nothing, unpack
from tflite_qdebug.edit.subgraphs import selected_signature
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.model import Model


@functools.cache
def int8(name: str) -> bytes:
    return models.calibrated(name).quantize("int8").data


def values_of(model: bytes, inputs: list[np.ndarray], tensors: Any) -> dict[int, np.ndarray]:
    """Returns the values of tensors in a run of the whole model, by TensorFlow's reference kernels."""
    view = Model(model)
    exposed = expose(view, [index for index in tensors if index in view.main.producers])
    interpreter = models.run(exposed, inputs, preserve=False)
    return {index: interpreter.get_tensor(index) for index in tensors}


def check_cut(model: bytes, cut: Cut, inputs: list[np.ndarray]) -> None:
    """Checks that a cut, fed what the whole model has there, gives what the whole model gives there, bit for bit."""
    whole = values_of(model, inputs, {*cut.inputs, *cut.outputs})
    got = models.outputs(cut.data, [whole[index] for index in cut.inputs])
    assert len(got) == len(cut.outputs)
    for index, values in zip(cut.outputs, got, strict=True):
        assert values.dtype == whole[index].dtype
        np.testing.assert_array_equal(values, whole[index])


def named(model: bytes, op_name: str, place: int = 0) -> str:
    graph = Model(model).main
    return graph.tensors[[op for op in graph.operators if op.name == op_name][place].outputs[0]].name


# ----------------------------------------------------------------------------------------------------------- one operator


@pytest.mark.parametrize("name", ["mixed", "chain", "two_by_two", "shared_weights", "attention", "dynamic_batch"])
def test_every_operator_alone_gives_what_it_gives_in_the_model(name: str) -> None:
    cuts = Cuts(Model(int8(name))).every()
    assert [cut.operators[-1] for cut in cuts] == [operator.index for operator in Model(int8(name)).main.operators]
    for cut in cuts:
        assert len(Model(cut.data).main.operators) == 1
        check_cut(int8(name), cut, models.samples(name, 1)[0])


def test_an_operator_by_node_position_and_type() -> None:
    model = int8("mixed")
    node = named(model, "ADD")
    (position,) = [operator.index for operator in Model(model).main.operators if operator.name == "ADD"]
    cuts = [extract_operator(model, reference) for reference in (node, position, str(position), "ADD")]
    assert {cut.data for cut in cuts} == {cuts[0].data}
    assert cuts[0].name == f"operator_{position:03d}_ADD"
    assert cuts[0].op_names == ("ADD",)
    with pytest.raises(OptionError, match="which 2 operators are: give one's position of 0, 6"):
        extract_operator(model, "QUANTIZE")
    with pytest.raises(OptionError, match="Did you mean 'functional_1/added_1/Add'"):
        extract_operator(model, "functional_1/added_1/Ad")
    with pytest.raises(OptionError, match="got operator 99, expected a position from 0 to 11"):
        extract_operator(model, 99)


def test_a_cut_holds_no_more_than_it_needs() -> None:
    model = int8("weighty")
    dense = [op.index for op in Model(model).main.operators if op.name == "FULLY_CONNECTED"][-1]
    cut = Model(extract_operator(model, dense).data)
    whole = Model(model)
    operator = whole.main.operators[dense]
    assert sorted(tensor.name for tensor in cut.main.tensors) == sorted(
        whole.main.tensors[index].name for index in (*operator.inputs, *operator.outputs) if index >= 0
    )
    for ours, index in zip(cut.main.operators[0].inputs, operator.inputs, strict=True):
        tensor = whole.main.tensors[index]
        assert cut.main.tensors[ours].quantization == tensor.quantization
        if tensor.is_constant:
            np.testing.assert_array_equal(cut.constant(cut.main.tensors[ours]), whole.constant(tensor))
    assert len(cut.data) < len(whole.data) / 5
    assert len(unpack(cut).operatorCodes) == 1
    assert not cut.signatures


def test_the_model_stays_as_it_is() -> None:
    model = bytearray(int8("mixed"))
    extract_operator(bytes(model), "ADD")
    assert bytes(model) == int8("mixed")


# --------------------------------------------------------------------------------------------------------------- between


def test_a_cut_between_tensors_has_the_operators_on_the_way_and_no_others() -> None:
    model = int8("mixed")
    start, end = named(model, "CONV_2D"), named(model, "CONCATENATION")
    cut = extract(model, [start], [end])
    assert cut.op_names == ("DEPTHWISE_CONV_2D", "ADD", "SPLIT", "TANH", "QUANTIZE", "CONCATENATION")
    assert (cut.input_names, cut.output_names, cut.further_inputs) == ((start,), (end,), ())
    assert cut.name == "operators_002_007"
    check_cut(model, cut, models.samples("mixed", 1)[0])


def test_what_goes_around_the_cut_becomes_an_input() -> None:
    model = int8("mixed")
    first, depthwise = named(model, "CONV_2D"), named(model, "DEPTHWISE_CONV_2D")
    cut = extract(model, [depthwise], [named(model, "ADD")])
    assert cut.op_names == ("ADD",)
    assert cut.input_names == (depthwise, first)
    assert [Model(model).main.tensors[index].name for index in cut.further_inputs] == [first]
    check_cut(model, cut, models.samples("mixed", 1)[0])


def test_the_whole_model_is_the_cut_without_names() -> None:
    for name in ("mixed", "two_by_two"):
        cut = extract(int8(name))
        assert len(cut.operators) == len(Model(int8(name)).main.operators)
        assert (cut.inputs, cut.outputs) == (Model(int8(name)).main.inputs, Model(int8(name)).main.outputs)
        check_cut(int8(name), cut, models.samples(name, 1)[0])


def test_a_tensor_that_an_operator_within_the_cut_gives_too_can_be_fed() -> None:
    model = int8("mixed")
    graph = Model(model).main
    (split,) = [operator for operator in graph.operators if operator.name == "SPLIT"]
    (joined,) = [operator for operator in graph.operators if operator.name == "CONCATENATION"]
    left, right = split.outputs
    # One half comes from outside, the other from the operator that computes both.
    cut = extract(model, [left, split.inputs[1]], [joined.outputs[0]])
    assert left in cut.inputs
    assert right not in cut.inputs
    assert cut.op_names == ("SPLIT", "TANH", "QUANTIZE", "CONCATENATION")
    whole = values_of(model, models.samples("mixed", 1)[0], {*cut.inputs, joined.outputs[0]})
    (same,) = models.outputs(cut.data, [whole[index] for index in cut.inputs])
    np.testing.assert_array_equal(same, whole[joined.outputs[0]])
    zeroed = [np.zeros_like(whole[index]) if index == left else whole[index] for index in cut.inputs]
    (other,) = models.outputs(cut.data, zeroed)
    half = same.shape[-1] // 2
    np.testing.assert_array_equal(other[..., half:], same[..., half:])
    assert not np.array_equal(other[..., :half], same[..., :half])


def test_several_inputs_keep_the_order_that_was_asked_for() -> None:
    model = int8("two_by_two")
    graph = Model(model).main
    add = next(operator for operator in graph.operators if operator.name == "ADD")
    for order in (add.inputs, add.inputs[::-1]):
        assert extract(model, order, [add.outputs[0]]).inputs == tuple(order)
    names = [graph.tensors[index].name for index in add.inputs]
    assert extract(model, [",".join(names)], [add.outputs[0]]).inputs == tuple(add.inputs)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("CONCATENATION", "CONV_2D", "no way leads from .* are they the wrong way round"),
        ("ADD", "ADD", "on both sides of the cut"),
    ],
)
def test_a_cut_of_nothing_is_refused(start: str, end: str, words: str) -> None:
    model = int8("mixed")
    with pytest.raises(OptionError, match=words):
        extract(model, [named(model, start)], [named(model, end)])


def test_wrong_tensors_are_refused() -> None:
    model = int8("mixed")
    graph = Model(model).main
    end = named(model, "ADD")
    weights = next(tensor for tensor in graph.tensors if tensor.is_constant)
    with pytest.raises(OptionError, match="Did you mean 'functional_1/added_1/Add'"):
        extract(model, None, ["functional_1/added_1/Addd"])
    with pytest.raises(OptionError, match="is a constant"):
        extract(model, [weights.index], [end])
    with pytest.raises(OptionError, match="which no operator computes"):
        extract(model, None, [graph.inputs[0]])
    with pytest.raises(OptionError, match="expected a number from 0 to"):
        extract(model, [10_000], [end])
    with pytest.raises(OptionError, match="got no tensor to cut from"):
        extract(model, [], [end])
    with pytest.raises(OptionError, match=r"not needed: .*reads 'functional_1/joined_1/concat'"):
        extract(model, [graph.inputs[0], named(model, "CONCATENATION")], [end])


def test_a_name_that_two_tensors_bear_is_refused_and_their_numbers_are_taken() -> None:
    view = Model(int8("mixed"))
    twice = with_renamed(view, lambda index, name: "twice" if index in view.main.operators[4].outputs else name)
    first, second = view.main.operators[4].outputs
    with pytest.raises(OptionError, match=f"which 2 tensors are called: give a number of {first}, {second}"):
        extract(twice, None, ["twice"])
    cut = extract(twice, None, [second, first])
    assert cut.output_names == ("twice", "twice_2")
    assert cut.outputs == (second, first)


# -------------------------------------------------------------------------------------- subgraphs, state, signatures, shapes


@pytest.mark.parametrize("name", ["loop", "branches", "nested", "captured"])
def test_loops_and_branches_bring_their_bodies(name: str) -> None:
    model = getattr(control_flow_models, name)()
    sample = control_flow_models.samples(Model(model), 3)[2]
    cuts = [cut for cut in Cuts(Model(model)).every() if {"WHILE", "IF"}.intersection(cut.op_names)]
    assert cuts
    for cut in cuts:
        check_cut(model, cut, sample)
        assert len(Model(cut.data).subgraphs) > 1


def test_a_composite_operator_brings_its_decomposition() -> None:
    control_flow_models.require_composites()
    model = control_flow_models.composite()
    cut = extract_operator(model, "STABLEHLO_COMPOSITE")
    view = Model(cut.data)
    assert [len(graph.operators) for graph in view.subgraphs] == [1, len(Model(model).subgraphs[1].operators)]
    check_cut(model, cut, control_flow_models.samples(Model(model), 1)[0])
    # Without it: the decomposition is left out.
    dense = extract_operator(model, 0)
    assert len(Model(dense.data).subgraphs) == 1


def test_the_attention_of_a_real_model_brings_its_decomposition() -> None:
    path = SHARED_MODELS / "structure" / "sdpa_composite.tflite"
    if not path.exists():
        pytest.skip("the real models are not there")
    model = path.read_bytes()
    cut = extract_operator(model, "STABLEHLO_COMPOSITE")
    assert len(Model(cut.data).subgraphs[1].operators) == 12
    shape = Model(model).input_specs()[0].shape
    check_cut(model, cut, [np.random.default_rng(0).normal(size=shape).astype(np.float32)])


def test_variables_bring_what_fills_them() -> None:
    model = control_flow_models.variables()
    for signature in Model(model).signatures:
        selected = selected_signature(Model(model), signature.key)
        for cut in Cuts(selected).every():
            check_cut(selected.data, cut, control_flow_models.samples(selected, 1)[0])


def test_a_recurrent_operator_keeps_its_variables() -> None:
    model = models.float_tflite("lstm")
    cut = extract_operator(model, "UNIDIRECTIONAL_SEQUENCE_LSTM")
    variables = [tensor for tensor in Model(cut.data).main.tensors if tensor.is_variable]
    assert len(variables) == 2
    check_cut(model, cut, models.samples("lstm", 1)[0])


def test_a_signature_is_cut_by_its_key() -> None:
    model = control_flow_models.signatures()
    keys = [entry.key for entry in Model(model).signatures]
    cuts = {key: extract(model, signature=key) for key in keys}
    operators = {entry.key: len(Model(model).subgraphs[entry.subgraph].operators) for entry in Model(model).signatures}
    assert {key: len(cut.operators) for key, cut in cuts.items()} == operators
    with pytest.raises(OptionError, match="got signature 'nix'"):
        extract(model, signature="nix")


def test_shapes_that_the_file_leaves_open_are_those_of_the_sample() -> None:
    path = SHARED_MODELS / "structure" / "dilated_conv.tflite"
    if not path.exists():
        pytest.skip("the real models are not there")
    model = path.read_bytes()
    view = Model(model)
    sample = shared_data.samples("structure/dilated_conv", 1)[0]
    computed = [index for operator in view.main.operators for index in operator.outputs]
    shapes = {index: array.shape for index, array in values_of(model, sample, computed).items()}
    cuts = Cuts(view, shapes).every()
    assert "BATCH_TO_SPACE_ND" in {cut.op_names[-1] for cut in cuts}
    for cut in cuts:
        check_cut(model, cut, sample)


def test_an_operator_that_gives_nothing_is_refused() -> None:
    model = control_flow_models.variables()
    silent = [operator for operator in Model(model).main.operators if not operator.outputs]
    assert silent
    with pytest.raises(ModelError, match="has no result that could be read"):
        extract_operator(model, silent[0].index)


def test_a_model_of_nothing_runs() -> None:
    interpreter = models.reference_interpreter(model_of_nothing())
    interpreter.invoke()
    assert not Model(model_of_nothing()).main.operators


def test_the_model_until_tensors_computes_them_and_no_more() -> None:
    model = int8("mixed")
    graph = Model(model).main
    ends = [operator.outputs[0] for operator in graph.operators if operator.name in ("CONV_2D", "ADD")]
    part = Cuts(Model(model)).until(ends)
    assert Model(part).main.outputs == tuple(ends)
    assert [operator.name for operator in Model(part).main.operators] == ["QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD"]
    sample = models.samples("mixed", 1)[0]
    for got, index in zip(models.outputs(part, sample), ends, strict=True):
        np.testing.assert_array_equal(got, values_of(model, sample, ends)[index])
