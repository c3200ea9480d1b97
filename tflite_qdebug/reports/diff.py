"""What has changed between two runs: before and after a remedy, or of two versions of TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_qdebug.errors import OptionError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Findings
from tflite_qdebug.record import Run
from tflite_qdebug.reports.glossary import heading
from tflite_qdebug.reports.outputs import output_errors
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.reports.templating import rendered
from tflite_qdebug.wording import number, shortened, signed

__all__ = [
    "Change",
    "Diff",
    "LayerChange",
    "NumberChange",
    "diff",
    "diff_table",
    "output_table",
    "score_table",
    "write_diff_csv",
    "write_diff_html",
]

# What a reader must know to compare two runs, in this order; times and hashes of what is made anew each time are none of it.
_PROVENANCE = {
    "tflite_qdebug": "tflite_qdebug",
    "runtime": "runtime",
    "runtime_version": "version of the runtime",
    "kernels": "kernels",
    "delegates": "delegates",
    "verify": "what was measured",
    "options": "options",
    "float_model_sha256": "float model",
    "debug_dataset": "debug dataset",
    "samples": "samples",
    "numpy": "numpy",
    "python": "Python",
}
_AT_OUTPUTS = ("sqnr_db", "cosine")
#: From this ratio on (or below its inverse) a layer's severity has changed: less is what other samples do.
CHANGED = 1.25


@dataclasses.dataclass(frozen=True)
class NumberChange:
    """A number before and after; NaN on a side where it was not measured.

    Attributes:
        name: Of what, ``quantized``, or an output.
        quantity: Which number: ``top_1``, ``sqnr_db``...
        old: Before.
        new: After.
    """

    name: str
    quantity: str
    old: float
    new: float

    @property
    def change(self) -> float:
        """New less old; 0 where both are the same infinity."""
        return 0.0 if self.old == self.new else self.new - self.old


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that tells how a run was made, and is not the same in both."""

    name: str
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """A layer that is in both runs.

    Attributes:
        node: Its name.
        op_name: Its type in the new run.
        old_severity: In steps of 8 bits.
        new_severity: The same.
        old_sqnr_db: In dB.
        new_sqnr_db: The same.
        old_rmse_over_scale: In quantization steps; NaN for a float layer.
        new_rmse_over_scale: The same.
    """

    node: str
    op_name: str
    old_severity: float
    new_severity: float
    old_sqnr_db: float
    new_sqnr_db: float
    old_rmse_over_scale: float
    new_rmse_over_scale: float

    @property
    def change(self) -> float:
        """New severity less old, in steps; 0 where both are the same infinity, NaN where one is not known."""
        return 0.0 if self.old_severity == self.new_severity else self.new_severity - self.old_severity

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``same`` (within 25 %), or empty where it is not known."""
        if math.isnan(self.old_severity) or math.isnan(self.new_severity):
            return ""
        if self.new_severity > CHANGED * self.old_severity:
            return "worse"
        return "better" if self.new_severity * CHANGED < self.old_severity else "same"


@dataclasses.dataclass(frozen=True)
class Diff:
    """What has changed from one run to another.

    Attributes:
        old: Name of the run before.
        new: Name of the run after.
        sentence: What has changed, in one sentence.
        scores: Task metrics and sizes of the models.
        outputs: SQNR and cosine at the outputs.
        layers: Those that both runs have, in the new run's order.
        only_old: Layers that the new run has not, ``operator name``.
        only_new: Layers that the old run has not.
        provenance: What else differs.
        notes: What the reader must know.
    """

    old: str
    new: str
    sentence: str
    scores: tuple[NumberChange, ...]
    outputs: tuple[NumberChange, ...]
    layers: tuple[LayerChange, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    provenance: tuple[Change, ...]
    notes: tuple[str, ...]

    def order(self) -> list[int]:
        """Returns the positions of the layers, the greatest change first, whether to the better or to the worse."""
        sizes = [-1.0 if math.isnan(layer.change) else abs(layer.change) for layer in self.layers]
        return [int(position) for position in np.argsort(-np.array(sizes), kind="stable")]


def diff(old: Findings, new: Findings) -> Diff:
    """Compares two runs of one model, layer by layer, by the layers' names.

    Raises:
        OptionError: Where no layer of the one is in the other: they are of different models.
    """
    layers, only_old, only_new = _layers(old.run, new.run)
    if not layers:
        raise OptionError(
            f"run {old.name!r} and run {new.name!r} have no layer name in common ({len(old.run.layers)} and "
            f"{len(new.run.layers)} layers), so they are of different models; expected two runs of one model"
        )
    scores = tuple(_scores(old, new))
    outputs = tuple(_outputs(old, new))
    names = (old.name, new.name) if old.name != new.name else (f"{old.name} (old)", f"{new.name} (new)")
    return Diff(
        *names,
        _sentence(layers, outputs, scores),
        scores,
        outputs,
        layers,
        only_old,
        only_new,
        tuple(_provenance(old.run.provenance, new.run.provenance)),
        tuple(_notes(old, new, len(layers))),
    )


def _layers(old: Run, new: Run) -> tuple[tuple[LayerChange, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns the layers of both, and the names of those of one alone.

    Of layers of one name the first of the one is held against the first of the other of the same type, and so on.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for position, layer in enumerate(old.layers):
        places.setdefault(_key(layer), []).append(position)
    columns, before = new.columns(), old.columns()
    changes, only_new = [], []
    for position, layer in enumerate(new.layers):
        rest = places.get(_key(layer))
        if not rest:
            only_new.append(f"{layer.op_name} {layer.node}")
            continue
        other = rest.pop(0)
        values = [
            float(side[name][place])
            for name in ("severity", "sqnr_db", "rmse_over_scale")
            for side, place in ((before, other), (columns, position))
        ]
        changes.append(LayerChange(layer.node, layer.op_name, *values))
    left = sorted(position for rest in places.values() for position in rest)
    only_old = [f"{old.layers[position].op_name} {old.layers[position].node}" for position in left]
    return tuple(changes), tuple(only_old), tuple(only_new)


def _key(layer: Any) -> tuple[str, str]:
    # A QUANTIZE is called by what it rounds, as the operator before it is.
    return layer.node, "QUANTIZE" if layer.op_name == "QUANTIZE" else ""


def _scores(old: Findings, new: Findings) -> list[NumberChange]:
    found: list[NumberChange] = []
    sides = [{score.name: score for score in one.scores.scores} if one.scores else {} for one in (old, new)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (side.get(name) for side in sides)
        metrics = dict.fromkeys(metric for score in (before, after) if score for metric in score.metrics)
        for metric in metrics:
            values = [score.metrics.get(metric, math.nan) if score else math.nan for score in (before, after)]
            found.append(NumberChange(name, metric, *values))
        found.append(NumberChange(name, "bytes", *(float(score.size) if score else math.nan for score in (before, after))))
    return found


def _outputs(old: Findings, new: Findings) -> list[NumberChange]:
    sides = [output_errors(one) for one in (old, new)]
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        for quantity in _AT_OUTPUTS:
            values = [getattr(side[name], quantity) if name in side else math.nan for side in sides]
            found.append(NumberChange(name, quantity, *values))
    return found


def _provenance(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    changes = []
    for key, name in _PROVENANCE.items():
        before, after = old.get(key), new.get(key)
        if before != after:
            changes.append(Change(name, _described(before), _described(after)))
    return changes


def _described(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, str) and len(value) == 64:  # a hash
        return value[:12]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_described(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_described, value))
    return str(value)


def _notes(old: Findings, new: Findings, common: int) -> list[str]:
    notes = []
    for key, what in (("debug_dataset", "other samples"), ("samples", "another number of samples")):
        if old.run.provenance.get(key) != new.run.provenance.get(key):
            notes.append(f"the two were measured on {what}: small differences mean nothing")
            break
    if old.run.verify != new.run.verify:
        notes.append(f"the one shows {old.run.verify} errors and the other {new.run.verify} errors: they cannot be compared")
    if ("own" in old.run.parts) != ("own" in new.run.parts):
        notes.append("only one of the two was measured with parts, which makes the severity of layers more exact")
    total = max(len(old.run.layers), len(new.run.layers))
    if common < 0.5 * total:
        notes.append(f"only {common} of {total} layers are in both: these may be different models")
    return notes


def _sentence(layers: tuple[LayerChange, ...], outputs: tuple[NumberChange, ...], scores: tuple[NumberChange, ...]) -> str:
    counts = {verdict: sum(layer.verdict == verdict for layer in layers) for verdict in ("better", "worse", "same")}
    parts = [f"layers: {counts['better']} better, {counts['worse']} worse, {counts['same']} as they were"]
    main = next((c for c in scores if c.name == "quantized" and not math.isnan(c.change)), None)
    if main is not None and main.quantity != "bytes":
        parts.append(f"{main.quantity} of the quantized model goes from {number(main.old)} to {number(main.new)}")
    worst = min((c for c in outputs if c.quantity == "sqnr_db" and not math.isnan(c.new)), key=lambda c: c.new, default=None)
    if worst is not None:
        parts.append(f"SQNR of output {worst.name!r} goes from {number(worst.old)} to {number(worst.new)} dB")
    return "; ".join(parts)


# -- tables and files ------------------------------------------------------------------------------------------------------


def diff_table(result: Diff, count: int | None = None, name_width: int = 48) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the layers that changed most, as text."""
    before = [f"{heading(name)} old" for name in ("severity", "sqnr_db", "rmse_over_scale")]
    header = ["operator", "node", before[0], "new", "change", before[1], "new", before[2], "new", ""]
    rows = []
    for position in result.order()[:count]:
        layer = result.layers[position]
        rows.append(
            [
                layer.op_name,
                shortened(layer.node, name_width),
                number(layer.old_severity, 3),
                number(layer.new_severity, 3),
                signed(layer.change),
                number(layer.old_sqnr_db, 3),
                number(layer.new_sqnr_db, 3),
                number(layer.old_rmse_over_scale, 3),
                number(layer.new_rmse_over_scale, 3),
                layer.verdict,
            ]
        )
    return header, rows


