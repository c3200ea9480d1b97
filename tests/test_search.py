"""The search for remedies: what it finds, what it leaves out, that it keeps what it has, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

pytest.importorskip("tensorflow")

import faulty_models
import planting

from tflite_qdebug import apply_recipe, example
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import DatasetError, MetricError, OptionError, OutputError, QDebugError
from tflite_qdebug.findings import _load_part
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import Candidate, Outcome, Recipe
from tflite_qdebug.remedies import ranking, search, spending, workshop
from tflite_qdebug.remedies.bias_correction import CorrectedBiases
from tflite_qdebug.remedies.cost import described, edgetpu_operators, float_islands
from tflite_qdebug.remedies.handout import read_recipe
from tflite_qdebug.remedies.scoring import Scorer
from tflite_qdebug.remedies.search import Fixed, fix

BUILTIN = Backend(kernels="builtin", workers=1, isolate=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples and models than a user's search takes."""
    monkeypatch.setattr(spending, "_COUNTS", (1, 2, 4))
    monkeypatch.setattr(ranking, "_SAMPLES", 8)
    monkeypatch.setattr(search, "_TUNED_SLOTS", 3)
    monkeypatch.setattr(search, "_ROUNDS", 1)
    monkeypatch.setattr(search, "_TUNING_SAMPLES", 6)
    monkeypatch.setattr(workshop, "_ROUNDED_SAMPLES", 12)
    monkeypatch.setattr(workshop, "_CORRECTED_SAMPLES", 12)
    monkeypatch.setattr(search, "latency", lambda *arguments: 1.0)


@pytest.fixture(scope="module")
def pair() -> faulty_models.Pair:
    return faulty_models.sound()


def images(seed: int, count: int = 12) -> list[list[np.ndarray]]:
    return faulty_models.images(count, seed)


def fixed(pair: faulty_models.Pair, target: str, **options: Any) -> Fixed:
    return fix(
        pair.floating,
        target,
        images(1, 24),
        options.pop("debug", images(2)),
        backend=options.pop("backend", BUILTIN),
        progress=False,
        **options,
    )


def of_example(target: str, **options: Any) -> Fixed:
    return fix(
        example.MODEL_PATH,
        target,
        example.representative_dataset,
        example.labelled_debug_dataset,
        evaluation_dataset=example.evaluation_dataset,
        limit=40,
        backend=BUILTIN,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fixed, Path]:
    """The built-in example, whose int8 form has lost a quarter of its accuracy to channels of very uneven size."""
    folder = tmp_path_factory.mktemp("search")
    return of_example("accuracy >= float - 1%", folder=folder), folder


def test_the_example_is_mended_without_spending(mended: tuple[Fixed, Path]) -> None:
    outcome = mended[0].outcome
    plain, best = outcome.candidates[1], outcome.candidates[outcome.best]
    assert plain.metrics["top_1"].value < 0.9
    assert not plain.met
    assert best.met
    assert outcome.stopped == "target met"
    assert best.float_operators == 0
    assert best.recipe.equalized
    assert best.size == len(mended[0].data)
    assert outcome.goals["top_1"] == pytest.approx(outcome.candidates[0].metrics["top_1"].value - 0.01)


def test_the_proof_is_of_other_samples(mended: tuple[Fixed, Path]) -> None:
    floats, plain, best = mended[0].outcome.proof
    images, labels = example.load_split("evaluation")
    counts = [0, 0, 0]
    data = (mended[0].float_model, mended[0].int8_model, mended[0].data)
    for image, label in zip(images[:40], labels[:40], strict=True):
        for position, model in enumerate(data):
            counts[position] += int(models.outputs(model, [image[None]], "builtin")[0].argmax() == label)
    assert [one.metrics["top_1"].value for one in (floats, plain, best)] == [count / 40 for count in counts]
    assert mended[0].outcome.proof_samples == 40
    assert (floats.kind, plain.kind) == ("float", "int8")


