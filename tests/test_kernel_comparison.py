"""Two kernels, operator by operator: figures by hand, a kernel that is really wrong, and models of every shape."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import contracts
import models
import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED_MODELS

from tflite_qdebug import compare_kernels, edit, tf_private
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.edit import exploded
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError, OptionError
from tflite_qdebug.interpreter import Delegate
from tflite_qdebug.kernel_record import Difference, KernelComparison, KernelRow
from tflite_qdebug.model import Model

XNNPACK = Backend("tensorflow", workers=1)
BUILTIN = Backend("tensorflow", "builtin", workers=1)
REFERENCE = Backend("tensorflow", "reference", workers=1)
QUIET = "--no-progress"


@functools.cache
def int8(name: str, kind: str = "int8") -> bytes:
    return models.calibrated(name).quantize(kind).data


def compared(
    model: bytes, samples: Any, first: Backend = BUILTIN, second: Backend = REFERENCE, **more: Any
) -> KernelComparison:
    return compare_kernels(model, samples, first, second, progress=False, **more)


def row_of(comparison: KernelComparison, op_name: str) -> KernelRow:
    (row,) = [row for row in comparison.rows if row.op_name == op_name]
    return row


def fed(model: bytes, values: list[np.ndarray], kernels: str = "reference") -> Any:
    """Runs a model in TensorFlow's interpreter, its inputs in the model's order."""
    interpreter = models.reference_interpreter(model, preserve=False, kernels=kernels)
    for index, array in zip(Model(model).main.inputs, values, strict=True):
        interpreter.set_tensor(index, array)
    interpreter.invoke()
    return interpreter


# ---------------------------------------------------------------------------------------------------- exploded models


def exploded_with_values(name: str, kernels: str = "reference") -> tuple[Model, edit.ExplodedModel, dict[int, np.ndarray]]:
    model = Model(int8(name))
    interpreter = models.run(int8(name), models.samples(name, 1)[0], kernels)
    indices = [*model.main.inputs, *(index for _, index in exploded.computed_tensors(model.main))]
    values = {index: interpreter.get_tensor(index) for index in indices}
    return model, edit.explode(model, {index: array.shape for index, array in values.items()}), values


@pytest.mark.parametrize("kernels", ["reference", "builtin"])
@pytest.mark.parametrize("name", ["mixed", "chain", "shared_weights", "attention", "two_by_two"])
def test_an_exploded_model_gives_back_the_values_that_it_is_fed(name: str, kernels: str) -> None:
    model, parts, values = exploded_with_values(name, kernels)
    interpreter = fed(parts.data, [values[index] for index in parts.inputs], kernels)
    assert set(parts.outputs) == {output for operator in model.main.operators for output in operator.outputs}
    for index in parts.outputs:
        np.testing.assert_array_equal(interpreter.get_tensor(index), values[index])


def test_a_changed_value_reaches_its_readers_and_no_others() -> None:
    model, parts, values = exploded_with_values("mixed")
    changed = 0
    for index in parts.inputs:
        if index not in model.main.producers or not model.main.tensors[index].is_quantized:
            continue
        shifted = {**values, index: np.where(values[index] < 0, values[index] + 9, values[index] - 9).astype(np.int8)}
        interpreter = fed(parts.data, [shifted[i] for i in parts.inputs])
        others = {i for i in parts.outputs if not np.array_equal(interpreter.get_tensor(i), values[i])}
        readers = {out for operator in model.main.operators if index in operator.inputs for out in operator.outputs}
        assert others <= readers
        changed += bool(others)
    assert changed >= 8


def test_an_exploded_part_has_the_operators_asked_for() -> None:
    model, _, values = exploded_with_values("mixed")
    shapes = {index: array.shape for index, array in values.items()}
    (add,) = [operator for operator in model.main.operators if operator.name == "ADD"]
    part = edit.explode(model, shapes, [add.index])
    assert [operator.name for operator in Model(part.data).main.operators] == ["ADD"]
    assert (set(part.inputs), part.outputs) == (set(add.inputs), add.outputs)


def test_float_twins_by_hand() -> None:
    model, _, values = exploded_with_values("chain")
    shapes = {index: array.shape for index, array in values.items()}
    dense = next(operator for operator in model.main.operators if operator.name == "FULLY_CONNECTED")
    twins = edit.float_twins(model, shapes, [dense.index])
    source, weights, bias = (model.main.tensors[index] for index in dense.inputs)
    real = (values[source.index].astype(np.float64) - source.quantization.zero_point[0]) * source.quantization.scale[0]
    matrix = model.constant(weights).astype(np.float64) * weights.quantization.scale.astype(np.float64)[:, None]
    step = source.quantization.scale.astype(np.float64) * weights.quantization.scale
    expected = real.reshape(1, -1) @ matrix.T + model.constant(bias) * step
    assert twins.inputs == (source.index,)
    interpreter = fed(twins.data, [real.astype(np.float32)])
    np.testing.assert_allclose(interpreter.get_tensor(dense.outputs[0]), expected, rtol=1e-5, atol=1e-6)


def test_shapes_and_constants_stay_connected() -> None:
    model = Model(models.calibrated("weighty").quantize("float16").data)
    derived = exploded.derived_tensors(model.main)
    made = [operator for operator in model.main.operators if operator.name == "DEQUANTIZE"]
    assert made
    assert derived == {operator.outputs[0] for operator in made}


# ------------------------------------------------------------------------------------------------- a kernel that is wrong


def batch_matmul_by_hand(sample: list[np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Returns squared errors of XNNPACK's and the reference kernels' BATCH_MATMUL on the same inputs, and their steps apart."""
    model = Model(int8("attention"))
    (operator,) = [operator for operator in model.main.operators if operator.name == "BATCH_MATMUL"]
    whole = models.run(model.data, sample)
    left, right = (model.main.tensors[index] for index in operator.inputs)
    reals = [
        (whole.get_tensor(tensor.index).astype(np.float64) - tensor.quantization.zero_point[0]) * tensor.quantization.scale[0]
        for tensor in (left, right)
    ]
    target = model.main.tensors[operator.outputs[0]]
    scale, zero_point = target.quantization.scale[0], target.quantization.zero_point[0]
    exact = reals[0] @ reals[1].transpose(0, 2, 1)
    exact = np.clip(exact, (-128 - zero_point) * scale, (127 - zero_point) * scale)
    exposed = edit.expose(model, [target.index])
    xnnpack = tf.lite.Interpreter(model_content=exposed)
    xnnpack.allocate_tensors()
    xnnpack.set_tensor(xnnpack.get_input_details()[0]["index"], sample[0])
    xnnpack.invoke()
    integers = [run.get_tensor(target.index).astype(np.float64) for run in (xnnpack, whole)]
    errors = [(((values - zero_point) * scale - exact) ** 2).sum() for values in integers]
    return errors[0], errors[1], integers[1] - integers[0]


