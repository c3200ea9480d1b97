"""How good whole models are: accuracy, or any metric, of several models over one dataset, in one pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.datasets.calling import import_function
from tflite_qdebug.errors import DatasetError, MetricError, OptionError, did_you_mean
from tflite_qdebug.findings import Score, Scores
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model, read_model_bytes
from tflite_qdebug.progress import track
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import kilobytes, number

__all__ = [
    "HEAD",
    "METRICS",
    "Evaluation",
    "ModelScore",
    "SampleScores",
    "Scoring",
    "evaluate",
    "load_function",
    "standard_error",
    "task_functions",
    "task_value",
]

#: So many of the first output's first values are brought back of each sample.
HEAD = 4


def _rank(outputs: Sequence[np.ndarray], label: Any) -> int:
    """Returns how many classes stand before the label's, where argmax would put the first of equals first."""
    scores = np.asarray(outputs[0]).reshape(-1)
    if scores.size < 2:
        raise DatasetError(
            "accuracy takes a value for each class, and the model's first output has one value; give a metric of your own, "
            "f(outputs, label) -> number, such as whether that value is above 0.5 where the label says so"
        )
    number = np.asarray(label)
    if number.size != 1 or number.dtype.kind not in "iu":
        one_hot = "; of a one-hot label take np.argmax" if number.size == scores.size else ""
        raise DatasetError(f"got label {label!r}, expected the whole number of a class, 0 to {scores.size - 1}{one_hot}")
    position = int(number.reshape(()))
    if not 0 <= position < scores.size:
        raise DatasetError(
            f"got label {position}, expected 0 to {scores.size - 1}, as the model's first output has {scores.size} values; "
            "--label-offset (label_offset) is added to labels that count otherwise"
        )
    score = scores[position]
    return int(np.sum(scores > score) + np.sum(scores[:position] == score))


def top_1(outputs: Sequence[np.ndarray], label: Any) -> float:
    """1 where the first output is greatest at the label, else 0."""
    return float(_rank(outputs, label) == 0)


def top_5(outputs: Sequence[np.ndarray], label: Any) -> float:
    """1 where the label is among the five greatest values of the first output, else 0."""
    return float(_rank(outputs, label) < 5)


#: Metrics known by name; each is ``f(outputs, label) -> number`` of one sample, and averaged.
METRICS: dict[str, Callable[..., Any]] = {"top_1": top_1, "top_5": top_5}


# Chance is told from a bad model with so many samples, of so many classes.
_FEWEST_SAMPLES, _FEWEST_CLASSES = 50, 2


@dataclasses.dataclass(frozen=True)
class ModelScore:
    """One model's row.

    Attributes:
        name: As given.
        size: Bytes of the file.
        metrics: ``{name: mean over samples}``.
        standard_error: ``{name: of that mean}``.
        agreement: Share of samples whose first output is greatest at the same place as the first model's.
        kernels: The kernels that ran it.
    """

    name: str
    size: int
    metrics: dict[str, float]
    standard_error: dict[str, float]
    agreement: float
    kernels: str


