"""Runs what was prepared on a device and finds the first layer that differs from the CPU. Part of the board.

The whole model with its intermediate tensors as outputs, in pieces, shows where a difference is. Where such a piece is not
there, as when the compiler refused it, models of the first so many operators are bisected. Each operator alone, on the CPU's
values of its inputs, tells whether it makes the difference or inherits it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tflite_qdebug import isolation
from tflite_qdebug.collect import Backend
from tflite_qdebug.delegates import label
from tflite_qdebug.edgetpu.device_record import DeviceComparison, DeviceRow
from tflite_qdebug.edgetpu.prepared_folder import CUSTOM_OPERATOR, PreparedFolder, PreparedModel, PreparedOperator
from tflite_qdebug.errors import InterpreterError, ModelError, OptionError, QDebugError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.kernel_record import Difference
from tflite_qdebug.progress import track
from tflite_qdebug.workers import map_samples

__all__ = ["compare_with_device"]

Differences = Dict[int, Difference]
# After so many models that failed, and none that ran, the device is given up: the whole one, a piece of it, and layers.
_MOST_FAILED = 5


def compare_with_device(
    folder: Any,
    backend: Optional[Backend] = None,
    *,
    tolerance: float = 1.0,
    compiled: Optional[bool] = None,
    bisect: bool = False,
    progress: Optional[bool] = None,
) -> DeviceComparison:
    """Runs a prepared folder's models and compares them with the CPU's values, operator by operator.

    Args:
        folder: What `prepare_for_device` wrote: a path, or an opened `PreparedFolder`.
        backend: Which code runs the models, mostly with a delegate; None: the runtime's default kernels.
        tolerance: Quantization steps that a result may differ by.
        compiled: Run what the Edge TPU compiler made; False: the models as they were prepared. None: the compiled ones where
            there is any.
        bisect: Leave out the models with intermediate outputs and bisect instead, for outputs change what a compiler makes.
        progress: As in `progress.track`.

    Raises:
        OptionError: For a tolerance below 0.
        ModelError: Where the folder is not whole, or compiled models are asked for and none is there.
        InterpreterError: Where the device runs none of the models. One that fails where others run is noted. An error or an
            interruption on the way carries what was compared before as its ``partial_comparison``.
    """
    if not tolerance >= 0:
        raise OptionError("got a tolerance of {!r} steps, expected 0 or more".format(tolerance))
    folder = folder if isinstance(folder, PreparedFolder) else PreparedFolder(folder)
    folder.check()
    backend = backend or Backend()
    if compiled is None:
        # An Edge TPU takes nothing else: without this the CPU would be compared with itself.
        compiled = folder.has_compiled or any("edgetpu" in os.path.basename(one.library) for one in backend.delegates)
    if compiled and not folder.has_compiled:
        raise ModelError(
            "{} holds no compiled model; run its compile.sh where edgetpu_compiler is installed, and copy the folder "
            "'compiled' back, or compare the models as they are (--uncompiled)".format(folder.path)
        )
    search = _Search(folder, backend, tolerance, compiled)
    try:
        search.run(bisect, progress)
    except BaseException as error:
        if search.has_measured:
            error.partial_comparison = search.result()  # type: ignore[attr-defined]
        raise
    return search.result()


class _Runner:
    """A model on the device."""

    def __init__(self, folder: PreparedFolder, model: PreparedModel, content: bytes, backend: Backend) -> None:
        self._folder, self._model = folder, model
        name = label(backend.delegates)
        # No canary comes first: a device that is plainly wrong is what is looked for. But see `measure`.
        with isolation.doing("{} was being loaded".format(name)) if backend.delegates else contextlib.nullcontext():
            self.interpreter = Interpreter(content, backend.runtime, backend.kernels, backend.threads, backend.delegates)
        self._inputs = self._order("inputs", model.inputs)
        self._outputs = self._order("outputs", model.outputs)

    def _order(self, side: str, tensors: Sequence[int]) -> List[int]:
        """Returns the tensors in the model's order: by their names, which a compiler keeps, else as prepared.

        Raises:
            ModelError: Where their number, types or shapes are others: it was not compiled from this model.
        """
        infos = getattr(self.interpreter, side)
        by_name = {self._folder.tensors[index].plain: index for index in tensors}
        names = [info.name for info in infos]
        found = [by_name[name] for name in names] if sorted(names) == sorted(by_name) else list(tensors)
        got = [(tuple(info.shape), str(info.dtype)) for info in infos]
        expected = [(self._folder.tensors[index].shape, self._folder.tensors[index].dtype) for index in found]
        if got != expected:
            raise ModelError(
                "{}: got {} {}, expected {}; compile what this folder holds".format(self._model.file, side, got, expected)
            )
        return found

    def measure(self, sample: _Case) -> Differences:
        """Runs one sample, the first one twice; returns how each output differs.

        Raises:
            InterpreterError: Where the first sample gives two answers.
        """
        inputs = self._folder.values(sample.file, tuple(self._inputs))
        answer = self._answer(inputs)
        if not sample.index:
            again = self._answer(inputs)
            varying = sum(
                int(np.count_nonzero(one != two)) for one, two in zip(answer, again) if one.tobytes() != two.tobytes()
            )
            if varying:
                raise InterpreterError(
                    "{} gave two answers to the same sample: {} of {} values changed; nothing that it computes can be "
                    "believed".format(self._model.file, varying, sum(one.size for one in answer))
                )
        references = self._folder.values(sample.file, tuple(self._outputs))
        tensors = [self._folder.tensors[index] for index in self._outputs]
        found = zip(tensors, answer, references)
        return {tensor.index: tensor.difference(ours, theirs, sample.index) for tensor, ours, theirs in found}

    def _answer(self, inputs: Sequence[np.ndarray]) -> List[np.ndarray]:
        with contextlib.suppress(InterpreterError):  # some delegates have none to set back
            self.interpreter.reset_variables()
        self.interpreter.invoke(inputs)
        return self.interpreter.read_outputs()


@dataclasses.dataclass(frozen=True)
class _Case:
    """A sample: its position, and the file that holds it."""

    index: int
    file: str


class _Ran(NamedTuple):
    """What came of a model."""

    ran: str
    on_device: bool
    words: str


class _Search:
    """Decides which model to run next, and keeps what each showed."""

    def __init__(self, folder: PreparedFolder, backend: Backend, tolerance: float, compiled: bool) -> None:
        self.folder, self.backend, self.tolerance, self.compiled = folder, backend, tolerance, compiled
        self.accumulated: Differences = {}
        self.local: Dict[int, Differences] = {}
        self.ran: Dict[str, _Ran] = {}
        self.device: Dict[str, Any] = {}
        self.between: Optional[Tuple[int, int]] = None
        self.notes: List[str] = []
        self._whole: Differences = {}
        self._errors: List[QDebugError] = []

    def run(self, bisect: bool, progress: Optional[bool]) -> None:
        """Runs what is needed."""
        kinds = ("whole", "layer") if bisect else ("whole", "tapped", "layer")
        chosen = [model for model in self.folder.models if model.kind in kinds]
        for model in track(chosen, "comparing with the CPU", len(chosen), progress):
            if model.kind == "tapped" and len(self._errors) > 1 and not self.has_measured:
                continue  # it holds whatever the others died of
            found = self._measured(model)
            if found is None:
                continue
            if model.kind == "layer":
                self.local[model.operators] = found
            else:
                self._take(model, found)
        if bisect or any(model.kind == "tapped" and not self._has_run(model) for model in chosen):
            self._bisect()
        if not self.has_measured:
            if self._errors:
                raise self._errors[0]
            raise ModelError(
                "none of the models in {} is compiled that this needs; see compile.sh and the logs in the folder "
                "'compiled'".format(self.folder.path)
            )

    @property
    def _wanted(self) -> str:
        return "compiled" if self.compiled else "uncompiled"

    @property
    def has_measured(self) -> bool:
        """True where there is anything to report."""
        return any(ran.ran == self._wanted for ran in self.ran.values())

    def _has_run(self, model: PreparedModel) -> bool:
        return model.file in self.ran and self.ran[model.file].ran in ("compiled", "uncompiled")

    def _take(self, model: PreparedModel, found: Differences) -> None:
        """Keeps what a model showed of the tensors within the whole model."""
        if model.kind == "whole":
            self._whole = found
        elif self._whole and any(found[i] != self._whole[i] for i in found if i in self._whole):
            self.notes.append(
                "{}: the model's own outputs are others once intermediate tensors are outputs too; "
                "--bisect does without".format(model.file)
            )
        for index, difference in found.items():
            # The piece that was made to show a tensor comes after those where it happens to be an output.
            if model.kind != "tapped" or index not in self._whole:
                self.accumulated[index] = difference

    def _measured(self, model: PreparedModel) -> Optional[Differences]:
        """Runs a model on all samples; None where it is not there or fails, which is kept."""
        # What has nothing for the device runs on its CPU, whether compiled or not.
        compiled = self.compiled and model.compile
        content = self.folder.content(model, compiled)
        if content is None:
            self.ran[model.file] = _Ran("missing", False, self.folder.why_missing(model))
            return None
        total: Differences = {}
        cases = [_Case(position, file) for position, file in enumerate(self.folder.samples)]
        runner = functools.partial(_Runner, self.folder, model, content, self.backend)
        pool = self.backend.pool(runner, "running {}".format(model.file), finish=_finished, count=1)
        try:
            with contextlib.closing(pool):
                for found in map_samples(_Runner.measure, pool, cases):
                    total = {index: total[index] + difference if total else difference for index, difference in found.items()}
        except (InterpreterError, ModelError) as error:
            self.ran[model.file] = _Ran("failed", False, str(error))
            self._errors.append(error)
            if len(self._errors) == len(self.ran) and len(self._errors) >= _MOST_FAILED:
                raise self._errors[0] from error
            return None
        device, taken = pool.finished[0]
        self.device = self.device or device
        self.notes += ["{}: {}".format(model.file, note) for note in pool.notes]
        on_device = CUSTOM_OPERATOR in content if compiled else taken
        self.ran[model.file] = _Ran("compiled" if compiled else "uncompiled", on_device, "")
        return total

    def _exceeds(self, differences: Differences) -> bool:
        tensors = self.folder.tensors
        return any(tensors[index].excess(one, self.tolerance) > 1 for index, one in differences.items())

    def _bisect(self) -> None:
        """Finds the shortest beginning of the model that differs; a difference, once made, is taken to last."""
        prefixes = sorted((model for model in self.folder.models if model.kind == "prefix"), key=lambda model: model.operators)
        low, high = 0, len(prefixes)  # all before `low` are well, `high` and behind are not
        good, bad = 0, len(self.folder.operators)
        known_bad, ran = self._exceeds(self._whole), False
        while low < high:
            middle = (low + high) // 2
            found = self._measured(prefixes[middle])
            if found is None:
                del prefixes[middle]
                high -= 1
                continue
            ran = True
            for index, difference in found.items():
                self.accumulated.setdefault(index, difference)
            if self._exceeds(found):
                high, bad, known_bad = middle, prefixes[middle].operators, True
            else:
                low, good = middle + 1, prefixes[middle].operators
        if known_bad and ran:
            self.between = good, bad

    # --------------------------------------------------------------------------------------------------- what it comes to

    def result(self) -> DeviceComparison:
        """Returns what was found."""
        rows = tuple(self._row(operator) for operator in self.folder.operators if operator.outputs)
        manifest = self.folder.manifest
        outputs = set(manifest["outputs"])
        wholes = [position for position, row in enumerate(rows) if outputs & set(self.folder.operators[row.operator].outputs)]
        models = []
        for model in self.folder.models:
            ran = self.ran.get(model.file, _Ran("", False, ""))
            models.append({"file": model.file, "kind": model.kind, "operators": model.operators, **ran._asdict()})
        return DeviceComparison(
            rows=rows,
            tolerance=float(self.tolerance),
            samples=len(self.folder.samples),
            prepared=self.folder.sha256,
            model=str(manifest["model"]["name"]),
            device=self.device,
            reference=dict(manifest["reference"]),
            models=tuple(models),
            outputs=tuple(wholes),
            between=self.between,
            notes=(*dict.fromkeys(self.notes), *self._about_models()),
        )

    def _row(self, operator: PreparedOperator) -> DeviceRow:
        whole = self._largest(operator, self.accumulated)
        alone = self._largest(operator, self.local.get(operator.index, {}))
        equal = self._equal_inputs(operator)
        tensor = self.folder.tensors[(whole or alone or (operator.outputs[0], Difference()))[0]]
        beyond = [
            None if one is None else self.folder.tensors[one[0]].excess(one[1], self.tolerance) > 1 for one in (whole, alone)
        ]
        sizes = [float("nan") if one is None else self.folder.tensors[one[0]].size(one[1]) for one in (whole, alone)]
        return DeviceRow(
            operator=operator.index,
            type=operator.type,
            node=operator.node,
            predicted="Edge TPU" if operator.mapped else "CPU",
            unit=tensor.unit,
            accumulated=None if whole is None else whole[1],
            local=None if alone is None else alone[1],
            accumulated_size=sizes[0],
            local_size=sizes[1],
            equal_inputs=equal,
            verdict=_verdict(beyond[0], beyond[1], equal),
        )

    def _largest(self, operator: PreparedOperator, differences: Differences) -> Optional[Tuple[int, Difference]]:
        """Returns the output that differs most, by what is tolerated of it; None where not all were measured."""
        if not all(index in differences for index in operator.outputs):
            return None
        found = [(index, differences[index]) for index in operator.outputs]
        return max(found, key=lambda one: self.folder.tensors[one[0]].excess(one[1], self.tolerance))

    def _equal_inputs(self, operator: PreparedOperator) -> Optional[bool]:
        known = [self.accumulated.get(index) for index in operator.inputs if index not in self.folder.inputs]
        if any(one is not None and not one.is_none for one in known):
            return False
        return None if any(one is None for one in known) else True

    def _about_models(self) -> Iterator[str]:
        failed = [(file, ran) for file, ran in self.ran.items() if ran.ran == "failed"]
        for file, ran in failed[:3]:
            yield "{} failed: {}".format(file, ran.words)
        if len(failed) > 3:
            yield "{} more models failed".format(len(failed) - 3)
        expected = [m for m in self.folder.models if m.compile and m.file in self.ran and self.ran[m.file].ran == "missing"]
        for model in expected[:3]:
            yield "{} is not there: {}".format(model.compiled, self.ran[model.file].words)
        if len(expected) > 3:
            yield "{} more compiled models are not there".format(len(expected) - 3)
        done = {file: one for file, one in self.ran.items() if one.ran == self._wanted}
        idle = [file for file, one in done.items() if not one.on_device]
        if idle and (self.compiled or self.backend.delegates):
            yield (
                "the device takes nothing of {} of {} {} models, where the CPU is compared with itself, as in {}".format(
                    len(idle), len(done), self._wanted, idle[0]
                )
            )


def _finished(runner: _Runner) -> Tuple[Dict[str, Any], bool]:
    """Returns what ran, and whether a delegate took anything."""
    interpreter = runner.interpreter
    taken = bool(interpreter.delegates) and interpreter.delegation().taken > 0
    return {**interpreter.provenance(), "notes": list(interpreter.notes)}, taken


def _verdict(whole: Optional[bool], alone: Optional[bool], equal_inputs: Optional[bool]) -> str:
    """Returns the verdict; the arguments are whether each is beyond the tolerance, None where that was not measured."""
    if alone:
        return "alone" if whole is False else "local"
    if whole:
        if equal_inputs:
            return "local" if alone is None else "context"
        return "unknown" if alone is None else "inherited"
    if whole is None:
        return "unmeasured" if alone is None else "alone_same"
    return "same"
