"""Float -> calibrated -> quantized or debug model: convert once, calibrate once, quantize as often as you like.

Conversion and calibration are the slow steps; quantizing the calibrated model takes a fraction of a second. So a
``FloatModel`` is made once from whatever the user has, calibrated once, and every kind of model comes out of the
``CalibratedModel``.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug import edit, isolation, tf_private
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.datasets.opening import first_signature
from tflite_qdebug.edit.flatbuffer import require_single_subgraph
from tflite_qdebug.edit.subgraphs import copy_passed_inputs, with_ranges_of
from tflite_qdebug.errors import ConversionError, ModelError, NoSampleError, OptionError, completed, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model, Operator, Subgraph, read_model_bytes
from tflite_qdebug.progress import track
from tflite_qdebug.shown import Shown
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.wording import byte_size

__all__ = ["CALIBRATED_KINDS", "KINDS", "CalibratedModel", "FloatModel", "FloatNode", "QuantizedModel", "load_float_model"]

_log = logging.getLogger(__name__)

#: What can be made of a float model. ``int8`` falls back to float where it must; ``full_integer`` does not.
KINDS = ("float", "float16", "dynamic_range", "int8", "full_integer", "int16x8")
#: Those of them that need calibrated ranges.
CALIBRATED_KINDS = ("int8", "full_integer", "int16x8")
#: Files that hold a Keras model.
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
_IO_TYPES = {
    "int8": ("float32", "int8", "uint8"),
    "full_integer": ("int8", "uint8", "float32"),
    "int16x8": ("float32", "int16"),
}
# Calibrating these has ended the process that does it.
_MAY_CRASH = ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
              "BIDIRECTIONAL_SEQUENCE_RNN", "RNN", "SVDF", "WHILE", "IF", "CALL_ONCE", "VAR_HANDLE")  # fmt: skip
# For the largest models; others take a fraction of a second.
_QUANTIZING_SECONDS = 1800.0
# Operators that only change the form of their values, or work on indices; float where their surroundings are.


@dataclasses.dataclass(frozen=True)
class FloatNode:
    """An operator that stayed float.

    Attributes:
        node: Its name, as a denylist takes it.
        op_name: Its type.
        reason: Why, in words.
    """

    node: str
    op_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class QuantizedModel(Shown):
    """A model made from a float one, and what happened on the way.

    Attributes:
        data: The ``.tflite``.
        kind: One of `KINDS`.
        float_nodes: Operators that compute in float, with the reason of each.
        options: What was asked for.
    """

    data: bytes
    kind: str
    float_nodes: tuple[FloatNode, ...]
    options: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ``.tflite``.

        Raises:
            OutputError: Where it cannot be written.
        """
        write_atomically(path, self.data)

    def __repr__(self) -> str:
        return f"QuantizedModel({self.kind}, {byte_size(len(self.data))}, {len(self.float_nodes)} operators left in float)"


def load_float_model(source: Any) -> FloatModel:
    """Makes the float model from whatever there is, converting once.

    Args:
        source: A ``tf.lite.TFLiteConverter`` (not changed), a Keras model (Keras 3 or tf-keras), the path of a ``.keras``
            or ``.h5`` file, of a SavedModel directory or of a float ``.tflite``, or the content of the last.

    Raises:
        ModelError: Where the source is none of these, or is quantized already.
        ConversionError: Where TensorFlow cannot convert it.
    """
    if isinstance(source, FloatModel):
        return source
    source = getattr(source, "tensorflow_converter", source)  # of our own converter
    if isinstance(source, (bytes, bytearray, memoryview)):
        return FloatModel(bytes(source), "float .tflite")
    if isinstance(source, (str, os.PathLike)):
        return _load_path(Path(source))
    if tf_private.is_converter(source):
        return FloatModel(tf_private.convert_to_float(source), "converter", tf_private.converter_settings(source))
    if tf_private.is_keras_model(source):
        return FloatModel(tf_private.convert_keras_to_float(source), "Keras model")
    raise ModelError(
        f"got {type(source).__module__}.{type(source).__qualname__}, expected a TFLiteConverter, a Keras model, the bytes of "
        "a float .tflite, or the path of a .tflite, .keras, .h5 or SavedModel"
    )