@pytest.fixture(scope="module")
def faulty() -> tuple[KernelComparison, list[list[np.ndarray]]]:
    samples = models.samples("attention", 4)
    errors = batch_matmul_by_hand(samples[0])
    if errors[0] < 10 * errors[1]:
        pytest.skip("this TensorFlow has no fault in int8 BATCH_MATMUL")
    return compared(int8("attention"), samples, XNNPACK, REFERENCE), samples


def test_the_wrong_batch_matmul_of_xnnpack_is_named_and_measured(faulty: Any) -> None:
    comparison, samples = faulty
    (position,) = comparison.faults()
    row = comparison.rows[position]
    assert (row.op_name, row.exact) == ("BATCH_MATMUL", "float")
    by_hand = [batch_matmul_by_hand(sample) for sample in samples]
    elements = sum(steps.size for _, _, steps in by_hand)
    assert row.first_error.rmse == pytest.approx(np.sqrt(sum(error[0] for error in by_hand) / elements), rel=1e-4)
    assert row.second_error.rmse == pytest.approx(np.sqrt(sum(error[1] for error in by_hand) / elements), rel=1e-4)
    steps = np.abs(np.concatenate([part.reshape(-1) for _, _, part in by_hand]))
    isolated = row.isolated
    assert (isolated.elements, isolated.differing) == (elements, np.count_nonzero(steps))
    assert (isolated.over_one, isolated.max_absolute) == (np.count_nonzero(steps > 1), steps.max())
    assert isolated.mean_absolute == pytest.approx(steps.mean())
    assert isolated.worst_sample == int(np.argmax([np.abs(part).max() for _, _, part in by_hand]))
    verdict = comparison.verdicts()[position]
    assert verdict.kind == "first_wrong"
    assert f"xnnpack is wrong by {steps.max():.0f} steps (error {row.first_error.rmse:.3g} against " in verdict.text
    assert comparison.worst(1) == [position]


def test_all_other_operators_are_right_and_readers_are_not_blamed(faulty: Any) -> None:
    comparison, _ = faulty
    for row, verdict in zip(comparison.rows, comparison.verdicts(), strict=True):
        if row.op_name != "BATCH_MATMUL":
            assert verdict.kind in ("same", "rounding")
    reader = comparison.rows[-1]
    assert reader.op_name == "DEQUANTIZE"
    assert reader.isolated.is_none
    assert reader.accumulated.max_absolute > 1.0


def test_the_other_side_is_named_when_the_sides_are_exchanged(faulty: Any) -> None:
    exchanged = compared(int8("attention"), faulty[1], REFERENCE, XNNPACK)
    (position,) = exchanged.faults()
    assert exchanged.rows[position].op_name == "BATCH_MATMUL"
    assert exchanged.verdicts()[position].kind == "second_wrong"
    assert "xnnpack is wrong" in exchanged.verdicts()[position].text


def test_the_builtin_kernels_are_right(faulty: Any) -> None:
    comparison = compared(int8("attention"), faulty[1], BUILTIN, REFERENCE)
    assert comparison.faults() == []
    assert comparison.largest_steps() <= 1


