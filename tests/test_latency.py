"""What operators take on the host: islands by hand, times that must be ordered, the verb, and the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import delegates
import numpy as np
import pytest

from tflite_qdebug import example, load_float_model
from tflite_qdebug.analyses.latency import latency
from tflite_qdebug.analyses.pairs import Pair, open_pair
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.errors import DatasetError, InterpreterError, OptionError
from tflite_qdebug.findings import Findings, save_part
from tflite_qdebug.latency_record import Latency, ModelTime, OperatorTime
from tflite_qdebug.reports.boards import island_lines, operator_table

BRIEF = {"seconds": 0.02, "operator_seconds": 0.001, "progress": False}


@pytest.fixture(scope="module")
def calibrated() -> Any:
    return load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset)


def samples(pair: Pair) -> Any:
    return open_dataset(example.debug_dataset, pair.quantized.input_specs(), "debug dataset", 2)


def entry(operator: int, op_name: str, median: float, computes: str = "integer", island: int = -1) -> OperatorTime:
    return OperatorTime(operator, op_name, f"node{operator}", median, median, 10, computes, island)


#: Two islands: one of 1 + 2 ms and 3 ms of conversion, one of 0.5 ms and 0.25 ms; 10 ms in all.
BY_HAND = Latency(
    (ModelTime("float", 4.0, 5.0, 10, "xnnpack"), ModelTime("quantized", 9.0, 9.5, 10, "xnnpack")),
    (
        entry(0, "QUANTIZE", 0.25, "converts"),
        entry(1, "CONV_2D", 3.0),
        entry(2, "DEQUANTIZE", 1.0, "converts", 0),
        entry(3, "HARD_SWISH", 1.0, "float", 0),
        entry(4, "MUL", 2.0, "float", 0),
        entry(5, "QUANTIZE", 2.0, "converts", 0),
        entry(6, "IF", float("nan")),
        entry(7, "DEQUANTIZE", 0.25, "converts", 1),
        entry(8, "SOFTMAX", 0.5, "float", 1),
    ),
    "tensorflow 1",
    "xnnpack",
)


def test_shares_and_islands_by_hand() -> None:
    assert BY_HAND.total == 10.0
    assert BY_HAND.share(BY_HAND.timed[1]) == 0.3
    first, second = BY_HAND.islands()
    assert (first.operators, first.nodes, first.computing, first.converting) == ((2, 3, 4, 5), ("node3", "node4"), 3.0, 3.0)
    assert (second.operators, second.nodes, second.computing, second.converting) == ((7, 8), ("node8",), 0.5, 0.25)
    assert BY_HAND.slowest() == [1, 4, 5, 2, 3, 8, 0, 7, 6]  # of equals the first, and last what was not measured
    lines = island_lines(BY_HAND)
    assert "float island 1: 6.00 ms, 60.0 % of all operators: 2 float operators 3.00 ms, conversion" in lines[0]
    header, rows = operator_table(BY_HAND, BY_HAND.slowest(2))
    assert rows[1][header.index("island")] == "1"
    assert rows[0][header.index("share")] == "30.0 %"


def test_the_latency_comes_back_from_its_file(tmp_path: Path) -> None:
    from tflite_qdebug.record import Run
    from tflite_qdebug.statistics import ErrorStatistics

    Run("per_layer", [], ErrorStatistics(0)).save(tmp_path / "run.json")
    save_part(tmp_path, "latency", BY_HAND)
    back = Findings.load(tmp_path).latency
    assert back is not None
    assert back.timed[:6] == BY_HAND.timed[:6]  # the seventh has NaN, which equals nothing
    assert np.isnan(back.timed[6].median)
    assert back.islands() == BY_HAND.islands()
    assert back.whole_models == BY_HAND.whole_models


def test_a_planted_float_node_is_the_only_island(calibrated: Any) -> None:
    whole = calibrated.quantize("int8")
    names = open_pair(None, whole.data).quantized.node_names()
    node = next(name for name in names if name.startswith("digits_1/block2_project"))
    pair = open_pair(example.MODEL_PATH, calibrated.quantize("int8", denylisted_nodes=[node]).data)
    found = latency(pair, samples(pair), **BRIEF)
    (island,) = found.islands()
    assert island.nodes == (node,)
    kinds = [found.timed[place].op_name for place in island.operators]
    assert sorted(kinds) == ["CONV_2D", "DEQUANTIZE", "QUANTIZE"]
    assert island.computing > 0
    assert island.converting > 0
    # The model's own edges convert too, and belong to no island.
    edges = [each for each in found.timed if each.computes == "converts" and each.island < 0]
    assert [each.op_name for each in edges] == ["QUANTIZE", "DEQUANTIZE"]


def test_every_operator_is_timed_and_the_whole_models_too(calibrated: Any) -> None:
    pair = open_pair(example.MODEL_PATH, calibrated.quantize("int8").data)
    found = latency(pair, samples(pair), **BRIEF)
    computed = [operator for operator in pair.quantized.main.operators if operator.index in {e.operator for e in found.timed}]
    assert [each.op_name for each in found.timed] == [operator.name for operator in computed]
    assert all(each.median > 0 and each.runs >= 10 and not each.note for each in found.timed)
    assert found.islands() == []
    assert [model.name for model in found.whole_models] == ["float", "quantized"]
    assert all(model.median > 0 and model.percentile_90 >= model.median for model in found.whole_models)


def test_a_kind_of_operator_that_is_made_slow_is_found(calibrated: Any, tmp_path: Path) -> None:
    """A delegate takes depthwise convolutions, and 3 ms longer for each: the model is as much slower, by their number."""
    pair = open_pair(None, calibrated.quantize("full_integer").data)
    depthwise = [op.index for op in pair.quantized.main.operators if op.name == "DEPTHWISE_CONV_2D"]
    claim = ",".join(map(str, depthwise))
    slow = delegates.delegate(delegates.build(tmp_path), mode="exact", claim=claim, delay=3000)
    found = latency(pair, samples(pair), backend=Backend(kernels="reference", delegates=(slow,)), **BRIEF)
    whole = found.model("quantized")
    assert whole is not None
    assert whole.median >= 3.0 * len(depthwise)


def test_what_cannot_be_measured_is_an_error(calibrated: Any) -> None:
    pair = open_pair(None, calibrated.quantize("int8").data)
    with pytest.raises(DatasetError, match="no sample"):
        latency(pair, [])
    with pytest.raises(OptionError, match="more than 0"):
        latency(pair, samples(pair), seconds=0)
    with pytest.raises(InterpreterError):
        latency(pair, samples(pair), backend=Backend(delegates=(delegates.Delegate("/nowhere.so"),)), **BRIEF)


def test_the_verb_writes_a_table_and_keeps_it_with_the_run(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert main(["run", "example", "--limit", "2", "--denylisted-op", "SOFTMAX", "--output", str(run), "--no-progress"]) == 0
    capsys.readouterr()
    words = ["latency", str(run), "--seconds", "0.02", "--operator-seconds", "0.001", "--no-progress"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "float island 1" in shown
    assert "slowest of" in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with (run / "latency.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == [each["node"] for each in found["timed"]]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1.0)
    assert Findings.load(run).latency is not None
    assert main(["latency", str(tmp_path / "absent")]) == 3
