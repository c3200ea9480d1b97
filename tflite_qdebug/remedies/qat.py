"""Quantization-aware training of a Keras model, whole or of some layers, and its conversion to int8.

tensorflow-model-optimization puts the rounding of int8 into the model, and training makes the weights robust against it. Two
things are done here that it leaves to its user. The ranges of activations start where the float model's are, not at -6 to 6,
from where their moving average (decay 0.999) would take thousands of steps to come away. And what was not trained
quantization-aware gets calibrated ranges at the conversion, so that the whole model is int8 and not an archipelago.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug import edit, tf_private
from tflite_qdebug.conversion import FloatModel, FloatNode, QuantizedModel, load_float_model
from tflite_qdebug.datasets import InputSpec, open_dataset
from tflite_qdebug.errors import ConversionError, DatasetError, ModelError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.model import Model
from tflite_qdebug.progress import track
from tflite_qdebug.record import encoded
from tflite_qdebug.remedies.annotation import Annotation, annotate, import_tfmot
from tflite_qdebug.remedies.keras2 import as_tf_keras, import_tf_keras
from tflite_qdebug.shown import Shown

__all__ = ["QatResult", "train_quantization_aware"]

#: Loss that makes the outputs of the float model the target, for data without labels.
DISTILLATION = "distillation"
_FORMAT_VERSION = 1
_IO_TYPES = ("float32", "int8", "uint8")
# Ranges are taken from so many batches of the training data at most.
_RANGE_BATCHES = 64
# Where the input that is rearranged is not the first.
_DATA_INPUT = {"SPLIT": 1}
# Operators whose output has the scale of their input, so that a learned range holds behind them too.
_SAME_SCALE = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "PADV2", "MIRROR_PAD",
               "SLICE", "STRIDED_SLICE", "GATHER", "SPLIT", "UNPACK", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
               "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "TILE")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class QatResult(Shown):
    """A model trained quantization-aware.

    Attributes:
        model: The tf-keras model with its quantizers, trained.
        float_keras_model: The model that training started from, as tf-keras, untouched.
        annotation: Which layers were trained quantization-aware, and which could not be.
        history: For each epoch ``{"epoch", "loss"}``, with ``"accuracy"`` where labels are classes; means over the epoch's
            samples while they were trained on.
        options: What was asked for, and what was found (loss, samples).
        notes: What the reader must know.
    """

    model: Any
    float_keras_model: Any
    annotation: Annotation
    history: tuple[dict[str, float], ...]
    options: dict[str, Any]
    notes: tuple[str, ...]

    @functools.cached_property
    def float_model(self) -> FloatModel:
        """The model before training, converted."""
        return load_float_model(self.float_keras_model)

    @functools.cached_property
    def trained_float_model(self) -> FloatModel:
        """The trained weights in float, converted: the quantized model's own float twin, without the quantizers."""
        return load_float_model(without_quantizers(self.model))

    def convert(
        self,
        representative_dataset: Any = None,
        kind: str = "int8",
        *,
        input_type: str | None = None,
        output_type: str | None = None,
        limit: int | None = None,
        progress: bool | None = None,
    ) -> QuantizedModel:
        """Quantizes the trained model with the ranges that it learned.

        Args:
            representative_dataset: Anything that `open_dataset` takes; gives ranges to what was not trained
                quantization-aware, which stays float without it.
            kind: ``int8`` (falls back to float where it must) or ``full_integer``.
            input_type: numpy name of the inputs' type, as in `CalibratedModel.quantize`.
            output_type: The same for the outputs.
            limit: Take the first so many samples.
            progress: As in `progress.track`.

        Raises:
            OptionError: For another kind or type.
            ConversionError: Where TensorFlow fails, or ``full_integer`` leaves an operator in float.
        """
        if kind not in ("int8", "full_integer"):
            raise OptionError(f"got kind {kind!r}, expected 'int8' or 'full_integer': training knew of no other integers")
        model = _converted(self.model)
        data = model.data
        if representative_dataset is not None:
            data = _with_missing_ranges(model, representative_dataset, limit, progress)
        return _quantized(data, kind, input_type, output_type)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: options, layers, history, notes."""
        return {
            "format": "tflite_qdebug qat",
            "format_version": _FORMAT_VERSION,
            "layers": list(self.annotation.layers),
            "skipped": self.annotation.skipped,
            "nodes": self.annotation.nodes,
            "options": self.options,
            "history": list(self.history),
            "notes": list(self.notes),
        }

    def save(self, folder: str | os.PathLike[str], **more: Any) -> None:
        """Writes the trained model and all that is known about it.

        ``qat.h5`` has the quantizers, and is loaded inside ``tfmot.quantization.keras.quantize_scope()`` (a ``.keras`` file
        would not load again: tf-keras saves the weights inside tensorflow-model-optimization's wrappers twice).
        ``qat_float.keras`` has the trained weights alone. Beside them ``annotation.py`` and ``qat.json``.

        Args:
            folder: Where to.
            **more: Plain data to be put into ``qat.json``, such as scores.

        Raises:
            OutputError: Where it cannot be written.
        """
        folder = Path(folder)
        write_atomically(folder / "qat.h5", _saved(self.model, "model.h5"))
        write_atomically(folder / "qat_float.keras", _saved(without_quantizers(self.model), "model.keras"))
        write_atomically(folder / "annotation.py", self.annotation.code().encode())
        content = json.dumps(encoded({**self.to_dict(), **more}), indent=1, allow_nan=False, default=str)
        write_atomically(folder / "qat.json", content.encode())

    def __repr__(self) -> str:
        return f"QatResult({self.model.name}, {len(self.annotation.layers)} layers, {len(self.history)} epochs)"


def train_quantization_aware(
    model: Any,
    training_data: Any,
    *,
    layers: Sequence[str] | None = None,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    loss: Any = None,
    label_offset: int = 0,
    freeze_batch_normalization: bool = False,
    strict: bool = False,
    limit: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> QatResult:
    """Trains a float model quantization-aware, with Adam, and leaves it as it is.

    Args:
        model: A trained functional or sequential model of Keras 3 or tf-keras, or the path of its ``.keras`` or ``.h5`` file.
        training_data: Two arrays ``(inputs, labels)``, a ``tf.data.Dataset`` in batches or without, or anything that
            `open_dataset` takes, with labels or without. It is held in memory.
        layers: Names of Keras layers or nodes of a report, as in `annotate`; None for the whole model.
        epochs: Passes over the data.
        batch_size: Samples in a step; what is left over at the end of an epoch waits for the next one.
        learning_rate: Adam's; a tenth to a hundredth of what the float model was trained with.
        loss: Anything that tf-keras takes, or ``"distillation"``: the float model's outputs are the target. None: sparse
            categorical cross-entropy where there are labels, which must be numbers of classes; distillation where not.
        label_offset: Added to each label, for models that count a background class first.
        freeze_batch_normalization: Keep the statistics, scales and offsets of batch normalizations as they are.
        strict: Raise where a layer cannot be trained quantization-aware, instead of leaving it to calibration.
        limit: Take the first so many samples.
        seed: For the order of samples and dropout. The same seed gives the same weights on the same machine and versions.
        progress: As in `progress.track`.

    Raises:
        OptionError: For an option that means nothing here, or a layer that the model does not have.
        ModelError: Where the model cannot be translated to tf-keras or quantized.
        DatasetError: For a wrong sample, or labels that do not fit the loss.
        MissingPackageError: Where tensorflow-model-optimization or tf-keras is missing.
    """
    _check_options(epochs, batch_size, learning_rate)
    import_tfmot()
    with _kept_random_state():
        float_keras_model = as_tf_keras(model)
        annotation = annotate(float_keras_model, layers, strict=strict)
        data = _read(training_data, float_keras_model, limit, label_offset, progress)
        criterion = _criterion(loss, float_keras_model, data, batch_size)
        trainee = _quantization_aware(float_keras_model, annotation.layers, seed, freeze_batch_normalization)
        _start_ranges(trainee, data.inputs, batch_size, seed)
        history = _fit(trainee, data.inputs, criterion, epochs, batch_size, learning_rate, seed, progress)
    options = {
        "layers": None if layers is None else list(layers),
        "epochs": epochs,
        "batch_size": min(batch_size, data.count),
        "learning_rate": learning_rate,
        "loss": criterion.name,
        "label_offset": label_offset,
        "freeze_batch_normalization": freeze_batch_normalization,
        "seed": seed,
        "training_data": data.description,
        "samples": data.count,
    }
    notes = [f"not trained quantization-aware, but calibrated: {refusal}" for refusal in annotation.refusals()]
    if criterion.name == DISTILLATION and loss is None:
        notes.append("the training data have no labels: the float model's outputs were the target")
    return QatResult(trainee, float_keras_model, annotation, tuple(history), options, tuple(notes))


@contextlib.contextmanager
def _kept_random_state() -> Iterator[None]:
    """Puts Python's random state back: tf-keras draws from it for the layers that it builds."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _check_options(epochs: int, batch_size: int, learning_rate: float) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise OptionError(f"got {name} {value!r}, expected a whole number of at least 1")
    if not (isinstance(learning_rate, (int, float)) and 0 < learning_rate < math.inf):
        raise OptionError(f"got learning_rate {learning_rate!r}, expected a number above 0")


# ---------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class _Data:
    """Training samples in memory: one array (samples, ...) for each input, and labels (samples, ...) or None."""

    inputs: list[np.ndarray]
    labels: np.ndarray | None
    description: str

    @property
    def count(self) -> int:
        return len(self.inputs[0])


def _read(source: Any, model: Any, limit: int | None, label_offset: int, progress: bool | None) -> _Data:
    specs = _specs(model)
    dataset = open_dataset(_as_table(source, specs), specs, "training data", limit, labels=True)
    samples = list(track(dataset, "reading training data", dataset.length, progress))
    try:
        inputs = [np.concatenate(arrays) for arrays in zip(*(sample.inputs for sample in samples), strict=True)]
    except ValueError as error:
        raise DatasetError(
            f"training data: the samples have different shapes, expected equal ones to train on ({error})"
        ) from error
    labelled = sum(sample.label is not None for sample in samples)
    if 0 < labelled < len(samples):
        raise DatasetError(f"training data: {labelled} of {len(samples)} samples have a label, expected all of them, or none")
    labels = np.stack([np.asarray(sample.label) for sample in samples]) if labelled else None
    if labels is not None and label_offset:
        labels = labels + label_offset
    return _Data(inputs, labels, dataset.description)


def _specs(model: Any) -> list[InputSpec]:
    specs = []
    for name, tensor in zip(model.input_names, model.inputs, strict=True):
        shape = tuple(-1 if size is None else size for size in tensor.shape)
        if shape[0] > 1:
            raise OptionError(f"the model's input {name!r} has a batch of {shape[0]}, expected one of any size; build it so")
        specs.append(InputSpec(f"serving_default_{name}:0", (1, *shape[1:]), (np.dtype(tensor.dtype.name),), name))
    return specs


def _as_table(source: Any, specs: Sequence[InputSpec]) -> Any:
    """Returns two arrays, inputs and labels, as the table that `open_dataset` takes; all else as it is."""
    if isinstance(source, tuple) and len(source) == 2 and all(hasattr(part, "shape") for part in source):
        inputs, labels = (np.asarray(part) for part in source)
        if len(specs) != 1:
            raise DatasetError(f"training data: got one array of inputs, expected {len(specs)}; give a dict by input name")
        if inputs.shape[:1] != labels.shape[:1]:
            raise DatasetError(
                f"training data: got inputs of shape {inputs.shape} and labels of shape {labels.shape}, expected as many of "
                "each"
            )
        return {specs[0].key or specs[0].name: inputs, "labels": labels}
    return source


# ---------------------------------------------------------------------------------------------------------------- loss


@dataclasses.dataclass(frozen=True)
class _Criterion:
    """What training makes small.

    Attributes:
        name: For the saved record.
        loss: What tf-keras takes, one or one for each output.
        targets: One array (samples, ...) for each output.
        counts_accuracy: Whether the targets are numbers of classes.
    """

    name: str
    loss: Any
    targets: list[np.ndarray]
    counts_accuracy: bool = False


def _criterion(loss: Any, model: Any, data: _Data, batch_size: int) -> _Criterion:
    keras = import_tf_keras()
    if loss == DISTILLATION or (loss is None and data.labels is None):
        outputs = model.predict(_as_argument(data.inputs), batch_size=batch_size, verbose=0)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        names = [keras.losses.KLDivergence() if _ends_in(model, i) == "softmax" else keras.losses.MeanSquaredError()
                 for i in range(len(outputs))]  # fmt: skip
        return _Criterion(DISTILLATION, names, outputs)
    if data.labels is None:
        raise DatasetError(f"training data: the samples have no labels, which the loss {loss!r} needs; give labels, or no loss")
    if len(model.outputs) > 1:
        raise OptionError(f"the model has {len(model.outputs)} outputs, expected one for labels; use loss='distillation'")
    if loss is not None:
        return _Criterion(str(getattr(loss, "name", getattr(loss, "__name__", loss))), _known_loss(loss), [data.labels])
    shape = tuple(model.outputs[0].shape)
    ends_in = _ends_in(model, 0)
    if len(shape) != 2 or shape[-1] < 2 or ends_in not in ("softmax", "linear"):
        raise OptionError(
            f"the model ends in {ends_in} with an output of shape {shape}: no loss can be chosen for it, expected class scores "
            "(softmax or logits); give loss, or 'distillation'"
        )
    labels = data.labels.reshape(data.count, -1)
    if labels.shape[1] != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"training data: got labels of type {data.labels.dtype} and shape {data.labels.shape[1:]} for each sample, "
            "expected the whole number of a class; give loss for other labels"
        )
    if labels.min() < 0 or labels.max() >= shape[-1]:
        raise DatasetError(f"training data: got labels {labels.min()} to {labels.max()}, expected 0 to {shape[-1] - 1}")
    chosen = keras.losses.SparseCategoricalCrossentropy(from_logits=ends_in == "linear")
    return _Criterion("sparse_categorical_crossentropy", chosen, [labels[:, 0]], counts_accuracy=True)


