"""What the user gets to paste: each snippet is run, each recipe is read by what it is meant for."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from debugger_models import converter_of, normal, spec
from debugger_models import weights as drawn

import tflite_qdebug
from tflite_qdebug import edit, tf_private
from tflite_qdebug.edit.flatbuffer import with_renamed
from tflite_qdebug.errors import OptionError, OutputError
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import Recipe
from tflite_qdebug.remedies import handout
from tflite_qdebug.remedies.handout import (
    converter_snippet,
    not_said,
    quantizer_recipe,
    quantizer_snippet,
    ranges_literal,
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    save_recipe,
)

#: What a name can do to Python, JSON, HTML and a regular expression.
ODD = "a'b\"c;d\\e/Größe.*[0](x)$^\n{}"
FULL = Recipe(
    equalized=True, per_channel=False, per_channel_dense=False, ranges={ODD: (-1.5, 2.25), "b": (0.0, 1 / 3)},
    ranges_by="percentile 99.99 %", split=("s",), rounded=True, biases_corrected=True, tuned={"b": (0.0, 0.125)},
    float_nodes=(ODD, "n"), int8_weights=True, int16_nodes=("i",), trained=True,
)  # fmt: skip


@functools.cache
def names(model: str = "mixed") -> tuple[str, ...]:
    main = models.calibrated(model).model.main
    return tuple(main.tensors[operator.outputs[0]].name for operator in main.operators)


def float_operators(data: bytes) -> list[str]:
    main = Model(data).main
    return sorted(op.name for op in main.operators if op.name not in edit.BRIDGES and main.tensors[op.outputs[0]].is_float)


# -- the file --------------------------------------------------------------------------------------------------------------


def test_the_full_recipe_fills_every_field() -> None:
    plain = Recipe()
    assert all(getattr(FULL, field.name) != getattr(plain, field.name) for field in dataclasses.fields(Recipe))
    assert set(handout._WORDS) | set(handout._REMARKS) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("recipe", [Recipe(), FULL, Recipe(float_nodes=(ODD,))])
def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    save_recipe(recipe, tmp_path / "deep" / "recipe.json")
    assert read_recipe(tmp_path / "deep" / "recipe.json") == recipe
    assert read_recipe(str(tmp_path / "deep" / "recipe.json")) == recipe
    data = json.loads((tmp_path / "deep" / "recipe.json").read_text(encoding="utf-8"))
    assert data["version"] == 1
    assert data["format"] == "tflite_qdebug recipe"


def test_a_recipe_by_hand() -> None:
    assert recipe_from_dict({"version": 1, "float_nodes": ["a"]}) == Recipe(float_nodes=("a",))
    assert recipe_from_dict({"version": 1, "ranges": {"a": [0, 6]}}) == Recipe(ranges={"a": (0.0, 6.0)})


@pytest.mark.parametrize(("data", "words"), [
    ([], "expected a recipe"),
    ({"float_nodes": []}, "expected a recipe"),
    ({"version": "1"}, "expected a whole number"),
    ({"version": True}, "expected a whole number"),
    ({"version": 2}, "a newer tflite_qdebug wrote it"),
    ({"version": 1, "float_node": []}, "field 'float_node'.*Did you mean.*'float_nodes'"),
    ({"version": 1, "float_nodes": "a"}, "expected a list of names"),
    ({"version": 1, "split": [1]}, "expected a list of names"),
    ({"version": 1, "rounded": 1}, "expected true or false"),
    ({"version": 1, "ranges_by": None}, "expected text"),
    ({"version": 1, "ranges": [["a", 0, 1]]}, "an object of pairs"),
    ({"version": 1, "ranges": {"a": [0]}}, "expected two numbers"),
    ({"version": 1, "ranges": {"a": [1, 0]}}, "the lesser first"),
    ({"version": 1, "tuned": {"a": ["0", 1]}}, "expected two numbers"),
    ({"version": 1, "ranges": {"a": [0, float("inf")]}}, "expected two numbers"),
    ({"version": 1, "ranges": {"a": "01"}}, "two numbers"),
])  # fmt: skip
def test_what_is_no_recipe(data: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        recipe_from_dict(data)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data))
    with pytest.raises(OptionError, match=rf"recipe\.json: .*{words}"):
        read_recipe(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot read the recipe .*none\.json: No such file"):
        read_recipe(tmp_path / "none.json")
    (tmp_path / "broken.json").write_bytes(b'{"version": 1')
    with pytest.raises(OptionError, match="no recipe: not JSON"):
        read_recipe(tmp_path / "broken.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="no recipe: not JSON"):
        read_recipe(tmp_path / "binary.json")
    with pytest.raises(OutputError, match="cannot write"):
        save_recipe(Recipe(), tmp_path / "broken.json" / "recipe.json")
    with pytest.raises(OptionError, match="expected two numbers"):
        save_recipe(Recipe(ranges={"a": (0.0, float("nan"))}), tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()


# -- what a tool is not told -----------------------------------------------------------------------------------------------


def test_what_a_tool_is_not_told() -> None:
    assert not_said(FULL, "tflite_qdebug") == ()
    assert not_said(Recipe(per_channel=False, float_nodes=("a",)), "tensorflow") == ()
    assert not_said(Recipe(biases_corrected=True, ranges={"a": (0, 1)}), "tensorflow") == (
        "other ranges of activations",
        "biases corrected",
    )
    assert not_said(Recipe(biases_corrected=True, ranges={"a": (0, 1)}), "ai-edge-quantizer") == ("biases corrected",)
    assert len(not_said(FULL, "tensorflow")) == 9
    with pytest.raises(OptionError, match=r"got tool 'tensorflw'.*Did you mean 'tensorflow'"):
        not_said(FULL, "tensorflw")
    with pytest.raises(OptionError, match="use quantizer_snippet"):
        converter_snippet(FULL, "ai-edge-quantizer")


# -- Python ----------------------------------------------------------------------------------------------------------------


def run(snippet: str, **given: Any) -> dict[str, Any]:
    scope: dict[str, Any] = dict(given)
    with tf_private.captured_chatter():
        exec(compile(snippet, "snippet", "exec"), scope)
    return scope


def test_ranges_as_python() -> None:
    assert run(ranges_literal(FULL))["ranges"] == {ODD: (-1.5, 2.25), "b": (0.0, 0.125)}
    assert run(ranges_literal(Recipe(), "mine"))["mine"] == {}
    exact = {"a": (-0.1, np.nextafter(np.float64(1 / 3), 1))}
    assert run(ranges_literal(Recipe(ranges=exact)))["ranges"] == exact


@pytest.mark.parametrize("recipe", [
    Recipe(), Recipe(per_channel=False), Recipe(per_channel_dense=False), Recipe(biases_corrected=True),
])  # fmt: skip
def test_tensorflow_alone_without_float_nodes(recipe: Recipe, tmp_path: Path) -> None:
    snippet = converter_snippet(recipe, "tensorflow", output=str(tmp_path / "it's.tflite"))
    scope = run(snippet, converter=models.converter("mixed"), representative_dataset=models.dataset("mixed", models.COUNT))
    expected = models.calibrated("mixed").quantize(
        "int8", per_channel=recipe.per_channel, per_channel_dense=recipe.per_channel_dense
    )
    assert (tmp_path / "it's.tflite").read_bytes() == scope["model"]
    for sample in models.samples("mixed", 3, seed=1):
        for ours, theirs in zip(models.outputs(scope["model"], sample), models.outputs(expected.data, sample), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert (
        "# Not the whole recipe: TensorFlow alone cannot be told of biases corrected." in snippet
    ) == recipe.biases_corrected


def test_tensorflow_alone_leaves_those_nodes_float(tmp_path: Path) -> None:
    chosen = (names()[0], names()[-2])
    snippet = converter_snippet(Recipe(float_nodes=chosen), "tensorflow", output=str(tmp_path / "fixed.tflite"))
    scope = run(snippet, converter=models.converter("mixed"), representative_dataset=models.dataset("mixed", models.COUNT))
    expected = models.calibrated("mixed").quantize("int8", denylisted_nodes=chosen).data
    assert len(float_operators(expected)) == 2
    assert float_operators(scope["model"]) == float_operators(expected)
    for sample in models.samples("mixed", 3, seed=1):
        np.testing.assert_array_equal(models.outputs(scope["model"], sample)[0], models.outputs(expected, sample)[0])


def test_with_this_package(tmp_path: Path) -> None:
    main = models.calibrated("chain").model.main
    middle = main.tensors[main.operators[0].outputs[0]]
    recipe = Recipe(ranges={middle.name: (-1.0, 1.0)}, float_nodes=(names("chain")[-1],), int16_nodes=(names("chain")[1],))
    path = tmp_path / 'a\'recipe "1".json'
    save_recipe(recipe, path)
    snippet = converter_snippet(recipe, recipe_path=str(path), output=str(tmp_path / "fixed.tflite"))
    scope = run(snippet, converter=models.converter("chain"), representative_dataset=models.dataset("chain", models.COUNT))
    made = Model(scope["model"])
    assert (tmp_path / "fixed.tflite").read_bytes() == made.data
    assert float_operators(made.data) == ["FULLY_CONNECTED"]
    kinds = {str(made.main.tensors[op.outputs[0]].dtype) for op in made.main.operators if op.name == "CONV_2D"}
    assert kinds == {"int8", "int16"}
    (scale,) = {
        float(t.quantization.scale[0]) for t in made.main.tensors if t.name == middle.name and t.quantization is not None
    }
    assert scale == pytest.approx(2 / 255)
    assert "Not the whole recipe" not in snippet
    assert tflite_qdebug.apply_recipe


def test_odd_names_survive_in_every_snippet(tmp_path: Path) -> None:
    snippet = converter_snippet(Recipe(float_nodes=(ODD, "b")), "tensorflow")
    scope = run(snippet.split("debugger = ")[0], converter=models.converter("chain"), representative_dataset=None)
    assert scope["options"].denylisted_nodes == [ODD, "b"]
    renamed = oddly_named()
    told = quantizer_snippet(Recipe(float_nodes=(odd_name(renamed),), ranges={odd_name(renamed): (-1.0, 2.0)}), renamed)
    lines = told.split("chosen = ")[0], told[told.index("ranges = {") : told.index("for name")]
    scope = run("".join(line.replace("from ai_edge_quantizer import quantizer\n", "") for line in lines))
    assert scope["ranges"] == {odd_name(renamed): (-1.0, 2.0)}
    assert scope["recipe"] == quantizer_recipe(Recipe(float_nodes=(odd_name(renamed),)), renamed)


# -- ai-edge-quantizer -----------------------------------------------------------------------------------------------------


def odd_name(model: Model) -> str:
    return model.main.tensors[model.main.operators[1].outputs[0]].name


@functools.cache
def oddly_named() -> Model:
    """Returns a model whose second node has an odd name, which the third one's contains."""
    made = models.calibrated("chain").float_model
    assert made is not None
    outputs = [operator.outputs[0] for operator in made.model.main.operators]
    new = {outputs[1]: ODD, outputs[0]: f"{ODD};x", outputs[2]: f"x;{ODD}"}
    return Model(with_renamed(made.model, lambda index, name: new.get(index, name)))


