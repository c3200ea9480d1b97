"""The verbs that explain a saved run: sensitivity, accumulated error, distributions, channels, samples, diagnosis, and all."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.diagnosis import advise
from tflite_qdebug.analyses.diagnosis import diagnose as diagnosed
from tflite_qdebug.analyses.evaluation import task_functions
from tflite_qdebug.cli import runs
from tflite_qdebug.cli.options import QUANTIZING, backend_of
from tflite_qdebug.cli.output import Screen, terminal_width
from tflite_qdebug.cli.verbs import progress
from tflite_qdebug.edgetpu.prices import FloatPrice, float_prices, operators_called, priced_advice, priced_diagnosis
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.findings import Findings, Profile, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import METRICS
from tflite_qdebug.reports.advice import advice_lines
from tflite_qdebug.reports.charts import notable_nodes, save_charts, suspected_nodes
from tflite_qdebug.reports.diagnosis import diagnosis_lines
from tflite_qdebug.reports.edgetpu import price_columns, with_prices
from tflite_qdebug.reports.glossary import MODES, label
from tflite_qdebug.reports.html import write_report
from tflite_qdebug.reports.profiles import channel_table, profile_table, write_channel_csv, write_profile_csv
from tflite_qdebug.reports.samples import flip_sentence, sample_table, write_samples_csv
from tflite_qdebug.reports.sensitivity import (
    CURVE_METRICS,
    curve_metric,
    curve_table,
    sensitivity_table,
    steps_table,
    write_curves_csv,
    write_sensitivity_csv,
    write_steps_csv,
)
from tflite_qdebug.reports.tables import write_csv
from tflite_qdebug.study import SETUP, Setup, Study

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def _study(arguments: argparse.Namespace) -> Study:
    """Opens the run that the command line names."""
    datasets = {"debug": example.debug_dataset, "evaluation": example.evaluation_dataset}
    given = {
        f"{which}_dataset": datasets[which] if getattr(arguments, f"{which}_data") == "example" else text
        for which in datasets
        if (text := getattr(arguments, f"{which}_data", None)) is not None
    }
    return Study.open(
        arguments.run,
        **given,
        metrics=tuple(arguments.metric) if getattr(arguments, "metric", None) else None,
        label_offset=arguments.label_offset or None,
        limit=arguments.limit,
        memory=memory_of(arguments.memory),
        backend=backend_of(arguments),
        progress=progress(arguments),
    )


def memory_of(text: str | None) -> int | None:
    """Returns the bytes that ``800M`` or ``2GB`` stand for.

    Raises:
        OptionError: For a text that stands for none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)b?\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise OptionError(f"got --memory {text!r}, expected a size such as 800M or 2GB")
    return int(float(found[1]) * _UNITS[found[2]])


def sensitivity(arguments: argparse.Namespace, screen: Screen) -> None:
    """Measures one node quantized, or left float, at a time."""
    study = _study(arguments)
    results = {}
    for mode in dict.fromkeys(arguments.mode or ["node"]):
        found = study.sensitivity(
            mode,
            nodes=arguments.node or None,
            output_node=arguments.output_node,
            metric=arguments.rank_by,
            task_metrics=_task_metrics(arguments, study),
            large_is_bad=arguments.lower_is_better or None,
        )
        words = MODES[mode] + ("; the best first" if mode == "float" else "")
        table = sensitivity_table(found, arguments.count)
        prices = _prices(arguments, study, [[found.nodes[position]] for position in found.order()])
        table = with_prices(*table, prices[: arguments.count]) if prices else table
        screen.table(*table, title=f"{words}; {_ran(found.provenance)}")
        screen.notes(found.notes)
        some = ".some" if arguments.node or arguments.output_node else ""
        path = study.folder / "node_sensitivity" / f"{mode}{some}.csv"
        write_sensitivity_csv(found, path, price_columns(prices) if prices else None)
        screen.say(f"all nodes: {path}")
        results[mode] = sensitivity_data(found)
        for entry, price in zip(results[mode].values(), prices, strict=False):
            entry["edgetpu"] = price.to_dict()
    screen.say("the columns with 90 %: between which values, and ranks, 90 % of random choices of the samples lie")
    screen.result(results)