def test_everything_is_kept(mended: tuple[Fixed, Path]) -> None:
    found, folder = mended
    assert (folder / "fix" / "fixed.tflite").read_bytes() == found.data
    assert read_recipe(folder / "fix" / "recipe.json") == found.recipe
    kept = _load_part(folder / "fix" / "fix.json", "fix")
    assert isinstance(kept, Outcome)
    assert kept.stopped == "target met"
    assert [one.sha256 for one in kept.candidates] == [one.sha256 for one in found.outcome.candidates]
    assert kept.proof_samples == 40


def test_the_recipe_makes_the_same_bytes(mended: tuple[Fixed, Path]) -> None:
    found, folder = mended
    again = apply_recipe(
        example.MODEL_PATH,
        folder / "fix" / "recipe.json",
        example.representative_dataset,
        limit=40,
        backend=BUILTIN,
        progress=False,
    )
    assert again == found.data


def test_the_same_search_gives_the_same(mended: tuple[Fixed, Path]) -> None:
    again = of_example("accuracy >= float - 1%")
    assert again.data == mended[0].data
    assert [one.sha256 for one in again.outcome.candidates] == [one.sha256 for one in mended[0].outcome.candidates]


def test_what_was_measured_is_not_measured_again(mended: tuple[Fixed, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    true = Scorer.measure

    def measure(self: Scorer, given: Mapping[str, bytes]) -> Any:
        measured.extend(given)
        return true(self, given)

    monkeypatch.setattr(Scorer, "measure", measure)
    again = of_example("accuracy >= float - 1%", folder=mended[1])
    assert again.data == mended[0].data
    # Plain int8, for the float model's own metrics, and what is proved.
    assert sorted(measured) == ["fixed", "int8", "int8"]


def test_plain_is_handed_back_where_it_is_good_enough(pair: faulty_models.Pair) -> None:
    found = fixed(pair, "sqnr >= 10 dB")
    assert len(found.outcome.candidates) == 2
    assert found.outcome.best == 1
    assert found.data == found.int8_model
    assert found.outcome.stopped == "target met"


def planted(pair: faulty_models.Pair, kind: str = "swapped_channels") -> tuple[bytes, str]:
    """Returns the quantized model with one broken layer, and what that is called in the float model."""
    model = Model(pair.quantized)
    operator = planting.plantable(model)[2]
    name = model.main.tensors[operator.outputs[0]].name
    return planting.plant(model, kind, operator).data, name


def test_the_broken_node_alone_is_left_float(pair: faulty_models.Pair) -> None:
    broken, name = planted(pair)
    found = fixed(pair, "sqnr >= 38 dB", quantized_model=broken)
    assert found.outcome.candidates[1].metrics["sqnr_db"].value < 15.0
    assert found.outcome.candidates[found.outcome.best].met
    (left,) = found.recipe.float_nodes
    assert left == name
    assert found.outcome.candidates[found.outcome.best].float_operators == 1
    assert found.outcome.candidates[found.outcome.best].islands == 1


def test_nothing_is_spent_where_that_is_asked(pair: faulty_models.Pair) -> None:
    broken, _ = planted(pair)
    found = fixed(pair, "sqnr >= 60 dB", quantized_model=broken, spend="nothing", edgetpu=True)
    assert all(not one.recipe.float_nodes for one in found.outcome.candidates)
    assert all(one.float_operators == 0 for one in found.outcome.candidates[1:])
    assert found.outcome.stopped == "out of reach"
    assert found.outcome.upper_bounds
    assert found.outcome.candidates[1].edgetpu_operators is not None


def test_one_scale_for_all_channels_holds_for_all_candidates(pair: faulty_models.Pair) -> None:
    found = fixed(pair, "sqnr >= 80 dB", spend="nothing", per_channel=False)
    assert len(found.outcome.candidates) > 5
    assert not any(one.recipe.per_channel for one in found.outcome.candidates[1:])


def test_16_bits_are_spent(pair: faulty_models.Pair) -> None:
    # Nodes in 16 bits get weights of their own, so that the broken ones are gone.
    broken, _ = planted(pair)
    found = fixed(pair, "sqnr >= 38 dB", quantized_model=broken, spend="int16")
    assert found.outcome.candidates[found.outcome.best].met
    assert found.recipe.int16_nodes  # the broken one, or one whose readers it is among
    assert not found.recipe.float_nodes


def test_a_remedy_that_makes_it_worse_is_left_out(pair: faulty_models.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(float_model: Any, quantized_model: bytes, *arguments: Any, **options: Any) -> CorrectedBiases:
        broken, _ = planted(pair._replace(quantized=quantized_model))
        return CorrectedBiases(broken, (), {}, 0, ())

    monkeypatch.setattr(workshop, "correct_biases", spoiled)
    found = fixed(pair, "sqnr >= 60 dB", spend="nothing")
    tried = [one for one in found.outcome.candidates if one.recipe.biases_corrected and not one.recipe.rounded]
    assert tried
    assert all(one.metrics["sqnr_db"].value < found.outcome.candidates[1].metrics["sqnr_db"].value for one in tried)
    assert found.recipe.rounded or not found.recipe.biases_corrected
    best = found.outcome.candidates[found.outcome.best].metrics["sqnr_db"].value
    assert best >= found.outcome.candidates[1].metrics["sqnr_db"].value


def test_interrupted_it_hands_back_the_best_so_far(pair: faulty_models.Pair, tmp_path: Path) -> None:
    seen: list[Outcome] = []

    def updated(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 2:
            raise KeyboardInterrupt

    found = fixed(pair, "sqnr >= 60 dB", spend="nothing", folder=tmp_path, updated=updated)
    assert found.outcome.stopped == "interrupted"
    assert len(found.outcome.candidates) > 2
    assert (tmp_path / "fix" / "fixed.tflite").read_bytes() == found.data
    whole = fixed(pair, "sqnr >= 60 dB", spend="nothing", folder=tmp_path)
    alone = fixed(pair, "sqnr >= 60 dB", spend="nothing")
    assert whole.data == alone.data
    assert whole.outcome.stopped == "out of reach"


def test_out_of_time(pair: faulty_models.Pair) -> None:
    found = fixed(pair, "sqnr >= 60 dB, time <= 0.001 s")
    assert found.outcome.stopped == "time"
    assert found.data == found.int8_model


def test_budgets_bound_the_choice(pair: faulty_models.Pair) -> None:
    free = fixed(pair, "sqnr >= 60 dB", explore=True)
    assert free.outcome.candidates[free.outcome.best].float_operators > 0
    bound = fixed(pair, "sqnr >= 60 dB, float_operators <= 1", explore=True)
    best = bound.outcome.candidates[bound.outcome.best]
    assert best.float_operators <= 1
    within = [one for one in bound.outcome.candidates[1:] if one.float_operators <= 1]
    assert best.metrics["sqnr_db"].value == max(one.metrics["sqnr_db"].value for one in within)
    sizes = [one.size for one in free.outcome.candidates[1:]]
    limit = sorted(sizes)[0]
    small = fixed(pair, f"size <= {limit}B")
    assert small.outcome.candidates[small.outcome.best].size <= limit
    assert small.outcome.stopped == "all was tried"


def test_the_front_is_of_those_that_none_beats(pair: faulty_models.Pair) -> None:
    outcome = fixed(pair, "sqnr >= 60 dB", explore=True).outcome
    points = [(one.size, one.metrics["sqnr_db"].value) for one in outcome.candidates]
    for position in outcome.front:
        size, value = points[position]
        assert not any(a <= size and b > value for a, b in points[1:])
    for position in range(1, len(points)):
        if position not in outcome.front:
            assert any(a <= points[position][0] and b >= points[position][1] for a, b in (points[i] for i in outcome.front))


def test_without_labels_agreement_stands_for_accuracy() -> None:
    found = fix(
        example.MODEL_PATH,
        "accuracy >= float - 2%",
        example.representative_dataset,
        example.debug_dataset,
        limit=40,
        backend=BUILTIN,
        progress=False,
    )
    assert found.outcome.goals["agreement"] == pytest.approx(0.98)
    assert any("no labels" in note for note in found.outcome.notes)
    with pytest.raises(DatasetError, match="agreement >= 99%"):
        fix(example.MODEL_PATH, "accuracy >= 90%", example.representative_dataset, example.debug_dataset, backend=BUILTIN)


def test_representative_samples_may_have_labels() -> None:
    def labelled() -> Iterator[Any]:
        images, labels = example.load_split("representative")
        return (([image[None]], int(label)) for image, label in zip(images, labels, strict=True))

    options: dict[str, Any] = {"limit": 30, "backend": BUILTIN, "progress": False, "spend": "nothing"}
    found = fix(example.MODEL_PATH, "agreement >= 95%", labelled, example.debug_dataset, **options)
    plain = fix(example.MODEL_PATH, "agreement >= 95%", example.representative_dataset, example.debug_dataset, **options)
    assert found.data == plain.data


def failing(outputs: Any, label: Any) -> float:
    return 1.0 / (label - 3)


def no_data() -> Iterator[Any]:
    return iter(())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "acuracy >= 1"}, OptionError, "Did you mean 'accuracy'"),
        ({"target": "sqnr >= float"}, OptionError, "no model reaches or misses"),
        ({"target": "psnr >= 3"}, OptionError, "expected one of"),
        ({"spend": "money"}, OptionError, "float, int16, nothing"),
        ({"metrics": [failing], "target": "failing >= 3"}, MetricError, "failed on sample"),
        ({"representative_dataset": no_data}, DatasetError, "representative dataset"),
        ({"debug_dataset": iter([[np.zeros((1, 8, 8, 1), np.float32)]])}, DatasetError, "good for one pass"),
        ({"debug_dataset": [[np.zeros((1, 9, 9, 1), np.float32)]]}, DatasetError, "shape"),
    ],
)
def test_what_is_wrong_is_told(options: dict[str, Any], error: type[QDebugError], words: str) -> None:
    given: dict[str, Any] = {
        "float_model": example.MODEL_PATH,
        "target": "sqnr >= 3",
        "representative_dataset": example.representative_dataset,
        "debug_dataset": example.labelled_debug_dataset,
        "limit": 30,
        "backend": BUILTIN,
        "progress": False,
        **options,
    }
    with pytest.raises(error, match=words):
        fix(**given)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "fix").write_text("")
    with pytest.raises(OutputError):
        of_example("sqnr >= 3", folder=tmp_path)


