"""The drop-in's contract with those who use ``tf.lite.experimental.QuantizationDebugger``, and what it offers beyond."""

from __future__ import annotations

import csv
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import debugger_models as scenarios
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import CHAIN_SHAPE, OurDebugger, OurOptions, chain_converter, dump, normal, operator_types
from tensorflow.lite.python import convert
from tensorflow.lite.python.metrics import metrics as tensorflow_metrics

import tflite_qdebug
from tflite_qdebug import Backend, Model, Run, collect, debugger, kernels, load_float_model
from tflite_qdebug.errors import DatasetError, MetricError, ModelError, OptionError

DEFAULTS = ["num_elements", "stddev", "mean_error", "max_abs_error", "mean_squared_error"]
COLUMNS = ["op_name", "tensor_idx", *DEFAULTS, "scale", "zero_point", "tensor_name"]
NOT_IN_DEBUG_MODE = "Please check if the quantized model is in debug mode"

# One convolution whose values can be worked out by hand; odd values, so that none of them is halfway between two steps.
GRID = np.random.default_rng(1).uniform(0.5, 9.0, (1, 3, 3, 1)).astype(np.float32)
KERNEL = np.array([[-1.0, 0.3], [0.25, 0.9]], dtype=np.float32).reshape(2, 2, 1, 1)


def grids() -> Iterator[list[np.ndarray]]:
    for factor in range(4):
        yield [GRID * factor]


def grid_converter(calibrate_only: bool = False) -> Any:
    converter = scenarios.converter_of(
        lambda x: tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "SAME")), [scenarios.spec(1, 3, 3, 1)], grids
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.experimental_lower_to_saved_model = False
    converter._experimental_calibrate_only = calibrate_only
    return converter


@pytest.fixture(scope="module")
def grid_models() -> dict[str, bytes]:
    """Float model, and TensorFlow's debug models with float and with int8 inputs and outputs, made without our code."""
    calibrated = grid_converter(calibrate_only=True).convert()
    return {
        "float": scenarios.float_bytes(grid_converter()),
        "float_io": convert.mlir_quantize(calibrated, enable_numeric_verify=True),
        "int8_io": convert.mlir_quantize(calibrated, enable_numeric_verify=True, fully_quantize=True),
        "not_debug": convert.mlir_quantize(calibrated),
    }


def convolved(values: np.ndarray, kernel: np.ndarray = KERNEL) -> np.ndarray:
    """The convolution and ReLU in numpy, ``(1, 3, 3, 1)``; SAME pads below and on the right."""
    padded = np.pad(values[0, :, :, 0].astype(np.float64), ((0, 1), (0, 1)))
    taps = [kernel[i, j, 0, 0] * padded[i : i + 3, j : j + 3] for i in (0, 1) for j in (0, 1)]
    return np.maximum(np.sum(taps, axis=0), 0.0).reshape(1, 3, 3, 1)


def errors_by_hand(quantized_input: bool) -> list[np.ndarray]:
    """What int8 does to the grids: weights in steps of 1/127, and input and output in steps of their range / 255."""
    input_step, output_step = 3.0 * GRID.max() / 255, max(convolved(sample[0]).max() for sample in grids()) / 255
    weights = np.round(KERNEL * 127.0) / 127.0
    errors = []
    for (values,) in grids():
        stepped = np.round(values / input_step) * input_step
        quantized = np.round(convolved(stepped, weights) / output_step) * output_step
        errors.append(quantized - convolved(stepped if quantized_input else values))
    return errors


def made(**arguments: Any) -> OurDebugger:
    """A debugger of the chain in debug mode."""
    arguments = {"quant_debug_model_content": scenarios.chain_models()[1], "debug_dataset": normal(CHAIN_SHAPE), **arguments}
    return OurDebugger(**arguments)


# ------------------------------------------------------------------------------------------------------------ signatures


