"""The verbs that explain a saved run: what they print and write, their exit codes, and how ``runall`` goes on."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import control_flow_models
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug import Run, example
from tflite_qdebug.cli import analyses, main
from tflite_qdebug.cli.analyses import memory_of
from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model
from tflite_qdebug.study import saved_run as study

QUIET = ["--no-progress", "--workers", "1", "--no-isolation"]
LIMIT = 12


def call(*words: str | Path | float) -> int:
    return main([*map(str, words), *QUIET])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``runall example`` leaves behind."""
    folder = tmp_path_factory.mktemp("runall") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(analyses, "write_report", _written)
        assert call("runall", "example", "--limit", str(LIMIT), "--kernels", "builtin", "--no-charts", "--output", folder) == 0
    return folder


def _written(findings: Findings, path: Path) -> Path:
    path.write_text(findings.name)
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def shared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for what must leave everything as it was."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("shared") / "run"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each analysis measured."""
    counts: Counter[str] = Counter()

    def counting(name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return true(*arguments, **options)

        return counted_call

    for name in ("pair_error", "evaluate", "sensitivity", "leave_float", "profile_pair", "worst_samples"):
        monkeypatch.setattr(study, name, counting(name, getattr(study, name)))
    return counts


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the report is not the point it need not take its time."""
    monkeypatch.setattr(analyses, "write_report", _written)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runall_writes_the_tree(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names == {
        *("run.json", "layers.csv", "study.json", "repeat.json", "float.tflite", "calibrated.tflite", "int8.tflite"),
        *("graph.json", "evaluation.json", "samples.json", "samples.csv", "diagnosis.json", "advice.json", "report.html"),
        *(f"node_sensitivity/{mode}.{kind}" for mode in ("node", "weights", "activation") for kind in ("json", "csv")),
        *("accumulate_error/curves.json", "accumulate_error/curves.csv"),
        *("sensitivity_analysis/steps.json", "sensitivity_analysis/steps.csv"),
        *("data_distribution/profiles.json", "data_distribution/distributions.csv"),
    }
    findings = Findings.load(finished)
    assert findings.scores is not None
    assert findings.scores.samples == LIMIT  # --limit is of each dataset
    assert findings.run.statistics.samples == LIMIT
    setup = json.loads((finished / "study.json").read_text())
    assert (setup["debug_data"], setup["limit"], setup["kernels"]) == ("example", LIMIT, "builtin")
    worst = table(finished / "node_sensitivity" / "node.csv")[0]["node"]
    assert "block1_project" in worst
    assert findings.diagnosis is not None
    assert findings.diagnosis.suspects[0].node == worst
    rows = table(finished / "layers.csv")
    assert [row["node"] for row in rows] == [layer.node for layer in findings.run.layers]


VERBS: list[tuple[list[str], str]] = [
    (["sensitivity"], "node_sensitivity/node.csv"),
    (["get-sensitivity-of-nodes", "--mode", "weights"], "node_sensitivity/weights.csv"),
    (["accumulated-error"], "accumulate_error/curves.csv"),
    (["plot-acc-error", "--average"], "accumulate_error/curves.csv"),
    (["sensitivity-analysis"], "sensitivity_analysis/steps.csv"),
    (["distribution", "--no-charts"], "data_distribution/distributions.csv"),
    (["plot-distribution", "--no-charts", "--count", "2"], "data_distribution/distributions.csv"),
    (["channels", "--no-charts"], "channelwise_distribution/000_weights.csv"),
    (["get-channelwise-data-distribution", "--no-charts", "--count", "3"], "channelwise_distribution/000_weights.csv"),
    (["samples"], "samples.csv"),
    (["diagnose"], "diagnosis.json"),
    (["report"], "report.html"),
]


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(("words", "file"), VERBS, ids=[words[0] for words, _ in VERBS])
def test_each_verb_shows_what_is_known(
    words: list[str], file: str, copied: Path, counted: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / file).unlink(missing_ok=True)
    own = QUIET if words[0] != "report" else []
    assert main([words[0], str(copied), *words[1:], *own]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > (0 if words[0] == "report" else 3)
    assert (copied / file).stat().st_size > 0
    assert counted == {}
    # The folder's run.json names it as well.
    assert main([words[0], str(copied / "run.json"), *words[1:], *own, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert counted == {}


def of_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    assert call(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_the_numbers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings.load(finished)
    found = of_json(capsys, "sensitivity", finished, "--mode", "node", "--mode", "activation", "--rank-by", "cosine")
    assert list(found) == ["node", "activation"]
    own = findings.sensitivity["node"]
    order = own.order("cosine")
    assert list(found["node"]) == [own.nodes[position] for position in order]
    worst = found["node"][own.nodes[order[0]]]
    assert worst["sqnr_db"] == pytest.approx(own.values("sqnr_db")[order[0]])
    first = next(iter(found["activation"].values()))
    assert first["bits"] == 8
    assert first["threshold"] > 0

    found = of_json(capsys, "accumulated-error", finished)
    assert list(found) == ["all", "weights", "activation"]
    assert found["all"]["rmse"] == pytest.approx(findings.curves[0].run.statistics.rmse.tolist())
    assert found["all"]["node"] == [layer.node for layer in findings.curves[0].run.layers]

    found = of_json(capsys, "sensitivity-analysis", finished)
    assert findings.steps is not None
    assert found["nodes"] == list(findings.steps.nodes)
    assert found["met"] == findings.steps.met
    assert found["sqnr_db"] == pytest.approx(findings.steps.errors.worst("sqnr_db").tolist())
    assert len(found["bytes"]) == len(found["nodes"]) + 1

    found = of_json(capsys, "distribution", finished, "--no-charts")
    assert len(found) == len(findings.profiles)
    found = of_json(capsys, "samples", finished, "--count", "3")
    assert findings.samples is not None
    assert findings.diagnosis is not None
    assert [sample["index"] for sample in found["worst"]] == [sample.index for sample in findings.samples.worst[:3]]
    errors = findings.samples.errors
    assert list(found["errors"]["cosine"].values()) == pytest.approx(errors.metric("cosine")[0].tolist())
    found = of_json(capsys, "diagnose", finished)
    assert found["verdict"] == findings.diagnosis.verdict
    assert [suspect["node"] for suspect in found["suspects"]] == [suspect.node for suspect in findings.diagnosis.suspects]


def test_sensitivity_of_chosen_nodes(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = Findings.load(copied).run.layers[2].node
    found = of_json(capsys, "sensitivity", copied, "--node", node, "--mode", "float")
    assert list(found["float"]) == [node]
    assert (copied / "node_sensitivity" / "float.some.csv").exists()
    assert not (copied / "node_sensitivity" / "float.json").exists()
    whole = (copied / "node_sensitivity" / "node.csv").read_bytes()
    assert call("sensitivity", copied, "--node", node) == 0
    assert (copied / "node_sensitivity" / "node.csv").read_bytes() == whole


def test_curves_of_groups(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [layer.node for layer in Findings.load(copied).curves[0].run.layers[:4]]
    pairs = [json.dumps([nodes[0], *nodes[1:3]]), json.dumps([nodes[0], *nodes[2:4]])]
    words = ["--quantize", pairs[0], "--quantize", pairs[1], "--leave-float", nodes[0]]
    found = of_json(capsys, "accumulated-error", copied, *words)
    # Two groups that a title calls alike are both there.
    assert list(found) == [f"{nodes[0]} + 2 more (1)", f"{nodes[0]} + 2 more (2)", f"all but {nodes[0]}"]
    assert found[f"all but {nodes[0]}"]["rmse"][0] == 0.0
    assert len(Findings.load(copied).curves) == 6


def test_a_threshold_and_what_to_copy(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = table(copied / "node_sensitivity" / "node.csv")[0]["node"]
    assert call("sensitivity-analysis", copied, "--node", node, "--threshold", "-100") == 0
    assert "0 nodes in float meet sqnr_db -100 (*)" in capsys.readouterr().out
    assert call("sensitivity-analysis", copied, "--node", node, "--threshold", "400") == 0
    assert "no step meets sqnr_db 400" in capsys.readouterr().out
    assert call("sensitivity-analysis", copied, "--node", node, "--rank-by", "mse") == 0
    assert "mse has no threshold of its own; --threshold sets one" in capsys.readouterr().out
    none, one = of_json(capsys, "sensitivity-analysis", copied, "--node", node, "--threshold", "400")["sqnr_db"]
    assert call("sensitivity-analysis", copied, "--node", node, "--threshold", (none + one) / 2) == 0
    assert f"denylisted_nodes=[{node!r}]" in capsys.readouterr().out


METRICS = """
import numpy as np
def sharpness(outputs, label): return float(outputs[0].max())
def nothing(outputs, label): return float("nan")
def many(outputs, label): return np.ones(3)
def breaks(outputs, label): raise ValueError("on purpose")
"""


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_of_a_user.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_metrics")
def test_a_users_own_metric_ranks(copied: Path, capsys: pytest.CaptureFixture[str], counted: Counter[str]) -> None:
    words = ["--metric", "metrics_of_a_user:sharpness", "--rank-by", "sharpness"]
    found = of_json(capsys, "sensitivity", copied, *words)["node"]
    values = [entry["sharpness"] for entry in found.values()]
    assert values == sorted(values)
    assert counted == {"sensitivity": 1}
    found = of_json(capsys, "sensitivity", copied, *words, "--lower-is-better")["node"]
    values = [entry["sharpness"] for entry in found.values()]
    assert values == sorted(values, reverse=True)
    assert counted == {"sensitivity": 1}
    steps = of_json(capsys, "sensitivity-analysis", copied, *words, "--lower-is-better", "--threshold", "2", "--most", "1")
    assert steps["met"] == 0
    steps = of_json(capsys, "sensitivity-analysis", copied, *words, "--threshold", "2", "--most", "1")
    assert steps["met"] is None


@pytest.mark.usefixtures("own_metrics")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["sensitivity", "--node", "digits_1/stem_bn"],
            2,
            "got node 'digits_1/stem_bn', which the model has not. Did you mean 'di",
        ),
        (["sensitivity", "--output-node", "digits_1/stem_bn"], 2, "Did you mean 'digits_1/stem"),
        (["sensitivity-analysis", "--node", "digits_1/stem_bn"], 2, "Did you mean 'digits_1/stem"),
        (["distribution", "--node", "digits_1/stem_bn"], 2, "Did you mean 'digits_1/stem"),
        (["channels", "--node", "digits_1/stem_bn"], 2, "Did you mean 'digits_1/stem"),
        (["accumulated-error", "--quantize", "wheights"], 2, "Did you mean 'weights'"),
        (["accumulated-error", "--leave-float", "weights"], 2, "got 'weights' to be left float"),
        (["accumulated-error", "--quantize", '["a", '], 2, "got --quantize '[\"a\", ', expected a name, or a group as a JSON"),
        (["accumulated-error", "--quantize", "[]"], 2, "got --quantize '[]', expected a name, or a group as a JSON list"),
        (["accumulated-error", "--leave-float", "[3]"], 2, "got --leave-float '[3]'"),
        (["sensitivity", "--rank-by", "sqnr"], 2, "got metric 'sqnr', expected one of"),
        (["sensitivity", "--rank-by", "top_1"], 2, "got metric 'top_1'"),
        (["samples", "--rank-by", "kosine"], 2, "Did you mean 'cosine'"),
        (["samples", "--count", "0"], 2, "got count=0"),
        (["sensitivity", "--metric", "top_2"], 2, "Did you mean 'top_1'"),
        (["sensitivity", "--metric", "metrics_of_a_user:sharpnes"], 2, "Did you mean 'sharpness'"),
        (["sensitivity", "--metric", "no_such_module:f"], 2, "importing no_such_module failed"),
        (["sensitivity", "--metric", "metrics_of_a_user:nothing"], 9, "metric 'nothing' gave NaN on sample 0"),
        (["sensitivity", "--metric", "metrics_of_a_user:many"], 9, "metric 'many' failed on sample 0: TypeError"),
        (["sensitivity", "--metric", "metrics_of_a_user:breaks"], 9, "ValueError: on purpose"),
        (["sensitivity-analysis", "--metric", "metrics_of_a_user:nothing"], 9, "metric 'nothing' gave NaN"),
        (["sensitivity", "--metric", "top_1"], 4, "sample 0 of the debug dataset has no label"),
        (["sensitivity-analysis", "--metric", "top_1"], 4, "sample 0 of the debug dataset has no label"),
        (["sensitivity", "--memory", "much"], 2, "got --memory 'much', expected a size such as 800M or 2GB"),
        (["sensitivity", "--memory", "0"], 2, "got --memory '0'"),
        (["sensitivity", "--mode", "float", "--memory", "1k"], 2, "memory"),
        (["sensitivity-analysis", "--most", "0"], 2, "got most=0"),
        (["sensitivity-analysis", "--threshold", "nan"], 2, "got NaN as the threshold"),
        (["channels", "--axis", "7"], 2, "axis"),
        (["samples", "--limit", "0"], 2, "limit"),
        (["samples", "--debug-data", "nowhere.npz"], 4, "nowhere.npz"),
        (["diagnose", "--evaluation-data", "nowhere.npz"], 4, "nowhere.npz"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str], code: int, message: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Half-way files may be replaced by those of another measurement.
    before = {path: path.read_bytes() for path in shared.rglob("*.json") if ".partial" not in path.name}
    assert call(words[0], shared, *words[1:]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tflite-qdebug: ")
    assert "Traceback" not in error
    # Nothing that was known is lost.
    assert {path: path.read_bytes() for path in shared.rglob("*.json") if path in before} == before


OF_A_RUN = (
    "sensitivity",
    "accumulated-error",
    "sensitivity-analysis",
    "distribution",
    "channels",
    "samples",
    "diagnose",
    "report",
)


@pytest.mark.parametrize("verb", OF_A_RUN)
def test_what_is_no_run_is_told(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = QUIET if verb != "report" else []
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / "run.json"):
        assert main([verb, str(place), *own]) == 3
        assert "expected a folder that 'tflite-qdebug run ... --output" in capsys.readouterr().err


def test_evaluation_data_needs_labels(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = example.load_split("evaluation")
    np.savez(tmp_path / "unlabelled.npz", **{Model(example.MODEL_PATH).input_specs()[0].name: images[:4]})
    assert call("diagnose", copied, "--evaluation-data", tmp_path / "unlabelled.npz") == 4
    assert "has no label, which accuracy needs" in capsys.readouterr().err


def test_memory_is_a_size() -> None:
    assert [memory_of(text) for text in ("800M", "2GB", "1.5 k", "100", None)] == [800_000_000, 2_000_000_000, 1500, 100, None]
    for text in ("", "GB", "-1", "1T", "1e9"):
        with pytest.raises(OptionError, match="expected a size"):
            memory_of(text)


def test_less_memory_gives_the_same(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = of_json(capsys, "sensitivity", copied)
    (copied / "node_sensitivity" / "node.json").unlink()
    assert of_json(capsys, "sensitivity", copied, "--memory", "2M") == before
    assert Findings.load(copied).sensitivity["node"].provenance["passes"] > 1


def test_a_report_that_cannot_be_written(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "file").write_text("")
    assert main(["report", str(copied), "--output", str(copied / "file" / "report.html")]) == 8
    assert "cannot write" in capsys.readouterr().err
    assert call("runall", "example", "--output", copied / "file" / "run") == 8
    # A file in the way of what runall writes at its end: all analyses are kept.
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    assert call("runall", copied, "--no-charts") == 8
    assert Findings.load(copied).diagnosis is not None


@pytest.mark.usefixtures("without_report")
def test_runall_on_a_finished_run_measures_nothing(
    copied: Path, counted: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "diagnosis.json").read_bytes()
    found = of_json(capsys, "runall", copied, "--no-charts")
    assert counted == {}
    assert (copied / "diagnosis.json").read_bytes() == before
    assert found["folder"] == str(copied)
    assert Path(found["report"]).read_text() == "run"
    assert found["diagnosis"]["suspects"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--output", "elsewhere"], "got --output with"),
        (["RUN", "--kind", "int16x8", "--float=x"], "got --float, --kind with"),
        (["example", "--output", "RUN"], "holds a run already; to go on with it, give it in place of the model"),
        (["example", "--rank-by", "sqnr", "--output", "NEW"], "got --rank-by 'sqnr', expected one of"),
        (["RUN", "--rank-by", "sqnr"], "got metric 'sqnr', expected one of"),
        (["--output", "NEW"], "got no model"),
        (["--quantized", "a.tflite", "--quantized", "b.tflite", "--output", "NEW"], "got 2 quantized models, expected one"),
        (["--float", "example", "--output", "NEW"], "got --float without --quantized"),
    ],
)
def test_what_runall_refuses(
    words: list[str], message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(finished), "NEW": str(tmp_path / "new")}
    assert call("runall", *(places.get(word, word) for word in words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new" / "run.json").exists()


@pytest.mark.usefixtures("without_report")
def test_runall_is_interrupted_and_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    true = study.leave_float

    def stopped(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "leave_float", stopped)
    words = ["--limit", str(LIMIT), "--kernels", "builtin", "--no-charts", "--output", str(folder)]
    assert call("runall", "example", *words) == 130
    shown = capsys.readouterr()
    assert "tflite-qdebug: interrupted" in shown.err
    assert f"what is finished is kept; to go on: tflite-qdebug runall {folder}" in shown.out
    before = dict(counted)
    monkeypatch.setattr(study, "leave_float", true)
    # Nothing of how it was run need be said again.
    assert call("runall", folder, "--no-charts") == 0
    assert {name: count - before.get(name, 0) for name, count in counted.items() if count > before.get(name, 0)} == {
        "leave_float": 1
    }
    found, expected = Findings.load(folder), Findings.load(finished)
    assert found.steps is not None
    assert expected.steps is not None
    assert found.steps.errors.to_dict() == expected.steps.errors.to_dict()
    for mode, own in expected.sensitivity.items():
        assert found.sensitivity[mode].errors.to_dict() == own.errors.to_dict()
    assert found.diagnosis == expected.diagnosis


@pytest.mark.usefixtures("without_report")
def test_runall_on_a_pair_is_runall_on_the_model(finished: Path, tmp_path: Path, counted: Counter[str]) -> None:
    words = ["--float", "example", "--quantized", finished / "int8.tflite", "--debug-data", "example"]
    words += ["--evaluation-data", "example", "--limit", str(LIMIT), "--kernels", "builtin", "--no-charts"]
    assert call("runall", *words, "--output", tmp_path / "run") == 0
    assert counted["evaluate"] == 1
    found, expected = Findings.load(tmp_path / "run"), Findings.load(finished)
    assert found.scores is not None
    assert expected.scores is not None
    assert [score.metrics for score in found.scores.scores] == [score.metrics for score in expected.scores.scores]
    assert [layer.node for layer in found.run.layers] == [layer.node for layer in expected.run.layers]
    assert found.run.statistics.sums.tolist() == expected.run.statistics.sums.tolist()
    for mode, own in expected.sensitivity.items():
        assert found.sensitivity[mode].errors.to_dict() == own.errors.to_dict()
    assert [suspect.node for suspect in found.diagnosis.suspects] == [  # type: ignore[union-attr]
        suspect.node
        for suspect in expected.diagnosis.suspects  # type: ignore[union-attr]
    ]


@pytest.mark.usefixtures("without_report")
def test_a_run_of_the_converter_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert call("run", "example", "--limit", "4", "--kernels", "builtin", "--output", folder) == 0
    assert not Run.load(folder / "run.json").parts
    assert call("runall", folder, "--no-charts") == 0
    run = Run.load(folder / "run.json")
    assert run.parts
    assert run.provenance["options"]["kind"] == "int8"
    assert len(table(folder / "layers.csv")) == len(run.layers)
    assert "own_rmse" in table(folder / "layers.csv")[0]
    # A run of an earlier version has no models beside it.
    (folder / "study.json").unlink()
    capsys.readouterr()
    assert call("runall", folder) == 3
    assert "Make it anew with 'tflite-qdebug run" in capsys.readouterr().err


def test_what_is_quantized_inside_of_a_loop_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "float.tflite").write_bytes(control_flow_models.nested())
    (tmp_path / "quantized.tflite").write_bytes(control_flow_models.quantized("nested"))
    model = Model(control_flow_models.nested())
    arrays = zip(*control_flow_models.samples(model, 3), strict=True)
    names = [spec.name for spec in model.input_specs()]
    np.savez(tmp_path / "data.npz", **{name: np.stack(values) for name, values in zip(names, arrays, strict=True)})
    words = ["--float", tmp_path / "float.tflite", "--quantized", tmp_path / "quantized.tflite"]
    assert call("runall", *words, "--debug-data", tmp_path / "data.npz", "--output", tmp_path / "run") == 3
    assert "inside of a model that is float otherwise" in capsys.readouterr().err
    assert Run.load(tmp_path / "run" / "run.json").layers


def test_charts_are_drawn(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    node = table(copied / "node_sensitivity" / "node.csv")[0]["node"]
    for verb in ("distribution", "channels"):
        assert call(verb, copied, "--node", node) == 0
        assert "charts below" in capsys.readouterr().out
    drawn = [path for path in copied.rglob("*") if path.suffix in (".png", ".svg")]
    assert drawn
    assert all(path.stat().st_size > 500 for path in drawn)
