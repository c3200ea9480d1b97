"""The drop-in for ``tf.lite.experimental.QuantizationDebugger``: same classes, arguments, attributes and results.

What TensorFlow's has wrong is right here: values are read where nothing has overwritten them, the user's converter comes
back as it was, names are checked, every kind of quantized model is debugged as what it is. The richer results stand
beside the contract, in ``layers``, ``result`` and ``save``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from tflite_qdebug import edit, tf_private
from tflite_qdebug.analyses.layer_error import run_debug_model
from tflite_qdebug.collect import Backend, LayerMetrics
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.model import Model, read_model_bytes
from tflite_qdebug.record import Run
from tflite_qdebug.shown import Shown
from tflite_qdebug.statistics import TENSORFLOW_METRICS
from tflite_qdebug.wording import byte_size

__all__ = ["QuantizationDebugOptions", "QuantizationDebugger"]

_MISSING_MODEL = "`model_path` or `model_content` must be specified."
_NO_CONVERTER = "No converter found, use this function with the converter option in the constructor."
_COLUMNS_BEFORE, _COLUMNS_AFTER = ("op_name", "tensor_idx"), ("scale", "zero_point", "tensor_name")

Metrics = Mapping[str, Callable[..., Any]]


def _get_quant_params(tensor_detail: Mapping[str, Any]) -> tuple[float, int] | None:
    """Returns the first scale and zero point of a tensor detail, or None where it has none."""
    parameters = tensor_detail["quantization_parameters"] or {}
    scales, zero_points = parameters.get("scales", ()), parameters.get("zero_points", ())
    # By length: a zero point of 0 counts, and an array of several has no truth value.
    if len(scales) == 0 or len(zero_points) == 0:
        return None
    return scales[0], zero_points[0]


class QuantizationDebugOptions:
    """Options of a debugger; its attributes may be changed, and take effect when they are set on the debugger again."""

    def __init__(
        self,
        layer_debug_metrics: Metrics | None = None,
        model_debug_metrics: Metrics | None = None,
        layer_direct_compare_metrics: Metrics | None = None,
        denylisted_ops: Sequence[str] | None = None,
        denylisted_nodes: Sequence[str] | None = None,
        fully_quantize: bool = False,
    ) -> None:
        """Keeps the options.

        Args:
            layer_debug_metrics: ``{name: f(error)}``; error is ``dequantized - float``, float32, in the layer's shape. A
                name of one of the five default metrics replaces it.
            model_debug_metrics: ``{name: f(float outputs, dequantized outputs)}``, both lists in output order.
            layer_direct_compare_metrics: ``{name: f(float values, quantized values, scale, zero point)}``; the quantized
                values are raw integers, so widen them before subtracting the zero point.
            denylisted_ops: Operator types to keep in float, such as ``["CONV_2D"]``.
            denylisted_nodes: Output tensor names of operators to keep in float.
            fully_quantize: Quantize the inputs and outputs too.

        Raises:
            ValueError: Where a name stands in two of the metric dicts, or is the name of another column of the dump.
        """
        self.layer_debug_metrics = layer_debug_metrics
        self.model_debug_metrics = model_debug_metrics
        self.layer_direct_compare_metrics = layer_direct_compare_metrics
        names = [
            name
            for metrics in (layer_debug_metrics, model_debug_metrics, layer_direct_compare_metrics)
            for name in metrics or ()
        ]
        if len(names) != len(set(names)):
            raise OptionError("Provided metrics have duplicate keys.")
        taken = [
            name
            for metrics in (layer_debug_metrics, layer_direct_compare_metrics)
            for name in metrics or ()
            if name in _COLUMNS_BEFORE + _COLUMNS_AFTER
        ]
        if taken:
            raise OptionError(
                f"got a layer metric called {taken[0]!r}, which is the name of a column that every layer has; expected "
                "another name"
            )
        self.denylisted_ops = denylisted_ops
        self.denylisted_nodes = denylisted_nodes
        self.fully_quantize = fully_quantize

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value}
        words = (f"{name}={list(value) if isinstance(value, Mapping) else value!r}" for name, value in given.items())
        return f"QuantizationDebugOptions({', '.join(words)})"


class QuantizationDebugger(Shown):
    """Measures, for each quantized operator, by how much it differs from its float original.

    Attributes:
        layer_statistics: ``{'NumericVerify/<tensor name>:<index>': {metric: value}}`` in execution order; None until
            `run`. TensorFlow's aggregation: each metric is the mean over samples, NaN left out, so ``max_abs_error`` is a
            mean of maxima. The pooled figures are in `layers`.
        model_statistics: ``{metric: mean over samples}``; None until `run`, and without model metrics.
        converter: The converter that was given, as it was; None without.
        calibrated_model: Calibrated model bytes, from a converter.
        float_model: Float model bytes, from a converter or as given.
        quant_model: Debug model bytes.
        result: The `Run`; None until `run`.
    """

    def __init__(
        self,
        quant_debug_model_path: str | os.PathLike[str] | None = None,
        quant_debug_model_content: bytes | None = None,
        float_model_path: str | os.PathLike[str] | None = None,
        float_model_content: bytes | None = None,
        debug_dataset: Any = None,
        debug_options: QuantizationDebugOptions | None = None,
        converter: Any = None,
        *,
        backend: Backend | None = None,
        whole_model_verify: bool = False,
    ) -> None:
        """Makes the debug model, or takes it as given.

        Args:
            quant_debug_model_path: Path of a debug model, one with NumericVerify operators.
            quant_debug_model_content: Content of a debug model.
            float_model_path: Path of the float model, for model metrics.
            float_model_content: Content of the float model.
            debug_dataset: A function that returns a generator of samples, or anything else that `open_dataset` takes.
            debug_options: Metrics and denylists.
            converter: A ``tf.lite.TFLiteConverter`` with optimizations and representative dataset, instead of a debug
                model. It is converted and calibrated once, and not changed. The kind of model that it describes (int8,
                16x8, float16; input and output types; per-channel settings) is what gets debugged.
            backend: Which code runs the models, with how many workers.
            whole_model_verify: From a converter: measure accumulated error instead of each operator's own.

        Raises:
            ValueError: Where the model, the converter or an option does not fit, as its text says.
        """
        self._data = debug_dataset
        self._options = debug_options or QuantizationDebugOptions()
        self._backend = backend or Backend()
        self._whole_model = whole_model_verify
        self.converter = converter
        self.calibrated_model: bytes | None = None
        self.float_model: bytes | None = None
        self._calibrated: CalibratedModel | None = None
        self._settings: tf_private.ConverterSettings | None = None
        if converter is not None:
            self._convert(converter)
        else:
            if quant_debug_model_path is None and not quant_debug_model_content:
                raise ModelError(_MISSING_MODEL)
            self._given = read_model_bytes(quant_debug_model_content or quant_debug_model_path)  # type: ignore[arg-type]
            given_float = float_model_content or float_model_path
            self.float_model = read_model_bytes(given_float) if given_float else None
        self._prepare(self._options)
        tf_private.increase_debugger_counter()

    def _convert(self, converter: Any) -> None:
        settings = tf_private.converter_settings(converter)
        if not settings.optimized:
            raise OptionError("converter object must set optimizations to lite.Optimize.DEFAULT")
        if not settings.representative_dataset:
            raise OptionError("converter object must set representative_dataset")
        float_model = load_float_model(converter)
        self._settings = settings
        self._calibrated = float_model.calibrate(settings.representative_dataset, progress=False)
        self.float_model, self.calibrated_model = float_model.data, self._calibrated.data

    def _quantize_arguments(self, options: QuantizationDebugOptions) -> dict[str, Any]:
        assert self._settings is not None
        arguments = {
            # A denylist contradicts "integer only", so int8 with fallback is the kind that is debugged.
            "kind": "int8" if self._settings.kind == "full_integer" else self._settings.kind,
            "input_type": self._settings.input_type,
            "output_type": self._settings.output_type,
            "per_channel": self._settings.per_channel,
            "per_channel_dense": self._settings.per_channel_dense,
            "quantize_variables": self._settings.quantize_variables,
            "fully_quantize": bool(options.fully_quantize),
            "denylisted_nodes": options.denylisted_nodes or (),
            "denylisted_ops": options.denylisted_ops or (),
        }
        if arguments["kind"] in ("float16", "dynamic_range"):
            if arguments["denylisted_nodes"] or arguments["denylisted_ops"] or arguments["fully_quantize"]:
                raise OptionError(
                    f"got a denylist or fully_quantize for a converter that makes a {arguments['kind']} model, expected one "
                    "that makes an int8 model"
                )
            return {name: arguments[name] for name in ("kind", "per_channel", "per_channel_dense")}
        return arguments

    def _prepare(self, options: QuantizationDebugOptions) -> None:
        """Makes the debug model for ``options``; changes this object only once nothing can fail any more."""
        if options.model_debug_metrics and self.float_model is None:
            raise ModelError(_MISSING_MODEL + " Model metrics compare with the float model: give float_model_path or content")
        if self._calibrated is None:
            original = None if self.float_model is None else Model(self.float_model)
            debug_model = edit.strip_numeric_verify(Model(self._given), original)
            quant_model, described = self._given, {}
        else:
            described = self._quantize_arguments(options)
            quant_model, debug_model = self._make_debug_model(described)
        self._debug_model, self._described, self._options = debug_model, described, options
        self.quant_model = quant_model
        self.layer_statistics: dict[str, dict[str, float]] | None = None
        self.model_statistics: dict[str, float] | None = None
        self.result: Run | None = None

    def _make_debug_model(self, arguments: dict[str, Any]) -> tuple[bytes, edit.DebugModel]:
        assert self._calibrated is not None
        if arguments["kind"] != "int8":
            debug_model = self._calibrated.debug_model(whole_model=self._whole_model, **arguments)
            return debug_model.data, debug_model
        data = self._calibrated.numeric_verify_model(whole_model=self._whole_model, **arguments)
        return data, edit.strip_numeric_verify(Model(data), self._calibrated.model, self._whole_model)

    @property
    def options(self) -> QuantizationDebugOptions:
        """The options; setting them quantizes anew from the calibrated model and clears the statistics."""
        return self._options

    @options.setter
    def options(self, options: QuantizationDebugOptions) -> None:
        self._prepare(options)

    def get_nondebug_quantized_model(self) -> bytes:
        """Returns the quantized model with the present options.

        Raises:
            ValueError: Without a converter.
        """
        if self._calibrated is None:
            raise OptionError(_NO_CONVERTER)
        return self._calibrated.quantize(**self._quantize_arguments(self._options)).data

    def get_debug_quantized_model(self) -> bytes:
        """Returns the debug model with the present options.

        Raises:
            ValueError: Without a converter.
        """
        if self._calibrated is None:
            raise OptionError(_NO_CONVERTER)
        return self._make_debug_model(self._quantize_arguments(self._options))[0]

    def run(self, progress: bool | None = False) -> None:
        """Runs the debug dataset once, and fills the statistics.

        Args:
            progress: True shows a bar with the time left; None does where standard error is a terminal.

        Raises:
            ValueError: Where a sample does not fit the model, or the dataset is empty.
            RuntimeError: Where the interpreter fails.
        """
        if self._data is None:
            raise DatasetError("got no debug_dataset, expected a function that returns a generator of samples")
        dataset = open_dataset(self._data, self._debug_model.inputs, "debug dataset")
        options = self._options
        metrics = LayerMetrics(
            dict(options.layer_debug_metrics or {}),
            dict(options.layer_direct_compare_metrics or {}),
            dict(options.model_debug_metrics or {}),
        )
        self.result = run_debug_model(
            self._debug_model, dataset, self._backend, metrics, self.float_model, progress, self._described
        )
        self.layer_statistics = self.result.tensorflow_statistics()
        self.model_statistics = dict(self.result.model_metrics) if metrics.model else None

    def _require_result(self) -> Run:
        if self.result is None:
            raise OptionError("there are no results yet: call run() first")
        return self.result

    @property
    def layers(self) -> Any:
        """The pooled results as a pandas DataFrame, one row per layer in execution order; see `Run.columns`.

        Raises:
            ValueError: Before `run`.
            MissingPackageError: Without pandas.
        """
        return self._require_result().frame()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the run as JSON, to be read with `Run.load`.

        Raises:
            ValueError: Before `run`.
            OSError: Where the file cannot be written.
        """
        self._require_result().save(path)

    def __repr__(self) -> str:
        if self.result is None:
            return f"QuantizationDebugger({byte_size(len(self.quant_model or b''))} debug model, not run yet)"
        return f"QuantizationDebugger({self.result!r})"

    def layer_statistics_dump(self, file: IO[str]) -> None:
        """Writes ``layer_statistics`` as CSV; before `run`, the header alone.

        Args:
            file: Open text file, or anything with ``write``.
        """
        asked = [*(self._options.layer_debug_metrics or {}), *(self._options.layer_direct_compare_metrics or {})]
        # The options may have been changed since the run: what was measured is what is written.
        names = list(dict.fromkeys([*TENSORFLOW_METRICS, *(asked if self.result is None else self.result.metrics)]))
        writer = csv.DictWriter(file, [*_COLUMNS_BEFORE, *names, *_COLUMNS_AFTER], lineterminator="\r\n")
        writer.writeheader()
        for layer in self._debug_model.layers if self.layer_statistics else ():
            row: dict[str, Any] = dict((self.layer_statistics or {})[layer.key])
            row.update(
                op_name=layer.op_name,
                tensor_idx=layer.tensor_idx,
                scale=np.float32(layer.scale) if layer.scale is not None else "",
                zero_point="" if layer.zero_point is None else layer.zero_point,
                tensor_name=layer.node,
            )
            writer.writerow(row)
