"""What maps to the Edge TPU: predictions against compiled models, hand-made models for each rule, the compiler's logs."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from edgetpu_models import Made, image

from tflite_qdebug import edit
from tflite_qdebug.edgetpu import rules
from tflite_qdebug.edgetpu.comparison import compare
from tflite_qdebug.edgetpu.compiled import CompiledModel, read_compiled
from tflite_qdebug.edgetpu.compiler_log import CompilerLog, parse_log, read_log
from tflite_qdebug.edgetpu.op_versions import newest_version, release_of
from tflite_qdebug.edgetpu.partition import Partition, cut_by_float, mapped_operators, partition
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.model import Model

KNOWN = (
    "deeplabv3_mnv2_dm05_pascal_quant",
    "keras_lstm_mnist_ptq",
    "mobilenet_v1_0.25_128_quant",
    "posenet_mobilenet_v1_075_353_481_16_quant_decoder",
)
TWINS = KNOWN[:3]


def mapped_names(found: Partition) -> list[str]:
    return [placement.output for placement in found.operators if placement.mapped]


def reason(found: Partition, node: str) -> str:
    return next(placement.reason for placement in found.operators if placement.output == node)


# ------------------------------------------------------------------------------------------------ models with known truth


@pytest.mark.parametrize("name", KNOWN)
def test_every_operator_is_where_the_compiler_put_it(shared_models: Path, name: str) -> None:
    with (shared_models / "coral" / "partition_truth.csv").open(newline="") as file:
        truth = [row["runs_on"] == "edgetpu" for row in csv.DictReader(file) if row["model"] == f"{name}.tflite"]
    model = Model(shared_models / "coral" / f"{name}.tflite")
    found = partition(model)
    assert [placement.mapped for placement in found.operators] == truth
    assert len(truth) > 5
    assert mapped_operators(model) == mapped_operators(model.data) == (sum(truth), len(truth))
    assert not found.refused
    assert found.segments == 1


@pytest.mark.parametrize("name", TWINS)
def test_compiled_twin_is_read_and_agrees(shared_models: Path, name: str) -> None:
    source = Model(shared_models / "coral" / f"{name}.tflite")
    compiled = read_compiled(source, Model(shared_models / "coral" / f"{name}_edgetpu.tflite"))
    found = partition(source)
    compared = compare(found, compiled)
    assert compared.agrees
    assert len(compared.rows) == len(source.main.operators)
    assert (compiled.segments, compiled.crossings) == (1, found.crossings)
    assert (set(compiled.inputs), set(compiled.outputs)) == (set(found.inputs), set(found.outputs))


def test_deeplab_crosses_three_times(shared_models: Path) -> None:
    found = partition(Model(shared_models / "coral" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"))
    # The image goes in; the pooled vector and the other branch come out.
    assert found.crossings == 3
    assert found.crossing_bytes == 513 * 513 * 3 + 33 * 33 * 256 + 256
    behind = {placement.output: placement.behind for placement in found.operators}
    assert behind["concat"] == behind["ResizeBilinear1"] == 64


def test_versions_agree_with_the_shared_table(shared_models: Path) -> None:
    with (shared_models / "coral" / "op_versions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    newest: dict[str, int] = {}
    for row in rows:
        numbers = [int(part) for part in row["min_tflite_runtime"].split(".")]
        written = row["min_tflite_runtime"].removesuffix(".0") if numbers[2] == 0 else row["min_tflite_runtime"]
        assert release_of(row["op"], int(row["version"])) == written
        if numbers[:2] <= [2, 5]:
            newest[row["op"]] = max(newest.get(row["op"], 0), int(row["version"]))
    assert newest == {row["op"]: newest_version(row["op"]) for row in rows if newest_version(row["op"])}


@pytest.mark.parametrize(("name", "version"), [("QUANTIZE", 3), ("EXP", 2), ("TRANSPOSE_CONV", 4), ("CONV_2D", 6)])
def test_known_rejections_are_newer_than_the_compiler(name: str, version: int) -> None:
    assert newest_version(name) == version - 1


def test_unknown_operator_has_no_version() -> None:
    assert newest_version("GELU") == newest_version("NONE_SUCH") == 0
    assert release_of("CONV_2D", 99) == release_of("CONV_2D", 0) == release_of("NONE_SUCH", 1) == ""


# --------------------------------------------------------------------------------------------------------- the graph


def branched() -> Made:
    """image -> first -> {cosine (unmapped) -> last, beside -> more}."""
    made = image()
    made.convolution("image", "first")
    made.unary("ABS", "first", "absolute", version=2)
    made.convolution("absolute", "last")
    made.convolution("first", "beside")
    made.convolution("beside", "more")
    return made


def test_cut_follows_the_graph_not_the_list() -> None:
    found = partition(branched().model("last", "more"))
    assert mapped_names(found) == ["first", "beside", "more"]
    assert reason(found, "absolute") == "Operation not supported"
    assert reason(found, "last") == "More than one subgraph is not supported"
    placement = found.operators[2]
    assert (placement.behind, placement.segment) == (1, -1)
    assert "operator 1 (ABS)" in placement.words


def test_crossings_counted_by_hand() -> None:
    found = partition(branched().model("last", "more"))
    # In: the image. Out: first, which ABS reads, and more, an output. 4 * 4 * 8 bytes each.
    assert (found.inputs, found.outputs) == (("image",), ("first", "more"))
    assert (found.crossings, found.crossing_bytes) == (3, 3 * 128)
    # Three convolutions of 64 bytes of weights and 8 biases of 4 bytes.
    assert found.parameter_bytes == 3 * (64 + 32)
    assert (found.fits, found.streamed_bytes) == ("yes", 0)


def test_every_piece_is_mapped_where_asked() -> None:
    found = partition(branched().model("last", "more"), multiple_subgraphs=True)
    assert mapped_names(found) == ["first", "last", "beside", "more"]
    assert found.segments == 2
    assert [placement.segment for placement in found.operators] == [0, -1, 1, 0, 0]
    # In: image, absolute. Out: first, last, more.
    assert (found.inputs, found.outputs) == (("image", "absolute"), ("first", "last", "more"))
    assert found.crossings == 5


def test_tensor_between_two_pieces_leaves_one_and_enters_the_other() -> None:
    made = image()
    made.convolution("image", "first")
    made.unary("ABS", "first", "absolute", version=2)
    made.operator("ADD", ["first", "absolute"], made.tensor("sum", (1, 4, 4, 8)), 2, "AddOptions")
    found = partition(made.model("sum"), multiple_subgraphs=True)
    assert found.inputs == ("image", "first", "absolute")
    assert found.outputs == ("first", "sum")


def test_operators_before_the_piece_may_run_on_the_cpu() -> None:
    made = image("FLOAT32")
    made.unary("QUANTIZE", "image", "integers")
    made.convolution("integers", "first")
    made.unary("DEQUANTIZE", "first", "floats", to="FLOAT32", version=2)
    found = partition(made.model("floats"))
    assert mapped_names(found) == ["first"]
    assert reason(found, "integers") == rules.UNSPECIFIED
    assert reason(found, "floats") == rules.DATA_TYPE
    assert (found.inputs, found.outputs) == (("integers",), ("first",))


def test_where_a_free_branch_meets_a_mapped_one_all_goes_on() -> None:
    made = image()
    made.convolution("image", "first")
    made.unary("ABS", "image", "absolute", version=2)  # nothing mapped before it
    made.operator("ADD", ["first", "absolute"], made.tensor("sum", (1, 4, 4, 8)), 2, "AddOptions")
    assert mapped_names(partition(made.model("sum"))) == ["first", "sum"]


def test_nothing_maps_behind_an_operator_that_is_cut_off_and_could_not_map() -> None:
    made = branched()
    made.unary("SIN", "last", "sine")
    made.convolution("sine", "end")
    found = partition(made.model("end", "more"))
    assert mapped_names(found) == ["first", "beside", "more"]
    assert found.operators[-1].behind == 5
    assert partition(made.model("end", "more"), multiple_subgraphs=True).segments == 3


# ---------------------------------------------------------------------------------------------- one rule, one model


def vector(size: int = 16) -> Made:
    return image(shape=(1, size))


def dense(shape: tuple[int, ...] = (1, 4), version: int = 4, weights_format: int = 0, rows: int = 1) -> Model:
    made = image(shape=(rows, 16))
    made.operator(
        "FULLY_CONNECTED",
        ["image", made.weights("weights", (4, 16)), None],
        made.tensor("out", shape),
        version,
        "FullyConnectedOptions",
        weightsFormat=weights_format,
    )
    return made.model("out")


def with_constant(kind: str, values: Any, shape: tuple[int, ...], to: tuple[int, ...], version: int = 2, options: str = "",
                  **fields: Any) -> Model:  # fmt: skip
    made = image(shape=shape)
    order = [made.numbers("values", values), "image"] if kind == "SPLIT" else ["image", made.numbers("values", values)]
    made.operator(kind, order, made.tensor("out", to), version, options, **fields)
    return made.model("out")


def resize(ratio: int, kind: str = "RESIZE_BILINEAR") -> Model:
    return with_constant(kind, [4 * ratio, 4 * ratio], (1, 4, 4, 8), (1, 4 * ratio, 4 * ratio, 8))


def pool(activation: int) -> Model:
    made = image()
    made.unary(
        "MAX_POOL_2D", "image", "out", (1, 2, 2, 8), version=2, options="Pool2DOptions", fusedActivationFunction=activation
    )
    return made.model("out")


def joined(zeros: int | None, others: int = 1, activation: int = 0) -> Model:
    made = image()
    sources = ["image"] * others + ([] if zeros is None else [made.tensor("constant", (1, 4, 4, 8), values=zeros)])
    made.operator("CONCATENATION", sources, made.tensor("out", (1, 4, 4, 8 * len(sources))), 2, "ConcatenationOptions",
                  fusedActivationFunction=activation)  # fmt: skip
    return made.model("out")


def dilated(height: int, width: int) -> Model:
    made = image()
    made.convolution("image", "out", dilationHFactor=height, dilationWFactor=width)
    return made.model("out")


def in_groups() -> Model:
    made = image(shape=(1, 4, 4, 16))
    made.convolution("image", "out")
    return made.model("out")


def computed_weights() -> Model:
    made = image()
    made.input("filters", (8, 1, 1, 8))
    made.operator("CONV_2D", ["image", "filters", None], made.tensor("out", (1, 4, 4, 8)), 3, "Conv2DOptions",
                  dilationHFactor=1, dilationWFactor=1)  # fmt: skip
    return made.model("out")


def prelu(shape: tuple[int, ...]) -> Model:
    made = image()
    made.operator("PRELU", ["image", made.weights("slopes", shape)], made.tensor("out", (1, 4, 4, 8)))
    return made.model("out")


def packed(axis: int) -> Model:
    made = image(shape=(4, 8))
    to = [(2, 4, 8), (4, 2, 8), (4, 8, 2)][axis]
    made.operator("PACK", ["image", "image"], made.tensor("out", to), 2, "PackOptions", axis=axis, valuesCount=2)
    return made.model("out")


def strided(step: int = 1, new_axis: int = 0, ellipsis: int = 0) -> Model:
    made = image()
    constants = [made.numbers("begin", [0] * 4), made.numbers("end", [1, 4, 4, 8]), made.numbers("steps", [1, step, 1, 1])]
    made.operator("STRIDED_SLICE", ["image", *constants], made.tensor("out", (1, 4 // step, 4, 8)), 2, "StridedSliceOptions",
                  newAxisMask=new_axis, ellipsisMask=ellipsis)  # fmt: skip
    return made.model("out")


def unary(kind: str, to: str = "INT8", shape: tuple[int, ...] = (1, 4, 4, 8), source: str = "INT8", version: int = 1) -> Model:
    made = image(source, shape)
    made.unary(kind, "image", "out", shape, to, version=version)
    return made.model("out")


def custom() -> Model:
    made = image()
    made.unary("Decoder", "image", "out", (), "FLOAT32")
    return made.model("out")


def recurrent(depth: int = 4) -> Model:
    made = image(shape=(1, 5, depth))
    sources: list[str | None] = ["image"]
    sources += [made.weights(f"weights{i}", (4, depth if i < 4 else 4)) for i in range(8)] + [None] * 3
    sources += [made.numbers(f"bias{i}", [0] * 4) for i in range(4)] + [None] * 2
    sources += [made.tensor("hidden", (1, 4), variable=True), made.tensor("cell", (1, 4), "INT16", variable=True)]
    made.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", sources + [None] * 4, made.tensor("out", (1, 5, 4)))
    return made.model("out")


def transposed() -> Model:
    made = image()
    sources = [made.numbers("shape", [1, 8, 8, 8]), made.weights("filters", (8, 2, 2, 8)), "image"]
    made.operator("TRANSPOSE_CONV", sources, made.tensor("out", (1, 8, 8, 8)), 3)
    return made.model("out")


def without_scale() -> Model:
    made = image(shape=(1, 4))
    made.operator("RELU", ["image"], made.tensor("out", (1, 4), scale=None), 2)
    return made.model("out")


FREE: dict[str, Callable[[], Model]] = {
    "dense": dense,
    "pool": lambda: pool(0),
    "joined": lambda: joined(None, 3),
    "joined with zeros": lambda: joined(0),
    "dilated equally": lambda: dilated(2, 2),
    "mean over positions": lambda: with_constant("MEAN", [1, 2], (1, 4, 4, 6), (1, 6)),
    "mean over a depth of 8": lambda: with_constant("MEAN", [-1], (1, 4, 4, 8), (1, 4, 4)),
    "padded": lambda: with_constant("PAD", [[0, 0], [1, 1], [0, 0], [0, 2]], (1, 4, 4, 8), (1, 6, 4, 10)),
    "slopes of channels": lambda: prelu((1, 1, 8)),
    "packed behind": lambda: packed(2),
    "split": lambda: with_constant("SPLIT", 3, (1, 4, 4, 8), (1, 4, 4, 8), options="SplitOptions", numSplits=1),
    "enlarged twice": lambda: resize(2),
    "vector of probabilities": lambda: unary("SOFTMAX", shape=(1, 16_000), version=2),
    "sliced": strided,
    "recurrent": recurrent,
    "transposed convolution": transposed,
    "transposed": lambda: with_constant("TRANSPOSE", [0, 2, 1, 3], (1, 4, 4, 8), (1, 4, 4, 8)),
    "uint8 to int8": lambda: unary("QUANTIZE", source="UINT8"),
    "rank of 5 with ones in front": lambda: unary("RELU", shape=(1, 1, 4, 4, 8), version=2),
}
HELD: dict[str, tuple[Callable[[], Model], str, str]] = {
    "unknown operator": (lambda: unary("LEAKY_RELU", version=2), rules.NOT_SUPPORTED, "no such operator"),
    "float": (lambda: unary("RELU", "FLOAT32", source="FLOAT32"), rules.DATA_TYPE, "float32"),
    "int16": (lambda: unary("LOGISTIC", "INT16", source="INT16"), rules.DATA_TYPE, "int16"),
    "without scale": (without_scale, rules.DATA_TYPE, "without a scale"),
    "custom": (custom, rules.DATA_TYPE, "float32"),
    "out of integers": (lambda: unary("DEQUANTIZE", "FLOAT32", version=2), rules.DATA_TYPE, "float32"),
    "into integers": (lambda: unary("QUANTIZE", source="FLOAT32"), rules.UNSPECIFIED, "floats"),
    "five sizes": (lambda: unary("RELU", shape=(2, 2, 4, 4, 8), version=2), rules.RANK, "(2, 2, 4, 4, 8)"),
    "batch of two": (lambda: unary("RELU", shape=(2, 4, 4, 8), version=2), rules.RANK, "(2, 4, 4, 8)"),
    "computed weights": (computed_weights, rules.NOT_CONSTANT, "'filters' is computed"),
    "dense with two vectors": (lambda: dense((2, 4), rows=2), rules.UNSPECIFIED, "one vector"),
    "dense that keeps dimensions": (lambda: dense((1, 1, 4), 5), rules.VERSION, "version 5"),
    "shuffled weights": (lambda: dense(weights_format=1), rules.UNSPECIFIED, "shuffled"),
    "pool with activation": (lambda: pool(1), rules.UNSPECIFIED, "fused"),
    "joined with activation": (lambda: joined(None, 2, 1), rules.UNSPECIFIED, "fused"),
    "joined with ones": (lambda: joined(1), rules.UNSPECIFIED, "not all zeros"),
    "joined with zeros and two more": (lambda: joined(0, 2), rules.UNSPECIFIED, "more than one other"),
    "dilated unequally": (lambda: dilated(2, 1), rules.UNSPECIFIED, "dilated by 2 in height and 1"),
    "in groups": (in_groups, rules.UNSPECIFIED, "groups"),
    "mean over the batch": (lambda: with_constant("MEAN", [0], (1, 4, 4, 8), (4, 4, 8)), rules.UNSPECIFIED, "batch"),
    "mean over a depth of 6": (lambda: with_constant("MEAN", [3], (1, 4, 4, 6), (1, 4, 4)), rules.UNSPECIFIED, "multiple of 4"),
    "mean over much": (
        lambda: with_constant("MEAN", [1, 2], (1, 256, 128, 3), (1, 3)), rules.UNSPECIFIED, "32768 values"),
    "sum over the batch": (lambda: with_constant("SUM", [0], (1, 4, 4, 8), (4, 4, 8), 1), rules.UNSPECIFIED, "batch"),
    "padded batch": (
        lambda: with_constant("PAD", [[1, 0], [0, 0], [0, 0], [0, 0]], (1, 4, 4, 8), (1, 4, 4, 8)), rules.UNSPECIFIED, "pads"),
    "slopes of positions": (lambda: prelu((4, 4, 8)), rules.UNSPECIFIED, "shared_axes"),
    "packed in front": (lambda: packed(0), rules.UNSPECIFIED, "packs along the batch"),
    "split batch": (
        lambda: with_constant("SPLIT", 0, (1, 4, 4, 8), (1, 4, 4, 8), options="SplitOptions"), rules.UNSPECIFIED, "splits"),
    "enlarged 16 times": (lambda: resize(16), rules.UNSPECIFIED, "16 times"),
    "nearest neighbour 16 times": (lambda: resize(16, "RESIZE_NEAREST_NEIGHBOR"), rules.UNSPECIFIED, "16 times"),
    "long softmax": (lambda: unary("SOFTMAX", shape=(1, 16_001), version=2), rules.UNSPECIFIED, "16001 values"),
    "softmax of rows": (lambda: unary("SOFTMAX", shape=(1, 4, 8), version=2), rules.UNSPECIFIED, "one vector"),
    "steps of two": (lambda: strided(2), rules.UNSPECIFIED, "[1, 2, 1, 1]"),
    "new axis": (lambda: strided(new_axis=1), rules.UNSPECIFIED, "new axis"),
    "ellipsis": (lambda: strided(ellipsis=1), rules.UNSPECIFIED, "ellipsis"),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_what_coral_supports_maps(name: str) -> None:
    found = partition(FREE[name]())
    assert (found.mapped, found.total) == (1, 1)
    assert found.operators[0].reason == "Mapped to Edge TPU"


@pytest.mark.parametrize("name", HELD)
def test_what_breaks_a_rule_stays_and_says_why(name: str) -> None:
    build, status, words = HELD[name]
    model = build()
    placement = partition(model).operators[0]
    assert not placement.mapped
    assert not placement.would_map
    assert placement.reason == status
    assert words in placement.words
    assert mapped_operators(model, if_accepted=True) == (0, 1)


def test_guesses_are_marked() -> None:
    sure = {name: partition(build()).operators[0].sure for name, (build, _, _) in HELD.items()}
    assert {name for name, certain in sure.items() if not certain} == {
        "dense that keeps dimensions", "in groups", "mean over much", "packed in front", "softmax of rows"}  # fmt: skip
    between = partition(resize(6)).operators[0]
    assert (between.mapped, between.sure) == (True, False)
    large = with_constant("RESHAPE", [1, 512, 1024], (1, 512, 512, 2), (1, 512, 1024), 1)
    assert (partition(large).operators[0].mapped, partition(large).operators[0].sure) == (True, False)
    deep = partition(recurrent(1000)).operators[0]
    assert (deep.mapped, deep.sure) == (True, False)


@pytest.mark.parametrize(("rows", "mapped", "sure"), [(147, True, True), (400, True, False), (784, False, False)])
def test_much_may_not_be_transposed(rows: int, mapped: bool, sure: bool) -> None:
    # Of YOLOv5s at 224 x 224: 14 * 14 rows of 3 * 85 map, 28 * 28 do not.
    found = partition(with_constant("TRANSPOSE", [0, 2, 1, 3], (1, rows, 3, 85), (1, 3, rows, 85))).operators[0]
    assert (found.mapped, found.sure) == (mapped, sure)


@pytest.mark.parametrize(("side", "mapped", "sure"), [(64, True, True), (128, True, False), (256, False, False)])
def test_enlarged_images_may_be_too_large(side: int, mapped: bool, sure: bool) -> None:
    # 512 x 512 x 32 bytes are known not to map, 128 x 128 x 32 to.
    sizes = (1, side, side, 32), (1, 2 * side, 2 * side, 32)
    found = partition(with_constant("RESIZE_BILINEAR", [2 * side, 2 * side], *sizes)).operators[0]
    assert (found.mapped, found.sure) == (mapped, sure)


@pytest.mark.parametrize(("build", "needed"), [(transposed, 13), (FREE["transposed"], 14)])
def test_older_runtimes_have_fewer_operators(build: Callable[[], Model], needed: int) -> None:
    assert partition(build(), runtime_version=needed).mapped == 1
    older = partition(build(), runtime_version=needed - 1).operators[0]
    assert (older.mapped, older.reason) == (False, rules.NOT_SUPPORTED)
    assert f"needs runtime {needed}" in older.words


def test_unknown_runtime_is_refused() -> None:
    with pytest.raises(OptionError, match=r"runtime version 9, expected 10 to 14"):
        partition(dense(), runtime_version=9)


# ------------------------------------------------------------------------------------------- refused as a whole


def test_operator_newer_than_the_compiler_refuses_the_model() -> None:
    made = image()
    made.convolution("image", "first")
    made.unary("QUANTIZE", "first", "second", version=3)
    found = partition(made.model("second"))
    assert found.refused[0].startswith("Didn't find op for builtin opcode 'QUANTIZE' version '3'")
    assert (found.mapped, found.would_map) == (0, 1)
    assert reason(found, "second") == "Operation version not supported"
    assert "TensorFlow Lite 2.7" in found.operators[1].words
    assert "refuses the model as a whole" in found.operators[0].words
    assert mapped_operators(made.model("second")) == (0, 2)
    assert mapped_operators(made.model("second"), if_accepted=True) == (1, 2)
    assert "would map" in " ".join(found.summary())


def test_computed_shape_refuses_the_model() -> None:
    made = image()
    made.input("shape", (2,), "INT32")
    made.convolution("image", "first")
    made.operator("RESHAPE", ["first", "shape"], made.tensor("out", (1, 128)))
    found = partition(made.model("out"))
    assert "dynamic-sized tensors" in found.refused[0]
    assert "'out'" in found.refused[0]
    assert (found.mapped, found.would_map) == (0, 1)
    assert "dynamic-sized tensors" in reason(found, "out")
    assert "'shape'" in found.operators[1].words


def test_batch_of_any_size_is_taken_as_it_stands_and_noted() -> None:
    found = partition(unary("RELU", shape=(-1, 4, 4, 8), version=2))
    assert (found.mapped, found.refused) == (1, ())
    assert "(-1, 4, 4, 8)" in found.notes[0]


def test_shape_without_a_size_refuses_the_model() -> None:
    unpacked = unpack(unary("RELU", shape=(1, 4, 4, 8), version=2))
    for tensor in unpacked.subgraphs[0].tensors:
        tensor.shape = [-1, 4, 4, 8]
    assert "'image'" in partition(Model(pack(unpacked))).refused[0]


def test_float_model_is_refused() -> None:
    assert partition(Model(models.float_tflite("chain"))).refused == ("Model not quantized",)
    assert mapped_operators(models.float_tflite("chain"))[0] == 0


def test_dense_layer_with_scales_per_channel_is_noted() -> None:
    made = vector()
    weights = made.weights("weights", (4, 16), scale=[0.5, 0.25, 0.5, 1.0])
    made.operator("FULLY_CONNECTED", ["image", weights, None], made.tensor("out", (1, 4)), 4, "FullyConnectedOptions")
    found = partition(made.model("out"))
    assert found.mapped == 1
    assert "quantize dense layers per tensor" in found.notes[0]
    assert not partition(dense()).notes


def test_compiled_model_is_no_model_to_compile() -> None:
    model = unary("edgetpu-custom-op")
    for function in (partition, mapped_operators, lambda given: cut_by_float(given, ["out"])):
        with pytest.raises(ModelError, match="compiled for the Edge TPU already"):
            function(model)


# ------------------------------------------------------------------------------------------------- parameters


def layers(*sizes: int) -> Model:
    made = vector(1024)
    source = "image"
    for number, size in enumerate(sizes):
        weights = made.weights(f"weights{number}", (size, 1024))
        name = made.tensor(f"out{number}", (1, size))
        made.operator("FULLY_CONNECTED", ["image", weights, None], name, 4, "FullyConnectedOptions")
        source = name
    return made.model(source)


def test_parameters_that_fit_stay_on_the_device() -> None:
    found = partition(layers(2048, 1024))
    assert (found.parameter_bytes, found.fits, found.streamed_bytes) == (3 << 20, "yes", 0)


def test_parameters_that_do_not_fit_are_streamed() -> None:
    # 5 MiB fit into 7; of 4 more nothing does; the last MiB does again.
    found = partition(layers(5 << 10, 4 << 10, 1 << 10))
    assert (found.parameter_bytes, found.fits, found.streamed_bytes) == (10 << 20, "no", 4 << 20)


def test_layer_larger_than_the_device_is_streamed_whole() -> None:
    found = partition(layers(9 << 10))
    assert (found.fits, found.streamed_bytes) == ("no", 9 << 20)


def test_between_the_limits_nothing_is_promised() -> None:
    assert partition(layers(6 << 10, 1 << 9)).fits == "perhaps"


def test_shared_weights_count_once() -> None:
    made = vector(4)
    weights = made.weights("weights", (4, 4))
    for number in (1, 2):
        made.operator("FULLY_CONNECTED", ["image", weights, None], made.tensor(f"out{number}", (1, 4)), 4)
    assert partition(made.model("out1", "out2")).parameter_bytes == 16


# -------------------------------------------------------------------------------------------------- kept float


def test_node_kept_float_cuts_off_what_is_behind_it() -> None:
    made = image()
    for source, name in (("image", "first"), ("first", "second"), ("second", "third"), ("first", "beside")):
        made.convolution(source, name)
    model = made.model("third", "beside")
    assert partition(model).mapped == 4
    found = cut_by_float(model, ["second"])
    assert mapped_names(found) == ["first", "beside"]
    assert (reason(found, "second"), reason(found, "third")) == (rules.DATA_TYPE, rules.BLOCKED)
    assert found.operators[2].behind == 1
    assert found.total == 4
    # Out: first for the float node, beside for the caller.
    assert found.outputs == ("first", "beside")


def test_first_node_kept_float_costs_itself_alone() -> None:
    made = image()
    for source, name in (("image", "first"), ("first", "second")):
        made.convolution(source, name)
    assert mapped_names(cut_by_float(made.model("second"), ["first"])) == ["second"]


def test_conversion_at_the_input_goes_with_the_first_node() -> None:
    made = image("UINT8")
    made.unary("QUANTIZE", "image", "signed")
    made.convolution("signed", "first")
    made.convolution("first", "second")
    made.unary("QUANTIZE", "second", "unsigned", to="UINT8")
    model = made.model("unsigned")
    assert partition(model).mapped == 4
    # uint8 -> DEQUANTIZE -> float convolution -> QUANTIZE -> the rest: nothing is mapped before the float node.
    assert mapped_names(cut_by_float(model, ["first"])) == ["second", "unsigned"]
    assert mapped_names(cut_by_float(model, ["second"])) == ["signed", "first"]


def test_unknown_node_is_named_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"'firts'.*Did you mean 'first'"):
        cut_by_float(branched().model("last", "more"), ["firts"])


@pytest.mark.parametrize("layer", ["first", "depthwise", "joined", "dense"])
def test_prediction_is_that_of_the_model_made_with_the_node_float(layer: str) -> None:
    calibrated = models.calibrated("mixed")
    name = next(node for node in calibrated.float_model.model.node_names() if layer in node.split(";")[0])
    whole = Model(calibrated.quantize("int8").data)
    made = partition(Model(calibrated.quantize("int8", denylisted_nodes=[name]).data))
    assert name in whole.main.nodes
    predicted = cut_by_float(whole, [name])
    assert mapped_names(predicted) == mapped_names(made)
    assert predicted.mapped < partition(whole).mapped


def test_several_nodes_kept_float_are_predicted_together() -> None:
    calibrated = models.calibrated("mixed")
    nodes = [name for name in calibrated.float_model.model.node_names() if "depthwise" in name or "joined" in name]
    whole = Model(calibrated.quantize("int8").data)
    made = partition(Model(calibrated.quantize("int8", denylisted_nodes=nodes).data))
    assert len(nodes) > 1
    assert mapped_names(cut_by_float(whole, nodes)) == mapped_names(made)


def test_counting_alone_gives_the_partition_s_numbers() -> None:
    for name in ("mixed", "chain", "with_cosine", "attention", "lstm"):
        data = models.calibrated(name).quantize("int8").data if name != "lstm" else models.float_tflite(name)
        found = partition(Model(data))
        assert mapped_operators(data) == (found.mapped, found.total)
        assert mapped_operators(data, if_accepted=True) == (found.would_map, found.total)


def test_converted_model_maps_but_for_its_ends() -> None:
    found = partition(Model(models.calibrated("chain").quantize("int8").data))
    unmapped = [placement.operator for placement in found.operators if not placement.mapped]
    assert unmapped == ["QUANTIZE", "DEQUANTIZE"]
    whole = partition(Model(models.calibrated("chain").quantize("full_integer").data))
    assert whole.mapped == whole.total


# ------------------------------------------------------------------------------------------------- compiled models


def compiled(source: Model, swallowed: set[int], outputs: list[str], inputs: list[str]) -> Model:
    """What the compiler writes: the operators swallowed are gone, one custom operator stands in their place."""
    unpacked = unpack(source)
    main = unpacked.subgraphs[0]
    indices = {tensor.name.decode(): index for index, tensor in enumerate(main.tensors)}
    writer = edit.flatbuffer.Writer(unpacked)
    piece = writer.schema.OperatorT()
    piece.opcodeIndex = writer.add_code("CUSTOM", 1, b"edgetpu-custom-op")
    piece.inputs = np.array([indices[name] for name in inputs], np.int32)
    piece.outputs = np.array([indices[name] for name in outputs], np.int32)
    main.operators = [piece] + [table for index, table in enumerate(main.operators) if index not in swallowed]
    return Model(pack(unpacked))


def test_operators_swallowed_are_found() -> None:
    source = branched().model("last", "more")
    fact = read_compiled(source, compiled(source, {0, 3, 4}, ["first", "more"], ["image"]))
    assert fact.mapped == (True, False, False, True, True)
    assert (fact.segments, fact.inputs, fact.outputs, fact.crossings) == (1, ("image",), ("first", "more"), 3)
    assert compare(partition(source), fact).agrees
    assert json.loads(json.dumps(fact.to_dict()))["total"] == 5


def test_operators_of_one_name_are_told_apart_by_what_they_read() -> None:
    source = branched().model("last", "more")
    unpacked = unpack(source)
    for tensor in unpacked.subgraphs[0].tensors:
        if tensor.name in (b"last", b"beside", b"more"):
            tensor.name = b"same"
    renamed = Model(pack(unpacked))
    twin = unpack(renamed)
    writer = edit.flatbuffer.Writer(twin)
    piece = writer.schema.OperatorT()
    piece.opcodeIndex = writer.add_code("CUSTOM", 1, b"edgetpu-custom-op")
    piece.inputs, piece.outputs = np.array([0], np.int32), np.array(twin.subgraphs[0].operators[0].outputs, np.int32)
    operators = twin.subgraphs[0].operators
    twin.subgraphs[0].operators = [piece, operators[1], operators[2], operators[4]]
    operators[4].inputs = np.array([operators[0].outputs[0], *operators[4].inputs[1:]], np.int32)
    fact = read_compiled(renamed, Model(pack(twin)))
    # That which still reads "absolute" and that which reads the first convolution stayed; the third was swallowed.
    assert fact.mapped == (True, False, False, False, True)


def test_renamed_tensors_are_found_by_shape() -> None:
    made = branched()
    made.operator("ADD", ["more", made.tensor("constant", (1, 4, 4, 8), values=3)], made.tensor("sum", (1, 4, 4, 8)), 2)
    made.operator("ADD", ["more", made.tensor("other", (1, 4, 4, 8), values=4)], made.tensor("total", (1, 4, 4, 8)), 2)
    source = made.model("last", "sum", "total")
    fact = compiled(source, {0, 2, 3, 4, 6}, ["first", "last", "more", "total"], ["image"])
    other = edit.with_renamed(fact, lambda index, name: f"t{index}")
    # ABS is the only one of its kind; of the two sums that with the same constant stayed.
    assert read_compiled(source, Model(other)).mapped == (True, False, True, True, True, False, True)


def test_compilation_of_another_model_is_refused() -> None:
    source = branched().model("last", "more")
    other = compiled(unary("LEAKY_RELU"), set(), ["out"], ["image"])
    with pytest.raises(ModelError, match=r"LEAKY_RELU.*expected the model that was given to the compiler"):
        read_compiled(source, other)
    with pytest.raises(ModelError, match=r"without the operator edgetpu-custom-op"):
        read_compiled(source, dilated(1, 1))


def test_differences_from_a_compiled_model_are_named() -> None:
    source = branched().model("last", "more")
    fact = CompiledModel((True, False, True, True, True), 2, ("image",), ("first", "last", "more"))
    compared = compare(partition(source), fact)
    assert not compared.agrees
    assert compared.differences[0].startswith(
        "operator 2 (CONV_2D, 'last'): predicted on the CPU, the compiler put it on the Edge TPU"
    )
    assert compared.differences[1] == "predicted 1 pieces on the device, the compiler made 2"
    header, rows = compared.table(differing_only=True)
    assert [row[header.index("node")] for row in rows] == ["last"]
    with pytest.raises(ModelError, match=r"5 operators, the compiled one was made of 1"):
        compare(partition(source), CompiledModel((True,), 1, (), ()))


# ------------------------------------------------------------------------------------------------------------- logs

PRINTED = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1354 ms.

Input model: branched.tflite
Input size: 5.10MiB
Output model: branched_edgetpu.tflite
Output size: 512.00KiB
On-chip memory used for caching model parameters: 6.03MiB
On-chip memory remaining for caching model parameters: 1.21MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 5
Operation log: branched_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will instead run on
the CPU, which is slower.
Number of operations that will run on Edge TPU: 3
Number of operations that will run on CPU: 2

Operator                       Count      Status

CONV_2D                        3          Mapped to Edge TPU
CONV_2D                        1          More than one subgraph is not supported
ABS                            1          Operation not supported
Compilation child process completed within timeout period.
Compilation succeeded!
"""
WRITTEN = """Edge TPU Compiler version 14.1.317412892
Input: made.tflite
Output: made_edgetpu.tflite

Operator                       Count      Status

RESHAPE                        12         Tensor has unsupported rank (up to 3 innermost dimensions mapped)
CUSTOM                         1          Operation is working on an unsupported data type
TRANSPOSE                      2          Some status that nobody has seen
"""


