"""Post-training quantization in all its forms: each is made, looked into, and held against the float model."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug import __version__
from tflite_qdebug.analyses.evaluation import SampleScores, Scoring, standard_error, task_functions
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.board.timing import summary, timed_runs
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CALIBRATED_KINDS, CalibratedModel, FloatModel, load_float_model
from tflite_qdebug.datasets import InputSpec, Sample
from tflite_qdebug.drawn import draw_samples
from tflite_qdebug.edit import BRIDGES
from tflite_qdebug.errors import ConversionError, DatasetError, InterpreterError, OptionError, did_you_mean
from tflite_qdebug.latency_record import ModelTime
from tflite_qdebug.model import Model
from tflite_qdebug.paired import PairedDifference, sign_test
from tflite_qdebug.progress import track
from tflite_qdebug.ptq_record import Answer, OperatorCounts, Port, Prediction, PtqComparison, PtqModel

__all__ = ["DEFAULT_FORMS", "FORMS", "Form", "quantize_post_training"]


class Form(NamedTuple):
    """A way to quantize.

    Attributes:
        kind: As for `CalibratedModel.quantize`.
        io_type: numpy name of the type of inputs and outputs; None: float32.
        words: What is quantized.
    """

    kind: str
    io_type: str | None
    words: str


FORMS = {
    "float": Form("float", None, "nothing is quantized"),
    "dynamic_range": Form("dynamic_range", None, "weights are int8; activations stay float between the operators"),
    "float16": Form("float16", None, "weights are stored as float16; all is computed in float"),
    "int8": Form("int8", None, "weights and activations are int8, float where there is no integer kernel; float in and out"),
    "full_integer_uint8": Form("full_integer", "uint8", "all is integer, or it is an error; uint8 in and out"),
    "full_integer_int8": Form("full_integer", "int8", "all is integer, or it is an error; int8 in and out"),
    "int16x8": Form("int16x8", None, "weights are int8, activations int16; float in and out"),
}  # fmt: skip
#: Those of the tutorial, and what is made of them elsewhere: without 16-bit activations, which few kernels are fast on.
DEFAULT_FORMS = tuple(form for form in FORMS if form != "int16x8")
_FLATTERED = (
    "the samples that calibrated the ranges are evaluated too: no value of them is clipped, which flatters the quantized "
    "models; evaluate others"
)
# Samples that the models are timed on, in turn.
_TIMED_SAMPLES = 4


def quantize_post_training(
    model: Any,
    representative_dataset: Any,
    evaluation_dataset: Any,
    *,
    forms: Sequence[str] = DEFAULT_FORMS,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    label_offset: int = 0,
    lower_is_better: bool = False,
    class_names: Sequence[str] = (),
    predictions: int = 12,
    seconds: float = 1.0,
    calibration: str = "tensorflow",
    per_channel: bool = True,
    per_channel_dense: bool = True,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> PtqComparison:
    """Quantizes a model in every form, and shows what each costs and what it answers.

    The model is converted once and calibrated once. All forms see the same samples, so that their differences from the float
    model are paired. A form that cannot be made or run is no error: the reason stands in its place.

    Args:
        model: Anything that `load_float_model` takes.
        representative_dataset: Anything that `open_dataset` takes; calibrates. None: the one that a converter was given.
        evaluation_dataset: The same, with labels, best of samples that calibrated nothing. Without labels only the answers are
            compared.
        forms: Names in `FORMS`; the float model comes first in any case.
        metrics: As for `evaluate`. None: ``top_1`` where the first sample has a label.
        label_offset: Added to each label, for models that count a background class first.
        lower_is_better: Of the main metric.
        class_names: What the classes are called, in the order of the first output.
        predictions: So many of the first samples, and of those on which a form answers otherwise than float, are kept.
        seconds: How long each model is timed; 0: not at all.
        calibration: As ``method`` of `FloatModel.calibrate`.
        per_channel: As for `CalibratedModel.quantize`.
        per_channel_dense: The same.
        limit: Take the first so many samples of each dataset.
        backend: Which code runs the models.
        progress: As in `progress.track`.

    Raises:
        OptionError: For an unknown form or metric, a count below 0, or class names that are not as many as the classes.
        ModelError: As `load_float_model`.
        ConversionError: Where the model can be neither converted nor calibrated.
        InterpreterError: Where the float model cannot be run.
        DatasetError: For a wrong sample, a missing label where a metric needs one, or no sample.
        MetricError: Where a metric fails or gives no number.
    """
    chosen = _chosen(forms)
    if predictions < 0 or not seconds >= 0:
        raise OptionError(f"got predictions={predictions!r} and seconds={seconds!r}, expected 0 or more of both")
    backend = backend or Backend()
    float_model = load_float_model(model)
    if representative_dataset is None and float_model.settings is not None:
        representative_dataset = float_model.settings.representative_dataset
    dataset = float_model.dataset(evaluation_dataset, "evaluation dataset", limit)
    samples = RealValued(dataset, [])
    ahead = samples.ahead(_TIMED_SAMPLES)
    functions = task_functions(metrics if metrics is not None else () if ahead[0].label is None else ("top_1",))

    calibrated = None
    if any(FORMS[form].kind in CALIBRATED_KINDS for form in chosen):
        if representative_dataset is None:
            raise OptionError("got no representative_dataset, expected samples that calibrate the ranges of activations")
        calibrated = float_model.calibrate(representative_dataset, calibration, limit=limit, progress=progress)
    options = {"per_channel": per_channel, "per_channel_dense": per_channel_dense}
    made = [_made(form, float_model, calibrated, options) for form in track(chosen, "quantizing", len(chosen), progress)]
    models = [_tried(model, ahead[0], backend) for model in made]
    classes = _classes(models[0], ahead[0].label, label_offset)
    _check_class_names(class_names, classes)

    running = {model.form: model.data for model in models if not model.failure}
    gathered = _Gathered(list(running), predictions, label_offset, functions, bool(classes))
    scoring = Scoring(running, _Watched(samples, gathered), functions, label_offset, backend, progress, errors=True)
    for scores in scoring:
        gathered.add(scores)
    kernels = dict(zip(running, scoring.kernels, strict=True))
    times = _times(running, ahead, seconds, backend, progress) if seconds > 0 else {}
    first, differing = gathered.drawn(dataset.inputs)
    if not classes:
        first = _with_outputs(first, gathered.first_inputs, running, backend)
    flattered = calibrated is not None and _is_same(representative_dataset, evaluation_dataset)
    return PtqComparison(
        models=tuple(_scored(model, gathered, kernels, times) for model in models),
        samples=gathered.count,
        metrics=tuple(functions),
        lower_is_better=lower_is_better,
        classifies=bool(classes),
        class_names=tuple(class_names),
        first=first,
        differing=differing,
        differing_count=gathered.differing_count,
        provenance={
            **_provenance(float_model, calibrated),
            "evaluation_dataset": dataset.description,
            "label_offset": label_offset,
            "calibration": calibration,
            **options,
            "runtime": scoring.runtime,
            "threads": backend.threads,
        },
        notes=(*scoring.notes, *_notes(float_model, flattered, functions)),
    )


def _chosen(forms: Sequence[str]) -> list[str]:
    """Returns the forms that were asked for, each once, the float model first.

    Raises:
        OptionError: For one that there is not.
    """
    if isinstance(forms, str):
        raise OptionError(f"got forms={forms!r}, expected a list of names, such as [{forms!r}]")
    for form in forms:
        if form not in FORMS:
            raise OptionError(f"got form {form!r}, expected one of {', '.join(FORMS)}.{did_you_mean(str(form), FORMS)}")
    return list(dict.fromkeys(["float", *forms]))


def _is_same(first: Any, second: Any) -> bool:
    return first is second or (isinstance(first, str) and first == second)


def _check_class_names(names: Sequence[str], classes: int) -> None:
    """Raises where there are names, and not as many as classes.

    Raises:
        OptionError: With both counts.
    """
    if names and len(names) != classes:
        said = f"the first output has {classes} classes" if classes else "the first output is not one value for each class"
        raise OptionError(f"got {len(names)} class names, but {said}; expected a name for each")


def _notes(float_model: FloatModel, flattered: bool, functions: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the reader must know."""
    keys = [signature.key for signature in float_model.model.signatures]
    if len(keys) > 1:
        yield f"the model has the signatures {', '.join(keys)}; the main subgraph alone was run"
    if flattered:
        yield _FLATTERED
    if not functions:
        yield "the first sample has no label, so that only the outputs are compared with the float model's"


