"""Node data for Model Explorer: numbers by hand, and the files as the package itself reads them."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import findings_by_hand as made
import models
import numpy as np
import pytest

from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.pairs import open_pair, pair_error
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import OptionError, OutputError
from tflite_qdebug.findings import Curve, Findings, save_part
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.reports.model_explorer import mapping, metrics, node_data, write_model_explorer

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
FINDINGS = made.findings()


def values(content: dict[str, Any], graph: str = "main") -> dict[str, float]:
    return {key: entry["value"] for key, entry in content[graph]["results"].items()}


# -- numbers ---------------------------------------------------------------------------------------------------------------


def test_metrics_of_layers_by_hand() -> None:
    # Errors of 0.1 to 0.4 at a scale of 0.5, and values of mean square 4; operators 1 to 4.
    for metric in ("rmse_over_scale", "severity"):
        assert values(node_data(FINDINGS, metric)) == {str(i): pytest.approx(0.2 * i) for i in range(1, 5)}
    assert values(node_data(FINDINGS, "sqnr_db")) == {str(i): pytest.approx(20 * np.log10(2 / (0.1 * i))) for i in range(1, 5)}
    assert set(values(node_data(FINDINGS, "cosine"))) == {"1", "2", "3", "4"}


def test_the_float_model_has_its_own_operators() -> None:
    assert values(node_data(FINDINGS, "severity", "float")) == {str(i - 1): pytest.approx(0.2 * i) for i in range(1, 5)}


def test_sensitivities_and_accumulated_error() -> None:
    expected = {str(i + 1): pytest.approx(-20 * np.log10(0.01 + 0.03 * i), rel=1e-6) for i in range(4)}
    assert values(node_data(FINDINGS, "sensitivity_node")) == expected
    accumulated = values(node_data(FINDINGS, "accumulated_sqnr_db"))
    assert accumulated == {str(i): pytest.approx(20 * np.log10(2 / (0.1 * i))) for i in range(1, 5)}
    assert "accumulated_sqnr_db all but last" in metrics(FINDINGS)


def test_what_is_worst_is_darkest() -> None:
    def darkest(metric: str, findings: Findings = FINDINGS) -> float:
        gradient = node_data(findings, metric)["main"]["gradient"]
        return min(gradient, key=lambda stop: sum(bytes.fromhex(stop["bgColor"][1:])))["stop"]

    assert darkest("severity") == darkest("rmse_over_scale") == 1.0
    assert darkest("sqnr_db") == darkest("cosine") == darkest("accumulated_sqnr_db") == 0.0
    assert darkest("sensitivity_node") == 0.0
    # Left float, the node after which the least error is left matters most.
    assert darkest("sensitivity_float") == 1.0
    by_loss = dataclasses.replace(made.sensitivity(), metric="score", large_is_bad=True)
    assert darkest("sensitivity_node", made.findings(sensitivity={"node": by_loss})) == 1.0


def test_colours_are_told_apart_by_lightness_and_readable() -> None:
    def luminance(colour: str) -> float:
        shares = [byte / 255 for byte in bytes.fromhex(colour[1:])]  # WCAG 2, relative luminance
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for metric in metrics(FINDINGS):
        gradient = node_data(FINDINGS, metric)["main"]["gradient"]
        assert [stop["stop"] for stop in gradient][:: len(gradient) - 1] == [0.0, 1.0]
        assert all(re.fullmatch("#[0-9a-f]{6}", stop[name]) for stop in gradient for name in ("bgColor", "textColor"))
        lightness = [luminance(stop["bgColor"]) for stop in gradient]
        assert lightness in (sorted(lightness), sorted(lightness, reverse=True))
        for stop in gradient:
            light, dark = sorted((luminance(stop["bgColor"]), luminance(stop["textColor"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.0


def test_an_operator_with_several_layers_has_the_worst() -> None:
    nodes = made.graph()
    joined = dataclasses.replace(nodes[0], nodes=(made.NODES[0], made.NODES[1]))
    findings = made.findings(graph=(joined, *nodes[2:]))
    assert values(node_data(findings, "severity"))["1"] == pytest.approx(0.4)
    assert values(node_data(findings, "sqnr_db"))["1"] == pytest.approx(20 * np.log10(2 / 0.2))


def test_a_quantize_is_not_taken_for_the_operator_before_it() -> None:
    run = made.run((9.0, 0.1), (made.NODES[0], made.NODES[0]))
    run.layers[0] = dataclasses.replace(run.layers[0], op_name="QUANTIZE")
    assert values(node_data(made.findings(run=run), "severity")) == {"1": pytest.approx(0.2)}


def test_nan_and_infinity_never_reach_a_file(tmp_path: Path) -> None:
    findings = made.findings(run=made.run((0.0, 0.2, float("nan"), 0.4)))  # no error at all, and values that are NaN
    content = node_data(findings, "sqnr_db")["main"]["results"]
    assert content["1"] == {"value": content["2"]["value"]}  # as good as the best
    assert content["3"] == {"value": content["4"]["value"], "bgColor": "#000000", "textColor": "#ffffff"}
    write_model_explorer(findings, tmp_path)
    for path in tmp_path.glob("*.json"):
        assert not re.search(r"NaN|Infinity", path.read_text())


def test_what_does_not_apply_is_left_out() -> None:
    run = made.run()
    run.layers[1] = dataclasses.replace(run.layers[1], scale=None, zero_point=None, dtype="float32")
    assert set(values(node_data(made.findings(run=run), "rmse_over_scale"))) == {"1", "3", "4"}
    assert set(values(node_data(made.findings(run=run), "sqnr_db"))) == {"1", "2", "3", "4"}


def test_a_broken_sensitivity_is_black() -> None:
    errors = OutputErrors(list("abcd"), ["output"])
    reference = np.array([[1.0, 2.0]])
    rows = [measure_output(reference * factor, reference)[None] for factor in (1.1, 1.2, np.nan, 1.0)]
    errors.add(0, np.stack(rows))
    broken = dataclasses.replace(made.sensitivity(), errors=errors)
    content = node_data(made.findings(sensitivity={"node": broken}), "sensitivity_node")["main"]["results"]
    assert content["3"]["bgColor"] == "#000000"
    assert content["3"]["value"] == content["2"]["value"] == pytest.approx(20 * np.log10(5))
    assert content["4"]["value"] == content["1"]["value"] == pytest.approx(20.0)


def test_the_mapping() -> None:
    assert mapping(FINDINGS) == {
        "type": "sync_navigation",
        "mappingEntries": [{"leftNodeIds": [str(i)], "rightNodeIds": [str(i + 1)]} for i in range(4)],
    }


# -- wrong input -----------------------------------------------------------------------------------------------------------


def test_wrong_names() -> None:
    with pytest.raises(OptionError, match="Did you mean 'severity'"):
        node_data(FINDINGS, "severty")
    with pytest.raises(OptionError, match="Did you mean 'quantized'"):
        node_data(FINDINGS, "severity", "quantised")


def test_without_a_graph_or_a_float_model(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no graph"):
        write_model_explorer(made.findings(graph=()), tmp_path)
    alone = made.findings(graph=tuple(dataclasses.replace(node, float_operators=()) for node in made.graph()))
    with pytest.raises(OptionError, match="without a float model"):
        mapping(alone)
    names = {path.name for path in write_model_explorer(alone, tmp_path)}
    assert "quantized_severity.json" in names
    assert not any(name.startswith(("float", "mapping")) for name in names)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_model_explorer(FINDINGS, tmp_path / "file")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.run().save(tmp_path / "run" / "run.json")
    save_part(tmp_path / "run", "graph", made.graph())
    assert main(["model-explorer", str(tmp_path / "run"), "--output", str(tmp_path / "overlay")]) == 0
    printed = capsys.readouterr().out
    assert "--node_data_paths=" in printed
    names = {path.name for path in (tmp_path / "overlay").iterdir()}
    assert names == {f"{side}_{metric}.json" for side in ("quantized", "float") for metric in
                     ("rmse_over_scale", "severity", "sqnr_db", "cosine")} | {"mapping.json"}  # fmt: skip
    made.run().save(tmp_path / "bare" / "run.json")
    assert main(["model-explorer", str(tmp_path / "bare"), "--output", str(tmp_path / "overlay")]) == 2
    assert "no graph" in capsys.readouterr().err


# -- the package itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    """Returns a folder with both models and all files, and what they were made of."""
    pytest.importorskip("model_explorer")
    folder = tmp_path_factory.mktemp("model explorer")
    floating, quantized = models.float_model("mixed"), models.calibrated("mixed").quantize("int8").data
    pair = open_pair(floating, quantized)
    data = models.samples("mixed", 3)
    run, whole = (
        pair_error(floating, quantized, data, whole_model=w, parts=0, backend=BACKEND, progress=False) for w in (False, True)
    )
    findings = Findings(run, describe_graph(pair, run=run), curves=(Curve("all", (), (), whole),))
    (folder / "int8.tflite").write_bytes(quantized)
    (folder / "float.tflite").write_bytes(floating.data)
    write_model_explorer(findings, folder / "overlay")
    return folder, findings


_SERVER = """
import sys
import model_explorer
from model_explorer import server
config = model_explorer.config()
for path in sys.argv[2].split("|"):
    config.add_model_from_path(path)
