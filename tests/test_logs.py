"""Silence and words: the package's log, the chatter of native libraries, ``python -m``, and what the user had set up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tflite_qdebug.cli import main
from tflite_qdebug.cli.logs import is_chatter

pytest.importorskip("tensorflow")

REAL = b"E0000 00:00:1795310525.321303 25012 boom.cc:1] a real error"
CHATTER = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    b"I0000 00:00:1795310525.321303   25012 port.cc:153] oneDNN custom operations are on.",
    b"W0000 00:00:1795310525.321303   25012 tf_tfl_flatbuffer_helpers.cc:392] Ignored output_format.",
    b"2024-05-01 10:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN custom operations are on.",
    b"2024-05-01 10:00:00.123456: E external/local_xla/xla/cuda_dnn.cc:9261] Unable to register cuDNN factory",
    b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    b"To enable the following instructions: AVX2 FMA, rebuild TensorFlow with the appropriate compiler flags.",
)
ERRORS = (
    REAL,
    b"F0000 00:00:1795310525.321303 25012 check.cc:1] Check failed: x",
    b"2024-05-01 10:00:00.123456: E tensorflow/lite/kernels/conv.cc:7] wrong",
    b"ERROR: Node number 3 (CONV_2D) failed to prepare.",
    b"Traceback (most recent call last):",
    b"terminate called after throwing an instance of 'std::bad_alloc'",
    b"tflite-qdebug: got a wrong option",
    b"INFO: something of the user's own",
)


def test_chatter_is_told_from_errors() -> None:
    assert all(map(is_chatter, CHATTER))
    assert not any(map(is_chatter, ERRORS))


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "tflite_qdebug", *words]
    settings = {**known, "PYTHONPATH": str(cwd), **environment}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A folder with data whose function writes to file descriptor 2 as native code does; ``crash`` also ends the process."""
    noise, words = b"\n".join([*CHATTER, REAL, b""]), CHATTER[1] + b"\nlast words"
    (tmp_path / "noisy.py").write_text(
        "import os, signal\nfrom tflite_qdebug import example\n"
        f"def samples():\n    os.write(2, {noise!r})\n    return example.debug_dataset()\n"
        f"def crash():\n    os.write(2, {words!r})\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    return tmp_path


def test_python_m_is_the_command(tmp_path: Path) -> None:
    version = run("--version", cwd=tmp_path)
    assert (version.returncode, version.stdout.split()[0], version.stderr) == (0, "tflite-qdebug", "")
    wrong = run("report", "nowhere", cwd=tmp_path)
    assert wrong.returncode == 3
    assert wrong.stderr.startswith("tflite-qdebug: there is no run at nowhere")
    assert run("nonsense", cwd=tmp_path).returncode == 2


def test_a_command_drops_chatter_and_nothing_else_and_keeps_all_in_its_log(noisy: Path) -> None:
    done = run("run", "example", "--debug-data", "noisy:samples", "--limit", "2", "--log-file", "logs/all.log", cwd=noisy)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) == {REAL.decode()}
    log = (noisy / "logs" / "all.log").read_text()
    for line in CHATTER:
        assert line.decode() in log
    assert "INFO tflite_qdebug.conversion: quantized: int8" in log
    assert "INFO tflite_qdebug.collect: measuring 45 layers" in log


def test_the_last_words_of_a_crash_get_through(noisy: Path) -> None:
    done = run("run", "example", "--debug-data", "noisy:crash", "--limit", "2", cwd=noisy)
    assert done.returncode == -11
    assert done.stderr == "last words\n"


def test_a_library_that_keeps_standard_error_open_does_not_hold_the_command_up(noisy: Path) -> None:
    # As the one that draws charts does.
    with (noisy / "noisy.py").open("a") as file:
        file.write("def keeping():\n    os.dup(2)\n    return samples()\n")
    done = run("run", "example", "--debug-data", "noisy:keeping", "--limit", "2", "--no-progress", "--no-isolation", cwd=noisy)
    assert done.returncode == 0
    assert "a real error" in done.stderr


def test_verbose_says_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "example", "--limit", "2", "--no-progress", "--output", str(tmp_path)]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    assert main([*words, "-v"]) == 0
    said = capsys.readouterr().err
    assert "INFO: quantized: int8" in said
    assert "DEBUG" not in said


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["convert", "example", "--output", str(tmp_path), "--log-file", str(tmp_path / "file" / "log")]
    assert main(words) == 8
    assert "cannot write the log" in capsys.readouterr().err


def test_the_library_says_nothing_and_leaves_the_users_logging_as_it_was(tmp_path: Path) -> None:
    code = """
import logging, warnings, sys
logging.basicConfig(level=logging.WARNING, format="USER %(message)s")
ours = logging.getLogger("tflite_qdebug")
state = lambda: (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
before, filters = state(), list(warnings.filters)
import tflite_qdebug
assert warnings.filters == filters
assert [type(handler).__name__ for handler in ours.handlers] == ["NullHandler"]
assert ours.level == logging.NOTSET and ours.propagate
from tflite_qdebug import example
model = tflite_qdebug.load_float_model(example.MODEL_PATH)
quantized = model.calibrate(example.representative_dataset, limit=2).quantize("int8")
run = tflite_qdebug.pair_error(model.data, quantized.data, example.debug_dataset, limit=2)
assert state() == before, (state(), before)
logging.getLogger("tflite_qdebug").setLevel(logging.INFO)
model.quantize("float16"), tflite_qdebug.load_float_model(example.MODEL_PATH)
"""
    known = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr  # what was asked for, in the user's own form
    assert done.stderr.startswith("USER float model: ")


def test_a_command_gives_back_the_levels_it_found() -> None:
    import logging

    names = ("", "tflite_qdebug", "tensorflow", "absl")
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names]
    assert main(["completion", "bash"]) == 0
    assert [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names] == before