def test_two_runtimes_side_by_side(faulty: Any) -> None:
    pytest.importorskip("ai_edge_litert")
    comparison = compared(int8("attention"), faulty[1], XNNPACK, XNNPACK._replace(runtime="ai_edge_litert"))
    assert comparison.first["label"] == "tensorflow xnnpack"
    assert (comparison.second["label"], comparison.second["runtime"]) == ("ai_edge_litert xnnpack", "ai_edge_litert")
    position = [row.op_name for row in comparison.rows].index("BATCH_MATMUL")
    assert set(comparison.faults()) <= {position}  # a release in which both are right, or both wrong, finds none
    builtin = compared(int8("mixed"), models.samples("mixed", 2), BUILTIN, BUILTIN._replace(runtime="ai_edge_litert"))
    assert builtin.largest_steps() <= 1


# ------------------------------------------------------------------------------------------------------- figures by hand


@pytest.mark.parametrize("name", ["weighty", "mixed", "dynamic_batch"])
def test_isolated_and_accumulated_by_hand(name: str) -> None:
    samples = models.samples(name, 3)
    comparison = compared(int8(name), samples)
    model = Model(int8(name))
    runs = [[models.run(int8(name), sample, kernels) for sample in samples] for kernels in ("builtin", "reference")]
    indices = [*model.main.inputs, *(row.tensor_idx for row in comparison.rows)]
    shapes = {index: runs[0][0].get_tensor(index).shape for index in indices}
    parts = edit.explode(model, shapes)
    alone = [fed(parts.data, [run.get_tensor(index) for index in parts.inputs]) for run in runs[0]]
    differing = 0
    for row in comparison.rows:
        for name_, others in (("accumulated", runs[1]), ("isolated", alone)):
            difference = getattr(row, name_)
            steps = np.concatenate(
                [
                    np.abs(other.get_tensor(row.tensor_idx).astype(np.float64) - first.get_tensor(row.tensor_idx)).reshape(-1)
                    for other, first in zip(others, runs[0], strict=True)
                ]
            )
            assert (difference.elements, difference.differing) == (steps.size, np.count_nonzero(steps))
            assert difference.max_absolute == pytest.approx(steps.max(), rel=1e-6)
            assert difference.sum_absolute == pytest.approx(steps.sum(), rel=1e-6)
            assert difference.sum_squared == pytest.approx((steps**2).sum(), rel=1e-6)
            differing += difference.differing
        assert row.first_repeated.is_none
        assert row.second_repeated.is_none
    assert differing or name != "weighty"


def test_errors_against_the_exact_result_by_hand() -> None:
    samples = models.samples("chain", 3)
    comparison = compared(int8("chain"), samples)
    model = Model(int8("chain"))
    row = row_of(comparison, "FULLY_CONNECTED")
    source, weights, bias = (model.main.tensors[index] for index in model.main.operators[row.operator].inputs)
    target = model.main.tensors[row.tensor_idx]
    scale = source.quantization.scale.astype(np.float64)
    matrix = model.constant(weights).astype(np.float64) * weights.quantization.scale.astype(np.float64)[:, None]
    errors = []
    for sample in samples:
        run = models.run(model.data, sample, "builtin")
        real = (run.get_tensor(source.index).astype(np.float64) - source.quantization.zero_point) * scale
        exact = real.reshape(1, -1) @ matrix.T + model.constant(bias) * scale * weights.quantization.scale
        limits = (np.array([-128, 127]) - target.quantization.zero_point) * target.quantization.scale.astype(np.float64)
        got = (run.get_tensor(target.index).astype(np.float64) - target.quantization.zero_point) * target.quantization.scale
        errors.append(got - np.clip(exact, *limits))
    assert row.first_error.rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert row.first_error.max_absolute == pytest.approx(np.abs(errors).max(), rel=1e-4)
    assert row.first_error.max_absolute < 0.51 * row.scale  # nothing but rounding


def test_values_beyond_the_range_are_held_to_it() -> None:
    samples = [[100 * array for array in sample] for sample in models.samples("chain", 2)]
    comparison = compared(int8("chain"), samples)
    for row in comparison.rows:
        if row.scale is not None:
            assert row.first_error.max_absolute <= 1.01 * row.scale


# ------------------------------------------------------------------------------------------------------------ differences


def test_differences_of_integers_by_hand() -> None:
    first, second = np.array([[1, -128, 5, 0]], np.int8), np.array([[1, 127, 4, -2]], np.int8)
    difference = Difference.between(first, second, 7)
    assert difference == Difference(4, 3, 2, 258.0, 255.0**2 + 1 + 4, 0.0, 255.0, 7)
    assert Difference.between(first, first, 7) == Difference(elements=4)
    wide = Difference.between(np.array([2**40], np.int64), np.array([2**40 + 3], np.int64), 0)
    assert (wide.max_absolute, wide.over_one) == (3.0, 1)
    assert Difference.between(np.array([True, False]), np.array([True, True]), 0).differing == 1