def test_the_arguments_are_tensorflows_in_its_order() -> None:
    for ours, theirs in ((OurDebugger, scenarios.TheirDebugger), (OurOptions, scenarios.TheirOptions)):
        wanted, got = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
        assert list(got)[: len(wanted)] == list(wanted)
        for name, parameter in wanted.items():
            assert got[name].default == parameter.default
            assert got[name].kind == parameter.kind
        assert all(got[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(got)[len(wanted) :])


def test_public_members_of_tensorflows_classes_are_there() -> None:
    theirs = [name for name in vars(scenarios.TheirDebugger) if not name.startswith("_")]
    assert {"options", "run", "layer_statistics_dump", "get_nondebug_quantized_model"} <= set(theirs)
    assert set(theirs) <= set(vars(OurDebugger))
    assert tflite_qdebug.QuantizationDebugger is OurDebugger
    assert tflite_qdebug.QuantizationDebugOptions is OurOptions


def test_options_keep_what_they_are_given_and_can_be_changed() -> None:
    given: dict[str, Any] = {
        "layer_debug_metrics": {"a": np.mean},
        "model_debug_metrics": {"b": np.mean},
        "layer_direct_compare_metrics": {"c": np.mean},
        "denylisted_ops": ["CONV_2D"],
        "denylisted_nodes": ["node"],
        "fully_quantize": True,
    }
    options = OurOptions(*given.values())
    for name, value in given.items():
        assert getattr(options, name) is value
        setattr(options, name, None)
        assert getattr(options, name) is None
    empty = OurOptions()
    assert [getattr(empty, name) for name in given] == [None, None, None, None, None, False]


@pytest.mark.parametrize("pair", [("layer", "model"), ("model", "direct"), ("layer", "direct")])
def test_one_name_for_two_metrics_is_an_error(pair: tuple[str, str]) -> None:
    arguments = {"layer": "layer_debug_metrics", "model": "model_debug_metrics", "direct": "layer_direct_compare_metrics"}
    with pytest.raises(ValueError, match=r"^Provided metrics have duplicate keys\.$"):
        OurOptions(**{arguments[name]: {"same": np.mean, name: np.mean} for name in pair})


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, None),
        (None, None),
        ({"scales": [], "zero_points": []}, None),
        ({"scales": [1.0], "zero_points": []}, None),
        ({"scales": [], "zero_points": [3]}, None),
        ({"scales": np.array([], np.float32), "zero_points": np.array([], np.int32)}, None),
        ({"scales": [0.25, 4.0], "zero_points": [-7, 3]}, (0.25, -7)),
        ({"scales": np.array([0.25], np.float32), "zero_points": np.array([0], np.int32)}, (0.25, 0)),
        ({"scales": np.array([0.5, 1.0], np.float32), "zero_points": np.array([0, 1], np.int32)}, (0.5, 0)),
    ],
)
def test_get_quant_params(parameters: Any, wanted: Any) -> None:
    assert debugger._get_quant_params({"quantization_parameters": parameters}) == wanted


# --------------------------------------------------------------------------------------------------------------- counter


@pytest.mark.parametrize("from_converter", [False, True])
def test_each_construction_is_counted_once(from_converter: bool) -> None:
    name = "increase_counter_debugger_creation"
    with mock.patch.object(tensorflow_metrics.TFLiteMetrics, name) as counter:
        ours = made() if not from_converter else OurDebugger(converter=chain_converter(1), debug_dataset=normal(CHAIN_SHAPE))
        counter.assert_called_once_with()
        ours.run()
        ours.options = OurOptions()
        counter.assert_called_once_with()


# ---------------------------------------------------------------------------------------------------------------- errors


def test_a_converter_without_optimizations_is_an_error() -> None:
    converter = chain_converter(1)
    converter.optimizations = []
    with pytest.raises(ValueError, match=r"^converter object must set optimizations to lite\.Optimize\.DEFAULT"):
        OurDebugger(converter=converter, debug_dataset=normal(CHAIN_SHAPE))