@dataclasses.dataclass(frozen=True)
class Evaluation(Shown):
    """The scores of several models on the same samples.

    Attributes:
        samples: How many.
        scores: One for each model; the first is what the others are held against.
        dataset: Words on the dataset.
        runtime: Package and version that ran them.
        notes: What the reader must know.
    """

    samples: int
    scores: tuple[ModelScore, ...]
    dataset: str
    runtime: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return dataclasses.asdict(self)

    def as_scores(self, quantized: str, floating: str = "float") -> Scores:
        """Returns what is kept beside the run of a quantized model: its scores, and the float model's where that is among them.

        Args:
            quantized: What the quantized model is called here.
            floating: What the float model is called here.
        """
        roles = {floating: "float", quantized: "quantized"}
        chosen = sorted((score for score in self.scores if score.name in roles), key=lambda score: roles[score.name])
        scores = tuple(Score(roles[score.name], score.size, score.metrics) for score in chosen)
        return Scores(scores, self.samples, self.dataset, tuple(self.scores[0].metrics))

    def __repr__(self) -> str:
        def described(score: ModelScore) -> str:
            return f"{score.name}: {', '.join(f'{name} {number(value)}' for name, value in score.metrics.items())}"

        return f"Evaluation({self.samples} samples; {'; '.join(map(described, self.scores))})"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows as text, with the differences from the first model."""
        first = self.scores[0]
        header = ["model", "size kB", "size vs first"]
        for name in first.metrics:
            header += [name, "± s.e.", "difference"]
        header += ["same answer", "kernels"]
        rows = []
        for score in self.scores:
            row = [score.name, kilobytes(score.size), f"{score.size / first.size:.3f}"]
            for name, value in score.metrics.items():
                row += [number(value), number(score.standard_error[name], 2), f"{value - first.metrics[name]:+.4f}"]
            rows.append([*row, number(score.agreement), score.kernels])
        return header, rows


def load_function(text: str, what: str) -> Callable[..., Any]:
    """Imports ``module:function``.

    Raises:
        OptionError: Where there is no such module or function.
    """
    _, colon, name = text.partition(":")
    if not colon or not name:
        raise OptionError(f"got {what} {text!r}, expected module:function, or one of {', '.join(METRICS)}")
    return import_function(text, f"a function for {what}")


def _metric(metric: str | Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric in METRICS:
        return metric, METRICS[metric]
    if ":" not in metric:
        raise OptionError(
            f"got metric {metric!r}, expected {', '.join(METRICS)} or module:function.{did_you_mean(metric, METRICS)}"
        )
    return metric.partition(":")[2], load_function(metric, "metric")


def task_functions(metrics: Sequence[str | Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Returns ``{name: f(outputs, label) -> number}`` of metrics given by name, as ``module:function``, or as functions.

    Raises:
        OptionError: For an unknown metric, or two that are called alike.
    """
    functions = dict(_metric(metric) for metric in metrics)
    if len(functions) < len(metrics):
        raise OptionError(
            f"got {len(metrics)} metrics with {len(functions)} names ({', '.join(functions)}), expected a name for each: two "
            "functions are called alike"
        )
    return functions


