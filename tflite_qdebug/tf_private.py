"""The one module that imports TensorFlow, or touches a private name of it or of an interpreter.

Everything here is imported inside functions: a board has neither TensorFlow nor the flatbuffer schema. When a release of
TensorFlow moves one of these names, ``tests/test_tf_private.py`` fails first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import logging
import os
import sys
import tempfile
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from tflite_qdebug.errors import (
    ConversionError,
    InterpreterError,
    MissingPackageError,
    ModelError,
    OptionError,
    QDebugError,
)

#: What TensorFlow and its parts say while they work.
_log = logging.getLogger("tflite_qdebug.tensorflow")

RUNTIMES = ("tensorflow", "ai_edge_litert", "tflite_runtime")
KERNELS = ("auto", "builtin", "reference")

_INTERPRETER_MODULES = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tflite_runtime": "tflite_runtime.interpreter",
}


def tensorflow() -> Any:
    """Returns the tensorflow module, imported without its start-up chatter.

    Raises:
        MissingPackageError: Where TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if "tensorflow" in sys.modules:
            import tensorflow
        else:
            with captured_chatter():
                import tensorflow
    except ImportError as error:
        raise MissingPackageError(
            "this step needs TensorFlow, which cannot be imported ({}); install it with "
            "pip install 'tflite-qdebug[host]'".format(error)
        ) from error
    return tensorflow


@functools.lru_cache(maxsize=None)
def schema() -> Any:
    """Returns the generated reader of the TensorFlow Lite schema, from TensorFlow or else from ai-edge-litert."""
    for name in ("tensorflow.lite.python.schema_py_generated", "ai_edge_litert.schema_py_generated"):
        try:
            if name.startswith("tensorflow"):
                tensorflow()
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingPackageError(
        "reading the structure of a model needs TensorFlow or ai-edge-litert, and neither is installed; install one "
        "with pip install 'tflite-qdebug[host]'"
    )


@functools.lru_cache(maxsize=None)
def builtin_operator_names() -> Dict[int, str]:
    """Returns the schema's operator names by their code."""
    return {code: name for name, code in vars(schema().BuiltinOperator).items() if isinstance(code, int)}


# --------------------------------------------------------------------------------------------------------- interpreters


class Runtime(NamedTuple):
    """One package that can run a model."""

    name: str
    version: str
    interpreter: Any
    load_delegate: Any
    resolvers: Any


def open_runtime(name: str = "auto") -> Runtime:
    """Imports the interpreter of a runtime.

    Args:
        name: ``tensorflow``, ``ai_edge_litert`` or ``tflite_runtime``; ``auto`` takes the first that is installed.

    Raises:
        OptionError: For another name.
        MissingPackageError: Where that package is not installed.
    """
    if name != "auto" and name not in RUNTIMES:
        raise OptionError("got runtime {!r}, expected auto, {}".format(name, " or ".join(RUNTIMES)))
    tried = []
    for candidate in RUNTIMES if name == "auto" else (name,):
        try:
            return _import_runtime(candidate)
        except ImportError as error:
            tried.append("{} ({})".format(candidate, error))
    raise MissingPackageError(
        "no interpreter can be imported: {}; install TensorFlow, ai-edge-litert or tflite-runtime".format(", ".join(tried))
    )


@functools.lru_cache(maxsize=None)
def _import_runtime(name: str) -> Runtime:
    if name == "tensorflow":
        tf = tensorflow()
        module = importlib.import_module("tensorflow.lite.python.interpreter")
        return Runtime(name, tf.__version__, module.Interpreter, module.load_delegate, module.OpResolverType)
    module = importlib.import_module(_INTERPRETER_MODULES[name])
    return Runtime(
        name,
        _distribution_version(name),
        module.Interpreter,
        module.load_delegate,
        getattr(module, "OpResolverType", None),
    )