def test_a_converter_without_representative_dataset_is_an_error() -> None:
    converter = chain_converter(1)
    converter.representative_dataset = None
    with pytest.raises(ValueError, match=r"^converter object must set representative_dataset"):
        OurDebugger(converter=converter, debug_dataset=normal(CHAIN_SHAPE))


def test_a_model_that_is_not_in_debug_mode_is_an_error(grid_models: dict[str, bytes]) -> None:
    for name in ("not_debug", "float"):
        with pytest.raises(ValueError, match="^" + NOT_IN_DEBUG_MODE):
            OurDebugger(quant_debug_model_content=grid_models[name], debug_dataset=grids)


@pytest.mark.parametrize("arguments", [{}, {"float_model_content": b"unused"}, {"quant_debug_model_content": b""}])
def test_no_model_at_all_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`model_path` or `model_content` must be specified\."):
        OurDebugger(debug_dataset=grids, **arguments)


def test_model_metrics_without_float_model_are_an_error(grid_models: dict[str, bytes]) -> None:
    options = OurOptions(model_debug_metrics={"metric": lambda *_: 0.0})
    content = grid_models["float_io"]
    with pytest.raises(ValueError, match=r"`model_path` or `model_content` must be specified\."):
        OurDebugger(quant_debug_model_content=content, debug_dataset=grids, debug_options=options)


@pytest.mark.parametrize("fully_quantize", [False, True])
@pytest.mark.parametrize("denylist", [{"denylisted_ops": ["CONV_2D"]}, {"denylisted_nodes": ["Identity"]}], ids=str)
def test_a_denylist_that_leaves_nothing_is_an_error(fully_quantize: bool, denylist: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="^" + NOT_IN_DEBUG_MODE):
        OurDebugger(
            converter=grid_converter(),
            debug_dataset=grids,
            debug_options=OurOptions(fully_quantize=fully_quantize, **denylist),
        )
    options = OurOptions(fully_quantize=fully_quantize)
    ours = OurDebugger(converter=grid_converter(), debug_dataset=grids, debug_options=options)
    ours.run()
    before = ours.layer_statistics
    changed = OurOptions(fully_quantize=fully_quantize, **denylist)
    with pytest.raises(ValueError, match="^" + NOT_IN_DEBUG_MODE):
        ours.options = changed
    # What failed has changed nothing.
    assert ours.options is options
    assert ours.layer_statistics is before
    assert len(dump(ours)[1]) == 1


def test_a_wrong_number_of_inputs_is_an_error_of_run(grid_models: dict[str, bytes]) -> None:
    twice = OurDebugger(
        quant_debug_model_content=grid_models["float_io"], debug_dataset=lambda: ([GRID, GRID] for _ in range(2))
    )
    with pytest.raises(ValueError, match=r"Number of inputs provided \(2\) does not match number of inputs to the model \(1\)"):
        twice.run()


def test_quantized_models_need_a_converter() -> None:
    text = r"^No converter found, use this function with the converter option in the constructor\."
    for call in (made().get_nondebug_quantized_model, made().get_debug_quantized_model):
        with pytest.raises(ValueError, match=text):
            call()


def test_running_without_a_dataset_is_an_error() -> None:
    with pytest.raises(DatasetError, match="debug_dataset"):
        made(debug_dataset=None).run()


def test_before_run_there_are_no_results(tmp_path: Path) -> None:
    ours = made()
    assert ours.layer_statistics is None
    assert ours.model_statistics is None
    assert ours.result is None
    for call in (lambda: ours.layers, lambda: ours.save(tmp_path / "run.json")):
        with pytest.raises(ValueError, match=r"call run\(\) first"):
            call()


@pytest.mark.parametrize("argument", ["layer_debug_metrics", "layer_direct_compare_metrics", "model_debug_metrics"])
def test_a_metric_that_fails_is_named(argument: str) -> None:
    def broken(*_: Any) -> float:
        raise KeyError("lost")

    options = OurOptions(**{argument: {"broken": broken}})
    ours = made(float_model_content=scenarios.chain_models()[0], debug_options=options)
    with pytest.raises(MetricError, match=r"'broken' failed on .*sample 0: KeyError"):
        ours.run()
    ours.options = OurOptions(**{argument: {"shape": lambda *_: np.zeros(3)}})
    with pytest.raises(MetricError, match=r"'shape'.*expected one number"):
        ours.run()


