"""Sensitivity: the error at the model's outputs when one node alone is quantized, or one alone left float."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.analyses.evaluation import task_functions
from tflite_qdebug.analyses.kept import Kept
from tflite_qdebug.analyses.mixed_pair import MixedPair, Task, check_metric, memory_budget, open_mixed, trusted_backend
from tflite_qdebug.analyses.sweep import FORMS, Pass, Sweep, Variant, plan_sweep
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets.sources import IteratorSource
from tflite_qdebug.edit.mixed import MixedModels
from tflite_qdebug.errors import DatasetError, InterpreterError, OptionError, did_you_mean
from tflite_qdebug.findings import MODES, Sensitivity
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.output_error import OutputErrors, Reference
from tflite_qdebug.progress import track

__all__ = ["sensitivity"]


def sensitivity(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    mode: str = "node",
    nodes: Collection[str] | None = None,
    output_node: str | None = None,
    metric: str = "sqnr_db",
    task_metrics: Sequence[str | Callable[..., Any]] = (),
    large_is_bad: bool | None = None,
    label_offset: int = 0,
    signature: str | None = None,
    limit: int | None = None,
    memory: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
    saved: str | os.PathLike[str] | None = None,
    finished: Callable[[Sensitivity], None] | None = None,
) -> Sensitivity:
    """Measures the error at the outputs when one node alone is quantized, for each node; or one alone left float.

    A node that is quantized alone computes what it would in a model that TensorFlow's quantizer made with all other nodes
    denylisted: QUANTIZE, the quantized model's own operators, DEQUANTIZE.

    Args:
        float_model: As for `pair_error`.
        quantized_model: As for `pair_error`.
        debug_dataset: As for `pair_error`; with labels for task metrics.
        mode: ``node``; ``weights``: only its weights are quantized; ``activation``: only its input activations; ``float``: it
            is left float, and all others are quantized.
        nodes: Names of the nodes to be measured; None: all that are quantized.
        output_node: Measure the error at the output of this node; None: at the model's outputs.
        metric: What ranks: one of `output_error.METRICS`, or a task metric's name.
        task_metrics: ``top_1``, ``top_5``, ``module:function`` or functions ``f(outputs, label) -> number``, of the outputs
            that both models have, in the quantized model's order.
        large_is_bad: For a task metric that ranks; None: small is bad, as accuracy.
        label_offset: Added to each label.
        signature: As for `pair_error`.
        limit: Take the first so many samples.
        memory: Bytes that all workers together may take for models; None: a quarter of the machine's. Where the nodes do not
            fit into it at once, the dataset is gone through several times.
        backend: Which code runs the models.
        progress: As in `progress.track`.
        saved: A file in which what has been measured is kept while it runs. A run that was interrupted goes on from there; the
            file is removed at the end.
        finished: Called with the result before that file is removed, so that it may be saved.

    Raises:
        OptionError: For an unknown mode, metric or node, or too little memory.
        ModelError: Where the two are no pair, or nothing is quantized.
        DatasetError: For a wrong sample, a missing label, an empty dataset, or an iterator where one pass is not enough.
        InterpreterError: Where the models do not run.
        OutputError: Where ``saved`` cannot be written.
        MetricError: Where a task metric fails or gives no number.
    """
    if mode not in MODES:
        raise OptionError(f"got mode {mode!r}, expected one of {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    functions = task_functions(task_metrics)
    check_metric(metric, functions)
    backend = backend or Backend()
    mixed = open_mixed(float_model, quantized_model, debug_dataset, signature=signature, limit=limit, backend=backend)
    models = mixed.models
    if output_node is not None and functions:
        raise OptionError("got task metrics and an output node; they take the model's outputs")
    outputs = models.outputs if output_node is None else (models.value(output_node),)
    sweep = plan_sweep(models, mode, nodes, outputs, mixed.shapes, memory_budget(memory) // backend.worker_count())
    if len(sweep.passes) > 1 and isinstance(mixed.dataset.source, IteratorSource):
        raise DatasetError(
            f"got an iterator, which is good for one pass; within the memory budget it takes {len(sweep.passes)}. Pass a "
            "function that returns a new iterator each time it is called, or allow more memory"
        )
    doubts: list[str] = []
    if mode in ("node", "float"):  # else no integer kernel runs but QUANTIZE
        backend, doubts = trusted_backend(mixed, backend)
    runner = _Runner(mixed, sweep, mode, Task(functions, label_offset), backend, progress)
    kept = Kept(None if saved is None else Path(saved), runner.key())
    with kept:
        errors = runner.run(kept)
    notes = list(dict.fromkeys([*doubts, *runner.notes]))
    if metric not in errors.names():
        raise OptionError(f"got metric {metric!r}, which does not apply to these outputs; expected one of {errors.names()}")
    if models.left_out:
        notes.append(f"{len(models.left_out)} operators of the quantized model have no counterpart and are not measured")
    of_mode = sweep.nodes
    found = Sensitivity(
        mode,
        tuple(node.name for node in of_mode),
        tuple(node.op_name for node in of_mode),
        tuple(node.operator for node in of_mode),
        errors,
        metric,
        large_is_bad,
        tuple(_threshold(models, node) for node in of_mode) if mode == "activation" else (),
        tuple(_bits(models, node) for node in of_mode) if mode == "activation" else (),
        runner.provenance(errors.samples),
        tuple(notes),
    )
    if finished is not None:
        finished(found)
    kept.finish()
    return found


def _threshold(models: MixedModels, node: Any) -> float:
    """Returns the largest absolute value that a node's inputs can hold, in real units."""
    largest = 0.0
    for index in node.reads.values():
        tensor = models.graph.tensor(index)
        if tensor.is_quantized and tensor.quantization is not None:
            limits = np.array([np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max], dtype=np.float64)
            ends = (limits - float(tensor.quantization.zero_point[0])) * float(tensor.quantization.scale[0])
            largest = max(largest, float(np.abs(ends).max()))
    return largest


