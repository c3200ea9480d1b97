"""Merges what a board measured into the run that the bundle was made from."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.analyses.evaluation import METRICS, task_functions, task_value
from tflite_qdebug.board.archive import Bundle, Entry
from tflite_qdebug.board.comparison import StepDifference, outputs_difference
from tflite_qdebug.board.journal import read_records, unpacked
from tflite_qdebug.board.timing import summary
from tflite_qdebug.board_record import HOST, Board, BoardModel
from tflite_qdebug.bundling import DEFAULT_KERNELS, kept_bundle
from tflite_qdebug.errors import ModelError
from tflite_qdebug.findings import Findings, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.record import Layer, Run, decoded
from tflite_qdebug.statistics import ErrorStatistics, SampleSums
from tflite_qdebug.study import Setup
from tflite_qdebug.wording import number

__all__ = ["merge_result", "read_result"]

Arrays = list[np.ndarray]


def merge_result(folder: str | os.PathLike[str], result: str | os.PathLike[str], name: str | None = None) -> Board:
    """Reads a board's result, keeps it in the folder of the run, and returns it.

    One of the same board, run the same way, is replaced.

    Args:
        folder: Of the run.
        result: The file that the bundle wrote.
        name: What to call the board; None: as it calls itself.

    Raises:
        ModelError: Where the result is none, or of a bundle that was not made from this run.
        OutputError: Where the folder cannot be written.
    """
    place = Path(folder)
    place = place.parent if place.name == "run.json" else place
    findings = Findings.load(place)
    board = read_result(place, result, name)
    others = tuple(each for each in findings.boards if each.key != board.key)
    save_part(place, "boards", (*others, board))
    return board


def read_result(folder: str | os.PathLike[str], result: str | os.PathLike[str], name: str | None = None) -> Board:
    """Returns a board's result, held against what the run keeps of the bundle; the arguments are those of `merge_result`."""
    place = Path(folder)
    setup = Setup.load(place)
    header: dict[str, Any] = {}
    bundle: Bundle | None = None
    readers: dict[str, _Model] = {}
    broken, state = 0, {}
    for _, record in read_records(result):
        if record is None:
            broken += 1
        elif bundle is None:
            header, bundle = record, kept_bundle(place, record["bundle"])
            functions = _functions(setup, bundle)
            judge = _Judge(functions, bundle, setup.label_offset, place / setup.quantized_model)
            readers = {entry.name: _Model(entry, bundle, judge) for entry in bundle.entries}
        elif record["kind"] == "started":
            state = record["state"]
        else:
            readers[record["model"]].take(record)
    assert bundle is not None  # a file without a first line is an error before
    called = name or str(header["board"]["name"]) or "board"
    if called == HOST:
        called = f"{HOST} (board)"
    notes = [f"{broken} lines of the result are broken and do not count"] if broken else []
    measured = [reader.found(called) for reader in readers.values() if not reader.entry.layers]
    missing = [model.name for model in measured if not model.samples and not model.failure]
    notes += [f"not run there: {', '.join(missing)}"] if missing else []
    host = [(readers["quantized" if key == DEFAULT_KERNELS else key], key) for key in bundle.manifest["host"]]
    hosts = [reader.host(key, bundle.manifest["host"][key]) for reader, key in host]
    debug = readers.get("debug")
    board = Board(
        called,
        str(bundle.manifest["bundle"]),
        tuple(model for model in measured if model.name not in missing) + tuple(hosts),
        tuple(functions),
        debug.layers(notes) if debug else None,
        Run.from_dict(decoded(json.loads(bundle.text("host.json")))) if debug else None,
        {**header["board"], **{key: value for key, value in state.items() if value}},
        _as_tuples(header["settings"]),
        tuple(notes),
    )
    return dataclasses.replace(board, notes=(*board.notes, *_faults(board)))