def quantized(data: bytes, recipe: list[dict[str, Any]], samples: list[list[np.ndarray]]) -> Model:
    """Returns what ai-edge-quantizer makes, with its own calibration."""
    quantizer = pytest.importorskip("ai_edge_quantizer.quantizer", reason="needs ai-edge-quantizer")
    chosen = quantizer.Quantizer(bytearray(data), json.loads(json.dumps(recipe)))
    model = Model(data)
    fed = [{s.key: v for s, v in zip(model.input_specs(), sample, strict=True)} for sample in samples]
    with tf_private.captured_chatter():
        calibration = chosen.calibrate({model.signatures[0].key: fed}, num_threads=1)
        return Model(bytes(chosen.quantize(calibration, enable_progress_report=False).quantized_model))


def test_the_quantizer_leaves_exactly_those_nodes_float() -> None:
    model = oddly_named()
    written = [model.main.tensors[op.outputs[0]].name for op in model.main.operators]
    for chosen in ([], [ODD], [written[0], written[-1]], written[1:]):
        made = quantized(model.data, quantizer_recipe(Recipe(float_nodes=tuple(chosen)), model), models.samples("chain", 4))
        main = made.main
        operators = [op for op in main.operators if op.name not in edit.BRIDGES]
        assert len(operators) == len(written)
        kinds = [str(main.tensors[op.outputs[0]].dtype) for op in operators]
        assert kinds == ["float32" if name in chosen else "int8" for name in written]
        assert all(main.tensors[index].is_float for index in (*main.inputs, *main.outputs))