def test_a_model_without_anything_to_quantize() -> None:
    import tensorflow as tf

    function = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((1, 4), tf.int32)])
    data = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()]).convert()
    samples = [[np.ones((1, 4), np.int32)]] * 3
    with pytest.raises(QDebugError) as raised:
        fix(data, "sqnr >= 3", samples, samples, backend=BUILTIN, progress=False)
    assert "quantiz" in str(raised.value) or "range" in str(raised.value)


# -- what a candidate costs --


def test_islands_are_counted() -> None:
    floats = models.float_model("mixed")
    everything = described(floats.data, Candidate("float", "float", Recipe(), 0, {}))
    assert everything.float_operators == everything.operators > 0
    assert everything.islands == 1
    calibrated = models.calibrated("mixed")
    convolutions = [floats.model.main.tensors[op.outputs[0]].name for op in floats.model.main.operators if op.name == "CONV_2D"]
    assert convolutions
    mixed = calibrated.quantize("int8", denylisted_nodes=convolutions)
    found = described(mixed.data, Candidate("mixed", "float nodes", Recipe(), 0, {}))
    assert found.float_operators == len(mixed.float_nodes)
    groups = float_islands(Model(mixed.data))
    assert sorted(index for group in groups for index in group) == sorted(
        op.index
        for op in Model(mixed.data).main.operators
        if op.name not in ("QUANTIZE", "DEQUANTIZE")
        and any(Model(mixed.data).main.tensors[index].is_float for index in op.outputs)
    )
    assert found.islands == len(groups)
    assert edgetpu_operators(calibrated.quantize("full_integer").data) is not None


def test_an_outcome_is_plain_data(mended: tuple[Fixed, Path]) -> None:
    fields = dataclasses.asdict(mended[0].outcome)
    assert json.loads(json.dumps(fields, default=str))["target"] == "top_1 >= float - 1%"
    assert math.isfinite(fields["seconds"])
    assert isinstance(fields["provenance"]["float_model_sha256"], str)
