"""Calibration in a process of its own: what it gives, and what becomes of one that dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from tflite_qdebug import child, tf_private
from tflite_qdebug.errors import ConversionError, DatasetError


def replaced(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Lets the child run ``script`` in place of itself, the result's path in ``sys.argv[1]``."""
    original = subprocess.Popen

    def popen(command: list[str], **arguments: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "tflite_qdebug.child"]
        return original([sys.executable, "-c", script, *command[3:]], **arguments)

    monkeypatch.setattr(child.subprocess, "Popen", popen)


READ_ALL = "import sys; sys.stdin.buffer.read(); "


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (READ_ALL + "import os; os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("import os; os.kill(os.getpid(), 6)", "signal SIGABRT"),
        (READ_ALL + "print('half a', file=sys.stderr); print('the end', file=sys.stderr); sys.exit(9)", "exit code 9"),
    ],
)
def test_a_dead_child_says_how_it_died(script: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, script)
    with pytest.raises(ConversionError) as caught:
        child.calibrate_in_child(b"model", lambda: [[np.zeros(1_000_000, np.float32)]] * 3)  # more than a pipe holds
    assert said in str(caught.value)
    assert "while calibrating" in str(caught.value)
    if "the end" in script:
        assert "Its last words: the end" in str(caught.value)


def test_a_refusal_is_passed_on_in_tensorflows_words(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, READ_ALL + f"print('TensorFlow said no', file=sys.stderr); sys.exit({child._REFUSED})")
    with pytest.raises(ConversionError, match=r"^TensorFlow said no$"):
        child.calibrate_in_child(b"model", list)
    monkeypatch.undo()
    with pytest.raises(ConversionError, match="could not calibrate"):
        child.calibrate_in_child(b"no model at all", list)


@pytest.mark.parametrize("error", [ZeroDivisionError("the user's own"), DatasetError("sample 1: wrong"), KeyboardInterrupt()])
def test_an_error_of_the_dataset_is_passed_on_as_it_is(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    original = subprocess.Popen
    monkeypatch.setattr(
        child.subprocess,
        "Popen",
        lambda *arguments, **keywords: started.append(original(*arguments, **keywords)) or started[-1],
    )

    def samples() -> Iterator[Any]:
        yield models.samples("lstm", 1)[0]
        raise error

    with pytest.raises(type(error)) as caught:
        child.calibrate_in_child(models.float_tflite("lstm"), samples)
    assert caught.value is error
    assert [process.returncode for process in started] == [-signal.SIGKILL], "the child must not stay behind"


def test_the_child_gives_what_tensorflow_gives_in_this_process() -> None:
    """A tf-keras LSTM calibrates well; by its operator's name it is sent to a child."""
    made = models.float_model("lstm")
    dataset = models.dataset("lstm", 4)
    here = tf_private.calibrate(made.data, dataset)
    assert child.calibrate_in_child(made.data, dataset) == here
    assert made.calibrate(dataset).data == here


def test_the_calibration_of_a_recurrent_model_goes_through_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, READ_ALL + "import os; os.kill(os.getpid(), 11)")
    made = models.float_model("lstm")
    with pytest.raises(ConversionError, match=r"signal SIGSEGV.*build the model with tf-keras"):
        made.calibrate(models.dataset("lstm", 2))


def test_a_script_without_a_main_guard_can_calibrate(tmp_path: Path) -> None:
    """multiprocessing would run the user's script anew in its child; this does not."""
    (tmp_path / "model.tflite").write_bytes(models.float_model("lstm").data)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; import numpy as np\n"
        "print('started')\n"
        "from tflite_qdebug.child import calibrate_in_child\n"
        f"data = Path({str(tmp_path / 'model.tflite')!r}).read_bytes()\n"
        "print(len(calibrate_in_child(data, lambda: [[np.zeros((1, 5, 6), np.float32)]])) > 1000)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["started", "True"]
