"""What a prompt and a notebook show of each public result: one line; a card that is escaped, light and needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.dom import minidom

import made_findings
import made_outcome
import numpy as np
import pytest

import tflite_qdebug
from tflite_qdebug import example
from tflite_qdebug.analyses.evaluation import Evaluation, ModelScore
from tflite_qdebug.board_record import HOST, Board, BoardModel
from tflite_qdebug.display import html_of
from tflite_qdebug.display.card import Card, Table, render
from tflite_qdebug.edgetpu.device_record import DeviceComparison, DeviceRow
from tflite_qdebug.findings import Findings
from tflite_qdebug.kernel_record import Difference
from tflite_qdebug.latency_record import Latency, ModelTime, OperatorTime
from tflite_qdebug.record import Run
from tflite_qdebug.remedies.qat_comparison import LayerRow, QatComparison
from tflite_qdebug.shown import Shown
from tflite_qdebug.statistics import ErrorStatistics

EVIL = made_findings.EVIL
#: Exported names that are no results: functions, settings and plain values, whose own repr says all.
PLAIN = {"Backend", "CutLimits", "Delegate", "InputSpec", "Interpreter", "KINDS", "Layer", "LayerMetrics", "QDebugError",
         "QuantizationDebugOptions"}  # fmt: skip
TAGS = {"div", "style", "p", "b", "span", "table", "caption", "thead", "tbody", "tr", "th", "td", "img", "details", "summary",
        "pre", "code"}  # fmt: skip


class Page(HTMLParser):
    """Tags, their attributes and the text of a piece of HTML; fails where a tag is left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def findings() -> Findings:
    pytest.importorskip("tensorflow")
    return made_findings.full()


@pytest.fixture(scope="module")
def results(findings: Findings) -> dict[str, Any]:
    """One of each kind that can be made without a device or training."""
    float_model = tflite_qdebug.load_float_model(example.MODEL_PATH)
    calibrated = float_model.calibrate(example.representative_dataset, limit=8)
    quantized = calibrated.quantize("int8", denylisted_ops=["MEAN"])
    model = tflite_qdebug.Model(calibrated.quantize("full_integer").data)
    debugger = tflite_qdebug.QuantizationDebugger(
        quant_debug_model_content=calibrated.numeric_verify_model(), debug_dataset=lambda: list(example.debug_dataset())[:2]
    )
    outcome = made_outcome.small()
    cut = tflite_qdebug.extract_operator(model, 3)
    images = [[np.zeros((1, 8, 8, 1), np.int8)], [np.full((1, 8, 8, 1), 9, np.int8)]]
    reference = tflite_qdebug.Backend(kernels="reference")
    histogram = tflite_qdebug.Histogram()
    histogram.add(np.array([0.0, 0.5, 3.0], np.float32))
    assert findings.samples is not None
    assert findings.steps is not None
    return {
        "Run": findings.run,
        "Findings": findings,
        "Curve": findings.curves[0],
        "Diagnosis": findings.diagnosis,
        "Sensitivity": findings.sensitivity["node"],
        "Sensitivity float": findings.sensitivity["float"],
        "Steps": findings.steps,
        "Samples": findings.samples,
        "Scores": findings.scores,
        "Profile": findings.profiles[0],
        "Outcome": outcome,
        "Candidate": outcome.candidates[2],
        "Recipe": outcome.candidates[2].recipe,
        "Fixed": tflite_qdebug.Fixed(outcome, b"12", b"1234", b"123"),
        "FloatModel": float_model,
        "CalibratedModel": calibrated,
        "QuantizedModel": quantized,
        "Model": model,
        "Dataset": float_model.dataset(example.debug_dataset),
        "Evaluation": tflite_qdebug.evaluate({"float": float_model, "int8": quantized}, example.evaluation_dataset, limit=5),
        "QuantizationDebugger": debugger,
        "Partition": tflite_qdebug.partition(model),
        "FloatPrice": tflite_qdebug.float_price(model, [3]),
        "KernelComparison": tflite_qdebug.compare_kernels(model, images, None, reference),
        "Cut": cut,
        "CutComparison": tflite_qdebug.try_cuts(model, images, [cut], reference=reference),
        "Histogram": histogram,
    }