def _distribution_version(package: str) -> str:
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))
    for name in (package.replace("_", "-"), package.replace("_", "-") + "-nightly"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def new_interpreter(
    runtime: Runtime, model: bytes, kernels: str, threads: int, delegates: Sequence[Any] = (), preserve: bool = False
) -> Any:
    """Makes an interpreter of ``runtime`` with the kernels asked for; tensors are not yet allocated.

    Older runtimes know fewer arguments, so each is passed where its constructor takes it, and its absence is an error
    where it was needed to honour the request.
    """
    resolvers = {"auto": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
    arguments: Dict[str, Any] = {"model_content": model, "num_threads": threads}
    known = inspect.signature(runtime.interpreter.__init__).parameters
    if kernels != "auto":
        if "experimental_op_resolver_type" not in known or runtime.resolvers is None:
            raise InterpreterError(
                "{} {} cannot choose kernels: got kernels={!r}, expected 'auto', or a newer runtime".format(
                    runtime.name, runtime.version, kernels
                )
            )
        arguments["experimental_op_resolver_type"] = getattr(runtime.resolvers, resolvers[kernels])
    if preserve:
        arguments["experimental_preserve_all_tensors"] = True
    if delegates:
        if "experimental_delegates" not in known:
            raise InterpreterError("{} {} takes no delegates; install a newer runtime".format(runtime.name, runtime.version))
        arguments["experimental_delegates"] = list(delegates)
    with warnings.catch_warnings():
        # tf.lite.Interpreter announces its own removal at each construction.
        warnings.simplefilter("ignore")
        return runtime.interpreter(**{name: value for name, value in arguments.items() if name in known})


def tensor_view(interpreter: Any) -> Callable[[int], np.ndarray]:
    """Returns a function from tensor index to a view of its memory, without a copy.

    The public ``Interpreter.tensor`` makes two calls and a closure for each view, which is measurable at hundreds of
    tensors a sample. Every view must be gone before the next invocation.
    """
    # The interpreter counts the references to its wrapper to see whether a view is left: none may be kept here.
    if "subgraph_index" in inspect.signature(interpreter.get_tensor).parameters:
        return lambda index: interpreter._interpreter.tensor(interpreter._interpreter, index, 0)
    return lambda index: interpreter._interpreter.tensor(interpreter._interpreter, index)


def delegated_tensors(interpreter: Any) -> List[int]:
    """Returns the tensors that a delegate, XNNPACK or another, writes where others can read them, by index."""
    wrapper = interpreter._interpreter
    nodes = [node for node in range(wrapper.NumNodes()) if wrapper.NodeName(node) in ("DELEGATE", "Delegate")]
    return sorted({int(tensor) for node in nodes for tensor in wrapper.NodeOutputs(node)})


def node_count(interpreter: Any) -> int:
    """Returns how many nodes the main subgraph has, those that delegates appended among them."""
    return int(interpreter._interpreter.NumNodes())


def partitions(interpreter: Any) -> Tuple[List[str], List[Tuple[int, List[int]]]]:
    """Returns the operators' names, and for each node that a delegate appended its number and the operators that it replaces.

    What it replaces is what lies between its outputs and its inputs; an operator of whose results none is ever used is missed.
    """
    wrapper, details = interpreter._interpreter, operators(interpreter)
    producers = {int(tensor): number for number, one in enumerate(details) for tensor in one["outputs"]}
    found = []
    for node in range(wrapper.NumNodes()):
        if wrapper.NodeName(node) not in ("DELEGATE", "Delegate"):
            continue
        inputs = {int(tensor) for tensor in wrapper.NodeInputs(node)}
        inside: Set[int] = set()
        pending = [int(tensor) for tensor in wrapper.NodeOutputs(node)]
        while pending:
            tensor = pending.pop()
            number = producers.get(tensor, -1)
            if tensor not in inputs and number >= 0 and number not in inside:
                inside.add(number)
                pending += [int(feed) for feed in details[number]["inputs"]]
        found.append((node, sorted(inside)))
    return [str(one["op_name"]) for one in details], found


def operators(interpreter: Any) -> List[Dict[str, Any]]:
    """Returns the interpreter's operators, without the nodes that delegates append."""
    return [operator for operator in interpreter._get_ops_details() if operator["op_name"] not in ("DELEGATE", "Delegate")]


# ------------------------------------------------------------------------------------------------------------- chatter


class Captured:
    """What was written to the standard error stream while it was captured."""

    text = ""


@contextlib.contextmanager
def captured_chatter() -> Iterator[Captured]:
    """Captures what Python prints to stdout and what native code writes to file descriptor 2.

    TensorFlow's converter prints a report to the one and its passes write to the other; both would break ``--json``
    and progress bars. The text explains failures, so it is kept for their message.
    """
    captured = Captured()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        try:
            saved = os.dup(2)
        except OSError:  # no standard error at all: nothing to capture
            yield captured
            return
        try:
            os.dup2(sink.fileno(), 2)
            with contextlib.redirect_stdout(_NullWriter()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield captured
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            captured.text = sink.read().decode("utf-8", "replace")
            if _log.isEnabledFor(logging.DEBUG):
                for line in captured.text.splitlines():
                    _log.debug("%s", line)


class _NullWriter:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _reason(error: BaseException, captured: Captured) -> str:
    """Returns the lines of a failure that tell something: its own message and the errors TensorFlow logged."""
    logged = [line.strip() for line in captured.text.splitlines() if "error:" in line or "Error:" in line]
    message = str(error).strip() or type(error).__name__
    return "; ".join(dict.fromkeys([message.splitlines()[0]] + logged[:3]))


# ----------------------------------------------------------------------------------------------------------- conversion


def increase_debugger_counter() -> None:
    """Counts the construction of a debugger in TensorFlow's metrics, as its own debugger does; nothing without it."""
    try:
        metrics = importlib.import_module("tensorflow.lite.python.metrics.metrics")
    except ImportError:
        return
    metrics.TFLiteMetrics().increase_counter_debugger_creation()


def is_converter(value: Any) -> bool:
    """True for a ``tf.lite.TFLiteConverter``; does not import TensorFlow to say no."""
    lite = sys.modules.get("tensorflow.lite.python.lite")
    return lite is not None and isinstance(value, lite.TFLiteConverterBase)


def is_keras_model(value: Any) -> bool:
    """True for a model of Keras 3 or of tf-keras; imports neither."""
    for module in ("keras", "tf_keras"):
        model = getattr(sys.modules.get(module), "Model", None)
        if model is not None and isinstance(value, model):
            return True
    return False


def load_keras_model(path: str) -> Any:
    """Loads a ``.keras`` or ``.h5`` file with Keras 3, or with tf-keras where Keras 3 refuses it.

    Raises:
        ModelError: Where neither can load it.
    """
    tensorflow()
    refusals = []
    for name in ("keras", "tf_keras"):
        try:
            with captured_chatter():
                return importlib.import_module(name).models.load_model(path, compile=False)
        except Exception as error:
            refusals.append("{}: {}".format(name, str(error).strip().splitlines()[0] if str(error).strip() else error))
    raise ModelError("cannot load the Keras model {} ({})".format(path, "; ".join(refusals)))


def convert_keras_to_float(model: Any) -> bytes:
    """Converts a Keras model once, as `convert_to_float`.

    TensorFlow before 2.18 aborts the process when ``from_keras_model`` is given a model of Keras 3, so there the model goes
    through a SavedModel, written as newer releases do it themselves.
    """
    tf = tensorflow()
    if version_of(tf) >= (2, 18) or not _is_keras_3(model):
        return convert_to_float(tf.lite.TFLiteConverter.from_keras_model(model))
    keras = sys.modules["keras"]
    with tempfile.TemporaryDirectory(prefix="tflite_qdebug_") as folder:
        with captured_chatter():
            archive = keras.export.ExportArchive()
            archive.track(model)
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
            signature = [specs] if len(specs) > 1 else specs
            archive.add_endpoint("serve", functools.partial(model.__call__, training=False), signature)
            archive.write_out(folder)
        return convert_to_float(converter_from_saved_model(folder))


def version_of(module: Any) -> Tuple[int, int]:
    """Returns major and minor version of a package."""
    major, minor = module.__version__.split(".")[:2]
    return int(major), int(minor)


def _is_keras_3(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and keras.__version__.startswith("3") and isinstance(model, keras.Model)


def converter_from_saved_model(path: str) -> Any:
    """Returns a converter for a SavedModel directory.

    Raises:
        ModelError: Where TensorFlow cannot load it.
    """
    tf = tensorflow()
    with captured_chatter() as captured:
        try:
            return tf.lite.TFLiteConverter.from_saved_model(path)
        except Exception as error:
            raise ModelError("cannot load the SavedModel {}: {}".format(path, _reason(error, captured))) from error


def convert_to_float(converter: Any) -> bytes:
    """Converts once and returns the float model that TensorFlow's own calibration would start from.

    The conversion runs on a shallow copy with integer quantization switched on, since that is what decides how the
    graph is lowered; the step that would calibrate and quantize is replaced on that copy, and returns the float model
    as it gets it. The user's converter is not written to.

    Raises:
        ConversionError: With TensorFlow's own words.
    """
    tf = tensorflow()
    work = copy.copy(converter)
    work.target_spec = copy.copy(converter.target_spec)
    work._metadata = copy.deepcopy(converter._metadata)
    work._collected_converter_params = dict(converter._collected_converter_params)
    if hasattr(converter, "_funcs"):
        work._funcs = list(converter._funcs)
    work.optimizations = [tf.lite.Optimize.DEFAULT]
    work.experimental_new_quantizer = True
    work._experimental_calibrate_only = False
    work.representative_dataset = work.representative_dataset or (lambda: iter(()))
    work.inference_input_type = work.inference_output_type = tf.float32
    # float16 as a supported type would cast the weights during the conversion.
    work.target_spec.supported_types = []
    work._quantize = lambda float_model, *arguments, **keywords: float_model
    with captured_chatter() as captured:
        try:
            return bytes(work.convert())
        except Exception as error:
            raise ConversionError("TensorFlow could not convert the model: {}".format(_reason(error, captured))) from error


class ConverterSettings(NamedTuple):
    """What a converter says about quantization."""

    kind: str
    optimized: bool
    representative_dataset: Optional[Callable[[], Iterable[Any]]]
    input_type: str
    output_type: str
    per_channel: bool
    per_channel_dense: bool
    quantize_variables: bool


def converter_settings(converter: Any) -> ConverterSettings:
    """Reads from a converter which kind of model its ``convert()`` would make."""
    tf = tensorflow()
    spec = converter.target_spec
    operators_wanted, types = set(spec.supported_ops), set(spec.supported_types)
    int16 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    only_integer = operators_wanted == {tf.lite.OpsSet.TFLITE_BUILTINS_INT8} or types == {tf.int8}
    if not converter.optimizations:
        kind = "float"
    elif int16 in operators_wanted:
        kind = "int16x8"
    elif tf.float16 in types:
        kind = "float16"
    elif converter.representative_dataset is None:
        kind = "dynamic_range"
    else:
        kind = "full_integer" if only_integer else "int8"
    dataset = converter.representative_dataset
    # convert() wraps the user's function in a RepresentativeDataset, and leaves it so.
    dataset = getattr(dataset, "input_gen", dataset)
    return ConverterSettings(
        kind=kind,
        optimized=bool(converter.optimizations),
        representative_dataset=dataset,
        input_type=np.dtype(tf.as_dtype(converter.inference_input_type).as_numpy_dtype).name,
        output_type=np.dtype(tf.as_dtype(converter.inference_output_type).as_numpy_dtype).name,
        per_channel=not converter._experimental_disable_per_channel,
        per_channel_dense=not getattr(converter, "_experimental_disable_per_channel_quantization_for_dense_layers", False),
        quantize_variables=bool(getattr(converter, "_experimental_variable_quantization", False)),
    )


def _calibrator() -> Any:
    tensorflow()
    return importlib.import_module("tensorflow.lite.python.optimize.calibrator")


def calibrate(float_model: bytes, samples: Callable[[], Iterable[Any]]) -> bytes:
    """Runs TensorFlow's calibrator over ``samples`` and returns the calibrated model.

    Raises:
        ConversionError: With TensorFlow's own words.
    """
    module = _calibrator()
    try:
        # Nothing is captured here: the user's dataset runs inside, and may print or show progress.
        return bytes(module.Calibrator(module.add_intermediate_tensors(float_model)).calibrate(samples))
    except QDebugError as error:
        error.__cause__ = error.__cause__ or error.__context__  # TensorFlow's decorator raises it anew 'from None'
        raise
    except Exception as error:
        raise ConversionError("TensorFlow could not calibrate the model: {}".format(_reason(error, Captured()))) from error


class QuantizeOptions(NamedTuple):
    """Arguments of one quantization of a calibrated model; data types by numpy name."""

    input_type: str = "float32"
    output_type: str = "float32"
    fully_quantize: bool = False
    numeric_verify: bool = False
    whole_model: bool = False
    denylisted_ops: Tuple[str, ...] = ()
    denylisted_nodes: Tuple[str, ...] = ()
    per_channel: bool = True
    per_channel_dense: bool = True
    quantize_variables: bool = False


def quantize(calibrated: bytes, options: QuantizeOptions) -> bytes:
    """Calls TensorFlow's int8 quantizer on a calibrated model.

    Raises:
        ConversionError: With TensorFlow's own words.
    """
    tf = tensorflow()
    convert = importlib.import_module("tensorflow.lite.python.convert")
    arguments = {
        "disable_per_channel": not options.per_channel,
        "fully_quantize": options.fully_quantize,
        "input_data_type": tf.as_dtype(options.input_type),
        "output_data_type": tf.as_dtype(options.output_type),
        "enable_numeric_verify": options.numeric_verify,
        "enable_whole_model_verify": options.whole_model,
        "denylisted_ops": list(options.denylisted_ops) or None,
        "denylisted_nodes": list(options.denylisted_nodes) or None,
        "enable_variable_quantization": options.quantize_variables,
    }
    if not options.per_channel_dense:
        arguments["disable_per_channel_for_dense_layers"] = True
        if "disable_per_channel_for_dense_layers" not in inspect.signature(convert.mlir_quantize).parameters:
            raise ConversionError(
                "TensorFlow {} cannot quantize dense layers per tensor alone; use TensorFlow 2.17 or newer, or "
                "per_channel=False".format(tf.__version__)
            )
    with captured_chatter() as captured:
        try:
            return bytes(convert.mlir_quantize(calibrated, **arguments))
        except Exception as error:
            raise ConversionError("TensorFlow could not quantize the model: {}".format(_reason(error, captured))) from error


def quantizes_dense_per_channel() -> bool:
    """True where TensorFlow gives each channel of a dense layer a scale: since 2.17; its kernels read no such model before."""
    try:
        convert = importlib.import_module("tensorflow.lite.python.convert")
    except ImportError:  # no TensorFlow at all: the other runtimes are as new as that
        return True
    return "disable_per_channel_for_dense_layers" in inspect.signature(convert.mlir_quantize).parameters


def quantize_int16x8(calibrated: bytes, options: QuantizeOptions, allow_float: bool = True) -> bytes:
    """Calls TensorFlow's 16x8 quantizer on a calibrated model, whose ranges it uses.

    Raises:
        ConversionError: With TensorFlow's own words.
    """
    types = [np.dtype(name).num for name in (options.input_type, options.output_type, "int16", "int64")]
    with captured_chatter() as captured:
        try:
            # Without a sample fed, the calibrator adds nothing to the ranges that the model carries already.
            native = _calibrator().Calibrator(calibrated)._calibrator
            native.Prepare()
            arguments = [types[0], types[1], allow_float, types[2], types[3], not options.per_channel]
            try:
                return bytes(native.QuantizeModel(*arguments, not options.per_channel_dense))
            except TypeError:  # TensorFlow 2.16 has no argument for dense layers
                if not options.per_channel_dense:
                    raise
                return bytes(native.QuantizeModel(*arguments))
        except Exception as error:
            raise ConversionError(
                "TensorFlow could not quantize the model to 16x8: {}".format(_reason(error, captured))
            ) from error
