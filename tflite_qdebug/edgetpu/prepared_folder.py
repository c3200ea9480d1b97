"""A folder that was prepared for a device: its manifest, its models, the samples and the reference values. Part of the board.

The manifest names every file with its hash, what each model reads and computes, and what each operator is. Tensors are called
by their index in the model that the folder was made of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from tflite_qdebug.errors import ModelError
from tflite_qdebug.kernel_record import FLOAT_ROUNDING, Difference

__all__ = ["FORMAT", "FORMAT_VERSION", "MANIFEST", "PreparedFolder", "PreparedModel", "PreparedOperator", "PreparedTensor"]

FORMAT = "tflite_qdebug prepared for a device"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
#: What a compiled model has in place of the operators that the compiler mapped.
CUSTOM_OPERATOR = b"edgetpu-custom-op"
# Lines of the compiler's log that say why there is no model.
_FAILURES = (
    "ERROR:",
    "Compilation failed",
    "Internal compiler error",
    "Invalid model",
    "Model not quantized",
    "could not be parsed",
)
# Two quotients of float32 that stand for integers may be this far off.
_SLACK = 1e-3


@dataclasses.dataclass(frozen=True)
class PreparedTensor:
    """A tensor of the model.

    Attributes:
        index: In the model that was prepared.
        name: The same.
        plain: Its name in the prepared models, plain ASCII.
        dtype: numpy's name.
        shape: As the model has it.
        step: Real units per step of a quantized tensor, and of floats that were just dequantized; else None.
    """

    index: int
    name: str
    plain: str
    dtype: str
    shape: Tuple[int, ...]
    step: Optional[float]

    @property
    def unit(self) -> str:
        """``steps``; ``relative`` for floats, whose RMSE is taken relative to their RMS; ``units`` for other integers."""
        return "steps" if self.step is not None else "relative" if np.dtype(self.dtype).kind in "fc" else "units"

    def difference(self, values: np.ndarray, reference: np.ndarray, sample: int) -> Difference:
        """Compares values of the device with those of the CPU, in steps where the tensor has any."""
        if self.step is not None and values.dtype.kind == "f" and reference.dtype.kind == "f":
            return Difference.between(values / np.float64(self.step), reference / np.float64(self.step), sample)
        return Difference.between(values, reference, sample)

    def size(self, difference: Difference) -> float:
        """Returns how large a difference is, in `unit`; infinite where one side alone is NaN, or shapes differ."""
        if difference.one_sided or difference.other_shape:
            return float("inf")
        return difference.relative_rmse if self.unit == "relative" else difference.max_absolute

    def excess(self, difference: Difference, tolerance: float) -> float:
        """Returns the size over what is tolerated; more than 1 is too much.

        Args:
            difference: Of this tensor.
            tolerance: Steps. Floats may differ by float32's rounding, integers without a scale not at all.
        """
        limit = {"steps": tolerance + _SLACK, "relative": FLOAT_ROUNDING, "units": _SLACK}[self.unit]
        return self.size(difference) / limit


@dataclasses.dataclass(frozen=True)
class PreparedOperator:
    """An operator of the model.

    Attributes:
        index: Position in execution order.
        type: Such as ``CONV_2D``.
        node: Name of its first output.
        inputs: The tensors that it reads, but for constants and state.
        outputs: The tensors that it computes and that are compared.
        mapped: True where it is predicted to run on the Edge TPU.
        why: Why not, in plain words.
    """

    index: int
    type: str
    node: str
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    mapped: bool
    why: str


@dataclasses.dataclass(frozen=True)
class PreparedModel:
    """A model of the folder.

    Attributes:
        file: Its path in the folder.
        kind: ``whole``, ``tapped`` (with intermediate tensors as outputs behind its own), ``prefix`` or ``layer``.
        inputs: The tensor whose value each input takes, in input order.
        outputs: The tensors that it gives, in output order.
        operators: How many operators it begins with, of a prefix; position of the operator, of a layer; else 0.
        compile: Whether there is something in it for the compiler.
        compiled: Where its compiled form is looked for.
    """

    file: str
    kind: str
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    operators: int
    compile: bool
    compiled: str


class PreparedFolder:
    """A prepared folder, read only.

    Attributes:
        path: Where it is.
        manifest: All that the manifest says.
        tensors: By index.
        operators: In execution order.
        models: In the order in which they are run.
        inputs: The model's own inputs.
        samples: The files with samples and reference values.
    """

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        """Reads the manifest.

        Raises:
            ModelError: Where there is none, or not of this kind.
        """
        self.path = os.fspath(path)
        content = self._content(MANIFEST)
        try:
            self.manifest: Dict[str, Any] = json.loads(content.decode("utf-8"))
            found = self.manifest.get("format"), self.manifest.get("format_version")
            if found != (FORMAT, FORMAT_VERSION):
                raise ModelError(
                    "{}: got {!r} version {!r}, expected {!r} version {}; prepare the model again with this version of "
                    "tflite-qdebug".format(os.path.join(self.path, MANIFEST), found[0], found[1], FORMAT, FORMAT_VERSION)
                )
            self.tensors = {int(one["index"]): PreparedTensor(**_with_tuples(one)) for one in self.manifest["tensors"]}
            self.operators = [PreparedOperator(**_with_tuples(one)) for one in self.manifest["operators"]]
            self.models = [PreparedModel(**_with_tuples(one)) for one in self.manifest["models"]]
            self.inputs = tuple(int(index) for index in self.manifest["inputs"])
            self.samples = [str(name) for name in self.manifest["samples"]]
            self.files: Dict[str, str] = dict(self.manifest["files"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError("{} is no manifest: {}".format(os.path.join(self.path, MANIFEST), error)) from error
        self.sha256 = hashlib.sha256(content).hexdigest()

    def _content(self, name: str) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read()
        except OSError as error:
            raise ModelError(
                "cannot read {}: {}; expected a folder that 'tflite-qdebug edgetpu prepare' wrote, whole".format(
                    os.path.join(self.path, name), error.strerror or error
                )
            ) from error

    def check(self) -> None:
        """Compares every file with its hash.

        Raises:
            ModelError: Where one is missing or has changed.
        """
        wrong = []
        for name, expected in sorted(self.files.items()):
            if hashlib.sha256(self._content(name)).hexdigest() != expected:
                wrong.append(name)
        if wrong:
            raise ModelError(
                "{} of {} files in {} are not what was prepared (their hashes differ): {}; copy the folder once more, or "
                "prepare it again".format(len(wrong), len(self.files), self.path, ", ".join(wrong[:3]))
            )

    @property
    def has_compiled(self) -> bool:
        """True where there is a compiled form of any model."""
        return any(os.path.exists(os.path.join(self.path, model.compiled)) for model in self.models)

    def content(self, model: PreparedModel, compiled: bool) -> Optional[bytes]:
        """Returns a model, or its compiled form; None where that is not there.

        Raises:
            ModelError: Where it cannot be read, or is no model.
        """
        name = model.compiled if compiled else model.file
        if compiled and not os.path.exists(os.path.join(self.path, name)):
            return None
        content = self._content(name)
        if content[4:8] != b"TFL3":
            raise ModelError("{} is no TensorFlow Lite model; compile it again".format(os.path.join(self.path, name)))
        return content

    def why_missing(self, model: PreparedModel) -> str:
        """Says why the compiled form of a model is not there, in the compiler's words where it left any."""
        log = os.path.splitext(os.path.join(self.path, model.compiled))[0].replace("_edgetpu", "") + ".log"
        try:
            with open(log, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file]
        except OSError:
            return "not compiled" if model.compile else "nothing in it for the device"
        told = [line for line in lines if any(part in line for part in _FAILURES)]
        return "the compiler refused it: {}".format(told[0] if told else (lines or ["without a word"])[-1])

    def values(self, sample: str, tensors: Tuple[int, ...]) -> List[np.ndarray]:
        """Returns the reference values of some tensors for one sample.

        Raises:
            ModelError: Where the file does not hold them.
        """
        path = os.path.join(self.path, sample)
        try:
            with np.load(path) as arrays:
                return [arrays[str(index)] for index in tensors]
        except (OSError, KeyError, ValueError) as error:
            raise ModelError("{} does not hold the reference values: {}".format(path, error)) from error


def _with_tuples(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
