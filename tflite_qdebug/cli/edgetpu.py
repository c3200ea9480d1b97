"""The verb ``edgetpu``: what the device takes of a model, and whether it is right there. Each step is a function."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from tflite_qdebug.cli import verbs
from tflite_qdebug.cli.edgetpu_device import compare_device, prepare_device
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.edgetpu.comparison import Comparison, compare
from tflite_qdebug.edgetpu.compiled import CompiledModel, read_compiled
from tflite_qdebug.edgetpu.compiler_log import CompilerLog, read_log
from tflite_qdebug.edgetpu.conversion import convert_for_edgetpu
from tflite_qdebug.edgetpu.partition import Partition, cut_by_float, partition
from tflite_qdebug.edgetpu.prices import FloatPrice, float_price, float_prices, operators_called
from tflite_qdebug.errors import OptionError, QDebugError
from tflite_qdebug.findings import Findings
from tflite_qdebug.model import Model
from tflite_qdebug.reports.edgetpu import cause_table, price_table, side_by_side_table, status_table, write_partition_csv
from tflite_qdebug.study import SETUP, Setup
from tflite_qdebug.wording import byte_size


class EdgeTPUError(QDebugError):
    """The model does not map as was asked for, or prediction and compiler differ."""

    exit_code = 12


def edgetpu(arguments: argparse.Namespace, screen: Screen) -> int:
    """Runs one step."""
    steps = {"check": check, "prepare": prepare_device, "compare": compare_device}
    return steps[arguments.step](arguments, screen) or 0


def convert(arguments: argparse.Namespace, screen: Screen) -> None:
    """Makes models, with ``--edgetpu`` one for its compiler; writes beside it the float model that it was made from.

    Raises:
        OptionError: For options that have no place there.
    """
    if not arguments.edgetpu:
        verbs.convert(arguments, screen)
        return
    unfit = {"--kind": arguments.kind, "--denylisted-node": arguments.denylisted_node,
             "--denylisted-op": arguments.denylisted_op}  # fmt: skip
    given = [option for option, value in unfit.items() if value]
    if given:
        raise OptionError(
            f"got {', '.join(given)} with --edgetpu, which makes one model of integers alone; expected none of them: what is "
            "left float cuts the graph ('tflite-qdebug edgetpu check MODEL --leave-float NODE' tells what that costs)"
        )
    verbs.begin_with_run(arguments)
    folder = Folder(arguments.output or ".")
    made = convert_for_edgetpu(
        verbs.load(arguments),
        verbs.data(arguments, "representative"),
        input_type=arguments.input_type,
        output_type=arguments.output_type,
        calibration=arguments.calibration,
        per_channel=not arguments.per_tensor,
        limit=arguments.limit,
        progress=verbs.progress(arguments),
    )
    stem = f"{verbs.stem(arguments)}_for_edgetpu"
    files = {"model": f"{stem}.tflite", "float_model": f"{stem}_float.tflite"}
    folder.write(files["model"], made.data)
    folder.write(files["float_model"], made.float_model.data)
    described = {
        "files": files,
        "bytes": len(made.data),
        "sha256": hashlib.sha256(made.data).hexdigest(),
        "changes": made.changes,
        "partition": made.partition.to_dict(),
    }
    folder.write_repeat(arguments.words, model=made.float_model.origin, **described)
    screen.say(f"{files['model']}: {len(made.data) / 1000:.1f} kB; {files['float_model']}: the float model to compare it with")
    for change in made.changes:
        screen.say(f"changed: {change}")
    for line in made.partition.summary():
        screen.say(line)
    screen.table(*status_table(made.partition), title="predicted, as the compiler's log has it")
    header, rows = cause_table(made.partition)
    if rows:
        screen.table(header, rows, title="what runs on the CPU, and how many operators it cuts off the device")
    screen.say(f"to compile it: edgetpu_compiler -s {folder.path}/{files['model']}")
    screen.result({"folder": str(folder.path), **described})


@dataclasses.dataclass
class _Checked:
    """What `check` has to show."""

    model: Model
    found: Partition
    compared: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    compiled: CompiledModel | None = None
    log: CompilerLog | None = None
    floating: Partition | None = None
    price: FloatPrice | None = None
    prices: list[FloatPrice] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        facts = {"compiled": self.compiled, "log": self.log, "leave_float": self.price}
        return {
            **self.found.to_dict(),
            "summary": self.found.summary(),
            **{name: each.to_dict() for name, each in facts.items() if each is not None},
            "comparison": {name: each.to_dict() for name, each in self.compared.items()},
            "prices": [price.to_dict() for price in self.prices],
        }


def check(arguments: argparse.Namespace, screen: Screen) -> None:
    """Predicts where each operator runs, and puts facts beside it where there are any.

    Raises:
        EdgeTPUError: After everything is shown and written: where the compiler would refuse the model, more operators run on
            the CPU than ``--most-on-cpu`` allows, or prediction and fact differ.
    """
    model, nodes = opened(arguments.model, arguments.leave_float)
    options = {"runtime_version": arguments.runtime_version, "multiple_subgraphs": arguments.multiple_subgraphs}
    checked = _Checked(model, partition(model, **options))
    if arguments.compiled:
        checked.compiled = read_compiled(model, Model(arguments.compiled))
        checked.compared["compiled"] = compare(checked.found, checked.compiled)
    if arguments.log:
        checked.log = read_log(arguments.log)
        checked.compared["log"] = compare(checked.found, checked.log)
    if nodes:
        checked.floating = cut_by_float(model, nodes, **options)
        checked.price = float_price(model, nodes, runtime_version=arguments.runtime_version)
    if arguments.prices:
        checked.prices = float_prices(model, runtime_version=arguments.runtime_version)
    if arguments.csv:
        compared = checked.compared.get("compiled")
        write_partition_csv(checked.found, arguments.csv, compared, checked.floating, checked.prices)
    _show(arguments, screen, checked)
    screen.result(checked.to_dict())
    _judge(arguments, checked)


def opened(place: str, names: list[str]) -> tuple[Model, list[str | int]]:
    """Opens the quantized model, or that of a saved run, and finds its operators by the names that are given.

    Args:
        place: A ``.tflite``, or the folder of a run, whose layers' names are understood then.
        names: Of nodes.

    Raises:
        ModelError: Where there is no model.
        OptionError: For a node that there is not.
    """
    folder = Path(place).parent if Path(place).name == "run.json" else Path(place)
    if not (folder / SETUP).exists():
        return Model(place), list(names)
    model = Model(folder / Setup.load(folder).quantized_model)
    return model, operators_called(Findings.load(folder), model, names)


def _show(arguments: argparse.Namespace, screen: Screen, checked: _Checked) -> None:
    found = checked.found
    for line in found.summary():
        screen.say(line)
    if found.refused:
        screen.say("to make a model that the compiler takes: tflite-qdebug convert FLOAT_MODEL --edgetpu")
    screen.table(*status_table(found), title="predicted, as the compiler's log has it")
    if arguments.all:
        screen.table(*found.table(), title="all operators")
    else:
        header, rows = cause_table(found)
        if rows:
            screen.table(header, rows, title="what runs on the CPU, and how many operators it cuts off the device")
    for name, compared in checked.compared.items():
        _show_fact(arguments, screen, checked, name, compared)
    if checked.price is not None:
        names = ", ".join(map(repr, checked.price.nodes))
        screen.say(f"with {names} left float: {checked.price.words}")
        screen.table(*price_table([checked.price]))
    if checked.prices:
        screen.table(*price_table(checked.prices), title="what leaves the Edge TPU where one node alone is left float")
    if arguments.csv:
        screen.say(f"all operators: {arguments.csv}")


def _show_fact(arguments: argparse.Namespace, screen: Screen, checked: _Checked, name: str, compared: Comparison) -> None:
    """Prints prediction and fact side by side."""
    source = {"compiled": "the compiled model", "log": "the compiler's log"}[name]
    if compared.agrees:
        screen.say(f"prediction and {source} agree on all {checked.found.total} operators")
    screen.table(*side_by_side_table(compared), title=f"prediction and {source}, by type")
    header, rows = compared.table(differing_only=not arguments.all)
    if rows and compared.rows[0].index >= 0:
        screen.table(header, rows, title=f"prediction and {source}, operator by operator")
    for difference in compared.differences:
        screen.say(f"differs: {difference}")
    if name == "compiled" and checked.compiled is not None:
        screen.say(
            f"compiled: {sum(checked.compiled.mapped)} of {checked.compiled.total} operators on the Edge TPU, in "
            f"{checked.compiled.segments} pieces; {checked.compiled.crossings} tensors pass for one sample (predicted: "
            f"{checked.found.crossings})"
        )
    if name == "log" and checked.log is not None and checked.log.cached_bytes is not None:
        streamed = checked.log.streamed_bytes or 0
        screen.say(
            f"log: parameters of {byte_size(checked.log.cached_bytes)} on the device, {byte_size(streamed)} sent for each "
            f"sample (predicted: {byte_size(checked.found.parameter_bytes)} in all)"
        )


def _judge(arguments: argparse.Namespace, checked: _Checked) -> None:
    found = checked.found
    if found.refused:
        raise EdgeTPUError(f"the Edge TPU compiler would refuse the model: {found.refused[0]}")
    on_cpu = found.total - found.mapped
    if arguments.most_on_cpu is not None and on_cpu > arguments.most_on_cpu:
        raise EdgeTPUError(
            f"{on_cpu} of {found.total} operators run on the CPU, more than --most-on-cpu {arguments.most_on_cpu}"
        )
    differing = [name for name, compared in checked.compared.items() if not compared.agrees]
    if differing:
        count = sum(len(checked.compared[name].differences) for name in differing)
        raise EdgeTPUError(f"prediction and compiler differ in {count} points; what the compiler did counts")