def test_printed_log_is_read() -> None:
    log = parse_log(PRINTED)
    assert log.version == "16.0.384591198"
    assert [dataclasses.astuple(row) for row in log.rows] == [
        ("CONV_2D", 3, "Mapped to Edge TPU"),
        ("CONV_2D", 1, "More than one subgraph is not supported"),
        ("ABS", 1, "Operation not supported"),
    ]
    assert (log.segments, log.total, log.on_device, log.on_cpu, log.mapped) == (1, 5, 3, 2, 3)
    assert (log.input_bytes, log.output_bytes) == (round(5.10 * 2**20), 512 * 2**10)
    assert (log.cached_bytes, log.remaining_bytes, log.streamed_bytes) == (round(6.03 * 2**20), round(1.21 * 2**20), 0)
    assert log.failures == ()
    assert json.loads(json.dumps(log.to_dict()))["mapped"] == 3


def test_written_log_is_read_with_unknown_statuses(tmp_path: Path) -> None:
    path = tmp_path / "made_edgetpu.log"
    path.write_text(WRITTEN)
    log = read_log(path)
    assert [(row.operator, row.count) for row in log.rows] == [("RESHAPE", 12), ("CUSTOM", 1), ("TRANSPOSE", 2)]
    assert log.rows[0].status == rules.RANK
    assert log.rows[2].status == "Some status that nobody has seen"
    assert (log.mapped, log.total, log.segments) == (0, None, None)


