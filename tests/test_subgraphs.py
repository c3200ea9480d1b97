from __future__ import annotations

import copy
from typing import Any

import control_flow_models as built
import numpy as np
import pytest
import tensorflow as tf
from models import outputs

from tflite_qdebug import tf_private
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit import cast_weights_to_float16, subgraphs
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.edit.subgraphs import (
    copy_subgraphs,
    reachable_subgraphs,
    referenced_subgraphs,
    renumber_subgraphs,
    select_prefix,
    select_subgraph,
)
from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model


def interpreter(model: bytes) -> Any:
    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return tf.lite.Interpreter(model_content=model, experimental_op_resolver_type=resolver)


def random_inputs(runner: Any, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)

    def values(detail: Any) -> np.ndarray:
        shape = [max(size, 1) for size in detail["shape"]]
        if detail["dtype"] == np.float32:
            return generator.normal(size=shape).astype(np.float32)
        return generator.integers(1, 5, shape).astype(detail["dtype"])

    return {name: values(detail) for name, detail in runner.get_input_details().items()}


def check_signatures_selected(data: bytes, keys: set[str]) -> None:
    """Each signature, as a model of its own, answers as it does in the whole model, bit for bit."""
    model = Model(data)
    assert {signature.key for signature in model.signatures} == keys
    for signature in model.signatures:
        selected = Model(select_subgraph(model, signature.subgraph))
        assert [(own.key, own.subgraph) for own in selected.signatures] == [(signature.key, 0)]
        whole, own = (interpreter(data).get_signature_runner(signature.key) for data in (data, selected.data))
        for seed in range(3):
            inputs = random_inputs(whole, seed)
            expected, got = whole(**inputs), own(**inputs)
            assert expected.keys() == got.keys()
            for name in expected:
                assert np.ptp(expected[name]) > 0
                np.testing.assert_array_equal(got[name], expected[name])


# ------------------------------------------------------------------------------------------------------------- references


FIELDS = {
    "IfOptions": {"thenSubgraphIndex": 3, "elseSubgraphIndex": 0},
    "WhileOptions": {"condSubgraphIndex": 2, "bodySubgraphIndex": 1},
    "CallOnceOptions": {"initSubgraphIndex": 4},
    "CallOptions": {"subgraph": 5},
    "StableHLOCompositeOptions": {"decompositionSubgraphIndex": 2},
    "StablehloWhileOptions": {"condSubgraphIndex": 6, "bodySubgraphIndex": 7},
    "StablehloReduceOptions": {"bodySubgraphIndex": 1},
    "StablehloReduceWindowOptions": {"bodySubgraphIndex": 2},
    "StablehloSortOptions": {"comparatorSubgraphIndex": 3},
    "StablehloScatterOptions": {"updateComputationSubgraphIndex": 4},
    "StablehloCaseOptions": {"branchSubgraphIndices": [5, 1, 5]},
}


def operator_with(options: str, fields: dict[str, Any]) -> Any:
    """An operator as it comes back from a written flatbuffer."""
    schema = tf_private.schema()
    if not hasattr(schema, options + "T"):
        pytest.skip(f"this TensorFlow's schema has no {options}")
    second = hasattr(schema.BuiltinOptions2, options)
    model, operator = unpack(Model(built.loop())), schema.OperatorT()
    operator.inputs = operator.outputs = np.array([], dtype=np.int32)
    table = getattr(schema, options + "T")()
    for name, value in fields.items():
        setattr(table, name, value)
    kind = getattr(schema.BuiltinOptions2 if second else schema.BuiltinOptions, options)
    setattr(operator, "builtinOptions2Type" if second else "builtinOptionsType", kind)
    setattr(operator, "builtinOptions2" if second else "builtinOptions", table)
    model.subgraphs[0].operators.append(operator)
    return schema.ModelT.InitFromPackedBuf(pack(model), 0).subgraphs[0].operators[-1]


@pytest.mark.parametrize("options", FIELDS)
def test_references_are_read_and_renumbered(options: str) -> None:
    operator = operator_with(options, FIELDS[options])
    indices = [int(index) for value in FIELDS[options].values() for index in np.atleast_1d(value)]
    assert referenced_subgraphs(operator) == tuple(indices)
    shared = copy.copy(operator)
    renumber_subgraphs(operator, {0: 8, 1: 0, 5: 1})
    expected = [{0: 8, 1: 0, 5: 1}.get(index, index) for index in indices]
    assert referenced_subgraphs(operator) == tuple(expected)
    assert referenced_subgraphs(shared) == tuple(indices)  # the options were copied, not changed


