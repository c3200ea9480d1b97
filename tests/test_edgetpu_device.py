"""A device held against the CPU: errors that a delegate makes on purpose are found, in hand-made models, in steps."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import delegates
import numpy as np
import pytest
from edgetpu_models import Made, image
from test_board import BLOCKER

from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.edgetpu.device_comparison import compare_with_device
from tflite_qdebug.edgetpu.device_main import main as board_main
from tflite_qdebug.edgetpu.device_record import DeviceComparison, DeviceRow
from tflite_qdebug.edgetpu.prepared import plain_name, prepare_for_device
from tflite_qdebug.edgetpu.prepared_folder import MANIFEST, PreparedFolder, PreparedTensor
from tflite_qdebug.errors import InterpreterError, ModelError, OptionError, OutputError
from tflite_qdebug.model import Model
from tflite_qdebug.record import encoded

# Names as converters give them, which the Edge TPU compiler stumbles over.
A, B, C, SUM = "model/a:0", "model/b;model/b/Relu", "größe/c", "sum:0"
ONE_BY_ONE = {"strideH": 1, "strideW": 1}


def chain() -> Model:
    """Three convolutions, and the sum of the first and the last.

    All scales are 0.5 and all weights one step, so that a convolution of 8 channels gives half the sum of its inputs' steps: an
    offset of n steps on all channels comes out as 4 n.
    """
    made = image()
    made.convolution("image", A, **ONE_BY_ONE)
    made.convolution(A, B, **ONE_BY_ONE)
    made.convolution(B, C, **ONE_BY_ONE)
    made.operator("ADD", [A, C], made.tensor(SUM, (1, 4, 4, 8)), 2, "AddOptions")
    return made.model(SUM)


def steps(count: int = 2) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(3)
    # Every value twice, so that half the sum of the channels is a whole number.
    return [[np.repeat(generator.integers(-1, 2, (1, 4, 4, 4)), 2, axis=-1).astype(np.int8)] for _ in range(count)]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return delegates.build(tmp_path_factory.mktemp("delegate"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    return prepare_for_device(chain(), steps(), tmp_path_factory.mktemp("device") / "chain", outputs=2)


def node(folder: PreparedFolder, name: str) -> str:
    return next(tensor.plain for tensor in folder.tensors.values() if tensor.name == name)


def on(library: Path, **options: Any) -> Backend:
    return Backend(kernels="reference", delegates=(delegates.delegate(library, **options),))


def rows(result: DeviceComparison) -> dict[str, DeviceRow]:
    return {row.node: row for row in result.rows}


def sizes(result: DeviceComparison) -> dict[str, tuple[float, float]]:
    return {row.node: (row.accumulated_size, row.local_size) for row in result.rows}


# ---------------------------------------------------------------------------------------------------- what is prepared


def test_the_reference_values_are_those_worked_out_by_hand(prepared: PreparedFolder) -> None:
    index = {tensor.name: number for number, tensor in prepared.tensors.items()}
    for sample, name in zip(steps(), prepared.samples, strict=True):
        fed, a, b, c, added = prepared.values(name, tuple(index[key] for key in ("image", A, B, C, SUM)))
        np.testing.assert_array_equal(fed, sample[0])
        np.testing.assert_array_equal(a, np.broadcast_to(fed.astype(int).sum(axis=-1, keepdims=True) / 2, a.shape))
        np.testing.assert_array_equal(b, 4 * a)
        np.testing.assert_array_equal(c, 16 * a)
        np.testing.assert_array_equal(added, 17 * a)
        assert np.abs(a).max() > 0


def test_each_model_is_what_the_manifest_says(prepared: PreparedFolder) -> None:
    kinds = {
        kind: [model for model in prepared.models if model.kind == kind] for kind in ("whole", "tapped", "prefix", "layer")
    }
    assert {kind: len(models) for kind, models in kinds.items()} == {"whole": 1, "tapped": 2, "prefix": 3, "layer": 4}
    plain = {index: tensor.plain for index, tensor in prepared.tensors.items()}
    for entry in prepared.models:
        made = Model(Path(prepared.path) / entry.file).main
        assert [made.tensors[index].name for index in made.inputs] == [plain[index] for index in entry.inputs]
        assert [made.tensors[index].name for index in made.outputs] == [plain[index] for index in entry.outputs]
        names = [tensor.name for tensor in made.tensors]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in names), names
    names = {tensor.plain: tensor.name for tensor in prepared.tensors.values()}
    tapped = [[names[plain[index]] for index in model.outputs] for model in kinds["tapped"]]
    assert tapped == [[SUM, A, B], [SUM, C]]  # two at most, behind the model's own
    prefixes = {model.operators: [names[plain[index]] for index in model.outputs] for model in kinds["prefix"]}
    assert prefixes == {1: [A], 2: [A, B], 3: [A, C]}  # the sum still needs the first one
    for model in kinds["layer"]:
        made = Model(Path(prepared.path) / model.file)
        assert [operator.name for operator in made.main.operators] == [prepared.operators[model.operators].type]
        assert len(made.data) < 0.7 * len(chain().data)  # the others' weights are not in it


def test_groups_of_outputs_are_bounded_by_their_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tflite_qdebug.edgetpu.prepared._MOST_BYTES", 200)  # one tensor has 128
    folder = prepare_for_device(chain(), steps(1), tmp_path / "device", prefixes=1)
    assert [len(model.outputs) for model in folder.models if model.kind == "tapped"] == [2, 2, 2]
    assert [model.operators for model in folder.models if model.kind == "prefix"] == [2]  # in the middle


def test_names_that_a_compiler_can_read_stay_apart() -> None:
    assert plain_name(7, "model/b;model/b/Relu:0") == "t0007_model_b_model_b_Relu_0"
    assert plain_name(8, "größe") == "t0008_gr_e"
    assert plain_name(9, "") == "t0009"
    assert len(plain_name(10, "x" * 500)) < 60


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    open_size = image(shape=(1, -1, 4, 8))
    open_size.convolution("image", "a", (1, -1, 4, 8), **ONE_BY_ONE)
    with pytest.raises(ModelError, match=r"'image' has shape .1, -1, 4, 8., of which more than the batch is open"):
        prepare_for_device(open_size.model("a"), steps(), tmp_path / "device")
    compiled = Made()
    compiled.input("image", (1, 4))
    compiled.operator("edgetpu-custom-op", ["image"], compiled.tensor("y", (1, 4)))
    with pytest.raises(ModelError, match="has been compiled for the Edge TPU already"):
        prepare_for_device(compiled.model("y"), steps(), tmp_path / "device")
    with pytest.raises(OptionError, match="got outputs=0, expected 1 or more"):
        prepare_for_device(chain(), steps(), tmp_path / "device", outputs=0)
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not an empty folder"):
        prepare_for_device(chain(), steps(), tmp_path / "device")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["device", "mine.txt"]


def test_a_batch_of_any_size_becomes_one_of_one_sample(tmp_path: Path) -> None:
    made = image(shape=(-1, 4, 4, 8))
    made.convolution("image", "a", (-1, 4, 4, 8), **ONE_BY_ONE)
    model = made.model("a")
    folder = prepare_for_device(model, steps(), tmp_path / "device")
    assert [tensor.shape for tensor in folder.tensors.values()] == [(1, 4, 4, 8)] * 2
    assert folder.manifest["notes"] == ["input 'image' takes one sample: (-1, 4, 4, 8) became (1, 4, 4, 8)"]
    assert folder.manifest["model"]["sha256"] == model.sha256
    for entry in folder.models:
        assert all(-1 not in tensor.shape for tensor in Model(Path(folder.path) / entry.file).main.tensors)


# ------------------------------------------------------------------------------------------------------ planted errors


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize("offset", [2, 3])
def test_the_operator_that_is_off_is_named_and_those_behind_it_inherit(
    prepared: PreparedFolder, library: Path, offset: int, bisect: bool
) -> None:
    device = on(library, mode="off", node=node(prepared, B), steps=offset)
    result = compare_with_device(prepared, device, bisect=bisect)
    assert result.first is result.first_fault
    assert result.first is not None
    assert (result.first.operator, result.first.type, result.first.node) == (1, "CONV_2D", B)
    expected = {A: (0, 0), B: (offset, offset), C: (4 * offset, 0), SUM: (4 * offset, 0)}
    verdicts = {A: "same", B: "local", C: "inherited", SUM: "inherited"}
    if bisect:  # the model of two operators is off, that of one is not: none of three is needed
        del expected[C]
        assert rows(result)[C].accumulated is None
        verdicts[C] = "alone_same"
    assert {name: size for name, size in sizes(result).items() if name in expected} == expected
    assert {row.node: row.verdict for row in result.rows} == verdicts
    assert result.between == ((1, 2) if bisect else None)
    assert not result.is_right
    assert result.largest_steps() == 4 * offset
    said = result.summary()[0]
    assert f"operator 1 CONV_2D '{B}': local: by itself, on the CPU's values, it differs by up to {offset} steps (100 %" in said
    assert "inherited: in the whole model by up to" in rows(result)[SUM].explained(1.0)
    assert [model["file"] for model in result.models if model["ran"] == "uncompiled" and model["kind"] == "tapped"] == (
        [] if bisect else ["models/tapped_000.tflite", "models/tapped_001.tflite"]
    )


def test_small_differences_that_add_up_are_nobodys_fault(prepared: PreparedFolder, library: Path) -> None:
    result = compare_with_device(prepared, on(library, mode="off", at=-1, steps=1))
    # One step each: 1, then 4 * 1 + 1, 4 * 5 + 1, and 1 + 21 + 1.
    assert sizes(result) == {A: (1, 1), B: (5, 1), C: (21, 1), SUM: (23, 1)}
    assert [row.verdict for row in result.rows] == ["same", "inherited", "inherited", "inherited"]
    assert result.first_fault is None
    assert "small differences have added up" in " ".join(result.summary())
    loose = compare_with_device(prepared, on(library, mode="off", at=-1, steps=1), tolerance=5)
    assert [row.verdict for row in loose.rows] == ["same", "same", "inherited", "inherited"]
    assert loose.first is not None
    assert loose.first.node == C


def test_an_exact_device_is_right(prepared: PreparedFolder, library: Path) -> None:
    result = compare_with_device(prepared, on(library, mode="exact"))
    assert result.is_right
    assert not result.exceeds(0)
    assert set(sizes(result).values()) == {(0, 0)}
    assert result.samples == 2
    assert [row.accumulated.elements for row in result.rows if row.accumulated] == [2 * 128] * 4
    assert not result.notes
    assert result.summary()[0].startswith("no layer of 4 measured differs from the CPU by more than 1 step: at most 0 steps")


def test_a_delegate_that_takes_nothing_is_no_proof(prepared: PreparedFolder, library: Path) -> None:
    result = compare_with_device(prepared, on(library, mode="none"))
    assert any("takes nothing of 7 of 7 uncompiled models, where the CPU is compared with itself" in n for n in result.notes)


def test_what_differs_only_in_the_whole_model_or_only_alone_is_told_apart(prepared: PreparedFolder, library: Path) -> None:
    # By its number, which is another one in a model of one operator.
    result = compare_with_device(prepared, on(library, mode="off", at=1, steps=3))
    assert {row.node: row.verdict for row in result.rows} == {A: "same", B: "context", C: "inherited", SUM: "inherited"}
    assert "in the whole model only: in the whole model by up to 3 steps" in result.summary()[0]
    # Operator 0 of each model of one operator, and the first of the whole.
    result = compare_with_device(prepared, on(library, mode="off", at=0, steps=2))
    assert sizes(result)[C] == (32, 2)
    assert rows(result)[C].verdict == "local"


def test_where_single_layers_are_missing_equal_inputs_tell_who_it_was(
    prepared: PreparedFolder, library: Path, tmp_path: Path
) -> None:
    folder = PreparedFolder(prepared.path)
    folder.models = [model for model in folder.models if model.kind != "layer"]
    result = compare_with_device(folder, on(library, mode="off", node=node(prepared, B), steps=3))
    assert {row.node: row.verdict for row in result.rows} == {A: "same", B: "local", C: "unknown", SUM: "unknown"}
    assert "on inputs equal to the CPU's" in result.summary()[0]


def test_a_device_that_dies_of_one_operator_loses_nothing_else(prepared: PreparedFolder, library: Path) -> None:
    result = compare_with_device(prepared, on(library, mode="crash", when="invoke", node=node(prepared, B)))
    failed = [model["file"] for model in result.models if model["ran"] == "failed"]
    assert "models/layer_001.tflite" in failed
    assert "models/model.tflite" in failed
    assert not {"models/layer_000.tflite", "models/layer_002.tflite", "models/prefix_001.tflite"} & set(failed)
    assert not result.is_right
    assert result.exceeds(1000)
    assert f"by themselves these do: operator 1 CONV_2D '{B}'" in " ".join(result.summary())


def test_a_device_that_gives_two_answers_is_not_believed(prepared: PreparedFolder, library: Path) -> None:
    with pytest.raises(InterpreterError, match=r"gave two answers to the same sample: \d+ of 128 values changed"):
        compare_with_device(prepared, on(library, mode="vary"))
    result = compare_with_device(prepared, on(library, mode="vary", node=node(prepared, B)))
    assert not result.is_right
    assert f"by themselves these do: operator 1 CONV_2D '{B}'" in " ".join(result.summary())


def test_a_device_that_runs_nothing_is_given_up(prepared: PreparedFolder, library: Path) -> None:
    with pytest.raises(InterpreterError):
        compare_with_device(prepared, on(library, mode="crash", when="invoke"))


def test_an_interruption_keeps_what_was_compared(prepared: PreparedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(BaseException):
        pass

    content = PreparedFolder.content

    def stopping(self: PreparedFolder, model: Any, compiled: bool) -> bytes | None:
        if model.kind == "layer":
            raise Stopped
        return content(self, model, compiled)

    monkeypatch.setattr(PreparedFolder, "content", stopping)
    with pytest.raises(Stopped) as caught:
        compare_with_device(prepared, Backend(kernels="builtin"))
    partial = caught.value.partial_comparison
    assert all(row.accumulated is not None and row.local is None for row in partial.rows)


# ---------------------------------------------------------------------------------------------------------- compiled


COMPILER = """#!/bin/sh
# edgetpu_compiler -s -o DIR MODEL
name=$(basename "$4" .tflite)
echo "Edge TPU Compiler version 16.0.384591198"
echo "$name" >>"$CALLS"
case $name in
  tapped_*|layer_001) echo "ERROR: Attempting to use a delegate that only supports static-sized tensors"; exit 1;;
