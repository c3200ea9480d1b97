"""What must run on a board: numpy alone, and Python 3.7's syntax; and what the package shows to the outside."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import tflite_qdebug
from tflite_qdebug.bundling import board_modules

PACKAGE = Path(tflite_qdebug.__file__).parent
HEAVY = ("tensorflow", "pandas", "flatbuffers", "numba", "rich", "PIL", "matplotlib", "keras", "tensorflow_datasets")
BOARD = ("errors", "quantization", "statistics", "kernels", "interpreter", "datasets", "record", "collect", "progress",
         "tf_private", "isolation", "workers", "delegates", "canary", "files", "board", "board.archive", "board.command",
         "board.comparison", "board.journal", "board.running", "board.start", "board.timing")  # fmt: skip

BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", HEAVY)
def test_blocking_really_blocks(name: str) -> None:
    done = python(BLOCKER + f"import {name}")
    assert done.returncode == 1
    assert f"blocked: {name}" in done.stderr


@pytest.mark.parametrize("name", BOARD)
def test_a_board_module_imports_with_everything_heavy_blocked(name: str) -> None:
    done = python(BLOCKER + f"import tflite_qdebug.{name}")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_numpy_and_nothing_heavier() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); {}; "
        "print(*sorted({{name.partition('.')[0] for name in set(sys.modules) - before}}))"
    )
    done = python(code.format("import tflite_qdebug, tflite_qdebug.errors, tflite_qdebug.statistics"))
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "tflite_qdebug" in loaded
    assert loaded <= set(sys.stdlib_module_names) | {"numpy", "tflite_qdebug"}, loaded
    # A test of this test: it sees what a heavy import brings in.
    assert "flatbuffers" in python(code.format("import flatbuffers")).stdout.split()


def test_statistics_work_with_everything_heavy_blocked() -> None:
    code = """
import numpy as np
from tflite_qdebug.kernels import COLUMNS, RELATIVE_COLUMNS, arguments, measure_pair, measure_relative
from tflite_qdebug.record import Layer, Run
from tflite_qdebug.statistics import ErrorStatistics, SampleSums
name, measure = measure_pair()
row = np.zeros((1, COLUMNS))
pair = np.array([1, 2, 127], np.int8), np.array([0.5, 1.0, 60.0], np.float32), *arguments(0.5, 0, -128, 127, 8)
measure(*pair, row[0])
relative = np.zeros((1, RELATIVE_COLUMNS))
measure_relative()(*pair, relative[0])
statistics = ErrorStatistics(1)
statistics.add(0, SampleSums(row, relative))
run = Run("per_layer", [Layer("a", "ADD", 0, "a", 0, 1, (3,), "int8", 0.5, 0, "NumericVerify/a:0")], statistics)
print(name, *(run.columns()[column][0] for column in ("max_abs_error", "saturated_high", "mre")))
"""
    done = python(BLOCKER + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["numpy", "3.5", str(1 / 3), str(3.5 / 60 / 3)]


def board_files() -> list[Path]:
    files = [PACKAGE / "__init__.py", *(PACKAGE / "datasets").glob("*.py"), PACKAGE / "example" / "__init__.py"]
    files += [PACKAGE / f"{name}.py" for name in BOARD if (PACKAGE / f"{name}.py").exists()]
    # What a bundle carries; what it begins with tells an old Python what is needed, so its syntax is tested apart.
    return sorted({*files, *board_modules()} - {PACKAGE / "board" / "start.py"})


@pytest.mark.parametrize("path", board_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_board_module_has_the_syntax_of_python_3_7(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert future, "annotations would be evaluated when the module is loaded"


def test_what_an_archive_runs_first_is_read_by_any_python_3() -> None:
    tree = ast.parse((PACKAGE / "board" / "start.py").read_text(), feature_version=(3, 4))
    imports = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports == [], "nothing is imported before the hash is checked"


def test_a_bundle_carries_all_that_its_modules_import_and_nothing_for_hosts() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in board_modules()}
    assert {"__init__.py", "interpreter.py", "delegates.py", "collect.py", "board/start.py", "board/command.py"} <= names
    assert not names & {"model.py", "conversion.py", "findings.py", "numba_kernels.py", "bundling.py", "output_error.py"}


def test_the_check_of_syntax_notices_newer_syntax() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("if (n := 3): pass", feature_version=(3, 7))


# ------------------------------------------------------------------------------------------------------------- exports


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "tflite_qdebug.") if not m.name.endswith("__main__")]
    return [name for name in found if not name.endswith("example.train")]


@pytest.mark.parametrize("name", [name for name in modules() if "numba" not in name])
def test_what_a_module_lists_as_public_exists_once(name: str) -> None:
    names = getattr(importlib.import_module(name), "__all__", [])
    assert len(names) == len(set(names))
    for key in names:
        assert getattr(importlib.import_module(name), key) is not None


def test_every_export_resolves_and_nothing_else_does() -> None:
    assert sorted(tflite_qdebug.__all__) == sorted([*tflite_qdebug._EXPORTS, "__version__"])
    for name in tflite_qdebug.__all__:
        assert getattr(tflite_qdebug, name) is not None
    assert set(dir(tflite_qdebug)) == set(tflite_qdebug.__all__)
    for name, module in tflite_qdebug._EXPORTS.items():
        assert name in importlib.import_module(f"tflite_qdebug.{module}").__all__, f"{name} is no public name of {module}"
    with pytest.raises(AttributeError, match="Did you mean 'QuantizationDebugger'"):
        tflite_qdebug.QuantisationDebugger  # noqa: B018
