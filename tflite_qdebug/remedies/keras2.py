"""A Keras 3 model as a tf-keras model with the same weights, since quantization-aware training exists for tf-keras alone.

The configuration is translated layer by layer, and the outputs of both models are compared on random inputs: a layer that
means something else in tf-keras is an error, not another model.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.errors import MissingPackageError, ModelError

__all__ = ["as_tf_keras", "import_tf_keras"]

# Of Keras 3 alone, and at their defaults without a meaning.
_DROPPED = ("quantization_config", "optional", "lora_rank", "lora_alpha")
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Operations of Keras 3 between layers, such as x * y, and the layer that does the same.
_MERGES = {"Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "Maximum": "Maximum", "Minimum": "Minimum"}
_UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    "Negative": ("Rescaling", {"scale": -1.0}),
    "Relu": ("ReLU", {}),
    "Relu6": ("ReLU", {"max_value": 6.0}),
    "Sigmoid": ("Activation", {"activation": "sigmoid"}),
    "Tanh": ("Activation", {"activation": "tanh"}),
}
_TOLERANCE = 1e-4
_UNKNOWN_SIZE = 32


def import_tf_keras() -> Any:
    """Imports tf-keras.

    Raises:
        MissingPackageError: Where it is not installed, or does not fit TensorFlow.
    """
    tf_private.tensorflow()
    try:
        return importlib.import_module("tf_keras")
    except ImportError as error:
        raise MissingPackageError(
            f"quantization-aware training needs tf-keras, which cannot be imported ({error}); pip install "
            "tf-keras, of TensorFlow's version"
        ) from error


def as_tf_keras(model: Any) -> Any:
    """Returns a tf-keras model of its own, with the structure and the weights of ``model``.

    Args:
        model: A functional or sequential model of Keras 3 or tf-keras, or the path of a ``.keras`` or ``.h5`` file. It is not
            written to, and shares no variable with what is returned.

    Raises:
        ModelError: Where it is no such model, a layer cannot be translated (named, with the reason), or the outputs differ.
        MissingPackageError: Where tf-keras is missing.
    """
    tf_keras = import_tf_keras()
    if isinstance(model, (str, os.PathLike)):
        if not Path(model).exists():
            raise ModelError(f"cannot read the model {os.fspath(model)}: No such file or directory")
        model = tf_private.load_keras_model(os.fspath(model))
    if not tf_private.is_keras_model(model):
        raise ModelError(
            f"got {type(model).__module__}.{type(model).__qualname__}, expected a Keras model (Keras 3 or tf-keras), or the "
            "path of a .keras or .h5 file: training needs layers, which a .tflite or a SavedModel no longer has"
        )
    config = _checked_config(model)
    if isinstance(model, tf_keras.Model):
        copy = tf_keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        # The same form for sequential models, so that their layers are connected by tensors too.
        return tf_keras.Model(copy.input, copy.output, name=copy.name)
    translated = _translate(model, config, tf_keras)
    _require_equal_outputs(model, translated)
    return translated


def _checked_config(model: Any) -> dict[str, Any]:
    """Returns the configuration of a built model without models in it, whose layers are used once."""
    try:
        config = model.get_config()
    except NotImplementedError:
        config = {}
    if "layers" not in config:
        raise ModelError(
            f"got the subclassed model {type(model).__qualname__}, expected a functional or sequential one: the layers of "
            "others cannot be taken apart for quantization-aware training"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ModelError(f"the model {model.name!r} has no input shape yet; add an Input in front of its layers")
    nested = [layer.name for layer in model.layers if hasattr(layer, "layers")]
    if nested:
        raise ModelError(
            f"the layer {nested[0]!r} is a model itself, which tensorflow-model-optimization cannot quantize; put that model's "
            "layers in its place"
        )
    for layer in config["layers"]:
        uses = len(layer.get("inbound_nodes", ()))
        if uses > 1:
            raise ModelError(
                f"the layer {layer['config']['name']!r} is used {uses} times, which tensorflow-model-optimization cannot "
                "quantize; give each use a layer of its own"
            )
    return config


# --------------------------------------------------------------------------------------------------------- translation


def _translate(model: Any, config: dict[str, Any], tf_keras: Any) -> Any:
    names = _input_names(model, config)
    inputs = [
        tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=_dtype(tensor.dtype), name=name)
        for tensor, name in zip(model.inputs, names, strict=True)
    ]
    if "input_layers" in config:
        made = {name: [tensor] for name, tensor in zip(names, inputs, strict=True)}
        for layer in config["layers"]:
            if layer["class_name"] != "InputLayer":
                (node,) = layer["inbound_nodes"]
                arguments, keywords = (_tensors(node[part], made) for part in ("args", "kwargs"))
                made[layer["name"]] = _flat(_call(layer, arguments, keywords, tf_keras))
        outputs = _structure(config["output_layers"], made)
    else:
        outputs = inputs[0]
        for layer in config["layers"]:
            if layer["class_name"] != "InputLayer":
                outputs = _call(layer, (outputs,), {}, tf_keras)
    # A list of one is another structure than a tensor, also in what fit() and predict() expect.
    inputs = inputs[0] if len(inputs) == 1 else inputs
    translated = tf_keras.Model(inputs, outputs, name=model.name)
    for layer in model.layers:
        if layer.get_weights():
            _copy_weights(layer, translated)
    return translated


def _input_names(model: Any, config: dict[str, Any]) -> list[str]:
    if "input_layers" not in config:
        return [tensor.name.partition(":")[0] for tensor in model.inputs]
    return list(_layer_names(config["input_layers"]))


def _layer_names(value: Any) -> Iterator[str]:
    """Yields the names in a structure of ``[layer, node, tensor]``, of dictionaries in the order of their sorted keys."""
    if isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[0], str):
        yield value[0]
        return
    for entry in (value[key] for key in sorted(value)) if isinstance(value, dict) else value:
        yield from _layer_names(entry)


def _dtype(dtype: Any) -> str:
    return getattr(dtype, "name", dtype)


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _tensors(value: Any, made: dict[str, list[Any]]) -> Any:
    """Returns arguments of a call with the tensors in place of their descriptions."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            name, _, index = value["config"]["keras_history"]
            return made[name][index]
        return {key: _tensors(entry, made) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_tensors(entry, made) for entry in value)
    return value


