"""The view of a flatbuffer against what TensorFlow's interpreter says of it; broken files are refused and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from tflite_qdebug.errors import ModelError
from tflite_qdebug.model import Model, read_model_bytes

NAMES = ["mixed", "two_by_two", "shared_weights", "dynamic_batch", "weighty", "attention", "lstm"]


def int8_of(name: str) -> bytes:
    from tflite_qdebug import tf_private

    with tf_private.captured_chatter():
        return bytes(models.converter(name).convert())


def model_bytes(name: str) -> bytes:
    return int8_of(name[5:]) if name.startswith("int8-") else models.float_tflite(name)


@pytest.mark.parametrize("name", [*NAMES, "int8-mixed", "int8-weighty"])
def test_tensors_and_operators_are_those_of_the_interpreter(name: str) -> None:
    data = model_bytes(name)
    model, interpreter = Model(data), models.reference_interpreter(data)
    for detail in interpreter.get_tensor_details():
        if detail["index"] >= len(model.main.tensors):  # a kernel's own temporary
            continue
        tensor = model.main.tensors[detail["index"]]
        assert tensor.name == detail["name"]
        assert tensor.shape == tuple(detail["shape_signature"])
        assert tensor.dtype == detail["dtype"]
        scales = detail["quantization_parameters"]["scales"]
        if tensor.quantization is None:
            assert len(scales) == 0
        else:
            np.testing.assert_array_equal(tensor.quantization.scale, scales)
            np.testing.assert_array_equal(tensor.quantization.zero_point, detail["quantization_parameters"]["zero_points"])
            assert tensor.quantization.axis == detail["quantization_parameters"]["quantized_dimension"]
        if tensor.is_constant:
            np.testing.assert_array_equal(model.constant(tensor), interpreter.get_tensor(tensor.index))
    operators = [details for details in interpreter._get_ops_details() if details["op_name"] != "DELEGATE"]
    assert [operator.name for operator in model.main.operators] == [details["op_name"] for details in operators]
    for operator, details in zip(model.main.operators, operators, strict=True):
        assert operator.inputs == tuple(details["inputs"])
        assert operator.outputs == tuple(details["outputs"])
    assert model.main.inputs == tuple(detail["index"] for detail in interpreter.get_input_details())
    assert model.main.outputs == tuple(detail["index"] for detail in interpreter.get_output_details())


@pytest.mark.parametrize("name", ["two_by_two", "mixed"])
def test_signatures_are_those_of_the_interpreter(name: str) -> None:
    data = models.float_tflite(name)
    signature = Model(data).signatures[0]
    runner = models.reference_interpreter(data).get_signature_runner(signature.key)
    assert dict(signature.inputs) == {key: detail["index"] for key, detail in runner.get_input_details().items()}
    assert dict(signature.outputs) == {key: detail["index"] for key, detail in runner.get_output_details().items()}


def test_a_loop_has_its_bodies_as_subgraphs() -> None:
    model = Model(models.while_loop())
    assert len(model.subgraphs) == 3
    assert model.main is model.subgraphs[0]
    assert [operator.name for operator in model.main.operators] == ["WHILE"]


def test_input_specs_say_what_a_sample_must_be() -> None:
    wide, narrow = sorted(Model(models.float_tflite("two_by_two")).input_specs(), key=lambda spec: -spec.shape[1])
    assert (wide.key, wide.shape, wide.dtypes) == ("wide", (1, 12), (np.dtype(np.float32),))
    assert (narrow.key, narrow.shape) == ("narrow", (1, 3))
    assert Model(models.float_tflite("dynamic_batch")).input_specs()[0].shape == (-1, 10)


def test_nodes_are_found_by_the_names_of_their_outputs() -> None:
    model = Model(models.float_tflite("mixed"))
    split = next(operator for operator in model.main.operators if operator.name == "SPLIT")
    for output in split.outputs:
        assert model.main.nodes[model.main.tensors[output].name] == [split]
        assert model.main.producers[output] is split
    assert model.node_names()[-1] == model.main.tensors[model.main.outputs[0]].name


def test_a_constant_is_a_view_and_cannot_be_written() -> None:
    model = Model(models.float_tflite("chain"))
    constant = model.constant(next(tensor for tensor in model.main.tensors if tensor.is_constant and tensor.is_float))
    assert not constant.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        constant[...] = 0
    with pytest.raises(ModelError, match="is no constant"):
        model.constant(model.main.tensors[model.main.inputs[0]])


def test_paths_and_every_kind_of_bytes_are_read(tmp_path: Path) -> None:
    data = models.float_tflite("chain")
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        assert read_model_bytes(source) == data


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "begins with b''"), (b"TFL3", "begins with b'TFL3'"), (b"PK\x03\x04" + b"\x00" * 99, "expected a TensorFlow Lite")],
)
def test_what_is_no_flatbuffer_is_told_apart(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        Model(content)
    path = tmp_path / "wrong.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"wrong\.tflite"):
        Model(path)


def test_a_missing_file_and_a_folder_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        Model(tmp_path / "none.tflite")
    with pytest.raises(ModelError, match="directory"):
        Model(tmp_path)


def read_everything(data: bytes) -> str:
    """Reads all that the view offers; returns what came out of it."""
    try:
        model = Model(data)
    except ModelError:
        return "refused"
    for tensor in model.main.tensors:
        if tensor.is_constant:
            try:
                model.constant(tensor)
            except ModelError:
                return "constant refused"
    model.input_specs()
    assert repr(model)
    return "read"


@pytest.mark.parametrize("name", ["mixed", "int8-mixed", "two_by_two"])
def test_truncated_files_are_read_or_refused(name: str) -> None:
    data = model_bytes(name)
    found = [read_everything(data[:length]) for length in [*range(64), *np.linspace(64, len(data) - 1, 150).astype(int)]]
    assert found.count("refused") > 60
    assert read_everything(data) == "read"


@pytest.mark.parametrize("name", ["mixed", "int8-mixed", "two_by_two"])
def test_flipped_bytes_are_read_or_refused(name: str) -> None:
    data = model_bytes(name)
    generator = np.random.default_rng(11)
    found = []
    for _ in range(200):
        broken = bytearray(data)
        for place in generator.integers(8, len(data), generator.integers(1, 8)):
            broken[place] = generator.integers(0, 256)
        found.append(read_everything(bytes(broken)))
    for _ in range(200):  # offsets, counts and the like: whole words
        broken = bytearray(data)
        place = int(generator.integers(2, len(data) // 4 - 1)) * 4
        word = generator.choice(np.array([0, 1, 2**31 - 1, 2**32 - 1, 0x80000000, len(data)], dtype=np.uint64))
        broken[place : place + 4] = int(word).to_bytes(4, "little")
        found.append(read_everything(bytes(broken)))
    assert "refused" in found
    assert "read" in found


def vectors(data: bytes) -> list[int]:
    """Places in the file at which the count of a vector of the main tables may stand."""
    schema: Any = __import__("tflite_qdebug.tf_private", fromlist=["schema"]).schema()
    root = schema.Model.GetRootAs(data, 0)
    graph = root.Subgraphs(0)
    tables = [root, graph, graph.Operators(0), graph.Tensors(0), root.Buffers(1)]
    places = []
    for table in tables:
        for slot in range(4, 40, 2):
            offset = table._tab.Offset(slot)
            if offset:
                place = int.from_bytes(data[table._tab.Pos + offset : table._tab.Pos + offset + 4], "little")
                if place and table._tab.Pos + offset + place + 4 <= len(data):
                    places.append(table._tab.Pos + offset + place)
    return places


def test_huge_counts_are_refused_at_once() -> None:
    data = models.float_tflite("chain")
    places = vectors(data)
    assert len(places) > 8
    found = []
    for place in places:
        for count in (2**31 - 1, 2**32 - 1, len(data)):
            broken = bytearray(data)
            broken[place : place + 4] = count.to_bytes(4, "little")
            found.append(read_everything(bytes(broken)))
    assert found.count("refused") > 5
