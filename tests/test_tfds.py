"""TensorFlow Datasets as data, prepared on disk by the real package: scikit-learn's digits, and pairs of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_datasets")
pytest.importorskip("sklearn")

import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

import tflite_qdebug
from tflite_qdebug import InputSpec, example, from_images, from_tfds, open_dataset, tf_private
from tflite_qdebug.cli import main
from tflite_qdebug.errors import DatasetError, OptionError
from tflite_qdebug.study import lasting

QUIET = "--no-progress"
FIRST_OF_TEST = 1000
FLOAT = (np.dtype(np.float32),)
IMAGE = [InputSpec("image:0", (1, 8, 8, 1), FLOAT, "image")]
PAIR = [InputSpec("right:0", (1, 8, 8, 1), FLOAT, "right"), InputSpec("left:0", (1, 8, 8, 1), FLOAT, "left")]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (1797, 8, 8, 1) from 0 to 16, and labels, straight from scikit-learn."""
    bunch = load_digits()
    return bunch.images.astype(np.uint8)[..., np.newaxis], bunch.target


@pytest.fixture(scope="module")
def data_dir(digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    pixels, labels = digits

    # A process has one of each name.
    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate(0, FIRST_OF_TEST), "test": self._generate(FIRST_OF_TEST, len(labels))}

        def _generate(self, first: int, end: int) -> Iterator[Any]:
            for index in range(first, end):
                yield index - first, {"image": pixels[index], "label": int(labels[index])}

        def _generate_examples(self) -> Iterator[Any]:
            raise NotImplementedError

    class DigitPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain"), tfds.core.BuilderConfig(name="supervised")]

        def _info(self) -> Any:
            features = {name: tfds.features.Image(shape=(8, 8, 1)) for name in ("one", "other", "left", "right")}
            features["label"] = tfds.features.ClassLabel(num_classes=2)
            supervised = ({"left": "one", "right": "other"}, "label") if self.builder_config.name == "supervised" else None
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"whole": self._generate_examples()}

        def _generate_examples(self) -> Iterator[Any]:
            for index in range(20):
                images = {name: pixels[index + 100 * place] for place, name in enumerate(("one", "other", "left", "right"))}
                yield index, {**images, "label": int(labels[index] == labels[index + 100])}

    Digits(data_dir=str(folder)).download_and_prepare()
    for config in ("plain", "supervised"):
        DigitPairs(data_dir=str(folder), config=config).download_and_prepare()
    return folder


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", slice(0, 1000)),
        ("train[:100]", slice(0, 100)),
        ("train[10%:20%]", slice(100, 200)),
        ("test[-50:]", slice(1747, 1797)),
        ("train[990:]+test[:5]", slice(990, 1005)),
        ("all", slice(0, 1797)),
    ],
)
def test_splits_and_slices(split: str, rows: slice, data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    dataset = open_dataset(f"tfds:digits?split={split}&data_dir={data_dir}&scale=0.0625", IMAGE)
    assert dataset.length == len(labels[rows])
    samples = list(dataset)
    np.testing.assert_array_equal(np.concatenate([sample.inputs[0] for sample in samples]), pixels[rows] / np.float32(16))
    assert [sample.label for sample in samples] == labels[rows].tolist()


def test_tfds_as_tf_data_is_the_same(data_dir: Path) -> None:
    """What a training script reads, with labels and in batches, is a source as it is."""
    builder = tfds.builder_from_directory(str(data_dir / "digits" / "1.0.0"))
    batches = builder.as_dataset("test", as_supervised=True).map(lambda image, label: (tf.cast(image, tf.float32) / 16, label))
    ours = list(open_dataset(from_tfds("digits", "test", data_dir, scale=1 / 16), IMAGE, "evaluation dataset", 70))
    theirs = list(open_dataset(batches.batch(32), IMAGE, "evaluation dataset", 70))
    assert [(sample.index, sample.label) for sample in ours] == [(sample.index, sample.label) for sample in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.inputs[0], other.inputs[0])


def test_two_inputs_by_the_names_of_features(data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    samples = list(open_dataset(f"tfds:digit_pairs/plain?data_dir={data_dir}&offset=1", PAIR))
    assert len(samples) == 20
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.inputs[0][0], pixels[index + 300] + 1.0)  # the model's first input is 'right'
        np.testing.assert_array_equal(sample.inputs[1][0], pixels[index + 200] + 1.0)
        assert sample.label == int(labels[index] == labels[index + 100])  # called so, for want of supervised keys


def test_two_inputs_by_supervised_keys(data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, _ = digits
    samples = list(open_dataset(f"tfds:digit_pairs/supervised?split=whole[:3]&data_dir={data_dir}", PAIR))
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.inputs[0][0], pixels[index + 100])
        np.testing.assert_array_equal(sample.inputs[1][0], pixels[index])
        assert sample.label in (0, 1)


def test_features_that_no_input_is_called_like(data_dir: Path) -> None:
    where = f"tfds:digit_pairs/plain?data_dir={data_dir}"
    with pytest.raises(DatasetError, match=r"'image' is no feature of .*'one', 'other'.*image=FEATURE, or give map="):
        list(open_dataset(where, IMAGE))
    assert len(list(open_dataset(f"{where}&image=other", IMAGE))) == 20


MAPS: dict[str, Callable[[Any], Any]] = {
    "array": lambda features: features["one"] / np.float32(2),
    "dict": lambda features: {"image": features["one"] / np.float32(2)},
    "list": lambda features: [features["one"] / np.float32(2)],
    "pair": lambda features: (features["one"] / np.float32(2), features["label"] + 40),
    "dict and label": lambda features: ({"image": features["one"] / np.float32(2)}, features["label"] + 40),
}


@pytest.mark.parametrize("name", MAPS)
def test_map_makes_the_inputs(name: str, data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    source = from_tfds("digit_pairs/plain", data_dir=data_dir, map=MAPS[name])
    for _ in range(2):
        for index, sample in enumerate(open_dataset(source, IMAGE)):
            np.testing.assert_array_equal(sample.inputs[0][0], pixels[index] / np.float32(2))
            assert sample.label == int(labels[index] == labels[index + 100]) + (40 if "label" in name or name == "pair" else 0)


def test_map_before_scale_before_preprocess(data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    source = from_tfds(
        "digits", "test", data_dir, scale=2, map=lambda features: features["image"] + np.uint8(1), preprocess=np.negative
    )
    (sample,) = open_dataset(source, IMAGE, limit=1)
    np.testing.assert_array_equal(sample.inputs[0][0], -2.0 * (digits[0][FIRST_OF_TEST] + 1.0))


def test_preprocess_may_write_into_what_it_is_given(data_dir: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    source = from_tfds("digits", "test[:1]", data_dir, preprocess=tf.keras.applications.mobilenet_v2.preprocess_input)
    for _ in range(2):
        (sample,) = open_dataset(source, IMAGE)
        np.testing.assert_allclose(sample.inputs[0][0], digits[0][FIRST_OF_TEST] / 127.5 - 1, atol=1e-6)


def test_preprocess_of_image_files(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    (sample,) = open_dataset(from_images(tmp_path, scale=2, preprocess=lambda image: image - image.mean()), IMAGE)
    np.testing.assert_allclose(sample.inputs[0][0, ..., 0], 2.0 * pixels - 63.0)
    (sample,) = open_dataset(f"images:{tmp_path}?preprocess=numpy:negative", IMAGE)
    np.testing.assert_array_equal(sample.inputs[0][0, ..., 0], -pixels.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("preprocess=prepare", OptionError, "preprocess='prepare' is no function, expected module:function"),
        ("preprocess=numpy:negativ", OptionError, "numpy has no function 'negativ'.*Did you mean 'negative'"),
        ("map=no_such_module:make", OptionError, "importing no_such_module failed"),
        ("map=numpy:pi", OptionError, "is a float, expected a function of a dict of features"),
        ("map=builtins:list", DatasetError, "sample 0: map: the function returned a list, expected a dict of arrays by input"),
        ("map=builtins:int", DatasetError, "sample 0: map: the function int raised TypeError"),
        ("preprocess=builtins:print", DatasetError, "preprocess: the function print returned None"),
        ("preprocess=numpy:ravel", DatasetError, r"got shape \(64,\), expected \(1, 8, 8, 1\)"),
        ("preproces=numpy:ravel", OptionError, "Did you mean 'preprocess'"),
    ],
)
def test_functions_that_do_not_do(options: str, error: type[Exception], words: str, data_dir: Path) -> None:
    with pytest.raises(error, match=words):
        list(open_dataset(f"tfds:digits?split=test&data_dir={data_dir}&{options}", IMAGE))


# ------------------------------------------------------------------------------------------------------ the command line


def top_1(model: bytes, pixels: np.ndarray, labels: np.ndarray) -> float:
    interpreter = tf.lite.Interpreter(model_content=model)
    interpreter.allocate_tensors()
    right = 0
    for image, label in zip(pixels / np.float32(16), labels, strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[np.newaxis])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])) == label)
    return right / len(labels)