# -------------------------------------------------------------------------------------------------------------- results


def grid_debugger(models: dict[str, bytes], source: str, quantized: bool, path: Path, options: OurOptions) -> OurDebugger:
    content = models["int8_io" if quantized else "float_io"]
    if source == "content":
        return OurDebugger(quant_debug_model_content=content, debug_dataset=grids, debug_options=options)
    if source == "path":
        (path / "debug.tflite").write_bytes(content)
        return OurDebugger(str(path / "debug.tflite"), debug_dataset=grids, debug_options=options)
    options.fully_quantize = quantized
    return OurDebugger(
        converter=grid_converter(calibrate_only=source == "calibrate-only converter"),
        debug_dataset=grids,
        debug_options=options,
    )


@pytest.mark.parametrize("quantized", [False, True], ids=["float_io", "int8_io"])
@pytest.mark.parametrize("source", ["content", "path", "converter", "calibrate-only converter"])
def test_the_figures_are_those_worked_out_by_hand(
    grid_models: dict[str, bytes], source: str, quantized: bool, tmp_path: Path
) -> None:
    options = OurOptions(layer_debug_metrics={"l1": lambda error: np.mean(np.abs(error))})
    ours = grid_debugger(grid_models, source, quantized, tmp_path, options)
    ours.run()
    assert ours.layer_statistics is not None
    ((key, row),) = ours.layer_statistics.items()
    assert key.startswith("NumericVerify/Identity")
    assert key.endswith(":7")
    assert list(row) == [*DEFAULTS, "l1"]
    errors = errors_by_hand(quantized_input=quantized)
    by_hand = {
        "num_elements": 9,
        "stddev": np.mean([error.std() for error in errors]),
        "mean_error": np.mean([error.mean() for error in errors]),
        "max_abs_error": np.mean([np.abs(error).max() for error in errors]),
        "mean_squared_error": np.mean([np.mean(error**2) for error in errors]),
        "l1": np.mean([np.abs(error).mean() for error in errors]),
    }
    for name, value in by_hand.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name

    columns, rows = dump(ours)
    assert columns == [*COLUMNS[:7], "l1", *COLUMNS[7:]]
    (line,) = rows
    assert (line["op_name"], line["tensor_idx"], line["tensor_name"]) == ("CONV_2D", "7", "Identity")
    assert float(line["scale"]) == pytest.approx(convolved(GRID * 3).max() / 255, rel=1e-6)
    assert line["zero_point"] == "-128"
    assert {name: float(line[name]) for name in row} == row


@pytest.mark.parametrize("quantized", [False, True], ids=["float_io", "int8_io"])
@pytest.mark.parametrize("source", ["content", "converter"])
def test_direct_metrics_receive_floats_raw_integers_scale_and_zero_point(
    grid_models: dict[str, bytes], source: str, quantized: bool, tmp_path: Path
) -> None:
    received: list[tuple[Any, ...]] = []
    metrics = {"first": lambda *arguments: float(received.append(arguments) or 1.0), "second": lambda *_: 2.0}
    options = OurOptions(layer_direct_compare_metrics=metrics)
    ours = grid_debugger(grid_models, source, quantized, tmp_path, options)
    ours._backend = Backend(workers=1)
    ours.run()
    assert len(received) == 4
    errors = errors_by_hand(quantized)
    for (values,), error, (floats, integers, scale, zero_point) in zip(grids(), errors, received, strict=True):
        assert floats.shape == integers.shape == (1, 3, 3, 1)
        assert (floats.dtype, integers.dtype, zero_point) == (np.float32, np.int8, -128)
        dequantized = (integers.astype(np.int32) - zero_point) * scale
        np.testing.assert_allclose(dequantized - floats, error, atol=1e-5)
        if not quantized:
            np.testing.assert_allclose(floats, convolved(values), atol=1e-5)
    assert ours.layer_statistics is not None
    (row,) = ours.layer_statistics.values()
    assert (list(row), row["first"], row["second"]) == ([*DEFAULTS, "first", "second"], 1.0, 2.0)
    assert dump(ours)[0] == [*COLUMNS[:7], "first", "second", *COLUMNS[7:]]