def test_every_reference_of_the_schema_is_known() -> None:
    schema = tf_private.schema()
    fields = {
        name: tuple(field for field in vars(value()) if "subgraph" in field.lower())
        for name, value in vars(schema).items()
        if name.endswith("OptionsT")
    }
    known = {name: wanted for name, wanted in subgraphs._FIELDS.items() if hasattr(schema, name)}
    assert {name: found for name, found in fields.items() if found} == known
    assert set(subgraphs._FIELDS) == {name + "T" for name in FIELDS}


def test_no_subgraph_is_referenced_by_other_operators_or_negative_indices() -> None:
    assert [referenced_subgraphs(operator) for operator in unpack(Model(built.loop())).subgraphs[2].operators] == [()] * 4
    assert referenced_subgraphs(operator_with("CallOnceOptions", {"initSubgraphIndex": -1})) == ()
    untouched = operator_with("CallOnceOptions", {"initSubgraphIndex": -1})
    renumber_subgraphs(untouched, {0: 3})
    assert untouched.builtinOptions.initSubgraphIndex == -1


def test_reachable_subgraphs() -> None:
    unpacked = unpack(Model(built.nested()))
    names = [subgraph.name.decode() for subgraph in unpacked.subgraphs]
    inner = {names.index("while/cond/while_cond"), names.index("while/cond/while_body")}
    outer = {index for index, name in enumerate(names) if name.startswith("while_cond_")}  # the branches
    assert len(outer) == 2
    assert reachable_subgraphs(unpacked, [0]) == list(range(7))
    assert set(reachable_subgraphs(unpacked, [names.index("while_body")])) == {names.index("while_body"), *inner, *outer}
    assert reachable_subgraphs(unpacked, [names.index("while_cond")]) == [names.index("while_cond")]
    with pytest.raises(ModelError, match=r"reference to subgraph 7, expected one of the model's 7 \(0 to 6\)"):
        reachable_subgraphs(unpacked, [7])


# ------------------------------------------------------------------------------------------ weights alone, everywhere

EVERYWHERE = ["loop", "branches", "nested", "signatures", "variables", "captured"]


def constants(data: bytes) -> list[tuple[Any, ...]]:
    """All constants that an operator of any subgraph reads."""
    model = Model(data)
    found = []
    for subgraph in model.subgraphs:
        read = {index for operator in subgraph.operators for index in operator.inputs}
        for tensor in subgraph.tensors:
            if tensor.is_constant and tensor.index in read:
                scale = b"" if tensor.quantization is None else tensor.quantization.scale.tobytes()
                found.append((tensor.dtype.name, tensor.shape, model.constant(tensor).tobytes(), scale))
    return sorted(found)


def operators(data: bytes) -> list[list[tuple[str, int]]]:
    return [sorted((op.name, op.version) for op in subgraph.operators) for subgraph in Model(data).subgraphs]


