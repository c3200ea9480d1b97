"""What to try: the estimated gains, against those worked out by hand from findings made up for it; and where they are shown."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path

import findings_by_hand as made
import numpy as np
import pytest

from tflite_qdebug.analyses.diagnosis import advise
from tflite_qdebug.analyses.diagnosis.advice import gain_db
from tflite_qdebug.findings import Advice, Findings, Sensitivity, Steps
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.record import Run
from tflite_qdebug.remedies.target import parse_target
from tflite_qdebug.reports.advice import advice_lines, gain_words
from tflite_qdebug.statistics import ErrorStatistics, Histogram

#: Of the layers of `run`, the squared errors are as 1 to 4 to 9 to 16, and their signals alike: these are their shares.
SHARES = np.array([1.0, 4.0, 9.0, 16.0]) / 30.0


def run(output_sqnr: float = 5.0) -> Run:
    """Returns a run whose layers use all their integers, and whose output is far from the float model's."""
    result = made.run(output_sqnr=output_sqnr)
    result.provenance["options"] = {"calibration_dataset": "two samples"}
    result.statistics.integer_range[:] = (-128, 127)
    return result


def decibels(share: float) -> float:
    return -10.0 * math.log10(1.0 - share)


def only(advice: tuple[Advice, ...], start: str) -> Advice:
    (found,) = [each for each in advice if each.words.startswith(start)]
    return found


def none(advice: tuple[Advice, ...], start: str) -> bool:
    return not [each for each in advice if each.words.startswith(start)]


# --------------------------------------------------------------------------------------------------------- nodes left float


def test_nodes_left_float_are_estimated_from_the_layers_alone() -> None:
    found = only(advise(Findings(run())), "Leave 2 nodes float")
    # The two worst make 25 of 30, which is the first time that it is 80 %.
    assert found.nodes == ("last", made.NODES[2])
    assert found.gain == pytest.approx(decibels(25 / 30))
    assert found.unit == "dB SQNR"
    assert not found.measured
    assert "the layers' own errors alone" in found.how
    words = shlex.split(found.command)
    assert words[:3] == ["tflite-qdebug", "convert", "RUN"]
    assert words[3:] == ["--denylisted-node", "last", "--denylisted-node", made.NODES[2]]  # whose name has quotes and spaces


def test_what_calibrated_a_model_that_was_quantized_elsewhere_has_to_be_said() -> None:
    result = run()
    del result.provenance["options"]
    commands = [shlex.split(advice.command) for advice in advise(Findings(result))]
    asking = [words for words in commands if words[1] in ("convert", "fix")]
    assert {words[1] for words in asking} == {"convert", "fix"}
    assert all(words[-2:] == ["--representative-data", "DATA"] for words in asking)


def test_nodes_left_float_are_estimated_from_their_sensitivity() -> None:
    found = only(advise(Findings(run(), sensitivity={"node": made.sensitivity()})), "Leave 2 nodes float")
    energies = np.array([0.01, 0.04, 0.07, 0.1]) ** 2
    assert found.gain == pytest.approx(decibels((energies[3] + energies[2]) / energies.sum()), rel=1e-6)
    assert "measured on 6 samples" in found.how
    assert found.nodes == ("last", made.NODES[2])


def test_of_several_outputs_the_one_that_errs_most_counts() -> None:
    errors = OutputErrors(list(made.NODES), ("good", "bad"))
    reference = np.ones((1, 4), dtype=np.float32)
    from tflite_qdebug.output_error import measure_output

    for index in range(3):
        sizes = [(0.01, 0.1), (0.04, 0.2), (0.02, 0.5), (0.09, 0.1)]
        errors.add(index, np.array([[measure_output(reference + size, reference) for size in pair] for pair in sizes]))
    sensitivity = dataclasses.replace(made.sensitivity(), errors=errors)
    found = only(advise(Findings(run(), sensitivity={"node": sensitivity})), "Leave 1 node float")
    assert found.nodes == (made.NODES[2],)
    assert found.gain == pytest.approx(decibels(0.25 / (0.25 + 0.04 + 0.01 + 0.01)), rel=1e-5)


def test_what_makes_the_output_nan_comes_first_and_has_no_gain() -> None:
    sensitivity = made.sensitivity()
    sensitivity.errors.sums[1, 0, 1] = np.nan
    found = advise(Findings(run(), sensitivity={"node": sensitivity}))[0]
    assert found.nodes == (made.NODES[1],)
    assert math.isnan(found.gain)
    assert "NaN or infinite" in found.how