@pytest.mark.parametrize("quantized", [False, True], ids=["float_io", "int8_io"])
@pytest.mark.parametrize("source", ["path", "content", "converter"])
def test_model_metrics_receive_float_and_dequantized_outputs(
    grid_models: dict[str, bytes], source: str, quantized: bool, tmp_path: Path
) -> None:
    received: list[tuple[Any, Any]] = []
    metrics = {"spread": lambda f, q: np.std(f[0] - q[0]), "seen": lambda *both: float(received.append(both) or 0.0)}
    options = OurOptions(model_debug_metrics=metrics, fully_quantize=quantized)
    arguments: dict[str, Any] = {"debug_dataset": grids, "debug_options": options, "backend": Backend(workers=1)}
    content = grid_models["int8_io" if quantized else "float_io"]
    if source == "converter":
        arguments["converter"] = grid_converter()
    elif source == "content":
        arguments.update(quant_debug_model_content=content, float_model_content=grid_models["float"])
    else:
        (tmp_path / "debug.tflite").write_bytes(content)
        (tmp_path / "float.tflite").write_bytes(grid_models["float"])
        arguments.update(quant_debug_model_path=tmp_path / "debug.tflite", float_model_path=tmp_path / "float.tflite")
    ours = OurDebugger(**arguments)
    ours.run()
    assert list(ours.model_statistics or ()) == ["spread", "seen"]
    errors = errors_by_hand(quantized_input=False)
    for (values,), error, (floats, quantized_outputs) in zip(grids(), errors, received, strict=True):
        assert isinstance(floats, list)
        assert isinstance(quantized_outputs, list)
        assert len(floats) == len(quantized_outputs) == 1
        np.testing.assert_allclose(floats[0], convolved(values), atol=1e-5)
        np.testing.assert_allclose(quantized_outputs[0] - floats[0], error, atol=1e-4)
    assert (ours.model_statistics or {})["spread"] == pytest.approx(np.mean([error.std() for error in errors]), abs=1e-5)


def test_statistics_are_in_execution_order_with_exactly_the_metrics_asked_for() -> None:
    ours = made()
    ours.run()
    assert ours.layer_statistics is not None
    graph = Model(scenarios.chain_models()[1]).main
    verifiers = [operator for operator in graph.operators if operator.name == "NumericVerify"]
    assert list(ours.layer_statistics) == [graph.tensors[operator.outputs[0]].name for operator in verifiers]
    assert all(list(row) == DEFAULTS for row in ours.layer_statistics.values())
    rows = dump(ours)[1]
    assert [int(row["tensor_idx"]) for row in rows] == [operator.inputs[0] for operator in verifiers]
    for row in rows:
        tensor = graph.tensors[int(row["tensor_idx"])]
        assert tensor.quantization is not None
        assert row["op_name"] == graph.producers[tensor.index].name
        assert float(row["scale"]) == pytest.approx(float(tensor.quantization.scale[0]), rel=1e-6)
        assert int(row["zero_point"]) == int(tensor.quantization.zero_point[0])
    assert ours.model_statistics is None


def test_a_users_metric_replaces_the_default_of_its_name() -> None:
    plain, ours = made(), made(debug_options=OurOptions(layer_debug_metrics={"mean_error": np.max, "size": np.size}))
    plain.run()
    ours.run()
    assert plain.layer_statistics is not None
    assert ours.layer_statistics is not None
    for row, other in zip(ours.layer_statistics.values(), plain.layer_statistics.values(), strict=True):
        assert list(row) == [*DEFAULTS, "size"]
        assert row["mean_error"] > other["mean_error"]
        assert row["mean_error"] <= row["max_abs_error"] + 1e-6
        assert row["size"] == row["num_elements"] == 256
    assert dump(ours)[0] == [*COLUMNS[:7], "size", *COLUMNS[7:]]


