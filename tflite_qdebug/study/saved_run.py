"""The folder of a saved run, and the analyses on it: each is computed once, kept there, and read by the next."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.analyses.cumulative_error import accumulated_error
from tflite_qdebug.analyses.diagnosis import advise, diagnose
from tflite_qdebug.analyses.evaluation import evaluate, task_functions
from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.mixed_pair import check_metric
from tflite_qdebug.analyses.pairs import FEW, Pair, open_pair, pair_error
from tflite_qdebug.analyses.profiles import profile_pair
from tflite_qdebug.analyses.samples import worst_samples
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.analyses.steps import THRESHOLDS, first_met, leave_float
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.datasets.sources import IteratorSource
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, completed
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import (
    PLACES,
    Curve,
    Diagnosis,
    Findings,
    GraphNode,
    Profile,
    Samples,
    Scores,
    Sensitivity,
    Steps,
    save_part,
)
from tflite_qdebug.output_error import METRICS
from tflite_qdebug.record import Run
from tflite_qdebug.shown import Shown
from tflite_qdebug.study.run_all import run_all
from tflite_qdebug.study.setup import SETUP, Setup, lasting, lasting_delegates, named_data, with_defaults

__all__ = ["Study"]

_log = logging.getLogger(__name__)

TaskMetrics = Sequence[str | Callable[..., Any]]

# What the provenance of a run tells of parts that have none themselves.
_ABOUT = {"profiles_of", "scores_of"}


class Study(Shown):
    """A run and the analyses on it.

    What an analysis finds is written into the folder, under the names of `findings.PLACES`; asked again with the same models,
    samples and options, it is read from there. Sweeps that were interrupted go on where they were.

    Attributes:
        folder: Where everything is kept.
        findings: What is known so far.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        float_model: Any,
        quantized_model: Any,
        debug_dataset: Any,
        *,
        evaluation_dataset: Any = None,
        metrics: TaskMetrics = (),
        label_offset: int = 0,
        limit: int | None = None,
        signature: str | None = None,
        memory: int | None = None,
        backend: Backend | None = None,
        progress: bool | None = None,
    ) -> None:
        """Reads the models, and what is in the folder; without a run there, measures one.

        Args:
            folder: Made where it is missing.
            float_model: As for `pair_error`; most analyses need it.
            quantized_model: As for `pair_error`.
            debug_dataset: As for `pair_error`; samples may be ``(inputs, label)``.
            evaluation_dataset: With labels, for the task metrics of both models; None: they are not evaluated.
            metrics: Task metrics, the main one first: ``top_1``, ``top_5``, ``module:function`` or functions.
            label_offset: Added to each label.
            limit: Take the first so many samples of each dataset.
            signature: As for `pair_error`.
            memory: As for `sensitivity`.
            backend: Which code runs the models.
            progress: As in `progress.track`.

        Raises:
            ModelError: Where a model or what is in the folder cannot be read, or the run there is of other models.
            DatasetError: For an iterator, which is good for one pass, and it takes several.
            OutputError: Where the folder cannot be written.
            QDebugError: One of its kinds, as `pair_error` tells.
        """
        self.folder = Path(folder)
        self.pair = open_pair(float_model, quantized_model)
        self._source, self._evaluation = debug_dataset, evaluation_dataset
        self._metrics, self._label_offset = tuple(metrics), label_offset
        self._limit, self._signature, self._memory = limit, signature, memory
        self._backend, self._progress = backend or Backend(), progress
        if (self.folder / "run.json").exists():
            self.findings = Findings.load(self.folder)
            self._check_models()
        else:
            self._dataset()  # that there is none is told before anything is written
            self._write_models()
            self.findings = Findings(self._measured(), name=self.folder.resolve().name)
        self._backend = _without_faults(self._backend, self.findings.run)
        self._digest: str | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str], **given: Any) -> Study:
        """Opens the folder that a run was written into, with what it was made of.

        Args:
            folder: The folder, or its ``run.json``.
            **given: Arguments of the constructor, in place of those of the run.

        A run whose data was an object opens without it; what must be measured then is an OptionError.

        Raises:
            ModelError: Where there is no run, or its models are missing, or are others.
        """
        place = Path(folder)
        place = place.parent if place.name == "run.json" else place
        if not (place / "run.json").exists():
            raise ModelError(f"there is no run in {place}; expected a folder that 'tflite-qdebug run ... --output DIR' wrote")
        setup = Setup.load(place)
        if setup.inside is not None:
            raise ModelError(
                f"the run in {place} is of {setup.inside}, inside of a model that is float otherwise; the analyses go through "
                "whole models, and cannot tell what is quantized inside of one operator apart"
            )
        arguments = {
            "float_model": None if setup.float_model is None else place / setup.float_model,
            "quantized_model": place / setup.quantized_model,
            "debug_dataset": named_data(setup.debug_data, "debug"),
            "evaluation_dataset": named_data(setup.evaluation_data, "evaluation"),
            "metrics": setup.metrics,
            "label_offset": setup.label_offset,
            "limit": setup.limit,
            "signature": setup.signature,
            **{name: value for name, value in given.items() if value is not None},
        }
        arguments["backend"] = with_defaults(arguments.get("backend") or Backend(), setup)
        return cls(place, **arguments)

    def _check_models(self) -> None:
        ran, chosen = self.findings.run.provenance, self._chosen()
        known = {"quantized model": ran.get("options", {}).get("quantized_model_sha256")}
        if chosen.floating is not None:
            known["float model"] = ran.get("float_model_sha256")
        now = {"quantized model": chosen.quantized.sha256, "float model": chosen.floating and chosen.floating.sha256}
        for name, expected in known.items():
            if expected is not None and now[name] != expected:
                raise ModelError(
                    f"{self.folder} holds a run of another {name} (SHA-256 {str(expected)[:12]}, got {str(now[name])[:12]}); "
                    "expected the same models, or another folder"
                )

    def _write_models(self) -> None:
        """Writes the models and what the run is made of, so that `open` finds them."""
        if (self.folder / SETUP).exists():
            return
        write_atomically(self.folder / "quantized.tflite", self.pair.quantized.data)
        if self.pair.floating is not None:
            write_atomically(self.folder / "float.tflite", self.pair.floating.data)
        Setup(
            None if self.pair.floating is None else "float.tflite",
            "quantized.tflite",
            lasting(self._source),
            lasting(self._evaluation),
            tuple(metric for metric in self._metrics if isinstance(metric, str)),
            self._label_offset,
            self._limit,
            self._signature,
            self._backend.runtime,
            self._backend.kernels,
            delegates=lasting_delegates(self._backend.delegates),
        ).save(self.folder)

    def _measured(self) -> Run:
        run = pair_error(
            self.pair.floating and self.pair.floating.data,
            self.pair.quantized.data,
            self._dataset(),
            parts=FEW,
            signature=self._signature,
            backend=self._backend,
            progress=self._progress,
        )
        run.save(self.folder / "run.json")
        return run

    def _dataset(self) -> Dataset:
        if self._source is None:
            raise OptionError("the run's debug data was an object, or none; expected debug data (--debug-data)")
        specs = self._chosen().quantized.input_specs()
        several = self._signature is not None
        dataset = open_dataset(self._source, specs, "debug dataset", self._limit, self._signature, "auto", several)
        if isinstance(dataset.source, IteratorSource):
            raise DatasetError(
                "got an iterator as debug dataset, which is good for one pass, and each analysis takes one; pass a function "
                "that returns a new iterator each time it is called"
            )
        return dataset

    def _chosen(self) -> Pair:
        return self.pair.select(self._signature)

    @property
    def _common(self) -> dict[str, Any]:
        return {"signature": self._signature, "backend": self._backend, "progress": self._progress}

    def _models(self) -> tuple[Any, Any]:
        if self.pair.floating is None:
            raise ModelError("the run has no float model, which this analysis needs; run again with --float MODEL")
        return self.pair.floating.data, self.pair.quantized.data

    def _samples_digest(self) -> str:
        """Returns what tells the samples from others: words alone would take any two lists of one length for the same."""
        if self._digest is None:
            self._digest = _digest(self._dataset())
        return self._digest

    def _task_digests(self, metrics: Sequence[Any]) -> list[Any]:
        """Returns what tells task metrics from others: their names, their code, what is added to the labels."""
        functions = task_functions(metrics)
        codes = [getattr(getattr(function, "__code__", None), "co_code", b"") for function in functions.values()]
        return [[name, hashlib.sha256(code).hexdigest()] for name, code in zip(functions, codes, strict=True)] + [
            self._label_offset
        ]

    def _stamp(self, task_metrics: Sequence[Any] = ()) -> dict[str, Any]:
        """Returns what tells these models, samples and kernels from others, for the provenance of what is kept."""
        chosen = self._chosen()
        described = [
            chosen.quantized.sha256,
            None if chosen.floating is None else chosen.floating.sha256,
            self._samples_digest(),
            self._backend.identity,
        ]
        digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()
        return {"study": digest, **({"task_metrics": self._task_digests(task_metrics)} if task_metrics else {})}

    def _stamped(self, found: Any, task_metrics: Sequence[Any] = ()) -> Any:
        return dataclasses.replace(found, provenance={**found.provenance, **self._stamp(task_metrics)})

    def _is_of(self, provenance: Mapping[str, Any], task_metrics: Sequence[Any] = ()) -> bool:
        """True where something was measured on these models, samples and kernels, with these metrics, and maybe others."""
        theirs = provenance.get("task_metrics", [])
        return provenance.get("study") == self._stamp()["study"] and all(
            digest in theirs for digest in (self._task_digests(task_metrics) if task_metrics else ())
        )

    def _keep(self, part: str, value: Any, mode: str = "") -> None:
        _log.info("written: %s", save_part(self.folder, part, value, mode))

    def _keep_about(self, name: str, value: Any) -> None:
        """Keeps in the run what a part without provenance was measured on."""
        self.findings.run.provenance[name] = value
        self.findings.run.save(self.folder / "run.json")

    def run_with_parts(self) -> Run:
        """Returns the run, measured again with its parts where it has none: diagnosis rests on them."""
        known = self.findings.run
        if not known.parts and self.pair.floating is not None:
            run = self._measured()
            # How the model was made, and what was measured beside, is as true as before.
            run.provenance = {**{name: known.provenance[name] for name in _ABOUT & known.provenance.keys()}, **run.provenance}
            run.provenance["options"] = {**known.provenance.get("options", {}), **run.provenance.get("options", {})}
            run.save(self.folder / "run.json")
            self.findings.run = run
        return self.findings.run

    def graph(self) -> tuple[GraphNode, ...]:
        """Returns the operators and how they feed each other."""
        if not self.findings.graph:
            self.findings.graph = describe_graph(self._chosen(), None, self.findings.run)
            self._keep("graph", self.findings.graph)
        return self.findings.graph

    def scores(self) -> Scores | None:
        """Returns float against quantized on the evaluation dataset; None where there is none."""
        if self._evaluation is None:
            return self.findings.scores
        metrics = self._metrics or ("top_1",)
        names = tuple(task_functions(metrics))
        known, chosen = self.findings.scores, self._chosen()
        models = {"quantized": chosen.quantized.data}
        if chosen.floating is not None:
            models = {"float": chosen.floating.data, **models}
        data = open_dataset(self._evaluation, chosen.quantized.input_specs(), "evaluation dataset", self._limit)
        stamp = [self._task_digests(metrics), _digest(data), [self._backend.runtime, self._backend.kernels]]
        if known is not None and known.metrics == names and self.findings.run.provenance.get("scores_of") == stamp:
            return known
        result = evaluate(
            models,
            data,
            metrics,
            label_offset=self._label_offset,
            backend=self._backend,
            progress=self._progress,
        )
        for note in result.notes:
            self.note(note)
        self.findings.scores = result.as_scores(quantized="quantized")
        self._keep("scores", self.findings.scores)
        self._keep_about("scores_of", stamp)
        return self.findings.scores

    def sensitivity(
        self,
        mode: str = "node",
        *,
        nodes: Sequence[str] | None = None,
        output_node: str | None = None,
        metric: str = "sqnr_db",
        task_metrics: TaskMetrics = (),
        large_is_bad: bool | None = None,
    ) -> Sensitivity:
        """Returns the sensitivity of nodes, as the function `sensitivity` measures it.

        That of single nodes, or at another node than the outputs, is not kept.
        """
        known = self.findings.sensitivity.get(mode)
        names, whole = task_functions(task_metrics), nodes is None and output_node is None
        if known is not None and output_node is None and self._is_of(known.provenance, task_metrics):
            wanted = None if nodes is None else [completed(name, known.nodes, "node") for name in nodes]
            if metric in METRICS and metric not in known.errors.names():
                expected = ", ".join(known.errors.names())
                raise OptionError(f"got metric {metric!r}, which does not apply to these outputs; expected one of {expected}")
            if metric in (*known.errors.names(), *names) and (wanted is None or set(wanted) <= set(known.nodes)):
                chosen = dataclasses.replace(known, metric=metric, large_is_bad=large_is_bad)
                return chosen if wanted is None else chosen.select(wanted)
        place = self.folder / PLACES["sensitivity"].format(f"{mode}.partial" if whole else f"{mode}.some.partial")

        def finished(found: Sensitivity) -> None:
            self.findings.sensitivity[mode] = self._stamped(found, task_metrics)
            self._keep("sensitivity", self.findings.sensitivity[mode], mode)

        found = sensitivity(
            *self._models(),
            self._dataset(),
            mode=mode,
            nodes=nodes,
            output_node=output_node,
            metric=metric,
            task_metrics=task_metrics,
            large_is_bad=large_is_bad,
            label_offset=self._label_offset,
            memory=self._memory,
            saved=place,
            finished=finished if whole else None,
            **self._common,
        )
        return self.findings.sensitivity[mode] if whole else found

    def curves(
        self, quantized: Sequence[str | Sequence[str]] = (), left_float: Sequence[str | Sequence[str]] = ()
    ) -> tuple[Curve, ...]:
        """Returns curves of accumulated error, as `accumulated_error` measures them; each is kept as soon as it is there."""
        found = {(curve.name, curve.quantized, curve.left_float): curve for curve in self.findings.curves}

        def finished(curve: Curve) -> None:
            curve.run.provenance.update(self._stamp())
            found[curve.name, curve.quantized, curve.left_float] = curve
            self.findings.curves = tuple(found.values())
            self._keep("curves", self.findings.curves)

        return accumulated_error(
            *self._models(),
            self._dataset(),
            quantized=quantized,
            left_float=left_float,
            known=[curve for curve in self.findings.curves if self._is_of(curve.run.provenance)],
            finished=finished,
            **self._common,
        )

    def steps(
        self,
        nodes: Sequence[str] | None = None,
        *,
        metric: str = "sqnr_db",
        threshold: float | None = None,
        most: int = 20,
        task_metrics: TaskMetrics = (),
        large_is_bad: bool = False,
    ) -> Steps:
        """Returns the error as nodes are left float, as `leave_float` measures it; None: in the order of their sensitivity.

        With given nodes it is kept only where the folder holds none yet.
        """
        ranked = nodes is None
        if nodes is None:
            found = self.sensitivity("node", metric=metric, task_metrics=task_metrics, large_is_bad=large_is_bad or None)
            nodes = [found.nodes[position] for position in found.order()]
        known = self.findings.steps
        if known is not None and known.metric == metric and self._is_of(known.provenance, task_metrics):
            wanted = THRESHOLDS.get(metric, float("nan")) if threshold is None else threshold
            same = list(known.nodes) == list(nodes)[: len(known.nodes)]
            same = same and known.met == first_met(known.errors, metric, wanted, large_is_bad)
            enough = known.met is not None or len(known.nodes) >= min(most, len(nodes))
            # Without a threshold it is NaN, which equals nothing.
            if same and enough and len(known.nodes) <= most and np.array_equal(known.threshold, wanted, equal_nan=True):
                return known

        def finished(found: Steps) -> None:
            if ranked or known is None:
                self.findings.steps = self._stamped(found, task_metrics)
                self._keep("steps", self.findings.steps)

        return leave_float(
            *self._models(),
            self._dataset(),
            nodes,
            metric=metric,
            threshold=threshold,
            most=most,
            task_metrics=task_metrics,
            large_is_bad=large_is_bad,
            label_offset=self._label_offset,
            saved=self.folder / "sensitivity_analysis" / "steps.partial.json",
            finished=finished,
            **self._common,
        )

    def profiles(self, nodes: Sequence[str] | None = None, axis: int | None = None) -> tuple[Profile, ...]:
        """Returns the profiles of nodes, as `profile_pair` makes them; None: of all, which are kept."""
        known = self.findings.profiles
        names = list(dict.fromkeys(profile.node for profile in known))
        if nodes is not None:
            layers = [layer.node for layer in self.findings.run.layers]
            nodes = [completed(name, dict.fromkeys([*names, *layers]), "node") for name in nodes]
        same = known and self.findings.run.provenance.get("profiles_of") == self._stamp()["study"]
        if axis is None and same and (nodes is None or set(nodes) <= set(names)):
            return known if nodes is None else tuple(profile for profile in known if profile.node in nodes)
        floating = None if self.pair.floating is None else self.pair.floating.data
        found = profile_pair(floating, self.pair.quantized.data, self._dataset(), nodes=nodes, axis=axis, **self._common)
        if nodes is None and axis is None:
            self.findings.profiles = found
            self._keep("profiles", found)
            self._keep_about("profiles_of", self._stamp()["study"])
        return found

    def samples(self, count: int = 10, metric: str = "sqnr_db") -> Samples:
        """Returns the samples that differ most, as `worst_samples` finds them."""
        known = self.findings.samples
        same = known is not None and known.metric == metric and count > 0 and self._is_of(known.provenance)
        if known is not None and same and len(known.worst) >= min(count, known.errors.samples):
            return dataclasses.replace(known, worst=known.worst[:count], flips=known.flips[:count])
        found = worst_samples(*self._models(), self._dataset(), metric=metric, count=count, labels="auto", **self._common)
        self.findings.samples = self._stamped(found)
        self._keep("samples", self.findings.samples)
        return self.findings.samples

    def diagnosis(self) -> Diagnosis:
        """Returns what is wrong, from all that is known; what to try is among the findings then."""
        self.graph()
        self.findings.diagnosis = diagnose(self.findings)
        self._keep("diagnosis", self.findings.diagnosis)
        self.findings.advice = advise(self.findings, str(self.folder))
        self._keep("advice", self.findings.advice)
        return self.findings.diagnosis

    def all(
        self,
        *,
        metric: str = "sqnr_db",
        threshold: float | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Findings:
        """Makes all analyses, in the order in which Horizon's ``runall`` has them, and the diagnosis.

        Without a float model those that need it are left out, which a note of the run tells.

        Args:
            metric: Ranks nodes and samples.
            threshold: Of the sensitivity analysis.
            say: Told what comes next.
        """
        run_all(self, metric, threshold, say)
        return self.findings

    @property
    def has_evaluation(self) -> bool:
        """True where there is an evaluation dataset."""
        return self._evaluation is not None

    def check_metric(self, metric: str) -> None:
        """Refuses, before anything is measured, a metric that neither we nor the task metrics have.

        Raises:
            OptionError: For an unknown metric.
        """
        check_metric(metric, task_functions(self.task_metrics))

    @property
    def task_metrics(self) -> TaskMetrics:
        """Those of the run; with evaluation data, which is there for them, accuracy where none is named."""
        return self._metrics or (("top_1",) if self._evaluation is not None else ())

    def has_labels(self) -> bool:
        """Returns whether the first debug sample has a label, where a task metric would take it."""
        if not self.task_metrics:
            return False
        with contextlib.closing(iter(self._dataset())) as samples:  # type: ignore[type-var]
            return next(samples).label is not None

    def note(self, words: str) -> None:
        """Notes something about the run, once."""
        if words not in self.findings.run.notes:
            self.findings.run.notes.append(words)
            self.findings.run.save(self.folder / "run.json")

    def __repr__(self) -> str:
        found = self.findings.diagnosis
        verdict = "" if found is None else f"; {found.verdict}"
        return f"Study({self.folder}, {len(self.findings.run.layers)} layers{verdict})"


def _without_faults(backend: Backend, run: Run) -> Backend:
    """Returns the backend that the run ended up with where the kernels asked for computed nonsense."""
    if run.provenance.get("kernel_fault") and backend.kernels == "auto" and not backend.delegates:
        return backend._replace(kernels="builtin")
    return backend


def _digest(dataset: Dataset) -> str:
    """Returns what tells samples from others: what the source is called, how many are taken, and the first of them."""
    described = [dataset.source.description, dataset.limit, dataset.signature]
    hashed = hashlib.sha256(json.dumps(described).encode())
    with contextlib.closing(iter(dataset)) as samples:  # type: ignore[type-var]
        first = next(samples)
    hashed.update(repr(first.label).encode())
    for array in first.inputs:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
