"""Cards of models, datasets, and what makes models."""

from __future__ import annotations

import collections
import dataclasses

from tflite_qdebug import tf_private
from tflite_qdebug.conversion import CalibratedModel, FloatModel, QuantizedModel
from tflite_qdebug.datasets import Dataset
from tflite_qdebug.debugger import QuantizationDebugger
from tflite_qdebug.display.card import Card, Fact, Table, card_of, counted, table
from tflite_qdebug.edgetpu.conversion import EdgeTPUModel
from tflite_qdebug.edit.extracted import Cut
from tflite_qdebug.model import Model, Tensor
from tflite_qdebug.outline import outline
from tflite_qdebug.pipeline import TFLiteConverter
from tflite_qdebug.wording import byte_size, number, shortened

_COUNT = 8


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join("?" if size < 0 else str(size) for size in shape) or "scalar"


def _ports(model: Model) -> list[Table]:
    """Returns inputs and outputs as a table."""

    def row(kind: str, tensor: Tensor) -> list[str]:
        parameters = tensor.quantization
        known = parameters is not None and parameters.scale.size == 1
        scale = number(parameters.scale.reshape(-1)[0]) if parameters is not None and known else "-"
        zero = str(int(parameters.zero_point.reshape(-1)[0])) if parameters is not None and known else "-"
        return [kind, tensor.name, tensor.dtype.name, _shape(tensor.shape), scale, zero]

    rows = [
        row(kind, model.main.tensors[index])
        for kind, indices in (("input", model.main.inputs), ("output", model.main.outputs))
        for index in indices
    ]
    return table("", (["", "name", "type", "shape", "scale", "zero point"], rows))


def _operators(model: Model) -> list[Fact]:
    counts = collections.Counter(operator.name for operator in model.main.operators).most_common()
    words = ", ".join(f"{count} {name}" for name, count in counts[:6]) + (", …" if len(counts) > 6 else "")
    return [("operators", f"{len(model.main.operators)} ({words})" if words else "0"), ("size", byte_size(len(model.data)))]


@card_of.register
def _(model: Model) -> Card:
    """A model's structure."""
    facts = [*_operators(model), ("sha256", model.sha256[:12])]
    if len(model.subgraphs) > 1:
        facts.append(("subgraphs", str(len(model.subgraphs))))
    if model.signatures:
        facts.append(("signatures", ", ".join(signature.key for signature in model.signatures)))
    return Card("Model", "", (), None, facts, _ports(model), more="model.node_names() are the names that a denylist takes")


@card_of.register
def _(model: FloatModel) -> Card:
    """A float model."""
    more = "float_model.calibrate(representative_dataset), float_model.quantize('dynamic_range')"
    return Card("FloatModel", model.origin, (), None, _operators(model.model), _ports(model.model), more=more)


@card_of.register
def _(model: CalibratedModel) -> Card:
    """A calibrated model."""
    ranges = sum(tensor.minimum is not None for tensor in model.model.main.tensors)
    facts = [("calibrated on", model.dataset), ("ranges", str(ranges)), *_operators(model.model)]
    if model.histograms:
        facts.append(("histograms", str(len(model.histograms))))
    more = "calibrated.quantize('int8', denylisted_nodes=[...]), as often as you like"
    return Card("CalibratedModel", "", (), None, facts, _ports(model.model), more=more)


@card_of.register
def _(model: QuantizedModel) -> Card:
    """A quantized model: what it takes and gives, and what stayed float."""
    found = outline(model.data)
    ports = [("inputs", found.inputs), ("outputs", found.outputs)]
    facts = [("size", byte_size(len(model.data))), *((name, ", ".join(map(str, entries))) for name, entries in ports)]
    for name in ("denylisted_nodes", "denylisted_ops"):
        asked = ", ".join(model.options.get(name) or ())
        facts += [(name, shortened(asked, 80))] if asked else []
    facts += [(name, "False") for name in ("per_channel", "per_channel_dense") if model.options.get(name) is False]
    count = len(model.float_nodes)
    lead = [f"{counted(count, 'operator')} stayed float."] if count else []
    rows = [[node.op_name, shortened(node.node, 48), node.reason] for node in model.float_nodes[:_COUNT]]
    title = f"in float, the first {_COUNT} of {count}" if count > _COUNT else "in float"
    tables = table(title, (["operator", "node", "why"], rows))
    return Card(
        "QuantizedModel", model.kind, lead, None, facts, tables, more="quantized.save(path); quantized.data is the .tflite"
    )


@card_of.register
def _(cut: Cut) -> Card:
    """A part of a model."""
    facts = [("operators", ", ".join(cut.op_names)), ("size", byte_size(len(cut.data)))]
    facts += [("inputs", ", ".join(cut.input_names)), ("outputs", ", ".join(cut.output_names))]
    return Card("Cut", cut.name, (), None, facts, notes=cut.notes, more="cut.data is the .tflite")


@card_of.register
def _(dataset: Dataset) -> Card:
    """A dataset: where samples come from, and what a sample has to be."""
    rows = [[spec.name, _shape(spec.shape), " or ".join(dtype.name for dtype in spec.dtypes)] for spec in dataset.inputs]
    length = "not known before a full pass" if dataset.length is None else str(dataset.length)
    facts = [("samples", length)]
    if dataset.signature:
        facts.append(("signature", dataset.signature))
    tables = table("each sample has", (["input", "shape", "type"], rows))
    return Card("Dataset", f"{dataset.role}: {dataset.description}", (), None, facts, tables)


@card_of.register
def _(model: EdgeTPUModel) -> Card:
    """A model for the Edge TPU compiler."""
    card = card_of(model.partition)
    changes = [(str(number), change) for number, change in enumerate(model.changes, 1)]
    tables = [*table("changed in the float model", (["", "change"], changes)), *card.tables]
    facts = [("size", byte_size(len(model.data))), *card.facts]
    return dataclasses.replace(card, title="EdgeTPUModel", facts=facts, tables=tables, more="model.save(path)")


@card_of.register
def _(converter: TFLiteConverter) -> Card:
    """A converter: what it will make; after ``convert()`` what was found."""
    if converter.study is None:
        more = "converter.convert() returns the model, and debugs it"
        kind = tf_private.converter_settings(converter.tensorflow_converter).kind
        return Card("TFLiteConverter", f"will make a model of kind {kind}", ("Nothing was converted yet.",), more=more)
    card = card_of(converter.study)
    checks = [[check.name, "passed" if check.passed else "failed", check.words] for check in converter.checks]
    tables = [*table("limits", (["limit", "result", "measured"], checks)), *card.tables]
    facts = [*([("report", str(converter.report))] if converter.report else []), *card.facts]
    return dataclasses.replace(
        card, title="TFLiteConverter", tables=tables, facts=facts, more="converter.study has all that is known"
    )


@card_of.register
def _(debugger: QuantizationDebugger) -> Card:
    """A debugger: its run, once it ran."""
    if debugger.result is None:
        return Card(
            "QuantizationDebugger",
            f"{byte_size(len(debugger.quant_model or b''))} debug model",
            ("It has not run yet.",),
            more="debugger.run()",
        )
    card = card_of(debugger.result)
    more = "debugger.layer_statistics, debugger.layer_statistics_dump(file), debugger.result (the Run)"
    return dataclasses.replace(card, title="QuantizationDebugger", more=more)
