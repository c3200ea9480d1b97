"""Kernels or quantization? The same model under two kernels, operator by operator, and which of the two is right.

A difference that one operator makes travels on through the model, so comparing two runs tensor by tensor blames the layers
behind it too. Here the first kernels run the model, and then every operator runs by itself, under both kernels, on the
inputs that the first had for it: what differs then was made by that operator (``isolated``). What the two runs have come to
differ by at the same tensor is ``accumulated``. Who is right, an exact result tells: the same operator in float32, on the
dequantized inputs and weights.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit.exploded import (
    CONTROL_FLOW,
    ExplodedModel,
    computed_tensors,
    explode,
    float_twins,
    have_float_form,
    joined_operators,
)
from tflite_qdebug.edit.flatbuffer import expose
from tflite_qdebug.edit.subgraphs import selected_signature
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError, QDebugError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.kernel_record import FLOAT_ROUNDING, Difference, KernelComparison, KernelRow
from tflite_qdebug.model import Model, Operator, Tensor
from tflite_qdebug.progress import track
from tflite_qdebug.sides import Player, Side, sides_of
from tflite_qdebug.workers import map_samples

__all__ = ["compare_kernels"]

_CUT = "its operators cut apart"


def compare_kernels(
    model: Any,
    dataset: Any,
    first: Backend | None = None,
    second: Backend | None = None,
    *,
    signature: str | None = None,
    limit: int | None = None,
    progress: bool | None = None,
) -> KernelComparison:
    """Runs a model under two kernels and compares them operator by operator.

    Args:
        model: Path, bytes or something with ``data``; quantized or not.
        dataset: Anything that `open_dataset` takes.
        first: Which code runs it first; its values are what every operator is compared on. None: the default kernels. Its
            ``workers``, ``isolate`` and ``time_limit`` hold for both.
        second: Which code it is held against; None: the reference kernels of the first one's runtime.
        signature: Compare this signature; None: the main subgraph.
        limit: Take the first so many samples.
        progress: As in `progress.track`.

    Raises:
        OptionError: Where both are the same, or there is no such signature.
        ModelError: Where the model has nothing to compare.
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where a runtime, XNNPACK or a delegate refuses the model: other kernels than those asked for are not
            compared. An error or an interruption on the way carries what was compared before as its ``partial_comparison``.
    """
    first = first or Backend()
    second = second or Backend(first.runtime, "reference", threads=first.threads)
    sides = sides_of(first, second)
    whole = Model(getattr(model, "data", model))
    selected = whole if signature is None else selected_signature(whole, signature)
    opened = open_dataset(dataset, selected.input_specs(), "debug dataset", limit, signature)
    samples = iter(track(opened, "comparing kernels", opened.length, progress))
    try:
        ahead = next(samples)
    except StopIteration:
        raise DatasetError(f"the {opened.role} yielded no samples") from None
    plan = _Plan(selected, sides, ahead)
    total = plan.empty(whole, signature, opened.description)
    workers = first.pool(functools.partial(_Worker, plan), "comparing kernels")
    try:
        for rows in map_samples(_Worker.measure, workers, itertools.chain([ahead], samples)):
            added = tuple(ours + new for ours, new in zip(total.rows, rows, strict=True))
            total = dataclasses.replace(total, samples=total.samples + 1, rows=added)
    except BaseException as error:
        if total.samples:
            error.partial_comparison = plan.finished(total, workers.notes)  # type: ignore[attr-defined]
        raise
    return plan.finished(total, workers.notes)


class _Exploded:
    """An exploded model on one side."""

    def __init__(self, open_: Callable[[bytes, str], Interpreter], model: ExplodedModel, what: str, reopens: bool) -> None:
        self._inputs = model.inputs
        self._player = Player(lambda: open_(model.data, what), model.outputs, reopens)

    def run(self, values: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Returns what each operator computes from these values of its inputs."""
        return self._player.run([values[index] for index in self._inputs])


