"""What the command line says beside its results: the package's log, and what native code writes to standard error.

TensorFlow, absl, MLIR and XNNPACK write to file descriptor 2, past Python. There stands a filter: a process of its own, so that
the last words of one that crashes get through. It drops what is known to be chatter and lets all else pass.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tflite_qdebug.errors import OutputError

__all__ = ["filtered_errors", "is_chatter", "logging_to"]

_LINE = "%(levelname)s: %(message)s"
_LINE_IN_FILE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OTHERS = ("tensorflow", "absl", "h5py", "jax", "keras")
#: What native libraries say where nothing is wrong. Errors are none, but for those about graphics cards that are not there.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|[IW]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \S+:\d+\] "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] \S+:\d+\] "
    rb"|(E\d{4} |\d{4}-\d\d-\d\d [\d:.]+: E ).*"
    rb"(Unable to register cu|computation placer already registered|failed call to cuInit)"
    rb"|INFO: (Created TensorFlow Lite|Initialized TensorFlow Lite|Applying \d+ TensorFlow Lite) "
    rb"|To enable the following instructions: .*rebuild TensorFlow with the appropriate compiler flags"
    rb"|fully_quantize: \d, inference_type: \d"
)


def is_chatter(line: bytes) -> bool:
    """True for a line that native libraries write where nothing is wrong."""
    return _CHATTER.match(line) is not None


@contextlib.contextmanager
def logging_to(verbosity: int, file: str | None) -> Iterator[None]:
    """Sets up logging for one command.

    Args:
        verbosity: 0: errors; 1: what the package does, and warnings; 2: its details, and all that TensorFlow says.
        file: Where all of it is written, however little of it the terminal shows; None: nowhere.

    Raises:
        OutputError: Where the file cannot be written.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbosity > 1 else "3")
    shown = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter(_LINE))
    terminal.setLevel(shown)
    handlers: list[logging.Handler] = [terminal]
    if file is not None:
        handlers.append(_file_handler(file))
    root, ours = logging.getLogger(), logging.getLogger("tflite_qdebug")
    others = [logging.getLogger(name) for name in _OTHERS]
    before = [(logger, logger.level) for logger in (root, ours, *others)]
    for logger in others:
        logger.setLevel(logging.INFO if verbosity > 1 else logging.ERROR)
    ours.setLevel(logging.DEBUG if file is not None else shown)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        for logger, level in before:
            logger.setLevel(level)


def _file_handler(file: str) -> logging.Handler:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(b"")
        # At its end, where the filter of standard error writes too.
        handler = logging.FileHandler(file, mode="a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write the log {file}: {error.strerror or error}") from error
    handler.setFormatter(logging.Formatter(_LINE_IN_FILE))
    return handler


@contextlib.contextmanager
def filtered_errors(log: str | None = None) -> Iterator[None]:
    """Drops the chatter of native libraries from standard error while a command runs.

    Python's own messages and progress bars go on directly, so that these see a terminal where there is one.

    Args:
        log: A file at whose end the chatter is kept; None: nowhere.
    """
    if os.name != "posix" or not _is_open(2):
        yield
        return
    sys.stderr.flush()
    true_errors, theirs = os.dup(2), sys.stderr
    reading, writing = os.pipe()
    told, telling = os.pipe()
    helper = _fork()
    if not helper:
        os.close(telling)
        _filter(reading, writing, told, log)
    os.close(told)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(true_errors, "w", buffering=1, encoding=theirs.encoding, errors="backslashreplace", closefd=False)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = theirs
        os.dup2(true_errors, 2)
        os.close(true_errors)
        # The pipe itself may never end: libraries keep copies of standard error.
        with contextlib.suppress(OSError):
            os.write(telling, b"end")
        os.close(telling)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(helper, 0)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _fork() -> int:
    with warnings.catch_warnings():
        # Of threads that numpy has started: the filter reads and writes, and needs none of their locks.
        warnings.filterwarnings("ignore", r"[\s\S]*\bfork\(\)")
        return os.fork()


def _filter(reading: int, writing: int, told: int, log: str | None) -> None:
    """What the filter does until it is told to end, or nobody is left who could write; never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the command, and not before
        os.close(writing)
        for stream in (0, 1):  # a reader of our results must not wait for the filter
            with contextlib.suppress(OSError):
                os.close(stream)
        kept, rest = None, b""
        while True:
            content = _next(reading, told)
            *lines, rest = (rest + content).split(b"\n")
            if not content:
                lines, rest = [*lines, rest] if rest else lines, b""
            for line in lines:
                if not is_chatter(line):
                    _write(2, line + b"\n")
                elif log is not None:
                    kept = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if kept is None else kept
                    _write(kept, line + b"\n")
            if not content:
                return
    except OSError:
        return  # whoever read standard error is gone
    finally:
        os._exit(0)


def _next(reading: int, told: int) -> bytes:
    """Returns what was written next; nothing at the end, once all that was written before it has been read."""
    ready, _, _ = select.select([reading, told], [], [])
    if reading not in ready:
        ready, _, _ = select.select([reading], [], [], 0)
    return os.read(reading, 65536) if reading in ready else b""


def _write(number: int, content: bytes) -> None:
    while content:
        content = content[os.write(number, content) :]