def _structure(value: Any, made: dict[str, list[Any]]) -> Any:
    """Returns the model's outputs in the structure that its configuration describes."""
    if isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[0], str):
        return made[value[0]][value[2]]
    if isinstance(value, dict):
        return {key: _structure(entry, made) for key, entry in value.items()}
    return [_structure(entry, made) for entry in value]


def _call(layer: dict[str, Any], arguments: Any, keywords: dict[str, Any], tf_keras: Any) -> Any:
    """Builds one layer and applies it.

    Raises:
        ModelError: With the layer and the reason.
    """
    name, kind = layer["config"]["name"], layer["class_name"]
    try:
        if str(layer.get("module")).startswith("keras.src.ops"):
            return _operation(kind, name, list(arguments), tf_keras)
        return _layer(layer, tf_keras)(*arguments, **keywords)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the layer {name!r} ({kind}) cannot be translated from Keras 3 to tf-keras: {str(error).strip() or repr(error)}; "
            "build the model with tf_keras and give that"
        ) from error


def _operation(kind: str, name: str, operands: list[Any], tf_keras: Any) -> Any:
    """Applies the layer that does what an operation does, such as x + 3.0."""
    constants = [operand for operand in operands if isinstance(operand, (int, float))]
    tensors = [operand for operand in operands if hasattr(operand, "shape") and not isinstance(operand, np.ndarray)]
    if kind in _MERGES and len(tensors) == 2:
        return getattr(tf_keras.layers, _MERGES[kind])(name=name)(tensors)
    if kind in _UNARY and len(tensors) == len(operands) == 1:
        layer, options = _UNARY[kind]
        return getattr(tf_keras.layers, layer)(name=name, **options)(tensors[0])
    if len(tensors) == len(constants) == 1:
        rescaling = _rescaling(kind, float(constants[0]), operands[0] is tensors[0])
        if rescaling is not None:
            return tf_keras.layers.Rescaling(*rescaling, name=name)(tensors[0])
    raise ModelError(_no_translation(name, f"operation {kind}"))


def _rescaling(kind: str, constant: float, tensor_first: bool) -> tuple[float, float] | None:
    """Returns scale and offset of an operation on a tensor and a number."""
    if kind == "Add":
        return 1.0, constant
    if kind == "Multiply":
        return constant, 0.0
    if kind == "Subtract":
        return (1.0, -constant) if tensor_first else (-1.0, constant)
    if kind in ("Divide", "TrueDivide") and tensor_first:
        return 1.0 / constant, 0.0
    return None


def _no_translation(name: str, what: str) -> str:
    return (
        f"the layer {name!r} cannot be translated from Keras 3 to tf-keras: there is no translation of the {what}; build the "
        "model with tf_keras, or with other layers"
    )