def test_what_devices_and_boards_gave_is_shown(findings: Findings) -> None:
    run = findings.run
    models = tuple(
        BoardModel("quantized", where, 105_000, 20, 20, "tflite_runtime 2.14", "builtin") for where in ("Coral", HOST)
    )
    worse = Run(run.verify, run.layers, run.statistics, provenance=run.provenance)
    board = Board("Coral", "hash", models, (), run, run, {"machine": EVIL})
    assert "0 layers of" in Page(str(board._repr_html_())).words
    assert board.faulty() == []
    assert "0 layers otherwise than on the host" in repr(dataclasses.replace(board, layers=worse, host_layers=worse))
    difference = Difference(100, 20, 3, 30.0, 50.0, 0.0, 7.0, 1)
    row = DeviceRow(1, "CONV_2D", EVIL, "Edge TPU", "steps", difference, difference, 7.0, 7.0, True, "local")
    device = DeviceComparison((row,), 1.0, 4, "hash", "int8.tflite", {}, {}, ())
    words = Page(str(device._repr_html_())).words
    assert "differs by up to 7 steps (20 % of the elements)" in words
    assert "is wrong itself" in words
    assert "tq-bad" in str(device._repr_html_())
    times = (ModelTime("float", 1.5, 2.0, 10, "xnnpack"), ModelTime("quantized", failure="refused"))
    latency = Latency(
        times, (OperatorTime(0, "CONV_2D", EVIL, 0.25, 0.5, 10), OperatorTime(1, "ADD", "b", 0.75, 1.0, 10)), "tf", "auto"
    )
    assert repr(latency) == "Latency(float 1.5 ms, quantized refused; 2 operators)"
    assert "75.0 %" in Page(str(latency._repr_html_())).words  # 0.75 of 0.25 + 0.75


def test_layers_of_one_name_keep_their_own_figures(findings: Findings) -> None:
    run = findings.run
    scores = tuple(ModelScore(name, 10, {"top_1": 0.5}, {"top_1": 0.1}, 1.0, "xnnpack") for name in ("float", "ptq", "qat"))
    rows = tuple(LayerRow("dense", op, place, place) for place, op in enumerate(("FULLY_CONNECTED", "SOFTMAX")))
    comparison = QatComparison(
        {}, Evaluation(4, scores, "data", "tf", ()), dict.fromkeys(("ptq", "qat", "qat_rounded"), run), rows, ()
    )
    words = Page(str(comparison._repr_html_())).words
    assert words.count("dense FULLY_CONNECTED") == words.count("dense SOFTMAX") == 1


def test_every_exported_class_of_results_is_shown() -> None:
    classes = {name: getattr(tflite_qdebug, name) for name in tflite_qdebug._EXPORTS}
    classes = {name: value for name, value in classes.items() if isinstance(value, type)}
    assert len(classes) > 30
    missing = [name for name, value in classes.items() if not hasattr(value, "_repr_html_") and name not in PLAIN]
    assert missing == [], "subclass Shown and register a card in tflite_qdebug.display"
    # Shown and without a card would fail in the user's notebook.
    from tflite_qdebug.display import _MODULES, card_of

    assert html_of(made_outcome.small()) is not None
    assert len(_MODULES) > 3
    shown = [value for value in classes.values() if issubclass(value, Shown)]
    assert [value.__name__ for value in shown if card_of.dispatch(value) is card_of.dispatch(object)] == []


def test_a_line_tells_what_it_is(results: dict[str, Any]) -> None:
    for name, value in results.items():
        line = repr(value)
        assert len(line) < 500, (name, line)
        assert "\n" not in line, (name, line)
        assert name.split()[0] in line or name == "Dataset", (name, line)
    run = results["Run"]
    worst = run.layers[run.worst(count=1)[0]]
    assert f"{len(run.layers)} layers" in repr(run)
    assert worst.node.partition(";")[0] in repr(run)
    assert f"{run.numbers('severity').max():.3g}" in repr(run)
    assert "18 operators" not in repr(results["QuantizedModel"])
    assert f"{len(results['QuantizedModel'].float_nodes)} operators left in float" in repr(results["QuantizedModel"])