def test_measured_steps_are_told_as_they_are() -> None:
    steps = made.findings().steps
    assert steps is not None
    found = only(advise(Findings(run(), steps=steps)), "Leave the 2 most sensitive nodes float")
    assert found.measured
    assert found.gain == pytest.approx(20 * math.log10(0.3 / 0.1), rel=1e-5)
    assert "sqnr_db goes from 10.5 to 20" in found.how
    assert "200 % more weights" in found.how  # 30 bytes of weights, and 10 before
    assert found.nodes == ("last", "first/Relu")


def test_measured_steps_tell_the_metric_of_the_user_before_the_outputs() -> None:
    errors = made.output_errors(["0", "1", "2"], sizes=[0.3, 0.2, 0.1], task=True)
    errors.task_sums[:, 0] = np.array([0.5, 0.75, 0.7]) * errors.samples
    steps = Steps(("last", "first/Relu"), ("ADD", "ADD"), errors, "sqnr_db", 13.0, 1)
    found = only(advise(Findings(run(), steps=steps)), "Leave the most sensitive node float: last")
    assert (found.gain, found.unit) == (pytest.approx(25.0), "points of score")
    assert "score goes from 50 % to 75 %" in found.how


def test_steps_that_bring_nothing_are_no_advice() -> None:
    errors = made.output_errors(["0", "1"], sizes=[0.1, 0.3])
    steps = Steps(("last",), ("ADD",), errors, "sqnr_db", 50.0, None)
    assert none(advise(Findings(run(), steps=steps)), "Leave")


# ------------------------------------------------------------------------------------------------------------ what stays int8


def test_ranges_from_the_integers_that_no_value_reached() -> None:
    result = run()
    result.statistics.integer_range[3] = (-1, 126)  # the zero point is -1: 127 of 255 steps
    found = only(advise(Findings(result)), "Choose the ranges")
    left = (127 / 255) ** 2  # half as wide, half the step, a quarter of the squared error
    assert found.gain == pytest.approx(decibels(SHARES[3] * (1 - left)))
    assert "49.8 % of its integers used" in found.words
    assert " fix RUN --target " in found.command
    assert none(advise(Findings(run())), "Choose the ranges")  # all integers used: nothing to gain


def test_ranges_from_the_histogram_of_the_values() -> None:
    values = Histogram(2048)
    values.add(np.linspace(-1.0, 1.0, 20001, dtype=np.float32))
    profile = dataclasses.replace(made.profile("last"), values=values, low=-4.0, high=4.0)
    found = only(advise(Findings(run(), profiles=(profile,))), "Choose the ranges")
    # A quarter of the range holds all values: a sixteenth of the squared error; what little may be clipped gains little more.
    assert found.gain == pytest.approx(decibels(SHARES[3] * (1 - 1 / 16)), rel=0.02)
    assert "instead of -4 to 4" in found.words
    # With a range that fits there is nothing to gain.
    assert none(advise(Findings(run(), profiles=(dataclasses.replace(profile, low=-1.0, high=1.0),))), "Choose the ranges")


def test_a_rare_value_is_clipped_where_that_costs_less_than_it_stretches_the_range() -> None:
    def advised(outlier: float, count: int = 1_000_000) -> tuple[Advice, ...]:
        values = Histogram(2048)
        values.add(np.linspace(-1.0, 1.0, count, dtype=np.float32))
        values.add(np.array([outlier], dtype=np.float32))
        profile = dataclasses.replace(made.profile("last"), values=values, low=-1.0, high=outlier)
        return advise(Findings(run(), profiles=(profile,)))

    kept = (5.0 / 255) ** 2 / 12
    clipped = (2.0 / 255) ** 2 / 12 + (4.0 - 1.0) ** 2 / 1_000_001
    found = only(advised(4.0), "Choose the ranges")
    assert found.gain == pytest.approx(decibels(SHARES[3] * (1 - clipped / kept)), rel=0.02)
    # Of a thousand values it costs more: 0.22 against 0.0004.
    assert none(advised(16.0, 1_000), "Choose the ranges")


def test_biases_from_the_mean_error() -> None:
    result = run()
    result.statistics.sums[3, 1] = 0.2 * result.statistics.sums[3, 0]  # the mean error; the root mean square is 0.4
    found = only(advise(Findings(result)), "Correct the biases")
    assert found.gain == pytest.approx(decibels(SHARES[3] * 0.25))
    assert "25 % of its squared error is a shift" in found.words
    assert none(advise(Findings(run())), "Correct the biases")
    shifted = run()
    shifted.statistics.sums[2, 1] = 0.3 * shifted.statistics.sums[2, 0]
    assert none(advise(Findings(shifted)), "Correct the biases")  # an ADD has none


