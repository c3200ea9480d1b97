"""What post-training quantization makes of a model, form by form, as plain data."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tflite_qdebug.conversion import FloatNode
from tflite_qdebug.drawn import Drawing
from tflite_qdebug.errors import MissingPackageError, ModelError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.latency_record import ModelTime
from tflite_qdebug.paired import PairedDifference
from tflite_qdebug.record import load_record, save_record
from tflite_qdebug.wording import kilobytes, number, percent, points, probability

__all__ = ["FORMAT_VERSION", "Answer", "OperatorCounts", "Port", "Prediction", "PtqComparison", "PtqModel"]

FORMAT_VERSION = 1
#: Metrics that are shares, better where they are higher.
SHARES = ("top_1", "top_5")


class Port(NamedTuple):
    """An input or an output of a model.

    Attributes:
        name: The signature's name, or the tensor's.
        dtype: numpy's name of its type.
        shape: With -1 for what is open.
        scale: Of a quantized one; else None.
        zero_point: The same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None

    @property
    def words(self) -> str:
        """Type, and what an integer stands for: ``int8, value = 0.00392 * (q + 128)``."""
        if self.scale is None:
            return self.dtype
        zero = f"q {'-' if (self.zero_point or 0) > 0 else '+'} {abs(self.zero_point)}" if self.zero_point else "q"
        return f"{self.dtype}, value = {number(self.scale, 3)} * {f'({zero})' if self.zero_point else zero}"


class OperatorCounts(NamedTuple):
    """What the operators of a model compute on.

    Attributes:
        integer: Integers; the ones that compute shapes and indices are among them.
        hybrid: Float activations and integer weights; how they multiply them is the kernels' own affair.
        floating: Floats.
        converting: QUANTIZE and DEQUANTIZE.
    """

    integer: int = 0
    hybrid: int = 0
    floating: int = 0
    converting: int = 0