def test_a_card_is_whole_escaped_and_needs_nothing_else(results: dict[str, Any]) -> None:
    for name, value in results.items():
        html = value._repr_html_()
        assert len(html) < 200_000, (name, len(html))
        page = Page(html)
        tags = {tag for tag, _ in page.tags}
        assert tags <= TAGS, (name, tags)
        for tag, attributes in page.tags:
            assert not [key for key in attributes if key.startswith("on")], (name, attributes)
            if tag == "img":
                assert str(attributes["src"]).startswith("data:image/")
        assert not re.search(r"(?:src|href|url)\W{1,3}(?:https?:)?//", html), name
        assert "alert(" not in html or "&lt;" in html
        assert name.split()[0] in page.words or name in ("Curve", "Outcome"), (name, page.words[:80])


def test_the_card_of_a_run_has_its_verdict_its_worst_layers_and_its_plot(findings: Findings) -> None:
    run = findings.run
    page = Page(str(run._repr_html_()))
    assert tflite_qdebug.diagnose(Findings(run)).verdict in page.words
    assert f"{run.statistics.samples} samples" in page.words
    cells = page.words
    for position in run.worst(count=5):
        assert f"{run.severity()[position]:.3g}"[:3] in cells
    charts = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(charts) == 1
    svg = base64.b64decode(str(charts[0]).partition(",")[2])
    drawn = minidom.parseString(svg)
    # One mark for each layer with an error, and no words for readers aloud, which no image reads.
    marks = [path for path in drawn.getElementsByTagName("path") if path.getAttribute("transform").startswith("translate")]
    assert len(marks) >= int((run.severity() > 0).sum())
    assert b"aria-label" not in svg


def test_the_verdict_on_a_run_without_outputs_does_not_contradict_itself(findings: Findings) -> None:
    run = findings.run
    alone = Run(run.verify, run.layers, run.statistics)
    found = tflite_qdebug.diagnose(Findings(alone))
    assert found.suspects
    assert "what that costs at the output was not measured" in found.verdict
    assert found.verdict in Page(str(alone._repr_html_())).words


def test_the_verdict_of_a_diagnosis_sets_the_colour(findings: Findings) -> None:
    assert findings.diagnosis is not None
    assert 'class="tflite-qdebug tq-bad"' in str(findings.diagnosis._repr_html_())
    sound = dataclasses.replace(findings.diagnosis, sound=True, suspects=())
    assert 'class="tflite-qdebug tq-good"' in str(sound._repr_html_())
    assert 'class="tflite-qdebug"' in str(made_outcome.small().candidates[2].recipe._repr_html_())


def test_names_that_break_html_stand_there_as_text(findings: Findings) -> None:
    assert any(layer.node == EVIL for layer in findings.run.layers)
    for value in (findings.run, findings, findings.sensitivity["node"], findings.curves[0]):
        assert "<script" not in value._repr_html_()
    card = Card(EVIL, EVIL, (EVIL,), None, ((EVIL, EVIL),), (Table(EVIL, (EVIL,), ((EVIL,),)),), (), (EVIL,), (EVIL,), EVIL)
    page = Page(render(card))
    assert page.words.count("<script>alert('x')</script>") == 11
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_run_of_nothing_and_a_long_one_are_shown() -> None:
    empty = Run("per_layer", [], ErrorStatistics(0))
    assert "There is no quantized layer" in str(empty._repr_html_())
    assert repr(empty) == "Run(per_layer, 0 layers, 0 samples)"
    long = made_findings.many(1000).run
    assert len(str(long._repr_html_())) < 1_000_000


def test_numbers_stand_at_the_right() -> None:
    rows = (("a", "1.5", "-", "4.05 … 11.9", "12 of 3"), ("b", "-2e-05", "inf", "1-2", "5"))
    assert Table("", ("",) * 5, rows).numeric == [False, True, True, True, False]


def test_a_card_loads_no_tensorflow_and_says_where_charts_cannot_be_drawn(findings: Findings, tmp_path: Path) -> None:
    findings.run.save(tmp_path / "run.json")
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
BLOCKED = ["tensorflow", "altair"]
from tflite_qdebug import Run
run = Run.load({str(tmp_path / "run.json")!r})
html = run._repr_html_()
print("<table" in html, "<img" in html, "charts need altair" in html)
BLOCKED += ["jinja2", "markupsafe"]
sys.modules.pop("jinja2", None), sys.modules.pop("markupsafe", None)
print(run._repr_html_())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "True", "None"]


def test_ipython_shows_the_card(findings: Findings) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(findings.run)
    assert shown["text/plain"] == repr(findings.run)
    assert shown["text/html"] == findings.run._repr_html_()
