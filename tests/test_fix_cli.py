"""``tflite-qdebug fix``: what it prints and writes, its exit codes, and how it goes on with the folder of a run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug import example
from tflite_qdebug.cli import fix as verb
from tflite_qdebug.cli import main
from tflite_qdebug.errors import ModelError
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model
from tflite_qdebug.remedies import search
from tflite_qdebug.study import Setup

QUIET = ["--no-progress", "--workers", "1", "--no-isolation", "--kernels", "builtin", "--limit", "40"]


def call(*words: str | Path) -> int:
    return main(["fix", *map(str, words), *QUIET])


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fix") / "fixed"
    assert call("example", "--target", "accuracy >= float - 1%", "--output", folder) == 0
    return folder


def test_everything_is_written(fixed: Path) -> None:
    names = {path.name for path in (fixed / "fix").iterdir()}
    assert {"fixed.tflite", "recipe.json", "fix.json", "run.json", "candidates.csv", "convert.py"} <= names
    findings = Findings.load(fixed)
    assert findings.fix is not None
    assert findings.fixed is not None
    best = findings.fix.candidates[findings.fix.best]
    assert best.met
    assert best.size == (fixed / "fix" / "fixed.tflite").stat().st_size
    # The run of before is of plain int8, that of after of the fixed model, on the same samples.
    assert findings.run.provenance["samples"] == findings.fixed.provenance["samples"] == 40
    report = (fixed / "report.html").read_text(encoding="utf-8")
    assert "Remedies" in report
    assert best.name in report


def test_what_is_printed(fixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("example", "--target", "accuracy >= float - 1%", "--output", fixed, "--no-report") == 0
    text = capsys.readouterr().out
    assert "handed back" in text
    assert "40 evaluation samples" in text
    assert str(fixed / "fix" / "fixed.tflite") in text


def test_as_json(fixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("example", "--target", "accuracy >= float - 1%", "--output", fixed, "--no-report", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["met"] is True
    assert found["folder"] == str(fixed)
    assert found["report"] is None


def test_the_snippet_makes_the_model_again(fixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_bytes((fixed / "fix" / "recipe.json").read_bytes())
    images = example.load_split("representative")[0][:40]
    given: dict[str, Any] = {
        "converter": example.MODEL_PATH,
        "representative_dataset": lambda: ([image[None]] for image in images),
    }
    runpy.run_path(str(fixed / "fix" / "convert.py"), init_globals=given)
    assert (tmp_path / "fixed.tflite").read_bytes() == (fixed / "fix" / "fixed.tflite").read_bytes()


def test_where_nothing_can_be_compared_layer_by_layer_there_is_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unlike(*arguments: Any, **keywords: Any) -> None:
        raise ModelError("all of it is float")

    monkeypatch.setattr("tflite_qdebug.cli.fix.pair_error", unlike)
    assert call("example", "--target", "sqnr >= 1 dB", "--output", tmp_path / "fixed") == 0
    assert "does not compare before and after layer by layer: all of it is float" in capsys.readouterr().out
    assert (tmp_path / "fixed" / "report.html").exists()


def test_a_saved_run_is_fixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["run", "example", "--output", str(run), *QUIET]) == 0
    assert Setup.load(run).representative_data == "example"
    assert call(run, "--target", "agreement >= 95%", "--no-report") == 0
    assert "handed back" in capsys.readouterr().out
    assert (run / "fix" / "fixed.tflite").exists()
    assert call(run, "--target", "agreement >= 95%", "--output", tmp_path / "other") == 2
    assert "holds a run and its models" in capsys.readouterr().err


def test_a_run_that_was_made_otherwise_needs_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["run", "example", "--per-tensor", "--output", str(run), *QUIET]) == 0
    assert Setup.load(run).representative_data is None
    assert call(run, "--target", "agreement >= 95%") == 2
    assert "--representative-data" in capsys.readouterr().err
    before = (run / "int8.tflite").read_bytes()
    assert call(run, "--target", "size <= int8 + 1%", "--representative-data", "example", "--no-report") == 0
    assert (run / "int8.tflite").read_bytes() == before
    # It began with the model of the run, and not with one of its own.
    assert len(Model(run / "fix" / "fixed.tflite").data) <= 1.01 * len(before)


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    true = verb._line

    def line(outcome: Any) -> str:
        lines.append(true(outcome))
        if len(lines) == 2:
            raise KeyboardInterrupt
        return lines[-1]

    monkeypatch.setattr(verb, "_line", line)
    assert call("example", "--target", "agreement >= 99%", "--output", tmp_path / "f") == 130
    assert "goes on from here" in capsys.readouterr().out
    assert (tmp_path / "f" / "fix" / "fixed.tflite").exists()
    monkeypatch.setattr(verb, "_line", true)
    assert call("example", "--target", "agreement >= 99%", "--output", tmp_path / "f", "--no-report") == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["example", "--target", "acuracy >= 1"], 2, "Did you mean 'accuracy'"),
        (["example", "--target", "size >= 1MB"], 2, "asks for a worse model"),
        (["nowhere.tflite", "--target", "sqnr >= 1"], 2, "-data is needed"),
        (
            ["nowhere.tflite", "--representative-data", "example", "--debug-data", "example", "--target", "kl <= 1"],
            3,
            "nowhere",
        ),
        (["example", "--target", "psnr >= 3", "--metric", "nowhere:psnr"], 2, "importing nowhere failed"),
        (["example", "--target", "sqnr >= 30", "--training-data", "example"], 2, "expected a Keras model"),
    ],
)
def test_what_is_wrong(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words) == code
    assert message in capsys.readouterr().err


def test_a_target_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call("example")
    assert ended.value.code == 2
    assert "--target" in capsys.readouterr().err


def test_training_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def train(model: Any, training_data: Any, label_offset: int, representative: Any, progress: Any) -> bytes:
        trained.append((training_data, label_offset))
        return example.MODEL_PATH.read_bytes()  # as good as it gets

    monkeypatch.setattr(search, "_trained", train)
    monkeypatch.setattr(search.tf_private, "is_keras_model", lambda model: True)
    monkeypatch.setattr(search, "_TUNED_SLOTS", 1)
    options: dict[str, Any] = {"limit": 16, "progress": False, "spend": "nothing", "backend": verb.backend_of(_arguments())}
    data = (example.representative_dataset, example.debug_dataset)
    good = search.fix(example.MODEL_PATH, "agreement >= 90%", *data, training_data="images", **options)
    assert not trained
    assert not good.recipe.trained
    best = search.fix(example.MODEL_PATH, "sqnr >= 80 dB", *data, training_data="images", **options)
    assert trained == [("images", 0)]
    assert best.recipe.trained
    assert best.data == example.MODEL_PATH.read_bytes()


def _arguments() -> Any:
    from tflite_qdebug.cli.main import parser

    return parser().parse_args(["fix", "example", "--target", "kl <= 1", *QUIET])


def test_samples_of_ones_own(tmp_path: Path) -> None:
    name = Model(example.MODEL_PATH).input_specs()[0].name
    for split in ("representative", "debug", "evaluation"):
        images, labels = example.load_split(split)
        np.savez(tmp_path / f"{split}.npz", **{name: images[:40], "labels": labels[:40]})
    words = [f"--{split}-data={tmp_path / split}.npz" for split in ("representative", "debug", "evaluation")]
    assert (
        call(example.MODEL_PATH, *words, "--target", "accuracy >= float - 1%", "--output", tmp_path / "f", "--no-report") == 0
    )
    outcome = Findings.load(tmp_path / "f" / "fix") if (tmp_path / "f" / "run.json").exists() else None
    assert outcome is None
    assert json.loads((tmp_path / "f" / "fix" / "fix.json").read_text())["content"]["proof_samples"] == 40
