"""In place of the converter step of a pipeline: TensorFlow's converter, whose models are debugged and held to limits."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.analyses.diagnosis.rules import INHERITED
from tflite_qdebug.analyses.evaluation import METRICS
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import FloatModel
from tflite_qdebug.errors import LimitError, OptionError, did_you_mean
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.gate import Check, Drop, check_gate
from tflite_qdebug.reports.html import write_report
from tflite_qdebug.shown import Shown
from tflite_qdebug.study import Study
from tflite_qdebug.wording import shortened

__all__ = ["TFLiteConverter"]

_log = logging.getLogger(__name__)
# Layers that an error names.
_NAMED = 3


class TFLiteConverter(Shown):
    """``tf.lite.TFLiteConverter``, whose ``convert`` also debugs what it has made.

    It is made by the same functions, has the same attributes, and returns the same bytes. To change the import is all that a
    script needs; what is beside is set like any other attribute, before ``convert``. Models that are not quantized are
    converted and nothing else. ``representative_dataset`` may also be any other form of data that `open_dataset` takes, such as
    a ``tf.data.Dataset`` with labels, in batches; it is then checked sample by sample.

    Attributes:
        debug_dataset: What is measured, as `open_dataset` takes it. None: the representative dataset, which flatters the model
            (no value of it is clipped), and which the run notes.
        evaluation_dataset: With labels, for ``metrics``; needed for ``max_accuracy_drop``.
        metrics: Task metrics, the main one first: ``top_1``, ``top_5``, ``module:function`` or functions
            ``f(outputs, label) -> number``. Nothing: ``top_1`` where there is an evaluation dataset.
        label_offset: Added to each label.
        max_accuracy_drop: How much less than the float model's the main metric may be: ``0.5%`` or 0.005; None: any.
        min_output_sqnr_db: Least signal-to-noise ratio of the outputs, in dB, or ``{output: dB}``; None: any.
        debug_folder: Where runs are written, each in a folder of its own, named by the model's hash.
        debug_limit: Take the first so many samples of each dataset.
        debug_backend: Which code runs the models.
        debug_progress: As in `progress.track`.
        all_analyses: Make all analyses, sensitivity and steps among them, and not the error of each layer alone.
        study: What was found of the last model; None before, and of models that are not quantized.
        report: File of its report.
        checks: What was checked.
        tensorflow_converter: TensorFlow's own.
    """

    #: What is not handed on to TensorFlow's converter, and what it is before anybody sets it.
    _OWN: ClassVar[Mapping[str, Any]] = {
        "debug_dataset": None,
        "evaluation_dataset": None,
        "metrics": (),
        "label_offset": 0,
        "max_accuracy_drop": None,
        "min_output_sqnr_db": None,
        "debug_folder": "tflite_qdebug_runs",
        "debug_limit": None,
        "debug_backend": None,
        "debug_progress": None,
        "all_analyses": False,
        "study": None,
        "report": None,
        "checks": (),
    }

    debug_dataset: Any
    evaluation_dataset: Any
    metrics: Sequence[str | Callable[..., Any]]
    label_offset: int
    max_accuracy_drop: str | float | None
    min_output_sqnr_db: Mapping[str, float] | float | None
    debug_folder: str | os.PathLike[str]
    debug_limit: int | None
    debug_backend: Backend | None
    debug_progress: bool | None
    all_analyses: bool
    study: Study | None
    report: Path | None
    checks: tuple[Check, ...]
    tensorflow_converter: Any

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Takes what ``tf.lite.TFLiteConverter`` takes, or one that there is already.

        Raises:
            OptionError: For a converter together with something else.
        """
        if arguments and tf_private.is_converter(arguments[0]):
            if len(arguments) > 1 or keywords:
                raise OptionError("got a converter and further arguments, expected the converter alone")
            converter = arguments[0]
        else:
            converter = tf_private.tensorflow().lite.TFLiteConverter(*arguments, **keywords)
        self.__dict__.update(self._OWN, tensorflow_converter=converter)

    @classmethod
    def from_keras_model(cls, model: Any) -> TFLiteConverter:
        """As ``tf.lite.TFLiteConverter.from_keras_model``."""
        return cls(tf_private.tensorflow().lite.TFLiteConverter.from_keras_model(model))

    @classmethod
    def from_saved_model(
        cls, saved_model_dir: str, signature_keys: Sequence[str] | None = None, tags: Any = None
    ) -> TFLiteConverter:
        """As ``tf.lite.TFLiteConverter.from_saved_model``."""
        return cls(tf_private.tensorflow().lite.TFLiteConverter.from_saved_model(saved_model_dir, signature_keys, tags))

    @classmethod
    def from_concrete_functions(cls, funcs: Sequence[Any], trackable_obj: Any = None) -> TFLiteConverter:
        """As ``tf.lite.TFLiteConverter.from_concrete_functions``."""
        return cls(tf_private.tensorflow().lite.TFLiteConverter.from_concrete_functions(funcs, trackable_obj))

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of TensorFlow's converter."""
        if name.startswith("__") or "tensorflow_converter" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        try:
            return getattr(self.tensorflow_converter, name)
        except AttributeError:
            raise self._unknown(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute here or of TensorFlow's converter, which would take any name without a word.

        Raises:
            AttributeError: For a name that neither has, with the nearest ones.
        """
        if name in self._OWN:
            self.__dict__[name] = value
        elif name.startswith("_") or hasattr(self.tensorflow_converter, name):
            setattr(self.tensorflow_converter, name, value)
        else:
            raise self._unknown(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.tensorflow_converter)})

    def _unknown(self, name: str) -> AttributeError:
        known = [one for one in dir(self) if not one.startswith("_")]
        return AttributeError(f"a TFLiteConverter has no attribute {name!r}.{did_you_mean(name, known)}")

    def convert(self) -> bytes:
        """Converts as TensorFlow's converter does, then debugs what it has made.

        Returns:
            The bytes that ``tf.lite.TFLiteConverter.convert`` returns.

        Raises:
            LimitError: Where the model misses a limit; it names the layers, the report, and carries the model as ``model``.
            OptionError: For limits that cannot be checked, before anything is converted.
            DatasetError: For wrong samples; like all errors after the conversion it carries the bytes as ``model``.
        """
        self.__dict__.update(study=None, report=None, checks=())
        self.check()
        settings, source = tf_private.converter_settings(self.tensorflow_converter), self._measured()
        debugged = settings.kind != "float"
        with _callable_dataset(self.tensorflow_converter) as fit:
            float_model = None
            if debugged and source is not None:
                float_model = FloatModel(tf_private.convert_to_float(self.tensorflow_converter), "converter", settings)
                fit(float_model)
            data = bytes(self.tensorflow_converter.convert())
        if float_model is None:
            if debugged:
                _log.warning("the model is not debugged: it is of kind %s, and there is no debug_dataset", settings.kind)
            return data
        try:
            self._debug(float_model, data, source)
        except Exception as error:
            error.model = data  # type: ignore[attr-defined]
            raise
        return data

    def check(self) -> None:
        """Checks, as `convert` does before it converts, that the limits can be held against something.

        Raises:
            OptionError: For limits without the data that they need, or of a model that is not quantized.
        """
        limits = {"max_accuracy_drop": self.max_accuracy_drop, "min_output_sqnr_db": self.min_output_sqnr_db}
        given = [name for name, value in limits.items() if value is not None]
        if not given:
            return
        if tf_private.converter_settings(self.tensorflow_converter).kind == "float":
            raise OptionError(f"got {' and '.join(given)}, and a converter without optimizations, whose model is float")
        if self.min_output_sqnr_db is not None:
            least = self.min_output_sqnr_db
            for value in least.values() if isinstance(least, Mapping) else (least,):
                if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
                    raise OptionError(f"got min_output_sqnr_db={least!r}, expected a number of dB, or {{output: dB}}")
        if self._measured() is None:
            raise OptionError(f"got {' and '.join(given)}, but neither debug_dataset nor representative_dataset to measure on")
        if self.max_accuracy_drop is not None:
            drop = Drop.parse(self.max_accuracy_drop)
            if not self.metrics or self.metrics[0] in METRICS:
                drop.require_share()
            if self.evaluation_dataset is None:
                raise OptionError("got max_accuracy_drop without evaluation_dataset: samples (inputs, label), which it needs")

    def _measured(self) -> Any:
        """Returns the dataset that is measured, as it was given; None where there is none."""
        if self.debug_dataset is not None:
            return self.debug_dataset
        return tf_private.converter_settings(self.tensorflow_converter).representative_dataset

    def _debug(self, float_model: FloatModel, data: bytes, source: Any) -> None:
        folder = Path(self.debug_folder) / hashlib.sha256(data).hexdigest()[:12]
        study = Study(
            folder,
            float_model,
            data,
            source,
            evaluation_dataset=self.evaluation_dataset,
            metrics=self.metrics,
            label_offset=self.label_offset,
            limit=self.debug_limit,
            backend=self.debug_backend,
            progress=self.debug_progress,
        )
        self.__dict__["study"] = study
        if self.debug_dataset is None:
            study.note(
                "measured on the representative dataset, of which no value is clipped, so that the errors come out too small; "
                "set debug_dataset to other samples"
            )
        if self.all_analyses:
            study.all()
        else:
            study.run_with_parts()
            study.samples()  # which has the error at the outputs over all samples
            if study.has_evaluation:
                study.scores()
            study.diagnosis()
        self.__dict__["report"] = write_report(study.findings, folder / "report.html")
        _log.info("report: %s", self.report)
        self._hold(study.findings)

    def _hold(self, findings: Findings) -> None:
        """Holds the model to its limits.

        Raises:
            LimitError: Where it misses one.
        """
        if self.max_accuracy_drop is None and self.min_output_sqnr_db is None:
            return
        checks = check_gate(findings, min_sqnr=self.min_output_sqnr_db, max_drop=self.max_accuracy_drop)
        self.__dict__["checks"] = checks
        failed = [check for check in checks if not check.passed]
        if not failed:
            return
        said = "; ".join(f"{check.name}: {check.words}" for check in failed)
        raise LimitError(
            f"the quantized model misses {len(failed)} of {len(checks)} limits. {said}. {_blamed(findings)} "
            f"The report: {self.report}"
        )

    def __repr__(self) -> str:
        kind = tf_private.converter_settings(self.tensorflow_converter).kind
        found = "" if self.study is None else f", {self.study!r}"
        return f"TFLiteConverter({kind}{found})"


@contextmanager
def _callable_dataset(converter: Any) -> Iterator[Callable[[FloatModel], None]]:
    """Stands a function in for a representative dataset of a form that TensorFlow does not take, for the time of a conversion.

    Yields:
        What makes the function, once the float model tells which inputs there are; it does nothing where TensorFlow takes the
        dataset as it is.
    """
    given = converter.representative_dataset
    if given is None or callable(given) or hasattr(given, "input_gen"):
        yield lambda float_model: None
        return

    def fit(float_model: FloatModel) -> None:
        converter.representative_dataset = lambda: float_model.calibration_samples(given, progress=False)

    converter.representative_dataset = lambda: iter(())  # the first conversion reads none of it
    try:
        yield fit
    finally:
        converter.representative_dataset = given


def _blamed(findings: Findings) -> str:
    """Returns which layers are to blame, in a sentence."""
    diagnosis = findings.diagnosis
    # What one inherited it is not to be blamed for; of several causes of one layer it is named once.
    made = [] if diagnosis is None else [suspect for suspect in diagnosis.suspects if suspect.cause != INHERITED.name]
    suspects = list(dict.fromkeys(suspect.node for suspect in made))
    if suspects:
        names, what = suspects, "Suspect"
    else:
        names = [findings.run.layers[position].node for position in findings.run.worst("severity", _NAMED)]
        what = "No layer is suspect by itself; the worst are"
    if not names:
        return "The run has no layers to blame."
    shown = ", ".join(repr(shortened(name, 60)) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what} {shown}{more}."