# ------------------------------------------------------------------------------------------------------------------ csv


def test_the_csv_has_a_header_before_run_and_crlf_after() -> None:
    ours = made(debug_options=OurOptions(layer_debug_metrics={"l1": lambda error: np.mean(np.abs(error))}))
    header = ",".join([*COLUMNS[:7], "l1", *COLUMNS[7:]]) + "\r\n"
    file = io.StringIO(newline="")
    ours.layer_statistics_dump(file)
    assert file.getvalue() == header
    ours.run()
    file = io.StringIO(newline="")
    ours.layer_statistics_dump(file)
    text = file.getvalue()
    assert text.startswith(header)
    assert text.count("\r\n") == text.count("\n") == text.count("\r") == 5
    # What TensorFlow's own users do: split at white space.
    assert list(csv.DictReader(text.split())) == dump(ours)[1]


def test_the_csv_shows_what_was_run_also_when_the_options_change_afterwards() -> None:
    options = OurOptions(layer_debug_metrics={"l1": lambda error: np.mean(np.abs(error))})
    ours = made(debug_options=options)
    ours.run()
    before = dump(ours)
    options.layer_debug_metrics = None
    assert dump(ours) == before


def test_the_csv_can_be_written_to_a_file(tmp_path: Path) -> None:
    ours = made()
    ours.run()
    with (tmp_path / "layers.csv").open("w", newline="") as file:
        ours.layer_statistics_dump(file)
    assert (tmp_path / "layers.csv").read_bytes().count(b"\r\n") == 5


# ------------------------------------------------------------------------------------------------- converter and setter


def test_attributes_in_converter_mode() -> None:
    converter = chain_converter()
    before = {name: value for name, value in vars(converter).items() if name != "kept_alive"}
    spec_before = dict(vars(converter.target_spec))
    ours = OurDebugger(converter=converter, debug_dataset=normal(CHAIN_SHAPE))
    assert ours.converter is converter
    after = {name: value for name, value in vars(converter).items() if name != "kept_alive"}
    assert after.keys() == before.keys()
    assert [name for name in before if name != "target_spec" and after[name] is not before[name]] == []
    assert vars(converter.target_spec) == spec_before
    assert operator_types(ours.float_model) == {"CONV_2D": {"float32"}}
    assert any(tensor.minimum is not None for tensor in Model(ours.calibrated_model).main.tensors)
    assert "NumericVerify" in {operator.name for operator in Model(ours.quant_model).main.operators}
    assert operator_types(ours.get_nondebug_quantized_model()) == {"CONV_2D": {"int8"}}
    assert operator_types(ours.get_debug_quantized_model()) == {"CONV_2D": {"int8", "float32"}}
    wanted = scenarios.outputs_of(chain_converter().convert(), normal(CHAIN_SHAPE))
    got = scenarios.outputs_of(ours.get_nondebug_quantized_model(), normal(CHAIN_SHAPE))
    np.testing.assert_array_equal(got, wanted)


def test_attributes_in_content_mode() -> None:
    ours = made(float_model_content=scenarios.chain_models()[0])
    assert ours.converter is None
    assert ours.calibrated_model is None
    assert ours.float_model == scenarios.chain_models()[0]
    assert ours.quant_model == scenarios.chain_models()[1]


def test_a_converter_in_calibrate_only_mode_stays_so() -> None:
    converter = grid_converter(calibrate_only=True)
    ours = OurDebugger(converter=converter, debug_dataset=grids)
    ours.run()
    assert converter._experimental_calibrate_only is True
    assert operator_types(ours.get_nondebug_quantized_model()) == {"CONV_2D": {"int8"}}


