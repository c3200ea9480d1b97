"""A float model, its post-training quantization (PTQ) and its quantization-aware training (QAT) side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tflite_qdebug.analyses.evaluation import Evaluation, evaluate
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.record import Run
from tflite_qdebug.remedies.annotation import LayerGraph, layer_of_node
from tflite_qdebug.remedies.qat import QatResult
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import number

__all__ = ["LayerRow", "QatComparison", "compare_training"]

#: The runs of a comparison, and what its tables call them.
RUNS = {"ptq": "PTQ", "qat": "QAT", "qat_rounded": "QAT rounded"}
_AGAINST = (
    "the error of a layer is what quantization adds there: PTQ against the float model; QAT against its own trained weights in "
    "float, so that how far training moved them does not count; QAT rounded against its weights as they were in training, "
    "rounded, which leaves the error of activations alone"
)
_TWIN = (
    "trained_float answers like the QAT model without its rounding; where it is worse, the weights rely on being rounded: "
    "their rounding is an error in the column QAT, and none to the model"
)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer in both models.

    Attributes:
        layer: Its Keras name, of several that became one operator the first; the tensor's name where no layer made it.
        op_name: Its operator.
        ptq: Its position in the PTQ model's run; None where that has no such layer.
        qat: The same for the QAT model's, in both of its runs.
    """

    layer: str
    op_name: str
    ptq: int | None
    qat: int | None


@dataclasses.dataclass(frozen=True)
class QatComparison(Shown):
    """What quantization-aware training brought.

    Attributes:
        models: ``{"float", "ptq", "qat", "trained_float"}``, each with ``data``, the ``.tflite``.
        evaluation: Accuracy and size of the four.
        runs: ``{"ptq", "qat", "qat_rounded"}``: the error of each layer, of PTQ against the float model, of QAT against the
            trained weights in float, and against the trained weights as they are when rounded.
        layers: Both runs' layers, matched by the Keras layers they come from, in execution order.
        notes: What the reader must know.
    """

    models: dict[str, Any]
    evaluation: Evaluation
    runs: dict[str, Run]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of the layers, as text."""
        columns = {name: run.columns() for name, run in self.runs.items()}
        header = ["layer", "operator"]
        header += [f"{name} {what}" for what in ("RMSE/scale", "SQNR dB") for name in RUNS.values()]
        rows = []
        for row in self.layers:
            positions = {name: _position(row, name) for name in RUNS}
            cells = [
                "-" if position is None else number(columns[name][column][position], 3)
                for column in ("rmse_over_scale", "sqnr_db")
                for name, position in positions.items()
            ]
            rows.append([row.layer, row.op_name, *cells])
        return header, rows

    def worst(self, count: int) -> list[LayerRow]:
        """Returns the layers whose RMSE/scale is greatest in any of the runs, worst first."""
        ratios = {name: run.columns()["rmse_over_scale"] for name, run in self.runs.items()}

        def badness(row: LayerRow) -> float:
            found = [ratios[name][at] for name in RUNS if (at := _position(row, name)) is not None]
            return max((float(ratio) for ratio in found if not math.isnan(ratio)), default=-math.inf)

        return sorted(self.layers, key=badness, reverse=True)[:count]

    def verdict(self) -> str:
        """Returns in a sentence what PTQ lost and QAT brought back, by the first metric."""
        scores = {score.name: score.metrics for score in self.evaluation.scores}
        metric = next(iter(scores["float"]))
        exact, ptq, qat = (scores[name][metric] for name in ("float", "ptq", "qat"))
        return (
            f"{metric}: float {number(exact)}, PTQ {number(ptq)} ({ptq - exact:+.4f}), QAT {number(qat)} ({qat - exact:+.4f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: scores, and for each layer its errors in both models."""
        columns = {name: run.columns() for name, run in self.runs.items()}
        layers = []
        for row in self.layers:
            entry: dict[str, Any] = {"layer": row.layer, "op_name": row.op_name}
            for name in RUNS:
                position = _position(row, name)
                entry[name] = None
                if position is not None:
                    found = columns[name]
                    entry[name] = {
                        "node": str(found["node"][position]),
                        **{what: float(found[what][position]) for what in ("rmse_over_scale", "sqnr_db", "scale", "rmse")},
                    }
            layers.append(entry)
        return {"evaluation": self.evaluation.to_dict(), "layers_compared": layers, "notes": list(self.notes)}

    def __repr__(self) -> str:
        return f"QatComparison({self.verdict()}; {len(self.layers)} layers)"


