"""Two runs side by side: numbers by hand, layers of one alone, provenance, and the files."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import findings_by_hand as made
import pytest
from test_report import browser, opened  # noqa: F401 (a fixture)

from tflite_qdebug.cli import main
from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Findings, save_part
from tflite_qdebug.reports.diff import (
    LayerChange,
    diff,
    diff_table,
    output_table,
    score_table,
    write_diff_csv,
    write_diff_html,
)

OLD = made.findings(name="old", run=made.run((0.1, 0.2, 0.3, 0.4)), scores=made.scores(0.9, 0.8), samples=made.samples(20.0))
NEW = made.findings(
    name="new", run=made.run((0.1, 0.05, 0.9, float("nan"))), scores=made.scores(0.9, 0.88), samples=made.samples(26.0)
)


def test_layers_by_hand() -> None:
    result = diff(OLD, NEW)
    assert [layer.node for layer in result.layers] == list(made.NODES)
    first, second, third, last = result.layers
    # Severity: the error over a scale of 0.5. SQNR of a mean square of 4.
    assert (first.old_severity, first.new_severity, first.change, first.verdict) == (0.2, 0.2, 0.0, "same")
    assert (second.old_severity, second.new_severity) == (pytest.approx(0.4), pytest.approx(0.1))
    assert (second.change, second.verdict) == (pytest.approx(-0.3), "better")
    assert second.old_sqnr_db == pytest.approx(10 * math.log10(4 / 0.04))
    assert second.new_sqnr_db == pytest.approx(10 * math.log10(4 / 0.0025))
    assert (third.change, third.verdict) == (pytest.approx(1.2), "worse")
    assert third.new_rmse_over_scale == pytest.approx(1.8)
    assert math.isnan(last.change)
    assert last.verdict == ""
    assert result.order() == [2, 1, 0, 3]
    assert (result.only_old, result.only_new) == ((), ())


def test_scores_and_outputs_by_hand() -> None:
    result = diff(OLD, NEW)
    scores = {(c.name, c.quantity): (c.old, c.new, c.change) for c in result.scores}
    assert scores["quantized", "top_1"] == (0.8, 0.88, pytest.approx(0.08))
    assert scores["float", "bytes"] == (4000.0, 4000.0, 0.0)
    outputs = {(c.name, c.quantity): (c.old, c.new) for c in result.outputs}
    assert outputs["output", "sqnr_db"] == (pytest.approx(20.0), pytest.approx(26.0))
    assert result.sentence == (
        "layers: 1 better, 1 worse, 1 as they were; top_1 of the quantized model goes from 0.8000 to 0.8800; "
        "SQNR of output 'output' goes from 20.00 to 26.00 dB"
    )


def test_what_was_measured_on_one_side_alone_is_shown_so() -> None:
    result = diff(dataclasses.replace(OLD, scores=None, samples=None), NEW)
    quantized = next(c for c in result.scores if (c.name, c.quantity) == ("quantized", "top_1"))
    assert math.isnan(quantized.old)
    assert math.isnan(quantized.change)
    assert ["quantized", "top_1", "-", "0.8800", "-"] in score_table(result)[1]


def test_layers_of_one_run_alone() -> None:
    new = made.findings(run=made.run((0.1, 0.2), (made.NODES[0], "stranger")))
    result = diff(OLD, new)
    assert [layer.node for layer in result.layers] == [made.NODES[0]]
    assert result.only_old == ("DEPTHWISE_CONV_2D second;fused/Add", f"ADD {made.NODES[2]}", "FULLY_CONNECTED last")
    assert result.only_new == ("DEPTHWISE_CONV_2D stranger",)
    assert any("may be different models" in note for note in result.notes)


def test_layers_of_one_name_are_taken_in_order() -> None:
    old = made.findings(run=made.run((0.1, 0.2, 0.3), ("same", "same", "other")))
    new = made.findings(run=made.run((0.2, 0.1, 0.3), ("same", "same", "other")))
    assert [(layer.old_severity, layer.new_severity) for layer in diff(old, new).layers[:2]] == [
        (pytest.approx(0.2), pytest.approx(0.4)),
        (pytest.approx(0.4), pytest.approx(0.2)),
    ]


def test_different_models_are_an_error() -> None:
    with pytest.raises(OptionError, match=r"no layer name in common \(4 and 1 layers\)"):
        diff(OLD, made.findings(run=made.run((0.1,), ("stranger",))))


def test_infinities_do_not_make_nan() -> None:
    change = LayerChange("a", "ADD", math.inf, math.inf, 1.0, 1.0, 1.0, 1.0)
    assert (change.change, change.verdict) == (0.0, "same")


def test_versions_kernels_and_data_that_changed() -> None:
    run = made.run()
    run.provenance.update(runtime_version="2.22.0", kernels="xnnpack", debug_dataset="other samples", created="later")
    result = diff(OLD, made.findings(run=run))
    assert [(c.name, c.old, c.new) for c in result.provenance] == [
        ("version of the runtime", "2.21.0", "2.22.0"),
        ("kernels", "builtin", "xnnpack"),
        ("debug dataset", "two samples", "other samples"),
    ]
    assert result.notes == ("the two were measured on other samples: small differences mean nothing",)
    run = made.run()
    run.verify = "whole_model"
    assert "cannot be compared" in diff(OLD, made.findings(run=run)).notes[0]


def test_the_tables() -> None:
    result = diff(OLD, NEW)
    header, rows = diff_table(result, 2)
    assert len(header) == len(rows[0]) == 10
    assert rows[0][:5] == ["ADD", made.NODES[2], "0.600", "1.80", "+1.20"]
    assert rows[1][:5] == ["DEPTHWISE_CONV_2D", made.NODES[1], "0.400", "0.100", "-0.300"]
    assert [row[-1] for row in rows] == ["worse", "better"]
    assert ["output", "SQNR dB", "20.00", "26.00", "+6.00"] in output_table(result)[1]
    assert ["quantized", "size in bytes", "1000", "1000", "+0"] in score_table(result)[1]


def test_the_csv(tmp_path: Path) -> None:
    new = made.findings(run=made.run((0.1, 0.2), (made.NODES[0], "strange, name")))
    write_diff_csv(diff(OLD, new), tmp_path / "diff.csv")
    with open(tmp_path / "diff.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["node"], row["verdict"]) for row in rows] == [
        (made.NODES[0], "same"), (made.NODES[1], "only old"), (made.NODES[2], "only old"), ("last", "only old"),
        ("strange, name", "only new"),
    ]  # fmt: skip
    assert float(rows[0]["new_severity"]) == pytest.approx(0.2)
    assert rows[1]["new_severity"] == ""


class _Reader(html.parser.HTMLParser):
    """Collects the text of each cell, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_html_is_self_contained_and_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    nodes = bad, "名&<b>"
    old = made.findings(name="<old>", run=made.run((0.1, 0.1), nodes))
    new = made.findings(name="new", run=made.run((0.9, 0.1), nodes))
    write_diff_html(diff(old, new), tmp_path / "diff.html")
    text = (tmp_path / "diff.html").read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.addresses == ["data:,"]
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    assert reader.tags.count("script") == 1
    assert "old" not in reader.tags
    assert "b" not in reader.tags
    assert any(row[:1] == [bad] for row in reader.rows)
    assert any(row[:1] == ["名&<b>"] for row in reader.rows)
    (row,) = (row for row in reader.rows if row[0] == bad)
    assert row[2:5] == ["0.200", "1.80", "+1.60"]
    assert row[-1] == "▲ worse"