def test_all_three_datasets_of_the_command_line(
    data_dir: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepare_digits.py").write_text("def scaled(image):\n    return image / 16\n")
    where = f"data_dir={data_dir}&preprocess=prepare_digits:scaled"
    words = ["--representative-data", f"tfds:digits?split=train[:60]&{where}", "--output", "models", QUIET]
    assert main(["convert", str(example.MODEL_PATH), *words]) == 0
    (made,) = Path("models").glob("*int8.tflite")
    pixels, labels = digits
    by_arrays = tflite_qdebug.load_float_model(example.MODEL_PATH).calibrate(pixels[:60] / np.float32(16)).quantize("int8")
    assert made.read_bytes() == by_arrays.data
    capsys.readouterr()

    test = f"tfds:digits?split=test[:200]&{where}"
    assert main(["evaluate", str(example.MODEL_PATH), str(made), "--evaluation-data", test, "--json", QUIET]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    expected = top_1(made.read_bytes(), pixels[1000:1200], labels[1000:1200])
    assert scores[1]["metrics"]["top_1"] == pytest.approx(expected)

    words = ["run", "--float", str(example.MODEL_PATH), "--quantized", str(made), "--debug-data", test, "--json", QUIET]
    assert main([*words, "--limit", "25"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["debug_dataset"].startswith("tfds:digits/1.0.0 split test[:200]")


def test_a_model_of_two_inputs_on_the_command_line(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = (tf.keras.Input((8, 8, 1), batch_size=1, name=name) for name in ("left", "right"))
    joined = tf.keras.layers.Concatenate()([left, right])
    model = tf.keras.Model([left, right], tf.keras.layers.Conv2D(3, 3)(joined))
    with tf_private.captured_chatter():
        model.save(tmp_path / "pair.keras")
    where = f"tfds:digit_pairs/supervised?data_dir={data_dir}&scale=0.0625&split=whole"
    words = ["--representative-data", f"{where}[:10]", "--debug-data", f"{where}[10:]", "--json", QUIET]
    assert main(["run", str(tmp_path / "pair.keras"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["samples"] == 10


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("tfds:digits?split=trian&data_dir={0}", 2, "Did you mean 'train'"),
        ("tfds:digits?splitt=train&data_dir={0}", 2, "Did you mean 'split'"),
        ("tfds:digit?split=train&data_dir={0}", 4, "Did you mean 'digits'"),
        ("tfds:digit_pairs?data_dir={0}", 2, "name one of ['digit_pairs/plain', 'digit_pairs/supervised']"),
        ("tfds:digits?split=train&data_dir={0}&size=9", 4, "expected (1, 8, 8, 1)"),
    ],
)
def test_errors_of_the_command_line(
    data: str, code: int, words: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "example", "--representative-data", data.format(data_dir), QUIET]) == code
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "Traceback" not in said


def test_a_saved_run_finds_its_dataset_from_another_folder(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir.parent)
    kept = lasting(f"tfds:digits?data_dir={data_dir.name}&split=test[:4]&scale=0.0625")
    assert kept == f"tfds:digits?data_dir={data_dir}&split=test[:4]&scale=0.0625"
    monkeypatch.chdir(tmp_path)
    assert len(list(open_dataset(kept, IMAGE))) == 4
