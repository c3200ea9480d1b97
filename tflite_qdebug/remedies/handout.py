"""What a user gets besides the ``.tflite``: the recipe as a file, and as Python and JSON for their own converter call."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug.conversion import check_denylist_nodes
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import Recipe

__all__ = [
    "RECIPE_VERSION",
    "TOOLS",
    "converter_snippet",
    "not_said",
    "quantizer_recipe",
    "quantizer_snippet",
    "ranges_literal",
    "read_recipe",
    "recipe_from_dict",
    "recipe_to_dict",
    "save_recipe",
]

#: Of the file that `save_recipe` writes. A file of a later one is refused.
RECIPE_VERSION = 1
#: What a recipe can be handed to.
TOOLS = ("tflite_qdebug", "tensorflow", "ai-edge-quantizer")

# What each field of a recipe means, where it asks for something, in words.
_WORDS: dict[str, str] = {
    "equalized": "weights equalized between layers",
    "per_channel": "one scale for all channels of a weight",
    "per_channel_dense": "one scale for the weights of a dense layer",
    "ranges": "other ranges of activations",
    "split": "tensors rescaled for one reader",
    "rounded": "weights rounded against their layer's output",
    "biases_corrected": "biases corrected",
    "tuned": "ranges tuned at the outputs",
    "float_nodes": "nodes left float",
    "int8_weights": "weights of float nodes kept as int8",
    "int16_nodes": "nodes with 16-bit activations",
    "trained": "quantization-aware training",
}
# Fields that a tool can be told.
_SAID = {
    "tensorflow": {"per_channel", "per_channel_dense", "float_nodes"},
    "ai-edge-quantizer": {"per_channel", "per_channel_dense", "ranges", "tuned", "float_nodes", "int8_weights", "int16_nodes"},
}
# Their words alone, as an explanation of another field.
_REMARKS = ("ranges_by",)


# -- the recipe as data ----------------------------------------------------------------------------------------------------


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as plain data for JSON, with its format version; a range is a pair of numbers."""
    found = {field.name: _plain(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}
    return {"format": "tflite_qdebug recipe", "version": RECIPE_VERSION, **found}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): [float(minimum), float(maximum)] for name, (minimum, maximum) in value.items()}
    return list(value) if isinstance(value, tuple) else value


def recipe_from_dict(data: Any) -> Recipe:
    """Returns the recipe that `recipe_to_dict` was given.

    A field that is absent has its default, so that a recipe may be written by hand.

    Raises:
        OptionError: For anything that is no recipe, one of a later version, an unknown field, or a value of the wrong kind.
    """
    if not isinstance(data, Mapping) or "version" not in data:
        raise OptionError(f"got {_shown(data)}, expected a recipe: an object with 'version' and the fields of a recipe")
    if not isinstance(data["version"], int) or isinstance(data["version"], bool):
        raise OptionError(f"got version {data['version']!r} of a recipe, expected a whole number")
    if data["version"] > RECIPE_VERSION:
        raise OptionError(
            f"got a recipe of version {data['version']}, expected {RECIPE_VERSION} or less: a newer tflite_qdebug wrote it"
        )
    known = {field.name: field for field in dataclasses.fields(Recipe)}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in ("format", "version"):
            continue
        if name not in known:
            raise OptionError(f"got field {name!r} in a recipe, which has no such one.{did_you_mean(str(name), known)}")
        values[name] = _READERS[_kind(name)](name, value)
    return Recipe(**values)


def _kind(name: str) -> type:
    default = getattr(Recipe(), name)
    return dict if isinstance(default, Mapping) else type(default)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _as_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"got {_shown(value)} for {name!r} of a recipe, expected true or false")
    return value


def _as_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"got {_shown(value)} for {name!r} of a recipe, expected text")
    return value


def _as_names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(entry, str) for entry in value):
        raise OptionError(f"got {_shown(value)} for {name!r} of a recipe, expected a list of names")
    return tuple(value)


