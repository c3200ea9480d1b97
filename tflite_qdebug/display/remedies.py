"""Cards of what remedies brought."""

from __future__ import annotations

import dataclasses

from tflite_qdebug.display.card import Card, Fact, card_of, counted, table
from tflite_qdebug.outcome import Candidate, Outcome, Recipe
from tflite_qdebug.remedies.qat import QatResult
from tflite_qdebug.remedies.qat_comparison import QatComparison
from tflite_qdebug.remedies.search import Fixed
from tflite_qdebug.reports.remedies import front_table, proof_table, summary
from tflite_qdebug.reports.remedy_charts import pareto_front
from tflite_qdebug.wording import byte_size, number

_COUNT = 5


@card_of.register
def _(recipe: Recipe) -> Card:
    """What is done to a float model."""
    facts: list[Fact] = []
    if recipe.float_nodes:
        facts.append(("left float", ", ".join(recipe.float_nodes)))
    if recipe.int16_nodes:
        facts.append(("in 16 bits", ", ".join(recipe.int16_nodes)))
    if recipe.int8_weights:
        facts.append(("weights of nodes left float", "int8 in the file"))
    if recipe.trained:
        facts.append(("trained", "quantization-aware"))
    return Card("Recipe", "", (recipe.in_words(),), None, facts, more="tflite_qdebug.apply_recipe(...) makes it again")


@card_of.register
def _(candidate: Candidate) -> Card:
    """A model that a search made."""
    facts = [
        ("size", byte_size(candidate.size)),
        ("operators in float", f"{candidate.float_operators} of {candidate.operators}"),
    ]
    facts += [(name, number(found.value)) for name, found in candidate.metrics.items()]
    return Card("Candidate", candidate.kind, (candidate.name,), candidate.met, facts)


@card_of.register
def _(outcome: Outcome) -> Card:
    """What a search found: what was asked for, what was reached, what it costs, what is proved."""
    asked, *rest = summary(outcome).splitlines()
    reached, *rest = rest or [asked]
    tables = [
        *table("proof", proof_table(outcome)),
        *table("the front: none is better at the same size", front_table(outcome), folded=True),
    ]
    drawn = len([candidate for candidate in outcome.candidates if candidate.kind != "float"]) > 1
    charts = (lambda: pareto_front(outcome),) if drawn else ()
    subtitle = f"{counted(len(outcome.candidates), 'candidate')}, target {outcome.target}"
    return Card(
        "Outcome of a search for remedies",
        subtitle,
        (reached, asked, *rest),
        outcome.met,
        (),
        tables,
        charts,
        (),
        outcome.notes,
    )


@card_of.register
def _(fixed: Fixed) -> Card:
    """What a search hands back: its outcome, and the model."""
    card = card_of(fixed.outcome)
    sizes = [("float", fixed.float_model), ("int8", fixed.int8_model), ("fixed", fixed.data)]
    facts = [(f"size of {name}", byte_size(len(data))) for name, data in sizes]
    more = "fixed.data is the .tflite; fixed.recipe makes it again, fixed.outcome has all candidates"
    return dataclasses.replace(card, title="Fixed", facts=facts, more=more)


@card_of.register
def _(result: QatResult) -> Card:
    """A model trained quantization-aware: how training went."""
    layers = len(result.annotation.layers)
    subtitle = f"{result.model.name}, {counted(layers, 'layer')} trained, {counted(len(result.history), 'epoch')}"
    keys = list(result.history[0]) if result.history else []
    rows = [[number(epoch[key]) if key != "epoch" else str(int(epoch[key])) for key in keys] for epoch in result.history]
    lead = []
    if result.history and "loss" in keys:
        first, last = result.history[0], result.history[-1]
        lead = [f"The loss went from {number(first['loss'])} to {number(last['loss'])}."]
    skipped = [f"{name}: {why}" for name, why in result.annotation.skipped.items()]
    facts = [("not trained", "; ".join(skipped))] if skipped else []
    return Card("QatResult", subtitle, lead, None, facts, table("", (keys, rows)), notes=result.notes,
                more="result.convert(representative_dataset) makes the quantized model")  # fmt: skip


@card_of.register
def _(comparison: QatComparison) -> Card:
    """Quantization-aware training against post-training quantization."""
    header, rows = comparison.table()
    # By position: several operators may come from one Keras layer, and bear its name.
    worst = [rows[comparison.layers.index(row)] for row in comparison.worst(_COUNT)]
    tables = [
        *table("accuracy and size", comparison.evaluation.table()),
        *table("the worst layers", (header, worst), without=("QAT rounded SQNR dB",)),
    ]
    subtitle = f"{counted(len(comparison.layers), 'layer')}, {counted(comparison.evaluation.samples, 'sample')}"
    return Card("QatComparison", subtitle, (comparison.verdict(),), None, (), tables, notes=comparison.notes,
                more="comparison.models['qat'].data is the .tflite; comparison.runs has the error of each layer")  # fmt: skip