def test_16_bit_nodes_and_weights_as_int8() -> None:
    model = oddly_named()
    written = [model.main.tensors[op.outputs[0]].name for op in model.main.operators]
    recipe = Recipe(int16_nodes=(ODD,), float_nodes=(written[0],), int8_weights=True)
    made = quantized(model.data, quantizer_recipe(recipe, model), models.samples("chain", 4))
    main = made.main
    operators = [op for op in main.operators if op.name not in edit.BRIDGES]
    kinds = [str(main.tensors[op.outputs[0]].dtype) for op in operators]
    assert kinds[:2] == ["float32", "int16"]
    assert set(kinds[2:]) == {"int8"}
    weights = main.producers[operators[0].inputs[1]]
    assert weights.name == "DEQUANTIZE"
    assert main.tensors[weights.inputs[0]].dtype == np.int8
    assert str(main.tensors[operators[1].inputs[1]].dtype) == "int8"


@pytest.mark.parametrize(("recipe", "conv", "dense"), [
    (Recipe(), 4, 3), (Recipe(per_channel=False), 1, 1), (Recipe(per_channel_dense=False), 4, 1),
])  # fmt: skip
def test_scales_per_channel(recipe: Recipe, conv: int, dense: int) -> None:
    model = oddly_named()
    main = quantized(model.data, quantizer_recipe(recipe, model), models.samples("chain", 2)).main
    scales = {op.name: len(main.tensors[op.inputs[1]].quantization.scale) for op in main.operators if len(op.inputs) > 2}  # type: ignore[union-attr]
    assert scales == {"CONV_2D": conv, "FULLY_CONNECTED": dense}