def _layer(layer: dict[str, Any], tf_keras: Any) -> Any:
    name, kind = layer["config"]["name"], layer["class_name"]
    if not str(layer.get("module")).startswith("keras.layers") or not hasattr(tf_keras.layers, kind):
        raise ModelError(_no_translation(name, f"layer class {kind}"))
    renamed = _RENAMED.get(kind, {})
    config = {renamed.get(key, key): _plain(value) for key, value in layer["config"].items() if _is_kept(key)}
    if isinstance(config.get("activation"), str):
        config["activation"] = _activation(config["activation"])
    return getattr(tf_keras.layers, kind)(**config)


def _is_kept(key: str) -> bool:
    # The weights are copied, so how they would start is of no use.
    return key not in _DROPPED and not key.endswith("_initializer")


def _plain(value: Any) -> Any:
    """Returns a value of a layer's configuration as tf-keras writes it."""
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    if isinstance(value, dict) and str(value.get("module", "")).startswith("keras"):
        return {"class_name": value["class_name"], "config": value["config"]}
    return value


def _activation(name: str) -> Any:
    """Returns an activation; hard_sigmoid has another formula in Keras 3, and some have other names in tf-keras."""
    tf = tf_private.tensorflow()

    def hard_sigmoid(x: Any) -> Any:
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x: Any) -> Any:
        return x * hard_sigmoid(x)

    own = {"relu6": tf.nn.relu6, "hard_sigmoid": hard_sigmoid, "hard_silu": hard_silu, "hard_swish": hard_silu, "silu": "swish"}
    return own.get(name, name)


def _copy_weights(layer: Any, translated: Any) -> None:
    values = layer.get_weights()
    target = translated.get_layer(layer.name)
    shapes = [tuple(weight.shape) for weight in target.weights]
    if shapes != [value.shape for value in values]:
        raise ModelError(
            f"the layer {layer.name!r} ({type(layer).__name__}) cannot be translated from Keras 3 to tf-keras: it has weights "
            f"of the shapes {[value.shape for value in values]} there and {shapes} here; build the model with tf_keras"
        )
    target.set_weights(values)


# ---------------------------------------------------------------------------------------------------------------- check


def _require_equal_outputs(model: Any, translated: Any) -> None:
    samples = [_random_input(tensor) for tensor in model.inputs]
    frameworks = importlib.import_module("keras"), import_tf_keras()
    pairs = list(zip(frameworks, (model, translated), strict=True))
    expected, got = (_outputs(framework, one, one.outputs, samples) for framework, one in pairs)
    if _are_equal(expected, got):
        return
    name = next(_differing_layers(pairs, samples), None)
    worst = max(float(np.abs(one - other).max()) for one, other in zip(expected, got, strict=True))
    raise ModelError(
        f"the model translated to tf-keras gives other outputs than the Keras 3 model (by up to {worst:.3g})"
        + (f", first in the layer {name!r}, which computes something else in tf-keras" if name else "")
        + "; build the model with tf_keras and give that"
    )


def _random_input(tensor: Any) -> np.ndarray:
    generator = np.random.default_rng(0)
    shape = tuple(_UNKNOWN_SIZE if size is None else size for size in tensor.shape[1:])
    shape = (tensor.shape[0] or 2, *shape)
    dtype = np.dtype(_dtype(tensor.dtype))
    if dtype.kind == "f":
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _outputs(framework: Any, model: Any, tensors: Any, samples: list[np.ndarray]) -> list[np.ndarray]:
    """Computes tensors of a model, whatever the structure of its inputs and outputs."""
    outputs = framework.Model(model.inputs, tensors)(samples, training=False)
    return [np.asarray(output) for output in _flat(outputs)]


def _are_equal(expected: list[np.ndarray], got: list[np.ndarray]) -> bool:
    return len(expected) == len(got) and all(
        one.shape == other.shape and np.abs(one - other).max(initial=0) <= _TOLERANCE * max(1.0, np.abs(one).max(initial=0))
        for one, other in zip(expected, got, strict=True)
    )


def _differing_layers(pairs: list[tuple[Any, Any]], samples: list[np.ndarray]) -> Iterator[str]:
    """Yields the layers whose outputs differ, in order."""
    model, translated = (one for _, one in pairs)
    known = {layer.name for layer in translated.layers}
    for layer in model.layers:
        if layer.name in known and hasattr(layer, "output"):
            expected, got = (_outputs(framework, one, one.get_layer(layer.name).output, samples) for framework, one in pairs)
            if not _are_equal(expected, got):
                yield layer.name
