"""All analyses of a saved run, one after another, in the order that Horizon's ``runall`` teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tflite_qdebug.analyses.samples import RANKING
from tflite_qdebug.errors import ModelError
from tflite_qdebug.output_error import METRICS

if TYPE_CHECKING:
    from tflite_qdebug.study.saved_run import Study

__all__ = ["run_all"]


def run_all(study: Study, metric: str, threshold: float | None, say: Callable[[str], None]) -> None:
    """Makes all analyses, and the diagnosis; `Study.all` tells of the arguments.

    Raises:
        OptionError: For an unknown metric, before anything is measured.
    """
    study.check_metric(metric)
    for words, analysis in _analyses(study, metric, threshold):
        say(words)
        analysis()


def _analyses(study: Study, metric: str, threshold: float | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "the error of each layer", study.run_with_parts
    yield "the graph", study.graph
    if study.has_evaluation:
        yield "float and quantized model on the evaluation data", study.scores
    if study.pair.floating is None:
        study.note(
            "without a float model there are no samples that differ most, no sensitivity, no accumulated error and no "
            "sensitivity analysis; run again with --float MODEL"
        )
        yield "distributions and channels", study.profiles
        yield "diagnosis", study.diagnosis
        return
    # Samples are ranked by what single ones have.
    yield "the samples that differ most", lambda: study.samples(metric=metric if metric in RANKING else "sqnr_db")
    tasks = study.task_metrics if metric not in METRICS or study.has_labels() else ()
    for mode in ("weights", "activation", "node"):
        words = {"weights": "its weights alone", "activation": "its input activations alone", "node": "each node alone"}
        own = tasks if mode == "node" or metric not in METRICS else ()
        yield (
            f"sensitivity: {words[mode]} quantized",
            lambda mode=mode, task=own: _tolerated(study, mode, metric, task),  # type: ignore[misc]
        )
    yield "distributions and channels", study.profiles
    yield "accumulated error: all, weights, activations", lambda: _curved(study)
    yield (
        "sensitivity analysis: the most sensitive nodes left float",
        lambda: _stepped(study, metric, threshold, tasks),
    )
    yield "diagnosis", study.diagnosis


def _tolerated(study: Study, mode: str, metric: str, task: Sequence[str | Callable[..., Any]]) -> None:
    """Measures one mode; a model of which no weights, activations or nodes are quantized has no sensitivity: no failure."""
    try:
        study.sensitivity(mode, metric=metric, task_metrics=task)
    except ModelError as error:
        study.note(f"sensitivity of mode {mode}: {error}")


def _curved(study: Study) -> None:
    """Measures accumulated error; a model that cannot be taken apart for it has none: no failure."""
    try:
        study.curves()
    except ModelError as error:
        study.note(f"accumulated error: {error}")


def _stepped(study: Study, metric: str, threshold: float | None, tasks: Sequence[str | Callable[..., Any]]) -> None:
    """Leaves the most sensitive nodes float, where any is."""
    if "node" in study.findings.sensitivity:
        study.steps(metric=metric, threshold=threshold, task_metrics=tasks)
