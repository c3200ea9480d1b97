"""The rewriter for TFX, with the real package: by itself, and in a pipeline with a Trainer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import tensorflow as tf

import tflite_qdebug
from tflite_qdebug import Backend, example
from tflite_qdebug.errors import DatasetError, LimitError, MissingPackageError, OptionError
from tflite_qdebug.findings import Findings

HERE = Path(__file__).parent
BACKEND = Backend(workers=1, isolate=False)
needs_tfx = pytest.mark.skipif(
    importlib.util.find_spec("tfx") is None,
    reason="tfx is not installed; tests/tfx_requirements.txt says how to install it into an environment of its own",
)
# TFX, Beam and what they bring along.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_without_tfx_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from tflite_qdebug.rewriting import rewriter_class

    rewriter_class.cache_clear()
    for name in [name for name in sys.modules if name == "tfx" or name.startswith("tfx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tfx", None)
    with pytest.raises(MissingPackageError, match="pip install tfx"):
        tflite_qdebug.tfx_rewriter()
    rewriter_class.cache_clear()


def test_the_page_shows_what_is_tested() -> None:
    page = (HERE.parent / "docs" / "pipeline.md").read_text(encoding="utf-8")
    assert f"```{{code-block}} python\n{(HERE / 'tfx_trainer.py').read_text(encoding='utf-8')}```" in page


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One convolution with known weights, and an asset, which TensorFlow's converter must not see."""
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 1, 4)).astype(np.float32))
    module = tf.Module()
    folder = tmp_path_factory.mktemp("saved") / "model"
    asset = folder.parent / "words.txt"
    asset.write_text("one two")
    module.asset = tf.saved_model.Asset(str(asset))

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32, "image")])
    def serve(image: Any) -> Any:
        return {"scores": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME")), (1, 2))}

    tf.saved_model.save(module, str(folder), {"serving_default": serve})
    return folder


def batches(split: str, count: int = 24) -> tf.data.Dataset:
    images, labels = example.load_split(split)
    return tf.data.Dataset.from_tensor_slices((images[:count], labels[:count])).batch(7)


def rewrite(saved_model: Path, folder: Path, **arguments: Any) -> Any:
    from tfx.components.trainer.rewriting.rewriter import ModelDescription, ModelType

    settings = {
        "quantization_optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": batches("representative"),
        "debug_dataset": batches("debug"),
        "debug_folder": folder / "runs",
        "debug_backend": BACKEND,
        "debug_progress": False,
    }
    rewriter = tflite_qdebug.tfx_rewriter(**{**settings, **arguments})
    rewriter.perform_rewrite(
        ModelDescription(ModelType.SAVED_MODEL, str(saved_model)),
        ModelDescription(ModelType.TFLITE_MODEL, str(folder / "serving")),
    )
    return rewriter


def by_tensorflow(saved_model: Path) -> Any:
    def samples() -> Iterator[Any]:
        yield from ([image[np.newaxis]] for image in example.load_split("representative")[0][:24])

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    return converter


@needs_tfx
def test_the_model_is_tensorflows_and_is_debugged(saved_model: Path, tmp_path: Path) -> None:
    rewriter = rewrite(saved_model, tmp_path, filename="model.tflite", min_output_sqnr_db=5)
    content = (tmp_path / "serving" / "model.tflite").read_bytes()
    assert sorted(path.name for path in (tmp_path / "serving").iterdir()) == ["assets", "model.tflite"]
    assert (tmp_path / "serving" / "assets" / "words.txt").read_text() == "one two"
    theirs = by_tensorflow(saved_model).convert()
    np.testing.assert_array_equal(outputs(content), outputs(theirs))
    run = Findings.load(rewriter.converter.report.parent).run
    assert run.statistics.samples == 24
    assert [check.passed for check in rewriter.converter.checks] == [True]


def outputs(content: bytes, count: int = 5) -> np.ndarray:
    interpreter, answers = tflite_qdebug.Interpreter(content), []
    for image in example.load_split("evaluation")[0][:count]:
        interpreter.invoke([image[np.newaxis]])
        answers.append(interpreter.read_outputs()[0][0])
    return np.stack(answers)


@needs_tfx
def test_a_refused_model_is_not_served(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="expected 200") as caught:
        rewrite(saved_model, tmp_path, min_output_sqnr_db=200)
    assert list((tmp_path / "serving").iterdir()) == []
    assert str(tmp_path / "runs") in str(caught.value)
    assert tflite_qdebug.Model(caught.value.model).main.operators


@needs_tfx
def test_attributes_and_types(saved_model: Path, tmp_path: Path) -> None:
    seen = []
    rewrite(
        saved_model,
        tmp_path,
        quantization_enable_full_integer=True,
        inference_input_type=tf.uint8,
        configure=lambda converter: seen.append(setattr(converter, "inference_output_type", tf.int8)),
    )
    model = tflite_qdebug.Model((tmp_path / "serving" / "tflite").read_bytes())
    assert model.main.tensors[model.main.inputs[0]].dtype == np.uint8
    assert model.main.tensors[model.main.outputs[0]].dtype == np.int8
    assert len(seen) == 2  # once to see that it can


@needs_tfx
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_sqnr": 20}, "no argument 'min_sqnr'"),
        ({"debug_datset": []}, "Did you mean 'debug_dataset'"),
        ({"quantisation_optimizations": []}, "Did you mean 'quantization_optimizations'"),
        ({"max_accuracy_drop": "1%"}, "without evaluation_dataset"),
        ({"quantization_optimizations": None, "min_output_sqnr_db": 3}, "whose model is float"),
        ({"debug_folder": "gs://bucket/runs"}, "expected a folder of a file system"),
    ],
)
def test_what_is_wrong_is_told_before_the_training(arguments: dict[str, Any], words: str) -> None:
    settings = {"quantization_optimizations": [tf.lite.Optimize.DEFAULT], "representative_dataset": batches("representative")}
    with pytest.raises(OptionError, match=words):
        tflite_qdebug.tfx_rewriter(**{**settings, **arguments})