def test_biases_from_the_means_of_channels_which_may_cancel() -> None:
    result = run()
    result.parts = {"own": result.statistics, "accumulated": result.statistics}
    profile = made.profile("last")
    assert profile.channels is not None
    shift = np.array([0.2, -0.2, 0.2, -0.2, 0.0])
    moved = dataclasses.replace(profile.channels, mean=profile.channels.mean + shift)
    profile = dataclasses.replace(profile, quantized_channels=moved)
    found = only(advise(Findings(result, profiles=(profile,))), "Correct the biases")
    assert found.gain == pytest.approx(decibels(SHARES[3] * (4 / 5 * 0.04) / 0.16))


def whole(**sqnr_db: float) -> dict[str, ErrorStatistics]:
    return {name: made.statistics([2.0 / 10 ** (value / 20)]) for name, value in sqnr_db.items()}


def test_weights_and_sixteen_bits_from_what_was_measured_with_one_of_them_float() -> None:
    result = run()
    result.whole = whole(quantized=5.0, weights=9.0, activations=12.0)
    advice = advise(Findings(result))
    weights, sixteen = only(advice, "Round the weights"), only(advice, "Give activations 16 bits")
    assert (weights.gain, weights.at_most, weights.measured) == (pytest.approx(7.0), True, True)
    assert (sixteen.gain, sixteen.at_most, sixteen.measured) == (pytest.approx(4.0), True, True)
    assert "5 dB now, 12 dB with float weights" in weights.how
    assert shlex.split(sixteen.command)[-2:] == ["--kind", "int16x8"]


def test_weights_from_their_part_of_the_error_where_whole_models_were_not_compared() -> None:
    result = run()
    parts = {"own": result.statistics, "weights": made.statistics([0.0, 0.0, 0.0, 0.3]), "output": made.statistics([0.1] * 4)}
    result.parts, result.whole, result.outputs = parts, {}, []
    found = only(advise(Findings(result, samples=made.samples(5.0))), "Round the weights")
    assert found.gain == pytest.approx(decibels(SHARES[3] * 0.9))  # 0.09 of 0.09 + 0.01
    assert found.at_most


def test_ranges_act_on_the_part_of_the_output_alone() -> None:
    result = run()
    result.statistics.integer_range[3] = (-1, 126)
    weights, output = made.statistics([0.1, 0.1, 0.1, 0.3]), made.statistics([0.1] * 4)
    result.parts = {"own": result.statistics, "weights": weights, "output": output}
    assert none(advise(Findings(result)), "Choose the ranges")  # a tenth of the layer's: 0.18 dB are not worth it
    result.parts = {"own": result.statistics, "weights": output, "output": weights}
    found = only(advise(Findings(result)), "Choose the ranges")
    assert found.gain == pytest.approx(decibels(SHARES[3] * 0.9 * (1 - (127 / 255) ** 2)))


# -------------------------------------------------------------------------------------------------------------- all of it


def test_where_nothing_is_wrong_there_is_nothing_to_try() -> None:
    assert advise(Findings(run(40.0), diagnosis=made.diagnosis())) == ()
    assert advise(Findings(run(40.0), diagnosis=made.diagnosis("last"))) != ()  # broken, though the output does not show it
    assert advise(Findings(run(40.0), scores=made.scores(0.9, 0.5), diagnosis=made.diagnosis("last"))) != ()


def test_where_nothing_tells_of_a_loss_it_says_so() -> None:
    result = run()
    result.whole, result.outputs = {}, []
    found = advise(Findings(result), "my run")
    assert found[-1].words.startswith("Measure what the model loses")
    assert found[-1].command == "tflite-qdebug runall 'my run'"
    assert none(advise(Findings(run())), "Measure")


def test_what_brings_most_comes_first_and_bounds_last() -> None:
    result = run()
    result.whole = whole(quantized=5.0, weights=6.0, activations=30.0)
    result.statistics.integer_range[3] = (-1, 126)
    found = advise(Findings(result))
    assert [each.words.split()[0] for each in found] == ["Leave", "Choose", "Round", "Give"]
    assert not any(each.at_most for each in found[:2])


def test_without_a_float_model_there_is_one_thing_to_do() -> None:
    result = run()
    result.layers = [dataclasses.replace(layer, reference="dequantized weights") for layer in result.layers]
    (found,) = advise(Findings(result))
    assert "float model" in found.words
    assert math.isnan(found.gain)


def test_the_targets_mean_something_to_the_search() -> None:
    def target_of(findings: Findings) -> str:
        command = next(each.command for each in advise(findings) if " fix " in each.command)
        return str(parse_target(shlex.split(command)[-1], ["loss"]))

    assert target_of(Findings(run())) == "sqnr_db >= 20 dB"
    assert target_of(Findings(run(), scores=made.scores())) == "top_1 >= float - 0.5%"
    small = made.sensitivity()
    small = dataclasses.replace(small, metric="loss", large_is_bad=True, errors=_renamed(small))
    scores = made.scores(1.0, 2.0, "loss")
    assert target_of(Findings(run(), scores=scores, sensitivity={"node": small})).startswith("loss <= float")


