"""Accumulated error: against whole-model runs, TensorFlow's own quantizer with a denylist, sweeps, and numpy."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
from test_mixed import results

from tflite_qdebug.analyses import cumulative_error
from tflite_qdebug.analyses.cumulative_error import accumulated_error
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.findings import Curve, Findings, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run
from tflite_qdebug.reports.sensitivity import curve_table, running_mean, write_curves_csv

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
QUIET: dict[str, Any] = {"backend": BACKEND, "progress": False}


@functools.cache
def quantized(name: str, kind: str = "int8", left: tuple[str, ...] = ()) -> bytes:
    return bytes(models.calibrated(name).quantize(kind, denylisted_nodes=left).data)


@functools.cache
def samples(name: str) -> list[list[np.ndarray]]:
    return models.samples(name, 4, seed=3)


def curves(name: str, kind: str = "int8", **options: Any) -> tuple[Curve, ...]:
    return accumulated_error(models.float_tflite(name), quantized(name, kind), samples(name), **{**QUIET, **options})


@functools.cache
def three(name: str, kind: str = "int8") -> tuple[Curve, ...]:
    return curves(name, kind)


def rmse(run: Run) -> dict[str, float]:
    return dict(zip([layer.node for layer in run.layers], run.statistics.rmse.tolist(), strict=True))


def nodes_of(name: str) -> list[str]:
    return [layer.node for layer in three(name)[0].run.layers]


ALL_KINDS = ["mixed", "two_by_two", "lstm", "embedding", "dynamic_batch"]


@pytest.mark.parametrize("kind", ["int8", "full_integer"])
@pytest.mark.parametrize("name", ALL_KINDS)
def test_all_is_what_a_run_of_the_whole_model_gives_to_the_last_bit(name: str, kind: str) -> None:
    found = three(name, kind)[0]
    assert (found.name, found.quantized, found.left_float) == ("all", ("all",), ())
    assert found.run.verify == "whole_model"
    whole = rmse(
        pair_error(models.float_tflite(name), quantized(name, kind), samples(name), whole_model=True, parts=0, **QUIET)
    )
    own = rmse(found.run)
    assert set(own) <= set(whole)  # which has the rounding of the inputs besides
    assert own == {node: whole[node] for node in own}
    assert max(own.values()) > 0


@pytest.mark.parametrize("name", ALL_KINDS)
def test_the_ends_are_the_parts_of_the_whole_models_error(name: str) -> None:
    pair = pair_error(models.float_tflite(name), quantized(name), samples(name), parts=True, **QUIET)
    everything, weights, _ = (rmse(curve.run) for curve in three(name))
    for position, output in enumerate(pair.outputs):
        assert pair.whole["quantized"].rmse[position] == everything[output]
        assert pair.whole["weights"].rmse[position] == weights[output]


def dense_by_hand(inputs: np.ndarray, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns both layers' values of `models.dynamic_batch`, what each reads rounded as the quantized model does."""
    first, bias, second, last = (values.astype(np.float64) for values in models.keras_model("dynamic_batch").get_weights())
    graph = Model(quantized("dynamic_batch")).main
    dense = [operator for operator in graph.operators if operator.name == "FULLY_CONNECTED"]

    def read(values: np.ndarray, index: int) -> np.ndarray:
        parameters = graph.tensors[index].quantization
        assert parameters is not None
        scale, zero = float(parameters.scale[0]), int(parameters.zero_point[0])
        # TensorFlow Lite rounds halves away from zero.
        steps = np.sign(values / scale) * np.floor(np.abs(values / scale) + 0.5)
        return (np.clip(steps + zero, -128, 127) - zero) * scale if rounded else values

    hidden = np.maximum(read(inputs.astype(np.float64), dense[0].inputs[0]) @ first + bias, 0.0)
    return hidden, read(hidden, dense[1].inputs[0]) @ second + last


def test_activations_alone_are_what_numpy_says() -> None:
    found = three("dynamic_batch")[2].run
    inputs = np.concatenate([sample[0] for sample in samples("dynamic_batch")])
    for position in range(2):
        error = dense_by_hand(inputs, True)[position] - dense_by_hand(inputs, False)[position]
        assert found.statistics.rmse[position] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)