def check_same_answers(ours: bytes, theirs: bytes, kernels: str) -> None:
    """All signatures, or the main subgraph, give the same, bit for bit, with their loops and variables."""
    resolvers = tf.lite.experimental.OpResolverType
    resolver = {"reference": resolvers.BUILTIN_REF, "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES}[kernels]
    both = [tf.lite.Interpreter(model_content=data, experimental_op_resolver_type=resolver) for data in (ours, theirs)]
    signatures = [signature.key for signature in Model(theirs).signatures]
    for key in signatures:
        own, other = (interpreter.get_signature_runner(key) for interpreter in both)
        for seed in range(2):
            inputs = random_inputs(other, seed)
            got, expected = own(**inputs), other(**inputs)
            for name in expected:
                np.testing.assert_array_equal(got[name], expected[name])
    if not signatures:
        for inputs in built.samples(Model(theirs), 4):
            np.testing.assert_array_equal(outputs(ours, inputs, kernels)[0], outputs(theirs, inputs, kernels)[0])


@pytest.mark.parametrize("kind", ["dynamic_range", "float16"])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_weights_everywhere_are_what_tensorflow_makes(name: str, kind: str) -> None:
    data = getattr(built, name)()
    theirs = getattr(built, name)(kind)
    ours = load_float_model(data).quantize(kind).data
    types = {"dynamic_range": "int8", "float16": "float16"}[kind]
    if (name, kind) != ("captured", "float16"):  # there TensorFlow hands the loop its weights as inputs
        assert constants(ours) == constants(theirs)
        assert operators(ours) == operators(theirs)
        reduced = [any(t.is_constant and t.dtype == types for t in subgraph.tensors) for subgraph in Model(ours).subgraphs]
        assert sum(reduced[1:]) >= (0 if (name, kind) == ("variables", "dynamic_range") else 1)
    assert len(ours) < 1.05 * len(theirs)  # constants that subgraphs share stay shared
    for kernels in ("builtin", "reference"):
        check_same_answers(ours, theirs, kernels)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_float16_folded_everywhere(name: str) -> None:
    original = Model(getattr(built, name)())
    half = cast_weights_to_float16(original)
    folded = load_float_model(half)
    assert "float16 weights as float32" in folded.origin
    assert operators(folded.data) == operators(original.data)
    for before, after in zip(original.subgraphs, folded.model.subgraphs, strict=True):
        for operator, same in zip(before.operators, after.operators, strict=True):
            for index, own in zip(operator.inputs, same.inputs, strict=True):
                if index >= 0 and before.tensors[index].is_constant:
                    values = original.constant(before.tensors[index])
                    wanted = values.astype(np.float16).astype(np.float32) if values.dtype == np.float32 else values
                    np.testing.assert_array_equal(folded.model.constant(after.tensors[own]), wanted)
    assert len(folded.data) < 1.05 * len(original.data) + 1000
    check_same_answers(folded.data, half, "builtin")


def test_a_model_quantized_in_a_body_alone_is_no_float_model() -> None:
    whole, parts = unpack(Model(built.loop())), Model(built.quantized("loop"))
    mapping = copy_subgraphs(unpack(parts), whole, [2])
    renumber_subgraphs(whole.subgraphs[0].operators[1], {2: mapping[2]})
    with pytest.raises(ModelError, match="got a model that is quantized already"):
        load_float_model(pack(whole))


# -------------------------------------------------------------------------------------------------------------- selection


def test_signatures_selected() -> None:
    check_signatures_selected(built.signatures(), {"both", "second", "looped"})


def test_signatures_with_a_shared_variable_selected() -> None:
    # Each starts from the variable's initial value, which its own CALL_ONCE sets.
    model = Model(built.variables())
    total = np.full((1, built.SIZE), 0.5, np.float32)
    x = np.random.default_rng(0).normal(size=(1, built.SIZE)).astype(np.float32)
    own = {s.key: interpreter(select_subgraph(model, s.subgraph)).get_signature_runner(s.key) for s in model.signatures}
    np.testing.assert_allclose(own["add"](x=x)["total"], total + x, rtol=1e-6)
    np.testing.assert_allclose(own["add"](x=x)["total"], total + 2 * x, rtol=1e-6)  # it keeps its state
    np.testing.assert_allclose(own["double"](x=x)["double"], 2 * total + x, rtol=1e-6)
    last = x
    for _ in range(3):
        last = np.tanh(last + total)
    np.testing.assert_allclose(own["looped"](x=x)["last"], last, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("two_signatures", {"add", "multiply"}),
        ("toy_model_with_kv_cache_multi_signature", {"signature_1", "signature_2"}),
        ("sdpa_composite", {"serving_default"}),
    ],
)
def test_signatures_of_real_models_selected(name: str, keys: set[str], shared_models: Any) -> None:
    path = shared_models / "structure" / f"{name}.tflite"
    if name == "sdpa_composite":
        built.require_composites()
    if name.startswith("two"):  # where a single value comes back, nothing varies: three are fed
        data = path.read_bytes()
        for signature in Model(data).signatures:
            x = np.array([1.0, -2.5, 7.0], np.float32)
            runners = [interpreter(d) for d in (data, select_subgraph(Model(data), signature.subgraph))]
            expected, got = (next(iter(runner.get_signature_runner(signature.key)(x=x).values())) for runner in runners)
            np.testing.assert_array_equal(got, expected)
            assert got.shape == (3,)
        return
    check_signatures_selected(path.read_bytes(), keys)


@pytest.mark.parametrize("name", ["loop", "branches", "nested", "composite"])
def test_main_selected_is_the_same_model(name: str) -> None:
    model = Model(getattr(built, name)())
    selected = Model(select_subgraph(model, 0))
    assert len(selected.subgraphs) == len(model.subgraphs)
    for inputs in built.samples(model, 6):
        np.testing.assert_array_equal(outputs(selected.data, inputs)[0], outputs(model.data, inputs)[0])


def test_body_selected_computes_one_iteration() -> None:
    model = Model(built.loop())
    body = next(subgraph.index for subgraph in model.subgraphs if subgraph.name == "while_body")
    selected = Model(select_subgraph(model, body))
    assert [operator.name for operator in selected.main.operators] == ["ADD", "FULLY_CONNECTED", "TANH", "MUL"]
    assert len(selected.subgraphs) == 1
    x = np.random.default_rng(1).normal(size=(1, built.SIZE)).astype(np.float32)
    step, state, steps = outputs(selected.data, [np.array(3, np.int32), x, np.array(9, np.int32)])
    assert (step, steps) == (4, 9)
    np.testing.assert_allclose(state, np.tanh(x @ built.weights(1) + built.weights(101)[0]) * 1.5, rtol=1e-5, atol=1e-6)