def test_differences_of_floats_by_hand() -> None:
    nan, inf = np.nan, np.inf
    values = np.array([1.0, nan, inf, 2.0, nan, inf, 3.0], np.float32)
    reference = np.array([1.5, nan, inf, 2.0, 1.0, -inf, 1.0], np.float32)
    difference = Difference.between(values, reference, 2)
    assert (difference.elements, difference.differing, difference.one_sided) == (3, 2, 2)
    assert (difference.not_finite, difference.reference_not_finite) == (4, 3)
    assert difference.sum_squared == 0.25 + 4.0
    assert difference.relative_rmse == pytest.approx(np.sqrt(4.25 / (2.25 + 4.0 + 1.0)))
    assert not difference.is_none
    same = Difference.between(values, values, 2)
    assert (same.is_none, same.worst_sample, same.not_finite) == (True, -1, 4)


def test_another_shape_is_a_difference() -> None:
    difference = Difference.between(np.zeros((2, 3), np.int8), np.zeros((3, 2), np.int8), 1)
    assert (difference.other_shape, difference.elements, difference.is_none) == (1, 0, False)


def test_differences_merge() -> None:
    generator = np.random.default_rng(0)
    pairs = [generator.integers(-8, 8, (2, 1, 50)).astype(np.int8) for _ in range(5)]
    parts = [Difference.between(first, second, index) for index, (first, second) in enumerate(pairs)]
    whole = functools.reduce(lambda a, b: a + b, parts, Difference())

    def same(first: Difference, second: Difference) -> None:
        assert first == second

    contracts.check_mergeable(Difference, parts, whole, same)
    assert whole.max_absolute == max(part.max_absolute for part in parts)
    everything = Difference.between(*np.concatenate(pairs, axis=1), 0)
    assert dataclasses.replace(whole, worst_sample=0) == dataclasses.replace(everything, worst_sample=0)


def difference(rmse: float, largest: float | None = None, count: int = 100, **more: Any) -> Difference:
    largest = rmse if largest is None else largest
    return Difference(count, count, 0, count * rmse, count * rmse**2, 100.0, largest, 0, **more)


INT16 = {"dtype": "int16"}
FLOAT = {"dtype": "float32", "scale": None}
INFINITE = difference(0.0, one_sided=3)


def errors(first: Difference, second: Difference) -> dict[str, Any]:
    return {"exact": "float", "first_error": first, "second_error": second}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "same"),
        ({"isolated": difference(0.3, 1)}, "rounding"),
        ({"isolated": difference(2, 5)}, "differs"),
        ({"isolated": difference(2, 5), **errors(difference(1.8), difference(0.1))}, "first_wrong"),
        ({"isolated": difference(2, 5), **errors(difference(0.1), difference(1.8))}, "second_wrong"),
        ({"isolated": difference(2, 5), **errors(difference(0.3), difference(0.5))}, "inexact"),
        # One value of many that is far off is a fault too.
        ({"isolated": difference(0.1, 90), **errors(difference(0.2, 45), difference(0.1, 0.3))}, "first_wrong"),
        ({"isolated": difference(2), **errors(difference(9), difference(0.1)), "first_repeated": difference(2)}, "differs"),
        ({**INT16, "isolated": difference(4, 9), **errors(difference(3), difference(0.2))}, "inexact"),
        ({**INT16, "isolated": difference(9, 20), **errors(difference(6), difference(0.2))}, "first_wrong"),
        ({**FLOAT, "isolated": difference(1e-5)}, "rounding"),
        ({**FLOAT, "isolated": difference(1e-2), **errors(difference(1e-2), difference(1e-6))}, "first_wrong"),
        ({**FLOAT, "hybrid": True, "isolated": difference(1e-2), **errors(difference(1e-2), difference(1e-3))}, "inexact"),
        ({**FLOAT, "isolated": INFINITE, **errors(INFINITE, difference(0.0))}, "first_wrong"),
        ({**FLOAT, "isolated": INFINITE, **errors(difference(0.0), INFINITE)}, "second_wrong"),
        ({"dtype": "int32", "scale": None, "isolated": difference(1.0)}, "differs"),
        ({"isolated": Difference(other_shape=1)}, "differs"),
    ],
)
def test_verdicts(fields: dict[str, Any], kind: str) -> None:
    described = {"node": "n", "op_name": "ADD", "operator": 0, "tensor_idx": 0, "shape": (1,), "dtype": "int8", "scale": 0.5}
    verdict = KernelRow(**{**described, **fields}).verdict("left", "right")
    assert verdict.kind == kind
    if kind.endswith("wrong"):
        assert verdict.text.startswith("left is wrong" if kind == "first_wrong" else "right is wrong")


# --------------------------------------------------------------------------------------------------------- kinds of models


