"""Steps that may end their process run in a child; a dead child becomes an error that says what it was doing.

``python -m tflite_qdebug.child`` is that child: it reads a float model and samples from its standard input and writes the
calibrated model to a file. A plain subprocess, not multiprocessing, so that a user's script needs no main guard.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tflite_qdebug import tf_private
from tflite_qdebug.errors import ConversionError

__all__ = ["calibrate_in_child"]


def calibrate_in_child(float_model: bytes, samples: Callable[[], Iterable[Any]]) -> bytes:
    """Does what ``tf_private.calibrate`` does, in a process of its own.

    Raises:
        ConversionError: With TensorFlow's words, or the signal that ended the child.
    """
    with tempfile.TemporaryDirectory(prefix="tflite_qdebug_") as folder:
        result, log = Path(folder) / "result.pickle", Path(folder) / "log.txt"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "tflite_qdebug.child", str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            assert child.stdin is not None
            try:
                _send(child.stdin, float_model, samples())
            except BrokenPipeError:
                pass  # the child died; how, its exit code tells below
            except BaseException:
                child.kill()
                raise
            finally:
                _close(child.stdin)
                code = child.wait()
        if code:
            raise ConversionError(_obituary(code, log.read_text(errors="replace")))
        return bytes(pickle.loads(result.read_bytes()))


def _send(pipe: Any, float_model: bytes, samples: Iterable[Any]) -> None:
    pickle.dump(float_model, pipe)
    for sample in samples:
        pickle.dump(sample, pipe)


def _close(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _obituary(code: int, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    last = f" Its last words: {lines[-1].strip()}" if lines else ""
    if code == _REFUSED:
        return lines[-1].strip() if lines else "TensorFlow could not calibrate the model"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return (
        f"TensorFlow's calibrator ended its process ({how}) while calibrating the model, which has recurrent operators or "
        f"control flow.{last} TensorFlow is known to crash there on LSTM and GRU layers of Keras 3; build the model with "
        "tf-keras (Keras 2), or with unroll=True in the recurrent layer"
    )


_REFUSED = 3


def _received(pipe: BinaryIO) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return


def main() -> None:
    """Calibrates what comes in on standard input."""
    pipe = sys.stdin.buffer
    float_model = pickle.load(pipe)
    try:
        calibrated = tf_private.calibrate(float_model, lambda: _received(pipe))
    except ConversionError as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)
    Path(sys.argv[1]).write_bytes(pickle.dumps(calibrated))


if __name__ == "__main__":
    main()