@dataclasses.dataclass(frozen=True)
class PtqModel:
    """One form of the model.

    Attributes:
        form: Its name, such as ``dynamic_range``.
        words: What is quantized in it.
        data: The ``.tflite``; empty where it could not be made, and in a record that was loaded.
        size: Bytes.
        sha256: Of the file.
        inputs: Types of the inputs.
        outputs: Types of the outputs.
        operators: What they compute on.
        float_nodes: Operators that stayed float in a form with integer activations, and why.
        metrics: ``{metric: mean over the samples}``.
        standard_error: ``{metric: of that mean}``.
        differences: ``{metric: against the float model, on the same samples}``.
        agreement: Share of samples whose first output is greatest at the same place as the float model's; NaN where that is not
            the answer, as of outputs that are no classes.
        sqnr_db: Of the outputs against the float model's, pooled over the samples, of the worst output; infinite where all are
            equal.
        time: How long it takes; None where that was not measured.
        kernels: That ran it.
        failure: Why it could not be made, or not be run; empty where it could.
    """

    form: str
    words: str
    data: bytes = dataclasses.field(default=b"", repr=False, compare=False)
    size: int = 0
    sha256: str = ""
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    operators: OperatorCounts = dataclasses.field(default_factory=OperatorCounts)
    float_nodes: tuple[FloatNode, ...] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    standard_error: Mapping[str, float] = dataclasses.field(default_factory=dict)
    differences: Mapping[str, PairedDifference] = dataclasses.field(default_factory=dict)
    agreement: float = math.nan
    sqnr_db: float = math.nan
    time: ModelTime | None = None
    kernels: str = ""
    failure: str = ""

    @property
    def is_made(self) -> bool:
        """True where there is a file, whether it could be run or not."""
        return self.size > 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, without the file."""
        fields = dataclasses.asdict(dataclasses.replace(self, data=b""))
        del fields["data"]
        for name in ("inputs", "outputs"):
            fields[name] = [port._asdict() for port in getattr(self, name)]
        return {**fields, "operators": self.operators._asdict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PtqModel:
        """Reads what `to_dict` gave."""
        ports = {
            name: tuple(Port(**{**port, "shape": tuple(port["shape"])}) for port in fields[name])
            for name in ("inputs", "outputs")
        }
        read: dict[str, Any] = {
            **fields,
            **ports,
            "operators": OperatorCounts(**fields["operators"]),
            "float_nodes": tuple(FloatNode(**node) for node in fields["float_nodes"]),
            "differences": {name: PairedDifference(**found) for name, found in fields["differences"].items()},
            "time": None if fields["time"] is None else ModelTime(**fields["time"]),
        }
        return cls(**read)


class Answer(NamedTuple):
    """What one form answered to one sample.

    Attributes:
        position: Where its first output is greatest.
        value: The value there, in real units; a probability behind a softmax.
        head: The first values of that output.
        right: Whether the label is there; None where there is no label that is a class.
        drawing: What the first output looks like where it is an image or a curve; else None.
    """

    position: int
    value: float
    head: tuple[float, ...]
    right: bool | None
    drawing: Drawing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {**self._asdict(), "drawing": None if self.drawing is None else self.drawing.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Answer:
        """Reads what `to_dict` gave."""
        drawing = None if fields["drawing"] is None else Drawing.from_dict(fields["drawing"])
        return cls(**{**fields, "head": tuple(fields["head"]), "drawing": drawing})


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One sample, and what all forms answered.

    Attributes:
        index: Of the sample.
        label: The true one, counted as the model's outputs are; None where there is none.
        drawings: What the inputs look like.
        answers: ``{form: answer}``.
    """

    index: int
    label: Any
    drawings: tuple[Drawing, ...]
    answers: Mapping[str, Answer]

    @property
    def differs(self) -> bool:
        """True where a form answers otherwise than the float model."""
        return len({answer.position for answer in self.answers.values()}) > 1

    @property
    def is_wrong(self) -> bool:
        """True where a form is wrong."""
        return any(answer.right is False for answer in self.answers.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "index": self.index,
            "label": self.label,
            "drawings": [drawing.to_dict() for drawing in self.drawings],
            "answers": {form: answer.to_dict() for form, answer in self.answers.items()},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Prediction:
        """Reads what `to_dict` gave."""
        answers = {form: Answer.from_dict(found) for form, found in fields["answers"].items()}
        return cls(fields["index"], fields["label"], tuple(map(Drawing.from_dict, fields["drawings"])), answers)


@dataclasses.dataclass(frozen=True)
class PtqComparison:
    """All forms of a model side by side.

    Attributes:
        models: The float model first.
        samples: How many were evaluated.
        metrics: Their names, the main one first; none where there were no labels.
        lower_is_better: Of the main metric.
        classifies: True where the outputs are one value for each class, of which the greatest is the answer.
        class_names: What the classes are called; empty: by their numbers.
        first: The first samples of the evaluation dataset.
        differing: The first ones on which a form answers with another class than the float model.
        differing_count: How many of these there are in all.
        provenance: What was measured on what: origin, datasets, versions, hashes, options.
        notes: What the reader must know.
    """

    models: tuple[PtqModel, ...]
    samples: int
    metrics: tuple[str, ...]
    lower_is_better: bool
    classifies: bool
    class_names: tuple[str, ...]
    first: tuple[Prediction, ...]
    differing: tuple[Prediction, ...]
    differing_count: int
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]

    def __getitem__(self, form: str) -> PtqModel:
        """Returns a form by its name.

        Raises:
            OptionError: Where there is none of that name.
        """
        known = {model.form: model for model in self.models}
        if form not in known:
            raise OptionError(f"got form {form!r}, expected one of {', '.join(known)}.{did_you_mean(form, known)}")
        return known[form]

    @property
    def main_metric(self) -> str | None:
        """The one that the verdict is about; None where nothing but answers was compared."""
        return self.metrics[0] if self.metrics else None

    def is_worse(self, model: PtqModel) -> bool:
        """Returns whether a form's main metric is measurably worse than the float model's."""
        difference = model.differences.get(self.main_metric or "")
        if difference is None:
            return False
        loss = difference.value if self.lower_is_better else -difference.value
        return loss > 0.0 and difference.is_measurable

    def unharmed(self) -> list[PtqModel]:
        """Returns the quantized forms that are not measurably worse than the float model, the smallest first."""
        kept = [model for model in self.models[1:] if model.differences and not self.is_worse(model)]
        return sorted(kept, key=lambda model: model.size)

    def class_name(self, position: Any) -> str:
        """Returns what a class is called."""
        known = isinstance(position, int) and 0 <= position < len(self.class_names)
        return self.class_names[position] if known else str(position)

    def size_table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of what each form costs, as text; dashes for one that could not be made."""
        header = ["form", "size kB", "size vs float", "input", "output", "int ops", "hybrid ops", "float ops"]
        is_timed = any(model.time is not None for model in self.models)
        header += ["ms", "kernels"] if is_timed else ["kernels"]
        rows = []
        for model in self.models:
            if not model.is_made:
                rows.append([model.form, *["-"] * (len(header) - 1)])
                continue
            types = ["/".join(dict.fromkeys(port.dtype for port in ports)) for ports in (model.inputs, model.outputs)]
            size = [kilobytes(model.size), number(model.size / self.models[0].size, 3)]
            counts = [str(count) for count in model.operators[:3]]
            time = [number(math.nan if model.time is None else model.time.median, 3)] if is_timed else []
            rows.append([model.form, *size, *types, *counts, *time, model.kernels or "-"])
        return header, rows

    def score_table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of how good each form is, as text; dashes for one that could not be run."""
        header = ["form"]
        for name in self.metrics:
            header += [name, "± s.e.", "difference", "± s.e. paired"]
        header += ["lost", "won", "p"] if self.metrics else []
        header += ["same answer", "SQNR dB"] if self.classifies else ["SQNR dB"]
        return header, [self._scores(model) for model in self.models]

    def _scores(self, model: PtqModel) -> list[str]:
        row = [model.form]
        for name in self.metrics:
            found = model.differences.get(name)
            row += [number(model.metrics.get(name, math.nan)), number(model.standard_error.get(name, math.nan), 2)]
            is_float = model is self.models[0]
            row += ["-", "-"] if found is None or is_float else [f"{found.value:+.4f}", number(found.standard_error, 2)]
        if self.metrics:
            row += self._lost_and_won(model)
        if self.classifies:
            row.append(number(model.agreement))
        return [*row, "-" if model is self.models[0] else number(model.sqnr_db, 3)]

    def _lost_and_won(self, model: PtqModel) -> list[str]:
        found = model.differences.get(self.main_metric or "")
        if found is None or model is self.models[0]:
            return ["-", "-", "-"]
        lost, won = (found.higher, found.lower) if self.lower_is_better else (found.lower, found.higher)
        return [str(lost), str(won), probability(found.p_value)]

    def port_table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of the types of all inputs and outputs, as text; forms with the same ones share rows."""
        forms: dict[tuple[tuple[Port, ...], tuple[Port, ...]], list[str]] = {}
        for model in self.models:
            if model.is_made:
                forms.setdefault((model.inputs, model.outputs), []).append(model.form)
        rows = [
            [", ".join(names), side, port.name, " x ".join("?" if size < 0 else str(size) for size in port.shape), port.words]
            for both, names in forms.items()
            for side, ports in zip(("input", "output"), both, strict=True)
            for port in ports
        ]
        return ["form", "", "name", "shape", "type"], rows

    def float_groups(self) -> list[tuple[str, str, str, list[str]]]:
        """Returns the operators that stayed float in forms with integer activations: ``(form, operator, reason, names)``."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for model in self.models:
            for node in model.float_nodes:
                groups.setdefault((model.form, node.op_name, node.reason), []).append(node.node)
        return [(*key, names) for key, names in groups.items()]

    def prediction_table(self, predictions: Sequence[Prediction] | None = None) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of predictions, as text; ``✗`` stands behind what is wrong.

        Args:
            predictions: Which; None: those on which a form answers otherwise than the float model.
        """
        predictions = self.differing if predictions is None else predictions
        ran = [model.form for model in self.models if any(model.form in each.answers for each in predictions)]
        rows = []
        for prediction in predictions:
            label = "-" if prediction.label is None else self.class_name(prediction.label)
            rows.append([str(prediction.index), label, *(self.answer_words(prediction.answers.get(form)) for form in ran)])
        return ["sample", "true", *ran], rows

    def answer_words(self, answer: Answer | None) -> str:
        """Returns an answer in short: a class, ``✗`` where it is wrong; of outputs that are no classes the first values."""
        if answer is None:
            return "-"
        if self.classifies:
            return self.class_name(answer.position) + (" ✗" if answer.right is False else "")
        return ", ".join(number(value, 3) for value in answer.head if not math.isnan(value))

    def verdict(self) -> list[str]:
        """Returns what came of it, in sentences."""
        floating, metric = self.models[0], self.main_metric
        sentences = []
        if metric is None:
            sentences += self._unlabelled_words()
        else:
            unit = f" of {self.samples} samples"
            error = floating.standard_error[metric]
            sentences.append(f"Float has {metric} {number(floating.metrics[metric])} ± {number(error, 2)} (s.e.){unit}.")
            worse: dict[str, list[str]] = {}
            for model in filter(self.is_worse, self.models[1:]):
                worse.setdefault(self._loss(model), []).append(model.form)
            if worse:
                said = "; ".join(f"{_listed(forms)} {loss}" for loss, forms in worse.items())
                sentences.append(f"Measurably worse: {said}.")
            sentences += self._unharmed_words(metric)
        failures: dict[str, list[str]] = {}
        for model in self.models:
            if model.failure:
                failures.setdefault(model.failure, []).append(model.form)
        return sentences + [f"{_listed(forms)}: {failure}." for failure, forms in failures.items()]

    def _unlabelled_words(self) -> list[str]:
        ran = [model for model in self.models[1:] if model.kernels]
        if not ran:
            return []
        if self.classifies:
            told = [f"{model.form} on {percent(model.agreement)}" for model in ran]
            return [f"Of {self.samples} samples without labels the answer is float's with {_listed(told)}."]
        told = [f"{number(model.sqnr_db, 3)} dB with {model.form}" for model in ran]
        return [f"On {self.samples} samples without labels the outputs have, against float's, an SQNR of {_listed(told)}."]

    def _loss(self, model: PtqModel) -> str:
        metric = self.main_metric or ""
        found = model.differences[metric]
        lost, won, p_value = self._lost_and_won(model)
        chance = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
        if metric in SHARES:
            return (
                f"by {points(-100 * found.value).lstrip('+')} ± {number(100 * found.standard_error, 2)} points "
                f"({lost} samples lost, {won} won, {chance})"
            )
        return f"({found.value:+.4g} ± {number(found.standard_error, 2)}, {chance})"

    def _unharmed_words(self, metric: str) -> list[str]:
        kept = self.unharmed()
        if not kept:
            return []
        size = f"{percent(kept[0].size / self.models[0].size)} of float's size"
        names = [model.form for model in kept]
        said = f"{names[0]}, with {size}" if len(names) == 1 else f"{_listed(names)}; the smallest is {names[0]}, with {size}"
        unseen = max(self._unseen_loss(model) for model in kept)
        if not unseen > 0:
            return [f"Not measurably worse: {said}."]
        finer = f"{number(100 * unseen, 2)} points" if metric in SHARES else number(unseen, 3)
        return [f"Not measurably worse: {said}. A loss of up to {finer} could go unseen on {self.samples} samples."]

    def _unseen_loss(self, model: PtqModel) -> float:
        """Returns which loss the samples cannot rule out: the worse end of the 95 % interval.

        Where no sample is lost that says nothing; by the rule of three (Hanley and Lippman-Hand, JAMA 249, 1983) up to 3 in n
        may still be.
        """
        metric = self.main_metric or ""
        found = model.differences[metric]
        loss, lost = (found.interval[1], found.higher) if self.lower_is_better else (-found.interval[0], found.lower)
        return max(loss, min(1.0, 3.0 / self.samples) if metric in SHARES and not lost else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, without the models' files."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("models", "first", "differing"):
            fields[name] = [entry.to_dict() for entry in fields[name]]
        return {"format": "tflite_qdebug post-training quantization", "format_version": FORMAT_VERSION, **fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PtqComparison:
        """Reads what `to_dict` gave.

        Raises:
            ModelError: For data of another kind or of a newer format.
        """
        read = dict(fields)
        kind = read.pop("format", None), read.pop("format_version", None)
        if kind != ("tflite_qdebug post-training quantization", FORMAT_VERSION):
            raise ModelError(f"got {kind[0]!r} version {kind[1]!r}, expected a comparison of format version {FORMAT_VERSION}")
        read["models"] = tuple(map(PtqModel.from_dict, read["models"]))
        for name in ("first", "differing"):
            read[name] = tuple(map(Prediction.from_dict, read[name]))
        for name in ("metrics", "class_names", "notes"):
            read[name] = tuple(read[name])
        return cls(**read)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the comparison as JSON, without the models' files.

        Raises:
            OutputError: Where it cannot be written.
        """
        save_record(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PtqComparison:
        """Reads what `save` wrote.

        Raises:
            ModelError: Where there is no such file or it holds something else.
        """
        return load_record(path, cls.from_dict, "comparison", "is no comparison of post-training quantization")

    def save_models(self, folder: str | os.PathLike[str], stem: str = "model") -> list[Path]:
        """Writes each form that was made as ``STEM_FORM.tflite``, and returns the paths.

        Raises:
            OutputError: Where they cannot be written.
        """
        paths = []
        for model in self.models:
            if model.data:
                paths.append(Path(folder) / f"{stem}_{model.form}.tflite")
                write_atomically(paths[-1], model.data)
        return paths

    def __repr__(self) -> str:
        return f"PtqComparison({', '.join(model.form for model in self.models)}; {self.samples} samples)"

    def _repr_html_(self) -> str | None:
        """Returns what a notebook shows: the verdict, the forms, and predictions; None where what draws them is missing."""
        from tflite_qdebug.reports.post_training import notebook_html

        try:
            return notebook_html(self)
        except MissingPackageError:
            return None


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