def test_activations_of_the_pair_are_those_and_the_rounding_of_the_output() -> None:
    pair = pair_error(models.float_tflite("mixed"), quantized("mixed"), samples("mixed"), parts=True, **QUIET)
    ends = rmse(three("mixed")[2].run)
    scale = 1.0 / 256.0  # of SOFTMAX
    for output, value in zip(pair.outputs, pair.whole["activations"].rmse, strict=True):
        assert abs(value - ends[output]) <= scale / 2
        assert value == pytest.approx(np.hypot(ends[output], scale / np.sqrt(12)), rel=0.25)


@pytest.mark.parametrize("position", [0, 2, 6])
def test_one_node_alone_errs_from_there_on(position: int) -> None:
    node = nodes_of("mixed")[position]
    (found,) = curves("mixed", quantized=[node])
    assert (found.name, found.quantized) == (node, (node,))
    values = list(rmse(found.run).values())
    assert values[:position] == [0.0] * position
    assert values[position] > 0
    swept = sensitivity(models.float_tflite("mixed"), quantized("mixed"), samples("mixed"), nodes=[node], **QUIET)
    assert values[-1] ** 2 == pytest.approx(float(swept.errors.metric("mse")[0, 0]), rel=1e-9)


def test_either_output_names_a_split() -> None:
    left, right = (
        node for node, layer in zip(nodes_of("mixed"), three("mixed")[0].run.layers, strict=True) if layer.op_name == "SPLIT"
    )
    one, other = curves("mixed", quantized=[left, right])
    assert rmse(one.run) == rmse(other.run)
    assert rmse(one.run)[left] > 0
    assert rmse(one.run)[right] > 0
    before = nodes_of("mixed").index(left)
    assert list(rmse(one.run).values())[:before] == [0.0] * before


def test_groups_are_the_nodes_together() -> None:
    nodes = nodes_of("mixed")
    one, both, everything = curves("mixed", quantized=[nodes[0], [nodes[0], nodes[1]], nodes])
    assert both.quantized == (nodes[0], nodes[1])
    assert both.name == f"{nodes[0]} + {nodes[1]}"
    assert everything.name == f"{nodes[0]} + {len(nodes) - 1} more"
    values = [list(rmse(curve.run).values()) for curve in (one, both, everything)]
    assert values[0][0] == values[1][0] == values[2][0]
    assert values[0][1] != values[1][1] == values[2][1]
    assert values[2] == list(rmse(three("mixed")[0].run).values())


@pytest.mark.parametrize("word", ["weights", "activation"])
def test_a_word_beside_nodes_is_of_these_nodes_alone(word: str) -> None:
    node = nodes_of("mixed")[1]
    (found,) = curves("mixed", quantized=[[word, node]])
    assert found.quantized == (word, node)
    mode = {"weights": "weights", "activation": "activation"}[word]
    swept = sensitivity(models.float_tflite("mixed"), quantized("mixed"), samples("mixed"), nodes=[node], mode=mode, **QUIET)
    values = list(rmse(found.run).values())
    assert values[0] == 0.0
    assert values[1] > 0
    assert values[-1] ** 2 == pytest.approx(float(swept.errors.metric("mse")[0, 0]), rel=1e-9)


def test_weights_and_activations_together_are_the_node_and_all_beside_a_node_is_all() -> None:
    node = nodes_of("mixed")[1]
    found = curves("mixed", quantized=[["weights", "activation", node], node, ["all", node]])
    assert rmse(found[0].run) == rmse(found[1].run)
    assert rmse(found[2].run) == rmse(three("mixed")[0].run)


