"""The folder of a saved run: what is computed once, what is read again, what must be measured anew, and what cannot be."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest

from tflite_qdebug import example
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, OutputError
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.study import SETUP, Setup, Study, lasting
from tflite_qdebug.study import saved_run as study

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
#: The functions that measure, by the names under which the study calls them.
MEASURING = ("pair_error", "evaluate", "sensitivity", "accumulated_error", "leave_float", "profile_pair", "worst_samples")


@functools.cache
def calibrated() -> CalibratedModel:
    return load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset, limit=30, progress=False)


@functools.cache
def quantized(kind: str = "int8") -> bytes:
    made = calibrated() if kind in ("int8", "full_integer", "int16x8") else load_float_model(example.MODEL_PATH)
    return bytes(made.quantize(kind).data)


def unlabelled() -> Iterator[Any]:
    data = example.debug_dataset()
    return (next(data) for _ in range(5))


def labelled() -> Iterator[Any]:
    data = example.evaluation_dataset()
    return (next(data) for _ in range(6))


def made(
    folder: Path, quantized_model: Any = None, data: Any = labelled, floating: Any = example.MODEL_PATH, **options: Any
) -> Study:
    content = quantized() if quantized_model is None else quantized_model
    return Study(folder, floating, content, data, **{"backend": BACKEND, "progress": False, **options})


def reopened(folder: Path, **given: Any) -> Study:
    return Study.open(folder, **{"backend": BACKEND, "progress": False, "debug_dataset": labelled, **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    made(folder, evaluation_dataset=labelled, metrics=("top_1",)).all()
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each analysis measured, curve by curve."""
    counts: Counter[str] = Counter()

    def counting(name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name != "accumulated_error":
                counts[name] += 1
                return true(*arguments, **options)

            def finished(curve: Any) -> None:
                counts[name] += 1
                options_finished(curve)

            options_finished = options.pop("finished")
            return true(*arguments, finished=finished, **options)

        return call

    for name in MEASURING:
        monkeypatch.setattr(study, name, counting(name, getattr(study, name)))
    return counts


def everything(one: Study) -> dict[str, Any]:
    """Returns all that a study knows as plain data."""
    from tflite_qdebug.findings import _plain

    findings = one.findings
    parts = ("run", "graph", "scores", "curves", "steps", "profiles", "samples", "diagnosis", "sensitivity")
    return {name: _plain(getattr(findings, name)) for name in parts}


def close(one: Any, two: Any) -> bool:
    """True where plain data are equal but for lists in place of tuples, and the digits that a file leaves out."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[name], two[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-6) or (math.isnan(one) and math.isnan(two))
    return bool(one == two)


def test_everything_is_computed_once(tmp_path: Path, counted: Counter[str]) -> None:
    expected = dict.fromkeys(MEASURING, 1) | {"sensitivity": 3, "accumulated_error": 3}
    one = made(tmp_path, evaluation_dataset=labelled, metrics=("top_1",))
    one.all()
    assert counted == expected
    one.all()
    one.diagnosis()
    assert counted == expected
    again = reopened(tmp_path, evaluation_dataset=labelled)
    assert close(everything(again), everything(one))
    again.all()
    assert counted == expected
    assert not list(tmp_path.rglob("*partial*"))


def test_what_is_found_is_what_the_analyses_give(finished: Path) -> None:
    one = reopened(finished)
    floating, content = example.MODEL_PATH, quantized()
    direct = study.sensitivity(floating, content, labelled, backend=BACKEND, progress=False)
    assert one.sensitivity().errors.metric("mse").tolist() == direct.errors.metric("mse").tolist()
    (curve,) = study.accumulated_error(floating, content, labelled, quantized=["weights"], backend=BACKEND, progress=False)
    assert one.curves(["weights"])[0].run.statistics.sums.tolist() == curve.run.statistics.sums.tolist()
    order = [direct.nodes[position] for position in direct.order()]
    steps = study.leave_float(floating, content, labelled, order, backend=BACKEND, progress=False)
    assert one.steps().errors.metric("mse").tolist() == steps.errors.metric("mse").tolist()
    assert one.steps().met == steps.met
    scores = one.findings.scores
    assert scores is not None
    assert [score.name for score in scores.scores] == ["float", "quantized"]
    assert scores.samples == 6
    # The debug data has labels, so that the task metric is measured in sweeps and steps too.
    assert one.findings.sensitivity["node"].errors.task_metrics == ("top_1",)
    assert one.steps().errors.task_metrics == ("top_1",)


@pytest.mark.parametrize(
    ("ask", "measured"),
    [
        (lambda one: one.sensitivity(metric="cosine"), {}),
        (lambda one: one.sensitivity(nodes=[one.findings.run.layers[1].node]), {}),
        (lambda one: one.sensitivity(task_metrics=("top_1",), metric="top_1"), {}),
        (lambda one: one.sensitivity(task_metrics=("top_5",), metric="top_5"), {"sensitivity": 1}),
        (lambda one: one.sensitivity("float"), {"sensitivity": 1}),
        (lambda one: one.sensitivity(output_node=one.findings.run.layers[4].node), {"sensitivity": 1}),
        (lambda one: one.curves(["all"]), {}),
        (lambda one: one.curves(["all", one.findings.run.layers[1].node]), {"accumulated_error": 1}),
        (lambda one: one.curves([], [one.findings.run.layers[1].node]), {"accumulated_error": 1}),
        (lambda one: one.steps(threshold=27.0), {}),
        (lambda one: one.steps(threshold=5.0), {"leave_float": 1}),
        (lambda one: one.steps(metric="cosine"), {"leave_float": 1}),
        (lambda one: one.steps([one.findings.run.layers[1].node]), {"leave_float": 1}),
        (lambda one: one.samples(3), {}),
        (lambda one: one.samples(500), {}),
        (lambda one: one.samples(metric="mse"), {"worst_samples": 1}),
        (lambda one: one.profiles([one.findings.profiles[3].node]), {}),
        (lambda one: one.profiles(), {}),
        (lambda one: one.profiles(axis=0), {"profile_pair": 1}),
        (lambda one: one.scores(), {}),
        (lambda one: one.run_with_parts(), {}),
    ],
)
def test_what_is_known_is_read_and_what_is_not_is_measured(
    ask: Callable[[Study], Any], measured: dict[str, int], copied: Path, counted: Counter[str]
) -> None:
    one = reopened(copied, evaluation_dataset=labelled)
    ask(one)
    assert counted == measured


def test_what_is_read_is_cut_to_what_was_asked(finished: Path) -> None:
    one = reopened(finished)
    nodes = [layer.node for layer in one.findings.run.layers if layer.op_name == "CONV_2D"][:2]
    some = one.sensitivity(nodes=nodes, metric="mse")
    assert list(some.nodes) == nodes
    assert some.metric == "mse"
    whole = one.findings.sensitivity["node"]
    assert some.values("mse").tolist() == [whole.values("mse")[whole.nodes.index(node)] for node in nodes]
    assert len(one.samples(3).worst) == 3
    assert {profile.node for profile in one.profiles(nodes)} == set(nodes)
    shortened = f"{nodes[0][:25]}…{nodes[0][-8:]}"
    assert {profile.node for profile in one.profiles([shortened])} == {nodes[0]}
    assert list(one.sensitivity(nodes=[shortened]).nodes) == [nodes[0]]


def shifted() -> Iterator[Any]:
    return ((inputs, label) for inputs, label in list(labelled())[::-1])


@pytest.mark.parametrize(
    "given",
    [
        {"debug_dataset": shifted},
        {"debug_dataset": lambda: (([inputs[0] * 0.5], label) for inputs, label in labelled())},
        {"debug_dataset": lambda: list(labelled())[:4]},
        {"limit": 3},
        {"backend": BACKEND._replace(kernels="reference")},
    ],
)
def test_other_samples_and_kernels_are_measured_anew(given: dict[str, Any], copied: Path, counted: Counter[str]) -> None:
    one = reopened(copied, **given)
    one.sensitivity(nodes=None)
    one.curves(["all"])
    one.steps(most=1)
    one.samples()
    one.profiles()
    expected = {"sensitivity": 1, "accumulated_error": 1, "leave_float": 1, "worst_samples": 1, "profile_pair": 1}
    assert counted == expected
    one.sensitivity()
    one.samples()
    assert counted == expected


def test_two_lists_of_one_length_are_not_the_same(tmp_path: Path, counted: Counter[str]) -> None:
    first, second = list(labelled()), list(shifted())
    made(tmp_path, data=first).samples()
    made(tmp_path, data=second).samples()
    assert counted["worst_samples"] == 2
    made(tmp_path, data=second).samples()
    assert counted["worst_samples"] == 2


def sharpness(outputs: list[np.ndarray], label: int) -> float:
    return float(outputs[0].max())


def test_another_metric_of_the_same_name_is_measured_anew(copied: Path, counted: Counter[str]) -> None:
    own = sharpness

    def other(outputs: list[np.ndarray], label: int) -> float:
        return -float(outputs[0].min())

    other.__name__ = own.__name__
    one = reopened(copied)
    one.sensitivity(task_metrics=(own,), metric="sharpness")
    one.sensitivity(task_metrics=(own,), metric="sharpness")
    assert counted == {"sensitivity": 1}
    one.sensitivity(task_metrics=(other,), metric="sharpness")
    assert counted == {"sensitivity": 2}
    reopened(copied, label_offset=-1).sensitivity(task_metrics=(other,), metric="sharpness")
    assert counted == {"sensitivity": 3}


def test_scores_depend_on_metrics_labels_and_limit(copied: Path, counted: Counter[str]) -> None:
    given: dict[str, Any] = {"evaluation_dataset": labelled}
    assert reopened(copied, **given).scores() == reopened(copied, **given).scores()
    assert counted == {}
    again = reopened(copied, **given, metrics=("top_5", "top_1")).scores()
    assert again is not None
    assert again.metrics == ("top_5", "top_1")
    assert counted == {"evaluate": 1}
    limited = reopened(copied, **given, limit=2).scores()
    assert limited is not None
    assert limited.samples == 2
    assert counted == {"evaluate": 2}
    reopened(copied, evaluation_dataset=lambda: ((inputs, label + 1) for inputs, label in labelled()), label_offset=-1).scores()
    assert counted == {"evaluate": 3}
    assert reopened(copied).scores() is not None  # without evaluation data, what is known
    assert counted == {"evaluate": 3}


def test_other_models_in_the_folder_are_refused(finished: Path) -> None:
    with pytest.raises(
        ModelError, match=r"holds a run of another quantized model .*expected the same models, or another folder"
    ):
        made(finished, quantized("full_integer"))
    other = models.float_tflite("mixed")
    with pytest.raises(ModelError, match="holds a run of another float model"):
        Study(finished, other, quantized(), labelled, backend=BACKEND)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (SETUP, None, r"cannot read .*study\.json: No such file.*Make it anew with 'tflite-qdebug run"),
        (SETUP, "{", r"study\.json is broken"),
        (SETUP, "[]", r"study\.json is broken: it holds a list"),
        (SETUP, '{"format": "tflite_qdebug study"}', r"study\.json is broken"),
        (SETUP, '{"format": "something else", "format_version": 1}', r"of another format, expected 'tflite_qdebug study'"),
        (SETUP, '{"format": "tflite_qdebug study", "format_version": 2}', "of another format"),
        ("run.json", None, "there is no run in"),
        ("run.json", "{", r"run\.json"),
        ("float.tflite", None, r"float\.tflite"),
        ("quantized.tflite", None, r"quantized\.tflite"),
        ("quantized.tflite", "nonsense", r"quantized\.tflite"),
        ("samples.json", "{", r"samples\.json is not what an analysis wrote"),
        ("node_sensitivity/node.json", "[1]", r"node\.json is not what an analysis wrote"),
    ],
)
def test_what_is_missing_or_broken_is_told(name: str, content: str | None, words: str, copied: Path) -> None:
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        reopened(copied)


def test_unknown_fields_of_a_setup_are_told(copied: Path) -> None:
    fields = json.loads((copied / SETUP).read_text())
    (copied / SETUP).write_text(json.dumps({**fields, "colour": "red"}))
    with pytest.raises(ModelError, match=r"broken.*colour"):
        reopened(copied)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        made(tmp_path / "file" / "run")
    # One that cannot be written any more: what was there is as it was.
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(folder / "sensitivity_analysis")
    (folder / "sensitivity_analysis").write_text("")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(OutputError, match="sensitivity_analysis"):
        reopened(folder).steps()
    assert (folder / "run.json").read_bytes() == before
    assert len(Findings.load(folder).sensitivity) == 3


def test_a_study_writes_what_it_is_made_of(finished: Path) -> None:
    setup = Setup.load(finished)
    assert setup == Setup("float.tflite", "quantized.tflite", None, None, ("top_1",), 0, None, None, "auto", "builtin")
    assert (finished / "float.tflite").read_bytes() == example.float_model()
    assert (finished / "quantized.tflite").read_bytes() == quantized()


def test_data_that_was_an_object_is_asked_for_where_it_is_needed(copied: Path, counted: Counter[str]) -> None:
    one = Study.open(copied, backend=BACKEND, progress=False)
    assert one.diagnosis().suspects is not None  # which measures nothing
    with pytest.raises(OptionError, match=r"debug data was an object, or none; expected debug data \(--debug-data\)"):
        one.samples()
    assert counted == {}


def test_data_is_kept_as_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = np.concatenate([inputs[0] for inputs, _ in labelled()])
    (tmp_path / "there").mkdir()
    np.savez(tmp_path / "there" / "data.npz", **{Model(quantized()).input_specs()[0].name: arrays[:, None]})
    monkeypatch.chdir(tmp_path / "there")
    made(tmp_path / "run", data="data.npz")
    monkeypatch.chdir(tmp_path)
    assert len(Study.open(tmp_path / "run", backend=BACKEND).samples(2).worst) == 2
    (tmp_path / "photos").mkdir()
    assert lasting("images:photos?size=8x8") == f"images:{tmp_path / 'photos'}?size=8x8"
    assert [lasting(text) for text in ("example", "module:function", "tfds:mnist?split=test", None, labelled)] == [
        "example", "module:function", "tfds:mnist?split=test", None, None
    ]  # fmt: skip


def test_an_iterator_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="got an iterator as debug dataset, which is good for one pass"):
        made(tmp_path / "run", data=labelled())
    assert not (tmp_path / "run").exists()


def test_samples_need_no_labels(tmp_path: Path) -> None:
    one = made(tmp_path, data=unlabelled, metrics=("top_1",))
    one.sensitivity()
    with pytest.raises(DatasetError, match="has no label"):
        one.sensitivity(task_metrics=("top_1",))
    assert one.findings.sensitivity["node"].errors.task_metrics == ()
    assert one.samples(2).worst[0].label is None
    assert made(tmp_path / "labelled").samples(1).worst[0].label is not None


def test_unknown_nodes_and_metrics_are_refused_without_measuring(copied: Path, counted: Counter[str]) -> None:
    one = reopened(copied)
    with pytest.raises(OptionError, match=r"got metric 'sqnr', expected one of .*Did you mean 'sqnr_db'"):
        one.all(metric="sqnr")
    assert counted == {}
    for ask in (one.profiles, one.sensitivity, one.steps):
        with pytest.raises(OptionError, match="Did you mean 'digits_1/stem"):
            ask(nodes=["digits_1/stem_bn"])  # type: ignore[operator]
    with pytest.raises(OptionError, match="Did you mean 'digits_1/stem"):
        one.curves(["digits_1/stem_bn"])
    with pytest.raises(OptionError, match="Did you mean 'digits_1/stem"):
        one.sensitivity(output_node="digits_1/stem_bn")


def test_a_metric_that_does_not_apply_is_told_at_once(tmp_path: Path, counted: Counter[str]) -> None:
    data = models.samples("two_by_two", 3)
    content = models.calibrated("two_by_two").quantize("int8").data
    one = made(tmp_path, content, data, models.float_tflite("two_by_two"))
    one.sensitivity()
    with pytest.raises(OptionError, match="got metric 'kl', which does not apply to these outputs"):
        one.sensitivity(metric="kl")
    assert counted["sensitivity"] == 1


@pytest.mark.parametrize("metric", ["flips", "top_1"])
def test_all_may_be_ranked_by_what_single_samples_lack(metric: str, tmp_path: Path) -> None:
    findings = made(tmp_path, metrics=("top_1",)).all(metric=metric, threshold=1.0)
    assert findings.samples is not None
    assert findings.samples.metric == "sqnr_db"
    assert {found.metric for found in findings.sensitivity.values()} == {metric}
    assert findings.steps is not None
    assert findings.steps.metric == metric


def test_a_quantized_model_alone(tmp_path: Path) -> None:
    one = made(tmp_path, floating=None, evaluation_dataset=labelled)
    for ask in (one.sensitivity, one.curves, one.steps, one.samples):
        with pytest.raises(
            ModelError, match="the run has no float model, which this analysis needs; run again with --float MODEL"
        ):
            ask()  # type: ignore[operator]
    said: list[str] = []
    findings = one.all(say=said.append)
    assert findings.diagnosis is not None
    assert findings.profiles
    assert findings.scores is not None
    assert [score.name for score in findings.scores.scores] == ["quantized"]
    assert said == [
        "the error of each layer",
        "the graph",
        "float and quantized model on the evaluation data",
        "distributions and channels",
        "diagnosis",
    ]
    again = Study.open(tmp_path, debug_dataset=labelled, backend=BACKEND)
    assert again.pair.floating is None
    assert sum("without a float model" in note for note in again.all().run.notes) == 1


@pytest.mark.parametrize("kind", ["float16", "dynamic_range", "int16x8", "full_integer"])
def test_other_kinds(kind: str, tmp_path: Path) -> None:
    findings = made(tmp_path, quantized(kind), data=lambda: list(labelled())[:3]).all()
    assert findings.diagnosis is not None
    assert findings.profiles
    assert [curve.name for curve in findings.curves] == ["all", "weights", "activation"]
    activations_are_float = kind in ("float16", "dynamic_range")
    assert ("activation" in findings.sensitivity) is not activations_are_float
    assert {"node", "weights"} <= set(findings.sensitivity)
    said = [note for note in findings.run.notes if "sensitivity of mode activation" in note]
    assert len(said) == activations_are_float
    loaded = Findings.load(tmp_path)
    assert [note for note in loaded.run.notes if "sensitivity of mode activation" in note] == said
    assert isinstance(findings.sensitivity["node"].errors, OutputErrors)


def test_a_signature(tmp_path: Path) -> None:
    floating, content = control_flow_models.signatures(), control_flow_models.quantized("signatures")
    keys = ["both", "second"]
    assert set(keys) < {signature.key for signature in Model(content).signatures}
    for key in keys:
        pair_data = _of_signature(floating, key)
        options: dict[str, Any] = {"data": pair_data, "floating": floating, "signature": key}
        one = made(tmp_path / key, content, **options)
        findings = one.all()
        direct = pair_error(floating, content, pair_data, signature=key, backend=BACKEND, progress=False)
        assert findings.run.statistics.sums.tolist() == direct.statistics.sums.tolist()
        assert Setup.load(tmp_path / key).signature == key
        again = Study.open(tmp_path / key, debug_dataset=pair_data, backend=BACKEND, progress=False)
        assert again.sensitivity().nodes == findings.sensitivity["node"].nodes
    with pytest.raises(ModelError, match="another quantized model"):
        made(tmp_path / keys[0], content, **{**options, "signature": keys[1]})


def _of_signature(content: bytes, key: str) -> list[Any]:
    from tflite_qdebug.edit.subgraphs import selected_signature

    return control_flow_models.samples(selected_signature(Model(content), key), 3)


def test_a_model_without_sensitive_nodes_gets_the_rest(tmp_path: Path) -> None:
    floating, content = control_flow_models.variables(), control_flow_models.quantized("variables")
    one = made(tmp_path, content, control_flow_models.samples(Model(floating), 3), floating)
    with pytest.raises(ModelError, match="nothing that the outputs depend on is quantized"):
        one.sensitivity()
    findings = one.all()
    assert findings.sensitivity == {}
    assert findings.steps is None
    assert findings.diagnosis is not None
    assert findings.curves == ()
    assert sum("sensitivity of mode" in note for note in findings.run.notes) == 3
    assert sum("accumulated error: VAR_HANDLE" in note for note in findings.run.notes) == 1


def test_a_run_without_parts_gets_them(tmp_path: Path, counted: Counter[str]) -> None:
    made(tmp_path)
    data = [inputs for inputs, _ in labelled()]
    bare = pair_error(example.MODEL_PATH, quantized(), data, parts=0, backend=BACKEND, progress=False)
    assert not bare.parts
    bare.provenance["options"]["kind"] = "int8"
    bare.save(tmp_path / "run.json")
    counted.clear()
    one = reopened(tmp_path)
    run = one.run_with_parts()
    assert set(run.parts) >= {"weights", "output", "input", "own"}
    assert run.statistics.sums.tolist() == bare.statistics.sums.tolist()
    assert run.provenance["options"]["kind"] == "int8"  # it still is known how the model was made
    reopened(tmp_path).run_with_parts()
    assert counted == {"pair_error": 1}


def interrupting(after: int, seen: list[int]) -> Callable[[], Iterator[Any]]:
    def data() -> Iterator[Any]:
        for sample in labelled():
            if len(seen) >= after:
                raise KeyboardInterrupt
            seen.append(0)
            yield sample

    return data


def test_what_is_interrupted_goes_on_and_ends_the_same(finished: Path, tmp_path: Path) -> None:
    rounds, after = 0, 12
    while True:
        rounds += 1
        try:
            one = made(tmp_path, data=interrupting(after, []), evaluation_dataset=labelled, metrics=("top_1",))
            one.all()
            break
        except KeyboardInterrupt:
            after += 3  # a pass that is begun anew costs what it had cost
    assert rounds > 2
    found, expected = everything(one), everything(reopened(finished))
    for part in ("sensitivity", "curves", "steps", "samples"):
        assert _figures(found[part]) == _figures(expected[part])
    assert not list(tmp_path.rglob("*partial*"))


def _figures(of: Any) -> Any:
    """Returns plain data without what tells where and when it was measured."""
    if isinstance(of, dict):
        return {name: _figures(value) for name, value in of.items() if name not in ("provenance", "notes")}
    return [_figures(value) for value in of] if isinstance(of, (list, tuple)) else of