esac
cp "$4" "$3/${name}_edgetpu.tflite"
printf edgetpu-custom-op >>"$3/${name}_edgetpu.tflite"
"""


def compile_with_stand_in(folder: PreparedFolder, place: Path) -> tuple[str, list[str]]:
    """Runs compile.sh with a compiler that copies models, and refuses some; returns what was said, and what was compiled."""
    place.mkdir(exist_ok=True)
    compiler, calls = place / "edgetpu_compiler", place / "calls"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    calls.write_text("")
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run(
        ["sh", f"{folder.path}/compile.sh"], env=environment, cwd=place, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout + done.stderr, calls.read_text().split()


def test_where_the_compiler_refuses_pieces_prefixes_are_bisected(tmp_path: Path, library: Path) -> None:
    folder = prepare_for_device(chain(), steps(), tmp_path / "device")
    with pytest.raises(ModelError, match=r"no compiled model; run its compile\.sh"):
        compare_with_device(folder, compiled=True)
    said, compiled = compile_with_stand_in(folder, tmp_path / "bin")
    assert len(compiled) == len(folder.models) == 9
    assert "refused:  tapped_000" in said
    assert "2 models were refused" in said
    said, compiled = compile_with_stand_in(folder, tmp_path / "bin")
    assert compiled == ["tapped_000", "layer_001"]  # the others are there already
    result = compare_with_device(folder, on(library, mode="off", node=node(folder, B), steps=3))
    assert {model["ran"] for model in result.models} == {"compiled", "missing", ""}
    assert [model["file"] for model in result.models if not model["ran"]] == ["models/prefix_003.tflite"]
    assert result.between == (1, 2)
    assert result.first is not None
    # Alone it could not be compiled: what it read in the whole model tells.
    assert (result.first.node, result.first.verdict, result.first.accumulated_size) == (B, "local", 3)
    assert rows(result)[C].verdict == "unmeasured" or rows(result)[C].local_size == 0
    assert "the compiler refused it: ERROR: Attempting to use a delegate" in " ".join(result.notes)
    assert not any("takes nothing" in note for note in result.notes)
    uncompiled = compare_with_device(folder, on(library, mode="exact"), compiled=False)
    assert {model["ran"] for model in uncompiled.models} == {"uncompiled", ""}


def test_compiled_models_in_which_nothing_was_mapped_are_no_proof(tmp_path: Path) -> None:
    folder = prepare_for_device(chain(), steps(1), tmp_path / "device")
    (tmp_path / "device" / "compiled").mkdir()
    for model in folder.models:
        shutil.copy(tmp_path / "device" / model.file, tmp_path / "device" / model.compiled)
    result = compare_with_device(folder, Backend(kernels="reference"))
    assert any("the device takes nothing of 6 of 6 compiled models" in note for note in result.notes)


def test_a_compiled_model_of_another_source_is_refused(tmp_path: Path) -> None:
    folder = prepare_for_device(chain(), steps(1), tmp_path / "device")
    other = image(shape=(1, 2, 2, 8))
    other.convolution("image", "a", (1, 2, 2, 8), **ONE_BY_ONE)
    (tmp_path / "device" / "compiled").mkdir()
    (tmp_path / "device" / folder.models[0].compiled).write_bytes(other.model("a").data)
    with pytest.raises(ModelError, match=r"models/model\.tflite: got inputs .*2, 2, 8.*, expected .*4, 4, 8"):
        compare_with_device(folder, Backend(kernels="reference"))


def test_a_really_compiled_model_runs_end_to_end(shared_models: Path, tmp_path: Path, library: Path) -> None:
    coral, name = shared_models / "coral", "mobilenet_v1_0.25_128_quant"
    values = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3)).astype(np.uint8)
    folder = prepare_for_device(coral / f"{name}.tflite", [[values]], tmp_path / "device", prefixes=2)
    assert all(operator.mapped for operator in folder.operators)
    (tmp_path / "device" / "compiled").mkdir()
    shutil.copy(coral / f"{name}_edgetpu.tflite", tmp_path / "device" / folder.models[0].compiled)
    result = compare_with_device(folder, Backend(delegates=(delegates.delegate(library, mode="edgetpu"),)))
    ran = [model for model in result.models if model["ran"] == "compiled"]
    assert [(model["file"], model["on_device"]) for model in ran] == [("models/model.tflite", True)]
    # What stands for the device computes something else: the output is wrong, and nothing tells whose fault it is.
    assert result.first is not None
    assert (result.first.node, result.first.verdict) == ("MobilenetV1/Predictions/Reshape_1", "unknown")
    assert "the first layer measured that differs" in result.summary()[0]
    assert any("tapped_000_edgetpu.tflite is not there: not compiled" in note for note in result.notes)
    with pytest.raises(InterpreterError, match="edgetpu-custom-op"):
        compare_with_device(folder, Backend())


# ------------------------------------------------------------------------------------------------------ units, records


def test_differences_are_counted_in_the_steps_of_what_was_dequantized() -> None:
    quantized = PreparedTensor(0, "q", "q", "int8", (3,), 0.5)
    found = quantized.difference(np.array([1, 2, 3], np.int8), np.array([1, 5, 3], np.int8), 0)
    assert (quantized.unit, quantized.size(found), found.differing) == ("steps", 3, 1)
    assert quantized.excess(found, 3) <= 1 < quantized.excess(found, 2)
    dequantized = PreparedTensor(1, "d", "d", "float32", (2,), 0.1)
    found = dequantized.difference(np.array([0.3, 1.0], np.float32), np.array([0.1, 1.0], np.float32), 0)
    assert dequantized.unit == "steps"
    assert dequantized.size(found) == pytest.approx(2, abs=1e-5)
    assert dequantized.excess(found, 2) <= 1
    floating = PreparedTensor(2, "f", "f", "float32", (2,), None)
    found = floating.difference(np.array([1.0, 2.2], np.float32), np.array([1.0, 2.0], np.float32), 0)
    assert floating.size(found) == pytest.approx(0.2 / 5**0.5, rel=1e-5)
    assert floating.excess(found, 99) > 1
    spoilt = floating.difference(np.array([1.0, np.nan], np.float32), np.array([1.0, 2.0], np.float32), 0)
    assert floating.size(spoilt) == float("inf")
    index = PreparedTensor(3, "i", "i", "int64", (1,), None)
    found = index.difference(np.array([3]), np.array([4]), 0)
    assert (index.unit, index.excess(found, 99) > 1) == ("units", True)


def test_a_saved_comparison_is_the_same_when_it_is_loaded(prepared: PreparedFolder, library: Path, tmp_path: Path) -> None:
    result = compare_with_device(prepared, on(library, mode="off", node=node(prepared, B), steps=3), bisect=True)
    result.save(tmp_path / "result.json")
    loaded = DeviceComparison.load(tmp_path / "result.json")
    assert encoded(loaded.to_dict()) == encoded(result.to_dict())  # NaN is not equal to itself
    assert loaded.summary() == result.summary()
    (tmp_path / "result.json").write_text('{"format": "another"}')
    with pytest.raises(ModelError, match="got 'another' version None, expected"):
        DeviceComparison.load(tmp_path / "result.json")


# --------------------------------------------------------------------------------------------------- broken folders


def test_a_folder_that_has_changed_is_refused(prepared: PreparedFolder, tmp_path: Path) -> None:
    place = tmp_path / "device"
    shutil.copytree(prepared.path, place)
    content = bytearray((place / "models" / "layer_002.tflite").read_bytes())
    content[-1] ^= 1
    (place / "models" / "layer_002.tflite").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"1 of \d+ files .* hashes differ.: models/layer_002.tflite; copy the folder once more"
    ):
        compare_with_device(place)
    (place / "models" / "layer_002.tflite").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*layer_002.tflite: No such file"):
        compare_with_device(place)
    (place / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="got None version None, expected 'tflite_qdebug prepared for a device' version 1"):
        compare_with_device(place)
    with pytest.raises(ModelError, match="expected a folder that 'tflite-qdebug edgetpu prepare' wrote"):
        compare_with_device(tmp_path)
    with pytest.raises(OptionError, match="tolerance of -1"):
        compare_with_device(prepared, tolerance=-1)


def test_an_edge_tpu_without_compiled_models_is_not_compared_with_the_cpu_itself(prepared: PreparedFolder) -> None:
    from tflite_qdebug.interpreter import Delegate

    with pytest.raises(ModelError, match="no compiled model"):
        compare_with_device(prepared, Backend(delegates=(Delegate("/usr/lib/libedgetpu.so.1"),)))


# -------------------------------------------------------------------------------------------------------- the board


def test_what_goes_to_the_board_has_the_syntax_of_python_3_7_and_needs_nothing_heavy(prepared: PreparedFolder) -> None:
    with zipfile.ZipFile(Path(prepared.path) / "board.zip") as archive:
        names = archive.namelist()
        for name in names:
            ast.parse(archive.read(name), feature_version=(3, 7))
    assert len(names) > 15
    modules = [name[: -len(".py")].replace("/", ".") for name in names if not name.endswith("__init__.py")]
    code = f"{BLOCKER}\nsys.path.insert(0, {str(Path(prepared.path) / 'board.zip')!r})\n"
    code += "\n".join(f"import {module}" for module in modules)
    code += "\nassert 'board.zip' in tflite_qdebug.__file__, tflite_qdebug.__file__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert {"tflite_qdebug.edgetpu.device_main", "tflite_qdebug.interpreter", "tflite_qdebug.workers"} < set(modules)
    assert not {"tflite_qdebug.model", "tflite_qdebug.conversion", "tflite_qdebug.edgetpu.partition"} & set(modules)


def test_the_folder_runs_by_itself_and_the_host_reads_its_result(
    prepared: PreparedFolder, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="an interpreter wheel beside TensorFlow")
    shutil.copytree(prepared.path, tmp_path / "board")
    options = ["--delegate", str(library), "--kernels", "reference", "--runtime", "ai_edge_litert"]
    options += [part for key in ("mode=off", f"node={node(prepared, B)}", "steps=3") for part in ("--delegate-option", key)]
    code = f"{BLOCKER}\nimport runpy\nsys.argv = ['compare.py', *{[*options, '--fail-on-difference', '1']!r}]\n"
    code += f"runpy.run_path({str(tmp_path / 'board' / 'compare.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 10, done.stderr
    assert f"the first layer that differs from the CPU by more than 1 step is operator 1 CONV_2D '{B}': local" in done.stdout
    result = str(tmp_path / "board" / "result.json")
    assert main(["edgetpu", "compare", prepared.path, "--result", result, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["device"]["runtime"], shown["rows"][1]["verdict"]) == ("ai_edge_litert", "local")
    other = prepare_for_device(chain(), steps(1), tmp_path / "other")
    assert main(["edgetpu", "compare", other.path, "--result", result]) == 3
    assert "was not measured with" in capsys.readouterr().err


def test_the_boards_command_says_what_is_wrong(prepared: PreparedFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert board_main([prepared.path, "--delegate-option", "a=b"]) == 2
    assert "without --delegate" in capsys.readouterr().err
    assert board_main(["/nowhere"]) == 3
    assert "expected a folder that 'tflite-qdebug edgetpu prepare' wrote" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command_line_prepares_and_compares(tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chain.tflite").write_bytes(chain().data)
    np.savez(tmp_path / "debug.npz", image=np.concatenate([sample[0] for sample in steps(3)]))
    device = str(tmp_path / "device")
    words = ["edgetpu", "prepare", str(tmp_path / "chain.tflite"), "--debug-data", str(tmp_path / "debug.npz"), "--no-progress"]
    assert main(words) == 2
    assert "--output is needed" in capsys.readouterr().err
    assert main([*words, "--output", device, "--limit", "2", "--outputs", "3"]) == 0
    said = capsys.readouterr().out
    assert "2 samples; the whole model, 1 with intermediate outputs, 3 prefixes, 4 of one operator each" in said
    assert "4 of 4 operators map to the Edge TPU" in said
    assert main([*words, "--output", device]) == 8
    assert "is not an empty folder" in capsys.readouterr().err
    planted = ["--delegate", str(library), "--kernels", "reference"]
    planted += [f"--delegate-option={option}" for option in ("mode=off", f"node={node(PreparedFolder(device), B)}", "steps=2")]
    compare = ["edgetpu", "compare", device, *planted, "--no-progress"]
    assert main([*compare, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in result["rows"]] == ["same", "local", "inherited", "inherited"]
    assert main([*compare, "--fail-on-difference", "1"]) == 10
    said = capsys.readouterr()
    assert f"look at operator 1 CONV_2D '{B}'" in said.err
    assert "is wrong itself" in said.out
    lines = (tmp_path / "device" / "layers.csv").read_text().splitlines()
    assert lines[0].startswith("operator,type,node,predicted,verdict,unit,accumulated_size,local_size")
    assert len(lines) == 5
    assert main([*compare[:3], "--kernels", "reference", "--output", str(tmp_path / "elsewhere"), "--no-progress"]) == 0
    assert (tmp_path / "elsewhere" / "result.json").exists()
    assert main([*compare[:3], "--delegate", "libedgetpu.so.1", "--no-progress"]) != 0
    assert "no compiled model" in capsys.readouterr().err
