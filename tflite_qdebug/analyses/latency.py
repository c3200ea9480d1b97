"""What each operator of a quantized model takes on this machine's processor, so that the price of a float island is seen.

None of the interpreters hands its own profile to Python (TensorFlow 2.21, ai-edge-litert 2.3 and tflite-runtime 2.14 have no
call for it), so each operator is cut out, fed with the values that it has in the model, and timed by itself.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.analyses.pairs import Pair
from tflite_qdebug.board.timing import Timing, summary, timed_runs
from tflite_qdebug.collect import Backend
from tflite_qdebug.edit import explode, expose
from tflite_qdebug.edit.exploded import CONTROL_FLOW, computed_tensors, joined_operators
from tflite_qdebug.errors import DatasetError, InterpreterError, OptionError, QDebugError
from tflite_qdebug.latency_record import Latency, ModelTime, OperatorTime
from tflite_qdebug.model import Model, Operator, Subgraph
from tflite_qdebug.progress import track

__all__ = ["HOW", "latency"]

HOW = (
    "Each operator was cut out of the model, fed with its values on the first sample, and run by itself: the interpreters hand "
    "no profile of their own to Python. In the whole model operators may share a delegate's buffers, or be fused, so that the "
    "sum of the times differs from the time of the model."
)
# Operators timed in one process.
_AT_ONCE = 20
_CONVERSIONS = ("DEQUANTIZE", "QUANTIZE")


def latency(
    pair: Pair,
    samples: Any,
    *,
    seconds: float = 2.0,
    operator_seconds: float = 0.1,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> Latency:
    """Times the whole models, and each operator of the quantized one.

    Args:
        pair: The models, as `open_pair` opens them.
        samples: With real-valued inputs in the quantized model's order; the first ones are taken.
        seconds: To measure each whole model; ten runs at least.
        operator_seconds: The same for each operator.
        backend: Which code runs the models: kernels, threads, delegates.
        progress: As in `progress.track`.

    Raises:
        DatasetError: Without a sample.
        InterpreterError: Where the quantized model cannot be run.
        OptionError: For seconds that are none.
    """
    backend = backend or Backend()
    if not (seconds > 0 and operator_seconds > 0):
        raise OptionError(f"got {seconds!r} and {operator_seconds!r} seconds, expected more than 0")
    first = [list(sample.inputs) for sample in itertools.islice(iter(samples), 4)]
    if not first:
        raise DatasetError("got no sample to measure latency on")
    quantized = pair.quantized
    whole, about = _whole(pair, first, seconds, backend)
    values = backend.apart(_values, quantized, first[0], backend, what="running the model")
    timed = tuple(_operators(quantized, values, operator_seconds, backend, progress))
    return Latency(
        whole,
        timed,
        f"{about['runtime']} {about['runtime_version']}",
        str(about["kernels"]),
        backend.threads,
        _machine(),
        HOW,
        {"quantized_model_sha256": quantized.sha256, **about},
    )


def _machine() -> str:
    return f"{platform.machine()}, {platform.system()}"


def _whole(
    pair: Pair, samples: Sequence[Any], seconds: float, backend: Backend
) -> tuple[tuple[ModelTime, ...], dict[str, Any]]:
    """Times the whole models; of the quantized one also what ran it."""

    def measure(model: Model) -> tuple[Timing, dict[str, Any]]:
        interpreter = backend.open(model.data)
        times = itertools.chain.from_iterable(timed_runs(interpreter, samples, seconds))
        return summary(list(times)), interpreter.provenance()

    timing, about = backend.apart(measure, pair.quantized, what="timing the quantized model")
    found = [ModelTime("quantized", timing.median, timing.percentile_90, timing.runs, str(about["kernels"]))]
    if pair.floating is not None and _alike(pair.floating, pair.quantized):
        plain = backend._replace(delegates=())

        def measure_float() -> tuple[Timing, dict[str, Any]]:
            interpreter = plain.open(pair.floating.data)  # type: ignore[union-attr]
            times = itertools.chain.from_iterable(timed_runs(interpreter, samples, seconds))
            return summary(list(times)), interpreter.provenance()

        try:
            timing, ran = backend.apart(measure_float, what="timing the float model")
            found.insert(0, ModelTime("float", timing.median, timing.percentile_90, timing.runs, str(ran["kernels"])))
        except QDebugError as error:
            found.insert(0, ModelTime("float", failure=str(error)))
    return tuple(found), about


def _alike(floating: Model, quantized: Model) -> bool:
    """True where a sample of one can be fed to the other as it stands."""
    ours, theirs = ([tuple(graph.tensors[index].shape) for index in graph.inputs] for graph in (floating.main, quantized.main))
    return ours == theirs


def _values(model: Model, inputs: Sequence[np.ndarray], backend: Backend) -> dict[int, np.ndarray]:
    """Returns the value of each tensor that an operator reads or computes, on one sample."""
    tensors = list(dict.fromkeys(index for _, index in computed_tensors(model.main)))
    # A delegate need not take a model with all its tensors exposed; the values hardly matter for time.
    interpreter = backend._replace(delegates=()).open(expose(model, tensors))
    interpreter.invoke(inputs)
    places = zip(model.main.inputs, interpreter.inputs, strict=True)
    values = {index: interpreter.read(info.index) for index, info in places}
    values.update((index, interpreter.read(index)) for index in tensors)
    return values


def _operators(
    model: Model, values: Mapping[int, np.ndarray], seconds: float, backend: Backend, progress: bool | None
) -> Iterator[OperatorTime]:
    graph, joined = model.main, joined_operators(model.main)
    islands = _islands(graph)
    # What computes from constants and shapes alone no sample needs.
    wanted = list({operator.index: operator for operator, _ in computed_tensors(graph)}.values())
    times = _Times(model, values, seconds, backend)
    for operator in track(wanted, f"timing {len(wanted)} operators", len(wanted), progress):
        note = joined.get(operator.index, "")
        timing, failure = (summary([]), "") if note else times.of(operator, wanted)
        yield OperatorTime(
            operator.index,
            operator.name,
            graph.tensors[operator.outputs[0]].name,
            timing.median,
            timing.percentile_90,
            timing.runs,
            _computes(graph, operator),
            islands.get(operator.index, -1),
            note or failure,
        )


class _Times:
    """The times of operators, several of them from one process, for to start one takes longer than to time one."""

    def __init__(self, model: Model, values: Mapping[int, np.ndarray], seconds: float, backend: Backend) -> None:
        self._model, self._values, self._seconds, self._backend = model, values, seconds, backend
        self._shapes = {index: array.shape for index, array in values.items()}
        self._known: dict[int, tuple[Timing, str]] = {}

    def of(self, operator: Operator, operators: Sequence[Operator]) -> tuple[Timing, str]:
        """Returns the time of an operator, or why it has none; ``operators`` are those that may be timed with it."""
        if operator.index not in self._known:
            first = operators.index(operator)
            try:
                self._measure(operators[first : first + _AT_ONCE])
            except InterpreterError:  # one of them ended the process, or all together took too long
                try:
                    self._measure([operator])
                except InterpreterError as error:
                    self._known[operator.index] = summary([]), f"it does not run by itself: {error}"
        return self._known[operator.index]

    def _measure(self, operators: Sequence[Operator]) -> None:
        what = f"timing {operators[0].name} by itself" if len(operators) == 1 else f"timing {len(operators)} operators"
        self._known.update(self._backend.apart(lambda: dict(map(self._timed, operators)), what=what))

    def _timed(self, operator: Operator) -> tuple[int, tuple[Timing, str]]:
        try:
            cut = explode(self._model, self._shapes, [operator.index])
            interpreter = self._backend.open(cut.data)
            inputs = [self._values[index] for index in cut.inputs]
            runs = timed_runs(interpreter, [inputs], self._seconds, most=200)
            return operator.index, (summary(list(itertools.chain.from_iterable(runs))), "")
        except (QDebugError, KeyError, RuntimeError, ValueError) as error:
            return operator.index, (summary([]), f"it does not run by itself: {error}")


def _computes(graph: Subgraph, operator: Operator) -> str:
    """Returns what an operator computes on: ``float``, ``integer``, or it ``converts``."""
    if operator.name in _CONVERSIONS:
        return "converts"
    if operator.name in CONTROL_FLOW:
        return "integer"
    return "float" if any(graph.tensors[index].is_float for index in operator.outputs) else "integer"


def _islands(graph: Subgraph) -> dict[int, int]:
    """Returns the number of the float island of each operator that belongs to one, by its position.

    An island are float operators that feed each other, and the conversions next to them. A conversion at the model's own edge,
    next to no float operator, belongs to none; nor is there an island where nothing of the model is integer.
    """
    kinds = {operator.index: _computes(graph, operator) for operator in graph.operators}
    if "integer" not in kinds.values():
        return {}
    neighbours: dict[int, set[int]] = {operator.index: set() for operator in graph.operators}
    for operator in graph.operators:
        for index in operator.inputs:
            producer = graph.producers.get(index)
            if producer is not None:
                neighbours[operator.index].add(producer.index)
                neighbours[producer.index].add(operator.index)
    found: dict[int, int] = {}
    for number, start in enumerate(_starts(kinds, neighbours)):
        for position in _reached(start, kinds, neighbours):
            found.setdefault(position, number)
    return found


def _starts(kinds: Mapping[int, str], neighbours: Mapping[int, set[int]]) -> list[int]:
    """Returns the first float operator of each island."""
    seen: set[int] = set()
    starts = []
    for operator in kinds:
        if kinds[operator] == "float" and operator not in seen:
            starts.append(operator)
            seen.update(_reached(operator, kinds, neighbours))
    return starts


def _reached(start: int, kinds: Mapping[int, str], neighbours: Mapping[int, set[int]]) -> set[int]:
    """Returns the float operators that feed each other with this one, and the conversions next to them."""
    reached, waiting = {start}, [start]
    while waiting:
        operator = waiting.pop()
        if kinds[operator] == "converts":
            continue  # behind it another part begins
        for other in neighbours[operator] - reached:
            if kinds[other] in ("float", "converts"):
                reached.add(other)
                waiting.append(other)
    return reached
