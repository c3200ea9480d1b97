"""The gate: limits by hand on made-up findings, missing information, JUnit XML, Markdown, and the verb's exit code."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import findings_by_hand as made
import numpy as np
import pytest

from tflite_qdebug.cli import main
from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Findings, save_part
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.reports.gate import Check, Drop, check_gate, junit_xml, markdown_summary
from tflite_qdebug.reports.outputs import output_errors


def only(checks: tuple[Check, ...]) -> Check:
    (check,) = checks
    return check


def with_outputs(**outputs: float) -> Findings:
    """Returns findings whose outputs have these SQNR."""
    errors = OutputErrors(["quantized"], list(outputs))
    reference = np.tile([[1.0, -1.0]], (1, 50))
    for index in range(3):
        rows = [measure_output(reference * (1 + 10 ** (-sqnr / 20)), reference) for sqnr in outputs.values()]
        errors.add(index, np.array(rows)[None])
    return made.findings(samples=dataclasses.replace(made.samples(), errors=errors))


# -- outputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["1", "500%", 5.0])
def test_a_drop_that_no_share_misses_is_refused(drop: Any) -> None:
    with pytest.raises(OptionError, match=r"all there is or more; expected less than 1, or percentage points"):
        Drop.parse(drop).allowed(0.9)
    assert Drop.parse(drop).allowed(30.0)[0] > 0.9  # of another metric, such as PSNR in dB


@pytest.mark.parametrize("limits", [24.9, {"": 24.9}, {"output": 24.9}, {"logits": 24.9, "boxes": 1.0}])
def test_enough_sqnr(limits: Any) -> None:
    checks = check_gate(with_outputs(logits=25.0, boxes=40.0), min_sqnr=limits)
    assert [check.passed for check in checks] == [True, True]
    by_name = {check.name: check for check in checks}
    assert by_name["SQNR of output 'logits'"].value == pytest.approx(25.0)
    assert by_name["SQNR of output 'boxes'"].value == pytest.approx(40.0)


def test_too_little_sqnr_at_one_output() -> None:
    checks = check_gate(with_outputs(logits=25.0, boxes=40.0), min_sqnr={"boxes": 45.0, "": 20.0})
    assert {check.name: (check.passed, check.limit) for check in checks} == {
        "SQNR of output 'logits'": (True, 20.0),
        "SQNR of output 'boxes'": (False, 45.0),
    }
    assert only(check_gate(with_outputs(logits=25.0), min_sqnr=25.1)).words == (
        "25.00 dB over 3 samples, expected 25.10 dB or more"
    )


def test_cosine() -> None:
    # The error is the value itself times a factor: the direction is the same.
    assert only(check_gate(with_outputs(logits=10.0), min_cosine=0.9999)).passed
    assert not only(check_gate(made.findings(), min_cosine=0.9999)).passed


def test_an_unknown_output_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"expected one of 'logits'\. Did you mean 'logits'\?"):
        check_gate(with_outputs(logits=25.0), min_sqnr={"logit": 20.0})


def test_an_output_that_is_called_output_is_that_one() -> None:
    checks = check_gate(with_outputs(output=25.0, other=10.0), min_sqnr={"output": 20.0})
    assert only(checks).name == "SQNR of output 'output'"


def test_without_a_samples_analysis_the_run_tells() -> None:
    findings = made.findings(samples=None, run=made.run(output_sqnr=31.0))
    assert output_errors(findings)["output"].sqnr_db == pytest.approx(31.0)
    assert only(check_gate(findings, min_sqnr=30.9)).passed
    assert not only(check_gate(findings, min_sqnr=31.1)).passed


def test_nan_at_an_output_never_passes() -> None:
    errors = OutputErrors(["quantized"], ["output"])
    errors.add(0, measure_output(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]]))[None, None])
    findings = made.findings(samples=dataclasses.replace(made.samples(), errors=errors))
    for check in (*check_gate(findings, min_sqnr=-1000.0), *check_gate(findings, min_cosine=-1.0)):
        assert not check.passed
        assert "NaN" in check.words
    baseline = with_outputs(output=20.0)
    assert not check_gate(findings, baseline=baseline)[0].passed


def test_no_error_at_all_passes() -> None:
    errors = OutputErrors(["quantized"], ["output"])
    errors.add(0, measure_output(np.ones((1, 2)), np.ones((1, 2)))[None, None])
    findings = made.findings(samples=dataclasses.replace(made.samples(), errors=errors))
    assert only(check_gate(findings, min_sqnr=200.0)).passed


def test_what_was_not_measured_is_an_error_that_says_what_to_run() -> None:
    empty = made.findings(samples=None, run=dataclasses_free_run())
    with pytest.raises(OptionError, match="tflite-qdebug runall"):
        check_gate(empty, min_sqnr=10.0)
    with pytest.raises(OptionError, match="--evaluation-data"):
        check_gate(made.findings(scores=None), max_drop="1%")
    with pytest.raises(OptionError, match="runall"):
        check_gate(empty, baseline=made.findings())
    with pytest.raises(OptionError, match="diagnose"):
        check_gate(made.findings(diagnosis=None), baseline=made.findings())
    with pytest.raises(OptionError, match="nothing to hold"):
        check_gate(made.findings(), baseline=dataclasses.replace(empty, scores=None, diagnosis=None))
    with pytest.raises(OptionError, match="no diagnosis"):
        check_gate(made.findings(), baseline=made.findings(diagnosis=None), max_new_suspects=3)


def dataclasses_free_run() -> Any:
    run = made.run()
    run.whole, run.outputs = {}, []
    return run


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(OptionError, match="nothing to check"):
        check_gate(made.findings())
    with pytest.raises(OptionError, match="no baseline"):
        check_gate(made.findings(), min_sqnr=1.0, max_sqnr_loss=1.0)


# -- layers ----------------------------------------------------------------------------------------------------------------


def test_severity_by_hand() -> None:
    # Errors of 0.1 to 0.4 at a scale of 0.5: 0.2 to 0.8 steps.
    assert only(check_gate(made.findings(), max_severity=0.81)).passed
    failed = only(check_gate(made.findings(), max_severity=0.5))
    assert not failed.passed
    assert failed.value == pytest.approx(0.8)
    assert failed.words == "0.8000 steps at layer 'last', and 1 more beyond it, expected 0.5000 or less"


def test_a_broken_layer_fails_whatever_the_limit() -> None:
    findings = made.findings(run=made.run((0.1, float("nan"), 0.1, 0.1)))
    failed = only(check_gate(findings, max_severity=1e9))
    assert not failed.passed
    assert made.NODES[1] in failed.words


# -- task metric -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "floating", "quantized", "passed"),
    [
        ("0.5%", 0.900, 0.895, True),  # exactly
        ("0.5%", 0.900, 0.894, False),
        ("0.005", 0.900, 0.895, True),
        (0.005, 0.900, 0.894, False),
        ("0%", 0.9, 0.9, True),
        ("0%", 0.9, 0.91, True),  # better
        ("10%", 1.0, 0.9, True),
        ("1%", 0.9, float("nan"), False),
    ],
)
def test_drops_of_a_share_are_percentage_points(drop: Any, floating: float, quantized: float, passed: bool) -> None:
    check = only(check_gate(made.findings(scores=made.scores(floating, quantized)), max_drop=drop))
    assert check.passed == passed
    assert "percentage points" in check.words


def test_drops_of_other_metrics_say_what_they_mean() -> None:
    psnr = made.findings(scores=made.scores(30.0, 29.0, "psnr"))
    percent, plain = only(check_gate(psnr, max_drop="4%")), only(check_gate(psnr, max_drop="0.9"))
    assert (percent.passed, percent.limit) == (True, pytest.approx(1.2))
    assert "4.00 % of 30.00, which is no share" in percent.words
    assert (plain.passed, plain.limit) == (False, 0.9)
    assert "the metric's own unit" in plain.words


def test_a_metric_that_is_better_where_it_is_lower() -> None:
    loss = made.findings(scores=made.scores(2.0, 2.2, "loss"))
    assert only(check_gate(loss, max_drop="1%")).passed  # as if it had got better
    check = only(check_gate(loss, max_drop="1%", lower_is_better=True))
    assert not check.passed
    assert "rose by 0.5" in check.words
    for metric, lower in (("mean_error", True), ("top_1", False)):
        better = made.findings(scores=made.scores(0.5, 0.4 if lower else 0.6, metric))
        check = only(check_gate(better, max_drop="1%", lower_is_better=lower))
        assert check.passed
        assert ("fell by 0.1" if lower else "rose by 0.1") in check.words


@pytest.mark.parametrize("text", ["", "%", "half", "-1%", "nan", "inf", "1%%"])
def test_drops_that_mean_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="expected a number of 0 or more"):
        Drop.parse(text)


# -- baseline --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "loss", "passed"),
    [(20.0, None, True), (19.6, None, True), (19.4, None, False), (19.4, 1.0, True), (30.0, 0.0, True)],
)
def test_outputs_against_a_baseline(now: float, loss: float | None, passed: bool) -> None:
    checks = check_gate(with_outputs(logits=now), baseline=with_outputs(logits=20.0), max_sqnr_loss=loss)
    by_name = {check.name: check.passed for check in checks}
    assert by_name == {
        "SQNR of output 'logits' against the baseline": passed,
        "top_1 of the quantized model against the baseline": True,
        "new suspects against the baseline": True,
    }


def test_the_task_metric_against_a_baseline() -> None:
    def check(now: float, **options: Any) -> bool:
        new, old = made.findings(scores=made.scores(0.9, now)), made.findings(scores=made.scores(0.9, 0.85))
        checks = check_gate(new, baseline=old, **options)
        return next(check.passed for check in checks if check.name.startswith("top_1"))

    assert check(0.846)
    assert not check(0.844)
    assert check(0.83, max_drop="2%")


def test_new_suspects() -> None:
    old, new = (made.findings(diagnosis=made.diagnosis(*nodes)) for nodes in (("a", "b"), ("b", "c", "d")))
    check = next(check for check in check_gate(new, baseline=old) if "suspects" in check.name)
    assert (check.passed, check.value) == (False, 2.0)
    assert "'c', 'd'" in check.words
    assert all(check.passed for check in check_gate(new, baseline=old, max_new_suspects=2))
    assert all(check.passed for check in check_gate(old, baseline=old))


def test_a_baseline_of_another_model_is_an_error() -> None:
    other = made.findings(run=made.run((0.1,), ("stranger",)))
    with pytest.raises(OptionError, match="another model"):
        check_gate(made.findings(), baseline=other)
    with pytest.raises(OptionError, match="output 'boxes'"):
        check_gate(with_outputs(logits=20.0), baseline=with_outputs(boxes=20.0))


# -- files -----------------------------------------------------------------------------------------------------------------

CHECKS = (
    Check("SQNR of output 'a'", True, 30.0, 25.0, "dB", "30 dB"),
    Check('drop of <top_1> & "more"\x07', False, 0.1, 0.05, "", "fell by | 0.1 ]]> \x00"),
)


def test_junit_xml_is_valid_and_complete() -> None:
    root = ET.fromstring(junit_xml(CHECKS, "gate <of> 模型"))
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.attrib == {
        "name": "gate <of> 模型", "tests": "2", "failures": "1", "errors": "0", "skipped": "0", "time": "0",
    }  # fmt: skip
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["SQNR of output 'a'", 'drop of <top_1> & "more"\ufffd']
    assert {case.get("classname") for case in cases} == {"gate <of> 模型"}
    assert cases[0].find("failure") is None
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.text == failure.get("message") == "fell by | 0.1 ]]> \ufffd"


def test_the_summary_shows_what_failed_first_and_escapes() -> None:
    findings = made.findings(name="run|1")
    text = markdown_summary(CHECKS, findings, made.findings(scores=made.scores(0.9, 0.8)))
    lines = text.splitlines()
    assert lines[0] == r"## Quantization of run\|1 failed: 1 of 2 checks"
    table = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert r"drop of &lt;top\_1&gt; &amp;" in table[1]
    assert r"fell by \| 0.1" in table[1]
    assert table[1].startswith("| ❌")
    assert table[2].startswith("| ✅")
    assert "| quantized, in the baseline | 1.0 | 0.8000 | 1.500 |" in lines
    assert "**one layer is broken**" in lines
    assert any("&lt;" in line and "名" in line for line in lines if line.startswith("- "))
    assert "<" not in text.replace("&lt;", "")


def test_the_summary_says_where_samples_differ() -> None:
    other = made.run()
    other.provenance["debug_dataset"] = "other samples"
    assert "other samples" in markdown_summary(CHECKS[:1], made.findings(), made.findings(run=other))
    assert "measured on" not in markdown_summary(CHECKS[:1], made.findings(), made.findings())


# -- the verb --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    findings = made.findings()
    findings.run.save(tmp_path / "now" / "run.json")
    for part in ("scores", "samples", "diagnosis"):
        save_part(tmp_path / "now", part, getattr(findings, part))
    return tmp_path


def test_the_verb_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gate", str(folder / "now"), "--min-sqnr", "output:19.9", "--max-drop", "5.1%", "--baseline", str(folder / "now")]
    assert main([*words, "--junit", str(folder / "gate.xml"), "--summary", str(folder / "gate.md")]) == 0
    assert "5 of 5 checks passed" in capsys.readouterr().out
    (suite,) = ET.parse(folder / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("5", "0")
    assert "passed: 5 checks" in (folder / "gate.md").read_text()


def test_the_verb_fails_with_code_11_after_writing_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gate", str(folder / "now"), "--min-sqnr", "25", "--max-drop", "0.5%"]
    assert main([*words, "--junit", str(folder / "gate.xml"), "--json"]) == 11
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["passed"] is False
    assert [check["passed"] for check in result["checks"]] == [False, False]
    assert "2 of 2 checks failed: SQNR of output 'output'; drop of top_1" in printed.err
    (suite,) = ET.parse(folder / "gate.xml").getroot()
    assert suite.get("failures") == "2"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--min-sqnr", "high"], 2, "expected a number, or OUTPUT:NUMBER"),
        (["--min-sqnr", "outputt:3"], 2, "Did you mean 'output'"),
        (["--max-drop", "lots"], 2, "such as 0.5%"),
        ([], 2, "nothing to check"),
        (["--baseline", "nowhere"], 3, "no run at nowhere"),
    ],
)
def test_wrong_words(words: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(folder / "now"), *words]) == code
    assert message in capsys.readouterr().err


def test_a_summary_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    words = ["gate", str(folder / "now"), "--min-sqnr", "5", "--summary", str(folder / "file" / "gate.md")]
    assert main(words) == 8
    assert "cannot write" in capsys.readouterr().err


def test_help_names_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gate", "--help"])
    assert "11 gate failed" in capsys.readouterr().out
