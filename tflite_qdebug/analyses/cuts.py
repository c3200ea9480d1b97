"""Cut out and try: parts of a model on two kernels, each as a model of its own, down to the smallest part that fails.

The whole model runs once on the reference, which gives every cut its inputs. Then each cut runs by itself, on the reference
and on the side that is tested, in processes of their own: a delegate that ends its process on one operator ends no more than
that cut. What fails is kept as a model with its inputs, the expected outputs and those that came, fit for a bug report.

Values wait on disk between these steps, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from tflite_qdebug.collect import Backend
from tflite_qdebug.cut_record import Closeness, CutComparison, CutLimits, CutOutput, CutRow
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit.extracted import Cut, Cuts
from tflite_qdebug.edit.subgraphs import selected_signature
from tflite_qdebug.errors import DatasetError, InterpreterError, OptionError, OutputError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.kernel_record import FLOAT_ROUNDING, Difference
from tflite_qdebug.model import Model
from tflite_qdebug.progress import track
from tflite_qdebug.record import encoded
from tflite_qdebug.sides import Player, Side, sides_of
from tflite_qdebug.workers import map_samples

__all__ = ["KEPT_SAMPLES", "try_cuts"]

#: How many samples are kept of a cut: the worst, and the first others.
KEPT_SAMPLES = 8


def try_cuts(
    model: Any,
    dataset: Any,
    cuts: Sequence[Cut] | None = None,
    *,
    tested: Backend | None = None,
    reference: Backend | None = None,
    limits: CutLimits | None = None,
    cumulative: bool = False,
    bisect: bool = True,
    folder: Any = None,
    keep_all: bool = False,
    signature: str | None = None,
    limit: int | None = None,
    progress: bool | None = None,
) -> CutComparison:
    """Runs cuts of a model on two kernels and tells which fail.

    Args:
        model: Path, bytes or something with ``data``; quantized or not.
        dataset: Samples of the whole model, as `open_dataset` takes them.
        cuts: Of this model and signature, by `extract` or `extract_operator`; None: every operator.
        tested: The kernels, runtime or delegate that is tried. None: the runtime's default, XNNPACK.
        reference: What it is held against; what it computes is every cut's input. None: the reference kernels of the tested
            side's runtime. Its ``isolate`` and ``time_limit`` hold for both.
        limits: What a cut must keep to pass; None: `CutLimits`.
        cumulative: Run each cut also on what the tested side's cuts before it gave, and judge that: its own drifting inputs.
        bisect: Find the smallest part that still fails the same way of each cut of several operators that fails.
        folder: Where failing cuts are kept, each in a folder of its own, with ``model.tflite``, ``inputs.npz``,
            ``expected.npz``, ``got.npz`` and ``cut.json``; None: nowhere.
        keep_all: Keep those that pass too.
        signature: Take this signature; None: the main subgraph.
        limit: Take the first so many samples.
        progress: As in `progress.track`.

    Raises:
        OptionError: Where both sides are the same, there is no such signature, or a limit is none.
        ModelError: Where there is nothing to cut out.
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where the reference cannot run the model.
        OutputError: Where nothing can be written, here or among temporary files.
    """
    tested = tested or Backend()
    reference = reference or tested._replace(kernels="reference", delegates=())
    # Where a delegate is wrong is what is to be found out.
    sides = sides_of(reference, tested._replace(strict=False))
    sides[1].check()  # else each cut would fail for what is not its fault
    whole = Model(getattr(model, "data", model))
    selected = whole if signature is None else selected_signature(whole, signature)
    known = Cuts(selected)
    asked, left_out = _recordable(known, sides[0], known.every() if cuts is None else _checked(known, cuts), bisect)
    opened = open_dataset(dataset, selected.input_specs(), "debug dataset", limit, signature)
    with _Store() as store:
        recorded = _record(sides[0], known, _needed(known, asked, bisect), opened, store, progress)
        trial = _Trial(Cuts(selected, recorded.shapes), sides, store, recorded, (limits or CutLimits()).checked(), cumulative)
        keeper = _Keeper(folder, keep_all, trial, whole.sha256)
        tracked = track(asked, "trying cuts", len(asked), progress)
        rows = [keeper.kept(*trial.measured(trial.cuts.again(cut))) for cut in tracked]
        if bisect:
            by_name = {cut.name: cut for cut in asked}
            for row in [row for row in rows if len(by_name[row.name].operators) > 1]:
                smallest = trial.smallest(trial.cuts.again(by_name[row.name]), row)
                if smallest is not None:
                    rows.append(keeper.kept(*smallest))
        result = _finished(tuple(rows), trial, whole, signature, opened.description)
        return dataclasses.replace(result, notes=(*left_out, *result.notes))


def _recordable(known: Cuts, side: Side, cuts: list[Cut], bisect: bool) -> tuple[list[Cut], list[str]]:
    """Returns the cuts whose inputs the reference can compute, and what is left out.

    Raises:
        InterpreterError: Where it can run none of them.
    """

    def opens(part: Sequence[Cut]) -> None:
        content = known.until(_needed(known, part, bisect))
        side.backend.apart(lambda: side.open(content, "the model, its tensors exposed") and None, what="opening the model")

    try:
        opens(cuts)
    except InterpreterError as error:
        rest = [cut for cut in cuts if not known.custom_operators(cut)]
        if not rest or len(rest) == len(cuts):
            raise
        opens(rest)
        names = [cut.name for cut in cuts if cut not in rest]
        listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        return rest, [f"left out, since its inputs or results cannot be had: {listed}: {error}"]
    return cuts, []


def _checked(known: Cuts, cuts: Sequence[Cut]) -> list[Cut]:
    """Returns the cuts, made of this model as they say they are.

    Raises:
        OptionError: Where there is none, or one of another model.
    """
    if not cuts:
        raise OptionError("got no cut to try, expected one or more; None stands for every operator")
    graph = known.graph
    for cut in cuts:
        fits = all(position < len(graph.operators) for position in cut.operators)
        fits = fits and all(index < len(graph.tensors) for index in (*cut.inputs, *cut.outputs))
        if not fits or cut.op_names != tuple(graph.operators[position].name for position in cut.operators):
            raise OptionError(f"got the cut {cut.name}, which is of another model or signature; expected cuts of this one")
    named = [dataclasses.replace(cut, name=cut.name) for cut in cuts]
    for position, cut in enumerate(named):
        taken = {other.name for other in named[:position]}
        number, name = 2, cut.name
        while name in taken:
            name, number = f"{cut.name}_{number}", number + 1
        named[position] = dataclasses.replace(cut, name=name)
    return named


def _needed(known: Cuts, cuts: Iterable[Cut], bisect: bool) -> list[int]:
    """Returns the tensors whose values are needed: what cuts read and give, and what lies between, for their parts."""
    found: set[int] = set()
    for cut in cuts:
        found.update((*cut.inputs, *cut.outputs))
        if bisect and len(cut.operators) > 1:
            found.update(index for position in cut.operators for index in known.computed.get(position, []))
    return sorted(found)


class _Store:
    """Values of tensors on disk, by what they are, tensor and sample; gone when it is closed."""

    def __init__(self) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="tflite_qdebug_cuts_")
        except OSError as error:
            raise OutputError(f"cannot make a temporary folder for the values of tensors: {error}") from error

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _path(self, kind: str, index: int, sample: int) -> Path:
        return Path(self._folder.name) / kind / str(index) / f"{sample}.npy"

    def write(self, kind: str, index: int, sample: int, values: np.ndarray) -> None:
        """Keeps values.

        Raises:
            OutputError: Where the disk is full.
        """
        path = self._path(kind, index, sample)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values, allow_pickle=False)
        except OSError as error:
            raise OutputError(
                f"cannot write values of tensors to {path.parent}: {error.strerror or error}; take fewer samples (limit), or "
                "set TMPDIR to a folder with more room"
            ) from error

    def read(self, kind: str, index: int, sample: int) -> np.ndarray:
        """Returns values."""
        return np.asarray(np.load(self._path(kind, index, sample), allow_pickle=False))

    def has(self, kind: str, index: int, samples: Sequence[int]) -> bool:
        """True where the values of all samples are there."""
        return all(self._path(kind, index, sample).exists() for sample in samples)

    def move(self, source: str, target: str, index: int, samples: Sequence[int]) -> None:
        """Makes values another kind's."""
        for sample in samples:
            path = self._path(target, index, sample)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path(source, index, sample).replace(path)

    def forget(self, kind: str, indices: Iterable[int], samples: Sequence[int]) -> None:
        """Removes values, if there are any."""
        for index in indices:
            for sample in samples:
                self._path(kind, index, sample).unlink(missing_ok=True)