for path in sys.argv[3].split("|"):
    name = "int8.tflite" if "quantized_" in path else "float.tflite"
    config.add_node_data_from_path(path, model_name=name)
print(config.to_url_param_value(), flush=True)
server.start(host="127.0.0.1", port=int(sys.argv[1]), config=config, no_open_in_browser=True)
"""


class _Server:
    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def get(self, place: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self._address}{place}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.loads(answer.read())

    def convert(self, model: Path) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the nodes of each graph of a model, by id, as the page draws them."""
        adapter = "builtin_tflite_flatbuffer"
        known = [extension["id"] for extension in self.get("/api/v1/get_extensions")]
        assert adapter in known
        command = {
            "cmdId": "convert",
            "extensionId": adapter,
            "modelPath": str(model),
            "settings": {},
            "deleteAfterConversion": False,
        }
        answer = self.get("/api/v1/send_command", json=json.dumps(command))
        assert "error" not in answer, answer
        return {
            graph["id"]: {node["id"]: node for node in graph["nodes"]}
            for collection in answer["graphCollections"]
            for graph in collection["graphs"]
        }


@pytest.fixture(scope="module")
def served(real: tuple[Path, Findings]) -> Iterator[_Server]:
    """Starts Model Explorer's own server on both models and all node data."""
    folder, _ = real
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = sorted(path for path in (folder / "overlay").glob("*.json") if path.name != "mapping.json")
    paths = ["|".join(map(str, [folder / "int8.tflite", folder / "float.tflite"])), "|".join(map(str, data))]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port), *paths], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/check_health", timeout=5) as answer:
                    assert answer.read() == b"model_explorer_ok"
                break
            except OSError:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.2)
        yield _Server(port)
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@pytest.mark.parametrize("side", ["quantized", "float"])
def test_the_server_reads_model_and_node_data_and_our_nodes_are_in_its_graph(
    side: str, real: tuple[Path, Findings], served: _Server
) -> None:
    folder, findings = real
    graphs = served.convert(folder / ("int8.tflite" if side == "quantized" else "float.tflite"))
    operators = {
        str(position): node
        for node in findings.graph
        for position in ((node.operator,) if side == "quantized" else node.float_operators)
    }
    files = sorted((folder / "overlay").glob(f"{side}_*.json"))
    assert [path.name for path in files] == sorted(
        f"{side}_{name}.json" for name in ("rmse_over_scale", "severity", "sqnr_db", "cosine", "accumulated_sqnr_db")
    )
    for path in files:
        content = json.loads(served.get("/api/v1/read_text_file", path=str(path))["content"])
        assert content.keys() <= graphs.keys()
        for graph, data in content.items():
            assert len(data["results"]) >= 6
            for key in data["results"]:
                node = graphs[graph][key]
                assert node["label"].upper().removeprefix("TFL.") == operators[key].op_name
                if side == "quantized":
                    names = {
                        attribute["value"]
                        for output in node["outputsMetadata"]
                        for attribute in output["attrs"]
                        if attribute["key"] == "tensor_name"
                    }
                    assert len(names) == len(operators[key].nodes)


