"""Cards of kernels, devices and boards."""

from __future__ import annotations

from tflite_qdebug.board_record import Board
from tflite_qdebug.cut_record import CutComparison
from tflite_qdebug.display.card import Card, card_of, counted, table
from tflite_qdebug.edgetpu.device_record import DeviceComparison
from tflite_qdebug.edgetpu.partition import Partition
from tflite_qdebug.edgetpu.prices import FLOAT_PRICE_HEADER, FloatPrice
from tflite_qdebug.kernel_record import KernelComparison
from tflite_qdebug.latency_record import Latency
from tflite_qdebug.reports.boards import board_table, island_lines, layers_table, operator_table
from tflite_qdebug.reports.cuts import cut_table
from tflite_qdebug.reports.edgetpu import cause_table, status_table
from tflite_qdebug.reports.kernels import kernel_table
from tflite_qdebug.wording import number

_COUNT = 5


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


@card_of.register
def _(found: Partition) -> Card:
    """What runs on the Edge TPU."""
    lines = [_sentence(line) for line in found.summary()[: len(found.summary()) - len(found.notes)]]
    tables = [
        *table("what keeps operators on the CPU", cause_table(found, 48)),
        *table("all operators", status_table(found), folded=True),
    ]
    sound = False if found.refused else (True if found.mapped == found.total else None)
    subtitle = f"{found.mapped} of {found.total} operators on the Edge TPU"
    return Card(
        "Partition", subtitle, lines, sound, (), tables, notes=found.notes, more="partition.operators, partition.table()"
    )


@card_of.register
def _(price: FloatPrice) -> Card:
    """What leaves the Edge TPU."""
    rows = table("", (FLOAT_PRICE_HEADER, [price.row(48)]))
    return Card("FloatPrice", counted(len(price.nodes), "node") + " kept float", (_sentence(price.words),), tables=rows)


@card_of.register
def _(found: DeviceComparison) -> Card:
    """A device against the CPU."""
    subtitle = f"{found.model}, {counted(len(found.rows), 'operator')}, {counted(found.samples, 'sample')}"
    lines = [_sentence(line) for line in found.summary()]
    rows = table("to look at first", found.table(found.worst(_COUNT), 48))
    return Card("DeviceComparison", subtitle, lines, found.is_right, (), rows, notes=found.notes)


@card_of.register
def _(found: KernelComparison) -> Card:
    """Two kernels on the same model."""
    faults = found.faults()
    subtitle = f"A: {found.first['label']}, B: {found.second['label']}; {counted(found.samples, 'sample')}"
    if faults:
        first = found.rows[faults[0]]
        words = found.verdicts()[faults[0]].text
        share = f"{counted(len(faults), 'row')} of {len(found.rows)}"
        lead = f"In {share} one is wrong, first at {first.op_name} {first.node}: {words}."
    else:
        most = f"quantized results differ by at most {number(found.largest_steps(), 3)} steps"
        lead = f"Neither is wrong in any of {counted(len(found.rows), 'row')}; {most}."
    rows = table("to look at first", kernel_table(found, found.worst(_COUNT), 48))
    return Card("KernelComparison", subtitle, (lead,), not faults, (), rows, notes=found.notes, more="comparison.columns()")


@card_of.register
def _(found: CutComparison) -> Card:
    """Cuts of a model on two kernels."""
    failed = found.failed()
    subtitle = f"{found.tested['label']} against {found.reference['label']}; {counted(found.samples, 'sample')}"
    lead = f"Each of {counted(len(found.rows), 'cut')} is within the limits."
    if failed:
        lead = f"{len(failed)} of {counted(len(found.rows), 'cut')} fail; {failed[0].name}: {failed[0].verdict(found.limits)}."
    elif not found.passed():
        lead = "No cut fails by itself, but some inherit a difference."
    rows = table("to look at first", cut_table(found, found.worst(_COUNT), 48))
    return Card("CutComparison", subtitle, (lead,), found.passed(), (), rows, notes=found.notes, more="comparison.columns()")


@card_of.register
def _(board: Board) -> Card:
    """What was measured on a board."""
    faulty = board.faulty()
    lead, sound = [], None
    if board.layers is not None:
        sound = not faulty
        lead = [f"{counted(len(faulty), 'layer')} of {len(board.layers.layers)} computed plainly otherwise than on the host."]
    tables = [
        *table("models", board_table(board)),
        *table("layers least like on the host", layers_table(board, _COUNT)),
    ]
    facts = [(str(name), str(value)) for name, value in board.about.items() if isinstance(value, (str, int, float))]
    return Card("Board", board.name, lead, sound, facts, tables, notes=board.notes)


@card_of.register
def _(found: Latency) -> Card:
    """What operators take."""
    times = [(model.name, model.failure or f"{number(model.median, 3)} ms ({model.kernels})") for model in found.whole_models]
    rows = table("the slowest operators", operator_table(found, found.slowest(_COUNT)))
    subtitle = f"{found.machine}, {found.runtime}, {counted(found.threads, 'thread')}"
    return Card(
        "Latency",
        subtitle,
        island_lines(found)[:2],
        None,
        times,
        rows,
        notes=[*([found.how] if found.how else []), *found.notes],
    )
