"""The folder of a saved run, and the analyses on it: each is computed once, kept there, and read by the next."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.cumulative_error import accumulated_error
from tflite_qdebug.analyses.diagnosis import diagnose
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.pairs import FEW, Pair, open_pair, pair_error
from tflite_qdebug.analyses.profiles import profile_pair
from tflite_qdebug.analyses.samples import worst_samples
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.analyses.steps import leave_float
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import (
    PLACES,
    Curve,
    Diagnosis,
    Findings,
    GraphNode,
    Profile,
    Samples,
    Score,
    Scores,
    Sensitivity,
    Steps,
    save_part,
)
from tflite_qdebug.record import Run

__all__ = ["SETUP", "Setup", "Study"]

#: The file that tells what a run was made of.
SETUP = "study.json"
_FORMAT = "tflite_qdebug study"
_EXAMPLE = {"debug": example.debug_dataset, "evaluation": example.evaluation_dataset}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run was made of, kept beside it.

    Attributes:
        float_model: File of the float model, from the folder; None where there is none.
        quantized_model: File of the quantized model, from the folder.
        debug_data: As the command line takes it; None where it was given as an object.
        evaluation_data: The same.
        metrics: Task metrics by name, the main one first.
        label_offset: Added to each label.
        limit: Take the first so many samples.
        signature: The signature that was measured; None: the main subgraph.
    """

    float_model: str | None
    quantized_model: str
    debug_data: str | None = None
    evaluation_data: str | None = None
    metrics: tuple[str, ...] = ()
    label_offset: int = 0
    limit: int | None = None
    signature: str | None = None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it into the folder of a run.

        Raises:
            OutputError: Where it cannot be written.
        """
        content = {"format": _FORMAT, "format_version": 1, **dataclasses.asdict(self)}
        write_atomically(Path(folder) / SETUP, json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Setup:
        """Reads it.

        Raises:
            ModelError: Where there is none, or it is broken.
        """
        path = Path(folder) / SETUP
        try:
            fields = json.loads(path.read_bytes())
            if fields.pop("format") != _FORMAT or fields.pop("format_version") != 1:
                raise ModelError(f"{path} is of another format, expected {_FORMAT!r} version 1")
            return cls(**{**fields, "metrics": tuple(fields["metrics"])})
        except OSError as error:
            raise ModelError(
                f"cannot read {path}: {error.strerror}; expected the folder of a run of this version, with its models. Make it "
                "anew with 'tflite-qdebug run ... --output DIR'"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is broken: {error}") from error


class Study:
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
        metrics: Sequence[str | Callable[..., Any]] = (),
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
            limit: Take the first so many debug samples.
            signature: As for `pair_error`.
            memory: As for `sensitivity`.
            backend: Which code runs the models.
            progress: As in `progress.track`.

        Raises:
            ModelError: Where a model or what is in the folder cannot be read, or the run there is of other models.
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
            self.findings = Findings(self._measured(), name=self.folder.resolve().name)
        self._backend = _without_faults(self._backend, self.findings.run)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], **given: Any) -> Study:
        """Opens the folder that a run was written into, with what it was made of.

        Args:
            folder: The folder, or its ``run.json``.
            **given: Arguments of the constructor, in place of those of the run.

        Raises:
            ModelError: Where there is no run, or its models are missing.
            OptionError: Where its data was an object, and none is given.
        """
        place = Path(folder)
        place = place.parent if place.name == "run.json" else place
        if not (place / "run.json").exists():
            raise ModelError(f"there is no run in {place}; expected a folder that 'tflite-qdebug run ... --output DIR' wrote")
        setup = Setup.load(place)
        arguments = {
            "float_model": None if setup.float_model is None else place / setup.float_model,
            "quantized_model": place / setup.quantized_model,
            "debug_dataset": _data(setup.debug_data, "debug"),
            "evaluation_dataset": _data(setup.evaluation_data, "evaluation"),
            "metrics": setup.metrics,
            "label_offset": setup.label_offset,
            "limit": setup.limit,
            "signature": setup.signature,
            **{name: value for name, value in given.items() if value is not None},
        }
        return cls(place, **arguments)

    def _check_models(self) -> None:
        ran = self.findings.run.provenance
        known = {"quantized model": ran.get("options", {}).get("quantized_model_sha256")}
        if self.pair.floating is not None:
            known["float model"] = ran.get("float_model_sha256")
        now = {"quantized model": self.pair.quantized.sha256, "float model": self.pair.floating and self.pair.floating.sha256}
        for name, expected in known.items():
            if expected is not None and now[name] != expected:
                raise ModelError(
                    f"{self.folder} holds a run of another {name} (SHA-256 {str(expected)[:12]}, got {str(now[name])[:12]}); "
                    "expected the same models, or another folder"
                )

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
        return open_dataset(self._source, specs, "debug dataset", self._limit, self._signature, "auto", several)

    def _chosen(self) -> Pair:
        return self.pair.select(self._signature)

    @property
    def _common(self) -> dict[str, Any]:
        return {"signature": self._signature, "backend": self._backend, "progress": self._progress}

    def _models(self) -> tuple[Any, Any]:
        if self.pair.floating is None:
            raise ModelError("the run has no float model, which this analysis needs; run again with --float MODEL")
        return self.pair.floating.data, self.pair.quantized.data

    def _is_of(self, provenance: Mapping[str, Any]) -> bool:
        """True where something was measured on these models and samples."""
        floating = self.pair.floating and self._chosen().floating
        hashes = (floating.sha256 if floating else None, self._chosen().quantized.sha256)
        theirs = (provenance.get("float_model_sha256"), provenance.get("quantized_model_sha256"))
        return theirs == hashes and provenance.get("debug_dataset") == self._dataset().description

    def _keep(self, part: str, value: Any, mode: str = "") -> None:
        save_part(self.folder, part, value, mode)

    def run_with_parts(self) -> Run:
        """Returns the run, measured again with its parts where it has none: diagnosis rests on them."""
        if not self.findings.run.parts and self.pair.floating is not None:
            self.findings.run = self._measured()
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
        names = tuple(metric if isinstance(metric, str) else metric.__name__ for metric in metrics)
        names = tuple(name.partition(":")[2] or name for name in names)
        known = self.findings.scores
        models = {"quantized": self.pair.quantized.data}
        if self.pair.floating is not None:
            models = {"float": self.pair.floating.data, **models}
        described = open_dataset(self._evaluation, self.pair.quantized.input_specs(), "evaluation dataset").description
        if known is not None and known.metrics == names and known.dataset == described:
            return known
        result = evaluate(
            models,
            self._evaluation,
            metrics,
            label_offset=self._label_offset,
            backend=self._backend,
            progress=self._progress,
        )
        scores = tuple(Score(score.name, score.size, score.metrics) for score in result.scores)
        self.findings.scores = Scores(scores, result.samples, result.dataset, names)
        self._keep("scores", self.findings.scores)
        return self.findings.scores

    def sensitivity(
        self,
        mode: str = "node",
        *,
        nodes: Sequence[str] | None = None,
        output_node: str | None = None,
        metric: str = "sqnr_db",
        task_metrics: Sequence[str | Callable[..., Any]] = (),
        large_is_bad: bool | None = None,
    ) -> Sensitivity:
        """Returns the sensitivity of nodes, as the function `sensitivity` measures it.

        That of single nodes, or at another node than the outputs, is not kept.
        """
        known = self.findings.sensitivity.get(mode)
        names = [name if isinstance(name, str) else name.__name__ for name in task_metrics]
        whole = nodes is None and output_node is None
        if known is not None and output_node is None and self._is_of(known.provenance):
            has_nodes = nodes is None or set(nodes) <= set(known.nodes)
            if has_nodes and metric in known.errors.names() and set(names) <= set(known.errors.task_metrics):
                chosen = dataclasses.replace(known, metric=metric, large_is_bad=large_is_bad)
                return chosen if nodes is None else selected(chosen, nodes)
        place = self.folder / PLACES["sensitivity"].format(f"{mode}.partial" if whole else f"{mode}.some.partial")
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
            **self._common,
        )
        if whole:
            self.findings.sensitivity[mode] = found
            self._keep("sensitivity", found, mode)
        return found

    def curves(
        self, quantized: Sequence[str | Sequence[str]] = (), left_float: Sequence[str | Sequence[str]] = ()
    ) -> tuple[Curve, ...]:
        """Returns curves of accumulated error, as `accumulated_error` measures them; each is kept as soon as it is there."""
        found = {(curve.name, curve.quantized, curve.left_float): curve for curve in self.findings.curves}

        def finished(curve: Curve) -> None:
            found[curve.name, curve.quantized, curve.left_float] = curve
            self.findings.curves = tuple(found.values())
            self._keep("curves", self.findings.curves)

        return accumulated_error(
            *self._models(),
            self._dataset(),
            quantized=quantized,
            left_float=left_float,
            known=self.findings.curves,
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
        task_metrics: Sequence[str | Callable[..., Any]] = (),
    ) -> Steps:
        """Returns the error as nodes are left float, as `leave_float` measures it; None: in the order of their sensitivity."""
        ranked = nodes is None
        if nodes is None:
            found = self.sensitivity("node", metric=metric, task_metrics=task_metrics)
            nodes = [found.nodes[position] for position in found.order()]
        known, most = self.findings.steps, min(most, len(nodes))
        names = {name if isinstance(name, str) else name.__name__ for name in task_metrics}
        if known is not None and self._is_of(known.provenance) and known.metric == metric:
            same = list(known.nodes) == list(nodes)[: len(known.nodes)] and names <= set(known.errors.task_metrics)
            enough = known.met is not None or len(known.nodes) >= most
            if same and enough and threshold in (None, known.threshold):
                return known
        found_steps = leave_float(
            *self._models(),
            self._dataset(),
            nodes,
            metric=metric,
            threshold=threshold,
            most=most,
            task_metrics=task_metrics,
            label_offset=self._label_offset,
            saved=self.folder / "sensitivity_analysis" / "steps.partial.json",
            **self._common,
        )
        if ranked or known is None:
            self.findings.steps = found_steps
            self._keep("steps", found_steps)
        return found_steps

    def profiles(self, nodes: Sequence[str] | None = None, axis: int | None = None) -> tuple[Profile, ...]:
        """Returns the profiles of nodes, as `profile_pair` makes them; None: of all, which are kept."""
        known = self.findings.profiles
        same = known and self.findings.run.provenance.get("profiles_of") == self._dataset().description
        if axis is None and same:
            return known if nodes is None else tuple(profile for profile in known if profile.node in nodes) or known
        floating = None if self.pair.floating is None else self.pair.floating.data
        found = profile_pair(floating, self.pair.quantized.data, self._dataset(), nodes=nodes, axis=axis, **self._common)
        if nodes is None and axis is None:
            self.findings.profiles = found
            self._keep("profiles", found)
            self.findings.run.provenance["profiles_of"] = self._dataset().description
            self.findings.run.save(self.folder / "run.json")
        return found

    def samples(self, count: int = 10, metric: str = "sqnr_db") -> Samples:
        """Returns the samples that differ most, as `worst_samples` finds them."""
        known = self.findings.samples
        if known is not None and self._is_of(known.provenance) and known.metric == metric and len(known.worst) >= count:
            return known
        self.findings.samples = worst_samples(
            *self._models(), self._dataset(), metric=metric, count=count, labels="auto", **self._common
        )
        self._keep("samples", self.findings.samples)
        return self.findings.samples

    def diagnosis(self) -> Diagnosis:
        """Returns what is wrong, from all that is known."""
        self.graph()
        self.findings.diagnosis = diagnose(self.findings)
        self._keep("diagnosis", self.findings.diagnosis)
        return self.findings.diagnosis

    def all(
        self,
        *,
        metric: str = "sqnr_db",
        threshold: float | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Findings:
        """Makes all analyses, in the order in which Horizon's ``runall`` has them, and the diagnosis.

        Args:
            metric: Ranks nodes and samples.
            threshold: Of the sensitivity analysis.
            say: Told what comes next.
        """
        for words, analysis in self._analyses(metric, threshold):
            say(words)
            analysis()
        return self.findings

    def _analyses(self, metric: str, threshold: float | None) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "the error of each layer", self.run_with_parts
        yield "the graph", self.graph
        if self._evaluation is not None:
            yield "float and quantized model on the evaluation data", self.scores
        yield "the samples that differ most", lambda: self.samples(metric=metric)
        for mode in ("weights", "activation", "node"):
            words = {"weights": "its weights alone", "activation": "its input activations alone", "node": "each node alone"}
            with_labels = self._metrics if mode == "node" and self._has_labels() else ()
            yield (
                f"sensitivity: {words[mode]} quantized",
                lambda mode=mode, task=with_labels: self._tolerated(mode, metric, task),  # type: ignore[misc]
            )
        yield "distributions and channels", self.profiles
        yield "accumulated error: all, weights, activations", self.curves
        yield (
            "sensitivity analysis: the most sensitive nodes left float",
            lambda: self.steps(metric=metric, threshold=threshold),
        )
        yield "diagnosis", self.diagnosis

    def _has_labels(self) -> bool:
        if not self._metrics:
            return False
        with contextlib.closing(iter(self._dataset())) as samples:  # type: ignore[type-var]
            return next(samples).label is not None

    def _tolerated(self, mode: str, metric: str, task: Sequence[str | Callable[..., Any]]) -> None:
        """Measures one mode; a model without quantized weights has no sensitivity to them, which is no failure."""
        try:
            self.sensitivity(mode, metric=metric, task_metrics=task)
        except ModelError as error:
            if mode != "weights":
                raise
            self.findings.run.notes.append(f"sensitivity to weights: {error}")

    def __repr__(self) -> str:
        return f"Study({self.folder}, {len(self.findings.run.layers)} layers)"


def _without_faults(backend: Backend, run: Run) -> Backend:
    """Returns the backend that the run ended up with where the kernels asked for computed nonsense."""
    if run.provenance.get("kernel_fault") and backend.kernels == "auto" and not backend.delegates:
        return backend._replace(kernels="builtin")
    return backend


def _data(text: str | None, which: str) -> Any:
    return _EXAMPLE[which] if text == "example" else text


def selected(found: Sensitivity, nodes: Sequence[str]) -> Sensitivity:
    """Returns the sensitivity of some of the nodes."""
    positions = [position for position, name in enumerate(found.nodes) if name in set(nodes)]
    rest = [*positions, len(found.nodes)] if found.mode == "float" else positions
    return dataclasses.replace(
        found,
        nodes=tuple(found.nodes[position] for position in positions),
        op_names=tuple(found.op_names[position] for position in positions),
        operators=tuple(found.operators[position] for position in positions),
        errors=found.errors.select(rest),
        thresholds=tuple(found.thresholds[position] for position in positions) if found.thresholds else (),
        bits=tuple(found.bits[position] for position in positions) if found.bits else (),
    )
