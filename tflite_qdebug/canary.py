"""A canary input goes through a delegate twice before anything that it computes is believed.

A delegate that was built for another release of TensorFlow Lite crashes, or gives other numbers each time; a device may be
ill. The canary needs no data: it is made of the model's inputs, and is the same for each model at each time. Where the
runtime's own kernels can run the model, they say what is plausible. A delegate that is merely inexact passes, with a note: to
find out where it differs is what other analyses are for.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from tflite_qdebug.delegates import crash_advice, label, untaken_advice
from tflite_qdebug.errors import InterpreterError
from tflite_qdebug.interpreter import Interpreter

__all__ = ["WrongCanaryError", "examine", "inputs_of"]

# In quantization steps: below that, the canary's own output hardly varies, or two kernels round differently layer for layer.
_VARIES, _FAR, _WORTH_NOTING = 4.0, 8.0, 2.0
# Two outputs that have no more in common than this belong to different computations.
_ALIKE = 0.1
# A float output's step, as a share of its greatest value: what eight bits would give.
_FLOAT_STEP = 1.0 / 256.0


class _Distance(NamedTuple):
    """How far one output is from the CPU's, in steps.

    Attributes:
        most: The greatest difference.
        rms: Its root mean square.
        spread: Standard deviation of the CPU's output.
        extent: From the CPU's least value to its greatest.
        constant: True where the delegate's output is one value throughout.
        likeness: Correlation of both.
    """

    most: float
    rms: float
    spread: float
    extent: float
    constant: bool
    likeness: float

    @property
    def fault(self) -> str:
        """What is implausible; empty where nothing is."""
        if self.constant and self.extent >= _FAR:
            return "is one value throughout, where the CPU's extends over {:.0f} quantization steps".format(self.extent)
        if self.spread >= _VARIES and self.rms >= _FAR and self.likeness < _ALIKE:
            return "has nothing in common with the CPU's: it differs by {:.0f} quantization steps (root mean square)".format(
                self.rms
            )
        return ""


def inputs_of(interpreter: Interpreter) -> Optional[List[np.ndarray]]:
    """Returns the canary input: one array for each input, the same each time; None for a type that it knows nothing of.

    Integers with a scale are drawn from all that the type holds, floats from -1 to 1; other integers, which may be
    positions in a table, are 0 and 1.
    """
    generator = np.random.RandomState(20210422)
    arrays = []
    for info in interpreter.inputs:
        array: np.ndarray
        if info.dtype.kind == "f":
            array = generator.uniform(-1.0, 1.0, info.shape)
        elif info.dtype.kind in "iu" and (info.quantization is not None or info.dtype.itemsize == 1):
            limits = np.iinfo(info.dtype)
            array = generator.randint(int(limits.min), int(limits.max) + 1, info.shape, dtype=np.int64)
        elif info.dtype.kind in "iub":
            array = generator.randint(0, 2, info.shape, dtype=np.int64)
        else:
            return None
        arrays.append(np.asarray(array).astype(info.dtype))
    return arrays


class WrongCanaryError(InterpreterError):
    """What a delegate computed from the canary input cannot be right."""


def examine(
    interpreter: Interpreter, open_cpu: Callable[[], Interpreter], strict: bool = True
) -> Tuple[Optional[Dict[str, Any]], List[str]]:
    """Runs the canary on an interpreter with delegates.

    Args:
        interpreter: With delegates, just opened.
        open_cpu: Opens the same model without them; may raise `InterpreterError`, as for a compiled model.
        strict: False: what is wrong is noted, for those who want to find out where.

    Returns:
        What it showed, as plain data for ``Interpreter.canary``: number of ``runs``, kernels that it was held ``against``, and
        the greatest and the root mean square difference in quantization steps; and notes for the reader of a result.

    Raises:
        WrongCanaryError: Where two runs give different outputs, or one that is implausible: NaN where the CPU has none, one
            value throughout, or nothing in common with the CPU's output.
    """
    name = label(interpreter.delegates)
    delegation = interpreter.delegation()
    notes = [delegation.words(name) + ("" if delegation.taken else untaken_advice(interpreter.delegates))]
    try:
        return _examined(interpreter, name, open_cpu, notes), notes
    except WrongCanaryError as error:
        if strict:
            raise
        return None, [*notes, str(error)]


def _examined(
    interpreter: Interpreter, name: str, open_cpu: Callable[[], Interpreter], notes: List[str]
) -> Optional[Dict[str, Any]]:
    inputs = inputs_of(interpreter)
    if inputs is None:
        notes.append("{} went without a canary: there is none for such inputs".format(name))
        return None
    first, second = (_outputs(interpreter, inputs) for _ in range(2))
    expected = _cpu_outputs(open_cpu, inputs)
    if any(not _same(one, other) for one, other in zip(first, second)):
        _check_that_the_cpu_varies(interpreter, name, first, second, open_cpu, inputs)
        notes.append("the model gives other outputs each time by itself, so that the canary shows little")
        return {"runs": 2, "against": None}
    _check_finite(interpreter, name, first, expected[1] if expected else None)
    if expected is None:
        if all(values.size > 1 and (values == values.reshape(-1)[0]).all() for values in first):
            notes.append(
                "from the canary input {} computed one value throughout, and no other kernels can tell whether that is "
                "right".format(name)
            )
        return {"runs": 2, "against": None}
    return {"runs": 2, **_compared(interpreter, name, first, expected, notes)}


def _outputs(interpreter: Interpreter, inputs: List[np.ndarray]) -> List[np.ndarray]:
    interpreter.reset_variables()
    interpreter.invoke(inputs)
    outputs = interpreter.read_outputs()
    interpreter.reset_variables()
    return outputs


def _cpu_outputs(open_cpu: Callable[[], Interpreter], inputs: List[np.ndarray]) -> Optional[Tuple[str, List[np.ndarray]]]:
    """Returns the kernels' name and their outputs; None where they cannot run the model."""
    try:
        cpu = open_cpu()
        return cpu.kernels, _outputs(cpu, inputs)
    except InterpreterError:
        return None


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.array_equal(one, other)) if one.dtype == object else one.tobytes() == other.tobytes()