def _prices(arguments: argparse.Namespace, study: Study, groups: Sequence[Sequence[str]]) -> list[FloatPrice]:
    """Returns what each group of nodes takes off the Edge TPU where it is left float; nothing where that was not asked."""
    if not arguments.edgetpu:
        return []
    model = study.pair.quantized
    return float_prices(model, [operators_called(study.findings, model, nodes) for nodes in groups])


def sensitivity_data(found: Any) -> dict[str, dict[str, Any]]:
    """Returns ``{node: {metric: value}}``, the most sensitive first; of several outputs the worst one's value."""
    values = {name: found.errors.worst(name, found.large_is_bad) for name in found.errors.names()}
    result = {}
    for position in found.order():
        entry: dict[str, Any] = {name: float(column[position]) for name, column in values.items()}
        if found.thresholds:
            entry.update(threshold=found.thresholds[position], bits=found.bits[position])
        result[found.nodes[position]] = entry
    return result


def _task_metrics(arguments: argparse.Namespace, study: Study) -> Sequence[str]:
    """Returns the task metrics that are asked for; those of the run are for its evaluation data, which has labels."""
    return arguments.metric or ()


def _ran(provenance: Mapping[str, Any]) -> str:
    words = f"{provenance.get('samples')} samples of {provenance.get('debug_dataset')}"
    return f"{words}; {provenance.get('kernels')} kernels of {provenance.get('runtime')} {provenance.get('runtime_version')}"


def curves(arguments: argparse.Namespace, screen: Screen) -> None:
    """Measures accumulated error."""
    metric = curve_metric(arguments.rank_by)  # a wrong name is told before anything is measured
    study = _study(arguments)
    found = study.curves(
        [_group(text, "--quantize") for text in arguments.quantize],
        [_group(text, "--leave-float") for text in arguments.leave_float],
    )
    ran = _ran(found[0].run.provenance)
    title = f"{label(metric)} at nodes' outputs, against the float model; {ran}"
    screen.table(*curve_table(found, metric), title=title)
    for curve in found:
        screen.notes(f"{curve.name}: {note}" for note in curve.run.notes)
    path = study.folder / "accumulate_error" / "curves.csv"
    write_curves_csv(found, path, average=arguments.average)
    screen.say(f"all nodes: {path}")
    # Two groups of several nodes may be called alike.
    names = [curve.name for curve in found]
    titles = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]
    columns = {title: curve.run.columns() for title, curve in zip(titles, found, strict=True)}
    screen.result(
        {
            name: {"node": own["node"].tolist(), **{key: own[key].tolist() for key in CURVE_METRICS}}
            for name, own in columns.items()
        }
    )


def _group(text: str, option: str) -> str | list[str]:
    """Returns a node's name, or the names of a group given as JSON."""
    if not text.startswith("["):
        return text
    try:
        names = json.loads(text)
        if names and all(isinstance(name, str) for name in names):
            return list(names)
    except ValueError:
        pass
    raise OptionError(f"got {option} {text!r}, expected a name, or a group as a JSON list of names")


