"""The built-in example: its files, its splits, and that it is ill in the way its docstring says."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from tflite_qdebug import example
from tflite_qdebug.errors import OptionError

pytestmark = pytest.mark.filterwarnings(r"ignore:\s+Warning. tf\.lite\.Interpreter is deprecated:UserWarning")

SIZES = {"training": 897, "representative": 150, "debug": 150, "evaluation": 600}
PROJECTIONS = {"block1_project", "block2_project", "block3_project"}

BLOCKED_SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "keras", "sklearn", "pandas", "flatbuffers", "ai_edge_litert"}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
from tflite_qdebug import example
foreign = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - BEFORE
foreign = {name for name in foreign if "cython" not in name}  # what numpy 1 was built with
assert foreign <= {"numpy", "tflite_qdebug"}, foreign
assert example.float_model()[4:8] == b"TFL3"
assert sum(1 for _ in example.evaluation_dataset()) == 600
for module in ("tensorflow", "sklearn"):
    try:
        __import__(module)
    except ImportError:
        continue
    raise AssertionError(module + " was not blocked")
print("loaded")
"""


def outputs_of(model: bytes, images: np.ndarray, delegates: bool = True) -> np.ndarray:
    """Returns the first output of the model, (n, 10), for images (n, 8, 8, 1)."""
    import tensorflow as tf

    resolver = tf.lite.experimental.OpResolverType
    kind = resolver.AUTO if delegates else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=model, experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    image, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for one in images:
        interpreter.set_tensor(image["index"], one[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(output["index"])[0])
    return np.stack(rows)


def accuracy(model: bytes, delegates: bool = True) -> float:
    images, labels = example.load_split("evaluation")
    return float(np.mean(outputs_of(model, images, delegates).argmax(axis=1) == labels))


def quantize(calibrated: bytes, denylisted_nodes: Sequence[str] = (), numeric_verify: bool = False) -> bytes:
    """Returns TensorFlow's own int8 model with float inputs and outputs."""
    from tensorflow.lite.python import convert

    types = convert._types_pb2
    return convert.mlir_quantize(
        calibrated,
        inference_type=types.INT8,
        input_data_type=types.FLOAT,
        output_data_type=types.FLOAT,
        enable_numeric_verify=numeric_verify,
        denylisted_nodes=list(denylisted_nodes),
    )


def operators(interpreter: object) -> list[dict]:
    return interpreter._get_ops_details()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def calibrated() -> bytes:
    pytest.importorskip("tensorflow")
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    return Calibrator(example.float_model()).calibrate(example.representative_dataset)


@pytest.fixture(scope="module")
def ranking(calibrated: bytes) -> list[tuple[str, float]]:
    """Each node with its RMSE / scale on the debug split, worst first, from the NumericVerify operators."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=quantize(calibrated, numeric_verify=True), num_threads=1)
    interpreter.allocate_tensors()
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    verified = [operator for operator in operators(interpreter) if operator["op_name"] == "NumericVerify"]
    image = interpreter.get_input_details()[0]["index"]
    squares: dict[int, float] = dict.fromkeys((operator["outputs"][0] for operator in verified), 0.0)
    for inputs in example.debug_dataset():
        interpreter.set_tensor(image, inputs[0])
        interpreter.invoke()
        for difference in squares:
            squares[difference] += float(np.mean(np.square(interpreter.get_tensor(difference)))) / SIZES["debug"]
    rows = []
    for operator in verified:
        quantized, float_tensor = (details[index] for index in operator["inputs"])
        error = math.sqrt(squares[operator["outputs"][0]])
        rows.append((float_tensor["name"], error / quantized["quantization"][0]))
    return sorted(rows, key=lambda row: -row[1])


def layer_of(node: str) -> str:
    """Returns the name that ``train.py`` gave to the convolution whose fused output is called ``node``."""
    found = re.search(r"(block\d_(?:expand|depthwise|project))(?:_\d+)?/(?:convolution|depthwise)", node)
    return found.group(1) if found else node


def test_splits_have_the_documented_sizes_shapes_and_units() -> None:
    assert set(SIZES) == set(example.SPLITS)
    for name, size in SIZES.items():
        images, labels = example.load_split(name)
        assert images.shape == (size, 8, 8, 1)
        assert images.dtype == np.float32
        assert labels.shape == (size,)
        assert labels.dtype == np.int64
        assert images.min() == 0.0
        assert images.max() == 1.0
        assert set(labels) == set(range(10))


def test_no_digit_is_in_two_splits() -> None:
    with np.load(example.DATA_PATH) as arrays:
        rows = {name: set(arrays[f"{name}_rows"].tolist()) for name in example.SPLITS}
    assert {name: len(found) for name, found in rows.items()} == SIZES
    assert set().union(*rows.values()) == set(range(1797))
    pictures = {name: {image.tobytes() for image in example.load_split(name)[0]} for name in example.SPLITS}
    for one, other in itertools.combinations(example.SPLITS, 2):
        assert not rows[one] & rows[other]
        assert not pictures[one] & pictures[other], f"{one} and {other} share a picture"


def test_data_are_those_of_scikit_learn() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(example.DATA_PATH) as arrays:
        for name in example.SPLITS:
            rows = arrays[f"{name}_rows"]
            np.testing.assert_array_equal(arrays[f"{name}_pixels"], digits.images[rows])
            np.testing.assert_array_equal(arrays[f"{name}_labels"], digits.target[rows])


@pytest.mark.parametrize("name", ["evalution", "", "Debug", "test"])
def test_unknown_split_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(OptionError, match="'representative', 'debug', 'evaluation'") as raised:
        example.load_split(name)
    assert repr(name) in str(raised.value)
    assert name != "evalution" or "Did you mean 'evaluation'" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "dataset"), [("representative", example.representative_dataset), ("debug", example.debug_dataset)]
)
def test_datasets_yield_the_split_one_by_one_and_again(name: str, dataset) -> None:
    images, _ = example.load_split(name)
    for _ in range(2):
        samples = list(dataset())
        assert all(len(sample) == 1 and sample[0].shape == (1, 8, 8, 1) for sample in samples)
        np.testing.assert_array_equal(np.concatenate([sample[0] for sample in samples]), images)


def test_evaluation_dataset_pairs_inputs_with_labels() -> None:
    images, labels = example.load_split("evaluation")
    pairs = list(example.evaluation_dataset())
    np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs, _ in pairs]), images)
    assert [label for _, label in pairs] == labels.tolist()
    assert all(type(label) is int for _, label in pairs)


def test_files_are_small() -> None:
    assert 100_000 < example.MODEL_PATH.stat().st_size < 300_000
    assert 20_000 < example.DATA_PATH.stat().st_size < 150_000
    assert example.float_model() == example.MODEL_PATH.read_bytes()


def test_loads_with_numpy_alone() -> None:
    root = pathlib.Path(example.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    script = "import sys\nBEFORE = {name.split('.')[0] for name in sys.modules}\n" + BLOCKED_SCRIPT
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "loaded"


def test_float_model_classifies_digits_it_never_saw(calibrated: bytes) -> None:
    assert accuracy(example.float_model()) >= 0.97


def test_float_model_is_a_mobilenet_of_float32(calibrated: bytes) -> None:
    import tensorflow as tf

    kind = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=example.float_model(), experimental_op_resolver_type=kind)
    names = [operator["op_name"] for operator in operators(interpreter)]
    counts = {name: names.count(name) for name in names}
    assert counts == {
        "CONV_2D": 18,
        "DEPTHWISE_CONV_2D": 6,
        "HARD_SWISH": 7,
        "ADD": 4,
        "MUL": 4,
        "MEAN": 3,
        "FULLY_CONNECTED": 2,
        "SOFTMAX": 1,
    }
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert image["shape"].tolist() == [1, 8, 8, 1]
    assert image["dtype"] == np.float32
    assert output["shape"].tolist() == [1, 10]
    assert output["dtype"] == np.float32


@pytest.mark.parametrize("delegates", [True, False], ids=["xnnpack", "builtin"])
def test_int8_loses_at_least_eight_points(calibrated: bytes, delegates: bool) -> None:
    loss = accuracy(example.float_model(), delegates) - accuracy(quantize(calibrated), delegates)
    assert 0.08 <= loss <= 0.45


def test_debug_model_gives_the_outputs_of_the_int8_model(calibrated: bytes) -> None:
    images, _ = example.load_split("debug")
    int8 = outputs_of(quantize(calibrated), images)
    np.testing.assert_array_equal(outputs_of(quantize(calibrated, numeric_verify=True), images), int8)


def test_the_worst_nodes_are_those_made_ill(ranking: list[tuple[str, float]]) -> None:
    assert {layer_of(node) for node, _ in ranking[:3]} == PROJECTIONS
    assert ranking[2][1] > 5.0
    assert ranking[3][1] < 1.0


def test_few_of_the_worst_nodes_in_float_restore_the_accuracy(calibrated: bytes, ranking: list[tuple[str, float]]) -> None:
    restored = accuracy(quantize(calibrated, [node for node, _ in ranking[:3]]))
    assert restored >= accuracy(example.float_model()) - 0.015


def test_the_least_bad_nodes_in_float_do_not(calibrated: bytes, ranking: list[tuple[str, float]]) -> None:
    healthy = [node for node, _ in ranking[-6:]]
    assert accuracy(quantize(calibrated, healthy)) <= accuracy(example.float_model()) - 0.08


def test_large_weights_take_the_int8_range_of_the_ill_projections(calibrated: bytes) -> None:
    import tensorflow as tf

    kind = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=quantize(calibrated), experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    names = {tensor["index"]: tensor["name"] for tensor in interpreter.get_tensor_details()}
    lost = {}
    for operator in operators(interpreter):
        if operator["op_name"] == "CONV_2D":
            weights = interpreter.get_tensor(operator["inputs"][1])
            lost[layer_of(names[operator["outputs"][0]])] = float(np.mean(np.abs(weights) <= 1))
    ill = {layer for layer, share in lost.items() if share > 0.5}
    assert ill == PROJECTIONS
    assert all(share < 0.1 for layer, share in lost.items() if layer not in PROJECTIONS)


def test_one_channel_of_block4_dwarfs_the_others(calibrated: bytes) -> None:
    import tensorflow as tf

    kind = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(
        model_content=example.float_model(), experimental_op_resolver_type=kind, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    names = {tensor["index"]: tensor["name"] for tensor in interpreter.get_tensor_details()}
    (expanded,) = [
        operator["outputs"][0]
        for operator in operators(interpreter)
        if operator["op_name"] == "CONV_2D" and layer_of(names[operator["outputs"][0]]) == "block4_expand"
    ]
    largest = np.zeros(64)
    for inputs in example.debug_dataset():
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs[0])
        interpreter.invoke()
        largest = np.maximum(largest, interpreter.get_tensor(expanded)[0].max(axis=(0, 1)))
    levels = 255 * np.sort(largest) / largest.max()
    assert levels[-2] < 10.0


def test_spreading_the_scales_keeps_the_network_function() -> None:
    pytest.importorskip("tensorflow")
    from tflite_qdebug.example import train

    network = train.build_network()
    generator = np.random.default_rng(0)
    network.set_weights([generator.uniform(0.1, 0.5, weight.shape) for weight in network.get_weights()])
    images = example.load_split("debug")[0][:16]
    before = network.predict(images, verbose=0)
    weights = [weight.copy() for weight in network.get_weights()]
    train.spread_channel_scales(network, images)
    np.testing.assert_array_equal(network.predict(images, verbose=0), before)
    changed = [not np.array_equal(one, other) for one, other in zip(weights, network.get_weights(), strict=True)]
    assert sum(changed) == 3 * len(train.SHRUNK_CHANNELS) + 3 * len(train.GROWN_CHANNEL)


def test_training_splits_are_those_in_the_data_file() -> None:
    pytest.importorskip("sklearn")
    from tflite_qdebug.example import train

    arrays = train.split_digits()
    with np.load(example.DATA_PATH) as stored:
        assert set(stored.files) == set(arrays)
        for name in stored.files:
            assert stored[name].dtype == arrays[name].dtype
            np.testing.assert_array_equal(stored[name], arrays[name])