def test_selecting_drops_what_is_not_reached() -> None:
    model = Model(built.signatures())
    index = {signature.key: signature.subgraph for signature in model.signatures}
    second = Model(select_subgraph(model, index["second"]))
    assert len(second.subgraphs) == 1
    weights = 4 * built.SIZE**2
    assert weights < len(second.data) < 2 * weights < 3 * weights < len(model.data)
    assert {operator.name for operator in second.main.operators} == {"FULLY_CONNECTED"}
    assert len(unpack(second).operatorCodes) == 1
    assert len(Model(select_subgraph(model, index["looped"])).subgraphs) == 3


def test_selecting_leaves_the_model_as_it_is() -> None:
    model = Model(built.nested())
    before = bytes(model.data)
    select_subgraph(model, 4)
    assert model.data == before


def test_selecting_a_subgraph_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="got a reference to subgraph 3, expected one of the model's 3"):
        select_subgraph(Model(built.loop()), 3)


def test_prefix_has_what_the_operator_reads() -> None:
    model = Model(built.loop())
    prefix = Model(select_prefix(model, 0, 1))  # WHILE
    assert [operator.name for operator in prefix.main.operators] == ["FULLY_CONNECTED"]
    assert len(prefix.subgraphs) == 1
    for inputs in built.samples(model, 2):
        (got,) = outputs(prefix.data, inputs)
        expected = np.maximum(inputs[0] @ built.weights(0) + built.weights(100)[0], 0.0)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="got operator 3, expected one of the 3 of subgraph 0"):
        select_prefix(model, 0, 3)


# ---------------------------------------------------------------------------------------------------------------- copying


def test_copied_loop_computes_the_same_in_another_model() -> None:
    # The operator WHILE of one model, put behind the subgraphs of another: both loops give what they gave alone.
    source, target = Model(built.loop()), unpack(Model(built.nested()))
    source_unpacked = unpack(source)
    before = pack(source_unpacked)
    mapping = copy_subgraphs(source_unpacked, target, [0])
    assert mapping == {0: 7, 1: 8, 2: 9}
    assert pack(source_unpacked) == before
    joined = Model(pack(target))
    assert [subgraph.name for subgraph in joined.subgraphs[7:]] == ["main_1", "while_cond_1", "while_body_1"]
    for inputs in built.samples(source, 5):
        np.testing.assert_array_equal(outputs(select_subgraph(joined, 7), inputs)[0], outputs(source.data, inputs)[0])
        np.testing.assert_array_equal(outputs(joined.data, inputs)[0], outputs(built.nested(), inputs)[0])


def test_copy_keeps_shared_constants_shared() -> None:
    source = unpack(Model(built.signatures()))  # `both` and `second` read the same weights
    keys = {entry.signatureKey.decode(): entry.subgraphIndex for entry in source.signatureDefs}
    target = unpack(Model(built.branches()))
    first = len(target.subgraphs)
    copy_subgraphs(source, target, [keys["both"], keys["second"]])
    model = Model(pack(target))
    added = [tensor.buffer for subgraph in model.subgraphs[first:] for tensor in subgraph.tensors if tensor.is_constant]
    original = [
        tensor.buffer
        for key in ("both", "second")
        for tensor in Model(built.signatures()).subgraphs[keys[key]].tensors
        if tensor.is_constant
    ]
    assert len(set(added)) == len(set(original))
    assert len(added) == len(original)


def test_a_copy_shares_nothing_that_an_edit_changes() -> None:
    source, target = unpack(Model(built.loop())), unpack(Model(built.branches()))
    before = pack(source)
    mapping = copy_subgraphs(source, target, [2])
    copied = target.subgraphs[mapping[2]]
    copied.tensors[0].name = b"other"
    copied.operators[0].inputs = np.array([0, 0], np.int32)
    for buffer in target.buffers:
        buffer.data = None
    assert pack(source) == before


def test_order_of_operators_by_position_is_left_out() -> None:
    # A list for each subgraph, which a runtime indexes without a look at its length.
    unpacked = unpack(Model(built.branches()))
    schema = tf_private.schema()
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(bytes([1, 3, 1, 0, 2, 0, 0]), np.uint8)  # version, subgraphs, a pair (0, 1), none, none
    unpacked.buffers.append(buffer)
    entry.name, entry.buffer = b"model_control_dependencies", len(unpacked.buffers) - 1
    unpacked.metadata.append(entry)
    data = pack(unpacked)
    names = [metadata.name for metadata in schema.ModelT.InitFromPackedBuf(data, 0).metadata]
    kept = schema.ModelT.InitFromPackedBuf(select_subgraph(Model(data), 1), 0).metadata
    assert [metadata.name for metadata in kept] == [name for name in names if name != entry.name] != names