class _Recorded(NamedTuple):
    """What the reference's run of the whole model came to: its samples, shapes on the first of them, and what ran."""

    samples: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]
    described: Mapping[str, Any]


class _Recorder:
    """Runs the whole model on the reference, and keeps the values of tensors."""

    def __init__(self, side: Side, exposed: bytes, tensors: Sequence[int], store: _Store, reopens: bool) -> None:
        self._tensors, self._store = tensors, store
        self._player = Player(lambda: side.open(exposed, "the model, its tensors exposed"), tensors, reopens)

    def record(self, sample: Any) -> tuple[int, dict[int, tuple[int, ...]], dict[str, Any]]:
        """Keeps one sample's values; returns its number, their shapes, and what ran."""
        try:
            values = self._player.run(sample.inputs, inputs_too=True)
        except DatasetError as error:
            raise DatasetError(f"sample {sample.index}: {error}") from error
        for index in self._tensors:
            self._store.write("reference", index, sample.index, values[index])
        provenance = self._player.interpreter.provenance()
        return sample.index, {index: array.shape for index, array in values.items()}, provenance


def _record(side: Side, known: Cuts, tensors: Sequence[int], opened: Any, store: _Store, progress: bool | None) -> _Recorded:
    worker = functools.partial(_Recorder, side, known.until(tensors), tensors, store, _reopens(known.model))
    # What a dead process had written would be missing later.
    workers = side.backend.pool(worker, "running the model on the reference", replaceable=False)
    samples: list[int] = []
    shapes: dict[int, tuple[int, ...]] = {}
    described: dict[str, Any] = {}
    for number, found, ran in map_samples(
        _Recorder.record, workers, track(opened, "recording the reference", opened.length, progress)
    ):
        samples.append(number)
        shapes, described = shapes or found, described or ran
    if not samples:
        raise DatasetError(f"the {opened.role} yielded no samples")
    return _Recorded(tuple(samples), shapes, described)