def converted(function: Any, *specs: Any, **settings: Any) -> bytes:
    module = tf.Module()
    module.state = settings.pop("state", None)
    module.function = tf.function(function, input_signature=specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)
    for name, value in settings.items():
        setattr(converter, name, value)
    with tf_private.captured_chatter():
        return bytes(converter.convert())


@pytest.mark.parametrize("first", [XNNPACK, BUILTIN])
@pytest.mark.parametrize(
    ("name", "kind", "operators"),
    [
        ("mixed", "int8", {"CONV_2D", "SPLIT", "SOFTMAX"}),
        ("mixed", "int16x8", {"CONV_2D", "TANH", "SOFTMAX"}),
        ("two_by_two", "full_integer", {"FULLY_CONNECTED", "ADD"}),
        ("with_cosine", "int8", {"COS", "DEQUANTIZE"}),
        ("weighty", "dynamic_range", {"CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"}),
        ("weighty", "float16", {"CONV_2D", "DEPTHWISE_CONV_2D"}),
        ("shared_weights", "int8", {"FULLY_CONNECTED", "SIN"}),
        ("embedding", "int8", {"GATHER", "FULLY_CONNECTED"}),
        ("long_lstm", "dynamic_range", {"UNIDIRECTIONAL_SEQUENCE_LSTM"}),
        ("mixed", "float", {"CONV_2D"}),
    ],
)
def test_no_kernel_is_at_fault(name: str, kind: str, operators: set[str], first: Backend) -> None:
    content = int8(name, kind)
    comparison = compared(content, models.samples(name, 2), first, REFERENCE)
    assert {row.op_name for row in comparison.rows} >= operators
    assert comparison.faults() == []
    assert {verdict.kind for verdict in comparison.verdicts()} <= {"same", "rounding", "inexact"}
    quantized = [row for row in comparison.rows if row.scale is not None]
    assert all(row.exact == "float" for row in quantized)
    for row in quantized:  # 16-bit functions come from tables
        assert (
            max(row.first_error.max_absolute, row.second_error.max_absolute)
            <= (1.6 if row.dtype == "int8" else 3.0) * row.scale
        )


def test_each_row_says_which_kernels_ran() -> None:
    pytest.importorskip("ai_edge_litert")
    comparison = compared(int8("mixed"), models.samples("mixed", 1), XNNPACK, BUILTIN)
    interpreter = tf.lite.Interpreter(
        model_content=edit.expose(Model(int8("mixed")), [row.tensor_idx for row in comparison.rows])
    )
    interpreter.allocate_tensors()
    nodes = [node for node in interpreter._get_ops_details() if node["op_name"] == "DELEGATE"]
    taken = {int(tensor) for node in nodes for tensor in node["outputs"]}
    assert {row.tensor_idx for row in comparison.rows if row.first_ran == "xnnpack"} == taken != set()
    assert {row.second_ran for row in comparison.rows} == {"builtin"}
    assert {row.first_ran for row in comparison.rows} <= {"xnnpack", "builtin"}


def test_xnnpack_that_takes_nothing_is_not_compared_with_the_kernels_that_run_in_its_place() -> None:
    content, samples = int8("long_lstm", "dynamic_range"), models.samples("long_lstm", 1)
    message = "xnnpack takes none of the model's 2 operators: the builtin kernels would be compared with themselves"
    with pytest.raises(InterpreterError, match=message):
        compared(content, samples, XNNPACK, BUILTIN)
    with pytest.raises(InterpreterError, match=message):
        compared(content, samples, BUILTIN, XNNPACK)
    comparison = compared(content, samples, XNNPACK, REFERENCE)
    assert "xnnpack takes none of the model's operators: its builtin kernels are compared" in comparison.notes


def test_a_dynamic_batch_may_change_from_sample_to_sample() -> None:
    generator = np.random.default_rng(0)
    samples = [[generator.normal(size=(count, 10)).astype(np.float32)] for count in (2, 1, 5)]
    comparison = compared(int8("dynamic_batch"), samples)
    assert row_of(comparison, "QUANTIZE").isolated.elements == 80
    assert comparison.largest_steps() <= 1


def test_shapes_that_depend_on_the_data() -> None:
    content = converted(lambda x: tf.sin(tf.boolean_mask(x, x > 0)) * 3, tf.TensorSpec((20,)))
    samples = [[np.random.default_rng(seed).normal(size=20).astype(np.float32)] for seed in range(4)]
    comparison = compared(content, samples, XNNPACK)
    positive = sum(int((sample[0] > 0).sum()) for sample in samples)
    assert row_of(comparison, "SIN").isolated.elements == positive
    assert comparison.faults() == []


def test_a_loop_is_one_operator() -> None:
    samples = [[np.full((1, 4), value, np.float32)] for value in (0.5, 2.0)]
    comparison = compared(models.while_loop(), samples, XNNPACK)
    assert {row.op_name for row in comparison.rows} == {"WHILE"}
    assert "compared as a whole, with their bodies: 2 WHILE" in comparison.notes
    assert comparison.faults() == []