def test_quoted_and_indented_log_is_read() -> None:
    assert parse_log("\n".join(f"> {line}" for line in PRINTED.splitlines())) == parse_log(PRINTED)
    assert parse_log(PRINTED.replace("\n", "\r\n")) == parse_log(PRINTED)


def test_log_without_a_table_counts_by_the_line() -> None:
    log = parse_log(PRINTED[: PRINTED.index("Operator  ")])
    assert (log.rows, log.mapped) == ((), 3)
    with pytest.raises(ModelError, match="no table of operators"):
        compare(partition(branched().model("last", "more")), log)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time\nthere were 3 bears\n")
    with pytest.raises(ModelError, match=r"story\.txt is no log of the Edge TPU compiler"):
        read_log(path)
    with pytest.raises(ModelError, match="cannot read the compiler log"):
        read_log(tmp_path / "absent.log")


def test_prediction_agrees_with_the_log() -> None:
    compared = compare(partition(branched().model("last", "more")), parse_log(PRINTED))
    assert compared.agrees
    assert [(row.operator, row.count, row.predicted, row.actual) for row in compared.rows] == [
        ("CONV_2D", 4, 3, 3),
        ("ABS", 1, 0, 0),
    ]


def test_differences_from_a_log_are_named() -> None:
    fewer = PRINTED.replace("CONV_2D                        3 ", "CONV_2D                        2 ").replace(
        "CONV_2D                        1 ", "CONV_2D                        2 "
    )
    compared = compare(partition(branched().model("last", "more")), parse_log(fewer))
    assert len(compared.differences) == 1
    assert compared.differences[0].startswith("CONV_2D: predicted 3 of 4 on the Edge TPU, the compiler mapped 2")
    assert "2 More than one subgraph is not supported" in compared.differences[0]