def _provenance(float_model: FloatModel, calibrated: CalibratedModel | None) -> dict[str, Any]:
    """Returns what was quantized, the machine, and the versions of what took part."""
    names = [name for name in ("tensorflow", "keras") if name in sys.modules]
    return {
        "origin": float_model.origin,
        "float_model_sha256": float_model.model.sha256,
        "representative_dataset": None if calibrated is None else calibrated.dataset,
        "machine": f"{platform.machine()}, {platform.system()}",
        "tflite_qdebug": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **{name: str(sys.modules[name].__version__) for name in names},
    }


# Making the models, and what can be told of them without running them.


def _made(name: str, float_model: FloatModel, calibrated: CalibratedModel | None, options: Mapping[str, bool]) -> PtqModel:
    form = FORMS[name]
    try:
        if calibrated is not None and form.kind in CALIBRATED_KINDS:
            types = {} if form.io_type is None else {"input_type": form.io_type, "output_type": form.io_type}
            quantized = calibrated.quantize(form.kind, **types, **options)  # type: ignore[arg-type]
        else:
            quantized = float_model.quantize(form.kind, **options)
    except ConversionError as error:
        return PtqModel(name, form.words, failure=f"it cannot be made: {error}")
    model = Model(quantized.data)
    inputs, outputs = _ports(model)
    return PtqModel(
        name,
        form.words,
        quantized.data,
        len(quantized.data),
        hashlib.sha256(quantized.data).hexdigest(),
        inputs,
        outputs,
        _counted(model),
        quantized.float_nodes,
    )