def test_state_is_set_back_and_does_not_leak() -> None:
    samples = models.samples("long_lstm", 3)
    content = int8("long_lstm", "dynamic_range")
    forwards, backwards = compared(content, samples), compared(content, samples[::-1])
    assert "the state of the model is set back before each sample" in forwards.notes
    for ours, theirs in zip(forwards.rows, backwards.rows, strict=True):
        assert ours.first_error.sum_squared == pytest.approx(theirs.first_error.sum_squared, rel=1e-12)
    assert row_of(forwards, "UNIDIRECTIONAL_SEQUENCE_LSTM").first_error.rmse > 0


def test_resources_stay_connected_are_set_back_and_noted() -> None:
    variable = tf.Variable(np.zeros((1, 4), np.float32))

    def accumulate(x: Any) -> Any:
        variable.assign_add(x)
        return tf.sin(variable) * 2 + x

    content = converted(accumulate, tf.TensorSpec((1, 4)), state=variable, experimental_enable_resource_variables=True)
    samples = [[np.full((1, 4), value, np.float32)] for value in (0.5, 2.0, 3.0)]
    comparison = compared(content, samples, XNNPACK)
    assert any("not cut off" in note and "READ_VARIABLE" in note and "resources" in note for note in comparison.notes)
    assert all(bool(row.joined) == (row.op_name == "READ_VARIABLE") for row in comparison.rows)
    assert comparison.faults() == []
    sine = row_of(comparison, "SIN")
    expected = sum(4 * float(np.sin(np.float32(value))) ** 2 for value in (0.5, 2.0, 3.0))  # of x, not of sums of x
    assert sine.accumulated.sum_reference_squared == pytest.approx(expected, rel=1e-5)


def test_random_numbers_are_not_a_fault() -> None:
    content = converted(lambda x: x + tf.random.uniform((1, 40)), tf.TensorSpec((1, 40)))
    comparison = compared(content, [[np.zeros((1, 40), np.float32)]], XNNPACK)
    row = row_of(comparison, "RANDOM_UNIFORM")
    # Two processes forked at once may draw the same numbers.
    assert row.verdict().kind in ("differs", "same")
    if row.verdict().kind == "differs":
        assert "differs as much from itself" in row.verdict().text
        assert any("do not give the same twice" in note for note in comparison.notes)
    assert comparison.faults() == []
    assert row_of(comparison, "ADD").verdict().kind == "same"


def test_nan_on_both_sides_is_counted_and_no_difference() -> None:
    content = converted(lambda x: tf.math.log(x) * 2, tf.TensorSpec((1, 4)))
    comparison = compared(content, [[np.array([[-1.0, 0.0, 1.0, 2.0]], np.float32)]], XNNPACK)
    row = row_of(comparison, "LOG")
    assert (row.isolated.not_finite, row.isolated.reference_not_finite, row.isolated.one_sided) == (2, 2, 0)
    assert row.isolated.elements == 2


def test_names_that_occur_twice_are_two_rows() -> None:
    model = Model(edit.with_renamed(Model(int8("mixed")), lambda index, name: "same"))
    comparison = compared(model.data, models.samples("mixed", 1))
    assert {row.node for row in comparison.rows} == {"same"}
    assert len({row.tensor_idx for row in comparison.rows}) == len(comparison.rows) == 13


def test_a_signature_can_be_named_and_the_others_are_noted(tmp_path: Path) -> None:
    module = tf.Module()
    module.add = tf.function(lambda x: tf.sin(x) + 1.0, input_signature=[tf.TensorSpec((1, 3), name="x")])
    module.multiply = tf.function(lambda y: tf.cos(y) * 2.0, input_signature=[tf.TensorSpec((1, 5), name="y")])
    with tf_private.captured_chatter():
        tf.saved_model.save(module, str(tmp_path), {name: getattr(module, name) for name in ("add", "multiply")})
        content = bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), ["add", "multiply"]).convert())
    samples = {"add": [{"x": np.ones((1, 3), np.float32)}], "multiply": [{"y": np.ones((1, 5), np.float32)}]}
    for name, op_names in (("add", {"SIN", "ADD"}), ("multiply", {"COS", "MUL"})):
        comparison = compared(content, samples[name], XNNPACK, signature=name)
        assert {row.op_name for row in comparison.rows} == op_names
        assert not any("left out" in note for note in comparison.notes)
    (key,) = [entry.key for entry in Model(content).signatures if entry.subgraph == 0]
    (other,) = {"add", "multiply"} - {key}
    comparison = compared(content, samples[key], XNNPACK)
    assert any("left out" in note and repr(other) in note for note in comparison.notes)


# ---------------------------------------------------------------------------------------------------- running, results


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("isolate", [True, False])
def test_the_result_does_not_depend_on_workers_and_processes(workers: int, isolate: bool) -> None:
    samples = models.samples("weighty", 5)
    expected = compared(int8("weighty"), samples)
    got = compared(int8("weighty"), samples, BUILTIN._replace(workers=workers, isolate=isolate))
    assert got.rows == expected.rows
    assert (got.samples, got.notes) == (5, expected.notes)