def _check_that_the_cpu_varies(
    interpreter: Interpreter,
    name: str,
    first: List[np.ndarray],
    second: List[np.ndarray],
    open_cpu: Callable[[], Interpreter],
    inputs: List[np.ndarray],
) -> None:
    """Raises where the model does not vary by itself, as one that draws random numbers does."""
    runs = [_cpu_outputs(open_cpu, inputs) for _ in range(2)]
    if runs[0] and runs[1] and any(not _same(one, other) for one, other in zip(runs[0][1], runs[1][1])):
        return
    words = [
        "output {} changed in {} of {} values".format(number, int(np.count_nonzero(one != other)), one.size)
        if one.shape == other.shape
        else "output {} changed its shape".format(number)
        for number, (one, other) in enumerate(zip(first, second))
        if not _same(one, other)
    ]
    raise _wrong(interpreter, name, "gave two answers to the same canary input: {}".format("; ".join(words)))


def _check_finite(interpreter: Interpreter, name: str, outputs: List[np.ndarray], expected: Optional[List[np.ndarray]]) -> None:
    for number, values in enumerate(outputs):
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        if expected is None or np.isfinite(expected[number]).all():
            broken = values.size - int(np.count_nonzero(np.isfinite(values)))
            raise _wrong(
                interpreter,
                name,
                "computed NaN or infinity from the canary input, in {} of {} values of output {}".format(
                    broken, values.size, number
                ),
            )


def _compared(
    interpreter: Interpreter,
    name: str,
    outputs: List[np.ndarray],
    expected: Tuple[str, List[np.ndarray]],
    notes: List[str],
) -> Dict[str, Any]:
    """Returns how far the outputs are from the CPU's; notes what is worth it, and raises where they are implausible."""
    kernels, others = expected
    found = []
    for number, (values, reference, info) in enumerate(zip(outputs, others, interpreter.outputs)):
        scaled = values.dtype.kind == "f" or (values.dtype.kind in "iu" and info.quantization is not None)
        if values.shape != reference.shape:
            words = "gave output {} the shape {}, where the CPU gives {}".format(number, values.shape, reference.shape)
            raise _wrong(interpreter, name, words)
        if not scaled or not values.size or not np.isfinite(reference).all():
            continue
        distance = _distance(values, reference)
        if distance.fault:
            words = "is wrong on the canary input: output {} {}; compare-kernels tells which operators differ"
            raise _wrong(interpreter, name, words.format(number, distance.fault))
        found.append(distance)
    if not found:
        return {"against": kernels}
    most, rms = max(one.most for one in found), max(one.rms for one in found)
    if rms > _WORTH_NOTING:
        notes.append(
            "on the canary input {} is up to {:.0f} quantization steps from the {} kernels (root mean square {:.1f}); "
            "compare-kernels tells which operators differ".format(name, most, kernels, rms)
        )
    return {"against": kernels, "most_steps": round(most, 3), "rms_steps": round(rms, 3)}


def _distance(values: np.ndarray, reference: np.ndarray) -> _Distance:
    step = 1.0
    ours, theirs = values.astype(np.float64).reshape(-1), reference.astype(np.float64).reshape(-1)
    if values.dtype.kind == "f":
        step = max(float(np.abs(theirs).max()) * _FLOAT_STEP, float(np.finfo(np.float32).tiny))
    error = (ours - theirs) / step
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    product = float(np.sqrt(np.sum(ours**2)) * np.sqrt(np.sum(theirs**2)))
    return _Distance(
        most=float(np.abs(error).max()),
        rms=float(np.sqrt(np.mean(error**2))),
        spread=float(np.std(theirs)) / step,
        extent=float(np.ptp(theirs)) / step,
        constant=not ours.any(),
        likeness=float(np.sum(ours * theirs)) / product if product else 0.0,
    )


def _wrong(interpreter: Interpreter, name: str, words: str) -> WrongCanaryError:
    return WrongCanaryError(
        "{} {}. Nothing that it computes can be believed. {}".format(
            name, words, crash_advice(interpreter.runtime, interpreter.version)
        )
    )