class _Plan:
    """What does not change from sample to sample: the models that are run, and an empty row for each tensor."""

    def __init__(self, model: Model, sides: tuple[Side, Side], sample: Any) -> None:
        """Makes the models, trying each on the first sample, in a process of its own."""
        self.model, self.sides = model, sides
        self.graph = model.main
        self.computed = computed_tensors(self.graph)
        if not self.computed:
            raise ModelError("the model has no operator whose result could be compared: all computes from constants alone")
        # Resources keep their values until the interpreter is gone.
        self.reopens = any(tensor.dtype == object for graph in model.subgraphs for tensor in graph.tensors)
        self.joined = joined_operators(self.graph)
        self.exposed = expose(model, [index for _, index in self.computed])
        values, self.described, taken, self.notes = self._apart(self._first_values, sample, what="running the model")
        self.ran = [_ran(side, tensors) for side, tensors in zip(sides, taken, strict=True)]
        self._check_that_delegates_run()
        shapes = {index: array.shape for index, array in values.items()}
        self.exploded = explode(model, shapes)
        self._apart(self._check_exploded, values, what="running the model's operators one by one")
        self.direct = {
            operator.outputs[0]: operator.inputs[0]
            for operator in self.graph.operators
            if operator.name in ("DEQUANTIZE", "QUANTIZE") and operator.inputs[0] in values
        }
        self._choose_exact(values, shapes)
        self.rows = tuple(self._row(operator, index, values[index].dtype) for operator, index in self.computed)

    def _apart(self, function: Callable[..., Any], *arguments: Any, what: str) -> Any:
        return self.sides[0].backend.apart(function, *arguments, what=what)

    def player(self, open_: Callable[[bytes, str], Interpreter], model: ExplodedModel, what: str) -> _Exploded:
        """Returns a player of an exploded model."""
        return _Exploded(open_, model, what, self.reopens)

    def exposed_player(self, side: Side) -> Player:
        """Returns a player of the whole model that shows every operator's result."""
        return Player(lambda: side.open(self.exposed, "its tensors exposed"), self.tensors, self.reopens)

    @property
    def tensors(self) -> list[int]:
        """The tensors that are compared."""
        return list(dict.fromkeys(index for _, index in self.computed))

    def _check_that_delegates_run(self) -> None:
        """Notes how much a delegate leaves to other kernels.

        Raises:
            InterpreterError: Where it is all, and those are the ones to compare with.
        """
        same_runtime = len({described["runtime"] for described in self.described}) == 1
        for side, other, ran in zip(self.sides, self.sides[::-1], self.ran, strict=True):
            kernels = [ran(operator, index) for operator, index in self.computed if operator.name not in CONTROL_FLOW]
            rest = [name for name in kernels if name in ("builtin", "reference")]
            if not rest or (side.backend.kernels != "auto" and not side.backend.delegates):
                continue
            if len(rest) < len(kernels):
                taken = len(kernels) - len(rest)
                self.notes.append(f"{side.label} computes {taken} of {len(kernels)} results, the {rest[0]} kernels the others")
                continue
            plain = not other.backend.delegates and other.backend.kernels == rest[0]
            if plain and same_runtime and len(kernels) == len(self.computed):
                raise InterpreterError(
                    f"{side.label} takes none of the model's {len(self.graph.operators)} operators: the {rest[0]} kernels "
                    "would be compared with themselves; choose two kernels that differ"
                )
            self.notes.append(f"{side.label} takes none of the model's operators: its {rest[0]} kernels are compared")

    def _first_values(self, sample: Any) -> tuple[dict[int, np.ndarray], list[dict[str, Any]], list[list[int]], list[str]]:
        """Runs the first sample on both sides.

        Returns:
            The first side's values, what each side is, the tensors that its delegates compute, and notes where exposing
            changes results.
        """
        taken: list[list[int]] = []
        found: list[dict[int, np.ndarray]] = []
        described: list[dict[str, Any]] = []
        notes: list[str] = []
        for side in self.sides:
            plain = Player(functools.partial(side.open, self.model.data, "the model"), self.graph.outputs, self.reopens)
            with _located(sample):
                before = plain.run(sample.inputs)
            player = self.exposed_player(side)
            values = player.run(sample.inputs, inputs_too=True)
            taken.append(player.interpreter.delegated())
            changed = max((_relative(array, values[index]) for index, array in before.items() if index in values), default=0.0)
            if changed > FLOAT_ROUNDING:
                notes.append(
                    f"{side.label} computes other outputs (relative {changed:.1e} on the first sample) once every tensor can "
                    "be read: it fuses operators, which is not what is compared here, or does not give the same twice"
                )
            found.append(values)
            described.append({"label": side.label, **plain.interpreter.provenance(), "threads": side.backend.threads})
        return found[0], described, taken, notes

    def _check_exploded(self, values: Mapping[int, np.ndarray]) -> None:
        for side in self.sides:
            self.player(side.open, self.exploded, _CUT).run(values)

    def _choose_exact(self, values: dict[int, np.ndarray], shapes: Mapping[int, Sequence[int]]) -> None:
        """Finds what tells who is right: float twins, else kernels that are neither side's."""
        runtime = self.sides[0].backend.runtime
        floats = Backend(runtime, "builtin")
        candidates = [index for index in have_float_form(self.model) if index not in self.joined]
        self.twins = self._usable(floats, candidates, values, shapes, float_twins)
        taken = {side.backend.kernels for side in self.sides}
        self.third_kernels = next((kernels for kernels in ("reference", "builtin") if kernels not in taken), None)
        opaque = {
            op.index for op in self.graph.operators for i in op.inputs if i >= 0 and self.graph.tensors[i].dtype == object
        }
        has_exact = {*self.direct, *(self.twins.outputs if self.twins else ())}
        rest = {op.index for op, index in self.computed if index not in has_exact} - opaque - set(self.joined)
        third = Backend(runtime, self.third_kernels or "reference")
        self.third = self._usable(third, sorted(rest), values, shapes, explode) if self.third_kernels else None

    def _usable(
        self,
        backend: Backend,
        operators: Sequence[int],
        values: Mapping[int, np.ndarray],
        shapes: Mapping[int, Sequence[int]],
        build: Callable[[Model, Mapping[int, Sequence[int]], Sequence[int]], ExplodedModel],
    ) -> ExplodedModel | None:
        """Returns the model of those of the operators that run; those that a runtime refuses are found by halving."""

        def runs(part: Sequence[int]) -> bool:
            try:
                built = build(self.model, shapes, part)
                inputs = self.inputs_of(built, values, build is float_twins)
                self._apart(self._try, backend, built, inputs, what="trying other kernels")
            except (QDebugError, RuntimeError, ValueError):
                return False
            return True

        def usable(part: Sequence[int]) -> list[int]:
            if not part or runs(part):
                return list(part)
            half = len(part) // 2
            return usable(part[:half]) + usable(part[half:]) if half else []

        found = usable(operators)
        return build(self.model, shapes, found) if found else None

    def _try(self, backend: Backend, built: ExplodedModel, inputs: Mapping[int, np.ndarray]) -> None:
        self.player(_opener(backend), built, "").run(inputs)

    def inputs_of(self, built: ExplodedModel, values: Mapping[int, np.ndarray], as_float: bool) -> Mapping[int, np.ndarray]:
        """Returns the values to feed; as floats where twins are fed."""
        return {index: self.real(index, values[index]) for index in built.inputs} if as_float else values

    def real(self, index: int, values: np.ndarray) -> np.ndarray:
        """Returns what integers with a scale stand for, float32; other values as they are."""
        tensor = self.graph.tensors[index]
        if tensor.is_quantized and tensor.quantization is not None and values.dtype.kind in "iu":
            return tensor.quantization.dequantize(values)
        return values.astype(np.float32) if values.dtype == np.float16 else values

    def _row(self, operator: Operator, index: int, dtype: np.dtype[Any]) -> KernelRow:
        """Describes one result; its type is that of its values, which some kernels make another than the file says."""
        tensor = self.graph.tensors[index]
        scaled = tensor.is_quantized and tensor.quantization is not None and dtype.kind in "iu"
        weights = [self.graph.tensors[i] for i in operator.inputs if i >= 0]
        exact = ""
        if index in self.direct or (self.twins and index in self.twins.outputs):
            exact = "float"
        elif self.third and index in self.third.outputs:
            exact = f"{self.third_kernels} kernels"
        return KernelRow(
            node=tensor.name,
            op_name=operator.name,
            operator=operator.index,
            tensor_idx=index,
            shape=tensor.shape,
            dtype=dtype.name,
            scale=float(tensor.quantization.scale[0]) if scaled else None,  # type: ignore[union-attr]
            hybrid=dtype.kind == "f" and any(t.is_constant and t.is_quantized for t in weights),
            joined=self.joined.get(operator.index, ""),
            first_ran=self.ran[0](operator, index),
            second_ran=self.ran[1](operator, index),
            exact=exact,
        )

    def empty(self, whole: Model, signature: str | None, dataset: str) -> KernelComparison:
        """Returns the comparison of no samples; notes what of the whole model is left out."""
        from tflite_qdebug import __version__

        if signature is None:
            others = sorted({entry.key for entry in whole.signatures if entry.subgraph})
            if others:
                names = ", ".join(map(repr, others))
                self.notes.append(
                    f"the main subgraph alone is compared; left out: the signatures {names}; name one to compare it"
                )
        provenance = {
            "tflite_qdebug": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model_sha256": whole.sha256,
            "signature": signature,
            "debug_dataset": dataset,
        }
        return KernelComparison(self.rows, self.described[0], self.described[1], 0, provenance)

    def finished(self, total: KernelComparison, notes: Iterable[str]) -> KernelComparison:
        """Returns the comparison with its notes."""
        every = (*self.notes, *notes, *self._notes_on_scope(), *_notes_on_repeats(total), *_notes_on_unsure(total))
        return dataclasses.replace(total, notes=every, provenance={**total.provenance, "samples": total.samples})

    def _notes_on_scope(self) -> list[str]:
        """Says what was not compared, or not by itself."""
        notes = []
        compared = {operator.index for operator, _ in self.computed}
        left = [operator for operator in self.graph.operators if operator.index not in compared and operator.outputs]
        if left:
            notes.append(
                "computed from constants or shapes alone, or resources, and compared as part of what reads them: "
                + _listed(operator.name for operator in left)
            )
        whole = [operator for operator, _ in self.computed if operator.name in CONTROL_FLOW]
        if whole:
            notes.append(f"compared as a whole, with their bodies: {_listed(operator.name for operator in whole)}")
        for reason in dict.fromkeys(self.joined.values()):
            names = [self.graph.operators[position].name for position in sorted(self.joined) if self.joined[position] == reason]
            notes.append(f"not cut off from other operators, whose differences they show too: {_listed(names)}; {reason}")
        if any(tensor.is_variable for tensor in self.graph.tensors) or self.reopens:
            notes.append("the state of the model is set back before each sample")
        return notes


