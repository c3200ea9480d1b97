"""What the analyses found, saved and loaded: every part, to the last bit, or a clear error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import findings_by_hand as made
import made_outcome
import numpy as np
import pytest

from tflite_qdebug.errors import ModelError, OptionError, OutputError
from tflite_qdebug.findings import MODES, PLACES, Findings, GraphNode, SampleError, save_part
from tflite_qdebug.outcome import Recipe
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.record import Run
from tflite_qdebug.statistics import ErrorStatistics, Histogram

# The others: one file for each mode, and a run, which is saved as runs are.
PLAIN_PARTS = [part for part in PLACES if part not in ("sensitivity", "fixed")]


def save(findings: Findings, folder: Path) -> None:
    findings.run.save(folder / "run.json")
    for part in PLAIN_PARTS:
        save_part(folder, part, getattr(findings, part))
    for mode, value in findings.sensitivity.items():
        save_part(folder, "sensitivity", value, mode)
    save_part(folder, "fixed", findings.fixed)


def assert_equal(first: Any, second: Any, where: str = "findings") -> None:
    """Compares everything in two values, NaN being equal to NaN, and types as well."""
    if isinstance(first, (Run, ErrorStatistics, Histogram, OutputErrors)):
        assert type(first) is type(second), where
        assert_equal(first.to_dict(), second.to_dict(), where)
    elif dataclasses.is_dataclass(first):
        assert type(first) is type(second), where
        for field in dataclasses.fields(first):
            assert_equal(getattr(first, field.name), getattr(second, field.name), f"{where}.{field.name}")
    elif isinstance(first, np.ndarray):
        assert isinstance(second, np.ndarray), where
        assert first.dtype == second.dtype, where
        np.testing.assert_array_equal(first, second, err_msg=where)
    elif isinstance(first, Mapping):
        assert dict(first).keys() == dict(second).keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, (tuple, list)):
        assert type(first) is type(second), where
        assert len(first) == len(second), where
        for position, (mine, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(mine, other, f"{where}[{position}]")
    elif isinstance(first, float) and np.isnan(first):
        assert np.isnan(second), where
    else:
        assert first == second, where
        assert type(first) is type(second), where


# -- saving and loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PLAIN_PARTS)
def test_each_part_survives(part: str, tmp_path: Path) -> None:
    findings = made.findings()
    findings.run.save(tmp_path / "run.json")
    path = save_part(tmp_path, part, getattr(findings, part))
    assert path == tmp_path / PLACES[part]
    loaded = Findings.load(tmp_path)
    assert_equal(getattr(findings, part), getattr(loaded, part), part)
    others = [getattr(loaded, other) for other in PLAIN_PARTS if other != part]
    assert not any(others)


@pytest.mark.parametrize("mode", MODES)
def test_each_sensitivity_survives(mode: str, tmp_path: Path) -> None:
    findings = made.findings()
    findings.run.save(tmp_path / "run.json")
    save_part(tmp_path, "sensitivity", findings.sensitivity[mode], mode)
    loaded = Findings.load(tmp_path)
    assert list(loaded.sensitivity) == [mode]
    assert_equal(findings.sensitivity[mode], loaded.sensitivity[mode])
    assert loaded.sensitivity[mode].order() == findings.sensitivity[mode].order()


def test_all_of_it_survives_and_can_be_saved_again(tmp_path: Path) -> None:
    findings = made.findings()
    save(findings, tmp_path / "first")
    loaded = Findings.load(tmp_path / "first")
    assert_equal(dataclasses.replace(findings, name="first"), loaded)
    save(loaded, tmp_path / "second")
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.json"))
    assert len(files) == 2 + len(PLAIN_PARTS) + len(MODES)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_files_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    save(made.findings(), tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_bytes(), parse_constant=refuse)


def test_infinities_and_labels_of_all_kinds_survive(tmp_path: Path) -> None:
    made.run().save(tmp_path / "run.json")
    labels: list[Any] = [3, "katze", None, (1, (2, 3)), np.int64(4), np.array([1, 2]), b"bytes", [5, 6]]
    worst = tuple(SampleError(i, label, float("inf"), 1.0, 0.0, -1, -1, float("-inf")) for i, label in enumerate(labels))
    save_part(tmp_path, "samples", dataclasses.replace(made.samples(), worst=worst))
    loaded = Findings.load(tmp_path).samples
    assert loaded is not None
    assert [sample.label for sample in loaded.worst] == [3, "katze", None, (1, (2, 3)), 4, (1, 2), "bytes", (5, 6)]
    assert {sample.sqnr_db for sample in loaded.worst} == {float("inf")}
    assert {sample.value for sample in loaded.worst} == {float("-inf")}


def test_fields_that_a_newer_version_added_are_passed_over(tmp_path: Path) -> None:
    made.run().save(tmp_path / "run.json")
    path = save_part(tmp_path, "graph", made.graph())
    content = json.loads(path.read_bytes())
    content["content"][0]["colour"] = "green"
    del content["content"][1]["float_operators"]
    path.write_text(json.dumps(content))
    loaded = Findings.load(tmp_path).graph
    assert loaded[0] == made.graph()[0]
    assert loaded[1].float_operators == ()


def test_a_run_is_loaded_by_its_file_too_and_called_by_its_folder(tmp_path: Path) -> None:
    save(made.findings(), tmp_path / "mobile")
    assert Findings.load(tmp_path / "mobile" / "run.json").name == Findings.load(str(tmp_path / "mobile")).name == "mobile"


def test_a_run_alone_is_enough(tmp_path: Path) -> None:
    made.run().save(tmp_path / "run.json")
    loaded = Findings.load(tmp_path)
    assert (loaded.graph, loaded.curves, loaded.profiles, loaded.sensitivity) == ((), (), (), {})
    assert (loaded.scores, loaded.steps, loaded.samples, loaded.diagnosis) == (None, None, None, None)
    assert (loaded.advice, loaded.fix, loaded.fixed) == ((), None, None)


def test_the_fixed_model_has_a_run_that_is_one_of_its_own(tmp_path: Path) -> None:
    findings = made.findings()
    findings.run.save(tmp_path / "run.json")
    path = save_part(tmp_path, "fixed", findings.fixed)
    assert path == tmp_path / "fix" / "run.json"
    assert_equal(findings.fixed, Findings.load(tmp_path).fixed)
    assert_equal(findings.fixed, Findings.load(tmp_path / "fix").run)  # so that the two can be compared
    path.write_text("{}")
    with pytest.raises(ModelError, match="expected a saved run"):
        Findings.load(tmp_path)


def test_names_in_an_outcome_may_be_any(tmp_path: Path) -> None:
    """A metric or a tensor may be called as the words are that stand for NaN in the file."""
    made.run().save(tmp_path / "run.json")
    candidate = made_outcome.candidate("int8", "int8", 0.5, 10, metric="number", recipe=Recipe(ranges={"number": (0.0, 1.0)}))
    outcome = dataclasses.replace(made_outcome.small(), candidates=(candidate,), best=0, front=(0,), proof=())
    save_part(tmp_path, "fix", outcome)
    assert_equal(outcome, Findings.load(tmp_path).fix)


# -- wrong input -----------------------------------------------------------------------------------------------------------


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no run at"):
        Findings.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"holds no run\.json"):
        Findings.load(tmp_path)


def _version(content: dict[str, Any]) -> None:
    content["format_version"] = 99


def _kind(content: dict[str, Any]) -> None:
    content["format"] = "tflite_qdebug run"


def _no_content(content: dict[str, Any]) -> None:
    del content["content"]


def _number(content: dict[str, Any]) -> None:
    content["content"] = 7


def _other_form(content: dict[str, Any]) -> None:
    content["content"] = [] if isinstance(content["content"], dict) else {}


def _empty(content: dict[str, Any]) -> None:
    content["content"] = [{}] if isinstance(content["content"], list) else {}


@pytest.mark.parametrize("part", PLAIN_PARTS)
@pytest.mark.parametrize("change", [_version, _kind, _no_content, _number, _other_form, _empty])
def test_a_file_of_another_kind_is_refused(part: str, change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    save(made.findings(), tmp_path)
    path = tmp_path / PLACES[part]
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=PLACES[part].rpartition("/")[2]):
        Findings.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b'{"format": 1}'])
@pytest.mark.parametrize("file", ["graph.json", "node_sensitivity/node.json", "run.json"])
def test_broken_json_is_refused(content: bytes, file: str, tmp_path: Path) -> None:
    save(made.findings(), tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=file.rpartition("/")[2] + "|saved run"):
        Findings.load(tmp_path)


def test_broken_numbers_are_refused(tmp_path: Path) -> None:
    save(made.findings(), tmp_path)
    path = tmp_path / PLACES["steps"]
    content = json.loads(path.read_bytes())
    content["content"]["errors"]["replicates"] = content["content"]["errors"]["replicates"][:-40]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"steps\.json|packed"):
        Findings.load(tmp_path)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    made.run().save(tmp_path / "run.json")
    (tmp_path / "graph.json").mkdir()
    with pytest.raises(ModelError, match="cannot read"):
        Findings.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        save_part(tmp_path / "file", "graph", made.graph())


def test_parts_and_modes_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Did you mean 'graph'"):
        save_part(tmp_path, "grap", ())
    with pytest.raises(OptionError, match="Did you mean 'weights'"):
        save_part(tmp_path, "sensitivity", made.sensitivity(), "weight")
    assert not list(tmp_path.iterdir())


# -- what can be asked -----------------------------------------------------------------------------------------------------


def test_layers_and_operators_find_each_other() -> None:
    findings = made.findings()
    assert [(position, node.operator) for position, node in findings.operators()] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    before, behind = findings.neighbours(made.NODES[1])
    assert ([node.nodes for node in before], [node.nodes for node in behind]) == ([(made.NODES[0],)], [(made.NODES[2],)])
    with pytest.raises(OptionError, match="no node 'third'"):
        findings.neighbours("third")


def test_profiles_by_node_and_role() -> None:
    findings = made.findings()
    weights = findings.profile(made.NODES[0], "weights")
    assert weights is not None
    assert weights.role == "weights"
    assert findings.profile(made.NODES[1]) is None


def test_the_order_of_sensitivities() -> None:
    # Later nodes have larger errors.
    assert made.sensitivity("node").order() == [3, 2, 1, 0]
    assert made.sensitivity("node").order("mse") == [3, 2, 1, 0]
    # Left float: what is left is least bad without the first.
    assert made.sensitivity("float").order() == [0, 1, 2, 3]
    values = made.sensitivity("node").values("sqnr_db")
    np.testing.assert_allclose(values, -20 * np.log10([0.01, 0.04, 0.07, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(made.sensitivity("float").values("mse").shape, (4,))


def test_values_of_a_metric_that_does_not_apply_are_nan() -> None:
    zeros = OutputErrors(["a"], ["output"])
    from tflite_qdebug.output_error import measure_output

    zeros.add(0, measure_output(np.zeros((1, 2)), np.zeros((1, 2)))[None, None])
    silent = dataclasses.replace(made.sensitivity(), nodes=("a",), op_names=("ADD",), operators=(1,), errors=zeros)
    assert np.isnan(silent.values("cosine")).all()
    assert silent.values("mse").tolist() == [0.0]


def test_what_channels_tell() -> None:
    largest = np.array([1.0] * 30 + [50.0, 0.0])
    channels = dataclasses.replace(made.channels(), minimum=-largest, maximum=largest * 0.5)
    assert channels.largest.tolist() == largest.tolist()
    assert channels.dominating.tolist() == [30]
    assert channels.dead.tolist() == [31]
    assert channels.spread == 50.0


def test_flips_and_scores() -> None:
    assert SampleError(0, None, 1.0, 1.0, 1.0, 2, 3).flipped
    assert not SampleError(0, None, 1.0, 1.0, 1.0, -1, -1).flipped
    scores = made.scores()
    quantized = scores.score("quantized")
    assert quantized is not None
    assert quantized.metrics["top_1"] == 0.85
    assert scores.score("ternary") is None


def test_graph_nodes_have_defaults() -> None:
    node = GraphNode(0, "ADD", ("a",), (), ())
    assert (node.options, node.shape, node.macs, node.float_operators, node.graph_key) == ({}, (), 0, (), "main")