def _reopens(model: Model) -> bool:
    """True where interpreters must be opened anew: resources keep their values until the interpreter is gone."""
    return any(tensor.dtype == object for graph in model.subgraphs for tensor in graph.tensors)


class _Played(NamedTuple):
    """What running a cut on both sides came to.

    Attributes:
        ran: Which kernels of the tested side computed each output.
        notes: What the interpreters said.
        described: What ran on the tested side.
        failure: As in `CutRow`.
        reason: Likewise.
    """

    ran: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    described: Mapping[str, Any] = {}
    failure: str = ""
    reason: str = ""


class _Trial:
    """Runs cuts on both sides and compares what they give."""

    def __init__(
        self,
        cuts: Cuts,
        sides: tuple[Side, Side],
        store: _Store,
        recorded: _Recorded,
        limits: CutLimits,
        cumulative: bool,
    ) -> None:
        self.cuts, self.sides, self.store, self.recorded = cuts, sides, store, recorded
        self.samples, self.limits, self.cumulative = recorded.samples, limits, cumulative
        self.described: dict[str, Any] = {}
        self._reopens = _reopens(cuts.model)

    def measured(self, cut: Cut, cumulative: bool | None = None) -> tuple[Cut, CutRow]:
        """Runs one cut; ``cumulative``: on its own drifting inputs too, as asked for where None."""
        cumulative = self.cumulative if cumulative is None else cumulative
        graph = self.cuts.graph
        names = tuple(graph.tensors[index].name for index in cut.inputs)
        row = CutRow(cut.name, cut.operators, cut.op_names, names, (), notes=cut.notes)
        for kind in ("expected", "got"):  # an earlier cut's
            self.store.forget(kind, cut.outputs, self.samples)
        drifts = cumulative and any(self.store.has("tested", index, self.samples) for index in cut.inputs)
        played = self._play_apart(cut, drifts)
        if played.failure:
            return cut, dataclasses.replace(row, failure=played.failure, reason=played.reason)
        outputs = tuple(self._output(index, ran) for index, ran in zip(cut.outputs, played.ran, strict=True))
        if cumulative:
            outputs = self._cumulative(outputs, drifts)
        self.described = self.described or dict(played.described)
        notes = tuple(dict.fromkeys((*cut.notes, *played.notes, *_notes_on_repeats(self.sides[0], outputs))))
        return cut, dataclasses.replace(row, outputs=outputs, notes=notes)

    def _play_apart(self, cut: Cut, drifts: bool) -> _Played:
        """Runs a cut on both sides over all samples, in a process of its own; values are read and written in the store."""
        backend, labels = self.sides[0].backend, [side.label for side in self.sides]
        patient = backend._replace(time_limit=backend.time_limit * (len(self.samples) + 1))
        try:
            return cast(_Played, patient.apart(self._play_both, cut, drifts, what=f"running the cut {cut.name}"))
        except InterpreterError as error:
            if not hasattr(error, "ended"):
                raise
            # How far it got, what it has written tells.
            tested = all(self.store.has("expected", index, self.samples) for index in cut.outputs)
            reason = f"on {labels[tested]}, {error}"
            return _Played(failure="crashed" if tested else "unmeasured", reason=reason)

    def _play_both(self, cut: Cut, drifts: bool) -> _Played:
        try:
            self._play(self.sides[0], cut, "reference", "expected")
        except (InterpreterError, DatasetError) as error:
            return _Played(failure="unmeasured", reason=str(error))
        try:
            played = self._play(self.sides[1], cut, "reference", "got")
            if drifts:
                self._play(self.sides[1], cut, "tested", "drifted")
        except (InterpreterError, DatasetError) as error:
            return _Played(failure="refused", reason=str(error))
        return played

    def _play(self, side: Side, cut: Cut, source: str, target: str) -> _Played:
        """Runs a cut on one side."""
        claimed = _claimed(side, cut.data)
        places = Model(cut.data).main.outputs
        player = Player(lambda: side.open(cut.data, f"the cut {cut.name}"), places, self._reopens)
        for sample in self.samples:
            found = player.run([self._value(source, index, sample) for index in cut.inputs])
            for index, place in zip(cut.outputs, places, strict=True):
                self.store.write(target, index, sample, found[place])
        interpreter = player.interpreter
        taken = interpreter.delegated()
        rest = "builtin" if interpreter.kernels == "xnnpack" else interpreter.kernels
        ran = tuple(
            "delegate" if place in claimed else ("xnnpack" if place in taken and rest != "reference" else rest)
            for place in places
        )
        return _Played(ran, tuple(interpreter.notes), interpreter.provenance())

    def _value(self, source: str, index: int, sample: int) -> np.ndarray:
        """Returns an input: of its own kind where there is one, else the reference's."""
        kind = source if self.store.has(source, index, [sample]) else "reference"
        return self.store.read(kind, index, sample)

    def _output(self, index: int, ran: str) -> CutOutput:
        graph = self.cuts.graph
        tensor, producer = graph.tensors[index], graph.producers.get(index)
        total, repeats, dtype = Closeness(), True, np.dtype(np.float32)
        scaled = tensor.quantization if tensor.is_quantized else None
        for sample in self.samples:
            expected, got, before = (self.store.read(kind, index, sample) for kind in ("expected", "got", "reference"))
            total += Closeness.between(got, expected, scaled, sample)
            repeats = repeats and _is_same(expected, before)
            dtype = expected.dtype
        scale = float(scaled.scale[0]) if scaled is not None and dtype.kind in "iu" else None
        source = graph.tensors[producer.inputs[0]] if producer is not None and producer.name == "DEQUANTIZE" else None
        step = None
        if source is not None and source.is_quantized and source.quantization is not None:
            step = float(source.quantization.scale.max())
        return CutOutput(tensor.name, index, dtype.name, scale, step, ran, repeats, total)

    def _cumulative(self, outputs: tuple[CutOutput, ...], drifts: bool) -> tuple[CutOutput, ...]:
        """Compares what the tested side gave on what its cuts before gave, and keeps it for those behind."""
        found = []
        for output in outputs:
            index, total = output.tensor_idx, Closeness()
            scaled = self.cuts.graph.tensors[index].quantization if output.scale is not None else None
            for sample in self.samples:
                if not drifts:
                    self.store.write("drifted", index, sample, self.store.read("got", index, sample))
                drifted, reference = self.store.read("drifted", index, sample), self.store.read("reference", index, sample)
                total += Closeness.between(drifted, reference, scaled, sample)
            self.store.move("drifted", "tested", index, self.samples)
            found.append(dataclasses.replace(output, cumulative=total))
        return tuple(found)

    def smallest(self, cut: Cut, row: CutRow) -> tuple[Cut, CutRow] | None:
        """Returns the smallest part of a failing cut that fails the same way by itself; None where it does not fail so."""
        kind = row.kind(self.limits)
        if kind not in ("crashed", "refused", "differs"):
            return None
        tried: dict[tuple[int, ...], tuple[Cut, CutRow]] = {}

        def badness(part: Sequence[int]) -> float | None:
            key = tuple(part)
            if key not in tried:
                tried[key] = self.measured(self.cuts.span(key, cut.outputs), cumulative=False)
            found = tried[key][1]
            if found.kind(self.limits) != kind:
                return None
            ratios = [output.isolated.snr_db for output in found.outputs]
            return max((math.inf if math.isnan(ratio) else -ratio for ratio in ratios), default=math.inf)

        everything = [position for position in cut.operators if position in self.cuts.computed]
        if len(everything) < 2 or badness(everything) is None:
            return None
        found = tuple(_smallest_part(everything, badness))
        if found == tuple(everything):
            return None
        # Once more, so that its values are those that the store has.
        part, measured = self.measured(tried[found][0], cumulative=False)
        if len(found) > 1:
            note = (
                "no operator of the cut fails by itself: rounding that adds up or is magnified on the way, or operators that "
                "go wrong where they run together"
            )
            measured = dataclasses.replace(measured, notes=(*measured.notes, note))
        part = dataclasses.replace(part, name=f"{cut.name}_smallest_{part.name}")
        return part, dataclasses.replace(measured, name=part.name, smallest_of=cut.name)


