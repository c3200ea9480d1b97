"""The verb ``compare-kernels``: a kernel's fault is not to be blamed on quantization."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tflite_qdebug.analyses.kernel_comparison import compare_kernels
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import data, progress
from tflite_qdebug.collect import Backend
from tflite_qdebug.delegates import delegates_of
from tflite_qdebug.errors import OptionError, QDebugError, did_you_mean
from tflite_qdebug.kernel_record import KernelComparison
from tflite_qdebug.reports.kernels import kernel_table, write_kernel_csv
from tflite_qdebug.tf_private import KERNELS, RUNTIMES


class KernelsDifferError(QDebugError):
    """Two kernels differ by more than ``--fail-on-difference`` allows."""

    exit_code = 10


def kernels(arguments: argparse.Namespace, screen: Screen) -> None:
    """Compares two kernels, operator by operator.

    Raises:
        KernelsDifferError: Where they differ by more than ``--fail-on-difference`` allows, after everything is written.
    """
    first = backend_of(arguments)
    second = against(arguments, first)
    folder = Folder(arguments.output)
    samples = data(arguments, "debug")
    try:
        result = compare_kernels(
            arguments.quantized_model,
            samples,
            first,
            second,
            signature=arguments.signature,
            limit=arguments.limit,
            progress=progress(arguments),
        )
    except BaseException as error:
        partial = getattr(error, "partial_comparison", None)
        if partial is not None and folder.path is not None:
            _write(folder, partial, "partial_")
            screen.say(f"{partial.samples} samples were compared; they are in {folder.path / 'partial_kernels.json'}")
        raise
    _write(folder, result)
    folder.write_repeat(arguments.words, first=result.first, second=result.second, provenance=result.provenance)
    show(screen, result, arguments.count)
    if folder.path is not None:
        screen.say(f"results: {folder.path}/kernels.csv, kernels.json, repeat.json")
    screen.result({"worst": result.worst(), "verdicts": [vars(verdict) for verdict in result.verdicts()], **result.to_dict()})
    _judge(result, arguments.fail_on_difference)


def against(arguments: argparse.Namespace, first: Backend) -> Backend:
    """Returns the second kernels: ``KERNELS``, ``RUNTIME`` or ``RUNTIME:KERNELS``, with a delegate or without.

    Raises:
        OptionError: For a name that is none of these.
    """
    text = arguments.against or ("auto" if arguments.against_delegate else "reference")
    runtime, colon, kernels_ = text.partition(":")
    if not colon:
        runtime, kernels_ = (text, "auto") if text in RUNTIMES else (first.runtime, text)
    kernels_ = "auto" if kernels_ == "xnnpack" else kernels_
    if kernels_ not in KERNELS or runtime not in ("auto", *RUNTIMES):
        known = [*KERNELS, "xnnpack", *RUNTIMES, *(f"{name}:{kind}" for name in RUNTIMES for kind in KERNELS)]
        raise OptionError(
            f"got --against {text!r}, expected {', '.join(KERNELS)}, a runtime ({', '.join(RUNTIMES)}) or RUNTIME:KERNELS."
            f"{did_you_mean(text, known)}"
        )
    delegates = delegates_of(arguments.against_delegate, arguments.against_delegate_option, "--against-delegate")
    return first._replace(runtime=runtime, kernels=kernels_, delegates=delegates)


def show(screen: Screen, result: KernelComparison, count: int) -> None:
    """Prints the worst results, and in words what they mean."""
    names = [side["label"] for side in (result.first, result.second)]
    versions = [f"{side['label']} ({side['runtime']} {side['runtime_version']})" for side in (result.first, result.second)]
    screen.say(f"{len(result.rows)} results of operators, {result.samples} samples; A: {versions[0]}, B: {versions[1]}")
    screen.notes(result.notes)
    positions = result.worst(count)
    screen.table(*kernel_table(result, positions))
    verdicts = result.verdicts()
    for position in positions:
        if verdicts[position].rank > 1:
            row = result.rows[position]
            ran = f"{row.first_ran} and {row.second_ran}" if row.first_ran and row.second_ran else "control flow"
            screen.say(f"{row.op_name} {row.node!r} ({ran}): {verdicts[position].text}")
    screen.say(
        "Differences are in quantization steps, of floats relative (rel); each operator runs by itself, on the same inputs. "
        "'accumulated' is the largest between two whole runs. 'error' is the RMSE against the operator computed in float."
    )
    screen.say(conclusion(result, names))


def conclusion(result: KernelComparison, names: list[str]) -> str:
    """Returns in one sentence whether one of the kernels is at fault."""
    verdicts = result.verdicts()
    parts = []
    for name, kind in zip(names, ("first_wrong", "second_wrong"), strict=True):
        wrong = [f"{row.op_name} {row.node!r}" for row, v in zip(result.rows, verdicts, strict=True) if v.kind == kind]
        if wrong:
            listed = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            parts.append(
                f"{name} computes {len(wrong)} wrongly: {listed}. That is a fault of the kernels, not of quantization."
            )
    if parts:
        return " ".join(parts)
    unsure = sum(verdict.kind == "differs" for verdict in verdicts)
    if unsure:
        return f"{unsure} results differ by more than rounding, and nothing tells which kernels are right."
    return "No kernel is at fault: what differs is rounding, or as near to the exact result on one side as on the other."


def _write(folder: Folder, result: KernelComparison, prefix: str = "") -> None:
    if folder.path is not None:
        result.save(Path(folder.path) / f"{prefix}kernels.json")
        write_kernel_csv(result, Path(folder.path) / f"{prefix}kernels.csv")


def _judge(result: KernelComparison, limit: Any) -> None:
    if limit is None:
        return
    beyond = [row for row in result.rows if row.scale is not None and row.isolated.max_absolute > limit]
    wrong = [result.rows[position] for position in result.faults()]
    if beyond or wrong:
        found = list(dict.fromkeys(f"{row.op_name} {row.node!r}" for row in (*wrong, *beyond)))
        raise KernelsDifferError(
            f"the kernels differ by up to {result.largest_steps():.0f} steps, more than --fail-on-difference {limit:g}, or are "
            f"wrong, in {len(found)} results: {', '.join(found[:3])}"
        )
