"""One face for the interpreters of TensorFlow, ai-edge-litert and tflite-runtime.

It feeds exactly what it is given (an integer input quantizes floats, clipped; nothing else is cast, nothing is resized
unless the model's shape is dynamic) and says which kernels really ran.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug import delegates as delegates_
from tflite_qdebug import tf_private
from tflite_qdebug.delegates import Delegate, Delegation
from tflite_qdebug.errors import DatasetError, InterpreterError, OptionError
from tflite_qdebug.quantization import QuantizationParameters

__all__ = ["Delegate", "Interpreter", "TensorInfo"]

_log = logging.getLogger(__name__)
# What the runtimes raise: pybind11 makes these of the exceptions of C++, which a broken file brings about in many kinds.
_REFUSALS = (RuntimeError, ValueError, MemoryError, IndexError, OverflowError)


class TensorInfo:
    """What the interpreter says of one tensor.

    Attributes:
        index: As in the model.
        name: The tensor's name.
        shape: Now, after allocation.
        dynamic_shape: With -1 where the model leaves the size open.
        dtype: numpy's.
        quantization: None without scales.
    """

    __slots__ = ("dtype", "dynamic_shape", "index", "name", "quantization", "shape")

    def __init__(self, detail: Mapping[str, Any]) -> None:
        """Reads one entry of ``get_tensor_details()``."""
        self.index = int(detail["index"])
        self.name = str(detail["name"])
        self.shape = tuple(int(size) for size in detail["shape"])
        self.dynamic_shape = tuple(int(size) for size in detail.get("shape_signature", self.shape))
        self.dtype = np.dtype(detail["dtype"])
        self.quantization = QuantizationParameters.from_detail(detail)


class Interpreter:
    """A model, ready to run.

    Attributes:
        runtime: Name of the package that runs it.
        version: Its version.
        kernels: The kernels in use: ``xnnpack`` (the runtime's default delegate), ``builtin`` or ``reference``.
        delegates: Those that were asked for.
        notes: What the reader of a result must know, such as a fallback of ``auto`` to the builtin kernels.
        canary: What a canary input showed of the delegates, as plain data; None where none ran.
    """

    def __init__(
        self,
        model: bytes,
        runtime: str = "auto",
        kernels: str = "auto",
        threads: int = 1,
        delegates: Sequence[Delegate] = (),
    ) -> None:
        """Opens a model and allocates its tensors.

        Args:
            model: Content of a ``.tflite``.
            runtime: ``tensorflow``, ``ai_edge_litert``, ``tflite_runtime``, or ``auto``: the first installed.
            kernels: ``auto``: the runtime's default, XNNPACK where it takes the model, else the builtin kernels, which
                is logged and noted; ``builtin``: optimized kernels without a delegate; ``reference``.
            threads: Threads of the kernels.
            delegates: Delegates to load and apply.

        Raises:
            OptionError: For an unknown runtime or kernels.
            InterpreterError: Where the runtime refuses the model, the kernels or a delegate.
        """
        if kernels not in tf_private.KERNELS:
            raise OptionError("got kernels {!r}, expected {}".format(kernels, ", ".join(tf_private.KERNELS)))
        if not isinstance(threads, int) or threads < 1:
            raise OptionError("got threads {!r}, expected an integer >= 1".format(threads))
        opened = tf_private.open_runtime(runtime)
        self.runtime, self.version = opened.name, opened.version
        self.notes: List[str] = []
        self.canary: Optional[Dict[str, Any]] = None
        self._nodes = 0  # before XNNPACK appends its own
        self._model, self._opened, self._threads = model, opened, threads
        self.delegates = tuple(delegates)
        loaded = [delegates_.load(opened, delegate) for delegate in delegates]
        self._interpreter, self.kernels = self._open(opened, kernels, threads, loaded)
        self._view = tf_private.tensor_view(self._interpreter)
        self._read_details()

    def _open(self, runtime: tf_private.Runtime, kernels: str, threads: int, loaded: List[Any]) -> Tuple[Any, str]:
        try:
            return self._allocated(runtime, kernels, threads, loaded), "xnnpack" if kernels == "auto" else kernels
        except _REFUSALS as error:
            reason = _reason(error)
            if kernels == "auto" and not loaded:
                interpreter = self._without_xnnpack(error)
                if interpreter is not None:
                    return interpreter, "builtin"
            raise InterpreterError(
                "{} {} cannot run the model with kernels={!r}{}: {}{}".format(
                    runtime.name,
                    runtime.version,
                    kernels,
                    " and {}".format(delegates_.label(self.delegates)) if loaded else "",
                    reason,
                    self._advice(str(error)),
                )
            ) from error

    def _advice(self, said: str) -> str:
        advice = delegates_.advice(said, self.delegates)
        return "; {}".format(advice) if advice else ""

    def _without_xnnpack(self, error: Exception) -> Any:
        """Returns an interpreter of the builtin kernels where the error is XNNPACK's, and notes it; else None."""
        if "XNNPACK" not in str(error).upper():
            return None
        try:
            interpreter = self._allocated(self._opened, "builtin", self._threads, [])
        except _REFUSALS:
            return None
        note = "XNNPACK refuses this model ({}); the builtin kernels ran instead".format(_reason(error))
        _log.warning(note)
        self.notes.append(note)
        return interpreter

    def _allocated(self, runtime: tf_private.Runtime, kernels: str, threads: int, loaded: List[Any]) -> Any:
        with tf_private.captured_chatter():
            interpreter = tf_private.new_interpreter(runtime, self._model, kernels, threads, loaded)
            self._nodes = tf_private.node_count(interpreter)
            interpreter.allocate_tensors()
        return interpreter

    def _read_details(self) -> None:
        try:
            self.inputs = [TensorInfo(detail) for detail in self._interpreter.get_input_details()]
            self.outputs = [TensorInfo(detail) for detail in self._interpreter.get_output_details()]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a name that is no UTF-8, a type that numpy lacks
            raise InterpreterError(
                "{} {} cannot describe the model's inputs and outputs: {}".format(self.runtime, self.version, error)
            ) from error

    def feed(self, arrays: Sequence[np.ndarray]) -> None:
        """Sets the inputs.

        Args:
            arrays: One array for each input, in input order, of the input's shape and dtype; a float32 array for an
                integer input with a scale is quantized, and clipped to the type's range.

        Raises:
            DatasetError: For another count, shape or dtype.
        """
        if len(arrays) != len(self.inputs):
            raise DatasetError(
                "Number of inputs provided ({}) does not match number of inputs to the model ({})".format(
                    len(arrays), len(self.inputs)
                )
            )
        shapes = [np.shape(array) for array in arrays]
        if any(shape != info.shape for shape, info in zip(shapes, self.inputs)):
            self._resize(shapes)
        for array, info in zip(arrays, self.inputs):
            if array.dtype != info.dtype:
                if array.dtype != np.float32 or info.quantization is None:
                    raise DatasetError(
                        "input {!r}: got dtype {}, expected {}; convert it with array.astype".format(
                            info.name, array.dtype, info.dtype
                        )
                    )
                array = info.quantization.quantize(array, info.dtype)
            try:
                self._interpreter.set_tensor(info.index, array)
            except _REFUSALS as error:
                raise InterpreterError(
                    "{} {} does not take input {!r}: {}".format(self.runtime, self.version, info.name, str(error).strip())
                ) from error

    def _resize(self, shapes: Sequence[Tuple[int, ...]]) -> None:
        """Gives dynamic inputs the sample's shape; a fixed dimension that differs is an error."""
        for shape, info in zip(shapes, self.inputs):
            fits = len(shape) == len(info.dynamic_shape) and all(
                expected in (-1, size) for size, expected in zip(shape, info.dynamic_shape)
            )
            if not fits:
                raise DatasetError("input {!r}: got shape {}, expected {}".format(info.name, tuple(shape), info.dynamic_shape))
            self._interpreter.resize_tensor_input(info.index, shape, strict=True)
        try:
            self._interpreter.allocate_tensors()
        except _REFUSALS as error:
            raise InterpreterError(
                "{} {} cannot run the model on inputs of shapes {}: {}".format(
                    self.runtime, self.version, ", ".join(map(str, shapes)), str(error).strip()
                )
            ) from error
        self._read_details()

    def invoke(self, arrays: Sequence[np.ndarray]) -> None:
        """Feeds one sample and runs the model; views made before it must be gone.

        Raises:
            DatasetError: As `feed`.
            InterpreterError: Where a kernel fails.
        """
        self.feed(arrays)
        try:
            self._interpreter.invoke()
        except _REFUSALS as error:
            # With sizes that the file leaves open XNNPACK sees only now what it has to run.
            if self.kernels == "xnnpack" and not self.delegates:
                interpreter = self._without_xnnpack(error)
                if interpreter is not None:
                    self._interpreter, self.kernels = interpreter, "builtin"
                    self._view = tf_private.tensor_view(interpreter)
                    self._read_details()
                    self.invoke(arrays)
                    return
            raise InterpreterError(
                "{} {} failed while running the model with {}{} kernels: {}{}".format(
                    self.runtime,
                    self.version,
                    "{} and ".format(delegates_.label(self.delegates)) if self.delegates else "",
                    self.kernels,
                    str(error).strip(),
                    self._advice(str(error)),
                )
            ) from error

    def timed_invoke(self, arrays: Sequence[np.ndarray]) -> float:
        """Does as `invoke`, and returns the seconds that the model itself took, without those for feeding it.

        Raises:
            DatasetError: As `feed`.
            InterpreterError: Where a kernel fails.
        """
        self.feed(arrays)
        start = time.perf_counter()
        try:
            self._interpreter.invoke()
        except _REFUSALS:
            self.invoke(arrays)  # says why, or goes on without XNNPACK
            return self.timed_invoke(arrays)
        return time.perf_counter() - start

    def view(self, index: int) -> np.ndarray:
        """Returns the memory of a tensor, not copied; let go of it before the next `invoke`."""
        try:
            return self._view(index)
        except _REFUSALS as error:
            raise self._unreadable(index, error) from error

    def read(self, index: int) -> np.ndarray:
        """Returns a copy of a tensor.

        Raises:
            InterpreterError: Where it has no values: one that is not computed, or whose memory others have taken.
        """
        try:
            return self._interpreter.get_tensor(index)
        except _REFUSALS as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> InterpreterError:
        return InterpreterError("{} {} holds no values of tensor {}: {}".format(self.runtime, self.version, index, error))

    def read_outputs(self, dequantized: bool = False) -> List[np.ndarray]:
        """Returns copies of the outputs, in output order; ``dequantized``: as float32 where they carry a scale."""
        outputs = []
        for info in self.outputs:
            values = self.read(info.index)
            if dequantized and info.quantization is not None and values.dtype != np.float32:
                values = info.quantization.dequantize(values)
            outputs.append(values)
        return outputs

    def reset_variables(self) -> None:
        """Sets the state of recurrent layers back to its beginning."""
        try:
            self._interpreter.reset_all_variables()
        except _REFUSALS as error:
            raise InterpreterError(
                "{} {} cannot set the model's variables back: {}".format(self.runtime, self.version, str(error).strip())
            ) from error

    def tensor_infos(self) -> Dict[int, TensorInfo]:
        """Returns what is known of every tensor of the main subgraph, by index."""
        return {int(detail["index"]): TensorInfo(detail) for detail in self._interpreter.get_tensor_details()}

    def delegated(self) -> List[int]:
        """Returns the indices of the tensors that a delegate computes (XNNPACK is one), as far as others can read them."""
        return tf_private.delegated_tensors(self._interpreter)

    @property
    def code(self) -> str:
        """What runs the model, in short: ``xnnpack``, or ``libedgetpu.so.1 + xnnpack``."""
        return " + ".join([*(delegates_.library_name(delegate) for delegate in self.delegates), self.kernels])

    def delegation(self) -> Delegation:
        """Returns how many operators the delegates that were asked for took, and what they left to which kernels."""
        return delegates_.delegation(self._interpreter, self._nodes if self.delegates else 0, self.kernels)

    def provenance(self) -> Dict[str, Any]:
        """Returns which code ran, for the saved run."""
        about: Dict[str, Any] = {
            "runtime": self.runtime,
            "runtime_version": self.version,
            "kernels": self.kernels,
            "delegates": delegates_.described(self.delegates),
            "numpy": np.__version__,
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
        }
        if self.delegates:
            about["delegation"] = dict(self.delegation()._asdict())
        if self.canary is not None:
            about["canary"] = self.canary
        return about


def _reason(error: Exception) -> str:
    text = str(error).strip().replace("Restored original execution plan after delegate application failure.", "")
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
