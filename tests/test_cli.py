"""The command line: what it prints and writes, and the exit code of each kind of failure."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug import Run, example
from tflite_qdebug.cli import main
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model

QUIET = "--no-progress"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    kinds = ["float", "float16", "dynamic_range", "int8", "full_integer", "int16x8", "calibrated", "debug", "debug_whole_model"]
    words = [word for kind in kinds for word in ("--kind", kind)]
    assert main(["convert", "example", *words, "--output", str(folder), QUIET]) == 0
    return folder


def types_of(path: Path) -> tuple[str, str, set[str]]:
    main_graph = Model(path).main
    tensors = main_graph.tensors
    weights = {t.dtype.name for t in tensors if t.is_constant and np.prod(t.shape) >= 1024}
    return tensors[main_graph.inputs[0]].dtype.name, tensors[main_graph.outputs[0]].dtype.name, weights


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("float", ("float32", "float32", {"float32"})),
        ("float16", ("float32", "float32", {"float16"})),
        ("dynamic_range", ("float32", "float32", {"int8"})),
        ("int8", ("float32", "float32", {"int8"})),
        ("full_integer", ("int8", "int8", {"int8"})),
        ("int16x8", ("float32", "float32", {"int8"})),
    ],
)
def test_convert_makes_each_kind(converted: Path, kind: str, expected: tuple[str, str, set[str]]) -> None:
    assert types_of(converted / f"example_{kind}.tflite") == expected


def test_convert_makes_calibrated_and_debug_models(converted: Path) -> None:
    calibrated = Model(converted / "example_calibrated.tflite").main
    activations = [calibrated.tensors[output] for op in calibrated.operators for output in op.outputs]
    assert all(tensor.minimum is not None for tensor in activations)
    for kind in ("debug", "debug_whole_model"):
        operators = [operator.name for operator in Model(converted / f"example_{kind}.tflite").main.operators]
        assert operators.count("NumericVerify") == len(calibrated.operators)


def test_convert_writes_what_is_needed_to_repeat_it(converted: Path) -> None:
    repeat = json.loads((converted / "repeat.json").read_text())
    assert repeat["command"][:3] == ["tflite-qdebug", "convert", "example"]
    assert repeat["float_model_sha256"] == Model(example.MODEL_PATH).sha256
    assert {"tflite_qdebug", "tensorflow", "numpy", "python"} <= set(repeat["versions"])
    assert repeat["made"]["int8"]["bytes"] == (converted / "example_int8.tflite").stat().st_size


def test_evaluate_counts_the_right_answers(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "example", f"half={converted / 'example_float16.tflite'}", str(converted / "example_int8.tflite")]
    assert main([*words, "--evaluation-data", "example", "--metric", "top_1", "--metric", "top_5", "--json", QUIET]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 600
    by_name = {score["name"]: score for score in result["scores"]}
    assert list(by_name) == ["example", "half", "example_int8"]
    # Counted here by hand, with TensorFlow's interpreter and numpy.
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(converted / "example_int8.tflite"))
    interpreter.allocate_tensors()
    images, labels = example.load_split("evaluation")
    right = 0
    for image, label in zip(images, labels, strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])) == label)
    assert by_name["example_int8"]["metrics"]["top_1"] == pytest.approx(right / 600)
    assert by_name["example_int8"]["size"] == (converted / "example_int8.tflite").stat().st_size


def test_run_writes_models_layers_and_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / "here"
    assert main(["run", "example", "--count", "3", "--output", str(folder), "--limit", "40", QUIET]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        "float.tflite", "calibrated.tflite", "int8.tflite", "debug.tflite", "layers.csv", "run.json", "repeat.json",
        "study.json", "advice.json",
    }  # fmt: skip
    run = Run.load(folder / "run.json")
    assert run.statistics.samples == 40
    assert run.provenance["kernels"] in ("xnnpack", "builtin")
    assert len(run.provenance["debug_model_sha256"]) == 64
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.layers) == 45
    ratios = [float(row["rmse_over_scale"]) for row in rows]
    worst = sorted(range(45), key=lambda row: -ratios[row])[:3]
    assert run.worst(count=3) == worst
    assert "block1_project" in rows[worst[0]]["node"]
    # The suspects can be pasted into a denylist as they stand.
    for position in worst:
        assert repr(rows[position]["node"]) in printed


def test_run_as_json_is_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "example", "--limit", "5", "--json", "--kind", "float16", QUIET]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert result["format"] == "tflite_qdebug run"
    assert result["statistics"]["samples"] == 5


def test_run_says_when_it_measures_the_calibration_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = tmp_path / "array.npy"
    np.save(samples, example.load_split("representative")[0][:8])
    assert main(["run", str(example.MODEL_PATH), "--representative-data", str(samples), "--count", "1", QUIET]) == 0
    assert "that flatters the model" in capsys.readouterr().out


def test_demo_brings_the_accuracy_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path), "--json", QUIET]) == 0
    result = json.loads(capsys.readouterr().out)
    accuracy = {score["name"]: score["metrics"]["top_1"] for score in result["after"]["scores"]}
    assert accuracy["int8"] < accuracy["float"] - 0.08
    assert accuracy["selective"] > accuracy["float"] - 0.02
    assert result["seconds"] < 60
    assert {path.name for path in tmp_path.iterdir()} >= {"float.tflite", "int8.tflite", "selective.tflite", "run.json"}


def test_demo_teaches_at_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", QUIET]) == 0
    printed = capsys.readouterr().out
    assert printed.count("On your own model: tflite-qdebug") == 5
    for step in "12345":
        assert f"\n{step}. " in "\n" + printed


def test_a_folder_with_analyses_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "example", "--limit", "4", "--output", str(tmp_path), QUIET]
    assert main(words) == 0
    assert main([*words, "--per-tensor"]) == 0  # a run alone is replaced
    assert main(["samples", str(tmp_path), QUIET]) == 0
    before = (tmp_path / "run.json").read_bytes()
    capsys.readouterr()
    assert main(words) == 2
    assert "holds a run of another model, with analyses of it (samples)" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_bytes() == before
    assert main([*words, "--per-tensor"]) == 0


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["runn", "example"], "'run'"),
        (["run", "example", "--limitt", "3"], "'--limit'"),
        (["run", "example", "--kernels=bultin"], "'builtin'"),
        (["edgetpu", "chek"], "'check'"),
    ],
)
def test_misspelled_words_get_the_nearest(words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"Did you mean {nearest}" in capsys.readouterr().err


def test_own_metrics_are_found_in_the_working_directory(tmp_path: Path) -> None:
    # As the command is started by its own name, and not by python -m.
    (tmp_path / "own_metrics.py").write_text("def always(outputs, label):\n    return 0.25\n")
    code = (
        "import sys; sys.path = list(filter(None, sys.path)); from tflite_qdebug.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["evaluate", "example", "--evaluation-data", "example", "--limit", "3", "--json", QUIET]
    words += ["--metric", "own_metrics:always"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"][0]["metrics"] == {"always": 0.25}


def test_a_model_that_only_guesses_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = example.load_split("evaluation")
    rng = np.random.default_rng(0)
    guessed = rng.integers(0, 10, len(labels))
    np.savez(tmp_path / "wrong.npz", image=images, labels=np.where(guessed == labels, (labels + 1) % 10, guessed))
    np.savez(tmp_path / "right.npz", image=images, labels=labels)
    for name, told in (("wrong", True), ("right", False)):
        words = ["evaluate", "example", "--evaluation-data", str(tmp_path / f"{name}.npz"), "--limit", "100", QUIET]
        assert main(words) == 0
        assert ("no more often than guessing among 10 classes" in capsys.readouterr().out) is told


def test_a_run_with_evaluation_data_keeps_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "example", "--evaluation-data", "example", "--limit", "30", "--output", str(tmp_path / "run"), QUIET]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "top_1" in text
    assert "Measure what the model loses" not in text
    assert main(["evaluate", "example", f"q={tmp_path / 'run' / 'int8.tflite'}", *words[2:6], "--json", QUIET]) == 0
    expected = {score["name"]: score["metrics"] for score in json.loads(capsys.readouterr().out)["scores"]}
    found = Findings.load(tmp_path / "run").scores
    assert found is not None
    assert {score.name: score.metrics for score in found.scores} == {"float": expected["example"], "quantized": expected["q"]}
    drop = expected["example"]["top_1"] - expected["q"]["top_1"]
    assert drop > 0.02
    assert main(["gate", str(tmp_path / "run"), "--max-drop", f"{drop - 0.01:.3f}"]) == 11
    assert main(["gate", str(tmp_path / "run"), "--max-drop", f"{drop + 0.01:.3f}"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "nowhere.tflite"], 3, "cannot read the model nowhere.tflite"),
        (["run", "{readme}"], 3, "expected a TensorFlow Lite flatbuffer"),
        (["run", "example", "--kind", "int9"], 2, "Did you mean 'int8'"),
        (["run", "example", "--criterion", "rmse_over_scal"], 2, "Did you mean 'rmse_over_scale'"),
        (["run", "example", "--denylisted-op", "CONV2D"], 2, "Did you mean 'CONV_2D'"),
        (["run", "example", "--debug-data", "missing.npz"], 4, "missing.npz"),
        (["run", "{model}"], 2, "--representative-data is needed"),
        (["run", "example", "--delegate", "libnowhere.so"], 6, "cannot load the delegate libnowhere.so"),
        (["run", "example", "--delegate-option", "a=b"], 2, "without --delegate"),
        (["run", "example", "--output", "{file}/x"], 8, "cannot make the folder"),
        (["run", "example", "--workers", "0"], 2, "expected 1 or more"),
        (["evaluate", "example", "--evaluation-data", "example", "--metric", "top1"], 2, "Did you mean 'top_1'"),
        (["evaluate", "example", "--evaluation-data", "example", "--label-offset", "9"], 4, "expected 0 to 9"),
        (["evaluate", "example", "--evaluation-data", "example", "--metric", "math:sin"], 9, "metric 'sin' failed on sample 0"),
        (["evaluate", "example", "--evaluation-data", "example", "--metric", "top_1", "--metric", "top_1"], 2, "called alike"),
        (["evaluate", "example", "example", "--evaluation-data", "example"], 2, "two models called 'example'"),
        (["convert", "example", "--kind", "full_integer", "--input-type", "int16", "--output", "{tmp}"], 2, "expected int8 or"),
        (
            ["convert", "example", "--kind", "full_integer", "--denylisted-op", "MEAN", "--output", "{tmp}"],
            5,
            "denylisted operator",
        ),
    ],
)
def test_each_failure_is_a_message_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    file = tmp_path / "a_file"
    file.write_text("")
    readme = tmp_path / "README.md"
    readme.write_text("# Not a model, but long enough")
    places = {"tmp": tmp_path, "file": file, "readme": readme, "model": example.MODEL_PATH}
    assert main([word.format(**places) for word in words] + [QUIET]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.tflite", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "interrupted_samples.py"
    module.write_text(
        "from tflite_qdebug import example\n"
        "def samples():\n"
        "    for index, sample in enumerate(example.debug_dataset()):\n"
        "        if index == 12:\n"
        "            raise KeyboardInterrupt\n"
        "        yield sample\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "out"
    words = ["run", "example", "--debug-data", "interrupted_samples:samples", "--workers", "1", "--output", str(folder), QUIET]
    assert main(words) == 130
    partial = Run.load(folder / "partial_run.json")
    assert partial.statistics.samples == 12
    assert "KeyboardInterrupt" in partial.notes[-1]
    assert (folder / "int8.tflite").exists()


def test_help_needs_neither_tensorflow_nor_pandas() -> None:
    script = "import sys; from tflite_qdebug.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    script += "print(sorted({'tensorflow', 'pandas', 'numba'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "examples:" in done.stdout
    assert "exit codes:" in done.stdout


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tflite_qdebug", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tflite-qdebug ")