def evaluate(
    models: Mapping[str, Any],
    evaluation_dataset: Any,
    metrics: Sequence[str | Callable[..., Any]] = ("top_1",),
    *,
    label_offset: int = 0,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Runs every model on every sample, once.

    Args:
        models: ``{name: model}``, each as bytes, path, or something with ``data``; the first is the yardstick. Outputs that
            carry a scale are dequantized; float samples are quantized for integer inputs.
        evaluation_dataset: Anything that `open_dataset` takes, with labels.
        metrics: ``top_1``, ``top_5``, ``module:function``, or functions ``f(outputs, label) -> number``; averaged.
        label_offset: Added to each label, for models that count a background class first.
        limit: Take the first so many samples.
        backend: Which code runs the models; delegates run the quantized ones.
        progress: As in `progress.track`.

    Raises:
        DatasetError: For a wrong sample, a missing label, or an empty dataset.
        MetricError: Where a metric fails or gives no number.
        OptionError: For an unknown metric.
    """
    if not models:
        raise OptionError("got no model to evaluate, expected at least one")
    backend = backend or Backend()
    functions = task_functions(metrics)
    contents = {name: read_model_bytes(getattr(model, "data", model)) for name, model in models.items()}
    first = Model(next(iter(contents.values())))
    dataset = open_dataset(evaluation_dataset, first.input_specs(), "evaluation dataset", limit)
    count = 0
    total = squared = np.zeros((len(contents), len(functions) + 1))
    scoring = Scoring(contents, dataset, functions, label_offset, backend, progress)
    for scores in scoring:
        count += 1
        values = np.column_stack([scores.metrics, scores.answers == scores.answers[0]])
        total, squared = total + values, squared + values**2
    if not count:
        raise DatasetError("the evaluation dataset yielded no samples")
    mean, deviation = total / count, standard_error(total, squared, count)
    rows = [
        ModelScore(
            name,
            len(content),
            dict(zip(functions, mean[row].tolist(), strict=False)),
            dict(zip(functions, deviation[row].tolist(), strict=False)),
            float(mean[row, -1]),
            scoring.kernels[row],
        )
        for row, (name, content) in enumerate(contents.items())
    ]
    notes = (*scoring.notes, *_guessing(rows[0], first, count))
    return Evaluation(count, tuple(rows), dataset.description, scoring.runtime, notes)


def _guessing(score: ModelScore, model: Model, count: int) -> tuple[str, ...]:
    """Returns a note where a model does no better than chance: it is not quantization then, whatever comes behind."""
    main = model.main
    classes = math.prod(max(1, size) for size in main.tensors[main.outputs[0]].shape) if main.outputs else 0
    if "top_1" not in score.metrics or classes < _FEWEST_CLASSES or count < _FEWEST_SAMPLES:
        return ()
    chance = 1.0 / classes
    if score.metrics["top_1"] > chance + 2.0 * np.sqrt(chance * (1.0 - chance) / count):
        return ()
    words = (
        f"{score.name} is right no more often than guessing among {classes} classes: that is not quantization. Look at what "
        "the samples are made of (scale, offset, order of channels) and at their labels (--label-offset)"
    )
    return (words,)


def standard_error(total: np.ndarray, squared: np.ndarray, count: int) -> np.ndarray:
    """Returns the standard error of means from sums and sums of squares over ``count`` samples."""
    mean = total / count
    return np.asarray(np.sqrt(np.maximum(squared / count - mean**2, 0) / max(count - 1, 1)))


class SampleScores(NamedTuple):
    """What several models gave on one sample.

    Attributes:
        sample: Its index.
        metrics: ``(models, metrics)``.
        answers: Where each model's first output is greatest, ``(models,)``.
        values: That greatest value, ``(models,)``.
        heads: The first `HEAD` values of each model's first output, ``(models, HEAD)``; NaN where it has fewer.
        signal: Sum of squares of each of the first model's outputs, ``(outputs,)``; empty where errors were not asked for.
        errors: Sum of squared differences from them, ``(models, outputs)``; NaN where an output is of another shape.
    """

    sample: int
    metrics: np.ndarray
    answers: np.ndarray
    values: np.ndarray
    heads: np.ndarray
    signal: np.ndarray
    errors: np.ndarray


class Scoring:
    """Runs several models on every sample of a dataset, once; iterate it for what each gave, in the order of the samples.

    Attributes:
        runtime: Package and version that ran them; known after the last sample, as the rest is.
        kernels: The kernels that ran each model.
        notes: What the reader must know.
    """

    def __init__(
        self,
        contents: Mapping[str, bytes],
        dataset: Iterable[Any],
        functions: Mapping[str, Callable[..., Any]],
        label_offset: int = 0,
        backend: Backend | None = None,
        progress: bool | None = None,
        errors: bool = False,
    ) -> None:
        """Opens nothing yet.

        Args:
            contents: ``{name: model}``.
            dataset: Samples in the models' input order; an opened one, or anything with such samples.
            functions: As `task_functions` returns them; none where only answers are wanted.
            label_offset: Added to each label.
            backend: Which code runs the models; delegates run the quantized ones.
            progress: As in `progress.track`.
            errors: Also measure how far outputs are from the first model's.
        """
        self._errors = errors
        self._contents, self._dataset, self._functions = dict(contents), dataset, dict(functions)
        self._label_offset, self._backend, self._progress = label_offset, backend or Backend(), progress
        # A delegate is for quantized models: a float one is the yardstick of what it does.
        plain = self._backend.without_delegates
        self._backends = [self._backend if _has_quantized(content) else plain for content in self._contents.values()]
        self.runtime = ""
        self.kernels: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SampleScores]:
        own = any(function not in METRICS.values() for function in self._functions.values())
        workers = self._backend.pool(self._opened, "evaluating the models", finish=_described, own_functions=own)
        samples = track(self._dataset, "evaluating", getattr(self._dataset, "length", None), self._progress)
        if not workers.isolated:
            samples = _tried(samples, self._opened, self._backend)
        yield from map_samples(self._measure, workers, samples)
        described = workers.finished[0] if workers.finished else []
        self.runtime = described[0][0] if described else ""
        self.kernels = tuple(code for _, code, _ in described)
        notes = [f"{name}: {note}" for name, (_, _, notes) in zip(self._contents, described, strict=False) for note in notes]
        self.notes = tuple(dict.fromkeys(notes + workers.notes))

    def _opened(self) -> list[Interpreter]:
        return [own.open(content) for own, content in zip(self._backends, self._contents.values(), strict=True)]

    def _measure(self, interpreters: list[Interpreter], sample: Any) -> SampleScores:
        label = sample.label
        if label is None and any(function in METRICS.values() for function in self._functions.values()):
            raise DatasetError(f"sample {sample.index} of the evaluation dataset has no label, which accuracy needs")
        if self._label_offset and label is not None:
            label = label + self._label_offset
        metrics = np.empty((len(interpreters), len(self._functions)))
        answers, values = [], []
        heads = np.full((len(interpreters), HEAD), np.nan)
        reference: list[np.ndarray] = []
        errors = np.zeros((len(interpreters), 0))
        for row, interpreter in enumerate(interpreters):
            interpreter.invoke(sample.inputs)
            outputs = interpreter.read_outputs(dequantized=True)
            for column, (name, function) in enumerate(self._functions.items()):
                metrics[row, column] = task_value(name, function, outputs, label, sample.index)
            first = np.real(outputs[0]).reshape(-1)
            answers.append(int(np.argmax(first)))
            values.append(float(first[answers[-1]]))
            heads[row, : len(first[:HEAD])] = first[:HEAD]
            if self._errors:
                if not row:
                    reference = [_wide(output) for output in outputs]
                    errors = np.full((len(interpreters), len(reference)), np.nan)
                for place, (output, exact) in enumerate(zip(map(_wide, outputs), reference, strict=False)):
                    if output.shape == exact.shape:
                        errors[row, place] = np.sum((output - exact) ** 2)
        signal = np.array([np.sum(exact**2) for exact in reference])
        return SampleScores(sample.index, metrics, np.array(answers), np.array(values), heads, signal, errors)


def _wide(output: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(output) if output.dtype.kind == "c" else output).astype(np.float64)


def _described(interpreters: list[Interpreter]) -> list[tuple[str, str, list[str]]]:
    return [(f"{it.runtime} {it.version}", it.code, it.notes) for it in interpreters]


def _has_quantized(content: bytes) -> bool:
    return any(tensor.is_quantized for subgraph in Model(content).subgraphs for tensor in subgraph.tensors)


def _tried(samples: Iterator[Any], opened: Callable[[], list[Interpreter]], backend: Backend) -> Iterator[Any]:
    """Yields the samples, after the first has run in a process of its own: the rest will run in this one."""

    def run(inputs: Sequence[np.ndarray]) -> None:
        for interpreter in opened():
            interpreter.invoke(inputs)

    for position, sample in enumerate(samples):
        if not position:
            backend.apart(run, sample.inputs, what=f"running the models on sample {sample.index}")
        yield sample


def task_value(name: str, function: Callable[..., Any], outputs: list[np.ndarray], label: Any, index: int) -> float:
    """Returns a metric of one sample.

    Raises:
        MetricError: Where it fails or gives no number.
        DatasetError: Where the label does not fit the outputs.
    """
    try:
        value = float(function(outputs, label))
    except (DatasetError, MetricError) as error:
        raise type(error)(f"sample {index}: {error}") from error
    except Exception as error:
        raise MetricError(f"metric {name!r} failed on sample {index}: {type(error).__name__}: {error}") from error
    if math.isnan(value):
        raise MetricError(f"metric {name!r} gave NaN on sample {index}, expected a number")
    return value