def steps(arguments: argparse.Namespace, screen: Screen) -> None:
    """Leaves the most sensitive nodes float, one after another."""
    study = _study(arguments)
    found = study.steps(
        arguments.node or None,
        metric=arguments.rank_by,
        threshold=arguments.threshold,
        most=arguments.most,
        task_metrics=_task_metrics(arguments, study),
        large_is_bad=arguments.lower_is_better,
    )
    prices = _prices(arguments, study, [found.nodes[:step] for step in range(len(found.nodes) + 1)])
    table = with_prices(*steps_table(found), prices) if prices else steps_table(found)
    screen.table(*table, title=f"nodes left float one after another; {_ran(found.provenance)}")
    screen.notes(found.notes)
    if math.isnan(found.threshold):
        screen.say(f"{found.metric} has no threshold of its own; --threshold sets one")
    elif found.met is None:
        screen.say(f"no step meets {found.metric} {found.threshold:g}")
    else:
        screen.say(f"{found.met} nodes in float meet {found.metric} {found.threshold:g} (*)")
        if found.met:
            screen.say("  denylisted_nodes=[" + ",\n                    ".join(map(repr, found.nodes[: found.met])) + "]")
            if prices:
                screen.say(f"  {prices[found.met].words}")
    path = study.folder / "sensitivity_analysis" / "steps.csv"
    write_steps_csv(found, path, price_columns(prices) if prices else None)
    screen.say(f"all steps: {path}")
    values: dict[str, Any] = {name: found.errors.worst(name).tolist() for name in found.errors.names()}
    if prices:
        values["edgetpu"] = [price.to_dict() for price in prices]
    screen.result({"nodes": found.nodes, "met": found.met, "threshold": found.threshold, "bytes": found.sizes, **values})


def distribution(arguments: argparse.Namespace, screen: Screen) -> None:
    """Shows how values are distributed."""
    study = _study(arguments)
    found = study.profiles(arguments.node or None)
    notable = set(notable_nodes(study.findings, arguments.count)[: arguments.count])
    screen.table(*profile_table([each for each in found if arguments.node or each.role == "input" or each.node in notable]))
    path = study.folder / "data_distribution" / ("distributions.csv" if not arguments.node else "distributions.some.csv")
    write_profile_csv(found, path)
    screen.say(f"all figures: {path}")
    _draw(study, screen, found, arguments)
    screen.result([_figures(profile) for profile in found])


def channels(arguments: argparse.Namespace, screen: Screen) -> None:
    """Shows how the values of each channel are distributed."""
    study = _study(arguments)
    nodes = arguments.node or _top_nodes(study, arguments.axis)
    found = [profile for profile in study.profiles(nodes, arguments.axis) if profile.channels is not None]
    if not found:
        raise OptionError(f"none of {', '.join(map(repr, nodes))} has channels; give --axis")
    for number, profile in enumerate(found):
        screen.table(*channel_table(profile, arguments.count), title=f"{profile.role} of {profile.op_name} {profile.node}")
        write_channel_csv(profile, study.folder / "channelwise_distribution" / f"{number:03d}_{profile.role}.csv")
    _draw(study, screen, found, arguments)
    screen.result([_figures(profile) for profile in found])


def _top_nodes(study: Study, axis: int | None) -> list[str]:
    run = study.findings.run
    # Not every layer has a profile, nor every profile channels.
    known = {profile.node for profile in study.profiles() if profile.channels is not None or axis is not None}
    nodes = [node for node in (run.layers[position].node for position in run.worst()) if node in known][:5]
    if not nodes:
        raise OptionError("no node of this run has channels; give --axis")
    return nodes


def _figures(profile: Profile) -> dict[str, Any]:
    names = ("node", "op_name", "role", "tensor", "low", "high", "scale", "clipped_low", "clipped_high", "integers_used")
    more = ("integers", "mean", "deviation", "kurtosis", "outliers", "negative", "near_zero", "samples")
    figures: dict[str, Any] = {name: getattr(profile, name) for name in names + more}
    if profile.channels is not None:
        own = profile.channels
        boxes = ("minimum", "lower", "median", "upper", "maximum", "mean", "deviation")
        figures["channels"] = {"axis": own.axis, **{name: getattr(own, name).tolist() for name in boxes}}
        figures["channels"].update(dead=own.dead.tolist(), dominating=own.dominating.tolist(), spread=own.spread)
    return figures


