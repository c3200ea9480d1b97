"""The command that a bundle is on a board."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from typing import Any, Dict, Iterator, Optional, Sequence

import numpy as np

from tflite_qdebug import __version__
from tflite_qdebug.board.archive import Bundle, Entry
from tflite_qdebug.board.journal import Journal, read_records
from tflite_qdebug.board.running import Progress, Settings, known_progress, run_entry
from tflite_qdebug.board.timing import summary
from tflite_qdebug.delegates import delegates_of
from tflite_qdebug.errors import InterpreterError, MissingPackageError, OptionError, QDebugError
from tflite_qdebug.tf_private import KERNELS, RUNTIMES

__all__ = ["main"]

_SAY_EVERY = 5.0  # seconds


def main(archive: str, words: Optional[Sequence[str]] = None) -> int:
    """Runs a bundle and returns the exit code.

    Args:
        archive: The bundle.
        words: The arguments; those of the process where None.
    """
    arguments = _parser(archive).parse_args(words)
    try:
        return _run(Bundle(archive), arguments)
    except KeyboardInterrupt:
        sys.stderr.write("bundle: interrupted; run the same command to go on\n")
        return 130
    except QDebugError as error:
        sys.stderr.write("bundle: {}\n".format(error))
        return error.exit_code


def _parser(archive: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python {}".format(os.path.basename(archive)),
        description="Runs the models of this bundle, and writes a result to be merged into the run on the host. Interrupted, "
        "the same command goes on.",
    )
    parser.add_argument("--output", metavar="FILE", help="the result (default: {})".format(_default_output(archive)))
    parser.add_argument("--model", action="append", metavar="NAME", help="run this model only; may be repeated")
    parser.add_argument("--runtime", choices=("auto",) + RUNTIMES, default="auto", help="package that runs the models")
    parser.add_argument("--kernels", choices=KERNELS, default="auto", help="auto: XNNPACK where it takes the model")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the kernels (default: 1)")
    parser.add_argument("--delegate", metavar="LIBRARY", help="delegate for the compiled model, else for the quantized one")
    parser.add_argument("--delegate-option", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument(
        "--latency-seconds", type=float, default=5.0, metavar="S", help="how long each model is timed; 0: not (default: 5)"
    )
    parser.add_argument("--time-limit", type=float, default=300.0, metavar="S", help="for one sample (default: 300)")
    parser.add_argument("--no-isolation", action="store_true", help="run models in this process, which they may end")
    parser.add_argument("--list", action="store_true", help="say what is in the bundle, and run nothing")
    return parser


def _default_output(archive: str) -> str:
    return os.path.splitext(os.path.basename(archive))[0] + "_result.jsonl"


def _settings(arguments: argparse.Namespace) -> Settings:
    delegates = delegates_of(arguments.delegate, arguments.delegate_option)
    if not arguments.latency_seconds >= 0:
        raise OptionError("got --latency-seconds {}, expected 0 or more".format(arguments.latency_seconds))
    return Settings(
        arguments.runtime,
        arguments.kernels,
        arguments.threads,
        delegates[0] if delegates else None,
        arguments.latency_seconds,
        arguments.time_limit,
        False if arguments.no_isolation else None,
    )


def _run(bundle: Bundle, arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    entries = [bundle.entry(name) for name in arguments.model] if arguments.model else bundle.entries
    _say("{}: {} (bundle {})".format(bundle.manifest["name"], _contents(bundle, entries), bundle.id[:12]))
    if arguments.list:
        return 0
    path = arguments.output or _default_output(bundle.path)
    header = {"bundle": bundle.id, "settings": settings.identity(), "board": _board()}
    journal = Journal(path, header)
    try:
        known = known_progress((record for _, record in read_records(path)), [entry.name for entry in bundle.entries])
        if journal.resumed:
            _say("going on with {}".format(path))
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        journal.write({"kind": "started", "tflite_qdebug": __version__, "time": now, "state": _state()})
        failures = [name for entry in entries for name in _run_one(bundle, entry, settings, journal, known[entry.name])]
        if failures:
            _say("not everything was measured ({}); what was is in {}".format(", ".join(failures), path))
            return InterpreterError.exit_code
    finally:
        journal.close()
    _say("done: {}; on the host: tflite-qdebug merge RUN {}".format(path, os.path.basename(path)))
    return 0


def _contents(bundle: Bundle, entries: Sequence[Entry]) -> str:
    return ", ".join("{} on {} samples".format(entry.name, bundle.count(entry.samples)) for entry in entries)


def _run_one(bundle: Bundle, entry: Entry, settings: Settings, journal: Journal, known: Progress) -> Iterator[str]:
    """Runs one model, and yields its name where it failed; the others are run all the same."""
    count, last = bundle.count(entry.samples), time.time()
    try:
        for record in run_entry(bundle, entry, settings, known):
            journal.write(record)
            known.take(record)
            if record["kind"] == "died":
                _say("{}: {}; trying again".format(entry.name, record["words"]))
            if record["kind"] == "sample" and time.time() - last > _SAY_EVERY:
                last = time.time()
                _say("{}: {} of {} samples".format(entry.name, len(known.samples), count))
    except MissingPackageError:
        raise
    except QDebugError as error:
        if error.exit_code != InterpreterError.exit_code and not _is_of_model(error):
            raise
        journal.write({"kind": "failed", "model": entry.name, "words": str(error)})
        _say("{}: FAILED: {}".format(entry.name, error))
        yield entry.name
        return
    _say("{}: {}".format(entry.name, "; ".join(_findings(entry, known, count))))


def _is_of_model(error: QDebugError) -> bool:
    """True where another model may do better: outputs or inputs that do not fit, but not a disk that is full."""
    return error.exit_code in (3, 4)


def _findings(entry: Entry, known: Progress, count: int) -> Iterator[str]:
    yield "{} of {} samples".format(len(known.samples), count)
    found = known.difference
    if found.elements:
        yield (
            "outputs differ from the host's by at most {:.3g} steps, {:.3g} % of them by more than one".format(
                found.largest, 100.0 * found.over_one / found.elements
            )
            if found.differing or found.one_sided
            else "outputs are those of the host"
        )
    if found.one_sided:
        yield "{} outputs are NaN or infinite here or on the host alone".format(found.one_sided)
    if known.milliseconds:
        timing = summary(known.milliseconds)
        yield "{:.3g} ms in the median, {:.3g} ms for 90 % ({} runs)".format(timing.median, timing.percentile_90, timing.runs)


def _board() -> Dict[str, Any]:
    """Returns what tells this board from another."""
    return {
        "name": _read("/proc/device-tree/model") or platform.node(),
        "machine": platform.machine(),
        "system": "{} {}".format(platform.system(), platform.release()),
        "processors": os.cpu_count() or 1,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _state() -> Dict[str, Any]:
    """Returns what latency depends on, and changes from run to run."""
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else []
    return {"governor": governor, "load": [round(value, 2) for value in load]}


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
