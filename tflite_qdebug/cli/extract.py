"""The verb ``extract``: parts of a model as models of their own, tried on two kernels."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tflite_qdebug.analyses.cuts import KEPT_SAMPLES, try_cuts
from tflite_qdebug.cli.kernels import against
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import data, progress
from tflite_qdebug.cut_record import CutComparison, CutLimits, CutRow
from tflite_qdebug.edit.extracted import Cut, Cuts
from tflite_qdebug.edit.subgraphs import selected_signature
from tflite_qdebug.errors import OptionError, QDebugError
from tflite_qdebug.model import Model
from tflite_qdebug.reports.cuts import cut_table, write_cut_csv

_DEFAULT_FOLDER = "extracted"


class CutFailedError(QDebugError):
    """A cut does not keep a limit that was given."""

    exit_code = 10


def extract(arguments: argparse.Namespace, screen: Screen) -> None:
    """Cuts parts out of a model, and with data tries them.

    Raises:
        CutFailedError: Where a limit is given and a cut does not keep it, after everything is written.
    """
    limits = CutLimits(
        arguments.max_difference, arguments.min_cosine, arguments.min_snr, arguments.min_psnr, arguments.max_not_finite
    ).checked()
    cuts = _cuts(arguments)
    if arguments.debug_data is None:
        _write(arguments, screen, cuts, limits)
        return
    tested = backend_of(arguments)
    reference = against(arguments, tested)
    folder = Folder(arguments.output or _DEFAULT_FOLDER)
    result = try_cuts(
        arguments.quantized_model,
        data(arguments, "debug"),
        cuts,
        tested=tested,
        reference=reference,
        limits=limits,
        cumulative=arguments.cumulative,
        bisect=not arguments.no_bisect,
        folder=folder.path,
        keep_all=True,
        signature=arguments.signature,
        limit=arguments.limit,
        progress=progress(arguments),
    )
    assert folder.path is not None
    result.save(folder.path / "cuts.json")
    write_cut_csv(result, folder.path / "cuts.csv")
    folder.write_repeat(arguments.words, tested=result.tested, reference=result.reference, provenance=result.provenance)
    show(screen, result, cuts, arguments.count, folder.path)
    screen.result({"folder": str(folder.path), "worst": result.worst(), **result.to_dict()})
    if limits.is_given and not result.passed():
        failed = [row.name for row in result.rows if row.kind(result.limits) != "passed" and not row.smallest_of]
        raise CutFailedError(f"beyond the limits given, {len(failed)} of {_counted(len(cuts), 'cut')}: {', '.join(failed[:3])}")


def _cuts(arguments: argparse.Namespace) -> list[Cut]:
    """Returns the cuts that the command line names.

    Raises:
        OptionError: For names that are not the model's, or where it names cuts in two ways.
    """
    between = arguments.from_tensors is not None or arguments.to_tensors is not None
    ways = {"--from and --to": between, "--operator": arguments.operator, "--every-operator": arguments.every_operator}
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise OptionError(f"got {' together with '.join(given)}, expected one of them")
    model = Model(arguments.quantized_model)
    if arguments.signature is not None:
        model = selected_signature(model, arguments.signature)
    known = Cuts(model)
    if arguments.every_operator:
        return known.every()
    if arguments.operator:
        return [known.operator(name) for name in dict.fromkeys(arguments.operator)]
    return [known.between(arguments.from_tensors, arguments.to_tensors)]


def _write(arguments: argparse.Namespace, screen: Screen, cuts: Sequence[Cut], limits: CutLimits) -> None:
    """Writes the models alone.

    Raises:
        OptionError: For options that have no use without data.
    """
    idle = {
        "--cumulative": arguments.cumulative,
        "--against": arguments.against,
        "--against-delegate": arguments.against_delegate,
        "--delegate": arguments.delegate,
        "a limit": limits.is_given,
    }
    useless = [name for name, value in idle.items() if value]
    if useless:
        raise OptionError(f"got {', '.join(useless)} without --debug-data: nothing is run without samples")
    folder = Folder(arguments.output or _DEFAULT_FOLDER)
    made = []
    for cut in cuts:
        folder.write(f"{cut.name}/model.tflite", cut.data)
        made.append(
            {
                "cut": cut.name,
                "file": f"{cut.name}/model.tflite",
                "op_names": cut.op_names,
                "inputs": cut.input_names,
                "outputs": cut.output_names,
                "further_inputs": [cut.input_names[cut.inputs.index(index)] for index in cut.further_inputs],
            }
        )
        _say_what(screen, cut)
    folder.write_repeat(arguments.words, made=made)
    screen.say(f"{_counted(len(cuts), 'model')}: {folder.path}/*/model.tflite")
    screen.say("With --debug-data their inputs and expected outputs are written too, and each is run on two kernels.")
    screen.result({"folder": str(folder.path), "made": made})


def _say_what(screen: Screen, cut: Cut) -> None:
    """Prints what a reader of a cut would not expect."""
    if cut.further_inputs:
        names = ", ".join(repr(cut.input_names[cut.inputs.index(index)]) for index in cut.further_inputs)
        screen.say(f"{cut.name} also reads {names}, which are inputs too")
    screen.notes(f"{cut.name} {note}" for note in cut.notes)


def show(screen: Screen, result: CutComparison, cuts: Sequence[Cut], count: int, folder: Path) -> None:
    """Prints the worst cuts, in words what is wrong with them, and what to do with what was written."""
    sides = [f"{side['label']} ({side['runtime']} {side['runtime_version']})" for side in (result.tested, result.reference)]
    asked = sum(not row.smallest_of for row in result.rows)
    screen.say(f"{_counted(asked, 'cut')}, {_counted(result.samples, 'sample')}; tested: {sides[0]}, reference: {sides[1]}")
    for cut in cuts:
        if len(cuts) == 1 or cut.notes:
            _say_what(screen, cut)
    screen.notes(result.notes)
    positions = result.worst(count)
    screen.table(*cut_table(result, positions))
    for position in positions:
        row = result.rows[position]
        if _fails(result, position):
            screen.say(f"{row.name}: {row.verdict(result.limits)}")
    screen.notes(_shared_notes(result.rows[position] for position in positions if _fails(result, position)))
    screen.say(conclusion(result))
    screen.say(
        f"results: {folder}/cuts.csv, cuts.json, repeat.json; in a folder for each cut model.tflite, inputs.npz and "
        f"expected.npz (the worst samples and the first others, {KEPT_SAMPLES} at most), got.npz, cut.json"
    )


def _fails(result: CutComparison, position: int) -> bool:
    return result.rows[position].kind(result.limits) != "passed"


def _shared_notes(rows: Iterable[CutRow]) -> list[str]:
    """Returns the notes of cuts, each once, with the cuts that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            about.setdefault(note, []).append(row.name)
    return [f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}: {note}" for note, names in about.items()]


def conclusion(result: CutComparison) -> str:
    """Returns in one sentence what failed."""
    rows = [row for row in result.rows if not row.smallest_of]
    failed = [row for row in result.failed() if not row.smallest_of]
    inherited = sum(row.kind(result.limits) == "inherited" for row in rows)
    unmeasured = [row.name for row in rows if row.kind(result.limits) == "unmeasured"]
    parts = []
    if failed:
        parts.append(f"Failing by themselves, {len(failed)} of {_counted(len(rows), 'cut')}: {_listed(failed, result)}.")
    if inherited:
        parts.append(f"By what they inherited from cuts before them alone, {inherited}.")
    if unmeasured:
        parts.append(f"The reference cannot run {len(unmeasured)}, which were not compared: {', '.join(unmeasured[:3])}.")
    return " ".join(parts) or f"{_counted(len(rows), 'cut')}, all within the limits."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(rows: Sequence[CutRow], result: CutComparison) -> str:
    words = []
    for row in rows[:3]:
        smallest = result.smallest(row.name)
        part = "" if smallest is None else f", of which the smallest part that still fails is {' '.join(smallest.op_names)}"
        words.append(f"{row.name}{part}")
    return "; ".join(words) + ("; ..." if len(rows) > 3 else "")