def compare_training(
    result: QatResult,
    representative_dataset: Any,
    evaluation_dataset: Any,
    debug_dataset: Any = None,
    *,
    kind: str = "int8",
    input_type: str | None = None,
    output_type: str | None = None,
    metrics: Sequence[str | Callable[..., Any]] = ("top_1",),
    label_offset: int = 0,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> QatComparison:
    """Converts, evaluates and measures the float model, its post-training quantization and the trained model.

    Args:
        result: What `train_quantization_aware` returned.
        representative_dataset: Anything that `open_dataset` takes; calibrates the PTQ model, and of the QAT model what was
            not trained quantization-aware.
        evaluation_dataset: The same, with labels.
        debug_dataset: The same; for the error of each layer. None: the representative dataset.
        kind: ``int8`` or ``full_integer``.
        input_type: numpy name of the inputs' type, of both quantized models.
        output_type: The same for the outputs.
        metrics: As in `evaluate`.
        label_offset: As in `evaluate`.
        limit: Take the first so many samples of each dataset.
        backend: Which code runs the models.
        progress: As in `progress.track`.

    Raises:
        QDebugError: One of its kinds, as `QatResult.convert`, `evaluate` and `pair_error` tell.
    """
    types: dict[str, Any] = {"input_type": input_type, "output_type": output_type}
    calibrated = result.float_model.calibrate(representative_dataset, limit=limit, progress=progress)
    models: dict[str, Any] = {
        "float": result.float_model,
        "ptq": calibrated.quantize(kind, **types),
        "qat": result.convert(representative_dataset, kind, limit=limit, progress=progress, **types),
        "trained_float": result.trained_float_model,
    }
    options: dict[str, Any] = {"limit": limit, "backend": backend, "progress": progress}
    evaluation = evaluate(models, evaluation_dataset, metrics, label_offset=label_offset, **options)
    notes = [*result.notes, *evaluation.notes, _AGAINST, _TWIN]
    if debug_dataset is None:
        notes.append(
            "the error of each layer is measured on the samples that calibrated the ranges, which flatters the PTQ model"
        )
        debug_dataset = representative_dataset
    runs = {
        "ptq": pair_error(models["float"], models["ptq"], debug_dataset, **options),
        "qat": pair_error(models["trained_float"], models["qat"], debug_dataset, **options),
        "qat_rounded": pair_error(None, models["qat"], debug_dataset, **options),
    }
    _require_same_layers(runs["qat"], runs["qat_rounded"])
    notes += [f"{RUNS[name]}: {note}" for name, run in runs.items() for note in run.notes]
    notes += [
        f"{name}: {node.op_name} {node.node} stays float: {node.reason}"
        for name in ("ptq", "qat")
        for node in models[name].float_nodes
    ]
    layers = _matched(result.float_keras_model, runs)
    for name, other in (("ptq", "qat"), ("qat", "ptq")):
        alone = [f"{row.op_name} {row.layer}" for row in layers if getattr(row, other) is None]
        if alone:
            notes.append(f"in the {name} model alone: {', '.join(alone)}")
    return QatComparison(models, evaluation, runs, layers, tuple(dict.fromkeys(notes)))


def _position(row: LayerRow, run: str) -> int | None:
    return row.ptq if run == "ptq" else row.qat


def _require_same_layers(first: Run, second: Run) -> None:
    if [layer.tensor_name for layer in first.layers] != [layer.tensor_name for layer in second.layers]:
        raise ModelError("the two runs of the QAT model have different layers, expected the same: it is measured twice")


def _matched(model: Any, runs: dict[str, Run]) -> tuple[LayerRow, ...]:
    graph = LayerGraph(model)
    keys = {name: list(_keys(run, graph)) for name, run in runs.items()}
    ours, theirs = keys["ptq"], {key: position for position, key in enumerate(keys["qat"])}
    rows = [LayerRow(key[0], key[1], position, theirs.get(key)) for position, key in enumerate(ours)]
    rows += [LayerRow(key[0], key[1], None, position) for key, position in theirs.items() if key not in ours]
    order = {name: position for position, name in enumerate(graph.layers)}
    # A layer that only one model has stands where the Keras layer does.
    return tuple(sorted(rows, key=lambda row: order.get(row.layer, math.inf)))


def _keys(run: Run, graph: LayerGraph) -> Iterable[tuple[str, str, int]]:
    """Yields for each layer of a run: Keras layer, operator, and how many such there were before."""
    seen: dict[tuple[str, str], int] = {}
    for layer in run.layers:
        try:
            name = graph.group(layer_of_node(layer.node, graph))[0]
        except OptionError:
            name = layer.node
        count = seen.get((name, layer.op_name), 0)
        seen[name, layer.op_name] = count + 1
        yield name, layer.op_name, count