def _draw(study: Study, screen: Screen, profiles: Sequence[Profile], arguments: argparse.Namespace) -> None:
    if arguments.no_charts:
        return
    nodes = list(dict.fromkeys(profile.node for profile in profiles)) if arguments.node else None
    shown = Findings(study.findings.run, profiles=tuple(profiles), diagnosis=study.findings.diagnosis)
    paths = save_charts(shown, study.folder, nodes=nodes)
    screen.say(f"{len(paths)} charts below {study.folder}")


def samples(arguments: argparse.Namespace, screen: Screen) -> None:
    """Shows the samples that differ most."""
    study = _study(arguments)
    found = study.samples(arguments.count, arguments.rank_by)
    screen.table(*sample_table(found), title=f"the samples that differ most; {_ran(found.provenance)}")
    screen.say(flip_sentence(found))
    screen.notes(found.notes)
    path = study.folder / "samples.csv"
    write_samples_csv(found, path)
    screen.say(f"as CSV: {path}")
    errors = {name: dict(zip(found.errors.outputs, found.errors.metric(name)[0].tolist(), strict=False)) for name in METRICS}
    screen.result(
        {
            "metric": found.metric,
            "samples": found.errors.samples,
            "worst": [dataclasses.asdict(sample) for sample in found.worst],
            "flip_count": found.flip_count,
            "flips": [dataclasses.asdict(sample) for sample in found.flips],
            "errors": {name: values for name, values in errors.items() if name in found.errors.names()},
        }
    )


def diagnose(arguments: argparse.Namespace, screen: Screen) -> None:
    """Says what is wrong."""
    study = _study(arguments)
    study.run_with_parts()
    study.scores()
    found = study.diagnosis()
    if arguments.edgetpu:
        _price_findings(study.findings, study.folder, study.pair.quantized)
        found = study.findings.diagnosis or found
    for line in diagnosis_lines(found, terminal_width()):
        screen.say(line)
    screen.result(dataclasses.asdict(found))


def _price_findings(findings: Findings, folder: Path, model: Model) -> None:
    """Adds to diagnosis and advice what the suggested float nodes cost on the Edge TPU, and keeps them."""
    if findings.diagnosis is not None:
        findings.diagnosis = priced_diagnosis(findings.diagnosis, findings, model)
        save_part(folder, "diagnosis", findings.diagnosis)
    findings.advice = priced_advice(findings.advice, findings, model)
    save_part(folder, "advice", findings.advice)


def report(arguments: argparse.Namespace, screen: Screen) -> None:
    """Writes the report."""
    findings = Findings.load(arguments.run)
    folder = Path(arguments.run) if Path(arguments.run).is_dir() else Path(arguments.run).parent
    findings.advice = advise(findings, str(folder))  # analyses may have been made since it was kept
    if arguments.edgetpu:
        model = Model(folder / Setup.load(folder).quantized_model)
        findings.diagnosis = None if findings.diagnosis is None else diagnosed(findings)
        _price_findings(findings, folder, model)
    path = write_report(findings, arguments.output or folder / "report.html")
    screen.say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    paths: Sequence[Path] = ()
    if arguments.charts is not None:
        paths = save_charts(findings, arguments.charts or folder, nodes=arguments.node or None)
        screen.say(f"{len(paths)} charts below {arguments.charts or folder}")
    screen.result({"report": str(path), "charts": [str(path) for path in paths]})