def test_sorting_and_filtering_in_a_browser(tmp_path: Path, browser: Any) -> None:  # noqa: F811
    write_diff_html(diff(OLD, NEW), tmp_path / "diff.html")
    opened(browser, (tmp_path / "diff.html").as_uri())

    def shown() -> list[str]:
        rows = "[...document.querySelectorAll('#layers tbody tr')].filter(row => !row.hidden)"
        return list(browser.execute_script(f"return {rows}.map(row => row.cells[0].textContent)"))

    def click(column: int) -> str:
        browser.find_elements("css selector", "#layers th button")[column].click()
        return str(browser.find_elements("css selector", "#layers th")[column].get_attribute("aria-sort"))

    first, second, third, last = made.NODES
    assert shown() == [third, second, first, last]  # the greatest change first
    assert click(2) == "descending"  # old severity
    assert shown() == [last, third, second, first]
    assert click(2) == "ascending"
    assert shown() == [first, second, third, last]
    click(3)  # new severity: NaN stays last either way
    assert shown() == [third, first, second, last]
    click(3)
    assert shown() == [second, first, third, last]
    assert click(0) == "ascending"
    assert shown() == sorted(made.NODES)
    browser.find_element("id", "filter").send_keys("名")
    assert shown() == [third]
    assert browser.find_element("id", "count").text == "1 of 4 layers"
    assert browser.get_log("browser") == []


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for findings in (OLD, NEW):
        findings.run.save(tmp_path / findings.name / "run.json")
        save_part(tmp_path / findings.name, "scores", findings.scores)
        save_part(tmp_path / findings.name, "samples", findings.samples)
    words = ["diff", str(tmp_path / "old"), str(tmp_path / "new")]
    assert main([*words, "--html", str(tmp_path / "diff.html"), "--csv", str(tmp_path / "diff.csv"), "--count", "2"]) == 0
    printed = capsys.readouterr().out
    assert "layers: 1 better, 1 worse" in printed
    assert "the 2 layers that changed most" in printed
    assert (tmp_path / "diff.html").exists()
    assert (tmp_path / "diff.csv").exists()
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [layer["node"] for layer in result["layers"]] == list(made.NODES)


def test_the_verb_on_different_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.run().save(tmp_path / "one" / "run.json")
    made.run((0.1,), ("stranger",)).save(tmp_path / "two" / "run.json")
    assert main(["diff", str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    assert "different models" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    result = diff(Findings(made.run(), name="same"), Findings(made.run(), name="same"))
    assert (result.old, result.new) == ("same (old)", "same (new)")
    assert result.provenance == ()
