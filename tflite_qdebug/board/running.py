"""Runs the models of a bundle, each in a process of its own, and yields what is to be written of them."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

import numpy as np

from tflite_qdebug import isolation, tf_private
from tflite_qdebug.board.archive import Bundle, Entry
from tflite_qdebug.board.comparison import StepDifference, outputs_difference
from tflite_qdebug.board.journal import packed
from tflite_qdebug.board.timing import timed_runs
from tflite_qdebug.collect import Backend, PairReader
from tflite_qdebug.errors import InterpreterError, QDebugError
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import SampleSums

__all__ = ["Progress", "Settings", "known_progress", "run_entry"]

# Samples that latency is measured on, in turn: more would be read from the archive while the model is timed.
_TIMED_SAMPLES = 8
# So often in a row a process may end without having measured anything.
_MOST_DEATHS = 2


class Settings(NamedTuple):
    """How a bundle is run.

    Attributes:
        runtime: As in `Interpreter`.
        kernels: As in `Interpreter`.
        threads: As in `Interpreter`.
        delegate: In place of the one that the bundle names, for ``compiled`` or, where there is none, for ``quantized``.
        seconds: To measure latency, for each model; 0: not at all.
        time_limit: Seconds that opening, or one sample, may take.
        isolate: As in `Backend`.
    """

    runtime: str = "auto"
    kernels: str = "auto"
    threads: int = 1
    delegate: Optional[Delegate] = None
    seconds: float = 5.0
    time_limit: float = isolation.TIME_LIMIT
    isolate: Optional[bool] = None

    def backend(self, bundle: Bundle, entry: Entry) -> Backend:
        """Returns what opens a model of the bundle."""
        delegates = [Delegate(entry.delegate[0], dict(entry.delegate[1]))] if entry.delegate else []
        target = "compiled" if any(each.name == "compiled" for each in bundle.entries) else "quantized"
        if self.delegate is not None and entry.name == target:
            delegates = [self.delegate]
        return Backend(self.runtime, self.kernels, tuple(delegates), 1, self.threads, self.isolate, self.time_limit)

    def identity(self) -> List[Any]:
        """What must be the same for one result to go on with another, as plain data."""
        delegate = None if self.delegate is None else [self.delegate.library, dict(self.delegate.options)]
        return [self.runtime, self.kernels, self.threads, delegate]


class Progress:
    """What is known of one model already.

    Attributes:
        samples: Those that were measured.
        timed: True where latency was.
        difference: From what was expected.
        milliseconds: Of the single runs.
    """

    def __init__(self) -> None:
        """Knows nothing."""
        self.samples: Set[int] = set()
        self.timed = False
        self.difference = StepDifference()
        self.milliseconds: List[float] = []
        self._pending: List[float] = []

    def take(self, record: Dict[str, Any]) -> None:
        """Takes in one record of the model."""
        if record["kind"] == "sample":
            self.samples.add(int(record["sample"]))
            if "difference" in record:
                self.difference = self.difference.plus(StepDifference(*record["difference"]))
        elif record["kind"] == "opened":
            self._pending = []  # latency is measured in one go, or again
        elif record["kind"] == "latency":
            self._pending += record["milliseconds"]
        elif record["kind"] == "timed":
            self.timed, self.milliseconds = True, self._pending


def known_progress(records: Iterator[Optional[Dict[str, Any]]], names: Sequence[str]) -> Dict[str, Progress]:
    """Returns what a result knows of each model."""
    known = {name: Progress() for name in names}
    for record in records:
        if record is not None and record.get("model") in known:
            known[record["model"]].take(record)
    return known


def run_entry(bundle: Bundle, entry: Entry, settings: Settings, known: Progress) -> Iterator[Dict[str, Any]]:
    """Yields the records of a model that are not known yet; who takes them in must also give them to ``known``.

    A process that ends before its time is started again, as long as each measures something.

    Raises:
        InterpreterError: Where the model or its delegate cannot be run, or ends its process again and again.
    """
    backend, deaths = settings.backend(bundle, entry), 0
    tf_private.open_runtime(backend.runtime)  # that there is none is told here, and it is imported once
    while True:
        try:
            for record in _apart(bundle, entry, settings, backend, known):
                yield record
                deaths = 0 if record["kind"] in ("sample", "timed") else deaths
            return
        except InterpreterError as error:
            deaths += 1
            if not hasattr(error, "ended") or deaths >= _MOST_DEATHS:
                raise
            yield {"kind": "died", "model": entry.name, "words": str(error)}


def _apart(bundle: Bundle, entry: Entry, settings: Settings, backend: Backend, known: Progress) -> Iterator[Dict[str, Any]]:
    """Yields what `_records` yields, from a process of its own where that is possible."""
    done, timed = set(known.samples), known.timed
    if not backend.isolated():
        yield from _records(Bundle(bundle.path), entry, settings, backend, done, timed)
        return

    def serve(child: isolation.Child) -> None:
        # Opened here: a file that both processes have open has one position for both.
        records = _records(Bundle(bundle.path), entry, settings, backend, done, timed)
        while True:
            with isolation.alarm(settings.time_limit):
                outcome = isolation.outcome_of(next, records, None)
            child.answer(outcome)
            if outcome.value is None:
                return

    child, what = isolation.Child(serve), "opening the model {!r}".format(entry.name)
    try:
        while True:
            record = child.receive(settings.time_limit).result()
            if record is None:
                return
            yield record
            what = "running the model {!r} after {}".format(entry.name, _words(record))
    except isolation.ChildEndedError as ended:
        raise isolation.as_error(ended, what) from None
    finally:
        child.close()


def _words(record: Dict[str, Any]) -> str:
    return "sample {}".format(record["sample"]) if record["kind"] == "sample" else record["kind"]


def _records(
    bundle: Bundle, entry: Entry, settings: Settings, backend: Backend, done: Set[int], timed: bool
) -> Iterator[Dict[str, Any]]:
    """Yields all that is measured of a model, but for what is done."""
    wanted = [index for index in range(bundle.count(entry.samples)) if index not in done]
    times = bool(settings.seconds) and not timed and not entry.layers
    if not wanted and not times:
        return
    start = time.perf_counter()
    interpreter = backend.open(bundle.model(entry.name))
    seconds = time.perf_counter() - start
    yield {
        "kind": "opened",
        "model": entry.name,
        "milliseconds": 1000.0 * seconds,
        "about": dict(interpreter.provenance(), threads=settings.threads, ran=_ran(interpreter)),
        "notes": list(interpreter.notes),
    }
    measure = _Measure(bundle, entry, interpreter)
    for index in wanted:
        yield measure.sample(index)
    if times:
        first = [
            entry.fed(bundle.sample(entry.samples, index)) for index in range(min(bundle.count(entry.samples), _TIMED_SAMPLES))
        ]
        for milliseconds in timed_runs(interpreter, first, settings.seconds):
            yield {"kind": "latency", "model": entry.name, "milliseconds": [round(value, 6) for value in milliseconds]}
        yield {"kind": "timed", "model": entry.name}


def _ran(interpreter: Interpreter) -> Dict[str, int]:
    """Returns how many operators each kind of kernels runs; XNNPACK takes what it can, in old releases no integers."""
    try:
        found = interpreter.delegation()
    except AttributeError:  # a runtime that does not tell
        return {}
    counts = {"delegate": found.taken} if found.taken else {}
    counts.update((kernels, sum(kinds.values())) for kernels, kinds in found.left.items())
    return counts


def _rows(sums: SampleSums) -> np.ndarray:
    """Returns the rows that sums were made of."""
    ends = [sums.max_abs_error, sums.stddev, *sums.integer_range.T, sums.max_inner_error]
    return np.concatenate([sums.sums, np.stack(ends, axis=1)], axis=1)


class _Measure:
    """What is measured of one sample."""

    def __init__(self, bundle: Bundle, entry: Entry, interpreter: Interpreter) -> None:
        self._bundle, self._entry, self._interpreter = bundle, entry, interpreter
        layers = [Layer.from_dict(fields) for fields in entry.layers]
        self._reader = PairReader(interpreter, layers) if layers else None

    def sample(self, index: int) -> Dict[str, Any]:
        """Runs the sample and returns its record."""
        entry, interpreter = self._entry, self._interpreter
        if entry.stateful:
            interpreter.reset_variables()
        try:
            seconds = interpreter.timed_invoke(entry.fed(self._bundle.sample(entry.samples, index)))
            record: Dict[str, Any] = {
                "kind": "sample", "model": entry.name, "sample": index, "milliseconds": round(1000.0 * seconds, 6)
            }  # fmt: skip
            if self._reader is not None:
                return dict(record, rows=packed(_rows(self._reader.read())))
            outputs = entry.given(interpreter.read_outputs())
            record["outputs"] = [packed(array) for array in outputs]
            if entry.expected:
                expected = self._bundle.expected(entry.expected, entry.samples, index)
                record["difference"] = list(outputs_difference(outputs, expected, entry.steps))
            return record
        except QDebugError as error:
            raise type(error)("model {!r}, sample {}: {}".format(entry.name, index, error)) from error