def _as_ranges(name: str, value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, Mapping):
        raise OptionError(f"got {_shown(value)} for {name!r} of a recipe, expected an object of pairs by tensor name")
    return {tensor: _as_range(tensor, pair) for tensor, pair in value.items()}


def _as_range(tensor: str, pair: Any) -> tuple[float, float]:
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
        numbers = [float(end) for end in pair if isinstance(end, (int, float)) and not isinstance(end, bool)]
        if len(numbers) == 2 and all(map(math.isfinite, numbers)) and numbers[0] <= numbers[1]:
            return numbers[0], numbers[1]
    raise OptionError(f"got range {_shown(pair)} for {tensor!r} in a recipe, expected two numbers, the lesser first")


_READERS: dict[type, Callable[[str, Any], Any]] = {bool: _as_flag, str: _as_text, tuple: _as_names, dict: _as_ranges}


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Writes a recipe as JSON.

    Raises:
        OutputError: Where it cannot be written.
        OptionError: Where a range is not finite.
    """
    data = recipe_to_dict(recipe)
    recipe_from_dict(data)  # what cannot be read again is not written
    write_atomically(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe that `save_recipe` wrote.

    Raises:
        OptionError: Where there is none, or it is no recipe.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"cannot read the recipe {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{os.fspath(path)} is no recipe: not JSON ({error})") from error
    try:
        return recipe_from_dict(data)
    except OptionError as error:
        raise OptionError(f"{os.fspath(path)}: {error}") from error


# -- what a tool cannot be told --------------------------------------------------------------------------------------------


def not_said(recipe: Recipe, tool: str) -> tuple[str, ...]:
    """Returns what a recipe asks for and a tool cannot be told, in words; empty where it can be told all.

    Args:
        recipe: The recipe.
        tool: One of `TOOLS`.

    Raises:
        OptionError: For another tool.
    """
    if tool not in TOOLS:
        raise OptionError(f"got tool {tool!r}, expected one of {', '.join(TOOLS)}.{did_you_mean(tool, TOOLS)}")
    if tool == "tflite_qdebug":
        return ()
    plain = Recipe()
    asked = [field.name for field in dataclasses.fields(recipe) if getattr(recipe, field.name) != getattr(plain, field.name)]
    return tuple(_WORDS.get(name, name) for name in asked if name not in _SAID[tool] and name not in _REMARKS)


# -- Python to paste -------------------------------------------------------------------------------------------------------


def ranges_literal(recipe: Recipe, name: str = "ranges") -> str:
    """Returns the ranges as a Python dict, one line each: ``{tensor of the float model: (minimum, maximum)}``.

    Ranges that were tuned at the outputs stand for the others, as they do in the recipe.
    """
    ranges = {**recipe.ranges, **recipe.tuned}
    rows = [f"    {tensor!r}: ({float(low)!r}, {float(high)!r})," for tensor, (low, high) in ranges.items()]
    return "\n".join([f"{name} = {{", *rows, "}"]) + "\n" if rows else f"{name} = {{}}\n"


def converter_snippet(
    recipe: Recipe, tool: str = "tflite_qdebug", *, recipe_path: str = "recipe.json", output: str = "fixed.tflite"
) -> str:
    """Returns Python to be pasted behind a user's own converter call.

    It reads ``converter`` (a ``tf.lite.TFLiteConverter``) and ``representative_dataset`` (a function, as TensorFlow wants it),
    leaves the model's bytes in ``model``, and writes them.

    Args:
        recipe: The recipe.
        tool: ``tflite_qdebug``: all of the recipe, from its file; ``tensorflow``: without this package, as far as TensorFlow
            alone can be told.
        recipe_path: The file that `save_recipe` wrote.
        output: The file that the snippet writes.

    Raises:
        OptionError: For another tool.
    """
    if tool == "ai-edge-quantizer":
        raise OptionError("got tool 'ai-edge-quantizer', which takes a float .tflite, no converter: use quantizer_snippet")
    missing = not_said(recipe, tool)
    lines = _with_this_package(recipe_path) if tool == "tflite_qdebug" else _with_tensorflow(recipe)
    lines = [
        "# To be put behind what makes `converter`, a tf.lite.TFLiteConverter of the float model, and",
        "# `representative_dataset`, the function that calibrated it.",
        *_about_missing("TensorFlow", missing),
        *lines,
        f"with open({str(output)!r}, 'wb') as file:",
        "    file.write(model)",
    ]
    return "\n".join(lines) + "\n"


def _about_missing(tool: str, missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    return [f"# Not the whole recipe: {tool} alone cannot be told of {'; '.join(missing)}."]


def _with_this_package(recipe_path: str) -> list[str]:
    return [
        "import tflite_qdebug",
        "",
        "float_model = tflite_qdebug.load_float_model(converter)",
        f"model = tflite_qdebug.apply_recipe(float_model, {str(recipe_path)!r}, representative_dataset)",
    ]


def _with_tensorflow(recipe: Recipe) -> list[str]:
    lines = ["import tensorflow as tf", "", "converter.optimizations = [tf.lite.Optimize.DEFAULT]"]
    lines.append("converter.representative_dataset = representative_dataset")
    if not recipe.per_channel:
        lines.append("converter._experimental_disable_per_channel = True")
    if not recipe.per_channel_dense:
        lines.append("converter._experimental_disable_per_channel_quantization_for_dense_layers = True")
    if not recipe.float_nodes:
        return [*lines, "model = converter.convert()"]
    return [
        *lines,
        "options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=[",
        *(f"    {name!r}," for name in recipe.float_nodes),
        "])",
        "debugger = tf.lite.experimental.QuantizationDebugger(",
        "    converter=converter, debug_dataset=representative_dataset, debug_options=options)",
        "model = debugger.get_nondebug_quantized_model()",
    ]


# -- ai-edge-quantizer -----------------------------------------------------------------------------------------------------


def quantizer_recipe(recipe: Recipe, float_model: Any) -> list[dict[str, Any]]:
    """Returns the recipe as ai-edge-quantizer takes it: nodes float, nodes 16x8, the rest int8, inputs and outputs float.

    Later entries win; one that an operator does not support is passed over there, so that a 16-bit node which has no such form
    stays int8. Ranges are not part of it: they go into the calibration result, see `quantizer_snippet`.

    Between int8 and 16-bit nodes that package puts a QUANTIZE from int8 to int16, which LiteRT 2.3 runs and TensorFlow 2.21
    refuses; `int16.with_int16_nodes` makes models that both run.

    Args:
        recipe: The recipe; what it asks for besides stands in ``not_said(recipe, "ai-edge-quantizer")``.
        float_model: The float model (bytes, path or `Model`), which tells what the quantizer will call the nodes.

    Returns:
        Plain data, for ``Quantizer(float_model, quantization_recipe=...)`` or JSON.

    Raises:
        OptionError: For a node that the float model has not, or one that shares its name with others.
    """
    model = float_model if isinstance(float_model, Model) else Model(float_model)
    granularity = "CHANNELWISE" if recipe.per_channel else "TENSORWISE"
    found = [_entry(".*", "*", _static(8, granularity))]
    if recipe.per_channel and not recipe.per_channel_dense:
        found.append(_entry(".*", "FULLY_CONNECTED", _static(8, "TENSORWISE")))
    found += [_entry(".*", end, None) for end in ("INPUT", "OUTPUT")]
    for name in recipe.int16_nodes:
        found.append(_entry(_scope(model, name)[0], "*", _static(16, granularity)))
    for name in recipe.float_nodes:
        scope, op_name = _scope(model, name)
        found.append(_entry(scope, "*", None))
        if recipe.int8_weights and op_name in _WEIGHTED:
            found.append(_entry(scope, _WEIGHTED[op_name], _weights(granularity)))
    return found


# Operators whose weights alone it can quantize, by what the schema calls them.
_WEIGHTED = {
    "BATCH_MATMUL": "BATCH_MATMUL",
    "CONV_2D": "CONV_2D",
    "DEPTHWISE_CONV_2D": "DEPTHWISE_CONV_2D",
    "EMBEDDING_LOOKUP": "EMBEDDING_LOOKUP",
    "FULLY_CONNECTED": "FULLY_CONNECTED",
    "TRANSPOSE_CONV": "CONV_2D_TRANSPOSE",
}
# It cuts what it matches against off there.
_LONGEST_SCOPE = 10_000


def _scope(model: Model, name: str) -> tuple[str, str]:
    """Returns the regular expression for one node alone, and the node's type."""
    (known,) = check_denylist_nodes(model, [name])
    operators = model.main.nodes[known]
    if len({operator.index for operator in operators}) > 1:
        raise OptionError(
            f"got node {known!r}, a name that {len(operators)} operators have: ai-edge-quantizer refuses such a model"
        )
    names = [model.main.tensors[index].name for index in operators[0].outputs]
    scope = "".join(f"{part};" for part in names if part)
    end = "$" if len(scope) <= _LONGEST_SCOPE else ""
    return "^" + re.escape(scope[:_LONGEST_SCOPE]) + end, operators[0].name