def _ports(model: Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Returns the types of inputs and outputs, by the names of the signature where there is one of the main subgraph."""
    signature = next((one for one in model.signatures if one.subgraph == 0), None)
    sides = []
    for side, indices in (("inputs", model.main.inputs), ("outputs", model.main.outputs)):
        keys = {} if signature is None else {index: key for key, index in getattr(signature, side).items()}
        ports = []
        for index in indices:
            tensor = model.main.tensors[index]
            known = tensor.quantization if tensor.is_quantized else None
            steps = (None, None) if known is None else (float(known.scale[0]), int(known.zero_point[0]))
            ports.append(Port(keys.get(index, tensor.name), tensor.dtype.name, tensor.shape, *steps))
        sides.append(tuple(ports))
    return sides[0], sides[1]


def _counted(model: Model) -> OperatorCounts:
    counts = dict.fromkeys(OperatorCounts._fields, 0)
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            tensors = [subgraph.tensors[index] for index in operator.inputs if index >= 0]
            is_float = any(subgraph.tensors[index].is_float for index in operator.outputs)
            if operator.name in BRIDGES:
                kind = "converting"
            elif not is_float:
                kind = "integer"
            else:
                kind = "hybrid" if any(tensor.is_constant and tensor.is_quantized for tensor in tensors) else "floating"
            counts[kind] += 1
    return OperatorCounts(**counts)


# Running them.


def _tried(made: PtqModel, sample: Sample, backend: Backend) -> PtqModel:
    """Returns the model, with the reason where it cannot be run.

    Raises:
        InterpreterError: Where that is the float model, which all others are held against.
    """
    if made.failure:
        return made
    backend = backend.without_delegates if made.form == "float" else backend
    try:
        backend.apart(_run, made.data, sample.inputs, backend, what=f"running the {made.form} model on sample {sample.index}")
    except InterpreterError as error:
        if made.form == "float":
            raise
        return dataclasses.replace(made, failure=f"it cannot be run: {error}")
    return made


def _run(data: bytes, inputs: Sequence[np.ndarray], backend: Backend) -> None:
    backend.open(data).invoke(inputs)


def _times(
    models: Mapping[str, bytes], samples: Sequence[Sample], seconds: float, backend: Backend, progress: bool | None
) -> dict[str, ModelTime]:
    """Times each model twice, the second time in the opposite order: what slows the machine down hits all alike."""
    inputs = [sample.inputs for sample in samples]
    found: dict[str, list[float]] = {form: [] for form in models}
    failures: dict[str, str] = {}
    kernels: dict[str, str] = {}
    turns = [*models, *list(models)[::-1]]
    for form in track(turns, "timing", len(turns), progress):
        own = backend.without_delegates if form == "float" else backend
        try:
            times, kernels[form] = own.apart(_timed, models[form], inputs, seconds / 2, own, what=f"timing the {form} model")
            found[form] += times
        except InterpreterError as error:
            failures[form] = str(error)
    timings = {form: summary(times) for form, times in found.items()}
    return {
        form: ModelTime(form, one.median, one.percentile_90, one.runs, kernels.get(form, ""), failures.get(form, ""))
        for form, one in timings.items()
    }


def _timed(data: bytes, inputs: Sequence[Sequence[np.ndarray]], seconds: float, backend: Backend) -> tuple[list[float], str]:
    interpreter = backend.open(data)
    return list(itertools.chain.from_iterable(timed_runs(interpreter, inputs, seconds))), interpreter.code


# What they answer.


def _classes(floating: PtqModel, label: Any, label_offset: int) -> int:
    """Returns how many classes the first output tells apart; 0 where it is something else."""
    shape = floating.outputs[0].shape if floating.outputs else ()
    if len(shape) not in (1, 2) or shape[-1] < 2:
        return 0
    position = _position(label, label_offset)
    return shape[-1] if label is None or (position is not None and 0 <= position < shape[-1]) else 0


def _position(label: Any, label_offset: int) -> int | None:
    """Returns the place of a label among the outputs; None of what is no class."""
    number = np.asarray(label)
    return int(number.reshape(())) + label_offset if number.size == 1 and number.dtype.kind in "iu" else None


def _scored(made: PtqModel, gathered: _Gathered, kernels: Mapping[str, str], times: Mapping[str, ModelTime]) -> PtqModel:
    if made.form not in kernels:
        return made
    found = gathered.result(made.form)
    return dataclasses.replace(made, kernels=kernels[made.form], time=times.get(made.form), **found)


def _with_outputs(
    predictions: tuple[Prediction, ...],
    inputs: Sequence[Sequence[np.ndarray]],
    models: Mapping[str, bytes],
    backend: Backend,
) -> tuple[Prediction, ...]:
    """Returns the predictions with the first outputs drawn, where these are images or curves; all on one scale."""
    outputs: dict[str, list[np.ndarray]] = {}
    for form, data in models.items():
        own = backend.without_delegates if form == "float" else backend
        outputs[form] = own.apart(_first_outputs, data, inputs, own, what=f"drawing the outputs of the {form} model")
    arrays = [array for found in outputs.values() for array in found]
    if not arrays or any(array.shape != arrays[0].shape for array in arrays):
        return predictions
    spec = InputSpec("output", arrays[0].shape, (arrays[0].dtype,))
    drawings = iter([drawing for (drawing,) in draw_samples([spec], [[array] for array in arrays])])
    drawn = {form: [next(drawings) for _ in found] for form, found in outputs.items()}
    made = []
    for row, prediction in enumerate(predictions):
        answers = dict(prediction.answers)
        for form, found in drawn.items():
            if found[row].kind != "text":
                answers[form] = answers[form]._replace(drawing=found[row])
        made.append(dataclasses.replace(prediction, answers=answers))
    return tuple(made)


def _first_outputs(data: bytes, inputs: Sequence[Sequence[np.ndarray]], backend: Backend) -> list[np.ndarray]:
    interpreter, outputs = backend.open(data), []
    for arrays in inputs:
        interpreter.invoke(arrays)
        outputs.append(np.asarray(interpreter.read_outputs(dequantized=True)[0]))
    return outputs


class _Watched:
    """The samples, shown to who gathers on their way to the models."""

    def __init__(self, samples: RealValued, gathered: _Gathered) -> None:
        self._samples, self._gathered = samples, gathered
        self.length = samples.length

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self._gathered.waiting[sample.index] = sample
            yield sample


class _Gathered:
    """Sums over the samples, and the few samples that are shown.

    Attributes:
        waiting: Samples that the models have not answered yet, by index.
        count: Samples so far.
        differing_count: Those on which a form answers with another class than the float model.
    """

    def __init__(
        self, forms: Sequence[str], most: int, label_offset: int, functions: Mapping[str, Callable[..., Any]], classifies: bool
    ) -> None:
        self._classifies = classifies
        self._forms, self._most, self._label_offset, self._metrics = list(forms), most, label_offset, list(functions)
        self.waiting: dict[int, Sample] = {}
        self.count = self.differing_count = 0
        # Of the metrics, of their differences from the float model's: sums, and sums of squares.
        self._sums = np.zeros((2, 2, len(self._forms), len(self._metrics)))
        self._higher = self._lower = np.zeros((len(self._forms), len(self._metrics)), dtype=np.int64)
        self._agreeing = np.zeros(len(self._forms), dtype=np.int64)
        self._signal = self._errors = np.zeros(1)  # of each output, once the first sample tells how many there are
        self._first: list[tuple[Sample, SampleScores]] = []
        self._differing: list[tuple[Sample, SampleScores]] = []

    def add(self, scores: SampleScores) -> None:
        """Adds what the models gave on one sample."""
        sample = self.waiting.pop(scores.sample)
        self.count += 1
        difference = scores.metrics - scores.metrics[0]
        both = np.stack([scores.metrics, difference])
        self._sums = self._sums + np.stack([both, both**2])
        self._higher, self._lower = self._higher + (difference > 0), self._lower + (difference < 0)
        alike = scores.answers == scores.answers[0]
        self._agreeing = self._agreeing + alike
        self._signal, self._errors = self._signal + scores.signal, self._errors + scores.errors
        if len(self._first) < self._most:
            self._first.append((sample, scores))
        if self._classifies and not alike.all():
            self.differing_count += 1
            if len(self._differing) < self._most:
                self._differing.append((sample, scores))

    def result(self, form: str) -> dict[str, Any]:
        """Returns what was found of one form."""
        row = self._forms.index(form)
        means = self._sums[0] / self.count
        errors = standard_error(self._sums[0], self._sums[1], self.count)
        if self.count < 2:
            errors = np.full_like(errors, np.nan)
        differences = {}
        for column, name in enumerate(self._metrics):
            higher, lower = int(self._higher[row, column]), int(self._lower[row, column])
            mean, error = float(means[1, row, column]), float(errors[1, row, column])
            differences[name] = PairedDifference(mean, error, higher, lower, sign_test(higher, lower))
        return {
            "metrics": dict(zip(self._metrics, means[0, row].tolist(), strict=True)),
            "standard_error": dict(zip(self._metrics, errors[0, row].tolist(), strict=True)),
            "differences": differences,
            "agreement": float(self._agreeing[row] / self.count) if self._classifies else float("nan"),
            "sqnr_db": self._sqnr_db(row),
        }

    def _sqnr_db(self, row: int) -> float:
        """Returns the signal-to-noise ratio of the output that is worst; infinite where all are the float model's."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(self._errors[row] == 0.0, np.inf, 10.0 * np.log10(self._signal / self._errors[row]))
        return float(np.min(ratios)) if ratios.size else float("nan")

    @property
    def first_inputs(self) -> list[list[np.ndarray]]:
        """The inputs of the first samples."""
        return [sample.inputs for sample, _ in self._first]

    def drawn(self, specs: Sequence[Any]) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
        """Returns the first samples, and those on which a form answers otherwise, as what is shown of them."""
        if not self.count:
            raise DatasetError("the evaluation dataset yielded no samples")
        shown = {sample.index: (sample, scores) for sample, scores in (*self._first, *self._differing)}
        drawings = draw_samples(specs, [sample.inputs for sample, _ in shown.values()])
        made = {
            index: Prediction(index, self._label(sample.label), drawing, self._answers(sample.label, scores))
            for (index, (sample, scores)), drawing in zip(shown.items(), drawings, strict=True)
        }
        first, differing = (tuple(made[sample.index] for sample, _ in kept) for kept in (self._first, self._differing))
        return first, differing

    def _label(self, label: Any) -> Any:
        """Returns a label as plain data, a class counted as the outputs are."""
        position = _position(label, self._label_offset)
        if label is None or position is not None:
            return position
        values = np.asarray(label)
        if values.dtype.kind in "fiub" and values.size <= 4:
            return values.tolist()
        return label if isinstance(label, str) else f"array of {' x '.join(map(str, values.shape))}"

    def _answers(self, label: Any, scores: SampleScores) -> dict[str, Answer]:
        position = _position(label, self._label_offset)
        answers = {}
        for row, form in enumerate(self._forms):
            answer = int(scores.answers[row])
            right = None if position is None else answer == position
            answers[form] = Answer(answer, float(scores.values[row]), tuple(scores.heads[row].tolist()), right)
        return answers