def score_table(result: Diff) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of task metrics and sizes, as text."""
    return ["model", "metric", "old", "new", "change"], [_cells(change) for change in result.scores]


def output_table(result: Diff) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the error at the outputs, as text."""
    return ["output", "metric", "old", "new", "change"], [_cells(change) for change in result.outputs]


def _cells(change: NumberChange) -> list[str]:
    if change.quantity == "bytes":
        old, new = ("-" if math.isnan(value) else f"{value:.0f}" for value in (change.old, change.new))
        return [change.name, "size in bytes", old, new, "-" if math.isnan(change.change) else f"{change.change:+.0f}"]
    title = heading(change.quantity) if change.quantity in _AT_OUTPUTS else change.quantity
    return [change.name, title, number(change.old), number(change.new), signed(change.change)]


def write_diff_csv(result: Diff, path: str | os.PathLike[str]) -> None:
    """Writes all layers, those of both runs first, in the new run's order; what is only in one has empty cells.

    Raises:
        OutputError: Where it cannot be written.
    """
    fields = [field.name for field in dataclasses.fields(LayerChange)]
    rows = [[*(getattr(layer, name) for name in fields), layer.change, layer.verdict] for layer in result.layers]
    for names, words in ((result.only_old, "only old"), (result.only_new, "only new")):
        for text in names:
            op_name, _, node = text.partition(" ")
            rows.append([node, op_name, *[""] * (len(fields) - 2), "", words])
    titles = [*fields, "change", "verdict"]
    write_columns({title: [row[column] for row in rows] for column, title in enumerate(titles)}, path)


def write_diff_html(result: Diff, path: str | os.PathLike[str]) -> None:
    """Writes one self-contained HTML file.

    Raises:
        MissingPackageError: Where Jinja2 is not installed.
        OutputError: Where it cannot be written.
    """
    tables = {"scores": score_table(result), "outputs": output_table(result)}
    text = rendered("diff.html", diff=result, order=result.order(), tables=tables, changed=CHANGED)
    write_atomically(path, text.encode())