def _known_loss(loss: Any) -> Any:
    keras = import_tf_keras()
    try:
        return keras.losses.get(loss)
    except (ValueError, TypeError) as error:
        known = [DISTILLATION, *(name for name in vars(keras.losses) if name.islower() and not name.startswith("_"))]
        raise OptionError(
            f"got loss {loss!r}, expected {DISTILLATION!r}, or a loss of tf-keras.{did_you_mean(str(loss), known)}"
        ) from error


def _ends_in(model: Any, output: int) -> str:
    """Returns the activation that an output comes from."""
    layer = model.get_layer(model.output_names[output])
    if type(layer).__name__ == "Softmax":
        return "softmax"
    function = getattr(layer, "activation", None)
    return str(getattr(function, "__name__", type(layer).__name__))


# ------------------------------------------------------------------------------------------------------------- training


def _as_argument(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else arrays


def _quantization_aware(model: Any, layers: Sequence[str], seed: int, freeze: bool) -> Any:
    """Returns a copy of a model with quantizers in and around the layers."""
    quantization = import_tfmot().quantization.keras
    keras = import_tf_keras()
    number = iter(range(seed, seed + len(model.layers)))

    def prepared(layer: Any) -> Any:
        config = layer.get_config()
        if config.get("seed", 0) is None:  # dropout: its own seed, so that no seed of the whole process is set
            config["seed"] = next(number)
        if freeze and type(layer).__name__ == "BatchNormalization":
            config["trainable"] = False
        copy = type(layer).from_config(config)
        return quantization.quantize_annotate_layer(copy) if layer.name in layers else copy

    annotated = keras.models.clone_model(model, clone_function=prepared)
    annotated.set_weights(model.get_weights())
    with quantization.quantize_scope():
        try:
            return quantization.quantize_apply(annotated)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(
                f"tensorflow-model-optimization cannot quantize the model: {error}; choose other layers"
            ) from error


def _fit(
    model: Any,
    inputs: list[np.ndarray],
    criterion: _Criterion,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool | None,
) -> list[dict[str, float]]:
    keras = import_tf_keras()
    metrics = ["accuracy"] if criterion.counts_accuracy else []
    model.compile(keras.optimizers.Adam(learning_rate), criterion.loss, metrics=metrics)
    count = len(inputs[0])
    size = min(batch_size, count)
    generator = np.random.default_rng(seed)
    history = []
    for epoch in range(1, epochs + 1):
        order = generator.permutation(count)
        batches = [order[start : start + size] for start in range(0, count - size + 1, size)]
        totals: dict[str, float] = {}
        for rows in track(batches, f"epoch {epoch} of {epochs}", len(batches), progress):
            values = _step(model, inputs, criterion, rows)
            for name in ("loss", *metrics):
                totals[name] = totals.get(name, 0.0) + float(values[name]) / len(batches)
        if not math.isfinite(totals["loss"]):
            raise OptionError(f"training ran away: the loss is {totals['loss']} in epoch {epoch}; use a lower learning rate")
        history.append({"epoch": epoch, **totals})
    return history


def _step(model: Any, inputs: list[np.ndarray], criterion: _Criterion, rows: np.ndarray) -> dict[str, float]:
    """Trains on some samples and returns the metrics over them."""
    samples, targets = (_as_argument([array[rows] for array in arrays]) for arrays in (inputs, criterion.targets))
    try:
        return model.train_on_batch(samples, targets, reset_metrics=True, return_dict=True)
    except (ValueError, TypeError, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OptionError(
            f"training with the loss {criterion.name} failed on labels of shape {targets[0].shape} for each sample: "
            f"{lines[-1].strip() if lines else error!r}; give labels that fit the loss and the model's output"
        ) from error


# -------------------------------------------------------------------------------------------------------------- ranges


def _start_ranges(model: Any, inputs: list[np.ndarray], batch_size: int, seed: int) -> None:
    """Sets the ranges of activations to the mean of the batches' extremes, which their moving average tends to."""
    keras = import_tf_keras()
    twin = without_quantizers(model)
    places = list(_range_places(model, twin))
    probe = keras.Model(twin.inputs, [tensor for _, _, tensor in places])
    rows = np.random.default_rng(seed).permutation(len(inputs[0]))
    size = min(batch_size, len(rows))
    extremes = []
    for start in range(0, len(rows) - size + 1, size)[:_RANGE_BATCHES]:
        outputs = probe([array[rows[start : start + size]] for array in inputs], training=False)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        extremes.append([(min(0.0, float(np.min(output))), max(0.0, float(np.max(output)))) for output in outputs])
    means = np.mean(extremes, axis=0)
    for (low, high, _), (minimum, maximum) in zip(places, means, strict=True):
        if maximum > minimum:  # a tensor that is zero throughout has no range to start from
            low.assign(minimum)
            high.assign(maximum)


def _range_places(model: Any, twin: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yields the two variables of each range of activations, and the tensor of the bare twin that they are the range of."""
    for layer in model.layers:
        variables = {variable.name.partition(":")[0].split("/")[-1]: variable for variable in layer.weights}
        for what in ("output", "post_activation", "pre_activation", layer.name):
            if f"{what}_min" not in variables or f"{what}_max" not in variables:
                continue
            name = layer.layer.name if hasattr(layer, "layer") else layer.name
            tensor = twin.get_layer(name).output
            if what == "pre_activation":
                tensor = _before_activation(twin.get_layer(name))
            yield variables[f"{what}_min"], variables[f"{what}_max"], tensor


def _before_activation(layer: Any) -> Any:
    """Returns what a layer computes before its activation."""
    linear = type(layer).from_config({**layer.get_config(), "activation": "linear", "name": f"{layer.name}_linear"})
    output = linear(layer.input)
    linear.set_weights(layer.get_weights())
    return output


def without_quantizers(model: Any) -> Any:
    """Returns a copy of a quantization-aware model with its weights and without its quantizers."""
    keras = import_tf_keras()

    def bare(layer: Any) -> Any:
        if type(layer).__name__ == "QuantizeLayer":
            return keras.layers.Activation("linear", name=layer.name)
        inner = layer.layer if type(layer).__name__.startswith("QuantizeWrapper") else layer
        config = inner.get_config()
        if "activation" in config:
            function = getattr(inner.activation, "activation", inner.activation)
            config["activation"] = "linear" if type(function).__name__ == "NoOpActivation" else function
        return type(inner).from_config(config)

    with import_tfmot().quantization.keras.quantize_scope():
        twin = keras.models.clone_model(model, clone_function=bare)
    values = {weight.name: weight for weight in model.weights}
    for weight in twin.weights:
        weight.assign(values[weight.name])
    return twin


# ---------------------------------------------------------------------------------------------------------- conversion


def _converted(model: Any) -> Model:
    """Returns the model as float operators between QUANTIZE and DEQUANTIZE, which carry the ranges that it learned."""
    tf = tf_private.tensorflow()
    with tf_private.captured_chatter():
        try:
            return Model(bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert()))
        except Exception as error:
            raise ConversionError(f"TensorFlow could not convert the trained model: {error}") from error


def _with_missing_ranges(model: Model, representative_dataset: Any, limit: int | None, progress: bool | None) -> bytes:
    """Returns the model with calibrated ranges where none was learned."""
    main = model.main
    learned = _learned(model)
    missing = [
        tensor.index
        for tensor in main.tensors
        if tensor.is_float
        and not tensor.is_constant
        and tensor.index not in learned
        and (tensor.index in main.producers or tensor.index in main.inputs)
    ]
    if not missing:
        return model.data
    dataset = open_dataset(representative_dataset, model.input_specs(), "representative dataset", limit)

    def feed() -> Iterator[list[np.ndarray]]:
        for sample in track(dataset, "calibrating", dataset.length, progress):
            yield list(sample.inputs)

    tensors = Model(tf_private.calibrate(model.data, feed)).main.tensors
    ranges = {}
    for index in missing:
        minimum, maximum = tensors[index].minimum, tensors[index].maximum
        if minimum is not None and maximum is not None:
            ranges[index] = minimum, maximum
    return edit.with_ranges(model, ranges)


def _learned(model: Model) -> set[int]:
    """Returns the tensors whose scale the learned ranges decide: at a quantizer, or joined to one by operators that keep it.

    A second, calibrated range there would contradict the first, and TensorFlow refuses the model.
    """
    operators = model.main.operators
    learned = {operator.outputs[0] for operator in operators if operator.name == "DEQUANTIZE"}
    learned |= {operator.inputs[0] for operator in operators if operator.name == "QUANTIZE"}
    while True:
        before = len(learned)
        for operator in operators:
            if operator.name in _SAME_SCALE:
                joined = {operator.inputs[_DATA_INPUT.get(operator.name, 0)], *operator.outputs}
            elif operator.name == "CONCATENATION":
                joined = {*operator.inputs, *operator.outputs}
            else:
                continue
            learned |= joined if joined & learned else set()
        if len(learned) == before:
            return learned


def _quantized(data: bytes, kind: str, input_type: str | None, output_type: str | None) -> QuantizedModel:
    default = "int8" if kind == "full_integer" else "float32"
    options = tf_private.QuantizeOptions(input_type=input_type or default, output_type=output_type or default)
    for name, value in (("input_type", options.input_type), ("output_type", options.output_type)):
        if value not in _IO_TYPES:
            raise OptionError(f"got {name} {value!r}, expected {', '.join(_IO_TYPES)}.{did_you_mean(value, _IO_TYPES)}")
    quantized = tf_private.quantize(data, options)
    main = Model(quantized).main
    float_nodes = tuple(
        FloatNode(
            main.tensors[operator.outputs[0]].name, operator.name, "no range was learned or calibrated, or no such kernel"
        )
        for operator in main.operators
        if operator.name not in edit.BRIDGES and any(main.tensors[index].is_float for index in operator.outputs)
    )
    if float_nodes and kind == "full_integer":
        shown = "; ".join(f"{node.op_name} {node.node!r}" for node in float_nodes[:5])
        raise ConversionError(
            f"full_integer: {len(float_nodes)} operators stay float, the first are {shown}; give a representative dataset, or "
            "use kind 'int8'"
        )
    return QuantizedModel(quantized, kind, float_nodes, {"kind": kind, **options._asdict()})


def _saved(model: Any, name: str) -> bytes:
    """Returns the content of a file of the kind that the name ends in."""
    with tempfile.TemporaryDirectory(prefix="tflite_qdebug_") as folder:
        path = Path(folder) / name
        with tf_private.captured_chatter():
            model.save(path, **({"include_optimizer": False} if path.suffix == ".h5" else {}))
        return path.read_bytes()