def _load_path(path: Path) -> FloatModel:
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ModelError(f"{path} is a folder without saved_model.pb: expected a SavedModel directory or a model file")
        return FloatModel(tf_private.convert_to_float(tf_private.converter_from_saved_model(str(path))), str(path))
    if path.suffix in KERAS_SUFFIXES:
        if not path.exists():
            raise ModelError(f"cannot read the model {path}: No such file or directory")
        keras_model = tf_private.load_keras_model(str(path))
        return FloatModel(tf_private.convert_keras_to_float(keras_model), str(path))
    return FloatModel(read_model_bytes(path), str(path))


class FloatModel(Shown):
    """A float ``.tflite``, from which everything else is made.

    Attributes:
        data: The flatbuffer; float16 weights become float32, as TensorFlow's quantizers need it.
        origin: Where it came from, for the saved run.
        settings: What the user's converter said about quantization; None for other sources.
    """

    def __init__(self, data: bytes, origin: str, settings: tf_private.ConverterSettings | None = None) -> None:
        """Reads the model.

        Raises:
            ModelError: Where it is broken or quantized already.
        """
        self.model = Model(data)
        tensors = [tensor for subgraph in self.model.subgraphs for tensor in subgraph.tensors]
        if any(tensor.is_constant and tensor.dtype == np.float16 for tensor in tensors):
            self.model, origin = Model(edit.fold_float16(self.model)), f"{origin} (float16 weights as float32)"
        self.data, self.origin, self.settings = self.model.data, origin, settings
        quantized = [tensor.name for tensor in tensors if tensor.is_quantized]
        if quantized:
            raise ModelError(
                f"{origin}: got a model that is quantized already (tensor {quantized[0]!r} and {len(quantized) - 1} more), "
                "expected a float model"
            )
        _log.info("float model: %s, %d operators, %s", origin, len(self.model.main.operators), byte_size(len(self.data)))

    def dataset(self, source: Any, role: str = "representative dataset", limit: int | None = None) -> Dataset:
        """Opens a dataset and checks it against this model's inputs, as `open_dataset`."""
        return open_dataset(source, self.model.input_specs(), role, limit)

    def quantize(self, kind: str, *, per_channel: bool = True, per_channel_dense: bool = True) -> QuantizedModel:
        """Makes a kind that needs no calibration: ``float``, ``float16`` or ``dynamic_range``.

        Raises:
            OptionError: For another kind.
        """
        options = {"kind": kind, "per_channel": per_channel, "per_channel_dense": per_channel_dense}
        if kind == "float":
            data = self.data
        elif kind == "float16":
            data = edit.cast_weights_to_float16(self.model)
        elif kind == "dynamic_range":
            data = edit.quantize_weights(
                self.model, per_channel, per_channel_dense and tf_private.quantizes_dense_per_channel()
            )
        elif kind in CALIBRATED_KINDS:
            raise OptionError(f"kind {kind!r} needs calibration: use calibrate(representative_dataset).quantize({kind!r})")
        else:
            raise OptionError(f"got kind {kind!r}, expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        return QuantizedModel(data, kind, (), options)

    def calibrate(
        self,
        representative_dataset: Any,
        method: str = "tensorflow",
        *,
        limit: int | None = None,
        backend: Backend | None = None,
        histograms: bool = True,
        progress: bool | None = None,
    ) -> CalibratedModel:
        """Finds the range of every activation, once.

        Args:
            representative_dataset: Anything that `open_dataset` takes.
            method: ``tensorflow``: TensorFlow's own calibrator; ``exposed``: the float model with all activations as
                outputs, several times faster, with histograms in the same pass, for models of one subgraph without
                recurrent operators.
            limit: Take the first so many samples.
            backend: Which code runs the float model, for ``exposed``; the builtin kernels by default, as in TensorFlow's.
            histograms: For ``exposed``: also count values, which takes most of its time.
            progress: As in `progress.track`.

        Raises:
            DatasetError: For a wrong sample or an empty dataset.
            ConversionError: Where TensorFlow fails, or its process dies.
            OptionError: For another method.
        """
        dataset = self.dataset(representative_dataset, limit=limit)
        _log.info("calibrating by method %r on %s", method, dataset.description)
        if method == "tensorflow":
            datasets = self._by_signature(representative_dataset, dataset, limit)
            return CalibratedModel(self, self._calibrate_tensorflow(datasets, progress), dataset.description)
        if method == "exposed":
            backend = backend or Backend(kernels="builtin")
            ranges, counts = _exposed_ranges(self.model, dataset, backend, histograms, progress)
            return CalibratedModel(self, edit.with_ranges(self.model, ranges), dataset.description, counts)
        raise OptionError(f"got calibration method {method!r}, expected 'tensorflow' or 'exposed'")

    def calibration_samples(self, source: Any, limit: int | None = None, progress: bool | None = None) -> Iterator[Any]:
        """Yields a dataset as TensorFlow's converter and calibrator take it, checked against this model's inputs.

        Args:
            source: Anything that `open_dataset` takes.
            limit: Take the first so many samples.
            progress: As in `progress.track`.

        Yields:
            The inputs in the model's order, or ``(signature, {input: array})`` where several signatures are named.

        Raises:
            DatasetError: For a wrong sample or an empty dataset.
        """
        yield from self._feed(self._by_signature(source, self.dataset(source, limit=limit), limit), progress)

    def _by_signature(self, source: Any, dataset: Dataset, limit: int | None) -> list[Dataset]:
        """Returns the dataset as each signature takes it: samples that name one their own, others all that they fit."""
        if len(self.model.signatures) < 2:
            return [dataset]
        named = first_signature(dataset) is not None
        datasets = []
        for signature in self.model.signatures:
            specs = self.model.signature_specs(signature.key)
            fits = [(spec.key, spec.shape, spec.dtypes) for spec in specs] == [
                (spec.key, spec.shape, spec.dtypes) for spec in dataset.inputs
            ]
            if named or fits:
                datasets.append(open_dataset(source, specs, dataset.role, limit, signature.key, skip_others=True))
        return datasets

    def _calibrate_tensorflow(self, datasets: Sequence[Dataset], progress: bool | None) -> bytes:
        # A loop that hands an input on unchanged, as those of recurrent layers do, ends TensorFlow's calibrator.
        copied = copy_passed_inputs(self.model)
        try:
            # The samples are drawn here: what makes them may be the user's own, and keep something in memory.
            result = isolation.call_with_samples(
                functools.partial(tf_private.calibrate, copied),
                self._feed(datasets, progress),
                what="calibrating the model",
                error=ConversionError,
            )
        except ConversionError as error:
            operators = {operator.name for subgraph in self.model.subgraphs for operator in subgraph.operators}
            if not hasattr(error, "ended") or not operators.intersection(_MAY_CRASH):
                raise
            raise ConversionError(
                f"{error}. It has recurrent operators or control flow, on some of which TensorFlow's calibrator crashes; build "
                "recurrent layers with unroll=True"
            ) from error
        return result if copied is self.data else with_ranges_of(self.model, Model(result))

    def _feed(self, datasets: Sequence[Dataset], progress: bool | None) -> Iterator[Any]:
        fed = 0
        missing: NoSampleError | None = None
        for dataset in datasets:
            names = [spec.key or spec.name for spec in dataset.inputs]
            try:
                for sample in track(dataset, "calibrating", dataset.length, progress):
                    fed += 1
                    # One signature is fed in input order, as TensorFlow does; several need their names.
                    if sample.signature is None or len(self.model.signatures) < 2:
                        yield list(sample.inputs)
                    else:
                        yield sample.signature, dict(zip(names, sample.inputs, strict=True))
            except NoSampleError as error:
                missing = error
        if missing is not None and not fed:
            raise missing

    def __repr__(self) -> str:
        return f"FloatModel({self.origin}, {len(self.model.main.operators)} operators, {byte_size(len(self.data))})"


def _exposed_ranges(
    model: Model, dataset: Dataset, backend: Backend, histograms: bool, progress: bool | None
) -> tuple[dict[int, tuple[float, float]], dict[str, Histogram]]:
    """Returns least and greatest value of every float activation, by tensor index, and its histogram, by name."""
    operators = {operator.name for operator in model.main.operators}
    unfit = sorted(operators.intersection(_MAY_CRASH))
    if unfit or len(model.subgraphs) > 1:
        raise OptionError(
            f"calibration method 'exposed' cannot follow {', '.join(unfit) or 'several subgraphs'}; use method='tensorflow'"
        )
    wanted = [
        tensor.index
        for tensor in model.main.tensors
        if tensor.is_float
        and not tensor.is_constant
        and (tensor.index in model.main.producers or tensor.index in model.main.inputs)
    ]
    exposed = edit.expose(model, [index for index in wanted if index in model.main.producers])

    # Each worker counts for itself, and what they counted is added up once: counting is exact in any order.
    def opened() -> tuple[Interpreter, dict[int, Histogram]]:
        return backend.without_delegates.open(exposed), {index: Histogram() for index in wanted} if histograms else {}

    def measure(worker: tuple[Interpreter, dict[int, Histogram]], sample: Any) -> np.ndarray:
        interpreter, counts = worker
        interpreter.invoke(sample.inputs)
        extremes = np.empty((len(wanted), 2))
        for row, index in enumerate(wanted):
            values = interpreter.view(index)
            extremes[row] = values.min(), values.max()
            if histograms and np.isfinite(extremes[row]).all():
                counts[index].add(values, float(extremes[row, 0]), float(extremes[row, 1]))
        return extremes

    if histograms:
        Histogram().add(np.ones(1, np.float32))  # compiles the loop here, once, and not in each process
    # A worker's counts would be lost with it, so that none is replaced.
    workers = backend.pool(opened, "calibrating the model", finish=lambda worker: worker[1], replaceable=False)
    lowest, highest = np.full(len(wanted), np.inf), np.full(len(wanted), -np.inf)
    for extremes in map_samples(measure, workers, track(dataset, "calibrating", dataset.length, progress)):
        lowest, highest = np.minimum(lowest, extremes[:, 0]), np.maximum(highest, extremes[:, 1])
    counts = workers.finished[0]
    for others in workers.finished[1:]:
        counts = {index: histogram + others[index] for index, histogram in counts.items()}
    broken = [model.main.tensors[wanted[i]].name for i in np.flatnonzero(~np.isfinite(lowest) | ~np.isfinite(highest))]
    if broken:
        raise ConversionError(
            f"the float model itself gives NaN or infinity on the {dataset.role}, in tensor {broken[0]!r}"
            + (f" and {len(broken) - 1} more" if len(broken) > 1 else "")
            + ": no range can be calibrated"
        )
    ranges = {index: (float(lowest[row]), float(highest[row])) for row, index in enumerate(wanted)}
    return ranges, {model.main.tensors[index].name: histogram for index, histogram in counts.items()}


class CalibratedModel(Shown):
    """The float model with a range for each activation; every kind of model is quantized from it.

    Attributes:
        float_model: Where it came from; None where only the calibrated bytes were given.
        data: The flatbuffer.
        dataset: Words on the representative dataset.
        histograms: ``{tensor name: Histogram}``, from calibration method ``exposed``; else empty.
    """

    def __init__(
        self,
        float_model: FloatModel | None,
        data: bytes,
        dataset: str = "unknown",
        histograms: Mapping[str, Histogram] | None = None,
    ) -> None:
        """Reads a calibrated model, such as ``CalibratedModel(None, bytes_from_tensorflow)``.

        Raises:
            ModelError: Where the model carries no ranges.
        """
        self.model = Model(data)
        self.float_model, self.data, self.dataset = float_model, self.model.data, dataset
        self.histograms = dict(histograms or {})
        if not any(tensor.minimum is not None for tensor in self.model.main.tensors):
            raise ModelError("got a model without calibrated ranges, expected one that calibrate() returned")

    def quantize(
        self,
        kind: str = "int8",
        *,
        input_type: str | None = None,
        output_type: str | None = None,
        denylisted_nodes: Sequence[str] = (),
        denylisted_ops: Sequence[str] = (),
        per_channel: bool = True,
        per_channel_dense: bool = True,
        fully_quantize: bool = False,
        quantize_variables: bool = False,
    ) -> QuantizedModel:
        """Quantizes; fast, and as often as needed.

        Args:
            kind: One of `KINDS`.
            input_type: numpy name of the inputs' type; default ``float32``, for ``full_integer`` ``int8``.
            output_type: The same for the outputs.
            denylisted_nodes: Output tensor names of operators to keep in float, as any of our tables shows them.
            denylisted_ops: Operator types to keep in float, such as ``CONV_2D``.
            per_channel: False: one scale for all channels of a weight.
            per_channel_dense: False: one scale for the weights of dense layers alone.
            fully_quantize: TensorFlow's switch of that name: inputs and outputs are int8 too.
            quantize_variables: TensorFlow's switch for the variables of recurrent layers.

        Raises:
            OptionError: For a kind, type or denylist name that means nothing for this model.
            ConversionError: Where TensorFlow fails, or ``full_integer`` leaves an operator in float, which it names.
        """
        if kind not in KINDS:
            raise OptionError(f"got kind {kind!r}, expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        options = self._checked_options(
            kind,
            input_type=input_type,
            output_type=output_type,
            denylisted_nodes=denylisted_nodes,
            denylisted_ops=denylisted_ops,
            per_channel=per_channel,
            per_channel_dense=per_channel_dense,
            fully_quantize=fully_quantize,
            quantize_variables=quantize_variables,
        )
        if kind in CALIBRATED_KINDS:
            data = self._quantize_calibrated(kind, options)
        else:
            data = (
                self._require_float_model(kind)
                .quantize(kind, per_channel=per_channel, per_channel_dense=per_channel_dense)
                .data
            )
        quantized = Model(data)
        float_nodes = _float_nodes(self.model, quantized, options) if kind in CALIBRATED_KINDS else ()
        if kind == "full_integer":
            _require_no_float(float_nodes)
        _log.info("quantized: %s, %s, %d operators in float", kind, byte_size(len(data)), len(float_nodes))
        for node in float_nodes:
            _log.debug("in float: %s %s (%s)", node.op_name, node.node, node.reason)
        return QuantizedModel(data, kind, float_nodes, {"kind": kind, **options._asdict()})

    def _require_float_model(self, kind: str) -> FloatModel:
        if self.float_model is None:
            raise OptionError(f"kind {kind!r} is made from the float model, and only a calibrated model was given")
        return self.float_model

    def _checked_options(
        self,
        kind: str,
        *,
        input_type: str | None = None,
        output_type: str | None = None,
        denylisted_nodes: Sequence[str] = (),
        denylisted_ops: Sequence[str] = (),
        **others: bool,
    ) -> tf_private.QuantizeOptions:
        """Returns the options with the defaults of the kind, and names and types checked."""
        default = "int8" if kind == "full_integer" else "float32"
        options = tf_private.QuantizeOptions(
            input_type=input_type or default,
            output_type=output_type or default,
            denylisted_nodes=check_denylist_nodes(self.model, denylisted_nodes),
            denylisted_ops=check_denylist_ops(self.model, denylisted_ops),
            **others,
        )
        self._check_types(kind, options)
        return options

    def _check_types(self, kind: str, options: tf_private.QuantizeOptions) -> None:
        allowed = _IO_TYPES.get(kind, ("float32",))
        for side, name in (("input", options.input_type), ("output", options.output_type)):
            if name not in allowed:
                raise OptionError(f"got {side}_type {name!r} for kind {kind!r}, expected {' or '.join(allowed)}")
        if kind not in ("int8", "full_integer") and (options.denylisted_nodes or options.denylisted_ops):
            raise OptionError(
                f"got a denylist for kind {kind!r}, which TensorFlow's quantizer cannot apply there; expected kind "
                "'int8', or no denylist"
            )

    def _quantize_calibrated(self, kind: str, options: tf_private.QuantizeOptions) -> bytes:
        if kind == "int16x8":
            return _quantized(tf_private.quantize_int16x8, self.data, options)
        return self._mlir_quantize(options)

    def _mlir_quantize(self, options: tf_private.QuantizeOptions) -> bytes:
        """Quantizes to int8; nodes that TensorFlow's quantizer cannot tell by name are given names it can.

        It knows an operator by the one name of its outputs, so it can deny neither an operator with several outputs nor
        one of two operators with the same name. Where the denylist has such a node, all outputs of each operator get one
        name of their own for this one step, and their true names back afterwards.
        """
        named = self.model.main.nodes
        ambiguous = [
            name
            for name in options.denylisted_nodes
            if len(named[name]) > 1 or any(len(operator.outputs) > 1 for operator in named[name])
        ]
        if not ambiguous:
            return _quantized(tf_private.quantize, self.data, options)
        owner = {output: operator.index for operator in self.model.main.operators for output in operator.outputs}
        kept = {*self.model.main.inputs, *self.model.main.outputs}

        def mark(index: int, name: str) -> str:
            return f"{_MARK}{owner[index]}{_MARK}" if index in owner and index not in kept else name

        denied = {operator.index for name in options.denylisted_nodes for operator in named[name]}
        names = {mark(output, self.model.main.tensors[output].name) for output in owner if owner[output] in denied}
        marked = edit.with_renamed(self.model, mark)
        marked_options = options._replace(denylisted_nodes=tuple(sorted(names)))
        quantized = Model(_quantized(tf_private.quantize, marked, marked_options))
        return _names_restored(quantized, self.model)

    def debug_model(
        self,
        kind: str = "int8",
        *,
        whole_model: bool = False,
        **options: Any,
    ) -> edit.DebugModel:
        """Makes the debug model, ready to be run: each layer in float and quantized, in one model.

        For ``int8`` and ``full_integer`` it is TensorFlow's own debug model without its NumericVerify operators; for the
        other kinds it is put together from the float and the quantized model.

        Args:
            kind: The kind of quantized model to be debugged.
            whole_model: The float operators read float values throughout (accumulated error), instead of the dequantized
                values that their quantized twins read (the error that each operator adds).
            **options: As for `quantize`.

        Raises:
            ModelError: Where nothing is quantized, so that there is nothing to compare.
            ConversionError: Where TensorFlow fails.
            OptionError: As `quantize`.
        """
        if kind in ("int8", "full_integer"):
            data = self.numeric_verify_model(kind, whole_model=whole_model, **options)
            return edit.strip_numeric_verify(Model(data), self.model, whole_model)
        if kind == "float":
            raise OptionError("got kind 'float', which has no quantization error; expected another kind")
        require_single_subgraph(self.model, "a debug model")
        quantized = self.quantize(kind, **options)
        return edit.debug_pair(self._require_float_model(kind).model, Model(quantized.data), whole_model)

    def numeric_verify_model(self, kind: str = "int8", *, whole_model: bool = False, **options: Any) -> bytes:
        """Returns TensorFlow's own debug model, with its NumericVerify operators.

        Args:
            kind: ``int8`` or ``full_integer``; TensorFlow makes no other.
            whole_model: As for `debug_model`.
            **options: As for `quantize`.
        """
        if kind not in ("int8", "full_integer"):
            raise OptionError(f"got kind {kind!r}, expected int8 or full_integer: TensorFlow makes no other debug model")
        return self._mlir_quantize(self._checked_options(kind, numeric_verify=True, whole_model=whole_model, **options))

    def __repr__(self) -> str:
        return f"CalibratedModel({len(self.model.main.operators)} operators, calibrated on {self.dataset})"


def _quantized(quantize: Callable[..., bytes], model: bytes, options: tf_private.QuantizeOptions) -> bytes:
    """Calls one of TensorFlow's quantizers in a child: some models end the process."""
    what = "quantizing the model with TensorFlow"
    return isolation.call(quantize, model, options, what=what, time_limit=_QUANTIZING_SECONDS, error=ConversionError)


# Not a digit, so that the digits which TensorFlow puts behind a name that occurs twice can be told apart from it.
_MARK = "\x1f"


def _names_restored(quantized: Model, calibrated: Model) -> bytes:
    """Gives marked tensors their true names back, with the digits behind them that TensorFlow added."""
    taken: dict[str, int] = {}

    def restore(index: int, name: str) -> str:
        head, mark, rest = name.partition(_MARK)
        if not mark:
            return name
        number, _, _ = rest.partition(_MARK)
        operator = calibrated.main.operators[int(number)]
        base = head + calibrated.main.tensors[operator.outputs[0]].name
        taken[base] = taken.get(base, 0) + 1
        return base if taken[base] == 1 else f"{base}{taken[base] - 1}"

    return edit.with_renamed(quantized, restore)


def _as_names(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise OptionError(f"got {what}={value!r}, expected a list of names, such as [{value!r}]")
    names = tuple(value)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise OptionError(f"got {wrong[0]!r} in {what}, expected names as str")
    return tuple(dict.fromkeys(names))


def check_denylist_nodes(model: Model, names: Any) -> tuple[str, ...]:
    """Returns the names as the model has them, one by one checked.

    A name may also be one that a debug model shows: with the digits that TensorFlow puts behind a name which occurs
    twice, or a whole ``NumericVerify/name:index``.

    Raises:
        OptionError: For a name that the model lacks, with the nearest ones.
    """
    known = model.main.nodes
    # A debug model joins the names of an operator's outputs.
    joined = {
        ";".join(model.main.tensors[output].name for output in operator.outputs): model.main.tensors[operator.outputs[0]].name
        for operator in model.main.operators
        if operator.outputs
    }
    found = []
    for name in _as_names(names, "denylisted_nodes"):
        shown = completed(name, known, "denylisted node")
        if shown not in known and shown.startswith(edit.NUMERIC_VERIFY + "/"):
            shown = shown[len(edit.NUMERIC_VERIFY) + 1 :].rpartition(":")[0]
        shown = _without_digits(shown, known.keys() | joined.keys())
        shown = shown if shown in known else joined.get(shown, shown)
        if shown not in known:
            raise OptionError(
                f"got denylisted node {name!r}, expected the name of an operator's output tensor in the float model, which "
                f"has no such one.{did_you_mean(name, known)}"
            )
        found.append(shown)
    return tuple(dict.fromkeys(found))


def _without_digits(name: str, known: Container[str]) -> str:
    """Returns a name without as many of the digits behind it as it takes to know it."""
    while name not in known and name[-1:].isdigit():
        name = name[:-1]
    return name


def check_denylist_ops(model: Model, names: Any) -> tuple[str, ...]:
    """Returns the operator types, checked.

    Raises:
        OptionError: For a type that the model has no operator of, with the nearest ones.
    """
    known = list(dict.fromkeys(operator.name for operator in model.main.operators))
    checked = _as_names(names, "denylisted_ops")
    for name in checked:
        if name not in known:
            raise OptionError(
                f"got denylisted operator {name!r}, expected one that the model has: {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
    return checked


def _float_nodes(calibrated: Model, quantized: Model, options: tf_private.QuantizeOptions) -> tuple[FloatNode, ...]:
    """Lists the operators of the quantized model, of all its subgraphs, that compute in float, with the reason of each."""
    result = []
    for position, subgraph in enumerate(quantized.subgraphs):
        source = calibrated.subgraphs[min(position, len(calibrated.subgraphs) - 1)]
        for operator in subgraph.operators:
            outputs = [subgraph.tensors[index] for index in operator.outputs]
            if operator.name in edit.BRIDGES or not any(tensor.is_float for tensor in outputs):
                continue
            node = _calibrated_node(source, outputs[0].name, operator.name)
            name = source.tensors[node.outputs[0]].name if node else outputs[0].name
            result.append(FloatNode(name, operator.name, _reason(source, node, operator.name, options)))
    return tuple(result)


def _calibrated_node(calibrated: Subgraph, name: str, op_name: str) -> Operator | None:
    nodes = calibrated.nodes
    candidates = nodes.get(_without_digits(name, nodes), [])
    return next((operator for operator in candidates if operator.name == op_name), None)


def _reason(calibrated: Subgraph, node: Operator | None, op_name: str, options: tf_private.QuantizeOptions) -> str:
    if op_name in options.denylisted_ops:
        return f"denylisted operator {op_name}"
    if node is None:
        return f"TensorFlow's quantizer made this {op_name} itself"
    names = {calibrated.tensors[output].name for output in node.outputs}
    if names.intersection(options.denylisted_nodes):
        return "denylisted node"
    activations = [
        calibrated.tensors[index]
        for index in (*node.inputs, *node.outputs)
        if index >= 0 and calibrated.tensors[index].is_float and not calibrated.tensors[index].is_constant
    ]
    missing = [tensor.name for tensor in activations if tensor.minimum is None]
    if missing:
        return f"no calibrated range for {missing[0]!r}: the representative dataset never reached it"
    return f"TensorFlow's quantizer has no integer {op_name}, or none for these types and shapes"


def _require_no_float(float_nodes: Sequence[FloatNode]) -> None:
    if not float_nodes:
        return
    shown = "; ".join(f"{node.op_name} {node.node!r} ({node.reason})" for node in float_nodes[:5])
    more = f" and {len(float_nodes) - 5} more" if len(float_nodes) > 5 else ""
    raise ConversionError(
        f"full_integer: {len(float_nodes)} operators cannot be quantized: {shown}{more}; expected integer operators only. "
        "Change the model, or use kind 'int8', which leaves them in float"
    )