def test_the_setter_quantizes_anew_without_converting_and_clears_the_statistics() -> None:
    options = OurOptions(model_debug_metrics={"zero": lambda *_: 0.0})
    ours = OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=options)
    ours.run()
    names = list(ours.layers["node"])
    calibrated, model = ours.calibrated_model, ours.quant_model
    changed = OurOptions(denylisted_nodes=names[:2])
    with mock.patch.object(tf.lite.TFLiteConverter, "convert", side_effect=AssertionError("converted again")):
        ours.options = changed
    assert ours.options is changed
    assert (ours.layer_statistics, ours.model_statistics, ours.result) == (None, None, None)
    assert ours.calibrated_model is calibrated
    assert ours.quant_model != model
    ours.run()
    assert list(ours.layers["node"]) == names[2:]
    assert operator_types(ours.get_nondebug_quantized_model()) == {"CONV_2D": {"int8", "float32"}}
    ours.options = OurOptions()
    ours.run()
    assert list(ours.layers["node"]) == names


def test_the_same_options_object_can_be_changed_and_set_again() -> None:
    options = OurOptions()
    ours = OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=options)
    ours.options.denylisted_nodes = [Model(ours.float_model).node_names()[0]]
    ours.options = ours.options
    ours.run()
    assert ours.options is options
    assert len(ours.layer_statistics or ()) == 3


def test_fully_quantize_quantizes_inputs_and_outputs() -> None:
    ours = OurDebugger(
        converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=OurOptions(fully_quantize=True)
    )
    for data in (ours.quant_model, ours.get_nondebug_quantized_model(), ours.get_debug_quantized_model()):
        graph = Model(data).main
        assert {graph.tensors[index].dtype.name for index in (*graph.inputs, *graph.outputs)} == {"int8"}
    ours.run()
    assert len(ours.layer_statistics or ()) == 4


def test_per_tensor_weights_are_debugged_as_such() -> None:
    scales, errors = [], []
    for disabled in (False, True):
        converter = chain_converter(2)
        converter._experimental_disable_per_channel = disabled
        ours = OurDebugger(converter=converter, debug_dataset=normal(CHAIN_SHAPE))
        graph = Model(ours.quant_model).main
        scales.append({len(t.quantization.scale) for t in graph.tensors if t.is_constant and t.dtype == np.int8})
        ours.run()
        errors.append(ours.layers["rmse"].to_numpy())
    assert scales == [{4}, {1}]
    assert not np.allclose(errors[0], errors[1], rtol=1e-3)  # measured with the weights of that kind


def test_whole_model_verify_measures_what_has_accumulated() -> None:
    rows = []
    for whole in (False, True):
        ours = OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), whole_model_verify=whole)
        ours.run()
        assert ours.result is not None
        assert ours.result.verify == ours.result.provenance["verify"] == ("whole_model" if whole else "per_layer")
        rows.append(ours.layers["rmse"].to_numpy())
        again = OurDebugger(quant_debug_model_content=ours.quant_model, debug_dataset=normal(CHAIN_SHAPE))
        again.run()
        assert again.result is not None
        assert again.result.verify == ours.result.verify  # told from the model alone
    assert rows[1][0] == pytest.approx(rows[0][0])
    assert rows[1][3] > 1.5 * rows[0][3]


# --------------------------------------------------------------------------------------------------------- beyond TensorFlow


