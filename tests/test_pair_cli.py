"""``run`` on models that were quantized elsewhere: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import control_flow_models
import numpy as np
import pytest

from tflite_qdebug import Run, example, load_float_model, pair_error, pair_errors
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model

QUIET = "--no-progress"
ONE = Backend(workers=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    words = ["--kind", "int8", "--kind", "full_integer", "--kind", "int16x8", "--output", str(folder), QUIET]
    assert main(["convert", "example", *words]) == 0
    (folder / "example.tflite").write_bytes(Path(example.MODEL_PATH).read_bytes())
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_pair_gives_what_the_converter_path_gives(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--float", str(models / "example.tflite"), "--quantized", str(models / "example_int8.tflite")]
    assert main(["run", *words, "--debug-data", "example", "--limit", "20", "--output", str(tmp_path / "pair"), QUIET]) == 0
    shown = capsys.readouterr().out
    count = len(Model(models / "example.tflite").main.operators)
    assert f"matched {count} of {count} operators of the quantized model with the float model" in shown
    assert main(["run", "example", "--limit", "20", "--output", str(tmp_path / "own"), "--kind", "int8", QUIET]) == 0
    pair, own = Run.load(tmp_path / "pair" / "run.json"), Run.load(tmp_path / "own" / "run.json")
    # Calibrated on 20 samples here, on all there: the ranges differ, the worst layers do not.
    worst = [[run.layers[i].node for i in run.worst("rmse_over_scale", 3)] for run in (pair, own)]
    assert worst[0] == worst[1]
    rows = table(tmp_path / "pair" / "layers.csv")
    assert [row["reference"] for row in rows] == ["float model"] * len(rows)
    assert all(row["matched_by"] for row in rows)


def test_parts_add_up_and_are_shown(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--float", "example", "--quantized", str(models / "example_int8.tflite"), "--debug-data", "example"]
    assert main(["run", *words, "--limit", "5", "--parts", "--json", QUIET]) == 0
    run = json.loads(capsys.readouterr().out)
    assert set(run["parts"]) >= {"weights", "output", "input", "accumulated"}
    sums = {name: np.array(part["sums"]) for name, part in run["parts"].items()}
    total = sums["weights"][:, 1] + sums["output"][:, 1] + sums["input"][:, 1]
    scale = np.sqrt(sums["accumulated"][:, 2] * sums["accumulated"][:, 0])
    np.testing.assert_allclose(total / scale, sums["accumulated"][:, 1] / scale, atol=1e-5)
    assert set(run["whole"]) == {"quantized", "weights", "activations"}
    assert main(["run", *words, "--limit", "5", "--parts", QUIET]) == 0
    shown = capsys.readouterr().out
    assert "weights %" in shown
    assert "activations alone" in shown


def test_several_quantized_models_stand_side_by_side(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--float", "example", "--debug-data", "example", "--evaluation-data", "example", "--limit", "30"]
    for name in ("int8", "int16x8"):
        words += ["--quantized", f"{name}={models / f'example_{name}.tflite'}"]
    assert main(["run", *words, "--output", str(tmp_path), QUIET]) == 0
    shown = capsys.readouterr().out
    assert "int8 RMSE/scale" in shown
    assert "int16x8 SQNR dB" in shown
    rows = table(tmp_path / "comparison.csv")
    runs = {name: Run.load(tmp_path / name / "run.json") for name in ("int8", "int16x8")}
    for name, run in runs.items():
        expected = {(layer.node, layer.op_name): value for layer, value in zip(run.layers, run.statistics.sqnr_db, strict=True)}
        found = {(row["node"], row["op_name"]): float(row[f"{name} sqnr_db"]) for row in rows if row[f"{name} sqnr_db"]}
        # Where one model has an operator in float, a QUANTIZE of its output stands in that place.
        assert {key: value for key, value in found.items() if key in expected} == pytest.approx(
            {key: value for key, value in expected.items() if key in found}
        )
        assert {node for node, _ in found} == {node for node, _ in expected}
    # 16 bits have 48 dB more than 8, where weights do not limit them.
    both = [row for row in rows if row["int16x8 sqnr_db"] and row["int8 sqnr_db"]]
    gain = [float(row["int16x8 sqnr_db"]) - float(row["int8 sqnr_db"]) for row in both]
    assert np.nanmedian(gain) > 3.0
    evaluation = json.loads((tmp_path / "repeat.json").read_text())["evaluation"]
    assert [score["name"] for score in evaluation["scores"]] == ["float", "int8", "int16x8"]
    # Each run keeps its own, and what is advised there does not ask for what is known.
    kept = {name: Findings.load(tmp_path / name) for name in ("int8", "int16x8")}
    for found, score in zip(kept.values(), evaluation["scores"][1:], strict=True):
        assert found.scores is not None
        assert [one.name for one in found.scores.scores] == ["float", "quantized"]
        assert found.scores.scores[1].metrics == score["metrics"]
        assert not any("Measure what the model loses" in advice.words for advice in found.advice)


def test_integer_samples_are_taken_as_they_are(models: Path, tmp_path: Path) -> None:
    quantized = Model(models / "example_full_integer.tflite")
    parameters = quantized.main.tensors[quantized.main.inputs[0]].quantization
    assert parameters is not None
    floats = [sample[0] for sample, _ in zip(example.debug_dataset(), range(4), strict=False)]
    integers = [parameters.quantize(array, np.int8) for array in floats]
    rounded = [parameters.dequantize(array) for array in integers]
    runs = [pair_error(None, quantized.data, [[array] for array in data], backend=ONE) for data in (integers, rounded)]
    np.testing.assert_array_equal(runs[0].statistics.sums, runs[1].statistics.sums)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--float", "example"], "got --float without --quantized"),
        (["example", "--quantized", "x.tflite", "--debug-data", "example"], "given by --float"),
        (["--quantized", "x.tflite"], "--debug-data is needed"),
        (["--quantized", "x.tflite", "--debug-data", "example", "--kind", "int8"], "quantized already"),
        (["--quantized", "a=x.tflite", "--quantized", "a=y.tflite", "--debug-data", "example"], "two models called 'a'"),
        (["--quantized", "x.tflite", "--debug-data", "example", "--signature-data", "x"], "expected KEY=DATA"),
        (["example", "--signature-data", "x=example"], "a model with one signature"),
        ([], "got no model"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words, QUIET]) == 2
    assert message in capsys.readouterr().err


def test_swapped_models_are_told(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--float", str(models / "example_int8.tflite"), "--quantized", str(models / "example.tflite")]
    assert main(["run", *words, "--debug-data", "example", QUIET]) == 3
    assert "swapped" in capsys.readouterr().err


def test_a_one_shot_iterator_is_read_once_and_to_its_end(models: Path) -> None:
    samples = [sample for sample, _ in zip(example.debug_dataset(), range(12), strict=False)]
    once = pair_error(example.MODEL_PATH, models / "example_int8.tflite", iter(samples), backend=ONE)
    again = pair_error(example.MODEL_PATH, models / "example_int8.tflite", samples, backend=ONE, parts=True)
    assert once.statistics.samples == 12
    np.testing.assert_array_equal(once.statistics.sums, again.statistics.sums)
    assert {part.samples for part in once.parts.values()} == {8}
    assert {part.samples for part in again.parts.values()} == {12}
    assert any("first 8 samples" in note for note in once.notes)


def test_what_was_measured_before_a_wrong_sample_is_kept(models: Path) -> None:
    def samples() -> Iterator[list[np.ndarray]]:
        for index, sample in enumerate(example.debug_dataset()):
            yield [np.full_like(sample[0], np.nan)] if index == 5 else list(sample)

    with pytest.raises(DatasetError, match="sample 5") as caught:
        pair_error(example.MODEL_PATH, models / "example_int8.tflite", samples, backend=ONE)
    assert caught.value.partial_run.statistics.samples == 5


# ------------------------------------------------------------------------------------------ signatures and bodies


def test_every_signature_is_measured_on_its_own_samples() -> None:
    floating, quantized = control_flow_models.signatures(), control_flow_models.signatures("dynamic_range")
    model = Model(quantized)
    keys = [signature.key for signature in model.signatures]
    assert len(keys) > 1
    inputs = {key: Model(floating) for key in keys}
    samples = []
    generator = np.random.default_rng(0)
    for key, whole in inputs.items():
        signature = next(candidate for candidate in whole.signatures if candidate.key == key)
        tensors = whole.subgraphs[signature.subgraph].tensors
        for _ in range(2):
            feed = {}
            for name, index in signature.inputs.items():
                values = np.abs(2 + generator.normal(size=[abs(size) for size in tensors[index].shape]))
                feed[name] = values.astype(tensors[index].dtype)
            samples.append((key, feed))
    runs = pair_errors(floating, quantized, samples, backend=ONE)
    assert {name.partition("/")[0] for name in runs} == set(keys)
    assert "looped" not in runs  # nothing of it is quantized but the body of its loop
    assert any("looped itself is float throughout" in note for note in runs["looped/while:0/body"].notes)
    for key in set(keys) & set(runs):
        assert runs[key].statistics.samples == 2
        alone = pair_error(floating, quantized, samples, signature=key, backend=ONE)
        np.testing.assert_array_equal(alone.statistics.sums, runs[key].statistics.sums)
        assert any("other" in note or "not measured" in note for note in alone.notes)
    with pytest.raises(OptionError, match=f"got signature 'nonsense', expected one of the model's: '{keys[0]}'"):
        pair_error(floating, quantized, samples, signature="nonsense", backend=ONE)
    with pytest.raises(OptionError, match="got data for signature 'nonsense'"):
        pair_errors(floating, quantized, samples, signature_datasets={"nonsense": samples}, backend=ONE)


def test_the_body_of_a_loop_is_measured_with_what_it_receives() -> None:
    floating, quantized = control_flow_models.loop(), control_flow_models.quantized("loop", "dynamic_range")
    generator = np.random.default_rng(0)
    samples = [
        {"x": generator.normal(size=(1, control_flow_models.SIZE)).astype(np.float32), "steps": np.int32(steps)}
        for steps in (2, 3, 0, 4)
    ]
    runs = pair_errors(floating, quantized, samples, backend=ONE)
    bodies = [name for name in runs if name.endswith("/body")]
    assert len(bodies) == 1
    body = runs[bodies[0]]
    assert body.statistics.samples == 2 + 3 + 0 + 4
    assert "FULLY_CONNECTED" in {layer.op_name for layer in body.layers}
    assert {layer.reference for layer in body.layers} == {"float model"}


def test_a_dataset_that_fits_no_signature_is_an_error() -> None:
    floating, quantized = control_flow_models.signatures(), control_flow_models.signatures("dynamic_range")
    with pytest.raises((DatasetError, ModelError), match="debug dataset"):
        pair_errors(floating, quantized, [[np.zeros((7, 7, 7), np.float32)]], backend=ONE)


def test_a_float_model_of_any_form_is_taken(models: Path) -> None:
    floating = load_float_model(example.MODEL_PATH)
    run = pair_error(floating, models / "example_int8.tflite", example.debug_dataset, limit=2, backend=ONE)
    assert run.provenance["options"]["model"] == floating.origin