def _ran(side: Side, delegated: Collection[int]) -> Callable[[Operator, int], str]:
    """Returns a function that says which kernels compute an operator's output; nothing for bodies, which nobody can see."""
    by_delegate = "delegate" if side.backend.delegates else "xnnpack"
    rest = "builtin" if side.backend.kernels == "auto" else side.backend.kernels
    return lambda operator, index: by_delegate if index in delegated else ("" if operator.name in CONTROL_FLOW else rest)


def _opener(backend: Backend) -> Callable[[bytes, str], Interpreter]:
    return lambda content, what: backend.open(content)


def _relative(values: np.ndarray, reference: np.ndarray) -> float:
    difference = Difference.between(values, reference, 0)
    if values.dtype.kind in "fc" and not (difference.one_sided or difference.other_shape):
        return difference.relative_rmse
    return 0.0 if difference.is_none else float("inf")


def _listed(names: Iterable[str]) -> str:
    """Returns names with how often each occurs."""
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in collections.Counter(names).items())


def _notes_on_unsure(total: KernelComparison) -> list[str]:
    pairs = zip(total.rows, total.verdicts(), strict=True)
    names = [row.op_name for row, verdict in pairs if verdict.kind == "differs" and not row.exact]
    if not names:
        return []
    note = (
        f"{len(names)} results differ where nothing tells which kernels are right, since these operators have no form in float "
        f"that runs, and no third kernels run them: {_listed(names)}"
    )
    return [note]