def runall(arguments: argparse.Namespace, screen: Screen) -> None:
    """Makes every analysis, and the report."""
    place = Path(arguments.model or "")
    saved = (place / SETUP).exists() or (place / "run.json").exists() or place.name == "run.json"
    if arguments.model is not None and saved:
        _refuse_other_runs(arguments)
        arguments.run = arguments.model
    else:
        arguments.run = _run_first(arguments)
    study = _study(arguments)
    number = 0

    def say(words: str) -> None:
        nonlocal number
        number += 1
        screen.say(f"{number}. {words}")

    try:
        findings = study.all(metric=arguments.rank_by, threshold=arguments.threshold, say=say)
    except BaseException:
        screen.say(f"what is finished is kept; to go on: tflite-qdebug runall {study.folder}")
        raise
    if arguments.edgetpu:
        _price_findings(findings, study.folder, study.pair.quantized)
    _write_tables(study)
    report_path = write_report(findings, study.folder / "report.html")
    paths = [] if arguments.no_charts else save_charts(findings, study.folder, nodes=_charted(findings))
    screen.say()
    assert findings.diagnosis is not None
    for line in diagnosis_lines(findings.diagnosis, terminal_width()):
        screen.say(line)
    screen.say()
    for line in advice_lines(findings.advice, terminal_width()):
        screen.say(line)
    screen.say(f"report: {report_path}" + (f"; {len(paths)} charts and tables beside it" if paths else ""))
    diagnosis = dataclasses.asdict(findings.diagnosis)
    advice = [dataclasses.asdict(each) for each in findings.advice]
    screen.result({"report": str(report_path), "diagnosis": diagnosis, "advice": advice, "folder": str(study.folder)})


def _charted(findings: Findings) -> list[str]:
    """Returns the nodes whose distributions are drawn: the five most sensitive of each kind, and the suspects."""
    nodes = [found.nodes[position] for found in findings.sensitivity.values() for position in found.order()[:5]]
    known = {profile.node for profile in findings.profiles}
    return [node for node in dict.fromkeys([*nodes, *suspected_nodes(findings)]) if node in known]


#: Options of ``runall`` that say how the run is made.
_OF_THE_RUN = (
    *("--output", "--float", "--quantized", "--representative-data", "--signature-data", "--kind", *QUANTIZING),
    *("--whole-model", "--parts", "--sequence", "--criterion"),
)


def _refuse_other_runs(arguments: argparse.Namespace) -> None:
    given = [option for option in _OF_THE_RUN if runs.was_given(arguments, option)]
    if given:
        raise OptionError(
            f"got {', '.join(given)} with {arguments.model}, which holds a run already and is gone on with; expected a model "
            "in its place, to make another run, or none of these options"
        )


def _run_first(arguments: argparse.Namespace) -> str:
    """Runs the verb ``run``, silently, and returns its folder."""
    known = [*METRICS, *task_functions(arguments.metric or ["top_1"])]
    if arguments.rank_by not in known:
        nearest = did_you_mean(arguments.rank_by, known)
        raise OptionError(f"got --rank-by {arguments.rank_by!r}, expected one of {', '.join(known)}.{nearest}")
    arguments.output = arguments.output or "qdebug"
    if (Path(arguments.output) / "run.json").exists():
        raise OptionError(
            f"{arguments.output} holds a run already; to go on with it, give it in place of the model, else another --output"
        )
    if arguments.quantized is not None and len(arguments.quantized) > 1:
        raise OptionError(f"got {len(arguments.quantized)} quantized models, expected one: each needs a folder of its own")
    arguments.parts = arguments.parts or "8"
    quiet = Screen(True)
    quiet.result = lambda value: None  # type: ignore[method-assign]
    runs.run(arguments, quiet)
    return str(arguments.output)


def _write_tables(study: Study) -> None:
    """Writes what the single verbs write."""
    findings = study.findings
    write_csv(findings.run, study.folder / "layers.csv")  # it may have been measured anew, with its parts
    write_profile_csv(findings.profiles, study.folder / "data_distribution" / "distributions.csv")
    if findings.curves:
        write_curves_csv(findings.curves, study.folder / "accumulate_error" / "curves.csv")
    for mode, found in findings.sensitivity.items():
        write_sensitivity_csv(found, study.folder / "node_sensitivity" / f"{mode}.csv")
    if findings.steps is not None:
        write_steps_csv(findings.steps, study.folder / "sensitivity_analysis" / "steps.csv")
    if findings.samples is not None:
        write_samples_csv(findings.samples, study.folder / "samples.csv")