def test_parts_merge_to_the_whole() -> None:
    samples = models.samples("weighty", 4)
    whole = compared(int8("weighty"), samples)
    merged = compared(int8("weighty"), samples[:2]) + compared(int8("weighty"), samples[2:])
    assert merged.samples == whole.samples == 4
    for ours, theirs in zip(merged.rows, whole.rows, strict=True):
        assert ours.isolated.max_absolute == theirs.isolated.max_absolute
        assert ours.first_error.sum_squared == pytest.approx(theirs.first_error.sum_squared)
    with pytest.raises(ModelError, match="different models or kernels"):
        whole + compared(int8("mixed"), models.samples("mixed", 1))


def test_memory_does_not_grow_with_the_samples() -> None:
    sample = models.samples("chain", 1)[0]
    alone = BUILTIN._replace(isolate=False)

    def peak(count: int) -> int:
        tracemalloc.start()
        compared(int8("chain"), lambda: iter([sample] * count), alone)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(3)
    # 300 samples of 432 bytes, and as many results of some kilobytes, would show at once.
    assert peak(310) < peak(10) + 100_000


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    comparison = compared(int8("mixed"), models.samples("mixed", 2))
    path = tmp_path / "kernels.json"
    comparison.save(path)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    loaded = KernelComparison.load(path)
    assert loaded == comparison
    assert [verdict.text for verdict in loaded.verdicts()] == [verdict.text for verdict in comparison.verdicts()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "expected a saved kernel comparison of format version 1"),
        (b'{"format": "tflite_qdebug kernel comparison", "format_version": 99}', "version 99"),
        (b'{"format": "tflite_qdebug kernel comparison", "format_version": 1}', "is not a saved kernel comparison"),
        (b"not json", "is not a saved kernel comparison"),
        (None, "cannot read the comparison"),
    ],
)
def test_what_is_no_saved_comparison_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "kernels.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        KernelComparison.load(path)


def test_columns_have_one_value_per_row_in_execution_order() -> None:
    comparison = compared(int8("mixed"), models.samples("mixed", 2))
    columns = comparison.columns()
    assert {len(values) for values in columns.values()} == {len(comparison.rows)}
    assert list(columns["operator"]) == sorted(columns["operator"])
    position = list(columns["op_name"]).index("CONV_2D")
    row = comparison.rows[position]
    assert columns["share_differing"][position] == row.isolated.differing / row.isolated.elements
    assert columns["first_rmse"][position] == row.first_error.rmse
    assert np.isnan(columns["relative_rmse"][position])


def test_an_interruption_keeps_what_was_compared() -> None:
    def samples() -> Any:
        yield from models.samples("mixed", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        compared(int8("mixed"), samples)
    assert 1 <= caught.value.partial_comparison.samples <= 3


def test_provenance_says_what_ran() -> None:
    comparison = compared(int8("mixed"), models.samples("mixed", 2), limit=1)
    assert comparison.first["kernels"] == "builtin"
    assert comparison.second["runtime_version"] == tf.__version__
    assert comparison.provenance["model_sha256"] == Model(int8("mixed")).sha256
    assert comparison.provenance["samples"] == comparison.samples == 1


# ---------------------------------------------------------------------------------------------------------------- errors


def refuse_xnnpack(monkeypatch: pytest.MonkeyPatch, times: int = 99) -> None:
    new = tf_private.new_interpreter

    def refuse(runtime: Any, model: bytes, kernels: str, *arguments: Any, **keywords: Any) -> Any:
        if kernels == "auto":
            raise RuntimeError("failed to create XNNPACK runtime\nNode number 125 failed to prepare")
        return new(runtime, model, kernels, *arguments, **keywords)

    monkeypatch.setattr(tf_private, "new_interpreter", refuse)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_model_that_xnnpack_refuses_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch, isolate: bool) -> None:
    refuse_xnnpack(monkeypatch)
    with pytest.raises(InterpreterError, match=r"xnnpack, the model: XNNPACK refuses this model \(failed to create XNNPACK"):
        compared(int8("mixed"), models.samples("mixed", 1), XNNPACK._replace(isolate=isolate), BUILTIN)


def test_wrong_arguments_are_errors() -> None:
    content, samples = int8("mixed"), models.samples("mixed", 1)
    with pytest.raises(OptionError, match="reference of tensorflow twice"):
        compared(content, samples, REFERENCE, REFERENCE)
    with pytest.raises(OptionError, match="got kernels 'fast'"):
        compared(content, samples, REFERENCE, Backend("tensorflow", "fast"))
    with pytest.raises(OptionError, match="got signature 'nothing'"):
        compared(content, samples, signature="nothing")
    with pytest.raises(DatasetError, match="yielded no samples"):
        compared(content, [])
    with pytest.raises(DatasetError, match="got shape"):
        compared(content, [[np.zeros((1, 2), np.float32)]])
    with pytest.raises(ModelError, match="TensorFlow Lite flatbuffer"):
        compared(b"nothing at all", samples)
    with pytest.raises(InterpreterError, match=r"libnowhere.so.*cannot load the delegate"):
        compared(content, samples, BUILTIN, BUILTIN._replace(delegates=(Delegate("libnowhere.so"),)))