def test_log_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"0 operators ABS|1 operators ABS|operators CONV_2D"):
        compare(partition(dilated(1, 1)), parse_log(PRINTED))


def test_custom_operators_are_one_type_in_a_log() -> None:
    text = "Operator  Count  Status\n\nCUSTOM  1  Operation is working on an unsupported data type\n"
    assert compare(partition(custom()), parse_log(text)).agrees


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: Didn't find op for builtin opcode 'QUANTIZE' version '3'",
        f"ERROR: {rules.DYNAMIC}.",
        "Compilation failed: Compilation failed due to large activation tensors in model.",
        "Internal compiler error. Aborting!",
        "Invalid model: Model not quantized",
    ],
)
def test_failures_are_kept(line: str) -> None:
    log = parse_log(f"Edge TPU Compiler version 16.0.384591198\n{line}\n\nCompilation failed!\n")
    assert log.failures == (line.removeprefix("ERROR: "),)
    compared = compare(partition(branched().model("last", "more")), log)
    assert len(compared.differences) == 1
    assert line.removeprefix("ERROR: ") in compared.differences[0]


def test_predicted_failure_agrees() -> None:
    made = image()
    made.unary("QUANTIZE", "image", "out", version=3)
    log = CompilerLog("16.0", failures=("Didn't find op for builtin opcode 'QUANTIZE' version '3'",))
    assert compare(partition(made.model("out")), log).agrees


# ----------------------------------------------------------------------------------------------------- as plain data


def test_partition_is_plain_data() -> None:
    found = partition(branched().model("last", "more"))
    data = json.loads(json.dumps(found.to_dict()))
    assert (data["mapped"], data["total"], data["crossings"]) == (3, 5, 3)
    assert [entry["mapped"] for entry in data["operators"]] == [True, False, False, True, True]
    header, rows = found.table(unmapped_only=True)
    assert [row[header.index("node")] for row in rows] == ["absolute", "last"]
    assert {row[header.index("runs on")] for row in rows} == {"CPU"}
    assert len(found.table()[1]) == 5
    assert found.summary()[0].startswith("3 of 5 operators map to the Edge TPU, in 1 piece; 3 tensors (384 B)")


def test_modules_import_without_tensorflow() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'pandas', 'flatbuffers', 'ai_edge_litert')));"
        "import tflite_qdebug.edgetpu.comparison, tflite_qdebug.edgetpu.partition"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