def test_layers_hold_the_pooled_figures() -> None:
    errors: list[np.ndarray] = []
    options = OurOptions(layer_debug_metrics={"kept": lambda error: float(errors.append(error.copy()) or 0.0)})
    ours = made(debug_options=options, backend=Backend(workers=1))
    ours.run()
    frame = ours.layers
    assert list(frame["op_name"]) == ["CONV_2D"] * 4
    assert list(frame["num_elements"]) == [8 * 256] * 4
    for position in range(4):
        error = np.stack(errors[position::4]).astype(np.float64)
        row = frame.iloc[position]
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)
        assert row["bias"] == pytest.approx(error.mean(), rel=1e-4, abs=1e-7)
        assert row["max_abs_error"] == pytest.approx(np.abs(error).max(), rel=1e-5)
        assert row["rmse_over_scale"] == pytest.approx(row["rmse"] / row["scale"], rel=1e-6)
        assert row["worst_sample"] == int(np.argmax([np.mean(one**2) for one in error]))


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    ours = made(debug_options=OurOptions(layer_debug_metrics={"l1": lambda error: np.mean(np.abs(error))}))
    ours.run()
    ours.save(tmp_path / "run.json")
    assert ours.result is not None
    loaded = Run.load(tmp_path / "run.json")
    assert loaded.to_dict() == ours.result.to_dict()
    assert loaded.tensorflow_statistics() == ours.layer_statistics
    assert loaded.frame().equals(ours.layers)


def test_progress_is_drawn_on_standard_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    ours = made()
    capfd.readouterr()
    ours.run(progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "measuring 4 layers" in shown.err
    ours.run()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    reference, ours = made(backend=Backend(workers=3)), made(backend=Backend(workers=workers))
    reference.run()
    ours.run()
    assert ours.layer_statistics == reference.layer_statistics
    assert ours.layers.equals(reference.layers)


def test_numpy_alone_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = made()
    ours.run()
    monkeypatch.setattr(collect, "measure_pair", lambda: ("numpy", kernels._with_numpy))
    plain = made()
    plain.run()
    assert plain.result is not None
    assert plain.result.provenance["statistics"] == "numpy"
    frame, plain_frame = ours.layers, plain.layers
    for name in frame.columns:
        if frame[name].dtype.kind not in "if":
            assert list(frame[name]) == list(plain_frame[name])
        else:
            np.testing.assert_allclose(frame[name], plain_frame[name], rtol=2e-5, atol=1e-7, err_msg=name)
    for row, plain_row in zip((ours.layer_statistics or {}).values(), (plain.layer_statistics or {}).values(), strict=True):
        assert plain_row == pytest.approx(row, rel=2e-5, abs=1e-7)


def test_a_debug_model_given_with_its_float_model_shows_the_float_models_names() -> None:
    float_model, debug_model = scenarios.chain_models()
    ours = made(float_model_content=float_model)
    ours.run()
    assert list(ours.layers["node"]) == Model(float_model).node_names()
    alone = made()  # without it, names are the debug model's, less the digits of the model's output
    alone.run()
    assert list(alone.layers["node"]) == Model(float_model).node_names()
    assert debug_model == alone.quant_model


def test_a_keras_model_on_the_layer_names_of_its_converter() -> None:
    keras = pytest.importorskip("keras", minversion="3.0")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3), batch_size=1),
            keras.layers.Conv2D(4, 3, activation="relu", name="stem"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations, converter.representative_dataset = [tf.lite.Optimize.DEFAULT], normal((1, 8, 8, 3))
    ours = OurDebugger(converter=converter, debug_dataset=normal((1, 8, 8, 3)))
    ours.run()
    assert list(ours.layers["op_name"]) == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert "stem" in ours.layers["node"][0]
    assert set(ours.layers["node"]) <= set(load_float_model(ours.float_model).model.node_names())


def test_options_that_contradict_the_converter_are_errors() -> None:
    converter = chain_converter(1)
    converter.target_spec.supported_types = [tf.float16]
    with pytest.raises(OptionError, match="float16"):
        OurDebugger(
            converter=converter, debug_dataset=normal(CHAIN_SHAPE), debug_options=OurOptions(denylisted_ops=["CONV_2D"])
        )
    with pytest.raises(ModelError, match="expected a TensorFlow Lite flatbuffer"):
        OurDebugger(quant_debug_model_content=b"no model at all", debug_dataset=grids)
    with pytest.raises(ModelError, match="cannot read the model"):
        OurDebugger("/no/such/model.tflite", debug_dataset=grids)