def _renamed(found: Sensitivity) -> OutputErrors:
    fields = found.errors.to_dict()
    return OutputErrors.from_dict({**fields, "task_metrics": ["loss"]})


def test_kinds_without_a_denylist_are_not_told_to_use_one() -> None:
    result = run()
    result.provenance["options"] = {"kind": "int16x8"}
    found = only(advise(Findings(result)), "Leave")
    assert " fix RUN" in found.command
    result.whole = whole(quantized=5.0, weights=9.0, activations=12.0)
    assert none(advise(Findings(result)), "Give activations 16 bits")  # they have them


def test_a_run_of_nothing_and_one_of_nan_are_no_crash() -> None:
    empty = Run("per_layer", [], made.statistics([]))
    assert all(math.isnan(each.gain) for each in advise(Findings(empty)))
    broken = run()
    broken.statistics.sums[:] = np.nan
    assert advise(Findings(broken))
    accumulated = Run("whole_model", run().layers, run().statistics)
    assert advise(Findings(accumulated))


def test_gains_in_decibels() -> None:
    assert gain_db(0.0) == 0.0
    assert gain_db(0.9) == pytest.approx(10.0)
    assert gain_db(1.0) == math.inf


# ----------------------------------------------------------------------------------------------------------------- as text


def test_lines_fit_but_for_commands() -> None:
    long = Advice("Try " + "this and that " * 20, "tflite-qdebug fix " + "x" * 200, 1.25, "dB SQNR", "estimated " * 20)
    lines = advice_lines((long, Advice("Search.", "fix")), 60)
    assert lines[0] == "what to try (gains of several remedies do not add up):"
    assert [line for line in lines if len(line) > 60] == ["   " + long.command]
    assert "Expected +1.2 dB SQNR." in " ".join(lines).replace("   ", "")
    assert lines[-2:] == ["2. Search.", "   fix"]
    assert advice_lines(()) == []


def test_gains_in_words() -> None:
    assert gain_words(Advice("a", "b")) == ""
    assert gain_words(Advice("a", "b", 3.0, "points of top_1", measured=True)) == "measured +3.0 points of top_1"
    assert gain_words(Advice("a", "b", 3.0, "dB SQNR", measured=True, at_most=True)) == "at most +3.0 dB SQNR"


def test_samples_that_are_scaled_otherwise_are_told_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    from tflite_qdebug import example, load_float_model, pair_error

    float_model = load_float_model(example.MODEL_PATH)
    quantized = float_model.calibrate(example.representative_dataset).quantize("int8")
    images = [np.asarray(sample[0]) for sample, _ in zip(example.debug_dataset(), range(8), strict=False)]
    assert len(advise(Findings(pair_error(float_model, quantized, [[image] for image in images], parts=True)))) > 1
    (found,) = advise(Findings(pair_error(float_model, quantized, [[image * 255] for image in images], parts=True)))
    assert found.words.startswith("Look at the samples first")
    # The images reach from 0 to 1, as does the range of the input; here they reach 254 beyond.
    assert "0 to 1, and reach up to 254 beyond" in found.words
    assert found.command == ""


def test_what_is_advised_can_be_typed_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorflow")
    from tflite_qdebug import example, load_float_model
    from tflite_qdebug.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["run", "example", "--limit", "8", "--no-progress", "--output", "run"]) == 0
    (advice,) = [one for one in Findings.load(tmp_path / "run").advice if " convert " in one.command]
    assert main([*shlex.split(advice.command)[1:], "--no-progress"]) == 0
    calibrated = load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset, limit=8)
    expected = calibrated.quantize("int8", denylisted_nodes=advice.nodes).data
    assert (tmp_path / "run_int8.tflite").read_bytes() == expected
    assert main(["convert", "run", "--edgetpu", "--output", "device", "--no-progress"]) == 0
    assert (tmp_path / "device" / "run_for_edgetpu.tflite").exists()
    pair = ["--float", "run/float.tflite", "--quantized", "run/int8.tflite", "--debug-data", "example"]
    assert main(["run", *pair, "--limit", "2", "--no-progress", "--output", "pair"]) == 0
    capsys.readouterr()
    assert main(["convert", "pair"]) == 2
    assert "does not tell its representative data; give --representative-data" in capsys.readouterr().err


def test_the_command_line_ends_with_what_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow")
    from tflite_qdebug.cli import main

    words = ["run", "example", "--limit", "8", "--no-progress"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "what to try" in printed
    assert printed.index("what to try") > printed.index("worst layers")
    saved = Findings.load(tmp_path / "run").advice
    assert saved
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "What to try" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["words"] for each in result["advice"]] == [each.words for each in saved]