def test_the_mapping_joins_nodes_of_one_kind(real: tuple[Path, Findings], served: _Server) -> None:
    folder, _ = real
    left, right = (served.convert(folder / name)["main"] for name in ("float.tflite", "int8.tflite"))
    content = json.loads((folder / "overlay" / "mapping.json").read_text())
    assert len(content["mappingEntries"]) >= 6
    for entry in content["mappingEntries"]:
        labels = {left[key]["label"] for key in entry["leftNodeIds"]} | {right[key]["label"] for key in entry["rightNodeIds"]}
        assert len(labels) == 1


def test_the_package_has_the_fields_that_we_write(real: tuple[Path, Findings]) -> None:
    builder = pytest.importorskip("model_explorer.node_data_builder")
    folder, _ = real
    for path in (folder / "overlay").glob("*_*.json"):
        graphs = {}
        for key, data in json.loads(path.read_text()).items():
            results = {name: builder.NodeDataResult(**entry) for name, entry in data["results"].items()}
            gradient = [builder.GradientItem(**stop) for stop in data["gradient"]]
            graphs[key] = builder.GraphNodeData(results=results, gradient=gradient)
        again = json.loads(builder.ModelNodeData(graphsData=graphs).to_json_string())
        for key, data in json.loads(path.read_text()).items():
            assert again[key]["results"] == data["results"]
            assert again[key]["gradient"] == data["gradient"]
