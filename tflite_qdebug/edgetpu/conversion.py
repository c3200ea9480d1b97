"""A float model made into one that the Edge TPU compiler takes, and what it will map of it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tflite_qdebug import tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import FloatModel, QuantizedModel, load_float_model
from tflite_qdebug.edgetpu.partition import Partition, partition
from tflite_qdebug.edit.edgetpu_forms import with_edgetpu_forms
from tflite_qdebug.edit.static_shapes import with_static_shapes
from tflite_qdebug.errors import ConversionError, ModelError
from tflite_qdebug.model import Model
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size

__all__ = ["EdgeTPUModel", "convert_for_edgetpu", "edgetpu_float_model"]


@dataclasses.dataclass(frozen=True)
class EdgeTPUModel(Shown):
    """A model to be given to the compiler.

    Attributes:
        quantized: The model: integers throughout, sizes fixed, one scale for the weights of a dense layer.
        float_model: The float model that it was made from, after the changes: to be compared with.
        changes: What was changed in the float model before it was quantized, in sentences; empty where nothing was.
        partition: What the compiler will map.
    """

    quantized: QuantizedModel
    float_model: FloatModel
    changes: tuple[str, ...]
    partition: Partition

    @property
    def data(self) -> bytes:
        """The ``.tflite``."""
        return self.quantized.data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ``.tflite``.

        Raises:
            OutputError: Where it cannot be written.
        """
        self.quantized.save(path)

    def __repr__(self) -> str:
        return f"EdgeTPUModel({byte_size(len(self.data))}, {len(self.changes)} changes, {self.partition!r})"


def edgetpu_float_model(source: Any, *, rewrite: bool = True) -> tuple[FloatModel, tuple[str, ...]]:
    """Returns the float model for one sample, with what the device lacks written as what it has, and what was changed.

    Args:
        source: As for `load_float_model`.
        rewrite: False leaves all operators as they are (`with_edgetpu_forms` tells which are not), and only fixes the sizes.

    Raises:
        ModelError: As `load_float_model`, or for a model with an open size other than the batch, images in a fixed batch of
            several, or several subgraphs.
        ConversionError: As `load_float_model`.
    """
    float_model = load_float_model(source)
    main = float_model.model.main
    several = [main.tensors[index] for index in main.inputs if len(main.tensors[index].shape) == 4]
    several = [tensor for tensor in several if tensor.shape[0] not in (1, -1)]
    if several:
        raise ModelError(
            f"input {several[0].name!r} has shape {several[0].shape}, a fixed batch of {several[0].shape[0]}; expected a batch "
            "of 1, or one that is left open: the Edge TPU takes one image at a time"
        )
    content, changes = with_static_shapes(float_model.model)
    if rewrite:
        content, more = with_edgetpu_forms(Model(content))
        changes += more
    return FloatModel(content, float_model.origin, float_model.settings), changes


def convert_for_edgetpu(
    source: Any,
    representative_dataset: Any,
    *,
    rewrite: bool = True,
    input_type: str | None = None,
    output_type: str | None = None,
    calibration: str = "tensorflow",
    per_channel: bool = True,
    runtime_version: int = 14,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> EdgeTPUModel:
    """Makes a full-integer model for the Edge TPU compiler, and checks by `partition` that it will take it.

    Args:
        source: As for `load_float_model`: a Keras model, a SavedModel, a converter, a float ``.tflite``.
        representative_dataset: Calibrates; samples are of a batch of 1.
        rewrite: As `edgetpu_float_model` has it.
        input_type: ``int8`` (default), ``uint8``; or ``float32``, whose conversion runs on the CPU.
        output_type: The same for the outputs.
        calibration: As `FloatModel.calibrate` has its method.
        per_channel: False: one scale for all channels of a convolution's weights too. Dense layers have one in any case: old
            runtimes compute others wrong.
        runtime_version: As `partition` has it.
        limit: Take the first so many samples.
        backend: As for `FloatModel.calibrate`.
        progress: As in `progress.track`.

    Raises:
        ModelError: As `edgetpu_float_model`.
        DatasetError: For a wrong sample or an empty dataset.
        OptionError: For a type or method that there is not.
        ConversionError: Where an operator cannot be made of integers, or the compiler would refuse the model; it names which.
    """
    float_model, changes = edgetpu_float_model(source, rewrite=rewrite)
    calibrated = float_model.calibrate(
        representative_dataset, calibration, limit=limit, backend=backend, histograms=False, progress=progress
    )
    quantized = calibrated.quantize(
        "full_integer",
        input_type=input_type,
        output_type=output_type,
        per_channel=per_channel,
        # Before TensorFlow 2.17 dense layers have one scale in any case, and there is no such switch.
        per_channel_dense=not tf_private.quantizes_dense_per_channel(),
    )
    found = partition(Model(quantized.data), runtime_version=runtime_version)
    if found.refused:
        raise ConversionError(
            "the Edge TPU compiler would refuse the model: "
            + "; ".join(found.refused)
            + "; expected operators and versions of "
            "TensorFlow Lite 2.5: replace the layers that these come from, or keep that part out of the model"
        )
    return EdgeTPUModel(quantized, float_model, changes, found)