def _smallest_part(operators: Sequence[int], badness: Callable[[Sequence[int]], float | None]) -> list[int]:
    """Returns the smallest part of a list that still fails: a single operator wherever one does, the worst of several.

    Rounding that adds up fails in many parts, and must not lead away from an operator that is wrong by itself: of two halves
    that fail the worse is followed, and where that ends at no single operator, all of them are tried. Where none fails, parts
    are left out, from the ends and then from within, until nothing more can be.

    Args:
        operators: A list that fails.
        badness: How badly a part does, the greater the worse; None where it passes.
    """
    current = _halved(operators, badness)
    if len(current) == 1:
        return current
    single = [(bad, position) for position in operators if (bad := badness([position])) is not None]
    if single:
        return [max(single)[1]]
    size = len(current) // 4
    while len(current) > 1:
        size = max(size, 1)
        starts = sorted(range(0, len(current), size), key=lambda start: min(start, len(current) - start))  # the ends first
        shorter = (current[:start] + current[start + size :] for start in starts)
        part = next((part for part in shorter if part and badness(part) is not None), None)
        if part is not None:
            current = part
        elif size == 1:
            break
        else:
            size //= 2
    return current


def _halved(operators: Sequence[int], badness: Callable[[Sequence[int]], float | None]) -> list[int]:
    """Returns what halving a list comes to as long as a half fails, the worse where both do."""
    current = list(operators)
    while len(current) > 1:
        middle = len(current) // 2
        halves = [(bad, part) for part in (current[:middle], current[middle:]) if (bad := badness(part)) is not None]
        if not halves:
            break
        current = max(halves, key=lambda half: half[0])[1]
    return current