def test_a_signature_that_the_model_lacks_gets_the_nearest_name() -> None:
    signatures = [entry.key for entry in Model(int8("mixed")).signatures]
    assert signatures == ["serving_default"]
    with pytest.raises(OptionError, match="Did you mean 'serving_default'"):
        compared(int8("mixed"), models.samples("mixed", 1), signature="serving_defualt")
    named = compared(int8("mixed"), models.samples("mixed", 1), signature="serving_default")
    assert named.provenance["signature"] == "serving_default"


# ---------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    model = tmp_path / "int8.tflite"
    model.write_bytes(int8("attention"))
    np.savez(tmp_path / "debug.npz", tokens=np.concatenate([sample[0] for sample in models.samples("attention", 3)]))
    return str(model), str(tmp_path / "debug.npz")


def test_the_command_names_the_faulty_kernel(
    faulty: Any, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare-kernels", files[0], "--debug-data", files[1], "--runtime", "tensorflow"]
    assert main([*words, "--output", str(tmp_path / "out"), QUIET]) == 0
    printed = capsys.readouterr().out
    assert "xnnpack is wrong by" in printed
    assert "That is a fault of the kernels, not of quantization." in printed
    with (tmp_path / "out" / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["op_name"] for row in rows if "wrong" in row["verdict"]] == ["BATCH_MATMUL"]
    assert KernelComparison.load(tmp_path / "out" / "kernels.json").samples == 3
    assert json.loads((tmp_path / "out" / "repeat.json").read_text())["second"]["kernels"] == "reference"
    assert main([*words, "--fail-on-difference", "1", QUIET]) == 10
    assert "BATCH_MATMUL" in capsys.readouterr().err


def test_the_command_finds_no_fault_where_there_is_none(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare-kernels", files[0], "--debug-data", files[1], "--kernels", "builtin", "--fail-on-difference", "1"]
    assert main([*words, "--against", "tensorflow:reference", "--runtime", "tensorflow", QUIET]) == 0
    assert "No kernel is at fault" in capsys.readouterr().out
    assert main([*words, "--json", QUIET]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert KernelComparison.from_dict(result).samples == 3
    assert {verdict["kind"] for verdict in result["verdicts"]} <= {"same", "rounding"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--against", "refrence"], 2, "Did you mean 'reference'"),
        (["--against", "tensorfow:builtin"], 2, "Did you mean 'tensorflow:builtin'"),
        (["--against", "xnnpack"], 2, "xnnpack of tensorflow twice"),
        (["--against-delegate-option", "a=b"], 2, "without --against-delegate LIBRARY"),
        (["--against-delegate", "libnowhere.so"], 6, "cannot load the delegate libnowhere.so"),
        (["--signature", "nothing"], 2, "got signature 'nothing'"),
    ],
)
def test_wrong_options_are_a_message_with_a_code(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    given = ["compare-kernels", files[0], "--debug-data", files[1], "--runtime", "tensorflow"]
    assert main([*given, *words, QUIET]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_the_command_needs_data(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-kernels", files[0], QUIET]) == 2
    assert "--debug-data is needed" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- real models


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason=f"the real models are not at {SHARED_MODELS}")
@pytest.mark.parametrize(
    "name",
    [
        "keyword_spotting/kws_ref_model_int8",
        "mobilenet_v1_0.25/mobilenet_v1_0.25_224_quant_QAT",
        "mnist_lstm/trained_lstm_int8",
        "structure/hello_world_int8",
        "structure/dilated_conv",
        "structure/sdpa_composite",
        "face_detection/face_detection_short_range_f16",
        "coral/mobilenet_v1_0.25_128_quant",
    ],
)
def test_real_models_are_compared_without_a_fault(name: str) -> None:
    model = Model(SHARED_MODELS / f"{name}.tflite")
    generator = np.random.default_rng(0)

    def values(spec: Any) -> np.ndarray:
        shape = tuple(2 if size == -1 else size for size in spec.shape)
        if spec.dtypes[0] == np.float32:
            return generator.normal(0.0, 1.0, shape).astype(np.float32)
        limits = np.iinfo(spec.dtypes[0])
        return generator.integers(limits.min, limits.max, shape).astype(spec.dtypes[0])

    samples = [[values(spec) for spec in model.input_specs()] for _ in range(2)]
    for first, second in ((XNNPACK, REFERENCE), (BUILTIN, REFERENCE)):
        comparison = compared(model.data, samples, first, second)
        assert comparison.rows
        assert comparison.faults() == []
        assert {verdict.kind for verdict in comparison.verdicts()} <= {"same", "rounding"}