def _faults(board: Board) -> Iterator[str]:
    """Yields what is to be said of layers that the board computes otherwise."""
    faulty = board.faulty()
    if not faulty or board.layers is None or board.host_layers is None:
        return
    _, there, here = board.differing()
    layer = board.layers.layers[faulty[0]]
    others = f", the first of {len(faulty)}," if len(faulty) > 1 else ""
    words = (
        f"{layer.op_name} {layer.node!r}{others} errs by {number(there[faulty[0]], 3)} steps there and by "
        f"{number(here[faulty[0]], 3)} on the host: that is its kernel there, not quantization"
    )
    if layer.op_name == "FULLY_CONNECTED" and board.layers.provenance.get("runtime") == "tflite_runtime":
        words += (
            "; tflite-runtime up to 2.9.1 does so with a scale for each channel of a dense layer: convert --dense-per-tensor"
        )
    yield words


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value


def _functions(setup: Setup, bundle: Bundle) -> dict[str, Callable[..., Any]]:
    """Returns the task metrics of the run; accuracy where there are labels and none is named."""
    if "evaluation" not in bundle.manifest["sets"]:
        return {}
    usual = ("top_1",) if bundle.label(0)[0] else ()
    return dict(task_functions(setup.metrics or usual))


class _Judge:
    """How good outputs are: task metrics, and the error against the float model's."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], bundle: Bundle, label_offset: int, quantized: Path) -> None:
        self.functions, self._bundle, self._offset = functions, bundle, label_offset
        self.has_float = any(entry.name == "float" for entry in bundle.entries)
        model = Model(quantized)
        signature = Setup.load(quantized.parent).signature
        graph = model.main if signature is None else model.subgraphs[model.signature(signature).subgraph]
        self._scales: list[QuantizationParameters | None] = [graph.tensors[index].quantization for index in graph.outputs]
        self.outputs = [graph.tensors[index].name for index in graph.outputs]

    def real(self, outputs: Arrays) -> Arrays:
        """Returns outputs in real units."""
        pairs = zip(outputs, self._scales, strict=True)
        return [scale.dequantize(a) if scale is not None and a.dtype.kind in "iu" else a for a, scale in pairs]

    def metrics(self, outputs: Arrays, index: int) -> np.ndarray:
        """Returns the task metrics of one sample."""
        has_label, label = self._bundle.label(index)
        values = []
        for name, function in self.functions.items():
            if not has_label and function in METRICS.values():
                raise ModelError(f"sample {index} of the bundle has no label, which {name} needs")
            known = label + self._offset if self._offset and has_label else label
            values.append(task_value(name, function, self.real(outputs), known, index))
        return np.array(values)

    def errors(self, outputs: Arrays, samples: str, index: int) -> np.ndarray:
        """Returns the error of each output against the float model's on the host."""
        reference = self.real(self._bundle.expected("float", samples, index))
        rows = [measure_output(np.asarray(a), np.asarray(b)) for a, b in zip(self.real(outputs), reference, strict=True)]
        return np.array(rows)[None]


class _Sums:
    """What one model's outputs add up to."""

    def __init__(self, judge: _Judge) -> None:
        self._judge = judge
        self.errors = OutputErrors(["model"], judge.outputs)
        self.metrics: np.ndarray = np.zeros(len(judge.functions))
        self.samples = 0

    def add(self, outputs: Arrays, samples: str, index: int) -> None:
        self.samples += 1
        self.metrics = self.metrics + self._judge.metrics(outputs, index)
        if self._judge.has_float:
            self.errors.add(index, self._judge.errors(outputs, samples, index))

    def figures(self) -> dict[str, Any]:
        """Returns those fields of a `BoardModel` that tell how good it is."""
        if not self.samples:
            return {"samples": 0}
        means = dict(zip(self._judge.functions, (self.metrics / self.samples).tolist(), strict=True))
        worst = {name: float(self.errors.worst(name)[0]) for name in ("sqnr_db", "cosine")} if self._judge.has_float else {}
        return {"samples": self.samples, "metrics": means, **worst}


def _kernels(about: Mapping[str, Any]) -> str:
    """Returns what ran a model, and how many operators each of them where several did."""
    if not about:
        return ""
    names = [Path(each["library"]).name for each in about["delegates"]]
    ran = {" + ".join(names) if name == "delegate" else name: count for name, count in about.get("ran", {}).items()}
    if len(ran) > 1:
        return " + ".join(f"{name} ({count})" for name, count in ran.items())
    return " + ".join(ran or [*names, str(about["kernels"])])