def _claimed(side: Side, content: bytes) -> set[int]:
    """Returns the tensors that a side's own delegate computes: XNNPACK, which would hide what it leaves, stays out."""
    if not side.backend.delegates:
        return set()
    backend = side.backend
    kernels = "builtin" if backend.kernels == "auto" else backend.kernels
    return set(Interpreter(content, backend.runtime, kernels, backend.threads, backend.delegates).delegated())


def _is_same(values: np.ndarray, reference: np.ndarray) -> bool:
    difference = Difference.between(values, reference, 0)
    if difference.one_sided or difference.other_shape:
        return False
    return difference.relative_rmse <= FLOAT_ROUNDING if values.dtype.kind in "fc" else difference.is_none


def _notes_on_repeats(side: Side, outputs: Iterable[CutOutput]) -> list[str]:
    names = [repr(output.node) for output in outputs if not output.repeats]
    if not names:
        return []
    note = (
        f"{side.label} computes {', '.join(names)} otherwise in the cut than in the whole model: it fuses operators there, has "
        "state that the cut has not, or does not give the same twice; what is expected here is what it computes in the cut"
    )
    return [note]


class _Keeper:
    """Writes cuts into folders, with what they were fed, what should have come, and what came."""

    def __init__(self, folder: Any, keep_all: bool, trial: _Trial, sha256: str) -> None:
        self._folder = None if folder is None else Path(folder)
        self._keep_all, self._trial, self._sha256 = keep_all, trial, sha256

    def kept(self, cut: Cut, row: CutRow) -> CutRow:
        """Writes a cut that fails, or any; returns its row, with where it is."""
        kind = row.kind(self._trial.limits)
        if self._folder is None or (kind in ("passed", "inherited") and not self._keep_all):
            return row
        folder = self._folder / cut.name
        samples = self._samples(cut, row)
        write_atomically(folder / "model.tflite", cut.data)
        self._write(folder / "inputs.npz", "reference", cut.input_names, cut.inputs, samples)
        for name, values in (("expected.npz", "expected"), ("got.npz", "got")):
            if all(self._trial.store.has(values, index, samples) for index in cut.outputs):
                self._write(folder / name, values, cut.output_names, cut.outputs, samples)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier run
        row = dataclasses.replace(row, folder=cut.name)
        write_atomically(folder / "cut.json", json.dumps(encoded(self._about(cut, row, samples)), indent=1).encode())
        return row

    def _samples(self, cut: Cut, row: CutRow) -> list[int]:
        """Returns the samples to keep: the worst of each output, then the first others, all of one shape."""
        trial = self._trial
        worst = [output.isolated.difference.worst_sample for output in row.outputs]
        chosen = list(dict.fromkeys([*(sample for sample in worst if sample in trial.samples), *trial.samples]))
        alike = [sample for sample in chosen if self._shapes(cut, sample) == self._shapes(cut, chosen[0])]
        return alike[:KEPT_SAMPLES]

    def _shapes(self, cut: Cut, sample: int) -> list[tuple[int, ...]]:
        store = self._trial.store
        places = [("reference", index) for index in cut.inputs]
        places += [(kind, index) for kind in ("expected", "got") for index in cut.outputs]
        return [store.read(kind, index, sample).shape for kind, index in places if store.has(kind, index, [sample])]

    def _write(self, path: Path, kind: str, names: Sequence[str], indices: Sequence[int], samples: Sequence[int]) -> None:
        """Writes arrays ``(samples, ...)`` by the names of tensors, in the form that `open_dataset` takes."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, index in zip(names, indices, strict=True):
                arrays = [self._trial.store.read(kind, index, sample) for sample in samples]
                written = io.BytesIO()
                np.lib.format.write_array(written, np.stack(arrays), allow_pickle=False)
                archive.writestr(f"{name}.npy", written.getvalue())
        write_atomically(path, content.getvalue())

    def _about(self, cut: Cut, row: CutRow, samples: Collection[int]) -> dict[str, Any]:
        trial = self._trial
        return {
            "verdict": row.verdict(trial.limits),
            "model_sha256": self._sha256,
            "cut_sha256": Model(cut.data).sha256,
            "samples": list(samples),
            "reference": {"label": trial.sides[0].label, **trial.recorded.described},
            "tested": {"label": trial.sides[1].label, **(trial.described or _asked_for(trial.sides[1]))},
            "limits": trial.limits._asdict(),
            "row": dataclasses.asdict(row),
        }


def _asked_for(side: Side) -> dict[str, Any]:
    """Returns what a side should have been, where it never ran."""
    delegates = [{"library": delegate.library, "options": dict(delegate.options)} for delegate in side.backend.delegates]
    return {"runtime": side.backend.runtime, "runtime_version": "", "kernels": side.backend.kernels, "delegates": delegates}


def _finished(rows: tuple[CutRow, ...], trial: _Trial, whole: Model, signature: str | None, dataset: str) -> CutComparison:
    from tflite_qdebug import __version__

    provenance = {
        "tflite_qdebug": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model_sha256": whole.sha256,
        "signature": signature,
        "debug_dataset": dataset,
        "samples": len(trial.samples),
        "cumulative": trial.cumulative,
    }
    reference, tested = trial.sides
    return CutComparison(
        rows,
        {"label": reference.label, **trial.recorded.described},
        {"label": tested.label, **(trial.described or _asked_for(tested))},
        trial.limits,
        len(trial.samples),
        provenance,
        tuple(_notes(rows, trial, whole, signature)),
    )


def _notes(rows: Sequence[CutRow], trial: _Trial, whole: Model, signature: str | None) -> list[str]:
    """Says what was not tried, or by other kernels than one may think."""
    notes = []
    others = sorted({entry.key for entry in whole.signatures if entry.subgraph})
    if signature is None and others:
        notes.append(f"the main subgraph alone was cut; left out: the signatures {', '.join(map(repr, others))}")
    outputs = [output for row in rows for output in row.outputs]
    if trial.sides[1].backend.delegates and outputs:
        taken = sum(output.ran == "delegate" for output in outputs)
        rest = ", ".join(sorted({output.ran for output in outputs} - {"delegate"}))
        if taken < len(outputs):
            notes.append(
                f"{trial.sides[1].label} computes {taken} of {len(outputs)} results of cuts"
                + (f", {rest} kernels the others" if rest else "")
            )
    if trial.cumulative and any(row.failure for row in rows):
        notes.append("behind a cut that could not be run, the tested side goes on with the reference's values")
    if any(tensor.is_variable for tensor in trial.cuts.graph.tensors) or _reopens(trial.cuts.model):
        notes.append("the state of the model is set back before each sample")
    return notes
