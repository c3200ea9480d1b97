"""Where a model falls apart into blocks, worked out by hand on models of known structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import tensorflow as tf
from conftest import SHARED_MODELS

from tflite_qdebug import QDebugError, example, find_blocks, load_float_model
from tflite_qdebug.match import BRIDGES, Graph
from tflite_qdebug.model import Model
from tflite_qdebug.remedies import blocks

L = tf.keras.layers


def operators(model: Any) -> list[list[str]]:
    """Returns the types of the operators of each block."""
    float_model = load_float_model(model).model
    graph = Graph(float_model)
    type_of = {graph.tensor(operator.outputs[0]).name: operator.name for operator in graph.operators}
    return [[type_of[node] for node in block.nodes] for block in find_blocks(model)]


def residual() -> Any:
    """A stem, two residual blocks of two convolutions each, the second also with a projection, and a head."""
    inputs = tf.keras.Input((8, 8, 4), batch_size=1)
    values = L.Conv2D(8, 3, padding="same", name="stem")(inputs)
    inner = L.Conv2D(16, 1, activation="relu", name="one_expand")(values)
    values = L.Add(name="one_add")([values, L.Conv2D(8, 3, padding="same", name="one_project")(inner)])
    inner = L.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="two_expand")(values)
    inner = L.Conv2D(8, 3, padding="same", name="two_project")(inner)
    values = L.Add(name="two_add")([L.Conv2D(8, 1, strides=2, name="two_short")(values), inner])
    return tf.keras.Model(inputs, L.Dense(3)(L.Flatten()(values)))


def test_residual_blocks_are_found() -> None:
    found = operators(residual())
    assert found[:3] == [["CONV_2D"], ["CONV_2D", "CONV_2D", "ADD"], ["CONV_2D", "CONV_2D", "CONV_2D", "ADD"]]
    assert [name for block in found[3:] for name in block] == ["RESHAPE", "FULLY_CONNECTED"]


def test_blocks_are_called_what_their_nodes_have_in_common() -> None:
    names = [block.name.rsplit("/", 1)[-1] for block in find_blocks(residual())]
    assert names[1:3] == ["one", "two"]


def test_a_common_beginning_that_others_have_too_is_no_name() -> None:
    names = blocks._names([("net/a_1", "net/a_2"), ("net/b_1", "net/c_1;net/d"), ("net/ab",), ("tail/x", "tail/y")])
    assert names == ["net/a_1 to net/a_2", "net/b_1 to net/c_1", "net/ab", "tail"]


def test_an_activation_stays_with_its_layer() -> None:
    # All values are of one size, so that a model is cut behind each layer, but not between a layer and its activation.
    inputs = tf.keras.Input((8, 8, 4), batch_size=1)
    values = inputs
    for _ in range(3):
        values = L.Activation("hard_swish")(L.Conv2D(4, 3, padding="same")(values))
    assert operators(tf.keras.Model(inputs, values)) == [["CONV_2D", "HARD_SWISH"]] * 3


def test_what_is_read_again_far_behind_holds_all_between_together() -> None:
    inputs = tf.keras.Input((8, 8, 4), batch_size=1)
    first = values = L.Conv2D(4, 3, padding="same")(inputs)
    for _ in range(4):
        values = L.Conv2D(4, 3, padding="same")(values)
    joined = L.Concatenate()([first, values])
    found = operators(tf.keras.Model(inputs, L.Conv2D(2, 1)(joined)))
    assert found[0] == ["CONV_2D"]
    assert found[1][:5] == ["CONV_2D"] * 4 + ["CONCATENATION"]


def test_the_example_has_its_six_inverted_residuals() -> None:
    # As `example.train` builds them: block1, 3, 4 and 6 with a sum at their end.
    found = {block.name.rsplit("/", 1)[-1]: block.nodes for block in find_blocks(example.MODEL_PATH)}
    assert {"block1", "block2", "block3", "block4"} <= set(found)
    assert all("_add" in found[name][-1] for name in ("block1", "block3", "block4"))
    assert any(nodes[-1].startswith("digits_1/block6_add") for nodes in found.values())


@pytest.mark.parametrize(
    "path",
    [
        "mobilenetv3_small/mobilenet_v3_small_float.tflite",
        "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float.tflite",
        "super_resolution/fsrcnn_x2_float.tflite",
        "keyword_spotting/kws_ref_float.tflite",
    ],
)
def test_every_operator_is_in_one_block(path: str) -> None:
    if not SHARED_MODELS.exists():
        pytest.skip(f"{SHARED_MODELS} is absent")
    graph = Graph(Model((SHARED_MODELS / path).read_bytes()))
    found = find_blocks(SHARED_MODELS / path)
    real = [graph.tensor(op.outputs[0]) for op in graph.operators if graph.is_numeric(op.outputs[0])]
    assert [node for block in found for node in block.nodes] == [tensor.name for tensor in real]
    assert len({block.name for block in found}) == len(found)


def test_a_block_can_be_left_float() -> None:
    model = load_float_model(residual())
    samples = [[values] for values in np.random.default_rng(0).normal(size=(4, 1, 8, 8, 4)).astype(np.float32)]
    block = find_blocks(model)[2]
    quantized = model.calibrate(samples).quantize("int8", denylisted_nodes=block.nodes)
    graph = Model(quantized.data).main
    types = [op.name for op in graph.operators if op.name not in BRIDGES and graph.tensors[op.outputs[0]].is_float]
    assert types == ["CONV_2D", "CONV_2D", "CONV_2D", "ADD"]


def test_a_file_that_is_no_model_is_an_error() -> None:
    with pytest.raises(QDebugError, match=r"missing\.tflite: No such file"):
        find_blocks("missing.tflite")