def _notes_on_repeats(total: KernelComparison) -> list[str]:
    notes = []
    for side, name in ((total.first, "first_repeated"), (total.second, "second_repeated")):
        rows = []
        for row in total.rows:
            difference: Difference = getattr(row, name)
            harmless = row.is_float and not difference.one_sided and difference.relative_rmse <= FLOAT_ROUNDING
            if not difference.is_none and not harmless:
                rows.append(f"{row.op_name} {row.node!r}")
        if rows:
            notes.append(
                f"{side['label']} computes {len(rows)} of {len(total.rows)} results otherwise when each operator runs by "
                f"itself: {', '.join(rows[:3])}{', ...' if len(rows) > 3 else ''}. Operators are fused there, run by other "
                "kernels when they are alone, or do not give the same twice; read their rows with care"
            )
    return notes


@contextlib.contextmanager
def _located(sample: Any) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"sample {sample.index}: {error}") from error


class _Worker:
    """The interpreters that one sample goes through."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._exposed = [plan.exposed_player(side) for side in plan.sides]
        self._exploded = [plan.player(side.open, plan.exploded, _CUT) for side in plan.sides]
        runtime = plan.sides[0].backend.runtime
        self._twins = plan.player(_opener(Backend(runtime, "builtin")), plan.twins, "") if plan.twins else None
        self._third = None
        if plan.third and plan.third_kernels:
            self._third = plan.player(_opener(Backend(runtime, plan.third_kernels)), plan.third, "")

    def measure(self, sample: Any) -> list[KernelRow]:
        """Returns what one sample adds to each row."""
        with _located(sample):
            first = self._exposed[0].run(sample.inputs, inputs_too=True)
            second = self._exposed[1].run(sample.inputs, inputs_too=True)
        alone = self._exploded[0].run(first), self._exploded[1].run(first)
        second_alone = self._exploded[1].run(second)
        exact = self._exact(first)
        return [
            self._added(row, sample.index, (first, second), alone, second_alone, exact.get(row.tensor_idx))
            for row in self._plan.rows
        ]

    def _added(
        self,
        row: KernelRow,
        sample: int,
        whole: tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]],
        alone: tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]],
        second_alone: Mapping[int, np.ndarray],
        exact: np.ndarray | None,
    ) -> KernelRow:
        """Returns one row with what the sample adds.

        ``whole`` are both sides' values in the whole model, ``alone`` those of the operators by themselves on the first
        side's values, ``second_alone`` those of the second side by themselves on its own.
        """
        index = row.tensor_idx
        first, second = (self._plan.real(index, values) for values in (whole[0][index], alone[1][index]))
        return dataclasses.replace(
            row,
            isolated=Difference.between(alone[1][index], whole[0][index], sample),
            accumulated=Difference.between(whole[1][index], whole[0][index], sample),
            first_repeated=Difference.between(alone[0][index], whole[0][index], sample),
            second_repeated=Difference.between(second_alone[index], whole[1][index], sample),
            first_error=Difference() if exact is None else Difference.between(first, exact, sample),
            second_error=Difference() if exact is None else Difference.between(second, exact, sample),
        )

    def _exact(self, values: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Returns the exact results, held to the range of their type."""
        plan = self._plan
        exact = {index: plan.real(source, values[source]) for index, source in plan.direct.items()}
        if self._twins and plan.twins:
            exact.update(self._twins.run(plan.inputs_of(plan.twins, values, True)))
        exact = {index: _held(plan.graph.tensors[index], array) for index, array in exact.items()}
        if self._third:
            exact.update((index, plan.real(index, array)) for index, array in self._third.run(values).items())
        return exact


def _held(tensor: Tensor, exact: np.ndarray) -> np.ndarray:
    """Returns values clipped to what the tensor's type can hold, as any right kernel clips them."""
    if not tensor.is_quantized or tensor.quantization is None:
        return exact
    limits = np.array([np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max], dtype=tensor.dtype)
    low, high = tensor.quantization.dequantize(limits)
    return np.clip(exact, low, high)