def _entry(regex: str, operation: str, config: dict[str, Any] | None) -> dict[str, Any]:
    algorithm = "no_quantize" if config is None else "min_max_uniform_quantize"
    nothing = {"compute_precision": "FLOAT", "explicit_dequantize": False, "skip_checks": False, "min_weight_elements": 0}
    return {"regex": regex, "operation": operation, "algorithm_key": algorithm, "op_config": config or nothing}


def _tensor(bits: int, symmetric: bool, granularity: str) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": symmetric, "granularity": granularity, "dtype": "INT"}


def _static(bits: int, granularity: str) -> dict[str, Any]:
    return {
        "activation_tensor_config": _tensor(bits, bits == 16, "TENSORWISE"),
        "weight_tensor_config": _tensor(8, True, granularity),
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
        "skip_checks": False,
        "min_weight_elements": 0,
    }


def _weights(granularity: str) -> dict[str, Any]:
    return {
        "weight_tensor_config": _tensor(8, True, granularity),
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
        "skip_checks": False,
        "min_weight_elements": 0,
    }


def quantizer_snippet(recipe: Recipe, float_model: Any, *, path: str = "float.tflite", output: str = "fixed.tflite") -> str:
    """Returns Python that makes the model with ai-edge-quantizer.

    It reads ``calibration_data``, as that package takes it: ``{signature key: samples as {input name: values}}``.

    Args:
        recipe: The recipe.
        float_model: As for `quantizer_recipe`.
        path: The float model's file.
        output: The file that the snippet writes.

    Raises:
        OptionError: As `quantizer_recipe`.
    """
    entries = [f"    {entry!r}," for entry in quantizer_recipe(recipe, float_model)]
    lines = [
        *_about_missing("ai-edge-quantizer", not_said(recipe, "ai-edge-quantizer")),
        "import numpy as np",
        "from ai_edge_quantizer import quantizer",
        "",
        "recipe = [",
        *entries,
        "]",
        f"chosen = quantizer.Quantizer({str(path)!r}, quantization_recipe=recipe)",
        "calibration = chosen.calibrate(calibration_data)",
    ]
    if recipe.ranges or recipe.tuned:
        lines += [
            *ranges_literal(recipe).splitlines(),
            "for name, (minimum, maximum) in ranges.items():",
            "    shape = np.shape(calibration.get(name, {}).get('min', 0.0))",
            "    calibration[name] = {'min': np.full(shape, minimum, np.float32), 'max': np.full(shape, maximum, np.float32)}",
        ]
    lines.append(f"chosen.quantize(calibration).export_model({str(output)!r}, overwrite=True)")
    return "\n".join(lines) + "\n"