def _bits(models: MixedModels, node: Any) -> int:
    tensors = [models.graph.tensor(index) for index in node.reads.values()]
    return max((8 * tensor.dtype.itemsize for tensor in tensors if tensor.is_quantized), default=32)


class _Runner:
    """Runs the passes of a sweep."""

    def __init__(self, mixed: MixedPair, sweep: Sweep, mode: str, task: Task, backend: Backend, progress: bool | None) -> None:
        self._mixed, self._sweep, self._mode, self._task = mixed, sweep, mode, task
        self._backend, self._progress = backend, progress
        self.notes: list[str] = []
        self._ran: dict[str, Any] = {}
        graph = mixed.models.floats.graph
        self._names = [graph.tensor(mixed.models.floats.at[value]).name for value in sweep.outputs]

    def key(self) -> str:
        """Returns what tells this sweep from others."""
        described = [
            self._mixed.identity,
            self._task.identity,
            self._mode,
            [node.operator for node in self._sweep.nodes],
            self._sweep.outputs,
            self._backend.identity,
            [len(part.variants) for part in self._sweep.passes],
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def run(self, kept: Kept) -> OutputErrors:
        found: OutputErrors | None = None
        for number, part in enumerate(self._sweep.passes):
            errors = self._run_pass(number, part, kept)
            if found is not None and not np.array_equal(found.weights, errors.weights):
                raise InterpreterError(
                    f"{found.samples} samples went through the first {number} passes, {errors.samples} through the next, so "
                    f"that their nodes cannot be ranked together: {'; '.join(self.notes)}. Leave such samples out of the "
                    "dataset, or allow more memory"
                )
            found = errors if found is None else found.joined(errors)
        assert found is not None
        return found

    def _run_pass(self, number: int, part: Pass, kept: Kept) -> OutputErrors:
        names = [self._sweep.nodes[variant.node].name for variant in part.variants]
        # Beside the nodes left float one after another, the model with none of them.
        baseline = self._mode == "float" and number == len(self._sweep.passes) - 1
        names += [""] * baseline
        errors, following = kept.state(number, OutputErrors(names, self._names, tuple(self._task.functions)))
        workers = self._backend.pool(
            lambda: _Worker(self._mixed, self._sweep, part, self._mode, self._task, self._backend, baseline),
            f"measuring the sensitivity of {len(part.variants)} nodes",
            finish=_Worker.described,
            own_functions=self._task.own,
        )
        before = kept.about(number)

        def about() -> dict[str, Any]:
            notes = [*before.get("notes", ()), *workers.notes, *(note for _, found in workers.finished for note in found)]
            ran = workers.finished[-1][0] if workers.finished else before.get("ran", {})
            return {"notes": list(dict.fromkeys(notes)), "ran": ran}

        try:
            rest = (sample for sample in self._tracked(number, len(part.variants)) if sample.index >= following)
            for index, rows, task in map_samples(_Worker.measure, workers, rest):
                errors.add(index, rows, task)
                following = index + 1
                kept.keep(number, errors, following, about=about())
        finally:
            if errors.samples:
                kept.keep(number, errors, following, now=True, about=about())
        if not errors.samples:
            raise DatasetError("the debug dataset yielded no samples")
        self.notes += about()["notes"]
        self._ran = about()["ran"] or self._ran
        return errors

    def _tracked(self, number: int, nodes: int) -> Iterator[Any]:
        words = f"sensitivity of {nodes} nodes ({self._mode})"
        if len(self._sweep.passes) > 1:
            words += f", pass {number + 1} of {len(self._sweep.passes)}"
        samples = self._mixed.samples()
        return iter(track(samples, words, samples.length, self._progress))

    def provenance(self, samples: int) -> dict[str, Any]:
        pair = self._mixed.pair
        return {
            "mode": self._mode,
            "float_model_sha256": None if pair.floating is None else pair.floating.sha256,
            "quantized_model_sha256": pair.quantized.sha256,
            "debug_dataset": self._mixed.dataset.description,
            "samples": samples,
            "passes": len(self._sweep.passes),
            "workers": self._backend.worker_count(),
            **self._ran,
        }


class _Worker:
    """The interpreters of one pass."""

    def __init__(
        self,
        mixed: MixedPair,
        sweep: Sweep,
        part: Pass,
        mode: str,
        task: Task,
        backend: Backend,
        baseline: bool,
    ) -> None:
        self._mixed, self._sweep, self._part, self._task = mixed, sweep, part, task
        self._baseline = baseline
        self.base = backend.open(sweep.base)
        # Where XNNPACK refused the base, what is cut out of it must not run on other kernels than it.
        kernels = {"xnnpack": "auto"}.get(self.base.kernels, self.base.kernels) if mode == "float" else backend.kernels
        self.float: Interpreter | None = None
        if FORMS[mode][1] == "node":
            floats = mixed.models.floats
            exposed = mixed.models.exposed("float", [floats.at[value] for value in sweep.outputs])
            self.float = backend.without_delegates.open(exposed)
        self.tails = {position: backend.open(tail.data, kernels) for position, tail in part.tails.items()}
        files = {id(variant.head.data): variant.head.data for variant in part.variants}
        self.heads = {key: backend.open(data, kernels) for key, data in files.items()}

    def described(self) -> tuple[dict[str, Any], list[str]]:
        """Returns which code ran, and what the reader must know."""
        opened = [self.base, *self.tails.values(), *self.heads.values()]
        if self.base.delegates:
            taken = [interpreter.delegation() for interpreter in opened]
            counts = sum(one.taken for one in taken), sum(one.operators for one in taken)
            words = f"in the {len(opened)} parts of the model it took {counts[0]} of {counts[1]} operators"
            return self.base.provenance(), [*self.base.notes, words] if len(opened) > 1 else list(self.base.notes)
        fallen = {note for interpreter in opened for note in interpreter.notes}
        kernels = sorted({interpreter.kernels for interpreter in opened})
        notes = []
        if fallen:
            count = sum(interpreter.kernels == "builtin" for interpreter in opened)
            notes.append(f"{count} of {len(opened)} parts of the model ran on the builtin kernels: {sorted(fallen)[0]}")
        return {**self.base.provenance(), "kernels": "+".join(kernels)}, notes

    def measure(self, sample: Any) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the sample's index, and what it adds for each node and output, and to the task metrics."""
        fed = self._mixed.feeds(sample)
        reference = [Reference(values) for values in self._run_base(fed)]
        values = {**fed, **{value: self.base.view(index) for value, index in self._sweep.at.items()}}
        rows, task = [], []
        ran: Interpreter | None = None
        for variant in self._part.variants:
            head = self.heads[id(variant.head.data)]
            if head is not ran:  # one invocation for all that share it
                self._invoke(head, [values[value] for value in variant.head.inputs])
                ran = head
            outputs = self._outputs_of(variant, head, values)
            rows.append([other.measure(output) for output, other in zip(outputs, reference, strict=True)])
            task.append(self._task.values(outputs, sample))
        if self._baseline:
            outputs = [self._dequantized(self.base, self._sweep.at[value]) for value in self._sweep.outputs]
            rows.append([other.measure(output) for output, other in zip(outputs, reference, strict=True)])
            task.append(self._task.values(outputs, sample))
        values.clear()  # views must be gone before the next sample
        return sample.index, np.array(rows), np.array(task, dtype=np.float64).reshape(len(rows), -1)

    def _run_base(self, fed: dict[int, np.ndarray]) -> list[np.ndarray]:
        """Runs the base; returns the float model's outputs."""
        floats, quantized = self._mixed.models.floats, self._mixed.pair.quantized
        inputs = [fed[floats.values[index]] for index in floats.graph.subgraph.inputs]
        if self.float is None:
            self._invoke(self.base, inputs)
            return [self.base.read(self._sweep.at[value]) for value in self._sweep.outputs]
        self._invoke(self.float, inputs)
        self._invoke(self.base, [fed[index] for index in quantized.main.inputs])
        return [self.float.read(floats.at[value]) for value in self._sweep.outputs]

    def _outputs_of(self, variant: Variant, head: Interpreter, values: dict[int, np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs with one node changed, float32."""
        model = variant.head
        changed = {value: head.view(index) for value, index in zip(model.outputs, model.tensors, strict=True)}
        holders = {value: (head, index) for value, index in zip(model.outputs, model.tensors, strict=True)}
        holders.update({value: (head, index) for value, index in model.real.items()})
        if variant.tail >= 0:
            tail, interpreter = self._part.tails[variant.tail], self.tails[variant.tail]
            self._invoke(interpreter, [changed[value] if value in changed else values[value] for value in tail.inputs])
            holders.update({v: (interpreter, index) for v, index in zip(tail.outputs, tail.tensors, strict=True)})
        unchanged = {value: (self.base, self._sweep.at[value]) for value in self._sweep.outputs if value not in holders}
        outputs = [self._dequantized(*{**unchanged, **holders}[value]) for value in self._sweep.outputs]
        changed.clear()
        return outputs

    @staticmethod
    def _dequantized(interpreter: Interpreter, index: int) -> np.ndarray:
        values = interpreter.read(index)
        if values.dtype == np.float32:
            return values
        info = next(output for output in interpreter.outputs if output.index == index)
        return values.astype(np.float32) if info.quantization is None else info.quantization.dequantize(values)

    def _invoke(self, interpreter: Interpreter, inputs: list[np.ndarray]) -> None:
        if self._mixed.is_stateful:
            interpreter.reset_variables()
        interpreter.invoke(inputs)