def test_the_quantizers_snippet(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer")
    model = oddly_named()
    recipe = Recipe(
        float_nodes=(odd_name(model),),
        ranges={model.main.tensors[model.main.operators[0].outputs[0]].name: (-4.0, 4.0)},
        rounded=True,
    )
    (tmp_path / "float.tflite").write_bytes(model.data)
    path, output = str(tmp_path / "float.tflite"), str(tmp_path / "it's.tflite")
    snippet = quantizer_snippet(recipe, model, path=path, output=output)
    assert snippet.startswith("# Not the whole recipe: ai-edge-quantizer alone cannot be told of weights rounded")
    key, name = model.signatures[0].key, model.input_specs()[0].key
    run(snippet, calibration_data={key: [{name: sample[0]} for sample in models.samples("chain", 4)]})
    made = Model((tmp_path / "it's.tflite").read_bytes())
    assert float_operators(made.data) == ["CONV_2D"]
    first = next(op for op in made.main.operators if op.name == "CONV_2D")
    assert made.main.tensors[first.outputs[0]].quantization.scale[0] == pytest.approx(8 / 255, rel=0.01)  # type: ignore[union-attr]


def test_several_outputs_and_wrong_names() -> None:
    def halves(x: Any) -> Any:
        import tensorflow as tf

        left, right = tf.split(tf.matmul(x, drawn(8, 8)), 2, -1)
        return tf.tanh(left), right + 1.0

    with tf_private.captured_chatter():
        made = tflite_qdebug.load_float_model(converter_of(halves, [spec(1, 8)], normal((1, 8))))
    split = next(op for op in made.model.main.operators if op.name == "SPLIT")
    outputs = [made.model.main.tensors[index].name for index in split.outputs]
    entry = quantizer_recipe(Recipe(float_nodes=(outputs[0],)), made.model)[-1]
    assert re.search(entry["regex"], ";".join(outputs) + ";")
    assert not re.search(entry["regex"], outputs[0] + ";")
    assert entry["algorithm_key"] == "no_quantize"
    with pytest.raises(OptionError, match=r"got denylisted node .*Did you mean"):
        quantizer_recipe(Recipe(float_nodes=(outputs[0] + "x",)), made.model)
    twice = Model(with_renamed(oddly_named(), lambda index, name: "same" if "x" in name else name))
    with pytest.raises(OptionError, match="a name that 3 operators have"):
        quantizer_recipe(Recipe(float_nodes=("same",)), twice)


def test_nothing_depends_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_recipe(FULL, "recipe.json")
    assert read_recipe("recipe.json") == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