def exposed(model: bytes, names: list[str], inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns nodes' values, dequantized, as TensorFlow's interpreter computes them."""
    interpreter = models.run(model, inputs, "builtin")
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["name"] in names:
            values, (scale, zero) = interpreter.get_tensor(detail["index"]), detail["quantization"]
            found[detail["name"]] = values.astype(np.float64) if not scale else (values.astype(np.float64) - zero) * scale
    return found


@pytest.mark.parametrize(("name", "left"), [("mixed", (0,)), ("mixed", (1, 8)), ("two_by_two", (1,)), ("chain", (1, 2))])
def test_nodes_left_float_are_tensorflows_denylist(name: str, left: tuple[int, ...]) -> None:
    nodes = nodes_of(name)
    chosen = [nodes[position] for position in left]
    (found,) = curves(name, left_float=[chosen])
    assert (found.quantized, found.left_float) == ((), tuple(chosen))
    assert found.name == (f"all but {chosen[0]}" if len(chosen) == 1 else f"all but {len(chosen)} nodes")
    model = quantized(name, "int8", tuple(chosen))
    squares: dict[str, list[np.ndarray]] = {}
    for inputs in samples(name):
        floats = exposed(models.float_tflite(name), nodes, inputs)
        for node, values in exposed(model, nodes, inputs).items():
            squares.setdefault(node, []).append((values - floats[node]).reshape(-1) ** 2)
    # TensorFlow gives the outputs of a quantized SPLIT names of its own.
    assert {node for node in nodes if "split" not in node} <= set(squares)
    for node, value in rmse(found.run).items():
        assert node not in squares or value == pytest.approx(np.sqrt(np.mean(squares[node])), rel=1e-5, abs=1e-9)


def test_inputs_keep_their_order() -> None:
    floats = results(models.float_tflite("two_by_two"), samples("two_by_two"))
    integers = results(quantized("two_by_two"), samples("two_by_two"))
    own = rmse(three("two_by_two")[0].run)
    ends = [float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2))) for a, b in zip(integers, floats, strict=True)]
    assert sorted(ends) == pytest.approx(sorted(own[name] for name in list(own)[-2:]), rel=1e-6)


def test_samples_of_integers_are_their_dequantized_floats() -> None:
    content = quantized("mixed", "full_integer")
    graph = Model(content).main
    parameters = graph.tensors[graph.inputs[0]].quantization
    assert parameters is not None
    integers = [[parameters.quantize(sample[0], np.int8)] for sample in samples("mixed")]
    floats = [[parameters.dequantize(sample[0])] for sample in integers]
    one, two = (
        accumulated_error(models.float_tflite("mixed"), content, data, quantized=["all"], **QUIET)[0]
        for data in (integers, floats)
    )
    assert rmse(one.run) == rmse(two.run)


def test_state_does_not_leak_from_sample_to_sample() -> None:
    data = samples("lstm")
    forwards, backwards = (
        accumulated_error(models.float_tflite("lstm"), quantized("lstm"), order, quantized=["all"], **QUIET)[0]
        for order in (data, data[::-1])
    )
    assert list(rmse(forwards.run).values()) == pytest.approx(list(rmse(backwards.run).values()), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantized": ["weighs"]}, r"got node 'weighs'.*weights.*Did you mean 'weights'"),
        ({"quantized": [["weights", "nowhere"]]}, "got node 'nowhere', which the model has not"),
        ({"left_float": ["dense_1/BiasAdd"]}, r"Did you mean .*dense_1/BiasAdd"),
        ({"left_float": ["weights"]}, "got 'weights' to be left float, expected names of nodes"),
        ({"left_float": [["all"]]}, "got 'all' to be left float"),
        ({"quantized": [[]]}, r"got group \[\], expected the name of a node"),
        ({"quantized": [[3]]}, r"got group \[3\]"),
        ({"quantized": "weights"}, r"got quantized='weights', expected a list of groups"),
        ({"left_float": "weights"}, r"got left_float='weights', expected a list of groups"),
    ],
)
def test_wrong_groups_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        curves("mixed", **options)


def test_without_a_float_model_it_is_refused() -> None:
    with pytest.raises(ModelError, match="got no float model"):
        accumulated_error(None, quantized("mixed"), samples("mixed"), **QUIET)
    with pytest.raises(DatasetError, match="yielded no samples"):
        accumulated_error(models.float_tflite("mixed"), quantized("mixed"), lambda: iter(()), **QUIET)


def test_names_that_a_table_shortens_are_taken() -> None:
    node = next(name for name in nodes_of("mixed") if len(name) > 20)
    shortened = f"{node[:24]}…{node[-7:]}"
    assert shortened not in nodes_of("mixed")
    (found,) = curves("mixed", quantized=[shortened])
    assert rmse(found.run) == rmse(curves("mixed", quantized=[node])[0].run)


def test_what_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Curve] = []
    first = curves("chain", quantized=["all", "weights"], finished=kept.append)
    assert tuple(kept) == first
    save_part(tmp_path, "curves", first)
    pair_error(models.float_tflite("chain"), quantized("chain"), samples("chain"), **QUIET).save(tmp_path / "run.json")
    loaded = Findings.load(tmp_path).curves
    measured: list[str] = []
    true = cumulative_error._measured

    def counted(mixed: Any, forms: Any, name: str, *rest: Any) -> Any:
        measured.append(name)
        return true(mixed, forms, name, *rest)

    monkeypatch.setattr(cumulative_error, "_measured", counted)
    again = curves("chain", quantized=["weights", "activation", "all"], known=loaded)
    assert measured == ["activation"]
    assert rmse(again[0].run) == rmse(first[1].run)
    assert rmse(again[2].run) == rmse(first[0].run)
    # Other samples, as many of them, and another model: neither is known.
    others = models.samples("chain", 4, seed=9)
    accumulated_error(models.float_tflite("chain"), quantized("chain"), others, quantized=["all"], known=loaded, **QUIET)
    curves("chain", "full_integer", quantized=["all"], known=loaded)
    assert measured == ["activation", "all", "all"]


def test_finished_curves_survive_an_interruption() -> None:
    passes = []

    def data() -> Iterator[list[np.ndarray]]:
        passes.append(0)
        for sample in samples("chain"):
            if len(passes) > 1:  # one for each curve; the first sample, looked at before, is part of the first
                raise KeyboardInterrupt
            yield sample

    kept: list[Curve] = []
    with pytest.raises(KeyboardInterrupt):
        accumulated_error(
            models.float_tflite("chain"), quantized("chain"), data, **QUIET, quantized=["all", "weights"], finished=kept.append
        )
    assert [curve.name for curve in kept] == ["all"]
    assert rmse(kept[0].run) == rmse(three("chain")[0].run)


def test_a_loop_is_one_node() -> None:
    floating, content = control_flow_models.loop(), control_flow_models.quantized("loop")
    data = control_flow_models.samples(Model(floating), 3)
    found = accumulated_error(floating, content, data, quantized=["all"], **QUIET)[0].run
    whole = rmse(pair_error(floating, content, data, whole_model=True, parts=0, **QUIET))
    assert rmse(found) == {node: whole[node] for node in rmse(found)}


def test_the_table_and_the_file_hold_these_numbers(tmp_path: Path) -> None:
    found = three("mixed")
    header, rows = curve_table(found, "cosine", count=4)
    assert header == ["operator", "node", "all", "weights", "activation"]
    assert len(rows) == 4
    last = [curve.run.statistics.cosine[-1] for curve in found]
    assert [float(text) for text in rows[-1][2:]] == pytest.approx(last, rel=1e-3)
    write_curves_csv(found, tmp_path / "curves.csv", average=True)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(found[0].run.layers)
    column = lines[0].split(",").index("mse mean")
    means = [float(line.rsplit(",", len(lines[0].split(",")) - column)[1]) for line in lines[1 : 1 + len(found[0].run.layers)]]
    squares = found[0].run.statistics.rmse ** 2
    assert means == pytest.approx([squares[: position + 1].mean() for position in range(len(squares))])


def test_a_running_mean_leaves_out_what_is_no_number() -> None:
    values = np.array([np.nan, 2.0, np.inf, 4.0, -np.inf, 0.0])
    expected = [np.nan, 2.0, 2.0, 3.0, 3.0, 2.0]
    np.testing.assert_array_equal(running_mean(values), expected)
    assert json.dumps(running_mean(np.zeros(0)).tolist()) == "[]"