class _Model:
    """The records of one model, added up."""

    def __init__(self, entry: Entry, bundle: Bundle, judge: _Judge) -> None:
        self.entry, self._bundle, self._judge = entry, bundle, judge
        self._sums, self._difference = _Sums(judge), StepDifference()
        self._seen: set[int] = set()
        self._about: dict[str, Any] = {}
        self._opening = self._first = float("nan")
        self._pending: list[float] = []
        self._times: list[float] = []
        self._failure, self._notes = "", dict[str, None]()
        self._statistics = ErrorStatistics(len(entry.layers))

    def take(self, record: dict[str, Any]) -> None:
        """Takes in one record."""
        kind = record["kind"]
        if kind == "opened":
            self._about, self._opening, self._pending, self._failure = record["about"], record["milliseconds"], [], ""
            self._notes.update(dict.fromkeys(record["notes"]))
        elif kind == "sample" and record["sample"] not in self._seen:
            self._take_sample(record, int(record["sample"]))
        elif kind == "latency":
            self._pending += record["milliseconds"]
        elif kind == "timed":
            self._times = self._pending
        elif kind == "died":
            self._notes[record["words"]] = None
        elif kind == "failed":
            self._failure = record["words"]

    def _take_sample(self, record: dict[str, Any], index: int) -> None:
        if not self._seen:
            self._first = float(record["milliseconds"])
        self._seen.add(index)
        if "rows" in record:
            self._statistics.add(index, SampleSums(unpacked(record["rows"])))
            return
        outputs, which = [unpacked(fields) for fields in record["outputs"]], self.entry.samples
        expected = self._bundle.expected(self.entry.expected, which, index)
        self._difference = self._difference.plus(outputs_difference(outputs, expected, self.entry.steps))
        self._sums.add(outputs, which, index)

    def found(self, where: str) -> BoardModel:
        """Returns what the board measured."""
        timing, difference = summary(self._times), self._difference
        wanted = self._bundle.count(self.entry.samples)
        failure = self._failure
        if not failure and 0 < len(self._seen) < wanted:
            failure = f"unfinished: {len(self._seen)} of {wanted} samples; run the bundle there again to go on"
        more = self._sums.figures()
        if difference.elements:
            more.update(largest=difference.largest, over_one=difference.over_one / difference.elements)
        return BoardModel(
            self.entry.name,
            where,
            self.entry.size,
            wanted=wanted,
            runtime=f"{self._about['runtime']} {self._about['runtime_version']}" if self._about else "",
            kernels=_kernels(self._about),
            threads=int(self._about.get("threads", 1)),
            one_sided=difference.one_sided,
            median=timing.median,
            percentile_90=timing.percentile_90,
            runs=timing.runs,
            first=self._first,
            opening=self._opening,
            failure=failure,
            notes=tuple(self._notes),
            **more,
        )

    def host(self, key: str, kernels: str) -> BoardModel:
        """Returns the same of outputs of the host, on all samples of the bundle.

        Args:
            key: Which outputs: the model's name, or `DEFAULT_KERNELS`.
            kernels: That computed them.
        """
        sums, which, difference = _Sums(self._judge), self.entry.samples, StepDifference()
        count, more = self._bundle.count(which), dict[str, Any]()
        for index in range(count):
            outputs = self._bundle.expected(key, which, index)
            sums.add(outputs, which, index)
            if key != self.entry.expected:
                expected = self._bundle.expected(self.entry.expected, which, index)
                difference = difference.plus(outputs_difference(outputs, expected, self.entry.steps))
        if difference.elements:
            more = {"largest": difference.largest, "over_one": difference.over_one / difference.elements}
        more.update(sums.figures())
        return BoardModel(self.entry.name, HOST, self.entry.size, wanted=count, kernels=kernels, **more)

    def layers(self, notes: list[str]) -> Run | None:
        """Returns the error of each layer on the board; None where it was not measured."""
        wanted = self._bundle.count(self.entry.samples)
        if self._failure:
            notes.append(f"the debug model: {self._failure}")
        if not self._seen:
            return None
        if len(self._seen) < wanted:
            notes.append(f"the error of the layers is of {len(self._seen)} of {wanted} samples")
        layers = [Layer.from_dict(fields) for fields in self.entry.layers]
        provenance = {"samples": len(self._seen), **self._about}
        return Run("per_layer", layers, self._statistics, provenance=provenance, notes=list(self._notes))