@needs_tfx
def test_a_wrong_sample_stops_it(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises((DatasetError, ValueError), match=r"representative dataset, sample 0.*expected \(1, 8, 8, 1\)"):
        rewrite(saved_model, tmp_path, representative_dataset=np.zeros((3, 4, 4, 1), np.float32))
    assert list((tmp_path / "serving").iterdir()) == []


@needs_tfx
def test_it_is_found_by_name(saved_model: Path) -> None:
    from tfx.components.trainer.rewriting import rewriter_factory

    from tflite_qdebug.rewriting import rewriter_class

    made = rewriter_factory.create_rewriter("QDebugRewriter", name="mine") if rewriter_class() else None
    assert type(made).__name__ == "QDebugRewriter"
    assert made.name == "mine"


# ------------------------------------------------------------------------------------------------------------ a pipeline


def write_records(folder: Path) -> None:
    for split, count in (("training", 897), ("evaluation", 200)):
        (folder / split).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / split / "digits.tfrecord")) as writer:
            for image, label in zip(*(part[:count] for part in example.load_split(split)), strict=True):
                features = {
                    "image": tf.train.Feature(float_list=tf.train.FloatList(value=image.ravel())),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def run_pipeline(folder: Path, **custom: Any) -> None:
    from tfx import v1 as tfx

    split = tfx.proto.Input.Split
    read = tfx.components.ImportExampleGen(
        input_base=str(folder / "records"),
        input_config=tfx.proto.Input(
            splits=[split(name="train", pattern="training/*"), split(name="eval", pattern="evaluation/*")]
        ),
    )
    train = tfx.components.Trainer(
        run_fn="tfx_trainer.run_fn",
        examples=read.outputs["examples"],
        train_args=tfx.proto.TrainArgs(num_steps=200),
        eval_args=tfx.proto.EvalArgs(num_steps=1),
        custom_config=custom,
    )
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="digits",
        pipeline_root=str(folder / "pipeline"),
        components=[read, train],
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(folder / "metadata.db")),
        enable_cache=True,
    )
    tfx.orchestration.LocalDagRunner().run(pipeline)


@needs_tfx
def test_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "records")
    run_pipeline(tmp_path, min_output_sqnr_db=15)
    (model,) = tmp_path.glob("pipeline/Trainer/model/*/Format-Serving/tflite")
    (report,) = tmp_path.glob("pipeline/Trainer/model_run/*/*/report.html")
    findings = Findings.load(report.parent)
    assert findings.scores.score("float").metrics["top_1"] > 0.8
    assert findings.run.statistics.samples == 128
    answers = outputs(model.read_bytes(), 200)
    right = np.argmax(answers, -1) == example.load_split("evaluation")[1][:200]
    assert np.mean(right) == pytest.approx(findings.scores.scores[1].metrics["top_1"])
    with pytest.raises(LimitError, match="expected 90"):
        run_pipeline(tmp_path, min_output_sqnr_db=90)
    assert len(list(tmp_path.glob("pipeline/Trainer/model/*/Format-Serving/tflite"))) == 1
