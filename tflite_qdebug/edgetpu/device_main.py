"""The command that runs a prepared folder where nothing but numpy and an interpreter is installed. Part of the board."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, List, Optional, Sequence

from tflite_qdebug.collect import Backend
from tflite_qdebug.delegates import delegates_of
from tflite_qdebug.edgetpu.device_comparison import compare_with_device
from tflite_qdebug.edgetpu.device_record import DeviceComparison, text_table
from tflite_qdebug.errors import QDebugError
from tflite_qdebug.tf_private import KERNELS, RUNTIMES

__all__ = ["RESULT", "main", "report"]

#: What the result is called, in the prepared folder.
RESULT = "result.json"
_DIFFERS = 10


def main(words: Optional[Sequence[str]] = None) -> int:
    """Runs the comparison, prints what was found, writes ``result.json``; returns the exit code."""
    arguments = _parser().parse_args(words)
    try:
        backend = Backend(
            runtime=arguments.runtime,
            kernels=arguments.kernels,
            delegates=delegates_of(arguments.delegate, arguments.delegate_option),
            workers=1,
            threads=arguments.threads,
            isolate=False if arguments.no_isolation else None,
            time_limit=arguments.time_limit,
        )
        compiled = False if arguments.uncompiled else None
        result = compare_with_device(
            arguments.folder, backend, tolerance=arguments.tolerance, compiled=compiled, bisect=arguments.bisect, progress=False
        )
        path = arguments.output or os.path.join(arguments.folder, RESULT)
        result.save(path)
    except (QDebugError, KeyboardInterrupt) as error:
        print("compare: {}".format(str(error) or "interrupted"), file=sys.stderr)
        for line in keep_partial(error, os.path.join(arguments.folder, "partial_" + RESULT)):
            print(line, file=sys.stderr)
        return error.exit_code if isinstance(error, QDebugError) else 130
    for line in report(result, arguments.count):
        print(line)
    print("result: {}".format(path))
    limit = arguments.fail_on_difference
    return _DIFFERS if limit is not None and result.exceeds(limit) else 0


def keep_partial(error: BaseException, path: str) -> List[str]:
    """Writes what was compared before an error; returns what to say of it."""
    partial = getattr(error, "partial_comparison", None)
    if partial is None:
        return []
    try:
        partial.save(path)
    except QDebugError as failed:
        return [str(failed)]
    return ["what was compared before is in {}".format(path)]


def report(result: DeviceComparison, count: Optional[int]) -> List[str]:
    """Returns all there is to say, line by line: the table of the first ``count`` operators to look at, then what it means."""
    lines = ["{}: {} operators, {} samples; {}".format(result.model, len(result.rows), result.samples, described(result))]
    lines += text_table(*result.table(result.worst(count)))
    return [*lines, *result.summary(), *("note: {}".format(note) for note in result.notes)]


def described(result: DeviceComparison) -> str:
    """Returns in words what was held against what."""
    ran = [model["ran"] for model in result.models]
    kind = "compiled" if "compiled" in ran else "uncompiled"
    what = "{} {} model{}".format(ran.count(kind), kind, "" if ran.count(kind) == 1 else "s")
    return "{} on {}, against the CPU: {}".format(what, _code(result.device), _code(result.reference))


def _code(provenance: Dict[str, Any]) -> str:
    names = [os.path.basename(str(delegate["library"])) for delegate in provenance.get("delegates", [])]
    kernels = " + ".join([*names, str(provenance.get("kernels", "?"))])
    return "{} {}, {} kernels".format(provenance.get("runtime", "?"), provenance.get("runtime_version", ""), kernels)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description="Holds a device against the CPU, layer by layer.")
    add = parser.add_argument
    add("folder", metavar="DIR", help="the prepared folder")
    add("--delegate", metavar="LIBRARY", help="shared library of a delegate; edgetpu for that of the Edge TPU")
    add("--delegate-option", action="append", default=[], metavar="KEY=VALUE", help="option of the delegate; may be repeated")
    add("--runtime", choices=("auto", *RUNTIMES), default="auto", help="package that runs the models")
    add("--kernels", choices=KERNELS, default="auto", help="kernels for what no delegate takes")
    add("--threads", type=int, default=1, metavar="N", help="threads of the kernels")
    add("--tolerance", type=float, default=1.0, metavar="STEPS", help="steps that a layer may differ by (default: 1)")
    add("--uncompiled", action="store_true", help="run the models as they were prepared, not compiled")
    add("--bisect", action="store_true", help="bisect, instead of making intermediate tensors outputs")
    add("--count", type=int, default=10, metavar="N", help="how many operators to show (default: 10)")
    add("--time-limit", type=float, default=300.0, metavar="SECONDS", help="for each sample (default: 300)")
    add("--no-isolation", action="store_true", help="run the models in this process")
    add("--fail-on-difference", type=float, metavar="STEPS", help="exit with code 10 where a layer differs by more than that")
    add("--output", metavar="FILE", help="where the result goes (default: result.json in the folder)")
    return parser
